"""Open a store of format 1: all groups or one, in memory or lazily."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr
import zarr
import zarr.errors
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.abc.store import Store

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    ROOT_IDS,
    Compressed,
    as_pairs,
    gcxs,
    make_pattern,
)
from microns_xr.connectivity.blocks import AXIS, lazy_pairs
from microns_xr.errors import (
    SchemaError,
    SourceError,
    StoreFormatError,
    unknown_label,
)
from microns_xr.provenance import RELEASE_COORDS, plain_attrs
from microns_xr.schema import require_unique_sorted, with_labels
from microns_xr.store.format import (
    CHECKSUMS_ATTR,
    COORDS_ATTR,
    DATA_ATTR,
    DATA_GROUPS,
    FORMAT,
    FORMAT_ATTR,
    ID_ATTR,
    INDEX_NAMES,
    MATRIX_GROUP,
    OTHER,
    SYNAPSE_GROUP,
    SYNAPSE_POINTER,
    VARIABLES_ATTR,
    WEIGHT_DTYPES,
    index_problem,
    matrix_arrays,
    matrix_attrs,
    pattern_problem,
    pointer_problem,
    reserved_attrs,
)
from microns_xr.store.locate import (
    Address,
    decoding,
    map_reads,
    read_span,
    read_values,
    readable,
)

# The attribute ``counts`` of a ``synapse_count`` that earlier versions wrote where each was 1
# because synapses were not counted.
_NOT_COUNTED = "rows of a table with one row per pair"


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
    with _one_store(root):
        names = groups_of(root)
        if "units" not in names:
            raise StoreFormatError(
                f"{path} has no group 'units', found {names}: the store is damaged, write it again"
            )
        groups = {name: _read_group(root, name, lazy, compressed) for name in names}
    attrs = root.attrs.asdict()
    for name in (CHECKSUMS_ATTR, ID_ATTR):
        attrs.pop(name, None)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=plain_attrs(attrs)), **groups})


def open_root(path: Address, storage_options: Mapping[str, Any] | None = None) -> zarr.Group:
    """Open the root group of a store for reading, and check its format."""
    store = readable(path, storage_options)
    try:
        root = zarr.open_group(store, mode="r", zarr_format=3)
    except SourceError:
        raise
    except (zarr.errors.NodeTypeValidationError, FileNotFoundError, OSError, ValueError) as err:
        raise StoreFormatError(
            f"there is no store at {store.address}: expected a folder or URL written by "
            f"mx.write_store ({type(err).__name__}: {err})"
        ) from err
    version = root.attrs.get(FORMAT_ATTR)
    if isinstance(version, bool) or not isinstance(version, int):
        raise StoreFormatError(
            f"{store.address} is a zarr group but not a finished microns_xr store: its attribute "
            f"{FORMAT_ATTR!r} is {version!r}, expected {FORMAT}; open it with xr.open_zarr, or "
            "write the store again"
        )
    if not 1 <= version <= FORMAT:
        raise StoreFormatError(
            f"{store.address} has format {version}, expected 1 to {FORMAT}: a newer microns_xr "
            "wrote it, update the package"
        )
    return root


def groups_of(root: zarr.Group) -> list[str]:
    """Return the names of the groups of data in a store."""
    return [name for name in DATA_GROUPS if _node(root, name) is not None]


def read_group(
    root: zarr.Group, name: str, *, lazy: bool = False, compressed: Compressed = "post"
) -> xr.Dataset:
    """Read one group of a store."""
    with _one_store(root):
        return _read_group(root, name, lazy, compressed)


def _read_group(root: zarr.Group, name: str, lazy: bool, compressed: Compressed) -> xr.Dataset:
    if compressed not in OTHER:
        raise SchemaError(f"compressed is {compressed!r}, expected 'post' or 'pre'")
    name = name.strip("/")
    for axis, path in MATRIX_GROUP.items():
        if name == path:
            name, compressed = "connectivity", axis
    if name not in (*DATA_GROUPS, SYNAPSE_GROUP["pre"]) or _node(root, name) is None:
        raise unknown_label("the store has no group", name, groups_of(root))
    if name == "connectivity":
        dataset = _read_connectivity(root, compressed, lazy)
    else:
        group = _group(root, name)
        names = [n for n in _variables(group) if n not in SYNAPSE_POINTER.values()]
        # Early stores hold labels as variables.
        dataset = with_labels(_dataset(group, _arrays(group, names), {}, lazy))
        if name in SYNAPSE_GROUP.values():
            dataset = _with_ids(root, dataset)
    _require_stated_release(root, name, dataset)
    return dataset


def _require_stated_release(root: zarr.Group, name: str, dataset: xr.Dataset) -> None:
    """Raise unless coordinates and attributes state the same release (rule 4)."""
    for key in set(RELEASE_COORDS) & set(dataset.coords):
        for node in (root, _group(root, name)):
            stated = node.attrs.get(key, dataset[key].item())
            if stated != dataset[key].item():
                raise _damaged(
                    root,
                    f"{key} of {name} is {dataset[key].item()!r}, but an attribute of "
                    f"{node.path or 'the root'!r} says {stated!r}",
                )


@contextmanager
def _one_store(root: zarr.Group) -> Iterator[None]:
    """Raise if what is read in the block does not all come from the store that was opened."""
    # Lazy variables check again whenever they are read, since new pairs would be assigned to the
    # old neurons.
    try:
        yield
    except SourceError:
        raise
    except Exception:
        require_unchanged(root, read_root=True)  # the more likely cause
        raise
    require_unchanged(root, read_root=True)


def require_unchanged(group: zarr.Group, read_root: bool = False) -> None:
    """Raise if the store of a group is no longer the one that was opened."""
    store: Any = group.store
    store.require_unchanged(read_root)


def _read_connectivity(root: zarr.Group, compressed: Compressed, lazy: bool) -> xr.Dataset:
    path, other = MATRIX_GROUP[compressed], MATRIX_GROUP[OTHER[compressed]]
    if path not in root and other in root:
        raise StoreFormatError(
            f"{root.store_path} has no group {path!r}, only {other!r}: "
            f"open it with compressed={OTHER[compressed]!r}"
        )
    group = _group(root, path)
    arrays = _arrays(group, _variables(group))
    shape = _matrix_shape(group, arrays, compressed)
    weights = _weights(group, arrays)
    pairs: Mapping[str, Any]
    if lazy:
        pairs = lazy_pairs(StoredPairs(group, compressed, shape, weights), list(weights))
    else:
        indices, indptr = (read_values(arrays[key]) for key in ("indices", "indptr"))
        if problem := pattern_problem(indices, indptr, shape, compressed):
            raise _damaged(group, problem)
        pattern = make_pattern(indices, indptr, shape, compressed)
        pairs = {
            name: gcxs(read_values(arrays[key], _wide_dtype(arrays[key])), pattern)
            for name, key in weights.items()
        }
    sparse_variables = {
        name: xr.Variable(PAIR_DIMS, pairs[name], arrays[key].attrs.asdict())
        for name, key in weights.items()
    }
    matrix_names = set(matrix_arrays(compressed)) - set(PAIR_DIMS)
    rest = {
        key: array
        for key, array in arrays.items()
        if key not in matrix_names and _dims(group, key, array) != ("connection",)
    }
    dataset = _dataset(group, rest, sparse_variables, lazy)
    for key in PAIR_DIMS:
        try:
            require_unique_sorted(key, dataset[key].values)
        except SchemaError as err:
            raise _damaged(group, str(err)) from err
    return dataset


def _weights(group: zarr.Group, arrays: Mapping[str, zarr.Array]) -> dict[str, str]:
    """Return the array of each weight, in the order of the store."""
    patterns = {key for axis in OTHER for key in matrix_arrays(axis)} - {"data"}
    names = {"data": group.attrs.get(DATA_ATTR, "synapse_size")}
    return {
        str(names.get(key, key)): key
        for key, array in arrays.items()
        if key not in patterns
        and _dims(group, key, array) == ("connection",)
        and array.attrs.get("counts") != _NOT_COUNTED
    }


def _wide_dtype(array: zarr.Array) -> np.dtype:
    """Return the dtype of weights in memory: int64 even if int32 on disk, as sums may overflow."""
    return np.dtype(np.float64 if array.dtype.kind == "f" else np.int64)


def _matrix_shape(
    group: zarr.Group, arrays: dict[str, zarr.Array], compressed: Compressed
) -> tuple[int, int]:
    """Check the metadata of one copy before reading; return the numbers of pre and of post."""
    specs = matrix_arrays(compressed)
    missing = [key for key in specs if key not in arrays]
    if missing:
        raise _damaged(group, f"the arrays {missing} are missing, expected {list(specs)}")
    weights = _weights(group, arrays)
    for key in weights.values():
        specs[key] = (WEIGHT_DTYPES, ("connection",))
    for key, (dtypes, dims) in specs.items():
        dtype, over = str(arrays[key].dtype), _dims(group, key, arrays[key])
        if dtype not in dtypes.split() or over != dims:
            expected = dtypes.replace(" ", " or ")
            raise _damaged(group, f"{key} is {dtype} over {over}, expected {expected} over {dims}")
    n_pre, n_post = (arrays[axis].shape[0] for axis in PAIR_DIMS)
    n_pairs = arrays["indices"].shape[0]
    lengths = dict.fromkeys((*weights.values(), INDEX_NAMES[compressed]), n_pairs)
    lengths["indptr"] = (n_post if compressed == "post" else n_pre) + 1
    for key, length in lengths.items():
        if arrays[key].shape[0] != length:
            n = arrays[key].shape[0]
            raise _damaged(group, f"{key} has {n} elements, expected {length}")
    for key, value in matrix_attrs(compressed, (n_pre, n_post)).items():
        if group.attrs.get(key) != value:
            raise _damaged(
                group, f"attribute {key!r} is {group.attrs.get(key)!r}, expected {value!r}"
            )
    return n_pre, n_post


def _dataset(
    group: zarr.Group,
    arrays: dict[str, zarr.Array],
    variables: dict[str, xr.Variable],
    lazy: bool,
) -> xr.Dataset:
    """Return the Dataset of a group: its dense arrays, and variables that are made already."""
    dims = {name: _dims(group, name, array) for name, array in arrays.items()}
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        for dim, n in zip(dims[name], array.shape, strict=True):
            if lengths.setdefault(dim, n) != n:
                raise _damaged(
                    group, f"{name} has {n} elements over {dim}, expected {lengths[dim]}"
                )
    # Labels and scalars are small, and needed for opening.
    now = [name for name in arrays if not lazy or dims[name] in ((), (name,))]
    values = map_reads(group, lambda name: read_values(arrays[name]), now)
    data = dict(zip(now, values, strict=True))
    all_variables = variables | {
        name: xr.Variable(dims[name], data[name], array.attrs.asdict())
        if name in data
        else lazy_variable(group, name, dims[name])
        for name, array in arrays.items()
    }
    attrs = group.attrs.asdict()
    coords = set(str(attrs.get(COORDS_ATTR, "")).split())
    try:
        return xr.Dataset(
            {name: variable for name, variable in all_variables.items() if name not in coords},
            {name: variable for name, variable in all_variables.items() if name in coords},
            plain_attrs({k: v for k, v in attrs.items() if k not in reserved_attrs(group.path)}),
        )
    except ValueError as err:  # different lengths along a dimension
        raise _damaged(group, str(err)) from err


def _with_ids(root: zarr.Group, synapses: xr.Dataset) -> xr.Dataset:
    """Return single synapses with the ids of their neurons in place of positions on the axes."""
    ids: dict[str, xr.Variable] = {}
    for axis, root_ids, index in zip(PAIR_DIMS, ROOT_IDS, ("pre_index", "post_index"), strict=True):
        if index not in synapses.variables:
            continue
        axes = synapses
        if axis not in axes.variables:  # in an early store, only the connectivity has them
            stored = [side for side, group in MATRIX_GROUP.items() if _node(root, group)]
            if not stored:
                raise _damaged(root, f"the synapses have {index}, but there is no {axis}")
            axes = _read_group(root, "connectivity", True, stored[0])
        for name in (axis, root_ids):
            labels = axes.variables.get(name)
            if labels is not None and labels.dims == (axis,):
                found = LabelArray(labels, synapses.variables[index], f"{root.store_path}: {index}")
                data = indexing.MemoryCachedArray(indexing.LazilyIndexedArray(found))
                ids[name] = xr.Variable("synapse", data, labels.attrs)
    rows = synapses.drop_vars(INDEX_NAMES.values(), errors="ignore")
    return with_labels(rows.drop_dims(PAIR_DIMS, errors="ignore").assign(ids))


def _group(root: zarr.Group, name: str) -> zarr.Group:
    node = _node(root, name)
    if not isinstance(node, zarr.Group):
        raise _damaged(root, f"the group {name!r} is missing")
    return node


def _arrays(group: zarr.Group, names: list[str]) -> dict[str, zarr.Array]:
    arrays = map_reads(group, lambda name: _array(group, name), names)
    return dict(zip(names, arrays, strict=True))


def _array(group: zarr.Group, name: str) -> zarr.Array:
    node = _node(group, name)
    if not isinstance(node, zarr.Array):
        require_unchanged(group)
        raise _damaged(group, f"the array {name!r} is missing, expected {_variables(group)}")
    return node


def _node(group: zarr.Group, name: str) -> zarr.Group | zarr.Array | None:
    try:
        node = group.get(name)
        if node is not None:
            node.attrs.asdict()  # zarr takes any JSON
        return node
    except StoreFormatError:
        raise
    except (ValueError, KeyError, TypeError) as err:
        raise _damaged(group, f"the metadata of {name!r} cannot be read ({err})") from err


def _variables(group: zarr.Group) -> list[str]:
    names = group.attrs.get(VARIABLES_ATTR)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(
            group, f"attribute {VARIABLES_ATTR!r} is {names!r}, expected a list of names"
        )
    return names


def _dims(group: zarr.Group, name: str, array: zarr.Array) -> tuple[str, ...]:
    dims = getattr(array.metadata, "dimension_names", None) or ()
    if len(dims) != array.ndim or None in dims:
        raise _damaged(group, f"{name} has the dimension names {dims}, expected {array.ndim}")
    return dims


def _damaged(group: zarr.Group, what: str) -> StoreFormatError:
    return StoreFormatError(
        f"{group.store_path}: {what}; the store is damaged or was not written by microns_xr, "
        "write it again"
    )


class StoredPairs:
    """One copy of the connectivity on disk: a `microns_xr.connectivity.blocks.PairSource`."""

    def __init__(
        self,
        group: zarr.Group,
        compressed: Compressed,
        shape: tuple[int, int],
        weights: Mapping[str, str],
    ) -> None:
        self.compressed = compressed
        self.weights = dict(weights)  # array of each variable
        self.shape = shape
        self._group = group
        self._arrays: dict[str, zarr.Array] = {}
        self._indptr: np.ndarray | None = None
        self._other: StoredPairs | None = None

    @property
    def indptr(self) -> np.ndarray:
        """Span boundaries on the compressed axis, int64; read once."""
        if self._indptr is None:
            indptr = read_values(self._array("indptr"))
            n_major, n_pairs = self.shape[AXIS[self.compressed]], self._array("indices").shape[0]
            if problem := pointer_problem(indptr, n_major, n_pairs):
                raise _damaged(self._group, f"indptr {problem}")
            self._indptr = indptr
        return self._indptr

    @property
    def chunk(self) -> int:
        """Number of stored pairs per chunk."""
        return int(self._array("indices").chunks[0])

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read ``"indices"`` or the values of a variable, pairs `start` to `stop`."""
        array = self._array(self.weights.get(name, name))
        if start == stop:
            return np.zeros(0, dtype=array.dtype)
        return read_span(array, start, stop)

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype in memory of a variable."""
        return _wide_dtype(self._array(self.weights[name]))

    def other(self) -> StoredPairs | None:
        """Return the other copy, None where the store has only this one."""
        if self._other is None and (other := self._open_other()) is not None:
            self._other, other._other = other, self
        return self._other

    def _open_other(self) -> StoredPairs | None:
        axis, group = OTHER[self.compressed], self._group
        root = group.path.removesuffix(MATRIX_GROUP[self.compressed])
        try:
            sibling = zarr.open_group(group.store, mode="r", path=root + MATRIX_GROUP[axis])
        except (FileNotFoundError, zarr.errors.NodeTypeValidationError):
            require_unchanged(group)
            return None
        require_unchanged(group)
        other = StoredPairs(sibling, axis, self.shape, self.weights)
        expected, actual = (
            [copy._group.attrs.get("shape"), copy._array("indices").shape[0]]
            for copy in (self, other)
        )
        if expected != actual:
            raise StoreFormatError(
                f"{sibling.store_path} has shape and pairs {actual}, expected {expected} as in the "
                "other copy: the store is damaged, write it again"
            )
        return other

    @property
    def address(self) -> str:
        """Address of the group that holds the pairs."""
        return str(self._group.store_path)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StoredPairs) and self.__dask_tokenize__() == other.__dask_tokenize__()
        )

    def __hash__(self) -> int:
        return hash(self.__dask_tokenize__())

    def __dask_tokenize__(self) -> Any:
        store: Any = self._group.store
        return (type(self).__name__, str(store), store.state, self._group.path)

    def __getstate__(self) -> dict[str, Any]:
        # Without the pointers, some hundred KB: each task carries the part of them that it needs.
        return {**self.__dict__, "_indptr": None, "_other": None}

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = _array(self._group, name)
        return self._arrays[name]


def lazy_variable(group: zarr.Group, name: str, dims: tuple[Hashable, ...]) -> xr.Variable:
    """Return an array of a group as a variable that is read on first use."""
    array = _array(group, name)
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


class _Dense(BackendArray):
    """A dense array on disk, for xarray's lazy indexing."""

    def __init__(self, group: zarr.Group, array: zarr.Array) -> None:
        self._group = group
        self._array = array
        self.shape = array.shape
        self.dtype = np.dtype(object) if array.dtype.kind in "OUT" else array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._get
        )

    def _get(self, key: tuple[Any, ...]) -> Any:
        if all(
            isinstance(k, slice) and k.indices(n) == (0, n, 1)
            for k, n in zip(key, self.shape, strict=True)
        ):
            return read_values(self._array)
        with decoding(self._array):
            part = np.asarray(self._array.get_orthogonal_selection(key))
            return part.astype(self.dtype, copy=False)


