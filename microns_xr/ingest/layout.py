"""What a file of synapses is: where it lies, how it is written, which column is which."""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from gzip import BadGzipFile
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pandas as pd
from isal import igzip
from isal.igzip_lib import IsalError

from microns_xr.connectivity.synapse_table import Rows, read_synapse_table
from microns_xr.errors import IncompleteDownloadError, SchemaError, SourceError
from microns_xr.ingest.parse import ID, POINT, SKIP, WHOLE
from microns_xr.source.archive_header import Header, columns_of, parse_header

__all__ = ["DAMAGED", "HeaderLike", "InputFile", "Layout", "broken", "find_files", "layout_of"]

# What unpacking raises.
DAMAGED: Any = (EOFError, OSError, zlib.error, IsalError)
HeaderLike = str | os.PathLike[str] | Header | Sequence[str]

POSITION = "ctr_pt_position"
_SIZES = ("size", "sum_size", "synapse_size")
_COUNTS = ("n_syn", "synapse_count")
_FIRST_LINE = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """One file of the table.

    Attributes
    ----------
    name : str
        As messages call it.
    size : int
        Bytes.
    kind : {"csv", "csv.gz", "parquet"}
        How it is written, from its first bytes.
    header : Header
        Names of its columns; of a file that says them itself, without their types.
    skip : int
        Bytes, unpacked, of the line that says them.
    """

    name: str
    size: int
    kind: str
    header: Header
    skip: int
    options: Mapping[str, Any]

    def open(self) -> IO[bytes]:
        """Open the file, packed as it is."""
        return _open(self.name, self.options)


@dataclass(frozen=True)
class Layout:
    """Which columns are needed, and what they are.

    Attributes
    ----------
    labels : {"pt_root_id", "nucleus_id"}
        What the partners are named by.
    rows : {"synapse", "pair", "auto"}
        What a row is; "auto" when the columns do not tell.
    pre, post, size : str
        Columns.
    count, id : str or None
        Columns, where there are such and they are needed.
    points : tuple of str
        Columns of the position: none, one or three.
    """

    labels: str
    rows: Rows
    pre: str
    post: str
    size: str
    count: str | None
    id: str | None
    points: tuple[str, ...]

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
    """Look at the files of a table: all there, each once, and what their columns are.

    Parameters
    ----------
    files : str, path-like or sequence of them
        Local paths or addresses.
    header : path, Header or sequence of str, or None
        See `microns_xr.ingest.ingest.ingest_synapses`.
    options : mapping
        Passed to fsspec.

    Returns
    -------
    list of InputFile
        In the order given.

    Raises
    ------
    SchemaError
        If there is none, one is given twice, or a file does not say its columns.
    SourceError
        If one cannot be read.
    """
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
    """Say which columns are needed, from their names.

    Parameters
    ----------
    files : sequence of InputFile
        All of the table.
    rows : {"auto", "synapse", "pair"}
        As the caller says.
    positions : bool
        Whether positions are needed.
    singles : bool
        Whether single synapses are kept, by root id or with positions.

    Returns
    -------
    Layout
        The same for all files.

    Raises
    ------
    SchemaError
        As `microns_xr.connectivity.synapse_table.read_synapse_table` of a table with these
        columns; and if files differ in them, or columns of single synapses are absent.
    """
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
