"""Cells of the synthetic release: who they are, where they lie, which of them make trouble.

The numbers of cells of each type, their volumes and their depths are those of the 91,423 typed
cells of minnie65 v1300 (Elabbady et al. 2025, doi:10.1038/s41586-024-07765-7; MICrONS Consortium
2025, doi:10.1038/s41586-025-08790-w), rounded to a thousandth in ten zones of depth. Within a zone
cells are even and few stray over a border: the planted borders are sharper than real ones.
Everything here is the same in every version of a seed; only root ids change with the version.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from microns_xr.coordinates import from_pia_um

__all__ = ["AREAS", "CLASSES", "LAYER_BORDERS", "TYPES", "Cells", "child_rng", "make_cells"]

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
    """All nuclei of a synthetic release, one element a nucleus.

    Attributes
    ----------
    nucleus_id : numpy.ndarray
        int64, unique, not sorted.
    type_code : numpy.ndarray
        Index into `TYPES`: what the cell really is.
    position_um, voxel : numpy.ndarray
        Shape (n, 3): pia-oriented µm, and the same rounded to voxels of 4x4x40 nm.
    volume : numpy.ndarray
        Nucleus volume, µm³.
    area_code : numpy.ndarray
        Index into `AREAS`.
    root_zero, untyped, no_area, no_fine_type : numpy.ndarray
        bool, what a nucleus lacks.
    group : numpy.ndarray
        Which shared root it belongs to, -1 for a root of its own.
    strategy_code : numpy.ndarray
        Index into `STRATEGIES`.
    pref_dir : numpy.ndarray
        Preferred direction in degrees, 0 = horizontal bar moving up, clockwise.
    slots : numpy.ndarray
        Pool of root ids, shape (5, n): three generations of cells, fragments, outdated roots.
    generation : numpy.ndarray
        Shape (2, n), bool: whether the root changed between 661 and 1507, and up to 1718.
    """

    nucleus_id: np.ndarray
    type_code: np.ndarray
    position_um: np.ndarray
    voxel: np.ndarray
    volume: np.ndarray
    area_code: np.ndarray
    root_zero: np.ndarray
    untyped: np.ndarray
    no_area: np.ndarray
    no_fine_type: np.ndarray
    group: np.ndarray
    strategy_code: np.ndarray
    pref_dir: np.ndarray
    slots: np.ndarray
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
