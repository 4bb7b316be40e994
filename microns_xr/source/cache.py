"""Downloaded tables on disk: typed parquet, each with a record of what it is and where from.

A table is two files, ``NAME.parquet`` and ``NAME.json``. Both are written beside their place and
renamed, the record last, and the record holds the sha256 of the parquet: a table whose two files do
not fit each other, for whatever reason, does not count as there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from microns_xr.errors import ReleaseMismatchError, SourceError, nearest_words
from microns_xr.source.files import file_sha256, to_frame
from microns_xr.source.wire import plain_types

__all__ = ["TableCache"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\w[\w.-]*")
_HAVE_A_PART = ("microns-xr", "caveclient", "pyarrow")


class TableCache:
    """The tables of one release that have been downloaded into a folder.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder; made when the first table is written. A `DirectorySource` of it, or of the
        folder above when this one is called ``raw``, reads the tables as well.
    datastack : str, optional
        Name of the datastack that the tables must be of; unchecked by default.
    version : int, optional
        Materialization version that they must be of; unchecked by default.

    Examples
    --------
    >>> import tempfile
    >>> cache = TableCache(tempfile.mkdtemp(), datastack="minnie65_public", version=1718)
    >>> record = cache.write("nuclei", pd.DataFrame({"id": [7]}), {"source": "by hand"})
    >>> cache.has("nuclei"), cache.names(), record["rows"], record["version"]
    (True, ['nuclei'], 1, 1718)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        datastack: str | None = None,
        version: int | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.release = {"datastack": datastack, "version": version}
        self._whole: dict[str, tuple[tuple[int, int], str]] = {}

    def __repr__(self) -> str:
        return f"TableCache({str(self.folder)!r})"

    def path(self, name: str) -> Path:
        """Return where a table's parquet file is, or will be; `SourceError` for no file name."""
        if not _NAME.fullmatch(name):
            raise SourceError(f"{name!r} is no table name: expected letters, digits, '_', '-', '.'")
        return self.folder / f"{name}.parquet"

    def _record_path(self, name: str) -> Path:
        return self.path(name).with_suffix(".json")

    def names(self) -> list[str]:
        """Return the names of the tables that are there and whole.

        Returns
        -------
        list of str
            Sorted.

        Raises
        ------
        ReleaseMismatchError
            If one is of another release.
        """
        names = [path.stem for path in self.folder.glob("*.json") if _NAME.fullmatch(path.stem)]
        return sorted(name for name in names if self.has(name))

    def has(self, name: str) -> bool:
        """Say whether a table is there and whole, by its record and the sha256 in it.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        bool
            False as well when the parquet was changed, cut or replaced after its record was made.

        Raises
        ------
        ReleaseMismatchError
            If it is of another release than the cache.
        """
        return self._record(name) is not None

    def _record(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        try:
            record = json.loads(self._record_path(name).read_text(encoding="utf-8"))
            stat = path.stat()
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
            return None
        state = (stat.st_mtime_ns, stat.st_size)
        if self._whole.get(name, (None, ""))[0] != state:
            self._whole[name] = (state, file_sha256(path))
        if self._whole[name][1] != record["sha256"]:
            logger.warning("%s is not what its record says: it does not count as there", path)
            return None
        for key, expected in self.release.items():
            if None not in (expected, record.get(key)) and record[key] != expected:
                raise ReleaseMismatchError(
                    f"{path} is of {record.get('datastack')} v{record.get('version')}, expected "
                    f"{self.release['datastack']} v{self.release['version']}: it was put into the "
                    "folder of another release; move it away"
                )
        return record

    def provenance(self, name: str) -> dict[str, Any]:
        """Return the record of a table.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        dict
            ``name``, ``datastack``, ``version``, ``timestamp``, ``rows``, ``sha256`` of the
            parquet, ``fetched_at``, ``created_by`` (versions of packages), ``source``, and what
            else its writer gave.

        Raises
        ------
        SourceError
            If the table is not there or not whole.
        """
        record = self._record(name)
        if record is None:
            near = nearest_words(name, self.names())
            raise SourceError(
                f"table {name} is not in {self.folder}, or not whole"
                + (f"; nearest: {', '.join(near)}" if near else "")
                + ": download it"
            )
        return record

    def read(self, name: str) -> pd.DataFrame:
        """Return one table.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        pandas.DataFrame
            As `microns_xr.source.files.read_table_file` types it.

        Raises
        ------
        SourceError
            If the table is not there or not whole.
        """
        self.provenance(name)
        with pa.parquet.ParquetFile(self.path(name)) as file:
            return to_frame(file.read())

    def write(
        self,
        name: str,
        table: pd.DataFrame | pa.Table | pa.RecordBatchReader,
        provenance: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Keep a table, whole or not at all; an old one is replaced.

        Parameters
        ----------
        name : str
            Table name.
        table : DataFrame, pyarrow.Table or pyarrow.RecordBatchReader
            The rows. A reader is written batch by batch.
        provenance : mapping of str
            What is known of it; ``datastack`` and ``version`` are the cache's where they are not
            given, ``name``, ``rows``, ``sha256``, ``fetched_at`` and ``created_by`` are added.

        Returns
        -------
        dict
            The record, as `provenance` returns it.

        Raises
        ------
        SourceError
            If the files cannot be written; an old table is then still there.
        """
        path, record_path = self.path(name), self._record_path(name)
        parts = [p.with_name(f"{p.name}.tmp") for p in (path, record_path)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            rows = _write_parquet(table, parts[0])
            record = {
                **self.release,
                **provenance,
                "name": name,
                "rows": rows,
                "sha256": file_sha256(parts[0]),
                "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "created_by": _versions(),
            }
            with open(parts[1], "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
                file.write("\n")
                _flush(file)
            parts[0].replace(path)
            parts[1].replace(record_path)
        except (pa.ArrowException, OSError, TypeError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{path} cannot be written ({error}): check the folder") from error
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return record

    def remove_leftovers(self) -> list[str]:
        """Remove the parts of files that an interrupted download left behind.

        Returns
        -------
        list of str
            Names of the files that were removed.
        """
        leftovers = sorted(self.folder.glob("*.tmp"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return [path.name for path in leftovers]


def _write_parquet(table: pd.DataFrame | pa.Table | pa.RecordBatchReader, path: Path) -> int:
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    if isinstance(table, pa.Table):
        table = plain_types(table)
        batches, schema = [table], table.schema
    else:
        batches, schema = table, table.schema
    rows = 0
    with open(path, "wb") as file:
        with pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                part = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
                writer.write_table(part)
                rows += part.num_rows
        _flush(file)
    return rows


def _flush(file: Any) -> None:
    """Have the bytes on the disk before the file gets its name, also if the power fails."""
    file.flush()
    os.fsync(file.fileno())


def _versions() -> dict[str, str]:
    versions = {}
    for package in _HAVE_A_PART:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
