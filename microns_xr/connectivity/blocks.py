"""Operations on lazy connectivity: what the kernels do with one block, mapped over all of them.

Nothing here computes. Threads belong to dask, so every kernel runs on one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import dask.array as da
import numba
import numpy as np
import sparse
import xarray as xr
from dask.array.dispatch import concatenate_lookup
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph

from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    Pattern,
    gcxs,
    make_pattern,
    pair_buffers,
    pair_names,
    pattern_of,
    pattern_of_array,
)
from microns_xr.connectivity.kernels import Contraction, contract_buffers
from microns_xr.connectivity.labels import Lookup, require_known
from microns_xr.connectivity.sort import (
    Rule,
    Selection,
    check_sorted,
    select_pairs,
    take_values,
)
from microns_xr.errors import SchemaError
from microns_xr.threads import Span, balanced_spans, run_spans, usable_threads

# Reading the pairs of chosen neurons from a source, in as few contiguous reads as make sense.


def read_neurons(
    source: PairSource, majors: np.ndarray, names: Sequence[str]
) -> tuple[Pattern, dict[str, np.ndarray]]:
    """Read all pairs of some neurons of the compressed axis."""
    indptr = source.indptr
    starts, stops = (indptr[majors + k].astype(np.int64) for k in (0, 1))
    new_indptr = np.concatenate([[0], np.cumsum(stops - starts)])
    out = {"indices": np.empty(int(new_indptr[-1]), dtype=np.int32)}
    out |= {name: np.empty(int(new_indptr[-1]), dtype=np.int64) for name in names}
    for lo, hi in _runs(starts, stops, source.chunk):
        first, last = int(starts[lo]), int(stops[hi - 1])
        lengths = stops[lo:hi] - starts[lo:hi]
        target = slice(int(new_indptr[lo]), int(new_indptr[hi]))
        gaps = int(lengths.sum()) < last - first
        if gaps:
            shift = np.repeat(starts[lo:hi] - first - (new_indptr[lo:hi] - target.start), lengths)
            picked = shift + np.arange(shift.size)
        for name, values in out.items():
            read = source.read(name, first, last)
            values[target] = read[picked] if gaps else read
    n_pre, n_post = source.shape
    shape = (n_pre, majors.size) if source.compressed == "post" else (majors.size, n_post)
    pattern = make_pattern(out.pop("indices"), new_indptr, shape, source.compressed)
    check_sorted(pattern.indices, pattern.indptr, pattern.n_minor)
    return pattern, out


def _runs(starts: np.ndarray, stops: np.ndarray, chunk: int) -> Iterator[tuple[int, int]]:
    """Group neurons whose spans are read at once.

    Two neurons in one chunk would have it decoded twice, so a gap of less than a chunk is read
    and thrown away; a run is bounded by what a block of dask holds.
    """
    lo = 0
    for hi in range(1, starts.size + 1):
        far = hi < starts.size and (
            starts[hi] - stops[hi - 1] >= chunk or stops[hi] - starts[lo] > BLOCK_PAIRS
        )
        if hi == starts.size or far:
            if stops[hi - 1] > starts[lo]:
                yield lo, hi
            lo = hi


# Connectivity in blocks: dask arrays whose chunks are GCXS arrays of whole neurons.
#
# A block holds all stored pairs of some neighbouring neurons of the compressed axis. Its graph is
# made here: one layer reads the pattern of each block and one the values of each variable, so
# that variables share the read of the pattern and none reads another's values.


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
    """Whether the pairs of a connectivity Dataset, or of one array, are dask arrays."""
    if isinstance(connectivity, xr.DataArray):
        return connectivity.chunks is not None
    return any(v.chunks is not None and v.dims == PAIR_DIMS for v in connectivity.values())


def block_spans(indptr: np.ndarray, pairs: int | None = None) -> list[Span]:
    """Cut the compressed axis into spans of neighbouring neurons of about as many stored pairs."""
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
    """Make dask arrays over (pre, post) of what a source holds; reads its indptr only."""
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


# Parts of a connectivity Dataset by position: what the functions by label are made of.


Side = Literal["pre", "post"]
OTHER_SIDE: dict[Side, Side] = {"pre": "post", "post": "pre"}


def positions_of(connectivity: xr.Dataset, side: Side, ids: Any) -> np.ndarray:
    """Return where ids are on an axis, or raise `UnknownLabelError`."""
    wanted = as_ids(ids, f"{side}_ids")
    labels = connectivity[f"{side}_nucleus_id"].values
    found = Lookup(labels, f"{side}_nucleus_id").find(wanted)
    require_known(
        wanted,
        found,
        f"{side}_ids",
        f"{side}_nucleus_id of the connectivity",
        "its axes are the neurons that were asked for, by nucleus id and not by root id",
    )
    return found


def take_positions(
    connectivity: xr.Dataset, pre: np.ndarray | None, post: np.ndarray | None
) -> xr.Dataset:
    """Keep ascending positions of either axis; None keeps all."""
    shape, compressed = layout_of(connectivity)
    by_side = {"pre": pre, "post": post}
    n_of = dict(zip(("pre", "post"), shape, strict=True))
    majors, minors = by_side[compressed], by_side[OTHER_SIDE[compressed]]
    n_minor = n_of[OTHER_SIDE[compressed]]
    new_minor = np.arange(n_minor, dtype=np.int32)
    if minors is not None:
        new_minor = np.full(n_minor, -1, dtype=np.int32)
        new_minor[minors] = np.arange(minors.size)
        n_minor = minors.size
    majors = np.arange(n_of[compressed]) if majors is None else majors
    rest = connectivity.drop_vars(pair_names(connectivity)).isel(
        {f"{s}_nucleus_id": kept for s, kept in by_side.items() if kept is not None}
    )
    return keep_pairs(connectivity, rest, Rule(majors, new_minor, n_minor))


def load_neurons(connectivity: xr.Dataset, side: Side, positions: np.ndarray) -> xr.Dataset:
    """Keep ascending positions of one axis, in memory."""
    by_side = {"pre": None, "post": None, side: positions}
    if not is_lazy(connectivity):
        return take_positions(connectivity, by_side["pre"], by_side["post"])
    blocks = blocks_of(connectivity, prefer=side)
    source = stored_source(blocks.arrays)
    if source is None or blocks.compressed != side:
        return take_positions(connectivity, by_side["pre"], by_side["post"]).compute()
    pattern, values = read_neurons(source, positions, list(blocks.arrays))
    rest = connectivity.drop_vars(list(values)).isel({f"{side}_nucleus_id": positions}).compute()
    arrays = {name: gcxs(stored, pattern) for name, stored in values.items()}
    return _with_arrays(connectivity, rest, arrays)


def drop_unpaired(connectivity: xr.Dataset) -> xr.Dataset:
    """Drop the neurons of the axis that is not compressed which have no pair, in memory.

    Every pair stays, so that the values are not copied.
    """
    pattern, values = pair_buffers(connectivity)
    side = OTHER_SIDE[pattern.compressed]
    found = np.zeros(pattern.n_minor, dtype=bool)
    found[pattern.indices] = True  # a tenth of the time of np.unique
    if found.all():
        return connectivity
    kept = np.flatnonzero(found)
    new_minor = (np.cumsum(found, dtype=np.int32) - 1).astype(np.int32)
    shape = {side: kept.size, pattern.compressed: pattern.n_major}
    new = make_pattern(
        new_minor[pattern.indices],
        pattern.indptr,
        (shape["pre"], shape["post"]),
        pattern.compressed,
    )
    rest = connectivity.drop_vars(list(values)).isel({f"{side}_nucleus_id": kept})
    arrays = {name: gcxs(stored, new) for name, stored in values.items()}
    return _with_arrays(connectivity, rest, arrays)


def layout_of(connectivity: xr.Dataset) -> tuple[tuple[int, int], Side]:
    """Return the shape and the compressed axis of a connectivity Dataset, lazy or not."""
    pairs = (
        blocks_of(connectivity, ["synapse_size"])
        if is_lazy(connectivity)
        else pattern_of(connectivity)
    )
    return pairs.shape, pairs.compressed


def keep_pairs(connectivity: xr.Dataset, rest: xr.Dataset, rule: Rule) -> xr.Dataset:
    """Keep neurons and pairs by a rule, put on the axes of `rest`; lazily where they are lazy."""
    if is_lazy(connectivity):
        return _with_arrays(connectivity, rest, filter_blocks(blocks_of(connectivity), rule))
    pattern, values = pair_buffers(connectivity)
    selection = select_pairs(pattern.indices, pattern.indptr, rule)
    shape = rule.shape(pattern.compressed)
    return with_pairs(connectivity, rest, pattern, values, selection, shape)


def with_pairs(
    connectivity: xr.Dataset,
    rest: xr.Dataset,
    pattern: Pattern,
    values: dict[str, np.ndarray],
    selection: Selection,
    shape: tuple[int, int],
) -> xr.Dataset:
    """Put selected pairs on the axes of `rest`, in the order of variables of `connectivity`."""
    new = make_pattern(selection.indices, selection.indptr, shape, pattern.compressed)
    arrays = {name: gcxs(take_values(v, selection.source), new) for name, v in values.items()}
    return _with_arrays(connectivity, rest, arrays)


def _with_arrays(
    connectivity: xr.Dataset, rest: xr.Dataset, arrays: Mapping[str, Any]
) -> xr.Dataset:
    result = rest.drop_vars(list(arrays), errors="ignore").assign(
        {name: (PAIR_DIMS, array, dict(connectivity[name].attrs)) for name, array in arrays.items()}
    )
    return result[list(connectivity.data_vars)]


# Functions over the blocks of lazy connectivity, and their results put together.
#
# Where a result is a sum over the compressed axis the parts of all blocks are added up along a
# tree of fixed shape, so that every scheduler gives the same bits.


_FAN = 8  # parts that are added up at once; they are all held then
_LARGE = 1 << 25  # bytes of a part from which on only two are


@dataclass(frozen=True)
class Blocks:
    """Variables of a lazy connectivity Dataset, block by block."""

    compressed: Compressed  # the axis that is cut
    shape: tuple[int, int]  # numbers of pre and of post
    spans: list[Span]  # neurons of each block
    arrays: dict[str, da.Array]

    @property
    def n_major(self) -> int:
        """Length of the compressed axis."""
        return self.shape[AXIS[self.compressed]]

    @property
    def n_minor(self) -> int:
        """Length of the other axis."""
        return self.shape[1 - AXIS[self.compressed]]

    def map(
        self,
        function: Callable[..., Any],
        shared: Delayed | None = None,
        each: Sequence[tuple[Any, ...]] | None = None,
    ) -> Mapped:
        """Call ``function(pattern, values, shared, *each[i])`` on block i, lazily."""
        each = list(self.spans) if each is None else each
        names = list(self.arrays)
        parts = [self.arrays[n].name for n in names]
        shared = delayed(None, pure=True) if shared is None else shared
        name = f"{_word(function)}-{tokenize(function, parts, shared.key, each)}"
        axis = AXIS[self.compressed]
        layer: dict[Any, Any] = {
            (name, i): (
                _on_block,
                function,
                names,
                [(part, *block_key(axis, i)) for part in parts],
                self.compressed,
                shared.key,
                *arguments,
            )
            for i, arguments in enumerate(each)
        }
        needs: list[Any] = [*self.arrays.values(), shared]
        graph = HighLevelGraph.from_collections(name, layer, dependencies=needs)
        return Mapped(graph, name, list(layer), self)

    def nothing(self, shape: tuple[int, int]) -> dict[str, da.Array]:
        """Return the variables over no neuron of the compressed axis."""
        empty = make_pattern(np.zeros(0), np.zeros(1), shape, self.compressed)
        result = {}
        for name, array in self.arrays.items():
            # Not da.from_array, which cuts what it is given: sparse compiles 5 s for that.
            block = gcxs(np.zeros(0, dtype=array.dtype), empty)
            new = f"{name}-{tokenize('nothing', shape, self.compressed, array.dtype)}"
            graph = HighLevelGraph({new: {(new, 0, 0): block}}, {new: set()})
            result[name] = sparse_array(graph, new, [(0, 0)], shape, self.compressed, array.dtype)
        return result

    def filtered(
        self,
        function: Callable[..., sparse.GCXS],
        shared: Delayed,
        each: Sequence[tuple[Any, ...]],
        keep: Sequence[int],
        widths: Sequence[int],
        shape: tuple[int, int],
    ) -> dict[str, da.Array]:
        """Map each variable by itself to a new sparse array of other neurons."""
        edges = np.concatenate([[0], np.cumsum(widths)]).tolist()
        spans = list(pairwise(edges))
        result = {}
        for name, array in self.arrays.items():
            new = f"{name}-{tokenize(function, array.name, shared.key, each, list(keep), shape)}"
            axis = AXIS[self.compressed]
            layer: dict[Any, Any] = {
                (new, *block_key(axis, i)): (
                    _on_block,
                    function,
                    [name],
                    [(array.name, *block_key(axis, block))],
                    self.compressed,
                    shared.key,
                    *arguments,
                )
                for i, (block, arguments) in enumerate(zip(keep, each, strict=True))
            }
            needs: list[Any] = [array, shared]
            graph = HighLevelGraph.from_collections(new, layer, dependencies=needs)
            result[name] = sparse_array(graph, new, spans, shape, self.compressed, array.dtype)
        return result


def _on_block(
    function: Callable[..., Any],
    names: list[str],
    arrays: list[Any],
    compressed: Compressed,
    shared: Any,
    *arguments: Any,
) -> Any:
    patterns, values = [], {}
    for name, array in zip(names, arrays, strict=True):
        pattern, stored = pattern_of_array(array, name, compressed)
        values[name] = stored
        patterns.append(pattern)
    for name, other in zip(names[1:], patterns[1:], strict=True):
        if not patterns[0].same_pairs(other):
            raise SchemaError(
                f"{name} stores other pairs than {names[0]}, expected both on one sparsity "
                "pattern: do not filter one of them alone"
            )
    return function(patterns[0], values, shared, *arguments)


@dataclass(frozen=True)
class Mapped:
    """Results of a function on every block, or one of all blocks, not yet computed."""

    graph: HighLevelGraph  # how to get them
    name: str  # name of the last layer
    keys: list[Any]  # one of each block, or a single one
    blocks: Blocks  # what they come from

    def then(self, function: Callable[[Any], Any]) -> Mapped:
        """Call a function on every result."""
        name = f"{_word(function)}-{self.name}"
        keys: list[Any] = [(name, i) for i in range(len(self.keys))]
        layer = {new: (function, old) for new, old in zip(keys, self.keys, strict=True)}
        return Mapped(self._over(name, layer), name, keys, self.blocks)

    def added(self, combine: Callable[[list[Any]], Any], nbytes: int = 0) -> Mapped:
        """Combine the results of all blocks, a few at a time, into one."""
        keys, level = self.keys, 0
        fan = _FAN if nbytes < _LARGE else 2
        name = f"{_word(combine)}-{self.name}"
        layer: dict[Any, Any] = {}
        while len(keys) > 1 or not layer:
            groups = [keys[i : i + fan] for i in range(0, len(keys), fan)]
            keys = [(name, level, i) for i in range(len(groups))]
            layer.update({new: (combine, old) for new, old in zip(keys, groups, strict=True)})
            level += 1
        return Mapped(self._over(name, layer), name, keys, self.blocks)

    def along(self, item: int, shape: tuple[int, ...], dtype: Any) -> da.Array:
        """Put item `item` of every result together along the compressed axis."""
        widths = tuple(hi - lo for lo, hi in self.blocks.spans)
        return self._array(item, (widths, *((n,) for n in shape)), dtype)

    def whole(self, item: int, shape: tuple[int, ...], dtype: Any) -> da.Array:
        """Take item `item` of the one result that `added` made, as an array of one chunk."""
        return self._array(item, tuple((n,) for n in shape), dtype)

    def value(self) -> Delayed:
        """Return the one result that `added` made."""
        return Delayed(self.keys[0], self.graph, layer=self.name)

    def _array(self, item: int, chunks: tuple[tuple[int, ...], ...], dtype: Any) -> da.Array:
        name = f"item{item}-{self.name}"
        zeros = (0,) * (len(chunks) - 1)
        layer: dict[Any, Any] = {
            (name, i, *zeros): (operator.getitem, key, item) for i, key in enumerate(self.keys)
        }
        return da.Array(self._over(name, layer), name, chunks, dtype=dtype)

    def _over(self, name: str, layer: dict[Any, Any]) -> HighLevelGraph:
        return HighLevelGraph(
            {**self.graph.layers, name: layer}, {**self.graph.dependencies, name: {self.name}}
        )


def _word(function: Callable[..., Any]) -> str:
    return function.__name__.strip("_").replace("_", "-")


def blocks_of(
    connectivity: xr.Dataset,
    names: Sequence[str] | None = None,
    prefer: Compressed | None = None,
) -> Blocks:
    """Take the dask arrays out of a lazy connectivity Dataset."""
    if names is None:
        names = pair_names(connectivity)
    arrays: dict[str, da.Array] = {}
    for name in names:
        variable = connectivity[name]
        if variable.dims != PAIR_DIMS:
            raise SchemaError(
                f"{name} has dims {variable.dims}, expected {PAIR_DIMS}: transpose it by name "
                "with .transpose('pre_nucleus_id', 'post_nucleus_id')"
            )
        if variable.chunks is None:
            raise SchemaError(
                f"{name} is in memory while others are lazy: load all with .compute(), or "
                "open the store again with lazy=True"
            )
        arrays[name] = variable.data
    first = next(iter(arrays.values()))
    if any(array.chunks != first.chunks for array in arrays.values()):
        raise SchemaError(
            f"the variables {names} have different chunks: do not rechunk one of them alone"
        )
    compressed = _compressed_of(first)
    if len(first.chunks[1 - AXIS[compressed]]) != 1:
        raise SchemaError(
            f"the connectivity is cut along both axes ({first.numblocks} blocks), expected blocks "
            "of whole neurons: open the store again with lazy=True and do not rechunk it"
        )
    source = stored_source(arrays)
    if prefer not in (None, compressed) and source is not None and (turned := source.other()):
        arrays, compressed = lazy_pairs(turned, names), turned.compressed
        first = next(iter(arrays.values()))
    edges = np.concatenate([[0], np.cumsum(first.chunks[AXIS[compressed]])]).tolist()
    return Blocks(compressed, first.shape, list(pairwise(edges)), arrays)


def stored_source(arrays: Mapping[str, da.Array]) -> PairSource | None:
    """Return the one source of arrays that are still as they were opened, else None."""
    sources = [source_of(array, name) for name, array in arrays.items()]
    same = all(source == sources[0] for source in sources)
    return sources[0] if sources and same else None


def _compressed_of(array: da.Array) -> Compressed:
    if len(array.chunks[0]) != len(array.chunks[1]):
        return "pre" if len(array.chunks[0]) > 1 else "post"
    return "pre" if tuple(getattr(array._meta, "compressed_axes", (1,))) == (0,) else "post"


# Sums of sizes and counts of a compressed matrix by neuron and by pairs of groups, in integers.
#
# As in `kernels`, a matrix is compressed over its *major* axis. Every result has the three
# columns ``PARTS``. Integer sums do not depend on their order, so each thread adds up for itself.


PARTS = ("n_connections", "synapse_size", "synapse_count")


def neuron_sums(
    size: np.ndarray,
    count: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs, and sum sizes and counts, of every neuron of both axes in one pass."""
    n_threads = usable_threads(threads, indices.size)
    major = np.zeros((indptr.size - 1, 3), dtype=np.int64)
    minors = run_spans(
        lambda lo, hi: _neuron_sums(size, count, indices, indptr, n_minor, major, lo, hi),
        balanced_spans(indptr, n_threads),
        n_threads,
    )
    return major, sum(minors, start=np.zeros((n_minor, 3), dtype=np.int64))