class LabelArray(BackendArray):
    """Labels of an axis at the positions of each synapse, which take less memory than ids."""

    def __init__(self, labels: xr.Variable, positions: xr.Variable, where: str) -> None:
        self.labels = labels
        self.positions = positions
        self.shape = positions.shape
        self.dtype = labels.dtype
        self._where = where

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._get
        )

    def _get(self, key: tuple[Any, ...]) -> Any:
        positions = self.positions[key].values
        if problem := index_problem(positions, self.labels.size):
            raise StoreFormatError(f"{self._where} {problem}; the store is damaged, write it again")
        return self.labels.values[positions]


# A connectivity Dataset or one of its arrays, a tree that has one, or the address of a store.
Connectivity = xr.Dataset | xr.DataArray | xr.DataTree | Address


def connectivity_of(
    connectivity: Connectivity, compressed: Compressed = "post"
) -> tuple[xr.Dataset, bool]:
    """Return the connectivity that was passed, in one form, and whether it was opened here."""
    if isinstance(connectivity, xr.Dataset | xr.DataArray):
        return as_pairs(connectivity), False
    if isinstance(connectivity, xr.DataTree):
        if set(PAIR_DIMS) <= set(connectivity.dims):  # its node, as tree["connectivity"]
            return as_pairs(connectivity.to_dataset()), False
        if "connectivity" not in connectivity.children:
            raise SchemaError(
                f"the tree has the groups {list(connectivity.children)}, expected 'connectivity' "
                "among them: open a store that was written with connectivity"
            )
        return as_pairs(connectivity["connectivity"].to_dataset()), False
    if not isinstance(connectivity, str | os.PathLike | Store):
        raise SchemaError(
            f"connectivity is a {type(connectivity).__name__}, expected a Dataset, a tree, or the "
            "address of a store: use mx.Release(...).connectivity() or mx.open_store"
        )
    root = open_root(connectivity)
    if MATRIX_GROUP[compressed] not in root and MATRIX_GROUP[OTHER[compressed]] in root:
        compressed = OTHER[compressed]
    return read_group(root, "connectivity", lazy=True, compressed=compressed), True
