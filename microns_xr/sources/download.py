"""From the word, path or object a user names to a source of tables, downloaded or not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from microns_xr.errors import ReleaseMismatchError, SchemaError, SourceError, unknown_label
from microns_xr.files import locked, write_file
from microns_xr.releases import ReleaseSpec
from microns_xr.sources.archive import ArchiveSource
from microns_xr.sources.cache import TableCache, write_identity
from microns_xr.sources.cave import CaveSource, fetch_table
from microns_xr.sources.demo import DemoSource
from microns_xr.sources.directory import DirectorySource
from microns_xr.sources.synapses import (
    SYNAPSE_TABLE,
    SynapseSet,
    download_synapses,
    list_requests,
    open_request,
)
from microns_xr.sources.tables import TableSource

logger = logging.getLogger(__name__)

_LISTING = "tables.json"


def download_tables(
    source: CaveSource | ArchiveSource,
    cache: TableCache,
    names: Iterable[str],
    *,
    refresh: bool = False,
    progress: bool = True,
    max_rows: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Fetch tables into a cache; those that are there and whole are not asked for."""
    cache.remove_leftovers()
    records: dict[str, dict[str, Any]] = {}
    archived = isinstance(source, ArchiveSource)  # which has a bar of its own for each file
    wanted = list(dict.fromkeys(names))
    for name in tqdm(wanted, desc="tables", unit="table", disable=archived or not progress):
        if not refresh and cache.has(name):
            records[name] = cache.provenance(name)
            continue
        if isinstance(source, ArchiveSource):
            table, record = _fetch_archived(source, name, refresh, progress)
        else:
            if max_rows is not None and (n := source.count(name)) > max_rows:
                logger.warning("%s has %d rows, more than %d: it is left out", name, n, max_rows)
                continue
            table, record = _fetch_served(source, name)
        release = {"datastack": source.datastack, "version": source.version}
        records[name] = cache.write(name, table, {**release, **record})
        if isinstance(source, ArchiveSource):
            source.discard(name)  # not twice on the disk
        logger.info("%s: %d rows", name, table.num_rows)
    return records


def _fetch_archived(
    source: ArchiveSource, name: str, refresh: bool, progress: bool
) -> tuple[pa.Table, dict[str, Any]]:
    table = source.read_arrow(name, refresh=refresh, progress=progress)
    known = source.provenance(name)
    record = {
        "timestamp": None,  # the archive does not say
        "source": "archive",
        "url": known["url"],
        "archive_sha256": known["sha256"],
        "checked": known["checked"],
    }
    return table, record


def _fetch_served(source: CaveSource, name: str) -> tuple[pa.Table, dict[str, Any]]:
    fetched = fetch_table(source, name)
    record = {
        "timestamp": source.timestamp(),
        "source": "cave",
        "resolution_nm": fetched.resolution_nm,
        "queries": fetched.queries,
    }
    return fetched.table, record


