"""Contraction: alignment by label, missing values, both axes, against loops and scipy."""

from __future__ import annotations

import copy
import platform

import numpy as np
import pytest
import sparse
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_examples import make_units
from matrices import contract_scipy, dataset, dense, ids, random_tables

import microns_xr as mx
import microns_xr.threads as threads_module
from microns_xr.connectivity.arrays import gcxs, pair_buffers
from microns_xr.connectivity.sort import check_sorted
from microns_xr.connectivity.subset import recompress, take

COMPRESSED = ("post", "pre")
PRE, POST = "pre_nucleus_id", "post_nucleus_id"
N = np.array([11, 12, 13])


@pytest.fixture(autouse=True, scope="module")
def threads_for_small_matrices():
    """Use both cores, though the matrices here are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads_module, "_WORTH_A_THREAD", 1)
        yield


def rates(table, neurons=N, version=1718, dims=("nucleus_id", "orientation"), **attrs):
    found = xr.DataArray(
        np.asarray(table, dtype=float),
        dims=dims,
        coords={dims[0]: neurons},
        name="rate_ori",
        attrs={"units": "spikes/s", **attrs},
    )
    if "orientation" in dims:
        angles = xr.Variable(
            "orientation", [0.0, 90.0], {"units": "degree", "angle_convention": "up_clockwise"}
        )
        found = found.assign_coords(orientation=angles)
    return mx.releases.stamp_release(found, "minnie65_public", version)


@pytest.fixture(params=COMPRESSED)
def connectivity(request):
    """11 -> 12 of 700, 12 -> 13 of 0, 13 -> 13 of 9, 13 -> 11 of 5; afterwards nothing has changed."""
    count = np.array([[0, 2, 0], [0, 0, 1], [3, 0, 1]])
    size = np.array([[0, 700, 0], [0, 0, 0], [5, 0, 9]])
    found = dataset(count > 0, size, count, request.param, N, N)
    found = found.assign_coords(post_layer=(POST, np.array(["L4", "L5", "L4"], dtype=object)))
    found.attrs["history"] = "built"
    before = copy.deepcopy(found)
    yield found
    assert found.attrs == before.attrs
    assert found.coords.equals(before.coords)
    np.testing.assert_array_equal(dense(found), dense(before))


def test_input_currents_by_hand(connectivity):
    values = rates([[1, 10], [2, 20], [3, 30]])
    before = values.copy(deep=True)
    found = mx.input_currents(connectivity, values)
    assert found.name == "input_current"
    assert found.dims == (POST, "orientation")
    assert found.dtype == np.float64
    assert found.values.tolist() == [[15, 150], [700, 7000], [27, 270]]
    assert found.rated_fraction.values.tolist() == [1, 1, 1]
    assert found.rated_fraction.dims == (POST,)
    assert found.orientation.variable.identical(values.orientation.variable)
    for name in (POST, "post_layer"):
        assert found[name].variable.identical(connectivity[name].variable)
    assert PRE not in found.coords
    assert found.scope.item() == "requested"
    assert found.materialization_version.item() == 1718
    assert found.attrs["units"] == "voxels of 4x4x40 nm × spikes/s"
    assert found.attrs["history"][0] == "built"
    assert (found.attrs["n_missing"], found.attrs["n_outside"]) == (0, 0)
    xr.testing.assert_identical(values, before)
    counts = mx.input_currents(connectivity, values, weight="synapse_count")
    assert counts.values.tolist() == [[9, 90], [2, 20], [5, 50]]
    assert counts.attrs["units"] == "synapses × spikes/s"


def test_the_other_contraction_by_hand(connectivity):
    found = mx.contract(connectivity, rates([[1, 10], [2, 20], [3, 30]]), POST)
    assert found.dims == (PRE, "orientation")
    assert found.values.tolist() == [[1400, 14000], [0, 0], [32, 320]]
    assert "rated_fraction" not in found.coords
    assert "post_layer" not in found.coords
    assert found.name == "weighted_rate_ori"
    assert "postsynaptic" in found.attrs["long_name"]


def test_neurons_without_a_rate(connectivity):
    nan = np.nan
    found = mx.input_currents(connectivity, rates([[1, 10], [2, 20], [nan, nan]]))
    # 11 has only the unrated 13; 13 has 12 with size 0, which is rated, and 13 with 9
    np.testing.assert_array_equal(found.values, [[nan, nan], [700, 7000], [0, 0]])
    np.testing.assert_array_equal(found.rated_fraction, [0, 1, 0])
    assert found.attrs["n_missing"] == 1
    some = mx.input_currents(connectivity, rates([[3, 30], [1, 10]], [13, 11]))
    np.testing.assert_array_equal(some.values, [[15, 150], [700, 7000], [27, 270]])
    np.testing.assert_array_equal(some.rated_fraction, [1, 1, 1])
    alone = mx.input_currents(connectivity, rates([[2, 20]], [12]))
    np.testing.assert_array_equal(alone.values, [[nan, nan], [nan, nan], [0, 0]])
    np.testing.assert_array_equal(alone.rated_fraction, [0, 0, 0])


def test_neurons_without_synapses(connectivity):
    part = mx.drop_autapses(take(connectivity, pre_ids=[12, 13], post_ids=[12, 13]))
    found = mx.input_currents(part, rates([[2, 20], [3, 30]], [12, 13]))
    # 12 has no synapse: nothing flows. 13 has one of size 0: nothing either, and no weight to rate
    np.testing.assert_array_equal(found.values, [[0, 0], [0, 0]])
    np.testing.assert_array_equal(found.rated_fraction, [np.nan, np.nan])
    unrated = mx.input_currents(part, rates([[3, 30]], [13]))
    np.testing.assert_array_equal(unrated.values, [[0, 0], [np.nan, np.nan]])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_neuron_without_synapses_of_an_unknown_scope_has_no_sum(connectivity, tmp_path, lazy):
    # As in a store of early versions, whose axes hold all units: nothing is stored for 12 <- any.
    part = mx.drop_autapses(take(connectivity, pre_ids=[12, 13], post_ids=[11, 12, 13]))
    part = part.assign_coords(scope=xr.Variable((), np.array("unknown", dtype=object)))
    if lazy:
        mx.write_store(tmp_path / "old.zarr", units=make_units(3), connectivity=part)
        part = mx.open_store(tmp_path / "old.zarr", lazy=True)["connectivity"].to_dataset()
    nan, values = np.nan, rates([[1, 10], [2, 20], [3, 30]])
    expected = [[15, 150], [nan, nan], [0, 0]]
    found = mx.input_currents(part, values)
    np.testing.assert_array_equal(found.values, expected)
    np.testing.assert_array_equal(found.rated_fraction, [1, nan, nan])
    assert found.scope.item() == "unknown"
    plain = mx.contract(part, values, PRE)
    np.testing.assert_array_equal(plain.values, expected)
    assert "rated_fraction" not in plain.coords
    onto_11 = mx.select_connections(part, post=[11])
    for missing in ("raise", "skip"):
        outputs = mx.contract(onto_11, values, POST, missing=missing)
        np.testing.assert_array_equal(outputs.values, [[nan, nan], [5, 50]])
    known = part.assign_coords(scope=connectivity.scope)
    np.testing.assert_array_equal(mx.input_currents(known, values)[1], [0, 0])


def test_missing_values_raise_unless_they_are_to_be_skipped(connectivity):
    values = rates([[1, 10], [np.nan, np.nan], [3, 30]])
    message = "1 of 3 neurons of post_nucleus_id have no value in rate_ori"
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.contract(connectivity, values, POST)
    with pytest.raises(mx.errors.SchemaError, match="2 of 3 neurons of pre_nucleus_id"):
        mx.contract(connectivity, values[:1], PRE)
    found = mx.contract(connectivity, values, POST, missing="skip")
    np.testing.assert_array_equal(found.values, [[np.nan, np.nan], [0 * 3, 0], [32, 320]])
    np.testing.assert_array_equal(found.rated_fraction, [0, np.nan, 1])
    assert found.rated_fraction.dims == (PRE,)


def test_labels_outside_the_matrix_are_counted(connectivity):
    values = rates(np.arange(10.0).reshape(5, 2), [99, 13, 12, 11, 10])
    found = mx.contract(connectivity, values, PRE)
    assert found.attrs["n_outside"] == 2
    xr.testing.assert_equal(
        found, mx.contract(connectivity, values.isel(nucleus_id=[3, 2, 1]), PRE)
    )


def test_values_without_further_dims_and_with_several(connectivity):
    one = rates([1, 2, 3], dims=("nucleus_id",))
    assert mx.contract(connectivity, one, PRE).values.tolist() == [15, 700, 27]
    assert mx.contract(connectivity, one, PRE).dims == (POST,)
    table = np.random.default_rng(0).normal(size=(2, 3, 5))
    several = mx.releases.stamp_release(
        xr.DataArray(table, dims=("fold", PRE, "time"), coords={PRE: N, "time": np.arange(5)}),
        "minnie65_public",
        1718,
    )
    found = mx.contract(connectivity, several, PRE)
    assert found.dims == (POST, "fold", "time")
    assert found.name == "weighted_values"
    assert found.time.values.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found, np.einsum("ij,fit->jft", dense(connectivity), table))
    none = mx.contract(connectivity, several.isel(time=slice(0, 0)), PRE)
    assert none.shape == (3, 2, 0)
    single = mx.contract(connectivity, several.isel(fold=0).assign_coords(fold=7), PRE)
    assert single.fold.item() == 7


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float16", "float32"])
def test_values_of_any_numeric_dtype(connectivity, dtype):
    values = rates([[1, 0], [0, 1], [1, 1]]).astype(dtype, keep_attrs=True)
    found = mx.contract(connectivity, values, PRE)
    assert found.dtype == np.float64
    assert found.values.tolist() == [[5, 5], [700, 0], [9, 9]]


def test_weights_of_ones_own(connectivity):
    pattern, values = pair_buffers(connectivity)
    mean = gcxs(values["synapse_size"] / values["synapse_count"], pattern)
    own = connectivity.assign(mean=((PRE, POST), mean, {"units": "voxels"}))
    found = mx.contract(own, rates([[1, 10], [2, 20], [3, 30]]), PRE, weight="mean")
    assert found.values.tolist() == [[5, 50], [350, 3500], [27, 270]]
    assert found.attrs["units"] == "voxels × spikes/s"
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"no weight 'sinapse_size'.* nearest: synapse_size"
    ):
        mx.contract(own, rates([[1, 10]] * 3), PRE, weight="sinapse_size")


def test_units_of_the_result(connectivity):
    for units, expected in (
        ("1", "voxels of 4x4x40 nm"),
        (None, "voxels of 4x4x40 nm × units of rate_ori"),
    ):
        values = rates([[1, 10]] * 3)
        values.attrs = {} if units is None else {"units": units}
        assert mx.contract(connectivity, values, PRE).attrs["units"] == expected


def _bad_values():
    good = rates([[1, 10], [2, 20], [3, 30]])
    partly, infinite = good.copy(deep=True), good.copy(deep=True)
    partly[1, 0] = np.nan
    infinite[2, 1] = -np.inf
    both = good.expand_dims({POST: N})
    return {
        "NaN in part": (partly, "partly NaN for 1 neurons, such as 12"),
        "infinite": (infinite, "infinite for 1 neurons, such as 13"),
        "repeated": (good.isel(nucleus_id=[0, 1, 1, 2]), "nucleus_id of rate_ori repeats 1 labels"),
        "no index": (good.drop_vars("nucleus_id"), "no coordinate 'nucleus_id'"),
        "float ids": (good.assign_coords(nucleus_id=[11.0, 12.0, 13.0]), "dtype float64"),
        "of units recorded": (good.rename(nucleus_id="scan_unit"), "mx.tuning.collapse_scans"),
        "neither dim": (good.rename(nucleus_id="neuron"), "expected exactly one of"),
        "both dims": (both, "expected exactly one of"),
        "the other axis": (good.rename(nucleus_id=POST), "is over 'post_nucleus_id' but the sum is over 'pre"),
        "text": (good.astype(str).astype(object), "dtype object, expected numbers"),
        "complex": (good * 1j, "dtype complex128"),
        "a Dataset": (good.to_dataset().assign(layer=("nucleus_id", list("abc"))), r"pass one of its variables \['rate_ori'\]"),
        "an array": (good.values, "ndarray, expected a DataArray"),
    }  # fmt: skip


@pytest.mark.parametrize(("values", "message"), _bad_values().values(), ids=_bad_values())
def test_bad_values(connectivity, values, message):
    for function in (
        lambda: mx.contract(connectivity, values, PRE),
        lambda: mx.input_currents(connectivity, values),
    ):
        with pytest.raises(mx.errors.SchemaError, match=message):
            function()


@pytest.mark.parametrize("n_columns", [2, 8, 17, 40])
@pytest.mark.parametrize("in_order", [True, False])
def test_bad_values_in_any_column(connectivity, n_columns, in_order):
    table = np.arange(1.0, 3 * n_columns + 1).reshape(3, n_columns)
    good = rates(table, dims=("nucleus_id", "frame"))
    for column in range(n_columns):
        for bad, message in ((np.nan, "partly NaN for 1"), (np.inf, "infinite for 1")):
            values = good.copy(deep=True)
            values[1, column] = bad
            with pytest.raises(mx.errors.SchemaError, match=f"{message} neurons, such as 12"):
                mx.input_currents(connectivity, values if in_order else values[::-1])


def test_values_of_other_neurons_may_be_anything(connectivity):
    """Only what is used is checked."""
    good = rates([[1, 10], [2, 20], [3, 30]])
    others = rates([[np.inf, 1], [np.nan, 1]], [5, 99])
    found = mx.input_currents(connectivity, xr.concat([others, good], "nucleus_id"))
    np.testing.assert_array_equal(found, mx.input_currents(connectivity, good))
    assert found.attrs["n_outside"] == 2


def test_large_finite_values_are_not_taken_for_infinite(connectivity):
    found = mx.contract(connectivity, rates([[1e300, 0], [0, 0], [1, 1]]), PRE)
    assert found.values[1].tolist() == [700 * 1e300, 0]


def test_bad_arguments(connectivity):
    values = rates([[1, 10], [2, 20], [3, 30]])
    with pytest.raises(mx.errors.SchemaError, match="over is 'pre'"):
        mx.contract(connectivity, values, "pre")
    with pytest.raises(mx.errors.SchemaError, match="missing is 'drop'"):
        mx.contract(connectivity, values, PRE, missing="drop")
    of_array = mx.contract(connectivity.synapse_size, values, PRE)
    np.testing.assert_array_equal(of_array, mx.contract(connectivity, values, PRE))
    with pytest.raises(mx.errors.SchemaError, match="the connectivity comes first"):
        mx.input_currents(values.to_dataset(name="rate"), connectivity)
    with pytest.raises(mx.errors.SchemaError, match="connectivity is a ndarray"):
        mx.contract(connectivity.synapse_size.data.todense(), values, PRE)
    with pytest.raises(
        mx.errors.UnknownLabelError,
        match=r"none of the 3 neurons of pre_nucleus_id .* not root ids",
    ):
        mx.contract(connectivity, values.assign_coords(nucleus_id=ids(3)), PRE)
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match="v1718 but values is of minnie65_public v661"
    ):
        mx.contract(connectivity, rates([[1, 10]] * 3, version=661), PRE)
    unstated = rates([[1, 10]] * 3, version=661).drop_vars(["datastack", "materialization_version"])
    other = mx.contract(connectivity, unstated, PRE)
    assert other.materialization_version.item() == 1718


def test_pairs_out_of_order_are_refused_where_they_matter():
    size = np.ones((4, 4), dtype=np.int64)
    found = dataset(size > 0, size, size, "pre", ids(4), ids(4))
    found.synapse_size.data.indices[:4] = [3, 1, 0, 2]
    values = rates(np.ones((4, 2)), ids(4))
    with pytest.raises(mx.errors.SchemaError, match="not in ascending order"):
        mx.contract(found, values, PRE)


def _random(seed, n=200, density=0.2, compressed="post"):
    rng = np.random.default_rng(seed)
    found = dataset(*random_tables(rng, n, n, density), compressed)
    return found, rates(rng.normal(size=(n, 2)), ids(n)), rng


@pytest.mark.parametrize("compressed", COMPRESSED)
def test_scipy_gives_the_same_bits(compressed):
    found, values, _ = _random(2, compressed=compressed)
    values[::3] = np.nan
    pattern, stored = pair_buffers(found)
    rows = np.where(np.isnan(values[:, 0]), -1, np.arange(values.shape[0]))
    buffers = (stored["synapse_size"], pattern.indices, pattern.indptr, pattern.n_minor)
    for over in (PRE, POST):
        axis = "major" if over.startswith(compressed) else "minor"
        sums, share, partners = contract_scipy(*buffers, values.values, rows, over=axis)
        result = mx.contract(found, values, over, missing="skip")
        # Elsewhere the compiler of scipy may fuse products and sums.
        rtol = 0 if platform.machine() in ("x86_64", "AMD64") else 1e-12
        expected = np.where((partners == 1)[:, None], np.nan, sums)
        np.testing.assert_allclose(result, expected, rtol=rtol)
        np.testing.assert_allclose(result.rated_fraction, share, rtol=rtol)


def test_the_order_of_labels_in_values_changes_nothing():
    found, values, rng = _random(3)
    values[::4] = np.nan
    expected = mx.input_currents(found, values)
    for _ in range(3):
        shuffled = values.isel(nucleus_id=rng.permutation(values.sizes["nucleus_id"]))
        xr.testing.assert_identical(mx.input_currents(found, shuffled), expected)


@pytest.mark.parametrize("compressed", COMPRESSED)
def test_total_current_is_conserved(compressed):
    found, values, _ = _random(4, compressed=compressed)
    total = mx.input_currents(found, values).sum(POST)
    expected = mx.degrees(found).out_size.values @ values.values
    np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_compressing_the_other_axis_changes_no_bit():
    found, values, _ = _random(5)
    values[::5] = np.nan
    for over in (PRE, POST):
        a = mx.contract(found, values, over, missing="skip")
        b = mx.contract(recompress(found, "pre"), values, over, missing="skip")
        xr.testing.assert_identical(a, b)


def test_values_in_dask_are_computed():
    found, values, _ = _random(6)
    xr.testing.assert_identical(
        mx.input_currents(found, values.chunk(nucleus_id=50)), mx.input_currents(found, values)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.integers(1, 10),
    st.sampled_from(COMPRESSED), st.sampled_from([PRE, POST]),
)  # fmt: skip
def test_against_a_loop_over_a_dictionary(seed, n_pre, n_post, n_columns, compressed, over):
    rng = np.random.default_rng(seed)
    stored, size, count = random_tables(rng, n_pre, n_post, 0.5)
    post_ids = ids(n_post) + 1
    found = dataset(stored, size, count, compressed, post_ids=post_ids)
    own, other = (found[PRE].values, post_ids) if over == PRE else (post_ids, found[PRE].values)
    # some neurons unrated, some without a row, some rows of strangers, all shuffled
    table = {int(i): rng.integers(-9, 9, n_columns).astype(float) for i in rng.permutation(own)}
    for i in own[rng.random(own.size) < 0.3]:
        table[int(i)] = np.full(n_columns, np.nan)
    for i in own[1:][rng.random(own.size - 1) < 0.3]:
        del table[int(i)]
    table[7] = np.ones(n_columns)
    values = rates(np.stack(list(table.values())), list(table), dims=("nucleus_id", "k"))
    result = mx.contract(found, values, over, missing="skip")

    for j, neuron in enumerate(other.tolist()):
        pairs = [
            (int(p), int(size[i, j] if over == PRE else size[j, i]))
            for i, p in enumerate(own)
            if (stored[i, j] if over == PRE else stored[j, i])
        ]
        rated = [(p, w) for p, w in pairs if p in table and not np.isnan(table[p]).any()]
        here = result.sel({POST if over == PRE else PRE: neuron})
        if pairs and not rated:
            assert np.isnan(here).all()
        else:
            expected = sum((w * table[p] for p, w in rated), start=np.zeros(n_columns))
            np.testing.assert_array_equal(here, expected)  # whole numbers: exact
        total = sum(w for _, w in pairs)
        share = sum(w for _, w in rated) / total if total else np.nan
        np.testing.assert_allclose(here.rated_fraction, share, rtol=1e-15)


def path_example(compressed="post", **scope):
    """11 -> 12 of 1, 11 -> 13 of 10, 12 -> 11 of 100, 12 -> 13 of 1000, 13 -> 11 of 10000."""
    size = np.array([[0, 1, 10], [100, 0, 1000], [10000, 0, 0]])
    found = dataset(size > 0, size, (size > 0).astype(int), compressed, N, N)
    words = np.array(["L2/3", "L4", "L5"], dtype=object)
    return found.assign_coords(pre_layer=(PRE, words), post_layer=(POST, words), **scope)


TWO_STEPS = (POST, PRE)


@pytest.mark.parametrize("compressed", COMPRESSED)
@pytest.mark.parametrize("other", COMPRESSED)
def test_two_step_paths_by_hand(compressed, other):
    first, second = path_example(compressed), path_example(other)
    found = mx.contract(first, second, TWO_STEPS)
    assert found.dims == (PRE, POST)
    assert found.dtype == np.int64
    expected = [[100100, 0, 1000], [10000000, 100, 1000], [0, 10000, 100000]]
    np.testing.assert_array_equal(found.data.todense(), expected)
    assert found.sel({PRE: 11}).values.tolist() == [100100, 0, 1000]
    assert found.sel({POST: 13}).values.tolist() == [1000, 1000, 100000]
    # labels of either axis, release and scope go with it, and so does the package
    assert found.pre_layer.values.tolist() == found.post_layer.values.tolist()
    assert found.pre_layer.dims == (PRE,)
    assert (found.scope.item(), found.materialization_version.item()) == ("requested", 1718)
    assert found.attrs["units"] == "voxels of 4x4x40 nm × voxels of 4x4x40 nm"
    part = mx.contract(first, second.synapse_size, TWO_STEPS)
    np.testing.assert_array_equal(part.data.todense(), expected)
    table = mx.contract(first, rates([[1, 10], [2, 20], [3, 30]]), POST)
    again = mx.contract(first.assign(synapse_size=found), rates([[1, 10], [2, 20], [3, 30]]), POST)
    then = mx.contract(first, table.rename({PRE: "nucleus_id"}), POST)
    np.testing.assert_array_equal(again, then)


def test_common_input_and_common_targets_by_hand():
    connectivity = path_example()
    dense_size = dense(connectivity)
    common = mx.contract(connectivity, connectivity, PRE)
    np.testing.assert_array_equal(common.data.todense(), dense_size.T @ dense_size)
    assert common.sel({PRE: 11, POST: 13}).item() == 100 * 1000  # both get input from 12
    targets = mx.contract(connectivity, connectivity, POST)
    np.testing.assert_array_equal(targets.data.todense(), dense_size @ dense_size.T)
    # the number of neurons that connect to both
    shared = connectivity.synapse_count > 0
    number = mx.contract(shared.to_dataset(name="any"), shared, PRE, weight="any")
    assert number.dtype == np.int64
    np.testing.assert_array_equal(number.data.todense(), [[2, 0, 1], [0, 1, 1], [1, 1, 2]])
    # rows are the postsynaptic neurons of the first, whose labels are renamed with them
    part = mx.select_connections(connectivity, post=[12, 13])
    found = mx.contract(part, connectivity, PRE)
    assert found[PRE].values.tolist() == [12, 13]
    assert found.pre_layer.values.tolist() == ["L4", "L5"]
    assert found.post_layer.values.tolist() == ["L2/3", "L4", "L5"]
    np.testing.assert_array_equal(found.data.todense(), (dense_size.T @ dense_size)[1:])


def test_the_plain_product_is_in_order():
    size = path_example().synapse_size
    middle = size.drop_vars(["pre_layer", "post_layer"])
    paths = xr.dot(middle.rename({POST: "middle"}), middle.rename({PRE: "middle"}), dim="middle")
    assert paths.sel({PRE: 11}).values.tolist() == [100100, 0, 1000]
    xr.testing.assert_equal(
        paths.drop_vars("scope"),
        mx.contract(size, size, TWO_STEPS).drop_vars(["scope", "pre_layer", "post_layer"]),
    )


def test_neurons_in_the_middle_that_are_missing():
    connectivity = path_example()
    axons = mx.select_connections(connectivity, pre=[12, 13])
    with pytest.raises(
        mx.errors.SchemaError, match=r"1 of 3 neurons of post_nucleus_id .* missing='skip'"
    ):
        mx.contract(connectivity, axons, TWO_STEPS)
    found = mx.contract(
        mx.select_connections(connectivity, pre=[12, 13]), axons, TWO_STEPS, missing="skip"
    )
    np.testing.assert_array_equal(found.data.todense(), [[10000000, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(found.rated_fraction, [1000 / 1100, 0])
    assert (found.attrs["n_missing"], found.attrs["n_outside"]) == (1, 0)
    # a neuron without a pair would add nothing: 12 has no input from 13
    last = mx.select_connections(connectivity, pre=[13], post=[11, 12])
    only_11 = mx.select_connections(connectivity, pre=[11])
    found = mx.contract(last, only_11, TWO_STEPS)
    assert found.data.todense().tolist() == [[0, 10000, 100000]]
    assert found.attrs["n_missing"] == 0


def test_scope_release_and_numbers_of_a_product():
    connectivity = path_example()
    unknown = connectivity.assign_coords(scope=xr.Variable((), np.array("unknown", dtype=object)))
    complete = connectivity.assign_coords(scope=xr.Variable((), np.array("complete", dtype=object)))
    for pair, scope in (
        ((unknown, connectivity), "unknown"),
        ((complete, unknown), "unknown"),
        ((complete, connectivity), "requested"),
        ((complete, complete), "complete"),
    ):
        assert mx.contract(*pair, TWO_STEPS).scope.item() == scope
    other = mx.releases.stamp_release(connectivity, "minnie65_public", 661)
    with pytest.raises(mx.errors.ReleaseMismatchError, match="661"):
        mx.contract(connectivity, other, TWO_STEPS)
    half = connectivity.assign(synapse_size=connectivity.synapse_size / 2)
    found = mx.contract(half, connectivity, TWO_STEPS)
    assert found.dtype == np.float64
    assert found.sel({PRE: 11, POST: 13}).item() == 500
    large = connectivity.assign(synapse_size=connectivity.synapse_size * 10**8)
    with pytest.raises(mx.errors.SchemaError, match="int64 cannot hold"):
        mx.contract(large, large, TWO_STEPS)
    assert (
        mx.contract(large, large.astype(float), TWO_STEPS).sel({PRE: 12, POST: 11}).item() == 1e23
    )
    values = rates([[1, 10], [2, 20], [3, 30]])
    with pytest.raises(mx.errors.SchemaError, match="two axes"):
        mx.contract(connectivity, values, TWO_STEPS)
    renamed = connectivity.synapse_size.rename({PRE: "nucleus_id"})
    with pytest.raises(mx.errors.SchemaError, match="product with another connectivity"):
        mx.contract(connectivity, renamed, POST)
    with pytest.raises(mx.errors.SchemaError, match="expected exactly one of"):
        mx.input_currents(connectivity, connectivity.synapse_size)


def test_sparse_values_of_neurons(connectivity):
    values = rates([[1, 0], [0, 20], [3, 0]])
    as_sparse = values.copy(data=sparse.COO.from_numpy(values.values))
    xr.testing.assert_identical(
        mx.contract(connectivity, as_sparse, PRE), mx.contract(connectivity, values, PRE)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.tuples(*[st.integers(0, 6)] * 4), st.sampled_from(COMPRESSED),
    st.sampled_from(COMPRESSED), st.tuples(*[st.sampled_from([PRE, POST])] * 2), st.booleans(),
)  # fmt: skip
def test_products_against_dense_numpy(seed, sizes, compressed, other, over, lazy):
    rng = np.random.default_rng(seed)
    pool = rng.permutation(ids(8))
    axes = [np.sort(rng.choice(pool, n, replace=False)) for n in sizes]
    first, second = (
        dataset(*random_tables(rng, pre.size, post.size, 0.5), how, pre, post)
        for pre, post, how in ((*axes[:2], compressed), (*axes[2:], other))
    )
    a, b = dense(first), dense(second)
    a, middle, rows = (a, *axes[1::-1]) if over[0] == POST else (a.T, *axes[:2])
    b, inner, columns = (b, *axes[2:]) if over[1] == PRE else (b.T, *axes[:1:-1])
    expected = np.zeros((a.shape[0], b.shape[1]), dtype=np.int64)
    for k, neuron in enumerate(middle.tolist()):
        for m in np.flatnonzero(inner == neuron):
            expected += np.outer(a[:, k], b[m])
    if lazy and min(first.synapse_size.shape) and min(second.synapse_size.shape):
        second = second.chunk()
    found = mx.contract(first, second, over, missing="skip")
    assert found[PRE].values.tolist() == rows.tolist()
    assert found[POST].values.tolist() == columns.tolist()
    np.testing.assert_array_equal(found.data.todense(), expected)
    for i, neuron in enumerate(rows):
        np.testing.assert_array_equal(found.sel({PRE: neuron}).values, expected[i])
    pattern = pair_buffers(found.to_dataset())[0]
    check_sorted(pattern.indices, pattern.indptr, pattern.n_minor)
