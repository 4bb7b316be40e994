"""Rows on disk, sorted in runs by a neuron, and read back neuron by neuron.

Rows of any order and number become spans of whole neurons, with bounded memory: an external
counting sort. Each run is sorted in memory, and written behind the last one with the places where
its neurons begin; reading takes the rows of a range of neurons out of every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numba
import numpy as np

from microns_xr.store.stream import CopyWriter

__all__ = ["PairSpill", "Spill", "Stretch"]

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Stretch:
    """Rows of some neurons that follow each other.

    Attributes
    ----------
    first, last : int
        The neurons, from the first to one before the last.
    starts : numpy.ndarray
        (neurons + 1,), int64: where the rows of each neuron begin.
    columns : dict of str to numpy.ndarray
        Values of the rows, by neuron; those of one neuron in the order they were added.
    """

    first: int
    last: int
    starts: np.ndarray
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
    """Rows that are added in any order and read back neuron by neuron.

    Parameters
    ----------
    path : str
        File to write; leaving the block removes it.
    n_major : int
        How many neurons there are.
    columns : mapping of str to numpy dtype or (dtype, width)
        What is kept of a row beside its neuron. Whole numbers that fit int32 take 4 bytes on disk,
        run by run, whatever their dtype; NaN is kept.
    run_rows : int
        Rows that are sorted in memory at a time.
    """

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
        """Add rows.

        Parameters
        ----------
        major : numpy.ndarray
            (rows,): the neuron of each row, from 0.
        columns : mapping of str to numpy.ndarray
            (rows,) or (rows, width), every column that was declared.
        """
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
        """Read everything back, all neurons in order.

        Parameters
        ----------
        max_rows : int
            Rows that are held at a time; one neuron is never cut.

        Yields
        ------
        Stretch
            Together every neuron once, also those without a row.
        """
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
    """Pairs that arrive in the order of one copy of the connectivity, and leave in the other's.

    Parameters
    ----------
    path : str
        File to write; leaving the block removes it.
    n_major : int
        Length of the compressed axis of the copy that is to be made.
    run_rows : int
        Pairs that are sorted in memory at a time.

    Examples
    --------
    From pairs by post, in any number of pieces, to the copy by pre::

        with ChunkPool() as pool, PairSpill(path, n_pre) as spill:
            for first, lengths, indices, size, count in pieces:
                spill.add(first, lengths, indices, size, count)
            spill.write(CopyWriter(root, "pre", shape, pool), max_rows=1 << 20)
    """

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
