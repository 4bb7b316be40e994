"""Shared parts of pictures: colours for every kind of colour vision, axes, labels of axes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import PERIODS, is_angle, period_of, require_likely_angle
from microns_xr.errors import SchemaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

# Seven of the colours of Okabe and Ito (Color Universal Design, 2008; their yellow is hard to see
# on white). With more words, the colours repeat with other markers.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
NO_VALUE = "#D4D4D4"
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
    result = {}
    for place, word in enumerate((*known, *(w for w in named if w not in known))):
        lap, i = divmod(place, len(PALETTE))
        marks = (marks[lap % len(marks)] for marks in (_MARKERS, _HATCHES, LINES))
        if word in named:
            result[word] = Style(PALETTE[i], *marks)
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
    """Mark angles without a convention as angles, of which a picture needs no more."""
    if values.name in PERIODS and values.attrs.get("units") in ("degree", "radian"):
        return values.assign_attrs(angle_convention=values.attrs.get("angle_convention"))
    return values


def words_of(values: xr.DataArray) -> np.ndarray | None:
    """Return text and truth values as words, with "unknown" if missing; None for numbers."""
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


def axes_or_new(ax: Axes | None, **kwargs: Any) -> Axes:
    if ax is not None:
        if not hasattr(ax, "plot") or not hasattr(ax, "figure"):
            raise SchemaError(f"ax is a {type(ax).__name__}, expected matplotlib axes, or None")
        return ax
    import matplotlib as mpl
    from matplotlib.figure import Figure

    make: Any = Figure
    # A notebook sets its backend at the start, but is interactive only after the first figure of
    # pyplot. Reading rcParams["backend"] in the usual way would choose a backend.
    in_notebook = "inline" in str(dict.__getitem__(mpl.rcParams, "backend"))
    if mpl.is_interactive() or in_notebook:
        from matplotlib.pyplot import figure as make
    axes: Axes = make(layout="constrained").subplots(**kwargs)
    return axes


# Position of a legend right of the axes.
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0, "frameon": False}


def require(dataset: Any, names: tuple[str, ...], what: str, how: str) -> None:
    """Raise unless `dataset` is a Dataset that has all variables."""
    if not isinstance(dataset, xr.Dataset):
        raise SchemaError(f"{what} is a {type(dataset).__name__}, expected a Dataset: {how}")
    absent = [n for n in names if not isinstance(n, str) or n not in dataset.variables]
    if absent:
        raise SchemaError(
            f"{what} has no {absent}, found {sorted(map(str, dataset.variables))}: {how}"
        )


def one_word_each(dataset: xr.Dataset, name: str, dims: tuple[Any, ...]) -> np.ndarray:
    words = words_of(dataset[name]) if dataset[name].dims == dims else None
    if words is None:
        raise SchemaError(
            f"{name} has dims {dataset[name].dims} and dtype {dataset[name].dtype}, expected one "
            f"word per cell over {dims}"
        )
    return words


def label_of(variable: xr.DataArray, name: str | None = None, width: int = 48) -> str:
    """Return the name of a variable and its units, in lines that fit axes of the default size."""
    plain = str(variable.name or "value").replace("_", " ")
    label = textwrap.fill(name or variable.attrs.get("long_name") or plain, width)
    units = str(variable.attrs.get("units", ""))
    if units in ("", "1"):
        return label
    return f"{label}{' ' if len(label) + len(units) < width else chr(10)}({units})"


def draw_band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """Shade an interval; NaN leaves a gap."""
    ax.fill_between(x, low, high, color=colour, alpha=0.22, lw=0, zorder=1)


def draw_legend(ax: Axes, title: str | None = None, **options: Any) -> None:
    """Draw the legend, right of the axes if it has many lines."""
    if len(ax.get_legend_handles_labels()[1]) > 6:
        options |= BESIDE
    ax.legend(fontsize="small", title=title, title_fontsize="small", **options)
