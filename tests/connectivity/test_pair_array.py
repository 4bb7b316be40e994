"""What an xarray user types on sparse connectivity gives the numbers of the dense array."""

from __future__ import annotations

import functools
import operator
import pickle

import numpy as np
import pandas as pd
import pytest
import sparse
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import microns_xr as mx

PRE, POST = "pre_nucleus_id", "post_nucleus_id"
N_PRE, N_POST = 6, 5
PRE_IDS, POST_IDS = 11 + np.arange(N_PRE), 101 + 2 * np.arange(N_POST)


def both(dense, compressed=1):
    """Return a sparse and a dense array of the same weights; pairs of 0 in row 0 are stored."""
    is_pair = dense != 0
    is_pair[0] = True
    pre, post = np.nonzero(is_pair)
    edges = pd.DataFrame({"a": PRE_IDS[pre], "b": POST_IDS[post], "w": dense[pre, post]})
    asked = {"pre_ids": PRE_IDS, "post_ids": POST_IDS}
    stored = mx.as_connectivity(edges, pre="a", post="b", weight="w", **asked).w
    stored = stored.copy(data=stored.data.change_compressed_axes((compressed,)))
    coords = {PRE: PRE_IDS, POST: POST_IDS, "scope": stored.scope}
    return tuple(
        a.assign_coords(
            pre_cell_type=(PRE, np.array(["23P", "BC", "23P", "4P", "BC", "BC"], object)),
            post_cell_type=(POST, np.array(["23P", "4P", "23P", "4P", "4P"], object)),
        )
        for a in (
            stored,
            xr.DataArray(dense, coords, dims=(PRE, POST), name="w", attrs=stored.attrs),
        )
    )


rates = xr.DataArray(
    np.random.default_rng(0).normal(size=(N_PRE, 3)), {PRE: PRE_IDS}, (PRE, "orientation")
)
gains = xr.DataArray(np.arange(2.0, 2 + N_POST), {POST: POST_IDS}, (POST,))
few = xr.DataArray([1, 0, 1], dims="pair"), xr.DataArray([4, 0, 0], dims="pair")


def onwards(a):
    """Return connections of the postsynaptic neurons with others."""
    labels = ["pre_cell_type", "post_cell_type"]
    a = a.isel({PRE: slice(N_POST)}).drop_vars(labels)
    return a.rename({PRE: POST, POST: "far"}).assign_coords({POST: POST_IDS})


