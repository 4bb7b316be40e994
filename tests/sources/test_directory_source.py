"""Tables as files: exact types from every format, one table in one place, errors that help."""

from __future__ import annotations

import gzip
import hashlib
import os
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import microns_xr as mx
from microns_xr.sources.tables import read_table_file, table_stem, write_table_file

ROOT = 864691135000000001  # float64 makes ...000 of it


def text_file(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def csv(tmp_path, text, name="t.csv", **kwargs):
    return read_table_file(text_file(tmp_path / name, text, **kwargs))


# ------------------------------------------------------------------------------- csv


def test_csv_types(tmp_path):
    table = csv(
        tmp_path,
        "id,valid_id,volume,word,status,flag,created,day,clock,nothing\n"
        f"{ROOT},{ROOT + 1},1.5,,t,True,2020-09-28 22:40:41.780734+00:00,2020-01-02,12:30,\n"
        f"{ROOT + 2},,,none,f,False,2020-09-28 22:40:41+00:00,2020-01-03,07:05,\n",
    )
    assert table["id"].tolist() == [ROOT, ROOT + 2]
    assert table["id"].dtype == np.int64
    assert str(table["valid_id"].dtype) == "Int64"
    assert table["valid_id"].tolist() == [ROOT + 1, pd.NA]
    assert table["volume"].dtype == np.float64
    assert np.isnan(table["volume"][1])
    assert table["word"].tolist() == ["", "none"]
    assert table["status"].tolist() == ["t", "f"]
    assert table["flag"].dtype == np.bool_
    assert str(table["created"].dtype) == "datetime64[us, UTC]"
    assert table["created"][0].microsecond == 780734
    assert str(table["day"].dtype) == "datetime64[us]"
    assert table["clock"].tolist() == ["12:30", "07:05"]
    assert table["nothing"].tolist() == [None, None]
    for column in ("word", "status", "clock", "nothing"):
        assert table[column].dtype == object


@pytest.mark.parametrize("value", ["8.6e17", "864691135.0", "864691135000000001.0"])
def test_ids_written_as_floats_come_out_as_floats(tmp_path, value):
    assert csv(tmp_path, f"pt_root_id\n{ROOT}\n{value}\n")["pt_root_id"].dtype == np.float64


@pytest.mark.parametrize("null", ["", "nan", "NaN", "<NA>", "None", "NULL"])
def test_ids_with_any_word_for_nothing_stay_exact(tmp_path, null):
    column = csv(tmp_path, f"valid_id,x\n{ROOT},1\n{null},2\n")["valid_id"]
    assert str(column.dtype) == "Int64"
    assert column[0] == ROOT
    assert column[1] is pd.NA


@pytest.mark.parametrize(
    ("last", "dtype"), [("", "Int64"), ("text", "object"), ("2.5", "float64"), ("7", "int64")]
)
def test_a_column_that_changes_after_many_blocks(tmp_path, last, dtype):
    n = 700_000  # 13 MB: two blocks
    table = csv(tmp_path, "id,x\n" + f"{ROOT},1\n" * n + f"{last},1\n")
    column = table["id"]
    assert str(column.dtype) == dtype
    assert len(column) == n + 1
    if dtype == "object":
        assert column[0] == str(ROOT)
    elif dtype != "float64":
        assert (column[:n] == ROOT).all()


def test_a_column_that_starts_empty(tmp_path):
    table = csv(tmp_path, "a,b,c\n" + ",,x\n" * 1_000_000 * 3 + f"{ROOT},word,x\n")
    assert str(table["a"].dtype) == "Int64"
    assert table["a"].iloc[-1] == ROOT
    assert table["a"].isna().sum() == 3_000_000
    assert table["b"].dtype == object
    assert table["b"].iloc[0] == ""
    assert table["b"].iloc[-1] == "word"


def test_names_that_repeat_or_are_empty(tmp_path):
    table = csv(tmp_path, ",session,session,\n0,4,07:00,word\n1,5,x,\n")
    # The index that pandas writes is left out, another column without a name is not.
    assert list(table.columns) == ["session", "session", ""]
    assert table.iloc[:, 0].tolist() == [4, 5]
    assert table.iloc[:, 1].tolist() == ["07:00", "x"]


def test_arrays_as_text_stay_text_also_over_lines(tmp_path):
    long = str(np.arange(40) / 7)
    assert "\n" in long
    table = csv(tmp_path, f'unit_id,rate_dir\n1,"{long}"\n2,[1. 2.5]\n')
    assert table["rate_dir"].tolist() == [long, "[1. 2.5]"]
    assert table["unit_id"].tolist() == [1, 2]


def test_byte_order_mark_and_windows_lines(tmp_path):
    assert csv(tmp_path, "﻿ID,x\r\n7,a\r\n").to_dict("list") == {"id": [7], "x": ["a"]}


def test_header_only_has_no_rows(tmp_path):
    table = csv(tmp_path, "id,pt_root_id\n")
    assert list(table.columns) == ["id", "pt_root_id"]
    assert len(table) == 0


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("", "utf-8"), ("a,b\n1,2\n3", "utf-8"), ("a,b\n1,2,3\n", "utf-8"), ("a\nxé\n", "latin-1")],
)
def test_damaged_csv(tmp_path, text, encoding):
    with pytest.raises(
        mx.errors.SourceError, match=r"t\.csv cannot be read .*fetch or write it again|UTF-8"
    ):
        csv(tmp_path, text, encoding=encoding)


