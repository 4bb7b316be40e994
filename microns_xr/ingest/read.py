"""From files to rows on disk: blocks are unpacked, parsed and mapped on threads, kept in order."""

from __future__ import annotations

import csv
import io
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from gzip import BadGzipFile
from pathlib import Path
from typing import IO, Any, Literal

import fsspec
import numba
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xarray as xr
from isal import igzip
from isal.igzip_lib import IsalError

from microns_xr.columns import as_ids
from microns_xr.connectivity.build import Rows, read_synapse_table
from microns_xr.connectivity.labels import Lookup, unit_roots
from microns_xr.errors import IncompleteDownloadError, SchemaError, SourceError
from microns_xr.sources.postgres_csv import Header, columns_of, finish_columns, parse_header
from microns_xr.store.spill import Spill
from microns_xr.threads import usable_threads

# Lines of a table of synapses to integers, byte by byte: the columns that are needed, no others.
#
# Integers stay integers: a size may be written ``12.0`` or ``1.2e+06``, as Postgres writes a
# real, and is taken if it is a whole number; an id may not. A field may be in quotes; none holds
# a line break. What a row is for is not known here.


# What is read from a column: nothing, an id (which may be missing where that is allowed), a whole
# number, or the place of the field, for `parse_points`.
SKIP, ID, WHOLE, POINT = 0, 1, 2, 3

_COLUMNS, _INTEGER, _FLOAT, _LARGE, _EMPTY, _NEGATIVE, _PART, _PLACE = range(1, 9)
BAD = {
    _COLUMNS: "expected {columns} columns",
    _INTEGER: "expected an integer",
    _FLOAT: "expected an integer id: 18-digit ids are rounded by floats, export the table again",
    _LARGE: "expected a number below 2**63",
    _EMPTY: "expected a number in every row",
    _NEGATIVE: "expected {least} or more",
    _PART: "expected a whole number",
    _PLACE: "expected x, y and z",
}

_COMMA, _NEWLINE, _RETURN, _QUOTE, _BLANK, _TAB = 44, 10, 13, 34, 32, 9
_MINUS, _PLUS, _DOT, _BACKSLASH, _ZERO = 45, 43, 46, 92, 48
_LARGEST = np.uint64(2**63 - 1)
_MOST_DIGITS = 19


@dataclass(frozen=True)
class ParsedLines:
    """What is in some lines."""

    # (columns of ids and numbers, rows) int64, in the order of the file's columns; 0 where null
    numbers: np.ndarray
    null: np.ndarray  # the same shape, bool
    # (columns of points, 2, rows) int32: first and one past the last byte of the field
    fields: np.ndarray
    begins: np.ndarray  # (rows,) int32: first byte of the line
    # lines that were read, and how many of them are in no row
    lines: int
    bad_lines: int
    # first byte, column and reason (a key of `BAD`) of the first bad line; reason 0 for none
    bad: tuple[int, int, int]


def parse_lines(
    data: np.ndarray,
    kinds: np.ndarray,
    nullable: np.ndarray,
    least: np.ndarray,
    stop_at_bad: bool = True,
) -> ParsedLines:
    """Read whole lines."""
    most = len(data) // len(kinds) + 1  # a good line has a byte for every column at least
    n_numbers = int(np.isin(kinds, (ID, WHOLE)).sum())
    numbers = np.empty((n_numbers, most), dtype=np.int64)
    null = np.empty((n_numbers, most), dtype=np.bool_)
    fields = np.empty((int((kinds == POINT).sum()), 2, most), dtype=np.int32)
    begins = np.empty(most, dtype=np.int32)
    rows, lines, bad_lines, *bad = _parse(
        data, kinds, nullable, least, stop_at_bad, numbers, null, fields, begins
    )
    return ParsedLines(
        numbers[:, :rows],
        null[:, :rows],
        fields[:, :, :rows],
        begins[:rows],
        lines,
        bad_lines,
        (int(bad[0]), int(bad[1]), int(bad[2])),
    )


@numba.njit(nogil=True, cache=True)
def _parse(  # type: ignore[no-untyped-def]
    data, kinds, nullable, least, stop_at_bad, numbers, null, fields, begins
):
    n, n_columns = np.intp(data.size), kinds.size
    p = np.intp(0)
    row = lines = bad_lines = 0
    first_bad = (np.intp(0), 0, 0)
    while p < n:
        begin = p
        column = n_number = n_field = 0
        reason = bad_column = 0
        while True:
            kind = kinds[column] if column < n_columns else SKIP
            start = p
            if data[p] == _QUOTE:
                p += 1
                while data[p] != _NEWLINE:
                    if data[p] == _QUOTE:
                        if data[p + 1] != _QUOTE:
                            break
                        p += 1
                    p += 1
                start, stop = start + 1, p
                if data[p] == _NEWLINE and reason == 0:  # nothing closes the quote
                    reason, bad_column = _COLUMNS, column
                if data[p] == _QUOTE:
                    p += 1
                    if data[p] == _RETURN and data[p + 1] == _NEWLINE:
                        p += 1
                if data[p] != _COMMA and data[p] != _NEWLINE and reason == 0:
                    reason, bad_column = _COLUMNS, column
                while data[p] != _COMMA and data[p] != _NEWLINE:
                    p += 1
            else:
                if kind in (ID, WHOLE):
                    # Nearly all fields are up to 18 digits and nothing else.
                    value = np.int64(0)
                    digit = data[p] - _ZERO
                    while digit < 10 and digit >= 0 and p - start < 18:
                        value = value * 10 + digit
                        p += 1
                        digit = data[p] - _ZERO
                    if p > start and (data[p] == _COMMA or data[p] == _NEWLINE):
                        if row < begins.size:
                            numbers[n_number, row] = value
                            null[n_number, row] = False
                        if kind == WHOLE and value < least[column] and reason == 0:
                            reason, bad_column = _NEGATIVE, column
                        n_number += 1
                        kind = SKIP
                while data[p] != _COMMA and data[p] != _NEWLINE:
                    p += 1
                stop = p
                if data[p] == _NEWLINE and stop > start and data[stop - 1] == _RETURN:
                    stop -= 1
            if kind in (ID, WHOLE):
                value, why = _whole(data, start, stop, kind == WHOLE)
                if why == _EMPTY and nullable[column]:
                    why = 0
                    if row < begins.size:
                        null[n_number, row] = True
                elif row < begins.size:
                    null[n_number, row] = False
                if why == 0 and kind == WHOLE and value < least[column]:
                    why = _NEGATIVE
                if why and reason == 0:
                    reason, bad_column = why, column
                if row < begins.size:
                    numbers[n_number, row] = value
                n_number += 1
            elif kind == POINT:
                if row < begins.size:
                    fields[n_field, 0, row] = start
                    fields[n_field, 1, row] = stop
                n_field += 1
            column += 1
            p += 1
            if data[p - 1] == _NEWLINE:
                break
        lines += 1
        if column != n_columns:
            reason, bad_column = _COLUMNS, -1
        if reason == 0:
            begins[row] = begin
            row += 1
        else:
            bad_lines += 1
            if first_bad[2] == 0:
                first_bad = (begin, bad_column, reason)
            if stop_at_bad:
                break
    return row, lines, bad_lines, first_bad[0], first_bad[1], first_bad[2]


