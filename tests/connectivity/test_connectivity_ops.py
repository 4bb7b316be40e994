"""Labelled operations on connectivity, against dense tables and plain loops."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import sparse
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import FIRST_ID, compress, dataset, dense, ids, random_tables, stored_pairs

import microns_xr as mx
import microns_xr.threads as threads_module
from microns_xr.connectivity.arrays import gcxs, make_pattern, pair_buffers, pattern_of
from microns_xr.connectivity.subset import recompress, take
from microns_xr.schema import validate

COMPRESSED = ("post", "pre")
few = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def threads_for_small_matrices():
    """Use both cores, though the matrices here are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads_module, "_WORTH_A_THREAD", 1)
        yield


def text(*words):
    return np.array(words, dtype=object)


def three(compressed="post"):
    """Neurons 11, 12, 13: 11 -> 12 of 700 in 2, 12 -> 13 of 0 in 1, 13 -> 13 of 9 in 1, 13 -> 11 of 5 in 3."""
    count = np.array([[0, 2, 0], [0, 0, 1], [3, 0, 1]])
    size = np.array([[0, 700, 0], [0, 0, 0], [5, 0, 9]])
    neurons = np.array([11, 12, 13])
    found = dataset(count > 0, size, count, compressed, neurons, neurons)
    found.attrs.update(history=["built"], dropped_synapses=["pre_zero: 1"])
    return found.assign_coords(
        pre_layer=("pre_nucleus_id", text("L4", "L5", "L4"), {"note": "by depth"}),
        post_layer=("post_nucleus_id", text("L4", "L5", "L4")),
    )


def three_units(version=1718):
    units = xr.Dataset(
        {
            "cell_type": ("nucleus_id", text("5P", "BC", "23P")),
            "position": (("nucleus_id", "axis"), np.arange(9.0).reshape(3, 3), {"units": "µm"}),
            "axon_proofread": ("nucleus_id", [True, True, False]),
            "session": ("nucleus_id", [4, 5, 6]),
            "pref_ori": ("nucleus_id", [1.0, 2.0, 3.0], {"units": "degree", "angle_convention": "up_clockwise"}),
            "rate_ori": (("nucleus_id", "orientation"), np.ones((3, 2))),
        },
        coords={"nucleus_id": [13, 99, 11], "axis": text("x", "y", "z")},
    )  # fmt: skip
    return mx.releases.stamp_release(units, "minnie65_public", version)


@pytest.fixture(params=COMPRESSED)
def connectivity(request):
    """Three neurons; afterwards nothing of it may have changed."""
    found = three(request.param)
    before = copy.deepcopy(found)
    yield found
    xr.testing.assert_identical(
        found.drop_vars(list(found.data_vars)), before.drop_vars(list(before.data_vars))
    )
    assert found.attrs == before.attrs
    for name in found.data_vars:
        np.testing.assert_array_equal(dense(found, name), dense(before, name))


def test_number_of_connections(connectivity):
    assert mx.n_connections(connectivity) == 4  # the pair of size 0 and the autapse too
    assert isinstance(mx.n_connections(connectivity), int)


def test_taking_labels(connectivity):
    found = take(connectivity, pre_ids=[13, 11], post_ids={11, 12})
    validate(found, "connectivity")
    assert found.pre_nucleus_id.values.tolist() == [11, 13]
    assert found.post_nucleus_id.values.tolist() == [11, 12]
    assert dense(found).tolist() == [[0, 700], [5, 0]]
    assert dense(found, "synapse_count").tolist() == [[0, 2], [3, 0]]
    assert found.pre_layer.values.tolist() == ["L4", "L4"]
    assert found.pre_layer.attrs == {"note": "by depth"}
    assert found.scope.item() == "requested"
    assert found.materialization_version.item() == 1718
    assert found.synapse_size.attrs == connectivity.synapse_size.attrs
    assert mx.releases.read_counts(found, "dropped_synapses") == {"pre_zero": 1}
    assert found.attrs["history"] == ["built", "take(pre_ids=2, post_ids=2)"]
    assert pattern_of(found).compressed == pattern_of(connectivity).compressed
    assert list(found.data_vars) == ["synapse_size", "synapse_count"]
    assert take(connectivity, post_ids=12).synapse_size.shape == (3, 1)
    two = three_units().isel(nucleus_id=[0, 2])
    assert take(connectivity, pre_ids=two).sizes["pre_nucleus_id"] == 2
    assert take(connectivity, pre_ids=[]).synapse_size.shape == (0, 3)
    assert dense(take(connectivity)).tolist() == dense(connectivity).tolist()


