"""A store where a function takes connectivity."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr
import zarr
import zarr.errors
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.abc.store import Store
from zarr.storage import LocalStore, StorePath

from microns_xr.connectivity.arrays import PAIR_DIMS, Compressed, gcxs, make_pattern
from microns_xr.connectivity.blocks import AXIS, lazy_pairs
from microns_xr.errors import (
    SchemaError,
    SourceError,
    StoreFormatError,
    UnknownLabelError,
    nearest_words,
)
from microns_xr.schema import require_unique_sorted
from microns_xr.store import swap
from microns_xr.store.format import (
    COORDS_ATTR,
    DATA_GROUPS,
    FORMAT,
    FORMAT_ATTR,
    MATRIX_ATTRS,
    MATRIX_ENCODING,
    MATRIX_VERSION,
    OTHER,
    SYNAPSE_GROUP,
    SYNAPSE_POINTER,
    VARIABLES_ATTR,
    matrix_arrays,
    matrix_group,
    pattern_problems,
    reserved_attrs,
)
from microns_xr.store.locate import (
    Address,
    CompleteStore,
    at_once,
    locate,
    read_span,
    read_values,
)

# Arrays of a store that are read when they are used.
#
# What was opened stays tied to the store as it was then: a local one that has been replaced since
# is refused at the next read, for its new pairs would be taken for those of the old neurons.


_ARRAY_OF = {"synapse_size": "data"}


class OpenedStore(CompleteStore):
    """A finished store as it was when it was opened, which it remembers wherever it is sent.

    A chunk that was lost is seen when it is read. A local store is known by its root, which a
    replacement makes anew; elsewhere, where an address may stand for one bucket here and another
    there, every opening is one of its own.
    """

    def __init__(self, store: Store, address: str, state: Any = None) -> None:
        super().__init__(store, address)
        self.state = self._now() or uuid.uuid4().hex if state is None else state

    def with_read_only(self, read_only: bool = False) -> OpenedStore:
        """Return the same store, opened when this one was."""
        return OpenedStore(self._store.with_read_only(read_only), self.address, self.state)

    def require_unchanged(self) -> None:
        """Raise if the store is no longer the one that was opened."""
        if self._now() not in (None, self.state):
            raise StoreFormatError(
                f"{self.address} has been replaced since it was opened: open it again"
            )

    def _now(self) -> tuple[int, ...] | None:
        if not isinstance(self._store, LocalStore):
            return None
        try:
            found = os.stat(self._store.root / "zarr.json")
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


def lazy_root(root: zarr.Group) -> zarr.Group:
    """Return a group of an `OpenedStore`; the very same if it is one."""
    store: Any = root.store
    if isinstance(store, OpenedStore):
        return root
    if isinstance(store, CompleteStore):
        opened = OpenedStore(store._store, store.address)
    else:
        opened = OpenedStore(store.with_read_only(True), str(store.root))
    # What was read of the group stays, the consolidated metadata as well.
    return zarr.Group(zarr.AsyncGroup(root.metadata, StorePath(opened, root.path)))


def on_this_disk(group: zarr.Group) -> bool:
    """Whether a group is of a local store, opened lazily or not."""
    return isinstance(getattr(group.store, "_store", group.store), LocalStore)


def require_unchanged(group: zarr.Group) -> None:
    """Raise if the store below a `lazy_root` is no longer the one that was opened."""
    store: Any = group.store
    store.require_unchanged()


class StoredPairs:
    """One copy of the connectivity on disk: a `microns_xr.connectivity.blocks.PairSource`."""

    def __init__(self, group: zarr.Group, compressed: Compressed, shape: tuple[int, int]) -> None:
        self.compressed = compressed
        self.shape = shape
        self._group = group
        self._arrays: dict[str, zarr.Array] = {}
        self._indptr: np.ndarray | None = None
        self._other: StoredPairs | None = None

    @property
    def indptr(self) -> np.ndarray:
        """Spans of the compressed axis, int64; read once."""
        if self._indptr is None:
            indptr = read_values(self._array("indptr"))
            require_unchanged(self._group)
            n_major = self.shape[AXIS[self.compressed]]
            n_pairs = self._array("indices").shape[0]
            if (
                indptr.size != n_major + 1
                or indptr[0] != 0
                or (indptr[1:] < indptr[:-1]).any()
                or indptr[-1] != n_pairs
            ):
                raise StoreFormatError(
                    f"{self._array('indptr').store_path} does not ascend from 0 to {n_pairs} in "
                    f"{n_major} steps: the store is damaged, write it again"
                )
            self._indptr = indptr
        return self._indptr

    @property
    def chunk(self) -> int:
        """Stored pairs that are decoded at once."""
        return int(self._array("indices").chunks[0])

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read ``"indices"`` or the values of a variable, pairs `start` to `stop`."""
        array = self._array(_ARRAY_OF.get(name, name))
        if start == stop:
            return np.zeros(0, dtype=array.dtype)
        with _reading(self._group, array):
            return read_span(array, start, stop)

    def other(self) -> StoredPairs | None:
        """Return the other copy, None where the store has only this one."""
        if self._other is None and (other := self._open_other()) is not None:
            self._other, other._other = other, self
        return self._other

    def _open_other(self) -> StoredPairs | None:
        axis, group = OTHER[self.compressed], self._group
        root = group.path.removesuffix(matrix_group(self.compressed)).rstrip("/")
        try:
            sibling = zarr.open_group(
                group.store, mode="r", path=f"{root}/{matrix_group(axis)}".lstrip("/")
            )
        except (FileNotFoundError, zarr.errors.NodeTypeValidationError):
            require_unchanged(group)
            return None
        require_unchanged(group)
        other = StoredPairs(sibling, axis, self.shape)
        mine, its = (
            [copy._group.attrs.get("shape"), copy._array("indices").shape[0]]
            for copy in (self, other)
        )
        if mine != its:
            raise StoreFormatError(
                f"{sibling.store_path} has shape and pairs {its}, expected {mine} as the other "
                "copy: the store is damaged, write it again"
            )
        return other

    @property
    def store_path(self) -> str:
        """Where the pairs are."""
        return f"{self._group.store_path}"

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
        # The pointers stay behind: every task carries what it needs of them.
        return {**self.__dict__, "_indptr": None, "_other": None}

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = _array_of(self._group, name)
        return self._arrays[name]


