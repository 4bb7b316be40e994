"""Downloading synapses: batches of a request, several at a time, none of them lost."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr

from microns_xr.errors import (
    IncompleteDownloadError,
    MicronsXrError,
    ReleaseMismatchError,
    SchemaError,
    SourceError,
    nearest_words,
)
from microns_xr.files import file_sha256, write_file
from microns_xr.provenance import release_of

# What a download of synapses asks for, and the key that names it.


FORMAT = 1
POSITION = "ctr_pt_position"


@dataclass(frozen=True, eq=False)
class SynapseRequest:
    """What is asked for."""

    datastack: str  # the release and its table of synapses
    version: int
    table: str
    pre: np.ndarray | None  # root ids, int64, sorted, unique; None for all
    post: np.ndarray | None
    positions: bool = False  # whether with the positions, in voxels

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the result, all int64."""
        places = tuple(f"{POSITION}_{axis}" for axis in "xyz") if self.positions else ()
        return ("id", "pre_pt_root_id", "post_pt_root_id", "size", *places)

    @property
    def selected(self) -> list[str]:
        """Columns as the service is asked for them."""
        return [*self.columns[:4], *([POSITION] if self.positions else [])]

    def record(self) -> dict[str, Any]:
        """All that tells it from other requests, the ids as their sha256."""
        return {
            "format": FORMAT,
            "datastack": self.datastack,
            "version": self.version,
            "table": self.table,
            "columns": list(self.columns),
            "pre": _digest(self.pre),
            "post": _digest(self.post),
        }

    @property
    def key(self) -> str:
        """Name of the request: the numbers of its ids, and a hash of all of it."""
        record = json.dumps(self.record(), sort_keys=True)
        digest = hashlib.sha256(record.encode()).hexdigest()[:12]
        pre, post = ("all" if i is None else str(len(i)) for i in (self.pre, self.post))
        return f"pre{pre}-post{post}-{'positions-' if self.positions else ''}{digest}"


def _digest(ids: np.ndarray | None) -> str | None:
    return None if ids is None else hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


# Whose synapses are asked for: units, nucleus ids or root ids, as root ids of one release.


# The upper bits of a root id are its layer, so that root ids are far above all nucleus ids.
_ROOTS_FROM = 2**50


@dataclass(frozen=True, eq=False)
class RootIds:
    """Root ids to ask for, and what became of the ids that were given."""

    roots: np.ndarray  # int64, sorted, unique, positive
    kind: Literal["nucleus", "root"]  # what the ids that were given are
    # ``given``; dropped as ``duplicates``, as ``zero`` (no segment), as ``shared_root``
    # (several nuclei on one root); ``unknown`` to the release; and the ``roots`` that are left
    counts: dict[str, int]


def as_ids(ids: Any, name: str = "ids") -> np.ndarray:
    """Return ids as int64, never through float."""
    if isinstance(ids, set | frozenset | range):
        ids = sorted(ids)
    try:
        values = np.atleast_1d(np.asarray(ids))
        if values.dtype == object and all(
            isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values.flat
        ):
            values = values.astype(np.int64)
    except (OverflowError, ValueError, TypeError) as error:
        raise SchemaError(f"{name} are no list of ids ({error}): give integers") from error
    if values.size == 0 and values.ndim == 1:
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu":
        raise SchemaError(
            f"{name} are {values.dtype}, expected integers without nulls: an id that was a float "
            "has lost its last digits, so read the ids as int64"
        )
    if values.ndim != 1:
        raise SchemaError(f"{name} have {values.ndim} dims, expected one")
    if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
        raise SchemaError(f"{name} hold numbers beyond int64: these are no ids")
    values = values.astype(np.int64)
    if (values < 0).any():
        raise SchemaError(f"{name} hold negative numbers, such as {values.min()}: these are no ids")
    return values


