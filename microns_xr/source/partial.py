"""A file that is on its way: its part, the notes beside it, and what its bytes must be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from microns_xr.errors import SourceError

__all__ = [
    "Fetched",
    "beside",
    "checksums",
    "fetched",
    "open_part",
    "problem_with",
    "read_note",
    "size_of",
    "write_note",
]

_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


def beside(path: Path, ending: str) -> Path:
    """Return the path of the same name with something at its end.

    Parameters
    ----------
    path : pathlib.Path
        A file.
    ending : str
        Such as ``".part"``.

    Returns
    -------
    pathlib.Path
        The other file.

    Examples
    --------
    >>> beside(Path("nuclei.csv.gz"), ".part").name
    'nuclei.csv.gz.part'
    """
    return path.with_name(path.name + ending)


@dataclass(frozen=True)
class Fetched:
    """A file that is here, whole and checked.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    url : str
        Where it came from.
    size : int
        Bytes.
    sha256 : str
        Of its bytes.
    checked : tuple of str
        What was compared: ``"length"``, ``"md5"``, ``"crc32c"``, ``"sha256"``.
    """

    path: Path
    url: str
    size: int
    sha256: str
    checked: tuple[str, ...]


def fetched(path: str | Path) -> Fetched | None:
    """Return what is known of a file that `fetch_file` brought.

    Parameters
    ----------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    Fetched or None
        None when it is not there, or not whole.

    Examples
    --------
    >>> fetched("no/such/file.csv.gz") is None
    True
    """
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
    """Open a part for appending, for this process alone; an empty one does not stay.

    Parameters
    ----------
    part : pathlib.Path
        The part, which has a note of its name and ``.json``. The system lets go of it when the
        process ends, however it ends.

    Yields
    ------
    file
        Open for appending.

    Raises
    ------
    SourceError
        If another process has it.
    """
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
    """Return the size of a file that is open for writing.

    Parameters
    ----------
    file : file
        What was written to it is flushed.

    Returns
    -------
    int
        Bytes.
    """
    file.flush()
    return os.fstat(file.fileno()).st_size


def read_note(path: Path) -> dict[str, Any]:
    """Return what a note says.

    Parameters
    ----------
    path : pathlib.Path
        A JSON document.

    Returns
    -------
    dict
        Empty when there is no note, or none that can be read.

    Examples
    --------
    >>> read_note(Path("no/such/note.json"))
    {}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_note(path: Path, content: Mapping[str, Any]) -> None:
    """Write a note, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
        The file; an old one is replaced.
    content : mapping
        What JSON can hold.
    """
    temporary = beside(path, ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def checksums(path: Path, *, crc32c: bool = False) -> dict[str, str]:
    """Return checksums of a file, in one pass.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    crc32c : bool, optional
        Whether this one is needed too; it is left out where no package computes it.

    Returns
    -------
    dict of str to str
        ``md5``, ``sha256`` and ``crc32c``, in hexadecimal.
    """
    digests: dict[str, Any] = {
        "md5": hashlib.md5(usedforsecurity=False),
        "sha256": hashlib.sha256(),
    }
    if crc32c:
        with contextlib.suppress(ImportError):  # comes with zarr
            import google_crc32c

            digests["crc32c"] = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
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
    """Say what is wrong with the bytes that have arrived.

    Parameters
    ----------
    part : pathlib.Path
        Where they are.
    gzipped : bool
        Whether they must be gzip; otherwise they must be text of a table.
    size : int or None
        How many there must be, where that is known.
    sums, expected : mapping of str to str
        Checksums as they are and as they must be, by name; None where one is not known.

    Returns
    -------
    str or None
        The problem; None when there is none.
    """
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