def test_csv_gz_whole_and_cut(tmp_path):
    path = tmp_path / "t.csv.gz"
    rows = "id,x\n" + "".join(f"{ROOT + i},{i}\n" for i in range(20_000))
    path.write_bytes(gzip.compress(rows.encode()))
    assert read_table_file(path)["id"].tolist() == [ROOT + i for i in range(20_000)]
    for damaged in (path.read_bytes()[:-1000], b"not gzip at all" * 10, b""):
        path.write_bytes(damaged)
        with pytest.raises(mx.errors.SourceError, match=r"t\.csv\.gz cannot be read"):
            read_table_file(path)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_last_line_that_does_not_end_is_told(tmp_path, name):
    path, text = tmp_path / name, f"id,size\n{ROOT},1234\n{ROOT + 1},1234\n".encode()
    for lost, size in ((0, 1234), (1, 1234), (3, 12)):
        cut = text[: len(text) - lost]
        # Cut at the end of its first member, the file is a valid one.
        path.write_bytes(gzip.compress(cut[:20]) + gzip.compress(cut[20:]))
        if name == "t.csv":
            path.write_bytes(cut)
        told = pytest.warns(UserWarning, match="the last line of .* has no line break, unlike")
        with told if lost else nullcontext():
            assert read_table_file(path)["size"].tolist() == [1234, size]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1), st.one_of(st.none(), st.integers(0, 2**63 - 1))
        ),
        min_size=1,
    )
)
def test_integers_survive_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("exact")
    ids, nullable = zip(*rows, strict=True)
    table = pa.table({"id": pa.array(ids, pa.int64()), "n": pa.array(nullable, pa.int64())})
    pa.parquet.write_table(table, folder / "a.parquet")
    pa.feather.write_feather(table, folder / "b.feather")
    lines = [f"{i},{'' if n is None else n}" for i, n in rows]
    text_file(folder / "c.csv", "id,n\n" + "\n".join(lines) + "\n")
    for name in ("a.parquet", "b.feather", "c.csv"):
        read = read_table_file(folder / name)
        assert read["id"].tolist() == list(ids)
        assert [None if pd.isna(n) else int(n) for n in read["n"]] == list(nullable)


