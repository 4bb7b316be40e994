"""Rows of some neurons in the order of the store, and the pairs they make."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numba
import numpy as np

from microns_xr.store.stream import CopyWriter
from microns_xr.threads import balanced_spans, run_spans, usable_threads

# Rows on disk, sorted in runs by a neuron, and read back neuron by neuron.
#
# Rows of any order and number become spans of whole neurons, with bounded memory: an external
# counting sort. Each run is sorted in memory, and written behind the last one with the places
# where its neurons begin; reading takes the rows of a range of neurons out of every run.


_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Stretch:
    """Rows of some neurons that follow each other."""

    # the neurons, from the first to one before the last
    first: int
    last: int
    # (neurons + 1,), int64: where the rows of each neuron begin
    starts: np.ndarray
    # values of the rows, by neuron; those of one neuron in the order they were added
    columns: dict[str, np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        """How many rows each neuron has."""
        return np.diff(self.starts)


@dataclass
class _Run:
    offset: int  # of the file, where the starts of its neurons lie; the columns follow
    rows: int
    columns: dict[str, tuple[int, np.dtype]] = field(default_factory=dict)


class Spill:
    """Rows that are added in any order and read back neuron by neuron."""

    def __init__(
        self,
        path: str,
        n_major: int,
        columns: Mapping[str, str | tuple[str, int]],
        run_rows: int = 1 << 20,
    ) -> None:
        self.path, self.n_major, self._run_rows = path, n_major, run_rows
        self._columns = {
            name: (np.dtype(spec), ()) if isinstance(spec, str) else (np.dtype(spec[0]), spec[1:])
            for name, spec in columns.items()
        }
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  # closed by __exit__
        self._pieces: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._held = 0
        self._runs: list[_Run] = []
        self._end = 0
        self.per_major = np.zeros(n_major, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.clear()
        self._file.close()
        os.unlink(self.path)

    @property
    def rows(self) -> int:
        """Rows that were added."""
        return int(self.per_major.sum()) + self._held

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self._end

    def append(self, major: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows."""
        if not len(major):
            return
        self._pieces.append((major, {name: columns[name] for name in self._columns}))
        self._held += len(major)
        if self._held >= self._run_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is still in memory; `per_major` then counts all rows."""
        if not self._held:
            return
        major = np.concatenate([piece for piece, _ in self._pieces])
        starts, order = _counting_sort(major, self.n_major)
        run = _Run(self._end, len(major))
        self._put(starts)
        for name in self._columns:
            values = np.concatenate([columns[name] for _, columns in self._pieces])
            values = _narrow(values[order])
            run.columns[name] = (self._end, values.dtype)
            self._put(values)
        self._runs.append(run)
        self.per_major += np.diff(starts)
        self._pieces, self._held = [], 0

    def _put(self, values: np.ndarray) -> None:
        rest = memoryview(np.ascontiguousarray(values)).cast("B")
        self._end += len(rest)
        while len(rest):
            rest = rest[self._file.write(rest) :]

    def stretches(self, max_rows: int) -> Iterator[Stretch]:
        """Read everything back, all neurons in order."""
        self.flush()
        ends = np.cumsum(self.per_major)
        first = 0
        while first < self.n_major:
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + max_rows, side="right"))
            last = min(max(last, first + 1), self.n_major)
            yield self._read(first, last)
            first = last

    def _read(self, first: int, last: int) -> Stretch:
        starts = np.zeros(last - first + 1, dtype=np.int64)
        np.cumsum(self.per_major[first:last], out=starts[1:])
        free = starts[:-1].copy()
        out = {
            name: np.empty((int(starts[-1]), *width), dtype=dtype)
            for name, (dtype, width) in self._columns.items()
        }
        for run in self._runs:
            own = self._get(run.offset + 4 * first, np.dtype(np.int32), (last - first + 1,))
            n = int(own[-1] - own[0])
            if not n:
                continue
            to = _places(own, free, n)
            for name, (dtype, width) in self._columns.items():
                offset, narrow = run.columns[name]
                row_bytes = narrow.itemsize * int(np.prod(width, dtype=np.int64))
                values = self._get(offset + int(own[0]) * row_bytes, narrow, (n, *width))
                out[name][to] = values.astype(dtype, copy=False)
        return Stretch(first, last, starts, out)

    def _get(self, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(shape, dtype=dtype)
        rest = memoryview(values).cast("B")
        self._file.seek(offset)
        while len(rest):
            n = self._file.readinto(rest)
            if not n:
                raise OSError(f"{self.path} ends at byte {offset}, it was cut by somebody else")
            rest = rest[n:]
        return values


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return values in int32 where that holds them all."""
    if values.dtype == np.int32 or not values.size:
        return values
    low, high = values.min(), values.max()  # NaN compares as False
    if not (low >= _INT32.min and high <= _INT32.max):
        return values
    narrow = values.astype(np.int32)
    if values.dtype.kind == "f" and not np.array_equal(narrow, values):
        return values
    return narrow


