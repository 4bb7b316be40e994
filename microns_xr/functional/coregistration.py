"""Which recorded unit is which neuron: rows of all scans, and one row a neuron.

A neuron may be recorded in up to five scans, or twice within one. Those are several rows along
``scan_unit``; `collapse_scans` leads to one row a neuron along ``nucleus_id``.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import is_angle
from microns_xr.columns import MISSING_TEXT, plain_array, plain_values, require_columns
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import RELEASE_COORDS, add_history, stamp_release
from microns_xr.releases import TableSpec
from microns_xr.schema import FUNCTIONAL, UNITS, describe, validate
from microns_xr.tables import HOUSEKEEPING, SCAN_KEYS, typed_table

__all__ = ["build_functional", "collapse_scans"]

logger = logging.getLogger(__name__)

# Names that mean an angle, to their period in turns.
ANGLES = {"pref_ori": 0.5, "pref_dir": 1.0, "orientation": 0.5, "direction": 1.0}


def angle_attrs(name: str, spec: TableSpec) -> dict[str, Any]:
    """Units, convention and period of an angle of a table, or raise if it does not state them."""
    if spec.angle_units is None or spec.angle_convention is None:
        raise SchemaError(
            f"{spec.name}.{name} is an angle, but neither the registry nor the call says what "
            "it is in: pass angle_units= ('degree' or 'radian') and angle_convention= "
            "('up_clockwise' or 'right_counterclockwise'), or leave the column out"
        )
    turn = 360.0 if spec.angle_units == "degree" else 2 * np.pi
    return {
        "units": spec.angle_units,
        "angle_convention": spec.angle_convention,
        "period": turn * ANGLES[name],
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
        Keep automatic matches with at least this score, at most this residual (µm).

    Returns
    -------
    xarray.Dataset
        Dim ``scan_unit``, sorted by (session, scan_idx, unit_id, nucleus_id); coordinates
        ``nucleus_id`` (-1 = none), ``session``, ``scan_idx``, ``unit_id``, all int64; the other
        columns of the table as variables (missing: -1 in integers, NaN in floats, "unknown" in
        text and in booleans, which then are words). ``attrs["columns_left_out"]`` names those that
        hold arrays: `microns_xr.functional.tuning.build_tuning_curves` reads rates.

    Raises
    ------
    SchemaError
        If columns are missing or of the wrong type, if an angle has no stated convention, or if a
        threshold is asked for that the table has no column for.

    Examples
    --------
    >>> rows = pd.DataFrame({"target_id": [12, 11], "session": [4, 4], "scan_idx": [7, 7],
    ...     "unit_id": [2, 1], "cc_abs": [0.5, 0.25]})
    >>> build_functional(rows, TableSpec("t"), datastack="d", version=1).nucleus_id.values
    array([11, 12])
    """
    if isinstance(table, pd.DataFrame):
        require_columns(table, spec.name, table.columns)
    typed = typed_table(table, role, spec)
    n_rows = len(typed)
    order = [c for c in ("created", "id") if c in typed]
    typed = typed.sort_values(order, kind="stable") if order else typed
    typed = typed.drop_duplicates([*SCAN_KEYS, "target_id"], keep="last")
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
    nucleus = typed["target_id"].fillna(-1).astype(np.int64)
    typed = typed.assign(target_id=nucleus).sort_values([*SCAN_KEYS, "target_id"])

    coords: dict[str, Any] = {"nucleus_id": typed["target_id"].to_numpy()}
    coords.update({key: typed[key].to_numpy() for key in SCAN_KEYS})
    variables: dict[str, Any] = {}
    left_out = []
    for column in typed.columns:
        if column in coords or column == "target_id" or column in HOUSEKEEPING:
            continue
        values = typed[column]
        if column == "pt_root_id":
            variables[column] = values.fillna(0).astype(np.int64).to_numpy()
        elif _holds_arrays(column, values):
            left_out.append(column)
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
        attrs.update(angle_attrs(name, spec))
    return attrs


def missing_value(name: str, dtype: np.dtype) -> Any:
    """Return what stands in a variable of the data model where there is no value."""
    if dtype.kind == "i":
        zero = name == "pt_root_id" or (name in UNITS and UNITS[name].missing == "0")
        return 0 if zero else -1
    return np.nan if dtype.kind in "fc" else MISSING_TEXT


