"""A synapse service in memory that behaves like the real one, with failures on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

import microns_xr as mx

ROOT = 864_691_135_000_000_000  # float64 holds only every 128th id of this size
COLUMNS = ["id", "pre_pt_root_id", "post_pt_root_id", "size"]
PLACES = [f"ctr_pt_position_{axis}" for axis in "xyz"]


def make_synapses(n: int = 2000, n_roots: int = 40, seed: int = 0) -> pd.DataFrame:
    """Synapses among roots of very different sizes, autapses and root 0 among them."""
    rng = np.random.default_rng(seed)
    share = rng.pareto(1.5, n_roots) + 0.05
    ends = rng.choice(n_roots, size=(n, 2), p=share / share.sum())
    frame = pd.DataFrame(
        {
            "id": rng.permutation(np.cumsum(rng.integers(1, 9, n))) + 2**53,
            "pre_pt_root_id": ROOT + 3 * ends[:, 0],
            "post_pt_root_id": ROOT + 3 * ends[:, 1],
            "size": rng.integers(0, 9000, n),
            **{place: rng.integers(0, 10**6, n) for place in PLACES},
        }
    )
    frame.loc[rng.integers(0, n, n // 50), "pre_pt_root_id"] = 0
    return frame


def expected(frame: pd.DataFrame, pre=None, post=None, positions=False) -> pd.DataFrame:
    """Filter and sort with pandas."""
    for column, ids in (("pre_pt_root_id", pre), ("post_pt_root_id", post)):
        if ids is not None:
            frame = frame[frame[column].isin(list(ids))]
    frame = frame.sort_values(["post_pt_root_id", "pre_pt_root_id", "id"], ignore_index=True)
    return frame[COLUMNS + (PLACES if positions else [])].astype("int64")


@dataclass
class Answered:
    table: pa.Table
    limited_to: int | None = None
    resolution_nm: tuple[float, ...] | None = None


@dataclass
class Asked:
    kind: str
    filters: dict[str, Any]
    rows: int = 0


@dataclass
class MemoryService:
    """Answers in a new order every time, cut at the row limit, with additional columns."""

    frame: pd.DataFrame
    row_limit: int = 200_000
    datastack: str = "minnie65_demo"
    version: int | None = 1718
    time: str = "2026-01-01T00:00:00+00:00"
    # Called with the request (and for queries its rows) before it is answered.
    trouble: Callable[[Asked, pd.DataFrame | None], pd.DataFrame | None] | None = None
    asked: list[Asked] = field(default_factory=list)
    seed: int = 0
    retry: mx.sources.Retry = field(
        default_factory=lambda: mx.sources.Retry(attempts=4, sleep=lambda seconds: None)
    )

    def __post_init__(self):
        self._lock = threading.Lock()
        self._rng = np.random.default_rng(self.seed)

    @property
    def queries(self):
        return [a for a in self.asked if a.kind == "query"]

    def timestamp(self):
        return self.time

    def _rows(self, filter_in, filter_range):
        keep = np.ones(len(self.frame), dtype=bool)
        for column, ids in (filter_in or {}).items():
            assert all(type(i) is int for i in ids), "ids travel as whole numbers"
            keep &= self.frame[column].isin(ids).to_numpy()
        for column, (low, high) in (filter_range or {}).items():
            values = self.frame[column]
            keep &= True if low is None else (values >= low).to_numpy()
            keep &= True if high is None else (values < high).to_numpy()
        return self.frame[keep]

    def _log(self, kind, filter_in, filter_range):
        asked = Asked(kind, {**(filter_in or {}), **(filter_range or {})})
        with self._lock:
            self.asked.append(asked)
        return asked

    def count(self, table, filter_in=None, *, filter_range=None):
        asked = self._log("count", filter_in, filter_range)
        rows = self._rows(filter_in, filter_range)
        if self.trouble:
            self.trouble(asked, None)
        return len(rows)

    def query(self, table, *, filter_in=None, filter_range=None, select_columns=None):
        asked = self._log("query", filter_in, filter_range)
        rows = self._rows(filter_in, filter_range)
        with self._lock:
            rows = rows.iloc[self._rng.permutation(len(rows))]
        cut = len(rows) >= self.row_limit
        rows = rows.iloc[: self.row_limit]
        if self.trouble:
            changed = self.trouble(asked, rows)
            rows = rows if changed is None else changed
        asked.rows = len(rows)
        names = [c for name in select_columns for c in ([name] if name in rows else PLACES)]
        arrays = {"pre_pt_supervoxel_id": pa.array(np.zeros(len(rows), np.int64))}
        for name in names:
            kind = pa.float32() if name == "size" else pa.int32() if name in PLACES else None
            arrays[name] = pa.array(rows[name], kind)
        return Answered(pa.table(arrays), self.row_limit if cut else None)
