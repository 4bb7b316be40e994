"""Exports to scipy, networkx and anndata, each read back by the real library."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import store_examples as ex
import xarray as xr

import microns_xr as mx

PRE, POST = ex.PRE.tolist(), ex.POST.tolist()


def big(connectivity: xr.Dataset) -> xr.Dataset:
    """The same with ids that a float64 cannot tell apart."""
    return connectivity.assign_coords(
        {dim: connectivity[dim].values + 2**62 for dim in ("pre_nucleus_id", "post_nucleus_id")}
    )


def three_units() -> xr.Dataset:
    """Units of the neurons 11, 12 and 13, and of 15, which is in post only, and 19, in neither."""
    units = ex.units()
    rows = units.isel(nucleus_id=[0, 1, 2, 0, 1])
    return rows.assign_coords(nucleus_id=[11, 12, 13, 15, 19])


# --- scipy


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("variable", ["synapse_size", "synapse_count"])
def test_scipy_by_hand(compressed, variable) -> None:
    connectivity = ex.connectivity(compressed)
    found = mx.to_scipy(connectivity, variable)
    expected = ex.SIZE if variable == "synapse_size" else ex.COUNT
    np.testing.assert_array_equal(found.toarray(), expected)
    assert isinstance(
        found, scipy.sparse.csc_array if compressed == "post" else scipy.sparse.csr_array
    )
    assert found.dtype == np.int64
    assert found.nnz == 4  # also the pair of size 0
    assert found.has_canonical_format
    buffers = connectivity[variable].data
    assert np.shares_memory(found.data, buffers.data)
    assert np.shares_memory(found.indices, buffers.indices)
    assert np.shares_memory(found.indptr, buffers.indptr)
    same = mx.to_scipy(connectivity[variable], variable)
    assert np.shares_memory(same.data, buffers.data)
    rates = np.array([1.0, 10.0, 100.0])
    np.testing.assert_array_equal(found.T @ rates, expected.T @ rates)


def test_scipy_refuses(demo_store) -> None:
    with pytest.raises(
        mx.errors.UnknownLabelError, match="no weight 'weight', expected one of synapse_size"
    ):
        mx.to_scipy(ex.connectivity(), "weight")
    lazy = mx.open_store(demo_store, lazy=True)["connectivity"].to_dataset()
    with pytest.raises(mx.errors.SchemaError, match="lazy"):
        mx.to_scipy(lazy)
    with pytest.raises(
        mx.errors.SchemaError, match=r"connectivity is a str, expected a Dataset: for a store"
    ):
        mx.to_scipy("store.zarr")


# --- networkx


def test_networkx_by_hand(tmp_path: Path) -> None:
    import networkx

    graph = mx.to_networkx(big(ex.connectivity()))
    assert isinstance(graph, networkx.DiGraph)
    assert all(type(node) is int for node in graph)
    assert sorted(graph) == [n + 2**62 for n in (11, 12, 13, 15)]
    found = {(a - 2**62, b - 2**62): tuple(d.values()) for a, b, d in graph.edges(data=True)}
    assert found == {(11, 13): (700, 2), (12, 11): (30, 1), (12, 13): (0, 1), (12, 15): (5, 3)}
    assert graph.edges[2**62 + 12, 2**62 + 15] == {"synapse_size": 5, "synapse_count": 3}
    sides = {n - 2**62: (d["in_pre"], d["in_post"]) for n, d in graph.nodes(data=True)}
    assert sides == {11: (True, True), 12: (True, False), 13: (True, True), 15: (False, True)}
    assert graph.graph == {
        "datastack": "minnie65_public",
        "materialization_version": 661,
        "scope": "requested",
    }
    # What reads and writes graphs does not stumble over numpy types.
    networkx.write_graphml(graph, tmp_path / "a.graphml")
    again = networkx.read_graphml(tmp_path / "a.graphml", node_type=int)
    assert again.adj == graph.adj
    assert again.nodes == graph.nodes


def test_networkx_node_attributes() -> None:
    graph = mx.to_networkx(ex.connectivity(), three_units())
    node = graph.nodes[12]
    assert (node["x"], node["y"], node["z"]) == (2.0, 300.0, 0.0)
    assert node["cell_type"] == "5P-ET"
    assert node["pt_root_id"] == 864691135639235594
    assert type(node["pt_root_id"]) is int
    assert node["axon_proofread"] is False
    assert node["n_scans"] == 0
    assert "rate_ori" not in node
    few = mx.to_networkx(ex.connectivity(), three_units(), node_attributes=["layer"])
    assert few.nodes[13] == {"in_pre": True, "in_post": True, "layer": "unknown"}
    with pytest.raises(mx.errors.SchemaError, match="no attribute 'rate_ori', expected one of"):
        mx.to_networkx(ex.connectivity(), three_units(), node_attributes=["rate_ori"])
    with pytest.raises(mx.errors.UnknownLabelError, match=r"1 of 4 .* such as 15"):
        mx.to_networkx(ex.connectivity(), ex.units())


def test_networkx_and_back(demo_fresh) -> None:
    import networkx

    connectivity, units = demo_fresh["connectivity"], demo_fresh["units"]
    graph = mx.to_networkx(connectivity, units)
    assert graph.number_of_edges() == mx.n_connections(connectivity)
    ids = connectivity.pre_nucleus_id.values.tolist()
    for name in ("synapse_size", "synapse_count"):
        back = networkx.to_scipy_sparse_array(graph, ids, weight=name, dtype=np.int64)
        np.testing.assert_array_equal(back.toarray(), connectivity[name].data.todense())
    degrees = mx.degrees(connectivity)
    into = dict(graph.in_degree())
    name = next(n for n in degrees.data_vars if "in" in n and degrees[n].dtype.kind == "i")
    assert [into[i] for i in degrees[degrees[name].dims[0]].values.tolist()] == degrees[
        name
    ].values.tolist()
    types = networkx.get_node_attributes(graph, "cell_type")
    assert [types[i] for i in units.nucleus_id.values.tolist()] == units.cell_type.values.tolist()


def test_networkx_refuses_what_would_fill_the_memory() -> None:
    with pytest.raises(
        mx.errors.SchemaError, match=r"4 connections, expected at most 3 .*mx.to_scipy"
    ):
        mx.to_networkx(ex.connectivity(), max_connections=3)
    assert mx.to_networkx(ex.connectivity(), max_connections=None).number_of_edges() == 4
    other = mx.releases.stamp_release(three_units(), "minnie65_public", 1300)
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.to_networkx(ex.connectivity(), other)
    unstated = other.drop_vars(["datastack", "materialization_version"])
    assert len(mx.to_networkx(ex.connectivity(), unstated)) == 4


# --- anndata


def saved(data, path: Path, kind: str):
    """Write with anndata's own writer, and read back."""
    import anndata

    with warnings.catch_warnings():
        # anndata's own: its default format on disk, and an option it asks pandas 3 for
        warnings.filterwarnings("ignore", "Writing zarr v2 data", UserWarning)
        warnings.filterwarnings("ignore", "The 'future.infer_string' option is deprecated")
        (data.write_zarr if kind == "zarr" else data.write_h5ad)(path / f"data.{kind}")
        return (anndata.read_zarr if kind == "zarr" else anndata.read_h5ad)(path / f"data.{kind}")


