"""The same pairs compressed over the other axis, with their values, by one counting sort.

`microns_xr.connectivity.sort.transpose_pattern` gives a permutation instead, which any number
of variables can follow; to follow it, 30 million pairs of two values take one second of processor
time more than to be carried along.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from microns_xr.connectivity.kernels import minor_spans
from microns_xr.errors import SchemaError
from microns_xr.threads import balanced_spans, equal_spans, run_spans, usable_threads

# Sparsity patterns on raw buffers: check, select, transpose.
#
# As in `kernels`, a pattern is compressed over its *major* axis; ``indices`` are positions on the
# *minor* axis, ascending and unique within a span. The functions return, beside the new buffers,
# the position of every new pair among the old ones, so that any number of variables can follow.


_OUT_OF_ORDER = (
    "the stored pairs of a neuron are not in ascending order: build the connectivity again with "
    "mx.build_connectivity"
)


class Selection(NamedTuple):
    """New buffers, and where each new pair was among the old ones."""

    indices: np.ndarray
    indptr: np.ndarray
    source: np.ndarray


def check_sorted(
    indices: np.ndarray, indptr: np.ndarray, n_minor: int, threads: int | None = None
) -> None:
    """Raise unless a pattern is what every function here takes it to be."""
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != indices.size or _descends(indptr):
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


def _descends(indptr: np.ndarray) -> bool:
    return bool((indptr[1:] < indptr[:-1]).any())


@numba.njit(nogil=True, cache=True)
def _first_unsorted(indices, indptr, n_minor, lo, hi):  # type: ignore[no-untyped-def]
    for j in range(lo, hi):
        before = np.int64(-1)
        for p in range(indptr[j], indptr[j + 1]):
            if indices[p] <= before:
                return j
            before = np.int64(indices[p])
        if before >= n_minor:
            return j
    return -1


def select_pairs(
    indices: np.ndarray,
    indptr: np.ndarray,
    majors: np.ndarray,
    new_minor: np.ndarray,
    *,
    kept: np.ndarray | None = None,
    whole: np.ndarray | None = None,
    without: np.ndarray | None = None,
    threads: int | None = None,
) -> Selection:
    """Keep some major neurons and, of their pairs, those with some minor neurons."""
    n_new = majors.size
    kept = new_minor >= 0 if kept is None else kept
    whole = np.zeros(n_new, dtype=bool) if whole is None else whole
    if kept.all():
        whole = np.ones(n_new, dtype=bool)
    without = np.full(n_new, -1, dtype=np.int64) if without is None else without
    # Spans are balanced by what is read; what is kept is known only afterwards.
    read = np.concatenate([[0], np.cumsum(np.diff(indptr)[majors], dtype=np.int64)])
    n_threads = usable_threads(threads, int(read[-1]))
    spans = balanced_spans(read, 8 * n_threads)
    counts = np.zeros(n_new, dtype=np.int64)

    def keep(lo: int, hi: int) -> tuple[np.ndarray, np.ndarray, bool]:
        n_read = read[hi] - read[lo]
        rule = (majors, kept, whole, without, new_minor)
        return _keep(indices, indptr, *rule, counts, n_read, lo, hi)

    pieces = run_spans(keep, spans, n_threads)
    if not all(in_order for _, _, in_order in pieces):
        raise SchemaError(_OUT_OF_ORDER)
    new_indptr = np.zeros(n_new + 1, dtype=indptr.dtype)
    np.cumsum(counts, out=new_indptr[1:])
    out = np.empty(int(new_indptr[-1]), dtype=np.int32)
    source = np.empty(out.size, dtype=indptr.dtype)
    piece_of = dict(zip(spans, pieces, strict=True))

    def join(lo: int, hi: int) -> None:
        minor, position, _ = piece_of[lo, hi]
        out[new_indptr[lo] : new_indptr[hi]] = minor
        source[new_indptr[lo] : new_indptr[hi]] = position

    run_spans(join, spans, n_threads)
    return Selection(out, new_indptr, source)


@numba.njit(nogil=True, cache=True)
def _keep(  # type: ignore[no-untyped-def]
    indices, indptr, majors, kept, whole, without, new_minor, counts, n_read, lo, hi
):
    # Room for everything that is read; memory that stays untouched costs nothing.
    minor = np.empty(n_read, dtype=np.int32)
    source = np.empty(n_read, dtype=indptr.dtype)
    n = np.uintp(0)
    in_order = True
    for m in range(lo, hi):
        first = n
        before = np.int32(-1)
        for p in range(np.uintp(indptr[majors[m]]), np.uintp(indptr[majors[m] + 1])):
            i = np.uintp(indices[p])
            if (whole[m] | kept[i]) & (np.int64(i) != without[m]):
                in_order &= new_minor[i] > before
                before = new_minor[i]
                minor[n] = before
                source[n] = p
                n += np.uintp(1)
        counts[m] = n - first
    return minor[:n], source[:n], in_order


def take_values(values: np.ndarray, source: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Return ``values[source]``, on threads."""
    out = np.empty(source.size, dtype=values.dtype)
    n_threads = usable_threads(threads, source.size)

    def take(lo: int, hi: int) -> None:
        np.take(values, source[lo:hi], out=out[lo:hi], mode="clip")  # "raise" copies out first

    run_spans(take, equal_spans(source.size, 4 * n_threads), n_threads)
    return out


