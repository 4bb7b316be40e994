"""Unit variables as coordinates of both axes of a connectivity Dataset."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import AXES, validate

__all__ = ["annotate"]

_FIXED = ("nucleus_id", "datastack", "materialization_version", "scope")


def annotate(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    variables: str | Iterable[str],
    overwrite: bool = False,
    check_release: bool = True,
) -> xr.Dataset:
    """Write variables of the units as coordinates of both axes.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    units : xarray.Dataset
        Units over ``nucleus_id``, in any order, some neurons of the matrix may be absent.
    variables : str or iterable of str
        Names of variables with one value a neuron, or ``"position"``.
    overwrite : bool, optional
        Whether coordinates of the same names may be replaced.
    check_release : bool, optional
        False skips the release check.

    Returns
    -------
    xarray.Dataset
        With ``pre_cell_type(pre_nucleus_id)`` and ``post_cell_type(post_nucleus_id)`` for
        ``"cell_type"``, and so on; ``pre_x``, ``pre_y``, ``pre_z`` ... (µm) for ``"position"``.
        They keep the attributes of the unit variable. A neuron that is not among the units has
        "unknown", NaN, -1 or False; the attribute ``unmatched`` says how many have not been found,
        since False alone cannot be told from a neuron that was found.

    Raises
    ------
    UnknownLabelError
        If units has no such variable, or no neuron of an axis is among the units.
    SchemaError
        If a variable has several values a neuron, a coordinate of that name is there already and
        `overwrite` is False, or the Dataset is no connectivity.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> units = xr.Dataset({"layer": ("nucleus_id", np.array(["L4"], dtype=object))},
    ...     coords={"nucleus_id": [12]})
    >>> annotate(two_neurons(), units, "layer", check_release=False).pre_layer.values
    array(['unknown', 'L4'], dtype=object)
    """
    validate(connectivity, "connectivity")
    require_same_release(
        ("connectivity", connectivity), ("units", units), check_release=check_release
    )
    if "nucleus_id" not in units.coords:
        raise SchemaError("units has no nucleus_id: pass the units Dataset of the release")
    names = [variables] if isinstance(variables, str) else list(variables)
    columns = {column: values for name in names for column, values in _columns(units, name)}
    new = [f"{side}_{column}" for side in ("pre", "post") for column in columns]
    taken = [name for name in new if name in connectivity.variables]
    if taken and not overwrite:
        raise SchemaError(
            f"the connectivity has {taken} already: pass overwrite=True to replace them"
        )
    lookup = Lookup(units["nucleus_id"].values, "nucleus_id of the units")
    coords = {}
    for side in ("pre", "post"):
        dim = f"{side}_nucleus_id"
        rows = lookup.find(connectivity[dim].values)
        if rows.size and (rows < 0).all():
            raise UnknownLabelError(
                f"none of the {rows.size} neurons of {dim} is among the units: "
                "annotate with the units the connectivity was built from"
            )
        n_unmatched = int((rows < 0).sum())
        for column, variable in columns.items():
            attrs = {**variable.attrs, "unmatched": n_unmatched}
            coords[f"{side}_{column}"] = (dim, _look_up(variable.values, rows), attrs)
    result = connectivity.drop_vars(taken).assign_coords(coords)
    return add_history(result, f"annotate({', '.join(names)})")


def _columns(units: xr.Dataset, name: str) -> list[tuple[str, xr.DataArray]]:
    if name not in units.variables:
        near = ", ".join(nearest_words(name, units.variables))
        raise UnknownLabelError(
            f"units has no variable {name!r}, expected some of {sorted(map(str, units.data_vars))}"
            + (f"; nearest: {near}" if near else "")
        )
    variable = units[name]
    if name == "position":
        by_axis = variable.transpose("nucleus_id", "axis")
        return [(axis, by_axis[:, i]) for i, axis in enumerate(AXES)]
    if variable.dims != ("nucleus_id",) or name in _FIXED:
        raise SchemaError(
            f"units.{name} has dims {variable.dims}, expected one value a neuron along "
            "('nucleus_id',): select one column first, or use mx.contract for rates"
        )
    return [(name, variable)]


def _look_up(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "OUT":
        values = values.astype(object)
    missing = {"O": "unknown", "f": np.nan, "i": -1, "b": False}.get(values.dtype.kind)
    if missing is None:
        raise SchemaError(
            f"a unit variable has dtype {values.dtype}, expected text, numbers or truth values"
        )
    found = values[rows]
    found[rows < 0] = missing
    return found
