"""The one small protocol that every source of raw tables follows."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import pandas as pd

__all__ = ["TableSource"]


@runtime_checkable
class TableSource(Protocol):
    """What `Release` needs of a source: names of tables, and each table as it is.

    Attributes
    ----------
    datastack : str
        Name of the datastack, such as ``"minnie65_public"``.
    version : int or None
        Materialization version the tables are of; None when the source cannot know.
    scope : str
        What a table of synapses of this source holds: ``"complete"``, ``"requested"`` or
        ``"unknown"``.
    """

    @property
    def datastack(self) -> str:
        """Name of the datastack."""
        ...

    @property
    def version(self) -> int | None:
        """Materialization version."""
        ...

    @property
    def scope(self) -> str:
        """What a table of synapses holds."""
        ...

    def available_tables(self) -> list[str]:
        """Names of the tables that `read` can give, sorted."""
        ...

    def read(self, name: str) -> pd.DataFrame:
        """Return one table: ids as int64 or Int64, text as object, never through float.

        Raises
        ------
        SourceError
            If there is no such table, or it cannot be read.
        """
        ...

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what is known of a table that was read: ``name``, ``rows``, ``sha256``."""
        ...
