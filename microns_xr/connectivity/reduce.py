"""Reductions of stored pairs, on raw buffers.

As in `kernels`, pairs are compressed over their *major* axis, and ``indices`` are ascending
positions on the *minor* axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from microns_xr.threads import balanced_spans, run_spans, usable_threads

# Number of pairs and sum of every weight, per neuron and per pair of groups. Integers are summed as
# int64 and other weights as float64, in two tables, the number of pairs in the first column of the
# integers. Two weights are summed in one pass over the pairs.


class Sums(NamedTuple):
    """Sums of the weights, along the last axis."""

    whole: Any  # int64: the number of pairs, then the integer weights
    real: Any  # float64: the other weights

    def by_name(self, names: Sequence[str], kinds: Sequence[str]) -> dict[str, Any]:
        """Return the number of pairs as ``n_connections``, and the sums of each weight."""
        columns = {"n_connections": self.whole[..., 0]}
        for table, kind in zip(self, "if", strict=True):
            chosen = [n for n, k in zip(names, kinds, strict=True) if k == kind]
            first = table.shape[-1] - len(chosen)
            columns |= {name: table[..., first + i] for i, name in enumerate(chosen)}
        return {name: columns[name] for name in ("n_connections", *names)}


def neuron_sums(
    weights: Sequence[np.ndarray],
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    threads: int | None = None,
) -> tuple[Sums, Sums]:
    """Sum the pairs of every neuron of the compressed axis, and of the other axis."""

    def one_pass(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_threads = _threads_for(first, threads, indices.size)
        major = np.zeros((indptr.size - 1, 3), dtype=first.dtype)
        minors = run_spans(
            lambda lo, hi: _neuron_sums(first, second, indices, indptr, n_minor, major, lo, hi),
            balanced_spans(indptr, n_threads),
            n_threads,
        )
        return major, sum(minors, start=np.zeros((n_minor, 3), dtype=first.dtype))

    major, minor = _in_passes(weights, one_pass)
    return major, minor


def _threads_for(weight: np.ndarray, threads: int | None, n_pairs: int) -> int:
    # Sums of integers do not depend on their order, so each thread has a separate table; sums of
    # other numbers do, in their last digits.
    return 1 if weight.dtype.kind == "f" else usable_threads(threads, n_pairs)


def _in_passes(
    weights: Sequence[np.ndarray],
    one_pass: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
) -> list[Sums]:
    """Sum weights two at a time; each pass returns tables of pairs, first and second weight."""
    kinds = [[w for w in weights if w.dtype.kind == kind] for kind in "if"]
    passes = [same[i : i + 2] for same in kinds for i in range(0, len(same), 2)]
    tables = [one_pass(part[0], part[-1][: None if len(part) == 2 else 0]) for part in passes]
    if len(passes) == 1 and len(kinds[0]) == 2:
        return [Sums(table, np.zeros((*table.shape[:-1], 0))) for table in tables[0]]
    result = []
    for of_passes in zip(*tables, strict=True):
        columns: dict[str, list[np.ndarray]] = {
            "i": [of_passes[0][..., :1].astype(np.int64)],
            "f": [],
        }
        for part, table in zip(passes, of_passes, strict=True):
            columns[table.dtype.kind].append(table[..., 1 : 1 + len(part)])
        nothing = np.zeros((*of_passes[0].shape[:-1], 0))
        result.append(Sums(*(np.concatenate(c or [nothing], axis=-1) for c in columns.values())))
    return result


@numba.njit(nogil=True, cache=True)
def _neuron_sums(  # type: ignore[no-untyped-def]
    first, second, indices, indptr, n_minor, major, lo, hi
):
    minor = np.zeros((n_minor, 3), dtype=first.dtype)
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        sum_first = major[j, 1]
        sum_second = major[j, 2]
        for p in range(start, stop):
            i = np.uintp(indices[p])
            minor[i, 0] += 1
            minor[i, 1] += first[p]
            sum_first += first[p]
            if second.size:
                minor[i, 2] += second[p]
                sum_second += second[p]
        major[j, 0] = stop - start
        major[j, 1] = sum_first
        major[j, 2] = sum_second
    return minor


def group_sums(
    weights: Sequence[np.ndarray],
    indices: np.ndarray,
    indptr: np.ndarray,
    major_codes: np.ndarray,
    minor_codes: np.ndarray,
    n_groups: tuple[int, int],
    threads: int | None = None,
) -> Sums:
    """Sum the pairs between groups of neurons."""
    # Large tables, one per thread, would take much memory beside the pairs.
    n_cells = n_groups[0] * n_groups[1]
    major_codes = np.ascontiguousarray(major_codes, dtype=np.int32)
    minor_codes = np.ascontiguousarray(minor_codes, dtype=np.int32)
    rest = (indices, indptr, major_codes, minor_codes, *n_groups)

    def one_pass(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray]:
        n_threads = _threads_for(first, threads, indices.size if n_cells < 1_000_000 else 0)
        tables = run_spans(
            lambda lo, hi: _group_sums(first, second, *rest, lo, hi),
            balanced_spans(indptr, n_threads),
            n_threads,
        )
        return (sum(tables, start=np.zeros((*n_groups, 3), dtype=first.dtype)),)

    return _in_passes(weights, one_pass)[0]


@numba.njit(nogil=True, cache=True)
def _group_sums(  # type: ignore[no-untyped-def]
    first, second, indices, indptr, major_codes, minor_codes, n_major, n_minor, lo, hi
):
    table = np.zeros((n_major, n_minor, 3), dtype=first.dtype)
    # One loop over the pairs of all neurons: most neurons have few.
    j, row, stop = lo, table[np.uintp(major_codes[lo])], np.uintp(indptr[lo + 1])
    for p in range(np.uintp(indptr[lo]), np.uintp(indptr[hi])):
        while p >= stop:
            j += 1
            row, stop = table[np.uintp(major_codes[j])], np.uintp(indptr[j + 1])
        group = np.uintp(minor_codes[np.uintp(indices[p])])
        row[group, 0] += 1
        row[group, 1] += first[p]
        if second.size:
            row[group, 2] += second[p]
    return table


def span_sums(
    values: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    major_codes: np.ndarray,
    minor_codes: np.ndarray,
    n_groups: tuple[int, int],
    steps: tuple[int, int],
) -> np.ndarray:
    """Sum the pairs of each two groups, which are numbered as those of `group_spans`.

    Beside `group_sums`, for one number of many groups: of those of one axis and the neurons of the
    other, a table for each thread, of numbers of pairs as well, would take most of the time.
    """
    out = np.zeros(n_groups[0] * n_groups[1], dtype=values.dtype)
    _span_sums(values, indices, indptr, major_codes, minor_codes, *n_groups, *steps, out)
    return out


@numba.njit(nogil=True, cache=True)
def _span_sums(  # type: ignore[no-untyped-def]
    values, indices, indptr, major_codes, minor_codes, n_major, n_minor, major_step, minor_step, out
):
    for j in range(indptr.size - 1):
        if major_codes[j] < n_major:
            first = major_codes[j] * major_step
            for p in range(np.uintp(indptr[j]), np.uintp(indptr[j + 1])):
                group = minor_codes[np.uintp(indices[p])]
                if group < n_minor:
                    out[np.uintp(first + group * minor_step)] += values[p]


def group_spans(
    indices: np.ndarray,
    indptr: np.ndarray,
    major_codes: np.ndarray,
    minor_codes: np.ndarray,
    n_groups: tuple[int, int],
    steps: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pairs of each two groups are stored, in order, and the spans of these.

    The number of a span is the sum of the codes times `steps`; codes of ``n_groups`` are left out.
    """
    spans = np.zeros(n_groups[0] * n_groups[1] + 1, dtype=np.int64)
    source = _group_spans(indices, indptr, major_codes, minor_codes, *n_groups, *steps, spans)
    return source, spans


