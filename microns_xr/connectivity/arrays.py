"""Connectivity Datasets, and the raw buffers inside them.

A connectivity Dataset holds ``synapse_size`` and, where synapses were counted, ``synapse_count``,
or any other weights, as `sparse.GCXS` arrays on one sparsity pattern: they share ``indices`` and
``indptr``. The fast kernels work on those buffers; this module is the only place that converts
between them and GCXS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sparse
import xarray as xr
from dask.base import is_dask_collection

from microns_xr.columns import as_ids
from microns_xr.connectivity import groups  # noqa: F401, `groupby` of arrays of pairs
from microns_xr.connectivity.pair_array import PairArray, index_dtype, same_pairs
from microns_xr.errors import SchemaError, UnknownLabelError, require_instance, unknown_label
from microns_xr.provenance import stamp_release
from microns_xr.releases import space_of
from microns_xr.schema import CONNECTIVITY, PAIR_DIMS, describe, is_ascending, validate

Compressed = Literal["post", "pre"]
ROOT_IDS = ("pre_pt_root_id", "post_pt_root_id")  # coordinates along these axes
_AXIS = {"pre": 0, "post": 1}


@dataclass(frozen=True)
class Pattern:
    """Sparsity pattern: the stored pairs, compressed over one axis."""

    # int32, positions on the other axis; ascending and unique within a span
    indices: np.ndarray
    # span boundaries, one more than there are compressed neurons; int32 where the pair count fits
    indptr: np.ndarray
    shape: tuple[int, int]  # (number of pre, number of post)
    compressed: Compressed  # the axis whose neurons are contiguous spans

    def same_pairs(self, other: Pattern) -> bool:
        """Whether another pattern stores the same pairs in the same order."""
        return self.compressed == other.compressed and same_pairs(self, other)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pre and the post position of every stored pair."""
        major = np.repeat(np.arange(self.n_major, dtype=np.int32), np.diff(self.indptr))
        return (self.indices, major) if self.compressed == "post" else (major, self.indices)

    @property
    def nnz(self) -> int:
        """Number of stored pairs."""
        return int(self.indices.size)

    @property
    def n_major(self) -> int:
        """Length of the compressed axis."""
        return self.shape[_AXIS[self.compressed]]

    @property
    def n_minor(self) -> int:
        """Length of the other axis."""
        return self.shape[1 - _AXIS[self.compressed]]


def make_pattern(
    indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int], compressed: Compressed
) -> Pattern:
    """Make a `Pattern` from buffers, cast to the narrowest index dtypes that hold them."""
    return Pattern(
        np.asarray(indices, dtype=np.int32),
        np.asarray(indptr, dtype=index_dtype(int(indices.size))),
        (int(shape[0]), int(shape[1])),
        compressed,
    )


def gcxs(values: np.ndarray, pattern: Pattern) -> PairArray:
    """Return an array over (pre, post) with `values` on `pattern`, without copying."""
    axis: Literal[0, 1] = 0 if pattern.compressed == "pre" else 1
    return PairArray.of(values, pattern.indices, pattern.indptr, shape=pattern.shape, axis=axis)


