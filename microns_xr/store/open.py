"""Open a store of format 1: all groups or one, in memory or lazily."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from microns_xr.connectivity.arrays import PAIR_DIMS, ROOT_IDS, Compressed, gcxs, make_pattern
from microns_xr.connectivity.blocks import lazy_pairs
from microns_xr.errors import StoreFormatError, require_one_of, unknown_label
from microns_xr.schema import with_labels
from microns_xr.store.format import (
    DATA_GROUPS,
    INDEX_NAMES,
    MATRIX_GROUP,
    OTHER,
    SYNAPSE_GROUP,
    index_problem,
    pattern_problem,
)
from microns_xr.store.locate import Address, decoding, read_values
from microns_xr.store.nodes import (
    Contents,
    array_of,
    damaged,
    groups_of,
    groups_of_release,
    node_of,
    one_store,
    open_root,
    read_contents,
    read_matrix,
    require_stated_release,
    root_attrs,
    wide_dtype,
)


def open_store(
    path: Address,
    lazy: bool = False,
    compressed: Compressed = "post",
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Open a store as a tree of Datasets, in memory or lazily.

    Parameters
    ----------
    path : str, path-like or zarr.abc.store.Store
        Local folder, fsspec URL or zarr store, see `write_store`. An interrupted replacement of a
        local store is finished.
    lazy : bool, optional
        If True, only metadata, labels and pointers are read. Weights such as ``synapse_size`` are
        dask arrays whose chunks are `sparse.GCXS` of whole neurons, about 4 million stored pairs
        and one contiguous read each; all other variables are read when they are first used.
    compressed : {"post", "pre"}, optional
        Which copy of the connectivity to read: the axis whose neurons have contiguous partners.
    storage_options : mapping, optional
        Options for fsspec if `path` is a URL, such as credentials or an endpoint.

    Returns
    -------
    xarray.DataTree
        With those of the children ``units``, ``layers``, ``functional``, ``connectivity`` and
        ``synapses`` that were written. Text is of dtype object; ``synapse_size`` and, where
        synapses were counted, ``synapse_count`` are int64 `sparse.GCXS`, as are other weights
        (or float64). The attributes of the root record the provenance.

    Raises
    ------
    StoreFormatError
        If there is no store at `path`, its format is newer than this package, an array is missing
        or damaged, or the requested copy was not stored.
    SourceError
        If a URL cannot be reached, or access is denied.
    SchemaError
        If `compressed` is not one of the two, or `path` has another type.

    Examples
    --------
    >>> open_store("no/such/store.zarr")
    Traceback (most recent call last):
    microns_xr.errors.StoreFormatError: there is no store at ...no/such/store.zarr: ...
    """
    root = open_root(path, storage_options)
    with one_store(root):
        names = groups_of_release(root, path)
        groups = {name: _read_group(root, name, lazy, compressed) for name in names}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=root_attrs(root)), **groups})


def read_group(
    root: zarr.Group, name: str, *, lazy: bool = False, compressed: Compressed = "post"
) -> xr.Dataset:
    """Read one group of a store."""
    with one_store(root):
        return _read_group(root, name, lazy, compressed)


def _read_group(root: zarr.Group, name: str, lazy: bool, compressed: Compressed) -> xr.Dataset:
    require_one_of("compressed", compressed, OTHER)
    name = name.strip("/")
    for axis, path in MATRIX_GROUP.items():
        if name == path:
            name, compressed = "connectivity", axis
    if name not in (*DATA_GROUPS, SYNAPSE_GROUP["pre"]) or node_of(root, name) is None:
        raise unknown_label("the store has no group", name, groups_of(root))
    if name == "connectivity":
        dataset = _read_connectivity(root, compressed, lazy)
    else:
        # Early stores hold labels as variables.
        dataset = with_labels(_dataset(read_contents(root, name, lazy=lazy), {}))
        if name in SYNAPSE_GROUP.values():
            dataset = _with_ids(root, dataset)
    require_stated_release(root, name, dataset.coords)
    return dataset


def _read_connectivity(root: zarr.Group, compressed: Compressed, lazy: bool) -> xr.Dataset:
    stored, arrays, contents = read_matrix(root, compressed, lazy=lazy)
    pairs: Mapping[str, Any]
    if lazy:
        pairs = lazy_pairs(stored, list(stored.weights))
    else:
        indices, indptr = (read_values(arrays[key]) for key in ("indices", "indptr"))
        if problem := pattern_problem(indices, indptr, stored.shape, compressed):
            raise damaged(contents.group, problem)
        pattern = make_pattern(indices, indptr, stored.shape, compressed)
        pairs = {
            name: gcxs(read_values(arrays[key], wide_dtype(arrays[key])), pattern)
            for name, key in stored.weights.items()
        }
    sparse_variables = {
        name: xr.Variable(PAIR_DIMS, pairs[name], arrays[key].attrs.asdict())
        for name, key in stored.weights.items()
    }
    return _dataset(contents, sparse_variables)


