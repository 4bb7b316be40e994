"""Typed raw tables: the columns that each role requires, and checks on them.

A raw table is a pandas DataFrame. `typed_table` returns it with the required columns typed: ids as
int64, text as object. It raises `SchemaError` for problems that would otherwise silently give wrong
results later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from microns_xr.columns import as_ids, require_columns, text_column, tidy_columns
from microns_xr.errors import SchemaError, require_instance, warn_of_dropped_rows
from microns_xr.releases import TableSpec

logger = logging.getLogger(__name__)

SCAN_KEYS = ("session", "scan_idx", "unit_id")
SCAN_IDS: Mapping[str, int | None] = dict.fromkeys(SCAN_KEYS)

# Columns of the annotation service that do not describe the neuron.
HOUSEKEEPING = frozenset(
    {"id", "id_ref", "created", "created_ref", "superceded_id", "superceded_id_ref", "valid",
     "valid_ref", "pt_supervoxel_id", "pt_position", "pt_position_x", "pt_position_y",
     "pt_position_z", "bb_start_position", "bb_end_position", "volume"}
)  # fmt: skip


INVALID = "n_invalid_rows"  # attribute of a table, and of what is made of it

_FLAGS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}


def valid_rows(table: pd.DataFrame, name: str, keep: Iterable[str] = ()) -> pd.DataFrame:
    """Return a table without the rows that it marks as not valid, and with plain names."""
    return without_invalid(tidy_columns(table, name, keep), name)


def without_invalid(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table without the rows that it marks as not valid, counted in its attributes."""
    # The service leaves out rows that were deleted or replaced; dumps and own files keep them.
    invalid = np.zeros(len(table), dtype=bool)
    for column in ("valid", "valid_ref"):
        if column in table.columns and table.columns.is_unique:
            invalid |= is_false(table[column], f"{name}.{column}")
    n = int(invalid.sum())
    if not n:
        return table
    if n == len(table):
        raise SchemaError(
            f"all {n} rows of {name} are marked as not valid, expected valid ones: fetch the table "
            "again, or drop its column 'valid' if it means something else"
        )
    logger.info("%s: %d of %d rows are not valid and left out", name, n, len(table))
    result = table[~invalid]
    result.attrs = {**table.attrs, INVALID: n + table.attrs.get(INVALID, 0)}
    return result


def is_false(flags: pd.Series, where: str) -> np.ndarray:
    """Return which flags are false: booleans, 0 and 1, or words of Postgres; not where missing."""
    codes, words = pd.factorize(flags)
    known = [_FLAGS.get(str(word).strip().lower().removesuffix(".0")) for word in words]
    if None in known:
        raise SchemaError(
            f"{where} holds {words[known.index(None)]!r}, expected t or f, true or false: rename "
            "the column if it does not say whether a row is valid"
        )
    return np.append(~np.array(known, dtype=bool), False)[codes]


def typed_table(
    table: pd.DataFrame,
    spec: TableSpec,
    ids: Mapping[str, int | None],
    text: Iterable[str] = (),
    *,
    optional: Iterable[str] = (),
    unique: Iterable[str] = (),
) -> pd.DataFrame:
    """Return a table of valid rows with its ids as int64 and text as object first.

    `ids` maps columns to the number that replaces a null, None if a null is an error.
    """
    name, text = spec.name, list(dict.fromkeys(text))
    if "session" in ids:
        table = _with_scan_keys(table, spec)
    required = [c for c in (*ids, *text) if c not in optional]
    require_columns(table, name, [*table.columns, *required])  # and none may be repeated
    if table.empty:
        raise SchemaError(
            f"{name} has no rows, expected at least one: the download or the file is incomplete; "
            "fetch it again"
        )
    typed: dict[str, Any]
    typed = {c: as_ids(table[c], f"{name}.{c}", ids[c]) for c in ids if c in table.columns}
    typed |= {c: text_column(table[c], name) for c in text if c in table.columns}
    rest = {str(c): table[c] for c in table.columns if c not in typed}
    result = pd.DataFrame({**typed, **rest}, index=table.index).reset_index(drop=True)
    result.attrs = dict(table.attrs)
    if (keys := list(unique)) and (repeated := result.duplicated(keys)).any():
        raise SchemaError(
            f"{name} repeats {int(repeated.sum())} of {len(table)} keys ({', '.join(keys)}), "
            f"first: {_first(result[repeated], keys)}, expected each once: drop rows that were "
            "joined from two tables or downloads, or select rows first"
        )
    return result


