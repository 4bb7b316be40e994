"""A connectivity of some 180,000 pairs, and the buffers that a store of it holds, in plain numpy."""

from __future__ import annotations

from typing import Any

import matrices
import numpy as np
import pytest
import store_examples as ex
import xarray as xr

import microns_xr as mx

RNG = np.random.default_rng(7)
STORED, SIZE, COUNT = matrices.random_tables(RNG, 900, 800, 0.25)
PRE, POST = matrices.ids(900), matrices.ids(800)
SHARD = 2**17  # two chunks: one whole shard and a part of one


def connectivity() -> xr.Dataset:
    return matrices.dataset(STORED, SIZE, COUNT, version=661)


def parts() -> dict[str, Any]:
    return {
        "units": ex.units(),
        "layers": ex.layers(),
        "functional": ex.functional(),
        "connectivity": connectivity(),
    }


def write(place: Any, **options: Any) -> None:
    """Write all parts; shards are smaller than usual, so that there are two of each array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microns_xr.store.format.SHARD", SHARD)
        mx.write_store(place, **parts(), **options)


def buffers(compressed: str) -> dict[str, np.ndarray]:
    """What ``connectivity/by_post`` or ``by_pre`` must hold."""
    tables = [table if compressed == "pre" else table.T for table in (STORED, SIZE, COUNT)]
    indices, indptr, data, count = matrices.compress(*tables)
    return {
        "data": data.astype(np.int32),
        "indices": indices,
        "indptr": indptr.astype(np.int64),
        "synapse_count": count.astype(np.int32),
        f"{compressed}_index": np.nonzero(tables[0])[0].astype(np.int32),
        "pre_nucleus_id": PRE,
        "post_nucleus_id": POST,
    }
