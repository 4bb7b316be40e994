"""Join further tables to units or to functional rows, without repeating rows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import (
    PERIODS,
    AngleConvention,
    AngleUnits,
    is_angle,
    require_likely_angle,
    require_same_angles,
)
from microns_xr.columns import as_ids, require_columns
from microns_xr.errors import (
    SchemaError,
    answer_old_keywords,
    names_of,
    nearest,
    require_instance,
    require_one_of,
    warn_of_dropped_rows,
)
from microns_xr.frames import RESOLUTION, as_resolution
from microns_xr.provenance import RELEASE_COORDS, add_history, read_counts, require_same_release
from microns_xr.releases import TableSpec, datastack_of, table_spec
from microns_xr.schema import with_labels
from microns_xr.sources.tables import read_if_path
from microns_xr.tables import HOUSEKEEPING, INVALID, SCAN_KEYS, valid_rows, warn_of_other_release
from microns_xr.tuning.functional import (
    array_column,
    complete_spec,
    rate_variables,
    table_variable,
    take_rows,
)

On = Literal["nucleus_id", "pt_root_id", "functional"]

_KEYS: dict[str, tuple[str, ...]] = {
    "nucleus_id": ("nucleus_id",),
    "pt_root_id": ("pt_root_id",),
    "functional": SCAN_KEYS,
}
_KIND = {"nucleus_id": "units", "scan_unit": "functional rows"}
_ROW = "row of the table"  # a dim name that no column has


@answer_old_keywords
def merge_table(
    dataset: xr.Dataset,
    table: pd.DataFrame | xr.Dataset | str | os.PathLike[str],
    columns: list[str] | str | None = None,
    on: On = "nucleus_id",
    how: Literal["left", "inner"] = "left",
    *,
    key: str | Sequence[str] | None = None,
    angle_units: AngleUnits | None = None,
    angle_convention: AngleConvention | None = None,
) -> xr.Dataset:
    """Add columns of a table to units, or to functional rows.

    Parameters
    ----------
    dataset : xarray.Dataset
        Units (dim ``nucleus_id``) or functional rows (dim ``scan_unit``).
    table : pandas.DataFrame, xarray.Dataset, str or path-like
        The table to add: a DataFrame with the key among its columns or in its index, the path of
        one (csv, csv.gz, parquet or feather), or units or functional rows of the same release.
    columns : list of str, optional
        Columns to add; by default all except keys, ids and columns of the annotation service, and
        labels of a Dataset that `dataset` has too.
    on : {"nucleus_id", "pt_root_id", "functional"}, optional
        ``nucleus_id`` matches the nucleus (``target_id`` of the annotation tables);
        ``functional`` matches (session, scan_idx, unit_id); ``pt_root_id`` the segment, which
        identifies a neuron only within one release.
    how : {"left", "inner"}, optional
        ``left`` keeps all rows of `dataset`; ``inner`` keeps the rows with a match.
    key : str or sequence of str, optional
        Column of a DataFrame with the ids to match; for ``functional``, the three columns. By
        default those named like `on`, and for nuclei ``target_id``, or ``id`` in tables and views
        of the service that have one row per nucleus.
    angle_units : {"degree", "radian"}, optional
        Units of the angles of a DataFrame that is not in the registry.
    angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
        Convention of the angles of a DataFrame that is not in the registry.

    Returns
    -------
    xarray.Dataset
        `dataset` with the columns added over the same dim: text, booleans and ids as coordinates,
        numbers as variables; the inputs are not modified. Rows without a match have -1 in integer
        columns, NaN in floats, "unknown" in text; if there are any, booleans become the words
        "true", "false" and "unknown".

    Raises
    ------
    SchemaError
        If the key is missing or has floats; if the table has several rows for one row of `dataset`
        (the join would repeat a neuron); if a column already exists; if an angle does not state its
        convention, or has another one than `dataset`; if `angle_units` or `angle_convention`
        contradict the registry; if a column holds lists or occurs twice.
    ReleaseMismatchError
        If both are Datasets from different releases.

    Warns
    -----
    DroppedRowsWarning
        If no row of the table has a match, or the root ids seem to be of another release: rows name
        a nucleus that has another root in `dataset` or, without nucleus ids, fewer than 0.81 of the
        rows (0.5 if there are only a few) match one of all units.

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
    if not isinstance(how, str) or how not in ("left", "inner"):
        raise SchemaError(f"how is {how!r}, expected 'left' or 'inner': merging adds no rows")
    require_one_of("on", on, _KEYS)
    dim = _row_dim(dataset)
    kind = _KIND[dim]
    table = read_if_path(table)
    labels = xr.Dataset()
    if isinstance(table, xr.Dataset):
        require_same_release(("dataset", dataset), ("table", table))
        table = with_labels(table)
        added, keys = _from_dataset(table, columns, on)
        if columns is None:  # labels of the neurons, which travel with every selection
            both = [n for n in added.data_vars if n in table.coords and n in dataset.variables]
            labels, added = added[both], added.drop_vars(both)
    else:
        require_instance("table", table, pd.DataFrame, "a DataFrame, a Dataset or a path")
        # As caveclient and this package name it.
        stem = str(table.attrs.get("table") or table.attrs.get("table_name") or "table")
        spec = table_spec(stem, datastack_of(dataset))
        stated = ("angle_units", "angle_convention")  # of a custom registry entry
        spec = replace(spec, **{n: table.attrs.get(n) or getattr(spec, n) for n in stated})
        spec = complete_spec(spec, angle_units, angle_convention)
        added, keys = _from_frame(table, spec, columns, on, key)
    if not len(keys):
        raise SchemaError("the table has no rows, expected at least one: check its file")
    if on == "functional":
        keys = _without_repeats(added, keys)
    rows = _match(_dataset_keys(dataset, dim, on), keys, dim, on)
    differing = [] if on == "functional" else _differing(labels, dataset, rows)
    if present := [str(n) for n in added.data_vars if n in dataset.variables] + differing:
        raise SchemaError(
            f"the {kind} already have {present}: rename them in the table, "
            "choose others with columns=, or drop them first with .drop_vars"
        )
    # Angles of both must have the same convention, or the merged Dataset would mix conventions.
    if angles := [(str(n), v) for n, v in added.variables.items() if _is_angle(str(n), v)]:
        old = [(str(n), v) for n, v in dataset.variables.items() if _is_angle(str(n), v)]
        require_same_angles([*old, *angles])
        for angle_name, angle in angles:
            require_likely_angle(angle, angle_name)
    for name, values in added.coords.items():
        if name in dataset.coords and not np.array_equal(dataset[name].values, values.values):
            raise SchemaError(
                f"the table has {values.values} along {name}, the {kind} have "
                f"{dataset[name].values}: rates of different stimuli cannot share a dimension"
            )
    if len(rows) and not (rows >= 0).any():
        warn_of_dropped_rows(
            f"none of the {len(keys)} rows of the table meets one of the {len(rows)} {kind} on "
            f"{on!r}: nothing is added; pass the table of the same datastack"
            + (" and release" if on == "pt_root_id" else "")
            + ", or key=, the column that holds the ids"
        )
    elif on == "pt_root_id":
        _warn_of_other_roots(dataset, keys)
    # A key matches at most one row of the table, so no row of the Dataset is repeated.
    matched = f"{int((rows >= 0).sum())} of {len(rows)} {kind} matched"
    if how == "inner":
        dataset, rows = dataset.isel({dim: np.flatnonzero(rows >= 0)}), rows[rows >= 0]
    new = {
        str(n): ((dim, *v.dims[1:]), take_rows(v.values, rows, str(n)), v.attrs)
        for n, v in added.data_vars.items()
    }
    result = with_labels(dataset.assign(new).assign_coords(added.coords))
    entry = f"merge_table({sorted(new)}, on={on!r}, how={how!r}): {matched}"
    if INVALID in added.attrs:
        entry += f", {added.attrs[INVALID]} rows are not valid"
    return add_history(result, entry)


