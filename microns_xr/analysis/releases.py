"""Two releases side by side: which neurons and which connections changed, by nucleus."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
import xarray as xr
from zarr.abc.store import Store

from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.blocks import positions_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import n_connections, recompress, take
from microns_xr.errors import ReleaseMismatchError, SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, release_of, require_same_release
from microns_xr.schema import VOXEL_UNITS, validate
from microns_xr.store.open import open_store

RELEASES = ("a", "b")
_UNIT_CHANGES = ("kept", "gained", "lost")
# In the order of the numbers that `_match` gives them.
_PAIR_CHANGES = ("unchanged", "gained", "lost", "resized")
_NOT_COMPARABLE = ("not_comparable_a", "not_comparable_b")
_PARTS = ("synapse_size", "synapse_count")
_ABSENT = "absent"
_VARIABLES = ("cell_type", "classification_system", "axon_completeness")


class BuildsDatasets(Protocol):
    """What a `microns_xr.Release` is, as far as a comparison needs it."""

    def units(self) -> xr.Dataset:
        """Build the unit table."""

    def connectivity(self) -> xr.Dataset:
        """Build the connectivity."""


def compare_releases(
    a: BuildsDatasets | xr.DataTree | Mapping[str, xr.Dataset] | str | os.PathLike[str],
    b: BuildsDatasets | xr.DataTree | Mapping[str, xr.Dataset] | str | os.PathLike[str],
    *,
    variables: Iterable[str] = _VARIABLES,
    connections: bool = True,
    pre: Any = None,
    post: Any = None,
) -> xr.DataTree:
    """Say what changed between two releases, neuron by neuron and connection by connection.

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
        Unit variables of one value a neuron that are compared besides the root.
    connections : bool, optional
        False compares the units alone; connectivity is not looked at then.
    pre, post : collection of int, or units Dataset, optional
        Compare pairs of these neurons only, which are on the axes of both. Where the scope of
        either connectivity is "unknown" both must be given: they say that these pairs were asked
        for in both releases.

    Returns
    -------
    xarray.DataTree
        Four nodes, each with the dim ``release`` ("a", "b") and along it the coordinates
        ``datastack`` and ``materialization_version``, which no function of one release takes:

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
            ``cell_type(release, nucleus_id)`` ("absent" where so) and ``cell_type_changed``, and
            so on. Only a unit that is kept can have changed.
        ``/connections``
            A row a comparable connection that is not the same in both, over ``connection``:
            ``pre_nucleus_id``, ``post_nucleus_id``, ``change`` (gained, lost, resized),
            ``synapse_size(release, connection)`` (voxels of 4x4x40 nm) and ``synapse_count``, 0
            where there is no connection. Resized is another size or another number of synapses.

    Raises
    ------
    ReleaseMismatchError
        If the two are of different datastacks, or units and connectivity of one are of different
        releases.
    SchemaError
        If something is no release, has no units or connectivity, the scope of connectivity is
        unknown and `pre` and `post` are not given, or no pair is comparable.
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
    sides = {
        name: _parts(obj, name, connections) for name, obj in zip(RELEASES, (a, b), strict=True)
    }
    identity = {name: release_of(side.units, f"units of {name}") for name, side in sides.items()}
    if identity["a"][0] != identity["b"][0]:
        raise ReleaseMismatchError(
            f"a is of {identity['a'][0]} and b of {identity['b'][0]}: nucleus ids mean the same "
            "in the releases of one datastack only"
        )
    units, n_units = _compare_units(sides["a"].units, sides["b"].units, names)
    summary = xr.Dataset(
        {"n_units": ("unit_change", list(n_units.values()), {"units": "units"})},
        coords={"unit_change": np.array(list(n_units), dtype=object)},
    )
    nodes = {"units": units}
    if connections:
        compared = _compare_connections(sides["a"], sides["b"], pre, post)
        nodes["connections"] = compared.table
        of_pairs = list(compared.counts.values())
        summary["n_connections"] = ("connection_change", of_pairs, {"units": "connected pairs"})
        summary["n_comparable_pairs"] = ((), compared.n_pairs, {"units": "pairs"})
        words = np.array(list(compared.counts), dtype=object)
        summary = summary.assign_coords(connection_change=words)
    chosen = {side: given is not None for side, given in (("pre", pre), ("post", post))}
    entry = (
        f"compare_releases(a={identity['a'][0]} v{identity['a'][1]}, "
        f"b={identity['b'][0]} v{identity['b'][1]}, variables={names}, "
        f"connections={connections}, chosen={chosen})"
    )
    coords = {
        "release": np.array(RELEASES, dtype=object),
        "datastack": ("release", np.array([identity[r][0] for r in RELEASES], dtype=object)),
        "materialization_version": ("release", [identity[r][1] for r in RELEASES]),
    }
    histories = {
        f"{part}_history_{name}": dataset.attrs["history"]
        for name, side in sides.items()
        for part, dataset in (("units", side.units), ("connectivity", side.connectivity))
        if dataset is not None and dataset.attrs.get("history")
    }
    return xr.DataTree.from_dict(
        {
            f"/{name}": add_history(node.assign_coords(coords).assign_attrs(histories), entry)
            for name, node in {"": xr.Dataset(), "summary": summary, **nodes}.items()
        }
    )


