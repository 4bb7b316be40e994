"""Connections against the difference of the preferred angles of both ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.resample import neuron_weights, percentile_interval
from microns_xr.angles import describe_angle
from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.blocks import Side, positions_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import drop_autapses, take
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import VOXEL_UNITS, validate
from microns_xr.select import select_units
from microns_xr.threads import equal_spans, run_spans, usable_threads
from microns_xr.units import COMPLETENESS

# Which pairs were tested: neurons that were asked for, with a unit, the axon complete enough.
#
# A zero of the connectivity says that no synapse was seen between two neurons that were asked
# for. It is evidence of absence only as far as the presynaptic axon was followed.


class ChosenNeurons(NamedTuple):
    """Neurons of either side that take part."""

    ids: dict[str, np.ndarray]  # nucleus ids by side, ascending
    rows: dict[str, np.ndarray]  # where they are among the units
    # by side, how many neurons of the axis were left out for which reason
    left_out: dict[str, dict[str, int]]
    # presynaptic neurons before the choice of axons, by class of completeness
    axons: dict[str, int]


def neurons_to_test(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    presynaptic: str | Iterable[str],
    pre: Any = None,
    post: Any = None,
    placed: np.ndarray | None = None,
) -> ChosenNeurons:
    """Choose the neurons whose pairs count."""
    if connectivity["scope"].item() == "unknown" and (pre is None or post is None):
        raise SchemaError(
            "scope of the connectivity is 'unknown', so a pair without a synapse may never have "
            "been asked for: pass pre= and post=, neurons all of whose pairs are in the synapse "
            "table, or state the scope when the connectivity is built"
        )
    if "axon_completeness" not in units:
        raise SchemaError(
            "units has no axon_completeness, without which nobody knows which axons to count: "
            "build them with mx.Release(...).units()"
        )
    if not units.sizes["nucleus_id"]:
        raise SchemaError("units hold no neuron: nothing is left of the selection they come from")
    lookup = Lookup(units["nucleus_id"].values, "nucleus_id of the units")
    ids: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    left_out: dict[str, dict[str, int]] = {}
    axons: dict[str, int] = {}
    sides: tuple[tuple[Side, Any], ...] = (("pre", pre), ("post", post))
    for side, given in sides:
        labels = connectivity[f"{side}_nucleus_id"].values
        found = lookup.find(labels)
        reasons = {
            "not_chosen": _given(connectivity, units, side, given),
            "not_among_units": found >= 0,
        }
        if side == "pre":
            axons = by_completeness(units, found[reasons["not_chosen"] & (found >= 0)])
            reasons["axon_not_complete_enough"] = _complete(units, presynaptic)[found]
        if placed is not None:
            reasons["without_position"] = placed[found]
        keep = np.ones(labels.size, dtype=bool)
        left: dict[str, int] = {}
        for reason, fits in reasons.items():
            left[reason] = int((keep & ~fits).sum())
            keep &= fits
        if not keep.any():
            raise SchemaError(
                f"no neuron of {side}_nucleus_id is left of {labels.size}, left out: {left}"
                + (f"; axons on the axis: {axons}" if side == "pre" else "")
                + "; choose others, or presynaptic='clean' or 'all', which give lower bounds"
            )
        ids[side], rows[side] = labels[keep], found[keep]
        left_out[side] = left
    return ChosenNeurons(ids, rows, left_out, axons)


def by_completeness(units: xr.Dataset, rows: np.ndarray) -> dict[str, int]:
    """Count units by class of completeness of the axon, from the least to the most complete."""
    words = pd.Series(units["axon_completeness"].values[rows]).value_counts()
    rank = {word: i for i, word in enumerate(COMPLETENESS)}
    return {
        str(word): int(words[word]) for word in sorted(words.index, key=lambda w: rank.get(w, -1))
    }


def lower_bound_note(axons: Mapping[str, int]) -> str:
    """Say what the completeness of the axons that count means for a probability."""
    partial = {word: n for word, n in axons.items() if word != "full"}
    if not partial:
        return "all axons are fully extended"
    listed = ", ".join(f"{n} {word}" for word, n in partial.items())
    return (
        f"lower bound: of {sum(axons.values())} axons {sum(partial.values())} are not known to be "
        f"fully extended ({listed}), and targets beyond their reconstruction count as unconnected"
    )


def choice_text(given: Any) -> str:
    """Write a choice of neurons as the history does."""
    if given is None:
        return "None"
    if _is_condition(given):
        return repr(dict(given))
    return f"{as_ids(given, 'nucleus_id').size} ids"


def _is_condition(given: Any) -> bool:
    # A Dataset is a mapping too.
    return isinstance(given, Mapping) and not isinstance(given, xr.Dataset)


def _given(connectivity: xr.Dataset, units: xr.Dataset, side: Side, given: Any) -> np.ndarray:
    labels = connectivity[f"{side}_nucleus_id"].values
    if given is None:
        return np.ones(labels.size, dtype=bool)
    if _is_condition(given):
        known = list(signature(select_units).parameters)[1:]
        if unknown := [name for name in given if name not in known]:
            near = ", ".join(nearest_words(unknown[0], known))
            raise UnknownLabelError(
                f"{side} has the condition {unknown[0]!r}, expected some of {known}"
                + (f"; nearest: {near}" if near else "")
            )
        return np.isin(labels, select_units(units, **given)["nucleus_id"].values)
    chosen = np.zeros(labels.size, dtype=bool)
    chosen[positions_of(connectivity, side, given)] = True
    return chosen


def _complete(units: xr.Dataset, presynaptic: str | Iterable[str]) -> np.ndarray:
    if isinstance(presynaptic, str) and presynaptic == "all":
        return np.ones(units.sizes["nucleus_id"], dtype=bool)
    fitting = select_units(units, axon=presynaptic)["nucleus_id"].values
    return np.isin(units["nucleus_id"].values, fitting)


# Pairs of neurons by the difference of their angles, on raw arrays.
#
# Angles are compared on a grid of `TURN` ticks a period, in integers: a difference that lies on
# the edge of a bin is then on the same side whether a pair is looked at or counted, and whether
# the angles were degrees or radians.


# 1e-9 degree for directions; divisible by every usual number of measured angles.
TURN = 360_000_000_000
PARTS = ("n_pairs", "n_connected", "size")


class PairTable(NamedTuple):
    """Connections and the axes they lie on."""

    pre: np.ndarray  # (connections,), positions on the axes
    post: np.ndarray
    values: np.ndarray
    # (pre axis,), position of the same neuron on the other axis, -1 where it is not there
    twin: np.ndarray


def to_ticks(angles: np.ndarray, period: float) -> np.ndarray:
    """Put angles on the grid of ticks."""
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

    Pairs are not visited: the postsynaptic neurons closer than each edge are a span of the sorted
    angles, which moves forward with the angle of the presynaptic neuron.
    """
    weight = np.ones(post_ticks.size) if post_weight is None else post_weight
    out = np.zeros((pre_ticks.size, 3, edges.size - 1))
    _count(*table, pre_ticks, post_ticks, edges, weight, out)
    return out


