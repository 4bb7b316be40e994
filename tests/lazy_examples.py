"""What tests of lazy connectivity share: a store opened in parts, and counts of what is read."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.subset import recompress
from microns_xr.store.nodes import StoredPairs

BOTH = ("pre_nucleus_id", "post_nucleus_id")


def connectivity_in(store, compressed="post", *, lazy=True):
    """The connectivity of a store alone, which takes a third of the time of all groups."""
    options = {"group": "connectivity", "lazy": lazy, "compressed": compressed}
    return xr.open_dataset(store, engine="microns_xr", **options)


@lru_cache
def in_memory(store, compressed="post"):
    """The same in memory, read once; not to be changed."""
    return connectivity_in(store, compressed, lazy=False)


@lru_cache
def units_of(store):
    """The units of a store, read once; not to be changed."""
    return xr.open_dataset(store, engine="microns_xr", group="units").load()


def count_spans(monkeypatch):
    """Collect the spans of pairs that are read: (copy, array, start, stop)."""
    found = []
    read = StoredPairs.read

    def counted(self, name, start, stop, *args, **options):
        found.append((self.compressed, name, start, stop))
        return read(self, name, start, stop, *args, **options)

    monkeypatch.setattr(StoredPairs, "read", counted)
    return found


def pair_variables(dataset):
    return [name for name, v in dataset.data_vars.items() if v.dims == BOTH]


def assert_same_pairs(memory, lazy):
    """The same Dataset, whatever axis either is compressed over."""
    loaded = lazy.compute()
    names = pair_variables(memory)
    plain = [d.drop_vars(names).drop_attrs() for d in (memory, loaded)]
    xr.testing.assert_identical(*plain)
    if not names:
        return
    pattern, values = pair_buffers(recompress(memory, "post"))
    other, others = pair_buffers(recompress(loaded, "post"))
    assert pattern.same_pairs(other)
    for name in names:
        np.testing.assert_array_equal(values[name], others[name])
        assert others[name].dtype == np.int64


def scaled(block, factor=10**7):
    """A block of other sizes; not block * factor, for which sparse forgets the pairs of size 0."""
    return type(block)(
        (block.data * factor, block.indices, block.indptr),
        shape=block.shape,
        compressed_axes=block.compressed_axes,
    )


def with_scaled_sizes(connectivity, factor=10**7):
    """Connectivity, lazy or not, with its sizes times a factor."""
    size = connectivity.synapse_size
    if size.chunks is None:
        data = scaled(size.data, factor)
    else:
        data = size.data.map_blocks(scaled, factor, meta=size.data._meta)
    return connectivity.assign(synapse_size=size.copy(data=data))
