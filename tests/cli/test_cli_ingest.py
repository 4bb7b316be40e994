"""``microns-xr ingest``: from units in a store or a folder of tables."""

from __future__ import annotations

import ingest_examples as ex
from typer.testing import CliRunner

import microns_xr as mx
from microns_xr.cli import app


def test_from_a_store_of_units(tmp_path):
    units = ex.make_units(60)
    frame = ex.make_synapses(units, 500)
    mx.write_store(tmp_path / "units.zarr", units=units)
    path, out = ex.write_archived(tmp_path, frame), tmp_path / "out.zarr"
    address = f"file://{tmp_path}/units.zarr"
    arguments = ["ingest", str(path), "--units", address, "--out", str(out)]
    found = CliRunner().invoke(app, [*arguments, "--positions", "--scope", "complete"])
    assert found.exit_code == 0, found.output
    pairs = mx.open_store(out)["connectivity"].synapse_size.data.nnz
    assert "rows          500" in found.output
    assert f"{pairs} connections among 60 pre and 60 post neurons, scope complete" in found.output
    said = CliRunner().invoke(app, ["info", str(out)]).output
    assert "table       synapses: 500 rows" in said
    assert "?" not in said
    ex.in_memory(frame, units, tmp_path / "expected.zarr", singles=True, scope="complete")
    ex.assert_same_store(out, tmp_path / "expected.zarr")
    arguments += ["--keep", "post", "--count-bad-lines"]
    again = CliRunner().invoke(app, arguments)
    assert "exists, expected a new name" in str(again.exception)
    assert mx.open_store(out)["connectivity"].scope.item() == "complete"
    kept = CliRunner().invoke(app, [*arguments, "--scope", "complete", "--overwrite"])
    assert kept.exit_code == 0, kept.output
    assert "post_pt_root_id" in mx.open_store(out)["synapses"]


def test_the_store_of_the_units_is_not_replaced(tmp_path):
    units = ex.make_units(5)
    store = tmp_path / "units.zarr"
    mx.write_store(store, units=units)
    path = ex.write_archived(tmp_path, ex.make_synapses(units, 20))
    for read, out in (
        (store, store),
        (store, tmp_path / "." / "x" / ".." / "units.zarr"),
        (f"file://{store}", store),
    ):
        arguments = ["ingest", str(path), "--units", str(read), "--out", str(out), "--overwrite"]
        found = CliRunner().invoke(app, arguments)
        assert isinstance(found.exception, mx.errors.SchemaError)
        assert "--out is the store to read the units from" in str(found.exception)
    assert "connectivity" not in mx.open_store(store).children


def test_what_is_no_store(tmp_path):
    arguments = ["ingest", "s.csv", "--units", str(tmp_path), "--out", "s.zarr"]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, mx.errors.SchemaError)
    assert "--version" in str(found.exception)


def test_from_a_folder_of_raw_tables(tmp_path):
    mx.sources.DemoSource(1718, n_nuclei=600).write(tmp_path / "raw", "parquet")
    (path,) = (tmp_path / "raw").rglob("synapses*.parquet")
    arguments = ["ingest", str(path), "--units", str(tmp_path / "raw"), "--version", "1718"]
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out.zarr")])
    assert found.exit_code == 0, found.output
    stored = mx.open_store(tmp_path / "out.zarr")["connectivity"].to_dataset()
    expected = mx.Release(1718, source=tmp_path / "raw").connectivity()
    assert mx.releases.read_counts(expected, "dropped_synapses")["pre_shared"] > 0
    assert mx.releases.read_counts(stored, "dropped_synapses") == mx.releases.read_counts(
        expected, "dropped_synapses"
    )
    assert (stored.synapse_size.data != expected.synapse_size.data).nnz == 0
    assert any(paper.startswith("MICrONS") for paper in mx.releases.references(stored))
