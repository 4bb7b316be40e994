"""Tuning curves: mean responses by direction of motion and by orientation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import parse_arrays, require_columns
from microns_xr.errors import SchemaError
from microns_xr.functional.coregistration import nuclei_of_units
from microns_xr.provenance import add_history, release_of
from microns_xr.releases import TableSpec
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.tables import SCAN_KEYS, typed_table

__all__ = ["build_tuning_curves", "rate_variables"]

logger = logging.getLogger(__name__)

_DIM = {"rate_dir": "direction", "rate_ori": "orientation"}
_TURN = {"rate_dir": 360.0, "rate_ori": 180.0}


def rate_variables(
    table: pd.DataFrame, spec: TableSpec
) -> tuple[dict[str, tuple[tuple[str, str], np.ndarray, dict[str, Any]]], dict[str, Any]]:
    """Read ``rate_dir`` and ``rate_ori`` of a table as variables with their angle coordinates.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``rate_dir`` and / or ``rate_ori``: arrays, or arrays written as text.
    spec : TableSpec
        States the convention of the angles.

    Returns
    -------
    variables : dict
        Name to (dims, values, attrs); rows that are not complete are NaN as a whole.
    coords : dict
        ``direction`` and ``orientation`` in degrees, with units and convention.

    Raises
    ------
    SchemaError
        If there is no such column, the arrays differ in length, the convention of the angles is
        not stated, or the two columns do not agree: ``rate_ori[i]`` is the mean of ``rate_dir[i]``
        and ``rate_dir[i + n / 2]``, because orientation is direction modulo 180°.
    """
    names = [n for n in _DIM if n in table.columns]
    if not names:
        require_columns(table, spec.name, list(_DIM))
    if spec.angle_convention is None:
        raise SchemaError(
            f"{spec.name} has rates by angle, but neither the registry nor the call says what 0 "
            "degrees means: pass angle_convention='up_clockwise' or 'right_counterclockwise'"
        )
    variables, coords = {}, {}
    for name in names:
        values = parse_arrays(table[name], spec.name)
        values[~np.isfinite(values).all(axis=1)] = np.nan
        n_angles = values.shape[1]
        coords[_DIM[name]] = (
            _DIM[name],
            np.arange(n_angles) * (_TURN[name] / n_angles),
            {
                "units": "degree",
                "angle_convention": spec.angle_convention,
                "period": _TURN[name],
                "long_name": f"{_DIM[name]} of the stimulus",
            },
        )
        variables[name] = (("scan_unit", _DIM[name]), values, describe(FUNCTIONAL[name]))
    if len(names) == 2:
        _require_agreement(variables["rate_dir"][1], variables["rate_ori"][1], spec.name)
    return variables, coords


def _require_agreement(rate_dir: np.ndarray, rate_ori: np.ndarray, name: str) -> None:
    if rate_dir.shape[1] != 2 * rate_ori.shape[1]:
        raise SchemaError(
            f"{name} has {rate_dir.shape[1]} directions and {rate_ori.shape[1]} orientations, "
            "expected twice as many directions"
        )
    folded = rate_dir.reshape(len(rate_dir), 2, -1).mean(axis=1)
    # The table is written with eight digits of float32.
    wrong = np.abs(folded - rate_ori) > 1e-4 * np.maximum(1.0, np.abs(rate_ori))
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=1)))
        raise SchemaError(
            f"{name} row {row}: rate_ori is not the mean of rate_dir over opposite directions "
            f"({int(wrong.any(axis=1).sum())} rows): the columns are shifted, or of two tables"
        )


def build_tuning_curves(
    table: pd.DataFrame, spec: TableSpec, coregistration: xr.Dataset
) -> xr.Dataset:
    """Turn a table of tuning curves into a Dataset over ``scan_unit``.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns session, scan_idx, unit_id (together unique), rate_dir and / or rate_ori.
    spec : TableSpec
        States the convention of its angles.
    coregistration : xarray.Dataset
        Which unit is which neuron, over ``scan_unit``.

    Returns
    -------
    xarray.Dataset
        ``rate_ori(scan_unit, orientation)`` and ``rate_dir(scan_unit, direction)``, coordinates
        ``nucleus_id`` (-1 where the unit is matched to none), ``session``, ``scan_idx``,
        ``unit_id``; a unit matched to several nuclei has a row for each. Sorted by
        (session, scan_idx, unit_id, nucleus_id). ``attrs["n_unmatched"]`` counts curves without a
        neuron.

    Raises
    ------
    SchemaError
        As `rate_variables`, and for repeated units.

    Examples
    --------
    >>> from microns_xr.functional.coregistration import build_functional
    >>> from microns_xr.releases import table_spec
    >>> match = pd.DataFrame({"target_id": [7], "session": [4], "scan_idx": [7], "unit_id": [1]})
    >>> coregistration = build_functional(match, TableSpec("c"), datastack="d", version=1)
    >>> curves = pd.DataFrame({"session": [4, 4], "scan_idx": [7, 7], "unit_id": [1, 2],
    ...     "rate_ori": ["[1. 2.]", "[3. 4.]"]})
    >>> spec = table_spec("tuning_curves_fitted_v1")
    >>> build_tuning_curves(curves, spec, coregistration).nucleus_id.values
    array([ 7, -1])
    """
    typed = typed_table(table, "tuning_curves", spec, unique=SCAN_KEYS)
    keys = list(SCAN_KEYS)
    rows = nuclei_of_units({k: typed[k].to_numpy() for k in keys}, coregistration)
    variables, coords = rate_variables(typed, spec)
    dataset = xr.Dataset(
        {n: (dims, v[rows["row"]], attrs) for n, (dims, v, attrs) in variables.items()},
        coords={
            **{
                k: ("scan_unit", rows[k].to_numpy(), describe(FUNCTIONAL[k]))
                for k in ["nucleus_id", *keys]
            },
            **coords,
        },
        attrs={
            "tuning_table": spec.name,
            "coregistration_table": coregistration.attrs.get("functional_table", "unknown"),
            "n_unmatched": int((rows["nucleus_id"] < 0).sum()),
        },
    )
    datastack, version = release_of(coregistration, "coregistration")
    dataset = dataset.assign_coords(
        {c: coregistration.coords[c] for c in ("datastack", "materialization_version")}
    )
    logger.info(
        "tuning curves of %s v%d: %d units, %d matched to no neuron",
        datastack,
        version,
        len(typed),
        dataset.attrs["n_unmatched"],
    )
    return add_history(dataset, f"tuning curves from {spec.name}", source=coregistration)
