"""Cells: numbers by depth, positions, and partners."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.analysis.populations import By
from microns_xr.angles import is_angle
from microns_xr.connectivity.arrays import PAIR_DIMS
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, require_instance, whole_number
from microns_xr.layers import depth_of
from microns_xr.plot.style import (
    BESIDE,
    NO_VALUE,
    UNITS_FROM,
    axes_or_current,
    draw_colour_bar,
    draw_legend,
    floats,
    in_words,
    of_angles,
    require,
    scaled,
    styles_of,
    words_by,
    words_of,
)
from microns_xr.provenance import require_same_release
from microns_xr.schema import AXES
from microns_xr.select import inputs_to, outputs_from
from microns_xr.store.passed import Connectivity, connectivity_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def depth_profile(
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    *,
    by: By | None = None,
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
    by : str, collection of str, xarray.DataArray or pandas.Series, optional
        Populations, as `microns_xr.analysis.population_labels` takes them, one colour each; by
        default ``layer`` if the units have it, else all cells have the same colour.
    bin_um : float, optional
        Bin height in µm.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

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
    if by is None or isinstance(by, str):
        by = _require_units(units, by, "layer")
    else:
        require(units, ("position",), "units", UNITS_FROM)
    _require_layers(layers)
    require_instance("bin_um", bin_um, Real, "a height in µm")
    bin_um = float(bin_um)
    if not bin_um > 0:
        raise SchemaError(f"bin_um is {bin_um}, expected a height in µm above 0")
    (dim,) = units["position"].transpose(..., "axis").dims[:-1]
    words, name = words_by(units, by, dim)
    depth = np.asarray(depth_of(units))
    _require_positions(np.isfinite(depth))
    ax = axes_or_current(ax)
    top = np.floor(np.nanmin(depth))
    n_bins = max(1, int(np.ceil((np.nanmax(depth) - top) / bin_um)))
    edges = top + bin_um * np.arange(n_bins + 1)
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
    if by is not None and (name != "layer" or layers is None):
        draw_legend(ax, in_words(name))
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
        Where to draw; the current axes by default.

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
    require_instance("size", size, (Real, type(None)), "an area in points squared")
    if size is not None and not size > 0:
        raise SchemaError(f"size is {size}, expected an area in points squared above 0")
    where = _where(units, axes)
    one = where[..., 0]
    values = units[colour] if colour else one.copy(deep=False, data=_one_population(units))
    if values.dims != where.dims[:-1]:
        raise SchemaError(f"{colour} has dims {values.dims}, expected one value per cell")
    xy = floats(where)
    has_position = np.isfinite(xy).all(axis=1)
    _require_positions(has_position)
    xy, values = xy[has_position], of_angles(values[has_position])
    ax = axes_or_current(ax)
    words = words_of(values)
    # Sized by the cells with a value, so that these stand out from those without one.
    n = int(np.isfinite(floats(values)).sum()) if words is None else len(xy)
    area = size if size is not None else _area(n)
    if words is None:
        _draw_numbers(ax, xy, values, area)
    else:
        for word, style in styles_of(words).items():
            rows = words == word
            label = f"{word} ({rows.sum():,})"
            # Cells without a word are drawn first, below the others, then the most frequent ones.
            zorder = 1 if style.colour == NO_VALUE else 2 - rows.mean() / 2
            look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "label": label}
            _draw_dots(ax, xy[rows], area, zorder=zorder, **look)
        # Markers of the legend have an area of 30, independent of the size of those of the cells.
        title = in_words(colour or "") or None
        draw_legend(ax, title, markerscale=(30 / area) ** 0.5, **BESIDE)
    _finish(ax, axes, layers)
    return ax


def partners_in_space(
    connectivity: Connectivity,
    units: xr.Dataset,
    nucleus_id: int,
    *,
    axes: tuple[str, str] = ("x", "y"),
    layers: xr.Dataset | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a neuron with its presynaptic and postsynaptic partners where they are.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store, from which only the pairs of the neuron are read.
    units : xarray.Dataset
        With ``position`` in µm; its other cells are grey, below the partners.
    nucleus_id : int
        The neuron, on at least one axis of the connectivity.
    axes : tuple of str, optional
        Horizontal and vertical axis, of x, y and z; y is depth and runs downwards.
    layers : xarray.Dataset, optional
        Layer borders, drawn if the vertical axis is y.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        In µm, with the same scale on both axes. The legend counts all partners, and those not drawn
        because they or their positions are missing from the units.

    Raises
    ------
    UnknownLabelError
        If the neuron is on neither axis.
    SchemaError
        If a variable is absent, or `axes` are not two of x, y and z.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> units = xr.Dataset({"position": (("nucleus_id", "axis"), [[0.0, 90, 5], [20, 120, 5]])},
    ...     {"nucleus_id": [11, 12]})
    >>> ax = partners_in_space(two_neurons(), units, 11)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['inputs and outputs (1)', 'neuron 11']
    """
    require(units, ("position", "nucleus_id"), "units", UNITS_FROM)
    _require_layers(layers)
    nucleus_id = whole_number("nucleus_id", nucleus_id, 0)
    Lookup(units["nucleus_id"].values, "nucleus_id of the units")  # raises if one is repeated
    where = _where(units, axes).transpose("nucleus_id", ...)
    connectivity, _ = connectivity_of(connectivity)
    require_same_release(("connectivity", connectivity), ("units", units))
    partners = _partners(connectivity, nucleus_id)
    xy = floats(where.reindex(nucleus_id=[nucleus_id, *partners]))
    others = floats(where)[~np.isin(where["nucleus_id"].values, [nucleus_id, *partners])]
    ax = axes_or_current(ax)
    _draw_dots(ax, others, _area(len(others)) / 2, color=NO_VALUE, zorder=1)
    words = np.array(["", *partners.values()], dtype=object)
    for word, style in styles_of(partners.values()).items():
        rows = words == word
        n_absent = int((~np.isfinite(xy[rows]).all(axis=1)).sum())
        label = f"{word} ({rows.sum()}{f', {n_absent} without position' if n_absent else ''})"
        _draw_dots(ax, xy[rows], 16, color=style.colour, label=label, zorder=3)
        # From the neuron to each partner and to NaN, which ends the line.
        lines = np.stack([np.broadcast_to(xy[0], xy[rows].shape), xy[rows]], axis=1)
        lines = np.pad(lines, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, 2)
        ax.plot(*lines.T, color=style.colour, lw=0.4, alpha=0.4, zorder=2)
    _draw_dots(ax, xy[:1], 120, marker="*", color="black", label=f"neuron {nucleus_id}", zorder=4)
    draw_legend(ax, **BESIDE)
    _finish(ax, axes, layers)
    return ax