@numba.njit(nogil=True, cache=True)
def _group_spans(  # type: ignore[no-untyped-def]
    indices, indptr, major_codes, minor_codes, n_major, n_minor, major_step, minor_step, spans
):
    # Counting sort. The pairs of a span begin where the one before it ends, at which `spans`
    # arrives when all of its pairs have been placed.
    starts = np.zeros(spans.size, dtype=np.int64)
    for j in range(indptr.size - 1):
        if major_codes[j] < n_major:
            for p in range(np.uintp(indptr[j]), np.uintp(indptr[j + 1])):
                group = minor_codes[np.uintp(indices[p])]
                if group < n_minor:
                    starts[major_codes[j] * major_step + group * minor_step + 1] += 1
    for s in range(1, spans.size):
        starts[s] += starts[s - 1]
        spans[s] = starts[s]
    source = np.empty(spans[-1], dtype=np.int64)
    for j in range(indptr.size - 1):
        if major_codes[j] < n_major:
            for p in range(np.uintp(indptr[j]), np.uintp(indptr[j + 1])):
                group = minor_codes[np.uintp(indices[p])]
                if group < n_minor:
                    s = major_codes[j] * major_step + group * minor_step
                    source[starts[s]] = p
                    starts[s] += 1
    return source


# Reductions of whole spans: one result for each span, over all `n` cells of it, of which those that
# are not stored hold `fill`. Spans are those of a major neuron, over the whole minor axis, or of
# two groups of neurons, each with its own number of cells.


def _each(n: Any, indptr: np.ndarray) -> np.ndarray:
    """Return the number of cells of each span."""
    cells = np.empty(indptr.size - 1, dtype=np.int64)
    cells[:] = n
    return cells


def extremes(
    values: np.ndarray, indptr: np.ndarray, n: Any, fill: Any, largest: bool, skipna: bool
) -> np.ndarray:
    """Return the maximum or minimum of each span; NaN if there is a NaN and `skipna` is False."""
    out = np.empty(indptr.size - 1, dtype=values.dtype)
    nothing = np.nan if values.dtype.kind == "f" else 0
    _extremes(
        values, indptr, _each(n, indptr), values.dtype.type(fill), largest, skipna, nothing, out
    )
    return out


