"""The way back to pandas, on fresh and on reopened Datasets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import store_examples as ex
import xarray as xr

import microns_xr as mx


def test_units_have_one_row_per_neuron(demo):
    units = demo["units"]
    table = mx.to_table(units)
    assert len(table) == units.sizes["nucleus_id"]
    assert table.columns[0] == "nucleus_id"
    assert table.nucleus_id.dtype == table.pt_root_id.dtype == np.int64
    np.testing.assert_array_equal(table.pt_position_y, units.position.sel(axis="y"))
    np.testing.assert_array_equal(table["rate_ori_22.5"], units.rate_ori.sel(orientation=22.5))
    assert (table.layer == units.layer.values).all()
    assert "materialization_version" not in table


def test_functional_has_one_row_per_recorded_unit(demo):
    table = mx.to_table(demo["functional"])
    assert len(table) == demo["functional"].sizes["scan_unit"]
    assert {"nucleus_id", "session", "scan_idx", "unit_id"} <= set(table.columns)
    assert (table[["session", "scan_idx", "unit_id"]].dtypes == np.int64).all()


def test_connectivity_has_one_row_per_pair(demo, demo_release):
    connectivity, units = demo["connectivity"], demo["units"]
    table = mx.to_table(connectivity)
    assert table.columns[:6].tolist() == [
        "pre_nucleus_id", "post_nucleus_id", "pre_pt_root_id", "post_pt_root_id", "size", "n_syn",
    ]  # fmt: skip
    # an independent plain join of the synapse table
    synapses = demo_release.table("synapses")
    nucleus_of = dict(
        zip(units.pt_root_id.values.tolist(), units.nucleus_id.values.tolist(), strict=True)
    )
    pre = synapses.pre_pt_root_id.map(nucleus_of)
    post = synapses.post_pt_root_id.map(nucleus_of)
    known = (pre.notna() & post.notna()).to_numpy()
    plain = (
        synapses[known].groupby(["post_pt_root_id", "pre_pt_root_id"])["size"].agg(["sum", "size"])
    )
    mine = table.set_index(["post_pt_root_id", "pre_pt_root_id"])
    assert len(mine) == len(plain)
    assert (mine["size"] == plain["sum"].loc[mine.index]).all()
    assert (mine["n_syn"] == plain["size"].loc[mine.index]).all()
    assert table.post_nucleus_id.is_monotonic_increasing


def test_pairs_are_sorted_by_post_then_pre():
    for compressed in ("post", "pre"):
        table = mx.to_table(ex.connectivity(compressed))
        assert table.post_nucleus_id.tolist() == [11, 13, 13, 15]
        assert table.pre_nucleus_id.tolist() == [12, 11, 12, 12]
        assert table["size"].tolist() == [30, 700, 0, 5]
        assert table.n_syn.tolist() == [1, 2, 1, 3]
        assert table.pre_cell_type.tolist() == ["5P-ET", "23P", "5P-ET", "5P-ET"]


def test_a_table_of_pairs_builds_the_same_connectivity(demo):
    connectivity = demo["connectivity"].drop_vars(["pre_cell_type", "post_cell_type"])
    again = mx.build_connectivity(mx.to_table(connectivity), demo["units"], scope="complete")
    assert mx.to_table(again).equals(mx.to_table(connectivity)[mx.to_table(again).columns])


def test_layers(demo):
    table = mx.to_table(demo["layers"])
    assert table.columns.tolist() == ["layer_name", "region_index", "y_start", "y_end", "height"]


def test_other_datasets_are_refused():
    with pytest.raises(mx.errors.SchemaError, match="neither units"):
        mx.to_table(xr.Dataset({"x": ("time", [1])}))
    with pytest.raises(mx.errors.SchemaError, match="dataset is a DataArray, expected a Dataset"):
        mx.to_table(xr.DataArray([1]))
    with pytest.raises(mx.errors.SchemaError, match="expected at most one beside nucleus_id"):
        mx.to_table(xr.Dataset({"x": (("nucleus_id", "a", "b"), np.zeros((1, 1, 1)))}))


def test_synapses_have_one_row_each(demo_release):
    synapses = demo_release.synapses()
    table = mx.to_table(synapses)
    names = ["synapse_id", "pre_nucleus_id", "post_nucleus_id", "pre_pt_root_id", "post_pt_root_id"]
    assert table.columns.tolist() == [*names, "size", "position_x", "position_y", "position_z"]
    assert all(table[name].dtype == np.int64 for name in [*names, "size"])
    np.testing.assert_array_equal(
        table[["position_x", "position_y", "position_z"]], synapses.position
    )
    raw = demo_release.table("synapses").set_index("id").loc[table["synapse_id"]]
    for name in ("pre_pt_root_id", "post_pt_root_id", "size"):
        np.testing.assert_array_equal(table[name], raw[name])
    root = demo_release.units().pt_root_id
    np.testing.assert_array_equal(
        root.sel(nucleus_id=table["post_nucleus_id"].to_numpy()), table["post_pt_root_id"]
    )
    some = mx.select_synapses(synapses, post=table["post_nucleus_id"][:1].tolist())
    chosen = table[table["post_nucleus_id"] == table["post_nucleus_id"][0]]
    pd.testing.assert_frame_equal(mx.to_table(some), chosen.reset_index(drop=True))
    with pytest.raises(mx.errors.SchemaError, match="synapses has no pre_nucleus_id"):
        mx.to_table(synapses.drop_vars(["pre_nucleus_id", "pre_pt_root_id"]))
