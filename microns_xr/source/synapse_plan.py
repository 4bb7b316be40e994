"""Which synapses to ask for next, so that no answer comes near the row limit.

A `Piece` is a run of the sorted root ids on one side of the request, or, where one root alone has
more synapses than an answer may hold, a range of synapse ids of that root. Pieces that are done
and pieces that are open never overlap and together are the whole request, so that nothing depends
on sizes, order or interruptions.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["ROW_LIMIT", "Piece", "SynapsePlan", "open_pieces", "split_ids", "split_synapses"]

# What the service allows by default; a server that allows less says so with its first cut answer.
ROW_LIMIT = 200_000
_MAX_IDS = 20_000  # of a batch: 400 KB of JSON


@dataclass(frozen=True, order=True)
class Piece:
    """A part of a request: root ids from `start` up to `stop`, perhaps a range of synapse ids.

    Attributes
    ----------
    start, stop : int
        Slice of the sorted root ids of the side that is asked by; ``0, 1`` where there is none.
    id_from, id_below : int or None
        Synapse ids from here, and below here; only for one root.
    """

    start: int
    stop: int
    id_from: int | None = None
    id_below: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_range(self) -> bool:
        """Whether it holds only a range of the synapses of its root."""
        return self.id_from is not None or self.id_below is not None


def split_ids(piece: Piece, parts: int) -> list[Piece]:
    """Split a piece of several roots into pieces of about equally many.

    Parameters
    ----------
    piece : Piece
        Two roots or more.
    parts : int
        How many pieces, at least two; never more than there are roots.

    Returns
    -------
    list of Piece
        In order.

    Examples
    --------
    >>> split_ids(Piece(10, 15), 2)
    [Piece(start=10, stop=12, id_from=None, id_below=None),
     Piece(start=12, stop=15, id_from=None, id_below=None)]
    """
    parts = min(max(parts, 2), len(piece))
    edges = [piece.start + len(piece) * i // parts for i in range(parts + 1)]
    return [Piece(a, b) for a, b in itertools.pairwise(edges)]


def split_synapses(piece: Piece, seen: np.ndarray, parts: int) -> list[Piece]:
    """Split the synapses of one root by their ids.

    The cuts are quantiles of the ids that a cut answer happened to hold. Whichever they were, the
    first and the last piece hold some of them each, so every split makes progress.

    Parameters
    ----------
    piece : Piece
        One root.
    seen : numpy.ndarray
        Some synapse ids of the piece, in any order.
    parts : int
        How many pieces, at least two.

    Returns
    -------
    list of Piece
        In order; empty where there is no way to split.

    Examples
    --------
    >>> [(p.id_from, p.id_below) for p in split_synapses(Piece(0, 1), np.array([7, 5, 9, 8]), 2)]
    [(None, 8), (8, None)]
    """
    seen = np.unique(seen)
    cuts = seen[np.arange(1, max(parts, 2)) * len(seen) // max(parts, 2)] if len(seen) else seen
    if len(seen) == 1:
        cuts = np.array([seen[0], seen[0] + 1])
    low, high = piece.id_from, piece.id_below
    inside = sorted(
        {c for c in cuts.tolist() if (low is None or c > low) and (high is None or c < high)}
    )
    edges = [low, *inside, high]
    if not inside:
        return []
    return [replace(piece, id_from=a, id_below=b) for a, b in itertools.pairwise(edges)]


def open_pieces(n_ids: int, done: Iterable[Piece]) -> list[Piece]:
    """Return what is left of a request.

    Parameters
    ----------
    n_ids : int
        How many roots the request has on its side.
    done : iterable of Piece
        What is finished.

    Returns
    -------
    list of Piece
        The rest, in as few pieces as possible, in order.

    Examples
    --------
    >>> [(p.start, p.stop, p.id_from) for p in open_pieces(9, [Piece(2, 5), Piece(7, 8, None, 40)])]
    [(0, 2, None), (5, 7, None), (7, 8, 40), (8, 9, None)]
    """
    whole = np.zeros(n_ids + 2, dtype=bool)
    whole[[0, -1]] = True
    ranges: dict[int, list[Piece]] = {}
    for piece in done:
        if piece.is_range:
            ranges.setdefault(piece.start, []).append(piece)
        else:
            whole[piece.start + 1 : piece.stop + 1] = True
    rest = []
    for start, pieces in ranges.items():
        if whole[start + 1]:
            continue
        whole[start + 1] = True
        below: int | None = None
        first = True
        for piece in sorted(pieces, key=lambda p: -math.inf if p.id_from is None else p.id_from):
            if piece.id_from is not None and (first or (below or 0) < piece.id_from):
                rest.append(Piece(start, start + 1, None if first else below, piece.id_from))
            first, below = False, piece.id_below
        if below is not None:
            rest.append(Piece(start, start + 1, below, None))
    edges = np.flatnonzero(np.diff(whole.astype(np.int8)))
    rest += [Piece(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return sorted(rest, key=lambda p: (p.start, -1 if p.id_from is None else p.id_from))


class SynapsePlan:
    """The open pieces of a request, handed out to several threads.

    Batches aim at half of the row limit; how many ids that is, is learned from the counts of the
    batches before.

    Parameters
    ----------
    n_ids : int
        Root ids of the side that is asked by.
    rows, ids : int
        Rows that were counted for some ids, to begin with.
    batch : int, optional
        The most ids of a batch.
    done : iterable of Piece
        What an earlier run finished.

    Attributes
    ----------
    limit : int
        The row limit, as far as it is known.
    ids_done, rows_done, answered : int
        Ids and synapses that are finished, and the rows that were answered for them.

    Examples
    --------
    >>> plan = SynapsePlan(1000, rows=64 * 500, ids=64)
    >>> piece = plan.next()
    >>> len(piece)
    200
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
        self.limit = ROW_LIMIT
        self._batch = min(batch or _MAX_IDS, _MAX_IDS)
        self._rows, self._ids = rows, ids
        # Taken from the end: what was split comes before what was never asked.
        self._open = open_pieces(n_ids, done)[::-1]
        self.ids_done = n_ids - sum(len(p) for p in self._open if not p.is_range)
        self.ids_done -= len({p.start for p in self._open if p.is_range})
        self.rows_done = self.answered = 0
        self._ranges: dict[int, int] = {}
        for piece in self._open:
            if piece.is_range:
                self._ranges[piece.start] = self._ranges.get(piece.start, 0) + 1
        self._in_flight = 0
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def target(self) -> int:
        """Rows that a batch aims at."""
        return max(1, self.limit // 2)

    @property
    def is_done(self) -> bool:
        """Whether nothing is open and nothing in flight."""
        with self._changed:
            return not self._open and not self._in_flight

    def next(self) -> Piece | None:
        """Take the next piece; None when all are done or the plan was stopped.

        Waits while others are in flight, for they may be split.
        """
        with self._changed:
            while not self._open and self._in_flight and not self._stopped:
                self._changed.wait()
            if self._stopped or not self._open:
                return None
            piece = self._open.pop()
            size = min(self._batch, max(1, int(self.target * self._ids / max(self._rows, 1))))
            # A little more is taken whole, rather than leave a crumb to ask for by itself.
            if len(piece) > min(1.3 * size, self._batch):
                self._open.append(Piece(piece.start + size, piece.stop))
                piece = Piece(piece.start, piece.start + size)
            self._in_flight += 1
            return piece

    def split(self, piece: Piece, parts: list[Piece], limit: int | None = None) -> None:
        """Put the parts of a taken piece in its place; `limit` is what its answer was cut at."""
        with self._changed:
            self.limit = min(self.limit, max(1, limit or self.limit))
            self._in_flight -= 1
            self._open += parts[::-1]
            if any(part.is_range for part in parts):
                before = self._ranges.get(piece.start, 1)
                self._ranges[piece.start] = before - 1 + len(parts)
            self._changed.notify_all()

    def finish(self, piece: Piece, rows: int, answered: int) -> None:
        """Count a taken piece as done: its synapses, and the rows of its answer."""
        with self._changed:
            self._in_flight -= 1
            self.rows_done += rows
            self.answered += answered
            if piece.is_range:
                self._ranges[piece.start] -= 1
                self.ids_done += not self._ranges[piece.start]
            else:
                self.ids_done += len(piece)
                self._rows += answered
                self._ids += len(piece)
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