@numba.njit(nogil=True, cache=True)
def _extremes(values, indptr, n, fill, largest, skipna, nothing, out):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        start, stop = indptr[j], indptr[j + 1]
        best = fill
        found = stop - start < n[j]
        for p in range(start, stop):
            value = values[p]
            if value != value:
                if skipna:
                    continue
                best = value
                found = True
                break
            if not found or (value > best if largest else value < best):
                best = value
                found = True
        out[j] = best if found else nothing


def positions_of_extremes(
    values: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    n: int,
    fill: Any,
    largest: bool,
    skipna: bool,
) -> np.ndarray:
    """Return the first position of the maximum or minimum of each span; -1 if all are NaN."""
    out = np.empty(indptr.size - 1, dtype=np.int64)
    fill = values.dtype.type(fill)
    _positions_of_extremes(values, indices, indptr, n, fill, largest, skipna, out)
    return out


@numba.njit(nogil=True, cache=True)
def _positions_of_extremes(  # type: ignore[no-untyped-def]
    values, indices, indptr, n, fill, largest, skipna, out
):
    for j in range(out.size):
        start, stop = indptr[j], indptr[j + 1]
        at = -1
        best = fill
        gap = 0  # the first cell that is not stored
        for p in range(start, stop):
            value, i = values[p], indices[p]
            if i == gap:
                gap += 1
            if value != value:
                if skipna:
                    continue
                at = i
                gap = n
                break
            if at < 0 or (value > best if largest else value < best):
                best = value
                at = i
        if gap < n:
            better = fill > best if largest else fill < best
            if at < 0 or better or (fill == best and gap < at):
                at = gap
        out[j] = at


def quantiles(
    values: np.ndarray, indptr: np.ndarray, n: Any, fill: float, q: np.ndarray, skipna: bool
) -> np.ndarray:
    """Return quantiles of each span, (q, spans), interpolated linearly as numpy does by default."""
    out = np.empty((q.size, indptr.size - 1))
    values = np.asarray(values, dtype=np.float64)
    _quantiles(values, indptr, _each(n, indptr), float(fill), q, skipna, out)
    return out


@numba.njit(nogil=True, cache=True)
def _quantiles(values, indptr, n, fill, q, skipna, out):  # type: ignore[no-untyped-def]
    for j in range(indptr.size - 1):
        span = values[indptr[j] : indptr[j + 1]]
        n_fill = n[j] - span.size
        numbers = np.sort(span[~np.isnan(span)])
        has_nan = numbers.size < span.size
        n_cells = numbers.size + n_fill
        below = np.searchsorted(numbers, fill)  # then come the cells that are not stored
        for k in range(q.size):
            if n_cells == 0 or (has_nan and not skipna):
                out[k, j] = np.nan
                continue
            rank = q[k] * (n_cells - 1)
            lower = np.intp(np.floor(rank))
            ends = np.empty(2)
            for e in range(2):
                r = min(lower + e, n_cells - 1)
                if r < below:
                    ends[e] = numbers[r]
                elif r < below + n_fill:
                    ends[e] = fill
                else:
                    ends[e] = numbers[r - n_fill]
            step = ends[1] - ends[0]
            t = rank - lower
            # As numpy does: from the nearer end, so that rounding is monotonic.
            out[k, j] = ends[0] + step * t if t < 0.5 else ends[1] - step * (1 - t)


def variances(
    values: np.ndarray, indptr: np.ndarray, n: Any, fill: float, ddof: float, skipna: bool
) -> np.ndarray:
    """Return the variance of each span, in two passes."""
    out = np.empty(indptr.size - 1)
    _variances(values, indptr, _each(n, indptr), float(fill), float(ddof), skipna, out)
    return out


@numba.njit(nogil=True, cache=True)
def _variances(values, indptr, n, fill, ddof, skipna, out):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        start, stop = indptr[j], indptr[j + 1]
        n_fill = n[j] - (stop - start)
        total = n_fill * fill
        n_cells = n[j]
        for p in range(start, stop):
            value = np.float64(values[p])
            if skipna and np.isnan(value):
                n_cells -= 1
            else:
                total += value
        if n_cells - ddof <= 0:
            out[j] = np.nan
            continue
        mean = total / n_cells
        squares = n_fill * (fill - mean) ** 2
        for p in range(start, stop):
            value = np.float64(values[p])
            if not (skipna and np.isnan(value)):
                squares += (value - mean) ** 2
        out[j] = squares / (n_cells - ddof)


def find_pairs(
    indices: np.ndarray, indptr: np.ndarray, majors: np.ndarray, minors: np.ndarray
) -> np.ndarray:
    """Return where each pair is stored, or -1."""
    out = np.empty(majors.size, dtype=np.int64)
    _find_pairs(indices, indptr, majors.astype(np.int64), minors.astype(np.int64), out)
    return out


@numba.njit(nogil=True, cache=True)
def _find_pairs(indices, indptr, majors, minors, out):  # type: ignore[no-untyped-def]
    for k in range(majors.size):
        start, stop = indptr[majors[k]], indptr[majors[k] + 1]
        p = start + np.searchsorted(indices[start:stop], minors[k])
        out[k] = p if p < stop and indices[p] == minors[k] else -1
