"""The same graphs on a cluster of processes: the same bits, read by the workers themselves."""

from __future__ import annotations

import os
import pickle
import shutil

import dask
import lazy_examples as lz
import matrix_stores as ms
import numpy as np
import pytest
import store_examples as ex
import xarray as xr

import microns_xr as mx
from microns_xr.connectivity import blocks
from microns_xr.store.nodes import StoredPairs

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    settings = {"distributed.admin.large-graph-warning-threshold": "50MB"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def connectivity(demo_store):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_PAIRS", 1500)
        yield lz.connectivity_in(demo_store)


@pytest.fixture(scope="module")
def units(demo_store):
    return lz.units_of(demo_store)


RESULTS = {
    "currents": lambda c, u: mx.input_currents(c, u.rate_dir),
    "outgoing": lambda c, u: mx.contract(c, u.rate_ori, "post_nucleus_id", missing="skip"),
    "degrees": lambda c, u: mx.degrees(c),
    "groups": lambda c, u: mx.group_connectivity(c, {"pre": u.layer, "post": u.cell_type}),
    "a part": lambda c, u: mx.degrees(
        mx.drop_autapses(mx.select_connections(c, u, post={"layer": "L4"}))
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_cluster_gives_the_same_bits(client, connectivity, units, name, monkeypatch):
    with dask.config.set(scheduler="synchronous"):
        expected = RESULTS[name](connectivity, units).compute()
    here = []
    monkeypatch.setattr(StoredPairs, "read", lambda self, *span: here.append(span))
    lazy = RESULTS[name](connectivity, units)
    xr.testing.assert_identical(client.compute(lazy).result(), expected)
    assert not here  # this process has read no pair


def test_no_block_passes_through_the_client(client, connectivity, units):
    """Neither in the graph nor among the results: each is far smaller than the pairs."""
    lazy = mx.input_currents(connectivity, units.rate_ori.astype("f4").isel(orientation=[0]))
    sent = len(pickle.dumps(dict(lazy.data.__dask_graph__())))
    pairs = 12 * mx.n_connections(connectivity)
    assert sent < pairs / 2
    processes = client.run(os.getpid)
    assert os.getpid() not in processes.values()
    assert len(set(processes.values())) == 2
    result = client.persist(lazy)
    distributed.wait(result)
    held = client.has_what()
    assert sum(len(keys) for keys in held.values()) >= lazy.data.npartitions
    np.testing.assert_array_equal(result.compute(), lazy.compute(scheduler="threads"))


# Processes are those of the cluster above.
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_any_scheduler_of_dask_gives_the_same_bits(demo_store, units, scheduler):
    lazy = lz.connectivity_in(demo_store)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        currents = mx.input_currents(lazy, units.rate_ori).compute()
    memory = lz.in_memory(demo_store)
    xr.testing.assert_identical(currents, mx.input_currents(memory, units.rate_ori))


@pytest.mark.filterwarnings("default")  # of the packages that speak S3
def test_workers_read_a_bucket_with_the_options_it_was_opened_with(client, units, monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'microns-xr[cloud]'")
    s3_server = pytest.importorskip("s3_server", reason="moto is not installed")
    rates = xr.DataArray(ms.PRE / 7, {"nucleus_id": ms.PRE}, name="rate")
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 50_000)
    with s3_server.Bucket() as bucket:
        options = {"storage_options": bucket.options}
        mx.write_store("s3://data/a", units=ex.units(), connectivity=ms.connectivity(), **options)
        tree = mx.open_store("s3://data/a", lazy=True, **options)
        lazy = mx.input_currents(tree, rates)
        here = []
        monkeypatch.setattr(StoredPairs, "read", lambda self, *span: here.append(span))
        with bucket.asked() as seen:
            result = client.compute(lazy).result()
    assert not here
    assert {"data", "indices"} <= {one.key.split("/")[3] for one in seen}
    expected = mx.input_currents(ms.connectivity(), rates)
    xr.testing.assert_identical(result, expected)


def test_workers_refuse_a_store_that_was_replaced(client, demo_store, units, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(demo_store, path)
    lazy = mx.degrees(lz.connectivity_in(path))
    connectivity = mx.drop_autapses(lz.in_memory(demo_store))
    mx.write_store(path, units=units, connectivity=connectivity, overwrite=True)
    with pytest.raises(mx.errors.StoreFormatError, match="has been replaced"):
        client.compute(lazy).result()


def test_a_store_is_written_from_a_cluster(client, connectivity, units, tmp_path):
    mx.write_store(tmp_path / "a.zarr", units=units, connectivity=mx.drop_autapses(connectivity))
    xr.testing.assert_identical(
        mx.degrees(tmp_path / "a.zarr"),
        mx.degrees(mx.drop_autapses(connectivity)).compute(),
    )
