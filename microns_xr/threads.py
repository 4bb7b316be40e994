"""A pool of threads over spans of neurons, for kernels that release the interpreter's lock.

numba's own parallel loops are not used: their default threading layer must not be entered from
several threads at once, which is what dask does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numba.core.config
import numpy as np

__all__ = ["Span", "balanced_spans", "equal_spans", "run_spans", "usable_threads"]

Span = tuple[int, int]
Result = TypeVar("Result")
_numba_config: Any = numba.core.config  # its settings are made at import

# Below this many stored pairs a thread costs more than it gives.
_WORTH_A_THREAD = 100_000


def usable_threads(threads: int | None, elements: int) -> int:
    """Return how many threads to use for a number of stored pairs.

    Parameters
    ----------
    threads : int or None
        What the caller asked for. None is every core this process may use, or
        ``NUMBA_NUM_THREADS`` where that is set; inside a dask task pass 1.
    elements : int
        Stored pairs the work goes over.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> usable_threads(4, elements=10)
    1
    """
    wanted = int(_numba_config.NUMBA_NUM_THREADS) if threads is None else int(threads)
    return max(1, min(wanted, elements // _WORTH_A_THREAD))


def equal_spans(n: int, n_spans: int) -> list[Span]:
    """Cut ``range(n)`` into at most `n_spans` spans of nearly equal length.

    Examples
    --------
    >>> equal_spans(5, 2)
    [(0, 2), (2, 5)]
    """
    return _spans(np.linspace(0, n, max(1, n_spans) + 1).astype(np.int64))


def balanced_spans(indptr: np.ndarray, n_spans: int) -> list[Span]:
    """Cut the neurons of a compressed axis into spans that hold about as many stored pairs.

    Parameters
    ----------
    indptr : numpy.ndarray
        Spans of the compressed axis, one longer than it.
    n_spans : int
        How many to make at the most.

    Returns
    -------
    list of (int, int)
        First and one past the last neuron of each span; together every neuron once.

    Examples
    --------
    >>> balanced_spans(np.array([0, 6, 7, 8, 12]), 2)
    [(0, 1), (1, 4)]
    """
    n = indptr.size - 1
    cuts = np.linspace(int(indptr[0]), int(indptr[-1]), max(1, n_spans) + 1)
    edges = np.searchsorted(indptr, cuts.astype(np.int64))
    edges[0], edges[-1] = 0, n  # neurons without a pair at either end belong to a span too
    return _spans(np.maximum.accumulate(edges))


def _spans(edges: np.ndarray) -> list[Span]:
    return [(lo, hi) for lo, hi in pairwise(edges.tolist()) if hi > lo]


def run_spans(work: Callable[[int, int], Result], spans: list[Span], threads: int) -> list[Result]:
    """Call ``work(first, last)`` for every span and return the results in the order of `spans`.

    Parameters
    ----------
    work : callable
        Must release the interpreter's lock, and write only what belongs to its span.
    spans : list of (int, int)
        Spans.
    threads : int
        How many to run at a time; 1 runs them here, without a pool.

    Returns
    -------
    list
        One result a span.

    Examples
    --------
    >>> run_spans(lambda lo, hi: hi - lo, [(0, 2), (2, 5)], threads=2)
    [2, 3]
    """
    if threads == 1 or len(spans) < 2:
        return [work(lo, hi) for lo, hi in spans]
    with ThreadPoolExecutor(max_workers=min(threads, len(spans))) as pool:
        return list(pool.map(lambda span: work(*span), spans))
