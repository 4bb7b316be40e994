"""Functional tables of the synthetic release: coregistration, properties, tuning curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from microns_xr.source.demo_cells import Cells
from microns_xr.source.demo_frames import annotation, frame, positions, shuffled_ids
from microns_xr.source.demo_function import DIRECTIONS, MAX_UNITS, N_DIRECTIONS, Units

__all__ = ["auto_table", "manual_table", "planted_units", "properties_table", "tuning_table"]


def _matches(
    cells: Cells, units: Units, rows: np.ndarray, cell: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Columns of both kinds of coregistration after target_id."""
    return {
        "session": units.session[rows],
        "scan_idx": units.scan_idx[rows],
        "unit_id": units.unit_id[rows],
        "field": rng.integers(1, 9, len(rows)),
        "residual": np.round(12 * rng.beta(2, 3, len(rows)), 5),
        "score": np.round(5 + 4 * rng.standard_normal(len(rows)), 5),
        **positions(cells, cell),
    }


def _roots_of(cells: Cells, units: Units, rows: np.ndarray, version: int) -> np.ndarray:
    inside = units.cell[rows] >= 0
    return np.where(inside, cells.roots(version)[units.cell[rows]], units.stranger_root[rows])


def manual_table(
    cells: Cells, units: Units, version: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Make the manual coregistration of the version: units to nuclei."""
    rows = rng.permutation(np.flatnonzero(units.in_manual(version)))
    cell = units.cell[rows]
    somewhere = rng.integers(0, cells.n, len(rows))
    return frame(
        {
            **annotation(shuffled_ids(len(rows), rng), rng, day=1330),
            "target_id": units.target_id[rows],
            "pt_root_id": _roots_of(cells, units, rows, version),
            **_matches(cells, units, rows, np.where(cell >= 0, cell, somewhere), rng),
        }
    )


def auto_table(cells: Cells, units: Units, version: int, rng: np.random.Generator) -> pd.DataFrame:
    """Make the automatic coregistration: more units than the manual one, some of them wrong.

    A wrong match has a larger residual and a smaller score, on average.
    """
    rows = rng.permutation(np.flatnonzero(units.auto_cell >= 0))
    cell = units.auto_cell[rows]
    table = frame(
        {
            **annotation(shuffled_ids(len(rows), rng), rng, day=1340),
            "target_id": cells.nucleus_id[cell],
            "pt_root_id": cells.roots(version)[cell],
            **_matches(cells, units, rows, cell, rng),
        }
    )
    wrong = cell != units.cell[rows]
    table["residual"] += np.where(wrong, 5.0, 0.0)
    table["score"] -= np.where(wrong, 4.0, 0.0)
    return table


def properties_table(
    cells: Cells, units: Units, version: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Make digital_twin_properties_bcm_coreg_v4: degrees, 0 = vertical bar moving right, ccw.

    gOSI and gDSI are the resultant lengths of the curve over orientation and direction; a preferred
    angle ``a`` of the curve's own convention is written as ``90 - a``.
    """
    rows = rng.permutation(np.flatnonzero(units.manual & units.has_properties))
    curves = units.curves[rows]
    theta = np.deg2rad(DIRECTIONS)
    first, second = curves @ np.exp(1j * theta), curves @ np.exp(2j * theta)
    total = curves.sum(axis=1)
    orientation = np.mod(np.rad2deg(np.angle(second)) / 2, 180)
    along = np.real(first * np.exp(-1j * np.deg2rad(orientation))) >= 0
    direction = np.where(along, orientation, orientation + 180)
    at = np.arange(len(rows))[:, None]
    nearest = np.rint(direction / (360 / N_DIRECTIONS)).astype(np.int64)
    pref, across, opposite, back = (
        curves[at, (nearest[:, None] + step) % N_DIRECTIONS][:, 0] for step in (0, 4, 8, 12)
    )
    norm = rng.uniform(0.6, 0.95, len(rows))
    return frame(
        {
            **annotation(shuffled_ids(len(rows), rng), rng, day=1700),
            "target_id": units.target_id[rows],
            "pt_root_id": _roots_of(cells, units, rows, version),
            "session": units.session[rows],
            "scan_idx": units.scan_idx[rows],
            "unit_id": units.unit_id[rows],
            "cc_abs": units.cc_abs[rows],
            "cc_max": units.cc_abs[rows] / norm,
            "cc_norm": norm,
            "OSI": (pref + opposite - across - back) / (pref + opposite + across + back),
            "DSI": (pref - opposite) / (pref + opposite),
            "gOSI": np.abs(second) / total,
            "gDSI": np.abs(first) / total,
            "pref_ori": np.mod(90 - orientation, 180),
            "pref_dir": np.mod(90 - direction, 360),
            "readout_loc_x": rng.uniform(-1, 1, len(rows)),
            "readout_loc_y": rng.uniform(-1, 1, len(rows)),
        }
    )


def _array_text(values: np.ndarray) -> np.ndarray:
    """Each row as numpy prints it: numbers of one width, separated by blanks, no commas."""
    out = np.empty(len(values), dtype=object)
    for i, row in enumerate(values.tolist()):
        parts = [repr(value).split(".") for value in row]
        left, right = (max(len(part[k]) for part in parts) for k in (0, 1))
        # numpy writes 2. for 2.0
        words = [f"{a:>{left}}.{b if b != '0' else '':<{right}}" for a, b in parts]
        out[i] = f"[{' '.join(words)}]"
    return out


def tuning_table(units: Units, rng: np.random.Generator) -> pd.DataFrame:
    """Make tuning_curves_fitted_v1: 16 rates by direction and 8 by orientation, as text."""
    rows = rng.permutation(np.flatnonzero(units.rated))
    curves = units.curves[rows]
    half = N_DIRECTIONS // 2
    return frame(
        {
            "session": units.session[rows],
            "scan_idx": units.scan_idx[rows],
            "unit_id": units.unit_id[rows],
            "rate_dir": _array_text(curves),
            "rate_ori": _array_text(np.round((curves[:, :half] + curves[:, half:]) / 2, 7)),
        }
    )


def planted_units(cells: Cells, units: Units, version: int, has_properties: bool) -> dict[str, Any]:
    """Return what the functional tables of a version hold on purpose, by name."""
    listed = units.in_manual(version)
    inside = np.flatnonzero(listed & (units.cell >= 0))
    rows = pd.DataFrame(
        {
            "nucleus_id": units.target_id[inside],
            "session": units.session[inside],
            "scan_idx": units.scan_idx[inside],
        }
    )
    repeated = rows.duplicated()
    n_scans = rows[~repeated].groupby("nucleus_id").size()
    without = listed & ~units.has_properties if has_properties else np.zeros_like(listed)
    return {
        "five_scans": n_scans.index[n_scans == MAX_UNITS].to_numpy(dtype=np.int64),
        "twice_in_scan": np.unique(rows["nucleus_id"][repeated].to_numpy()),
        "coregistered_no_nucleus": np.sort(units.target_id[listed & (units.cell < 0)]),
        "units_without_rates": units.keys(np.flatnonzero(listed & ~units.rated)),
        "units_without_properties": units.keys(np.flatnonzero(without)),
        "rates_without_coregistration": units.keys(np.flatnonzero(units.rated & ~listed)),
    }
