"""Identifiers and labels are coordinates: what a user of xarray types on units and connectivity."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from roots import ROOTS

import microns_xr as mx

LABELS = {"pt_root_id", "cell_type", "layer", "axon_proofread", "session"}
RELEASE = {"datastack": "minnie65_public", "version": 1300}
IDS = [3, 5, 7, 9]
ROOT_IDS = [864691135639235593 + i for i in range(4)]  # which float64 cannot hold


def neurons() -> xr.Dataset:
    """Four neurons; all labels are variables, as in stores of earlier versions."""
    angles = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    dataset = xr.Dataset(
        {
            "pt_root_id": ("nucleus_id", ROOT_IDS),
            "cell_type": ("nucleus_id", np.array(["23P", "4P", "4P", "BC"], dtype=object)),
            "layer": ("nucleus_id", np.array(["L2/3", "L4", "L4", "L4"], dtype=object)),
            "axon_proofread": ("nucleus_id", [True, False, False, True]),
            "session": ("nucleus_id", [4, -1, 5, -1]),
            "n_scans": ("nucleus_id", [1, 0, 3, 0]),
            "depth": ("nucleus_id", [100.0, 300.0, 310.0, 320.0]),
            "rate_ori": (("nucleus_id", "orientation"), [[1.0, 3], [2, 4], [4, 8], [np.nan] * 2]),
        },
        {"nucleus_id": IDS, "orientation": ("orientation", [0.0, 90.0], angles)},
    )
    return mx.releases.stamp_release(dataset, *RELEASE.values())


def connections(units: xr.Dataset) -> xr.Dataset:
    edges = pd.DataFrame({"pre": [3, 5, 7, 3], "post": [5, 7, 9, 9], "synapse_size": [10, 20, 30, 40]})  # fmt: skip
    asked = {"weight": "synapse_size", "pre_ids": units, "post_ids": units}
    connectivity = mx.as_connectivity(edges, **asked, **RELEASE)
    return mx.annotate(connectivity, units, ["cell_type", "layer"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "new.zarr"
    units = mx.as_units(neurons())
    mx.write_store(path, units=units, connectivity=connections(units))
    return path


@pytest.fixture(scope="module")
def early_store(tmp_path_factory):
    """A store that keeps the labels as variables."""
    path = tmp_path_factory.mktemp("labels") / "early.zarr"
    mx.write_store(path, units=neurons(), connectivity=connections(neurons()))
    assert "cell_type" not in zarr.open_group(path)["units"].attrs["coordinates"].split()
    return path


HELD = ["memory", "store", "lazy store", "early store", "lazy early store", "engine", "plain zarr"]


@pytest.fixture(params=HELD)
def units(request, store, early_store):
    if request.param == "memory":
        return mx.as_units(neurons())
    if request.param == "engine":
        return xr.open_dataset(store, engine="microns_xr", group="units", lazy=True)
    if request.param == "plain zarr":
        return xr.open_dataset(store, engine="zarr", group="units", consolidated=False)
    path = early_store if "early" in request.param else store
    return mx.open_store(path, lazy="lazy" in request.param)["units"].to_dataset()


@pytest.fixture(params=["memory", "store", "lazy store"])
def connectivity(request, store):
    if request.param == "memory":
        return connections(neurons())
    return mx.open_store(store, lazy="lazy" in request.param)["connectivity"].to_dataset()


def assert_labelled(units: xr.Dataset | xr.DataArray, rows: list[int]) -> None:
    """The labels are those of the rows, in types that hold them."""
    assert set(units.coords) >= LABELS
    assert units.nucleus_id.values.tolist() == [IDS[i] for i in rows]
    assert units.pt_root_id.dtype == units.session.dtype == np.int64
    assert units.pt_root_id.values.tolist() == [ROOT_IDS[i] for i in rows]
    assert units.session.values.tolist() == [[4, -1, 5, -1][i] for i in rows]
    assert units.axon_proofread.values.tolist() == [[True, False, False, True][i] for i in rows]
    assert units.cell_type.values.tolist() == [["23P", "4P", "4P", "BC"][i] for i in rows]


def test_measurements_alone_are_variables(units):
    assert set(units.data_vars) == {"n_scans", "depth", "rate_ori"}
    assert set(units.coords) == LABELS | {
        "nucleus_id", "orientation", "datastack", "materialization_version",
    }  # fmt: skip
    assert_labelled(units, [0, 1, 2, 3])
    assert_labelled(units.rate_ori, [0, 1, 2, 3])


def test_groups_of_units(units):
    rates = units.rate_ori.groupby("cell_type").mean()
    assert rates.cell_type.values.tolist() == ["23P", "4P", "BC"]
    np.testing.assert_array_equal(rates, [[1, 3], [3, 6], [np.nan, np.nan]])
    means = units.groupby("layer").mean()
    assert set(means.data_vars) == {"n_scans", "depth", "rate_ori"}
    np.testing.assert_allclose(means.n_scans, [1, 1])
    np.testing.assert_allclose(means.depth, [100, 310])
    assert units.n_scans.groupby("axon_proofread").sum().values.tolist() == [3, 1]
    both = units.depth.groupby(["layer", "cell_type"]).mean()
    assert both.sel(layer="L4", cell_type="4P").item() == 305
    assert units.axon_proofread.groupby("layer").mean().round(3).values.tolist() == [1, 0.333]
    deviations = units.depth.groupby("cell_type") - units.depth.groupby("cell_type").mean()
    assert deviations.values.tolist() == [0, -5, 5, 0]


def test_selections_of_units_keep_their_ids(units):
    l4 = units.where(units.layer == "L4", drop=True)
    assert_labelled(l4, [1, 2, 3])
    assert_labelled(units.where(units.depth > 300).dropna("nucleus_id"), [2])
    assert l4.depth.values.tolist() == [300, 310, 320]
    assert_labelled(units.sel(nucleus_id=[7, 3]), [2, 0])
    assert_labelled(units.sel(nucleus_id=units.cell_type == "4P"), [1, 2])
    assert_labelled(units.isel(nucleus_id=[3, 0]), [3, 0])
    assert_labelled(units.rate_ori.isel(nucleus_id=slice(1, 3)), [1, 2])
    assert units.sel(nucleus_id=7).pt_root_id.item() == ROOT_IDS[2]
    by_root = units.swap_dims(nucleus_id="pt_root_id").sel(pt_root_id=ROOT_IDS[1])
    assert (by_root.nucleus_id.item(), by_root.depth.item()) == (5, 300)


def test_a_selection_by_where_is_written(units, tmp_path):
    mx.write_store(tmp_path / "l4.zarr", units=units.where(units.layer == "L4", drop=True))
    written = mx.open_store(tmp_path / "l4.zarr")["units"].to_dataset()
    assert_labelled(written, [1, 2, 3])
    assert written.n_scans.values.tolist() == [0, 3, 0]


def test_ids_that_became_floats_are_refused():
    units = mx.as_units(neurons())
    wider = units.reindex(nucleus_id=[5, 11])
    with pytest.raises(mx.errors.SchemaError, match=r"float64, expected int64.*fill_value"):
        mx.to_table(wider)
    stated = {"pt_root_id": 0, "session": -1, "layer": "unknown", "axon_proofread": False}
    # Its row would meet the one of a neuron whose root differs in the last digits.
    roots = pd.DataFrame({"pt_root_id": ROOT_IDS, "spines": 4})
    pairs = connections(units)
    for use in (
        lambda: mx.merge_table(wider, roots, on="pt_root_id"),
        lambda: mx.select_units(wider, pt_root_id=ROOT_IDS[1]),
        lambda: mx.annotate(pairs, wider, "pt_root_id", overwrite=True),
        lambda: mx.to_html({"units": wider}, "never.html"),
        lambda: mx.neuroglancer_link(wider.dropna("nucleus_id", subset=["depth"])),
    ):
        with pytest.raises(mx.errors.SchemaError, match="pt_root_id has dtype float64"):
            use()
    assert mx.select_units(wider, layer="L4").nucleus_id.values.tolist() == [5]
    wider = units.reindex(nucleus_id=[5, 11], fill_value=stated)
    assert wider.pt_root_id.values.tolist() == [ROOT_IDS[1], 0]
    assert mx.to_table(wider).layer.tolist() == ["L4", "unknown"]


def test_labels_are_dropped_added_and_changed(units):
    without = units.drop_vars("layer")
    assert "layer" not in without.rate_ori.coords
    assert "layer" in units.coords
    own = units.assign_coords(my_type=("nucleus_id", ["a", "b", "a", "b"]))
    assert own.depth.groupby("my_type").mean().values.tolist() == [205, 310]
    lower = units.assign(cell_type=units.cell_type.str.lower())
    assert lower.depth.groupby("cell_type").max().to_series().to_dict() == {
        "23p": 100, "4p": 310, "bc": 320,
    }  # fmt: skip


def test_parts_of_units_are_joined(units):
    parts = [units.isel(nucleus_id=rows) for rows in ([0, 1], [2, 3])]
    joined = xr.concat(parts, "nucleus_id")
    assert_labelled(joined, [0, 1, 2, 3])
    assert joined.identical(units)
    merged = xr.merge([units[["rate_ori"]], units[["depth"]]], join="exact", compat="equals")
    assert_labelled(merged, [0, 1, 2, 3])
    assert set(merged.data_vars) == {"rate_ori", "depth"}


def test_units_become_data_frames(units):
    frame = units[["depth", "n_scans"]].to_dataframe()
    assert frame.index.tolist() == IDS
    assert frame.pt_root_id.tolist() == ROOT_IDS
    assert frame.groupby("cell_type").depth.mean().to_dict() == {"23P": 100, "4P": 305, "BC": 320}
    assert units.rate_ori.to_dataframe().loc[(7, 90.0), ["rate_ori", "layer"]].tolist() == [8, "L4"]
    assert units.cell_type.to_series().to_dict() == {3: "23P", 5: "4P", 7: "4P", 9: "BC"}
    table = mx.to_table(units)
    assert table.pt_root_id.tolist() == ROOT_IDS
    assert table["rate_ori_90"].tolist()[:3] == [3, 4, 8]
    assert set(table) >= LABELS
    assert table.columns[0] == "nucleus_id"


@pytest.mark.parametrize("kind", ["netcdf", "zarr", "store"])
def test_round_trips_keep_labels(units, kind, tmp_path):
    if kind == "netcdf":
        units.to_netcdf(tmp_path / "units.nc")
        again = xr.load_dataset(tmp_path / "units.nc")
    elif kind == "zarr":
        units.to_zarr(tmp_path / "units.zarr", consolidated=False)
        again = xr.open_dataset(tmp_path / "units.zarr", engine="zarr", consolidated=False)
    else:
        mx.write_store(tmp_path / "units.zarr", units=units)
        again = xr.open_datatree(tmp_path / "units.zarr", engine="zarr", consolidated=False)
        again = again["units"].to_dataset()
    assert set(again.data_vars) == {"n_scans", "depth", "rate_ori"}
    assert_labelled(again, [0, 1, 2, 3])
    np.testing.assert_array_equal(again.rate_ori.groupby("cell_type").mean(), [[1, 3], [3, 6], [np.nan] * 2])  # fmt: skip


def test_conditions_take_labels_and_variables(units):
    assert_labelled(mx.select_units(units, layer="L4", cell_type="4P", n_scans=(1, None)), [2])
    assert_labelled(mx.select_units(units, session=4), [0])
    assert_labelled(mx.select_units(units, axon_proofread=False), [1, 2])


def test_groups_of_connectivity(connectivity):
    sums = connectivity.synapse_size.groupby("pre_cell_type").sum().compute()
    assert sums.pre_cell_type.values.tolist() == ["23P", "4P", "BC"]
    assert sums.values.tolist() == [[0, 10, 0, 40], [0, 0, 20, 30], [0, 0, 0, 0]]
    assert sums.post_layer.values.tolist() == ["L2/3", "L4", "L4", "L4"]
    sums = connectivity.synapse_size.groupby("post_layer").sum().compute()
    assert sums.transpose("post_layer", ...).values.tolist() == [[0, 0, 0, 0], [50, 20, 30, 0]]
    of_l4 = connectivity.sel(pre_nucleus_id=connectivity.pre_layer == "L4")
    assert of_l4.pre_cell_type.values.tolist() == ["4P", "4P", "BC"]
    assert mx.n_connections(of_l4) == 2


def test_sums_over_neurons_with_labels(connectivity, units):
    rates = units.rate_ori.fillna(0).rename(nucleus_id="pre_nucleus_id")
    expected = [[0, 0], [10, 30], [40, 80], [160, 360]]
    currents = xr.dot(connectivity.synapse_size, rates).compute()
    assert currents.values.tolist() == expected
    ours = mx.input_currents(connectivity, units.rate_ori).compute()
    assert ours.values.tolist() == expected
    for result in (currents, ours):
        assert result.post_cell_type.values.tolist() == ["23P", "4P", "4P", "BC"]
        assert not {"cell_type", "pt_root_id", "pre_cell_type"} & set(result.coords)
    means = ours.groupby("post_cell_type").mean()
    assert means.values.tolist() == [[0, 0], [25, 55], [160, 360]]
    gains = units.n_scans.rename(nucleus_id="pre_nucleus_id")
    scaled = (connectivity.synapse_size * gains).sum("pre_nucleus_id").compute()
    assert scaled.values.tolist() == [0, 10, 0, 130]


def test_labels_that_differ_are_dropped_by_arithmetic(units):
    other = units.assign_coords(layer=("nucleus_id", np.array(["L1", "L4", "L4", "L5"], object)))
    difference = units.depth - other.depth
    assert set(difference.coords) == set(units.depth.coords) - {"layer"}
    assert difference.values.tolist() == [0, 0, 0, 0]
    with pytest.raises(xr.MergeError, match="layer"):
        xr.Dataset({"a": units.depth, "b": other.depth})
    both = xr.Dataset({"a": units.depth, "b": other.depth.reset_coords(drop=True)})
    assert both.layer.equals(units.layer)


def test_releases_are_built_with_labels(three_tables):
    units = mx.build_units(three_tables, 1300, functional="best_only")
    assert {str(n) for n, v in units.data_vars.items() if v.dtype.kind in "Ob"} == set()
    assert set(units.data_vars) == {
        "position", "n_scans", "n_scan_units", "pref_ori", "pref_dir", "gOSI", "gDSI", "cc_abs",
    }  # fmt: skip
    assert set(units.coords) >= {
        "pt_root_id", "classification_system", "cell_type", "brain_area", "layer", "strategy_axon",
        "strategy_dendrite", "axon_completeness", "axon_proofread", "root_changed", "tuning_type",
        "session", "scan_idx", "unit_id",
    }  # fmt: skip
    assert units.pt_root_id.values.tolist() == [ROOTS[11], ROOTS[12], ROOTS[13]]
    best = units.cc_abs.where(units.tuning_type == "matched", drop=True)
    assert best.unit_id.values.tolist() == [3, -1]
    assert best.unit_id.dtype == np.int64


def test_rows_of_scans_and_synapses_have_labels(demo_fresh, demo_release):
    functional, units = demo_fresh["functional"], demo_fresh["units"]
    assert set(functional.coords) >= {
        "nucleus_id", "pt_root_id", "session", "scan_idx", "unit_id", "cell_type", "layer",
    }  # fmt: skip
    plain = mx.to_table(functional).query("layer != 'unknown'").groupby("layer").score.mean()
    means = functional.score.groupby("layer").mean().to_series().drop("unknown", errors="ignore")
    pd.testing.assert_series_equal(means, plain, check_names=False)
    synapses = demo_release.synapses()
    assert set(synapses.data_vars) == {"size", "position"}
    assert set(synapses.coords) >= {
        "synapse_id", "pre_nucleus_id", "post_nucleus_id", "pre_pt_root_id", "post_pt_root_id",
    }  # fmt: skip
    large = synapses.where(synapses["size"] > 5000, drop=True)
    roots = units.pt_root_id.sel(nucleus_id=large.post_nucleus_id.values)
    assert large.post_pt_root_id.dtype == np.int64
    assert large.sizes["synapse"] > 100
    np.testing.assert_array_equal(large.post_pt_root_id, roots)


def test_own_columns():
    table = pd.DataFrame(
        {"nucleus_id": IDS, "kind": list("abab"), "is_tall": [True, False, True, True],
         "supervoxel_id": ROOT_IDS, "n_spines": [5, 6, 7, 8], "width": [1.5, 2.5, np.nan, 4.0]}
    )  # fmt: skip
    units = mx.as_units(table)
    assert set(units.data_vars) == {"n_spines", "width"}
    assert set(units.coords) == {"nucleus_id", "kind", "is_tall", "supervoxel_id"}
    merged = mx.merge_table(mx.as_units(neurons()), table.iloc[:3])
    assert set(merged.data_vars) == {"n_scans", "depth", "rate_ori", "n_spines", "width"}
    assert set(merged.coords) >= LABELS | {"kind", "is_tall", "supervoxel_id"}
    assert merged.supervoxel_id.values.tolist() == [*ROOT_IDS[:3], -1]
    assert merged.n_spines.groupby("kind").sum().to_series().to_dict() == {
        "a": 12, "b": 6, "unknown": -1,
    }  # fmt: skip


def test_labels_of_a_merged_dataset_must_agree():
    units = mx.as_units(neurons())
    selection = units[["rate_ori"]].rename(rate_ori="rate_of_model").isel(nucleus_id=[2, 0])
    merged = mx.merge_table(units, selection)
    np.testing.assert_array_equal(merged.rate_of_model, [[1, 3], [np.nan] * 2, [4, 8], [np.nan] * 2])  # fmt: skip
    assert_labelled(merged, [0, 1, 2, 3])
    assert set(merged.coords) == set(units.coords)
    # Of earlier versions, in which they are variables of the table.
    early = selection.reset_coords(set(selection.coords) & LABELS)
    assert mx.merge_table(units, early).identical(merged)
    # NaN is no difference, but a label of another shape is one.
    depth = ("nucleus_id", [100.0, np.nan, np.nan, 320.0])
    with_depth = units.assign_coords(depth=depth)
    by_depth = selection.assign_coords(depth=("nucleus_id", [np.nan, 100.0]))
    assert mx.merge_table(with_depth, by_depth).depth.equals(with_depth.depth)
    with pytest.raises(mx.errors.SchemaError, match=r"already have \['depth'\]"):
        mx.merge_table(units.drop_vars("depth").assign_coords(depth=5.0), by_depth)
    other = selection.assign_coords(layer=("nucleus_id", np.array(["L5", "L2/3"], dtype=object)))
    with pytest.raises(mx.errors.SchemaError, match=r"already have \['layer'\]"):
        mx.merge_table(units, other)
    assert mx.merge_table(units, other, "rate_of_model").layer.equals(units.layer)


def test_text_as_bytes_is_text():
    words = np.array([b"23P", "Übergang".encode()])
    for form in (words, words.astype(object)):
        units = mx.as_units(pd.DataFrame({"nucleus_id": [3, 5], "cell_type": form, "tag": form}))
        assert units.cell_type.values.tolist() == units.tag.values.tolist() == ["23P", "Übergang"]


def test_exports_have_labels(connectivity, tmp_path):
    units = mx.as_units(neurons())
    pairs = mx.to_table(connectivity.compute())
    assert pairs.groupby("pre_cell_type")["size"].sum().to_dict() == {"23P": 50, "4P": 50}
    table = mx.to_table(units)
    table.to_parquet(tmp_path / "units.parquet")
    table.to_csv(tmp_path / "units.csv", index=False)
    for read in (pd.read_parquet(tmp_path / "units.parquet"), pd.read_csv(tmp_path / "units.csv")):
        again = mx.as_units(
            read.drop(columns=["rate_ori_0", "rate_ori_90"]),
            datastack="minnie65_public",
            version=1300,
        )
        assert set(again.data_vars) == {"n_scans", "depth"}
        assert_labelled(again, [0, 1, 2, 3])
    pytest.importorskip("anndata")
    obs = mx.to_anndata(units, connectivity.compute()).obs
    assert set(obs) >= LABELS | {"n_scans", "depth"}
    assert obs.pt_root_id.tolist() == ROOT_IDS
    pytest.importorskip("networkx")
    graph = mx.to_networkx(connectivity.compute(), units)
    node = graph.nodes[7]
    assert (node["cell_type"], node["pt_root_id"], node["depth"]) == ("4P", ROOT_IDS[2], 310)
