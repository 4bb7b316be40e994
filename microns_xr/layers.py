"""Cortical layers from the depth profile of cell types.

The rule is that of the pandas package microns-datacleaner: bins of about 10 µm in depth, the layer
whose cell types are most numerous in each bin, L1 until L2/3 cells appear in number, contiguous
bins of one layer merged. It differs where that rule depends on accidents of the table: neurons
count once, the spelling of a type does not matter, "in number" is relative to the data, the
deepest cell belongs to the deepest layer, and white matter has a name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS, add_history
from microns_xr.releases import table_spec
from microns_xr.schema import LAYERS, describe

logger = logging.getLogger(__name__)

BIN_UM = 10.0
_WM = "WM"
_DEFAULT_TYPES = "aibs_metamodel_celltypes_v661"

# A bin belongs to L2/3 once it holds this share of the cells of a typical L2/3 bin. The pandas
# package asks for 300 cells, which on the whole of minnie65 (1,150 in a typical bin) is 0.26, and
# no number between 0.13 and 0.31 changes the border there.
L23_SHARE = 0.2

# A run of bins that breaks the order of the layers is a separate region only if its cells outnumber
# those of a neighbouring layer by more than chance: this many standard deviations of the difference
# of two Poisson counts. In small subsets single bins flip by chance.
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
        Whether the deep end where glia outnumber neurons is white matter, ``"WM"``. False gives
        the rule of the pandas package, where L6 runs to the last cell.
    layer_types : mapping of str to tuple of str, optional
        Cell types that mark each layer, from the pia down. By default those of the classification
        table the units were built from (``units.attrs["layer_types"]``); where that is not known
        to the registry, all is one region called "unknown".

    Returns
    -------
    xarray.Dataset
        Dim ``segment`` from the pia down: ``layer_name``, ``region_index``, ``y_start``,
        ``y_end``, ``height`` in µm. Attributes state the bin width and what was counted.

    Raises
    ------
    SchemaError
        If variables are absent, no cell has a position, or units say neither their layer types nor
        a table of the registry.

    Notes
    -----
    The range of depths is cut into ``ceil(range / 10 µm)`` equal bins. L1 lasts until a bin holds
    at least 0.2 of the L2/3 cells of a typical L2/3 bin (the mean of the bins with at least half of
    the largest count). A run of bins that breaks the order of the layers, and whose cells outnumber
    those of a neighbouring layer by no more than two standard deviations of chance, is given to
    that layer.

    Examples
    --------
    >>> y = np.r_[np.linspace(60, 250, 400), np.linspace(250, 360, 400)]
    >>> position = np.stack([y * 0, y, y * 0], axis=1)
    >>> units = xr.Dataset({"position": (("nucleus_id", "axis"), position),
    ...     "cell_type": ("nucleus_id", np.repeat(np.array(["23P", "4P"], dtype=object), 400))})
    >>> layers = segment_layers(units)
    >>> list(layers.layer_name.values), float(layers.y_end[0])
    (['L2/3', 'L4'], 250.0)
    """
    for name in ("position", "cell_type"):
        if name not in units:
            raise SchemaError(f"units has no {name}, which layers are made of: use mx.build_units")
    if layer_types is None:
        layer_types = units.attrs.get("layer_types")
    if layer_types is None:
        table = str(units.attrs.get("celltype_table", _DEFAULT_TYPES))
        layer_types = table_spec(table).layers
        if not layer_types:
            raise SchemaError(
                f"the registry does not say which cell types of {table} mark each layer: "
                "pass layer_types={'L2/3': ('23P',), ...}"
            )
    y = depth_of(units)
    has_position = np.isfinite(y)
    if not has_position.any():
        raise SchemaError("no unit has a position, so there is no depth profile: check position")
    y, types = y[has_position], np.asarray(units["cell_type"].values, dtype=object)[has_position]
    n_bins = max(1, int(np.ceil((y.max() - y.min()) / BIN_UM)))
    edges = np.linspace(y.min(), y.max(), n_bins + 1)
    bins = np.clip(np.searchsorted(edges, y, side="right") - 1, 0, n_bins - 1)
    names = list(layer_types)
    counts = _layer_counts(bins, n_bins, types, layer_types)
    n_cells = int(counts.sum())
    if n_cells:
        labels = _bin_layers(counts, names, white_matter)
        runs = [(names[label], start, stop) for label, start, stop in _runs(labels)]
    else:
        logger.warning("layers: no unit has a cell type that marks a layer; all are 'unknown'")
        runs, n_cells = [("unknown", 0, n_bins)], len(y)
    layer_names = [name for name, *_ in runs]
    y_start = edges[[start for _, start, _ in runs]]
    y_end = edges[[stop for *_, stop in runs]]
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


