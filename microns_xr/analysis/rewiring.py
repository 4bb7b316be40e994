"""Random rewiring of connections on raw arrays.

Connections are pairs of positions (pre, post), those of one presynaptic neuron in one span. Every
connection stays with its presynaptic neuron and gets another partner. A connection of a neuron
with itself stays where it is, none is made, and no pair is connected twice.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from microns_xr.threads import equal_spans, run_spans, usable_threads

__all__ = [
    "Candidates",
    "Places",
    "candidates_of",
    "random_state",
    "redraw_partners",
    "swap_partners",
]

_NO_PLACES = np.empty((0, 0))


class Places(NamedTuple):
    """Positions of the neurons of both axes, and bins of distance.

    Attributes
    ----------
    pre, post : numpy.ndarray
        (axis, components), µm.
    squared_edges : numpy.ndarray
        Ascending inner edges of the bins, µm²; a distance on an edge is in the bin that begins
        there. Beyond the last edge there is one more bin.
    """

    pre: np.ndarray
    post: np.ndarray
    squared_edges: np.ndarray


class Candidates(NamedTuple):
    """Postsynaptic neurons sorted by bin of distance, for each presynaptic neuron.

    Attributes
    ----------
    order : numpy.ndarray
        (pre axis, post axis), int32, positions of the postsynaptic neurons bin after bin.
    start : numpy.ndarray
        (pre axis, bins + 1), int32, where each bin begins.
    """

    order: np.ndarray
    start: np.ndarray


def random_state(seed: int, replicate: int) -> np.ndarray:
    """Return the state of the generator of one replicate, which depends on nothing else.

    Examples
    --------
    >>> random_state(0, 1).tolist() == random_state(0, 1).tolist() != random_state(0, 2).tolist()
    True
    """
    return np.random.SeedSequence(seed, spawn_key=(replicate,)).generate_state(1, np.uint64)


def swap_partners(
    pre: np.ndarray,
    indptr: np.ndarray,
    post: np.ndarray,
    twin: np.ndarray,
    state: np.ndarray,
    n_attempts: int,
    places: Places | None = None,
) -> tuple[np.ndarray, int]:
    """Exchange the partners of pairs of connections, again and again.

    Two connections are drawn; their postsynaptic ends are exchanged unless that would connect a
    pair twice, connect a neuron with itself, or, with `places`, move either connection into
    another bin of distance.

    Parameters
    ----------
    pre, post : numpy.ndarray
        (connections,), positions, those of one presynaptic neuron in the span `indptr` gives.
    indptr : numpy.ndarray
        (pre axis + 1,).
    twin : numpy.ndarray
        (pre axis,), position of the same neuron on the postsynaptic axis, -1 where it is not.
    state : numpy.ndarray
        See `random_state`; it is advanced.
    n_attempts : int
        Number of exchanges that are tried.
    places : Places, optional
        Positions and bins of distance.

    Returns
    -------
    tuple of (numpy.ndarray, int)
        New postsynaptic ends, and how many exchanges were made.

    Examples
    --------
    >>> swap_partners(np.array([0, 1]), np.array([0, 1, 2]), np.array([0, 1]), np.array([-1, -1]),
    ...     random_state(0, 0), 1)[0].shape
    (2,)
    """
    out = post.copy()
    spots = (_NO_PLACES, _NO_PLACES, np.empty(0)) if places is None else places
    n_made = _swap(pre, indptr, out, twin, state, n_attempts, places is not None, *spots)
    return out, int(n_made)


def candidates_of(indptr: np.ndarray, twin: np.ndarray, places: Places) -> Candidates:
    """Sort the possible partners of every presynaptic neuron that has one by bin of distance.

    A neuron itself is no possible partner; rows of neurons without a connection stay empty.

    Examples
    --------
    >>> places = Places(np.zeros((1, 1)), np.array([[9.0], [1.0]]), np.array([25.0]))
    >>> candidates_of(np.array([0, 1]), np.array([-1]), places).order
    array([[1, 0]], dtype=int32)
    """
    n_bins = places.squared_edges.size + 1
    order = np.empty((places.pre.shape[0], places.post.shape[0]), dtype=np.int32)
    start = np.zeros((places.pre.shape[0], n_bins + 1), dtype=np.int32)

    def sort(lo: int, hi: int) -> None:
        _sort_candidates(indptr, twin, *places, order, start, lo, hi)

    threads = usable_threads(None, order.size)
    run_spans(sort, equal_spans(order.shape[0], 4 * threads), threads)
    return Candidates(order, start)


def redraw_partners(
    indptr: np.ndarray,
    post: np.ndarray,
    twin: np.ndarray,
    state: np.ndarray,
    places: Places,
    candidates: Candidates,
) -> np.ndarray:
    """Draw new partners of every presynaptic neuron, as many in each bin of distance.

    Within a bin, every postsynaptic neuron is as likely as another, connected or not before.

    Parameters
    ----------
    indptr, post, twin, state, places
        As `swap_partners`.
    candidates : Candidates
        See `candidates_of`.

    Returns
    -------
    numpy.ndarray
        New postsynaptic ends; each connection stays in its bin of distance.

    Examples
    --------
    >>> places = Places(np.zeros((1, 1)), np.array([[1.0], [9.0]]), np.array([25.0]))
    >>> pattern = np.array([0, 1]), np.array([1]), np.array([-1])
    >>> candidates = candidates_of(pattern[0], pattern[2], places)
    >>> redraw_partners(*pattern, random_state(0, 0), places, candidates)
    array([1])
    """
    out = post.copy()
    _redraw(indptr, out, twin, state, *places, *candidates)
    return out


@numba.njit(nogil=True, cache=True, inline="always")
def _below(state, n):  # type: ignore[no-untyped-def]
    """Draw an integer below n: SplitMix64 (Steele, Lea & Flood 2014), high bits times n."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.int64(((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _bin(pre_at, i, post_at, j, squared_edges):  # type: ignore[no-untyped-def]
    squared = 0.0
    for k in range(pre_at.shape[1]):
        squared += (pre_at[i, k] - post_at[j, k]) ** 2
    return np.searchsorted(squared_edges, squared, side="right")


