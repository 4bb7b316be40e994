"""One table file, read into a typed DataFrame or written from one.

csv, csv.gz, parquet and feather go through pyarrow, never through pickle. Whatever the format, the
same table comes out the same: integers as int64 (Int64 where a row has none), text as object, so
that an 18-digit id never passes through a float.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from microns_xr.errors import SourceError

__all__ = [
    "TABLE_SUFFIXES",
    "file_sha256",
    "frame_sha256",
    "read_table_file",
    "table_stem",
    "to_frame",
    "write_table_file",
]

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".feather")

# Words that stand for nothing in a column of numbers; a column of text keeps them as they are.
_NULLS = ["", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None"]
_BLOCK_BYTES = 8 << 20  # a row must fit in a block
_TEXT_TYPES = ("string", "large_string", "string_view")


def table_stem(path: Path) -> str | None:
    """Return the table name of a file, or None when the file is no table.

    Parameters
    ----------
    path : pathlib.Path
        Any path; it need not exist.

    Returns
    -------
    str or None
        Name without the suffix.

    Examples
    --------
    >>> table_stem(Path("raw/synapses_pni_2.csv.gz")), table_stem(Path("raw/MANIFEST.tsv"))
    ('synapses_pni_2', None)
    """
    for suffix in sorted(TABLE_SUFFIXES, key=len, reverse=True):
        stem = path.name.removesuffix(suffix)
        if stem != path.name and stem and not stem.startswith("."):
            return stem
    return None


def read_table_file(path: str | Path) -> pd.DataFrame:
    r"""Read one csv, csv.gz, parquet or feather file.

    Parameters
    ----------
    path : str or pathlib.Path
        The file; its suffix says the format.

    Returns
    -------
    pandas.DataFrame
        Integers as int64, or Int64 where a row has none; numbers with a decimal point or an
        exponent as floats; text as object (empty text in a csv stays empty text, missing text is
        None); True / False as bool; times as datetime64[us]; lists as object arrays; a column
        without any value as object Nones. Column names are kept, also repeated and empty ones.

    Raises
    ------
    SourceError
        If there is no such file, the suffix is none of the four, the file is empty, cut short,
        damaged or not UTF-8, or an integer does not fit int64.

    Notes
    -----
    A csv has no types: a column is integers only if all of its values are, in the whole file.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "roots.csv"
    >>> _ = path.write_text("pt_root_id,valid_id\n864691135000000001,\n864691135000000002,7\n")
    >>> read_table_file(path)
               pt_root_id  valid_id
    0  864691135000000001      <NA>
    1  864691135000000002         7
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
    """Write a table as csv or parquet, whole or not at all.

    Parameters
    ----------
    frame : pandas.DataFrame
        The table; its index is not written.
    path : str or pathlib.Path
        Ends in ``.csv`` or ``.parquet``; the folder is made. An old file is replaced.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    SourceError
        If the suffix is another, or the file cannot be written.
    """
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


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's bytes.

    Parameters
    ----------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    SourceError
        If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error}): check the file") from error


def frame_sha256(frame: pd.DataFrame) -> str:
    """Return a sha256 of a table's names, dtypes and values, for tables that come from no file.

    Parameters
    ----------
    frame : pandas.DataFrame
        Numbers, nullable integers, times and text.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> a = pd.DataFrame({"id": [1, 2]})
    >>> frame_sha256(a) == frame_sha256(a.copy()), frame_sha256(a) == frame_sha256(a + 1)
    (True, False)
    """
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
