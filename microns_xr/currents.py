"""Contraction of connectivity with values of neurons: input currents and the other way round."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask.delayed import delayed

from microns_xr.connectivity.alignment import Aligned, align, name_of, neuron_dim
from microns_xr.connectivity.arrays import PAIR_DIMS, pattern_of, values_of
from microns_xr.connectivity.blocks import is_lazy
from microns_xr.connectivity.blockwise import blocks_of
from microns_xr.connectivity.kernels import contract_buffers, contract_scipy
from microns_xr.connectivity.lazy import lazy_contract
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import validate
from microns_xr.store.argument import Connectivity, connectivity_of

__all__ = ["contract", "input_currents"]

Over = Literal["pre_nucleus_id", "post_nucleus_id"]
Missing = Literal["raise", "skip"]
Engine = Literal["numba", "scipy"]


def input_currents(
    connectivity: Connectivity,
    rates: xr.DataArray,
    *,
    weight: str = "synapse_size",
    engine: Engine = "numba",
    check_release: bool = True,
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
    engine : {"numba", "scipy"}, optional
        What multiplies; the numbers are the same.
    check_release : bool, optional
        False skips the release check.

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

    >>> from microns_xr.connectivity.examples import two_neurons
    >>> rates = xr.DataArray([10.0, np.nan], {"nucleus_id": [11, 12]})
    >>> currents = input_currents(two_neurons(), rates, check_release=False)
    >>> currents.values, currents.rated_fraction.values.round(3)
    (array([nan, 70.]), array([0.   , 0.778]))
    """
    result = contract(
        connectivity,
        rates,
        "pre_nucleus_id",
        weight=weight,
        missing="skip",
        engine=engine,
        check_release=check_release,
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
    engine: Engine = "numba",
    check_release: bool = True,
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
    engine : {"numba", "scipy"}, optional
        What multiplies; the numbers are the same.
    check_release : bool, optional
        False skips the release check.

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
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> values = xr.DataArray([10.0, 1.0], {"nucleus_id": [11, 12]}, name="gain")
    >>> contract(two_neurons(), values, "pre_nucleus_id", check_release=False).values
    array([ 5., 72.])
    >>> contract(two_neurons(), values, "post_nucleus_id", check_release=False).values
    array([ 7., 52.])
    """
    _require_choice("over", over, PAIR_DIMS)
    _require_choice("missing", missing, ("raise", "skip"))
    _require_choice("engine", engine, ("numba", "scipy"))
    connectivity, compute = connectivity_of(
        connectivity, "post" if over == "pre_nucleus_id" else "pre"
    )
    validate(connectivity, "connectivity")
    dim = neuron_dim(values, over)
    require_same_release(
        ("connectivity", connectivity), ("values", values), check_release=check_release
    )
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
    sums, share = multiply(
        connectivity, weight, over, aligned, n_columns, missing == "skip", engine
    )
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
            "take the neurons that have one with mx.connections_between"
        )
    return aligned


def _require_choice(name: str, found: object, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise SchemaError(f"{name} is {found!r}, expected one of {choices}")


def _require_weight(connectivity: xr.Dataset, weight: str) -> None:
    if weight not in connectivity.data_vars:
        near = ", ".join(nearest_words(weight, connectivity.data_vars))
        raise UnknownLabelError(
            f"the connectivity has no variable {weight!r}, expected one of "
            f"{list(map(str, connectivity.data_vars))}" + (f"; nearest: {near}" if near else "")
        )


def _multiply(
    connectivity: xr.Dataset,
    weight: str,
    over: str,
    aligned: Aligned,
    n_columns: int,
    want_rated: bool,
    engine: Engine,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Contract in memory: sums, and the share of the weight they rest on."""
    pattern = pattern_of(connectivity, weight)
    function = contract_buffers if engine == "numba" else contract_scipy
    return function(
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
    engine: Engine,
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
    return lazy_contract(blocks, aligned, n_columns, axis, want_rated, engine)


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
