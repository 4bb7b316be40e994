"""Single columns of raw tables: ids as integers, text as text, arrays and positions as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from microns_xr.errors import SchemaError, nearest_words

__all__ = ["id_column", "parse_arrays", "positions", "require_columns", "text_column"]


def id_column(column: pd.Series, table: str, nullable: bool = False) -> pd.Series:
    """Check that a column of ids is integers, and return it as int64 (Int64 where nullable).

    Parameters
    ----------
    column : pandas.Series
        Any integer dtype, or text made of digits.
    table : str
        Name of the table, for messages.
    nullable : bool, optional
        Whether a row may lack an id; the result then is Int64.

    Returns
    -------
    pandas.Series
        The ids.

    Raises
    ------
    SchemaError
        For floats, which cannot hold 18-digit ids, for text that is no integer, and for nulls
        where there must be none.

    Examples
    --------
    >>> id_column(pd.Series([8.64691135e17], name="pt_root_id"), "synapses_pni_2")
    Traceback (most recent call last):
    microns_xr.errors.SchemaError: synapses_pni_2.pt_root_id has dtype float64, expected int64: ...
    """
    where = f"{table}.{column.name}"
    dtype = column.dtype
    if pd.api.types.is_bool_dtype(dtype):
        raise SchemaError(f"{where} has dtype bool, expected int64 ids: check the column's name")
    if pd.api.types.is_float_dtype(dtype):
        if column.isna().all() and nullable:
            return pd.Series(
                pd.array([pd.NA] * len(column), dtype="Int64"), column.index, name=column.name
            )
        raise SchemaError(
            f"{where} has dtype {dtype}, expected int64: 18-digit ids are rounded by floats "
            "(neighbours of 8.6e17 are 128 apart); read the table again with "
            "mx.Release(...).table, or with pandas.read_csv(..., dtype={column: 'Int64'})"
        )
    if not pd.api.types.is_integer_dtype(dtype):
        column = _ids_from_objects(column, where)
    n_null = int(column.isna().sum())
    if n_null and not nullable:
        raise SchemaError(
            f"{where} has {n_null} empty values among {len(column)}, expected an id in every row: "
            "drop those rows, or download the table again"
        )
    if column.dtype == np.uint64 and len(column) and int(column.max()) > np.iinfo(np.int64).max:
        raise SchemaError(f"{where} holds {int(column.max())}, expected ids below 2**63")
    return column.astype("Int64" if nullable else np.int64)


def _is_integer(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lstrip("-").isdigit()
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _ids_from_objects(column: pd.Series, where: str) -> pd.Series:
    values: list[Any] = []
    for value in column:
        if _is_integer(value):
            values.append(int(value))
        elif value is None or pd.isna(value):
            values.append(pd.NA)
        else:
            raise SchemaError(
                f"{where} holds {value!r}, expected an integer id: check the column and its file"
            )
    return pd.Series(pd.array(values, dtype="Int64"), index=column.index, name=column.name)


def text_column(column: pd.Series, table: str) -> pd.Series:
    """Check that a column is text, and return it as object with None where there is nothing.

    Parameters
    ----------
    column : pandas.Series
        Text of any pandas dtype; an all-empty column of any dtype.
    table : str
        Name of the table, for messages.

    Returns
    -------
    pandas.Series
        Stripped text, object dtype; empty text and nulls are None.

    Raises
    ------
    SchemaError
        If the column holds numbers.

    Examples
    --------
    >>> text_column(pd.Series(["23P ", "", None]), "celltypes").tolist()
    ['23P', None, None]
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(object)
    elif pd.api.types.is_numeric_dtype(dtype) and not column.isna().all():
        raise SchemaError(
            f"{table}.{column.name} has dtype {dtype}, expected text: check the column's name"
        )
    codes, words = pd.factorize(column.astype(object), use_na_sentinel=True)
    clean = [str(word).strip() or None for word in words]
    table_of_words = np.array([*clean, None], dtype=object)  # code -1 picks the None at the end
    return pd.Series(table_of_words[codes], index=column.index, name=column.name, dtype=object)


