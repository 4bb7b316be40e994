"""Locate a store and read its arrays.

A store is a local folder, an fsspec URL such as ``s3://bucket/name``, or a zarr store object.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer.cpu import NDBuffer
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath, WrapperStore

from microns_xr.errors import (
    MicronsXrError,
    SchemaError,
    SourceError,
    StoreFormatError,
    is_shortage,
)
from microns_xr.network import describe, http_options
from microns_xr.store import swap
from microns_xr.store.format import CHECKSUMS_ATTR, metadata_checksum, root_checksum

Address = str | os.PathLike[str] | Store
Item = TypeVar("Item")
Result = TypeVar("Result")

_READERS = 16  # threads, which mostly wait for responses
_CRC = 4  # bytes of the checksum that follows the index of a shard
_ABSENT = np.uint64(2**64 - 1)


def locate(
    path: Address, storage_options: Mapping[str, Any] | None = None
) -> tuple[str, Store | None]:
    """Return the address of a store and, unless it is a local folder, its zarr store object."""
    if not isinstance(path, str | os.PathLike | Store):
        kind = type(path).__name__
        hint = "wrap an obstore store as zarr.storage.ObjectStore(store)"
        hint = "write it with release.write('NAME.zarr') first" if kind == "Release" else hint
        raise SchemaError(
            f"path is a {type(path).__module__}.{kind}, expected a path, a URL or a zarr store: "
            f"{hint}"
        )
    if isinstance(path, LocalStore):
        path = path.root
    address = str(path) if isinstance(path, Store) else swap.address_of(path)
    remote = not isinstance(path, Store) and "://" in address
    if storage_options and not remote:
        raise SchemaError(
            f"storage_options were passed for {address}, expected them only for a URL such as "
            "s3://bucket/name: leave them out"
        )
    if isinstance(path, Store):
        return address, path
    return address, _fsspec_store(address, storage_options) if remote else None


def _fsspec_store(address: str, storage_options: Mapping[str, Any] | None) -> FsspecStore:
    options = http_options(address, storage_options)
    if address.startswith(("s3://", "s3a://")):
        # s3fs queries object sizes, to read large objects in parts; objects of a store are small.
        options = {"max_concurrency": 1} | options
    try:
        store = FsspecStore.from_url(address, storage_options=options)
        store.fs.invalidate_cache()  # fsspec shares file systems, and cached listings may be stale
        return store
    except ImportError as error:
        raise SourceError(
            f"{address} needs a package that is not installed ({describe(error)}): "
            "pip install 'microns-xr[cloud]'"
        ) from error
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{address} cannot be opened ({describe(error)}): use a protocol of fsspec, such as "
            "s3://, gs:// or https://, with the storage_options of that protocol"
        ) from error


def readable(path: Address, storage_options: Mapping[str, Any] | None = None) -> CompleteStore:
    """Return the store at a path for reading, after finishing an interrupted replacement."""
    address, store = locate(path, storage_options)
    if store is None:
        swap.recover(address)
        store = LocalStore(address, read_only=True)
    return CompleteStore(store if store.read_only else store.with_read_only(True), address)


def writable(
    path: Address, storage_options: Mapping[str, Any] | None = None
) -> tuple[str, NewStore | None]:
    """Return the address of a store to write and, unless it is a local folder, its zarr store."""
    address, store = locate(path, storage_options)
    if store is None:
        return address, None
    if store.read_only or address.startswith(("http://", "https://")):
        raise StoreFormatError(
            f"{address} is read-only: write to a folder or to a bucket, such as s3://bucket/name"
        )
    return address, NewStore(store, address)


@contextmanager
def _naming_errors(store: CompleteStore | NewStore, verb: str, key: str) -> Iterator[None]:
    """Turn any error of a file system or a cloud package into one that names the object."""
    try:
        yield
    except MicronsXrError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        place = f"{store.address.rstrip('/')}/{key}".rstrip("/")
        raise SourceError(
            f"{place} cannot be {verb} ({describe(error)}): check the address, the permissions and "
            "the network; pass credentials, or storage_options={'anon': True} for a public bucket "
            "of S3 and {'token': 'anon'} for one of Google"
        ) from error


@dataclass
class _Root:
    """What was found when the root of a store was first read."""

    content: int | None = None  # checksum
    checksums: dict[str, str] = field(default_factory=dict)  # of all metadata (rule 15)


class CompleteStore(WrapperStore[Store]):
    """A finished store that was not replaced since it was opened, even after pickling."""

    def __init__(
        self, store: Store, address: str, state: Any = None, root: _Root | None = None
    ) -> None:
        super().__init__(store)
        self.address = address
        # A local store is identified by its root metadata, which a replacement rewrites. A URL may
        # mean different buckets on different machines, so each opening gets a new identity.
        self.state = state or self._state_now() or uuid.uuid4().hex
        self._root = root or _Root()
        self._pieces: dict[str, _Piece] = {}  # parts of shards fetched before, see `read_span`

    def _with_store(self, store: Store) -> CompleteStore:
        return CompleteStore(store, self.address, self.state, self._root)

    def __str__(self) -> str:
        return self.address

    def require_unchanged(self, read_root: bool = False) -> None:
        """Raise if the store is no longer the one that was opened.

        Where the root was replaced at a URL, only reading it again shows that.
        """
        if self._state_now() not in (None, self.state):
            raise self._replaced()
        if read_root and self._root.content is not None:
            sync(self.get("zarr.json", default_buffer_prototype()))

    def _replaced(self) -> StoreFormatError:
        return StoreFormatError(
            f"{self.address} has been replaced since it was opened: open it again"
        )

    def _state_now(self) -> tuple[int, ...] | None:
        if not isinstance(self._store, LocalStore):
            return None
        try:
            root = os.stat(self._store.root / "zarr.json")
        except OSError:
            return (0,)
        return root.st_ino, root.st_mtime_ns, root.st_size

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object."""
        # Every chunk was written, so a missing one was lost; zarr would read it as zeros. Checking
        # each chunk as it is read needs no listing, which is slow in buckets and impossible on web
        # servers.
        piece = self._pieces.get(key)
        if piece is not None and isinstance(byte_range, SuffixByteRequest):
            return piece.end
        if piece is not None and isinstance(byte_range, RangeByteRequest):
            return piece.content[byte_range.start - piece.start : byte_range.end - piece.start]
        with _naming_errors(self, "read", key):
            content = await self._store.get(key, prototype, byte_range)
        if not _is_chunk(key):
            self._check_metadata(key, content)
            return content
        if content is None:
            raise StoreFormatError(
                f"{self.address} has no chunk {key!r}: the store is damaged, write or copy it again"
            )
        # Blosc reads beyond the end of a truncated chunk, and returns wrong numbers.
        expected = _blosc_bytes(content) if byte_range is None else 1
        if len(content) < expected:
            array = key.rpartition("/c/")[0] or key
            raise StoreFormatError(
                f"{self.address}/{array} cannot be decoded ({key!r} has {len(content)} bytes, "
                f"expected {expected}): the store is damaged, write or copy it again"
            )
        return content

    def _check_metadata(self, key: str, content: Buffer | None) -> None:
        """Raise if metadata are not those that were written, or those of another root."""
        raw = b"" if content is None else content.to_bytes()
        if key == "zarr.json" and self._root.content not in (None, zlib.crc32(raw)):
            raise self._replaced()
        if content is None:
            return  # a group that was not written or was removed
        try:
            found = self._checksums_of(key.removesuffix("zarr.json").rstrip("/"), json.loads(raw))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self.require_unchanged()
            raise StoreFormatError(
                f"{self.address}/{key} cannot be read ({error}): the store is damaged, write or "
                "copy it again"
            ) from error
        if key == "zarr.json":
            self._root.content = zlib.crc32(raw)
        for path, checksum in found.items():
            expected = self._root.checksums.get(path)
            if self._root.checksums and checksum != expected:
                self.require_unchanged()  # the more likely cause
                raise StoreFormatError(
                    f"{self.address}: the metadata of {path!r} have the checksum {checksum}, "
                    f"expected {expected}: the store is damaged or was changed by another program, "
                    "write or copy it again"
                )

    def _checksums_of(self, path: str, metadata: dict[str, Any]) -> dict[str, str]:
        if path:
            return {path: metadata_checksum(metadata)}
        attributes = metadata.get("attributes", {})
        lines = (line.partition(" ") for line in attributes.get(CHECKSUMS_ATTR, ()))
        self._root.checksums = {name: checksum for checksum, _, name in lines}
        nodes = metadata.get("consolidated_metadata") or {"metadata": {}}
        found = {name: metadata_checksum(node) for name, node in nodes["metadata"].items()}
        return found | {"/": root_checksum(attributes)}


