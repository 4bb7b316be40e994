"""What the command ``plot`` draws of a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.cli_plot import What
from microns_xr.errors import SchemaError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    tree: xr.DataTree,
    what: str,
    *,
    by: str | None = None,
    variable: str | None = None,
    axes: str = "xy",
    distance: str = "0:400:50",
    presynaptic: str = "extended",
    nucleus_id: int | None = None,
    null: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Compute and draw one picture of an opened store.

    Parameters
    ----------
    tree : xarray.DataTree
        From `microns_xr.open_store`.
    what : str
        ``depth``, ``cells``, ``connectivity``, ``probability``, ``like-to-like``, ``tuning``,
        ``orientations``, ``currents`` or ``degrees``.
    by, variable, axes, distance, presynaptic, nucleus_id, null
        As the options of the command ``microns-xr plot``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; new axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        The picture.

    Raises
    ------
    SchemaError
        If the store lacks what is drawn, or an option is not understood.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> tree = xr.DataTree.from_dict({"units": release.units()})
    >>> draw(tree, "depth").get_ylabel()
    'depth from the pia (µm)'
    """
    options: dict[str, Any] = {
        "by": by,
        "variable": variable,
        "axes": axes,
        "distance": distance,
        "presynaptic": presynaptic,
        "nucleus_id": nucleus_id,
        "null": null,
        "ax": ax,
    }
    return _DRAW[What(what)](tree, options)


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    _require_group(tree, name)
    return tree[name].to_dataset().compute()  # of a lazy store only what is drawn is read


def _require_group(tree: xr.DataTree, name: str) -> None:
    if name not in tree.children:
        raise SchemaError(
            f"the store has no {name}, found {list(tree.children)}: build it from a folder that "
            "has those tables"
        )


