"""Downloading synapses: batches of a request, several at a time, none of them lost."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from microns_xr.errors import IncompleteDownloadError, MicronsXrError, SchemaError, SourceError
from microns_xr.source.files import file_sha256
from microns_xr.source.synapse_answer import Asker, SynapseService, column_of
from microns_xr.source.synapse_folder import Batch, RequestFolder
from microns_xr.source.synapse_ids import as_ids
from microns_xr.source.synapse_merge import merge_batches
from microns_xr.source.synapse_plan import SynapsePlan, open_pieces
from microns_xr.source.synapse_request import SynapseRequest
from microns_xr.source.synapse_set import SynapseSet
from microns_xr.source.synapse_strategy import Side, choose_strategy
from microns_xr.source.synapse_workers import fetch_all

__all__ = ["SYNAPSE_TABLE", "as_roots", "download_synapses", "make_result"]

logger = logging.getLogger(__name__)

SYNAPSE_TABLE = "synapses_pni_2"


def download_synapses(
    service: SynapseService,
    folder: str | Path,
    *,
    pre: Any = None,
    post: Any = None,
    positions: bool = False,
    table: str = SYNAPSE_TABLE,
    batch: int | None = None,
    workers: int = 3,
    progress: bool = True,
    cancel: threading.Event | None = None,
) -> SynapseSet:
    """Download all synapses from some roots onto some roots.

    A request that is complete is not asked for again; one that was interrupted, at whatever point,
    continues. The result does not depend on batches, workers, interruptions or the order in which
    a service sends its rows. Every batch is counted by the service before it is asked for, and
    counts as arrived only with exactly that many synapses: one small request more a batch, against
    answers that lack rows and do not say so.

    Parameters
    ----------
    service : SynapseService
        Answers queries of one release, such as a `CaveSource`.
    folder : str or pathlib.Path
        Where sets of synapses are kept, each under the key of its request.
    pre, post : array-like of int, optional
        Root ids (`resolve_ids` makes them of units and nucleus ids); order and repetition do not
        matter. None: whichever.
    positions : bool, optional
        Whether with ``ctr_pt_position_x``, ``_y``, ``_z``, in voxels.
    table : str, optional
        Name of the synapse table.
    batch : int, optional
        The most root ids of a batch; by default as many as give about half of the row limit.
    workers : int, optional
        Requests at a time.
    progress : bool, optional
        Whether to show a bar with the roots that are done, synapses, pairs and the time left.
    cancel : threading.Event, optional
        Stops the download when it is set.

    Returns
    -------
    SynapseSet
        A complete one.

    Raises
    ------
    SchemaError
        If ids are no positive integers, there is none, or a number is out of range.
    IncompleteDownloadError
        If the service fails for too long, rows are missing, or the download was cancelled. What
        has arrived is kept.
    ReleaseMismatchError
        If the version has been made again since an interrupted download began.
    SourceError
        If the service refuses, another process downloads the same, or the disk is full.

    Examples
    --------
    >>> import tempfile, types
    >>> import pyarrow as pa, pyarrow.compute as pc
    >>> synapses = pa.table({"id": [1, 2, 3], "pre_pt_root_id": [7, 8, 7],
    ...     "post_pt_root_id": [8, 9, 9], "size": [10, 20, 30]})
    >>> class Service:
    ...     datastack, version = "minnie65_demo", 1718
    ...     def timestamp(self):
    ...         return "2026-01-01"
    ...     def rows(self, wanted):
    ...         masks = [pc.is_in(synapses[c], pa.array(ids)) for c, ids in wanted.items()]
    ...         return synapses.filter(masks[0] if len(masks) == 1 else pc.and_(*masks))
    ...     def count(self, table, filter_in=None):
    ...         return self.rows(filter_in).num_rows
    ...     def query(self, table, *, filter_in=None, select_columns=None):
    ...         return types.SimpleNamespace(table=self.rows(filter_in), limited_to=None)
    >>> found = download_synapses(Service(), tempfile.mkdtemp(), post=[9, 9], progress=False)
    >>> found.is_complete, found.read()["id"].tolist()
    (True, [3, 2])
    """
    for name, value in (("batch", batch), ("workers", workers)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
            raise SchemaError(f"{name} is {value!r}, expected a whole number from 1 up")
    request = SynapseRequest(
        service.datastack,
        _version(service),
        table,
        as_roots(pre, "pre"),
        as_roots(post, "post"),
        bool(positions),
    )
    requests = RequestFolder(folder, request.key)
    result = SynapseSet(folder, request.key)
    if result.is_complete:
        logger.info("synapses of %s are already in %s", request.key, folder)
        return result
    try:
        with requests.locked():
            if not result.is_complete:
                _run(service, request, requests, batch, workers, progress, cancel)
    except MicronsXrError:
        raise
    except OSError as error:
        raise SourceError(f"{requests.path} cannot be used ({error}): check the disk") from error
    return result


def as_roots(ids: Any, name: str) -> np.ndarray | None:
    """Return the root ids of one side of a request.

    Parameters
    ----------
    ids : array-like of int or None
        Root ids; order and repetition do not matter.
    name : str
        The side, for messages.

    Returns
    -------
    numpy.ndarray or None
        int64, sorted, unique; None for all.

    Raises
    ------
    SchemaError
        If they are no positive integers, or there is none.

    Examples
    --------
    >>> as_roots([9, 7, 9], "pre")
    array([7, 9])
    """
    if ids is None:
        return None
    roots = np.unique(as_ids(ids, name))
    if not len(roots) or roots[0] < 1:
        what = "no id" if not len(roots) else "root id 0, which is no segment"
        raise SchemaError(f"{name} holds {what}: resolve_ids leaves it out; None asks for all")
    return roots


def _version(service: SynapseService) -> int:
    if service.version is None:
        raise SourceError(
            f"{type(service).__name__} does not say its version, expected a materialization "
            "version: synapses of two releases must not be mixed"
        )
    return int(service.version)


def _run(
    service: SynapseService,
    request: SynapseRequest,
    folder: RequestFolder,
    batch: int | None,
    workers: int,
    progress: bool,
    cancel: threading.Event | None,
) -> None:
    """Fetch what is left of a request that is held, and make the result."""

    def count(filters: Mapping[Side, np.ndarray]) -> int:
        by_column = {column_of(side): ids.tolist() for side, ids in filters.items()}
        return service.count(request.table, by_column)

    timestamp = service.timestamp()
    strategy = folder.strategy(request, timestamp)
    if strategy is None:
        strategy = choose_strategy(request.pre, request.post, count)
        folder.begin(request, timestamp, strategy)
    done = [finished.piece for finished in folder.batches()]
    asker = Asker(service, request, strategy)
    plan = SynapsePlan(asker.n_ids, rows=strategy.rows, ids=strategy.ids, batch=batch, done=done)
    logger.info(
        "synapses of %s: %d of %d roots are here; asking by %s",
        request.key, plan.ids_done, asker.n_ids, strategy.side or "synapse id",
    )  # fmt: skip
    fetch_all(plan, asker, folder, workers=workers, progress=progress, cancel=cancel)
    batches = folder.batches()
    if left := open_pieces(asker.n_ids, [finished.piece for finished in batches]):
        raise IncompleteDownloadError(
            f"{len(left)} batches of {folder.key} are not in {folder.path} any more, or not as "
            "they were written: check the disk, and run the same again"
        )
    make_result(folder, request, timestamp, batches)


def make_result(
    folder: RequestFolder, request: SynapseRequest, timestamp: str, batches: list[Batch]
) -> None:
    """Make the result of all batches of a request that is held; they are gone then.

    Parameters
    ----------
    folder : RequestFolder
        The request.
    request : SynapseRequest
        What was asked.
    timestamp : str
        What tells the release, or the file of it, from another.
    batches : list of Batch
        All of them.

    Raises
    ------
    SourceError
        If they contradict each other, or the disk is full.
    """
    part = folder.result.with_name(folder.result.name + ".tmp")
    try:
        rows = merge_batches(folder.path, batches, request.columns, part)
        complete = {
            "rows": rows,
            "sha256": file_sha256(part),
            "bytes": part.stat().st_size,
            "timestamp": timestamp,
            "answered": sum(finished.answered for finished in batches),
            "fetched_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "created_by": f"microns_xr {_package_version()}",
        }
        part.replace(folder.result)
    finally:
        part.unlink(missing_ok=True)
    folder.write_document("complete", complete)
    folder.drop_batches()


def _package_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("microns-xr")
    return "unknown"
