"""The same graphs on a cluster of processes: the same bits, read by the workers themselves."""

from __future__ import annotations

import os
import pickle

import dask
import numpy as np
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.connectivity import blocks
from microns_xr.store.lazy import StoredPairs

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


@pytest.fixture
def connectivity(demo_store, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 1500)
    return mx.open_store(demo_store, lazy=True)["connectivity"].to_dataset()


@pytest.fixture
def units(demo_store):
    return mx.open_store(demo_store)["units"].to_dataset()


RESULTS = {
    "currents": lambda c, u: mx.input_currents(c, u.rate_dir),
    "outgoing": lambda c, u: mx.contract(c, u.rate_ori, "post_nucleus_id", missing="skip"),
    "degrees": lambda c, u: mx.degrees(c),
    "groups": lambda c, u: mx.group_connectivity(c, u.layer, u.cell_type),
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


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_any_scheduler_of_dask_gives_the_same_bits(demo_store, units, scheduler):
    lazy = mx.open_store(demo_store, lazy=True)["connectivity"].to_dataset()
    with dask.config.set(scheduler=scheduler):
        currents = mx.input_currents(lazy, units.rate_ori).compute()
    memory = mx.open_store(demo_store)["connectivity"].to_dataset()
    xr.testing.assert_identical(currents, mx.input_currents(memory, units.rate_ori))


def test_a_store_is_written_from_a_cluster(client, connectivity, units, tmp_path):
    mx.write_store(tmp_path / "a.zarr", units=units, connectivity=mx.drop_autapses(connectivity))
    xr.testing.assert_identical(
        mx.degrees(tmp_path / "a.zarr"),
        mx.degrees(mx.drop_autapses(connectivity)).compute(),
    )
