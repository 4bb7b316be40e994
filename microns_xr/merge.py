"""Joining further tables to units or to functional rows, without repeating a neuron."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import AngleConvention, is_angle, require_same_angles
from microns_xr.columns import (
    id_column,
    plain_array,
    plain_values,
    require_columns,
)
from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS, add_history, require_same_release
from microns_xr.releases import TableSpec, table_spec
from microns_xr.schema import FUNCTIONAL, UNITS, describe
from microns_xr.tables import HOUSEKEEPING, SCAN_KEYS
from microns_xr.tuning.functional import (
    ANGLES,
    angle_attrs,
    missing_value,
    rate_variables,
    stated_spec,
)

On = Literal["nucleus_id", "pt_root_id", "functional"]

_RATE_NAMES = ("rate_ori", "rate_dir")


def merge_table(
    dataset: xr.Dataset,
    table: pd.DataFrame | xr.Dataset,
    columns: list[str] | str | None = None,
    on: On = "nucleus_id",
    how: Literal["left", "inner"] = "left",
    *,
    angle_units: Literal["degree", "radian"] | None = None,
    angle_convention: AngleConvention | None = None,
) -> xr.Dataset:
    """Add columns of a table to units, or to functional rows.

    Parameters
    ----------
    dataset : xarray.Dataset
        Units (dim ``nucleus_id``) or functional rows (dim ``scan_unit``).
    table : pandas.DataFrame or xarray.Dataset
        What is added. A DataFrame has the key among its columns; a Dataset is units or functional
        rows of the same release.
    columns : list of str, optional
        Which columns; by default all but keys, ids and service columns.
    on : {"nucleus_id", "pt_root_id", "functional"}, optional
        ``nucleus_id`` matches the nucleus (``target_id`` of the annotation tables);
        ``functional`` matches (session, scan_idx, unit_id); ``pt_root_id`` the segment, which is
        the same neuron within one release only.
    how : {"left", "inner"}, optional
        ``left`` keeps every row of `dataset`; ``inner`` keeps those with a match.
    angle_units, angle_convention : str, optional
        What the angles of a DataFrame are in that is not in the registry.

    Returns
    -------
    xarray.Dataset
        A new Dataset; the inputs are not changed. Rows without a match have -1 in integer columns,
        NaN in floats, "unknown" in text; booleans with rows that lack a match become the words
        "true", "false" and "unknown".

    Raises
    ------
    SchemaError
        If the key is absent or made of floats; if the table has several rows for one row of
        `dataset` (the join would repeat a neuron); if a column is there already; if an angle does
        not state its convention, or states another one than `dataset` has; if `angle_units` or
        `angle_convention` contradict the registry; if a column holds lists or is there twice.
    ReleaseMismatchError
        If both are Datasets of different releases.

    Examples
    --------
    >>> units = xr.Dataset(coords={"nucleus_id": [3, 5]})
    >>> table = pd.DataFrame({"target_id": [5, 9], "n_spines": [12, 30]})
    >>> merge_table(units, table).n_spines.values
    array([-1, 12])
    >>> repeated = pd.DataFrame({"target_id": [5, 5], "score": [0.5, 1.5]})
    >>> merge_table(units, repeated)
    Traceback (most recent call last):
    microns_xr.errors.SchemaError: the table has several rows for 1 nucleus_id of the units, ...
    """
    if how not in ("left", "inner"):
        raise SchemaError(f"how is {how!r}, expected 'left' or 'inner': units are never invented")
    dim = _row_dim(dataset)
    if isinstance(table, xr.Dataset):
        require_same_release(("dataset", dataset), ("table", table))
        variables, coords, right = _from_dataset(table, columns, on)
    else:
        variables, coords, right = _from_frame(table, columns, on, angle_units, angle_convention)
    left = _left_keys(dataset, dim, on)
    if on == "functional":
        right = _equal_rows_once(right, variables)
    rows = _match(left, right, dim, on)
    present = [n for n in variables if n in dataset.variables]
    if present:
        raise SchemaError(
            f"{present} are in the {_kind(dim)} already: rename them in the table, "
            "choose others with columns=, or drop them first with .drop_vars"
        )
    _check_angles(dataset, variables, coords)
    if how == "inner":
        dataset, rows = dataset.isel({dim: np.flatnonzero(rows >= 0)}), rows[rows >= 0]
    added = {
        name: ((dim, *dims), _take(values, rows, name), attrs)
        for name, (dims, values, attrs) in variables.items()
    }
    for name in coords:
        if name in dataset.coords and not np.array_equal(dataset[name].values, coords[name].values):
            raise SchemaError(
                f"the table has {coords[name].values} along {name}, the {_kind(dim)} have "
                f"{dataset[name].values}: rates of different stimuli cannot share a dimension"
            )
    result = dataset.assign(added).assign_coords(coords)
    return add_history(result, f"merge_table({sorted(added)}, on={on!r}, how={how!r})")


def _kind(dim: str) -> str:
    return "units" if dim == "nucleus_id" else "functional rows"


def _row_dim(dataset: xr.Dataset) -> str:
    if not isinstance(dataset, xr.Dataset):
        raise SchemaError(
            f"dataset is a {type(dataset).__name__}, expected units or functional rows"
        )
    for dim in ("scan_unit", "nucleus_id"):
        if dim in dataset.dims:
            return dim
    raise SchemaError(
        f"dataset has dims {tuple(dataset.dims)}, expected units (nucleus_id) or functional rows "
        "(scan_unit)"
    )


def _key_names(on: On) -> list[str]:
    names = {
        "nucleus_id": ["nucleus_id"],
        "pt_root_id": ["pt_root_id"],
        "functional": list(SCAN_KEYS),
    }
    if on not in names:
        raise SchemaError(f"on is {on!r}, expected 'nucleus_id', 'pt_root_id' or 'functional'")
    return names[on]


def _left_keys(dataset: xr.Dataset, dim: str, on: On) -> pd.DataFrame:
    names = _key_names(on)
    absent = [n for n in names if n not in dataset.variables]
    if absent:
        way_out = (
            ": build units with functional='best_only', or merge onto Release.functional() and "
            "lead to units with mx.tuning.collapse_scans"
            if on == "functional"
            else ""
        )
        raise SchemaError(f"the {_kind(dim)} have no {absent} to join on={on!r}{way_out}")
    return pd.DataFrame({n: dataset[n].values for n in names})


Variables = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]


def _from_dataset(
    table: xr.Dataset, columns: list[str] | str | None, on: On
) -> tuple[Variables, dict[str, xr.DataArray], pd.DataFrame]:
    dim = _row_dim(table)
    right = _left_keys(table, dim, on)
    skipped = {*RELEASE_COORDS, *SCAN_KEYS, "nucleus_id", "pt_root_id"}
    names = _chosen(columns, [str(n) for n in table.variables if dim in table[n].dims], skipped)
    variables: Variables = {}
    coords: dict[str, xr.DataArray] = {}
    for name in names:
        dims = tuple(str(d) for d in table[name].dims if d != dim)
        values = table[name].transpose(dim, ...).values
        if name in ANGLES and values.dtype.kind in "iu":
            values = values.astype(np.float64)  # -1 would be an angle, NaN is none
        variables[name] = (dims, values, dict(table[name].attrs))
        coords.update({d: table.coords[d] for d in dims if d in table.coords})
    return variables, {k: v.reset_coords(drop=True) for k, v in coords.items()}, right


def _chosen(columns: list[str] | str | None, found: list[str], skipped: set[str]) -> list[str]:
    if columns is None:
        return [n for n in found if n not in skipped]
    wanted = [columns] if isinstance(columns, str) else list(columns)
    require_columns(pd.DataFrame(columns=found), "table", wanted)
    return wanted


def _from_frame(
    table: pd.DataFrame,
    columns: list[str] | str | None,
    on: On,
    angle_units: str | None,
    angle_convention: str | None,
) -> tuple[Variables, dict[str, xr.DataArray], pd.DataFrame]:
    if not isinstance(table, pd.DataFrame):
        raise SchemaError(f"table is a {type(table).__name__}, expected a DataFrame or a Dataset")
    name = str(table.attrs.get("table", "table"))
    spec = stated_spec(table_spec(name), angle_units, angle_convention)
    table = table.copy(deep=False)
    table.columns = pd.Index([str(c) for c in table.columns], dtype=object)
    keys = _key_names(on)
    key_columns = list(keys)
    if on == "nucleus_id" and "nucleus_id" not in table.columns:
        # Annotation tables call the nucleus target_id; the nucleus table itself calls it id.
        key_columns = ["target_id" if "target_id" in table.columns else "id"]
        if key_columns == ["id"] and not str(name).startswith("nucleus_detection"):
            key_columns = ["target_id"]
    require_columns(table, name, key_columns)
    right = pd.DataFrame(
        {
            key: id_column(table[column], name, nullable=True)
            for key, column in zip(keys, key_columns, strict=True)
        }
    ).reset_index(drop=True)
    skipped = {
        *HOUSEKEEPING,
        *SCAN_KEYS,
        *key_columns,
        "target_id",
        "nucleus_id",
        "pt_root_id",
        "valid_id",
    }
    names = _chosen(columns, table.columns.tolist(), skipped - set(HOUSEKEEPING & {"volume"}))
    require_columns(table, name, names)
    variables: Variables = {}
    coords: dict[str, xr.DataArray] = {}
    rates = [n for n in names if n in _RATE_NAMES]
    if rates:
        parsed, angles = rate_variables(table[rates], spec)
        variables.update({n: (v[0][1:], v[1], v[2]) for n, v in parsed.items()})
        coords.update({n: xr.DataArray(v[1], dims=v[0], attrs=v[2]) for n, v in angles.items()})
    for column in names:
        if column in rates:
            continue
        values = plain_values(table[column], name, as_float=column in ("pref_ori", "pref_dir"))
        if column in ANGLES and values.dtype.kind == "i":
            values = plain_values(table[column], name, as_float=True)
        variables[column] = ((), values, _column_attrs(column, values, spec))
    return variables, coords, right


def _column_attrs(column: str, values: np.ndarray, spec: TableSpec) -> dict[str, Any]:
    attrs = describe(FUNCTIONAL[column]) if column in FUNCTIONAL else {}
    if not attrs and column in UNITS:
        attrs = describe(UNITS[column])
    if column in ANGLES and values.dtype.kind == "f":
        attrs.update(angle_attrs(column, spec, values))
    return attrs


def _match(left: pd.DataFrame, right: pd.DataFrame, dim: str, on: On) -> np.ndarray:
    """Row of the table for each row of the Dataset, -1 where there is none."""
    keys = list(left.columns)
    right = right.assign(row=np.arange(len(right))).dropna(subset=keys).astype(np.int64)
    # 0 is no segment and -1 no nucleus or unit: they never match each other.
    floor = 1 if on == "pt_root_id" else 0
    left_rows = left.assign(left_row=np.arange(len(left)))
    for key in keys:
        right = right[right[key] >= floor]
        left_rows = left_rows[left_rows[key] >= floor]
    repeated = right[right.duplicated(keys, keep=False)]
    hit = repeated.merge(left_rows, on=keys) if len(repeated) else repeated
    if len(hit):
        n = len(hit.drop_duplicates(keys))
        what = "unit" if on == "functional" else on
        raise SchemaError(
            f"the table has several rows for {n} {what} of the {_kind(dim)}, so the join would "
            "repeat them: lead to one row per neuron first with "
            "mx.tuning.collapse_scans, join to the "
            "functional rows (Release.functional()) with on='functional', or drop repeated rows"
        )
    if dim == "nucleus_id" and on == "pt_root_id" and left["pt_root_id"].duplicated().any():
        raise SchemaError(
            "units repeat a pt_root_id: several nuclei share it, join on='nucleus_id'"
        )
    matched = left_rows.merge(right, on=keys, how="inner")
    rows = np.full(len(left), -1, dtype=np.int64)
    rows[matched["left_row"]] = matched["row"]
    return rows


def _equal_rows_once(right: pd.DataFrame, variables: Variables) -> pd.DataFrame:
    """Take a unit's row once where it is there for each of several nuclei, and says the same."""
    keys = list(right.columns)
    repeated = right.duplicated(keys).to_numpy(dtype=bool)
    if not repeated.any():
        return right
    number = right.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    first = np.unique(number, return_index=True)[1][number]
    for _, values, _ in variables.values():
        # NaN and NaN say the same; text is never NaN
        same = (values == values[first]) | ((values != values) & (values != values)[first])
        repeated = repeated & same.reshape(len(same), -1).all(axis=1)
    return right.mask(pd.Series(repeated, right.index), -1)  # -1 matches nothing


def _take(values: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    absent = rows < 0
    if not len(values):
        raise SchemaError(f"the table has no rows to take {name} from: check the file it came from")
    taken = plain_array(values[np.where(absent, 0, rows)], name)
    if not absent.any():
        return taken
    if taken.dtype == bool:
        taken = np.where(taken, "true", "false").astype(object)
    taken[absent] = missing_value(name, taken.dtype)
    return taken


def _is_angle(name: str, variable: Any) -> bool:
    """By what it states, or by its name: an angle that states nothing must not pass."""
    return is_angle(variable) or (name in ANGLES and variable.dtype.kind in "iuf")


def _check_angles(
    dataset: xr.Dataset, variables: Variables, coords: dict[str, xr.DataArray]
) -> None:
    new: list[tuple[str, Any]] = [
        (n, xr.Variable(("row", *dims), v, attrs)) for n, (dims, v, attrs) in variables.items()
    ]
    angles = [(n, v) for n, v in [*new, *coords.items()] if _is_angle(n, v)]
    if angles:
        old = [(str(n), v) for n, v in dataset.variables.items() if _is_angle(str(n), v)]
        require_same_angles([*old, *angles])