def _warn_of_other_roots(dataset: xr.Dataset, keys: pd.DataFrame) -> None:
    """Warn if the root ids of a table look like those of another release."""
    keys = keys[keys["pt_root_id"] > 0]
    advice = "pass the table of the same release, or join on='nucleus_id' if it has nucleus ids"
    if "nucleus_id" in keys and "nucleus_id" in dataset.variables:
        nuclei, first = np.unique(dataset["nucleus_id"].values, return_index=True)
        place = pd.Index(nuclei).get_indexer(keys["nucleus_id"])
        roots = dataset["pt_root_id"].values[first][place]
        known = (place >= 0) & (keys["nucleus_id"].to_numpy() >= 0)
        n = int((known & (roots != keys["pt_root_id"].to_numpy())).sum())
        if n:
            warn_of_dropped_rows(
                f"{n} of {int(known.sum())} rows of the table have a different pt_root_id than "
                f"their nucleus has in the {_KIND[_row_dim(dataset)]}, and do not match: {advice}"
            )
    elif "selection" in dataset.attrs:
        counts = read_counts(dataset, "selection")
        if counts.get("units") == dataset.sizes.get("nucleus_id"):  # not a selection of units
            warn_of_other_release(keys["pt_root_id"], dataset["pt_root_id"].values, advice)


def _row_dim(dataset: xr.Dataset) -> str:
    require_instance("dataset", dataset, xr.Dataset, "units or functional rows")
    for dim in ("scan_unit", "nucleus_id"):
        if dim in dataset.dims:
            return dim
    raise SchemaError(
        f"dataset has dims {tuple(dataset.dims)}, expected units (nucleus_id) or functional rows "
        "(scan_unit)"
    )


