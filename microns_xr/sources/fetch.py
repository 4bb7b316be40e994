"""Fetching files that belong to no table of a release: recordings, and fits of tuning curves."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec
from fsspec.asyn import sync
from tqdm.auto import tqdm

from microns_xr.errors import SourceError
from microns_xr.sources.net import BadAnswer, Refused, Retry, classify, describe, status_of

# What is known of a file that lies elsewhere, before and while its bytes are read.


class Changed(BadAnswer):
    """The file is no longer the one that a part was fetched of. Never leaves the package."""


@dataclass(frozen=True)
class RemoteInfo:
    """What is known of a file before its bytes."""

    size: int | None  # bytes; None when nobody says
    # ETag, generation or time of the last change; empty when there is none
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
    """Return the checksum that the text of a .md5 file begins with."""
    found = re.match(rb"\s*([0-9a-fA-F]{32})\b", content)
    return found[1].decode().lower() if found else None


def shown_url(url: str) -> str:
    """Return an address as messages may show it: without a password, and without a query."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def clean_urls(text: str) -> str:
    """Return a text with every address in it as `shown_url` shows it."""
    return re.sub(r"\w+://[^\s'\"]+", lambda found: shown_url(found[0]), text)


# One file behind http or https, read through fsspec with an eye on the headers.
#
# The headers of every answer are looked at, because that is where a file says that it has
# changed, that a part was not what was asked for, or that a page of a login was sent instead.


_PAGES = ("text/html", "application/xhtml+xml")


class HttpFile:
    """A `RemoteFile` behind http or https."""

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
            raise _http_error(error.__cause__ or error) from None
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
            raise _http_error(error) from None
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
            known = _http_error(error)
            if classify(known) != "transient":
                return None
            raise known from None

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            sync(self._fs.loop, self._session.close)


def _http_error(error: BaseException) -> BaseException:
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


# One file that lies elsewhere, behind any protocol of fsspec.


_BLOCK_BYTES = 8 << 20  # of a request, where a protocol asks for ranges
_CLOUD_PACKAGES = ("botocore", "aiobotocore", "boto3", "gcsfs", "google", "adlfs", "azure")


def open_remote(
    url: str, *, timeout: float = 60.0, storage_options: Mapping[str, Any] | None = None
) -> RemoteFile:
    """Return a file behind an address, without asking for it yet."""
    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        if protocol in ("http", "https"):
            if not urlsplit(url).hostname:
                raise SourceError(f"{shown_url(url)} names no server: check the address")

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
    """Return where a file of this machine lies."""
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
    """Say whether there is a file."""

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
    """Return the names of the files in a folder."""
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
            raise _cloud_error(error) from error
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
            raise _cloud_error(error) from error

        def read(count: int) -> bytes:
            try:
                data: bytes = file.read(max(count, _BLOCK_BYTES))
            except Exception as error:
                raise _cloud_error(error) from error
            if not data and self.info() != now:
                raise Changed("the file has changed while it was read")
            return data

        return Opened(offset, now, read, file.close)

    def sidecar_md5(self) -> str | None:
        try:
            return md5_in(self._fs.cat_file(f"{self._path}.md5"))
        except Exception as error:
            known = _cloud_error(error)
            if classify(known) != "transient":
                return None
            raise known from error

    def names(self) -> list[str]:
        """Return the names of the files in a folder."""
        try:
            self._fs.invalidate_cache()
            return [path.rpartition("/")[2] for path in self._fs.ls(self._path, detail=False)]
        except Exception as error:
            known = _cloud_error(error)
            if status_of(known) == 404:
                return []
            raise known from error

    def close(self) -> None:
        """Do nothing: the file systems of these protocols are shared and close by themselves."""


def _cloud_error(error: Exception) -> Exception:
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


# A file that is on its way: its part, the notes beside it, and what its bytes must be.


_HASH_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


def beside(path: Path, ending: str) -> Path:
    """Return the path of the same name with something at its end."""
    return path.with_name(path.name + ending)


@dataclass(frozen=True)
class Fetched:
    """A file that is here, whole and checked."""

    path: Path
    url: str  # where it came from
    size: int
    sha256: str
    # what was compared: ``"length"``, ``"md5"``, ``"crc32c"``, ``"sha256"``
    checked: tuple[str, ...]


