"""Pairs of neurons by the difference of their angles, on raw arrays.

Angles are compared on a grid of `TURN` ticks a period, in integers: a difference that lies on the
edge of a bin is then on the same side whether a pair is looked at or counted, and whether the
angles were degrees or radians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from microns_xr.threads import equal_spans, run_spans, usable_threads

__all__ = ["PARTS", "TURN", "PairTable", "count_pairs", "to_ticks", "totals_of"]

# 1e-9 degree for directions; divisible by every usual number of measured angles.
TURN = 360_000_000_000
PARTS = ("n_pairs", "n_connected", "size")


class PairTable(NamedTuple):
    """Connections and the axes they lie on.

    Attributes
    ----------
    pre, post : numpy.ndarray
        (connections,), positions on the axes.
    values : numpy.ndarray
        (connections,), their sizes.
    twin : numpy.ndarray
        (pre axis,), position of the same neuron on the other axis, -1 where it is not there.
    """

    pre: np.ndarray
    post: np.ndarray
    values: np.ndarray
    twin: np.ndarray


def to_ticks(angles: np.ndarray, period: float) -> np.ndarray:
    """Put angles on the grid of ticks.

    Parameters
    ----------
    angles : numpy.ndarray
        Angles in the units of `period`, any shape; NaN where there is none.
    period : float
        Length of the circle.

    Returns
    -------
    numpy.ndarray
        int64 in ``[0, TURN)``, -1 where there is no angle.

    Examples
    --------
    >>> (to_ticks(np.array([0.0, -45.0, np.nan]), 180.0) / TURN).round(2)
    array([ 0.  ,  0.75, -0.  ])
    """
    known = np.isfinite(angles)
    ticks = np.rint(np.where(known, angles, 0) / period * TURN).astype(np.int64) % TURN
    ticks[~known] = -1
    return ticks


def count_pairs(
    table: PairTable,
    pre_ticks: np.ndarray,
    post_ticks: np.ndarray,
    edges: np.ndarray,
    post_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Count the pairs, connected pairs and sizes of every presynaptic neuron by difference.

    Parameters
    ----------
    table : PairTable
        The connections.
    pre_ticks, post_ticks : numpy.ndarray
        Angle of each neuron of the axes in ticks, -1 for those that are left out.
    edges : numpy.ndarray
        Ascending edges of the bins in ticks, from 0 to ``TURN / 2`` at the most; bins hold their
        lower edge, the last one both.
    post_weight : numpy.ndarray, optional
        How often each postsynaptic neuron counts; once by default.

    Returns
    -------
    numpy.ndarray
        (pre axis, 3, bins), float64, the middle axis as `PARTS`. A neuron makes no pair with
        itself.

    Notes
    -----
    Pairs are not visited: the postsynaptic neurons closer than each edge are a span of the sorted
    angles, which moves forward with the angle of the presynaptic neuron.

    Examples
    --------
    One neuron at 0° and two at 10° and 90°, connected to the second with size 7:

    >>> table = PairTable(np.array([0]), np.array([1]), np.array([7]), np.array([-1]))
    >>> ticks = to_ticks(np.array([0.0, 10.0, 90.0]), 180.0)
    >>> edges = to_ticks(np.array([0.0, 45.0, 90.0]), 180.0)
    >>> count_pairs(table, ticks[:1], ticks[1:], edges)[0].astype(int)
    array([[1, 1],
           [0, 1],
           [0, 7]])
    """
    weight = np.ones(post_ticks.size) if post_weight is None else post_weight
    out = np.zeros((pre_ticks.size, 3, edges.size - 1))
    _count(*table, pre_ticks, post_ticks, edges, weight, out)
    return out


def totals_of(
    replicate: Callable[[int], np.ndarray], n: int, n_bins: int, work: int = 0
) -> np.ndarray:
    """Add up the counts of many replicates over the presynaptic neurons, on threads.

    Parameters
    ----------
    replicate : callable
        Number of a replicate to the result of `count_pairs`, or to one that is weighted.
    n : int
        Number of replicates.
    n_bins : int
        Number of bins.
    work : int, optional
        Connections and neurons that one replicate goes through; few are not worth a thread.

    Returns
    -------
    numpy.ndarray
        (n, 3, bins).

    Examples
    --------
    >>> totals_of(lambda i: np.full((2, 3, 1), i), n=3, n_bins=1)[:, 0, 0]
    array([0., 2., 4.])
    """
    out = np.zeros((n, 3, n_bins))

    def run(lo: int, hi: int) -> None:
        for i in range(lo, hi):
            out[i] = replicate(i).sum(axis=0)

    threads = usable_threads(None, n * work)
    run_spans(run, equal_spans(n, 4 * threads), threads)
    return out


@numba.njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    pre, post, values, twin, pre_ticks, post_ticks, edges, weight, out
):
    n_bins = edges.size - 1
    last = edges[n_bins]
    order = np.argsort(post_ticks)
    order = order[np.searchsorted(post_ticks[order], 0) :]
    n = order.size
    # The circle unrolled three times, and the weight before each place on it.
    ticks = np.empty(3 * n, dtype=np.int64)
    below = np.zeros(3 * n + 1)
    for k in range(3 * n):
        ticks[k] = post_ticks[order[k % n]] + (k // n - 1) * TURN
        below[k + 1] = below[k] + weight[order[k % n]]
    # Neurons within |difference| < e lie in [a - e + 1, a + e); the last edge is in its bin.
    # In ascending order of the presynaptic angles both ends only move forward.
    ends = np.zeros((2, n_bins + 1), dtype=np.int64)
    by_angle = np.argsort(pre_ticks)
    for i in by_angle[np.searchsorted(pre_ticks[by_angle], 0) :]:
        a = pre_ticks[i]
        closer = 0.0
        for b in range(n_bins + 1):
            e = edges[b] + (1 if b == n_bins else 0)
            here = 0.0
            if 2 * e > TURN:
                here = below[n]
            elif e > 0:
                for side in range(2):
                    x = a + e if side else a - e + 1
                    k = ends[side, b]
                    while k < 3 * n and ticks[k] < x:
                        k += 1
                    ends[side, b] = k
                here = below[ends[1, b]] - below[ends[0, b]]
            if b:
                out[i, 0, b - 1] = here - closer
            closer = here
        j = twin[i]
        if j >= 0 and post_ticks[j] >= 0 and edges[0] == 0:
            out[i, 0, 0] -= weight[j]
    for p in range(pre.size):
        i, j = pre[p], post[p]
        a, c = pre_ticks[i], post_ticks[j]
        if a < 0 or c < 0 or twin[i] == j:
            continue
        d = abs(a - c)
        d = min(d, TURN - d)
        if d < edges[0] or d > last:
            continue
        b = 0
        while b < n_bins - 1 and d >= edges[b + 1]:
            b += 1
        out[i, 1, b] += weight[j]
        out[i, 2, b] += weight[j] * values[p]