def resolve_ids(
    ids: Any,
    nuclei: pd.DataFrame | xr.Dataset,
    *,
    name: str = "ids",
    datastack: str | None = None,
    version: int | None = None,
    allow_unknown: bool = False,
) -> RootIds:
    """Return the root ids of units, nucleus ids or root ids, checked against one release."""
    if isinstance(nuclei, xr.Dataset):
        known = (datastack, version)
        datastack, version = release_of(nuclei, "nuclei") if None in known else known
        nuclei_ids = nuclei["nucleus_id"].values
        roots_of = nuclei["pt_root_id"].values
    else:
        nuclei_ids = as_ids(nuclei["id"], "nucleus ids of the nucleus table")
        roots_of = as_ids(nuclei["pt_root_id"].fillna(0), "root ids of the nucleus table")
    release = f"{datastack or 'the release'}{'' if version is None else f' v{version}'}"
    if isinstance(ids, xr.Dataset | xr.DataArray):
        ids = _of_labelled(ids, name, version, datastack)
    given = as_ids(ids, name)
    unique = np.unique(given)
    counts = {"given": len(given), "duplicates": len(given) - len(unique), "zero": 0}
    counts.update(shared_root=0, unknown=0, roots=0)
    is_nucleus, is_root = np.isin(unique, nuclei_ids), np.isin(unique, roots_of) & (unique > 0)
    n_nucleus, n_root = int((is_nucleus & (unique > 0)).sum()), int(is_root.sum())
    large = unique >= _ROOTS_FROM
    by_nucleus = n_nucleus > n_root or (n_nucleus == n_root and not large.any())
    if n_nucleus and n_root and (is_nucleus != is_root)[unique > 0].any():
        raise SchemaError(
            f"{name} hold {n_nucleus} nucleus ids and {n_root} root ids of {release}, expected one "
            "kind: give the nucleus ids, they are the same in every release"
        )
    known_ids = is_nucleus if by_nucleus else is_root | (unique == 0)
    counts["unknown"] = int((~known_ids).sum())
    if counts["unknown"] and not allow_unknown:
        raise ReleaseMismatchError(_unknown(name, unique, known_ids, by_nucleus, release))
    roots = unique
    if by_nucleus:
        order = np.argsort(nuclei_ids, kind="stable")
        roots = roots_of[order][np.searchsorted(nuclei_ids[order], unique[known_ids])]
    counts["zero"] = int((roots == 0).sum())
    positive = roots[roots > 0]
    roots = np.unique(positive)
    counts["shared_root"] = len(positive) - len(roots)
    counts["roots"] = len(roots)
    if not len(roots):
        raise SchemaError(
            f"{name} hold no root id to ask for ({counts}): None asks for all, "
            "ids whose root is 0 have no segment in this release"
        )
    return RootIds(roots, "nucleus" if by_nucleus else "root", counts)


def _of_labelled(
    ids: xr.Dataset | xr.DataArray, name: str, version: int | None, datastack: str | None
) -> np.ndarray:
    """Return the ids of units, which say their release, or of an array of ids, which may not."""
    if isinstance(ids, xr.Dataset) or "materialization_version" in ids.coords:
        of_stack, of_version = release_of(ids, name)
        if (version is not None and of_version != version) or (
            datastack is not None and of_stack != datastack
        ):
            raise ReleaseMismatchError(
                f"{name} is of {of_stack} v{of_version}, but synapses of {datastack} v{version} "
                "were asked for: use units of that release, or their nucleus ids, which are the "
                "same in every release"
            )
    if isinstance(ids, xr.DataArray):
        return np.asarray(ids.values)
    if "pt_root_id" not in ids:
        raise SchemaError(
            f"{name} is a Dataset without pt_root_id, expected units: use Release.units()"
        )
    return np.asarray(ids["pt_root_id"].values)


def _unknown(
    name: str, unique: np.ndarray, known: np.ndarray, by_nucleus: bool, release: str
) -> str:
    n = int((~known).sum())
    share = 100 * n / len(unique)
    word = "nucleus" if by_nucleus else "root"
    some = ", ".join(map(str, unique[~known][:3].tolist()))
    hint = (
        "nucleus ids are the same in every release, so these are none of its"
        if by_nucleus
        else "root ids change between releases, so these are probably of another one, or no neurons"
    )
    return (
        f"{name}: {n} of {len(unique)} {word} ids ({share:.3g} %) are not in the nucleus table of "
        f"{release}, such as {some}: {hint}; use ids of this release, or pass allow_unknown=True"
    )


# How a request is asked with the fewest rows and bytes: by which side, and who filters.


Side = Literal["pre", "post"]
Count = Callable[[Mapping[Side, np.ndarray]], int]

# A list of ids up to this length may go along with every batch; a longer one is applied here.
SHORT_LIST = 5_000
_ID_BYTES = 20  # of an id in JSON
_ROW_BYTES = 32  # of a synapse in an answer: three ids, two supervoxels, a size, compressed
_SAMPLE = 64


@dataclass(frozen=True)
class Strategy:
    """How a request is asked."""

    # the side whose ids make the batches; None where neither side is restricted
    side: Side | None
    # whether the ids of the other side go along with a batch. If not, they are applied here.
    send_other: bool
    # rows of an answer, as counted, to how many ids
    rows: int
    ids: int
    # the ids of the other side go along only with batches of at least so many rows: smaller
    # ones are so many that the ids weigh more than the rows they spare
    pays_from: int = 0

    def sends_other(self, limit: int) -> bool:
        """Whether the ids of the other side go along, under a row limit."""
        return self.send_other and limit // 2 >= self.pays_from


