"""Cortical layers from the depth profile of cell types.

The rule is that of the pandas package microns-datacleaner: depth is divided into bins of about
10 µm, each bin gets the layer whose cell types are most numerous, the top is L1 until there are
enough L2/3 cells, and contiguous bins of one layer are merged. It differs where that rule depends
on details of the table: neurons count once, the case of a type is ignored, "enough" is relative to
the data, the deepest cell belongs to the deepest layer, and white matter is named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import SchemaError, UnknownLabelError, nearest, require_instance, warn_user
from microns_xr.frames import require_depth
from microns_xr.provenance import RELEASE_COORDS, add_history, text_lines
from microns_xr.releases import datastack_of, table_spec
from microns_xr.schema import LAYERS, describe

logger = logging.getLogger(__name__)

BIN_UM = 10.0
_WM = "WM"

# L2/3 begins at the bin that has this fraction of the cells of a typical L2/3 bin. The pandas
# package requires 300 cells, a fraction of 0.26 in all of minnie65 (1,150 in a typical bin), where
# any value between 0.13 and 0.31 yields the same border.
L23_SHARE = 0.2

# A run of bins that violates the order of the layers is a separate region only if its cells
# outnumber those of a neighbouring layer by more than chance: this many standard deviations of the
# difference of two Poisson counts. In small subsets single bins flip by chance.
CHANCE_SIGMA = 2.0


def segment_layers(
    units: xr.Dataset,
    *,
    white_matter: bool = True,
    layer_types: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """Find the borders of the cortical layers.

    Parameters
    ----------
    units : xarray.Dataset
        With ``position(nucleus_id, axis)`` in pia-oriented µm and ``cell_type(nucleus_id)``.
    white_matter : bool, optional
        Whether the deep end where glia outnumber neurons is white matter, ``"WM"``. If False, L6
        extends to the last cell, as in the pandas package.
    layer_types : mapping of str to sequence of str, optional
        Cell types that mark each layer, from the pia down, in any case. By default those of the
        classification table of the units (``units.attrs["layer_types"]``); if it has no types, the
        result is a single region called "unknown".

    Returns
    -------
    xarray.Dataset
        Dim ``segment`` from the pia down: ``layer_name``, ``region_index``, ``y_start``,
        ``y_end``, ``height`` in µm. Attributes record the bin width and the number of cells.

    Raises
    ------
    SchemaError
        If variables are missing, no cell has a position, positions are not depths from the pia,
        or units have neither layer types nor a table of the registry.
    UnknownLabelError
        If no unit has any of the types in `layer_types`.

    Warns
    -----
    UserWarning
        If no unit has some of the types in `layer_types`, or any of those of the table.

    Notes
    -----
    The range of depths is divided into ``ceil(range / 10 µm)`` equal bins. L1 extends until a bin
    has at least 0.2 of the L2/3 cells of a typical L2/3 bin (the mean of the bins with at least
    half of the largest count). A run of bins that violates the order of the layers, and whose cells
    outnumber those of a neighbouring layer by at most two standard deviations of chance, is
    assigned to that layer.

    Examples
    --------
    >>> y = np.r_[np.linspace(60, 250, 400), np.linspace(250, 360, 400)]
    >>> position = np.stack([y * 0, y, y * 0], axis=1)
    >>> units = xr.Dataset({"position": (("nucleus_id", "axis"), position),
    ...     "cell_type": ("nucleus_id", np.repeat(np.array(["23P", "4P"], dtype=object), 400))})
    >>> layers = segment_layers(units, layer_types={"L2/3": ["23P"], "L4": ["4P"]})
    >>> list(layers.layer_name.values), float(layers.y_end[0])
    (['L2/3', 'L4'], 250.0)
    """
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    for name in ("position", "cell_type"):
        if name not in units:
            raise SchemaError(
                f"units has no {name}, which layers are derived from: use mx.build_units"
            )
    stated = layer_types is not None
    if layer_types is None and (lines := units.attrs.get("layer_types")) is not None:
        words = (line.split(": ") for line in text_lines(lines))
        layer_types = {layer: types.split(", ") for layer, types in words}
    if layer_types is None:
        table = units.attrs.get("celltype_table")
        layer_types = table_spec(str(table), datastack_of(units)).layers if table else {}
        if not layer_types:
            raise SchemaError(
                f"the registry has no cell types of {table or 'the units'} that mark layers, and "
                "the units do not state which (units.attrs['layer_types']): pass "
                "layer_types={'L2/3': ['23P'], 'L4': ['4P'], ...}, from the pia down"
            )
    require_instance("layer_types", layer_types, Mapping, "a mapping of layers to cell types")
    for layer, types in layer_types.items():
        require_instance(f"layer_types[{layer!r}]", types, (str, Iterable), "cell types")
    layer_types = {
        layer: [types] if isinstance(types, str) else list(map(str, types))
        for layer, types in layer_types.items()
    }
    y, types_of_cells = depth_of(units), units["cell_type"].values.astype(object)
    y, types_of_cells = y[np.isfinite(y)], types_of_cells[np.isfinite(y)]
    if not y.size:
        raise SchemaError("no unit has a position, expected a depth profile: check position")
    n_bins = max(1, int(np.ceil((y.max() - y.min()) / BIN_UM)))
    edges = np.linspace(y.min(), y.max(), n_bins + 1)
    bins = np.clip(np.searchsorted(edges, y, side="right") - 1, 0, n_bins - 1)
    names = list(layer_types)
    counts = _layer_counts(bins, n_bins, types_of_cells, layer_types)
    n_cells = int(counts.sum())
    if stated or not n_cells:
        _report_absent_types(types_of_cells, layer_types, stated)
    if n_cells:
        labels = _bin_layers(counts, names, white_matter)
        runs = [(names[label], start, stop) for label, start, stop in _runs(labels)]
    else:
        runs, n_cells = [("unknown", 0, n_bins)], len(y)
    layer_names, starts, stops = zip(*runs, strict=True)
    y_start, y_end = edges[list(starts)], edges[list(stops)]
    columns = {
        "layer_name": np.array(layer_names, dtype=object),
        "region_index": np.array([layer_names[:i].count(n) for i, n in enumerate(layer_names)]),
        "y_start": y_start,
        "y_end": y_end,
        "height": y_end - y_start,
    }
    layers = xr.Dataset(
        {n: ("segment", values, describe(LAYERS[n])) for n, values in columns.items()},
        coords={c: units.coords[c] for c in RELEASE_COORDS if c in units.coords},
        attrs={"bin_um": BIN_UM, "n_cells": n_cells},
    )
    return add_history(layers, "segment_layers", source=units)


def _report_absent_types(
    types: np.ndarray, layer_types: Mapping[str, Sequence[str]], stated: bool
) -> None:
    """Raise or warn if no unit has the cell types that mark layers."""
    present = sorted({str(word) for word in types})
    of_units = {word.lower() for word in present}
    words = [word for of_layer in layer_types.values() for word in of_layer]
    absent = [word for word in words if word.lower() not in of_units]
    found = f"found {', '.join(present[:40])}{nearest(absent[0], present) if absent else ''}"
    if not words and not stated:  # a classification without types
        logger.info("layers: no cell types are known to mark layers; all are 'unknown'")
    elif stated and len(absent) == len(words):
        raise UnknownLabelError(
            f"no unit has any of the cell types {absent} of layer_types, {found}: pass those of "
            "the units"
        )
    elif len(absent) == len(words):
        warn_user(
            f"no unit has a cell type that marks a layer ({', '.join(absent)}), {found}: the layer "
            "is 'unknown' everywhere; pass layer_types= with the types of the units"
        )
    elif absent:
        missing = f"no unit has the cell types {absent} of layer_types, {found}"
        warn_user(f"{missing}: their layers may be missing")


def depth_of(units: xr.Dataset) -> np.ndarray:
    """Return the depth of every unit from the pia in µm."""
    position = units["position"].transpose("nucleus_id", "axis")
    require_depth(position)
    y = position.sel(axis="y") if "axis" in position.coords else position.isel(axis=1)
    return np.asarray(y.values, dtype=np.float64)


def layer_at(depth: np.ndarray, layers: xr.Dataset) -> np.ndarray:
    """Return the layer name at each depth; "unknown" outside of all layers."""
    names = np.append(np.asarray(layers["layer_name"].values, dtype=object), "unknown")
    starts, end = layers["y_start"].values, layers["y_end"].values[-1]
    segment = np.searchsorted(starts, depth, side="right") - 1
    return names[np.where((segment >= 0) & (depth <= end), segment, len(starts))]


def _layer_counts(
    bins: np.ndarray, n_bins: int, types: np.ndarray, layer_types: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """Count the cells of the types of each layer in each bin: shape (n_bins, n_layers)."""
    layer_of = {w.lower(): i for i, words in enumerate(layer_types.values()) for w in words}
    codes, words = pd.factorize(types)
    layer = np.array([layer_of.get(str(w).lower(), -1) for w in words], dtype=np.int64)[codes]
    counts = np.zeros((n_bins, len(layer_types)), dtype=np.int64)
    np.add.at(counts, (bins[layer >= 0], layer[layer >= 0]), 1)
    return counts


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Return contiguous runs as (label, first bin, bin after the last)."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    stops = np.r_[starts[1:], len(labels)]
    return list(zip(labels[starts].tolist(), starts.tolist(), stops.tolist(), strict=True))


def _bin_layers(counts: np.ndarray, names: list[str], white_matter: bool) -> np.ndarray:
    """Return the layer index of each bin."""
    first = _first_l23_bin(counts, names)
    considered = counts.copy()
    if _WM in names and not white_matter:
        considered[:, names.index(_WM)] = 0
    # Bins without a typed cell get the layer above them, or at the top the first layer below.
    empty = considered.sum(axis=1) == 0
    source = np.maximum.accumulate(np.where(empty, -1, np.arange(len(counts))))
    labels = considered.argmax(axis=1)[np.where(source < 0, np.argmin(empty), source)]
    if first:
        labels[:first] = names.index("L1")
    _absorb_chance_runs(labels[first:], considered[first:])
    if _WM in names:
        # White matter is below the cortex: regions elsewhere with more glia than neurons are not.
        wm = names.index(_WM)
        neurons = np.delete(counts, wm, axis=1)
        cortex = np.delete(np.arange(len(names)), wm)
        for label, start, stop in _runs(labels)[:-1]:
            if label == wm:
                above = labels[start - 1] if start else cortex[0]
                block = neurons[start:stop]
                labels[start:stop] = np.where(
                    block.sum(axis=1) > 0, cortex[block.argmax(axis=1)], above
                )
    return labels


def _first_l23_bin(counts: np.ndarray, names: list[str]) -> int:
    """Return the first bin with enough L2/3 cells; 0 if the data have no such layer."""
    if "L2/3" not in names or "L1" not in names:
        return 0
    l23 = counts[:, names.index("L2/3")]
    if not l23.any():
        return 0
    typical = l23[l23 >= l23.max() / 2].mean()
    return int(np.argmax(l23 >= L23_SHARE * typical))


def _absorb_chance_runs(labels: np.ndarray, counts: np.ndarray) -> None:
    """Assign runs that violate the order by chance to a neighbouring layer, weakest first."""
    while True:
        runs = _runs(labels)
        around = [-1, *(label for label, *_ in runs), counts.shape[1]]
        by_chance = []
        for (label, start, stop), above, below in zip(runs, around, around[2:], strict=False):
            cells = counts[start:stop].sum(axis=0)
            neighbours = [i for i in (above, below) if 0 <= i < len(cells)]
            if above < label < below or not neighbours:
                continue
            other = max(neighbours, key=lambda i: cells[i])
            lead = (cells[label] - cells[other]) / np.sqrt(max(cells[label] + cells[other], 1))
            if lead <= CHANCE_SIGMA:
                by_chance.append((lead, start, stop, other))
        if not by_chance:
            return
        _, start, stop, other = min(by_chance, key=lambda run: run[0])
        labels[start:stop] = other
