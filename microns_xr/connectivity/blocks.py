"""Lazy connectivity: dask arrays whose chunks hold whole neurons, and functions over them.

A block holds all stored pairs of some neighbouring neurons of the compressed axis, as one GCXS
array per variable. Dask provides the threads, so kernels on blocks are single-threaded.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import sparse
import xarray as xr
from dask.array.dispatch import concatenate_lookup
from dask.base import is_dask_collection, tokenize
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
    wide,
)
from microns_xr.connectivity.kernels import Contraction, contract_buffers
from microns_xr.connectivity.labels import Lookup, require_known
from microns_xr.connectivity.pair_array import PairArray
from microns_xr.connectivity.reduce import Sums, group_sums, neuron_sums
from microns_xr.connectivity.sort import (
    Rule,
    Selection,
    check_sorted,
    have_pairs,
    renumber,
    select_pairs,
    take_values,
)
from microns_xr.errors import SchemaError
from microns_xr.threads import Span

BLOCK_PAIRS = 4_000_000  # stored pairs per block: 48 MB in memory with one variable
AXIS = {"pre": 0, "post": 1}
OTHER_SIDE: dict[Side, Side] = {"pre": "post", "post": "pre"}

Side = Literal["pre", "post"]
Values = dict[str, np.ndarray]
# One copy of the pairs on disk, `microns_xr.store.nodes.StoredPairs`. It is pickled into every
# task, so it holds the address of the data only.
PairSource = Any


def is_lazy(connectivity: xr.Dataset | xr.DataArray) -> bool:
    """Whether connectivity, or one of its arrays, is backed by dask."""
    if isinstance(connectivity, xr.DataArray):
        return is_dask_collection(connectivity.data)
    return any(
        is_dask_collection(v.data) for v in connectivity.variables.values() if v.dims == PAIR_DIMS
    )


def block_spans(indptr: np.ndarray, pairs: int | None = None) -> list[Span]:
    """Cut the compressed axis into spans of neighbouring neurons with about `pairs` pairs each."""
    most = BLOCK_PAIRS if pairs is None else pairs
    spans, start, n = [], 0, indptr.size - 1
    while start < n:
        stop = int(np.searchsorted(indptr, int(indptr[start]) + most, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        spans.append((start, stop))
        start = stop
    return spans or [(0, 0)]


# Making the arrays. One layer of the graph reads the pattern of each block, and one layer per
# variable its values: the pattern is read once, and only the values of the variables in use.


def lazy_pairs(source: PairSource, names: Sequence[str]) -> dict[str, da.Array]:
    """Make dask arrays over (pre, post) from a source, reading only its indptr."""
    indptr, compressed = source.indptr, source.compressed
    spans = block_spans(indptr)
    pairs = [(int(indptr[lo]), int(indptr[hi])) for lo, hi in spans]
    token = tokenize(source, spans)
    patterns = f"pattern-{token}"
    reads: dict[Any, Any] = {
        (patterns, i): (_read_pattern, source, *pairs[i], indptr[lo : hi + 1] - pairs[i][0])
        for i, (lo, hi) in enumerate(spans)
    }
    widths = tuple(hi - lo for lo, hi in spans)
    n_pre, n_post = source.shape
    chunks = ((n_pre,), widths) if compressed == "post" else (widths, (n_post,))
    arrays = {}
    for name in names:
        key = f"{name}-{token}"
        layer: dict[Any, Any] = {
            (key, *block_key(AXIS[compressed], i)): (
                _read_values, (patterns, i), source, name, *pairs[i],
            )
            for i in range(len(spans))
        }  # fmt: skip
        graph = HighLevelGraph({patterns: reads, key: layer}, {patterns: set(), key: {patterns}})
        meta = _no_pairs((0, 0), compressed, source.dtype(name))
        arrays[name] = da.Array(graph, key, chunks, meta=meta)
    return arrays


def _read_pattern(source: PairSource, start: int, stop: int, indptr: np.ndarray) -> Pattern:
    """Read the pattern of a block, and check that partners ascend, as the kernels require."""
    n_pre, n_post = source.shape
    shape = (n_pre, indptr.size - 1) if source.compressed == "post" else (indptr.size - 1, n_post)
    indices = source.read("indices", start, stop, threads=1)
    pattern = make_pattern(indices, indptr, shape, source.compressed)
    check_sorted(pattern.indices, pattern.indptr, pattern.n_minor, threads=1)
    return pattern


def _read_values(
    pattern: Pattern, source: PairSource, name: str, start: int, stop: int
) -> sparse.GCXS:
    values = np.empty(stop - start, dtype=source.dtype(name))
    return gcxs(source.read(name, start, stop, values, threads=1), pattern)


def _no_pairs(shape: tuple[int, int], compressed: Compressed, dtype: Any) -> sparse.GCXS:
    indptr = np.zeros(shape[AXIS[compressed]] + 1)
    return gcxs(np.zeros(0, dtype), make_pattern(np.zeros(0), indptr, shape, compressed))


def source_of(array: Any, name: str) -> PairSource | None:
    """Return the source of a dask array that `lazy_pairs` made for `name` and nothing modified."""
    if not isinstance(array, da.Array):
        return None
    task = dict(array.dask.layers.get(array.name, {})).get((array.name, 0, 0))
    if isinstance(task, tuple) and task[0] is _read_values and task[3] == name:
        return task[2]
    return None


def stored_source(arrays: Mapping[str, da.Array]) -> PairSource | None:
    """Return the common source of arrays that are unmodified since opening, else None."""
    sources = [source_of(array, name) for name, array in arrays.items()]
    same = all(source == sources[0] for source in sources)
    return sources[0] if sources and same else None


def block_key(axis: int, i: int) -> tuple[int, int]:
    """Return the chunk index of block `i` in an array that is cut along `axis`."""
    return (0, i) if axis == 1 else (i, 0)


@concatenate_lookup.register(sparse.GCXS)
def _concatenate(arrays: Sequence[sparse.GCXS], axis: int = 0, **_: Any) -> Any:
    """Concatenate blocks for dask, which supports only COO; buffers are joined without sorting."""
    parts: list[Any] = [PairArray.from_sparse(a) for a in arrays]
    return np.concatenate(parts, axis=axis)


# Splitting lazy connectivity into blocks, and calling functions on them.


@dataclass(frozen=True)
class Blocks:
    """Variables of a lazy connectivity Dataset, block by block."""

    compressed: Compressed  # the axis that is cut
    shape: tuple[int, int]  # (number of pre, number of post)
    spans: list[Span]  # neurons of each block
    arrays: dict[str, da.Array]

    @property
    def kinds(self) -> list[str]:
        """Kind of number of each variable: "i" or "f"."""
        return [array.dtype.kind for array in self.arrays.values()]

    @property
    def tables(self) -> list[tuple[int, int, type]]:
        """Position, number of columns and dtype of each table of `Sums`."""
        return [(0, 1 + self.kinds.count("i"), np.int64), (1, self.kinds.count("f"), np.float64)]

    @property
    def n_major(self) -> int:
        """Length of the compressed axis."""
        return self.shape[AXIS[self.compressed]]

    @property
    def n_minor(self) -> int:
        """Length of the other axis."""
        return self.shape[1 - AXIS[self.compressed]]


def blocks_of(
    connectivity: xr.Dataset, names: Sequence[str] | None = None, prefer: Compressed | None = None
) -> Blocks:
    """Return the dask arrays of a lazy Dataset as blocks, of the copy `prefer` if it can be."""
    names = pair_names(connectivity) if names is None else names
    arrays: dict[str, da.Array] = {name: connectivity[name].data for name in names}
    if in_memory := [name for name, array in arrays.items() if not isinstance(array, da.Array)]:
        raise SchemaError(
            f"{', '.join(in_memory)} is in memory while other variables are lazy: load all with "
            ".compute(), or open the store again with lazy=True"
        )
    first = next(iter(arrays.values()))
    if any(array.chunks != first.chunks for array in arrays.values()):
        raise SchemaError(
            f"the variables {names} have different chunks: do not rechunk only one of them"
        )
    # A single chunk does not show along which axis the arrays are cut.
    compressed: Compressed = "pre" if len(first.chunks[0]) > len(first.chunks[1]) else "post"
    if len(first.chunks[0]) == len(first.chunks[1]):
        axes = getattr(first._meta, "compressed_axes", (1,))
        compressed = "pre" if tuple(axes) == (0,) else "post"
    if len(first.chunks[1 - AXIS[compressed]]) != 1:
        raise SchemaError(
            f"the connectivity is cut along both axes ({first.numblocks} blocks), expected blocks "
            "of whole neurons: open the store again with lazy=True and do not rechunk it"
        )
    source = stored_source(arrays)
    if prefer not in (None, compressed) and source is not None and (other_copy := source.other()):
        arrays, compressed = lazy_pairs(other_copy, names), other_copy.compressed
        first = next(iter(arrays.values()))
    edges = np.concatenate([[0], np.cumsum(first.chunks[AXIS[compressed]])]).tolist()
    return Blocks(compressed, first.shape, list(pairwise(edges)), arrays)


def _mapped(blocks: Blocks, function: Callable[..., Any], shared: Any = None) -> list[Any]:
    """Call ``function(pattern, values, shared, lo, hi)`` for the neurons of every block, lazily."""
    # `shared` is stored once in the graph.
    if not isinstance(shared, Delayed):
        shared = delayed(shared, pure=True, traverse=False)
    arrays, axis = blocks.arrays, AXIS[blocks.compressed]
    keys = {name: array.name for name, array in arrays.items()}
    token = f"blocks-{tokenize(function, keys, shared.key)}"
    # One layer for all blocks: with a layer per block, long chains of selections are slow to build.
    layer: dict[Any, Any] = {}
    for i, (lo, hi) in enumerate(blocks.spans):
        parts = [(array.name, *block_key(axis, i)) for array in arrays.values()]
        call = (_on_block, function, list(arrays), blocks.compressed, shared.key, lo, hi)
        layer[f"{token}-{i}"] = (*call, *parts)
    needs: list[Any] = [*arrays.values(), shared]
    graph = HighLevelGraph.from_collections(token, layer, dependencies=needs)
    return [Delayed(key, graph, layer=token) for key in layer]


def _on_block(
    function: Callable[..., Any],
    names: list[str],
    compressed: Compressed,
    shared: Any,
    lo: int,
    hi: int,
    *arrays: Any,
) -> Any:
    pairs = [pattern_of_array(a, n, compressed) for n, a in zip(names, arrays, strict=True)]
    pattern = pairs[0][0]
    for name, (other, _) in zip(names[1:], pairs[1:], strict=True):
        if not pattern.same_pairs(other):
            raise SchemaError(
                f"{name} and {names[0]} store different pairs, expected one sparsity pattern: "
                "do not filter only one of them"
            )
    values = {name: stored for name, (_, stored) in zip(names, pairs, strict=True)}
    return function(pattern, values, shared, lo, hi)


_FAN = 8  # results that are held in memory and added up together
_LARGE = 1 << 25  # bytes of a result from which on only two are added up together


def _added(parts: list[Any], combine: Callable[..., Any], nbytes: int = 0) -> Any:
    """Add up results in a tree of fixed shape, so that sums are bit-identical on any scheduler."""
    fan = _FAN if nbytes < _LARGE else 2
    while len(parts) > 1:
        groups = [parts[i : i + fan] for i in range(0, len(parts), fan)]
        parts = [delayed(combine, pure=True)(*group) for group in groups]
    return parts[0]


def _add(*parts: Any) -> Any:
    return sum(parts[1:], start=parts[0])


def _along(
    parts: list[Any], item: int, spans: list[Span], shape: tuple[int, ...], dtype: Any
) -> da.Array:
    """Concatenate one item of the results of all blocks along the compressed axis."""
    name = f"item-{tokenize([part.key for part in parts], item)}"
    layer: dict[Any, Any] = {
        (name, i, *(0 for _ in shape)): (operator.getitem, part.key, item)
        for i, part in enumerate(parts)
    }
    graph = HighLevelGraph.from_collections(name, layer, dependencies=parts)
    widths = tuple(hi - lo for lo, hi in spans)
    return da.Array(graph, name, (widths, *((n,) for n in shape)), dtype=dtype)


# Selecting by position, on which the functions that select by label are built.


def positions_of(connectivity: xr.Dataset, side: Side, ids: Any) -> np.ndarray:
    """Return the positions of ids on an axis, or raise `UnknownLabelError`."""
    labels = as_ids(ids, f"{side}_ids")
    axis = f"{side}_nucleus_id"
    at = Lookup(connectivity[axis].values, axis).find(labels)
    hint = (
        "pass nucleus ids, not root ids; the axes hold only the neurons that were requested or, if "
        "the scope is 'unknown', that the table names (build it with pre= and post= for others)"
    )
    require_known(labels, at, f"{side}_ids", f"{axis} of the connectivity", hint)
    return at


def take_positions(
    connectivity: xr.Dataset, pre: np.ndarray | None = None, post: np.ndarray | None = None
) -> xr.Dataset:
    """Select ascending positions of either axis; None selects all."""
    shape, major = layout_of(connectivity)
    chosen = {"pre": pre, "post": post}
    if all(at is None or at.size == n for at, n in zip(chosen.values(), shape, strict=True)):
        return connectivity.copy()
    rest = connectivity.drop_vars(pair_names(connectivity)).isel(
        {f"{side}_nucleus_id": at for side, at in chosen.items() if at is not None}
    )
    minor = OTHER_SIDE[major]
    sizes = dict(zip(chosen, shape, strict=True))
    at = {side: np.arange(sizes[side]) if at is None else at for side, at in chosen.items()}
    new_minor = np.full(sizes[minor], -1, dtype=np.int32)
    new_minor[at[minor]] = np.arange(at[minor].size)
    return keep_pairs(connectivity, rest, Rule(at[major], new_minor, at[minor].size))


def drop_unconnected(connectivity: xr.Dataset, sides: Collection[Side]) -> xr.Dataset:
    """Drop the neurons of some sides that have no stored pair."""
    has = connected(connectivity)
    positions = {side: np.flatnonzero(has[side]) for side in sides if not has[side].all()}
    if is_lazy(connectivity) or not positions:
        return take_positions(connectivity, **positions)
    # All pairs are kept, so that only neurons are numbered again, not pairs selected.
    pattern, values = pair_buffers(connectivity)
    indices, indptr, major = pattern.indices, pattern.indptr, pattern.compressed
    if major in positions:
        indptr = np.append(indptr[positions[major]], indptr[-1])
    if (minor := OTHER_SIDE[major]) in positions:
        indices = renumber(indices, np.cumsum(has[minor], dtype=np.int32) - np.int32(1))
    at = {f"{side}_nucleus_id": of_side for side, of_side in positions.items()}
    rest = connectivity.drop_vars(list(values)).isel(at)
    n_pre, n_post = (rest.sizes[dim] for dim in PAIR_DIMS)
    new = make_pattern(indices, indptr, (n_pre, n_post), major)
    return _with_arrays(connectivity, rest, {n: gcxs(v, new) for n, v in values.items()})


def load_neurons(connectivity: xr.Dataset, side: Side, positions: np.ndarray) -> xr.Dataset:
    """Select ascending positions of one axis, in memory."""
    if is_lazy(connectivity):
        blocks = blocks_of(connectivity, prefer=side)
        source = stored_source(blocks.arrays)
        if source is not None and blocks.compressed == side:
            pattern, values = read_neurons(source, positions, list(blocks.arrays))
            rest = connectivity.drop_vars(list(values)).isel({f"{side}_nucleus_id": positions})
            arrays = {name: gcxs(stored, pattern) for name, stored in values.items()}
            return _with_arrays(connectivity, rest.compute(), arrays)
    return take_positions(connectivity, **{side: positions}).compute()


def read_neurons(
    source: PairSource, majors: np.ndarray, names: Sequence[str]
) -> tuple[Pattern, Values]:
    """Read all pairs of some neurons of the compressed axis, neighbouring neurons together."""
    indptr = source.indptr
    starts, stops = (indptr[majors + k].astype(np.int64) for k in (0, 1))
    new_indptr = np.concatenate([[0], np.cumsum(stops - starts)])
    out = {"indices": np.empty(int(new_indptr[-1]), dtype=np.int32)}
    out |= {name: np.empty(int(new_indptr[-1]), dtype=source.dtype(name)) for name in names}
    for lo, hi in _runs(starts, stops, source.chunk):
        first, last = int(starts[lo]), int(stops[hi - 1])
        target = slice(int(new_indptr[lo]), int(new_indptr[hi]))
        if (starts[lo + 1 : hi] == stops[lo : hi - 1]).all():
            for name, values in out.items():
                source.read(name, first, last, values[target])
            continue
        # Positions of the pairs of these neurons among the pairs that are read.
        shift = starts[lo:hi] - first - (new_indptr[lo:hi] - target.start)
        lengths = stops[lo:hi] - starts[lo:hi]
        at = np.repeat(shift, lengths) + np.arange(target.stop - target.start)
        for name, values in out.items():
            values[target] = source.read(name, first, last)[at]
    n_pre, n_post = source.shape
    shape = (n_pre, majors.size) if source.compressed == "post" else (majors.size, n_post)
    pattern = make_pattern(out.pop("indices"), new_indptr, shape, source.compressed)
    check_sorted(pattern.indices, pattern.indptr, pattern.n_minor)
    return pattern, out


def _runs(starts: np.ndarray, stops: np.ndarray, chunk: int) -> Iterator[Span]:
    """Group neurons whose spans are read at once."""
    lo = 0
    for hi in range(1, starts.size + 1):
        # A gap shorter than a chunk is read and discarded, since separate reads would decode the
        # chunk twice. A run is at most as long as a block, to bound memory.
        far = hi < starts.size and (
            starts[hi] - stops[hi - 1] >= chunk or stops[hi] - starts[lo] > BLOCK_PAIRS
        )
        if hi == starts.size or far:
            if stops[hi - 1] > starts[lo]:
                yield lo, hi
            lo = hi


def layout_of(connectivity: xr.Dataset) -> tuple[tuple[int, int], Side]:
    """Return the shape and the compressed axis of a connectivity Dataset, lazy or not."""
    lazy = is_lazy(connectivity)
    names = pair_names(connectivity)[:1]
    pairs = blocks_of(connectivity, names) if lazy else pattern_of(connectivity)
    return pairs.shape, pairs.compressed


def keep_pairs(connectivity: xr.Dataset, rest: xr.Dataset, rule: Rule) -> xr.Dataset:
    """Select neurons and pairs by a rule, on the axes of `rest`; lazy connectivity stays lazy."""
    if is_lazy(connectivity):
        return _with_arrays(connectivity, rest, _filtered(blocks_of(connectivity), rule))
    pattern, values = pair_buffers(connectivity)
    selection = select_pairs(pattern.indices, pattern.indptr, rule)
    shape = rule.shape(pattern.compressed)
    return with_pairs(connectivity, rest, pattern, values, selection, shape)


def with_pairs(
    connectivity: xr.Dataset,
    rest: xr.Dataset,
    pattern: Pattern,
    values: Values,
    selection: Selection,
    shape: tuple[int, int],
) -> xr.Dataset:
    """Return selected pairs on the axes of `rest`, variables in the order of `connectivity`."""
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


def _filtered(blocks: Blocks, rule: Rule) -> dict[str, da.Array]:
    """Select neurons and pairs; blocks without a selected neuron are not read."""
    shared = delayed(rule, pure=True, traverse=False)
    compressed, result = blocks.compressed, {}
    for name, array in blocks.arrays.items():
        meta = _no_pairs((0, 0), compressed, array.dtype)
        one = Blocks(compressed, blocks.shape, blocks.spans, {name: array})
        parts = []
        for part, (lo, hi) in zip(_mapped(one, _filter_block, shared), one.spans, strict=True):
            shape = _rule_of_block(rule, lo, hi).shape(compressed)
            if shape[AXIS[compressed]]:
                parts.append(da.from_delayed(part, shape, meta=meta))
        if not parts:
            shape = rule.shape(compressed)
            nothing = delayed(_no_pairs, pure=True)(shape, compressed, array.dtype)
            parts = [da.from_delayed(nothing, shape, meta=meta)]
        result[name] = da.concatenate(parts, axis=AXIS[compressed])
    return result


def _rule_of_block(rule: Rule, lo: int, hi: int) -> Rule:
    part = slice(*np.searchsorted(rule.majors, [lo, hi]))
    whole, without = (None if a is None else a[part] for a in (rule.whole, rule.without))
    return rule._replace(majors=rule.majors[part] - lo, whole=whole, without=without)


def _filter_block(pattern: Pattern, values: Values, rule: Rule, lo: int, hi: int) -> sparse.GCXS:
    (stored,) = values.values()
    rule = _rule_of_block(rule, lo, hi)
    new = select_pairs(pattern.indices, pattern.indptr, rule, threads=1)
    shape = rule.shape(pattern.compressed)
    return gcxs(
        stored[new.source], make_pattern(new.indices, new.indptr, shape, pattern.compressed)
    )


def sums_by_neuron(connectivity: xr.Dataset) -> dict[Side, dict[str, Any]]:
    """Return ``n_connections`` and the sum of each weight per neuron, lazy if the pairs are."""
    if is_lazy(connectivity):
        blocks = blocks_of(connectivity)
        compressed, names, kinds = blocks.compressed, list(blocks.arrays), blocks.kinds
        major, minor = lazy_neurons(blocks)
    else:
        pattern, values = pair_buffers(connectivity)
        compressed, names = pattern.compressed, list(values)
        kinds = [v.dtype.kind for v in values.values()]
        buffers = (pattern.indices, pattern.indptr, pattern.n_minor)
        major, minor = neuron_sums(list(values.values()), *buffers)
    sides = (compressed, OTHER_SIDE[compressed])
    return {s: sums.by_name(names, kinds) for s, sums in zip(sides, (major, minor), strict=True)}


def sums_by_group(
    connectivity: xr.Dataset, codes: Mapping[Side, np.ndarray], n_groups: Mapping[Side, int]
) -> dict[str, Any]:
    """Return ``n_connections`` and the sum of each weight, (pre groups, post groups)."""
    _, major = layout_of(connectivity)
    minor = OTHER_SIDE[major]
    of_each = (codes[major], codes[minor], (n_groups[major], n_groups[minor]))
    if is_lazy(connectivity):
        blocks = blocks_of(connectivity)
        names, kinds, sums = list(blocks.arrays), blocks.kinds, lazy_groups(blocks, *of_each)
    else:
        pattern, values = pair_buffers(connectivity)
        names, kinds = list(values), [v.dtype.kind for v in values.values()]
        sums = group_sums(list(values.values()), pattern.indices, pattern.indptr, *of_each)
    if major == "post":
        sums = Sums(*(table.transpose(1, 0, 2) for table in sums))
    return sums.by_name(names, kinds)


# The same sums of lazy connectivity, and its contraction.


def lazy_contract(
    blocks: Blocks,
    aligned: Delayed,
    n_columns: int,
    over: Literal["minor", "major"],
    want_rated: bool,
    scope_known: bool,
) -> tuple[da.Array, da.Array | None]:
    """Contract one variable with rows of values; return the sums and the share with a value."""
    block = partial(_contract_block, over=over, want_rated=want_rated, scope_known=scope_known)
    parts = _mapped(blocks, block, aligned)
    if over == "minor":
        sums = _along(parts, 0, blocks.spans, (n_columns,), np.float64)
        return sums, _along(parts, 1, blocks.spans, (), np.float64) if want_rated else None
    # Each block contributes to every sum.
    total = _added(parts, _add_contractions, 8 * blocks.n_minor * n_columns)
    result: Any = delayed(_result, pure=True)(total, scope_known)
    sums = da.from_delayed(result[0], (blocks.n_minor, n_columns), np.float64)
    share = da.from_delayed(result[1], (blocks.n_minor,), np.float64) if want_rated else None
    return sums, share


def _contract_block(
    pattern: Pattern,
    values: Values,
    aligned: Any,
    lo: int,
    hi: int,
    *,
    over: Literal["minor", "major"],
    want_rated: bool,
    scope_known: bool,
) -> Any:
    (weights,) = values.values()
    rows = aligned.rows if over == "minor" else aligned.rows.part(lo, hi)
    args = (weights, pattern.indices, pattern.indptr, pattern.n_minor, rows)
    part = contract_buffers(*args, over=over, want_rated=want_rated, threads=1)
    return part.result(scope_known) if over == "minor" else part


def _add_contractions(*parts: Any) -> Contraction:
    sums = _add(*(part.sums for part in parts))
    if parts[0].tally is None:
        return Contraction(sums)
    partners = np.bitwise_or.reduce([part.partners for part in parts])
    return Contraction(sums, partners, tally=_add(*(part.tally for part in parts)))


def _result(contraction: Contraction, scope_known: bool) -> tuple[np.ndarray, np.ndarray | None]:
    # A copy, because the sums of a single block are also the cached result of that block.
    return contraction._replace(sums=contraction.sums.copy()).result(scope_known)


def lazy_neurons(blocks: Blocks) -> tuple[Sums, Sums]:
    """Sum the pairs of every neuron, as `neuron_sums` does."""
    parts = _mapped(blocks, _neurons_block, blocks.kinds)
    majors = [_along(parts, i, blocks.spans, (n,), t) for i, n, t in blocks.tables]
    minors = [
        da.from_delayed(_added([part[2 + i] for part in parts], _add), (blocks.n_minor, n), t)
        for i, n, t in blocks.tables
    ]
    return Sums(*majors), Sums(*minors)


def _neurons_block(
    pattern: Pattern, values: Values, kinds: list[str], lo: int, hi: int
) -> tuple[np.ndarray, ...]:
    buffers = (_numbers(values, kinds), pattern.indices, pattern.indptr)
    major, minor = neuron_sums(*buffers, pattern.n_minor, threads=1)
    return *major, *minor


def _numbers(values: Values, kinds: list[str]) -> list[np.ndarray]:
    """Return weights; the dtype of a block may differ from that of its dask array."""
    for (name, stored), kind in zip(values.items(), kinds, strict=True):
        if stored.dtype.kind != kind:
            raise SchemaError(
                f"{name} is {stored.dtype}, expected {_KINDS[kind]} as its dask array states: pass "
                "dtype= where it was computed"
            )
    return [wide(stored, name) for name, stored in values.items()]


_KINDS = {"i": "integers", "f": "floats"}


def lazy_groups(
    blocks: Blocks, major_codes: np.ndarray, minor_codes: np.ndarray, n_groups: tuple[int, int]
) -> Sums:
    """Sum the pairs between groups of neurons, as `group_sums` does."""
    parts = _mapped(blocks, _groups_block, (blocks.kinds, major_codes, minor_codes, n_groups))
    tables = []
    for i, n, dtype in blocks.tables:
        shape = (*n_groups, n)
        total = _added([part[i] for part in parts], _add, 8 * math.prod(shape))
        tables.append(da.from_delayed(total, shape, dtype))
    return Sums(*tables)


def _groups_block(
    pattern: Pattern, values: Values, shared: tuple[Any, ...], lo: int, hi: int
) -> Sums:
    kinds, major_codes, minor_codes, n_groups = shared
    buffers = (_numbers(values, kinds), pattern.indices, pattern.indptr)
    return group_sums(*buffers, major_codes[lo:hi], minor_codes, n_groups, threads=1)


def connected(connectivity: xr.Dataset) -> dict[Side, np.ndarray]:
    """Return by side whether each neuron has a stored pair; lazy connectivity is computed."""
    if not is_lazy(connectivity):
        pattern = pattern_of(connectivity)
        minor = have_pairs(pattern.indices, pattern.n_minor)
        other_side = OTHER_SIDE[pattern.compressed]
        return {pattern.compressed: np.diff(pattern.indptr) > 0, other_side: minor}
    one = connectivity[pair_names(connectivity)[:1]]
    source = stored_source(blocks_of(one).arrays)
    if source is not None and (other := source.other()) is not None:
        return {copy.compressed: np.diff(copy.indptr) > 0 for copy in (source, other)}
    n = {side: sums["n_connections"] for side, sums in sums_by_neuron(one).items()}
    return {side: of_side > 0 for side, of_side in dask.compute(n)[0].items()}
