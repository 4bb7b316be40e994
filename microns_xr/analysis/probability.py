"""Connection probability between populations, and by distance, among tested pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.pairs import (
    ChosenNeurons,
    choose_neurons,
    completeness_of,
    count_axons,
    labelled,
    same_neurons,
    unit_positions,
)
from microns_xr.analysis.populations import Sides, by_side, label_parts, population_labels
from microns_xr.analysis.resample import (
    DEFAULT_BOOTSTRAP,
    Bootstrap,
    Wilson,
    bootstrap_ratio,
    ratio,
    require_interval,
    wilson_interval,
)
from microns_xr.connectivity.arrays import pair_buffers, pair_names
from microns_xr.connectivity.blocks import Side
from microns_xr.connectivity.subset import recompress, take
from microns_xr.errors import SchemaError, require_instance, unknown_label
from microns_xr.frames import require_depth
from microns_xr.provenance import add_history
from microns_xr.store.passed import Connectivity, connectivity_of
from microns_xr.threads import equal_spans, run_spans, usable_threads

# Direction to the axes of the position that it needs, and its long name; y is depth from the pia.
DIRECTIONS = {
    "lateral": ("xz", "distance in the x-z plane"),
    "depth": ("y", "difference of depth, without sign"),
    "depth_change": ("y", "depth of the postsynaptic neuron minus that of the presynaptic one"),
    "euclidean": ("xyz", "distance in space"),
}
# Numbers of pairs, int32: 200 million are 1.6 GB together with those of connected pairs.
_MAX_COUNTS = 200_000_000


def connection_probability(
    connectivity: Connectivity,
    units: xr.Dataset,
    by: Sides | None = "cell_type",
    distance: Any = None,
    *,
    pre: Any = None,
    post: Any = None,
    presynaptic: str | Iterable[str] = "extended",
    interval: Bootstrap | Wilson = DEFAULT_BOOTSTRAP,
) -> xr.Dataset:
    """Estimate connection probability between populations, and by distance.

    The denominator is the number of tested pairs: both neurons are on the axes of the connectivity
    and among the units, they are not the same neuron, and the presynaptic axon is complete enough.
    Axons that are not full give a lower bound, since part of their targets is missing.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store. Of lazy connectivity only the tested pairs are loaded.
    units : xarray.Dataset
        Units of the same release; neurons that are not among them are left out.
    by : str, collection of str, xarray.DataArray, mapping or None, optional
        Populations, as `population_labels` takes them; ``{"pre": ..., "post": ...}`` for
        different ones of each side; None for one population of all neurons.
    distance : array-like or mapping of str to array-like, optional
        Edges of bins in µm of the lateral distance, or of one or two directions, such as
        ``{"lateral": edges, "depth": edges}``: "lateral" is the distance in the x-z plane, "depth"
        the difference of depth (y), "depth_change" the depth of the postsynaptic neuron minus
        that of the presynaptic one, "euclidean" the distance in space. A bin includes its lower
        edge but not its upper one, also the last one.
    pre, post : mapping, collection of int, units Dataset, or None, optional
        Neurons of either side: conditions of `select_units` such as ``{"layer": "L4"}``, or
        nucleus ids on the axis, taken as they are; None takes all neurons, without cells of the
        class ``"nonneuron"`` (glia). If the scope of the connectivity is "unknown",
        both are required, and assert that these pairs were requested; a warning says how many of
        these neurons are not on the axis, or, of most, that they have no connection at all.
    presynaptic : str or collection of str, optional
        Which axons are complete enough, as the condition `axon` of `select_units`:
        ``"extended"`` (partial or full; before release 1078 the status "extended"), ``"full"``,
        ``"proofread"`` (in any way), words of ``axon_completeness``, or ``"all"``.
    interval : Bootstrap or Wilson, optional
        Resampling of presynaptic neurons, each with all its pairs; or Wilson's interval, which
        treats pairs as independent and is too narrow where neurons differ.

    Returns
    -------
    xarray.Dataset
        Over (``pre_<name>``, ``post_<name>``) unless `by` is None, and ``<direction>_distance``
        (middle of a bin, µm, with coordinates ``..._start`` and ``..._end``) for each direction:
        ``n_pairs`` (tested), ``n_connected``, int64; ``mean_<direction>_distance`` of the tested
        pairs (µm), which is not the middle of the bin (17 µm of lateral distances up to 25 µm):
        use it for regressions; ``probability``, their ratio, NaN without a
        pair; ``probability_low`` and ``probability_high``, NaN if the interval is unknown (for the
        bootstrap: fewer than two neurons, or all with the same ratio, such as 0);
        ``n_pre_tested``, presynaptic neurons with a tested pair. Also
        ``n_pre(pre_<name>, axon_completeness)``, ``n_post(post_<name>)`` and
        ``lower_bound(pre_<name>)``, True if some axons are not full. The attributes say how many
        neurons were ``left_out`` and why, and how many pairs lie outside the bins.

    Raises
    ------
    SchemaError
        If the scope is unknown and `pre` or `post` is missing, no neuron of a side is left, the
        units lack a variable, edges do not ascend, or there are too many bins and populations.
    UnknownLabelError
        If a variable, a word of `presynaptic`, a direction, or an id of `pre` or `post` is
        unknown.
    ReleaseMismatchError
        If two of the objects are from different releases.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> result = connection_probability(release.connectivity(), release.units(),
    ...     by="classification_system", distance=[0, 100, 200])
    >>> result.probability.dims
    ('pre_classification_system', 'post_classification_system', 'lateral_distance')
    """
    require_interval(interval, Bootstrap, Wilson)
    pairs, _ = connectivity_of(connectivity, "pre")
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    edges = read_edges(distance)
    axes = {axis for name in edges for axis in DIRECTIONS[name][0]}
    at = unit_positions(units, axes) if axes else np.zeros((3, units.sizes.get("nucleus_id", 0)))
    if set(edges) - {"euclidean"}:
        require_depth(units["position"])
    needed = {"without_position": np.asarray(np.isfinite(at).all(axis=0))}
    neurons = choose_neurons(pairs, units, pre, post, presynaptic, needed)
    sides = {
        side: _side(pairs, neurons, labels, side) for side, labels in _labels(units, by).items()
    }
    result = _axes(pairs, units, sides, edges)
    same = same_neurons(sides["pre"].ids, sides["post"].ids)
    counts = _count_by_population(pairs, sides, same, at, edges)
    dims = (*(side.dim for side in sides.values()), *(f"{name}_distance" for name in edges))
    _estimate(result, dims, counts, interval, tuple(edges))
    n_autapses = int((same >= 0).sum())
    n_all = int(result["n_pre"].sum()) * int(result["n_post"].sum())
    result.attrs |= neurons.attrs | {
        "autapses_left_out": n_autapses,
        "pairs_outside_bins": n_all - n_autapses - int(result["n_pairs"].sum()),
    }
    for name, dataset in (("history", pairs), ("units_history", units)):
        if dataset.attrs.get("history"):
            result.attrs[name] = dataset.attrs["history"]
    populations = [str(side.labels.name) for side in sides.values()]
    if by is None:
        result = result.isel(pre_population=0, post_population=0, drop=True)
    bins = {name: e.tolist() for name, e in edges.items()} or None
    entry = f"by={populations}, distance={bins}, {neurons.text}, interval={interval}"
    return add_history(result, f"connection_probability({entry})")


def read_edges(distance: Any) -> dict[str, np.ndarray]:
    """Read the edges of bins by direction."""
    if distance is None:
        return {}
    by_direction = dict(distance) if isinstance(distance, Mapping) else {"lateral": distance}
    if not 1 <= len(by_direction) <= 2:
        raise SchemaError(
            f"distance has {len(by_direction)} directions, expected edges for one or two"
        )
    result = {}
    for name, edges in by_direction.items():
        if name not in DIRECTIONS:
            raise unknown_label("distance has the direction", name, DIRECTIONS)
        try:
            values = np.asarray(edges, dtype=float)
        except (TypeError, ValueError) as error:
            raise SchemaError(f"edges of {name} are not numbers: {error}") from error
        ascending = values.ndim == 1 and values.size > 1 and (np.diff(values) > 0).all()
        if not (ascending and np.isfinite(values).all()):
            raise SchemaError(
                f"edges of {name} are {edges!r}, expected at least two finite ascending numbers "
                "in µm, such as np.arange(0, 501, 25)"
            )
        result[name] = values
    return result


class _Side(NamedTuple):
    """The chosen neurons of one axis and their populations."""

    labels: xr.DataArray  # of all units
    dim: str
    ids: np.ndarray
    rows: np.ndarray  # among the units
    groups: np.ndarray  # words, sorted
    codes: np.ndarray  # number of the group of each neuron


def _labels(units: xr.Dataset, by: Sides | None) -> dict[Side, xr.DataArray]:
    if by is None:
        ids = units["nucleus_id"]
        words = np.full(ids.size, "all", dtype=object)
        labels = xr.DataArray(words, {"nucleus_id": ids}, ("nucleus_id",), "population")
        return {"pre": labels, "post": labels}
    of_side = by_side(by)
    pre = population_labels(units, of_side["pre"])
    same = of_side["post"] is of_side["pre"]
    return {"pre": pre, "post": pre if same else population_labels(units, of_side["post"])}


def _side(
    connectivity: xr.Dataset, neurons: ChosenNeurons, labels: xr.DataArray, side: Side
) -> _Side:
    positions = neurons.positions(side)
    rows = neurons.rows[side][positions]
    codes, groups = pd.factorize(labels.values[rows], sort=True)
    ids = connectivity[f"{side}_nucleus_id"].values[positions]
    return _Side(labels, f"{side}_{labels.name}", ids, rows, groups, codes)


def _axes(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    sides: Mapping[Side, _Side],
    edges: Mapping[str, np.ndarray],
) -> xr.Dataset:
    """Make the axes of the result, with the neurons of each population."""
    coords: dict[str, Any] = {str(n): c for n, c in connectivity.coords.items() if not c.dims}
    for name, side in sides.items():
        coords[side.dim] = side.groups
        coords |= label_parts(side.labels, side.dim, name, side.groups)
    for direction, e in edges.items():
        dim = f"{direction}_distance"
        attrs = {"units": "µm", "long_name": DIRECTIONS[direction][1]}
        coords[dim] = (dim, (e[:-1] + e[1:]) / 2, {**attrs, "what": "middle of the bin"})
        coords[f"{dim}_start"] = (dim, e[:-1], {**attrs, "what": "lower edge, in the bin"})
        coords[f"{dim}_end"] = (dim, e[1:], {**attrs, "what": "upper edge, not in the bin"})
    pre, post = sides.values()
    words = list(count_axons(units, pre.rows))
    coords["axon_completeness"] = np.array(words, dtype=object)
    word_of = pd.Index(words).get_indexer(pd.Index(completeness_of(units, pre.rows)))
    n_pre = np.zeros((pre.groups.size, len(words)), dtype=np.int64)
    np.add.at(n_pre, (pre.codes, word_of), 1)
    result = xr.Dataset(coords=coords)
    text = "presynaptic neurons by completeness of the axon"
    result["n_pre"] = labelled((pre.dim, "axon_completeness"), n_pre, text, "neurons")
    n_post = np.bincount(post.codes)
    result["n_post"] = labelled(post.dim, n_post, "postsynaptic neurons", "neurons")
    partial = n_pre[:, [word != "full" for word in words]].any(axis=1)
    text = "whether some axons are not known to be fully extended"
    result["lower_bound"] = labelled(pre.dim, partial, text)
    return result


def _count_by_population(
    connectivity: xr.Dataset,
    sides: Mapping[Side, _Side],
    same: np.ndarray,
    at: np.ndarray,
    edges: Mapping[str, np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pairs and connected pairs of each neuron, and the summed distances of all pairs.

    One presynaptic population at a time.
    """
    pre, post = sides.values()
    n_bins = int(np.prod([e.size - 1 for e in edges.values()]))
    n_most = int(np.bincount(pre.codes).max())
    if n_most * post.groups.size * n_bins > _MAX_COUNTS:
        raise SchemaError(
            f"{n_most} presynaptic neurons x {post.groups.size} populations x {n_bins} bins are "
            f"too many to hold at once, expected at most {_MAX_COUNTS}: use fewer bins, or coarser "
            "populations"
        )
    # Only the pattern is needed, and of lazy connectivity only the chosen neurons are loaded.
    chosen = take(connectivity[pair_names(connectivity)[:1]], pre.ids, post.ids).compute()
    pattern, _ = pair_buffers(recompress(chosen, "pre"))
    order, slabs = in_slabs(np.take(at, post.rows, axis=1), edges)
    place = np.empty(order.size, dtype=np.int32)
    place[order] = np.arange(order.size)
    group_of = post.codes[order]
    post_at = np.take(at, post.rows[order], axis=1)
    same = np.where(same >= 0, place[same], -1)
    partners = place[pattern.indices]
    for group in range(pre.groups.size):
        members = np.flatnonzero(pre.codes == group)
        spans = np.stack([pattern.indptr[members], pattern.indptr[members + 1]], axis=1)
        pre_at = np.take(at, pre.rows[members], axis=1)
        threads = usable_threads(None, members.size * order.size)
        yield count_pairs(
            pre_at, post_at, same[members], group_of, slabs, partners, spans, edges, threads
        )


