"""The raw tables of a release: where they come from, what was read, and downloads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import (
    ReleaseMismatchError,
    SourceError,
    answer_old_keywords,
    require_instance,
    unknown_label,
    whole_number,
)
from microns_xr.provenance import source_names, text_lines
from microns_xr.recordings.files import recordings_folder
from microns_xr.releases import (
    ROLES,
    ReleaseSpec,
    TableSpec,
    datastack_entry,
    papers_of,
    release_spec,
    volume_of,
)
from microns_xr.sources.cache import CachedSource, make_source, table_names
from microns_xr.sources.cave import CaveSource
from microns_xr.sources.directory import write_identity
from microns_xr.sources.fetch import display_url, download, fetch_file, file_name
from microns_xr.sources.synapses import SynapseSet, download_synapses, make_request, resolve_ids
from microns_xr.sources.tables import TableSource
from microns_xr.tables import valid_rows
from microns_xr.units import shared_roots_of


class ReleaseTables:
    """The raw tables of one release, as `Release` uses them."""

    @answer_old_keywords
    def __init__(
        self,
        version: int | ReleaseSpec,
        *,
        datadir: str | Path = "data",
        datastack: str | None = None,
        source: str | Path | TableSource = "auto",
        tables: Mapping[str, str | None] | None = None,
    ) -> None:
        spec = release_spec(version, tables, datastack)
        require_instance("datadir", datadir, (str, os.PathLike), "a path")
        self.version = spec.version
        self.datadir = Path(datadir)
        self.source = make_source(source, spec, datastack or spec.datastack, self.datadir)
        # A synthetic release has its own datastack, so that it cannot be mistaken for the real one.
        self.datastack = str(self.source.datastack or datastack or spec.datastack)
        if volume_of(self.datastack) != volume_of(spec.datastack):
            raise ReleaseMismatchError(
                f"the source has tables of {self.datastack}, expected {spec.datastack}: use "
                f"Release({self.version}, datastack={self.datastack!r}, ...), a "
                f"mx.releases.ReleaseSpec of {self.datastack}, or a source of {spec.datastack}"
            )
        self.spec = replace(spec, datastack=self.datastack)
        of_source = getattr(self.source, "version", None)
        if of_source is not None and whole_number("source.version", of_source, 1) != self.version:
            raise ReleaseMismatchError(
                f"the source has version {of_source}, expected version {self.version}: use "
                f"Release({of_source}, ...) or a source of version {self.version}"
            )
        self._tables: dict[str, pd.DataFrame] = {}
        self._built: dict[str, Any] = {}  # from these tables
        self._provenance: dict[str, dict[str, Any]] = {}  # by table name; files and synapses too
        self._explicit_roles = {role for role, name in (tables or {}).items() if name is not None}

    def __repr__(self) -> str:
        title = f"<Release {self.datastack} v{self.version} from {type(self.source).__name__}>"
        lines = self._table_lines()
        width = max((len(name) for name, _, _ in lines), default=0)
        return "\n".join([title, *(f"  {n:<{width}}  {rows:>12}  {of}" for n, rows, of in lines)])

    def _repr_html_(self) -> str:
        cells = (map(escape, line) for line in self._table_lines())
        rows = "".join(f"<tr><td>{'</td><td>'.join(line)}</td></tr>" for line in cells)
        return (
            f"<b>Release {self.version}</b> of {escape(self.datastack)}, "
            f"from {escape(type(self.source).__name__)}<table>{rows}</table>"
        )

    def _table_lines(self) -> list[tuple[str, str, str]]:
        """Return name, rows and contents of the tables of the registry and those read."""
        # Displaying a release contacts no server, so the rows are those of tables read before.
        holds = {name: ROLES[role] for role, name in self.spec.tables.items()}
        holds |= {name: "" for name in sorted(self._provenance) if name not in holds}
        read = {
            name: f"{record.get('rows', 0):,} rows" for name, record in self._provenance.items()
        }
        return [(name, read.get(name, "not read yet"), text) for name, text in holds.items()]

    # ------------------------------------------------------------------------- raw tables

    def available_tables(self) -> list[str]:
        """Return the names of the tables of the source.

        Returns
        -------
        list of str
            Sorted names.

        Raises
        ------
        SourceError
            If the source cannot be reached and no table has been downloaded.
        """
        return self.source.available_tables()

    def table(self, name: str) -> pd.DataFrame:
        """Return one raw table.

        Parameters
        ----------
        name : str
            Name of a table, or a role such as ``"nucleus"``.

        Returns
        -------
        pandas.DataFrame
            A copy of the table, with ids as int64 or Int64 and text as object;
            ``attrs["table"]`` is the name; ``angle_units`` and ``angle_convention`` are those of
            the registry, if it has them. Rows that are not ``valid`` are left out, and counted in
            ``attrs["n_invalid_rows"]``.

        Raises
        ------
        SourceError
            If the source has no such table.
        """
        name = self.spec.tables.get(name, name)
        if name not in self._tables:
            self._tables[name] = valid_rows(self.source.read(name), name)
        # A copy, since later Datasets are built from the same table.
        table = self._tables[name].copy()
        table.attrs["table"] = name
        spec = self.spec.spec_of(name)
        stated = {n: getattr(spec, n) for n in ("angle_units", "angle_convention")}
        table.attrs.update({n: word for n, word in stated.items() if word is not None})
        return table

    def has_tables(self) -> dict[str, bool]:
        """Return for every role whether the source has its table.

        Returns
        -------
        dict of str to bool
            By role; for ``synapses`` also True if the source has downloaded sets of synapses.

        Raises
        ------
        SourceError
            As in `available_tables`.
        """
        available = set(self.available_tables())
        has = {role: self.spec.tables.get(role) in available for role in ROLES}
        has_sets = bool(self._synapse_files())
        # The service has the whole table, the local folder only downloaded sets.
        has["synapses"] = has_sets or (
            has["synapses"] and not isinstance(self.source, CachedSource)
        )
        return has

    def _synapse_files(self) -> dict[str, Path]:
        return dict(getattr(self.source, "synapse_files", dict)())

    def shared_roots(self) -> np.ndarray:
        """Return root ids with several nuclei, which `microns_xr.ingest_synapses` counts apart.

        Returns
        -------
        numpy.ndarray
            Unique positive root ids, int64, ascending.

        Raises
        ------
        SourceError
            If the source has no nucleus table.
        SchemaError
            If the root ids are not integers.
        """
        return shared_roots_of(self.table("nucleus"))

    def source_tables(self) -> list[dict[str, Any]]:
        """Return the provenance of every table that has been read so far.

        Returns
        -------
        list of dict
            ``name``, ``rows`` and ``sha256`` of each, and further fields for a download.
        """
        return self._provenance_of({*self._tables, *self._provenance})

    def _provenance_of(self, names: Iterable[str]) -> list[dict[str, Any]]:
        for name in names:
            if name not in self._provenance:
                self._provenance[name] = self.source.provenance(name)
        return [self._provenance[name] for name in sorted(names)]

    def _with_sources(
        self, dataset: xr.Dataset, names: Iterable[str], further: Iterable[xr.Dataset] = ()
    ) -> xr.Dataset:
        """Add the tables used, and those of other Datasets, to ``source_tables``."""
        tables = set(text_lines(self._provenance_of(set(names))))
        for other in (dataset, *further):
            tables.update(text_lines(other.attrs.get("source_tables")))
        names = set(source_names(tables))
        # Papers that are not in the registry travel with the data.
        own = {spec.reference for name, spec in self.spec.table_specs.items() if name in names}
        papers = {str(paper) for paper in {*own, *(self.spec.papers or ())} - {None}}
        if further_papers := papers - set(papers_of(names, self.datastack)):
            dataset = dataset.assign_attrs(references=sorted(further_papers))
        return dataset.assign_attrs(source_tables=sorted(tables))

    def _read_roles(self, roles: Iterable[str]) -> tuple[dict[str, pd.DataFrame], list[str]]:
        """Read the tables of some roles; return also the names of missing tables."""
        available = set(self.source.available_tables())
        tables, absent = {}, []
        for role in filter(self.spec.has, roles):
            name = self.spec.tables[role]
            if name in available:
                tables[role] = self.table(name)
            elif role in self._explicit_roles:
                raise unknown_label(
                    f"for the role {role!r} in tables, the source has no table",
                    name,
                    available,
                    error=SourceError,
                )
            else:
                absent.append(name)
        return tables, absent

    def _file_spec(self, file: str | Path) -> TableSpec:
        """Return the registry entry of a table or a file, by its name."""
        name = Path(file).name.split(".")[0]
        return self.spec.spec_of(name)

    # -------------------------------------------------------------------------- downloads

    def _download_source(self, what: str) -> CachedSource:
        if not isinstance(self.source, CachedSource):
            raise SourceError(
                f"{type(self.source).__name__} cannot {what}: use "
                f"mx.Release({self.version}, source='cave'), or source='archive'"
            )
        return self.source

    @answer_old_keywords
    def download(
        self,
        policy: Literal["minimum", "all", "extra"] = "minimum",
        extra: Iterable[str] = (),
        *,
        refresh: bool = False,
        progress: bool = True,
    ) -> dict[str, dict[str, Any]]:
        """Download raw tables into ``datadir``.

        Every table is checked against the row count of the service, and stored as typed parquet
        with its provenance. Complete tables are not fetched again, so an interrupted download
        resumes when this is called again.

        Parameters
        ----------
        policy : {"minimum", "all", "extra"}, optional
            ``minimum``: the tables needed for units and functional rows; ``extra``: these and
            `extra`; ``all``: every table except that of synapses, see `download_synapses`.
        extra : iterable of str, optional
            Table names or roles.
        refresh : bool, optional
            Whether to fetch existing tables again.
        progress : bool, optional
            Show a progress bar.

        Returns
        -------
        dict of str to dict
            By table: rows, sha256, timestamp, time of the download and package versions.

        Raises
        ------
        SourceError
            If the source cannot download, or denies access (no token, an expired version).
        IncompleteDownloadError
            If requests keep failing, or rows are missing at the end.
        UnknownLabelError
            If a table of `extra` does not exist.

        Examples
        --------
        >>> import microns_xr as mx
        >>> release = mx.Release(1718, source="cave", datadir="data")
        >>> records = release.download()  # doctest: +SKIP
        """
        source = self._download_source("download tables")
        names = table_names(self.spec, source.available_tables(), policy, extra)
        # Longer tables are those of synapses or points.
        most = 10_000_000 if policy == "all" else None
        records = source.download(names, refresh=refresh, progress=progress, max_rows=most)
        # Cached tables may have been replaced on disk.
        self._built.clear()
        for name in records:
            self._tables.pop(name, None)
            self._provenance.pop(name, None)
        return records

    @answer_old_keywords
    def download_synapses(
        self,
        pre: Any = None,
        post: Any = None,
        *,
        positions: bool = False,
        allow_unknown: bool = False,
        workers: int = 3,
        batch: int | None = None,
        progress: bool = True,
    ) -> SynapseSet:
        """Download the synapses between two sets of neurons.

        Finished batches are stored, so an interrupted download resumes when this is called again
        with the same neurons; the result is bit-identical to that of an uninterrupted one. Pass it
        to `connectivity` and `synapses`.

        Parameters
        ----------
        pre, post : units Dataset, or array-like of int, optional
            Units, nucleus ids or root ids; None means any neuron. If both are None, the whole
            table is downloaded.
        positions : bool, optional
            Whether to fetch the positions of the synapses, too, as `synapses` requires.
        allow_unknown : bool, optional
            Whether to allow root ids without a nucleus in this release.
        workers : int, optional
            Number of simultaneous requests.
        batch : int, optional
            Largest number of neurons per request; by default it adapts to the responses.
        progress : bool, optional
            Show a progress bar.

        Returns
        -------
        SynapseSet
            Its ``key`` identifies it in ``connectivity(request=key)``.

        Raises
        ------
        ReleaseMismatchError
            If ids are not in this release, but come from another one.
        SchemaError
            If `pre` or `post` are not ids.
        SourceError
            If the source cannot download or denies access, or another process downloads the same
            synapses.
        IncompleteDownloadError
            If requests keep failing; finished batches remain stored.

        Examples
        --------
        >>> import microns_xr as mx
        >>> release = mx.Release(1718, source="cave", datadir="data")
        >>> ids = release.units().nucleus_id[:100]  # doctest: +SKIP
        >>> synapses = release.download_synapses(post=ids)  # doctest: +SKIP
        >>> connectivity = release.connectivity(synapses)  # doctest: +SKIP
        """
        source = self._download_source("download synapses")
        nuclei = self.table("nucleus")
        of_release: Any = {
            "datastack": self.datastack,
            "version": self.version,
            "allow_unknown": allow_unknown,
        }
        roots = {
            side: None if ids is None else resolve_ids(ids, nuclei, name=side, **of_release)
            for side, ids in (("pre", pre), ("post", post))
        }
        table, folder = self.spec.name_of("synapses"), source.synapse_folder
        key = make_request(self.datastack, self.version, table, **roots, positions=positions).key
        existing = SynapseSet(folder, key)
        if existing.is_complete:
            return existing  # without the service or a lock: the folder may be read-only
        remote = source.require_remote("download synapses")
        write_identity(source.folder, self.datastack, self.version)
        options: Any = {"positions": positions, "table": table, "progress": progress, **roots}
        if isinstance(remote, CaveSource):
            return download_synapses(remote, folder, workers=workers, batch=batch, **options)
        return remote.download_synapses(folder, **options)

    def download_recordings(self, url: str | None = None, **options: Any) -> Path:
        """Download the recordings file into ``recordings/`` of ``datadir``.

        All releases of minnie65 share it; for another datastack, it is in ``recordings/`` of the
        folder of the datastack. An interrupted download resumes when this is called again.

        Parameters
        ----------
        url : str, optional
            URL of the file; by default that of the datastack in the registry, for minnie65 the
            published file of 20.6 GB.
        **options
            ``sha256``, ``progress`` and other options of `microns_xr.recordings.download`.

        Returns
        -------
        pathlib.Path
            The file, for `microns_xr.recordings.open`.

        Raises
        ------
        SourceError
            If there is no such file, it is not HDF5, its checksum is wrong, or no file of the
            datastack is known.
        IncompleteDownloadError
            If requests keep failing; what has arrived is kept.

        Examples
        --------
        >>> import microns_xr as mx
        >>> release = mx.Release(1718, datadir="data")
        >>> path = release.download_recordings()  # doctest: +SKIP
        """
        url = url or datastack_entry(self.datastack, "recordings")
        if url is None:
            raise SourceError(
                f"no file of recordings of {self.datastack} is known: pass its url, or the path of "
                "a file to tuning_curves(path)"
            )
        return download(recordings_folder(self.datadir, self.datastack), url, **options)

    def download_fits(self, url: str, **options: Any) -> Path:
        """Download a table of tuning curves or fits into ``functional/`` of the release's folder.

        Parameters
        ----------
        url : str
            URL of the file, which must be named like the table.
        **options
            ``sha256``, ``progress`` and other options of `microns_xr.recordings.download`.

        Returns
        -------
        pathlib.Path
            The file, which `tuning_curves` then uses.

        Raises
        ------
        SourceError
            If the release has no folder, there is no such file, or its checksum is wrong.
        IncompleteDownloadError
            If requests keep failing; what has arrived is kept.

        Examples
        --------
        >>> import microns_xr as mx
        >>> release = mx.Release(661, datadir="data")
        >>> url = "https://example.org/orientation_fits_v661.parquet"
        >>> path = release.download_fits(url)  # doctest: +SKIP
        """
        folder = folder_of(self.source)
        if folder is None:
            raise SourceError(
                f"{type(self.source).__name__} has no folder for files: fetch {display_url(url)} "
                "by other means, and pass its path to tuning_curves(path)"
            )
        return fetch_file(url, folder / "functional" / file_name(url), **options).path


def folder_of(source: TableSource) -> Path | None:
    folder = getattr(source, "folder", None) or getattr(source, "path", None)
    return None if folder is None else Path(folder)
