"""Choosing units and connections by label, on fresh and on reopened Datasets."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import microns_xr as mx


def plain(units: xr.Dataset):
    return mx.to_table(units.drop_vars([n for n in units.data_vars if units[n].ndim > 1]))


CASES = {
    "one layer": (dict(layer="L4"), lambda t: t.layer == "L4"),
    "two layers": (dict(layer=("L2/3", "L4")), lambda t: t.layer.isin(["L2/3", "L4"])),
    "a set": (dict(cell_type={"BC", "MC"}), lambda t: t.cell_type.isin(["BC", "MC"])),
    "an array": (dict(brain_area=np.array(["V1"])), lambda t: t.brain_area == "V1"),
    "class": (
        dict(classification_system="excitatory_neuron", layer="L5"),
        lambda t: (t.classification_system == "excitatory_neuron") & (t.layer == "L5"),
    ),
    "matched": (dict(tuning="matched"), lambda t: t.n_scan_units > 0),
    "not matched": (dict(tuning="not_matched"), lambda t: t.n_scan_units == 0),
    "proofread": (dict(axon="proofread"), lambda t: t.axon_completeness != "none"),
    "extended": (dict(axon="extended"), lambda t: t.axon_completeness.isin(["partial", "full"])),
    "none": (dict(axon="none"), lambda t: t.axon_completeness == "none"),
    "raw strategy": (
        dict(axon="axon_fully_extended"),
        lambda t: t.strategy_axon == "axon_fully_extended",
    ),
    "completeness": (
        dict(axon=["full", "partial"]),
        lambda t: t.axon_completeness.isin(["full", "partial"]),
    ),
    "dendrite": (dict(dendrite="extended"), lambda t: t.strategy_dendrite == "dendrite_extended"),
    "dendrite clean": (dict(dendrite="clean"), lambda t: t.strategy_dendrite == "dendrite_clean"),
    "dendrite proofread": (dict(dendrite="proofread"), lambda t: t.strategy_dendrite != "none"),
    "nothing": (dict(layer=[]), lambda t: t.layer == "no such word"),
}


@pytest.mark.parametrize("case", CASES)
def test_against_plain_pandas(demo, case):
    conditions, expected = CASES[case]
    units = demo["units"]
    table = plain(units)
    chosen = mx.select_units(units, **conditions)
    np.testing.assert_array_equal(
        chosen.nucleus_id.values, table.nucleus_id[expected(table)].values
    )
    assert 0 < chosen.sizes["nucleus_id"] < units.sizes["nucleus_id"] or case == "nothing"
    assert (
        "".join(chosen.attrs["history"]).count("select_units")
        == "".join(units.attrs["history"]).count("select_units") + 1
    )


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (dict(layer="L23"), "units have no layer 'L23', expected one of .*; nearest: L2/3"),
        (dict(layer=["L4", "l5"]), "no layer 'l5'"),
        (
            dict(cell_type="excitatory_neuron"),
            "use classification_system='excitatory_neuron'",
        ),
        (dict(classification_system="excitatory"), "nearest: excitatory_neuron"),
        (dict(classification_system="exc"), "nearest: excitatory_neuron"),
        (dict(cell_type="exc"), "use classification_system='excitatory_neuron'"),
        (dict(cell_type=["23P", "inhib"]), "use classification_system='inhibitory_neuron'"),
        (dict(cell_type="L2/3"), "use layer='L2/3'"),
        (dict(layer="V1"), "use brain_area='V1'"),
        (dict(axon="axon_fully_extnded"), "nearest: axon_fully_extended"),
        (dict(tuning="matchd"), "nearest: matched"),
        (dict(brain_area="V2"), "nearest: V1"),
    ],
)
def test_words_that_are_nowhere_raise_with_the_nearest(demo, conditions, message):
    with pytest.raises(mx.errors.UnknownLabelError, match=message):
        mx.select_units(demo["units"], **conditions)


@pytest.mark.parametrize(
    "take",
    [
        lambda units: mx.select_units(units, layer="L4"),
        lambda units: mx.analysis.population_labels(units, "layer"),
        lambda units: mx.segment_layers(units),
        lambda units: mx.to_table(units),
        lambda units: mx.plot.depth_profile(units),
    ],
)
def test_the_units_of_an_open_store_are_told_to_be_a_dataset(take, demo):
    tree = xr.DataTree.from_dict({"units": demo["units"]})
    with pytest.raises(mx.errors.SchemaError, match=r"is a DataTree, .*pass its \.to_dataset\(\)"):
        take(tree["units"])
    take(tree["units"].to_dataset())


def test_words_of_the_release_that_a_subset_lacks_select_nothing(demo):
    l4 = mx.select_units(demo["units"], layer="L4", cell_type="4P", brain_area="V1", axon="none")
    for conditions in (
        {"layer": ["L1", "WM"]},
        {"cell_type": "astrocyte"},
        {"classification_system": "nonneuron"},
        {"brain_area": "LM"},
        {"axon": "axon_fully_extended"},
        {"strategy_axon": "axon_interareal"},
        {"axon_completeness": "full"},
        {"dendrite": "dendrite_extended", "axon": "full"},
    ):
        assert mx.select_units(l4, **conditions).sizes["nucleus_id"] == 0
        assert mx.select_units(l4.isel(nucleus_id=[]), **conditions).sizes["nucleus_id"] == 0
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: L4IT"):
        mx.select_units(l4.drop_vars("datastack"), cell_type="L44IT")
    # The words of another datastack, or somebody's own, are not those of minnie65.
    v1dd = l4.assign_coords(
        datastack="v1dd_public", cell_type=("nucleus_id", ["L4IT"] * l4.sizes["nucleus_id"])
    )
    assert mx.select_units(v1dd, cell_type="L6SP").sizes["nucleus_id"] == 0
    with pytest.raises(mx.errors.UnknownLabelError, match="no cell_type '23P'"):
        mx.select_units(v1dd, cell_type="23P")
    own = l4.drop_vars("datastack").assign_coords(layer=("nucleus_id", ["granular"] * v1dd.sizes["nucleus_id"]))  # fmt: skip
    assert mx.select_units(own, layer="granular").sizes == own.sizes
    with pytest.raises(mx.errors.UnknownLabelError, match="expected one of granular"):
        mx.select_units(own, layer="L4")
    numbered = own.assign_coords(layer=("nucleus_id", [4] * own.sizes["nucleus_id"]))
    assert mx.select_units(numbered, layer=4).sizes == own.sizes


def test_what_is_no_word_or_no_units(demo, three_tables):
    with pytest.raises(mx.errors.SchemaError, match=r"layer is 4, expected .*; nearest: L4"):
        mx.select_units(demo["units"], layer=4)
    with pytest.raises(mx.errors.SchemaError, match="not a Dataset over nucleus_id"):
        mx.select_units(demo["connectivity"], layer="L4")
    with pytest.raises(mx.errors.SchemaError, match="is a DataFrame, expected a Dataset"):
        mx.select_units(demo["functional"].to_dataframe(), layer="L4")
    rows = mx.select_units(demo["functional"], session=int(demo["functional"].session[0]))
    assert 0 < rows.sizes["scan_unit"] == (demo["functional"].session == rows.session[0]).sum()
    untuned = mx.build_units(three_tables, 1300)
    with pytest.raises(mx.errors.SchemaError, match="functional='match'"):
        mx.select_units(untuned, tuning="matched")
    with pytest.raises(mx.errors.SchemaError, match="units has no layer"):
        mx.select_units(untuned.drop_vars("layer"), layer="L4")


def test_extended_in_releases_before_1078():
    release = mx.Release(661, source="demo")
    units = release.units()
    assert set(mx.select_units(units, axon="extended").strategy_axon.values) == {"extended"}
    proofread = mx.select_units(units, axon="proofread")
    assert set(proofread.strategy_axon.values) == {"clean", "extended"}
    assert set(mx.select_units(units, axon="clean").strategy_axon.values) == {"clean"}
    assert set(mx.select_units(units, dendrite="extended").strategy_dendrite.values) == {"extended"}


def test_connections_between_populations(demo):
    units, connectivity = demo["units"], demo["connectivity"]
    chosen = mx.select_connections(
        connectivity,
        units,
        pre={"layer": "L4", "classification_system": "excitatory_neuron"},
        post={"layer": ["L2/3"]},
    )
    table, types = (
        mx.to_table(connectivity),
        mx.to_table(units[["layer", "classification_system"]]).set_index("nucleus_id"),
    )
    pre, post = types.loc[table.pre_nucleus_id], types.loc[table.post_nucleus_id]
    keep = (
        (pre.layer.values == "L4") & (pre.classification_system.values == "excitatory_neuron")
        & (post.layer.values == "L2/3")
    )  # fmt: skip
    expected = table[keep].reset_index(drop=True)
    assert mx.to_table(chosen)[expected.columns].equals(expected)
    assert mx.n_connections(chosen) == len(expected) > 0
    assert chosen.scope.item() == "complete"
    assert chosen.pre_cell_type.dims == ("pre_nucleus_id",)
    everything = mx.select_connections(connectivity, pre=units)
    assert mx.n_connections(everything) == len(table)
    # Neither units nor a mask that stand where the units belong select silently nothing.
    with pytest.raises(
        mx.errors.SchemaError, match=r"units alone select nothing: pass them as pre="
    ):
        mx.select_connections(connectivity, mx.select_units(units, layer="L4"))
    with pytest.raises(mx.errors.SchemaError, match=r"units is a DataArray, .* as pre= and post="):
        mx.select_connections(connectivity, units.layer == "L4")


def test_ids_units_and_conditions_choose_the_same(demo):
    units, connectivity = demo["units"], demo["connectivity"]
    l4 = mx.select_units(units, layer="L4")
    expected = mx.to_table(mx.select_connections(connectivity, units, pre={"layer": "L4"}))
    for neurons in (l4, l4.nucleus_id, set(l4.nucleus_id.values.tolist())):
        assert mx.to_table(mx.select_connections(connectivity, pre=neurons)).equals(expected)
    either = dict(pre={"layer": "L4"}, post=l4, both=False)
    touching = mx.to_table(mx.select_connections(connectivity, units, **either))
    table = mx.to_table(connectivity)
    ends = table[["pre_nucleus_id", "post_nucleus_id"]].isin(l4.nucleus_id.values)
    assert touching.equals(table[ends.any(axis=1)].reset_index(drop=True))


def test_ids_that_are_not_on_the_axis_are_left_out_and_counted(demo):
    connectivity = demo["connectivity"]
    post = connectivity.post_nucleus_id.values[:3]
    found = mx.select_connections(connectivity, post=[7, *post])
    assert found.post_nucleus_id.values.tolist() == post.tolist()
    last = found.attrs["history"][-1]
    assert last == "select_connections(pre=None, post=3 of 4 ids)"
    one = mx.select_connections(connectivity, post=int(post[0]))
    assert one.post_nucleus_id.values.tolist() == post[:1].tolist()
    none = mx.select_connections(connectivity, post=[])
    assert none.sizes["post_nucleus_id"] == 0
    for both in (True, False):
        with pytest.raises(mx.errors.UnknownLabelError, match="none of the 2 ids of post is on"):
            mx.select_connections(connectivity, pre=post, post=[7, 8], both=both)


def test_root_ids_are_told_the_way_to_nucleus_ids(demo):
    roots = demo["connectivity"].post_pt_root_id.values[[2, 0]]
    with pytest.raises(mx.errors.UnknownLabelError, match=r"mx\.select_units\(units, pt_root_id="):
        mx.select_connections(demo["connectivity"], post=roots)
    chosen = mx.select_units(demo["units"], pt_root_id=roots)
    found = mx.select_connections(demo["connectivity"], post=chosen)
    assert set(found.post_pt_root_id.values) == set(roots)


def test_truth_values_select_neurons(demo):
    units, connectivity = demo["units"], demo["connectivity"]
    expected = mx.select_connections(connectivity, units, post={"layer": "L4"})
    is_l4 = units.layer == "L4"
    on_axis = is_l4.sel(nucleus_id=connectivity.post_nucleus_id).values
    for mask in (is_l4, is_l4.to_series(), on_axis, on_axis.tolist()):
        found = mx.select_connections(connectivity, post=mask)
        np.testing.assert_array_equal(found.post_nucleus_id, expected.post_nucleus_id)
    with pytest.raises(mx.errors.SchemaError, match=r"mask of shape \(1,\), expected"):
        mx.select_connections(connectivity, post=[True])
    with pytest.raises(mx.errors.SchemaError, match=r"conditions such as \{'layer': 'L4'\}"):
        mx.select_connections(connectivity, units, post="L4")


def test_connections_of_two_releases_or_unknown_conditions(demo):
    units, connectivity = demo["units"], demo["connectivity"]
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: layer"):
        mx.select_connections(connectivity, units, pre={"layers": "L4"})
    other = mx.releases.stamp_release(units, "minnie65_public", 1300)
    for arguments in ((other,), ()):
        with pytest.raises(mx.errors.ReleaseMismatchError):
            mx.select_connections(connectivity, *arguments, pre=other.nucleus_id)
    with pytest.raises(
        mx.errors.SchemaError, match=r"select_connections\(connectivity, units, pre"
    ):
        mx.select_connections(connectivity, pre={"layer": "L4"})


def test_real_units_by_label(real_data):
    units = mx.Release(661, source=real_data / "minnie65_v661").units(functional="match")
    l4 = mx.select_units(units, layer="L4", cell_type="4P", tuning="matched", axon="none")
    assert l4.sizes["nucleus_id"] > 500
    assert mx.releases.release_spec(661).version == l4.materialization_version.item()
    assert mx.select_units(units, axon="extended").sizes["nucleus_id"] == int(
        (units.strategy_axon == "extended").sum()
    )


def test_conditions_on_rounded_root_ids_are_refused():
    """A rounded id may be the id of another neuron."""
    roots = 864691135000000000 // 128 * 128 + np.array([0, 1, 130, 260, 400])
    units = xr.Dataset({"pt_root_id": ("nucleus_id", roots)}, {"nucleus_id": np.arange(5)})
    assert mx.select_units(units, pt_root_id=roots[[1, 3]]).nucleus_id.values.tolist() == [1, 3]
    assert mx.select_units(units, pt_root_id=str(roots[4])).nucleus_id.values.tolist() == [4]
    assert mx.select_units(units, nucleus_id=(1, 3)).nucleus_id.values.tolist() == [1, 3]
    for rounded in (roots.astype(float), roots.astype(float).astype(np.int64)):
        with pytest.raises(mx.errors.SchemaError, match=r"pt_root_id h.* floats"):
            mx.select_units(units, pt_root_id=rounded)