@numba.njit(nogil=True, cache=True)
def _trim(data, start, stop):  # type: ignore[no-untyped-def]
    while start < stop and (data[start] == _BLANK or data[start] == _TAB):
        start += 1
    while stop > start and (data[stop - 1] == _BLANK or data[stop - 1] == _TAB):
        stop -= 1
    return start, stop


@numba.njit(nogil=True, cache=True)
def _is_null(data, start, stop):  # type: ignore[no-untyped-def]
    escaped = stop - start == 2 and data[start] == _BACKSLASH and data[start + 1] == ord("N")
    return start == stop or escaped


@numba.njit(nogil=True, cache=True)
def _decimal(data, p, stop):  # type: ignore[no-untyped-def]
    # A number as sign, digits and a power of ten: (end, mantissa, exponent, reason, is_plain).
    negative = p < stop and data[p] == _MINUS
    if negative:
        p += 1
    mantissa = np.uint64(0)
    exponent = n_digits = n_significant = 0
    plain = True
    while p < stop:
        digit = data[p] - _ZERO
        if digit >= 0 and digit < 10:
            n_digits += 1
            if n_significant or digit:
                n_significant += 1
            if n_significant > _MOST_DIGITS:
                return p, np.uint64(0), 0, _LARGE, plain, negative
            mantissa = mantissa * np.uint64(10) + np.uint64(digit)
            if not plain:
                exponent -= 1
        elif data[p] == _DOT and plain:
            plain = False
        else:
            break
        p += 1
    if n_digits == 0:
        return p, np.uint64(0), 0, _INTEGER, plain, negative
    if p + 1 < stop and (data[p] == ord("e") or data[p] == ord("E")):
        plain = False
        q = p + 1
        down = data[q] == _MINUS
        if down or data[q] == _PLUS:
            q += 1
        power = n_power = 0
        while q < stop and data[q] >= _ZERO and data[q] < _ZERO + 10 and n_power < 4:
            power = power * 10 + (data[q] - _ZERO)
            n_power += 1
            q += 1
        if n_power:
            exponent += -power if down else power
            p = q
    return p, mantissa, exponent, 0, plain, negative


@numba.njit(nogil=True, cache=True)
def _whole(data, start, stop, may_have_point):  # type: ignore[no-untyped-def]
    start, stop = _trim(data, start, stop)
    if _is_null(data, start, stop):
        return np.int64(0), _EMPTY
    p, mantissa, exponent, reason, plain, negative = _decimal(data, start, stop)
    if reason:
        return np.int64(0), reason
    if p != stop:
        return np.int64(0), _INTEGER
    if not plain and not may_have_point:
        return np.int64(0), _FLOAT
    while exponent < 0 and mantissa:
        if mantissa % np.uint64(10):
            return np.int64(0), _PART
        mantissa //= np.uint64(10)
        exponent += 1
    while exponent > 0 and mantissa:
        if mantissa > _LARGEST // np.uint64(10):
            return np.int64(0), _LARGE
        mantissa *= np.uint64(10)
        exponent -= 1
    if mantissa > _LARGEST:
        return np.int64(0), _LARGE
    value = np.int64(mantissa)
    return (-value if negative else value), 0