# ---------------------------------------------------------------- parquet and feather


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_columnar_types(tmp_path, suffix):
    table = pa.table(
        {
            "small": pa.array([1, 2], pa.int16()),
            "big": pa.array([ROOT, None], pa.uint64()),
            "size": pa.array([1.5, None], pa.float32()),
            "flag": pa.array([True, None]),
            "sure": pa.array([True, False]),
            "word": pa.array(["a", None]),
            "large": pa.array(["a", ""], pa.large_string()),
            "coded": pa.array(["x", "x"]).dictionary_encode(),
            "pt_position": pa.array([[1, 2, 3], [4, 5, 6]]),
            "created": pa.array([10**18, None], pa.timestamp("ns", tz="UTC")),
            "nothing": pa.nulls(2),
        }
    )
    path = tmp_path / f"t.{suffix}"
    write = pa.parquet.write_table if suffix == "parquet" else pa.feather.write_feather
    write(table, path)
    read = read_table_file(path)
    assert {name: str(dtype) for name, dtype in read.dtypes.items()} == {
        "small": "int64", "big": "Int64", "size": "float32", "flag": "boolean", "sure": "bool",
        "word": "object", "large": "object", "coded": "object", "pt_position": "object",
        "created": "datetime64[us, UTC]", "nothing": "object",
    }  # fmt: skip
    assert read["big"].tolist() == [ROOT, pd.NA]
    assert read["word"].tolist() == ["a", None]
    assert np.stack(read["pt_position"]).tolist() == [[1, 2, 3], [4, 5, 6]]
    read.loc[0, "small"] = 9  # the columns are the caller's own
    assert read_table_file(path)["small"].tolist() == [1, 2]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(mx.errors.SourceError, match=f"t.{suffix} cannot be read"):
        read_table_file(path)


def test_integers_beyond_int64_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"root": pa.array([2**63], pa.uint64())}), path)
    with pytest.raises(mx.errors.SourceError, match="'root' holds integers beyond int64"):
        read_table_file(path)


def test_folders_named_like_partitions_add_no_columns(tmp_path):
    path = tmp_path / "version=661" / "t.parquet"
    path.parent.mkdir()
    pa.parquet.write_table(pa.table({"id": [1]}), path)
    assert list(read_table_file(path).columns) == ["id"]


def test_missing_file_and_other_suffix(tmp_path):
    with pytest.raises(mx.errors.SourceError, match="there is no file"):
        read_table_file(tmp_path / "t.csv")
    for name in ("t.pkl", "t.tsv", ".csv"):
        with pytest.raises(mx.errors.SourceError, match="none of the suffixes"):
            read_table_file(text_file(tmp_path / name, "id\n1\n"))
    assert table_stem(tmp_path / "a.b.csv.gz") == "a.b"


def test_writing_is_whole_or_not_at_all(tmp_path):
    good = pd.DataFrame({"id": [ROOT], "word": pd.Series(["a,b"], dtype=object)})
    path = write_table_file(good, tmp_path / "deep" / "t.csv")
    assert_frame_equal(read_table_file(path), good)
    bad = pd.DataFrame({"word": pd.Series(["a", object()], dtype=object)})
    with pytest.raises(mx.errors.SourceError, match="cannot be written"):
        write_table_file(bad, path)
    assert_frame_equal(read_table_file(path), good)
    assert os.listdir(path.parent) == ["t.csv"]
    with pytest.raises(mx.errors.SourceError, match=r"expected '\.csv' or '\.parquet'"):
        write_table_file(good, tmp_path / "t.feather")


# ------------------------------------------------------------------------ the folder


@pytest.fixture
def folder(tmp_path):
    text_file(tmp_path / "top.csv", "id\n1\n")
    text_file(tmp_path / "raw" / "nucleus_detection_v0.csv", f"id,pt_root_id\n7,{ROOT}\n8,0\n")
    text_file(tmp_path / "raw" / "MANIFEST.tsv", "no\ttable\n")
    text_file(tmp_path / "raw" / "half.csv.tmp", "id\n")
    text_file(tmp_path / "functional" / "fits.csv", "session\n4\n")
    text_file(tmp_path / "raw" / "synapses" / "mine.csv", "pre_pt_root_id\n1\n2\n3\n")
    return tmp_path


