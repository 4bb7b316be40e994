"""Populations by one variable and by products, and what joins them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matrices import dataset, dense, ids

import microns_xr as mx


def words(*values: str):
    return ("nucleus_id", np.array(values, dtype=object))


@pytest.fixture
def units():
    """Three neurons: two of layer 4, two of type 23P."""
    made = xr.Dataset(
        {
            "cell_type": words("23P", "BC", "23P"),
            "layer": words("L4", "L4", "L2/3"),
            "n_scans": ("nucleus_id", [2, 0, 1]),
            "axon_proofread": ("nucleus_id", [True, False, True]),
        },
        coords={"nucleus_id": ids(3)},
    )
    return mx.releases.stamp_release(made, "minnie65_public", 1718)


@pytest.fixture
def three():
    """0 to 1 with 7 of 2 synapses, 1 to 2 with 5 of 1, 2 to 1 with 4 of 3."""
    size = np.array([[0, 7, 0], [0, 0, 5], [0, 4, 0]])
    count = np.array([[0, 2, 0], [0, 0, 1], [0, 3, 0]])
    return dataset(size > 0, size, count)


def test_means_by_hand(three, units):
    table = mx.group_connectivity(three, "cell_type", units=units)
    between = table.sel(pre_cell_type="23P", post_cell_type="BC")
    assert between.n_connections == 2
    assert between.synapse_size == 11
    assert between.mean_size == 5.5
    assert between.mean_synapses == 2.5
    assert np.isnan(table.mean_size.sel(pre_cell_type="BC", post_cell_type="BC"))
    assert table.n_pre.to_series().to_dict() == {"23P": 2, "BC": 1}
    assert "group_connectivity" in "\n".join(table.attrs["history"])


def test_products_by_hand(three, units):
    table = mx.group_connectivity(
        three, {"pre": ["cell_type", "layer"], "post": "layer"}, units=units
    )
    assert table.synapse_size.dims == ("pre_cell_type_layer", "post_layer")
    assert table.pre_cell_type_layer.values.tolist() == ["23P, L2/3", "23P, L4", "BC, L4"]
    assert table.pre_cell_type.values.tolist() == ["23P", "23P", "BC"]
    assert table.pre_layer.values.tolist() == ["L2/3", "L4", "L4"]
    assert table.synapse_size.sel(post_layer="L4").values.tolist() == [4, 7, 0]
    wide = table.set_index(pre_cell_type_layer=["pre_cell_type", "pre_layer"])
    assert wide.sel(pre_cell_type="BC", pre_layer="L4").synapse_size.sel(post_layer="L2/3") == 5


def test_products_of_annotations(three, units):
    annotated = mx.annotate(three, units, ["cell_type", "layer"])
    found = mx.group_connectivity(annotated, ["cell_type", "layer"])
    expected = mx.group_connectivity(three, ["cell_type", "layer"], units=units)
    xr.testing.assert_equal(found, expected)


def test_neurons_without_a_unit_are_unknown(three, units):
    table = mx.group_connectivity(
        three, ["cell_type", "layer"], units=units.isel(nucleus_id=[0, 1])
    )
    assert table.pre_cell_type_layer.values.tolist() == ["23P, L4", "BC, L4", "unknown"]
    assert table.pre_layer.values.tolist() == ["L4", "L4", "unknown"]
    assert int(table.synapse_size.sum()) == 16


def test_labels_of_ones_own_are_aligned(three, units):
    mine = xr.DataArray(["b", "a"], {"nucleus_id": ids(3)[[2, 0]]}, name="mark")
    labels = mx.analysis.population_labels(units, mine)
    assert labels.values.tolist() == ["a", "unknown", "b"]
    assert labels.dtype == object
    other = mx.releases.stamp_release(mine, "minnie65_public", 1)
    with pytest.raises(mx.errors.ReleaseMismatchError, match=r"by is of .* v1"):
        mx.analysis.population_labels(units, other)
    with pytest.raises(
        mx.errors.SchemaError,
        match="1 of 3 neurons of nucleus_id have no label 'mark', which is int64",
    ):
        mx.analysis.population_labels(units, mine.copy(data=[3, 4]))
    with pytest.raises(
        mx.errors.UnknownLabelError, match="none of the 3 neurons of nucleus_id has a label"
    ):
        mx.analysis.population_labels(units, mine.assign_coords(nucleus_id=[1, 2]))


def test_integers_and_truth_values(three, units):
    table = mx.group_connectivity(three, "n_scans", units=units)
    assert table.pre_n_scans.values.tolist() == [0, 1, 2]
    both = mx.analysis.population_labels(units, ["axon_proofread", "layer"])
    assert both.values.tolist() == ["True, L4", "False, L4", "True, L2/3"]
    of_labels = mx.analysis.population_labels(units, both)  # a product that was made before
    assert of_labels.layer.values.tolist() == ["L4", "L4", "L2/3"]


def test_missing_words_are_unknown(units):
    some = units.assign(layer=words("L4", None, "L2/3"))
    before = some.copy(deep=True)
    assert mx.analysis.population_labels(some, "layer").values.tolist() == ["L4", "unknown", "L2/3"]
    xr.testing.assert_identical(some, before)


def test_what_is_refused(three, units):
    with pytest.raises(mx.errors.UnknownLabelError, match=r"'cell_typ'.*nearest: cell_type"):
        mx.analysis.population_labels(units, "cell_typ")
    with pytest.raises(mx.errors.SchemaError, match="depth has dtype float64"):
        mx.analysis.population_labels(units.assign(depth=("nucleus_id", [1.0, 2.0, 3.0])), "depth")
    alike = units.assign(cell_type=words("a, b", "a", "a"), layer=words("c", "b, c", "c"))
    with pytest.raises(mx.errors.SchemaError, match="'a, b, c'"):
        mx.analysis.population_labels(alike, ["cell_type", "layer"])
    with pytest.raises(mx.errors.SchemaError, match="expected the name of a variable"):
        mx.analysis.population_labels(units, [])
    with pytest.raises(mx.errors.SchemaError, match="expected the name of a variable"):
        mx.analysis.population_labels(units, 3)
    with pytest.raises(mx.errors.SchemaError, match=r"by is a Dataset, .* the units as units="):
        mx.group_connectivity(three, units)
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.group_connectivity(
            three, "layer", units=mx.releases.stamp_release(units, "minnie65_public", 661)
        )
    with pytest.raises(mx.errors.UnknownLabelError, match="no variable 'pre_layer'"):
        mx.group_connectivity(three, ["layer", "cell_type"])


def test_like_a_table_of_pairs(demo):
    """Against pandas on one row per pair."""
    connectivity, units = demo["connectivity"], demo["units"]
    found = mx.group_connectivity(
        connectivity, {"pre": ["cell_type", "layer"], "post": "brain_area"}, units=units
    )
    pairs = mx.to_table(connectivity)
    of = units[["cell_type", "layer", "brain_area"]].to_dataframe()
    pre, post = of.loc[pairs.pre_nucleus_id], of.loc[pairs.post_nucleus_id]
    keys = [(pre.cell_type + ", " + pre.layer).to_numpy(), post.brain_area.to_numpy()]
    grouped = pairs.groupby(keys)
    for name, expected in (
        ("synapse_size", grouped["size"].sum()),
        ("n_connections", grouped.size()),
        ("mean_size", grouped["size"].mean()),
        ("mean_synapses", grouped.n_syn.mean()),
    ):
        series = found[name].to_series()
        series = series[found["n_connections"].to_series() > 0]
        assert len(series) == len(expected)
        np.testing.assert_allclose(series.sort_index(), expected.sort_index(), rtol=1e-14)
    assert int(found.n_pre.sum()) == units.sizes["nucleus_id"]


def test_lazy_and_a_store(demo_store, demo_fresh):
    eager = mx.group_connectivity(
        demo_fresh["connectivity"], ["cell_type", "layer"], units=demo_fresh["units"]
    )
    tree = mx.open_store(demo_store, lazy=True)
    lazy = mx.group_connectivity(
        tree["connectivity"].to_dataset(), ["cell_type", "layer"], units=demo_fresh["units"]
    )
    assert lazy.mean_size.chunks is not None
    assert lazy.synapse_size.chunks is not None
    xr.testing.assert_equal(lazy.compute(), eager)
    from_path = mx.group_connectivity(demo_store, ["cell_type", "layer"], units=demo_fresh["units"])
    assert from_path.mean_size.chunks is None
    xr.testing.assert_equal(from_path, eager)


def test_sums_do_not_depend_on_the_populations(demo_fresh):
    connectivity, units = demo_fresh["connectivity"], demo_fresh["units"]
    total = int(dense(connectivity).sum())
    for by in ("layer", ["layer", "cell_type"], ["brain_area", "classification_system", "layer"]):
        table = mx.group_connectivity(connectivity, by, units=units)
        assert int(table.synapse_size.sum()) == total
        assert pd.Index(table[next(iter(table.dims))].values).is_unique


GROUPED = {
    "labels": lambda u, c, i, by: mx.analysis.population_labels(u, by).values.tolist(),
    "group": lambda u, c, i, by: mx.group_connectivity(c, by, units=u).n_connections.values.tolist(),
    "probability": lambda u, c, i, by: mx.analysis.connection_probability(
        c, u, by, presynaptic="all"
    ).n_pairs.values.tolist(),
    "depths": lambda u, c, i, by: legend(mx.plot.depth_profile(u, by=by)),
    "angles": lambda u, c, i, by: legend(mx.plot.preferred_orientations(u, by=by)),
    "matrix": lambda u, c, i, by: [
        text.get_text() for text in mx.plot.adjacency_matrix(c, u, by).get_yticklabels()
    ],
    "currents": lambda u, c, i, by: legend(mx.plot.currents_by_angle(i, by)),
}  # fmt: skip


def legend(ax):
    return sorted(text.get_text() for text in ax.get_legend().get_texts())


@pytest.mark.parametrize("name", GROUPED)
def test_populations_are_given_alike_everywhere(name, demo_fresh):
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    degrees = {"units": "degree", "period": 180.0}
    angles = np.linspace(0, 179, units.sizes["nucleus_id"])
    units = units.assign(pref_ori=("nucleus_id", angles, degrees))
    names = ["classification_system", "layer"]
    currents = mx.annotate(mx.input_currents(connectivity, units.rate_ori), units, names)
    product = mx.analysis.population_labels(units, names)
    for by, same in (
        ("layer", [units.layer, units.layer[::-1], units.layer.to_series()]),
        (names, [product, tuple(names), product.to_series()]),
    ):
        found = []
        for given in (by, *same):
            plt.close("all")
            found.append(GROUPED[name](units, connectivity, currents, given))
        assert len(found[0]) > 1
        assert all(other == found[0] for other in found)
