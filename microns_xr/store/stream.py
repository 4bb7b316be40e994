"""Write groups of a store: a group is planned first, then values are appended to its arrays.

Planning checks everything before the first byte is written. An array in memory is appended in one
piece. Rows and pairs that do not fit in memory are appended in blocks, of which only a few chunks
per array are held. Their number and dtypes are known before the first one is appended.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sparse
import xarray as xr
import zarr

from microns_xr.connectivity.arrays import PAIR_DIMS, Compressed, pair_names
from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS
from microns_xr.store.format import (
    COORDS_ATTR,
    DATA_ATTR,
    INDEX_NAMES,
    MATRIX_GROUP,
    OTHER,
    VARIABLES_ATTR,
    check_name,
    chunk_of,
    compressors,
    grid_of,
    json_attrs,
    matrix_arrays,
    matrix_attrs,
    pattern_problem,
    reserved_attrs,
)

_INT32 = np.iinfo(np.int32)
_THREADS = max(2, min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class PlannedArray:
    """One array of the store."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str  # on disk; "string" for text
    attrs: dict[str, Any]
    values: np.ndarray | None = None  # None if they are appended later


@dataclass(frozen=True)
class PlannedGroup:
    """One group of the store: its path, attributes and arrays in order."""

    path: str
    attrs: dict[str, Any]
    arrays: list[PlannedArray]


def plan_dataset(path: str, dataset: xr.Dataset, appended: str | None = None) -> PlannedGroup:
    """Plan a group of dense variables; values over the dimension `appended` are added later."""
    arrays = _dense(dataset, dataset.variables, path)
    arrays = [replace(a, values=None) if a.dims[:1] == (appended,) else a for a in arrays]
    return PlannedGroup(path, _group_attrs(dataset, path, arrays), arrays)


def plan_parent(connectivity: xr.Dataset) -> PlannedGroup:
    """Plan the group that holds the two copies of a connectivity Dataset."""
    return PlannedGroup("connectivity", json_attrs(_release(connectivity), "connectivity"), [])


def plan_copy(connectivity: xr.Dataset, compressed: Compressed) -> PlannedGroup:
    """Plan one copy of a connectivity Dataset, whose pairs `write_copy` counts and appends."""
    weights = arrays_of(connectivity)
    extra = [n for n in connectivity.variables if n not in (*weights, *PAIR_DIMS)]
    for name in (*extra, *weights):
        if name in extra and set(PAIR_DIMS) <= set(connectivity[name].dims):
            raise SchemaError(
                f"{name!r} of connectivity has dims {connectivity[name].dims}, expected only "
                "weights to span both axes: remove it with .drop_vars before writing"
            )
        if any(name in matrix_arrays(axis) for axis in OTHER):
            raise SchemaError(
                f"{name!r} of connectivity is the name of an array of the format: rename it with "
                ".rename before writing"
            )
    attrs = {
        "indices": _position_attrs(OTHER[compressed]),
        "indptr": {
            "long_name": f"first connection of each {compressed}synaptic neuron, and their end"
        },
        INDEX_NAMES[compressed]: _position_attrs(compressed),
    }
    path = MATRIX_GROUP[compressed]
    specs = matrix_arrays(compressed)
    arrays = [
        PlannedArray(name, specs[name][1], (0,), specs[name][0].split()[0], text)
        for name, text in attrs.items()
    ]
    for name, key in weights.items():
        dtype = "float64" if connectivity[name].dtype.kind == "f" else "int32"
        text = json_attrs(connectivity[name].attrs, f"{name} of connectivity")
        arrays.append(PlannedArray(check_name(key, path), ("connection",), (0,), dtype, text))
    arrays += _dense(connectivity, [*PAIR_DIMS, *extra], "connectivity")
    group_attrs = _group_attrs(connectivity, path, arrays)
    if "synapse_size" not in weights:
        group_attrs[DATA_ATTR] = next(iter(weights))
    n_pre, n_post = (connectivity.sizes[dim] for dim in PAIR_DIMS)
    return PlannedGroup(path, group_attrs | matrix_attrs(compressed, (n_pre, n_post)), arrays)


def arrays_of(connectivity: xr.Dataset) -> dict[str, str]:
    """Return the array of each weight: ``data`` for `synapse_size`, or else for the first."""
    names = sorted(pair_names(connectivity), key=lambda name: name != "synapse_size")
    return {name: name if i else "data" for i, name in enumerate(names)}


def _position_attrs(axis: Compressed) -> dict[str, Any]:
    return {"long_name": f"position of the {axis}synaptic neuron in {axis}_nucleus_id"}


def _dense(dataset: xr.Dataset, names: Iterable[Hashable], where: str) -> list[PlannedArray]:
    return [_dense_array(check_name(name, where), dataset.variables[name], where) for name in names]


