"""A thread pool over spans of neurons, for kernels that release the GIL.

Parallel loops of numba are not used, because their default threading layer is not safe to call from
several threads at once, as dask does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numba.core.config
import numpy as np

Span = tuple[int, int]
Result = TypeVar("Result")
_numba_config: Any = numba.core.config  # its attributes are set at import

# Below this many stored pairs a thread costs more time than it saves.
_WORTH_A_THREAD = 100_000


def usable_threads(threads: int | None, elements: int) -> int:
    """Return the number of threads to use for a number of stored pairs."""
    limit = int(_numba_config.NUMBA_NUM_THREADS) if threads is None else int(threads)
    return max(1, min(limit, elements // _WORTH_A_THREAD))


def equal_spans(n: int, n_spans: int) -> list[Span]:
    """Cut ``range(n)`` into at most `n_spans` spans of nearly equal length."""
    return _spans(np.linspace(0, n, max(1, n_spans) + 1).astype(np.int64))


def balanced_spans(indptr: np.ndarray, n_spans: int) -> list[Span]:
    """Cut the neurons of a compressed axis into spans of about equal numbers of stored pairs."""
    n = indptr.size - 1
    cuts = np.linspace(int(indptr[0]), int(indptr[-1]), max(1, n_spans) + 1)
    edges = np.searchsorted(indptr, cuts.astype(np.int64))
    edges[0], edges[-1] = 0, n  # include neurons without pairs at either end
    return _spans(np.maximum.accumulate(edges))


def _spans(edges: np.ndarray) -> list[Span]:
    return [(lo, hi) for lo, hi in pairwise(edges.tolist()) if hi > lo]


@cache
def _helpers() -> ThreadPoolExecutor:
    """Return the threads that help those that call `run_spans`; they are started once."""
    n = int(_numba_config.NUMBA_NUM_THREADS)
    return ThreadPoolExecutor(max_workers=max(1, n), thread_name_prefix="microns_xr")


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_helpers.cache_clear)


def run_spans(work: Callable[[int, int], Result], spans: list[Span], threads: int) -> list[Result]:
    """Call ``work(first, last)`` for every span and return the results in the order of `spans`.

    The calling thread works too, and waits only for spans that are being worked on. So calls may
    be nested, and may come from several threads at once.
    """
    if threads == 1 or len(spans) < 2:
        return [work(lo, hi) for lo, hi in spans]
    results: list[Any] = [None] * len(spans)
    left = list(range(len(spans)))[::-1]  # taking one off is atomic

    def work_off() -> None:
        while left:
            try:
                i = left.pop()
            except IndexError:
                return
            results[i] = work(*spans[i])

    helpers = [_helpers().submit(work_off) for _ in range(min(threads, len(spans)) - 1)]
    try:
        work_off()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    finally:
        left.clear()
        for helper in helpers:
            if not helper.cancel():
                helper.exception()
    return results
