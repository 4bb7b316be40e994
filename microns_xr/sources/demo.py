"""A synthetic release: the tables of minnie65 with invented cells and the defects of real ones.

The names of tables and columns, the number of cells of each type, their depths and nucleus volumes,
the shares of matched, rated and proofread neurons, and the conventions of angles are real.
Everything else is invented, above all the connections, and says nothing about the brain.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from microns_xr.errors import (
    SchemaError,
    SourceError,
    UnknownLabelError,
    require_instance,
    unknown_label,
    whole_number,
)
from microns_xr.releases import release_spec, space_of
from microns_xr.sources.directory import write_identity
from microns_xr.sources.tables import TableSource, frame_sha256, write_table_file

DEMO_VERSIONS = (661, 1507, 1718)
_SPACE = space_of("minnie65_demo")
_VOXEL_NM = (4.0, 4.0, 40.0)

# ---------------------------------------------------------------------------------------- cells
#
# Numbers, volumes and depths are those of the 91,423 typed cells of minnie65 v1300 (Elabbady et al.
# 2025, doi:10.1038/s41586-024-07765-7; MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w),
# depths rounded to a thousandth in ten zones. Within a zone cells are evenly spread and few stray
# over a border, so that the borders between layers are sharper than real ones.

# Borders of the published minnie65 layers in µm, rounded to 10 µm.
_EDGES = (0.0, 70.0, 250.0, 360.0, 510.0, 730.0, 830.0)
LAYER_BORDERS = dict(
    zip(("L1", "L2/3", "L4", "L5", "L6", "WM"), itertools.pairwise(_EDGES), strict=True)
)
_ZONES = np.array([0, 70, 160, 250, 305, 360, 435, 510, 620, 730, 830], dtype=np.float64)

CLASSES = ("excitatory_neuron", "inhibitory_neuron", "nonneuron")
_EXC, _INH, _NON = range(3)

# Class, cells in v1300, nucleus volume in µm³ (mean, sd), relative chance to be matched to a
# recorded unit (from coregistration_manual_v3), the type with which the metamodel confuses it,
# the name in the multi-feature model, cells per thousand in each zone of depth.
_TYPES = """
23P        0 19673 301 55  0.42   4P         L3IT   0 440 545  13   2   0   0   0   0   0
4P         0 14737 258 39  0.24   5P-IT      L4IT   0   0  15 480 470  35   0   0   0   0
5P-IT      0  7914 305 55  0.26   4P         L5IT   0   0   0   0  30 580 350  40   0   0
5P-ET      0  2179 439 95  0.28   5P-IT      L5ET   0   0   0   4   9 230 560 150  47   0
5P-NP      0   963 250 35  0.04   BC         L5NP   0   0   0   0   3  66 456 336 139   0
6P-IT      0 11675 280 45  0.02   6P-CT      L6IT   0   0   0   0   0   0  10 530 460   0
6P-CT      0  6777 272 38  0.03   6P-IT      L6CT   0   0   0   0   0   0  11 510 479   0
BC         1  3321 307 58  0.002  MC         BC     2  82 118  86 105 225 166 148  68   0
BPC        1  1486 229 40  0.002  NGC        BPC   29 207 183  85 108 139  75 114  60   0
MC         1  2449 293 60  0.002  5P-IT      MC     7  79 119  78  85 204 224 155  49   0
NGC        1   621 283 46  0.002  BPC        NGC  308 490 105  29  18  21  11  13   5   0
astrocyte  2  7466 163 26  0      microglia  -     89 146 129  80  83 106 106 135 122   4
microglia  2  2488  73  9  0      OPC        -     42 137 145  85  78 136 124 152  97   4
oligo      2  6945 102 19  0      OPC        -      8  30  73  66  84 137 146 206 190  60
OPC        2  1570 128 31  0      oligo      -     27  72  85  63  62  98 105 188 190 110
pericyte   2  1159  57 18  0      microglia  -     32  91 118  76  92 156 131 159  90  55
"""
_COLUMNS = list(zip(*(line.split() for line in _TYPES.strip().splitlines()), strict=True))
TYPES, _CONFUSED, _COMBO_TYPES = _COLUMNS[0], _COLUMNS[6], _COLUMNS[7]
_CLASS_OF_TYPE, _CELLS_OF_TYPE = (np.array(_COLUMNS[i], dtype=np.int64) for i in (1, 2))
_VOLUME_MEAN, _VOLUME_SD, _MATCH_WEIGHT = (np.array(_COLUMNS[i], dtype=float) for i in (3, 4, 5))
_DEPTH_PROFILES = np.array(_COLUMNS[8:], dtype=np.int64).T
_CONFUSED_CODE = np.array([TYPES.index(name) for name in _CONFUSED], dtype=np.int8)

AREAS = ("V1", "RL", "AL", "LM")

# The imaged box in pia-oriented µm, from the same cells.
_BOX_X = (200.0, 1550.0)
_BOX_Z = (604.0, 1105.0)

# The cells at the very top and bottom are the ends of the depth profile and have no defects.
_DEFECT_DEPTHS = (15.0, 715.0)

# Shares of all nuclei. The v661 tables lack the zero roots, so the first two are set by hand.
_ROOT_ZERO = 0.02
_UNTYPED = 0.08
_NO_AREA = 0.01
_NO_FINE_TYPE = 0.11  # v661: 49,050 fine types of 54,899 classified nuclei

# Share of proofread neurons, and by strategy (v1718; the last two by hand): neurons, relative
# number of synapses that show on the axon, status in v661, when partly extended axons were clean.
_PROOFREAD = 0.0265
_STRATEGIES = {
    "none": (0, 1.0, "non"),
    "axon_partially_extended": (1608, 6.0, "clean"),
    "axon_fully_extended": (547, 15.0, "extended"),
    "axon_interareal": (120, 6.0, "clean"),
    "axon_column_truncated": (90, 4.0, "clean"),
    "dendrite_only": (150, 1.0, "non"),
}
STRATEGIES = tuple(_STRATEGIES)
_NEURONS_OF_STRATEGY, _OUTPUT_OF_STRATEGY, _STATUS_661 = zip(*_STRATEGIES.values(), strict=True)

# Root ids of minnie65 are in this span. Ids come in groups of four that are 37 apart: float64
# numbers are 128 apart there, so that a root id converted to float refers to another cell.
_ROOT_BASE = 864_691_134_884_000_000
_ROOT_SPAN = 2_300_000_000
_ROOT_GROUP, _ROOT_STEP, _FLOAT_STEP = 4, 37, 128


def _split_by_weight(n: int, weights: Any) -> np.ndarray:
    """Split `n` into whole numbers in proportion to `weights`, by largest remainder."""
    exact = n * np.asarray(weights, dtype=np.float64) / np.sum(weights)
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: n - counts.sum()]] += 1
    return counts


def _draw_roots(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n` distinct root ids in random order, none of which float64 can hold."""
    n_groups = -(-n // _ROOT_GROUP)
    stride = max(_ROOT_SPAN // n_groups, 256)
    start = np.arange(n_groups, dtype=np.int64) * stride
    start += rng.integers(0, stride - _ROOT_GROUP * _ROOT_STEP, n_groups)
    ids = (_ROOT_BASE + start[:, None] + _ROOT_STEP * np.arange(_ROOT_GROUP)).ravel()
    ids += ids % _FLOAT_STEP == 0
    return rng.permutation(ids)[:n]


def _draw_depths(type_code: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth of each cell: evenly spread along the depth profile of its type, with jitter."""
    depth = np.empty(len(type_code))
    for code, in_zone in enumerate(_DEPTH_PROFILES):
        cells = np.flatnonzero(type_code == code)
        # Every type occupies one run of zones, in which its cumulative profile increases.
        first, last = np.flatnonzero(in_zone)[[0, -1]]
        in_zone = in_zone[first : last + 1]
        profile = np.concatenate([[0], np.cumsum(in_zone)]) / in_zone.sum()
        share = (np.arange(len(cells)) + rng.random(len(cells))) / max(len(cells), 1)
        depth[cells] = rng.permutation(np.interp(share, profile, _ZONES[first : last + 2]))
    return depth


def _area_at(position: np.ndarray) -> np.ndarray:
    """Visual area by position: straight lines through the assignment of the v1300 table."""
    x, z = position[:, 0], position[:, 2] - _BOX_Z[0]
    area = np.where(x < 1130 - 0.36 * z, 0, np.where(x < 1180 + 0.75 * z, 1, 2))
    area[(x > 1050) & (x < 1190) & (z < 30)] = 3
    return area.astype(np.int8)


class Cells:
    """All nuclei of a release; the same in every version, except for their root ids."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.n = n
        counts = _split_by_weight(n, _CELLS_OF_TYPE)
        types = np.repeat(np.arange(len(TYPES), dtype=np.int8), counts)
        self.type_code = rng.permutation(types)  # index into `TYPES`
        self.class_code = _CLASS_OF_TYPE[self.type_code]  # index into `CLASSES`
        self.is_neuron = self.class_code != _NON
        depth = _draw_depths(self.type_code, rng)
        # Pia-oriented µm, and the same in voxels of 4x4x40 nm.
        self.position_um = np.stack(
            [rng.uniform(*_BOX_X, n), depth, rng.uniform(*_BOX_Z, n)], axis=1
        )
        self.voxel = np.rint(_SPACE.from_um(self.position_um, _VOXEL_NM)).astype(np.int64)
        self.area_code = _area_at(self.position_um)  # index into `AREAS`
        mean, sd = _VOLUME_MEAN[self.type_code], _VOLUME_SD[self.type_code]
        self.volume = np.maximum(mean + sd * rng.standard_normal(n), 0.4 * mean)
        ids = rng.choice(max(900_000, 9 * n), n, replace=False)
        self.nucleus_id = 100_000 + ids.astype(np.int64)  # not sorted
        may_have_defects = (depth > _DEFECT_DEPTHS[0]) & (depth < _DEFECT_DEPTHS[1])
        self._draw_defects(np.flatnonzero(may_have_defects), rng)

        self.strategy_code = np.zeros(n, dtype=np.int8)  # index into `STRATEGIES`
        neurons = rng.permutation(np.flatnonzero(self.is_neuron & ~self.has_defect))
        neurons = neurons[: max(60, round(_PROOFREAD * n))]
        counts = _split_by_weight(len(neurons), _NEURONS_OF_STRATEGY)
        self.strategy_code[neurons] = np.repeat(np.arange(len(STRATEGIES)), counts)
        self.pref_dir = rng.uniform(0, 360, n)  # degrees, 0 = horizontal bar moving up, clockwise
        # Roots of three generations of cells, of fragments without a nucleus, and outdated roots.
        pool = _draw_roots(5 * n, rng).reshape(5, n)
        self._generations, self.fragments, self.outdated = pool[:3], pool[3], pool[4]
        # 17,533 of 42,124 v661 connections have both roots in v1300: 0.65 of roots are unchanged.
        # Changed between 661 and 1507, and up to 1718.
        self._changed = rng.random((2, n)) < np.array([[0.35], [0.08]])

    def _draw_defects(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        """Draw missing values of nuclei, and roots that several nuclei share."""
        n = self.n
        candidates = rng.permutation(rows)
        # Neurons first, because the first nucleus of a shared root always has a type.
        candidates = candidates[np.argsort(~self.is_neuron[candidates], kind="stable")]
        # Shared roots: one large, some of three nuclei, the rest pairs.
        sizes = [max(5, n // 300)] + [3] * max(2, n // 2000) + [2] * max(6, n // 200)
        firsts, others = candidates[: len(sizes)], rng.permutation(candidates[len(sizes) :])
        self.group = np.full(n, -1)  # number of the shared root, -1 if it is not shared
        self.untyped, self.root_zero, self.no_area, self.no_fine_type = np.zeros((4, n), dtype=bool)
        for i, size in enumerate(sizes):
            members, others = others[: size - 1], others[size - 1 :]
            self.group[firsts[i]] = self.group[members] = i
            self.untyped[members] = i % 2 == 1  # in every second one only the first has a type
        n_zero = round(_ROOT_ZERO * n)
        self.root_zero[others[:n_zero]] = True
        self.untyped[others[n_zero:][: round(_UNTYPED * n)]] = True
        self.no_area[rng.permutation(rows)[: round(_NO_AREA * n)]] = True
        neurons = rng.permutation(rows[self.is_neuron[rows] & ~self.untyped[rows]])
        self.no_fine_type[neurons[: round(_NO_FINE_TYPE * len(neurons))]] = True
        self.has_defect = self.root_zero | self.untyped | (self.group >= 0)

    def roots(self, version: int) -> np.ndarray:
        """Root ids of all nuclei in a version."""
        roots = self._generations[0].copy()
        for generation, since in ((1, 1507), (2, 1718)):
            if version >= since:
                changed = self._changed[generation - 1]
                roots = np.where(changed, self._generations[generation], roots)
        shared = np.flatnonzero(self.group >= 0)
        _, first, group = np.unique(self.group[shared], return_index=True, return_inverse=True)
        roots[shared] = roots[shared[first]][group]
        roots[self.root_zero] = 0
        return roots


# -------------------------------------------------------------------------------------- function
#
# Every neuron has one preferred direction. Its curves in all scans, the properties table and the
# likelihood of its connections follow from it, so that tables can be checked against each other:
# the preferred orientation in the properties table is the phase of the second harmonic of the curve
# in the tuning table, in the convention of the properties table.

# The scans with coregistered units in coregistration_manual_v3 (except for three stray rows).
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
# Share of neurons with 1, 2, ... 5 units, and of those with several that come twice in one scan.
_UNITS_PER_NEURON = (0.80, 0.165, 0.028, 0.006, 0.001)
_TWICE = 0.13
# Set by hand: automatic matches for each manual one, how many manual ones have an automatic one,
# how many of these agree, properties that are missing.
_AUTO_EXTRA, _AUTO_REPEATED, _AUTO_RIGHT = 2.2, 0.75, 0.9
_NO_PROPERTIES = 0.02


def _draw_unit_ids(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw unit ids from 1 up within each scan; most numbers are units without a match."""
    ids = np.zeros(len(scan), dtype=np.int64)
    for i in range(len(SCANS)):
        rows = np.flatnonzero(scan == i)
        ids[rows] = rng.permutation(max(50, 2 * len(rows)))[: len(rows)] + 1
    return ids


def _draw_curves(pref: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rates by direction: two opposite bumps on a baseline, with some noise.

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


class Units:
    """Recorded units of all scans; the same in every version."""

    def __init__(self, cells: Cells, rng: np.random.Generator) -> None:
        with np.errstate(divide="ignore"):
            wait = rng.exponential(size=cells.n) / _MATCH_WEIGHT[cells.type_code]
        neurons = np.argsort(wait, kind="stable")[: max(40, round(_MATCHED * cells.n))]
        # The first neurons without defects are cases that every release must have: units in five
        # scans, and two units in one scan.
        five_scans, twice_in_scan = np.flatnonzero(~cells.has_defect[neurons])[:4].reshape(2, 2)
        bounds = np.cumsum(_UNITS_PER_NEURON)[:-1]
        n_units = np.searchsorted(bounds, rng.random(len(neurons)), side="right") + 1
        n_units[five_scans], n_units[twice_in_scan] = 5, 2
        twice = (n_units > 1) & (rng.random(len(neurons)) < _TWICE)
        twice[five_scans], twice[twice_in_scan] = False, True
        in_v3 = rng.random(len(neurons)) < _IN_V3
        in_v3[five_scans] = in_v3[twice_in_scan] = True
        # The units of a neuron are in different scans, except for two of those seen twice.
        scans = np.argsort(rng.random((len(neurons), len(SCANS))), axis=1)
        scans[twice, 1] = scans[twice, 0]

        # First the units with a manual match, then those matched to a nucleus outside of the
        # table, those in the tuning table only, and those with an automatic match only.
        n_manual = int(n_units.sum())
        n_outside = max(3, round(n_manual * _NO_NUCLEUS / (1 - _NO_NUCLEUS)))
        n_auto = round(_AUTO_EXTRA * n_manual)
        kinds = np.repeat(np.arange(4), [n_manual, n_outside, max(3, n_manual // 100), n_auto])
        manual, outside, unmatched, auto_only = (kinds == kind for kind in range(4))
        n = len(kinds)
        recordable = np.flatnonzero(cells.is_neuron & (cells.position_um[:, 1] < 600))
        # Row of the nucleus of a unit; -1 where that is not in the nucleus table.
        self.cell = np.full(n, -1)
        self.cell[manual] = np.repeat(neurons, n_units)
        self.cell[auto_only] = rng.choice(recordable, n_auto)
        scan = np.concatenate(
            [
                scans[np.arange(scans.shape[1]) < n_units[:, None]],
                rng.integers(0, len(SCANS), n - n_manual),
            ]
        )
        self.session, self.scan_idx = SCANS[scan].T
        self.target_id = np.full(n, -1)  # nucleus id of the manual match, -1 where there is none
        self.target_id[manual] = cells.nucleus_id[self.cell[manual]]
        self.target_id[outside] = int(cells.nucleus_id.max()) + 1 + np.arange(n_outside)
        # Root of a nucleus that is not in the table; a third of them have none.
        self.outside_root = np.zeros(n, dtype=np.int64)
        some = np.arange(n_outside) % 3 > 0
        self.outside_root[outside] = np.where(some, cells.fragments[-n_outside:], 0)
        # Row of the nucleus of the automatic match, -1 where there is none.
        self.auto_cell = np.where(auto_only, self.cell, -1)
        repeated = manual & (rng.random(n) < _AUTO_REPEATED)
        right = rng.random(n) < _AUTO_RIGHT
        matches = np.where(right, self.cell, rng.choice(recordable, n))
        self.auto_cell[repeated] = matches[repeated]

        # Which units are in the manual coregistration v3, in the tuning and the properties table.
        self.in_v3 = np.zeros(n, dtype=bool)
        self.in_v3[manual] = np.repeat(in_v3, n_units)
        self.in_v3[outside] = rng.random(n_outside) < _IN_V3
        in_five_scans = np.isin(self.cell, neurons[five_scans]) & manual
        self.rated = (self.in_v3 & (rng.random(n) < _RATED)) | unmatched | in_five_scans
        self.has_properties = manual | outside
        without = rng.permutation(np.flatnonzero(manual & ~in_five_scans))
        self.has_properties[without[: max(3, round(_NO_PROPERTIES * n_manual))]] = False
        pref = np.where(self.cell >= 0, cells.pref_dir[self.cell], rng.uniform(0, 360, n))
        quality = np.clip(0.4 + 0.15 * rng.standard_normal(n), 0.02, None)
        self.cc_abs = quality + 1e-9 * np.arange(n)  # unique, so that there is one best unit
        self.unit_id = _draw_unit_ids(scan, rng)
        # Rate by direction, 0 = horizontal bar moving up, clockwise.
        self.curves = _draw_curves(pref, rng)

    def in_manual(self, version: int) -> np.ndarray:
        """Whether a unit is in the manual coregistration of a version (v3 before 943)."""
        return (self.target_id >= 0) & (self.in_v3 | (version >= 943))


# -------------------------------------------------------------------------------------- synapses
#
# Partners are chosen by the types of both cells, by their distance in the plane of the cortex and,
# between excitatory neurons, by how similar their preferred orientations are. The affinities are
# invented: they have the well-known main pathways (L4 to L2/3, L2/3 to L5, bipolar cells to
# interneurons) and nothing else of the real circuit. Sizes are in the range of those of single
# minnie65 synapses (log size 7.6 ± 1.2 voxels).

# Groups of types, and how readily a cell of a row's group contacts a cell of a column's group.
_GROUPS = ("23P", "4P", "5P", "6P", "BC", "BPC", "MC", "NGC")
_AFFINITY = np.array(
    [
        # 23P 4P 5P 6P  BC BPC MC NGC
        [5, 1, 4, 1, 6, 4, 6, 2],
        [6, 5, 2, 1, 6, 2, 2, 1],
        [2, 1, 6, 3, 5, 3, 7, 2],
        [1, 4, 2, 5, 5, 2, 2, 1],
        [6, 6, 6, 6, 5, 2, 2, 1],
        [1, 1, 1, 1, 3, 2, 8, 1],
        [6, 3, 6, 3, 4, 4, 1, 2],
        [4, 2, 2, 2, 2, 2, 2, 4],
    ],
    dtype=np.float64,
)
# Index into `_GROUPS` of each type, -1 for glia.
_GROUP_OF_TYPE = np.array(
    [_GROUPS.index(n) if n in _GROUPS else -1 for n in (name.split("-")[0] for name in TYPES)]
)
# Lateral distance between partners falls off exponentially, with these lengths (µm).
_LENGTH_EXC, _LENGTH_INH = 140.0, 80.0
_GRID_UM = 50.0  # of the grid on which partners are looked up

# Share of pairs with at most 1, 2, 3, 4 synapses.
_SYNAPSES_PER_PAIR = np.array([0.80, 0.95, 0.985, 1.0])
_AUTAPSES = 0.01
# Shares of ends that belong to no nucleus, and of ends without a segment.
_PRE_FRAGMENT, _POST_FRAGMENT, _PRE_ZERO, _POST_ZERO = 0.06, 0.03, 0.005, 0.003
_SIZE_ZERO = 0.0005
_LOG_SIZE, _LOG_SIZE_SD, _MIN_SIZE = 7.6, 1.1, 100

_VOXEL_UM = np.array([0.004, 0.004, 0.04])
_SPREAD_UM = 40.0


def _draw_places(
    cells: Cells, pre: np.ndarray, is_exc: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the grid cell in which each presynaptic cell looks for a partner."""
    length = np.where(is_exc[pre], _LENGTH_EXC, _LENGTH_INH)
    distance = -length * np.log1p(-rng.random(len(pre)))
    angle = 2 * np.pi * rng.random(len(pre))
    places = []
    for axis, (low, high), toward in ((0, _BOX_X, np.cos(angle)), (2, _BOX_Z, np.sin(angle))):
        # Places outside of the box are folded back into it.
        away = np.mod(cells.position_um[pre, axis] + distance * toward - low, 2 * (high - low))
        places.append(low + np.where(away > high - low, 2 * (high - low) - away, away))
    return _grid_cell(*places)


def _grid_cell(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    n_z = int((_BOX_Z[1] - _BOX_Z[0]) / _GRID_UM) + 1
    column = ((x - _BOX_X[0]) / _GRID_UM).astype(np.int64)
    return column * n_z + ((z - _BOX_Z[0]) / _GRID_UM).astype(np.int64)


_N_GRID_CELLS = int(_grid_cell(np.array(_BOX_X[1]), np.array(_BOX_Z[1]))) + 1


def _member_in(starts: np.ndarray, place: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Choose one of the members in a grid cell, or the next along the grid if it is empty."""
    count = starts[place + 1] - starts[place]
    return np.minimum(starts[place] + (u * count).astype(np.int64), starts[-1] - 1)


def _draw_posts(
    cells: Cells, pre: np.ndarray, like_to_like: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw a postsynaptic cell for each presynaptic one, never the cell itself."""
    group = _GROUP_OF_TYPE[cells.type_code]
    is_exc = cells.class_code == _EXC
    cumulative = np.cumsum(_AFFINITY * np.bincount(group[group >= 0], minlength=8), axis=1)
    cumulative /= cumulative[:, -1:]
    u = rng.random(len(pre))
    target = np.zeros(len(pre), dtype=np.int8)
    for i in range(len(_GROUPS)):
        rows = np.flatnonzero(group[pre] == i)
        target[rows] = np.searchsorted(cumulative[i, :-1], u[rows], side="right")

    places = [_draw_places(cells, pre, is_exc, rng) for _ in range(2)]
    u_first, u_second, u_alike = rng.random((3, len(pre)))
    cell_of = _grid_cell(cells.position_um[:, 0], cells.position_um[:, 2])
    post = np.empty(len(pre), dtype=np.int64)
    for i in range(len(_GROUPS)):
        rows = np.flatnonzero(target == i)
        members = np.flatnonzero(group == i)
        members = members[np.argsort(cell_of[members], kind="stable")]
        starts = np.searchsorted(cell_of[members], np.arange(_N_GRID_CELLS + 1))
        at = _member_in(starts, places[0][rows], u_first[rows])
        both = is_exc[pre[rows]] & is_exc[members[at]] & (u_alike[rows] < like_to_like)
        alike = rows[both]
        other = _member_in(starts, places[1][alike], u_second[alike])
        # Of two candidates the one with the more similar preferred orientation.
        first, second = (
            np.abs(np.mod(cells.pref_dir[pre[alike]] - cells.pref_dir[members[p]] + 90, 180) - 90)
            for p in (at[both], other)
        )
        at[both] = np.where(second < first, other, at[both])
        itself = members[at] == pre[rows]
        at[itself] = (at[itself] + 1) % len(members)
        post[rows] = members[at]
    return post


def _draw_synapses(
    cells: Cells, n: int, like_to_like: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw synapses, the same in every version.

    Their ends are rows of nuclei; -1 is no segment, -2 the first fragment, -3 the next.
    """
    neurons = np.flatnonzero(cells.is_neuron)
    weight = np.cumsum(np.array(_OUTPUT_OF_STRATEGY)[cells.strategy_code[neurons]])
    n_pairs = int(n / 1.2) + 1
    drawn = np.searchsorted(weight / weight[-1], rng.random(n_pairs), side="right")
    pre = neurons[np.minimum(drawn, len(neurons) - 1)]
    post = _draw_posts(cells, pre, like_to_like, rng)
    times = np.searchsorted(_SYNAPSES_PER_PAIR, rng.random(n_pairs), side="right") + 1
    # Missing synapses are added to the last pair, surplus ones are dropped.
    times[-1] += max(0, n - int(times.sum()))
    autapses = rng.permutation(n_pairs)[: max(5, round(_AUTAPSES * n_pairs))]
    post[autapses] = pre[autapses]
    pair = np.repeat(np.arange(n_pairs), times)[:n]
    pair = pair[rng.permutation(n)]
    pre, post, single = pre[pair], post[pair], times[pair] == 1

    size = np.exp(_LOG_SIZE + _LOG_SIZE_SD * rng.standard_normal(n))
    size = np.maximum(size, _MIN_SIZE).astype(np.int64)
    # Half of the zeros are the only synapse of their pair, so that some pairs sum to zero.
    n_zero = max(4, round(_SIZE_ZERO * n))
    size[rng.permutation(np.flatnonzero(single))[: n_zero // 2]] = 0
    size[rng.permutation(n)[: n_zero - n_zero // 2]] = 0

    voxel = np.empty((n, 3), dtype=np.int64)
    for axis in range(3):
        away = rng.uniform(-_SPREAD_UM, _SPREAD_UM, n) / _VOXEL_UM[axis]
        voxel[:, axis] = np.rint(cells.voxel[post, axis] + away)
    for ends, fragment, zero in (
        (pre, _PRE_FRAGMENT, _PRE_ZERO),
        (post, _POST_FRAGMENT, _POST_ZERO),
    ):
        rows = rng.permutation(n)
        n_fragment, n_none = round(fragment * n), max(2, round(zero * n))
        ends[rows[:n_fragment]] = -2 - rng.integers(0, cells.n, n_fragment)
        ends[rows[n_fragment : n_fragment + n_none]] = -1
    ids = 1_000_000 + np.cumsum(rng.integers(1, 200, n))
    return {"id": ids, "pre": pre, "post": post, "size": size, "voxel": voxel}


# ---------------------------------------------------------------------------------------- tables
#
# Column names are those of the CAVE tables. Each function returns the columns of one table in
# their order, and draws from a random generator that is used for that table only.

Columns = dict[str, Any]

_DAY_US = 86_400_000_000
_FIRST_DAY = np.datetime64("2020-09-28T22:40:41", "us")


def _annotation(
    n: int, rng: np.random.Generator, day: int, ids: np.ndarray | None = None
) -> Columns:
    """Columns that every annotation has; its ids are 1 to n in random order."""
    ids = rng.permutation(n).astype(np.int64) + 1 if ids is None else ids
    created = _FIRST_DAY + (rng.integers(0, _DAY_US, n) + day * _DAY_US).astype("timedelta64[us]")
    return {
        "id": ids,
        "created": pd.Series(created).dt.tz_localize("UTC").array,
        "superceded_id": pd.array([pd.NA] * n, dtype="Int64"),
        "valid": np.full(n, "t", dtype=object),
    }


def _words(words: Any, codes: np.ndarray) -> np.ndarray:
    return np.array(words, dtype=object)[codes]


def _xyz(name: str, voxel: np.ndarray) -> Columns:
    return {f"{name}_{axis}": voxel[:, i] for i, axis in enumerate("xyz")}


def _nuclei(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Every nucleus, including those with root 0 and with shared roots."""
    cells, roots = demo._cells, demo._roots
    supervoxel = rng.integers(80_000_000_000_000_000, 110_000_000_000_000_000, cells.n)
    return {
        **_annotation(cells.n, rng, 0, cells.nucleus_id),
        "volume": cells.volume,
        "pt_supervoxel_id": np.where(roots == 0, 0, supervoxel),
        "pt_root_id": roots,
        **_xyz("pt_position", cells.voxel),
    }


def _of_nuclei(
    demo: DemoSource, rng: np.random.Generator, day: int, rows: np.ndarray, columns: Columns
) -> Columns:
    """Annotations of nuclei, whose roots and positions come with them."""
    return {
        **_annotation(len(rows), rng, day),
        "target_id": demo._cells.nucleus_id[rows],
        **columns,
        "pt_root_id": demo._roots[rows],
        **_xyz("pt_position", demo._cells.voxel[rows]),
    }


def _areas(demo: DemoSource, rng: np.random.Generator) -> Columns:
    cells = demo._cells
    rows = rng.permutation(np.flatnonzero(~cells.no_area))
    return _of_nuclei(demo, rng, 1300, rows, {"tag": _words(AREAS, cells.area_code[rows])})


# Types as the models of each version give them; 23P of the multi-feature model is L2IT above this
# depth in µm.
_L2_L3_UM = 160.0
_METAMODEL = "aibs_metamodel_celltypes_v661"
_COMBO = "cell_type_multifeature_combo"
_COARSE_TYPES = [CLASSES[code].removesuffix("_neuron") for code in _CLASS_OF_TYPE]
_FINE_TYPES = ["5P-PT" if name == "5P-ET" else name for name in TYPES]
_WRONG_TYPE = 0.0065
_CAPITALIZED = 0.1


def _neuron_types(
    demo: DemoSource, rng: np.random.Generator, *, words: Sequence[str], system: str | None = None
) -> Columns:
    """Types of neurons in the words of a model; the system is its name, or the class of a type."""
    cells = demo._cells
    listed = cells.is_neuron & ~cells.untyped
    if words is _FINE_TYPES:
        listed &= ~cells.no_fine_type
    rows = rng.permutation(np.flatnonzero(listed))
    types = _words(words, cells.type_code[rows])
    if words is _COMBO_TYPES:
        types[(types == "L3IT") & (cells.position_um[rows, 1] < _L2_L3_UM)] = "L2IT"
    systems = _words([system] * 3 if system else CLASSES, cells.class_code[rows])
    columns = {"classification_system": systems, "cell_type": types}
    return _of_nuclei(demo, rng, 400, rows, columns)


def _metamodel_types(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Class and type of all cells, some wrong, some words capitalized."""
    cells = demo._cells
    code = cells.type_code.copy()
    code[demo._wrong] = _CONFUSED_CODE[code[demo._wrong]]
    rows = rng.permutation(np.flatnonzero(~cells.untyped))
    words = _words(TYPES, code[rows])
    capitalized = np.isin(words, ["oligo", "astrocyte"]) & (rng.random(len(rows)) < _CAPITALIZED)
    words[capitalized] = [word.capitalize() for word in words[capitalized]]
    classes = _words(CLASSES, _CLASS_OF_TYPE[code[rows]])
    columns = {"classification_system": classes, "cell_type": words}
    return _of_nuclei(demo, rng, 400, rows, columns)


def _corrections(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Corrections of the metamodel's wrong types, of which the last one is right.

    A quarter of the nuclei have two corrections of different days, of which the later one counts
    although its id is the lower; a quarter have two of one moment, of which the higher id counts.
    """
    cells, wrong = demo._cells, demo._wrong
    n = len(wrong)
    two_days, one_moment = np.arange(0, n, 4), np.arange(1, n, 4)
    last = np.concatenate([two_days, one_moment])
    earlier = n + np.arange(len(last))
    rows = np.concatenate([wrong, wrong[last]])
    code = cells.type_code[rows]
    code[earlier] = _CONFUSED_CODE[code[earlier]]

    columns = {
        **_annotation(len(rows), rng, 1800),
        "target_id": cells.nucleus_id[rows],
        "classification_system": _words(CLASSES, _CLASS_OF_TYPE[code]),
        "cell_type": _words(TYPES, code),
        "pt_root_id": demo._roots[rows],
    }
    ids, created = columns["id"], columns["created"]
    low, high = np.minimum(ids[last], ids[earlier]), np.maximum(ids[last], ids[earlier])
    by_time = np.arange(len(last)) < len(two_days)
    ids[last], ids[earlier] = np.where(by_time, low, high), np.where(by_time, high, low)
    created[earlier] = created[last] - np.where(by_time, 30, 0).astype("timedelta64[D]")
    order = rng.permutation(len(rows))
    return {name: values[order] for name, values in columns.items()}


def _proofreading(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Status words in 661, ``t`` / ``f`` and strategies later.

    Some roots are listed twice with different words, some belong to no nucleus, and in some
    ``valid_id`` is another root or absent.
    """
    cells, roots = demo._cells, demo._roots
    neurons = rng.permutation(np.flatnonzero(cells.strategy_code > 0))
    share = {661: 0.5, 1507: 0.85}.get(demo.version, 1.0)
    neurons = np.sort(neurons[: round(share * len(neurons))])
    n = len(neurons)
    n_some = max(2, n // 25)
    twice, changed, null = rng.permutation(n)[: 3 * n_some].reshape(3, n_some)

    partly = STRATEGIES.index("axon_partially_extended")
    code = cells.strategy_code[neurons]
    code[twice] = STRATEGIES.index("axon_fully_extended")
    code = np.concatenate([code, np.full(2 * n_some, partly)])
    root = np.concatenate([roots[neurons], roots[neurons[twice]], cells.fragments[:n_some]])
    row = np.concatenate([neurons, neurons[twice], neurons[:n_some]])
    valid_id = root.copy()
    valid_id[changed] = cells.outdated[:n_some]
    valid_id[null] = 1  # the value under the mask
    order = rng.permutation(len(root))
    annotation = _annotation(len(root), rng, 1500)
    if demo.version < 1078:
        status = {
            "status_dendrite": _words(["extended", "clean"], (code == partly).astype(int)),
            "status_axon": _words(_STATUS_661, code),
        }
    else:
        axon = ["none" if name == "dendrite_only" else name for name in STRATEGIES]
        dendrite = ["dendrite_extended", "dendrite_clean"]
        status = {
            "status_dendrite": np.full(len(code), "t", dtype=object),
            "status_axon": _words(["t" if name != "none" else "f" for name in axon], code),
            "strategy_dendrite": _words(dendrite, (code == partly).astype(int)),
            "strategy_axon": _words(axon, code),
        }
    columns = {
        **annotation,
        "pt_root_id": root,
        **_xyz("pt_position", cells.voxel[row]),
        "valid_id": pd.arrays.IntegerArray(valid_id, np.isin(np.arange(len(root)), null)),
        **status,
    }
    return {name: values[order] for name, values in columns.items()}


def _unit_keys(units: Units, rows: np.ndarray) -> Columns:
    return {name: getattr(units, name)[rows] for name in ("session", "scan_idx", "unit_id")}


def _match_columns(
    demo: DemoSource, rng: np.random.Generator, rows: np.ndarray, cell: np.ndarray
) -> Columns:
    return {
        **_unit_keys(demo.recorded_units, rows),
        "field": rng.integers(1, 9, len(rows)),
        "residual": np.round(12 * rng.beta(2, 3, len(rows)), 5),
        "score": np.round(5 + 4 * rng.standard_normal(len(rows)), 5),
        **_xyz("pt_position", demo._cells.voxel[cell]),
    }


def _unit_roots(demo: DemoSource, rows: np.ndarray) -> np.ndarray:
    units = demo.recorded_units
    cell = units.cell[rows]
    return np.where(cell >= 0, demo._roots[cell], units.outside_root[rows])


def _manual_matches(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Manual coregistration of units to nuclei."""
    units = demo.recorded_units
    rows = rng.permutation(np.flatnonzero(units.in_manual(demo.version)))
    cell = units.cell[rows]
    cell = np.where(cell >= 0, cell, rng.integers(0, demo.n_nuclei, len(rows)))
    return {
        **_annotation(len(rows), rng, 1330),
        "target_id": units.target_id[rows],
        "pt_root_id": _unit_roots(demo, rows),
        **_match_columns(demo, rng, rows, cell),
    }


def _auto_matches(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Automatic coregistration: more units than the manual one, some of them wrong.

    A wrong match has a larger residual and a smaller score on average.
    """
    units = demo.recorded_units
    rows = rng.permutation(np.flatnonzero(units.auto_cell >= 0))
    cell = units.auto_cell[rows]
    columns = {
        **_annotation(len(rows), rng, 1340),
        "target_id": demo._cells.nucleus_id[cell],
        "pt_root_id": demo._roots[cell],
        **_match_columns(demo, rng, rows, cell),
    }
    wrong = cell != units.cell[rows]
    columns["residual"] += np.where(wrong, 5.0, 0.0)
    columns["score"] -= np.where(wrong, 4.0, 0.0)
    return columns


def _properties(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """Properties of units: angles in degrees, 0 = vertical bar moving right, counterclockwise.

    gOSI and gDSI are the resultant lengths of the curve over orientation and direction; a preferred
    angle ``a`` in the convention of the curve is written as ``90 - a``.
    """
    units = demo.recorded_units
    rows = rng.permutation(np.flatnonzero((units.target_id >= 0) & units.has_properties))
    curves = units.curves[rows]
    theta = np.deg2rad(DIRECTIONS)
    first, second = curves @ np.exp(1j * theta), curves @ np.exp(2j * theta)
    total = curves.sum(axis=1)
    orientation = np.mod(np.rad2deg(np.angle(second)) / 2, 180)
    along = np.real(first * np.exp(-1j * np.deg2rad(orientation))) >= 0
    direction = np.where(along, orientation, orientation + 180)
    nearest = np.rint(direction / (360 / N_DIRECTIONS)).astype(np.int64)
    pref, across, opposite, back = (
        curves[np.arange(len(rows)), (nearest + step) % N_DIRECTIONS] for step in (0, 4, 8, 12)
    )
    norm = rng.uniform(0.6, 0.95, len(rows))
    return {
        **_annotation(len(rows), rng, 1700),
        "target_id": units.target_id[rows],
        "pt_root_id": _unit_roots(demo, rows),
        **_unit_keys(units, rows),
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


def _as_printed(values: np.ndarray) -> np.ndarray:
    """Each row as numpy prints it: numbers of one width, separated by blanks, without commas."""
    out = np.empty(len(values), dtype=object)
    for i, row in enumerate(values.tolist()):
        parts = [repr(value).split(".") for value in row]
        left, right = (max(len(part[k]) for part in parts) for k in (0, 1))
        # numpy writes 2. for 2.0
        words = [f"{a:>{left}}.{b if b != '0' else '':<{right}}" for a, b in parts]
        out[i] = f"[{' '.join(words)}]"
    return out


def _tuning_curves(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """16 rates by direction and 8 by orientation, as text."""
    units = demo.recorded_units
    rows = rng.permutation(np.flatnonzero(units.rated))
    curves = units.curves[rows]
    half = N_DIRECTIONS // 2
    return {
        **_unit_keys(units, rows),
        "rate_dir": _as_printed(curves),
        "rate_ori": _as_printed(np.round((curves[:, :half] + curves[:, half:]) / 2, 7)),
    }


def _synapse_rows(demo: DemoSource, rng: np.random.Generator) -> Columns:
    """One row per synapse."""
    synapses = demo._synapses
    # Negative ends count from the back.
    roots = np.concatenate([demo._roots, demo._cells.fragments[::-1], [0]])
    return {
        "id": synapses["id"],
        "pre_pt_root_id": roots[synapses["pre"]],
        "post_pt_root_id": roots[synapses["post"]],
        "size": synapses["size"],
        **_xyz("ctr_pt_position", synapses["voxel"]),
    }


_TABLES: dict[str, Callable[[DemoSource, np.random.Generator], Columns]] = {
    "nucleus_detection_v0": _nuclei,
    "nucleus_functional_area_assignment": _areas,
    "baylor_log_reg_cell_type_coarse_v1": partial(
        _neuron_types, words=_COARSE_TYPES, system="baylor_log_reg_cell_type_coarse"
    ),
    "baylor_gnn_cell_type_fine_model_v2": partial(
        _neuron_types, words=_FINE_TYPES, system="baylor_gnn_cell_type_fine"
    ),
    _COMBO: partial(_neuron_types, words=_COMBO_TYPES),
    _METAMODEL: _metamodel_types,
    f"{_METAMODEL}_corrections": _corrections,
    "proofreading_status_public_release": _proofreading,
    "proofreading_status_and_strategy": _proofreading,
    "coregistration_manual_v3": _manual_matches,
    "coregistration_manual_v4": _manual_matches,
    "coregistration_auto_phase3_fwd_apl_vess_combined_v2": _auto_matches,
    "digital_twin_properties_bcm_coreg_v4": _properties,
    "tuning_curves_fitted_v1": _tuning_curves,
    "synapses_pni_2": _synapse_rows,
}


class DemoSource(TableSource):
    """A synthetic release of any size, drawn from a seed.

    Tables are generated when they are first read, each with a separate random generator, so that
    the order of reading does not matter. Cells, units and synapses are the same in the three
    versions of a seed and size: nucleus ids stay, some root ids change, and the tables are those of
    the version. The tables have the defects of real ones: nuclei without a segment, shared roots,
    missing and wrong types, contradictory proofreading entries, units without rates.
    `TableSource` describes `available_tables`, `read` and `provenance`.

    Parameters
    ----------
    version : {661, 1507, 1718}
        Materialization version to imitate.
    n_nuclei : int, optional
        Rows of the nucleus table, at least 500. With 4,000 or more, `microns_xr.segment_layers`
        finds the layer borders within 10 µm.
    seed : int, optional
        Non-negative seed.
    n_synapses : int, optional
        Rows of the synapse table, at least 1,000; 20 per nucleus by default.
    like_to_like : float, optional
        Probability that, between excitatory neurons, the more similarly oriented of two candidates
        is taken as the partner.
    datastack : str, optional
        Name of the datastack, which differs from that of the real data to keep the two apart.

    Attributes
    ----------
    scope : str
        ``"complete"``: the table of synapses holds all synapses of all nuclei.
    layer_borders : dict of str to tuple of float
        Borders of the layers in µm, from the pia down.

    Raises
    ------
    UnknownLabelError
        If there is no demo of the version.
    SchemaError
        If a size or the seed is out of range.

    Examples
    --------
    >>> demo = DemoSource(1718, n_nuclei=1000, seed=1)
    >>> nuclei = demo.read("nucleus_detection_v0")
    >>> len(nuclei), int((nuclei.pt_root_id == 0).sum())
    (1000, 20)
    >>> demo.provenance("nucleus_detection_v0")["rows"], len(demo.available_tables())
    (1000, 11)
    """

    scope = "complete"

    def __init__(
        self,
        version: int,
        *,
        n_nuclei: int = 4000,
        seed: int = 0,
        n_synapses: int | None = None,
        like_to_like: float = 0.3,
        datastack: str = "minnie65_demo",
    ) -> None:
        if version not in DEMO_VERSIONS or isinstance(version, bool):
            raise UnknownLabelError(
                f"there is no demo of release {version!r}, expected one of "
                f"{', '.join(map(str, DEMO_VERSIONS))}"
            )
        require_instance("like_to_like", like_to_like, Real, "a number from 0 to 1")
        if not 0 <= like_to_like <= 1:
            raise SchemaError(f"like_to_like is {like_to_like!r}, expected a number from 0 to 1")
        self.version: int = int(version)
        self.n_nuclei = whole_number("n_nuclei", n_nuclei, 500)
        self.seed = whole_number("seed", seed, 0)
        n_synapses = 20 * self.n_nuclei if n_synapses is None else n_synapses
        self.n_synapses = whole_number("n_synapses", n_synapses, 1000)
        self.like_to_like = float(like_to_like)
        self.datastack = datastack
        self._roles = dict(release_spec(self.version).tables)
        self._tables: dict[str, pd.DataFrame] = {}

    def __repr__(self) -> str:
        return f"DemoSource({self.version}, n_nuclei={self.n_nuclei}, seed={self.seed})"

    @property
    def layer_borders(self) -> dict[str, tuple[float, float]]:
        """Borders in µm; v661 has no cell types of the white matter, so L6 is its last layer."""
        return {k: v for k, v in LAYER_BORDERS.items() if self.version != 661 or k != "WM"}

    def _rng(self, name: str) -> np.random.Generator:
        """Return the generator of one part of the release, independent of all others."""
        return np.random.default_rng([self.seed, self.n_nuclei, zlib.crc32(name.encode())])

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.n_nuclei, self._rng("cells"))

    @cached_property
    def _roots(self) -> np.ndarray:
        return self._cells.roots(self.version)

    @cached_property
    def _wrong(self) -> np.ndarray:
        """Rows of the cells whose type the metamodel gets wrong; the same in every version."""
        n = max(12, round(_WRONG_TYPE * self.n_nuclei))
        typed = np.flatnonzero(~self._cells.untyped)
        return np.sort(self._rng("wrong types").permutation(typed)[:n])

    @cached_property
    def recorded_units(self) -> Units:
        """The recorded units of all scans with their tuning curves, as they were drawn."""
        return Units(self._cells, self._rng("units"))

    @cached_property
    def _synapses(self) -> dict[str, np.ndarray]:
        rng = self._rng("synapses")
        return _draw_synapses(self._cells, self.n_synapses, self.like_to_like, rng)

    def available_tables(self) -> list[str]:
        extra = {_COMBO} if self.version == 1718 else set()
        return sorted({*self._roles.values(), *extra})

    def _table(self, name: str) -> pd.DataFrame:
        names = self.available_tables()
        if name not in names:
            what = f"the demo of release {self.version} has no table"
            raise unknown_label(what, name, names, error=SourceError)
        if name not in self._tables:
            columns = _TABLES[name](self, self._rng(name))
            self._tables[name] = pd.DataFrame(
                {
                    # Explicitly object: newer pandas would infer its own text dtype.
                    name: pd.Series(values, dtype=object) if values.dtype == object else values
                    for name, values in columns.items()
                }
            )
        return self._tables[name]

    def read(self, name: str) -> pd.DataFrame:
        return self._table(name).copy()

    def provenance(self, name: str) -> dict[str, Any]:
        table = self._table(name)
        return {"name": name, "rows": len(table), "sha256": frame_sha256(table)}

    def write(self, path: str | Path, format: Literal["csv", "parquet"] = "csv") -> Path:
        """Write all tables as a release folder: ``raw/``, ``raw/synapses/``, ``functional/``.

        Parameters
        ----------
        path : str or pathlib.Path
            The folder, created if it does not exist. Files of the same names are replaced, each
            atomically.
        format : {"csv", "parquet"}, optional
            Format of the files.

        Returns
        -------
        pathlib.Path
            The folder, which `DirectorySource` reads.

        Raises
        ------
        SchemaError
            If `format` is not one of these.
        SourceError
            If a file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> folder = DemoSource(661, n_nuclei=1000).write(tempfile.mkdtemp())
        >>> sorted(file.name for file in folder.glob("*/synapses/*"))
        ['synapses_pni_2.csv']
        """
        if format not in ("csv", "parquet"):
            raise SchemaError(f"format is {format!r}, expected 'csv' or 'parquet'")
        folders = {
            self._roles["synapses"]: "raw/synapses",
            self._roles["tuning_curves"]: "functional",
        }
        path = Path(path)
        write_identity(path, self.datastack, self.version)
        for name in self.available_tables():
            file = path / folders.get(name, "raw") / f"{name}.{format}"
            write_table_file(self._table(name), file)
        return path
