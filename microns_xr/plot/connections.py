"""Connections between populations, and how many partners neurons have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from microns_xr.errors import SchemaError
from microns_xr.plot.cells import PALETTE, axes_or_new, label_of, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More populations than this, and numbers in the cells would not be legible.
_MOST_NUMBERS = 9


def connectivity_matrix(
    grouped: xr.Dataset, variable: str = "n_connections", *, ax: Axes | None = None
) -> Axes:
    """Draw a table of connections between populations.

    Parameters
    ----------
    grouped : xarray.Dataset
        From `microns_xr.group_connectivity`, or from
        `microns_xr.analysis.connection_probability` without distances: two dims of populations.
    variable : str, optional
        What is coloured: ``"n_connections"``, ``"mean_size"``, ``"probability"`` ...
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Presynaptic populations down, postsynaptic across. Colours are logarithmic, those of a
        probability linear from 0. What is 0 or not known is grey. Small tables show their numbers.

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
    from matplotlib.colors import LogNorm, Normalize

    require(grouped, (variable,), "grouped", "use mx.group_connectivity")
    table = grouped[variable]
    if table.ndim != 2:
        raise SchemaError(
            f"{variable} has dims {table.dims}, expected (pre_..., post_...): select one bin of a "
            "distance first, with .isel"
        )
    table = table.transpose(*sorted(table.dims, key=lambda d: not str(d).startswith("pre_")))
    ax = axes_or_new(ax)
    numbers = np.asarray(table.values, dtype=float)
    values = np.ma.masked_invalid(np.ma.masked_less_equal(numbers, 0))
    norm = None
    if values.count():
        low, high = float(values.min()), float(values.max())
        linear = variable == "probability" or low == high
        norm = Normalize(0, high) if linear else LogNorm(low, high)
    image = ax.imshow(values, norm=norm, cmap="viridis", aspect="auto")
    ax.set_facecolor("#E8E8E8")
    ax.figure.colorbar(image, ax=ax, label=label_of(table))
    for axis, side, dim in (
        (ax.yaxis, "presynaptic", table.dims[0]),
        (ax.xaxis, "postsynaptic", table.dims[1]),
    ):
        names = [str(w) for w in table[dim].values]
        axis.set_ticks(range(len(names)), names)
        axis.set_label_text(f"{side} {str(dim).split('_', 1)[-1].replace('_', ' ')}")
    ax.tick_params(axis="x", rotation=90 if max(table.shape) > 4 else 30)
    if max(table.shape) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(numbers):
            if np.isfinite(value):
                light = not values.mask.all() and (
                    np.ma.getmaskarray(values)[row, column]
                    or float(np.asarray(image.norm(value))) > 0.6
                )
                text = f"{value:,.0f}" if table.dtype.kind in "iu" else f"{value:.2g}"
                text = f"{value:,.0f}" if value >= 100 else text
                colour = "black" if light else "white"
                ax.text(column, row, text, ha="center", va="center", color=colour, fontsize="small")
    return ax


def degree_distribution(
    degrees: xr.Dataset,
    variables: tuple[str, ...] = ("out_degree", "in_degree"),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw which share of neurons has at least so many partners, on logarithmic axes.

    Parameters
    ----------
    degrees : xarray.Dataset
        From `microns_xr.degrees`, lazy or not.
    variables : tuple of str, optional
        Which of its variables, of the same units: degrees, synapses or sizes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        A line a variable (complementary cumulative distribution): at x the share of all neurons of
        that axis whose value is x or more. Neurons with 0 have no place on a logarithmic axis;
        they are counted in the legend and in the share.

    Raises
    ------
    SchemaError
        If a variable is absent, not one number a neuron, negative, of other units than the first,
        or 0 everywhere.

    Examples
    --------
    >>> import microns_xr as mx
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> ax = degree_distribution(mx.degrees(two_neurons()))
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'share of neurons with at least x')
    """
    names = (variables,) if isinstance(variables, str) else tuple(variables)
    require(degrees, names, "degrees", "use mx.degrees(connectivity)")
    units = degrees[names[0]].attrs.get("units", "")
    ax = axes_or_new(ax)
    for i, name in enumerate(names):
        variable = degrees[name]
        if variable.ndim != 1 or variable.dtype.kind not in "iuf":
            raise SchemaError(f"{name} has dims {variable.dims}, expected one number a neuron")
        if variable.attrs.get("units", "") != units:
            raise SchemaError(
                f"{name} is in {variable.attrs.get('units')!r} but {names[0]} in {units!r}, "
                "expected variables of the same units: draw them on axes of their own"
            )
        numbers = np.asarray(variable.values)
        if numbers.size and numbers.min() < 0:
            raise SchemaError(f"{name} goes down to {numbers.min()}, expected no number below 0")
        at, counts = np.unique(numbers[numbers > 0], return_counts=True)
        if not at.size:
            raise SchemaError(f"{name} is 0 for all {numbers.size} neurons: nothing to draw")
        share = counts[::-1].cumsum()[::-1] / numbers.size
        text = str(variable.attrs.get("long_name", name))
        n_without = int((numbers == 0).sum())
        ax.plot(
            at,
            share,
            drawstyle="steps-pre",
            color=PALETTE[i % len(PALETTE)],
            ls=("-", "--", ":", "-.")[i % 4],
            label=f"{text}\n({numbers.size} neurons, {n_without} of them 0)",
        )
    what = "partners x" if all(n.endswith("degree") for n in names) else "x"
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=f"{what} ({units})" if units not in ("", "1") else what,
        ylabel="share of neurons with at least x",
    )
    ax.legend(fontsize="small", loc="lower left")
    return ax
