"""A file of all synapses to a store: seconds, peak memory, and the same with pandas in chunks.

    python tests/benchmarks/bench_ingest.py --rows 3_000_000 --pandas
    python tests/benchmarks/bench_ingest.py --rows 30_000_000 100_000_000 --folder /data

The files are like those of the archive: gzipped CSV without a header line, a header file beside,
fresh random rows throughout. Every run has a process of its own, which tells its peak memory.
pandas reads the needed columns in chunks of 500,000 rows, maps roots with an index, adds up pairs
chunk by chunk and at the end, and writes the same store with ``write_store``. ``--profile`` shows
where the time of the main thread goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import xarray as xr
from isal import igzip

import microns_xr as mx

HEADER = {
    "id": "bigint",
    "created": "timestamp without time zone",
    "valid": "boolean",
    "pre_pt_root_id": "bigint",
    "post_pt_root_id": "bigint",
    "size": "real",
    "ctr_pt_position_x": "integer",
    "ctr_pt_position_y": "integer",
    "ctr_pt_position_z": "integer",
}
BLOCK = 1_000_000
FULL_TABLE = 337_312_429


def make_units(n: int) -> xr.Dataset:
    """Units with nothing but what a store needs."""
    rng = np.random.default_rng(0)
    words = "classification_system cell_type brain_area strategy_axon strategy_dendrite "
    words += "axon_completeness layer tuning_type"
    roots = 864_691_135_000_000_000 + rng.choice(10**9, n, replace=False)
    units = xr.Dataset(
        {
            "pt_root_id": ("nucleus_id", roots),
            "position": (("nucleus_id", "axis"), rng.normal(size=(n, 3))),
            "axon_proofread": ("nucleus_id", rng.random(n) < 0.02),
            **{name: ("nucleus_id", np.array(["unknown"] * n, object)) for name in words.split()},
        },
        coords={
            "nucleus_id": np.sort(rng.choice(10**6, n, replace=False)).astype(np.int64),
            "axis": np.array(["x", "y", "z"], dtype=object),
        },
    )
    return mx.releases.stamp_release(units, "synthetic", 1)


def generate(path: Path, rows: int, units: xr.Dataset, keep_share: float) -> None:
    """Write a file; the share of rows that is kept is that of two independent ends."""
    rng = np.random.default_rng(rows)
    roots = units["pt_root_id"].values
    known = np.sqrt(keep_share)
    # A few neurons have many synapses.
    cut = np.cumsum(rng.dirichlet(np.full(len(roots), 2.0)))

    def ends(n: int) -> np.ndarray:
        who = np.minimum(np.searchsorted(cut, rng.random(n)), len(roots) - 1)
        stranger = rng.integers(864_691_135_000_000_000, 864_691_136_000_000_000, n)
        return np.where(rng.random(n) < known, roots[who], stranger)

    header = path.with_name(path.name.removesuffix(".csv.gz") + "_header.csv")
    header.write_text("".join(f"{name},{kind}\n" for name, kind in HEADER.items()))
    options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
    order = rng.permutation(-(-rows // BLOCK))
    with igzip.open(path, "wb", compresslevel=1) as file:
        for block, place in enumerate(order):
            n = min(BLOCK, rows - block * BLOCK)
            stamps = 1_600_000_000_000_000 + rng.integers(0, 10**12, n)
            created = pa.array(stamps.astype("datetime64[us]"))
            table = pa.table(
                {
                    "id": int(place) * BLOCK + rng.permutation(n) + 1,
                    "created": pa.compute.strftime(created, "%Y-%m-%d %H:%M:%S"),
                    "valid": pa.array(["t"] * n),
                    "pre_pt_root_id": ends(n),
                    "post_pt_root_id": ends(n),
                    "size": rng.lognormal(7, 1, n).astype(np.int64),
                    "ctr_pt_position_x": rng.integers(30_000, 430_000, n),
                    "ctr_pt_position_y": rng.integers(30_000, 330_000, n),
                    "ctr_pt_position_z": rng.integers(14_000, 28_000, n),
                }
            )
            pa.csv.write_csv(table, file, options)


def peak_memory() -> float:
    """The most memory this process has had, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def with_us(path: str, units: xr.Dataset, out: str, args: argparse.Namespace) -> None:
    """Ingest."""

    mx.ingest_synapses(
        path, units, out, memory=args.memory, positions=args.positions, scope="complete"
    )


