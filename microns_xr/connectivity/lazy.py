"""Operations on lazy connectivity: what the kernels do with one block, mapped over all of them.

Nothing here computes. Threads belong to dask, so every kernel runs on one.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import dask.array as da
import numpy as np
import sparse
from dask.delayed import Delayed, delayed

from microns_xr.connectivity.arrays import Compressed, Pattern, gcxs, make_pattern
from microns_xr.connectivity.blockwise import Blocks
from microns_xr.connectivity.kernels import Contraction, contract_buffers, contract_scipy
from microns_xr.connectivity.patterns import select_pairs
from microns_xr.connectivity.reductions import PARTS, group_sums, neuron_sums
from microns_xr.errors import SchemaError

__all__ = ["Rule", "count_pairs", "filter_blocks", "lazy_contract", "lazy_groups", "lazy_neurons"]

Values = dict[str, np.ndarray]


def lazy_contract(
    blocks: Blocks,
    aligned: Delayed,
    n_columns: int,
    over: Literal["minor", "major"],
    want_rated: bool,
    engine: str,
) -> tuple[da.Array, da.Array | None]:
    """Contract one variable with rows of values.

    Parameters
    ----------
    blocks : Blocks
        One variable.
    aligned : Delayed
        Of an `Aligned`.
    n_columns : int
        Columns of its table.
    over : {"minor", "major"}
        The axis that is summed over. Over the minor one a block gives the sums of its neurons;
        over the major one every block gives a part of every sum, and the parts are added up.
    want_rated : bool
        Whether to return the share of the weight that the sums rest on.
    engine : {"numba", "scipy"}
        What multiplies.

    Returns
    -------
    tuple of (dask.array.Array, dask.array.Array or None)
        (neurons, columns) and (neurons,), float64.
    """
    each = [(lo, hi, over, want_rated, engine) for lo, hi in blocks.spans]
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
    engine: str,
) -> Any:
    (weights,) = values.values()
    rows = aligned.rows if over == "minor" else aligned.rows[lo:hi]
    args = (weights, pattern.indices, pattern.indptr, pattern.n_minor, aligned.table, rows)
    if engine == "scipy":
        part = contract_scipy(*args, over=over, want_rated=want_rated)
    else:
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
    """Sum sizes and counts of every neuron, as `neuron_sums` does.

    Parameters
    ----------
    blocks : Blocks
        ``synapse_size`` and ``synapse_count``.

    Returns
    -------
    tuple of dask.array.Array
        (major neurons, 3) and (minor neurons, 3), int64.
    """
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
    """Sum sizes and counts between groups of neurons, as `group_sums` does.

    Parameters
    ----------
    blocks : Blocks
        ``synapse_size`` and ``synapse_count``.
    major_codes, minor_codes : numpy.ndarray
        Group of each neuron.
    n_groups : tuple of int
        Number of groups of the major and of the minor axis.

    Returns
    -------
    dask.array.Array
        (major groups, minor groups, 3), int64.
    """
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


class Rule(NamedTuple):
    """Which neurons and pairs are kept; see `microns_xr.connectivity.patterns.select_pairs`.

    Attributes
    ----------
    majors : numpy.ndarray
        Ascending positions of the major neurons to keep.
    new_minor : numpy.ndarray
        (minor neurons,), int32: the new position of each, -1 where it is left out.
    n_minor : int
        Number of minor neurons that are left.
    kept, whole, without : numpy.ndarray or None
        As for `select_pairs`; `whole` and `without` for each of `majors`.
    """

    majors: np.ndarray
    new_minor: np.ndarray
    n_minor: int
    kept: np.ndarray | None = None
    whole: np.ndarray | None = None
    without: np.ndarray | None = None

    def shape(self, compressed: Compressed) -> tuple[int, int]:
        """Numbers of pre and of post that are left."""
        n_major = int(self.majors.size)
        return (self.n_minor, n_major) if compressed == "post" else (n_major, self.n_minor)


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
    rule = shared._replace(majors=majors)
    selection = select_pairs(
        pattern.indices,
        pattern.indptr,
        majors,
        rule.new_minor,
        kept=rule.kept,
        whole=whole,
        without=without,
        threads=1,
    )
    new = make_pattern(
        selection.indices, selection.indptr, rule.shape(pattern.compressed), pattern.compressed
    )
    return gcxs(stored[selection.source], new)
