"""Read columns of raw tables: exact integer ids, text, arrays and positions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import SchemaError, nearest, require_instance
from microns_xr.schema import AXES, EXACT, FUNCTIONAL, ROUNDED, UNITS, require_unrounded

MISSING_TEXT = "unknown"
_INT64 = np.iinfo(np.int64)

# What pandas and pyarrow call an index that has no name.
_UNNAMED = re.compile(r"(Unnamed: \d+|__index_level_\d+__)?")
_PARTNERS = ("pre_pt_root_id", "post_pt_root_id", "pre_nucleus_id", "post_nucleus_id")
_POINTS = ("pt_position", "ctr_pt_position")
# Columns of raw tables that this package reads, by their name in lower case.
_SPELLING = {
    name.lower(): name
    for name in (
        *(*UNITS, *FUNCTIONAL, *_PARTNERS, *_POINTS),
        *(f"{base}_{axis}" for base in _POINTS for axis in AXES),
        *("id", "id_ref", "target_id", "valid_id", "valid", "created", "created_ref", "tag"),
        *("status_axon", "status_dendrite", "broad_type", "volume", "size", "synapse_id"),
    )
}


def tidy_columns(
    table: pd.DataFrame, what: str, keep: Iterable[str] = (), *, spelling: bool = True
) -> pd.DataFrame:
    """Return a table with plain names, except in `keep`, without the unnamed index of pandas."""
    is_path = isinstance(table, str | os.PathLike)
    hint = ": read it with pd.read_csv or pd.read_parquet" if is_path else ""
    require_instance(what, table, pd.DataFrame, f"a pandas DataFrame{hint}")
    names, dropped, keep = [], [], set(keep)
    for i, column in enumerate(table.columns):
        name = str(column)
        plain = name if name in keep else name.strip("\ufeff \t\r")
        if plain not in keep:
            if _UNNAMED.fullmatch(plain) and pd.api.types.is_integer_dtype(table.dtypes.iloc[i]):
                dropped.append(i)
            elif spelling:
                plain = _SPELLING.get(plain.lower(), plain)
        names.append(plain)
    # Two spellings of one name are two columns.
    names = [
        new if names.count(new) == 1 else str(old)
        for new, old in zip(names, table.columns, strict=True)
    ]
    if not dropped and names == list(table.columns):
        return table
    tidy = table.set_axis(pd.Index(names, dtype=object), axis=1)
    return tidy.iloc[:, [i for i in range(len(names)) if i not in dropped]]


def _id_from_object(value: Any, where: str) -> Any:
    text = isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value.strip())
    if text or (isinstance(value, int | np.integer) and not isinstance(value, bool)):
        _require_int64(int(value), where)
        return int(value)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return pd.NA
    raise SchemaError(
        f"{where} holds {value!r}, expected an integer id, or text of digits: check the column "
        "and its file; if neurons have names, number the neurons once, number = {name: i for i, "
        "name in enumerate(names)}, and replace them in every table by table[column].map(number)"
    )


def _require_int64(number: Any, where: str) -> None:
    # The maximum of an empty column is null.
    if not pd.isna(number) and not _INT64.min <= int(number) <= _INT64.max:
        raise SchemaError(
            f"{where} holds {int(number)}, expected ids below 2**63 and numbers that fit int64: "
            "convert the column to text or to floats, or drop it"
        )


def as_ids(ids: Any, what: str, missing: int | None = None) -> np.ndarray:
    """Read one id or any collection of ids as int64, exactly; `missing` replaces nulls."""
    if isinstance(ids, xr.Dataset):
        if "nucleus_id" not in ids.coords:
            raise SchemaError(
                f"{what} is a Dataset without nucleus_id, found the coordinates "
                f"{list(map(str, ids.coords))}: pass units, or a collection of nucleus ids"
            )
        ids = ids["nucleus_id"]
    if isinstance(ids, str | bytes | Mapping) or ids is None:
        raise SchemaError(
            f"{what} is {ids!r}, expected integer ids or a collection of them, such as those of "
            "mx.select_units(units, ...)"
        )
    if isinstance(ids, Iterable) and not isinstance(
        ids, np.ndarray | xr.DataArray | pd.Series | pd.Index | list
    ):
        ids = list(ids)
    if not isinstance(ids, pd.Series | pd.Index):
        ids = np.atleast_1d(np.asarray(ids))
        if ids.ndim != 1:
            raise SchemaError(f"{what} has {ids.ndim} dimensions, expected one list of ids")
    column = pd.Series(ids)
    # numpy and pandas represent empty collections and all-null columns as float.
    if not len(column) or (missing is not None and column.isna().all()):
        return np.full(len(column), missing or 0, dtype=np.int64)
    dtype = column.dtype
    if pd.api.types.is_bool_dtype(dtype):
        raise SchemaError(f"{what} has dtype bool, expected int64 ids: check the column's name")
    if pd.api.types.is_float_dtype(dtype):
        column = _whole_floats(column, what)
        dtype = column.dtype
    if not pd.api.types.is_integer_dtype(dtype):
        column = pd.Series(pd.array([_id_from_object(v, what) for v in column], dtype="Int64"))
    if pd.api.types.is_unsigned_integer_dtype(dtype):
        _require_int64(column.max(), what)
    n_null = int(column.isna().sum())
    if n_null and missing is None:
        raise SchemaError(
            f"{what} has {n_null} nulls in {len(column)} rows, expected an id in every row: "
            "drop those rows, or download the table again with "
            "mx.Release(...).download(refresh=True)"
        )
    if n_null:
        column = column.astype("Int64").fillna(missing)  # unsigned dtypes cannot hold -1
    # A copy, because pandas may return a read-only view, or the memory of the caller.
    result = column.to_numpy(dtype=np.int64, copy=True)
    require_unrounded(result, what)
    return result


def whole_numbers(column: pd.Series, where: str, least: int | None = None) -> np.ndarray:
    """Return a column of sizes or counts as int64, or raise `SchemaError`."""
    if column.empty:  # an empty table has no meaningful dtypes
        return np.zeros(0, dtype=np.int64)
    if pd.api.types.is_bool_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        raise SchemaError(f"{where} has dtype {column.dtype}, expected integers: convert it")
    if n_null := int(column.isna().sum()):
        raise SchemaError(
            f"{where} is null in {n_null} of {len(column)} rows, expected a number in every row: "
            "drop those rows if they are not synapses"
        )
    is_float = pd.api.types.is_float_dtype(column.dtype)
    numbers = column.to_numpy(dtype=np.float64) if is_float else column.to_numpy()
    if numbers.dtype == object:  # of a nullable dtype
        numbers = column.to_numpy(dtype=np.int64)
    # If the total fits int64, the sum of any pair, neuron or group does too.
    total = float(numbers.sum(dtype=np.float64))
    if least is None:  # negative numbers too
        total = float(np.abs(numbers.astype(np.float64)).sum())
    if is_float and (wrong := numbers != np.floor(numbers)).any():
        expected = "whole numbers: sizes count voxels, so undo any scaling; rename another weight"
    elif least is not None and (wrong := numbers < least).any():
        # A synapse of size 0 is valid data; a pair of 0 synapses is a mistake.
        expected = f"{least} or more: drop rows that are not synapses"
    elif not total <= 9.2e18:
        wrong = numbers == numbers.max()
        expected = f"whole numbers below 2**63, and less than 9.2e18 in all: it sums to {total:.3g}"
    else:
        return numbers.astype(np.int64)
    some = f"{numbers[wrong][0]} ({int(wrong.sum())} such rows)"
    raise SchemaError(f"{where} holds {some}, expected {expected}")


def require_once(ids: np.ndarray, what: str) -> None:
    """Raise if an id is repeated."""
    if (ids[1:] > ids[:-1]).all():  # as CAVE sends them
        return
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        raise SchemaError(
            f"{what} repeats {repeated.size} ids, such as {repeated[0]}, expected each synapse "
            "once: the parts that were joined overlap, drop the duplicates"
        )


def _whole_floats(column: pd.Series, what: str) -> pd.Series:
    """Return floats that hold their ids exactly as nullable integers."""
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    present = values[~np.isnan(values)]
    # 2**53 itself may have been 2**53 + 1; single precision is exact up to 2**24 only.
    exact = EXACT if column.dtype.name.lower().startswith(("float64", "double")) else 2**24
    if (~(np.abs(present) < exact) | (present != np.floor(present))).any():
        raise SchemaError(f"{what} has dtype {column.dtype}, expected int64: {ROUNDED}")
    missing = np.isnan(values)
    whole = pd.Series(np.where(missing, 0, values).astype(np.int64), index=column.index)
    return whole.astype("Int64").mask(missing)


def text_column(column: pd.Series, table: str) -> pd.Series:
    """Return a text column as object, with None for missing values."""
    dtype = column.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not column.isna().all():
        raise SchemaError(
            f"{table}.{column.name} has dtype {dtype}, expected text: check the column's name"
        )
    codes, words = pd.factorize(column.astype(object))
    # HDF5 stores text as bytes, whose str() is "b'...'".
    texts = (w.decode("utf-8", "replace") if isinstance(w, bytes) else str(w) for w in words)
    clean = [text.strip() or None for text in texts]
    # Code -1, for a missing value, selects the None at the end.
    values = np.array([*clean, None], dtype=object)[codes]
    return pd.Series(values, index=column.index, name=column.name, dtype=object)


def plain_values(column: pd.Series, table: str, *, as_float: bool = False) -> np.ndarray:
    """Convert a column to bool, int64, float64 or text, by its values rather than its dtype."""
    where = f"{table}.{column.name}"
    if str(column.name).endswith("root_id"):
        as_ids(column, where, missing=0)  # raises if they went through floats
    values = _plain(column, table, where)
    if not values.flags.writeable:  # pandas 3 returns read-only views of its columns
        values = values.copy()
    if not as_float:
        return values
    missing = column.isna().to_numpy(dtype=bool)
    if missing.all():
        return np.full(len(column), np.nan)
    if values.dtype.kind not in "if":
        raise SchemaError(
            f"{where} has dtype {column.dtype}, expected numbers: convert it with pandas.to_numeric"
        )
    return np.where(missing, np.nan, values.astype(np.float64))


def _plain(column: pd.Series, table: str, where: str) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        text = column.astype(str).astype(object)
        return text.where(column.notna(), MISSING_TEXT).to_numpy(object)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    kind = pd.api.types.infer_dtype(column, skipna=True)
    missing = column.isna().to_numpy(dtype=bool)
    present = column[~missing]
    if kind == "boolean":
        if not missing.any():
            return column.to_numpy(dtype=bool)
        words = column.map({True: "true", False: "false"}).astype(object)
        return words.where(~missing, MISSING_TEXT).to_numpy(object)
    if kind == "integer":
        _require_int64(present.max(), where)
        _require_int64(present.min(), where)
        out = np.full(len(column), -1, dtype=np.int64)
        out[~missing] = present.to_numpy(dtype=np.int64)
        return out
    if kind in ("floating", "mixed-integer-float"):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind == "mixed" and column.map(pd.api.types.is_list_like).any():
        raise SchemaError(
            f"{where} holds lists or arrays, expected one value per row: split it into columns of "
            "numbers first, or drop it"
        )
    return text_column(column, table).fillna(MISSING_TEXT).to_numpy(object)


def plain_array(values: np.ndarray, name: str) -> np.ndarray:
    """Convert an array to a dtype of the data model: text and times to object, uint to int64."""
    kind = values.dtype.kind
    if kind == "u":
        _require_int64(values.max(initial=0), name)
        return values.astype(np.int64)
    if kind == "S":
        return np.char.decode(values, "utf-8", "replace").astype(object)
    if kind in "UT":
        return values.astype(object)
    if kind in "mM":
        return plain_values(pd.Series(values.ravel(), name=name), name).reshape(values.shape)
    return values


def require_columns(table: pd.DataFrame, name: str, columns: Iterable[str]) -> None:
    """Raise unless a table has every column exactly once."""
    require_instance(name, table, pd.DataFrame, "a DataFrame")
    columns = list(columns)
    repeated = sorted({str(c) for c in table.columns[table.columns.duplicated()] if c in columns})
    if repeated:
        raise SchemaError(
            f"{name} has several columns {repeated}, expected each once: rename them, or keep "
            "the first with table.loc[:, ~table.columns.duplicated()]"
        )
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise SchemaError(
            f"{name} lacks the columns {missing}, found {list(map(str, table.columns))}"
            f"{nearest(missing[0], table.columns)}: it may be another table or another release"
        )


def parse_arrays(column: pd.Series, table: str) -> np.ndarray:
    """Convert a column of arrays, or of arrays written as text, to one numeric array."""
    where = f"{table}.{column.name}"
    cells = list(column)
    blank = np.array([isinstance(cell, str) and not cell.strip() for cell in cells], dtype=bool)
    missing = blank | column.isna().to_numpy(dtype=bool)
    present = np.flatnonzero(~missing)
    if not len(present):
        raise SchemaError(f"{where} has no values, expected arrays of numbers")
    rows = []
    for row in present:
        words = value = cells[row]
        if isinstance(value, str):
            # numpy 2 prints the numbers of a list as np.int64(5).
            words = re.sub(r"np\.\w+\(([^()]*)\)", r"\1", value)
            words = words.strip().strip("[]()").replace(",", " ").split()
        try:
            rows.append(np.asarray(words, dtype=np.float64).ravel())
        except (ValueError, TypeError):
            raise SchemaError(
                f"{where} row {row} is {str(value)[:60]!r}, expected numbers in brackets "
                "(numpy shortens long arrays with '...' when printing; save all values)"
            ) from None
    lengths = np.array([len(row) for row in rows])
    if (lengths != lengths[0]).any():
        odd = int(np.argmax(lengths != lengths[0]))
        raise SchemaError(
            f"{where} row {present[odd]} has {lengths[odd]} values, expected {lengths[0]} "
            f"as in row {present[0]}"
        )
    out = np.full((len(column), lengths[0]), np.nan)
    out[~missing] = np.stack(rows)
    return out


def positions(table: pd.DataFrame, name: str, base: str = "pt_position") -> np.ndarray:
    """Read positions in one column such as ``[x y z]`` or in three; shape (rows, 3)."""
    split = [f"{base}_{axis}" for axis in "xyz"]
    if base in table.columns and not set(split) <= set(table.columns):
        out = parse_arrays(table[base], name)
        if out.shape[1] != 3:
            raise SchemaError(
                f"{name}.{base} has {out.shape[1]} values per row, expected x, y and z"
            )
        return out
    require_columns(table, name, split)
    for column in split:
        if not pd.api.types.is_numeric_dtype(table[column].dtype):
            raise SchemaError(f"{name}.{column} has dtype {table[column].dtype}, expected numbers")
    columns = [table[column].to_numpy(dtype=np.float64, na_value=np.nan) for column in split]
    return np.stack(columns, axis=1)
