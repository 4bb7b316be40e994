"""A session of requests that notices what caveclient does not.

It sets time limits on every request, refuses error statuses before caveclient sees them (which
opens a web browser on one of them), takes a login page for the refusal it is, and keeps the last
answer of each thread with its headers.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any
from urllib.parse import urlsplit

import requests

from microns_xr.source.retry import BadAnswer, Refused

__all__ = ["CheckedSession", "check", "checked"]

_LOGIN = re.compile(r"/(?:sticky_)?auth(?:orize)?(?:/|$)|/login(?:/|$)")


class CheckedSession(requests.Session):
    """A session with time limits that raises `Refused` for every error status.

    Parameters
    ----------
    timeout : tuple of float
        Seconds to wait for a connection, and for the next bytes of an answer.
    """

    def __init__(self, timeout: tuple[float, float]) -> None:
        super().__init__()
        self._timeout = timeout
        self._local = threading.local()

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request; see `requests.Session.send`."""
        options["timeout"] = options.get("timeout") or self._timeout
        self._local.answer = None
        response = super().send(request, **options)
        check(response)
        self._local.answer = response
        return response

    def take_answer(self) -> requests.Response:
        """Return the last answer to a request of this thread, and forget it.

        Raises
        ------
        BadAnswer
            If there is none.
        """
        response, self._local.answer = getattr(self._local, "answer", None), None
        if response is None:
            raise BadAnswer("there was no answer")
        return response


def check(response: requests.Response) -> None:
    """Raise `Refused` unless an answer is the one that was asked for.

    Parameters
    ----------
    response : requests.Response
        The answer.

    Raises
    ------
    Refused
        For an error status, with the service's reason. A 500 that carries another status in its
        message counts as that one, and being sent on to a login page as 401.
    """
    for step in (*response.history, response):
        target = urlsplit(step.headers.get("Location", ""))
        if step.is_redirect and _LOGIN.search(target.path):
            raise Refused(401, f"the service asks to log in at {target.netloc}{target.path}")
    status = response.status_code
    if status < 400:
        return
    if status == 404 and urlsplit(response.url).path.endswith("/version"):
        return  # a server too old to have this endpoint, which caveclient knows of
    reason = _reason(response)
    if status == 500 and (inner := re.match(r"(4\d\d)\b", reason)):
        status = int(inner[1])
    raise Refused(status, reason, response.headers.get("Retry-After"))


def _reason(response: requests.Response) -> str:
    """Return the service's own words, of a JSON document or a page."""
    text = response.text[:10_000]
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        words = re.sub(r"(?s)<(head|style|script)\b.*?</\1>|<[^>]*>", " ", text)
        return re.sub(r"\s+", " ", words).strip()[:200] or str(response.reason or "")
    said = document.get("message") or document.get("error") or document.get("msg") or ""
    data = document.get("data")
    form = data.get("tos_form_url") if isinstance(data, dict) else None
    return f"{said}, accept the terms of service at {form}" if form else str(said)[:200]


def checked(client: type, timeout: tuple[float, float]) -> Any:
    """Return a class of caveclient whose every request goes through a `CheckedSession`.

    Parameters
    ----------
    client : type
        A client class; it makes a session of its own, which is set aside.
    timeout : tuple of float
        As for `CheckedSession`.

    Returns
    -------
    type
        The class, to be used like `client`; ``session`` is the `CheckedSession`.
    """

    def put_session(self: Any, plain: object) -> None:
        self.checked_session = CheckedSession(timeout)

    session = property(lambda self: self.checked_session, put_session)
    return type(client.__name__, (client,), {"session": session})
