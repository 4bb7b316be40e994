"""Observed values against those of null replicates, both through the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.analysis.angle_pairs import PairTable, count_pairs, to_ticks, totals_of
from microns_xr.analysis.like_to_like import (
    Prepared,
    like_to_like,
    like_to_like_of_totals,
    prepare,
    table_of,
)
from microns_xr.analysis.replicates import Replicates
from microns_xr.analysis.resample import percentile_interval
from microns_xr.analysis.tuned import TunedAxes, tuned_axes
from microns_xr.angles import describe_angle
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.provenance import add_history

__all__ = ["compare", "compare_values", "null_values"]

Statistic = Callable[..., Any]
Null = xr.DataArray | Replicates


def compare(
    statistic: Statistic,
    connectivity: xr.Dataset,
    units: xr.Dataset,
    null: Null,
    *,
    variable: str | None = None,
    confidence: float = 0.95,
    **selection: Any,
) -> xr.Dataset:
    """Compare a statistic of what was observed with the same statistic of null replicates.

    Parameters
    ----------
    statistic : callable
        ``statistic(connectivity, units, **selection)``: a number, a DataArray, or a Dataset, such
        as `mx.like_to_like` or a function of one's own.
    connectivity, units : xarray.Dataset
        What was observed: what the null was made of.
    null : xarray.DataArray or Replicates
        A null of `microns_xr.analysis.null_models`: values over (``replicate``, ``nucleus_id``)
        that take the place of the variable of units of that name, or connectivity that takes the
        place of `connectivity`.
    variable : str, optional
        Of a statistic that gives a Dataset the variable that is compared: ``"contrast"``,
        ``"slope"``, ``"probability"``, ``"size_contrast"`` or ``"mean_size"`` of `mx.like_to_like`.
    confidence : float, optional
        Share of the null inside of the interval.
    **selection
        Passed to the statistic, the same for what was observed and for every replicate.

    Returns
    -------
    xarray.Dataset
        As `compare_values`; ``attrs["keeps"]`` says what the null keeps.

    Raises
    ------
    SchemaError
        If the null was made of other neurons or connections, or `variable` is needed.
    UnknownLabelError
        If the variable does not exist.

    Examples
    --------
    >>> import microns_xr as mx
    >>> from microns_xr.analysis import null_models
    >>> from microns_xr.analysis.like_to_like import like_to_like
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=1500))
    >>> units = release.units(functional="best_only")
    >>> null = null_models.permute_angles(units, within="cell_type", n=99)
    >>> result = compare(like_to_like, release.connectivity(units=units), units, null,
    ...     variable="contrast", presynaptic="all")
    >>> 0 < float(result.p) <= 1
    True
    """
    if statistic is like_to_like:
        selection = {**selection, "n_bootstrap": 0}
    observed = statistic(connectivity, units, **selection)
    values = null_values(statistic, connectivity, units, null, **selection)
    if isinstance(observed, xr.Dataset):
        if variable is None or variable not in observed:
            names = [str(n) for n in values.data_vars]
            error = SchemaError if variable is None else UnknownLabelError
            raise error(f"variable is {variable!r}, expected one that the statistic gives: {names}")
        observed, values = observed[variable], values[variable]
    result = compare_values(xr.DataArray(observed), values, confidence=confidence)
    result.attrs |= {name: null.attrs[name] for name in ("null", "keeps", "seed")}
    name = getattr(statistic, "__name__", "statistic")
    shown = ", ".join(f"{k}={_shown(v)}" for k, v in selection.items())
    entry = f"compare({name}, variable={variable!r}, null={null.attrs['null']}, {shown})"
    return add_history(result, entry, source=(connectivity, units))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 and "\n" not in text else f"<{type(value).__name__}>"


def compare_values(
    observed: xr.DataArray, null: xr.DataArray, *, confidence: float = 0.95
) -> xr.Dataset:
    """Compare observed values with those of null replicates.

    Parameters
    ----------
    observed : xarray.DataArray
        Values.
    null : xarray.DataArray
        The same with the dim ``replicate``; NaN replicates are left out.
    confidence : float, optional
        Share of the null inside of the interval.

    Returns
    -------
    xarray.Dataset
        Over the dims of `observed`: ``observed``; ``null_mean``, ``null_low`` and ``null_high``
        (percentiles); ``effect``, observed minus the mean of the null, ``effect_low`` and
        ``effect_high``, observed minus the percentiles; ``p``, two-sided; ``n_replicates``. NaN
        where nothing was observed.

    Raises
    ------
    SchemaError
        If `null` lacks the dim, or the others differ.

    Notes
    -----
    ``p = 2 min(1 + replicates as large, 1 + replicates as small) / (replicates + 1)``, at the
    most 1: what was observed counts as one of the replicates, so that p is never 0 and the test
    keeps its level (Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular
    Biology 9, article 39). With fewer than 39 replicates p cannot reach 0.05.

    Examples
    --------
    >>> null = xr.DataArray(np.arange(99.0), dims="replicate")
    >>> result = compare_values(xr.DataArray(200.0), null)
    >>> float(result.effect), float(result.p)
    (151.0, 0.02)
    """
    if "replicate" not in null.dims or set(null.dims) - {"replicate"} != set(observed.dims):
        raise SchemaError(
            f"the null has dims {null.dims}, expected 'replicate' and those of what was observed, "
            f"{observed.dims}"
        )
    table = np.asarray(null.transpose("replicate", *observed.dims).values, dtype=float)
    if table.shape[1:] != observed.shape:
        raise SchemaError(
            f"the null has shape {table.shape[1:]}, expected that of what was observed, "
            f"{observed.shape}: take both through the same selection"
        )
    values = np.asarray(observed.values, dtype=float)
    n = np.isfinite(table).sum(axis=0)
    known = np.isfinite(values) & (n > 0)
    # Equal sums in another order may differ in their last bits; they are ties.
    close = np.isclose(table, values, rtol=1e-9, atol=0)
    with np.errstate(invalid="ignore"):
        above = ((table > values) | close).sum(axis=0)
        below = ((table < values) | close).sum(axis=0)
    p = np.where(known, np.minimum(1, 2 * (1 + np.minimum(above, below)) / (n + 1)), np.nan)
    mean = np.full(values.shape, np.nan)
    np.divide(np.nansum(table, axis=0), n, out=mean, where=n > 0)
    low, high = percentile_interval(table, confidence)
    found = {
        "observed": (values, "observed"),
        "null_mean": (mean, "mean of the null"),
        "null_low": (low, "lower percentile of the null"),
        "null_high": (high, "upper percentile of the null"),
        "effect": (values - mean, "observed minus mean of the null"),
        "effect_low": (values - high, "observed minus upper percentile of the null"),
        "effect_high": (values - low, "observed minus lower percentile of the null"),
        "p": (p, "two-sided p"),
        "n_replicates": (n, "replicates with a value"),
    }
    units = {"units": observed.attrs["units"]} if "units" in observed.attrs else {}
    dimensionless = ("p", "n_replicates")
    return xr.Dataset(
        {
            name: (
                observed.dims,
                array,
                {"long_name": text} | ({} if name in dimensionless else units),
            )
            for name, (array, text) in found.items()
        },
        coords=observed.coords,
        attrs={"statistic": str(observed.name or "statistic"), "confidence": confidence},
    )


def null_values(
    statistic: Statistic, connectivity: xr.Dataset, units: xr.Dataset, null: Null, **selection: Any
) -> Any:
    """Give a statistic of every null replicate.

    Parameters
    ----------
    statistic, connectivity, units, null, **selection
        As `compare`. `mx.like_to_like` goes through all replicates at once; another function is
        called once for each.

    Returns
    -------
    xarray.DataArray or xarray.Dataset
        What the statistic gives, along ``replicate``.

    Raises
    ------
    SchemaError
        If the null was made of other neurons or connections.

    Examples
    --------
    >>> import microns_xr as mx
    >>> from microns_xr.analysis import null_models
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> null = null_models.permute_weights(two_neurons(), n=3)
    >>> units = xr.Dataset(coords={"nucleus_id": [11, 12]})
    >>> largest = lambda c, u: float(c.synapse_size.data.max())
    >>> null_values(largest, two_neurons(), units, null).values
    array([7., 7., 7.])
    """
    _require_own_null(connectivity, units, null)
    if statistic is like_to_like:
        fast = _like_to_like_values(connectivity, units, null, **selection)
        if fast is not None:
            return fast
    found = []
    for i in range(null.sizes["replicate"]):
        if isinstance(null, Replicates):
            value = statistic(null[i].drop_vars("replicate"), units, **selection)
        else:
            drawn = null.isel(replicate=i, drop=True).compute()
            value = statistic(connectivity, units.assign({str(null.name): drawn}), **selection)
        found.append(value if isinstance(value, xr.Dataset) else xr.DataArray(value))
    # All are of one kind, which the type of a list does not say.
    same: Any = found
    return xr.concat(
        same, "replicate", coords="minimal", compat="override", join="exact", combine_attrs="drop"
    )


def _require_own_null(connectivity: xr.Dataset, units: xr.Dataset, null: Null) -> None:
    if isinstance(null, Replicates):
        base = null.connections.dataset
        same = base is connectivity or (
            base.sizes == connectivity.sizes
            and all(base[d].equals(connectivity[d]) for d in ("pre_nucleus_id", "post_nucleus_id"))
            and base["synapse_size"].data.nnz == connectivity["synapse_size"].data.nnz
        )
        if not same:
            raise SchemaError(
                "the null was made of another connectivity than the one observed: make it of the "
                "same selection, so that both pass through the same steps"
            )
        return
    if not isinstance(null, xr.DataArray) or not {"replicate", "nucleus_id"} <= set(null.dims):
        raise SchemaError(
            f"null is a {type(null).__name__}, expected one of mx.null_models: values over "
            "(replicate, nucleus_id), or Replicates of connectivity"
        )
    if null.name not in units:
        raise SchemaError(
            f"the null is of {null.name!r}, which units lacks: a variable it takes the place of "
            "is expected, rename it with .rename(name)"
        )
    if not np.array_equal(null["nucleus_id"].values, units["nucleus_id"].values):
        raise SchemaError(
            "the null was made of other units than those observed: make it of the same ones"
        )


def _like_to_like_values(
    connectivity: xr.Dataset, units: xr.Dataset, null: Null, **selection: Any
) -> xr.Dataset | None:
    """All replicates without a Dataset for each; None where the null is of something else."""
    angle = selection.get("angle", "pref_ori")
    if not isinstance(null, Replicates) and null.name != angle:
        return None
    axes = tuned_axes(
        connectivity,
        units,
        angle,
        selection.get("pre"),
        selection.get("post"),
        selection.get("presynaptic", "extended"),
        selection.get("check_release", True),
    )
    ready = prepare(units, angle, selection.get("bins", 5), axes)
    weight = selection.get("weight", "synapse_size")
    totals = (
        _rewired_totals(null, axes, ready, weight)
        if isinstance(null, Replicates)
        else _permuted_totals(connectivity, units, null, axes, ready, weight)
    )
    return like_to_like_of_totals(totals, ready, selection.get("normalise", False))


def _rewired_totals(null: Replicates, axes: TunedAxes, ready: Prepared, weight: str) -> np.ndarray:
    observed = null.connections
    table = PairTable(observed.pre, observed.post, observed.values[weight], axes.twin)

    def count(i: int) -> np.ndarray:
        post, source = null.ends(i)
        sizes = table.values if source is None else table.values[source]
        drawn = table._replace(post=post, values=sizes)
        return count_pairs(drawn, ready.pre_ticks, ready.post_ticks, ready.edges)

    # Drawing goes through the connections many times.
    work = 20 * table.pre.size + axes.post_rows.size
    return totals_of(count, len(null), ready.centres.size, work)


def _permuted_totals(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    null: xr.DataArray,
    axes: TunedAxes,
    ready: Prepared,
    weight: str,
) -> np.ndarray:
    table, pre_rows, post_rows = _compact(table_of(connectivity, weight, axes.twin), axes)
    has_angle = np.isfinite(units[str(null.name)].values)
    period = describe_angle(units[str(null.name)], str(null.name))[2]
    by_replicate = null.transpose("replicate", "nucleus_id").data
    found = []
    for first, last in _blocks(null):
        angles = np.asarray(by_replicate[first:last])
        if not (np.isfinite(angles) == has_angle).all():
            raise SchemaError(
                f"the null gives {null.name} to other neurons than those that have one, expected "
                "the same: it would change which pairs are looked at"
            )
        ticks = to_ticks(angles, period)

        def count(i: int, ticks: np.ndarray = ticks) -> np.ndarray:
            return count_pairs(table, ticks[i][pre_rows], ticks[i][post_rows], ready.edges)

        work = table.pre.size + post_rows.size + pre_rows.size
        found.append(totals_of(count, last - first, ready.centres.size, work))
    return np.concatenate(found)


def _compact(table: PairTable, axes: TunedAxes) -> tuple[PairTable, np.ndarray, np.ndarray]:
    """Leave out of a table, once for all replicates, what is never looked at."""
    rows = {"pre": axes.pre_rows, "post": axes.post_rows}
    kept = {side: of_side >= 0 for side, of_side in rows.items()}
    new = {side: np.where(keep, np.cumsum(keep) - 1, -1) for side, keep in kept.items()}
    pairs = kept["pre"][table.pre] & kept["post"][table.post]
    twin = axes.twin[kept["pre"]]
    compact = PairTable(
        new["pre"][table.pre[pairs]],
        new["post"][table.post[pairs]],
        table.values[pairs],
        np.where(twin >= 0, new["post"][twin], -1),
    )
    return compact, axes.pre_rows[kept["pre"]], axes.post_rows[kept["post"]]


def _blocks(null: xr.DataArray) -> list[tuple[int, int]]:
    """Spans of replicates that are drawn together."""
    n = null.sizes["replicate"]
    sizes = null.chunksizes.get("replicate", (n,))
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