@numba.njit(nogil=True, cache=True)
def _neuron_sums(  # type: ignore[no-untyped-def]
    size, count, indices, indptr, n_minor, major, lo, hi
):
    minor = np.zeros((n_minor, 3), dtype=np.int64)
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        sum_size = np.int64(0)
        sum_count = np.int64(0)
        for p in range(start, stop):
            i = np.uintp(indices[p])
            minor[i, 0] += 1
            minor[i, 1] += size[p]
            minor[i, 2] += count[p]
            sum_size += size[p]
            sum_count += count[p]
        major[j, 0] = stop - start
        major[j, 1] = sum_size
        major[j, 2] = sum_count
    return minor


def group_sums(
    size: np.ndarray,
    count: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    major_codes: np.ndarray,
    minor_codes: np.ndarray,
    n_groups: tuple[int, int],
    threads: int | None = None,
) -> np.ndarray:
    """Count the pairs, and sum sizes and counts, between groups of neurons."""
    # A table for each thread has to stay small beside the pairs.
    n_cells = n_groups[0] * n_groups[1]
    n_threads = usable_threads(threads, indices.size if n_cells < 1_000_000 else 0)
    major_codes = np.ascontiguousarray(major_codes, dtype=np.int32)
    minor_codes = np.ascontiguousarray(minor_codes, dtype=np.int32)
    args = (size, count, indices, indptr, major_codes, minor_codes, *n_groups)
    tables = run_spans(
        lambda lo, hi: _group_sums(*args, lo, hi), balanced_spans(indptr, n_threads), n_threads
    )
    return sum(tables[1:], start=tables[0]) if tables else np.zeros((*n_groups, 3), dtype=np.int64)