class CachedSource:
    """Tables of the service or the archive, downloaded into a folder and read from there.

    What is in the folder and whole is not asked for again. Without a remote source, or while it
    cannot be reached, the folder alone is read.
    """

    scope = "requested"

    def __init__(
        self,
        remote: CaveSource | ArchiveSource | None,
        folder: str | Path,
        datastack: str,
        version: int,
    ) -> None:
        self.remote = remote
        self.folder = Path(folder).expanduser()
        self.datastack = datastack
        self.version = version
        self.cache = TableCache(self.folder / "raw", datastack=datastack, version=version)
        self.synapse_folder = self.folder / "raw" / "synapses"

    def __repr__(self) -> str:
        return f"CachedSource({self.remote!r}, {str(self.folder)!r})"

    def _added_by_hand(self) -> dict[str, DirectorySource]:
        """Tables that were put beside the downloaded ones, by name.

        A parquet file in ``raw`` without a record is not one: it is a download that was cut.
        """
        sources: dict[str, DirectorySource] = {}
        for folder in (self.folder / "functional", self.folder / "raw"):
            if not folder.is_dir():
                continue
            source = DirectorySource(folder, version=self.version)
            for name in source.available_tables():
                cut = (folder / f"{name}.parquet").exists() and folder.name == "raw"
                if not cut and name not in source.synapse_files():
                    sources.setdefault(name, source)
        return sources

    def available_tables(self) -> list[str]:
        """Names of the tables here and there, sorted."""
        names = {*self.cache.names(), *self._added_by_hand()}
        if self.remote is not None:
            try:
                names |= set(self._remote_tables(self.remote))
            except SourceError as error:
                if not names:
                    raise
                logger.warning("only the tables in %s can be read now: %s", self.folder, error)
        return sorted(names)

    def _remote_tables(self, remote: CaveSource | ArchiveSource) -> list[str]:
        """Names the remote source lists, from the listing that a download has written."""
        file = self.folder / _LISTING
        if isinstance(remote, ArchiveSource) or not file.is_file():
            return remote.available_tables()
        try:
            return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))]
        except ValueError as error:
            raise SourceError(f"{file} is damaged ({error}): remove it") from error

    def _require_remote(self, what: str) -> CaveSource | ArchiveSource:
        if self.remote is None:
            raise SourceError(
                f"{self.folder} is read without a service, so it cannot {what}: use "
                f"mx.Release({self.version}, source='cave'), or source='archive'"
            )
        return self.remote

    def download(
        self,
        names: Iterable[str],
        *,
        refresh: bool = False,
        progress: bool = True,
        max_rows: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Download tables into the folder; those that are here and whole are not fetched."""
        remote = self._require_remote("download tables")
        with locked(self.cache.folder, "tables"):
            write_identity(self.folder, self.datastack, self.version)
            # What a version of the service holds does not change, so its listing is kept; an
            # archive that cannot be listed says only what it was asked for.
            listing = self.folder / _LISTING
            if isinstance(remote, CaveSource) and (refresh or not listing.is_file()):
                write_file(listing, json.dumps(remote.available_tables()) + "\n")
            return download_tables(
                remote, self.cache, names, refresh=refresh, progress=progress, max_rows=max_rows
            )

    def read(self, name: str) -> pd.DataFrame:
        """Return one table; what is not in the folder is fetched into it."""
        if not self.cache.has(name):
            if (source := self._added_by_hand().get(name)) is not None:
                return source.read(name)
            if self.remote is None:
                what, known = f"{self.cache.folder} has no whole table", self.available_tables()
                raise unknown_label(what, name, known, "download it", SourceError)
            if name == SYNAPSE_TABLE:
                raise SourceError(
                    f"{name} is not downloaded whole: fetch the synapses of some neurons with "
                    "Release.download_synapses(pre, post)"
                )
            self.download([name], progress=False)
        return self.cache.read(name)

    def provenance(self, name: str) -> dict[str, Any]:
        """Return the record of a table: name, rows, sha256, timestamp, where it came from."""
        if not self.cache.has(name) and (source := self._added_by_hand().get(name)) is not None:
            return source.provenance(name)
        return self.cache.provenance(name)

    def download_synapses(self, **request: Any) -> SynapseSet:
        """Download the synapses of a request into the folder; see `Release.download_synapses`."""
        remote = self._require_remote("download synapses")
        write_identity(self.folder, self.datastack, self.version)
        if isinstance(remote, CaveSource):
            return download_synapses(remote, self.synapse_folder, **request)
        for of_the_service in ("batch", "workers"):
            request.pop(of_the_service, None)
        return remote.download_synapses(self.synapse_folder, **request)

    def synapse_files(self) -> dict[str, Path]:
        """Return the sets of synapses that are here and complete, by the key of their request."""
        return {s.key: s.path for s in list_requests(self.synapse_folder) if s.is_complete}

    def synapse_set(self, request: str | None = None) -> SynapseSet:
        """Return one complete set of synapses."""
        chosen = open_request(self.synapse_folder, request)
        asked = chosen.request
        if (asked["datastack"], asked["version"]) != (self.datastack, self.version):
            raise ReleaseMismatchError(
                f"{chosen.path} holds synapses of {asked['datastack']} v{asked['version']}, not of "
                f"{self.datastack} v{self.version}: move it to the folder of its own release"
            )
        return chosen

    def read_synapses(self, request: str | None = None) -> pd.DataFrame:
        """Return the synapses of one request, one row per synapse."""
        return self.synapse_set(request).read()


def make_source(
    source: str | Path | TableSource, spec: ReleaseSpec, datastack: str, datadir: Path
) -> TableSource:
    """Return the source that a word, a path or an object means."""
    if source == "demo":
        return DemoSource(spec.version)
    if source == "auto":
        archived = spec.status == "archived"
        source = "archive" if archived else "cave"
        logger.log(
            logging.WARNING if archived else logging.INFO,
            "%s v%d is %s: tables come from %s",
            datastack,
            spec.version,
            "archived" if archived else "served",
            "its archived files" if archived else "the CAVE service",
        )
    if source == "cave":
        source = CaveSource(spec.version, datastack=datastack)
    elif source == "archive":
        folder = datadir / datastack / f"v{spec.version}" / "archive"
        source = ArchiveSource(spec, datastack=datastack, folder=folder)
    if isinstance(source, CaveSource | ArchiveSource):
        folder = datadir / source.datastack / f"v{source.version}"
        return CachedSource(source, folder, source.datastack, source.version)
    if isinstance(source, str | Path):
        return _source_of_folder(Path(source).expanduser(), spec, datastack)
    if not isinstance(source, TableSource):
        raise SchemaError(
            f"source is a {type(source).__name__}, expected 'auto', 'cave', 'archive', 'demo', a "
            "folder, or an object with available_tables(), read(), provenance(), datastack, "
            "version and scope"
        )
    return source


def _source_of_folder(path: Path, spec: ReleaseSpec, datastack: str) -> TableSource:
    directory = DirectorySource(path, version=spec.version, datastack=datastack)
    release = path.parent if path.resolve().name == "raw" else path
    if list_requests(release / "raw" / "synapses"):
        # Downloaded by this package: its sets of synapses say what was asked for.
        return CachedSource(None, release, directory.datastack, spec.version)
    return directory
