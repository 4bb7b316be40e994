"""`groupby` of plain xarray on sparse arrays of pairs, by labels of one axis or of both.

xarray codes every cell of an array to group it by labels of two axes, minutes and 70 GB for 94,000
neurons, and selects one group after the other to reduce them. A group of neurons of both axes is a
block of the array, so that codes of the neurons of each axis say all: sums and counts of the groups
are one pass over the pairs, and other reductions have the pairs sorted by group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sparse
import xarray as xr
from dask.base import is_dask_collection
from xarray.core import duck_array_ops, groupby
from xarray.groupers import UniqueGrouper

from microns_xr.connectivity import reduce
from microns_xr.connectivity.pair_array import PairArray, _Pairs
from microns_xr.connectivity.sort import take_values
from microns_xr.errors import SchemaError
from microns_xr.schema import PAIR_DIMS

MAX_GROUP_CELLS = 1 << 28  # of a dense result, 2 GB


@dataclass(frozen=True)
class AxisGroups:
    """Groups of the neurons of one axis."""

    codes: np.ndarray  # int32, of each neuron; `n` for those without a group
    n: int

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Number of neurons of each group."""
        return np.bincount(self.codes, minlength=self.n + 1)[: self.n]

    def __getitem__(self, part: slice) -> AxisGroups:
        return AxisGroups(self.codes[part], self.n)


class GroupedPairs(PairArray):
    """An array of pairs whose reductions over axis 1 are those of groups, in one flat table."""

    groups: tuple[AxisGroups, AxisGroups]

    @classmethod
    def group(cls, array: PairArray, groups: tuple[AxisGroups, AxisGroups]) -> GroupedPairs:
        """Group the neurons of both axes."""
        buffers = array.data, array.indices, array.indptr
        about: dict[str, Any] = {"shape": array.shape, "axis": array.axis}
        self: Any = cls.of(*buffers, **about, fill_value=array.fill_value)
        self.groups = groups
        return self

    def _with(self, values: np.ndarray, fill_value: Any = 0) -> GroupedPairs:
        return GroupedPairs.group(super()._with(values, fill_value), self.groups)

    def _n_cells(self, axis: int | None) -> np.ndarray:
        return np.multiply.outer(*(g.sizes for g in self.groups)).ravel()

    def _sums(self, values: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64, copy=False)
        sums = reduce.span_sums(values, *self._numbering())
        if self.fill_value == 0:  # then nobody asks how many are stored
            return sums, np.zeros(1, dtype=np.int64)
        return sums, reduce.span_sums(np.ones(self.nnz, dtype=np.int64), *self._numbering())

    def _numbering(self) -> tuple[Any, ...]:
        """Return how the pairs are numbered by group, as the kernels take it."""
        of_major, of_minor = self.groups[:: 1 if self.axis == 0 else -1]
        steps = (of_minor.n, 1) if self.axis == 0 else (1, of_major.n)
        codes = of_major.codes, of_minor.codes
        return self.indices, self.indptr, *codes, (of_major.n, of_minor.n), steps

    def _spans_along(self, axis: int | None) -> _Pairs:
        source, indptr = reduce.group_spans(*self._numbering())
        nowhere = np.empty(0, dtype=np.int32)  # a position in a group is not asked for
        return _Pairs(take_values(self.data, source), nowhere, indptr, self._n_cells(axis))


# Reductions by the function that xarray, or a user of `.reduce`, passes, and whether it skips NaN:
# None for "of floats", as xarray does.
_NAMES = ("sum", "mean", "max", "min", "std", "var", "median")
_KNOWN: dict[Any, tuple[str, bool | None]] = {
    **{getattr(duck_array_ops, name, None): (name, None) for name in _NAMES},
    **{getattr(np, name): (name, False) for name in (*_NAMES, "any", "all")},
    **{getattr(np, f"nan{name}"): (name, True) for name in _NAMES},
    getattr(duck_array_ops, "count", None): ("count", True),
    getattr(duck_array_ops, "array_any", None): ("any", False),
    getattr(duck_array_ops, "array_all", None): ("all", False),
}


def _in_memory(pairs: GroupedPairs, name: str, skipna: bool, kwargs: dict[str, Any]) -> Any:
    """Return one reduction of all groups."""
    if name == "count":
        is_nan = np.isnan(pairs.data) if pairs.dtype.kind == "f" else np.zeros(1, dtype=bool)
        n = pairs._n_cells(1)
        return n - pairs._sums(is_nan, 1)[0] if is_nan.any() else n
    function = getattr(np, f"nan{name}" if skipna and name not in ("any", "all") else name)
    return function(pairs, axis=1, **kwargs)


