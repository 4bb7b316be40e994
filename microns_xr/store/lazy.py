"""Arrays of a store that are read when they are used.

What was opened stays tied to the store as it was then: a local one that has been replaced since is
refused at the next read, for its new pairs would be taken for those of the old neurons.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
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

from microns_xr.connectivity.arrays import Compressed
from microns_xr.connectivity.blocks import AXIS
from microns_xr.errors import StoreFormatError
from microns_xr.store.address import CompleteStore
from microns_xr.store.format import OTHER, matrix_group
from microns_xr.store.shards import read_span
from microns_xr.store.values import read_values

__all__ = [
    "OpenedStore",
    "StoredPairs",
    "lazy_root",
    "lazy_variable",
    "on_this_disk",
    "read_from",
    "require_unchanged",
]

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
    """One copy of the connectivity on disk: a `microns_xr.connectivity.blocks.PairSource`.

    Parameters
    ----------
    group : zarr.Group
        ``connectivity/by_post`` or ``connectivity/by_pre`` below a `lazy_root`.
    compressed : {"post", "pre"}
        Which one.
    shape : tuple of int
        Numbers of pre and of post.
    """

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
        """Read ``"indices"`` or the values of a variable, pairs `start` to `stop`.

        Raises
        ------
        StoreFormatError
            If a chunk is missing or damaged, or the store has been replaced.
        """
        array = self._array(_ARRAY_OF.get(name, name))
        if start == stop:
            return np.zeros(0, dtype=array.dtype)
        with _reading(self._group, array):
            return read_span(array, start, stop)

    def other(self) -> StoredPairs | None:
        """Return the other copy, None where the store has only this one.

        Raises
        ------
        StoreFormatError
            If it is of other neurons or pairs, or the store has been replaced.
        """
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