def _estimate(
    result: xr.Dataset,
    dims: tuple[str, ...],
    counts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    interval: Bootstrap | Wilson,
    directions: tuple[str, ...],
) -> None:
    """Write counts, probabilities and intervals into `result`."""
    rows = []
    distances = []
    for pairs, connected, summed in counts:
        n_pairs, n_connected = (c.sum(axis=0, dtype=np.int64) for c in (pairs, connected))
        if isinstance(interval, Wilson):
            ends = wilson_interval(n_connected, n_pairs, interval.confidence)
        else:
            ends = bootstrap_ratio(connected, pairs, interval)
        n_neurons = (pairs > 0).sum(axis=0, dtype=np.int64)
        rows.append((n_pairs, n_connected, n_neurons, ratio(n_connected, n_pairs), *ends))
        distances.append(ratio(summed, n_pairs))
    n_pairs, n_connected, n_tested, probability, low, high = map(np.stack, zip(*rows, strict=True))
    text = f"{type(interval).__name__.lower()} interval of confidence {interval.confidence}"
    result["n_pairs"] = labelled(dims, n_pairs, "pairs tested", "pairs")
    result["n_connected"] = labelled(dims, n_connected, "connected pairs", "pairs")
    tested = "presynaptic neurons with a tested pair"
    result["n_pre_tested"] = labelled(dims, n_tested, tested, "neurons")
    for name, mean in zip(directions, np.stack(distances, axis=1), strict=True):
        about = f"mean of the tested pairs: {DIRECTIONS[name][1]}"
        result[f"mean_{name}_distance"] = labelled(dims, mean, about, "µm")
    result["probability"] = labelled(dims, probability, "connection probability", "1")
    result["probability_low"] = labelled(dims, low, f"lower end of the {text}", "1")
    result["probability_high"] = labelled(dims, high, f"upper end of the {text}", "1")
    result.attrs["interval"] = text


