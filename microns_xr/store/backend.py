"""The xarray engine ``microns_xr``, for `xarray.open_datatree` and `xarray.open_dataset`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint
from xarray.core import indexing

from microns_xr.connectivity.arrays import Compressed
from microns_xr.errors import UnknownLabelError
from microns_xr.store.locate import Address
from microns_xr.store.nodes import groups_of, open_root
from microns_xr.store.open import open_store, read_group


class MicronsXrBackendEntrypoint(BackendEntrypoint):
    """xarray engine that opens connectivity as sparse arrays; it must be selected by name.

    `xarray.open_datatree` and `open_groups` open all groups, `open_dataset` one: ``group`` is
    ``"units"``, ``"layers"``, ``"functional"``, ``"connectivity"`` or ``"synapses"``. The other
    arguments are ``drop_variables`` and those of `microns_xr.open_store`.

    Do not pass ``chunks=``: xarray treats every array as dense when it wraps it for dask, so that
    the first computation makes the whole matrix dense.

    Examples
    --------
    >>> import xarray as xr
    >>> xr.open_datatree("no/such/store.zarr", engine="microns_xr")
    Traceback (most recent call last):
    microns_xr.errors.StoreFormatError: there is no store at ...
    """

    description = "Open stores of microns_xr, with sparse connectivity"
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Address,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        lazy: bool = False,
        compressed: Compressed = "post",
        storage_options: Any = None,
    ) -> xr.Dataset:
        """Open one group as a Dataset."""
        root = open_root(filename_or_obj, storage_options)
        if group is None:
            raise UnknownLabelError(
                f"group is missing, expected one of {groups_of(root)}: pass "
                'group="units", or open all groups with xr.open_datatree'
            )
        return _prepared(read_group(root, group, lazy=lazy, compressed=compressed), drop_variables)

    def open_datatree(  # type: ignore[override]
        self,
        filename_or_obj: Address,
        *,
        drop_variables: str | Iterable[str] | None = None,
        lazy: bool = False,
        compressed: Compressed = "post",
        storage_options: Any = None,
    ) -> xr.DataTree:
        """Open all groups as a tree."""
        tree = open_store(filename_or_obj, lazy, compressed, storage_options=storage_options)
        return tree.map_over_datasets(_prepared, drop_variables)

    def open_groups_as_dict(  # type: ignore[override]
        self, filename_or_obj: Address, **kwargs: Any
    ) -> dict[str, xr.Dataset]:
        """Open all groups as a dict from path to Dataset."""
        tree = self.open_datatree(filename_or_obj, **kwargs)
        return {node.path: node.to_dataset() for node in tree.subtree}


class _DaskVariable(xr.Variable):
    """A variable whose dask array xarray does not wrap."""

    # xarray wraps the arrays that an engine returns, for lazy loading. Around a dask array the
    # wrapper hides the chunks, and loading it returns the dask array.
    __slots__ = ()

    @property
    def data(self) -> Any:
        return xr.Variable.data.fget(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, data: Any) -> None:
        if not isinstance(data, indexing.ExplicitlyIndexed):
            xr.Variable.data.fset(self, data)  # type: ignore[attr-defined]


def _prepared(dataset: xr.Dataset, drop: str | Iterable[str] | None) -> xr.Dataset:
    """Drop variables, and protect dask arrays from being wrapped."""
    names = [drop] if isinstance(drop, str) else list(drop or ())
    dataset = dataset.drop_vars(names, errors="ignore")
    return dataset.assign(
        {
            name: _DaskVariable(v.dims, v.data, v.attrs)
            for name, v in dataset.data_vars.items()
            if v.chunks is not None
        }
    )
