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
    "merge_table": "dataset table on how",
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
    "analysis.like_to_like": "connectivity units angle weight bins",
    "analysis.null_models.permute_angles": "units angle n",
    "analysis.null_models.rewire": "connectivity swaps n",
    "analysis.tuned_connections": "connectivity units",
    "angles.convert": "obj convention units",
    "angles.difference": "a b period",
    "plot.cells_in_space": "units colour axes size",
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


# Where units are expected, and where connectivity is.
OF_UNITS = {
    "select_units": lambda u, r: mx.select_units(u, layer="L4"),
    "annotate": lambda u, r: mx.annotate(r["connectivity"], u, "layer"),
    "select_connections": lambda u, r: mx.select_connections(r["connectivity"], u, pre={}),
    "pre": lambda u, r: mx.select_connections(r["connectivity"], pre=u),
    "group": lambda u, r: mx.group_connectivity(r["connectivity"], "layer", units=u),
    "layers": lambda u, r: mx.segment_layers(u),
    "merge": lambda u, r: mx.merge_table(u, r["table"]),
    "table": lambda u, r: mx.to_table(u),
    "as_units": lambda u, r: mx.as_units(u),
    "anndata": lambda u, r: mx.to_anndata(u),
    "networkx": lambda u, r: mx.to_networkx(r["connectivity"], u),
    "link": lambda u, r: mx.neuroglancer_link(u, allow_demo=True),
    "write": lambda u, r: mx.write_store("a.zarr", units=u),
    "rates": lambda u, r: mx.input_currents(r["connectivity"], u),
    "probability": lambda u, r: mx.analysis.connection_probability(r["connectivity"], u),
    "like to like": lambda u, r: mx.analysis.like_to_like(r["connectivity"], u),
    "tuned": lambda u, r: mx.analysis.tuned_connections(r["connectivity"], u),
    "aligned": lambda u, r: mx.analysis.align_to_preferred(r["currents"], u),
    "populations": lambda u, r: mx.analysis.population_labels(u, "layer"),
    "permuted": lambda u, r: mx.analysis.null_models.permute_angles(u, n=2),
    "rewired": lambda u, r: mx.analysis.null_models.rewire_by_distance(r["connectivity"], u, n=2),
    "cells": lambda u, r: mx.plot.cells_in_space(u),
    "depths": lambda u, r: mx.plot.depth_profile(u),
    "matrix": lambda u, r: mx.plot.adjacency_matrix(r["connectivity"], u),
    "partners": lambda u, r: mx.plot.partners_in_space(r["connectivity"], u, 1),
    "angles": lambda u, r: mx.plot.preferred_orientations(u),
    "summary": lambda u, r: mx.plot.release_summary(u),
}  # fmt: skip
OF_CONNECTIVITY = {
    "annotate": lambda c, r: mx.annotate(c, r["units"], "layer"),
    "contract": lambda c, r: mx.contract(c, r["rates"], "pre_nucleus_id", missing="skip"),
    "degrees": lambda c, r: mx.degrees(c),
    "autapses": lambda c, r: mx.drop_autapses(c),
    "number": lambda c, r: mx.n_connections(c),
    "group": lambda c, r: mx.group_connectivity(c, "layer", units=r["units"]),
    "select": lambda c, r: mx.select_connections(c, pre=r["units"]),
    "networkx": lambda c, r: mx.to_networkx(c).number_of_edges(),
    "scipy": lambda c, r: mx.to_scipy(c, "synapse_size").sum(),
    "anndata": lambda c, r: mx.to_anndata(r["units"], c).n_obs,
    "probability": lambda c, r: mx.analysis.connection_probability(
        c, r["units"], presynaptic="all"
    ),
    "rewired": lambda c, r: mx.n_connections(mx.analysis.null_models.rewire(c, n=2)[1]),
    "weights": lambda c, r: mx.plot.weight_distribution(c).get_xlabel(),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_UNITS)
def test_where_units_are_expected_the_message_names_those_of_a_tree(name, right, demo_release):
    tree = xr.DataTree.from_dict({n: right[n] for n in ("units", "connectivity")})
    for given, call in (
        (tree, r"tree\['units'\].to_dataset\(\)"),
        (tree["units"], r"pass its .to_dataset\(\)"),
        (demo_release, r"pass release.units\(\)|wrap it"),
    ):
        with pytest.raises(mx.errors.SchemaError, match=call):
            OF_UNITS[name](given, right)


@pytest.mark.parametrize("name", OF_CONNECTIVITY)
def test_where_connectivity_is_expected_a_tree_is_taken(name, right, demo_release):
    tree = xr.DataTree.from_dict({n: right[n] for n in ("units", "connectivity")})
    expected = OF_CONNECTIVITY[name](right["connectivity"], right)
    for given in (tree, tree["connectivity"]):
        found = OF_CONNECTIVITY[name](given, right)
        if isinstance(expected, xr.Dataset | xr.DataArray):
            xr.testing.assert_identical(found, expected)
        else:
            assert found == expected
    with pytest.raises(mx.errors.SchemaError, match=r"pass release.connectivity\(\)"):
        OF_CONNECTIVITY[name](demo_release, right)