@numba.njit(nogil=True, cache=True)
def _group_sums(  # type: ignore[no-untyped-def]
    size, count, indices, indptr, major_codes, minor_codes, n_major, n_minor, lo, hi
):
    table = np.zeros((n_major, n_minor, 3), dtype=np.int64)
    for j in range(lo, hi):
        row = table[np.uintp(major_codes[j])]
        for p in range(np.uintp(indptr[j]), np.uintp(indptr[j + 1])):
            group = np.uintp(minor_codes[np.uintp(indices[p])])
            row[group, 0] += 1
            row[group, 1] += size[p]
            row[group, 2] += count[p]
    return table


Values = dict[str, np.ndarray]


def lazy_contract(
    blocks: Blocks,
    aligned: Delayed,
    n_columns: int,
    over: Literal["minor", "major"],
    want_rated: bool,
) -> tuple[da.Array, da.Array | None]:
    """Contract one variable with rows of values."""
    each = [(lo, hi, over, want_rated) for lo, hi in blocks.spans]
    mapped = blocks.map(_contract_block, aligned, each)
    if over == "minor":
        results = [
            mapped.along(0, (n_columns,), np.float64),
            mapped.along(1, (), np.float64) if want_rated else None,
        ]
    else:
        total = mapped.added(_add_contractions, 8 * blocks.n_minor * n_columns).then(_result)
        results = [
            total.whole(0, (blocks.n_minor, n_columns), np.float64),
            total.whole(1, (blocks.n_minor,), np.float64) if want_rated else None,
        ]
    sums, share = results
    assert sums is not None
    return sums, share


