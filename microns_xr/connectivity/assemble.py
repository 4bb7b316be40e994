"""From unsorted rows (post, pre, size) to a compressed matrix: sort and sum, in integers.

Three counting sorts: rows into blocks of neighbouring major neurons, small enough that the rest
happens in the cache; each block by minor and then by major neuron; then equal pairs are added up.
Blocks are independent, so they run on threads, and every step keeps the order of equal rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np

from microns_xr.threads import equal_spans, run_spans, usable_threads

__all__ = ["Assembled", "assemble"]

_ROWS_A_BLOCK = 1 << 15


@dataclass(frozen=True)
class Assembled:
    """A compressed matrix: pattern, summed size and number of synapses of each pair."""

    indices: np.ndarray
    indptr: np.ndarray
    size: np.ndarray
    count: np.ndarray


def assemble(
    major: np.ndarray,
    minor: np.ndarray,
    size: np.ndarray,
    count: np.ndarray | None,
    n_major: int,
    n_minor: int,
    threads: int | None = None,
) -> Assembled:
    """Sort rows into a matrix compressed over the major axis, adding up rows of the same pair.

    Parameters
    ----------
    major, minor : numpy.ndarray
        (rows,), int32 positions; a row with a negative one is left out.
    size : numpy.ndarray
        (rows,), int64. That no sum overflows is for the caller to see to.
    count : numpy.ndarray or None
        (rows,), int64 synapses of each row; None is one.
    n_major, n_minor : int
        Lengths of the axes.
    threads : int, optional
        See `usable_threads`; the result does not depend on it.

    Returns
    -------
    Assembled
        int32 indices ascending within a span, int64 indptr, int64 size and count.

    Examples
    --------
    >>> matrix = assemble(np.array([0, 0, 0], np.int32), np.array([1, 0, 1], np.int32),
    ...     np.array([5, 6, 7]), None, 1, 2)
    >>> matrix.indices, matrix.size, matrix.count
    (array([0, 1], dtype=int32), array([ 6, 12]), array([1, 2]))
    """
    n_threads = usable_threads(threads, major.size)
    row_spans = equal_spans(major.size, n_threads)
    per_major = np.zeros(n_major, dtype=np.int64)
    for part in run_spans(
        lambda lo, hi: _count_rows(major, minor, n_major, lo, hi), row_spans, n_threads
    ):
        per_major += part
    starts = np.concatenate([[0], np.cumsum(per_major)])
    # A block begins where the running number of rows passes a multiple of the block's length.
    edges = np.searchsorted(starts[:-1], np.arange(0, starts[-1], _ROWS_A_BLOCK))
    edges = np.unique(np.concatenate([[0], edges, [n_major]]))
    blocks = list(pairwise(edges.tolist()))

    rows = _buffers(int(starts[-1]))
    counted = np.empty(0, dtype=np.int64) if count is None else count
    block_of = np.repeat(np.arange(len(blocks), dtype=np.int32), np.diff(edges))
    in_span = run_spans(
        lambda lo, hi: _count_blocks(major, minor, block_of, len(blocks), lo, hi),
        row_spans,
        n_threads,
    )
    free = starts[edges[:-1]].copy()
    free_of: dict[int, np.ndarray] = {}  # where each span of rows writes, so that order is kept
    for (first, _), rows_a_block in zip(row_spans, in_span, strict=True):
        free_of[first] = free.copy()
        free += rows_a_block
    run_spans(
        lambda lo, hi: _deal(
            major, minor, size, counted, block_of, free_of[lo], *rows, counted.size > 0, lo, hi
        ),
        row_spans,
        n_threads,
    )

    pairs = np.zeros(n_major, dtype=np.int64)
    run_spans(
        lambda lo, hi: _merge(
            *rows, counted.size > 0, starts[lo], starts[hi], lo, hi, n_minor, pairs
        ),
        blocks,
        n_threads,
    )
    indptr = np.concatenate([[0], np.cumsum(pairs)])
    out = _buffers(int(indptr[-1]))[1:]

    def compact(lo: int, hi: int) -> None:
        old = slice(starts[lo], starts[lo] + indptr[hi] - indptr[lo])
        for new, merged in zip(out, rows[1:], strict=True):
            new[indptr[lo] : indptr[hi]] = merged[old]

    run_spans(compact, blocks, n_threads)
    return Assembled(out[0], indptr, out[1], out[2])


def _buffers(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Major, minor, size and count of `n` rows."""
    return (
        np.empty(n, dtype=np.int32),
        np.empty(n, dtype=np.int32),
        np.empty(n, dtype=np.int64),
        np.empty(n, dtype=np.int64),
    )


@numba.njit(nogil=True, cache=True)
def _count_rows(major, minor, n_major, lo, hi):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_major, dtype=np.int64)
    for r in range(lo, hi):
        if major[r] >= 0 and minor[r] >= 0:
            counts[major[r]] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _count_blocks(major, minor, block_of, n_blocks, lo, hi):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_blocks, dtype=np.int64)
    for r in range(lo, hi):
        if major[r] >= 0 and minor[r] >= 0:
            counts[block_of[major[r]]] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _deal(  # type: ignore[no-untyped-def]
    major, minor, size, counted, block_of, free,
    to_major, to_minor, to_size, to_count, has_count, lo, hi,
):  # fmt: skip
    for r in range(lo, hi):
        if major[r] >= 0 and minor[r] >= 0:
            block = block_of[major[r]]
            to = free[block]
            free[block] = to + 1
            to_major[to] = major[r]
            to_minor[to] = minor[r]
            to_size[to] = size[r]
            if has_count:
                to_count[to] = counted[r]


@numba.njit(nogil=True, cache=True)
def _stable_order(keys, before, first_key, n_keys):  # type: ignore[no-untyped-def]
    # Positions into keys by ascending key; equal keys stay in the order of `before`.
    free = np.zeros(n_keys + 1, dtype=np.int64)
    for r in range(keys.size):
        free[keys[r] - first_key + 1] += 1
    for k in range(n_keys):
        free[k + 1] += free[k]
    order = np.empty(keys.size, dtype=np.int32)
    for r in before:
        to = free[keys[r] - first_key]
        order[to] = r
        free[keys[r] - first_key] = to + 1
    return order


@numba.njit(nogil=True, cache=True)
def _merge(  # type: ignore[no-untyped-def]
    major, minor, size, count, has_count, start, stop, lo, hi, n_minor, pairs
):
    # Sorts the rows of one block by pair, adds up those of a pair, and writes the sums over the
    # beginning of the block.
    majors, minors = major[start:stop], minor[start:stop]
    order = _stable_order(minors, np.arange(stop - start), 0, n_minor)
    order = _stable_order(majors, order, lo, hi - lo)
    pair_minor = np.empty(order.size, dtype=np.int32)
    pair_size = np.empty(order.size, dtype=np.int64)
    pair_count = np.empty(order.size, dtype=np.int64)
    n = 0
    before = -1
    for r in order:
        synapses = count[start + r] if has_count else 1
        if n > 0 and majors[r] == before and minors[r] == pair_minor[n - 1]:
            pair_size[n - 1] += size[start + r]
            pair_count[n - 1] += synapses
        else:
            pair_minor[n] = minors[r]
            pair_size[n] = size[start + r]
            pair_count[n] = synapses
            pairs[majors[r]] += 1
            n += 1
        before = majors[r]
    minor[start : start + n] = pair_minor[:n]
    size[start : start + n] = pair_size[:n]
    count[start : start + n] = pair_count[:n]