def _rates(functional: xr.Dataset) -> list[str]:
    """Numbers by stimulus; a variable of one number a unit is no rate, whatever its name."""
    return [
        str(n)
        for n, v in functional.data_vars.items()
        if str(n).startswith("rate_")
        and v.ndim == 2
        and v.dims[0] == "scan_unit"
        and v.dtype.kind in "iuf"
    ]


def _rated(functional: xr.Dataset, rates: list[str]) -> np.ndarray:
    """Which units have all their rates; a row is rated whole or not at all."""
    rated = np.ones(functional["nucleus_id"].shape, dtype=bool)
    for name in rates:
        rated &= np.isfinite(functional[name].values).all(axis=-1)
    return rated


def collapse_scans(
    functional: xr.Dataset,
    how: Literal["mean", "best", "first"] = "mean",
    by: str | None = None,
) -> xr.Dataset:
    """Lead from one row a recorded unit to one row a neuron.

    Parameters
    ----------
    functional : xarray.Dataset
        Rows of all scans, dim ``scan_unit``.
    how : {"mean", "best", "first"}, optional
        ``mean`` averages the rates of all rated units of a neuron, and nothing else; ``best``
        takes all variables from the unit with the highest `by`; ``first`` from the first unit by
        (session, scan_idx, unit_id).
    by : str, optional
        Variable that ``best`` chooses by, such as ``"cc_abs"`` or ``"score"``.

    Returns
    -------
    xarray.Dataset
        Dim ``nucleus_id``, sorted, unique: the variables (for ``best`` and ``first`` also
        ``session``, ``scan_idx``, ``unit_id``), ``n_scans``, ``n_scan_units`` and, where there are
        rates, ``n_rated``, the number of units the rates come from.

    Raises
    ------
    SchemaError
        If ``best`` has no `by` or one that is not one number a unit, or ``mean`` meets an angle,
        which has no arithmetic mean.
    UnknownLabelError
        If `by` is no variable of the Dataset.

    Notes
    -----
    Only units that have the value are considered: for ``best`` those with a finite `by`, and where
    the Dataset has rates, those that are rated. Neurons without such a unit are left with missing
    values: NaN, -1 (0 for ``pt_root_id``), "unknown"; booleans then become the words "true",
    "false" and "unknown". Ties are decided by (session, scan_idx, unit_id), the lowest first.
    Units matched to no nucleus (``nucleus_id`` -1) are left out.

    Examples
    --------
    >>> rates = (("scan_unit", "orientation"), [[1.0, 3.0], [3.0, 5.0]])
    >>> functional = xr.Dataset({"rate_ori": rates},
    ...     coords={"nucleus_id": ("scan_unit", [7, 7]), "session": ("scan_unit", [4, 5]),
    ...             "scan_idx": ("scan_unit", [2, 2]), "unit_id": ("scan_unit", [9, 1])})
    >>> collapse_scans(functional).rate_ori.values
    array([[2., 4.]])
    """
    validate(functional, "functional")
    if how not in ("mean", "best", "first"):
        raise SchemaError(f"how is {how!r}, expected 'mean', 'best' or 'first'")
    if how == "best" and by is None:
        raise SchemaError("how='best' needs by=, the variable that says which unit is best")
    if how != "best" and by is not None:
        raise SchemaError(f"by={by!r} has a meaning with how='best' only, found how={how!r}")
    if by is not None and by not in functional.data_vars:
        near = ", ".join(nearest_words(by, functional.data_vars))
        raise UnknownLabelError(
            f"by={by!r} is no variable of the functional Dataset, "
            f"found {list(functional.data_vars)}" + (f"; nearest: {near}" if near else "")
        )
    if by is not None and (functional[by].ndim != 1 or functional[by].dtype.kind not in "biuf"):
        raise SchemaError(
            f"by={by!r} has dims {functional[by].dims} and dtype {functional[by].dtype}, expected "
            "one number a unit to choose by"
        )
    angles = [str(n) for n in functional.data_vars if is_angle(functional[n])]
    if how == "mean" and angles:
        raise SchemaError(
            f"how='mean' cannot average the angles {angles}: choose variables with "
            "functional[['rate_ori']], or use how='best', by=..."
        )
    order = np.lexsort([functional[k].values for k in (*SCAN_KEYS[::-1], "nucleus_id")])
    functional = functional.isel(scan_unit=order[functional["nucleus_id"].values[order] >= 0])
    nuclei, owner = np.unique(functional["nucleus_id"].values, return_inverse=True)

    rates = _rates(functional)
    functional = functional.assign({n: functional[n].astype(np.float64) for n in rates})
    candidate = _rated(functional, rates)
    if how == "mean":
        n_rated = np.bincount(owner[candidate], minlength=len(nuclei))
        result = _mean_rates(functional, rates, owner, candidate, nuclei, n_rated)
    else:
        if by is not None:
            candidate &= np.isfinite(functional[by].values)
        result = _chosen_units(functional, owner, candidate, nuclei, by)
        n_rated = _rated(result, rates).astype(np.int64)
    scans = pd.DataFrame({"owner": owner, **{k: functional[k].values for k in SCAN_KEYS[:2]}})
    n_scans = np.bincount(scans.drop_duplicates()["owner"], minlength=len(nuclei))
    counts = {"n_scans": n_scans, "n_scan_units": np.bincount(owner, minlength=len(nuclei))}
    if rates:
        counts["n_rated"] = n_rated
    result = result.assign(
        {n: ("nucleus_id", v.astype(np.int64)) for n, v in counts.items()}
    ).assign_coords({c: functional.coords[c] for c in RELEASE_COORDS if c in functional.coords})
    collapse = how if by is None else f"{how} by {by}"
    result.attrs = {**functional.attrs, **result.attrs, "collapse": collapse}
    return add_history(result, f"collapse_scans(how={how!r}, by={by!r})", source=functional)