def connectivity_dataset(
    weights: Mapping[str, np.ndarray],
    pattern: Pattern,
    pre_ids: np.ndarray,
    post_ids: np.ndarray,
    *,
    scope: str,
    release: tuple[str, int] | None = None,
    attrs: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Make a connectivity Dataset from the stored values of each weight, and labels."""
    dims = PAIR_DIMS

    def attrs_of(name: str) -> dict[str, Any]:
        return describe(CONNECTIVITY[name]) if name in CONNECTIVITY else {}

    dataset = xr.Dataset(
        {
            name: (dims, gcxs(wide(values, name), pattern), attrs_of(name))
            for name, values in weights.items()
        },
        coords={
            name: (name, np.asarray(ids, dtype=np.int64), attrs_of(name))
            for name, ids in zip(dims, (pre_ids, post_ids), strict=True)
        },
        attrs=dict(attrs or {}),
    )
    if release is not None and "synapse_size" in dataset:
        dataset["synapse_size"].attrs["units"] = space_of(release[0]).size_units
    dataset = dataset.assign_coords(scope=xr.Variable((), np.array(scope, dtype=object)))
    return dataset if release is None else stamp_release(dataset, *release)


def wide(values: Any, name: str) -> Any:
    """Return weights as int64 or float64: int32 sums would overflow silently in plain xarray."""
    kind = values.dtype.kind
    if kind not in "biuf":
        raise SchemaError(f"{name} has dtype {values.dtype}, expected numbers: convert it")
    return values.astype(np.float64 if kind == "f" else np.int64, copy=False)


def as_pairs(connectivity: Any) -> xr.Dataset:
    """Check connectivity where it enters a function, and bring it into one form.

    The form is that of `connectivity_dataset`: dims in the order of ``PAIR_DIMS``, ids int64 and
    ascending, weights int64 or float64 as GCXS on one pattern, or lazy, and a scope, "unknown" if
    there is none. A DataArray becomes a Dataset with one weight. Dense arrays are weights if no
    array is sparse or lazy; 0 then means no connection. Connectivity in this form is returned as it
    is, and lazy arrays are not computed. Of a tree, its connectivity is meant.
    """
    if isinstance(connectivity, xr.DataTree):
        if "connectivity" in connectivity.children:
            connectivity = connectivity["connectivity"]
        elif not set(PAIR_DIMS) <= set(connectivity.dims):  # not its node, tree["connectivity"]
            raise SchemaError(
                f"the tree has the groups {list(connectivity.children)}, expected 'connectivity' "
                "among them: open a store that was written with connectivity"
            )
        connectivity = connectivity.to_dataset()
    if isinstance(connectivity, xr.DataArray):
        about = {k: v for k, v in connectivity.attrs.items() if k in ("history", "source_tables")}
        connectivity = connectivity.to_dataset(name=connectivity.name or "weight")
        connectivity = connectivity.drop_vars(_spanning_coords(connectivity))  # one weight is meant
        connectivity.attrs.update(about)
    if isinstance(connectivity, xr.Dataset) and all(
        dim in connectivity.coords and connectivity.variables[dim].dims == (dim,)
        for dim in PAIR_DIMS
    ):
        if spanning := _spanning_coords(connectivity):  # weights as coordinates
            connectivity = connectivity.reset_coords(spanning)
        connectivity = _in_order(_with_weights(_with_ids(connectivity)))
    validate(connectivity, "connectivity")
    return connectivity


def _spanning_coords(connectivity: xr.Dataset) -> list[Any]:
    variables = connectivity.variables
    return [n for n in connectivity.coords if set(PAIR_DIMS) <= set(variables[n].dims)]


def _with_ids(connectivity: xr.Dataset) -> xr.Dataset:
    ids = {
        dim: connectivity[dim] for dim in PAIR_DIMS if connectivity.variables[dim].dtype != np.int64
    }
    if ids:
        connectivity = connectivity.assign_coords(
            {dim: (dim, as_ids(labels.values, dim), labels.attrs) for dim, labels in ids.items()}
        )
    if "scope" not in connectivity.coords:
        scope = connectivity["scope"] if "scope" in connectivity else np.array("unknown", object)
        connectivity = connectivity.assign_coords(scope=xr.Variable((), scope))
    return connectivity


def _with_weights(connectivity: xr.Dataset) -> xr.Dataset:
    names = pair_names(connectivity)
    dense = {
        str(name): variable.transpose(*PAIR_DIMS).values
        for name, variable in connectivity.variables.items()
        if name not in names
        and set(variable.dims) == set(PAIR_DIMS)
        and variable.dtype.kind in "biuf"
        and (not names or name in CONNECTIVITY)
    }
    if not dense and all(
        _is_weight(connectivity.variables[name], connectivity.variables[names[0]]) for name in names
    ):
        return connectivity
    arrays: dict[str, Any] = {}
    pattern: Pattern | None = None
    for name in names:
        data = connectivity[name].transpose(*PAIR_DIMS).data
        if is_dask_collection(data):
            arrays[name] = wide(data, name)
            continue
        compressed = None if pattern is None else pattern.compressed
        of_array, stored = pattern_of_array(data, name, compressed)
        # Arrays of the same pairs share their pattern, which need not be compared again.
        pattern = of_array if pattern is None or not pattern.same_pairs(of_array) else pattern
        arrays[name] = gcxs(wide(stored, name), of_array if pattern is None else pattern)
    if dense:
        pattern = pattern or _pattern_of_dense(dense)
        ends = pattern.ends()
        for name, values in dense.items():
            stored = values[ends]
            if np.count_nonzero(values) > np.count_nonzero(stored):
                raise SchemaError(
                    f"{name} is dense and not 0 for pairs that {names} do not store, expected one "
                    "sparsity pattern: make all weights dense, or all sparse"
                )
            arrays[name] = gcxs(wide(stored, name), pattern)
    return connectivity.assign(
        {name: (PAIR_DIMS, array, connectivity[name].attrs) for name, array in arrays.items()}
    )


def _is_weight(array: xr.Variable, first: xr.Variable) -> bool:
    """Whether an array is in the form of a weight, compressed as the first."""
    if array.dims != PAIR_DIMS or array.dtype not in (np.int64, np.float64):
        return False
    if is_dask_collection(array.data):
        return True
    axes = [getattr(a.data, "compressed_axes", None) for a in (array, first)]
    return isinstance(array.data, sparse.GCXS) and axes[0] == axes[1]


def _pattern_of_dense(dense: Mapping[str, np.ndarray]) -> Pattern:
    """Return the pattern of all pairs where one of the weights is not 0."""
    is_pair: Any = np.zeros(next(iter(dense.values())).shape, dtype=bool)
    for name, values in dense.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise SchemaError(
                f"{name} is NaN for {int(np.isnan(values).sum())} pairs, expected numbers: use "
                ".fillna(0) if they have no connection"
            )
        is_pair |= values != 0
    _, pre = np.nonzero(is_pair.T)
    indptr = np.concatenate([[0], np.cumsum(is_pair.sum(axis=0))])
    return make_pattern(pre, indptr, (len(is_pair), indptr.size - 1), "post")


def gcxs_of_dense(values: np.ndarray, name: str) -> sparse.GCXS:
    """Return the weights of a dense array that are not 0."""
    pattern = _pattern_of_dense({name: values})
    return gcxs(values[pattern.ends()], pattern)


def _in_order(connectivity: xr.Dataset) -> xr.Dataset:
    """Sort both axes by id; in memory the pairs are sorted as well."""
    if all(is_ascending(connectivity, dim) for dim in PAIR_DIMS):
        return connectivity
    ids = {dim: connectivity.variables[dim].values for dim in PAIR_DIMS}
    orders = {d: np.argsort(v, kind="stable") for d, v in ids.items() if (v[1:] < v[:-1]).any()}
    names = pair_names(connectivity)
    if not orders:
        return connectivity
    if any(connectivity[name].chunks is not None for name in names):
        return connectivity.isel(orders)
    pattern, values = pair_buffers(connectivity, names)
    ends = []
    for dim, positions in zip(PAIR_DIMS, pattern.ends(), strict=True):
        rank = np.empty(ids[dim].size, dtype=np.int32)
        rank[orders.get(dim, slice(None))] = np.arange(rank.size)
        ends.append(rank[positions])
    minor, major = ends if pattern.compressed == "post" else ends[::-1]
    order = np.lexsort((minor, major))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=pattern.n_major))])
    new = make_pattern(minor[order], indptr, pattern.shape, pattern.compressed)
    rest = connectivity.drop_vars(names).isel(orders)
    arrays = {
        name: (PAIR_DIMS, gcxs(stored[order], new), connectivity[name].attrs)
        for name, stored in values.items()
    }
    return rest.assign(arrays)[list(connectivity.data_vars)]


def pattern_of_array(
    data: Any, name: str, compressed: Compressed | None = None
) -> tuple[Pattern, np.ndarray]:
    """Return the sparsity pattern of a sparse array over (pre, post), and its stored values."""
    if is_dask_collection(data):
        raise SchemaError(
            f"{name} is lazy, expected an array in memory: call .compute(), after "
            "mx.select_connections if you need only a part"
        )
    if isinstance(data, np.ndarray) and data.dtype.kind in "biuf":  # a block of a lazy array
        data = gcxs_of_dense(data, name)
    if not isinstance(data, sparse.GCXS | sparse.COO):
        raise SchemaError(
            f"{name} is a {type(data).__name__}, expected a sparse.GCXS: "
            "build it with mx.build_connectivity or open it with mx.open_store"
        )
    if data.fill_value != 0:
        raise SchemaError(
            f"{name} has fill value {data.fill_value}, expected 0: adding a number to a "
            "sparse array changes every pair without a synapse; work on the stored values instead"
        )
    # Operations of plain xarray and sparse may return COO, or GCXS compressed over the other axis.
    if isinstance(data, sparse.COO):
        data = sparse.GCXS.from_coo(data, compressed_axes=(_AXIS[compressed or "post"],))
    elif compressed is not None and tuple(data.compressed_axes) != (_AXIS[compressed],):
        data = sparse.GCXS.from_coo(data.tocoo(), compressed_axes=(_AXIS[compressed],))
    side: Compressed = "post" if tuple(data.compressed_axes) == (1,) else "pre"
    return make_pattern(data.indices, data.indptr, data.shape, side), np.asarray(data.data)


def _pairs_of(
    connectivity: xr.Dataset | xr.DataArray, variable: str | None
) -> tuple[Pattern, np.ndarray]:
    if isinstance(connectivity, xr.Dataset):
        connectivity = connectivity[variable or pair_names(connectivity)[0]]
    array = connectivity
    if array.dims != PAIR_DIMS:
        raise SchemaError(
            f"{array.name} has dims {array.dims}, expected {PAIR_DIMS}: "
            "transpose it by name with .transpose('pre_nucleus_id', 'post_nucleus_id')"
        )
    return pattern_of_array(array.data, str(array.name))


def pattern_of(connectivity: xr.Dataset | xr.DataArray, variable: str | None = None) -> Pattern:
    """Return the sparsity pattern of a connectivity Dataset or of one of its arrays."""
    return _pairs_of(connectivity, variable)[0]


def values_of(connectivity: xr.Dataset | xr.DataArray, variable: str | None = None) -> np.ndarray:
    """Return the stored values of a variable, in the order of `pattern_of`; a view, not a copy."""
    return _pairs_of(connectivity, variable)[1]


def pair_names(connectivity: xr.Dataset) -> list[str]:
    """Return the names of the weights: the sparse variables, in memory or lazy."""
    return [
        str(name)
        for name, variable in connectivity.variables.items()
        if set(variable.dims) == set(PAIR_DIMS)
        and (isinstance(variable.data, sparse.SparseArray) or is_dask_collection(variable.data))
    ]


def weight_of(connectivity: xr.Dataset, weight: str | None = None) -> str:
    """Return the name of a weight; by default ``synapse_size``, or else the only weight."""
    names = pair_names(connectivity)
    if weight is None:
        if "synapse_size" in names or len(names) == 1:
            return "synapse_size" if "synapse_size" in names else names[0]
        raise SchemaError(f"the connectivity has the weights {names}: pass the name of one of them")
    require_instance("weight", weight, str, "the name of a weight")
    if weight == "synapse_count" and weight not in names:
        raise UnknownLabelError(
            f"the connectivity has no synapse_count, found {names}: its table has one row per "
            "pair, so that synapses were not counted; build it from single synapses "
            "(rows='synapse' if they have no id) or from pairs with a column n_syn"
        )
    if weight not in names:
        raise unknown_label("the connectivity has no weight", weight, names)
    return weight


def pair_buffers(
    connectivity: xr.Dataset, names: Iterable[str] | None = None
) -> tuple[Pattern, dict[str, np.ndarray]]:
    """Return the shared sparsity pattern of a connectivity Dataset and the values on it."""
    values: dict[str, np.ndarray] = {}
    first: Pattern | None = None
    for name in pair_names(connectivity) if names is None else names:
        pattern, values[name] = _pairs_of(connectivity, name)
        first = first or pattern
        if not first.same_pairs(pattern):
            raise SchemaError(
                f"{name} and {next(iter(values))} store different pairs, expected one sparsity "
                "pattern: take both from mx.build_connectivity or mx.open_store, and do not filter "
                "only one of them"
            )
    if first is None:
        raise SchemaError(
            "the connectivity has no weight over (pre_nucleus_id, post_nucleus_id): build it with "
            "mx.build_connectivity"
        )
    return first, values


def is_scope_known(connectivity: xr.Dataset | xr.DataArray) -> bool:
    """Whether a pair that is not stored is known to have no synapse."""
    scope = connectivity.coords.variables.get("scope")
    return scope is not None and scope.values.item() != "unknown"


def two_neurons() -> xr.Dataset:
    """Return connectivity of neurons 11 and 12, the latter with an autapse, for the examples."""
    pattern = make_pattern(np.array([1, 0, 1]), np.array([0, 1, 3]), (2, 2), "post")
    ids = np.array([11, 12])
    weights = {"synapse_size": np.array([5, 7, 2]), "synapse_count": np.array([1, 2, 1])}
    release = ("minnie65_public", 1718)
    return connectivity_dataset(weights, pattern, ids, ids, scope="unknown", release=release)
