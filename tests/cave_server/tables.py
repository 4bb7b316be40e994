"""Tables as the service stores them: types, columns by name, filters, answers to queries.

Ids are int64, every other integer is int32, positions are three columns that are selected by their
base name; every type is nullable. Floats are stored as double, and answered as float32. There is no
order of rows, and an answer that has as many rows as its limit carries a warning, whether anything
was cut or not.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

import microns_xr as mx

AXES = ("x", "y", "z")
RESOLUTION = (4.0, 4.0, 40.0)
COMPARISONS: dict[str, Any] = {
    "filter_less_dict": operator.lt,
    "filter_greater_equal_dict": operator.ge,
}
# What is to be left out is accepted and ignored, as by the service.
FILTERS = {"filter_in_dict", "filter_out_dict", *COMPARISONS}
# Columns that annotation and target both have; every other column of the target is its own.
SHARED = ("id", "created", "valid", "superceded_id")
NUCLEI = "nucleus_detection_v0"
# Tables of minnie65_public that annotate nuclei by target_id.
REFERENCE_TABLES = {
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
}


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
    ) -> None:
        self.name = name
        self.target = target
        self.notice = notice
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
        """Return which rows pass the filters."""
        for key, value in data.items():
            if (
                key.startswith("filter_")
                and value
                and (key not in FILTERS or {*value} != {self.name})
            ):
                raise QueryError(400, f"{key} of {sorted(value)} in a query of {self.name}")
        keep = np.ones(len(self.frame), dtype=bool)
        if "valid" in self.columns and self.frame["valid"].dtype == "boolean":
            keep &= self.frame["valid"].fillna(False).to_numpy(dtype=bool)
        for name, values in self._filters(data, "filter_in_dict"):
            column = self.column(name)
            self._check(column, values)
            keep &= column.isin(values).fillna(False).to_numpy(dtype=bool)
        for key, compare in COMPARISONS.items():
            for name, value in self._filters(data, key):
                column = self.column(name)
                self._check(column, [value])
                keep &= compare(column, value).fillna(False).to_numpy(dtype=bool)
        return keep

    def _filters(self, data: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
        return ((data.get(key) or {}).get(self.name) or {}).items()

    def _check(self, column: pd.Series, values: Any) -> None:
        if not isinstance(values, list):
            raise QueryError(400, f"filter of {column.name} is not a list")
        if pd.api.types.is_integer_dtype(column.dtype):
            # An id that went through float names another object: refuse it loudly.
            if not set(map(type, values)) <= {int}:
                raise QueryError(400, f"invalid input for bigint column {column.name}")
            if any(abs(v) > np.iinfo(np.int64).max for v in values):
                raise QueryError(400, f"value out of range for column {column.name}")

    def query(
        self,
        data: Mapping[str, Any],
        *,
        row_limit: int,
        rng: np.random.Generator,
        count: bool,
        float_type: str,
    ) -> tuple[pd.DataFrame, list[str]]:
        """Return the rows of an answer, and the warnings that its header carries."""
        rows = np.flatnonzero(self.mask(data))
        if count:
            return pd.DataFrame({"count": [len(rows)]}), []
        if len(rows) > row_limit:
            rows = rng.permutation(rows)[:row_limit]  # there is no ORDER BY
        chosen = self.selection(data.get("select_columns") or self.columns)
        taken = self.frame[[part for name in chosen for part in self.columns[name]]].take(rows)
        doubles = taken.columns[taken.dtypes == "Float64"]
        frame = taken.astype(dict.fromkeys(doubles, float_type)).reset_index(drop=True)
        warnings = []
        if len(frame) == row_limit:
            # The service never closes the quotation mark.
            warnings.append(f'201 - "Limited query to {row_limit} rows')
        if self.notice:
            warnings.append(f"Table Owner Notice on {self.name}: {self.notice}")
        return frame, warnings


def encode_arrow(frame: pd.DataFrame, accept_encoding: str, *, schema_only: bool = False) -> bytes:
    """Return an Arrow IPC stream, compressed inside as far as it is accepted.

    With `schema_only` it ends right after its schema, which reads as a stream of no rows.
    """
    accepted = [c for c in ("lz4", "zstd") if c in accept_encoding]
    options = pa.ipc.IpcWriteOptions(compression=accepted[0] if accepted else None)
    batch = pa.RecordBatch.from_pandas(frame)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        if not schema_only:
            writer.write_batch(batch)
    stream = sink.getvalue().to_pybytes()
    return stream[:-8] if schema_only else stream  # the end-of-stream mark has 8 bytes


def wire_tables(
    tables: Mapping[str, pd.DataFrame] | mx.sources.TableSource, notices: Mapping[str, str]
) -> dict[str, WireTable]:
    """Return tables as they are stored, targets before what refers to them."""
    if isinstance(tables, Mapping):
        frames = dict(tables)
    else:
        frames = {name: tables.read(name) for name in tables.available_tables()}
    stored: dict[str, WireTable] = {}
    for name in sorted(frames, key=lambda n: n in REFERENCE_TABLES):
        refers = name in REFERENCE_TABLES and "target_id" in frames[name]
        target = stored.get(NUCLEI) if refers else None
        stored[name] = WireTable(name, frames[name], target=target, notice=notices.get(name))
    return {name: stored[name] for name in frames}
