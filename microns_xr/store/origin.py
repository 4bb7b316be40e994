"""Whether the values of a variable are still to be read from a store, and from which."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pandas as pd
import xarray as xr
from xarray.backends import BackendArray

from microns_xr.store.lazy import StoredPairs

__all__ = ["reads_from"]


def reads_from(variable: xr.Variable, dataset: xr.Dataset, path: str) -> bool:
    """Whether a variable is lazily read from the store at `path`.

    Parameters
    ----------
    variable : xarray.Variable
        A variable of `dataset`.
    dataset : xarray.Dataset
        Where it comes from; xarray keeps the address it opened in ``encoding["source"]``, which
        joins of Datasets drop, so the array itself is asked as well.
    path : str
        The store: an absolute local path without links, or an address.

    Returns
    -------
    bool
        False for values in memory, wherever they were read.

    Examples
    --------
    >>> reads_from(xr.Variable("x", [1]), xr.Dataset(), "some.zarr")
    False
    """
    if variable.chunks is not None and any(
        _within(source.store_path, path) for source in _pair_sources(variable)
    ):
        return True
    arrays = list(_backend_arrays(variable))
    if not arrays and variable.chunks is None:
        return False
    found = [getattr(getattr(array, "_array", None), "store_path", None) for array in arrays]
    found += [obj.encoding.get("source") for obj in (dataset, variable)]
    return any(_within(str(place), path) for place in found if place is not None)


def _pair_sources(variable: xr.Variable) -> Iterator[StoredPairs]:
    """Yield where the blocks of lazy connectivity are read from, whatever was done to them."""
    for layer in variable.data.__dask_graph__().layers.values():
        first = next(iter(layer.values()), None)
        if isinstance(first, tuple):
            yield from (part for part in first if isinstance(part, StoredPairs))


def _backend_arrays(variable: xr.Variable) -> Iterator[BackendArray]:
    """Yield the arrays on disk below xarray's wrappers or, for dask, below the graph."""
    data: Any = variable._data
    below: list[Any] = [data]
    if variable.chunks is not None:
        layers = data.__dask_graph__().layers
        # xarray.open_zarr puts the whole array into a layer of this name, and tasks that cut it
        # into others; those are not looked at, for there may be millions.
        below = [
            value
            for name, layer in layers.items()
            if str(name).startswith("original-")
            for value in layer.values()
        ]
    for array in below:
        # A pandas index has an attribute of that name, too, but nothing of the disk below it.
        while not isinstance(array, BackendArray | pd.Index) and hasattr(array, "array"):
            array = array.array
        if isinstance(array, BackendArray):
            yield array


def _within(place: str, path: str) -> bool:
    place = place.removeprefix("file://")
    if "://" not in place and "://" not in path:
        place = os.path.realpath(place)
    return f"{place.rstrip('/')}/".startswith(f"{path.rstrip('/')}/")
