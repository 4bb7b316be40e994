"""Connections by the difference between the preferred angles of the two neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import xarray as xr

from microns_xr.analysis.pairs import (
    SIDES,
    ChosenNeurons,
    choose_neurons,
    labelled,
    same_neurons,
    unit_angle,
)
from microns_xr.analysis.resample import (
    DEFAULT_BOOTSTRAP,
    Bootstrap,
    describe_bootstrap,
    neuron_weights,
    percentile_interval,
    ratio,
    require_interval,
)
from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    as_pairs,
    is_scope_known,
    pair_buffers,
    weight_of,
)
from microns_xr.connectivity.subset import drop_autapses, take
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history
from microns_xr.threads import equal_spans, run_spans, usable_threads

Presynaptic = str | Iterable[str]

# Statistic to its long name.
_OF_BINS = {"probability": "connection probability", "mean_size": "mean size of a connection"}
_OF_CURVE = {
    "contrast": "connection probability of the first bin minus that of the last",
    "slope": "slope of the connection probability over the difference",
    "size_contrast": "mean size of the first bin minus that of the last",
}


def like_to_like(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    angle: str = "pref_ori",
    bins: int | Sequence[float] = 5,
    pre: Any = None,
    post: Any = None,
    presynaptic: Presynaptic = "extended",
    weight: str | None = None,
    normalise: bool = False,
    interval: Bootstrap | None = DEFAULT_BOOTSTRAP,
) -> xr.Dataset:
    """Measure connection probability and mean size against the difference of preferred angles.

    The probability of a bin is its number of connected pairs divided by its number of pairs. A pair
    is a chosen presynaptic and a chosen postsynaptic neuron that both have the angle and are on the
    axes of the connectivity; a neuron with itself is not a pair.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    units : xarray.Dataset
        Units with the angle, NaN for neurons that have none.
    angle : str, optional
        Variable of the units, with its units, convention and, for orientations, period as
        attributes.
    bins : int or sequence of float, optional
        Number of bins, with centres evenly spaced from 0 to half a period, so that the first and
        the last are half as wide (5 for orientations measured in steps of 22.5°: 0°, 22.5° ...
        90°); or ascending edges in the units of the angle. A bin includes its lower edge, the
        last one also its upper edge.
    pre, post : mapping, collection of int, units Dataset, or None, optional
        Neurons of either side: conditions of `select_units` such as ``{"layer": "L4"}``, or
        nucleus ids on the axis, taken as they are; None takes all neurons, without cells of the
        class ``"nonneuron"`` (glia). If the scope of the connectivity is "unknown",
        both are required, and assert that these pairs were requested; a warning says how many of
        these neurons are not on the axis, or, of most, that they have no connection at all.
    presynaptic : str or collection of str, optional
        Which axons are complete enough, as the condition `axon` of `select_units`:
        ``"extended"`` (partial or full; before release 1078 the status "extended"), ``"full"``,
        ``"proofread"`` (in any way), words of ``axon_completeness``, or ``"all"``. Anything
        but "full" gives lower bounds, since targets beyond a reconstruction count as unconnected.
    weight : str, optional
        Weight that is averaged over connections; by default ``synapse_size``, or else the only one.
    normalise : bool, optional
        Divide probabilities by the probability over all bins, and sizes by the mean size.
    interval : Bootstrap or None, optional
        How neurons are resampled for the intervals; None for no intervals.

    Returns
    -------
    xarray.Dataset
        Over ``difference`` (bin centres, absolute, in the units of the angle; edges in
        ``difference_start`` and ``difference_end``): ``probability``, ``mean_size`` (mean of
        `weight`, NaN without a connection), ``n_pairs``, ``n_connected``, ``mean_difference`` (of
        the pairs of a bin, which is not its centre: 5.6° in the first of five bins if all
        orientations are equally frequent); scalars ``contrast`` (probability of the first minus
        that of the last bin), ``slope`` (per unit of angle, least squares over the
        differences of all pairs in the bins, so that it does not depend on how they are binned) and
        ``size_contrast``; ends of the intervals as ``probability_low``, ``probability_high`` and so
        on, NaN if a bin has no connection; ``n_pre`` and ``n_post``. The attributes count
        the presynaptic neurons by completeness of the axon (``axons_used``) and the neurons that
        were ``left_out`` by reason; ``completeness`` says what that means for the probability.

    Raises
    ------
    SchemaError
        If the angle has no units, edges are not between 0 and half a period, the scope of the
        connectivity is unknown and `pre` or `post` is missing, or no neuron is left.
    UnknownLabelError
        If a variable, a condition, a word or an id does not exist.
    ReleaseMismatchError
        If the two are from different releases.

    Notes
    -----
    More connections between similar neurons do not imply that neurons choose similar partners.
    Tuned neurons with more connections, unequal degrees, or similar neurons that lie close together
    have the same effect. `mx.analysis.null_models` lists which null model controls for what.

    Examples
    --------
    Neuron 11 is connected to 12, which is tuned to the orthogonal orientation, and 12 to 11:

    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> angles = ("nucleus_id", [0.0, 90.0],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> units = xr.Dataset({"pref_ori": angles, "axon_completeness": ("nucleus_id", ["full"] * 2)},
    ...     coords={"nucleus_id": [11, 12]})
    >>> result = like_to_like(two_neurons(), units, pre=[11, 12], post=[11, 12], bins=3,
    ...     presynaptic="all", interval=None)
    >>> result.n_pairs.values, result.probability.sel(difference=90).item()
    (array([0, 0, 2]), 1.0)
    """
    require_interval(interval, Bootstrap, type(None))
    connectivity = as_pairs(connectivity)
    weight = weight_of(connectivity, weight)
    neurons, pairs, bin_coords = prepare(
        connectivity, units, angle, bins, pre, post, presynaptic, weight
    )
    counts = count_pairs(pairs)
    totals = counts.sum(axis=0)
    result = statistics(totals, bin_coords, normalise)
    n_pairs, n_connected = np.rint(totals[:2]).astype(np.int64)
    mean_difference = ratio(totals[_DIFFERENCE], n_pairs)
    text, angle_units = "mean difference of the pairs", result["difference"].attrs["units"]
    result["mean_difference"] = labelled("difference", mean_difference, text, angle_units)
    result["n_pairs"] = labelled("difference", n_pairs, "pairs of neurons")
    result["n_connected"] = labelled("difference", n_connected, "connected pairs")
    for side in SIDES:
        text = f"{side}synaptic neurons that take part"
        result[f"n_{side}"] = labelled((), neurons.positions(side).size, text)
    size_units = "1" if normalise else connectivity[weight].attrs.get("units")
    for name in ("mean_size", "size_contrast"):
        attrs = result[name].attrs
        if weight != "synapse_size":  # sizes of synapses are not what is averaged
            attrs["long_name"] = attrs["long_name"].replace("mean size", f"mean {weight}")
        attrs |= {"units": size_units} if size_units else {}
    result = result.assign_coords({n: c for n, c in connectivity.coords.items() if not c.ndim})
    if interval is not None:
        draws = statistics(_draw(pairs, counts, neurons, interval), bin_coords, normalise)
        _add_intervals(result, draws, interval.confidence)
        resampled = "both sides" if interval.both_sides else "presynaptic neurons"
        result.attrs |= describe_bootstrap(interval) | {"resampled": resampled}
    result.attrs |= {"angle": angle, "weight": weight, **neurons.attrs}
    entry = f"like_to_like(angle={angle!r}, {neurons.text}, weight={weight!r}, {normalise=})"
    return add_history(result, entry, source=(connectivity, units))


def tuned_connections(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    angle: str = "pref_ori",
    pre: Any = None,
    post: Any = None,
    presynaptic: Presynaptic = "extended",
) -> xr.Dataset:
    """Select the connections that `like_to_like` counts, from which to build null models.

    A null model of a whole release exchanges partners with neurons that are never counted; built
    from these connections it keeps the degrees within exactly the pairs that are counted.

    Parameters
    ----------
    connectivity, units, angle, pre, post, presynaptic
        As `like_to_like`.

    Returns
    -------
    xarray.Dataset
        Connectivity without autapses; its axes are the chosen neurons that have the angle, on the
        presynaptic side those with a complete enough axon. The scope "unknown" becomes "requested",
        since `pre` and `post` are then required.

    Raises
    ------
    SchemaError, UnknownLabelError, ReleaseMismatchError
        As `like_to_like`.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> angles = ("nucleus_id", [0.0, np.nan],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> units = xr.Dataset({"pref_ori": angles, "axon_completeness": ("nucleus_id", ["full"] * 2)},
    ...     coords={"nucleus_id": [11, 12]})
    >>> tuned = tuned_connections(two_neurons(), units, pre=[11, 12], post=[11, 12],
    ...     presynaptic="all")
    >>> dict(tuned.sizes), tuned.scope.item()
    ({'pre_nucleus_id': 1, 'post_nucleus_id': 1}, 'requested')
    """
    connectivity = as_pairs(connectivity)
    has_angle = {f"without_{angle}": np.isfinite(unit_angle(units, angle)[0])}
    neurons = choose_neurons(connectivity, units, pre, post, presynaptic, has_angle)
    ids = [connectivity[f"{side}_nucleus_id"].values[neurons.positions(side)] for side in SIDES]
    result = drop_autapses(take(connectivity, *ids))
    if not is_scope_known(connectivity):
        result = result.assign_coords(scope=xr.Variable((), np.array("requested", dtype=object)))
    return add_history(result, f"tuned_connections(angle={angle!r}, {neurons.text})")


# Angles are compared on a grid of `TURN` integer ticks per period: a difference on the edge of a
# bin is then on the same side for pairs and for connections, in degrees and in radians. A tick is
# 1e-9 degree for directions; the number is divisible by every usual number of measured angles.
TURN = 360_000_000_000


class AnglePairs(NamedTuple):
    """Connections, and the angles of the neurons of both axes, for the kernel."""

    pre: np.ndarray  # (connections,), positions on the axes
    post: np.ndarray
    values: np.ndarray
    same: np.ndarray  # (pre axis,), position of the same neuron on the other axis, or -1
    pre_ticks: np.ndarray  # (pre axis,), -1 for neurons that are left out
    post_ticks: np.ndarray
    edges: np.ndarray  # of the bins of differences, in ticks
    period: float  # in the units of the angle


def prepare(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    angle: str,
    bins: int | Sequence[float],
    pre: Any,
    post: Any,
    presynaptic: Presynaptic,
    weight: str,
) -> tuple[ChosenNeurons, AnglePairs, dict[str, Any]]:
    """Return the neurons and pairs to count, and the coordinates of the bins."""
    angles, period = unit_angle(units, angle)
    has_angle = {f"without_{angle}": np.isfinite(angles)}
    neurons = choose_neurons(connectivity, units, pre, post, presynaptic, has_angle)
    angle_units = units[angle].attrs["units"]
    centres, edges = _bins(bins, period, angle_units)
    pattern, values = pair_buffers(connectivity, [weight])
    same = same_neurons(*(connectivity[dim].values for dim in PAIR_DIMS))
    ticks = to_ticks(angles, period)
    pre_ticks, post_ticks = (np.where(rows >= 0, ticks[rows], -1) for rows in neurons.rows.values())
    edge_ticks = np.rint(edges / period * TURN).astype(np.int64)
    pairs = AnglePairs(
        *pattern.ends(), values[weight], same, pre_ticks, post_ticks, edge_ticks, period
    )
    coords = {
        "difference": labelled("difference", centres, f"difference of {angle}", angle_units),
        "difference_start": labelled("difference", edges[:-1], "lower edge", angle_units),
        "difference_end": labelled("difference", edges[1:], "upper edge", angle_units),
    }
    return neurons, pairs, coords


def to_ticks(angles: np.ndarray, period: float) -> np.ndarray:
    """Round angles to the grid of ticks; NaN becomes -1."""
    has_angle = np.isfinite(angles)
    ticks = np.rint(np.where(has_angle, angles, 0) / period * TURN).astype(np.int64) % TURN
    ticks[~has_angle] = -1
    return ticks


def _bins(bins: int | Sequence[float], period: float, units: str) -> tuple[np.ndarray, np.ndarray]:
    """Return centres and edges."""
    half = period / 2
    if isinstance(bins, int | np.integer):
        if bins < 2:
            raise SchemaError(f"bins is {bins}, expected at least 2: one at 0 and one at {half:g}")
        centres = np.linspace(0, half, int(bins))
        middle = (centres[1:] + centres[:-1]) / 2
        return centres, np.concatenate([[0.0], middle, [half]])
    try:
        edges = np.asarray(bins, dtype=float)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"bins is a {type(bins).__name__}, expected numbers: {error}") from error
    if edges.size > 2 and units == "degree" and edges.max() <= np.pi:
        raise SchemaError(
            f"bins go to {edges.max():.4g}, but the angle is in degrees: pass edges in degrees, or "
            "convert the angle with mx.angles.convert(units, units='radian')"
        )
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise SchemaError(f"bins is {bins!r}, expected a number of bins or ascending edges")
    if edges[0] < 0 or edges[-1] > half * (1 + 1e-12):
        raise SchemaError(
            f"bins go from {edges[0]:g} to {edges[-1]:g} {units}, expected edges between 0 and "
            f"{half:g}, the largest difference on a circle of {period:g}"
        )
    return (edges[1:] + edges[:-1]) / 2, np.minimum(edges, half)


# What is summed in each bin: pairs, connections and their sizes, and the differences of the pairs,
# their squares and the differences of the connected pairs, from which the slope follows.
_PAIRS, _CONNECTED, _SIZES, _DIFFERENCE, _SQUARED, _CONNECTED_DIFFERENCE = range(6)


def count_pairs(pairs: AnglePairs, post_weight: np.ndarray | None = None) -> np.ndarray:
    """Sum over pairs: (presynaptic neurons, 6, bins)."""
    # Pairs are not enumerated: the postsynaptic neurons closer than an edge are a span of the
    # sorted angles, which moves forward with the angle of the presynaptic neuron.
    weight = np.ones(pairs.post_ticks.size) if post_weight is None else post_weight
    sums = np.zeros((pairs.pre_ticks.size, 6, pairs.edges.size - 1))
    # Sorted here, since np.argsort takes seconds to compile.
    by_angle, order = (
        np.argsort(ticks, kind="stable")[np.count_nonzero(ticks < 0) :]
        for ticks in (pairs.pre_ticks, pairs.post_ticks)
    )
    _count(*pairs, weight, by_angle, order, sums)
    return sums


def totals_of(replicate: Callable[[int], np.ndarray], n: int, work: int) -> np.ndarray:
    """Add up the counts of many replicates over the presynaptic neurons, on threads."""

    def run(lo: int, hi: int) -> list[np.ndarray]:
        return [replicate(i).sum(axis=0) for i in range(lo, hi)]

    threads = usable_threads(None, n * work)
    spans = run_spans(run, equal_spans(n, 4 * threads), threads)
    return np.stack([totals for span in spans for totals in span])


@numba.njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    pre, post, values, same, pre_ticks, post_ticks, edges, period, weight, by_angle, order, out
):
    n_bins = edges.size - 1
    last = edges[n_bins]
    n = order.size
    # The circle unrolled three times, and before each place on it the sums of the weights, and of
    # the weights times the angle and its square (in the units of the angle).
    ticks = np.empty(3 * n, dtype=np.int64)
    below = np.zeros((3 * n + 1, 3))
    for k in range(3 * n):
        ticks[k] = post_ticks[order[k % n]] + (k // n - 1) * TURN
        moment = weight[order[k % n]]
        for power in range(3):
            below[k + 1, power] = below[k, power] + moment
            moment *= ticks[k] / TURN * period
    # Neurons within |difference| < e lie in [a - e + 1, a + e); the last edge is in its bin, and
    # half a turn is reached from one side only. In ascending order of the presynaptic angles the
    # ends of all spans, and the place of the angle itself, only move forward.
    places = np.zeros((3, n_bins + 1), dtype=np.int64)
    within = np.zeros((n_bins + 1, 3))
    for i in by_angle:
        a = pre_ticks[i]
        at = a / TURN * period
        for b in range(n_bins + 1):
            e = edges[b] + (1 if b == n_bins else 0)
            start = a - e + 1 if 2 * e <= TURN else a - TURN // 2
            end = a + e if 2 * e <= TURN else a + TURN // 2
            for part, x in enumerate((start, a, end)):
                while places[part, b] < 3 * n and ticks[places[part, b]] < x:
                    places[part, b] += 1
            lo, middle, hi = places[0, b], places[1, b], places[2, b]
            w = below[hi, 0] - below[lo, 0]
            wx = below[hi, 1] - below[lo, 1]
            wxx = below[hi, 2] - below[lo, 2]
            # Of those at or above the angle minus those below it.
            w_sign = below[hi, 0] + below[lo, 0] - 2 * below[middle, 0]
            wx_sign = below[hi, 1] + below[lo, 1] - 2 * below[middle, 1]
            within[b, 0] = w if e > 0 else 0
            within[b, 1] = wx_sign - at * w_sign if e > 0 else 0
            within[b, 2] = wxx - 2 * at * wx + at * at * w if e > 0 else 0
        for b in range(n_bins):
            out[i, _PAIRS, b] = within[b + 1, 0] - within[b, 0]
            out[i, _DIFFERENCE, b] = within[b + 1, 1] - within[b, 1]
            out[i, _SQUARED, b] = within[b + 1, 2] - within[b, 2]
        j = same[i]
        if j >= 0 and post_ticks[j] >= 0 and edges[0] == 0:
            out[i, _PAIRS, 0] -= weight[j]
    for p in range(pre.size):
        i, j = pre[p], post[p]
        a, c = pre_ticks[i], post_ticks[j]
        if a < 0 or c < 0 or same[i] == j:
            continue
        d = abs(a - c)
        d = min(d, TURN - d)
        if d < edges[0] or d > last:
            continue
        b = 0
        while b < n_bins - 1 and d >= edges[b + 1]:
            b += 1
        out[i, _CONNECTED, b] += weight[j]
        out[i, _SIZES, b] += weight[j] * values[p]
        out[i, _CONNECTED_DIFFERENCE, b] += weight[j] * (d / TURN * period)


def statistics(totals: np.ndarray, bin_coords: dict[str, Any], normalise: bool) -> xr.Dataset:
    """Compute the statistics of totals (..., 6, bins), with a dim ``replicate`` if there is one."""
    pairs, connected, sizes = (totals[..., i, :] for i in (_PAIRS, _CONNECTED, _SIZES))
    overall = ratio(connected.sum(-1), pairs.sum(-1))
    probability, mean_size = ratio(connected, pairs), ratio(sizes, connected)
    slope = _slope(totals.sum(-1), bin_coords["difference_end"][1][-1])
    if normalise:
        probability = ratio(probability, overall[..., None])
        mean_size = ratio(mean_size, ratio(sizes.sum(-1), connected.sum(-1))[..., None])
        slope = ratio(slope, overall)
    values = {
        "probability": probability,
        "mean_size": mean_size,
        "contrast": probability[..., 0] - probability[..., -1],
        "slope": slope,
        "size_contrast": mean_size[..., 0] - mean_size[..., -1],
    }
    result = xr.Dataset(coords=bin_coords)
    per_angle = f"1/{result['difference'].attrs['units']}"
    units = {"probability": "1", "contrast": "1", "slope": per_angle}
    for name, text in (_OF_BINS | _OF_CURVE).items():
        dims = ("replicate",) * (totals.ndim - 2) + ("difference",) * (name in _OF_BINS)
        text = f"normalised {text}" if normalise else text
        result[name] = labelled(dims, values[name], text, units.get(name))
    return result


def _slope(totals: np.ndarray, largest: float) -> np.ndarray:
    """Return the least-squares slope of "connected" over the differences of all pairs."""
    # A regression over the centres of the bins would be biased: in a bin that ends at 0, or at half
    # a period, the mean difference is not the centre.
    sums = np.moveaxis(totals, -1, 0)
    mean = ratio(sums[_DIFFERENCE], sums[_PAIRS])
    spread = sums[_SQUARED] - mean * sums[_DIFFERENCE]
    # Of pairs that all differ by the same angle only rounding errors are left.
    spread = np.where(spread > 1e-12 * largest**2 * sums[_PAIRS], spread, 0)
    return ratio(sums[_CONNECTED_DIFFERENCE] - mean * sums[_CONNECTED], spread)


def _draw(
    pairs: AnglePairs, counts: np.ndarray, neurons: ChosenNeurons, interval: Bootstrap
) -> np.ndarray:
    """Return the totals of resampled neurons, (draws, 6, bins)."""
    pre, post = (neurons.positions(side) for side in SIDES)
    pre_weights = neuron_weights(pre.size, interval.n, interval.seed)
    if not interval.both_sides:
        return np.tensordot(pre_weights, counts[pre], axes=1)
    # Presynaptic draws are the same with one side or both; postsynaptic ones need another seed.
    seed = int(np.random.SeedSequence([interval.seed, 1]).generate_state(1)[0])
    post_weights = neuron_weights(post.size, interval.n, seed)

    def draw(i: int) -> np.ndarray:
        of_axis = np.zeros(pairs.post_ticks.size)
        of_axis[post] = post_weights[i]
        return count_pairs(pairs, of_axis)[pre] * pre_weights[i][:, None, None]

    return totals_of(draw, interval.n, pairs.pre.size + pairs.post_ticks.size)


def _add_intervals(result: xr.Dataset, draws: xr.Dataset, confidence: float) -> None:
    connected = result["n_connected"] > 0
    for name in _OF_BINS | _OF_CURVE:
        # Without a connection all draws agree: the interval is unknown.
        valid = result[name].notnull() & (connected if name in _OF_BINS else connected.any())
        low, high = percentile_interval(draws[name].values, confidence)
        for end, values in ((f"{name}_low", low), (f"{name}_high", high)):
            which = "lower" if values is low else "upper"
            result[end] = result[name].copy(data=values).where(valid)
            text = f"{which} end of: {result[name].attrs['long_name']}"
            result[end].attrs = result[name].attrs | {"long_name": text}
