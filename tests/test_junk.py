"""What is no data at all, where data enter: an error of the package, or one that names the argument."""

from __future__ import annotations

import inspect
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx

JUNK = [
    None, 5, 1.5, 2**63, "text", b"text", Path("nope"), [1.0], ["a", 1], {}, {"a": 1}, object(), np.zeros((2, 2)),
    pd.DataFrame({"a": [1]}), xr.Dataset(), xr.DataArray(1.0), xr.DataTree(), [None],
    [], "", np.zeros(0), float("nan"), True, (1, 2, 3), np.array(["a"]), pd.DataFrame(), range(3), {"nucleus_id": None},
    xr.Dataset(coords={"nucleus_id": np.zeros(0, dtype=int)}),
]  # fmt: skip

# Public functions, with arguments that are right, by the arguments that take junk.
DOORS = {
    "annotate": "data units variables",
    "build_connectivity": "synapses units scope rows",
    "build_synapses": "synapses connectivity",
    "build_units": "tables functional multisoma untyped",
    "as_units": "table id position version datastack",
    "as_connectivity": "edges weight count pre_ids post_ids version datastack scope rows",
    "contract": "connectivity values over missing weight",
    "degrees": "connectivity",
    "group_connectivity": "connectivity by",
    "input_currents": "connectivity rates",
    "ingest_synapses": "units out",
    "inputs_to": "connectivity nucleus_id",
    "merge_table": "dataset table",
    "open_store": "path",
    "segment_layers": "units layer_types",
    "select_connections": "connectivity",
    "select_units": "units",
    "to_scipy": "connectivity variable",
    "to_networkx": "connectivity max_connections",
    "write_store": "units connectivity layers synapses",
    "Release": "version source tables datadir datastack",
    "analysis.compare_releases": "a b",
    "analysis.connection_probability": "connectivity units presynaptic",
    "analysis.Bootstrap": "confidence",
    "analysis.align_to_preferred": "currents units angle method",
    "analysis.like_to_like": "connectivity units angle weight",
    "analysis.null_models.permute_angles": "units angle",
    "analysis.null_models.rewire": "connectivity swaps",
    "analysis.tuned_connections": "connectivity units",
    "angles.convert": "obj convention units",
    "angles.difference": "a b period",
    "plot.cells_in_space": "units colour axes",
    "plot.depth_profile": "by bin_um",
    "recordings.to_zarr": "recordings path",
    "recordings.select": "recordings",
    "releases.stamp_release": "obj datastack version",
    "tuning.fit": "rates",
    "tuning.selectivity": "rates",
    "sources.DirectorySource": "path version",
    "sources.DemoSource": "like_to_like",
    "sources.CaveSource": "version auth_token",
    "releases.release_spec": "version tables datastack",
}


@pytest.fixture(scope="module")
def right(demo_fresh, demo_release):
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    synapses = demo_release.table("synapses_pni_2")
    return {
        "units": units,
        "connectivity": connectivity,
        "synapses": synapses,
        "tables": {"nucleus": demo_release.table("nucleus")},
        "table": pd.DataFrame({"nucleus_id": units.nucleus_id.values[:3], "x": [1.0, 2.0, 3.0]}),
        "edges": pd.DataFrame({"pre": [1], "post": [2]}),
        "values": units.rate_ori,
        "rates": units.rate_ori,
        "over": "pre_nucleus_id",
        "variables": "cell_type",
        "version": 1718,
        "source": "demo",
        "dim": "orientation",
        "currents": mx.input_currents(connectivity, units.rate_ori),
        "obj": units,
        "data": connectivity,
        "dataset": units,
        "datastack": "minnie65_public",
    }


