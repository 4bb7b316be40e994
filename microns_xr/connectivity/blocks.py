"""Connectivity in blocks: dask arrays whose chunks are GCXS arrays of whole neurons.

A block holds all stored pairs of some neighbouring neurons of the compressed axis. Its graph is
made here: one layer reads the pattern of each block and one the values of each variable, so that
variables share the read of the pattern and none reads another's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import dask.array as da
import numpy as np
import sparse
import xarray as xr
from dask.array.dispatch import concatenate_lookup
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    Pattern,
    gcxs,
    make_pattern,
)
from microns_xr.connectivity.patterns import check_sorted
from microns_xr.threads import Span

__all__ = [
    "AXIS",
    "BLOCK_PAIRS",
    "PairSource",
    "block_key",
    "block_spans",
    "is_lazy",
    "lazy_pairs",
    "source_of",
    "sparse_array",
]

BLOCK_PAIRS = 4_000_000
"""Stored pairs of a block: 48 MB in memory with one variable."""
AXIS = {"pre": 0, "post": 1}
"""Which axis a side is."""


class PairSource(Protocol):
    """Where the stored pairs of one copy are read from, span by span.

    It is pickled into every task, so it holds an address and no data; a worker opens it by itself.
    """

    @property
    def compressed(self) -> Compressed:
        """The axis whose neurons are contiguous spans."""

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of pre and of post."""

    @property
    def indptr(self) -> np.ndarray:
        """Spans of the compressed axis."""

    @property
    def chunk(self) -> int:
        """Stored pairs that are decoded at once."""

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read ``"indices"`` (int32) or the values of a variable, pairs `start` to `stop`."""

    def other(self) -> PairSource | None:
        """Return the copy of the same pairs that is compressed over the other axis, if any."""

    def __dask_tokenize__(self) -> Any:
        """Return what tells two sources apart, the content of the store included."""


def is_lazy(connectivity: xr.Dataset | xr.DataArray) -> bool:
    """Whether the pairs of a connectivity Dataset, or of one array, are dask arrays.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> is_lazy(two_neurons())
    False
    """
    if isinstance(connectivity, xr.DataArray):
        return connectivity.chunks is not None
    return any(v.chunks is not None and v.dims == PAIR_DIMS for v in connectivity.values())


def block_spans(indptr: np.ndarray, pairs: int | None = None) -> list[Span]:
    """Cut the compressed axis into spans of neighbouring neurons of about as many stored pairs.

    Parameters
    ----------
    indptr : numpy.ndarray
        Spans of the compressed axis.
    pairs : int, optional
        Stored pairs of a span, at most, unless one neuron has more; by default `BLOCK_PAIRS`.

    Returns
    -------
    list of tuple of int
        First neuron of each span and the one behind its last; at least one span.

    Examples
    --------
    >>> block_spans(np.array([0, 3, 4, 9, 9, 10]), pairs=5)
    [(0, 2), (2, 4), (4, 5)]
    """
    most = BLOCK_PAIRS if pairs is None else pairs
    spans, start, n = [], 0, indptr.size - 1
    while start < n:
        stop = int(np.searchsorted(indptr, int(indptr[start]) + most, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        spans.append((start, stop))
        start = stop
    return spans or [(0, 0)]


def lazy_pairs(
    source: PairSource, names: Sequence[str], pairs: int | None = None
) -> dict[str, da.Array]:
    """Make dask arrays over (pre, post) of what a source holds; reads its indptr only.

    Parameters
    ----------
    source : PairSource
        Where blocks are read from.
    names : sequence of str
        Variables.
    pairs : int, optional
        See `block_spans`.

    Returns
    -------
    dict of str to dask.array.Array
        int64, chunks are `sparse.GCXS`.
    """
    indptr = source.indptr
    spans = block_spans(indptr, pairs)
    token = tokenize(source, spans)
    patterns = f"pattern-{token}"
    axis = AXIS[source.compressed]
    reads: dict[Any, Any] = {}
    for i, (lo, hi) in enumerate(spans):
        start, stop = int(indptr[lo]), int(indptr[hi])
        reads[patterns, i] = (_read_pattern, source, start, stop, indptr[lo : hi + 1] - start)
    arrays = {}
    for name in names:
        key = f"{name}-{token}"
        layer: dict[Any, Any] = {
            (key, *block_key(axis, i)): (
                _read_values,
                (patterns, i),
                source,
                name,
                int(indptr[lo]),
                int(indptr[hi]),
            )
            for i, (lo, hi) in enumerate(spans)
        }
        graph = HighLevelGraph({patterns: reads, key: layer}, {patterns: set(), key: {patterns}})
        arrays[name] = sparse_array(graph, key, spans, source.shape, source.compressed)
    return arrays


def source_of(array: Any, name: str) -> PairSource | None:
    """Return the source of a dask array that is still as `lazy_pairs` made it of `name`, else None.

    An array that goes by another name by now is no longer what the source has under that name.
    """
    if not isinstance(array, da.Array):
        return None
    task = dict(array.dask.layers.get(array.name, {})).get((array.name, 0, 0))
    if isinstance(task, tuple) and task[0] is _read_values and task[3] == name:
        return task[2]
    return None


def _read_pattern(source: PairSource, start: int, stop: int, indptr: np.ndarray) -> Pattern:
    """Read which pairs a block holds, and check that partners ascend: kernels rely on it."""
    n_pre, n_post = source.shape
    shape = (n_pre, indptr.size - 1) if source.compressed == "post" else (indptr.size - 1, n_post)
    pattern = make_pattern(source.read("indices", start, stop), indptr, shape, source.compressed)
    check_sorted(pattern.indices, pattern.indptr, pattern.n_minor, threads=1)
    return pattern


def _read_values(
    pattern: Pattern, source: PairSource, name: str, start: int, stop: int
) -> sparse.GCXS:
    return gcxs(source.read(name, start, stop).astype(np.int64, copy=False), pattern)


def block_key(axis: int, i: int) -> tuple[int, int]:
    """Return where block `i` is among the chunks of an array that is cut along `axis`."""
    return (0, i) if axis == 1 else (i, 0)


def sparse_array(
    graph: HighLevelGraph,
    name: str,
    spans: Sequence[Span],
    shape: tuple[int, int],
    compressed: Compressed,
    dtype: Any = np.int64,
) -> da.Array:
    """Make a dask array over (pre, post) of a layer whose chunks are GCXS of whole neurons."""
    widths = tuple(hi - lo for lo, hi in spans)
    chunks = ((shape[0],), widths) if compressed == "post" else (widths, (shape[1],))
    empty = make_pattern(np.zeros(0), np.zeros(1), (0, 0), compressed)
    return da.Array(graph, name, chunks, meta=gcxs(np.zeros(0, dtype=dtype), empty))


@concatenate_lookup.register(sparse.GCXS)
def _concatenate(arrays: Sequence[sparse.GCXS], axis: int = 0, **_: Any) -> Any:
    """Put blocks together for dask, which knows only COO: buffers are joined, nothing is sorted."""
    if len(arrays) == 1:
        return arrays[0]
    compressed: Compressed = "pre" if axis in (0, -2) else "post"
    fits = all(
        isinstance(a, sparse.GCXS)
        and a.ndim == 2
        and tuple(a.compressed_axes) == (axis % 2,)
        and a.fill_value == 0
        for a in arrays
    )
    if not fits:
        return sparse.concatenate(arrays, axis=axis)
    starts = np.cumsum([0, *(a.nnz for a in arrays)])
    indptr = np.concatenate(
        [[0], *(a.indptr[1:] + start for a, start in zip(arrays, starts, strict=False))]
    )
    shape = list(arrays[0].shape)
    shape[axis % 2] = sum(a.shape[axis % 2] for a in arrays)
    indices = np.concatenate([a.indices for a in arrays])
    pattern = make_pattern(indices, indptr, (shape[0], shape[1]), compressed)
    return gcxs(np.concatenate([a.data for a in arrays]), pattern)
