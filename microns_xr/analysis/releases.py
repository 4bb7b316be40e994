"""Comparison of two releases: which neurons and connections changed, by nucleus id."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from zarr.abc.store import Store

from microns_xr.analysis.pairs import SIDES, require_requested
from microns_xr.connectivity.arrays import as_pairs, pair_buffers, pair_names
from microns_xr.connectivity.blocks import positions_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import n_connections, recompress, take
from microns_xr.errors import ReleaseMismatchError, SchemaError, names_of
from microns_xr.provenance import add_history, release_of, require_same_release
from microns_xr.schema import Kind, column_of, validate
from microns_xr.store.open import open_store

RELEASES = ("a", "b")


def compare_releases(
    a: Any,
    b: Any,
    *,
    variables: str | Iterable[str] = ("cell_type", "classification_system", "axon_completeness"),
    connections: bool = True,
    pre: Any = None,
    post: Any = None,
) -> xr.DataTree:
    """Compare two releases, neuron by neuron and connection by connection.

    Neurons are matched by nucleus id, which is the same in every release of a datastack. A pair of
    neurons is comparable if its presynaptic neuron is on the presynaptic axis of both releases, and
    its postsynaptic neuron on the postsynaptic axis of both. Connections of other pairs are counted
    as not comparable, and never as gained or lost.

    Parameters
    ----------
    a, b : Release, xarray.DataTree, mapping of str to xarray.Dataset, str or path-like
        The older and the newer release: objects with ``units()`` and ``connectivity()``, trees as
        `open_store` gives them, ``{"units": ..., "connectivity": ...}``, or stores.
    variables : str or collection of str, optional
        Unit variables with one value per neuron to compare besides the root id.
    connections : bool, optional
        False compares only the units.
    pre, post : collection of int, or units Dataset, optional
        Compare only pairs of these neurons, which must be on the axes of both. If the scope of
        either connectivity is "unknown", both are required, and assert that these pairs were
        requested in both releases.

    Returns
    -------
    xarray.DataTree
        Four nodes, each with the dim ``release`` ("a", "b") and along it the coordinates
        ``datastack`` and ``materialization_version``, which functions for a single release reject:

        ``/``
            The two releases.
        ``/summary``
            ``n_units(unit_change)``: kept, gained, lost, and of those kept ``pt_root_id_changed``,
            ``cell_type_changed`` ...; ``n_connections(connection_change)``: unchanged, gained,
            lost, resized, ``not_comparable_a`` and ``_b``; ``n_comparable_pairs``.
        ``/units``
            Over ``nucleus_id``, the units of either: ``change`` (kept, gained, lost),
            ``pt_root_id(release, nucleus_id)`` (0 if the unit is absent) and
            ``pt_root_id_changed``; ``cell_type(release, nucleus_id)`` ("absent" if the unit is)
            and ``cell_type_changed``, and so on. Only a unit that is kept can have changed.
        ``/connections``
            One row per comparable connection that differs, over ``connection``:
            ``pre_nucleus_id``, ``post_nucleus_id``, ``change`` (gained, lost, resized),
            and the weights that both have, ``synapse_size(release, connection)`` (voxels of 4x4x40
            nm) and, if synapses were counted in both, ``synapse_count``, 0 without a connection.
            Resized means that one of these weights differs.

    Raises
    ------
    ReleaseMismatchError
        If the two are from different datastacks, or units and connectivity of one are from
        different releases.
    SchemaError
        If units or connectivity are missing, the scope of connectivity is unknown and `pre` or
        `post` is missing, or no pair is comparable.
    UnknownLabelError
        If the units do not have a variable, or an id of `pre` or `post` is not on an axis.

    Examples
    --------
    >>> import microns_xr as mx
    >>> sources = [mx.sources.DemoSource(v, n_nuclei=500) for v in (1507, 1718)]
    >>> old, new = (mx.Release(source.version, source=source) for source in sources)
    >>> changes = compare_releases(old, new)
    >>> changes["summary"].n_units.sel(unit_change="lost").item() >= 0
    True
    """
    names = names_of("variables", variables)
    units, pairs = {}, {}
    for name, release in zip(RELEASES, (a, b), strict=True):
        units[name], pairs[name] = _parts(release, name, connections)
    identity = {name: release_of(units[name], f"units of {name}") for name in RELEASES}
    datastacks, versions = zip(*identity.values(), strict=True)
    if datastacks[0] != datastacks[1]:
        raise ReleaseMismatchError(
            f"a is of {datastacks[0]} and b of {datastacks[1]}, expected the same datastack: "
            "nucleus ids identify neurons only within one"
        )
    summary = xr.Dataset()
    nodes = {"": xr.Dataset(), "summary": summary}
    nodes["units"], n_units = _compare_units(units, names)
    summary["n_units"] = ("unit_change", list(n_units.values()), {"units": "units"})
    summary["unit_change"] = np.array(list(n_units), dtype=object)
    if connections:
        ids = _ids_of_both(pairs, pre, post)
        nodes["connections"], n_changes = _compare_connections(pairs, ids)
        attrs = {"units": "connected pairs"}
        summary["n_connections"] = ("connection_change", list(n_changes.values()), attrs)
        summary["connection_change"] = np.array(list(n_changes), dtype=object)
        n_pairs = ids["pre"].size * ids["post"].size
        summary["n_comparable_pairs"] = ((), n_pairs, {"units": "pairs"})
    coords = {
        "release": np.array(RELEASES, dtype=object),
        "datastack": ("release", np.array(datastacks, dtype=object)),
        "materialization_version": ("release", list(versions)),
    }
    histories = {
        f"{part}_history_{name}": datasets[name].attrs["history"]
        for name in RELEASES
        for part, datasets in (("units", units), ("connectivity", pairs))
        if datasets[name].attrs.get("history")
    }
    chosen = {"pre": pre is not None, "post": post is not None}
    both = ", ".join(f"{name}={stack} v{version}" for name, (stack, version) in identity.items())
    entry = f"compare_releases({both}, variables={names}, {connections=}, {chosen=})"
    return xr.DataTree.from_dict(
        {
            f"/{name}": add_history(node.assign_coords(coords).assign_attrs(histories), entry)
            for name, node in nodes.items()
        }
    )


def _parts(release: Any, name: str, connections: bool) -> tuple[xr.Dataset, xr.Dataset]:
    """Return units and connectivity, the latter empty if it is not compared."""
    if isinstance(release, str | os.PathLike | Store):
        release = open_store(release, lazy=True)
    kinds: tuple[Kind, ...] = ("units", "connectivity") if connections else ("units",)
    parts = []
    for part in kinds:
        if isinstance(release, xr.DataTree):
            value = release[part].to_dataset() if part in release.children else None
        elif isinstance(release, Mapping):
            value = release.get(part)
        else:
            value = getattr(release, part, lambda: None)()
        if value is None:
            raise SchemaError(
                f"{name} is a {type(release).__name__} without {part}: pass a mx.Release, a store, "
                "or {'units': ..., 'connectivity': ...}"
                + ("" if part == "units" else ", or connections=False")
            )
        if part == "connectivity":
            value = as_pairs(value)
        validate(value, part)
        parts.append(value)
    require_same_release(*zip((f"{part} of {name}" for part in kinds), parts, strict=True))
    return parts[0], parts[-1] if connections else xr.Dataset()


def _compare_units(
    units: Mapping[str, xr.Dataset], names: list[str]
) -> tuple[xr.Dataset, dict[str, int]]:
    for name in names:
        for release, dataset in units.items():
            hint = "compare variables that both have"
            column_of(dataset, name, f"{release}.units", hint, kinds="OUTib")
    ids, rows, change = _match([dataset["nucleus_id"].values for dataset in units.values()])
    attrs = {"long_name": "kept, gained or lost from a to b"}
    result = xr.Dataset({"change": ("nucleus_id", change, attrs)}, {"nucleus_id": ids})
    counts = {word: int((change == word).sum()) for word in ("kept", "gained", "lost")}
    for name in ("pt_root_id", *names):
        of_both = _of_both([_comparable(u[name].values) for u in units.values()], rows)
        changed = (change == "kept") & (of_both[0] != of_both[1])
        flag, text = f"{name}_changed", f"{name} of a kept unit changed"
        result[name] = (("release", "nucleus_id"), of_both, dict(units["a"][name].attrs))
        result[flag] = ("nucleus_id", changed, {"long_name": text})
        counts[flag] = int(changed.sum())
    return result, counts


def _match(ids: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return the ids of either release, their row in each (-1: absent), and their change."""
    of_either = np.union1d(*ids)
    in_a, in_b = rows = [Lookup(of_release, "ids").find(of_either) for of_release in ids]
    change = np.where(in_a < 0, "gained", np.where(in_b < 0, "lost", "kept")).astype(object)
    return of_either, rows, change


