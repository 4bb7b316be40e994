"""Connectivity in any form gives the results of the form that the package makes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import sparse
import xarray as xr
from matrices import dataset, ids, random_tables, units_of

import microns_xr as mx
from microns_xr.connectivity.arrays import as_pairs

PRE, POST = "pre_nucleus_id", "post_nucleus_id"
N_PRE, N_POST = 7, 9


def units() -> xr.Dataset:
    rng = np.random.default_rng(3)
    attrs = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    made = units_of(
        ids(N_POST),
        pt_root_id=np.arange(N_POST) + 100,
        position=rng.uniform(0, 300, (N_POST, 3)),
        axon_proofread=False,
        classification_system="excitatory_neuron",
        cell_type=["23P", "4P", "BC"] * 3,
        brain_area="V1",
        strategy_axon="none",
        strategy_dendrite="none",
        axon_completeness="none",
        layer="L4",
        tuning_type="unknown",
        pref_ori=rng.uniform(0, 180, N_POST),
    )
    made["pref_ori"].attrs = attrs
    made["rate"] = (("nucleus_id", "stimulus"), rng.uniform(0, 9, (N_POST, 2)))
    return made


UNITS = units()


def standard() -> xr.Dataset:
    stored, size, count = random_tables(np.random.default_rng(0), N_PRE, N_POST, 0.4)
    # Dense arrays cannot hold a pair of size 0 without a count.
    found = dataset(stored, size + stored, count)
    return found.assign_coords(pre_layer=(PRE, np.array([*"abcabca"], dtype=object)))


def unsorted(c: xr.Dataset) -> xr.Dataset:
    rng = np.random.default_rng(1)
    return c.isel({PRE: rng.permutation(N_PRE), POST: rng.permutation(N_POST)})


def as_coo(c: xr.Dataset) -> xr.Dataset:
    return c.map(lambda v: v.copy(data=v.data.tocoo()), keep_attrs=True)


def as_dense(c: xr.Dataset) -> xr.Dataset:
    return c.map(lambda v: v.copy(data=v.data.todense()), keep_attrs=True)


def of_dtype(name: str):
    return lambda c: c.map(lambda v: v.astype(name), keep_attrs=True)


def lazily(c: xr.Dataset, chunks: dict[str, int]) -> xr.Dataset:
    return c.map(lambda v: v.chunk(chunks), keep_attrs=True)


FORMS = {
    "transposed": lambda c: c.transpose(),
    "unsorted": unsorted,
    "unsorted and transposed": lambda c: unsorted(c).transpose(),
    "coordinates": as_coo,
    "dense": as_dense,
    "dense, unsorted and transposed": lambda c: unsorted(as_dense(c)).transpose(),
    "a dense count beside": lambda c: c.assign(synapse_count=as_dense(c).synapse_count),
    "int32": of_dtype("int32"),
    "uint8 and dense": lambda c: of_dtype("uint16")(as_dense(c)),
    "by pre and by post": lambda c: c.assign(
        synapse_size=c.synapse_size.copy(data=c.synapse_size.data.change_compressed_axes((0,)))
    ),
    "unsigned ids": lambda c: c.assign_coords({d: c[d].astype("uint64") for d in (PRE, POST)}),
    "without a scope": lambda c: c.drop_vars("scope"),
    "unsorted, without an index": lambda c: unsorted(c).drop_indexes(PRE),
    "lazy": lambda c: lazily(c, {POST: 2}),
    "lazy and transposed": lambda c: lazily(c, {POST: 2}).transpose(),
    "lazy and int32": lambda c: of_dtype("int32")(lazily(c, {PRE: 3})),
    "lazy and dense": lambda c: lazily(as_dense(c), {POST: 2}),
    "lazy and unsorted": lambda c: unsorted(lazily(c, {POST: 2})),
}


def tables(c: xr.Dataset) -> pd.DataFrame:
    return mx.to_table(c.compute())


FUNCTIONS = {
    "table": tables,
    "degrees": lambda c: mx.degrees(c),
    "input currents": lambda c: mx.input_currents(c, UNITS.rate),
    "output": lambda c: mx.contract(c, UNITS.rate, POST, weight="synapse_count"),
    "two steps": lambda c: mx.contract(c, c, (POST, PRE), missing="skip").data.todense(),
    "groups": lambda c: mx.group_connectivity(c, "cell_type", units=UNITS),
    "selection": lambda c: tables(mx.select_connections(c, pre=ids(5), post=ids(4))),
    "touching": lambda c: tables(mx.select_connections(c, pre=ids(2), post=ids(3), both=False)),
    "autapses": lambda c: tables(mx.drop_autapses(c)),
    "annotation": lambda c: tables(mx.annotate(c, UNITS, "cell_type")),
    "partners": lambda c: mx.inputs_to(c, ids(4)[3]).synapse_size,
    "number": mx.n_connections,
    "graph": lambda c: dict(mx.to_networkx(c.compute()).adjacency()),
    "anndata": lambda c: mx.to_anndata(UNITS, c.compute()).obsp["synapse_size"].todense(),
    "probability": lambda c: mx.analysis.connection_probability(
        c, UNITS, "cell_type", pre=ids(N_PRE), post=ids(N_POST), presynaptic="all"
    ),
    "like to like": lambda c: mx.analysis.like_to_like(
        c.compute(), UNITS, pre=ids(N_PRE), post=ids(N_POST), presynaptic="all"
    ),
    "null": lambda c: tables(mx.analysis.null_models.rewire(c.compute(), n=2, swaps=2)[1]),
}  # fmt: skip


def comparable(result):
    """A result without what its way of computation leaves: histories and notes on scopes."""
    if isinstance(result, xr.Dataset | xr.DataArray):
        result = result.compute().drop_vars("scope", errors="ignore").drop_attrs()
        return result.map(lambda v: v) if isinstance(result, xr.Dataset) else result
    return result


def of_unknown_scope() -> xr.Dataset:
    """The scope is unknown everywhere, since one of the forms has none."""
    return standard().assign_coords(scope=np.array("unknown", dtype=object)[()])


@cache
def expected_of(function):
    return comparable(FUNCTIONS[function](of_unknown_scope()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_form_gives_the_same(form, function):
    expected = expected_of(function)
    found = comparable(FUNCTIONS[function](FORMS[form](of_unknown_scope())))
    if isinstance(expected, xr.Dataset | xr.DataArray):
        xr.testing.assert_allclose(found, expected)
    elif isinstance(expected, pd.DataFrame | pd.Series):
        sorted_ = [t.reindex(sorted(t.columns), axis=1) if t.ndim == 2 else t for t in (found, expected)]  # fmt: skip
        (pd.testing.assert_frame_equal if expected.ndim == 2 else pd.testing.assert_series_equal)(*sorted_)  # fmt: skip
    else:
        assert np.all(np.asarray(found == expected))


@pytest.mark.parametrize("form", FORMS)
def test_any_form_is_written(form, tmp_path):
    mx.write_store(tmp_path / "s.zarr", units=UNITS, connectivity=FORMS[form](standard()))
    found = mx.open_store(tmp_path / "s.zarr")["connectivity"].to_dataset()
    expected = mx.to_table(standard())
    pd.testing.assert_frame_equal(mx.to_table(found)[expected.columns], expected)


@pytest.mark.parametrize("form", FORMS)
def test_one_form_comes_out(form):
    c = standard()
    made = FORMS[form](c)
    before = made.copy(deep=True)
    found = as_pairs(made)
    assert (found.synapse_size.chunks is not None) == ("lazy" in form)
    for name in ("synapse_size", "synapse_count"):
        assert found[name].dims == (PRE, POST)
        assert found[name].dtype == np.int64
        data = found[name].compute().data
        if "lazy" not in form:
            assert isinstance(data, sparse.GCXS)
        array = data if isinstance(data, np.ndarray) else data.todense()
        np.testing.assert_array_equal(array, c[name].data.todense())
        assert found[name].attrs == c[name].attrs
    np.testing.assert_array_equal(found.pre_layer, c.pre_layer)
    for name, variable in before.variables.items():  # the input is not changed
        assert made[name].dtype == variable.dtype
        assert made[name].dims == variable.dims
    assert as_pairs(c) is c
    lazy = lazily(c, {POST: 2})
    assert as_pairs(lazy) is lazy


def test_one_array_is_enough():
    c = standard()
    strength = (c.synapse_size * 0.5).rename("strength")
    for weight, factor in ((c.synapse_size, 1), (strength, 0.5), (strength.rename(None), 0.5)):
        currents = mx.input_currents(weight, UNITS.rate)
        expected = mx.input_currents(c, UNITS.rate)
        np.testing.assert_allclose(currents, factor * expected)
    degrees = mx.degrees(strength)
    assert set(degrees.data_vars) == {"in_degree", "in_strength", "out_degree", "out_strength"}
    np.testing.assert_allclose(degrees.out_strength, strength.data.todense().sum(axis=1))
    groups = mx.group_connectivity(strength, "cell_type", units=UNITS)
    sizes = mx.group_connectivity(c, "cell_type", units=UNITS)
    np.testing.assert_allclose(groups.mean_strength, 0.5 * sizes.mean_size)
    assert groups.strength.dtype == np.float64
    assert mx.to_table(strength).strength.tolist() == (mx.to_table(c)["size"] / 2).tolist()
    assert mx.to_scipy(strength).dtype == np.float64
    assert "strength" in mx.to_anndata(UNITS, strength).obsp
    edges = mx.to_networkx(strength).edges(data=True)
    assert {name for *_, edge in edges for name in edge} == {"strength"}
    for function in (mx.drop_autapses, lambda w: mx.select_connections(w, pre=ids(3))):
        assert list(function(strength).data_vars) == ["strength"]


def test_weights_may_be_coordinates():
    c = standard()
    both = ["synapse_size", "synapse_count"]
    for given in (c.set_coords("synapse_size"), c.set_coords(both), c.chunk().set_coords(both)):
        for function in (
            mx.drop_autapses,
            lambda w: mx.select_connections(w, pre=ids(3)),
            lambda w: mx.inputs_to(w, ids(N_POST)[2]),
            lambda w: as_pairs(w.isel(post_nucleus_id=slice(None, None, -1))),
        ):
            found, expected = function(given), function(c)
            assert set(found.data_vars) == set(both)
            for name in both:
                assert found[name].sum() == expected[name].sum() > 0
    # A DataArray is the weight that is meant, whatever its coordinates are.
    expected = mx.input_currents(c.synapse_count, UNITS.rate)
    found = mx.input_currents(c.set_coords("synapse_size").synapse_count, UNITS.rate)
    np.testing.assert_array_equal(found, expected)


def test_which_weight():
    c = standard().drop_vars("synapse_size").assign(other=standard().synapse_size)
    with pytest.raises(mx.errors.SchemaError, match=r"\['synapse_count', 'other'\]: pass the name"):
        mx.input_currents(c, UNITS.rate)
    assert mx.input_currents(c, UNITS.rate, weight="other").sum() > 0


def test_forms_that_are_refused():
    c = standard()
    schema = mx.errors.SchemaError
    gaps = as_dense(c).synapse_size.astype(float)
    gaps[0, 0] = np.nan
    more = as_dense(c).synapse_count + 1
    words = xr.DataArray(np.full((2, 2), "a"), {PRE: [1, 2], POST: [1, 2]}, (PRE, POST))
    for made, match in (
        (gaps, r"synapse_size is NaN for 1 pairs.*\.fillna\(0\)"),
        (c.assign(synapse_count=more), "synapse_count is dense and not 0 for pairs"),
        (c.synapse_size == 0, "fill value True"),
        (c.drop_vars(PRE), f"{PRE} is absent"),
        (words, "no numbers are over"),
        (c.assign_coords({PRE: c[PRE].astype(float)}), "expected int64"),
        (c.assign_coords({PRE: np.repeat(ids(N_PRE)[:1], N_PRE)}), f"{PRE} repeats 6"),
        (np.eye(3), "is a ndarray"),
    ):
        with pytest.raises(schema, match=match):
            mx.degrees(made)
    # Its rows have no labels, so that they stay where the caller knows them.
    with pytest.raises(schema, match=f"{PRE} is not sorted: use .sortby"):
        mx.to_scipy(c.isel({PRE: slice(None, None, -1)}))
