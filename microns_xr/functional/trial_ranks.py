"""Rank tests of many neurons at once: rank sums, exact where samples are few, and signed ranks."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

__all__ = ["rank_sum", "signed_rank"]

# Up to so many samples in both together the distribution is counted out, ties included.
EXACT = 40


def rank_sum(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test by Wilcoxon's rank sum (Mann-Whitney) whether `first` is larger.

    Parameters
    ----------
    first, second : numpy.ndarray
        (neurons, samples), without NaN.

    Returns
    -------
    statistic : numpy.ndarray
        (neurons,): pairs in which `first` is larger, ties as a half.
    p : numpy.ndarray
        (neurons,), one-sided. With at most 40 samples in all it is exact: the share of all
        divisions of the pooled samples, tied ones included, that give as large a rank sum. With
        more it is the normal approximation with corrections for ties and continuity.

    Notes
    -----
    Mann and Whitney, Annals of Mathematical Statistics 18, 1947; with ties: Lehmann,
    Nonparametrics, 1975, section 1.4.

    Examples
    --------
    >>> rank_sum(np.array([[3.0, 4.0]]), np.array([[1.0, 2.0]]))
    (array([4.]), array([0.16666667]))
    """
    n, size = first.shape[1], first.shape[1] + second.shape[1]
    ranks = rankdata(np.concatenate([first, second], axis=1), axis=1)
    total = ranks[:, :n].sum(axis=1)
    statistic = total - n * (n + 1) / 2
    if size <= EXACT:
        return statistic, _exact_tail(np.rint(2 * ranks).astype(np.int64), n)
    variance = n * (size - n) / 12 * (size + 1 - _ties(ranks) / (size * (size - 1)))
    return statistic, _normal_tail(statistic - n * (size - n) / 2 - 0.5, variance)


def _exact_tail(doubled: np.ndarray, n: int) -> np.ndarray:
    """Share of the choices of n among a row's doubled ranks with at least the first n's sum."""
    observed = doubled[:, :n].sum(axis=1)
    patterns, owner = np.unique(np.sort(doubled, axis=1), axis=0, return_inverse=True)
    owner = owner.ravel()
    p = np.empty(len(doubled))
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=len(patterns)))
    for pattern, rows in zip(patterns, np.split(order, ends[:-1]), strict=True):
        # ways[k, s]: subsets of k of the ranks seen so far that sum to s
        ways = np.zeros((n + 1, int(pattern[-n:].sum()) + 1))
        ways[0, 0] = 1
        for rank in pattern:
            ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
        tail = np.cumsum(ways[n, ::-1])[::-1]
        p[rows] = tail[observed[rows]] / tail[0]
    return p


def _ties(ranks: np.ndarray) -> np.ndarray:
    """Sum of t^3 - t over the groups of t equal values of each row."""
    low = rankdata(ranks, method="min", axis=1)
    high = rankdata(ranks, method="max", axis=1)
    return (np.square(high - low + 1) - 1).sum(axis=1)


def _normal_tail(excess: np.ndarray, variance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(variance)
    return ndtr(-np.divide(excess, sd, where=sd > 0, out=np.full(len(sd), -np.inf)))


def signed_rank(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test by Wilcoxon's signed rank of pairs whether `first` is larger.

    Parameters
    ----------
    first, second : numpy.ndarray
        (neurons, pairs), without NaN.

    Returns
    -------
    statistic : numpy.ndarray
        (neurons,): sum of the ranks of the pairs in which `first` is larger.
    p : numpy.ndarray
        (neurons,), one-sided, by the normal approximation with a correction for ties; pairs that
        do not differ are left out.

    Notes
    -----
    Wilcoxon, Biometrics Bulletin 1, 1945.

    Examples
    --------
    >>> signed_rank(np.array([[3.0, 4.0, 1.0]]), np.array([[1.0, 1.0, 1.0]]))[0]
    array([3.])
    """
    apart = first - second
    differ = apart != 0
    # Pairs that do not differ come first and their ranks are taken off the others'.
    zeros = (~differ).sum(axis=1)
    ranks = rankdata(np.abs(apart), axis=1)
    ranks = np.where(differ, ranks - zeros[:, None], 0)
    statistic = np.where(apart > 0, ranks, 0).sum(axis=1)
    n = differ.sum(axis=1)
    ties = _ties(np.abs(apart)) - (zeros.astype(np.float64) ** 3 - zeros)
    variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48
    return statistic, _normal_tail(statistic - n * (n + 1) / 4, variance)