def _partners(connectivity: xr.Dataset, nucleus_id: int) -> dict[int, str]:
    """Return the role of each partner of a neuron; the neuron itself is left out."""
    result: dict[int, str] = {}
    if not any(nucleus_id in connectivity[dim].values for dim in PAIR_DIMS):
        inputs_to(connectivity, nucleus_id)  # raises
    for word, dim in zip(("outputs", "inputs"), PAIR_DIMS, strict=True):
        if nucleus_id in connectivity[dim].values:
            other = next(d for d in PAIR_DIMS if d != dim)
            of = outputs_from if word == "outputs" else inputs_to
            for partner in of(connectivity, nucleus_id)[other].values.tolist():
                result[partner] = "inputs and outputs" if partner in result else word
    result.pop(nucleus_id, None)
    return result


def _where(units: xr.Dataset, axes: tuple[str, str]) -> xr.DataArray:
    """Return two coordinates of the position of every cell."""
    if (
        not isinstance(axes, str | Sequence)
        or len(axes) != 2
        or axes[0] == axes[1]
        or not set(axes) <= set(AXES)
    ):
        raise SchemaError(f"axes is {axes!r}, expected two of {AXES}, such as ('x', 'y')")
    position = units["position"].transpose(..., "axis")
    order = list(position["axis"].values) if "axis" in position.coords else list(AXES)
    return position.isel(axis=[order.index(name) for name in axes])


def _area(n: int) -> float:
    """Return the area of a marker, in points squared, that shows n cells."""
    return float(np.clip(15000 / max(n, 1), 0.6, 25.0))


def _finish(ax: Axes, axes: tuple[str, str], layers: xr.Dataset | None) -> None:
    for name, axis in zip(axes, (ax.xaxis, ax.yaxis), strict=True):
        axis.set_label_text("depth from the pia (µm)" if name == "y" else f"{name} (µm)")
    ax.set_aspect("equal")
    if axes[1] == "y":
        _draw_downwards(ax, layers)


def _require_units(units: xr.Dataset, variable: str | None, default: str) -> str | None:
    """Return the variable that colours the cells, None if the units lack the default one."""
    if variable is None and default in getattr(units, "variables", ()):
        variable = default
    names = ("position",) if variable is None else ("position", variable)
    require(units, names, "units", UNITS_FROM)
    return variable


def _one_population(units: xr.Dataset) -> np.ndarray:
    return np.full(units["position"].size // len(AXES), "cells", dtype=object)


def _draw_dots(ax: Axes, xy: np.ndarray, area: float, **look: Any) -> Any:
    x, y = xy.T
    return ax.scatter(x, y, area, lw=0, rasterized=len(xy) > 5000, **look)


def _draw_numbers(ax: Axes, xy: np.ndarray, values: xr.DataArray, area: float) -> None:
    numbers, cmap, norm = scaled(values)
    known = np.isfinite(numbers)
    note = "" if known.all() else f"\ngrey: no value ({(~known).sum():,})"
    if note:
        _draw_dots(ax, xy[~known], min(area, _area(len(xy))), color=NO_VALUE, zorder=1)
    points = _draw_dots(ax, xy[known], area, c=numbers[known], cmap=cmap, norm=norm, zorder=2)
    ax.set_aspect("equal")
    bar = draw_colour_bar(ax, points, values, note)
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
