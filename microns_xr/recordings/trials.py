"""Tuning curves from trials: mean and standard error by direction, out of core."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.angles import ANGLE_CONVENTIONS, AngleConvention
from microns_xr.errors import ReleaseMismatchError, SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import RELEASE_COORDS, add_history
from microns_xr.recordings.files import node_name, scan_nodes, select
from microns_xr.releases import table_spec
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.tables import SCAN_KEYS
from microns_xr.tuning.functional import nuclei_of_units

# Responses of single trials by direction: frames cut by their times, one trial in memory.


# Times are seconds since the scan began, so that a difference of two has an error far below this;
# frames are 0.133 s apart.
_TIME_TOLERANCE = 1e-6
# Rates by direction of this stimulus, as the video states it, are what this table holds.
_TABLE_OF_STIMULUS = {"Monet2": "tuning_curves_fitted_v1"}


def segment_of_frames(
    times: np.ndarray, onsets: np.ndarray, offsets: np.ndarray, latency: float = 0.0
) -> np.ndarray:
    """Assign frames to segments of the stimulus, by time."""
    shown = np.asarray(times) - latency + _TIME_TOLERANCE
    segment = np.searchsorted(onsets, shown, side="right") - 1
    ends = np.where(np.isnan(offsets), np.inf, offsets)
    return np.where((segment >= 0) & (shown < ends[segment]), segment, -1)


def segment_responses(
    responses: np.ndarray, segment: np.ndarray, group: np.ndarray, n_groups: int
) -> np.ndarray:
    """Average the frames of each segment, then the segments of each group."""
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
    """Rows of the trials of a stimulus that has directions; empty where a scan shows none."""
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
                "it out with select(..., trial=) if it was cut short"
            )
        segment = segment_of_frames(time, onsets, offsets, latency)
        angles = np.round(np.mod(node["direction"].values[row][shown], 360.0), 6) % 360.0
        group = np.searchsorted(directions, angles)
        yield segment_responses(responses[:, frames].values, segment, group, len(directions))


def direction_coord(
    directions: np.ndarray, stimulus: str, angle_convention: str | None
) -> tuple[str, np.ndarray, dict[str, Any]]:
    """Return the coordinate ``direction``, which says where its convention comes from."""
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
    """Return one scan and its name."""
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
        What `microns_xr.recordings.open` or `microns_xr.recordings.select` returned.
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
    >>> from microns_xr.recordings.demo import write_demo
    >>> from microns_xr.recordings.files import open
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> trial_responses(open(path)).dims
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


logger = logging.getLogger(__name__)


class _Moments:
    """Mean and sum of squared deviations of what comes one trial at a time.

    Welford's recurrence (Technometrics 4, 1962), which does not lose digits as sums of squares do.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n = np.zeros(shape, dtype=np.int64)
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape)

    def add(self, values: np.ndarray) -> None:
        """Add a trial; NaN is none."""
        seen = np.isfinite(values)
        self.n += seen
        change = np.where(seen, values - self.mean, 0.0)
        self.mean += change / np.maximum(self.n, 1)
        self._squares += np.where(seen, change * (values - self.mean), 0.0)

    def rate(self) -> np.ndarray:
        """Return the mean over trials, NaN without any."""
        return np.where(self.n > 0, self.mean, np.nan)

    def error(self) -> np.ndarray:
        """Return the standard error of the mean over trials, NaN with fewer than two."""
        free = np.maximum(self.n - 1, 1)
        return np.where(self.n > 1, np.sqrt(self._squares / free / np.maximum(self.n, 1)), np.nan)


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

    One trial is in memory at a time.

    Parameters
    ----------
    recordings : DataTree
        What `microns_xr.recordings.open` or `microns_xr.recordings.select` returned.
    stimulus : str, optional
        Type of the stimulus; it must have directions and onsets.
    scans : iterable, optional
        Which scans, such as ``["9_3"]``; all that show the stimulus by default.
    latency : float, optional
        Seconds by which responses follow the stimulus frame they are stored with. Frames lead by
        at least 66 ms already: nothing is added unless you say so.
    angle_convention : str, optional
        What 0 degrees means. The file does not say it; for Monet2 the registry does.
    coregistration : xarray.Dataset, optional
        Functional rows of a release, which say which unit is which neuron.

    Returns
    -------
    xarray.Dataset
        Sorted by (session, scan_idx, unit_id): ``rate_dir(scan_unit, direction)``,
        ``rate_error(scan_unit, direction)`` of the mean over trials (NaN with fewer than two)
        and ``n_trials(scan_unit, direction)``; with directions in opposite pairs also
        ``rate_ori(scan_unit, orientation)``, the mean of both. Coordinates ``session``,
        ``scan_idx``, ``unit_id``, ``brain_area``, angles in degrees; with a coregistration also
        ``nucleus_id`` (-1: matched to none; a unit matched to several has a row for each) and the
        release. A unit with a direction that was never measured has no rates (NaN throughout).

    Raises
    ------
    UnknownLabelError
        If a scan is not there, or none shows the stimulus.
    SchemaError
        If the stimulus has no directions, times and onsets do not fit, scans show different
        directions, or the convention is not known.
    ReleaseMismatchError
        If recordings and coregistration are of different datastacks.

    Notes
    -----
    Frames are cut by ``stim_times`` and ``onsets``, never by their number. The samples of the
    standard error are trials: frames within a trial depend on each other.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from microns_xr.recordings.demo import write_demo
    >>> from microns_xr.recordings.files import open
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> curves = tuning(open(path))
    >>> curves.rate_dir.dims, curves.direction.values[:3]
    (('scan_unit', 'direction'), array([ 0. , 22.5, 45. ]))
    """
    latency = require_latency(latency)
    if scans is not None:
        recordings = select(recordings, scans=scans)
    nodes = scan_nodes(recordings)
    rows = {name: directional_trials(name, node, stimulus) for name, node in nodes.items()}
    shown = {name: r for name, r in rows.items() if len(r)}
    if not shown:
        found = sorted({str(s) for node in nodes.values() for s in node["stimulus"].values})
        raise UnknownLabelError(
            f"none of {', '.join(nodes)} shows {stimulus!r}, they show {', '.join(found)}"
        )
    directions = _same_directions({n: directions_of(nodes[n], r) for n, r in shown.items()})
    direction = direction_coord(directions, stimulus, angle_convention)
    parts = []
    for name, trials in shown.items():
        node = nodes[name]
        moments = _Moments((node.sizes["unit"], len(directions)))
        for trial in each_trial(name, node, trials, directions, latency):
            moments.add(trial)
        parts.append(_rates(node, moments, direction))
        logger.info("%s: %d units, %d trials of %s", name, len(moments.n), len(trials), stimulus)
    curves = xr.concat(parts, "scan_unit", coords="minimal", compat="override", join="override")
    order = np.lexsort([curves[k].values for k in SCAN_KEYS[::-1]])
    curves = curves.isel(scan_unit=order)
    incomplete = ~np.isfinite(curves["rate_dir"].values).all(axis=1)
    if incomplete.any():
        kept = curves["rate_dir"].where(xr.DataArray(~incomplete, dims="scan_unit"))
        curves = curves.assign(rate_dir=kept.assign_attrs(curves["rate_dir"].attrs))
    curves = _with_orientation(curves)
    curves.attrs = {
        "tuning_from": "trials",
        "tuning_table": f"trials of {stimulus} in {recordings.attrs.get('source', 'recordings')}",
        "stimulus": stimulus,
        "latency_s": latency,
        "scans": sorted(shown),
        "scans_without": sorted(set(nodes) - set(shown)),
        "n_incomplete": int(incomplete.sum()),
    }
    past = [recordings.to_dataset(inherit=False)]
    if coregistration is not None:
        curves = _with_nuclei(curves, coregistration)
        past.append(coregistration)
    entry = f"recordings.tuning({stimulus!r}, latency={latency:g}) of {len(shown)} scans"
    return add_history(curves, entry, source=past)


def _same_directions(by_scan: dict[str, np.ndarray]) -> np.ndarray:
    first_name, first = next(iter(by_scan.items()))
    for name, directions in by_scan.items():
        if not np.array_equal(directions, first):
            raise SchemaError(
                f"{first_name} shows the directions {first.tolist()}, {name} {directions.tolist()}:"
                " rates of different stimuli cannot share a dimension; name scans= that agree"
            )
    return first


def _rates(node: xr.Dataset, moments: _Moments, direction: Any) -> xr.Dataset:
    dims = ("scan_unit", "direction")
    scalar = {k: node[k].reset_coords(drop=True) for k in ("datastack",) if k in node.coords}
    return xr.Dataset(
        {
            "rate_dir": (dims, moments.rate(), describe(FUNCTIONAL["rate_dir"])),
            "rate_error": (
                dims,
                moments.error(),
                {"long_name": "standard error of rate_dir over trials", "missing": "NaN"},
            ),
            "n_trials": (dims, moments.n, {"long_name": "trials behind rate_dir"}),
        },
        coords={**unit_coords(node), "direction": direction, **scalar},
    )


def _with_orientation(curves: xr.Dataset) -> xr.Dataset:
    """Add the mean over opposite directions, where all directions come in such pairs."""
    angles = curves["direction"].values
    half = len(angles) // 2
    if len(angles) % 2 or not np.allclose(angles[half:] - angles[:half], 180.0):
        return curves
    rates = curves["rate_dir"].values
    attrs = {**curves["direction"].attrs, "period": 180.0}
    attrs["long_name"] = "orientation of the stimulus"
    return curves.assign(
        rate_ori=(
            ("scan_unit", "orientation"),
            (rates[:, :half] + rates[:, half:]) / 2,
            describe(FUNCTIONAL["rate_ori"]),
        )
    ).assign_coords(orientation=("orientation", angles[:half], attrs))


def _with_nuclei(curves: xr.Dataset, coregistration: xr.Dataset) -> xr.Dataset:
    """Say which neuron each unit is; a unit matched to several nuclei gets a row for each."""
    keys = list(SCAN_KEYS)
    absent = [k for k in (*keys, "nucleus_id", *RELEASE_COORDS) if k not in coregistration.coords]
    if not absent and "datastack" in curves.coords:
        found = str(curves["datastack"].item()), str(coregistration["datastack"].item())
        if found[0] != found[1]:
            raise ReleaseMismatchError(
                f"the recordings are of the datastack {found[0]!r}, the coregistration of "
                f"{found[1]!r}: their units have nothing to do with each other"
            )
    if absent:
        raise SchemaError(
            f"coregistration has no coordinates {absent}: give what Release.functional() returns"
        )
    rows = nuclei_of_units({k: curves[k].values for k in keys}, coregistration)
    ids = ("scan_unit", rows["nucleus_id"].to_numpy(), describe(FUNCTIONAL["nucleus_id"]))
    release = {c: coregistration.coords[c] for c in RELEASE_COORDS}
    result = curves.isel(scan_unit=rows["row"].to_numpy())
    result = result.assign_coords({"nucleus_id": ids, **release})
    result.attrs["coregistration_table"] = coregistration.attrs.get("functional_table", "unknown")
    result.attrs["n_unmatched"] = int((rows["nucleus_id"] < 0).sum())
    return result
