"""Cells: how many at each depth, and where they are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import describe_angle, is_angle
from microns_xr.errors import SchemaError
from microns_xr.layers import depth_of
from microns_xr.schema import AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

# Colours that are told apart with any common colour vision, and that stay with their words.
#
# Words: seven of the colours of Okabe and Ito (Color Universal Design, 2008; their yellow is hard
# to see on white), then the same with other markers. Numbers: viridis. Angles: a closed loop of
# colours.


PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
NO_VALUE = "#D4D4D4"
_MISSING = ("unknown", "")
_MARKERS = "o^sDvP*X"
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "++++", "oo", "**")
_LINES = ("-", "--", ":", "-.")

# Words that are known beforehand have the same colour in every picture, whichever of them it holds.
_VOCABULARIES = (
    ("L1", "L2/3", "L4", "L5", "L6", "WM"),
    ("excitatory_neuron", "inhibitory_neuron", "nonneuron"),
    (
        *("23P", "4P", "5P-IT", "5P-ET", "5P-NP", "6P-IT", "6P-CT"),
        *("BC", "MC", "BPC", "NGC", "oligo", "OPC", "astrocyte", "microglia", "pericyte"),
    ),
    ("V1", "RL", "AL", "LM"),
    ("full", "partial", "interareal", "truncated", "clean", "none"),
    ("matched", "not_matched"),
)


class Style(NamedTuple):
    """How a word is drawn: colour (hex), marker, hatch of bars, and line style."""

    colour: str
    marker: str
    hatch: str
    line: str


def styles_of(words: Iterable[Any]) -> dict[str, Style]:
    """Give every word its style, in a stable order."""
    found = sorted({str(word) for word in words})
    named = [word for word in found if word not in _MISSING]
    fitting = [v for v in _VOCABULARIES if 2 * len(set(v) & set(named)) >= max(1, len(named))]
    known = fitting[0] if fitting else ()
    others = [word for word in named if word not in known]
    place = {w: i for i, w in enumerate((*known, *others))}
    result = {}
    for word in sorted(named, key=place.__getitem__):
        lap, i = divmod(place[word], len(PALETTE))
        result[word] = Style(
            PALETTE[i],
            _MARKERS[lap % len(_MARKERS)],
            _HATCHES[lap % len(_HATCHES)],
            _LINES[lap % len(_LINES)],
        )
    grey = Style(NO_VALUE, "o", "", "-")
    return result | {word: grey for word in found if word in _MISSING}


@lru_cache(maxsize=1)
def cyclic_map() -> Colormap:
    """Return a colour map for angles: it ends where it begins.

    The colours go evenly around an ellipse in L* (lightness) and b* (blue to yellow) of CIE
    L*a*b* 1976, D65. Persons who do not tell red from green see both, so that to them, too, no two
    angles look alike; a* (green to red) goes along, as far as sRGB has such colours.
    """
    from matplotlib.colors import ListedColormap

    t = 2 * np.pi * np.arange(256) / 256
    red = 8 + 20 * np.cos(t) - 4 * np.sin(t)
    lab = np.stack([58 + 21 * np.cos(t), red, 50 * np.sin(t)], axis=1)
    return ListedColormap(_srgb(lab), name="microns_xr_angles")


def _srgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) to sRGB in 0 to 1; CIE 15:2004 and IEC 61966-2-1."""
    y = (lab[:, 0] + 16) / 116
    f = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz = xyz * np.array([0.95047, 1.0, 1.08883])
    to_rgb = np.array(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    )
    linear = np.clip(xyz @ to_rgb.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def scale_of(values: xr.DataArray) -> tuple[Colormap, Normalize]:
    """Return the colour map and the limits of numbers: angles go around their period."""
    import matplotlib as mpl
    from matplotlib.colors import Normalize

    if is_angle(values):
        period = describe_angle(values, str(values.name))[2]
        return cyclic_map(), Normalize(0, period)
    numbers = np.asarray(values.values, dtype=float)
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    return mpl.colormaps["viridis"], Normalize(float(low), float(high if high > low else low + 1))


def words_of(values: xr.DataArray) -> np.ndarray | None:
    """Return text and truth values as words, "unknown" where there is none; None for numbers."""
    kind = values.dtype.kind
    if kind in "OUTb":
        words = np.asarray(values.values).astype(object)
        words[np.asarray(pd.isna(words))] = "unknown"
        return np.array([str(w) for w in words], dtype=object)
    if kind not in "iuf":
        raise SchemaError(
            f"{values.name} has dtype {values.dtype}, expected text, truth values or numbers to "
            "colour by"
        )
    return None


def colours_of(values: xr.DataArray) -> np.ndarray:
    """Return the colour of every value."""
    from matplotlib.colors import to_hex

    words = words_of(values)
    if words is not None:
        styles = styles_of(words)
        return np.array([styles[word].colour for word in words], dtype=object)
    cmap, norm = scale_of(values)
    numbers = np.asarray(values.values, dtype=float)
    if is_angle(values):
        numbers = np.mod(numbers, float(norm.vmax or 1.0))
    finite = np.isfinite(numbers)
    result = np.full(numbers.shape, NO_VALUE, dtype=object)
    rgba = cmap(norm(numbers[finite]))
    result[finite] = [to_hex(colour) for colour in np.atleast_2d(rgba)] if finite.any() else []
    return result


# What all pictures share: where they are drawn, what they need, how their axes are named.


_LINE = 48  # signs of a label that fit beside axes of the default size


def axes_or_new(ax: Axes | None, **kwargs: Any) -> Axes:
    """Return the axes given, or new ones."""
    if ax is not None:
        if not hasattr(ax, "plot") or not hasattr(ax, "figure"):
            raise SchemaError(f"ax is a {type(ax).__name__}, expected matplotlib axes, or None")
        return ax
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure: Figure
    # The kernel of a notebook has its backend from the start, but is interactive only after the
    # first figure of pyplot. Asking in the usual way would choose a backend where there is none.
    in_notebook = "inline" in str(dict.__getitem__(mpl.rcParams, "backend"))
    if mpl.is_interactive() or in_notebook:
        import matplotlib.pyplot as plt

        figure = plt.figure(layout="constrained")
    else:
        figure = Figure(layout="constrained")
    axes: Axes = figure.subplots(**kwargs)
    return axes


def require(dataset: Any, names: tuple[str, ...], what: str, how: str) -> None:
    """Raise unless `dataset` is a Dataset that has all variables."""
    if not isinstance(dataset, xr.Dataset):
        raise SchemaError(f"{what} is a {type(dataset).__name__}, expected a Dataset: {how}")
    absent = [n for n in names if n not in dataset.variables]
    if absent:
        raise SchemaError(
            f"{what} has no {absent}, found {sorted(map(str, dataset.variables))}: {how}"
        )


def one_dim(array: Any, what: str, how: str) -> np.ndarray:
    """Return the values of a one-dimensional DataArray, lazy ones computed, or raise."""
    if not isinstance(array, xr.DataArray):
        raise SchemaError(f"{what} is a {type(array).__name__}, expected a DataArray: {how}")
    if array.ndim != 1:
        raise SchemaError(f"{what} has dims {array.dims}, expected one: {how}")
    return np.asarray(array.values)


def label_of(variable: xr.DataArray, text: str | None = None, width: int = _LINE) -> str:
    """Name a variable for an axis, with its units."""
    named = variable.attrs.get("long_name") or str(variable.name or "value").replace("_", " ")
    units = variable.attrs.get("units", "")
    shown = text or str(named)
    shown = textwrap.fill(shown, width)
    if units in ("", "1"):
        return shown
    return f"{shown}{' ' if len(shown) + len(str(units)) < width else chr(10)}({units})"


def band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """Shade an interval; where it is not known (NaN) there is a gap."""
    ax.fill_between(x, low, high, color=colour, alpha=0.22, lw=0, zorder=1)


def draw_legend(ax: Axes, title: str | None = None, *, beside: bool | None = None) -> None:
    """Draw the legend: right of the axes if `beside`, by default where it has many lines."""
    if beside is None:
        beside = len(ax.get_legend_handles_labels()[1]) > 6
    right: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.02, 1.0),
        "borderaxespad": 0.0,
        "frameon": False,
    }
    ax.legend(fontsize="small", title=title, title_fontsize="small", **(right if beside else {}))


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
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
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
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
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
