"""Fetching one file whole: begun again where it stopped, and checked before it counts as there.

While a file NAME is under way its bytes are in NAME.part, and NAME.part.json says of which file
they are, so that a file that has changed is never glued to an older part. A whole file has
NAME.json beside it. Ending the process at any moment loses nothing but the last bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from microns_xr.errors import SourceError
from microns_xr.source.partial import (
    Fetched,
    beside,
    checksums,
    fetched,
    open_part,
    problem_with,
    read_note,
    size_of,
    write_note,
)
from microns_xr.source.remote import open_remote
from microns_xr.source.remote_info import Changed, RemoteFile, RemoteInfo, clean_urls, shown_url
from microns_xr.source.retry import BadAnswer, Retry, classify, describe

__all__ = ["fetch_file"]

logger = logging.getLogger(__name__)

# Small, because aiohttp reads two of these ahead, and drops them when a connection breaks off.
_READ_BYTES = 64 << 10
# An attempt that brought this much was no failure: a file of 20 GB may break off many times.
_PROGRESS_BYTES = 256 << 10
_WHOLE_FETCHES = 3  # of a file whose checksum comes out wrong, or that changes meanwhile
_SERVERS_OWN = ("md5", "crc32c")
_ADVICE = {
    401: "it needs a login: pass storage_options with yours",
    403: "access is refused: check the address, or pass storage_options with your login",
    404: "there is no such file: check the version, the name of the table and the address",
    410: "it has been removed: check the version and the address",
}


def fetch_file(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    refresh: bool = False,
    retry: Retry | None = None,
    timeout: float = 60.0,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Fetched:
    """Fetch a file, or the rest of it.

    Parameters
    ----------
    url : str
        ``http://``, ``https://``, ``s3://``, ``gs://``, ``file://``, another protocol of fsspec,
        or a plain path.
    path : str or pathlib.Path
        Where it goes; the folder is made.
    sha256 : str, optional
        What its checksum must be.
    refresh : bool, optional
        Fetch it although it is there; the old file stays until the new one is whole.
    retry : Retry, optional
        How often and how patiently to ask again. Attempts that brought a part do not count.
    timeout : float, optional
        Seconds without a byte after which a connection has failed.
    storage_options : mapping, optional
        What fsspec hands to the protocol's file system.
    progress : bool, optional
        Whether to show a bar, in bytes.

    Returns
    -------
    Fetched
        The file. Nothing is asked for when it was there, from the same address.

    Raises
    ------
    IncompleteDownloadError
        If it breaks off or fails again and again; what has arrived is kept.
    SourceError
        If there is no such file, access is refused, the disk is full or cannot be written, another
        process fetches the same file, or its checksum comes out wrong several times.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "there.csv").write_text("id,bigint")
    >>> fetch_file((folder / "there.csv").as_uri(), folder / "here.csv", progress=False).size
    9
    """
    path = Path(path)
    there = None if refresh else fetched(path)
    if there and there.url == shown_url(url) and sha256 in (None, there.sha256):
        return there
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(
            open_remote(url, timeout=timeout, storage_options=storage_options)
        ) as remote:
            fetch = _Fetch(remote, url, path, sha256, retry or Retry(), progress)
            return fetch.run()
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            f"{path} cannot be written ({describe(error)}): make room or choose another folder, "
            "and run the same again; what has arrived is kept"
        ) from error


class _Fetch:
    """One call of `fetch_file`."""

    def __init__(
        self,
        remote: RemoteFile,
        url: str,
        path: Path,
        sha256: str | None,
        retry: Retry,
        progress: bool,
    ) -> None:
        self.remote, self.url, self.path = remote, shown_url(url), path
        self.sha256, self.retry, self.progress = sha256, retry, progress
        self.part, self.note = beside(path, ".part"), beside(path, ".part.json")
        self.known: RemoteInfo | None = None
        self.in_vain = 0

    def run(self) -> Fetched:
        bar: tqdm[Any] = tqdm(
            desc=self.path.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not self.progress,
        )
        with open_part(self.part) as part, bar:
            found = None
            while found is None:
                found = self.retry.call(
                    lambda: self._attempt(part, bar), self.url, advice=_ADVICE, clean=clean_urls
                )
            return found

    def _attempt(self, part: IO[bytes], bar: tqdm[Any]) -> Fetched | None:
        """Read on; None when it broke off after a good piece."""
        began = None
        try:
            if self.known is None:
                self._begin(part)
            began = size_of(part)
            if self.known is None or began != self.known.size:
                self._read(part, bar)
            return self._finish(part)
        except Changed as error:
            raise self._start_over(part, str(error)) from None
        except Exception as error:
            arrived = 0 if began is None else size_of(part) - began
            if classify(error) == "lasting" or arrived < _PROGRESS_BYTES:
                raise
            logger.warning("%s: %s; asking for the rest", self.url, clean_urls(describe(error)))
            self.retry.sleep(self.retry.wait(1, error))
            return None

    def _begin(self, part: IO[bytes]) -> None:
        """Ask what the file is, and keep the part only if it is of the same file."""
        now = self.remote.info()
        note = read_note(self.note)
        same = now.validator and (self.url, now.validator) == (
            note.get("url"),
            note.get("validator"),
        )
        if same and size_of(part) <= (now.size or size_of(part)):
            self._learn(replace(now, md5=note.get("md5"), crc32c=note.get("crc32c")))
        else:
            part.truncate(0)
            self._learn(now)

    def _learn(self, info: RemoteInfo) -> None:
        if info != self.known:
            self.known = info
            write_note(self.note, {"url": self.url, **asdict(info)})

    def _start_over(self, part: IO[bytes], why: str) -> Exception:
        """Forget the part, and return the error that says so."""
        self.known = None
        part.truncate(0)
        self.note.unlink(missing_ok=True)
        self.in_vain += 1
        if self.in_vain < _WHOLE_FETCHES:
            return BadAnswer(why)
        return SourceError(
            f"{self.url}: {why}, {self.in_vain} times: it is not the file that was expected, or "
            "something on the way changes it; check the address and the checksum"
        )

    def _read(self, part: IO[bytes], bar: tqdm[Any]) -> None:
        assert self.known is not None
        if not self.known.validator:
            part.truncate(0)  # nothing tells whether the rest would be of the same file
        try:
            opened = self.remote.open(size_of(part), self.known)
        except BadAnswer:
            # One of the two answers was wrong: ask for both again.
            self.known = None
            raise
        with contextlib.closing(opened):
            if opened.start == 0:
                part.truncate(0)  # the server gives no ranges
            now, known = opened.info, self.known  # of one file, as their validators say
            size = known.size if now.size is None else now.size
            md5, crc32c = now.md5 or known.md5, now.crc32c or known.crc32c
            self._learn(replace(now, size=size, md5=md5, crc32c=crc32c))
            self._require_room(0 if size is None else size - opened.start)
            bar.reset(size)
            bar.n = bar.initial = opened.start
            while data := opened.read(_READ_BYTES):
                part.write(data)
                bar.update(len(data))
        if size is not None and size_of(part) < size:
            raise BadAnswer(f"it breaks off after {size_of(part)} of {size} bytes")

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise SourceError(
                f"{self.url} needs {size / 1e9:.3g} GB more, and {self.path.parent} has "
                f"{free / 1e9:.3g} GB left: make room, or choose another folder"
            )

    def _finish(self, part: IO[bytes]) -> Fetched:
        """Check the part, and let it count as the file."""
        assert self.known is not None
        size = size_of(part)
        os.fsync(part.fileno())
        expected = {"md5": self.known.md5, "crc32c": self.known.crc32c, "sha256": self.sha256}
        if not any(expected.values()):
            expected["md5"] = self.remote.sidecar_md5()
        sums = checksums(self.part, crc32c=expected["crc32c"] is not None)
        problem = problem_with(
            self.part,
            gzipped=self.path.suffix == ".gz",
            size=self.known.size,
            sums=sums,
            expected=expected,
        )
        if problem:
            wrong = self._start_over(part, problem)
            if any(expected[name] and sums.get(name) == expected[name] for name in _SERVERS_OWN):
                raise SourceError(
                    f"{self.url}: {problem}, although the server's own checksum fits: it is not "
                    "the file that you expect; check the address and the checksum"
                )
            raise wrong
        checked = ["length"] if self.known.size is not None else []
        checked += [name for name, value in expected.items() if value and name in sums]
        record = {"url": self.url, "size": size, "sha256": sums["sha256"], "checked": checked}
        if os.name == "nt":
            part.close()  # cannot be renamed while it is open
        # Ended between any two of these, the next run finds the whole part and does them again.
        self.path.unlink(missing_ok=True)
        write_note(beside(self.path, ".json"), record)
        self.part.replace(self.path)
        self.note.unlink(missing_ok=True)
        return Fetched(self.path, self.url, size, sums["sha256"], tuple(checked))
