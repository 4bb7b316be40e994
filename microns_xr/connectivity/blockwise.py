"""Functions over the blocks of lazy connectivity, and their results put together.

Where a result is a sum over the compressed axis the parts of all blocks are added up along a tree
of fixed shape, so that every scheduler gives the same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import sparse
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    gcxs,
    make_pattern,
    pair_names,
    pattern_of_array,
)
from microns_xr.connectivity.blocks import (
    AXIS,
    PairSource,
    block_key,
    lazy_pairs,
    source_of,
    sparse_array,
)
from microns_xr.errors import SchemaError
from microns_xr.threads import Span

__all__ = ["Blocks", "Mapped", "blocks_of", "stored_source"]

_FAN = 8  # parts that are added up at once; they are all held then
_LARGE = 1 << 25  # bytes of a part from which on only two are


@dataclass(frozen=True)
class Blocks:
    """Variables of a lazy connectivity Dataset, block by block.

    Attributes
    ----------
    compressed : {"post", "pre"}
        The axis that is cut.
    shape : tuple of int
        Numbers of pre and of post.
    spans : list of tuple of int
        Neurons of each block.
    arrays : dict of str to dask.array.Array
        The variables.
    """

    compressed: Compressed
    shape: tuple[int, int]
    spans: list[Span]
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
        """Call ``function(pattern, values, shared, *each[i])`` on block i, lazily.

        Parameters
        ----------
        function : callable
            Of module level. `pattern` is a `Pattern` of the block, `values` its stored values by
            name.
        shared : Delayed, optional
            One argument that all blocks have.
        each : sequence of tuple, optional
            Further arguments of each block; by default its span, as two numbers.
        """
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
        """Map each variable by itself to a new sparse array of other neurons.

        Parameters
        ----------
        function : callable
            As for `map`, with one variable in `values`; returns a GCXS.
        shared, each
            As for `map`; `each` of the blocks in `keep`.
        keep : sequence of int
            Blocks that have neurons left, at least one.
        widths : sequence of int
            Neurons each of them has left.
        shape : tuple of int
            Of the new arrays.
        """
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
    """Results of a function on every block, or one of all blocks, not yet computed.

    Attributes
    ----------
    graph : dask.highlevelgraph.HighLevelGraph
        How to get them.
    name : str
        Name of the last layer.
    keys : list
        One of each block, or a single one.
    blocks : Blocks
        What they come from.
    """

    graph: HighLevelGraph
    name: str
    keys: list[Any]
    blocks: Blocks

    def then(self, function: Callable[[Any], Any]) -> Mapped:
        """Call a function on every result."""
        name = f"{_word(function)}-{self.name}"
        keys: list[Any] = [(name, i) for i in range(len(self.keys))]
        layer = {new: (function, old) for new, old in zip(keys, self.keys, strict=True)}
        return Mapped(self._over(name, layer), name, keys, self.blocks)

    def added(self, combine: Callable[[list[Any]], Any], nbytes: int = 0) -> Mapped:
        """Combine the results of all blocks, a few at a time, into one.

        Parameters
        ----------
        combine : callable
            Of module level; takes a list of results.
        nbytes : int, optional
            Of one result; of large ones few are held at a time.
        """
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
        """Put item `item` of every result together along the compressed axis.

        Parameters
        ----------
        item : int
            Which of the arrays that the function returned.
        shape : tuple of int
            Its shape but for the first axis, which is that of the neurons of the block.
        dtype : dtype-like
            Its dtype.
        """
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
    """Take the dask arrays out of a lazy connectivity Dataset.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    names : sequence of str, optional
        Variables; by default all over both axes.
    prefer : {"post", "pre"}, optional
        The axis they had better be cut along. Where the pairs are still as they were opened, and
        the store has the copy, that one is taken instead.

    Raises
    ------
    SchemaError
        If a variable is not lazy, dims are in another order, or the chunks are not those of whole
        neurons, the same for every variable.
    """
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