def require_columns(table: pd.DataFrame, name: str, columns: Iterable[str]) -> None:
    """Raise `SchemaError` that names every column a table lacks."""
    missing = [c for c in columns if c not in table.columns]
    if missing:
        near = nearest_words(missing[0], table.columns)
        raise SchemaError(
            f"{name} lacks the columns {missing}, found {list(map(str, table.columns))}"
            + (f"; nearest to {missing[0]}: {', '.join(near)}" if near else "")
            + ": it may be another table or another release"
        )


def parse_arrays(column: pd.Series, table: str) -> np.ndarray:
    """Turn a column of arrays, or of arrays written as text, into one numeric array.

    Parameters
    ----------
    column : pandas.Series
        Arrays, lists, or text as numpy prints it: ``"[1.5 2.  0.25]"``; commas are allowed.
    table : str
        Name of the table, for messages.

    Returns
    -------
    numpy.ndarray
        Shape (rows, values), float64; NaN rows where there is nothing.

    Raises
    ------
    SchemaError
        If rows differ in length or hold something that is no number, naming the first such row.
        Nothing is evaluated as code.

    Examples
    --------
    >>> parse_arrays(pd.Series(["[1. 2.5]", "[3, 4]"]), "fits")
    array([[1. , 2.5],
           [3. , 4. ]])
    """
    where = f"{table}.{column.name}"
    missing = np.asarray(column.isna(), dtype=bool)
    present = column[~missing]
    if present.empty:
        raise SchemaError(f"{where} holds no array at all")
    rows = []
    for row, value in enumerate(present):
        if isinstance(value, str):
            words = value.strip().strip("[]()").replace(",", " ").split()
            try:
                rows.append(np.array(words, dtype=np.float64))
            except ValueError:
                raise SchemaError(
                    f"{where} row {row} is {value[:60]!r}, expected numbers in brackets "
                    "(numpy shortens long arrays with '...' when printing; save all values)"
                ) from None
        else:
            rows.append(np.asarray(value, dtype=np.float64).ravel())
    lengths = np.array([len(row) for row in rows])
    if (lengths != lengths[0]).any():
        odd = int(np.argmax(lengths != lengths[0]))
        raise SchemaError(
            f"{where} row {odd} has {lengths[odd]} values, expected {lengths[0]} "
            "as in the first row"
        )
    out = np.full((len(column), lengths[0]), np.nan)
    out[~missing] = np.stack(rows)
    return out


def positions(table: pd.DataFrame, name: str, base: str = "pt_position") -> np.ndarray:
    """Read positions, whether split in columns or written as ``[x y z]``.

    Parameters
    ----------
    table : pandas.DataFrame
        With ``base_x``, ``base_y``, ``base_z``, or one column ``base`` of arrays or text.
    name : str
        Name of the table, for messages.
    base : str, optional
        Name of the position.

    Returns
    -------
    numpy.ndarray
        Shape (rows, 3), float64, in the voxels of the table.

    Raises
    ------
    SchemaError
        If there are no such columns, or they are no positions.

    Examples
    --------
    >>> positions(pd.DataFrame({"pt_position": ["[1 2 3]"]}), "nuclei")
    array([[1., 2., 3.]])
    """
    split = [f"{base}_{axis}" for axis in "xyz"]
    if all(column in table.columns for column in split):
        parts = []
        for column in split:
            if not pd.api.types.is_numeric_dtype(table[column].dtype):
                raise SchemaError(
                    f"{name}.{column} has dtype {table[column].dtype}, expected numbers"
                )
            parts.append(table[column].to_numpy(dtype=np.float64, na_value=np.nan))
        return np.stack(parts, axis=1)
    require_columns(table, name, split if base not in table.columns else [base])
    out = parse_arrays(table[base], name)
    if out.shape[1] != 3:
        raise SchemaError(f"{name}.{base} has {out.shape[1]} values a row, expected x, y and z")
    return out
