"""Data files that Postgres has exported as CSV: whole tables, and blocks of larger ones.

Booleans are t and f, missing values are empty, and text is quoted only if necessary. Names and
types of the columns are in a header file beside the data file.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from binascii import unhexlify
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from isal import igzip
from isal.igzip_lib import IsalError

from microns_xr.errors import IncompleteDownloadError, SourceError
from microns_xr.sources.tables import DAMAGED, GzipText, reason_of

_INTEGERS = ("smallint", "integer", "bigint", "smallserial", "serial", "bigserial")
_FLOATS = ("real", "double precision", "numeric", "decimal")
_ARROW_TYPES = {
    **dict.fromkeys(_INTEGERS, pa.int64()),
    **dict.fromkeys(_FLOATS, pa.float64()),
    "boolean": pa.bool_(),
    "date": pa.date32(),
}
_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Header:
    """Columns of a data file, in their order."""

    names: tuple[str, ...]
    # their Postgres types, in lower case and without length, such as ``"character varying"``
    types: tuple[str, ...]
    where: str = "the header"  # name of the header file in messages

    def arrow_types(self) -> dict[str, pa.DataType]:
        """Return how each column is read: integers as int64, unknown types as text."""
        return {n: _arrow_type(n, t) for n, t in zip(self.names, self.types, strict=True)}


def _arrow_type(name: str, sql: str) -> pa.DataType:
    # Ids never pass through a float, whatever type the header states.
    if sql in _FLOATS and (name == "id" or name.endswith("_id")):
        return pa.int64()
    if sql.startswith("timestamp"):
        return pa.timestamp("us", tz="UTC" if sql.endswith("with time zone") else None)
    return _ARROW_TYPES.get(sql, pa.string())


def parse_header(content: bytes, where: str) -> Header:
    """Read a header file: one line per column, with its name and its Postgres type."""

    def wrong(what: str) -> SourceError:
        return SourceError(
            f"{where} {what}, expected 'name,type' on each line: remove it and fetch it again"
        )

    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise wrong(f"is not a header file ({error})") from error
    types: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        cells = [cell.strip() for cell in line]
        if len(cells) != 2 or not all(cells):
            raise wrong(f"line {number} is {','.join(line)[:80]!r}")
        if cells[0] in types:
            raise wrong(f"line {number} names the column {cells[0]!r} a second time")
        types[cells[0]] = re.sub(r"\s*\([^)]*\)", "", cells[1].lower())
    if not types:
        raise wrong("is empty")
    return Header(tuple(types), tuple(types.values()), where)


def columns_of(header: Header, position: str) -> list[str]:
    """Return the columns that hold a position: one per axis, or one for all."""
    split = [f"{position}_{axis}" for axis in _AXES]
    if all(name in header.names for name in split):
        return split
    return [position] if position in header.names else []


# Exponents of two digits only, so that values are within the range of float64 and casts succeed.
_NUMBER = r"[-+]?(?:\d{1,99}\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?"
_ROUND = r"[^-+.\d]*"  # brackets, or words such as POINT
_XYZ = rf"^{_ROUND}(?P<x>{_NUMBER})[\s,]+(?P<y>{_NUMBER})[\s,]+(?P<z>{_NUMBER}){_ROUND}$"
# A little-endian point with three coordinates in the hexadecimal form of PostGIS. The second form
# has the number of a reference system before the coordinates.
_WKB = "^01(?:[0-9a-fA-F]{56}|[0-9a-fA-F]{64})$"


def points_of(columns: list[pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Read positions from one column of text or lists, or from three columns.

    Returns x, y and z, NaN where there are none, and a mask of the rows that cannot be read.
    """
    points = np.full((len(columns[0]), 3), np.nan)
    bad = np.zeros(len(points), dtype=bool)
    if len(columns) == 3:
        for i, column in enumerate(columns):
            values = column
            if pa.types.is_string(column.type):
                texts = _trimmed(column)
                good = pc.match_substring_regex(texts, f"^{_NUMBER}$")
                bad |= ~np.asarray(pc.fill_null(good, True))
                values = pc.if_else(good, texts, None)
            points[:, i] = np.asarray(pc.fill_null(values.cast(pa.float64()), np.nan))
        return points, bad
    column = columns[0]
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        has = pc.fill_null(pc.equal(pc.list_value_length(column), 3), False)
        numbers = pc.list_flatten(column.filter(has)).cast(pa.float64())
        points[np.asarray(has)] = np.asarray(pc.fill_null(numbers, np.nan)).reshape(-1, 3)
        return points, np.asarray(column.is_valid()) & ~np.asarray(has)
    texts = _trimmed(column.cast(pa.string()))
    binary = pc.fill_null(pc.match_substring_regex(texts, _WKB), False)
    doubles = pc.utf8_slice_codeunits(texts.filter(binary), -48)  # the last 24 bytes
    if len(doubles):
        packed = unhexlify(memoryview(doubles.buffers()[2])[: 48 * len(doubles)])
        points[np.asarray(binary)] = np.frombuffer(packed, "<f8").reshape(-1, 3)
    parts = pc.extract_regex(pc.if_else(binary, None, texts), _XYZ)
    written = parts.is_valid()
    for i, axis in enumerate(_AXES):
        values = pc.struct_field(parts.filter(written), axis).cast(pa.float64())
        points[np.asarray(written), i] = np.asarray(values)
    return points, np.asarray(texts.is_valid()) & ~np.asarray(pc.or_(binary, written))


