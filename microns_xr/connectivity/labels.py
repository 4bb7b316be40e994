"""Look up positions of ids on an axis."""

from __future__ import annotations

import numba
import numpy as np
import xarray as xr

from microns_xr.columns import plain_array
from microns_xr.connectivity.arrays import PAIR_DIMS
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.schema import require_unrounded
from microns_xr.threads import equal_spans, run_spans, usable_threads

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Knuth's multiplicative hashing


def require_known(ids: np.ndarray, positions: np.ndarray, what: str, where: str, hint: str) -> None:
    """Raise unless every id was found."""
    unknown = ids[positions < 0]
    if unknown.size:
        some = ", ".join(str(i) for i in unknown[:3].tolist())
        raise UnknownLabelError(
            f"{unknown.size} of {ids.size} ({unknown.size / ids.size:.1%}) ids of {what} are not "
            f"in {where}, such as {some}: {hint}"
        )


def require_ends(synapses: xr.Dataset) -> None:
    """Raise unless single synapses have the nucleus ids of both of their neurons."""
    if "synapse" not in synapses.dims:
        raise SchemaError(
            f"synapses has the dims {tuple(synapses.dims)}, expected 'synapse': one row per "
            "synapse, as returned by mx.build_synapses"
        )
    for axis in PAIR_DIMS:
        if axis not in synapses.variables or synapses[axis].dims != ("synapse",):
            raise SchemaError(
                f"synapses has no {axis} over synapse, found {sorted(map(str, synapses.variables))}"
                ": build them with mx.build_synapses, or read them with mx.open_store or "
                "xr.open_dataset(..., engine='microns_xr', group='synapses')"
            )


def each_once(ids: np.ndarray) -> np.ndarray:
    """Return every id or position once, ascending; most collections are so already."""
    return ids if (ids[1:] > ids[:-1]).all() else np.unique(ids)


class Lookup:
    """Positions of ids on an axis, through a table of hashes.

    For millions of ids among 94,000 labels it is fifteen times faster than a binary search,
    because most lookups take one memory access.
    """

    def __init__(self, labels: np.ndarray, what: str) -> None:
        self._what = what
        self._labels = self._as_int64(labels)
        self._table: tuple[np.ndarray, np.ndarray, np.uint64] | None = None
        if not (self._labels[1:] > self._labels[:-1]).all():
            self._hashed()  # raises if a label is repeated

    def _hashed(self) -> tuple[np.ndarray, np.ndarray, np.uint64]:
        """Return keys, slots and shift of the table, made once."""
        if self._table is not None:
            return self._table
        # At least twice as many slots as labels, so that few ids collide; a power of two, so that
        # the upper bits of the product are the number of the slot.
        bits = max(3, int(2 * self._labels.size).bit_length())
        shift = np.uint64(64 - bits)
        keys = np.zeros(1 << bits, dtype=np.int64)
        slots = np.full(1 << bits, -1, dtype=np.int32)
        if n_repeated := _fill(self._labels, keys, slots, shift):
            raise SchemaError(f"{self._what} repeats {n_repeated} labels, expected each once")
        self._table = keys, slots, shift
        return self._table

    def find(self, ids: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Return the position of each id, int32, -1 where it is not a label."""
        ids = self._as_int64(ids)
        # All neurons of an axis are often asked for, in their order.
        if self._table is None and np.array_equal(ids, self._labels):
            return np.arange(ids.size, dtype=np.int32)
        keys, slots, shift = self._hashed()
        out = np.empty(ids.size, dtype=np.int32)
        n_threads = usable_threads(threads, ids.size)

        def work(lo: int, hi: int) -> None:
            _find(ids, keys, slots, shift, out, lo, hi)

        run_spans(work, equal_spans(ids.size, 4 * n_threads), n_threads)
        return out

    def _as_int64(self, ids: np.ndarray) -> np.ndarray:
        if ids.dtype.kind not in "iu":
            raise SchemaError(
                f"{self._what} is matched with ids of dtype {ids.dtype}, expected int64: float "
                "rounds ids, so read them again as integers"
            )
        # Beyond int64 unsigned ids would wrap to the ids of others.
        return np.ascontiguousarray(plain_array(ids, self._what), dtype=np.int64)


@numba.njit(nogil=True, cache=True)
def _fill(labels, keys, slots, shift):  # type: ignore[no-untyped-def]
    mask = np.uint64(slots.size - 1)
    n_repeated = 0
    for i in range(labels.size):
        slot = (np.uint64(labels[i]) * _GOLDEN) >> shift
        # The slot is taken by another label: try the next one, as `_find` does.
        while slots[slot] >= 0 and keys[slot] != labels[i]:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] >= 0:
            n_repeated += 1
        else:
            keys[slot] = labels[i]
            slots[slot] = i
    return n_repeated


@numba.njit(nogil=True, cache=True)
def _find(ids, keys, slots, shift, out, lo, hi):  # type: ignore[no-untyped-def]
    mask = np.uint64(slots.size - 1)
    for i in range(lo, hi):
        slot = (np.uint64(ids[i]) * _GOLDEN) >> shift
        while slots[slot] >= 0 and keys[slot] != ids[i]:
            slot = (slot + np.uint64(1)) & mask
        out[i] = slots[slot]


def unit_roots(units: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the root ids of the units that have one, and the positions of those units."""
    for name in ("nucleus_id", "pt_root_id"):
        if name not in units.variables:
            raise SchemaError(
                f"units lacks {name}, found {list(map(str, units.variables))}: "
                "pass the units Dataset of the release"
            )
        if units[name].dims != ("nucleus_id",) or units[name].dtype != np.int64:
            raise SchemaError(
                f"units.{name} has dims {units[name].dims} and dtype {units[name].dtype}, "
                "expected ('nucleus_id',) and int64"
            )
    roots = units["pt_root_id"].values
    require_unrounded(roots, "units.pt_root_id")
    # 0 means "no segment" and occurs repeatedly.
    positions = np.flatnonzero(roots > 0)
    return roots[positions], positions