def test_taking_what_is_not_there(connectivity):
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"1 of 2 \(50.0%\) ids of post_ids .* such as 864"
    ):
        take(connectivity, post_ids=[11, FIRST_ID])
    with pytest.raises(mx.errors.SchemaError, match="pre_ids"):
        take(connectivity, pre_ids=[11.5])
    assert take(connectivity, pre_ids=[11.0]).pre_nucleus_id.values.tolist() == [11]
    with pytest.raises(mx.errors.SchemaError, match="found ndarray"):
        take(connectivity.synapse_size.data.todense(), pre_ids=[11])


def test_variables_of_ones_own_come_along(connectivity):
    pattern, values = pair_buffers(connectivity)
    own = connectivity.assign(
        mean=(("pre_nucleus_id", "post_nucleus_id"), gcxs(values["synapse_size"] / values["synapse_count"], pattern)),
        distance=(("pre_nucleus_id", "post_nucleus_id"), np.arange(9).reshape(3, 3)),
    )  # fmt: skip
    found = take(own, pre_ids=[11, 13], post_ids=[12])
    assert dense(found, "mean").tolist() == [[350.0], [0.0]]
    assert found.distance.values.tolist() == [[1], [7]]
    assert list(found.data_vars) == ["synapse_size", "synapse_count", "mean", "distance"]
    row = mx.inputs_to(own, 13)
    assert row["mean"].values.tolist() == [0.0, 9.0]
    assert row.distance.values.tolist() == [5, 8]
    assert mx.n_connections(mx.drop_autapses(own)) == 3


def test_connections_between_two_sets(connectivity):
    found = mx.select_connections(connectivity, pre=[13], post=[11, 13])
    assert dense(found).tolist() == [[5, 9]]
    assert found.scope.item() == "requested"


def test_connections_that_touch_either_set(connectivity):
    found = mx.select_connections(connectivity, pre=[11], post=[13], both=False)
    # 13 -> 11 is no longer there, and with it what is known of the inputs of 11
    assert found.scope.item() == "unknown"
    assert found.pre_nucleus_id.values.tolist() == [11, 12, 13]
    assert found.post_nucleus_id.values.tolist() == [12, 13]
    assert found.post_layer.values.tolist() == connectivity.post_layer.values[1:].tolist()
    assert stored_pairs(found).astype(int).tolist() == [[1, 0], [0, 1], [0, 1]]
    currents = mx.input_currents(found, xr.DataArray([1.0, 2.0], {"nucleus_id": [11, 12]}))
    assert currents.to_series().to_dict() == {12: 700.0, 13: 0.0}
    assert mx.n_connections(mx.select_connections(connectivity, post=[11], both=False)) == 1
    assert mx.n_connections(mx.select_connections(connectivity, both=False)) == 0
    with pytest.raises(mx.errors.UnknownLabelError):
        mx.select_connections(connectivity, pre=[11], post=[99], both=False)


def test_dropping_autapses(connectivity):
    found = mx.drop_autapses(connectivity)
    assert dense(found, "synapse_count").tolist() == [[0, 2, 0], [0, 0, 1], [3, 0, 0]]
    assert found.attrs["history"][-1].endswith("drop_autapses(): 1 dropped")
    other_axes = take(connectivity, pre_ids=[13], post_ids=[11, 13])
    assert dense(mx.drop_autapses(other_axes)).tolist() == [[5, 0]]


