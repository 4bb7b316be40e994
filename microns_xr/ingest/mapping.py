"""Rows of a table of synapses to positions on the axes: what is kept, and why the rest is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numba
import numpy as np
import xarray as xr

from microns_xr.connectivity.labels import Lookup, as_ids, unit_roots
from microns_xr.ingest.layout import Layout
from microns_xr.ingest.reading import BadRow, Rows

__all__ = ["Keep", "Mapped", "Mapper", "Tally"]

Keep = Literal["both", "pre", "post"]

_REASONS = tuple(
    f"{side}_{why}" for side in ("pre", "post") for why in ("null", "zero", "shared", "unknown")
)


@dataclass
class Tally:
    """Counts over all rows.

    Attributes
    ----------
    rows : int
        Rows that could be read.
    bad_lines : int
        Lines that could not.
    reasons : numpy.ndarray
        Rows by reason to be dropped, and those that are dropped.
    total, total_count : float
        Sum of all sizes, and of all counts of a table of pairs.
    """

    rows: int = 0
    bad_lines: int = 0
    reasons: np.ndarray = field(default_factory=lambda: np.zeros(len(_REASONS) + 1, dtype=np.int64))
    total: float = 0.0
    total_count: float = 0.0

    def add(self, other: Tally) -> None:
        """Add the counts of a block."""
        self.rows += other.rows
        self.bad_lines += other.bad_lines
        self.reasons += other.reasons
        self.total += other.total
        self.total_count += other.total_count

    @property
    def dropped(self) -> dict[str, int]:
        """The counts as `microns_xr.build_connectivity` gives them."""
        counts = dict(zip((*_REASONS, "any_reason"), self.reasons.tolist(), strict=True))
        return counts | {"not_asked_for": 0}


@dataclass(frozen=True)
class Mapped:
    """The rows of a block that are kept.

    Attributes
    ----------
    pairs : tuple of (numpy.ndarray, dict)
        Post position and columns of the rows both of whose partners are units.
    singles : tuple of (numpy.ndarray, dict) or None
        Position of the unit and columns of the rows with a unit at one end, where those are kept.
    tally : Tally
        Counts.
    lines, size : int
        Of the block.
    bad : BadRow or None
        The first bad row.
    """

    pairs: tuple[np.ndarray, dict[str, np.ndarray]]
    singles: tuple[np.ndarray, dict[str, np.ndarray]] | None
    tally: Tally
    lines: int
    size: int
    bad: BadRow | None


class Mapper:
    """Maps blocks of rows; may be used by several threads.

    Parameters
    ----------
    units : xarray.Dataset
        Units, sorted by ``nucleus_id``.
    layout : Layout
        What the columns are.
    keep : {"both", "pre", "post"}
        Which rows are kept as single synapses.
    positions : bool
        Whether their positions are.
    shared : numpy.ndarray
        Root ids that hold several nuclei.
    """

    def __init__(
        self, units: xr.Dataset, layout: Layout, keep: Keep, positions: bool, shared: np.ndarray
    ) -> None:
        self._layout, self._keep, self._positions = layout, keep, positions
        if layout.labels == "nucleus_id":
            labels = as_ids(units, "units")
            where = np.arange(labels.size)
            shared = np.empty(0, dtype=np.int64)
        else:
            labels, where = unit_roots(units)
        self.labels = labels
        self._where = where.astype(np.int32)
        # Shared roots behind the others: one look tells both what is known and why it is not.
        shared = np.setdiff1d(shared[shared > 0], labels)
        self._lookup = Lookup(np.concatenate([labels, shared]), f"{layout.labels} of the units")
        self.units_by_position = np.zeros(units.sizes["nucleus_id"], dtype=np.int64)
        self.units_by_position[where] = labels

    @property
    def pair_columns(self) -> dict[str, str | tuple[str, int]]:
        """Columns of the rows with two units, as `Spill` takes them."""
        columns: dict[str, str | tuple[str, int]] = {"indices": "int32", "size": "int64"}
        if self._layout.count is not None:
            columns["count"] = "int64"
        return columns | (self._single_columns() if self._keep == "both" else {})

    @property
    def single_columns(self) -> dict[str, str | tuple[str, int]] | None:
        """Columns of the rows with one unit at least; None where those are not kept."""
        if self._keep == "both":
            return None
        return {"root": "int64", "size": "int64", **self._single_columns()}

    def _single_columns(self) -> dict[str, str | tuple[str, int]]:
        columns: dict[str, str | tuple[str, int]] = {}
        if self._layout.id is not None:
            columns["id"] = "int64"
        if self._positions:
            columns["point"] = ("float64", 3)
        return columns

    def map(self, rows: Rows) -> Mapped:
        """Keep the rows of a block that are wanted."""
        codes = {side: self._lookup.find(rows.numbers[side], 1) for side in ("pre", "post")}
        if self._positions:
            rows, codes, bad, n_bad = self._with_points(rows, codes)
        else:
            bad, n_bad = rows.bad, rows.bad_lines
        reasons = np.zeros(len(_REASONS) + 1, dtype=np.int64)
        both, total = _classify(
            codes["pre"],
            codes["post"],
            rows.numbers["pre"],
            rows.numbers["post"],
            rows.null["pre"],
            rows.null["post"],
            rows.numbers["size"],
            self.labels.size,
            reasons,
        )
        columns = self._take(rows, both, self.pair_columns)
        columns["indices"] = self._where[codes["pre"][both]]
        pairs = self._where[codes["post"][both]], columns
        singles = None
        if self._keep != "both":
            side, other = self._keep, "post" if self._keep == "pre" else "pre"
            own = codes[side]
            wanted = np.flatnonzero((own >= 0) & (own < self.labels.size) & ~rows.null[side])
            columns = self._take(rows, wanted, self.single_columns or {})
            columns["root"] = rows.numbers[other][wanted]
            singles = self._where[own[wanted]], columns
        counts = rows.numbers.get("count")
        n_synapses = 0.0 if counts is None else float(counts.sum(dtype=np.float64))
        tally = Tally(len(rows.numbers["size"]), n_bad, reasons, total, n_synapses)
        return Mapped(pairs, singles, tally, rows.lines, rows.size, bad)

    def _take(
        self, rows: Rows, wanted: np.ndarray, names: dict[str, str | tuple[str, int]]
    ) -> dict[str, np.ndarray]:
        numbers = rows.numbers
        return {name: numbers[name][wanted] for name in names if name in numbers}

    def _with_points(
        self, rows: Rows, codes: dict[str, np.ndarray]
    ) -> tuple[Rows, dict[str, np.ndarray], BadRow | None, int]:
        """Read the positions of rows that may be kept; rows without a good one are bad."""
        known = {side: (c >= 0) & (c < self.labels.size) for side, c in codes.items()}
        wanted = np.flatnonzero(
            known["pre"] & known["post"] if self._keep == "both" else known[self._keep]
        )
        values, bad, bad_rows = rows.points(wanted)
        points = np.full((len(codes["pre"]), 3), np.nan)
        points[wanted] = values
        good = np.ones(len(codes["pre"]), dtype=bool)
        good[wanted[bad_rows]] = False
        take = slice(None) if good.all() else good
        numbers = {role: numbers[take] for role, numbers in rows.numbers.items()}
        numbers["point"] = points[take]
        null = {side: null[take] for side, null in rows.null.items()}
        rows = Rows(numbers, null, rows.points, rows.lines, rows.bad_lines, rows.size, rows.bad)
        if bad is None or (rows.bad is not None and rows.bad.line < bad.line):
            bad = rows.bad
        codes = {side: c[take] for side, c in codes.items()}
        return rows, codes, bad, rows.bad_lines + len(bad_rows)


@numba.njit(nogil=True, cache=True)
def _classify(  # type: ignore[no-untyped-def]
    pre, post, pre_ids, post_ids, pre_null, post_null, size, n_known, reasons
):
    # Rows with two units; adds the others to the counts of their reasons.
    both = np.empty(pre.size, dtype=np.int32)
    n = 0
    total = 0.0
    for r in range(pre.size):
        total += size[r]
        lost = False
        for side in range(2):
            code = pre[r] if side == 0 else post[r]
            null = pre_null[r] if side == 0 else post_null[r]
            if code >= 0 and code < n_known and not null:
                continue
            lost = True
            if null:
                reasons[4 * side] += 1
            elif (pre_ids[r] if side == 0 else post_ids[r]) == 0:
                reasons[4 * side + 1] += 1
            elif code >= n_known:
                reasons[4 * side + 2] += 1
            else:
                reasons[4 * side + 3] += 1
        if lost:
            reasons[8] += 1
        else:
            both[n] = r
            n += 1
    return both[:n], total
