"""Lines of a table of synapses to integers, byte by byte: the columns that are needed, no others.

Integers stay integers: a size may be written ``12.0`` or ``1.2e+06``, as Postgres writes a real,
and is taken if it is a whole number; an id may not. A field may be in quotes; none holds a line
break. What a row is for is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

__all__ = ["BAD", "ID", "POINT", "SKIP", "WHOLE", "ParsedLines", "parse_lines", "parse_points"]

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
    """What is in some lines.

    Attributes
    ----------
    numbers : numpy.ndarray
        (columns of ids and numbers, rows) int64, in the order of the file's columns; 0 where null.
    null : numpy.ndarray
        The same shape, bool.
    fields : numpy.ndarray
        (columns of points, 2, rows) int32: first and one past the last byte of the field.
    begins : numpy.ndarray
        (rows,) int32: first byte of the line.
    lines, bad_lines : int
        Lines that were read, and how many of them are in no row.
    bad : tuple of int
        First byte, column and reason (a key of `BAD`) of the first bad line; reason 0 for none.
    """

    numbers: np.ndarray
    null: np.ndarray
    fields: np.ndarray
    begins: np.ndarray
    lines: int
    bad_lines: int
    bad: tuple[int, int, int]


def parse_lines(
    data: np.ndarray,
    kinds: np.ndarray,
    nullable: np.ndarray,
    least: np.ndarray,
    stop_at_bad: bool = True,
) -> ParsedLines:
    r"""Read whole lines.

    Parameters
    ----------
    data : numpy.ndarray
        uint8, ending with a line break.
    kinds : numpy.ndarray
        (columns,) int8: what is read from each column of the file.
    nullable : numpy.ndarray
        (columns,) bool: whether it may be missing: empty or ``\N``.
    least : numpy.ndarray
        (columns,) int64: the smallest whole number.
    stop_at_bad : bool, optional
        Whether to stop at the first bad line; otherwise bad lines are counted and left out.

    Returns
    -------
    ParsedLines
        Rows in the order of the lines.

    Examples
    --------
    >>> lines = np.frombuffer(b"7,x,12.0\n8,y,\n", dtype=np.uint8)
    >>> found = parse_lines(lines, np.array([ID, SKIP, WHOLE], np.int8), np.zeros(3, bool),
    ...     np.zeros(3, np.int64))
    >>> found.numbers.tolist(), found.bad
    ([[7], [12]], (9, 2, 5))
    """
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
    """Read positions: three fields of a number each, or one that holds them all.

    Parameters
    ----------
    data : numpy.ndarray
        The lines.
    fields : numpy.ndarray
        (3 or 1, 2, rows): see `ParsedLines`. One field is ``[x y z]``, with any brackets and
        commas, or a little-endian point in PostGIS' hexadecimal form.
    rows : numpy.ndarray
        Which rows are wanted.

    Returns
    -------
    points : numpy.ndarray
        (wanted rows, 3) float64; NaN where there is none.
    hard : numpy.ndarray
        Of the wanted rows those that are written in another way, and have still to be read.

    Examples
    --------
    >>> field = np.frombuffer(b"[1 2.5 -3]", dtype=np.uint8)
    >>> parse_points(field, np.array([[[0], [10]]], np.int32), np.array([0]))[0]
    array([[ 1. ,  2.5, -3. ]])
    """
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
