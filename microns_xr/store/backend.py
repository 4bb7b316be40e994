"""The xarray engine ``microns_xr``: stores through `xarray.open_datatree` and `open_dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint
from xarray.core import indexing

from microns_xr.connectivity.arrays import Compressed
from microns_xr.errors import UnknownLabelError
from microns_xr.store.locate import Address
from microns_xr.store.open import groups_of, open_root, open_store, read_group


class MicronsXrBackendEntrypoint(BackendEntrypoint):
    """Engine that gives sparse-backed connectivity; found by xarray under its name only.

    Do not pass ``chunks=``: xarray wraps every array for dask as a dense one, so that the first
    computation makes the whole matrix dense.

    Examples
    --------
    >>> import xarray as xr
    >>> xr.open_datatree("no/such/store.zarr", engine="microns_xr")
    Traceback (most recent call last):
    microns_xr.errors.StoreFormatError: there is no store at ...
    """

    description = "Open stores of microns_xr, with sparse connectivity"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "group",
        "lazy",
        "compressed",
        "storage_options",
    )
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Address,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        lazy: bool = False,
        compressed: Compressed = "post",
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open one group.

        Parameters
        ----------
        filename_or_obj : str, path-like or zarr.abc.store.Store
            The store.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        group : str
            ``"units"``, ``"layers"``, ``"functional"``, ``"connectivity"`` or ``"synapses"``.
        lazy, compressed, storage_options
            See `microns_xr.store.open.open_store`.

        Returns
        -------
        xarray.Dataset
            As it was written.

        Raises
        ------
        UnknownLabelError
            If the store has no such group, or none is named.
        StoreFormatError, SourceError
            See `microns_xr.store.open.open_store`.
        """
        root = open_root(filename_or_obj, storage_options)
        if group is None:
            raise UnknownLabelError(
                f"group is not given, expected one of {groups_of(root)}: pass "
                'group="units", or use xr.open_datatree for all'
            )
        dataset = read_group(root, group, lazy=lazy, compressed=compressed)
        return _kept(_without(dataset, drop_variables))

    def open_datatree(  # type: ignore[override]
        self,
        filename_or_obj: Address,
        *,
        drop_variables: str | Iterable[str] | None = None,
        lazy: bool = False,
        compressed: Compressed = "post",
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.DataTree:
        """Open all groups; see `microns_xr.store.open.open_store`."""
        tree = open_store(
            filename_or_obj, lazy=lazy, compressed=compressed, storage_options=storage_options
        )
        tree = tree.map_over_datasets(_without, drop_variables) if drop_variables else tree
        return tree.map_over_datasets(_kept)

    def open_groups_as_dict(  # type: ignore[override]
        self, filename_or_obj: Address, **kwargs: Any
    ) -> dict[str, xr.Dataset]:
        """Open all groups as Datasets by path; see `open_datatree`."""
        tree = self.open_datatree(filename_or_obj, **kwargs)
        return {node.path: node.to_dataset() for node in tree.subtree}


class _Unwrapped(xr.Variable):
    """A variable whose dask array stays as it is.

    xarray wraps what an engine returns for its own lazy loading; around a dask array the wrapper
    hides the chunks, and loading it gives the dask array back.
    """

    __slots__ = ()

    @property
    def data(self) -> Any:
        """The array, as of any variable."""
        return xr.Variable.data.fget(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, data: Any) -> None:
        if not isinstance(data, indexing.ExplicitlyIndexed):
            xr.Variable.data.fset(self, data)  # type: ignore[attr-defined]


def _kept(dataset: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with dask arrays as xarray is to leave them."""
    return dataset.assign(
        {
            name: _Unwrapped(v.dims, v.data, v.attrs)
            for name, v in dataset.data_vars.items()
            if v.chunks is not None
        }
    )


def _without(dataset: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    if not names:
        return dataset
    return dataset.drop_vars([names] if isinstance(names, str) else list(names), errors="ignore")
