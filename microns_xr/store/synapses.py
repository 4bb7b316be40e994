"""Single synapses: read rows of a Dataset or of a store, and plan how a store holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from microns_xr.columns import as_ids, require_once
from microns_xr.connectivity.arrays import PAIR_DIMS, Compressed
from microns_xr.connectivity.labels import Lookup, require_ends
from microns_xr.errors import MicronsXrError, SchemaError, StoreFormatError, UnknownLabelError
from microns_xr.frames import Space
from microns_xr.provenance import stamp_release
from microns_xr.schema import AXES, with_labels
from microns_xr.store.format import (
    INDEX_NAMES,
    MATRIX_GROUP,
    OTHER,
    SYNAPSE_CHUNK,
    SYNAPSE_GROUP,
    SYNAPSE_POINTER,
    index_problem,
    pointer_problem,
)
from microns_xr.store.locate import Address, read_values
from microns_xr.store.nodes import open_root
from microns_xr.store.open import label_array, lazy_variable, read_from, read_group
from microns_xr.store.stream import PlannedGroup, plan_dataset
from microns_xr.threads import Span


class SynapseRows:
    """Rows of single synapses, which are read in pieces from a store or from lazy variables.

    Ids that are stored as labels and positions stay so until they are needed.
    """

    def __init__(
        self, dataset: xr.Dataset, axes: xr.Dataset | None = None, root: zarr.Group | None = None
    ) -> None:
        require_ends(dataset)
        self.n = dataset.sizes["synapse"]
        self.chunk = SYNAPSE_CHUNK  # rows to read together
        # The store that holds the rows, None for rows of a Dataset.
        self.root = root
        if root is not None:
            index = root.get(f"{SYNAPSE_GROUP['post']}/{INDEX_NAMES['post']}")
            if not isinstance(index, zarr.Array):
                raise StoreFormatError(
                    f"{root.store_path} no longer holds the synapses that were opened: the store "
                    "was replaced, open it again"
                )
            self.chunk = max(SYNAPSE_CHUNK, index.chunks[0])
        self._axes = axes
        self.variables = {
            str(name): variable.transpose("synapse", ...)
            for name, variable in dataset.variables.items()
            if "synapse" in variable.dims
        }
        self.coords = [name for name in self.variables if name in dataset.coords]
        # all other variables, and the attributes
        self.frame = dataset.drop_dims(["synapse", *set(PAIR_DIMS) & set(dataset.dims)])
        # what is read: positions in place of the ids that are labels
        self.columns: dict[str, xr.Variable] = {}
        self._labels: dict[str, tuple[str, xr.Variable]] = {}
        for name, variable in self.variables.items():
            if (found := label_array(variable)) is None:
                self.columns[name] = variable
                continue
            index_name = f"{name.partition('_')[0]}_index"
            self._labels[name] = index_name, found.labels
            self.columns[index_name] = found.positions

    def end(self, side: Compressed) -> str:
        """Return the column that tells the neuron of each row, by id or by position."""
        return self._labels.get(f"{side}_nucleus_id", (f"{side}_nucleus_id",))[0]

    def finder(self, side: Compressed, ids: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from values of `end` to positions among ids, -1 for other neurons."""
        axis = f"{side}_nucleus_id"
        lookup = Lookup(ids, axis)
        if axis not in self._labels:
            return lambda values: lookup.find(values, 1)
        of_labels = lookup.find(self._labels[axis][1].values)
        return lambda positions: of_labels[positions]

    def read(self, name: str, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return rows of one column, ordered by post or by pre."""
        columns = self.columns if by == "post" else self._by_pre
        values = np.asarray(columns[name][start:stop].values)
        for index_name, labels in self._labels.values():
            if name == index_name and (problem := index_problem(values, labels.size)):
                raise self.broken(f"{name} {problem}")
        return values

    def ids_of(self, side: Compressed, values: np.ndarray) -> np.ndarray:
        """Return the ids of neurons from values of `end`."""
        axis = f"{side}_nucleus_id"
        return self._labels[axis][1].values[values] if axis in self._labels else values

    def with_ids(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the variables of rows from their columns."""
        ids = {name: labels.values[columns[i]] for name, (i, labels) in self._labels.items()}
        return {name: ids[name] if name in ids else columns[name] for name in self.variables}

    def ids(self, side: Compressed) -> np.ndarray:
        """Return the ids among which the neurons of all rows are, ascending."""
        axis = f"{side}_nucleus_id"
        if axis in self._labels:
            return np.asarray(self._labels[axis][1].values)
        ids = as_ids(self.columns[axis].values, f"{axis} of synapses")
        return np.sort(pd.unique(ids))  # ten times faster than numpy.unique, for millions

    def axis(self, side: Compressed) -> np.ndarray | None:
        """Return the ids of the axis to which a store or tree assigns the neurons, if known."""
        if self.root is not None:
            return self.ids(side)
        return None if self._axes is None else np.asarray(self._axes[f"{side}_nucleus_id"].values)

    def matrix(self) -> xr.Dataset | None:
        """Return the connectivity of the synapses, lazy if in a store; None if not known."""
        if self._axes is None and self.root is not None:
            for group in MATRIX_GROUP.values():
                if group in self.root:
                    return read_group(self.root, group, lazy=True)
        return self._axes

    def spans(self, by: Compressed, ids: np.ndarray) -> list[Span] | None:
        """Return the spans of the rows of some neurons; None if all rows must be read."""
        name = f"{SYNAPSE_GROUP[by]}/{SYNAPSE_POINTER[by]}"
        array = None if self.root is None else self.root.get(name)
        if not isinstance(array, zarr.Array):
            return None
        indptr, labels = read_values(array), self.ids(by)
        if problem := pointer_problem(indptr, labels.size, self.n):
            raise self.broken(f"{name} {problem}")
        positions = np.flatnonzero(np.isin(labels, ids))
        starts, stops = indptr[positions].tolist(), indptr[positions + 1].tolist()
        return [span for span in zip(starts, stops, strict=True) if span[0] < span[1]]

    def broken(self, what: str) -> MicronsXrError:
        """Return the error to raise for inconsistent rows."""
        if self.root is None:
            return SchemaError(f"synapses: {what}; build them with mx.build_synapses")
        return StoreFormatError(
            f"{self.root.store_path}/synapses: {what}; the store is damaged, write it again"
        )

    @cached_property
    def _by_pre(self) -> dict[str, xr.Variable]:
        """Columns with their rows ordered by pre."""
        group: Any = self.root[SYNAPSE_GROUP["pre"]]  # type: ignore[index]
        columns = {n: lazy_variable(group, n, v.dims) for n, v in self.columns.items()}
        for name, variable in columns.items():
            if variable.shape[0] != self.n:
                raise self.broken(
                    f"{name} has {variable.shape[0]} rows by pre, expected {self.n} as by post"
                )
        return columns


def rows_of(synapses: xr.Dataset | xr.DataTree | Address) -> SynapseRows:
    """Return the rows of a Dataset, of an opened store, or of a store on disk."""
    if isinstance(synapses, xr.Dataset):
        return SynapseRows(synapses)
    if not isinstance(synapses, xr.DataTree):
        root = open_root(synapses)
        return SynapseRows(read_group(root, SYNAPSE_GROUP["post"], lazy=True), root=root)
    if "synapses" not in synapses.children:
        raise UnknownLabelError(
            f"the tree has no single synapses, found {list(synapses.children)}: write them with "
            "mx.write_store(..., synapses=...)"
        )
    dataset = synapses["synapses"].to_dataset()
    # If nothing was read, selected or replaced since the store was opened lazily, its pointers and
    # its rows by pre can be used.
    groups = [read_from(v) for v in dataset.variables.values() if "synapse" in v.dims]
    if groups and groups[0] is not None and all(group is groups[0] for group in groups):
        path = groups[0].path.removesuffix(SYNAPSE_GROUP["post"]).rstrip("/")
        root = zarr.open_group(groups[0].store, mode="r", path=path, zarr_format=3)
        return SynapseRows(dataset, root=root)
    has_matrix = "connectivity" in synapses.children
    return SynapseRows(dataset, synapses["connectivity"].to_dataset() if has_matrix else None)


def without_pairs(connectivity: xr.Dataset) -> xr.Dataset:
    """Return a connectivity Dataset without the variables that span both axes."""
    spanning = [n for n, v in connectivity.variables.items() if set(PAIR_DIMS) <= set(v.dims)]
    return connectivity.drop_vars(spanning)


def require_synapses(synapses: xr.Dataset) -> None:
    """Raise unless single synapses follow the rules of the format."""
    if not isinstance(synapses, xr.Dataset):
        raise SchemaError(f"expected a Dataset of synapses, found {type(synapses).__name__}")
    if taken := [name for name in INDEX_NAMES.values() if name in synapses.variables]:
        raise SchemaError(
            f"synapses has {taken}, positions on axes that may since have been sorted or selected, "
            "expected pre_nucleus_id and post_nucleus_id over synapse: build them with "
            "mx.build_synapses, or read them with mx.open_store"
        )
    if not {"synapse"} <= set(synapses.dims) <= {"synapse", "axis", *PAIR_DIMS}:
        raise SchemaError(
            f"synapses has the dims {tuple(synapses.dims)}, expected 'synapse' and, for positions, "
            "'axis': one row per synapse"
        )
    for name, variable in synapses.variables.items():
        if "synapse" in variable.dims[1:]:
            raise SchemaError(
                f"{name} of synapses has the dims {variable.dims}, expected 'synapse' first: use "
                ".transpose('synapse', ...) before writing"
            )
        if name in SYNAPSE_POINTER.values():
            raise SchemaError(
                f"{name!r} of synapses is the name of an array of the format: rename it with "
                ".rename before writing"
            )
    if "synapse_id" in synapses.variables:
        require_once(synapses["synapse_id"].values, "synapse_id of synapses")


def plan_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> list[PlannedGroup]:
    """Plan the rows by post and the same rows by pre, with positions on the axes in place of ids.

    Synapses between units and any other partners, which have root ids only, have no second copy.
    """
    if not set(PAIR_DIMS) & set(synapses.variables):
        return [plan_dataset(SYNAPSE_GROUP["post"], synapses)]
    require_ends(synapses)
    if connectivity is None:
        raise SchemaError(
            "synapses has pre_nucleus_id and post_nucleus_id, expected the connectivity that has "
            "them on its axes: write synapses and connectivity together"
        )
    rows = synapses.compute()
    at: dict[Compressed, np.ndarray] = {}
    axes: dict[str, xr.Variable] = {}
    for side in OTHER:
        dim, roots = f"{side}_nucleus_id", f"{side}_pt_root_id"
        labels, ids = connectivity[dim].values, rows[dim].values
        at[side] = Lookup(labels, dim).find(ids)
        if (unknown := at[side] < 0).any():
            raise SchemaError(
                f"{dim} of synapses holds {ids[unknown][0]} and {unknown.sum() - 1} others that "
                f"are not on the axis of connectivity ({labels.size} neurons): write the "
                "connectivity by which they were built, or select with mx.select_synapses"
            )
        axes[dim] = xr.Variable(dim, labels, rows[dim].attrs)
        if roots in rows.variables and roots in connectivity.coords:
            of_axis = connectivity[roots].values
            if np.array_equal(of_axis[at[side]], rows[roots].values):
                axes[roots] = xr.Variable(dim, of_axis, rows[roots].attrs)
    rows = rows.drop_vars(axes)
    rows = rows.assign({INDEX_NAMES[side]: ("synapse", index) for side, index in at.items()})
    rows = rows.assign_coords(axes)
    keys = [rows["synapse_id"].values] if "synapse_id" in rows.variables else []
    if (order := order_of(at["post"], at["pre"], *keys)) is not None:
        rows = rows.isel(synapse=order)
    plans = []
    for axis, name in INDEX_NAMES.items():
        index = rows[name].values
        counts = np.bincount(index, minlength=connectivity.sizes[f"{axis}_nucleus_id"])
        if axis == "pre":  # a stable sort keeps the rows of a neuron ordered by post, then by id
            rows = rows.isel(synapse=np.argsort(index, kind="stable"))
        copy = _with_pointer(rows, axis, np.concatenate([[0], np.cumsum(counts)]))
        plans.append(plan_dataset(SYNAPSE_GROUP[axis], copy))
    return plans


def order_of(post: np.ndarray, pre: np.ndarray, *ids: np.ndarray) -> np.ndarray | None:
    """Return the order of rows by post, then pre, then id; None if they are in it."""
    equal = np.ones(max(post.size - 1, 0), dtype=bool)
    rises = ~equal
    for key in (post, pre, *ids):
        rises |= equal & (key[1:] > key[:-1])
        equal &= key[1:] == key[:-1]
    return None if (rises | equal).all() else np.lexsort([*ids, pre, post])


def plan_rows(
    path: str,
    n: int,
    columns: Mapping[str, str],
    release: tuple[str, int],
    *,
    space: Space,
    positions: bool,
    attrs: Mapping[str, Any],
    labels: Mapping[str, Any] | None = None,
    pointer: tuple[Compressed, np.ndarray] | None = None,
) -> PlannedGroup:
    """Plan `n` rows of single synapses to append; `columns` maps names to dtypes."""
    # Only shapes matter for planning; broadcasting takes no memory.
    template = xr.Dataset(
        {
            name: ("synapse", np.broadcast_to(np.dtype(dtype).type(), n))
            for name, dtype in columns.items()
        },
        labels,
        dict(attrs),
    )
    template["size"].attrs["units"] = space.size_units
    if positions:
        empty = np.broadcast_to(np.float64(0), (n, len(AXES)))
        template["position"] = (("synapse", "axis"), empty, space.attrs("centre of the synapse"))
        template = template.assign_coords(axis=("axis", np.array(AXES, dtype=object)))
    if pointer is not None:
        template = _with_pointer(template, *pointer)
    template = stamp_release(with_labels(template), *release)
    return plan_dataset(path, template, appended="synapse")


def _with_pointer(rows: xr.Dataset, axis: Compressed, indptr: np.ndarray) -> xr.Dataset:
    attrs = {"long_name": f"first synapse of each {axis}synaptic neuron, and their end"}
    pointer = xr.Variable(f"{axis}_pointer", indptr.astype(np.int64, copy=False), attrs)
    return rows.assign({SYNAPSE_POINTER[axis]: pointer})
