"""Proofreading: strategies and status words to what an axon can be used for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from microns_xr.releases import TableSpec
from microns_xr.tables import typed_table

__all__ = ["COMPLETENESS", "Proofreading", "completeness_of", "read_proofreading"]

# From the least to the most complete. `unknown`: extended, but the table does not say how far
# (the status "extended" of the releases before 1078, or a strategy not listed here).
COMPLETENESS = ("none", "clean", "truncated", "interareal", "unknown", "partial", "full")

# Strategies of proofreading_status_and_strategy, and the status words of
# proofreading_status_public_release, as the metadata of the two tables describe them.
_COMPLETENESS_OF = {
    "none": "none",
    "clean": "clean",
    "axon_column_truncated": "truncated",
    "axon_interareal": "interareal",
    "axon_partially_extended": "partial",
    "axon_fully_extended": "full",
}

_TRUE_WORDS = frozenset({"t", "true", "1"})


def completeness_of(strategies: pd.Series) -> pd.Series:
    """Map axon strategies to how complete the axon is.

    Parameters
    ----------
    strategies : pandas.Series
        Words of the proofreading table, "none" where the axon was not proofread.

    Returns
    -------
    pandas.Series
        One of `COMPLETENESS` a row.

    Examples
    --------
    >>> completeness_of(pd.Series(["axon_fully_extended", "extended", "none"])).tolist()
    ['full', 'unknown', 'none']
    """
    return strategies.map(_COMPLETENESS_OF).fillna("unknown").astype(object)


@dataclass(frozen=True)
class Proofreading:
    """Proofreading by root, one row a root.

    Attributes
    ----------
    by_root : pandas.DataFrame
        Indexed by pt_root_id: strategy_axon, strategy_dendrite, axon_completeness,
        axon_proofread, root_changed.
    n_repeated_roots : int
        Roots with several entries, of which the more complete was taken.
    """

    by_root: pd.DataFrame
    n_repeated_roots: int


def _is_true(words: pd.Series) -> np.ndarray:
    return np.array([str(w).lower() in _TRUE_WORDS for w in words], dtype=bool)


def read_proofreading(table: pd.DataFrame, spec: TableSpec) -> Proofreading:
    """Read a proofreading table of either layout.

    Parameters
    ----------
    table : pandas.DataFrame
        pt_root_id, the strategy (or status) of axon and dendrite, and where the table has them
        ``status_axon`` (t / f) and ``valid_id``, the root that was proofread.
    spec : TableSpec
        Names of the columns, and words to harmonise.

    Returns
    -------
    Proofreading
        One row a root. Of two entries for one root the one with the more complete axon wins, then
        the one with a proofread dendrite, then the later row.

    Raises
    ------
    SchemaError
        If columns are missing or of the wrong type, or the table is empty.
    """
    flags = {n: table[n] for n in ("status_axon", "status_dendrite") if n in table.columns}
    booleans = {n: v for n, v in flags.items() if pd.api.types.is_bool_dtype(v.dtype)}
    if booleans:  # a boolean column is as good as the words t and f
        table = table.assign(
            **{n: np.where(v.fillna(False).astype(bool), "t", "f") for n, v in booleans.items()}
        )
    typed = typed_table(table, "proofreading", spec)
    typed = typed[typed["pt_root_id"].notna()]
    frame = pd.DataFrame({"pt_root_id": typed["pt_root_id"].astype(np.int64)})
    for name, column in (
        ("strategy_axon", spec.axon_column),
        ("strategy_dendrite", spec.dendrite_column),
    ):
        words = typed[column].fillna("none")
        frame[name] = words.replace(dict(spec.strategy_words)).astype(object)
    frame["axon_completeness"] = completeness_of(frame["strategy_axon"])
    if "status_axon" in typed and spec.axon_column != "status_axon":
        frame["axon_proofread"] = _is_true(typed["status_axon"])
    else:
        frame["axon_proofread"] = (frame["strategy_axon"] != "none").to_numpy()
    # Status "t" without a strategy: merges were removed, nothing is said about extension.
    clean = frame["axon_proofread"] & (frame["axon_completeness"] == "none")
    frame.loc[clean, "axon_completeness"] = "clean"
    if "valid_id" in typed:
        valid = typed["valid_id"]
        changed = valid.notna() & (valid != typed["pt_root_id"])
        frame["root_changed"] = changed.fillna(False).to_numpy(dtype=bool)
    else:
        frame["root_changed"] = False
    rank = frame["axon_completeness"].map({w: i for i, w in enumerate(COMPLETENESS)})
    frame = frame.assign(rank=rank, has_dendrite=frame["strategy_dendrite"] != "none")
    n_repeated = int(frame.loc[frame.duplicated("pt_root_id"), "pt_root_id"].nunique())
    frame = frame.sort_values(["pt_root_id", "rank", "has_dendrite"], kind="stable")
    by_root = frame.drop_duplicates("pt_root_id", keep="last").set_index("pt_root_id")
    return Proofreading(by_root.drop(columns=["rank", "has_dendrite"]), n_repeated)
