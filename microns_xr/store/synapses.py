"""Single synapses: read rows of a Dataset or of a store, and plan how a store holds them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr

from microns_xr.connectivity.arrays import PAIR_DIMS, ROOT_IDS, Compressed
from microns_xr.errors import MicronsXrError, SchemaError, StoreFormatError, UnknownLabelError
from microns_xr.frames import Space
from microns_xr.provenance import stamp_release
from microns_xr.schema import AXES
from microns_xr.store.format import (
    INDEX_NAMES,
    MATRIX_GROUP,
    SYNAPSE_CHUNK,
    SYNAPSE_GROUP,
    SYNAPSE_POINTER,
    pointer_problem,
)
from microns_xr.store.locate import Address, read_values
from microns_xr.store.open import lazy_variable, open_root, read_from, read_group
from microns_xr.store.stream import PlannedGroup, plan_dataset
from microns_xr.threads import Span


class SynapseRows:
    """Rows of single synapses, which are read in pieces from a store or from lazy variables."""

    def __init__(
        self, dataset: xr.Dataset, matrix: xr.Dataset | None = None, root: zarr.Group | None = None
    ) -> None:
        if "synapse" not in dataset.dims:
            raise SchemaError(
                f"synapses has the dims {tuple(dataset.dims)}, expected 'synapse': one row per "
                "synapse, as returned by mx.build_synapses"
            )
        self.n = dataset.sizes["synapse"]
        self.chunk = SYNAPSE_CHUNK  # rows to read together
        # The store that holds the rows, None for rows of a Dataset.
        self._root = root
        if root is not None:
            index = root.get(f"{SYNAPSE_GROUP['post']}/{INDEX_NAMES['post']}")
            if not isinstance(index, zarr.Array):
                raise StoreFormatError(
                    f"{root.store_path} no longer holds the synapses that were opened: the store "
                    "was replaced, open it again"
                )
            self.chunk = max(SYNAPSE_CHUNK, index.chunks[0])
        self._matrix = None if matrix is None else without_pairs(matrix)
        # nucleus ids of the axes along which ``pre_index`` and ``post_index`` count
        self.labels: dict[Compressed, np.ndarray] = {}
        # root ids along these axes, where the synapses have them
        self.roots: dict[str, xr.Variable] = {}
        self.columns = {
            str(name): variable.transpose("synapse", ...)
            for name, variable in dataset.variables.items()
            if "synapse" in variable.dims
        }
        self.coords = set(self.columns) & set(dataset.coords)
        frame = dataset.drop_dims("synapse")
        for side, index_name in INDEX_NAMES.items():
            axis = f"{side}_nucleus_id"
            of_rows = self.columns.pop(axis, None)
            if of_rows is not None:
                self.labels[side], positions = np.unique(of_rows.values, return_inverse=True)
                self.columns[index_name] = xr.Variable("synapse", positions.astype(np.int32))
                continue
            # Early stores have no axes in the group of synapses.
            holder = frame if axis in frame.variables else self.matrix()
            if index_name not in self.columns or holder is None:
                raise SchemaError(
                    f"synapses has no {axis}, found {sorted(map(str, dataset.variables))}: build "
                    "it with mx.build_synapses, or pass the opened store, which holds the axes"
                )
            self.labels[side] = holder[axis].values
        # all other variables, and the attributes
        self.roots = {n: frame[n].variable for n in ROOT_IDS if n in frame.variables}
        self.frame = frame.drop_dims(PAIR_DIMS, errors="ignore")

    def read(self, name: str, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return rows of one variable, ordered by post or by pre."""
        columns = self.columns if by == "post" else self._by_pre
        return np.asarray(columns[name][start:stop].values)

    def index(self, side: Compressed, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return the positions of the neurons of some rows on their axis."""
        positions = self.read(INDEX_NAMES[side], start, stop, by)
        n = self.labels[side].size
        if positions.size and not 0 <= positions.min() <= positions.max() < n:
            raise self.broken(
                f"{INDEX_NAMES[side]} runs from {positions.min()} to {positions.max()}, expected 0 "
                f"to {n - 1} ({n} {side}synaptic neurons)"
            )
        return positions

    def matrix(self) -> xr.Dataset | None:
        """Return the connectivity that labels the synapses, without pairs; None if not known."""
        if self._matrix is None and self._root is not None:
            for group in MATRIX_GROUP.values():
                if group in self._root:
                    return without_pairs(read_group(self._root, group, lazy=True))
        return self._matrix

    def spans(self, by: Compressed, positions: np.ndarray) -> list[Span] | None:
        """Return the spans of the rows of some neurons; None if all rows must be read."""
        name = f"{SYNAPSE_GROUP[by]}/{SYNAPSE_POINTER[by]}"
        array = None if self._root is None else self._root.get(name)
        if not isinstance(array, zarr.Array):
            return None
        indptr = read_values(array)
        if problem := pointer_problem(indptr, self.labels[by].size, self.n):
            raise self.broken(f"{name} {problem}")
        starts, stops = indptr[positions].tolist(), indptr[positions + 1].tolist()
        return [span for span in zip(starts, stops, strict=True) if span[0] < span[1]]

    def broken(self, what: str) -> MicronsXrError:
        """Return the error to raise for inconsistent rows."""
        if self._root is None:
            return SchemaError(f"synapses: {what}; build them with mx.build_synapses")
        return StoreFormatError(
            f"{self._root.store_path}/synapses: {what}; the store is damaged, write it again"
        )

    @cached_property
    def _by_pre(self) -> dict[str, xr.Variable]:
        """Variables with their rows ordered by pre."""
        group: Any = self._root[SYNAPSE_GROUP["pre"]]  # type: ignore[index]
        variables = {n: lazy_variable(group, n, v.dims) for n, v in self.columns.items()}
        for name, variable in variables.items():
            if variable.shape[0] != self.n:
                raise self.broken(
                    f"{name} has {variable.shape[0]} rows by pre, expected {self.n} as by post"
                )
        return variables


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
    if groups[0] is not None and all(group is groups[0] for group in groups):
        path = groups[0].path.removesuffix(SYNAPSE_GROUP["post"]).rstrip("/")
        root = zarr.open_group(groups[0].store, mode="r", path=path, zarr_format=3)
        return SynapseRows(dataset, root=root)
    has_matrix = "connectivity" in synapses.children
    return SynapseRows(dataset, synapses["connectivity"].to_dataset() if has_matrix else None)


def without_pairs(connectivity: xr.Dataset) -> xr.Dataset:
    """Return a connectivity Dataset without the variables that span both axes."""
    spanning = [n for n, v in connectivity.variables.items() if set(PAIR_DIMS) <= set(v.dims)]
    return connectivity.drop_vars(spanning)


def require_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> None:
    """Raise unless single synapses follow the rules of the format."""
    if not isinstance(synapses, xr.Dataset):
        raise SchemaError(f"expected a Dataset of synapses, found {type(synapses).__name__}")
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
    # Synapses between units and any other partners have root ids instead.
    indexes = [name for name in INDEX_NAMES.values() if name in synapses.variables]
    if not indexes:
        return
    if connectivity is None or len(indexes) < 2:
        raise SchemaError(
            "synapses has pre_index or post_index, expected both, and the connectivity whose axes "
            "they refer to: write synapses and connectivity together"
        )
    for axis in PAIR_DIMS:
        labels = synapses.variables.get(axis)
        if labels is not None and not np.array_equal(labels.values, connectivity[axis].values):
            raise SchemaError(
                f"{axis} of synapses differs from that of connectivity ({labels.size} and "
                f"{connectivity.sizes[axis]} neurons), expected the axes by which synapses "
                "were labelled: build both from the same units"
            )
    for name in indexes:
        index = synapses[name].values
        n = connectivity.sizes[f"{name.removesuffix('_index')}_nucleus_id"]
        if index.dtype.kind not in "iu" or (index.size and not 0 <= index.min() <= index.max() < n):
            raise SchemaError(
                f"{name} of synapses is {index.dtype} from {index.min()} to {index.max()}, "
                f"expected integers from 0 to {n - 1}, positions on the axis of connectivity"
            )
    post, pre = synapses["post_index"].values, synapses["pre_index"].values
    falls = (post[1:] < post[:-1]) | ((post[1:] == post[:-1]) & (pre[1:] < pre[:-1]))
    if falls.any():
        raise SchemaError(
            f"synapses does not ascend at row {int(np.argmax(falls)) + 1}, expected rows by "
            "post_index, then pre_index: use .sortby(['post_index', 'pre_index'])"
        )


def plan_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> list[PlannedGroup]:
    """Plan the rows by post and, if they have pre_index, the same rows by pre."""
    if connectivity is None or "pre_index" not in synapses.variables:
        return [plan_dataset(SYNAPSE_GROUP["post"], synapses)]
    rows = synapses.compute()
    plans = []
    for axis, name in INDEX_NAMES.items():
        index = rows[name].values
        counts = np.bincount(index, minlength=connectivity.sizes[f"{axis}_nucleus_id"])
        if axis == "pre":  # a stable sort keeps the rows of a neuron ordered by post, then by id
            rows = rows.isel(synapse=np.argsort(index, kind="stable"))
        copy = _with_pointer(rows, axis, np.concatenate([[0], np.cumsum(counts)]))
        plans.append(plan_dataset(SYNAPSE_GROUP[axis], copy))
    return plans


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
    long_names: Mapping[str, str] | None = None,
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
    for name, text in (long_names or {}).items():
        template[name].attrs["long_name"] = text
    if positions:
        empty = np.broadcast_to(np.float64(0), (n, len(AXES)))
        template["position"] = (("synapse", "axis"), empty, space.attrs("centre of the synapse"))
        template = template.assign_coords(axis=("axis", np.array(AXES, dtype=object)))
    if pointer is not None:
        template = _with_pointer(template, *pointer)
    return plan_dataset(path, stamp_release(template, *release), appended="synapse")


def plan_copy_rows(
    compressed: Compressed,
    indptr: np.ndarray,
    labels: Mapping[str, Any],
    release: tuple[str, int],
    *,
    space: Space,
    positions: bool,
    attrs: Mapping[str, Any],
) -> PlannedGroup:
    """Plan rows by post or by pre to append, with pointers to the rows of each neuron."""
    dtypes = {"synapse_id": "int64", "pre_index": "int32", "post_index": "int32", "size": "int64"}
    return plan_rows(
        SYNAPSE_GROUP[compressed],
        int(indptr[-1]),
        dtypes,
        release,
        space=space,
        positions=positions,
        attrs=attrs,
        labels=labels,
        pointer=(compressed, indptr),
    )


def _with_pointer(rows: xr.Dataset, axis: Compressed, indptr: np.ndarray) -> xr.Dataset:
    attrs = {"long_name": f"first synapse of each {axis}synaptic neuron, and their end"}
    pointer = xr.Variable(f"{axis}_pointer", indptr.astype(np.int64, copy=False), attrs)
    return rows.assign({SYNAPSE_POINTER[axis]: pointer})
