"""Replace a local store in one step, and finish an interrupted replacement.

While a store ``NAME`` is written, the folder ``NAME.microns_xr.swap`` stands beside it, with the
new store and a file ``lock``, which is locked while the writing process is alive. At the end the
old store is renamed to ``old`` in that folder and the new one to ``NAME``, and the folder is
removed. At every point one complete store is on disk, and `recover`, which opening and writing call
first, continues from there. Nothing else beside a store is ever changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zarr.core.sync import sync

from microns_xr.errors import StoreFormatError
from microns_xr.files import is_full, read_json, try_lock, write_error
from microns_xr.store.format import FORMAT_ATTR

logger = logging.getLogger(__name__)

SUFFIX = ".microns_xr.swap"
# Root attribute that says what a store holds if it is not a release, which has `FORMAT_ATTR`.
KIND_ATTR = "microns_xr_kind"
RELEASE = "a release"
_PATIENCE = 2.0  # seconds to wait for a writer between its renames, or for its last threads


def address_of(path: str | os.PathLike[str]) -> str:
    """Return a local path with links resolved, or the URL of an object store unchanged."""
    text = os.fspath(path).removeprefix("file://")
    return text if "://" in text else os.path.realpath(os.path.expanduser(text))


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Return what a finished store holds, from the root attributes that are written last."""
    attributes = read_json(Path(path) / "zarr.json").get("attributes")
    if not isinstance(attributes, dict):
        return None
    return RELEASE if FORMAT_ATTR in attributes else attributes.get(KIND_ATTR)


def is_store(path: str) -> bool:
    """Whether a folder is a finished store of this package."""
    return kind_of(path) is not None


def recover(path: str, *, writing: bool = False) -> None:
    """Finish an interrupted replacement of a local store, if there is one."""
    folder = path + SUFFIX
    if not os.path.isdir(folder):
        return
    lock = _lock(folder, create=writing)
    if lock is None:
        if writing:
            raise _busy(path)
        deadline = time.monotonic() + _PATIENCE
        # Between the two renames there is no store at `path` for a moment.
        while not is_store(path) and os.path.isdir(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        return
    try:
        # A folder that is half-written, or was just begun, is left to the next writer.
        finished = _finish(path)
        left = (os.path.join(folder, name) for name in os.listdir(folder))
        if finished or (writing and not any(map(is_store, left))):
            _remove(folder)
    except OSError:
        # A reader may lack permissions. Reading needs only a complete store.
        if writing or not is_store(path):
            raise
    finally:
        os.close(lock)


@contextmanager
def replacing(
    path: str, *, overwrite: bool = True, kind: str = RELEASE, needed: int | None = None
) -> Iterator[str]:
    """Yield a new folder to write to, which replaces a store of that kind if the block succeeds.

    `needed` is the number of bytes, at most, to state if the disk is full.
    """
    folder = path + SUFFIX
    # No name is used twice, so that a thread of a failed write that still runs cannot write to the
    # next store.
    new = os.path.join(folder, f"new-{secrets.token_hex(4)}")
    lock = None
    try:
        try:
            recover(path, writing=True)
            require_replaceable(path, overwrite, kind)
            lock = _lock(folder, create=True)
            if lock is None:
                raise _busy(path)
            os.makedirs(new, exist_ok=True)
        except OSError as error:
            raise write_error(path, error, needed) from error
        try:
            yield new
        except BaseException as error:
            sync(_other_writes_end())
            _remove(folder)
            if is_full(error) or (
                isinstance(error, OSError) and str(error.filename).startswith(folder)
            ):
                raise write_error(path, error, needed) from error
            raise
        try:
            _finish(path)
        except OSError as error:  # the new store stays, and is put in its place later
            raise write_error(path, error) from error
        _remove(folder)
    finally:
        if lock is not None:
            os.close(lock)


def _busy(path: str) -> StoreFormatError:
    return StoreFormatError(
        f"{path} is being written by another process: wait for it, or write elsewhere"
    )


def require_replaceable(path: str, overwrite: bool, kind: str = RELEASE) -> None:
    """Raise if a path holds something else than a store of a kind, or one that must be kept."""
    if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
        return
    if (found := kind_of(path)) != kind:
        what = "a folder that is not a store" if os.path.isdir(path) else "a file"
        raise StoreFormatError(
            f"{path} is {what if found is None else f'a store of {found}'}, expected a store of "
            f"{kind} or a new name: only stores of the same kind are replaced; write elsewhere"
        )
    if not overwrite:
        raise StoreFormatError(
            f"{path} exists, expected a new name: write elsewhere or pass overwrite=True"
        )


def _finish(path: str) -> bool:
    """Continue the renames, which may have been interrupted before each.

    Return whether a store was there to be renamed and is in its place.
    """
    folder = path + SUFFIX
    old = os.path.join(folder, "old")
    stores = [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("new-")]
    new = next(filter(is_store, stores), None)
    if new is not None and not os.path.lexists(old):
        if is_store(path):
            os.rename(path, old)
        elif os.path.lexists(path):
            os.rmdir(path)  # fails, as intended, unless the folder is empty
    put_aside = is_store(old)
    if not os.path.lexists(path) and (new is not None or put_aside):
        os.rename(new or old, path)
    return (new is not None or put_aside) and is_store(path)


def _remove(folder: str) -> None:
    """Remove the folder of a replacement, which its lock guards to the end."""
    deadline = time.monotonic() + _PATIENCE
    while os.path.isdir(folder):
        try:
            for name in set(os.listdir(folder)) - {"lock"}:
                # The root first: if this is interrupted, the rest is not taken for a store.
                with suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(os.path.join(folder, name, "zarr.json"))
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, "lock"))
            os.rmdir(folder)
        except OSError as error:
            # After an error, threads of zarr may still be writing to it.
            if time.monotonic() > deadline:
                logger.warning("%s could not be removed (%s): remove it", folder, error)
                return
            time.sleep(0.01)


async def _other_writes_end() -> None:
    # Where zarr writes several files at once and one fails, the others go on.
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=_PATIENCE)


def _lock(folder: str, create: bool) -> int | None:
    """Lock the folder of a replacement until the file is closed; None if its writer is alive."""
    name = os.path.join(folder, "lock")
    for _ in range(50):  # whoever looks after an interrupted replacement holds the lock briefly
        try:
            if create:
                os.makedirs(folder, exist_ok=True)
            lock = os.open(name, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
        except FileNotFoundError:
            if create:
                continue  # another process removed the folder
            return None
        try:
            # Another process may have removed the file while this one waited for its lock.
            if try_lock(lock) and os.path.samestat(os.fstat(lock), os.stat(name)):
                return lock
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        time.sleep(0.002)
    return None
