"""What will be written: every array of a store, checked, before the first byte is.

Values stay where they are; a planned array knows how to give a block of its own, in the dtype of
the disk, so that casts and expanded indices never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sparse
import xarray as xr

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Compressed,
    Pattern,
    make_pattern,
    pair_buffers,
)
from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS
from microns_xr.store.format import (
    COORDS_ATTR,
    MATRIX_ATTRS,
    MATRIX_ENCODING,
    MATRIX_VERSION,
    OTHER,
    VARIABLES_ATTR,
    check_name,
    expanded_index,
    json_attrs,
    matrix_arrays,
    matrix_group,
    pattern_problems,
    reserved_attrs,
)
from microns_xr.store.transpose import transpose

__all__ = [
    "Pairs",
    "PlannedArray",
    "PlannedGroup",
    "pairs_of",
    "plan_dataset",
    "plan_matrix",
    "plan_parent",
    "transposed",
]

Block = Callable[[int, int], np.ndarray]
_SPARSE = ("synapse_size", "synapse_count")
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class PlannedArray:
    """One array of the store.

    Attributes
    ----------
    name : str
        Name in its group.
    dims : tuple of str
        Dimension names.
    shape : tuple of int
        Shape.
    dtype : str
        Dtype on disk; ``"string"`` for text.
    attrs : dict
        Attributes, as JSON.
    read : callable
        Gives the positions from start to stop along the first dimension.
    chunk : int or None
        Positions along the first dimension in a chunk, a divisor of ``CHUNK``, which is the
        default.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]
    read: Block
    chunk: int | None = None

    @property
    def itemsize(self) -> int:
        """Bytes an element; 1 for text, which is a stream of bytes."""
        return 1 if self.dtype == "string" else np.dtype(self.dtype).itemsize

    @property
    def fill_value(self) -> Any:
        """What an absent chunk would read as; none is ever absent."""
        return "" if self.dtype == "string" else np.dtype(self.dtype).type(0)


@dataclass(frozen=True)
class PlannedGroup:
    """One group of the store: its path, attributes and arrays in order."""

    path: str
    attrs: dict[str, Any]
    arrays: list[PlannedArray]


@dataclass(frozen=True)
class Pairs:
    """The stored pairs of a connectivity Dataset, and the dtypes they have on disk."""

    pattern: Pattern
    size: np.ndarray
    count: np.ndarray
    dtypes: tuple[str, str]


def plan_dataset(path: str, dataset: xr.Dataset) -> PlannedGroup:
    """Plan a group of dense variables.

    Raises
    ------
    SchemaError
        If a name, an attribute or a dtype has no place in a store.
    """
    arrays = _dense(dataset, dataset.variables, path)
    return PlannedGroup(path, _group_attrs(dataset, path, arrays), arrays)


def plan_parent(connectivity: xr.Dataset) -> PlannedGroup:
    """Plan the group that holds the two copies of a connectivity Dataset."""
    return PlannedGroup("connectivity", json_attrs(_release(connectivity), "connectivity"), [])


def pairs_of(connectivity: xr.Dataset) -> Pairs:
    """Take the pairs out of a connectivity Dataset and check them.

    Raises
    ------
    SchemaError
        If size and count are on different patterns, or partners are not sorted and unique.
    """
    pattern, values = pair_buffers(connectivity, _SPARSE)
    problems = pattern_problems(pattern.indices, pattern.indptr, pattern.shape, pattern.compressed)
    if problems:
        raise SchemaError(
            f"connectivity cannot be written: {'; '.join(problems)}; "
            "build it with mx.build_connectivity"
        )
    size, count = (values[name] for name in _SPARSE)
    return Pairs(pattern, size, count, (_narrowest(size), _narrowest(count)))


def transposed(pairs: Pairs) -> Pairs:
    """Return the same pairs compressed over the other axis, values in the dtypes of the disk."""
    pattern = pairs.pattern
    indices, indptr, size, count = transpose(
        pattern.indices, pattern.indptr, pattern.n_minor, pairs.size, pairs.count, pairs.dtypes
    )
    flipped = make_pattern(indices, indptr, pattern.shape, OTHER[pattern.compressed])
    return Pairs(flipped, size, count, pairs.dtypes)


