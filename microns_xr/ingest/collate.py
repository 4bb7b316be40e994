"""Rows of some neurons in the order of the store, and the pairs they make."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from microns_xr.threads import balanced_spans, run_spans, usable_threads

__all__ = ["Collated", "collate"]


class Collated(NamedTuple):
    """Sorted rows, and their pairs.

    Attributes
    ----------
    order : numpy.ndarray
        (rows,), int32: the rows by neuron, then partner, then id.
    lengths : numpy.ndarray
        (neurons,), int64: pairs of each neuron.
    first : numpy.ndarray
        (pairs,), int32: where in `order` each pair begins.
    repeated : int
        Place in `order` of a row that has the id of the row before it; -1 for none.
    """

    order: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    repeated: int


def collate(starts: np.ndarray, partner: np.ndarray, ids: np.ndarray | None) -> Collated:
    """Sort the rows of each neuron by partner, those of a pair by id.

    Parameters
    ----------
    starts : numpy.ndarray
        (neurons + 1,), int64: the rows of each neuron.
    partner : numpy.ndarray
        (rows,), int32, not negative.
    ids : numpy.ndarray or None
        (rows,), int64. A repeated id of one pair is found; None keeps the order of rows.

    Returns
    -------
    Collated
        The sums of a column over pairs are ``np.add.reduceat(column[order], first)``.

    Examples
    --------
    One neuron with three rows, two of them from partner 4:

    >>> collate(np.array([0, 3]), np.array([7, 4, 4], np.int32), np.array([1, 3, 2]))
    Collated(order=array([2, 1, 0], dtype=int32), lengths=array([2]),
    first=array([0, 2], dtype=int32), repeated=-1)
    """
    n_threads = usable_threads(None, partner.size)
    has_ids = ids is not None
    keys = np.zeros(0, dtype=np.int64) if ids is None else ids
    order = np.empty(partner.size, dtype=np.int32)
    first = np.empty(partner.size, dtype=np.int32)
    lengths = np.zeros(starts.size - 1, dtype=np.int64)
    repeated = run_spans(
        lambda lo, hi: int(_sort(starts, partner, keys, has_ids, order, first, lengths, lo, hi)),
        balanced_spans(starts, 4 * n_threads),
        n_threads,
    )
    firsts = np.empty(int(lengths.sum()), dtype=np.int32)
    _compact(starts, lengths, first, firsts)
    return Collated(order, lengths, firsts, max(repeated, default=-1))


@numba.njit(nogil=True, cache=True)
def _sort(  # type: ignore[no-untyped-def]
    starts, partner, ids, has_ids, order, first, lengths, lo, hi
):
    repeated = -1
    for m in range(lo, hi):
        start, stop = starts[m], starts[m + 1]
        n = stop - start
        if n == 0:
            continue
        keys = np.empty(n, dtype=np.int64)
        for k in range(n):
            keys[k] = np.int64(partner[start + k]) << 32 | k
        keys.sort()
        n_pairs = 0
        k = 0
        while k < n:
            who = keys[k] >> 32
            end = k + 1
            while end < n and keys[end] >> 32 == who:
                end += 1
            for i in range(k, end):
                order[start + i] = start + (keys[i] & 0xFFFFFFFF)
            if has_ids and end - k > 1:
                _sort_by_id(order[start + k : start + end], ids)
                for i in range(start + k + 1, start + end):
                    if ids[order[i]] == ids[order[i - 1]]:
                        repeated = i
            first[start + n_pairs] = start + k
            n_pairs += 1
            k = end
        lengths[m] = n_pairs
    return repeated


@numba.njit(nogil=True, cache=True)
def _sort_by_id(rows, ids):  # type: ignore[no-untyped-def]
    if rows.size > 32:
        rows[:] = rows[np.argsort(ids[rows])]
        return
    for i in range(1, rows.size):
        row = rows[i]
        j = i
        while j > 0 and ids[rows[j - 1]] > ids[row]:
            rows[j] = rows[j - 1]
            j -= 1
        rows[j] = row


@numba.njit(nogil=True, cache=True)
def _compact(starts, lengths, first, firsts):  # type: ignore[no-untyped-def]
    n = 0
    for m in range(lengths.size):
        for k in range(starts[m], starts[m] + lengths[m]):
            firsts[n] = first[k]
            n += 1
