"""Header files of the archive: the names and the types of a data file that has no header line.

The data files are what Postgres copies out as CSV: t and f for truth, nothing for what is missing,
quotes around text that needs them.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from microns_xr.errors import SourceError

__all__ = ["Header", "columns_of", "describe_bad_csv", "finish_columns", "parse_header"]

_INTEGERS = ("smallint", "integer", "bigint", "smallserial", "serial", "bigserial")
_FLOATS = ("real", "double precision", "numeric", "decimal")
_AXES = ("x", "y", "z")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# A little-endian point with three coordinates in PostGIS' hexadecimal form; the second of the two
# carries the number of a reference system, 4 bytes, before them.
_WKB_POINT = {58: 5, 66: 9}


@dataclass(frozen=True)
class Header:
    """Columns of a data file, in their order.

    Attributes
    ----------
    names : tuple of str
        Names of the columns.
    types : tuple of str
        Their Postgres types, in lower case and without length, such as ``"character varying"``.
    where : str
        The header file, as messages call it.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    where: str = "the header"

    def type_of(self, name: str) -> str:
        """Return the Postgres type of a column."""
        return self.types[self.names.index(name)]

    def arrow_types(self) -> dict[str, pa.DataType]:
        """Return how each column is read: integers as int64, what has no type of ours as text."""
        return {n: _arrow_type(n, t) for n, t in zip(self.names, self.types, strict=True)}

    def read_options(self, **options: Any) -> pa.csv.ReadOptions:
        """Return what pyarrow needs in place of a header line."""
        return pa.csv.ReadOptions(column_names=list(self.names), **options)

    def convert_options(self, columns: list[str] | None = None) -> pa.csv.ConvertOptions:
        """Return how pyarrow reads the values; `columns` are the only ones that are wanted."""
        return pa.csv.ConvertOptions(
            column_types=self.arrow_types(),
            include_columns=columns,
            # Nothing is a null and "" an empty text; no other word stands for a null.
            null_values=["", r"\N"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t", "true", "True"],
            false_values=["f", "false", "False"],
        )


def _arrow_type(name: str, sql: str) -> pa.DataType:
    # Ids never pass through a float, whatever the header says of them.
    if sql in _INTEGERS or (sql in ("numeric", "decimal") and (name + "_").endswith("id_")):
        return pa.int64()
    if sql in _FLOATS:
        return pa.float64()
    if sql == "boolean":
        return pa.bool_()
    if sql == "date":
        return pa.date32()
    if sql.startswith("timestamp"):
        return pa.timestamp("us", tz="UTC" if sql.endswith("with time zone") else None)
    return pa.string()


def parse_header(content: bytes, where: str) -> Header:
    r"""Read a header file: a line a column, its name and its Postgres type.

    Parameters
    ----------
    content : bytes
        The file.
    where : str
        How messages call it.

    Returns
    -------
    Header
        The columns.

    Raises
    ------
    SourceError
        If it is empty, not UTF-8, or a line is not a name and a type, or a name comes twice.

    Examples
    --------
    >>> parse_header(b"id,bigint\ntag,character varying(64)\n", "areas_header.csv").types
    ('bigint', 'character varying')
    """
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(
            f"{where} is no header file ({error}), expected lines 'name,type': "
            "remove it and fetch it again"
        ) from error
    names: list[str] = []
    types: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        cells = [cell.strip() for cell in line]
        if len(cells) != 2 or not all(cells):
            raise SourceError(
                f"{where} line {number} is {','.join(line)[:80]!r}, expected 'name,type': "
                "remove the file and fetch it again"
            )
        if cells[0] in names:
            raise SourceError(
                f"{where} line {number} names the column {cells[0]!r} a second time: "
                "remove the file and fetch it again"
            )
        names.append(cells[0])
        types.append(re.sub(r"\s*\([^)]*\)", "", cells[1].lower()))
    if not names:
        raise SourceError(f"{where} is empty, expected lines 'name,type': fetch it again")
    return Header(tuple(names), tuple(types), where)


def columns_of(header: Header, position: str) -> list[str]:
    """Return the columns that hold a position: three of numbers, or one of its own.

    Parameters
    ----------
    header : Header
        The columns of the file.
    position : str
        Name of the position, such as ``"ctr_pt_position"``.

    Returns
    -------
    list of str
        Empty when the file has no such position.

    Examples
    --------
    >>> columns_of(Header(("id", "pt_position"), ("bigint", "user-defined")), "pt_position")
    ['pt_position']
    """
    split = [f"{position}_{axis}" for axis in _AXES]
    if all(name in header.names for name in split):
        return split
    return [position] if position in header.names else []


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


def describe_bad_csv(error: Exception, header: Header, where: str, first_line: int = 1) -> str:
    """Say where a data file breaks its header, and what to do.

    Parameters
    ----------
    error : Exception
        What pyarrow, read in one thread, raised.
    header : Header
        The columns that were expected.
    where : str
        The data file.
    first_line : int, optional
        Number of the first line that pyarrow was given.

    Returns
    -------
    str
        A message for `SourceError`.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    row = re.search(r"Row #(\d+):? ?", text)
    line = f" line {int(row[1]) + first_line - 1}" if row else ""
    column = re.search(r"In CSV column #(\d+):? ?", text)
    if column and int(column[1]) < len(header.names):
        line += f" column {header.names[int(column[1])]!r}"
    for found in (row, column):
        text = text.replace(found[0], "") if found else text
    return (
        f"{where}{line} does not fit {header.where}, which has {len(header.names)} columns "
        f"({text[:200]}): remove both files and fetch them again; if it stays so, the archive's "
        "own files do not belong together"
    )