def test_inputs_and_outputs_of_one_neuron(connectivity):
    inputs = mx.inputs_to(connectivity, 13)
    assert inputs.synapse_size.dims == ("pre_nucleus_id",)
    assert inputs.pre_nucleus_id.values.tolist() == [12, 13]
    assert inputs.synapse_size.values.tolist() == [0, 9]
    assert inputs.synapse_count.values.tolist() == [1, 1]
    assert inputs.synapse_size.dtype == np.int64
    assert inputs.post_nucleus_id.item() == 13
    assert inputs.pre_layer.values.tolist() == ["L5", "L4"]
    assert inputs.post_layer.item() == "L4"
    assert inputs.materialization_version.item() == 1718
    assert inputs.synapse_size.attrs["units"] == "voxels of 4x4x40 nm"
    assert inputs.attrs["history"] == ["built", "inputs_to(13)"]
    outputs = mx.outputs_from(connectivity, np.int64(13))
    assert outputs.post_nucleus_id.values.tolist() == [11, 13]
    assert outputs.synapse_size.values.tolist() == [5, 9]
    assert outputs.pre_nucleus_id.item() == 13
    lonely = mx.outputs_from(take(connectivity, pre_ids=[11], post_ids=[11]), 11)
    assert lonely.synapse_size.shape == (0,)


def test_inputs_and_outputs_of_several_neurons(connectivity):
    inputs = mx.inputs_to(connectivity, [13])
    assert inputs.synapse_size.shape == (2, 1)
    assert dense(inputs).tolist() == [[0], [9]]
    outputs = mx.outputs_from(connectivity, [11, 13])
    assert outputs.post_nucleus_id.values.tolist() == [11, 12, 13]
    assert dense(outputs).tolist() == [[0, 700, 0], [5, 0, 9]]
    validate(outputs, "connectivity")
    with pytest.raises(mx.errors.UnknownLabelError, match="ids of pre_ids"):
        mx.outputs_from(connectivity, 99)


def test_recompressing(connectivity):
    for compressed in COMPRESSED:
        found = recompress(connectivity, compressed)
        assert pattern_of(found).compressed == compressed
        assert dense(found).tolist() == dense(connectivity).tolist()
        assert stored_pairs(found).tolist() == stored_pairs(connectivity).tolist()
        assert found.pre_layer.identical(connectivity.pre_layer)


def test_annotating(connectivity):
    variables = ["cell_type", "position", "axon_proofread", "session", "pref_ori"]
    found = mx.annotate(connectivity, three_units(), variables)
    assert found.pre_cell_type.values.tolist() == ["23P", "unknown", "5P"]
    assert found.pre_cell_type.dtype == object
    assert found.post_cell_type.values.tolist() == ["23P", "unknown", "5P"]
    assert found.post_cell_type.attrs["unmatched"] == 1
    np.testing.assert_array_equal(found.post_y.values, [7.0, np.nan, 1.0])
    assert found.pre_z.attrs["units"] == "µm"
    turned = three_units().isel(axis=[1, 2, 0])
    again = mx.annotate(connectivity, turned, "position")
    np.testing.assert_array_equal(again.post_y, found.post_y)
    assert found.pre_axon_proofread.values.tolist() == [False, False, True]
    assert found.pre_axon_proofread.dtype == bool
    assert found.post_session.values.tolist() == [6, -1, 4]
    assert found.pre_pref_ori.attrs["angle_convention"] == "up_clockwise"
    assert found.synapse_size.data is connectivity.synapse_size.data
    validate(found, "connectivity")
    with pytest.raises(mx.errors.SchemaError, match=r"already has .*'post_cell_type'\]"):
        mx.annotate(found, three_units(), "cell_type")
    changed = three_units().assign(cell_type=("nucleus_id", text("a", "b", "c")))
    replaced = mx.annotate(found, changed, "cell_type", overwrite=True)
    assert replaced.pre_cell_type.values.tolist() == ["c", "unknown", "a"]


def test_results_are_annotated_along_their_axes(connectivity):
    units = three_units()
    rates = xr.DataArray([1.0, 2.0, 4.0], {"nucleus_id": [11, 12, 13]})
    currents = mx.input_currents(connectivity.assign_coords(scope="complete"), rates)
    found = mx.annotate(currents, units, ["cell_type", "position"])
    new = ["post_cell_type", "post_x", "post_y", "post_z"]
    assert set(found.coords) - set(currents.coords) == set(new)
    xr.testing.assert_equal(found.drop_vars(new), currents)
    assert found.post_cell_type.values.tolist() == ["23P", "unknown", "5P"]
    means = found.groupby("post_cell_type").mean().to_series()
    assert means.to_dict() == dict(zip(["23P", "unknown", "5P"], currents.values, strict=True))
    # An annotation of the connectivity stays with the sums over it.
    of_annotated = mx.input_currents(mx.annotate(connectivity, units, "cell_type"), rates)
    assert of_annotated.post_cell_type.values.tolist() == found.post_cell_type.values.tolist()
    degrees = mx.annotate(mx.degrees(connectivity), units, "cell_type")
    for side, degree in (("post", "in_degree"), ("pre", "out_degree")):
        sums = degrees[degree].groupby(f"{side}_cell_type").sum()
        assert sums.sum() == mx.n_connections(connectivity)
    inputs = mx.annotate(mx.inputs_to(connectivity, 13), units, "cell_type")
    assert "pre_cell_type" in inputs.coords
    assert "post_cell_type" not in inputs.coords
    size = mx.annotate(connectivity.synapse_size, units, "cell_type")
    assert size.name == "synapse_size"
    assert {"pre_cell_type", "post_cell_type"} < set(size.coords)
    with pytest.raises(mx.errors.SchemaError, match="connectivity"):
        mx.annotate(units, units, "cell_type")


