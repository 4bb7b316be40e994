"""One file behind http or https, read through fsspec with an eye on the headers.

The headers of every answer are looked at, because that is where a file says that it has changed,
that a part was not what was asked for, or that a page of a login was sent instead.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import fsspec
from fsspec.asyn import sync

from microns_xr.source.remote_info import Changed, Opened, RemoteInfo, md5_in
from microns_xr.source.retry import BadAnswer, Refused, classify, status_of

__all__ = ["HttpFile"]

_PAGES = ("text/html", "application/xhtml+xml")


class HttpFile:
    """A `RemoteFile` behind http or https.

    Parameters
    ----------
    url : str
        The address.
    timeout : float
        Seconds without a byte after which a connection has failed.
    options : dict
        Handed to fsspec's http file system.
    """

    def __init__(self, url: str, timeout: float, options: dict[str, Any]) -> None:
        import aiohttp
        from fsspec.implementations.http import get_client

        self.url = url
        self._session: Any = None

        async def keep(**kwargs: Any) -> Any:
            self._session = await get_client(**kwargs)
            return self._session

        client: dict[str, Any] = {
            # The package's own limit is five minutes for the whole file.
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
            "auto_decompress": False,
            "trust_env": True,
            **options.pop("client_kwargs", {}),
        }
        self._fs = fsspec.filesystem(
            "http", skip_instance_cache=True, client_kwargs=client, get_client=keep, **options
        )

    def info(self) -> RemoteInfo:
        """Ask with HEAD, or with GET where HEAD is refused."""
        try:
            found = self._fs.info(self.url)
        except FileNotFoundError as error:  # whatever went wrong
            raise _known(error.__cause__ or error) from None
        _refuse_page(found.get("mimetype", ""))
        if found["size"] == 0:
            raise BadAnswer("the server says that the file is empty")
        validator = found.get("ETag") or found.get("Last-Modified") or ""
        return RemoteInfo(found["size"], validator)

    def open(self, offset: int, known: RemoteInfo) -> Opened:
        """Ask with GET, for a range if `offset` is not 0."""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if known.validator and not known.validator.startswith("W/"):
                headers["If-Range"] = known.validator
        try:
            # The size only keeps fsspec from asking for it.
            file = self._fs.open(self.url, block_size=0, size=1, headers=headers)
        except Exception as error:
            if status_of(error) == 416:
                raise Changed("the server has fewer bytes than the part that is here") from None
            raise _known(error) from None
        try:
            start, now = _answer(file.r.status, file.r.headers, offset)
            # A checksum that only the answer with the bytes has.
            now = RemoteInfo(now.size, now.validator or known.validator, now.md5, now.crc32c)
            if known.validator and now.validator != known.validator:
                raise Changed("the file has changed since it was begun")
            if None not in (known.size, now.size) and known.size != now.size:
                raise BadAnswer(f"the server says {known.size} bytes, then {now.size}")
        except BaseException:
            file.close()
            raise
        return Opened(start, now, file.read, file.close)

    def sidecar_md5(self) -> str | None:
        """Ask for the file with .md5 at its end."""
        try:
            return md5_in(self._fs.cat_file(f"{self.url}.md5"))
        except Exception as error:
            known = _known(error)
            if classify(known) == "lasting":
                return None
            raise known from None

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            sync(self._fs.loop, self._session.close)


def _known(error: BaseException) -> BaseException:
    """Return an error of a status as one that says no more than that."""
    if isinstance(error, FileNotFoundError):
        return Refused(404, "Not Found")
    status = status_of(error)
    if status is None:
        return error
    headers = getattr(error, "headers", None) or {}
    return Refused(status, getattr(error, "message", ""), headers.get("Retry-After"))


def _refuse_page(kind: str) -> None:
    if kind.partition(";")[0].strip().lower() in _PAGES:
        raise BadAnswer("the server sent a web page instead of the file")


def _answer(status: int, headers: Any, offset: int) -> tuple[int, RemoteInfo]:
    _refuse_page(headers.get("Content-Type", ""))
    if headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise BadAnswer(f"the server recodes the file as {headers['Content-Encoding']}")
    start, size = 0, headers.get("Content-Length")
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if not span or int(span[1]) != offset:
            raise BadAnswer(f"asked for bytes from {offset}, got {headers.get('Content-Range')}")
        start, size = offset, None if span[2] == "*" else span[2]
    elif status != 200:
        raise BadAnswer(f"HTTP {status}, expected 200 or 206")
    sums = re.findall(r"(md5|crc32c)=([\w+/]+=*)", ",".join(headers.getall("x-goog-hash", [])))
    sums += [("md5", value) for value in headers.getall("Content-MD5", []) if status == 200]
    hexed = {name: base64.b64decode(value).hex() for name, value in sums}
    validator = headers.get("ETag") or headers.get("Last-Modified") or ""
    whole = None if size is None else int(size)
    return start, RemoteInfo(whole, validator, hexed.get("md5"), hexed.get("crc32c"))
