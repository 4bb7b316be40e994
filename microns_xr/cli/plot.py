"""``microns-xr plot``: pictures of a store."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import microns_xr as mx
from microns_xr.cli.info import release_text
from microns_xr.cli.shared import Store, parse_side, require_groups, require_name, require_rates
from microns_xr.errors import SchemaError, unknown_label

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


_BETWEEN = ("pre", "post", "presynaptic")
# The options that apply to each picture.
PICTURES = {
    "adjacency_matrix": ("by", "variable"),
    "aligned_currents": ("variable",),
    "cells_in_space": ("by", "variable", "axes"),
    "connection_probability": ("by", "distance", *_BETWEEN),
    "connectivity_matrix": ("by", "variable", *_BETWEEN),
    "currents_by_angle": ("by", "variable"),
    "degree_distribution": ("variable",),
    "depth_profile": ("by",),
    "like_to_like": ("by", "variable", "null", *_BETWEEN),
    "partners_in_space": ("axes", "nucleus_id"),
    "preferred_orientations": ("by", "variable"),
    "release_summary": (),
    "tuning_curve": ("variable", "nucleus_id"),
    "weight_distribution": ("variable",),
}


def _require_effect(what: str, passed: Mapping[str, Any]) -> None:
    """Raise for an option that the picture does not use."""
    if what not in PICTURES:
        raise unknown_label("the picture is", what, PICTURES, error=SchemaError)
    for name in set().union(*PICTURES.values()) & set(passed) - set(PICTURES[what]):
        pictures = [picture for picture, names in PICTURES.items() if name in names]
        raise SchemaError(
            f"--{name.replace('_', '-')} has no effect on {what}: it applies to "
            f"{', '.join(pictures)}"
        )
    if what == "cells_in_space" and {"by", "variable"} <= set(passed):
        raise SchemaError("--by and --variable both colour the cells: give one of them")
    if what == "like_to_like" and "by" in passed and not passed.get("null"):
        raise SchemaError(
            "--by has no effect on like_to_like without --null, whose permutations it groups"
        )
    of_probability = what != "connectivity_matrix" or passed.get("variable") == "probability"
    if "presynaptic" in passed and not of_probability:
        raise SchemaError("--presynaptic has no effect without --variable probability")


def plot(
    context: typer.Context,
    store: Store,
    what: Annotated[str, typer.Argument(metavar="PICTURE", help="Which picture, as above.")],
    out: Annotated[Path, typer.Option(help="FILE.png, FILE.pdf or FILE.svg.")],
    by: Annotated[
        str | None,
        typer.Option(help="Variable of the units that groups or colours, such as layer."),
    ] = None,
    variable: Annotated[
        str | None,
        typer.Option(help="Variable to draw: mean_size, probability, pref_dir, rate_dir, ..."),
    ] = None,
    axes: Annotated[
        str, typer.Option(help="cells_in_space, partners_in_space: horizontal and vertical axis.")
    ] = "xy",
    distance: Annotated[
        str, typer.Option(help="connection_probability: START:STOP:STEP in µm, lateral distance.")
    ] = "0:400:50",
    pre: Annotated[
        str | None,
        typer.Option(
            help="connectivity_matrix, connection_probability, like_to_like: presynaptic neurons, "
            "a file of nucleus ids, conditions like layer=L4, or all; if the scope is unknown, "
            "those that were asked for."
        ),
    ] = None,
    post: Annotated[str | None, typer.Option(help="The same for postsynaptic neurons.")] = None,
    presynaptic: Annotated[
        str, typer.Option(help="Which axons are complete enough: extended, full, clean, all.")
    ] = "extended",
    nucleus_id: Annotated[
        int | None, typer.Option(help="tuning_curve, partners_in_space: the neuron.")
    ] = None,
    null: Annotated[
        int, typer.Option(help="like_to_like: number of permutations of the angles.", min=0)
    ] = 0,
) -> None:
    """Draw a picture of a store.

    PICTURE is the name of a function of `mx.plot` in Python:

    - positions of cells: depth_profile, cells_in_space, partners_in_space
    - connections: connectivity_matrix, adjacency_matrix, connection_probability,
      degree_distribution, weight_distribution
    - function: tuning_curve, preferred_orientations, currents_by_angle, aligned_currents,
      like_to_like
    - cells, connections and currents in one figure: release_summary
    """
    require_name(out, ".png", ".pdf", ".svg")
    passed = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
    }
    _require_effect(what, passed)
    between = {"pre": _parse_neurons(pre, "--pre"), "post": _parse_neurons(post, "--post")}
    from matplotlib.figure import Figure

    from microns_xr.plot.tuning import with_angle

    tree = mx.open_store(store, lazy=True)
    if by is not None and "units" in tree.children:
        known = [str(n) for n, v in tree["units"].variables.items() if v.dims == ("nucleus_id",)]
        more = ("pref_ori", "pref_dir", *(["depth"] if what == "adjacency_matrix" else []))
        if by not in (*known, *more):
            raise unknown_label("--by is", by, known, error=SchemaError)
    release = release_text(tree.attrs)
    if what == "release_summary":
        pairs = tree if "connectivity" in tree.children else None
        figure = Figure(figsize=(12, 9), layout="constrained")
        mx.plot.release_summary(_read(tree, "units"), _layers(tree), pairs, figure=figure)
        save(figure, out)
        typer.echo(f"written       {out}")
        return
    # Not a pyplot figure, which pyplot would keep.
    projection = "polar" if what == "preferred_orientations" else None
    ax = Figure(layout="constrained").add_subplot(projection=projection)
    right_up: Any = tuple(axes)
    match what:
        case "depth_profile":
            units = _read(tree, "units")
            mx.plot.depth_profile(units, _layers(tree), by=by or "layer", ax=ax)
        case "cells_in_space":
            colour = by or variable or "cell_type"
            units = with_angle(_read(tree, "units"), colour)
            mx.plot.cells_in_space(units, colour, axes=right_up, layers=_layers(tree), ax=ax)
        case "connectivity_matrix":
            _draw_connectivity(
                tree, by or "cell_type", variable or "n_connections", presynaptic, between, ax
            )
        case "adjacency_matrix":
            require_groups(tree, "connectivity")
            units = with_angle(_read(tree, "units"), by or "")
            mx.plot.adjacency_matrix(tree, units, by, weight=variable, ax=ax)
        case "partners_in_space":
            _draw_partners(tree, nucleus_id, right_up, ax)
        case "weight_distribution":
            require_groups(tree, "connectivity")
            mx.plot.weight_distribution(tree, variable, ax=ax)
        case "connection_probability":
            probability = mx.analysis.connection_probability(
                _read(tree, "connectivity"),
                _neurons(tree),
                by or "classification_system",
                _parse_distance(distance),
                presynaptic=presynaptic,
                **between,
            )
            mx.plot.connection_probability(probability, ax=ax)
        case "degree_distribution":
            require_groups(tree, "connectivity")
            names = (variable,) if variable else ("out_degree", "in_degree")
            degrees = _of_neurons(tree, mx.degrees(tree)).compute()
            mx.plot.degree_distribution(degrees, names, ax=ax)
        case "tuning_curve":
            _draw_tuning(_read(tree, "units"), variable or "rate_dir", nucleus_id, ax)
        case "preferred_orientations":
            name = variable or "pref_ori"
            units = with_angle(_read(tree, "units"), name)
            mx.plot.preferred_orientations(units, name, by=by, ax=ax)
        case "currents_by_angle":
            currents, units = _currents(tree, variable or "rate_ori")
            by = by or ("layer" if "layer" in units.variables else None)
            words = None if by is None else with_angle(units, by)[by]
            mx.plot.currents_by_angle(currents, words, ax=ax)
        case "aligned_currents":
            _draw_aligned(tree, variable or "rate_ori", ax)
        case "like_to_like":
            chosen = {"presynaptic": presynaptic, **between}
            _draw_like_to_like(tree, variable or "probability", by, null, chosen, ax)
    ax.set_title(f"{ax.get_title()}, {release}" if ax.get_title() else release, fontsize="medium")
    save(ax.figure, out)
    typer.echo(f"written       {out}")


def _parse_neurons(value: str | None, option: str) -> Any:
    """Parse an option as `parse_side`; ``all`` are all units, without conditions."""
    return {} if value == "all" else parse_side(value, option)


def save(figure: Any, out: Path) -> None:
    """Write a figure, in the format of the name of the file."""
    import matplotlib as mpl

    from microns_xr.files import write_file

    # Without a date and with fixed ids, equal pictures are equal files.
    undated = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[out.suffix]
    options: dict[str, Any] = {"dpi": 150, "bbox_inches": "tight", "metadata": undated}
    content = io.BytesIO()  # on a full disk matplotlib has errors of its own
    with mpl.rc_context({"svg.hashsalt": "microns_xr"}):
        figure.savefig(content, format=out.suffix[1:], **options)
    write_file(out, content.getvalue())


def _parse_distance(text: str) -> Any:
    import numpy as np

    try:
        start, stop, step = (float(part) for part in text.split(":"))
        edges = np.arange(start, stop + step / 2, step)
    except (ValueError, ZeroDivisionError):
        edges = np.empty(0)
    if edges.size < 2:
        raise SchemaError(
            f"--distance is {text!r}, expected START:STOP:STEP in µm, such as 0:400:50"
        )
    return edges


def _read(tree: xr.DataTree, name: str) -> xr.Dataset:
    require_groups(tree, name)
    return tree[name].to_dataset().compute()  # the store is lazy: only this group is read


def _layers(tree: xr.DataTree) -> xr.Dataset | None:
    return _read(tree, "layers") if "layers" in tree.children else None


def _neurons(tree: xr.DataTree) -> xr.Dataset:
    """Return the units that are neurons, without glia and other cells."""
    units = _read(tree, "units")
    if "classification_system" not in units.variables:  # own data
        return units
    return units.isel(nucleus_id=(units["classification_system"] != "nonneuron").values)


def _of_neurons(tree: xr.DataTree, result: Any) -> Any:
    """Return a result over the axes of the connectivity without glia and other cells."""
    if "units" not in tree.children:
        return result
    import numpy as np

    ids = _neurons(tree)["nucleus_id"].values
    dims = [dim for dim in ("pre_nucleus_id", "post_nucleus_id") if dim in result.dims]
    return result.isel({dim: np.flatnonzero(np.isin(result[dim].values, ids)) for dim in dims})


def _draw_connectivity(
    tree: xr.DataTree,
    by: str,
    variable: str,
    presynaptic: str,
    between: Mapping[str, Any],
    ax: Axes,
) -> None:
    connectivity, units = _read(tree, "connectivity"), _neurons(tree)
    if variable == "probability":
        interval = mx.analysis.Wilson()
        table = mx.analysis.connection_probability(
            connectivity, units, by, presynaptic=presynaptic, interval=interval, **between
        )
    else:
        connections = mx.select_connections(connectivity, pre=units, post=units)
        if any(neurons is not None for neurons in between.values()):
            connections = mx.select_connections(connections, units, **between)
        table = mx.group_connectivity(connections, by, units=units)
    mx.plot.connectivity_matrix(table, variable, ax=ax)


def _draw_partners(tree: xr.DataTree, nucleus_id: int | None, axes: Any, ax: Axes) -> None:
    require_groups(tree, "connectivity")
    if nucleus_id is None:
        some = tree["connectivity"].to_dataset()["post_nucleus_id"].values[:3].tolist()
        raise SchemaError(f"--nucleus-id is missing, expected a neuron, such as {some}")
    units, layers = _read(tree, "units"), _layers(tree)
    mx.plot.partners_in_space(tree, units, nucleus_id, axes=axes, layers=layers, ax=ax)


def _draw_tuning(units: xr.Dataset, name: str, nucleus_id: int | None, ax: Axes) -> None:
    from microns_xr.plot.tuning import fit_of

    require_rates(units, name)
    if nucleus_id is None or nucleus_id not in units["nucleus_id"].values:
        with_rates = units["nucleus_id"].values[units[name].notnull().values.all(axis=1)]
        raise SchemaError(
            f"--nucleus-id is {nucleus_id or 'missing'}, expected a neuron of the store; "
            f"{with_rates.size} have rates, such as {with_rates[:3].tolist()}"
        )
    rates = units[name].sel(nucleus_id=nucleus_id)
    mx.plot.tuning_curve(rates, fit_of(rates), ax=ax)
    ax.set_title(f"neuron {nucleus_id}")


def _currents(tree: xr.DataTree, rates: str) -> tuple[xr.DataArray, xr.Dataset]:
    units = _read(tree, "units")
    require_rates(units, rates)
    require_groups(tree, "connectivity")
    return _of_neurons(tree, mx.input_currents(tree, units[rates]).compute()), units


def _draw_aligned(tree: xr.DataTree, rates: str, ax: Axes) -> None:
    from microns_xr.plot.tuning import with_angle

    currents, units = _currents(tree, rates)
    dim = "direction" if "direction" in currents.dims else "orientation"
    name = f"pref_{dim[:3]}"
    units = with_angle(units, name)
    # Tables of preferred angles may have another convention than the stimuli.
    angle = mx.angles.convert(units[name], currents[dim].attrs.get("angle_convention"))
    aligned = mx.analysis.align_to_preferred(
        currents, units.assign({name: angle}), angle=name, normalise=True
    )
    mx.plot.aligned_currents(aligned, ax=ax)


def _draw_like_to_like(
    tree: xr.DataTree,
    variable: str,
    by: str | None,
    null: int,
    chosen: Mapping[str, Any],
    ax: Axes,
) -> None:
    from microns_xr.analysis import null_models
    from microns_xr.plot.tuning import with_angle

    connectivity = _read(tree, "connectivity")
    units = with_angle(_read(tree, "units"), "pref_ori")
    estimate = mx.analysis.like_to_like
    result = estimate(connectivity, units, **chosen)
    comparison = None
    if null:
        permuted = null_models.permute_angles(units, within=by or "cell_type", n=null)
        comparison = null_models.compare(
            estimate, connectivity, units, permuted, variable=variable, **chosen
        )
    mx.plot.like_to_like(result, comparison, variable=variable, ax=ax)