def with_pandas(path: str, units: xr.Dataset, out: str, args: argparse.Namespace) -> None:
    """Do the same work in chunks of pandas."""
    from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern

    index = pd.Index(units["pt_root_id"].values)
    n = len(index)
    columns = ["pre_pt_root_id", "post_pt_root_id", "size"]
    parts = []
    chunks = pd.read_csv(path, names=list(HEADER), header=None, usecols=columns, chunksize=500_000)
    for chunk in chunks:
        pre, post = (index.get_indexer(chunk[name]) for name in columns[:2])
        kept = (pre >= 0) & (post >= 0)
        rows = pd.DataFrame(
            {"key": post[kept].astype(np.int64) * n + pre[kept], "size": chunk["size"][kept]}
        )
        parts.append(rows.groupby("key")["size"].agg(["sum", "count"]))
    pairs = pd.concat(parts).groupby(level=0).sum()
    post, pre = np.divmod(pairs.index.values, n)
    ids = units["nucleus_id"].values
    connectivity = connectivity_dataset(
        pairs["sum"].to_numpy(),
        pairs["count"].to_numpy(),
        make_pattern(pre.astype(np.int32), np.searchsorted(post, np.arange(n + 1)), (n, n), "post"),
        ids,
        ids,
        datastack="synthetic",
        version=1,
        scope="complete",
    )
    mx.write_store(out, units=units, connectivity=connectivity)


def child(args: argparse.Namespace) -> None:
    """Run one of the two, and print seconds and peak memory."""
    warnings.simplefilter("ignore")
    units = make_units(args.neurons)
    before, cpu_before = peak_memory(), time.process_time()
    profile = cProfile.Profile()
    start = time.perf_counter()
    if args.profile:
        profile.enable()
    {"us": with_us, "pandas": with_pandas}[args.child](args.path, units, args.out, args)
    if args.profile:
        profile.disable()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_before
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    print(f"RESULT {seconds} {cpu} {peak_memory()} {before}")


def run(kind: str, path: Path, out: Path, args: argparse.Namespace) -> tuple[float, ...]:
    """Start a process for one run."""
    command = [sys.executable, __file__, "--child", kind, "--path", str(path), "--out", str(out)]
    command += ["--neurons", str(args.neurons), "--memory", args.memory]
    command += ["--positions"] * args.positions + ["--profile"] * args.profile
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    *shown, result = done.stdout.strip().splitlines()
    if shown:
        print("\n".join(shown))
    return tuple(float(word) for word in result.split()[1:])


def warm(folder: Path, args: argparse.Namespace) -> None:
    """Compile the kernels into their cache."""
    path = folder / "warm.csv.gz"
    generate(path, 1000, make_units(args.neurons), args.keep_share)
    run("us", path, folder / "warm.zarr", args)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[3_000_000])
    parser.add_argument("--neurons", type=int, default=94_000)
    parser.add_argument("--keep-share", type=float, default=0.15, help="rows with two units")
    parser.add_argument("--memory", default="1 GB")
    parser.add_argument("--positions", action="store_true", help="also keep single synapses")
    parser.add_argument("--pandas", action="store_true", help="compare, at the smallest size")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep-files", action="store_true")
    parser.add_argument("--folder", default=None, help="where to write; a temporary folder")
    for name in ("child", "path", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    if args.folder:
        os.makedirs(args.folder, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=args.folder) if not args.keep_files else args.folder)
    try:
        warm(folder, args)
        print(f"{args.neurons:,} neurons, {args.keep_share:.0%} of rows kept, {args.memory}")
        print(
            f"{'rows':>12} {'':<8}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'M rows/s':>10}{'store MB':>10}"
        )
        for rows in args.rows:
            path = folder / f"synapses_{rows}.csv.gz"
            if not path.exists():
                start = time.perf_counter()
                generate(path, rows, make_units(args.neurons), args.keep_share)
                size, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
                print(f"{rows:>12,} generated: {size:,.0f} MB in {seconds:.0f} s", flush=True)
            kinds = ["us", *(["pandas"] if args.pandas and rows == min(args.rows) else [])]
            for _ in range(args.repeats):
                for kind in kinds:
                    out = folder / f"{kind}.zarr"
                    seconds, cpu, peak, before = run(kind, path, out, args)
                    stored = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
                    print(
                        f"{rows:>12,} {kind:<8}{seconds:8.1f}{cpu:8.1f}{peak:9.0f}"
                        f"{rows / seconds / 1e6:10.2f}{stored:10.0f}",
                        flush=True,
                    )
                    if kind == "us":
                        full = seconds * FULL_TABLE / rows
                        print(f"{'':>12} {FULL_TABLE:,} rows would take {full:.0f} s "
                              f"({before:.0f} MB were taken before)")  # fmt: skip
                    shutil.rmtree(out)
            if not args.keep_files:
                path.unlink()
    finally:
        if not args.keep_files:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
