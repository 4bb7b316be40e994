"""Files of synapses as blocks of rows: unpacked ahead in a thread of its own, parsed where called.

A block is handed out as a function, so that several can be parsed at a time. What it returns says
how many lines it had and where the first bad one is; only who takes the blocks in order knows the
number of a line in the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from isal import igzip

from microns_xr.errors import SchemaError, SourceError
from microns_xr.ingest.layout import DAMAGED, POSITION, InputFile, Layout, broken
from microns_xr.ingest.parse import BAD, parse_lines, parse_points
from microns_xr.source.archive_header import Header
from microns_xr.source.archive_values import finish_columns

__all__ = ["BadRow", "Job", "Rows", "read_jobs"]

_BLOCK_BYTES = 8 << 20
_LONGEST_LINE = 64 << 20
_AHEAD = 3  # blocks that are unpacked before they are asked for
_BATCH_ROWS = 1 << 17
_Points = Callable[[np.ndarray], tuple[np.ndarray, "BadRow | None", np.ndarray]]


@dataclass(frozen=True)
class BadRow:
    """The first row of a block that cannot be read.

    Attributes
    ----------
    line : int
        Its number in the block, from 0.
    byte : int
        Of the unpacked block; -1 for a parquet file.
    what : str
        The column, what was found and what was expected.
    """

    line: int
    byte: int
    what: str


@dataclass(frozen=True)
class Rows:
    """The rows of a block.

    Attributes
    ----------
    numbers : dict of str to numpy.ndarray
        Role to int64 values, of ``pre``, ``post``, ``size``, perhaps ``count`` and ``id``.
    null : dict of str to numpy.ndarray
        Of ``pre`` and ``post``: bool, where there is none.
    points : callable
        Gives the positions of some rows in voxels, the first bad one, and all that are bad.
    lines, bad_lines, size : int
        Lines read, those that are in no row, and unpacked bytes.
    bad : BadRow or None
        The first of them.
    """

    numbers: dict[str, np.ndarray]
    null: dict[str, np.ndarray]
    points: _Points
    lines: int
    bad_lines: int
    size: int
    bad: BadRow | None


@dataclass(frozen=True)
class Job:
    """A block to be parsed, and how many bytes of the file were read up to its end."""

    parse: Callable[[], Rows]
    packed: int


def read_jobs(
    file: InputFile, layout: Layout, *, count_bad: bool = False, block_bytes: int = _BLOCK_BYTES
) -> Generator[Job, None, None]:
    """Read a file block by block.

    Parameters
    ----------
    file : InputFile
        The file.
    layout : Layout
        Which columns are needed.
    count_bad : bool, optional
        Whether bad lines are left out and counted; otherwise a block ends at its first one.
    block_bytes : int, optional
        Unpacked bytes of a block of lines.

    Yields
    ------
    Job
        In the order of the file.

    Raises
    ------
    IncompleteDownloadError
        If a packed file is cut short.
    SourceError
        If it cannot be read or is damaged.
    SchemaError
        If ids of a parquet file are no integers.
    """
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
) -> Callable[[], Rows]:
    kinds, nullable, least, roles = plan

    def parse() -> Rows:
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
        return Rows(
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


def _batch_rows(file: InputFile, layout: Layout, batch: pa.RecordBatch) -> Rows:
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
    return Rows(
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
