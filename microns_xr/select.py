"""Select units and connections by label, partners of neurons, and their degrees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import as_pairs, pair_buffers
from microns_xr.connectivity.blocks import (
    OTHER_SIDE,
    Side,
    drop_unconnected,
    load_neurons,
    positions_of,
    sums_by_neuron,
    take_positions,
)
from microns_xr.connectivity.labels import Lookup, each_once
from microns_xr.connectivity.subset import drop_unnamed, keep_touching
from microns_xr.errors import (
    SchemaError,
    UnknownLabelError,
    answer_old_keywords,
    old_keyword,
    part_of,
    require_instance,
    unknown_label,
)
from microns_xr.provenance import add_history, require_same_release
from microns_xr.releases import datastack_of, label_words
from microns_xr.schema import require_unrounded_roots
from microns_xr.store.passed import Connectivity, computed, connectivity_of
from microns_xr.units import COMPLETENESS

Words = str | Iterable[str] | None

_CONDITIONS = (
    "layer", "brain_area", "cell_type", "classification_system", "tuning", "axon", "dendrite",
)  # fmt: skip
# The variables of conditions of another name, words of these that stand for all but some, and
# words that units may lack.
_VARIABLES = {
    "tuning": ["tuning_type"],
    "axon": ["strategy_axon", "axon_completeness"],
    "dendrite": ["strategy_dendrite"],
}
_ALL_BUT = {"matched": {"not_matched", "unknown"}, "proofread": {"none"}}
_ALWAYS_KNOWN = {
    "tuning": ("matched", "not_matched"),
    **dict.fromkeys(("axon", "dendrite"), ("proofread", "clean", "extended")),
}
# What words of the conditions axon and dendrite mean in a variable, where not only themselves.
_EXACTLY = {
    ("axon_completeness", "extended"): {"partial", "full"},
    ("strategy_dendrite", "extended"): {"extended", "dendrite_extended"},
    ("strategy_dendrite", "clean"): {"clean", "dendrite_clean"},
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
    **conditions: Any,
) -> xr.Dataset:
    """Select the units, or recorded units, that match all conditions.

    Parameters
    ----------
    units : xarray.Dataset
        Units over ``nucleus_id``, or functional rows over ``scan_unit``.
    layer, brain_area, cell_type, classification_system : str or collection of str, optional
        Accepted values of these variables.
    tuning : str or collection of str, optional
        ``"matched"`` (any tuning type except ``not_matched``), ``"not_matched"``, or a value of
        ``tuning_type``.
    axon, dendrite : str or collection of str, optional
        ``"proofread"`` (in any way: any strategy except ``none``), ``"extended"`` (an axon that is
        partial or full; in releases before 1078 the status ``extended``), a value of
        ``axon_completeness``, or a strategy as spelled in the table. ``"clean"`` means exactly
        that: free of merge errors, but not extended.
    **conditions : str, number, bool, collection of them, or tuple of two numbers
        Accepted values of any other variable with one value per unit, such as
        ``axon_completeness="full"``; ``(low, high)`` accepts a range with both ends, of which one
        may be None: ``n_rated=(1, None)``. Ids may be single or collections, tuples included.

    Returns
    -------
    xarray.Dataset
        The matching units over the same dim, in their order; possibly none.

    Raises
    ------
    UnknownLabelError
        If a word is neither in the data nor in any release of their datastack, or there is no such
        variable; the message suggests similar words. A word of a release that the units lack
        selects none of them.
    SchemaError
        If a variable is missing, words are compared with numbers, or `tuning` is passed but no
        functional table was joined.

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
    microns_xr.errors.UnknownLabelError: units have no layer 'L23', expected one of L1, L2/3, ...
    """
    named = (layer, brain_area, cell_type, classification_system, tuning, axon, dendrite)
    by_name: dict[str, Any] = {
        name: words if isinstance(words, tuple) else _as_list(words)
        for name, words in zip(_CONDITIONS, named, strict=True)
        if words is not None
    }
    dim, mask = matching(units, {**conditions, **by_name})
    history = [f"{name}={accepted!r}" for name, accepted in conditions.items()]
    for name, words in by_name.items():
        history.append(f"{name}={words[0] if len(words) == 1 else list(words)!r}")
    result = units.isel({dim: np.flatnonzero(mask)})
    return add_history(result, f"select_units({', '.join(history)})", source=units)


def matching(units: xr.Dataset, conditions: Mapping[str, Any]) -> tuple[str, np.ndarray]:
    """Return the dim of the units, and which of them match all conditions of `select_units`."""
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    dims = [d for d in ("scan_unit", "nucleus_id") if d in units.dims]
    if not dims:
        raise SchemaError("units is not a Dataset over nucleus_id: use mx.Release(...).units()")
    dim = dims[0]
    mask = np.ones(units.sizes[dim], dtype=bool)
    for name, accepted in conditions.items():
        if name in _CONDITIONS and accepted is None:
            continue
        is_numbered = name in units.variables and units[name].dtype.kind not in "OUT"
        if name in _CONDITIONS and not is_numbered:  # as somebody's layers may be
            mask &= _any_word(units, name, _as_list(accepted))
        else:
            mask &= _any_value(units, dim, name, accepted)
    return dim, mask


def _any_value(units: xr.Dataset, dim: str, name: str, accepted: Any) -> np.ndarray:
    """Return which units have an accepted value of a variable, or one in a range."""
    usable = [str(n) for n, v in units.variables.items() if v.dims == (dim,)]
    if name not in usable:
        if answer := old_keyword("select_units", name):
            raise TypeError(answer)
        known = dict.fromkeys([*_CONDITIONS, *usable])
        raise unknown_label("select_units has the condition", name, known)
    values = units[name].values
    if values.dtype.kind in "OUT":
        return _any_word(units, name, accepted)
    is_id = name.endswith("_id")  # ids have no order
    if isinstance(accepted, tuple) and not is_id:
        low, high = accepted if len(accepted) == 2 else (None, "")
        if isinstance(low, str) or isinstance(high, str):
            raise SchemaError(
                f"{name} is {accepted!r}, expected (low, high), of which one may be None"
            )
        above = np.ones(values.size, dtype=bool) if low is None else values >= low
        return np.asarray(above if high is None else above & (values <= high))
    if is_id:  # a rounded id could also select another neuron
        require_unrounded_roots(xr.Dataset({name: units[name].variable}))
        accepted = as_ids(_as_list(accepted), name)
    wanted = np.atleast_1d(np.asarray(_as_list(accepted)))
    if wanted.size and wanted.dtype.kind not in "biuf":
        raise SchemaError(
            f"{name} is {accepted!r}, expected numbers, since {name} is {values.dtype}"
        )
    return np.isin(values, wanted)


def _as_list(accepted: Any) -> list[Any]:
    if isinstance(accepted, np.ndarray | xr.DataArray):
        accepted = np.asarray(accepted).tolist()
    if isinstance(accepted, str) or not isinstance(accepted, Iterable):
        return [accepted]
    return list(accepted)


def _column(units: xr.Dataset, name: str) -> tuple[np.ndarray, list[str]]:
    """Return a code per unit, and the word of each code."""
    if name not in units.variables:
        raise SchemaError(f"units has no {name}, found {sorted(map(str, units.variables))}")
    codes, words = pd.factorize(units[name].values)
    return codes, [str(word) for word in words]


def _known_words(units: xr.Dataset, name: str, words: Iterable[str]) -> set[str]:
    """Return the words of a variable, and those of the releases, unless the units have others."""
    # A subset of a release may lack a word of it, which then selects nothing.
    words = set(words)
    known = set(label_words(datastack_of(units), name))
    if name == "axon_completeness":
        known |= set(COMPLETENESS)
    return words | known if known & words or words <= {"unknown", "none"} else words


def _elsewhere(units: xr.Dataset, name: str, word: str) -> str:
    """Return the condition on another variable that has a word, or one that begins with it."""
    lower = word.lower()
    for other in ("classification_system", "cell_type", "layer", "brain_area"):
        if other == name or other not in units.variables or len(word) < 2:
            continue
        for known in sorted(_column(units, other)[1], key=len):
            if known.lower().startswith(lower):
                return f"use {other}={known!r}"
    return ""


def _any_word(units: xr.Dataset, condition: str, accepted: Any) -> np.ndarray:
    """Return which units have an accepted word in any variable of a condition."""
    names = _VARIABLES.get(condition, [condition])
    names = [name for name in names if name in units.variables] or names[:1]
    columns = {name: _column(units, name) for name in names}
    # "unknown" differs from "not_matched": it is not known whether units were recorded.
    if condition == "tuning" and set(columns["tuning_type"][1]) == {"unknown"}:
        raise SchemaError(
            "tuning_type is 'unknown' for every unit, because no functional table was joined: "
            "build the units with functional='match' or 'best_only'"
        )
    always_known = _ALWAYS_KNOWN.get(condition, ())
    known = set(always_known)
    known = known.union(*(_known_words(units, name, words) for name, (_, words) in columns.items()))
    accepted = _as_list(accepted)
    for word in accepted:
        if not isinstance(word, str):
            raise unknown_label(f"{names[0]} is", word, known, error=SchemaError)
        if word not in known:
            hint = _elsewhere(units, names[0], word)
            raise unknown_label(f"units have no {names[0]}", word, known, hint)
    fits = np.zeros(columns[names[0]][0].size, dtype=bool)
    for name, (codes, words) in columns.items():
        fitting: set[str] = set()
        for word in accepted:
            if word in _ALL_BUT and word in always_known:
                fitting |= set(words) - _ALL_BUT[word]
            # A status without a strategy makes an axon clean, whose strategy is "none".
            elif word != "none" or name == names[-1]:
                fitting |= _EXACTLY.get((name, word), {word}) if always_known else {word}
        fits |= np.isin(codes, [i for i, word in enumerate(words) if word in fitting])
    return fits


Neurons = Any  # ids, units, or a mapping of conditions


@answer_old_keywords
def select_connections(
    connectivity: xr.Dataset,
    units: xr.Dataset | None = None,
    *,
    pre: Neurons = None,
    post: Neurons = None,
    both: bool = True,
) -> xr.Dataset:
    """Select connections between two sets of neurons, or those that involve one of them.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory or lazy.
    units : xarray.Dataset, optional
        Units of the same release, required for conditions.
    pre, post : int, collection of int, xarray.Dataset, mapping or mask, optional
        Nucleus ids, units, or conditions of `select_units` such as ``{"layer": "L4"}``; or truth
        values with the ids as labels, such as ``units.layer == "L4"``, or one per neuron of the
        axis. Ids that are not on the axis are ignored, and counted in the history.
    both : bool, optional
        If True, select the neurons of both sets; None means all neurons. If False, select every
        pair whose presynaptic neuron is in `pre` or whose postsynaptic neuron is in `post`; None
        means no neurons. Other pairs of their partners may be connected, too, so the scope becomes
        "unknown", and the axes are the neurons of the selected pairs, for which lazy connectivity
        is read once.

    Returns
    -------
    xarray.Dataset
        Connectivity over the same dims, lazy if the input is lazy.

    Raises
    ------
    UnknownLabelError
        If none of the ids is on its axis, a word is not in the units, or a condition does not
        exist.
    SchemaError
        If ids are not integers, conditions are passed without `units`, `units` without `pre` or
        `post`, or the Dataset is not connectivity.
    ReleaseMismatchError
        If the connectivity and units or labelled ids come from different releases.

    Examples
    --------
    >>> import microns_xr as mx
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> mx.n_connections(select_connections(two_neurons(), pre=[11], post=[11]))
    0
    >>> mx.n_connections(select_connections(two_neurons(), pre=[11], post=[11], both=False))
    2
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> l4 = mx.select_connections(release.connectivity(), release.units(), post={"layer": "L4"})
    >>> l4.sizes["post_nucleus_id"] < l4.sizes["pre_nucleus_id"]
    True
    """
    connectivity = as_pairs(connectivity)
    if units is not None:
        require_instance(
            "units", units, xr.Dataset, "a Dataset; neurons are passed as pre= and post="
        )
        require_same_release(("connectivity", connectivity), ("units", units))
        if pre is None and post is None:
            raise SchemaError(
                "units alone select nothing: pass them as pre= and post=, or conditions on them"
            )
    pre_at, pre_text = on_axis(connectivity, units, "pre", pre)
    post_at, post_text = on_axis(connectivity, units, "post", post)
    result = (take_positions if both else keep_touching)(connectivity, pre_at, post_at)
    entry = f"pre={pre_text}, post={post_text}{'' if both else ', both=False'}"
    return add_history(result, f"select_connections({entry})", source=connectivity)


def on_axis(
    connectivity: xr.Dataset,
    units: xr.Dataset | None,
    side: Side,
    neurons: Neurons,
    all_of_them: bool = False,
) -> tuple[np.ndarray | None, str]:
    """Return the ascending positions of neurons on an axis, and text for the history."""
    if neurons is None:
        return None, "None"
    labels = connectivity[f"{side}_nucleus_id"].values
    if hint := part_of(neurons, "units"):
        raise SchemaError(f"{side} is a {type(neurons).__name__}, expected neurons: {hint}")
    # A Dataset is a Mapping, too.
    if isinstance(neurons, Mapping) and not isinstance(neurons, xr.Dataset):
        if units is None:
            raise SchemaError(
                f"{side} is {dict(neurons)!r}, but conditions require units: call "
                f"mx.select_connections(connectivity, units, {side}=...)"
            )
        known = {*_CONDITIONS, *(str(n) for n, v in units.variables.items() if v.ndim == 1)}
        for name in neurons:
            if name not in known:
                raise unknown_label(f"{side} has the condition", name, known)
        chosen = units["nucleus_id"].values[matching(units, neurons)[1]]
        return np.flatnonzero(np.isin(labels, chosen)), repr(dict(neurons))
    if isinstance(neurons, xr.Dataset | xr.DataArray):
        require_same_release(("connectivity", connectivity), (side, neurons))
    if isinstance(neurons, str):
        raise SchemaError(
            f"{side} is {neurons!r}, expected nucleus ids, units, or conditions such as "
            f"{{'layer': {neurons!r}}}"
        )
    ids = each_once(as_ids(_ids_of_mask(neurons, labels, side), side))
    if all_of_them:
        return np.sort(positions_of(connectivity, side, ids)), f"{ids.size} ids"
    # Units have more neurons than most axes, so ids that are not on the axis are ignored and
    # counted; if none is, they are likely ids of another kind.
    positions = Lookup(labels, f"{side}_nucleus_id").find(ids)
    positions = np.sort(positions[positions >= 0])
    if ids.size and not positions.size:
        raise UnknownLabelError(
            f"none of the {ids.size} ids of {side} is on the axis {side}_nucleus_id, such as "
            f"{ids[0]}: pass nucleus ids, not root ids, whose units are found by "
            "mx.select_units(units, pt_root_id=...); the axis holds only the neurons that were "
            "requested or, if the scope is 'unknown', that the table names"
        )
    of = f" of {ids.size}" if positions.size < ids.size else ""
    return positions, f"{positions.size}{of} ids"


def _ids_of_mask(neurons: Neurons, labels: np.ndarray, side: Side) -> Neurons:
    """Return the ids for which booleans are True; other neurons as they are."""
    is_labelled = isinstance(neurons, xr.DataArray | pd.Series)
    values = np.asarray(neurons) if is_labelled or isinstance(neurons, np.ndarray | list) else None
    if values is None or values.dtype.kind != "b":
        return neurons
    ids: Any = labels
    if isinstance(neurons, pd.Series):
        ids = neurons.index
    elif isinstance(neurons, xr.DataArray) and set(neurons.dims) & set(neurons.coords):
        ids = neurons[neurons.dims[0]].values
    if values.shape != (len(ids),):
        raise SchemaError(
            f"{side} is a mask of shape {values.shape}, expected {len(ids)} booleans, one per "
            f"neuron of {side}_nucleus_id: pass a DataArray with the ids as labels, such as "
            "units.layer == 'L4', or the ids, units.nucleus_id[mask]"
        )
    return ids[values]


@answer_old_keywords
def inputs_to(connectivity: Connectivity, nucleus_id: Any) -> xr.Dataset:
    """Return the presynaptic partners of one or several neurons.

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
        For one id, its partners: ``synapse_size(pre_nucleus_id)`` (voxels) and the
        other weights, dense, with the neuron as scalar coordinate ``post_nucleus_id``.
        For a collection, even of one id, connectivity between these neurons and all their
        partners. The result is always in memory, since its axis depends on the partners. From a
        store, or from lazy connectivity that is unmodified since opening, only the pairs of these
        neurons are read, from the copy in which they are contiguous.

    Raises
    ------
    UnknownLabelError
        If an id is not on the axis.
    SchemaError
        If ids are not integers, or the Dataset is not connectivity.
    StoreFormatError
        If there is no store, or it is damaged.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> inputs_to(two_neurons(), 12).synapse_size.to_series().to_dict()
    {11: 7, 12: 2}
    """
    return _partners(connectivity, nucleus_id, "post", "inputs_to")


@answer_old_keywords
def outputs_from(connectivity: Connectivity, nucleus_id: Any) -> xr.Dataset:
    """Return the postsynaptic partners of one or several neurons.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        As in `inputs_to`.
    nucleus_id : int or collection of int
        Presynaptic neurons.

    Returns
    -------
    xarray.Dataset
        As in `inputs_to`, with the axes exchanged.

    Raises
    ------
    UnknownLabelError, SchemaError, StoreFormatError
        As in `inputs_to`.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> outputs_from(two_neurons(), 12).synapse_count.to_series().to_dict()
    {11: 1, 12: 1}
    """
    return _partners(connectivity, nucleus_id, "pre", "outputs_from")


def _partners(source: Connectivity, ids: Any, side: Side, function: str) -> xr.Dataset:
    connectivity, _ = connectivity_of(source, side)
    other = OTHER_SIDE[side]
    result = load_neurons(connectivity, side, each_once(positions_of(connectivity, side, ids)))
    n_neurons = result.sizes[f"{side}_nucleus_id"]
    result = drop_unconnected(result, [other])  # those left are partners
    if not isinstance(ids, int) and getattr(ids, "ndim", 1) > 0:
        return add_history(result, f"{function}({n_neurons} neurons)")
    # Each partner has exactly one pair, so the stored values are in the order of the partners.
    _, values = pair_buffers(result)
    row = result.drop_vars(list(values)).isel({f"{side}_nucleus_id": 0})
    row = row.assign(
        {n: (f"{other}_nucleus_id", stored, result[n].attrs) for n, stored in values.items()}
    )
    entry = f"{function}({int(as_ids(ids, 'nucleus_id')[0])})"
    return add_history(row[list(connectivity.data_vars)], entry)


def degrees(connectivity: Connectivity) -> xr.Dataset:
    """Count partners of every neuron, and sum the sizes and numbers of its synapses.

    If the scope of the connectivity is "unknown", only neurons with a connection are counted.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store, whose blocks are each read once.

    Returns
    -------
    xarray.Dataset
        Lazy if the connectivity is, with its coordinates: ``in_degree`` (partners),
        ``in_size`` (voxels) and, where synapses were counted, ``in_synapses`` over
        ``post_nucleus_id``; ``out_degree``, ``out_size`` and ``out_synapses`` over
        ``pre_nucleus_id``. Sums of another weight are ``in_<name>`` and ``out_<name>``. int64, or
        float64 for a weight that is. An autapse counts in both.

    Raises
    ------
    SchemaError
        If the Dataset is not connectivity, or its weights do not store the same pairs.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> degrees(two_neurons()).in_size.values
    array([5, 9])
    """
    connectivity, compute = connectivity_of(connectivity)
    connectivity = drop_unnamed(connectivity)
    sums = sums_by_neuron(connectivity)
    result = connectivity.drop_vars(list(connectivity.data_vars)).drop_attrs(deep=False)
    columns: dict[str, Any] = {}
    prefixes: dict[Side, tuple[str, str]]
    prefixes = {"post": ("in", "presynaptic"), "pre": ("out", "postsynaptic")}
    for side, (prefix, partner) in prefixes.items():
        with_partners = f"of the connections with {partner} partners"
        about = {
            "n_connections": ("degree", f"number of {partner} partners", "neurons"),
            "synapse_size": ("size", f"summed size {with_partners}", None),
            "synapse_count": ("synapses", f"number of synapses {with_partners}", "synapses"),
        }
        for weight, values in sums[side].items():
            other = (weight, f"summed {weight} {with_partners}", None)
            name, doc, units = about.get(weight, other)
            attrs = {"long_name": doc, "units": units or connectivity[weight].attrs.get("units")}
            if f"{prefix}_{name}" in (*result.variables, *columns):
                raise SchemaError(f"the weight {weight!r} has a taken name: use .rename")
            attrs = {key: text for key, text in attrs.items() if text is not None}
            columns[f"{prefix}_{name}"] = (f"{side}_nucleus_id", values.copy(), attrs)
    result = add_history(result.assign(columns), "degrees()", source=connectivity)
    return computed(result) if compute else result