def _mean_rates(
    functional: xr.Dataset,
    rates: list[str],
    owner: np.ndarray,
    rated: np.ndarray,
    nuclei: np.ndarray,
    n_rated: np.ndarray,
) -> xr.Dataset:
    variables = {}
    for name in rates:
        values = functional[name].values
        total = np.zeros((len(nuclei), values.shape[1]))
        np.add.at(total, owner[rated], values[rated])
        mean = np.full_like(total, np.nan)
        np.divide(total, n_rated[:, None], out=mean, where=n_rated[:, None] > 0)
        dims = ("nucleus_id", *functional[name].dims[1:])
        variables[name] = (dims, mean, functional[name].attrs)
    angles = [d for d in functional.dims if d != "scan_unit" and d in functional.coords]
    coords = {"nucleus_id": nuclei, **{d: functional.coords[d] for d in angles}}
    result = xr.Dataset(variables, coords=coords)
    left_out = [str(n) for n in functional.data_vars if n not in rates]
    if left_out:
        result.attrs["left_out"] = left_out  # only rates are averaged
    return result


def _chosen_units(
    functional: xr.Dataset,
    owner: np.ndarray,
    candidate: np.ndarray,
    nuclei: np.ndarray,
    by: str | None,
) -> xr.Dataset:
    # The rows are in (nucleus, session, scan_idx, unit_id) order, and the sort is stable: among
    # equals the first row of a neuron wins.
    rank = np.zeros(len(owner), dtype=np.int64)
    if by is not None:
        # Ordinals, because unsigned numbers and booleans have no negative.
        rank = -np.unique(functional[by].values, return_inverse=True)[1]
    rows = np.flatnonzero(candidate)
    rows = rows[np.lexsort([rank[rows], owner[rows]])]
    _, first = np.unique(owner[rows], return_index=True)
    chosen = functional.isel(scan_unit=rows[first]).reset_coords(list(SCAN_KEYS))
    chosen = chosen.swap_dims(scan_unit="nucleus_id")
    fill = {}
    for name, variable in dict(chosen.variables).items():
        if name == "nucleus_id" or "nucleus_id" not in variable.dims:
            continue
        values = plain_array(variable.values, str(name))
        if values.dtype == bool and len(first) < len(nuclei):
            values = np.where(values, "true", "false").astype(object)
        assign = chosen.assign_coords if name in chosen.coords else chosen.assign
        chosen = assign({name: (variable.dims, values, variable.attrs)})
        fill[name] = missing_value(str(name), values.dtype)
    return chosen.reindex(nucleus_id=nuclei, fill_value=fill)