def totals_of(
    replicate: Callable[[int], np.ndarray], n: int, n_bins: int, work: int = 0
) -> np.ndarray:
    """Add up the counts of many replicates over the presynaptic neurons, on threads."""
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


# Which neurons of a connectivity take part: tested ones with an angle.


Presynaptic = str | Iterable[str]


class TunedAxes(NamedTuple):
    """Neurons of both axes that take part."""

    # (axis,), row of each neuron among the units, -1 for those that are left out
    pre_rows: np.ndarray
    post_rows: np.ndarray
    # (pre axis,), position of the same neuron on the other axis, -1 where it is not there
    twin: np.ndarray
    # ``left_out`` by side and reason, ``axon_completeness`` of the presynaptic neurons that
    # take part, and ``note`` on what that means for a probability
    attrs: dict[str, Any]
    shown: str  # how the history writes the choice


def tuned_axes(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    angle: str,
    pre: Any,
    post: Any,
    presynaptic: Presynaptic,
) -> TunedAxes:
    """Choose the neurons of both axes that take part; parameters as those of `like_to_like`."""
    validate(connectivity, "connectivity")
    require_same_release(("connectivity", connectivity), ("units", units))
    has_angle = np.isfinite(_angle_of(units, angle))
    presynaptic = presynaptic if isinstance(presynaptic, str) else list(presynaptic)
    tested = neurons_to_test(connectivity, units, presynaptic, pre, post)
    rows: dict[str, np.ndarray] = {}
    left_out: dict[str, dict[str, int]] = {}
    for side in ("pre", "post"):
        labels = connectivity[f"{side}_nucleus_id"].values
        of_tested = tested.rows[side]
        rows[side] = np.full(labels.size, -1, dtype=np.int64)
        tuned = has_angle[of_tested]
        rows[side][np.searchsorted(labels, tested.ids[side][tuned])] = of_tested[tuned]
        left_out[side] = {**tested.left_out[side], f"without_{angle}": int((~tuned).sum())}
        if not tuned.any():
            raise SchemaError(
                f"no neuron of {side}_nucleus_id is left of {labels.size}, left out: "
                f"{left_out[side]}; choose others, or give more neurons an angle"
            )
    axons = by_completeness(units, rows["pre"][rows["pre"] >= 0])
    twin = Lookup(connectivity["post_nucleus_id"].values, "post_nucleus_id").find(
        connectivity["pre_nucleus_id"].values
    )
    attrs = {"left_out": left_out, "axon_completeness": axons, "note": lower_bound_note(axons)}
    shown = f"angle={angle!r}, pre={_shown(pre)}, post={_shown(post)}, presynaptic={presynaptic!r}"
    return TunedAxes(rows["pre"], rows["post"], twin.astype(np.int64), attrs, shown)


