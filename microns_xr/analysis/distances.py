"""Pairs of neurons by distance: bins, and counting them without a matrix of distances.

``y`` is the depth from the pia, so that the lateral distance is that in the x-z plane. A distance
that falls on an edge belongs to the bin that begins there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numba
import numpy as np
import xarray as xr

from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.schema import AXES
from microns_xr.threads import equal_spans, run_spans

__all__ = ["DIRECTIONS", "Neurons", "count_pairs", "positions_of_units", "read_bins"]

# What each direction needs of a position, and what it is.
DIRECTIONS = {
    "lateral": ("xz", "distance in the x-z plane"),
    "depth": ("y", "difference of depth, without sign"),
    "depth_change": ("y", "depth of the postsynaptic neuron minus that of the presynaptic one"),
    "euclidean": ("xyz", "distance in space"),
}
_NONE = -1
_KINDS = {name: i for i, name in enumerate(DIRECTIONS)}
_NARROWEST = 1e-9  # µm
_MOST_CELLS = 4096  # of four bytes: half of a fast cache


class Bins(NamedTuple):
    """Bins of one direction, as the kernels take them.

    Attributes
    ----------
    kind : int
        Position among ``DIRECTIONS``, -1 for one bin that holds every pair.
    edges : numpy.ndarray
        Ascending, µm, one more than bins.
    start : numpy.ndarray
        For each cell of a fine even grid over the edges, a bin that is not after any of its
        distances.
    scale : float
        Cells of that grid a µm.
    steps : int
        How many bins a distance may be after the one of its cell.
    """

    kind: int
    edges: np.ndarray
    start: np.ndarray
    scale: float
    steps: int

    @property
    def n(self) -> int:
        """Number of bins."""
        return self.edges.size - 1


class Neurons(NamedTuple):
    """Positions of neurons, µm, each (neurons,) and contiguous."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def take(self, rows: np.ndarray) -> Neurons:
        """Return the neurons of these rows."""
        return Neurons(self.x[rows], self.y[rows], self.z[rows])

    def known(self) -> np.ndarray:
        """Return which neurons have a position."""
        return np.isfinite(self.x) & np.isfinite(self.y) & np.isfinite(self.z)


def read_bins(distance: Any, direction: str = "lateral") -> dict[str, np.ndarray]:
    """Read edges of bins by direction.

    Parameters
    ----------
    distance : array-like, mapping of str to array-like, or None
        Edges in µm for `direction`, or edges by direction for one or two directions.
    direction : str, optional
        ``"lateral"``, ``"depth"``, ``"depth_change"`` or ``"euclidean"``.

    Returns
    -------
    dict of str to numpy.ndarray
        Edges, float64; empty for None.

    Raises
    ------
    SchemaError
        If edges are not at least two finite ascending numbers, or for more than two directions.
    UnknownLabelError
        If a direction is not known.

    Examples
    --------
    >>> read_bins({"lateral": [0, 50, 100], "depth": [0, 200]})
    {'lateral': array([  0.,  50., 100.]), 'depth': array([  0., 200.])}
    """
    if distance is None:
        return {}
    by_direction = dict(distance) if isinstance(distance, Mapping) else {direction: distance}
    if not 1 <= len(by_direction) <= 2:
        raise SchemaError(
            f"distance has {len(by_direction)} directions, expected edges for one or two"
        )
    result = {}
    for name, edges in by_direction.items():
        if name not in DIRECTIONS:
            near = ", ".join(nearest_words(name, DIRECTIONS))
            raise UnknownLabelError(
                f"there is no direction {name!r}, expected one of {list(DIRECTIONS)}"
                + (f"; nearest: {near}" if near else "")
            )
        try:
            values = np.asarray(edges, dtype=float)
        except (TypeError, ValueError) as error:
            raise SchemaError(f"edges of {name} are no numbers: {error}") from error
        if (
            values.ndim != 1
            or values.size < 2
            or not np.isfinite(values).all()
            or not (np.diff(values) >= _NARROWEST).all()
        ):
            raise SchemaError(
                f"edges of {name} are {edges!r}, expected at least two finite ascending numbers "
                "in µm, such as np.arange(0, 501, 25)"
            )
        result[name] = values
    return result


