"""Where a store is: a local folder, an address behind fsspec, or a store object of zarr.

Whatever is no local folder is read and written through one of two wrappers, which turn the errors
of any cloud package into this package's own, and know what zarr cannot: that a chunk which is not
there has been lost (`CompleteStore`), or that nobody else writes here (`NewStore`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from microns_xr.errors import MicronsXrError, SchemaError, SourceError, StoreFormatError
from microns_xr.source.retry import describe
from microns_xr.store import swap

__all__ = ["CompleteStore", "NewStore", "Path", "Place", "locate"]

Path = str | os.PathLike[str] | Store

_HELP = (
    "check the address and the network; pass the login, or storage_options={'anon': True} for a "
    "public bucket of S3 and {'token': 'anon'} for one of Google"
)


@dataclass(frozen=True)
class Place:
    """Where a store is.

    Attributes
    ----------
    address : str
        An absolute local path without links, or how messages call what lies elsewhere.
    store : zarr.abc.store.Store or None
        None for a local folder.
    """

    address: str
    store: Store | None = None


def locate(
    path: Path, storage_options: Mapping[str, Any] | None = None, *, writing: bool = False
) -> Place:
    """Return where a store is, without asking whether there is one.

    Parameters
    ----------
    path : str, path-like or zarr.abc.store.Store
        A folder; an address with a protocol of fsspec, such as ``s3://bucket/name``,
        ``memory://name`` or, for reading, ``https://host/name``; or a store of zarr, such as
        ``zarr.storage.ObjectStore`` around one of obstore.
    storage_options : mapping, optional
        For an address: what fsspec hands to the protocol's file system, such as ``key``,
        ``secret`` and ``endpoint_url`` for S3.
    writing : bool, optional
        Whether a new store is to be written there.

    Returns
    -------
    Place
        With a `CompleteStore`, or for writing a `NewStore`, for what is no local folder.

    Raises
    ------
    SchemaError
        If `path` is nothing of this kind, or there are options for something that takes none.
    SourceError
        If the protocol is unknown, its package is not installed, or it refuses the options.
    StoreFormatError
        When writing: if `path` can only be read.

    Examples
    --------
    >>> locate("file:///data/a.zarr")
    Place(address='/data/a.zarr', store=None)
    >>> locate("memory://a.zarr")
    Place(address='memory://a.zarr', store=<CompleteStore of memory://a.zarr>)
    """
    if not isinstance(path, str | os.PathLike | Store):
        raise SchemaError(
            f"path is a {type(path).__module__}.{type(path).__name__}, expected a path, an address "
            "or a store of zarr: wrap a store of obstore as zarr.storage.ObjectStore(store)"
        )
    if isinstance(path, LocalStore):
        path = path.root
    address = str(path) if isinstance(path, Store) else swap.address_of(path)
    remote = isinstance(path, Store) or "://" in address
    if storage_options and (isinstance(path, Store) or not remote):
        raise SchemaError(
            f"storage_options are given for {address}, expected them with an address such as "
            "s3://bucket/name only: leave them out"
        )
    if not remote:
        return Place(address)
    store = path if isinstance(path, Store) else _fsspec_store(address, storage_options)
    if not writing:
        reading = store if store.read_only else store.with_read_only(True)
        return Place(address, CompleteStore(reading, address))
    if store.read_only or address.startswith(("http://", "https://")):
        raise StoreFormatError(
            f"{address} can only be read: write to a folder or to a bucket, such as "
            "s3://bucket/name"
        )
    return Place(address, NewStore(store, address))


def _fsspec_store(address: str, storage_options: Mapping[str, Any] | None) -> FsspecStore:
    options = dict(storage_options or {})
    if address.startswith(("s3://", "s3a://")):
        # s3fs asks for the size of each object first, to read large ones in parts: ours are small.
        options = {"max_concurrency": 1} | options
    try:
        store = FsspecStore.from_url(address, storage_options=options)
        store.fs.invalidate_cache()  # file systems are shared, and what they have listed is old
        return store
    except ImportError as error:
        raise SourceError(
            f"{address} needs a package that is not installed ({describe(error)}): "
            "pip install 'microns-xr[cloud]'"
        ) from error
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{address} cannot be opened ({describe(error)}): use a protocol of fsspec, such as "
            "s3://, gs:// or https://, and its own storage_options"
        ) from error


class _Reached(WrapperStore[Store]):
    """A store whose errors are this package's, and say where it happened."""

    def __init__(self, store: Store, address: str) -> None:
        super().__init__(store)
        self.address = address

    def with_read_only(self, read_only: bool = False) -> _Reached:
        return type(self)(self._store.with_read_only(read_only), self.address)

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}>"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with self._named("read", key):
            return await self._store.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        with self._named("written", key):
            await self._store.set(key, value)

    async def is_empty(self, prefix: str) -> bool:
        with self._named("listed", prefix):
            return await self._store.is_empty(prefix)

    @contextmanager
    def _named(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except MicronsXrError:
            raise
        except Exception as error:
            place = f"{self.address.rstrip('/')}/{key}".rstrip("/")
            raise SourceError(f"{place} cannot be {what} ({describe(error)}): {_HELP}") from error


class CompleteStore(_Reached):
    """A finished store: every chunk has been written, and one that is not there is lost.

    Left to itself zarr takes such a chunk for one of zeros. Asking for each chunk as it is read
    needs no listing, which buckets are slow at and web servers cannot do. Of one that was cut
    short blosc may read on behind its end, and give numbers that were never written.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return what is stored, and raise where a chunk is not, or not as a whole."""
        found = await super().get(key, prototype, byte_range)
        if not _is_chunk(key):
            return found
        if found is None:
            raise StoreFormatError(
                f"{self.address} has no chunk {key!r}: the store is damaged, write or copy it again"
            )
        if byte_range is None and len(found) < (expected := _blosc_bytes(found)):
            array = key.rpartition("/c/")[0] or key
            raise StoreFormatError(
                f"{self.address}/{array} cannot be decoded ({key!r} has {len(found)} bytes, "
                f"expected {expected}): the store is damaged, write or copy it again"
            )
        return found


class NewStore(_Reached):
    """A store being written by this process alone: nothing is there but what it has written.

    So zarr's questions, ten for each array and one for each shard, are answered without a request
    (only whether the place is taken is looked up). Each chunk must be written whole, and once.
    """

    def __init__(self, store: Store, address: str) -> None:
        super().__init__(store, address)
        self._metadata = MemoryStore()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return metadata that was written; nothing for a chunk, which is never read back."""
        return await self._metadata.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        await super().set(key, value)
        if not _is_chunk(key):
            await self._metadata.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless this process has."""
        if not await self.exists(key):
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        """Whether metadata was written."""
        return await self._metadata.exists(key)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of the nodes that were written."""
        return self._metadata.list_dir(prefix)


def _blosc_bytes(chunk: Buffer) -> int:
    """Return how many bytes a chunk says it has; 0 for one that blosc has not written.

    The header of 16 bytes begins with the versions of the format and of the codec and ends with
    the length, little-endian (README_CHUNK_FORMAT of c-blosc). Shards begin with their first chunk.
    """
    header = chunk[:16].to_bytes()
    if header[:2] != b"\x02\x01":
        return 0
    return max(16, int.from_bytes(header[12:], "little"))


def _is_chunk(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name != "zarr.json" and not name.startswith(".z")  # the latter are of older zarr
