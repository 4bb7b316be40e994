"""Write groups of a store: a group is planned first, then values are appended to its arrays.

Planning checks everything before the first byte is written. An array in memory is appended in one
piece. Rows and pairs that do not fit in memory are appended in blocks, of which only a few chunks
per array are held. Their number may be unknown; on a local disk, so may the width of integers.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

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
    shape: tuple[int, ...]  # the first length is 0 if unknown
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
    """Plan one copy of a connectivity Dataset, whose pairs are appended neuron by neuron."""
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

    def finish(self, attrs: dict[str, Any] | None = None) -> None:
        """Write the remaining values, and the attributes if they differ from the plan."""
        if self._array is None:
            # Short arrays are created in the threads, since this is a request to an object store.
            plan = self._plan if attrs is None else replace(self._plan, attrs=attrs)
            plan = replace(plan, shape=(self._n_waiting, *plan.shape[1:]))
            values = np.concatenate(self._pieces) if self._n_waiting else None
            self._pool.submit(_write_whole, self._node, plan, self._shards, values)
            return
        if self._n_waiting:
            self._write(self._n_waiting)
        if attrs is not None and attrs != self._plan.attrs:
            self._array.update_attributes(attrs)

    def _write(self, n: int) -> None:
        """Write the next `n` positions: whole chunks or shards, except at the end."""
        first = self._pieces[0]
        values = first if len(self._pieces) == 1 else np.concatenate(self._pieces)
        length, *rest = self._plan.shape
        shape = (max(length, self._written + n), *rest)
        if self._array is None:
            self._array = _create(self._node, replace(self._plan, shape=shape), self._shards)
        elif self._array.shape != shape:
            self._array.resize(shape)
        for start in range(0, n, self._step):
            piece = values[start : min(start + self._step, n)]
            self._pool.submit(_write_slice, self._array, self._written + start, piece)
        self._written += n
        self._n_waiting -= n
        # A copy, so that the rest does not keep the whole array in memory.
        self._pieces = [values[n:].copy()] if self._n_waiting else []

    def widen(self) -> None:
        """Continue as int64 and convert the values written so far; on a local disk only."""
        narrow, self._plan = self._array, replace(self._plan, dtype="int64")
        if narrow is None:
            return
        self._pool.wait()
        # Written beside the old array, then renamed to replace it; object stores cannot rename.
        beside = replace(self._plan, name=f"{self._plan.name}.int64", shape=narrow.shape)
        wide = _create(self._node, beside, False)
        for start in range(0, self._written, self._step):
            wide[start : start + self._step] = narrow[start : start + self._step]
        store: Any = narrow.store
        shutil.rmtree(store.root / narrow.path)
        os.rename(store.root / wide.path, store.root / narrow.path)
        self._array = zarr.open_array(store, path=narrow.path)

    def remove(self) -> None:
        """Remove the array; on a local disk only."""
        self._pieces, self._n_waiting = [], 0
        if self._array is not None:
            self._pool.wait()
            store: Any = self._array.store
            shutil.rmtree(store.root / self._array.path)

    @property
    def dtype(self) -> str:
        """Dtype on disk, which may become int64."""
        return self._plan.dtype


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
        self._node = root.require_group(plan.path)
        self._node.update_attributes(plan.attrs)
        self.appended: dict[str, ArrayWriter] = {}
        for array in plan.arrays:
            # A scalar has no first dimension to append along.
            if array.values is not None and not array.dims:
                pool.submit(_write_whole, self._node, array, False, array.values)
                continue
            writer = ArrayWriter(self._node, array, pool, shards)
            if array.values is None:
                self.appended[array.name] = writer
            else:
                writer.append(array.values)
                writer.finish()

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append values to some of the arrays."""
        for name, values in columns.items():
            self.appended[name].append(values)

    def finish(self, plan: PlannedGroup | None = None) -> None:
        """Write the remaining values, and the attributes of an updated plan.

        Arrays that the updated plan lacks are removed.
        """
        attrs: dict[str, Any] = dict.fromkeys(self.appended)
        if plan is not None:
            self._node.attrs.put(plan.attrs)
            attrs = {array.name: array.attrs for array in plan.arrays}
        for name, writer in self.appended.items():
            if name in attrs:
                writer.finish(attrs[name])
            else:
                writer.remove()


class CopyWriter:
    """Write one copy of the connectivity neuron by neuron."""

    def __init__(
        self,
        root: zarr.Group,
        plan: PlannedGroup,
        pool: ChunkPool,
        shards: bool = False,
        n_pairs: int = 0,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        self.compressed: Compressed = "post" if plan.path == MATRIX_GROUP["post"] else "pre"
        self._n_pre, self._n_post = plan.attrs["shape"]
        self._n_major = self._n_post if self.compressed == "post" else self._n_pre
        # `dtypes` are those of the weights on disk. If unknown, integers start as int32 and are
        # widened when a value needs it.
        self._widens = dtypes is None
        dtypes = dtypes or {}
        arrays = [
            replace(array, shape=(n_pairs,), dtype=dtypes.get(array.name, array.dtype))
            if array.dims == ("connection",)
            else array
            for array in plan.arrays
        ]
        self._group = GroupWriter(root, replace(plan, arrays=arrays), pool, shards)
        self._lengths: list[np.ndarray] = []
        self.n_done = 0
        self.n_connections = 0

    def append(
        self, lengths: np.ndarray, indices: np.ndarray, weights: Mapping[str, np.ndarray]
    ) -> None:
        """Append the pairs of the next neurons, with the values of each array of weights."""
        n, first = len(lengths), self.n_done
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        shape = (self._n_pre, n) if self.compressed == "post" else (n, self._n_post)
        # Readers rely on the order of the pairs.
        problem = pattern_problem(indices, indptr, shape, self.compressed)
        if first + n > self._n_major:
            problem = f"{first + n} neurons, expected {self._n_major}"
        if any(len(values) != len(indices) for values in weights.values()):
            problem = "arrays differ in length"
        if problem:
            raise SchemaError(
                f"pairs of the {self.compressed}synaptic neurons from number {first} on cannot be "
                f"written: {problem}"
            )
        for name, values in weights.items():
            array = self._group.appended[name]
            if self._widens and array.dtype == "int32" and narrowest(values) == "int64":
                array.widen()
        majors = np.repeat(np.arange(first, first + n, dtype=np.int32), lengths)
        self._group.append({**weights, "indices": indices, INDEX_NAMES[self.compressed]: majors})
        self._lengths.append(np.asarray(lengths, dtype=np.int64))
        self.n_done += n
        self.n_connections += len(indices)

    def finish(self, plan: PlannedGroup | None = None) -> None:
        """Write the remaining values, the pointers, and the attributes of an updated plan."""
        if self.n_done != self._n_major:
            raise SchemaError(
                f"{self.n_done} of {self._n_major} neurons were written, expected all of them"
            )
        lengths = np.concatenate([[0], *self._lengths])
        self._group.append({"indptr": np.cumsum(lengths, dtype=np.int64)})
        self._group.finish(plan)
