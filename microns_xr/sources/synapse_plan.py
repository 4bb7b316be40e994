"""Division of a request for synapses into queries whose answers stay below the row limit.

A `Piece` is a run of the sorted root ids on one side of the request or, where one root alone has
more synapses than an answer may hold, a range of the synapse ids of that root. Finished and open
pieces never overlap and together cover the request, so the result does not depend on the size of
the pieces, their order, or interruptions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Side = Literal["pre", "post"]
Count = Callable[[Mapping[Side, np.ndarray]], int]

# Default of the service; a server with a lower limit states it in its first truncated answer.
ROW_LIMIT = 200_000
_MAX_IDS = 20_000  # per query: 400 KB of JSON

# Lists of ids up to this length may be sent with every query; longer ones are applied locally.
SHORT_LIST = 5_000
_ID_BYTES = 20  # of an id in JSON
_ROW_BYTES = 32  # of a synapse in an answer: three ids, two supervoxels, a size, compressed
_SAMPLE = 64


@dataclass(frozen=True)
class Strategy:
    """Which side is divided into pieces, and whether the ids of the other side are sent."""

    side: Side | None  # the side whose ids are divided; None if neither is restricted
    send_other: bool  # whether queries may include the ids of the other side
    # How many rows were counted for how many ids.
    rows: int
    ids: int
    # The ids of the other side are sent only with queries of at least this many rows: there are
    # more of the smaller ones, and the ids would have more bytes than the rows they save.
    pays_from: int = 0

    def sends_other(self, limit: int) -> bool:
        """Whether queries include the ids of the other side, given the row limit."""
        return self.send_other and limit // 2 >= self.pays_from


def choose_strategy(pre: np.ndarray | None, post: np.ndarray | None, count: Count) -> Strategy:
    """Choose the side with fewer rows, by the rows of a few evenly spaced ids of each side.

    The ids of the other side are sent only if they are few (`SHORT_LIST`) and have fewer bytes than
    the rows that they save.
    """
    # The first is chosen if both sides have equally many rows.
    roots: dict[Side, np.ndarray | None] = {"post": post, "pre": pre}
    ids = {side: i for side, i in roots.items() if i is not None}
    if not ids:
        return Strategy(None, False, count({}), 1)
    samples = {
        side: i[np.arange(n := min(_SAMPLE, len(i))) * len(i) // n] for side, i in ids.items()
    }
    rows = {side: count({side: sample}) for side, sample in samples.items()}
    share = {side: len(samples[side]) / len(i) for side, i in ids.items()}
    side = min(ids, key=lambda s: rows[s] / share[s])
    n_sample = len(samples[side])
    one_sided = Strategy(side, False, rows[side], n_sample)
    other = next((s for s in ids if s != side), None)
    if other is None or len(ids[other]) > SHORT_LIST or not rows[side]:
        return one_sided
    n_rows = count({side: samples[side], other: ids[other]})
    n_saved = rows[side] - n_rows
    list_bytes = 2 * len(ids[other]) * _ID_BYTES  # once to count, once to query
    if list_bytes >= n_saved * _ROW_BYTES / share[side]:
        return one_sided
    # At this many rows the rows that are saved have as many bytes as the list.
    pays_from = math.ceil(list_bytes / _ROW_BYTES * n_rows / n_saved)
    if pays_from > ROW_LIMIT // 2:
        return one_sided
    return Strategy(side, True, n_rows, n_sample, pays_from)


@dataclass(frozen=True, order=True)
class Piece:
    """A part of a request: root ids `start` to `stop`, optionally a range of synapse ids."""

    # Slice of the sorted root ids of the strategy's side; 0 to 1 if there is none.
    start: int
    stop: int
    # Range of synapse ids, half-open; only for one root.
    id_from: int | None = None
    id_below: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_range(self) -> bool:
        """Whether it is a range of the synapses of one root."""
        return self.id_from is not None or self.id_below is not None


def split_ids(piece: Piece, parts: int) -> list[Piece]:
    """Split a piece of several roots into pieces of about equal size."""
    parts = min(max(parts, 2), len(piece))
    edges = [piece.start + len(piece) * i // parts for i in range(parts + 1)]
    return [Piece(a, b) for a, b in itertools.pairwise(edges)]


def split_range(
    ids: np.ndarray, low: int | None, high: int | None, parts: int
) -> list[tuple[int | None, int | None]]:
    """Split a range of ids at quantiles of the ids in a truncated answer.

    The first and the last part hold some of these ids each, so that every split makes progress.
    The result is empty if the range cannot be split.
    """
    ids, parts = np.unique(ids), max(parts, 2)
    cuts = ids[np.arange(1, parts) * len(ids) // parts] if len(ids) else ids
    if len(ids) == 1:
        cuts = np.array([ids[0], ids[0] + 1])
    inside = sorted(
        {c for c in cuts.tolist() if (low is None or c > low) and (high is None or c < high)}
    )
    return list(itertools.pairwise([low, *inside, high])) if inside else []


def split_synapses(piece: Piece, ids: np.ndarray, parts: int) -> list[Piece]:
    """Split the synapses of one root by their ids; empty if they cannot be split."""
    ranges = split_range(ids, piece.id_from, piece.id_below, parts)
    return [replace(piece, id_from=low, id_below=high) for low, high in ranges]


_FIRST_ID = -1  # below all synapse ids


def open_pieces(n_ids: int, done: Iterable[Piece]) -> list[Piece]:
    """Return the unfinished pieces of a request, in order."""
    # Pieces as intervals of (root, synapse id); the gaps between them are open.
    spans = []
    for piece in done:
        begin = (piece.start, _FIRST_ID if piece.id_from is None else piece.id_from)
        end = (piece.stop, _FIRST_ID)
        spans.append((begin, end if piece.id_below is None else (piece.start, piece.id_below)))
    pieces = []
    position = (0, _FIRST_ID)
    for begin, end in [*sorted(spans), ((n_ids, _FIRST_ID), (n_ids, _FIRST_ID))]:
        if position < begin:
            (first, id_from), (last, id_below) = position, begin
            if id_from != _FIRST_ID:
                ends_here = id_below if first == last else None
                pieces.append(Piece(first, first + 1, id_from, ends_here))
                first += 1
            if first < last:
                pieces.append(Piece(first, last))
            if first <= last and id_below != _FIRST_ID:
                pieces.append(Piece(last, last + 1, None, id_below))
        position = max(position, end)
    return pieces


class SynapsePlan:
    """The open pieces of a request.

    Queries aim at half of the row limit; their numbers of ids are estimated from earlier counts.
    """

    def __init__(
        self,
        n_ids: int,
        *,
        rows: int,
        ids: int,
        batch: int | None = None,
        done: Iterable[Piece] = (),
    ) -> None:
        self.n_ids = n_ids
        self.limit = ROW_LIMIT
        self.rows_done = self.pairs_done = 0
        self._max_ids = min(batch or _MAX_IDS, _MAX_IDS)
        self._rows, self._ids = rows, ids
        # Taken from the end: parts of split pieces come before pieces that were not queried yet.
        self._open = open_pieces(n_ids, done)[::-1]
        self._in_flight: set[Piece] = set()

    @property
    def ids_done(self) -> int:
        """Number of roots whose synapses are all done."""
        unfinished = [*self._open, *self._in_flight]
        # Several ranges of one root count once.
        whole = sum(len(piece) for piece in unfinished if not piece.is_range)
        return self.n_ids - whole - len({piece.start for piece in unfinished if piece.is_range})

    def next(self) -> Piece | None:
        """Take the next piece; None if none is open, while those in flight may still be split."""
        if not self._open:
            return None
        piece = self._open.pop()
        size = int(max(1, self.limit // 2) * self._ids / max(self._rows, 1))
        size = min(self._max_ids, max(1, size))
        # A slightly larger piece is taken whole, to avoid a separate query for a few ids.
        if len(piece) > min(1.3 * size, self._max_ids):
            self._open.append(Piece(piece.start + size, piece.stop))
            piece = Piece(piece.start, piece.start + size)
        self._in_flight.add(piece)
        return piece

    def split(self, piece: Piece, parts: list[Piece], limit: int | None = None) -> None:
        """Replace a taken piece by its parts; `limit` is the row limit of a truncated answer."""
        self.limit = min(self.limit, max(1, limit or self.limit))
        self._in_flight.remove(piece)
        self._open += parts[::-1]

    def finish(self, piece: Piece, rows: int, answered: int, pairs: int = 0) -> None:
        """Mark a taken piece as done; of the rows answered, some are synapses of the request."""
        self._in_flight.remove(piece)
        self.rows_done += rows
        self.pairs_done += pairs
        if not piece.is_range:
            self._rows += answered
            self._ids += len(piece)
