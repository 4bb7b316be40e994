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

Over = Literal["pre_nucleus_id", "post_nucleus_id"]
Missing = Literal["raise", "skip"]

_NEURON_DIMS = ("nucleus_id", *PAIR_DIMS)
_NAN, _NAN_IN_PART, _INFINITE = 1, 2, 3  # states of a row; 0 is finite


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
    result = contract(connectivity, rates, "pre_nucleus_id", weight=weight, missing="skip")
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
        store. A store is read a few blocks at a time, from the copy whose blocks give whole sums.
        The result is lazy for lazy connectivity, and in memory for a path.
    values : xarray.DataArray
        Over ``nucleus_id`` (or the axis that is summed over) and any other dims, with the ids as
        coordinate, in any order. Neurons that are not in the matrix are left out and counted in
        ``attrs["n_outside"]``. The values of a neuron are all finite or all NaN.
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
        absent, not integers or repeated; if it is not numeric, infinite, or a neuron is NaN in
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
    for option, word, words in (("over", over, PAIR_DIMS), ("missing", missing, ("raise", "skip"))):
        if word not in words:
            raise SchemaError(f"{option} is {word!r}, expected one of {words}")
    # Compressed over the axis that stays, every block gives the whole sums of its own neurons.
    prefer: Literal["pre", "post"] = "post" if over == "pre_nucleus_id" else "pre"
    connectivity, compute = connectivity_of(connectivity, prefer)
    validate(connectivity, "connectivity")
    dim = _neuron_dim(values, over)
    require_same_release(("connectivity", connectivity), ("values", values))
    if weight not in connectivity.data_vars:
        raise unknown_label("the connectivity has no variable", weight, connectivity.data_vars)
    lazy, rated = is_lazy(connectivity), missing == "skip"
    labels = connectivity[over].values
    counts = {}  # of lazy values they are known only when the result is computed
    aligned: Any
    if lazy and values.chunks is not None:
        aligned = delayed(_align, pure=True)(values, dim, labels, over, missing)
    else:
        aligned = _align(values, dim, labels, over, missing)
        counts = {"n_missing": aligned.n_missing, "n_outside": aligned.n_outside}
        # One opaque object, which the graph holds once, and not a tuple to look for keys in.
        aligned = delayed(aligned, pure=True, traverse=False) if lazy else aligned

    axis: Literal["major", "minor"]
    sums: Any
    share: Any
    if lazy:
        blocks = blocks_of(connectivity, [weight], prefer)
        axis = "major" if f"{blocks.compressed}_nucleus_id" == over else "minor"
        n_columns = math.prod(n for d, n in values.sizes.items() if d != dim)
        sums, share = lazy_contract(blocks, aligned, n_columns, axis, rated)
    else:
        pattern = pattern_of(connectivity, weight)
        axis = "major" if f"{pattern.compressed}_nucleus_id" == over else "minor"
        buffers = (values_of(connectivity, weight), pattern.indices, pattern.indptr)
        rows = (pattern.n_minor, aligned.table, aligned.rows)
        sums, share = contract_buffers(*buffers, *rows, over=axis, want_rated=rated).result()

    name, other = _name(values), f"{prefer}_nucleus_id"
    rest = [d for d in values.dims if d != dim]
    # Those of the connectivity win: it says of which release the result is.
    coords = {c: v for c, v in values.coords.items() if dim not in v.dims}
    coords |= {c: v for c, v in connectivity.coords.items() if over not in v.dims}
    if rated:
        attrs = {"long_name": f"share of {weight} whose partner has a value", "units": "1"}
        coords["rated_fraction"] = xr.DataArray(share, dims=other, attrs=attrs)
    partners = "presynaptic" if over == "pre_nucleus_id" else "postsynaptic"
    result = xr.DataArray(
        sums.reshape(sums.shape[0], *(values.sizes[d] for d in rest)),
        dims=(other, *rest),
        coords=coords,
        name=f"weighted_{name}",
        attrs={
            "long_name": f"{name} summed over {partners} partners, weighted by {weight}",
            "units": _units(connectivity[weight], values),
            "weight": weight,
            "over": over,
            **counts,
        },
    )
    entry = f"contract({name}, over={over!r}, weight={weight!r}, missing={missing!r})"
    result = add_history(result, entry, source=(connectivity, values))
    return result.compute() if compute else result


