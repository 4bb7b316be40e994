"""Tables of a release that has left the service: files in a bucket, or in a folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from microns_xr.errors import SchemaError, SourceError
from microns_xr.releases import ReleaseSpec, release_spec, supported_versions
from microns_xr.source.archive_csv import read_archived
from microns_xr.source.archive_files import ArchiveFiles
from microns_xr.source.archive_names import ArchiveNames
from microns_xr.source.archive_synapses import filter_synapses, make_request
from microns_xr.source.files import to_frame
from microns_xr.source.remote_info import shown_url
from microns_xr.source.retry import Retry
from microns_xr.source.synapse_set import SynapseSet

__all__ = ["ARCHIVES", "ArchiveSource"]

# Where the versions of a datastack are kept when they leave the service.
ARCHIVES = {"minnie65_public": "gs://mat_dbs/public/minnie65_phase3_v1"}
_SYNAPSES = "synapses_pni_2"


class ArchiveSource:
    """Tables of one materialization version, from the files it is archived as.

    Nothing is asked before it is needed. A file is fetched once, begun again where it stopped, and
    checked before it is read; files in a folder of this machine are read where they lie.

    Parameters
    ----------
    version : int or ReleaseSpec
        Materialization version, which need not be in the registry.
    url : str, optional
        Folder that holds ``v{version}/{table}_merged.csv.gz`` and ``..._merged_header.csv``:
        ``gs://``, ``https://``, ``s3://``, ``file://`` or a path; by default the public archive of
        the datastack. ``gs://`` is read over https, which needs no package and no login, unless
        `storage_options` are given.
    datastack : str, optional
        Name of the datastack.
    folder : str or pathlib.Path, optional
        Where files are kept, whole ones and parts; a temporary folder by default, with which they
        are gone when the process ends.
    storage_options : mapping, optional
        What fsspec hands to the file system of a bucket that is not public, such as a login.
    retry : Retry, optional
        How often and how patiently to ask again.
    timeout : float, optional
        Seconds without a byte after which a connection has failed.
    progress : bool, optional
        Whether to show a bar for each file, in bytes.

    Attributes
    ----------
    files : ArchiveFiles
        The files, and the folder they are fetched into.
    scope : str
        ``"requested"``: of synapses it gives those between the neurons that are asked for.

    Raises
    ------
    SchemaError
        If the version is no integer.
    SourceError
        If there is no `url` and no public archive of the datastack.

    Examples
    --------
    >>> ArchiveSource(661)
    ArchiveSource(661, url='gs://mat_dbs/public/minnie65_phase3_v1')
    """

    scope = "requested"

    def __init__(
        self,
        version: int | ReleaseSpec,
        *,
        url: str | Path | None = None,
        datastack: str = "minnie65_public",
        folder: str | Path | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retry: Retry | None = None,
        timeout: float = 60.0,
        progress: bool = True,
    ) -> None:
        number = version.version if isinstance(version, ReleaseSpec) else version
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise SchemaError(f"version is {version!r}, expected a number such as 661")
        number = int(number)
        if url is None and datastack not in ARCHIVES:
            raise SourceError(
                f"there is no public archive of {datastack!r}, only of {', '.join(ARCHIVES)}: "
                "pass url=..., the folder that holds v661, v943, ..."
            )
        self.version: int | None = number
        self.datastack = datastack
        self.url = str(ARCHIVES[datastack] if url is None else url).rstrip("/")
        self.files = ArchiveFiles(
            f"{self.url}/v{number}",
            folder=Path(folder).expanduser() if folder is not None else None,
            storage_options=storage_options or {},
            retry=retry or Retry(),
            timeout=timeout,
        )
        self.progress = progress
        self._spec = version if isinstance(version, ReleaseSpec) else None
        if self._spec is None and number in supported_versions():
            self._spec = release_spec(number)
        self._names = ArchiveNames(self.files, self._spec)
        self._read: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"ArchiveSource({self.version}, url={shown_url(self.url)!r})"

    def discard(self, name: str) -> None:
        """Remove the fetched files of a table; files that were never fetched are not touched.

        Parameters
        ----------
        name : str
            Table name.
        """
        for stem in self._names.candidates(name):
            self.files.discard(stem)

    def available_tables(self) -> list[str]:
        """Names of the tables that are archived.

        A bucket and a folder are listed; over http, which has no lists, the tables that the
        registry knows are looked for, and `read` gives others by their names all the same.

        Returns
        -------
        list of str
            Sorted.

        Raises
        ------
        SourceError
            If there is nothing of the version.
        IncompleteDownloadError
            If the archive fails again and again.
        """
        return self._names.available()

    def read_arrow(
        self, name: str, *, refresh: bool = False, progress: bool | None = None
    ) -> pa.Table:
        """Return one whole table, sorted by id, as Arrow.

        Parameters
        ----------
        name : str
            Table name.
        refresh : bool, optional
            Fetch its files although they are here.
        progress : bool, optional
            Whether to show a bar; as the source was told by default.

        Returns
        -------
        pyarrow.Table
            As `microns_xr.source.archive_csv.read_archived` types it.

        Raises
        ------
        SourceError, IncompleteDownloadError
            As `read`.
        """
        if name in (_SYNAPSES, self._spec.tables.get("synapses") if self._spec else None):
            raise SourceError(
                f"{name} is the table of all synapses, which is no table to read whole: use "
                "download_synapses(pre, post)"
            )
        path, header = self.files.fetch(
            self._names.stem_of(name),
            refresh=refresh,
            progress=self.progress if progress is None else progress,
        )
        table = read_archived(path, header)
        if "id" in table.column_names and not table["id"].null_count:
            table = table.take(pc.sort_indices(table["id"]))
        self._read[name] = {"name": name, "rows": table.num_rows, **self.files.record(path)}
        return table

    def read(self, name: str) -> pd.DataFrame:
        """Return one whole table, sorted by id.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        pandas.DataFrame
            Ids as int64 or Int64, text as object, truth as bool, positions as three columns.

        Raises
        ------
        SourceError
            If there is no such table, it is that of all synapses, or its files are damaged or do
            not belong together, naming the line.
        IncompleteDownloadError
            If a file breaks off again and again; what has arrived is kept.
        """
        return to_frame(self.read_arrow(name))

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what is known of a table, which is read if it was not.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        dict
            ``name``, ``rows``, ``sha256`` and ``url`` of the data file, and ``checked``, what was
            compared when it was fetched.

        Raises
        ------
        SourceError, IncompleteDownloadError
            As `read`.
        """
        if name not in self._read:
            self.read_arrow(name)
        return dict(self._read[name])

    def download_synapses(
        self,
        folder: str | Path,
        *,
        pre: Any = None,
        post: Any = None,
        positions: bool = False,
        table: str = _SYNAPSES,
        progress: bool = True,
        cancel: threading.Event | None = None,
    ) -> SynapseSet:
        """Keep the synapses from some roots onto some roots.

        The file of all synapses, of some 20 GB, is fetched first; it stays in `folder` of the
        source, so that another request needs it no more.

        Parameters
        ----------
        folder : str or pathlib.Path
            Where sets of synapses are kept, each under the key of its request.
        pre, post, positions, table, progress, cancel
            As for `microns_xr.source.synapse_download.download_synapses`.

        Returns
        -------
        SynapseSet
            A complete one, the same as a download from the service gives.

        Raises
        ------
        SchemaError, SourceError, IncompleteDownloadError
            As `read` and `microns_xr.source.archive_synapses.filter_synapses`.
        """
        assert self.version is not None
        # Before 20 GB are fetched: are these ids, and is the answer here?
        request = make_request(self.datastack, self.version, table, pre, post, positions)
        found = SynapseSet(folder, request.key)
        if found.is_complete:
            return found
        path, header = self.files.fetch(self._names.stem_of(table), progress=progress)
        return filter_synapses(
            path,
            header,
            folder,
            request,
            identity=self.files.identity(path),
            progress=progress,
            cancel=cancel,
        )
