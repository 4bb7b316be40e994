"""Download of synapses from the service in batches, several at a time, without losing any.

A request has a folder named by its key, beside which its result is written::

    pre20-post300-6c1a09f2b3d4/
        request.json             the request, its release and its strategy
        pre.parquet post.parquet the root ids, unless all are requested
        0000000-0000128-6c1a09f2b3d4e5f6.parquet  the synapses of one batch
        complete.json            rows and sha256 of the result; the batches are removed then
    pre20-post300-6c1a09f2b3d4.parquet   the result

Files are written to a temporary name and renamed, so that the process may be killed at any moment.
The name of a batch holds its part of the request and the start of its sha256.

An answer does not show that rows are missing: a stream may end after its schema, a service may
lose some. So the service counts the rows of every batch first, and an answer is accepted only if
it holds exactly that many synapses, each of which matches the request.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import xarray as xr
from pyarrow.fs import LocalFileSystem

from microns_xr import __version__
from microns_xr.columns import as_ids
from microns_xr.errors import (
    IncompleteDownloadError,
    MicronsXrError,
    ReleaseMismatchError,
    SchemaError,
    SourceError,
    is_shortage,
    unknown_label,
    whole_number,
)
from microns_xr.files import (
    file_sha256,
    locked,
    new_file,
    read_json,
    remove_temporary,
    write_error,
    write_file,
    write_json,
)
from microns_xr.frames import RESOLUTION
from microns_xr.provenance import release_of
from microns_xr.sources.cave import CaveSource
from microns_xr.sources.net import BadAnswer, attempt, progress_bar
from microns_xr.sources.synapse_plan import (
    Piece,
    Side,
    Strategy,
    SynapsePlan,
    choose_strategy,
    open_pieces,
    split_ids,
    split_synapses,
)

logger = logging.getLogger(__name__)

SYNAPSE_TABLE = "synapses_pni_2"
POSITION = "ctr_pt_position"
_PRE, _POST = "pre_pt_root_id", "post_pt_root_id"
_ROOT_COLUMN: dict[Side, str] = {"pre": _PRE, "post": _POST}

# ---------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, eq=False)
class SynapseRequest:
    """A request for synapses."""

    datastack: str
    version: int
    table: str
    # Root ids, int64, sorted, unique; None for all.
    pre: np.ndarray | None
    post: np.ndarray | None
    positions: bool = False  # whether to include the positions, in voxels

    @property
    def columns(self) -> list[str]:
        """Columns of the result, all int64."""
        places = [f"{POSITION}_{axis}" for axis in "xyz"] if self.positions else []
        return ["id", _PRE, _POST, "size", *places]

    def record(self) -> dict[str, Any]:
        """Return the fields that distinguish it from other requests."""
        ids = {"pre": self.pre, "post": self.post}
        return {
            "format": 1,
            "datastack": self.datastack,
            "version": self.version,
            "table": self.table,
            "columns": self.columns,
            **{
                side: None if i is None else hashlib.sha256(i.astype("<i8").tobytes()).hexdigest()
                for side, i in ids.items()
            },
        }

    @property
    def key(self) -> str:
        """Name of the request: its numbers of ids, and a hash of its record."""
        record = json.dumps(self.record(), sort_keys=True)
        digest = hashlib.sha256(record.encode()).hexdigest()[:12]
        pre, post = ("all" if i is None else str(len(i)) for i in (self.pre, self.post))
        return f"pre{pre}-post{post}-{'positions-' if self.positions else ''}{digest}"


def make_request(
    datastack: str, version: int, table: str, pre: Any, post: Any, positions: bool
) -> SynapseRequest:
    """Check the root ids of both sides and return the request."""
    roots: dict[str, np.ndarray | None] = {"pre": None, "post": None}
    for side, ids in (("pre", pre), ("post", post)):
        if isinstance(ids, xr.Dataset):
            raise SchemaError(f"{side} is a Dataset, expected root ids: give units.pt_root_id")
        if ids is not None:
            unique = roots[side] = np.unique(as_ids(ids, side))
            if not len(unique) or unique[0] < 1:
                what = f"root id {unique[0]}, which is not a segment" if len(unique) else "no id"
                raise SchemaError(f"{side} holds {what}: give root ids above 0, or None for all")
    # Without a version, synapses of two releases would be one request.
    version = whole_number("version of the source", version, 1)
    return SynapseRequest(datastack, version, table, **roots, positions=bool(positions))


# The upper bits of a root id are its layer, so that root ids are far above all nucleus ids.
_ROOTS_FROM = 2**50


def resolve_ids(
    ids: Any,
    nuclei: pd.DataFrame,
    *,
    name: str = "ids",
    datastack: str | None = None,
    version: int | None = None,
    allow_unknown: bool = False,
) -> np.ndarray:
    """Resolve units, nucleus ids or root ids to root ids of one release: sorted and unique.

    Ids whose root is 0 (no segment) are left out, and nuclei that share a root give one id.
    """
    if isinstance(ids, xr.Dataset | xr.DataArray):
        ids = _labelled_roots(ids, name, datastack, version)
    values = as_ids(ids, name)
    unique = np.unique(values)
    nucleus_ids = as_ids(nuclei["id"], "nucleus ids of the nucleus table")
    nucleus_roots = as_ids(nuclei["pt_root_id"], "root ids of the nucleus table", missing=0)
    release = f"{datastack or 'the release'}{'' if version is None else f' v{version}'}"

    is_nucleus = np.isin(unique, nucleus_ids)
    is_root = np.isin(unique, nucleus_roots) & (unique > 0)
    n_nucleus, n_root = int((is_nucleus & (unique > 0)).sum()), int(is_root.sum())
    if n_nucleus and n_root and (is_nucleus != is_root)[unique > 0].any():
        raise SchemaError(
            f"{name}: {n_nucleus} nucleus ids and {n_root} root ids of {release}, expected one "
            "kind: give the nucleus ids, which are the same in every release"
        )
    by_nucleus = n_nucleus > n_root or (n_nucleus == n_root and not (unique >= _ROOTS_FROM).any())
    known = is_nucleus if by_nucleus else is_root | (unique == 0)
    n_unknown = int((~known).sum())
    if n_unknown and not allow_unknown:
        hint = (
            "nucleus ids are the same in every release, so these are not nuclei of it"
            if by_nucleus
            else "root ids change between releases, so these are probably from another one, or "
            "not neurons"
        )
        raise ReleaseMismatchError(
            f"{name}: {n_unknown} of {len(unique)} {'nucleus' if by_nucleus else 'root'} ids "
            f"({100 * n_unknown / len(unique):.3g} %) are not in the nucleus table of {release}, "
            f"such as {', '.join(map(str, unique[~known][:3].tolist()))}: {hint}; use ids of this "
            "release, or pass allow_unknown=True"
        )
    candidates = unique
    if by_nucleus:
        order = np.argsort(nucleus_ids, kind="stable")
        candidates = nucleus_roots[order][np.searchsorted(nucleus_ids[order], unique[known])]
    roots = np.unique(candidates[candidates > 0])
    n_zero = int((candidates <= 0).sum())
    counts = (
        f"{len(roots)} roots of {len(values)} ids, {len(values) - len(unique)} of them repeated, "
        f"{n_unknown} not in the nucleus table, {n_zero} with root 0, "
        f"{len(candidates) - n_zero - len(roots)} with the root of another id"
    )
    if not len(roots):
        raise SchemaError(
            f"{name}: there is no root id to request ({counts}): pass None for all, "
            "ids whose root is 0 have no segment in this release"
        )
    logger.info("%s: %s", name, counts)
    return roots


def _labelled_roots(
    ids: xr.Dataset | xr.DataArray, name: str, datastack: str | None, version: int | None
) -> np.ndarray:
    """Return the root ids of units, which state their release, or an array of ids."""
    if isinstance(ids, xr.Dataset) or "materialization_version" in ids.coords:
        of_stack, of_version = release_of(ids, name)
        if version not in (None, of_version) or datastack not in (None, of_stack):
            raise ReleaseMismatchError(
                f"{name} is of {of_stack} v{of_version}, but synapses of {datastack} v{version} "
                "were requested: use units of that release, or their nucleus ids, which are the "
                "same in every release"
            )
    if isinstance(ids, xr.Dataset):
        if "pt_root_id" not in ids:
            raise SchemaError(
                f"{name} is a Dataset without pt_root_id, expected units: use Release.units()"
            )
        ids = ids["pt_root_id"]
    return np.asarray(ids.values)


# -------------------------------------------------------------------------- the folder of a request

# What synapses are of: ``timestamp``, the time of the materialization as the service states it, or
# ``archived_file``, the sha256 of the archived file, or its name, size and time.
Stamp = Mapping[str, str]

_ARCHIVED = "archived file "  # before the sha256, in the timestamp of older folders


def _stamp_in(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the stamp in ``request.json`` or ``complete.json``."""
    if "archived_file" in document:
        return {"archived_file": str(document["archived_file"])}
    timestamp = str(document.get("timestamp"))
    if timestamp.startswith(_ARCHIVED):
        return {"archived_file": timestamp.removeprefix(_ARCHIVED)}
    return {"timestamp": timestamp}


