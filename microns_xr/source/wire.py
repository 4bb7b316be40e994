"""What goes over the wire: values of a filter, an Arrow stream, the header that says it was cut."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from microns_xr.errors import SchemaError, SourceError
from microns_xr.source.retry import BadAnswer

__all__ = ["Answer", "as_list", "as_number", "filter_values", "plain_types", "read_answer"]

# How an Arrow stream ends. A stream may lack it by the letter of the format, and then nothing tells
# a whole one from one that broke off between two messages; the service always writes it.
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# The service opens a quotation mark before this and never closes it.
_LIMITED = re.compile(r"Limited query to (\d+) rows")


@dataclass(frozen=True)
class Answer:
    """The rows that a query brought.

    Attributes
    ----------
    table : pyarrow.Table
        Integers as int64, other numbers as double, text as string, truth as bool, times as
        microseconds, positions as three columns ``X_position_x``, ``_y``, ``_z``. Rows in no order.
    limited_to : int or None
        The row limit, when the answer has as many rows as that: it may be cut. None: it is whole.
    resolution_nm : tuple of float or None
        Voxel size of the positions, where the service says so.
    """

    table: pa.Table
    limited_to: int | None = None
    resolution_nm: tuple[float, ...] | None = None


def read_answer(content: bytes, headers: Mapping[str, str]) -> Answer:
    """Read the body and the headers of an answer.

    Parameters
    ----------
    content : bytes
        The body.
    headers : mapping of str to str
        The headers.

    Returns
    -------
    Answer
        Its rows.

    Raises
    ------
    BadAnswer
        If the body is no Arrow stream with its end.
    pyarrow.ArrowInvalid, OSError
        If it is damaged.
    """
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
    """Widen every column to the one type of its kind, so that equal values are equal to the bit.

    Parameters
    ----------
    table : pyarrow.Table
        Any table.

    Returns
    -------
    pyarrow.Table
        Integers as int64, other numbers as double, text as string, times as timestamps of
        microseconds; other types as they are. Without metadata of pandas.

    Raises
    ------
    SourceError
        If an integer does not fit int64.

    Examples
    --------
    >>> plain_types(pa.table({"id": pa.array([1, None], pa.int32())})).schema.field("id").type
    DataType(int64)
    """
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
    """Return the values of a filter as JSON holds them.

    Parameters
    ----------
    column : str
        The column, for messages.
    values : array or sequence
        Integers or text.

    Returns
    -------
    list
        Python integers and text.

    Raises
    ------
    SchemaError
        If there are floats among them.

    Examples
    --------
    >>> filter_values("pt_root_id", np.array([864691135000000001]))
    [864691135000000001]
    """
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if any(isinstance(value, float) for value in values):
        raise SchemaError(
            f"the filter of {column} holds floats, expected integers: 18-digit ids are rounded by "
            "floats; read the ids again as int64"
        )
    return [value.item() if isinstance(value, np.generic) else value for value in values]