@contextmanager
def _reading(group: zarr.Group, array: zarr.Array) -> Iterator[None]:
    """Name what goes wrong, and see that the store is still the same."""
    try:
        yield
    except StoreFormatError:
        require_unchanged(group)  # the reason, where it was replaced meanwhile
        raise
    except (RuntimeError, ValueError, TypeError) as err:
        require_unchanged(group)
        raise StoreFormatError(
            f"{array.store_path} cannot be decoded ({err}): the store is damaged, write or copy it "
            "again"
        ) from err
    require_unchanged(group)


def _array_of(group: zarr.Group, name: str) -> zarr.Array:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        require_unchanged(group)
        raise StoreFormatError(
            f"{group.store_path} has no array {name!r}: the store is damaged, write or copy it "
            "again"
        )
    return array


def lazy_variable(group: zarr.Group, name: str, dims: tuple[str, ...]) -> xr.Variable:
    """Return an array of a group as a variable that is read when it is used, and kept then."""
    array = _array_of(group, name)
    lazy = indexing.LazilyIndexedArray(_Dense(group, array))
    return xr.Variable(dims, indexing.MemoryCachedArray(lazy), array.attrs.asdict())


def read_from(variable: xr.Variable) -> zarr.Group | None:
    """Return the group a variable is still to be read from, if it is the whole array there."""
    data: Any = variable._data
    while not isinstance(data, indexing.LazilyIndexedArray) and hasattr(data, "array"):
        data = data.array
    if not isinstance(data, indexing.LazilyIndexedArray) or not isinstance(data.array, _Dense):
        return None
    whole = all(isinstance(k, slice) and k == slice(None) for k in data.key.tuple)
    return data.array._group if whole else None


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
        whole = all(
            isinstance(k, slice) and k.indices(n) == (0, n, 1)
            for k, n in zip(key, self.shape, strict=True)
        )
        with _reading(self._group, self._array):
            if whole:
                return read_values(self._array)
            part = np.asarray(self._array.get_orthogonal_selection(key))
            return part.astype(self.dtype, copy=False)