@pytest.mark.parametrize("kind", [None, "zarr", "h5ad"])
def test_anndata_by_hand(tmp_path: Path, kind) -> None:
    units = three_units().assign_coords(nucleus_id=np.array([11, 12, 13, 15, 19]) + 2**62)
    data = mx.to_anndata(units, big(ex.connectivity()))
    if kind:
        data = saved(data, tmp_path, kind)
    ids = [n + 2**62 for n in (11, 12, 13, 15, 19)]
    assert data.obs_names.tolist() == [str(i) for i in ids]
    assert data.obs["nucleus_id"].dtype == data.obs["pt_root_id"].dtype == np.int64
    assert data.obs["nucleus_id"].tolist() == ids
    assert data.obs["pt_root_id"].tolist()[:3] == [864691135639235593, 864691135639235594, 5]
    assert data.obs["cell_type"].tolist()[:3] == ["23P", "5P-ET", "Übergang-µ"]
    assert data.obs["in_pre"].tolist() == [True, True, True, False, False]
    assert data.obs["in_post"].tolist() == [True, False, True, True, False]
    size = np.zeros((5, 5), dtype=np.int64)
    size[0, 2], size[1, 0], size[1, 3] = 700, 30, 5
    count = np.zeros((5, 5), dtype=np.int64)
    count[0, 2], count[1, 0], count[1, 2], count[1, 3] = 2, 1, 1, 3
    for name, expected in (("synapse_size", size), ("synapse_count", count)):
        found = data.obsp[name]
        assert found.dtype == np.int64
        assert found.format == "csr"
        assert found.nnz == 4
        np.testing.assert_array_equal(found.toarray(), expected)
    np.testing.assert_array_equal(data.obsm["position"], units.position.values)
    rates = data.obsm["rate_ori"]
    assert list(rates.columns) == ["0.0", "90.0"]
    assert rates.index.tolist() == data.obs_names.tolist()
    np.testing.assert_array_equal(rates.to_numpy(), units.rate_ori.values)
    about = data.uns["microns_xr"]
    assert about["datastack"] == "minnie65_public"
    assert about["materialization_version"] == 661
    assert about["scope"] == "requested"
    assert about["obsp"].startswith("rows are presynaptic")
    assert about["dropped_connections"] == 0
    assert about["angles"]["pref_ori"] == {
        "units": "degree", "angle_convention": "motion", "period": 180,
    }  # fmt: skip
    assert list(about["columns"]["position"]) == ["x", "y", "z"]
    attrs = json.loads(about["attrs"])
    assert attrs["units"]["steps"] == {"rows": [6, 3], "why": None}
    assert attrs["position"]["note"] == "y is depth"
    assert attrs["synapse_size"]["note"] == "größe"


