"""Tables as the service stores them: wire types, columns by name, filters.

Ids are int64, every other integer is int32, positions are three columns that are selected by their
base name; every type is nullable. Floats are stored as double, and answered as float32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

import microns_xr as mx

AXES = ("x", "y", "z")
RESOLUTION = (4.0, 4.0, 40.0)
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "filter_equal_dict": operator.eq,
    "filter_greater_dict": operator.gt,
    "filter_less_dict": operator.lt,
    "filter_greater_equal_dict": operator.ge,
    "filter_less_equal_dict": operator.le,
}
# Columns that annotation and target both have; every other column of the target is its own.
SHARED = ("id", "created", "valid", "superceded_id")
NUCLEI = "nucleus_detection_v0"
# Tables of minnie65_public that annotate nuclei by target_id.
REFERENCE_TABLES: dict[str, str] = dict.fromkeys(
    (
        "aibs_metamodel_celltypes_v661",
        "aibs_metamodel_celltypes_v661_corrections",
        "aibs_soma_nuc_metamodel_preds_v117",
        "baylor_gnn_cell_type_fine_model_v2",
        "baylor_log_reg_cell_type_coarse_v1",
        "cell_type_multifeature_combo",
        "coregistration_auto_phase3_fwd_apl_vess_combined_v2",
        "coregistration_manual_v3",
        "coregistration_manual_v4",
        "digital_twin_properties_bcm_coreg_v4",
        "functional_properties_v3_bcm",
        "nucleus_functional_area_assignment",
    ),
    NUCLEI,
)


class QueryError(Exception):
    """A request that the service refuses: its status and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def _is_id(name: str) -> bool:
    return name in ("id", "target_id", "valid_id", "superceded_id") or name.endswith(
        ("_root_id", "_supervoxel_id")
    )