def _trimmed(column: pa.Array) -> pa.Array:
    """Return text without surrounding whitespace, with null for empty text and null markers."""
    texts = pc.ascii_trim_whitespace(column)
    return pc.if_else(pc.is_in(texts, value_set=pa.array(["", r"\N"])), None, texts)


def finish_columns(table: pa.Table, header: Header, where: str) -> pa.Table:
    """Convert columns that CSV has no types for: positions, arrays, times with time zone."""
    sql_types = dict(zip(header.names, header.types, strict=True))
    names: list[str] = []
    columns: list[pa.ChunkedArray] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        sql = sql_types[name]
        if name.endswith("_position") and pa.types.is_string(column.type):
            texts = column.combine_chunks()
            points, bad = points_of([texts])
            if bad.any():
                row = int(np.argmax(bad))
                raise SourceError(
                    f"{where} column {name} row {row + 1} is {texts[row].as_py()[:60]!r}, expected "
                    "x, y and z: remove the file and fetch it again"
                )
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
    """Return voxel coordinates as integers, as the service does, if all are whole numbers."""
    if not pa.types.is_floating(column.type):
        return column
    try:
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
        return column.cast(pa.int64(), safe=True)
    except pa.ArrowInvalid:
        return column


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


_CSV_BYTES = 4 << 20  # parsed at a time by one thread; a row must fit in it
_BLOCK_BYTES = 8 << 20  # unpacked; larger ones cost more system time (measured)
_LONGEST_LINE = 64 << 20
_AHEAD = 3  # blocks that are unpacked in advance
CUT = "its last line has no line break"  # Postgres ends every line


def unreadable(name: str, error: Exception, where: str = "") -> SourceError:
    """Return the error to raise for a file that cannot be read, with the place if known."""
    reason = reason_of(error)
    if isinstance(error, EOFError):
        return IncompleteDownloadError(
            f"{name} ends too early{where} ({reason}): it was cut short, fetch it again"
        )
    if isinstance(error, zlib.error | IsalError | gzip.BadGzipFile):
        hint = "it is damaged, remove it and fetch it again"
    else:
        hint = "check the disk or the network" if where else "check path, permissions and network"
    return SourceError(f"{name} cannot be read{where} ({reason}): {hint}")


def read_archived(path: str | Path, header: Header) -> pa.Table:
    """Read a whole data file."""
    path = Path(path)
    try:
        _require_bytes(path)
        with igzip.open(path, "rb") as file:
            empty = not file.read(1)
        if empty:
            table = pa.table({n: pa.array([], t) for n, t in header.arrow_types().items()})
        else:
            table = _parse(path, header, None, 1, str(path))
    except DAMAGED as error:
        if isinstance(error, SourceError):
            raise
        raise unreadable(str(path), error) from error
    return finish_columns(table, header, str(path))


def _require_bytes(path: str | Path) -> None:
    if os.path.getsize(path) == 0:  # read as gzip it would be a table without rows
        raise EOFError("it is empty")


