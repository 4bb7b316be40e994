"""Folders that cannot be written, for root too, as on a file system mounted read-only."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_folders: set[str] = set()
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events of Python that change the folder of one of their first arguments.
_CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.truncate": 1}


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _folders:
        return
    if event == "open":
        paths = arguments[:1] if isinstance(arguments[2], int) and arguments[2] & _WRITE else ()
    else:
        paths = arguments[: _CHANGES.get(event, 0)]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            name = os.path.abspath(os.fsdecode(path))
            if any(name.startswith(folder + os.sep) for folder in _folders):
                if event == "os.mkdir" and os.path.exists(name):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)


sys.addaudithook(_refuse)  # hooks stay until the interpreter ends; this one is idle without folders


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Refuse every change in a folder by Python code of this process."""
    _folders.add(os.path.abspath(folder))
    try:
        yield
    finally:
        _folders.discard(os.path.abspath(folder))
