"""Two releases side by side: which neurons and which connections changed, by nucleus."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from zarr.abc.store import Store

from microns_xr.analysis.pairs import SIDES, require_asked_for
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.blocks import positions_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import n_connections, recompress, take
from microns_xr.errors import ReleaseMismatchError, SchemaError, unknown_label
from microns_xr.provenance import add_history, release_of, require_same_release
from microns_xr.schema import VOXEL_UNITS, validate
from microns_xr.store.open import open_store

RELEASES = ("a", "b")
_WEIGHTS = ("synapse_size", "synapse_count")


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
    neurons is comparable when both releases were asked for it: its presynaptic neuron is on that
    axis of both, and its postsynaptic neuron on that of both. The connections of other pairs are
    counted as not comparable, and never as gained or lost.

    Parameters
    ----------
    a, b : Release, xarray.DataTree, mapping of str to xarray.Dataset, str or path-like
        The older and the newer release: objects with ``units()`` and ``connectivity()``, trees as
        `open_store` gives them, ``{"units": ..., "connectivity": ...}``, or stores.
    variables : str or collection of str, optional
        Unit variables with one value per neuron to compare besides the root.
    connections : bool, optional
        False compares only the units, without looking at connectivity.
    pre, post : collection of int, or units Dataset, optional
        Compare only pairs of these neurons, which are on the axes of both. Where the scope of
        either connectivity is "unknown" both must be given: they say that these pairs were asked
        for in both releases.

    Returns
    -------
    xarray.DataTree
        Four nodes, each with the dim ``release`` ("a", "b") and along it the coordinates
        ``datastack`` and ``materialization_version``, which functions of one release refuse:

        ``/``
            The two releases.
        ``/summary``
            ``n_units(unit_change)``: kept, gained, lost, and of those kept ``pt_root_id_changed``,
            ``cell_type_changed`` ...; ``n_connections(connection_change)``: unchanged, gained,
            lost, resized, ``not_comparable_a`` and ``_b``; ``n_comparable_pairs``.
        ``/units``
            Over ``nucleus_id``, the units of either: ``change`` (kept, gained, lost),
            ``pt_root_id(release, nucleus_id)`` (0 where absent) and
            ``pt_root_id_changed``;
            ``cell_type(release, nucleus_id)`` ("absent" where it is) and ``cell_type_changed``, and
            so on. Only a unit that is kept can have changed.
        ``/connections``
            One row per comparable connection that differs, over ``connection``:
            ``pre_nucleus_id``, ``post_nucleus_id``, ``change`` (gained, lost, resized),
            ``synapse_size(release, connection)`` (voxels of 4x4x40 nm) and ``synapse_count``, 0
            where there is no connection. Resized is another size or another number of synapses.

    Raises
    ------
    ReleaseMismatchError
        If the two are of different datastacks, or units and connectivity of one are of different
        releases.
    SchemaError
        If units or connectivity are missing, the scope of connectivity is unknown and `pre` or
        `post` is missing, or no pair is comparable.
    UnknownLabelError
        If units have no such variable, or an id of `pre` or `post` is on no axis.

    Examples
    --------
    >>> import microns_xr as mx
    >>> sources = [mx.sources.DemoSource(v, n_nuclei=500) for v in (1507, 1718)]
    >>> old, new = (mx.Release(source.version, source=source) for source in sources)
    >>> changes = compare_releases(old, new)
    >>> changes["summary"].n_units.sel(unit_change="lost").item() >= 0
    True
    """
    names = [variables] if isinstance(variables, str) else list(variables)
    units, pairs = {}, {}
    for name, release in zip(RELEASES, (a, b), strict=True):
        units[name], pairs[name] = _parts(release, name, connections)
    identity = {name: release_of(units[name], f"units of {name}") for name in RELEASES}
    datastacks, versions = zip(*identity.values(), strict=True)
    if datastacks[0] != datastacks[1]:
        raise ReleaseMismatchError(
            f"a is of {datastacks[0]} and b of {datastacks[1]}: nucleus ids mean the same in the "
            "releases of one datastack only"
        )
    nodes = {"": xr.Dataset(), "summary": xr.Dataset()}
    nodes["units"], n_units = _compare_units(units, names)
    nodes["summary"]["n_units"] = ("unit_change", list(n_units.values()), {"units": "units"})
    nodes["summary"]["unit_change"] = np.array(list(n_units), dtype=object)
    if connections:
        ids = _ids_of_both(pairs, pre, post)
        nodes["connections"], n_changes = _compare_connections(pairs, ids)
        about = {"units": "connected pairs"}
        counts = list(n_changes.values())
        nodes["summary"]["n_connections"] = ("connection_change", counts, about)
        nodes["summary"]["connection_change"] = np.array(list(n_changes), dtype=object)
        n_pairs = ids["pre"].size * ids["post"].size
        nodes["summary"]["n_comparable_pairs"] = ((), n_pairs, {"units": "pairs"})
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
    """Return units and connectivity, the latter empty if it is not wanted."""
    if isinstance(release, str | os.PathLike | Store):
        release = open_store(release, lazy=True)
    parts = {"units": xr.Dataset(), "connectivity": xr.Dataset()}
    for part in parts if connections else ("units",):
        if isinstance(release, xr.DataTree):
            value = release[part].to_dataset() if part in release.children else None
        elif isinstance(release, Mapping):
            value = release.get(part)
        else:
            build = getattr(release, part, None)
            value = build() if callable(build) else None
        if value is None:
            raise SchemaError(
                f"{name} is a {type(release).__name__} without {part}: pass a mx.Release, a store, "
                "or {'units': ..., 'connectivity': ...}"
                + ("" if part == "units" else ", or connections=False")
            )
        validate(value, "units" if part == "units" else "connectivity")
        parts[part] = value
    require_same_release(*((f"{part} of {name}", value) for part, value in parts.items()))
    return parts["units"], parts["connectivity"]


