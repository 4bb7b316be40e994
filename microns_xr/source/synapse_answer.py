"""One part of a request of synapses, asked until it is certain that all of it has arrived.

Nothing in an answer says that rows are missing: a stream may end after its schema, a service may
lose some. So the rows of every batch are counted by the service first, and an answer counts only
if it holds exactly that many synapses, each of which belongs to what was asked.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from microns_xr.errors import IncompleteDownloadError, SchemaError
from microns_xr.source.synapse_merge import sorted_synapses
from microns_xr.source.synapse_plan import Piece, split_ids, split_synapses
from microns_xr.source.synapse_request import SynapseRequest
from microns_xr.source.synapse_strategy import Side, Strategy

__all__ = ["Asker", "Found", "SynapseAnswer", "SynapseService", "column_of", "integer_columns"]

logger = logging.getLogger(__name__)

# Seconds before an answer that does not fit its count is asked for again.
_WAITS = (0.5, 2.0, 8.0, 30.0)
_FLOAT32_EXACT = 2**24


class SynapseAnswer(Protocol):
    """Rows of an answer, and the row limit if it may have cut them."""

    @property
    def table(self) -> pa.Table:
        """The rows, in no order."""
        ...

    @property
    def limited_to(self) -> int | None:
        """How many rows it was cut at; None: it was not."""
        ...


class SynapseService(Protocol):
    """What a download of synapses needs of a service; retries are its own."""

    @property
    def datastack(self) -> str:
        """Name of the datastack."""
        ...

    @property
    def version(self) -> int | None:
        """Materialization version."""
        ...

    def timestamp(self) -> str:
        """Return when the version was made."""
        ...

    def count(
        self,
        table: str,
        filter_in: Mapping[str, Sequence[Any]] | None = None,
        *,
        filter_range: Mapping[str, tuple[int | None, int | None]] | None = None,
    ) -> int:
        """Return how many rows a query has, row limit or not."""
        ...

    def query(
        self,
        table: str,
        *,
        filter_in: Mapping[str, Sequence[Any]] | None = None,
        filter_range: Mapping[str, tuple[int | None, int | None]] | None = None,
        select_columns: Sequence[str] | None = None,
    ) -> SynapseAnswer:
        """Return the rows of a query, as far as the row limit goes."""
        ...


def integer_columns(table: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return columns of an answer as int64, exactly.

    Parameters
    ----------
    table : pyarrow.Table
        The answer; other columns are left out.
    names : sequence of str
        Columns.

    Returns
    -------
    dict of str to numpy.ndarray
        int64; a root id that is null is 0, no segment. Sizes travel as floats and must be whole.

    Raises
    ------
    SchemaError
        If a column is not there, holds ids as floats, or values that are null or not whole.

    Examples
    --------
    >>> integer_columns(pa.table({"size": pa.array([7.0], pa.float32())}), ["size"])
    {'size': array([7])}
    """
    columns = {}
    for name in names:
        if name not in table.column_names:
            raise SchemaError(
                f"the synapses have no column {name}, found {table.column_names}: is this a table "
                "of synapses?"
            )
        column = table[name]
        if name.endswith("_root_id"):
            column = column.fill_null(0)
        floats = pa.types.is_floating(column.type)
        if column.null_count or not (pa.types.is_integer(column.type) or floats):
            raise SchemaError(
                f"column {name} of the synapses is {column.type} with {column.null_count} nulls, "
                "expected whole numbers"
            )
        values = column.to_numpy()
        if floats:
            if name.endswith("id"):
                raise SchemaError(f"column {name} of the synapses holds ids as floats")
            if not (np.isfinite(values) & (values == np.trunc(values))).all():
                raise SchemaError(f"column {name} of the synapses holds fractions, NaN or infinity")
            if len(values) and np.abs(values).max() > _FLOAT32_EXACT:
                logger.warning("%s above 2^24 travels as float32, rounded to 8 digits", name)
        columns[name] = values.astype(np.int64)
    return columns


@dataclass(frozen=True)
class Found:
    """What came of a piece: its synapses, or the pieces to ask for instead.

    Attributes
    ----------
    rows : dict of str to numpy.ndarray
        The synapses of the request, sorted.
    answered : int
        Rows of the answer that they were taken from.
    parts : list of Piece
        Empty where the piece is done.
    limit : int or None
        The row limit that an answer met.
    """

    rows: dict[str, np.ndarray] = field(default_factory=dict)
    answered: int = 0
    parts: list[Piece] = field(default_factory=list)
    limit: int | None = None


