"""Connection probability against distance, and against the difference of preferred angles."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.analysis.compare import compare_values
from microns_xr.errors import SchemaError
from microns_xr.plot.axes import axes_or_new, band, draw_legend, label_of, require
from microns_xr.plot.colours import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["connection_probability", "like_to_like"]

_MOST_LINES = 9


def connection_probability(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw connection probability against distance, with intervals.

    Parameters
    ----------
    found : xarray.Dataset
        From `microns_xr.connection_probability` with a distance: ``probability`` with its
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
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> found = estimate(release.connectivity(), release.units(), by=None, distance=[0, 100, 200])
    >>> connection_probability(found).get_xlabel()
    'lateral distance (µm)'
    """
    how = "use mx.connection_probability(connectivity, units, distance=edges)"
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
        From `microns_xr.like_to_like`, with intervals or without.
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
    require(result, ("difference", variable), "result", "use mx.like_to_like(connectivity, units)")
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
    lower = variable == "probability" and "lower bound" in str(result.attrs.get("note", ""))
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
    require(null, ("null_mean", "null_low", "null_high"), "null", "use mx.null_models.compare")
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
