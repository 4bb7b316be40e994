"""Responses of single trials by direction: frames cut by their times, one trial in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.angles import ANGLE_CONVENTIONS, AngleConvention
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history
from microns_xr.recordings.open import node_name
from microns_xr.recordings.select import scan_nodes
from microns_xr.releases import table_spec
from microns_xr.schema import FUNCTIONAL, describe

__all__ = ["direction_coord", "segment_of_frames", "segment_responses", "trial_responses"]

# Times are seconds since the scan began, so that a difference of two has an error far below this;
# frames are 0.133 s apart.
_TIME_TOLERANCE = 1e-6
# Rates by direction of this stimulus, as the video states it, are what this table holds.
_TABLE_OF_STIMULUS = {"Monet2": "tuning_curves_fitted_v1"}


def segment_of_frames(
    times: np.ndarray, onsets: np.ndarray, offsets: np.ndarray, latency: float = 0.0
) -> np.ndarray:
    """Assign frames to segments of the stimulus, by time.

    Parameters
    ----------
    times : numpy.ndarray
        Seconds from the start of the trial, ascending.
    onsets, offsets : numpy.ndarray
        Seconds from the start of the trial at which each segment begins and ends; an offset of NaN
        is the end of the trial.
    latency : float, optional
        Seconds by which responses follow the stimulus frame they are stored with.

    Returns
    -------
    numpy.ndarray
        Segment of each frame, int64; -1 for a frame of none. A frame at an onset belongs to the
        segment that begins.

    Examples
    --------
    >>> onsets, offsets = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    >>> segment_of_frames(np.array([0.0, 0.9, 1.0, 2.5]), onsets, offsets)
    array([ 0,  0,  1, -1])
    """
    shown = np.asarray(times) - latency + _TIME_TOLERANCE
    segment = np.searchsorted(onsets, shown, side="right") - 1
    ends = np.where(np.isnan(offsets), np.inf, offsets)
    return np.where((segment >= 0) & (shown < ends[segment]), segment, -1)


def segment_responses(
    responses: np.ndarray, segment: np.ndarray, group: np.ndarray, n_groups: int
) -> np.ndarray:
    """Average the frames of each segment, then the segments of each group.

    Parameters
    ----------
    responses : numpy.ndarray
        Shape (units, frames).
    segment : numpy.ndarray
        Segment of each frame, -1 for none.
    group : numpy.ndarray
        Group (direction) of each segment.
    n_groups : int
        Number of groups.

    Returns
    -------
    numpy.ndarray
        Shape (units, n_groups), float64: NaN where no frame was seen. Frames that are NaN are left
        out of the average.

    Examples
    --------
    >>> segment_responses(np.array([[1.0, 3.0, 5.0]]), np.array([0, 0, 1]), np.array([1, 0]), 2)
    array([[5., 2.]])
    """
    values = np.asarray(responses, dtype=np.float64)
    member = (segment[:, None] == np.arange(len(group))).astype(np.float64)
    present = np.isfinite(values)
    counts = present.astype(np.float64) @ member
    means = np.where(present, values, 0.0) @ member
    np.divide(means, counts, out=means, where=counts > 0)
    belongs = (group[:, None] == np.arange(n_groups)).astype(np.float64)
    n_segments = (counts > 0).astype(np.float64) @ belongs
    result = means @ belongs
    result[n_segments == 0] = np.nan
    np.divide(result, n_segments, out=result, where=n_segments > 0)
    return result


def directional_trials(name: str, node: xr.Dataset, stimulus: str) -> np.ndarray:
    """Rows of the trials of a stimulus that has directions; empty where a scan shows none.

    Raises
    ------
    SchemaError
        If the stimulus has no directions.
    """
    rows = np.flatnonzero(node["stimulus"].values == stimulus)
    if not len(rows):
        return rows
    has = "direction" in node.variables and np.isfinite(node["direction"].values[rows]).any(axis=1)
    if not np.all(has):
        raise SchemaError(
            f"{name}: trials of {stimulus!r} have no directions and onsets, so there is no tuning "
            "by direction: only videos with both, such as Monet2, are cut"
        )
    return rows


def directions_of(node: xr.Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the directions of some trials in degrees, from 0 up to 360, ascending, each once."""
    shown = node["direction"].values[rows]
    # Multiples of 22.5 are exact; others may differ in the last digit between videos.
    return np.unique(np.round(np.mod(shown[np.isfinite(shown)], 360.0), 6) % 360.0)