def choose_strategy(pre: np.ndarray | None, post: np.ndarray | None, count: Count) -> Strategy:
    """Choose the side that gives fewer rows, and where the ids of the other one are applied.

    Counts the rows of a few evenly spaced ids of each side. The list of the other side goes along
    only if it is short (`SHORT_LIST`) and its bytes are fewer than those of the rows it spares.
    """
    asked: dict[Side, np.ndarray] = {}
    for side, ids in (("post", post), ("pre", pre)):
        if ids is not None:
            asked[side] = ids  # type: ignore[index]
    if not asked:
        return Strategy(None, False, count({}), 1)
    samples = {side: _evenly(ids) for side, ids in asked.items()}
    rows = {side: count({side: sample}) for side, sample in samples.items()}
    all_rows = {side: rows[side] * len(asked[side]) / len(samples[side]) for side in asked}
    side = min(asked, key=lambda s: all_rows[s])  # the first, post, where they are alike
    plain = Strategy(side, False, rows[side], len(samples[side]))
    others = [s for s in asked if s != side]
    if not others or len(asked[others[0]]) > SHORT_LIST or not rows[side]:
        return plain
    other = asked[others[0]]
    kept = count({side: samples[side], others[0]: other})
    spared = rows[side] - kept
    if spared <= 0:
        return plain
    list_bytes = 2 * len(other) * _ID_BYTES  # once to count, once to ask
    # The list that goes along with n rows spares this many others for each of them.
    pays_from = math.ceil(list_bytes / _ROW_BYTES * kept / spared)
    total = all_rows[side] / rows[side]
    if list_bytes >= total * spared * _ROW_BYTES or pays_from > ROW_LIMIT // 2:
        return plain
    return Strategy(side, True, kept, len(samples[side]), pays_from)


