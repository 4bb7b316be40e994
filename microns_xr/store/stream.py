"""Writing arrays piece by piece, when neither their length nor their values are known before.

`CopyWriter` takes the pairs of one neuron after the other and writes one copy of the connectivity;
`microns_xr.store.spill` brings the pairs into the order of the other copy. Neither holds more than
a few chunks of an array.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import sparse
import xarray as xr
import zarr

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    Pattern,
    make_pattern,
    pair_buffers,
)
from microns_xr.connectivity.sort import transpose
from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS
from microns_xr.store.format import (
    CHUNK,
    COORDS_ATTR,
    MATRIX_ATTRS,
    MATRIX_ENCODING,
    MATRIX_VERSION,
    OTHER,
    VARIABLES_ATTR,
    check_name,
    compressor,
    expanded_index,
    grid_of,
    json_attrs,
    matrix_arrays,
    matrix_group,
    pattern_problems,
    reserved_attrs,
)

# What will be written: every array of a store, checked, before the first byte is.
#
# Values stay where they are; a planned array knows how to give a block of its own, in the dtype
# of the disk, so that casts and expanded indices never exist as a whole.


Block = Callable[[int, int], np.ndarray]
_SPARSE = ("synapse_size", "synapse_count")
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class PlannedArray:
    """One array of the store."""

    name: str  # name in its group
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str  # dtype on disk; ``"string"`` for text
    attrs: dict[str, Any]
    # gives the positions from start to stop along the first dimension
    read: Block
    # positions along the first dimension in a chunk, a divisor of ``CHUNK``, which is the
    # default
    chunk: int | None = None

    @property
    def itemsize(self) -> int:
        """Bytes an element; 1 for text, which is a stream of bytes."""
        return 1 if self.dtype == "string" else np.dtype(self.dtype).itemsize

    @property
    def fill_value(self) -> Any:
        """What an absent chunk would read as; none is ever absent."""
        return "" if self.dtype == "string" else np.dtype(self.dtype).type(0)


@dataclass(frozen=True)
class PlannedGroup:
    """One group of the store: its path, attributes and arrays in order."""

    path: str
    attrs: dict[str, Any]
    arrays: list[PlannedArray]


@dataclass(frozen=True)
class Pairs:
    """The stored pairs of a connectivity Dataset, and the dtypes they have on disk."""

    pattern: Pattern
    size: np.ndarray
    count: np.ndarray
    dtypes: tuple[str, str]


def plan_dataset(path: str, dataset: xr.Dataset) -> PlannedGroup:
    """Plan a group of dense variables."""
    arrays = _dense(dataset, dataset.variables, path)
    return PlannedGroup(path, _group_attrs(dataset, path, arrays), arrays)


def plan_parent(connectivity: xr.Dataset) -> PlannedGroup:
    """Plan the group that holds the two copies of a connectivity Dataset."""
    return PlannedGroup("connectivity", json_attrs(_release(connectivity), "connectivity"), [])


def pairs_of(connectivity: xr.Dataset) -> Pairs:
    """Take the pairs out of a connectivity Dataset and check them."""
    pattern, values = pair_buffers(connectivity, _SPARSE)
    problems = pattern_problems(pattern.indices, pattern.indptr, pattern.shape, pattern.compressed)
    if problems:
        raise SchemaError(
            f"connectivity cannot be written: {'; '.join(problems)}; "
            "build it with mx.build_connectivity"
        )
    size, count = (values[name] for name in _SPARSE)
    return Pairs(pattern, size, count, (_narrowest(size), _narrowest(count)))


def transposed(pairs: Pairs) -> Pairs:
    """Return the same pairs compressed over the other axis, values in the dtypes of the disk."""
    pattern = pairs.pattern
    indices, indptr, size, count = transpose(
        pattern.indices, pattern.indptr, pattern.n_minor, pairs.size, pairs.count, pairs.dtypes
    )
    flipped = make_pattern(indices, indptr, pattern.shape, OTHER[pattern.compressed])
    return Pairs(flipped, size, count, pairs.dtypes)


def plan_matrix(connectivity: xr.Dataset, pairs: Pairs) -> PlannedGroup:
    """Plan the copy of a connectivity Dataset that is compressed as `pairs` are."""
    pattern, major = pairs.pattern, pairs.pattern.compressed
    path = matrix_group(major)
    extra = [name for name in connectivity.variables if name not in (*_SPARSE, *PAIR_DIMS)]
    for name in extra:
        if set(PAIR_DIMS) <= set(connectivity[name].dims):
            raise SchemaError(
                f"{name!r} of connectivity spans both axes, expected only synapse_size and "
                "synapse_count to: take it out with .drop_vars before writing"
            )
        if any(name in matrix_arrays(axis) for axis in OTHER):
            raise SchemaError(
                f"{name!r} of connectivity is the name of an array of the format: rename it with "
                ".rename before writing"
            )
    size_attrs, count_attrs = (
        json_attrs(connectivity[name].attrs, f"{name} of connectivity") for name in _SPARSE
    )
    size_dtype, count_dtype = pairs.dtypes
    starts = {"long_name": f"first connection of each {major}synaptic neuron, and their end"}
    buffers: list[tuple[str, str, dict[str, Any], int, Block]] = [
        ("data", size_dtype, size_attrs, pattern.nnz, _cast(pairs.size, size_dtype)),
        ("indices", "int32", _position(OTHER[major]), pattern.nnz, _cast(pattern.indices, "int32")),
        ("indptr", "int64", starts, pattern.indptr.size, _cast(pattern.indptr, "int64")),
        ("synapse_count", count_dtype, count_attrs, pattern.nnz, _cast(pairs.count, count_dtype)),
        (
            f"{major}_index",
            "int32",
            _position(major),
            pattern.nnz,
            lambda start, stop: expanded_index(pattern.indptr, start, stop),
        ),
    ]
    dims = {name: dims for name, (_, dims) in matrix_arrays(major).items()}
    arrays = [
        PlannedArray(name, dims[name], (length,), dtype, attrs, read)
        for name, dtype, attrs, length, read in buffers
    ]
    arrays += _dense(connectivity, [*PAIR_DIMS, *extra], "connectivity")
    encoding = (MATRIX_ENCODING[major], MATRIX_VERSION, list(pattern.shape))
    attrs = _group_attrs(connectivity, path, arrays)
    return PlannedGroup(path, attrs | dict(zip(MATRIX_ATTRS, encoding, strict=True)), arrays)


def _dense(dataset: xr.Dataset, names: Iterable[Hashable], where: str) -> list[PlannedArray]:
    return [_dense_array(check_name(name, where), dataset.variables[name], where) for name in names]


def _dense_array(name: str, variable: xr.Variable, where: str) -> PlannedArray:
    label = f"{name} of {where}"
    if isinstance(variable, xr.IndexVariable) and isinstance(variable.to_index(), pd.MultiIndex):
        raise SchemaError(f"{label} is a MultiIndex: use .reset_index({name!r}) before writing")
    data = variable.values if isinstance(variable, xr.IndexVariable) else variable.compute().data
    if isinstance(data, sparse.SparseArray):
        raise SchemaError(
            f"{label} is sparse, expected a dense array: take it out with .drop_vars before writing"
        )
    values = np.asarray(data)
    dtype = values.dtype.name
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        dtype = "string"
        found = pd.api.types.infer_dtype(values.ravel(), skipna=False)
        if found not in ("string", "empty"):
            raise SchemaError(
                f"{label} holds {found} objects, expected text in every place: use words such as "
                "'none' or 'unknown' where there is no value, and plain dtypes for numbers"
            )
    elif values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise SchemaError(
            f"{label} has dtype {values.dtype}, expected integers, floats, booleans or text: "
            "convert it before writing"
        )
    dims = tuple(check_name(dim, where) for dim in variable.dims)
    attrs = json_attrs(variable.attrs, label)
    return PlannedArray(name, dims, values.shape, dtype, attrs, _rows(values))


def _group_attrs(dataset: xr.Dataset, path: str, arrays: list[PlannedArray]) -> dict[str, Any]:
    release = _release(dataset)
    given = dict(dataset.attrs)
    given.pop(VARIABLES_ATTR, None)  # left by a plain reader, and made anew
    for name in reserved_attrs(path):
        # So are copies of the release; any other value would be lost on the way.
        if name in given and given.pop(name) != release.get(name):
            raise SchemaError(
                f"attribute {name!r} of {path} is reserved by the format: rename it before writing"
            )
    names = [array.name for array in arrays]
    return {
        **json_attrs(given, path),
        **json_attrs(release, path),
        COORDS_ATTR: " ".join(name for name in names if name in dataset.coords),
        VARIABLES_ATTR: names,
    }


def _release(dataset: xr.Dataset) -> dict[str, Any]:
    coords = dataset.coords
    return {name: coords[name].item() for name in RELEASE_COORDS if name in coords}


def _position(axis: Compressed) -> dict[str, Any]:
    return {"long_name": f"position of the {axis}synaptic neuron in {axis}_nucleus_id"}


def _rows(values: np.ndarray) -> Block:
    return lambda start, stop: values[start:stop] if values.ndim else values


def _cast(values: np.ndarray, dtype: str) -> Block:
    return lambda start, stop: values[start:stop].astype(dtype, copy=False)


def _narrowest(values: np.ndarray) -> str:
    if values.size and not _INT32.min <= values.min() <= values.max() <= _INT32.max:
        return "int64"
    return "int32"


_THREADS = max(2, min(8, os.cpu_count() or 1))
_INT32_MAX = np.iinfo(np.int32).max


def create_array(node: zarr.Group, array: PlannedArray, shards: int | None = None) -> zarr.Array:
    """Create an array of a store, empty, as the format asks."""
    chunks, shape_of_shards = grid_of(array.shape, array.dims, array.chunk or CHUNK, shards)
    return node.create_array(
        array.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=shape_of_shards,
        filters=None,
        compressors=[compressor(array.itemsize)],
        fill_value=array.fill_value,
        attributes=array.attrs,
        dimension_names=array.dims,
        config={"write_empty_chunks": True},
    )


class ChunkPool(AbstractContextManager["ChunkPool"]):
    """A few threads that write chunks, and a bound on how many chunks wait for them.

    Leaving the block waits for what is under way; when it is left by an exception, what has not
    begun is given up.
    """

    def __init__(self, threads: int = _THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="chunks")
        self._waiting: deque[Future[None]] = deque()
        self._most = 2 * threads

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run ``work(*arguments)``, now or later; raises what an earlier one has raised."""
        while len(self._waiting) >= self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work, *arguments))

    def wait(self) -> None:
        """Return when everything is done; raises what one of them has raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(cancel_futures=True)


class ArrayWriter:
    """One array of a store, appended to along its first dimension."""

    def __init__(self, node: zarr.Group, planned: PlannedArray, pool: ChunkPool) -> None:
        self._node, self._planned, self._pool = node, planned, pool
        self._chunk = planned.chunk or CHUNK
        self._pieces: list[np.ndarray] = []
        self._held = self._written = 0
        self._array: zarr.Array | None = None

    @property
    def dtype(self) -> str:
        """Dtype on disk, as far as is known now."""
        return self._planned.dtype

    def append(self, values: np.ndarray) -> None:
        """Add the next positions; the values are kept for a while and must not be changed."""
        if not len(values):
            return
        if self.dtype == "int32" and values.dtype != np.int32:
            low, high = int(values.min()), int(values.max())
            if low < -_INT32_MAX - 1 or high > _INT32_MAX:
                self._widen()
        self._pieces.append(values.astype(self.dtype, copy=False))
        self._held += len(values)
        if self._held >= self._chunk:
            self._write_chunks()

    def finish(self, attrs: dict[str, Any] | None = None) -> None:
        """Write what is left and, if given, set the attributes; nothing follows this."""
        length = self._written + self._held
        planned = replace(self._planned, shape=(length, *self._planned.shape[1:]))
        if self._array is None:
            self._array = create_array(self._node, planned)
        else:
            self._array.resize(planned.shape)
        if self._held:
            self._pool.submit(_write_slice, self._array, self._written, self._joined())
        if attrs is not None:
            self._array.update_attributes(attrs)

    def _joined(self) -> np.ndarray:
        return self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces)

    def _write_chunks(self) -> None:
        chunk, values = self._chunk, self._joined()
        whole = len(values) - len(values) % chunk
        self._grow(self._written + whole)
        assert self._array is not None
        for start in range(0, whole, chunk):
            piece = values[start : start + chunk]
            self._pool.submit(_write_slice, self._array, self._written + start, piece)
        self._written += whole
        self._held -= whole
        # A copy, so that the rest does not keep all of it in memory.
        self._pieces = [values[whole:].copy()] if self._held else []

    def _grow(self, length: int) -> None:
        """Make the array long enough; twice as long, for each step rewrites the metadata."""
        rest = self._planned.shape[1:]
        if self._array is None:
            self._array = create_array(self._node, replace(self._planned, shape=(length, *rest)))
        elif self._array.shape[0] < length:
            self._array.resize((max(length, 2 * self._array.shape[0]), *rest))

    def _widen(self) -> None:
        """Begin again in int64 and copy what is written, chunk by chunk."""
        narrow, name, chunk = self._planned, self._planned.name, self._chunk
        self._planned = replace(narrow, dtype="int64")
        self._pieces = [piece.astype(np.int64) for piece in self._pieces]
        if self._array is None:
            return
        self._pool.wait()
        shape = (self._written, *narrow.shape[1:])
        source = self._array
        aside = create_array(self._node, replace(narrow, name=f"{name}.int32", shape=shape))
        for copy_to in (aside, None):
            if copy_to is None:
                del self._node[name]
                source = aside
                self._array = copy_to = create_array(
                    self._node, replace(self._planned, shape=shape)
                )
            for start in range(0, self._written, chunk):
                copy_to[start : start + chunk] = source[start : start + chunk]
        del self._node[aside.basename]


def _write_slice(array: zarr.Array, start: int, values: np.ndarray) -> None:
    array[start : start + len(values)] = values


class CopyWriter:
    """One copy of the connectivity, written neuron by neuron.

    Holds at most one chunk of each of the four arrays, beside what waits in `pool`.
    """

    def __init__(
        self, root: zarr.Group, compressed: Compressed, shape: tuple[int, int], pool: ChunkPool
    ) -> None:
        self.compressed, self.shape, self._pool = compressed, shape, pool
        self._node = root.require_group(matrix_group(compressed))
        self._n_major = shape[1] if compressed == "post" else shape[0]
        self._index = f"{compressed}_index"
        specs = matrix_arrays(compressed)
        self._arrays = {
            name: ArrayWriter(
                self._node,
                PlannedArray(name, specs[name][1], (0,), "int32", {}, _nothing),
                pool,
            )
            for name in ("data", "indices", "synapse_count", self._index)
        }
        self._lengths: list[np.ndarray] = []
        self.n_done = 0
        self.n_connections = 0

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of size and count on disk, as far as is known now."""
        return self._arrays["data"].dtype, self._arrays["synapse_count"].dtype

    def append(
        self, lengths: np.ndarray, indices: np.ndarray, size: np.ndarray, count: np.ndarray
    ) -> None:
        """Add the pairs of the next neurons."""
        n = len(lengths)
        indptr = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        n_minor = self.shape[0] if self.compressed == "post" else self.shape[1]
        local = (n_minor, n) if self.compressed == "post" else (n, n_minor)
        problems = pattern_problems(indices, indptr, local, self.compressed)
        if self.n_done + n > self._n_major:
            problems.append(f"{self.n_done + n} neurons, expected {self._n_major}")
        if problems or not len(indices) == len(size) == len(count):
            raise SchemaError(
                f"pairs of the {self.compressed}synaptic neurons from number {self.n_done} on "
                f"cannot be written: {'; '.join(problems) or 'arrays differ in length'}"
            )
        majors = np.arange(self.n_done, self.n_done + n, dtype=np.int32)
        pieces = (size, indices, count, np.repeat(majors, lengths))
        for array, values in zip(self._arrays.values(), pieces, strict=True):
            array.append(values)
        self._lengths.append(np.asarray(lengths, dtype=np.int64))
        self.n_done += n
        self.n_connections += len(indices)

    def finish(self, template: xr.Dataset) -> None:
        """Write what is left, the labels, further coordinates and the attributes."""
        pairs = pairs_of(template)
        if pairs.pattern.compressed != self.compressed:
            pairs = transposed(pairs)
        if self.n_done != self._n_major or pairs.pattern.shape != self.shape or pairs.pattern.nnz:
            raise SchemaError(
                f"{self.n_done} of {self._n_major} neurons were written and the template has the "
                f"shape {pairs.pattern.shape} and {pairs.pattern.nnz} pairs, expected all neurons, "
                f"{self.shape} and no pair"
            )
        indptr = np.concatenate([[0], np.cumsum(np.concatenate([[], *self._lengths]))])
        indptr = indptr.astype(np.int64)
        planned = plan_matrix(template, pairs)
        self._node.update_attributes(planned.attrs)
        for array in planned.arrays:
            if array.name in self._arrays:
                self._arrays[array.name].finish(array.attrs)
                continue
            if array.name == "indptr":
                array = replace(array, read=lambda start, stop: indptr[start:stop])
            self._pool.submit(write_array, self._node, array)


def write_array(node: zarr.Group, array: PlannedArray) -> None:
    """Write an array that is small enough to be read at once."""
    target = create_array(node, array)
    if 0 not in array.shape:
        target[...] = array.read(0, array.shape[0] if array.shape else 1)


def _nothing(start: int, stop: int) -> np.ndarray:
    raise AssertionError("an array that is appended to is not read")