def _compare_units(
    units: Mapping[str, xr.Dataset], names: list[str]
) -> tuple[xr.Dataset, dict[str, int]]:
    for name in names:
        for release, dataset in units.items():
            if name not in dataset.variables:
                hint = "compare variables that both have"
                what = f"units of {release} have no variable"
                raise unknown_label(what, name, dataset.variables, hint)
            if dataset[name].dims != ("nucleus_id",) or dataset[name].dtype.kind not in "OUTib":
                raise SchemaError(
                    f"{name} has dims {dataset[name].dims} and dtype {dataset[name].dtype}, "
                    "expected one word, integer or truth value per unit"
                )
    ids = np.union1d(*(dataset["nucleus_id"].values for dataset in units.values()))
    rows = [Lookup(u["nucleus_id"].values, "nucleus_id").find(ids) for u in units.values()]
    in_a, in_b = (r >= 0 for r in rows)
    both = in_a & in_b
    change = np.select([both, in_b], ["kept", "gained"], "lost").astype(object)
    result = xr.Dataset(
        {"change": ("nucleus_id", change, {"long_name": "kept, gained or lost from a to b"})},
        coords={"nucleus_id": ids},
    )
    counts = {word: int((change == word).sum()) for word in ("kept", "gained", "lost")}
    for name in ("pt_root_id", *names):
        values = [_filled(u[name].values, r) for u, r in zip(units.values(), rows, strict=True)]
        changed = both & (values[0] != values[1])
        flag = f"{name}_changed"
        result[name] = (("release", "nucleus_id"), np.stack(values), dict(units["a"][name].attrs))
        result[flag] = ("nucleus_id", changed, {"long_name": f"{name} of a kept unit changed"})
        counts[flag] = int(changed.sum())
    return result, counts