class NewStore(MemoryStore):
    """A new store that only this process writes, each chunk once and complete."""

    # Metadata are also held in memory: zarr looks them up ten times per array and once per shard,
    # and only the first lookup, whether the address is free, has to be a request.
    def __init__(self, target: Store, address: str) -> None:
        super().__init__()
        self._target = target
        self.address = address

    def __str__(self) -> str:
        return self.address

    async def is_empty(self, prefix: str) -> bool:
        """Whether there are no objects with a prefix."""
        with _naming_errors(self, "listed", prefix):
            return await self._target.is_empty(prefix)

    async def set(self, key: str, value: Buffer, *_: Any) -> None:
        """Write an object."""
        with _naming_errors(self, "written", key):
            await self._target.set(key, value)
        if not _is_chunk(key):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless this process has already written it."""
        if not await self.exists(key):
            await self.set(key, value)


class NewFolder(LocalStore):
    """A new local store that only this process writes, as `NewStore`, with the errors of a disk."""

    # Without this, zarr looks up and writes the metadata of all parents once more per array.
    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._metadata = MemoryStore()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return metadata from memory, and chunks from the disk."""
        if _is_chunk(key):
            return await super().get(key, prototype, byte_range)
        prototype = prototype or default_buffer_prototype()
        return await self._metadata.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        await super().set(key, value)
        if not _is_chunk(key):
            await self._metadata.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file unless this process has already written it."""
        if not await self._metadata.exists(key):
            await self.set(key, value)


def _is_chunk(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name != "zarr.json" and not name.startswith(".z")  # `.z*` is metadata of zarr v2


def _blosc_bytes(chunk: Buffer) -> int:
    """Return the length in the blosc header of a chunk; 1 if the chunk is not of blosc."""
    # The header has 16 bytes: two versions come first, the length, little-endian, last
    # (README_CHUNK_FORMAT of c-blosc). A shard begins with its first chunk.
    header = chunk[:16].to_bytes()
    if header[:2] != b"\x02\x01":
        return 1
    return max(16, int.from_bytes(header[12:], "little"))


def map_reads(
    group: zarr.Group, call: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
    """Call a function that reads for each item, in threads unless the store is local."""
    # A bucket responds in 20 to 100 ms, a disk faster than a thread starts.
    if isinstance(getattr(group.store, "_store", None), LocalStore):
        return [call(item) for item in items]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(call, items))


@contextmanager
def decoding(array: zarr.Array) -> Iterator[None]:
    """Raise an error that names the array if it cannot be decoded or its store was replaced."""
    store: Any = array.store
    try:
        yield
    except (StoreFormatError, RuntimeError, ValueError, TypeError, ArithmeticError) as err:
        store.require_unchanged()  # a replaced store is the more likely cause
        if isinstance(err, StoreFormatError) or is_shortage(err):
            raise
        raise StoreFormatError(
            f"{array.store_path} cannot be decoded ({err}): the store is damaged, write or copy "
            "it again"
        ) from err
    store.require_unchanged()


def read_values(array: zarr.Array, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    """Read a whole array of a store."""
    with decoding(array):
        if array.dtype.kind in "OUT":
            return _text(array)
        if not array.ndim:
            return np.asarray(array[...])
        values: Any = np.empty(array.shape, dtype=array.dtype if dtype is None else dtype)
        whole = _with_pieces(array, 0, array.shape[0])
        whole.get_basic_selection(Ellipsis, out=NDBuffer(values))
        return values


def _text(array: zarr.Array) -> np.ndarray:
    text: Any = array[...]
    if not array.ndim:
        return np.array(text, dtype=object)
    # Rows with the same text share one object: 94,000 rows take a tenth of the memory.
    words: dict[Any, Any] = {}
    shared = [words.setdefault(word, word) for word in np.asarray(text).ravel().tolist()]
    return np.array(shared, dtype=object).reshape(array.shape)


def read_span(
    array: zarr.Array,
    start: int,
    stop: int,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Read positions `start` to `stop` along the first dimension, into `out` if it is passed."""
    with decoding(array):
        if out is None:
            out = np.empty((stop - start, *array.shape[1:]), array.dtype)
        if stop > start and _has_plain_chunks(array):
            _read_plain(array, start, out, threads)
        elif stop > start:
            span, target = _with_pieces(array, start, stop), cast(Any, out)
            span.get_basic_selection(slice(start, stop), out=NDBuffer(target))
        return out


