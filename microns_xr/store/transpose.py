"""The same pairs compressed over the other axis, with their values, by one counting sort.

`microns_xr.connectivity.patterns.transpose_pattern` gives a permutation instead, which any number
of variables can follow; to follow it, 30 million pairs of two values take one second of processor
time more than to be carried along.
"""

from __future__ import annotations

import numba
import numpy as np

from microns_xr.threads import balanced_spans, run_spans, usable_threads

__all__ = ["transpose"]


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
    """Sort stored pairs by the other axis; the order within a neuron's span stays ascending.

    Parameters
    ----------
    indices, indptr : numpy.ndarray
        The pattern; positions ascend within a span.
    n_minor : int
        Length of the axis that `indices` counts along.
    size, count : numpy.ndarray
        Values of the pairs.
    dtypes : tuple of str
        What they are to be cast to; must be wide enough.

    Returns
    -------
    tuple of numpy.ndarray
        ``indices`` (int32) and ``indptr`` (int64) of the other axis, size, count.

    Examples
    --------
    >>> transpose(np.array([1, 0, 1], np.int32), np.array([0, 1, 3], np.int32), 2,
    ...     np.array([7, 8, 9]), np.array([1, 1, 2]), ("int64", "int64"))
    (array([1, 0, 1], dtype=int32), array([0, 1, 3]), array([8, 7, 9]), array([1, 1, 2]))
    """
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
