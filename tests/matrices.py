"""Small random connectivity and plain implementations to compare with."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import xarray as xr

from microns_xr.connectivity.arrays import Compressed, connectivity_dataset, make_pattern
from microns_xr.releases import stamp_release

# 18-digit ids: a float64 cannot tell neighbours apart.
FIRST_ID = 864691135000000001


def ids(n: int, first: int = FIRST_ID) -> np.ndarray:
    return first + 3 * np.arange(n, dtype=np.int64)


def compress(stored: np.ndarray, *tables: np.ndarray) -> tuple[np.ndarray, ...]:
    """Indices, indptr and the values of each table where `stored`, by rows, in plain numpy."""
    major, minor = np.nonzero(stored)
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))]).astype(np.int32)
    return minor.astype(np.int32), indptr, *(t[major, minor] for t in tables)


def random_tables(rng: np.random.Generator, n_pre: int, n_post: int, density: float):
    """Where there are pairs, and their sizes (0 among them) and counts."""
    stored = rng.random((n_pre, n_post)) < density
    size = np.where(stored, rng.integers(0, 50, stored.shape) * 1000, 0)
    count = np.where(stored, rng.integers(1, 4, stored.shape), 0)
    return stored, size, count


def dataset(
    stored: np.ndarray,
    size: np.ndarray,
    count: np.ndarray,
    compressed: Compressed = "post",
    pre_ids: np.ndarray | None = None,
    post_ids: np.ndarray | None = None,
    version: int = 1718,
) -> xr.Dataset:
    tables = (stored, size, count) if compressed == "pre" else (stored.T, size.T, count.T)
    indices, indptr, sizes, counts = compress(*tables)
    return connectivity_dataset(
        {"synapse_size": sizes, "synapse_count": counts},
        make_pattern(indices, indptr, stored.shape, compressed),
        ids(stored.shape[0]) if pre_ids is None else pre_ids,
        ids(stored.shape[1]) if post_ids is None else post_ids,
        scope="requested",
        release=("minnie65_public", version),
    )


def connectivity_of_pairs(stored: np.ndarray, **kwargs) -> xr.Dataset:
    """Connectivity with one synapse of size 1000 per stored pair, axes starting with equal ids."""
    ones = stored.astype(np.int64)
    return dataset(stored, 1000 * ones, ones, "pre", **kwargs)


def units_of(nucleus_id: np.ndarray, version: int = 1718, **variables) -> xr.Dataset:
    """Units with these variables: one word for all or one each, positions, other numbers."""
    units = xr.Dataset(coords={"nucleus_id": nucleus_id, "axis": list("xyz")})
    for name, values in variables.items():
        is_word = isinstance(values, str) or np.asarray(values).dtype.kind in "UO"
        values = np.array(values, dtype=object if is_word else None)
        dims = ("nucleus_id", "axis")[: max(1, values.ndim)]
        units[name] = (dims, np.broadcast_to(values, [units.sizes[d] for d in dims]).copy())
    return stamp_release(units, "minnie65_public", version)


def dense(connectivity: xr.Dataset, name: str = "synapse_size") -> np.ndarray:
    return connectivity[name].data.todense()


def stored_pairs(connectivity: xr.Dataset) -> np.ndarray:
    """Where pairs are stored, those of value 0 too."""
    array = connectivity.synapse_count.data
    out = np.zeros(array.shape, dtype=bool)
    for major in range(len(array.indptr) - 1):
        for minor in array.indices[array.indptr[major] : array.indptr[major + 1]]:
            out[(minor, major) if tuple(array.compressed_axes) == (1,) else (major, minor)] = True
    return out


def contract_scipy(weights, indices, indptr, n_minor, values, rows, *, over):
    """What `contract_buffers` computes, by scipy: sums, share and partners (0, 1 or 3)."""
    has = rows >= 0
    dense = np.where(has[:, None], values[rows].astype(np.float64), 0.0)

    def product(data, other):
        shape = (indptr.size - 1, n_minor)
        matrix = scipy.sparse.csr_array((data, indices, indptr), shape=shape)
        return np.asarray((matrix if over == "minor" else matrix.T) @ other)

    total, rated = product(weights, np.stack([np.ones(rows.size), has], axis=1)).T
    share = np.divide(rated, total, out=np.full(total.size, np.nan), where=total != 0)
    some = product(np.ones(weights.size), np.stack([np.ones(rows.size), has], axis=1)) > 0
    return product(weights.astype(np.float64), dense), share, some @ [1, 2]