def test_what_cannot_be_annotated(connectivity):
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: cell_type"):
        mx.annotate(connectivity, three_units(), "celltype")
    with pytest.raises(mx.errors.SchemaError, match="rate_ori has dims"):
        mx.annotate(connectivity, three_units(), "rate_ori")
    with pytest.raises(mx.errors.SchemaError, match="nucleus_id has dims"):
        mx.annotate(connectivity, three_units(), "nucleus_id")
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.annotate(connectivity, three_units(661), "cell_type")
    unstated = three_units(661).drop_vars(["datastack", "materialization_version"])
    mx.annotate(connectivity, unstated, "cell_type")
    with pytest.raises(mx.errors.UnknownLabelError, match="none of the 3 neurons"):
        mx.annotate(connectivity, three_units().assign_coords(nucleus_id=[1, 2, 3]), "cell_type")
    with pytest.raises(mx.errors.SchemaError, match="repeats 1 labels"):
        mx.annotate(connectivity, three_units().assign_coords(nucleus_id=[11, 11, 13]), "cell_type")


def test_degrees_by_hand(connectivity):
    found = mx.degrees(connectivity)
    assert found.in_degree.values.tolist() == [1, 1, 2]
    assert found.in_size.values.tolist() == [5, 700, 9]
    assert found.in_synapses.values.tolist() == [3, 2, 2]
    assert found.out_degree.values.tolist() == [1, 1, 2]
    assert found.out_size.values.tolist() == [700, 0, 14]
    assert found.out_synapses.values.tolist() == [2, 1, 4]
    assert {v.dtype for v in found.data_vars.values()} == {np.dtype(np.int64)}
    assert found.in_size.dims == ("post_nucleus_id",)
    assert found.out_size.attrs["units"] == "voxels of 4x4x40 nm"
    assert found.post_layer.identical(connectivity.post_layer)
    assert found.attrs == {"history": ["built", "degrees()"]}


def test_groups_by_hand(connectivity):
    found = mx.group_connectivity(connectivity, "layer")
    assert found.synapse_size.dims == ("pre_layer", "post_layer")
    assert found.pre_layer.values.tolist() == ["L4", "L5"]
    assert found.synapse_size.values.tolist() == [[14, 700], [0, 0]]
    assert found.synapse_count.values.tolist() == [[4, 2], [1, 0]]
    assert found.n_connections.values.tolist() == [[2, 1], [1, 0]]
    assert found.n_pre.values.tolist() == found.n_post.values.tolist() == [2, 1]
    assert found.synapse_size.dtype == np.int64
    assert found.materialization_version.item() == 1718
    assert mx.group_connectivity(
        connectivity, {"pre": "pre_layer", "post": "post_layer"}
    ).identical(found)


def test_groups_of_labels_aligned_by_label(connectivity):
    cell_type = three_units().cell_type  # of 13, 99, 11
    found = mx.group_connectivity(connectivity, {"pre": cell_type, "post": "layer"})
    assert found.synapse_size.dims == ("pre_cell_type", "post_layer")
    assert found.pre_cell_type.values.tolist() == ["23P", "5P", "unknown"]
    assert found.synapse_size.values.tolist() == [[0, 700], [14, 0], [0, 0]]
    clusters = xr.DataArray([7, 3, 7], {"post_nucleus_id": [13, 12, 11]}, name="post_cluster")
    by_cluster = mx.group_connectivity(connectivity, {"pre": cell_type, "post": clusters})
    assert by_cluster.synapse_count.dims == ("pre_cell_type", "post_cluster")
    assert by_cluster.post_cluster.values.tolist() == [3, 7]
    assert by_cluster.synapse_count.values.tolist() == [[2, 0], [0, 4], [0, 1]]
    proofread = xr.DataArray([True, False, True], {"nucleus_id": [11, 12, 13]})
    assert (
        mx.group_connectivity(connectivity, {"pre": proofread, "post": "layer"}).sizes["pre_group"]
        == 2
    )