def as_bins(edges: Mapping[str, np.ndarray]) -> tuple[Bins, Bins]:
    """Prepare one or two directions for the kernels; what is absent becomes one bin for all."""
    whole = Bins(_NONE, np.array([0.0, 1.0]), np.zeros(1, dtype=np.int32), 0.0, 0)
    bins = [_bins(name, e) for name, e in edges.items()]
    first, second, *_ = [*bins, whole, whole]
    return first, second


def _bins(name: str, edges: np.ndarray) -> Bins:
    length = edges[-1] - edges[0]
    n_cells = int(2 * length / max(np.diff(edges).min(), 2 * length / _MOST_CELLS))
    scale = n_cells / length
    # From one cell before to one after: rounding may put a distance into a cell beside its own.
    cells = np.arange(-1, n_cells + 2) / scale
    among = np.searchsorted(edges - edges[0], cells, side="right") - 1
    among = np.clip(among, 0, edges.size - 2)
    start, last = among[:-3], among[3:]
    steps = int((last - start).max())
    return Bins(_KINDS[name], edges, start.astype(np.int32), scale, steps)


def positions_of_units(units: xr.Dataset, edges: Mapping[str, np.ndarray]) -> Neurons:
    """Return positions of units on the axes that directions need.

    Parameters
    ----------
    units : xarray.Dataset
        Units with ``position(nucleus_id, axis)``.
    edges : mapping of str to numpy.ndarray
        What `read_bins` returned.

    Returns
    -------
    Neurons
        float64; axes that are not needed are 0.

    Raises
    ------
    SchemaError
        If there are no positions, or their axes are not x, y, z.
    """
    n = units.sizes["nucleus_id"]
    needed = {axis for name in edges for axis in DIRECTIONS[name][0]}
    if not needed:
        return Neurons(*np.zeros((3, n)))
    if "position" not in units or set(units["position"].dims) != {"nucleus_id", "axis"}:
        raise SchemaError(
            "units has no position(nucleus_id, axis), which distances need: build the units with "
            "mx.Release(...).units(), or leave distance out"
        )
    position = units["position"].transpose("nucleus_id", "axis")
    axes = tuple(position["axis"].values) if "axis" in position.coords else AXES
    if axes != AXES:
        raise SchemaError(f"axis of position is {axes}, expected {AXES}")
    columns = [
        np.ascontiguousarray(position.values[:, i], dtype=float) if axis in needed else np.zeros(n)
        for i, axis in enumerate(AXES)
    ]
    return Neurons(*columns)


