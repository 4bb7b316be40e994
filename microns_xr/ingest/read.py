"""Files of synapses to rows on disk: decompressed, parsed and mapped in blocks, on threads."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import fsspec
import numba
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xarray as xr
from isal import igzip

from microns_xr.columns import as_ids
from microns_xr.connectivity.build import Rows, read_synapse_table
from microns_xr.connectivity.labels import Lookup, unit_roots
from microns_xr.errors import SchemaError, SourceError
from microns_xr.frames import RESOLUTION, Resolution, Space, resolution_of
from microns_xr.network import http_options
from microns_xr.releases import table_of_file, table_spec
from microns_xr.schema import require_unrounded
from microns_xr.sources.postgres_csv import (
    CUT,
    Header,
    columns_of,
    parse_header,
    points_of,
    unreadable,
    whole_lines,
)
from microns_xr.sources.tables import (
    DAMAGED,
    reason_of,
    require_whole,
    side_resolution,
    stated_resolution,
    warn_of_cut_text,
)
from microns_xr.store.spill import Spill
from microns_xr.store.swap import address_of
from microns_xr.tables import is_false
from microns_xr.threads import usable_threads

# The files of a table: their paths, formats and columns.

Keep = Literal["both", "pre", "post"]
HeaderLike = str | os.PathLike[str] | Header | Sequence[str]

POSITION = "ctr_pt_position"
_SIZES = ("size", "sum_size", "synapse_size")
_COUNTS = ("n_syn", "synapse_count")
_FIRST_LINE = 1 << 20
_CALL = "resolution_nm={}"  # states the resolution of positions


@dataclass(frozen=True)
class InputFile:
    """One file of the table."""

    name: str  # for messages
    size: int
    kind: str  # "csv", "csv.gz" or "parquet", from its first bytes
    # names of its columns; without their types if they are from the file itself
    header: Header
    skip: int  # unpacked bytes of the header line
    options: Mapping[str, Any]  # of fsspec
    resolution: Any = None  # of its positions, as the file states it


@dataclass(frozen=True)
class Layout:
    """Which columns are needed, and their roles."""

    labels: str  # kind of the ids of the partners
    rows: Rows  # what a row is; "auto" if unknown from the columns
    # role to column: "pre", "post", "size", and "count" and "id" if there are such
    columns: dict[str, str]
    points: tuple[str, ...]  # columns of the position: none, one or three


def find_files(
    files: Any, header: HeaderLike | None, options: Mapping[str, Any]
) -> list[InputFile]:
    """Return the files of a table with their columns, after checking that each is given once."""
    several = isinstance(files, Iterable) and not isinstance(files, str | xr.DataArray)
    names = [_name_of(file) for file in (list(files) if several else [files])]
    if not names:
        raise SchemaError("files is empty, expected at least one file of synapses")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise SchemaError(
            f"files names {sorted(repeated)[0]} twice, expected each file once: its synapses "
            "would be counted twice"
        )
    common = None if header is None else _read_header(header, options)
    return [_inspect(name, common, options) for name in names]


def _name_of(file: str | os.PathLike[str]) -> str:
    if not isinstance(file, str | os.PathLike):
        raise SchemaError(f"files has {file!r}, expected paths or addresses of files of synapses")
    return address_of(file)


def _open(name: str, options: Mapping[str, Any]) -> IO[bytes]:
    if "://" in name:
        return fsspec.open(name, "rb", **http_options(name, options)).open()
    return open(name, "rb")


def _read_header(header: HeaderLike, options: Mapping[str, Any]) -> Header:
    if isinstance(header, Header):
        return header
    if not isinstance(header, str | os.PathLike):
        return _untyped([str(name) for name in header], "header")
    name = _name_of(header)
    try:
        with _open(name, options) as file:
            return parse_header(file.read(), name)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"the header file {name} cannot be read ({error})") from error


def _untyped(names: Sequence[str], where: str) -> Header:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SchemaError(f"{where} names the column {repeated[0]!r} twice, expected each once")
    return Header(tuple(names), ("",) * len(names), where)


def _inspect(name: str, header: Header | None, options: Mapping[str, Any]) -> InputFile:
    remote = "://" in name
    try:
        if remote:
            fs, path = fsspec.core.url_to_fs(name, **http_options(name, options))
            size = int(fs.size(path) or 0)
        else:
            size = os.path.getsize(name)
            require_whole(Path(name))
        with _open(name, options) as file:
            magic = file.read(4)
            if not magic and name.split("?")[0].endswith((".gz", ".parquet")):
                # As a csv file it would be a table without rows.
                raise EOFError("it is empty")
            if magic == b"PAR1":
                schema = _schema_of_parquet(file)
                header, stated = _untyped(schema.names, name), stated_resolution(schema.metadata)
                return InputFile(name, size, "parquet", header, 0, options, stated)
            kind = "csv.gz" if magic[:2] == b"\x1f\x8b" else "csv"
            file.seek(0)
            if kind == "csv.gz":
                line = igzip.open(file, "rb").readline(_FIRST_LINE)
            else:  # files of fsspec have readline without a limit
                line = b"".join(file.read(_FIRST_LINE).partition(b"\n")[:2])
    except Exception as error:
        # Each protocol of fsspec has its own errors.
        if isinstance(error, SchemaError | SourceError) or not (
            remote or isinstance(error, DAMAGED)
        ):
            raise
        raise unreadable(name, error) from error
    header = header or _sidecar_header(name, options) or _first_line(line, name)
    # Some files have a header line although a header was given.
    skip = len(line) if tuple(_cells(line)) == header.names else 0
    stated = None if remote else side_resolution(name)
    return InputFile(name, size, kind, header, skip, options, stated)


def _schema_of_parquet(file: IO[bytes]) -> pa.Schema:
    try:
        return pq.ParquetFile(file).schema_arrow
    except pa.ArrowInvalid as error:  # the columns are at the end of the file
        raise EOFError(str(error)) from error


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".csv")


def _sidecar_header(name: str, options: Mapping[str, Any]) -> Header | None:
    """Return the header file that the archive puts beside a data file, if there is one."""
    other = f"{_stem(name)}_header.csv"
    try:
        with _open(other, options) as file:
            return parse_header(file.read(), other)
    except FileNotFoundError:
        return None


def _cells(line: bytes) -> list[str]:
    """Return the cells of a first line; none if it is not a line of a table."""
    text = line.decode("utf-8-sig", "replace").strip("\r\n")
    try:
        return [cell.strip() for cell in next(csv.reader([text]), [])]
    except csv.Error:
        return []


def _first_line(line: bytes, name: str) -> Header:
    names = _cells(line)
    if not names or any(cell.lstrip("-").replace(".", "", 1).isdigit() for cell in names):
        raise SchemaError(
            f"{name} begins with {line[:80]!r}, which names no columns, and there is no file "
            f"{Path(_stem(name)).name}_header.csv beside it: pass header=, the archive's header "
            "file or the names of the columns"
        )
    return _untyped(names, name)


def layout_of(files: Sequence[InputFile], rows: Rows, positions: bool, singles: bool) -> Layout:
    """Return which columns are needed, from their names."""
    layouts = [_layout(file, rows, positions, singles) for file in files]
    for file, layout in zip(files, layouts, strict=True):
        if layout != layouts[0]:
            raise SchemaError(
                f"{file.name} has the columns {list(file.header.names)}, expected those of "
                f"{files[0].name}, {list(files[0].header.names)}: ingest tables one at a time"
            )
    return layouts[0]


def resolution_of_files(
    files: Sequence[InputFile], space: Space, given: Any, datastack: str
) -> Resolution:
    """Return the resolution of the positions: stated by the files, given, or of the datastack."""
    found = {}
    for file in files:
        table = pd.DataFrame()
        table.attrs[RESOLUTION] = file.resolution
        name = table_of_file(file.name, datastack)
        registered = table_spec(name, datastack).resolution_nm
        found[resolution_of(table, file.name, registered, space, given, _CALL)] = file.name
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise SchemaError(
            f"{first} has positions at a resolution of {one} nm, {second} at {other}: ingest "
            "tables one at a time"
        )
    return next(iter(found))


def _layout(file: InputFile, rows: Rows, positions: bool, singles: bool) -> Layout:
    names = file.header.names
    try:
        table = read_synapse_table(pd.DataFrame({n: np.zeros(0, np.int64) for n in names}), rows)
    except SchemaError as error:
        raise SchemaError(f"{file.name}: {error}") from error
    columns = {side: f"{side}_{table.labels}" for side in ("pre", "post")}
    columns["size"] = next(name for name in _SIZES if name in names)
    counts = [name for name in _COUNTS if name in names]
    if counts:
        columns["count"] = counts[0]
    if "id" in names and table.rows == "synapse":
        columns["id"] = "id"
    # In the order of the file, so that messages name the first bad column of a line.
    columns = dict(sorted(columns.items(), key=lambda column: names.index(column[1])))
    points = tuple(columns_of(file.header, POSITION)) if positions else ()
    if singles and ("id" not in columns or (positions and not points)):
        raise SchemaError(
            f"{file.name} has the columns {list(names)}, expected "
            f"{POSITION if 'id' in columns else 'id'!r}, which single synapses need: leave out "
            "positions=, and keep='both'"
        )
    return Layout(table.labels, table.rows, columns, points)


# Blocks of a file to rows. Ids and sizes are exact integers; a size may be written ``12.0`` or
# ``1.2e+06``, as Postgres writes a real, an id may not. No field holds a line break.


_BATCH_ROWS = 1 << 17
_IDS = ("pre", "post", "id")
_VALID = "valid"  # the column that says which rows of a table are valid
_DIGITS = re.compile(r"(-?\d+)(\.\d*)?([eE][-+]?\d{1,4})?", re.ASCII)


class Block(NamedTuple):
    """The rows of a block, in the order of the file."""

    numbers: dict[str, np.ndarray]  # role to int64 values
    null: dict[str, np.ndarray]  # of "pre" and "post": bool, True where the id is missing
    bad: dict[int, str]  # rows that cannot be read, and the reason for a message
    points: Callable[[np.ndarray], list[pa.Array]]  # columns of the positions of some rows
    valid: Callable[[np.ndarray], pa.Array] | None  # which of some rows are valid, if stated
    begins: np.ndarray | None  # first byte of each row in the block; None for parquet
    size: int  # unpacked bytes; 0 for parquet


Job = tuple[Callable[[], Block], int]


def read_jobs(file: InputFile, layout: Layout) -> Generator[Job, None, None]:
    """Yield the blocks of a file, each as a function that parses it and the bytes read so far."""
    return _parquet_jobs(file, layout) if file.kind == "parquet" else _csv_jobs(file, layout)


def _csv_jobs(file: InputFile, layout: Layout) -> Generator[Job, None, None]:
    n_unpacked = file.skip
    rest = b""
    packed: IO[bytes] | None = None
    try:
        packed = _open(file.name, file.options)
        stream: Any = igzip.open(packed, "rb") if file.kind == "csv.gz" else packed
        stream.read(file.skip)
        with closing(whole_lines(stream, packed, file.name)) as blocks:
            for block, at in blocks:
                n_unpacked += len(block)
                lines = rest + block
                # Blank lines are bad, except at the end of a file.
                stop = _end_of_text(lines)
                rest = lines[stop:]
                if stop:
                    # Parsed in the thread that calls it, so that blocks are parsed in parallel.
                    yield partial(_csv_block, lines[:stop], file, layout), at
        if rest.strip(b"\r\n"):
            # Postgres ends every line; other programs and people may not end the last one.
            if any(file.header.types):
                raise EOFError(CUT)
            if n_unpacked > len(rest):
                warn_of_cut_text(file.name)
            yield partial(_csv_block, rest + b"\n", file, layout), file.size
    except Exception as error:
        # Each protocol of fsspec has its own errors.
        if isinstance(error, SourceError) or not ("://" in file.name or isinstance(error, DAMAGED)):
            raise
        at = 0 if packed is None else packed.tell()
        where = f" at byte {at} of {file.size}, {n_unpacked} unpacked bytes after its beginning"
        raise unreadable(file.name, error, where) from error
    finally:
        if packed is not None:
            packed.close()


def _end_of_text(lines: bytes) -> int:
    """Return the end of the last complete line that is not blank; 0 if there is none."""
    end = len(lines)
    while end and lines[end - 1] in b"\r\n":
        end -= 1
    return lines.find(b"\n", end) + 1 if end else 0


def _csv_block(lines: bytes, file: InputFile, layout: Layout) -> Block:
    names = file.header.names
    data = np.frombuffer(lines, dtype=np.uint8)
    n = np.count_nonzero(data == _NEWLINE)  # four times faster than bytes.count
    role_of = {name: role for role, name in layout.columns.items()}
    kind_of = dict.fromkeys([*layout.points, _VALID], _POINT)
    kind_of |= {name: _ID if role in _IDS else _WHOLE for name, role in role_of.items()}
    needed = [role_of.get(name, name) for name in names if name in kind_of]
    kinds = np.array([kind_of.get(name, _SKIP) for name in names], dtype=np.int8)
    values = np.empty((len(needed), n), dtype=np.int64)
    empty = np.zeros((len(needed), n), dtype=np.bool_)
    fields = np.empty((len(needed), 2, n), dtype=np.int32)
    begins = np.empty(n, dtype=np.int32)
    state = np.empty(n, dtype=np.int8)
    _parse(data, kinds, values, empty, fields, begins, state)
    numbers = dict(zip(needed, values, strict=True))
    null = dict(zip(needed, empty, strict=True))
    field_of = dict(zip(needed, fields, strict=True))
    for role in layout.columns:
        if role not in ("pre", "post"):
            state |= null[role]
    if "count" in numbers:
        state |= numbers["count"] < 1

    def cells_of(row: int) -> dict[str, str]:
        spans = {role: field_of[role][:, row] for role in layout.columns}
        return {role: lines[a:b].decode("utf-8", "replace") for role, (a, b) in spans.items()}

    bad = _read_again(np.flatnonzero(state == _UNCLEAR), cells_of, layout, numbers, null)
    for row in np.flatnonzero(state >= _BROKEN).tolist():
        line = lines[begins[row] : lines.index(b"\n", begins[row])].rstrip(b"\r")
        text = line[:100].decode("utf-8", "replace")
        bad[row] = f"is {text!r}, expected {len(names)} columns ({file.header.where})"
    return Block(
        {role: numbers[role] for role in layout.columns},
        {side: null[side] for side in ("pre", "post")},
        bad,
        lambda rows: [_texts(data, *field_of[name][:, rows]) for name in layout.points],
        (lambda rows: _texts(data, *field_of[_VALID][:, rows])) if _VALID in names else None,
        begins,
        len(lines),
    )


def _texts(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> pa.Array:
    """Return fields of a block as text."""
    ends = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int32)
    places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], stops - starts)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(data[places])]
    return pa.Array.from_buffers(pa.string(), len(starts), buffers)


def _read_again(
    rows: np.ndarray,
    cells_of: Callable[[int], Mapping[str, Any]],
    layout: Layout,
    numbers: dict[str, np.ndarray],
    null: dict[str, np.ndarray],
) -> dict[int, str]:
    """Read some rows cell by cell; return the errors of the bad ones."""
    bad: dict[int, str] = {}
    for row in rows.tolist():
        for role, cell in cells_of(row).items():
            try:
                number = _exact(cell, role)
            except ValueError as error:
                what = f"column {layout.columns[role]!r} is {repr(cell)[:42]}, {error}"
                bad.setdefault(row, what)
            else:
                numbers[role][row] = number or 0
                null[role][row] = number is None
    return bad


def _exact(cell: Any, role: str) -> int | None:
    """Read an id or a whole number in any form; None if it is missing and may be."""
    text = "" if cell is None else str(cell).strip()
    if text in ("", r"\N"):
        if role in ("pre", "post"):
            return None
        raise ValueError("expected a number in every row")
    match = _DIGITS.fullmatch(text)
    if not match:
        raise ValueError("expected an integer")
    if role in _IDS and text != match[1]:
        raise ValueError(
            "expected an integer id: 18-digit ids are rounded by floats, export the table again"
        )
    number, minimum = Decimal(text), int(role == "count")
    if abs(number) >= 2**63:
        raise ValueError("expected a number below 2**63")
    if number != number.to_integral_value():
        raise ValueError("expected a whole number")
    if role not in _IDS and number < minimum:
        raise ValueError(f"expected {minimum} or more")
    return int(number)


# Parse lines to integers, byte by byte, only in the columns that are needed. pyarrow.csv, which
# reads the tables of the archive, copies every column of a block: on 10 million rows it took 25 %
# more processor time and 100 MB more memory than this. Fields that are not plain digits are left
# to `_read_again`.

_SKIP, _ID, _WHOLE, _POINT = 0, 1, 2, 3
_UNCLEAR, _BROKEN = 1, 2
_COMMA, _NEWLINE, _RETURN, _QUOTE, _BLANK, _DOT, _ZERO = 44, 10, 13, 34, 32, 46, 48
_ONE = np.uintp(1)  # unsigned: for signed indices numba checks whether they are negative


@numba.njit(nogil=True, cache=True)
def _parse(data, kinds, values, empty, fields, begins, states):  # type: ignore[no-untyped-def]
    p = np.uintp(0)
    for row in range(begins.size):
        begins[row] = p
        status = column = k = 0
        while True:
            kind = kinds[column] if column < kinds.size else _SKIP
            quoted = data[p] == _QUOTE
            if quoted:
                p += _ONE
            start = p
            if kind in (_ID, _WHOLE):
                while data[p] == _BLANK:
                    p += _ONE
                value, start = np.int64(0), p
                digit = data[p] - _ZERO
                while digit < 10 and digit >= 0 and p - start < 18:
                    value = value * 10 + digit
                    p += _ONE
                    digit = data[p] - _ZERO
                if kind == _WHOLE and data[p] == _DOT and p > start:
                    p += _ONE
                    while data[p] == _ZERO:
                        p += _ONE
                values[k, row] = value
            read = p
            if quoted:
                while data[p] != _NEWLINE and (data[p] != _QUOTE or data[p + _ONE] == _QUOTE):
                    p += _ONE + _ONE if data[p] == _QUOTE else _ONE
                stop = p
                if data[p] == _NEWLINE:  # nothing closes the quote
                    status = _BROKEN
                else:
                    p += _ONE
                    if data[p] == _RETURN and data[p + _ONE] == _NEWLINE:
                        p += _ONE
            else:
                while data[p] != _COMMA and data[p] != _NEWLINE:
                    p += _ONE
                stop = p
                if data[p] == _NEWLINE and stop > start and data[stop - _ONE] == _RETURN:
                    stop -= _ONE
            if kind != _SKIP:
                fields[k, 0, row] = start
                fields[k, 1, row] = stop
                empty[k, row] = start == stop
                if kind != _POINT and read != stop:
                    status |= _UNCLEAR
                k += 1
            while data[p] != _COMMA and data[p] != _NEWLINE:  # characters after the closing quote
                status = _BROKEN
                p += _ONE
            column += 1
            p += _ONE
            if data[p - _ONE] == _NEWLINE:
                break
        states[row] = status if column == kinds.size else _BROKEN


def _parquet_jobs(file: InputFile, layout: Layout) -> Generator[Job, None, None]:
    columns = [*layout.columns.values(), *layout.points]
    try:
        with _open(file.name, file.options) as opened:
            table = pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
            for name in columns:
                _require_type(table.schema_arrow.field(name), layout, file)
            columns += [_VALID] * (_VALID in table.schema_arrow.names)
            n_rows = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
                n_rows += batch.num_rows
                packed = int(file.size * n_rows / max(1, table.metadata.num_rows))
                yield partial(_parquet_block, batch, layout), packed
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{file.name} cannot be read ({reason_of(error)}): fetch it again"
        ) from error


def _require_type(field: pa.Field, layout: Layout, file: InputFile) -> None:
    kind = field.type
    whole = pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    if (field.name,) == layout.points:
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        good = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if any(is_list(kind) for is_list in lists):
            good = pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)
        expected = "lists of x, y and z, or text"
    elif field.name in {layout.columns.get(role) for role in _IDS}:
        good = whole
        expected = "integers: 18-digit ids are rounded by floats, export the table again"
    else:
        good, expected = whole or pa.types.is_floating(kind), "numbers: convert the column"
    if not good:
        raise SchemaError(f"{file.name}: {field.name} is {kind}, expected {expected}")


def _parquet_block(batch: pa.RecordBatch, layout: Layout) -> Block:
    numbers, null = {}, {}
    unclear = np.zeros(batch.num_rows, dtype=bool)
    for role, name in layout.columns.items():
        column = batch.column(name)
        null[role] = np.array(pc.is_null(column))
        try:
            # Fails for fractions, for NaN, and for what int64 does not hold.
            numbers[role] = np.array(pc.fill_null(column, 0).cast(pa.int64()))
        except pa.ArrowInvalid:
            numbers[role] = np.zeros(batch.num_rows, dtype=np.int64)
            unclear[:] = True
        if role not in ("pre", "post"):
            unclear |= null[role]
        if role not in _IDS:
            unclear |= numbers[role] < int(role == "count")

    def cells_of(row: int) -> dict[str, Any]:
        return {role: batch.column(name)[row].as_py() for role, name in layout.columns.items()}

    bad = _read_again(np.flatnonzero(unclear), cells_of, layout, numbers, null)
    return Block(
        numbers,
        {side: null[side] for side in ("pre", "post")},
        bad,
        lambda rows: [batch.column(name).take(pa.array(rows)) for name in layout.points],
        (lambda rows: batch.column(_VALID).take(pa.array(rows)))
        if _VALID in batch.schema.names
        else None,
        None,
        0,
    )


# Map rows to positions on the axes, and count dropped rows by reason.


Columns = dict[str, str | tuple[str, int]]


class Mapped(NamedTuple):
    """The kept rows of a block."""

    # position of a unit and columns of the rows, as `Mapper.columns`
    rows: list[tuple[np.ndarray, dict[str, np.ndarray]]]
    # numbers of rows and bad rows, of rows dropped by reason, and sums of sizes and counts
    counts: dict[str, float]
    lines: int
    size: int  # unpacked bytes
    bad: tuple[int, int | None, str] | None  # the first bad row, its byte, and the error


class Mapper:
    """Maps blocks of rows; may be used by several threads."""

    def __init__(
        self,
        units: xr.Dataset,
        layout: Layout,
        keep: Keep,
        shared: np.ndarray,
        space: Space,
        resolution_nm: Resolution | None,
    ) -> None:
        self._layout, self._keep = layout, keep
        self._space, self._resolution_nm = space, resolution_nm  # None without positions
        if layout.labels == "nucleus_id":
            labels = as_ids(units, "units")
            where = np.arange(labels.size)
            shared = np.empty(0, dtype=np.int64)
        else:
            labels, where = unit_roots(units)
        self._n_labels, self._where = labels.size, where.astype(np.int32)
        # Shared roots after the others: one lookup finds units and tells shared from unknown roots.
        shared = np.setdiff1d(shared[shared > 0], labels)
        self._lookup = Lookup(np.concatenate([labels, shared]), f"{layout.labels} of the units")
        self.units_by_position = np.zeros(units.sizes["nucleus_id"], dtype=np.int64)
        self.units_by_position[where] = labels
        # Whether a unit is presynaptic in a row with two units; threads only ever write True.
        self.named_pre = np.zeros(units.sizes["nucleus_id"], dtype=bool)
        single: Columns = {"id": "int64"} if "id" in layout.columns else {}
        if layout.points:
            single["point"] = ("float64", 3)
        pair: Columns = {"indices": "int32", "size": "int64"}
        if "count" in layout.columns:
            pair["count"] = "int64"
        # For `Spill`: columns of the rows with two units, sorted by post; and, unless only those
        # are kept, of the rows with a unit at one end, sorted by that unit.
        self.columns: list[Columns] = [pair | single]
        if keep != "both":
            self.columns = [pair, {"root": "int64", "size": "int64", **single}]

    def map(self, parse: Callable[[], Block]) -> Mapped:
        """Parse a block and select the rows to keep."""
        block = parse()
        numbers, bad = dict(block.numbers), dict(block.bad)
        codes = {side: self._lookup.find(numbers[side], 1) for side in ("pre", "post")}
        known = {
            side: (code >= 0) & (code < self._n_labels) & ~block.null[side]
            for side, code in codes.items()
        }
        n = len(numbers["size"])
        good = np.ones(n, dtype=bool)
        good[list(bad)] = False
        n_invalid = 0
        if block.valid is not None:
            rows = np.flatnonzero(good)
            codes_of, words = pd.factorize(
                block.valid(rows).dictionary_encode().to_pandas().replace("", None)
            )
            for k, word in enumerate(words):
                try:
                    is_valid = not is_false(pd.Series([word]), "the column 'valid'").any()
                except SchemaError:
                    is_valid = False
                    what = f"column 'valid' is {str(word)[:40]!r}, expected t or f, true or false"
                    bad |= dict.fromkeys(rows[codes_of == k].tolist(), what)
                else:
                    n_invalid += 0 if is_valid else int(np.count_nonzero(codes_of == k))
                if not is_valid:
                    good[rows[codes_of == k]] = False
        both = known["pre"] & known["post"] & good
        keep = both if self._keep == "both" else known[self._keep] & good
        if self._layout.points:
            # Positions of other rows are not read, so that their format does not matter.
            rows = np.flatnonzero(keep)
            texts = block.points(rows)
            numbers["point"] = np.full((n, 3), np.nan)
            numbers["point"][rows], wrong = points_of(texts)
            for k in np.flatnonzero(wrong).tolist():
                cells = [text[k].as_py() for text in texts]
                cell = cells[0] if len(cells) == 1 else ",".join(map(str, cells))
                bad[int(rows[k])] = f"column {POSITION!r} is {cell!r}, expected x, y and z"
            if self._resolution_nm is not None:
                points = numbers["point"][rows]
                beyond = self._space.outside(points, self._resolution_nm)
                if beyond.any():
                    first, *others = rows[beyond].tolist()
                    x, y, z = (f"{value:.10g}" for value in numbers["point"][first])
                    expected = self._space.expected(points, self._resolution_nm, _CALL)
                    bad[first] = (
                        f"a synapse at ({x}, {y}, {z}) is outside of the volume, {expected}"
                    )
                    bad |= dict.fromkeys(others, "a synapse is outside of the volume")
                wrong = wrong | beyond
            good[rows[wrong]] = False
            both, keep = both & good, keep & good
        counts: dict[str, float] = {"rows": int(np.count_nonzero(good)), "bad_lines": len(bad)}
        counts["not_valid"] = n_invalid
        for side, code in codes.items():
            require_unrounded(numbers[side], f"the column {self._layout.columns[side]!r}")
            lost = good & ~known[side]
            null = lost & block.null[side]
            zero = lost & ~null & (numbers[side] == 0)
            shared = lost & ~null & ~zero & (code >= 0)
            unknown = lost & ~null & ~zero & ~shared
            masks = {"null": null, "zero": zero, "shared": shared, "unknown": unknown}
            # The same reasons as in `build_connectivity`.
            counts |= {f"{side}_{reason}": int(np.count_nonzero(m)) for reason, m in masks.items()}
        counts["any_reason"] = counts["rows"] - int(np.count_nonzero(both))
        for role in ("size", "count"):
            if role in numbers:
                counts[f"sum of {role}"] = float(numbers[role].sum(dtype=np.float64, where=good))
        result = []
        ends = [(both, "post", "pre")]
        if self._keep != "both":
            ends.append((keep, self._keep, "post" if self._keep == "pre" else "pre"))
        for names, (mask, side, other) in zip(self.columns, ends, strict=True):
            rows = np.flatnonzero(mask)
            columns = {name: numbers[name][rows] for name in names if name in numbers}
            if "indices" in names:
                columns["indices"] = self._where[codes[other][rows]]
                self.named_pre[columns["indices"]] = True
            else:
                columns["root"] = numbers[other][rows]
            result.append((self._where[codes[side][rows]], columns))
        first = None
        if bad:
            row = min(bad)
            byte = None if block.begins is None else int(block.begins[row])
            first = row, byte, bad[row]
        return Mapped(result, counts, n, block.size, first)


# Read all files on threads, in order, to rows on disk.


_LARGEST_SUM = 9.2e18
_MARGIN = 1.1


def bar(total: int, text: str, unit: str, progress: bool) -> Any:
    """Return a progress bar, which is shown only on a terminal."""
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
    spills: list[Spill],
    row_bytes: int,
    count_bad: bool,
    progress: bool,
) -> Counter[str]:
    """Read all files, spill the kept rows, and return the counts over all rows."""
    counts: Counter[str] = Counter()
    # Line numbers, and which bad line is first, are only known when blocks are taken in order.
    threads = usable_threads(None, 1 << 30)
    before, total = 0, sum(file.size for file in files)
    with ExitStack() as stack:
        progress_bar = stack.enter_context(bar(total, "reading", "B", progress))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for file in files:
            line, byte = int(file.skip > 0), file.skip
            # Closed explicitly: a traceback would keep their threads alive.
            jobs = stack.enter_context(closing(read_jobs(file, layout)))
            results = stack.enter_context(closing(_in_order(pool, mapper, jobs, threads + 1)))
            for mapped, packed in results:
                if mapped.bad is not None and not count_bad:
                    raise SchemaError(_bad_line(file, mapped.bad, line, byte))
                counts.update(mapped.counts)  # type: ignore[arg-type]  # adds, and sums are floats
                _spill(mapped, spills)
                line += mapped.lines
                byte += mapped.size
                progress_bar.update(before + packed - progress_bar.n)
                _require_space(spills, before + packed, total, row_bytes)
            before += file.size
    for role in ("size", "count"):
        if counts[f"sum of {role}"] > _LARGEST_SUM:
            raise SchemaError(
                f"{layout.columns[role]} sums to {counts[f'sum of {role}']:.3g}, expected less "
                "than 9.2e18, which int64 holds: check the column; real sizes are below 1e7"
            )
    if counts["bad_lines"] and not counts["rows"]:
        raise SchemaError(
            f"all {counts['bad_lines']} lines of {files[0].name} are bad: pass "
            "on_bad_lines='error' to see why"
        )
    return counts


def _spill(mapped: Mapped, spills: list[Spill]) -> None:
    for spill, rows in zip(spills, mapped.rows, strict=True):
        spill.append(*rows)


def _require_space(spills: list[Spill], read: int, total: int, row_bytes: int) -> None:
    """Raise if the rest of the files will not fit on the disk, estimated from the rows so far."""
    rows = max(spill.rows for spill in spills) * max(total, read) / max(read, 1)
    needed = int(rows * row_bytes * _MARGIN) - sum(spill.nbytes for spill in spills)
    folder = os.path.dirname(spills[0].path)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SourceError(
            f"{folder} has {free / 1e9:.2f} GB free, but about {needed / 1e9:.2f} GB are needed "
            f"for the {rows:.0f} rows that are expected to be kept: free some space or write "
            "elsewhere"
        )


def _in_order(
    pool: ThreadPoolExecutor, mapper: Mapper, jobs: Iterable[Job], ahead: int
) -> Generator[tuple[Mapped, int], None, None]:
    """Yield the mapped blocks in order, with at most `ahead` of them in progress."""
    pending: deque[tuple[Future[Mapped], int]] = deque()
    try:
        for parse, packed in jobs:
            pending.append((pool.submit(mapper.map, parse), packed))
            while len(pending) > ahead:
                future, position = pending.popleft()
                yield future.result(), position
        while pending:
            future, position = pending.popleft()
            yield future.result(), position
    finally:
        for future, _ in pending:
            future.cancel()


def _bad_line(file: InputFile, bad: tuple[int, int | None, str], line: int, byte: int) -> str:
    row, begin, problem = bad
    if begin is None:
        where = f"row {line + row + 1}"
    else:
        stream = "unpacked file" if file.kind == "csv.gz" else "file"
        where = f"line {line + row + 1} (at byte {byte + begin} of the {stream})"
    return (
        f"{file.name} {where}: {problem}; repair the file or fetch it again, or pass "
        "on_bad_lines='count' to leave such lines out"
    )
