"""Tuning curves from trials: mean and standard error by direction, out of core."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.angles import AngleConvention
from microns_xr.errors import ReleaseMismatchError, SchemaError, UnknownLabelError
from microns_xr.functional.coregistration import nuclei_of_units
from microns_xr.provenance import RELEASE_COORDS, add_history
from microns_xr.recordings.select import scan_nodes, select_recordings
from microns_xr.recordings.trials import (
    direction_coord,
    directional_trials,
    directions_of,
    each_trial,
    require_latency,
    unit_coords,
)
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.tables import SCAN_KEYS

__all__ = ["tuning_from_trials"]

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


def tuning_from_trials(
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
        What `open_recordings` or `select_recordings` returned.
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
    >>> from microns_xr.recordings.demo import write_demo_recordings
    >>> from microns_xr.recordings.open import open_recordings
    >>> path = write_demo_recordings(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> curves = tuning_from_trials(open_recordings(path))
    >>> curves.rate_dir.dims, curves.direction.values[:3]
    (('scan_unit', 'direction'), array([ 0. , 22.5, 45. ]))
    """
    latency = require_latency(latency)
    if scans is not None:
        recordings = select_recordings(recordings, scans=scans)
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
    entry = f"tuning_from_trials({stimulus!r}, latency={latency:g}) of {len(shown)} scans"
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
