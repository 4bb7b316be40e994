"""Recordings: one HDF5 file, or its copy in zarr, as a tree of lazy Datasets, one per scan.

The layout of the file is that of the data set NeuroBLab/MICrONS::

    sessions/{session}_{scan}/trials/{i}/  responses (units x frames), treadmill (frames),
                                           pupil (4 x frames), stim_times (frames, s)
    sessions/{session}_{scan}/meta/        condition_hashes (trials), area_indices/{area} (rows),
                                           perhaps unit_ids (units)
    videos/{hash}/                         clip (frames x width x height), directions (degrees),
                                           onsets (s); attributes type, fps, duration
    types/{type}/{hash}                    soft links to videos

In group names the ``/`` of a hash is written ``%2F``. All streams have 7.5 frames per second; a
stimulus frame leads the response stored with it by at least 66 ms.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray, CachingFileManager
from xarray.core import indexing
from zarr.storage import LocalStore

from microns_xr.angles import require_likely_units
from microns_xr.errors import (
    MicronsXrError,
    SchemaError,
    SourceError,
    UnknownLabelError,
    import_optional,
    is_shortage,
    require_instance,
    unknown_label,
    whole_number,
)
from microns_xr.network import http_options
from microns_xr.provenance import text_lines
from microns_xr.releases import datastack_entry
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.sources.fetch import RECORDING_SUFFIXES
from microns_xr.store import swap
from microns_xr.store.format import CHECKSUMS_ATTR, ID_ATTR
from microns_xr.store.locate import readable
from microns_xr.store.open import lazy_variable
from microns_xr.store.write import write_tree

FRAMES_PER_SECOND = 7.5
PUPIL_ROWS = ("x", "y", "major_radius", "minor_radius")
_ALIGNMENT = (
    "streams are stored at 7.5 frames a second; the stimulus frame of a response was shown at "
    "least 66 ms before it, so no latency is to be added"
)
_NO_AREA = "unknown"
_KIND = "recordings"  # of a store
# Variables that are read from the file on use.
_STREAMS = ("responses", "treadmill", "pupil", "stim_time")

# Block size for reading a remote file, in which the arrays of one trial are close together.
_REMOTE_BLOCK_BYTES = 256 << 10
_SIEVE_BYTES = 4096
# Gaps between requested rows up to this size are read, too: reading one more page costs less than
# another call.
_MAX_GAP_BYTES = 4096


def _open_h5(address: Any, mode: str, storage_options: Mapping[str, Any]) -> Any:
    h5py = import_optional("h5py", "recordings")
    if not isinstance(address, str):
        return h5py.File(address, mode)
    if "://" in address:
        # Metadata is scattered over the file: readahead would fetch most of the file.
        cache = {"block_size": _REMOTE_BLOCK_BYTES, "cache_type": "blockcache"}
        options = cache | http_options(address, storage_options)
        return h5py.File(fsspec.open(address, "rb", **options).open(), mode)
    # HDF5 rounds every small read up to this; its default of 64 KB is a hundred rows.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_sieve_buf_size(_SIEVE_BYTES)
    return h5py.File(h5py.h5f.open(os.fsencode(address), h5py.h5f.ACC_RDONLY, access))


_lock = threading.Lock()
_was_on: list[bool] = []  # for each reader, whether garbage collection was on before


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection while a file is read through another thread."""
    # HDF5 holds a global lock while it reads. For a remote file the reader then waits for a thread
    # of fsspec. If garbage collection in that thread closed an HDF5 file, it would wait for the
    # lock: a deadlock.
    with _lock:
        _was_on.append(gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            if _was_on.pop() and not _was_on:
                gc.enable()


class RecordingsFile:
    """An HDF5 file that is opened on first use, once per process.

    Lazy arrays hold this instead of an open file, so that they survive pickling and forking.
    """

    def __init__(self, address: Any, storage_options: Mapping[str, Any] | None = None) -> None:
        self._is_local = isinstance(address, str | Path) and "://" not in str(address)
        if self._is_local:
            path = Path(address).expanduser().absolute()
            if not path.exists():
                raise SourceError(
                    f"there is no file {path}: check the path, or fetch it with "
                    "mx.recordings.download"
                )
            address = str(path)
        elif not isinstance(address, str) and not hasattr(address, "read"):
            raise SourceError(f"file is {address!r}, expected a path, a URL or an open binary file")
        self.name = address if isinstance(address, str) else f"<{type(address).__name__}>"
        opener = partial(_open_h5, storage_options=dict(storage_options or {}))
        # The mode is explicit because the default does not survive pickling.
        self.manager = CachingFileManager(opener, address, mode="r")

    @contextlib.contextmanager
    def reading(self, what: str) -> Iterator[Any]:
        """Yield the open file; read errors name `what`."""
        with contextlib.nullcontext() if self._is_local else _no_collection():
            try:
                h5 = self.manager.acquire()
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"{self.name} cannot be opened as HDF5 ({error}): it is not HDF5, damaged or "
                    "truncated; fetch it again with mx.recordings.download, which resumes an "
                    "incomplete file"
                ) from error
            try:
                yield h5
            except MicronsXrError:
                raise
            except Exception as error:  # links in a loop, groups where arrays belong, ...
                if is_shortage(error):
                    raise
                raise SourceError(
                    f"{self.name}: {what} cannot be read ({error}): the file is damaged, "
                    "truncated or has another layout, fetch it again"
                ) from error


