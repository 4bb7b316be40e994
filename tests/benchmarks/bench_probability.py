"""`connection_probability` beside a dense implementation in numpy, with peak memory."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import make_connectivity, make_units

import microns_xr as mx
from microns_xr.analysis.resample import bootstrap_ratio

INTERVALS = {"bootstrap": mx.analysis.Bootstrap(), "wilson": mx.analysis.Wilson()}
EDGES = np.arange(0, 1001, 50.0)  # 20 bins


def make(scale):
    """Up to 5,000 presynaptic and 50,000 other neurons; a hundredth of the pairs is connected."""
    n_pre, n_post = max(20, int(5_000 * scale)), max(200, int(50_000 * scale))
    connectivity = make_connectivity(n_post, n_pre * n_post // 100, n_pre=n_pre)
    return connectivity, make_units(n_post)


def ours(connectivity, units, interval):
    found = mx.analysis.connection_probability(
        connectivity, units, distance=EDGES, interval=INTERVALS[interval], presynaptic="all"
    )
    return np.array([found.n_pairs.sum(), found.n_connected.sum()])


def dense(connectivity, units, interval):
    x, _, z = units.position.values.T
    n_pre = connectivity.sizes["pre_nucleus_id"]
    connected = connectivity.synapse_count.data.todense() > 0
    distance = np.sqrt((x - x[:n_pre, None]) ** 2 + (z - z[:n_pre, None]) ** 2)
    bins = np.searchsorted(EDGES, distance, side="right") - 1
    tested = (distance >= EDGES[0]) & (distance < EDGES[-1])
    tested[np.arange(n_pre), np.arange(n_pre)] = False  # autapses
    types, codes = np.unique(units.cell_type.values.astype(str), return_inverse=True)
    n_bins = EDGES.size - 1
    cell = (np.arange(n_pre)[:, None] * types.size + codes) * n_bins + bins
    shape = (n_pre, types.size, n_bins)
    n_pairs, n_connected = (
        np.bincount(cell[chosen], minlength=np.prod(shape)).reshape(shape)
        for chosen in (tested, tested & connected)
    )
    if interval == "bootstrap":
        for group in np.unique(codes[:n_pre]):
            members = codes[:n_pre] == group
            bootstrap_ratio(n_connected[members], n_pairs[members], INTERVALS[interval])
    return np.array([n_pairs.sum(), n_connected.sum()])


@pytest.mark.parametrize("way", ["ours", "dense"])
@pytest.mark.parametrize("interval", list(INTERVALS))
def test_probability(benchmark, scale, peak, interval, way):
    benchmark.group = f"connection probability, {interval}"
    data = make(scale)
    function = {"ours": ours, "dense": dense}[way]
    found = benchmark.pedantic(function, (*data, interval), rounds=3, warmup_rounds=1)
    np.testing.assert_array_equal(found, dense(*data, "wilson"))
    peak(
        benchmark,
        f"from bench_probability import *\ndata = make({scale})\n{way}(*make(0), {interval!r})",
        f"{way}(*data, {interval!r})",
    )
