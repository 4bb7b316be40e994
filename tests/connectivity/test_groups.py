"""`groupby` of sparse connectivity along one axis and both gives what xarray gives when dense."""

from __future__ import annotations

import functools
import operator
import pickle
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xarray.groupers import BinGrouper, UniqueGrouper

import microns_xr as mx

PRE, POST = "pre_nucleus_id", "post_nucleus_id"
N_PRE, N_POST = 7, 6
PRE_IDS, POST_IDS = 11 + np.arange(N_PRE), 101 + 2 * np.arange(N_POST)


def both(dense, compressed=1, missing=False):
    """Return a sparse and a dense array of the same weights; pairs of row 0 are stored."""
    is_pair = dense != 0
    is_pair[0] = True
    pre, post = np.nonzero(is_pair)
    edges = pd.DataFrame({"a": PRE_IDS[pre], "b": POST_IDS[post], "w": dense[pre, post]})
    asked = {"pre_ids": PRE_IDS, "post_ids": POST_IDS}
    stored = mx.as_connectivity(edges, pre="a", post="b", weight="w", **asked).w
    stored = stored.copy(data=stored.data.change_compressed_axes((compressed,)).astype(dense.dtype))
    if missing:  # stored, as a weight cannot be
        stored.data.data[::3] = np.nan
        dense = stored.data.todense()
    stored.attrs = {"units": "voxels"}
    full = xr.DataArray(dense, stored.coords, dims=(PRE, POST), name="w", attrs=stored.attrs)
    return tuple(a.assign_coords(labels()) for a in (stored, full))


@functools.cache
def labels():
    types, layers = ["23P", "BC", np.nan, "4P", "BC", "BC", "23P"], list("xyxxyzz")
    return {
        "pre_cell_type": (PRE, np.array(types, object), {"source": "a table"}),
        "pre_layer": (PRE, np.array(layers, object)),
        "pre_depth": (PRE, np.array([1.0, 7, 3, 8, 12, 2, 5])),
        "post_cell_type": (POST, np.array(["4P", "23P", "BC", "4P", "23P", "4P"], object)),
        "post_depth": (POST, np.array([5.0, np.nan, 15, 25, 5, 99])),
        "post_number": (POST, np.array([3, 1, 1, 3, 3, 1])),
        "note": "of all",
    }


BINS = [0, 10, 20, 22, 30]
GROUPERS = {
    "pre": "pre_cell_type",
    "post": ["post_cell_type"],
    "numbers": "post_number",
    "bins": {"post_depth": BinGrouper(BINS)},
    "number of bins": {"pre_depth": BinGrouper(3)},
    "words": {"post_cell_type": UniqueGrouper(labels=["BC", "4P"])},
    "two of pre": ["pre_cell_type", "pre_layer"],
    "two of post": ["post_cell_type", "post_number"],
    "both": ["pre_cell_type", "post_cell_type"],
    "post first": ["post_cell_type", "pre_layer"],
    "three": ["pre_cell_type", "pre_layer", "post_cell_type"],
    "between": ["pre_layer", "post_number", "pre_cell_type"],
    "type and bins": {"pre_cell_type": UniqueGrouper(), "post_depth": BinGrouper(BINS)},
    "bins and words": {
        "post_depth": BinGrouper([0, 10, 30]),
        "pre_layer": UniqueGrouper(labels=["z", "x"]),
    },
    "each": [PRE, "post_cell_type"],
    "each of post": ["pre_cell_type", POST],
}
OF_BOTH = [
    name
    for name, by in GROUPERS.items()
    if len({str(key).split("_")[0] for key in ([by] if isinstance(by, str) else by)}) == 2
]
REDUCTIONS = {
    **{name: operator.methodcaller(name) for name in ("sum", "mean", "count", "min", "max", "any",
                                                       "all", "std", "var", "median")},
    **{f"{name} with NaN": operator.methodcaller(name, skipna=False)
       for name in ("sum", "mean", "min", "max", "std", "median")},
    "sample": lambda g: g.var(ddof=1),
    "skipped": lambda g: g.sum(skipna=True),
    "at least three": lambda g: g.sum(min_count=3),
    "quantile": lambda g: g.quantile(0.7),
    "quantiles": lambda g: g.quantile([0.1, 0.9]),
    "quantile with NaN": lambda g: g.quantile(0.5, skipna=False),
    "numpy": lambda g: g.reduce(np.sum),
    "numpy without NaN": lambda g: g.reduce(np.nanmax),
    "own": lambda g: g.reduce(lambda x, axis: np.max(x, axis=axis) - np.min(x, axis=axis)),
    "without attrs": lambda g: g.mean(keep_attrs=False),
    "all dims": lambda g: g.sum(...),
}  # fmt: skip
LAZILY = sorted(name for name in REDUCTIONS if "median" not in name and "quantile" not in name)


