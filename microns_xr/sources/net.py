"""Asking again: which failures pass by themselves, how long to wait, what to say in the end."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import errno
import http.client
import logging
import random
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import pyarrow as pa

from microns_xr.errors import IncompleteDownloadError, MicronsXrError, SourceError

logger = logging.getLogger(__name__)

Kind = Literal["transient", "lasting"]
Result = TypeVar("Result")

# Statuses below 500 that pass by themselves: timeout, too early, too many requests.
_PASSING = (408, 425, 429)
# Local trouble, which asking again does not help: no space, no right to write.
_LOCAL = {getattr(errno, n, 0) for n in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM")} - {0}
_LOCAL_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
_NETWORK_ERRORS = (OSError, EOFError, http.client.HTTPException, zlib.error, pa.ArrowInvalid)
# Packages all of whose exceptions are failures of a connection or an answer.
_NETWORK_PACKAGES = ("aiohttp", "urllib3")
_LONGEST = 300


class BadAnswer(Exception):
    """An answer came, and cannot be right: it is asked for again. Never leaves the package."""


class Refused(Exception):
    """The service answered with an error status. Never leaves the package."""

    def __init__(
        self, status: int, reason: str = "", retry_after: float | str | None = None
    ) -> None:
        super().__init__(f"HTTP {status}: {reason}" if reason else f"HTTP {status}")
        self.status = status
        self.retry_after = retry_after


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any HTTP package carries."""
    response = getattr(error, "response", None)
    for holder, name in ((error, "status"), (error, "code"), (response, "status_code")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def classify(error: BaseException) -> Kind:
    """Say whether it makes sense to ask again after an error."""
    status = status_of(error)
    if status is not None:
        return "transient" if status >= 500 or status in _PASSING else "lasting"
    if isinstance(error, (MicronsXrError, *_LOCAL_ERRORS)):
        return "lasting"
    if isinstance(error, BadAnswer) or type(error).__name__ == "JSONDecodeError":
        return "transient"
    if isinstance(error, OSError) and (
        error.errno in _LOCAL
        or isinstance(error, ValueError)  # so requests marks an address that makes no sense
        or "certificate verify failed" in str(error).lower()
    ):
        return "lasting"
    if isinstance(error, _NETWORK_ERRORS) or _package(error) in _NETWORK_PACKAGES:
        return "transient"
    # A page of HTML where a table should be, in the words of caveclient.
    if isinstance(error, ValueError) and "Unknown response type" in str(error):
        return "transient"
    return "lasting"


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def describe(error: BaseException) -> str:
    """Return one short line that says what an error is."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(error, BadAnswer | Refused):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _asked_to_wait(error: BaseException) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 without one."""
    value = getattr(error, "retry_after", None)
    if value is None:
        response = getattr(error, "response", None)  # one with an error status is falsy
        headers = getattr(error if response is None else response, "headers", None)
        value = headers.get("Retry-After") if headers is not None else None
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(float(value), 0.0)
    try:
        date = email.utils.parsedate_to_datetime(str(value))
    except ValueError:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=dt.UTC)
    return max((date - dt.datetime.now(dt.UTC)).total_seconds(), 0.0)


@dataclass(frozen=True)
class Retry:
    """How often and how patiently to ask again."""

    attempts: int = 10
    base: float = 1.0
    cap: float = 120.0
    rng: random.Random = field(default_factory=random.Random, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)

    def wait(self, failures: int, error: BaseException) -> float:
        """Return the seconds to wait after so many failures, the last of them `error`."""
        grown = min(self.cap, self.base * 2.0 ** min(failures - 1, 60))
        grown *= self.rng.uniform(0.5, 1.0)
        return max(grown, min(_asked_to_wait(error), self.cap))

    def call(
        self,
        ask: Callable[[], Result],
        what: str,
        *,
        advice: Mapping[int, str] | None = None,
        clean: Callable[[str], str] = str,
        attempts: int | None = None,
    ) -> Result:
        """Make a request until it succeeds, fails for good, or has failed too often."""
        limit = max(1, self.attempts if attempts is None else attempts)
        for failures in range(1, limit + 1):
            try:
                return ask()
            except Exception as error:
                lasting = classify(error) == "lasting"
                status = status_of(error)
                if lasting and status is None and not _of_the_service(error):
                    raise
                said = clean(describe(error))
                pause = self.wait(failures, error)
            # Raised out here, so that no traceback leads to the frames that hold a token.
            if lasting:
                hint = (advice or {}).get(status or 0)
                raise SourceError(f"{what}: {said}" + (f": {hint}" if hint else ""))
            if failures < limit:
                logger.warning(
                    "%s: %s; asking again in %.1f s (attempt %d of %d)",
                    what, said, pause, failures + 1, limit,
                )  # fmt: skip
                self.sleep(pause)
        raise IncompleteDownloadError(
            f"{what}: {said} ({limit} attempts): the service or the network fails at the moment; "
            "run the same again later, what has arrived is kept"
        )


def _of_the_service(error: BaseException) -> bool:
    """Whether a lasting error speaks of the service rather than of the program or its files."""
    if isinstance(error, (MicronsXrError, *_LOCAL_ERRORS)):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LOCAL
    return _package(error) in (*_NETWORK_PACKAGES, "caveclient", "requests")
