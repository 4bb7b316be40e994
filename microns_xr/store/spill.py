"""External sort, by neuron, of rows that do not fit in memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np

from microns_xr.connectivity.sort import transpose_pattern
from microns_xr.errors import SchemaError
from microns_xr.store.stream import PairBlock

_INT32 = np.iinfo(np.int32)


class Stretch(NamedTuple):
    """Rows of some neighbouring neurons."""

    # the neurons are range(first, last)
    first: int
    last: int
    # (neurons + 1,), int64: start of the rows of each neuron, and the number of rows
    starts: np.ndarray
    # values of the rows, by neuron; rows of one neuron are in the order they were added
    columns: dict[str, np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        """Number of rows of each neuron."""
        return np.diff(self.starts)

    @property
    def majors(self) -> np.ndarray:
        """Neuron of each row, int32."""
        return np.repeat(np.arange(self.first, self.last, dtype=np.int32), self.lengths)


class Spill:
    """External counting sort: rows are added in any order and read back neuron by neuron.

    Runs of `run_rows` rows are sorted in memory and appended to a file, each with the start of the
    rows of each neuron. Reading collects the rows of a range of neurons from every run. `columns`
    gives the dtype of each column, or its dtype and width.
    """

    def __init__(
        self,
        path: str,
        n_major: int,
        columns: Mapping[str, str | tuple[str, int]],
        run_rows: int = 1 << 20,
    ) -> None:
        self.path, self.n_major, self._run_rows = path, n_major, run_rows
        self._columns = {name: np.dtype(spec) for name, spec in columns.items()}
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  # closed by __exit__
        self._pieces: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []
        self._n_waiting = 0
        # per run: offset of the starts, then offset and dtype of each column
        self._runs: list[tuple[int, dict[str, tuple[int, np.dtype]]]] = []
        self.nbytes = 0  # on disk
        self.per_major = np.zeros(n_major, dtype=np.int64)  # rows on disk per neuron

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.clear()
        self._file.close()
        os.unlink(self.path)

    @property
    def rows(self) -> int:
        """Number of rows that were added."""
        return int(self.per_major.sum()) + self._n_waiting

    def append(self, major: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows; the arrays are written later and must not be modified."""
        if not len(major):
            return
        self._pieces.append((major, columns))
        self._n_waiting += len(major)
        if self._n_waiting >= self._run_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows still in memory; `per_major` then counts all rows."""
        if not self._n_waiting:
            return
        major = np.concatenate([piece for piece, _ in self._pieces])
        one_span = np.array([0, major.size], dtype=np.int32)
        _, starts, order = transpose_pattern(major, one_span, self.n_major)
        start_offset, places = self._put(starts), {}
        for name in self._columns:
            values = np.concatenate([columns[name] for _, columns in self._pieces])
            values = _narrow(values[order])
            places[name] = self._put(values), np.dtype((values.dtype, values.shape[1:]))
        self._runs.append((start_offset, places))
        self.per_major += np.diff(starts)
        self._pieces, self._n_waiting = [], 0

    def _put(self, values: np.ndarray) -> int:
        """Append an array to the file and return its offset."""
        begin = self.nbytes
        self._file.seek(begin)
        rest = memoryview(np.ascontiguousarray(values)).cast("B")
        self.nbytes += len(rest)
        # Not with ndarray.tofile, whose error on a full disk lacks the errno.
        while len(rest):
            rest = rest[self._file.write(rest) :]
        return begin

    def _get(self, offset: int, dtype: np.dtype, n: int) -> np.ndarray:
        self._file.seek(offset)
        values = np.fromfile(self._file, dtype, n)
        if len(values) < n:
            raise OSError(f"{self.path} is truncated: another process has changed it")
        return values

    def stretches(self, max_rows: int) -> Iterator[Stretch]:
        """Yield all rows, neurons in order, at most `max_rows` or one neuron at a time."""
        self.flush()
        ends = np.cumsum(self.per_major)
        first = 0
        while first < self.n_major:
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + max_rows, side="right"))
            last = min(max(last, first + 1), self.n_major)
            yield self._read(first, last)
            first = last

    def pairs(self, max_rows: int, weights: Collection[str]) -> Iterator[PairBlock]:
        """Yield rows that are pairs, with some of their columns."""
        for part in self.stretches(max_rows):
            values = {name: part.columns[name] for name in weights}
            yield part.lengths, part.columns["indices"], values

    def _read(self, first: int, last: int) -> Stretch:
        starts = np.concatenate([[0], np.cumsum(self.per_major[first:last])])
        free = starts[:-1].copy()
        out = {name: np.empty(int(starts[-1]), dtype) for name, dtype in self._columns.items()}
        for start_offset, places in self._runs:
            run = self._get(start_offset + 4 * first, np.dtype(np.int32), last - first + 1)
            lengths, begin, n = np.diff(run), int(run[0]), int(run[-1] - run[0])
            if not n:
                continue
            # The rows of a neuron follow those of earlier runs.
            to = np.repeat(free - (run[:-1] - begin), lengths) + np.arange(n)
            free += lengths
            for name, (offset, dtype) in places.items():
                out[name][to] = self._get(offset + begin * dtype.itemsize, dtype, n)
        return Stretch(first, last, starts, out)


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return values as int32 if that is exact, as for most sizes and positions."""
    if values.dtype == np.int32 or not values.size:
        return values
    low, high = values.min(), values.max()  # NaN compares as False
    if not (low >= _INT32.min and high <= _INT32.max):
        return values
    narrow = values.astype(np.int32)
    if values.dtype.kind == "f" and not np.array_equal(narrow, values):
        return values
    return narrow


def collate(
    starts: np.ndarray, partner: np.ndarray, ids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the rows of each neuron by partner, and those of a pair by synapse id.

    Returns the order of the rows, the start of each pair in it, and the number of pairs per neuron.
    Raises if a synapse id is repeated, which shows within a pair since the partners are the same.
    """
    # Grouped by partner, then by neuron, each time in the order of the rows.
    n_partners = int(partner.max(initial=-1)) + 1
    by_partner = transpose_pattern(partner, starts.astype(np.int32), n_partners)
    partners, _, rows = transpose_pattern(by_partner.indices, by_partner.indptr, starts.size - 1)
    order = by_partner.source[rows]
    is_first = np.ones(order.size, dtype=bool)
    is_first[1:] = partners[1:] != partners[:-1]
    is_first[starts[:-1][starts[:-1] < starts[1:]]] = True
    first = np.flatnonzero(is_first)
    if ids is not None and first.size < order.size:
        n_rows = np.diff(first, append=order.size)
        several = np.flatnonzero(np.repeat(n_rows > 1, n_rows))
        pair = np.repeat(np.arange(first.size), n_rows)[several]
        by_id = order[several][np.lexsort([ids[order[several]], pair])]
        repeated = (np.diff(ids[by_id]) == 0) & (np.diff(pair) == 0)
        if repeated.any():
            raise SchemaError(
                f"synapse id {ids[by_id[:-1]][repeated][-1]} is repeated, expected each synapse "
                "once: the files overlap, or one of them was joined from several; pass each part "
                "once"
            )
        order[several] = by_id
    return order, first, np.diff(np.searchsorted(first, starts))
