"""Tables, edge lists and matrices from elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr

import microns_xr as mx

NEURONS = pd.DataFrame(
    {
        "neuron": [14, 11, 12, 13],
        "classification_system": ["inh", "exc", "exc", None],
        "layer": ["L4", "L2/3", "L2/3", "L4"],
        "x": [0.0, 0.0, 30.0, 0.0],
        "y": [300.0, 150.0, 150.0, 250.0],
        "z": [0.0, 0.0, 40.0, 0.0],
        "pref_ori": [0.0, 0.0, 90.0, 45.0],
    }
)
EDGES = pd.DataFrame(
    {
        "pre": [11, 11, 12, 13, 14],
        "post": [12, 13, 13, 14, 11],
        "weight": [0.5, 0.25, 2.0, 1.0, 4.0],
    }
)


def test_units_are_sorted_with_words_as_coordinates_and_missing_ones_unknown():
    units = mx.as_units(NEURONS, id="neuron", angle_units="degree")
    assert units.nucleus_id.values.tolist() == [11, 12, 13, 14]
    assert units.coords["classification_system"].values.tolist() == ["exc", "exc", "unknown", "inh"]
    assert units.position.sel(nucleus_id=12).values.tolist() == [30.0, 150.0, 40.0]
    assert units.pref_ori.values.tolist() == [0.0, 90.0, 45.0, 0.0]
    assert units.pref_ori.attrs["period"] == 180.0


def test_angles_that_are_indices_are_refused():
    with pytest.raises(mx.errors.SchemaError, match="indices of stimuli"):
        mx.as_units(
            NEURONS.assign(pref_ori=[0.0, 1.0, 2.0, 3.0]), id="neuron", angle_units="degree"
        )


def test_edge_list_names_its_axes_unless_ids_are_asked_for():
    named = mx.as_connectivity(EDGES[:3])
    assert named.scope.item() == "unknown"
    assert named.pre_nucleus_id.values.tolist() == [11, 12]
    assert named.post_nucleus_id.values.tolist() == [12, 13]
    assert named.weight.data.todense().tolist() == [[0.5, 0.25], [0.0, 2.0]]
    asked = mx.as_connectivity(EDGES[:3], pre_ids=[11, 14], post_ids=[12, 13])
    assert asked.scope.item() == "requested"
    assert asked.weight.data.todense().tolist() == [[0.5, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_matrix_with_ids_is_requested(kind):
    matrix = kind(np.array([[0.0, 0.5], [2.0, 0.0]]))
    connectivity = mx.as_connectivity(matrix, pre=[12, 11], post=[12, 11])
    assert connectivity.scope.item() == "requested"
    assert connectivity.weight.data.todense().tolist() == [[0.0, 2.0], [0.5, 0.0]]


def test_a_table_an_edge_list_and_rates_are_enough(tmp_path):
    release = {"datastack": "mine", "version": 1}
    angles = {"angle_units": "degree", "angle_convention": "up_clockwise"}
    units = mx.as_units(NEURONS, id="neuron", **angles, **release)
    connectivity = mx.as_connectivity(EDGES, pre_ids=units, post_ids=units, **release)
    rates = xr.DataArray([1.0, 3.0, 5.0], coords={"nucleus_id": [11, 12, 14]}, dims="nucleus_id")
    currents = mx.input_currents(connectivity, rates)
    degrees = mx.degrees(connectivity)
    by = "classification_system"
    groups = mx.group_connectivity(connectivity, by, units=units)
    probability = mx.analysis.connection_probability(
        connectivity, units, by, [0, 60, 400], presynaptic="all"
    )
    tuned = mx.analysis.like_to_like(connectivity, units, bins=3, presynaptic="all")
    mx.plot.connection_probability(probability)
    assert mx.plot.like_to_like(tuned).lines
    mx.write_store(tmp_path / "own.zarr", units=units, connectivity=connectivity)
    stored = mx.open_store(tmp_path / "own.zarr").connectivity
    graph = mx.to_networkx(connectivity, units)

    np.testing.assert_array_equal(currents, [20.0, 0.5, 6.25, np.nan])
    assert degrees.in_degree.values.tolist() == [1, 1, 2, 1]
    assert degrees.out_weight.values.tolist() == [0.75, 2.0, 1.0, 4.0]
    pair = {f"pre_{by}": "exc", f"post_{by}": "exc"}
    assert groups.weight.sel(pair).item() == 0.5
    assert groups.weight.sel({f"pre_{by}": "inh", f"post_{by}": "exc"}).item() == 4.0
    # 11 and 12 are 50 µm apart, and connected one way.
    assert probability.probability.sel(pair).values[0] == 0.5
    assert tuned.n_pairs.values.tolist() == [2, 6, 4]
    assert tuned.probability.values.tolist() == [0.5, 0.5, 0.25]
    np.testing.assert_array_equal(stored.weight.data.todense(), connectivity.weight.data.todense())
    assert graph.edges[14, 11]["weight"] == 4.0
    assert mx.to_table(connectivity).weight.tolist() == [4.0, 0.5, 0.25, 2.0, 1.0]


def test_axons_of_no_stated_completeness_are_taken_with_all_only():
    units = mx.as_units(NEURONS, id="neuron")
    connectivity = mx.as_connectivity(EDGES, pre_ids=units, post_ids=units)
    with pytest.raises(mx.errors.SchemaError, match="presynaptic='all'"):
        mx.analysis.connection_probability(connectivity, units, "layer")
    found = mx.analysis.connection_probability(connectivity, units, "layer", presynaptic="all")
    assert found.axon_completeness.values.tolist() == ["unknown"]
