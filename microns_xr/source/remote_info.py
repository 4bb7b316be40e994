"""What is known of a file that lies elsewhere, before and while its bytes are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from microns_xr.source.retry import BadAnswer

__all__ = ["Changed", "Opened", "RemoteFile", "RemoteInfo", "clean_urls", "md5_in", "shown_url"]


class Changed(BadAnswer):
    """The file is no longer the one that a part was fetched of. Never leaves the package."""


@dataclass(frozen=True)
class RemoteInfo:
    """What is known of a file before its bytes.

    Attributes
    ----------
    size : int or None
        Bytes; None when nobody says.
    validator : str
        ETag, generation or time of the last change; empty when there is none.
    md5, crc32c : str or None
        Checksums in hexadecimal.
    """

    size: int | None
    validator: str = ""
    md5: str | None = None
    crc32c: str | None = None


@dataclass(frozen=True)
class Opened:
    """An answer whose bytes can be read: it begins at `start`, of the file that `info` says."""

    start: int
    info: RemoteInfo
    read: Callable[[int], bytes]
    close: Callable[[], None]


class RemoteFile(Protocol):
    """What fetching needs of a file; every error is one that `retry.classify` knows."""

    def info(self) -> RemoteInfo:
        """Return what is known of the file, without its bytes."""
        ...

    def open(self, offset: int, known: RemoteInfo) -> Opened:
        """Open it at `offset`, or at 0 where that cannot be had; `Changed` if it is another."""
        ...

    def sidecar_md5(self) -> str | None:
        """Return the checksum in the file of the same name with .md5 at its end."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


def md5_in(content: bytes) -> str | None:
    """Return the checksum that the text of a .md5 file begins with.

    Parameters
    ----------
    content : bytes
        The file, as md5sum writes it.

    Returns
    -------
    str or None
        32 hexadecimal digits; None when the text is something else.

    Examples
    --------
    >>> md5_in(b"D41D8CD98F00B204E9800998ECF8427E  t.csv.gz"), md5_in(b"<html>")
    ('d41d8cd98f00b204e9800998ecf8427e', None)
    """
    found = re.match(rb"\s*([0-9a-fA-F]{32})\b", content)
    return found[1].decode().lower() if found else None


def shown_url(url: str) -> str:
    """Return an address as messages may show it: without a password, and without a query.

    Parameters
    ----------
    url : str
        Any address.

    Returns
    -------
    str
        The same without what could be a secret.

    Examples
    --------
    >>> shown_url("https://me:secret@example.org/v1/t.csv.gz?X-Signature=1f")
    'https://example.org/v1/t.csv.gz'
    """
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def clean_urls(text: str) -> str:
    """Return a text with every address in it as `shown_url` shows it.

    Parameters
    ----------
    text : str
        Such as the message of an error.

    Returns
    -------
    str
        The same without passwords and queries.

    Examples
    --------
    >>> clean_urls("403, url='https://example.org/t.gz?token=1f'")
    "403, url='https://example.org/t.gz'"
    """
    return re.sub(r"\w+://[^\s'\"]+", lambda found: shown_url(found[0]), text)
