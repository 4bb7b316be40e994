"""A DataFrame of neurons, an edge list and rates through all functions."""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sparse
import xarray as xr

import microns_xr as mx


@pytest.fixture
def neurons() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "neuron": [4, 1, 3, 2],
            "kind": ["inh", "exc", "inh", "exc"],
            "layer": ["L4", "L2/3", None, " "],
            "x": [0.0, 0.0, 30.0, 30.0],
            "y": [300.0, 100.0, 140.0, 140.0],
            "z": [0.0, 0.0, 0.0, 0.0],
        }
    )


@pytest.fixture
def edges() -> pd.DataFrame:
    # The pair 1 to 2 has two rows; 3 to 3 is an autapse.
    return pd.DataFrame(
        {
            "source": [1, 1, 2, 3, 1],
            "target": [2, 2, 4, 3, 4],
            "strength": [0.5, 0.25, -2.0, 8.0, 0.0],
        }
    )


def test_rows_that_are_not_valid_are_left_out_and_counted():
    table = pd.DataFrame({"nucleus_id": [1, 2, 3], "x": [1.0, 2.0, 3.0], "valid": ["t", "f", "t"]})
    units = mx.as_units(table)
    assert units.nucleus_id.values.tolist() == [1, 3]
    assert units.attrs["n_invalid_rows"] == 1
    assert "valid" not in units.variables
    edges = pd.DataFrame({"pre": [1, 1, 2], "post": [2, 2, 1], "weight": [1, 10, 100]})
    found = mx.as_connectivity(edges.assign(valid=[True, False, True]))
    assert found.weight.data.todense().tolist() == [[0, 1], [100, 0]]
    assert found.attrs["n_invalid_rows"] == 1
    scores = mx.as_connectivity(edges.assign(valid=[1, 2, 3]), weight="valid")  # as one asks for
    assert scores.valid.data.todense().tolist() == [[0, 3], [3, 0]]
    with pytest.raises(mx.errors.SchemaError, match="rename the column if it does not say"):
        mx.as_units(table.assign(valid=[0.1, 0.7, 0.2]))


def connect(edges: pd.DataFrame, **options: object) -> xr.Dataset:
    return mx.as_connectivity(edges, pre="source", post="target", weight="strength", **options)


