"""Shared parts of pictures: colours for every kind of colour vision, axes, labels of axes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Hashable, Iterable
from functools import lru_cache
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.populations import By, labels_of
from microns_xr.angles import PERIODS, full_turn, is_angle, period_of, require_likely_angle
from microns_xr.errors import SchemaError, part_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

# Seven of the colours of Okabe and Ito (Color Universal Design, 2008; their yellow is hard to see
# on white), then others that differ from them and from each other in hue and lightness.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555"),
    *("#770011", "#77DD22", "#8866FF", "#556600", "#FFAA99", "#AAAA77", "#22DDCC", "#DD2255"),
    *("#BBAAFF", "#880066", "#0000BB", "#443300", "#229900", "#FF44EE", "#333366", "#004422"),
)
# After so many words, markers and lines change too, for those who cannot tell all colours apart.
_PER_MARKER = 7
NO_VALUE = "#D4D4D4"
UNITS_FROM = "use mx.Release(...).units(), or mx.as_units"
_MISSING = ("unknown", "")
_MARKERS = "o^sDvP*X"
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "++++", "oo", "**")
LINES = ("-", "--", ":", "-.")

# A word of a vocabulary has the same colour in every picture, whichever other words it shows.
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
    ("inputs", "outputs", "inputs and outputs"),
)


class Style(NamedTuple):
    """Style of a word: colour (hex), marker, hatch of bars, and line style."""

    colour: str
    marker: str
    hatch: str
    line: str


def styles_of(words: Iterable[Any]) -> dict[str, Style]:
    """Return the style of every word, in a stable order."""
    unique = sorted({str(word) for word in words})
    named = [word for word in unique if word not in _MISSING]
    # The vocabulary that at least half of the words belong to.
    fits = (v for v in _VOCABULARIES if 2 * len(set(v) & set(named)) >= max(1, len(named)))
    known = next(fits, ())
    places = {word: place for place, word in enumerate(known) if word in named}
    # Other words take the colours after those of the vocabulary, then those of its absent words.
    spare = sorted(set(range(len(PALETTE))) - {*places.values()}, key=lambda p: p < len(known))
    others = (word for word in named if word not in places)
    places |= dict(zip(others, chain(spare, count(len(PALETTE))), strict=False))
    result = {}
    for word, place in places.items():
        lap, i = divmod(place, len(PALETTE))
        group = place // _PER_MARKER
        marker, line = _MARKERS[group % len(_MARKERS)], LINES[group % len(LINES)]
        result[word] = Style(PALETTE[i], marker, _HATCHES[lap % len(_HATCHES)], line)
    return result | {w: Style(NO_VALUE, "o", "", "-") for w in unique if w in _MISSING}


@lru_cache(maxsize=1)
def cyclic_map() -> Colormap:
    """Return a colour map for angles, which ends with the colour it begins with.

    The colours go evenly around an ellipse in L* (lightness) and b* (blue to yellow) of CIE
    L*a*b* 1976, D65. People with red-green colour blindness see both, so no two angles look alike
    to them; a* (green to red) follows as far as sRGB has such colours.
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


def scaled(values: xr.DataArray) -> tuple[np.ndarray, Colormap, Normalize]:
    """Return numbers with their colour map and limits; angles go around their period."""
    import matplotlib as mpl
    from matplotlib.colors import Normalize

    numbers = floats(values)
    if is_angle(values):
        period = period_of(values, str(values.name))
        require_likely_angle(values, str(values.name))
        return np.mod(numbers, period), cyclic_map(), Normalize(0, period)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return numbers, mpl.colormaps["viridis"], Normalize(low, high if high > low else low + 1)


def of_angles(values: xr.DataArray) -> xr.DataArray:
    """Mark angles without a convention as angles, since a picture needs no convention."""
    if values.name in PERIODS and values.attrs.get("units") in ("degree", "radian"):
        return values.assign_attrs(angle_convention=values.attrs.get("angle_convention"))
    return values


def words_of(values: xr.DataArray) -> np.ndarray | None:
    """Return text and booleans as words, with "unknown" if missing; None for numbers."""
    kind = values.dtype.kind
    if kind in "OUTb":
        words = np.asarray(values.values).astype(object)
        words[np.asarray(pd.isna(words))] = "unknown"
        return np.array([str(w) for w in words], dtype=object)
    if kind not in "iuf":
        raise SchemaError(
            f"{values.name} has dtype {values.dtype}, expected text, booleans or numbers to "
            "colour by"
        )
    return None


def colours_of(values: xr.DataArray) -> np.ndarray:
    from matplotlib.colors import to_hex

    words = words_of(values)
    if words is not None:
        styles = styles_of(words)
        return np.array([styles[word].colour for word in words], dtype=object)
    numbers, cmap, norm = scaled(values)
    known = np.isfinite(numbers)
    result = np.full(numbers.shape, NO_VALUE, dtype=object)
    result[known] = [to_hex(rgba) for rgba in cmap(norm(numbers[known]))]
    return result


def floats(values: xr.DataArray) -> np.ndarray:
    """Return the values as float64, computing lazy ones."""
    return np.asarray(values.values, dtype=float)


