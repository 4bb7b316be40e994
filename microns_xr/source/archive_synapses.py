"""The synapses of an archived release: a filter that streams over the one file of all of them.

What it keeps lies in the same folder, in the same form and under the same key as a download from
the service, so that everything that reads the one reads the other. The batches of a request are
runs of lines of the file here; after an interruption the file is unpacked again, and parsed from
where the last finished batch ends.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from microns_xr.errors import IncompleteDownloadError, MicronsXrError, SchemaError, SourceError
from microns_xr.source.archive_csv import read_blocks
from microns_xr.source.archive_header import Header, columns_of
from microns_xr.source.archive_values import finish_columns
from microns_xr.source.files import file_sha256
from microns_xr.source.synapse_answer import integer_columns
from microns_xr.source.synapse_download import as_roots, make_result
from microns_xr.source.synapse_folder import Batch, RequestFolder
from microns_xr.source.synapse_merge import sorted_synapses
from microns_xr.source.synapse_plan import Piece
from microns_xr.source.synapse_request import POSITION, SynapseRequest
from microns_xr.source.synapse_set import SynapseSet
from microns_xr.source.synapse_strategy import Strategy

__all__ = ["filter_synapses", "make_request"]

logger = logging.getLogger(__name__)

_BATCH_ROWS = 1 << 20  # kept synapses of a batch: 60 MB
_BATCH_BYTES = 1 << 30  # unpacked bytes of a batch, where few are kept
_FROM_FILE = "archived file "


def make_request(
    datastack: str, version: int, table: str, pre: Any, post: Any, positions: bool
) -> SynapseRequest:
    """Return what is asked for, checked.

    Parameters
    ----------
    datastack, version, table : str, int, str
        The release and its table of synapses.
    pre, post : array-like of int or None
        Root ids; order and repetition do not matter. None: whichever.
    positions : bool
        Whether with ``ctr_pt_position_x``, ``_y``, ``_z``, in voxels.

    Returns
    -------
    SynapseRequest
        The same as a download from the service makes of this.

    Raises
    ------
    SchemaError
        If ids are no positive integers, or there is none.

    Examples
    --------
    >>> make_request("minnie65_public", 661, "synapses_pni_2", [9, 7, 9], None, False).pre
    array([7, 9])
    """
    return SynapseRequest(
        datastack,
        int(version),
        table,
        as_roots(pre, "pre"),
        as_roots(post, "post"),
        bool(positions),
    )


def filter_synapses(
    path: str | Path,
    header: Header,
    folder: str | Path,
    request: SynapseRequest,
    *,
    identity: str | None = None,
    batch_rows: int = _BATCH_ROWS,
    batch_bytes: int = _BATCH_BYTES,
    progress: bool = True,
    cancel: threading.Event | None = None,
) -> SynapseSet:
    r"""Keep the synapses of a request, of an archived file of all synapses.

    A request that is complete is not filtered again; one that was interrupted, at whatever point,
    continues. Memory does not grow with the file.

    Parameters
    ----------
    path : str or pathlib.Path
        The file: gzipped CSV without a header line.
    header : Header
        Its columns.
    folder : str or pathlib.Path
        Where sets of synapses are kept, each under the key of its request.
    request : SynapseRequest
        What is asked for, see `make_request`.
    identity : str, optional
        What tells the file from another of its name, so that batches of two files are never
        mixed; by default its sha256.
    batch_rows, batch_bytes : int, optional
        A batch is kept when it has so many synapses, or when so many bytes were read for it.
    progress : bool, optional
        Whether to show a bar, in bytes of the file.
    cancel : threading.Event, optional
        Stops when it is set.

    Returns
    -------
    SynapseSet
        A complete one.

    Raises
    ------
    SchemaError
        If the file lacks a column.
    ReleaseMismatchError
        If the batches of an interrupted run are of another file.
    IncompleteDownloadError
        If it was cancelled. What has been kept so far stays.
    SourceError
        If the file is damaged or does not fit its header, another process filters the same, or
        the disk is full.

    Examples
    --------
    >>> import gzip, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "s.csv.gz").write_bytes(gzip.compress(b"1,7,8,50\n2,8,9,60\n3,7,9,70\n"))
    >>> names = ("id", "pre_pt_root_id", "post_pt_root_id", "size")
    >>> request = make_request("minnie65_demo", 661, "synapses_pni_2", None, [9], False)
    >>> found = filter_synapses(folder / "s.csv.gz", Header(names, ("bigint",) * 4), folder,
    ...     request, progress=False)
    >>> found.read()["id"].tolist()
    [3, 2]
    """
    result = SynapseSet(folder, request.key)
    if result.is_complete:
        logger.info("synapses of %s are already in %s", request.key, folder)
        return result
    path = Path(path)
    columns = _columns(header, request)
    requests = RequestFolder(Path(folder), request.key)
    try:
        stamp = f"{_FROM_FILE}{identity or file_sha256(path)}"
        with requests.locked():
            if not result.is_complete:
                run = _Filter(path, header, columns, request, requests, stamp)
                run.run((batch_rows, batch_bytes), progress, cancel)
    except MicronsXrError:
        raise
    except OSError as error:
        raise SourceError(f"{requests.path} cannot be used ({error}): check the disk") from error
    return result


def _columns(header: Header, request: SynapseRequest) -> list[str]:
    """Return the columns of the file that a request needs."""
    columns = [name for name in request.columns if not name.startswith(POSITION)]
    missing = [name for name in columns if name not in header.names]
    if request.positions:
        places = columns_of(header, POSITION)
        missing += [] if places else [POSITION]
        columns += places
    if missing:
        raise SchemaError(
            f"{header.where} lacks the columns {missing}, found {list(header.names)}: it is not "
            "the header of a table of synapses"
        )
    return columns


class _Filter:
    """One run of a request over the file."""

    def __init__(
        self,
        path: Path,
        header: Header,
        columns: list[str],
        request: SynapseRequest,
        folder: RequestFolder,
        stamp: str,
    ) -> None:
        self.path, self.header, self.columns = path, header, columns
        self.request, self.folder, self.stamp = request, folder, stamp
        self.wanted = {
            f"{side}_pt_root_id": pa.array(ids)
            for side, ids in (("pre", request.pre), ("post", request.post))
            if ids is not None
        }

    def run(
        self, batch_size: tuple[int, int], progress: bool, cancel: threading.Event | None
    ) -> None:
        kept = self._begin()
        start = kept[-1].piece.stop if kept else 0
        lines = sum(batch.answered for batch in kept)
        rows = sum(batch.rows for batch in kept)
        logger.info("%s: %d synapses of %d lines are here", self.folder.key, rows, lines)
        waiting: list[pa.Table] = []
        n_waiting = n_lines = 0
        stop = start
        with _bar(self.path, progress) as bar:
            for block in read_blocks(
                self.path, self.header, self.columns, start=start, first_line=lines + 1
            ):
                waiting.append(self._keep(block.table))
                n_waiting += waiting[-1].num_rows
                n_lines += block.table.num_rows
                stop = block.stop
                if n_waiting >= batch_size[0] or stop - start >= batch_size[1]:
                    self._commit(Piece(start, stop), waiting, n_lines)
                    rows += n_waiting
                    waiting, n_waiting, n_lines, start = [], 0, 0, stop
                bar.set_postfix_str(f"{rows + n_waiting:,} synapses", refresh=False)
                bar.update(block.packed - bar.n)
                if cancel is not None and cancel.is_set():
                    raise IncompleteDownloadError(
                        f"the filter of {self.folder.key} was cancelled: run the same again to "
                        "continue"
                    )
        if stop > start:
            self._commit(Piece(start, stop), waiting, n_lines)
        self._complete(stop)

    def _begin(self) -> list[Batch]:
        """Return the batches of an earlier run that follow each other from the first line on."""
        folder, request = self.folder, self.request
        before = folder.document("request") or {}
        if not str(before.get("timestamp", _FROM_FILE)).startswith(_FROM_FILE):
            logger.info("%s was begun at the service: it begins anew with the file", folder.key)
            (folder.path / "request.json").unlink(missing_ok=True)
        if folder.strategy(request, self.stamp) is None:
            folder.begin(request, self.stamp, Strategy(None, False, 0, 1))
        kept: list[Batch] = []
        stop = 0
        for batch in sorted(folder.batches(), key=lambda b: b.piece.start):
            if batch.piece.start == stop:
                kept.append(batch)
                stop = batch.piece.stop
            else:
                (folder.path / batch.file).unlink(missing_ok=True)
        folder.batches()  # takes what was removed out of the manifest
        return kept

    def _keep(self, table: pa.Table) -> pa.Table:
        for name, ids in self.wanted.items():
            table = table.filter(pc.is_in(table[name], value_set=ids))
        return table

    def _commit(self, piece: Piece, tables: list[pa.Table], lines: int) -> None:
        table = finish_columns(pa.concat_tables(tables), self.header, str(self.path))
        columns = sorted_synapses(integer_columns(table, self.request.columns))
        self.folder.commit(piece, columns, lines)

    def _complete(self, end: int) -> None:
        folder = self.folder
        batches = folder.batches()
        if sum(b.piece.stop - b.piece.start for b in batches) != end:
            raise IncompleteDownloadError(
                f"some batches of {folder.key} are not in {folder.path} any more, or not as they "
                "were written: check the disk, and run the same again"
            )
        make_result(folder, self.request, self.stamp, batches)


def _bar(path: Path, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        total=path.stat().st_size,
        desc="synapses",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
    )
