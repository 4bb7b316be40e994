"""From the word, path or object a user names to a source of raw tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from microns_xr.errors import ReleaseMismatchError, SchemaError, SourceError, nearest_words
from microns_xr.files import locked, write_file
from microns_xr.releases import ReleaseSpec
from microns_xr.sources.archive import ArchiveSource
from microns_xr.sources.cache import TableCache, download_tables, write_identity
from microns_xr.sources.cave import CaveSource
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

# Archived tables into the cache.


logger = logging.getLogger(__name__)


def download_archived_tables(
    source: ArchiveSource,
    cache: TableCache,
    names: Iterable[str],
    *,
    refresh: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Download archived tables into the cache, skipping those that are already complete."""
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


# A release that is downloaded once and then read from a folder.


_LISTING = "tables.json"


class KeptSource:
    """Tables of a service or an archive, kept in a folder and read from there.

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
        self.version: int | None = version
        self.cache = TableCache(self.folder / "raw", datastack=datastack, version=version)
        self.synapse_folder = self.folder / "raw" / "synapses"

    def __repr__(self) -> str:
        return f"KeptSource({self.remote!r}, {str(self.folder)!r})"

    # --------------------------------------------------------------------------------- tables

    def _beside(self) -> dict[str, DirectorySource]:
        """Tables that were put beside the downloaded ones by hand, by name.

        A parquet file in ``raw`` without a record is a download that was cut, and is none of them.
        """
        found: dict[str, DirectorySource] = {}
        for folder in (self.folder / "functional", self.folder / "raw"):
            if not folder.is_dir():
                continue
            source = DirectorySource(folder, version=self.version)
            for name in source.available_tables():
                cut = (folder / f"{name}.parquet").exists() and folder.name == "raw"
                if not cut and name not in source.synapse_files():
                    found.setdefault(name, source)
        return found

    def available_tables(self) -> list[str]:
        """Names of the tables here and there, sorted."""
        names = {*self.cache.names(), *self._beside()}
        if self.remote is not None:
            try:
                names |= set(self._listed())
            except SourceError as error:
                if not names:
                    raise
                logger.warning("only the tables in %s can be read now: %s", self.folder, error)
        return sorted(names)

    def _listed(self) -> list[str]:
        """Names the remote source lists, from the listing that a download has kept."""
        assert self.remote is not None
        file = self.folder / _LISTING
        if isinstance(self.remote, ArchiveSource) or not file.is_file():
            return list(self.remote.available_tables())
        try:
            return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))]
        except ValueError as error:
            raise SourceError(f"{file} is damaged ({error}): remove it") from error

    def download(
        self,
        names: Iterable[str],
        *,
        refresh: bool = False,
        progress: bool = True,
        max_rows: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Bring tables into the folder; those that are here and whole are not fetched."""
        remote = self._require_remote("download tables")
        with locked(self.cache.folder, "tables"):
            write_identity(self.folder, self.datastack, int(self.version or 0))
            if isinstance(remote, ArchiveSource):
                return download_archived_tables(
                    remote, self.cache, names, refresh=refresh, progress=progress
                )
            # What a version of the service holds does not change, so its listing is kept; an
            # archive that cannot be listed says only what it was asked for.
            if refresh or not (self.folder / _LISTING).is_file():
                listing = json.dumps(list(remote.available_tables())) + "\n"
                write_file(self.folder / _LISTING, listing)
            return download_tables(
                remote, self.cache, names, refresh=refresh, progress=progress, max_rows=max_rows
            )

    def _require_remote(self, what: str) -> CaveSource | ArchiveSource:
        if self.remote is None:
            raise SourceError(
                f"{self.folder} is read without a service, so it cannot {what}: use "
                f"mx.Release({self.version}, source='cave'), or source='archive'"
            )
        return self.remote

    def read(self, name: str) -> pd.DataFrame:
        """Return one table; what is not in the folder is fetched into it."""
        if not self.cache.has(name):
            if (beside := self._beside().get(name)) is not None:
                return beside.read(name)
            if self.remote is None:
                near = nearest_words(name, self.available_tables())
                raise SourceError(
                    f"there is no whole table {name!r} in {self.cache.folder}"
                    + (f"; nearest: {', '.join(near)}" if near else "")
                    + ": download it"
                )
            if name == SYNAPSE_TABLE:
                raise SourceError(
                    f"{name} is not downloaded whole: fetch the synapses of some neurons with "
                    "Release.download_synapses(pre, post)"
                )
            self.download([name], progress=False)
        return self.cache.read(name)

    def provenance(self, name: str) -> dict[str, Any]:
        """Return the record of a table: name, rows, sha256, timestamp, where it came from."""
        if not self.cache.has(name) and (beside := self._beside().get(name)) is not None:
            return beside.provenance(name)
        return self.cache.provenance(name)

    # ------------------------------------------------------------------------------- synapses

    def download_synapses(self, **request: Any) -> SynapseSet:
        """Bring the synapses of a request into the folder; see `Release.download_synapses`."""
        remote = self._require_remote("download synapses")
        write_identity(self.folder, self.datastack, int(self.version or 0))
        if isinstance(remote, ArchiveSource):
            for of_the_service in ("batch", "workers"):
                request.pop(of_the_service, None)
            return remote.download_synapses(self.synapse_folder, **request)
        return download_synapses(remote, self.synapse_folder, **request)

    def synapse_files(self) -> dict[str, Path]:
        """Return the sets of synapses that are here and complete, by the key of their request."""
        return {s.key: s.path for s in list_requests(self.synapse_folder) if s.is_complete}

    def synapse_set(self, request: str | None = None) -> SynapseSet:
        """Return one complete set of synapses."""
        found = open_request(self.synapse_folder, request)
        asked = found.request
        if (asked["datastack"], asked["version"]) != (self.datastack, self.version):
            raise ReleaseMismatchError(
                f"{found.path} holds synapses of {asked['datastack']} v{asked['version']}, not of "
                f"{self.datastack} v{self.version}: move it to the folder of its own release"
            )
        return found

    def read_synapses(self, request: str | None = None) -> pd.DataFrame:
        """Return the synapses of one request, a row a synapse."""
        return self.synapse_set(request).read()