SELECTIONS = {
    "one pair": lambda a: a.sel({PRE: 12, POST: 105}),
    "one pre": lambda a: a.sel({PRE: 12}),
    "one post": lambda a: a.sel({POST: 105}),
    "one post of some pre": lambda a: a.sel({PRE: [14, 11], POST: 105}),
    "labels of pre": lambda a: a.sel({PRE: [14, 11, 11]}),
    "labels of post": lambda a: a.sel({POST: [109, 101]}),
    "labels of both": lambda a: a.sel({PRE: [16, 12], POST: [101, 109, 105]}),
    "slices": lambda a: a.sel({PRE: slice(12, 15), POST: slice(103, None)}),
    "steps": lambda a: a.isel({PRE: slice(None, None, -2), POST: slice(0, 4, 3)}),
    "from the end": lambda a: a.isel({PRE: -1, POST: [-2, 0]}),
    "a mask": lambda a: a.isel({PRE: np.array([True, False, True, True, False, False])}),
    "a type": lambda a: a.sel({PRE: a.pre_cell_type == "BC"}),
    "of a type, dropped": lambda a: a.where(a.pre_cell_type == "BC", drop=True),
    "nothing": lambda a: a.isel({POST: []}),
    "pairs": lambda a: a.isel({PRE: few[0], POST: few[1]}),
    "loc": lambda a: a.loc[{POST: [105, 101]}],
    "square brackets": lambda a: a[2:4, [3, 1]],
    "sorted": lambda a: a.sortby(POST, ascending=False),
    "sorted by type": lambda a: a.sortby("pre_cell_type"),
    "without": lambda a: a.drop_sel({PRE: [11, 16]}),
    "head": lambda a: a.head({PRE: 2}),
    "transposed": lambda a: a.transpose(POST, PRE).sel({PRE: [16, 11]}),
    "where it is large": lambda a: a.where(a > 1, 0),
    "some neurons": lambda a: a.where(gains > 3, 0),
    "of both": lambda a: xr.concat([a.isel({PRE: [3, 1]}), a.isel({PRE: [0]})], PRE),
    "concatenated over post": lambda a: xr.concat(
        [a.isel({POST: [3]}), a.isel({POST: [0, 1]})], POST
    ),
    "reindexed": lambda a: a.reindex({PRE: [99, 12, 11]}, fill_value=0),
    "copied": lambda a: a.copy(deep=True),
}
CELLS = {
    "doubled": lambda a: 2 * a,
    "halved": lambda a: a / 2,
    "negative": lambda a: -a,
    "absolute": lambda a: abs(a),
    "squared": lambda a: a**2,
    "root": lambda a: np.sqrt(abs(a)),
    "logarithm": lambda a: np.log1p(abs(a)),
    "scaled by post": lambda a: a * gains,
    "share of the input": lambda a: a / (abs(a).sum(PRE) + 1),
    "scaled by pre": lambda a: rates.isel(orientation=0) * a,
    "plus itself": lambda a: a + a,
    "minus others": lambda a: (
        a - 2 * a.isel({POST: slice(None, None, -1)}).assign_coords({POST: POST_IDS})
    ),
    "times others": lambda a: (
        a * a.isel({PRE: slice(None, None, -1)}).assign_coords({PRE: PRE_IDS})
    ),
    "positive": lambda a: a > 0,
    "small": lambda a: a < 1,
    "unconnected": lambda a: a == 0,
    "not positive": lambda a: ~(a > 0),
    "not zero": lambda a: a != 0,
    "large and not": lambda a: a * (a > 1),
    "both": lambda a: (a > 0) & (a < 3),
    "either": lambda a: (a > 2) | (a < -2),
    "clipped": lambda a: a.clip(max=2),
    "rounded": lambda a: (a / 3).round(1),
    "float32": lambda a: a.astype("float32"),
    "filled": lambda a: a.fillna(0),
    "missing": lambda a: a.isnull(),
    "one of a few numbers": lambda a: a.isin([1, 2, 0.5]),
    "shares of a sum": lambda a: a / (abs(a).sum() + 1),
}
REDUCTIONS = {
    name: operator.methodcaller(name)
    for name in ("sum", "mean", "max", "min", "any", "all", "std", "var", "count", "median")
} | {
    f"{name} over {dim}": operator.methodcaller(name, dim)
    for name in ("sum", "mean", "max", "min", "any", "all", "std", "var", "count", "median",
                 "argmax", "argmin", "idxmax", "idxmin")
    for dim in (PRE, POST)
} | {
    "quantiles": lambda a: a.quantile([0.0, 0.3, 0.75, 1.0], PRE),
    "one quantile": lambda a: a.quantile(0.9, POST),
    "quantile of all": lambda a: a.quantile(0.9),
    "sample deviation": lambda a: a.std(PRE, ddof=1),
    "without skipping": lambda a: (a / 2).sum(PRE, skipna=False),
    "unconnected pairs": lambda a: (a == 0).sum(PRE),
    "degree": lambda a: (a != 0).sum(PRE),
    "both dims": lambda a: a.sum((PRE, POST)),
    "sum of a share": lambda a: (a / 2).mean(POST),
    "of a type": lambda a: a.groupby("pre_cell_type").sum(),
    "mean of a type": lambda a: a.groupby("post_cell_type").mean(),
    "largest of a type": lambda a: a.groupby("post_cell_type").max(),
    "types of both": lambda a: a.groupby("pre_cell_type").sum().groupby("post_cell_type").sum(),
    "currents": lambda a: xr.dot(a, rates, dim=PRE),
    "currents with @": lambda a: a @ rates,
    "currents the other way": lambda a: xr.dot(rates, a, dim=PRE),
    "outputs": lambda a: xr.dot(a, gains, dim=POST),
    "whole currents": lambda a: xr.dot(a, (10 * rates).astype(int), dim=PRE),
    "both axes": lambda a: xr.dot(a, a),
    "summed currents": lambda a: xr.dot(a, rates, dim=[PRE, "orientation"]),
    "sum of all outputs": lambda a: xr.dot(a, gains, dim=[PRE, POST]),
    "paths": lambda a: xr.dot(a, onwards(a), dim=POST).sel({PRE: [13, 11]}),
    "equal": lambda a: xr.DataArray(a.equals(a.copy(deep=True))),
    "not equal": lambda a: xr.DataArray(a.equals(2 * a.where(a > 0, 0) + a)),
    "float": lambda a: xr.DataArray(float(a.sum())),
    "weighted": lambda a: a.weighted(gains).mean(POST),
    "weighted sum": lambda a: a.weighted(rates.isel(orientation=0) ** 2).sum(PRE),
    "rates of the unconnected": lambda a: xr.dot(a == 0, rates, dim=PRE),
    "rates of the unconnected, first": lambda a: xr.dot(rates, a == 0, dim=PRE),
    "gains of the unconnected": lambda a: (a == 0) @ gains,
    "sum over the unconnected": lambda a: xr.dot(a == 0, gains, dim=[PRE, POST]),
    "rates of the unconnected, summed": lambda a: xr.dot(a == 0, rates, dim=[PRE, "orientation"]),
    "deviation in a type": lambda a: a.groupby("post_cell_type").std(),
    "quantile in a type": lambda a: a.groupby("pre_cell_type").quantile(0.3),
    "first of a type": lambda a: a.groupby("post_cell_type").first(),
    "bins of ids": lambda a: a.groupby_bins(PRE, [10, 13, 17]).sum().drop_vars(f"{PRE}_bins"),
    "mapped": lambda a: a.groupby("pre_cell_type").map(lambda x: x.sum(PRE)),
    "deviation of both": lambda a: a.std(ddof=1),
}  # fmt: skip

