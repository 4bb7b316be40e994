"""Whole tables from the service into the cache, none of their rows lost on the way.

The service cuts an answer at its row limit, in no defined order and with no more than a header to
say so, and an answer may hold too few rows without any sign at all. So a table that meets the limit
is asked for again in ranges of its ids until no answer is cut, and no table is taken before it has
as many rows as the service counts, each id once.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from microns_xr.errors import SourceError
from microns_xr.source.cache import TableCache
from microns_xr.source.policies import Policy, table_names
from microns_xr.source.retry import BadAnswer, Retry
from microns_xr.source.wire import Answer

__all__ = ["FetchedTable", "Policy", "download_tables", "fetch_table", "table_names"]

logger = logging.getLogger(__name__)

# How often a table is asked for whose rows are not those that the service counts.
_ATTEMPTS = 5
# How full the answers to ranges of ids shall be: the ids of a cut answer are a sample of the
# table's, so that the ranges made of them come out somewhat uneven.
_FILLING = 0.7


class QuerySource(Protocol):
    """What is needed of `microns_xr.source.cave.CaveSource`."""

    datastack: str
    version: int | None
    retry: Retry
    row_limit: int | None

    def count(self, table: str, filter_in: Mapping[str, Sequence[Any]] | None = None) -> int:
        """Return how many rows a table has."""
        ...

    def query(
        self,
        table: str,
        *,
        filter_in: Mapping[str, Sequence[Any]] | None = None,
        filter_range: Mapping[str, tuple[int | None, int | None]] | None = None,
        select_columns: Sequence[str] | None = None,
    ) -> Answer:
        """Return rows of a table."""
        ...

    def timestamp(self) -> str:
        """Return when the version was materialized."""
        ...


@dataclass(frozen=True)
class FetchedTable:
    """A whole table.

    Attributes
    ----------
    table : pyarrow.Table
        Its rows, sorted by id.
    queries : int
        How many answers it is made of.
    resolution_nm : tuple of float or None
        Voxel size of its positions, where the service says so.
    """

    table: pa.Table
    queries: int
    resolution_nm: tuple[float, ...] | None


def fetch_table(source: QuerySource, name: str) -> FetchedTable:
    """Fetch every row of a table.

    Parameters
    ----------
    source : CaveSource
        The service.
    name : str
        Table name.

    Returns
    -------
    FetchedTable
        As many rows as the service counts, each id once, sorted by id: the same to the bit
        whatever the order and the number of answers.

    Raises
    ------
    SourceError
        If there is no such table, or the service refuses.
    IncompleteDownloadError
        If other rows arrive than the service counts, again and again.
    """

    def ask() -> FetchedTable:
        expected = source.count(name)
        answers = _answers(source, name, expected)
        # Types may differ where an answer has no value at all in a column.
        table = pa.concat_tables([a.table for a in answers], promote_options="permissive")
        table = table.sort_by("id").combine_chunks()
        n_ids = pc.count_distinct(table["id"]).as_py()
        if n_ids != table.num_rows:
            raise BadAnswer(f"{table.num_rows} rows with {n_ids} ids arrived, expected each once")
        if table.num_rows != expected:
            # That number counts rows that are no longer valid and that no query brings; and a
            # number that is cut on its way is still a number.
            valid = source.count(name, {})
            if table.num_rows != valid:
                raise BadAnswer(
                    f"{table.num_rows} rows arrived, the service counts {valid}"
                    + (f" ({expected} with those no longer valid)" if expected > valid else "")
                )
        return FetchedTable(table, len(answers), answers[0].resolution_nm)

    attempts = min(source.retry.attempts, _ATTEMPTS)
    what = f"the table {name} of {source.datastack} v{source.version}"
    return source.retry.call(ask, what, attempts=attempts)


def _answers(source: QuerySource, name: str, expected: int) -> list[Answer]:
    """Ask for a table, in ranges of ids where the row limit would cut it."""
    too_long = source.row_limit is not None and expected > source.row_limit
    first = source.query(name, select_columns=["id"]) if too_long else None
    if first is None or first.limited_to is None:
        first = source.query(name)
    if "id" not in first.table.column_names:
        raise SourceError(
            f"{name} has no column 'id', found {first.table.column_names}: it is no table of "
            "annotations and cannot be fetched without loss"
        )
    if first.limited_to is None:
        return [first]
    # At the limit by chance, with exactly as many rows as an answer may have; by two numbers,
    # because the first one may have been cut to that of the limit.
    n_rows = first.table.num_rows
    if not too_long and n_rows == expected == source.count(name, {}):
        return [first]
    n_parts = int(np.ceil(expected / (_FILLING * first.limited_to)))
    waiting = _ranges(first.table["id"], None, None, max(n_parts, 2))
    whole = []
    while waiting:
        low, high = waiting.pop()
        answer = source.query(name, filter_range={"id": (low, high)})
        one_id = low is not None and high is not None and high - low == 1
        if answer.limited_to is None or one_id:
            whole.append(answer)
        else:
            waiting.extend(_ranges(answer.table["id"], low, high, 2))
    return whole


def _ranges(
    ids: pa.ChunkedArray, low: int | None, high: int | None, n_parts: int
) -> list[tuple[int | None, int | None]]:
    """Cut a range of ids into parts that hold about as many of the ids seen in it.

    Every part is narrower than the range, so that cutting comes to an end.
    """
    seen = np.unique(ids.to_numpy())
    if not len(seen):
        raise BadAnswer("an answer that was cut at the row limit holds no rows")
    if (low is not None and seen[0] < low) or (high is not None and seen[-1] >= high):
        raise SourceError(
            f"ids from {low} to {high} were asked for, {seen[0]} to {seen[-1]} came: the service "
            "does not filter by ranges, so that tables above its row limit cannot be fetched from "
            "it; use source='archive'"
        )
    cuts = sorted({int(seen[len(seen) * i // n_parts]) for i in range(1, n_parts)} - {low})
    if not cuts:  # one id alone, at the lower end
        cuts = [int(seen[0]) + 1]
    return list(itertools.pairwise([low, *cuts, high]))


def download_tables(
    source: QuerySource,
    cache: TableCache,
    names: Iterable[str],
    *,
    refresh: bool = False,
    progress: bool = True,
    max_rows: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Fetch tables into a cache; those that are there and whole are not asked for.

    Parameters
    ----------
    source : CaveSource
        The service.
    cache : TableCache
        Where they are kept; each as soon as it is whole, so that a second run goes on where the
        first one ended.
    names : iterable of str
        Table names.
    refresh : bool, optional
        Fetch those that are there as well; an old one is replaced when the new one is whole.
    progress : bool, optional
        Show a progress bar.
    max_rows : int, optional
        Leave out, and say so, tables with more rows than this.

    Returns
    -------
    dict of str to dict
        Table to its record, see `TableCache.provenance`; without those left out.

    Raises
    ------
    SourceError
        If the service refuses, or the cache cannot be written.
    IncompleteDownloadError
        If the service fails again and again, or never gives all rows of a table.
    """
    cache.remove_leftovers()
    records: dict[str, dict[str, Any]] = {}
    for name in tqdm(list(dict.fromkeys(names)), desc="tables", unit="table", disable=not progress):
        if not refresh and cache.has(name):
            records[name] = cache.provenance(name)
            continue
        if max_rows is not None and (n := source.count(name)) > max_rows:
            logger.warning("%s has %d rows, more than %d: it is left out", name, n, max_rows)
            continue
        fetched = fetch_table(source, name)
        records[name] = cache.write(
            name,
            fetched.table,
            {
                "datastack": source.datastack,
                "version": source.version,
                "timestamp": source.timestamp(),
                "source": "cave",
                "resolution_nm": fetched.resolution_nm,
                "queries": fetched.queries,
            },
        )
        logger.info("%s: %d rows in %d queries", name, fetched.table.num_rows, fetched.queries)
    return records
