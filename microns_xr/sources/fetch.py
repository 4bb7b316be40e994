"""Download of one large file over http or from a bucket, with resuming and checks.

While a file NAME is being fetched, its bytes are in NAME.part, and NAME.part.json identifies the
remote file, so that a part is never continued with bytes of a file that has changed since then.
A complete file has NAME.json beside it. A process that is killed loses only the last few bytes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec
import google_crc32c
import requests

from microns_xr.errors import SourceError
from microns_xr.files import one_thread, read_json, try_lock, write_json
from microns_xr.network import PLAIN_HEADERS, BadAnswer, Refused, describe
from microns_xr.sources.net import (
    Retry,
    as_retry,
    attempt,
    classify,
    progress_bar,
    status_of,
)

_READ_BYTES = 64 << 10  # the most that is lost when a connection breaks off
_RANGE_BYTES = 8 << 20  # per request, where a protocol reads ranges
# An attempt that fetched this much does not count as failed: a connection may break off many times
# during the download of 20 GB.
_PROGRESS_BYTES = 256 << 10
_WHOLE_FETCHES = 3  # of a file whose checksum is wrong, or that changes while it is fetched
_SERVER_CHECKSUMS = ("md5", "crc32c")
_WEB_PAGES = ("text/html", "application/xhtml+xml")
_GZIP = b"\x1f\x8b"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_CLOUD_PACKAGES = ("botocore", "aiobotocore", "boto3", "gcsfs", "google", "adlfs", "azure")
_ADVICE = {
    401: "it needs a login: pass storage_options with yours",
    403: "access is refused: check the address, or pass storage_options with your login",
    404: "there is no such file: check the version, the name of the table and the address",
    410: "it has been removed: check the version and the address",
}

# 20.6 GB; the data set is described at huggingface.co/datasets/NeuroBLab/MICrONS (CC BY 4.0).
RECORDINGS_URL = "https://huggingface.co/datasets/NeuroBLab/MICrONS/resolve/main/microns.h5"
RECORDING_SUFFIXES = (".h5", ".hdf5")


def display_url(url: str) -> str:
    """Return an address for messages: without password and query."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def clean_urls(text: str) -> str:
    """Remove passwords and queries from all addresses in a text."""
    text = re.sub(r"\w+://[^\s'\"]+", lambda match: display_url(match[0]), text)
    return re.sub(r"(with url: [^\s?]*)\?\S*", r"\1", text)  # a path alone, as requests writes it


def file_name(url: str) -> str:
    """Return the name of the file behind an address."""
    path = urlsplit(url).path if "://" in url else Path(url).as_posix()
    name = unquote(path).rpartition("/")[2]
    if not name or name in (".", ".."):
        raise SourceError(f"{url!r} does not end with a file name: give the address of one file")
    return name


# ------------------------------------------------------------------------------- files elsewhere


class Changed(BadAnswer):
    """The remote file has changed since the part was fetched. Never leaves the package."""


@dataclass(frozen=True)
class RemoteInfo:
    """Properties of a remote file, as stated by its server."""

    size: int | None  # bytes; None if unknown
    validator: str = ""  # ETag, generation or time of the last change; empty if there is none
    md5: str | None = None
    crc32c: str | None = None

    def updated(self, now: RemoteInfo) -> RemoteInfo:
        """Return the properties in a later answer, or these where it does not state any."""
        return replace(self, **{k: v for k, v in asdict(now).items() if v not in (None, "")})


# Offset of the first byte, information on the whole file, and a function that reads.
Stream = tuple[int, RemoteInfo, Callable[[int], bytes]]


