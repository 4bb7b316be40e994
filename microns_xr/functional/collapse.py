"""From one row a recorded unit to one row a neuron."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import is_angle
from microns_xr.columns import plain_array
from microns_xr.errors import (
    ReleaseMismatchError,
    SchemaError,
    UnknownLabelError,
    nearest_words,
)
from microns_xr.functional.coregistration import missing_value
from microns_xr.provenance import RELEASE_COORDS, add_history
from microns_xr.schema import validate
from microns_xr.tables import SCAN_KEYS

__all__ = ["collapse_scans"]

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