def _dense_array(name: str, variable: xr.Variable, where: str) -> PlannedArray:
    label = f"{name} of {where}"
    if isinstance(variable, xr.IndexVariable) and isinstance(variable.to_index(), pd.MultiIndex):
        raise SchemaError(f"{label} is a MultiIndex: use .reset_index({name!r}) before writing")
    # `.values` of a sparse array would raise an error that does not name the variable.
    data = variable.values if isinstance(variable, xr.IndexVariable) else variable.compute().data
    if isinstance(data, sparse.SparseArray):
        raise SchemaError(
            f"{label} is sparse, expected a dense array: remove it with .drop_vars before writing"
        )
    values = np.asarray(data)
    dtype = values.dtype.name
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        dtype = "string"
        kind = pd.api.types.infer_dtype(values.ravel(), skipna=False)
        if kind not in ("string", "empty"):
            raise SchemaError(
                f"{label} holds {kind} objects, expected only text: use words such as 'none' or "
                "'unknown' for missing values, and plain dtypes for numbers"
            )
    elif values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise SchemaError(
            f"{label} has dtype {values.dtype}, expected integers, floats, booleans or text: "
            "convert it before writing"
        )
    dims = tuple(check_name(dim, where) for dim in variable.dims)
    attrs = json_attrs(variable.attrs, label)
    return PlannedArray(name, dims, values.shape, dtype, attrs, values)


def _group_attrs(dataset: xr.Dataset, path: str, arrays: list[PlannedArray]) -> dict[str, Any]:
    release = _release(dataset)
    attrs = dict(dataset.attrs)
    # Readers such as xr.open_zarr return attributes of the format among those of the data. The list
    # of variables is rebuilt, and an equal copy of the release is dropped; other values would be
    # lost.
    attrs.pop(VARIABLES_ATTR, None)
    for name in reserved_attrs(path):
        if name in attrs and attrs.pop(name) != release.get(name):
            raise SchemaError(
                f"attribute {name!r} of {path} is reserved by the format: rename it before writing"
            )
    names = [array.name for array in arrays]
    return {
        **json_attrs(attrs, path),
        **json_attrs(release, path),
        COORDS_ATTR: " ".join(name for name in names if name in dataset.coords),
        VARIABLES_ATTR: names,
    }


def _release(dataset: xr.Dataset) -> dict[str, Any]:
    coords = dataset.coords
    return {name: coords[name].item() for name in RELEASE_COORDS if name in coords}


def narrowest(values: np.ndarray) -> str:
    """Return the dtype on disk of weights, the narrowest that holds all integers (rule 8)."""
    if values.dtype.kind == "f":
        return "float64"
    fits = not values.size or _INT32.min <= values.min() <= values.max() <= _INT32.max
    return "int32" if fits else "int64"