class _Session(requests.Session):
    """A session that sends a login nowhere but to the host that it is for.

    Files may be kept on another host than their address says, so redirects are followed. `requests`
    removes the Authorization header from them, but no other header and no cookie of the caller.
    """

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Remove what could be a login before a request is redirected to another host."""
        super().rebuild_auth(prepared_request, response)
        headers = prepared_request.headers
        if self.should_strip_auth(str(response.request.url), str(prepared_request.url)):
            for name in [name for name in headers if name.lower() not in PLAIN_HEADERS]:
                del headers[name]
            prepared_request.prepare_cookies({})
            prepared_request.hooks = requests.hooks.default_hooks()


class HttpFile:
    """A file at an http or https address."""

    def __init__(self, url: str, timeout: float, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = {"timeout": timeout, "stream": True, "allow_redirects": True, **options}

    def _request(self, method: str, suffix: str = "", **headers: str) -> requests.Response:
        # Ask for the stored bytes: offsets into a compressed answer are not those in the file.
        headers = {"Accept-Encoding": "identity", **self._options.get("headers", {}), **headers}
        options = {**self._options, "headers": headers}
        with _Session() as session:
            answer = session.request(method, self._url + suffix, **options)
        if answer.status_code >= 400:
            answer.close()
            raise Refused(answer.status_code, answer.reason or "", answer.headers)
        return answer

    def info(self) -> RemoteInfo:
        """Request information on the file, without its bytes."""
        try:
            answer = self._request("HEAD")
        except Refused:
            answer = self._request("GET")  # some servers only refuse the method
        with answer:
            _, info = _read_headers(answer, 0)
        if info.size == 0:
            raise BadAnswer("the server states that the file is empty")
        return info

    @contextlib.contextmanager
    def open(self, offset: int, known: RemoteInfo) -> Iterator[Stream]:
        """Open the file at `offset`, or at 0 if the server does not support ranges."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        # The server compares strong validators only; a weak one is compared below.
        if offset and known.validator and not known.validator.startswith("W/"):
            headers["If-Range"] = known.validator
        try:
            answer = self._request("GET", **headers)
        except Refused as error:
            if error.status == 416:
                raise Changed("the file on the server is shorter than the local part") from None
            raise
        with answer:
            start, now = _read_headers(answer, offset)
            # A server may state a checksum or the length in only one of the two answers.
            now = known.updated(now)
            if known.validator and now.validator != known.validator:
                raise Changed("the file has changed since the download began")
            if known.size is not None and known.size != now.size:
                raise BadAnswer(f"the server states {known.size} bytes, then {now.size}")
            yield start, now, partial(answer.raw.read, decode_content=False)

    def read_sidecar(self, suffix: str) -> bytes:
        """Return the content of the file whose name has an additional suffix."""
        with self._request("GET", suffix) as answer:
            return answer.content


def _read_headers(answer: requests.Response, offset: int) -> tuple[int, RemoteInfo]:
    """Return the offset of an answer, and the information on the whole file in its headers."""
    headers, status = answer.headers, answer.status_code
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() in _WEB_PAGES:
        raise BadAnswer("the server sent a web page instead of the file")  # usually a login page
    if headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise BadAnswer(f"the server encodes the file as {headers['Content-Encoding']}")
    start, size = 0, headers.get("Content-Length")
    sums = re.findall(r"(md5|crc32c)=([\w+/]+=*)", headers.get("x-goog-hash", ""))
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if not span or int(span[1]) != offset:
            raise BadAnswer(f"requested bytes from {offset}, got {headers.get('Content-Range')}")
        start, size = offset, None if span[2] == "*" else span[2]
    elif status != 200:
        raise BadAnswer(f"HTTP {status}, expected 200 or 206")
    elif "Content-MD5" in headers:
        sums.append(("md5", headers["Content-MD5"]))
    digests = {name: base64.b64decode(value).hex() for name, value in sums}
    validator = headers.get("ETag") or headers.get("Last-Modified") or ""
    return start, RemoteInfo(None if size is None else int(size), validator, **digests)


