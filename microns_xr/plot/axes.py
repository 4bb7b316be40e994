"""What all pictures share: where they are drawn, what they need, how their axes are named."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.errors import SchemaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes_or_new", "band", "draw_legend", "label_of", "one_dim", "require"]

_LINE = 48  # signs of a label that fit beside axes of the default size


def axes_or_new(ax: Axes | None, **kwargs: Any) -> Axes:
    """Return the axes given, or new ones.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
        Returned as they are.
    **kwargs
        Of ``Figure.subplots`` for new ones, such as ``subplot_kw``.

    Returns
    -------
    matplotlib.axes.Axes
        New ones are in a figure of their own that pyplot does not know, so that nothing is kept
        in memory and nothing needs closing. In an interactive session, where pyplot shows figures
        at once (a notebook), they are pyplot's.

    Examples
    --------
    >>> axes_or_new(None).figure.axes[0].name
    'rectilinear'
    """
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
    """Raise unless `dataset` is a Dataset that has all variables.

    Parameters
    ----------
    dataset : object
        What was passed.
    names : tuple of str
        Variables or coordinates.
    what, how : str
        How messages call it, and how one comes by such a Dataset.

    Raises
    ------
    SchemaError
        Naming what is missing.
    """
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
    """Name a variable for an axis, with its units.

    Parameters
    ----------
    variable : xarray.DataArray
        Its ``long_name`` (or name) and ``units`` are used; the units "1" and "" are left out.
    text : str, optional
        In place of the name.
    width : int, optional
        Signs a line; longer names are broken, and the units put below.

    Returns
    -------
    str
        Such as ``"gOSI"`` or ``"lateral distance (µm)"``.

    Examples
    --------
    >>> label_of(xr.DataArray(0.0, attrs={"long_name": "depth", "units": "µm"}))
    'depth (µm)'
    """
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
