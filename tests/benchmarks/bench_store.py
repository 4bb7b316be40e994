"""Writing and reading a store: seconds, and bytes a connection.

    python tests/benchmarks/bench_store.py --connections 30_000_000

Each figure is the best and the median of a few runs; the files stay in the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import xarray as xr
import zarr

import microns_xr as mx
from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern
from microns_xr.store.format import BLOCKSIZE, CHUNK, pattern_problems
from microns_xr.store.open import open_root, read_group
from microns_xr.store.stream import pairs_of, plan_matrix, transposed
from microns_xr.store.write import _write_groups


def synthetic(n: int, n_connections: int, seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """Units with eight columns of text, and connectivity with skewed degrees and sizes."""
    rng = np.random.default_rng(seed)
    per_post = rng.multinomial(n_connections, rng.dirichlet(np.full(n, 2.0)))
    keys = np.repeat(np.arange(n, dtype=np.int64) * n, per_post)
    keys += rng.integers(0, n, keys.size)
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    post, pre = np.divmod(keys, n)
    indptr = np.searchsorted(post, np.arange(n + 1))
    ids = np.sort(rng.choice(10**6, n, replace=False)).astype(np.int64)
    connectivity = connectivity_dataset(
        rng.lognormal(7, 1, keys.size).astype(np.int64),
        rng.geometric(0.85, keys.size),
        make_pattern(pre.astype(np.int32), indptr, (n, n), "post"),
        ids,
        ids,
        datastack="synthetic",
        version=1,
        scope="complete",
    )
    words = np.array([f"word {i}" for i in range(20)], dtype=object)
    text = (
        "classification_system cell_type brain_area strategy_axon strategy_dendrite "
        "axon_completeness layer tuning_type"
    )
    units = xr.Dataset(
        {
            "pt_root_id": ("nucleus_id", rng.integers(10**17, 10**18, n)),
            "position": (("nucleus_id", "axis"), rng.normal(size=(n, 3))),
            "axon_proofread": ("nucleus_id", rng.random(n) < 0.02),
            "rate_ori": (("nucleus_id", "orientation"), rng.random((n, 8))),
            "rate_dir": (("nucleus_id", "direction"), rng.random((n, 16))),
            **{name: ("nucleus_id", rng.choice(words, n)) for name in text.split()},
        },
        coords={"nucleus_id": ids, "axis": np.array(["x", "y", "z"], dtype=object)},
    )
    return mx.releases.stamp_release(units, "synthetic", 1), connectivity


def measure(
    label: str,
    call: Callable[[], object],
    repeats: int,
    n: int | None = None,
    before: Callable[[], object] | None = None,
) -> None:
    """Print best and median seconds and, for `n` connections, millions a second."""
    seconds, cpu = [], []
    for _ in range(repeats):
        if before is not None:
            before()
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    rate = "" if n is None else f"{n / min(seconds) / 1e6:8.0f}"
    print(
        f"{label:<46}{min(seconds):8.3f}{statistics.median(seconds):8.3f}{min(cpu):8.3f}{rate}",
        flush=True,
    )


def bytes_of(path: str) -> int:
    """Return the size of all files below a folder."""
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=int, default=94_000)
    parser.add_argument("--connections", type=int, default=30_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write; a temporary folder")
    args = parser.parse_args()
    units, connectivity = synthetic(args.neurons, args.connections)
    few = units.isel(nucleus_id=slice(0, 3))
    pairs = pairs_of(connectivity)
    n = pairs.pattern.nnz
    by_post = plan_matrix(connectivity, pairs)
    folder = tempfile.mkdtemp(dir=args.folder)
    path = os.path.join(folder, "store.zarr")
    only_units = os.path.join(folder, "units.zarr")
    print(f"{args.neurons:,} neurons, {n:,} connections, chunk {CHUNK:,}, block {BLOCKSIZE:,}")
    print(f"{'':<46}{'best s':>8}{'median':>8}{'CPU s':>8}{'M/s':>8}")
    try:
        measure("check of the pattern, ranges and dtypes", lambda: pairs_of(connectivity), 3, n)
        measure("transpose to the other copy", lambda: transposed(pairs), 3, n)
        measure(
            "write by_post alone, with counts",
            lambda: _write_groups(zarr.open_group(path, mode="a"), [by_post], None),
            args.repeats,
            n,
            before=lambda: shutil.rmtree(path, ignore_errors=True),
        )
        shutil.rmtree(path)
        measure(
            "write_store, both copies with counts",
            lambda: mx.write_store(path, units=few, connectivity=connectivity),
            args.repeats,
            n,
            before=lambda: shutil.rmtree(path, ignore_errors=True),
        )
        measure(
            "the same in place of an older store",
            lambda: mx.write_store(path, units=few, connectivity=connectivity),
            args.repeats,
            n,
        )
        root = open_root(path)
        for axis in ("post", "pre"):
            measure(
                f"read by_{axis}, size and count as int64",
                lambda axis=axis: read_group(root, "connectivity", compressed=axis),
                args.repeats,
                n,
            )
        pattern = pairs.pattern
        measure(
            "of which the check of the pattern",
            lambda: pattern_problems(pattern.indices, pattern.indptr, pattern.shape, "post"),
            3,
            n,
        )
        measure(
            "xr.open_datatree(engine='microns_xr')",
            lambda: xr.open_datatree(path, engine="microns_xr"),
            args.repeats,
            n,
        )
        measure("write units alone", lambda: mx.write_store(only_units, units=units), args.repeats)
        measure("open units alone", lambda: mx.open_store(only_units), args.repeats)
        for axis in ("post", "pre"):
            copy = os.path.join(path, "connectivity", f"by_{axis}")
            names = sorted(os.listdir(copy))
            sizes = {
                name: bytes_of(os.path.join(copy, name)) / n
                for name in names
                if os.path.isdir(os.path.join(copy, name))
            }
            largest = ", ".join(f"{k} {v:.3f}" for k, v in sizes.items() if v >= 0.001)
            print(f"bytes a connection, by_{axis}: {sum(sizes.values()):.2f} ({largest})")
        print(f"whole store: {bytes_of(path) / 1e6:.0f} MB, {bytes_of(path) / n:.2f} bytes each")
        print(f"units alone: {bytes_of(only_units) / 1e6:.1f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
