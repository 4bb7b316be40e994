"""Tables of the synthetic release that list nuclei, their areas and what was proofread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from microns_xr.source.demo_cells import AREAS, STRATEGIES, Cells
from microns_xr.source.demo_frames import (
    annotation,
    frame,
    positions,
    reference_columns,
    shuffled_ids,
    text_of,
)

__all__ = ["area_table", "nucleus_table", "proofreading_table"]

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
