"""Cells: how many at each depth, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.angles import is_angle
from microns_xr.errors import SchemaError
from microns_xr.layers import depth_of
from microns_xr.plot.axes import axes_or_new, draw_legend, label_of, require
from microns_xr.plot.colours import NO_VALUE, scale_of, styles_of, words_of
from microns_xr.schema import AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["cells_in_space", "depth_profile"]

_UNITS_FROM = "use mx.Release(...).units()"
_LAYERS_FROM = "use mx.Release(...).layers() or mx.segment_layers(units)"


def depth_profile(
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    *,
    by: str = "layer",
    bin_um: float = 20.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many cells lie at each depth, with the layer borders.

    Parameters
    ----------
    units : xarray.Dataset
        With ``position`` in µm and the variable `by`.
    layers : xarray.Dataset, optional
        Borders, drawn as lines with names.
    by : str, optional
        Variable whose words are told apart by colour.
    bin_um : float, optional
        Bin height in µm.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Depth runs downwards.

    Raises
    ------
    SchemaError
        If a variable is absent or no word, no cell has a position, or `bin_um` is not positive.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> depth_profile(release.units(), release.layers()).get_ylabel()
    'depth from the pia (µm)'
    """
    require(units, ("position", by), "units", _UNITS_FROM)
    if layers is not None:
        require(layers, ("layer_name", "y_start", "y_end"), "layers", _LAYERS_FROM)
    if not bin_um > 0:
        raise SchemaError(f"bin_um is {bin_um}, expected a height in µm above 0")
    words = words_of(units[by]) if units[by].ndim == 1 else None
    if words is None:
        raise SchemaError(
            f"{by} has dims {units[by].dims} and dtype {units[by].dtype}, expected one word a cell"
        )
    depth = np.asarray(depth_of(units))
    if not np.isfinite(depth).any():
        raise SchemaError("units holds no cell with a position: there is nothing to draw")
    ax = axes_or_new(ax)
    edges = np.arange(np.floor(np.nanmin(depth)), np.nanmax(depth) + bin_um, bin_um)
    left = np.zeros(len(edges) - 1)
    for word, style in styles_of(words).items():
        counts = np.histogram(depth[words == word], edges)[0]
        ax.barh(
            edges[:-1],
            counts,
            bin_um,
            left=left,
            align="edge",
            color=style.colour,
            hatch=style.hatch or None,
            edgecolor="white" if style.hatch else "none",
            lw=0,
            label=word,
        )
        left += counts
    ax.set(xlabel=f"cells per bin of {bin_um:g} µm", ylabel="depth from the pia (µm)")
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    if layers is not None:
        _borders(ax, layers)
    if by != "layer" or layers is None:
        draw_legend(ax, by.replace("_", " "))
    return ax


def _borders(ax: Axes, layers: xr.Dataset) -> None:
    """Draw borders as lines, with the names at the right, where room is made for them."""
    left, right = ax.get_xlim()
    ax.set_xlim(left, right + 0.09 * (right - left))
    names = layers["layer_name"].values
    starts, ends = (np.asarray(layers[n].values, dtype=float) for n in ("y_start", "y_end"))
    for name, start, end in zip(names, starts, ends, strict=True):
        ax.axhline(start, color="black", lw=0.8)
        ax.annotate(
            str(name),
            (0.99, (start + end) / 2),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize="small",
        )
    ax.axhline(ends[-1], color="black", lw=0.8)


