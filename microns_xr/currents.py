"""Contraction of connectivity with values of neurons: input currents and the other way round."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import xarray as xr
from dask.delayed import delayed

from microns_xr.connectivity.arrays import PAIR_DIMS, pattern_of, values_of
from microns_xr.connectivity.blocks import blocks_of, is_lazy, lazy_contract
from microns_xr.connectivity.kernels import contract_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError, unknown_label
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import validate
from microns_xr.store.open import Connectivity, connectivity_of

# Values of neurons against an axis of the connectivity: which dim, which row for which label.


_NEURON_DIMS = ("nucleus_id", *PAIR_DIMS)
_NAN, _NAN_IN_PART, _INFINITE = 1, 2, 3  # states of a row; 0 is finite


class Aligned(NamedTuple):
    """Values as rows, and which row belongs to which neuron of the axis."""

    table: np.ndarray  # (rows, columns), float32 or float64, C-contiguous
    # (neurons of the axis,), the row of each, -1 where it has no value
    rows: np.ndarray
    # rows of neurons that are not on the axis
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
            "mx.tuning.collapse_scans first"
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
    """Match values of neurons with the labels of an axis."""
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


Over = Literal["pre_nucleus_id", "post_nucleus_id"]
Missing = Literal["raise", "skip"]


def input_currents(
    connectivity: Connectivity,
    rates: xr.DataArray,
    *,
    weight: str = "synapse_size",
) -> xr.DataArray:
    """Sum the rates of the presynaptic partners of every neuron, weighted by synapse size.

    ``current[post, ...] = sum over pre of synapse_size[pre, post] * rate[pre, ...]``

    Partners without a rate are left out, and ``rated_fraction`` says how much of a neuron's input
    the current rests on.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity, a tree that has one, or a store; see `contract`.
    rates : xarray.DataArray
        Over ``nucleus_id`` (or ``pre_nucleus_id``) and any other dims, such as ``units.rate_ori``;
        a neuron is rated whole (finite) or not at all (NaN).
    weight : str, optional
        Variable of the connectivity: ``"synapse_size"`` (voxels of 4x4x40 nm),
        ``"synapse_count"``, or a sparse variable of one's own.

    Returns
    -------
    xarray.DataArray
        ``input_current(post_nucleus_id, ...)``, float64, in weight times rate, with the other dims
        of `rates` in their order. A neuron without synapses has current 0, one with synapses but
        without a rated partner NaN. The coordinate ``rated_fraction(post_nucleus_id)`` is the
        share of its input weight whose partner is rated, NaN where it has no input weight.

    Raises
    ------
    SchemaError, UnknownLabelError, ReleaseMismatchError
        As `contract`.

    Examples
    --------
    Neuron 12 gets 7 from 11 and 2 from itself; only 11 is rated:

    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> rates = xr.DataArray([10.0, np.nan], {"nucleus_id": [11, 12]})
    >>> currents = input_currents(two_neurons(), rates)
    >>> currents.values, currents.rated_fraction.values.round(3)
    (array([nan, 70.]), array([0.   , 0.778]))
    """
    result = contract(
        connectivity,
        rates,
        "pre_nucleus_id",
        weight=weight,
        missing="skip",
    )
    result.name = "input_current"
    result.attrs["long_name"] = "input current, summed over presynaptic partners"
    return result


def contract(
    connectivity: Connectivity,
    values: xr.DataArray,
    over: Over,
    *,
    weight: str = "synapse_size",
    missing: Missing = "raise",
) -> xr.DataArray:
    """Sum values of neurons over one axis of the connectivity, weighted by its pairs.

    ``over="pre_nucleus_id"`` sums over the inputs of each postsynaptic neuron, which is the input
    current; ``over="post_nucleus_id"`` over the outputs of each presynaptic neuron, which is what
    ``csr_matrix(pre, post) @ rates`` computes. Neurons are matched by label, never by position.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store. Of a store the copy is read whose blocks give whole sums, with a few blocks in
        memory at a time; the result of a path is in memory, that of lazy connectivity lazy.
    values : xarray.DataArray
        Over ``nucleus_id`` (or the axis that is summed over) and any other dims, with the ids as
        coordinate, in any order. Neurons that are not in the matrix are left out and counted in
        the attribute ``n_outside``. The values of a neuron are all finite or all NaN.
    over : {"pre_nucleus_id", "post_nucleus_id"}
        The axis that is summed over.
    weight : str, optional
        Variable of the connectivity: ``"synapse_size"`` (voxels of 4x4x40 nm),
        ``"synapse_count"``, or a sparse variable of one's own.
    missing : {"raise", "skip"}, optional
        What to do about neurons of the matrix with no value or NaN: raise, or leave them out and
        say in the coordinate ``rated_fraction`` of the result which share of each neuron's weight
        had a value.

    Returns
    -------
    xarray.DataArray
        float64, over the other axis and the other dims of `values` in their order, with the
        coordinates of both, and ``units`` where those of `values` are known. With
        ``missing="skip"``, 0 for a neuron without synapses and NaN for one none of whose
        partners has a value.

    Raises
    ------
    SchemaError
        If `values` has no dim of neurons or several, or that of the other axis; if its ids are
        absent, no integers or repeated; if it is not numeric, infinite, or a neuron is NaN in
        part; if values are missing and `missing` is "raise"; if it is over ``scan_unit``.
    UnknownLabelError
        If no neuron of the matrix is in `values`, or there is no such weight.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> values = xr.DataArray([10.0, 1.0], {"nucleus_id": [11, 12]}, name="gain")
    >>> contract(two_neurons(), values, "pre_nucleus_id").values
    array([ 5., 72.])
    >>> contract(two_neurons(), values, "post_nucleus_id").values
    array([ 7., 52.])
    """
    _require_choice("over", over, PAIR_DIMS)
    _require_choice("missing", missing, ("raise", "skip"))
    connectivity, compute = connectivity_of(
        connectivity, "post" if over == "pre_nucleus_id" else "pre"
    )
    validate(connectivity, "connectivity")
    dim = neuron_dim(values, over)
    require_same_release(("connectivity", connectivity), ("values", values))
    labels = connectivity[over].values
    if is_lazy(connectivity) and values.chunks is not None:
        aligned: Any = delayed(_align, pure=True)(values, dim, labels, over, missing)
        counts = {}  # known only when it is computed
    else:
        aligned = _align(values, dim, labels, over, missing)
        counts = {"n_missing": aligned.n_missing, "n_outside": aligned.n_outside}
    n_columns = math.prod(n for d, n in values.sizes.items() if d != dim)
    _require_weight(connectivity, weight)
    multiply = _multiply_lazily if is_lazy(connectivity) else _multiply
    sums, share = multiply(connectivity, weight, over, aligned, n_columns, missing == "skip")
    result = _labelled(connectivity, values, dim, over, weight, sums, share)
    result.attrs |= {"weight": weight, "over": over, **counts}
    entry = f"contract({name_of(values)}, over={over!r}, weight={weight!r}, missing={missing!r})"
    result = add_history(result, entry, source=(connectivity, values))
    return result.compute() if compute else result


def _align(
    values: xr.DataArray, dim: str, labels: np.ndarray, over: str, missing: Missing
) -> Aligned:
    aligned = align(values, dim, labels, over)
    if missing == "raise" and aligned.n_missing:
        raise SchemaError(
            f"{aligned.n_missing} of {labels.size} neurons of {over} have no value in "
            f"{name_of(values)}, expected one for each: pass missing='skip' to leave them out, or "
            "take the neurons that have one with mx.select_connections"
        )
    return aligned


def _require_choice(name: str, found: object, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise SchemaError(f"{name} is {found!r}, expected one of {choices}")


def _require_weight(connectivity: xr.Dataset, weight: str) -> None:
    if weight not in connectivity.data_vars:
        raise unknown_label("the connectivity has no variable", weight, connectivity.data_vars)


def _multiply(
    connectivity: xr.Dataset,
    weight: str,
    over: str,
    aligned: Aligned,
    n_columns: int,
    want_rated: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Contract in memory: sums, and the share of the weight they rest on."""
    pattern = pattern_of(connectivity, weight)
    return contract_buffers(
        values_of(connectivity, weight),
        pattern.indices,
        pattern.indptr,
        pattern.n_minor,
        aligned.table,
        aligned.rows,
        over="major" if f"{pattern.compressed}_nucleus_id" == over else "minor",
        want_rated=want_rated,
    ).result()


