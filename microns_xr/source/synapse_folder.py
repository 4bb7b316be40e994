"""The folder of a request of synapses, which remembers how far its download came.

A request has a folder of its own, named by its key, below the folder of all synapses::

    pre20-post300-6c1a09f2b3d4/        the request
        request.json                   what was asked, of which release
        pre.parquet  post.parquet      the root ids, where they were given
        manifest.jsonl                 one line a finished batch
        0000000-0000128.parquet        its synapses
        complete.json                  rows and sha256 of the result; the batches are gone then
    pre20-post300-6c1a09f2b3d4.parquet the result

A file is written beside and renamed, and a batch counts from the moment its line in the manifest
is whole, so that a process may be killed at any point.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

try:
    import fcntl
except ImportError:  # no file locks on Windows: two downloads at once are not noticed there
    fcntl = None  # type: ignore[assignment]

from microns_xr.errors import ReleaseMismatchError, SourceError
from microns_xr.source.files import file_sha256
from microns_xr.source.synapse_bytes import parquet_bytes, write_whole
from microns_xr.source.synapse_plan import Piece
from microns_xr.source.synapse_request import SynapseRequest
from microns_xr.source.synapse_strategy import Strategy

__all__ = ["Batch", "RequestFolder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """A finished batch, as its line in the manifest says.

    Attributes
    ----------
    piece : Piece
        Which part of the request.
    file, sha256 : str
        Its file.
    rows, answered : int
        Synapses of the request in it, and rows of the answer it was taken from.
    post_from, post_to : int
        The first and the last postsynaptic root in it; -1 where it is empty.
    """

    piece: Piece
    file: str
    sha256: str
    rows: int
    answered: int
    post_from: int
    post_to: int


class RequestFolder:
    """The folder of one request.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder of all requests.
    key : str
        Key of the request.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        folder = Path(folder).expanduser()
        self.path = folder / key
        self.key = key
        self.result = folder / f"{key}.parquet"
        self._writing = threading.Lock()
        self._closed = True

    # ----------------------------------------------------------------------------- what it is

    def document(self, name: str) -> dict[str, Any] | None:
        """Return ``request.json`` or ``complete.json``; None where it is not there, or damaged."""
        try:
            document = json.loads((self.path / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def request(self) -> SynapseRequest:
        """Return what was asked.

        Raises
        ------
        SourceError
            If that cannot be read, or is not what the key says.
        """
        record = (self.document("request") or {}).get("request", {})
        try:
            ids = {side: self._ids(side) if record[side] else None for side in ("pre", "post")}
            request = SynapseRequest(
                record["datastack"], record["version"], record["table"], **ids,
                positions=len(record["columns"]) > 4,
            )  # fmt: skip
        except (KeyError, TypeError, OSError, pa.ArrowException) as error:
            raise SourceError(
                f"{self.path} cannot be read ({error!r}): remove it, and download again"
            ) from error
        if request.key != self.key:
            raise SourceError(
                f"{self.path} holds the request {request.key}: it was renamed or changed; "
                "remove it, and download again"
            )
        return request

    def _ids(self, side: str) -> np.ndarray:
        with pq.ParquetFile(self.path / f"{side}.parquet") as file:
            return file.read()["root_id"].to_numpy()

    def is_complete(self) -> bool:
        """Whether the result is there, as large as it was written."""
        complete = self.document("complete")
        try:
            return complete is not None and self.result.stat().st_size == complete["bytes"]
        except (OSError, KeyError):
            return False

    # ------------------------------------------------------------------------------- writing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the request: no other process writes into it, and this one does only in here.

        Raises
        ------
        SourceError
            If another download holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be written ({error})") from error
        try:
            self._lock(descriptor)
            self._closed = False
            yield
        finally:
            # Threads may come late with an answer: nothing is written once this is released.
            with self._writing:
                self._closed = True
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise SourceError(
                f"request {self.key} is being downloaded by process {holder or '(unknown)'}: "
                "wait for its end, then ask again"
            ) from error
        except OSError as error:
            # Some network file systems have no locks: two downloads at once are not noticed there.
            logger.debug("%s cannot be locked: %s", self.path, error)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def strategy(self, request: SynapseRequest, timestamp: str) -> Strategy | None:
        """Return how an earlier run asked for the same, if there was one.

        Parameters
        ----------
        request : SynapseRequest
            What is asked.
        timestamp : str
            When the release was made.

        Returns
        -------
        Strategy or None
            None: nothing is here yet.

        Raises
        ------
        ReleaseMismatchError
            If that run met another timestamp.
        """
        before = self.document("request")
        if before is None or before.get("request") != request.record():
            return None
        if before.get("timestamp") != timestamp:
            archived = [
                str(t).startswith("archived file ") for t in (before["timestamp"], timestamp)
            ]
            if archived[0] != archived[1]:
                return None  # begun at the archive or at the service: the batches differ
            raise ReleaseMismatchError(
                f"{request.datastack} v{request.version} was made {timestamp}, but the synapses "
                f"in {self.path} are of {before.get('timestamp')}: the version was made again, so "
                "remove that folder and download anew"
            )
        with contextlib.suppress(KeyError, TypeError):
            return Strategy(**before["strategy"])
        return None

    def begin(self, request: SynapseRequest, timestamp: str, strategy: Strategy) -> None:
        """Write what is asked, and how; whatever is here is of no use then, and removed."""
        for name in ("request.json", "complete.json", "manifest.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for side, ids in (("pre", request.pre), ("post", request.post)):
            if ids is not None:
                write_whole(self.path / f"{side}.parquet", parquet_bytes({"root_id": ids}))
        asked = {"request": request.record(), "timestamp": timestamp}
        self.write_document("request", {**asked, "strategy": asdict(strategy)})

    def write_document(self, name: str, document: dict[str, Any]) -> None:
        """Write ``NAME.json``."""
        write_whole(self.path / f"{name}.json", json.dumps(document, indent=1).encode())

    def batches(self) -> list[Batch]:
        """Return the finished batches whose files are whole, and remove all other files.

        To be called while the request is held.
        """
        manifest = self.path / "manifest.jsonl"
        content = manifest.read_bytes() if manifest.exists() else b""
        found = [batch for line in content.split(b"\n") if (batch := self._whole(line))]
        lines = b"".join(_line(batch) for batch in found)
        if lines != content:
            write_whole(manifest, lines)
        files = {batch.file for batch in found} | {"pre.parquet", "post.parquet"}
        for path in [*self.path.glob("*.parquet"), *self.path.glob("*.tmp")]:
            if path.name not in files:
                path.unlink(missing_ok=True)
        self.result.with_name(self.result.name + ".tmp").unlink(missing_ok=True)
        return found

    def _whole(self, line: bytes) -> Batch | None:
        """Return the batch of a line, unless the line was cut, or its file is not as it says."""
        try:
            fields = json.loads(line)
            batch = Batch(**{**fields, "piece": Piece(**fields["piece"])})
            same = file_sha256(self.path / batch.file) == batch.sha256
        except (ValueError, TypeError, KeyError, SourceError):
            return None
        return batch if same else None

    def commit(self, piece: Piece, columns: dict[str, np.ndarray], answered: int) -> Batch | None:
        """Write one finished batch; None where the request is no longer held."""
        content = parquet_bytes(columns)
        post = columns["post_pt_root_id"]
        ends = ["" if i is None else f"-{i}" for i in (piece.id_from, piece.id_below)]
        middle = f"-ids{ends[0]}-to{ends[1]}" if piece.is_range else ""
        batch = Batch(
            piece=piece, file=f"{piece.start:07d}-{piece.stop:07d}{middle}.parquet",
            sha256=hashlib.sha256(content).hexdigest(),
            rows=len(post),
            answered=answered,
            post_from=int(post.min(initial=np.iinfo(np.int64).max)) if len(post) else -1,
            post_to=int(post.max(initial=-1)),
        )  # fmt: skip
        with self._writing:
            if self._closed:
                return None
            write_whole(self.path / batch.file, content)
            try:
                with open(self.path / "manifest.jsonl", "ab") as file:
                    file.write(_line(batch))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise SourceError(f"{self.path} cannot be written ({error})") from error
        return batch

    def drop_batches(self) -> None:
        """Remove the batches, when the result is there."""
        (self.path / "manifest.jsonl").unlink(missing_ok=True)
        for path in self.path.glob("[0-9]*.parquet"):
            path.unlink(missing_ok=True)


def _line(batch: Batch) -> bytes:
    return json.dumps(asdict(batch)).encode() + b"\n"