def _contract_block(
    pattern: Pattern,
    values: Values,
    aligned: Any,
    lo: int,
    hi: int,
    over: Literal["minor", "major"],
    want_rated: bool,
) -> Any:
    (weights,) = values.values()
    rows = aligned.rows if over == "minor" else aligned.rows[lo:hi]
    args = (weights, pattern.indices, pattern.indptr, pattern.n_minor, aligned.table, rows)
    part = contract_buffers(*args, over=over, want_rated=want_rated, threads=1)
    return part.result() if over == "minor" else part


def _add_contractions(parts: list[Contraction]) -> Contraction:
    sums = sum((p.sums for p in parts[1:]), start=parts[0].sums)
    if parts[0].tally is None or parts[0].partners is None:
        return Contraction(sums)
    tally = sum((p.tally for p in parts[1:] if p.tally is not None), start=parts[0].tally)
    partners = np.bitwise_or.reduce([p.partners for p in parts if p.partners is not None])
    return Contraction(sums, tally, partners)


def _result(contraction: Contraction) -> tuple[np.ndarray, np.ndarray | None]:
    # A copy, because the sums of a single block are also that block's own result.
    return contraction._replace(sums=contraction.sums.copy()).result()


def lazy_neurons(blocks: Blocks) -> tuple[da.Array, da.Array]:
    """Sum sizes and counts of every neuron, as `neuron_sums` does."""
    mapped = blocks.map(_neurons_block)
    minor = mapped.then(_second).added(_add_arrays).then(_alone)
    return (
        mapped.along(0, (len(PARTS),), np.int64),
        minor.whole(0, (blocks.n_minor, len(PARTS)), np.int64),
    )


