"""Raw tables: the interface of their sources, and reading and writing single table files.

csv, csv.gz, parquet and feather are read with pyarrow, never with pickle. A table is the same in
every format: integers are int64 (Int64 if there are missing values), text is object, and an
18-digit id never passes through a float.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
from isal import igzip
from isal.igzip_lib import IsalError

from microns_xr.columns import tidy_columns
from microns_xr.errors import IncompleteDownloadError, SourceError, is_shortage, warn_user
from microns_xr.files import new_file, read_json, write_json
from microns_xr.frames import RESOLUTION

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".feather")

TABLE_NAME = re.compile(r"\w[\w.-]*")

# Words that are nulls in a column of numbers; text columns keep them as they are.
_NULLS = ["", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None"]
_BLOCK_BYTES = 8 << 20  # a row must fit in a block
# Errors that unpacking may raise.
DAMAGED: Any = (EOFError, OSError, zlib.error, IsalError)
Rows = TypeVar("Rows")
_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


@runtime_checkable
class TableSource(Protocol):
    """Interface of a source of raw tables, as `Release` needs it.

    Attributes
    ----------
    datastack : str or None
        Name of the datastack, such as ``"minnie65_public"``; None if unknown.
    version : int or None
        Materialization version of the tables; None if unknown.
    scope : str
        Which synapses a synapse table of this source holds: ``"complete"``, ``"requested"`` or
        ``"unknown"``.

    Examples
    --------
    >>> class Mine:
    ...     datastack, version, scope = "mine", 1, "unknown"
    ...     def available_tables(self):
    ...         return ["nuclei"]
    ...     def read(self, name):
    ...         return pd.DataFrame({"id": [7]})
    ...     def provenance(self, name):
    ...         return {"name": name, "rows": 1, "sha256": ""}
    >>> isinstance(Mine(), TableSource)
    True
    """

    datastack: str | None
    version: int | None
    scope: str

    def available_tables(self) -> list[str]:
        """Return the names of the tables.

        Returns
        -------
        list of str
            Sorted names.
        """

    def read(self, name: str) -> pd.DataFrame:
        """Return one table.

        Parameters
        ----------
        name : str
            Name of the table.

        Returns
        -------
        pandas.DataFrame
            A copy: ids as int64 (Int64 if there are missing values), never converted to float;
            text as object, times in UTC.

        Raises
        ------
        SourceError
            If there is no such table, or it cannot be read.
        """

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what is known about a table, reading it first if necessary.

        Parameters
        ----------
        name : str
            Name of the table.

        Returns
        -------
        dict
            ``name``, ``rows``, ``sha256`` and anything else that the source knows.

        Raises
        ------
        SourceError
            As for `read`.
        """


def require_table_name(name: str) -> str:
    """Return a table name after checking that it can be part of a file name."""
    if not TABLE_NAME.fullmatch(name):
        raise SourceError(f"{name!r} is not a table name: expected letters, digits, '_', '-', '.'")
    return name


# ----------------------------------------------------------------------------------------- types


def plain_types(table: pa.Table) -> pa.Table:
    """Widen every column to one type per kind, so that equal values are bit-identical."""
    columns = list(map(_plain, table.columns, table.column_names))
    return pa.Table.from_arrays(columns, names=table.column_names)


def _plain(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type), name)
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"column {name!r} holds integers beyond int64 ({error}): no ids or other values of "
                "a table are that large; check where the table is from"
            ) from error
    if types.is_floating(kind) or types.is_decimal(kind):
        return column.cast(pa.float64())
    if types.is_large_string(kind) or str(kind) == "string_view":
        return column.cast(pa.string())
    if types.is_timestamp(kind):
        return pc.cast(column, pa.timestamp("us", tz=kind.tz), safe=False)
    return column


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a DataFrame, with the dtypes of `read_table_file`."""
    columns = map(_to_series, table.columns, table.column_names)
    # By position: names may repeat.
    frame = pd.DataFrame(dict(enumerate(columns)), index=pd.RangeIndex(table.num_rows))
    frame.columns = pd.Index(table.column_names)
    return frame


def _to_series(column: pa.ChunkedArray, name: str) -> pd.Series:
    types = pa.types
    if not types.is_floating(column.type):  # keep single precision
        column = _plain(column, name)
    kind = column.type
    if kind in _NULLABLE and column.null_count:
        return column.to_pandas(types_mapper=_NULLABLE.get)
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind):
        return pd.Series(np.array(column.to_numpy()))  # copied: Arrow's memory is read-only
    if types.is_string(kind) or types.is_null(kind):
        # Explicitly object: newer pandas would infer its own text dtype.
        return pd.Series(column.to_numpy(), dtype=object)
    if types.is_timestamp(kind):
        return column.to_pandas()
    if types.is_date(kind):
        return column.cast(pa.timestamp("us")).to_pandas()
    if types.is_binary(kind) or types.is_large_binary(kind):
        raise SourceError(
            f"column {name!r} holds bytes that are not UTF-8 text: save the file as UTF-8"
        )
    return pd.Series(column.to_pandas(), dtype=object)


# ----------------------------------------------------------------------------------------- files


def reason_of(error: Exception) -> str:
    """Return the first line of an error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def table_stem(path: Path) -> str | None:
    """Return the table name of a file, or None if the file is not a table."""
    stems = (path.name.removesuffix(suffix) for suffix in TABLE_SUFFIXES)
    return next((stem for stem in stems if stem not in ("", path.name) and stem[0] != "."), None)


