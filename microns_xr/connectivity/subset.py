"""Select parts of a connectivity Dataset by label, and add unit variables to its axes.

All functions work on the raw buffers, for either compressed axis, and keep all coordinates and
variables of the Dataset. Axes stay sorted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    Pattern,
    as_pairs,
    is_scope_known,
    pair_buffers,
    pair_names,
    pattern_of,
)
from microns_xr.connectivity.blocks import (
    OTHER_SIDE,
    Side,
    blocks_of,
    drop_unconnected,
    is_lazy,
    keep_pairs,
    layout_of,
    positions_of,
    stored_source,
    sums_by_neuron,
    take_positions,
    with_pairs,
)
from microns_xr.connectivity.labels import Lookup, each_once
from microns_xr.connectivity.sort import Rule, transpose_pattern
from microns_xr.errors import (
    SchemaError,
    UnknownLabelError,
    names_of,
    require_instance,
    unknown_label,
)
from microns_xr.provenance import Labelled, add_history, require_same_release
from microns_xr.schema import AXES, require_unrounded_roots


def n_connections(connectivity: xr.Dataset) -> int:
    """Count the connected pairs.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).

    Returns
    -------
    int
        Pairs with at least one synapse, including autapses and pairs of summed size 0. Lazy
        connectivity is computed for it, unless it is unmodified since opening.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> n_connections(two_neurons())
    3
    """
    connectivity = as_pairs(connectivity)
    if not is_lazy(connectivity):
        return pattern_of(connectivity).nnz
    one = connectivity[pair_names(connectivity)[:1]]
    if (source := stored_source(blocks_of(one).arrays)) is not None:
        return int(source.indptr[-1])  # without reading the pairs
    return int(sums_by_neuron(one)["pre"]["n_connections"].sum().compute())


def take(connectivity: xr.Dataset, pre_ids: Any = None, post_ids: Any = None) -> xr.Dataset:
    """Select neurons of either axis by id; all ids must be on the axis."""
    connectivity = as_pairs(connectivity)
    pre = None if pre_ids is None else each_once(positions_of(connectivity, "pre", pre_ids))
    post = None if post_ids is None else each_once(positions_of(connectivity, "post", post_ids))
    n_pre, n_post = (None if at is None else at.size for at in (pre, post))
    result = take_positions(connectivity, pre, post)
    return add_history(result, f"take(pre_ids={n_pre}, post_ids={n_post})")


def keep_touching(
    connectivity: xr.Dataset, pre: np.ndarray | None, post: np.ndarray | None
) -> xr.Dataset:
    """Select the pairs that involve a neuron at one of the positions, and all their neurons."""
    rule, compressed = _select_all(connectivity)
    n_pre, n_post = rule.shape(compressed)
    touched = {"pre": np.zeros(n_pre, dtype=bool), "post": np.zeros(n_post, dtype=bool)}
    for side, at in (("pre", pre), ("post", post)):
        if at is not None:
            touched[side][at] = True
    # All pairs of selected neurons, and for the others the pairs with a selected partner.
    rule = rule._replace(partners=touched[OTHER_SIDE[compressed]], whole=touched[compressed])
    result = keep_pairs(connectivity, connectivity, rule)
    # Pairs of two other neurons now look unconnected, though they may be connected.
    unknown = xr.Variable((), np.array("unknown", dtype=object))
    return drop_unnamed(result.assign_coords(scope=unknown))


def drop_unnamed(connectivity: xr.Dataset, sides: Collection[Side] = ("pre", "post")) -> xr.Dataset:
    """Drop the neurons without a stored pair, if the scope does not say that they have none."""
    if is_scope_known(connectivity) or not sides:
        return connectivity
    return drop_unconnected(connectivity, sides)


def _select_all(connectivity: xr.Dataset) -> tuple[Rule, Side]:
    """Return the rule that selects all pairs, and the compressed axis."""
    (n_pre, n_post), compressed = layout_of(connectivity)
    n_major, n_minor = (n_post, n_pre) if compressed == "post" else (n_pre, n_post)
    return Rule(np.arange(n_major), np.arange(n_minor, dtype=np.int32), n_minor), compressed


def drop_autapses(connectivity: xr.Dataset) -> xr.Dataset:
    """Drop the connections of neurons with themselves.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).

    Returns
    -------
    xarray.Dataset
        Connectivity on the same axes, without autapses.

    Raises
    ------
    SchemaError
        If the Dataset is not connectivity.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> n_connections(drop_autapses(two_neurons()))
    2
    """
    connectivity = as_pairs(connectivity)
    rule, compressed = _select_all(connectivity)
    majors = connectivity[f"{compressed}_nucleus_id"].values
    minors = connectivity[f"{OTHER_SIDE[compressed]}_nucleus_id"].values
    # The axes may hold different neurons: -1 where the neuron is not on the other axis.
    rule = rule._replace(without=Lookup(minors, "nucleus_id").find(majors).astype(np.int64))
    result = keep_pairs(connectivity, connectivity, rule)
    if is_lazy(connectivity):  # counting would compute the pairs
        return add_history(result, "drop_autapses()")
    n_dropped = n_connections(connectivity) - n_connections(result)
    return add_history(result, f"drop_autapses(): {n_dropped} dropped")


def recompress(connectivity: xr.Dataset, compressed: Compressed) -> xr.Dataset:
    """Return the same pairs, compressed over the given axis."""
    connectivity = as_pairs(connectivity)
    pattern, values = pair_buffers(connectivity)
    if pattern.compressed == compressed:
        return connectivity.copy()
    other_order = transpose_pattern(pattern.indices, pattern.indptr, pattern.n_minor)
    other = Pattern(pattern.indices, pattern.indptr, pattern.shape, compressed)
    return with_pairs(connectivity, connectivity, other, values, other_order, pattern.shape)


_FIXED = ("nucleus_id", "datastack", "materialization_version", "scope")


def annotate(
    data: Labelled,
    units: xr.Dataset,
    variables: str | Iterable[str],
    overwrite: bool = False,
) -> Labelled:
    """Write variables of the units as coordinates of the axes of neurons.

    Parameters
    ----------
    data : xarray.Dataset or xarray.DataArray
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), or what was computed from it
        over one of the two, such as input currents or degrees.
    units : xarray.Dataset
        Units over ``nucleus_id``, in any order; they need not hold every neuron of the axes.
    variables : str or iterable of str
        Names of variables with one value per neuron, or ``"position"``.
    overwrite : bool, optional
        Whether coordinates of the same names may be replaced.

    Returns
    -------
    xarray.Dataset or xarray.DataArray
        With ``pre_cell_type(pre_nucleus_id)`` and ``post_cell_type(post_nucleus_id)`` for
        ``"cell_type"``, and so on, where there is such a dim; ``pre_x``, ``pre_y``, ``pre_z`` ...
        (µm) for ``"position"``. They keep the attributes of the unit variable. A neuron that is not
        among the units has "unknown", NaN, -1 or False; the attribute ``unmatched`` counts these
        neurons, since their False looks like any other.

    Raises
    ------
    UnknownLabelError
        If units has no such variable, or no neuron of an axis is among the units.
    SchemaError
        If a variable has several values per neuron, a coordinate of that name already exists and
        `overwrite` is False, or there is no dim of neurons.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> units = xr.Dataset({"layer": ("nucleus_id", np.array(["L4"], dtype=object))},
    ...     coords={"nucleus_id": [12]})
    >>> annotate(two_neurons(), units, "layer").pre_layer.values
    array(['unknown', 'L4'], dtype=object)

    Currents by the layer of the neurons that receive them:

    >>> import microns_xr as mx
    >>> rates = xr.DataArray([10.0, 1.0], {"nucleus_id": [11, 12]})
    >>> currents = annotate(mx.input_currents(two_neurons(), rates), units, "layer")
    >>> currents.groupby("post_layer").mean().to_series().to_dict()
    {'L4': 72.0, 'unknown': 5.0}
    """
    labelled: Any = data if _is_result(data) else as_pairs(data)
    require_same_release(("data", labelled), ("units", units))
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    if "nucleus_id" not in units.coords:
        raise SchemaError("units has no nucleus_id: pass the units Dataset of the release")
    names = names_of("variables", variables)
    columns = {column: values for name in names for column, values in _columns(units, name)}
    sides = [side for side in ("pre", "post") if f"{side}_nucleus_id" in labelled.dims]
    new = [f"{side}_{column}" for side in sides for column in columns]
    taken = {*labelled.coords, *getattr(labelled, "data_vars", ())}
    present = [name for name in new if name in taken]
    if present and not overwrite:
        raise SchemaError(f"data already has {present}: pass overwrite=True to replace them")
    by_nucleus = Lookup(units["nucleus_id"].values, "nucleus_id of the units")
    coords = {}
    for side in sides:
        dim = f"{side}_nucleus_id"
        rows = by_nucleus.find(labelled[dim].values)
        if rows.size and (rows < 0).all():
            raise UnknownLabelError(
                f"none of the {rows.size} neurons of {dim} is among the units: "
                "pass the units from which the connectivity was built"
            )
        n_unmatched = int((rows < 0).sum())
        for column, variable in columns.items():
            attrs = {**variable.attrs, "unmatched": n_unmatched}
            coords[f"{side}_{column}"] = (dim, _look_up(variable.values, rows), attrs)
    result = labelled.drop_vars(present).assign_coords(coords)
    if isinstance(data, xr.DataArray) and isinstance(result, xr.Dataset):
        result = result[data.name or "weight"]
    annotated: Labelled = add_history(result, f"annotate({', '.join(names)})")
    return annotated


def _is_result(data: Any) -> bool:
    """Whether each array is over one axis of neurons at most, as currents and degrees are."""
    if not isinstance(data, xr.Dataset | xr.DataArray):
        return False
    arrays = data.data_vars.values() if isinstance(data, xr.Dataset) else [data]
    axes = [set(array.dims) & set(PAIR_DIMS) & set(data.coords) for array in arrays]
    return any(axes) and all(len(of_array) < 2 for of_array in axes)


def _columns(units: xr.Dataset, name: str) -> list[tuple[str, xr.DataArray]]:
    if name not in units.variables:
        raise unknown_label("units has no variable", name, set(units.variables))
    variable = units[name]
    if name == "position":
        # The axis may have its labels in any order.
        order = units["axis"].values.tolist() if "axis" in units.coords else list(AXES)
        return [(axis, variable.isel(axis=order.index(axis), drop=True)) for axis in AXES]
    if variable.dims != ("nucleus_id",) or name in _FIXED:
        raise SchemaError(
            f"units.{name} has dims {variable.dims}, expected one value per neuron along "
            "('nucleus_id',): select one column first, or use mx.contract for rates"
        )
    require_unrounded_roots(xr.Dataset({name: variable.variable}))
    return [(name, variable)]


def _look_up(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "OUT":
        values = values.astype(object)
    missing = {"O": "unknown", "f": np.nan, "i": -1, "b": False}.get(values.dtype.kind)
    if missing is None:
        raise SchemaError(
            f"a unit variable has dtype {values.dtype}, expected text, numbers or booleans"
        )
    of_neurons = values[rows]
    of_neurons[rows < 0] = missing
    return of_neurons