@numba.njit(nogil=True, cache=True)
def _has(post, lo, hi, j):  # type: ignore[no-untyped-def]
    for p in range(lo, hi):  # noqa: SIM110
        if post[p] == j:
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _swap(  # type: ignore[no-untyped-def]
    pre, indptr, post, twin, state, n_attempts, in_bins, pre_at, post_at, squared_edges
):
    n = post.size
    n_made = 0
    for _ in range(n_attempts if n > 1 else 0):
        e, f = _below(state, n), _below(state, n)
        a, b, c, d = pre[e], post[e], pre[f], post[f]
        if a == c or b == d:
            continue
        # No new connection of a neuron with itself, and those there are stay.
        if twin[a] == d or twin[c] == b or twin[a] == b or twin[c] == d:
            continue
        if in_bins:
            of_a = _bin(pre_at, a, post_at, b, squared_edges)
            if of_a != _bin(pre_at, a, post_at, d, squared_edges):
                continue
            of_c = _bin(pre_at, c, post_at, d, squared_edges)
            if of_c != _bin(pre_at, c, post_at, b, squared_edges):
                continue
        if _has(post, indptr[a], indptr[a + 1], d) or _has(post, indptr[c], indptr[c + 1], b):
            continue
        post[e] = d
        post[f] = b
        n_made += 1
    return n_made


@numba.njit(nogil=True, cache=True)
def _sort_candidates(  # type: ignore[no-untyped-def]
    indptr, twin, pre_at, post_at, squared_edges, order, start, lo, hi
):
    n_post = post_at.shape[0]
    n_bins = squared_edges.size + 1
    bins = np.empty(n_post, dtype=np.int32)
    for i in range(lo, hi):
        if indptr[i] == indptr[i + 1]:
            continue
        for j in range(n_post):
            bins[j] = _bin(pre_at, i, post_at, j, squared_edges)
            if j != twin[i]:
                start[i, bins[j] + 1] += 1
        for b in range(n_bins):
            start[i, b + 1] += start[i, b]
        free = start[i].copy()
        for j in range(n_post):
            if j != twin[i]:
                order[i, free[bins[j]]] = j
                free[bins[j]] += 1


@numba.njit(nogil=True, cache=True)
def _redraw(  # type: ignore[no-untyped-def]
    indptr, post, twin, state, pre_at, post_at, squared_edges, order, start
):
    taken = np.zeros(post_at.shape[0], dtype=np.bool_)
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            if post[p] == twin[i]:
                continue
            b = _bin(pre_at, i, post_at, post[p], squared_edges)
            # Those that are taken are drawn again, which leaves the others equally likely.
            while True:
                j = order[i, start[i, b] + _below(state, start[i, b + 1] - start[i, b])]
                if not taken[j]:
                    break
            taken[j] = True
            post[p] = j
        for p in range(indptr[i], indptr[i + 1]):
            taken[post[p]] = False