# Opening a store of format 1, whole or one group.


_PAIR_ARRAYS = {"synapse_size": "data", "synapse_count": "synapse_count"}


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
        Folder, address of fsspec, or store of zarr, see `microns_xr.store.locate.locate`. An
        interrupted replacement of a local store is finished.
    lazy : bool, optional
        True reads metadata, labels and pointers only. ``synapse_size`` and ``synapse_count`` are
        then dask arrays whose chunks are `sparse.GCXS` of whole neurons, about 4 million stored
        pairs and one contiguous read each; every other variable is read when it is first used.
    compressed : {"post", "pre"}, optional
        Which copy of the connectivity to read: the neurons whose partners are contiguous.
    storage_options : mapping, optional
        For an address: login, endpoint and the like, as fsspec takes them.

    Returns
    -------
    xarray.DataTree
        With the children ``units``, ``layers``, ``functional``, ``connectivity`` and ``synapses``,
        as far as the store has them; each a Dataset as it was written. Text is of dtype object;
        ``synapse_size`` and ``synapse_count`` are int64 `sparse.GCXS`. The attributes of the root
        say where it all comes from.

    Raises
    ------
    StoreFormatError
        If there is no store at `path`, its format is newer than this package, an array is missing
        or damaged, or the copy that is asked for was not stored.
    SourceError
        If an address cannot be reached, or refuses.
    SchemaError
        If `compressed` is another word, or `path` is no place for a store.

    Examples
    --------
    >>> open_store("no/such/store.zarr")
    Traceback (most recent call last):
    microns_xr.errors.StoreFormatError: there is no store at ...no/such/store.zarr: ...
    """
    root = open_root(path, storage_options)
    if lazy:
        root = lazy_root(root)
    names = groups_of(root)
    if "units" not in names:
        raise StoreFormatError(
            f"{path} has no group 'units', found {names}: the store is damaged, write it again"
        )
    groups = {name: read_group(root, name, lazy=lazy, compressed=compressed) for name in names}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=root.attrs.asdict()), **groups})


def open_root(path: Address, storage_options: Mapping[str, Any] | None = None) -> zarr.Group:
    """Open the root group of a store for reading, after a look at its format."""
    place = locate(path, storage_options)
    address = place.address
    if place.store is None:
        swap.recover(address)
    try:
        root = zarr.open_group(
            address if place.store is None else place.store, mode="r", zarr_format=3
        )
    except SourceError:
        raise
    except (zarr.errors.NodeTypeValidationError, FileNotFoundError, OSError, ValueError) as err:
        raise StoreFormatError(
            f"there is no store at {address}: expected a folder or address that mx.write_store "
            f"made ({type(err).__name__}: {err})"
        ) from err
    found = root.attrs.get(FORMAT_ATTR)
    if isinstance(found, bool) or not isinstance(found, int):
        raise StoreFormatError(
            f"{address} is a zarr group but not a finished microns_xr store: its attribute "
            f"{FORMAT_ATTR!r} is {found!r}, expected {FORMAT}; open it with xr.open_zarr, or write "
            "the store again"
        )
    if not 1 <= found <= FORMAT:
        raise StoreFormatError(
            f"{address} is of format {found}, expected 1 to {FORMAT}: a newer microns_xr wrote it, "
            "update the package"
        )
    return root


def groups_of(root: zarr.Group) -> list[str]:
    """Return the names of the groups of data a store has."""
    return [name for name in DATA_GROUPS if _node(root, name) is not None]


def read_group(
    root: zarr.Group, name: str, *, lazy: bool = False, compressed: Compressed = "post"
) -> xr.Dataset:
    """Read one group of a store."""
    if compressed not in OTHER:
        raise SchemaError(f"compressed is {compressed!r}, expected 'post' or 'pre'")
    name = name.strip("/")
    for axis in OTHER:
        if name == matrix_group(axis):
            name, compressed = "connectivity", axis
    if name not in (*DATA_GROUPS, SYNAPSE_GROUP["pre"]) or _node(root, name) is None:
        names = groups_of(root)
        near = nearest_words(name, names)
        raise UnknownLabelError(
            f"group {name!r} is not in the store, expected one of {names}"
            + (f"; nearest: {', '.join(near)}" if near else "")
        )
    if not lazy:
        return _read_group(root, name, compressed, lazy)
    root = lazy_root(root)
    try:
        return _read_group(root, name, compressed, lazy)
    finally:
        # Labels and pointers are of one store, and not of one and of its replacement.
        require_unchanged(root)


def _read_group(root: zarr.Group, name: str, compressed: Compressed, lazy: bool) -> xr.Dataset:
    if name == "connectivity":
        return _read_connectivity(root, compressed, lazy)
    group = _group(root, name)
    pointers = SYNAPSE_POINTER.values() if name in SYNAPSE_GROUP.values() else ()
    arrays = _arrays(group, [key for key in _variables(group) if key not in pointers])
    return _dataset(group, arrays, {}, lazy)


def _read_connectivity(root: zarr.Group, compressed: Compressed, lazy: bool) -> xr.Dataset:
    path, other = matrix_group(compressed), matrix_group(OTHER[compressed])
    if path not in root and other in root:
        raise StoreFormatError(
            f"{root.store_path} has no group {path!r}, only {other!r}: "
            f"open it with compressed={OTHER[compressed]!r}"
        )
    group = _group(root, path)
    arrays = _arrays(group, _variables(group))
    shape = _require_matrix(group, arrays, compressed)
    pairs: dict[str, Any]
    if lazy:
        pairs = dict(lazy_pairs(StoredPairs(group, compressed, shape), list(_PAIR_ARRAYS)))
    else:
        pairs = _pairs_in_memory(group, arrays, shape, compressed)
    sparse_variables = {
        name: xr.Variable(PAIR_DIMS, pairs[name], arrays[key].attrs.asdict())
        for name, key in _PAIR_ARRAYS.items()
    }
    own = set(matrix_arrays(compressed)) - {"pre_nucleus_id", "post_nucleus_id"}
    rest = {key: array for key, array in arrays.items() if key not in own}
    dataset = _dataset(group, rest, sparse_variables, lazy)
    for key in ("pre_nucleus_id", "post_nucleus_id"):
        try:
            require_unique_sorted(key, dataset[key].values)
        except SchemaError as err:
            raise _damaged(group, str(err)) from err
    return dataset


def _pairs_in_memory(
    group: zarr.Group,
    arrays: dict[str, zarr.Array],
    shape: tuple[int, int],
    compressed: Compressed,
) -> dict[str, Any]:
    indices, indptr = (read_values(arrays[key]) for key in ("indices", "indptr"))
    problems = pattern_problems(indices, indptr, shape, compressed)
    if problems:
        raise _damaged(group, "; ".join(problems))
    pattern = make_pattern(indices, indptr, shape, compressed)
    # int32 on disk, int64 in memory, where sums must not overflow
    return {
        name: gcxs(read_values(arrays[key], np.dtype(np.int64)), pattern)
        for name, key in _PAIR_ARRAYS.items()
    }


def _require_matrix(
    group: zarr.Group, arrays: dict[str, zarr.Array], compressed: Compressed
) -> tuple[int, int]:
    """Check dtypes, dims, lengths and attributes of one copy; return (number of pre, of post)."""
    specs = matrix_arrays(compressed)
    missing = [key for key in specs if key not in arrays]
    if missing:
        raise _damaged(group, f"the arrays {missing} are missing, expected {list(specs)}")
    for key, (dtypes, dims) in specs.items():
        array = arrays[key]
        if str(array.dtype) not in dtypes.split() or _dims(group, key, array) != dims:
            raise _damaged(
                group,
                f"{key} is {array.dtype} over {_dims(group, key, array)}, expected "
                f"{dtypes.replace(' ', ' or ')} over {dims}",
            )
    n_pre, n_post = (arrays[f"{axis}_nucleus_id"].shape[0] for axis in ("pre", "post"))
    n_connections = arrays["indices"].shape[0]
    lengths = {"connection": n_connections, f"{compressed}_pointer": 1}
    lengths[f"{compressed}_pointer"] += n_post if compressed == "post" else n_pre
    for key, (_, (dim,)) in specs.items():
        if arrays[key].shape[0] != lengths.get(dim, arrays[key].shape[0]):
            raise _damaged(
                group, f"{key} has {arrays[key].shape[0]} elements, expected {lengths[dim]}"
            )
    expected = dict(
        zip(
            MATRIX_ATTRS,
            (MATRIX_ENCODING[compressed], MATRIX_VERSION, [n_pre, n_post]),
            strict=True,
        )
    )
    for key, value in expected.items():
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
    """Put dense arrays together with variables that are made already."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        for dim, length in zip(_dims(group, name, array), array.shape, strict=True):
            expected, of = sizes.setdefault(dim, (length, name))
            if length != expected:
                raise _damaged(
                    group,
                    f"{name} has {length} elements along {dim!r}, expected {expected} as {of}",
                )
    dims = {name: _dims(group, name, array) for name, array in arrays.items()}
    # Labels and scalars are small, and opening needs them.
    later = [name for name in arrays if lazy and dims[name] not in ((), (name,))]
    now = [name for name in arrays if name not in later]
    call = _one_by_one if lazy and on_this_disk(group) else at_once
    values = dict(zip(now, call(read_values, [arrays[name] for name in now]), strict=True))
    data = {
        name: xr.Variable(dims[name], values[name], array.attrs.asdict())
        if name in values
        else lazy_variable(group, name, dims[name])
        for name, array in arrays.items()
    }
    attrs = group.attrs.asdict()
    coords = set(str(attrs.get(COORDS_ATTR, "")).split())
    everything = {**variables, **data}
    return xr.Dataset(
        {name: variable for name, variable in everything.items() if name not in coords},
        coords={name: variable for name, variable in everything.items() if name in coords},
        attrs={key: value for key, value in attrs.items() if key not in reserved_attrs(group.path)},
    )


