"""Data files of the archive: whole tables, and blocks of one that is too large for memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from isal import igzip
from isal.igzip_lib import IsalError

from microns_xr.errors import SourceError
from microns_xr.source.archive_header import Header, describe_bad_csv
from microns_xr.source.archive_values import finish_columns

__all__ = ["Block", "read_archived", "read_blocks"]

_CSV_BYTES = 4 << 20  # that one thread parses at a time; a row must fit in it
_BLOCK_BYTES = 8 << 20  # unpacked; larger ones cost more system time (measured)
_LONGEST_LINE = 64 << 20
_DAMAGED: Any = (EOFError, OSError, zlib.error, IsalError)


def read_archived(path: str | Path, header: Header) -> pa.Table:
    r"""Read a data file whole.

    Parameters
    ----------
    path : str or pathlib.Path
        Gzipped CSV without a header line.
    header : Header
        Its columns.

    Returns
    -------
    pyarrow.Table
        Typed by the header: integers as int64, other numbers as float64, t and f as bool, text as
        string (nothing is a null, "" an empty text), times as timestamps in microseconds of UTC,
        positions as three columns, arrays as lists. Rows in the order of the file.

    Raises
    ------
    SourceError
        If the file is no gzip, cut short or damaged, or a line does not fit the header.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "nuclei.csv.gz"
    >>> _ = path.write_bytes(gzip.compress(b"864691135000000001,t\n,f\n"))
    >>> header = Header(("pt_root_id", "valid"), ("bigint", "boolean"))
    >>> read_archived(path, header).to_pydict()
    {'pt_root_id': [864691135000000001, None], 'valid': [True, False]}
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") as file:
            empty = not file.read(1)
        if empty:
            table = pa.table({n: pa.array([], t) for n, t in header.arrow_types().items()})
        else:
            table = _parse(path, header, None, 1, str(path))
    except _DAMAGED as error:
        if isinstance(error, SourceError):
            raise
        raise _damaged(path, error) from error
    return finish_columns(table, header, str(path))


def _damaged(path: Path, error: Exception, after: str = "") -> SourceError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SourceError(
        f"{path} is no whole gzip file{after} ({said}): it is cut short or damaged; remove it and "
        "fetch it again"
    )


def _parse(
    what: Path | bytes, header: Header, columns: list[str] | None, first_line: int, where: str
) -> pa.Table:
    def parse(threads: bool) -> pa.Table:
        source = str(what) if isinstance(what, Path) else pa.BufferReader(what)
        return pa.csv.read_csv(
            source,
            read_options=header.read_options(block_size=_CSV_BYTES, use_threads=threads),
            # An empty line is one null, or a row that has lost its values: never skip it.
            parse_options=pa.csv.ParseOptions(
                newlines_in_values=isinstance(what, Path), ignore_empty_lines=False
            ),
            convert_options=header.convert_options(columns),
        )

    try:
        table = _without_empty_lines(parse(threads=True), header)
    except pa.ArrowInvalid:
        pass
    else:
        return table
    try:  # only one thread knows the number of a line
        return _without_empty_lines(parse(threads=False), header)
    except pa.ArrowInvalid as error:
        raise SourceError(describe_bad_csv(error, header, where, first_line)) from error


def _without_empty_lines(table: pa.Table, header: Header) -> pa.Table:
    """Return a table, or raise where a line has no values at all; pyarrow makes nulls of it."""
    if len(header.names) > 1 and all(column.null_count for column in table.columns):
        nulls = [column.is_null().to_numpy() for column in table.columns]
        empty = np.flatnonzero(np.logical_and.reduce(nulls))
        if len(empty):
            raise pa.ArrowInvalid(f"Row #{empty[0] + 1}: there are no values")
    return table


@dataclass(frozen=True)
class Block:
    """Some lines of a data file.

    Attributes
    ----------
    table : pyarrow.Table
        The columns that are wanted, as pyarrow reads them: `finish_columns` has still to be called.
    start, stop : int
        Bytes of the unpacked file that they are.
    packed : int
        About how many bytes of the packed file have been read.
    """

    table: pa.Table
    start: int
    stop: int
    packed: int


def read_blocks(
    path: str | Path,
    header: Header,
    columns: list[str],
    *,
    start: int = 0,
    first_line: int = 1,
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[Block]:
    r"""Read some columns of a data file, block by block, from some line on.

    Parameters
    ----------
    path : str or pathlib.Path
        Gzipped CSV without a header line, no value of which holds a line break.
    header : Header
        Its columns.
    columns : list of str
        Those that are wanted.
    start : int, optional
        Byte of the unpacked file at which a line begins; what is before is unpacked only.
    first_line : int, optional
        Number of that line.
    block_bytes : int, optional
        Bytes of a block, unpacked.

    Yields
    ------
    Block
        In the order of the file. The same `start` gives the same blocks.

    Raises
    ------
    SourceError
        As `read_archived`, naming the line of the file.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pairs.csv.gz"
    >>> _ = path.write_bytes(gzip.compress(b"1,5\n2,6\n3,7\n"))
    >>> header = Header(("pre", "post"), ("bigint", "bigint"))
    >>> [b.table["post"].to_pylist() for b in read_blocks(path, header, ["post"], block_bytes=9)]
    [[5, 6], [7]]
    """
    path = Path(path)
    line = first_line
    try:
        with open(path, "rb") as packed, igzip.open(packed, "rb") as file:
            if not _skip(file, start):
                raise SourceError(
                    f"{path} has fewer than {start} bytes unpacked: it is not the file that was "
                    "read before; remove it and fetch it again"
                )
            for lines in _whole_lines(file, block_bytes):
                table = _parse(lines, header, columns, line, str(path))
                yield Block(table, start, start + len(lines), packed.tell())
                start += len(lines)
                line += table.num_rows
    except _DAMAGED as error:
        if isinstance(error, SourceError):
            raise
        raise _damaged(path, error, f" after line {line - 1}") from error


def _whole_lines(file: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    """Yield the rest of a file in blocks of whole lines; unpacks one block ahead of the reader."""
    rest = b""
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:
        coming = pool.submit(file.read, block_bytes)
        while data := coming.result():
            coming = pool.submit(file.read, block_bytes)
            end = data.rfind(b"\n") + 1
            if end:
                yield rest + data[:end]
                rest = data[end:]
            else:
                rest += data
                if len(rest) > _LONGEST_LINE:
                    raise OSError(f"there is no line break in {len(rest)} bytes")
    if rest:
        yield rest


def _skip(file: IO[bytes], count: int) -> bool:
    while count:
        data = file.read(min(count, _BLOCK_BYTES))
        if not data:
            return False
        count -= len(data)
    return True
