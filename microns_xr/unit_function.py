"""Functional variables of the unit table: matched or not, the best scan, rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import is_angle, require_same_angles
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.functional.collapse import collapse_scans
from microns_xr.functional.coregistration import build_functional
from microns_xr.provenance import add_history, require_same_release
from microns_xr.releases import ReleaseSpec
from microns_xr.schema import UNITS, describe
from microns_xr.tables import SCAN_KEYS

__all__ = ["FunctionalMode", "add_functional", "add_rates"]

FunctionalMode = Literal["none", "match", "best_only"]

_BEST = ("pref_ori", "pref_dir", "gOSI", "gDSI", "cc_abs")
_MODES: dict[str, str] = {"match": "coregistration", "best_only": "functional_properties"}


def add_functional(
    units: xr.Dataset,
    tables: Mapping[str, pd.DataFrame],
    spec: ReleaseSpec,
    mode: FunctionalMode,
) -> xr.Dataset:
    """Add what the functional tables say of each unit.

    Parameters
    ----------
    units : xarray.Dataset
        Units without functional variables.
    tables : mapping of str to pandas.DataFrame
        Raw tables by role.
    spec : ReleaseSpec
        The release.
    mode : {"none", "match", "best_only"}
        ``none`` leaves ``tuning_type`` "unknown", because no functional table was looked at.

    Returns
    -------
    xarray.Dataset
        Units with ``tuning_type``; for ``match`` also ``n_scans`` and ``n_scan_units``; for
        ``best_only`` also ``session``, ``scan_idx``, ``unit_id`` (-1 = none) and the properties
        of that one unit.

    Raises
    ------
    SchemaError
        For ``"all"``, an unknown word, or a table that is absent.
    """
    if mode == "all":  # type: ignore[comparison-overlap]
        raise SchemaError(
            "functional='all' would repeat neurons that were recorded in several scans: the rows "
            "of all scans are in Release.functional(), and mx.collapse_scans leads to one row a "
            "neuron"
        )
    if mode == "none":
        unknown = np.full(units.sizes["nucleus_id"], "unknown", dtype=object)
        units = units.assign(tuning_type=("nucleus_id", unknown, describe(UNITS["tuning_type"])))
        return units.assign_attrs(notes={})
    if mode not in _MODES:
        raise SchemaError(f"functional is {mode!r}, expected 'none', 'match' or 'best_only'")
    role = _MODES[mode]
    if role not in tables:
        raise SchemaError(
            f"functional={mode!r} needs a table in the role {role!r}"
            + (f" ({spec.tables[role]})" if spec.has(role) else ", and this release has none")
        )
    table = build_functional(
        tables[role],
        spec.table_of(role),
        datastack=spec.datastack,
        version=spec.version,
        role=role,
    )
    if mode == "best_only":
        absent = [n for n in _BEST if n not in table]
        if absent:
            raise SchemaError(
                f"{spec.name_of(role)} lacks {absent}, which functional='best_only' needs: "
                "use functional='match', or put another table in the role"
            )
        table = table[list(_BEST)]
        collapsed = collapse_scans(table, "best", by="cc_abs")
    else:
        collapsed = collapse_scans(table.drop_vars(list(table.data_vars)), "first")
    ids = units["nucleus_id"].values
    known = np.isin(ids, collapsed["nucleus_id"].values)
    tuning = np.where(known, "matched", "not_matched").astype(object)
    variables: dict[str, Any] = {"tuning_type": tuning}
    aligned = _align(collapsed, ids)
    names = ["n_scans", "n_scan_units"]
    if mode == "best_only":
        names += [*SCAN_KEYS, *_BEST]
    attrs = {n: {**collapsed[n].attrs, **describe(UNITS[n])} for n in names}
    result = units.assign(
        {
            **{n: ("nucleus_id", v, describe(UNITS[n])) for n, v in variables.items()},
            **{n: ("nucleus_id", aligned[n].values, attrs[n]) for n in names},
        }
    )
    outside = ~np.isin(table["nucleus_id"].values, ids)
    notes = {"scan_units_of_no_unit": int(outside.sum())}
    result = result.assign_attrs(functional_table=spec.name_of(role), notes=notes)
    return add_history(result, f"functional={mode!r} from {spec.name_of(role)}")


def _align(collapsed: xr.Dataset, ids: np.ndarray) -> xr.Dataset:
    fill = {
        n: np.nan if v.dtype.kind == "f" else -1 if n in SCAN_KEYS else 0
        for n, v in collapsed.data_vars.items()
    }
    return collapsed.reindex(nucleus_id=ids, fill_value=fill)


def add_rates(
    units: xr.Dataset,
    tuning_curves: xr.Dataset,
    collapse: Literal["mean", "best", "first"] = "mean",
    by: str | None = None,
    *,
    check_release: bool = True,
) -> xr.Dataset:
    """Put rates by direction and orientation on the units.

    Parameters
    ----------
    units : xarray.Dataset
        Units.
    tuning_curves : xarray.Dataset
        ``rate_ori`` and / or ``rate_dir`` over ``scan_unit``, several rows a neuron.
    collapse, by : str, optional
        How several units of a neuron become one row; see `microns_xr.collapse_scans`.
    check_release : bool, optional
        False skips the release check.

    Returns
    -------
    xarray.Dataset
        Units with ``rate_ori(nucleus_id, orientation)``, ``rate_dir(nucleus_id, direction)``, NaN
        where not measured, and ``n_rated``, the number of recorded units behind each row.

    Raises
    ------
    ReleaseMismatchError
        If the two are of different releases.
    SchemaError
        If the curves hold no rates, or their angles are of another convention or in other units
        than those of the units: `microns_xr.convert_angles` converts either.
    """
    require_same_release(
        ("units", units), ("tuning_curves", tuning_curves), check_release=check_release
    )
    rates = [n for n in ("rate_ori", "rate_dir") if n in tuning_curves]
    if not rates:
        raise SchemaError(
            f"tuning_curves has {list(tuning_curves.data_vars)}, expected rate_ori or rate_dir"
        )
    if by is not None and by not in tuning_curves:
        raise UnknownLabelError(
            f"tuning_curves has no {by!r} to choose by, found {list(tuning_curves.data_vars)}: "
            "add it with mx.merge_table(curves, functional, [by], on='functional'), or merge the "
            "curves onto the functional rows and lead to units with mx.collapse_scans"
        )
    collapsed = collapse_scans(tuning_curves[rates + ([by] if by else [])], collapse, by)
    _require_one_convention(units, tuning_curves)
    aligned = _align(collapsed[[*rates, "n_rated"]], units["nucleus_id"].values)
    outside = ~np.isin(tuning_curves["nucleus_id"].values, units["nucleus_id"].values)
    angles = [d for d in ("orientation", "direction") if d in aligned.coords]
    # A DataArray leaves the attributes of its Dataset behind, and rates are passed on alone.
    tables = tuning_curves.attrs.get("source_tables")
    of = {} if tables is None else {"source_tables": tables}
    result = units.assign(
        {
            n: (
                aligned[n].dims,
                aligned[n].values,
                {**aligned[n].attrs, **describe(UNITS[n]), **of},
            )
            for n in [*rates, "n_rated"]
        }
    ).assign_coords({d: aligned.coords[d] for d in angles})
    table = str(tuning_curves.attrs.get("tuning_table", "unknown"))
    notes = {**units.attrs.get("notes", {}), "rated_scan_units_of_no_unit": int(outside.sum())}
    how = collapsed.attrs["collapse"]
    result = result.assign_attrs(notes=notes, tuning_table=table, collapse=how)
    return add_history(result, f"rates from {table}, {how}", source=(result, tuning_curves))


def _require_one_convention(units: xr.Dataset, tuning_curves: xr.Dataset) -> None:
    """Preferred angles and the angles of rates in one Dataset must mean the same."""
    angles: list[tuple[str, Any]] = [
        (f"units.{n}", v) for n, v in units.variables.items() if is_angle(v)
    ]
    angles += [
        (f"tuning_curves.{d}", tuning_curves[d])
        for d in ("orientation", "direction")
        if d in tuning_curves.coords
    ]
    require_same_angles(angles)