# Lazily, the blocks give what can be combined: for each group a value, or mean and sum of squares,
# and the number of cells that it is of.


def _of_block(
    block: Any, groups: tuple[AxisGroups, AxisGroups], name: str, skipna: bool
) -> tuple[np.ndarray, ...]:
    pairs = GroupedPairs.group(_as_pairs(block), groups)
    if name in ("any", "all"):
        return np.asarray(np.count_nonzero(pairs, axis=1)), pairs._n_cells(1)
    if name in ("max", "min"):
        n = _in_memory(pairs, "count", True, {}) if skipna else pairs._n_cells(1)
        return _in_memory(pairs, name, skipna, {}), n
    total, n = pairs._total(1, skipna)
    if name == "sum":
        return total, np.zeros(1, dtype=np.int64)  # of as many cells as it may be
    n = np.broadcast_to(n, total.shape)
    if name in ("std", "var"):
        with np.errstate(invalid="ignore", divide="ignore"):
            squares = _in_memory(pairs, "var", skipna, {}) * n
            return np.where(n > 0, total / n, 0), np.where(n > 0, squares, 0), n
    return total, n


def _combined(name: str, first: Any, *others: Any) -> tuple[np.ndarray, ...]:
    *values, n = first
    for *more, n_more in others:
        if name in ("max", "min"):
            better = np.maximum if name == "max" else np.minimum
            both = np.where(
                n == 0, more[0], np.where(n_more == 0, values[0], better(values[0], more[0]))
            )
            values = [both]
        elif name in ("std", "var"):  # of two parts from their means, as accurate as in two passes
            step = more[0] - values[0]
            share = n_more / np.maximum(n + n_more, 1)
            values = [values[0] + step * share, values[1] + more[1] + step**2 * n * share]
        else:
            values = [values[0] + more[0]]
        n = n + n_more
    return (*values, n)