def _dataset(contents: Contents, variables: dict[str, xr.Variable]) -> xr.Dataset:
    """Return the Dataset of a group: its dense arrays, and variables that are made already."""
    group, _, dims, _, values, coords, attrs = contents
    all_variables = variables | {
        name: xr.Variable(dims[name], values[name], array.attrs.asdict())
        if name in values
        else lazy_variable(group, name, dims[name])
        for name, array in contents.arrays.items()
    }
    try:
        return xr.Dataset(
            {name: variable for name, variable in all_variables.items() if name not in coords},
            {name: variable for name, variable in all_variables.items() if name in coords},
            attrs,
        )
    except ValueError as err:  # different lengths along a dimension
        raise damaged(group, str(err)) from err


def _with_ids(root: zarr.Group, synapses: xr.Dataset) -> xr.Dataset:
    """Return single synapses with the ids of their neurons in place of positions on the axes."""
    ids: dict[str, xr.Variable] = {}
    for axis, root_ids, index in zip(PAIR_DIMS, ROOT_IDS, ("pre_index", "post_index"), strict=True):
        if index not in synapses.variables:
            continue
        axes = synapses
        if axis not in axes.variables:  # in an early store, only the connectivity has them
            stored = [s for s, group in MATRIX_GROUP.items() if node_of(root, group) is not None]
            if not stored:
                raise damaged(root, f"the synapses have {index}, but there is no {axis}")
            axes = _read_group(root, "connectivity", True, stored[0])
        for name in (axis, root_ids):
            labels = axes.variables.get(name)
            if labels is not None and labels.dims == (axis,):
                found = LabelArray(labels, synapses.variables[index], f"{root.store_path}: {index}")
                data = indexing.MemoryCachedArray(indexing.LazilyIndexedArray(found))
                ids[name] = xr.Variable("synapse", data, labels.attrs)
    rows = synapses.drop_vars(INDEX_NAMES.values(), errors="ignore")
    return with_labels(rows.drop_dims(PAIR_DIMS, errors="ignore").assign(ids))


def lazy_variable(group: zarr.Group, name: str, dims: tuple[Hashable, ...]) -> xr.Variable:
    """Return an array of a group as a variable that is read on first use."""
    array = array_of(group, name)
    lazy = indexing.LazilyIndexedArray(_Dense(group, array))
    return xr.Variable(dims, indexing.MemoryCachedArray(lazy), array.attrs.asdict())


def read_from(variable: xr.Variable) -> zarr.Group | None:
    """Return the group of a lazy variable, if it is a whole array that is not yet read."""
    array = _array_of(variable)
    if isinstance(array, LabelArray):
        return read_from(array.positions)
    return array._group if isinstance(array, _Dense) else None


def label_array(variable: xr.Variable) -> LabelArray | None:
    """Return the labels and positions that a variable consists of, if it is not yet read."""
    array = _array_of(variable)
    return array if isinstance(array, LabelArray) else None


def _array_of(variable: xr.Variable) -> Any:
    data: Any = variable._data
    while not isinstance(data, indexing.LazilyIndexedArray) and hasattr(data, "array"):
        data = data.array
    if not isinstance(data, indexing.LazilyIndexedArray):
        return None
    whole = all(isinstance(k, slice) and k == slice(None) for k in data.key.tuple)
    return data.array if whole else None


class _Lazy(BackendArray):
    """An array for xarray's lazy indexing, of which `_get` reads a part."""

    shape: tuple[int, ...]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._get
        )

    def _get(self, key: tuple[Any, ...]) -> Any:
        raise NotImplementedError


class _Dense(_Lazy):
    """A dense array on disk."""

    def __init__(self, group: zarr.Group, array: zarr.Array) -> None:
        self._group = group
        self._array = array
        self.shape = array.shape
        self.dtype = np.dtype(object) if array.dtype.kind in "OUT" else array.dtype

    def _get(self, key: tuple[Any, ...]) -> Any:
        if all(
            isinstance(k, slice) and k.indices(n) == (0, n, 1)
            for k, n in zip(key, self.shape, strict=True)
        ):
            return read_values(self._array)
        with decoding(self._array):
            part = np.asarray(self._array.get_orthogonal_selection(key))
            return part.astype(self.dtype, copy=False)


class LabelArray(_Lazy):
    """Labels of an axis at the positions of each synapse, which take less memory than ids."""

    def __init__(self, labels: xr.Variable, positions: xr.Variable, where: str) -> None:
        self.labels = labels
        self.positions = positions
        self.shape = positions.shape
        self.dtype = labels.dtype
        self._where = where

    def _get(self, key: tuple[Any, ...]) -> Any:
        positions = self.positions[key].values
        if problem := index_problem(positions, self.labels.size):
            raise StoreFormatError(f"{self._where} {problem}; the store is damaged, write it again")
        return self.labels.values[positions]
