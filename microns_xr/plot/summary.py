"""A release in one figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import xarray as xr

from microns_xr.analysis.populations import group_connectivity
from microns_xr.connectivity.subset import n_connections
from microns_xr.currents import input_currents
from microns_xr.plot.cells import cells_in_space, depth_profile
from microns_xr.plot.connections import connectivity_matrix
from microns_xr.plot.style import UNITS_FROM, require
from microns_xr.plot.tuning import currents_by_angle
from microns_xr.store.passed import Connectivity, connectivity_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FEWEST = 5  # neurons of a layer, for a mean of their currents


def release_summary(
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    connectivity: Connectivity | None = None,
    *,
    figure: Figure | None = None,
) -> Figure:
    """Draw a release: cells by depth and in space, connections between types, input currents.

    Parameters
    ----------
    units : xarray.Dataset
        With ``position`` in µm and, for the other panels, ``cell_type`` (or
        ``classification_system``) and ``rate_ori`` (or ``rate_dir``).
    layers : xarray.Dataset, optional
        Layer borders.
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store, optional
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store.
    figure : matplotlib.figure.Figure, optional
        Where to draw, without axes yet; a new figure of pyplot by default.

    Returns
    -------
    matplotlib.figure.Figure
        Two to four panels: those of which there is nothing to draw, for lack of connections, types
        or rates, are left out. So are the currents of layers with fewer than 5 neurons.

    Raises
    ------
    SchemaError
        If the units have no positions.
    ReleaseMismatchError
        If units and connectivity are from different releases.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> figure = release_summary(release.units(), release.layers(), release.connectivity())
    >>> [ax.get_title() for ax in figure.axes]
    ['cells by depth', 'cells in space', 'connections']
    """
    require(units, ("nucleus_id", "position"), "units", UNITS_FROM)
    panels: dict[str, Callable[..., Axes]] = {
        "cells by depth": partial(depth_profile, units, layers),
        "cells in space": partial(cells_in_space, units, layers=layers),
    }
    stated = [str(units[n].item()) for n in ("datastack", "materialization_version") if n in units]
    title = f"{' v'.join(stated) or 'release'}: {units.sizes['nucleus_id']:,} cells"
    if connectivity is not None:
        pairs = connectivity_of(connectivity)[0]
        title += f", {n_connections(pairs):,} connections"
        for by in [n for n in ("cell_type", "classification_system") if n in units.variables][:1]:
            table = group_connectivity(pairs, by, units=units)
            if 0 not in table.sizes.values():  # as it is without a connection of unknown scope
                panels["connections"] = partial(connectivity_matrix, table)
        for name in [n for n in ("rate_ori", "rate_dir") if n in units.variables][:1]:
            currents = input_currents(pairs, units[name]).compute()
            groups = units["layer"] if "layer" in units.variables else None
            known = currents.sum(str(currents.dims[-1])) > 0
            if groups is not None:
                layer = groups.reindex(nucleus_id=currents["post_nucleus_id"].values)
                n = layer.to_series()[known.values].value_counts()
                known &= layer.isin(n.index[n >= _FEWEST]).values
            if bool(known.any()):
                currents = currents.sel(post_nucleus_id=known.values)
                panels["input currents"] = partial(currents_by_angle, currents, groups)
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(12, 4.5 * ((len(panels) + 1) // 2)), layout="constrained")
    for i, (name, draw) in enumerate(panels.items()):
        draw(ax=figure.add_subplot((len(panels) + 1) // 2, 2, i + 1)).set_title(name)
    figure.suptitle(title)
    return figure