def _neurons_block(
    pattern: Pattern, values: Values, shared: None, lo: int, hi: int
) -> tuple[np.ndarray, np.ndarray]:
    size, count = _whole_numbers(values)
    return neuron_sums(size, count, pattern.indices, pattern.indptr, pattern.n_minor, threads=1)


def _whole_numbers(values: Values) -> list[np.ndarray]:
    """Return sizes and counts; what a block holds need not be what its array promised."""
    for name in PARTS[1:]:
        if values[name].dtype.kind not in "iu":
            raise SchemaError(
                f"{name} is {values[name].dtype}, expected integers: keep other weights in a "
                "variable of their own"
            )
    return [values[name] for name in PARTS[1:]]


def _second(pair: tuple[Any, Any]) -> Any:
    return pair[1]


def _alone(array: np.ndarray) -> tuple[np.ndarray]:
    return (array,)


def _add_arrays(parts: list[np.ndarray]) -> np.ndarray:
    return sum(parts[1:], start=parts[0])


def lazy_groups(
    blocks: Blocks, major_codes: np.ndarray, minor_codes: np.ndarray, n_groups: tuple[int, int]
) -> da.Array:
    """Sum sizes and counts between groups of neurons, as `group_sums` does."""
    codes = delayed(np.ascontiguousarray(minor_codes, dtype=np.int32), pure=True)
    each = [(major_codes[lo:hi], n_groups) for lo, hi in blocks.spans]
    shape = (*n_groups, len(PARTS))
    total = blocks.map(_groups_block, codes, each).added(_add_arrays, 8 * math.prod(shape))
    return total.then(_alone).whole(0, shape, np.int64)