def each_trial(
    name: str, node: xr.Dataset, rows: np.ndarray, directions: np.ndarray, latency: float
) -> Iterator[np.ndarray]:
    """Yield the responses of one trial after the other, shape (units, directions).

    A trial without frames is NaN throughout.

    Raises
    ------
    SchemaError
        If times do not grow, or an onset lies outside of them.
    """
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
            raise SchemaError(
                f"{where}: stim_times must be numbers that grow, found {time[:5]} ..."
            )
        time = time - time[0]
        shown = np.isfinite(node["direction"].values[row])
        onsets, offsets = (node[k].values[row][shown] for k in ("onset", "offset"))
        step = float(np.median(np.diff(time))) if len(time) > 1 else 0.0
        if onsets[0] < -_TIME_TOLERANCE or onsets[-1] > time[-1] + step:
            raise SchemaError(
                f"{where}: onsets go from {onsets[0]:g} to {onsets[-1]:g} s, and its stim_times "
                f"from 0 to {time[-1]:g} s: the directions were not shown within the trial; leave "
                "it out with select_recordings(..., trial=) if it was cut short"
            )
        segment = segment_of_frames(time, onsets, offsets, latency)
        angles = np.round(np.mod(node["direction"].values[row][shown], 360.0), 6) % 360.0
        group = np.searchsorted(directions, angles)
        yield segment_responses(responses[:, frames].values, segment, group, len(directions))


