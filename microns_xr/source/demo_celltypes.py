"""Cell type tables of the synthetic release, as the models of each version give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from microns_xr.source.demo_cells import CLASS_OF_TYPE, CLASSES, TYPES, Cells
from microns_xr.source.demo_frames import (
    annotation,
    frame,
    reference_columns,
    shuffled_ids,
    text_of,
)

__all__ = [
    "coarse_table",
    "combo_table",
    "corrections_table",
    "fine_table",
    "metamodel_table",
    "wrong_types",
]

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