class _Side(NamedTuple):
    units: xr.Dataset
    connectivity: xr.Dataset | None

    @property
    def pairs(self) -> xr.Dataset:
        assert self.connectivity is not None
        return self.connectivity


class _Compared(NamedTuple):
    table: xr.Dataset
    counts: dict[str, int]
    n_pairs: int


def _parts(obj: Any, name: str, connections: bool) -> _Side:
    if isinstance(obj, str | os.PathLike | Store):
        obj = open_store(obj, lazy=True)
    wanted = ("units", "connectivity") if connections else ("units",)
    found: dict[str, xr.Dataset] = {}
    for part in wanted:
        if isinstance(obj, xr.DataTree):
            value = obj[part].to_dataset() if part in obj.children else None
        elif isinstance(obj, Mapping):
            value = obj.get(part)
        else:
            build = getattr(obj, part, None)
            value = build() if callable(build) else None
        if value is None:
            raise SchemaError(
                f"{name} is a {type(obj).__name__} without {part}: pass a mx.Release, a store, or "
                "{'units': ..., 'connectivity': ...}"
                + ("" if part == "units" else ", or connections=False")
            )
        validate(value, "units" if part == "units" else "connectivity")
        found[part] = value
    side = _Side(found["units"], found.get("connectivity"))
    if side.connectivity is not None:
        require_same_release(
            (f"units of {name}", side.units), (f"connectivity of {name}", side.connectivity)
        )
    return side


def _compare_units(
    a: xr.Dataset, b: xr.Dataset, names: list[str]
) -> tuple[xr.Dataset, dict[str, int]]:
    for name in names:
        for release, units in zip(RELEASES, (a, b), strict=True):
            if name not in units.data_vars:
                near = ", ".join(nearest_words(name, units.data_vars))
                raise UnknownLabelError(
                    f"units of {release} have no variable {name!r}"
                    + (f"; nearest: {near}" if near else "")
                    + ": compare variables that both have"
                )
            if units[name].dims != ("nucleus_id",) or units[name].dtype.kind not in "OUTib":
                raise SchemaError(
                    f"{name} has dims {units[name].dims} and dtype {units[name].dtype}, expected "
                    "one word, integer or truth value a unit"
                )
    ids = np.union1d(a["nucleus_id"].values, b["nucleus_id"].values)
    rows = [Lookup(u["nucleus_id"].values, "nucleus_id").find(ids) for u in (a, b)]
    in_a, in_b = (r >= 0 for r in rows)
    both = in_a & in_b
    change = np.select([both, in_b], ["kept", "gained"], "lost").astype(object)
    result = xr.Dataset(
        {"change": ("nucleus_id", change, {"long_name": "kept, gained or lost from a to b"})},
        coords={"nucleus_id": ids},
    )
    counts = {word: int((change == word).sum()) for word in _UNIT_CHANGES}
    for name in ("pt_root_id", *names):
        values = [_filled(u[name].values, r) for u, r in zip((a, b), rows, strict=True)]
        changed = both & (values[0] != values[1])
        flag = f"{name}_changed"
        result[name] = (("release", "nucleus_id"), np.stack(values), dict(a[name].attrs))
        result[flag] = ("nucleus_id", changed, {"long_name": f"{name} of a kept unit changed"})
        counts[flag] = int(changed.sum())
    return result, counts


