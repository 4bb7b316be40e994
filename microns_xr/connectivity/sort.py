"""Sparsity patterns on raw buffers: check, select, transpose, sort and sum.

As in `kernels`, a pattern is compressed over its *major* axis; ``indices`` are positions on the
*minor* axis, ascending and unique within the span of a major neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numba
import numpy as np

from microns_xr.errors import SchemaError
from microns_xr.threads import balanced_spans, equal_spans, run_spans, usable_threads


class Selection(NamedTuple):
    """New index buffers, and the old position of each new pair, to reorder values with."""

    indices: np.ndarray
    indptr: np.ndarray
    source: np.ndarray


def check_sorted(
    indices: np.ndarray, indptr: np.ndarray, n_minor: int, threads: int | None = None
) -> None:
    """Raise unless the pairs of every neuron are ascending and unique, and within the axis."""
    descends = (indptr[1:] < indptr[:-1]).any()
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != indices.size or descends:
        raise SchemaError(
            f"indptr does not cut the {indices.size} stored pairs into spans: expected ascending "
            f"numbers from 0 to {indices.size}"
        )
    n_threads = usable_threads(threads, indices.size)

    def work(lo: int, hi: int) -> int:
        return int(_first_unsorted(indices, indptr, n_minor, lo, hi))

    for bad in run_spans(work, balanced_spans(indptr, 4 * n_threads), n_threads):
        if bad >= 0:
            raise SchemaError(
                f"the pairs of neuron number {bad} are repeated, out of order or outside the "
                "other axis: build the connectivity again with mx.build_connectivity"
            )


@numba.njit(nogil=True, cache=True)
def _first_unsorted(indices, indptr, n_minor, lo, hi):  # type: ignore[no-untyped-def]
    one = np.uintp(1)
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        # Without leaving the loop at the first fall, LLVM compares several pairs at once.
        n_falls = np.int32(0)
        for p in range(start + one, stop):
            n_falls += np.int32(indices[p] <= indices[p - one])
        if stop > start and (n_falls or indices[start] < 0 or indices[stop - one] >= n_minor):
            return j
    return -1


def have_pairs(indices: np.ndarray, n_minor: int, threads: int | None = None) -> np.ndarray:
    """Return whether each minor neuron has a pair."""
    marks = np.zeros(n_minor, dtype=bool)
    n_threads = usable_threads(threads, indices.size)
    spans = equal_spans(indices.size, n_threads)
    run_spans(lambda lo, hi: _mark(indices, marks, lo, hi), spans, n_threads)
    return marks


@numba.njit(nogil=True, cache=True)
def _mark(indices, marks, lo, hi):  # type: ignore[no-untyped-def]
    for p in range(np.uintp(lo), np.uintp(hi)):
        i = np.uintp(indices[p])
        # Few writes, since threads wait for each other's.
        if i < np.uintp(marks.size) and not marks[i]:
            marks[i] = True


def renumber(indices: np.ndarray, new_minor: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Return ``new_minor[indices]``, int32, computed on several threads."""
    # numpy would convert the indices to int64 first, which takes several times as long.
    out = np.empty(indices.size, dtype=np.int32)
    n_threads = usable_threads(threads, indices.size)
    spans = equal_spans(indices.size, 4 * n_threads)
    run_spans(lambda lo, hi: _renumber(indices, new_minor, out, lo, hi), spans, n_threads)
    return out


@numba.njit(nogil=True, cache=True)
def _renumber(indices, new_minor, out, lo, hi):  # type: ignore[no-untyped-def]
    for p in range(np.uintp(lo), np.uintp(hi)):
        out[p] = new_minor[np.uintp(indices[p])]


class Rule(NamedTuple):
    """The neurons to select, and which of their pairs."""

    majors: np.ndarray  # positions of the selected major neurons, in their new order
    # (minor neurons,), int32: the new position of each, -1 if it is not selected
    new_minor: np.ndarray
    n_minor: int  # number of selected minor neurons
    # (minor neurons,), bool: whether their pairs are selected; by default if they are
    partners: np.ndarray | None = None
    # per neuron of `majors`: whether to select all its pairs, and a partner to exclude (or -1)
    whole: np.ndarray | None = None
    without: np.ndarray | None = None

    def shape(self, compressed: Literal["pre", "post"]) -> tuple[int, int]:
        """Return the numbers of selected pre and post neurons."""
        n_major = int(self.majors.size)
        return (self.n_minor, n_major) if compressed == "post" else (n_major, self.n_minor)


