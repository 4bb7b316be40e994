"""Stores larger than memory: currents, and the partners of some neurons, from disk.

Run ``python tests/benchmarks/bench_lazy.py FOLDER [--per-neuron 3200]``. A store of 94,000 neurons
with that many partners each (3,200 makes 300 million connections) is made in FOLDER, unless it is
there. Every measurement runs in a process of its own, which reports its time and its peak memory;
scipy does the same from the same store, all of it in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

import microns_xr as mx
from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern
from microns_xr.store.spill import PairSpill
from microns_xr.store.stream import ChunkPool, CopyWriter, plan_parent

N = 94_000
IDS = np.arange(100_000, 100_000 + N)
RELEASE = ("minnie65_demo", 1718)
WORDS = (
    "classification_system cell_type cell_type_raw brain_area strategy_axon strategy_dendrite "
    "layer tuning_type axon_completeness"
)


def make_store(path: Path, per_neuron: int, seed: int = 0) -> None:
    """Write a random store, a few neurons at a time; in-degrees are gamma distributed."""
    rng = np.random.default_rng(seed)
    mx.write_store(path, units=_units())
    root = zarr.open_group(path, mode="a", zarr_format=3)
    empty = make_pattern(np.zeros(0), np.zeros(N + 1), (N, N), "post")
    none = np.zeros(0, dtype=np.int64)
    template = connectivity_dataset(
        none, none, empty, IDS, IDS, datastack=RELEASE[0], version=RELEASE[1], scope="complete"
    )
    in_degree = rng.gamma(2.0, per_neuron / 2.0, N).astype(int)
    with ChunkPool() as pool, PairSpill(f"{path}.spill", N) as spill:
        by_post = CopyWriter(root, "post", (N, N), pool)
        for first in range(0, N, 500):
            partners = [
                np.unique(rng.integers(0, N, n, dtype=np.int32))
                for n in in_degree[first : first + 500]
            ]
            lengths = np.array([p.size for p in partners])
            indices = np.concatenate(partners)
            size = (rng.gamma(1.5, 800, indices.size) + 60).astype(np.int64)
            count = 1 + (rng.random(indices.size) < 0.1).astype(np.int64)
            by_post.append(lengths, indices, size, count)
            spill.add(first, lengths, indices, size, count)
        by_post.finish(template)
        by_pre = CopyWriter(root, "pre", (N, N), pool)
        spill.write(by_pre)
        by_pre.finish(template)
    root.require_group("connectivity").update_attributes(plan_parent(template).attrs)


def _units() -> xr.Dataset:
    coords = {"nucleus_id": IDS, "axis": np.array(["x", "y", "z"], dtype=object)}
    units = xr.Dataset({"pt_root_id": ("nucleus_id", IDS + 864691135000000000)}, coords)
    units["position"] = (("nucleus_id", "axis"), np.zeros((N, 3)))
    for name in WORDS.split():
        units[name] = ("nucleus_id", np.full(N, "none", dtype=object))
    units["axon_proofread"] = ("nucleus_id", np.zeros(N, dtype=bool))
    for name in ("n_scans", "n_scan_units"):
        units[name] = ("nucleus_id", np.zeros(N, dtype=np.int64))
    return mx.releases.stamp_release(units, *RELEASE)


def rates(columns: int) -> xr.DataArray:
    """Return rates of half of the neurons."""
    rng = np.random.default_rng(1)
    table = rng.gamma(2.0, 1.0, (N, columns))
    table[rng.random(N) < 0.5] = np.nan
    array = xr.DataArray(table, {"nucleus_id": IDS}, ("nucleus_id", "direction"), "rate_dir")
    return mx.releases.stamp_release(array, *RELEASE)


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    """Return the last result and the milliseconds of every call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(1e3 * (time.perf_counter() - start))
    return result, times


