"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from command import run

import microns_xr as mx
from microns_xr.store.swap import recover
from microns_xr.store.write import finish_store


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    # As a user runs it; all other calls are in this process, which does not import all again.
    result = subprocess.run(
        [sys.executable, "-m", "microns_xr", "demo", "--n-nuclei", "1000"],
        capture_output=True, text=True, cwd=folder, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "units         " in result.stdout
    assert "connections among" in result.stdout
    assert "3/3" in result.stderr
    return folder / "microns_xr_demo"


def test_demo_leaves_a_store_and_a_figure(demo_folder):
    assert (demo_folder / "demo.png").read_bytes()[:4] == b"\x89PNG"
    tree = mx.open_store(demo_folder / "demo_v1718.zarr")
    assert {"units", "layers", "functional", "connectivity"} <= set(tree.children)
    assert sorted(p.name for p in demo_folder.iterdir()) == ["demo.png", "demo_v1718.zarr"]


def test_info(demo_folder):
    result = run("info", demo_folder / "demo_v1718.zarr")
    assert result.returncode == 0
    assert "release       minnie65_demo v1718" in result.stdout
    assert "layers (µm)" in result.stdout


def test_a_store_by_its_address(demo_folder, tmp_path):
    store = demo_folder / "demo_v1718.zarr"
    found = run("info", f"file://{store}")
    assert found.returncode == 0, found.stderr
    assert found.stdout == run("info", store).stdout
    result = run("currents", f"file://{store}", "--out", tmp_path / "currents.csv")
    assert result.returncode == 0, result.stderr
    own = pd.read_csv(tmp_path / "currents.csv", index_col=0)
    assert list(own.index) == list(mx.open_store(store)["units"].nucleus_id)
    refused = run("currents", f"file://{store}", "--out", store)
    assert "--out is the store to read" in refused.stderr


def test_info_needs_one_copy(demo_folder, tmp_path):
    store = shutil.copytree(demo_folder / "demo_v1718.zarr", tmp_path / "store.zarr")
    shutil.rmtree(store / "connectivity/by_post")
    assert run("info", store).stdout == run("info", demo_folder / "demo_v1718.zarr").stdout


@pytest.mark.parametrize("version", [661, 1507])
def test_build_from_a_folder_of_raw_tables(tmp_path, version):
    raw = mx.sources.DemoSource(version, n_nuclei=800).write(tmp_path / "raw_tables", format="csv")
    result = run("build", raw, "--version", version, "--out", tmp_path / "store.zarr")
    assert result.returncode == 0, result.stderr
    tree = mx.open_store(tmp_path / "store.zarr")
    direct = mx.Release(version, source=mx.sources.DemoSource(version, n_nuclei=800))
    units = direct.units(functional="match", rates=True)
    stored = tree["units"].to_dataset()
    assert stored.nucleus_id.equals(units.nucleus_id)
    np.testing.assert_array_equal(stored.rate_ori.values, units.rate_ori.values)
    assert mx.n_connections(tree["connectivity"].to_dataset()) == mx.n_connections(
        direct.connectivity()
    )
    names = [t.partition(": ")[0] for t in tree.attrs["source_tables"]]
    assert direct.spec.name_of("nucleus") in names
    assert all(len(t.split("sha256 ")[1]) == 64 for t in tree.attrs["source_tables"])


def test_build_states_the_scope(tmp_path):
    raw = mx.sources.DemoSource(1718, n_nuclei=600).write(tmp_path / "raw", format="csv")
    arguments = ["build", raw, "--version", 1718, "--out", tmp_path / "s.zarr"]
    assert run(*arguments, "--scope", "complete").returncode == 0
    connectivity = mx.open_store(tmp_path / "s.zarr")["connectivity"].to_dataset()
    assert connectivity.scope.item() == "complete"
    units = mx.open_store(tmp_path / "s.zarr")["units"]
    assert connectivity.sizes["pre_nucleus_id"] == units.sizes["nucleus_id"]
    # It is not replaced unless asked to, which is said before the tables are read.
    refused = run("build", tmp_path, *arguments[2:])
    assert refused.returncode == 1
    assert "s.zarr exists" in refused.stderr
    assert "pass --overwrite" in refused.stderr
    assert mx.open_store(tmp_path / "s.zarr")["connectivity"].scope.item() == "complete"
    assert run(*arguments, "--overwrite").returncode == 0
    assert mx.open_store(tmp_path / "s.zarr")["connectivity"].scope.item() == "unknown"


def test_build_without_function_or_synapses_says_so(tmp_path, three_tables):
    spec = mx.releases.release_spec(1300)
    raw = tmp_path / "raw"
    raw.mkdir()
    for role in ("nucleus", "celltype", "proofreading"):
        three_tables[role].to_csv(raw / f"{spec.tables[role]}.csv", index=False)
    result = run("build", raw, "--version", 1300, "--out", tmp_path / "s.zarr")
    assert result.returncode == 0, result.stderr
    assert "not in the store: coregistration, tuning_curves, synapses" in result.stdout
    assert mx.open_store(tmp_path / "s.zarr")["units"].sizes["nucleus_id"] == 3
    failed = run("currents", tmp_path / "s.zarr", "--out", tmp_path / "c.csv")
    assert failed.returncode == 1
    assert "has no connectivity" in failed.stderr


def test_build_uses_the_functional_tables_of_a_folder_or_names_them(tmp_path, demo_release):
    """Without a table of rates: fits with a convention, properties without a coregistration."""
    spec, raw, store = demo_release.spec, tmp_path / "raw", tmp_path / "s.zarr"
    raw.mkdir()
    for role in ("nucleus", "celltype", "proofreading", "coregistration", "functional_properties"):
        table = demo_release.table(role)
        table.to_parquet(raw / f"{spec.tables[role]}.parquet")
    matches = demo_release.table("coregistration")[["session", "scan_idx", "unit_id"]]
    fits = matches.drop_duplicates().assign(
        model="single_von_mises", amplitude=2.0, kappa=1.0, pref_dir=90.0, r2=0.5
    )
    fits.to_csv(raw / "orientation_fits_v1.csv", index=False)
    properties = spec.tables["functional_properties"]
    arguments = ["build", raw, "--version", 1718, "--out", store, "--overwrite"]

    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert f"but not in the store: {properties}, orientation_fits_v1 (rates need" in result.stdout
    assert "rate_dir" not in mx.open_store(store)["units"]

    result = run(*arguments, "--angle-convention", "up_clockwise")
    assert result.returncode == 0, result.stderr
    assert f"but not in the store: {properties}\n" in result.stdout
    assert "so not in the store: synapses" in result.stdout
    units = mx.open_store(store)["units"].to_dataset()
    rated = units.rate_dir.sel(nucleus_id=units.n_rated > 0)
    assert rated.sizes["nucleus_id"] > 5
    np.testing.assert_allclose(rated.sel(direction=90), 2.0)  # A exp(k (cos 0 - 1))
    np.testing.assert_allclose(rated.sel(direction=270), 2.0 * np.exp(-2.0))

    (raw / f"{spec.tables['coregistration']}.parquet").unlink()
    result = run(*arguments)
    assert "so not in the store: coregistration, tuning_curves, synapses" in result.stdout
    assert "but not in the store: orientation_fits_v1 (rates need" in result.stdout
    tree = mx.open_store(store)
    expected = demo_release.units(functional="best_only")
    np.testing.assert_array_equal(tree["units"].gOSI.values, expected.gOSI.values)
    twin = demo_release.functional("digital_twin")
    assert tree["functional"].sizes["scan_unit"] == twin.sizes["scan_unit"]


def test_currents_to_csv_and_zarr(demo_folder, tmp_path):
    store = demo_folder / "demo_v1718.zarr"
    for name in ("c.csv", "c.csv.gz", "c.zarr"):
        result = run("currents", store, "--rates", "rate_dir", "--out", tmp_path / name)
        assert result.returncode == 0, result.stderr
        assert "sum by angle  0: " in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.csv", "c.csv.gz", "c.zarr"]
    tree = mx.open_store(store)
    expected = mx.input_currents(
        tree["connectivity"].to_dataset(), tree["units"].to_dataset().rate_dir
    )
    for name in ("c.csv", "c.csv.gz"):
        table = pd.read_csv(tmp_path / name, index_col=0)
        np.testing.assert_allclose(table.iloc[:, 1:17], expected.values, rtol=1e-12)
        np.testing.assert_allclose(table.rated_fraction, expected.rated_fraction, rtol=1e-12)
        assert (table.index == expected.post_nucleus_id.values).all()
    zarr = xr.open_zarr(tmp_path / "c.zarr", consolidated=False)
    np.testing.assert_array_equal(zarr.input_current.values, expected.values)


BAD_CALLS = {
    "unknown version": (
        ["build", ".", "--version", 1719, "--out", "s.zarr"],
        1,
        "expected one of 661, 943",
    ),
    "no folder": (["build", "nowhere", "--version", 1718, "--out", "s.zarr"], 1, "nowhere"),
    "empty folder": (
        ["build", ".", "--version", 1718, "--out", "s.zarr"],
        1,
        "nucleus_detection_v0",
    ),
    "no store": (["info", "nothing.zarr"], 1, "nothing.zarr"),
    "no such command": (["biuld"], 2, "biuld"),
    "missing option": (["build", "."], 2, "--version"),
    "suffix of the store": (["build", ".", "--version", 1718, "--out", "s.csv"], 1, "NAME.zarr"),
    "no parent": (["build", ".", "--version", 1718, "--out", "a/s.zarr"], 1, "create the folder a"),
    "policy": (["download", "--version", 1718, "--policy", "most"], 2, "minimum"),
    "condition": (["download", "--version", 1718, "--pre", "ax=full"], 1, "nearest: axon"),
    "server that is not there": (
        ["download", "--version", 1718, "--archive-url", "http://127.0.0.1:9/a"],
        1,
        "cannot be reached",
    ),
    "format of the file": (["currents", "s.zarr", "--out", "c.xlsx"], 1, "expected NAME.csv"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_one_readable_line(tmp_path, case):
    args, code, message = BAD_CALLS[case]
    result = run(*args, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
    if code == 1:
        (line,) = [
            line for line in result.stderr.splitlines() if line.startswith("microns-xr: error:")
        ]
        assert message in line


def test_errors_name_options(demo_folder, tmp_path):
    store = demo_folder / "demo_v1718.zarr"
    (tmp_path / "s.csv").write_text("pre_pt_root_id,post_pt_root_id,size\n1,2,70\n")
    (tmp_path / "bad.csv").write_text("id,pre_pt_root_id,post_pt_root_id,size\n1,2,x,70\n")
    one = ["--out", tmp_path / "one.zarr", "--units", store]
    version = ["--out", tmp_path / "one.zarr", "--version"]
    png = ["--out", tmp_path / "a.png"]
    for words, expected in (
        (["ingest", tmp_path / "s.csv", *one, "--positions"], "leave out --positions, and --keep"),
        (["ingest", tmp_path / "bad.csv", *one], "pass --count-bad-lines to leave such lines out"),
        (["ingest", tmp_path / "bad.csv", *one, "--count-bad-lines"], "leave out --count-bad-"),
        (["ingest", tmp_path / "s.csv", *one, "--memory", "much"], "--memory is 'much'"),
        (["build", tmp_path, *version, 9], "ReleaseSpec, with the tables of the release (in Py"),
        (["build", tmp_path, *version, 1300, "--datastack", "v1dd_public"], "pass --datastack m"),
        (["plot", store, "cells_in_space", *png, "--axes", "xx"], "--axes is ('x', 'x')"),
        (["currents", store, "--out", tmp_path / "c.csv", "--weight", "n"], "no weight 'n', exp"),
    ):
        result = run(*words)
        assert result.returncode == 1, result.stderr
        assert expected in result.stderr.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv", "s.csv"]


def test_currents_by_any_number_of_a_connection(tmp_path):
    pairs = pd.DataFrame({"pre": [1, 2], "post": [2, 1], "strength": [0.5, 2.0]})
    ids = {"nucleus_id": [1, 2]}
    rates = xr.DataArray(
        [[3.0], [4.0]], {**ids, "orientation": [0.0]}, ["nucleus_id", "orientation"]
    )
    mx.write_store(
        tmp_path / "own.zarr",
        units=rates.to_dataset(name="rate_ori"),
        connectivity=mx.as_connectivity(pairs, weight="strength", pre_ids=[1, 2], post_ids=[1, 2]),
    )
    for weight in ([], ["--weight", "strength"]):
        result = run("currents", tmp_path / "own.zarr", "--out", tmp_path / "c.csv", *weight)
        assert result.returncode == 0, result.stderr
        assert pd.read_csv(tmp_path / "c.csv").current_orientation_0.tolist() == [8.0, 1.5]


def test_debug_shows_the_trace(tmp_path):
    with pytest.raises(mx.errors.StoreFormatError):
        run("--debug", "info", tmp_path / "nothing.zarr")


def test_version_and_completion(tmp_path):
    assert run("--version").stdout == f"microns-xr {mx.__version__}\n"
    shown = run("--show-completion", cwd=tmp_path)
    assert shown.returncode == 0 or "not supported" in shown.stderr + shown.stdout
    assert "--install-completion" in run("--help").stdout


def test_help_teaches():
    assert "microns-xr demo" in run("--help").stdout
    for command in ("demo", "build", "info", "currents"):
        text = run(command, "--help")
        assert text.returncode == 0
        assert command in text.stdout
    assert "rated_fraction" in run("currents", "--help").stdout


def test_currents_never_replace_what_is_no_currents(demo_folder, tmp_path):
    store = tmp_path / "s.zarr"
    shutil.copytree(demo_folder / "demo_v1718.zarr", store)
    other = tmp_path / "folder.zarr"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for out, message in (
        (store, "is the store to read"),
        (other, "expected a store of currents"),
        (tmp_path / "no" / "c.csv", "create the folder"),
    ):
        result = run("currents", store, "--out", out)
        assert result.returncode == 1
        assert message in result.stderr
    assert mx.open_store(store)["units"].sizes["nucleus_id"] > 0
    assert (other / "notes.txt").read_text() == "mine"
    for _ in range(2):  # currents may be replaced by currents
        assert run("currents", store, "--out", tmp_path / "c.zarr").returncode == 0


def opened(path):
    return xr.open_zarr(path, consolidated=False).load()


def test_currents_survive_a_kill_at_any_step(demo_store, tmp_path, monkeypatch):
    out = tmp_path / "live" / "currents.zarr"
    out.parent.mkdir()
    assert run("currents", demo_store, "--out", out).returncode == 0
    old = opened(out)

    def after_a_copy(call):
        def step(*arguments, **options):
            # What a process that is killed before this step leaves on the disk.
            shutil.copytree(out.parent, tmp_path / f"killed{len(list(tmp_path.iterdir())):03}")
            return call(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr("microns_xr.store.write.finish_store", after_a_copy(finish_store))
        for name in ("rename", "unlink"):
            patch.setattr(os, name, after_a_copy(getattr(os, name)))
        assert run("currents", demo_store, "--rates", "rate_dir", "--out", out).returncode == 0
    new = opened(out)
    assert old.sizes != new.sizes
    killed = sorted(tmp_path.glob("killed*"))
    assert len(killed) >= 4
    states = []
    for folder in killed[:5] + killed[-2:]:
        found = folder / "currents.zarr"
        recover(str(found))  # as opening and writing do
        states.append(opened(found).sizes)
        assert opened(found).equals(old if states[-1] == old.sizes else new), folder
        assert run("currents", demo_store, "--out", found).returncode == 0
        assert opened(found).equals(old)
        assert os.listdir(folder) == ["currents.zarr"]
    assert (states[0], states[-1]) == (old.sizes, new.sizes)


def test_two_commands_do_not_write_one_store(demo_store, tmp_path, monkeypatch):
    out = tmp_path / "currents.zarr"
    answers = []

    def meanwhile(*arguments, **options):
        monkeypatch.setattr("microns_xr.store.write.finish_store", finish_store)
        answers.append(run("currents", demo_store, "--out", out))
        finish_store(*arguments, **options)

    monkeypatch.setattr("microns_xr.store.write.finish_store", meanwhile)
    assert run("currents", demo_store, "--out", out).returncode == 0
    assert answers[0].returncode == 1
    assert "is being written by another process" in answers[0].stderr
    assert opened(out).input_current.notnull().any()
    assert os.listdir(tmp_path) == ["currents.zarr"]
