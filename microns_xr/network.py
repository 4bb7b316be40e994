"""Errors of requests in one line, and logins that stay with their host.

Opening a store takes no more of the network than this, and imports none of its packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Headers that a request keeps when it is redirected to another host.
PLAIN_HEADERS = ("accept", "accept-encoding", "connection", "if-range", "range", "user-agent")
_MAX_LENGTH = 300  # of an error in a message, in characters


class BadAnswer(Exception):
    """An answer is invalid, so the request is repeated. Never leaves the package."""


class Refused(Exception):
    """The service answered with an error status. Never leaves the package."""

    def __init__(self, status: int, reason: str = "", headers: Mapping[str, str] = {}) -> None:
        super().__init__(f"HTTP {status}: {reason}" if reason else f"HTTP {status}")
        self.status = status
        self.headers = headers


def describe(error: BaseException) -> str:
    """Return an error as one short line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
    if isinstance(error, BadAnswer | Refused):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class _LoginStays:
    """Middleware of aiohttp that sends a login only to the host that it is for."""

    url: str

    async def __call__(self, request: Any, handler: Any) -> Any:
        if request.url.origin() != type(request.url)(self.url).origin():
            for name in [n for n in request.headers if n.lower() not in (*PLAIN_HEADERS, "host")]:
                del request.headers[name]
        return await handler(request)


def http_options(url: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return fsspec options that send the login of an address to no other host, if redirected."""
    if not options or not url.startswith(("http://", "https://")):
        return dict(options or {})
    client = dict(options.get("client_kwargs") or {})
    client["middlewares"] = (*client.get("middlewares", ()), _LoginStays(url))
    return {**options, "client_kwargs": client}
