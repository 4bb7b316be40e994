"""Time and peak memory of `connection_probability` beside a dense implementation in numpy.

python tests/benchmarks/bench_probability.py
python tests/benchmarks/bench_probability.py --dense-full

Every line is a process of its own, so that its peak memory is its own: the rise of the resident
set over what the process held with the data loaded. Compiled kernels are made beforehand, on a few
neurons. Where both run on one size their counts are checked to be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import xarray as xr

import microns_xr as mx
from microns_xr.analysis.resample import bootstrap_ratio
from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern

N_TYPES = 20
INTERVALS = {"bootstrap": mx.analysis.Bootstrap(), "wilson": mx.analysis.Wilson()}
EDGES = np.arange(0, 1001, 50.0)  # 20 bins


def synthetic(n_pre: int, n_post: int, seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """Connectivity of the first `n_pre` of `n_post` neurons with all, 1 % of the pairs connected."""
    rng = np.random.default_rng(seed)
    ids = 100_000 + 3 * np.arange(n_post)
    n_partners = rng.binomial(n_post, 0.01, n_pre)
    indices = np.concatenate(
        [np.sort(rng.choice(n_post, n, replace=False)) for n in n_partners]
    ).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(n_partners)])
    pattern = make_pattern(indices, indptr, (n_pre, n_post), "pre")
    ones = np.ones(indices.size, dtype=np.int64)
    connectivity = connectivity_dataset(
        1000 * ones, ones, pattern, ids[:n_pre], ids,
        datastack="minnie65_public", version=1718, scope="requested",
    )  # fmt: skip
    types = np.array([f"type {i:02}" for i in range(N_TYPES)], dtype=object)
    units = xr.Dataset(
        {
            "position": (("nucleus_id", "axis"), rng.uniform(0, [1200, 800, 800], (n_post, 3))),
            "cell_type": ("nucleus_id", types[rng.integers(0, N_TYPES, n_post)]),
            "axon_completeness": ("nucleus_id", np.full(n_post, "full", dtype=object)),
            "strategy_axon": (
                "nucleus_id",
                np.full(n_post, "axon_fully_extended", dtype=object),
            ),
        },
        coords={"nucleus_id": ids, "axis": list("xyz")},
    )
    return connectivity, mx.releases.stamp_release(units, "minnie65_public", 1718)


def ours(connectivity: xr.Dataset, units: xr.Dataset, interval: str) -> np.ndarray:
    found = mx.analysis.connection_probability(
        connectivity, units, distance=EDGES, interval=INTERVALS[interval]
    )
    return np.stack([found.n_pairs.values, found.n_connected.values])


def dense(connectivity: xr.Dataset, units: xr.Dataset, interval: str) -> np.ndarray:
    """The same with matrices of all pairs."""
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
    result = []
    for group in range(types.size):
        members = codes[:n_pre] == group
        if interval == "bootstrap":
            bootstrap_ratio(n_connected[members], n_pairs[members], INTERVALS[interval])
        result.append([n_pairs[members].sum(axis=0), n_connected[members].sum(axis=0)])
    return np.stack(result, axis=1)


def measured(function, *args) -> dict:
    process = psutil.Process()
    before = process.memory_info().rss
    peak, running = [before], [True]

    def watch() -> None:
        while running[0]:
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        table = function(*args)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] > 10:
            break
    running[0] = False
    watcher.join()
    digest = hashlib.sha256(np.ascontiguousarray(table, dtype=np.int64)).hexdigest()
    return {"seconds": min(seconds), "megabytes": (peak[0] - before) / 1e6, "counts": digest}


def child(name: str, n_pre: int, n_post: int, interval: str) -> None:
    function = {"ours": ours, "dense": dense}[name]
    function(*synthetic(30, 200), interval)
    connectivity, units = synthetic(n_pre, n_post)
    print(json.dumps(measured(function, connectivity, units, interval)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dense-full", action="store_true", help="dense on the full size too")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, n_pre, n_post, interval = options.child
        child(name, int(n_pre), int(n_post), interval)
        return
    print(f"{N_TYPES} types, {EDGES.size - 1} bins, 1 % of the pairs connected")
    for n_pre, n_post in ((500, 5_000), (2_000, 60_000)):
        for interval in ("wilson", "bootstrap"):
            names = ("ours", "dense") if n_post < 10_000 or options.dense_full else ("ours",)
            digests = set()
            for name in names:
                command = [sys.executable, __file__, "--child", name]
                command += [str(n_pre), str(n_post), interval]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                result = json.loads(answer.stdout.splitlines()[-1])
                digests.add(result["counts"])
                print(
                    f"  {n_pre:>5} x {n_post:<6} {interval:<10}{name:<6}"
                    f"{result['seconds']:>8.3f} s {result['megabytes']:>8.0f} MB"
                )
            assert len(digests) == 1, "the two count differently"


if __name__ == "__main__":
    main()