def read_table_file(path: str | os.PathLike[str], *, spelling: bool = True) -> pd.DataFrame:
    """Read one csv, csv.gz, parquet or feather file.

    A csv file has no types: a column is integer only if all of its values are integers. An index
    without a name is left out; known names in other case get theirs, unless `spelling` is False.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"there is no file {path}: check the name and the folder")
    if table_stem(path) is None:
        raise SourceError(
            f"{path} has none of the suffixes {', '.join(TABLE_SUFFIXES)}: "
            "save the table in one of these formats"
        )
    require_whole(path)
    try:
        if path.suffix == ".parquet":
            # ParquetFile, because read_table turns folders that are named a=b into columns.
            with pa.parquet.ParquetFile(path) as file:
                table = file.read()
        elif path.suffix == ".feather":
            table = pa.feather.read_table(path, memory_map=False)
        else:
            table = _read_csv(path)
        frame = tidy_columns(to_frame(table), path.name, spelling=spelling)
        stated = stated_resolution(table.schema.metadata) or side_resolution(path)
        if stated is not None:
            frame.attrs[RESOLUTION] = stated
        return frame
    except (pa.ArrowException, *DAMAGED, ValueError) as error:
        if isinstance(error, SourceError) or is_shortage(error):
            raise
        raise SourceError(
            f"{path} cannot be read ({reason_of(error)}): it is damaged, cut short or in another "
            "format than its suffix says; fetch or write it again"
        ) from error


def read_if_path(table: Rows | str | os.PathLike[str]) -> Rows | pd.DataFrame:
    """Return the table of a file, with the columns as they are; anything else unchanged."""
    return read_table_file(table, spelling=False) if isinstance(table, str | os.PathLike) else table


# The resolution of the positions: in the attributes that pandas writes into parquet and feather
# files, or, for csv, in a file NAME.json beside NAME.csv.


def stated_resolution(metadata: Mapping[bytes, bytes] | None) -> Any:
    """Return the resolution that an Arrow schema states; None if it states none."""
    metadata = metadata or {}
    for document in (metadata.get(b"PANDAS_ATTRS"), metadata.get(b"pandas")):
        try:
            content = json.loads(document or b"{}")
            attrs = {**content, **(content.get("attributes") or {})}
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
        if attrs.get(RESOLUTION) is not None:
            return attrs[RESOLUTION]
    return None


def side_file(path: str | Path) -> Path:
    """Return the file that states the resolution of a csv file, if it exists."""
    path = Path(path)
    return path.with_name(f"{table_stem(path) or path.stem}.json")


def side_resolution(path: str | Path) -> Any:
    """Return the resolution that the file beside a table states; None if it states none."""
    content = read_json(side_file(path))
    return content.get(RESOLUTION, content.get("resolution_nm"))


# A text that was cut short may read as a smaller number, and a gzip file that was cut between two
# of its members is a valid one. What is left to see is the line break that the last line lacks.


class GzipText(igzip.IGzipFile):
    """A gzip file that keeps the last byte that was read."""

    last = b"\n"

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = super().read(size)
        self.last = data[-1:] or self.last
        return data


def require_whole(path: Path) -> None:
    """Raise unless a file that was fetched has the size that it had then."""
    record_path = path.with_name(f"{path.name}.json")
    record = read_json(record_path)
    if record.keys() >= {"url", "size", "sha256"} and path.stat().st_size != record["size"]:
        raise IncompleteDownloadError(
            f"{path} has {path.stat().st_size} bytes, expected {record['size']} as when it was "
            f"fetched: fetch it again, or remove {record_path.name} if you have changed the file"
        )


def warn_of_cut_text(name: str | Path) -> None:
    """Warn that the last of several lines does not end."""
    warn_user(
        f"the last line of {name} has no line break, unlike the others: if the file was cut short, "
        "that line has lost digits and others are missing; compare the file with its source, or "
        "end it with a line break"
    )


def _read_csv(path: Path) -> pa.Table:
    def read(text_columns: list[str]) -> tuple[pa.Table, bytes]:
        with GzipText(path) if path.suffix == ".gz" else open(path, "rb") as file:
            table = pa.csv.read_csv(
                file,
                read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
                # Arrays printed by numpy may span several lines.
                parse_options=pa.csv.ParseOptions(newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    null_values=_NULLS, column_types={name: pa.string() for name in text_columns}
                ),
            )
            if isinstance(file, GzipText):
                return table, file.last
            file.seek(-1, os.SEEK_END)
            return table, file.read()

    table, last = read([])
    # Keep text that looks like a time of day as text.
    times = [field.name for field in table.schema if pa.types.is_time(field.type)]
    if last != b"\n" and table.num_rows:
        warn_of_cut_text(path)
    return read(times)[0] if times else table


def write_table_file(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as csv or parquet, atomically."""
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise SourceError(f"{path} ends in {path.suffix!r}, expected '.csv' or '.parquet'")
    try:
        with new_file(path) as part:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if path.suffix == ".csv":
                pa.csv.write_csv(table, part, pa.csv.WriteOptions(quoting_style="needed"))
                stated, side = frame.attrs.get(RESOLUTION), side_file(path)
                if stated is not None:
                    write_json(side, {RESOLUTION: stated})
                elif set(read_json(side)) == {RESOLUTION}:
                    side.unlink()
            else:
                pa.parquet.write_table(table, part, compression="zstd")
    except pa.ArrowException as error:
        raise SourceError(f"{path} cannot be written ({error}): check the table") from error
    return path


def frame_sha256(frame: pd.DataFrame) -> str:
    """Return a sha256 of a table's names, dtypes and values, for tables that are not files."""
    digest = hashlib.sha256()
    for name, column in frame.items():
        digest.update(f"{name}:{column.dtype};".encode())
        if column.dtype == object:
            column = column.map(repr)  # pandas cannot hash rows of lists
        hashes = pd.util.hash_pandas_object(column, index=False)
        digest.update(hashes.to_numpy(dtype="<u8").tobytes())
    return digest.hexdigest()
