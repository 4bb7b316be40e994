"""Single synapses: select them by neurons or in a box, and sum them to connectivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.columns import as_ids, require_once
from microns_xr.connectivity.arrays import Compressed, as_pairs, connectivity_dataset, make_pattern
from microns_xr.connectivity.labels import require_known
from microns_xr.connectivity.sort import sum_pairs
from microns_xr.connectivity.subset import drop_unnamed, n_connections
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.provenance import add_history, release_of, require_same_release
from microns_xr.schema import AXES, with_labels
from microns_xr.store.format import INDEX_NAMES
from microns_xr.store.locate import Address
from microns_xr.store.synapses import SynapseRows, order_of, rows_of, without_pairs
from microns_xr.threads import Span, run_spans, usable_threads

Box = Mapping[str, tuple[float, float]]
Synapses = xr.Dataset | xr.DataTree | Address


def select_synapses(
    synapses: Synapses, *, pre: Any = None, post: Any = None, box: Box | None = None
) -> xr.Dataset:
    """Select the synapses of some neurons, between two sets of neurons, or in a box.

    From a store on disk, only the rows of the neurons are read, from the copy of the synapses in
    which they are contiguous; for a box, chunks are read in turn, positions first.

    Parameters
    ----------
    synapses : xarray.Dataset, xarray.DataTree, str or path-like
        Single synapses from `microns_xr.build_synapses`, a selection of them, an opened store, or
        the path or URL of a store.
    pre, post : int or collection of int, optional
        Nucleus ids. If both are passed, the synapses from `pre` onto `post` are selected. Ids that
        are not on the axis of a store, or that a Dataset does not name, are ignored, and counted in
        the history.
    box : mapping of str to tuple of float, optional
        Bounds in µm by axis, such as ``{"y": (0, 100)}``; y is depth from the pia. The upper bound
        is excluded, so that adjacent boxes share no synapse. Omitted axes are unbounded. Synapses
        without a position are outside of every box.

    Returns
    -------
    xarray.Dataset
        The same variables over ``synapse``, sorted by post, then pre, then id.

    Raises
    ------
    UnknownLabelError
        If none of the ids is known, or the store has no synapses.
    SchemaError
        If no selection is passed, ids are not integers, `box` is not a mapping of axes to ordered
        bounds, the synapses lack positions or the neurons that they connect, or a ``synapse_id`` is
        repeated.
    StoreFormatError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> synapses = release.synapses()
    >>> top = select_synapses(synapses, box={"y": (0.0, 300.0)})
    >>> bool((top.position.sel(axis="y") < 300).all()), top.pre_nucleus_id.dims
    (True, ('synapse',))
    """
    if pre is None and post is None and box is None:
        raise SchemaError("no selection was passed, expected at least one of pre, post and box")
    rows = rows_of(synapses)
    chosen: dict[Compressed, np.ndarray] = {}
    asked: dict[Compressed, Any] = {"pre": pre, "post": post}
    for side, ids in asked.items():
        if isinstance(ids, xr.Dataset | xr.DataArray):
            require_same_release(("synapses", rows.frame), (side, ids))
        if ids is not None:
            chosen[side] = np.unique(as_ids(ids, side))
    bounds = {} if box is None else _bounds(box, rows)
    # Choose the copy in which the fewest rows must be read.
    by: Compressed = "post"
    spans, n_read = [(0, rows.n)], rows.n
    for side, ids in chosen.items():
        side_spans = rows.spans(side, ids)
        n = rows.n if side_spans is None else sum(stop - start for start, stop in side_spans)
        if side_spans is not None and n <= n_read:
            by, spans, n_read = side, side_spans, n
    finders = {side: rows.finder(side, ids) for side, ids in chosen.items()}
    # which of the ids are known; the last stands for all other neurons
    named = {side: np.zeros(ids.size + 1, dtype=bool) for side, ids in chosen.items()}
    pieces = run_spans(
        lambda lo, hi: _take(rows, by, lo, hi, finders, named, bounds),
        _pieces(rows, spans),
        usable_threads(None, rows.n),
    )
    parts = [part for part in pieces if part is not None]
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else rows.read(name, 0, 0, by)
        for name in rows.columns
    }
    # Check the rows that the pointers of a store lead to against their own positions.
    n_selected = columns[rows.end(by)].size
    if spans != [(0, rows.n)] and list(chosen) == [by] and not bounds and n_selected != n_read:
        raise rows.broken(
            f"{n_selected} of the {n_read} rows that the pointers assign to the requested "
            f"{by}synaptic neurons are theirs by {rows.end(by)}, expected all"
        )
    missing = [_ignored(rows, side, ids, named[side][:-1]) for side, ids in chosen.items()]
    entry = ", ".join([f"select_synapses: {n_selected} of {rows.n}", *filter(None, missing)])
    return add_history(_selection(rows, columns), entry)


def _ignored(rows: SynapseRows, side: Compressed, ids: np.ndarray, named: np.ndarray) -> str:
    """Return how many ids are not known, or raise if none is."""
    # On the axes of a store are also neurons without synapses.
    axis = rows.axis(side)
    known = named if axis is None else named | np.isin(ids, axis)
    if ids.size and not known.any():
        raise UnknownLabelError(
            f"none of the {ids.size} ids of {side} is a {side}_nucleus_id of the synapses, such "
            f"as {ids[0]}: pass nucleus ids, not root ids, of the same release; only neurons that "
            "were requested have synapses"
        )
    n = int((~known).sum())
    return f"{n} of {ids.size} ids of {side} are not known" if n else ""


def sum_synapses(synapses: Synapses, connectivity: xr.Dataset | None = None) -> xr.Dataset:
    """Sum single synapses to connectivity, the inverse of `microns_xr.build_synapses`.

    Parameters
    ----------
    synapses : xarray.Dataset, xarray.DataTree, str or path-like
        As in `select_synapses`; synapses of a store on disk are read in pieces.
    connectivity : xarray.Dataset, optional
        Provides the axes and their annotations. By default the connectivity of the store is used,
        else the neurons of the synapses.

    Returns
    -------
    xarray.Dataset
        ``synapse_size`` (voxels) and ``synapse_count`` over (``pre_nucleus_id``,
        ``post_nucleus_id``), compressed over post. All synapses of a connectivity yield exactly its
        pairs, sums, axes and scope. Sums of only some synapses, such as those in a box, have the
        scope "unknown": a pair without any of these may have others, so sums over a neuron without
        any are NaN. If you mean 0, such as no synapse on a spine, use
        ``.assign_coords(scope=connectivity.scope)``.

    Raises
    ------
    UnknownLabelError
        If synapses belong to neurons that are not on the axes of `connectivity`.
    SchemaError
        If the synapses lack ``size`` or the neurons that they connect, if a size is not a whole
        number, or if a ``synapse_id`` is repeated.
    ReleaseMismatchError
        If the two come from different releases, or do not record their release.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> connectivity = release.connectivity()
    >>> summed = sum_synapses(release.synapses(), connectivity)
    >>> int((summed.synapse_size.data != connectivity.synapse_size.data).nnz)
    0
    """
    rows = rows_of(synapses)
    if "size" not in rows.columns:
        raise SchemaError(
            f"synapses has no size, found {sorted(rows.columns)}: read them with their sizes"
        )
    if connectivity is None:
        connectivity = rows.matrix()
    if connectivity is not None:  # that of a tree may be the user's own
        connectivity = as_pairs(connectivity)
        require_same_release(("synapses", rows.frame), ("connectivity", connectivity))
    axes = None if connectivity is None else without_pairs(connectivity)
    if rows.root is None and "synapse_id" in rows.columns:
        require_once(rows.columns["synapse_id"].values, "synapse_id of synapses")
    labels: dict[Compressed, np.ndarray] = {
        side: rows.ids(side) if axes is None else axes[f"{side}_nucleus_id"].values
        for side in INDEX_NAMES
    }
    finders = {side: rows.finder(side, ids) for side, ids in labels.items()}
    parts = run_spans(
        lambda lo, hi: _pair_sums(rows, lo, hi, finders),
        _pieces(rows, [(0, rows.n)]),
        usable_threads(None, rows.n),
    )
    post, pre, size, count = (np.concatenate(part) for part in zip(*parts, strict=True))
    shape = (labels["pre"].size, labels["post"].size)
    summed = sum_pairs(post, pre, size, count, *shape[::-1])
    result = connectivity_dataset(
        {"synapse_size": summed.sizes, "synapse_count": summed.counts},
        make_pattern(summed.indices, summed.indptr, shape, "post"),
        labels["pre"],
        labels["post"],
        scope="unknown" if axes is None else axes["scope"].item(),
        release=release_of(rows.frame, "synapses"),
        attrs=rows.frame.attrs,
    )
    if axes is None:
        result = drop_unnamed(result)
    else:
        others = {n: c.variable for n, c in axes.coords.items() if n not in result.coords}
        result = result.assign_coords(others)
    if connectivity is None or _holds_all(result, connectivity):
        return add_history(result, "sum_synapses")
    # A pair or a neuron may have other synapses, which were not summed.
    result = result.assign_coords(scope=xr.Variable((), np.array("unknown", dtype=object)))
    return add_history(result, f"sum_synapses: {rows.n}, not all synapses of the connectivity")


def _holds_all(summed: xr.Dataset, connectivity: xr.Dataset) -> bool:
    """Whether no pair of the connectivity has synapses that were not summed."""
    weight = next((n for n in ("synapse_count", "synapse_size") if n in connectivity), None)
    if weight is None or n_connections(summed) < n_connections(connectivity):
        return False
    # These pairs are in memory, now that they are not more than the summed ones.
    return not bool((connectivity[weight].compute() > summed[weight]).any())


def _bounds(box: Box, rows: SynapseRows) -> dict[int, tuple[float, float]]:
    """Return the bounds by column of ``position``."""
    column = rows.columns.get("position")
    if column is None or column.dims != ("synapse", "axis"):
        raise SchemaError(
            f"synapses has no position(synapse, axis), found {sorted(rows.columns)}: download them "
            "with positions=True"
        )
    order = tuple(rows.frame["axis"].values) if "axis" in rows.frame.coords else AXES
    try:
        bounds = {order.index(axis): (float(a), float(b)) for axis, (a, b) in box.items()}
    except (AttributeError, TypeError, ValueError):
        bounds = {}
    # This also rejects NaN.
    if not bounds or not all(low <= high for low, high in bounds.values()):
        raise SchemaError(
            f"box is {box!r}, expected bounds (lower, upper) in µm, ascending, for some of "
            f"{AXES}, such as {{'x': (0, 100), 'y': (200, np.inf)}}"
        )
    return bounds


def _pieces(rows: SynapseRows, spans: list[Span]) -> list[Span]:
    """Cut rows into pieces of at most a chunk; spans that share a chunk are read together."""
    # Read the rows between spans in the same chunk, too, since the chunk would be decoded twice.
    merged: list[Span] = []
    for start, stop in spans:
        if merged and start // rows.chunk <= (merged[-1][1] - 1) // rows.chunk:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    # Cut at chunk boundaries, so that no chunk is decoded twice.
    pieces = []
    for start, stop in merged:
        if stop - start <= rows.chunk:
            pieces.append((start, stop))
            continue
        first = (start // rows.chunk + 1) * rows.chunk
        edges = [start, *range(first, stop, rows.chunk), stop]
        pieces += list(pairwise(edges))
    return pieces


def _take(
    rows: SynapseRows,
    by: Compressed,
    start: int,
    stop: int,
    finders: Mapping[Compressed, Callable[[np.ndarray], np.ndarray]],
    named: Mapping[Compressed, np.ndarray],
    bounds: dict[int, tuple[float, float]],
) -> dict[str, np.ndarray] | None:
    """Return the selected rows of one piece, or None; reads as few columns as possible."""
    read: dict[str, np.ndarray] = {}
    selected = np.ones(stop - start, dtype=bool)
    for side, find in finders.items():
        end = rows.end(side)
        read[end] = rows.read(end, start, stop, by)
        at = find(read[end])
        named[side][at] = True
        selected &= at >= 0
    if bounds and selected.any():
        position = read["position"] = rows.read("position", start, stop, by)
        for column, (low, high) in bounds.items():
            selected &= (position[:, column] >= low) & (position[:, column] < high)
    # Read the other columns only from the first to the last selected row.
    hits = np.flatnonzero(selected)
    if not hits.size:
        return None
    first, last = int(hits[0]), int(hits[-1]) + 1
    selected = selected[first:last]
    out = {}
    for name in rows.columns:
        if name in read:
            values = read[name][first:last]
        else:
            values = rows.read(name, start + first, start + last, by)
        out[name] = values if selected.all() else values[selected]
    return out


def _selection(rows: SynapseRows, columns: dict[str, np.ndarray]) -> xr.Dataset:
    values = rows.with_ids(columns)
    if "synapse_id" in values:
        require_once(values["synapse_id"], "synapse_id of synapses")
    keys = [values["synapse_id"]] if "synapse_id" in values else []
    found = order_of(values["post_nucleus_id"], values["pre_nucleus_id"], *keys)
    # Rows ordered by post need not be sorted or copied.
    order: Any = slice(None) if found is None else found
    variables = {
        name: xr.Variable(variable.dims, values[name][order], variable.attrs)
        for name, variable in rows.variables.items()
    }
    return with_labels(rows.frame.assign(variables).set_coords(rows.coords))


def _pair_sums(
    rows: SynapseRows,
    start: int,
    stop: int,
    finders: Mapping[Compressed, Callable[[np.ndarray], np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sum adjacent rows of the same pair; return post, pre, size and count per pair."""
    ends = {rows.end(side): rows.read(rows.end(side), start, stop) for side in finders}
    index = {side: find(ends[rows.end(side)]) for side, find in finders.items()}
    for side, at in index.items():
        if (at < 0).any():
            hint = "select its synapses first, with mx.select_synapses(synapses, pre=..., post=...)"
            ids = rows.ids_of(side, ends[rows.end(side)])
            require_known(ids, at, f"{side} of the synapses", "the connectivity", hint)
    # Rows of a store are sorted by pair, so most are summed here; `sum_pairs` sums the rest.
    size = rows.read("size", start, stop)
    if size.dtype.kind == "f" and not (np.mod(size, 1) == 0).all():  # nor is the rest of NaN
        raise rows.broken(
            "size holds NaN or fractions, expected whole numbers of voxels (select rows with .isel "
            "or .where(..., drop=True))"
        )
    size = size.astype(np.int64, copy=False)
    post, pre = index["post"], index["pre"]
    changes = (post[1:] != post[:-1]) | (pre[1:] != pre[:-1])
    first = np.flatnonzero(np.concatenate([[stop > start], changes]))
    sums = np.add.reduceat(size, first) if first.size else size
    return post[first], pre[first], sums, np.diff(first, append=stop - start)