# zarr makes a new array of each chunk, copies them on a single thread, and returns numbers of the
# dtype on disk, to be copied again. If chunks are decoded to where they are needed, reading a block
# of 4 million pairs takes 30 % less processor time. Other arrays are read by zarr.


def _has_plain_chunks(array: zarr.Array) -> bool:
    """Whether an array holds numbers along one dimension, in the chunks of rule 7."""
    codecs = list(array.metadata.codecs)  # type: ignore[union-attr]
    return (
        array.ndim == 1
        and array.dtype.kind in "if"
        and [type(codec) for codec in codecs] in _PLAIN
        and getattr(codecs[0].endian, "value", None) == sys.byteorder
    )


_PLAIN: list[Any] = [[BytesCodec, BloscCodec], [BytesCodec, BloscCodec, Crc32cCodec]]


def _read_plain(array: zarr.Array, start: int, out: np.ndarray, threads: int | None) -> None:
    """Decode the chunks of a span into an array, which may have a wider dtype."""
    # It imports numba, which commands that read no pairs do without.
    from microns_xr.threads import equal_spans, run_spans, usable_threads

    checked = len(array.metadata.codecs) == 3  # type: ignore[union-attr]
    chunk, stop = array.chunks[0], start + out.size
    first, last = start // chunk, (stop - 1) // chunk + 1
    keys = [
        f"{array.path}/{array.metadata.encode_chunk_key((number,))}".lstrip("/")
        for number in range(first, last)
    ]
    contents = sync(_get_all(array.store, keys))

    def decode(lo: int, hi: int) -> None:
        for i in range(lo, hi):
            offset = (first + i) * chunk
            lowest, highest = max(start, offset), min(stop, offset + chunk)
            part = out[lowest - start : highest - start]
            whole = part.size == chunk and out.dtype == array.dtype
            values = part if whole else np.empty(chunk, array.dtype)
            _decode(contents[i], values, checked)
            if not whole:
                part[:] = values[lowest - offset : highest - offset]
            contents[i] = None

    n_threads = usable_threads(threads, out.size)
    run_spans(decode, equal_spans(len(keys), len(keys)), n_threads)


