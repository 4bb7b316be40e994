"""One table file, read into a typed DataFrame or written from one.

csv, csv.gz, parquet and feather go through pyarrow, never through pickle. Whatever the format, the
same table comes out the same: integers as int64 (Int64 where a row has none), text as object, so
that an 18-digit id never passes through a float.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from microns_xr.errors import SchemaError, SourceError
from microns_xr.sources.net import BadAnswer

# The one small protocol that every source of raw tables follows.


@runtime_checkable
class TableSource(Protocol):
    """What `Release` needs of a source: names of tables, and each table as it is.

    Attributes
    ----------
    datastack : str
        Name of the datastack, such as ``"minnie65_public"``.
    version : int or None
        Materialization version the tables are of; None when the source cannot know.
    scope : str
        What a table of synapses of this source holds: ``"complete"``, ``"requested"`` or
        ``"unknown"``.
    """

    @property
    def datastack(self) -> str:
        """Name of the datastack."""
        ...

    @property
    def version(self) -> int | None:
        """Materialization version."""
        ...

    @property
    def scope(self) -> str:
        """What a table of synapses holds."""
        ...

    def available_tables(self) -> list[str]:
        """Names of the tables that `read` can give, sorted."""
        ...

    def read(self, name: str) -> pd.DataFrame:
        """Return one table: ids as int64 or Int64, text as object, never through float.

        Raises
        ------
        SourceError
            If there is no such table, or it cannot be read.
        """
        ...

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what is known of a table that was read: ``name``, ``rows``, ``sha256``."""
        ...


# What goes over the wire: values of a filter, an Arrow stream, the header that says it was cut.


# How an Arrow stream ends. A stream may lack it by the letter of the format, and then nothing tells
# a whole one from one that broke off between two messages; the service always writes it.
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# The service opens a quotation mark before this and never closes it.
_LIMITED = re.compile(r"Limited query to (\d+) rows")


@dataclass(frozen=True)
class Answer:
    """The rows that a query brought."""

    # integers as int64, other numbers as double, text as string, truth as bool, times as
    # microseconds, positions as three columns ``X_position_x``, ``_y``, ``_z``. Rows in no
    # order.
    table: pa.Table
    # the row limit, when the answer has as many rows as that: it may be cut. None: it is whole.
    limited_to: int | None = None
    # voxel size of the positions, where the service says so
    resolution_nm: tuple[float, ...] | None = None


def read_answer(content: bytes, headers: Mapping[str, str]) -> Answer:
    """Read the body and the headers of an answer."""
    kind = headers.get("Content-Type", "")
    if "arrow" not in kind:
        raise BadAnswer(f"the answer is {kind or 'of no type'}, expected an Arrow stream")
    if not content.endswith(_END):
        raise BadAnswer(f"the answer of {len(content)} bytes breaks off before its end mark")
    with pa.ipc.open_stream(content) as reader:
        table = reader.read_all()
    limit = _LIMITED.search(headers.get("Warning", ""))
    resolution = re.findall(r"[\d.]+", headers.get("dataframe_resolution", ""))
    return Answer(
        plain_types(table),
        int(limit[1]) if limit else None,
        tuple(map(float, resolution)) if len(resolution) == 3 else None,
    )


def plain_types(table: pa.Table) -> pa.Table:
    """Widen every column to the one type of its kind, so that equal values are equal to the bit."""
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns.append(_plain(column))
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"column {name!r} holds values that fit no plain type ({error}): it is no column "
                "of this service, report it"
            ) from error
    return pa.Table.from_arrays(columns, names=table.column_names)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return column.cast(pa.int64())
    if types.is_floating(kind) or types.is_decimal(kind):
        return column.cast(pa.float64())
    if types.is_large_string(kind) or str(kind) == "string_view":
        return column.cast(pa.string())
    if types.is_timestamp(kind):
        return pc.cast(column, pa.timestamp("us", tz=kind.tz), safe=False)
    return column


def as_list(document: Any) -> list[Any]:
    """Return a JSON document that is a list; raise `BadAnswer` for any other."""
    if not isinstance(document, list):
        raise BadAnswer(f"the answer is a {type(document).__name__}, expected a list")
    return document


def as_number(document: Any) -> int:
    """Return a JSON document that is a number of rows; raise `BadAnswer` for any other."""
    if isinstance(document, bool) or not isinstance(document, int) or document < 0:
        raise BadAnswer(f"the answer is {document!r}, expected a number of rows")
    return document


