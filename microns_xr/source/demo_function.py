"""Recorded units of the synthetic release: neurons, the scans they were seen in, their curves.

Every neuron has one preferred direction. Its curves in all scans, the properties table and the
likelihood of its connections come from it, so that tables can be checked against each other: the
preferred orientation in the properties table is the phase of the second harmonic of the very curve
in the tuning table, expressed in the convention of the properties table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microns_xr.source.demo_cells import TYPES, Cells

__all__ = ["DIRECTIONS", "MAX_UNITS", "N_DIRECTIONS", "Units", "make_units"]

# The scans with coregistered units in coregistration_manual_v3 (three stray rows apart).
SCANS = np.array(
    [
        *((4, 7), (5, 3), (5, 6), (5, 7), (6, 2), (6, 4), (6, 6), (6, 7)),
        *((7, 3), (7, 4), (7, 5), (8, 5), (9, 3), (9, 4), (9, 6)),
    ],
    dtype=np.int64,
)
N_DIRECTIONS = 16
DIRECTIONS = np.arange(N_DIRECTIONS) * 360.0 / N_DIRECTIONS

# v4: 19,181 units of 15,434 roots among 94,010 typed cells; v3: 12,051 roots, 88.5 % of the rows
# with a nucleus in the table; rates for 6,034 of 13,922 rows of v3.
_MATCHED = 0.164
_IN_V3 = 0.78
_RATED = 0.433
_NO_NUCLEUS = 0.115
# Relative chance to be matched, by type, from v3; the other types are hardly ever matched.
_MATCH_WEIGHT = {"23P": 0.42, "4P": 0.24, "5P-IT": 0.26, "5P-ET": 0.28, "5P-NP": 0.04}
_MATCH_WEIGHT |= {"6P-IT": 0.02, "6P-CT": 0.03}
# Share of neurons with 1, 2, ... 5 units, and of those with several that come twice in one scan.
_UNITS_A_NEURON = (0.80, 0.165, 0.028, 0.006, 0.001)
_TWICE = 0.13
MAX_UNITS = len(_UNITS_A_NEURON)
# Set by hand: automatic matches for each manual one, how many agree, properties that are missing.
_AUTO_EXTRA, _AUTO_KEPT, _AUTO_RIGHT = 2.2, 0.75, 0.9
_NO_PROPERTIES = 0.02

_NO_CELL = -1


@dataclass(frozen=True)
class Units:
    """Recorded units of all scans, one element a unit.

    Attributes
    ----------
    cell : numpy.ndarray
        Row of the nucleus the unit really is; -1 for a nucleus outside of the table.
    target_id : numpy.ndarray
        Nucleus id of the manual match, -1 where there is none.
    auto_cell : numpy.ndarray
        Row of the nucleus of the automatic match, -1 where there is none.
    stranger_root : numpy.ndarray
        Root of a matched nucleus outside of the table; 0 in a third of them.
    session, scan_idx, unit_id : numpy.ndarray
        int64; together unique.
    in_v3, rated, has_properties : numpy.ndarray
        bool: in the manual coregistration v3, in the tuning table, in the properties table.
    cc_abs : numpy.ndarray
        Quality, unique.
    curves : numpy.ndarray
        Shape (n, 16): response by direction, 0 = horizontal bar moving up, clockwise.
    """

    cell: np.ndarray
    target_id: np.ndarray
    auto_cell: np.ndarray
    stranger_root: np.ndarray
    session: np.ndarray
    scan_idx: np.ndarray
    unit_id: np.ndarray
    in_v3: np.ndarray
    rated: np.ndarray
    has_properties: np.ndarray
    cc_abs: np.ndarray
    curves: np.ndarray

    @property
    def manual(self) -> np.ndarray:
        """Whether a unit is in the manual coregistration v4."""
        return self.target_id >= 0

    def in_manual(self, version: int) -> np.ndarray:
        """Whether a unit is in the manual coregistration of a version (v3 before 943)."""
        return self.manual & self.in_v3 if version < 943 else self.manual

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Return (session, scan_idx, unit_id) of some units, sorted; shape (n, 3)."""
        keys = np.stack([self.session[rows], self.scan_idx[rows], self.unit_id[rows]], axis=1)
        return keys[np.lexsort(keys.T[::-1])]