def _evenly(ids: np.ndarray) -> np.ndarray:
    n = min(_SAMPLE, len(ids))
    return ids[np.arange(n) * len(ids) // n]


# Which synapses to ask for next, so that no answer comes near the row limit.
#
# A `Piece` is a run of the sorted root ids on one side of the request, or, where one root alone
# has more synapses than an answer may hold, a range of synapse ids of that root. Pieces that are
# done and pieces that are open never overlap and together are the whole request, so that nothing
# depends on sizes, order or interruptions.


# What the service allows by default; a server that allows less says so with its first cut answer.
ROW_LIMIT = 200_000
_MAX_IDS = 20_000  # of a batch: 400 KB of JSON


@dataclass(frozen=True, order=True)
class Piece:
    """A part of a request: root ids from `start` up to `stop`, perhaps a range of synapse ids."""

    # slice of the sorted root ids of the side that is asked by; ``0, 1`` where there is none
    start: int
    stop: int
    # synapse ids from here, and below here; only for one root
    id_from: int | None = None
    id_below: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_range(self) -> bool:
        """Whether it holds only a range of the synapses of its root."""
        return self.id_from is not None or self.id_below is not None


def split_ids(piece: Piece, parts: int) -> list[Piece]:
    """Split a piece of several roots into pieces of about equally many."""
    parts = min(max(parts, 2), len(piece))
    edges = [piece.start + len(piece) * i // parts for i in range(parts + 1)]
    return [Piece(a, b) for a, b in itertools.pairwise(edges)]


def split_synapses(piece: Piece, seen: np.ndarray, parts: int) -> list[Piece]:
    """Split the synapses of one root by their ids.

    The cuts are quantiles of the ids that a cut answer happened to hold. Whichever they were, the
    first and the last piece hold some of them each, so every split makes progress.
    """
    seen = np.unique(seen)
    cuts = seen[np.arange(1, max(parts, 2)) * len(seen) // max(parts, 2)] if len(seen) else seen
    if len(seen) == 1:
        cuts = np.array([seen[0], seen[0] + 1])
    low, high = piece.id_from, piece.id_below
    inside = sorted(
        {c for c in cuts.tolist() if (low is None or c > low) and (high is None or c < high)}
    )
    edges = [low, *inside, high]
    if not inside:
        return []
    return [replace(piece, id_from=a, id_below=b) for a, b in itertools.pairwise(edges)]


def open_pieces(n_ids: int, done: Iterable[Piece]) -> list[Piece]:
    """Return what is left of a request."""
    whole = np.zeros(n_ids + 2, dtype=bool)
    whole[[0, -1]] = True
    ranges: dict[int, list[Piece]] = {}
    for piece in done:
        if piece.is_range:
            ranges.setdefault(piece.start, []).append(piece)
        else:
            whole[piece.start + 1 : piece.stop + 1] = True
    rest = []
    for start, pieces in ranges.items():
        if whole[start + 1]:
            continue
        whole[start + 1] = True
        below: int | None = None
        first = True
        for piece in sorted(pieces, key=lambda p: -math.inf if p.id_from is None else p.id_from):
            if piece.id_from is not None and (first or (below or 0) < piece.id_from):
                rest.append(Piece(start, start + 1, None if first else below, piece.id_from))
            first, below = False, piece.id_below
        if below is not None:
            rest.append(Piece(start, start + 1, below, None))
    edges = np.flatnonzero(np.diff(whole.astype(np.int8)))
    rest += [Piece(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return sorted(rest, key=lambda p: (p.start, -1 if p.id_from is None else p.id_from))


class SynapsePlan:
    """The open pieces of a request, handed out to several threads.

    Batches aim at half of the row limit; how many ids that is, is learned from the counts of the
    batches before.
    """

    def __init__(
        self,
        n_ids: int,
        *,
        rows: int,
        ids: int,
        batch: int | None = None,
        done: Iterable[Piece] = (),
    ) -> None:
        self.limit = ROW_LIMIT
        self._batch = min(batch or _MAX_IDS, _MAX_IDS)
        self._rows, self._ids = rows, ids
        # Taken from the end: what was split comes before what was never asked.
        self._open = open_pieces(n_ids, done)[::-1]
        self.ids_done = n_ids - sum(len(p) for p in self._open if not p.is_range)
        self.ids_done -= len({p.start for p in self._open if p.is_range})
        self.rows_done = self.answered = 0
        self._ranges: dict[int, int] = {}
        for piece in self._open:
            if piece.is_range:
                self._ranges[piece.start] = self._ranges.get(piece.start, 0) + 1
        self._in_flight = 0
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def target(self) -> int:
        """Rows that a batch aims at."""
        return max(1, self.limit // 2)

    @property
    def is_done(self) -> bool:
        """Whether nothing is open and nothing in flight."""
        with self._changed:
            return not self._open and not self._in_flight

    def next(self) -> Piece | None:
        """Take the next piece; None when all are done or the plan was stopped.

        Waits while others are in flight, for they may be split.
        """
        with self._changed:
            while not self._open and self._in_flight and not self._stopped:
                self._changed.wait()
            if self._stopped or not self._open:
                return None
            piece = self._open.pop()
            size = min(self._batch, max(1, int(self.target * self._ids / max(self._rows, 1))))
            # A little more is taken whole, rather than leave a crumb to ask for by itself.
            if len(piece) > min(1.3 * size, self._batch):
                self._open.append(Piece(piece.start + size, piece.stop))
                piece = Piece(piece.start, piece.start + size)
            self._in_flight += 1
            return piece

    def split(self, piece: Piece, parts: list[Piece], limit: int | None = None) -> None:
        """Put the parts of a taken piece in its place; `limit` is what its answer was cut at."""
        with self._changed:
            self.limit = min(self.limit, max(1, limit or self.limit))
            self._in_flight -= 1
            self._open += parts[::-1]
            if any(part.is_range for part in parts):
                before = self._ranges.get(piece.start, 1)
                self._ranges[piece.start] = before - 1 + len(parts)
            self._changed.notify_all()

    def finish(self, piece: Piece, rows: int, answered: int) -> None:
        """Count a taken piece as done: its synapses, and the rows of its answer."""
        with self._changed:
            self._in_flight -= 1
            self.rows_done += rows
            self.answered += answered
            if piece.is_range:
                self._ranges[piece.start] -= 1
                self.ids_done += not self._ranges[piece.start]
            else:
                self.ids_done += len(piece)
                self._rows += answered
                self._ids += len(piece)
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


# Downloaded synapses: the sets that lie in a folder, and what each of them holds.


class SynapseSet:
    """The synapses of one request, as `download_synapses` keeps them."""

    def __init__(self, folder: str | Path, key: str) -> None:
        self._folder = RequestFolder(folder, key)
        self.key = key
        self.path = self._folder.result

    def __repr__(self) -> str:
        state = f"{self.rows} synapses" if self.is_complete else "incomplete"
        return f"<SynapseSet {self.key}: {state}>"

    @property
    def is_complete(self) -> bool:
        """Whether all synapses of the request are here."""
        return self._folder.is_complete()

    @cached_property
    def request(self) -> dict[str, Any]:
        """What was asked: ``datastack``, ``version``, ``table``, ``timestamp``, ``positions``.

        And ``pre`` and ``post``: root ids, int64, sorted, unique, or None for all.
        """
        asked = self._folder.request()
        names = ("datastack", "version", "table", "pre", "post", "positions")
        document = self._folder.document("request") or {}
        return {**{n: getattr(asked, n) for n in names}, "timestamp": document.get("timestamp")}

    @property
    def rows(self) -> int:
        """How many synapses it holds."""
        return int(self._complete()["rows"])

    def _complete(self) -> dict[str, Any]:
        complete = self._folder.document("complete")
        if complete is None or not self.is_complete:
            raise IncompleteDownloadError(
                f"the synapses of request {self.key} are not all here: run the same "
                "download_synapses again, it continues where it was"
            )
        return complete

    def read(self) -> pd.DataFrame:
        """Return the synapses."""
        complete = self._complete()
        if file_sha256(self.path) != complete["sha256"]:
            raise SourceError(
                f"{self.path} is not as it was written: remove it, and download again"
            )
        try:
            with pq.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                # Column by column, so that they are not in memory twice; copied, because Arrow's
                # own memory cannot be written.
                columns = {name: np.array(file.read([name])[name].to_numpy()) for name in names}
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.path} cannot be read ({error})") from error
        return pd.DataFrame(columns, copy=False)

    def provenance(self) -> dict[str, Any]:
        """Return ``name``, ``rows`` and ``sha256`` of the set, and its release."""
        complete = self._complete()
        asked = (self._folder.document("request") or {}).get("request", {})
        release = {name: asked.get(name) for name in ("datastack", "version", "table")}
        return {"name": self.key, **complete, **release}


def list_requests(folder: str | Path) -> list[SynapseSet]:
    """Return the requests that lie in a folder, complete or not."""
    found = Path(folder).expanduser().glob("*/request.json")
    return [SynapseSet(folder, path.parent.name) for path in sorted(found)]


def open_request(folder: str | Path, key: str | None = None) -> SynapseSet:
    """Return the set of synapses of one request."""
    sets = {found.key: found for found in list_requests(folder)}
    if not sets:
        raise SourceError(f"there are no synapses in {folder}: download_synapses fetches them")
    if key is None:
        if len(sets) > 1:
            said = (f"{k}{'' if s.is_complete else ' (incomplete)'}" for k, s in sets.items())
            raise SourceError(
                f"{folder} holds {len(sets)} sets of synapses, {', '.join(said)}: choose one with "
                f"request={next((k for k, s in sets.items() if s.is_complete), next(iter(sets)))!r}"
            )
        key = next(iter(sets))
    if key not in sets:
        near = nearest_words(key, sets)
        raise SourceError(
            f"there is no request {key!r} in {folder}, found {', '.join(sets)}"
            + (f"; nearest: {', '.join(near)}" if near else "")
        )
    chosen = sets[key]
    if not chosen.is_complete:
        raise IncompleteDownloadError(
            f"the synapses of request {key} are not all here: run the same download_synapses "
            "again, it continues where it was"
        )
    return chosen


# The folder of a request of synapses, which remembers how far its download came.
#
# A request has a folder of its own, named by its key, below the folder of all synapses::
#
# pre20-post300-6c1a09f2b3d4/ the request request.json what was asked, of which release
# pre.parquet post.parquet the root ids, where they were given manifest.jsonl one line a finished
# batch 0000000-0000128.parquet its synapses complete.json rows and sha256 of the result; the
# batches are gone then pre20-post300-6c1a09f2b3d4.parquet the result
#
# A file is written beside and renamed, and a batch counts from the moment its line in the
# manifest is whole, so that a process may be killed at any point.


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """A finished batch, as its line in the manifest says."""

    piece: Piece  # which part of the request
    file: str
    sha256: str
    # synapses of the request in it, and rows of the answer it was taken from
    rows: int
    answered: int
    # the first and the last postsynaptic root in it; -1 where it is empty
    post_from: int
    post_to: int


class RequestFolder:
    """The folder of one request."""

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
        """Return what was asked."""
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
        """Hold the request: no other process writes into it, and this one does only in here."""
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
        """Return how an earlier run asked for the same, if there was one."""
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
                write_file(self.path / f"{side}.parquet", parquet_bytes({"root_id": ids}))
        asked = {"request": request.record(), "timestamp": timestamp}
        self.write_document("request", {**asked, "strategy": asdict(strategy)})

    def write_document(self, name: str, document: dict[str, Any]) -> None:
        """Write ``NAME.json``."""
        write_file(self.path / f"{name}.json", json.dumps(document, indent=1).encode())

    def batches(self) -> list[Batch]:
        """Return the finished batches whose files are whole, and remove all other files.

        To be called while the request is held.
        """
        manifest = self.path / "manifest.jsonl"
        content = manifest.read_bytes() if manifest.exists() else b""
        found = [batch for line in content.split(b"\n") if (batch := self._whole(line))]
        lines = b"".join(_line(batch) for batch in found)
        if lines != content:
            write_file(manifest, lines)
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
            write_file(self.path / batch.file, content)
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


def parquet_bytes(columns: dict[str, np.ndarray]) -> bytes:
    """Return columns as the bytes of a parquet file, equal for equal columns."""
    sink = pa.BufferOutputStream()
    # What is soon read again and removed need not be small.
    pq.write_table(pa.table(columns), sink, compression="lz4", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def _line(batch: Batch) -> bytes:
    return json.dumps(asdict(batch)).encode() + b"\n"


# One part of a request of synapses, asked until it is certain that all of it has arrived.
#
# Nothing in an answer says that rows are missing: a stream may end after its schema, a service
# may lose some. So the rows of every batch are counted by the service first, and an answer counts
# only if it holds exactly that many synapses, each of which belongs to what was asked.


# Seconds before an answer that does not fit its count is asked for again.
_WAITS = (0.5, 2.0, 8.0, 30.0)
_FLOAT32_EXACT = 2**24


class SynapseAnswer(Protocol):
    """Rows of an answer, and the row limit if it may have cut them."""

    @property
    def table(self) -> pa.Table:
        """The rows, in no order."""
        ...

    @property
    def limited_to(self) -> int | None:
        """How many rows it was cut at; None: it was not."""
        ...


class SynapseService(Protocol):
    """What a download of synapses needs of a service; retries are its own."""

    @property
    def datastack(self) -> str:
        """Name of the datastack."""
        ...

    @property
    def version(self) -> int | None:
        """Materialization version."""
        ...

    def timestamp(self) -> str:
        """Return when the version was made."""
        ...

    def count(
        self,
        table: str,
        filter_in: Mapping[str, Sequence[Any]] | None = None,
        *,
        filter_range: Mapping[str, tuple[int | None, int | None]] | None = None,
    ) -> int:
        """Return how many rows a query has, row limit or not."""
        ...

    def query(
        self,
        table: str,
        *,
        filter_in: Mapping[str, Sequence[Any]] | None = None,
        filter_range: Mapping[str, tuple[int | None, int | None]] | None = None,
        select_columns: Sequence[str] | None = None,
    ) -> SynapseAnswer:
        """Return the rows of a query, as far as the row limit goes."""
        ...


def integer_columns(table: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return columns of an answer as int64, exactly."""
    columns = {}
    for name in names:
        if name not in table.column_names:
            raise SchemaError(
                f"the synapses have no column {name}, found {table.column_names}: is this a table "
                "of synapses?"
            )
        column = table[name]
        if name.endswith("_root_id"):
            column = column.fill_null(0)
        floats = pa.types.is_floating(column.type)
        if column.null_count or not (pa.types.is_integer(column.type) or floats):
            raise SchemaError(
                f"column {name} of the synapses is {column.type} with {column.null_count} nulls, "
                "expected whole numbers"
            )
        values = column.to_numpy()
        if floats:
            if name.endswith("id"):
                raise SchemaError(f"column {name} of the synapses holds ids as floats")
            if not (np.isfinite(values) & (values == np.trunc(values))).all():
                raise SchemaError(f"column {name} of the synapses holds fractions, NaN or infinity")
            if len(values) and np.abs(values).max() > _FLOAT32_EXACT:
                logger.warning("%s above 2^24 travels as float32, rounded to 8 digits", name)
        columns[name] = values.astype(np.int64)
    return columns


@dataclass(frozen=True)
class Found:
    """What came of a piece: its synapses, or the pieces to ask for instead."""

    # the synapses of the request, sorted
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    # rows of the answer that they were taken from
    answered: int = 0
    parts: list[Piece] = field(default_factory=list)  # empty where the piece is done
    limit: int | None = None  # the row limit that an answer met


class Asker:
    """Asks a service for pieces of one request."""

    def __init__(
        self, service: SynapseService, request: SynapseRequest, strategy: Strategy
    ) -> None:
        self._service = service
        self._request = request
        self._strategy = strategy
        self.stopped = threading.Event()
        by_side: dict[Side | None, np.ndarray | None] = {"pre": request.pre, "post": request.post}
        self._ids = by_side.get(strategy.side)
        other: dict[Side | None, Side] = {"pre": "post", "post": "pre"}
        self._side = column_of(strategy.side) if strategy.side else None
        self._other = column_of(other[strategy.side]) if strategy.side else ""
        self._other_ids = by_side[other[strategy.side]] if strategy.side else None
        self.n_ids = 1 if self._ids is None else len(self._ids)

    def _filters(self, piece: Piece, sent: np.ndarray | None) -> dict[str, Any]:
        filters: dict[str, Any] = {}
        if self._side and self._ids is not None:
            filters[self._side] = self._ids[piece.start : piece.stop].tolist()
        if sent is not None:
            filters[self._other] = sent.tolist()
        ranges = {"id": (piece.id_from, piece.id_below)} if piece.is_range else None
        return {"filter_in": filters, **({"filter_range": ranges} if ranges else {})}

    def ask(self, piece: Piece, limit: int) -> Found:
        """Fetch the synapses of a piece, or find that it has to be split."""
        sent = self._other_ids if self._strategy.sends_other(limit) else None
        table, filters = self._request.table, self._filters(piece, sent)
        found = ""
        for wait in (0.0, *_WAITS):
            if self.stopped.wait(wait) if wait else self.stopped.is_set():
                break
            counted = self._service.count(table, **filters)
            if counted > limit and len(piece) > 1:
                return Found(parts=split_ids(piece, math.ceil(counted / max(1, limit // 2))))
            answer = self._service.query(table, select_columns=self._request.selected, **filters)
            rows = sorted_synapses(integer_columns(answer.table, self._request.columns))
            found, n = self._misfit(rows, piece, sent), len(rows["id"])
            if not found and n == counted:
                return Found(self._wanted(rows), n)
            if not found and answer.limited_to is not None and n < counted:
                parts = math.ceil(counted / max(1, answer.limited_to // 2))
                split = (
                    split_ids(piece, parts)
                    if len(piece) > 1
                    else split_synapses(piece, rows["id"], parts)
                )
                if split:
                    return Found(parts=split, limit=answer.limited_to)
            found = found or f"{n} synapses arrived where the service counts {counted}"
            logger.warning("%s: %s; asking again", self._describe(piece), found)
        raise IncompleteDownloadError(
            f"{self._describe(piece)}: {found or 'stopped'} ({len(_WAITS) + 1} attempts): the "
            "service loses rows at the moment; run the same again later, what has arrived is kept"
        )

    def _describe(self, piece: Piece) -> str:
        ids = "all" if self._ids is None else f"{len(piece)} ids of {self._side}"
        part = f", synapses {piece.id_from} to {piece.id_below}" if piece.is_range else ""
        return f"{self._request.table}, {ids}{part}"

    def _misfit(self, rows: dict[str, np.ndarray], piece: Piece, sent: np.ndarray | None) -> str:
        """Say what in an answer was not asked for."""
        low, high = piece.id_from, piece.id_below
        outside = np.zeros(len(rows["id"]), dtype=bool)
        if self._side and self._ids is not None:
            outside |= ~_among(rows[self._side], self._ids[piece.start : piece.stop])
        if sent is not None:
            outside |= ~_among(rows[self._other], sent)
        if low is not None:
            outside |= rows["id"] < low
        if high is not None:
            outside |= rows["id"] >= high
        n = int(outside.sum())
        return f"{n} of {len(outside)} synapses are none of those asked for" if n else ""

    def _wanted(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._other_ids is None:
            return rows
        keep = _among(rows[self._other], self._other_ids)
        return {name: column[keep] for name, column in rows.items()}


def column_of(side: Side) -> str:
    """Return the column of the root ids of a side."""
    return f"{side}_pt_root_id"


def _among(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Whether values are among sorted ids."""
    if not len(ids):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return np.asarray(ids[at] == values)


# Finished batches to one table: sorted by post, pre and id, every synapse once.
#
# The result depends on nothing but the synapses: not on how they were cut into batches, nor in
# which order these came. Memory is bounded, whatever the number of synapses.


Columns = dict[str, np.ndarray]

_BLOCK_ROWS = 4_000_000  # sorted at once
_GROUP_ROWS = 1 << 20  # of a row group in the result
_IDS_AT_ONCE = 32_000_000


def sorted_synapses(columns: Columns) -> Columns:
    """Sort synapses by post, pre and id, and drop what is there twice."""
    keys = [columns[name] for name in ("post_pt_root_id", "pre_pt_root_id", "id")]
    if not _rising(keys):
        order = np.lexsort(keys[::-1])
        columns = {name: column[order] for name, column in columns.items()}
    same = np.ones(max(len(columns["id"]) - 1, 0), dtype=bool)
    for name in ("id", "pre_pt_root_id", "post_pt_root_id"):
        same &= columns[name][1:] == columns[name][:-1]
    if not same.any():
        return columns
    twice = np.flatnonzero(same)
    for name, column in columns.items():
        other = twice[column[twice] != column[twice + 1]]
        if len(other):
            _contradict(columns["id"][other[0]], name, column[other[0]], column[other[0] + 1])
    keep = np.append(True, ~same)
    return {name: column[keep] for name, column in columns.items()}


def _rising(keys: Sequence[np.ndarray]) -> bool:
    """Whether rows are sorted by the first key, then by the next; equal rows do no harm."""
    tied: np.ndarray | bool = True
    for key in keys:
        if np.any(tied & (key[1:] < key[:-1])):
            return False
        tied = tied & (key[1:] == key[:-1])
    return True


def _contradict(number: int, name: str, one: int, other: int) -> None:
    raise SourceError(
        f"synapse {number} came twice, with {name} {one} and {other}: one of the two answers is of "
        "another release; remove the request's folder, and download again"
    )


def merge_batches(folder: Path, batches: Sequence[Batch], names: Sequence[str], out: Path) -> int:
    """Write all synapses of some batches as one parquet file."""
    schema = pa.schema([(name, pa.int64()) for name in names])
    rows = 0
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(out, schema, compression="zstd", use_dictionary=False) as writer:
        # Groups of one size, so that equal synapses give equal files.
        for block in _blocks(folder, batches):
            waiting.append(pa.table(block, schema=schema))
            rows += waiting[-1].num_rows
            table = pa.concat_tables(waiting)
            full = table.num_rows // _GROUP_ROWS * _GROUP_ROWS
            for start in range(0, full, _GROUP_ROWS):
                writer.write_table(table.slice(start, _GROUP_ROWS), row_group_size=_GROUP_ROWS)
            waiting = [table.slice(full)]
        rest = pa.concat_tables(waiting) if waiting else schema.empty_table()
        if rest.num_rows:
            writer.write_table(rest, row_group_size=_GROUP_ROWS)
    with open(out, "rb+") as file:
        os.fsync(file.fileno())
    _require_unique(out, rows)
    return rows


def _blocks(folder: Path, batches: Sequence[Batch]) -> Iterator[Columns]:
    """Yield the synapses of one range of postsynaptic roots after the other."""
    filled = sorted((b for b in batches if b.rows), key=lambda b: (b.post_from, b.file))
    edges = _edges(folder, filled)
    for low, high in itertools.pairwise(edges):
        parts: list[Columns] = []
        for batch in filled:
            if batch.post_to < low or batch.post_from >= high:
                continue
            with pq.ParquetFile(folder / batch.file) as file:
                table = file.read()
            ends = np.searchsorted(table["post_pt_root_id"].to_numpy(), [low, high])
            inside = table.slice(int(ends[0]), int(ends[1] - ends[0]))
            parts.append({name: inside[name].to_numpy() for name in inside.column_names})
        if parts:
            yield sorted_synapses({n: np.concatenate([p[n] for p in parts]) for n in parts[0]})


def _edges(folder: Path, batches: Sequence[Batch]) -> list[int]:
    """Return postsynaptic roots that cut the synapses into blocks, none much too large."""
    if not batches:
        return []
    first, end = min(b.post_from for b in batches), max(b.post_to for b in batches) + 1
    n_blocks = -(-sum(b.rows for b in batches) // _BLOCK_ROWS)
    if n_blocks == 1:
        return [first, end]
    step = max(1, _BLOCK_ROWS // 1000)
    seen = []
    for batch in batches:
        with pq.ParquetFile(folder / batch.file) as file:
            seen.append(file.read(["post_pt_root_id"])["post_pt_root_id"].to_numpy()[::step])
    posts = np.sort(np.concatenate(seen))
    inner = posts[np.arange(1, n_blocks) * len(posts) // n_blocks].tolist()
    return sorted({first, *inner, end})


def _require_unique(path: Path, rows: int) -> None:
    passes = max(1, -(-rows // _IDS_AT_ONCE))
    with pq.ParquetFile(path) as file:
        for remainder in range(passes):
            parts = [np.empty(0, np.int64)]
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"])["id"].to_numpy()
                parts.append(ids[ids % passes == remainder] if passes > 1 else ids)
            ids = np.sort(np.concatenate(parts))
            twice = np.flatnonzero(ids[1:] == ids[:-1])
            if len(twice):
                raise SourceError(
                    f"{len(twice)} synapses came twice between different roots, such as "
                    f"{ids[twice[0]]}: some answers are of another release; remove the request's "
                    "folder, and download again"
                )


# The threads of a download of synapses, and its progress bar.


_TICK = 0.1  # seconds between two looks at what the threads have done
_GRACE = 2.0  # seconds that answers on their way have to arrive, when the download has to stop


def fetch_all(
    plan: SynapsePlan,
    asker: Asker,
    folder: RequestFolder,
    *,
    workers: int,
    progress: bool,
    cancel: threading.Event | None,
) -> None:
    """Fetch every open piece of a plan into the folder of its request, several at a time.

    When one thread fails, when the caller is interrupted or `cancel` is set, the others end with
    the answer they wait for, and no later than after two seconds.
    """
    team = _Team(plan, asker, folder)
    # Daemons, not a pool, whose threads would keep the interpreter until their last answer.
    threads = [threading.Thread(target=team.work, daemon=True) for _ in range(workers)]
    with _Bar(plan, asker.n_ids, progress) as bar:
        try:
            _look_at(cancel, plan, folder)
            for thread in threads:
                thread.start()
            while not team.ended.wait(_TICK) and any(thread.is_alive() for thread in threads):
                bar.show(team.pairs)
                _look_at(cancel, plan, folder)
        finally:
            asker.stopped.set()
            plan.stop()
            until = time.monotonic() + _GRACE
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))
            bar.show(team.pairs)
    if team.error is not None:
        team.error.add_note(
            f"{plan.ids_done} of {asker.n_ids} roots are kept in {folder.path}; the same "
            "download_synapses continues there"
        )
        raise team.error


def _look_at(cancel: threading.Event | None, plan: SynapsePlan, folder: RequestFolder) -> None:
    if cancel is not None and cancel.is_set():
        raise IncompleteDownloadError(
            f"the download of {folder.key} was cancelled after {plan.ids_done} roots: run the same "
            "again to continue"
        )


class _Team:
    """What the threads of one download share."""

    def __init__(self, plan: SynapsePlan, asker: Asker, folder: RequestFolder) -> None:
        self._plan, self._asker, self._folder = plan, asker, folder
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.pairs = 0

    def work(self) -> None:
        """Fetch pieces until there is none, or something fails."""
        try:
            self._work()
        except BaseException as error:
            with self._lock:
                # What fails because of the stop is no reason for it.
                if not self._asker.stopped.is_set():
                    self.error = error
                    self._asker.stopped.set()
            self._plan.stop()
        self.ended.set()

    def _work(self) -> None:
        plan = self._plan
        while (piece := plan.next()) is not None:
            found = self._asker.ask(piece, plan.limit)
            if found.parts:
                plan.split(piece, found.parts, found.limit)
                continue
            batch = self._folder.commit(piece, found.rows, found.answered)
            if batch is None:
                return
            plan.finish(piece, batch.rows, batch.answered)
            with self._lock:
                self.pairs += _pairs(found.rows)


def _pairs(rows: dict[str, np.ndarray]) -> int:
    """Return how many different pairs of roots sorted synapses have."""
    pre, post = rows["pre_pt_root_id"], rows["post_pt_root_id"]
    return int(((pre[1:] != pre[:-1]) | (post[1:] != post[:-1])).sum()) + bool(len(pre))


class _Bar:
    """The progress of a plan, on the terminal or in a notebook."""

    def __init__(self, plan: SynapsePlan, n_ids: int, progress: bool) -> None:
        from tqdm.auto import tqdm

        self._plan = plan
        self._bar = tqdm(
            total=n_ids, initial=plan.ids_done, desc="synapses", unit="root", disable=not progress
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, pairs: int) -> None:
        """Bring the bar up to date."""
        self._bar.set_postfix_str(
            f"{self._plan.rows_done:,} synapses, {pairs:,} pairs", refresh=False
        )
        self._bar.update(self._plan.ids_done - self._bar.n)


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
    """Return the root ids of one side of a request."""
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
    """Make the result of all batches of a request that is held; they are gone then."""
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
