"""Writing and reading stores: whole, lazily and from a bucket."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from unittest import mock

import anndata
import numpy as np
import pytest
import scipy.sparse
import zarr
from s3_server import Bucket
from synthetic import make_connectivity, make_rates, make_units

import microns_xr as mx
from microns_xr.store.format import compressors
from microns_xr.store.locate import read_span, readable

pytestmark = pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")  # anndata's


@pytest.fixture(scope="module")
def data(scale, tmp_path_factory):
    n = 94_000 if scale > 0.01 else 500
    units, connectivity = make_units(n), make_connectivity(n, int(30e6 * scale))
    folder = tmp_path_factory.mktemp("stores")
    mx.write_store(folder / "store.zarr", units=units, connectivity=connectivity)
    csc = mx.to_scipy(connectivity).tocsc()
    scipy.sparse.save_npz(folder / "matrix.npz", csc, compressed=False)
    group = zarr.open_group(folder / "anndata.zarr", mode="w", zarr_format=3)
    anndata.io.write_elem(group, "matrix", csc)
    data = SimpleNamespace(
        n=n,
        units=units,
        connectivity=connectivity,
        csc=csc,
        folder=folder,
        path=folder / "store.zarr",
        rates=make_rates(n, 16, rated=0.5),
        ids=units.nucleus_id.values,
    )
    write_unchecked(folder / "unchecked.zarr", data)
    return data


def write_unchecked(path, data):
    """Write a store without checksums of the chunks, as early versions did."""
    with mock.patch("microns_xr.store.stream.compressors", lambda size: compressors(size)[:1]):
        mx.write_store(path, units=data.units, connectivity=data.connectivity)


def bytes_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# Of each way: how to write, and how to read back the sizes.
WRITING = {
    "write_store, two copies, sizes and counts": (
        lambda data, out: mx.write_store(out, units=data.units, connectivity=data.connectivity),
        lambda out: mx.to_scipy(mx.open_store(out)["connectivity"].to_dataset()),
    ),
    "write_store, the same without checksums": (
        lambda data, out: write_unchecked(out, data),
        lambda out: mx.to_scipy(mx.open_store(out)["connectivity"].to_dataset()),
    ),
    "anndata write_elem, one copy, sizes": (
        lambda data, out: anndata.io.write_elem(
            zarr.open_group(out, mode="w", zarr_format=3), "matrix", data.csc
        ),
        lambda out: anndata.io.read_elem(zarr.open(out)["matrix"]),
    ),
}


@pytest.mark.benchmark(group="store, write")
@pytest.mark.parametrize("way", WRITING)
def test_write(benchmark, data, way):
    out = data.folder / "out.zarr"
    write, read = WRITING[way]

    def setup():
        shutil.rmtree(out, ignore_errors=True)
        return (data, out), {}

    benchmark.pedantic(write, setup=setup, rounds=3)
    benchmark.extra_info["bytes per connection"] = round(bytes_of(out) / data.csc.nnz, 2)
    assert (read(out).tocsc() != data.csc).nnz == 0


READING = {
    "open_store, sizes and counts": lambda data: mx.to_scipy(
        mx.open_store(data.path)["connectivity"].to_dataset()
    ),
    "open_store, without checksums": lambda data: mx.to_scipy(
        mx.open_store(data.folder / "unchecked.zarr")["connectivity"].to_dataset()
    ),
    "anndata read_elem of the same store": lambda data: anndata.io.read_elem(
        zarr.open(data.path)["connectivity/by_post"]
    ),
    "anndata read_elem of its own": lambda data: anndata.io.read_elem(
        zarr.open(data.folder / "anndata.zarr")["matrix"]
    ),
    "scipy load_npz, not compressed": lambda data: scipy.sparse.load_npz(
        data.folder / "matrix.npz"
    ),
}


@pytest.mark.benchmark(group="store, read")
@pytest.mark.parametrize("way", READING)
def test_read(benchmark, data, way):
    found = benchmark.pedantic(READING[way], (data,), rounds=3, warmup_rounds=1)
    assert (found.tocsc() != data.csc).nnz == 0


def read_then_scipy(path, rates):
    matrix = anndata.io.read_elem(zarr.open(path, mode="r")["connectivity/by_post"])
    return matrix.T @ np.nan_to_num(rates.values)


CURRENTS = {"input_currents of a path": mx.input_currents, "read, then scipy": read_then_scipy}


@pytest.mark.benchmark(group="store, currents from disk")
@pytest.mark.parametrize("way", CURRENTS)
def test_currents_from_disk(benchmark, data, peak, way):
    found = benchmark.pedantic(CURRENTS[way], (data.path, data.rates), rounds=3, warmup_rounds=1)
    expected = read_then_scipy(data.path, data.rates)
    np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=1e-9)
    peak(
        benchmark,
        f"from bench_store import *\nrates = make_rates({data.n}, 16, rated=0.5)",
        f"CURRENTS[{way!r}]({str(data.path)!r}, rates)",
    )


# Of each way: what to call, and the summed size of its result and of the matrix in memory.
PARTNERS = {
    "inputs_to one neuron": (
        lambda data: mx.inputs_to(data.path, data.ids[data.n // 2]),
        lambda data, found: (found.synapse_size.sum(), data.csc[:, [data.n // 2]].sum()),
    ),
    "outputs_from one neuron": (
        lambda data: mx.outputs_from(data.path, data.ids[data.n // 2]),
        lambda data, found: (found.synapse_size.sum(), data.csc[[data.n // 2]].sum()),
    ),
    "inputs_to 100 neighbours": (
        lambda data: mx.inputs_to(data.path, data.ids[200:300]),
        lambda data, found: (found.synapse_size.data.sum(), data.csc[:, 200:300].sum()),
    ),
    "open_store, lazily": (
        lambda data: mx.open_store(data.path, lazy=True),
        lambda data, found: (
            mx.to_scipy(found["connectivity"].to_dataset().compute()).sum(),
            data.csc.sum(),
        ),
    ),
    "read one copy with zarr": (
        lambda data: [
            zarr.open_group(data.path, mode="r")[f"connectivity/by_post/{name}"][:]
            for name in ("data", "indices", "synapse_count")
        ],
        lambda data, found: (found[0].sum(), data.csc.sum()),
    ),
}


@pytest.mark.benchmark(group="store, partners from disk")
@pytest.mark.parametrize("way", PARTNERS)
def test_partners(benchmark, data, way):
    call, sums = PARTNERS[way]
    found, expected = sums(data, benchmark.pedantic(call, (data,), rounds=5, warmup_rounds=1))
    assert int(found) == int(expected)


@pytest.fixture(scope="module")
def bucket():
    with Bucket() as bucket:
        yield bucket


SPANS = {"read_span": read_span, "zarr": lambda array, start, stop: array[start:stop]}


@pytest.mark.parametrize("way", SPANS)
@pytest.mark.parametrize("neurons", [1, 1000])
def test_bucket(benchmark, bucket, scale, neurons, way):
    """Chunks in shards as a store has them, behind a server that answers 30 ms late."""
    benchmark.group = f"bucket, partners of {neurons} neurons"
    partners, rng = 3200, np.random.default_rng(0)
    n = max(partners, int(1e8 * scale) // partners * partners)
    values = (np.exp(rng.normal(7.5, 1, n)) * 4).astype(np.int32)
    place = bucket.obstore(f"{neurons}-{way}")
    written = zarr.open_group(place, mode="w-", zarr_format=3)
    written.create_array(
        "data", shape=n, dtype=values.dtype, chunks=(2**16,), shards=(2**22,), filters=None,
        compressors=compressors(4),
    )[:] = values  # fmt: skip
    array = zarr.open_group(readable(place), mode="r")["data"]
    start = n // partners // 3 * partners
    stop = min(start + neurons * partners, n)
    bucket.seconds_a_request = 0.03
    try:
        with bucket.asked() as seen:
            SPANS[way](array, start, stop)
        found = benchmark.pedantic(SPANS[way], (array, start, stop), rounds=3)
    finally:
        bucket.seconds_a_request = 0.0
    np.testing.assert_array_equal(found, values[start:stop])
    benchmark.extra_info["requests"] = len(seen)
    benchmark.extra_info["MB"] = round(sum(one.sent for one in seen) / 1e6, 2)