class BucketFile:
    """A file of any other protocol of fsspec: in a bucket, on this machine, in memory."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        if not options:  # a public bucket: do not look for a login
            public: dict[str, dict[str, Any]] = {"s3": {"anon": True}, "gs": {"token": "anon"}}
            options = public.get(url.partition("://")[0], {})
        self._files, self._path = fsspec.core.url_to_fs(url, **options)

    def info(self) -> RemoteInfo:
        """Request information on the file, without its bytes."""
        with _cloud_errors():
            # fsspec caches listings, and the file may have changed since then.
            self._files.invalidate_cache()
            info = self._files.info(self._path)
        if info.get("type") == "directory":
            raise Refused(404, "it is a folder")
        if info.get("size") == 0:
            raise BadAnswer("the file is empty")
        names = ("ETag", "etag", "generation", "mtime", "LastModified", "created")
        validator = next((str(info[name]) for name in names if info.get(name)), "")
        digests = {
            name: base64.b64decode(info[key]).hex()
            for name, key in (("md5", "md5Hash"), ("crc32c", "crc32c"))
            if info.get(key)
        }
        return RemoteInfo(info.get("size"), validator, **digests)

    @contextlib.contextmanager
    def open(self, offset: int, known: RemoteInfo) -> Iterator[Stream]:
        # fsspec does not compare validators, so check that it is still the same file.
        now = self.info()
        if (now.validator, now.size) != (known.validator, known.size):
            raise Changed("the file has changed since the download began")
        with _cloud_errors():
            file = self._files.open(self._path, "rb", block_size=_RANGE_BYTES, cache_type="none")
            file.seek(offset)

        def read(count: int) -> bytes:
            # Each read is a separate request.
            with _cloud_errors():
                data: bytes = file.read(max(count, _RANGE_BYTES))
            if not data and self.info() != now:
                raise Changed("the file has changed while it was read")
            return data

        with contextlib.closing(file):
            yield offset, known.updated(now), read

    def read_sidecar(self, suffix: str) -> bytes:
        """Return the content of the file whose name has an additional suffix."""
        with _cloud_errors():
            content: bytes = self._files.cat_file(self._path + suffix)
            return content

    def names(self) -> list[str]:
        try:
            with _cloud_errors():
                self._files.invalidate_cache()
                paths = self._files.ls(self._path, detail=False)
        except Refused as error:
            if error.status == 404:
                return []
            raise
        return [path.rpartition("/")[2] for path in paths]


@contextlib.contextmanager
def _cloud_errors() -> Iterator[None]:
    """Convert errors of packages for buckets to those of `microns_xr.sources.net`."""
    try:
        yield
    except FileNotFoundError as error:
        raise Refused(404, "there is no such file") from error
    except PermissionError as error:
        raise Refused(403, "access is refused") from error
    except Exception as error:
        if "Credentials" in type(error).__name__:
            raise Refused(401, describe(error)) from error
        package = type(error).__module__.partition(".")[0]
        if package in _CLOUD_PACKAGES and status_of(error) is None:
            raise BadAnswer(describe(error)) from error
        raise


def _sidecar_md5(remote: HttpFile | BucketFile) -> str | None:
    """Return the checksum in the file NAME.md5 beside a file NAME, if there is one."""
    try:
        content = remote.read_sidecar(".md5")
    except Refused as error:
        if classify(error) == "transient":
            raise
        return None
    return _stated_md5(content)


def _stated_md5(content: bytes) -> str | None:
    match = re.match(rb"\s*([0-9a-fA-F]{32})\b", content)
    return match[1].decode().lower() if match else None


def require_md5(path: Path) -> None:
    """Raise if NAME.md5 beside a local file states another checksum."""
    beside = append_suffix(path, ".md5")
    expected = _stated_md5(beside.read_bytes()) if beside.is_file() else None
    if expected is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if found != expected:
        raise SourceError(
            f"the md5 of {path} is {found}, expected {expected} as in {beside.name}: the file is "
            "damaged, copy it again"
        )


def open_remote(
    url: str, *, timeout: float = 60.0, storage_options: Mapping[str, Any] | None = None
) -> HttpFile | BucketFile:
    """Return the file at an address, without a request."""
    options = dict(storage_options or {})
    if url.startswith(("http://", "https://")):
        if not urlsplit(url).hostname:
            raise SourceError(f"{display_url(url)} names no server: check the address")
        return HttpFile(url, timeout, options)
    try:
        return BucketFile(url, options)
    except ImportError as error:
        raise SourceError(
            f"{url.partition('://')[0]}:// needs a package that is not installed ({error}): "
            "pip install 'microns-xr[cloud]'"
        ) from error
    except ValueError as error:
        raise SourceError(
            f"{display_url(url)} cannot be opened ({error}): use http://, https://, s3://, gs://, "
            "file:// or a path"
        ) from error


def local_path(url: str) -> Path | None:
    """Return the path of a local file; None for a remote one."""
    if "://" in url and not url.startswith(("file://", "local://")):
        return None
    return Path(fsspec.core.url_to_fs(url)[1])


def exists(url: str, *, retry: Retry, **options: Any) -> bool:
    """Return whether a file exists; `options` as for `open_remote`."""
    remote = open_remote(url, **options)

    def ask() -> bool:
        try:
            remote.info()
        except Refused as error:
            if error.status in (401, 403, 404, 410):
                return False
            raise
        return True

    return attempt(retry, ask, display_url(url), clean=clean_urls)


def list_names(url: str, *, retry: Retry, **options: Any) -> list[str] | None:
    """Return the names of the files in a folder; None over http, which cannot list them."""
    remote = open_remote(url, **options)
    if isinstance(remote, HttpFile):
        return None
    return attempt(retry, remote.names, display_url(url), clean=clean_urls)


# ------------------------------------------------------------------------------------ files here


def append_suffix(path: Path, suffix: str) -> Path:
    """Return the path with `suffix` appended to its name."""
    return path.with_name(path.name + suffix)


@dataclass(frozen=True)
class FetchedFile:
    """A file that was fetched completely and checked."""

    path: Path
    url: str  # address that it was fetched from
    size: int
    sha256: str
    checked: list[str]  # some of "length", "md5", "crc32c", "sha256"


def find_file(path: Path) -> FetchedFile | None:
    """Return the record of a file from `fetch_file`, if the file is still complete."""
    try:
        record = FetchedFile(path, **read_json(append_suffix(path, ".json")))
    except TypeError:  # no record, or another file of that name
        return None
    return record if path.is_file() and path.stat().st_size == record.size else None


@contextlib.contextmanager
def _open_part(path: Path) -> Iterator[IO[bytes]]:
    """Open and lock the part of a file for appending; remove it if it is empty in the end."""
    part = append_suffix(path, ".part")
    with open(part, "ab") as file:
        if not try_lock(file.fileno()):
            raise SourceError(f"another process is fetching {path}: wait until it has ended")
        try:
            yield file
        finally:
            if size_of(file) == 0:
                part.unlink(missing_ok=True)
                append_suffix(part, ".json").unlink(missing_ok=True)


def size_of(file: IO[bytes]) -> int:
    """Return the size of a file that is open for writing."""
    file.flush()
    return os.fstat(file.fileno()).st_size


def fetch_file(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    refresh: bool = False,
    retry: Retry | None = None,
    progress: bool = True,
    **options: Any,
) -> FetchedFile:
    """Fetch a file, or the rest of it; `options` as for `open_remote`."""
    path = Path(path)
    try:
        with one_thread(append_suffix(path, ".part")):
            existing = None if refresh else find_file(path)
            if existing and existing.url == display_url(url) and sha256 in (None, existing.sha256):
                return existing
            path.parent.mkdir(parents=True, exist_ok=True)
            with progress_bar(progress, path.name) as bar, _open_part(path) as part:
                remote = open_remote(url, **options)
                fetch = _Fetch(remote, display_url(url), path, part, sha256, bar)
                return attempt(
                    as_retry(retry),
                    fetch.attempt,
                    fetch.url,
                    advice=_ADVICE,
                    clean=clean_urls,
                    progressed=lambda: size_of(part) - fetch.size_before >= _PROGRESS_BYTES,
                )
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            f"{path} cannot be written ({describe(error)}): make room or choose another folder, "
            "and run the same again; data that has arrived is kept"
        ) from error


@dataclass
class _Fetch:
    """One call of `fetch_file`."""

    remote: HttpFile | BucketFile
    url: str
    path: Path
    part: IO[bytes]
    sha256: str | None
    bar: Any
    known: RemoteInfo | None = None
    size_before: int = 0  # size of the part when the last attempt began
    n_discarded: int = 0  # how often the part had to be discarded

    def __post_init__(self) -> None:
        self.note = append_suffix(self.path, ".part.json")  # identifies the file of the part

    def attempt(self) -> FetchedFile:
        """Continue from the end of the part, and check the file when it is complete."""
        self.size_before = size_of(self.part)
        try:
            known = self.known or self._begin()
            if size_of(self.part) != known.size:
                known = self._read(known)
            return self._finish(known)
        except Changed as error:
            raise self._start_over(str(error)) from None
        except BadAnswer:
            self.known = None  # one of two answers was wrong: request both again
            raise

    def _begin(self) -> RemoteInfo:
        """Request information on the file, and discard the part if it is of another file."""
        now = self.remote.info()
        note = read_json(self.note)
        # Without a validator it is unknown whether it is the same file.
        same = (note.get("url"), note.get("validator")) == (self.url, now.validator or None)
        if same and size_of(self.part) <= (now.size or size_of(self.part)):
            now = RemoteInfo(None, "", note.get("md5"), note.get("crc32c")).updated(now)
        else:
            self.part.truncate(0)
            self.size_before = 0
        return self._save_info(now)

    def _save_info(self, info: RemoteInfo) -> RemoteInfo:
        if info != self.known:
            self.known = info
            write_json(self.note, {"url": self.url, **asdict(info)})
        return info

    def _start_over(self, reason: str) -> Exception:
        """Discard the part and return the error to raise."""
        self.known = None
        self.part.truncate(0)
        self.note.unlink(missing_ok=True)
        self.n_discarded += 1
        if self.n_discarded < _WHOLE_FETCHES:
            return BadAnswer(reason)
        return SourceError(
            f"{self.url}: {reason}, {self.n_discarded} times: it is not the expected file, or it "
            "is changed in transit; check the address and the checksum"
        )

    def _read(self, known: RemoteInfo) -> RemoteInfo:
        part = self.part
        if not known.validator:
            part.truncate(0)  # the rest might be of another file
        with self.remote.open(size_of(part), known) as (start, now, read):
            if start == 0:
                part.truncate(0)  # the server does not support ranges
            known = self._save_info(now)
            size = 0 if known.size is None else known.size - start
            if size > (free := shutil.disk_usage(self.path.parent).free):
                raise SourceError(
                    f"{self.url} needs {size / 1e9:.3g} GB more, and {self.path.parent} has "
                    f"{free / 1e9:.3g} GB left: make room, or choose another folder"
                )
            self.bar.reset(known.size)
            self.bar.n = self.bar.initial = start
            while data := read(_READ_BYTES):
                part.write(data)
                self.bar.update(len(data))
        if known.size is not None and size_of(part) < known.size:
            raise BadAnswer(f"it broke off after {size_of(part)} of {known.size} bytes")
        return known

    def _finish(self, known: RemoteInfo) -> FetchedFile:
        """Check the part, and rename it to the file."""
        # Flush to disk before renaming, in case of a power failure.
        os.fsync(self.part.fileno())
        stated = {"md5": known.md5, "crc32c": known.crc32c, "sha256": self.sha256}
        if not any(stated.values()):
            stated["md5"] = _sidecar_md5(self.remote)
        expected = {name: value.lower() for name, value in stated.items() if value}
        part = Path(self.part.name)
        digests = _checksums(part)
        if problem := self._problem(known.size, expected, digests):
            error = self._start_over(problem)
            # Another download would return the same bytes.
            if any(expected.get(name) == digests[name] for name in _SERVER_CHECKSUMS):
                raise SourceError(
                    f"{self.url}: {problem}, although the server's own checksum matches: it is not "
                    "the expected file; check the address and the checksum"
                )
            raise error
        checked = ["length"] * (known.size is not None) + list(expected)
        record: dict[str, Any] = {
            "url": self.url,
            "size": size_of(self.part),
            "sha256": digests["sha256"],
            "checked": checked,
        }
        # If this is interrupted, the next run finds the complete part and repeats these steps.
        self.path.unlink(missing_ok=True)
        write_json(append_suffix(self.path, ".json"), record)
        part.replace(self.path)
        self.note.unlink(missing_ok=True)
        return FetchedFile(self.path, **record)

    def _problem(
        self, size: int | None, expected: Mapping[str, str], digests: Mapping[str, str]
    ) -> str | None:
        """Return what is wrong with the fetched bytes, or None."""
        if size not in (None, size_of(self.part)):
            return f"{size_of(self.part)} bytes arrived, expected {size}"
        with open(self.part.name, "rb") as file:
            start = file.read(64)
        if self.path.suffix == ".gz" and not start.startswith(_GZIP):
            return f"it begins with {start[:16]!r}, expected gzip"
        if self.path.suffix != ".gz" and start.lstrip()[:1] in (b"", b"<", b"{"):
            return f"it begins with {start[:16]!r}, expected a table"
        for name, value in expected.items():
            if digests[name] != value:
                return f"its {name} is {digests[name]}, expected {value}"
        return None


def _checksums(path: Path) -> dict[str, str]:
    digests: dict[str, Any] = {
        "md5": hashlib.md5(usedforsecurity=False),
        "crc32c": google_crc32c.Checksum(),
        "sha256": hashlib.sha256(),
    }
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.digest().hex() for name, digest in digests.items()}


def download(
    folder: str | Path,
    url: str = RECORDINGS_URL,
    *,
    sha256: str | None = None,
    refresh: bool = False,
    retry: Retry | None = None,
    timeout: float = 60.0,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Download the file of recordings into a folder.

    An interrupted download continues when the function is called again.

    Parameters
    ----------
    folder : str or Path
        Created if it does not exist.
    url : str, optional
        Address of the file: ``https://``, ``s3://``, ``gs://``, ``file://`` or a path; by default
        the published file of 20.6 GB.
    sha256 : str, optional
        Expected checksum. The server's own checksum is always compared if it states one.
    refresh : bool, optional
        Fetch the file even if it exists.
    retry : Retry, optional
        How often to repeat a request, and how long to wait before that; attempts that make
        progress do not count.
    timeout : float, optional
        Seconds without a byte after which a connection has failed.
    storage_options : mapping, optional
        Login: for a bucket the options of its fsspec file system, for https arguments of
        `requests.request`, such as ``headers``.
    progress : bool, optional
        Show a progress bar, in bytes.

    Returns
    -------
    pathlib.Path
        The file, for `microns_xr.recordings.open`.

    Raises
    ------
    SourceError
        If there is no such file, access is refused, the disk is full, the checksum differs, or
        the file is not an HDF5 file.
    IncompleteDownloadError
        If the connection fails too often; data that has arrived is kept.

    Examples
    --------
    >>> import tempfile
    >>> import microns_xr as mx
    >>> folder = Path(tempfile.mkdtemp())
    >>> file = mx.recordings.write_demo(folder / "demo.h5", n_clip=1)
    >>> mx.recordings.download(folder / "copy", str(file), progress=False).name
    'demo.h5'
    """
    path = Path(folder).expanduser() / file_name(url)
    fetch_file(
        url,
        path,
        sha256=sha256,
        refresh=refresh,
        retry=retry,
        timeout=timeout,
        storage_options=storage_options,
        progress=progress,
    )
    with open(path, "rb") as file:
        start = file.read(len(_HDF5))
    if start != _HDF5:
        path.unlink()
        append_suffix(path, ".json").unlink(missing_ok=True)
        raise SourceError(
            f"{display_url(url)} begins with {start!r} and is not an HDF5 file (a Git LFS pointer "
            "or a web page?), so it was removed: check the address"
        )
    return path
