"""Atomic writing of files (to a temporary name, then renamed), locks, checksums.

Temporary names are unique and end in `TEMPORARY`, so that no file of the user is ever taken for
one: ``results.tmp`` beside ``results`` is theirs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from microns_xr.errors import MicronsXrError, SourceError

logger = logging.getLogger(__name__)

TEMPORARY = ".microns_xr.tmp"

# By process, because a fork copies locks that no thread of the child releases, and path.
_thread_locks: dict[tuple[int, str], threading.RLock] = {}


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full."""
    # HDF5 raises a RuntimeError with the words of the system.
    full = getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error)
    return full and not isinstance(error, MicronsXrError)


def write_error(path: str | Path, error: Any, needed: int | None = None) -> MicronsXrError:
    """Return the error to raise where something cannot be written; `needed` is in bytes, at most.

    What was written in part is to be removed before, so that the free space is right.
    """
    if isinstance(error, MicronsXrError):
        return error
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    advice = "check the folder"
    if is_full(error):
        free = shutil.disk_usage(folder).free / 1e6
        room = f"more than the {free:,.1f} MB that are free are needed"
        if needed is not None:
            room = f"up to {needed / 1e6:,.1f} MB are needed, {free:,.1f} MB are free"
        advice = f"{room}; free some space or write elsewhere"
    elif getattr(error, "errno", None) in _REFUSED:
        advice = f"choose a folder that you may write to, not {folder}"
    return SourceError(f"{path} cannot be written ({error}): {advice}")


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of files; nobody else may be writing to the folder."""
    for path in folder.glob(f"{name}.*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary name to write to; it replaces the file `path` if the block succeeds.

    `needed` is the number of bytes, at most, to state if the disk is full.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        # Flush to disk before renaming, in case of a power failure.
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, MicronsXrError) or not (isinstance(error, OSError) or is_full(error)):
            raise
        raise write_error(path, error, needed) from error


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file atomically."""
    content = content.encode() if isinstance(content, str) else content
    with new_file(path, len(content)) as part:
        part.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    write_file(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    The operating system releases the lock when the process ends, even if it is killed.
    """
    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        # Some network file systems do not support locks: continue without this protection.
        logger.debug("the file system does not support locks: %s", error)
        return True


@contextlib.contextmanager
def one_thread(path: str | Path) -> Iterator[None]:
    """Wait until no other thread of this process is working on a file."""
    key = (os.getpid(), os.path.realpath(path))
    with _thread_locks.setdefault(key, threading.RLock()):
        yield


@contextlib.contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Hold the lock file of a folder while `what` is downloaded into it.

    Threads of one process wait for each other; another process is an error.
    """
    folder = Path(folder)
    with one_thread(folder / "lock"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(folder / "lock", error) from error
        try:
            if not try_lock(descriptor):
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise SourceError(
                    f"another download of {what} into {folder} is running (process {holder}): "
                    "wait for it, then run this again; only missing data is fetched"
                )
            with contextlib.suppress(OSError):  # a full disk, which may hold all that is wanted
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error}): check the file") from error