def peak_mb() -> float:
    """Return the peak memory of this process and of the children that have ended."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def currents_threads(path: str, columns: int) -> dict[str, Any]:
    """Currents of a store, blocks on the threads of this process."""
    values = rates(columns)
    few = values.isel(nucleus_id=slice(0, 2)).assign_coords(nucleus_id=[11, 12])
    mx.input_currents(_warm_up(), few)  # loads what is compiled
    before = peak_mb()
    result, times = timed(lambda: mx.input_currents(path, values), 1)
    return {"ms": times[0], "peak": peak_mb(), "before": before, "sum": float(np.nansum(result))}


def currents_cluster(path: str, columns: int) -> dict[str, Any]:
    """Currents of a store on two processes."""
    import dask
    import psutil
    from distributed import Client, LocalCluster

    settings = {"distributed.admin.large-graph-warning-threshold": "50MB"}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        values = rates(columns)
        client.run(_warm_up_worker)
        result, times = timed(lambda: mx.input_currents(path, values), 1)
        peaks = client.run(peak_mb)
        own = psutil.Process().memory_info().rss / 1e6
    total = sum(peaks.values()) + own
    return {"ms": times[0], "peak": total, "before": own, "sum": float(np.nansum(result))}


def currents_scipy(path: str, columns: int) -> dict[str, Any]:
    """The same with a scipy matrix that is loaded first."""
    import anndata

    values = np.nan_to_num(rates(columns).values)
    before = peak_mb()

    def work() -> Any:
        matrix = anndata.io.read_elem(zarr.open(path, mode="r")["connectivity/by_post"])
        return matrix.T @ values

    result, times = timed(work, 1)
    return {"ms": times[0], "peak": peak_mb(), "before": before, "sum": float(result.sum())}


def neurons(path: str, columns: int) -> dict[str, Any]:
    """Partners of one neuron, of 1,000 neighbours and of 1,000 random ones; medians of warm calls."""
    rng = np.random.default_rng(2)
    few = np.sort(rng.choice(IDS, 1000, replace=False))
    tree = mx.open_store(path, lazy=True)
    found: dict[str, Any] = {}
    for function in (mx.inputs_to, mx.outputs_from):
        name = function.__name__
        cases = {
            "one, store opened before": lambda f=function: f(tree, int(IDS[N // 2])),
            "one, by path": lambda f=function: f(path, int(IDS[N // 2])),
            "1,000 neighbours": lambda f=function: f(tree, IDS[500:1500]),
            "1,000 random": lambda f=function: f(tree, few),
        }
        for case, work in cases.items():
            work()
            found[f"{name}, {case}"] = float(
                np.median(timed(work, 7 if "random" not in case else 2)[1])
            )
    group = zarr.open_group(path, mode="r")["connectivity/by_post"]
    names = ("indices", "data", "synapse_count")
    found["full read of one copy with zarr"] = timed(lambda: [group[n][:] for n in names], 2)[1][-1]
    found["opening lazily"] = float(np.median(timed(lambda: mx.open_store(path, lazy=True), 7)[1]))
    return found


def _warm_up() -> xr.Dataset:
    from microns_xr.connectivity.arrays import two_neurons

    return two_neurons()


def _warm_up_worker() -> None:
    values = xr.DataArray(np.ones((2, 16)), {"nucleus_id": [11, 12]}, ("nucleus_id", "direction"))
    mx.input_currents(_warm_up(), values)


MODES = {
    "threads": currents_threads,
    "cluster": currents_cluster,
    "scipy": currents_scipy,
    "neurons": neurons,
}


def measured(mode: str, path: Path, columns: int) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, str(path), "--mode", mode, "--columns", str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-neuron", type=int, default=3200)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--mode", choices=list(MODES))
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(MODES[options.mode](str(options.folder), options.columns)))
        return
    path = options.folder / f"{options.per_neuron}.zarr"
    if not path.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        _, (ms,) = timed(lambda: make_store(path, options.per_neuron), 1)
        print(f"store made in {ms / 1e3:.0f} s")
    n = zarr.open_group(path, mode="r")["connectivity/by_post/indices"].shape[0]
    print(f"{n:,} connections, {options.columns} columns, half of the neurons rated")
    rows = {mode: measured(mode, path, options.columns) for mode in ("threads", "cluster", "scipy")}
    for mode, row in rows.items():
        ratio = row["ms"] / rows["scipy"]["ms"]
        print(
            f"{mode:8} {row['ms'] / 1e3:7.2f} s  {ratio:5.2f} of scipy  peak {row['peak']:6.0f} MB"
            f"  sum {row['sum']:.12g}"
        )
    for name, ms in measured("neurons", path, options.columns).items():
        print(f"{name:45} {ms:8.1f} ms")


if __name__ == "__main__":
    main()
