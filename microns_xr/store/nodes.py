"""Groups and arrays of a store, checked by the rules of the format, without xarray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr
import zarr.errors

from microns_xr.errors import SchemaError, SourceError, StoreFormatError
from microns_xr.provenance import RELEASE_COORDS, plain_attrs
from microns_xr.schema import PAIR_DIMS, require_unique_sorted
from microns_xr.store.format import (
    CHECKSUMS_ATTR,
    COORDS_ATTR,
    DATA_ATTR,
    DATA_GROUPS,
    FORMAT,
    FORMAT_ATTR,
    ID_ATTR,
    INDEX_NAMES,
    MATRIX_GROUP,
    OTHER,
    SYNAPSE_POINTER,
    VARIABLES_ATTR,
    WEIGHT_DTYPES,
    matrix_arrays,
    matrix_attrs,
    pointer_problem,
    reserved_attrs,
)
from microns_xr.store.locate import Address, map_reads, read_span, read_values, readable

if TYPE_CHECKING:
    from microns_xr.connectivity.arrays import Compressed

# The attribute ``counts`` of a ``synapse_count`` that earlier versions wrote where each was 1
# because synapses were not counted.
_NOT_COUNTED = "rows of a table with one row per pair"


def open_root(path: Address, storage_options: Mapping[str, Any] | None = None) -> zarr.Group:
    """Open the root group of a store for reading, and check its format."""
    store = readable(path, storage_options)
    try:
        root = zarr.open_group(store, mode="r", zarr_format=3)
    except SourceError:
        raise
    # TypeError: metadata with a key that zarr does not know.
    except (zarr.errors.NodeTypeValidationError, OSError, ValueError, TypeError) as err:
        raise StoreFormatError(
            f"there is no store at {store.address}: expected the path or URL of a store from "
            f"mx.write_store ({type(err).__name__}: {err})"
        ) from err
    version = root.attrs.get(FORMAT_ATTR)
    if isinstance(version, bool) or not isinstance(version, int):
        raise StoreFormatError(
            f"{store.address} is a zarr group but not a finished microns_xr store: its attribute "
            f"{FORMAT_ATTR!r} is {version!r}, expected {FORMAT}; open it with xr.open_zarr, or "
            "write the store again"
        )
    if not 1 <= version <= FORMAT:
        raise StoreFormatError(
            f"{store.address} has format {version}, expected 1 to {FORMAT}: a newer microns_xr "
            "wrote it, update the package"
        )
    return root


def root_attrs(root: zarr.Group) -> dict[Any, Any]:
    """Return the attributes that a store states about its data."""
    attrs = root.attrs.asdict()
    return plain_attrs({k: v for k, v in attrs.items() if k not in (CHECKSUMS_ATTR, ID_ATTR)})


def groups_of(root: zarr.Group) -> list[str]:
    """Return the names of the groups of data in a store."""
    return [name for name in DATA_GROUPS if node_of(root, name) is not None]


def groups_of_release(root: zarr.Group, path: Address) -> list[str]:
    """Return the names of the groups of data, or raise if the units are not among them."""
    names = groups_of(root)
    if "units" not in names:
        raise StoreFormatError(
            f"{path} has no group 'units', found {names}: the store is damaged, write it again"
        )
    return names


@contextmanager
def one_store(root: zarr.Group) -> Iterator[None]:
    """Raise if what is read in the block does not all come from the store that was opened."""
    # Lazy variables check again whenever they are read, since new pairs would be assigned to the
    # old neurons.
    try:
        yield
    except SourceError:
        raise
    except Exception:
        require_unchanged(root, read_root=True)  # the more likely cause
        raise
    require_unchanged(root, read_root=True)


def require_unchanged(group: zarr.Group, read_root: bool = False) -> None:
    """Raise if the store of a group is no longer the one that was opened."""
    store: Any = group.store
    store.require_unchanged(read_root)


def require_stated_release(root: zarr.Group, name: str, coords: Mapping[Any, Any]) -> None:
    """Raise unless coordinates and attributes state the same release (rule 4)."""
    for key in set(RELEASE_COORDS) & set(coords):
        value = coords[key].item()
        for node in (root, _group(root, name)):
            stated = node.attrs.get(key, value)
            if stated != value:
                raise damaged(
                    root,
                    f"{key} of {name} is {value!r}, but an attribute of "
                    f"{node.path or 'the root'!r} says {stated!r}",
                )


def _group(root: zarr.Group, name: str) -> zarr.Group:
    node = node_of(root, name)
    if not isinstance(node, zarr.Group):
        raise damaged(root, f"the group {name!r} is missing")
    return node


def _arrays(group: zarr.Group, names: list[str]) -> dict[str, zarr.Array]:
    arrays = map_reads(group, lambda name: array_of(group, name), names)
    return dict(zip(names, arrays, strict=True))


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    node = node_of(group, name)
    if not isinstance(node, zarr.Array):
        require_unchanged(group)
        raise damaged(group, f"the array {name!r} is missing, expected {_variables(group)}")
    return node


def node_of(group: zarr.Group, name: str) -> zarr.Group | zarr.Array | None:
    try:
        node = group.get(name)
        if node is not None:
            node.attrs.asdict()  # zarr takes any JSON
        return node
    except StoreFormatError:
        raise
    except (ValueError, KeyError, TypeError) as err:
        raise damaged(group, f"the metadata of {name!r} cannot be read ({err})") from err


def _variables(group: zarr.Group) -> list[str]:
    names = group.attrs.get(VARIABLES_ATTR)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(group, f"attribute {VARIABLES_ATTR!r} is {names!r}, expected a list of names")
    return names


def _dims(group: zarr.Group, name: str, array: zarr.Array) -> tuple[str, ...]:
    dims = getattr(array.metadata, "dimension_names", None) or ()
    if len(dims) != array.ndim or None in dims:
        raise damaged(group, f"{name} has the dimension names {dims}, expected {array.ndim}")
    return dims


def damaged(group: zarr.Group, what: str) -> StoreFormatError:
    return StoreFormatError(
        f"{group.store_path}: {what}; the store is damaged or was not written by microns_xr, "
        "write it again"
    )


def _weights(group: zarr.Group, arrays: Mapping[str, zarr.Array]) -> dict[str, str]:
    """Return the array of each weight, in the order of the store."""
    patterns = {key for axis in OTHER for key in matrix_arrays(axis)} - {"data"}
    names = {"data": group.attrs.get(DATA_ATTR, "synapse_size")}
    return {
        str(names.get(key, key)): key
        for key, array in arrays.items()
        if key not in patterns
        and _dims(group, key, array) == ("connection",)
        and array.attrs.get("counts") != _NOT_COUNTED
    }


def wide_dtype(array: zarr.Array) -> np.dtype:
    """Return the dtype of weights in memory: int64 even if int32 on disk, as sums may overflow."""
    return np.dtype(np.float64 if array.dtype.kind == "f" else np.int64)


def _matrix_shape(
    group: zarr.Group, arrays: dict[str, zarr.Array], compressed: Compressed
) -> tuple[int, int]:
    """Check the metadata of one copy before reading; return the numbers of pre and of post."""
    specs = matrix_arrays(compressed)
    missing = [key for key in specs if key not in arrays]
    if missing:
        raise damaged(group, f"the arrays {missing} are missing, expected {list(specs)}")
    weights = _weights(group, arrays)
    for key in weights.values():
        specs[key] = (WEIGHT_DTYPES, ("connection",))
    for key, (dtypes, dims) in specs.items():
        dtype, over = str(arrays[key].dtype), _dims(group, key, arrays[key])
        if dtype not in dtypes.split() or over != dims:
            expected = dtypes.replace(" ", " or ")
            raise damaged(group, f"{key} is {dtype} over {over}, expected {expected} over {dims}")
    n_pre, n_post = (arrays[axis].shape[0] for axis in PAIR_DIMS)
    n_pairs = arrays["indices"].shape[0]
    lengths = dict.fromkeys((*weights.values(), INDEX_NAMES[compressed]), n_pairs)
    lengths["indptr"] = (n_post if compressed == "post" else n_pre) + 1
    for key, length in lengths.items():
        if arrays[key].shape[0] != length:
            n = arrays[key].shape[0]
            raise damaged(group, f"{key} has {n} elements, expected {length}")
    for key, value in matrix_attrs(compressed, (n_pre, n_post)).items():
        if group.attrs.get(key) != value:
            raise damaged(
                group, f"attribute {key!r} is {group.attrs.get(key)!r}, expected {value!r}"
            )
    return n_pre, n_post


class Contents(NamedTuple):
    """A group whose metadata are checked, with the values that opening it needs."""

    group: zarr.Group
    arrays: Mapping[str, zarr.Array]
    dims: dict[str, tuple[str, ...]]
    sizes: dict[str, int]  # of the dims
    values: dict[str, np.ndarray]
    coords: set[str]  # names of the coordinates
    attrs: dict[Any, Any]  # of the data


def read_contents(root: zarr.Group, name: str, *, lazy: bool = True) -> Contents:
    """Read a group without pairs; if lazy only its labels and scalars, which are small."""
    group = _group(root, name)
    names = [n for n in _variables(group) if n not in SYNAPSE_POINTER.values()]
    return _read(group, _arrays(group, names), lazy)


def _read(group: zarr.Group, arrays: Mapping[str, zarr.Array], lazy: bool) -> Contents:
    dims = {name: _dims(group, name, array) for name, array in arrays.items()}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        for dim, n in zip(dims[name], array.shape, strict=True):
            if sizes.setdefault(dim, n) != n:
                raise damaged(group, f"{name} has {n} elements over {dim}, expected {sizes[dim]}")
    now = [name for name in arrays if not lazy or dims[name] in ((), (name,))]
    values = map_reads(group, lambda name: read_values(arrays[name]), now)
    attrs = group.attrs.asdict()
    reserved = reserved_attrs(group.path)
    return Contents(
        group,
        arrays,
        dims,
        sizes,
        dict(zip(now, values, strict=True)),
        set(str(attrs.get(COORDS_ATTR, "")).split()),
        plain_attrs({key: value for key, value in attrs.items() if key not in reserved}),
    )


def read_matrix(
    root: zarr.Group, compressed: Compressed, *, lazy: bool = True
) -> tuple[StoredPairs, dict[str, zarr.Array], Contents]:
    """Return the pairs of one copy of the connectivity, its arrays, and all but its pairs."""
    path, other = MATRIX_GROUP[compressed], MATRIX_GROUP[OTHER[compressed]]
    group = node_of(root, path)
    if group is None and other in root:
        raise StoreFormatError(
            f"{root.store_path} has no group {path!r}, only {other!r}: "
            f"open it with compressed={OTHER[compressed]!r}"
        )
    if not isinstance(group, zarr.Group):
        group = _group(root, path)  # raises
    arrays = _arrays(group, _variables(group))
    shape = _matrix_shape(group, arrays, compressed)
    weights = _weights(group, arrays)
    read = {key: arrays[key] for key in ("indices", "indptr", *weights.values())}
    pairs = StoredPairs(group, compressed, shape, weights, read)
    of_pairs = set(matrix_arrays(compressed)) - set(PAIR_DIMS)
    rest = {
        key: array
        for key, array in arrays.items()
        if key not in of_pairs and _dims(group, key, array) != ("connection",)
    }
    contents = _read(group, rest, lazy)
    for key in PAIR_DIMS:
        try:
            require_unique_sorted(key, contents.values[key])
        except SchemaError as err:
            raise damaged(group, str(err)) from err
    return pairs, arrays, contents


class StoredPairs:
    """One copy of the connectivity on disk: a `microns_xr.connectivity.blocks.PairSource`."""

    def __init__(
        self,
        group: zarr.Group,
        compressed: Compressed,
        shape: tuple[int, int],
        weights: Mapping[str, str],
        arrays: Mapping[str, zarr.Array] = {},
    ) -> None:
        self.compressed = compressed
        self.weights = dict(weights)  # array of each variable
        self.shape = shape
        self._group = group
        self._arrays = dict(arrays)  # those whose metadata were read
        self._indptr: np.ndarray | None = None
        self._other: StoredPairs | None = None

    @property
    def indptr(self) -> np.ndarray:
        """Span boundaries on the compressed axis, int64; read once."""
        if self._indptr is None:
            indptr = read_values(self._array("indptr"))
            n_major = self.shape[0 if self.compressed == "pre" else 1]
            n_pairs = self._array("indices").shape[0]
            if problem := pointer_problem(indptr, n_major, n_pairs):
                raise damaged(self._group, f"indptr {problem}")
            self._indptr = indptr
        return self._indptr

    @property
    def chunk(self) -> int:
        """Number of stored pairs per chunk."""
        return int(self._array("indices").chunks[0])

    def read(
        self,
        name: str,
        start: int,
        stop: int,
        out: np.ndarray | None = None,
        threads: int | None = None,
    ) -> np.ndarray:
        """Read ``"indices"`` or the values of a variable, pairs `start` to `stop`."""
        return read_span(self._array(self.weights.get(name, name)), start, stop, out, threads)

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype in memory of a variable."""
        return wide_dtype(self._array(self.weights[name]))

    def other(self) -> StoredPairs | None:
        """Return the other copy, None where the store has only this one."""
        if self._other is None and (other := self._open_other()) is not None:
            self._other, other._other = other, self
        return self._other

    def _open_other(self) -> StoredPairs | None:
        axis, group = OTHER[self.compressed], self._group
        root = group.path.removesuffix(MATRIX_GROUP[self.compressed])
        try:
            sibling = zarr.open_group(group.store, mode="r", path=root + MATRIX_GROUP[axis])
        except (FileNotFoundError, zarr.errors.NodeTypeValidationError):
            require_unchanged(group)
            return None
        require_unchanged(group)
        other = StoredPairs(sibling, axis, self.shape, self.weights)
        expected, actual = (
            [copy._group.attrs.get("shape"), copy._array("indices").shape[0]]
            for copy in (self, other)
        )
        if expected != actual:
            raise StoreFormatError(
                f"{sibling.store_path} has shape and pairs {actual}, expected {expected} as in the "
                "other copy: the store is damaged, write it again"
            )
        return other

    @property
    def address(self) -> str:
        """Address of the group that holds the pairs."""
        return str(self._group.store_path)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StoredPairs) and self.__dask_tokenize__() == other.__dask_tokenize__()
        )

    def __hash__(self) -> int:
        return hash(self.__dask_tokenize__())

    def __dask_tokenize__(self) -> Any:
        store: Any = self._group.store
        return (type(self).__name__, str(store), store.state, self._group.path)

    def __getstate__(self) -> dict[str, Any]:
        # Without the pointers, some hundred KB: each task carries the part of them that it needs.
        return {**self.__dict__, "_indptr": None, "_other": None}

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = array_of(self._group, name)
        return self._arrays[name]
