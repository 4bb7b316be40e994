"""What will be written of single synapses: the rows by post, and the same rows by pre."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
import zarr

from microns_xr.connectivity.arrays import PAIR_DIMS, Compressed
from microns_xr.errors import SchemaError, StoreFormatError, UnknownLabelError
from microns_xr.provenance import stamp_release
from microns_xr.schema import AXES, VOXEL_UNITS
from microns_xr.store.format import (
    OTHER,
    SYNAPSE_CHUNK,
    SYNAPSE_GROUP,
    SYNAPSE_POINTER,
    VARIABLES_ATTR,
    matrix_group,
)
from microns_xr.store.locate import Address, read_values
from microns_xr.store.open import lazy_root, lazy_variable, open_root, read_from, read_group
from microns_xr.store.stream import Block, PlannedArray, PlannedGroup, plan_dataset

# Single synapses row by row, from memory or from a store, of which only what is asked is read.


Span = tuple[int, int]


@dataclass(frozen=True)
class Column:
    """A variable over ``synapse``: its dims, its attributes, whether it is a coordinate."""

    dims: tuple[str, ...]
    attrs: dict[str, Any]
    is_coord: bool


class SynapseRows(ABC):
    """Rows of single synapses."""

    n: int
    columns: dict[str, Column]
    frame: xr.Dataset  # all other variables, and the attributes
    labels: dict[Compressed, np.ndarray]  # what ``pre_index`` and ``post_index`` count along
    chunk: int = SYNAPSE_CHUNK  # rows that are best read together

    @abstractmethod
    def read(self, name: str, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return rows of one variable, in the order of one of the copies."""

    @abstractmethod
    def matrix(self) -> xr.Dataset | None:
        """Return the connectivity they were labelled by, without its pairs, where it is known."""

    @abstractmethod
    def broken(self, what: str) -> Exception:
        """Return the error that says so."""

    def index(self, side: Compressed, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return the positions of the neurons of some rows on their axis."""
        found = self.read(INDEX_NAMES[side], start, stop, by)
        n = self.labels[side].size
        if found.size and not 0 <= found.min() <= found.max() < n:
            raise self.broken(
                f"{INDEX_NAMES[side]} runs from {found.min()} to {found.max()}, expected 0 to "
                f"{n - 1} ({n} {side}synaptic neurons)"
            )
        return found

    def spans(self, by: Compressed, positions: np.ndarray) -> list[Span] | None:
        """Return where the rows of some neurons are; None where it takes a look at all rows."""
        return None


class HeldSynapses(SynapseRows):
    """Rows of a Dataset; lazy variables are read piece by piece."""

    def __init__(self, dataset: xr.Dataset, matrix: xr.Dataset | None = None) -> None:
        if "synapse" not in dataset.dims:
            raise SchemaError(
                f"synapses has the dims {tuple(dataset.dims)}, expected 'synapse': one row a "
                "synapse, as mx.build_synapses makes it"
            )
        self.n = dataset.sizes["synapse"]
        self._matrix = None if matrix is None else without_pairs(matrix)
        self.labels = {}
        self._held = {
            str(name): variable.transpose("synapse", ...)
            for name, variable in dataset.variables.items()
            if "synapse" in variable.dims
        }
        frame = dataset.drop_dims("synapse")
        for side, index in INDEX_NAMES.items():
            axis = f"{side}_nucleus_id"
            of_rows = self._held.pop(axis, None)
            if of_rows is not None:
                self.labels[side], found = np.unique(of_rows.values, return_inverse=True)
                self._held[index] = xr.Variable("synapse", found.astype(np.int32))
            elif index in self._held and (axis in frame.variables or matrix is not None):
                holder = frame if axis in frame.variables else matrix
                self.labels[side] = holder[axis].values  # type: ignore[index]
            else:
                raise SchemaError(
                    f"synapses has no {axis}, found {sorted(map(str, dataset.variables))}: build "
                    "it with mx.build_synapses, or pass the opened store, which holds the axes"
                )
        self.frame = frame.drop_vars(PAIR_DIMS, errors="ignore")
        self.columns = {
            name: Column(tuple(map(str, v.dims)), dict(v.attrs), name in dataset.coords)
            for name, v in self._held.items()
        }

    def read(self, name: str, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return rows of one variable."""
        return np.asarray(self._held[name][start:stop].values)

    def matrix(self) -> xr.Dataset | None:
        """Return the connectivity that was given, without its pairs."""
        return self._matrix

    def broken(self, what: str) -> SchemaError:
        """Return the error that says so."""
        return SchemaError(f"synapses: {what}; build them with mx.build_synapses")


class StoredSynapses(SynapseRows):
    """Rows of the group ``synapses`` of a store."""

    def __init__(self, root: zarr.Group, post: xr.Dataset | None = None) -> None:
        self._root = lazy_root(root)
        if post is None:
            post = read_group(root, SYNAPSE_GROUP["post"], lazy=True)
        matrix = None if set(PAIR_DIMS) <= set(post.variables) else self.matrix()
        self._by_post = HeldSynapses(post, matrix)
        self._by_pre: dict[str, xr.Variable] = {}
        self._pre_group: Any = None
        self._lock = threading.Lock()
        self.n, self.columns = self._by_post.n, self._by_post.columns
        self.frame, self.labels = self._by_post.frame, self._by_post.labels
        index = self._root.get(f"{SYNAPSE_GROUP['post']}/{INDEX_NAMES['post']}")
        if not isinstance(index, zarr.Array):
            raise StoreFormatError(
                f"{root.store_path} no longer holds the synapses that were opened: the store was "
                "replaced, open it again"
            )
        self.chunk = max(SYNAPSE_CHUNK, index.chunks[0])

    def read(self, name: str, start: int, stop: int, by: Compressed = "post") -> np.ndarray:
        """Return rows of one variable, in the order of one of the copies."""
        try:
            if by == "post":
                return self._by_post.read(name, start, stop)
            return np.asarray(self._of_copy(name)[start:stop].values)
        except StoreFormatError:
            raise
        except (RuntimeError, ValueError, TypeError) as err:
            raise self.broken(f"{name} cannot be decoded ({err})") from err

    def matrix(self) -> xr.Dataset | None:
        """Return what the store says of the axes of its connectivity."""
        for axis in OTHER:
            if matrix_group(axis) in self._root:
                return without_pairs(read_group(self._root, matrix_group(axis), lazy=True))
        return None

    def broken(self, what: str) -> StoreFormatError:
        """Return the error that says so."""
        return StoreFormatError(
            f"{self._root.store_path}/synapses: {what}; the store is damaged, write it again"
        )

    def spans(self, by: Compressed, positions: np.ndarray) -> list[Span] | None:
        """Return where the rows of some neurons are; None where the copy or its pointer is not."""
        pointer = f"{SYNAPSE_GROUP[by]}/{SYNAPSE_POINTER[by]}"
        array = self._root.get(pointer)
        if not isinstance(array, zarr.Array):
            return None
        indptr = read_values(array)
        if (
            indptr.shape != (self.labels[by].size + 1,)
            or indptr[0] != 0
            or indptr[-1] != self.n
            or (indptr[1:] < indptr[:-1]).any()
        ):
            raise self.broken(
                f"{pointer} does not cut the {self.n} rows into spans of {self.labels[by].size} "
                "neurons"
            )
        starts, stops = indptr[positions].tolist(), indptr[positions + 1].tolist()
        return [span for span in zip(starts, stops, strict=True) if span[0] < span[1]]

    def _of_copy(self, name: str) -> xr.Variable:
        """Return a variable of the rows by pre, opened when it is first asked for."""
        with self._lock:
            if name not in self._by_pre:
                if self._pre_group is None:
                    self._pre_group = self._root[SYNAPSE_GROUP["pre"]]
                dims = self.columns[name].dims
                try:
                    variable = lazy_variable(self._pre_group, name, dims)
                except (KeyError, ValueError) as err:
                    raise self.broken(f"the rows by pre have no {name}") from err
                if variable.shape[0] != self.n:
                    raise self.broken(
                        f"{name} has {variable.shape[0]} rows by pre, expected {self.n} as by post"
                    )
                self._by_pre[name] = variable
            return self._by_pre[name]


def rows_of(synapses: xr.Dataset | xr.DataTree | Address) -> SynapseRows:
    """Return the rows of a Dataset, of an opened store, or of a store on disk."""
    if isinstance(synapses, xr.Dataset):
        return HeldSynapses(synapses)
    if not isinstance(synapses, xr.DataTree):
        return StoredSynapses(open_root(synapses))
    if "synapses" not in synapses.children:
        raise UnknownLabelError(
            f"the tree has no single synapses, found {list(synapses.children)}: write them with "
            "mx.write_store(..., synapses=...)"
        )
    held = synapses["synapses"].to_dataset()
    group = _group_of(held)
    if group is not None:  # opened lazily, and as it was
        path = group.path.removesuffix(SYNAPSE_GROUP["post"]).rstrip("/")
        root = zarr.open_group(group.store, mode="r", path=path, zarr_format=3)
        return StoredSynapses(root, held)
    has_matrix = "connectivity" in synapses.children
    return HeldSynapses(held, synapses["connectivity"].to_dataset() if has_matrix else None)


def _group_of(dataset: xr.Dataset) -> zarr.Group | None:
    """Return the group that all rows of a Dataset are still to be read from."""
    groups = [read_from(v) for v in dataset.variables.values() if "synapse" in v.dims]
    paths = {None if group is None else str(group.store_path) for group in groups}
    return groups[0] if len(paths) == 1 else None


def without_pairs(connectivity: xr.Dataset) -> xr.Dataset:
    """Return a connectivity Dataset without the variables that span both axes."""
    spanning = [n for n, v in connectivity.variables.items() if set(PAIR_DIMS) <= set(v.dims)]
    return connectivity.drop_vars(spanning)


INDEX_NAMES: dict[Compressed, str] = {"post": "post_index", "pre": "pre_index"}
POSITION_ATTRS = {"units": "µm", "long_name": "centre of the synapse, y is depth from the pia"}


def require_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> None:
    """Raise unless single synapses follow the rules of the format."""
    if not isinstance(synapses, xr.Dataset):
        raise SchemaError(f"expected a Dataset of synapses, found {type(synapses).__name__}")
    if not {"synapse"} <= set(synapses.dims) <= {"synapse", "axis", *PAIR_DIMS}:
        raise SchemaError(
            f"synapses has the dims {tuple(synapses.dims)}, expected 'synapse' and, for positions, "
            "'axis': one row a synapse"
        )
    for name, variable in synapses.variables.items():
        if "synapse" in variable.dims[1:]:
            raise SchemaError(
                f"{name} of synapses has the dims {variable.dims}, expected 'synapse' first: use "
                ".transpose('synapse', ...) before writing"
            )
    for name in SYNAPSE_POINTER.values():
        if name in synapses.variables:
            raise SchemaError(
                f"{name!r} of synapses is the name of an array of the format: rename it with "
                ".rename before writing"
            )
    names = tuple(INDEX_NAMES.values())
    if not any(name in synapses.variables for name in names):
        return
    if connectivity is None or any(name not in synapses.variables for name in names):
        raise SchemaError(
            "synapses has pre_index or post_index, expected both, and the connectivity along whose "
            "axes they count: write the two together"
        )
    for axis in PAIR_DIMS:
        own = synapses.variables.get(axis)
        if own is not None and not np.array_equal(own.values, connectivity[axis].values):
            raise SchemaError(
                f"{axis} of synapses differs from that of connectivity ({own.size} and "
                f"{connectivity.sizes[axis]} neurons), expected the axes the synapses were "
                "labelled by: build both of the same units"
            )
    for name in names:
        index = synapses[name].values
        n = connectivity.sizes[f"{name.removesuffix('_index')}_nucleus_id"]
        if index.dtype.kind not in "iu" or (index.size and not 0 <= index.min() <= index.max() < n):
            raise SchemaError(
                f"{name} of synapses is {index.dtype} from {index.min()} to {index.max()}, "
                f"expected integers from 0 to {n - 1}, positions on the axis of connectivity"
            )
    post, pre = (synapses[name].values for name in names)
    falls = (post[1:] < post[:-1]) | ((post[1:] == post[:-1]) & (pre[1:] < pre[:-1]))
    if falls.any():
        raise SchemaError(
            f"synapses does not ascend at row {int(np.argmax(falls)) + 1}, expected rows by "
            "post_index, then pre_index: use .sortby(['post_index', 'pre_index'])"
        )


def plan_synapses(synapses: xr.Dataset, connectivity: xr.Dataset | None) -> list[PlannedGroup]:
    """Plan the rows by post and, where they name their neurons, the same rows by pre."""
    if connectivity is None or "pre_index" not in synapses.variables:
        return [_in_chunks(plan_dataset(SYNAPSE_GROUP["post"], synapses))]
    groups = []
    for axis, name in INDEX_NAMES.items():
        index = synapses[name].values
        counts = np.bincount(index, minlength=connectivity.sizes[f"{axis}_nucleus_id"])
        group = _in_chunks(plan_dataset(SYNAPSE_GROUP[axis], synapses))
        if axis == "pre":  # a stable sort leaves the rows of a neuron by post, then by id
            order = np.argsort(index, kind="stable")
            group = replace(group, arrays=[_permuted(array, order) for array in group.arrays])
        groups.append(_with_pointer(group, axis, np.concatenate([[0], np.cumsum(counts)])))
    return groups


def plan_streamed_synapses(
    compressed: Compressed,
    read: Mapping[str, Block],
    indptr: np.ndarray,
    pre_ids: np.ndarray,
    post_ids: np.ndarray,
    *,
    datastack: str,
    version: int,
    attrs: Mapping[str, object] | None = None,
    position: str = "float32",
    size: str = "int32",
) -> PlannedGroup:
    """Plan rows that are too many for memory, by post or by pre."""
    dtypes = dict.fromkeys(INDEX_NAMES.values(), "int32") | {"synapse_id": "int64", "size": size}
    ids = {"pre": pre_ids, "post": post_ids}
    if set(dtypes) - set(read) or indptr.shape != (len(ids[compressed]) + 1,):
        raise SchemaError(
            f"synapses by {compressed} have {sorted(read)} and {indptr.size} pointers, expected "
            f"{sorted(dtypes)} and {len(ids[compressed]) + 1} pointers"
        )
    n = int(indptr[-1])
    # Stands for the rows while the group is planned, and takes no memory.
    template = xr.Dataset(
        {
            name: ("synapse", np.broadcast_to(np.dtype(dtypes[name]).type(), n))
            for name in ("synapse_id", "pre_index", "post_index", "size")
        },
        {f"{side}_nucleus_id": labels for side, labels in ids.items()},
        dict(attrs or {}),
    )
    template["size"].attrs["units"] = VOXEL_UNITS
    if "position" in read:
        empty = np.broadcast_to(np.dtype(position).type(), (n, len(AXES)))
        template["position"] = (("synapse", "axis"), empty, POSITION_ATTRS)
        template = template.assign_coords(axis=("axis", np.array(AXES, dtype=object)))
    template = stamp_release(template, datastack, version)
    group = _in_chunks(plan_dataset(SYNAPSE_GROUP[compressed], template))
    arrays = [replace(array, read=read.get(array.name, array.read)) for array in group.arrays]
    return _with_pointer(replace(group, arrays=arrays), compressed, indptr)


def _in_chunks(group: PlannedGroup) -> PlannedGroup:
    arrays = [
        replace(array, chunk=SYNAPSE_CHUNK) if array.dims[:1] == ("synapse",) else array
        for array in group.arrays
    ]
    return replace(group, arrays=arrays)


def _permuted(array: PlannedArray, order: np.ndarray) -> PlannedArray:
    if array.dims[:1] != ("synapse",):
        return array
    whole = array.read(0, array.shape[0])
    return replace(array, read=lambda start, stop: whole[order[start:stop]])


def _with_pointer(group: PlannedGroup, axis: Compressed, indptr: np.ndarray) -> PlannedGroup:
    values = indptr.astype(np.int64, copy=False)
    pointer = PlannedArray(
        SYNAPSE_POINTER[axis],
        (f"{axis}_pointer",),
        values.shape,
        "int64",
        {"long_name": f"first synapse of each {axis}synaptic neuron, and their end"},
        lambda start, stop: values[start:stop],
    )
    names = [*group.attrs[VARIABLES_ATTR], pointer.name]
    return PlannedGroup(group.path, group.attrs | {VARIABLES_ATTR: names}, [*group.arrays, pointer])
