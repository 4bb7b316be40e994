"""Where the files of one archived version are: a bucket that they are fetched from, or a folder."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microns_xr.errors import SourceError
from microns_xr.source.archive_header import Header, parse_header
from microns_xr.source.fetch import fetch_file
from microns_xr.source.files import file_sha256
from microns_xr.source.partial import Fetched, beside, fetched
from microns_xr.source.remote import exists, list_names, local_path
from microns_xr.source.remote_info import shown_url
from microns_xr.source.retry import Retry

__all__ = ["ArchiveFiles"]

_GOOGLE = "https://storage.googleapis.com/"
_HEADER, _DATA = "_header.csv", ".csv.gz"


class ArchiveFiles:
    """The pairs of files ``STEM.csv.gz``, ``STEM_header.csv`` of one version.

    Parameters
    ----------
    url : str
        Folder of the version; see `microns_xr.source.archive.ArchiveSource`.
    folder : pathlib.Path or None
        Where fetched files are kept; None for a temporary folder.
    storage_options : mapping
        For the file system of the bucket.
    retry : Retry
        How often and how patiently to ask again.
    timeout : float
        Seconds without a byte after which a connection has failed.

    Attributes
    ----------
    shown : str
        The folder of the version, as messages show it.
    """

    def __init__(
        self,
        url: str,
        *,
        folder: Path | None,
        storage_options: Mapping[str, Any],
        retry: Retry,
        timeout: float,
    ) -> None:
        self.shown = shown_url(url)
        self._url = _reachable(url, storage_options)
        self._local = local_path(self._url)
        self._folder = folder
        self._asking: dict[str, Any] = {
            "storage_options": dict(storage_options),
            "retry": retry,
            "timeout": timeout,
        }

    @property
    def folder(self) -> Path:
        """Where fetched files are kept."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="microns_xr-archive-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def stems(self) -> list[str] | None:
        """Return the stems of which both files are there; None where nothing can be listed.

        Returns
        -------
        list of str or None
            In no order.

        Raises
        ------
        SourceError, IncompleteDownloadError
            If access is refused, or the archive fails again and again.
        """
        files = list_names(self._url, **self._asking)
        if files is None:
            return None
        stems = [file.removesuffix(_DATA) for file in files if file.endswith(_DATA)]
        return [stem for stem in stems if f"{stem}{_HEADER}" in files]

    def has(self, stem: str) -> bool:
        """Say whether a header file is there.

        Parameters
        ----------
        stem : str
            Name of a pair of files.

        Returns
        -------
        bool
            False as well where access to it is refused.

        Raises
        ------
        SourceError, IncompleteDownloadError
            If the archive refuses otherwise, or fails again and again.
        """
        file = f"{stem}{_HEADER}"
        if self._local is not None:
            return (self._local / file).is_file()
        if self._fetched(file) is not None:
            return True
        return exists(f"{self._url}/{file}", **self._asking)

    def fetch(
        self, stem: str, *, refresh: bool = False, progress: bool = True
    ) -> tuple[Path, Header]:
        """Fetch a pair of files, unless they are here.

        Parameters
        ----------
        stem : str
            Name of the pair.
        refresh : bool, optional
            Fetch them although they are here.
        progress : bool, optional
            Whether to show a bar, in bytes, for the data file.

        Returns
        -------
        tuple of (pathlib.Path, Header)
            The data file, and its columns.

        Raises
        ------
        SourceError
            If one of them is not there, the header file is none, or the disk is full.
        IncompleteDownloadError
            If a file breaks off again and again; what has arrived is kept.
        """
        head = self._file(f"{stem}{_HEADER}", refresh, progress=False)
        header = parse_header(head.read_bytes(), str(head))
        return self._file(f"{stem}{_DATA}", refresh, progress), header

    def _file(self, file: str, refresh: bool, progress: bool) -> Path:
        if self._local is not None:
            path = self._local / file
            if not path.is_file():
                raise SourceError(f"there is no file {path}: check the folder and the version")
            return path
        found = fetch_file(
            f"{self._url}/{file}",
            self.folder / file,
            refresh=refresh,
            progress=progress,
            **self._asking,
        )
        return found.path

    def _fetched(self, file: str) -> Fetched | None:
        """Return what is known of a file that was fetched from here."""
        found = fetched(self.folder / file) if self._local is None else None
        return found if found and found.url == shown_url(f"{self._url}/{file}") else None

    def record(self, path: Path) -> dict[str, Any]:
        """Return what is known of a data file that `fetch` returned.

        Parameters
        ----------
        path : pathlib.Path
            The file.

        Returns
        -------
        dict
            ``url``, ``sha256``, and ``checked``: what was compared when it was fetched.
        """
        known = self._fetched(path.name)
        return {
            "url": f"{self.shown}/{path.name}",
            "sha256": known.sha256 if known else file_sha256(path),
            "checked": list(known.checked) if known else [],
        }

    def identity(self, path: Path) -> str:
        """Return what tells a data file from another of its name, without reading it whole.

        Parameters
        ----------
        path : pathlib.Path
            The file.

        Returns
        -------
        str
            Its sha256 if that is known, else name, size and time of the last change.
        """
        known = self._fetched(path.name)
        stat = path.stat()
        return known.sha256 if known else f"{path.name} {stat.st_size} {stat.st_mtime_ns}"

    def discard(self, stem: str) -> None:
        """Remove a pair that was fetched; files that lie where they are read are not touched.

        Parameters
        ----------
        stem : str
            Name of the pair.
        """
        if self._local is None:
            for ending in (_HEADER, _DATA):
                path = self.folder / f"{stem}{ending}"
                beside(path, ".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)


def _reachable(url: str, options: Mapping[str, Any]) -> str:
    """Return where a bucket is read: Google's over https, unless with a login."""
    for protocol in ("gs://", "gcs://"):
        if url.startswith(protocol) and not options:
            return _GOOGLE + url.removeprefix(protocol)
    return url