def test_fifteen_lines(neurons, edges, tmp_path):
    pytest.importorskip("anndata", reason="pip install 'microns-xr[export]'")
    angles = ("orientation", [0.0, 45.0, 90.0, 135.0], {"units": "degree"})
    curves = [[4.0, 1.0, 0.0, 1.0], [1.0, 4.0, 1.0, 0.0], [0.0, 1.0, 4.0, 1.0]]
    rates = xr.DataArray(curves, {"nucleus_id": [1, 2, 3], "orientation": angles}, name="rates")

    units = mx.as_units(neurons, id="neuron")
    connectivity = connect(edges, pre_ids=units, post_ids=units)
    currents = mx.input_currents(connectivity, rates)
    degrees = mx.degrees(connectivity)
    groups = mx.group_connectivity(connectivity, "kind", units=units)
    probability = mx.analysis.connection_probability(
        connectivity, units, by="kind", presynaptic="all"
    )
    units = units.assign(pref_ori=mx.tuning.selectivity(rates, dim="orientation").pref_ori)
    like = mx.analysis.like_to_like(
        connectivity, units, presynaptic="all", bins=[0, 60, 90], interval=None
    )
    axes = [mx.plot.like_to_like(like), mx.plot.connectivity_matrix(groups)]
    axes += [mx.plot.degree_distribution(degrees), mx.plot.depth_profile(units, by="kind")]
    mx.write_store(tmp_path / "own.zarr", units=units, connectivity=connectivity)
    tree = mx.open_store(tmp_path / "own.zarr")
    graph, data = mx.to_networkx(connectivity, units), mx.to_anndata(units, connectivity)
    table, matrix = mx.to_table(connectivity), mx.to_scipy(connectivity)

    # 2 has 0.75 of 1; 3 has 8 of itself; 4 has -2 of 2 and 0 of 1; 1 has no input.
    expected = [[0.0] * 4, [3.0, 0.75, 0.0, 0.75], [0.0, 8.0, 32.0, 8.0], [-2.0, -8.0, -2.0, 0.0]]
    np.testing.assert_allclose(currents.sel(post_nucleus_id=[1, 2, 3, 4]), expected)
    assert degrees.in_degree.values.tolist() == [0, 1, 1, 2]
    assert degrees.out_strength.values.tolist() == [0.75, -2.0, 8.0, 0.0]
    assert groups.n_connections.sel(pre_kind="exc", post_kind="inh").item() == 2
    assert groups.strength.sel(pre_kind="exc", post_kind="inh").item() == -2.0
    # exc to exc: 1 of 2 ordered pairs; exc to inh: 2 of 4; the autapse is not a pair
    assert probability.probability.sel(pre_kind="exc", post_kind="exc").item() == 0.5
    assert probability.n_connected.sel(pre_kind="inh").values.tolist() == [0, 0]
    assert probability.n_pre.sel(axon_completeness="unknown").values.tolist() == [2, 2]
    # Preferences are 0, 45 and 90 degrees: 4 of 6 pairs differ by 45, of which 1 to 2 is connected.
    assert like.n_pairs.values.tolist() == [4, 2]
    assert like.probability.values.tolist() == [0.25, 0.0]
    assert like.mean_size.values[0] == 0.75
    assert like.mean_size.attrs["long_name"] == "mean strength of a connection"
    made = [currents.to_dataset(), degrees, groups, probability, like]
    told = [str(v.attrs) for dataset in made for v in dataset.variables.values()]
    assert not any("voxel" in text or "synaps" in text.replace("synaptic", "") for text in told)
    assert all(ax.has_data() for ax in axes)
    plt.close("all")
    xr.testing.assert_identical(tree["units"].to_dataset(), units)
    stored = tree["connectivity"].to_dataset()
    assert stored.strength.data.todense().tolist() == connectivity.strength.data.todense().tolist()
    assert graph.edges[1, 2] == {"strength": 0.75}
    assert graph.nodes[4]["kind"] == "inh"
    assert data.obsp["strength"][0, 1] == 0.75
    assert table.strength.tolist() == matrix.data.tolist() == [0.75, 8.0, 0.0, -2.0]


def test_units_are_sorted_and_words_become_coordinates(neurons):
    units = mx.as_units(neurons.assign(n_spines=[1, 2, 3, 4]), id="neuron", datastack="mine")
    assert units.nucleus_id.values.tolist() == [1, 2, 3, 4]
    assert units.nucleus_id.dtype == np.int64
    assert {"kind", "layer"} <= set(units.coords)
    assert units.layer.values.tolist() == ["L2/3", "unknown", "unknown", "L4"]
    assert units.position.sel(axis="y").values.tolist() == [100.0, 140.0, 140.0, 300.0]
    assert units.position.attrs["units"] == "µm"
    assert units.n_spines.values.tolist() == [2, 4, 3, 1]
    assert set(units.data_vars) == {"position", "n_spines"}
    assert units.datastack.item() == "mine"
    assert "materialization_version" not in units.coords


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("strategy_axon", ["", None], ["none", "none"]),
        ("pt_root_id", pd.array([2**62 + 1, None], "Int64"), [2**62 + 1, 0]),
        ("session", pd.array([4, None], "Int64"), [4, -1]),
        ("score", pd.array([4, None], "Int64"), [4.0, np.nan]),
        ("cc_abs", [1, 0], [1.0, 0.0]),
    ],
)
def test_missing_values_of_units(name, given, expected):
    table = pd.DataFrame({"nucleus_id": ["864691135639235593", "8"], name: given})
    units = mx.as_units(table)
    assert units.nucleus_id.values.tolist() == [8, 864691135639235593]
    np.testing.assert_array_equal(units[name].values, np.array(expected[::-1], units[name].dtype))
    mx.as_units(table.set_index("nucleus_id"))[name]