def _comparable(values: np.ndarray) -> np.ndarray:
    """Return words with "unknown" for missing ones, since NaN differs from NaN."""
    return np.where(pd.isna(values), "unknown", values) if values.dtype.kind == "O" else values


def _of_both(values: list[np.ndarray], rows: list[np.ndarray]) -> np.ndarray:
    """Return (release, ..., id): "absent" for a missing word, 0 for a missing number."""
    if any(v.dtype.kind in "OUTb" for v in values):
        # Truth values become objects too, so that "absent" can be one of them.
        values = [v.astype(object) for v in values]
    missing = "absent" if values[0].dtype.kind == "O" else 0
    shape = (2, *values[0].shape[:-1], rows[0].size)
    result = np.full(shape, missing, dtype=np.result_type(*values))
    for of_release, v, r in zip(result, values, rows, strict=True):
        of_release[..., r >= 0] = v[..., r[r >= 0]]
    return result


def _ids_of_both(pairs: Mapping[str, xr.Dataset], pre: Any, post: Any) -> dict[str, np.ndarray]:
    """Return the neurons of each axis whose pairs were requested in both releases."""
    hint = "all of whose pairs were requested in both releases, or connections=False"
    for name, connectivity in pairs.items():
        require_requested(connectivity, pre, post, hint, f" of {name}")
    ids: dict[str, np.ndarray] = {}
    for side, choice in zip(SIDES, (pre, post), strict=True):
        axes = [c[f"{side}_nucleus_id"].values for c in pairs.values()]
        chosen = axes
        if choice is not None:
            places = (positions_of(c, side, choice) for c in pairs.values())
            chosen = [axis[rows] for axis, rows in zip(axes, places, strict=True)]
        ids[side] = np.intersect1d(chosen[0], chosen[1])
        if not ids[side].size:
            raise SchemaError(
                f"no neuron of {side}_nucleus_id is in both releases, which have {axes[0].size} "
                f"and {axes[1].size}, so no pair is comparable: download both for the same "
                "neurons, or pass connections=False"
            )
    return ids


