"""Populations: labels of neurons by one variable or by products of several, and what joins them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import RELEASE_COORDS, add_history, require_same_release
from microns_xr.schema import VOXEL_UNITS
from microns_xr.select import group_connectivity as group_totals
from microns_xr.store.open import Connectivity, connectivity_of

By = str | Iterable[str] | xr.DataArray
_SEPARATOR = ", "


def population_labels(units: xr.Dataset, by: str | Iterable[str] | xr.DataArray) -> xr.DataArray:
    """Label every unit with its population, by one variable or by a product of several.

    Parameters
    ----------
    units : xarray.Dataset
        Units over ``nucleus_id``.
    by : str, collection of str, or xarray.DataArray
        A variable with one word, integer or truth value a unit; several, whose words are joined
        (``["cell_type", "layer"]`` makes ``"23P, L2/3"``); or labels of one's own over
        ``nucleus_id``, aligned by label.

    Returns
    -------
    xarray.DataArray
        Over ``nucleus_id``, named after the variable, or ``cell_type_layer`` for a product, which
        keeps its parts as coordinates ``cell_type`` and ``layer``. Units without a word are
        "unknown".

    Raises
    ------
    UnknownLabelError
        If units has no such variable, or no unit has a label.
    SchemaError
        If a variable is not one word, integer or truth value a unit, or two products read alike.
    ReleaseMismatchError
        If labels are of another release.

    Examples
    --------
    >>> units = xr.Dataset({"cell_type": ("nucleus_id", np.array(["23P", "BC"], dtype=object)),
    ...     "layer": ("nucleus_id", np.array(["L2/3", "L4"], dtype=object))},
    ...     coords={"nucleus_id": [11, 12]})
    >>> population_labels(units, ["cell_type", "layer"]).values
    array(['23P, L2/3', 'BC, L4'], dtype=object)
    """
    if not isinstance(units, xr.Dataset) or "nucleus_id" not in units.coords:
        raise SchemaError("units is no Dataset over nucleus_id: use mx.Release(...).units()")
    if isinstance(by, xr.DataArray):
        require_same_release(("units", units), ("by", by))
        return _aligned(units, by)
    if isinstance(by, str):
        return _column(units, by, "nucleus_id")
    names = _names(by)
    return _product([_column(units, name, "nucleus_id") for name in names])


def group_connectivity(
    connectivity: Connectivity,
    pre: str | Iterable[str] | xr.DataArray,
    post: str | Iterable[str] | xr.DataArray | None = None,
    *,
    units: xr.Dataset | None = None,
) -> xr.Dataset:
    """Add up and average the connections between populations.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory or lazy, a tree that
        has one, or a store, of which every block is read once.
    pre, post : str, collection of str, or xarray.DataArray
        Population of each neuron of either side: a variable of `units`, or without units the name
        of an annotation (``"cell_type"`` for ``pre_cell_type`` and ``post_cell_type``); several of
        them for their product (``["cell_type", "layer"]``); or labels over ``nucleus_id`` (or
        ``pre_nucleus_id``, ``post_nucleus_id``), aligned by label. `post` is as `pre` by default.
    units : xarray.Dataset, optional
        Where the variables are taken from; neurons that are not among them are "unknown".

    Returns
    -------
    xarray.Dataset
        Over (``pre_<name>``, ``post_<name>``), populations sorted, ``<name>`` of a product being
        ``cell_type_layer``, with its parts as coordinates (``pre_cell_type``, ``pre_layer``):
        ``synapse_size`` (voxels of 4x4x40 nm), ``synapse_count`` and ``n_connections`` (connected
        pairs), int64; ``mean_size`` (voxels a connected pair) and ``mean_synapses`` (synapses a
        connected pair), float64, NaN where no pair is connected; and the neurons of each
        population, connected or not, ``n_pre(pre_<name>)`` and ``n_post(post_<name>)``. Sums and
        means of lazy connectivity are lazy.

    Raises
    ------
    UnknownLabelError
        If there is no such variable or annotation, or no neuron of an axis has a label.
    SchemaError
        If labels are not one a neuron, are repeated, absent for some neurons though no text, or
        make too many groups.
    ReleaseMismatchError
        If units or labels are of another release.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> layer = xr.DataArray(["L4", "L4"], {"nucleus_id": [11, 12]}, name="layer")
    >>> table = group_connectivity(two_neurons(), layer)
    >>> float(table.mean_size.sel(pre_layer="L4", post_layer="L4"))
    4.666666666666667
    """
    pairs, opened_here = connectivity_of(connectivity)
    if units is not None:
        require_same_release(("connectivity", pairs), ("units", units))
    labels = {
        side: _side_labels(pairs, units, by, side)
        for side, by in (("pre", pre), ("post", pre if post is None else post))
    }
    table = group_totals(pairs, labels["pre"], labels["post"])
    connected = table["n_connections"].where(table["n_connections"] > 0)
    for name, part, unit in (
        ("mean_size", "synapse_size", VOXEL_UNITS),
        ("mean_synapses", "synapse_count", "synapses"),
    ):
        counts = pairs[part].attrs.get("counts")
        table[name] = (table[part] / connected).assign_attrs(
            long_name=f"mean {part} of a connected pair",
            units=unit,
            **({"counts": counts} if counts else {}),
        )
    for side, of_each in labels.items():
        if isinstance(of_each, xr.DataArray):
            dim = f"{side}_{of_each.name or 'group'}"
            if dim in table.dims:
                table = table.assign_coords(label_parts(of_each, dim, side, table[dim].values))
    table = table.compute() if opened_here else table
    return add_history(table, "group_connectivity: means over connected pairs")


def label_parts(
    labels: xr.DataArray, dim: str, side: str, groups: np.ndarray
) -> dict[str, tuple[str, np.ndarray]]:
    """Return the parts of product labels as coordinates of the axis of populations."""
    parts = labels.attrs.get("parts", [])
    words = pd.Index(labels.values)
    first = words.drop_duplicates()
    rows = np.flatnonzero(~words.duplicated())
    # "unknown" stands for neurons without a unit, which have no part either.
    found = first.get_indexer(pd.Index(groups))
    coords = {}
    for part in parts:
        values = labels[part].values.astype(object)[rows][found]
        values[found < 0] = "unknown"
        coords[f"{side}_{part}"] = (dim, values)
    return coords


def _side_labels(
    connectivity: xr.Dataset, units: xr.Dataset | None, by: By, side: str
) -> str | xr.DataArray:
    if isinstance(by, xr.DataArray):
        return by
    if units is not None:
        return population_labels(units, by)
    if isinstance(by, str):
        return by
    dim = f"{side}_nucleus_id"
    sides = [f"{side}_{name.removeprefix(f'{side}_')}" for name in _names(by)]
    columns = [_column(connectivity, name, dim) for name in sides]
    return _product([c.rename(str(c.name).removeprefix(f"{side}_")) for c in columns])


def _names(by: Any) -> list[str]:
    names = list(by) if isinstance(by, Iterable) else [by]
    if not names or not all(isinstance(name, str) for name in names):
        raise SchemaError(
            f"populations are to be made by {by!r}, expected the name of a variable, several "
            "names, or a DataArray of labels over nucleus_id"
        )
    return names


def _column(dataset: xr.Dataset, name: str, dim: str) -> xr.DataArray:
    if name not in dataset.variables:
        usable = sorted(
            str(n)
            for n, v in dataset.variables.items()
            if v.dims == (dim,) and n != dim and v.dtype.kind in "OUTib"
        )
        near = ", ".join(nearest_words(name, usable))
        raise UnknownLabelError(
            f"there is no variable {name!r} over {dim!r}, expected one of {usable}"
            + (f"; nearest: {near}" if near else "")
        )
    column = dataset[name]
    if column.dims != (dim,):
        raise SchemaError(
            f"{name} has dims {column.dims}, expected one value a neuron along ({dim!r},)"
        )
    values = _words(column.values, name)
    return xr.DataArray(values, {**_scalars(dataset), dim: dataset[dim]}, (dim,), name)


def _scalars(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the coordinates that say which release it is."""
    return {name: dataset[name] for name in RELEASE_COORDS if name in dataset.coords}


