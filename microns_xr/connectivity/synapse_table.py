"""Reading a table of synapses or of pairs: which columns, which ids, what a row counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from microns_xr.columns import id_column
from microns_xr.errors import SchemaError

__all__ = ["Rows", "SynapseTable", "read_synapse_table", "whole_numbers"]

Rows = Literal["auto", "synapse", "pair"]

_NAME = "synapses"
_SIZES = ("size", "sum_size", "synapse_size")
_COUNTS = ("n_syn", "synapse_count")
_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class SynapseTable:
    """A table of synapses as arrays of one value a row.

    Attributes
    ----------
    ids : dict of str to numpy.ndarray
        int64 ids of ``"pre"`` and ``"post"``; 0 where there is none.
    null : dict of str to numpy.ndarray
        bool, rows that name no partner.
    labels : {"pt_root_id", "nucleus_id"}
        What the ids are.
    size : numpy.ndarray
        int64, voxels of 4x4x40 nm.
    count : numpy.ndarray or None
        int64 synapses of a row; None is one.
    rows : {"synapse", "pair", "auto"}
        What a row is; "auto" when the table alone does not tell.
    """

    ids: dict[str, np.ndarray]
    null: dict[str, np.ndarray]
    labels: str
    size: np.ndarray
    count: np.ndarray | None
    rows: Rows

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.size.size)


def read_synapse_table(table: pd.DataFrame, rows: Rows = "auto") -> SynapseTable:
    """Check a table of synapses or of pairs and take it apart.

    Parameters
    ----------
    table : pandas.DataFrame
        ``pre_nucleus_id`` and ``post_nucleus_id``, or ``pre_pt_root_id`` and ``post_pt_root_id``
        (nucleus ids are taken where there are both); ``size`` (or ``sum_size``,
        ``synapse_size``), voxels of 4x4x40 nm; perhaps ``n_syn`` (or ``synapse_count``), perhaps
        ``id``. Further columns are ignored.
    rows : {"auto", "synapse", "pair"}, optional
        What a row is; "auto" takes a table with a count for pairs and one with ``id`` for
        synapses.

    Returns
    -------
    SynapseTable
        Arrays.

    Raises
    ------
    SchemaError
        If columns are absent or there are two for one thing; if ids are not integers; if sizes are
        absent, negative, or no whole numbers; if counts are below 1; if an ``id`` is repeated; or
        if `rows` contradicts the columns.

    Examples
    --------
    >>> read_synapse_table(pd.DataFrame({"pre_nucleus_id": [1], "post_nucleus_id": [2]}))
    Traceback (most recent call last):
    microns_xr.errors.SchemaError: synapses has none of the columns ('size', ...
    """
    if not isinstance(table, pd.DataFrame):
        raise SchemaError(f"synapses is a {type(table).__name__}, expected a pandas DataFrame")
    if rows not in ("auto", "synapse", "pair"):
        raise SchemaError(f"rows is {rows!r}, expected one of ('auto', 'synapse', 'pair')")
    labels = _label_kind(table)
    ids, null = {}, {}
    for side in ("pre", "post"):
        column = id_column(table[f"{side}_{labels}"], _NAME, nullable=True)
        null[side] = np.asarray(column.isna(), dtype=bool)
        ids[side] = column.to_numpy(dtype=np.int64, na_value=0)
    size_name, count_name = _one_of(table, _SIZES), _one_of(table, _COUNTS)
    if size_name is None:
        raise SchemaError(
            f"synapses has none of the columns {_SIZES}, found {list(map(str, table.columns))}: "
            "rename the one that holds the size"
        )
    size = whole_numbers(table[size_name], at_least=0)
    count = None if count_name is None else whole_numbers(table[count_name], at_least=1)
    if rows == "synapse" and count is not None:
        raise SchemaError(
            f"rows is 'synapse' but synapses has the column {count_name}, which counts the "
            "synapses of a pair: drop the column, or pass rows='pair'"
        )
    if "id" in table.columns and rows != "pair" and count is None:
        _require_unique(table["id"])
        rows = "synapse"
    return SynapseTable(ids, null, labels, size, count, "pair" if count is not None else rows)


def _label_kind(table: pd.DataFrame) -> str:
    for labels in ("nucleus_id", "pt_root_id"):
        if f"pre_{labels}" in table.columns and f"post_{labels}" in table.columns:
            return labels
    raise SchemaError(
        f"synapses has the columns {list(map(str, table.columns))}, expected pre_pt_root_id and "
        "post_pt_root_id, or pre_nucleus_id and post_nucleus_id: rename them"
    )


def _one_of(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    found = [name for name in names if name in table.columns]
    if len(found) > 1:
        raise SchemaError(f"synapses has the columns {found} for one thing: drop all but one")
    return found[0] if found else None


def whole_numbers(column: pd.Series, at_least: int) -> np.ndarray:
    """Return a column of sizes or counts as int64; `SchemaError` for anything but whole numbers."""
    where = f"{_NAME}.{column.name}"
    if column.empty:  # a header alone has no dtypes
        return np.zeros(0, dtype=np.int64)
    if pd.api.types.is_bool_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        raise SchemaError(f"{where} has dtype {column.dtype}, expected integers: convert it")
    n_null = int(column.isna().sum())
    if n_null:
        raise SchemaError(
            f"{where} is empty in {n_null} of {len(column)} rows, expected a number in each: drop "
            "those rows if they are no synapses"
        )
    if pd.api.types.is_float_dtype(column.dtype):
        numbers = column.to_numpy(dtype=np.float64)  # float32, as CAVE sends it, is exact in it
        odd = ~((numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**63))
    else:
        numbers = column.to_numpy()
        if numbers.dtype == object:
            numbers = column.to_numpy(dtype=np.int64)
        odd = numbers > _INT64_MAX if numbers.dtype == np.uint64 else np.zeros(0, dtype=bool)
    if odd.any():
        raise SchemaError(
            f"{where} holds {numbers[odd][0]}, {int(odd.sum())} such rows, expected whole numbers "
            "below 2**63: sizes count voxels, so undo any scaling"
        )
    low = numbers < at_least
    if low.any():
        raise SchemaError(
            f"{where} holds {numbers[low][0]}, {int(low.sum())} such rows, expected {at_least} or "
            "more: drop rows that are no synapses"
        )
    total = float(numbers.sum(dtype=np.float64))
    if total > 9.2e18:  # if the sum of all fits, that of any pair, neuron or group does
        raise SchemaError(
            f"{where} sums to {total:.3g}, expected less than 9.2e18, which int64 holds: "
            "check the column; real sizes are below 1e7"
        )
    return numbers.astype(np.int64)


def _require_unique(ids: pd.Series) -> None:
    numbers = id_column(ids, _NAME).to_numpy()
    if (numbers[1:] > numbers[:-1]).all():
        return
    repeated = pd.Series(numbers).duplicated()
    if repeated.any():
        raise SchemaError(
            f"{_NAME}.id repeats {int(repeated.sum())} ids, such as {numbers[repeated][0]}, "
            "expected each synapse once: the parts of the table overlap, drop the duplicates"
        )