def fetched(path: str | Path) -> Fetched | None:
    """Return what is known of a file that `fetch_file` brought."""
    path = Path(path)
    record = read_note(beside(path, ".json"))
    try:
        if not path.is_file() or path.stat().st_size != record["size"]:
            return None
        return Fetched(
            path, record["url"], record["size"], record["sha256"], tuple(record["checked"])
        )
    except KeyError:
        return None


@contextlib.contextmanager
def open_part(part: Path) -> Iterator[IO[bytes]]:
    """Open a part for appending, for this process alone; an empty one does not stay."""
    with open(part, "ab") as file:
        _lock(file, part)
        try:
            yield file
        finally:
            if not file.closed and size_of(file) == 0:
                part.unlink(missing_ok=True)
                beside(part, ".json").unlink(missing_ok=True)


def _lock(file: IO[bytes], part: Path) -> None:
    lock: Callable[[], None] | None = None
    with contextlib.suppress(ImportError):
        import fcntl

        lock = lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # noqa: E731
    if lock is None:
        return
    try:
        lock()
    except BlockingIOError:
        raise SourceError(
            f"another process is fetching {part.with_suffix('')}: wait until it has ended"
        ) from None
    except OSError:
        return  # a file system without locks


def size_of(file: IO[bytes]) -> int:
    """Return the size of a file that is open for writing."""
    file.flush()
    return os.fstat(file.fileno()).st_size


def read_note(path: Path) -> dict[str, Any]:
    """Return what a note says."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_note(path: Path, content: Mapping[str, Any]) -> None:
    """Write a note, whole or not at all."""
    temporary = beside(path, ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def checksums(path: Path, *, crc32c: bool = False) -> dict[str, str]:
    """Return checksums of a file, in one pass."""
    digests: dict[str, Any] = {
        "md5": hashlib.md5(usedforsecurity=False),
        "sha256": hashlib.sha256(),
    }
    if crc32c:
        with contextlib.suppress(ImportError):  # comes with zarr
            import google_crc32c

            digests["crc32c"] = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BYTES):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.digest().hex() for name, digest in digests.items()}


def problem_with(
    part: Path,
    *,
    gzipped: bool,
    size: int | None,
    sums: Mapping[str, str],
    expected: Mapping[str, str | None],
) -> str | None:
    """Say what is wrong with the bytes that have arrived."""
    found = part.stat().st_size
    if size not in (None, found):
        return f"{found} bytes arrived, expected {size}"
    with open(part, "rb") as file:
        start = file.read(64)
    if gzipped and not start.startswith(_GZIP):
        return f"it begins with {start[:16]!r}, expected gzip"
    if not gzipped and start.lstrip()[:1] in (b"", b"<", b"{"):
        return f"it begins with {start[:16]!r}, expected a table"
    for name, value in expected.items():
        if value and name in sums and sums[name] != value.lower():
            return f"its {name} is {sums[name]}, expected {value}"
    return None


# Fetching one file whole: begun again where it stopped, and checked before it counts as there.
#
# While a file NAME is under way its bytes are in NAME.part, and NAME.part.json says of which file
# they are, so that a file that has changed is never glued to an older part. A whole file has
# NAME.json beside it. Ending the process at any moment loses nothing but the last bytes.


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
    """Fetch a file, or the rest of it."""
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
        self.in_vain = self.arrived = 0

    def run(self) -> Fetched:
        bar: tqdm[Any] = tqdm(
            desc=self.path.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not self.progress,
        )
        with open_part(self.part) as part, bar:
            return self.retry.call(
                lambda: self._attempt(part, bar),
                self.url,
                advice=_ADVICE,
                clean=clean_urls,
                progressed=lambda: self.arrived >= _PROGRESS_BYTES,
            )

    def _attempt(self, part: IO[bytes], bar: tqdm[Any]) -> Fetched:
        """Read on from where the part ends."""
        began = None
        self.arrived = 0
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
            if began is not None and classify(error) == "transient":
                self.arrived = size_of(part) - began
            raise

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


# 20.6 GB; the data set is described at huggingface.co/datasets/NeuroBLab/MICrONS (CC BY 4.0).
RECORDINGS_URL = "https://huggingface.co/datasets/NeuroBLab/MICrONS/resolve/main/microns.h5"
RECORDING_SUFFIXES = (".h5", ".hdf5")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def file_name(url: str) -> str:
    """Return the name of the file behind an address."""
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
    """Download one file; interrupted, it continues where it ended when this is run again."""
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


def download(
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
        The file, for `microns_xr.recordings.open`.

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
