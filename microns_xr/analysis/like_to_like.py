"""Connections against the difference of the preferred angles of both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from microns_xr.analysis.angle_pairs import TURN, PairTable, count_pairs, to_ticks, totals_of
from microns_xr.analysis.resample import neuron_weights, percentile_interval
from microns_xr.analysis.tuned import Presynaptic, TunedAxes, tuned_axes
from microns_xr.angles import describe_angle
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history
from microns_xr.schema import VOXEL_UNITS

__all__ = ["Prepared", "like_to_like", "like_to_like_of_totals", "prepare", "table_of"]

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
    check_release: bool = True,
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
    check_release : bool, optional
        False skips the release check.

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

    >>> from microns_xr.connectivity.examples import two_neurons
    >>> angles = ("nucleus_id", [0.0, 90.0],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> units = xr.Dataset({"pref_ori": angles, "axon_completeness": ("nucleus_id", ["full"] * 2)},
    ...     coords={"nucleus_id": [11, 12]})
    >>> result = like_to_like(two_neurons(), units, pre=[11, 12], post=[11, 12], bins=3,
    ...     presynaptic="all", n_bootstrap=0, check_release=False)
    >>> result.n_pairs.values, result.probability.sel(difference=90).item()
    (array([0, 0, 2]), 1.0)
    """
    if resample not in ("pre", "both"):
        raise SchemaError(f"resample is {resample!r}, expected 'pre' or 'both'")
    axes = tuned_axes(connectivity, units, angle, pre, post, presynaptic, check_release)
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
    """Angles of both axes and bins, in ticks, and how the bins are called.

    Attributes
    ----------
    pre_ticks, post_ticks : numpy.ndarray
        Angle of each neuron of the axes, -1 for those that are left out.
    edges : numpy.ndarray
        Edges of the bins in ticks.
    bin_coords : dict
        The coordinates of ``difference``.
    centres : numpy.ndarray
        Bin centres in the units of the angle.
    """

    pre_ticks: np.ndarray
    post_ticks: np.ndarray
    edges: np.ndarray
    bin_coords: dict[str, Any]
    centres: np.ndarray


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
