"""Populations: labels of neurons by one variable or several, and the connections between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import is_scope_known, pair_names
from microns_xr.connectivity.blocks import Side, sums_by_group
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import drop_unnamed
from microns_xr.errors import SchemaError, UnknownLabelError, require_instance
from microns_xr.provenance import add_history, require_same_release, text_lines
from microns_xr.schema import column_of
from microns_xr.store.passed import Connectivity, computed, connectivity_of

By = str | Iterable[str] | xr.DataArray | pd.Series
Sides = By | Mapping[str, By]  # or of the two sides, by "pre" and "post"

_SEPARATOR = ", "
_MEANS = {"synapse_size": "mean_size", "synapse_count": "mean_synapses"}
# Three int64 tables of this many cells are 600 MB.
_MAX_CELLS = 25_000_000


def population_labels(units: xr.Dataset, by: By) -> xr.DataArray:
    """Label every unit with its population, by one variable or by a product of several.

    Parameters
    ----------
    units : xarray.Dataset
        Units over ``nucleus_id``.
    by : str, collection of str, xarray.DataArray or pandas.Series
        A variable with one word, integer or boolean per unit; several, whose words are joined
        (``["cell_type", "layer"]`` makes ``"23P, L2/3"``); or other labels over ``nucleus_id``,
        aligned by label, such as a column of a DataFrame with the nucleus ids as index.

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
        If a variable does not have one word, integer or boolean per unit, or different products
        make the same label.
    ReleaseMismatchError
        If labels are from another release.

    Examples
    --------
    >>> units = xr.Dataset({"cell_type": ("nucleus_id", np.array(["23P", "BC"], dtype=object)),
    ...     "layer": ("nucleus_id", np.array(["L2/3", "L4"], dtype=object))},
    ...     coords={"nucleus_id": [11, 12]})
    >>> population_labels(units, ["cell_type", "layer"]).values
    array(['23P, L2/3', 'BC, L4'], dtype=object)
    """
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    if "nucleus_id" not in units.coords:
        raise SchemaError("units is not a Dataset over nucleus_id: use mx.Release(...).units()")
    return labels_of(units, by, "nucleus_id")


def labels_of(units: xr.Dataset, by: By, dim: str) -> xr.DataArray:
    """Return the population of each unit, or recorded unit, along a dim."""
    by = _as_array(by)
    if isinstance(by, xr.DataArray):
        require_same_release(("units", units), ("by", by))
        return _align(by, units, dim)
    labels = _joined(units, _names(by), dim, "make it a variable of the units first")
    return labels.copy(data=_words(labels.values))


def by_side(by: Any) -> dict[Side, Any]:
    """Return the populations of both sides."""
    if not isinstance(by, Mapping) or isinstance(by, xr.Dataset):
        return {"pre": by, "post": by}
    if set(by) != {"pre", "post"}:
        raise SchemaError(f"by has the keys {list(by)}, expected 'pre' and 'post'")
    return {"pre": by["pre"], "post": by["post"]}


def group_connectivity(
    connectivity: Connectivity,
    by: Sides,
    *,
    units: xr.Dataset | None = None,
) -> xr.Dataset:
    """Add up and average the connections between populations.

    Means are of the connected pairs; those of ``.groupby([...]).mean()`` in plain xarray are of all
    pairs of neurons, 0 where there is no connection, and its neurons without a label are left out.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory or lazy, a tree that
        has one, or a store, of which every block is read once.
    by : str, collection of str, xarray.DataArray, pandas.Series or mapping
        Population of each neuron: a variable of `units`, or without units the name of an annotation
        (``"cell_type"`` for ``pre_cell_type`` and ``post_cell_type``); several of them for their
        product (``["cell_type", "layer"]``); or labels over ``nucleus_id``, or in a column with the
        ids as index, aligned by label. ``{"pre": ..., "post": ...}`` for different ones of each
        side, whose labels may also be over ``pre_nucleus_id`` and ``post_nucleus_id``.
    units : xarray.Dataset, optional
        Units with the variables; neurons that are not among them are "unknown".

    Returns
    -------
    xarray.Dataset
        Over (``pre_<name>``, ``post_<name>``), populations sorted, ``<name>`` of a product being
        ``cell_type_layer``, with its parts as coordinates (``pre_cell_type``, ``pre_layer``):
        the summed weights, ``synapse_size`` (voxels) and, where synapses were counted,
        ``synapse_count``, or others by their own names; ``n_connections`` (connected pairs);
        ``mean_size``, ``mean_synapses`` or ``mean_<name>`` (of a connected pair), float64, NaN
        where no pair is connected; and the neurons of each population, connected or not,
        ``n_pre(pre_<name>)`` and ``n_post(post_<name>)``. If the scope is "unknown", only neurons
        with a connection are counted, and sums are NaN where no pair is connected. Sums and means
        of lazy connectivity are lazy.

    Raises
    ------
    UnknownLabelError
        If there is no such variable or annotation, or no neuron of an axis has a label.
    SchemaError
        If there is not one label per neuron, ids of labels are repeated, labels other than text
        are missing for some neurons, or there are too many groups.
    ReleaseMismatchError
        If units or labels are from another release.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> layer = xr.DataArray(["L4", "L4"], {"nucleus_id": [11, 12]}, name="layer")
    >>> table = group_connectivity(two_neurons(), layer)
    >>> float(table.mean_size.sel(pre_layer="L4", post_layer="L4"))
    4.666666666666667
    """
    pairs, compute = connectivity_of(connectivity)
    pairs = drop_unnamed(pairs)
    if units is not None:
        require_same_release(("connectivity", pairs), ("units", units))
    of_side = by_side(by)
    sides: dict[Side, _Groups] = {"pre": groups_of(pairs, units, of_side["pre"], "pre")}
    if of_side["post"] is of_side["pre"] and _of_both_sides(pairs, units, sides["pre"].labels):
        sides["post"] = sides["pre"]
    else:
        sides["post"] = groups_of(pairs, units, of_side["post"], "post")
    coords = _scalars(pairs)
    dims = {side: f"{side}_{groups.name}" for side, groups in sides.items()}
    for side, groups in sides.items():
        coords[dims[side]] = groups.words
        coords |= label_parts(groups.labels, dims[side], side, groups.words)
    codes: dict[Side, np.ndarray] = {"pre": sides["pre"].codes, "post": sides["post"].codes}
    n: dict[Side, int] = {"pre": len(sides["pre"].words), "post": len(sides["post"].words)}
    if n["pre"] * n["post"] > _MAX_CELLS:
        raise SchemaError(
            f"the labels make {n['pre']} x {n['post']} groups, expected at most {_MAX_CELLS} pairs "
            "of groups: group by a coarser variable, or work on the sparse matrix itself"
        )
    # Sums in one pass over the pairs; neurons without a pair are members of a population as well.
    sums = sums_by_group(pairs, codes, n)
    units_of = {w: pairs[w].attrs.get("units", "") for w in sums if w != "n_connections"}
    units_of |= {"n_connections": "pairs"}
    both = (dims["pre"], dims["post"])
    table: dict[str, Any]
    table = {part: (both, sums[part].copy(), {"units": u}) for part, u in units_of.items()}
    for side, groups in sides.items():
        table[f"n_{side}"] = (dims[side], groups.sizes, {"units": "neurons"})
    # NaN and not 0 where no pair is connected: there is nothing to average.
    n_connected = sums["n_connections"]
    connected = np.where(n_connected > 0, n_connected, np.nan)
    scope_known = is_scope_known(pairs)
    for part in pair_names(pairs):
        about = {"long_name": f"mean {part} of a connected pair", "units": units_of[part]}
        table[_MEANS.get(part, f"mean_{part}")] = (both, sums[part] / connected, about)
        if not scope_known:  # other pairs may be connected, too
            known = np.where(n_connected > 0, sums[part], np.nan)
            table[part] = (both, known, {"units": units_of[part]})
    result = xr.Dataset(table, coords)
    result = computed(result) if compute else result
    entry = f"group_connectivity(pre={dims['pre']}, post={dims['post']})"
    return add_history(result, entry, source=pairs)


def label_parts(
    labels: xr.DataArray, dim: str, side: str, groups: np.ndarray
) -> dict[str, tuple[str, np.ndarray]]:
    """Return the parts of product labels as coordinates of the axis of populations."""
    parts = text_lines(labels.attrs.get("parts"))
    if not parts:
        return {}
    rows = np.flatnonzero(~pd.Index(labels.values).duplicated())
    # "unknown" stands for neurons without a unit, whose parts are unknown as well.
    of_group = pd.Index(labels.values[rows]).get_indexer(pd.Index(groups))
    coords = {}
    for part in parts:
        values = labels[part].values.astype(object)[rows][of_group]
        values[of_group < 0] = "unknown"
        coords[f"{side}_{part}"] = (dim, values)
    return coords


class _Groups(NamedTuple):
    """The neurons of an axis by population."""

    name: str  # without the side
    codes: np.ndarray  # position in `words` for each neuron
    words: np.ndarray  # sorted
    sizes: np.ndarray  # number of neurons of each word
    labels: xr.DataArray  # from which they were made, of the axis or of the units


def groups_of(connectivity: xr.Dataset, units: xr.Dataset | None, by: By, side: Side) -> _Groups:
    dim = f"{side}_nucleus_id"
    by = _as_array(by)
    if isinstance(by, xr.DataArray):
        require_same_release(("connectivity", connectivity), (side, by))
        labels = by
    elif units is not None:
        labels = _joined(units, _names(by), "nucleus_id", "make it a variable of the units first")
    else:
        names = [f"{side}_{name.removeprefix(f'{side}_')}" for name in _names(by)]
        hint = "write it with mx.annotate(..., units, ...)"
        labels = _joined(connectivity, names, dim, hint, f"{side}_")
    name = str(labels.name or "group").removeprefix("pre_").removeprefix("post_")
    rows = _rows_of(labels, connectivity, dim)
    _require_words(labels)
    codes, words = pd.factorize(labels.values)
    # Neurons without a word would vanish from every group.
    codes = np.append(codes, -1)[rows]
    if (codes < 0).any():
        words = np.append(np.asarray(words, dtype=object), "unknown")
        codes = np.where(codes < 0, np.flatnonzero(words == "unknown")[0], codes)
    n_neurons = np.bincount(codes, minlength=len(words))
    # Only the words are sorted, and not all labels.
    used = n_neurons > 0
    codes_of_words = np.zeros(len(words), dtype=np.int64)
    codes_of_words[used], words = pd.factorize(words[used], sort=True)
    sizes = np.zeros(len(words), dtype=np.int64)
    np.add.at(sizes, codes_of_words[used], n_neurons[used])
    return _Groups(name, codes_of_words[codes], words, sizes, labels)


def _of_both_sides(
    connectivity: xr.Dataset, units: xr.Dataset | None, labels: xr.DataArray
) -> bool:
    """Whether labels of the presynaptic neurons are those of the postsynaptic ones."""
    pre, post = (connectivity[f"{side}_nucleus_id"].values for side in ("pre", "post"))
    return labels.dims == ("nucleus_id",) and np.array_equal(pre, post)


def _as_array(by: By) -> By:
    """Return labels in a Series, whose index holds nucleus ids, as a DataArray."""
    if not isinstance(by, pd.Series):
        return by
    ids = as_ids(by.index, "the index of the labels")
    values = by.astype(object) if isinstance(by.dtype, pd.CategoricalDtype) else by
    if pd.api.types.is_string_dtype(values.dtype):
        values = values.astype(object)
    return xr.DataArray(values.to_numpy(), {"nucleus_id": ids}, name=by.name)


def _names(by: Any) -> list[str]:
    if isinstance(by, xr.Dataset | pd.DataFrame):
        raise SchemaError(
            f"by is a {type(by).__name__}, expected the name of a variable: "
            "pass the name, such as 'cell_type', and the units as units="
        )
    if isinstance(by, np.ndarray):
        raise SchemaError(
            "by is an array without ids, expected the name of a variable, or labels over "
            "nucleus_id: pass units.layer, say, without .values"
        )
    names = [by] if isinstance(by, str) else list(by) if isinstance(by, Iterable) else [by]
    if not names or not all(isinstance(name, str) for name in names):
        raise SchemaError(
            f"by is {by!r}, expected the name of a variable, several names, or a DataArray of "
            "labels over nucleus_id"
        )
    return names


def _scalars(dataset: xr.Dataset) -> dict[str, Any]:
    variables = dataset.coords.variables
    return {str(name): variable for name, variable in variables.items() if not variable.dims}


def _joined(
    dataset: xr.Dataset, names: list[str], dim: str, hint: str, prefix: str = ""
) -> xr.DataArray:
    """Return labels by one variable, as they are, or by the product of several."""
    what = "units" if dim == "nucleus_id" else "the connectivity"
    columns = []
    for name in names:
        column = column_of(dataset, name, what, hint, dim=dim)
        _require_words(column)
        coords = {**_scalars(dataset), dim: dataset[dim]}
        values = column.values if len(names) == 1 else _words(column.values)
        columns.append(xr.DataArray(values, coords, (dim,), name.removeprefix(prefix)))
    return _product(columns)


def _require_words(labels: xr.DataArray) -> None:
    if labels.dtype.kind not in "OUTib":
        raise SchemaError(
            f"{labels.name} has dtype {labels.dtype}, expected text, integers or booleans: bin "
            "numbers first, such as with np.digitize"
        )


def _words(values: np.ndarray) -> np.ndarray:
    """Return labels, "unknown" where text is missing; copied, not to change the input."""
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        values[np.asarray(pd.isna(values))] = "unknown"
    return values


def _rows_of(labels: xr.DataArray, dataset: xr.Dataset, dim: str) -> np.ndarray:
    """Return the row of the label of each neuron along a dim of the Dataset, -1 for none."""
    name = str(labels.name or "group")
    if labels.dims not in (("nucleus_id",), (dim,)) or labels.dims[0] not in labels.coords:
        raise SchemaError(
            f"labels {name!r} have dims {labels.dims} and coordinates "
            f"{list(map(str, labels.coords))}, expected one label per neuron over 'nucleus_id' or "
            f"{dim!r} with its ids"
            + ("" if dim == "nucleus_id" else "; by={'pre': ..., 'post': ...} for each side")
        )
    label_dim = str(labels.dims[0])
    ids = labels[label_dim].values
    wanted = dataset["nucleus_id" if dim == "scan_unit" else dim].values
    rows = Lookup(ids, label_dim).find(wanted)
    # A few neurons without a label are "unknown"; if none has one, the ids are of another kind.
    absent = rows < 0
    if rows.size and absent.all():
        raise UnknownLabelError(f"none of the {rows.size} neurons of {dim} has a label {name!r}")
    if absent.any() and labels.dtype.kind in "ib":
        raise SchemaError(
            f"{int(absent.sum())} of {rows.size} neurons of {dim} have no label {name!r}, which is "
            f"{labels.dtype}: give every neuron one, or use text, where they become 'unknown'"
        )
    return rows


def _align(labels: xr.DataArray, dataset: xr.Dataset, dim: str) -> xr.DataArray:
    """Return the labels, and their parts, of the neurons along a dim of the Dataset."""
    rows = _rows_of(labels, dataset, dim)
    _require_words(labels)
    name = str(labels.name or "group")
    parts = [part for part in text_lines(labels.attrs.get("parts")) if part in labels.coords]
    columns = {name: _words(labels.values)}
    columns |= {part: labels[part].values.astype(object) for part in parts}
    for column, values in columns.items():
        columns[column] = values[rows]
        if (rows < 0).any():
            columns[column][rows < 0] = "unknown"
    coords = {**_scalars(dataset), dim: dataset[dim]}
    coords |= {part: (dim, columns[part]) for part in parts}
    return xr.DataArray(columns[name], coords, (dim,), name, {"parts": parts} if parts else None)


def _product(columns: list[xr.DataArray]) -> xr.DataArray:
    """Join the words of several columns to one label for each neuron."""
    if len(columns) == 1:
        return columns[0]
    names = [str(column.name) for column in columns]
    # Compared as tuples: joined, ("a, b", "c") and ("a", "b, c") would be one population.
    products = list(zip(*(column.values for column in columns), strict=True))
    label_of = {words: _SEPARATOR.join(map(str, words)) for words in products}
    labels = pd.Series(label_of.values())
    if labels.duplicated().any():
        raise SchemaError(
            f"different products make the same label {labels[labels.duplicated()].iloc[0]!r}: "
            f"words of {names} contain {_SEPARATOR!r}; rename them first"
        )
    dim = columns[0].dims[0]
    result = xr.DataArray(
        np.array([label_of[words] for words in products], dtype=object),
        {**columns[0].coords, **{n: (dim, c.values) for n, c in zip(names, columns, strict=True)}},
        (dim,),
        "_".join(names),
    )
    return result.assign_attrs(parts=names)
