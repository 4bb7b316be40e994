"""Typed raw tables: which columns a table of each role needs, and the checks on them.

A raw table is a pandas DataFrame. `typed_table` returns the columns that are needed, ids as int64
(nullable ones as Int64), text as object, positions as one array, and raises `SchemaError` for what
would otherwise go wrong later without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from microns_xr.columns import id_column, require_columns, text_column
from microns_xr.errors import SchemaError
from microns_xr.releases import TableSpec, table_spec

SCAN_KEYS = ("session", "scan_idx", "unit_id")

# Columns of the annotation service that say nothing about the neuron.
HOUSEKEEPING = frozenset(
    {"id", "id_ref", "created", "created_ref", "superceded_id", "superceded_id_ref", "valid",
     "valid_ref", "pt_supervoxel_id", "pt_position", "pt_position_x", "pt_position_y",
     "pt_position_z", "bb_start_position", "bb_end_position", "volume"}
)  # fmt: skip

ColumnKind = Literal["id", "nullable_id", "text", "float"]


@dataclass(frozen=True)
class Column:
    """One column a role needs."""

    name: str
    kind: ColumnKind
    required: bool = True


def _columns_of(role: str, spec: TableSpec) -> list[Column]:
    scan_unit = [Column(key, "id") for key in SCAN_KEYS]
    if role == "nucleus":
        return [Column("id", "id"), Column("pt_root_id", "nullable_id")]
    if role in ("celltype", "celltype_fine", "celltype_corrections"):
        columns = [Column("target_id", "id"), Column("id", "id", False)]
        if spec.has_classes:
            columns.append(Column(spec.class_column, "text"))
        if spec.has_types:
            columns.append(Column("cell_type", "text"))
        return columns
    if role == "brain_area":
        return [Column("target_id", "id"), Column("tag", "text"), Column("id", "id", False)]
    if role == "proofreading":
        columns = [
            Column("pt_root_id", "nullable_id"),
            Column("valid_id", "nullable_id", False),
            Column(spec.axon_column, "text"),
            Column(spec.dendrite_column, "text"),
        ]
        status = [Column(n, "text", False) for n in ("status_axon", "status_dendrite")]
        return columns + [
            c for c in status if c.name not in (spec.axon_column, spec.dendrite_column)
        ]
    if role in ("coregistration", "coregistration_auto", "functional_properties"):
        return [
            Column("target_id", "nullable_id"),
            *scan_unit,
            Column("pt_root_id", "nullable_id", False),
        ]
    if role == "tuning_curves":
        return scan_unit
    raise SchemaError(f"there are no column rules for the role {role!r}")


def typed_table(
    table: pd.DataFrame, role: str, spec: TableSpec | str, *, unique: Iterable[str] = ()
) -> pd.DataFrame:
    """Return the columns a role needs, typed and checked."""
    spec = table_spec(spec) if isinstance(spec, str) else spec
    name = spec.name
    if not isinstance(table, pd.DataFrame):
        raise SchemaError(f"{name} is a {type(table).__name__}, expected a pandas DataFrame")
    columns = _columns_of(role, spec)
    require_columns(table, name, [c.name for c in columns if c.required])
    if table.empty:
        raise SchemaError(
            f"{name} has no rows, expected at least one: the download or the file is incomplete; "
            "fetch it again"
        )
    out: dict[str, Any] = {}
    for column in columns:
        if column.name not in table.columns:
            continue
        values = table[column.name]
        if column.kind == "text":
            out[column.name] = text_column(values, name)
        else:
            out[column.name] = id_column(values, name, nullable=column.kind == "nullable_id")
    rest = {str(c): table[c] for c in table.columns if c not in out}
    typed = pd.DataFrame({**out, **rest}, index=table.index).reset_index(drop=True)
    require_unique(typed, name, list(unique))
    return typed


def require_unique(table: pd.DataFrame, name: str, keys: list[str]) -> None:
    """Raise `SchemaError` if rows share the same keys."""
    if not keys:
        return
    repeated = table.duplicated(keys)
    if repeated.any():
        first = table.loc[repeated, keys].iloc[0].tolist()
        shown = first[0] if len(first) == 1 else tuple(first)
        raise SchemaError(
            f"{name} repeats {int(repeated.sum())} of {len(table)} keys ({', '.join(keys)}), "
            f"first: {shown}: each must name one row; two tables or two downloads were joined, "
            "or rows must be chosen first"
        )


def latest_by(
    table: pd.DataFrame, name: str, key: str | list[str], values: list[str]
) -> tuple[pd.DataFrame, int]:
    """Keep one row a key: the latest ``created``, then the highest ``id``."""
    keys = [key] if isinstance(key, str) else list(key)
    if not table.duplicated(keys).any():
        return table.sort_values(keys, ignore_index=True), 0
    distinct = table.drop_duplicates([*keys, *values])
    repeated = distinct.loc[distinct.duplicated(keys), keys].drop_duplicates()
    contradicted = len(repeated)
    order = [c for c in ("created", "id") if c in table.columns]
    if contradicted and not order:
        first = repeated.iloc[0].tolist()
        raise SchemaError(
            f"{name} gives {contradicted} {', '.join(keys)} several different {values}, first: "
            f"{first[0] if len(first) == 1 else tuple(first)}, and "
            "has neither 'created' nor 'id' to tell the latest: keep one row for each"
        )
    frame = table
    if "created" in order:
        try:
            created = pd.to_datetime(table["created"], utc=True, format="mixed")
        except (ValueError, TypeError) as error:
            raise SchemaError(
                f"{name}.created holds what is no time ({error}): correct it, or leave the "
                "column out"
            ) from error
        frame = table.assign(created=created)
    # A row that does not say when is never the latest.
    latest = frame.sort_values([*keys, *order], kind="stable", na_position="first")
    latest = latest.drop_duplicates(keys, keep="last")
    return latest.reset_index(drop=True), int(contradicted)


def by_role(
    tables: Mapping[str, pd.DataFrame], roles: Mapping[str, str]
) -> dict[str, pd.DataFrame]:
    """Sort tables given by role or by table name under their roles."""
    role_of = {name: role for role, name in roles.items()}
    out = {}
    for key, table in tables.items():
        role = key if key in roles else role_of.get(key)
        if role in out:
            raise SchemaError(f"tables holds {role!r} twice, by role and by name: keep one")
        if role is None:
            raise SchemaError(
                f"tables holds {key!r}, expected roles {list(roles)} or their tables "
                f"{list(roles.values())}"
            )
        out[role] = table
    return out