def count_pairs(
    pre: Neurons,
    post: Neurons,
    own: np.ndarray,
    group_starts: np.ndarray,
    indices: np.ndarray,
    spans: np.ndarray,
    edges: Mapping[str, np.ndarray],
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Count tested and connected pairs of each presynaptic neuron by group and bin.

    Parameters
    ----------
    pre, post : Neurons
        Positions; those of the postsynaptic neurons in the order of their groups.
    own : numpy.ndarray
        (pre,), where a presynaptic neuron itself is among `post`, -1 where it is not.
    group_starts : numpy.ndarray
        (groups + 1,), where each group of `post` begins.
    indices : numpy.ndarray
        Partners of presynaptic neurons, as positions in `post`.
    spans : numpy.ndarray
        (pre, 2), where the partners of each begin and end in `indices`.
    edges : mapping of str to numpy.ndarray
        What `read_bins` returned.
    threads : int
        How many threads.

    Returns
    -------
    tuple of numpy.ndarray
        Tested and connected pairs, int32, each (pre, groups, bins) or (pre, groups, bins of the
        first direction, bins of the second). A pair of a neuron with itself is in neither.

    Examples
    --------
    >>> one = Neurons(np.zeros(1), np.zeros(1), np.zeros(1))
    >>> three = Neurons(np.array([0.0, 10.0, 30.0]), np.zeros(3), np.zeros(3))
    >>> count_pairs(one, three, np.array([0]), np.array([0, 3]), np.array([1]), np.array([[0, 1]]),
    ...     {"lateral": np.array([0.0, 10.0, 50.0])}, 1)
    (array([[[0, 2]]], dtype=int32), array([[[0, 1]]], dtype=int32))
    """
    first, second = as_bins(edges)
    n_groups = group_starts.size - 1
    shape = (own.size, n_groups, first.n * second.n)
    tested, connected = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    group_of = np.repeat(np.arange(n_groups), np.diff(group_starts))
    if not edges:
        tested += np.diff(group_starts).astype(np.int32)[:, None]
        rows = np.flatnonzero(own >= 0)
        tested[rows, group_of[own[rows]], 0] -= 1

    def work(lo: int, hi: int) -> None:
        _count(
            pre, post, own, group_starts, group_of, indices, spans, first, second,
            tested, connected, lo, hi,
        )  # fmt: skip

    run_spans(work, equal_spans(own.size, 8 * threads), threads)
    by_bin = (own.size, n_groups, *(e.size - 1 for e in edges.values()))
    return tested.reshape(by_bin), connected.reshape(by_bin)


@numba.njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    pre, post, own, group_starts, group_of, indices, spans, first, second,
    tested, connected, lo, hi,
):  # fmt: skip
    # The bin of every postsynaptic neuron, seen from one presynaptic neuron; the last is none.
    none = tested.shape[2]
    bin_of = np.zeros(post.x.size, np.int32)
    distance = np.empty(post.x.size)
    counts = np.zeros(none + 1, np.int32)
    for i in range(lo, hi):
        if first.kind != _NONE:
            bin_of[:] = 0
            for bins in (first, second):
                if bins.kind != _NONE:
                    _find_distances(
                        bins.kind, pre.x[i], pre.y[i], pre.z[i], post.x, post.y, post.z, distance
                    )
                    _find_bins(
                        bins.edges, bins.start, bins.scale, bins.steps, none, distance, bin_of
                    )
        if own[i] >= 0:
            bin_of[own[i]] = none
        if first.kind != _NONE:
            for group in range(group_starts.size - 1):
                counts[:] = 0
                for j in range(np.uintp(group_starts[group]), np.uintp(group_starts[group + 1])):
                    counts[np.uintp(bin_of[j])] += 1
                tested[i, group] = counts[:none]
        for p in range(spans[i, 0], spans[i, 1]):
            k = bin_of[indices[p]]
            if k != none:
                connected[i, group_of[indices[p]], k] += 1
        if own[i] >= 0:
            bin_of[own[i]] = 0


@numba.njit(nogil=True, cache=True)
def _find_distances(  # type: ignore[no-untyped-def]
    kind, x, y, z, post_x, post_y, post_z, out
):
    # Loops of their own, each of which becomes one over registers.
    if kind == 0:
        for j in range(out.size):
            out[j] = np.sqrt((post_x[j] - x) ** 2 + (post_z[j] - z) ** 2)
    elif kind == 1:
        for j in range(out.size):
            out[j] = abs(post_y[j] - y)
    elif kind == 2:
        for j in range(out.size):
            out[j] = post_y[j] - y
    else:
        for j in range(out.size):
            out[j] = np.sqrt((post_x[j] - x) ** 2 + (post_y[j] - y) ** 2 + (post_z[j] - z) ** 2)


@numba.njit(nogil=True, cache=True)
def _find_bins(edges, start, scale, steps, none, distance, out):  # type: ignore[no-untyped-def]
    n = np.int32(edges.size - 1)
    lowest, end, last = edges[0], edges[n], start.size - 1
    for j in range(out.size):
        d = distance[j]
        inside = d >= lowest and d < end
        cell = (d - lowest) * scale if inside else 0.0
        k = start[min(np.uint32(cell), np.uint32(last))]
        for _ in range(steps):
            k += np.int32(d >= edges[np.uintp(k + 1)])
        out[j] = out[j] * n + k if inside and out[j] != none else none