def test_labels_that_do_not_group(connectivity, monkeypatch):
    units = three_units()
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"no variable 'pre_laier'.* nearest: pre_layer"
    ):
        mx.group_connectivity(connectivity, {"pre": "laier", "post": "layer"})
    with pytest.raises(
        mx.errors.SchemaError, match=r"1 of 3 neurons of pre_nucleus_id have no label 'session'"
    ):
        mx.group_connectivity(connectivity, {"pre": units.session, "post": "layer"})
    with pytest.raises(mx.errors.SchemaError, match="dtype float64"):
        mx.group_connectivity(
            connectivity,
            {"pre": units.pref_ori.assign_coords(nucleus_id=[11, 12, 13]), "post": "layer"},
        )
    with pytest.raises(mx.errors.SchemaError, match="expected one label per neuron"):
        mx.group_connectivity(connectivity, {"pre": units.rate_ori, "post": "layer"})
    with pytest.raises(mx.errors.UnknownLabelError, match="no variable 'pre_L4'"):
        mx.group_connectivity(connectivity, {"pre": ["L4"], "post": "layer"})
    with pytest.raises(mx.errors.UnknownLabelError, match="none of the 3 neurons"):
        mx.group_connectivity(
            connectivity,
            {"pre": units.cell_type.assign_coords(nucleus_id=[1, 2, 3]), "post": "layer"},
        )
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.group_connectivity(connectivity, {"pre": three_units(661).cell_type, "post": "layer"})
    monkeypatch.setattr("microns_xr.analysis.populations._MAX_CELLS", 3)
    with pytest.raises(mx.errors.SchemaError, match="2 x 2 groups"):
        mx.group_connectivity(connectivity, "layer")


def test_sizes_and_counts_on_different_pairs_are_refused(connectivity):
    mixed = connectivity.assign(synapse_count=mx.drop_autapses(connectivity).synapse_count)
    message = "synapse_count and synapse_size store different pairs"
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.degrees(mixed)
    with pytest.raises(mx.errors.SchemaError, match="store different pairs"):
        take(mixed, pre_ids=[11])


def test_equal_patterns_in_different_buffers_are_fine(connectivity):
    mixed = connectivity.assign(
        synapse_count=pickle.loads(pickle.dumps(connectivity.synapse_count))
    )
    assert mixed.synapse_count.data.indices is not mixed.synapse_size.data.indices
    assert mx.degrees(mixed).identical(mx.degrees(connectivity))


def test_sparse_arrays_in_coordinate_form_are_taken(connectivity):
    as_coo = connectivity.map(lambda v: v.copy(data=v.data.tocoo()), keep_attrs=True)
    assert isinstance(as_coo.synapse_size.data, sparse.COO)
    assert mx.degrees(as_coo).identical(mx.degrees(connectivity))


def test_another_fill_value_is_refused(connectivity):
    with pytest.raises(mx.errors.SchemaError, match="fill value True"):
        pattern_of(connectivity.synapse_size == 0)