def _group(root: zarr.Group, name: str) -> zarr.Group:
    node = _node(root, name)
    if not isinstance(node, zarr.Group):
        raise _damaged(root, f"the group {name!r} is missing")
    return node


def _arrays(group: zarr.Group, names: list[str]) -> dict[str, zarr.Array]:
    call = _one_by_one if on_this_disk(group) else at_once
    return dict(zip(names, call(lambda name: _array(group, name), names), strict=True))


def _one_by_one(call: Any, items: list[Any]) -> list[Any]:
    """Do what `at_once` does for what a disk answers faster than a thread starts."""
    return [call(item) for item in items]


def _array(group: zarr.Group, name: str) -> zarr.Array:
    node = _node(group, name)
    if not isinstance(node, zarr.Array):
        raise _damaged(group, f"the array {name!r} is missing, expected {_variables(group)}")
    return node


def _node(group: zarr.Group, name: str) -> zarr.Group | zarr.Array | None:
    try:
        return group.get(name)
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


Connectivity = xr.Dataset | xr.DataTree | Address
"""A connectivity Dataset, a tree that has one, or where a store is."""


def connectivity_of(
    connectivity: Connectivity, compressed: Compressed = "post"
) -> tuple[xr.Dataset, bool]:
    """Return the connectivity of whatever was passed."""
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
