"""Totals of a connectivity Dataset: degrees of neurons, connections between groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.arrays import Compressed, pair_buffers
from microns_xr.connectivity.blocks import is_lazy
from microns_xr.connectivity.blockwise import blocks_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.lazy import lazy_groups, lazy_neurons
from microns_xr.connectivity.parts import OTHER_SIDE, layout_of
from microns_xr.connectivity.reductions import PARTS, group_sums, neuron_sums
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import VOXEL_UNITS, validate
from microns_xr.store.argument import Connectivity, connectivity_of

__all__ = ["degrees", "group_connectivity"]

# Three int64 tables of this many cells are 600 MB.
_MAX_CELLS = 25_000_000


def degrees(connectivity: Connectivity) -> xr.Dataset:
    """Count partners and synapses of every neuron, and sum its synapse sizes.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store, of which every block is read once.

    Returns
    -------
    xarray.Dataset
        int64, lazy where the connectivity is, with its coordinates: ``in_degree`` (partners),
        ``in_synapses`` and ``in_size`` (voxels of 4x4x40 nm) over ``post_nucleus_id``;
        ``out_degree``, ``out_synapses`` and ``out_size`` over ``pre_nucleus_id``. An autapse
        counts in both.

    Raises
    ------
    SchemaError
        If the Dataset is no connectivity, or sizes and counts do not store the same pairs.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> degrees(two_neurons()).in_size.values
    array([5, 9])
    """
    connectivity, compute = connectivity_of(connectivity)
    validate(connectivity, "connectivity")
    major, minor, compressed = _neuron_sums(connectivity)
    post, pre = (major, minor) if compressed == "post" else (minor, major)
    result = connectivity.drop_vars(list(connectivity.data_vars))
    result.attrs = {}
    for prefix, dim, table, partner in (
        ("in", "post_nucleus_id", post, "presynaptic"),
        ("out", "pre_nucleus_id", pre, "postsynaptic"),
    ):
        parts = {
            "degree": (f"number of {partner} partners", "neurons"),
            "size": (f"summed size of the synapses with {partner} partners", VOXEL_UNITS),
            "synapses": (f"number of synapses with {partner} partners", "synapses"),
        }
        for column, (name, (doc, units)) in enumerate(parts.items()):
            attrs = {"long_name": doc, "units": units}
            result[f"{prefix}_{name}"] = (dim, table[:, column].copy(), attrs)
    result = add_history(result, "degrees()", source=connectivity)
    return result.compute() if compute else result


def _neuron_sums(connectivity: xr.Dataset) -> tuple[Any, Any, Compressed]:
    if is_lazy(connectivity):
        blocks = blocks_of(connectivity, PARTS[1:])
        return *lazy_neurons(blocks), blocks.compressed
    pattern, values = pair_buffers(connectivity, PARTS[1:])
    size, count = (values[name] for name in PARTS[1:])
    sums = neuron_sums(size, count, pattern.indices, pattern.indptr, pattern.n_minor)
    return *sums, pattern.compressed


def group_connectivity(
    connectivity: Connectivity,
    pre: str | xr.DataArray,
    post: str | xr.DataArray,
    check_release: bool = True,
) -> xr.Dataset:
    """Add up the connections between groups of neurons.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store, of which every block is read once.
    pre, post : str or xarray.DataArray
        Group of each neuron of either side: the name of an annotation (``"cell_type"`` for the
        coordinates ``pre_cell_type`` and ``post_cell_type``), or labels over ``nucleus_id`` (or
        ``pre_nucleus_id``, ``post_nucleus_id``), which are aligned by label. Text, integers or
        truth values. A neuron without a label is in the group "unknown" when labels are text.
    check_release : bool, optional
        False skips the release check of labels.

    Returns
    -------
    xarray.Dataset
        int64 over (``pre_<name>``, ``post_<name>``), groups sorted: ``synapse_size`` (voxels of
        4x4x40 nm), ``synapse_count``, ``n_connections`` (connected pairs); and the neurons of
        each group, connected or not, ``n_pre(pre_<name>)`` and ``n_post(post_<name>)``.

    Raises
    ------
    UnknownLabelError
        If there is no such annotation, or no neuron of an axis has a label.
    SchemaError
        If labels are not one a neuron, are repeated, absent for some neurons though no text, or
        make too many groups.
    ReleaseMismatchError
        If labels are of another release.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> layer = xr.DataArray(["L4", "L5"], {"nucleus_id": [11, 12]}, name="layer")
    >>> table = group_connectivity(two_neurons(), layer, layer, check_release=False)
    >>> int(table.synapse_count.sel(pre_layer="L4", post_layer="L5"))
    2
    """
    connectivity, compute = connectivity_of(connectivity)
    validate(connectivity, "connectivity")
    for side, labels in (("pre", pre), ("post", post)):
        if isinstance(labels, xr.DataArray):
            require_same_release(
                ("connectivity", connectivity), (side, labels), check_release=check_release
            )
    dims, codes, groups = {}, {}, {}
    for side, labels in (("pre", pre), ("post", post)):
        name, of_each = _labels(connectivity, side, labels)
        dims[side] = f"{side}_{name}"
        codes[side], groups[side] = pd.factorize(of_each, sort=True)
    n = (len(groups["pre"]), len(groups["post"]))
    if n[0] * n[1] > _MAX_CELLS:
        raise SchemaError(
            f"the labels make {n[0]} x {n[1]} groups, expected at most {_MAX_CELLS} pairs of "
            "groups: group by something coarser, or work on the sparse matrix itself"
        )
    table = _group_sums(connectivity, codes, n)
    both = (dims["pre"], dims["post"])
    units = {"synapse_size": VOXEL_UNITS, "synapse_count": "synapses", "n_connections": "pairs"}
    scalars = {k: c for k, c in connectivity.coords.items() if not c.dims}
    result = xr.Dataset(
        {
            part: (both, table[:, :, PARTS.index(part)].copy(), {"units": unit})
            for part, unit in units.items()
        },
        coords={**scalars, **{dims[side]: groups[side] for side in ("pre", "post")}},
    )
    for side in ("pre", "post"):
        members = np.bincount(codes[side], minlength=len(groups[side])).astype(np.int64)
        result[f"n_{side}"] = (dims[side], members, {"units": "neurons"})
    entry = f"group_connectivity(pre={dims['pre']}, post={dims['post']})"
    result = add_history(result, entry, source=connectivity)
    return result.compute() if compute else result


def _group_sums(
    connectivity: xr.Dataset, codes: dict[str, np.ndarray], n_groups: tuple[int, int]
) -> Any:
    """Return (pre groups, post groups, 3), lazily where the pairs are lazy."""
    n_of = dict(zip(("pre", "post"), n_groups, strict=True))
    _, major = layout_of(connectivity)
    minor = OTHER_SIDE[major]
    of_each = (codes[major], codes[minor], (n_of[major], n_of[minor]))
    if is_lazy(connectivity):
        table: Any = lazy_groups(blocks_of(connectivity, PARTS[1:]), *of_each)
    else:
        pattern, values = pair_buffers(connectivity, PARTS[1:])
        size, count = (values[name] for name in PARTS[1:])
        table = group_sums(size, count, pattern.indices, pattern.indptr, *of_each)
    return table.transpose(1, 0, 2) if major == "post" else table


def _labels(
    connectivity: xr.Dataset, side: str, labels: str | xr.DataArray
) -> tuple[str, np.ndarray]:
    """Return the name of the labels without a side, and one label a neuron of the axis."""
    dim = f"{side}_nucleus_id"
    if isinstance(labels, str):
        name = labels.removeprefix(f"{side}_")
        if f"{side}_{name}" not in connectivity.coords:
            known = [str(c) for c, v in connectivity.coords.items() if v.dims == (dim,)]
            near = ", ".join(nearest_words(f"{side}_{name}", known))
            raise UnknownLabelError(
                f"the connectivity has no coordinate {side}_{name!s}, found {known}"
                + (f"; nearest: {near}" if near else "")
                + f": write it with mx.annotate(connectivity, units, {name!r})"
            )
        return name, _groupable(connectivity[f"{side}_{name}"].values, side, name)
    if not isinstance(labels, xr.DataArray):
        raise SchemaError(
            f"{side} is a {type(labels).__name__}, expected the name of an annotation or a "
            "DataArray of labels over nucleus_id, such as units.cell_type"
        )
    name = str(labels.name or "group").removeprefix("pre_").removeprefix("post_")
    if labels.dims not in (("nucleus_id",), (dim,)) or labels.dims[0] not in labels.coords:
        raise SchemaError(
            f"{side} labels {name!r} have dims {labels.dims} and coordinates "
            f"{list(map(str, labels.coords))}, expected one label a neuron over 'nucleus_id' or "
            f"{dim!r} with its ids"
        )
    values = labels.values
    rows = Lookup(labels[labels.dims[0]].values, str(labels.dims[0])).find(connectivity[dim].values)
    n_missing = int((rows < 0).sum())
    if rows.size and n_missing == rows.size:
        raise UnknownLabelError(f"none of the {rows.size} neurons of {dim} has a label {name!r}")
    if n_missing and values.dtype.kind not in "OUT":
        raise SchemaError(
            f"{n_missing} of {rows.size} neurons of {dim} have no label {name!r}, which is "
            f"{values.dtype}: give every neuron one, or use text, where they become 'unknown'"
        )
    if n_missing:
        values = values.astype(object)[rows]
        values[rows < 0] = "unknown"
    else:
        values = values[rows]
    return name, _groupable(values, side, name)


def _groupable(values: np.ndarray, side: str, name: str) -> np.ndarray:
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        absent = np.asarray(pd.isna(values))
        if absent.any():
            values[absent] = "unknown"
    elif values.dtype.kind not in "ib":
        raise SchemaError(
            f"{side} labels {name!r} have dtype {values.dtype}, expected text, integers or truth "
            "values: cut numbers into classes first"
        )
    return values
