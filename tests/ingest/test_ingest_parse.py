"""Lines, numbers and positions, against Python's own csv and float."""

from __future__ import annotations

import csv
import io
import struct
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microns_xr.ingest.read import BAD, ID, POINT, SKIP, WHOLE, parse_lines, parse_points
from microns_xr.store.spill import collate

KINDS = np.array([ID, SKIP, WHOLE, POINT, ID], np.int8)
NULLABLE = np.array([True, False, False, False, False])
LEAST = np.array([0, 0, 1, 0, 0])


def parse(text: str, stop: bool = False):
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    return data, parse_lines(data, KINDS, NULLABLE, LEAST, stop)


IDS = st.integers(-(2**63) + 1, 2**63 - 1)
WORDS = st.text("abc ,\"'[]1.-", max_size=8)
NUMBERS = st.one_of(
    st.integers(1, 10**18).map(str),
    st.integers(1, 10**9).map(lambda n: f"{n}.000"),
    st.integers(1, 10**5).map(lambda n: f"{n}e+03"),
    st.integers(1, 10**5).map(lambda n: f" {Decimal(n) / 100:f}e2 "),
    st.sampled_from(["0", "-4", "1.5", "", r"\N", "x", "1e", "nan", "1..2", "9223372036854775808"]),
)


def plain_whole(text: str) -> int | None:
    """The number that a text is, or None if it is no whole number from 1 to 2**63 - 1."""
    try:
        number = Decimal(text.strip())
        whole = int(number)
    except (ArithmeticError, ValueError):
        return None
    return whole if whole == number and 1 <= whole < 2**63 else None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IDS | st.none(), WORDS, NUMBERS, WORDS, IDS), max_size=12))
def test_against_the_csv_module(rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    data, found = parse(out.getvalue() or "\n")
    if not rows:
        assert (found.lines, found.bad_lines, found.begins.size) == (1, 1, 0)
        return
    good = [row for row in rows if plain_whole(row[2]) is not None]
    assert found.lines == len(rows)
    assert found.bad_lines == len(rows) - len(good)
    assert found.numbers[0].tolist() == [row[0] or 0 for row in good]
    assert found.null[0].tolist() == [row[0] is None for row in good]
    assert found.numbers[1].tolist() == [plain_whole(row[2]) for row in good]
    assert found.numbers[2].tolist() == [row[4] for row in good]
    for row, start, stop in zip(good, *found.fields[0], strict=True):
        assert bytes(data[start:stop]).decode().replace('""', '"') == row[3]


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("1,x,2,,4,5", -1, 1),
        ("1,x,2,", -1, 1),
        ("1a,x,2,,4", 0, 2),
        ("1.0,x,2,,4", 0, 3),
        ("1,x,2,,92233720368547758080", 4, 4),
        ("1,x,2,,", 4, 5),
        ("1,x,0,,4", 2, 6),
        ("1,x,2.5,,4", 2, 7),
        ('1,"x"y,2,,4', 1, 1),
    ],
)
def test_the_first_bad_line_ends_it(line, column, reason):
    good = "1,x,2,,4\r\n"
    _, found = parse(good + line + "\n" + good, stop=True)
    assert found.bad == (len(good), column, reason)
    assert reason in BAD
    assert (found.lines, found.begins.tolist()) == (2, [0])
    _, found = parse(good + line + "\n" + good)
    assert (found.lines, found.bad_lines, found.begins.size) == (3, 1, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), max_size=8))
def test_positions_are_those_of_float(points):
    """What is read at once is exact; what is not, is left to be read by other means."""
    forms = [
        ("[{} {} {}]".format(*p), p) for p in points
    ] + [("01010000A0E6100000"[:18] + struct.pack("<3d", *p).hex(), p) for p in points]  # fmt: skip
    forms += [("", (np.nan,) * 3), ("(1, 2.50,-3)", (1, 2.5, -3))]
    text = "".join(f'1,x,2,"{form}",4\n' for form, _ in forms)
    data, found = parse(text)
    values, hard = parse_points(data, found.fields, np.arange(len(forms)))
    assert not set(hard) & set(range(len(points), len(forms)))
    for row, (_, expected) in enumerate(forms):
        if row not in hard:
            np.testing.assert_array_equal(values[row], expected)


def test_split_positions():
    kinds = np.array([POINT, POINT, POINT], np.int8)
    data = np.frombuffer(b"1,2.5,1e2\n,-4, 7 \nx,1,2\n0.1,0.2,3 4\n", dtype=np.uint8)
    found = parse_lines(data, kinds, np.zeros(3, bool), np.zeros(3, np.int64))
    values, hard = parse_points(data, found.fields, np.array([1, 0, 2, 3]))
    np.testing.assert_array_equal(values[:2], [[np.nan, -4, 7], [1, 2.5, 100]])
    assert hard.tolist() == [2, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=60), min_size=1)
)
def test_rows_of_a_neuron_by_partner_then_id(neurons):
    rows = [(m, *row) for m, own in enumerate(neurons) for row in own]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in neurons])])
    partner = np.array([row[1] for row in rows], dtype=np.int32)
    ids = np.array([row[2] for row in rows], dtype=np.int64)
    found = collate(starts, partner, ids)
    assert [rows[i] for i in found.order] == sorted(rows)
    pairs = sorted({row[:2] for row in rows})
    assert [rows[found.order[k]][:2] for k in found.first] == pairs
    assert found.lengths.tolist() == [sum(p[0] == m for p in pairs) for m in range(len(neurons))]
    assert (found.repeated >= 0) == (len(set(rows)) < len(rows))
    assert collate(starts, partner, None).order.tolist() == sorted(
        range(len(rows)), key=lambda i: rows[i][:2]
    )