@numba.njit(nogil=True, cache=True)
def _counting_sort(major, n_major):  # type: ignore[no-untyped-def]
    starts = np.zeros(n_major + 1, dtype=np.int32)
    for m in major:
        starts[m + 1] += 1
    for m in range(n_major):
        starts[m + 1] += starts[m]
    free = starts[:-1].copy()
    order = np.empty(major.size, dtype=np.int32)
    for r in range(major.size):
        to = free[major[r]]
        order[to] = r
        free[major[r]] = to + 1
    return starts, order


@numba.njit(nogil=True, cache=True)
def _places(own, free, n):  # type: ignore[no-untyped-def]
    # Where the rows of a run belong, behind those of earlier runs.
    to = np.empty(n, dtype=np.int64)
    r = 0
    for m in range(free.size):
        for _ in range(own[m + 1] - own[m]):
            to[r] = free[m]
            free[m] += 1
            r += 1
    return to


class PairSpill(Spill):
    """Pairs that arrive in the order of one copy of the connectivity, and leave in the other's."""

    def __init__(self, path: str, n_major: int, run_rows: int = 1 << 20) -> None:
        columns = {"indices": "int32", "size": "int64", "count": "int64"}
        super().__init__(path, n_major, columns, run_rows)

    def add(
        self,
        first: int,
        lengths: np.ndarray,
        indices: np.ndarray,
        size: np.ndarray,
        count: np.ndarray,
    ) -> None:
        """Add pairs of the other copy, whose neurons begin at number `first`; see `CopyWriter`."""
        minors = np.arange(first, first + len(lengths), dtype=np.int32)
        columns = {"indices": np.repeat(minors, lengths), "size": size, "count": count}
        self.append(indices, columns)

    def write(self, copy: CopyWriter, max_rows: int = 1 << 20) -> None:
        """Append all pairs to a writer of the copy; the caller finishes it."""
        for part in self.stretches(max_rows):
            columns = part.columns
            copy.append(part.lengths, columns["indices"], columns["size"], columns["count"])


class Collated(NamedTuple):
    """Sorted rows, and their pairs."""

    # (rows,), int32: the rows by neuron, then partner, then id
    order: np.ndarray
    lengths: np.ndarray  # (neurons,), int64: pairs of each neuron
    first: np.ndarray  # (pairs,), int32: where in `order` each pair begins
    # place in `order` of a row that has the id of the row before it; -1 for none
    repeated: int


def collate(starts: np.ndarray, partner: np.ndarray, ids: np.ndarray | None) -> Collated:
    """Sort the rows of each neuron by partner, those of a pair by id."""
    n_threads = usable_threads(None, partner.size)
    has_ids = ids is not None
    keys = np.zeros(0, dtype=np.int64) if ids is None else ids
    order = np.empty(partner.size, dtype=np.int32)
    first = np.empty(partner.size, dtype=np.int32)
    lengths = np.zeros(starts.size - 1, dtype=np.int64)
    repeated = run_spans(
        lambda lo, hi: int(_sort(starts, partner, keys, has_ids, order, first, lengths, lo, hi)),
        balanced_spans(starts, 4 * n_threads),
        n_threads,
    )
    firsts = np.empty(int(lengths.sum()), dtype=np.int32)
    _compact(starts, lengths, first, firsts)
    return Collated(order, lengths, firsts, max(repeated, default=-1))


@numba.njit(nogil=True, cache=True)
def _sort(  # type: ignore[no-untyped-def]
    starts, partner, ids, has_ids, order, first, lengths, lo, hi
):
    repeated = -1
    for m in range(lo, hi):
        start, stop = starts[m], starts[m + 1]
        n = stop - start
        if n == 0:
            continue
        keys = np.empty(n, dtype=np.int64)
        for k in range(n):
            keys[k] = np.int64(partner[start + k]) << 32 | k
        keys.sort()
        n_pairs = 0
        k = 0
        while k < n:
            who = keys[k] >> 32
            end = k + 1
            while end < n and keys[end] >> 32 == who:
                end += 1
            for i in range(k, end):
                order[start + i] = start + (keys[i] & 0xFFFFFFFF)
            if has_ids and end - k > 1:
                _sort_by_id(order[start + k : start + end], ids)
                for i in range(start + k + 1, start + end):
                    if ids[order[i]] == ids[order[i - 1]]:
                        repeated = i
            first[start + n_pairs] = start + k
            n_pairs += 1
            k = end
        lengths[m] = n_pairs
    return repeated


@numba.njit(nogil=True, cache=True)
def _sort_by_id(rows, ids):  # type: ignore[no-untyped-def]
    if rows.size > 32:
        rows[:] = rows[np.argsort(ids[rows])]
        return
    for i in range(1, rows.size):
        row = rows[i]
        j = i
        while j > 0 and ids[rows[j - 1]] > ids[row]:
            rows[j] = rows[j - 1]
            j -= 1
        rows[j] = row


@numba.njit(nogil=True, cache=True)
def _compact(starts, lengths, first, firsts):  # type: ignore[no-untyped-def]
    n = 0
    for m in range(lengths.size):
        for k in range(starts[m], starts[m] + lengths[m]):
            firsts[n] = first[k]
            n += 1