def select_pairs(
    indices: np.ndarray, indptr: np.ndarray, rule: Rule, threads: int | None = None
) -> Selection:
    """Select neurons and pairs by a rule."""
    majors, new_minor, n_new = rule.majors, rule.new_minor, rule.majors.size
    partners = new_minor >= 0 if rule.partners is None else rule.partners
    whole = np.zeros(n_new, dtype=bool) if rule.whole is None else rule.whole
    if partners.all():
        whole = np.ones(n_new, dtype=bool)
    without = np.full(n_new, -1, dtype=np.int64) if rule.without is None else rule.without
    # Spans are balanced by the pairs to read; the number selected is known only afterwards.
    read = np.concatenate([[0], np.cumsum(np.diff(indptr)[majors], dtype=np.int64)])
    n_threads = usable_threads(threads, int(read[-1]))
    spans = balanced_spans(read, 8 * n_threads)
    counts = np.zeros(n_new, dtype=np.int64)
    buffers = (indices, indptr, majors, partners, whole, without, new_minor, counts)
    pieces = run_spans(
        lambda lo, hi: _keep(*buffers, read[hi] - read[lo], lo, hi), spans, n_threads
    )
    if not all(in_order for _, _, in_order in pieces):
        raise SchemaError(
            "the stored pairs of a neuron are not in ascending order: build the connectivity again "
            "with mx.build_connectivity"
        )
    new_indptr = np.zeros(n_new + 1, dtype=indptr.dtype)
    np.cumsum(counts, out=new_indptr[1:])
    nothing = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=indptr.dtype), True
    minors, sources, _ = zip(nothing, *pieces, strict=True)
    return Selection(np.concatenate(minors), new_indptr, np.concatenate(sources))


@numba.njit(nogil=True, cache=True)
def _keep(  # type: ignore[no-untyped-def]
    indices, indptr, majors, partners, whole, without, new_minor, counts, n_read, lo, hi
):
    # Large enough for all pairs that are read, and one more that is written and not counted;
    # untouched memory is never allocated.
    minor = np.empty(n_read + 1, dtype=np.int32)
    source = np.empty(n_read + 1, dtype=indptr.dtype)
    n = np.uintp(0)
    in_order = True
    m = lo
    while m < hi:
        # One loop over the pairs of neighbouring neurons, and no branch in it: it would be
        # mispredicted at the end of most neurons, and for many pairs.
        every, other = whole[m], without[m]
        end = m + 1
        while (
            end < hi
            and majors[end] == majors[end - 1] + 1
            and whole[end] == every
            and without[end] == other
        ):
            end += 1
        q = n
        for p in range(np.uintp(indptr[majors[m]]), np.uintp(indptr[majors[end - 1] + 1])):
            i = np.uintp(indices[p])
            minor[n] = new_minor[i]
            source[n] = p
            n += np.uintp((every | partners[i]) & (np.int64(i) != other))
        for k in range(m, end):
            first = q
            before = np.int32(-1)
            stop = indptr[majors[k] + 1]
            while q < n and source[q] < stop:
                in_order &= minor[q] > before
                before = minor[q]
                q += np.uintp(1)
            counts[k] = q - first
        m = end
    return minor[:n], source[:n], in_order