def filter_values(column: str, values: Any) -> list[Any]:
    """Return the values of a filter as JSON holds them."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if any(isinstance(value, float) for value in values):
        raise SchemaError(
            f"the filter of {column} holds floats, expected integers: 18-digit ids are rounded by "
            "floats; read the ids again as int64"
        )
    return [value.item() if isinstance(value, np.generic) else value for value in values]


TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".feather")

# Words that stand for nothing in a column of numbers; a column of text keeps them as they are.
_NULLS = ["", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None"]
_BLOCK_BYTES = 8 << 20  # a row must fit in a block
_TEXT_TYPES = ("string", "large_string", "string_view")


def table_stem(path: Path) -> str | None:
    """Return the table name of a file, or None when the file is no table."""
    for suffix in sorted(TABLE_SUFFIXES, key=len, reverse=True):
        stem = path.name.removesuffix(suffix)
        if stem != path.name and stem and not stem.startswith("."):
            return stem
    return None


def read_table_file(path: str | Path) -> pd.DataFrame:
    """Read one csv, csv.gz, parquet or feather file.

    A csv has no types: a column is integers only if all of its values are, in the whole file.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"there is no file {path}: check the name and the folder")
    if table_stem(path) is None:
        raise SourceError(
            f"{path} has none of the suffixes {', '.join(TABLE_SUFFIXES)}: "
            "save the table in one of these formats"
        )
    try:
        if path.name.endswith(".parquet"):
            # ParquetFile, because read_table makes columns of folders that are named a=b.
            with pa.parquet.ParquetFile(path) as file:
                table = file.read()
        elif path.name.endswith(".feather"):
            table = pa.feather.read_table(path, memory_map=False)
        else:
            table = _read_csv(path)
        return to_frame(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{path} cannot be read ({reason}): it is damaged, cut short or in another format than "
            "its suffix says; fetch or write it again"
        ) from error


def _read_csv(path: Path) -> pa.Table:
    def read(text_columns: list[str]) -> pa.Table:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
            # Arrays as numpy prints them break over lines.
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                null_values=_NULLS, column_types={name: pa.string() for name in text_columns}
            ),
        )

    table = read([])
    # Words that look like a time of day stay words.
    times = [field.name for field in table.schema if pa.types.is_time(field.type)]
    return read(times) if times else table


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table of Arrow as a DataFrame, typed as `read_table_file` types it."""
    # By position: names may repeat.
    columns = {
        i: _to_series(column, name)
        for i, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True))
    }
    frame = pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows))
    frame.columns = pd.Index(table.column_names)
    return frame


def _to_series(column: pa.ChunkedArray, name: str) -> pd.Series:
    kind = column.type
    types = pa.types
    if types.is_dictionary(kind):
        return _to_series(column.cast(kind.value_type), name)
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return _to_integers(column, name)
    if types.is_boolean(kind):
        values = np.array(column.fill_null(False).to_numpy())
        if column.null_count:
            return pd.Series(pd.arrays.BooleanArray(values, column.is_null().to_numpy()))
        return pd.Series(values)
    if types.is_floating(kind) or types.is_decimal(kind):
        numbers = column.cast(pa.float64()) if types.is_decimal(kind) else column
        return pd.Series(np.array(numbers.to_numpy()))
    if str(kind) in _TEXT_TYPES or types.is_null(kind):
        # Named object dtype: newer pandas would infer its own text dtype.
        return pd.Series(column.to_numpy(), dtype=object)
    if types.is_timestamp(kind) or types.is_date(kind):
        zone = kind.tz if types.is_timestamp(kind) else None
        return column.cast(pa.timestamp("us", tz=zone), safe=False).to_pandas()
    if types.is_binary(kind) or types.is_large_binary(kind):
        raise SourceError(
            f"column {name!r} holds bytes that are not UTF-8 text: save the file as UTF-8"
        )
    return pd.Series(column.to_pandas(), dtype=object)


def _to_integers(column: pa.ChunkedArray, name: str) -> pd.Series:
    try:
        column = column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"column {name!r} holds integers beyond int64 ({error}): it holds no ids"
        ) from error
    if not column.null_count:
        return pd.Series(np.array(column.to_numpy()))
    values = np.array(column.fill_null(0).to_numpy())
    return pd.Series(pd.arrays.IntegerArray(values, np.array(column.is_null().to_numpy())))


def write_table_file(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as csv or parquet, whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".tmp")
    if path.suffix not in (".csv", ".parquet"):
        raise SourceError(f"{path} ends in {path.suffix!r}, expected '.csv' or '.parquet'")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        if path.suffix == ".csv":
            options = pa.csv.WriteOptions(quoting_style="needed")
            pa.csv.write_csv(table, part, write_options=options)
        else:
            pa.parquet.write_table(table, part, compression="zstd")
        part.replace(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be written ({error}): check the folder") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def frame_sha256(frame: pd.DataFrame) -> str:
    """Return a sha256 of a table's names, dtypes and values, for tables that come from no file."""
    digest = hashlib.sha256()
    for name in frame.columns:
        column: Any = frame[name]
        digest.update(f"{name}:{column.dtype}:{len(column)};".encode())
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        if pd.api.types.is_extension_array_dtype(column.dtype):
            digest.update(column.isna().to_numpy(dtype=np.bool_).tobytes())
            column = column.fillna(0).to_numpy(dtype=np.int64)
        values = np.ascontiguousarray(column)
        if values.dtype == object:
            digest.update("\x1f".join(map(repr, values.tolist())).encode())
        else:
            digest.update(values.tobytes())
    return digest.hexdigest()
