"""Lines, numbers and positions, against Python's own csv and float."""

from __future__ import annotations

import csv
import io
import re
import struct
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microns_xr.errors import SchemaError
from microns_xr.ingest.read import Header, InputFile, Layout, _csv_block
from microns_xr.sources.postgres_csv import points_of
from microns_xr.store.spill import collate

NAMES = ("pre", "text", "count", "point", "id", "post")
FILE = InputFile("s.csv", 0, "csv", Header(NAMES, ("",) * len(NAMES)), 0, {})
ROLES = {role: role for role in ("pre", "post", "count", "id")}
LAYOUT = Layout("pt_root_id", "synapse", ROLES, ("point",))


def parse(text: str):
    """A block of lines of all columns but the last, which a good line ends with."""
    return _csv_block(re.sub("(\r?\n)", r",7\1", text).encode(), FILE, LAYOUT)


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
    """The number that a text is, or None if it is not a whole number from 1 to 2**63 - 1."""
    try:
        number = Decimal(text.strip())
        whole = int(number)
    except (ArithmeticError, ValueError):
        return None
    return whole if whole == number and 1 <= whole < 2**63 else None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IDS | st.none(), WORDS, NUMBERS, WORDS, IDS), min_size=1, max_size=12))
def test_against_the_csv_module(rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    found = parse(out.getvalue())
    counts = [plain_whole(row[2]) for row in rows]
    assert list(found.bad) == [i for i, count in enumerate(counts) if count is None]
    good = [i for i, count in enumerate(counts) if count is not None]
    assert found.numbers["pre"][good].tolist() == [rows[i][0] or 0 for i in good]
    assert found.null["pre"][good].tolist() == [rows[i][0] is None for i in good]
    assert found.numbers["count"][good].tolist() == [counts[i] for i in good]
    assert found.numbers["id"][good].tolist() == [rows[i][4] for i in good]
    (texts,) = found.points(np.array(good, dtype=np.int64))
    assert [text.replace('""', '"') for text in texts.to_pylist()] == [rows[i][3] for i in good]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1,x,2,", "expected 6 columns"),
        ("1,x,0,,4", "'count' is '0', expected 1 or more"),
        ('1,"x"y,2,,4', "expected 6 columns"),
        ('1,x,"2,,4', "expected 6 columns"),
    ],
)
def test_bad_lines_and_where_they_begin(line, says):
    good = "1,x,2,,4\r\n"
    found = parse(good + line + "\n" + good)
    assert list(found.bad) == [1]
    assert says in found.bad[1]
    assert found.begins[1] == len(good + ",7")


def texts(*columns: list[str | None]) -> list[pa.Array]:
    return [pa.array(column, pa.string()) for column in columns]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e99, 1e99).filter(lambda x: x == 0 or abs(x) > 1e-99)] * 3))
)
def test_positions_are_those_of_float(points):
    forms = [
        *("[{} {} {}]".format(*p) for p in points),
        *("01010000A0E6100000" + struct.pack("<3d", *p).hex() for p in points),
        *("0101000080" + struct.pack("<3d", *p).hex().upper() for p in points),
    ]
    found, bad = points_of(texts([*forms, "", r"\N", None, " (1, 2.50,-3) ", "POINT Z (1 2 3)"]))
    expected = [*points * 3, *[(np.nan,) * 3] * 3, (1, 2.5, -3), (1, 2, 3)]
    np.testing.assert_array_equal(found, expected)
    assert not bad.any()


@pytest.mark.parametrize(
    "text", ["nowhere", "1 2", "1 2 3 4", "0101" + "0" * 53 + "x", "1 2 1e999", "[1..2 3]", "é"]
)
def test_text_that_is_not_a_position(text):
    found, bad = points_of(texts(["1 2 3", text]))
    assert bad.tolist() == [False, True]
    np.testing.assert_array_equal(found, [[1, 2, 3], [np.nan] * 3])


def test_positions_in_three_columns():
    found, bad = points_of(texts(["1", "", "x", "0.1"], ["2.5", "-4", "1", "0.2"], ["1e2", " 7 ", "2", "3 4"]))  # fmt: skip
    np.testing.assert_array_equal(found[:2], [[1, 2.5, 100], [np.nan, -4, 7]])
    assert bad.tolist() == [False, False, True, True]
    header = Header((*NAMES[:3], "z", "y", "x", "id", "post"), ("",) * 8)
    layout = Layout("pt_root_id", "synapse", ROLES, ("x", "y", "z"))
    block = _csv_block(b"1,,2,30,20,10,4,7\n", replace(FILE, header=header), layout)
    found, _ = points_of(block.points(np.array([0])))
    np.testing.assert_array_equal(found, [[10, 20, 30]])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=60), min_size=1)
)
def test_rows_of_a_neuron_by_partner_then_id(neurons):
    rows = [(m, *row) for m, own in enumerate(neurons) for row in own]
    starts = np.concatenate([[0], np.cumsum([len(own) for own in neurons])])
    partner = np.array([row[1] for row in rows], dtype=np.int32)
    ids = np.array([row[2] for row in rows], dtype=np.int64)
    if len(set(rows)) < len(rows):
        with pytest.raises(SchemaError, match=r"synapse id \d+ is repeated"):
            collate(starts, partner, ids)
    else:
        order, _, _ = collate(starts, partner, ids)
        assert [rows[i] for i in order] == sorted(rows)
    order, first, lengths = collate(starts, partner, None)
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: rows[i][:2])
    pairs = sorted({row[:2] for row in rows})
    assert [rows[order[k]][:2] for k in first] == pairs
    assert lengths.tolist() == [sum(p[0] == m for p in pairs) for m in range(len(neurons))]