all_of = SELECTIONS | CELLS | REDUCTIONS


def same(found, expected):
    found = found.as_numpy()
    if found.dtype.kind == "f":
        xr.testing.assert_allclose(found, expected, rtol=1e-12)
    else:
        xr.testing.assert_equal(found, expected)
    assert found.dims == expected.dims
    assert found.dtype == expected.dtype


@functools.cache
def examples():
    """Return sparse and dense arrays of integers and of floats, with empty rows and columns."""
    rng = np.random.default_rng(1)
    found = []
    for dtype, numbers in ((int, [1, 2, 5, -3]), (float, [0.5, 2.25, -3, 4])):
        for share in (0.3, 0.7):
            dense = rng.choice(numbers, (N_PRE, N_POST)) * (rng.random((N_PRE, N_POST)) < share)
            dense[3] = dense[:, 2] = 0
            found += [both(dense.astype(dtype), compressed) for compressed in (0, 1)]
    return found


@pytest.mark.parametrize("typed", all_of)
def test_as_dense(typed):
    for stored, full in examples():
        found, expected = all_of[typed](stored), all_of[typed](full)
        same(found, expected)
        if typed in REDUCTIONS and typed != "paths":
            assert isinstance(found.values, np.ndarray | np.generic)
        elif found.ndim == 2:  # xarray masks with a COO
            assert isinstance(found.data, sparse.COO if typed == "reindexed" else sparse.GCXS)


numbers = st.one_of(
    hnp.arrays(np.int64, (N_PRE, N_POST), elements=st.sampled_from([0, 0, 0, 1, 2, -3])),
    hnp.arrays(np.float64, (N_PRE, N_POST), elements=st.sampled_from([0, 0, 0, 0.5, -3])),
)


@settings(max_examples=100, deadline=None)
@given(numbers, st.sampled_from([0, 1]), st.sampled_from(sorted(all_of)))
def test_any_weights(dense, compressed, typed):
    stored, full = both(dense, compressed)
    same(all_of[typed](stored), all_of[typed](full))


# dask has no median over both axes; a mask of dask becomes dense, and `isin` and `first` ask for
# cells in another form, which is refused.
NOT_LAZILY = {
    *(
        "median",
        "quantile of all",
        "paths",
        "of a type, dropped",
        "reindexed",
        "equal",
        "not equal",
        "one of a few numbers",
        "first of a type",
    ),
}


@pytest.mark.parametrize("typed", sorted(set(all_of) - NOT_LAZILY))
def test_lazily(typed):
    for i in (1, 5):  # whole numbers, and others
        stored, full = examples()[i]
        found = all_of[typed](stored.copy(data=stored.chunk({POST: 2}).data))
        assert typed == "float" or found.chunks is not None
        same(found.compute(), all_of[typed](full))