def same(found, expected):
    """Compare values, dims, coordinates, dtypes, names and attributes."""
    assert found.dims == expected.dims
    assert found.dtype == expected.dtype
    assert isinstance(found.values, np.ndarray)
    if found.dtype == object:  # booleans, NaN where a group has no member
        found, expected = (a.where(a.notnull(), 9).astype(float) for a in (found, expected))
    xr.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.name == expected.name
    assert found.attrs == expected.attrs
    assert set(found.coords) == set(expected.coords)
    for name, coord in expected.coords.items():
        # xarray makes objects of bins, unless it has to add some that are empty.
        assert found[name].dtype == coord.dtype or str(name).endswith("_bins")
        assert found[name].attrs == coord.attrs
        xr.testing.assert_identical(found[name].variable, coord.variable)
    assert list(found.indexes) == list(expected.indexes) or set(found.indexes) == set(
        expected.indexes
    )


@functools.cache
def examples():
    rng = np.random.default_rng(1)
    found = {}
    for dtype, numbers in ((int, [1, 2, 5, -3]), (float, [0.5, 2.25, -3, 4]), (bool, [1, 1])):
        dense = rng.choice(numbers, (N_PRE, N_POST)) * (rng.random((N_PRE, N_POST)) < 0.5)
        dense[3] = dense[:, 2] = 0
        found[dtype.__name__] = both(dense.astype(dtype), 0 if dtype is int else 1)
        if dtype is float:
            found["NaN"] = both(dense, 1, missing=True)
    return found