# Lazy arrays. They read only the trials and the runs of rows (units) that an index selects.


def _positions(key: Any, size: int) -> np.ndarray:
    """Convert an int, a slice or an array of an outer index to positions."""
    if isinstance(key, slice):
        return np.arange(size)[key]
    return np.atleast_1d(np.asarray(key, dtype=np.int64))


def read_rows(dataset: Any, rows: np.ndarray, first: int, end: int) -> np.ndarray:
    """Read rows of a two-dimensional dataset, columns `first` to `end`."""
    unique, inverse = np.unique(rows, return_inverse=True)
    max_gap = max(1, _MAX_GAP_BYTES // (dataset.dtype.itemsize * dataset.shape[1]))
    parts = []
    for run in np.split(unique, np.flatnonzero(np.diff(unique) > max_gap) + 1):
        block = dataset[run[0] : run[-1] + 1, first:end]
        parts.append(block if len(block) == len(run) else block[run - run[0]])
    # No copy if the rows are one run in order, as for all units of a scan.
    block = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return block if np.array_equal(inverse, np.arange(len(block))) else block[inverse]


class _LazyArray(BackendArray):
    shape: tuple[int, ...]
    support = indexing.IndexingSupport.OUTER

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, self.support, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        raise NotImplementedError


class TrialArray(_LazyArray):
    """One stream of a scan over (row, time), with its trials concatenated along time."""

    def __init__(
        self,
        file: RecordingsFile,
        scan: str,
        trials: list[str],
        n_frames: np.ndarray,
        stream: str,
        n_rows: int,
        dtype: Any,
    ) -> None:
        self.file, self.scan, self.trials, self.stream = file, scan, trials, stream
        self.n_frames, self.ends = n_frames, np.cumsum(n_frames)
        self.shape, self.dtype = (n_rows, int(n_frames.sum())), np.dtype(dtype)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        rows, frames = (_positions(k, n) for k, n in zip(key, self.shape, strict=True))
        result = np.empty((len(rows), len(frames)), dtype=self.dtype)
        trial_of = np.searchsorted(self.ends, frames, side="right")
        for trial in np.unique(trial_of) if result.size else []:
            at = np.flatnonzero(trial_of == trial)
            local = frames[at] - (self.ends[trial] - self.n_frames[trial])
            first = int(local.min())
            block = self._read_trial(trial, rows, first, int(local.max()) + 1)
            result[:, at] = block[:, local - first]
        return result[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]

    def _read_trial(self, trial: int, rows: np.ndarray, first: int, end: int) -> np.ndarray:
        where = f"scan {self.scan}, trial {self.trials[trial]}: {self.stream}"
        expected = (self.shape[0], int(self.n_frames[trial]))
        with self.file.reading(where) as h5:
            dataset = h5[f"sessions/{self.scan}/trials/{self.trials[trial]}/{self.stream}"]
            # One value per frame may be stored one-dimensional, as a row or as a column.
            if self.shape[0] == 1 and dataset.size == expected[1]:
                return np.reshape(dataset[()], (1, -1))[:, first:end]
            if dataset.shape != expected:
                raise SchemaError(
                    f"{self.file.name}: {where} has shape {dataset.shape}, expected {expected} to "
                    "match the responses: the file is damaged or has another layout"
                )
            return read_rows(dataset, rows, first, end)


class StartArray(_LazyArray):
    """The first value of a one-row stream in each trial; NaN for a trial without frames."""

    def __init__(self, stream: TrialArray) -> None:
        self.stream, self.shape, self.dtype = stream, stream.n_frames.shape, stream.dtype

    def _read(self, key: tuple[Any, ...]) -> Any:
        trials = _positions(key[0], self.shape[0])
        n_frames = self.stream.n_frames[trials]
        first = (self.stream.ends[trials] - n_frames)[n_frames > 0]
        result = np.full(len(trials), np.nan, dtype=self.dtype)
        result[n_frames > 0] = self.stream[indexing.OuterIndexer((0, first))]
        return result[0] if isinstance(key[0], int | np.integer) else result


class ClipArray(_LazyArray):
    """A video over (frame, row, column), even if the file stores the width first."""

    support = indexing.IndexingSupport.BASIC

    def __init__(self, file: RecordingsFile, path: str, clip: Any) -> None:
        self.file, self.path, self.dtype = file, path, clip.dtype
        # The screen is wider than high, which shows the order of the axes in the file.
        self.width_first = clip.shape[1] >= clip.shape[2]
        n, *size = clip.shape
        self.shape = (n, *(size[::-1] if self.width_first else size))

    def _read(self, key: tuple[Any, ...]) -> Any:
        with self.file.reading(self.path) as h5:
            if not self.width_first:
                return h5[self.path][key]
            frames = h5[self.path][key[0], key[2], key[1]]
            both = isinstance(key[1], slice) and isinstance(key[2], slice)
            return np.swapaxes(frames, -1, -2) if both else frames


# Reading and checking the metadata of a scan, without its streams.


def encode_hash(condition_hash: str) -> str:
    """Return the group name of a hash."""
    return condition_hash.replace("/", "%2F")


def _decode_hash(name: Any) -> str:
    return str(_decoded(name)).replace("%2F", "/")


def _decoded(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


# The type of a video (Monet2, Trippy or Clip), and its directions in degrees, onsets and offsets in
# seconds, shape (3, segments). The last offset is NaN if the file has no duration.
Stimulus = tuple[str, np.ndarray]


def _stimulus(h5: Any, types: dict[str, str], condition_hash: str, where: str) -> Stimulus:
    path = f"videos/{encode_hash(condition_hash)}"
    if path not in h5:
        raise SchemaError(
            f"{where} shows {condition_hash!r}, but there is no {path}: the file is incomplete, "
            "fetch it again"
        )
    kind = types.get(condition_hash)
    # Skip the thousands of clips, which have no directions.
    video: Any = {} if kind == "Clip" else h5[path]
    if kind is None:
        if "type" not in video.attrs:
            raise SchemaError(
                f"{where} shows {condition_hash!r}, whose type is not known, expected a link in "
                "types/ or an attribute 'type': the file is incomplete, fetch it again"
            )
        kind = str(_decoded(video.attrs["type"]))
    if "directions" not in video:
        return kind, np.empty((3, 0))
    where = f"video {condition_hash!r} ({where})"
    directions, onsets = (
        np.ravel(video[name][()] if name in video else []).astype(np.float64)
        for name in ("directions", "onsets")
    )
    same = len(directions) == len(onsets)
    if not same or not np.isfinite([directions, onsets]).all() or (np.diff(onsets) <= 0).any():
        raise SchemaError(
            f"{where} has {len(directions)} directions and {len(onsets)} onsets, "
            f"{directions.tolist()} and {onsets.tolist()}, expected finite directions and as many "
            "ascending onsets"
        )
    require_likely_units(directions, "degree", f"{where}: directions")
    duration = float(video.attrs.get("duration", np.nan))
    if len(onsets) and duration <= onsets[-1]:
        raise SchemaError(
            f"{where} has a duration of {duration:g} s, but its last direction begins at "
            f"{onsets[-1]:g} s: one of them is not in seconds"
        )
    return kind, np.stack([directions, onsets, np.append(onsets[1:], duration)])


def _trials(group: Any, where: str) -> tuple[list[str], list[str]]:
    """Return the names of the trials of a scan and the hashes of their videos."""
    for part in ("trials", "meta", "meta/condition_hashes", "meta/area_indices"):
        if part not in group:
            raise SchemaError(
                f"{where} has no {part!r}, found {sorted(group)}: the file is incomplete or "
                "has another layout, fetch it again"
            )
    trials = list(group["trials"])
    hashes = [_decode_hash(h) for h in group["meta/condition_hashes"][()]]
    if not trials:
        raise SchemaError(f"{where} has no trials: open the other scans by passing scans=")
    if not all(t.isdigit() for t in trials) or len(trials) != len(hashes):
        raise SchemaError(
            f"{where} has {len(trials)} trials ({', '.join(trials[:3])} ...) and {len(hashes)} "
            "condition_hashes, expected one hash per numbered trial"
        )
    return sorted(trials, key=int), hashes


def _responses_of(trial: Any, condition_hash: str, where: str) -> Any:
    """Return the responses of a trial, after checking its streams and its hash."""
    streams = ("responses", "treadmill", "pupil", "stim_times")
    if absent := [s for s in streams if s not in trial]:
        raise SchemaError(f"{where} has no {absent}, found {sorted(trial)}: fetch the file again")
    stated = _decode_hash(trial.attrs.get("condition_hash", condition_hash))
    if stated != condition_hash:
        raise SchemaError(
            f"{where} has the hash {stated!r}, expected {condition_hash!r} as in "
            "meta/condition_hashes: the trials are not in the order of the hashes"
        )
    responses = trial["responses"]
    if responses.ndim != 2:
        raise SchemaError(
            f"{where}: responses have shape {responses.shape}, expected two dimensions"
        )
    return responses


def _scan(
    file: RecordingsFile, h5: Any, key: str, types: dict[str, str], stimuli: dict[str, Stimulus]
) -> xr.Dataset:
    """Return the Dataset of a scan; `stimuli` caches videos shared between scans."""
    where = f"{file.name}: scan {key}"
    group = h5[f"sessions/{key}"]
    trials, hashes = _trials(group, where)
    shapes = []
    dtype = np.dtype(np.float32)
    for name, condition_hash in zip(trials, hashes, strict=True):
        at = f"{where}, trial {name}"
        responses = _responses_of(group["trials"][name], condition_hash, at)
        shapes.append(responses.shape)
        if responses.shape[0] != shapes[0][0]:
            raise SchemaError(
                f"{at} has {responses.shape[0]} units, expected {shapes[0][0]} as in the trials "
                "before it: the file is damaged, fetch it again"
            )
        dtype = np.promote_types(dtype, responses.dtype)
        if condition_hash not in stimuli:
            stimuli[condition_hash] = _stimulus(h5, types, condition_hash, at)

    n_units, n_frames = shapes[0][0], np.array([n for _, n in shapes], dtype=np.int64)
    stream = partial(TrialArray, file, key, trials, n_frames)
    lazy, first_row = indexing.LazilyIndexedArray, indexing.BasicIndexer((0, slice(None)))
    times, treadmill = (stream(name, 1, np.float64) for name in ("stim_times", "treadmill"))
    session, scan_idx = (np.int64(part) for part in key.split("_"))
    numbers = np.array([int(t) for t in trials], dtype=np.int64)
    names = np.array(hashes, dtype=object)
    kinds = np.array([stimuli[h][0] for h in hashes], dtype=object)
    time, start = lazy(times)[first_row], lazy(StartArray(times))
    first = np.cumsum(n_frames) - n_frames
    coords: dict[str, Any] = {
        "session": ((), session, describe(FUNCTIONAL["session"])),
        "scan_idx": ((), scan_idx, describe(FUNCTIONAL["scan_idx"])),
        **_units(group["meta"], where, n_units),
        "pupil_row": ("pupil_row", np.array(PUPIL_ROWS, dtype=object)),
        "trial": ("trial", numbers, {"long_name": "number of the trial in its scan"}),
        "stim_time": ("time", time, {"long_name": "time of the frame", "units": "s"}),
        "trial_number": (
            "time",
            np.repeat(numbers, n_frames),
            {"long_name": "number of the trial"},
        ),
        "first_frame": ("trial", first, {"long_name": "position of the first frame along time"}),
        "n_frames": ("trial", n_frames, {"long_name": "number of frames"}),
        "start_time": ("trial", start, {"long_name": "time of the first frame", "units": "s"}),
        "condition_hash": ("trial", names, {"long_name": "hash of the video"}),
        "stimulus": ("trial", kinds, {"long_name": "kind of video: Monet2, Trippy or Clip"}),
        **_segments([stimuli[h][1] for h in hashes]),
    }
    of_responses = {"long_name": "response of the unit, as stored"}
    of_treadmill = {"long_name": "running speed", "units": "cm/s"}
    of_pupil = {"long_name": "centre and radii of the pupil", "units": "pixel"}
    streams = {
        "responses": (("unit", "time"), lazy(stream("responses", n_units, dtype)), of_responses),
        "treadmill": ("time", lazy(treadmill)[first_row], of_treadmill),
        "pupil": (("pupil_row", "time"), lazy(stream("pupil", 4, np.float64)), of_pupil),
    }
    attrs = {"scan": key, "frames_per_second": FRAMES_PER_SECOND, "alignment": _ALIGNMENT}
    return xr.Dataset(streams, coords=coords, attrs=attrs)


def _units(meta: Any, where: str, n_units: int) -> dict[str, Any]:
    """Return ids and areas of the units as coordinates."""
    area = np.full(n_units, _NO_AREA, dtype=object)
    for name, indices in meta["area_indices"].items():
        rows = np.asarray(indices[()])
        if not len(rows):
            continue
        if rows.dtype.kind not in "iu" or not 0 <= rows.min() <= rows.max() < n_units:
            raise SchemaError(
                f"{where}: area_indices/{name} goes from {rows.min()} to {rows.max()} "
                f"({rows.dtype}), expected rows of the {n_units} units of the responses"
            )
        if (area[rows] != _NO_AREA).any() or len(np.unique(rows)) != len(rows):
            raise SchemaError(
                f"{where}: area_indices/{name} repeats rows or overlaps with another area, "
                "expected each unit once"
            )
        area[rows] = name
    ids, source = np.arange(1, n_units + 1), "row + 1"
    n_with_area = int((area != _NO_AREA).sum())
    if "unit_ids" in meta:
        ids, source = np.asarray(meta["unit_ids"][()]), "meta/unit_ids"
        if ids.dtype.kind not in "iu" or len(ids) != n_units or len(np.unique(ids)) != n_units:
            raise SchemaError(
                f"{where}: unit_ids holds {len(ids)} values ({ids.dtype}), expected {n_units} "
                "different integers, one per row of the responses"
            )
    elif n_with_area != n_units:
        # Without ids, only equal numbers of units suggest that row i is unit i + 1.
        raise SchemaError(
            f"{where} has {n_units} units in its responses and {n_with_area} in area_indices, "
            "expected equal numbers: without unit_ids, rows cannot be assigned to units"
        )
    attrs = {**describe(FUNCTIONAL["unit_id"]), "from": source}
    return {
        "unit_id": ("unit", ids.astype(np.int64), attrs),
        "brain_area": ("unit", area, {"long_name": "visual area"}),
    }


def _segments(segments: list[np.ndarray]) -> dict[str, Any]:
    """Return directions, onsets and offsets as coordinates; NaN where a trial has fewer."""
    most = max(values.shape[1] for values in segments)
    if not most:
        return {}
    padded = [np.pad(v, ((0, 0), (0, most - v.shape[1])), constant_values=np.nan) for v in segments]
    direction, onset, offset = np.stack(padded, axis=1)
    degrees = {"units": "degree", "long_name": "direction of motion, as stated in the video"}
    seconds = {"units": "s", "long_name": "seconds from the start of the trial"}
    dims = ("trial", "segment")
    return {
        "direction": (dims, direction, degrees),
        "onset": (dims, onset, seconds),
        "offset": (dims, offset, seconds),
    }


# Names of scans.


def node_name(scan: Any) -> str:
    """Return the node name of a scan."""
    if isinstance(scan, str):
        return scan if scan.startswith("scan_") else f"scan_{scan}"
    try:
        session, scan_idx = (int(part) for part in scan)
    except (TypeError, ValueError) as error:
        raise SchemaError(
            f"scan is {scan!r}, expected '9_3' or (9, 3): session and scan_idx"
        ) from error
    return f"scan_{session}_{scan_idx}"


def _choose(scans: Any, names: Iterable[str], where: str) -> list[str]:
    """Return the node names of one or several scans, in the order of `names`."""
    if scans is None:
        return list(names)
    if isinstance(scans, str) or not isinstance(scans, Iterable):
        scans = [scans]
    elif scans := list(scans):
        # A single pair of int.
        scans = [scans] if all(isinstance(s, int | np.integer) for s in scans) else scans
    chosen = [node_name(scan) for scan in scans]
    for name in chosen:
        if name not in names:
            raise unknown_label(f"{where} has no scan", name, names)
    return [name for name in names if name in chosen]


def _sorted_scans(names: Iterable[str]) -> list[str]:
    """Return node names for names such as ``9_3``, sorted by session and scan_idx."""
    pairs = [tuple(map(int, n.split("_"))) for n in names if re.fullmatch(r"\d+_\d+", n)]
    return [node_name(pair) for pair in sorted(pairs)]


def scan_nodes(recordings: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the scans of recordings by node name."""
    if not isinstance(recordings, xr.DataTree):
        raise SchemaError(
            f"recordings is a {type(recordings).__name__}, expected what mx.recordings.open returns"
        )
    nodes = {
        node.name or "scan": node.to_dataset(inherit=False)
        for node in recordings.subtree
        if "responses" in node.data_vars
    }
    if not nodes:
        raise SchemaError(
            "recordings has no scan with responses: open the file with mx.recordings.open"
        )
    return nodes


def open(
    file: Any,
    scans: Iterable[Any] | None = None,
    *,
    datastack: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Open recordings lazily, reading only the metadata of scans, trials and stimuli.

    Parameters
    ----------
    file : str, Path or binary file
        The HDF5 file: a path, a URL (``https://...``, parts are fetched as needed), or an open
        binary file; or a folder written by `microns_xr.recordings.to_zarr`.
    scans : iterable, optional
        Such as ``["9_3"]`` or ``[(9, 3)]``; all by default. Over a network, select the scans you
        need: the metadata of each trial costs one or two requests.
    datastack : str, optional
        Set as scalar coordinate. Recordings are the same in every release: their labels are
        session, scan_idx and unit_id.
    storage_options : mapping, optional
        Options for fsspec if `file` is a URL.

    Returns
    -------
    xarray.DataTree
        One node ``scan_{session}_{scan_idx}`` per scan:

        - ``responses(unit, time)``, ``treadmill(time)`` in cm/s, ``pupil(pupil_row, time)``, lazy,
          with trials concatenated along time. ``.chunk()`` makes them dask arrays.
        - along unit: ``unit_id`` int64, ``brain_area``.
        - along time: ``stim_time`` in seconds, lazy; ``trial_number``.
        - along trial (its number in the file): ``condition_hash``, ``stimulus`` (Monet2, Trippy,
          Clip), ``first_frame``, ``n_frames``, ``start_time`` in seconds, lazy (NaN for a trial
          without frames); if there are directions also ``direction(trial, segment)`` in degrees,
          and ``onset``, ``offset`` in seconds from the start of the trial (an offset of NaN means
          until the end).
        - ``session`` and ``scan_idx`` as scalar coordinates.

    Raises
    ------
    SourceError
        If the file does not exist, cannot be read or is truncated.
    SchemaError
        If it is not a recordings file, or the metadata of a scan are inconsistent; the message
        names scan and trial.
    UnknownLabelError
        If a scan is not in the file.
    MicronsXrError
        If h5py is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings import write_demo
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> scan = open(path)["scan_9_3"]
    >>> scan.responses.dims, scan.unit_id.values[:3]
    (('unit', 'time'), array([1, 2, 3]))
    """
    if isinstance(file, str | Path) and "://" not in str(file):
        file = Path(file).expanduser()
        swap.recover(swap.address_of(file))
        if file.is_dir():
            return _open_zarr(file, scans)
    source = RecordingsFile(file, storage_options)
    with source.reading("the metadata of the scans") as h5:
        names = _sorted_scans(h5.get("sessions", ()))
        if not names:
            raise SchemaError(
                f"{source.name} has the groups {sorted(h5)[:8]}, expected sessions/SESSION_SCAN: "
                "it is not a recordings file"
            )
        types = {_decode_hash(v): str(t) for t in h5.get("types", ()) for v in h5["types"][t]}
        stimuli: dict[str, Stimulus] = {}
        nodes = {
            name: _scan(source, h5, name.removeprefix("scan_"), types, stimuli)
            for name in _choose(scans, names, source.name)
        }
    if datastack is not None:
        stack = np.array(datastack, dtype=object)
        nodes = {name: node.assign_coords(datastack=stack) for name, node in nodes.items()}
    attrs = {
        "source": source.name,
        "frames_per_second": FRAMES_PER_SECOND,
        "alignment": _ALIGNMENT,
        "history": [f"recordings of {len(nodes)} scans"],
    }
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **nodes})
    tree.set_close(source.manager.close)
    return tree


def open_video(
    recordings: Any,
    condition_hash: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Open the video of a trial lazily.

    Parameters
    ----------
    recordings : DataTree, str, Path or binary file
        What `microns_xr.recordings.open` returned, or the file itself.
    condition_hash : str
        Hash of the video, as in the coordinate ``condition_hash`` of the trials.
    storage_options : mapping, optional
        Options for fsspec if the file is at a URL.

    Returns
    -------
    xarray.DataArray
        ``clip(frame, row, column)``, rows and columns in the order of the file; ``time(frame)`` in
        seconds if the file has it; attributes of the video such as ``type``, ``fps`` and
        ``movie_name``.

    Raises
    ------
    UnknownLabelError
        If there is no such video.
    SchemaError
        If the video does not have three dimensions.
    SourceError
        If the file cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings import write_demo
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> recordings = open(path)
    >>> clip = open_video(recordings, recordings["scan_9_3"].condition_hash.values[0])
    >>> clip.dims, clip.attrs["type"]
    (('frame', 'row', 'column'), 'Monet2')
    """
    if isinstance(recordings, xr.DataTree):
        source = recordings.attrs.get("recorded_in", recordings.attrs.get("source", "<unknown>"))
        if str(source).startswith("<"):
            raise SourceError(
                f"these recordings come from {source}, which cannot be opened again for a video: "
                "pass the file itself to open_video"
            )
        recordings = source
    file = RecordingsFile(recordings, storage_options)
    require_instance("condition_hash", condition_hash, str, "the hash of a video")
    path = f"videos/{encode_hash(condition_hash)}"
    with file.reading(path) as h5:
        if path not in h5:
            known = [_decode_hash(video) for video in h5.get("videos", ())]
            raise unknown_label(f"{file.name} has no video", condition_hash, known)
        video = h5[path]
        if "clip" not in video or video["clip"].ndim != 3:
            raise SchemaError(
                f"{file.name}: video {condition_hash!r} has no clip of three dimensions, found "
                f"{sorted(video)}: fetch the file again"
            )
        array = ClipArray(file, f"{path}/clip", video["clip"])
        coords = {}
        if "times" in video and video["times"].shape == array.shape[:1]:
            coords["time"] = ("frame", video["times"][()], {"units": "s"})
        attrs = {str(k): _decoded(v) for k, v in video.attrs.items()}
    return xr.DataArray(
        indexing.LazilyIndexedArray(array),
        dims=("frame", "row", "column"),
        coords=coords,
        name="clip",
        attrs={**attrs, "condition_hash": condition_hash},
    )


def select(
    recordings: xr.DataTree,
    *,
    scans: Iterable[Any] | str | None = None,
    session: int | Iterable[int] | None = None,
    brain_area: str | Iterable[str] | None = None,
    unit_id: int | Iterable[int] | None = None,
    stimulus: str | Iterable[str] | None = None,
    condition_hash: str | Iterable[str] | None = None,
    trial: int | Iterable[int] | None = None,
) -> xr.DataTree:
    """Select scans, units and trials, without reading their data.

    Parameters
    ----------
    recordings : DataTree
        What `microns_xr.recordings.open` returned.
    scans : iterable, optional
        Such as ``["9_3"]`` or ``[(9, 3)]``.
    session : int or iterable of int, optional
        All scans of these sessions.
    brain_area : str or iterable of str, optional
        Units of these areas.
    unit_id : int or iterable of int, optional
        These units.
    stimulus : str or iterable of str, optional
        Trials of these types: Monet2, Trippy, Clip.
    condition_hash : str or iterable of str, optional
        Trials that show these videos: all repeats of a clip, across scans.
    trial : int or iterable of int, optional
        Trials of these numbers.

    Returns
    -------
    xarray.DataTree
        The selected units and trials over the same dims, in the scans that have any;
        ``first_frame`` counts along the selected time.

    Raises
    ------
    UnknownLabelError
        If a scan, session, area, stimulus type, hash, unit or trial is in none of the scans, or the
        selection is empty.
    SchemaError
        If `recordings` was not returned by `microns_xr.recordings.open`, or the name of a scan is
        not of the form ``9_3``.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings import open, write_demo
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["8_5", "9_3"])
    >>> chosen = select(open(path), session=9, stimulus="Monet2")
    >>> list(chosen), set(chosen["scan_9_3"].stimulus.values)
    (['scan_9_3'], {'Monet2'})
    """
    criteria = {
        "scans": scans, "session": session, "brain_area": brain_area, "unit_id": unit_id,
        "stimulus": stimulus, "condition_hash": condition_hash, "trial": trial,
    }  # fmt: skip
    criteria = {name: value for name, value in criteria.items() if value is not None}
    entry = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
    nodes = scan_nodes(recordings)
    nodes = {
        name: nodes[name] for name in _choose(criteria.pop("scans", None), nodes, "recordings")
    }
    if session is not None:
        sessions = _labels("session", criteria.pop("session"), nodes)
        nodes = {name: node for name, node in nodes.items() if int(node["session"]) in sessions}
    selected = {name: _labels(name, value, nodes) for name, value in criteria.items()}
    chosen = {}
    for name, node in nodes.items():
        masks = {dim: np.ones(node.sizes[dim], dtype=bool) for dim in ("unit", "trial")}
        for variable, labels in selected.items():
            masks[str(node[variable].dims[0])] &= np.isin(node[variable].values, labels)
        if all(mask.any() for mask in masks.values()):
            chosen[name] = _take(node, **masks)
    if not chosen:
        raise UnknownLabelError(
            f"no scan has both units and trials of {entry}: each exists, but not in the same scan; "
            "select fewer criteria"
        )
    history = [*text_lines(recordings.attrs.get("history")), f"recordings.select({entry})"]
    root = xr.Dataset(attrs={**recordings.attrs, "history": history})
    return xr.DataTree.from_dict({"/": root, **chosen})


def _labels(variable: str, value: Any, nodes: dict[str, xr.Dataset]) -> list[Any]:
    """Return one or several labels as a list, after checking that each is in some scan."""
    if isinstance(value, Mapping):  # or a Dataset
        raise SchemaError(f"{variable} is a {type(value).__name__}, expected labels")
    is_one = isinstance(value, bytes) or np.ndim(value) == 0
    labels = [value] if is_one else np.asarray(value, dtype=object).ravel().tolist()
    known: set[Any] = set()
    for node in nodes.values():
        known.update(np.unique(node[variable].values).tolist())
    for label in labels:
        if not isinstance(label, Hashable) or label not in known:
            raise unknown_label(f"no scan has {variable}", label, sorted(known))
    return labels


def _take(node: xr.Dataset, unit: np.ndarray, trial: np.ndarray) -> xr.Dataset:
    if not unit.all():
        node = node.isel(unit=np.flatnonzero(unit))
    if trial.all():
        return node
    first, n_frames = node["first_frame"].values[trial], node["n_frames"].values[trial]
    frames = [np.arange(f, f + n) for f, n in zip(first, n_frames, strict=True)]
    node = node.isel(time=np.concatenate(frames), trial=np.flatnonzero(trial))
    first = node["first_frame"].copy(data=np.cumsum(n_frames) - n_frames)
    return node.assign_coords(first_frame=first)


def to_zarr(
    recordings: xr.DataTree,
    path: str | Path,
    *,
    frames: int = 256,
    units: int = 4096,
    overwrite: bool = False,
) -> Path:
    """Write recordings to a zarr store, with only a few chunks in memory at a time.

    Parameters
    ----------
    recordings : DataTree
        What `microns_xr.recordings.open` or `microns_xr.recordings.select` returned.
    path : str or Path
        The folder to create; it is removed if writing fails.
    frames, units : int, optional
        Chunk sizes.
    overwrite : bool, optional
        Whether to replace an existing store of recordings.

    Returns
    -------
    pathlib.Path
        The folder, which `microns_xr.recordings.open` can open.

    Raises
    ------
    StoreFormatError
        If the folder exists and `overwrite` is False, it is not a store of recordings, or
        another process is writing it.
    SchemaError
        If a chunk size is not a positive integer.
    SourceError
        If a stream cannot be read.

    Notes
    -----
    The videos are not copied; the store records the name of the HDF5 file that has them.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings import open, write_demo
    >>> folder = Path(tempfile.mkdtemp())
    >>> file = write_demo(folder / "demo.h5", scans=["9_3"])
    >>> store = to_zarr(open(file), folder / "demo.zarr")
    >>> list(open(store))
    ['scan_9_3']
    """
    require_instance("path", path, (str, os.PathLike), "a path")
    path = Path(path).expanduser()
    nodes = scan_nodes(recordings)
    for name, size in (("frames", frames), ("units", units)):
        whole_number(name, size, 1)
    attrs = {"recorded_in": recordings.attrs.get("source", "unknown"), **recordings.attrs}
    chunked = {}
    for name, node in nodes.items():
        # Chunks of equal size: zarr has no uneven chunks, and trials differ in length.
        sizes = {**node.sizes, "time": frames, "unit": units}
        streams = {s: node[s].variable.chunk({d: sizes[d] for d in node[s].dims}) for s in _STREAMS}
        times = {"stim_time": streams.pop("stim_time")}
        chunked[name] = node.assign(streams).assign_coords(times)
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **chunked})
    write_tree(path, tree, _KIND, overwrite=overwrite)
    return path


def _open_zarr(path: Path, scans: Iterable[Any] | None) -> xr.DataTree:
    complete = readable(path)
    # What DataTree.to_zarr wrote lacks chunks without data, which are no loss.
    finished = swap.kind_of(path) == _KIND
    store = complete if finished else LocalStore(path, read_only=True)
    try:
        root = zarr.open_group(store, mode="r")
        attrs = dict(root.attrs)
        if "recorded_in" not in attrs and not {"source", "frames_per_second"} <= set(attrs):
            raise SourceError(
                f"{path} is not a store of recordings: its attributes do not name the source file"
            )
        nodes = {}
        names = _sorted_scans(p.name.removeprefix("scan_") for p in path.iterdir())
        for name in _choose(scans, names, str(path)):
            node = xr.open_zarr(store, name, consolidated=False, chunks=None)
            # As when opening the file: text as objects, metadata of units and trials in memory.
            for n, variable in node.variables.items():
                if n not in _STREAMS:
                    text = variable.dtype.kind in "OUT"
                    values = np.asarray(variable.values, dtype=object if text else None)
                    in_memory = xr.Variable(variable.dims, values, variable.attrs)
                    node = node.assign_coords({n: in_memory})
                elif finished:
                    lazy = lazy_variable(cast("zarr.Group", root[name]), str(n), variable.dims)
                    node[n] = (lazy.dims, lazy._data, variable.attrs, variable.encoding)
            nodes[name] = node
        complete.require_unchanged(read_root=True)
    except MicronsXrError:
        complete.require_unchanged()  # the more likely cause
        raise
    except Exception as error:  # whatever zarr raises for metadata that it did not write
        if is_shortage(error):
            raise
        raise SourceError(
            f"{path} cannot be opened as recordings in zarr ({type(error).__name__}: {error}): the "
            "store is damaged or was not written by mx.recordings.to_zarr, write or copy it again"
        ) from error
    # Stores written by DataTree.to_zarr have the name of the file in `source`.
    for name in (swap.KIND_ATTR, ID_ATTR, CHECKSUMS_ATTR):
        attrs.pop(name, None)
    attrs |= {"recorded_in": attrs.get("recorded_in", attrs["source"]), "source": str(path)}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **nodes})


# Where the files of a datastack are.


def recordings_folder(datadir: Path, datastack: str) -> Path:
    """Return the folder of the recordings of a datastack; those of minnie65 are at the top."""
    folder = datadir.expanduser()
    if datastack_entry(datastack, "recordings") is None:
        folder /= datastack
    return folder / "recordings"


def recording_files(datadir: Path, datastack: str, tables: Path | None = None) -> list[Path]:
    """Return the files of recordings of a release, whose tables are in a folder.

    They are the same in every release of a datastack, so they are beside the releases.
    """
    folders = [recordings_folder(datadir, datastack)]
    if tables is not None:
        folders += [tables / "functional", tables / "recordings"]
        if tables.resolve().name.isdigit():  # of microns-datacleaner, see DirectorySource
            folders.append(tables.resolve().parent / "functional")
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    return sorted({file.resolve() for file in files if file.suffix in RECORDING_SUFFIXES})