@pytest.mark.parametrize("name", DOORS)
def test_junk_is_an_error_that_says_so(right, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = mx
    for part in name.split("."):
        function = getattr(function, part)
    own = {
        "as_connectivity": {"pre": "pre", "post": "post"},
        "group_connectivity": {"by": "cell_type"},
        "ingest_synapses": {"files": "none.csv", "out": "out.zarr"},
        "inputs_to": {"nucleus_id": 1},
        "analysis.compare_releases": dict.fromkeys("ab", right["units"]),
        "analysis.align_to_preferred": {"angle": "pref_ori", "interval": None},
        "angles.convert": {"convention": None, "units": None},
        "angles.difference": {"a": 1.0, "b": 2.0, "period": 180.0},
        "write_store": {"path": "out.zarr", "overwrite": True},
        "recordings.to_zarr": {"recordings": xr.DataTree(), "path": "out.zarr"},
        "sources.DirectorySource": {"path": "."},
    }
    rng = random.Random(name)
    for argument in DOORS[name].split():
        for junk in rng.sample(JUNK, 9):
            names = inspect.signature(function).parameters
            assert argument in names
            options = {key: right[key] for key in names if key in right} | own.get(name, {})
            try:
                function(**options | {argument: junk})
            except (mx.errors.MicronsXrError, mx.errors.DroppedRowsWarning):
                pass
            except (TypeError, ValueError, FileNotFoundError) as error:
                assert re.search(rf"\\b{argument}\\b", str(error)), (argument, junk)  # noqa: PT017
    assert not list(tmp_path.rglob("*.tmp"))


def nothing(right):
    """Units, and connectivity, of no neuron at all."""
    neither = {"pre_nucleus_id": slice(0), "post_nucleus_id": slice(0)}
    return right["units"].isel(nucleus_id=slice(0)), right["connectivity"].isel(neither)


# What no neuron at all gives: the sizes of a result.
EMPTY = {
    "select_units": (lambda u, _: mx.select_units(u, layer="L4"), {"nucleus_id": 0}),
    "annotate": (lambda u, c: mx.annotate(c, u, "layer"), {"pre_nucleus_id": 0}),
    "degrees": (lambda _, c: mx.degrees(c), {"pre_nucleus_id": 0, "post_nucleus_id": 0}),
    "group": (lambda u, c: mx.group_connectivity(c, "layer", units=u), {"pre_layer": 0}),
    "currents": (lambda u, c: mx.input_currents(c, u.rate_ori), {"post_nucleus_id": 0}),
    "selectivity": (
        lambda u, _: mx.tuning.selectivity(u.rate_ori, dim="orientation"), {"nucleus_id": 0},
    ),
    "select": (lambda u, c: mx.select_connections(c, pre=u, post=u), {"pre_nucleus_id": 0}),
    "rewire": (lambda _, c: mx.analysis.null_models.rewire(c, n=2)[1], {"pre_nucleus_id": 0}),
}  # fmt: skip
# What cannot be said of no neuron.
SENSELESS = {
    "probability": lambda u, c: mx.analysis.connection_probability(c, u, "layer"),
    "like_to_like": lambda u, c: mx.analysis.like_to_like(c, u, angle="pref_ori"),
    "layers": lambda u, _: mx.segment_layers(u),
    "cells": lambda u, _: mx.plot.cells_in_space(u),
    "depths": lambda u, _: mx.plot.depth_profile(u),
    "link": lambda u, _: mx.neuroglancer_link(u, allow_demo=True),
    "degrees": lambda _, c: mx.plot.degree_distribution(mx.degrees(c)),
    "matrix": lambda u, c: mx.plot.connectivity_matrix(mx.group_connectivity(c, "layer", units=u)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_neuron_gives_an_empty_result(right, name):
    call, sizes = EMPTY[name]
    found = call(*nothing(right)).sizes
    assert {dim: found[dim] for dim in sizes} == sizes


@pytest.mark.parametrize("name", SENSELESS)
def test_what_no_neuron_cannot_give_is_an_error(right, name):
    with pytest.raises(mx.errors.MicronsXrError, match=r"no |none|nothing"):
        SENSELESS[name](*nothing(right))


@pytest.mark.parametrize("shards", [False, True])
def test_a_store_of_no_neuron(right, tmp_path, shards):
    units, connectivity = nothing(right)
    store = tmp_path / "a.zarr"
    mx.write_store(store, units=units, connectivity=connectivity, shards=shards)
    for lazy in (False, True):
        tree = mx.open_store(store, lazy=lazy, compressed="pre")
        xr.testing.assert_equal(tree["units"].to_dataset().load(), units)
        assert mx.n_connections(tree["connectivity"].to_dataset().compute()) == 0
    assert mx.input_currents(store, units.rate_ori).sizes["post_nucleus_id"] == 0