def _filled(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "OUTb":
        # Truth values become objects too, among which "absent" can stand.
        values = values.astype(object)
    missing = "absent" if values.dtype.kind == "O" else 0
    return np.append(values, np.array([missing], dtype=values.dtype))[rows]


def _ids_of_both(pairs: Mapping[str, xr.Dataset], pre: Any, post: Any) -> dict[str, np.ndarray]:
    """Return the neurons of each axis all of whose pairs were asked for in both releases."""
    for name, connectivity in pairs.items():
        require_asked_for(
            connectivity,
            pre,
            post,
            "all of whose pairs were asked for in both releases, or connections=False",
            f" of {name}",
        )
    ids: dict[str, np.ndarray] = {}
    for side, choice in zip(SIDES, (pre, post), strict=True):
        axes = [connectivity[f"{side}_nucleus_id"].values for connectivity in pairs.values()]
        common = np.intersect1d(axes[0], axes[1], assume_unique=True)
        if choice is not None:
            for connectivity, axis in zip(pairs.values(), axes, strict=True):
                common = np.intersect1d(common, axis[positions_of(connectivity, side, choice)])
        if not common.size:
            raise SchemaError(
                f"no neuron of {side}_nucleus_id is in both releases, which have {axes[0].size} "
                f"and {axes[1].size}, so no pair is comparable: download both for the same "
                "neurons, or pass connections=False"
            )
        ids[side] = common
    return ids


def _compare_connections(
    pairs: Mapping[str, xr.Dataset], ids: Mapping[str, np.ndarray]
) -> tuple[xr.Dataset, dict[str, int]]:
    keys, weights, not_comparable = [], [], {}
    for name, connectivity in pairs.items():
        part = take(connectivity[list(_WEIGHTS)], ids["pre"], ids["post"]).compute()
        pattern, values = pair_buffers(recompress(part, "post"))
        # One ascending number per pair, so that pairs of both releases are found by it.
        post_of = np.repeat(np.arange(pattern.n_major), np.diff(pattern.indptr))
        keys.append(post_of * pattern.n_minor + pattern.indices)
        weights.append(np.stack([values[weight] for weight in _WEIGHTS]))
        not_comparable[f"not_comparable_{name}"] = n_connections(connectivity) - pattern.nnz
    at_b = _find(keys[1], keys[0])
    in_both = at_b >= 0
    resized = in_both.copy()
    resized[in_both] = (weights[0][:, in_both] != weights[1][:, at_b[in_both]]).any(axis=0)
    is_new = np.ones(keys[1].size, dtype=bool)
    is_new[at_b[in_both]] = False
    changed = {"gained": keys[1][is_new], "lost": keys[0][~in_both], "resized": keys[0][resized]}
    n_changes = {word: of_word.size for word, of_word in changed.items()}
    key = np.concatenate(list(changed.values()))
    order = np.argsort(key)
    key = key[order]
    change = np.repeat(np.array(list(changed), dtype=object), list(n_changes.values()))[order]
    of_both = np.stack(
        [
            # Where there is no connection, -1 takes the zero at the end.
            np.append(weight, np.zeros((len(_WEIGHTS), 1), weight.dtype), axis=1)[:, _find(k, key)]
            for k, weight in zip(keys, weights, strict=True)
        ],
        axis=1,
    )
    n_pre = ids["pre"].size
    table = xr.Dataset(
        {
            "change": ("connection", change),
            "synapse_size": (("release", "connection"), of_both[0], {"units": VOXEL_UNITS}),
            "synapse_count": (("release", "connection"), of_both[1], {"units": "synapses"}),
        },
        coords={
            "pre_nucleus_id": ("connection", ids["pre"][key % n_pre]),
            "post_nucleus_id": ("connection", ids["post"][key // n_pre]),
        },
    )
    n_unchanged = int(in_both.sum()) - n_changes["resized"]
    return table, {"unchanged": n_unchanged, **n_changes, **not_comparable}


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where numbers are among ascending ones, -1 where they are not."""
    places = np.searchsorted(keys, wanted)
    return np.where(np.append(keys, -1)[places] == wanted, places, -1)
