"""A file like the archive's of all synapses to a store, beside pandas in chunks; peak memory."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest
from isal import igzip
from synthetic import make_units

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
KEPT = 0.15  # of the rows have two units, as in the real table


def generate(path, rows, units):
    """Write random rows without a header line, and the header file beside."""
    rng = np.random.default_rng(rows)
    roots = units["pt_root_id"].values
    # A few neurons have many synapses.
    cut = np.cumsum(rng.dirichlet(np.full(len(roots), 2.0)))

    def ends(n):
        units_at = np.minimum(np.searchsorted(cut, rng.random(n)), len(roots) - 1)
        others = rng.integers(864_691_135_000_000_000, 864_691_136_000_000_000, n)
        return np.where(rng.random(n) < np.sqrt(KEPT), roots[units_at], others)

    header = path.with_name(path.name.removesuffix(".csv.gz") + "_header.csv")
    header.write_text("".join(f"{name},{kind}\n" for name, kind in HEADER.items()))
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
    with igzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            stamps = 1_600_000_000_000_000 + rng.integers(0, 10**12, n)
            table = pa.table(
                {
                    "id": start + rng.permutation(n) + 1,
                    "created": pc.strftime(
                        pa.array(stamps.astype("datetime64[us]")), "%Y-%m-%d %H:%M:%S"
                    ),
                    "valid": pa.array(["t"] * n),
                    "pre_pt_root_id": ends(n),
                    "post_pt_root_id": ends(n),
                    "size": rng.lognormal(7, 1, n).astype(np.int64),
                    "ctr_pt_position_x": rng.integers(30_000, 430_000, n),
                    "ctr_pt_position_y": rng.integers(30_000, 330_000, n),
                    "ctr_pt_position_z": rng.integers(14_000, 28_000, n),
                }
            )
            pyarrow.csv.write_csv(table, file, options)


def ingest(path, units, out):
    mx.ingest_synapses(path, units, out, memory="1 GB", scope="complete", progress=False)


def chunks_of_pandas(path, units, out):
    index = pd.Index(units["pt_root_id"].values)
    columns = ["pre_pt_root_id", "post_pt_root_id", "size"]
    parts = []
    for chunk in pd.read_csv(
        path, names=list(HEADER), header=None, usecols=columns, chunksize=500_000
    ):
        known = [index.get_indexer(chunk[name]) >= 0 for name in columns[:2]]
        parts.append(chunk[known[0] & known[1]])
    synapses = pd.concat(parts, ignore_index=True).assign(id=lambda t: np.arange(len(t)))
    connectivity = mx.build_connectivity(synapses, units, scope="complete")
    mx.write_store(out, units=units, connectivity=connectivity)


WAYS = {"ingest_synapses": ingest, "pandas in chunks": chunks_of_pandas}


@pytest.fixture(scope="module")
def file(scale, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ingest")
    n, rows = (94_000, int(10_000_000 * scale)) if scale > 0.01 else (300, 3000)
    generate(folder / "synapses.csv.gz", rows, make_units(n))
    return folder / "synapses.csv.gz", n


@pytest.mark.benchmark(group="ingest of csv.gz")
@pytest.mark.parametrize("way", WAYS)
def test_ingest(benchmark, file, tmp_path, peak, way):
    path, n = file
    units, out = make_units(n), tmp_path / "out.zarr"

    def setup():
        shutil.rmtree(out, ignore_errors=True)
        return (path, units, out), {}

    benchmark.pedantic(WAYS[way], setup=setup, rounds=3)
    chunks_of_pandas(path, units, tmp_path / "expected.zarr")
    found, expected = (
        mx.open_store(store)["connectivity"].to_dataset()
        for store in (out, tmp_path / "expected.zarr")
    )
    for name in ("synapse_size", "synapse_count"):
        assert (found[name].data != expected[name].data).nnz == 0
    peak(
        benchmark,
        f"from bench_ingest import *\nunits = make_units({n})",
        f"WAYS[{way!r}]({str(path)!r}, units, {str(tmp_path / 'peak.zarr')!r})",
    )
