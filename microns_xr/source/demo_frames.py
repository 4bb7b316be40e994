"""What the tables of the synthetic release have in common.

Column names are those of the CAVE tables: annotation columns ``id``, ``created``,
``superceded_id``, ``valid``, and those of the nucleus a row refers to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from microns_xr.source.demo_cells import Cells

__all__ = ["annotation", "frame", "positions", "reference_columns", "shuffled_ids", "text_of"]

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
