"""Which failed requests to repeat, how long to wait, and which error to raise in the end."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import random
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, TypeVar

import pyarrow as pa
import urllib3
from tqdm.auto import tqdm

from microns_xr.errors import (
    IncompleteDownloadError,
    MicronsXrError,
    SourceError,
    require_instance,
    whole_number,
)
from microns_xr.network import BadAnswer, describe

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Statuses below 500 that are transient: timeout, too early, too many requests.
_TRANSIENT_STATUSES = (408, 425, 429)
# Local errors, which repeating a request does not fix: no space, no write permission.
_LOCAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_LOCAL_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
_NETWORK_ERRORS = (OSError, EOFError, http.client.HTTPException, zlib.error, pa.ArrowInvalid)
# Packages whose exceptions are all failures of a connection or an answer.
_NETWORK_PACKAGES = ("aiohttp", "urllib3")
# No address for a name, no route to it, or nothing that listens there, in the words of the HTTP
# packages: a mistyped address or no network, which waiting for minutes does not mend.
_UNREACHABLE = re.compile(
    r"failed to resolve '[^']*'|name or service not known|failure in name resolution"
    r"|getaddrinfo failed|nodename nor servname|no address associated|network is unreachable"
    r"|no route to host|connection refused|connect timeout|could not connect to the endpoint",
    re.IGNORECASE,
)
_UNREACHABLE_ATTEMPTS = 2


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any HTTP package carries."""
    response = getattr(error, "response", None)
    for holder, name in ((error, "status"), (error, "code"), (response, "status_code")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def classify(error: BaseException) -> Literal["transient", "refused", "local"]:
    """Return whether an error is transient, a refusal of the service, or a local problem."""
    status = status_of(error)
    if status is not None:
        transient = status >= 500 or status in _TRANSIENT_STATUSES
        return "transient" if transient else "refused"
    if isinstance(error, (MicronsXrError, MemoryError, *_LOCAL_ERRORS)):
        return "local"
    package = type(error).__module__.partition(".")[0]
    if type(error).__name__ == "JSONDecodeError":
        return "transient"
    if isinstance(error, OSError):
        if error.errno in _LOCAL_ERRNOS:
            return "local"
        # requests raises errors that are also ValueErrors for invalid addresses.
        if isinstance(error, ValueError) or "certificate verify failed" in str(error).lower():
            return "refused"
    if isinstance(error, (BadAnswer, *_NETWORK_ERRORS)) or package in _NETWORK_PACKAGES:
        return "transient"
    # caveclient raises this when it gets a web page instead of a table.
    if isinstance(error, ValueError) and "Unknown response type" in str(error):
        return "transient"
    return "refused" if package in ("caveclient", "requests") else "local"


def progress_bar(show: bool, description: str, unit: str = "B", **options: Any) -> Any:
    """Return a tqdm bar, which is shown on a terminal and in a notebook, not in a log."""
    # It may be imported where there is no notebook.
    in_notebook = "ipykernel" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    if unit == "B":
        options |= {"unit_scale": True, "unit_divisor": 1024}
    disable = not show or (False if in_notebook else None)
    return tqdm(desc=description, unit=unit, disable=disable, **options)


@dataclass
class Retry:
    """How often to try a request, and how long to wait in between.

    A server that cannot be reached is tried twice only, unless it has answered before.

    Parameters
    ----------
    attempts : int, optional
        Number of attempts, the first included.
    base, cap : float, optional
        Seconds to wait after the first failure, doubled after each further one, and the longest
        wait. A wait that the server asks for (``Retry-After``) is respected, up to `cap`.
    sleep : callable, optional
        Function that waits for a number of seconds.

    Examples
    --------
    >>> import microns_xr as mx
    >>> patient = mx.sources.Retry(attempts=20, cap=600)
    >>> source = mx.sources.ArchiveSource(1507, retry=patient)
    """

    attempts: int = 10
    base: float = 1.0
    cap: float = 120.0
    sleep: Callable[[float], Any] = field(default=time.sleep, repr=False)
    answered: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole_number("attempts", self.attempts, 1)
        for name in ("base", "cap"):
            require_instance(name, getattr(self, name), Real, "a number of seconds")


def as_retry(retry: Retry | None) -> Retry:
    """Return `retry`, by default ``Retry()``."""
    require_instance("retry", retry, (Retry, type(None)), "mx.sources.Retry(attempts=...)")
    return retry or Retry()


def attempt(
    retry: Retry,
    ask: Callable[[], Result],
    what: str,
    *,
    advice: Mapping[int, str] | None = None,
    clean: Callable[[str], str] = str,
    at_most: int | None = None,
    progressed: Callable[[], bool] = lambda: False,
) -> Result:
    """Make a request until it succeeds, is refused, or has failed too often.

    `advice` maps a status to a hint, `clean` removes secrets from a text. An attempt after
    which `progressed` is true, such as one that fetched part of a file, does not count.
    """
    most = min(retry.attempts, at_most or retry.attempts)
    failures = 0  # since the last progress
    while True:
        try:
            result = ask()
        except Exception as error:
            kind, text = classify(error), clean(describe(error))
            if kind == "local":
                raise
            failures = 0 if progressed() else failures + 1
            unreachable = _UNREACHABLE.search(str(error))
            retry.answered |= not failures or not unreachable
            status, wait = status_of(error), _wait(retry, failures, error)
        else:
            retry.answered = True
            return result
        # Below the except block, since its traceback refers to frames that hold a token.
        if kind == "refused":
            hint = (advice or {}).get(status or 0)
            raise SourceError(f"{what}: {text}" + (f": {hint}" if hint else ""))
        limit = most if retry.answered else min(most, _UNREACHABLE_ATTEMPTS)
        if failures >= limit:
            break
        logger.log(
            logging.WARNING if retry.answered else logging.INFO,
            "%s: %s; retrying in %.1f s (attempt %d of %d)",
            what, text, wait, failures + 1, limit,
        )  # fmt: skip
        retry.sleep(wait)
    if unreachable and not retry.answered:
        raise IncompleteDownloadError(
            f"{what}: the server cannot be reached ({unreachable[0]}): check the address and "
            "the network"
        )
    raise IncompleteDownloadError(
        f"{what}: {text} ({limit} attempts): the service or the network is failing; "
        "run the same again later, data that has arrived is kept"
    )


def _wait(retry: Retry, failures: int, error: BaseException) -> float:
    """Return the seconds to wait, at least those of a Retry-After header, up to the cap."""
    # With jitter, so that clients do not all come back at the same moment.
    wait = min(retry.cap, retry.base * 2.0 ** min(failures - 1, 60)) * random.uniform(0.5, 1.0)
    response = getattr(error, "response", None)  # falsy if it has an error status
    headers = getattr(error if response is None else response, "headers", None) or {}
    with contextlib.suppress(urllib3.exceptions.InvalidHeader):
        stated = urllib3.util.Retry().parse_retry_after(str(headers.get("Retry-After")))
        wait = max(wait, min(stated, retry.cap))
    return wait