def test_lazy_variances_are_block_by_block_and_skip_nan():
    stored, full = examples()[6]
    with np.errstate(invalid="ignore"):
        holes, expected = np.sqrt(stored), xr.where(full < 0, np.nan, np.sqrt(abs(full)))
    for chunks in ({POST: 2}, {POST: 5}):
        lazy = holes.copy(data=holes.chunk(chunks).data)
        for dim in (PRE, POST, None):
            for skipna in (True, False):
                found = lazy.var(dim, skipna=skipna)
                wanted = expected.var(dim, skipna=skipna)
                np.testing.assert_allclose(found.compute(), wanted, rtol=1e-12)
        with pytest.raises(mx.errors.SchemaError, match="subtract would give all"):
            (lazy - lazy.mean(PRE)).compute()


def test_nan_of_one_of_two_arrays_remains_in_their_product():
    stored, _ = examples()[0]
    one = stored.where(stored != 1, 0).astype(float)
    one = one.copy(data=one.data._without_zeros())
    with np.errstate(invalid="ignore"):
        other = (stored / 1).where(stored != 1, np.nan)  # NaN where `one` stores nothing
    has_nan = np.isnan(other.values)
    assert has_nan.any()
    assert not one.values[has_nan].any()
    for product in (one * other, other * one):
        np.testing.assert_array_equal(np.isnan(product.values), has_nan)


def test_pairs_of_zero_remain():
    stored, _ = examples()[0]
    assert (stored.values[0] == 0).any()
    for changed in (2 * stored, stored.where(stored > 1, 0), stored.astype("float32"), -stored):
        assert changed.data.nnz == stored.data.nnz
        assert np.shares_memory(changed.data.indices, stored.data.indices)


def test_unconnected_pairs_remain_zero():
    stored, full = examples()[4]
    gain = xr.DataArray(np.where(np.arange(N_POST) % 2, np.nan, 2.0), {POST: POST_IDS}, (POST,))
    found = (stored * gain).values
    assert (found[full.values == 0][~np.isnan(found[full.values == 0])] == 0).all()
    np.testing.assert_array_equal(np.isnan(found[1]), (full.values[1] != 0) & np.isnan(gain.values))
    # as do sums: NaN where a partner has no rate, not elsewhere
    unrated = rates.where(rates[PRE] != 13)
    currents = xr.dot(stored, unrated, dim=PRE)
    has_partner = full.sel({PRE: 13}).values != 0
    np.testing.assert_array_equal(np.isnan(currents.values).all(axis=1), has_partner)
    assert 0 < has_partner.sum() < N_POST


def test_nan_is_skipped_as_in_dense_arrays():
    stored, full = examples()[6]
    with np.errstate(invalid="ignore"):
        holes, expected = np.sqrt(stored), xr.where(full < 0, np.nan, np.sqrt(abs(full)))
    for name in ("sum", "mean", "max", "min", "count", "std", "median"):
        for skipna in (True, False):
            if name == "count" and not skipna:
                continue
            kwargs = {} if name == "count" else {"skipna": skipna}
            found = getattr(holes, name)(PRE, **kwargs)
            np.testing.assert_allclose(found, getattr(expected, name)(PRE, **kwargs), rtol=1e-12)


def test_currents_are_those_of_contract():
    stored, _ = examples()[5]
    expected = mx.contract(stored, rates, over=PRE)
    np.testing.assert_array_equal((stored @ rates).values, expected.values)
    assert (stored @ rates.astype("float32")).dtype == np.float64


@pytest.fixture(scope="module")
def large():
    """Three connections among 94,000 x 94,000 pairs, which no test could hold as a dense array."""
    ids = np.arange(94_000)
    edges = pd.DataFrame({"pre": [5, 5, 90_000], "post": [7, 93_999, 7], "weight": [2, 3, 4]})
    return mx.as_connectivity(edges, pre_ids=ids, post_ids=ids).weight