class Asker:
    """Asks a service for pieces of one request.

    Parameters
    ----------
    service : SynapseService
        The service.
    request : SynapseRequest
        What is asked.
    strategy : Strategy
        How.

    Attributes
    ----------
    n_ids : int
        Root ids of the side that is asked by; 1 where there is none.
    stopped : threading.Event
        Ends the waiting between two attempts.
    """

    def __init__(
        self, service: SynapseService, request: SynapseRequest, strategy: Strategy
    ) -> None:
        self._service = service
        self._request = request
        self._strategy = strategy
        self.stopped = threading.Event()
        by_side: dict[Side | None, np.ndarray | None] = {"pre": request.pre, "post": request.post}
        self._ids = by_side.get(strategy.side)
        other: dict[Side | None, Side] = {"pre": "post", "post": "pre"}
        self._side = column_of(strategy.side) if strategy.side else None
        self._other = column_of(other[strategy.side]) if strategy.side else ""
        self._other_ids = by_side[other[strategy.side]] if strategy.side else None
        self.n_ids = 1 if self._ids is None else len(self._ids)

    def _filters(self, piece: Piece, sent: np.ndarray | None) -> dict[str, Any]:
        filters: dict[str, Any] = {}
        if self._side and self._ids is not None:
            filters[self._side] = self._ids[piece.start : piece.stop].tolist()
        if sent is not None:
            filters[self._other] = sent.tolist()
        ranges = {"id": (piece.id_from, piece.id_below)} if piece.is_range else None
        return {"filter_in": filters, **({"filter_range": ranges} if ranges else {})}

    def ask(self, piece: Piece, limit: int) -> Found:
        """Fetch the synapses of a piece, or find that it has to be split.

        Parameters
        ----------
        piece : Piece
            What to ask for.
        limit : int
            The row limit, as far as it is known.

        Returns
        -------
        Found
            Its synapses, or its parts.

        Raises
        ------
        IncompleteDownloadError
            If count and answer disagree again and again.
        SchemaError, SourceError
            If the answer holds no synapses, or contradicts itself; or as the service raises.
        """
        sent = self._other_ids if self._strategy.sends_other(limit) else None
        table, filters = self._request.table, self._filters(piece, sent)
        found = ""
        for wait in (0.0, *_WAITS):
            if self.stopped.wait(wait) if wait else self.stopped.is_set():
                break
            counted = self._service.count(table, **filters)
            if counted > limit and len(piece) > 1:
                return Found(parts=split_ids(piece, math.ceil(counted / max(1, limit // 2))))
            answer = self._service.query(table, select_columns=self._request.selected, **filters)
            rows = sorted_synapses(integer_columns(answer.table, self._request.columns))
            found, n = self._misfit(rows, piece, sent), len(rows["id"])
            if not found and n == counted:
                return Found(self._wanted(rows), n)
            if not found and answer.limited_to is not None and n < counted:
                parts = math.ceil(counted / max(1, answer.limited_to // 2))
                split = (
                    split_ids(piece, parts)
                    if len(piece) > 1
                    else split_synapses(piece, rows["id"], parts)
                )
                if split:
                    return Found(parts=split, limit=answer.limited_to)
            found = found or f"{n} synapses arrived where the service counts {counted}"
            logger.warning("%s: %s; asking again", self._describe(piece), found)
        raise IncompleteDownloadError(
            f"{self._describe(piece)}: {found or 'stopped'} ({len(_WAITS) + 1} attempts): the "
            "service loses rows at the moment; run the same again later, what has arrived is kept"
        )

    def _describe(self, piece: Piece) -> str:
        ids = "all" if self._ids is None else f"{len(piece)} ids of {self._side}"
        part = f", synapses {piece.id_from} to {piece.id_below}" if piece.is_range else ""
        return f"{self._request.table}, {ids}{part}"

    def _misfit(self, rows: dict[str, np.ndarray], piece: Piece, sent: np.ndarray | None) -> str:
        """Say what in an answer was not asked for."""
        low, high = piece.id_from, piece.id_below
        outside = np.zeros(len(rows["id"]), dtype=bool)
        if self._side and self._ids is not None:
            outside |= ~_among(rows[self._side], self._ids[piece.start : piece.stop])
        if sent is not None:
            outside |= ~_among(rows[self._other], sent)
        if low is not None:
            outside |= rows["id"] < low
        if high is not None:
            outside |= rows["id"] >= high
        n = int(outside.sum())
        return f"{n} of {len(outside)} synapses are none of those asked for" if n else ""

    def _wanted(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._other_ids is None:
            return rows
        keep = _among(rows[self._other], self._other_ids)
        return {name: column[keep] for name, column in rows.items()}


def column_of(side: Side) -> str:
    """Return the column of the root ids of a side."""
    return f"{side}_pt_root_id"


def _among(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Whether values are among sorted ids."""
    if not len(ids):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return np.asarray(ids[at] == values)
