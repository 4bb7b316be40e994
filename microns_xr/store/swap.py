"""Replace a local store atomically, and finish an interrupted replacement.

A store ``NAME`` is written as ``NAME.tmp``; then the old one is renamed to ``NAME.old``, the new
one to ``NAME``, and ``NAME.old`` is removed. At every point one complete store is on disk, and
`recover`, which opening and writing call first, continues from there. A folder belongs to a
replacement only if it is empty or holds the file ``.microns_xr_swap``: a ``NAME.old`` of the user
is never removed. The file is locked while the writing process is alive.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from microns_xr.errors import StoreFormatError
from microns_xr.files import try_lock
from microns_xr.store.format import FORMAT_ATTR

MARK = ".microns_xr_swap"
# Root attribute that says what a store holds if it is not a release, which has `FORMAT_ATTR`.
KIND_ATTR = "microns_xr_kind"
RELEASE = "a release"
_PATIENCE = 2.0  # seconds a reader waits for a writer between its two renames


def address_of(path: str | os.PathLike[str]) -> str:
    """Return a local path with links resolved, or the URL of an object store unchanged."""
    text = os.fspath(path).removeprefix("file://")
    return text if "://" in text else os.path.realpath(os.path.expanduser(text))


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Return what a finished store holds, from the root attributes that are written last."""
    try:
        with open(os.path.join(path, "zarr.json"), encoding="utf-8") as file:
            metadata = json.load(file)
    except (OSError, ValueError):
        return None
    attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
    if not isinstance(attributes, dict):
        return None
    return RELEASE if FORMAT_ATTR in attributes else attributes.get(KIND_ATTR)


def is_store(path: str) -> bool:
    """Whether a folder is a finished store of this package."""
    return kind_of(path) is not None


def recover(path: str, *, writing: bool = False) -> None:
    """Finish an interrupted replacement of a local store, if there is one."""
    tmp, old = path + ".tmp", path + ".old"
    if not any(map(os.path.lexists, (tmp, old, os.path.join(path, MARK)))):
        return
    if _is_locked(tmp) or _is_locked(path):
        if writing:
            raise _busy(path)
        deadline = time.monotonic() + _PATIENCE
        # Between the two renames there is no store at `path` for a moment.
        while not is_store(path) and is_store(tmp) and time.monotonic() < deadline:
            time.sleep(0.02)
        return
    if writing:
        for folder in (tmp, old):
            if os.path.lexists(folder) and not _is_ours(folder):
                raise StoreFormatError(
                    f"{folder} was not left by an interrupted write, but {path} needs that name "
                    "while it is written: move it"
                )
        if os.path.lexists(tmp) and not is_store(tmp):
            _remove(tmp)
    try:
        _finish(path)
    except OSError:
        # A reader may lack permissions, or another process was faster. Reading needs only a
        # complete store.
        if writing or not is_store(path):
            raise


@contextmanager
def replacing(path: str, *, overwrite: bool = True, kind: str = RELEASE) -> Iterator[str]:
    """Yield a new folder to write to, which replaces a store of that kind if the block succeeds."""
    recover(path, writing=True)
    require_replaceable(path, overwrite, kind)
    tmp = path + ".tmp"
    try:
        os.makedirs(tmp)
    except FileExistsError as error:  # created after `recover` checked
        raise _busy(path) from error
    _mark(tmp)
    lock = os.open(os.path.join(tmp, MARK), os.O_RDWR)
    try:
        while not try_lock(lock):  # a reader in `_is_locked` may briefly hold it
            time.sleep(0.001)
        try:
            yield tmp
        except BaseException:
            _remove(tmp)
            raise
        _finish(path)
    finally:
        os.close(lock)


def replace_by(
    path: str | os.PathLike[str], write: Callable[[str], Any], kind: str, *, overwrite: bool = True
) -> None:
    """Replace a store other than a release by what a function writes to a new path."""
    with replacing(address_of(path), overwrite=overwrite, kind=kind) as folder:
        # Not directly into the folder: xarray lists it, and zarr warns of the mark.
        content = os.path.join(folder, "content")
        write(content)
        for name in sorted(os.listdir(content), key=lambda name: name == "zarr.json"):
            os.rename(os.path.join(content, name), os.path.join(folder, name))
        os.rmdir(content)


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


def _finish(path: str) -> None:
    """Continue a replacement, which may have been interrupted before any step."""
    tmp, old = path + ".tmp", path + ".old"
    if is_store(path):
        _remove(old)
    if _is_ours(tmp) and is_store(tmp):
        if is_store(path):
            # The mark moves with the old store, which may then be removed under its new name.
            _mark(path)
            os.rename(path, old)
        elif os.path.lexists(path):
            os.rmdir(path)  # fails, as intended, unless the folder is empty
        os.rename(tmp, path)
    elif not os.path.lexists(path) and _is_ours(old) and is_store(old):
        os.rename(old, path)
    if is_store(path):
        _remove(old)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(path, MARK))


def _is_ours(folder: str) -> bool:
    return os.path.isdir(folder) and (
        os.path.exists(os.path.join(folder, MARK)) or not os.listdir(folder)
    )


def _mark(folder: str) -> None:
    with open(os.path.join(folder, MARK), "ab"):
        pass


def _remove(folder: str) -> None:
    """Remove a folder of a replacement, its mark last, so that removal can be continued."""
    if not _is_ours(folder):
        return
    for name in os.listdir(folder):
        entry = os.path.join(folder, name)
        if os.path.isdir(entry) and not os.path.islink(entry):
            shutil.rmtree(entry)
        elif name != MARK:
            os.unlink(entry)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, MARK))
    os.rmdir(folder)


def _is_locked(folder: str) -> bool:
    """Whether the process that writes to a folder is alive."""
    try:
        mark = os.open(os.path.join(folder, MARK), os.O_RDONLY)
    except OSError:
        return False
    try:
        for _ in range(3):  # another reader may briefly hold the lock
            if try_lock(mark):
                return False
            time.sleep(0.002)
        return True
    finally:
        os.close(mark)