def depth_of(units: xr.Dataset) -> np.ndarray:
    """Depth of every unit from the pia in µm, by the label of its axis."""
    position = units["position"].transpose("nucleus_id", "axis")
    y = position.sel(axis="y") if "axis" in position.coords else position.isel(axis=1)
    return np.asarray(y.values, dtype=np.float64)


def layer_at(depth: np.ndarray, layers: xr.Dataset) -> np.ndarray:
    """Name the layer at each depth; "unknown" outside of all."""
    names = np.append(np.asarray(layers["layer_name"].values, dtype=object), "unknown")
    starts, end = layers["y_start"].values, layers["y_end"].values[-1]
    segment = np.searchsorted(starts, depth, side="right") - 1
    return names[np.where((segment >= 0) & (depth <= end), segment, len(starts))]


def _layer_counts(
    bins: np.ndarray, n_bins: int, types: np.ndarray, layer_types: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """Cells of each layer's types in each bin: shape (n_bins, n_layers)."""
    layer_of = {w.lower(): i for i, words in enumerate(layer_types.values()) for w in words}
    codes, words = pd.factorize(types)
    layer = np.array([layer_of.get(str(w).lower(), -1) for w in words], dtype=np.int64)[codes]
    counts = np.zeros((n_bins, len(layer_types)), dtype=np.int64)
    np.add.at(counts, (bins[layer >= 0], layer[layer >= 0]), 1)
    return counts


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Contiguous runs as (label, first bin, bin after the last)."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    stops = np.r_[starts[1:], len(labels)]
    return list(zip(labels[starts].tolist(), starts.tolist(), stops.tolist(), strict=True))


def _bin_layers(counts: np.ndarray, names: list[str], white_matter: bool) -> np.ndarray:
    """Layer index of each bin."""
    first = _first_l23_bin(counts, names)
    considered = counts.copy()
    if _WM in names and not white_matter:
        considered[:, names.index(_WM)] = 0
    # Bins without a typed cell take the layer above them, or the first below the top.
    empty = considered.sum(axis=1) == 0
    source = np.maximum.accumulate(np.where(empty, -1, np.arange(len(counts))))
    labels = considered.argmax(axis=1)[np.where(source < 0, np.argmin(empty), source)]
    if first:
        labels[:first] = names.index("L1")
    _absorb_chance_runs(labels[first:], considered[first:])
    if _WM in names:
        # White matter lies below the cortex: glia that outnumber neurons elsewhere are not it.
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
    """First bin that holds L2/3 cells in number; 0 when the data have no such layer."""
    if "L2/3" not in names or "L1" not in names:
        return 0
    l23 = counts[:, names.index("L2/3")]
    if not l23.any():
        return 0
    typical = l23[l23 >= l23.max() / 2].mean()
    return int(np.argmax(l23 >= L23_SHARE * typical))


def _absorb_chance_runs(labels: np.ndarray, counts: np.ndarray) -> None:
    """Give runs that break the order of the layers by chance to a neighbour, the weakest first."""
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
