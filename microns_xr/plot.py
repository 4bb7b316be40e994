"""Pictures of computed Datasets; every function takes and returns matplotlib axes.

Colours are those of Okabe and Ito, which are told apart with any common colour vision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import SchemaError
from microns_xr.layers import depth_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["connectivity_matrix", "currents_by_angle", "depth_profile"]

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#555555")


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _require(dataset: xr.Dataset, names: tuple[str, ...], what: str) -> None:
    absent = [n for n in names if n not in dataset.variables]
    if absent:
        raise SchemaError(f"{what} has no {absent}, found {sorted(map(str, dataset.variables))}")


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
        If a variable is absent.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> depth_profile(release.units(), release.layers()).get_ylabel()
    'depth from the pia (µm)'
    """
    _require(units, ("position", by), "units")
    ax = _axes(ax)
    depth = depth_of(units)
    if not np.isfinite(depth).any():
        raise SchemaError("units holds no cell with a position: there is nothing to draw")
    codes, words = pd.factorize(units[by].values, sort=True)
    edges = np.arange(np.floor(np.nanmin(depth)), np.nanmax(depth) + bin_um, bin_um)
    left = np.zeros(len(edges) - 1)
    for i, word in enumerate(words):
        counts = np.histogram(depth[codes == i], edges)[0]
        colour = OKABE_ITO[i % len(OKABE_ITO)]
        ax.barh(edges[:-1], counts, bin_um, left=left, align="edge", color=colour, label=str(word))
        left += counts
    if layers is not None:
        for name, start, end in zip(
            layers["layer_name"].values,
            layers["y_start"].values,
            layers["y_end"].values,
            strict=True,
        ):
            ax.axhline(start, color="black", lw=0.8)
            ax.annotate(
                str(name),
                (1.01, (start + end) / 2),
                xycoords=("axes fraction", "data"),
                va="center",
            )
    if by != "layer" or layers is None:
        ax.legend(fontsize="small", title=by.replace("_", " "))
    ax.set(xlabel=f"cells a bin of {bin_um:g} µm", ylabel="depth from the pia (µm)")
    ax.invert_yaxis()
    return ax


def connectivity_matrix(
    grouped: xr.Dataset, variable: str = "n_connections", *, ax: Axes | None = None
) -> Axes:
    """Draw a table of connections between populations.

    Parameters
    ----------
    grouped : xarray.Dataset
        From `microns_xr.group_connectivity`: two dims, presynaptic first.
    variable : str, optional
        What is coloured.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Presynaptic populations down, postsynaptic across; logarithmic colours.

    Raises
    ------
    SchemaError
        If the variable is absent, or not two-dimensional.

    Examples
    --------
    >>> words = [["L4", "L5"]] * 2
    >>> grouped = xr.Dataset({"n_connections": (("pre_layer", "post_layer"), [[9, 3], [0, 5]])},
    ...     coords=dict(zip(("pre_layer", "post_layer"), words)))
    >>> connectivity_matrix(grouped).get_xlabel()
    'postsynaptic layer'
    """
    from matplotlib.colors import LogNorm

    _require(grouped, (variable,), "grouped")
    table = grouped[variable]
    if table.ndim != 2:
        raise SchemaError(f"{variable} has dims {table.dims}, expected (pre_..., post_...)")
    table = table.transpose(*sorted(table.dims, key=lambda d: not str(d).startswith("pre_")))
    ax = _axes(ax)
    values = np.ma.masked_less_equal(table.values.astype(float), 0)
    norm = LogNorm(max(values.min(), 1e-12), max(values.max(), 1e-11)) if values.count() else None
    image = ax.imshow(values, norm=norm, cmap="viridis", aspect="auto")
    label = str(table.attrs.get("long_name", variable.replace("_", " ")))
    ax.figure.colorbar(image, ax=ax, label=label)
    for axis, side, dim in (
        (ax.yaxis, "presynaptic", table.dims[0]),
        (ax.xaxis, "postsynaptic", table.dims[1]),
    ):
        names = [str(w) for w in table[dim].values]
        axis.set_ticks(range(len(names)), names)
        axis.set_label_text(f"{side} {str(dim).split('_', 1)[-1].replace('_', ' ')}")
    ax.tick_params(axis="x", rotation=90)
    return ax


def _words_of(groups: Any, currents: xr.DataArray) -> np.ndarray:
    """One word a postsynaptic neuron, by label where the groups have labels."""
    if groups is None:
        return np.full(currents.shape[0], "all", dtype=object)
    if isinstance(groups, xr.DataArray):
        dim = str(groups.dims[0])
        if groups.ndim != 1 or dim not in groups.coords:
            raise SchemaError(f"groups has dims {groups.dims}, expected one word a nucleus_id")
        groups = groups.reindex({dim: currents["post_nucleus_id"].values}, fill_value="unknown")
    words = np.asarray(groups, dtype=object)
    if words.shape != currents.shape[:1]:
        raise SchemaError(
            f"groups has shape {words.shape}, expected one word for each "
            f"of {currents.shape[0]} neurons"
        )
    return words


def currents_by_angle(
    currents: xr.DataArray, groups: Any = None, *, normalise: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw the mean input current against the angle of the stimulus.

    Parameters
    ----------
    currents : xarray.DataArray
        From `microns_xr.input_currents`: (``post_nucleus_id``, angle).
    groups : xarray.DataArray or array-like of str, optional
        A word for each neuron, matched by label where there are labels (``units.layer``),
        otherwise in the order of the currents; one line each.
    normalise : bool, optional
        Divide each neuron's current by its own mean, so that large neurons do not outweigh small
        ones.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Bands are one standard error over neurons.

    Raises
    ------
    SchemaError
        If the array is not (post_nucleus_id, angle).

    Examples
    --------
    >>> currents = xr.DataArray([[1.0, 3.0]], dims=("post_nucleus_id", "orientation"),
    ...     coords={"orientation": ("orientation", [0.0, 90.0], {"units": "degree"})})
    >>> currents_by_angle(currents).get_xlabel()
    'orientation (degree)'
    """
    if currents.ndim != 2 or currents.dims[0] != "post_nucleus_id":
        raise SchemaError(f"currents has dims {currents.dims}, expected (post_nucleus_id, angle)")
    ax = _axes(ax)
    angle = currents[currents.dims[1]]
    values = currents.values
    driven = np.isfinite(values).all(axis=1) & (values.sum(axis=1) > 0)
    words = _words_of(groups, currents)
    for i, word in enumerate(sorted(set(words[driven]))):
        rows = values[driven & (words == word)]
        if normalise:
            rows = rows / rows.mean(axis=1, keepdims=True)
        mean, error = rows.mean(axis=0), rows.std(axis=0) / np.sqrt(len(rows))
        colour = OKABE_ITO[i % len(OKABE_ITO)]
        ax.plot(angle, mean, color=colour, marker="o", ms=3, label=f"{word} ({len(rows)})")
        ax.fill_between(angle, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
    unit = angle.attrs.get("units", "degree")
    ax.set(
        xlabel=f"{angle.name} ({unit})",
        ylabel="input current / its mean"
        if normalise
        else f"input current ({currents.attrs.get('units', '')})",
    )
    ax.legend(fontsize="small")
    return ax