def transpose_pattern(
    indices: np.ndarray, indptr: np.ndarray, n_minor: int, threads: int | None = None
) -> Selection:
    """Compress the other axis: a counting sort that keeps pairs in order."""
    n_threads = usable_threads(threads, indices.size)
    counts = np.zeros(n_minor, dtype=np.int64)
    for part in run_spans(
        lambda lo, hi: _count_minor(indices, indptr, n_minor, lo, hi),
        balanced_spans(indptr, n_threads),
        n_threads,
    ):
        counts += part
    new_indptr = np.zeros(n_minor + 1, dtype=indptr.dtype)
    np.cumsum(counts, out=new_indptr[1:])
    free = new_indptr[:-1].copy()
    out = np.empty(indices.size, dtype=np.int32)
    source = np.empty(indices.size, dtype=indptr.dtype)

    def fill(lo: int, hi: int) -> int:
        return int(_fill_transposed(indices, indptr, free, out, source, lo, hi))

    if sum(run_spans(fill, minor_spans(indices, n_minor, n_threads), n_threads)) != indices.size:
        raise SchemaError(_OUT_OF_ORDER)
    return Selection(out, new_indptr, source)


@numba.njit(nogil=True, cache=True)
def _count_minor(indices, indptr, n_minor, lo, hi):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_minor, dtype=np.int64)
    for p in range(np.uintp(indptr[lo]), np.uintp(indptr[hi])):
        counts[np.uintp(indices[p])] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _fill_transposed(indices, indptr, free, out, source, lo, hi):  # type: ignore[no-untyped-def]
    done = 0
    for j in range(indptr.size - 1):
        start, stop = np.intp(indptr[j]), np.intp(indptr[j + 1])
        start += np.searchsorted(indices[start:stop], lo)
        before = np.int64(-1)
        for p in range(start, stop):
            i = np.intp(indices[p])
            if i >= hi or i < lo or i <= before:
                break
            before = i
            to = free[i]
            out[to] = j
            source[to] = p
            free[i] = to + 1
            done += 1
    return done


@numba.njit(nogil=True, cache=True)
def _count(indices, n_minor):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_minor + 1, dtype=np.int64)
    for i in indices:
        counts[np.uintp(i) + 1] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _scatter(  # type: ignore[no-untyped-def]
    indices, indptr, size, count, free, out_indices, out_size, out_count, lo, hi
):
    for major in range(indptr.size - 1):
        start, stop = np.intp(indptr[major]), np.intp(indptr[major + 1])
        start += np.searchsorted(indices[start:stop], lo)
        for p in range(start, stop):
            minor = np.intp(indices[p])
            if minor >= hi:
                break
            to = free[minor]
            free[minor] = to + 1
            out_indices[to] = major
            out_size[to] = size[p]
            out_count[to] = count[p]


def transpose(
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    size: np.ndarray,
    count: np.ndarray,
    dtypes: tuple[str, str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort stored pairs by the other axis; the order within a neuron's span stays ascending."""
    threads = usable_threads(None, indices.size)
    starts = np.cumsum(_count(indices, n_minor))
    free = starts[:-1].copy()
    out_indices = np.empty(indices.size, dtype=np.int32)
    out_size, out_count = (np.empty(indices.size, dtype=dtype) for dtype in dtypes)
    # Each thread fills the spans of neurons of its own, which hold about as many pairs.
    run_spans(
        lambda lo, hi: _scatter(
            indices, indptr, size, count, free, out_indices, out_size, out_count, lo, hi
        ),
        balanced_spans(starts, threads),
        threads,
    )
    return out_indices, starts, out_size, out_count
