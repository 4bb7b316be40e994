"""What the service does with a query: select, join, cut, warn, and encode as Arrow.

There is no order of rows, and an answer that has as many rows as its limit carries a warning,
whether anything was cut or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from .tables import AXES, QueryError, WireTable


@dataclass
class Answer:
    """The rows of an answer and what its headers say."""

    frame: pd.DataFrame
    column_names: dict[str, dict[str, str]] = field(default_factory=dict)
    resolution: Sequence[float] | None = None
    warnings: list[str] = field(default_factory=list)


def simple_query(
    table: WireTable,
    data: Mapping[str, Any],
    *,
    row_limit: int,
    rng: np.random.Generator,
    count: bool = False,
    float_type: str = "Float32",
) -> Answer:
    """Answer a query of one table."""
    check_tables(data, [table])
    rows = np.flatnonzero(table.mask(data))
    if count:
        return Answer(pd.DataFrame({"count": [len(rows)]}))
    names = table.selection(data.get("select_columns") or table.columns)
    return _finish([(table, rows, names)], data, row_limit, rng, float_type)


def join_query(
    tables: Mapping[str, WireTable],
    data: Mapping[str, Any],
    *,
    row_limit: int,
    rng: np.random.Generator,
    float_type: str = "Float32",
) -> Answer:
    """Answer a query of two tables joined on one column each (inner join)."""
    (left_name, left_on), (right_name, right_on) = data["tables"]
    pair = [tables[left_name], tables[right_name]]
    check_tables(data, pair)
    keys = []
    for table, on in zip(pair, (left_on, right_on), strict=True):
        column = table.column(on)
        keep = table.mask(data) & column.notna().to_numpy()
        keys.append(pd.DataFrame({"key": column[keep], "row": np.flatnonzero(keep)}))
    joined = keys[0].merge(keys[1], on="key", suffixes=("_left", "_right"))
    rows = [joined["row_left"].to_numpy(), joined["row_right"].to_numpy()]
    warnings = []
    by_table = data.get("select_column_map")
    if data.get("select_columns"):
        # The service looks through a set of tables, in whatever order that comes.
        warnings.append("Select_columns is deprecated for join queries")
        chosen: dict[str, list[str]] = {}
        order = [pair[i] for i in rng.permutation(2)]
        for column_name in data["select_columns"]:
            owner = next((t for t in order if column_name in t.columns), None)
            if owner is None:
                raise QueryError(400, f"column {column_name} not found in any table referenced")
            chosen.setdefault(owner.name, []).append(column_name)
        by_table = chosen
    parts = []
    for table, table_rows in zip(pair, rows, strict=True):
        wanted = table.columns if by_table is None else by_table.get(table.name, [])
        parts.append((table, table_rows, table.selection(wanted)))
    answer = _finish(parts, data, row_limit, rng, float_type)
    answer.warnings = warnings + answer.warnings
    return answer


def check_tables(data: Mapping[str, Any], tables: Sequence[WireTable]) -> None:
    """Refuse filters that name a table which is not part of the query."""
    known = {t.name for t in tables}
    for key, value in data.items():
        if key.startswith("filter_") and key != "filter_notin_dict":
            unknown = set(value or {}) - known
            if unknown:
                raise QueryError(400, f"{key} names {sorted(unknown)}, not among {sorted(known)}")


def _finish(
    parts: Sequence[tuple[WireTable, np.ndarray, list[str]]],
    data: Mapping[str, Any],
    row_limit: int,
    rng: np.random.Generator,
    float_type: str,
) -> Answer:
    limit = min(int(data.get("limit") or row_limit), row_limit)
    offset = int(data.get("offset") or 0)
    order = np.arange(len(parts[0][1]))
    if len(order) > limit or offset:
        order = rng.permutation(order)  # there is no ORDER BY: two pages are two orders
    order = order[offset : offset + limit]
    desired = data.get("desired_resolution") or parts[-1][0].resolution
    suffixes = data.get("suffix_map") or {}
    names = [name for _, _, chosen in parts for name in chosen]
    answer = Answer(pd.DataFrame(), resolution=desired)
    columns: dict[str, Any] = {}
    for number, (table, rows, chosen) in enumerate(parts):
        taken = table.frame.take(rows[order])
        ratio = np.divide(table.resolution, desired)
        answer.column_names[table.name] = {}
        for name in chosen:
            suffix = suffixes.get(table.name, AXES[number]) if names.count(name) > 1 else ""
            answer.column_names[table.name][name] = name + suffix
            for axis, stored in enumerate(table.columns[name]):
                column = taken[stored].array
                if column.dtype == "Float64":
                    column = column.astype(float_type)
                if len(table.columns[name]) == 3 and not (ratio == 1).all():
                    column = column.astype("Float64") * ratio[axis]
                end = f"_{AXES[axis]}" if len(table.columns[name]) == 3 else ""
                columns[f"{name}{suffix}{end}"] = column
    answer.frame = pd.DataFrame(columns)
    if len(answer.frame) == limit:
        # The service never closes the quotation mark.
        answer.warnings.append(f'201 - "Limited query to {limit} rows')
    for table, _, _ in parts:
        if table.notice:
            answer.warnings.append(f"Table Owner Notice on {table.name}: {table.notice}")
    return answer


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
