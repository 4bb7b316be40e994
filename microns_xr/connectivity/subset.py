"""Parts of a connectivity Dataset by label: neurons, ends of connections, other compression.

All of it works on the raw buffers, for either compressed axis, and carries every coordinate and
every variable of the Dataset along. Axes stay sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    Pattern,
    pair_buffers,
    pattern_of,
)
from microns_xr.connectivity.blocks import is_lazy
from microns_xr.connectivity.blockwise import blocks_of, stored_source
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.lazy import count_pairs
from microns_xr.connectivity.parts import (
    OTHER_SIDE,
    Rule,
    Side,
    keep_pairs,
    layout_of,
    positions_of,
    take_positions,
    with_pairs,
)
from microns_xr.connectivity.patterns import transpose_pattern
from microns_xr.provenance import add_history
from microns_xr.schema import validate

__all__ = [
    "connections_between",
    "drop_autapses",
    "n_connections",
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
        Pairs with at least one synapse, those of summed size 0 and autapses among them. Lazy
        connectivity is computed for it, unless it is as it was opened.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> n_connections(two_neurons())
    3
    """
    if is_lazy(connectivity):
        name = next(str(n) for n, v in connectivity.data_vars.items() if v.dims == PAIR_DIMS)
        blocks = blocks_of(connectivity, [name])
        if (source := stored_source(blocks.arrays)) is not None:
            return int(source.indptr[-1])
        return int(count_pairs(blocks).compute())
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
    shape, compressed = layout_of(connectivity)
    n_of: dict[Side, int] = {"pre": shape[0], "post": shape[1]}
    flags = {side: np.zeros(n, dtype=bool) for side, n in n_of.items()}
    if pre_ids is not None:
        flags["pre"][positions_of(connectivity, "pre", pre_ids)] = True
    if post_ids is not None:
        flags["post"][positions_of(connectivity, "post", post_ids)] = True
    rule = _everybody(n_of, compressed)._replace(
        kept=flags[OTHER_SIDE[compressed]], whole=flags[compressed]
    )
    result = keep_pairs(connectivity, connectivity, rule)
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
    shape, compressed = layout_of(connectivity)
    own = connectivity[f"{compressed}_nucleus_id"].values
    other = connectivity[f"{OTHER_SIDE[compressed]}_nucleus_id"].values
    rule = _everybody({"pre": shape[0], "post": shape[1]}, compressed)._replace(
        without=Lookup(other, "nucleus_id").find(own).astype(np.int64)
    )
    result = keep_pairs(connectivity, connectivity, rule)
    if is_lazy(connectivity):  # counting would compute
        return add_history(result, "drop_autapses()")
    n_dropped = n_connections(connectivity) - n_connections(result)
    return add_history(result, f"drop_autapses(): {n_dropped} dropped")


def _everybody(n_of: dict[Side, int], compressed: Side) -> Rule:
    n_minor = n_of[OTHER_SIDE[compressed]]
    return Rule(np.arange(n_of[compressed]), np.arange(n_minor, dtype=np.int32), n_minor)


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