def parse_points(
    data: np.ndarray, fields: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read positions: three fields of a number each, or one that holds them all."""
    points = np.full((len(rows), 3), np.nan)
    hard = np.zeros(len(rows), dtype=np.bool_)
    _points(data, fields, rows, points, points.view(np.uint64), hard)
    return points, np.flatnonzero(hard)


@numba.njit(nogil=True, cache=True)
def _points(data, fields, rows, points, bits, hard):  # type: ignore[no-untyped-def]
    split = fields.shape[0] == 3
    for k in range(rows.size):
        for f in range(fields.shape[0]):
            start, stop = _trim(data, fields[f, 0, rows[k]], fields[f, 1, rows[k]])
            if _is_null(data, start, stop):
                continue
            as_binary = not split and (stop - start == 58 or stop - start == 66)
            if as_binary and _well_known_binary(data, start, stop, bits[k]):
                continue
            n_found = 0
            while start < stop and not hard[k]:
                byte = data[start]
                if not split and byte in (_BLANK, _COMMA, 91, 93, 40, 41, 123, 125):
                    start += 1
                    continue
                p, mantissa, exponent, reason, _, negative = _decimal(data, start, stop)
                # Correctly rounded only where both parts are exact in float64.
                if reason or mantissa >= np.uint64(2**53) or abs(exponent) > 22 or n_found == 3:
                    hard[k] = True
                    break
                value = np.float64(mantissa)
                if exponent < 0:
                    value /= 10.0**-exponent
                elif exponent > 0:
                    value *= 10.0**exponent
                points[k, f if split else n_found] = -value if negative else value
                n_found += 1
                start = p
            if n_found != (1 if split else 3):
                hard[k] = True


@numba.njit(nogil=True, cache=True)
def _well_known_binary(data, start, stop, bits):  # type: ignore[no-untyped-def]
    # Byte order, type, in the longer form a reference system, then three doubles.
    if data[start] != ord("0") or data[start + 1] != ord("1"):
        return False
    first = stop - 48
    for axis in range(3):
        value = np.uint64(0)
        for byte in range(8):
            for half in range(2):
                c = data[first + 16 * axis + 2 * byte + half]
                if c >= ord("0") and c <= ord("9"):
                    nibble = c - ord("0")
                elif c >= ord("a") and c <= ord("f"):
                    nibble = c - ord("a") + 10
                elif c >= ord("A") and c <= ord("F"):
                    nibble = c - ord("A") + 10
                else:
                    return False
                value |= np.uint64(nibble) << np.uint64(8 * byte + 4 * (1 - half))
        bits[axis] = value
    return True


# What a file of synapses is: where it lies, how it is written, which column is which.


# What unpacking raises.
DAMAGED: Any = (EOFError, OSError, zlib.error, IsalError)
HeaderLike = str | os.PathLike[str] | Header | Sequence[str]

POSITION = "ctr_pt_position"
_SIZES = ("size", "sum_size", "synapse_size")
_COUNTS = ("n_syn", "synapse_count")
_FIRST_LINE = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """One file of the table."""

    name: str  # as messages call it
    size: int
    kind: str  # how it is written, from its first bytes
    # names of its columns; of a file that says them itself, without their types
    header: Header
    skip: int  # bytes, unpacked, of the line that says them
    options: Mapping[str, Any]

    def open(self) -> IO[bytes]:
        """Open the file, packed as it is."""
        return _open(self.name, self.options)


@dataclass(frozen=True)
class Layout:
    """Which columns are needed, and what they are."""

    labels: str  # what the partners are named by
    # what a row is; "auto" when the columns do not tell
    rows: Rows
    pre: str
    post: str
    size: str
    # columns, where there are such and they are needed
    count: str | None
    id: str | None
    points: tuple[str, ...]  # columns of the position: none, one or three

    @property
    def numbers(self) -> dict[str, str]:
        """Role and column of ids and numbers."""
        roles = ("pre", "post", "size", "count", "id")
        return {role: name for role in roles if (name := getattr(self, role)) is not None}

    def plan(self, header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Return what `parse_lines` is told of a file, and the roles in the order it returns."""
        role_of = {name: role for role, name in self.numbers.items()}
        kinds = np.full(len(header.names), SKIP, dtype=np.int8)
        nullable = np.zeros(len(header.names), dtype=bool)
        least = np.zeros(len(header.names), dtype=np.int64)
        order = []
        for i, name in enumerate(header.names):
            role = role_of.get(name)
            if role is not None:
                kinds[i] = WHOLE if role in ("size", "count") else ID
                nullable[i] = role in ("pre", "post")
                least[i] = role == "count"
                order.append(role)
            elif name in self.points:
                kinds[i] = POINT
        return kinds, nullable, least, order


def find_files(
    files: Any, header: HeaderLike | None, options: Mapping[str, Any]
) -> list[InputFile]:
    """Look at the files of a table: all there, each once, and what their columns are."""
    given = list(files) if isinstance(files, Iterable) and not isinstance(files, str) else [files]
    names = [_name_of(file) for file in given]
    if not names:
        raise SchemaError("files is empty, expected at least one file of synapses")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise SchemaError(
            f"files names {sorted(repeated)[0]} twice, expected each file once: its synapses "
            "would count double"
        )
    stated = None if header is None else _stated(header, options)
    return [_look_at(name, stated, options) for name in names]


def _name_of(file: str | os.PathLike[str]) -> str:
    if not isinstance(file, str | os.PathLike):
        raise SchemaError(f"files has {file!r}, expected paths or addresses of files of synapses")
    name = os.fspath(file).removeprefix("file://")
    return name if "://" in name else os.path.realpath(os.path.expanduser(name))


def _open(name: str, options: Mapping[str, Any]) -> IO[bytes]:
    if "://" in name:
        return fsspec.open(name, "rb", **options).open()
    return open(name, "rb")


def _stated(header: HeaderLike, options: Mapping[str, Any]) -> Header:
    if isinstance(header, Header):
        return header
    if isinstance(header, str | os.PathLike):
        name = _name_of(header)
        try:
            with _open(name, options) as file:
                return parse_header(file.read(), name)
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"the header file {name} cannot be read ({error})") from error
    return _untyped([str(name) for name in header], "header")


def _untyped(names: Sequence[str], where: str) -> Header:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SchemaError(f"{where} names the column {repeated[0]!r} twice, expected each once")
    return Header(tuple(names), ("",) * len(names), where)


def _look_at(name: str, stated: Header | None, options: Mapping[str, Any]) -> InputFile:
    try:
        if "://" in name:
            fs, path = fsspec.core.url_to_fs(name, **options)
            size = int(fs.size(path) or 0)
        else:
            size = os.path.getsize(name)
        with _open(name, options) as file:
            magic = file.read(4)
            kind = {b"PAR1": "parquet", b"\x1f\x8b": "csv.gz"}.get(
                magic if magic == b"PAR1" else magic[:2], "csv"
            )
            if not magic and name.split("?")[0].endswith((".gz", ".parquet")):
                # Taken for a csv file it would be a table without a row.
                raise broken(name, EOFError("it is empty"))
            if kind == "parquet":
                return InputFile(name, size, kind, _of_parquet(file, name), 0, options)
            file.seek(0)
            unpacked = igzip.open(file, "rb") if kind == "csv.gz" else file
            line = unpacked.readline(_FIRST_LINE)
    except SourceError:
        raise
    except Exception as error:  # those of a protocol are its own
        if "://" not in name and not isinstance(error, DAMAGED):
            raise
        raise broken(name, error) from error
    found = stated or _beside(name, options)
    if found is None:
        return InputFile(name, size, kind, _first_line(line, name), len(line), options)
    # Some say their columns although a header is given.
    skip = len(line) if tuple(_cells(line)) == found.names else 0
    return InputFile(name, size, kind, found, skip, options)