# Count pairs by distance without a matrix of distances. A distance on an edge is in the bin above.


_KINDS = {name: i for i, name in enumerate(DIRECTIONS)}
_NONE = -1  # no direction
# The axes along which each kind of distance is at least the difference of position: neurons are
# sorted along the first, in slabs along the second.
_AXES_OF = {"lateral": (2, 0), "depth": (1, 1), "depth_change": (1, 1), "euclidean": (2, 0)}


class Slabs(NamedTuple):
    """Neighbouring neurons, sorted along an axis, of which those in reach are one span."""

    starts: np.ndarray  # of the neurons of each slab, and their number
    ends: np.ndarray  # (slabs, 2): lowest and highest position along the other axis


def in_slabs(at: np.ndarray, edges: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Slabs]:
    """Return the order of the neurons in slabs, and the slabs."""
    along, across = _axes_in_reach(edges)
    n_slabs = 1 if along == across else min(32, 1 + at.shape[1] // 1000)
    slabs = np.array_split(np.argsort(at[across]), n_slabs)
    ends = np.array([[-np.inf, np.inf]])
    if n_slabs > 1:
        ends = np.stack([at[across, slab[[0, -1]]] for slab in slabs])
    order = np.concatenate([slab[np.argsort(at[along, slab])] for slab in slabs])
    return order, Slabs(np.cumsum([0, *map(len, slabs)]), ends)


def _axes_in_reach(edges: Mapping[str, np.ndarray]) -> tuple[int, int]:
    return next((_AXES_OF[name] for name in edges), (1, 1))


def _reach(edges: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Return between which differences of position along that axis a bin can be."""
    name, of_first = next(iter(edges.items()), ("lateral", np.array([np.inf])))
    highest = float(of_first[-1])
    # A little more, because distances are rounded.
    margin = 1e-6 * max(abs(highest), abs(float(of_first[0])), 1.0)
    lowest = float(of_first[0]) if name == "depth_change" else -highest
    return lowest - margin, highest + margin


# Distances are summed as whole numbers, whose sums do not depend on the number of threads.
_PER_UM = 1000


def count_pairs(
    pre_at: np.ndarray,
    post_at: np.ndarray,
    same: np.ndarray,
    group_of: np.ndarray,
    slabs: Slabs,
    partners: np.ndarray,
    spans: np.ndarray,
    edges: Mapping[str, np.ndarray],
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pairs and connected pairs of each presynaptic neuron by postsynaptic group and bin.

    Postsynaptic neurons are in the order of `in_slabs`. The third array are the distances of the
    pairs of all these neurons, summed, by direction.
    """
    none = (_NONE, np.empty(0))
    first, second, *_ = [*((_KINDS[name], e) for name, e in edges.items()), none, none]
    sizes = np.bincount(group_of)
    n_groups = sizes.size
    n_bins = [e.size - 1 for e in edges.values()]
    shape = (same.size, n_groups, int(np.prod(n_bins)))
    n_pairs, n_connected = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    if not edges:
        n_pairs += sizes.astype(np.int32)[:, None]
        rows = np.flatnonzero(same >= 0)
        n_pairs[rows, group_of[same[rows]], 0] -= 1

    def work(lo: int, hi: int) -> np.ndarray:
        summed = np.zeros((len(edges), *shape[1:]), np.int64)
        _count(
            pre_at, post_at, same, group_of, *slabs, partners, spans, first, second,
            _axes_in_reach(edges), _reach(edges), n_pairs, n_connected, summed, lo, hi,
        )  # fmt: skip
        return summed

    parts = run_spans(work, equal_spans(same.size, 2 * threads), threads)
    summed = np.sum(parts, axis=0, dtype=np.int64) / _PER_UM
    by_bin = (n_groups, *n_bins)
    return (
        n_pairs.reshape(same.size, *by_bin),
        n_connected.reshape(same.size, *by_bin),
        summed.reshape(len(edges), *by_bin),
    )


@numba.njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    pre_at, post_at, same, group_of, slab_starts, slab_ends, partners, spans, first, second,
    axes, reach, n_pairs, n_connected, summed, lo, hi,
):  # fmt: skip
    # The bin of every postsynaptic neuron for one presynaptic neuron; `none` is outside all bins,
    # as are the neurons out of reach.
    n_groups, none = n_pairs.shape[1:]
    by_distance = first[0] != _NONE
    bin_of = np.full(post_at.shape[1], none if by_distance else 0, np.int32)
    bin_of_one = np.empty(post_at.shape[1], np.int32)
    distances = np.empty((2, post_at.shape[1]))
    counts = np.zeros((n_groups, none + 1), np.int32)
    totals = np.zeros((summed.shape[0], n_groups, none + 1), np.int64)
    starts, stops = slab_starts[:-1].copy(), slab_starts[1:].copy()
    place = post_at[axes[0]]
    for i in range(lo, hi):
        at, at_other = pre_at[axes[0], i], pre_at[axes[1], i]
        counts[:] = 0
        for slab in range(starts.size if by_distance else 0):
            start, stop = slab_starts[slab], slab_starts[slab + 1]
            low, high = reach
            apart = max(slab_ends[slab, 0] - at_other, at_other - slab_ends[slab, 1])
            if apart > high:
                starts[slab] = stops[slab] = start
                continue
            if apart > 0:
                high = np.sqrt(high**2 - apart**2)
                low = -high
            span = place[start:stop]
            stop = start + np.searchsorted(span, at + high, side="right")
            start += np.searchsorted(span, at + low)
            near = bin_of[start:stop]
            near[:] = 0
            for d, (kind, edges) in enumerate((first, second)):
                if kind != _NONE:
                    far = distances[d, start:stop]
                    _find_distances(kind, pre_at[:, i], post_at[:, start:stop], far)
                    _find_bins(edges, none, far, bin_of_one[start:stop], near)
            if start <= same[i] < stop:
                bin_of[same[i]] = none
            for d in range(summed.shape[0]):
                for j in range(np.uintp(start), np.uintp(stop)):
                    g, b = np.uintp(group_of[j]), np.uintp(bin_of[j])
                    counts[g, b] += np.int32(d == 0)
                    totals[d, g, b] += np.int64(distances[d, j] * _PER_UM)
            starts[slab], stops[slab] = start, stop
        # Assigning a slice takes seconds to compile.
        for group in range(n_groups if by_distance else 0):
            for k in range(none):
                n_pairs[i, group, k] = counts[group, k]
        if same[i] >= 0:
            bin_of[same[i]] = none
        for p in range(spans[i, 0], spans[i, 1]):
            k = bin_of[partners[p]]
            if k != none:
                n_connected[i, group_of[partners[p]], k] += 1
        if by_distance:
            for slab in range(starts.size):
                bin_of[starts[slab] : stops[slab]] = none
        elif same[i] >= 0:
            bin_of[same[i]] = 0
    for d in range(summed.shape[0]):
        for group in range(n_groups):
            for k in range(none):
                summed[d, group, k] = totals[d, group, k]


@numba.njit(nogil=True, cache=True)
def _find_distances(kind, pre, post, out):  # type: ignore[no-untyped-def]
    # One loop per kind, so that each is compiled to vector instructions.
    x, y, z = pre[0], pre[1], pre[2]
    post_x, post_y, post_z = post[0], post[1], post[2]
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
def _find_bins(edges, none, distance, k, out):  # type: ignore[no-untyped-def]
    # One pass per edge is compiled to vector instructions, which a search for the bin of each
    # distance is not: for 20 bins it is four times as fast.
    k[:] = -1
    for edge in edges:
        for j in range(out.size):
            k[j] += np.int32(distance[j] >= edge)
    n = np.int32(edges.size - 1)
    for j in range(out.size):
        inside = k[j] >= 0 and k[j] < n and out[j] != none
        out[j] = out[j] * n + k[j] if inside else none