def _finished(parts: tuple[np.ndarray, ...], name: str, ddof: float, shape: Any) -> np.ndarray:
    *values, n = parts
    result = values[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        if name in ("max", "min") and result.dtype.kind == "f":
            result = np.where(n > 0, result, np.nan)
        elif name == "mean":
            result = result / n
        elif name in ("std", "var"):
            result = np.where(n - ddof > 0, values[1] / (n - ddof), np.nan)
            result = np.sqrt(result) if name == "std" else result
        elif name == "count":
            result = n
        elif name in ("any", "all"):
            result = result > 0 if name == "any" else result == n
    return np.ascontiguousarray(result).reshape(shape)


def _lazily(
    data: Any, groups: tuple[AxisGroups, AxisGroups], name: str, skipna: bool, kwargs: Any
) -> Any:
    """Return one reduction of all groups, each block of the pairs being in memory by itself."""
    import dask.array as da
    from dask.delayed import delayed

    from microns_xr.connectivity.blocks import _added

    if name == "median" or name == "quantile":
        raise SchemaError(
            f"a {name} of groups of lazy pairs needs all of them: load the array with .compute(), "
            "after .sel if only some neurons are meant"
        )
    ddof = kwargs.get("ddof", 0)
    if set(kwargs) - {"ddof"}:
        raise TypeError(f"{name} of groups of lazy pairs does not take {list(kwargs)}")
    dtype = _in_memory(
        GroupedPairs.group(_as_pairs(data._meta), _NO_GROUPS), name, skipna, {}
    ).dtype
    edges = [np.cumsum([0, *c]) for c in data.chunks]
    blocks = data.to_delayed(optimize_graph=False)
    parts = []
    for i, j in np.ndindex(blocks.shape):
        at = (slice(*edges[0][i : i + 2]), slice(*edges[1][j : j + 2]))
        of_block = tuple(g[s] for g, s in zip(groups, at, strict=True))
        parts.append(delayed(_of_block, pure=True)(blocks[i, j], of_block, name, skipna))
    shape = (groups[0].n, groups[1].n)
    whole = _added(parts, functools.partial(_combined, name), 24 * shape[0] * shape[1])
    table = delayed(_finished, pure=True)(whole, name, ddof, shape)
    return da.from_delayed(table, shape, dtype=dtype)


_NO_GROUPS = (AxisGroups(np.zeros(0, np.int32), 0), AxisGroups(np.zeros(0, np.int32), 0))


# What xarray makes of a call of `.groupby`.


def _meta(array: xr.DataArray | xr.Variable) -> Any:
    data = array.variable._data if isinstance(array, xr.DataArray) else array._data
    return getattr(data, "_meta", data)


def _is_over_pairs(array: Any) -> bool:
    """Whether an array is one of this package, or another one that it may have become."""
    meta = _meta(array)
    is_over_neurons = isinstance(meta, sparse.SparseArray) and set(array.dims) == set(PAIR_DIMS)
    return array.ndim == 2 and (isinstance(meta, PairArray) or is_over_neurons)


def _as_pairs(data: Any) -> PairArray:
    if isinstance(data, PairArray):
        return data
    if isinstance(data, np.ndarray):  # a dense block of a lazy array
        return PairArray.from_sparse(sparse.COO.from_numpy(data))
    if data.fill_value != data.fill_value:
        raise SchemaError("the array is NaN where no pair is stored: use .fillna(0) first")
    return PairArray.from_sparse(data.asformat("coo"))


def _pairs_in(obj: xr.DataArray | xr.Dataset) -> list[xr.DataArray]:
    arrays = obj.data_vars.values() if isinstance(obj, xr.Dataset) else [obj]
    return [array for array in arrays if _is_over_pairs(array)]


class _PairGroups:
    """What groups of DataArrays and of Datasets have in common."""

    _sizes: Any
    _groups: Any

    def __init__(self, obj: Any, groupers: Any, restore_coord_dims: bool = True) -> None:
        self.groupers = groupers
        pairs = _pairs_in(obj)
        one_dim = all(g.codes.ndim == 1 for g in groupers)
        # The dim of each grouper.
        self._grouped = tuple(g.codes.dims[0] for g in groupers) if one_dim else ()
        self._is_both = any(set(self._grouped) >= set(array.dims) for array in pairs)
        others = set(getattr(obj, "data_vars", ())) - {array.name for array in pairs}
        alike = all(set(self._grouped) <= set(array.dims) for array in pairs)
        self._only_pairs = one_dim and alike and not others
        if not self._is_both:
            self._only_pairs &= all(isinstance(_meta(array), PairArray) for array in pairs)
            super().__init__(obj, groupers, restore_coord_dims)  # type: ignore[call-arg]
            return
        if not self._only_pairs:
            raise SchemaError(
                f"groups of {self._names()} are groups of pairs, expected variables of pairs "
                f"alone, found {sorted(map(str, others or obj.data_vars))} as well: select "
                f"variables first, dataset[{[str(array.name) for array in pairs]}]"
            )
        if any(isinstance(g.full_index, pd.MultiIndex) for g in groupers):
            raise NotImplementedError("groups of a MultiIndex and of other labels")
        # What xarray sets beside the codes of all cells.
        self._original_obj = self._obj = obj
        self._restore_coord_dims = restore_coord_dims
        self._by_chunked = False
        self._groups = self._sizes = None
        self._dims = obj.dims
        self._len = math.prod(len(g.full_index) for g in groupers)

    def _is_lazy(self) -> bool:
        return any(array.chunks is not None for array in _pairs_in(self._original_obj))

    def _names(self) -> str:
        return " and ".join(str(g.name) for g in self.groupers)

    def __getattr__(self, name: str) -> Any:
        # What xarray works on where it needs each cell of a group.
        if name in ("encoded", "group1d", "_group_dim", "_stacked_dim", "_inserted_dims"):
            raise SchemaError(
                f"groups of {self._names()} would need a code for every pair of neurons: use .sum, "
                ".mean or another reduction, .map with a function that gives one number for each "
                "block of neurons, mx.group_connectivity, or one axis after the other"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _of_dim(self, dim: Hashable) -> list[Any]:
        return [g for g, of_g in zip(self.groupers, self._grouped, strict=True) if of_g == dim]

    def _axis_groups(self, dim: Hashable) -> AxisGroups:
        """Return the groups of a dim that has groupers, of all their labels together."""
        groupers = self._of_dim(dim)
        codes = [np.asarray(g.codes.values) for g in groupers]
        sizes = [len(g.full_index) for g in groupers]
        if math.prod(sizes) > MAX_GROUP_CELLS:
            raise SchemaError(f"{math.prod(sizes):,} groups of {dim}: use labels of fewer groups")
        together = np.ravel_multi_index(codes, sizes, mode="clip")
        n = math.prod(sizes)
        together[np.min(codes, axis=0) < 0] = n  # no label, or outside of all bins
        return AxisGroups(together.astype(np.int32), n)

    # Reductions.

    def reduce(
        self, func: Any, dim: Any = None, *, axis: Any = None, keep_attrs: bool | None = None,
        shortcut: bool = True, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Reduce each group, of one axis or of both, to numbers."""
        try:
            name, skipna = _KNOWN.get(func, ("", None))
        except TypeError:
            name, skipna = "", None
        over = self._over(dim, axis) if name else None
        if over is not None:
            kwargs.pop("numeric_only", None)
            if _KNOWN[func][1] is None:
                skipna = kwargs.pop("skipna", None)
            return self._tables(over, name, skipna, keep_attrs, kwargs)
        if not self._is_both:
            about = {"axis": axis, "keep_attrs": keep_attrs, "shortcut": shortcut}
            return super().reduce(func, dim, **about, **kwargs)  # type: ignore[misc]
        self._over(dim, axis)
        order = list(dict.fromkeys(self._grouped))

        def of_block(block: Any) -> Any:
            if isinstance(block, xr.Dataset):  # its own `reduce` names no axes if all are meant
                return block.map(of_block, keep_attrs=keep_attrs)
            block = block.transpose(*order)  # as xarray stacks them
            return block.reduce(func, order, keep_attrs=keep_attrs, **kwargs)

        return self.map(of_block)

    def quantile(
        self, q: Any, dim: Any = None, *, method: Any = "linear", keep_attrs: bool | None = None,
        skipna: bool | None = None, interpolation: Any = None,
    ) -> Any:  # fmt: skip
        """Return quantiles of each group, of one axis or of both."""
        over = self._over(dim, None)
        if over is None or interpolation is not None:
            rest = {"keep_attrs": keep_attrs, "skipna": skipna, "interpolation": interpolation}
            return super().quantile(q, dim, method=method, **rest)  # type: ignore[misc]
        q = np.asarray(q, dtype=np.float64)
        return self._tables(over, "quantile", skipna, keep_attrs, {"q": q, "method": method})

    def _over(self, dim: Any, axis: Any) -> set[Hashable] | None:
        """Return the dims that are reduced, None if it takes xarray to do so."""
        grouped = set(self._grouped)
        if self._is_both:
            if axis is not None or not (dim is None or dim is ... or _as_set(dim) == grouped):
                raise ValueError(
                    f"cannot reduce over dimensions {dim!r}: groups of {self._names()} are reduced "
                    "over both axes"
                )
            return grouped
        names = {g.name for g in self.groupers}
        # Of one axis, xarray reduces lazy groups as well: one at a time, in as little memory.
        is_left = not self._only_pairs or self._is_lazy()
        if is_left or axis is not None or names & set(self._original_obj.dims):
            return None
        every = set(_pairs_in(self._original_obj)[0].dims)
        over = grouped if dim is None else every if dim is ... else _as_set(dim)
        return over if over in (grouped, every) else None

    def _tables(
        self, over: set[Hashable], name: str, skipna: bool | None, keep_attrs: bool | None,
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        obj = self._original_obj
        if keep_attrs is None:
            keep_attrs = xr.get_options()["keep_attrs"] is not False  # by default they are kept
        coords = self._new_coords(over, kwargs.get("q"))
        arrays = {
            array.name: self._table(array, over, name, skipna, dict(kwargs))
            for array in _pairs_in(obj)
        }
        for array in _pairs_in(obj):
            arrays[array.name].attrs = array.attrs if keep_attrs else {}
        if isinstance(obj, xr.Dataset):
            return xr.Dataset(arrays, coords, attrs=obj.attrs if keep_attrs else {})
        return xr.DataArray(arrays[obj.name], coords, name=obj.name)

    def _new_coords(self, over: set[Hashable], q: np.ndarray | None) -> Any:
        """Return the coordinates of a table: the labels of groups, and those that remain."""
        rest = self._original_obj.coords.to_dataset().drop_dims(over, errors="ignore")
        if q is not None:  # xarray drops coordinates without dims
            rest = rest.drop_vars([name for name, c in rest.coords.items() if c.ndim == 0])
            rest = rest.assign_coords(quantile=q if q.ndim == 0 else ("quantile", q))
        return rest.assign_coords(self._labels()).coords

    def _labels(self) -> Any:
        labels = xr.Coordinates()
        for g in self.groupers:
            if isinstance(g.grouper, UniqueGrouper) and not isinstance(g.group, xr.DataArray):
                continue  # a dim without labels, which has none afterwards
            if g.encoded.unique_coord.size == len(g.full_index) and len(self.groupers) == 1:
                labels = labels | g.encoded.coords
            else:
                labels = labels | xr.Coordinates({g.name: (g.name, g.full_index, g.group.attrs)})
        return labels

    def _table(
        self, array: xr.DataArray, over: set[Hashable], name: str, skipna: bool | None,
        kwargs: dict[str, Any],
    ) -> xr.Variable:  # fmt: skip
        """Return one reduction of all groups, NaN for those without neurons."""
        groups, kept, dims, sizes = [], None, [], []
        mask: Any = True
        for axis, (dim, n) in enumerate(array.sizes.items()):
            groupers = self._of_dim(dim)
            if groupers:
                groups.append(self._axis_groups(dim))
                of_axis = [g.name for g in groupers], [len(g.full_index) for g in groupers]
                has = groups[-1].sizes > 0
                if not has.all():
                    mask = mask & xr.Variable(of_axis[0], has.reshape(of_axis[1]))
            elif dim in over:
                groups.append(AxisGroups(np.zeros(n, np.int32), 1))
                of_axis = [], []
            else:
                groups.append(AxisGroups(np.arange(n, dtype=np.int32), n))
                of_axis, kept = ([dim], [n]), axis
            dims += of_axis[0]
            sizes += of_axis[1]
        if groups[0].n * groups[1].n > MAX_GROUP_CELLS:
            raise SchemaError(
                f"the groups would be a table of {groups[0].n:,} x {groups[1].n:,} numbers: use "
                "labels of fewer groups, or mx.to_table for the connected pairs"
            )
        both = (groups[0], groups[1])
        data = array.variable.data
        is_float = data.dtype.kind == "f"
        min_count = kwargs.pop("min_count", None)
        skipna = is_float if skipna is None else skipna

        def reduced(name: str, skipna: bool) -> Any:
            if is_dask_collection(data):
                return _lazily(data, both, name, skipna, kwargs)
            return _in_memory(GroupedPairs.group(_as_pairs(data), both), name, skipna, kwargs)

        q = kwargs.get("q", np.empty(()))
        of_q = ["quantile"] if q.ndim else []
        values = reduced(name, skipna).reshape((*q.shape, *sizes))
        table = xr.Variable([*of_q, *dims], values)
        if min_count is not None and skipna:
            n_valid = reduced("count", True).reshape(sizes)
            table = table.where(xr.Variable(dims, n_valid >= min_count)).astype(np.float64)
        if mask is not True:
            if table.dtype == bool and _lacks_pairs_of_labels(mask):
                table = table.astype(object)  # as in xarray, where labels are unstacked
            table = table.where(mask)
        return table.transpose(
            *self._order(array, of_q, [] if kept is None else [array.dims[kept]])
        )

    def _order(self, array: xr.DataArray, of_q: list[str], kept: list[Hashable]) -> list[Hashable]:
        """Return the dims as xarray orders them: several labels are unstacked at the end."""
        is_array = isinstance(self._original_obj, xr.DataArray)
        names = [g.name for g in self.groupers]
        if len(names) > 1:
            return [*kept, *of_q, *names] if is_array else [*of_q, *kept, *names]
        if is_array and kept and array.dims[0] == kept[0]:
            return [*kept, *names, *of_q]
        return [*names, *kept, *of_q] if is_array else [*names, *of_q, *kept]

    def _flox_reduce(self, dim: Any, keep_attrs: bool | None = None, **kwargs: Any) -> Any:
        # flox, where it is installed, is handed lazy arrays, and makes its own of their type.
        func = kwargs.pop("func")
        kwargs.pop("fill_value", None)
        if dim is not None:
            kwargs["dim"] = dim
        with xr.set_options(use_flox=False):
            return getattr(self, func)(keep_attrs=keep_attrs, **kwargs)

    # The groups of both axes themselves, each a block of the array.

    @property
    def groups(self) -> dict[Any, Any]:
        """Positions of the neurons of each group, as `.isel` takes them."""
        if not self._is_both:
            return super().groups  # type: ignore[misc, no-any-return]
        if self._groups is None:
            found, members = self._found()
            labels = pd.MultiIndex.from_product([list(g.full_index) for g in self.groupers])
            self._groups = dict(zip(labels[found], members, strict=True))
        return self._groups  # type: ignore[no-any-return]

    def _found(self) -> tuple[np.ndarray, list[dict[Hashable, np.ndarray]]]:
        """Return the numbers of the groups that have neurons, and the positions of these."""
        if self._len > MAX_GROUP_CELLS:
            raise SchemaError(f"{self._len:,} groups, expected fewer: use labels of fewer groups")
        shape = [len(g.full_index) for g in self.groupers]
        codes = np.unravel_index(np.arange(self._len), shape)
        found = np.ones(self._len, dtype=bool)
        of_dim = {}
        for dim in dict.fromkeys(self._grouped):
            groups = self._axis_groups(dim)
            mine = [k for k, of_k in enumerate(self._grouped) if of_k == dim]
            number = np.ravel_multi_index([codes[k] for k in mine], [shape[k] for k in mine])
            order = np.argsort(groups.codes, kind="stable")
            of_dim[dim] = number, np.split(order, np.cumsum(groups.sizes))
            found &= groups.sizes[number] > 0
        at = np.flatnonzero(found)
        parts = [{dim: split[number[k]] for dim, (number, split) in of_dim.items()} for k in at]
        return at, parts

    def __getitem__(self, key: Any) -> Any:
        if not self._is_both:
            return super().__getitem__(key)  # type: ignore[misc]
        return self._obj.isel(self.groups[key])

    def __iter__(self) -> Iterator[Any]:
        if not self._is_both:
            return super().__iter__()  # type: ignore[misc, no-any-return]
        return ((key, self._obj.isel(at)) for key, at in self.groups.items())

    def map(
        self, func: Callable[..., Any], args: Any = (), shortcut: Any = None, **kwargs: Any
    ) -> Any:
        """Apply a function to each group, of both axes to each block of neurons."""
        if not self._is_both:
            return super().map(func, args, shortcut, **kwargs)  # type: ignore[misc]
        found, members = self._found()
        results = [func(self._obj.isel(at), *args, **kwargs) for at in members]
        results = [
            r if isinstance(r, xr.DataArray | xr.Dataset) else xr.DataArray(r) for r in results
        ]
        if results[0].dims:
            raise SchemaError(
                f"the function of .map gave an array of {tuple(results[0].dims)}, expected one "
                f"number for each group of {self._names()}: group one axis after the other"
            )
        names, shape = zip(*((g.name, len(g.full_index)) for g in self.groupers), strict=True)
        at, has = np.zeros(self._len, dtype=np.int64), np.zeros(self._len, dtype=bool)
        at[found], has[found] = np.arange(found.size), True
        table = xr.concat(results, dim="_group", coords="different", compat="equals")
        table = table.isel(_group=xr.Variable(names, at.reshape(shape)))
        if not has.all():
            table = table.where(xr.DataArray(has.reshape(shape), dims=names))
        return table.assign_coords(self._labels())


def _as_set(dim: Any) -> set[Hashable]:
    return {dim} if isinstance(dim, str) else set(dim)


def _lacks_pairs_of_labels(has: xr.Variable) -> bool:
    """Whether there are labels that occur, but not together."""
    occurs: Any = True
    for dim in has.dims:
        occurs = occurs & has.any([d for d in has.dims if d != dim])
    return bool((occurs & ~has).any())


class PairGroupBy(_PairGroups, groupby.DataArrayGroupBy):
    """Groups of a DataArray of pairs."""


class PairDatasetGroupBy(_PairGroups, groupby.DatasetGroupBy):
    """Groups of a Dataset with variables of pairs."""


def _answer_groupby() -> None:
    """Make ``.groupby`` of arrays of pairs return these classes."""
    for of_xarray, ours in (
        (groupby.DataArrayGroupBy, PairGroupBy),
        (groupby.DatasetGroupBy, PairDatasetGroupBy),
    ):

        def new(cls: Any, obj: Any = None, *args: Any, of: Any = of_xarray, its: Any = ours,
                **kwargs: Any) -> Any:  # fmt: skip
            is_pairs = cls is of and isinstance(obj, xr.DataArray | xr.Dataset) and _pairs_in(obj)
            return object.__new__(its if is_pairs else cls)

        of_xarray.__new__ = new  # type: ignore[method-assign, assignment]


_answer_groupby()
