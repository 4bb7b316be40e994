"""Connections: between populations and neurons, by distance and angle; partners and weights."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.analysis.null_models import compare_values
from microns_xr.analysis.populations import By, population_labels
from microns_xr.connectivity.arrays import PAIR_DIMS, pair_buffers, weight_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError
from microns_xr.layers import depth_of
from microns_xr.plot.style import (
    LINES,
    PALETTE,
    UNITS_FROM,
    axes_or_current,
    draw_band,
    draw_colour_bar,
    draw_legend,
    floats,
    in_words,
    is_wide,
    label_of,
    require,
    styles_of,
    words_of,
)
from microns_xr.provenance import require_same_release
from microns_xr.store.passed import Connectivity, connectivity_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more populations the numbers in the cells are illegible; more lines cannot be told apart.
_MAX_NUMBERS, _MAX_LINES = 9, 9
# Cells of a matrix of neurons along either axis; more are smaller than the pixels of a screen.
_MAX_CELLS = 200
_SIDES = ("presynaptic", "postsynaptic")


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
        Variable to draw: ``"n_connections"``, ``"mean_size"``, ``"probability"`` ...
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Presynaptic populations are rows, postsynaptic ones columns; those that are 0 throughout are
        left out. Words of the package are in its order. Colours are logarithmic, or linear if the
        largest number is less than ten times the smallest. They are linear from 0 for a
        probability, and linear with white at 0 if there are numbers below 0. Cells that are 0 or
        NaN are grey. Small tables show their numbers.

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
    require(grouped, (variable,), "grouped", "use mx.group_connectivity")
    table = grouped[variable]
    if table.ndim != 2:
        raise SchemaError(
            f"{variable} has dims {table.dims}, expected (pre_..., post_...): select one bin of a "
            "distance first, with .isel"
        )
    if not table.size:
        raise SchemaError(f"{variable} has no group: there is nothing to draw")
    table = table.transpose(*sorted(table.dims, key=lambda d: not str(d).startswith("pre_")))
    table = table.compute()
    filled = np.isfinite(floats(table)) & (floats(table) != 0)
    for i, dim in enumerate(table.dims if filled.any() else ()):
        keep = np.flatnonzero(filled.any(axis=1 - i))
        table = table.isel({dim: keep[_order(table[dim].values[keep])]})
    ax = axes_or_current(ax)
    numbers = floats(table)
    image = _draw_matrix(ax, numbers, from_zero=variable == "probability")
    draw_colour_bar(ax, image, table)
    for axis, side, dim in zip((ax.yaxis, ax.xaxis), _SIDES, table.dims, strict=True):
        axis.set_ticks(range(table.sizes[dim]), table[dim].values.astype(str))
        axis.set_label_text(f"{side} {str(dim).split('_', 1)[-1].replace('_', ' ')}")
    ax.tick_params(axis="x", rotation=90 if max(table.shape) > 4 else 30)
    if max(table.shape) <= _MAX_NUMBERS:
        for (row, column), value in np.ndenumerate(numbers):
            whole = table.dtype.kind in "iu" or abs(value) >= 100
            text = f"{value:,.0f}" if whole else f"{value:.2g}"
            if np.isfinite(value):
                # Black on light colours and on grey cells.
                red, green, blue, _ = image.cmap(image.norm(value)) if value else (1, 1, 1, 1)
                light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
                colour = "black" if light else "white"
                ax.text(column, row, text, color=colour, ha="center", va="center", size="small")
    return ax


def _order(words: np.ndarray) -> list[int]:
    """Return positions in the order of the package for sorted words, else as they are."""
    styles, given = list(styles_of(words)), list(words)
    return [given.index(w) for w in styles] if given == sorted(styles) else [*range(len(given))]


def _draw_matrix(ax: Axes, numbers: np.ndarray, from_zero: bool = False, **options: Any) -> Any:
    """Draw numbers as colours, 0 and NaN in grey."""
    from matplotlib.colors import LogNorm, Normalize

    values = np.ma.masked_invalid(np.ma.masked_equal(numbers, 0))
    norm, cmap = None, "viridis"
    if values.count():
        low, high = values.min(), values.max()
        if low < 0:  # inhibitory connections, say
            norm, cmap = Normalize(-max(-low, high), max(-low, high)), "RdBu_r"
        elif from_zero or low == high:
            norm = Normalize(0, high)
        else:
            norm = LogNorm(low, high) if is_wide(values.compressed()) else Normalize(low, high)
    ax.set_facecolor("#E8E8E8")
    return ax.imshow(values, norm=norm, cmap=cmap, aspect="auto", **options)


def adjacency_matrix(
    connectivity: Connectivity,
    units: xr.Dataset,
    by: By | None = None,
    *,
    weight: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the connections between single neurons, sorted by type, by depth or another variable.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store; it is read into memory.
    units : xarray.Dataset
        Units with the variable; neurons that are not among them come last.
    by : str, collection of str, xarray.DataArray or pandas.Series, optional
        Variable of the units with one word or number per neuron, or ``"depth"``; or populations, as
        `microns_xr.analysis.population_labels` takes them. By default ``cell_type`` if the units
        have it, else the depth.
    weight : str, optional
        Weight to draw, by default ``synapse_size``, or else the only one.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Presynaptic neurons are rows, postsynaptic ones columns, without neurons that have no
        connection. With more than 200 neurons along an axis, each cell is a sum of weights over
        several neurons. Words of less than 4 % of the neurons may have no label.

    Raises
    ------
    SchemaError
        If a variable is absent or does not have one value per neuron, or there is no connection.
    ReleaseMismatchError
        If the two are from different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> units = xr.Dataset({"layer": ("nucleus_id", ["L4", "L5"])}, {"nucleus_id": [11, 12]})
    >>> adjacency_matrix(two_neurons(), units, "layer").get_xlabel()
    'postsynaptic neurons (2) by layer'
    """
    pairs = connectivity_of(connectivity)[0].compute()
    require_same_release(("connectivity", pairs), ("units", units))
    if by is None:
        by = "cell_type" if "cell_type" in getattr(units, "variables", ()) else "depth"
    elif not isinstance(by, str):
        groups = population_labels(units, by)
        by, units = str(groups.name), units.assign({str(groups.name): groups})
    require(units, ("nucleus_id", "position" if by == "depth" else by), "units", UNITS_FROM)
    if by == "depth":
        about = {"long_name": "depth", "units": "µm"}
        units = units.assign(depth=("nucleus_id", depth_of(units), about))
    name = weight_of(pairs, weight)
    pattern, values = pair_buffers(pairs, [name])
    if not pattern.nnz:
        raise SchemaError("the connectivity has no connection: there is nothing to draw")
    if units[by].dims != ("nucleus_id",):
        raise SchemaError(f"{by} has dims {units[by].dims}, expected one value per neuron")
    Lookup(units["nucleus_id"].values, "nucleus_id of the units")  # raises if one is repeated
    places, steps, ns = [], [], []
    ax = axes_or_current(ax)
    axes = (ax.yaxis, ax.xaxis)
    for axis, side, dim, end in zip(axes, _SIDES, PAIR_DIMS, pattern.ends(), strict=True):
        connected, codes = np.unique(end, return_inverse=True)
        keys = units[by].reset_coords(drop=True).reindex(nucleus_id=pairs[dim].values[connected])
        order, ticks, labels = _sorted_by(keys)
        ns.append(len(order))
        steps.append(-(-len(order) // _MAX_CELLS))
        places.append(np.argsort(order)[codes] // steps[-1])
        axis.set_ticks(ticks, labels)
        axis.set_label_text(f"{side} neurons ({len(order):,}) by {label_of(units[by], by)}")
    shape = [-(-n // step) for n, step in zip(ns, steps, strict=True)]
    cells = np.zeros(shape)
    np.add.at(cells, tuple(places), values[name])
    extent = (0, shape[1] * steps[1], shape[0] * steps[0], 0)
    image = _draw_matrix(ax, cells, extent=extent, interpolation="nearest")
    ax.set(xlim=(0, ns[1]), ylim=(ns[0], 0))
    ax.tick_params(axis="x", rotation=90 if words_of(units[by]) is not None else 0)
    note = f"\nsum of {steps[0]} × {steps[1]} neurons" if max(steps) > 1 else ""
    draw_colour_bar(ax, image, pairs[name], note)
    return ax


def _sorted_by(keys: xr.DataArray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the order of neurons, and the places and labels of ticks."""
    words = words_of(keys)
    if words is None:
        order = np.argsort(floats(keys), kind="stable")  # NaN last
        known = int(np.isfinite(floats(keys)).sum())
        ticks = np.unique(np.linspace(0, max(known - 1, 0), 5).astype(int))
        return order, ticks + 0.5, [f"{x:.3g}" for x in floats(keys)[order[ticks]]]
    styles = list(styles_of(words))
    codes = np.array([styles.index(word) for word in words])
    ends = np.append(0, np.bincount(codes).cumsum())
    middles, chosen = (ends[1:] + ends[:-1]) / 2, list[int]()
    for i, middle in enumerate(middles):
        if not chosen or middle - middles[chosen[-1]] > 0.04 * len(words):
            chosen.append(i)
    return np.argsort(codes, kind="stable"), middles[chosen], [styles[i] for i in chosen]


def weight_distribution(
    connectivity: Connectivity, weight: str | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw how many connections have which weight.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store; the weight is read into memory.
    weight : str, optional
        Weight to draw, by default ``synapse_size``, or else the only one.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        A histogram with a line at the median. The horizontal axis is logarithmic if no weight is
        below 0 and the others span a factor of ten; connections of weight 0, which it cannot show,
        are counted in the legend.

    Raises
    ------
    SchemaError
        If there is no connection with a weight.
    UnknownLabelError
        If there is no such weight.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> weight_distribution(two_neurons(), "synapse_count").get_ylabel()
    'connections per bin'
    """
    pairs = connectivity_of(connectivity)[0]
    name = weight_of(pairs, weight)
    numbers = pair_buffers(pairs[[name]].compute(), [name])[1][name]
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        raise SchemaError(f"no connection has a {name}: there is nothing to draw")
    wide = numbers.min() >= 0 and is_wide(numbers[numbers > 0])
    drawn = numbers[numbers > 0] if wide else numbers
    low, high = drawn.min(), drawn.max()
    edges = (np.geomspace if wide else np.linspace)(low, high if high > low else low + 1, 41)
    if numbers.dtype.kind in "iu":  # whole numbers in every bin
        edges = np.unique(np.append(edges.round(), high + 1)) - 0.5
    counts = np.histogram(drawn, edges)[0]
    ax = axes_or_current(ax)
    ax.stairs(counts, edges, fill=True, color=PALETTE[0])
    label = f"median: {np.median(numbers):.4g}\n({numbers.size:,} connections"
    label += f", {(numbers == 0).sum():,} of them 0)" if len(drawn) < len(numbers) else ")"
    ax.axvline(float(np.median(numbers)), color="black", ls=":", lw=1.5, label=label)
    ax.set(xlabel=label_of(pairs[name]), ylabel="connections per bin")
    ax.set(xscale="log" if wide else "linear")
    if counts.max() > 100 * np.median(counts[counts > 0]):
        ax.set(yscale="log")
    draw_legend(ax)
    return ax


def degree_distribution(
    degrees: xr.Dataset,
    variables: tuple[str, ...] = ("out_degree", "in_degree"),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of neurons with at least x partners.

    Parameters
    ----------
    degrees : xarray.Dataset
        From `microns_xr.degrees`, lazy or not.
    variables : tuple of str, optional
        Variables in the same units: degrees, synapses or sizes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        One line per variable (complementary cumulative distribution): the share of the neurons of
        that axis that have a value of x or more, NaN left out. An axis is logarithmic if its values
        span a factor of ten. Neurons with 0 are not drawn; they are counted in the legend and in
        the share. The title says if the scope of the connectivity is "unknown".

    Raises
    ------
    SchemaError
        If a variable is absent, not one number per neuron, negative, in other units than the
        first, or 0 everywhere.

    Examples
    --------
    >>> import microns_xr as mx
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> ax = degree_distribution(mx.degrees(two_neurons()))
    >>> ax.get_xscale(), ax.get_ylabel()
    ('linear', 'share of neurons with at least x')
    """
    from matplotlib.ticker import LogFormatter

    names = (variables,) if isinstance(variables, str) else tuple(variables)
    require(degrees, names, "degrees", "use mx.degrees(connectivity)")
    units = degrees[names[0]].attrs.get("units", "")
    lines = []
    for name in names:
        variable = degrees[name]
        if variable.ndim != 1 or variable.dtype.kind not in "iuf":
            raise SchemaError(f"{name} has dims {variable.dims}, expected one number per neuron")
        if variable.attrs.get("units", "") != units:
            raise SchemaError(
                f"{name} is in {variable.attrs.get('units')!r} but {names[0]} in {units!r}, "
                "expected variables of the same units: draw them on separate axes"
            )
        numbers = variable.values[np.isfinite(variable.values)]
        if (numbers < 0).any():
            raise SchemaError(f"{name} has the minimum {numbers.min()}, expected 0 or more")
        at, counts = np.unique(numbers[numbers > 0], return_counts=True)
        if not at.size:
            raise SchemaError(f"{name} is 0 for all {numbers.size} neurons: nothing to draw")
        text = in_words(variable.attrs.get("long_name", name))
        text += f"\n({numbers.size} neurons, {(numbers == 0).sum()} of them 0)"
        lines.append((at, counts[::-1].cumsum()[::-1] / numbers.size, text))
    ax = axes_or_current(ax)
    for i, (at, share, text) in enumerate(lines):
        look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "ls": LINES[i % len(LINES)]}
        # A line of one value is only its marker.
        look["marker"] = "o" if at.size == 1 else ""
        ax.plot(at, share, drawstyle="steps-pre", label=text, **look)
    what = "partners x" if all(n.endswith("degree") for n in names) else "x"
    xlabel = f"{what} ({units})" if units not in ("", "1") else what
    ylabel = "share of neurons with at least x"
    both = (np.concatenate([line[i] for line in lines]) for i in (0, 1))
    scales = ["log" if is_wide(values) else "linear" for values in both]
    ax.set(xscale=scales[0], yscale=scales[1], xlabel=xlabel, ylabel=ylabel)
    if scales[1] == "linear":
        ax.set_ylim(bottom=0)
    if scales[0] == "log":
        # Shorter than powers of ten, which overlap where ticks lie between them.
        ax.xaxis.set_major_formatter(LogFormatter())
        ax.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    if "scope" in degrees.coords and degrees["scope"].item() == "unknown":
        ax.set_title("scope unknown: only neurons with a connection", fontsize="small")
    draw_legend(ax)
    return ax


def connection_probability(probability: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw connection probability against distance, with intervals.

    Parameters
    ----------
    probability : xarray.Dataset
        From `microns_xr.analysis.connection_probability` with a distance: ``probability`` with its
        ends, and ``n_pairs`` over one dim of distances and up to two of populations.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        One line per pair of populations with a tested pair of neurons, at the mean distances of
        the pairs of each bin, with whiskers where the interval is known. The legend counts the
        tested pairs; the label of the vertical axis says if the probabilities are lower bounds.

    Raises
    ------
    SchemaError
        If variables are absent, there is not exactly one dim of distances, no pair was tested, or
        there are more than 9 lines.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> result = mx.analysis.connection_probability(
    ...     release.connectivity(), release.units(), None, [0, 100, 200]
    ... )
    >>> mx.plot.connection_probability(result).get_xlabel()
    'lateral distance (µm)'
    """
    how = "use mx.analysis.connection_probability(connectivity, units, distance=edges)"
    names = ("probability", "probability_low", "probability_high", "n_pairs")
    require(probability, names, "probability", how)
    dims = probability["probability"].dims
    distances = [d for d in dims if str(d).endswith("_distance")]
    populations = [d for d in dims if d not in distances]
    if len(distances) != 1:
        raise SchemaError(
            f"probability has dims {dims}, of which {distances} are distances, expected one: "
            + ("select one bin of the others, with .isel" if distances else how)
        )
    probability = probability.compute()
    places = product(*(range(probability.sizes[d]) for d in populations))
    lines = [probability.isel(dict(zip(populations, place, strict=True))) for place in places]
    lines = [line for line in lines if int(line["n_pairs"].sum()) > 0]
    if not lines:
        raise SchemaError("no pair was tested (n_pairs is 0 everywhere): there is nothing to draw")
    if len(lines) > _MAX_LINES:
        raise SchemaError(
            f"probability has {len(lines)} pairs of populations, expected at most {_MAX_LINES} "
            "lines: select some with .sel, or use coarser populations"
        )
    ax = axes_or_current(ax)
    distance = probability[distances[0]]
    for i, line in enumerate(lines):
        words = " → ".join(str(line[d].item()) for d in populations) or "all"
        label = f"{words} ({int(line['n_pairs'].sum()):,} pairs)"
        look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "marker": "os^Dv"[i % 5]}
        look |= {"ls": LINES[i // 7 % len(LINES)], "ms": 4, "lw": 1.2, "elinewidth": 0.9}
        y, ends = floats(line["probability"]), _whiskers(line, "probability")
        # The pairs of a bin are not in its middle.
        x = floats(line.get(f"mean_{distances[0]}", distance))
        x = np.where(np.isfinite(x), x, floats(distance))
        ax.errorbar(x, y, yerr=ends, capsize=2, label=label, **look)
    lower = "lower_bound" in probability and bool(probability["lower_bound"].any())
    ax.set(
        xlabel=label_of(distance, str(distance.name).replace("_", " ")),
        ylabel="connection probability" + (" (lower bound)" if lower else ""),
    )
    ax.set_ylim(bottom=0)
    kind, _, share = str(probability.attrs.get("interval", "")).partition(" of confidence ")
    draw_legend(ax, f"{float(share):.0%} {kind}" if share else kind or None)
    return ax


def _whiskers(result: xr.Dataset, variable: str) -> np.ndarray:
    """Return the lengths of whiskers below and above the points."""
    y, low, high = (floats(result[f"{variable}{end}"]) for end in ("", "_low", "_high"))
    # A bootstrap interval need not include the estimate, but a whisker cannot be negative.
    return np.clip(np.stack([y - low, high - y]), 0, None)


def like_to_like(
    result: xr.Dataset,
    null: xr.Dataset | xr.DataArray | None = None,
    *,
    variable: str = "probability",
    ax: Axes | None = None,
) -> Axes:
    """Draw connection probability, or size, against the difference of preferred angles.

    Parameters
    ----------
    result : xarray.Dataset
        From `microns_xr.analysis.like_to_like`, with intervals or without.
    null : xarray.Dataset or xarray.DataArray, optional
        The result of `mx.analysis.null_models.compare` or ``compare_values`` for the same variable,
        or replicates over (``replicate``, ``difference``). Drawn as a grey band with its mean.
    variable : str, optional
        ``"probability"`` or ``"mean_size"``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes
        Points are at the mean difference of the pairs of a bin, if the result has it. Numbers at
        the points count connected pairs; the legend counts all pairs.

    Raises
    ------
    SchemaError
        If variables are absent, or the null has other bins.

    Examples
    --------
    >>> about = {"units": "degree", "long_name": "difference of pref_ori"}
    >>> result = xr.Dataset({"probability": ("difference", [0.2, 0.1])},
    ...     coords={"difference": ("difference", [0.0, 90.0], about)})
    >>> like_to_like(result).get_xlabel()
    'difference of preferred orientation (degree)'
    """
    how = "use mx.analysis.like_to_like(connectivity, units)"
    require(result, ("difference", variable), "result", how)
    observed = result[variable].compute()
    if observed.dims != ("difference",):
        raise SchemaError(f"{variable} has dims {observed.dims}, expected ('difference',)")
    ax = axes_or_current(ax)
    centres, y = floats(observed["difference"]), floats(observed)
    x = centres
    if "mean_difference" in result:
        # Bins that end at 0 or at half a period are not centred on their pairs.
        mean = floats(result["mean_difference"])
        x = np.where(np.isfinite(mean), mean, centres)
    if null is not None:
        _draw_null(ax, x, observed, null)
    label = "observed"
    if "n_pairs" in result:
        label = f"observed ({int(result['n_pairs'].sum()):,} pairs"
        label += "; numbers: connected ones)" if "n_connected" in result else ")"
    ax.plot(x, y, color=PALETTE[0], marker="o", ms=5, lw=1.5, label=label, zorder=3)
    if f"{variable}_low" in result:
        share = result.attrs.get("confidence")
        label = f"{share:.0%} interval" if share else "interval"
        look: dict[str, Any] = {"color": PALETTE[0], "capsize": 3, "lw": 1.2, "label": label}
        ax.errorbar(x, y, yerr=_whiskers(result, variable), fmt="none", **look)
    if "n_connected" in result:
        for at, height, n in zip(x, y, result["n_connected"].values, strict=True):
            if np.isfinite(height):
                text, point = f"{int(n):,}", (at, height)
                ax.annotate(text, point, (5, 5), textcoords="offset points", fontsize=7)
    ylabel = label_of(observed)
    if variable == "probability" and "lower bound" in result.attrs.get("completeness", ""):
        ylabel += " (lower bound)"
    ax.set(xlabel=label_of(observed["difference"]), ylabel=ylabel, xticks=centres)
    if ax.get_ylim()[0] > 0:  # a mean weight may be negative
        ax.set_ylim(bottom=0)
    ax.margins(x=0.08)
    draw_legend(ax)
    return ax


def _draw_null(ax: Axes, x: np.ndarray, observed: xr.DataArray, null: Any) -> None:
    if isinstance(null, xr.DataArray):
        null = compare_values(observed, null)
    names = ("null_mean", "null_low", "null_high")
    require(null, names, "null", "use mx.analysis.null_models.compare")
    mean, low, high = (null[name] for name in names)
    if mean.dims != ("difference",) or not np.array_equal(
        null["difference"], observed["difference"]
    ):
        raise SchemaError(
            f"null is over {dict(mean.sizes)}, expected the bins of the result, difference = "
            f"{observed['difference'].values.tolist()}: compute both with the same bins"
        )
    draw_band(ax, x, floats(low), floats(high), "#555555")
    share = null.attrs.get("confidence")
    model = str(null.attrs.get("null", "")).partition("(")[0].replace("_", " ")
    text = f"null: {model}" if model else "null"
    text += f" (mean, {share:.0%})" if share else " (mean)"
    ax.plot(x, floats(mean), color="#555555", ls="--", lw=1.2, label=text, zorder=2)