@few
@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.sampled_from(COMPRESSED))
def test_every_operation_against_dense_tables(seed, n_pre, n_post, compressed):
    rng = np.random.default_rng(seed)
    stored, size, count = random_tables(rng, n_pre, n_post, 0.5)
    post_ids = ids(n_post, FIRST_ID + 3 * int(rng.integers(-4, 5)))
    found = dataset(stored, size, count, compressed, post_ids=post_ids)
    pre_ids = found.pre_nucleus_id.values

    pre_kept, post_kept = rng.random(n_pre) < 0.6, rng.random(n_post) < 0.6
    part = take(found, pre_ids[pre_kept], post_ids[post_kept])
    np.testing.assert_array_equal(stored_pairs(part), stored[pre_kept][:, post_kept])
    np.testing.assert_array_equal(dense(part), size[pre_kept][:, post_kept])
    np.testing.assert_array_equal(dense(part, "synapse_count"), count[pre_kept][:, post_kept])

    either = mx.select_connections(
        found, pre=pre_ids[pre_kept], post=post_ids[post_kept], both=False
    )
    touched = stored & (pre_kept[:, None] | post_kept)
    np.testing.assert_array_equal(either.pre_nucleus_id, pre_ids[touched.any(axis=1)])
    np.testing.assert_array_equal(either.post_nucleus_id, post_ids[touched.any(axis=0)])
    np.testing.assert_array_equal(
        stored_pairs(either), touched[touched.any(axis=1)][:, touched.any(axis=0)]
    )

    no_autapses = mx.drop_autapses(found)
    np.testing.assert_array_equal(
        stored_pairs(no_autapses), stored & (pre_ids[:, None] != post_ids)
    )

    totals = mx.degrees(found)
    for prefix, axis in (("in", 0), ("out", 1)):
        np.testing.assert_array_equal(totals[f"{prefix}_degree"], stored.sum(axis=axis))
        np.testing.assert_array_equal(totals[f"{prefix}_size"], size.sum(axis=axis))
        np.testing.assert_array_equal(totals[f"{prefix}_synapses"], count.sum(axis=axis))

    for j, nucleus in enumerate(post_ids):
        inputs = mx.inputs_to(found, int(nucleus))
        np.testing.assert_array_equal(inputs.pre_nucleus_id, pre_ids[stored[:, j]])
        np.testing.assert_array_equal(inputs.synapse_size, size[stored[:, j], j])
    for i, nucleus in enumerate(pre_ids):
        outputs = mx.outputs_from(found, int(nucleus))
        np.testing.assert_array_equal(outputs.post_nucleus_id, post_ids[stored[i]])
        np.testing.assert_array_equal(outputs.synapse_count, count[i, stored[i]])

    for function, chosen, some, tables, other in (
        (mx.inputs_to, post_kept, post_ids, (stored.T, size.T, count.T), "pre_nucleus_id"),
        (mx.outputs_from, pre_kept, pre_ids, (stored, size, count), "post_nucleus_id"),
    ):
        several = function(found, some[chosen])
        partners = tables[0][chosen].any(axis=0)
        np.testing.assert_array_equal(several[other], found[other][partners])
        validate(several, "connectivity")
        assert several.synapse_size.data.compressed_axes == found.synapse_size.data.compressed_axes
        by_one = [pairs.T if function is mx.inputs_to else pairs for pairs in (
            stored_pairs(several), dense(several), dense(several, "synapse_count")
        )]  # fmt: skip
        for pairs, table in zip(by_one, tables, strict=True):
            np.testing.assert_array_equal(pairs, table[chosen][:, partners])

    words = text("a", "b", "c")
    pre_words, post_words = words[rng.integers(0, 3, n_pre)], words[rng.integers(0, 3, n_post)]
    grouped = mx.group_connectivity(
        found.assign_coords(pre_t=("pre_nucleus_id", pre_words), post_t=("post_nucleus_id", post_words)),
        "t",
    )  # fmt: skip
    for a in grouped.pre_t.values:
        for b in grouped.post_t.values:
            cell = np.ix_(pre_words == a, post_words == b)
            here = grouped.sel(pre_t=a, post_t=b)
            assert here.n_connections == stored[cell].sum()
            assert here.synapse_size == size[cell].sum()
            assert here.synapse_count == count[cell].sum()
    assert int(grouped.n_pre.sum()) == n_pre

    turned = recompress(found, "pre" if compressed == "post" else "post")
    again = recompress(turned, compressed)
    for name in ("synapse_size", "synapse_count"):
        np.testing.assert_array_equal(dense(turned, name), dense(found, name))
        np.testing.assert_array_equal(again[name].data.data, found[name].data.data)


def test_a_pattern_is_cast_to_narrow_indices():
    stored = np.array([[True, False], [True, True]])
    indices, indptr = compress(stored)
    pattern = make_pattern(indices.astype(np.int64), indptr.astype(np.int64), (2, 2), "pre")
    assert pattern.indices.dtype == pattern.indptr.dtype == np.int32
    assert (pattern.nnz, pattern.n_major, pattern.n_minor) == (3, 2, 2)