def _groups_block(
    pattern: Pattern,
    values: Values,
    minor_codes: np.ndarray,
    major_codes: np.ndarray,
    n_groups: tuple[int, int],
) -> np.ndarray:
    size, count = _whole_numbers(values)
    buffers = (size, count, pattern.indices, pattern.indptr)
    return group_sums(*buffers, major_codes, minor_codes, n_groups, threads=1)


def count_pairs(blocks: Blocks) -> Delayed:
    """Count the stored pairs of one variable."""
    return blocks.map(_count_block).added(_add_arrays).value()


def _count_block(pattern: Pattern, values: Values, shared: None, lo: int, hi: int) -> int:
    return pattern.nnz


def filter_blocks(blocks: Blocks, rule: Rule) -> dict[str, da.Array]:
    """Keep some neurons and pairs; blocks of which no neuron is left are never read."""
    shape = rule.shape(blocks.compressed)
    if not rule.majors.size:
        return blocks.nothing(shape)
    starts = np.array([lo for lo, _ in blocks.spans])
    block_of = np.searchsorted(starts, rule.majors, side="right") - 1
    edges = np.searchsorted(block_of, np.arange(len(starts) + 1))
    keep = [i for i in range(len(starts)) if edges[i + 1] > edges[i]]
    each, widths = [], []
    for i in keep:
        own = slice(int(edges[i]), int(edges[i + 1]))
        of_block = [None if a is None else a[own] for a in (rule.whole, rule.without)]
        each.append((rule.majors[own] - starts[i], *of_block))
        widths.append(own.stop - own.start)
    # The long arrays once, and of the rule for a block only what is its own.
    shared = delayed(rule._replace(majors=rule.majors[:0], whole=None, without=None), pure=True)
    return blocks.filtered(_filter_block, shared, each, keep, widths, shape)


def _filter_block(
    pattern: Pattern,
    values: Values,
    shared: Rule,
    majors: np.ndarray,
    whole: np.ndarray | None,
    without: np.ndarray | None,
) -> sparse.GCXS:
    (stored,) = values.values()
    rule = shared._replace(majors=majors, whole=whole, without=without)
    selection = select_pairs(pattern.indices, pattern.indptr, rule, threads=1)
    new = make_pattern(
        selection.indices, selection.indptr, rule.shape(pattern.compressed), pattern.compressed
    )
    return gcxs(stored[selection.source], new)
