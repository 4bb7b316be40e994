"""Functional rows: the neuron of each recorded unit, and its measurements.

A neuron may be recorded in up to five scans, or twice within one, which gives several rows along
``scan_unit``; `microns_xr.tuning.collapse_scans` makes one row per neuron along ``nucleus_id``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import (
    PERIODS,
    angle_attrs,
    is_angle,
    require_likely_angle,
    require_likely_units,
)
from microns_xr.columns import (
    MISSING_TEXT,
    parse_arrays,
    plain_array,
    plain_values,
    require_columns,
)
from microns_xr.errors import SchemaError, require_one_of, warn_of_dropped_rows
from microns_xr.provenance import (
    RELEASE_COORDS,
    add_history,
    release_of,
    require_same_release,
    stamp_release,
)
from microns_xr.releases import TableSpec
from microns_xr.schema import FUNCTIONAL, LABELS, UNITS, column_of, describe, validate, with_labels
from microns_xr.tables import (
    HOUSEKEEPING,
    INVALID,
    SCAN_IDS,
    SCAN_KEYS,
    latest_by,
    require_shared_ids,
    typed_table,
    valid_rows,
    with_target_ids,
)

logger = logging.getLogger(__name__)

FunctionalKind = Literal["manual", "auto", "digital_twin", "functional_properties"]

# Role of the table for each kind that `Release.functional` accepts.
KIND_ROLES: dict[str, str] = {
    "manual": "coregistration",
    "auto": "coregistration_auto",
    "digital_twin": "functional_properties",  # from the digital twin in every release
    "functional_properties": "functional_properties",
}


def complete_spec(
    spec: TableSpec, angle_units: str | None = None, angle_convention: str | None = None
) -> TableSpec:
    """Complete the registry entry of a table with angle attributes passed by the caller."""
    for argument, value in (("angle_units", angle_units), ("angle_convention", angle_convention)):
        known = getattr(spec, argument)
        if value is not None and known not in (None, value):
            raise SchemaError(
                f"{argument} of {spec.name} is {known!r} in the registry, not {value!r}: omit the "
                "argument and use mx.angles.convert on the result"
            )
    return replace(
        spec,
        angle_units=angle_units or spec.angle_units,
        angle_convention=angle_convention or spec.angle_convention,
    )


def table_variable(column: pd.Series, spec: TableSpec) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a column with one value per row, and its attributes in the data model."""
    name = str(column.name)
    declared = FUNCTIONAL.get(name) or UNITS.get(name)
    as_float = declared is not None and declared.dtype == "float" and len(declared.dims) == 1
    values = plain_values(column, spec.name, as_float=as_float)
    attrs = {} if declared is None else describe(declared)
    if name in PERIODS and values.dtype.kind in "if":
        # Integers become floats, too, because the missing value -1 would be a valid angle.
        values = plain_values(column, spec.name, as_float=True)
        attrs |= _angle_attrs(name, spec, values)
    return values, attrs


def _angle_attrs(name: str, spec: TableSpec, values: np.ndarray) -> dict[str, Any]:
    if spec.angle_units is None or spec.angle_convention is None:
        raise SchemaError(
            f"{spec.name}.{name} is an angle, but neither the registry nor the call states its "
            "units and convention: pass angle_units= ('degree' or 'radian') and angle_convention= "
            "('up_clockwise' or 'right_counterclockwise'), or drop the column"
        )
    require_likely_units(values, spec.angle_units, f"{spec.name}.{name}")
    attrs = angle_attrs(spec.angle_units, spec.angle_convention, name)
    # Degrees in a table of radians exceed the period, as do directions among orientations.
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    if largest > attrs["period"] * (1 + 1e-6):
        raise SchemaError(
            f"{spec.name}.{name} holds {largest:g}, expected {spec.angle_units}s within "
            f"{attrs['period']:g}: correct the stated units, or the name of the column"
        )
    return attrs