def _filled(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "OUTb":
        # Truth values too become objects, among which "absent" can stand.
        values = values.astype(object)
    missing = _ABSENT if values.dtype.kind == "O" else 0
    if not values.size:
        return np.full(rows.size, missing, dtype=values.dtype)
    found = values[rows]
    found[rows < 0] = missing
    return found


def _compare_connections(a: _Side, b: _Side, pre: Any, post: Any) -> _Compared:
    for name, side in zip(RELEASES, (a, b), strict=True):
        if side.pairs["scope"].item() == "unknown" and (pre is None or post is None):
            raise SchemaError(
                f"scope of the connectivity of {name} is 'unknown', so a pair without a synapse "
                "may never have been asked for: pass pre= and post=, neurons all of whose pairs "
                "were asked for in both releases, or connections=False"
            )
    ids = {}
    for which, given in (("pre", pre), ("post", post)):
        dim = f"{which}_nucleus_id"
        axes = [side.pairs[dim].values for side in (a, b)]
        common = np.intersect1d(axes[0], axes[1], assume_unique=True)
        if given is not None:
            for side in (a, b):
                positions = positions_of(side.pairs, "pre" if which == "pre" else "post", given)
                common = np.intersect1d(common, side.pairs[dim].values[positions])
        ids[which] = common
        if not common.size:
            raise SchemaError(
                f"no neuron of {dim} is in both releases, which have {axes[0].size} and "
                f"{axes[1].size}, so no pair is comparable: download both for the same neurons, or "
                "pass connections=False"
            )
    n_all = [n_connections(side.pairs) for side in (a, b)]
    buffers: list[np.ndarray] = []
    n_inside = []
    for side in (a, b):
        kept = take(side.pairs[list(_PARTS)], ids["pre"], ids["post"]).compute()
        pattern, values = pair_buffers(recompress(kept, "post"))
        buffers += [pattern.indices, pattern.indptr, *(values[part] for part in _PARTS)]
        n_inside.append(pattern.nnz)
    match: Any = _match  # numba's types count the arguments of its own call
    totals = match(*buffers, *_rows(0), False)
    rows = _rows(int(totals[1:].sum()))
    match(*buffers, *rows, True)
    change, pre_of, post_of, size, count = rows
    table = xr.Dataset(
        {
            "change": ("connection", np.array(_PAIR_CHANGES, dtype=object)[change]),
            "synapse_size": (("release", "connection"), size, {"units": VOXEL_UNITS}),
            "synapse_count": (("release", "connection"), count, {"units": "synapses"}),
        },
        coords={
            "pre_nucleus_id": ("connection", ids["pre"][pre_of]),
            "post_nucleus_id": ("connection", ids["post"][post_of]),
        },
    )
    counts = dict(zip(_PAIR_CHANGES, totals.tolist(), strict=True))
    for word, of_release, inside in zip(_NOT_COMPARABLE, n_all, n_inside, strict=True):
        counts[word] = of_release - inside
    return _Compared(table, counts, ids["pre"].size * ids["post"].size)


def _rows(n: int) -> tuple[np.ndarray, ...]:
    """Room for `n` changed pairs: change, pre, post, size and count in both releases."""
    numbers = (np.empty(n, dtype) for dtype in (np.int8, np.int32, np.int32))
    return (*numbers, np.zeros((2, n), np.int64), np.zeros((2, n), np.int64))


@numba.njit(nogil=True, cache=True)
def _match(  # type: ignore[no-untyped-def]
    indices_a, indptr_a, size_a, count_a, indices_b, indptr_b, size_b, count_b,
    change, pre, post, size, count, write,
):  # fmt: skip
    """Merge two patterns on the same axes, count the pairs by change, and write what changed."""
    totals = np.zeros(4, np.int64)
    n = 0
    for j in range(indptr_a.size - 1):
        p, end_a = np.int64(indptr_a[j]), np.int64(indptr_a[j + 1])
        q, end_b = np.int64(indptr_b[j]), np.int64(indptr_b[j + 1])
        while p < end_a or q < end_b:
            here = p < end_a and (q >= end_b or indices_a[p] <= indices_b[q])
            there = q < end_b and (p >= end_a or indices_b[q] <= indices_a[p])
            if here and there:
                kind = 3 if size_a[p] != size_b[q] or count_a[p] != count_b[q] else 0
            else:
                kind = 1 if there else 2
            totals[kind] += 1
            if write and kind:
                change[n] = kind
                pre[n] = indices_a[p] if here else indices_b[q]
                post[n] = j
                if here:
                    size[0, n], count[0, n] = size_a[p], count_a[p]
                if there:
                    size[1, n], count[1, n] = size_b[q], count_b[q]
                n += 1
            p += here
            q += there
    return totals