def make_source(
    source: str | Path | TableSource, spec: ReleaseSpec, datastack: str, datadir: Path
) -> TableSource:
    """Return the source that a word, a path or an object means."""
    if source == "demo":
        return DemoSource(spec.version)
    if source == "auto":
        source = "archive" if spec.status == "archived" else "cave"
        logger.log(
            logging.WARNING if source == "archive" else logging.INFO,
            "%s v%d is %s: tables come from %s",
            datastack,
            spec.version,
            "archived" if spec.status == "archived" else "served",
            "its archived files" if source == "archive" else "the CAVE service",
        )
    folder = datadir / datastack / f"v{spec.version}"
    if source == "cave":
        source = CaveSource(spec.version, datastack=datastack)
    elif source == "archive":
        source = ArchiveSource(spec, datastack=datastack, folder=folder / "archive")
    if isinstance(source, CaveSource | ArchiveSource):
        own = datadir / source.datastack / f"v{source.version}"
        return KeptSource(source, own, source.datastack, int(source.version or spec.version))
    if isinstance(source, str | Path):
        return _folder_source(Path(source).expanduser(), spec, datastack)
    if not isinstance(source, TableSource):
        raise SchemaError(
            f"source is a {type(source).__name__}, expected 'auto', 'cave', 'archive', 'demo', a "
            "folder, or an object with available_tables(), read(), provenance(), datastack, "
            "version and scope"
        )
    return source


def _folder_source(path: Path, spec: ReleaseSpec, datastack: str) -> TableSource:
    directory = DirectorySource(path, version=spec.version, datastack=datastack)
    release = path.parent if path.resolve().name == "raw" else path
    if list_requests(release / "raw" / "synapses"):
        # Downloaded by this package: its sets of synapses say what was asked for.
        return KeptSource(None, release, directory.datastack, spec.version)
    return directory