def _dataset_keys(dataset: xr.Dataset, dim: str, on: On) -> pd.DataFrame:
    if absent := [n for n in _KEYS[on] if n not in dataset.variables]:
        hint = (
            "build units with functional='best_only', or merge into Release.functional() and call "
            "mx.tuning.collapse_scans, to join on='functional'"
        )
        raise SchemaError(f"the {_KIND[dim]} have no {absent} to join on={on!r}: {hint}")
    # A join may have made them floats.
    return pd.DataFrame({n: as_ids(dataset[n].values, n, missing=-1) for n in _KEYS[on]})


def _select_columns(
    columns: list[str] | str | None, names: list[str], skipped: set[str]
) -> list[str]:
    if columns is None:
        return [n for n in names if n not in skipped]
    chosen = names_of("columns", columns)
    require_columns(pd.DataFrame(columns=names), "table", chosen)
    return chosen


def _from_dataset(
    table: xr.Dataset, columns: list[str] | str | None, on: On
) -> tuple[xr.Dataset, pd.DataFrame]:
    """Return the columns to add, over rows, and the keys of the rows."""
    dim = _row_dim(table)
    names = [str(n) for n in table.variables if dim in table[n].dims]
    skipped = {*RELEASE_COORDS, *SCAN_KEYS, "nucleus_id", "pt_root_id"}
    chosen = _select_columns(columns, names, skipped)
    rows = table.drop_indexes(dim, errors="ignore").rename_dims({dim: _ROW})
    added = rows.reset_coords()[chosen].transpose(_ROW, ...)
    for name, values in added.data_vars.items():
        if name in PERIODS and values.dtype.kind in "iu":
            added[name] = values.astype(np.float64)  # -1 would be a valid angle
    keys = _dataset_keys(table, dim, on)
    if on == "pt_root_id" and "nucleus_id" in table.variables:
        keys["nucleus_id"] = table["nucleus_id"].values
    return added, keys


def _from_frame(
    table: pd.DataFrame,
    spec: TableSpec,
    columns: list[str] | str | None,
    on: On,
    key: str | Sequence[str] | None,
) -> tuple[xr.Dataset, pd.DataFrame]:
    name, named = spec.name, names_of("key", key or ())
    keys_of_index = {*_KEYS[on], "target_id", *named}.difference(table.columns)
    if index := [level for level in table.index.names if level in keys_of_index]:
        table = table.reset_index(index)
    table = valid_rows(table, name, keep=[*named, *names_of("columns", columns or ())])
    key_columns = _key_columns(list(table.columns), name, on, named, spec.key_column)
    require_columns(table, name, key_columns)
    keys = {
        key: as_ids(table[column], f"{name}.{column}", missing=-1)
        for key, column in zip(_KEYS[on], key_columns, strict=True)
    }
    if on == "pt_root_id":  # which the roots can be checked against
        for column in [c for c in ("nucleus_id", "target_id") if c in table.columns][:1]:
            keys["nucleus_id"] = as_ids(table[column], f"{name}.{column}", missing=-1)
    ids = {*key_columns, "target_id", "nucleus_id", "pt_root_id", "valid_id", *SCAN_KEYS}
    ids |= HOUSEKEEPING - {"volume"}
    # The service adds a suffix to those of the nuclei.
    skipped = {n for n in table.columns if n in ids or n.removesuffix("_ref") in ids}
    names = _select_columns(columns, table.columns.tolist(), skipped)
    require_columns(table, name, names)
    added = xr.Dataset()
    rates = [n for n in names if n in ("rate_ori", "rate_dir")]
    if rates:
        added = rate_variables(table[rates], spec).rename_dims(scan_unit=_ROW)
    sizes = {str(dim): added.sizes[dim] for dim in added.coords}
    for column in [n for n in names if n not in rates]:
        # Such as errors of the rates; lists of other lengths are refused.
        array = array_column(table[column], name, sizes) if rates else None
        if array is not None and array[0] in sizes:
            added[column] = ((_ROW, array[0]), array[1], {"long_name": column})
            continue
        values, attrs = table_variable(table[column], spec)
        if re.fullmatch(r".*_position_[xyz]", column):
            voxel = as_resolution(table.attrs.get(RESOLUTION), f"{name}.attrs[{RESOLUTION!r}]")
            if voxel is not None:
                attrs = {"units": "voxels", "voxel_nm": voxel["xyz".index(column[-1])], **attrs}
        added[column] = (_ROW, values, attrs)
    about = {INVALID: table.attrs[INVALID]} if INVALID in table.attrs else {}
    return added[names].assign_attrs(about), pd.DataFrame(keys)


