"""Totals of a connectivity Dataset: degrees of neurons, connections between groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.arrays import Compressed, pair_buffers
from microns_xr.connectivity.blocks import (
    OTHER_SIDE,
    PARTS,
    Side,
    blocks_of,
    drop_unpaired,
    group_sums,
    is_lazy,
    layout_of,
    lazy_groups,
    lazy_neurons,
    load_neurons,
    neuron_sums,
    positions_of,
    take_positions,
)
from microns_xr.connectivity.labels import Lookup, as_ids, is_one_id
from microns_xr.connectivity.subset import take
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import VOXEL_UNITS, validate
from microns_xr.store.open import Connectivity, connectivity_of

# Choosing units and connections by the words of their variables.


Words = str | Iterable[str] | None

_PLAIN = ("layer", "brain_area", "cell_type", "classification_system")
_EXTENDED_STRATEGIES = {
    # Before release 1078 the table says "extended" and not how far.
    "axon": ("extended",),
    "dendrite": ("extended", "dendrite_extended"),
}


def select_units(
    units: xr.Dataset,
    *,
    layer: Words = None,
    brain_area: Words = None,
    cell_type: Words = None,
    classification_system: Words = None,
    tuning: Words = None,
    axon: Words = None,
    dendrite: Words = None,
) -> xr.Dataset:
    """Choose the units that fit all conditions.

    Parameters
    ----------
    units : xarray.Dataset
        Units.
    layer, brain_area, cell_type, classification_system : str or collection of str, optional
        Words of these variables; any of several fits.
    tuning : str or collection of str, optional
        ``"matched"`` (any tuning type but ``not_matched``), ``"not_matched"``, or a word of
        ``tuning_type``.
    axon, dendrite : str or collection of str, optional
        ``"clean"`` (proofread in any way: any strategy but ``none``), ``"extended"`` (an axon that
        is partial or full; in releases before 1078 the status ``extended``), a word of
        ``axon_completeness``, or a strategy as the table writes it.

    Returns
    -------
    xarray.Dataset
        The units that fit, in their order; possibly none.

    Raises
    ------
    UnknownLabelError
        If a word is nowhere in the data, with the nearest words that are.
    SchemaError
        If a variable is absent, or no functional table was joined and `tuning` is asked for.

    Examples
    --------
    >>> def words(*w): return ("nucleus_id", np.array(w, dtype=object))
    >>> units = xr.Dataset(
    ...     {"layer": words("L2/3", "L4", "L4"), "cell_type": words("23P", "4P", "BC")},
    ...     coords={"nucleus_id": [1, 2, 3]})
    >>> select_units(units, layer="L4", cell_type=["4P", "23P"]).nucleus_id.values
    array([2])
    >>> select_units(units, layer="L23")
    Traceback (most recent call last):
    microns_xr.errors.UnknownLabelError: layer 'L23' is nowhere in the units; nearest: L2/3; ...
    """
    if not isinstance(units, xr.Dataset) or "nucleus_id" not in units.dims:
        raise SchemaError("units is no Dataset over nucleus_id: use mx.Release(...).units()")
    keep = np.ones(units.sizes["nucleus_id"], dtype=bool)
    asked: dict[str, list[str]] = {}
    plain = dict(zip(_PLAIN, (layer, brain_area, cell_type, classification_system), strict=True))
    for name, words in plain.items():
        if words is not None:
            asked[name] = _listed(words)
            keep &= _any_word(units, name, asked[name])
    if tuning is not None:
        asked["tuning"] = _listed(tuning)
        keep &= _tuning(units, asked["tuning"])
    for name, words in (("axon", axon), ("dendrite", dendrite)):
        if words is not None:
            asked[name] = _listed(words)
            keep &= _proofread(units, name, asked[name])
    result = units.isel(nucleus_id=np.flatnonzero(keep))
    return add_history(result, f"select_units({_shown(asked)})", source=units)


def _shown(asked: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{k}={v[0] if len(v) == 1 else v!r}" for k, v in asked.items())


def _listed(words: Any) -> list[str]:
    if isinstance(words, str):
        return [words]
    if isinstance(words, xr.DataArray):
        words = words.values
    if isinstance(words, np.ndarray) and not words.ndim:
        words = words.item()
    if isinstance(words, str):
        return [words]
    if not isinstance(words, Iterable):
        raise SchemaError(f"expected words, found {words!r} ({type(words).__name__})")
    listed = list(words)
    wrong = [w for w in listed if not isinstance(w, str)]
    if wrong:
        raise SchemaError(f"expected words, found {wrong[0]!r} ({type(wrong[0]).__name__})")
    return [str(w) for w in listed]


def _column(units: xr.Dataset, name: str) -> tuple[np.ndarray, list[str]]:
    if name not in units:
        raise SchemaError(f"units has no {name}, found {sorted(map(str, units.data_vars))}")
    codes, words = pd.factorize(units[name].values)
    return codes, [str(w) for w in words]


def _any_word(units: xr.Dataset, name: str, wanted: list[str]) -> np.ndarray:
    codes, words = _column(units, name)
    for word in wanted:
        if word not in words:
            _raise_unknown(units, name, word, words)
    return np.isin(codes, [i for i, w in enumerate(words) if w in wanted])


def _raise_unknown(units: xr.Dataset, name: str, word: str, words: list[str]) -> None:
    hint = ""
    if name == "cell_type" and "classification_system" in units:
        classes = _column(units, "classification_system")[1]
        if word in classes:
            hint = f": it is a class, use classification_system={word!r}"
    near = nearest_words(word, words)
    raise UnknownLabelError(
        f"{name} {word!r} is nowhere in the units"
        + (hint or (f"; nearest: {', '.join(near)}" if near else ""))
        + f"; found: {', '.join(sorted(words)[:40])}"
    )


def _tuning(units: xr.Dataset, wanted: list[str]) -> np.ndarray:
    codes, words = _column(units, "tuning_type")
    if set(words) == {"unknown"}:
        raise SchemaError(
            "tuning_type is 'unknown' for every unit, because no functional table was joined: "
            "build the units with functional='match' or 'best_only'"
        )
    accepted: set[str] = set()
    for word in wanted:
        if word == "matched":
            accepted |= {w for w in words if w not in ("not_matched", "unknown")}
        elif word == "not_matched" or word in words:
            accepted.add(word)
        else:
            _raise_unknown(units, "tuning_type", word, [*words, "matched", "not_matched"])
    return np.isin(codes, [i for i, w in enumerate(words) if w in accepted])


def _proofread(units: xr.Dataset, part: str, wanted: list[str]) -> np.ndarray:
    codes, words = _column(units, f"strategy_{part}")
    has_completeness = part == "axon" and "axon_completeness" in units
    degree_codes, degrees = _column(units, "axon_completeness") if has_completeness else (codes, [])
    keep = np.zeros(len(codes), dtype=bool)
    for word in wanted:
        strategies = {word} & set(words)
        completeness = {word} & set(degrees)
        if word == "clean":
            # Completeness is "clean" too where the status says so without naming a strategy.
            strategies = set(words) - {"none"}
            completeness = set(degrees) - {"none"}
        elif word == "extended":
            strategies = set(words) & set(_EXTENDED_STRATEGIES[part])
            completeness = set(degrees) & {"partial", "full"}
        elif word == "none":
            strategies, completeness = ({"none"}, set()) if not degrees else (set(), {"none"})
        elif not strategies and not completeness:
            vocabulary = [*words, *degrees, "clean", "extended"]
            _raise_unknown(units, f"strategy_{part}", word, list(dict.fromkeys(vocabulary)))
        keep |= np.isin(codes, [i for i, w in enumerate(words) if w in strategies])
        if degrees:
            keep |= np.isin(degree_codes, [i for i, w in enumerate(degrees) if w in completeness])
    return keep


def select_connections(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    pre: Mapping[str, Words] | None = None,
    post: Mapping[str, Words] | None = None,
) -> xr.Dataset:
    """Choose the connections between two populations.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity.
    units : xarray.Dataset
        Units of the same release.
    pre, post : mapping, optional
        Conditions of `select_units` for either side, such as ``{"layer": "L4"}``; None takes all.

    Returns
    -------
    xarray.Dataset
        Connectivity whose axes are the neurons of the matrix that fit.

    Raises
    ------
    UnknownLabelError
        If a word is nowhere in the units, or a condition does not exist.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> l4 = mx.select_connections(release.connectivity(), release.units(), post={"layer": "L4"})
    >>> l4.sizes["post_nucleus_id"] < l4.sizes["pre_nucleus_id"]
    True
    """
    validate(connectivity, "connectivity")
    require_same_release(("connectivity", connectivity), ("units", units))
    ids: dict[str, np.ndarray | None] = {"pre": None, "post": None}
    for side, conditions in (("pre", pre), ("post", post)):
        if conditions is None:
            continue
        known = (*_PLAIN, "tuning", "axon", "dendrite")
        for name in conditions:
            if name not in known:
                near = ", ".join(nearest_words(name, known))
                raise UnknownLabelError(
                    f"{side} has the condition {name!r}, expected some of {known}"
                    + (f"; nearest: {near}" if near else "")
                )
        chosen = select_units(units, **conditions)["nucleus_id"].values
        axis = connectivity[f"{side}_nucleus_id"].values
        ids[side] = axis[np.isin(axis, chosen)]
    result = take(connectivity, ids["pre"], ids["post"])
    return add_history(
        result, f"select_connections(pre={pre!r}, post={post!r})", source=connectivity
    )


# The partners of neurons: their inputs and their outputs.


def inputs_to(connectivity: Connectivity, nucleus_id: Any) -> xr.Dataset:
    """Return the presynaptic partners of one neuron, or of several.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store.
    nucleus_id : int or collection of int
        Postsynaptic neurons.

    Returns
    -------
    xarray.Dataset
        Of one neuron its partners alone: ``synapse_size(pre_nucleus_id)`` (voxels of 4x4x40 nm)
        and ``synapse_count``, dense int64, with the neuron as scalar coordinate
        ``post_nucleus_id``. Of a collection, even of one, connectivity with those neurons and
        everybody who is connected to one of them. Always in memory, because the partners
        are the axis of the result. Of a store, or connectivity as it was lazily opened from one,
        the pairs of these neurons alone are read, from the copy that has them contiguous.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.
    StoreFormatError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> inputs_to(two_neurons(), 12).synapse_size.to_series().to_dict()
    {11: 7, 12: 2}
    """
    return _partners(connectivity, nucleus_id, "post", "inputs_to")


def outputs_from(connectivity: Connectivity, nucleus_id: Any) -> xr.Dataset:
    """Return the postsynaptic partners of one neuron, or of several.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        See `inputs_to`.
    nucleus_id : int or collection of int
        Presynaptic neurons.

    Returns
    -------
    xarray.Dataset
        As `inputs_to`, with the axes exchanged.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is no connectivity.
    StoreFormatError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> outputs_from(two_neurons(), 12).synapse_count.to_series().to_dict()
    {11: 1, 12: 1}
    """
    return _partners(connectivity, nucleus_id, "pre", "outputs_from")


def _partners(given: Connectivity, ids: Any, own: Side, function: str) -> xr.Dataset:
    connectivity, _ = connectivity_of(given, own)
    validate(connectivity, "connectivity")
    other = OTHER_SIDE[own]
    result = load_neurons(connectivity, own, np.unique(positions_of(connectivity, own, ids)))
    n_own = result.sizes[f"{own}_nucleus_id"]
    pattern, _ = pair_buffers(result)
    if pattern.compressed == own:
        result = drop_unpaired(result)
    else:
        both = {own: None, other: np.flatnonzero(np.diff(pattern.indptr))}
        result = take_positions(result, both["pre"], both["post"])
    if not is_one_id(ids):
        return add_history(result, f"{function}({n_own} neurons)")
    # Every partner left has exactly one pair, so the stored values are the partners in order.
    _, values = pair_buffers(result)
    row = result.drop_vars(list(values)).isel({f"{own}_nucleus_id": 0})
    row = row.assign(
        {
            name: (f"{other}_nucleus_id", stored, dict(result[name].attrs))
            for name, stored in values.items()
        }
    )[list(connectivity.data_vars)]
    return add_history(row, f"{function}({int(as_ids(ids, 'nucleus_id')[0])})")


# Three int64 tables of this many cells are 600 MB.
_MAX_CELLS = 25_000_000


def degrees(connectivity: Connectivity) -> xr.Dataset:
    """Count partners and synapses of every neuron, and sum its synapse sizes.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store, of which every block is read once.

    Returns
    -------
    xarray.Dataset
        int64, lazy where the connectivity is, with its coordinates: ``in_degree`` (partners),
        ``in_synapses`` and ``in_size`` (voxels of 4x4x40 nm) over ``post_nucleus_id``;
        ``out_degree``, ``out_synapses`` and ``out_size`` over ``pre_nucleus_id``. An autapse
        counts in both.

    Raises
    ------
    SchemaError
        If the Dataset is no connectivity, or sizes and counts do not store the same pairs.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> degrees(two_neurons()).in_size.values
    array([5, 9])
    """
    connectivity, compute = connectivity_of(connectivity)
    validate(connectivity, "connectivity")
    major, minor, compressed = _neuron_sums(connectivity)
    post, pre = (major, minor) if compressed == "post" else (minor, major)
    result = connectivity.drop_vars(list(connectivity.data_vars))
    result.attrs = {}
    for prefix, dim, table, partner in (
        ("in", "post_nucleus_id", post, "presynaptic"),
        ("out", "pre_nucleus_id", pre, "postsynaptic"),
    ):
        parts = {
            "degree": (f"number of {partner} partners", "neurons"),
            "size": (f"summed size of the synapses with {partner} partners", VOXEL_UNITS),
            "synapses": (f"number of synapses with {partner} partners", "synapses"),
        }
        for column, (name, (doc, units)) in enumerate(parts.items()):
            attrs = {"long_name": doc, "units": units}
            result[f"{prefix}_{name}"] = (dim, table[:, column].copy(), attrs)
    result = add_history(result, "degrees()", source=connectivity)
    return result.compute() if compute else result


def _neuron_sums(connectivity: xr.Dataset) -> tuple[Any, Any, Compressed]:
    if is_lazy(connectivity):
        blocks = blocks_of(connectivity, PARTS[1:])
        return *lazy_neurons(blocks), blocks.compressed
    pattern, values = pair_buffers(connectivity, PARTS[1:])
    size, count = (values[name] for name in PARTS[1:])
    sums = neuron_sums(size, count, pattern.indices, pattern.indptr, pattern.n_minor)
    return *sums, pattern.compressed


def group_connectivity(
    connectivity: Connectivity,
    pre: str | xr.DataArray,
    post: str | xr.DataArray,
) -> xr.Dataset:
    """Add up the connections between groups of neurons.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store, of which every block is read once.
    pre, post : str or xarray.DataArray
        Group of each neuron of either side: the name of an annotation (``"cell_type"`` for the
        coordinates ``pre_cell_type`` and ``post_cell_type``), or labels over ``nucleus_id`` (or
        ``pre_nucleus_id``, ``post_nucleus_id``), which are aligned by label. Text, integers or
        truth values. A neuron without a label is in the group "unknown" when labels are text.

    Returns
    -------
    xarray.Dataset
        int64 over (``pre_<name>``, ``post_<name>``), groups sorted: ``synapse_size`` (voxels of
        4x4x40 nm), ``synapse_count``, ``n_connections`` (connected pairs); and the neurons of
        each group, connected or not, ``n_pre(pre_<name>)`` and ``n_post(post_<name>)``.

    Raises
    ------
    UnknownLabelError
        If there is no such annotation, or no neuron of an axis has a label.
    SchemaError
        If labels are not one a neuron, are repeated, absent for some neurons though no text, or
        make too many groups.
    ReleaseMismatchError
        If labels are of another release.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> layer = xr.DataArray(["L4", "L5"], {"nucleus_id": [11, 12]}, name="layer")
    >>> table = group_connectivity(two_neurons(), layer, layer)
    >>> int(table.synapse_count.sel(pre_layer="L4", post_layer="L5"))
    2
    """
    connectivity, compute = connectivity_of(connectivity)
    validate(connectivity, "connectivity")
    for side, labels in (("pre", pre), ("post", post)):
        if isinstance(labels, xr.DataArray):
            require_same_release(("connectivity", connectivity), (side, labels))
    dims, codes, groups = {}, {}, {}
    for side, labels in (("pre", pre), ("post", post)):
        name, of_each = _labels(connectivity, side, labels)
        dims[side] = f"{side}_{name}"
        codes[side], groups[side] = pd.factorize(of_each, sort=True)
    n = (len(groups["pre"]), len(groups["post"]))
    if n[0] * n[1] > _MAX_CELLS:
        raise SchemaError(
            f"the labels make {n[0]} x {n[1]} groups, expected at most {_MAX_CELLS} pairs of "
            "groups: group by something coarser, or work on the sparse matrix itself"
        )
    table = _group_sums(connectivity, codes, n)
    both = (dims["pre"], dims["post"])
    units = {"synapse_size": VOXEL_UNITS, "synapse_count": "synapses", "n_connections": "pairs"}
    scalars = {k: c for k, c in connectivity.coords.items() if not c.dims}
    result = xr.Dataset(
        {
            part: (both, table[:, :, PARTS.index(part)].copy(), {"units": unit})
            for part, unit in units.items()
        },
        coords={**scalars, **{dims[side]: groups[side] for side in ("pre", "post")}},
    )
    for side in ("pre", "post"):
        members = np.bincount(codes[side], minlength=len(groups[side])).astype(np.int64)
        result[f"n_{side}"] = (dims[side], members, {"units": "neurons"})
    entry = f"group_connectivity(pre={dims['pre']}, post={dims['post']})"
    result = add_history(result, entry, source=connectivity)
    return result.compute() if compute else result


def _group_sums(
    connectivity: xr.Dataset, codes: dict[str, np.ndarray], n_groups: tuple[int, int]
) -> Any:
    """Return (pre groups, post groups, 3), lazily where the pairs are lazy."""
    n_of = dict(zip(("pre", "post"), n_groups, strict=True))
    _, major = layout_of(connectivity)
    minor = OTHER_SIDE[major]
    of_each = (codes[major], codes[minor], (n_of[major], n_of[minor]))
    if is_lazy(connectivity):
        table: Any = lazy_groups(blocks_of(connectivity, PARTS[1:]), *of_each)
    else:
        pattern, values = pair_buffers(connectivity, PARTS[1:])
        size, count = (values[name] for name in PARTS[1:])
        table = group_sums(size, count, pattern.indices, pattern.indptr, *of_each)
    return table.transpose(1, 0, 2) if major == "post" else table


def _labels(
    connectivity: xr.Dataset, side: str, labels: str | xr.DataArray
) -> tuple[str, np.ndarray]:
    """Return the name of the labels without a side, and one label a neuron of the axis."""
    dim = f"{side}_nucleus_id"
    if isinstance(labels, str):
        name = labels.removeprefix(f"{side}_")
        if f"{side}_{name}" not in connectivity.coords:
            known = [str(c) for c, v in connectivity.coords.items() if v.dims == (dim,)]
            near = ", ".join(nearest_words(f"{side}_{name}", known))
            raise UnknownLabelError(
                f"the connectivity has no coordinate {side}_{name!s}, found {known}"
                + (f"; nearest: {near}" if near else "")
                + f": write it with mx.annotate(connectivity, units, {name!r})"
            )
        return name, _groupable(connectivity[f"{side}_{name}"].values, side, name)
    if not isinstance(labels, xr.DataArray):
        raise SchemaError(
            f"{side} is a {type(labels).__name__}, expected the name of an annotation or a "
            "DataArray of labels over nucleus_id, such as units.cell_type"
        )
    name = str(labels.name or "group").removeprefix("pre_").removeprefix("post_")
    if labels.dims not in (("nucleus_id",), (dim,)) or labels.dims[0] not in labels.coords:
        raise SchemaError(
            f"{side} labels {name!r} have dims {labels.dims} and coordinates "
            f"{list(map(str, labels.coords))}, expected one label a neuron over 'nucleus_id' or "
            f"{dim!r} with its ids"
        )
    values = labels.values
    rows = Lookup(labels[labels.dims[0]].values, str(labels.dims[0])).find(connectivity[dim].values)
    n_missing = int((rows < 0).sum())
    if rows.size and n_missing == rows.size:
        raise UnknownLabelError(f"none of the {rows.size} neurons of {dim} has a label {name!r}")
    if n_missing and values.dtype.kind not in "OUT":
        raise SchemaError(
            f"{n_missing} of {rows.size} neurons of {dim} have no label {name!r}, which is "
            f"{values.dtype}: give every neuron one, or use text, where they become 'unknown'"
        )
    if n_missing:
        values = values.astype(object)[rows]
        values[rows < 0] = "unknown"
    else:
        values = values[rows]
    return name, _groupable(values, side, name)


def _groupable(values: np.ndarray, side: str, name: str) -> np.ndarray:
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        absent = np.asarray(pd.isna(values))
        if absent.any():
            values[absent] = "unknown"
    elif values.dtype.kind not in "ib":
        raise SchemaError(
            f"{side} labels {name!r} have dtype {values.dtype}, expected text, integers or truth "
            "values: cut numbers into classes first"
        )
    return values