async def _get_all(store: Store, keys: list[str]) -> list[Any]:
    slots = asyncio.Semaphore(zarr.config.get("async.concurrency"))

    async def one(key: str) -> np.ndarray:
        async with slots:
            content = await store.get(key, default_buffer_prototype())
        assert content is not None  # `CompleteStore.get` raises for a missing chunk
        return content.as_numpy_array()

    return list(await asyncio.gather(*map(one, keys)))


def _decode(content: np.ndarray, values: np.ndarray, checked: bool) -> None:
    """Decompress a chunk into an array."""
    if checked:
        content, stored = content[:-_CRC], content[-_CRC:].tobytes()
        if google_crc32c.value(content) != int.from_bytes(stored, "little"):
            raise ValueError("the checksum of a chunk does not match its bytes")
    # Blosc believes the lengths in its header: of the numbers, of its blocks, and of itself.
    n_bytes, _, length = np.frombuffer(content[4:16].tobytes().ljust(12, b"\0"), "<u4").tolist()
    if (n_bytes, length) != (values.nbytes, content.size):
        raise ValueError(
            f"a chunk of {content.size} bytes states {length}, and {n_bytes} bytes of numbers, "
            f"expected {values.nbytes}"
        )
    blosc.decompress(content, values)


class _Piece(NamedTuple):
    """The index of a shard, and the bytes of the chunks that are needed."""

    end: Buffer  # the index, stored at the end of the shard
    start: int  # offset of `content` in the shard
    content: Buffer


