"""Archived releases: typed by their header files, the same tables and synapses as the service's."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from cave_server import CaveServer
from cave_server.sample import NUCLEI, ROOT, STATUS, SYNAPSES, TYPES, make_tables
from pandas.testing import assert_frame_equal

import microns_xr as mx
from microns_xr.sources import postgres_csv
from microns_xr.sources.cache import CachedSource
from microns_xr.sources.postgres_csv import Header, parse_header, read_archived, read_blocks


def retry() -> mx.sources.Retry:
    return mx.sources.Retry(attempts=4, sleep=lambda seconds: None)


@pytest.fixture
def cave():
    with CaveServer(make_tables(), float_type="Float64") as running:
        yield running


def archive_of(server, folder, version=661, **options) -> mx.sources.ArchiveSource:
    options.setdefault("url", server.archive_url)
    return mx.sources.ArchiveSource(
        version, folder=folder, retry=retry(), progress=False, **options
    )


def write_pair(folder: Path, stem: str, header: str, rows: str | bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}_header.csv").write_text(header)
    content = rows.encode() if isinstance(rows, str) else rows
    (folder / f"{stem}.csv.gz").write_bytes(gzip.compress(content, mtime=0))


def read_rows(tmp_path: Path, header: str, rows: str | bytes) -> pd.DataFrame:
    write_pair(tmp_path / "v661", "t_merged", header, rows)
    return mx.sources.ArchiveSource(661, url=tmp_path).read("t")


# --------------------------------------------------------------------- the service's own tables


@pytest.mark.parametrize("name", [NUCLEI, TYPES, STATUS])
def test_a_table_is_the_same_as_from_the_service(cave, tmp_path, name):
    served = mx.sources.CaveSource(1718, server_address=cave.url, auth_token="none", retry=retry())
    with served:
        expected = served.read(name)
    found = archive_of(cave, tmp_path).read(name)
    assert_frame_equal(found, expected)
    assert found["id"].dtype == np.int64


def test_what_the_sample_holds_comes_out(cave, tmp_path):
    source = archive_of(cave, tmp_path)
    nuclei, types, status = (source.read(name) for name in (NUCLEI, TYPES, STATUS))
    assert nuclei["pt_root_id"].tolist() == [ROOT, ROOT + 1, ROOT + 2, 0]
    assert nuclei["pt_position_z"].tolist() == [12, 22, 32, 42]
    assert nuclei["volume"].isna().tolist() == [False, False, True, False]
    assert types["cell_type"].tolist() == ["23P", None, "oligo"]
    assert types["cell_type"].dtype == object
    assert status["status_axon"].tolist() == [True, False]
    assert status["valid_id"].dtype == "Int64"
    assert status["valid_id"].tolist() == [ROOT, pd.NA]
    assert str(status["created"].dtype) == "datetime64[us, UTC]"
    assert status["created"][0] == pd.Timestamp("2024-01-02 03:04:05.678", tz="UTC")


def test_the_demo_release_gives_the_same_units(tmp_path):
    demo = mx.sources.DemoSource(661, n_nuclei=800)
    with CaveServer(demo, archived={661: demo}) as server:
        source = archive_of(server, tmp_path / "archive", datastack=demo.datastack)
        names = [n for n in source.available_tables() if n != SYNAPSES]
        cache = CachedSource(source, tmp_path, demo.datastack, 661)
        records = cache.download(names, progress=False)
    folder = mx.sources.DirectorySource(tmp_path)
    roles = {
        role: n for role, n in mx.releases.release_spec(661).tables.items() if role != "synapses"
    }
    assert set(roles.values()) <= set(records)
    expected = mx.build_units(
        {r: demo.read(n) for r, n in roles.items() if r != "tuning_curves"}, 661
    )
    found = mx.build_units(
        {r: folder.read(n) for r, n in roles.items() if r != "tuning_curves"}, 661
    )
    assert found.sizes["nucleus_id"] > 100
    assert found.drop_attrs().identical(expected.drop_attrs())


# ----------------------------------------------------------------------------------- the source


def test_a_source_follows_the_protocol_and_says_where_it_reads():
    source = mx.sources.ArchiveSource(943)
    assert isinstance(source, mx.sources.TableSource)
    assert (source.version, source.datastack, source.scope) == (943, "minnie65_public", "requested")
    assert source.url == "gs://mat_dbs/public/minnie65_phase3_v1"
    assert source._display_url == "gs://mat_dbs/public/minnie65_phase3_v1/v943"
    # Google's buckets are read over https, where no login is looked for.
    assert source._address == (
        "https://storage.googleapis.com/mat_dbs/public/minnie65_phase3_v1/v943"
    )
    own = mx.sources.ArchiveSource(943, url="gs://own/x/", storage_options={"token": "s3cr3t"})
    assert own._address == "gs://own/x/v943"
    assert repr(own) == "ArchiveSource(943, url='gs://own/x')"
    again = pickle.loads(pickle.dumps(source))
    assert repr(again) == repr(source)


@pytest.mark.parametrize(
    ("version", "options", "error", "words"),
    [
        ("661", {}, mx.errors.SchemaError, "expected a whole number"),
        (True, {}, mx.errors.SchemaError, "expected a whole number"),
        (661, {"datastack": "flywire"}, mx.errors.SourceError, "no public archive of 'flywire'"),
        # The archive holds tables of minnie65_public only.
        (661, {"datastack": "minnie65_phase3_v1"}, mx.errors.SourceError, "no public archive of"),
    ],
)
def test_arguments_that_make_no_sense(version, options, error, words):
    with pytest.raises(error, match=words):
        mx.sources.ArchiveSource(version, **options)


def test_tables_are_looked_for_by_name_over_http(cave, tmp_path):
    source = archive_of(cave, tmp_path)
    assert source.available_tables() == sorted([NUCLEI, TYPES, STATUS, SYNAPSES])
    # The tables of the registry that are absent are looked for once.
    asked = len(cave.requests)
    assert source.available_tables() == sorted([NUCLEI, TYPES, STATUS, SYNAPSES])
    assert len(cave.requests) == asked
    assert (source.has(NUCLEI), source.has("brain_areas")) == (True, False)
    with pytest.raises(
        mx.errors.SourceError,
        match=r"no table 'nucleus_detection_v1'.*nearest: nucleus_detection_v0.*source='cave'",
    ):
        source.read("nucleus_detection_v1")
    with pytest.raises(
        mx.errors.SourceError, match=r"nothing in the archive .*v662: check the version"
    ):
        archive_of(cave, tmp_path, version=662).available_tables()


def test_the_table_of_all_synapses_is_not_read_whole(cave, tmp_path):
    with pytest.raises(mx.errors.SourceError, match=r"use download_synapses\(pre, post\)"):
        archive_of(cave, tmp_path).read(SYNAPSES)
    assert not cave.requests


def test_folders_are_listed_and_read_where_they_are(tmp_path):
    write_pair(
        tmp_path / "v661", "areas_merged", "id,bigint\ntag,character varying\n", "2,V1\n1,\n"
    )
    write_pair(tmp_path / "v661", "synapses_pni_2_v1_filtered_view", "id,bigint\n", "1\n")
    write_pair(tmp_path / "v661", "cell_info", "id,bigint\n", "5\n")  # a view
    (tmp_path / "v661" / "half_merged.csv.gz").write_bytes(b"")  # no header file
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for url in (tmp_path, tmp_path.as_uri() + "/"):
        source = mx.sources.ArchiveSource(661, url=url)
        assert source.available_tables() == ["areas", "cell_info", SYNAPSES]
        assert source.read("areas")["tag"].tolist() == [None, "V1"]  # sorted by id
        assert source.read("cell_info")["id"].tolist() == [5]
        source.discard("areas")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    with pytest.raises(mx.errors.SourceError, match="nothing in the archive"):
        mx.sources.ArchiveSource(943, url=tmp_path).available_tables()
    with pytest.raises(mx.errors.SourceError, match="no table 'half'"):
        source.read("half")


def test_the_checksum_beside_a_local_file(tmp_path):
    write_pair(tmp_path / "v661", "areas_merged", "id,bigint\n", "2\n1\n")
    data = tmp_path / "v661" / "areas_merged.csv.gz"
    beside = tmp_path / "v661" / "areas_merged.csv.gz.md5"
    beside.write_text(f"{hashlib.md5(data.read_bytes()).hexdigest()}  {data.name}\n")
    assert mx.sources.ArchiveSource(661, url=tmp_path).read("areas")["id"].tolist() == [1, 2]
    beside.write_text("0" * 32)
    with pytest.raises(mx.errors.SourceError, match=rf"the md5 of {data} is .*expected 000"):
        mx.sources.ArchiveSource(661, url=tmp_path).read("areas")


def test_any_protocol_of_fsspec(tmp_path):
    write_pair(tmp_path, "areas_merged", "id,bigint\n", "2\n1\n")
    memory = fsspec.filesystem("memory")
    for path in tmp_path.iterdir():
        memory.pipe_file(f"/archive/v117/{path.name}", path.read_bytes())
    source = mx.sources.ArchiveSource(
        117, url="memory://archive", folder=tmp_path / "here", progress=False
    )
    assert source.available_tables() == ["areas"]
    assert source.read("areas")["id"].tolist() == [1, 2]
    assert (tmp_path / "here" / "areas_merged.csv.gz").exists()


def test_a_registry_entry_of_ones_own_names_the_file(tmp_path):
    write_pair(tmp_path / "v9", "my_view", "id,bigint\n", "7\n")
    spec = mx.releases.ReleaseSpec(
        version=9,
        datastack="mine",
        tables={"nucleus": "nuclei"},
        table_specs={"nuclei": mx.releases.TableSpec("nuclei", archive_file="my_view")},
    )
    source = mx.sources.ArchiveSource(spec, url=tmp_path)
    assert source.available_tables() == ["nuclei"]
    assert source.read("nuclei")["id"].tolist() == [7]


def test_files_stay_in_the_folder_and_are_asked_for_once(cave, tmp_path):
    source = archive_of(cave, tmp_path)
    first = source.read(NUCLEI)
    asked = len(cave.requests)
    assert_frame_equal(archive_of(cave, tmp_path).read(NUCLEI), first)
    assert len(cave.requests) == asked
    known = source.provenance(NUCLEI)
    assert known["rows"] == 4
    assert known["checked"] == ["length", "md5"]
    assert known["url"] == f"{cave.archive_url}/v661/{NUCLEI}_merged.csv.gz"
    assert len(known["sha256"]) == 64
    assert archive_of(cave, tmp_path).provenance(NUCLEI) == known
    archive_of(cave, tmp_path).discard(NUCLEI)
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_version_in_the_folder_are_not_taken(tmp_path):
    other = make_tables()
    other[NUCLEI] = other[NUCLEI].assign(volume=9.5)
    with CaveServer(make_tables(), archived={943: other}) as server:
        first = archive_of(server, tmp_path).read(NUCLEI)
        second = archive_of(server, tmp_path, version=943).read(NUCLEI)
    assert first["volume"].tolist()[:2] == [1.1, 2.2]
    assert second["volume"].tolist() == [9.5] * 4


@pytest.mark.parametrize("name", ["../secrets", "a/b", "", "https://example.org/x"])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(mx.errors.SourceError, match="is not a table name"):
        mx.sources.ArchiveSource(661, url=tmp_path).read(name)


def test_a_temporary_folder_goes_with_the_source(cave):
    source = archive_of(cave, None)
    source.read(NUCLEI)
    folder = source.folder
    assert folder.is_dir()
    del source
    assert not folder.exists()


def test_downloading_tables_into_the_cache(cave, tmp_path):
    source = archive_of(cave, tmp_path / "archive")
    cache = CachedSource(source, tmp_path, "minnie65_public", 661)
    records = cache.download([NUCLEI, STATUS, NUCLEI], progress=False)
    assert cache.names() == sorted([NUCLEI, STATUS])
    assert_frame_equal(cache.read(STATUS), archive_of(cave, tmp_path / "other").read(STATUS))
    record = records[NUCLEI]
    assert (record["rows"], record["source"], record["version"]) == (4, "archive", 661)
    assert record["url"].endswith(f"/v661/{NUCLEI}_merged.csv.gz")
    assert list((tmp_path / "archive").iterdir()) == []  # not twice on the disk
    asked = len(cave.requests)
    assert cache.download([NUCLEI], progress=False) == {NUCLEI: record}
    assert len(cave.requests) == asked
    cache.download([NUCLEI], refresh=True, progress=False)
    assert len(cave.requests) > asked


# ------------------------------------------------------------------------------------- typing


def test_every_postgres_type(tmp_path):
    header = (
        'a,smallint\nb,bigint\nc,real\nd,double precision\ne,numeric\nother_id,"numeric(38,0)"\n'
        "f,boolean\ng,character varying(64)\nh,text\ni,timestamp without time zone\n"
        "j,timestamp with time zone\nk,date\nl,ARRAY\nm,USER-DEFINED\n"
    )
    rows = (
        "1,864691135000000001,0.5,-Infinity,1.25,864691135000000003,t,x,\"a \"\"b\"\", c\nd\","
        "2020-09-28 22:40:41.780734,2020-09-28 22:40:41+02,2021-01-02,\"{1,2}\",what\n"
        ',,,,,,,,"",,,,,\n'
    )  # fmt: skip
    frame = read_rows(tmp_path, header, rows)
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert dtypes == {
        "a": "Int64", "b": "Int64", "c": "float64", "d": "float64", "e": "float64",
        "other_id": "Int64", "f": "boolean", "g": "object", "h": "object",
        "i": "datetime64[us, UTC]", "j": "datetime64[us, UTC]", "k": "datetime64[us]",
        "l": "object", "m": "object",
    }  # fmt: skip
    first = frame.iloc[0]
    assert first[["b", "other_id"]].tolist() == [864691135000000001, 864691135000000003]
    assert first["d"] == -np.inf
    assert first["h"] == 'a "b", c\nd'
    assert first["i"] == pd.Timestamp("2020-09-28 22:40:41.780734", tz="UTC")
    assert first["j"] == pd.Timestamp("2020-09-28 20:40:41", tz="UTC")
    assert first["l"].tolist() == [1, 2]
    assert frame["h"].tolist()[1] == ""  # quoted: an empty text, and no null
    assert frame.iloc[1].drop("h").isna().all()


def test_a_word_never_stands_for_a_null(tmp_path):
    frame = read_rows(tmp_path, "id,bigint\ntag,text\n", "1,NA\n2,None\n3,nan\n4,\n")
    assert frame["tag"].tolist() == ["NA", "None", "nan", None]


def wkb(x: float, y: float, z: float, srid: bytes = b"") -> str:
    kind = 0x80000001 | (0x20000000 if srid else 0)
    return (b"\x01" + struct.pack("<I", kind) + srid + struct.pack("<3d", x, y, z)).hex().upper()


@pytest.mark.parametrize(
    "written",
    [
        "[176100 142104 20401]",
        '"{176100,142104,20401}"',
        "POINT Z (176100 142104 20401)",
        '"POINTZ(176100 142104 20401)"',
        wkb(176100, 142104, 20401),
        wkb(176100, 142104, 20401, struct.pack("<I", 4326)),
    ],
    ids=["numpy", "array", "wkt", "wkt_quoted", "wkb", "ewkb"],
)
def test_a_position_in_one_column(tmp_path, written):
    frame = read_rows(tmp_path, "id,bigint\npt_position,USER-DEFINED\n", f"1,{written}\n2,\n")
    assert frame.columns.tolist() == ["id", *(f"pt_position_{a}" for a in "xyz")]
    assert frame.iloc[0, 1:].tolist() == [176100, 142104, 20401]
    assert (frame.dtypes.iloc[1:] == "Int64").all()
    assert frame.iloc[1, 1:].isna().all()


def test_positions_in_three_columns_are_voxels(tmp_path):
    header = "".join(f"pt_position_{a},double precision\n" for a in "xyz")
    assert read_rows(tmp_path, header, "1,2.0,3\n").dtypes.tolist() == [np.dtype("int64")] * 3
    assert read_rows(tmp_path, header, "1,2.5,3\n")["pt_position_y"].tolist() == [2.5]


@pytest.mark.parametrize("written", ["[1 2]", "01FF", "here", "POINT Z (1 2 3 4)"])
def test_a_position_that_is_none(tmp_path, written):
    with pytest.raises(
        mx.errors.SourceError,
        match=r"t_merged.csv.gz column pt_position row 2 is .*expected x, y and z",
    ):
        read_rows(tmp_path, "pt_position,USER-DEFINED\n", f"[1 2 3]\n{written}\n")


def test_an_array_that_is_none(tmp_path):
    with pytest.raises(
        mx.errors.SourceError, match=r"column a row 1 is '\{1,x\}', expected numbers in braces"
    ):
        read_rows(tmp_path, "a,ARRAY\n", '"{1,x}"\n')


def test_arrays_of_any_numbers(tmp_path):
    header = "id,bigint\na,ARRAY\nb,integer[]\n"
    frame = read_rows(tmp_path, header, '1,"{1,NULL,2.5}",{}\n2,,\n')
    assert frame["a"][0].tolist()[::2] == [1.0, 2.5]
    assert np.isnan(frame["a"][0][1])
    assert frame["a"][1] is None
    assert frame["b"][0].tolist() == []


def test_an_empty_table_keeps_its_types(tmp_path):
    frame = read_rows(tmp_path, "id,bigint\npt_position_x,bigint\nvalid,boolean\ntag,text\n", "")
    assert len(frame) == 0
    assert frame.dtypes.astype(str).tolist() == ["int64", "int64", "bool", "object"]


def test_a_null_alone_on_its_line_is_a_row(tmp_path):
    assert read_rows(tmp_path, "tag,text\n", "a\n\nb\n")["tag"].tolist() == ["a", None, "b"]


# ------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"id\n", r"line 1 is 'id', expected 'name,type'"),
        (b"id,bigint\ntag,text,more\n", "line 2 is 'tag,text,more'"),
        (b"id,bigint\n\nid,text\n", "line 3 names the column 'id' a second time"),
        (b"id,\n", "line 1 is 'id,'"),
        (b"\xff\xfe\xfa", "is not a header file"),
    ],
)
def test_header_files_that_are_none(content, words):
    with pytest.raises(mx.errors.SourceError, match=rf"h\.csv.*{words}.*fetch it again"):
        parse_header(content, "h.csv")


def test_a_header_file_as_other_programs_write_it():
    content = b'\xef\xbb\xbf"id","bigint"\r\n"tag","character varying(20)"\r\n'
    assert parse_header(content, "h").names == ("id", "tag")
    assert parse_header(content, "h").types == ("bigint", "character varying")


LINES = "".join(f"{i},{i * 2},w{i}\n" for i in range(1, 2001))
THREE = "id,bigint\nb,bigint\nc,text\n"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            "1500,1,x,y\n",
            r"line 1500 does not fit .*t_merged_header.csv, which has 3 columns \(.*got 4",
        ),
        ("1500,1\n", r"line 1500 .*got 2"),
        ("\n", r"line 1500 .*no values"),
        ("1500,x,y\n", r"line 1500 column 'b' .*invalid value 'x'"),
        ("1500,1.5,y\n", r"line 1500 column 'b' .*invalid value '1.5'"),
        ("1500,99999999999999999999,y\n", r"line 1500 column 'b'"),
    ],
)
def test_a_line_that_does_not_fit_the_header_is_named(tmp_path, monkeypatch, bad, words):
    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", 1000)
    rows = LINES.replace("1500,3000,w1500\n", bad)
    with pytest.raises(
        mx.errors.SourceError, match=rf"t_merged\.csv\.gz {words}.*fetch them again"
    ):
        read_rows(tmp_path, THREE, rows)
    # Block by block as well, where the line is far from the block's first.
    header = parse_header(THREE.encode(), str(tmp_path / "v661" / "t_merged_header.csv"))
    with pytest.raises(mx.errors.SourceError, match=words):
        list(read_blocks(tmp_path / "v661" / "t_merged.csv.gz", header, ["b"]))


@pytest.mark.parametrize("damage", ["cut", "member", "flip", "checksum", "not_gzip", "no_bytes"])
def test_a_damaged_data_file(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", 4096)
    noise = np.random.default_rng(0).integers(0, 2**62, 60_000)
    packed = gzip.compress("".join(f"{i},{v}\n" for i, v in enumerate(noise)).encode())
    content = {
        "cut": packed[:-1000],
        "member": gzip.compress(b"1,23\n2,34"),  # of "2,345\n", the rest being in the next one
        "flip": packed[:200_000] + bytes(50) + packed[200_050:],
        "checksum": packed[:-8] + b"\0" * 4 + packed[-4:],
        "not_gzip": b"<html>no</html>",
        "no_bytes": b"",
    }[damage]
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    header = Header(("id", "b"), ("bigint", "bigint"))
    words = {
        "cut": "ends too early.*fetch it again",
        "member": "ends too early.*no line break.*fetch it again",
        "no_bytes": "ends too early.*it is empty.*fetch it again",
        "flip": r"it is damaged|line \d+",
        "checksum": "it is damaged",
        "not_gzip": "it is damaged",
    }[damage]
    with pytest.raises(mx.errors.SourceError, match=words):
        read_archived(path, header)
    with pytest.raises(mx.errors.SourceError, match=words):
        list(read_blocks(path, header, ["b"]))


def test_a_file_without_lines_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres_csv, "_LONGEST_LINE", 50_000)
    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", 4096)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"1" * 200_000))
    with pytest.raises(mx.errors.SourceError, match="no line break in"):
        list(read_blocks(path, Header(("id",), ("bigint",)), ["id"]))


@pytest.mark.parametrize("block_bytes", [9, 64, 1 << 20])
def test_blocks_hold_every_line_once(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "t.csv.gz"
    text = "".join(f"{i},{i * i}\n" for i in range(300))
    half = len(text) // 2
    path.write_bytes(gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode()))
    header = Header(("id", "square"), ("bigint", "bigint"))
    blocks = list(read_blocks(path, header, ["square"]))
    assert [v for b in blocks for v in b.table["square"].to_pylist()] == [i * i for i in range(300)]
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == len(text)
    middle = blocks[len(blocks) // 2]
    rest = read_blocks(path, header, ["square"], start=middle.start)
    assert sum(b.table.num_rows for b in rest) == 300 - sum(
        b.table.num_rows for b in blocks[: len(blocks) // 2]
    )
    with pytest.raises(mx.errors.SourceError, match="fewer than 1000000 bytes"):
        list(read_blocks(path, header, ["square"], start=1_000_000))
