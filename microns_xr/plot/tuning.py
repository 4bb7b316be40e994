"""Angles: tuning curves, preferred angles, input currents."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.analysis.null_models import compare_values
from microns_xr.angles import describe_angle
from microns_xr.errors import SchemaError
from microns_xr.plot.cells import (
    PALETTE,
    axes_or_new,
    band,
    cyclic_map,
    draw_legend,
    label_of,
    one_dim,
    require,
    styles_of,
    words_of,
)
from microns_xr.tuning.fits import angle_axis, evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Connection probability against distance, and against the difference of preferred angles.


_MOST_LINES = 9


def connection_probability(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw connection probability against distance, with intervals.

    Parameters
    ----------
    found : xarray.Dataset
        From `microns_xr.analysis.connection_probability` with a distance: ``probability`` with its
        ends, and ``n_pairs`` over one dim of distances and up to two of populations.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        A line for each two populations that have a tested pair, whiskers for intervals, none where
        there is no interval. The legend counts the pairs that were tested; the vertical axis says
        whether these are lower bounds.

    Raises
    ------
    SchemaError
        If variables are absent, there is not one dim of distances, no pair was tested, or there
        are more than 9 lines.

    Examples
    --------
    >>> import microns_xr as mx
    >>> from microns_xr.analysis.probability import connection_probability as estimate
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> found = estimate(release.connectivity(), release.units(), by=None, distance=[0, 100, 200])
    >>> connection_probability(found).get_xlabel()
    'lateral distance (µm)'
    """
    how = "use mx.analysis.connection_probability(connectivity, units, distance=edges)"
    require(found, ("probability", "probability_low", "probability_high", "n_pairs"), "found", how)
    dims = [d for d in found["probability"].dims if str(d).endswith("_distance")]
    others = [d for d in found["probability"].dims if d not in dims]
    if len(dims) != 1:
        raise SchemaError(
            f"probability has dims {found['probability'].dims}, of which {dims} are distances, "
            "expected one: " + (how if not dims else "select one bin of the others, with .isel")
        )
    dim = dims[0]
    found = found.compute()
    choices = [
        dict(zip(others, place, strict=True))
        for place in product(*(range(found.sizes[d]) for d in others))
    ]
    choices = [c for c in choices if int(found["n_pairs"].isel(c).sum()) > 0]
    if not choices:
        raise SchemaError("no pair was tested (n_pairs is 0 everywhere): there is nothing to draw")
    if len(choices) > _MOST_LINES:
        raise SchemaError(
            f"found has {len(choices)} pairs of populations with a tested pair, expected at most "
            f"{_MOST_LINES} for lines that are told apart: select some with .sel, or take coarser "
            "populations"
        )
    ax = axes_or_new(ax)
    x = np.asarray(found[dim].values, dtype=float)
    for i, choice in enumerate(choices):
        line = found.isel(choice)
        p, low, high = (
            np.asarray(line[f"probability{end}"].values, dtype=float)
            for end in ("", "_low", "_high")
        )
        words = [str(line[d].item()) for d in others]
        name = " → ".join(words) or "all"
        colour = PALETTE[i % len(PALETTE)]
        # An interval of resamples need not hold the estimate; a whisker cannot be negative.
        ends = np.clip(np.stack([p - low, high - p]), 0, None)
        ax.errorbar(
            x,
            p,
            yerr=ends,
            color=colour,
            ls=("-", "--")[i // len(PALETTE)],
            marker="os^Dv"[i % 5],
            ms=4,
            lw=1.2,
            elinewidth=0.9,
            capsize=2,
            label=f"{name} ({int(line['n_pairs'].sum()):,} pairs)",
        )
    lower = "lower_bound" in found and bool(found["lower_bound"].any())
    ax.set(
        xlabel=label_of(found[dim], str(dim).replace("_", " ")),
        ylabel="connection probability" + (" (lower bound)" if lower else ""),
    )
    ax.set_ylim(bottom=0)
    draw_legend(ax, str(found.attrs.get("interval", "")).replace(" of confidence ", ", ") or None)
    return ax


def like_to_like(
    result: xr.Dataset,
    null: xr.Dataset | xr.DataArray | None = None,
    *,
    variable: str = "probability",
    ax: Axes | None = None,
) -> Axes:
    """Draw connection probability, or size, against the difference of preferred angles.

    Parameters
    ----------
    result : xarray.Dataset
        From `microns_xr.analysis.like_to_like`, with intervals or without.
    null : xarray.Dataset or xarray.DataArray, optional
        What `microns_xr.null_models.compare` (or ``compare_values``) gives of the same variable; or
        its replicates over (``replicate``, ``difference``). Drawn as a grey band with its mean.
    variable : str, optional
        ``"probability"`` or ``"mean_size"``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Numbers over the points are connected pairs; the legend counts all pairs.

    Raises
    ------
    SchemaError
        If variables are absent, or the null is of other bins.

    Examples
    --------
    >>> about = {"units": "degree", "long_name": "difference of pref_ori"}
    >>> result = xr.Dataset({"probability": ("difference", [0.2, 0.1])},
    ...     coords={"difference": ("difference", [0.0, 90.0], about)})
    >>> like_to_like(result).get_xlabel()
    'difference of pref_ori (degree)'
    """
    require(
        result,
        ("difference", variable),
        "result",
        "use mx.analysis.like_to_like(connectivity, units)",
    )
    observed = result[variable].compute()
    if observed.dims != ("difference",):
        raise SchemaError(f"{variable} has dims {observed.dims}, expected ('difference',)")
    ax = axes_or_new(ax)
    x = np.asarray(observed["difference"].values, dtype=float)
    if null is not None:
        _null(ax, x, observed, null)
    y = np.asarray(observed.values, dtype=float)
    label = "observed"
    if "n_pairs" in result:
        label = f"observed ({int(result['n_pairs'].sum()):,} pairs; numbers: connected ones)"
    ax.plot(x, y, color=PALETTE[0], marker="o", ms=5, lw=1.5, label=label, zorder=3)
    if f"{variable}_low" in result:
        low, high = (
            np.asarray(result[f"{variable}_{e}"].values, dtype=float) for e in ("low", "high")
        )
        share = result.attrs.get("confidence")
        text = f"{share:.0%} interval" if share else "interval"
        whiskers = np.clip(np.stack([y - low, high - y]), 0, None)
        ax.errorbar(
            x, y, yerr=whiskers, fmt="none", color=PALETTE[0], capsize=3, lw=1.2, label=text
        )
    if "n_connected" in result:
        for at, height, n in zip(x, y, result["n_connected"].values, strict=True):
            if np.isfinite(height):
                ax.annotate(
                    f"{int(n):,}", (at, height), (5, 5), textcoords="offset points", fontsize=7
                )
    lower = variable == "probability" and "lower bound" in str(result.attrs.get("completeness", ""))
    ax.set(
        xlabel=label_of(observed["difference"]),
        ylabel=label_of(observed) + (" (lower bound)" if lower else ""),
        xticks=x,
    )
    ax.set_ylim(bottom=0)
    ax.margins(x=0.08)
    ax.legend(fontsize="small")
    return ax


def _null(ax: Axes, x: np.ndarray, observed: xr.DataArray, null: Any) -> None:
    if isinstance(null, xr.DataArray):
        null = compare_values(observed, null)
    require(
        null, ("null_mean", "null_low", "null_high"), "null", "use mx.analysis.null_models.compare"
    )
    if null["null_mean"].dims != ("difference",) or not np.array_equal(null["difference"], x):
        raise SchemaError(
            f"null is over {dict(null['null_mean'].sizes)}, expected the bins of the result, "
            f"difference = {x.tolist()}: pass both through the same selection and bins"
        )
    mean, low, high = (
        np.asarray(null[n].values, dtype=float) for n in ("null_mean", "null_low", "null_high")
    )
    band(ax, x, low, high, "#555555")
    share = null.attrs.get("confidence")
    model = str(null.attrs.get("null", "")).partition("(")[0].replace("_", " ")
    name = f"null: {model}" if model else "null"
    text = f"{name} (mean, {share:.0%})" if share else f"{name} (mean)"
    ax.plot(x, mean, color="#555555", ls="--", lw=1.2, label=text, zorder=2)


def tuning_curve(
    rates: xr.DataArray,
    fit: xr.Dataset | None = None,
    *,
    error: xr.DataArray | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the tuning curve of one neuron, with errors and its fit.

    Parameters
    ----------
    rates : xarray.DataArray
        Over ``direction`` or ``orientation`` alone: select one neuron first.
    fit : xarray.Dataset, optional
        From `microns_xr.tuning.fit`, of that neuron.
    error : xarray.DataArray, optional
        Over the same angles and in the units of the rates: ``rate_error`` of trials.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        One period; a dotted line at the preferred angle of the fit.

    Raises
    ------
    SchemaError
        If rates are not of one neuron over angles that state what they are, or fit or error are of
        other angles or of several neurons.

    Examples
    --------
    >>> degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    >>> angles = ("orientation", [0.0, 45.0, 90.0, 135.0], degrees)
    >>> rates = xr.DataArray([1.0, 2.0, 1.0, 0.0], dims="orientation",
    ...     coords={"orientation": angles}, attrs={"units": "spikes/s", "long_name": "response"})
    >>> tuning_curve(rates).get_ylabel()
    'response (spikes/s)'
    """
    how = "select one neuron first, such as units.rate_ori.sel(nucleus_id=...)"
    values = one_dim(rates, "rates", how).astype(float)
    dim = str(rates.dims[0])
    axis = angle_axis(rates, dim)
    period = axis.period * axis.turn
    if not np.isfinite(values).any():
        raise SchemaError("rates are NaN at every angle: this neuron was not measured")
    x = np.asarray(rates[dim].values, dtype=float)
    whiskers = None
    if error is not None:
        whiskers = one_dim(error, "error", "rate_error of the same neuron").astype(float)
        if dim not in error.coords or not np.array_equal(error[dim].values, x):
            raise SchemaError(f"error has {error.dims}, expected the angles of the rates, {dim}")
    ax = axes_or_new(ax)
    ax.errorbar(
        x, values, yerr=whiskers, fmt="o", color=PALETTE[0], capsize=3, ms=5, label="measured"
    )
    if fit is not None:
        _fit(ax, fit, rates, dim, period)
    ax.set(xlabel=label_of(rates[dim], dim), ylabel=label_of(rates))
    ax.set_xlim(min(0.0, float(x.min())) - period / 40, max(period, float(x.max())) + period / 40)
    if axis.units == "degree":
        ax.set_xticks(np.arange(0, period + 1, period / 4))
    low = float(np.nanmin(values if whiskers is None else values - np.nan_to_num(whiskers)))
    ax.set_ylim(bottom=min(0.0, 1.05 * low))
    if fit is not None or error is not None:
        ax.legend(fontsize="small")
    return ax


def _fit(ax: Axes, fit: xr.Dataset, rates: xr.DataArray, dim: str, period: float) -> None:
    require(fit, ("kappa", "amplitude"), "fit", "use mx.tuning.fit(rates, dim=...)")
    if fit["kappa"].ndim:
        raise SchemaError(f"fit has dims {fit['kappa'].dims}, expected the fit of one neuron")
    if fit.attrs.get("tuning_dim") != dim:
        raise SchemaError(
            f"fit is over {fit.attrs.get('tuning_dim')!r} but rates over {dim!r}, expected the same"
        )
    grid = xr.DataArray(np.linspace(0, period, 181), dims=dim, attrs=rates[dim].attrs)
    curve = np.asarray(evaluate(fit, grid).values)
    name = "pref_ori" if "pref_ori" in fit else "pref_dir"
    best = float(fit[name])
    text = "fit"
    if "r2" in fit:
        text += f", r² = {float(fit['r2']):.2f}"
    status = str(fit["status"].item()) if "status" in fit else "ok"
    if status != "ok":
        text += f" ({status.replace('_', ' ')})"
    ax.plot(grid, curve, color=PALETTE[1], lw=1.8, label=text, zorder=1)
    if np.isfinite(best):
        sign = "°" if fit[name].attrs.get("units") == "degree" else " rad"
        ax.axvline(best, color="#555555", ls=":", lw=1.2, label=f"preferred: {best:.3g}{sign}")


def preferred_orientations(
    units: xr.Dataset,
    variable: str = "pref_ori",
    *,
    by: str | None = None,
    n_bins: int = 16,
    ax: Axes | None = None,
) -> Axes:
    """Draw the distribution of preferred orientations (or directions) around their circle.

    Parameters
    ----------
    units : xarray.Dataset
        Units or functional rows with the angle, NaN where there is none.
    variable : str, optional
        An angle that states its units, convention and, for orientations, period.
    by : str, optional
        Variable whose words are told apart by colour; by default colours are those of the angles.
    n_bins : int, optional
        Bins a period, the first one around 0, so that evenly measured angles lie inside of bins.
    ax : matplotlib.axes.Axes, optional
        Polar axes, or others, where the angle runs to the right; new polar axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        On polar axes angles are turned as the convention says, so that a bar points where the
        stimulus moved; orientations, which come round in half a turn, are drawn at both ends.

    Raises
    ------
    SchemaError
        If a variable is absent, the angle does not state what it is, or there is no value.

    Examples
    --------
    >>> angles = ("nucleus_id", [10.0, 80.0],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> ax = preferred_orientations(xr.Dataset({"pref_ori": angles}))
    >>> ax.name, len(ax.patches)
    ('polar', 32)
    """
    names = (variable,) if by is None else (variable, by)
    require(units, names, "units", "use mx.Release(...).units(functional='best_only')")
    angle = units[variable]
    state, convention, period = describe_angle(angle, variable)
    values = one_dim(angle, variable, "one angle a neuron").astype(float)
    known = np.isfinite(values)
    if not known.any():
        raise SchemaError(f"{variable} is NaN for all {values.size} neurons: nothing to draw")
    if n_bins < 2:
        raise SchemaError(f"n_bins is {n_bins}, expected at least 2")
    width = period / n_bins
    bins = np.floor(np.mod(values[known] + width / 2, period) / width).astype(int) % n_bins
    centres = np.arange(n_bins) * width
    words = np.full(known.sum(), "all", dtype=object)
    if by is not None:
        of_each = words_of(units[by])
        if of_each is None or units[by].dims != angle.dims:
            raise SchemaError(f"{by} has dims {units[by].dims}, expected one word a neuron")
        words = of_each[known]
    ax = axes_or_new(ax, subplot_kw={"projection": "polar"})
    polar = ax.name == "polar"
    scale = np.deg2rad(1.0) if state == "degree" else 1.0
    full = 360.0 if state == "degree" else 2 * np.pi
    laps = round(full / period) if polar else 1
    x = np.concatenate([centres + lap * period for lap in range(laps)])
    x, wide = (x * scale, width * scale) if polar else (x, width)
    base = np.zeros(n_bins)
    styles = styles_of(words)
    for word, style in styles.items():
        counts = np.bincount(bins[words == word], minlength=n_bins)
        colours: Any = style.colour if by is not None else cyclic_map()(centres / period)
        if by is None:
            colours = np.tile(colours, (laps, 1))
        ax.bar(
            x,
            np.tile(counts, laps),
            wide,
            bottom=np.tile(base, laps),
            color=colours,
            hatch=(style.hatch or None) if by is not None else None,
            edgecolor="white",
            lw=0.4,
            label=f"{word} ({counts.sum()})" if by is not None else None,
        )
        base += counts
    owners = "recorded units" if "scan_unit" in angle.dims else "neurons"
    _circle(ax, label_of(angle), convention, period / full, f"{int(known.sum())} {owners}")
    if not polar and state == "degree":
        ax.set_xticks(np.arange(0, period + 1, period / 4))
    if by is not None:
        where: dict[str, Any] = (
            {"loc": "upper left", "bbox_to_anchor": (1.08, 1.0)} if polar else {}
        )
        ax.legend(fontsize="small", title=by.replace("_", " "), **where)
    return ax


def _circle(ax: Axes, label: str, convention: str, turn: float, counted: str) -> None:
    """Name the axes; turn polar ones so that an angle points where the stimulus moved."""
    from matplotlib.ticker import MaxNLocator

    text = f"{label}, {convention.replace('_', ' ')}"
    if ax.name != "polar":
        ax.set(xlabel=text, ylabel=counted.split(maxsplit=1)[1])
        return
    polar: Any = ax
    polar.set_theta_zero_location("N" if convention.startswith("up") else "E")
    polar.set_theta_direction(-1 if convention == "up_clockwise" else 1)
    degrees = np.arange(0, 360, 45)
    polar.set_thetagrids(degrees, [f"{d % (360 * turn):g}°" for d in degrees])
    ends = ", each drawn at both ends" if turn < 1 else ""
    polar.set_xlabel(f"{text}\n{counted}{ends}; circles count them per bin")
    polar.set_rlabel_position(67.5)
    polar.yaxis.set_major_locator(MaxNLocator(4, integer=True, prune="lower"))
    # Counts are read on top of the bars, not below them.
    polar.set_axisbelow("line")
    for circle in polar.get_yticklabels():
        circle.set(fontsize="small", bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})


def _words_of(groups: Any, currents: xr.DataArray) -> np.ndarray:
    """One word a postsynaptic neuron, by label where the groups have labels."""
    if groups is None:
        return np.full(currents.shape[0], "all", dtype=object)
    if isinstance(groups, xr.DataArray):
        dim = str(groups.dims[0]) if groups.ndim else ""
        if groups.ndim != 1 or dim not in groups.coords:
            raise SchemaError(f"groups has dims {groups.dims}, expected one word a nucleus_id")
        groups = groups.reindex({dim: currents["post_nucleus_id"].values}, fill_value="unknown")
    words = np.asarray(groups, dtype=object)
    if words.shape != currents.shape[:1]:
        raise SchemaError(
            f"groups has shape {words.shape}, expected one word for each "
            f"of {currents.shape[0]} neurons"
        )
    return words


def currents_by_angle(
    currents: xr.DataArray, groups: Any = None, *, normalise: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw the mean input current against the angle of the stimulus.

    Parameters
    ----------
    currents : xarray.DataArray
        From `microns_xr.input_currents`: (``post_nucleus_id``, angle).
    groups : xarray.DataArray or array-like of str, optional
        A word for each neuron, matched by label where there are labels (``units.layer``),
        otherwise in the order of the currents; one line each.
    normalise : bool, optional
        Divide each neuron's current by its own mean, so that large neurons do not outweigh small
        ones.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Bands are one standard error over neurons.

    Raises
    ------
    SchemaError
        If the array is not (post_nucleus_id, angle), or no neuron has a current.

    Examples
    --------
    >>> currents = xr.DataArray([[1.0, 3.0]], dims=("post_nucleus_id", "orientation"),
    ...     coords={"orientation": ("orientation", [0.0, 90.0], {"units": "degree"})})
    >>> currents_by_angle(currents).get_xlabel()
    'orientation (degree)'
    """
    if not isinstance(currents, xr.DataArray):
        raise SchemaError(
            f"currents is a {type(currents).__name__}, expected a DataArray: use mx.input_currents"
        )
    if currents.ndim != 2 or currents.dims[0] != "post_nucleus_id":
        raise SchemaError(f"currents has dims {currents.dims}, expected (post_nucleus_id, angle)")
    angle = currents[currents.dims[1]]
    values = np.asarray(currents.values)
    driven = np.isfinite(values).all(axis=1) & (values.sum(axis=1) > 0)
    if not driven.any():
        raise SchemaError(
            f"none of the {values.shape[0]} neurons has a current above 0: nothing to draw"
        )
    words = _words_of(groups, currents)
    ax = axes_or_new(ax)
    for word, style in styles_of(words[driven]).items():
        rows = values[driven & (words == word)]
        if normalise:
            rows = rows / rows.mean(axis=1, keepdims=True)
        mean, error = rows.mean(axis=0), rows.std(axis=0) / np.sqrt(len(rows))
        line: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ls": style.line}
        ax.plot(angle, mean, ms=3, label=f"{word} ({len(rows)})", **line)
        band(ax, np.asarray(angle.values), mean - error, mean + error, style.colour)
    unit = angle.attrs.get("units", "degree")
    if unit == "degree" and angle.size > 2:
        step = 45.0 if np.ptp(angle.values) < 180 else 90.0
        ax.set_xticks(
            np.arange(np.ceil(angle.values.min() / step), 1 + angle.values.max() // step) * step
        )
    ax.set(
        xlabel=f"{angle.name} ({unit})",
        ylabel="input current / its mean"
        if normalise
        else f"input current ({currents.attrs.get('units', '')})",
    )
    ax.legend(fontsize="small")
    return ax