def test_no_cell_is_filled(large):
    assert large.sum().item() == 9
    assert (large == 0).sum().item() == 94_000**2 - 3
    assert large.mean().item() == 9 / 94_000**2
    assert large.idxmax(PRE).sel({POST: 7}).item() == 90_000
    assert large.sel({PRE: [90_000, 5], POST: [93_999, 7]}).values.tolist() == [[0, 4], [3, 2]]
    assert large.equals(large.copy(deep=True))
    assert pickle.loads(pickle.dumps(large)).identical(large)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_of_equal_pairs(sign):
    """A stored 0 is no more extreme than the unconnected pairs before it."""
    edges = pd.DataFrame({"pre": [12, 12], "post": [101, 109], "weight": [-sign, 0]})
    weight = mx.as_connectivity(edges, pre_ids=PRE_IDS, post_ids=POST_IDS).weight
    first = (weight.idxmax if sign > 0 else weight.idxmin)(POST)
    assert first.values.tolist() == [101, 103, 101, 101, 101, 101]


REFUSED = {
    "values": (lambda a: a.values, r"94,000 x 94,000 sparse cells would take 70.7 GB.*mx.to_table"),
    "plot": (lambda a: a.plot(), "mx.to_table"),
    "as_numpy": (lambda a: a.as_numpy(), "mx.to_table"),
    "plus one": (lambda a: a + 1, "add would give all 8,836,000,000 pairs.*not 0"),
    "logarithm": (lambda a: np.log(a), "log would give all"),
    "where": (lambda a: a.where(a > 1), r"where\(condition, 0\)"),
    "no common dim": (lambda a: xr.dot(a, xr.DataArray([1.0], dims="nucleus_id")), "rename"),
    "another dim": (lambda a: a * xr.DataArray([1.0], dims="orientation"), "xr.dot"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_fill_all_pairs_is_refused(large, name):
    typed, message = REFUSED[name]
    with pytest.raises(mx.errors.SchemaError, match=message):
        typed(large)


def test_groups_of_both_axes_are_those_of_one_after_the_other(large):
    of_pre, of_post = (xr.DataArray(np.arange(94_000) % 3, dims=dim) for dim in (PRE, POST))
    typed = large.assign_coords(pre_kind=of_pre, post_kind=of_post)
    groups = typed.groupby("pre_kind").sum().groupby("post_kind").sum()
    assert groups.values.tolist() == [[0, 4, 0], [0, 0, 0], [3, 2, 0]]
    assert typed.groupby("pre_kind").sum().groupby("post_kind").sum().sum() == 9
    for array in (typed, typed.copy(data=large.chunk({POST: 50_000}).data)):
        xr.testing.assert_identical(
            array.groupby(["pre_kind", "post_kind"]).sum().compute(), groups
        )
        found = array.to_dataset().groupby(["pre_kind", "post_kind"]).sum().compute()
        xr.testing.assert_identical(found.weight, groups)


def test_two_labels_of_one_axis_group_it():
    stored, full = examples()[1]
    other = (PRE, list("abcabc"))
    found, wanted = (
        a.assign_coords(other=other).groupby(["pre_cell_type", "other"]).sum()
        for a in (stored, full)
    )
    same(found, wanted)


def test_flox_is_told_what_to_do(large):
    # It makes an empty array of the type of the blocks.
    with pytest.raises(TypeError, match="use_flox=False"):
        type(large.data)([], dtype=float)


def test_files_name_the_store(large, tmp_path):
    with pytest.raises(mx.errors.SchemaError, match=r"mx\.write_store"):
        large.to_netcdf(tmp_path / "large.nc")


@pytest.mark.parametrize("chunks", [{}, {POST: 2}, {POST: N_POST}])
def test_zarr_is_not_given_sparse_arrays(chunks, tmp_path):
    stored, full = (a.reset_coords(drop=True).to_dataset(name="w") for a in examples()[0])
    stored = stored.chunk(chunks) if chunks else stored
    with pytest.raises(mx.errors.SchemaError, match=r"mx\.write_store"):
        stored.to_zarr(tmp_path / "sparse", consolidated=False)
    stored.as_numpy().to_zarr(tmp_path / "dense", consolidated=False)
    with xr.open_zarr(tmp_path / "dense", consolidated=False) as found:
        xr.testing.assert_equal(found.load(), full)


def test_repr_in_a_notebook_is_escaped(large):
    assert large.data._repr_html_().startswith("<pre>&lt;PairArray: 94000 x 94000, 3 stored pairs")


def test_what_is_not_supported_says_so(large):
    for typed in (lambda a: a.cumsum(PRE), lambda a: a.diff(PRE).rolling({PRE: 2}).sum()):
        with pytest.raises(TypeError, match=r"of a sparse array is not supported: .*mx\.to_table"):
            typed(large)
