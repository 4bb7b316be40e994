"""One writer at a time in a folder of downloads."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from microns_xr.errors import SourceError

__all__ = ["held"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while `what` is downloaded into it; the lock goes with the process.

    Parameters
    ----------
    folder : pathlib.Path
        The folder; made if it is not there.
    what : str
        For the message, such as ``"tables"``.

    Raises
    ------
    SourceError
        If another download holds it, or it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with held(Path(tempfile.mkdtemp()), "tables"):
    ...     pass
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be written ({error}): choose another datadir, or make room"
        ) from error
    try:
        with contextlib.suppress(ImportError):  # there is no fcntl on Windows
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SourceError(
                    f"another download of {what} into {folder} is running: wait for it, then run "
                    "this again; it fetches only what is missing"
                ) from error
            except OSError as error:
                # Some network file systems have no locks: two downloads are not noticed there.
                logger.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(descriptor)