def _scans_of(n_units: np.ndarray, twice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scan of every unit of every neuron: different ones, but for those seen twice in one."""
    drawn = np.argsort(rng.random((len(n_units), len(SCANS))), axis=1)[:, :MAX_UNITS]
    drawn[twice, 1] = drawn[twice, 0]
    return drawn[np.arange(drawn.shape[1]) < n_units[:, None]]


def _unit_ids(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw unit ids from 1 up within each scan; most numbers are units without a match."""
    ids = np.zeros(len(scan), dtype=np.int64)
    for i in range(len(SCANS)):
        rows = np.flatnonzero(scan == i)
        ids[rows] = rng.permutation(max(50, 2 * len(rows)))[: len(rows)] + 1
    return ids


def _curves(pref: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Responses to 16 directions: two opposite bumps on a baseline, with some noise.

    Sharpness and baseline are set for a median gOSI near 0.2, as in the published curves.
    """
    n = len(pref)
    angle = np.deg2rad(DIRECTIONS - (pref + rng.uniform(-4, 4, n))[:, None])
    sharpness = rng.uniform(0.8, 4.0, n)[:, None]
    baseline = (0.15 + 1.5 * rng.random(n) ** 2)[:, None]
    opposite = rng.uniform(0.2, 0.9, n)[:, None]
    bumps = np.exp(sharpness * (np.cos(angle) - 1))
    bumps += opposite * np.exp(sharpness * (-np.cos(angle) - 1))
    gain = np.exp(0.8 * rng.standard_normal(n))[:, None]
    noise = rng.uniform(0.8, 1.2, (n, N_DIRECTIONS))
    return np.round(np.maximum(gain * (baseline + bumps) * noise, 0.01), 6)


def make_units(cells: Cells, rng: np.random.Generator) -> Units:
    """Draw the recorded units of a release; the same in every version."""
    n = cells.n
    weight = np.array([_MATCH_WEIGHT.get(name, 0.002) for name in TYPES])[cells.type_code]
    weight = np.where(cells.is_neuron, weight, 0.0)
    with np.errstate(divide="ignore"):
        order = np.argsort(rng.exponential(size=n) / weight, kind="stable")
    neurons = order[: max(40, round(_MATCHED * n))]
    # The first quiet neurons show what must be there in every release: five scans, twice in one.
    quiet = np.flatnonzero(cells.calm[neurons])
    bounds = np.cumsum(_UNITS_A_NEURON)[:-1]
    n_units = np.searchsorted(bounds, rng.random(len(neurons)), side="right") + 1
    n_units[quiet[:2]], n_units[quiet[2:4]] = 5, 2
    twice = (n_units > 1) & (rng.random(len(neurons)) < _TWICE)
    twice[quiet[:2]], twice[quiet[2:4]] = False, True
    in_v3 = rng.random(len(neurons)) < _IN_V3
    in_v3[quiet[:4]] = True

    manual_scan = _scans_of(n_units, twice, rng)
    manual_cell = np.repeat(neurons, n_units)
    n_manual = len(manual_cell)
    n_strange = max(3, round(n_manual * _NO_NUCLEUS / (1 - _NO_NUCLEUS)))
    n_unmatched = max(3, n_manual // 100)
    n_extra = round(_AUTO_EXTRA * n_manual)
    recordable = np.flatnonzero(cells.is_neuron & (cells.position_um[:, 1] < 600))
    extra_cell = rng.choice(recordable, n_extra)

    outside = np.full(n_strange + n_unmatched, _NO_CELL)
    cell = np.concatenate([manual_cell, outside, extra_cell])
    scan = np.concatenate(
        [manual_scan, rng.integers(0, len(SCANS), n_strange + n_unmatched + n_extra)]
    )
    total = len(cell)
    manual = np.arange(total) < n_manual
    strange = ~manual & (np.arange(total) < n_manual + n_strange)
    unmatched = ~manual & ~strange & (np.arange(total) < n_manual + n_strange + n_unmatched)

    target = np.full(total, -1, dtype=np.int64)
    target[manual] = cells.nucleus_id[manual_cell]
    target[strange] = int(cells.nucleus_id.max()) + 1 + np.arange(n_strange)
    stranger_root = np.zeros(total, dtype=np.int64)
    stranger_root[strange] = np.where(
        np.arange(n_strange) % 3 == 0, 0, cells.fragments[-n_strange:]
    )
    auto = np.full(total, _NO_CELL)
    kept = manual & (rng.random(total) < _AUTO_KEPT)
    right = rng.random(total) < _AUTO_RIGHT
    wrong_cell = rng.choice(recordable, total)
    auto[kept] = np.where(right, cell, wrong_cell)[kept]
    auto[total - n_extra :] = extra_cell

    in_v3_unit = np.zeros(total, dtype=bool)
    in_v3_unit[manual] = np.repeat(in_v3, n_units)
    in_v3_unit[strange] = rng.random(n_strange) < _IN_V3
    five = np.isin(cell, neurons[quiet[:2]]) & manual
    rated = (in_v3_unit & (rng.random(total) < _RATED)) | unmatched | five
    has_properties = manual | strange
    without = rng.permutation(np.flatnonzero(manual & ~five))
    has_properties[without[: max(3, round(_NO_PROPERTIES * n_manual))]] = False
    pref = np.where(cell >= 0, cells.pref_dir[np.maximum(cell, 0)], rng.uniform(0, 360, total))
    quality = np.clip(0.4 + 0.15 * rng.standard_normal(total), 0.02, None)
    return Units(
        cell=cell,
        target_id=target,
        auto_cell=auto,
        stranger_root=stranger_root,
        session=SCANS[scan, 0],
        scan_idx=SCANS[scan, 1],
        unit_id=_unit_ids(scan, rng),
        in_v3=in_v3_unit,
        rated=rated,
        has_properties=has_properties,
        cc_abs=quality + 1e-9 * np.arange(total),  # unique, so that the best unit is one
        curves=_curves(pref, rng),
    )
