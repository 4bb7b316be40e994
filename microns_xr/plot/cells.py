"""Cells: numbers by depth, and positions."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.angles import is_angle
from microns_xr.errors import SchemaError, require_instance
from microns_xr.layers import depth_of
from microns_xr.plot.style import (
    BESIDE,
    NO_VALUE,
    axes_or_new,
    draw_legend,
    floats,
    label_of,
    of_angles,
    one_word_each,
    require,
    scaled,
    styles_of,
    words_of,
)
from microns_xr.schema import AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNITS_FROM = "use mx.Release(...).units(), or mx.as_units"


def depth_profile(
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    *,
    by: str | None = None,
    bin_um: float = 20.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the number of cells by depth, with the layer borders.

    Parameters
    ----------
    units : xarray.Dataset
        With ``position`` in µm.
    layers : xarray.Dataset, optional
        Layer borders, drawn as lines with the names of the layers.
    by : str, optional
        Variable with words, one colour each; by default ``layer`` if the units have it, else all
        cells have the same colour.
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
        If a variable is absent or not one word per cell, no cell has a position, or `bin_um` is
        not positive.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> depth_profile(release.units(), release.layers()).get_ylabel()
    'depth from the pia (µm)'
    """
    by = _require_units(units, by, "layer")
    _require_layers(layers)
    require_instance("bin_um", bin_um, Real, "a height in µm")
    if not bin_um > 0:
        raise SchemaError(f"bin_um is {bin_um}, expected a height in µm above 0")
    dims = units["position"].transpose(..., "axis").dims[:-1]
    words = _one_population(units) if by is None else one_word_each(units, by, dims)
    depth = np.asarray(depth_of(units))
    _require_positions(np.isfinite(depth))
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
    _draw_downwards(ax, layers)
    if by is not None and (by != "layer" or layers is None):
        draw_legend(ax, by.replace("_", " "))
    return ax


