"""``microns-xr plot``: every picture of a store, as a whole file or none."""

from __future__ import annotations

import command
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import microns_xr as mx
from microns_xr.cli import app
from microns_xr.cli.plot import PICTURES


def run(*words):
    return CliRunner().invoke(app, ["plot", *map(str, words)], catch_exceptions=False)


def test_every_picture_of_a_store(demo_store, tmp_path):
    units = mx.open_store(demo_store)["units"].to_dataset()
    rated = units.nucleus_id.values[np.isfinite(units.rate_dir).all("direction").values]
    options = {
        "tuning_curve": ["--nucleus-id", rated[0]],
        "partners_in_space": ["--nucleus-id", rated[0], "--axes", "zy"],
        "adjacency_matrix": ["--by", "depth"],
        "like_to_like": ["--presynaptic", "all", "--null", 5],
        "cells_in_space": ["--by", "pref_dir", "--axes", "zy"],
        "connectivity_matrix": [
            "--variable", "probability", "--by", "layer", "--presynaptic", "all",
        ],
    }  # fmt: skip
    for what in mx.plot.__all__:
        out = tmp_path / f"{what}.png"
        result = run(demo_store, what, "--out", out, *options.get(what, []))
        assert f"written       {out}" in result.output
        assert out.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []  # none is kept


def test_pictures_have_the_names_of_the_package():
    assert set(PICTURES) == set(mx.plot.__all__)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["tuning_curve"], "such as \\["),
        (["partners_in_space"], "--nucleus-id is missing, expected a neuron, such as \\["),
        (["weight_distribution", "--by", "layer"], "--by has no effect on weight_distribution"),
        (["tuning_curve", "--variable", "gOSI"], "no rates 'gOSI'"),
        (["connection_probability", "--distance", "0:100"], "START:STOP:STEP"),
        (["currents_by_angle", "--variable", "rate_x"], "no rates 'rate_x'"),
        (["currents_by_angle", "--by", "pref_ori"], "bin numbers first"),
        (["depth_profile", "--by", "colour"], "--by is 'colour', expected one of"),
        (
            ["depth_profile", "--null", "5"],
            "--null has no effect on depth_profile: it applies to like_to_like",
        ),
        (["cells_in_space", "--by", "layer", "--variable", "cell_type"], "give one of them"),
        (["connectivity_matrix", "--presynaptic", "all"], "without --variable probability"),
        (["connection_probability", "--distance", "9:5:1"], "START:STOP:STEP"),
        (["depth_profile", "--out", "{folder}/a.txt"], "expected NAME.png"),
        (["depth"], "the picture is 'depth', .* nearest: depth_profile"),
        (["depth_profile", "--out", "{folder}/none/a.png"], "create the folder"),
    ],
)
def test_what_cannot_be_drawn_leaves_no_file(demo_store, tmp_path, words, match):
    out = [] if "--out" in words else ["--out", tmp_path / "a.png"]
    with pytest.raises(mx.errors.SchemaError, match=match):
        run(demo_store, *(word.format(folder=tmp_path) for word in words), *out)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_units_has_no_degrees(demo_store, tmp_path):
    units = mx.open_store(demo_store)["units"].to_dataset()
    mx.write_store(tmp_path / "units.zarr", units=units)
    with pytest.raises(mx.errors.SchemaError, match="has no connectivity"):
        run(tmp_path / "units.zarr", "degree_distribution", "--out", tmp_path / "a.svg")


def test_a_probability_of_what_was_asked_for(demo_store, tmp_path):
    tree = mx.open_store(demo_store)
    units, pairs = tree["units"].to_dataset(), tree["connectivity"].to_dataset()
    pairs["scope"] = "unknown"
    mx.write_store(tmp_path / "s.zarr", units=units, connectivity=pairs)
    words = [
        tmp_path / "s.zarr",
        "connection_probability",
        "--presynaptic",
        "all",
        "--out",
        tmp_path / "a.png",
    ]
    refused = command.run("plot", *words)
    assert "pass --pre and --post, neurons" in refused.stderr
    assert "state --scope of microns-xr build" in refused.stderr
    assert "written" in run(*words, "--pre", "layer=L4", "--post", "all").output


def test_degrees_are_those_of_neurons(demo_store, tmp_path, monkeypatch):
    drawn = []
    draw = mx.plot.degree_distribution
    monkeypatch.setattr(
        mx.plot, "degree_distribution", lambda d, *a, **k: drawn.append(d) or draw(d, *a, **k)
    )
    run(demo_store, "degree_distribution", "--out", tmp_path / "a.png")
    units = mx.open_store(demo_store)["units"].to_dataset()
    glia = units.nucleus_id[units.classification_system == "nonneuron"]
    assert glia.size
    (degrees,) = drawn
    assert not np.isin(degrees.post_nucleus_id, glia).any()
    # What they have in all, also from glia.
    expected = mx.degrees(demo_store).sel(post_nucleus_id=degrees.post_nucleus_id).in_degree
    np.testing.assert_array_equal(degrees.in_degree, expected)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_picture_is_the_same_file(demo_store, tmp_path, suffix):
    out = tmp_path / f"a{suffix}"
    run(demo_store, "depth_profile", "--out", out)
    first = out.read_bytes()
    run(demo_store, "depth_profile", "--out", out)
    assert out.read_bytes() == first
    assert xr.open_datatree(demo_store, engine="microns_xr").children  # untouched
