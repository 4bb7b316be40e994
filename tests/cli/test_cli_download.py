"""``microns-xr download`` from the loopback service."""

from __future__ import annotations

import pytest
from cave_server import CaveServer
from command import run

import microns_xr as mx


@pytest.fixture(scope="module")
def tables():
    source = mx.sources.DemoSource(1718, n_nuclei=600, seed=2)
    names = [n for n in source.available_tables() if n != "tuning_curves_fitted_v1"]
    return {name: source.read(name) for name in names}


@pytest.fixture
def cave(tables):
    with CaveServer(
        tables, version=1718, row_limit=3000, token="secret0token", float_type="Float64"
    ) as server:
        yield server


def test_download_then_build(cave, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret0token\n")

    download = ["download", "--version", 1718, "--server", cave.url, "--token-file", token]
    first = run(*download, "--post", "layer=L4", "--pre", "all", "--positions", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "nucleus_detection_v0: 600 rows" in first.stdout
    assert "in request" in first.stdout
    asked = len(cave.requests)
    second = run(*download, "--post", "layer=L4", "--pre", "all", "--positions", cwd=tmp_path)
    assert second.stdout == first.stdout
    assert len(cave.requests) == asked
    folder = tmp_path / "data" / "minnie65_public" / "v1718"
    built = run("build", folder, "--version", 1718, "--out", "s.zarr", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    tree = mx.open_store(tmp_path / "s.zarr")
    assert tree["connectivity"].to_dataset().scope.item() == "requested"
    assert "secret0token" not in first.stdout + first.stderr + built.stdout
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert b"secret0token" not in path.read_bytes()
    bad = run(*download, "--post", "layers=L4", cwd=tmp_path)
    assert bad.returncode == 1
    assert "'layers' is not one of" in bad.stderr


def test_contradictory_options_are_refused_before_anything_is_fetched(cave, tmp_path):
    for options, message in (
        (["--server", cave.url, "--source", "archive"], "give those of one source"),
        (["--server", cave.url, "--post", "typo.txt"], "expected a file of ids"),
        (["--token-file", "nowhere"], "there is no file nowhere"),
        (["--source", "elsewhere"], "expected auto, cave or archive"),
    ):
        result = run("download", "--version", 1718, *options, cwd=tmp_path)
        assert result.returncode == 1
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert not cave.requests
