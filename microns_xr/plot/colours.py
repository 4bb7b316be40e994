"""Colours that are told apart with any common colour vision, and that stay with their words.

Words: seven of the colours of Okabe and Ito (Color Universal Design, 2008; their yellow is hard to
see on white), then the same with other markers. Numbers: viridis. Angles: a closed loop of colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import describe_angle, is_angle
from microns_xr.errors import SchemaError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

__all__ = [
    "NO_VALUE",
    "PALETTE",
    "Style",
    "colours_of",
    "cyclic_map",
    "scale_of",
    "styles_of",
    "words_of",
]

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
    """Give every word its style, in a stable order.

    Parameters
    ----------
    words : iterable
        Words, repeated or not.

    Returns
    -------
    dict of str to Style
        Layers, classes, cell types, areas and kinds of completeness have colours of their own;
        other words follow by alphabet. "unknown" is grey, and last.

    Examples
    --------
    >>> list(styles_of(["unknown", "L4", "L1"]))
    ['L1', 'L4', 'unknown']
    >>> styles_of(["L4"])["L4"] == styles_of(["L4", "L1"])["L4"]
    True
    """
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

    Returns
    -------
    matplotlib.colors.ListedColormap
        256 colours, 0 rose, a quarter ochre, a half dark green, three quarters blue.

    Notes
    -----
    The colours go evenly around an ellipse in L* (lightness) and b* (blue to yellow) of CIE
    L*a*b* 1976, D65. Persons who do not tell red from green see both, so that to them, too, no two
    angles look alike; a* (green to red) goes along, as far as sRGB has such colours.

    Examples
    --------
    >>> cyclic_map().N
    256
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
    """Return the colour map and the limits of numbers: angles go around their period.

    Parameters
    ----------
    values : xarray.DataArray
        Numbers; angles say what they are by ``angle_convention``.

    Returns
    -------
    tuple of (Colormap, Normalize)
        The loop of colours for angles, else viridis between the smallest and largest value.

    Raises
    ------
    SchemaError
        If an angle does not state its units.

    Examples
    --------
    >>> scale_of(xr.DataArray([1.0, 3.0], name="gOSI"))[1].vmax
    3.0
    """
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
    """Return the colour of every value.

    Parameters
    ----------
    values : xarray.DataArray
        One-dimensional: text or truth values (`styles_of`), or numbers (`scale_of`).

    Returns
    -------
    numpy.ndarray
        Colours as text, ``"#0072B2"``; grey where there is no value.

    Raises
    ------
    SchemaError
        If the values are of another kind.

    Examples
    --------
    >>> colours_of(xr.DataArray(np.array(["L1", "unknown"], dtype=object))).tolist()
    ['#0072B2', '#D4D4D4']
    """
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
