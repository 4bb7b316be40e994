"""Arrays of a store that are read when they are used.

What was opened stays tied to the store as it was then: a local one that has been replaced since is
refused at the next read, for its new pairs would be taken for those of the old neurons.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import xarray as xr
import zarr
import zarr.errors
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.storage import LocalStore

from microns_xr.connectivity.arrays import Compressed
from microns_xr.errors import StoreFormatError
from microns_xr.store.address import CompleteStore
from microns_xr.store.format import OTHER, matrix_group
from microns_xr.store.shards import read_span
from microns_xr.store.values import read_values

__all__ = ["StoredPairs", "lazy_root", "lazy_variable", "read_from"]

_ARRAY_OF = {"synapse_size": "data"}


def lazy_root(root: zarr.Group) -> zarr.Group:
    """Return a group through which a chunk that was lost is seen when it is read."""
    if not isinstance(root.store, LocalStore):
        return root  # opened so already
    store = CompleteStore(root.store.with_read_only(True), str(root.store.root))
    return zarr.open_group(store, mode="r", path=root.path, zarr_format=3)


class _Place:
    """A group, and what tells whether its store has been replaced."""

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._state = self._now()

    def require_unchanged(self) -> None:
        """Raise if the store is no longer the one that was opened."""
        if self._now() != self._state:
            raise StoreFormatError(
                f"{self.group.store} has been replaced since it was opened: open it again"
            )

    def array(self, name: str) -> zarr.Array:
        """Return an array of the group."""
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    def __dask_tokenize__(self) -> Any:
        return (str(self.group.store), self.group.path, self._state)

    def _now(self) -> tuple[int, ...] | None:
        inner = getattr(self.group.store, "_store", None)
        if not isinstance(inner, LocalStore):
            return None  # an object store is never replaced
        try:
            found = os.stat(inner.root / "zarr.json")
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


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
        self._place = _Place(group)
        self._arrays: dict[str, zarr.Array] = {}
        self._indptr: np.ndarray | None = None

    @property
    def indptr(self) -> np.ndarray:
        """Spans of the compressed axis, int64; read once."""
        if self._indptr is None:
            indptr = read_values(self._array("indptr"))
            self._place.require_unchanged()
            n_pairs = self._array("indices").shape[0]
            if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any() or indptr[-1] != n_pairs:
                raise StoreFormatError(
                    f"{self._array('indptr').store_path} does not ascend from 0 to {n_pairs}: the "
                    "store is damaged, write it again"
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
        try:
            values = read_span(array, start, stop)
        except StoreFormatError:
            self._place.require_unchanged()  # the reason, where it was replaced meanwhile
            raise
        except (RuntimeError, ValueError, TypeError) as err:
            self._place.require_unchanged()
            raise StoreFormatError(
                f"{array.store_path} cannot be decoded ({err}): the store is damaged, write or "
                "copy it again"
            ) from err
        self._place.require_unchanged()
        return values

    def other(self) -> StoredPairs | None:
        """Return the other copy, None where the store has only this one."""
        axis = OTHER[self.compressed]
        group = self._place.group
        root = group.path.removesuffix(matrix_group(self.compressed)).rstrip("/")
        try:
            sibling = zarr.open_group(
                group.store, mode="r", path=f"{root}/{matrix_group(axis)}".lstrip("/")
            )
        except (FileNotFoundError, zarr.errors.NodeTypeValidationError):
            return None
        self._place.require_unchanged()
        return StoredPairs(sibling, axis, self.shape)

    @property
    def store_path(self) -> str:
        """Where the pairs are."""
        return f"{self._place.group.store_path}"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StoredPairs) and self.__dask_tokenize__() == other.__dask_tokenize__()
        )

    def __hash__(self) -> int:
        return hash(self.__dask_tokenize__())

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self._place.__dask_tokenize__())

    def __getstate__(self) -> dict[str, Any]:
        # The pointers stay behind: every task carries what it needs of them.
        return {**self.__dict__, "_indptr": None}

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = self._place.array(name)
        return self._arrays[name]


def lazy_variable(group: zarr.Group, name: str, dims: tuple[str, ...]) -> xr.Variable:
    """Return an array of a group as a variable that is read when it is used, and kept then."""
    place = _Place(group)
    array = place.array(name)
    lazy = indexing.LazilyIndexedArray(_Dense(place, array))
    return xr.Variable(dims, indexing.MemoryCachedArray(lazy), array.attrs.asdict())


def read_from(variable: xr.Variable) -> zarr.Group | None:
    """Return the group a variable is still to be read from, if it is the whole array there."""
    data: Any = variable._data
    while not isinstance(data, indexing.LazilyIndexedArray) and hasattr(data, "array"):
        data = data.array
    if not isinstance(data, indexing.LazilyIndexedArray) or not isinstance(data.array, _Dense):
        return None
    whole = all(isinstance(k, slice) and k == slice(None) for k in data.key.tuple)
    return data.array._place.group if whole else None


class _Dense(BackendArray):
    """A dense array on disk, for xarray's lazy indexing."""

    def __init__(self, place: _Place, array: zarr.Array) -> None:
        self._place = place
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
        if whole:
            values = read_values(self._array)
        else:
            values = np.asarray(self._array.get_orthogonal_selection(key)).astype(
                self.dtype, copy=False
            )
        self._place.require_unchanged()
        return values
