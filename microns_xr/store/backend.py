"""The xarray engine ``microns_xr``: stores through `xarray.open_datatree` and `open_dataset`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from microns_xr.connectivity.arrays import Compressed
from microns_xr.errors import UnknownLabelError
from microns_xr.store.open import groups_of, open_root, open_store, read_group

__all__ = ["MicronsXrBackendEntrypoint"]


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
    )
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        lazy: bool = False,
        compressed: Compressed = "post",
    ) -> xr.Dataset:
        """Open one group.

        Parameters
        ----------
        filename_or_obj : str or path-like
            The store.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        group : str
            ``"units"``, ``"layers"``, ``"functional"``, ``"connectivity"`` or ``"synapses"``.
        lazy, compressed
            See `microns_xr.store.open.open_store`.

        Returns
        -------
        xarray.Dataset
            As it was written.

        Raises
        ------
        UnknownLabelError
            If the store has no such group, or none is named.
        StoreFormatError
            See `microns_xr.store.open.open_store`.
        """
        root = open_root(filename_or_obj)
        if group is None:
            raise UnknownLabelError(
                f"group is not given, expected one of {groups_of(root)}: pass "
                'group="units", or use xr.open_datatree for all'
            )
        dataset = read_group(root, group, lazy=lazy, compressed=compressed)
        return _without(dataset, drop_variables)

    def open_datatree(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        lazy: bool = False,
        compressed: Compressed = "post",
    ) -> xr.DataTree:
        """Open all groups; see `microns_xr.store.open.open_store`."""
        tree = open_store(filename_or_obj, lazy=lazy, compressed=compressed)
        return tree.map_over_datasets(_without, drop_variables) if drop_variables else tree

    def open_groups_as_dict(  # type: ignore[override]
        self, filename_or_obj: str | os.PathLike[str], **kwargs: Any
    ) -> dict[str, xr.Dataset]:
        """Open all groups as Datasets by path; see `open_datatree`."""
        tree = self.open_datatree(filename_or_obj, **kwargs)
        return {node.path: node.to_dataset() for node in tree.subtree}


def _without(dataset: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    if not names:
        return dataset
    return dataset.drop_vars([names] if isinstance(names, str) else list(names), errors="ignore")
