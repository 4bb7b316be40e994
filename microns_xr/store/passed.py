"""Connectivity as it is passed to a function: in memory, lazy, or as the address of a store."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import dask
import dask.threaded
import xarray as xr

from microns_xr.connectivity.arrays import Compressed, as_pairs
from microns_xr.errors import require_instance
from microns_xr.store.format import MATRIX_GROUP, OTHER

if TYPE_CHECKING:
    from microns_xr.store.locate import Address

# A connectivity Dataset or one of its arrays, a tree that has one, or the address of a store.
Connectivity: TypeAlias = "xr.Dataset | xr.DataArray | xr.DataTree | Address"


def connectivity_of(
    connectivity: Connectivity, compressed: Compressed = "post"
) -> tuple[xr.Dataset, bool]:
    """Return the connectivity that was passed, in one form, and whether it was opened here."""
    if isinstance(connectivity, xr.Dataset | xr.DataArray | xr.DataTree):
        return as_pairs(connectivity), False
    # Only stores need zarr, whose import takes as long as the currents of a whole release.
    from zarr.abc.store import Store

    from microns_xr.store.nodes import open_root
    from microns_xr.store.open import read_group

    expected = "a Dataset, a tree, or the address of a store, as mx.open_store takes it"
    require_instance("connectivity", connectivity, (str, os.PathLike, Store), expected)
    root = open_root(connectivity)
    if MATRIX_GROUP[compressed] not in root and MATRIX_GROUP[OTHER[compressed]] in root:
        compressed = OTHER[compressed]
    return read_group(root, "connectivity", lazy=True, compressed=compressed), True


Result = TypeVar("Result", xr.Dataset, xr.DataArray)


def computed(result: Result) -> Result:
    """Compute a result over connectivity that was opened here."""
    # Dask would import distributed to ask for a client, which takes as long as a quarter of the
    # currents of a whole connectome. Where nobody has imported it, there is none.
    if "distributed" in sys.modules or dask.config.get("scheduler", None) is not None:
        return result.compute()
    return result.compute(scheduler=dask.threaded.get)
