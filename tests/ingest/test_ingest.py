"""A table of synapses that is streamed gives the store that is built of it in memory."""

from __future__ import annotations

import errno
import gzip
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import ingest_examples as ex
import ingest_killed
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.ingest import ingest
from microns_xr.ingest import read as reading
from microns_xr.ingest.read import Mapper
from microns_xr.sources import postgres_csv
from microns_xr.sources.postgres_csv import Header
from microns_xr.store import stream
from microns_xr.store.spill import Spill

UNITS = ex.make_units(60)
FRAME = ex.make_synapses(UNITS, 4000)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Many blocks, runs and stretches, also of small tables."""
    monkeypatch.setattr(ingest, "_max_rows", lambda *_: 1300)
    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", 60_000)
    monkeypatch.setattr(reading, "_BATCH_ROWS", 900)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("expected") / "store.zarr"
    ex.in_memory(FRAME, UNITS, path)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out" / "store.zarr"


def run(files, out: Path, units=UNITS, **options) -> None:
    out.parent.mkdir(exist_ok=True)
    mx.ingest_synapses(files, units, out, overwrite=True, progress=False, **options)
    assert os.listdir(out.parent) == [out.name]
    assert not [name for name in os.listdir(out) if name.startswith(".")]


# --- the same as in memory -----------------------------------------------------------------------


def test_by_hand(tmp_path, out, caplog):
    """Three neurons: 12 -> 11 twice, 11 -> 13 of size 0, and 13 -> an unknown root."""
    units = ex.make_units(3)
    a, b, c = units.pt_root_id.values
    lines = f"pre_pt_root_id,post_pt_root_id,size\n{b},{a},5\n{c},77,9\n{a},{c},0\n{b},{a},6.0\n"
    (tmp_path / "s.csv").write_text(lines)
    with caplog.at_level(logging.INFO, logger="microns_xr"):
        run(tmp_path / "s.csv", out, units)
    assert "2 pairs of 4 rows; 1 rows dropped (1 post unknown)" in caplog.messages[-1]
    found = mx.open_store(out)["connectivity"]
    # The axes are the units with a connection to another one.
    ids = units.nucleus_id.values
    assert found.pre_nucleus_id.values.tolist() == ids[[0, 1]].tolist()
    assert found.post_nucleus_id.values.tolist() == ids[[0, 2]].tolist()
    assert found.post_pt_root_id.values.tolist() == [a, c]
    assert found.synapse_size.data.todense().tolist() == [[0, 0], [11, 0]]
    assert found.synapse_count.data.todense().tolist() == [[0, 1], [2, 0]]
    assert found.synapse_size.data.nnz == 2
    assert found.attrs["n_synapse_rows"] == 4
    assert mx.releases.read_counts(found, "dropped_synapses")["post_unknown"] == 1
    assert found.scope.item() == "unknown"
    assert "ingest_synapses" in "\n".join(found.attrs["history"])
    assert found.attrs["source_tables"] == ["s: 4 rows"]


@pytest.mark.parametrize("positions", [False, True])
def test_archived_file(tmp_path, out, positions):
    path = ex.write_archived(tmp_path, FRAME)
    run(path, out, positions=positions)
    ex.in_memory(FRAME, UNITS, tmp_path / "expected.zarr", singles=positions)
    ex.assert_same_store(out, tmp_path / "expected.zarr")
    assert ex.arrays_on_disk(out) == ex.arrays_on_disk(tmp_path / "expected.zarr")


@pytest.mark.parametrize(
    "kind", ["csv", "csv with header", "parquet", "several", "address", "crlf"]
)
def test_every_kind_of_file(tmp_path, out, expected, kind):
    named = {}
    if kind == "parquet":
        paths = tmp_path / "s.parquet"
        FRAME.to_parquet(paths)
    elif kind == "csv with header":
        paths = tmp_path / "s.csv.gz"
        FRAME.assign(size=FRAME["size"].astype(float)).to_csv(paths, index=False)
    elif kind == "crlf":
        paths = tmp_path / "s.csv"
        FRAME.to_csv(paths, index=False, lineterminator="\r\n")
    elif kind == "several":
        paths = [ex.write_archived(tmp_path, FRAME[:1500], "a"), tmp_path / "b.parquet"]
        FRAME[1500:].to_parquet(paths[1])
    else:
        paths = tmp_path / "s.csv"
        paths.write_bytes(ex.archived(FRAME))
        named = {"header": list(ex.HEADER)}
        if kind == "address":
            import fsspec

            fsspec.filesystem("memory").pipe("/s.csv", paths.read_bytes())
            paths = "memory://s.csv"
    if kind == "crlf":
        # an id and a size end the line in one of the two
        columns = ["id", "size", "post_pt_root_id", "pre_pt_root_id"]
        FRAME[columns].to_csv(paths, index=False, lineterminator="\r\n")
    run(paths, out, **named)
    ex.assert_same_store(out, expected)


def test_header_in_any_form(tmp_path, out, expected):
    path = ex.write_archived(tmp_path, FRAME)
    header = tmp_path / "elsewhere.csv"
    (tmp_path / "synapses_header.csv").rename(header)
    with pytest.raises(mx.errors.SchemaError, match="and there is no file synapses_header"):
        run(path, out)
    total = mx.open_store(expected)["connectivity"].synapse_size.data.data.sum()
    for form in (list(ex.HEADER), Header(tuple(ex.HEADER), ("",) * 10), header):
        run(path, out, header=form)
        assert mx.open_store(out)["connectivity"].synapse_size.data.data.sum() == total
    ex.assert_same_store(out, expected)


def test_table_of_pairs_with_nucleus_ids(tmp_path, out):
    """As the archive offers it: what counts are the numbers, and nucleus ids name the neurons."""
    nucleus = dict(zip(UNITS.pt_root_id.values.tolist(), UNITS.nucleus_id.values, strict=True))
    frame = FRAME.dropna().drop_duplicates(["pre_pt_root_id", "post_pt_root_id"])
    frame = frame.assign(n_syn=np.arange(len(frame)) % 4 + 1)
    frame = frame.rename(columns={"size": "sum_size"}).drop(columns=["id", *ex.PLACES])
    for side in ("pre", "post"):
        roots = frame[f"{side}_pt_root_id"]
        frame[f"{side}_nucleus_id"] = roots.map(nucleus).astype("Int64")
    frame.to_csv(tmp_path / "pairs.csv.gz", index=False)
    run(tmp_path / "pairs.csv.gz", out)
    ex.in_memory(frame, UNITS, tmp_path / "expected.zarr")
    ex.assert_same_store(out, tmp_path / "expected.zarr")
    assert mx.open_store(out)["connectivity"].synapse_count.data.data.max() == 4


@pytest.mark.parametrize("rows", ["auto", "synapse"])
def test_without_an_id(tmp_path, out, rows):
    frame = FRAME.drop(columns="id")
    frame.to_parquet(tmp_path / "s.parquet")
    run(tmp_path / "s.parquet", out, rows=rows, scope="complete")
    ex.in_memory(frame, UNITS, tmp_path / "expected.zarr", rows=rows, scope="complete")
    ex.assert_same_store(out, tmp_path / "expected.zarr")


def test_pairs_without_a_count(tmp_path, out):
    partners = ["pre_pt_root_id", "post_pt_root_id"]
    frame = FRAME[[*partners, "size"]].drop_duplicates(partners)
    frame.to_csv(tmp_path / "s.csv", index=False)
    ex.in_memory(frame, UNITS, tmp_path / "expected.zarr")
    for rows in ("pair", "auto"):
        run(tmp_path / "s.csv", out, rows=rows)
        ex.assert_same_store(out, tmp_path / "expected.zarr")
        assert list(mx.open_store(out)["connectivity"].data_vars) == ["synapse_size"]
        assert not list(out.rglob("synapse_count"))
    FRAME.drop(columns="id").to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(
        mx.errors.SchemaError, match=r"rows is 'pair' but .* expected each pair once"
    ):
        run(tmp_path / "s.csv", out, rows="pair")


@pytest.mark.parametrize("more", [{"n_syn": 1}, {}])
def test_overlapping_files_of_pairs(tmp_path, out, more, caplog):
    """Pairs of two files, which were sorted apart, are no more summed than those of a table."""
    partners = ["pre_pt_root_id", "post_pt_root_id"]
    frame = FRAME[[*partners, "size"]].drop_duplicates(partners).assign(**more)
    frame[:-9].to_csv(tmp_path / "a.csv", index=False)
    frame[9:].to_csv(tmp_path / "b.csv", index=False)
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    match = "rows hold .* pairs, expected each pair once" if more else "with the same size"
    with pytest.raises(mx.errors.SchemaError, match=match):
        run(files, out)
    assert not out.exists()
    frame[-9:].to_csv(tmp_path / "b.csv", index=False)
    run(files, out)
    assert "read as a synapse" not in caplog.text
    if not more:  # sizes differ
        frame[-9:-5].assign(size=range(10**6, 10**6 + 4)).to_csv(tmp_path / "c.csv", index=False)
        run([*files, tmp_path / "c.csv"], out)
        assert "repeat a pair of neurons: each row is read as a synapse" in caplog.text


def test_no_connections(tmp_path, out):
    FRAME[:0].to_csv(tmp_path / "s.csv", index=False)
    run(tmp_path / "s.csv", out)
    ex.in_memory(FRAME[:0], UNITS, tmp_path / "expected.zarr")
    ex.assert_same_store(out, tmp_path / "expected.zarr")
    FRAME[:0].to_csv(tmp_path / "s.csv", index=False)
    run(tmp_path / "s.csv", out, positions=True)
    assert mx.open_store(out)["synapses"].sizes["synapse"] == 0


def test_sums_beyond_int32(tmp_path, out):
    """int64 on disk where a sum asks for it, and nowhere else."""
    frame = FRAME.copy()
    frame.loc[frame.index[-5:], "size"] = 2**40
    frame.loc[frame.index[-5:], "post_pt_root_id"] = UNITS.pt_root_id.values[-1]
    frame.loc[frame.index[-5:], "pre_pt_root_id"] = UNITS.pt_root_id.values[3]
    run(ex.write_archived(tmp_path, frame), out)
    ex.in_memory(frame, UNITS, tmp_path / "expected.zarr")
    ex.assert_same_store(out, tmp_path / "expected.zarr")
    assert ex.arrays_on_disk(out) == ex.arrays_on_disk(tmp_path / "expected.zarr")
    assert ex.arrays_on_disk(out)["connectivity/by_pre/data"][2] == "int64"


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 10**6), st.integers(4, 40))
@pytest.mark.filterwarnings("ignore:none of the .* rows of synapses is between two units")
def test_any_table(tmp_path_factory, n_units, n, seed, run_rows):
    tmp = tmp_path_factory.mktemp("any")
    units = ex.make_units(n_units)
    frame = ex.make_synapses(units, n, seed)
    frame.to_csv(tmp / "s.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "_max_rows", lambda *_: run_rows)
        patch.setattr(postgres_csv, "_AHEAD", 1 + seed % 3)
        run(tmp / "s.csv", tmp / "out" / "s.zarr", units, positions=True)
    ex.in_memory(frame, units, tmp / "expected.zarr", singles=True)
    ex.assert_same_store(tmp / "out" / "s.zarr", tmp / "expected.zarr")
    shutil.rmtree(tmp)


@pytest.mark.parametrize("keep", ["pre", "post"])
def test_synapses_of_units_with_any_neuron(tmp_path, out, keep, expected):
    """The connectivity is the same; the synapses are those of a plain filter in pandas."""
    run(ex.write_archived(tmp_path, FRAME), out, keep=keep, positions=True)
    tree = mx.open_store(out)
    found = tree["synapses"].to_dataset()
    roots = UNITS.pt_root_id.to_series().reset_index()
    frame = FRAME.merge(roots, left_on=f"{keep}_pt_root_id", right_on="pt_root_id")
    other = "post" if keep == "pre" else "pre"
    frame[f"{other}_pt_root_id"] = frame[f"{other}_pt_root_id"].fillna(0)
    frame = frame.sort_values(["nucleus_id", f"{other}_pt_root_id", "id"])
    for name in ("nucleus_id", "pre_pt_root_id", "post_pt_root_id", "size"):
        assert found[name].values.tolist() == frame[name].tolist()
    assert found.synapse_id.values.tolist() == frame["id"].tolist()
    assert found.position.shape == (len(frame), 3)
    assert set(frame[f"{other}_pt_root_id"]) - set(roots.pt_root_id)
    shutil.rmtree(out / "synapses")
    ex.assert_same_store(out, expected)


def test_positions_in_other_forms(tmp_path, out):
    """As text in brackets, as a point of PostGIS, with fractions, or absent."""
    import struct

    frame = FRAME[:400].copy()
    run(ex.write_archived(tmp_path, frame), out, positions=True)
    truth = mx.open_store(out)["synapses"].to_dataset()
    places = frame[ex.PLACES].to_numpy()
    forms = {
        "text": [f"[{x} {y} {z}]" for x, y, z in places],
        "binary": ["01010000A0E6100000"[:18] + struct.pack("<3d", *p).hex() for p in places],
        "fraction": [f"({x}.0, {y}e0,{z})" for x, y, z in places],
    }
    for form, texts in forms.items():
        one = frame.drop(columns=ex.PLACES).assign(ctr_pt_position=texts)
        one.to_csv(tmp_path / f"{form}.csv", index=False)
        one.to_parquet(tmp_path / f"{form}.parquet")
        for ending in ("csv",) if form == "fraction" else ("csv", "parquet"):
            run(tmp_path / f"{form}.{ending}", out, positions=True)
            found = mx.open_store(out)["synapses"].to_dataset()
            np.testing.assert_array_equal(found.position.values, truth.position.values)
    texts[7], texts[9] = "nowhere", ""
    roots = UNITS.pt_root_id.values
    one["pre_pt_root_id"] = one["post_pt_root_id"] = roots[0]
    one.assign(ctr_pt_position=texts).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(
        mx.errors.SchemaError, match=r"line 9 .*'ctr_pt_position' is 'nowhere', expected x"
    ):
        run(tmp_path / "s.csv", out, positions=True)
    run(tmp_path / "s.csv", out, positions=True, on_bad_lines="count")
    tree = mx.open_store(out)
    assert tree["synapses"].sizes["synapse"] == 399
    assert int(np.isnan(tree["synapses"].position.values).any(axis=1).sum()) == 1
    assert tree["connectivity"].attrs["bad_lines"] == 1


@pytest.mark.parametrize("form", ["mapping", "tree"])
def test_layers_and_functional_units_are_written_too(tmp_path, out, form):
    """As parts beside the units, in a mapping or in the tree of a store."""
    import store_examples

    layers = store_examples.layers().assign_coords(materialization_version=1718)
    functional = store_examples.functional().assign_coords(materialization_version=1718)
    parts = {"units": UNITS, "layers": layers, "functional": functional}
    connectivity = mx.build_connectivity(FRAME, UNITS)
    mx.write_store(tmp_path / "expected.zarr", **parts, connectivity=connectivity)
    path = ex.write_archived(tmp_path, FRAME)
    run(path, out, units=parts if form == "mapping" else mx.open_store(tmp_path / "expected.zarr"))
    ex.assert_same_store(out, tmp_path / "expected.zarr")
    with pytest.raises(mx.errors.ReleaseMismatchError):
        run(path, out, units=parts | {"layers": store_examples.layers()})
    for wrong in ({"layers": layers}, parts | {"layer": layers}, 3):
        with pytest.raises(mx.errors.SchemaError, match="expected the units Dataset, or a tree"):
            run(path, out, units=wrong)
    ex.assert_same_store(out, tmp_path / "expected.zarr")


# --- what is refused -----------------------------------------------------------------------------


def table(*rows: str) -> str:
    good = f"1,{UNITS.pt_root_id.values[0]},{UNITS.pt_root_id.values[1]},5"
    return "\n".join(["id,pre_pt_root_id,post_pt_root_id,size", good, *rows]) + "\n"


R = UNITS.pt_root_id.values[2]
BAD_ROWS = {
    f"2,{R},{R}": "expected 4 columns",
    f"2,{R},{R},5,6": "expected 4 columns",
    "": "expected 4 columns",
    f"2,{R},x{R},5": "'post_pt_root_id' is .* expected an integer",
    f"2,{R}.0,{R},5": "'pre_pt_root_id' is .*rounded by floats",
    f"2,8.6e17,{R},5": "rounded by floats",
    f"2,{R},{2**63},5": "below 2\\*\\*63",
    f"2,{R},{10**30},5": "below 2\\*\\*63",
    f",{R},{R},5": "'id' is '', expected a number in every row",
    f"2,{R},{R},": "'size' is '', expected a number in every row",
    f"2,{R},{R},-1": "expected 0 or more",
    f"2,{R},{R},1.5": "'size' is '1.5', expected a whole number",
    f"2,{R},{R},nan": "'size' is 'nan', expected an integer",
    f'2,{R},"{R},5': "expected 4 columns",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_lines_are_found(tmp_path, out, row):
    text = table(f"3,{R},{R},1.2e+02", row, f"4,{R},{R},7", row)
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(text.encode()))
    byte = text.index("\n" + row + "\n", 80) + 1
    with pytest.raises(mx.errors.SchemaError, match=BAD_ROWS[row]) as error:
        run(tmp_path / "s.csv.gz", out)
    assert f"s.csv.gz line 4 (at byte {byte} of the unpacked file)" in str(error.value)
    assert os.listdir(out.parent) == []


def test_bad_lines_are_counted(tmp_path, out):
    text = table(f"3,{R},{R},1.2e+02", *BAD_ROWS, f"4,{R},{R},7")
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(text.encode()))
    run(tmp_path / "s.csv.gz", out, on_bad_lines="count")
    found = mx.open_store(out)["connectivity"]
    assert found.attrs["bad_lines"] == len(BAD_ROWS)
    assert found.synapse_size.data.data.sum() == 5 + 120 + 7
    assert found.attrs["n_synapse_rows"] == 3


def test_line_and_byte_far_into_the_second_file(tmp_path, out):
    good = ex.write_archived(tmp_path, FRAME[:2000], "a")
    lines = ex.archived(FRAME[2000:]).split(b"\n")
    lines[1234] = lines[1234].replace(b",t,", b",t")
    path = ex.write_archived(tmp_path, FRAME, "b")
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    byte = sum(len(line) + 1 for line in lines[:1234])
    with pytest.raises(mx.errors.SchemaError) as error:
        run([good, path], out)
    assert f"b.csv.gz line 1235 (at byte {byte} of the unpacked file)" in str(error.value)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (-3.0, "expected 0 or more"),
        (1.5, "expected a whole number"),
        (2.0**63, "expected a number below"),
        (np.nan, "expected a"),
    ],
)
def test_bad_values_in_parquet(tmp_path, out, size, says):
    frame = FRAME.dropna().reset_index(drop=True)
    frame["size"] = frame["size"].astype(float)
    frame.loc[900, "size"] = size
    frame.to_parquet(tmp_path / "s.parquet")
    with pytest.raises(mx.errors.SchemaError, match=f"row 901: column 'size' is .*, {says}"):
        run(tmp_path / "s.parquet", out)
    run(tmp_path / "s.parquet", out, on_bad_lines="count")
    ex.in_memory(frame.drop(900), UNITS, tmp_path / "expected.zarr")
    found, expected = (mx.open_store(p)["connectivity"] for p in (out, tmp_path / "expected.zarr"))
    assert found.attrs["bad_lines"] == 1
    assert (found.synapse_size.data != expected.synapse_size.data).nnz == 0
    frame.astype({"pre_pt_root_id": float}).to_parquet(tmp_path / "s.parquet")
    with pytest.raises(mx.errors.SchemaError, match="pre_pt_root_id is double, expected integers"):
        run(tmp_path / "s.parquet", out)


def test_all_lines_are_bad(tmp_path, out):
    (tmp_path / "s.csv").write_text("id,pre_pt_root_id,post_pt_root_id,size\n1;2;3;4\n")
    with pytest.raises(mx.errors.SchemaError, match=r"all 1 lines of .*s.csv are bad"):
        run(tmp_path / "s.csv", out, on_bad_lines="count")


@pytest.mark.parametrize("count", ["error", "count"])
def test_truncated_and_damaged_files(tmp_path, out, count):
    path = ex.write_archived(tmp_path, FRAME)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        mx.errors.IncompleteDownloadError, match=f"too early at byte {len(whole) // 2} of"
    ):
        run(path, out, on_bad_lines=count)
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * 50 + whole[len(whole) // 2 + 50 :])
    with pytest.raises((mx.errors.SourceError, mx.errors.SchemaError)):
        run(path, out, on_bad_lines="error")
    assert os.listdir(out.parent) == []


def test_repeated_synapses_and_files(tmp_path, out):
    path = ex.write_archived(tmp_path, FRAME)
    with pytest.raises(mx.errors.SchemaError, match="twice, expected each file once"):
        run([path, tmp_path / "." / path.name], out)
    shutil.copy(path, tmp_path / "copy.csv.gz")
    shutil.copy(tmp_path / "synapses_header.csv", tmp_path / "copy_header.csv")
    for keep in ("both", "pre"):
        with pytest.raises(
            mx.errors.SchemaError, match=r"synapse id \d+ is repeated, expected each synapse"
        ):
            run([path, tmp_path / "copy.csv.gz"], out, keep=keep)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(keep="all"), "keep is 'all'"),
        (dict(on_bad_lines="skip"), "on_bad_lines is 'skip'"),
        (dict(scope="some"), "scope is 'some'"),
        (dict(rows="line"), "rows is 'line'"),
        (dict(header=["id", "size", "id"]), "header names the column 'id' twice"),
    ],
)
def test_arguments(tmp_path, out, options, says):
    path = ex.write_archived(tmp_path, FRAME[:10])
    with pytest.raises(mx.errors.SchemaError, match=says):
        run(path, out, **options)
    with pytest.raises(mx.errors.SchemaError, match="expected a local folder"):
        mx.ingest_synapses(path, UNITS, "memory://store.zarr")
    with pytest.raises(mx.errors.SchemaError, match="files is empty"):
        mx.ingest_synapses([], UNITS, out)
    with pytest.raises(mx.errors.SourceError, match="cannot be read"):
        mx.ingest_synapses(tmp_path / "none.csv", UNITS, out)
    with pytest.raises(mx.errors.SourceError, match=r"the header file .* cannot be read"):
        mx.ingest_synapses(path, UNITS, out, header=tmp_path / "none.csv")
    (tmp_path / "ids.csv").write_text("id,pre_nucleus_id,post_nucleus_id,size\n")
    with pytest.raises(mx.errors.SchemaError, match="names its partners by nucleus id"):
        mx.ingest_synapses(tmp_path / "ids.csv", UNITS, out, keep="pre")
    with pytest.raises(mx.errors.SchemaError, match=r"ids.csv has .*: ingest tables one at a time"):
        mx.ingest_synapses([path, tmp_path / "ids.csv"], UNITS, out)
    with pytest.raises(mx.errors.StoreFormatError, match="is not a store"):
        mx.ingest_synapses(path, UNITS, tmp_path, progress=False)


def test_memory_bounds(monkeypatch, tmp_path, out):
    monkeypatch.undo()
    path = ex.write_archived(tmp_path, FRAME[:10])
    bad = {"1 MB": "expected at least", "much": "expected bytes", None: "expected bytes"}
    for memory, says in bad.items():
        with pytest.raises(mx.errors.SchemaError, match=says):
            run(path, out, memory=memory)
    run(path, out, memory="600 MB")


def test_columns_of_single_synapses(tmp_path, out):
    frame = FRAME.drop(columns="id")
    frame.to_csv(tmp_path / "s.csv", index=False)
    for options, lacking in ((dict(positions=True), "id"), (dict(keep="pre"), "id")):
        with pytest.raises(
            mx.errors.SchemaError, match=f"expected '{lacking}', which single synapses need"
        ):
            run(tmp_path / "s.csv", out, **options)
    FRAME.drop(columns=ex.PLACES).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(mx.errors.SchemaError, match="expected 'ctr_pt_position'"):
        run(tmp_path / "s.csv", out, positions=True)


def test_disk_space_is_checked_first(monkeypatch, tmp_path, out):
    path = ex.write_archived(tmp_path, FRAME)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: usage._replace(free=2_000))
    with pytest.raises(
        mx.errors.SourceError, match=r"has 0.00 GB free, but about \d.\d\d GB are needed"
    ):
        run(path, out)
    assert os.listdir(out.parent) == []


# --- failures on the way -------------------------------------------------------------------------


class Bar:
    """Stands for a bar that is shown."""

    n = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        self.n += n


@pytest.mark.parametrize("step", ["parse", "spill", "chunk", "unpack", "bar", "interrupt"])
def test_a_failing_thread_ends_all_others(monkeypatch, tmp_path, out, expected, step):
    """Neither side waits for the other, the error comes out, and the old store stays."""
    path = ex.write_archived(tmp_path, FRAME)
    shutil.copytree(expected, out)
    threads = set(threading.enumerate())
    calls = [0]

    def failing(*_: object, **__: object) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt("no more") if step == "interrupt" else OSError("no more")
        return real(*_, **__)

    owner, name = {
        "parse": (Mapper, "map"),
        "spill": (Spill, "_put"),
        "bar": (Bar, "update"),
        "chunk": (stream, "_write_slice"),
        "interrupt": (Bar, "update"),
        "unpack": (reading.igzip.IGzipFile, "read"),
    }[step]
    monkeypatch.setattr(reading, "bar", lambda *_: Bar())
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, failing)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            mx.ingest_synapses(path, UNITS, out, overwrite=True, progress=False)
        except BaseException as error:
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(30)
    assert not worker.is_alive()
    assert "no more" in str(failure[0])
    assert set(threading.enumerate()) <= threads
    monkeypatch.setattr(owner, name, real)
    assert os.listdir(out.parent) == [out.name]
    ex.assert_same_store(out, expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(monkeypatch, tmp_path, out, number):
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stream, "_write_slice", full)
    says = rf"{os.strerror(number)}.: up to [\d,.]+ MB are needed, [\d,.]+ MB are free"
    with pytest.raises(mx.errors.SourceError, match=says):
        run(ex.write_archived(tmp_path, FRAME), out)
    assert os.listdir(out.parent) == []


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ingest_killed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        process = context.Process(target=int)
        process.start()
        process.join()
    return context


# Each kind of step, and what opening gives before the same call is made again.
STEPS = {
    ("_spill", 0): "old",
    ("_write_slice", 3): "old",
    ("finish_store", 0): "old",
    ("rename", 0): "new",  # whole, but the old one has not been put aside
    ("rename", 1): "new",  # neither is in its place
}


def test_killed_at_every_kind_of_step(tmp_path, processes, expected):
    """Opening finishes what can be finished, and the same call again leaves the new store only."""
    path = ex.write_archived(tmp_path, FRAME)
    ex.in_memory(FRAME[:50], UNITS, tmp_path / "old.zarr")
    for (name, number), state in STEPS.items():
        out = tmp_path / f"{name}{number}" / "store.zarr"
        out.parent.mkdir()
        shutil.copytree(tmp_path / "old.zarr", out)
        arguments = (name, number, str(path), UNITS, str(out))
        process = processes.Process(target=ingest_killed.die_at, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        n = mx.open_store(out)["connectivity"].attrs["n_synapse_rows"]
        assert n == (50 if state == "old" else len(FRAME))
        run(path, out)
        ex.assert_same_store(out, expected)


def test_root_ids_that_went_through_floats(tmp_path, out):
    rounded = FRAME.assign(pre_pt_root_id=FRAME.pre_pt_root_id // 128 * 128)
    rounded.to_parquet(tmp_path / "s.parquet")
    with pytest.raises(mx.errors.SchemaError, match=r"pre_pt_root_id.*all multiples of 128"):
        run([tmp_path / "s.parquet"], out)


@pytest.mark.parametrize("labels", ["pt_root_id", "nucleus_id"])
def test_units_need_the_ids_of_the_table_alone(tmp_path, out, labels):
    bare = UNITS[["pt_root_id"]].drop_attrs()
    if labels == "nucleus_id":  # which mean the same in every release
        bare = bare.drop_vars(["pt_root_id", "datastack", "materialization_version"])
    ids = (bare.pt_root_id if labels == "pt_root_id" else bare.nucleus_id).values
    rows = [f"{i},{ids[0]},{ids[i]},{5 + i}" for i in (1, 2)]
    file = tmp_path / "s.csv"
    file.write_text("\n".join([f"id,pre_{labels},post_{labels},size", *rows, ""]))
    run(file, out, bare)
    connectivity = mx.open_store(out)["connectivity"]
    assert connectivity.synapse_size.data.todense().tolist() == [[6, 7]]
    assert ("datastack" in connectivity.coords) == (labels == "pt_root_id")
