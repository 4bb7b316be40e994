"""Files as they come: cut short, damaged, with lines that say nothing, in forms that are rare."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import ingest_examples as ex
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import microns_xr as mx
from microns_xr.ingest.read import find_files, layout_of, read_jobs
from microns_xr.sources import postgres_csv
from microns_xr.sources.fetch import fetch_file
from microns_xr.sources.postgres_csv import points_of
from microns_xr.sources.tables import read_table_file
from microns_xr.store import swap

UNITS = ex.make_units(3)
A, B, _ = UNITS.pt_root_id.values
NAMES = ["id", "pre_pt_root_id", "post_pt_root_id", "size"]
HEAD = (",".join(NAMES) + "\n").encode()
LINE = f"1,{A},{B},5\n".encode()
POINTS = ["id", "pre_pt_root_id", "post_pt_root_id", "size", "ctr_pt_position"]


def values(path: Path, header=None, points: bool = False):
    """Sizes of the good rows of a file, what is wrong with the bad ones, and its blocks."""
    files = find_files(path, header, {})
    layout = layout_of(files, "auto", points, points)
    blocks = [parse() for parse, _ in read_jobs(files[0], layout)]
    rows = [n for b in blocks for i, n in enumerate(b.numbers["size"].tolist()) if i not in b.bad]
    return rows, {row: what for block in blocks for row, what in block.bad.items()}, blocks


@pytest.mark.parametrize("end", [b"\n", b"\n\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("block", [7, 40, 10**6])
def test_blank_lines_at_the_end_are_not_rows(tmp_path, monkeypatch, end, block):
    """Whatever the blocks are cut like; between other lines they are bad."""
    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", block)
    (tmp_path / "s.csv").write_bytes(HEAD + LINE + LINE.rstrip(b"\n") + end)
    assert values(tmp_path / "s.csv")[:2] == ([5, 5], {})
    (tmp_path / "s.csv").write_bytes(HEAD + LINE + b"\n" + LINE + end)
    rows, bad, _ = values(tmp_path / "s.csv")
    assert rows == [5, 5]
    assert [what.startswith("is '', expected 4 columns") for what in bad.values()] == [True]


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
@pytest.mark.parametrize("lost", [1, 3])
def test_a_last_line_that_does_not_end_is_told(tmp_path, name, lost):
    """A number that has lost its last digits is a number, too."""

    def write(content: bytes) -> None:
        # Two members: cut at the end of the first, the file is a valid one.
        half = len(content) // 2
        packed = gzip.compress(content[:half]) + gzip.compress(content[half:])
        (tmp_path / name).write_bytes(packed if name.endswith("gz") else content)

    sizes = [b"1,%d,%d,1234\n" % (A, B)] * 2
    write((HEAD + b"".join(sizes))[:-lost])
    with pytest.warns(UserWarning, match=rf"the last line of .*{name} has no line break, unlike"):
        assert values(tmp_path / name)[0] == [1234, 12 if lost == 3 else 1234]
    write(sizes[0][:-lost])  # a single line, without a header, may just be written so
    assert len(values(tmp_path / name, header=NAMES)[0]) == 1
    # Postgres ends each line.
    (tmp_path / "s_header.csv").write_text("".join(f"{column},bigint\n" for column in NAMES))
    write(b"".join(sizes)[:-lost])
    with pytest.raises(
        mx.errors.IncompleteDownloadError, match=r"ends too early .*its last line has no line break"
    ):
        values(tmp_path / name)


def test_a_file_of_another_size_than_when_it_was_fetched(tmp_path):
    (tmp_path / "there.csv").write_bytes(HEAD + LINE * 3)
    path = fetch_file(str(tmp_path / "there.csv"), tmp_path / "s.csv", progress=False).path
    assert values(path)[0] == [5, 5, 5]
    path.write_bytes(HEAD + LINE)  # cut at the end of a line, which the text does not show
    for read in (values, read_table_file):
        with pytest.raises(mx.errors.IncompleteDownloadError, match=r"bytes, expected \d+ as when"):
            read(path)


def test_a_header_line_although_a_header_is_given(tmp_path):
    (tmp_path / "s.csv").write_bytes(b"\xef\xbb\xbf" + HEAD + LINE)
    assert values(tmp_path / "s.csv", header=NAMES)[:2] == ([5], {})
    rows, bad, _ = values(tmp_path / "s.csv", header=[*NAMES[:3], "synapse_size"])
    assert (rows, list(bad)) == ([5], [0])
    assert "'id' is" in bad[0]


def test_a_quote_that_nothing_closes(tmp_path):
    (tmp_path / "s.csv").write_bytes(HEAD + LINE + f'1,{A},{B},"5\n'.encode() + LINE)
    rows, bad, _ = values(tmp_path / "s.csv")
    assert (rows, list(bad)) == ([5, 5], [1])


PACKED = gzip.compress(HEAD + LINE, mtime=0)


@pytest.mark.parametrize(
    ("content", "name", "error", "says"),
    [
        (
            b"",
            "s.csv.gz",
            mx.errors.IncompleteDownloadError,
            "too early .it is empty.: it was cut short",
        ),
        (
            b"",
            "s.parquet",
            mx.errors.IncompleteDownloadError,
            "too early .it is empty.: it was cut short",
        ),
        (
            PACKED[:12],
            "s.csv.gz",
            mx.errors.IncompleteDownloadError,
            "it was cut short, fetch it again",
        ),
        (
            PACKED[:12] + b"\xff" * 4 + PACKED[16:],
            "s.csv.gz",
            mx.errors.SourceError,
            "it is damaged",
        ),
        (
            PACKED + b"and more than 18 bytes",
            "s.csv.gz",
            mx.errors.SourceError,
            "Not a gzipped file.* it is damaged",
        ),
        (b"PAR1 and no end", "s.parquet", mx.errors.IncompleteDownloadError, "it was cut short"),
        (b"BZh91\rAY", "s.csv.bz2", mx.errors.SchemaError, "names no columns"),
    ],
    ids=["empty gz", "empty parquet", "cut", "damaged", "junk behind", "cut parquet", "bz2"],
)
def test_damaged_files(tmp_path, content, name, error, says):
    """An empty archive is not a table without synapses; errors are those of this package."""
    (tmp_path / name).write_bytes(content)
    header = NAMES if not content else None
    with pytest.raises(error, match=says) as found:
        values(tmp_path / name, header=header)
    assert name in str(found.value)


def test_damaged_parquet(tmp_path):
    table = pa.table({name: pa.array(np.random.default_rng(0).permutation(9999)) for name in NAMES})
    pq.write_table(table, tmp_path / "s.parquet", compression="zstd")
    content = (tmp_path / "s.parquet").read_bytes()
    (tmp_path / "s.parquet").write_bytes(content[:9] + bytes(5000) + content[5009:])
    with pytest.raises(mx.errors.SourceError, match=r"s.parquet cannot be read .*: fetch it again"):
        values(tmp_path / "s.parquet")
    pq.write_table(pa.table([[1]] * 2, names=["id", "id"]), tmp_path / "s.parquet")
    with pytest.raises(mx.errors.SchemaError, match=r"s.parquet names the column 'id' twice"):
        values(tmp_path / "s.parquet")


def test_all_members_of_a_packed_file_are_read(tmp_path):
    parts = (HEAD + LINE[:5], LINE[5:] + LINE, b"")
    (tmp_path / "s.csv.gz").write_bytes(b"".join(map(gzip.compress, parts)) + b"\0" * 99)
    assert values(tmp_path / "s.csv.gz")[:2] == ([5, 5], {})


@pytest.mark.parametrize("address", ["no-such-protocol://s.csv", "memory://none.csv"])
def test_addresses_without_a_file(address):
    with pytest.raises(
        mx.errors.SourceError, match=f"{address} cannot be read .*: check path, permissions and"
    ):
        find_files(address, None, {})
    with pytest.raises(mx.errors.SchemaError, match="files has 3, expected paths"):
        find_files(3, None, {})


@pytest.mark.parametrize(
    ("column", "kind", "says"),
    [
        ("pre_pt_root_id", pa.string(), "pre_pt_root_id is string, expected integers"),
        ("size", pa.string(), "size is string, expected numbers"),
        ("size", pa.bool_(), "size is bool, expected numbers"),
        ("ctr_pt_position", pa.int64(), "ctr_pt_position is int64, expected lists of x, y and z"),
    ],
)
def test_columns_of_parquet_of_a_wrong_type(tmp_path, column, kind, says):
    table = pa.table({name: pa.array([1], pa.int64()) for name in POINTS[:4]} | {
        "ctr_pt_position": pa.array([[1, 2, 3]])})  # fmt: skip
    new = pa.array([None], kind)
    table = table.set_column(table.schema.get_field_index(column), column, new)
    pq.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(mx.errors.SchemaError, match=says):
        values(tmp_path / "s.parquet", points=True)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.int32(), 3), pa.string()])
def test_positions_in_parquet(tmp_path, kind):
    """Lists or text; a row is bad if it is not x, y and z, and NaN where there is nothing."""
    points = [[1, 2, 3], None, [4, 5, 6], [7, 8]]
    if pa.types.is_string(kind):
        points = ["[1 2 3]", None, "4, 5,6", "[7 8]"]
    elif kind.equals(pa.list_(pa.int32(), 3)):
        points[3] = [7, 8, None]
    columns = {name: np.arange(4) for name in POINTS[:4]}
    table = pa.table(columns | {"ctr_pt_position": pa.array(points, kind)})
    try:
        pq.write_table(table, tmp_path / "s.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("pyarrow before 26 does not write nulls among lists of a fixed size")
    (block,) = values(tmp_path / "s.parquet", points=True)[2]
    found, wrong = points_of(block.points(np.array([3, 2, 1, 0])))
    np.testing.assert_array_equal(found[1:], [[4, 5, 6], [np.nan] * 3, [1, 2, 3]])
    if kind.equals(pa.list_(pa.int32(), 3)):
        assert not wrong.any()
        np.testing.assert_array_equal(found[0], [7, 8, np.nan])
    else:
        assert wrong.tolist() == [True, False, False, False]


def test_bad_positions_in_parquet_are_counted(tmp_path):
    frame = pd.DataFrame({"id": [1, 2], "pre_pt_root_id": A, "post_pt_root_id": B, "size": [3, 4]})
    frame["ctr_pt_position"] = [[2e5, 2e5, 2e4], [1.0, 2.0]]
    frame.to_parquet(tmp_path / "s.parquet")
    options = dict(positions=True, progress=False)
    with pytest.raises(
        mx.errors.SchemaError, match=r"row 2: column 'ctr_pt_position' is \[1.0, 2.0\]"
    ):
        mx.ingest_synapses(tmp_path / "s.parquet", UNITS, tmp_path / "s.zarr", **options)
    options["on_bad_lines"] = "count"
    mx.ingest_synapses(tmp_path / "s.parquet", UNITS, tmp_path / "s.zarr", **options)
    assert mx.open_store(tmp_path / "s.zarr")["synapses"].synapse_id.values.tolist() == [1]


def test_counts_beyond_int64(tmp_path):
    """A sum that wraps around would be a wrong number without an error."""
    text = "pre_pt_root_id,post_pt_root_id,sum_size,n_syn\n" + f"{A},{B},1,{2**62}\n" * 3
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(
        mx.errors.SchemaError, match=r"n_syn sums to 1.38e\+19, expected less than 9.2e18"
    ):
        mx.ingest_synapses(tmp_path / "s.csv", UNITS, tmp_path / "s.zarr", progress=False)
    assert os.listdir(tmp_path) == ["s.csv"]


def test_another_writer_at_the_same_time(tmp_path, monkeypatch):
    """Between the look and the first folder another run may have begun."""
    (tmp_path / "s.csv").write_bytes(HEAD + LINE)
    monkeypatch.setattr(swap, "recover", lambda *_, **__: None)
    assert swap._lock(str(tmp_path / "s.zarr") + swap.SUFFIX, create=True)
    with pytest.raises(mx.errors.StoreFormatError, match="is being written by another process"):
        mx.ingest_synapses(tmp_path / "s.csv", UNITS, tmp_path / "s.zarr", progress=False)


def test_a_position_is_in_three_columns_or_in_one():
    names = ("ctr_pt_position", "ctr_pt_position_x", "id")
    one = postgres_csv.Header(names, ("text", "integer", "bigint"), "header")
    assert postgres_csv.columns_of(one, "ctr_pt_position") == ["ctr_pt_position"]
    axes = [f"ctr_pt_position_{axis}" for axis in "xyz"]
    three = postgres_csv.Header((*axes, names[0]), ("integer",) * 3 + ("text",), "header")
    assert postgres_csv.columns_of(three, "ctr_pt_position") == axes
    assert postgres_csv.columns_of(three, "pre_pt_position") == []
