"""Angles: tuning curves, preferred angles, input currents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.analysis.populations import By, groups_of
from microns_xr.angles import (
    PERIODS,
    describe_angle,
    is_angle,
    period_of,
    require_likely_angle,
    require_likely_units,
)
from microns_xr.errors import SchemaError
from microns_xr.plot.style import (
    BESIDE,
    PALETTE,
    angle_ticks,
    axes_or_current,
    closed,
    cyclic_map,
    draw_band,
    draw_legend,
    floats,
    in_words,
    label_of,
    require,
    styles_of,
    words_by,
)
from microns_xr.tuning.fits import angle_axis, evaluate, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        Over ``direction`` or ``orientation`` only: select one neuron first.
    fit : xarray.Dataset, optional
        From `microns_xr.tuning.fit`, of that neuron.
    error : xarray.DataArray, optional
        Over the same angles and in the units of the rates: ``rate_error`` of trials.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        One period, with a dotted line at the preferred angle of the fit. The first point is drawn
        again at the end of the period.

    Raises
    ------
    SchemaError
        If rates are not of one neuron, the angles do not have units and a convention, or `fit` or
        `error` are for other angles or several neurons.

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
    values = _one_dim(rates, "rates", how)
    dim = str(rates.dims[0])
    axis = angle_axis(rates, dim)
    period = axis.period * axis.turn
    if not np.isfinite(values).any():
        raise SchemaError("rates are NaN at every angle, expected a neuron that was recorded")
    x = floats(rates[dim])
    whiskers = None
    if error is not None:
        whiskers = _one_dim(error, "error", "rate_error of the same neuron")
        if dim not in error.coords or not np.array_equal(error[dim].values, x):
            raise SchemaError(f"error has {error.dims}, expected the angles of the rates, {dim}")
    ax = axes_or_current(ax)
    look: dict[str, Any] = {"color": PALETTE[0], "capsize": 3, "ms": 5, "label": "measured"}
    x, y, *ends = closed(rates[dim], values, *([] if whiskers is None else [whiskers]))
    ax.errorbar(x, y, yerr=ends[0] if ends else None, fmt="o", **look)
    if fit is not None:
        _draw_fit(ax, fit, rates, dim, period)
    ax.set(xlabel=label_of(rates[dim], dim), ylabel=label_of(rates))
    ax.set_xlim(min(0.0, float(x.min())) - period / 40, max(period, float(x.max())) + period / 40)
    if axis.units == "degree":
        ax.set_xticks(np.arange(0, period + 1, period / 4))
    low = float(np.nanmin(values if whiskers is None else values - np.nan_to_num(whiskers)))
    ax.set_ylim(bottom=min(0.0, 1.05 * low))
    if fit is not None or error is not None:
        draw_legend(ax)
    return ax


def _one_dim(array: Any, what: str, how: str) -> np.ndarray:
    if not isinstance(array, xr.DataArray):
        raise SchemaError(f"{what} is a {type(array).__name__}, expected a DataArray: {how}")
    if array.ndim != 1:
        raise SchemaError(f"{what} has dims {array.dims}, expected one: {how}")
    return floats(array)


def _draw_fit(ax: Axes, fit: xr.Dataset, rates: xr.DataArray, dim: str, period: float) -> None:
    require(fit, ("kappa", "amplitude"), "fit", "use mx.tuning.fit(rates, dim=...)")
    if fit["kappa"].ndim:
        raise SchemaError(f"fit has dims {fit['kappa'].dims}, expected the fit of one neuron")
    if fit.attrs.get("tuning_dim") != dim:
        raise SchemaError(
            f"fit is over {fit.attrs.get('tuning_dim')!r} but rates over {dim!r}, expected the same"
        )
    grid = xr.DataArray(np.linspace(0, period, 181), dims=dim, attrs=rates[dim].attrs)
    text = "fit"
    if "r2" in fit:
        text += f", r² = {float(fit['r2']):.2f}"
    if "status" in fit and fit["status"].item() != "ok":
        text += f" ({fit['status'].item().replace('_', ' ')})"
    ax.plot(grid, floats(evaluate(fit, grid)), color=PALETTE[1], lw=1.8, label=text, zorder=1)
    preferred = fit["pref_ori" if "pref_ori" in fit else "pref_dir"]
    if np.isfinite(preferred):
        sign = "°" if preferred.attrs.get("units") == "degree" else " rad"
        text = f"preferred: {float(preferred):.3g}{sign}"
        ax.axvline(float(preferred), color="#555555", ls=":", lw=1.2, label=text)


def preferred_orientations(
    units: xr.Dataset,
    variable: str = "pref_ori",
    *,
    by: By | None = None,
    n_bins: int = 16,
    ax: Axes | None = None,
) -> Axes:
    """Draw the distribution of preferred orientations (or directions) around their circle.

    Parameters
    ----------
    units : xarray.Dataset
        Units or functional rows with the angle, NaN if there is none.
    variable : str, optional
        An angle with units, convention and, for orientations, period as attributes.
    by : str, collection of str, xarray.DataArray or pandas.Series, optional
        Populations, as `microns_xr.analysis.population_labels` takes them, one colour each; by
        default colours are those of the angles.
    n_bins : int, optional
        Bins per period. The first one is centred on 0, so that measured angles lie inside bins.
    ax : matplotlib.axes.Axes, optional
        Where to draw: polar axes, or others, with the angle on the horizontal axis; by default the
        current axes if they are polar, else new polar ones.

    Returns
    -------
    matplotlib.axes.Axes
        On polar axes angles follow the convention, so that a bar points where the stimulus moved;
        orientations, which repeat after half a turn, are drawn at both ends.

    Raises
    ------
    SchemaError
        If a variable is absent, the angle does not have units and a convention, or all values are
        NaN.

    Examples
    --------
    >>> angles = ("nucleus_id", [10.0, 80.0],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> ax = preferred_orientations(xr.Dataset({"pref_ori": angles}))
    >>> ax.name, len(ax.patches)
    ('polar', 32)
    """
    names = (variable, by) if isinstance(by, str) else (variable,)
    require(units, names, "units", "use mx.Release(...).units(functional='best_only')")
    angle = units[variable]
    state, convention, _ = describe_angle(angle, variable)
    period = period_of(angle, variable)
    values = _one_dim(angle, variable, "one angle per neuron")
    known = np.isfinite(values)
    require_likely_units(values, state, variable)
    if not known.any():
        raise SchemaError(f"{variable} is NaN for all {values.size} neurons: nothing to draw")
    if n_bins < 2:
        raise SchemaError(f"n_bins is {n_bins}, expected at least 2")
    words, name = words_by(units, by, angle.dims[0])
    words = words[known]
    ax = axes_or_current(ax, polar=True)
    polar = ax.name == "polar"
    width = period / n_bins
    bins = np.floor(np.mod(values[known] + width / 2, period) / width).astype(int) % n_bins
    centres = np.arange(n_bins) * width
    full = 360.0 if state == "degree" else 2 * np.pi
    laps = round(full / period) if polar else 1
    scale = 2 * np.pi / full if polar else 1.0
    x = np.concatenate([centres + lap * period for lap in range(laps)]) * scale
    base = np.zeros(n_bins * laps)
    for word, style in styles_of(words).items():
        counts = np.tile(np.bincount(bins[words == word], minlength=n_bins), laps)
        look: dict[str, Any] = {"color": np.tile(cyclic_map()(centres / period), (laps, 1))}
        if by is not None:
            look = {"color": style.colour, "hatch": style.hatch or None}
            look["label"] = f"{word} ({(words == word).sum()})"
        ax.bar(x, counts, width * scale, bottom=base, edgecolor="white", lw=0.4, **look)
        base += counts
    noun = "recorded units" if "scan_unit" in angle.dims else "neurons"
    label = f"{label_of(angle)}, {(convention or 'convention not stated').replace('_', ' ')}"
    if polar:
        caption = f"{known.sum()} {noun}" + (", each drawn at both ends" if laps > 1 else "")
        _rotate_axes(ax, convention or "", period / full)
        ax.set_xlabel(f"{label}\n{caption}; circles count them per bin")
    else:
        ax.set(xlabel=label, ylabel=noun)
        if state == "degree":
            ax.set_xticks(np.arange(0, period + 1, period / 4))
    if by is not None:
        # Polar axes are round, so the legend is placed beside them.
        draw_legend(
            ax, in_words(name), **(BESIDE | {"bbox_to_anchor": (1.08, 1.0)} if polar else {})
        )
    return ax


def _rotate_axes(ax: Any, convention: str, share: float) -> None:
    """Turn polar axes so that an angle points where the stimulus moved, and mark them."""
    from matplotlib.ticker import MaxNLocator

    ax.set_theta_zero_location("N" if convention.startswith("up") else "E")
    ax.set_theta_direction(-1 if convention == "up_clockwise" else 1)
    degrees = np.arange(0, 360, 45)
    ax.set_thetagrids(degrees, [f"{d % (360 * share):g}°" for d in degrees])
    ax.set_rlabel_position(67.5)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True, prune="lower"))
    # Counts are written on top of the bars.
    ax.set_axisbelow("line")
    for circle in ax.get_yticklabels():
        circle.set(fontsize="small", bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5})


def currents_by_angle(
    currents: xr.DataArray,
    by: By | None = None,
    *,
    normalise: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mean input current against the angle of the stimulus.

    Parameters
    ----------
    currents : xarray.DataArray
        From `microns_xr.input_currents`: (``post_nucleus_id``, angle).
    by : str, collection of str, xarray.DataArray or pandas.Series, optional
        Populations, one line each: labels over ``nucleus_id``, matched by label, such as
        ``units.layer``; or the name of an annotation of the currents (``"layer"`` for
        ``post_layer``, which `microns_xr.annotate` writes), or several for their product.
    normalise : bool, optional
        Divide the current of each neuron by its mean, so that neurons with strong input do not
        outweigh others. Neurons with a mean of 0 or less are left out.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Bands are one standard error over neurons. The first point of a curve over a whole period is
        drawn again at the end of the period.

    Raises
    ------
    SchemaError
        If the currents are not (post_nucleus_id, angle), no neuron has a current, or labels are not
        one word, integer or boolean per neuron.
    UnknownLabelError
        If there is no such annotation, or none of the neurons has a label.

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
    if currents.ndim != 2 or "post_nucleus_id" not in currents.dims:
        raise SchemaError(
            f"currents has dims {currents.dims}, expected (post_nucleus_id, angle): select along "
            "the others, or take the mean"
        )
    currents = currents.transpose("post_nucleus_id", ...)
    angle = currents[currents.dims[1]]
    values = np.asarray(currents.values)
    # Weights below 0 may make a current negative.
    has_current = values.sum(axis=1) > 0 if normalise else (values != 0).any(axis=1)
    has_current &= np.isfinite(values).all(axis=1)
    if not has_current.any():
        raise SchemaError(
            f"none of the {values.shape[0]} neurons has a current"
            + (" with a mean above 0: nothing to draw, unless normalise=False" if normalise else "")
        )
    words = np.full(values.shape[0], "all", dtype=object)
    if by is not None:
        groups = groups_of(currents.coords.to_dataset(), None, by, "post")
        words = groups.words[groups.codes].astype(str)
    unit = angle.attrs.get("units", "degree" if angle.name in PERIODS else "")
    if is_angle(angle) or angle.name in PERIODS:
        require_likely_angle(angle.assign_attrs(units=unit), str(angle.name))
    ax = axes_or_current(ax)
    for word, style in styles_of(words[has_current]).items():
        rows = values[has_current & (words == word)]
        if normalise:
            rows = rows / rows.mean(axis=1, keepdims=True)
        mean, error = rows.mean(axis=0), rows.std(axis=0) / np.sqrt(len(rows))
        x, mean, error = closed(angle, mean, error)
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ls": style.line}
        ax.plot(x, mean, ms=3, label=f"{word} ({len(rows)})", **look)
        draw_band(ax, x, mean - error, mean + error, style.colour)
    angle_ticks(ax, x, unit)
    ylabel = "input current / its mean" if normalise else label_of(currents, "input current")
    ax.set(xlabel=f"{angle.name} ({unit})" if unit else str(angle.name), ylabel=ylabel)
    draw_legend(ax)
    return ax


def aligned_currents(aligned: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the mean input current relative to each neuron's own preferred angle.

    Parameters
    ----------
    aligned : xarray.Dataset
        From `microns_xr.analysis.align_to_preferred`, with an interval or without: ``mean_current``
        over ``relative_orientation`` or ``relative_direction``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        From minus half a period to plus half a period; the last point repeats the first.
        The band is the interval; a dotted line is at the preferred angle of the neurons.

    Raises
    ------
    SchemaError
        If there is no mean current over one dim, or no neuron is in the average.

    Examples
    --------
    >>> angles = ("relative_orientation", [-90.0, -45.0, 0.0, 45.0], {"units": "degree"})
    >>> aligned = xr.Dataset({"mean_current": ("relative_orientation", [0.8, 1.0, 1.2, 1.0])},
    ...     coords={"relative_orientation": angles})
    >>> float(aligned_currents(aligned).lines[0].get_xdata()[-1])
    90.0
    """
    how = "use mx.analysis.align_to_preferred(currents, units)"
    require(aligned, ("mean_current",), "aligned", how)
    mean = aligned["mean_current"]
    values = _one_dim(mean, "mean_current", how)
    if not np.isfinite(values).all():
        raise SchemaError("mean_current is NaN, expected the average of one neuron or more")
    relative = mean[mean.dims[0]]
    ends = [floats(aligned[n]) for n in ("mean_current_low", "mean_current_high") if n in aligned]
    name = str(relative.name).removeprefix("relative_")
    x, values, *ends = closed(relative.rename(name), values, *ends)
    ax = axes_or_current(ax)
    n = f"mean of {int(aligned['n_neurons'])} neurons" if "n_neurons" in aligned else "mean"
    ax.plot(x, values, color=PALETTE[0], marker="o", ms=4, label=n)
    if ends:
        share = aligned.attrs.get("confidence")
        label = f"{share:.0%} interval" if share else "interval"
        draw_band(ax, x, ends[0], ends[1], PALETTE[0], label)
    ax.axvline(0, color="#555555", ls=":", lw=1.2, label="own preferred angle")
    angle_ticks(ax, x, relative.attrs.get("units", ""))
    unit = mean.attrs.get("units", "1")
    ylabel = "input current / its mean" if unit == "1" else label_of(mean, "input current")
    ax.set(xlabel=label_of(relative), ylabel=ylabel)
    draw_legend(ax)
    return ax


def with_angle(units: xr.Dataset, name: str) -> xr.Dataset:
    """Return units with a preferred angle, from their table or from a curve fitted to rates."""
    rates = {"pref_ori": "rate_ori", "pref_dir": "rate_dir"}.get(name)
    if name in units.variables or rates not in units.variables:
        return units
    curve = fit_of(units[rates])
    angle = curve[name].where(curve["converged"])
    text = f"{angle.attrs.get('long_name', name)} of fitted curves"
    return units.assign({name: angle.assign_attrs(long_name=text)})


def fit_of(rates: xr.DataArray) -> xr.Dataset:
    """Fit the usual curve to rates by direction or orientation."""
    if "direction" in rates.dims:
        return fit(rates, dim="direction", model="double_von_mises")
    return fit(rates, dim="orientation", model="von_mises")
