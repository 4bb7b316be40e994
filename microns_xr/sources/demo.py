"""A synthetic release: the tables of minnie65 with invented cells, and every trouble of real ones.

What is real in it: table and column names, the numbers of cells of each type, their depths and
nucleus sizes, the shares of matched, rated and proofread neurons, the conventions of angles. What
is invented: everything else, above all the connections. Nothing about the brain can be learnt here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from microns_xr.columns import from_pia_um
from microns_xr.errors import SchemaError, SourceError, UnknownLabelError, nearest_words
from microns_xr.releases import release_spec
from microns_xr.sources.cache import write_identity
from microns_xr.sources.tables import frame_sha256, write_table_file

# What the tables of the synthetic release have in common.
#
# Column names are those of the CAVE tables: annotation columns ``id``, ``created``,
# ``superceded_id``, ``valid``, and those of the nucleus a row refers to.


_MICROSECONDS_A_DAY = 86_400_000_000
_FIRST_DAY = np.datetime64("2020-09-28T22:40:41", "us")


def frame(columns: dict[str, Any]) -> pd.DataFrame:
    """Make a DataFrame whose text is object dtype in every pandas."""
    series = {
        name: pd.Series(values, dtype=object)
        if isinstance(values, np.ndarray) and values.dtype == object
        else values
        for name, values in columns.items()
    }
    return pd.DataFrame(series)


def text_of(words: Any, codes: np.ndarray) -> np.ndarray:
    """Return the word of each code, as text."""
    return np.array(words, dtype=object)[codes]


def annotation(ids: np.ndarray, rng: np.random.Generator, day: int = 0) -> dict[str, Any]:
    """Return the columns every annotation has: id, created, superceded_id, valid."""
    spread = rng.integers(0, _MICROSECONDS_A_DAY, len(ids)) + day * _MICROSECONDS_A_DAY
    created = _FIRST_DAY + spread.astype("timedelta64[us]")
    return {
        "id": ids,
        "created": pd.Series(created).dt.tz_localize("UTC"),
        "superceded_id": pd.array([pd.NA] * len(ids), dtype="Int64"),
        "valid": text_of(["t"], np.zeros(len(ids), dtype=np.int64)),
    }


def shuffled_ids(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return ids of annotations, 1 to n in random order."""
    return rng.permutation(n).astype(np.int64) + 1


