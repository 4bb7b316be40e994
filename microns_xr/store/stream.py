"""Writing arrays piece by piece, when neither their length nor their values are known before.

`CopyWriter` takes the pairs of one neuron after the other and writes one copy of the connectivity;
`microns_xr.store.spill` brings the pairs into the order of the other copy. Neither holds more than
a few chunks of an array.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
import zarr

from microns_xr.connectivity.arrays import Compressed
from microns_xr.errors import SchemaError
from microns_xr.store.format import (
    CHUNK,
    compressor,
    grid_of,
    matrix_arrays,
    matrix_group,
    pattern_problems,
)
from microns_xr.store.plan import PlannedArray, pairs_of, plan_matrix, transposed

__all__ = ["ArrayWriter", "ChunkPool", "CopyWriter", "create_array", "write_array"]

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

    Parameters
    ----------
    threads : int, optional
        How many chunks are compressed at a time.
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
    """One array of a store, appended to along its first dimension.

    Parameters
    ----------
    node : zarr.Group
        Where it is to be.
    planned : PlannedArray
        Its name, dimensions, dtype, chunk and the shape behind the first dimension; the length it
        has there does not matter. An array of int32 becomes one of int64 when a value asks for it.
    pool : ChunkPool
        Compresses and writes.
    """

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

    Parameters
    ----------
    root : zarr.Group
        Root of the store.
    compressed : {"post", "pre"}
        The neurons whose pairs are contiguous: the group is ``connectivity/by_<compressed>``.
    shape : tuple of int
        (number of pre, number of post).
    pool : ChunkPool
        Compresses and writes; may be shared with other writers.

    Notes
    -----
    Holds at most one chunk of each of the four arrays, beside what waits in `pool`.

    Examples
    --------
    Two neurons, the first with the partners 0 and 2, the second with none::

        with ChunkPool() as pool:
            copy = CopyWriter(root, "post", (3, 2), pool)
            copy.append(np.array([2, 0]), indices, size, count)
            copy.finish(template)
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
        """Add the pairs of the next neurons.

        Parameters
        ----------
        lengths : numpy.ndarray
            (neurons,): how many pairs each of the next neurons of the compressed axis has.
        indices : numpy.ndarray
            (pairs,): positions on the other axis, ascending and unique for each neuron.
        size, count : numpy.ndarray
            (pairs,): summed size and number of synapses, integers.

        Raises
        ------
        SchemaError
            If the pairs break rule 9 of the format, or there are more neurons than the axis has.
        OSError
            If a chunk cannot be written; it may be one of an earlier call.
        """
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
        """Write what is left, the labels, further coordinates and the attributes.

        Parameters
        ----------
        template : xarray.Dataset
            Connectivity as it is to come back, with all of its coordinates and attributes, on
            sparse arrays of the right shape without a stored pair.

        Raises
        ------
        SchemaError
            If pairs of some neurons have not been appended, or `template` has another shape, or
            holds what a store cannot.
        """
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
