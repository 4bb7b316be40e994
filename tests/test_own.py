"""Tables, edge lists and matrices from elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

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
