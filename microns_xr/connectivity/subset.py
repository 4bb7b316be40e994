"""Parts of a connectivity Dataset by label: neurons, ends of connections, partners of a neuron.

All of it works on the raw buffers, for either compressed axis, and carries every coordinate and
every variable of the Dataset along. Axes stay sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import Compressed, Pattern, pair_buffers, pattern_of
from microns_xr.connectivity.labels import Lookup, as_ids, is_one_id
from microns_xr.connectivity.parts import (
    Side,
    minor_side,
    positions_of,
    take_positions,
    with_pairs,
)
from microns_xr.connectivity.patterns import select_pairs, transpose_pattern
from microns_xr.provenance import add_history
from microns_xr.schema import validate

__all__ = [
    "connections_between",
    "drop_autapses",
    "inputs_to",
    "n_connections",
    "outputs_from",
    "recompress",
    "take",
]


def n_connections(connectivity: xr.Dataset) -> int:
    """Count the connected pairs.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).

    Returns
    -------
    int
        Pairs with at least one synapse, those of summed size 0 and autapses among them.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> n_connections(two_neurons())
    3
    """
    return pattern_of(connectivity).nnz


def take(connectivity: xr.Dataset, pre_ids: Any = None, post_ids: Any = None) -> xr.Dataset:
    """Keep some neurons of either axis.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    pre_ids, post_ids : int, collection of int, or units Dataset, optional
        Nucleus ids; None keeps the whole axis.

    Returns
    -------
    xarray.Dataset
        Connectivity whose axes are exactly those neurons, sorted, with all coordinates.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> take(two_neurons(), post_ids=[12]).sizes["post_nucleus_id"]
    1
    """
    validate(connectivity, "connectivity")
    pre = None if pre_ids is None else np.unique(positions_of(connectivity, "pre", pre_ids))
    post = None if post_ids is None else np.unique(positions_of(connectivity, "post", post_ids))
    result = take_positions(connectivity, pre, post)
    n_pre, n_post = (None if kept is None else kept.size for kept in (pre, post))
    return add_history(result, f"take(pre_ids={n_pre}, post_ids={n_post})")


def connections_between(
    connectivity: xr.Dataset, pre_ids: Any = None, post_ids: Any = None, both: bool = True
) -> xr.Dataset:
    """Keep the connections between two sets of neurons, or those that touch one of them.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    pre_ids, post_ids : int, collection of int, or units Dataset, optional
        Nucleus ids.
    both : bool, optional
        True keeps the neurons of both sets, as `take` does; a set that is None is everybody.
        False keeps the axes as they are and every pair whose presynaptic neuron is in `pre_ids`
        or whose postsynaptic neuron is in `post_ids`; a set that is None is nobody. Other pairs
        then look unconnected though they may not be, so the scope becomes "unknown".

    Returns
    -------
    xarray.Dataset
        Connectivity.

    Raises
    ------
    UnknownLabelError
        If an id is not on its axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> n_connections(connections_between(two_neurons(), [11], [11]))
    0
    >>> n_connections(connections_between(two_neurons(), [11], [11], both=False))
    2
    """
    if both:
        return take(connectivity, pre_ids, post_ids)
    validate(connectivity, "connectivity")
    pattern, values = pair_buffers(connectivity)
    flags: dict[Side, np.ndarray] = {
        "pre": np.zeros(pattern.shape[0], dtype=bool),
        "post": np.zeros(pattern.shape[1], dtype=bool),
    }
    if pre_ids is not None:
        flags["pre"][positions_of(connectivity, "pre", pre_ids)] = True
    if post_ids is not None:
        flags["post"][positions_of(connectivity, "post", post_ids)] = True
    selection = select_pairs(
        pattern.indices,
        pattern.indptr,
        np.arange(pattern.n_major),
        np.arange(pattern.n_minor, dtype=np.int32),
        kept=flags[minor_side(pattern)],
        whole=flags[pattern.compressed],
    )
    result = with_pairs(connectivity, connectivity, pattern, values, selection, pattern.shape)
    result = result.assign_coords(scope=xr.Variable((), np.array("unknown", dtype=object)))
    n = {side: int(flag.sum()) for side, flag in flags.items()}
    return add_history(
        result,
        f"connections_between(pre_ids={n['pre']}, post_ids={n['post']}, both=False)",
    )


def drop_autapses(connectivity: xr.Dataset) -> xr.Dataset:
    """Drop the connections of neurons with themselves.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).

    Returns
    -------
    xarray.Dataset
        The same axes without such pairs.

    Raises
    ------
    SchemaError
        If the Dataset is no connectivity.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> n_connections(drop_autapses(two_neurons()))
    2
    """
    validate(connectivity, "connectivity")
    pattern, values = pair_buffers(connectivity)
    own = connectivity[f"{pattern.compressed}_nucleus_id"].values
    other = connectivity[f"{minor_side(pattern)}_nucleus_id"].values
    selection = select_pairs(
        pattern.indices,
        pattern.indptr,
        np.arange(pattern.n_major),
        np.arange(pattern.n_minor, dtype=np.int32),
        without=Lookup(other, "nucleus_id").find(own).astype(np.int64),
    )
    result = with_pairs(connectivity, connectivity, pattern, values, selection, pattern.shape)
    return add_history(result, f"drop_autapses(): {pattern.nnz - selection.indices.size} dropped")


def inputs_to(connectivity: xr.Dataset, nucleus_id: Any) -> xr.Dataset:
    """Return the presynaptic partners of one neuron, or of several.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    nucleus_id : int or collection of int
        Postsynaptic neurons.

    Returns
    -------
    xarray.Dataset
        Of one neuron its partners alone: ``synapse_size(pre_nucleus_id)`` (voxels of 4x4x40 nm)
        and ``synapse_count``, dense int64, with the neuron as scalar coordinate
        ``post_nucleus_id``. Of a collection, even of one, connectivity with those neurons and
        everybody who is connected to one of them.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> inputs_to(two_neurons(), 12).synapse_size.to_series().to_dict()
    {11: 7, 12: 2}
    """
    return _partners(connectivity, nucleus_id, "post", "inputs_to")


def outputs_from(connectivity: xr.Dataset, nucleus_id: Any) -> xr.Dataset:
    """Return the postsynaptic partners of one neuron, or of several.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
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

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> outputs_from(two_neurons(), 12).synapse_count.to_series().to_dict()
    {11: 1, 12: 1}
    """
    return _partners(connectivity, nucleus_id, "pre", "outputs_from")


def recompress(connectivity: xr.Dataset, compressed: Compressed) -> xr.Dataset:
    """Store the same pairs with the neurons of the other axis as contiguous spans.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    compressed : {"post", "pre"}
        The axis. Over post the inputs of a neuron are contiguous, over pre its outputs; results
        are the same, those along the contiguous axis are faster.

    Returns
    -------
    xarray.Dataset
        The same connectivity; the very same arrays if it is compressed so already.

    Raises
    ------
    SchemaError
        If the Dataset is no connectivity.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> recompress(two_neurons(), "pre").synapse_size.data.compressed_axes
    (0,)
    """
    validate(connectivity, "connectivity")
    pattern, values = pair_buffers(connectivity)
    if pattern.compressed == compressed:
        return connectivity.copy()
    turned = transpose_pattern(pattern.indices, pattern.indptr, pattern.n_minor)
    other = Pattern(pattern.indices, pattern.indptr, pattern.shape, compressed)
    return with_pairs(connectivity, connectivity, other, values, turned, pattern.shape)


def _partners(connectivity: xr.Dataset, ids: Any, own: Side, function: str) -> xr.Dataset:
    validate(connectivity, "connectivity")
    other: Side = "pre" if own == "post" else "post"
    own_positions = np.unique(positions_of(connectivity, own, ids))
    both: dict[str, np.ndarray | None] = {own: own_positions, other: None}
    result = take_positions(connectivity, both["pre"], both["post"])
    pattern, _ = pair_buffers(result)
    if pattern.compressed == own:
        both = {own: None, other: np.unique(pattern.indices)}
    else:
        both = {own: None, other: np.flatnonzero(np.diff(pattern.indptr))}
    result = take_positions(result, both["pre"], both["post"])
    if not is_one_id(ids):
        return add_history(result, f"{function}({own_positions.size} neurons)")
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