def _name(values: xr.DataArray) -> str:
    return "values" if values.name is None else str(values.name)


def _units(weight: xr.DataArray, values: xr.DataArray) -> str:
    of_weight = str(weight.attrs.get("units", "") or f"units of {weight.name}")
    of_values = str(values.attrs.get("units", "") or f"units of {_name(values)}")
    return of_weight if of_values == "1" else f"{of_weight} × {of_values}"


def _neuron_dim(values: Any, over: str) -> str:
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
    name = _name(values)
    # A neuron in several scans would count several times.
    if "scan_unit" in values.dims:
        raise SchemaError(
            f"{name} has one row per recorded unit (dim 'scan_unit'), expected one per neuron: "
            "collapse it with mx.tuning.collapse_scans first"
        )
    dims = [str(dim) for dim in values.dims if dim in _NEURON_DIMS]
    if len(dims) != 1:
        raise SchemaError(f"{name} has dims {values.dims}, expected exactly one of {_NEURON_DIMS}")
    (dim,) = dims
    if dim not in ("nucleus_id", over):
        raise SchemaError(
            f"{name} is over {dim!r} but the sum is over {over!r}: pass over={dim!r}, or rename "
            "the dim to 'nucleus_id' if the values belong to neurons of either side"
        )
    if dim not in values.coords:
        raise SchemaError(
            f"{name} has no coordinate {dim!r}, expected the nucleus id of every row: neurons are "
            f"matched by label; add it with .assign_coords({dim}=ids)"
        )
    if values.dtype.kind not in "fiub":
        raise SchemaError(f"{name} has dtype {values.dtype}, expected numbers")
    return dim


class Aligned(NamedTuple):
    """Values as rows, and which row belongs to which neuron of the axis."""

    table: np.ndarray  # (rows, columns), float32 or float64, C-contiguous
    rows: np.ndarray  # (neurons of the axis,), the row of each, -1 where it has no value
    n_missing: int  # neurons of the axis without a value
    n_outside: int  # rows of neurons that are not on the axis


def _align(
    values: xr.DataArray, dim: str, labels: np.ndarray, over: str, missing: Missing
) -> Aligned:
    """Match values of neurons with the labels of an axis."""
    name, ids = _name(values), values[dim].values
    array = np.asarray(values.transpose(dim, ...).values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    # Not -1, which has no meaning where a dim is empty.
    table = np.ascontiguousarray(array.reshape(array.shape[0], math.prod(array.shape[1:])))
    if ids.dtype == labels.dtype and np.array_equal(ids, labels):
        rows = np.arange(labels.size)  # the common case: the axis holds the same neurons
    else:
        rows = Lookup(ids, f"{dim} of {name}").find(labels).astype(np.int64)
        if labels.size and (rows < 0).all():
            raise UnknownLabelError(
                f"none of the {labels.size} neurons of {over} is among the {ids.size} of {name}: "
                f"check that {dim} holds nucleus ids, not root ids"
            )
    n_outside = ids.size - int((rows >= 0).sum())
    # Infinity and gaps within a neuron would spread over every sum that they enter.
    states = _row_states(table)
    infinite, in_part = (np.flatnonzero(states == state) for state in (_INFINITE, _NAN_IN_PART))
    if infinite.size:
        raise SchemaError(
            f"{name} is infinite for {infinite.size} neurons, such as {ids[infinite[0]]}, expected "
            "finite numbers or NaN: find out where it comes from"
        )
    if in_part.size:
        raise SchemaError(
            f"{name} is NaN in part for {in_part.size} neurons, such as {ids[in_part[0]]}, "
            "expected the values of a neuron all or none: fill the gaps, or set these neurons to "
            "NaN as a whole"
        )
    # One more entry, so that a neuron without a row, which is -1, stays so.
    rows = np.where(np.append(states == _NAN, True)[rows], -1, rows)
    n_missing = int((rows < 0).sum())
    if missing == "raise" and n_missing:
        raise SchemaError(
            f"{n_missing} of {labels.size} neurons of {over} have no value in {name}, expected one "
            "for each: pass missing='skip' to leave them out, or take the neurons that have one "
            "with mx.select_connections"
        )
    return Aligned(table, rows, n_missing, n_outside)


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