def positions(cells: Cells, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return where some nuclei lie, in voxels of 4x4x40 nm."""
    return {f"pt_position_{axis}": cells.voxel[rows, i] for i, axis in enumerate("xyz")}


def reference_columns(cells: Cells, rows: np.ndarray, version: int) -> dict[str, np.ndarray]:
    """Return the columns a table takes from the nuclei it refers to."""
    return {
        "target_id": cells.nucleus_id[rows],
        "pt_root_id": cells.roots(version)[rows],
        **positions(cells, rows),
    }


# Cells of the synthetic release: who they are, where they lie, which of them make trouble.
#
# The numbers of cells of each type, their volumes and their depths are those of the 91,423 typed
# cells of minnie65 v1300 (Elabbady et al. 2025, doi:10.1038/s41586-024-07765-7; MICrONS
# Consortium 2025, doi:10.1038/s41586-025-08790-w), rounded to a thousandth in ten zones of depth.
# Within a zone cells are even and few stray over a border: the planted borders are sharper than
# real ones. Everything here is the same in every version of a seed; only root ids change with the
# version.


# Borders of the published minnie65 layers, rounded to 10 µm.
LAYER_BORDERS: dict[str, tuple[float, float]] = {
    "L1": (0.0, 70.0),
    "L2/3": (70.0, 250.0),
    "L4": (250.0, 360.0),
    "L5": (360.0, 510.0),
    "L6": (510.0, 730.0),
    "WM": (730.0, 830.0),
}
_ZONES = np.array([0, 70, 160, 250, 305, 360, 435, 510, 620, 730, 830], dtype=np.float64)

CLASSES = ("excitatory_neuron", "inhibitory_neuron", "nonneuron")
_EXC, _INH, _NON = range(3)

# Type: class, cells in v1300, nucleus volume in µm³ (mean, sd), cells a thousand in each zone.
_TYPES: dict[str, tuple[int, int, float, float, tuple[int, ...]]] = {
    "23P": (_EXC, 19673, 301, 55, (0, 440, 545, 13, 2, 0, 0, 0, 0, 0)),
    "4P": (_EXC, 14737, 258, 39, (0, 0, 15, 480, 470, 35, 0, 0, 0, 0)),
    "5P-IT": (_EXC, 7914, 305, 55, (0, 0, 0, 0, 30, 580, 350, 40, 0, 0)),
    "5P-ET": (_EXC, 2179, 439, 95, (0, 0, 0, 4, 9, 230, 560, 150, 47, 0)),
    "5P-NP": (_EXC, 963, 250, 35, (0, 0, 0, 0, 3, 66, 456, 336, 139, 0)),
    "6P-IT": (_EXC, 11675, 280, 45, (0, 0, 0, 0, 0, 0, 10, 530, 460, 0)),
    "6P-CT": (_EXC, 6777, 272, 38, (0, 0, 0, 0, 0, 0, 11, 510, 479, 0)),
    "BC": (_INH, 3321, 307, 58, (2, 82, 118, 86, 105, 225, 166, 148, 68, 0)),
    "BPC": (_INH, 1486, 229, 40, (29, 207, 183, 85, 108, 139, 75, 114, 60, 0)),
    "MC": (_INH, 2449, 293, 60, (7, 79, 119, 78, 85, 204, 224, 155, 49, 0)),
    "NGC": (_INH, 621, 283, 46, (308, 490, 105, 29, 18, 21, 11, 13, 5, 0)),
    "astrocyte": (_NON, 7466, 163, 26, (89, 146, 129, 80, 83, 106, 106, 135, 122, 4)),
    "microglia": (_NON, 2488, 73, 9, (42, 137, 145, 85, 78, 136, 124, 152, 97, 4)),
    "oligo": (_NON, 6945, 102, 19, (8, 30, 73, 66, 84, 137, 146, 206, 190, 60)),
    "OPC": (_NON, 1570, 128, 31, (27, 72, 85, 63, 62, 98, 105, 188, 190, 110)),
    "pericyte": (_NON, 1159, 57, 18, (32, 91, 118, 76, 92, 156, 131, 159, 90, 55)),
}
TYPES = tuple(_TYPES)
CLASS_OF_TYPE = np.array([row[0] for row in _TYPES.values()])

AREAS = ("V1", "RL", "AL", "LM")

# The imaged box in pia-oriented µm, from the same cells.
BOX_X = (200.0, 1550.0)
BOX_Z = (604.0, 1105.0)

# Cells at the very top and bottom are left without trouble: they are the ends of the depth profile.
_CALM_DEPTH = (15.0, 715.0)

# Shares of all nuclei. The v661 tables lack the zero roots, so those two are set by hand.
_ROOT_ZERO = 0.02
_UNTYPED = 0.08
_NO_AREA = 0.01
_NO_FINE_TYPE = 0.11  # v661: 49,050 fine types of 54,899 classified nuclei

# Share of neurons that were proofread, and how (v1718: 1,608, 547, 120; the last two by hand).
_PROOFREAD = 0.0265
STRATEGIES = (
    "none",
    "axon_partially_extended",
    "axon_fully_extended",
    "axon_interareal",
    "axon_column_truncated",
    "dendrite_only",
)
_STRATEGY_COUNTS = (0, 1608, 547, 120, 90, 150)

# Root ids of minnie65 lie in this span. Ids come in groups of four 37 apart: float64 numbers are
# 128 apart there, so that a root that has been a float names another cell.
_ROOT_BASE = 864_691_134_884_000_000
_ROOT_SPAN = 2_300_000_000
_ROOT_GROUP, _ROOT_STEP, _FLOAT_STEP = 4, 37, 128


def child_rng(seed: int, n_nuclei: int, name: str) -> np.random.Generator:
    """Return the generator of one part of a release, independent of all others."""
    return np.random.default_rng([seed, n_nuclei, zlib.crc32(name.encode())])


def split_by_weight(n: int, weights: np.ndarray) -> np.ndarray:
    """Split `n` into whole numbers in proportion to `weights`, by largest remainder."""
    exact = n * np.asarray(weights, dtype=np.float64) / np.sum(weights)
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: n - counts.sum()]] += 1
    return counts


@dataclass(frozen=True)
class Cells:
    """All nuclei of a synthetic release, one element a nucleus."""

    nucleus_id: np.ndarray  # int64, unique, not sorted
    type_code: np.ndarray  # index into `TYPES`: what the cell really is
    # shape (n, 3): pia-oriented µm, and the same rounded to voxels of 4x4x40 nm
    position_um: np.ndarray
    voxel: np.ndarray
    volume: np.ndarray
    area_code: np.ndarray
    root_zero: np.ndarray  # bool, what a nucleus lacks
    untyped: np.ndarray
    no_area: np.ndarray
    no_fine_type: np.ndarray
    # which shared root it belongs to, -1 for a root of its own
    group: np.ndarray
    strategy_code: np.ndarray
    # preferred direction in degrees, 0 = horizontal bar moving up, clockwise
    pref_dir: np.ndarray
    # pool of root ids, shape (5, n): three generations of cells, fragments, outdated roots
    slots: np.ndarray
    # shape (2, n), bool: whether the root changed between 661 and 1507, and up to 1718
    generation: np.ndarray

    @property
    def n(self) -> int:
        """Number of nuclei."""
        return len(self.nucleus_id)

    @property
    def class_code(self) -> np.ndarray:
        """Index into `CLASSES` of each nucleus."""
        return CLASS_OF_TYPE[self.type_code]

    @property
    def is_neuron(self) -> np.ndarray:
        """Whether each nucleus is a neuron's."""
        return self.class_code != _NON

    @property
    def calm(self) -> np.ndarray:
        """Nuclei that are typed and have a positive root of their own."""
        return ~self.root_zero & ~self.untyped & (self.group < 0)

    @property
    def fragments(self) -> np.ndarray:
        """Root ids that belong to no nucleus."""
        return self.slots[3]

    def roots(self, version: int) -> np.ndarray:
        """Root ids of all nuclei in a version, int64."""
        roots = self.slots[0].copy()
        if version >= 1507:
            roots = np.where(self.generation[0], self.slots[1], roots)
        if version >= 1718:
            roots = np.where(self.generation[1], self.slots[2], roots)
        shared = np.flatnonzero(self.group >= 0)
        _, first, group = np.unique(self.group[shared], return_index=True, return_inverse=True)
        roots[shared] = roots[shared[first]][group]
        roots[self.root_zero] = 0
        return roots


def _root_pool(n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` distinct root ids in random order, none of which float64 can hold."""
    n_groups = -(-n // _ROOT_GROUP)
    stride = max(_ROOT_SPAN // n_groups, 256)
    start = np.arange(n_groups, dtype=np.int64) * stride
    start += rng.integers(0, stride - _ROOT_GROUP * _ROOT_STEP, n_groups)
    ids = (_ROOT_BASE + start[:, None] + _ROOT_STEP * np.arange(_ROOT_GROUP)).ravel()
    ids += ids % _FLOAT_STEP == 0
    return rng.permutation(ids)[:n]


def _depths(type_code: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth of each cell: evenly spread along the depth profile of its type, with jitter."""
    depth = np.empty(len(type_code))
    for code, row in enumerate(_TYPES.values()):
        cells = np.flatnonzero(type_code == code)
        # Every type lives in one run of zones; the profile rises all along it.
        first, last = np.flatnonzero(row[4])[[0, -1]]
        profile = np.concatenate([[0], np.cumsum(row[4][first : last + 1])]) / sum(row[4])
        share = (np.arange(len(cells)) + rng.random(len(cells))) / max(len(cells), 1)
        depth[cells] = rng.permutation(np.interp(share, profile, _ZONES[first : last + 2]))
    return depth


def _areas(position: np.ndarray) -> np.ndarray:
    """Visual area by position: straight lines through the assignment of the v1300 table."""
    x, z = position[:, 0], position[:, 2] - BOX_Z[0]
    area = np.where(x < 1130 - 0.36 * z, 0, np.where(x < 1180 + 0.75 * z, 1, 2))
    area[(x > 1050) & (x < 1190) & (z < 30)] = 3
    return area.astype(np.int8)


def _group_sizes(n: int) -> list[int]:
    """Sizes of shared roots: one large, some of three, the rest pairs."""
    return [max(5, n // 300)] + [3] * max(2, n // 2000) + [2] * max(6, n // 200)


def make_cells(n_nuclei: int, rng: np.random.Generator) -> Cells:
    """Draw the cells of a release; the same in every version."""
    n = n_nuclei
    counts = split_by_weight(n, np.array([row[1] for row in _TYPES.values()]))
    type_code = rng.permutation(np.repeat(np.arange(len(TYPES), dtype=np.int8), counts))
    depth = _depths(type_code, rng)
    position = np.stack([rng.uniform(*BOX_X, n), depth, rng.uniform(*BOX_Z, n)], axis=1)
    mean, sd = (
        np.array([row[i] for row in _TYPES.values()], dtype=float)[type_code] for i in (2, 3)
    )
    volume = np.maximum(mean + sd * rng.standard_normal(n), 0.4 * mean)
    nucleus_id = 100_000 + rng.choice(max(900_000, 9 * n), n, replace=False).astype(np.int64)

    is_neuron = CLASS_OF_TYPE[type_code] != _NON
    calm = (depth > _CALM_DEPTH[0]) & (depth < _CALM_DEPTH[1])
    pool = rng.permutation(np.flatnonzero(calm))
    # Neurons first: the head of the pool gives the one typed nucleus of a shared root.
    pool = pool[np.argsort(~is_neuron[pool], kind="stable")]
    sizes = _group_sizes(n)
    heads, rest = pool[: len(sizes)], rng.permutation(pool[len(sizes) :])
    group = np.full(n, -1, dtype=np.int64)
    untyped = np.zeros(n, dtype=bool)
    at = 0
    for i, size in enumerate(sizes):
        members = rest[at : at + size - 1]
        at += size - 1
        group[heads[i]] = group[members] = i
        if i % 2:  # every second one: only its first nucleus is typed
            untyped[members] = True
    root_zero = np.zeros(n, dtype=bool)
    n_zero, n_untyped = round(_ROOT_ZERO * n), round(_UNTYPED * n)
    root_zero[rest[at : at + n_zero]] = True
    at += n_zero
    untyped[rest[at : at + n_untyped]] = True

    no_area = np.zeros(n, dtype=bool)
    no_area[rng.permutation(np.flatnonzero(calm))[: round(_NO_AREA * n)]] = True
    no_fine = np.zeros(n, dtype=bool)
    candidates = rng.permutation(np.flatnonzero(is_neuron & ~untyped & calm))
    no_fine[candidates[: round(_NO_FINE_TYPE * len(candidates))]] = True

    strategy = np.zeros(n, dtype=np.int8)
    chosen = rng.permutation(np.flatnonzero(is_neuron & ~untyped & ~root_zero & (group < 0)))
    chosen = chosen[: max(60, round(_PROOFREAD * n))]
    shares = split_by_weight(len(chosen), np.array(_STRATEGY_COUNTS))
    strategy[chosen] = np.repeat(np.arange(len(STRATEGIES), dtype=np.int8), shares)

    return Cells(
        nucleus_id=nucleus_id,
        type_code=type_code,
        position_um=position,
        voxel=np.rint(from_pia_um(position)).astype(np.int64),
        volume=volume,
        area_code=_areas(position),
        root_zero=root_zero,
        untyped=untyped,
        no_area=no_area,
        no_fine_type=no_fine,
        group=group,
        strategy_code=strategy,
        pref_dir=rng.uniform(0, 360, n),
        slots=_root_pool(5 * n, rng).reshape(5, n),
        # 17,533 of 42,124 v661 connections have both roots in v1300: 0.65 of roots are unchanged.
        generation=rng.random((2, n)) < np.array([[0.35], [0.08]]),
    )


# Cell type tables of the synthetic release, as the models of each version give them.


# What the metamodel takes a cell for where it errs; some errors change the class.
_CONFUSED = {
    "23P": "4P",
    "4P": "5P-IT",
    "5P-IT": "4P",
    "5P-ET": "5P-IT",
    "5P-NP": "BC",
    "6P-IT": "6P-CT",
    "6P-CT": "6P-IT",
    "BC": "MC",
    "BPC": "NGC",
    "MC": "5P-IT",
    "NGC": "BPC",
    "astrocyte": "microglia",
    "microglia": "OPC",
    "oligo": "OPC",
    "OPC": "oligo",
    "pericyte": "microglia",
}
_WRONG_TYPE = 0.0065
_UPPER_CASE = 0.1

# Types of the multi-feature model; 23P splits into L2IT and L3IT at this depth (µm).
_COMBO = {
    "4P": "L4IT",
    "5P-IT": "L5IT",
    "5P-ET": "L5ET",
    "5P-NP": "L5NP",
    "6P-IT": "L6IT",
    "6P-CT": "L6CT",
}
_L2_L3_UM = 160.0


def _type_frame(
    cells: Cells,
    rows: np.ndarray,
    version: int,
    system: np.ndarray,
    words: np.ndarray,
    rng: np.random.Generator,
) -> pd.DataFrame:
    reference = reference_columns(cells, rows, version)
    return frame(
        {
            **annotation(shuffled_ids(len(rows), rng), rng, day=400),
            "target_id": reference.pop("target_id"),
            "classification_system": system,
            "cell_type": words,
            **reference,
        }
    )


def coarse_table(cells: Cells, version: int, rng: np.random.Generator) -> pd.DataFrame:
    """Make baylor_log_reg_cell_type_coarse_v1: excitatory or inhibitory, of neurons only."""
    rows = rng.permutation(np.flatnonzero(cells.is_neuron & ~cells.untyped))
    system = text_of(["baylor_log_reg_cell_type_coarse"], np.zeros(len(rows), dtype=np.int64))
    words = text_of(["excitatory", "inhibitory"], cells.class_code[rows])
    return _type_frame(cells, rows, version, system, words, rng)


def fine_table(cells: Cells, version: int, rng: np.random.Generator) -> pd.DataFrame:
    """Make baylor_gnn_cell_type_fine_model_v2: types of most neurons; 5P-ET is called 5P-PT."""
    has = cells.is_neuron & ~cells.untyped & ~cells.no_fine_type
    rows = rng.permutation(np.flatnonzero(has))
    system = text_of(["baylor_gnn_cell_type_fine"], np.zeros(len(rows), dtype=np.int64))
    names = ["5P-PT" if name == "5P-ET" else name for name in TYPES]
    return _type_frame(cells, rows, version, system, text_of(names, cells.type_code[rows]), rng)


def wrong_types(cells: Cells, rng: np.random.Generator) -> np.ndarray:
    """Rows of cells that the metamodel takes for something else; the same in every version."""
    n = max(12, round(_WRONG_TYPE * cells.n))
    return np.sort(rng.permutation(np.flatnonzero(~cells.untyped))[:n])


def metamodel_table(
    cells: Cells, version: int, wrong: np.ndarray, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Make aibs_metamodel_celltypes_v661: class and type, some wrong, some words in upper case."""
    code = cells.type_code.copy()
    code[wrong] = [TYPES.index(_CONFUSED[TYPES[c]]) for c in code[wrong]]
    rows = rng.permutation(np.flatnonzero(~cells.untyped))
    words = text_of(TYPES, code[rows])
    upper = np.isin(words, ["oligo", "astrocyte"]) & (rng.random(len(rows)) < _UPPER_CASE)
    words[upper] = [word.capitalize() for word in words[upper]]
    system = text_of(CLASSES, CLASS_OF_TYPE[code[rows]])
    planted = {"upper_case_types": np.sort(cells.nucleus_id[rows[upper]])}
    return _type_frame(cells, rows, version, system, words, rng), planted


def corrections_table(
    cells: Cells, version: int, wrong: np.ndarray, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Make aibs_metamodel_celltypes_v661_corrections: the last word on each wrong type is right.

    A quarter of the nuclei have two corrections of different days, of which the later counts
    although its id is the lower; a quarter two of one moment, of which the higher id counts.
    """
    n = len(wrong)
    two_days, one_moment = np.arange(0, n, 4), np.arange(1, n, 4)
    first = np.concatenate([two_days, one_moment])
    second = n + np.arange(len(first))
    rows = np.concatenate([wrong, wrong[first]])
    code = cells.type_code[rows].astype(np.int64)
    code[second] = [TYPES.index(_CONFUSED[TYPES[c]]) for c in code[second]]

    ids = shuffled_ids(len(rows), rng)
    low, high = np.minimum(ids[first], ids[second]), np.maximum(ids[first], ids[second])
    by_time = np.arange(len(first)) < len(two_days)
    ids[first], ids[second] = np.where(by_time, low, high), np.where(by_time, high, low)
    columns = annotation(ids, rng, day=1800)
    created = np.array(columns["created"].dt.tz_localize(None), dtype="datetime64[us]")
    created[second] = created[first] - np.where(by_time, 30, 0).astype("timedelta64[D]")
    columns["created"] = pd.Series(created).dt.tz_localize("UTC")
    table = frame(
        {
            **columns,
            "target_id": cells.nucleus_id[rows],
            "classification_system": text_of(CLASSES, CLASS_OF_TYPE[code]),
            "cell_type": text_of(TYPES, code),
            "pt_root_id": cells.roots(version)[rows],
        }
    )
    truth = zip(cells.class_code[wrong], cells.type_code[wrong], strict=True)
    planted = {
        "corrected": {
            int(nucleus): (CLASSES[a], TYPES[b])
            for nucleus, (a, b) in zip(cells.nucleus_id[wrong], truth, strict=True)
        },
        "corrected_twice": np.sort(cells.nucleus_id[wrong[first]]),
    }
    return table.iloc[rng.permutation(len(table))].reset_index(drop=True), planted


def combo_table(cells: Cells, version: int, rng: np.random.Generator) -> pd.DataFrame:
    """Make cell_type_multifeature_combo: types of neurons named by layer."""
    rows = rng.permutation(np.flatnonzero(cells.is_neuron & ~cells.untyped))
    words = text_of([_COMBO.get(name, name) for name in TYPES], cells.type_code[rows])
    shallow = cells.position_um[rows, 1] < _L2_L3_UM
    words[(words == "23P") & shallow] = "L2IT"
    words[words == "23P"] = "L3IT"
    system = text_of(CLASSES, cells.class_code[rows])
    return _type_frame(cells, rows, version, system, words, rng)


# Recorded units of the synthetic release: neurons, the scans they were seen in, their curves.
#
# Every neuron has one preferred direction. Its curves in all scans, the properties table and the
# likelihood of its connections come from it, so that tables can be checked against each other:
# the preferred orientation in the properties table is the phase of the second harmonic of the
# very curve in the tuning table, expressed in the convention of the properties table.


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
    """Recorded units of all scans, one element a unit."""

    # row of the nucleus the unit really is; -1 for a nucleus outside of the table
    cell: np.ndarray
    # nucleus id of the manual match, -1 where there is none
    target_id: np.ndarray
    # row of the nucleus of the automatic match, -1 where there is none
    auto_cell: np.ndarray
    # root of a matched nucleus outside of the table; 0 in a third of them
    stranger_root: np.ndarray
    session: np.ndarray
    scan_idx: np.ndarray
    unit_id: np.ndarray
    # bool: in the manual coregistration v3, in the tuning table, in the properties table
    in_v3: np.ndarray
    rated: np.ndarray
    has_properties: np.ndarray
    cc_abs: np.ndarray
    # shape (n, 16): response by direction, 0 = horizontal bar moving up, clockwise
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


# Synapses of the synthetic release.
#
# Partners are chosen by the type of both cells, by the distance between them in the plane of the
# cortex and, between excitatory neurons, by how alike their preferred orientations are. The table
# of affinities is invented: it has the well-known main routes (L4 to L2/3, L2/3 to L5, bipolar
# cells to interneurons) and nothing else of the real circuit. Sizes are drawn to lie where those
# of single minnie65 synapses lie (log size 7.6 ± 1.2 voxels).


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
# Lateral distance between partners falls off exponentially, with these lengths (µm).
_LENGTH_EXC, _LENGTH_INH = 140.0, 80.0
_CELL_UM = 50.0  # the grid on which partners are looked up

# An extended axon shows more of its synapses: weights by proofreading strategy.
_OUTPUT_BY_STRATEGY = np.array([1.0, 6.0, 15.0, 6.0, 4.0, 1.0])

# Share of pairs with at most 1, 2, 3, 4 synapses.
_SYNAPSES_A_PAIR = np.array([0.80, 0.95, 0.985, 1.0])
_AUTAPSES = 0.01
# Ends that are no nucleus, ends without a segment, synapses of size 0.
_PRE_FRAGMENT, _POST_FRAGMENT, _PRE_ZERO, _POST_ZERO = 0.06, 0.03, 0.005, 0.003
_SIZE_ZERO = 0.0005
_LOG_SIZE, _LOG_SIZE_SD, _MIN_SIZE = 7.6, 1.1, 100

_VOXEL_UM = np.array([0.004, 0.004, 0.04])
_SPREAD_UM = 40.0


def _group_of_type() -> np.ndarray:
    """Index into `_GROUPS` of each type, -1 for glia."""
    names = [name.split("-")[0] for name in TYPES]
    return np.array([_GROUPS.index(name) if name in _GROUPS else -1 for name in names])


def _reflect(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Fold positions outside of the box back into it."""
    width = high - low
    folded = np.mod(values - low, 2 * width)
    return low + np.where(folded > width, 2 * width - folded, folded)


class _Lookup:
    """Members of one group on a lateral grid: a random member near a place, without a search."""

    def __init__(self, members: np.ndarray, position: np.ndarray) -> None:
        key = self._key(position[members, 0], position[members, 2])
        order = np.argsort(key, kind="stable")
        self.members = members[order]
        n_keys = self._key(np.array([BOX_X[1]]), np.array([BOX_Z[1]]))[0] + 1
        self.start = np.searchsorted(key[order], np.arange(n_keys + 1))

    @staticmethod
    def _key(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        n_z = int((BOX_Z[1] - BOX_Z[0]) / _CELL_UM) + 1
        column = ((x - BOX_X[0]) / _CELL_UM).astype(np.int64)
        return column * n_z + ((z - BOX_Z[0]) / _CELL_UM).astype(np.int64)

    def near(self, x: np.ndarray, z: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Index into `members` of one in the grid cell of each point, chosen by u in [0, 1)."""
        key = self._key(x, z)
        first, count = self.start[key], self.start[key + 1] - self.start[key]
        # Where a grid cell is empty the next member along the grid is taken.
        return np.minimum(first + (u * count).astype(np.int64), len(self.members) - 1)


def _places(
    cells: Cells, pre: np.ndarray, is_exc: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lateral places where the presynaptic cells look for a partner."""
    length = np.where(is_exc[pre], _LENGTH_EXC, _LENGTH_INH)
    distance = -length * np.log1p(-rng.random(len(pre)))
    angle = 2 * np.pi * rng.random(len(pre))
    x = _reflect(cells.position_um[pre, 0] + distance * np.cos(angle), *BOX_X)
    z = _reflect(cells.position_um[pre, 2] + distance * np.sin(angle), *BOX_Z)
    return x, z


def _draw_posts(
    cells: Cells, pre: np.ndarray, like_to_like: float, rng: np.random.Generator
) -> np.ndarray:
    """Row of one postsynaptic cell for each presynaptic one, never the cell itself."""
    n = len(pre)
    group = _group_of_type()[cells.type_code]
    exc = CLASSES.index("excitatory_neuron")
    is_exc = cells.class_code == exc
    size = np.bincount(group[group >= 0], minlength=len(_GROUPS))
    cumulative = np.cumsum(_AFFINITY * size, axis=1)
    cumulative /= cumulative[:, -1:]
    u = rng.random(n)
    target = np.zeros(n, dtype=np.int8)
    for i in range(len(_GROUPS)):
        rows = np.flatnonzero(group[pre] == i)
        target[rows] = np.searchsorted(cumulative[i, :-1], u[rows], side="right")

    x, z = _places(cells, pre, is_exc, rng)
    other_x, other_z = _places(cells, pre, is_exc, rng)
    u_first, u_second, u_alike = rng.random((3, n))
    post = np.empty(n, dtype=np.int64)
    for i in range(len(_GROUPS)):
        rows = np.flatnonzero(target == i)
        if not len(rows):
            continue
        lookup = _Lookup(np.flatnonzero(group == i), cells.position_um)
        place = lookup.near(x[rows], z[rows], u_first[rows])
        both = is_exc[pre[rows]] & is_exc[lookup.members[place]] & (u_alike[rows] < like_to_like)
        alike = rows[both]
        if len(alike):
            other = lookup.near(other_x[alike], other_z[alike], u_second[alike])
            own = cells.pref_dir[pre[alike]]
            first, second = (
                np.abs(np.mod(own - cells.pref_dir[lookup.members[p]] + 90, 180) - 90)
                for p in (place[both], other)
            )
            place[both] = np.where(second < first, other, place[both])
        itself = lookup.members[place] == pre[rows]
        place[itself] = (place[itself] + 1) % len(lookup.members)
        post[rows] = lookup.members[place]
    return post


def make_synapses(
    cells: Cells, n_synapses: int, like_to_like: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw synapses between cells; the same in every version."""
    neurons = np.flatnonzero(cells.is_neuron)
    weight = np.cumsum(_OUTPUT_BY_STRATEGY[cells.strategy_code[neurons]])
    n_pairs = int(n_synapses / 1.2) + 1
    drawn = np.searchsorted(weight / weight[-1], rng.random(n_pairs), side="right")
    pre = neurons[np.minimum(drawn, len(neurons) - 1)]
    post = _draw_posts(cells, pre, like_to_like, rng)
    times = np.searchsorted(_SYNAPSES_A_PAIR, rng.random(n_pairs), side="right") + 1
    # The last pair takes what may be lacking; what is too much is cut off.
    times[-1] += max(0, n_synapses - int(times.sum()))
    own = rng.permutation(n_pairs)[: max(5, round(_AUTAPSES * n_pairs))]
    post[own] = pre[own]
    pair = np.repeat(np.arange(n_pairs), times)[:n_synapses]
    pair = pair[rng.permutation(n_synapses)]
    pre, post, single = pre[pair], post[pair], times[pair] == 1

    size = np.exp(_LOG_SIZE + _LOG_SIZE_SD * rng.standard_normal(n_synapses))
    size = np.maximum(size, _MIN_SIZE).astype(np.int64)
    # Half of the zeros are the only synapse of their pair, so that some pairs sum to zero.
    n_zero = max(4, round(_SIZE_ZERO * n_synapses))
    size[rng.permutation(np.flatnonzero(single))[: n_zero // 2]] = 0
    size[rng.permutation(n_synapses)[: n_zero - n_zero // 2]] = 0

    voxel = np.empty((n_synapses, 3), dtype=np.int64)
    for axis in range(3):
        away = rng.uniform(-_SPREAD_UM, _SPREAD_UM, n_synapses) / _VOXEL_UM[axis]
        voxel[:, axis] = np.rint(cells.voxel[post, axis] + away)
    for ends, fragment, zero in (
        (pre, _PRE_FRAGMENT, _PRE_ZERO),
        (post, _POST_FRAGMENT, _POST_ZERO),
    ):
        rows = rng.permutation(n_synapses)
        n_fragment, n_none = round(fragment * n_synapses), max(2, round(zero * n_synapses))
        ends[rows[:n_fragment]] = -2 - rng.integers(0, len(cells.fragments), n_fragment)
        ends[rows[n_fragment : n_fragment + n_none]] = -1
    gaps = rng.integers(1, 200, n_synapses)
    return {
        "id": 1_000_000 + np.cumsum(gaps),
        "pre": pre,
        "post": post,
        "size": size,
        "voxel": voxel,
    }


def _end_roots(cells: Cells, ends: np.ndarray, version: int) -> np.ndarray:
    # Negative ends count from the back: -1 is no segment, -2 the first fragment.
    pool = np.concatenate([cells.roots(version), cells.fragments[::-1], [0]])
    return pool[ends]


def synapse_table(cells: Cells, synapses: dict[str, np.ndarray], version: int) -> pd.DataFrame:
    """Make synapses_pni_2: one row a synapse, roots of the version."""
    return pd.DataFrame(
        {
            "id": synapses["id"],
            "pre_pt_root_id": _end_roots(cells, synapses["pre"], version),
            "post_pt_root_id": _end_roots(cells, synapses["post"], version),
            "size": synapses["size"],
            **{f"ctr_pt_position_{a}": synapses["voxel"][:, i] for i, a in enumerate("xyz")},
        }
    )


def planted_synapses(cells: Cells, synapses: dict[str, np.ndarray], version: int) -> dict[str, Any]:
    """Return what the synapse table of a version holds on purpose, by name."""
    ids, size = synapses["id"], synapses["size"]
    trouble = {"zero": cells.root_zero, "shared": (cells.group >= 0) & ~cells.root_zero}
    own = np.ones(len(ids), dtype=bool)
    planted: dict[str, Any] = {}
    for end in ("pre", "post"):
        cell = synapses[end]
        inside = cell >= 0
        flags = {name: inside & flag[np.maximum(cell, 0)] for name, flag in trouble.items()}
        flags["zero"] |= cell == -1
        flags["unknown"] = cell < -1
        for name, flag in flags.items():
            planted[f"synapses_{end}_{name}"] = ids[flag]
            own &= ~flag
    pre, post = synapses["pre"], synapses["post"]
    pair, inverse, count = np.unique(
        (pre * cells.n + post)[own], return_inverse=True, return_counts=True
    )
    summed = np.zeros(len(pair), dtype=np.int64)
    np.add.at(summed, inverse, size[own])
    nucleus = np.stack(
        [cells.nucleus_id[pair // cells.n], cells.nucleus_id[pair % cells.n]], axis=1
    )
    planted["synapses_autapses"] = ids[own & (pre == post)]
    planted["synapses_size_zero"] = ids[size == 0]
    planted["pairs_several"] = nucleus[count > 1]
    planted["pairs_size_zero"] = nucleus[summed == 0]
    planted["n_pairs"] = len(pair)
    return planted


# Tables of the synthetic release that list nuclei, their areas and what was proofread.


# v661: words by strategy; partly extended axons were then called clean.
_STATUS_AXON_661 = ("non", "clean", "extended", "clean", "clean", "non")


def nucleus_table(cells: Cells, version: int, rng: np.random.Generator) -> pd.DataFrame:
    """Make nucleus_detection_v0: every nucleus, also those with root 0 and shared roots."""
    rows = np.arange(cells.n)
    roots = cells.roots(version)
    supervoxel = rng.integers(80_000_000_000_000_000, 110_000_000_000_000_000, cells.n)
    return frame(
        {
            **annotation(cells.nucleus_id, rng),
            "volume": cells.volume,
            "pt_supervoxel_id": np.where(roots == 0, 0, supervoxel),
            "pt_root_id": roots,
            **positions(cells, rows),
        }
    )


def area_table(cells: Cells, version: int, rng: np.random.Generator) -> pd.DataFrame:
    """Make nucleus_functional_area_assignment: the visual area of nearly every nucleus."""
    rows = rng.permutation(np.flatnonzero(~cells.no_area))
    reference = reference_columns(cells, rows, version)
    return frame(
        {
            **annotation(shuffled_ids(len(rows), rng), rng, day=1300),
            "target_id": reference.pop("target_id"),
            "tag": text_of(AREAS, cells.area_code[rows]),
            **reference,
        }
    )


def proofreading_table(
    cells: Cells, version: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Make the proofreading table of the version.

    Status words in 661, ``t`` / ``f`` and strategies later. A few roots are listed twice with
    different words, a few are no nucleus, and ``valid_id`` is another root or absent in a few.
    """
    roots = cells.roots(version)
    neurons = rng.permutation(np.flatnonzero(cells.strategy_code > 0))
    share = {661: 0.5, 1507: 0.85}.get(version, 1.0)
    neurons = np.sort(neurons[: round(share * len(neurons))])
    n = len(neurons)
    n_some = max(2, n // 25)
    mixed = rng.permutation(n)
    twice, changed, null = (
        mixed[:n_some],
        mixed[n_some : 2 * n_some],
        mixed[2 * n_some : 3 * n_some],
    )

    code = cells.strategy_code[neurons].astype(np.int64)
    code[twice] = STRATEGIES.index("axon_fully_extended")
    lesser = STRATEGIES.index("axon_partially_extended")
    strangers = cells.fragments[:n_some]
    root = np.concatenate([roots[neurons], roots[neurons[twice]], strangers])
    code = np.concatenate([code, np.full(2 * n_some, lesser)])
    valid_id = root.copy()
    valid_id[changed] = cells.slots[4][:n_some]
    missing = np.zeros(len(root), dtype=bool)
    missing[null] = True
    home = np.concatenate([neurons, neurons[twice], neurons[:n_some]])

    if version < 1078:
        columns = {
            "status_dendrite": text_of(["extended", "clean"], (code == lesser).astype(np.int64)),
            "status_axon": text_of(_STATUS_AXON_661, code),
        }
    else:
        no_axon = code == STRATEGIES.index("dendrite_only")
        axon_words = ["none" if name == "dendrite_only" else name for name in STRATEGIES]
        columns = {
            "status_dendrite": text_of(["t"], np.zeros(len(code), dtype=np.int64)),
            "status_axon": text_of(["t", "f"], no_axon.astype(np.int64)),
            "strategy_dendrite": text_of(
                ["dendrite_extended", "dendrite_clean"], (code == lesser).astype(np.int64)
            ),
            "strategy_axon": text_of(axon_words, code),
        }
    order = rng.permutation(len(root))
    table = frame(
        {
            **annotation(shuffled_ids(len(root), rng), rng, day=1500),
            "pt_root_id": root,
            **positions(cells, home),
            "valid_id": pd.arrays.IntegerArray(np.where(missing, 1, valid_id), missing),
            **columns,
        }
    )
    planted = {
        "proofread_twice": np.sort(roots[neurons[twice]]),
        "root_changed": np.sort(root[changed]),
        "valid_id_null": np.sort(root[null]),
        "proofread_no_nucleus": np.sort(strangers),
    }
    return table.iloc[order].reset_index(drop=True), planted


# Functional tables of the synthetic release: coregistration, properties, tuning curves.


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


# The troubles of a synthetic release, listed, so that results can be checked against them.


@dataclass(frozen=True)
class Planted:
    """What a synthetic release holds on purpose, so that a result can be checked against it.

    Arrays of ids are int64 and sorted unless said otherwise; a count is the length of one.
    """

    root_zero: np.ndarray  # nuclei with root 0
    # nuclei without a row in the classification table (in 661 all glia are)
    untyped: np.ndarray
    # root to the nuclei that share it, at least two
    shared_roots: dict[int, np.ndarray]
    # roots among them of which one nucleus alone is typed
    shared_one_typed: np.ndarray
    # nuclei without an area; all of them where there is no area table
    no_area: np.ndarray
    # nuclei that are classified but have no type (661 only)
    no_fine_type: np.ndarray
    # nuclei whose type is written ``Oligo`` or ``Astrocyte`` and not in lower case
    upper_case_types: np.ndarray
    # nucleus to its class and type after all corrections (1718 only)
    corrected: dict[int, tuple[str, str]]
    corrected_twice: np.ndarray  # nuclei with two corrections that disagree
    # roots listed twice in proofreading; the more complete entry is fully extended
    proofread_twice: np.ndarray
    root_changed: np.ndarray  # roots whose ``valid_id`` is another root
    valid_id_null: np.ndarray  # roots without a ``valid_id``
    proofread_no_nucleus: np.ndarray  # roots in proofreading that are no nucleus
    five_scans: np.ndarray  # nuclei in five scans in the manual coregistration
    twice_in_scan: np.ndarray  # nuclei with two units in one scan
    # ``target_id`` of manual matches outside of the nucleus table; a third has root 0
    coregistered_no_nucleus: np.ndarray
    # shape (n, 3): session, scan_idx, unit_id of manual matches without a row in the tuning
    # table, without one in the properties table, and of tuning rows without a manual match
    units_without_rates: np.ndarray
    units_without_properties: np.ndarray
    rates_without_coregistration: np.ndarray
    synapses_pre_zero: np.ndarray  # synapses with root 0 at that end
    synapses_post_zero: np.ndarray
    # synapses whose root at that end is no nucleus
    synapses_pre_unknown: np.ndarray
    synapses_post_unknown: np.ndarray
    # synapses with a shared root at that end. One synapse may be in several of these six.
    synapses_pre_shared: np.ndarray
    synapses_post_shared: np.ndarray
    # synapses of a nucleus onto itself, both ends with a root of their own
    synapses_autapses: np.ndarray
    synapses_size_zero: np.ndarray  # synapses of size 0
    # shape (n, 2): nucleus ids (pre, post) of pairs with several synapses, and of pairs whose
    # sizes sum to 0; of nuclei with a positive root of their own, typed or not
    pairs_several: np.ndarray
    pairs_size_zero: np.ndarray
    n_pairs: int  # number of such pairs in all

    def counts(self) -> dict[str, int]:
        """Return the number of each."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v if isinstance(v, int) else len(v) for name, v in values.items()}


def _shared_roots(cells: Cells, version: int) -> dict[int, np.ndarray]:
    roots = cells.roots(version)
    rows = np.flatnonzero((cells.group >= 0) & (roots > 0))
    rows = rows[np.lexsort([cells.nucleus_id[rows], roots[rows]])]
    shared, first = np.unique(roots[rows], return_index=True)
    members = np.split(cells.nucleus_id[rows], first[1:])
    return dict(zip(shared.tolist(), members, strict=True))


def planted_of(cells: Cells, version: int, has_areas: bool, drawn: dict[str, Any]) -> Planted:
    """Put together what the cells hold and what the tables of a version add."""
    none = np.zeros(cells.n, dtype=bool)
    only_neurons = version < 943
    untyped = cells.untyped | ~cells.is_neuron if only_neurons else cells.untyped
    no_fine = cells.no_fine_type & ~untyped if only_neurons else none
    shared = _shared_roots(cells, version)
    typed = set(cells.nucleus_id[~untyped].tolist())
    one_typed = [root for root, ids in shared.items() if len(typed.intersection(ids.tolist())) == 1]
    nothing = np.array([], dtype=np.int64)
    absent: dict[str, Any] = {
        "upper_case_types": nothing,
        "corrected": {},
        "corrected_twice": nothing,
    }
    return Planted(
        root_zero=np.sort(cells.nucleus_id[cells.root_zero]),
        untyped=np.sort(cells.nucleus_id[untyped]),
        shared_roots=shared,
        shared_one_typed=np.array(one_typed, dtype=np.int64),
        no_area=np.sort(cells.nucleus_id[cells.no_area if has_areas else ~none]),
        no_fine_type=np.sort(cells.nucleus_id[no_fine]),
        **{**absent, **drawn},
    )


DEMO_VERSIONS = (661, 1507, 1718)

_MIN_NUCLEI, _MIN_SYNAPSES = 500, 1000
_SYNAPSES_A_NUCLEUS = 20
_COMBO_TABLE = "cell_type_multifeature_combo"


class DemoSource:
    """A synthetic release of any size, drawn from a seed.

    Tables are made when they are read and kept; each comes from a generator of its own, so that
    the order of reading does not matter. Cells, units and synapses are the same in the three
    versions of a seed and size: nucleus ids stay, root ids change in a part of the cells, and the
    tables are those of the version.

    Parameters
    ----------
    version : {661, 1507, 1718}
        Materialization version it imitates.
    n_nuclei : int, optional
        Rows of the nucleus table, at least 500. The planted layer borders come out within 10 µm
        from 4,000 up.
    seed : int, optional
        Seed, not negative.
    n_synapses : int, optional
        Rows of the synapse table, at least 1,000; 20 a nucleus by default.
    like_to_like : float, optional
        Between excitatory neurons, how often the more similarly oriented one of two candidates
        is taken as partner, from 0 to 1.
    datastack : str, optional
        Name it goes by; not that of the real data, so that the two are never mixed.

    Attributes
    ----------
    scope : str
        ``"complete"``: all synapses of all nuclei are in the table.
    layer_borders : dict of str to tuple of float
        Planted borders of the layers in µm, from the pia down.

    Raises
    ------
    UnknownLabelError
        If the version is another one.
    SchemaError
        If a size or the seed is out of range.

    Examples
    --------
    >>> demo = DemoSource(1718, n_nuclei=1000, seed=1)
    >>> nuclei = demo.read("nucleus_detection_v0")
    >>> len(nuclei), int((nuclei.pt_root_id == 0).sum()), demo.planted.counts()["root_zero"]
    (1000, 20, 20)
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
        n_synapses = _SYNAPSES_A_NUCLEUS * n_nuclei if n_synapses is None else n_synapses
        for name, value, least in (
            ("n_nuclei", n_nuclei, _MIN_NUCLEI),
            ("n_synapses", n_synapses, _MIN_SYNAPSES),
            ("seed", seed, 0),
        ):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < least:
                raise SchemaError(f"{name} is {value!r}, expected a whole number from {least} up")
        if not 0 <= like_to_like <= 1:
            raise SchemaError(f"like_to_like is {like_to_like!r}, expected a number from 0 to 1")
        self.version: int = int(version)
        self._version = int(version)
        self.n_nuclei = int(n_nuclei)
        self.seed = int(seed)
        self.n_synapses = int(n_synapses)
        self.like_to_like = float(like_to_like)
        self.datastack = datastack
        self._roles = dict(release_spec(self._version).tables)
        self._tables: dict[str, pd.DataFrame] = {}
        self._planted: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"DemoSource({self._version}, n_nuclei={self.n_nuclei}, seed={self.seed})"

    @property
    def layer_borders(self) -> dict[str, tuple[float, float]]:
        """Planted borders in µm; 661 has no types of white matter, so L6 is its last layer."""
        return {k: v for k, v in LAYER_BORDERS.items() if self._version != 661 or k != "WM"}

    def _rng(self, name: str) -> np.random.Generator:
        return child_rng(self.seed, self.n_nuclei, name)

    @cached_property
    def _cells(self) -> Cells:
        return make_cells(self.n_nuclei, self._rng("cells"))

    @cached_property
    def _units(self) -> Units:
        return make_units(self._cells, self._rng("units"))

    @property
    def recorded_units(self) -> Units:
        """The recorded units of all scans with their tuning curves, as they were drawn."""
        return self._units

    @cached_property
    def _synapses(self) -> dict[str, np.ndarray]:
        return make_synapses(self._cells, self.n_synapses, self.like_to_like, self._rng("synapses"))

    @cached_property
    def _wrong(self) -> np.ndarray:
        return wrong_types(self._cells, self._rng("wrong types"))

    @cached_property
    def _makers(self) -> dict[str, Callable[[np.random.Generator], Any]]:
        """Table name to the function that makes it, and perhaps what is planted in it."""
        v = self._version
        by_name: dict[str, Callable[[np.random.Generator], Any]] = {
            "nucleus_detection_v0": lambda r: nucleus_table(self._cells, v, r),
            "baylor_log_reg_cell_type_coarse_v1": lambda r: coarse_table(self._cells, v, r),
            "baylor_gnn_cell_type_fine_model_v2": lambda r: fine_table(self._cells, v, r),
            "aibs_metamodel_celltypes_v661": lambda r: metamodel_table(
                self._cells, v, self._wrong, r
            ),
            "aibs_metamodel_celltypes_v661_corrections": lambda r: corrections_table(
                self._cells, v, self._wrong, r
            ),
            _COMBO_TABLE: lambda r: combo_table(self._cells, v, r),
        }
        by_role: dict[str, Callable[[np.random.Generator], Any]] = {
            "brain_area": lambda r: area_table(self._cells, v, r),
            "proofreading": lambda r: proofreading_table(self._cells, v, r),
            "coregistration": lambda r: manual_table(self._cells, self._units, v, r),
            "coregistration_auto": lambda r: auto_table(self._cells, self._units, v, r),
            "functional_properties": lambda r: properties_table(self._cells, self._units, v, r),
            "tuning_curves": lambda r: tuning_table(self._units, r),
            "synapses": lambda r: synapse_table(self._cells, self._synapses, v),
        }
        makers = {name: by_name.get(name) or by_role[role] for role, name in self._roles.items()}
        if "celltype_corrections" in self._roles:
            makers[_COMBO_TABLE] = by_name[_COMBO_TABLE]
        return makers

    def available_tables(self) -> list[str]:
        """Names of the tables of the version, sorted.

        Returns
        -------
        list of str
            Those of `microns_xr.releases.release_spec`, in 1718 also
            ``cell_type_multifeature_combo``.
        """
        return sorted(self._makers)

    def _table(self, name: str) -> pd.DataFrame:
        if name not in self._makers:
            near = nearest_words(name, self._makers)
            raise SourceError(
                f"the demo of release {self._version} has no table {name!r}, it has "
                f"{', '.join(self.available_tables())}"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        if name not in self._tables:
            made = self._makers[name](self._rng(name))
            table, planted = made if isinstance(made, tuple) else (made, {})
            self._tables[name] = table
            self._planted.update(planted)
        return self._tables[name]

    def read(self, name: str) -> pd.DataFrame:
        """Return one table; the caller may change it.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        pandas.DataFrame
            A copy: ids int64 (Int64 where a row has none), text object, times datetime64[us, UTC].

        Raises
        ------
        SourceError
            If the version has no such table.
        """
        return self._table(name).copy()

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what a table is.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        dict
            ``name``, ``rows`` and ``sha256`` of its names, dtypes and values.

        Raises
        ------
        SourceError
            If the version has no such table.
        """
        table = self._table(name)
        return {"name": name, "rows": len(table), "sha256": frame_sha256(table)}

    @cached_property
    def planted(self) -> Planted:
        """What the tables hold on purpose; makes all of them, the synapses too."""
        for name in self.available_tables():
            self._table(name)
        drawn = {
            **self._planted,
            **planted_units(
                self._cells, self._units, self._version, "functional_properties" in self._roles
            ),
            **planted_synapses(self._cells, self._synapses, self._version),
        }
        return planted_of(self._cells, self._version, "brain_area" in self._roles, drawn)

    def write(self, path: str | Path, format: Literal["csv", "parquet"] = "csv") -> Path:
        """Write all tables as a release folder: ``raw/``, ``raw/synapses/``, ``functional/``.

        Parameters
        ----------
        path : str or pathlib.Path
            The folder; made if it is not there. Files of the same names are replaced, each whole
            or not at all.
        format : {"csv", "parquet"}, optional
            Format of the files.

        Returns
        -------
        pathlib.Path
            The folder, which `DirectorySource` reads.

        Raises
        ------
        SchemaError
            If the format is another.
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
