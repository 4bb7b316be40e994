"""Values of neurons against an axis of the connectivity: which dim, which row for which label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import PAIR_DIMS
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError

__all__ = ["Aligned", "align", "name_of", "neuron_dim"]

_NEURON_DIMS = ("nucleus_id", *PAIR_DIMS)
_NAN, _NAN_IN_PART, _INFINITE = 1, 2, 3  # states of a row; 0 is finite


class Aligned(NamedTuple):
    """Values as rows, and which row belongs to which neuron of the axis.

    Attributes
    ----------
    table : numpy.ndarray
        (rows, columns), float32 or float64, C-contiguous.
    rows : numpy.ndarray
        (neurons of the axis,), the row of each, -1 where it has no value.
    n_outside : int
        Rows of neurons that are not on the axis.
    """

    table: np.ndarray
    rows: np.ndarray
    n_outside: int

    @property
    def n_missing(self) -> int:
        """Neurons of the axis that have no value."""
        return int((self.rows < 0).sum())


def name_of(values: xr.DataArray) -> str:
    """Return how messages call values."""
    return str(values.name) if values.name is not None else "values"


def neuron_dim(values: Any, over: str) -> str:
    """Return the dim of `values` that is summed over."""
    if isinstance(values, xr.Dataset):
        usable = [str(n) for n, v in values.data_vars.items() if set(v.dims) & set(_NEURON_DIMS)]
        numeric = [n for n in usable if values[n].dtype.kind in "fiu"]
        raise SchemaError(
            f"values is a Dataset, expected one variable of it: pass one of {numeric} by name, "
            "such as units.rate_ori"
        )
    if not isinstance(values, xr.DataArray):
        raise SchemaError(
            f"values is a {type(values).__name__}, expected a DataArray over nucleus_id: without "
            "labels neurons cannot be matched; wrap it with xr.DataArray(values, coords=...)"
        )
    if "scan_unit" in values.dims:
        raise SchemaError(
            f"{name_of(values)} has one row a recorded unit (dim 'scan_unit'), expected one a "
            "neuron, since a neuron in several scans would count several times: collapse it with "
            "mx.collapse_scans first"
        )
    dims = [dim for dim in values.dims if dim in _NEURON_DIMS]
    if len(dims) != 1:
        raise SchemaError(
            f"{name_of(values)} has dims {values.dims}, expected exactly one of {_NEURON_DIMS}"
        )
    dim = str(dims[0])
    if dim not in ("nucleus_id", over):
        raise SchemaError(
            f"{name_of(values)} is over {dim!r} but the sum is over {over!r}: pass over={dim!r}, "
            "or rename the dim to 'nucleus_id' if the values belong to neurons of either side"
        )
    return dim


def align(values: xr.DataArray, dim: str, labels: np.ndarray, over: str) -> Aligned:
    """Match values of neurons with the labels of an axis.

    Parameters
    ----------
    values : xarray.DataArray
        Over `dim`, with the ids as coordinate, and any other dims.
    dim : str
        See `neuron_dim`.
    labels : numpy.ndarray
        int64 ids of the axis.
    over : str
        How messages call the axis.

    Returns
    -------
    Aligned
        float32 or float64 rows, and the row of each label; a neuron that is NaN has none.

    Raises
    ------
    SchemaError
        If ids are absent, no integers or repeated, or values no numbers, infinite, or NaN in part.
    UnknownLabelError
        If no label is among the ids.

    Examples
    --------
    >>> values = xr.DataArray([1.0, np.nan, 2.0], {"nucleus_id": [5, 6, 7]})
    >>> align(values, "nucleus_id", np.array([6, 7]), "pre_nucleus_id").rows
    array([-1,  2])
    """
    name = name_of(values)
    if dim not in values.coords:
        raise SchemaError(
            f"{name} has no coordinate {dim!r}, expected the nucleus id of every row: neurons are "
            f"matched by label; add it with .assign_coords({dim}=ids)"
        )
    if values.dtype.kind not in "fiub":
        raise SchemaError(f"{name} has dtype {values.dtype}, expected numbers")
    ids = values[dim].values
    table = _as_rows(values, dim)
    if ids.dtype == labels.dtype and np.array_equal(ids, labels):
        rows = np.arange(labels.size)  # the common case: the axis is these very neurons
        n_outside = 0
    else:
        rows = Lookup(ids, f"{dim} of {name}").find(labels).astype(np.int64)
        n_found = int((rows >= 0).sum())
        n_outside = ids.size - n_found
        if labels.size and not n_found:
            raise UnknownLabelError(
                f"none of the {labels.size} neurons of {over} is among the {ids.size} of {name}: "
                f"check that {dim} holds nucleus ids, not root ids"
            )
    if table.dtype.kind == "f":
        rows = _without_nan(table, rows, ids, name)
    return Aligned(table, rows, n_outside)


def _as_rows(values: xr.DataArray, dim: str) -> np.ndarray:
    array = np.asarray(values.transpose(dim, ...).values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    n_columns = int(np.prod(array.shape[1:]))
    return np.ascontiguousarray(array.reshape(array.shape[0], n_columns))


def _without_nan(table: np.ndarray, rows: np.ndarray, ids: np.ndarray, name: str) -> np.ndarray:
    """Take rows that are NaN for missing, and raise about those that are so in part."""
    states = _row_states(table)
    infinite = np.flatnonzero(states == _INFINITE)
    if infinite.size:
        raise SchemaError(
            f"{name} is infinite for {infinite.size} neurons, such as {ids[infinite[0]]}, expected "
            "finite numbers or NaN: find out where it comes from"
        )
    partly = np.flatnonzero(states == _NAN_IN_PART)
    if partly.size:
        raise SchemaError(
            f"{name} is NaN in part for {partly.size} neurons, such as {ids[partly[0]]}, expected "
            "the values of a neuron all or none: fill the gaps, or set these neurons to NaN as a "
            "whole"
        )
    # One more entry, so that a neuron without a row, which is -1, stays so.
    return np.where(np.append(states == _NAN, True)[rows], -1, rows)


@numba.njit(nogil=True, cache=True)
def _row_states(table):  # type: ignore[no-untyped-def]
    states = np.zeros(table.shape[0], dtype=np.uint8)
    for i in range(table.shape[0]):
        n_nan = 0
        infinite = False
        for k in range(table.shape[1]):
            n_nan += np.isnan(table[i, k])
            infinite |= np.isinf(table[i, k])
        if infinite:
            states[i] = _INFINITE
        elif n_nan:
            states[i] = _NAN if n_nan == table.shape[1] else _NAN_IN_PART
    return states