def _multiply_lazily(
    connectivity: xr.Dataset,
    weight: str,
    over: str,
    aligned: Any,
    n_columns: int,
    want_rated: bool,
) -> tuple[Any, Any]:
    """Do the same block by block, as dask arrays."""
    # Cut along the axis that stays, every block gives the whole sums of its own neurons.
    blocks = blocks_of(connectivity, [weight], "post" if over == "pre_nucleus_id" else "pre")
    if isinstance(aligned, Aligned):
        # One opaque object, which the graph holds once, and not a tuple to look for keys in.
        aligned = delayed(aligned, pure=True, traverse=False)
    axis: Literal["major", "minor"] = (
        "major" if f"{blocks.compressed}_nucleus_id" == over else "minor"
    )
    return lazy_contract(blocks, aligned, n_columns, axis, want_rated)


def _labelled(
    connectivity: xr.Dataset,
    values: xr.DataArray,
    dim: str,
    over: str,
    weight: str,
    sums: Any,
    share: Any,
) -> xr.DataArray:
    other = PAIR_DIMS[1 - PAIR_DIMS.index(over)]
    rest = [d for d in values.dims if d != dim]
    coords = {name: c for name, c in values.coords.items() if dim not in c.dims}
    coords |= {name: c for name, c in connectivity.coords.items() if over not in c.dims}
    if share is not None:
        coords["rated_fraction"] = xr.DataArray(
            share,
            dims=other,
            attrs={"long_name": f"share of {weight} whose partner has a value", "units": "1"},
        )
    partners = "presynaptic" if over == "pre_nucleus_id" else "postsynaptic"
    return xr.DataArray(
        sums.reshape(sums.shape[0], *(values.sizes[d] for d in rest)),
        dims=(other, *rest),
        coords=coords,
        name=f"weighted_{name_of(values)}",
        attrs={
            "long_name": f"{name_of(values)} summed over {partners} partners, weighted by {weight}",
            "units": _units(connectivity[weight], values),
        },
    )


def _units(weight: xr.DataArray, values: xr.DataArray) -> str:
    of_weight = str(weight.attrs.get("units", "") or f"units of {weight.name}")
    of_values = str(values.attrs.get("units", "") or f"units of {name_of(values)}")
    return of_weight if of_values == "1" else f"{of_weight} × {of_values}"
