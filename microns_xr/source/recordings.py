"""Fetching files that belong to no table of a release: recordings, and fits of tuning curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from microns_xr.errors import SourceError
from microns_xr.source.fetch import fetch_file
from microns_xr.source.partial import beside
from microns_xr.source.retry import Retry

__all__ = ["RECORDINGS_URL", "download_file", "download_recordings"]

# 20.6 GB; the data set is described at huggingface.co/datasets/NeuroBLab/MICrONS (CC BY 4.0).
RECORDINGS_URL = "https://huggingface.co/datasets/NeuroBLab/MICrONS/resolve/main/microns.h5"
RECORDING_SUFFIXES = (".h5", ".hdf5")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def file_name(url: str) -> str:
    """Return the name of the file behind an address.

    Parameters
    ----------
    url : str
        An address or a path.

    Returns
    -------
    str
        The last part of its path.

    Raises
    ------
    SourceError
        If it ends with no name.

    Examples
    --------
    >>> file_name("https://host/data/resolve/main/microns.h5?download=true")
    'microns.h5'
    """
    path = urlsplit(url).path if "://" in url else Path(url).as_posix()
    name = unquote(path).rpartition("/")[2]
    if not name or name in (".", ".."):
        raise SourceError(f"{url} ends with no name of a file: give the address of one file")
    return name


def download_file(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    refresh: bool = False,
    retry: Retry | None = None,
    timeout: float = 60.0,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Download one file; interrupted, it continues where it ended when this is run again.

    Parameters
    ----------
    url : str
        ``http://``, ``https://``, ``s3://``, ``gs://``, ``file://``, another protocol of fsspec,
        or a plain path.
    path : str or Path
        Where it goes; a folder that is there takes the name from the address.
    sha256 : str, optional
        What its checksum must be. Its length and the server's own checksums are compared anyway.
    refresh : bool, optional
        Download it although it is there.
    retry : Retry, optional
        How often and how patiently to ask again.
    timeout : float, optional
        Seconds without a byte after which a connection has failed.
    storage_options : mapping, optional
        What fsspec hands to the protocol's file system.
    progress : bool, optional
        Show a bar.

    Returns
    -------
    pathlib.Path
        The file, whole and checked; what is known of it is beside it as ``NAME.json``.

    Raises
    ------
    IncompleteDownloadError
        If it breaks off or fails again and again; what has arrived is kept.
    SourceError
        If there is no such file, access is refused, the disk is full, or the checksum is another.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "fits.csv").write_text("session,scan_idx")
    >>> download_file((folder / "fits.csv").as_uri(), folder / "copy.csv", progress=False).name
    'copy.csv'
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / file_name(url)
    found = fetch_file(
        url,
        path,
        sha256=sha256,
        refresh=refresh,
        retry=retry,
        timeout=timeout,
        storage_options=storage_options,
        progress=progress,
    )
    return found.path


def download_recordings(
    folder: str | Path,
    url: str = RECORDINGS_URL,
    *,
    sha256: str | None = None,
    **options: Any,
) -> Path:
    """Download the file of recordings into a folder.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there.
    url : str, optional
        Where it is; the published file of 20.6 GB by default.
    sha256 : str, optional
        What its checksum must be.
    **options
        As for `download_file`.

    Returns
    -------
    pathlib.Path
        The file, for `microns_xr.open_recordings`.

    Raises
    ------
    SourceError
        If what came is no HDF5 file, and as `download_file`.
    IncompleteDownloadError
        If it fails again and again; what has arrived is kept.
    """
    path = download_file(url, Path(folder) / file_name(url), sha256=sha256, **options)
    with open(path, "rb") as file:
        start = file.read(len(_HDF5))
    if start != _HDF5:
        path.unlink()
        beside(path, ".json").unlink(missing_ok=True)
        raise SourceError(
            f"{url} begins with {start!r} and is no HDF5 file (a pointer to a large file, or a "
            "page?), so it is not kept: check the address"
        )
    return path
