"""The open HDF5 file behind lazy arrays: one handle a process, opened when it is needed.

Arrays hold a `RecordingsFile`, never an open handle, so that they travel to threads and processes.
HDF5 itself reads under one lock: threads are safe, and gain nothing while they read.

A file behind an address is read by a thread of fsspec, for which the reader waits with that lock.
Were rubbish collected in that thread just then, closing an HDF5 file among it would wait for the
lock, and both for ever. So nothing is collected meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xarray.backends import CachingFileManager

from microns_xr.errors import SourceError

__all__ = ["RecordingsFile", "import_h5py"]

# What is read at a time of a file behind an address; objects of one trial lie close together.
_REMOTE_BLOCK_BYTES = 256 << 10
_SIEVE_BYTES = 4096


def import_h5py() -> Any:
    """Return h5py, or say how to get it.

    Raises
    ------
    SourceError
        If it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise SourceError(
            "recordings are HDF5 files, and h5py is not installed: "
            "pip install 'microns-xr[recordings]'"
        ) from error
    return h5py


def _open_h5(
    address: Any, mode: str = "r", storage_options: Mapping[str, Any] | None = None
) -> Any:
    h5py = import_h5py()
    if isinstance(address, str) and "://" in address:
        import fsspec

        # Metadata is scattered over the file: reading ahead would fetch most of it.
        address = fsspec.open(
            address,
            "rb",
            block_size=_REMOTE_BLOCK_BYTES,
            cache_type="blockcache",
            **(storage_options or {}),
        ).open()
    if isinstance(address, str):
        # HDF5 rounds every small read up to this; its default of 64 KB is a hundred rows.
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_sieve_buf_size(_SIEVE_BYTES)
        return h5py.File(h5py.h5f.open(os.fsencode(address), h5py.h5f.ACC_RDONLY, access))
    return h5py.File(address, mode)


class _Collector:
    """The garbage collector, off while somebody reads through another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._was_on = True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if self._readers == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0 and self._was_on:
                    gc.enable()


_collector = _Collector()


class RecordingsFile:
    """An HDF5 file that is opened when it is read, and closed when nothing refers to it.

    Parameters
    ----------
    address : str, Path or binary file
        A path, an address of fsspec (``https://...``), or an open binary file.
    storage_options : mapping, optional
        What fsspec hands to the protocol's file system.
    """

    def __init__(self, address: Any, storage_options: Mapping[str, Any] | None = None) -> None:
        if isinstance(address, str) and "://" not in address:
            address = Path(address)
        if isinstance(address, Path):
            address = address.expanduser().absolute()
            if not address.exists():
                raise SourceError(
                    f"there is no file {address}: check the path, or fetch it with "
                    "mx.download_recordings"
                )
            address = str(address)
        if not isinstance(address, str) and not hasattr(address, "read"):
            raise SourceError(
                f"recordings are opened from a path, an address or a binary file, not {address!r}"
            )
        self.name = address if isinstance(address, str) else f"<{type(address).__name__}>"
        self._is_local = isinstance(address, str) and "://" not in address
        opener = partial(_open_h5, storage_options=storage_options) if storage_options else _open_h5
        self._manager = CachingFileManager(opener, address, mode="r")

    def __repr__(self) -> str:
        return f"RecordingsFile({self.name!r})"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """Yield the open file.

        Raises
        ------
        SourceError
            If it cannot be opened: not there, no HDF5, cut short.
        """
        import_h5py()
        with contextlib.nullcontext() if self._is_local else _collector.off():
            try:
                h5 = self._manager.acquire()
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"{self.name} cannot be opened as HDF5 ({error}): it is another file, damaged "
                    "or cut short; fetch it again with mx.download_recordings, which continues "
                    "where it ended"
                ) from error
            yield h5

    def close(self) -> None:
        """Close the file; it opens again when it is read."""
        self._manager.close()