@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_anndata_of_the_synthetic_release(demo_fresh, tmp_path: Path, kind) -> None:
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    data = saved(mx.to_anndata(units, connectivity), tmp_path, kind)
    assert data.obs["nucleus_id"].to_numpy().tolist() == units.nucleus_id.values.tolist()
    for name, variable in units.variables.items():
        if variable.dims == ("nucleus_id",) and name != "nucleus_id":
            found = data.obs[name]
            if variable.dtype.kind in "if":
                assert found.dtype == variable.dtype
            np.testing.assert_array_equal(
                found.astype(object) if variable.dtype == object else found, variable.values
            )
        elif variable.ndim == 2 and variable.dims[0] == "nucleus_id":
            np.testing.assert_array_equal(np.asarray(data.obsm[name]), variable.values)
    at = units.indexes["nucleus_id"].get_indexer(connectivity.pre_nucleus_id.values)
    for name in ("synapse_size", "synapse_count"):
        square = data.obsp[name][at][:, at].toarray()
        np.testing.assert_array_equal(square, connectivity[name].data.todense())
        assert data.obsp[name].sum() == connectivity[name].data.data.sum()
    for name, about in data.uns["microns_xr"]["angles"].items():
        assert about["angle_convention"] == units[name].attrs["angle_convention"]
    assert set(data.uns["microns_xr"]["angles"]) >= {"direction", "orientation"}


def test_anndata_without_connectivity() -> None:
    data = mx.to_anndata(three_units())
    assert data.shape == (5, 0)
    assert not data.obsp
    assert "in_pre" not in data.obs
    assert "scope" not in data.uns["microns_xr"]