class ChunkPool(AbstractContextManager["ChunkPool"]):
    """Threads that write chunks, with a limit on the number of waiting chunks."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="chunks")
        self._waiting: deque[Future[None]] = deque()
        self._most = 2 * threads  # those being written, and as many waiting

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call ``work(*arguments)`` in a thread; may raise the error of an earlier call."""
        while len(self._waiting) >= self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(work, *arguments))

    def wait(self) -> None:
        """Wait until everything is written; raises the first error."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            # After an error, work that has not started is cancelled.
            self._pool.shutdown(cancel_futures=True)


class ArrayWriter:
    """One array of a store, appended to along its first dimension."""

    def __init__(
        self,
        node: zarr.Group,
        plan: PlannedArray,
        pool: ChunkPool,
        shards: bool = False,
    ) -> None:
        self._node, self._plan, self._pool, self._shards = node, plan, pool, shards
        _, shard = grid_of(plan.shape, plan.dims, shards)
        # Each piece consists of whole chunks or shards, so that no two threads write the same one.
        self._step = shard[0] if shard else chunk_of(plan.dims)
        self._pieces: list[np.ndarray] = []
        self._n_waiting = self._written = 0
        self._array: zarr.Array | None = None

    def append(self, values: np.ndarray) -> None:
        """Append values; they are written later and must not be modified."""
        self._pieces.append(values)
        self._n_waiting += len(values)
        if self._n_waiting >= self._step:
            self._write(self._n_waiting - self._n_waiting % self._step)

    def finish(self) -> None:
        """Write the remaining values."""
        if self._array is not None:
            self._write(self._n_waiting)
            return
        # Short arrays are created in the threads, since this is a request to an object store.
        values = np.concatenate(self._pieces) if self._pieces else None
        self._pool.submit(_write_whole, self._node, self._plan, self._shards, values)

    def _write(self, n: int) -> None:
        """Write the next `n` positions: whole chunks or shards, except at the end."""
        if self._array is None:
            self._array = _create(self._node, self._plan, self._shards)
        values = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces)
        for start in range(0, n, self._step):
            piece = values[start : min(start + self._step, n)]
            self._pool.submit(_write_slice, self._array, self._written + start, piece)
        self._written += n
        self._n_waiting -= n
        # A copy, so that the rest does not keep the whole array in memory.
        self._pieces = [values[n:].copy()]


def _create(node: zarr.Group, plan: PlannedArray, shards: bool) -> zarr.Array:
    chunks, shard = grid_of(plan.shape, plan.dims, shards)
    text = plan.dtype == "string"
    return node.create_array(
        plan.name,
        shape=plan.shape,
        dtype=plan.dtype,
        chunks=chunks,
        shards=shard,
        filters=None,
        # Text is compressed as a stream of bytes.
        compressors=compressors(1 if text else np.dtype(plan.dtype).itemsize),
        # Required by zarr but unused: every chunk is written (rule 7).
        fill_value="" if text else np.dtype(plan.dtype).type(0),
        attributes=plan.attrs,
        dimension_names=plan.dims,
        config={"write_empty_chunks": True},
    )


def _write_whole(
    node: zarr.Group, plan: PlannedArray, shards: bool, values: np.ndarray | None
) -> None:
    array = _create(node, plan, shards)
    if values is not None and values.size:
        _write_slice(array, 0, values)


def _write_slice(array: zarr.Array, start: int, values: np.ndarray) -> None:
    if array.dtype.kind != "T":
        values = values.astype(array.dtype, copy=False)
    array[(slice(start, start + len(values)),) if values.ndim else ()] = values


class GroupWriter:
    """Write one group of a store: arrays planned with values, and arrays that are appended to."""

    def __init__(
        self, root: zarr.Group, plan: PlannedGroup, pool: ChunkPool, shards: bool = False
    ) -> None:
        node = root.require_group(plan.path)
        node.update_attributes(plan.attrs)
        self._appended: dict[str, ArrayWriter] = {}
        for array in plan.arrays:
            # A scalar has no first dimension to append along.
            if array.values is not None and not array.dims:
                pool.submit(_write_whole, node, array, False, array.values)
                continue
            writer = ArrayWriter(node, array, pool, shards)
            if array.values is None:
                self._appended[array.name] = writer
            else:
                writer.append(array.values)
                writer.finish()

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append values to some of the arrays."""
        for name, values in columns.items():
            self._appended[name].append(values)

    def finish(self) -> None:
        """Write the remaining values."""
        for writer in self._appended.values():
            writer.finish()


# Number of pairs of each of the next neurons, their partners, and the values of each array.
PairBlock = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]


class Copy(NamedTuple):
    """The pairs of one copy of the connectivity, neuron by neuron."""

    compressed: Compressed
    n_pairs: int
    dtypes: Mapping[str, str]  # on disk, of each array of weights
    blocks: Iterable[PairBlock]


def write_copy(
    root: zarr.Group, plan: PlannedGroup, pool: ChunkPool, copy: Copy, shards: bool = False
) -> None:
    """Write one copy of the connectivity, in the order of its pairs, on which readers rely."""
    index, lengths_of = INDEX_NAMES[copy.compressed], {"connection": copy.n_pairs}
    n_pre, n_post = plan.attrs["shape"]
    n_major = n_post if copy.compressed == "post" else n_pre
    lengths_of[f"{copy.compressed}_pointer"] = n_major + 1
    arrays = [
        array
        if array.values is not None
        else replace(
            array,
            shape=(lengths_of[array.dims[0]],),
            dtype=copy.dtypes.get(array.name, array.dtype),
        )
        for array in plan.arrays
    ]
    group = GroupWriter(root, replace(plan, arrays=arrays), pool, shards)
    n_pairs_of = [np.zeros(1, dtype=np.int64)]
    first = n_pairs = 0
    for lengths, indices, weights in copy.blocks:
        last = first + len(lengths)
        indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        shape = (n_pre, len(lengths)) if copy.compressed == "post" else (len(lengths), n_post)
        problem = pattern_problem(indices, indptr, shape, copy.compressed)
        if any(len(values) != len(indices) for values in weights.values()):
            problem = "arrays differ in length"
        if problem:
            raise SchemaError(
                f"pairs of the {copy.compressed}synaptic neurons from number {first} on cannot be "
                f"written: {problem}"
            )
        majors = np.repeat(np.arange(first, last, dtype=np.int32), lengths)
        group.append({**weights, "indices": indices, index: majors})
        n_pairs_of.append(lengths)
        n_pairs += len(indices)
        first = last
    if (first, n_pairs) != (n_major, copy.n_pairs):
        raise SchemaError(
            f"{first} neurons with {n_pairs} pairs were written, expected {n_major} with "
            f"{copy.n_pairs}"
        )
    group.append({"indptr": np.cumsum(np.concatenate(n_pairs_of), dtype=np.int64)})
    group.finish()
