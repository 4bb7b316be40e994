"""A sparse array over two axes of neurons that answers what xarray, numpy and dask ask of it.

pydata-sparse has no fast selection, reduction or contraction of `sparse.GCXS`, and its results are
often GCXS with unsorted pairs, on which further selections are wrong. `PairArray` is a GCXS whose
operations run on the kernels of this package. Reductions give dense arrays.
"""

from __future__ import annotations

import copy
import html
import math
import operator
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import sparse

from microns_xr.connectivity import reduce
from microns_xr.connectivity.kernels import arrange, contract_buffers
from microns_xr.connectivity.sort import Rule, select_pairs, take_values, transpose_pattern
from microns_xr.errors import SchemaError
from microns_xr.schema import EXACT

# Up to this size, 128 MB of float64, an array becomes dense where one is asked for, as for a plot.
MAX_DENSE_CELLS = 1 << 24
MAX_CELLS_ON_REQUEST = 1 << 31
_INT32_MAX = np.iinfo(np.int32).max


def index_dtype(n_pairs: int) -> type[np.signedinteger[Any]]:
    """Return the dtype of the boundaries of spans."""
    # Mixed index widths make scipy and sparse upcast the large array: 687 against 288 ms at 30 M.
    return np.int32 if n_pairs <= _INT32_MAX else np.int64


def same_pairs(first: Any, other: Any) -> bool:
    """Whether two arrays or patterns, compressed over one axis, store the same pairs."""
    if first.shape != other.shape or first.nnz != other.nnz:
        return False
    buffers = ((first.indptr, other.indptr), (first.indices, other.indices))
    # Arrays that were built together share their buffers, which need no comparison.
    return all(x is y or np.array_equal(x, y) for x, y in buffers)


# Where one of the operands of these is not stored there is no connection, whatever the other is.
_PRODUCTS = (np.multiply, np.true_divide, np.floor_divide, np.remainder)


class _Pairs(NamedTuple):
    """Stored pairs whose spans lie along the axis in question, with the cells of each span."""

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    n: Any  # the length of the axis, or one number for each span


