"""Synapses of the synthetic release.

Partners are chosen by the type of both cells, by the distance between them in the plane of the
cortex and, between excitatory neurons, by how alike their preferred orientations are. The table of
affinities is invented: it has the well-known main routes (L4 to L2/3, L2/3 to L5, bipolar cells to
interneurons) and nothing else of the real circuit. Sizes are drawn to lie where those of single
minnie65 synapses lie (log size 7.6 ± 1.2 voxels).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from microns_xr.source.demo_cells import BOX_X, BOX_Z, CLASSES, TYPES, Cells

__all__ = ["make_synapses", "planted_synapses", "synapse_table"]

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
    """Draw synapses between cells; the same in every version.

    Parameters
    ----------
    cells : Cells
        The cells.
    n_synapses : int
        Number of rows.
    like_to_like : float
        How often, of two candidates, the more similarly oriented one is taken.
    rng : numpy.random.Generator
        Generator.

    Returns
    -------
    dict of str to numpy.ndarray
        ``id``, ``size``, ``voxel`` (n, 3), and ``pre`` and ``post``: the row of the cell, or -1 for
        no segment, or ``-2 - i`` for fragment i.
    """
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
