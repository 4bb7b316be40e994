"""The partners of neurons: their inputs and their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.labels import as_ids, is_one_id
from microns_xr.connectivity.parts import (
    OTHER_SIDE,
    Side,
    drop_unpaired,
    load_neurons,
    positions_of,
    take_positions,
)
from microns_xr.provenance import add_history
from microns_xr.schema import validate
from microns_xr.store.argument import Connectivity, connectivity_of

__all__ = ["inputs_to", "outputs_from"]


def inputs_to(connectivity: Connectivity, nucleus_id: Any) -> xr.Dataset:
    """Return the presynaptic partners of one neuron, or of several.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store.
    nucleus_id : int or collection of int
        Postsynaptic neurons.

    Returns
    -------
    xarray.Dataset
        Of one neuron its partners alone: ``synapse_size(pre_nucleus_id)`` (voxels of 4x4x40 nm)
        and ``synapse_count``, dense int64, with the neuron as scalar coordinate
        ``post_nucleus_id``. Of a collection, even of one, connectivity with those neurons and
        everybody who is connected to one of them. Always in memory, because the partners
        are the axis of the result. Of a store, or connectivity as it was lazily opened from one,
        the pairs of these neurons alone are read, from the copy that has them contiguous.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.
    StoreFormatError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> inputs_to(two_neurons(), 12).synapse_size.to_series().to_dict()
    {11: 7, 12: 2}
    """
    return _partners(connectivity, nucleus_id, "post", "inputs_to")


def outputs_from(connectivity: Connectivity, nucleus_id: Any) -> xr.Dataset:
    """Return the postsynaptic partners of one neuron, or of several.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        See `inputs_to`.
    nucleus_id : int or collection of int
        Presynaptic neurons.

    Returns
    -------
    xarray.Dataset
        As `inputs_to`, with the axes exchanged.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.
    StoreFormatError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> outputs_from(two_neurons(), 12).synapse_count.to_series().to_dict()
    {11: 1, 12: 1}
    """
    return _partners(connectivity, nucleus_id, "pre", "outputs_from")


def _partners(given: Connectivity, ids: Any, own: Side, function: str) -> xr.Dataset:
    connectivity, _ = connectivity_of(given, own)
    validate(connectivity, "connectivity")
    other = OTHER_SIDE[own]
    result = load_neurons(connectivity, own, np.unique(positions_of(connectivity, own, ids)))
    n_own = result.sizes[f"{own}_nucleus_id"]
    pattern, _ = pair_buffers(result)
    if pattern.compressed == own:
        result = drop_unpaired(result)
    else:
        both = {own: None, other: np.flatnonzero(np.diff(pattern.indptr))}
        result = take_positions(result, both["pre"], both["post"])
    if not is_one_id(ids):
        return add_history(result, f"{function}({n_own} neurons)")
    # Every partner left has exactly one pair, so the stored values are the partners in order.
    _, values = pair_buffers(result)
    row = result.drop_vars(list(values)).isel({f"{own}_nucleus_id": 0})
    row = row.assign(
        {
            name: (f"{other}_nucleus_id", stored, dict(result[name].attrs))
            for name, stored in values.items()
        }
    )[list(connectivity.data_vars)]
    return add_history(row, f"{function}({int(as_ids(ids, 'nucleus_id')[0])})")
