"""A store where a function takes connectivity."""

from __future__ import annotations

import os
from typing import Any

import xarray as xr
from zarr.abc.store import Store

from microns_xr.connectivity.arrays import Compressed
from microns_xr.errors import SchemaError
from microns_xr.store.address import Path
from microns_xr.store.format import OTHER, matrix_group
from microns_xr.store.open import open_root, read_group

__all__ = ["Connectivity", "connectivity_of"]

Connectivity = xr.Dataset | xr.DataTree | Path
"""A connectivity Dataset, a tree that has one, or where a store is."""


def connectivity_of(
    connectivity: Connectivity, compressed: Compressed = "post"
) -> tuple[xr.Dataset, bool]:
    """Return the connectivity of whatever was passed.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        A connectivity Dataset; a tree as `microns_xr.open_store` gives it, or the node of one that
        is connectivity; or a store, which is opened lazily.
    compressed : {"post", "pre"}
        The copy of a store that is better; the other is opened where it is the only one.

    Returns
    -------
    tuple of (xarray.Dataset, bool)
        Connectivity, and whether it was opened here, so that results are to be computed.

    Raises
    ------
    SchemaError
        If it is none of these, or a tree without connectivity.
    StoreFormatError
        If there is no store, or it has no connectivity.

    Examples
    --------
    >>> connectivity_of(3)
    Traceback (most recent call last):
    microns_xr.errors.SchemaError: connectivity is a int, expected a Dataset, a tree, or ...
    """
    if isinstance(connectivity, xr.Dataset):
        return connectivity, False
    if isinstance(connectivity, xr.DataTree):
        if "synapse_size" in connectivity.data_vars:  # its node, as tree["connectivity"]
            return connectivity.to_dataset(), False
        if "connectivity" not in connectivity.children:
            raise SchemaError(
                f"the tree has the groups {list(connectivity.children)}, expected 'connectivity' "
                "among them: open a store that was written with connectivity"
            )
        return connectivity["connectivity"].to_dataset(), False
    if not isinstance(connectivity, str | os.PathLike | Store):
        kind: Any = type(connectivity).__name__
        raise SchemaError(
            f"connectivity is a {kind}, expected a Dataset, a tree, or the place of a store: "
            "use mx.Release(...).connectivity() or mx.open_store"
        )
    root = open_root(connectivity)
    if matrix_group(compressed) not in root and matrix_group(OTHER[compressed]) in root:
        compressed = OTHER[compressed]
    return read_group(root, "connectivity", lazy=True, compressed=compressed), True
