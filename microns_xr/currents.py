"""Contraction of connectivity with values of neurons, such as input currents."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse
import sparse
import xarray as xr
from dask.delayed import delayed

from microns_xr.angles import require_likely_angle
from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    as_pairs,
    gcxs,
    is_scope_known,
    make_pattern,
    pattern_of,
    values_of,
    weight_of,
)
from microns_xr.connectivity.blocks import blocks_of, is_lazy, lazy_contract
from microns_xr.connectivity.kernels import (
    FINITE,
    INFINITE,
    NAN,
    Rows,
    arrange,
    contract_buffers,
)
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError, part_of, require_one_of
from microns_xr.provenance import add_history, require_same_release
from microns_xr.store.passed import Connectivity, computed, connectivity_of

Over = Literal["pre_nucleus_id", "post_nucleus_id"]
Missing = Literal["raise", "skip"]

_NEURON_DIMS = ("nucleus_id", *PAIR_DIMS)


def input_currents(
    connectivity: Connectivity,
    rates: xr.DataArray,
    *,
    weight: str | None = None,
) -> xr.DataArray:
    """Sum the rates of the presynaptic partners of every neuron, weighted by synapse size.

    ``current[post, ...] = sum over pre of synapse_size[pre, post] * rate[pre, ...]``

    Partners without a rate are ignored; ``rated_fraction`` is the fraction of a neuron's input
    weight that contributes to the current.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity, a tree that has one, or a store; see `contract`.
    rates : xarray.DataArray
        Over ``nucleus_id`` (or ``pre_nucleus_id``) and any other dims, such as ``units.rate_ori``;
        the rates of a neuron must be all finite or all NaN.
    weight : str, optional
        Weight of the connections: ``"synapse_size"`` (voxels), ``"synapse_count"``
        where synapses were counted, or another; by default the first, or else the only one.

    Returns
    -------
    xarray.DataArray
        ``input_current(post_nucleus_id, ...)``, float64, in weight times rate, with the other dims
        of `rates` in their order; 0 for a neuron without synapses, NaN if the scope is "unknown",
        and NaN for a neuron with synapses whose partners all lack rates. The coordinate
        ``rated_fraction(post_nucleus_id)`` is the fraction of the input weight from partners with
        rates, NaN without input weight.

    Raises
    ------
    SchemaError, UnknownLabelError, ReleaseMismatchError
        As in `contract`.

    Examples
    --------
    Neuron 12 gets 7 from 11 and 2 from itself; only 11 has a rate:

    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> rates = xr.DataArray([10.0, np.nan], {"nucleus_id": [11, 12]})
    >>> currents = input_currents(two_neurons(), rates)
    >>> currents.values, currents.rated_fraction.values.round(3)
    (array([nan, 70.]), array([0.   , 0.778]))
    """
    _neuron_dim(rates, "pre_nucleus_id")  # the product with another connectivity is no current
    result = contract(connectivity, rates, "pre_nucleus_id", weight=weight, missing="skip")
    result.name = "input_current"
    result.attrs["long_name"] = "input current"
    return result


def contract(
    connectivity: Connectivity,
    values: xr.DataArray | xr.Dataset,
    over: Over | tuple[Over, Over],
    *,
    weight: str | None = None,
    missing: Missing = "raise",
) -> xr.DataArray:
    """Sum values of neurons, or another connectivity, over one axis of the connectivity.

    ``over="pre_nucleus_id"`` sums over the inputs of each postsynaptic neuron, which is the input
    current; ``over="post_nucleus_id"`` sums over the outputs of each presynaptic neuron, like
    ``csr_matrix(pre, post) @ rates``. Neurons are matched by label, not by position.

    The product with another connectivity is sparse connectivity: of two-step paths, or of the
    input that two neurons share.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store. A store is read a few blocks at a time, from the copy whose blocks yield complete
        sums. The result is lazy for lazy connectivity, and in memory for a path.
    values : xarray.DataArray or xarray.Dataset
        Over ``nucleus_id`` (or the axis to sum over) and any other dims, with the ids as
        coordinate, in any order. Neurons that are not in the connectivity are ignored and counted
        in ``attrs["n_outside"]``. The values of a neuron must be all finite or all NaN. Or another
        connectivity (or the same): a Dataset, or one of its sparse arrays.
    over : {"pre_nucleus_id", "post_nucleus_id"} or tuple of two of them
        The axis to sum over. For another connectivity, its axis as second of two if it is not the
        same one: ``("post_nucleus_id", "pre_nucleus_id")`` sums over the neurons in the middle of
        two-step paths, ``"pre_nucleus_id"`` over the common inputs of two neurons, and
        ``"post_nucleus_id"`` over their common targets.
    weight : str, optional
        Weight of the connections: ``"synapse_size"`` (voxels), ``"synapse_count"``
        where synapses were counted, or another; by default the first, or else the only one.
    missing : {"raise", "skip"}, optional
        What to do if neurons of the connectivity have no value or NaN: raise, or ignore them and
        return the fraction of each neuron's weight with a value as coordinate ``rated_fraction``.

    Returns
    -------
    xarray.DataArray
        float64, over the other axis and the other dims of `values` in their order, with the
        coordinates of both and the attribute ``units``; 0 for a neuron without synapses, but NaN
        if the scope of the connectivity is "unknown", since it may have some. With
        ``missing="skip"``, NaN for a neuron whose partners all lack values.

        For another connectivity sparse, over (``pre_nucleus_id``, ``post_nucleus_id``): the other
        axis of `connectivity`, and that of `values`, each with its labels, int64 if both weights
        are whole numbers. The ``scope`` is "unknown" if that of either is. ``.to_dataset()`` makes
        it connectivity for the functions of this package. It is computed in memory: select neurons
        first, since most pairs of neurons are connected in two steps.

    Raises
    ------
    SchemaError
        If `values` does not have exactly one dim of neurons, or has that of the other axis; if its
        ids are missing, not integers or repeated; if it is not numeric; if it is infinite or
        partly NaN for a neuron of the connectivity; if values are missing and `missing` is "raise";
        if it is over ``scan_unit``; if the product of two connectivities may exceed int64.
    UnknownLabelError
        If no neuron of the connectivity is in `values`, or there is no such weight.
    ReleaseMismatchError
        If the two come from different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> values = xr.DataArray([10.0, 1.0], {"nucleus_id": [11, 12]}, name="gain")
    >>> contract(two_neurons(), values, "pre_nucleus_id").values
    array([ 5., 72.])
    >>> contract(two_neurons(), values, "post_nucleus_id").values
    array([ 7., 52.])

    Neuron 11 is connected to itself through 12 (7 times 5):

    >>> paths = contract(two_neurons(), two_neurons(), ("post_nucleus_id", "pre_nucleus_id"))
    >>> paths.data.todense()
    array([[35, 14],
           [10, 39]])
    """
    pair = over if isinstance(over, tuple) else (over, over)
    if len(pair) != 2 or not all(isinstance(dim, str) and dim in PAIR_DIMS for dim in pair):
        raise SchemaError(f"over is {over!r}, expected one of {PAIR_DIMS}, or two of them")
    require_one_of("missing", missing, ("raise", "skip"))
    if _is_connectivity(values):
        return _product(connectivity, values, pair, weight, missing)
    if isinstance(over, tuple):
        raise SchemaError(
            f"over is {over!r}, two axes, expected one of {PAIR_DIMS}, since the values are not "
            "another connectivity"
        )
    # Compressed over the remaining axis, every block yields the complete sums of its neurons.
    prefer: Literal["pre", "post"] = "post" if over == "pre_nucleus_id" else "pre"
    connectivity, compute = connectivity_of(connectivity, prefer)
    dim = _neuron_dim(values, over)
    assert isinstance(values, xr.DataArray)  # others are refused above
    # Of coordinates only the variables are used, since making a DataArray of each takes longer.
    for name, coord in values.coords.variables.items():
        require_likely_angle(coord, str(name))
    require_same_release(("connectivity", connectivity), ("values", values))
    weight = weight_of(connectivity, weight)
    lazy, rated = is_lazy(connectivity), missing == "skip"
    scope_known = is_scope_known(connectivity)
    # Which neurons have a stored pair is found along with the share.
    want_rated = rated or not scope_known
    labels = connectivity.variables[over].values
    counts = {}  # not known for lazy values until the result is computed
    aligned: Any
    if lazy and values.chunks is not None:
        aligned = delayed(_align, pure=True)(values, dim, labels, over, missing)
    else:
        # Lazily, the rows are part of a graph.
        aligned = _align(values, dim, labels, over, missing, reuse=not lazy)
        counts = {"n_missing": aligned.n_missing, "n_outside": aligned.n_outside}
        # Opaque to dask, which would otherwise search the tuple for keys; stored once in the graph.
        aligned = delayed(aligned, pure=True, traverse=False) if lazy else aligned

    axis: Literal["major", "minor"]
    sums: Any
    share: Any
    if lazy:
        blocks = blocks_of(connectivity, [weight], prefer)
        axis = "major" if f"{blocks.compressed}_nucleus_id" == over else "minor"
        n_columns = math.prod(n for d, n in values.sizes.items() if d != dim)
        sums, share = lazy_contract(blocks, aligned, n_columns, axis, want_rated, scope_known)
    else:
        pattern = pattern_of(connectivity, weight)
        axis = "major" if f"{pattern.compressed}_nucleus_id" == over else "minor"
        buffers = (values_of(connectivity, weight), pattern.indices, pattern.indptr)
        sums, share = contract_buffers(
            *buffers, pattern.n_minor, aligned.rows, over=axis, want_rated=want_rated
        ).result(scope_known)
        aligned.rows.give_back()

    name, other = _name(values), f"{prefer}_nucleus_id"
    rest = [d for d in values.dims if d != dim]
    # Coordinates of the connectivity take precedence, since they include the release.
    coords = {c: v for c, v in values.coords.variables.items() if dim not in v.dims}
    coords |= {c: v for c, v in connectivity.coords.variables.items() if over not in v.dims}
    indexes = {c: i for x in (values, connectivity) for c, i in x.xindexes.items() if c in coords}
    if rated:
        attrs = {"long_name": f"share of {weight} whose partner has a value", "units": "1"}
        coords["rated_fraction"] = xr.Variable(other, share, attrs)
    partners = "presynaptic" if over == "pre_nucleus_id" else "postsynaptic"
    attrs = {
        "long_name": f"{name} summed over {partners} partners, weighted by {weight}",
        "units": _units(connectivity[weight], values),
        "weight": weight,
        "over": over,
        **counts,
    }
    sums = sums.reshape(sums.shape[0], *(values.sizes[d] for d in rest))
    # As a coordinate at first: a constructor would merge and align all labels with themselves.
    coords["<sums>"] = xr.Variable((other, *rest), sums, attrs)
    result = xr.Coordinates(coords, indexes).to_dataset().reset_coords("<sums>")["<sums>"]
    result.name = f"weighted_{name}"
    entry = f"contract({name}, over={over!r}, weight={weight!r}, missing={missing!r})"
    result = add_history(result, entry, source=(connectivity, values))
    return computed(result) if compute else result


def _is_connectivity(values: Any) -> bool:
    """Whether values are a connectivity Dataset, or one of its arrays, in memory or lazy."""
    if isinstance(values, xr.Dataset):
        return set(PAIR_DIMS) <= set(values.dims)
    if not isinstance(values, xr.DataArray) or set(values.dims) != set(PAIR_DIMS):
        return False
    data = values.data if values.chunks is None else values.data._meta
    return isinstance(data, sparse.SparseArray)


def _product(
    connectivity: Connectivity,
    other: xr.DataArray | xr.Dataset,
    over: tuple[Over, Over],
    weight: str | None,
    missing: Missing,
) -> xr.DataArray:
    """Multiply two sparse matrices, summing over an axis of each; neurons are matched by label.

    Not by pydata-sparse, whose product has unsorted indices, so that labels select wrong numbers.
    """
    connectivity, _ = connectivity_of(connectivity)
    factors = [_weights_of(c, weight) for c in (connectivity, other)]
    weight = _name(factors[0])
    require_same_release(("connectivity", factors[0]), ("values", factors[1]))
    left, right = (_as_csr(f, rows=o) for f, o in zip(factors, over, strict=True))
    ids, of_other = (f[o].values for f, o in zip(factors, over, strict=True))
    rows = Lookup(of_other, f"{over[1]} of the values").find(ids)
    is_known = rows >= 0
    # A neuron without a pair adds nothing, whatever its partners in the other matrix.
    n_missing = int((~is_known & (np.diff(left.indptr) > 0)).sum())
    if missing == "raise" and n_missing:
        raise SchemaError(
            f"{n_missing} of {ids.size} neurons of {over[0]} have pairs but are not on "
            f"{over[1]} of the other connectivity, so that what they add is unknown: pass "
            "missing='skip' to sum over the others alone, or take a connectivity of these neurons"
        )
    known_left, right = left[is_known], right[rows[is_known]]
    if left.dtype.kind == right.dtype.kind == "i":
        _require_fits_int64(known_left, right)
    else:
        known_left, right = known_left.astype(np.float64), right.astype(np.float64)
    product = (known_left.T.tocsr() @ right).tocsc()  # sorted by the conversion
    pattern = make_pattern(product.indices, product.indptr, product.shape, "post")

    coords: dict[str, Any] = {}
    for factor, summed, dim in zip(factors, over, PAIR_DIMS, strict=True):
        coords |= {str(n): c for n, c in factor.coords.items() if not c.dims}
        coords |= _labels_along(factor, PAIR_DIMS[summed == PAIR_DIMS[0]], dim)
    scope = "unknown"
    if all(map(is_scope_known, factors)):
        scopes = {str(f["scope"].item()) for f in factors}
        scope = scopes.pop() if len(scopes) == 1 else "requested"
    coords["scope"] = xr.Variable((), np.array(scope, dtype=object))
    if missing == "skip":
        total, of_known = (m.sum(axis=0).astype(np.float64) for m in (left, known_left))
        share = np.divide(of_known, total, out=np.full(total.size, np.nan), where=total != 0)
        text = f"share of {weight} of the partners that are in the other connectivity"
        attrs = {"long_name": text, "units": "1"}
        coords["rated_fraction"] = xr.Variable(PAIR_DIMS[0], share, attrs)
    name = _name(factors[1])
    text = f"{_name(factors[0])} summed over {over[0]} times {name} over {over[1]}"
    result = xr.DataArray(
        gcxs(product.data, pattern),
        dims=PAIR_DIMS,
        name=f"weighted_{name}",
        attrs={
            "long_name": text,
            "units": _units(*factors),
            "weight": weight,
            "over": list(over),
            "n_missing": n_missing,
            "n_outside": of_other.size - int(is_known.sum()),
        },
    ).assign_coords(coords)
    entry = f"contract({name}, over={over}, weight={weight!r}, missing={missing!r})"
    return add_history(result, entry, source=(connectivity, other))


def _weights_of(connectivity: xr.DataArray | xr.Dataset, weight: str | None) -> xr.DataArray:
    """Return one sparse array over (pre, post), in memory."""
    for dim in PAIR_DIMS:
        if dim not in connectivity.coords:
            raise SchemaError(
                f"the connectivity has no coordinate {dim!r}, expected nucleus ids, since "
                "neurons are matched by label"
            )
    pairs = as_pairs(connectivity)
    name = weight_of(pairs, weight if isinstance(connectivity, xr.Dataset) else None)
    return pairs[name].compute()


def _as_csr(weights: xr.DataArray, rows: str) -> Any:
    """Return a scipy matrix with one of the axes as rows, int64 or as it is."""
    pattern, values = pattern_of(weights), values_of(weights)
    if values.dtype.kind in "iub":
        values = values.astype(np.int64)
    kind = scipy.sparse.csr_array if pattern.compressed == "pre" else scipy.sparse.csc_array
    matrix = kind((values, pattern.indices, pattern.indptr), shape=pattern.shape)
    return (matrix if rows == PAIR_DIMS[0] else matrix.T).tocsr()


def _require_fits_int64(left: Any, right: Any) -> None:
    if not left.nnz or not right.nnz:
        return
    # Of both matrices the rows are the neurons summed over.
    terms = min(int(np.bincount(m.indices).max()) for m in (left, right))
    largest = float(abs(left.data).max()) * float(abs(right.data).max()) * terms
    if largest >= np.iinfo(np.int64).max:
        raise SchemaError(
            f"sums of the product may be as large as {largest:.2g}, which int64 cannot hold: pass "
            "weights as floats, such as values=connectivity.synapse_size.astype(float)"
        )


def _labels_along(weights: xr.DataArray, dim: str, to: str) -> dict[str, xr.Variable]:
    """Return the coordinates along one axis, renamed to the axis of the result."""
    old, new = dim.partition("_")[0], to.partition("_")[0]
    return {
        new + str(name).removeprefix(old) if str(name).startswith(f"{old}_") else str(name): (
            xr.Variable((to,), c.values, c.attrs)
        )
        for name, c in weights.coords.items()
        if c.dims == (dim,)
    }


def _name(values: xr.DataArray) -> str:
    return "values" if values.name is None else str(values.name)


def _units(weight: xr.DataArray, values: xr.DataArray) -> str:
    weight_units = str(weight.attrs.get("units", "") or f"units of {weight.name}")
    value_units = str(values.attrs.get("units", "") or f"units of {_name(values)}")
    return weight_units if value_units == "1" else f"{weight_units} × {value_units}"


def _neuron_dim(values: Any, over: str) -> str:
    """Return the dim of `values` to sum over."""
    if isinstance(values, xr.Dataset):
        usable = [str(n) for n, v in values.data_vars.items() if set(v.dims) & set(_NEURON_DIMS)]
        numeric = [n for n in usable if values[n].dtype.kind in "fiu"]
        raise SchemaError(
            f"values is a Dataset, expected a DataArray: pass one of its variables {numeric}, such "
            "as units.rate_ori"
            + ("; the connectivity comes first" if set(PAIR_DIMS) <= set(values.dims) else "")
        )
    if not isinstance(values, xr.DataArray):
        tree = part_of(values, "units") if isinstance(values, xr.DataTree) else ""
        raise SchemaError(
            f"values is a {type(values).__name__}, expected a DataArray over nucleus_id, since "
            "neurons are matched by label: "
            + (f"{tree}.rate_ori" if tree else "wrap it with xr.DataArray(values, coords=...)")
        )
    name = _name(values)
    # A neuron recorded in several scans would count several times.
    if "scan_unit" in values.dims:
        raise SchemaError(
            f"{name} has one row per recorded unit (dim 'scan_unit'), expected one per neuron: "
            "collapse it with mx.tuning.collapse_scans first"
        )
    dims = [str(dim) for dim in values.dims if dim in _NEURON_DIMS]
    if len(dims) != 1:
        raise SchemaError(
            f"{name} has dims {values.dims}, expected exactly one of {_NEURON_DIMS}; for the "
            f"product with another connectivity, sparse over {PAIR_DIMS}, see over= of mx.contract"
        )
    (dim,) = dims
    if dim not in ("nucleus_id", over):
        raise SchemaError(
            f"{name} is over {dim!r} but the sum is over {over!r}: pass over={dim!r}, or rename "
            "the dim to 'nucleus_id' if the values belong to neurons of either side"
        )
    if dim not in values.coords:
        raise SchemaError(
            f"{name} has no coordinate {dim!r}, expected nucleus ids, since neurons are matched by "
            f"label: add them with .assign_coords({dim}=ids)"
        )
    if values.dtype.kind not in "fiub":
        raise SchemaError(f"{name} has dtype {values.dtype}, expected numbers")
    return dim


class Aligned(NamedTuple):
    """Values in the order of an axis."""

    rows: Rows
    n_missing: int  # neurons of the axis without a value
    n_outside: int  # neurons with a row that are not on the axis


def _align(
    values: xr.DataArray,
    dim: str,
    labels: np.ndarray,
    over: str,
    missing: Missing,
    reuse: bool = False,
) -> Aligned:
    """Match values of neurons with the labels of an axis."""
    name, ids = _name(values), values.coords.variables[dim].values
    data = values.variable.transpose(dim, ...).data
    array = data.todense() if isinstance(data, sparse.SparseArray) else np.asarray(data)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    # Not reshape(n, -1), which fails if a dim is empty.
    table = np.ascontiguousarray(array.reshape(array.shape[0], math.prod(array.shape[1:])))
    rows: np.ndarray | None
    if ids.dtype == labels.dtype and np.array_equal(ids, labels):
        rows = None  # the common case: the axis holds the same neurons
    else:
        rows = Lookup(ids, f"{dim} of {name}").find(labels)
        if labels.size and (rows < 0).all():
            raise UnknownLabelError(
                f"none of the {labels.size} neurons of {over} is among the {ids.size} of {name}: "
                f"check that {dim} holds nucleus ids, not root ids"
            )
    n_outside = 0 if rows is None else ids.size - int(np.count_nonzero(rows >= 0))
    kinds = np.zeros(labels.size, np.uint8)
    arranged = arrange(table, rows, kinds=kinds, reuse=reuse)
    # Infinity and partial NaN would propagate to every sum with that neuron.
    if kinds.max(initial=0) >= INFINITE:
        infinite = np.flatnonzero(kinds >= INFINITE)
        raise SchemaError(
            f"{name} is infinite for {infinite.size} neurons, such as {labels[infinite[0]]}, "
            "expected finite numbers or NaN: correct them, or set them to NaN"
        )
    partial = np.flatnonzero(kinds == NAN | FINITE)
    if partial.size:
        raise SchemaError(
            f"{name} is partly NaN for {partial.size} neurons, such as {labels[partial[0]]}, "
            "expected all or no values of a neuron to be NaN: fill the gaps, or set all of them to "
            "NaN"
        )
    n_missing = 0 if arranged.rated is None else labels.size - int(arranged.rated.sum())
    if missing == "raise" and n_missing:
        raise SchemaError(
            f"{n_missing} of {labels.size} neurons of {over} have no value in {name}, expected one "
            "for each: pass missing='skip' to ignore them, or select the neurons with a value by "
            "mx.select_connections"
        )
    return Aligned(arranged, n_missing, n_outside)
