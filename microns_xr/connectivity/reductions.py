"""Sums of sizes and counts of a compressed matrix by neuron and by pairs of groups, in integers.

As in `kernels`, a matrix is compressed over its *major* axis. Every result has the three columns
``PARTS``. Integer sums do not depend on their order, so each thread adds up for itself.
"""

from __future__ import annotations

import numba
import numpy as np

from microns_xr.threads import balanced_spans, run_spans, usable_threads

__all__ = ["PARTS", "group_sums", "neuron_sums"]

PARTS = ("n_connections", "synapse_size", "synapse_count")


def neuron_sums(
    size: np.ndarray,
    count: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs, and sum sizes and counts, of every neuron of both axes in one pass.

    Parameters
    ----------
    size, count : numpy.ndarray
        (pairs,), integers.
    indices, indptr : numpy.ndarray
        The pattern.
    n_minor : int
        Length of the minor axis.
    threads : int, optional
        See `usable_threads`.

    Returns
    -------
    tuple of numpy.ndarray
        (major neurons, 3) and (minor neurons, 3), int64, columns as ``PARTS``.

    Examples
    --------
    >>> neuron_sums(np.array([7, 5]), np.array([1, 2]), np.array([0, 1], np.int32),
    ...     np.array([0, 2]), 2)
    (array([[ 2, 12,  3]]), array([[1, 7, 1],
           [1, 5, 2]]))
    """
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
    """Count the pairs, and sum sizes and counts, between groups of neurons.

    Parameters
    ----------
    size, count : numpy.ndarray
        (pairs,), integers.
    indices, indptr : numpy.ndarray
        The pattern.
    major_codes, minor_codes : numpy.ndarray
        Group of each neuron, from 0.
    n_groups : tuple of int
        Number of groups of the major and of the minor axis.
    threads : int, optional
        See `usable_threads`.

    Returns
    -------
    numpy.ndarray
        (major groups, minor groups, 3), int64, last axis as ``PARTS``.

    Examples
    --------
    >>> group_sums(np.array([7, 5]), np.array([1, 2]), np.array([0, 1], np.int32),
    ...     np.array([0, 2]), np.array([0]), np.array([1, 1]), (1, 2))
    array([[[ 0,  0,  0],
            [ 2, 12,  3]]])
    """
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
