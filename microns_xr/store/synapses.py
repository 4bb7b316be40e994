"""What will be written of single synapses: the rows by post, and the same rows by pre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import PAIR_DIMS, Compressed
from microns_xr.errors import SchemaError
from microns_xr.provenance import stamp_release
from microns_xr.schema import AXES, VOXEL_UNITS
from microns_xr.store.format import SYNAPSE_CHUNK, SYNAPSE_GROUP, SYNAPSE_POINTER, VARIABLES_ATTR
from microns_xr.store.plan import Block, PlannedArray, PlannedGroup, plan_dataset

__all__ = [
    "INDEX_NAMES",
    "POSITION_ATTRS",
    "plan_streamed_synapses",
    "plan_synapses",
    "require_synapses",
]

INDEX_NAMES: dict[Compressed, str] = {"post": "post_index", "pre": "pre_index"}
POSITION_ATTRS = {"units": "µm", "long_name": "centre of the synapse, y is depth from the pia"}


def require_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> None:
    """Raise unless single synapses follow the rules of the format.

    Parameters
    ----------
    synapses : xarray.Dataset
        Dims ``synapse`` and ``axis``, and the two of connectivity where it names its neurons.
    connectivity : xarray.Dataset or None
        What ``pre_index`` and ``post_index`` count along, if it has them.

    Raises
    ------
    SchemaError
        Naming the first thing that is wrong.
    """
    if not isinstance(synapses, xr.Dataset):
        raise SchemaError(f"expected a Dataset of synapses, found {type(synapses).__name__}")
    if not {"synapse"} <= set(synapses.dims) <= {"synapse", "axis", *PAIR_DIMS}:
        raise SchemaError(
            f"synapses has the dims {tuple(synapses.dims)}, expected 'synapse' and, for positions, "
            "'axis': one row a synapse"
        )
    for name, variable in synapses.variables.items():
        if "synapse" in variable.dims[1:]:
            raise SchemaError(
                f"{name} of synapses has the dims {variable.dims}, expected 'synapse' first: use "
                ".transpose('synapse', ...) before writing"
            )
    for name in SYNAPSE_POINTER.values():
        if name in synapses.variables:
            raise SchemaError(
                f"{name!r} of synapses is the name of an array of the format: rename it with "
                ".rename before writing"
            )
    names = tuple(INDEX_NAMES.values())
    if not any(name in synapses.variables for name in names):
        return
    if connectivity is None or any(name not in synapses.variables for name in names):
        raise SchemaError(
            "synapses has pre_index or post_index, expected both, and the connectivity along whose "
            "axes they count: write the two together"
        )
    for axis in PAIR_DIMS:
        own = synapses.variables.get(axis)
        if own is not None and not np.array_equal(own.values, connectivity[axis].values):
            raise SchemaError(
                f"{axis} of synapses differs from that of connectivity ({own.size} and "
                f"{connectivity.sizes[axis]} neurons), expected the axes the synapses were "
                "labelled by: build both of the same units"
            )
    for name in names:
        index = synapses[name].values
        n = connectivity.sizes[f"{name.removesuffix('_index')}_nucleus_id"]
        if index.dtype.kind not in "iu" or (index.size and not 0 <= index.min() <= index.max() < n):
            raise SchemaError(
                f"{name} of synapses is {index.dtype} from {index.min()} to {index.max()}, "
                f"expected integers from 0 to {n - 1}, positions on the axis of connectivity"
            )
    post, pre = (synapses[name].values for name in names)
    falls = (post[1:] < post[:-1]) | ((post[1:] == post[:-1]) & (pre[1:] < pre[:-1]))
    if falls.any():
        raise SchemaError(
            f"synapses does not ascend at row {int(np.argmax(falls)) + 1}, expected rows by "
            "post_index, then pre_index: use .sortby(['post_index', 'pre_index'])"
        )


def plan_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> list[PlannedGroup]:
    """Plan the rows by post and, where they name their neurons, the same rows by pre.

    Parameters
    ----------
    synapses : xarray.Dataset
        As `require_synapses` takes it.
    connectivity : xarray.Dataset or None
        What its indices count along.

    Returns
    -------
    list of PlannedGroup
        One or two; the copy gathers its rows block by block, while it is written.

    Raises
    ------
    SchemaError
        See `microns_xr.store.plan.plan_dataset`.
    """
    if connectivity is None or "pre_index" not in synapses.variables:
        return [_in_chunks(plan_dataset(SYNAPSE_GROUP["post"], synapses))]
    groups = []
    for axis, name in INDEX_NAMES.items():
        index = synapses[name].values
        counts = np.bincount(index, minlength=connectivity.sizes[f"{axis}_nucleus_id"])
        group = _in_chunks(plan_dataset(SYNAPSE_GROUP[axis], synapses))
        if axis == "pre":  # a stable sort leaves the rows of a neuron by post, then by id
            order = np.argsort(index, kind="stable")
            group = replace(group, arrays=[_permuted(array, order) for array in group.arrays])
        groups.append(_with_pointer(group, axis, np.concatenate([[0], np.cumsum(counts)])))
    return groups


def plan_streamed_synapses(
    compressed: Compressed,
    read: Mapping[str, Block],
    indptr: np.ndarray,
    pre_ids: np.ndarray,
    post_ids: np.ndarray,
    *,
    datastack: str,
    version: int,
    attrs: Mapping[str, object] | None = None,
    position: str = "float32",
    size: str = "int32",
) -> PlannedGroup:
    """Plan rows that are too many for memory, by post or by pre.

    Parameters
    ----------
    compressed : {"post", "pre"}
        Which of the two copies; its rows ascend by this neuron, then the other, then the id.
    read : mapping of str to callable
        Of each of ``synapse_id``, ``pre_index``, ``post_index``, ``size`` and, where it is kept,
        ``position`` what gives the rows from start to stop, in the dtype of the disk.
    indptr : numpy.ndarray
        (neurons + 1,): the spans of rows of each neuron.
    pre_ids, post_ids : numpy.ndarray
        Labels of the axes of the connectivity.
    datastack, version : str, int
        The release.
    attrs : mapping, optional
        Attributes of the Dataset.
    position, size : str, optional
        Dtypes on disk. Single precision resolves 0.1 nm of a cortex of 1.5 mm, and takes half the
        space.

    Returns
    -------
    PlannedGroup
        What `microns_xr.store.write` writes block by block; each array knows its chunks.

    Raises
    ------
    SchemaError
        If `read` lacks a variable or `indptr` does not fit the axis.

    Examples
    --------
    >>> rows = {name: np.zeros(0, np.int32) for name in ("synapse_id", "pre_index", "post_index",
    ...     "size")}
    >>> group = plan_streamed_synapses("pre", {k: lambda lo, hi: v for k, v in rows.items()},
    ...     np.array([0, 0]), np.array([7]), np.array([8, 9]), datastack="d", version=661)
    >>> group.path, [array.name for array in group.arrays][-1]
    ('synapses/by_pre', 'pre_indptr')
    """
    dtypes = dict.fromkeys(INDEX_NAMES.values(), "int32") | {"synapse_id": "int64", "size": size}
    ids = {"pre": pre_ids, "post": post_ids}
    if set(dtypes) - set(read) or indptr.shape != (len(ids[compressed]) + 1,):
        raise SchemaError(
            f"synapses by {compressed} have {sorted(read)} and {indptr.size} pointers, expected "
            f"{sorted(dtypes)} and {len(ids[compressed]) + 1} pointers"
        )
    n = int(indptr[-1])
    # Stands for the rows while the group is planned, and takes no memory.
    template = xr.Dataset(
        {
            name: ("synapse", np.broadcast_to(np.dtype(dtypes[name]).type(), n))
            for name in ("synapse_id", "pre_index", "post_index", "size")
        },
        {f"{side}_nucleus_id": labels for side, labels in ids.items()},
        dict(attrs or {}),
    )
    template["size"].attrs["units"] = VOXEL_UNITS
    if "position" in read:
        empty = np.broadcast_to(np.dtype(position).type(), (n, len(AXES)))
        template["position"] = (("synapse", "axis"), empty, POSITION_ATTRS)
        template = template.assign_coords(axis=("axis", np.array(AXES, dtype=object)))
    template = stamp_release(template, datastack, version)
    group = _in_chunks(plan_dataset(SYNAPSE_GROUP[compressed], template))
    arrays = [replace(array, read=read.get(array.name, array.read)) for array in group.arrays]
    return _with_pointer(replace(group, arrays=arrays), compressed, indptr)


def _in_chunks(group: PlannedGroup) -> PlannedGroup:
    arrays = [
        replace(array, chunk=SYNAPSE_CHUNK) if array.dims[:1] == ("synapse",) else array
        for array in group.arrays
    ]
    return replace(group, arrays=arrays)


def _permuted(array: PlannedArray, order: np.ndarray) -> PlannedArray:
    if array.dims[:1] != ("synapse",):
        return array
    whole = array.read(0, array.shape[0])
    return replace(array, read=lambda start, stop: whole[order[start:stop]])


def _with_pointer(group: PlannedGroup, axis: Compressed, indptr: np.ndarray) -> PlannedGroup:
    values = indptr.astype(np.int64, copy=False)
    pointer = PlannedArray(
        SYNAPSE_POINTER[axis],
        (f"{axis}_pointer",),
        values.shape,
        "int64",
        {"long_name": f"first synapse of each {axis}synaptic neuron, and their end"},
        lambda start, stop: values[start:stop],
    )
    names = [*group.attrs[VARIABLES_ATTR], pointer.name]
    return PlannedGroup(group.path, group.attrs | {VARIABLES_ATTR: names}, [*group.arrays, pointer])