def _key_columns(
    columns: list[str], name: str, on: On, key: list[str], registered: str
) -> list[str]:
    """Return the columns of a table that hold the keys, or raise with the argument that helps."""
    if key:
        if len(key) != len(_KEYS[on]):
            raise SchemaError(f"key is {key}, expected the columns of {list(_KEYS[on])}")
        return key
    found = list(_KEYS[on])
    if on == "nucleus_id" and "nucleus_id" not in columns:
        # The nucleus id is target_id in annotation tables, but id in the nucleus table.
        is_nuclei = name.startswith("nucleus_detection") and "target_id" not in columns
        found = ["id" if is_nuclei else registered]
    lacking = [c for c in found if c not in columns]
    if not lacking:
        return found
    hints = [f"key=, the name of the column with the {on}s"]
    if on == "functional":
        hints = [f"key=[...], the names of the columns of {', '.join(SCAN_KEYS)}"]
    elif on == "nucleus_id" and "id" in columns:
        hints = ["key='id' if that column holds nucleus ids"]
    if on != "functional" and set(SCAN_KEYS) <= set(columns):
        hints.append("on='functional' to match recorded units")
    if on != "pt_root_id" and "pt_root_id" in columns:
        hints.append("on='pt_root_id' to match root ids of the same release")
    if on != "nucleus_id" and {"nucleus_id", "target_id"} & set(columns):
        hints.append("on='nucleus_id' to match nuclei")
    looked_for = f"the columns {lacking}"
    if on == "nucleus_id":
        looked_for = " or ".join(dict.fromkeys(["a column nucleus_id", *lacking]))
    raise SchemaError(
        f"{name} lacks {looked_for}, found {columns}{nearest(lacking[0], columns)}: pass "
        + ", or ".join(hints)
    )


def _without_repeats(added: xr.Dataset, keys: pd.DataFrame) -> pd.DataFrame:
    """Mask repeated keys of units with equal rows for several nuclei."""
    repeated = keys.duplicated().to_numpy(dtype=bool)
    if not repeated.any():
        return keys
    number = keys.groupby(list(keys.columns), sort=False, dropna=False).ngroup().to_numpy()
    first = np.unique(number, return_index=True)[1][number]
    for variable in added.data_vars.values():
        values = variable.values
        # NaN equals NaN here; text is never NaN.
        same = (values == values[first]) | ((values != values) & (values != values)[first])
        repeated = repeated & same.reshape(len(same), -1).all(axis=1)
    return keys.mask(pd.Series(repeated, keys.index), -1)  # -1 matches nothing


def _match(left: pd.DataFrame, right: pd.DataFrame, dim: str, on: On) -> np.ndarray:
    """Return the row of the table for each row of the Dataset, -1 without a match."""
    keys = list(left.columns)
    # 0 means no segment and -1 no nucleus or unit: these never match.
    lowest = 1 if on == "pt_root_id" else 0
    right = right.assign(row=np.arange(len(right)))
    left_rows = left.assign(left_row=np.arange(len(left)))
    right, left_rows = (f[(f[keys] >= lowest).all(axis=1)] for f in (right, left_rows))
    # Repeated keys are an error only if they match a row of the Dataset.
    matched = left_rows.merge(right, on=keys)
    if n := len(matched.loc[matched.duplicated([*keys, "left_row"]), keys].drop_duplicates()):
        what = "unit" if on == "functional" else on
        raise SchemaError(
            f"the table has several rows for {n} {what} of the {_KIND[dim]}, so the join would "
            "repeat them: make one row per neuron first with mx.tuning.collapse_scans, join to "
            "the functional rows (Release.functional()) with on='functional', or drop repeated "
            "rows, or spread them over columns with DataFrame.pivot"
        )
    if dim == "nucleus_id" and on == "pt_root_id" and left["pt_root_id"].duplicated().any():
        raise SchemaError(
            "units repeat a pt_root_id: several nuclei share it, join on='nucleus_id'"
        )
    rows = np.full(len(left), -1, dtype=np.int64)
    rows[matched["left_row"]] = matched["row"]
    return rows


def _differing(labels: xr.Dataset, dataset: xr.Dataset, rows: np.ndarray) -> list[str]:
    """Return the labels of a table that differ from those of the rows that they match."""
    at = np.flatnonzero(rows >= 0)
    differing = []
    for name, theirs in labels.items():
        ours = dataset[name].variable
        same = ours.ndim == 1 and ours[at].equals(xr.Variable(ours.dims, theirs.values[rows[at]]))
        differing += [] if same else [str(name)]
    return differing


def _is_angle(name: str, variable: Any) -> bool:
    """Whether a variable is an angle by its attributes, or only by its name."""
    return is_angle(variable) or (name in PERIODS and variable.dtype.kind in "iuf")
