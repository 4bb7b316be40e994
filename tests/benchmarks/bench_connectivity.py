"""Contraction, selection, sums and groups, beside scipy, MKL and pydata-sparse.

The comparison with MKL needs ``pip install mkl sparse_dot_mkl``, and is left out without it; where
its library is not found, ``MKL_RT`` names it (``lib/libmkl_rt.so.3`` of the environment). This
prints the table of ratios alone:

    python -m pytest tests/benchmarks/bench_connectivity.py -n 0 --benchmark-enable --scale 1 -k contraction_ratio
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import sparse
import xarray as xr
from synthetic import make_connectivity, make_rates

import microns_xr as mx

PRE, POST = "pre_nucleus_id", "post_nucleus_id"


@pytest.fixture(scope="module")
def large(scale):
    n = 94_000 if scale > 0.01 else 500
    connectivity = make_connectivity(n, int(30e6 * scale))
    csr = mx.to_scipy(connectivity).tocsr().astype(np.float64)
    rates, half = make_rates(n, 16), make_rates(n, 16, rated=0.5)
    return SimpleNamespace(
        connectivity=connectivity,
        csr=csr,
        csc=csr.tocsc(),
        rates=rates,
        half=half,
        shuffled=half.isel(nucleus_id=np.random.default_rng(2).permutation(n)),
        filled=np.nan_to_num(half.values),
    )


CONTRACTIONS = {
    "all rated": {
        "input_currents": lambda x: mx.input_currents(x.connectivity, x.rates),
        "scipy csr.T @ R": lambda x: x.csr.T @ x.rates.values,
        "scipy csc.T @ R": lambda x: x.csc.T @ x.rates.values,
    },
    "half rated": {
        "input_currents": lambda x: mx.input_currents(x.connectivity, x.half),
        "input_currents, shuffled": lambda x: mx.input_currents(x.connectivity, x.shuffled),
        "scipy csr.T @ R": lambda x: x.csr.T @ x.filled,
    },
    "over post": {
        "contract": lambda x: mx.contract(x.connectivity, x.rates, POST),
        "scipy csr @ R": lambda x: x.csr @ x.rates.values,
        "scipy csc @ R": lambda x: x.csc @ x.rates.values,
    },
}


@pytest.mark.parametrize(
    ("group", "way"), [(group, way) for group, ways in CONTRACTIONS.items() for way in ways]
)
def test_contraction(benchmark, large, group, way):
    benchmark.group = f"contraction, 16 columns, {group}"
    ways = CONTRACTIONS[group]
    found = benchmark.pedantic(ways[way], (large,), rounds=5, warmup_rounds=1)
    expected = next(call for name, call in ways.items() if name.startswith("scipy"))(large)
    np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=1e-12)


@pytest.fixture(scope="module")
def mkl():
    """Multiply a sparse and a dense matrix with MKL; None where it is not installed."""
    try:
        from sparse_dot_mkl import dot_product_mkl
    except ImportError:  # also if its library is not found
        return None
    return dot_product_mkl


@pytest.mark.parametrize("millions", [1, 3, 10, 30])
@pytest.mark.parametrize("columns", [8, 16])
@pytest.mark.parametrize("rated", [1.0, 0.5])
def test_contraction_ratio(benchmark, scale, mkl, millions, columns, rated):
    """Best of several, in turn, so that other work on the machine slows all ways alike."""
    benchmark.group = "ratios of the contraction"
    n = 94_000 if scale > 0.01 else 500
    connectivity = make_connectivity(n, int(millions * 1e6 * scale))
    rates = make_rates(n, columns, rated=rated)
    filled = rates.fillna(0).rename(nucleus_id=PRE)
    csr = mx.to_scipy(connectivity).tocsr().astype(np.float64)
    by_post = csr.T.tocsr().sorted_indices()
    by_post.indices, by_post.indptr = (
        x.astype(np.int32) for x in (by_post.indices, by_post.indptr)
    )
    ways = {
        "input_currents": lambda: mx.input_currents(connectivity, rates),
        "xr.dot": lambda: xr.dot(connectivity.synapse_size, filled),
        "scipy csr.T @ R": lambda: csr.T @ filled.values,
    }
    if mkl is not None:
        ways["MKL"] = lambda: mkl(by_post, filled.values)
    best = dict.fromkeys(ways, np.inf)
    expected = csr.T @ filled.values
    for i in range(1 if benchmark.disabled else 10):
        for way, call in ways.items():
            start = time.perf_counter()
            found = call()
            if i:  # the first call compiles
                best[way] = min(best[way], time.perf_counter() - start)
            else:
                np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=1e-10)
    for way, seconds in best.items():
        benchmark.extra_info[way] = f"{1e3 * seconds:.1f} ms"
        if not way.startswith(("input", "xr")):
            ratio = best["input_currents"] / seconds
            benchmark.extra_info[f"input_currents / {way}"] = f"{ratio:.2f}"
    benchmark.pedantic(ways["input_currents"], rounds=1)


@pytest.fixture(scope="module")
def small(scale):
    """A tenth of the connections: pydata-sparse is slow."""
    n = 94_000 if scale > 0.01 else 500
    connectivity = make_connectivity(n, int(3e6 * scale))
    rng = np.random.default_rng(0)
    ids, codes = connectivity[PRE].values, rng.integers(0, 20, n)
    size = connectivity.synapse_size
    return SimpleNamespace(
        connectivity=connectivity,
        size=size,
        coo=size.copy(data=size.data.tocoo()),
        rates=make_rates(n, 8),
        few=np.sort(rng.choice(ids, min(300, n // 4), replace=False)),
        many=np.sort(rng.choice(ids, min(5000, n // 4), replace=False)),
        labels=xr.DataArray(codes, {"nucleus_id": ids}, name="cell_type"),
        one_hot=sparse.GCXS.from_numpy((codes[:, None] == np.arange(20)).astype(np.int64)),
    )


# Of each way: what to call, and the numbers of its result that all ways of a group agree on.
OPERATIONS = {
    "contraction, 8 columns": {
        "input_currents": (lambda x: mx.input_currents(x.connectivity, x.rates), np.asarray),
        "xr.dot on GCXS": (
            lambda x: xr.dot(x.size, x.rates.rename(nucleus_id=PRE), dim=PRE),
            lambda found: found.transpose(POST, "direction").values,
        ),
        "xr.dot on COO": (
            lambda x: xr.dot(x.coo, x.rates.rename(nucleus_id=PRE), dim=PRE),
            lambda found: found.transpose(POST, "direction").values,
        ),
    },
    "300 labels of pre": {
        "select_connections": (
            lambda x: mx.select_connections(x.connectivity, pre=x.few),
            lambda found: found.synapse_size.data.tocoo().data,
        ),
        "DataArray.sel": (
            lambda x: x.size.sel({PRE: x.few}),
            lambda found: found.data.tocoo().data,
        ),
    },
    "5000 x 5000 labels": {
        "select_connections": (
            lambda x: mx.select_connections(x.connectivity, pre=x.many, post=x.many),
            lambda found: found.synapse_size.data.tocoo().data,
        ),
        "DataArray.sel": (
            lambda x: x.size.sel({PRE: x.many, POST: x.many}),
            lambda found: found.data.tocoo().data,
        ),
    },
    "sums": {
        "degrees (six sums)": (
            lambda x: mx.degrees(x.connectivity),
            lambda found: found.in_size.values,
        ),
        "DataArray.sum (one)": (lambda x: x.size.sum(PRE), lambda found: found.values),
    },
    "groups of 20 types": {
        "group_connectivity (three sums)": (
            lambda x: mx.group_connectivity(x.connectivity, x.labels),
            lambda found: found.synapse_size.values,
        ),
        "one-hot products (one)": (
            lambda x: x.one_hot.T @ (x.size.data @ x.one_hot),
            lambda found: found.todense(),
        ),
    },
}


@pytest.mark.parametrize(
    ("group", "way"), [(group, way) for group, ways in OPERATIONS.items() for way in ways]
)
def test_operation(benchmark, small, group, way):
    benchmark.group = f"plain xarray, {group}"
    call, numbers = OPERATIONS[group][way]
    if benchmark.disabled and way in ("DataArray.sel", "one-hot products (one)"):
        pytest.skip("pydata-sparse compiles for 10 s in every process")
    # For the same reason the first call is not timed.
    found = benchmark.pedantic(call, (small,), rounds=3, warmup_rounds=1)
    ours, ours_numbers = next(iter(OPERATIONS[group].values()))
    np.testing.assert_allclose(numbers(found), ours_numbers(ours(small)), rtol=1e-9)
