"""Tuning curves: mean responses by direction of motion and by orientation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import is_angle
from microns_xr.columns import (
    MISSING_TEXT,
    parse_arrays,
    plain_array,
    plain_values,
    require_columns,
)
from microns_xr.errors import ReleaseMismatchError, SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import RELEASE_COORDS, add_history, release_of, stamp_release
from microns_xr.releases import TableSpec
from microns_xr.schema import FUNCTIONAL, UNITS, describe, validate
from microns_xr.tables import HOUSEKEEPING, SCAN_KEYS, latest_by, typed_table

# Which recorded unit is which neuron: rows of all scans, and what was measured of each.
#
# A neuron may be recorded in up to five scans, or twice within one. Those are several rows along
# ``scan_unit``; `microns_xr.tuning.collapse_scans` leads to one row a neuron along ``nucleus_id``.


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
                "argument out and use mx.angles.convert on the result"
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
    """Turn a table of matched or measured units into a Dataset over ``scan_unit``."""
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
    """Say which neuron each unit is."""
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


# From one row a recorded unit to one row a neuron.


# Variables that are better the lower they are.
LOWER_IS_BETTER = ("residual",)


def _rates(functional: xr.Dataset) -> list[str]:
    """Numbers by stimulus; a variable of one number a unit is no rate, whatever its name."""
    return [
        str(n)
        for n, v in functional.data_vars.items()
        if (n == "rate" or str(n).startswith("rate_"))
        and "error" not in str(n)  # standard errors have no arithmetic mean
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
    *,
    lowest: bool | None = None,
) -> xr.Dataset:
    """Lead from one row a recorded unit to one row a neuron.

    Parameters
    ----------
    functional : xarray.Dataset
        Rows of all scans, dim ``scan_unit``.
    how : {"mean", "best", "first"}, optional
        ``mean`` averages the rates of all rated units of a neuron, and nothing else; ``best``
        takes all variables from the unit with the best `by`; ``first`` from the first unit by
        (session, scan_idx, unit_id).
    by : str, optional
        Variable or coordinate that ``best`` chooses by, such as ``"cc_abs"``, ``"score"``,
        ``"residual"`` or ``"session"``: one number a unit that is no angle.
    lowest : bool, optional
        Whether the lowest `by` is the best; by default the highest is, but for ``residual``.

    Returns
    -------
    xarray.Dataset
        Dim ``nucleus_id``, sorted, unique: the variables (for ``best`` and ``first`` also
        ``session``, ``scan_idx``, ``unit_id``), ``n_scans``, ``n_scan_units`` and, where there are
        rates, ``n_rated``, the number of units the rates come from.

    Raises
    ------
    SchemaError
        If ``best`` has no `by` or one that is not one number a unit, if ``mean`` meets an angle,
        which has no arithmetic mean, or if a row (a unit and its nucleus) is there twice.
    UnknownLabelError
        If `by` is no variable of the Dataset.
    ReleaseMismatchError
        If the rows are of several releases.

    Notes
    -----
    Only units that have the value are considered: for ``best`` those with a finite `by` (of
    integers, one that is not the missing -1), and where the Dataset has rates, those that are
    rated: whose ``rate`` or ``rate_*`` are finite at all stimuli. Neurons without such a unit are
    left with missing values: NaN, -1 (0 for ``pt_root_id``), "unknown"; booleans then become the
    words "true", "false" and "unknown". Ties are decided by (session, scan_idx, unit_id), the
    lowest first.
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
    if lowest is not None and by is None:
        raise SchemaError(f"lowest={lowest} has a meaning with by= only")
    functional = _plain_rows(functional)
    if by is not None:
        _require_orderable(functional, by)
        lowest = by in LOWER_IS_BETTER if lowest is None else lowest
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
            values = functional[by].values
            missing = missing_value(by, values.dtype) if values.dtype.kind == "i" else np.nan
            candidate &= np.isfinite(values) & (values != missing)
        result = _chosen_units(functional, owner, candidate, nuclei, by, bool(lowest))
        n_rated = _rated(result, rates).astype(np.int64)
    scans = pd.DataFrame({"owner": owner, **{k: functional[k].values for k in SCAN_KEYS[:2]}})
    n_scans = np.bincount(scans.drop_duplicates()["owner"], minlength=len(nuclei))
    counts = {"n_scans": n_scans, "n_scan_units": np.bincount(owner, minlength=len(nuclei))}
    if rates:
        counts["n_rated"] = n_rated
    result = result.assign(
        {n: ("nucleus_id", v.astype(np.int64)) for n, v in counts.items()}
    ).assign_coords({c: functional.coords[c] for c in RELEASE_COORDS if c in functional.coords})
    collapse = how if by is None else f"{how} by {by}" + (" (lowest)" if lowest else "")
    result.attrs = {**functional.attrs, **result.attrs, "collapse": collapse}
    return add_history(result, f"collapse_scans(how={how!r}, by={by!r})", source=functional)


