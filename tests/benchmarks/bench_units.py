"""Unit table: time from parquet, and against the pandas package in the same process.

    python tests/benchmarks/bench_units.py [--nuclei 94000]

The pandas package (microns-combiner) is compared if it is installed:
``pip install --no-deps microns-combiner``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import microns_xr as mx


def best_of(n, call):
    times = []
    for _ in range(n):
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
    return min(times), result


def pandas_package(raw: Path):
    """The steps of the pandas package's process_nucleus_data, by its own functions, from csv."""
    import pandas as pd
    from microns_combiner import processing

    spec = mx.releases.release_spec(1507)
    tables = {
        role: pd.read_csv(raw / f"{spec.tables[role]}.csv")
        for role in ("nucleus", "celltype", "brain_area", "proofreading", "functional_properties")
    }
    nuclei = tables["nucleus"].rename(columns={"id": "nucleus_id"})
    units = processing._merge_nucleus_with_cell_types(nuclei, tables["celltype"])
    units = processing._merge_brain_area(units, tables["brain_area"])
    units = processing._merge_proofreading_status(units, tables["proofreading"], 1507)
    units = processing._transform_positions(units)
    units = units[units["pt_root_id"] > 0].drop_duplicates(subset="pt_root_id", keep=False)
    units = processing._merge_functional_properties(
        units, tables["functional_properties"], mode="best_only"
    )
    segments = processing._merge_segments_by_layer(
        processing._divide_volume_into_segments(units, spec.tables["celltype"])
    )
    processing._add_layer_info(units, segments)
    return units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=int, default=94_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = mx.sources.DemoSource(1507, n_nuclei=args.nuclei, n_synapses=10_000)
        parquet, csv = Path(folder, "parquet"), Path(folder, "csv")
        source.write(parquet, format="parquet")
        source.write(csv, format="csv")
        rows = []
        for name, path in (("parquet", parquet), ("csv", csv)):
            for mode in ("none", "best_only"):
                seconds, units = best_of(
                    3, lambda p=path, m=mode: mx.Release(1507, source=p).units(functional=m)
                )
                rows.append((f"Release.units({mode!r}) from {name}", seconds))
        reference = rows[1][1]
        try:
            import microns_combiner  # noqa: F401
        except ImportError:
            print("microns-combiner is not installed, so it is not compared")
        else:
            raw = next(csv.rglob("nucleus_detection_v0.csv")).parent
            seconds, _ = best_of(2, lambda: pandas_package(raw))
            rows.append(("pandas package, best_only, from csv", seconds))
        print(f"{args.nuclei} nuclei, {units.sizes['nucleus_id']} units")
        for name, seconds in rows:
            print(f"{name:<45} {seconds:8.3f} s   ratio {seconds / reference:6.2f}")


if __name__ == "__main__":
    main()