def plan_matrix(connectivity: xr.Dataset, pairs: Pairs) -> PlannedGroup:
    """Plan the copy of a connectivity Dataset that is compressed as `pairs` are.

    Raises
    ------
    SchemaError
        If a further variable spans both axes or takes the name of an array of the format, or see
        `plan_dataset`.
    """
    pattern, major = pairs.pattern, pairs.pattern.compressed
    path = matrix_group(major)
    extra = [name for name in connectivity.variables if name not in (*_SPARSE, *PAIR_DIMS)]
    for name in extra:
        if set(PAIR_DIMS) <= set(connectivity[name].dims):
            raise SchemaError(
                f"{name!r} of connectivity spans both axes, expected only synapse_size and "
                "synapse_count to: take it out with .drop_vars before writing"
            )
        if any(name in matrix_arrays(axis) for axis in OTHER):
            raise SchemaError(
                f"{name!r} of connectivity is the name of an array of the format: rename it with "
                ".rename before writing"
            )
    size_attrs, count_attrs = (
        json_attrs(connectivity[name].attrs, f"{name} of connectivity") for name in _SPARSE
    )
    size_dtype, count_dtype = pairs.dtypes
    starts = {"long_name": f"first connection of each {major}synaptic neuron, and their end"}
    buffers: list[tuple[str, str, dict[str, Any], int, Block]] = [
        ("data", size_dtype, size_attrs, pattern.nnz, _cast(pairs.size, size_dtype)),
        ("indices", "int32", _position(OTHER[major]), pattern.nnz, _cast(pattern.indices, "int32")),
        ("indptr", "int64", starts, pattern.indptr.size, _cast(pattern.indptr, "int64")),
        ("synapse_count", count_dtype, count_attrs, pattern.nnz, _cast(pairs.count, count_dtype)),
        (
            f"{major}_index",
            "int32",
            _position(major),
            pattern.nnz,
            lambda start, stop: expanded_index(pattern.indptr, start, stop),
        ),
    ]
    dims = {name: dims for name, (_, dims) in matrix_arrays(major).items()}
    arrays = [
        PlannedArray(name, dims[name], (length,), dtype, attrs, read)
        for name, dtype, attrs, length, read in buffers
    ]
    arrays += _dense(connectivity, [*PAIR_DIMS, *extra], "connectivity")
    encoding = (MATRIX_ENCODING[major], MATRIX_VERSION, list(pattern.shape))
    attrs = _group_attrs(connectivity, path, arrays)
    return PlannedGroup(path, attrs | dict(zip(MATRIX_ATTRS, encoding, strict=True)), arrays)


def _dense(dataset: xr.Dataset, names: Iterable[Hashable], where: str) -> list[PlannedArray]:
    return [_dense_array(check_name(name, where), dataset.variables[name], where) for name in names]


def _dense_array(name: str, variable: xr.Variable, where: str) -> PlannedArray:
    label = f"{name} of {where}"
    if isinstance(variable, xr.IndexVariable) and isinstance(variable.to_index(), pd.MultiIndex):
        raise SchemaError(f"{label} is a MultiIndex: use .reset_index({name!r}) before writing")
    data = variable.values if isinstance(variable, xr.IndexVariable) else variable.compute().data
    if isinstance(data, sparse.SparseArray):
        raise SchemaError(
            f"{label} is sparse, expected a dense array: take it out with .drop_vars before writing"
        )
    values = np.asarray(data)
    dtype = values.dtype.name
    if values.dtype.kind in "OUT":
        values = values.astype(object)
        dtype = "string"
        found = pd.api.types.infer_dtype(values.ravel(), skipna=False)
        if found not in ("string", "empty"):
            raise SchemaError(
                f"{label} holds {found} objects, expected text in every place: use words such as "
                "'none' or 'unknown' where there is no value, and plain dtypes for numbers"
            )
    elif values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise SchemaError(
            f"{label} has dtype {values.dtype}, expected integers, floats, booleans or text: "
            "convert it before writing"
        )
    dims = tuple(check_name(dim, where) for dim in variable.dims)
    attrs = json_attrs(variable.attrs, label)
    return PlannedArray(name, dims, values.shape, dtype, attrs, _rows(values))


def _group_attrs(dataset: xr.Dataset, path: str, arrays: list[PlannedArray]) -> dict[str, Any]:
    release = _release(dataset)
    given = dict(dataset.attrs)
    given.pop(VARIABLES_ATTR, None)  # left by a plain reader, and made anew
    for name in reserved_attrs(path):
        # So are copies of the release; any other value would be lost on the way.
        if name in given and given.pop(name) != release.get(name):
            raise SchemaError(
                f"attribute {name!r} of {path} is reserved by the format: rename it before writing"
            )
    names = [array.name for array in arrays]
    return {
        **json_attrs(given, path),
        **json_attrs(release, path),
        COORDS_ATTR: " ".join(name for name in names if name in dataset.coords),
        VARIABLES_ATTR: names,
    }


def _release(dataset: xr.Dataset) -> dict[str, Any]:
    coords = dataset.coords
    return {name: coords[name].item() for name in RELEASE_COORDS if name in coords}


def _position(axis: Compressed) -> dict[str, Any]:
    return {"long_name": f"position of the {axis}synaptic neuron in {axis}_nucleus_id"}


def _rows(values: np.ndarray) -> Block:
    return lambda start, stop: values[start:stop] if values.ndim else values


def _cast(values: np.ndarray, dtype: str) -> Block:
    return lambda start, stop: values[start:stop].astype(dtype, copy=False)


def _narrowest(values: np.ndarray) -> str:
    if values.size and not _INT32.min <= values.min() <= values.max() <= _INT32.max:
        return "int64"
    return "int32"