def cells_in_space(
    units: xr.Dataset,
    colour: str | None = None,
    *,
    axes: tuple[str, str] = ("x", "y"),
    layers: xr.Dataset | None = None,
    size: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the positions of cells, coloured by a variable.

    Parameters
    ----------
    units : xarray.Dataset
        With ``position`` in µm.
    colour : str, optional
        Variable with words (a colour and marker each), numbers (a colour bar) or angles (a cyclic
        colour map). Cells without a value are grey, below the others. By default ``cell_type`` if
        the units have it, else all cells have the same colour.
    axes : tuple of str, optional
        Horizontal and vertical axis, of x, y and z; y is depth and runs downwards.
    layers : xarray.Dataset, optional
        Layer borders, drawn if the vertical axis is y.
    size : float, optional
        Area of a marker in points squared; by default it depends on the number of cells.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        In µm, with the same scale on both axes.

    Raises
    ------
    SchemaError
        If a variable is absent or not one value per cell, `axes` are not two of x, y and z, or no
        cell has a position.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> ax = cells_in_space(release.units(), "layer", axes=("z", "y"))
    >>> ax.get_xlabel(), bool(ax.yaxis_inverted())
    ('z (µm)', True)
    """
    colour = _require_units(units, colour, "cell_type")
    _require_layers(layers)
    if (
        not isinstance(axes, str | Sequence)
        or len(axes) != 2
        or axes[0] == axes[1]
        or not set(axes) <= set(AXES)
    ):
        raise SchemaError(f"axes is {axes!r}, expected two of {AXES}, such as ('x', 'y')")
    position = units["position"].transpose(..., "axis")
    order = list(position["axis"].values) if "axis" in position.coords else list(AXES)
    where = position.isel(axis=[order.index(name) for name in axes])
    one = where[..., 0]
    values = units[colour] if colour else one.copy(deep=False, data=_one_population(units))
    if values.dims != where.dims[:-1]:
        raise SchemaError(f"{colour} has dims {values.dims}, expected one value per cell")
    xy = floats(where)
    has_position = np.isfinite(xy).all(axis=1)
    _require_positions(has_position)
    xy, values = xy[has_position], values[has_position]
    values = of_angles(values)
    ax = axes_or_new(ax)
    area = size if size is not None else float(np.clip(15000 / len(xy), 2.0, 25.0))
    dots: dict[str, Any] = {"s": area, "lw": 0, "rasterized": len(xy) > 5000}
    words = words_of(values)
    if words is None:
        _draw_numbers(ax, xy, values, dots)
    else:
        _draw_words(ax, xy, words, dots)
        # Markers of the legend have an area of 30, independent of the size of those of the cells.
        title = (colour or "").replace("_", " ")
        draw_legend(ax, title or None, markerscale=(30 / area) ** 0.5, **BESIDE)
    for name, axis in zip(axes, (ax.xaxis, ax.yaxis), strict=True):
        axis.set_label_text("depth from the pia (µm)" if name == "y" else f"{name} (µm)")
    ax.set_aspect("equal")
    if axes[1] == "y":
        _draw_downwards(ax, layers)
    return ax


def _require_units(units: xr.Dataset, variable: str | None, default: str) -> str | None:
    """Return the variable that colours the cells, None if the units lack the default one."""
    if variable is None and default in getattr(units, "variables", ()):
        variable = default
    names = ("position",) if variable is None else ("position", variable)
    require(units, names, "units", _UNITS_FROM)
    return variable


def _one_population(units: xr.Dataset) -> np.ndarray:
    return np.full(units["position"].size // len(AXES), "cells", dtype=object)


def _draw_words(ax: Axes, xy: np.ndarray, words: np.ndarray, dots: dict[str, Any]) -> None:
    styles = styles_of(words)
    # Cells without a word are drawn first, below the others.
    for word in sorted(styles, key=lambda w: styles[w].colour != NO_VALUE):
        rows, style = words == word, styles[word]
        ax.scatter(
            *xy[rows].T,
            color=style.colour,
            marker=style.marker,
            label=f"{word} ({rows.sum()})",
            zorder=1 if style.colour == NO_VALUE else 2,
            **dots,
        )


def _draw_numbers(ax: Axes, xy: np.ndarray, values: xr.DataArray, dots: dict[str, Any]) -> None:
    numbers, cmap, norm = scaled(values)
    known = np.isfinite(numbers)
    label = label_of(values, width=24)
    if not known.all():
        ax.scatter(*xy[~known].T, color=NO_VALUE, zorder=1, **dots)
        label += f"\ngrey: no value ({(~known).sum()})"
    x, y = xy[known].T
    points = ax.scatter(x, y, c=numbers[known], cmap=cmap, norm=norm, zorder=2, **dots)
    # Axes with equal scales rarely fill their space; a usual colour bar would be taller than them.
    bar_axes = ax.inset_axes((1.03, 0.0, 0.03, 1.0))
    bar = ax.figure.colorbar(points, cax=bar_axes, label=label)
    if is_angle(values):
        bar.set_ticks(np.linspace(0, float(norm.vmax or 1.0), 5).tolist())


def _require_positions(has_position: np.ndarray) -> None:
    if not has_position.any():
        raise SchemaError("units has no cell with a position: there is nothing to draw")


def _require_layers(layers: xr.Dataset | None) -> None:
    if layers is not None:
        names = ("layer_name", "y_start", "y_end")
        require(layers, names, "layers", "use mx.Release(...).layers() or mx.segment_layers(units)")


def _draw_downwards(ax: Axes, layers: xr.Dataset | None) -> None:
    """Let depth increase downwards, and draw layer borders with their names at the right."""
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    if layers is None:
        return
    # Leave space for the names.
    left, right = ax.get_xlim()
    ax.set_xlim(left, right + 0.09 * (right - left))
    columns = (layers[name].values for name in ("layer_name", "y_start", "y_end"))
    at_right: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "right"}
    for name, start, end in zip(*columns, strict=True):
        ax.axhline(start, color="black", lw=0.8)
        ax.text(0.99, (start + end) / 2, name, va="center", size="small", **at_right)
    for end in layers["y_end"].values[-1:]:
        ax.axhline(end, color="black", lw=0.8)
