"""Where a store is: a local folder, an address behind fsspec, or a store object of zarr.

Whatever is no local folder is read and written through one of two wrappers, which turn the errors
of any cloud package into this package's own, and know what zarr cannot: that a chunk which is not
there has been lost (`CompleteStore`), or that nobody else writes here (`NewStore`).
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer.cpu import NDBuffer
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath, WrapperStore

from microns_xr.errors import MicronsXrError, SchemaError, SourceError, StoreFormatError
from microns_xr.sources.net import describe
from microns_xr.store import swap

# The values of the arrays of a store, whole and several at a time.


_READERS = 16  # threads that wait for answers, most of the time
Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(call: Callable[[Item], Result], items: Collection[Item]) -> list[Result]:
    """Call a function on each item in threads: a bucket answers a request in 20 to 100 ms."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(call, items))


def read_values(array: zarr.Array, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """Read a whole array of a store."""
    if isinstance(array.store, LocalStore):
        # An absent chunk reads as zeros; elsewhere `CompleteStore` sees it.
        inner = math.prod(n // c for n, c in zip(array.shards or (), array.chunks, strict=False))
        found = array.nchunks_initialized // inner
        expected = math.prod(
            math.ceil(n / c) for n, c in zip(array.shape, array.shards or array.chunks, strict=True)
        )
        if found != expected:
            raise StoreFormatError(
                f"{array.store_path} has {found} chunks, expected {expected}: the store is "
                "damaged, write or copy it again"
            )
        store = CompleteStore(array.store, str(array.store.root))
        array = zarr.Array(zarr.AsyncArray(array.metadata, StorePath(store, array.path)))
    try:
        if array.dtype.kind in "OUT":
            return _text(array)
        if not array.ndim:
            return np.asarray(array[...])
        values: Any = np.empty(array.shape, dtype=array.dtype if dtype is None else dtype)
        whole = with_span(array, 0, array.shape[0])
        whole.get_basic_selection(Ellipsis, out=NDBuffer(values))
    except StoreFormatError:
        raise
    except (RuntimeError, ValueError, TypeError) as err:
        raise StoreFormatError(
            f"{array.store_path} cannot be decoded ({err}): the store is damaged, write or copy "
            "it again"
        ) from err
    return values


def _text(array: zarr.Array) -> np.ndarray:
    text: Any = array[...]
    if not array.ndim:
        return np.array(text, dtype=object)
    # One object a word and not one a row: 94,000 rows take a tenth of the memory.
    codes, words = pd.factorize(np.asarray(text).astype(object).ravel())
    return np.asarray(words, dtype=object)[codes].reshape(array.shape)


# Reading part of a sharded array with few requests.
#
# zarr reads the chunks inside a shard one after the other, each with its own request: 1,000
# neurons of 3,200 inputs take 2.7 s where a request takes 30 ms. Chunks that follow each other
# lie next to each other, so here the bytes of all of them are fetched at once, and zarr decodes
# those.


_CRC = 4  # bytes of the checksum behind an index
_ABSENT = np.uint64(2**64 - 1)


def read_span(array: zarr.Array, start: int, stop: int) -> np.ndarray:
    """Read the positions from `start` to `stop` along the first dimension."""
    return np.asarray(with_span(array, start, stop)[start:stop])


def with_span(array: zarr.Array, start: int, stop: int) -> zarr.Array:
    """Return an array that is ready to be read from `start` to `stop`; see `read_span`."""
    if array.shards is None or start >= stop:
        return array
    store = sync(_fetch(array, dict(_partial_shards(array, start, stop))))
    return zarr.Array(zarr.AsyncArray(array.metadata, StorePath(store, array.path)))


def _partial_shards(
    array: zarr.Array, start: int, stop: int
) -> list[tuple[str, tuple[int, int, bool]]]:
    """List the shards that zarr would not ask for whole: key, first and last chunk, whether all."""
    assert array.shards is not None
    chunk, shard = array.chunks[0], array.shards[0]
    found = []
    for number in range(start // shard, (stop - 1) // shard + 1):
        offset = number * shard
        first = (max(start, offset) - offset) // chunk
        last = (min(stop, offset + shard) - offset - 1) // chunk
        if (first, last) == (0, shard // chunk - 1):
            continue
        name = array.metadata.encode_chunk_key((number, *(0 for _ in array.shape[1:])))
        end = (min(array.shape[0], offset + shard) - offset - 1) // chunk
        found.append((f"{array.path}/{name}".lstrip("/"), (first, last, (first, last) == (0, end))))
    return found


async def _fetch(array: zarr.Array, spans: dict[str, tuple[int, int, bool]]) -> _Fetched:
    assert array.shards is not None
    n_chunks = array.shards[0] // array.chunks[0]
    # zarr's own limit of requests at a time
    slots = asyncio.Semaphore(zarr.config.get("async.concurrency"))

    async def one(key: str, first: int, last: int, everything: bool) -> _Piece | None:
        async with slots:
            return await _piece(array.store, key, n_chunks, first, last, everything)

    pieces = await asyncio.gather(*(one(key, *span) for key, span in spans.items()))
    known = {key: piece for key, piece in zip(spans, pieces, strict=True) if piece is not None}
    return _Fetched(array.store, known)


@dataclass(frozen=True)
class _Piece:
    """The index of a shard, and the bytes of some of it from `start` on."""

    index: Buffer
    start: int
    content: Buffer


async def _piece(
    store: Store, key: str, n_chunks: int, first: int, last: int, everything: bool
) -> _Piece | None:
    """Fetch a piece; None for what only zarr can tell is damaged, or is not there."""
    prototype = default_buffer_prototype()
    size = 16 * n_chunks + _CRC
    if everything:
        whole = await store.get(key, prototype)
        if whole is None or len(whole) < size:
            return None
        return _Piece(whole[len(whole) - size : len(whole)], 0, whole)
    index = await store.get(key, prototype, SuffixByteRequest(size))
    if index is None or len(index) != size:
        return None
    places = np.frombuffer(index.to_bytes()[:-_CRC], dtype="<u8").reshape(n_chunks, 2)
    wanted = places[first : last + 1]
    if (wanted == _ABSENT).any():
        return None
    start, stop = int(wanted[:, 0].min()), int(wanted.sum(axis=1).max())
    if stop - start != wanted[:, 1].sum():  # others lie between, or this is no index
        return None
    content = await store.get(key, prototype, RangeByteRequest(start, stop))
    return None if content is None else _Piece(index, start, content)


class _Fetched(WrapperStore[Store]):
    """A store of shards, of which some pieces are here already."""

    def __init__(self, store: Store, pieces: dict[str, _Piece]) -> None:
        super().__init__(store)
        self._pieces = pieces

    def __str__(self) -> str:
        return str(self._store)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return what is here, else what the store has, and raise where it has nothing."""
        piece = self._pieces.get(key)
        if piece is not None and isinstance(byte_range, SuffixByteRequest):
            return piece.index
        if piece is not None and isinstance(byte_range, RangeByteRequest):
            return piece.content[byte_range.start - piece.start : byte_range.end - piece.start]
        found = await self._store.get(key, prototype, byte_range)
        if not found:  # zarr takes both for a shard of zeros
            raise StoreFormatError(
                f"{self._store}/{key} is {'missing' if found is None else 'empty'}, expected a "
                "shard: the store is damaged, write or copy it again"
            )
        return found


Address = str | os.PathLike[str] | Store

_HELP = (
    "check the address and the network; pass the login, or storage_options={'anon': True} for a "
    "public bucket of S3 and {'token': 'anon'} for one of Google"
)


@dataclass(frozen=True)
class Place:
    """Where a store is."""

    # an absolute local path without links, or how messages call what lies elsewhere
    address: str
    store: Store | None = None  # none for a local folder


def locate(
    path: Address, storage_options: Mapping[str, Any] | None = None, *, writing: bool = False
) -> Place:
    """Return where a store is, without asking whether there is one."""
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