def _depth(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.plot import depth_profile

    layers = _group(tree, "layers") if "layers" in tree.children else None
    by = options["by"] or "layer"
    return depth_profile(_group(tree, "units"), layers, by=by, ax=options["ax"])


def _cells(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.plot import cells_in_space

    layers = _group(tree, "layers") if "layers" in tree.children else None
    colour = options["by"] or options["variable"] or "cell_type"
    units = _with_angle(tree, colour)
    return cells_in_space(
        units, colour, axes=tuple(options["axes"]), layers=layers, ax=options["ax"]
    )


def _neurons(tree: xr.DataTree) -> xr.Dataset:
    """Units without the cells that are no neurons, which have no place in a matrix."""
    units = _group(tree, "units")
    neuron = units["classification_system"].values != "nonneuron"
    return units.isel(nucleus_id=np.flatnonzero(neuron))


def _connectivity(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.analysis.populations import group_connectivity
    from microns_xr.analysis.probability import connection_probability
    from microns_xr.analysis.resample import Wilson
    from microns_xr.plot import connectivity_matrix
    from microns_xr.select import select_connections

    connectivity, units = _group(tree, "connectivity"), _neurons(tree)
    by, variable = options["by"] or "cell_type", options["variable"] or "n_connections"
    if variable == "probability":
        table = connection_probability(
            connectivity, units, by, presynaptic=options["presynaptic"], interval=Wilson()
        )
    else:
        pre, post = (
            np.intersect1d(connectivity[f"{side}_nucleus_id"].values, units["nucleus_id"].values)
            for side in ("pre", "post")
        )
        among = select_connections(connectivity, pre=pre, post=post)
        table = group_connectivity(among, by, units=units)
    return connectivity_matrix(table, variable, ax=options["ax"])


def _probability(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.analysis.probability import connection_probability as estimate
    from microns_xr.plot import connection_probability

    try:
        start, stop, step = (float(part) for part in options["distance"].split(":"))
        edges = np.arange(start, stop + step / 2, step)
    except (ValueError, ZeroDivisionError) as error:
        raise SchemaError(
            f"--distance is {options['distance']!r}, expected START:STOP:STEP in µm, such as "
            "0:400:50"
        ) from error
    found = estimate(
        _group(tree, "connectivity"),
        _neurons(tree),
        options["by"] or "classification_system",
        edges,
        presynaptic=options["presynaptic"],
    )
    return connection_probability(found, ax=options["ax"])


def _with_angle(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Units with an angle: their own, or that of a curve fitted to their rates."""
    from microns_xr import tuning

    units = _group(tree, "units")
    rates = {"pref_ori": "rate_ori", "pref_dir": "rate_dir"}.get(name)
    if name in units or rates is None or rates not in units:
        return units
    if rates == "rate_ori":
        fit = tuning.fit(units[rates], dim="orientation", model="von_mises")
    else:
        fit = tuning.fit(units[rates], dim="direction", model="double_von_mises")
    attrs = fit[name].attrs
    text = f"{attrs.get('long_name', name)} of fitted curves"
    angle = fit[name].where(fit["converged"])
    return units.assign({name: angle.assign_attrs(attrs | {"long_name": text})})


def _like_to_like(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.analysis import null_models
    from microns_xr.analysis.tuned import like_to_like as estimate
    from microns_xr.plot import like_to_like

    connectivity, units = _group(tree, "connectivity"), _with_angle(tree, "pref_ori")
    variable = options["variable"] or "probability"
    result = estimate(connectivity, units, presynaptic=options["presynaptic"])
    compared = None
    if options["null"]:
        drawn = null_models.permute_angles(
            units, within=options["by"] or "cell_type", n=options["null"]
        )
        compared = null_models.compare(
            estimate,
            connectivity,
            units,
            drawn,
            variable=variable,
            presynaptic=options["presynaptic"],
        )
    return like_to_like(result, compared, variable=variable, ax=options["ax"])


def _tuning(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr import tuning
    from microns_xr.plot import tuning_curve

    units, name = _group(tree, "units"), options["variable"] or "rate_dir"
    if name not in units or not name.startswith("rate_"):
        found = [str(n) for n in units.data_vars if str(n).startswith("rate_")]
        raise SchemaError(f"the units have no rates {name!r}, found {found}")
    nucleus = options["nucleus_id"]
    if nucleus is None or nucleus not in units["nucleus_id"].values:
        rated = units["nucleus_id"].values[np.isfinite(units[name].values).all(axis=1)]
        raise SchemaError(
            f"--nucleus-id is {nucleus}, expected a neuron of the store; {rated.size} have rates, "
            f"such as {rated[:3].tolist()}"
        )
    rates = units[name].sel(nucleus_id=nucleus)
    dim = str(rates.dims[0])
    model: Any = "double_von_mises" if dim == "direction" else "von_mises"
    fit = tuning.fit(rates, dim=dim, model=model)  # type: ignore[arg-type]
    ax = tuning_curve(rates, fit, ax=options["ax"])
    ax.set_title(f"neuron {nucleus}")
    return ax


def _orientations(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.plot import preferred_orientations

    name = options["variable"] or "pref_ori"
    return preferred_orientations(_with_angle(tree, name), name, by=options["by"], ax=options["ax"])


def _currents(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.currents import input_currents
    from microns_xr.plot import currents_by_angle

    units, name = _group(tree, "units"), options["variable"] or "rate_ori"
    by = options["by"] or "layer"
    for needed in (name, by):
        if needed not in units:
            raise SchemaError(
                f"the units have no {needed!r}, found {sorted(map(str, units.data_vars))}"
            )
    _require_group(tree, "connectivity")
    currents = input_currents(tree, units[name]).compute()
    return currents_by_angle(currents, units[by], ax=options["ax"])


def _degrees(tree: xr.DataTree, options: dict[str, Any]) -> Axes:
    from microns_xr.plot import degree_distribution
    from microns_xr.select import degrees

    chosen = (options["variable"],) if options["variable"] else ("out_degree", "in_degree")
    _require_group(tree, "connectivity")
    found = degrees(tree).compute()
    return degree_distribution(found, chosen, ax=options["ax"])


_DRAW: dict[What, Callable[[xr.DataTree, dict[str, Any]], Axes]] = {
    What.depth: _depth,
    What.cells: _cells,
    What.connectivity: _connectivity,
    What.probability: _probability,
    What.like_to_like: _like_to_like,
    What.tuning: _tuning,
    What.orientations: _orientations,
    What.currents: _currents,
    What.degrees: _degrees,
}