class SynapseSet:
    """The synapses of one request, in a folder of such requests."""

    def __init__(self, folder: str | Path, key: str) -> None:
        folder = Path(folder).expanduser()
        self.key = key
        self.path = folder / f"{key}.parquet"
        self.directory = folder / key

    def __repr__(self) -> str:
        state = f"{self.rows} synapses" if self.is_complete else "incomplete"
        return f"<SynapseSet {self.key}: {state}>"

    def document(self, name: str) -> dict[str, Any]:
        """Return ``request.json`` or ``complete.json``; empty if it is missing or damaged."""
        return read_json(self.directory / f"{name}.json")

    @property
    def is_complete(self) -> bool:
        """Whether all synapses of the request have been downloaded."""
        complete = self.document("complete")
        try:
            has_all = complete.keys() >= {"rows", "sha256"}
            return has_all and self.path.stat().st_size == complete.get("bytes")
        except OSError:
            return False

    def require_complete(self) -> dict[str, Any]:
        """Return ``complete.json``, or raise if synapses are missing."""
        if not self.is_complete:
            raise IncompleteDownloadError(
                f"the download of request {self.key} is incomplete: run the same "
                "download_synapses again to continue"
            )
        return self.document("complete")

    @cached_property
    def request(self) -> dict[str, Any]:
        """The request: ``datastack``, ``version``, ``table``, ``timestamp``, ``positions``.

        The timestamp is None for synapses from the archive, which does not state one. Also ``pre``
        and ``post``: root ids, int64, sorted, unique, or None for all.
        """
        document = self.document("request")
        record = document.get("request", {})
        try:
            fields: dict[str, Any] = {n: record[n] for n in ("datastack", "version", "table")}
            for side in ("pre", "post"):
                fields[side] = None
                if record[side]:
                    with pq.ParquetFile(self.directory / f"{side}.parquet") as file:
                        fields[side] = file.read()["root_id"].to_numpy()
            fields["positions"] = len(record["columns"]) > 4
        except (KeyError, TypeError, OSError, pa.ArrowException) as error:
            if is_shortage(error):
                raise
            raise SourceError(
                f"{self.directory} cannot be read ({error!r}): remove it, and download again"
            ) from error
        key = SynapseRequest(**fields).key
        if key != self.key:
            raise SourceError(
                f"{self.directory} holds the request {key}: it was renamed or changed; "
                "remove it, and download again"
            )
        return {**fields, "timestamp": _stamp_in(document).get("timestamp")}

    @property
    def rows(self) -> int:
        """Number of synapses."""
        return int(self.require_complete()["rows"])

    def read(self) -> pd.DataFrame:
        """Return the synapses."""
        complete = self.require_complete()
        if file_sha256(self.path) != complete["sha256"]:
            raise SourceError(
                f"{self.path} has changed since it was written: remove it, and download again"
            )
        with pq.ParquetFile(self.path) as file:
            # Column by column, so that they are not in memory twice; copied, because Arrow's
            # memory is read-only.
            columns = {
                name: np.array(file.read([name])[name].to_numpy())
                for name in file.schema_arrow.names
            }
        rows = pd.DataFrame(columns, copy=False)
        if complete.get("resolution_nm") is not None:
            rows.attrs[RESOLUTION] = complete["resolution_nm"]
        return rows

    def provenance(self) -> dict[str, Any]:
        """Return ``name``, ``rows`` and ``sha256`` of the set, and its release."""
        complete = self.require_complete()
        stamp = _stamp_in(complete)
        complete.pop("timestamp", None)
        release = {name: self.request[name] for name in ("datastack", "version", "table")}
        return {"name": self.key, **complete, **stamp, **release}