def _with_scan_keys(table: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """Add the keys of recorded units that a table has under other names."""
    added = {}
    for key, names in spec.scan_columns.items():
        if key in table.columns or not set(names) <= set(table.columns):
            continue
        first, *others = (as_ids(table[name], f"{spec.name}.{name}") for name in names)
        for name, digit in zip(names[1:], others, strict=True):
            if ((digit < 0) | (digit > 9)).any():
                raise SchemaError(
                    f"{spec.name}.{name} holds {digit.max()}, expected 0 to 9, since it is a digit "
                    f"of {key}, which is made of {', '.join(names)}"
                )
            first = 10 * first + digit
        added[key] = first
    return table.assign(**added)


def with_target_ids(
    table: pd.DataFrame, spec: TableSpec, nuclei: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return a table with the nucleus of each row as ``target_id``, found by its key or root."""
    if "target_id" in table.columns:
        return table
    if "nucleus_id" in table.columns:
        return table.rename(columns={"nucleus_id": "target_id"})
    if spec.key_column in table.columns:
        return table.assign(target_id=table[spec.key_column])
    if nuclei is None or "pt_root_id" not in table.columns:
        return table
    roots = as_ids(table["pt_root_id"], f"{spec.name}.pt_root_id", missing=0)
    known = as_ids(nuclei["pt_root_id"], "pt_root_id of the nuclei", missing=0)
    require_shared_ids(roots, known, f"{spec.name}.pt_root_id")
    unique, first, n_nuclei = np.unique(known, return_index=True, return_counts=True)
    place = pd.Index(unique).get_indexer(roots)
    # -1 for a root of no nucleus or of several.
    alone = (place >= 0) & (roots > 0) & (n_nuclei[place] == 1)
    ids = as_ids(nuclei["id"], "id of the nuclei")
    return table.assign(target_id=np.where(alone, ids[first[place]], -1))


def _first(rows: pd.DataFrame, keys: list[str]) -> Any:
    values = rows[keys].iloc[0].tolist()
    return values[0] if len(values) == 1 else tuple(values)


def _too_few(n_found: int, n: int, by_root: bool) -> bool:
    """Whether surprisingly few rows of a table match a nucleus."""
    # In tables by root, 0.82 to 1 of the rows match a nucleus of their own release (v661, v1300),
    # 0.10 to 0.80 one of the other. Nucleus ids are the same in both. A few rows say nothing.
    return n_found < n * (0.81 if by_root and n - n_found > 10 else 0.5)


def require_shared_ids(ids: Any, known: Any, column: str) -> None:
    """Raise if a table has no row of a nucleus; warn if surprisingly many rows have none."""
    ids = as_ids(ids, column, missing=-1)
    found = (ids > 0) & np.isin(ids, as_ids(known, "ids of the nuclei", missing=0))
    n, n_found = len(ids), int(found.sum())
    what = f"{n - n_found} of {n} rows of {column} meet no nucleus"
    advice = "pass the table of the same release and datastack"
    if not n_found:
        raise SchemaError(f"{what} of the nucleus table, expected the ids of its rows: {advice}")
    if _too_few(n_found, n, column.endswith("pt_root_id")):
        warn_of_dropped_rows(f"{what}, so that their neurons count as not listed: {advice}")


def warn_of_other_release(roots: Any, known: Any, advice: str) -> None:
    """Warn if so few rows of a table match a unit by root that it must be of another release."""
    n, n_found = len(roots), int(np.isin(roots, known).sum())
    if _too_few(n_found, n, by_root=True):
        warn_of_dropped_rows(
            f"{n - n_found} of {n} rows of the table match no unit by pt_root_id, as in a table of "
            f"another release: {advice}"
        )


def _annotation_suffix(table: pd.DataFrame) -> str:
    """Return the suffix of the annotation's own ``id`` and ``created``."""
    # In a table that the service merged with the nuclei the other pair is the nucleus's, whose ids
    # are those of target_id; which of them has the suffix depends on the call that fetched it.
    if "target_id" not in table.columns:
        return ""
    target = as_ids(table["target_id"], "target_id", missing=-1)
    names = {suffix: f"id{suffix}" for suffix in ("", "_ref") if f"id{suffix}" in table}
    same = {
        suffix: float((as_ids(table[name], name, missing=-1) == target).mean())
        for suffix, name in names.items()
    }
    if len(same) == 2:
        return "_ref" if same[""] > same["_ref"] else ""
    other = {"": "_ref", "_ref": ""}
    for suffix, share in same.items():  # the other id was dropped
        return other[suffix] if share == 1 and f"created{other[suffix]}" in table else suffix
    if {"created", "created_ref"} <= set(table.columns):  # that of a nucleus is always the same
        n_times = table.groupby("target_id")[["created", "created_ref"]].nunique().max()
        return "_ref" if n_times["created"] == 1 else ""
    return ""


_TIE = "rank of the values"  # a name that no column has


def latest_by(
    table: pd.DataFrame, name: str, key: str | list[str], values: list[str]
) -> tuple[pd.DataFrame, int]:
    """Select one row per key, by the latest ``created``, then the highest ``id``.

    Return also the number of keys with contradicting rows.
    """
    keys = [key] if isinstance(key, str) else key
    if not table.duplicated(keys).any():
        return table.sort_values(keys, ignore_index=True), 0
    distinct = table.drop_duplicates([*keys, *values])
    contradicted = distinct.loc[distinct.duplicated(keys), keys].drop_duplicates()
    suffix = _annotation_suffix(table)
    order = [c for c in (f"created{suffix}", f"id{suffix}") if c in table.columns]
    if len(contradicted) and not order:
        raise SchemaError(
            f"{name} gives {len(contradicted)} {', '.join(keys)} several different {values}, "
            f"first: {_first(contradicted, keys)}, expected 'created' or 'id' to find the latest: "
            "keep one row for each"
        )
    time = f"created{suffix}"
    if time in order:
        try:
            created = pd.to_datetime(table[time], utc=True, format="mixed")
        except (ValueError, TypeError) as error:
            raise SchemaError(
                f"{name}.{time} holds a value that is not a time ({error}): correct it, or drop "
                "the column"
            ) from error
        table = table.assign(**{time: created})
    # A row without a time is never the latest. Of rows equal in both, the last in the order of the
    # values is taken, whatever their order in the file.
    rank = pd.Series(0, index=table.index)
    ties = table.duplicated([*keys, *order], keep=False)
    if len(contradicted) and ties.any():
        text = table.loc[ties, values].astype(str).agg("\0".join, axis=1)
        rank[ties] = np.unique(text, return_inverse=True)[1]
    table = table.assign(**{_TIE: rank})
    latest = table.sort_values([*keys, *order, _TIE], kind="stable", na_position="first")
    latest = latest.drop_duplicates(keys, keep="last", ignore_index=True).drop(columns=_TIE)
    return latest, len(contradicted)


def by_role(
    tables: Mapping[str, pd.DataFrame], roles: Mapping[str, str]
) -> dict[str, pd.DataFrame]:
    """Return tables by role, from tables by role or by table name."""
    require_instance("tables", tables, Mapping, "a mapping of roles to DataFrames")
    role_of = {**{name: role for role, name in roles.items()}, **{role: role for role in roles}}
    out: dict[str, pd.DataFrame] = {}
    for key, table in tables.items():
        if key not in role_of:
            raise SchemaError(
                f"tables holds {key!r}, expected roles {list(roles)} or their tables "
                f"{list(roles.values())}"
            )
        if role_of[key] in out:
            raise SchemaError(f"tables holds {role_of[key]!r} twice, by role and by name: keep one")
        out[role_of[key]] = valid_rows(table, roles.get(role_of[key], key))
    return out