def _parse(
    data: Path | bytes, header: Header, columns: list[str] | None, first_line: int, where: str
) -> pa.Table:
    """Parse a file, or some of its lines; only `columns` are returned, None for all."""
    # An empty line is one null, or a row that has lost its values: never skip it.
    parse_options = pa.csv.ParseOptions(
        newlines_in_values=isinstance(data, Path), ignore_empty_lines=False
    )
    convert_options = pa.csv.ConvertOptions(
        column_types=header.arrow_types(),
        include_columns=columns,
        # An empty field is a null and "" is an empty text; the only other null is \N.
        null_values=["", r"\N"],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        true_values=["t", "true", "True"],
        false_values=["f", "false", "False"],
    )

    def parse(threads: bool) -> pa.Table:
        read_options = pa.csv.ReadOptions(
            column_names=list(header.names), block_size=_CSV_BYTES, use_threads=threads
        )
        with GzipText(data) if isinstance(data, Path) else pa.BufferReader(data) as source:
            table = pa.csv.read_csv(source, read_options, parse_options, convert_options)
            if isinstance(source, GzipText) and source.last != b"\n":
                raise EOFError(CUT)
        return _without_empty_lines(table, header)

    try:
        return parse(threads=True)
    except pa.ArrowInvalid:
        pass
    try:  # line numbers are reported only without threads
        return parse(threads=False)
    except pa.ArrowInvalid as error:
        raise SourceError(_describe(error, header, where, first_line)) from error


def _describe(error: Exception, header: Header, where: str, first_line: int) -> str:
    """Return the message for a data file that does not fit its header."""
    text = reason_of(error)
    row = re.search(r"Row #(\d+):? ?", text)
    line = f" line {int(row[1]) + first_line - 1}" if row else ""
    column = re.search(r"In CSV column #(\d+):? ?", text)
    if column and int(column[1]) < len(header.names):
        line += f" column {header.names[int(column[1])]!r}"
    for match in (row, column):
        text = text.replace(match[0], "") if match else text
    return (
        f"{where}{line} does not fit {header.where}, which has {len(header.names)} columns "
        f"({text[:200]}): remove both files and fetch them again; if the error persists, the "
        "archived files do not belong together"
    )


def _without_empty_lines(table: pa.Table, header: Header) -> pa.Table:
    """Return a table, or raise if a line has no values at all, which pyarrow reads as nulls."""
    if len(header.names) > 1 and all(column.null_count for column in table.columns):
        nulls = [column.is_null().to_numpy() for column in table.columns]
        empty = np.flatnonzero(np.logical_and.reduce(nulls))
        if len(empty):
            raise pa.ArrowInvalid(f"Row #{empty[0] + 1}: there are no values")
    return table


class Block(NamedTuple):
    """Some lines of a data file."""

    table: pa.Table  # the requested columns, before `finish_columns`
    start: int  # first of their bytes in the unpacked file
    stop: int
    packed: int  # about how many bytes of the packed file have been read


def read_blocks(
    path: str | Path,
    header: Header,
    columns: list[str],
    *,
    start: int = 0,
    first_line: int = 1,
) -> Iterator[Block]:
    """Read some columns of a data file in blocks, starting at a line."""
    line = first_line
    try:
        _require_bytes(path)
        with open(path, "rb") as packed, igzip.open(packed, "rb") as file:
            file.seek(start)
            if file.tell() < start:
                raise SourceError(
                    f"{path} has fewer than {start} bytes unpacked: it is not the file that was "
                    "read before; remove it and fetch it again"
                )
            for lines, at in whole_lines(file, packed, str(path)):
                if not lines.endswith(b"\n"):
                    raise EOFError(CUT)
                table = _parse(lines, header, columns, line, str(path))
                yield Block(table, start, start + len(lines), at)
                start += len(lines)
                line += table.num_rows
    except DAMAGED as error:
        if isinstance(error, SourceError):
            raise
        raise unreadable(str(path), error, f" after line {line - 1}") from error


def whole_lines(
    file: IO[bytes], packed: IO[bytes], name: str
) -> Generator[tuple[bytes, int], None, None]:
    """Yield the rest of a file in blocks of whole lines, with the position in the packed file.

    Another thread unpacks some blocks ahead. The last line may lack its line break.
    """
    rest = b""
    pending: deque[Future[tuple[bytes, int]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:
        try:
            while True:
                while len(pending) < _AHEAD:
                    pending.append(pool.submit(lambda: (file.read(_BLOCK_BYTES), packed.tell())))
                data, at = pending.popleft().result()
                if not data:
                    break
                end = data.rfind(b"\n") + 1
                if end:
                    yield rest + data[:end], at
                    rest = data[end:]
                else:
                    rest += data
                    # A file that is not a table would fill the memory.
                    if len(rest) > _LONGEST_LINE:
                        raise SourceError(
                            f"{name} has no line break in {len(rest)} bytes: it is not a table of "
                            "lines; check the file"
                        )
            if rest:
                yield rest, at
        finally:
            pool.shutdown(cancel_futures=True)
