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

import pyarrow as pa
import pyarrow.csv

from microns_xr.errors import SourceError

__all__ = ["Header", "columns_of", "describe_bad_csv", "parse_header"]

_INTEGERS = ("smallint", "integer", "bigint", "smallserial", "serial", "bigserial")
_FLOATS = ("real", "double precision", "numeric", "decimal")
_AXES = ("x", "y", "z")


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