# zarr reads the chunks inside a shard one after the other, with one request each: 1,000 neurons of
# 3,200 inputs take 2.7 s at 30 ms per request. Neighbouring chunks are adjacent in the shard, so
# their bytes are fetched with one request, and decoded by zarr.


def _with_pieces(array: zarr.Array, start: int, stop: int) -> zarr.Array:
    """Return an array whose chunks from `start` to `stop` are fetched already, if in shards."""
    if array.shards is None or start >= stop:
        return array
    store: Any = array.store
    fetched = store._with_store(store._store)
    fetched._pieces = sync(_fetch(store, array, start, stop))
    return zarr.Array(zarr.AsyncArray(array.metadata, StorePath(fetched, array.path)))


async def _fetch(
    store: CompleteStore, array: zarr.Array, start: int, stop: int
) -> dict[str, _Piece]:
    """Fetch the needed chunks of each shard, unless all of its chunks are needed."""
    assert array.shards is not None
    chunk, shard = array.chunks[0], array.shards[0]
    slots = asyncio.Semaphore(zarr.config.get("async.concurrency"))

    async def one(number: int) -> tuple[str, _Piece | None]:
        offset = number * shard
        first = (max(start, offset) - offset) // chunk
        last = (min(stop, offset + shard) - offset - 1) // chunk
        end = (min(array.shape[0], offset + shard) - offset - 1) // chunk
        name = array.metadata.encode_chunk_key((number, *(0 for _ in array.shape[1:])))
        key = f"{array.path}/{name}".lstrip("/")
        if (first, last) == (0, shard // chunk - 1):
            return key, None
        async with slots:
            # The last shard holds fewer chunks. If all are needed, read it in one request without
            # a range, as zarr reads complete shards: some web servers do not support ranges.
            if (first, last) == (0, end):
                return key, await _whole_shard(store, key, shard // chunk)
            return key, await _part_of_shard(store, key, shard // chunk, first, last)

    numbers = range(start // shard, (stop - 1) // shard + 1)
    pieces = await asyncio.gather(*map(one, numbers))
    return {key: piece for key, piece in pieces if piece is not None}


async def _whole_shard(store: CompleteStore, key: str, n_chunks: int) -> _Piece | None:
    content = await store.get(key, default_buffer_prototype())
    assert content is not None  # `get` raises for a missing chunk
    index = len(content) - 16 * n_chunks - _CRC
    return None if index < 0 else _Piece(content[index : len(content)], 0, content)


async def _part_of_shard(
    store: CompleteStore, key: str, n_chunks: int, first: int, last: int
) -> _Piece | None:
    """Fetch neighbouring chunks at once; return None if zarr has to read them one by one."""
    prototype = default_buffer_prototype()
    size = 16 * n_chunks + _CRC
    index = await store.get(key, prototype, SuffixByteRequest(size))
    if index is None or len(index) != size:
        return None
    places = np.frombuffer(index.to_bytes()[:-_CRC], dtype="<u8").reshape(n_chunks, 2)
    spans = places[first : last + 1]
    # Other writers may omit chunks, or store them in another order.
    if (spans == _ABSENT).any():
        return None
    start, stop = int(spans[:, 0].min()), int(spans.sum(axis=1).max())
    if stop - start != spans[:, 1].sum():
        return None
    content = await store.get(key, prototype, RangeByteRequest(start, stop))
    return None if content is None else _Piece(index, start, content)
