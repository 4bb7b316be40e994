"""One file that lies elsewhere, behind any protocol of fsspec."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from microns_xr.errors import SourceError
from microns_xr.source.remote_info import (
    Changed,
    Opened,
    RemoteFile,
    RemoteInfo,
    clean_urls,
    md5_in,
    shown_url,
)
from microns_xr.source.retry import BadAnswer, Refused, Retry, classify, describe, status_of

__all__ = ["exists", "list_names", "local_path", "open_remote"]

_BLOCK_BYTES = 8 << 20  # of a request, where a protocol asks for ranges
_CLOUD_PACKAGES = ("botocore", "aiobotocore", "boto3", "gcsfs", "google", "adlfs", "azure")


def open_remote(
    url: str, *, timeout: float = 60.0, storage_options: Mapping[str, Any] | None = None
) -> RemoteFile:
    """Return a file behind an address, without asking for it yet.

    Parameters
    ----------
    url : str
        ``http://``, ``https://``, ``s3://``, ``gs://``, ``file://`` or another protocol of
        fsspec, or a plain path.
    timeout : float, optional
        Seconds without a byte, over http, after which a connection has failed.
    storage_options : mapping, optional
        What fsspec hands to the protocol's file system.

    Returns
    -------
    RemoteFile
        The file.

    Raises
    ------
    SourceError
        If there is no such protocol, or its package is not installed.
    """
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        if protocol in ("http", "https"):
            if not urlsplit(url).hostname:
                raise SourceError(f"{shown_url(url)} names no server: check the address")
            from microns_xr.source.remote_http import HttpFile

            return HttpFile(url, timeout, dict(storage_options or {}))
        return _OtherFile(url, dict(storage_options or {}))
    except ImportError as error:
        package = "aiohttp" if protocol.startswith("http") else "'microns-xr[cloud]'"
        raise SourceError(
            f"{protocol}:// needs a package that is not installed ({error}): pip install {package}"
        ) from error
    except ValueError as error:
        raise SourceError(
            f"{shown_url(url)} cannot be opened ({error}): use http://, https://, s3://, gs://, "
            "file:// or a path"
        ) from error


def local_path(url: str) -> Path | None:
    """Return where a file of this machine lies.

    Parameters
    ----------
    url : str
        Any address, or a path.

    Returns
    -------
    pathlib.Path or None
        None for a file that lies elsewhere.

    Examples
    --------
    >>> local_path("file:///data/v661").as_posix(), local_path("s3://bucket/v661")
    ('/data/v661', None)
    """
    if "://" in url and not url.startswith(("file://", "local://")):
        return None
    return Path(fsspec.core.url_to_fs(url)[1])


def exists(
    url: str,
    *,
    retry: Retry,
    timeout: float = 60.0,
    storage_options: Mapping[str, Any] | None = None,
) -> bool:
    """Say whether there is a file.

    Parameters
    ----------
    url : str
        Its address.
    retry : Retry
        How often and how patiently to ask again.
    timeout, storage_options
        As for `open_remote`.

    Returns
    -------
    bool
        False as well where access to it is refused, which is how some buckets say that it is not
        there.

    Raises
    ------
    SourceError, IncompleteDownloadError
        If the server refuses in another way, or fails again and again.
    """

    def ask(remote: RemoteFile) -> bool:
        try:
            remote.info()
        except Exception as error:
            if status_of(error) in (401, 403, 404, 410):
                return False
            raise
        return True

    with contextlib.closing(
        open_remote(url, timeout=timeout, storage_options=storage_options)
    ) as remote:
        return retry.call(lambda: ask(remote), shown_url(url), clean=clean_urls)


def list_names(
    url: str,
    *,
    retry: Retry,
    timeout: float = 60.0,
    storage_options: Mapping[str, Any] | None = None,
) -> list[str] | None:
    """Return the names of the files in a folder.

    Parameters
    ----------
    url : str
        Its address.
    retry, timeout, storage_options
        As for `exists`.

    Returns
    -------
    list of str or None
        Empty when there is no such folder; None where nothing can be listed, as over http.

    Raises
    ------
    SourceError, IncompleteDownloadError
        As `exists`.
    """
    remote = open_remote(url, timeout=timeout, storage_options=storage_options)
    if not isinstance(remote, _OtherFile):
        return None
    return retry.call(remote.names, shown_url(url), clean=clean_urls)


class _OtherFile:
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        if not options:  # a public bucket: nobody's login is looked for
            protocol = url.partition("://")[0]
            nobody: dict[str, dict[str, Any]] = {"s3": {"anon": True}, "gs": {"token": "anon"}}
            options = nobody.get(protocol, {})
        self._fs, self._path = fsspec.core.url_to_fs(url, **options)

    def info(self) -> RemoteInfo:
        try:
            self._fs.invalidate_cache()
            found = self._fs.info(self._path)
        except Exception as error:
            raise _known(error) from error
        if found.get("type") == "directory":
            raise Refused(404, "it is a folder")
        if found.get("size") == 0:
            raise BadAnswer("the file is empty")
        names = ("ETag", "etag", "generation", "mtime", "LastModified", "created")
        validator = next((str(found[name]) for name in names if found.get(name)), "")
        sums = {
            ours: base64.b64decode(found[theirs]).hex()
            for ours, theirs in (("md5", "md5Hash"), ("crc32c", "crc32c"))
            if found.get(theirs)
        }
        return RemoteInfo(found.get("size"), validator, sums.get("md5"), sums.get("crc32c"))

    def open(self, offset: int, known: RemoteInfo) -> Opened:
        # These protocols ask for ranges on their own, so look whether it is still the same file.
        now = self.info()
        if (now.validator, now.size) != (known.validator, known.size):
            raise Changed("the file has changed since it was begun")
        try:
            file = self._fs.open(self._path, "rb", block_size=_BLOCK_BYTES, cache_type="none")
            file.seek(offset)
        except Exception as error:
            raise _known(error) from error

        def read(count: int) -> bytes:
            try:
                data: bytes = file.read(max(count, _BLOCK_BYTES))
            except Exception as error:
                raise _known(error) from error
            if not data and self.info() != now:
                raise Changed("the file has changed while it was read")
            return data

        return Opened(offset, now, read, file.close)

    def sidecar_md5(self) -> str | None:
        try:
            return md5_in(self._fs.cat_file(f"{self._path}.md5"))
        except Exception as error:
            known = _known(error)
            if classify(known) == "lasting":
                return None
            raise known from error

    def names(self) -> list[str]:
        """Return the names of the files in a folder."""
        try:
            self._fs.invalidate_cache()
            return [path.rpartition("/")[2] for path in self._fs.ls(self._path, detail=False)]
        except Exception as error:
            known = _known(error)
            if status_of(known) == 404:
                return []
            raise known from error

    def close(self) -> None:
        """Do nothing: the file systems of these protocols are shared and close by themselves."""


def _known(error: Exception) -> Exception:
    """Return an error of a cloud's package as one that tells what it means."""
    if isinstance(error, FileNotFoundError):
        return Refused(404, "there is no such file")
    if isinstance(error, PermissionError):
        return Refused(403, "access is refused")
    if "Credentials" in type(error).__name__:
        return Refused(401, describe(error))
    package = type(error).__module__.partition(".")[0]
    if package in _CLOUD_PACKAGES and status_of(error) is None:
        return BadAnswer(describe(error))
    return error
