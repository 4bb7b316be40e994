"""Values of archived tables that CSV has no way to say: positions, arrays, time zones."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from microns_xr.errors import SourceError
from microns_xr.source.archive_header import Header

__all__ = ["finish_columns"]

_AXES = ("x", "y", "z")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# A little-endian point with three coordinates in PostGIS' hexadecimal form; the second of the two
# carries the number of a reference system, 4 bytes, before them.
_WKB_POINT = {58: 5, 66: 9}


def finish_columns(table: pa.Table, header: Header, where: str) -> pa.Table:
    """Turn what CSV cannot say into what it means: positions, arrays, time zones.

    Parameters
    ----------
    table : pyarrow.Table
        Columns as `Header.convert_options` reads them.
    header : Header
        Their types.
    where : str
        The data file, for messages.

    Returns
    -------
    pyarrow.Table
        A position is three columns of int64 (float64 where it lies between voxels), an ARRAY a
        list, a time without a zone is UTC.

    Raises
    ------
    SourceError
        If a position or an array cannot be read, naming the file and the row.
    """
    names: list[str] = []
    columns: list[pa.ChunkedArray] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        sql = header.type_of(name)
        if name.endswith("_position") and pa.types.is_string(column.type):
            points = _points(column, f"{where} column {name}")
            names += [f"{name}_{axis}" for axis in _AXES]
            columns += [_voxels(pa.chunked_array([points[:, i]])) for i in range(3)]
            continue
        if name[:-2].endswith("_position") and name[-2:] in ("_x", "_y", "_z"):
            column = _voxels(column)
        elif sql == "array" or sql.endswith("[]"):
            column = _lists(column, f"{where} column {name}")
        elif sql.startswith("timestamp") and column.type.tz is None:
            column = column.cast(pa.timestamp("us", tz="UTC"))
        names.append(name)
        columns.append(column)
    return pa.Table.from_arrays(columns, names=names)


def _voxels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return numbers of voxels as integers, as the service gives them, if all are whole."""
    if not pa.types.is_floating(column.type):
        return column
    try:
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
        return column.cast(pa.int64(), safe=True)
    except pa.ArrowInvalid:
        return column


def _points(column: pa.ChunkedArray, where: str) -> np.ndarray:
    points = np.full((len(column), 3), np.nan)
    for row, text in enumerate(column.to_pylist()):
        if text is None:
            continue
        found: list[float] = []
        start = _WKB_POINT.get(len(text))
        if start and text.startswith("01"):
            try:
                found = np.frombuffer(bytes.fromhex(text), "<f8", count=3, offset=start).tolist()
            except ValueError:
                found = []
        else:
            found = [float(word) for word in _NUMBER.findall(text)]
        if len(found) != 3:
            raise SourceError(
                f"{where} row {row + 1} is {text[:60]!r}, expected x, y and z: "
                "remove the file and fetch it again"
            )
        points[row] = found
    return points


def _lists(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    rows: list[list[int | float] | None] = []
    for row, text in enumerate(column.to_pylist()):
        try:
            words = None if text is None else text.strip("{}[] ").replace(",", " ").split()
            rows.append(None if words is None else [_number(word) for word in words])
        except ValueError:
            raise SourceError(
                f"{where} row {row + 1} is {text[:60]!r}, expected numbers in braces: "
                "remove the file and fetch it again"
            ) from None
    return pa.chunked_array([pa.array(rows, type=None if any(rows) else pa.list_(pa.float64()))])


def _number(word: str) -> int | float:
    try:
        return int(word)
    except ValueError:
        return float("nan") if word == "NULL" else float(word)