def tuned_connections(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    angle: str = "pref_ori",
    pre: Any = None,
    post: Any = None,
    presynaptic: Presynaptic = "extended",
) -> xr.Dataset:
    """Keep the neurons that `like_to_like` looks at: what null models are best made of.

    A null model of a whole release exchanges partners of neurons that are never looked at; of
    these connections it keeps the degrees within the very pairs that a probability is made of.

    Parameters
    ----------
    connectivity, units, angle, pre, post, presynaptic
        As `like_to_like`.

    Returns
    -------
    xarray.Dataset
        Connectivity without autapses whose axes are the neurons chosen that have the angle, on
        the presynaptic side those with a complete enough axon. An unknown scope becomes
        "requested", since `pre` and `post` were given.

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
    axes = tuned_axes(connectivity, units, angle, pre, post, presynaptic)
    ids = [
        connectivity[f"{side}_nucleus_id"].values[rows >= 0]
        for side, rows in (("pre", axes.pre_rows), ("post", axes.post_rows))
    ]
    result = drop_autapses(take(connectivity, *ids))
    if connectivity["scope"].item() == "unknown":
        result = result.assign_coords(scope=xr.Variable((), np.array("requested", dtype=object)))
    return add_history(result, f"tuned_connections({axes.shown})")


def _angle_of(units: xr.Dataset, angle: str) -> np.ndarray:
    if angle not in units.variables:
        near = ", ".join(nearest_words(angle, units.data_vars))
        raise UnknownLabelError(
            f"units has no variable {angle!r}, found {sorted(map(str, units.data_vars))}"
            + (f"; nearest: {near}" if near else "")
            + ": build the units with functional='best_only', or assign the angles of a fit"
        )
    if units[angle].dims != ("nucleus_id",) or units[angle].dtype.kind not in "fiu":
        raise SchemaError(
            f"units.{angle} has dims {units[angle].dims} and dtype {units[angle].dtype}, expected "
            "one number a neuron over ('nucleus_id',)"
        )
    describe_angle(units[angle], f"units.{angle}")
    return np.asarray(units[angle].values, dtype=float)


def _shown(choice: Any) -> str:
    if choice is None or isinstance(choice, Mapping):
        return repr(None if choice is None else dict(choice))
    n = choice.sizes["nucleus_id"] if isinstance(choice, xr.Dataset) else np.size(choice)
    return f"<{n} ids>"


# What a table of totals gives: name to (long name, whether it is one a bin).
_STATISTICS = {
    "probability": ("connection probability", True),
    "mean_size": ("mean size of a connection", True),
    "contrast": ("connection probability of the first bin minus that of the last", False),
    "slope": ("slope of the connection probability over the difference", False),
    "size_contrast": ("mean size of the first bin minus that of the last", False),
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
    weight: str = "synapse_size",
    normalise: bool = False,
    resample: Literal["pre", "both"] = "pre",
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Give connection probability and mean size against the difference of preferred angles.

    The probability of a bin is the number of connected pairs over the number of all pairs of it:
    pairs of a chosen presynaptic and a chosen postsynaptic neuron that both have the angle, both
    on the axes of the connectivity, which are the neurons that were asked for; never a neuron
    with itself.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    units : xarray.Dataset
        Units with the angle, NaN for neurons that have none.
    angle : str, optional
        Variable of the units that states its units, convention and, for orientations, period.
    bins : int or sequence of float, optional
        Number of bins whose centres go evenly from 0 to half a period, both included, so that the
        first and last are half as wide (5 for measured orientations 22.5° apart: 0°, 22.5° ...
        90°); or ascending edges in the units of the angle. Bins hold their lower edge, the last
        one both.
    pre, post : mapping, ids or None, optional
        Conditions of `select_units` such as ``{"layer": "L4"}``, or nucleus ids on the axis; None
        takes everybody.
    presynaptic : str or collection of str, optional
        Which axons are complete enough, in the words of the condition `axon` of `select_units`:
        ``"extended"`` (partial or full; before release 1078 the status "extended"), ``"full"``,
        ``"clean"`` (proofread in any way), words of ``axon_completeness``, or ``"all"``. Anything
        but "full" gives lower bounds, since what an axon does beyond its reconstruction counts as
        unconnected.
    weight : str, optional
        Variable of the connectivity whose mean over connections is given.
    normalise : bool, optional
        Divide probabilities by the probability over all bins, and sizes by the mean size.
    resample : {"pre", "both"}, optional
        Neurons that are drawn with replacement for the intervals: the presynaptic ones, each with
        all of its pairs, or both sides independently. The first is somewhat too narrow, since
        pairs share postsynaptic neurons as well; the second is much too wide where connections
        are few, since chance in single pairs then counts up to three times.
    n_bootstrap : int, optional
        Number of draws; 0 for no intervals.
    confidence : float, optional
        Share of the draws inside of an interval.
    seed : int, optional
        Equal seeds give equal intervals.

    Returns
    -------
    xarray.Dataset
        Over ``difference`` (bin centres, absolute, in the units of the angle; edges in
        ``difference_start`` and ``difference_end``): ``probability``, ``mean_size`` (NaN without
        a connection), ``n_pairs``, ``n_connected``; scalars ``contrast`` (probability of the
        first minus of the last bin), ``slope`` (least squares over pairs, per unit of angle) and
        ``size_contrast``; ends of the intervals as ``probability_low``, ``probability_high`` and
        so on, NaN where a bin has no connection, which is not certainty; ``n_pre`` and ``n_post``.
        The attributes count the presynaptic neurons by ``axon_completeness``, and those that
        were ``left_out``.

    Raises
    ------
    SchemaError
        If the angle does not state its units, edges are not within 0 and half a period, the scope
        of the connectivity is unknown and `pre` or `post` is not given, or no neuron is left.
    UnknownLabelError
        If a variable, a condition, a word or an id does not exist.
    ReleaseMismatchError
        If the two are of different releases.

    Notes
    -----
    More connections between alike neurons need not mean that neurons choose alike partners: tuned
    neurons that connect more, unequal degrees, and alike neurons that lie close together while
    connections are local do it as well. `microns_xr.analysis.null_models` says which null
    addresses what. Intervals: percentile bootstrap of neurons (Efron & Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 13); of both sides as in Owen 2007, The pigeonhole
    bootstrap, Annals of Applied Statistics 1, 386-411.

    Examples
    --------
    Neuron 11 is connected to 12, which is tuned to the orthogonal orientation, and 12 to 11:

    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> angles = ("nucleus_id", [0.0, 90.0],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> units = xr.Dataset({"pref_ori": angles, "axon_completeness": ("nucleus_id", ["full"] * 2)},
    ...     coords={"nucleus_id": [11, 12]})
    >>> result = like_to_like(two_neurons(), units, pre=[11, 12], post=[11, 12], bins=3,
    ...     presynaptic="all", n_bootstrap=0)
    >>> result.n_pairs.values, result.probability.sel(difference=90).item()
    (array([0, 0, 2]), 1.0)
    """
    if resample not in ("pre", "both"):
        raise SchemaError(f"resample is {resample!r}, expected 'pre' or 'both'")
    axes = tuned_axes(connectivity, units, angle, pre, post, presynaptic)
    ready = prepare(units, angle, bins, axes)
    table = table_of(connectivity, weight, axes.twin)
    counts = count_pairs(table, ready.pre_ticks, ready.post_ticks, ready.edges)
    totals = counts.sum(axis=0)
    result = like_to_like_of_totals(totals, ready, normalise)
    result = result.assign_coords(
        {name: coord for name, coord in connectivity.coords.items() if not coord.ndim}
    )
    for side, ticks in (("pre", ready.pre_ticks), ("post", ready.post_ticks)):
        about = {"long_name": f"{side}synaptic neurons that take part"}
        result[f"n_{side}"] = ((), int((ticks >= 0).sum()), about)
    for name in ("mean_size", "size_contrast"):
        result[name].attrs["units"] = "1" if normalise else _units_of(connectivity, weight)
    if n_bootstrap:
        draws = _bootstrap(table, counts, ready, resample, n_bootstrap, seed)
        _add_intervals(result, like_to_like_of_totals(draws, ready, normalise), confidence)
        result.attrs |= {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
        result.attrs["resampled"] = "presynaptic neurons" if resample == "pre" else "both sides"
    result.attrs |= {"angle": angle, "weight": weight, **axes.attrs}
    entry = f"like_to_like({axes.shown}, weight={weight!r}, normalise={normalise})"
    return add_history(result, entry, source=(connectivity, units))


class Prepared(NamedTuple):
    """Angles of both axes and bins, in ticks, and how the bins are called."""

    # angle of each neuron of the axes, -1 for those that are left out
    pre_ticks: np.ndarray
    post_ticks: np.ndarray
    edges: np.ndarray  # edges of the bins in ticks
    bin_coords: dict[str, Any]  # the coordinates of ``difference``
    centres: np.ndarray  # bin centres in the units of the angle


def prepare(
    units: xr.Dataset, angle: str, bins: int | Sequence[float], axes: TunedAxes
) -> Prepared:
    """Read the angles of chosen neurons, and the bins."""
    angle_units, _, period = describe_angle(units[angle], f"units.{angle}")
    centres, edges = _bins(bins, period, angle_units)
    ticks = to_ticks(np.asarray(units[angle].values, dtype=float), period)
    pre_ticks = np.where(axes.pre_rows >= 0, ticks[axes.pre_rows], -1)
    post_ticks = np.where(axes.post_rows >= 0, ticks[axes.post_rows], -1)
    attrs = {"units": angle_units}
    coords = {
        "difference": ("difference", centres, {"long_name": f"difference of {angle}"} | attrs),
        "difference_start": ("difference", edges[:-1], {"long_name": "lower edge"} | attrs),
        "difference_end": ("difference", edges[1:], {"long_name": "upper edge"} | attrs),
    }
    in_ticks = np.rint(edges / period * TURN).astype(np.int64)
    return Prepared(pre_ticks, post_ticks, in_ticks, coords, centres)


def _bins(bins: int | Sequence[float], period: float, units: str) -> tuple[np.ndarray, np.ndarray]:
    half = period / 2
    if isinstance(bins, int | np.integer):
        if bins < 2:
            raise SchemaError(f"bins is {bins}, expected at least 2: one at 0 and one at {half:g}")
        centres = np.linspace(0, half, int(bins))
        middle = (centres[1:] + centres[:-1]) / 2
        return centres, np.concatenate([[0.0], middle, [half]])
    edges = np.asarray(bins, dtype=float)
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise SchemaError(f"bins is {bins!r}, expected a number of bins or ascending edges")
    if edges[0] < 0 or edges[-1] > half * (1 + 1e-12):
        raise SchemaError(
            f"bins go from {edges[0]:g} to {edges[-1]:g} {units}, expected edges within 0 and "
            f"{half:g}: absolute differences on a circle of {period:g} are no larger"
        )
    return (edges[1:] + edges[:-1]) / 2, np.minimum(edges, half)


def table_of(connectivity: xr.Dataset, weight: str, twin: np.ndarray) -> PairTable:
    """Return the connections as pairs of positions."""
    pattern, values = pair_buffers(connectivity, [weight])
    major = np.repeat(np.arange(pattern.n_major, dtype=np.int32), np.diff(pattern.indptr))
    pre, post = (
        (pattern.indices, major) if pattern.compressed == "post" else (major, pattern.indices)
    )
    return PairTable(pre, post, values[weight], twin)


def like_to_like_of_totals(totals: np.ndarray, ready: Prepared, normalise: bool) -> xr.Dataset:
    """Turn totals (..., 3, bins) into the statistics, with a dim ``replicate`` if there is one."""
    pairs, connections, sizes = (totals[..., i, :] for i in range(3))
    mean_probability = _ratio(connections.sum(-1), pairs.sum(-1))
    probability, mean_size = _ratio(connections, pairs), _ratio(sizes, connections)
    x = ready.centres - _ratio((pairs * ready.centres).sum(-1), pairs.sum(-1))[..., None]
    slope = _ratio((connections * x).sum(-1), (pairs * x**2).sum(-1))
    if normalise:
        probability = _ratio(probability, mean_probability[..., None])
        mean_size = _ratio(mean_size, _ratio(sizes.sum(-1), connections.sum(-1))[..., None])
        slope = _ratio(slope, mean_probability)
    found = {
        "probability": probability,
        "mean_size": mean_size,
        "contrast": probability[..., 0] - probability[..., -1],
        "slope": slope,
        "size_contrast": mean_size[..., 0] - mean_size[..., -1],
    }
    dims = ("replicate",) * (totals.ndim - 2)
    result = xr.Dataset(
        {
            name: (
                (*dims, *(("difference",) if by_bin else ())),
                found[name],
                {"long_name": f"normalised {text}" if normalise else text},
            )
            for name, (text, by_bin) in _STATISTICS.items()
        },
        coords=ready.bin_coords,
    )
    if not dims:
        for name, values in (("n_pairs", pairs), ("n_connected", connections)):
            text = "pairs of neurons" if name == "n_pairs" else "connected pairs"
            result[name] = ("difference", np.rint(values).astype(np.int64), {"long_name": text})
    for name in ("probability", "contrast"):
        result[name].attrs["units"] = "1"
    result["slope"].attrs["units"] = f"1/{result['difference'].attrs['units']}"
    return result


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.broadcast_arrays(top, bottom)
    out = np.full(top.shape, np.nan)
    return np.divide(top, bottom, out=out, where=bottom != 0)


def _bootstrap(
    table: PairTable, counts: np.ndarray, ready: Prepared, resample: str, n: int, seed: int
) -> np.ndarray:
    chosen = {
        side: np.flatnonzero(ticks >= 0)
        for side, ticks in (("pre", ready.pre_ticks), ("post", ready.post_ticks))
    }
    weights = {"pre": neuron_weights(chosen["pre"].size, n, seed)}
    counts_of_chosen = counts[chosen["pre"]]
    if resample == "pre":
        return np.tensordot(weights["pre"], counts_of_chosen, axes=1)
    # Another stream than that of the presynaptic side, which is the same for both choices.
    other = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    weights["post"] = neuron_weights(chosen["post"].size, n, other)

    def draw(i: int) -> np.ndarray:
        of_post = np.zeros(ready.post_ticks.size)
        of_post[chosen["post"]] = weights["post"][i]
        found = count_pairs(table, ready.pre_ticks, ready.post_ticks, ready.edges, of_post)
        return found[chosen["pre"]] * weights["pre"][i][:, None, None]

    return totals_of(draw, n, ready.centres.size, table.pre.size + ready.post_ticks.size)


def _add_intervals(result: xr.Dataset, draws: xr.Dataset, confidence: float) -> None:
    nothing = result["n_connected"] == 0
    for name, (text, by_bin) in _STATISTICS.items():
        ends = percentile_interval(draws[name].values, confidence)
        for end, values in zip(("low", "high"), ends, strict=True):
            ended = result[name].copy(data=values)
            empty = nothing if by_bin else nothing.all()
            ended = ended.where(~empty & result[name].notnull())
            of_end = {"long_name": f"{'lower' if end == 'low' else 'upper'} end of: {text}"}
            result[f"{name}_{end}"] = ended.assign_attrs(result[name].attrs | of_end)


def _units_of(connectivity: xr.Dataset, weight: str) -> str:
    return str(connectivity[weight].attrs.get("units", VOXEL_UNITS))