def label_rows(rows: xr.Dataset, neurons: xr.Dataset, dim: str) -> xr.Dataset:
    """Return rows with the labels of `neurons` (units, or other rows), else "unknown"."""
    known_names = neurons.coords if "scan_unit" in neurons.dims else neurons.variables
    names = [n for n in LABELS if n in known_names and n not in rows.variables]
    if not names:
        return rows
    known, first = np.unique(neurons["nucleus_id"].values, return_index=True)
    place = pd.Index(known).get_indexer(rows["nucleus_id"].values)
    coords = {}
    for name in names:
        # Place -1, of a row whose neuron is not known, selects the word at the end.
        words = np.append(neurons[name].values.astype(object)[first], MISSING_TEXT)
        coords[name] = (dim, words[place], describe(FUNCTIONAL[name]))
    return rows.assign_coords(coords)


def missing_value(name: str, dtype: np.dtype) -> Any:
    """Return the missing value of a variable of the data model."""
    if dtype.kind == "i":
        zero = name == "pt_root_id" or (name in UNITS and UNITS[name].missing == "0")
        return 0 if zero else -1
    return np.nan if dtype.kind in "fc" else MISSING_TEXT


def take_rows(values: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    """Return the values of some rows of a variable, the missing value for row -1."""
    values = plain_array(values, name)
    absent = rows < 0
    if values.dtype == bool and absent.any():
        values = np.where(values, "true", "false").astype(object)
    missing = missing_value(name, values.dtype)
    if not len(values):
        return np.full((len(rows), *values.shape[1:]), missing, dtype=values.dtype)
    result = values[rows]
    if absent.any():
        result[absent] = missing
    return result


def build_functional(
    table: pd.DataFrame,
    spec: TableSpec,
    *,
    datastack: str,
    version: int,
    min_score: float | None = None,
    max_residual: float | None = None,
    angle_units: str | None = None,
    angle_convention: str | None = None,
    nuclei: pd.DataFrame | None = None,
) -> xr.Dataset:
    """Turn a table of matched or measured units into a Dataset over ``scan_unit``."""
    spec = complete_spec(spec, angle_units, angle_convention)
    ids = {**SCAN_IDS, "target_id": -1, "pt_root_id": 0}
    table = with_target_ids(valid_rows(table, spec.name), spec, nuclei)
    typed = typed_table(table, spec, ids, optional=["pt_root_id"])
    if nuclei is not None:
        require_shared_ids(typed["target_id"], nuclei["id"], f"{spec.name}.target_id")
    n_rows, n_invalid = len(typed), typed.attrs.get(INVALID)
    keys = [*SCAN_KEYS, "target_id"]
    # Rates, which some tables store as text, and other lists.
    arrays = [
        name
        for name, values in typed.items()
        if (name in FUNCTIONAL and len(FUNCTIONAL[name].dims) > 1)
        or (values.dtype == object and values.map(pd.api.types.is_list_like).any())
    ]
    further = [c for c in typed.columns if c not in {*keys, *arrays, *HOUSEKEEPING}]
    typed, contradicted = latest_by(typed, spec.name, keys, further)
    n_repeated = n_rows - len(typed)
    for column, bound, sign in (("score", min_score, 1), ("residual", max_residual, -1)):
        if bound is None:
            continue
        if column not in typed:
            raise SchemaError(
                f"{spec.name} has no column {column!r} to filter by, found {list(typed.columns)}: "
                "only automatic coregistrations have one"
            )
        typed = typed[sign * table_variable(typed[column], spec)[0] >= sign * bound]

    typed = typed.rename(columns={"target_id": "nucleus_id"})
    names = ["nucleus_id", *SCAN_KEYS, *further]
    dataset = xr.Dataset({n: ("scan_unit", *table_variable(typed[n], spec)) for n in names})
    dataset = with_labels(dataset)
    dataset.attrs = {
        "functional_table": spec.name,
        "n_rows_in_table": n_rows,
        "n_repeated_rows": n_repeated,
    }
    if n_invalid:
        dataset.attrs[INVALID] = n_invalid
    if contradicted:
        dataset.attrs["n_contradicting_rows"] = contradicted
    if left_out := [c for c in arrays if c not in HOUSEKEEPING]:
        dataset.attrs["columns_left_out"] = left_out
    dataset = stamp_release(dataset, datastack, version)
    return add_history(dataset, f"functional from {spec.name}")


# Tables of tuning curves.

_DIM = {"rate_dir": "direction", "rate_ori": "orientation"}
# Neurons come from the coregistration; a table may be of another release.
_NEURON_IDS = ("nucleus_id", "target_id", "pt_root_id", "root_id", "valid_id")


def rate_variables(table: pd.DataFrame, spec: TableSpec) -> xr.Dataset:
    """Return ``rate_dir`` and ``rate_ori`` of a table, over their angles."""
    names = [n for n in _DIM if n in table.columns]
    if not names:
        require_columns(table, spec.name, list(_DIM))
    if spec.angle_convention is None:
        raise SchemaError(
            f"{spec.name} has rates by angle, but neither the registry nor the call states the "
            "convention: pass angle_convention='up_clockwise' or 'right_counterclockwise'"
        )
    rates = xr.Dataset()
    for name in names:
        dim, values = _DIM[name], parse_arrays(table[name], spec.name)
        values[~np.isfinite(values).all(axis=1)] = np.nan  # a unit has all of its rates or none
        attrs = angle_attrs("degree", spec.angle_convention, dim)
        angles = np.arange(values.shape[1]) * (attrs["period"] / values.shape[1])
        rates.coords[dim] = (dim, angles, {**attrs, "long_name": f"stimulus {dim}"})
        rates[name] = (("scan_unit", dim), values, describe(FUNCTIONAL[name]))
    if len(names) == 2:
        _require_agreement(rates["rate_dir"].values, rates["rate_ori"].values, spec.name)
    return rates


def _add_further_columns(curves: xr.Dataset, table: pd.DataFrame, spec: TableSpec) -> list[str]:
    """Add the other columns of a table of rates; return the names of those that cannot be used."""
    sizes = {str(dim): n for dim, n in curves.sizes.items() if dim != "scan_unit"}
    skipped = {*_DIM, *_DIM.values(), *SCAN_KEYS, *_NEURON_IDS, *HOUSEKEEPING}
    left_out = []
    for column in [c for c in map(str, table.columns) if c not in skipped]:
        no_units = column in PERIODS and None in (spec.angle_units, spec.angle_convention)
        try:
            if no_units:
                raise SchemaError("an angle without units or convention")
            if (array := array_column(table[column], spec.name, sizes)) is not None:
                curves[column] = (("scan_unit", array[0]), array[1], {"long_name": column})
            else:
                curves[column] = ("scan_unit", *table_variable(table[column], spec))
        except SchemaError as error:
            if column in PERIODS and not no_units:
                raise
            logger.info("%s.%s is left out: %s", spec.name, column, error)
            left_out.append(column)
    return left_out


def array_column(
    column: pd.Series, table: str, sizes: Mapping[str, int]
) -> tuple[str, np.ndarray] | None:
    """Read a column of arrays, or of arrays as text; None if it holds something else."""
    present = column[column.notna()] if column.dtype == object else column[:0]
    is_array = present.map(
        lambda v: v.lstrip().startswith("[") if isinstance(v, str) else np.ndim(v) == 1
    )
    if not len(present) or not is_array.all():
        return None
    try:
        values = parse_arrays(column, table)
    except SchemaError:
        if pd.api.types.infer_dtype(present, skipna=True) == "string":
            return None  # text that only begins like an array
        raise
    # Such as errors of rates, one per angle.
    dims = [dim for dim, size in sizes.items() if size == values.shape[1]]
    return (dims or [f"{column.name}_number"])[0], values


def _require_agreement(rate_dir: np.ndarray, rate_ori: np.ndarray, name: str) -> None:
    wrong = np.ones(len(rate_dir), dtype=bool)
    if rate_dir.shape[1] == 2 * rate_ori.shape[1]:
        folded = rate_dir.reshape(len(rate_dir), 2, -1).mean(axis=1)
        # Tables store float32 rates with eight digits.
        wrong = (np.abs(folded - rate_ori) > 1e-4 * np.maximum(1.0, np.abs(rate_ori))).any(axis=1)
    if wrong.any():
        raise SchemaError(
            f"{name} row {np.argmax(wrong)}: rate_ori is not the mean of rate_dir over opposite "
            f"directions ({wrong.sum()} rows): the columns are shifted, or from different tables"
        )


def match_units(curves: xr.Dataset, coregistration: xr.Dataset) -> xr.Dataset:
    """Match units to neurons, sorted; a unit with several nuclei gets one row per nucleus."""
    keys = list(SCAN_KEYS)
    match = pd.DataFrame({k: coregistration[k].values for k in [*keys, "nucleus_id"]})
    match = match[match["nucleus_id"] >= 0].drop_duplicates()
    # Nullable integers, so that unmatched units do not convert the ids to float.
    match["nucleus_id"] = match["nucleus_id"].astype("Int64")
    rows = pd.DataFrame({k: curves[k].values for k in keys})
    rows = rows.assign(row=np.arange(len(rows))).merge(match, on=keys, how="left")
    rows["nucleus_id"] = rows["nucleus_id"].fillna(-1).astype(np.int64)
    rows = rows.sort_values([*keys, "nucleus_id"])
    ids = ("scan_unit", rows["nucleus_id"].to_numpy(), describe(FUNCTIONAL["nucleus_id"]))
    result = curves.isel(scan_unit=rows["row"].to_numpy()).assign_coords(nucleus_id=ids)
    result = label_rows(result, coregistration, "scan_unit")
    result.attrs["coregistration_table"] = coregistration.attrs.get("functional_table", "unknown")
    n_unmatched = int((rows["nucleus_id"] < 0).sum())
    if n_unmatched == len(rows) > 0:
        warn_of_dropped_rows(
            f"none of the {len(rows)} recorded units is matched to a neuron in "
            f"{result.attrs['coregistration_table']}, so that no neuron has rates: check session, "
            "scan_idx and unit_id, and pass tables of the same datastack"
        )
    result.attrs["n_unmatched"] = n_unmatched
    return stamp_release(result, *release_of(coregistration, "coregistration"))


def build_tuning_curves(
    table: pd.DataFrame, spec: TableSpec, coregistration: xr.Dataset
) -> xr.Dataset:
    """Turn a table of tuning curves into a Dataset over ``scan_unit``."""
    typed = typed_table(valid_rows(table, spec.name), spec, SCAN_IDS, unique=SCAN_KEYS)
    curves = rate_variables(typed, spec).assign_attrs(tuning_table=spec.name)
    for key in SCAN_KEYS:
        curves.coords[key] = ("scan_unit", typed[key].to_numpy(), describe(FUNCTIONAL[key]))
    left_out = _add_further_columns(curves, typed, spec)
    curves = with_labels(curves)
    if INVALID in typed.attrs:
        curves.attrs[INVALID] = typed.attrs[INVALID]
    if left_out:
        curves.attrs["columns_left_out"] = left_out
    curves = match_units(curves, coregistration)
    counts = (len(typed), curves.attrs["n_unmatched"])
    text = "tuning curves of %s v%d: %d units, %d without a matching neuron"
    logger.info(text, *release_of(curves), *counts)
    return add_history(curves, f"tuning curves from {spec.name}", source=coregistration)


# From one row per recorded unit to one row per neuron.


def collapse_scans(
    functional: xr.Dataset,
    how: Literal["mean", "best", "first"] = "mean",
    by: str | None = None,
    *,
    lowest: bool | None = None,
) -> xr.Dataset:
    """Combine rows of recorded units into one row per neuron.

    Parameters
    ----------
    functional : xarray.Dataset
        One row per recorded unit, dim ``scan_unit``.
    how : {"mean", "best", "first"}, optional
        ``mean`` averages the rates over all units of a neuron that have them, and drops other
        variables; ``best`` takes all variables from the unit with the best `by`, ``first`` from the
        first unit by (session, scan_idx, unit_id).
    by : str, optional
        Variable or coordinate for ``best``, such as ``"cc_abs"``, ``"score"``, ``"residual"`` or
        ``"session"``: one number per unit, but not an angle.
    lowest : bool, optional
        Whether the lowest `by` is the best; by default only for ``residual``.

    Returns
    -------
    xarray.Dataset
        Dim ``nucleus_id``, sorted, unique: the variables, ``n_scans``, ``n_scan_units`` and, if
        there are rates, ``n_rated``, the number of units that contribute rates. The labels of the
        neurons (``cell_type``, ``layer`` ...) stay coordinates, as do, for ``best`` and ``first``,
        ``session``, ``scan_idx``, ``unit_id`` and other labels of the chosen unit.

    Raises
    ------
    SchemaError
        If `by` is missing for ``best`` or is not one number per unit, if there are only angles,
        which have no arithmetic mean, for ``mean``, or if a row (a unit and its nucleus) is
        repeated.
    UnknownLabelError
        If `by` is not a variable of the Dataset.
    ReleaseMismatchError
        If the rows come from several releases.

    Notes
    -----
    Only units with complete values are considered: for ``best`` those with a finite `by` (for
    integers, other than the missing value -1), and if the Dataset has rates, those whose ``rate``
    or ``rate_*`` are finite at all stimuli. Neurons without such a unit get missing values: NaN, -1
    (0 for ``pt_root_id``), "unknown"; booleans then become the words "true", "false" and "unknown".
    Ties go to the lowest (session, scan_idx, unit_id). Units without a nucleus (``nucleus_id`` -1)
    are dropped.

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
    require_one_of("how", how, ("mean", "best", "first"))
    if by is None and (how == "best" or lowest is not None):
        what = "how='best'" if how == "best" else f"lowest={lowest}"
        raise SchemaError(f"{what} requires by=, the variable to compare units by, and how='best'")
    if how != "best" and by is not None:
        raise SchemaError(f"by={by!r} requires how='best', found how={how!r}")
    if isinstance(functional.indexes.get("scan_unit"), pd.MultiIndex):
        functional = functional.reset_index("scan_unit")
    require_same_release(("functional", functional))
    rows = pd.DataFrame({k: functional[k].values for k in ("nucleus_id", *SCAN_KEYS)})
    if (repeated := rows.duplicated()).any():
        first = tuple(rows.loc[repeated, [*SCAN_KEYS, "nucleus_id"]].iloc[0].tolist())
        raise SchemaError(
            f"functional repeats {int(repeated.sum())} of {len(rows)} rows (session, scan_idx, "
            f"unit_id, nucleus_id), first: {first}, expected each row once: they would count "
            "twice; drop rows that were joined along scan_unit from two tables"
        )
    if by is not None:
        if is_angle(column_of(functional, by, "functional", dim="scan_unit", kinds="biuf")):
            raise SchemaError(f"by={by!r} is an angle, expected numbers that have an order")
        lowest = by == "residual" if lowest is None else lowest
    angles = [str(n) for n in functional.data_vars if is_angle(functional[n])]
    for name, variable in functional.data_vars.items():
        require_likely_angle(variable, str(name))
    rates = _rates(functional)
    if how == "mean" and angles and not rates:
        raise SchemaError(
            f"how='mean' cannot average the angles {angles}: select other variables with "
            "functional[['rate_ori']], or use how='best', by=..."
        )
    rows = rows[rows["nucleus_id"] >= 0].sort_values(list(rows.columns))
    functional = functional.isel(scan_unit=rows.index.to_numpy())
    nuclei, owner = np.unique(rows["nucleus_id"], return_inverse=True)

    functional = functional.assign({n: functional[n].astype(np.float64) for n in rates})
    candidate = _has_rates(functional, rates)
    if by is not None:
        values = functional[by].values
        missing = missing_value(by, values.dtype) if values.dtype.kind == "i" else np.nan
        candidate &= np.isfinite(values) & (values != missing)
    candidates, owner = functional.isel(scan_unit=candidate), owner[candidate]
    if how == "mean":
        n_rated = np.bincount(owner, minlength=len(nuclei))
        result = _mean_rates(candidates, rates, nuclei, owner)
    else:
        result = _select_units(candidates, nuclei, owner, by, bool(lowest))
        n_rated = _has_rates(result, rates)
    scans = rows.drop_duplicates(["nucleus_id", "session", "scan_idx"])
    counts = {
        "n_scans": scans.groupby("nucleus_id").size(),
        "n_scan_units": rows.groupby("nucleus_id").size(),
        **({"n_rated": n_rated} if rates else {}),
    }
    for name, count in counts.items():
        result[name] = ("nucleus_id", np.asarray(count, dtype=np.int64))
    release = {c: functional.coords[c] for c in RELEASE_COORDS if c in functional.coords}
    # Also of neurons of which no unit was chosen.
    result = result.drop_vars([n for n in LABELS if n in functional.coords], errors="ignore")
    result = label_rows(result, functional, "nucleus_id").assign_coords(release)
    collapse = how if by is None else f"{how} by {by}" + (" (lowest)" if lowest else "")
    result.attrs = {**functional.attrs, **result.attrs, "collapse": collapse}
    return add_history(result, f"collapse_scans(how={how!r}, by={by!r})", source=functional)


def _rates(functional: xr.Dataset) -> list[str]:
    """Return the variables that are rates by stimulus rather than one number per unit."""
    return [
        str(n)
        for n, v in functional.data_vars.items()
        if (n == "rate" or str(n).startswith("rate_"))
        and "error" not in str(n)  # standard errors have no arithmetic mean
        and v.ndim == 2
        and v.dims[0] == "scan_unit"
        and v.dtype.kind in "iuf"
    ]


def _has_rates(functional: xr.Dataset, rates: list[str]) -> np.ndarray:
    """Return which rows have finite rates at all stimuli."""
    rated = np.ones(functional["nucleus_id"].shape, dtype=bool)
    for name in rates:
        rated &= np.isfinite(functional[name].values).all(axis=-1)
    return rated


def _mean_rates(
    functional: xr.Dataset, rates: list[str], nuclei: np.ndarray, owner: np.ndarray
) -> xr.Dataset:
    n = np.bincount(owner, minlength=len(nuclei))[:, None]
    variables = {}
    for name in rates:
        values = functional[name].values
        total = np.zeros((len(nuclei), values.shape[1]))
        np.add.at(total, owner, values)
        mean = np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)
        variables[name] = (("nucleus_id", functional[name].dims[1]), mean, functional[name].attrs)
    angles = [d for d in functional.dims if d != "scan_unit" and d in functional.coords]
    coords = {"nucleus_id": nuclei, **{d: functional.coords[d] for d in angles}}
    result = xr.Dataset(variables, coords=coords)
    kept = {*rates, *LABELS, *SCAN_KEYS, "nucleus_id", "scan_unit"}
    others = {str(n) for n, v in functional.variables.items() if "scan_unit" in v.dims} - kept
    if left_out := sorted(others):
        result.attrs["left_out"] = left_out
    return result


def _select_units(
    functional: xr.Dataset, nuclei: np.ndarray, owner: np.ndarray, by: str | None, lowest: bool
) -> xr.Dataset:
    # The rows are in (nucleus, session, scan_idx, unit_id) order, and the sort is stable, so ties
    # go to the first row of a neuron.
    rank = np.zeros(len(owner), dtype=np.int64)
    if by is not None:
        # Ordinal ranks, because unsigned numbers and booleans cannot be negated.
        rank = np.unique(functional[by].values, return_inverse=True)[1] * (1 if lowest else -1)
    order = np.lexsort([rank, owner])
    order = order[np.unique(owner[order], return_index=True)[1]]
    rows = np.full(len(nuclei), -1)
    rows[owner[order]] = order
    result = functional.drop_dims("scan_unit")
    for name, variable in functional.variables.items():
        if name != "nucleus_id" and "scan_unit" in variable.dims:
            variable = variable.transpose("scan_unit", ...)
            values = take_rows(variable.values, rows, str(name))
            assign = result.assign_coords if name in functional.coords else result.assign
            result = assign({name: (("nucleus_id", *variable.dims[1:]), values, variable.attrs)})
    ids = ("nucleus_id", nuclei, functional["nucleus_id"].attrs)
    return result.assign_coords(nucleus_id=ids)