def test_positions_need_a_unit():
    table = pd.DataFrame({"nucleus_id": [1], "pt_position": ["[183013 103535 21480]"]})
    with pytest.raises(mx.errors.SchemaError, match=r"resolution_nm=\[4, 4, 40\]"):
        mx.as_units(table)
    by_voxel = {"resolution_nm": (4, 4, 40)}
    # without a frame, in the axes of the table; with one, depth from the pia
    plain = mx.as_units(table, **by_voxel)
    assert plain.position.values.tolist() == [[732.052, 414.14, 859.2]]
    deep = mx.as_units(table, **by_voxel, datastack="minnie65_public")
    assert deep.position.sel(axis="y").item() == pytest.approx(79.7, abs=0.05)
    assert mx.as_units(table, position="pt_position").position.values[0, 1] == 103535
    with pytest.raises(mx.errors.SchemaError, match="outside of the volume of minnie65_public"):
        mx.as_units(table, position="pt_position", datastack="minnie65_public")


def test_units_of_a_dataset():
    table = xr.Dataset(
        {
            "rate_ori": (("cell", "orientation"), [[1.0, 2.0], [3.0, 4.0]]),
            "kind": ("cell", ["a", "b"]),
        },
        coords={"cell": [9, 5], "orientation": [0.0, 90.0]},
    )
    units = mx.as_units(table, id="cell")
    assert units.rate_ori.sel(nucleus_id=9).values.tolist() == [1.0, 2.0]
    assert units.rate_ori.dims == ("nucleus_id", "orientation")
    assert units.kind.sel(nucleus_id=5).item() == "b"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["n1", "n2"], "number the neurons once"),
        ([1, 1], "repeats 1 ids"),
        ([0.5, 1.0], "neuron"),
        ([True, False], "bool"),
    ],
)
def test_ids_that_are_none(ids, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.as_units(pd.DataFrame({"neuron": ids}), id="neuron")
    with pytest.raises(mx.errors.SchemaError, match=r"pass id="):
        mx.as_units(pd.DataFrame({"neuron": ids}))


def test_an_edge_list_names_its_neurons(edges):
    connectivity = connect(edges)
    assert connectivity.scope.item() == "unknown"
    assert connectivity.pre_nucleus_id.values.tolist() == [1, 2, 3]
    assert connectivity.post_nucleus_id.values.tolist() == [2, 3, 4]
    assert list(connectivity.data_vars) == ["strength"]
    dense = [[0.75, 0.0, 0.0], [0.0, 0.0, -2.0], [0.0, 8.0, 0.0]]
    assert connectivity.strength.data.todense().tolist() == dense
    assert mx.n_connections(connectivity) == 4  # the pair of weight 0 is one
    one = connect(edges, pre_ids=[1, 7])
    assert one.scope.item() == "unknown"
    assert (one.pre_nucleus_id.values.tolist(), one.post_nucleus_id.values.tolist()) == (
        [1, 7],
        [2, 4],
    )
    both = connect(edges, pre_ids=[1, 7], post_ids=[4])
    assert both.scope.item() == "requested"
    assert both.strength.data.todense().tolist() == [[0.0], [0.0]]
    counts = mx.releases.read_counts(both, "dropped_synapses")
    assert counts == {"missing_id": 0, "not_asked_for": 4}
    assert connect(edges, scope="complete").scope.item() == "complete"


def test_groups_of_which_the_list_says_nothing_have_no_sum(neurons, edges):
    units = mx.as_units(neurons, id="neuron")
    bare, asked = connect(edges), connect(edges, pre_ids=units, post_ids=units)
    pair = {"pre_kind": "inh", "post_kind": "exc"}
    for connectivity, expected in ((bare, np.nan), (asked, 0.0)):
        groups = mx.group_connectivity(connectivity, "kind", units=units).sel(pair)
        np.testing.assert_equal(groups.strength.item(), expected)
        assert groups.n_connections.item() == 0
    whole = connect(edges.assign(strength=[1, 2, 3, 4, 5]))
    assert np.isnan(mx.group_connectivity(whole, "kind", units=units).strength.sel(pair).item())


def test_synapses_are_counted_when_they_are_said_to_be(edges):
    counted = connect(edges, rows="synapse")
    assert counted.synapse_count.data.todense().tolist() == [[2, 0, 1], [0, 0, 1], [0, 1, 0]]
    n = connect(edges.assign(n=[1, 2, 3, 4, 5]), count="n")
    assert n.synapse_count.data.todense().tolist() == [[3, 0, 5], [0, 0, 3], [0, 4, 0]]
    bare = edges[["source", "target"]]
    only = mx.as_connectivity(bare, pre="source", post="target", rows="synapse")
    assert list(only.data_vars) == ["synapse_count"]
    with pytest.raises(mx.errors.SchemaError, match="1 of 5 rows of edges repeat a pair"):
        mx.as_connectivity(bare, pre="source", post="target")
    pairs = mx.as_connectivity(bare.drop_duplicates(), pre="source", post="target")
    assert pairs.connected.data.todense().sum() == 4
    two = mx.as_connectivity(
        edges.assign(n=1), pre="source", post="target", weight=["strength", "n"]
    )
    assert two.n.data.todense()[0, 0] == 2
    with pytest.raises(mx.errors.SchemaError, match="pass weight="):
        mx.as_connectivity(edges.assign(n=1), pre="source", post="target")
    sized = edges.assign(size=0.5, synapse_size=[1, 2, 3, 4, 5])
    both = mx.as_connectivity(sized, pre="source", post="target", weight=["size", "synapse_size"])
    assert mx.to_table(both)[["size", "synapse_size"]].sum().tolist() == [2.5, 15]


def test_rows_that_are_no_connections(edges):
    with pytest.raises(mx.errors.SchemaError, match="missing or infinite in 1 of 5"):
        connect(edges.assign(strength=[1, 2, 3, 4, np.nan]))
    with pytest.raises(mx.errors.SchemaError, match="expected numbers"):
        connect(edges.assign(strength=list("abcde")))
    with pytest.raises(mx.errors.SchemaError, match="number the neurons once"):
        connect(edges.assign(source=list("abcde")))
    with pytest.raises(mx.errors.SchemaError, match="pre_nucleus_id or pre"):
        mx.as_connectivity(edges)
    with pytest.raises(mx.errors.SchemaError, match="build_connectivity"):
        mx.as_connectivity(edges.rename(columns={"source": "pre_pt_root_id"}))
    some = connect(edges.assign(source=pd.array([1, 1, 2, 3, None], "Int64")))
    assert mx.n_connections(some) == 3
    assert mx.releases.read_counts(some, "dropped_synapses")["missing_id"] == 1


@pytest.mark.parametrize(
    "form",
    [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.coo_array, sparse.COO, sparse.GCXS],
)
def test_a_matrix_with_ids(form):
    matrix = form(np.array([[0.0, 1.5], [2.5, 0.0], [0.0, 0.0]]))
    connectivity = mx.as_connectivity(matrix, pre=[30, 10, 20], post=["7", "5"], weight="gain")
    assert connectivity.scope.item() == "requested"
    assert connectivity.pre_nucleus_id.values.tolist() == [10, 20, 30]
    assert connectivity.post_nucleus_id.values.tolist() == [5, 7]
    assert connectivity.gain.data.todense().tolist() == [[0.0, 2.5], [0.0, 0.0], [1.5, 0.0]]
    with pytest.raises(mx.errors.SchemaError, match="expected 3 different ids"):
        mx.as_connectivity(matrix, pre=[1, 1, 2], post=[7, 5])
    with pytest.raises(mx.errors.SchemaError, match="the rows of the matrix"):
        mx.as_connectivity(matrix)


def test_a_square_table_is_told_how_to_be_a_matrix():
    table = pd.DataFrame([[0.0, 1.5], [2.5, 0.0]], index=[30, 10], columns=[5, 7])
    with pytest.raises(
        mx.errors.SchemaError, match=r"to_numpy\(\), pre=edges\.index, post=edges\.col"
    ):
        mx.as_connectivity(table)
    pairs = mx.as_connectivity(table.to_numpy(), pre=table.index, post=table.columns)
    assert pairs.weight.sel(pre_nucleus_id=30).values.tolist() == [0.0, 1.5]


def test_an_array_with_labels():
    array = xr.DataArray([[0, 3], [4, 0]], {"a": [2, 1], "b": [9, 8]}, name="n")
    connectivity = mx.as_connectivity(array, pre="b", post="a")
    assert connectivity.n.data.todense().tolist() == [[0, 3], [4, 0]]
    assert connectivity.n.dtype == np.int64
    with pytest.raises(mx.errors.SchemaError, match="missing or infinite"):
        mx.as_connectivity(array.where(array > 0), pre="b", post="a")
    again = mx.as_connectivity(connectivity.n)
    xr.testing.assert_identical(again.drop_attrs(), connectivity.drop_attrs())


def test_one_weight_and_a_column_of_labels(neurons, edges):
    connectivity = connect(edges, scope="complete")
    gain = xr.DataArray([1.0, 10.0, 100.0], {"nucleus_id": [1, 2, 3]})
    for given in (connectivity, connectivity.strength):
        assert mx.input_currents(given, gain).values.tolist() == [0.75, 800.0, -20.0]
    by_column = mx.group_connectivity(connectivity, neurons.set_index("neuron").kind)
    by_array = mx.group_connectivity(connectivity, mx.as_units(neurons, id="neuron").kind)
    xr.testing.assert_equal(by_column, by_array)


def test_a_path_of_a_fit_without_a_convention():
    angles = ("orientation", [0.0, 45.0, 90.0, 135.0], {"units": "degree"})
    rates = xr.DataArray([[4.0, 1.0, 0.0, 1.0]], {"nucleus_id": [1], "orientation": angles})
    fit = mx.tuning.fit(rates, dim="orientation", model="von_mises")
    assert fit.pref_ori.item() == pytest.approx(0.0, abs=1e-3) or fit.pref_ori.item() > 179.9
    assert fit.pref_ori.attrs["units"] == "degree"
    assert "angle_convention" not in fit.pref_ori.attrs
    unstated = rates.assign_coords(orientation=[0.0, 45.0, 90.0, 135.0])
    with pytest.raises(mx.errors.SchemaError, match="units"):
        mx.tuning.selectivity(unstated, dim="orientation")


def test_conditions_on_any_variable(neurons):
    table = neurons.assign(
        n_rated=[0, 1, 2, 3], axon_completeness=["full", "clean", "none", "none"]
    )
    units = mx.as_units(table, id="neuron")

    def ids(**conditions: object) -> list[int]:
        return mx.select_units(units, **conditions).nucleus_id.values.tolist()

    assert ids(kind="exc") == [1, 2]
    assert ids(n_rated=(1, None)) == [1, 2, 3]
    assert ids(n_rated=(None, 1)) == [1, 4]
    assert ids(n_rated=[0, 3], kind=["exc", "inh"]) == [2, 4]
    assert ids(axon_completeness="clean") == [1]
    assert ids(axon_completeness="partial") == ids(layer="L5") == []
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: kind"):
        ids(knd="exc")
    with pytest.raises(mx.errors.UnknownLabelError, match="no kind 'excitatory'"):
        ids(kind="excitatory")
    rows = xr.Dataset({"cc_abs": ("scan_unit", [0.1, 0.9])}, {"session": ("scan_unit", [4, 5])})
    assert mx.select_units(rows, cc_abs=(0.5, None)).session.values.tolist() == [5]


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


def test_matrices_of_other_kinds():
    """A matrix of numpy is one; of a masked array it is not known what is behind the mask."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy advises against it
        matrix = np.matrix([[0, 3], [1, 0]])
    found = mx.as_connectivity(matrix, pre=[11, 12], post=[11, 12])
    assert found.weight.data.todense().tolist() == [[0, 3], [1, 0]]
    masked = np.ma.masked_equal([[0, 3], [1, 0]], 3)
    for other in (masked, [[0, 3], [1, 0]]):
        with pytest.raises(mx.errors.SchemaError, match=r"edges is a .*, expected a DataFrame"):
            mx.as_connectivity(other, pre=[11, 12], post=[11, 12])


@pytest.mark.parametrize("more", [{}, {"n": 2}])
def test_pairs_that_are_repeated_with_the_same_weights_are_not_added_up(more):
    """As in files that overlap; weights that differ are parts of a pair."""
    edges = pd.DataFrame({"pre": [11, 11, 12], "post": [12, 13, 11], "w": [0.5, 2.0, 1.0], **more})
    count = "n" if more else None
    twice = pd.concat([edges, edges[:2]])
    with pytest.raises(mx.errors.SchemaError, match=r"2 of 5 rows of edges repeat a pair .* same"):
        mx.as_connectivity(twice, weight="w", count=count)
    # Parts of other pairs, which were not asked for, do not show that rows are parts.
    others = pd.concat([twice, edges[:2].assign(pre=50, post=51)])
    with pytest.raises(mx.errors.SchemaError, match=r"2 of 5 rows of edges repeat a pair .* same"):
        mx.as_connectivity(others, weight="w", count=count, pre_ids=[11, 12], post_ids=[11, 12, 13])
    once = mx.as_connectivity(edges, weight="w", count=count)
    xr.testing.assert_equal(
        mx.as_connectivity(twice.drop_duplicates(), weight="w", count=count), once
    )
    parts = pd.concat([edges, edges[:2].assign(w=[0.25, 2.0])])
    found = mx.as_connectivity(parts, weight="w", count=count)
    assert found.w.data.data.tolist() == [1.0, 0.75, 4.0]
    if not more:
        synapses = mx.as_connectivity(twice, weight="w", rows="synapse")
        assert synapses.w.data.data.tolist() == [1.0, 1.0, 4.0]
        assert synapses.synapse_count.data.data.tolist() == [1, 2, 2]
    # A sparse matrix adds up its entries.
    matrix = scipy.sparse.coo_array(([1.0, 1.0], ([0, 0], [1, 1])), shape=(2, 2))
    assert mx.as_connectivity(matrix, pre=[11, 12], post=[11, 12]).weight.data.data.tolist() == [2]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_tables_in_files(tmp_path, suffix):
    """Also of ids that a float would round."""
    big = 864691135000000001
    neurons = pd.DataFrame({"neuron": [big, big + 1], "Kind": ["exc", "inh"], "x": [1.5, 2.5]})
    edges = pd.DataFrame({"source": [big], "target": [big + 1], "strength": [0.5]})
    files = {}
    for name, table in {"neurons": neurons, "edges": edges}.items():
        files[name] = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            table.to_parquet(files[name], index=False)
        else:
            table.to_csv(files[name], index=False)
    units = mx.as_units(str(files["neurons"]), id="neuron")
    xr.testing.assert_equal(units, mx.as_units(neurons, id="neuron"))
    assert units.nucleus_id.values.tolist() == [big, big + 1]
    names = {"pre": "source", "post": "target", "weight": "strength"}
    pairs = mx.as_connectivity(files["edges"], **names)
    assert mx.to_table(pairs).equals(mx.to_table(mx.as_connectivity(edges, **names)))
    ids = xr.Dataset(coords={"nucleus_id": [big, big + 1]})
    merged = mx.merge_table(ids, files["neurons"], key="neuron")
    assert merged.Kind.values.tolist() == ["exc", "inh"]
    with pytest.raises(mx.errors.SourceError, match=r"there is no file none\.csv"):
        mx.as_units("none.csv")
    with pytest.raises(mx.errors.SchemaError, match="expected a pandas DataFrame: read it with"):
        mx.build_connectivity("edges.csv", units)