def test_anndata_of_neurons_that_are_not_units() -> None:
    units, connectivity = ex.units(), ex.connectivity()  # 15 is in post, and no unit
    with pytest.raises(mx.errors.UnknownLabelError, match=r"1 of 3 .* postsynaptic .* such as 15"):
        mx.to_anndata(units, connectivity)
    data = mx.to_anndata(units, connectivity, outside="drop")
    assert data.uns["microns_xr"]["dropped_connections"] == 1
    np.testing.assert_array_equal(
        data.obsp["synapse_count"].toarray(), [[0, 0, 2], [1, 0, 1], [0, 0, 0]]
    )
    # A neuron that was asked for, and has no connection, is not missed.
    alone = ex.sparse_dataset(ex.SIZE * [[1, 1, 0]], ex.COUNT * [[1, 1, 0]])
    assert mx.to_anndata(units, alone).obsp["synapse_count"].nnz == 3


def test_of_an_unknown_scope_only_neurons_with_a_connection_are_marked() -> None:
    unknown = np.array("unknown", dtype=object)
    connectivity = ex.connectivity().assign_coords(scope=((), unknown))  # 13 has no output
    data = mx.to_anndata(three_units(), connectivity)
    assert data.obs["in_pre"].tolist() == [True, True, False, False, False]
    assert data.obs["in_post"].tolist() == [True, False, True, True, False]
    nodes = mx.to_networkx(connectivity).nodes
    assert nodes[13] == {"in_pre": False, "in_post": True}


def test_anndata_refuses() -> None:
    units, connectivity = three_units(), ex.connectivity()
    with pytest.raises(mx.errors.SchemaError, match="outside is 'keep'"):
        mx.to_anndata(units, connectivity, outside="keep")
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.to_anndata(units, mx.releases.stamp_release(connectivity, "minnie65_public", 1300))
    with pytest.raises(mx.errors.SchemaError, match="in_pre"):
        mx.to_anndata(units.assign(in_pre=("nucleus_id", [1] * 5)), connectivity)
    with pytest.raises(mx.errors.SchemaError, match="spikes has dims"):
        mx.to_anndata(units.assign(spikes=(("nucleus_id", "a", "b"), np.zeros((5, 2, 2)))))
    with pytest.raises(mx.errors.SchemaError, match="this is not a units Dataset"):
        mx.to_anndata(connectivity, units)


def test_nothing_is_modified() -> None:
    units, connectivity = three_units(), ex.connectivity()
    before = units.copy(deep=True)
    data = mx.to_anndata(units, connectivity)
    data.obsm["position"][:] = 0
    data.obs["pt_root_id"] = 0
    data.obs.loc[:, "pref_ori"] = 1.0
    data.obsm["rate_ori"].iloc[:] = 0
    data.obsp["synapse_size"].data[:] = 0
    data.obsp["synapse_size"].eliminate_zeros()
    assert data.obsp["synapse_count"].toarray()[:3, :3].tolist() == [[0, 0, 2], [1, 0, 1], [0] * 3]
    mx.to_networkx(connectivity, units).clear()
    xr.testing.assert_identical(units, before)
    ex.assert_same_connectivity(connectivity, ex.connectivity())


@pytest.mark.parametrize(
    ("function", "package"), [(mx.to_networkx, "networkx"), (mx.to_anndata, "anndata")]
)
def test_a_package_that_is_not_installed(function, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        mx.errors.MicronsXrError, match=rf"{package} is not installed.*microns-xr\[export\]"
    ):
        function(ex.connectivity() if package == "networkx" else three_units())


def test_tables_agree(demo_fresh) -> None:
    """The graph and the table of pairs say the same."""
    import networkx

    table = mx.to_table(demo_fresh["connectivity"])
    edges = networkx.to_pandas_edgelist(mx.to_networkx(demo_fresh["connectivity"]))
    both = edges.merge(
        table, left_on=["source", "target"], right_on=["pre_nucleus_id", "post_nucleus_id"]
    )
    assert len(both) == len(table) == len(edges)
    pd.testing.assert_series_equal(both["synapse_size"], both["size"], check_names=False)
    pd.testing.assert_series_equal(both["synapse_count"], both["n_syn"], check_names=False)