def _wire_column(name: str, column: pd.Series) -> pd.Series:
    """Return one column in the nullable type that the service would send it in."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind == "empty":
        return column.astype("string")
    if kind == "boolean":
        return column.astype("boolean")
    if kind in ("integer", "integer-na"):
        column = column.astype("Int64")
        if name == "size":
            return column.astype("Float64")
        span = np.iinfo(np.int32)
        small = column.dropna().between(span.min, span.max).all()
        return column if _is_id(name) or not small else column.astype("Int32")
    if kind in ("floating", "mixed-integer-float", "decimal"):
        if _is_id(name):
            raise ValueError(f"column {name} holds ids as float: make it int64 or Int64")
        return column.astype("Float64")
    if kind in ("datetime", "datetime64", "date"):
        return pd.to_datetime(column, utc=True).astype("datetime64[ns, UTC]")
    if kind in ("string", "categorical"):
        words = column.astype("string")
        if set(words.dropna().unique()) <= {"t", "f"}:  # how Postgres writes truth in a file
            return words.map({"t": True, "f": False}).astype("boolean")
        return words
    return column  # lists and arrays travel as Arrow lists


class WireTable:
    """One table as the service stores it.

    Missing bookkeeping is made up: ``id`` counts rows, and every ``X_root_id`` has its
    ``X_supervoxel_id``. A reference table keeps only what is its own: columns that its target has
    as well come from the target, when the two are joined.
    """

    def __init__(
        self,
        name: str,
        frame: pd.DataFrame,
        *,
        target: WireTable | None = None,
        notice: str | None = None,
        resolution: Sequence[float] = RESOLUTION,
    ) -> None:
        self.name = name
        self.target = target
        self.notice = notice
        self.resolution = tuple(float(r) for r in resolution)
        self.columns: dict[str, tuple[str, ...]] = {}
        self.frame = self._stored(frame.reset_index(drop=True))

    def _stored(self, source: pd.DataFrame) -> pd.DataFrame:
        stored: dict[str, pd.Series] = {}
        borrowed = set(self.target.columns) - set(SHARED) if self.target else set()
        if "id" not in source:
            source = source.assign(id=np.arange(1, len(source) + 1))
            source = source[["id", *source.columns[:-1]]]
        for name in source.columns:
            base = name[:-2]
            if name[-2:] in ("_x", "_y", "_z") and all(f"{base}_{a}" in source for a in AXES):
                if base not in self.columns and base not in borrowed:
                    self._add(stored, base, [source[f"{base}_{a}"] for a in AXES])
            elif name in borrowed:
                continue
            elif name.endswith("_position"):
                points = np.array([list(p) for p in source[name]]).reshape(-1, 3)
                self._add(stored, name, [pd.Series(points[:, i]) for i in range(3)])
            else:
                if name.endswith("_root_id"):
                    supervoxel = name[: -len("root_id")] + "supervoxel_id"
                    if supervoxel not in source:
                        numbers = np.arange(1, len(source) + 1) + 80_000_000_000_000_000
                        made_up = np.where(source[name].fillna(0) == 0, 0, numbers)
                        self._add(stored, supervoxel, [pd.Series(made_up)])
                self._add(stored, name, [source[name]])
        return pd.DataFrame(stored, index=source.index)

    def _add(self, stored: dict[str, pd.Series], name: str, parts: list[pd.Series]) -> None:
        names = (name,) if len(parts) == 1 else tuple(f"{name}_{a}" for a in AXES)
        self.columns[name] = names
        for part_name, part in zip(names, parts, strict=True):
            stored[part_name] = _wire_column(part_name, part)

    def column(self, name: str) -> pd.Series:
        """Return a column that is not a position."""
        if len(self.columns.get(name, ())) != 1:
            raise QueryError(400, f"column {name} not found in {self.name}")
        return self.frame[name]

    def selection(self, names: Iterable[str]) -> list[str]:
        """Return the columns that a list of names selects: a root brings its supervoxel."""
        chosen: list[str] = []
        for name in names:
            if name not in self.columns:
                raise QueryError(400, f"column {name} not found in {self.name}")
            supervoxel = name[: -len("root_id")] + "supervoxel_id"
            also = [supervoxel] if name.endswith("root_id") and supervoxel in self.columns else []
            chosen += [c for c in (*also, name) if c not in chosen]
        return chosen

    def mask(self, data: Mapping[str, Any]) -> np.ndarray:
        """Return which rows pass the filters; what is to be left out is ignored, as there."""
        keep = np.ones(len(self.frame), dtype=bool)
        if "valid" in self.columns and self.frame["valid"].dtype == "boolean":
            keep &= self.frame["valid"].fillna(False).to_numpy(dtype=bool)
        for name, values in self._filters(data, "filter_in_dict"):
            keep &= self._is_in(self.column(name), values)
        for key, compare in COMPARISONS.items():
            for name, value in self._filters(data, key):
                column = self.column(name)
                self._is_in(column, [value])  # the same check of types
                try:
                    keep &= compare(column, value).fillna(False).to_numpy(dtype=bool)
                except TypeError as error:
                    raise QueryError(400, f"{name}: {error}") from None
        for name, box in self._filters(data, "filter_spatial_dict"):
            keep &= self._inside(name, np.asarray(box, dtype=float))
        for name, pattern in self._filters(data, "filter_regex_dict"):
            if self.column(name).dtype != "string":
                raise QueryError(400, "Regex filter is only supported on string columns")
            found = self.column(name).str.contains(pattern, regex=True)
            keep &= found.fillna(False).to_numpy(dtype=bool)
        return keep

    def _filters(self, data: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
        return ((data.get(key) or {}).get(self.name) or {}).items()

    def _is_in(self, column: pd.Series, values: Any) -> np.ndarray:
        if not isinstance(values, list):
            raise QueryError(400, f"filter of {column.name} is not a list")
        if pd.api.types.is_integer_dtype(column.dtype):
            # An id that went through float names another object: refuse it loudly.
            if not set(map(type, values)) <= {int}:
                raise QueryError(400, f"invalid input for bigint column {column.name}")
            if any(abs(v) > np.iinfo(np.int64).max for v in values):
                raise QueryError(400, f"value out of range for column {column.name}")
            values = np.array(values, dtype=np.int64)
        return column.isin(values).fillna(False).to_numpy(dtype=bool)

    def _inside(self, name: str, box: np.ndarray) -> np.ndarray:
        parts = self.columns.get(name, ())
        if len(parts) != 3 or box.shape != (2, 3) or not (box[0] < box[1]).all():
            raise QueryError(400, f"no box of positions: {name} {box.tolist()}")
        points = self.frame[list(parts)].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
        return np.asarray(((points >= box[0]) & (points <= box[1])).all(axis=1))


def wire_tables(
    tables: Mapping[str, pd.DataFrame] | mx.sources.TableSource,
    references: Mapping[str, str],
    notices: Mapping[str, str],
) -> dict[str, WireTable]:
    """Return tables as they are stored, targets before what refers to them."""
    if isinstance(tables, Mapping):
        frames = dict(tables)
    else:
        frames = {name: tables.read(name) for name in tables.available_tables()}
    stored: dict[str, WireTable] = {}
    for name in sorted(frames, key=lambda n: n in references):
        target = stored.get(references.get(name, "")) if "target_id" in frames[name] else None
        stored[name] = WireTable(name, frames[name], target=target, notice=notices.get(name))
    return {name: stored[name] for name in frames}