def direction_coord(
    directions: np.ndarray, stimulus: str, angle_convention: str | None
) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Return the coordinate ``direction``, which says where its convention comes from.

    Parameters
    ----------
    directions : numpy.ndarray
        Degrees.
    stimulus : str
        Type of the stimulus.
    angle_convention : str or None
        As the caller states it.

    Returns
    -------
    tuple
        Dimension, values, attributes.

    Raises
    ------
    SchemaError
        If the convention is not stated and not in the registry, or unknown.
    """
    said = "stated by the caller"
    if angle_convention is None and stimulus in _TABLE_OF_STIMULUS:
        table = _TABLE_OF_STIMULUS[stimulus]
        angle_convention = table_spec(table).angle_convention
        said = f"the registry's entry of {table}; the recordings file does not state it"
    if angle_convention not in ANGLE_CONVENTIONS:
        raise SchemaError(
            f"angle_convention is {angle_convention!r}, expected one of "
            f"{sorted(ANGLE_CONVENTIONS)}: the recordings file does not say what 0 degrees of "
            f"{stimulus!r} means"
        )
    attrs = {
        "units": "degree",
        "angle_convention": angle_convention,
        "angle_convention_from": said,
        "period": 360.0,
        "long_name": "direction of the stimulus",
    }
    return "direction", directions, attrs


def scan_of(recordings: xr.DataTree, scan: Any) -> tuple[str, xr.Dataset]:
    """Return one scan and its name.

    Raises
    ------
    UnknownLabelError
        If it is not there, or several are and none is named.
    """
    nodes = scan_nodes(recordings)
    if scan is None:
        if len(nodes) > 1:
            raise UnknownLabelError(
                f"recordings holds {len(nodes)} scans ({', '.join(nodes)}): name one with scan="
            )
        return next(iter(nodes.items()))
    name = node_name(scan)
    if name not in nodes:
        near = ", ".join(nearest_words(name, nodes))
        raise UnknownLabelError(
            f"recordings has no scan {scan!r}, it has {', '.join(nodes)}"
            + (f"; nearest: {near}" if near else "")
        )
    return name, nodes[name]


def unit_coords(node: xr.Dataset) -> dict[str, Any]:
    """Coordinates of the units of a scan along ``scan_unit``: session, scan_idx, unit_id, area."""
    n = node.sizes["unit"]
    keys = {
        "session": np.full(n, int(node["session"]), dtype=np.int64),
        "scan_idx": np.full(n, int(node["scan_idx"]), dtype=np.int64),
        "unit_id": node["unit_id"].values.astype(np.int64),
    }
    coords: dict[str, Any] = {k: ("scan_unit", v, describe(FUNCTIONAL[k])) for k, v in keys.items()}
    coords["brain_area"] = (
        "scan_unit",
        node["brain_area"].values.astype(object),
        {"long_name": "visual area of the recorded unit"},
    )
    return coords


def trial_responses(
    recordings: xr.DataTree,
    scan: Any = None,
    stimulus: str = "Monet2",
    *,
    latency: float = 0.0,
    angle_convention: AngleConvention | None = None,
) -> xr.DataArray:
    """Return the mean response of every unit in every trial to every direction.

    Parameters
    ----------
    recordings : DataTree
        What `open_recordings` or `select_recordings` returned.
    scan : str or pair of int, optional
        Which scan; not needed where there is one.
    stimulus : str, optional
        Type of the stimulus; it must have directions and onsets.
    latency : float, optional
        Seconds by which responses follow the stimulus frame they are stored with. Frames lead by
        at least 66 ms already: nothing is added unless you say so.
    angle_convention : str, optional
        What 0 degrees means. The file does not say it; for Monet2 the registry does.

    Returns
    -------
    xarray.DataArray
        ``responses(scan_unit, trial, direction)``, float64, NaN where a trial did not show a
        direction; with ``session``, ``scan_idx``, ``unit_id``, ``brain_area``, ``trial`` (its
        number) and ``direction`` in degrees.

    Raises
    ------
    UnknownLabelError
        If the scan is not there, or shows no such stimulus.
    SchemaError
        If the stimulus has no directions, times and onsets do not fit, or the convention is not
        known.

    Notes
    -----
    Frames are cut by ``stim_times`` and ``onsets``, never by their number. A direction that is
    shown twice in a trial is the mean of both.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from microns_xr.recordings.demo import write_demo_recordings
    >>> from microns_xr.recordings.open import open_recordings
    >>> path = write_demo_recordings(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> trial_responses(open_recordings(path)).dims
    ('scan_unit', 'trial', 'direction')
    """
    name, node = scan_of(recordings, scan)
    latency = require_latency(latency)
    rows = directional_trials(name, node, stimulus)
    if not len(rows):
        raise UnknownLabelError(
            f"{name} has no trial of {stimulus!r}, it shows "
            f"{', '.join(sorted(set(node['stimulus'].values)))}"
        )
    directions = directions_of(node, rows)
    direction = direction_coord(directions, stimulus, angle_convention)
    values = np.empty((node.sizes["unit"], len(rows), len(directions)))
    for i, trial in enumerate(each_trial(name, node, rows, directions, latency)):
        values[:, i] = trial
    result = xr.DataArray(
        values,
        dims=("scan_unit", "trial", "direction"),
        coords={
            **unit_coords(node),
            "trial": ("trial", node["trial"].values[rows]),
            "condition_hash": ("trial", node["condition_hash"].values[rows].astype(object)),
            "direction": direction,
        },
        name="responses",
        attrs={"long_name": "mean response", "stimulus": stimulus, "latency_s": latency},
    )
    if "datastack" in node.coords:
        result = result.assign_coords(datastack=node["datastack"].reset_coords(drop=True))
    entry = f"trial_responses({name}, {stimulus!r}, latency={latency:g})"
    return add_history(result, entry, source=recordings.to_dataset(inherit=False))


def require_latency(latency: float) -> float:
    """Return a latency in seconds, or raise if it can be none."""
    number = isinstance(latency, int | float | np.integer | np.floating)
    if not number or not 0 <= float(latency) < 5:
        raise SchemaError(
            f"latency is {latency!r}, expected seconds from 0 up; stimulus frames lead the "
            "responses by 66 ms already"
        )
    return float(latency)
