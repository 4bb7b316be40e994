"""Responses of single trials by direction, and tuning curves, with one trial in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.angles import ANGLE_CONVENTIONS, AngleConvention, angle_attrs, rounded
from microns_xr.errors import SchemaError, UnknownLabelError, require_instance, unknown_label
from microns_xr.provenance import add_history, require_same_release
from microns_xr.recordings.files import node_name, scan_nodes, select
from microns_xr.releases import datastack_of, table_spec
from microns_xr.schema import FUNCTIONAL, describe, validate
from microns_xr.tables import SCAN_KEYS
from microns_xr.tuning.functional import match_units

logger = logging.getLogger(__name__)

# Times are in seconds from the start of the scan, so rounding errors of differences are far below
# this; frames are 0.133 s apart.
_TIME_TOLERANCE = 1e-6
# The table has rates by the directions in the videos of the stimulus, so the convention of the
# table applies to the videos.
_TABLE_OF_STIMULUS = {"Monet2": "tuning_curves_fitted_v1"}


def segment_of_frames(
    times: np.ndarray, onsets: np.ndarray, offsets: np.ndarray, latency: float = 0.0
) -> np.ndarray:
    """Assign frames to segments of the stimulus by time; -1 for frames outside of all segments."""
    shown = np.asarray(times) - latency + _TIME_TOLERANCE
    segment = np.searchsorted(onsets, shown, side="right") - 1
    ends = np.where(np.isnan(offsets), np.inf, offsets)
    return np.where((segment >= 0) & (shown < ends[segment]), segment, -1)


def segment_responses(
    responses: np.ndarray, segment: np.ndarray, group: np.ndarray, n_groups: int
) -> np.ndarray:
    """Average the frames of each segment, then the segments of each group."""
    by_segment = _group_means(np.asarray(responses, dtype=np.float64), segment, len(group))
    return _group_means(by_segment, group, n_groups)


def _group_means(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Average columns by group, ignoring missing values; NaN for an empty group."""
    member = (group[:, None] == np.arange(n_groups)).astype(np.float64)
    present = np.isfinite(values)
    counts = present.astype(np.float64) @ member
    sums = np.where(present, values, 0.0) @ member
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _trials_of(name: str, node: xr.Dataset, stimulus: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the trials of a stimulus, and the sorted directions they show."""
    require_instance("stimulus", stimulus, str, "the kind of a video, such as 'Monet2'")
    rows = np.flatnonzero(node["stimulus"].values == stimulus)
    if not len(rows):
        return rows, np.empty(0)
    if "direction" in node.variables:
        shown = node["direction"].values[rows]
        known = np.isfinite(shown)
    if "direction" not in node.variables or not known.any(axis=1).all():
        raise SchemaError(
            f"{name}: trials of {stimulus!r} have no directions and onsets, expected a stimulus "
            "with both, such as stimulus='Monet2'"
        )
    return rows, np.unique(rounded(shown[known], 360.0))


def _each_trial(
    name: str, node: xr.Dataset, rows: np.ndarray, directions: np.ndarray, latency: float
) -> Iterator[np.ndarray]:
    """Yield the responses of each trial in turn, shape (units, directions)."""
    responses, times = node["responses"].variable, node["stim_time"].variable
    first, n_frames = node["first_frame"].values, node["n_frames"].values
    for row in rows:
        where = f"{name}, trial {int(node['trial'].values[row])}"
        frames = slice(int(first[row]), int(first[row] + n_frames[row]))
        time = np.asarray(times[frames].values, dtype=np.float64)
        if not len(time):
            yield np.full((node.sizes["unit"], len(directions)), np.nan)
            continue
        if not np.isfinite(time).all() or (np.diff(time) <= 0).any():
            raise SchemaError(f"{where}: stim_times is {time[:5]} ..., expected ascending times")
        time = time - time[0]
        shown = np.isfinite(node["direction"].values[row])
        angles, onsets, offsets = (
            node[k].values[row][shown] for k in ("direction", "onset", "offset")
        )
        step = float(np.median(np.diff(time))) if len(time) > 1 else 0.0
        if onsets[0] < -_TIME_TOLERANCE or onsets[-1] > time[-1] + step:
            raise SchemaError(
                f"{where}: onsets go from {onsets[0]:g} to {onsets[-1]:g} s, expected them within "
                f"its stim_times from 0 to {time[-1]:g} s: if the trial is truncated, select the "
                "others with select(..., trial=)"
            )
        segment = segment_of_frames(time, onsets, offsets, latency)
        group = np.searchsorted(directions, rounded(angles, 360.0))
        yield segment_responses(responses[:, frames].values, segment, group, len(directions))


def _direction_coord(
    directions: np.ndarray, stimulus: str, angle_convention: str | None, datastack: str | None
) -> tuple[str, np.ndarray, dict[str, Any]]:
    source = "stated by the caller"
    if angle_convention is None and stimulus in _TABLE_OF_STIMULUS:
        table = _TABLE_OF_STIMULUS[stimulus]
        angle_convention = table_spec(table, datastack).angle_convention
        source = f"the registry entry of {table}; the recordings file does not state it"
    if not isinstance(angle_convention, str) or angle_convention not in ANGLE_CONVENTIONS:
        hint = f"the recordings file does not state the convention of {stimulus!r}"
        what = "angle_convention is"
        raise unknown_label(what, angle_convention, ANGLE_CONVENTIONS, hint, error=SchemaError)
    attrs = angle_attrs("degree", angle_convention, "direction")
    attrs |= {"angle_convention_from": source, "long_name": "stimulus direction"}
    return "direction", directions, attrs


def _unit_coords(node: xr.Dataset) -> dict[str, Any]:
    coords: dict[str, Any] = {}
    for key in SCAN_KEYS:
        values = np.broadcast_to(node[key].values, node.sizes["unit"]).astype(np.int64)
        coords[key] = ("scan_unit", values, describe(FUNCTIONAL[key]))
    area = node["brain_area"].values.astype(object)
    coords["brain_area"] = ("scan_unit", area, {"long_name": "visual area of the recorded unit"})
    if "datastack" in node.coords:
        coords["datastack"] = node["datastack"].reset_coords(drop=True)
    return coords


def _require_latency(latency: float) -> float:
    if not isinstance(latency, int | float | np.number) or not 0 <= latency < 5:
        raise SchemaError(
            f"latency is {latency!r}, expected seconds from 0 to less than 5; stimulus frames "
            "already lead the responses by 66 ms"
        )
    return float(latency)


def trial_responses(
    recordings: xr.DataTree,
    scan: Any = None,
    stimulus: str = "Monet2",
    *,
    latency: float = 0.0,
    angle_convention: AngleConvention | None = None,
) -> xr.DataArray:
    """Average the responses of every unit in every trial to each direction.

    Parameters
    ----------
    recordings : DataTree
        What `microns_xr.recordings.open` or `microns_xr.recordings.select` returned.
    scan : str or pair of int, optional
        Such as ``"9_3"`` or ``(9, 3)``; optional if there is only one.
    stimulus : str, optional
        Type of the stimulus; it must have directions and onsets.
    latency : float, optional
        Seconds to add to the delay between a stimulus frame and the response stored with it, which
        is already at least 66 ms.
    angle_convention : str, optional
        Convention of the directions, which the file does not state. Required unless the stimulus
        is Monet2, whose convention is known.

    Returns
    -------
    xarray.DataArray
        ``responses(scan_unit, trial, direction)``, float64, NaN where a trial did not show a
        direction; with ``session``, ``scan_idx``, ``unit_id``, ``brain_area``, ``trial`` (its
        number) and ``direction`` in degrees.

    Raises
    ------
    UnknownLabelError
        If there is no such scan, or it does not show the stimulus.
    SchemaError
        If the stimulus has no directions, times and onsets are inconsistent, or the convention is
        not known.

    Notes
    -----
    Frames are assigned by ``stim_times`` and ``onsets``, not by frame number. If a direction is
    shown twice in a trial, its response is the mean of both.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from microns_xr.recordings import open, write_demo
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> trial_responses(open(path)).dims
    ('scan_unit', 'trial', 'direction')
    """
    nodes = scan_nodes(recordings)
    if scan is None and len(nodes) > 1:
        raise UnknownLabelError(
            f"recordings has {len(nodes)} scans ({', '.join(nodes)}), expected one: pass scan="
        )
    name = next(iter(nodes)) if scan is None else node_name(scan)
    if name not in nodes:
        raise unknown_label("recordings has no scan", name, nodes)
    node = nodes[name]
    latency = _require_latency(latency)
    rows, directions = _trials_of(name, node, stimulus)
    if not len(rows):
        raise unknown_label(f"{name} has no trial of", stimulus, set(node["stimulus"].values))
    direction = _direction_coord(directions, stimulus, angle_convention, datastack_of(node))
    values = np.empty((node.sizes["unit"], len(rows), len(directions)))
    for i, trial in enumerate(_each_trial(name, node, rows, directions, latency)):
        values[:, i] = trial
    result = xr.DataArray(
        values,
        dims=("scan_unit", "trial", "direction"),
        coords={
            **_unit_coords(node),
            "trial": ("trial", node["trial"].values[rows]),
            "condition_hash": ("trial", node["condition_hash"].values[rows].astype(object)),
            "direction": direction,
        },
        name="responses",
        attrs={"long_name": "mean response", "stimulus": stimulus, "latency_s": latency},
    )
    entry = f"trial_responses({name}, {stimulus!r}, latency={latency:g})"
    return add_history(result, entry, source=recordings.to_dataset(inherit=False))


def tuning(
    recordings: xr.DataTree,
    stimulus: str = "Monet2",
    scans: Iterable[Any] | str | None = None,
    *,
    latency: float = 0.0,
    angle_convention: AngleConvention | None = None,
    coregistration: xr.Dataset | None = None,
) -> xr.Dataset:
    """Average the responses of all units to each direction, over frames and then over trials.

    Only one trial is in memory at a time.

    Parameters
    ----------
    recordings : DataTree
        What `microns_xr.recordings.open` or `microns_xr.recordings.select` returned.
    stimulus : str, optional
        Type of the stimulus; it must have directions and onsets.
    scans : iterable, optional
        Such as ``["9_3"]``; by default all that show the stimulus.
    latency, angle_convention : optional
        See `trial_responses`.
    coregistration : xarray.Dataset, optional
        Functional rows of a release, to match units to neurons.

    Returns
    -------
    xarray.Dataset
        Sorted by (session, scan_idx, unit_id): ``rate_dir(scan_unit, direction)``,
        ``rate_error(scan_unit, direction)`` of the mean over trials (NaN with fewer than two)
        and ``n_trials(scan_unit, direction)``; if directions come in opposite pairs also
        ``rate_ori(scan_unit, orientation)``, the mean of both, with its standard error
        ``rate_ori_error``. Coordinates ``session``,
        ``scan_idx``, ``unit_id``, ``brain_area``, angles in degrees; with a coregistration also
        ``nucleus_id`` (-1 without a match; a unit with several matches has one row per match) and
        the release. All rates of a unit are NaN if any direction was not measured.

    Raises
    ------
    UnknownLabelError
        If there is no such scan, or none shows the stimulus.
    SchemaError
        If the stimulus has no directions, times and onsets are inconsistent, scans show different
        directions, or the convention is not known.
    ReleaseMismatchError
        If recordings and coregistration come from different datastacks.

    Notes
    -----
    Frames are assigned by ``stim_times`` and ``onsets``, not by frame number. The samples of the
    standard errors are trials, since frames within a trial are not independent. Nor are the
    responses to two directions in one trial, so that the error of an orientation includes their
    covariance: ``e^2 = (e1^2 + e2^2 + 2 n12 c12 / (n1 n2)) / 4``, with the errors and numbers of
    trials of both directions, and the sample covariance c12 over the n12 trials that show both.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from microns_xr.recordings import open, write_demo
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> curves = tuning(open(path))
    >>> curves.rate_dir.dims, curves.direction.values[:3]
    (('scan_unit', 'direction'), array([ 0. , 22.5, 45. ]))
    """
    latency = _require_latency(latency)
    if scans is not None:
        recordings = select(recordings, scans=scans)
    nodes = scan_nodes(recordings)
    trials = {name: _trials_of(name, node, stimulus) for name, node in nodes.items()}
    trials = {name: (rows, shown) for name, (rows, shown) in trials.items() if len(rows)}
    if not trials:
        kinds = {str(s) for node in nodes.values() for s in node["stimulus"].values}
        raise unknown_label(f"none of {', '.join(nodes)} shows", stimulus, kinds)
    first, (_, directions) = next(iter(trials.items()))
    for name, (_, others) in trials.items():
        if not np.array_equal(others, directions):
            raise SchemaError(
                f"{first} shows the directions {directions.tolist()} but {name} shows "
                f"{others.tolist()}, expected the same in all scans: select scans that agree with "
                "scans="
            )
    if coregistration is not None:
        validate(coregistration, "functional")
        require_same_release(("coregistration", coregistration), *nodes.items())
    datastack = datastack_of(nodes[first])
    direction = _direction_coord(directions, stimulus, angle_convention, datastack)
    parts = []
    for name, (rows, _) in trials.items():
        responses = _each_trial(name, nodes[name], rows, directions, latency)
        parts.append(_curves(nodes[name], responses, direction))
        logger.info("%s: %d trials of %s", name, len(rows), stimulus)
    curves = xr.concat(parts, "scan_unit", coords="minimal", compat="override", join="override")
    curves = curves.isel(scan_unit=np.lexsort([curves[k].values for k in SCAN_KEYS[::-1]]))
    rates = curves["rate_dir"].values
    # As in the tables of rates, a unit has rates for all directions or for none.
    incomplete = ~np.isfinite(rates).all(axis=1)
    rates[incomplete] = np.nan
    if "rate_ori" in curves:
        curves["rate_ori"].values[incomplete] = np.nan
    curves.attrs = {
        "tuning_from": "trials",
        "tuning_table": f"trials of {stimulus} in {recordings.attrs.get('source', 'recordings')}",
        "stimulus": stimulus,
        "latency_s": latency,
        "scans": sorted(trials),
        "scans_without": sorted(set(nodes) - set(trials)),
        "n_incomplete": int(incomplete.sum()),
    }
    sources = [recordings.to_dataset(inherit=False)]
    if coregistration is not None:
        curves = match_units(curves, coregistration)
        sources.append(coregistration)
    entry = f"recordings.tuning({stimulus!r}, latency={latency:g}) of {len(trials)} scans"
    return add_history(curves, entry, source=sources)


def _curves(node: xr.Dataset, trials: Iterable[np.ndarray], direction: Any) -> xr.Dataset:
    """Average an iterable of trials; NaN marks missing responses."""
    # Welford's recurrence (Technometrics 4, 1962) avoids the cancellation of sums of squares.
    shape = (node.sizes["unit"], len(direction[1]))
    n, mean, squares = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    angles = direction[1]
    half = len(angles) // 2
    opposite = half * 2 == len(angles) and np.allclose(angles[half:] - angles[:half], 180.0)
    # Over trials that show both of two opposite directions.
    n_both, products = np.zeros((2, shape[0], half))
    mean_both = np.zeros((2, shape[0], half))
    for values in trials:
        seen = np.isfinite(values)
        n += seen
        change = np.where(seen, values - mean, 0.0)
        mean += change / np.maximum(n, 1)
        squares += np.where(seen, change * (values - mean), 0.0)
        if opposite:
            pair = np.stack(np.split(values, 2, axis=1))
            both = np.isfinite(pair).all(axis=0)
            n_both += both
            change = np.where(both, pair - mean_both, 0.0)
            mean_both += change / np.maximum(n_both, 1)
            products += np.where(both, change[0] * (pair[1] - mean_both[1]), 0.0)
    error = np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1))
    dims = ("scan_unit", "direction")
    of_error = {"long_name": "standard error of rate_dir over trials", "missing": "NaN"}
    rate, error = np.where(n > 0, mean, np.nan), np.where(n > 1, error, np.nan)
    curves = xr.Dataset(
        {
            "rate_dir": (dims, rate, describe(FUNCTIONAL["rate_dir"])),
            "rate_error": (dims, error, of_error),
            "n_trials": (dims, n, {"long_name": "number of trials"}),
        },
        coords={**_unit_coords(node), "direction": direction},
    )
    if not opposite:
        return curves
    # With fewer than two common trials the covariance is not known; separate ones have none.
    shared = products / np.maximum(n_both - 1, 1) * n_both
    shared /= np.maximum(n[:, :half] * n[:, half:], 1)
    squared = error[:, :half] ** 2 + error[:, half:] ** 2 + 2 * shared
    attrs = {**direction[2], "period": 180.0, "long_name": "stimulus orientation"}
    of_error = {"long_name": "standard error of rate_ori over trials", "missing": "NaN"}
    dims = ("scan_unit", "orientation")
    folded = (rate[:, :half] + rate[:, half:]) / 2
    return curves.assign(
        rate_ori=(dims, folded, describe(FUNCTIONAL["rate_ori"])),
        rate_ori_error=(dims, np.sqrt(np.maximum(squared, 0)) / 2, of_error),
    ).assign_coords(orientation=("orientation", angles[:half], attrs))