class PairArray(sparse.GCXS):
    """A `sparse.GCXS` over two axes, compressed over one of them.

    The pairs of a neuron are ascending and unique. Results on the same pairs share ``indices`` and
    ``indptr``, which must not be written to.
    """

    def __init__(self, *args: Any, dtype: Any = None, **kwargs: Any) -> None:
        if dtype is not None:  # flox makes an empty array of the type of the blocks
            raise TypeError(
                "flox cannot group sparse blocks: group within "
                "`with xarray.set_options(use_flox=False):`, or use mx.group_connectivity"
            )
        super().__init__(*args, **kwargs)

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        indices: np.ndarray,
        indptr: np.ndarray,
        *,
        shape: tuple[int, int],
        axis: Literal[0, 1],
        fill_value: Any = 0,
    ) -> PairArray:
        """Make an array of sorted buffers, without the checks of the constructor."""
        self = cls.__new__(cls)
        self.data, self.indices, self.indptr = values, indices, indptr
        self.shape = (int(shape[0]), int(shape[1]))
        self._compressed_axes = (axis,)
        self.fill_value = values.dtype.type(fill_value)
        return self

    @classmethod
    def from_sparse(cls, array: sparse.SparseArray, axis: Literal[0, 1] = 1) -> PairArray:
        """Convert any array of pydata-sparse; a GCXS must have sorted pairs."""
        if isinstance(array, cls):
            return array
        if not isinstance(array, sparse.GCXS):
            array = sparse.GCXS.from_coo(array.asformat("coo"), compressed_axes=(axis,))
        if array.ndim != 2:
            raise SchemaError(f"a sparse array has {array.ndim} dims, expected 2 axes of neurons")
        buffers = (array.data, array.indices.astype(np.int32, copy=False), array.indptr)
        of_array: Literal[0, 1] = array.compressed_axes[0]
        return cls.of(*buffers, shape=array.shape, axis=of_array, fill_value=array.fill_value)

    @property
    def axis(self) -> Literal[0, 1]:
        """The compressed axis."""
        return self._compressed_axes[0]

    def _with(self, values: np.ndarray, fill_value: Any = 0) -> PairArray:
        """Return other values on the same pairs."""
        return PairArray.of(
            values, self.indices, self.indptr,
            shape=self.shape, axis=self.axis, fill_value=fill_value,
        )  # fmt: skip

    def _without_zeros(self) -> PairArray:
        """Return the same values without stored zeros."""
        keep = self.data != 0
        n_before = np.concatenate([[0], np.cumsum(keep)]).astype(self.indptr.dtype)
        return PairArray.of(
            self.data[keep], self.indices[keep], n_before[self.indptr],
            shape=self.shape, axis=self.axis, fill_value=self.fill_value,
        )  # fmt: skip

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of every stored pair on both axes."""
        major = np.repeat(np.arange(self.indptr.size - 1, dtype=np.int32), np.diff(self.indptr))
        return (major, self.indices) if self.axis == 0 else (self.indices, major)

    def _keys(self) -> np.ndarray:
        """Return an ascending number of the cell of each stored pair."""
        major, minor = self.ends()[:: 1 if self.axis == 0 else -1]
        return major.astype(np.int64) * self.shape[1 - self.axis] + minor

    def compress(self, axis: Literal[0, 1]) -> PairArray:
        """Return the same pairs, compressed over the given axis."""
        if axis == self.axis:
            return self
        new = transpose_pattern(self.indices, self.indptr, self.shape[axis])
        values = take_values(self.data, new.source)
        return PairArray.of(
            values, new.indices, new.indptr,
            shape=self.shape, axis=axis, fill_value=self.fill_value,
        )  # fmt: skip

    def change_compressed_axes(self, new_compressed_axes: Sequence[int]) -> PairArray:
        """Return the same pairs, compressed over the given axis."""
        (axis,) = (operator.index(a) % 2 for a in new_compressed_axes)
        return self.compress(0 if axis == 0 else 1)

    # Conversions.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.size > MAX_DENSE_CELLS:
            raise self._too_large()
        dense = self.todense()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def _too_large(self) -> SchemaError:
        return SchemaError(
            f"{self.shape[0]:,} x {self.shape[1]:,} sparse cells would take "
            f"{self.size * self.dtype.itemsize / 1e9:.1f} GB as a dense array: select neurons "
            "first with .sel, reduce with .sum or another method, or use mx.to_table for the "
            "connected pairs and mx.write_store for a file"
        )

    def todense(self) -> np.ndarray:
        """Return a dense array, also a large one if it is asked for by name."""
        if self.size > MAX_CELLS_ON_REQUEST:
            raise self._too_large()
        out = np.full(self.shape, self.fill_value, dtype=self.dtype)
        out[self.ends()] = self.data
        return out

    def astype(self, dtype: Any, casting: Any = "unsafe", copy: bool = True) -> PairArray:
        """Convert the stored values."""
        values = self.data.astype(dtype, casting=casting, copy=copy)
        return self._with(values, self.fill_value)

    def __deepcopy__(self, memo: Any) -> PairArray:
        return self._with(self.data.copy(), self.fill_value)  # the pattern is never written to

    def __repr__(self) -> str:
        return (
            f"<PairArray: {self.shape[0]} x {self.shape[1]}, {self.nnz} stored pairs of "
            f"{self.dtype}, compressed over axis {self.axis}>"
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of the weights."""
        # `to_zarr` of xarray hands zarr the array as it is, which then makes one chunk after the
        # other dense: of 94,000 neurons 70 GB. This is the first that zarr asks of it.
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("zarr."):
            raise SchemaError(
                "zarr would write every cell of a sparse array: write the connectivity with "
                "mx.write_store, or the array as a dense one, if it is small, with .as_numpy()"
            )
        return self.data.dtype

    # Selection.

    def __getitem__(self, key: Any) -> Any:
        first, second = _two_keys(key)
        if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
            if first.ndim == second.ndim == 2 and first.shape[1] == second.shape[0] == 1:
                return self._select(first[:, 0], second[0])
            return self._points(first, second)
        at = [_positions(k, n) for k, n in zip((first, second), self.shape, strict=True)]
        for axis in (self.axis, 1 - self.axis):  # pairs of a neuron of the first are contiguous
            position = at[axis]
            if isinstance(position, int):
                vector, other = self._of_neuron(axis, position), at[1 - axis]
                return vector if other is None else vector[other]
        return self._select(at[0], at[1])

    def _of_neuron(self, axis: int, position: int) -> np.ndarray:
        """Return all cells of one neuron, dense."""
        out = np.full(self.shape[1 - axis], self.fill_value, dtype=self.dtype)
        if axis == self.axis:
            span = slice(self.indptr[position], self.indptr[position + 1])
            out[self.indices[span]] = self.data[span]
        else:
            majors = np.arange(out.size)
            at = reduce.find_pairs(self.indices, self.indptr, majors, np.full(out.size, position))
            out[at >= 0] = self.data[at[at >= 0]]
        return out

    def _points(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return single cells, dense, with the shape of the two positions together."""
        keys = zip((first, second), self.shape, strict=True)
        both = np.broadcast_arrays(*(_within(k, n) for k, n in keys))
        major, minor = (k.ravel() for k in (both if self.axis == 0 else both[::-1]))
        at = reduce.find_pairs(self.indices, self.indptr, major, minor)
        out = np.full(at.size, self.fill_value, dtype=self.dtype)
        out[at >= 0] = self.data[at[at >= 0]]
        return out.reshape(both[0].shape)

    def _select(self, first: Any, second: Any) -> PairArray:
        """Select positions of either axis, in any order and repeated; None selects all."""
        major, minor = (first, second) if self.axis == 0 else (second, first)
        if minor is None and (major is None or isinstance(major, slice)):
            return self._cut(major)
        n_major, n_minor = (self.shape[a] for a in (self.axis, 1 - self.axis))
        majors = _listed(major, n_major)
        minors = _listed(minor, n_minor)
        in_order = bool((np.diff(minors) > 0).all())
        chosen = minors if in_order else np.unique(minors)
        new_minor = np.full(n_minor, -1, dtype=np.int32)
        new_minor[chosen] = np.arange(chosen.size, dtype=np.int32)
        new = select_pairs(self.indices, self.indptr, Rule(majors, new_minor, chosen.size))
        shape = (majors.size, chosen.size)
        result = PairArray.of(
            take_values(self.data, new.source), new.indices, new.indptr,
            shape=shape if self.axis == 0 else shape[::-1], axis=self.axis,
            fill_value=self.fill_value,
        )  # fmt: skip
        if in_order:
            return result
        # Kernels need ascending pairs, so that the other axis is reordered while it is compressed.
        other = result.compress(0 if self.axis == 1 else 1)
        order = np.searchsorted(chosen, minors)
        args = (order, None) if other.axis == 0 else (None, order)
        return other._select(*args).compress(self.axis)

    def _cut(self, major: slice | None) -> PairArray:
        """Select neighbouring neurons of the compressed axis, without copying."""
        if major is None:
            return self
        indptr = self.indptr[major.start : major.stop + 1]
        span = slice(indptr[0], indptr[-1])
        shape = list(self.shape)
        shape[self.axis] = indptr.size - 1
        return PairArray.of(
            self.data[span], self.indices[span], indptr - indptr[0],
            shape=(shape[0], shape[1]), axis=self.axis, fill_value=self.fill_value,
        )  # fmt: skip

    @property
    def T(self) -> PairArray:
        """The same pairs with the axes exchanged, without copying."""
        return self.transpose()

    def transpose(self, axes: Any = None, compressed_axes: Any = None) -> PairArray:
        """Exchange the axes, without copying."""
        if axes is not None and [operator.index(a) % 2 for a in axes] == [0, 1]:
            return self
        return PairArray.of(
            self.data, self.indices, self.indptr,
            shape=self.shape[::-1], axis=0 if self.axis == 1 else 1, fill_value=self.fill_value,
        )  # fmt: skip

    # Reductions.

    def _spans_along(self, axis: int | None) -> _Pairs:
        """Return the pairs in spans along `axis`; all of them in one span if it is None."""
        if axis is None:
            rows = self.compress(0)
            one_span = np.array([0, rows.nnz], dtype=np.int64)
            return _Pairs(rows.data, rows._keys(), one_span, self.size)
        other = self.compress(0 if axis == 1 else 1)
        return _Pairs(other.data, other.indices, other.indptr, self.shape[axis])

    def _n_cells(self, axis: int | None) -> Any:
        """Return the number of cells of a result."""
        return self.size if axis is None else self.shape[axis]

    def _sums(self, values: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of stored values, and the numbers of stored pairs."""
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64, copy=False)
        if axis is None:
            return np.asarray(values.sum()), np.asarray(self.nnz)
        n_minor = self.shape[1 - self.axis]
        sums = reduce.neuron_sums([values], self.indices, self.indptr, n_minor)
        names = ["sum"], [values.dtype.kind]
        of_axis = sums[0 if axis != self.axis else 1].by_name(*names)
        return of_axis["sum"], of_axis["n_connections"]

    def _total(self, axis: int | None, skipna: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums over all cells, and the numbers of cells that are not NaN."""
        n = np.asarray(self._n_cells(axis))
        values = self.data
        is_nan = np.isnan(values) if skipna and values.dtype.kind == "f" else None
        if is_nan is not None and is_nan.any():
            n = n - self._sums(is_nan, axis)[0]
            values = np.where(is_nan, 0, values)
        sums, n_stored = self._sums(values, axis)
        if self.fill_value != 0:
            n_unstored = self._n_cells(axis) - n_stored
            sums = sums + sums.dtype.type(self.fill_value) * n_unstored
        return sums, n

    # The methods of GCXS reduce to arrays of pydata-sparse, and do not take subclasses.

    def sum(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Sum over one or both axes, dense, int64 or float64."""
        return np.sum(self, axis=axis, keepdims=keepdims, **kwargs)

    def mean(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return the mean over all cells of one or both axes, dense."""
        return np.mean(self, axis=axis, keepdims=keepdims, **kwargs)

    def max(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return the largest of all cells of one or both axes, dense."""
        return np.max(self, axis=axis, keepdims=keepdims, **kwargs)

    def min(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return the smallest of all cells of one or both axes, dense."""
        return np.min(self, axis=axis, keepdims=keepdims, **kwargs)

    def any(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return whether any cell of one or both axes is not 0, dense."""
        return np.any(self, axis=axis, keepdims=keepdims, **kwargs)

    def all(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return whether all cells of one or both axes are not 0, dense."""
        return np.all(self, axis=axis, keepdims=keepdims, **kwargs)

    def std(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return the standard deviation of all cells of one or both axes, dense."""
        return np.std(self, axis=axis, keepdims=keepdims, **kwargs)

    def var(self, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """Return the variance of all cells of one or both axes, dense."""
        return np.var(self, axis=axis, keepdims=keepdims, **kwargs)

    # Products.

    def dot(self, other: Any) -> Any:
        """Sum over the second axis and the first of `other`."""
        return _tensordot(self, other, 1)

    __matmul__ = dot

    def __rmatmul__(self, other: Any) -> Any:
        return _tensordot(other, self, 1)

    # Protocols of numpy.

    @property
    def __array_namespace__(self) -> Any:
        # Without it xarray and dask call functions of numpy, all of which arrive below, and xarray
        # selects both axes at once, or single cells.
        raise AttributeError("__array_namespace__")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if not isinstance(ufunc, np.ufunc):  # methods of GCXS, such as round
            return self.__array_function__(ufunc, (), inputs, kwargs)
        if ufunc is np.matmul and method == "__call__":
            return _tensordot(inputs[0], inputs[1], 1)
        if method == "reduce" and ufunc in _OF_UFUNC:
            return _OF_UFUNC[ufunc](*inputs, **kwargs)
        if ufunc is np.subtract and isinstance(inputs[1], _BlockSum):
            return _Deviations(self, np.asarray(inputs[1]))
        if method != "__call__" or kwargs.get("out") is not None or ufunc.nout != 1:
            raise _unsupported(f"{ufunc.__name__}.{method}")
        return _elementwise(partial(ufunc, **kwargs), *inputs, name=ufunc)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        implementation = _FUNCTIONS.get(func)
        if implementation is None:
            raise _unsupported(func.__name__)
        return implementation(*args, **kwargs)


class _BlockSum(np.ndarray):
    """Sums of a block of a dask array, from which dask makes means, which it then subtracts."""


class _Deviations:
    """A block minus its means. Only sums of its powers are known, which a variance takes."""

    def __init__(self, array: PairArray, means: np.ndarray, power: int = 1) -> None:
        self.array, self.means, self.power = array, means, power
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, means.dtype

    def __pow__(self, power: int) -> _Deviations:
        return _Deviations(self.array, self.means, self.power * power)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise _would_fill(np.subtract, self.array)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in (np.sum, np.nansum):
            raise _would_fill(np.subtract, self.array)
        return _reduction(_Deviations._sum, func is np.nansum)(*args, **kwargs)

    def _sum(self, axis: int | None, skipna: bool) -> np.ndarray:
        array = self.array
        kept = [1, 1] if axis is None else [n if i != axis else 1 for i, n in enumerate(self.shape)]
        if list(self.means.shape) != kept:
            raise _would_fill(np.subtract, array)
        ends = [e if n > 1 else 0 for e, n in zip(array.ends(), kept, strict=True)]
        stored = (array.data - self.means[ends[0], ends[1]]) ** self.power
        sums = array._with(stored)._total(axis, skipna)[0]
        n_unstored = np.subtract(
            array.size if axis is None else array.shape[axis], array._sums(array.data, axis)[1]
        )
        means = self.means[0, 0] if axis is None else self.means.ravel()
        unstored = (array.fill_value - means) ** self.power
        return np.asarray(sums + np.where(n_unstored > 0, n_unstored * unstored, 0))


def _unsupported(name: str) -> TypeError:
    return TypeError(
        f"{name} of a sparse array is not supported: select neurons and convert them with "
        ".as_numpy(), or work on the connected pairs with mx.to_table"
    )


# Keys of a selection.


def _two_keys(key: Any) -> list[Any]:
    """Return the keys of both axes."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(k is None for k in keys):
        raise SchemaError(
            "a sparse array of pairs cannot get another dim: use xr.dot or mx.contract to combine "
            "it with values of neurons along further dims"
        )
    if any(k is Ellipsis for k in keys):
        i = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[i : i + 1] = [slice(None)] * (3 - len(keys))
    if len(keys) > 2:
        raise IndexError(f"{len(keys)} keys, expected at most 2: one for each axis")
    keys += [slice(None)] * (2 - len(keys))
    return [np.asarray(k) if isinstance(k, list | np.ndarray) and np.ndim(k) else k for k in keys]


def _positions(key: Any, n: int) -> int | slice | np.ndarray | None:
    """Return one position, positions, a slice of step 1, or None for all."""
    if isinstance(key, slice):
        start, stop, step = key.indices(n)
        if (start, stop, step) == (0, n, 1):
            return None
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    if isinstance(key, np.ndarray) and key.ndim:
        if key.ndim > 1:
            raise _unsupported("selection by a table of positions")
        return _within(key, n)
    return int(_within(np.asarray(operator.index(key)), n))


def _within(positions: np.ndarray, n: int) -> np.ndarray:
    """Return positions from the start of an axis, which masks and negative numbers are not."""
    if positions.dtype == bool:
        if positions.shape != (n,):
            raise IndexError(f"a mask has shape {positions.shape}, expected ({n},)")
        return np.flatnonzero(positions)
    if positions.size == 0:
        return positions.astype(np.int64)
    if positions.dtype.kind not in "iu":
        raise IndexError(f"positions have dtype {positions.dtype}, expected integers")
    if positions.min() < -n or positions.max() >= n:
        raise IndexError(f"positions are outside an axis of {n} neurons")
    return np.where(positions < 0, positions + n, positions).astype(np.int64)


def _listed(positions: Any, n: int) -> np.ndarray:
    if positions is None or isinstance(positions, slice):
        return np.arange(n)[slice(None) if positions is None else positions]
    return positions


# Functions of numpy. Reductions give dense arrays.


def _axis_of(array: Any, axis: Any) -> int | None:
    """Return the axis of a reduction; None for both."""
    if axis is None:
        return None
    axes = sorted({operator.index(a) % 2 for a in np.atleast_1d(axis)})
    if not axes:
        raise _unsupported("a reduction over no axis")
    return None if len(axes) == 2 else axes[0]


def _reduction(function: Callable[..., Any], skipna: bool) -> Callable[..., Any]:
    """Make a function of numpy from one of an array, an axis or None, and `skipna`."""

    def reduce_(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, *,
                keepdims: Any = False, **kwargs: Any) -> Any:  # fmt: skip
        kwargs = {k: v for k, v in kwargs.items() if v is not np._NoValue}
        if out is not None or kwargs.get("where", True) is not True:
            raise _unsupported("a reduction with out= or where=")
        kwargs.pop("where", None)
        over = _axis_of(a, axis)
        result = np.asarray(function(a, over, skipna, **kwargs))
        if dtype is not None:
            result = result.astype(dtype, copy=False)
        if keepdims is True:
            # Before a quantile may be an axis of quantiles.
            where = (-2, -1) if over is None else (-2 if over == 0 else -1,)
            result = np.expand_dims(result, where)
            if dtype is not None:
                return result.view(_BlockSum)
        return result if result.ndim else result[()]

    return reduce_


def _sum(a: PairArray, axis: int | None, skipna: bool) -> np.ndarray:
    return a._total(axis, skipna)[0]


def _mean(a: PairArray, axis: int | None, skipna: bool) -> np.ndarray:
    total, n = a._total(axis, skipna)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / n)


def _any_(a: PairArray, axis: int | None, skipna: bool) -> np.ndarray:
    return _count_nonzero(a, axis) > 0


def _all(a: PairArray, axis: int | None, skipna: bool) -> np.ndarray:
    return np.asarray(_count_nonzero(a, axis) == a._n_cells(axis))


def _count_nonzero(a: PairArray, axis: int | None, skipna: bool = False) -> np.ndarray:
    is_set = a._with(a.data != 0, a.fill_value != 0)
    return is_set._total(axis, False)[0]


def _extreme(a: PairArray, axis: int | None, skipna: bool, *, largest: bool) -> np.ndarray:
    values, _, indptr, n = a._spans_along(axis)
    if np.ndim(n) == 0 and n == 0:
        raise ValueError("maximum or minimum over an axis without neurons")
    result = reduce.extremes(values, indptr, n, a.fill_value, largest, skipna)
    return result if axis is not None else result[0]


def _arg(a: PairArray, axis: int | None, skipna: bool, *, largest: bool) -> np.ndarray:
    values, indices, indptr, n = a._spans_along(axis)
    if n == 0:
        raise ValueError("position of an extreme on an axis without neurons")
    buffers = (values, indices, indptr, n, a.fill_value)
    result = reduce.positions_of_extremes(*buffers, largest, skipna)
    if (result < 0).any():
        raise ValueError("All-NaN slice encountered")
    return result if axis is not None else result[0]


def _var(a: PairArray, axis: int | None, skipna: bool, ddof: float = 0, **kwargs: Any) -> Any:
    values, _, indptr, n = a._spans_along(axis)
    ddof = kwargs.get("correction", ddof)
    result = reduce.variances(values, indptr, n, a.fill_value, ddof, skipna)
    return result if axis is not None else result[0]


def _std(a: PairArray, axis: int | None, skipna: bool, **kwargs: Any) -> np.ndarray:
    return np.sqrt(_var(a, axis, skipna, **kwargs))


def _quantiles_of(a: PairArray, q: Any, axis: int | None, skipna: bool) -> np.ndarray:
    values, _, indptr, n = a._spans_along(axis)
    q = np.asarray(q, dtype=np.float64)
    if q.size and not (q.min() >= 0 and q.max() <= 1):
        raise ValueError("Quantiles must be in the range [0, 1]")
    result = reduce.quantiles(values, indptr, n, a.fill_value, q.ravel(), skipna)
    shape = (*q.shape, *result.shape[1:]) if axis is not None else q.shape
    return result.reshape(shape)


def _quantile(skipna: bool) -> Callable[..., Any]:
    def quantile(a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False,
                 method: str = "linear", keepdims: Any = False, **kwargs: Any) -> Any:  # fmt: skip
        # dask passes both, the first for an older numpy
        method = kwargs.pop("interpolation", None) or method
        if method != "linear" or kwargs.pop("weights", None) is not None:
            raise _unsupported("a quantile with weights, or a method other than 'linear'")
        of_q = _reduction(lambda a, over, skip: _quantiles_of(a, q, over, skip), skipna)
        return of_q(a, axis, out=out, keepdims=keepdims, **kwargs)

    return quantile


def _median(a: PairArray, axis: int | None, skipna: bool, **kwargs: Any) -> np.ndarray:
    return _quantiles_of(a, 0.5, axis, skipna)


# Functions of each cell.


def _elementwise(function: Callable[..., Any], *inputs: Any, name: Any = None) -> PairArray:
    """Apply a function to the stored values, and to vectors along either axis and scalars."""
    arrays = [PairArray.from_sparse(x) for x in inputs if isinstance(x, sparse.SparseArray)]
    first = arrays[0]
    if any(a.shape != first.shape for a in arrays):
        raise ValueError(f"sparse arrays have shapes {[a.shape for a in arrays]}, expected one")
    alike, stored = _on_common_pairs([a.compress(first.axis) for a in arrays])
    ends = alike.ends() if any(np.ndim(x) for x in inputs if not _is_sparse(x)) else None
    values, fills = [], []
    of_sparse = iter(zip(stored, arrays, strict=True))
    for x in inputs:
        if _is_sparse(x):
            its_values, array = next(of_sparse)
            values.append(its_values)
            fills.append(array.fill_value)
        elif np.ndim(x):
            x = np.asarray(x)
            table = x[None] if x.ndim == 1 else x
            if table.ndim != 2 or np.broadcast_shapes(table.shape, first.shape) != first.shape:
                raise SchemaError(
                    f"a sparse array of shape {first.shape} meets values of shape {x.shape}: use "
                    "xr.dot or mx.contract to combine it with values along further dims"
                )
            assert ends is not None
            at = [e if n > 1 else np.zeros(1, int) for e, n in zip(ends, table.shape, strict=True)]
            values.append(table[at[0], at[1]])
            fills.append(table)
        else:
            values.append(x)
            fills.append(x)
    with np.errstate(all="ignore"):
        # What cells that are not stored would get.
        unstored = np.asarray(function(*fills))
    if name in _PRODUCTS and unstored.dtype.kind == "f":
        unstored = np.nan_to_num(unstored, nan=0.0, posinf=np.inf, neginf=-np.inf)
    fill = unstored.flat[0] if unstored.size else unstored.dtype.type(0)
    # That all other pairs are not so is a result; numbers for all of them are not connectivity.
    if not (unstored == fill).all() or (fill != 0 and unstored.dtype.kind != "b"):
        raise _would_fill(name, first)
    result = np.asarray(function(*values))
    if result.shape != alike.data.shape:
        result = np.broadcast_to(result, alike.data.shape).copy()
    alike = alike._with(result, fill)
    # ``(a != b).nnz`` counts the pairs that differ, as in scipy.
    return alike._without_zeros() if name is np.not_equal and len(arrays) == 2 else alike


def _would_fill(name: Any, array: PairArray) -> SchemaError:
    called = getattr(name, "__name__", str(name))
    return SchemaError(
        f"{called} would give all {array.size:,} pairs without a connection a value that is not 0: "
        "use an operation that keeps 0 (such as a product, > 0 or .where(condition, 0)), or "
        "change the stored values in the table of mx.to_table"
    )


def _is_sparse(x: Any) -> bool:
    return isinstance(x, sparse.SparseArray)


def _on_common_pairs(arrays: list[PairArray]) -> tuple[PairArray, list[np.ndarray]]:
    """Return an array with the pairs that any of the arrays stores, and their values on them."""
    first = arrays[0]
    if all(same_pairs(first, a) for a in arrays[1:]):
        return first, [a.data for a in arrays]
    keys = [a._keys() for a in arrays]
    every = keys[0]
    for more in keys[1:]:
        every = np.union1d(every, more)
    stored = []
    for array, its_keys in zip(arrays, keys, strict=True):
        values = np.full(every.size, array.fill_value, dtype=array.dtype)
        values[np.searchsorted(every, its_keys)] = array.data
        stored.append(values)
    major, minor = np.divmod(every, max(first.shape[1 - first.axis], 1))
    n_major = first.shape[first.axis]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=n_major))])
    alike = PairArray.of(
        stored[0], minor.astype(np.int32), indptr.astype(index_dtype(every.size)),
        shape=first.shape, axis=first.axis,
    )  # fmt: skip
    return alike, stored


def _where(condition: Any, *choices: Any) -> Any:
    if len(choices) != 2:
        raise _unsupported("where without two choices")
    # A cell without a connection stays without one if both choices are 0 there.
    return _elementwise(np.where, condition, *choices, name=".where without 0 as second argument")


def _clip(a: Any, *args: Any, **kwargs: Any) -> Any:
    return _elementwise(lambda x: np.clip(x, *args, **kwargs), a, name=np.clip)


def _isclose(
    a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Any:
    close = partial(np.isclose, rtol=rtol, atol=atol, equal_nan=equal_nan)
    return _elementwise(close, a, b, name=np.isclose)


def _full_like(a: PairArray, fill_value: Any, dtype: Any = None, **kwargs: Any) -> Any:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if kwargs.get("shape") is not None:  # dask broadcasts it to a block
        return np.full(kwargs["shape"], fill_value, dtype=dtype)
    if fill_value != 0:
        raise _would_fill(np.full_like, a)
    return a._with(np.zeros(a.nnz, dtype=dtype))


def _concatenate(arrays: Sequence[Any], axis: int = 0, **kwargs: Any) -> PairArray:
    """Join arrays along one axis; their pairs stay in order."""
    along: Literal[0, 1] = 0 if axis in (0, -2) else 1
    parts = [PairArray.from_sparse(a, along) for a in arrays if _is_sparse(a)]
    if len(parts) < len(arrays):
        raise _unsupported("concatenation with dense arrays")
    parts = [p.compress(along) for p in parts]
    if len(parts) == 1:
        return parts[0]
    if any(p.fill_value != parts[0].fill_value for p in parts):
        raise _unsupported("concatenation of arrays with different fill values")
    starts = np.cumsum([0, *(p.nnz for p in parts)])
    indptr = np.concatenate([[0], *(p.indptr[1:] + s for p, s in zip(parts, starts, strict=False))])
    shape = list(parts[0].shape)
    shape[along] = indptr.size - 1
    joined = PairArray.of(
        np.concatenate([p.data for p in parts]),
        np.concatenate([p.indices for p in parts]),
        indptr.astype(index_dtype(int(starts[-1]))),
        shape=(shape[0], shape[1]),
        axis=along,
        fill_value=parts[0].fill_value,
    )
    # As they were; blocks of whole neurons are already.
    return joined.compress(arrays[0].compressed_axes[0]) if _is_sparse(arrays[0]) else joined


def _transpose(a: PairArray, axes: Any = None) -> PairArray:
    return a.transpose(axes)


def _take(a: PairArray, indices: Any, axis: int | None = None, **kwargs: Any) -> Any:
    if axis is None:
        raise _unsupported("take without an axis")
    return a[:, indices] if axis % 2 else a[indices]


def _moveaxis(a: PairArray, source: Any, destination: Any) -> PairArray:
    pairs = zip(np.atleast_1d(source), np.atleast_1d(destination), strict=True)
    moved = {operator.index(s) % 2 != operator.index(d) % 2 for s, d in pairs}
    return a.T if True in moved else a


def _reshape(a: PairArray, shape: Any = None, *args: Any, **kwargs: Any) -> PairArray:
    if tuple(np.atleast_1d(shape)) == a.shape:
        return a
    raise _unsupported("reshape or stack")


def _broadcast_to(a: PairArray, shape: Any, *args: Any, **kwargs: Any) -> PairArray:
    if tuple(shape) == a.shape:
        return a
    raise SchemaError(
        f"a sparse array of shape {a.shape} meets values of shape {tuple(shape)}: use xr.dot or "
        "mx.contract to combine it with values along further dims"
    )


def _result_type(*args: Any) -> np.dtype[Any]:
    return np.result_type(*(a.dtype if _is_sparse(a) else a for a in args))


def _array_equal(a: Any, b: Any, equal_nan: bool = False) -> bool:
    if not (_is_sparse(a) and _is_sparse(b)):
        raise _unsupported("array_equal with a dense array")
    if a.shape != b.shape:
        return False
    equal = _elementwise(partial(_equal, equal_nan=equal_nan), a, b, name=np.equal)
    return bool(_all(equal, None, False))


def _equal(x: Any, y: Any, equal_nan: bool) -> Any:
    return (x == y) | (equal_nan & (x != x) & (y != y))


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """Sum products over one axis, with the kernels of `mx.contract`."""
    if not (_is_sparse(a) or _is_sparse(b)):  # a part of a product has been summed before
        return np.tensordot(a, b, axes)
    if isinstance(axes, int):
        axes = (list(range(-axes, 0)), list(range(axes)))
    over = [
        [operator.index(i) % x.ndim for i in np.atleast_1d(of_x)]
        for x, of_x in zip((a, b), axes, strict=True)
    ]
    if [a.shape[i] for i in over[0]] != [b.shape[i] for i in over[1]]:
        raise ValueError(f"arrays of shapes {a.shape} and {b.shape} do not match over {over}")
    if len(over[0]) == 0:
        raise SchemaError(
            "the product has no axis to sum over: give both the same dim, such as "
            '.rename(nucleus_id="pre_nucleus_id") for values of the presynaptic neurons'
        )
    for i, (pairs, other) in enumerate(((a, b), (b, a))):
        if _is_sparse(pairs) and pairs.fill_value != 0 and len(over[0]) == 1:
            if _is_sparse(other):
                raise _unsupported("a product with an array like size == 0, mostly not 0,")
            # The sum over all cells as if none were stored, and the differences of those that are.
            fill = pairs.fill_value * 1  # a boolean becomes an integer
            differences = PairArray.from_sparse(pairs)._with(pairs.data * 1 - fill)
            total = fill * np.asarray(other).sum(axis=over[1 - i][0])
            if i == 0:
                return _tensordot(differences, other, axes) + total
            return _tensordot(other, differences, axes) + total[..., None]
    if len(over[0]) == 2:
        pairs, other = (a, b) if _is_sparse(a) else (b, a)
        return (pairs * (other if over[0] == over[1] else other.T)).sum()
    if _is_sparse(a) and _is_sparse(b):
        return _sparse_product(PairArray.from_sparse(a), PairArray.from_sparse(b), over)
    if _is_sparse(a):
        return _contract(PairArray.from_sparse(a), over[0][0], np.asarray(b), over[1][0])
    sums = _contract(PairArray.from_sparse(b), over[1][0], np.asarray(a), over[0][0])
    return np.moveaxis(sums, 0, -1)


def _contract(pairs: PairArray, axis: int, values: np.ndarray, over: int) -> np.ndarray:
    """Return the sums over `axis` of the pairs, with the other axis of the pairs first."""
    values = np.moveaxis(values, over, 0)
    n_columns = math.prod(values.shape[1:])
    table = np.ascontiguousarray(values.reshape(values.shape[0], n_columns))
    whole = table.dtype.kind in "iub" and pairs.dtype.kind in "iub"
    if table.dtype != np.float32:
        table = table.astype(np.float64, copy=False)
    rows = arrange(table, reuse=True)
    sums = contract_buffers(
        pairs.data, pairs.indices, pairs.indptr, pairs.shape[1 - pairs.axis], rows,
        over="major" if axis == pairs.axis else "minor",
    ).sums  # fmt: skip
    rows.give_back()
    if whole and np.abs(sums).max(initial=0) < EXACT:
        sums = sums.astype(np.int64)
    return sums.reshape(sums.shape[0], *values.shape[1:])


def _sparse_product(a: PairArray, b: PairArray, over: list[list[int]]) -> Any:
    left = a if over[0][0] == 1 else a.T
    right = b if over[1][0] == 0 else b.T
    product = (left.to_scipy_sparse() @ right.to_scipy_sparse()).tocsc()
    product.sort_indices()  # as pydata-sparse does not do
    indices = product.indices.astype(np.int32, copy=False)
    return PairArray.of(product.data, indices, product.indptr, shape=product.shape, axis=1)


def _einsum(subscripts: str, *operands: Any, **kwargs: Any) -> Any:
    """Multiply two arrays; opt_einsum asks for it where it finds no sum over a common axis."""
    terms, out = subscripts.replace(".", "").replace(" ", "").split("->")
    letters = terms.split(",")
    if len(operands) != 2:
        raise _unsupported("einsum of other than two arrays")
    arrays = list(operands)
    for i in (0, 1):  # letters of one array alone that are summed over
        alone = [c for c in letters[i] if c not in letters[1 - i] + out]
        if alone:
            arrays[i] = arrays[i].sum(axis=tuple(letters[i].index(c) for c in alone))
            letters[i] = "".join(c for c in letters[i] if c not in alone)
    first, second = letters
    over = [c for c in first if c in second]
    if any(c in out for c in over):
        raise _unsupported("einsum that keeps a common axis")
    result = _tensordot(arrays[0], arrays[1], [[of.index(c) for c in over] for of in letters])
    kept = [c for c in first + second if c not in over]
    return np.transpose(result, [kept.index(c) for c in out]) if kept else result


_OF_UFUNC: dict[Any, Callable[..., Any]] = {
    np.add: _reduction(_sum, False),
    np.maximum: _reduction(partial(_extreme, largest=True), False),
    np.minimum: _reduction(partial(_extreme, largest=False), False),
    np.fmax: _reduction(partial(_extreme, largest=True), True),
    np.fmin: _reduction(partial(_extreme, largest=False), True),
    np.logical_or: _reduction(_any_, False),
    np.logical_and: _reduction(_all, False),
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: _OF_UFUNC[np.add],
    np.nansum: _reduction(_sum, True),
    np.mean: _reduction(_mean, False),
    np.nanmean: _reduction(_mean, True),
    np.max: _OF_UFUNC[np.maximum],
    np.nanmax: _OF_UFUNC[np.fmax],
    np.min: _OF_UFUNC[np.minimum],
    np.nanmin: _OF_UFUNC[np.fmin],
    np.any: _OF_UFUNC[np.logical_or],
    np.all: _OF_UFUNC[np.logical_and],
    np.std: _reduction(_std, False),
    np.nanstd: _reduction(_std, True),
    np.var: _reduction(_var, False),
    np.nanvar: _reduction(_var, True),
    np.argmax: _reduction(partial(_arg, largest=True), False),
    np.nanargmax: _reduction(partial(_arg, largest=True), True),
    np.argmin: _reduction(partial(_arg, largest=False), False),
    np.nanargmin: _reduction(partial(_arg, largest=False), True),
    np.median: _reduction(_median, False),
    np.nanmedian: _reduction(_median, True),
    np.quantile: _quantile(False),
    np.nanquantile: _quantile(True),
    np.count_nonzero: _reduction(_count_nonzero, False),
    np.where: _where,
    np.clip: _clip,
    np.round: lambda a, decimals=0, out=None: _elementwise(
        lambda x: np.round(x, decimals), a, name=np.round
    ),
    np.isclose: _isclose,
    np.isin: lambda element, test_elements, **kwargs: _elementwise(
        lambda x: np.isin(x, test_elements, **kwargs), element, name=np.isin
    ),
    np.array_equal: _array_equal,
    np.zeros_like: lambda a, dtype=None, **kwargs: _full_like(a, 0, dtype, **kwargs),
    np.ones_like: lambda a, dtype=None, **kwargs: _full_like(a, 1, dtype, **kwargs),
    np.full_like: _full_like,
    np.empty_like: lambda a, dtype=None, **kwargs: _full_like(a, 0, dtype, **kwargs),
    np.nan_to_num: lambda x, *args, **kwargs: _elementwise(
        lambda v: np.nan_to_num(v, **kwargs), x, name=np.nan_to_num
    ),
    np.asarray: lambda a, *args, like=None, **kwargs: np.asarray(a, *args, **kwargs),
    # dask sorts short axes to take quantiles
    np.sort: lambda a, axis=-1, **kwargs: np.sort(np.asarray(a), axis=axis),
    np.take: _take,
    np.concatenate: _concatenate,
    np.transpose: _transpose,
    np.moveaxis: _moveaxis,
    np.swapaxes: lambda a, axis1, axis2: a if (axis1 - axis2) % 2 == 0 else a.T,
    np.reshape: _reshape,
    np.broadcast_to: _broadcast_to,
    np.result_type: _result_type,
    np.tensordot: _tensordot,
    np.dot: lambda a, b, out=None: _tensordot(a, b, ([a.ndim - 1], [max(b.ndim - 2, 0)])),
    np.einsum: _einsum,
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a, axis=None: a.size if axis is None else a.shape[axis],
    np.copy: lambda a, **kwargs: copy.deepcopy(a),
}