def take_values(values: np.ndarray, source: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Return ``values[source]``, computed on several threads."""
    out = np.empty(source.size, dtype=values.dtype)
    n_threads = usable_threads(threads, source.size)

    def take(lo: int, hi: int) -> None:
        np.take(
            values, source[lo:hi], out=out[lo:hi], mode="clip"
        )  # mode="raise" copies `out` first

    run_spans(take, equal_spans(source.size, 4 * n_threads), n_threads)
    return out


# Counting sort: the number of rows per neuron gives the start of each neuron's rows, and the rows
# are then placed there in order. Every thread goes through all rows and places those of one span
# of neurons, so that the order of equal rows does not depend on the number of threads.


# Source, or one or two weights and where they go; the others are empty.
_Carried = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def transpose_pattern(
    indices: np.ndarray, indptr: np.ndarray, n_minor: int, threads: int | None = None
) -> Selection:
    """Compress a pattern over its other axis."""
    source = np.empty(indices.size, dtype=indptr.dtype)
    none = source[:0]
    majors, starts = _transpose(indices, indptr, n_minor, (source, none, none, none, none), threads)
    return Selection(majors, starts.astype(indptr.dtype), source)


def transpose_pairs(
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    weights: Sequence[np.ndarray],
    dtypes: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Compress pairs over the other axis: indices, indptr and weights."""
    # Values are carried along, two at a time: with a permutation that they follow afterwards,
    # writing a store of 10 million pairs takes 0.9 s of processor time in place of 0.65 s.
    new = [np.empty(indices.size, dtype=dtype) for dtype in dtypes]
    for i in range(0, len(new), 2):
        both = [old[i + 1] if i + 1 < len(new) else old[i][:0] for old in (weights, new)]
        carried = (np.empty(0, dtype=indptr.dtype), weights[i], both[0], new[i], both[1])
        majors, starts = _transpose(indices, indptr, n_minor, carried, None)
    return majors, starts, new


def _transpose(
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    carried: _Carried,
    threads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    n_threads = usable_threads(threads, indices.size)
    starts = _starts(indices, indices, n_minor, n_threads)
    if starts[-1] != indices.size:
        raise SchemaError(
            f"{indices.size - starts[-1]} stored pairs are outside the other axis: build the "
            "connectivity again with mx.build_connectivity"
        )
    majors = np.empty(indices.size, dtype=np.int32)
    buffers = (indices, indptr, starts[:-1].copy(), majors, *carried)
    run_spans(
        lambda lo, hi: _place(*buffers, lo, hi),
        balanced_spans(starts, n_threads),
        n_threads,
    )
    return majors, starts


def _starts(major: np.ndarray, minor: np.ndarray, n_major: int, n_threads: int) -> np.ndarray:
    """Return the start of the rows of each major neuron, and the total number of rows."""
    counts = run_spans(
        lambda lo, hi: _count(major, minor, n_major, lo, hi),
        equal_spans(major.size, n_threads),
        n_threads,
    )
    return np.cumsum(np.sum([np.zeros(n_major + 1, dtype=np.int64), *counts], axis=0))


@numba.njit(nogil=True, cache=True)
def _count(major, minor, n_major, lo, hi):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_major + 1, dtype=np.int64)
    for r in range(lo, hi):
        if 0 <= major[r] < n_major and minor[r] >= 0:
            counts[major[r] + 1] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _place(  # type: ignore[no-untyped-def]
    indices, indptr, free, majors, source, size, count, to_size, to_count, lo, hi
):
    for major in range(indptr.size - 1):
        for p in range(np.uintp(indptr[major]), np.uintp(indptr[major + 1])):
            minor = indices[p]
            if lo <= minor < hi:
                to = free[minor]
                free[minor] = to + 1
                majors[to] = major
                if source.size:
                    source[to] = p
                else:
                    to_size[to] = size[p]
                    if count.size:
                        to_count[to] = count[p]


class SummedPairs(NamedTuple):
    """Sorted pairs with their summed sizes and numbers of synapses."""

    indices: np.ndarray
    indptr: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray


def sum_pairs(
    major: np.ndarray,
    minor: np.ndarray,
    size: np.ndarray,
    count: np.ndarray | None,
    n_major: int,
    n_minor: int,
    threads: int | None = None,
) -> SummedPairs:
    """Sort rows by pair and add up the rows of each pair; rows with a position < 0 are dropped."""
    n_threads = usable_threads(threads, major.size)
    summed = np.float64 if size.dtype.kind == "f" else np.int64
    none = np.empty(0, dtype=np.int64)
    counts = none if count is None else count

    def buffers(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            np.empty(n, np.int32),
            np.empty(n, summed),
            np.empty(n if counts.size else 0, np.int64),
        )

    # Grouped by minor neuron, then by major neuron, each time in the order of the rows: within a
    # major neuron the rows are then sorted by minor neuron.
    starts = _starts(minor, major, n_minor, n_threads)
    by_minor = buffers(int(starts[-1]))
    grouped = (minor, major, size, counts, starts[:-1].copy(), *by_minor)
    spans = balanced_spans(starts, n_threads)
    run_spans(lambda lo, hi: _group_rows(*grouped, lo, hi), spans, n_threads)
    majors, indptr = by_minor[0], starts
    starts = _starts(majors, majors, n_major, n_threads)
    minors, sizes, synapses = buffers(majors.size)
    free = starts[:-1].copy()
    placed = (majors, indptr, free, minors, none, *by_minor[1:], sizes, synapses)
    spans = balanced_spans(starts, n_threads)
    run_spans(lambda lo, hi: _place(*placed, lo, hi), spans, n_threads)
    lengths = np.zeros(n_major + 1, dtype=np.int64)
    run_spans(lambda lo, hi: _count_distinct(starts, minors, lengths, lo, hi), spans, n_threads)
    indptr = np.cumsum(lengths)
    n = int(indptr[-1])
    sums = SummedPairs(np.empty(n, np.int32), indptr, np.empty(n, summed), np.empty(n, np.int64))
    rows = (starts, minors, sizes, synapses)
    run_spans(lambda lo, hi: _add_up(*rows, *sums, lo, hi), spans, n_threads)
    return sums


@numba.njit(nogil=True, cache=True)
def _group_rows(  # type: ignore[no-untyped-def]
    key, other, size, count, free, to_other, to_size, to_count, lo, hi
):
    for r in range(key.size):
        m = key[r]
        if lo <= m < hi and other[r] >= 0:
            to = free[m]
            free[m] = to + 1
            to_other[to] = other[r]
            to_size[to] = size[r]
            if count.size:
                to_count[to] = count[r]


@numba.njit(nogil=True, cache=True)
def _count_distinct(starts, minor, lengths, lo, hi):  # type: ignore[no-untyped-def]
    for m in range(lo, hi):
        before = np.int32(-1)
        for r in range(starts[m], starts[m + 1]):
            lengths[m + 1] += minor[r] != before
            before = minor[r]


@numba.njit(nogil=True, cache=True)
def _add_up(  # type: ignore[no-untyped-def]
    starts, minor, size, count, to_minor, indptr, to_size, to_count, lo, hi
):
    for m in range(lo, hi):
        n = indptr[m] - 1
        before = np.int32(-1)
        for r in range(starts[m], starts[m + 1]):
            synapses = count[r] if count.size else 1
            if minor[r] == before:
                to_size[n] += size[r]
                to_count[n] += synapses
            else:
                n += 1
                before = minor[r]
                to_minor[n] = before
                to_size[n] = size[r]
                to_count[n] = synapses