def test_tables_are_found_in_their_folders(folder):
    source = mx.sources.DirectorySource(folder, version=661)
    assert isinstance(source, mx.sources.TableSource)
    assert (source.version, source.datastack, source.scope) == (661, None, "unknown")
    assert source.available_tables() == ["fits", "mine", "nucleus_detection_v0", "top"]
    assert source.read("nucleus_detection_v0")["pt_root_id"].tolist() == [ROOT, 0]
    assert mx.sources.DirectorySource(folder).version is None


def test_the_raw_folder_alone_finds_the_functional_one_beside_it(folder):
    source = mx.sources.DirectorySource(folder / "raw")
    assert source.available_tables() == ["fits", "mine", "nucleus_detection_v0"]
    assert source.read("fits")["session"].tolist() == [4]
    assert list(source.synapse_files()) == ["mine"]


def test_provenance(folder):
    source = mx.sources.DirectorySource(folder)
    path = folder / "raw" / "nucleus_detection_v0.csv"
    assert source.provenance("nucleus_detection_v0") == {
        "name": "nucleus_detection_v0", "rows": 2,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip


def test_one_name_in_two_places_or_formats(folder):
    text_file(folder / "functional" / "top.csv", "id\n1\n")
    write_table_file(pd.DataFrame({"id": [1]}), folder / "raw" / "nucleus_detection_v0.parquet")
    source = mx.sources.DirectorySource(folder)
    with pytest.raises(mx.errors.SourceError, match=r"functional.top\.csv; keep one"):
        source.read("top")
    with pytest.raises(mx.errors.SourceError, match=r"v0\.csv, .*v0\.parquet; keep one"):
        source.provenance("nucleus_detection_v0")
    assert source.read("fits") is not None


def test_missing_folder_and_table(folder):
    with pytest.raises(mx.errors.SourceError, match="nearest: functional"):
        mx.sources.DirectorySource(folder / "functionl")
    with pytest.raises(mx.errors.SourceError, match="is a file, expected the folder"):
        mx.sources.DirectorySource(folder / "top.csv")
    with pytest.raises(mx.errors.SourceError, match=r"nearest: nucleus_detection_v0.*: fetch it"):
        mx.sources.DirectorySource(folder).read("nucleus_detection_v1")
    (folder / "empty").mkdir()
    empty = mx.sources.DirectorySource(folder / "empty")
    assert empty.available_tables() == []
    with pytest.raises(mx.errors.SourceError, match="holds no table, expected files NAME"):
        empty.read("top")
    with pytest.raises(mx.errors.SourceError, match="has no file of synapses"):
        empty.read_synapses()


def test_synapse_files(folder):
    source = mx.sources.DirectorySource(folder)
    assert source.synapse_files() == {"mine": folder / "raw" / "synapses" / "mine.csv"}
    assert len(source.read_synapses()) == len(source.read_synapses("mine")) == 3
    text_file(folder / "synapses" / "yours.csv", "pre_pt_root_id\n5\n")
    with pytest.raises(
        mx.errors.SourceError, match=r"2 files of synapses, mine, yours: .*request='mine'"
    ):
        source.read_synapses()
    assert source.read_synapses("yours")["pre_pt_root_id"].tolist() == [5]
    assert source.read("yours")["pre_pt_root_id"].tolist() == [5]
    with pytest.raises(mx.errors.SourceError, match="nearest: yours"):
        source.read_synapses("your")
    text_file(folder / "raw" / "synapses_pni_2.csv", "pre_pt_root_id\n5\n")
    assert list(source.synapse_files()) == ["mine", "synapses_pni_2", "yours"]
    text_file(folder / "synapses" / "mine.csv", "pre_pt_root_id\n5\n")
    with pytest.raises(mx.errors.SourceError, match="table mine exists 2 times"):
        source.synapse_files()


# ----------------------------------------------------------------- the demo as a folder


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("version", [661, 1718])
def test_a_written_demo_reads_back_the_same(tmp_path, version, format):
    demo = mx.sources.DemoSource(version, n_nuclei=500)
    assert demo.write(tmp_path / "release", format) == tmp_path / "release"
    source = mx.sources.DirectorySource(tmp_path / "release", version=version)
    assert source.available_tables() == demo.available_tables()
    assert list(source.synapse_files()) == ["synapses_pni_2"]
    assert (tmp_path / "release" / "functional" / f"tuning_curves_fitted_v1.{format}").is_file()
    assert not list(tmp_path.rglob("*.tmp"))
    for name in demo.available_tables():
        expected, found = demo.read(name), source.read(name)
        # a csv cannot say that a column without any value was one of integers
        drop = [c for c in ("superceded_id",) if c in expected and format == "csv"]
        for column in drop:
            assert found[column].isna().all()
        assert_frame_equal(found.drop(columns=drop), expected.drop(columns=drop), check_exact=True)
    assert_frame_equal(source.read_synapses(), demo.read("synapses_pni_2"))


def test_other_formats_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(mx.errors.SchemaError, match="format is 'pickle'"):
        mx.sources.DemoSource(661, n_nuclei=500).write(tmp_path / "release", "pickle")
    assert not (tmp_path / "release").exists()


# ----------------------------------------------------------------------- real tables


def test_real_v661(real_data):
    source = mx.sources.DirectorySource(real_data / "minnie65_v661", version=661)
    assert source.available_tables() == [
        "area_membership", "baylor_gnn_cell_type_fine_model_v2",
        "baylor_log_reg_cell_type_coarse_v1", "connections", "coregistration_manual_v3",
        "nucleus_detection_v0", "proofreading_status_public_release", "tuning_curves_fitted_v1",
    ]  # fmt: skip
    nuclei = source.read("nucleus_detection_v0")
    assert len(nuclei) == 54_899
    assert nuclei.pt_root_id.dtype == np.int64
    assert (nuclei.pt_root_id.duplicated(keep=False)).sum() == 30
    connections = source.read_synapses()
    assert len(connections) == 42_124
    known = connections.pre_pt_root_id.isin(nuclei.pt_root_id)
    known &= connections.post_pt_root_id.isin(nuclei.pt_root_id)
    assert known.sum() == 37_410
    fits = mx.sources.DirectorySource(real_data / "minnie65_v661" / "raw").read(
        "tuning_curves_fitted_v1"
    )
    assert len(fits) == 6_034
    assert fits.rate_dir[0].startswith("[2.515299   1.2499645")


def test_real_feather_and_unnamed_column(real_data):
    source = mx.sources.DirectorySource(real_data / "minnie65_real")
    cells = source.read("v1300_cell_info")
    assert len(cells) == 91_423
    assert cells.pt_root_id.dtype == np.int64
    areas = source.read("area_membership")
    assert list(areas.columns) == ["session", "scan_idx", "unit_id", "brain_area"]
    assert len(areas) == 168_971


def test_a_folder_that_says_its_release_cannot_pass_for_another(tmp_path):

    folder = mx.sources.DemoSource(661, n_nuclei=500).write(tmp_path / "release")
    for path in (folder, folder / "raw"):
        source = mx.sources.DirectorySource(path)
        assert (source.datastack, source.version) == ("minnie65_demo", 661)
        with pytest.raises(
            mx.errors.ReleaseMismatchError, match="holds tables of minnie65_demo v661"
        ):
            mx.sources.DirectorySource(path, version=1718)
    with pytest.raises(mx.errors.ReleaseMismatchError, match="use another folder"):
        mx.sources.DemoSource(1718, n_nuclei=500).write(folder)
    (folder / "release.json").write_text("{}")
    with pytest.raises(mx.errors.SourceError, match="correct or remove it"):
        mx.sources.DirectorySource(folder)


# ------------------------------------------------------- folders of microns-datacleaner


@pytest.fixture
def downloaded(tmp_path):
    """data/1718 as microns-datacleaner leaves it: csv, pairs in three parts, and a merged file."""
    demo = mx.sources.DemoSource(1718, n_nuclei=500, seed=3)
    folder = tmp_path / "data" / "1718" / "raw"
    (folder / "synapses").mkdir(parents=True)
    (tmp_path / "data" / "functional").mkdir()
    for name in demo.available_tables():
        if name == "tuning_curves_fitted_v1":
            demo.read(name).to_csv(tmp_path / "data" / "functional" / f"{name}.csv", index=False)
        elif name != "synapses_pni_2":
            demo.read(name).to_csv(folder / f"{name}.csv", index=False)
    ends = ["pre_pt_root_id", "post_pt_root_id"]
    pairs = demo.read("synapses_pni_2")[[*ends, "size"]].groupby(ends, as_index=False).sum()
    batch = pd.factorize(pairs["post_pt_root_id"])[0] % 11
    for part in range(11):
        of_part = pairs[batch == part]
        of_part.to_csv(folder / "synapses" / f"connections_table_{part}.csv", index=False)
    return tmp_path / "data" / "1718", pairs


def test_parts_of_pairs_are_one_set(downloaded):
    folder, pairs = downloaded
    release = mx.Release(1718, source=folder)
    assert release.source.choose_synapses() == "connections_table"
    connectivity = release.connectivity()
    (table,) = (t for t in connectivity.attrs["source_tables"] if "connections" in t)
    assert table.startswith(f"connections_table: {len(pairs)} rows")
    assert "synapse_count" not in connectivity  # one row per pair says nothing of it
    merged = pairs.sample(frac=1, random_state=0)
    merged.to_csv(folder / "raw" / "synapses" / "synapse_table.csv", index=False)
    # both hold the same: the merged file is read
    assert release.source.choose_synapses() == "synapse_table"
    again = release.connectivity()
    assert (again.synapse_size.data != connectivity.synapse_size.data).nnz == 0
    assert len(release.source.read_synapses("connections_table")) == len(pairs)
    assert len(release.source.read_synapses("connections_table_10")) < len(pairs)
    merged[1:].to_csv(folder / "raw" / "synapses" / "synapse_table.csv", index=False)
    with pytest.raises(mx.errors.SourceError, match=r"request='connections_table' or"):
        release.connectivity()
    # rates are beside the folders of versions
    assert release.units(functional="match", rates=True).rate_ori.notnull().any()


def test_parts_of_two_downloads_or_with_gaps_are_refused(downloaded):
    folder, pairs = downloaded
    last = folder / "raw" / "synapses" / "connections_table_10.csv"
    pairs[:9].to_csv(last.with_name("connections_table_11.csv"), index=False)
    with pytest.raises(mx.errors.SourceError, match=r"both have synapses onto .* two downloads"):
        mx.Release(1718, source=folder).connectivity()
    last.unlink()
    with pytest.raises(mx.errors.SourceError, match="connections_table_10 is missing"):
        mx.Release(1718, source=folder).connectivity()


def test_a_dump_without_columns_is_no_table_of_synapses(downloaded):
    folder, _ = downloaded
    synapses = folder / "raw" / "synapses"
    for part in synapses.glob("connections_table_*"):
        part.unlink()
    text_file(synapses / "synapses_pni_2_v1_filtered_view.csv", "1,2,3\n")
    text_file(synapses / "synapses_pni_2_v1_filtered_view_header.csv", "id,int\n")
    with pytest.raises(mx.errors.SourceError, match=r"mx\.ingest_synapses"):
        mx.sources.DirectorySource(folder, version=1718).read_synapses()
    text_file(synapses / "synapse_table.csv", "pre_pt_root_id,post_pt_root_id,size\n1,2,3\n")
    source = mx.sources.DirectorySource(folder, version=1718)
    assert source.choose_synapses() == "synapse_table"


def test_rows_that_are_not_valid_do_not_count(tmp_path):
    """In every table of a release, as dumps hold rows that were deleted or replaced."""
    folders = tmp_path / "clean", tmp_path / "dump"
    for folder in folders:
        mx.sources.DemoSource(1718, n_nuclei=500).write(folder)
    tables = sorted((folders[1] / "raw").rglob("*.csv"))
    for path in tables:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        others = table.iloc[:7].assign(id=(10**7 + np.arange(7)).astype(str), valid="f")
        pd.concat([table.assign(valid="t"), others]).to_csv(path, index=False)
    clean, dump = (mx.Release(1718, source=folder) for folder in folders)
    units = dump.units(functional="match", rates=True)
    xr.testing.assert_equal(units, clean.units(functional="match", rates=True))
    assert {"nuclei: 507", "not_valid: 7"} <= set(units.attrs["selection"])
    assert "invalid_rows_of_celltype: 7" in units.attrs["notes"]
    assert units.attrs["shared_roots"] == clean.shared_roots().tolist()
    for kind in ("manual", "auto", "digital_twin"):
        rows = dump.functional(kind)
        xr.testing.assert_equal(rows, clean.functional(kind))
        assert rows.attrs["n_invalid_rows"] == 7
    connectivity = dump.connectivity()
    assert (mx.to_scipy(connectivity) != mx.to_scipy(clean.connectivity())).nnz == 0
    assert "not_valid: 7" in connectivity.attrs["dropped_synapses"]
    synapses = dump.synapses()
    xr.testing.assert_equal(synapses, clean.synapses())
    assert synapses.attrs["n_invalid_rows"] == 7
    # Tables that are passed by hand, and streamed.
    raw = {path.stem: read_table_file(path) for path in tables}
    by_role = {r: raw[n] for r, n in dump.spec.tables.items() if n in raw and r != "synapses"}
    xr.testing.assert_equal(mx.build_units(by_role, dump.spec), clean.units(functional="none"))
    by_hand = mx.build_connectivity(raw["synapses_pni_2"], units)
    assert by_hand.attrs["dropped_synapses"] == connectivity.attrs["dropped_synapses"]
    area = raw["nucleus_functional_area_assignment"].iloc[-50:]
    merged = mx.merge_table(units, area, ["tag"])
    assert merged.attrs["history"][-1].endswith("7 rows are not valid")
    file = next(path for path in tables if path.stem == "synapses_pni_2")
    mx.ingest_synapses(file, units, tmp_path / "s.zarr", positions=True, progress=False)
    store = mx.open_store(tmp_path / "s.zarr")
    streamed = store["connectivity"].to_dataset()
    assert "not_valid: 7" in streamed.attrs["dropped_synapses"]
    assert streamed.attrs["n_synapse_rows"] == connectivity.attrs["n_synapse_rows"]
    assert store["synapses"].synapse_id.isin(synapses.synapse_id).all()
    assert (mx.to_scipy(streamed) != mx.to_scipy(by_hand)).nnz == 0


@pytest.mark.parametrize("column", ["valid", "valid_ref"])  # the second of the nucleus
@pytest.mark.parametrize("word", [True, "true", "T", 1, 1.0, None])
def test_words_for_valid(word, column):
    types = pd.DataFrame({"target_id": [11, 12], "score": [0.5, 0.7], column: [word, "f"]})
    units = mx.as_units(pd.DataFrame({"nucleus_id": [11, 12]}))
    merged = mx.merge_table(units, types, ["score"])
    assert merged.score.values.tolist()[0] == 0.5
    assert np.isnan(merged.score.values[1])
    with pytest.raises(mx.errors.SchemaError, match=f"{column} holds 'maybe', expected t or f"):
        mx.merge_table(units, types.assign(**{column: ["maybe", "t"]}))
    with pytest.raises(mx.errors.SchemaError, match="all 2 rows of table are marked as not valid"):
        mx.merge_table(units, types.assign(**{column: False}))