def cells_in_space(
    units: xr.Dataset,
    colour: str = "cell_type",
    *,
    axes: tuple[str, str] = ("x", "y"),
    layers: xr.Dataset | None = None,
    size: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where cells are, coloured by a variable.

    Parameters
    ----------
    units : xarray.Dataset
        With ``position`` in µm and the variable `colour`.
    colour : str, optional
        Words (a colour and marker each), numbers (a colour bar) or angles (a closed loop of
        colours). Cells without a value are grey, below the others.
    axes : tuple of str, optional
        Which of x, y and z runs to the right, and which up; y is depth, and runs downwards.
    layers : xarray.Dataset, optional
        Borders, drawn where depth runs downwards.
    size : float, optional
        Area of a marker in points squared; by the number of cells by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        In µm, both axes to the same scale.

    Raises
    ------
    SchemaError
        If a variable is absent or not one value a cell, axes are not two of x, y and z, or no cell
        has a position.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> ax = cells_in_space(release.units(), "layer", axes=("z", "y"))
    >>> ax.get_xlabel(), bool(ax.yaxis_inverted())
    ('z (µm)', True)
    """
    from matplotlib.collections import PathCollection

    require(units, ("position", colour), "units", _UNITS_FROM)
    if len(axes) != 2 or axes[0] == axes[1] or not set(axes) <= set(AXES):
        raise SchemaError(f"axes is {axes!r}, expected two of {AXES}, such as ('x', 'y')")
    values = units[colour]
    if values.dims != tuple(d for d in units["position"].dims if d != "axis"):
        raise SchemaError(f"{colour} has dims {values.dims}, expected one value a cell")
    where = units["position"].sel(axis=list(axes)).transpose(..., "axis")
    xy = np.asarray(where.values, dtype=float)
    placed = np.isfinite(xy).all(axis=1)
    if not placed.any():
        raise SchemaError("units holds no cell with a position: there is nothing to draw")
    ax = axes_or_new(ax)
    area = size if size is not None else float(np.clip(15000 / placed.sum(), 2.0, 25.0))
    dots: dict[str, Any] = {"s": area, "lw": 0, "rasterized": bool(placed.sum() > 5000)}
    words = words_of(values)
    if words is not None:
        styles = styles_of(words[placed])
        for word in sorted(styles, key=lambda w: styles[w].colour != NO_VALUE):
            rows, style = placed & (words == word), styles[word]
            ax.scatter(
                xy[rows, 0],
                xy[rows, 1],
                color=style.colour,
                marker=style.marker,
                label=f"{word} ({rows.sum()})",
                zorder=1 if style.colour == NO_VALUE else 2,
                **dots,
            )
        draw_legend(ax, colour.replace("_", " "), beside=True)
        legend: Any = ax.get_legend()
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([30])
    else:
        _numbers(ax, xy, placed, values, dots)
    for name, axis in zip(axes, (ax.xaxis, ax.yaxis), strict=True):
        axis.set_label_text("depth from the pia (µm)" if name == "y" else f"{name} (µm)")
    ax.set_aspect("equal")
    if axes[1] == "y":
        if not ax.yaxis_inverted():
            ax.invert_yaxis()
        if layers is not None:
            require(layers, ("layer_name", "y_start", "y_end"), "layers", _LAYERS_FROM)
            _borders(ax, layers)
    return ax


def _numbers(
    ax: Axes, xy: np.ndarray, placed: np.ndarray, values: xr.DataArray, dots: dict[str, Any]
) -> None:
    numbers = np.asarray(values.values, dtype=float)
    cmap, norm = scale_of(values)
    period = float(norm.vmax or 1.0)
    if is_angle(values):
        numbers = np.mod(numbers, period)
    known = np.isfinite(numbers)
    empty, full = placed & ~known, placed & known
    grey = ""
    if empty.any():
        label = f"no value ({empty.sum()})"
        grey = f"\ngrey: no value ({empty.sum()})"
        ax.scatter(xy[empty, 0], xy[empty, 1], color=NO_VALUE, label=label, zorder=1, **dots)
    drawn = ax.scatter(
        xy[full, 0], xy[full, 1], c=numbers[full], cmap=cmap, norm=norm, zorder=2, **dots
    )
    # Axes of equal scales are seldom as high as their place: the bar is to be as high as they are.
    beside = ax.inset_axes((1.03, 0.0, 0.03, 1.0))
    bar = ax.figure.colorbar(drawn, cax=beside, label=label_of(values, width=24) + grey)
    if is_angle(values):
        bar.set_ticks(np.linspace(0, period, 5).tolist())