def _words(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        values[np.asarray(pd.isna(values))] = "unknown"
    elif values.dtype.kind not in "ib":
        raise SchemaError(
            f"{name} has dtype {values.dtype}, expected text, integers or truth values: cut "
            "numbers into classes first, such as with np.digitize"
        )
    return values


def _aligned(units: xr.Dataset, labels: xr.DataArray) -> xr.DataArray:
    name = str(labels.name or "group")
    if labels.dims != ("nucleus_id",) or "nucleus_id" not in labels.coords:
        raise SchemaError(
            f"labels {name!r} have dims {labels.dims}, expected one label a neuron over "
            "('nucleus_id',) with its ids"
        )
    rows = Lookup(labels["nucleus_id"].values, "nucleus_id").find(units["nucleus_id"].values)
    if rows.size and (rows < 0).all():
        raise UnknownLabelError(f"none of the {rows.size} units has a label {name!r}")
    values = _words(labels.values, name)
    if (rows < 0).any():
        if values.dtype.kind != "O":
            raise SchemaError(
                f"{int((rows < 0).sum())} of {rows.size} units have no label {name!r}, which is "
                f"{values.dtype}: give every unit one, or use text, where they become 'unknown'"
            )
        taken = values[rows]
        taken[rows < 0] = "unknown"
    else:
        taken = values[rows]
    coords = {**_scalars(units), "nucleus_id": units["nucleus_id"]}
    result = xr.DataArray(taken, coords, ("nucleus_id",), name)
    parts = [p for p in labels.attrs.get("parts", []) if p in labels.coords]
    for part in parts:
        own = labels[part].values.astype(object)[rows]
        own[rows < 0] = "unknown"
        result = result.assign_coords({part: ("nucleus_id", own)})
    return result.assign_attrs(parts=parts) if parts else result


def _product(columns: list[xr.DataArray]) -> xr.DataArray:
    if len(columns) == 1:
        return columns[0]
    codes = np.zeros(columns[0].size, dtype=np.int64)
    for column in columns:
        own, words = pd.factorize(column.values)
        codes = pd.factorize(codes * max(1, len(words)) + own)[0].astype(np.int64)
    groups, first = np.unique(codes, return_index=True)
    joined = [_SEPARATOR.join(str(c.values[i]) for c in columns) for i in first]
    if len(set(joined)) < groups.size:
        twice = sorted({w for w in joined if joined.count(w) > 1})
        raise SchemaError(
            f"different products read alike, such as {twice[0]!r}: words of "
            f"{[c.name for c in columns]} hold {_SEPARATOR!r}; rename them first"
        )
    dim = columns[0].dims[0]
    result = xr.DataArray(
        np.array(joined, dtype=object)[codes],
        {**columns[0].coords, **{str(c.name): (dim, c.values) for c in columns}},
        (dim,),
        "_".join(str(c.name) for c in columns),
    )
    return result.assign_attrs(parts=[str(c.name) for c in columns])