def dense(full, by, reduction):
    """Return the result of xarray, in which numpy warns of groups without enough members."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return REDUCTIONS[reduction](full.groupby(GROUPERS[by]))


def example(by, reduction):
    """Return one of the kinds of numbers, in turn."""
    kinds = ["int", "NaN", "float", "bool"]
    if "quantile" in reduction or reduction == "own":  # numpy subtracts no booleans
        kinds = kinds[:3]
    turn = list(GROUPERS).index(by) + list(REDUCTIONS).index(reduction)
    stored, full = examples()[kinds[turn % len(kinds)]]
    # The other axis may be the first, and the compressed one.
    return (stored.T, full.T) if turn % 5 == 0 else (stored, full)


@pytest.mark.parametrize("by", GROUPERS)
def test_as_dense(by):
    for reduction in REDUCTIONS:
        stored, full = example(by, reduction)
        same(REDUCTIONS[reduction](stored.groupby(GROUPERS[by])), dense(full, by, reduction))


numbers = st.one_of(
    hnp.arrays(np.int64, (N_PRE, N_POST), elements=st.sampled_from([0, 0, 0, 1, 2, -3])),
    hnp.arrays(np.float64, (N_PRE, N_POST), elements=st.sampled_from([0, 0, 0, 0.5, -3])),
)
words = st.lists(st.sampled_from(["a", "b", "c", np.nan]), min_size=N_PRE, max_size=N_PRE)


@settings(max_examples=60, deadline=None)
@given(
    numbers, st.sampled_from([0, 1]), words, words, st.sampled_from(sorted(REDUCTIONS)),
    st.sampled_from(["pre_cell_type", ["pre_cell_type", "post_cell_type"],
                     ["post_cell_type", "pre_cell_type", "pre_layer"]]),
    st.sampled_from([{}, {PRE: 3}, {POST: 2}, {PRE: 2, POST: 4}]), st.booleans(),
)  # fmt: skip
def test_any_weights_and_labels(weights, compressed, of_pre, of_post, reduction, by, chunks, nan):
    stored, full = both(weights, compressed, missing=nan and weights.dtype == float)
    of_pre, of_post = (["a", *of[1:n]] for of, n in ((of_pre, N_PRE), (of_post, N_POST)))
    stored, full = (
        a.assign_coords(
            pre_cell_type=(PRE, np.array(of_pre, object)),
            post_cell_type=(POST, np.array(of_post, object)),
        )
        for a in (stored, full)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = REDUCTIONS[reduction](full.groupby(by))
    if reduction in LAZILY and reduction != "own":
        stored = stored.copy(data=stored.chunk(chunks).data) if chunks else stored
    found = REDUCTIONS[reduction](stored.groupby(by))
    assert (found.chunks is not None) == (stored.chunks is not None)
    with np.errstate(invalid="ignore"):  # dask divides 0 by 0 for groups of one cell
        found = found.compute(scheduler="sync")
    same(found, expected)


@pytest.mark.parametrize("by", [*OF_BOTH, "pre", "bins"])
def test_lazily(by):
    for i, reduction in enumerate(LAZILY):
        stored, full = example(by, reduction)
        chunks = [{PRE: 3}, {POST: 2}, {PRE: 2, POST: 4}][i % 3]
        found = REDUCTIONS[reduction](
            stored.copy(data=stored.chunk(chunks).data).groupby(GROUPERS[by])
        )
        assert found.chunks is not None
        with np.errstate(invalid="ignore"):  # dask divides 0 by 0 for groups of one cell
            found = found.compute(scheduler="sync")
        same(found, dense(full, by, reduction))


def test_by_hand():
    """Neurons 1 and 2 are of type A, 3 of B, 4 of none."""
    edges = pd.DataFrame(
        {"pre": [1, 1, 2, 3, 4], "post": [1, 3, 2, 3, 1], "weight": [2, 5, 4, 7, 9]}
    )
    ids = np.arange(1, 5)
    types = np.array(["A", "A", "B", np.nan], object)
    size = mx.as_connectivity(edges, pre_ids=ids, post_ids=ids).weight
    size = size.assign_coords(pre_type=(PRE, types), post_type=(POST, types))
    groups = size.groupby(["pre_type", "post_type"])
    assert groups.sum().to_series().to_dict() == {
        ("A", "A"): 6, ("A", "B"): 5, ("B", "A"): 0, ("B", "B"): 7,
    }  # fmt: skip
    assert groups.mean().values.tolist() == [[1.5, 2.5], [0, 7]]  # of 4, 2, 2 and 1 pairs
    assert groups.median().values.tolist() == [[1, 2.5], [0, 7]]
    assert groups.count().values.tolist() == [[4, 2], [2, 1]]
    by_group = {key: block.sum().item() for key, block in groups}
    assert by_group == groups.sum().to_series().to_dict()
    assert groups["A", "B"].values.tolist() == [[5], [0]]
    assert groups.groups["A", "A"][PRE].tolist() == [0, 1]
    assert len(groups) == 4
    assert "4 groups in total" in repr(groups)


@pytest.fixture(scope="module")
def large():
    """Three connections among 94,000 x 94,000 pairs, which no test could hold as a dense array."""
    ids = np.arange(94_000)
    edges = pd.DataFrame({"pre": [5, 5, 90_000], "post": [7, 93_999, 7], "weight": [2, 3, 4]})
    size = mx.as_connectivity(edges, pre_ids=ids, post_ids=ids).weight
    return size.assign_coords(pre_kind=(PRE, ids % 3), post_kind=(POST, ids % 3))


@pytest.mark.parametrize("chunks", [None, {POST: 50_000}, {PRE: 20_000}])
def test_no_cell_is_coded(large, chunks):
    if chunks:
        large = large.copy(data=large.chunk(chunks).data)
    tracemalloc.start()
    groups = large.groupby(["pre_kind", "post_kind"])
    assert groups.sum().values.tolist() == [[0, 4, 0], [0, 0, 0], [3, 2, 0]]
    assert int(groups.count().sum()) == 94_000**2
    assert groups.max().values.tolist() == [[0, 4, 0], [0, 0, 0], [3, 2, 0]]
    one = large.groupby("pre_kind").sum()
    assert float(one.sum()) == 9
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert {key: float(block.sum()) for key, block in groups}[0, 1] == 4


def test_datasets():
    (size, full), (half, full_half) = examples()["int"], examples()["float"]
    half = half.copy(data=half.data.change_compressed_axes((0,)))
    found, expected = (
        xr.Dataset({"size": a, "half": b}, attrs={"release": "1"}).assign_coords(labels())
        for a, b in ((size, half), (full, full_half))
    )
    for by in ("both", "three", "pre", "two of post", "bins and words"):
        for reduction in ("sum", "median", "quantile", "quantiles", "without attrs", "own"):
            ours = REDUCTIONS[reduction](found.groupby(GROUPERS[by]))
            xarray = dense(expected, by, reduction)
            assert ours.attrs == xarray.attrs
            assert list(ours) == list(xarray)
            for name in xarray:
                same(ours[name], xarray[name])
    with pytest.raises(mx.errors.SchemaError, match=r"dataset\[\['size', 'half'\]\]"):
        found.assign(depth=found.pre_depth).groupby(GROUPERS["both"])


def test_map_gives_a_number_for_each_block():
    stored, full = examples()["float"]
    groups = stored.groupby(["pre_cell_type", "post_number", "pre_layer"])
    found = groups.map(lambda block: (block != 0).sum())
    xr.testing.assert_identical(found, (full != 0).groupby(["pre_cell_type", "post_number", "pre_layer"]).sum().astype(float))  # fmt: skip
    with pytest.raises(mx.errors.SchemaError, match="expected one number for each group"):
        groups.map(lambda block: block.sum(PRE))
    for typed in (lambda: groups.first(), lambda: groups.shuffle_to_chunks()):
        with pytest.raises(mx.errors.SchemaError, match="one axis after the other"):
            typed()
    with pytest.raises(ValueError, match="cannot reduce over dimensions"):
        groups.sum(PRE)


def test_labels_that_are_a_dataarray():
    stored, full = examples()["int"]
    words = xr.DataArray(list("aabbaab"), {PRE: PRE_IDS}, (PRE,), name="word")
    same(stored.groupby(words).sum(), full.groupby(words).sum())
    same(stored.groupby(words.rename(None)).max(), full.groupby(words.rename(None)).max())


def test_labels_without_members_are_nan():
    stored, _ = examples()["int"]
    by = {"pre_layer": UniqueGrouper(labels=["x", "none"]), "post_number": UniqueGrouper()}
    found = stored.groupby(by).sum()
    assert found.pre_layer.values.tolist() == ["x", "none"]
    assert np.isnan(found.sel(pre_layer="none")).all()
    assert not np.isnan(found.sel(pre_layer="x")).any()


def test_quantiles_of_lazy_groups_say_what_to_do():
    stored, _ = examples()["int"]
    groups = stored.copy(data=stored.chunk({POST: 2}).data).groupby(GROUPERS["both"])
    for typed in (lambda: groups.median(), lambda: groups.quantile(0.5)):
        with pytest.raises(mx.errors.SchemaError, match=r"load the array with \.compute\(\)"):
            typed()


def test_medians_of_lazy_groups_of_one_axis():
    stored, full = examples()["int"]
    lazy = stored.copy(data=stored.chunk({POST: 2}).data)
    for by in ("pre", "post"):
        same(lazy.groupby(GROUPERS[by]).median().compute(), dense(full, by, "median"))


def test_too_many_groups(large):
    with pytest.raises(mx.errors.SchemaError, match=r"94,000 x 94,000 numbers.*mx\.to_table"):
        large.groupby([PRE, POST]).sum()


def test_one_axis_over_the_other():
    """xarray reduces each group over another dim and puts them together again."""
    stored, full = examples()["int"]
    same(stored.groupby("pre_cell_type").sum(POST), full.groupby("pre_cell_type").sum(POST))


def test_with_flox_installed(monkeypatch):
    monkeypatch.setattr("xarray.core._aggregations.flox_available", True)
    stored, full = examples()["int"]
    lazy = stored.copy(data=stored.chunk({POST: 2}).data)
    for by in ("pre", "both"):
        with xr.set_options(use_flox=False):
            expected = dense(full, by, "sum")
        same(lazy.groupby(GROUPERS[by]).sum().compute(), expected)
        with xr.set_options(use_flox=False):
            expected = dense(full, by, "sample")
        with np.errstate(invalid="ignore"):
            found = lazy.groupby(GROUPERS[by]).var(ddof=1).compute(scheduler="sync")
        same(found, expected)


def test_groups_of_other_arrays_are_those_of_xarray():
    _, full = examples()["int"]
    groups = full.groupby(GROUPERS["both"])
    assert type(groups) is xr.core.groupby.DataArrayGroupBy
    assert groups.encoded.codes.shape == (N_PRE, N_POST)
    assert pickle.loads(pickle.dumps(full)).groupby("pre_layer").sum().sum() == full.sum()