def list_requests(folder: str | Path) -> list[SynapseSet]:
    """Return the requests in a folder, complete or not."""
    paths = sorted(Path(folder).expanduser().glob("*/request.json"))
    return [SynapseSet(folder, path.parent.name) for path in paths]


def open_request(folder: str | Path, key: str | None = None) -> SynapseSet:
    """Return the synapses of one request, which must be complete."""
    sets = {one.key: one for one in list_requests(folder)}
    if not sets:
        raise SourceError(f"there are no synapses in {folder}: download_synapses fetches them")
    if key is None and len(sets) > 1:
        names = (f"{k}{'' if s.is_complete else ' (incomplete)'}" for k, s in sets.items())
        first = next((k for k, s in sets.items() if s.is_complete), next(iter(sets)))
        raise SourceError(
            f"{folder} holds {len(sets)} sets of synapses, {', '.join(names)}: choose one with "
            f"request={first!r}"
        )
    key = next(iter(sets)) if key is None else key
    if key not in sets:
        raise unknown_label(f"{folder} has no request", key, sets, error=SourceError)
    sets[key].require_complete()
    return sets[key]


_BATCH_FILE = re.compile(r"(\d+)-(\d+)(?:-ids(?:-(\d+))?-to(?:-(\d+))?)?-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True)
class Batch:
    """A finished batch."""

    piece: Piece
    path: Path
    rows: int  # synapses of the request in it
    answered: int  # rows of the answer that they were selected from
    resolution_nm: list[float] | None = None  # of the positions, if the service states it


def _read_batch(path: Path) -> Batch | None:
    """Return the batch in a file; None if it is damaged, or is something else."""
    name = _BATCH_FILE.fullmatch(path.name)
    try:
        if not name or not file_sha256(path).startswith(name[5]):
            return None
    except SourceError:  # it cannot be read
        return None
    id_from, id_below = (None if n is None else int(n) for n in name.groups()[2:4])
    piece = Piece(int(name[1]), int(name[2]), id_from, id_below)
    with pq.ParquetFile(path) as file:
        stated = json.loads(file.schema_arrow.metadata[b"batch"])
        return Batch(piece, path, file.metadata.num_rows, **stated)


class RequestFolder(SynapseSet):
    """The folder of one request, for writing."""

    def __init__(self, folder: str | Path, query: SynapseRequest) -> None:
        super().__init__(folder, query.key)
        self.query = query
        self.stamp: Stamp = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes and threads."""
        try:
            with locked(self.directory, f"request {self.key}"):
                yield
        except OSError as error:
            if isinstance(error, MicronsXrError):
                raise
            raise write_error(self.directory, error) from error

    def begin(self, stamp: Stamp, choose: Callable[[], Strategy]) -> Strategy:
        """Return the strategy of an earlier run of the request; without one, begin anew."""
        self.stamp = stamp
        if (strategy := self._earlier_strategy()) is not None:
            return strategy
        strategy = choose()
        records = (self.directory / f"{name}.json" for name in ("request", "complete"))
        for path in (*records, *self._batch_files()):
            path.unlink(missing_ok=True)
        for side, ids in (("pre", self.query.pre), ("post", self.query.post)):
            if ids is not None:
                content = _parquet_bytes(pa.table({"root_id": ids}))
                write_file(self.directory / f"{side}.parquet", content)
        document = {"request": self.query.record(), **stamp, "strategy": asdict(strategy)}
        write_json(self.directory / "request.json", document)
        return strategy

    def _earlier_strategy(self) -> Strategy | None:
        earlier, stamp = self.document("request"), self.stamp
        if earlier.get("request") != self.query.record():
            return None
        before = _stamp_in(earlier)
        if before.keys() != stamp.keys():
            return None  # batches from the archive do not fit those from the service
        if before == stamp:
            try:
                return Strategy(**earlier["strategy"])
            except (KeyError, TypeError):
                return None  # damaged
        if "archived_file" in stamp:
            raise SourceError(
                f"the archived file of {self.query.table} has changed since {self.directory} was "
                f"begun (found {stamp['archived_file']}, expected {before['archived_file']}): "
                "remove that folder, and download again"
            )
        raise ReleaseMismatchError(
            f"{self.query.datastack} v{self.query.version} is of {stamp['timestamp']}, but the "
            f"synapses in {self.directory} are of {before['timestamp']}: the version was "
            "materialized again, so remove that folder and download again"
        )

    def _batch_files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.parquet"))

    def batches(self) -> list[Batch]:
        """Return the finished batches whose files are whole, and remove all other files."""
        remove_temporary(self.directory)
        remove_temporary(self.path.parent, self.path.name)
        batches = []
        for path in self._batch_files():
            if (batch := _read_batch(path)) is None:
                path.unlink()
            else:
                batches.append(batch)
        return batches

    def commit(
        self,
        piece: Piece,
        rows: pa.Table,
        answered: int,
        resolution_nm: Sequence[float] | None = None,
    ) -> Path:
        """Write one finished batch."""
        stated = {"answered": answered, "resolution_nm": resolution_nm}
        content = _parquet_bytes(rows.replace_schema_metadata({"batch": json.dumps(stated)}))
        ends = ["" if i is None else f"-{i}" for i in (piece.id_from, piece.id_below)]
        ids = f"-ids{ends[0]}-to{ends[1]}" if piece.is_range else ""
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = self.directory / f"{piece.start:07d}-{piece.stop:07d}{ids}-{digest}.parquet"
        write_file(path, content)
        return path

    def finish(self, stop: int) -> SynapseSet:
        """Write the result, after checking that the batches go on to `stop`, and remove them."""
        batches = self.batches()
        if gaps := open_pieces(stop, [batch.piece for batch in batches]):
            raise IncompleteDownloadError(
                f"{len(gaps)} batches of {self.key} in {self.directory} are missing or have "
                "changed since they were written: check the disk, and run the same again"
            )
        stated = {tuple(b.resolution_nm) for b in batches if b.rows and b.resolution_nm}
        if len(stated) > 1:
            raise SourceError(
                f"the positions of {self.key} arrived at several resolutions, {sorted(stated)}: "
                f"remove {self.directory}, and download again"
            )
        with new_file(self.path) as part:
            rows = merge_batches(batches, self.query.columns, part)
            complete = {
                "rows": rows,
                "sha256": file_sha256(part),
                "bytes": part.stat().st_size,
                **self.stamp,
                "answered": sum(batch.answered for batch in batches),
                **({"resolution_nm": list(*stated)} if stated and self.query.positions else {}),
                "fetched_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "created_by": f"microns_xr {__version__}",
            }
        write_json(self.directory / "complete.json", complete)
        for batch in batches:
            batch.path.unlink(missing_ok=True)
        return SynapseSet(self.path.parent, self.key)


def _parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a parquet file, which are equal for equal tables."""
    sink = pa.BufferOutputStream()
    # Light compression: these files are soon read again and removed.
    pq.write_table(table, sink, compression="lz4", use_dictionary=False)
    return sink.getvalue().to_pybytes()


# ------------------------------------------------------------------------------- rows of an answer

# Synapses are sorted by these, so that equal synapses give equal files.
_ORDER = [(_POST, "ascending"), (_PRE, "ascending"), ("id", "ascending")]


def integer_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return columns of an answer as int64, exactly."""
    columns = {}
    for name in names:
        if name not in table.column_names:
            raise SchemaError(
                f"the synapses have no column {name}, found {table.column_names}: is this a table "
                "of synapses?"
            )
        column = table[name].fill_null(0) if name.endswith("_root_id") else table[name]
        is_float = pa.types.is_floating(column.type)
        if is_float and name.endswith("id"):
            raise SchemaError(f"column {name} of the synapses holds ids as floats")
        if column.null_count or not (pa.types.is_integer(column.type) or is_float):
            raise SchemaError(
                f"column {name} of the synapses is {column.type} with {column.null_count} nulls, "
                "expected whole numbers"
            )
        try:
            columns[name] = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise SchemaError(
                f"column {name} of the synapses holds fractions, NaN or infinity, expected whole "
                f"numbers ({error})"
            ) from error
        if is_float and (pc.max(columns[name]).as_py() or 0) > 2**24:
            logger.warning("%s above 2^24 is transferred as float32, rounded to 8 digits", name)
    return pa.table(columns)


def sorted_synapses(rows: pa.Table) -> pa.Table:
    """Sort synapses by post, pre and id, and drop duplicates."""
    rows = rows.sort_by(_ORDER)
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    repeated = np.logical_and.reduce([columns[n][1:] == columns[n][:-1] for n, _ in _ORDER])
    if not repeated.any():
        return rows
    for name, column in columns.items():
        differ = np.flatnonzero(repeated & (column[1:] != column[:-1]))
        if len(differ):
            one, other = column[differ[0]], column[differ[0] + 1]
            raise SourceError(
                f"synapse {columns['id'][differ[0]]} arrived twice, with {name} {one} and {other}: "
                "one of the two answers is from another release; remove the request's folder, and "
                "download again"
            )
    return rows.filter(pa.array(np.append(True, ~repeated)))


# --------------------------------------------------------------------- finished batches to one file

_BLOCK_ROWS = 4_000_000  # sorted at once
_GROUP_ROWS = 1 << 20  # per row group of the result
_IDS_AT_ONCE = 32_000_000  # compared at once


def merge_batches(batches: Sequence[Batch], names: Sequence[str], out: Path) -> int:
    """Write all synapses of some batches as one parquet file, sorted, in bounded memory."""
    schema = pa.schema([(name, pa.int64()) for name in names])
    files = [str(batch.path) for batch in batches if batch.rows]
    data = pads.dataset(files, schema=schema, format="parquet", filesystem=LocalFileSystem())
    post = pads.field(_POST)
    total, rest = 0, schema.empty_table()
    with pq.ParquetWriter(out, schema, compression="zstd", use_dictionary=False) as writer:
        # One range of postsynaptic roots at a time; row groups of equal size, so that the file
        # does not depend on the ranges.
        for low, high in itertools.pairwise(_block_edges(data, sum(b.rows for b in batches))):
            inside = data.to_table(filter=(post >= low) & (post < high), fragment_readahead=1)
            block = sorted_synapses(inside)
            total += block.num_rows
            rest = pa.concat_tables([rest, block])
            while rest.num_rows >= _GROUP_ROWS:
                writer.write_table(rest.slice(0, _GROUP_ROWS), row_group_size=_GROUP_ROWS)
                rest = rest.slice(_GROUP_ROWS)
        if rest.num_rows:
            writer.write_table(rest, row_group_size=_GROUP_ROWS)
    _require_unique(out, total)
    return total


def _block_edges(data: pads.Dataset, rows: int) -> list[int]:
    """Return postsynaptic roots between which there are about `_BLOCK_ROWS` synapses each."""
    ends = [0, np.iinfo(np.int64).max]
    n_blocks = -(-rows // _BLOCK_ROWS)
    if n_blocks < 2:
        return ends
    step = max(1, _BLOCK_ROWS // 1000)
    samples = [b[_POST].to_numpy()[::step] for b in data.to_batches(columns=[_POST])]
    posts = np.sort(np.concatenate(samples))
    return sorted({*ends, *posts[np.arange(1, n_blocks) * len(posts) // n_blocks].tolist()})


def _require_unique(path: Path, rows: int) -> None:
    """Raise if a synapse arrived twice between different roots, far apart in the file."""
    passes = -(-rows // _IDS_AT_ONCE)
    with pq.ParquetFile(path) as file:
        for remainder in range(passes):
            ids = (batch["id"].to_numpy() for batch in file.iter_batches(columns=["id"]))
            some = np.sort(np.concatenate([i[i % passes == remainder] for i in ids]))
            twice = some[1:][some[1:] == some[:-1]]
            if len(twice):
                raise SourceError(
                    f"{len(twice)} synapses arrived twice between different roots, such as "
                    f"{twice[0]}: some answers are from another release; remove the request's "
                    "folder, and download again"
                )


# ------------------------------------------------------------------------------------- the download

_TICK = 0.1  # seconds between updates of the progress
_GRACE = 2.0  # seconds to wait for outstanding answers when the download has to stop
_ATTEMPTS = 5  # for an answer that does not match its count


def download_synapses(
    service: CaveSource,
    folder: str | Path,
    *,
    pre: Any = None,
    post: Any = None,
    positions: bool = False,
    table: str = SYNAPSE_TABLE,
    batch: int | None = None,
    workers: int = 3,
    progress: bool = True,
) -> SynapseSet:
    """Download all synapses from the roots `pre` onto the roots `post`.

    A complete request is not downloaded again, and an interrupted one is continued. The result
    does not depend on batches, workers, interruptions, or the order of rows in an answer.
    """
    for name, value in (("batch", batch), ("workers", workers)):
        if value is not None:
            whole_number(name, value, 1)
    request = make_request(service.datastack, service.version, table, pre, post, positions)
    target = RequestFolder(folder, request)
    with target.locked():
        if target.is_complete:  # perhaps by another thread, while this one waited
            logger.info("synapses of %s are already in %s", request.key, folder)
            return SynapseSet(folder, request.key)

        def count(filters: Mapping[Side, np.ndarray]) -> int:
            by_column = {_ROOT_COLUMN[side]: ids.tolist() for side, ids in filters.items()}
            return service.count(table, by_column)

        strategy = target.begin(
            {"timestamp": service.timestamp()},
            lambda: choose_strategy(request.pre, request.post, count),
        )
        plan = SynapsePlan(
            1 if strategy.side is None else len(getattr(request, strategy.side)),
            rows=strategy.rows,
            ids=strategy.ids,
            batch=batch,
            done=[finished.piece for finished in target.batches()],
        )
        _fetch_all(service, target, strategy, plan, workers, progress)
        return target.finish(plan.n_ids)


class _Split(NamedTuple):
    """Parts of a piece whose answer would be, or was, truncated."""

    parts: list[Piece]
    limit: int | None = None  # the row limit, if an answer has shown it


class _Rows(NamedTuple):
    """The synapses of a piece."""

    rows: pa.Table
    answered: int  # rows of the answer, of which those of other roots are left out
    resolution_nm: Sequence[float] | None


def _fetch_all(
    service: CaveSource,
    folder: RequestFolder,
    strategy: Strategy,
    plan: SynapsePlan,
    workers: int,
    progress: bool,
) -> None:
    """Fetch every open piece into the folder, several at a time.

    Threads only query; this one plans and writes. If a query fails or the caller is interrupted,
    it waits at most two seconds for the other answers.
    """
    tasks: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[Piece, Any]] = queue.SimpleQueue()
    stopped, n_waiting = threading.Event(), 0

    def work() -> None:
        while (piece := tasks.get()) is not None:
            try:
                answer: Any = _fetch(service, folder.query, strategy, plan.limit, piece, stopped)
            except BaseException as error:
                answer = error
            answers.put((piece, answer))

    def take(timeout: float) -> None:
        nonlocal n_waiting
        piece, answer = answers.get(timeout=timeout)
        n_waiting -= 1
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, _Split):
            plan.split(piece, *answer)
        else:
            folder.commit(piece, *answer)
            pairs = answer.rows.group_by([_PRE, _POST]).aggregate([]).num_rows
            plan.finish(piece, answer.rows.num_rows, answer.answered, pairs)

    def show() -> None:
        bar.set_postfix_str(f"{plan.rows_done:,} synapses, {plan.pairs_done:,} pairs", False)
        bar.update(plan.ids_done - bar.n)

    side = strategy.side or "synapse id"
    done = f"{plan.ids_done} of {plan.n_ids} roots"
    logger.info("synapses of %s: %s are done; querying by %s", folder.key, done, side)
    # Daemons: the threads of a pool would keep the interpreter alive until their last answer.
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    options = {"total": plan.n_ids, "initial": plan.ids_done}
    with progress_bar(progress, "synapses", "root", **options) as bar:
        try:
            while True:
                while n_waiting < workers and (piece := plan.next()) is not None:
                    tasks.put(piece)
                    n_waiting += 1
                if not n_waiting:
                    break
                with contextlib.suppress(queue.Empty):
                    take(_TICK)
                show()
        except BaseException as error:
            stopped.set()
            until = time.monotonic() + _GRACE
            while n_waiting and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(Exception):  # it is not the reason for the stop
                    take(left)
            error.add_note(
                f"{plan.ids_done} of {plan.n_ids} roots are kept in {folder.directory}; run the "
                "same download_synapses again to continue"
            )
            raise
        finally:
            for _ in range(workers):
                tasks.put(None)
            show()


def _fetch(
    service: CaveSource,
    request: SynapseRequest,
    strategy: Strategy,
    limit: int,
    piece: Piece,
    stopped: threading.Event,
) -> _Rows | _Split:
    """Query one piece until the row count matches, or its answer would be truncated."""
    side = strategy.side
    # The ids sent with the query; those of the other side are always applied to its rows too.
    within: dict[str, np.ndarray] = {}
    other_ids = None
    if side is not None:
        other: Side = "pre" if side == "post" else "post"
        within[_ROOT_COLUMN[side]] = getattr(request, side)[piece.start : piece.stop]
        other_ids = getattr(request, other)
        if other_ids is not None and strategy.sends_other(limit):
            within[_ROOT_COLUMN[other]] = other_ids
    filters: dict[str, Any] = {"filter_in": {name: i.tolist() for name, i in within.items()}}
    if piece.is_range:
        filters["filter_range"] = {"id": (piece.id_from, piece.id_below)}
    selected = [*request.columns[:4], *([POSITION] if request.positions else [])]

    def ask() -> _Rows | _Split:
        if stopped.is_set():
            raise IncompleteDownloadError("the download was stopped")
        n_expected = service.count(request.table, **filters)
        if n_expected > limit and len(piece) > 1:
            return _Split(split_ids(piece, math.ceil(n_expected / max(1, limit // 2))))
        answer = service.query(request.table, select_columns=selected, **filters)
        rows = sorted_synapses(integer_columns(answer.table, request.columns))
        n = rows.num_rows
        if n_wrong := n - int(_are_within(rows, within, piece).sum()):
            raise BadAnswer(f"{n_wrong} of {n} synapses do not match the query")
        if n == n_expected:
            if other_ids is not None:
                rows = rows.filter(_among(rows[_ROOT_COLUMN[other]], other_ids))
            return _Rows(rows, n, answer.resolution_nm)
        if answer.limited_to is not None and n < n_expected:
            n_parts = math.ceil(n_expected / max(1, answer.limited_to // 2))
            if len(piece) > 1:
                return _Split(split_ids(piece, n_parts), answer.limited_to)
            if parts := split_synapses(piece, rows["id"].to_numpy(), n_parts):
                return _Split(parts, answer.limited_to)
        raise BadAnswer(f"{n} synapses arrived, but the service counts {n_expected}")

    what = f"{request.table}, " + (f"{len(piece)} {side} roots" if side else "all")
    what += f", synapses {piece.id_from} to {piece.id_below}" if piece.is_range else ""
    return attempt(service.retry, ask, what, at_most=_ATTEMPTS)


def _among(column: pa.ChunkedArray, ids: np.ndarray) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(ids))


def _are_within(rows: pa.Table, within: Mapping[str, np.ndarray], piece: Piece) -> np.ndarray:
    """Whether each synapse matches the query."""
    ids = rows["id"].to_numpy()
    matches = np.ones(len(ids), dtype=bool)
    for name, values in within.items():
        matches &= _among(rows[name], values).to_numpy()
    if piece.id_from is not None:
        matches &= ids >= piece.id_from
    if piece.id_below is not None:
        matches &= ids < piece.id_below
    return matches