def broken(name: str, error: Exception, where: str = "") -> SourceError:
    """Return the error that says why a file cannot be read, and where if that is known."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, EOFError):
        return IncompleteDownloadError(
            f"{name} ends too early{where} ({said}): it was cut short, fetch it again"
        )
    if isinstance(error, zlib.error | IsalError | BadGzipFile):
        hint = "it is damaged, fetch it again"
    else:
        hint = "check the disk or the network" if where else "check path, rights and network"
    return SourceError(f"{name} cannot be read{where} ({said}): {hint}")


def _of_parquet(file: IO[bytes], name: str) -> Header:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.ParquetFile(file).schema_arrow.names
    except pa.ArrowInvalid as error:  # the columns are at the end of the file
        raise broken(name, EOFError(str(error))) from error
    except OSError as error:
        raise SourceError(f"{name} cannot be read ({error}): fetch it again") from error
    return _untyped(names, name)


def _beside(name: str, options: Mapping[str, Any]) -> Header | None:
    """Return the header file that the archive puts beside a data file, if there is one."""
    stem = name.removesuffix(".gz").removesuffix(".csv")
    other = f"{stem}_header.csv"
    try:
        with _open(other, options) as file:
            return parse_header(file.read(), other)
    except FileNotFoundError:
        return None


def _cells(line: bytes) -> list[str]:
    """Return the cells of a first line; none if it is no line of a table."""
    text = line.decode("utf-8-sig", "replace").strip("\r\n")
    try:
        return [cell.strip() for cell in next(csv.reader(io.StringIO(text)), [])]
    except csv.Error:
        return []


def _first_line(line: bytes, name: str) -> Header:
    names = _cells(line)
    if not names or any(cell.lstrip("-").replace(".", "", 1).isdigit() for cell in names):
        raise SchemaError(
            f"{name} begins with {line[:80]!r}, which names no columns, and no file "
            f"{Path(name).name.removesuffix('.gz').removesuffix('.csv')}_header.csv lies beside "
            "it: pass header=, the archive's header file or the names of the columns"
        )
    return _untyped(names, name)


def layout_of(files: Sequence[InputFile], rows: Rows, positions: bool, singles: bool) -> Layout:
    """Say which columns are needed, from their names."""
    layouts = [_layout(file, rows, positions, singles) for file in files]
    for file, layout in zip(files, layouts, strict=True):
        if layout != layouts[0]:
            raise SchemaError(
                f"{file.name} has the columns {list(file.header.names)}, expected those of "
                f"{files[0].name}, {list(files[0].header.names)}: ingest tables one by one"
            )
    return layouts[0]


def _layout(file: InputFile, rows: Rows, positions: bool, singles: bool) -> Layout:
    names = file.header.names
    try:
        table = read_synapse_table(pd.DataFrame({n: np.zeros(0, np.int64) for n in names}), rows)
    except SchemaError as error:
        raise SchemaError(f"{file.name}: {error}") from error
    size = next(name for name in _SIZES if name in names)
    count = next((name for name in _COUNTS if name in names), None)
    has_id = "id" in names and table.rows == "synapse"
    points = tuple(columns_of(file.header, POSITION)) if positions else ()
    if singles and (not has_id or (positions and not points)):
        lacking = "id" if not has_id else POSITION
        raise SchemaError(
            f"{file.name} has the columns {list(names)}, expected {lacking!r}, which single "
            "synapses need: leave out positions=, and keep='both'"
        )
    partners = {side: f"{side}_{table.labels}" for side in ("pre", "post")}
    return Layout(
        table.labels,
        table.rows,
        partners["pre"],
        partners["post"],
        size,
        count,
        "id" if has_id else None,
        points,
    )


# Files of synapses as blocks of rows: unpacked ahead in a thread of its own, parsed where called.
#
# A block is handed out as a function, so that several can be parsed at a time. What it returns
# says how many lines it had and where the first bad one is; only who takes the blocks in order
# knows the number of a line in the file.


_BLOCK_BYTES = 8 << 20
_LONGEST_LINE = 64 << 20
_AHEAD = 3  # blocks that are unpacked before they are asked for
_BATCH_ROWS = 1 << 17
_Points = Callable[[np.ndarray], tuple[np.ndarray, "BadRow | None", np.ndarray]]


@dataclass(frozen=True)
class BadRow:
    """The first row of a block that cannot be read."""

    line: int  # its number in the block, from 0
    # of the unpacked block; -1 for a parquet file
    byte: int
    # the column, what was found and what was expected
    what: str


@dataclass(frozen=True)
class ParsedRows:
    """The rows of a block."""

    # role to int64 values, of ``pre``, ``post``, ``size``, perhaps ``count`` and ``id``
    numbers: dict[str, np.ndarray]
    # of ``pre`` and ``post``: bool, where there is none
    null: dict[str, np.ndarray]
    # gives the positions of some rows in voxels, the first bad one, and all that are bad
    points: _Points
    # lines read, those that are in no row, and unpacked bytes
    lines: int
    bad_lines: int
    size: int
    bad: BadRow | None  # the first of them


@dataclass(frozen=True)
class Job:
    """A block to be parsed, and how many bytes of the file were read up to its end."""

    parse: Callable[[], ParsedRows]
    packed: int


def read_jobs(
    file: InputFile, layout: Layout, *, count_bad: bool = False, block_bytes: int = _BLOCK_BYTES
) -> Generator[Job, None, None]:
    """Read a file block by block."""
    if file.kind == "parquet":
        yield from _parquet_jobs(file, layout)
        return
    plan = layout.plan(file.header)
    with closing(_whole_lines(file, block_bytes)) as blocks:
        for lines, packed in blocks:
            yield Job(_line_job(file, layout, plan, lines, count_bad), packed)


def _whole_lines(file: InputFile, block_bytes: int) -> Generator[tuple[bytes, int], None, None]:
    """Yield blocks of whole lines, each ending with a line break; unpacks some blocks ahead.

    Blank lines at the end of the file are in none.
    """
    unpacked = 0
    rest = b""
    packed: IO[bytes] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:
        try:
            packed = file.open()
            stream: Any = igzip.open(packed, "rb") if file.kind == "csv.gz" else packed
            stream.read(file.skip)

            def read() -> tuple[bytes, int]:
                return stream.read(block_bytes), packed.tell()  # type: ignore[union-attr]

            coming: deque[Future[tuple[bytes, int]]] = deque()
            while True:
                while len(coming) < _AHEAD:
                    coming.append(pool.submit(read))
                data, at = coming.popleft().result()
                if not data:
                    break
                unpacked += len(data)
                end = data.rfind(b"\n") + 1
                lines = rest + data[:end] if end else b""
                stop = _end_of_text(lines)
                if stop:
                    yield lines[:stop], at
                    rest = lines[stop:] + data[end:]
                else:
                    rest += data
                    if len(rest) > _LONGEST_LINE:
                        raise SourceError(
                            f"{file.name} has no line break in {len(rest)} bytes, from byte "
                            f"{unpacked - len(rest)} on: it is no table of lines"
                        )
            if _end_of_text(rest + b"\n"):
                yield rest + b"\n", at
        except Exception as error:  # those of a protocol are its own
            remote = "://" in file.name
            if isinstance(error, SourceError) or not (remote or isinstance(error, DAMAGED)):
                raise
            raise _broken(file, error, unpacked, packed) from error
        finally:
            pool.shutdown(cancel_futures=True)
            if packed is not None:
                packed.close()


def _end_of_text(lines: bytes) -> int:
    """Return where the last line ends that is not blank; 0 if there is none."""
    end = len(lines)
    while end and lines[end - 1] in b"\r\n":
        end -= 1
    return lines.index(b"\n", end) + 1 if end else 0


def _broken(
    file: InputFile, error: Exception, unpacked: int, packed: IO[bytes] | None
) -> SourceError:
    at = packed.tell() if packed is not None and not packed.closed else 0
    where = f" at byte {at} of {file.size}, {unpacked} unpacked bytes after its beginning"
    return broken(file.name, error, where)


def _line_job(
    file: InputFile, layout: Layout, plan: tuple[Any, ...], lines: bytes, count_bad: bool
) -> Callable[[], ParsedRows]:
    kinds, nullable, least, roles = plan

    def parse() -> ParsedRows:
        data = np.frombuffer(lines, dtype=np.uint8)
        found = parse_lines(data, kinds, nullable, least, stop_at_bad=not count_bad)
        rows = dict(zip(roles, range(len(roles)), strict=True))

        def points(wanted: np.ndarray) -> tuple[np.ndarray, BadRow | None, np.ndarray]:
            values, bad, what = _read_points(lines, found.fields, wanted, file.name)
            first = None
            if bad.size:
                begin = int(found.begins[wanted[bad[0]]])
                first = BadRow(lines.count(b"\n", 0, begin), begin, what)
            return values, first, bad

        bad = None
        if found.bad[2]:
            begin, column, reason = found.bad
            what = _describe(lines, begin, column, reason, file.header, int(least[column]))
            bad = BadRow(lines.count(b"\n", 0, begin), begin, what)
        return ParsedRows(
            {role: found.numbers[i] for role, i in rows.items()},
            {side: found.null[rows[side]] for side in ("pre", "post")},
            points,
            found.lines,
            found.bad_lines,
            len(lines),
            bad,
        )

    return parse


def _describe(
    lines: bytes, begin: int, column: int, reason: int, header: Header, least: int
) -> str:
    line = lines[begin : lines.index(b"\n", begin)].decode("utf-8", "replace").rstrip("\r")
    expected = BAD[reason].format(columns=len(header.names), least=least)
    if column < 0 or line.count(",") + 1 != len(header.names):
        return f"is {line[:100]!r}, {expected} ({header.where})"
    return f"column {header.names[column]!r} is {line.split(',')[column][:40]!r}, {expected}"


def _read_points(
    text: bytes, fields: np.ndarray, wanted: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """Read positions; return also which of them cannot be read, and what the first of those is."""
    values, hard = parse_points(np.frombuffer(text, dtype=np.uint8), fields, wanted)
    bad: list[int] = []
    what = ""
    for k in hard:
        spans = fields[:, :, wanted[k]]
        texts = [text[a:b].decode("utf-8", "replace").strip() for a, b in spans]
        try:
            values[k] = _point(texts, where)
        except ValueError:
            what = what or f"column {POSITION!r} is {','.join(texts)[:60]!r}, {BAD[8]}"
            bad.append(int(k))
    return values, np.array(bad, dtype=np.int64), what


def _point(texts: list[str], where: str) -> list[float]:
    """Read a position that is written in a rare way; ValueError if it is none."""
    if len(texts) == 3:
        return [float(text) if text not in ("", r"\N") else np.nan for text in texts]
    header = Header((POSITION,), ("user-defined",), where)
    try:
        point = finish_columns(pa.table({POSITION: texts}), header, where)
    except SourceError as error:
        raise ValueError(str(error)) from error
    return [float(column[0].as_py()) for column in point.columns]


def _parquet_jobs(file: InputFile, layout: Layout) -> Iterator[Job]:
    columns = [*layout.numbers.values(), *layout.points]
    try:
        with file.open() as opened:
            table = pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
            for name in columns:
                _require_type(table.schema_arrow.field(name), name in layout.points, layout, file)
            done = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
                done += batch.num_rows
                packed = int(file.size * done / max(1, table.metadata.num_rows))
                yield Job(partial(_batch_rows, file, layout, batch), packed)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{file.name} cannot be read ({error}): fetch it again") from error
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file.name} cannot be read ({error}): fetch it again") from error


def _require_type(field: pa.Field, is_point: bool, layout: Layout, file: InputFile) -> None:
    kind = field.type
    whole = pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    if is_point and len(layout.points) == 1:
        good, expected = _is_text(kind) or _is_list(kind), "lists of x, y and z, or text"
    elif field.name in (layout.pre, layout.post, layout.id):
        good = whole
        expected = "integers: 18-digit ids are rounded by floats, export the table again"
    else:
        good, expected = whole or pa.types.is_floating(kind), "numbers: convert the column"
    if not good:
        raise SchemaError(f"{file.name}: {field.name} is {kind}, expected {expected}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_it(kind) for is_it in is_list) and (
        pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)
    )


def _batch_rows(file: InputFile, layout: Layout, batch: pa.RecordBatch) -> ParsedRows:
    numbers, null = {}, {}
    bad = np.zeros(batch.num_rows, dtype=bool)
    what: dict[int, str] = {}
    for role, name in layout.numbers.items():
        column = batch.column(name)
        missing = np.asarray(pc.is_null(column, nan_is_null=True))
        if role in ("size", "count"):
            wrong, reason = _not_whole(column, missing, int(role == "count"))
        else:
            wrong = missing if role == "id" else np.zeros(len(missing), dtype=bool)
            reason = BAD[5]
        if wrong.any():
            row = int(np.argmax(wrong))
            what.setdefault(row, f"column {name!r} is {column[row].as_py()!r}, {reason}")
            bad |= wrong
        if role in ("pre", "post"):
            null[role] = missing
        if missing.any() or wrong.any():
            column = pc.if_else(pa.array(missing | wrong), pa.scalar(0, column.type), column)
        try:
            numbers[role] = np.asarray(column.cast(pa.int64()))
        except pa.ArrowInvalid as error:
            raise SchemaError(f"{file.name}: {name}: {error}; {BAD[4]}") from error
    kept = np.flatnonzero(~bad)

    def points(wanted: np.ndarray) -> tuple[np.ndarray, BadRow | None, np.ndarray]:
        values, wrong, what = _arrow_points(batch, layout, kept[wanted])
        first = BadRow(int(kept[wanted[wrong[0]]]), -1, what) if wrong.size else None
        return values, first, wrong

    first = min(what) if what else None
    return ParsedRows(
        {role: values[kept] for role, values in numbers.items()},
        {side: values[kept] for side, values in null.items()},
        points,
        batch.num_rows,
        int(bad.sum()),
        0,
        None if first is None else BadRow(first, -1, what[first]),
    )


def _not_whole(column: pa.Array, missing: np.ndarray, least: int) -> tuple[np.ndarray, str]:
    if pa.types.is_floating(column.type):
        values = np.nan_to_num(np.asarray(column.cast(pa.float64()), dtype=np.float64), nan=0.5)
        part = (values != np.floor(values)) | (np.abs(values) >= 2.0**63)
        if part.any():
            return part, BAD[7]
    else:
        values = np.asarray(pc.fill_null(column, least))
    return missing | (values < least), BAD[6].format(least=least)


def _arrow_points(
    batch: pa.RecordBatch, layout: Layout, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, str]:
    columns = [batch.column(name).take(pa.array(rows)) for name in layout.points]
    if len(columns) == 3:
        numbers = [np.asarray(c.cast(pa.float64()).fill_null(np.nan)) for c in columns]
        return np.stack(numbers, axis=1), np.zeros(0, dtype=np.int64), ""
    column = columns[0]
    if _is_text(column.type):
        texts = [text.encode() for text in column.fill_null("").to_pylist()]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int32)
        begins = np.concatenate([np.zeros(1, np.int32), ends[:-1]]) if texts else ends
        fields = np.stack([begins, ends])[None]
        return _read_points(b"".join(texts), fields, np.arange(len(texts)), POSITION)
    values = np.full((len(column), 3), np.nan)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    has = np.asarray(column.is_valid()) & (lengths == 3)
    numbers = pc.list_flatten(column.filter(pa.array(has))).cast(pa.float64()).fill_null(np.nan)
    values[has] = np.asarray(numbers).reshape(-1, 3)
    wrong = np.flatnonzero(np.asarray(column.is_valid()) & ~has)
    what = f"column {POSITION!r} is {column[int(wrong[0])].as_py()}, {BAD[8]}" if wrong.size else ""
    return values, wrong, what


# Rows of a table of synapses to positions on the axes: what is kept, and why the rest is not.


Keep = Literal["both", "pre", "post"]

_REASONS = tuple(
    f"{side}_{why}" for side in ("pre", "post") for why in ("null", "zero", "shared", "unknown")
)


@dataclass
class Tally:
    """Counts over all rows."""

    rows: int = 0  # rows that could be read
    bad_lines: int = 0  # lines that could not
    # rows by reason to be dropped, and those that are dropped
    reasons: np.ndarray = field(default_factory=lambda: np.zeros(len(_REASONS) + 1, dtype=np.int64))
    # sum of all sizes, and of all counts of a table of pairs
    total: float = 0.0
    total_count: float = 0.0

    def add(self, other: Tally) -> None:
        """Add the counts of a block."""
        self.rows += other.rows
        self.bad_lines += other.bad_lines
        self.reasons += other.reasons
        self.total += other.total
        self.total_count += other.total_count

    @property
    def dropped(self) -> dict[str, int]:
        """The counts as `microns_xr.build_connectivity` gives them."""
        counts = dict(zip((*_REASONS, "any_reason"), self.reasons.tolist(), strict=True))
        return counts | {"not_asked_for": 0}


@dataclass(frozen=True)
class Mapped:
    """The rows of a block that are kept."""

    # post position and columns of the rows both of whose partners are units
    pairs: tuple[np.ndarray, dict[str, np.ndarray]]
    # position of the unit and columns of the rows with a unit at one end, where those are kept
    singles: tuple[np.ndarray, dict[str, np.ndarray]] | None
    tally: Tally
    lines: int
    size: int
    bad: BadRow | None  # the first bad row


class Mapper:
    """Maps blocks of rows; may be used by several threads."""

    def __init__(
        self, units: xr.Dataset, layout: Layout, keep: Keep, positions: bool, shared: np.ndarray
    ) -> None:
        self._layout, self._keep, self._positions = layout, keep, positions
        if layout.labels == "nucleus_id":
            labels = as_ids(units, "units")
            where = np.arange(labels.size)
            shared = np.empty(0, dtype=np.int64)
        else:
            labels, where = unit_roots(units)
        self.labels = labels
        self._where = where.astype(np.int32)
        # Shared roots behind the others: one look tells both what is known and why it is not.
        shared = np.setdiff1d(shared[shared > 0], labels)
        self._lookup = Lookup(np.concatenate([labels, shared]), f"{layout.labels} of the units")
        self.units_by_position = np.zeros(units.sizes["nucleus_id"], dtype=np.int64)
        self.units_by_position[where] = labels

    @property
    def pair_columns(self) -> dict[str, str | tuple[str, int]]:
        """Columns of the rows with two units, as `Spill` takes them."""
        columns: dict[str, str | tuple[str, int]] = {"indices": "int32", "size": "int64"}
        if self._layout.count is not None:
            columns["count"] = "int64"
        return columns | (self._single_columns() if self._keep == "both" else {})

    @property
    def single_columns(self) -> dict[str, str | tuple[str, int]] | None:
        """Columns of the rows with one unit at least; None where those are not kept."""
        if self._keep == "both":
            return None
        return {"root": "int64", "size": "int64", **self._single_columns()}

    def _single_columns(self) -> dict[str, str | tuple[str, int]]:
        columns: dict[str, str | tuple[str, int]] = {}
        if self._layout.id is not None:
            columns["id"] = "int64"
        if self._positions:
            columns["point"] = ("float64", 3)
        return columns

    def map(self, rows: ParsedRows) -> Mapped:
        """Keep the rows of a block that are wanted."""
        codes = {side: self._lookup.find(rows.numbers[side], 1) for side in ("pre", "post")}
        if self._positions:
            rows, codes, bad, n_bad = self._with_points(rows, codes)
        else:
            bad, n_bad = rows.bad, rows.bad_lines
        reasons = np.zeros(len(_REASONS) + 1, dtype=np.int64)
        both, total = _classify(
            codes["pre"],
            codes["post"],
            rows.numbers["pre"],
            rows.numbers["post"],
            rows.null["pre"],
            rows.null["post"],
            rows.numbers["size"],
            self.labels.size,
            reasons,
        )
        columns = self._take(rows, both, self.pair_columns)
        columns["indices"] = self._where[codes["pre"][both]]
        pairs = self._where[codes["post"][both]], columns
        singles = None
        if self._keep != "both":
            side, other = self._keep, "post" if self._keep == "pre" else "pre"
            own = codes[side]
            wanted = np.flatnonzero((own >= 0) & (own < self.labels.size) & ~rows.null[side])
            columns = self._take(rows, wanted, self.single_columns or {})
            columns["root"] = rows.numbers[other][wanted]
            singles = self._where[own[wanted]], columns
        counts = rows.numbers.get("count")
        n_synapses = 0.0 if counts is None else float(counts.sum(dtype=np.float64))
        tally = Tally(len(rows.numbers["size"]), n_bad, reasons, total, n_synapses)
        return Mapped(pairs, singles, tally, rows.lines, rows.size, bad)

    def _take(
        self, rows: ParsedRows, wanted: np.ndarray, names: dict[str, str | tuple[str, int]]
    ) -> dict[str, np.ndarray]:
        numbers = rows.numbers
        return {name: numbers[name][wanted] for name in names if name in numbers}

    def _with_points(
        self, rows: ParsedRows, codes: dict[str, np.ndarray]
    ) -> tuple[ParsedRows, dict[str, np.ndarray], BadRow | None, int]:
        """Read the positions of rows that may be kept; rows without a good one are bad."""
        known = {side: (c >= 0) & (c < self.labels.size) for side, c in codes.items()}
        wanted = np.flatnonzero(
            known["pre"] & known["post"] if self._keep == "both" else known[self._keep]
        )
        values, bad, bad_rows = rows.points(wanted)
        points = np.full((len(codes["pre"]), 3), np.nan)
        points[wanted] = values
        good = np.ones(len(codes["pre"]), dtype=bool)
        good[wanted[bad_rows]] = False
        take = slice(None) if good.all() else good
        numbers = {role: numbers[take] for role, numbers in rows.numbers.items()}
        numbers["point"] = points[take]
        null = {side: null[take] for side, null in rows.null.items()}
        rows = ParsedRows(
            numbers, null, rows.points, rows.lines, rows.bad_lines, rows.size, rows.bad
        )
        if bad is None or (rows.bad is not None and rows.bad.line < bad.line):
            bad = rows.bad
        codes = {side: c[take] for side, c in codes.items()}
        return rows, codes, bad, rows.bad_lines + len(bad_rows)


@numba.njit(nogil=True, cache=True)
def _classify(  # type: ignore[no-untyped-def]
    pre, post, pre_ids, post_ids, pre_null, post_null, size, n_known, reasons
):
    # ParsedRows with two units; adds the others to the counts of their reasons.
    both = np.empty(pre.size, dtype=np.int32)
    n = 0
    total = 0.0
    for r in range(pre.size):
        total += size[r]
        lost = False
        for side in range(2):
            code = pre[r] if side == 0 else post[r]
            null = pre_null[r] if side == 0 else post_null[r]
            if code >= 0 and code < n_known and not null:
                continue
            lost = True
            if null:
                reasons[4 * side] += 1
            elif (pre_ids[r] if side == 0 else post_ids[r]) == 0:
                reasons[4 * side + 1] += 1
            elif code >= n_known:
                reasons[4 * side + 2] += 1
            else:
                reasons[4 * side + 3] += 1
        if lost:
            reasons[8] += 1
        else:
            both[n] = r
            n += 1
    return both[:n], total


_LARGEST_SUM = 9.2e18
_MARGIN = 1.1
_PAIR_BYTES = 16 + 2 * 10  # on its way to the other copy, and in the two copies (3 to 10 measured)


class Space:
    """Whether the disk has room for what is to come, judged by what has come."""

    def __init__(self, folder: str, total: int, row_bytes: int) -> None:
        self._folder, self._total, self._row_bytes = folder, total, row_bytes
        self._next = 0

    def check(self, read: int, rows: int, written: int) -> None:
        """Raise if what is left of the files will not fit."""
        if read < self._next or not read:
            return
        self._next = read + self._total // 20  # what else is on the disk may grow, too
        expected = int(rows * (max(self._total, read) / read) * self._row_bytes * _MARGIN)
        needed = max(0, expected - written)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise SourceError(
                f"{self._folder} has {free / 1e9:.2f} GB free, but about {needed / 1e9:.2f} GB are "
                f"needed for the {rows * self._total // read} rows that are expected to be kept: "
                "free some space or write elsewhere"
            )


def row_bytes(spill_bytes: int, singles_bytes: int) -> int:
    """Return the bytes of disk that a kept row takes, on its way and in the store."""
    return spill_bytes + _PAIR_BYTES + 3 * singles_bytes


def bar(total: int, text: str, unit: str, progress: bool) -> Any:
    """Return a progress bar, which nobody sees where there is no terminal."""
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        desc=text,
        unit=unit,
        unit_scale=True,
        unit_divisor=1024 if unit == "B" else 1000,
        disable=None if progress else True,
    )


def read_files(
    files: list[InputFile],
    layout: Layout,
    mapper: Mapper,
    pairs: Spill,
    singles: Spill | None,
    space: Space,
    *,
    count_bad: bool,
    progress: bool,
) -> Tally:
    """Read all files and spill the rows that are kept."""
    tally = Tally()
    threads = usable_threads(None, 1 << 30)
    before = 0
    total = sum(file.size for file in files)
    with ExitStack() as stack:
        shown = stack.enter_context(bar(total, "reading", "B", progress))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for file in files:
            line, byte = int(file.skip > 0), file.skip
            # Closed at once, whatever happens: a traceback would keep their threads alive.
            jobs = stack.enter_context(closing(read_jobs(file, layout, count_bad=count_bad)))
            results = stack.enter_context(closing(_in_order(pool, mapper, jobs, threads + 1)))
            for mapped, packed in results:
                if mapped.bad is not None and not count_bad:
                    raise SchemaError(_bad_line(file, mapped.bad, line, byte))
                tally.add(mapped.tally)
                _spill(mapped, pairs, singles)
                line += mapped.lines
                byte += mapped.size
                shown.update(before + packed - shown.n)
                kept = max(pairs.rows, singles.rows if singles is not None else 0)
                written = pairs.nbytes + (singles.nbytes if singles is not None else 0)
                space.check(before + packed, kept, written)
            before += file.size
    for name, summed in ((layout.size, tally.total), (layout.count, tally.total_count)):
        if summed > _LARGEST_SUM:
            raise SchemaError(
                f"{name} sums to {summed:.3g}, expected less than 9.2e18, which int64 holds: "
                "check the column; real sizes are below 1e7"
            )
    if tally.bad_lines and not tally.rows:
        raise SchemaError(
            f"all {tally.bad_lines} lines of {files[0].name} are bad: pass on_bad_lines='error' to "
            "see why"
        )
    return tally


def _spill(mapped: Mapped, pairs: Spill, singles: Spill | None) -> None:
    pairs.append(*mapped.pairs)
    if singles is not None and mapped.singles is not None:
        singles.append(*mapped.singles)


def _in_order(
    pool: ThreadPoolExecutor, mapper: Mapper, jobs: Iterable[Job], ahead: int
) -> Generator[tuple[Mapped, int], None, None]:
    """Yield the mapped blocks in their order, of which `ahead` are under way at the most."""
    waiting: deque[tuple[Future[Mapped], int]] = deque()
    try:
        for job in jobs:
            waiting.append((pool.submit(_parse_job, mapper, job), job.packed))
            while len(waiting) > ahead:
                future, packed = waiting.popleft()
                yield future.result(), packed
        while waiting:
            future, packed = waiting.popleft()
            yield future.result(), packed
    finally:
        for future, _ in waiting:
            future.cancel()


def _parse_job(mapper: Mapper, job: Job) -> Mapped:
    return mapper.map(job.parse())


def _bad_line(file: InputFile, bad: BadRow, line: int, byte: int) -> str:
    if bad.byte < 0:
        where = f"row {line + bad.line + 1}"
    else:
        of = "unpacked file" if file.kind == "csv.gz" else "file"
        where = f"line {line + bad.line + 1} (at byte {byte + bad.byte} of the {of})"
    return (
        f"{file.name} {where}: {bad.what}; mend the file or fetch it again, or pass "
        "on_bad_lines='count' to leave such lines out"
    )