def _compare_connections(
    pairs: Mapping[str, xr.Dataset], ids: Mapping[str, np.ndarray]
) -> tuple[xr.Dataset, dict[str, int]]:
    names = [n for n in pair_names(pairs["a"]) if n in pair_names(pairs["b"])]
    if not names:
        raise SchemaError(
            f"a has the weights {pair_names(pairs['a'])} and b {pair_names(pairs['b'])}, expected "
            "one of the same name, by which connections are compared: rename it with .rename"
        )
    keys, weights, not_comparable = [], [], {}
    for name, connectivity in pairs.items():
        part = take(connectivity[names], ids["pre"], ids["post"]).compute()
        pattern, values = pair_buffers(recompress(part, "post"))
        # One ascending number per pair, by which the pairs of both releases are matched.
        pre_of, post_of = pattern.ends()
        keys.append(post_of.astype(np.int64) * pattern.n_minor + pre_of)
        weights.append(values)
        not_comparable[f"not_comparable_{name}"] = n_connections(connectivity) - pattern.nnz
    # Most pairs are the same in both: dropping them first keeps the tables of the others small.
    at_b = np.searchsorted(keys[1], keys[0])
    same = np.append(keys[1], -1)[at_b] == keys[0]
    in_both = np.flatnonzero(same)
    for name in names:
        of_a, of_b = weights[0][name][in_both], weights[1][name][at_b[in_both]]
        same[in_both] &= (of_a == of_b) | ((of_a != of_a) & (of_b != of_b))  # both NaN
    for i, unchanged in enumerate((np.flatnonzero(same), at_b[same])):
        keys[i] = np.delete(keys[i], unchanged)
        weights[i] = {name: np.delete(v, unchanged) for name, v in weights[i].items()}
    key, rows, change = _match(keys)
    change[change == "kept"] = "resized"
    n_changes = {word: int((change == word).sum()) for word in ("gained", "lost", "resized")}
    n_pre = ids["pre"].size
    table = xr.Dataset(
        {"change": ("connection", change)},
        coords={
            "pre_nucleus_id": ("connection", ids["pre"][key % n_pre]),
            "post_nucleus_id": ("connection", ids["post"][key // n_pre]),
        },
    )
    for name in names:
        of_both = _of_both([values[name] for values in weights], rows)
        attrs = {k: v for k, v in pairs["a"][name].attrs.items() if k == "units"}
        table[name] = (("release", "connection"), of_both, attrs)
    return table, {"unchanged": int(same.sum()), **n_changes, **not_comparable}