def axes_or_current(ax: Axes | None, *, polar: bool = False) -> Axes:
    """Return `ax`, or the current axes of pyplot if they match `polar`."""
    if ax is not None:
        if not hasattr(ax, "plot") or not hasattr(ax, "figure"):
            raise SchemaError(f"ax is a {type(ax).__name__}, expected matplotlib axes, or None")
        return ax
    import matplotlib.pyplot as plt

    if plt.gcf().axes:
        if (plt.gca().name == "polar") == polar:
            return plt.gca()
        plt.figure()
    if plt.gcf().get_layout_engine() is None:
        # Labels, legends and colour bars beside the axes are inside the figure.
        plt.gcf().set_layout_engine("constrained")
    return plt.gcf().add_subplot(projection="polar" if polar else None)


# Position of a legend right of the axes.
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "frameon": False}


def require(dataset: Any, names: tuple[str, ...], what: str, how: str) -> None:
    """Raise unless `dataset` is a Dataset that has all variables."""
    if not isinstance(dataset, xr.Dataset):
        how = part_of(dataset, what) or how
        raise SchemaError(f"{what} is a {type(dataset).__name__}, expected a Dataset: {how}")
    absent = [n for n in names if not isinstance(n, str) or n not in dataset.variables]
    if absent:
        raise SchemaError(
            f"{what} has no {absent}, found {sorted(map(str, dataset.variables))}: {how}"
        )


def is_wide(values: np.ndarray) -> bool:
    """Whether positive values span a factor of ten, for a logarithmic scale."""
    return bool(values.size and values.max() >= 10 * values.min() > 0)


_MAX_POPULATIONS = 150


def words_by(units: xr.Dataset, by: By | None, dim: Hashable) -> tuple[np.ndarray, str]:
    """Return the population of each cell as a word, and the name of what groups them."""
    if by is None:
        return np.full(units.sizes[dim], "cells", dtype=object), ""
    labels = labels_of(units, by, str(dim))
    n = len(np.unique(labels.values.astype(str)))
    if n > _MAX_POPULATIONS:  # such as ids
        raise SchemaError(
            f"{labels.name} makes {n} groups, expected at most {_MAX_POPULATIONS} in a picture: "
            "group by a coarser variable"
        )
    return labels.values.astype(str).astype(object), str(labels.name)


_PLAIN = {"pref": "preferred", "ori": "orientation", "dir": "direction", "n": "number of"}


def in_words(text: Any) -> str:
    """Return text with the names of variables spelled out as words."""
    names = re.compile(r"\w+_\w+")
    return names.sub(lambda m: " ".join(_PLAIN.get(w, w) for w in m[0].split("_")), str(text))


def label_of(variable: xr.DataArray, name: str | None = None, width: int = 48) -> str:
    """Return the name of a variable and its units, in lines that fit axes of the default size."""
    long_name = variable.attrs.get("long_name")
    label = textwrap.fill(in_words(name or long_name or variable.name or "value"), width)
    units = str(variable.attrs.get("units", ""))
    if units in ("", "1"):
        return label
    last = len(label) - label.rfind("\n") - 1
    separator = " " if last + len(units) < width else "\n"
    return label + separator + textwrap.fill(f"({units})", width)


def closed(angle: xr.DataArray, *values: np.ndarray) -> list[np.ndarray]:
    """Return angles and values, with the first repeated after a period if they go around."""
    x = floats(angle)
    period = angle.attrs.get("period")
    if period is None and angle.name in PERIODS:
        period = PERIODS[str(angle.name)] * full_turn(angle.attrs.get("units", "degree"))
    around = [x, *values]
    if period is None or x.size < 2 or x[0] + period - x[-1] > 1.5 * np.diff(x).max():
        return around
    return [np.append(v, v[0] + (period if v is x else 0)) for v in around]


def angle_ticks(ax: Axes, x: np.ndarray, units: str) -> None:
    if units == "degree" and x.size > 2:
        step = 45.0 if np.ptp(x) <= 180 else 90.0
        ax.set_xticks(np.arange(np.ceil(x.min() / step), 1 + x.max() // step) * step)


def draw_colour_bar(ax: Axes, image: Any, variable: xr.DataArray, note: str = "") -> Any:
    """Draw a colour bar as high as the axes, with the whole label."""
    # Axes with equal scales rarely fill their space; an ordinary colour bar would be taller.
    ax.apply_aspect()
    height = ax.get_position().height * ax.figure.bbox.height / ax.figure.dpi
    label = label_of(variable, width=max(16, int(12 * height))) + note
    return ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.03, 1.0)), label=label)


def draw_band(
    ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, label: str = ""
) -> None:
    """Shade an interval; NaN leaves a gap."""
    # A label that begins with "_" is not in the legend.
    look: dict[str, Any] = {"alpha": 0.22, "lw": 0, "zorder": 1, "label": label or "_"}
    ax.fill_between(x, low, high, color=colour, **look)


def draw_legend(ax: Axes, title: str | None = None, **options: Any) -> None:
    """Draw the legend, to the right of the axes if it is long, in lines that fit the axes."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 6:
        options = BESIDE | options
    width = max(20, int(13 * ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi) - 6)
    labels = ["\n".join(textwrap.fill(s, width) for s in text.split("\n")) for text in labels]
    ax.legend(handles, labels, fontsize="small", title=title, title_fontsize="small", **options)
