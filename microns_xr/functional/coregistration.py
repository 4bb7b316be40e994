"""Which recorded unit is which neuron: rows of all scans, and what was measured of each.

A neuron may be recorded in up to five scans, or twice within one. Those are several rows along
``scan_unit``; `microns_xr.collapse_scans` leads to one row a neuron along ``nucleus_id``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import MISSING_TEXT, plain_values, require_columns
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history, stamp_release
from microns_xr.releases import TableSpec
from microns_xr.schema import FUNCTIONAL, UNITS, describe
from microns_xr.tables import HOUSEKEEPING, SCAN_KEYS, latest_by, typed_table

__all__ = ["KIND_ROLES", "FunctionalKind", "build_functional", "stated_spec"]

logger = logging.getLogger(__name__)

FunctionalKind = Literal["manual", "auto", "digital_twin", "functional_properties"]

# What `Release.functional` can be asked for, to the role of its table.
KIND_ROLES: dict[str, str] = {
    "manual": "coregistration",
    "auto": "coregistration_auto",
    "digital_twin": "functional_properties",  # in every release they are of a digital twin
    "functional_properties": "functional_properties",
}

# Names that mean an angle, to their period in turns.
ANGLES = {"pref_ori": 0.5, "pref_dir": 1.0, "orientation": 0.5, "direction": 1.0}


def stated_spec(
    spec: TableSpec, angle_units: str | None = None, angle_convention: str | None = None
) -> TableSpec:
    """Return what the registry knows of a table, completed by what a call states of its angles."""
    stated = {"angle_units": angle_units, "angle_convention": angle_convention}
    for argument, value in stated.items():
        known = getattr(spec, argument)
        if value is not None and known is not None and value != known:
            raise SchemaError(
                f"{argument} of {spec.name} is {known!r} by the registry, not {value!r}: leave the "
                "argument out and use mx.convert_angles on the result"
            )
    return replace(
        spec,
        angle_units=angle_units or spec.angle_units,
        angle_convention=angle_convention or spec.angle_convention,
    )


def angle_attrs(name: str, spec: TableSpec, values: np.ndarray) -> dict[str, Any]:
    """Units, convention and period of an angle of a table, checked against its values.

    Raises `SchemaError` if the table does not state them, or if the values go beyond one period,
    as degrees do in a table of radians and directions in a column of orientations.
    """
    if spec.angle_units is None or spec.angle_convention is None:
        raise SchemaError(
            f"{spec.name}.{name} is an angle, but neither the registry nor the call says what "
            "it is in: pass angle_units= ('degree' or 'radian') and angle_convention= "
            "('up_clockwise' or 'right_counterclockwise'), or leave the column out"
        )
    turn = 360.0 if spec.angle_units == "degree" else 2 * np.pi
    period = turn * ANGLES[name]
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    if largest > period * (1 + 1e-6):
        raise SchemaError(
            f"{spec.name}.{name} holds {largest:g}, expected {spec.angle_units}s within "
            f"{period:g}: its units are others than stated, or it is an angle of another period"
        )
    return {
        "units": spec.angle_units,
        "angle_convention": spec.angle_convention,
        "period": period,
    }


def build_functional(
    table: pd.DataFrame,
    spec: TableSpec,
    *,
    datastack: str,
    version: int,
    role: str = "coregistration",
    min_score: float | None = None,
    max_residual: float | None = None,
    angle_units: str | None = None,
    angle_convention: str | None = None,
) -> xr.Dataset:
    """Turn a table of matched or measured units into a Dataset over ``scan_unit``.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns target_id (nucleus), session, scan_idx, unit_id, and any measured ones.
    spec : TableSpec
        What its columns mean, in particular the convention of its angles.
    datastack, version : str, int
        The release.
    role : str, optional
        Role of the table: coregistration, coregistration_auto or functional_properties.
    min_score, max_residual : float, optional
        Keep automatic matches with at least this score, at most this residual (µm); a match
        without the value is not kept.
    angle_units, angle_convention : str, optional
        What the angles of a table are in that is not in the registry.

    Returns
    -------
    xarray.Dataset
        Dim ``scan_unit``, sorted by (session, scan_idx, unit_id, nucleus_id); coordinates
        ``nucleus_id`` (-1 = none), ``session``, ``scan_idx``, ``unit_id``, all int64; the other
        columns of the table as variables (missing: -1 in integers, NaN in floats, "unknown" in
        text and in booleans, which then are words). ``attrs["columns_left_out"]`` names those that
        hold arrays: `microns_xr.functional.tuning.build_tuning_curves` reads rates. Of repeated
        rows (one unit, one nucleus) the latest ``created``, then the highest ``id`` is kept;
        ``attrs["n_contradicting_rows"]`` counts the units whose rows differed.

    Raises
    ------
    SchemaError
        If columns are missing or of the wrong type, if an angle has no stated convention or goes
        beyond its period, if repeated rows differ and nothing tells the latest, or if a threshold
        is asked for that the table has no column for.

    Examples
    --------
    >>> rows = pd.DataFrame({"target_id": [12, 11], "session": [4, 4], "scan_idx": [7, 7],
    ...     "unit_id": [2, 1], "cc_abs": [0.5, 0.25]})
    >>> build_functional(rows, TableSpec("t"), datastack="d", version=1).nucleus_id.values
    array([11, 12])
    """
    if isinstance(table, pd.DataFrame):
        require_columns(table, spec.name, table.columns)
    spec = stated_spec(spec, angle_units, angle_convention)
    typed = typed_table(table, role, spec)
    n_rows = len(typed)
    typed = typed.assign(target_id=typed["target_id"].fillna(-1).astype(np.int64))
    keys = [*SCAN_KEYS, "target_id"]
    left_out = [c for c in typed.columns if _holds_arrays(c, typed[c])]
    further = [c for c in typed.columns if c not in {*keys, *left_out, *HOUSEKEEPING}]
    typed, contradicted = latest_by(typed, spec.name, keys, further)
    n_repeated = n_rows - len(typed)
    for column, bound, keep in (
        ("score", min_score, lambda v: v >= min_score),
        ("residual", max_residual, lambda v: v <= max_residual),
    ):
        if bound is None:
            continue
        if column not in typed:
            raise SchemaError(
                f"{spec.name} has no column {column!r} to choose by, found {list(typed.columns)}: "
                "only automatic coregistrations have one"
            )
        typed = typed[keep(_values(typed[column], column, spec))]

    coords: dict[str, Any] = {"nucleus_id": typed["target_id"].to_numpy()}
    coords.update({key: typed[key].to_numpy() for key in SCAN_KEYS})
    variables: dict[str, Any] = {}
    for column in further:
        values = typed[column]
        if column == "pt_root_id":
            variables[column] = values.fillna(0).astype(np.int64).to_numpy()
        else:
            variables[column] = _values(values, column, spec)
    dataset = xr.Dataset(
        {n: ("scan_unit", v, _attrs(n, v, spec)) for n, v in variables.items()},
        coords={n: ("scan_unit", v, _attrs(n, v, spec)) for n, v in coords.items()},
        attrs={
            "functional_table": spec.name,
            "n_rows_in_table": n_rows,
            "n_repeated_rows": n_repeated,
        },
    )
    if contradicted:
        dataset.attrs["n_contradicting_rows"] = contradicted
    left_out = [c for c in left_out if c not in HOUSEKEEPING]
    if left_out:
        dataset.attrs["columns_left_out"] = left_out
    dataset = stamp_release(dataset, datastack, version)
    return add_history(dataset, f"functional from {spec.name}")


def _holds_arrays(column: str, values: pd.Series) -> bool:
    declared = FUNCTIONAL.get(column)
    if declared is not None and len(declared.dims) > 1:
        return True  # rates, which some tables hold as text
    return values.dtype == object and bool(values.map(pd.api.types.is_list_like).any())


def _values(values: pd.Series, column: str, spec: TableSpec) -> np.ndarray:
    declared = FUNCTIONAL.get(column)
    as_float = declared is not None and declared.dtype == "float"
    plain = plain_values(values, spec.name, as_float=as_float)
    if column in ANGLES and plain.dtype.kind == "i":
        return plain_values(values, spec.name, as_float=True)  # -1 would be an angle
    return plain


def _attrs(name: str, values: np.ndarray, spec: TableSpec) -> dict[str, Any]:
    attrs = describe(FUNCTIONAL[name]) if name in FUNCTIONAL else {}
    if name in ANGLES and values.dtype.kind == "f":
        attrs.update(angle_attrs(name, spec, values))
    return attrs


def nuclei_of_units(units: Mapping[str, np.ndarray], coregistration: xr.Dataset) -> pd.DataFrame:
    """Say which neuron each unit is.

    Parameters
    ----------
    units : mapping of str to numpy.ndarray
        session, scan_idx, unit_id of each unit; others are not looked at.
    coregistration : xarray.Dataset
        Over ``scan_unit``, with nucleus_id.

    Returns
    -------
    pandas.DataFrame
        The keys; ``row``, the position of the unit; ``nucleus_id``, int64, -1 where it is matched
        to none. A unit matched to several nuclei has a row for each. Sorted by
        (session, scan_idx, unit_id, nucleus_id).

    Examples
    --------
    >>> match = pd.DataFrame({"target_id": [7], "session": [4], "scan_idx": [7], "unit_id": [1]})
    >>> coregistration = build_functional(match, TableSpec("c"), datastack="d", version=1)
    >>> units = {"session": [4, 4], "scan_idx": [7, 7], "unit_id": [2, 1]}
    >>> nuclei_of_units(units, coregistration)[["row", "nucleus_id"]].values.tolist()
    [[1, 7], [0, -1]]
    """
    keys = list(SCAN_KEYS)
    match = pd.DataFrame({k: coregistration[k].values for k in [*keys, "nucleus_id"]})
    match = match[match["nucleus_id"] >= 0].drop_duplicates()
    # Nullable, so that units without a match do not turn the ids into floats.
    match["nucleus_id"] = match["nucleus_id"].astype("Int64")
    rows = pd.DataFrame({k: units[k] for k in keys})
    rows = rows.assign(row=np.arange(len(rows))).merge(match, on=keys, how="left")
    rows["nucleus_id"] = rows["nucleus_id"].fillna(-1).astype(np.int64)
    return rows.sort_values([*keys, "nucleus_id"])


def missing_value(name: str, dtype: np.dtype) -> Any:
    """Return what stands in a variable of the data model where there is no value."""
    if dtype.kind == "i":
        zero = name == "pt_root_id" or (name in UNITS and UNITS[name].missing == "0")
        return 0 if zero else -1
    return np.nan if dtype.kind in "fc" else MISSING_TEXT