def _plain_rows(functional: xr.Dataset) -> xr.Dataset:
    """Undo an index over the keys; refuse rows of several releases, and rows given twice."""
    if isinstance(functional.indexes.get("scan_unit"), pd.MultiIndex):
        functional = functional.reset_index("scan_unit")
    for coord in RELEASE_COORDS:
        if coord in functional.coords and functional[coord].ndim:
            raise ReleaseMismatchError(
                f"functional has {coord!r} along {functional[coord].dims}, expected one scalar: "
                "rows of several releases were joined; collapse each release by itself"
            )
    rows = pd.DataFrame({k: functional[k].values for k in (*SCAN_KEYS, "nucleus_id")})
    repeated = rows.duplicated()
    if repeated.any():
        first = tuple(rows[repeated].iloc[0].tolist())
        raise SchemaError(
            f"functional repeats {int(repeated.sum())} of {len(rows)} rows (session, scan_idx, "
            f"unit_id, nucleus_id), first: {first}: they would count twice; two tables were "
            "joined along scan_unit, keep each row once"
        )
    return functional


def _require_orderable(functional: xr.Dataset, by: str) -> None:
    """Raise unless `by` is one number a unit, and no angle."""
    if by not in functional.variables:
        near = ", ".join(nearest_words(by, functional.variables))
        raise UnknownLabelError(
            f"by={by!r} is no variable of the functional Dataset, "
            f"found {list(functional.data_vars)}" + (f"; nearest: {near}" if near else "")
        )
    values = functional[by]
    if values.dims != ("scan_unit",) or values.dtype.kind not in "biuf":
        raise SchemaError(
            f"by={by!r} has dims {values.dims} and dtype {values.dtype}, expected "
            "one number a unit to choose by"
        )
    if is_angle(values):
        raise SchemaError(f"by={by!r} is an angle: on a circle none is the highest or lowest")


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
    lowest: bool,
) -> xr.Dataset:
    # The rows are in (nucleus, session, scan_idx, unit_id) order, and the sort is stable: among
    # equals the first row of a neuron wins.
    rank = np.zeros(len(owner), dtype=np.int64)
    if by is not None:
        # Ordinals, because unsigned numbers and booleans have no negative.
        rank = np.unique(functional[by].values, return_inverse=True)[1] * (1 if lowest else -1)
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


_DIM = {"rate_dir": "direction", "rate_ori": "orientation"}
_TURN = {"rate_dir": 360.0, "rate_ori": 180.0}


def rate_variables(
    table: pd.DataFrame, spec: TableSpec
) -> tuple[dict[str, tuple[tuple[str, str], np.ndarray, dict[str, Any]]], dict[str, Any]]:
    """Read ``rate_dir`` and ``rate_ori`` of a table as variables with their angle coordinates."""
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
    """Turn a table of tuning curves into a Dataset over ``scan_unit``."""
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
