"""Archived tables into the cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from microns_xr.source.archive import ArchiveSource
from microns_xr.source.cache import TableCache

__all__ = ["download_archived_tables"]

logger = logging.getLogger(__name__)


def download_archived_tables(
    source: ArchiveSource,
    cache: TableCache,
    names: Iterable[str],
    *,
    refresh: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Bring archived tables into the cache; those that are there and whole are not fetched again.

    Parameters
    ----------
    source : ArchiveSource
        The archive.
    cache : TableCache
        Where they go.
    names : iterable of str
        Table names.
    refresh : bool, optional
        Fetch all of them again.
    progress : bool, optional
        Whether to show a bar for each file, in bytes.

    Returns
    -------
    dict of str to dict
        Table to its record, see `TableCache.provenance`.

    Raises
    ------
    SourceError, IncompleteDownloadError
        As `ArchiveSource.read`; tables before the one that fails are kept.
    """
    cache.remove_leftovers()
    records: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(names):
        if not refresh and cache.has(name):
            records[name] = cache.provenance(name)
            continue
        table = source.read_arrow(name, refresh=refresh, progress=progress)
        known = source.provenance(name)
        records[name] = cache.write(
            name,
            table,
            {
                "datastack": source.datastack,
                "version": source.version,
                "timestamp": None,  # the archive does not say
                "source": "archive",
                "url": known["url"],
                "archive_sha256": known["sha256"],
                "checked": known["checked"],
            },
        )
        source.discard(name)
        logger.info("%s: %d rows", name, table.num_rows)
    return records
