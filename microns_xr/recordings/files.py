"""Recordings as a zarr store: the same tree, in chunks that suit units and trials."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, CachingFileManager
from xarray.core import indexing

from microns_xr.angles import require_likely_units
from microns_xr.errors import (
    SchemaError,
    SourceError,
    StoreFormatError,
    UnknownLabelError,
    nearest_words,
)
from microns_xr.schema import FUNCTIONAL, describe

# The open HDF5 file behind lazy arrays: one handle a process, opened when it is needed.
#
# Arrays hold a `RecordingsFile`, never an open handle, so that they travel to threads and
# processes. HDF5 itself reads under one lock: threads are safe, and gain nothing while they read.
#
# A file behind an address is read by a thread of fsspec, for which the reader waits with that
# lock. Were rubbish collected in that thread just then, closing an HDF5 file among it would wait
# for the lock, and both for ever. So nothing is collected meanwhile.


# What is read at a time of a file behind an address; objects of one trial lie close together.
_REMOTE_BLOCK_BYTES = 256 << 10
_SIEVE_BYTES = 4096


def import_h5py() -> Any:
    """Return h5py, or say how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise SourceError(
            "recordings are HDF5 files, and h5py is not installed: "
            "pip install 'microns-xr[recordings]'"
        ) from error
    return h5py


def _open_h5(
    address: Any, mode: str = "r", storage_options: Mapping[str, Any] | None = None
) -> Any:
    h5py = import_h5py()
    if isinstance(address, str) and "://" in address:
        import fsspec

        # Metadata is scattered over the file: reading ahead would fetch most of it.
        address = fsspec.open(
            address,
            "rb",
            block_size=_REMOTE_BLOCK_BYTES,
            cache_type="blockcache",
            **(storage_options or {}),
        ).open()
    if isinstance(address, str):
        # HDF5 rounds every small read up to this; its default of 64 KB is a hundred rows.
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_sieve_buf_size(_SIEVE_BYTES)
        return h5py.File(h5py.h5f.open(os.fsencode(address), h5py.h5f.ACC_RDONLY, access))
    return h5py.File(address, mode)


class _Collector:
    """The garbage collector, off while somebody reads through another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._was_on = True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if self._readers == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0 and self._was_on:
                    gc.enable()


_collector = _Collector()


class RecordingsFile:
    """An HDF5 file that is opened when it is read, and closed when nothing refers to it."""

    def __init__(self, address: Any, storage_options: Mapping[str, Any] | None = None) -> None:
        if isinstance(address, str) and "://" not in address:
            address = Path(address)
        if isinstance(address, Path):
            address = address.expanduser().absolute()
            if not address.exists():
                raise SourceError(
                    f"there is no file {address}: check the path, or fetch it with "
                    "mx.recordings.download"
                )
            address = str(address)
        if not isinstance(address, str) and not hasattr(address, "read"):
            raise SourceError(
                f"recordings are opened from a path, an address or a binary file, not {address!r}"
            )
        self.name = address if isinstance(address, str) else f"<{type(address).__name__}>"
        self._is_local = isinstance(address, str) and "://" not in address
        opener = partial(_open_h5, storage_options=storage_options) if storage_options else _open_h5
        self._manager = CachingFileManager(opener, address, mode="r")

    def __repr__(self) -> str:
        return f"RecordingsFile({self.name!r})"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """Yield the open file."""
        import_h5py()
        with contextlib.nullcontext() if self._is_local else _collector.off():
            try:
                h5 = self._manager.acquire()
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"{self.name} cannot be opened as HDF5 ({error}): it is another file, damaged "
                    "or cut short; fetch it again with mx.recordings.download, which continues "
                    "where it ended"
                ) from error
            yield h5

    def close(self) -> None:
        """Close the file; it opens again when it is read."""
        self._manager.close()


# Lazy arrays over the HDF5 file: trials joined along time, and single datasets.
#
# Only what an index asks for is read: the trials it touches, and of their rows (units) the runs
# that hold the ones wanted.


# Rows between two wanted ones are read along when they are fewer bytes than this: a read of a page
# more costs less than another call.
_MAX_GAP_BYTES = 4096


def _positions(key: Any, size: int) -> np.ndarray:
    """Turn an int, a slice or an array of an outer index into positions."""
    if isinstance(key, slice):
        return np.arange(size)[key]
    return np.atleast_1d(np.asarray(key, dtype=np.int64))


def read_rows(dataset: Any, rows: np.ndarray, first: int, end: int) -> np.ndarray:
    """Read rows of a two-dimensional dataset, from column `first` up to `end`."""
    if not len(rows):
        return np.empty((0, end - first), dtype=dataset.dtype)
    wanted, back = np.unique(rows, return_inverse=True)
    max_gap = max(1, _MAX_GAP_BYTES // max(1, dataset.dtype.itemsize * dataset.shape[1]))
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > max_gap) + 1)
    parts = []
    for run in runs:
        block = dataset[run[0] : run[-1] + 1, first:end]
        parts.append(block if len(block) == len(run) else block[run - run[0]])
    block = parts[0] if len(parts) == 1 else np.concatenate(parts)
    in_order = len(back) == len(wanted) and bool((np.diff(back) > 0).all())
    return block if in_order else block[back]


class TrialArray(BackendArray):
    """One stream of a scan, its trials joined along time, the last axis."""

    def __init__(
        self,
        file: RecordingsFile,
        scan: str,
        trials: Sequence[str],
        stream: str,
        n_frames: np.ndarray,
        n_rows: int | None,
        dtype: np.dtype,
    ) -> None:
        self.file, self.scan, self.trials, self.stream = file, scan, tuple(trials), stream
        self.ends = np.cumsum(n_frames)
        self.n_frames = np.asarray(n_frames)
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.shape: tuple[int, ...] = (total,) if n_rows is None else (n_rows, total)
        self.dtype = np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        frames = _positions(key[-1], self.shape[-1])
        rows = _positions(key[0], self.shape[0]) if len(self.shape) == 2 else None
        lead = () if rows is None else (len(rows),)
        result = np.empty((*lead, len(frames)), dtype=self.dtype)
        trial_of = np.searchsorted(self.ends, frames, side="right")
        order = np.argsort(trial_of, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(trial_of[order])) + 1)
        with self.file.opened() as h5:
            for at in groups if len(frames) and 0 not in lead else []:
                trial = int(trial_of[at[0]])
                local = frames[at] - (self.ends[trial] - self.n_frames[trial])
                first, end = int(local.min()), int(local.max()) + 1
                block = self._read_trial(h5, trial, rows, first, end)
                result[..., at] = block[..., local - first]
        scalar = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)
        return result[scalar]

    def _read_trial(
        self, h5: Any, trial: int, rows: np.ndarray | None, first: int, end: int
    ) -> np.ndarray:
        where = f"{self.file.name}: scan {self.scan}, trial {self.trials[trial]}"
        try:
            dataset = h5[f"sessions/{self.scan}/trials/{self.trials[trial]}/{self.stream}"]
            n_frames = int(self.n_frames[trial])
            if rows is None:
                # Some files keep a value a frame as one row or as one column.
                if dataset.size != n_frames:
                    self._wrong_shape(where, dataset.shape, (n_frames,))
                return np.asarray(dataset[()]).ravel()[first:end]
            if dataset.shape != (self.shape[0], n_frames):
                self._wrong_shape(where, dataset.shape, (self.shape[0], n_frames))
            return read_rows(dataset, rows, first, end)
        except KeyError as error:
            raise SchemaError(
                f"{where} has no {self.stream!r}: the file is incomplete, fetch it again"
            ) from error
        except SchemaError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(
                f"{where}: {self.stream} cannot be read ({error}): the file is damaged or cut "
                "short, fetch it again"
            ) from error

    def _wrong_shape(self, where: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        raise SchemaError(
            f"{where}: {self.stream} has shape {found}, expected {expected}: the streams of a "
            "trial share one time axis; the file is damaged or of another layout"
        )


class StartArray(BackendArray):
    """The first value of a stream in each trial; NaN for a trial without frames."""

    def __init__(self, stream: TrialArray) -> None:
        self.stream = stream
        self.shape = stream.n_frames.shape
        self.dtype = stream.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        trials = _positions(key[0], len(self.stream.trials))
        shown = self.stream.n_frames[trials] > 0
        first = self.stream.ends[trials] - self.stream.n_frames[trials]
        result = np.full(len(trials), np.nan, dtype=self.dtype)
        result[shown] = self.stream[indexing.OuterIndexer((first[shown],))]
        return result[0] if isinstance(key[0], int | np.integer) else result


class ClipArray(BackendArray):
    """A video as frames of rows and columns, though it may be stored with the width first."""

    def __init__(
        self,
        file: RecordingsFile,
        path: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        width_first: bool,
    ) -> None:
        self.file, self.path, self.dtype = file, path, np.dtype(dtype)
        self.width_first = width_first
        self.shape = (shape[0], shape[2], shape[1]) if width_first else shape

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        if self.width_first:
            key = (key[0], key[2], key[1])
        with self.file.opened() as h5:
            try:
                found = h5[self.path][key]
                both = isinstance(key[1], slice) and isinstance(key[2], slice)
                return np.swapaxes(found, -1, -2) if self.width_first and both else found
            except (OSError, ValueError, RuntimeError) as error:
                raise SourceError(
                    f"{self.file.name}: {self.path} cannot be read ({error}): the file is damaged "
                    "or cut short, fetch it again"
                ) from error


# The layout of the recordings file: where things are, and the checks on them.
#
# ::
#
# sessions/{session}_{scan}/trials/{i}/ responses (units x frames), treadmill (frames), pupil (4 x
# frames), stim_times (frames, s) sessions/{session}_{scan}/meta/ condition_hashes (trials),
# area_indices/{area} (rows), perhaps unit_ids (units) videos/{hash}/ clip (frames x width x
# height), directions (degrees), onsets (s), instances/; attributes type, fps, duration
# types/{type}/{hash} soft links to videos brain_areas/{area}/{session}_{scan} soft links to
# sessions
#
# A hash may hold ``/``, which in names of groups is written ``%2F``. All streams have 7.5 frames
# a second; a stimulus frame leads the response it is stored with by at least 66 ms. Source: the
# description of the data set NeuroBLab/MICrONS.


PUPIL_ROWS = ("x", "y", "major_radius", "minor_radius")
_NO_AREA = "unknown"
_BEHAVIOUR = ("treadmill", "pupil", "stim_times")


def encode_hash(condition_hash: str) -> str:
    """Return a hash as the name of its group."""
    return condition_hash.replace("/", "%2F")


def decode_hash(name: str | bytes) -> str:
    """Return the hash that a name or an entry of ``condition_hashes`` means."""
    text = name.decode("utf-8") if isinstance(name, bytes) else str(name)
    return text.replace("%2F", "/")


def split_key(key: str) -> tuple[int, int] | None:
    """Return session and scan_idx of a name such as ``9_3``, None for another name."""
    found = re.fullmatch(r"(\d+)_(\d+)", key)
    return (int(found[1]), int(found[2])) if found else None


def scan_keys(file: RecordingsFile) -> list[str]:
    """Return the scans of a file, sorted by session and scan_idx."""
    with file.opened() as h5:
        found = [k for k in h5.get("sessions", ()) if split_key(k)]
        if not found:
            raise SchemaError(
                f"{file.name} has no group sessions/SESSION_SCAN, found {sorted(h5)[:8]}: it is no "
                "file of recordings"
            )
    return sorted(found, key=lambda key: split_key(key) or (0, 0))


@dataclass(frozen=True)
class Stimulus:
    """What is known of a video without reading it."""

    type: str  # monet2, Trippy or Clip
    # degrees, and seconds from the start; empty for a video without directions
    directions: np.ndarray = field(default_factory=lambda: np.empty(0))
    onsets: np.ndarray = field(default_factory=lambda: np.empty(0))
    duration: float = np.nan  # seconds; NaN where the file does not say


class Stimuli:
    """The videos of a file by their hash; each is looked at once."""

    def __init__(self, h5: Any, name: str) -> None:
        self._h5, self._name = h5, name
        types = h5.get("types", {})
        self._types = {decode_hash(v): str(t) for t in types for v in types[t]}
        self._known: dict[str, Stimulus] = {}

    def of(self, condition_hash: str, where: str) -> Stimulus:
        """Return one stimulus; `where` names the trial in messages."""
        if condition_hash not in self._known:
            self._known[condition_hash] = self._look(condition_hash, where)
        return self._known[condition_hash]

    def _look(self, condition_hash: str, where: str) -> Stimulus:
        group = self._h5.get(f"videos/{encode_hash(condition_hash)}")
        if group is None:
            raise SchemaError(
                f"{where} shows {condition_hash!r}, and videos/{encode_hash(condition_hash)} is "
                "not there: the file is incomplete, fetch it again"
            )
        kind = self._types.get(condition_hash)
        if kind == "Clip":
            return Stimulus(kind)  # nothing else to know, and there are thousands of them
        if kind is None:
            if "type" not in group.attrs:
                raise SchemaError(
                    f"{where} shows {condition_hash!r}, which is in none of types/ and has no "
                    "attribute 'type': what was shown is not known"
                )
            kind = _text(group.attrs["type"])
        if "directions" not in group:
            return Stimulus(kind)
        if "onsets" not in group:
            raise SchemaError(f"video {condition_hash!r} ({where}) has directions and no onsets")
        directions = np.asarray(group["directions"][()], dtype=np.float64).ravel()
        onsets = np.asarray(group["onsets"][()], dtype=np.float64).ravel()
        if len(directions) != len(onsets):
            raise SchemaError(
                f"video {condition_hash!r} ({where}) has {len(directions)} directions and "
                f"{len(onsets)} onsets, expected one onset for each direction"
            )
        in_order = np.isfinite(onsets).all() and (np.diff(onsets) > 0).all()
        if not in_order or not np.isfinite(directions).all():
            raise SchemaError(
                f"video {condition_hash!r} ({where}): directions must be numbers and onsets must "
                f"grow, found onsets {onsets.tolist()}"
            )
        require_likely_units(
            directions, "degree", f"video {condition_hash!r} ({where}): directions"
        )
        duration = float(group.attrs.get("duration", np.nan))
        if len(onsets) and duration <= onsets[-1]:
            raise SchemaError(
                f"video {condition_hash!r} ({where}) has a duration of {duration:g} s, and its "
                f"last direction begins at {onsets[-1]:g} s: one of them is not in seconds"
            )
        return Stimulus(kind, directions, onsets, duration)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Scan:
    """What is known of a scan without reading its streams."""

    key: str  # its name in the file, such as ``"9_3"``
    session: int  # the same as numbers
    scan_idx: int
    trials: tuple[str, ...]  # names of its trials, in order
    hashes: tuple[str, ...]  # what each trial shows
    stimuli: tuple[Stimulus, ...]
    n_frames: np.ndarray  # frames of each trial, int64
    dtype: np.dtype
    unit_id: np.ndarray  # int64, one a row of the responses
    unit_id_from: str  # ``"meta/unit_ids"`` or ``"row + 1"``
    brain_area: np.ndarray  # text, one a row


def read_scan(h5: Any, name: str, key: str, stimuli: Stimuli) -> Scan:
    """Read and check what describes a scan."""
    where = f"{name}: scan {key}"
    group = h5[f"sessions/{key}"]
    for part in ("trials", "meta", "meta/condition_hashes", "meta/area_indices"):
        if part not in group:
            raise SchemaError(
                f"{where} has no {part!r}, found {sorted(group)}: the file is incomplete or of "
                "another layout, fetch it again"
            )
    trials = sorted(group["trials"], key=lambda t: (not t.isdigit(), int(t) if t.isdigit() else t))
    hashes = tuple(decode_hash(h) for h in group["meta/condition_hashes"][()])
    if not trials:
        raise SchemaError(f"{where} has no trials: open the other scans, naming them with scans=")
    if not all(t.isdigit() for t in trials) or len(trials) != len(hashes):
        raise SchemaError(
            f"{where} has {len(trials)} trials ({', '.join(trials[:3])} ...) and {len(hashes)} "
            "condition_hashes, expected a hash for each of its numbered trials"
        )
    shapes: list[tuple[int, int]] = []
    shown, dtype = [], np.dtype(np.float32)
    for trial, condition_hash in zip(trials, hashes, strict=True):
        at = f"{where}, trial {trial}"
        one = group["trials"][trial]
        absent = [s for s in ("responses", *_BEHAVIOUR) if s not in one]
        if absent:
            raise SchemaError(f"{at} has no {absent}, found {sorted(one)}: fetch the file again")
        said = one.attrs.get("condition_hash")
        if said is not None and decode_hash(said) != condition_hash:
            raise SchemaError(
                f"{at} says that it shows {decode_hash(said)!r}, but meta/condition_hashes says "
                f"{condition_hash!r}: the trials are not in the order of the hashes"
            )
        responses = one["responses"]
        if responses.ndim != 2:
            raise SchemaError(f"{at}: responses have shape {responses.shape}, expected two axes")
        n_units = shapes[0][0] if shapes else responses.shape[0]
        if responses.shape[0] != n_units:
            raise SchemaError(
                f"{at} has {responses.shape[0]} units, the trials before it {n_units}: "
                "a scan has the same units in all its trials"
            )
        shapes.append(responses.shape)
        dtype = np.promote_types(dtype, responses.dtype)
        shown.append(stimuli.of(condition_hash, at))
    unit_id, unit_id_from, area = _units(group["meta"], where, shapes[0][0])
    session, scan_idx = split_key(key) or (-1, -1)
    return Scan(
        key=key,
        session=session,
        scan_idx=scan_idx,
        trials=tuple(trials),
        hashes=hashes,
        stimuli=tuple(shown),
        n_frames=np.array([s[1] for s in shapes], dtype=np.int64),
        dtype=dtype,
        unit_id=unit_id,
        unit_id_from=unit_id_from,
        brain_area=area,
    )


def _units(meta: Any, where: str, n_units: int) -> tuple[np.ndarray, str, np.ndarray]:
    """Return unit ids, where they come from, and areas; the counts are compared."""
    area = np.full(n_units, _NO_AREA, dtype=object)
    for name in meta["area_indices"]:
        rows = np.asarray(meta["area_indices"][name][()])
        if not len(rows):
            continue
        if rows.dtype.kind not in "iu" or not 0 <= rows.min() <= rows.max() < n_units:
            raise SchemaError(
                f"{where}: area_indices/{name} goes from {rows.min()} to {rows.max()} "
                f"({rows.dtype}), and the responses have {n_units} units: they are not rows of them"
            )
        twice = area[rows] != _NO_AREA
        if twice.any() or len(np.unique(rows)) != len(rows):
            raise SchemaError(
                f"{where}: area_indices/{name} repeats rows or holds some of another area, "
                "expected each unit once"
            )
        area[rows] = name
    counted = int((area != _NO_AREA).sum())
    if "unit_ids" in meta:
        ids = np.asarray(meta["unit_ids"][()])
        if ids.dtype.kind not in "iu" or len(ids) != n_units or len(np.unique(ids)) != n_units:
            raise SchemaError(
                f"{where}: unit_ids holds {len(ids)} values ({ids.dtype}), expected {n_units} "
                "different integers, one for each row of the responses"
            )
        return ids.astype(np.int64), "meta/unit_ids", area
    if counted != n_units:
        # Nothing else tells that row i is unit i + 1.
        raise SchemaError(
            f"{where} has {n_units} units in its responses and {counted} in area_indices, expected "
            "as many: which row is which unit is not known"
        )
    return np.arange(1, n_units + 1, dtype=np.int64), "row + 1", area


# Opening a file of recordings as a tree of lazy Datasets, one a scan.


FRAMES_PER_SECOND = 7.5
_NOTE = (
    "streams are stored at 7.5 frames a second; the stimulus frame of a response was shown at "
    "least 66 ms before it, so no latency is to be added"
)


def node_name(scan: Any) -> str:
    """Return the name of a scan's node."""
    if isinstance(scan, str):
        return scan if scan.startswith("scan_") else f"scan_{scan}"
    try:
        session, scan_idx = (int(part) for part in scan)
    except (TypeError, ValueError) as error:
        raise SchemaError(
            f"scan is {scan!r}, expected '9_3' or (9, 3): session and scan_idx"
        ) from error
    return f"scan_{session}_{scan_idx}"


def node_names(scans: Any) -> list[str]:
    """Return the names of the nodes of one scan or several."""
    if isinstance(scans, str) or not isinstance(scans, Iterable):
        return [node_name(scans)]
    listed = list(scans)
    numbers = [isinstance(s, int | np.integer) for s in listed]
    return [node_name(listed)] if listed and all(numbers) else [node_name(s) for s in listed]


def open(
    file: Any,
    scans: Iterable[Any] | None = None,
    *,
    datastack: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Open recordings lazily; only what describes scans, trials and stimuli is read.

    Parameters
    ----------
    file : str, Path or binary file
        The HDF5 file: a path, an address (``https://...``: parts are fetched as they are needed),
        or an open binary file; or a folder that `microns_xr.recordings.to_zarr` wrote.
    scans : iterable, optional
        Which ones, such as ``["9_3"]`` or ``[(9, 3)]``; all by default. Over a network, name those
        you need: each trial that is described costs a request or two.
    datastack : str, optional
        Set as scalar coordinate. Recordings are the same in every release: their labels are
        session, scan_idx and unit_id.
    storage_options : mapping, optional
        What fsspec hands to the protocol's file system.

    Returns
    -------
    xarray.DataTree
        A node ``scan_{session}_{scan_idx}`` for each scan:

        - ``responses(unit, time)``, ``treadmill(time)`` in cm/s, ``pupil(pupil_row, time)``, lazy;
          the trials follow each other along time. ``.chunk()`` makes them dask arrays.
        - along unit: ``unit_id`` int64, ``brain_area``.
        - along time: ``stim_time`` in seconds, lazy; ``trial_number``.
        - along trial (its number in the file): ``condition_hash``, ``stimulus`` (Monet2, Trippy,
          Clip), ``first_frame``, ``n_frames``, ``start_time`` in seconds, lazy (NaN for a trial
          without frames); where there are
          directions also ``direction(trial, segment)`` in degrees and ``onset``, ``offset`` in
          seconds from the start of the trial (NaN: until its end).
        - ``session`` and ``scan_idx`` as scalar coordinates.

    Raises
    ------
    SourceError
        If the file is not there, cannot be opened or is cut short, or h5py is not installed.
    SchemaError
        If it is no file of recordings, or what describes a scan does not fit together; the message
        names scan and trial.
    UnknownLabelError
        If a scan is not in the file.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings.demo import write_demo
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> scan = open(path)["scan_9_3"]
    >>> scan.responses.dims, scan.unit_id.values[:3]
    (('unit', 'time'), array([1, 2, 3]))
    """
    if isinstance(file, str | Path) and Path(file).is_dir():
        return open_recordings_zarr(file, scans)
    source = RecordingsFile(file, storage_options)
    keys = _chosen(scan_keys(source), scans, source.name)
    with source.opened() as h5:
        stimuli = Stimuli(h5, source.name)
        found = [read_scan(h5, source.name, key, stimuli) for key in keys]
    root = xr.Dataset(
        attrs={
            "source": source.name,
            "frames_per_second": FRAMES_PER_SECOND,
            "alignment": _NOTE,
            "history": f"recordings of {len(found)} scans",
        }
    )
    nodes = {node_name(scan.key): _dataset(source, scan, datastack) for scan in found}
    tree = xr.DataTree.from_dict({"/": root, **nodes})
    tree.set_close(source.close)
    return tree


def _chosen(keys: list[str], scans: Iterable[Any] | None, name: str) -> list[str]:
    if scans is None:
        return keys
    wanted = [name.removeprefix("scan_") for name in node_names(scans)]
    for key in wanted:
        if key not in keys:
            near = ", ".join(nearest_words(key, keys))
            raise UnknownLabelError(
                f"{name} has no scan {key!r}, it has {', '.join(keys)}"
                + (f"; nearest: {near}" if near else "")
            )
    return [key for key in keys if key in wanted]


def _dataset(file: RecordingsFile, scan: Scan, datastack: str | None) -> xr.Dataset:
    n_units = len(scan.unit_id)

    def stream(name: str, n_rows: int | None, dtype: Any) -> indexing.LazilyIndexedArray:
        array = TrialArray(file, scan.key, scan.trials, name, scan.n_frames, n_rows, dtype)
        return indexing.LazilyIndexedArray(array)

    first = np.cumsum(scan.n_frames) - scan.n_frames
    numbers = np.array([int(t) for t in scan.trials], dtype=np.int64)
    times = stream("stim_times", None, np.float64)
    starts = indexing.LazilyIndexedArray(StartArray(times.array))
    text: dict[str, Any] = {
        "condition_hash": (list(scan.hashes), "names the video"),
        "stimulus": ([s.type for s in scan.stimuli], "kind of video: Monet2, Trippy or Clip"),
    }
    coords: dict[str, Any] = {
        "session": ((), np.int64(scan.session), describe(FUNCTIONAL["session"])),
        "scan_idx": ((), np.int64(scan.scan_idx), describe(FUNCTIONAL["scan_idx"])),
        "unit_id": (
            "unit",
            scan.unit_id,
            {**describe(FUNCTIONAL["unit_id"]), "from": scan.unit_id_from},
        ),
        "brain_area": ("unit", scan.brain_area, {"long_name": "visual area"}),
        "pupil_row": ("pupil_row", np.array(PUPIL_ROWS, dtype=object)),
        "trial": ("trial", numbers, {"long_name": "number of the trial in its scan"}),
        "stim_time": ("time", times, {"long_name": "time of the frame", "units": "s"}),
        "trial_number": ("time", np.repeat(numbers, scan.n_frames), {"long_name": "its trial"}),
        "first_frame": ("trial", first, {"long_name": "position of its first frame along time"}),
        "n_frames": ("trial", scan.n_frames, {"long_name": "number of its frames"}),
        "start_time": ("trial", starts, {"long_name": "time of its first frame", "units": "s"}),
        **{
            name: ("trial", np.array(values, dtype=object), {"long_name": doc})
            for name, (values, doc) in text.items()
        },
        **_segments(scan),
    }
    if datastack is not None:
        coords["datastack"] = ((), np.array(datastack, dtype=object))
    pixels = {"long_name": "centre and radii of the pupil", "units": "pixel"}
    return xr.Dataset(
        {
            "responses": (
                ("unit", "time"),
                stream("responses", n_units, scan.dtype),
                {"long_name": "response of the unit, as stored"},
            ),
            "treadmill": (
                "time",
                stream("treadmill", None, np.float64),
                {"long_name": "running speed", "units": "cm/s"},
            ),
            "pupil": (
                ("pupil_row", "time"),
                stream("pupil", len(PUPIL_ROWS), np.float64),
                pixels,
            ),
        },
        coords=coords,
        attrs={"scan": scan.key, "frames_per_second": FRAMES_PER_SECOND, "alignment": _NOTE},
    )


def _segments(scan: Scan) -> dict[str, Any]:
    """Directions, onsets and offsets of every trial, NaN where a trial has fewer."""
    most = max(len(s.directions) for s in scan.stimuli)
    if not most:
        return {}
    values = np.full((3, len(scan.stimuli), most), np.nan)
    for i, stimulus in enumerate(scan.stimuli):
        n = len(stimulus.directions)
        if n:
            values[0, i, :n] = stimulus.directions
            values[1, i, :n] = stimulus.onsets
            values[2, i, :n] = [*stimulus.onsets[1:], stimulus.duration]
    seconds = {"units": "s", "long_name": "seconds from the start of the trial"}
    attrs = ({"units": "degree", "long_name": "direction of motion, as the video states it"},)
    return {
        name: (("trial", "segment"), v, a)
        for name, v, a in zip(
            ("direction", "onset", "offset"), values, (*attrs, seconds, seconds), strict=True
        )
    }


def open_video(
    recordings: Any,
    condition_hash: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Open the video of a trial, lazily.

    Parameters
    ----------
    recordings : DataTree, str, Path or binary file
        What `microns_xr.recordings.open` returned, or the file itself.
    condition_hash : str
        Which video: a value of ``condition_hash`` of a trial.
    storage_options : mapping, optional
        What fsspec hands to the protocol's file system.

    Returns
    -------
    xarray.DataArray
        ``clip(frame, row, column)``, row 0 and column 0 being first in the file; ``time(frame)`` in
        seconds where the file has it; attributes of the video such as ``type``, ``fps`` and
        ``movie_name``.

    Raises
    ------
    UnknownLabelError
        If there is no such video.
    SourceError
        If the file cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings.demo import write_demo
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
                "give the file itself to open_video"
            )
        recordings = source
    file = RecordingsFile(recordings, storage_options)
    path = f"videos/{encode_hash(condition_hash)}"
    with file.opened() as h5:
        group = h5.get(path)
        if group is None:
            near = nearest_words(condition_hash, [decode_hash(v) for v in h5.get("videos", ())])
            raise UnknownLabelError(
                f"{file.name} has no video {condition_hash!r}"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        if "clip" not in group or group["clip"].ndim != 3:
            raise SchemaError(
                f"{file.name}: video {condition_hash!r} has no clip of three axes, found "
                f"{sorted(group)}: fetch the file again"
            )
        clip = group["clip"]
        # The width is stored before the height; the screen is wider than high, which tells whether
        # a file has them the other way round.
        width_first = clip.shape[1] >= clip.shape[2]
        array = ClipArray(file, f"{path}/clip", clip.shape, clip.dtype, width_first)
        coords = {}
        if "times" in group and group["times"].shape == clip.shape[:1]:
            coords["time"] = ("frame", group["times"][()], {"units": "s"})
        attrs = {
            str(k): v.decode("utf-8") if isinstance(v, bytes) else v for k, v in group.attrs.items()
        }
    return xr.DataArray(
        indexing.LazilyIndexedArray(array),
        dims=("frame", "row", "column"),
        coords=coords,
        name="clip",
        attrs={**attrs, "condition_hash": condition_hash},
    )


# Choosing scans, units and trials of recordings, without reading them.


def scan_nodes(recordings: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the scans of recordings by the names of their nodes."""
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
            "recordings holds no scan with responses: open the file with mx.recordings.open"
        )
    return nodes


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
    """Choose scans, units and trials; nothing is read.

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
        The scans that have units and trials left, with what was asked for; ``first_frame`` counts
        along the time that is left.

    Raises
    ------
    UnknownLabelError
        If a scan, session, area, stimulus type, hash, unit or trial is in none of the scans, or
        nothing is left.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from microns_xr.recordings.demo import write_demo
    >>> from microns_xr.recordings.files import open
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5", scans=["8_5", "9_3"])
    >>> chosen = select(open(path), session=9, stimulus="Monet2")
    >>> list(chosen), set(chosen["scan_9_3"].stimulus.values)
    (['scan_9_3'], {'Monet2'})
    """
    nodes = scan_nodes(recordings)
    if scans is not None:
        names = node_names(scans)
        _require_known("scans", names, nodes)
        nodes = {name: nodes[name] for name in nodes if name in names}
    if session is not None:
        wanted = _listed(session)
        _require_known("session", wanted, {int(n["session"]) for n in nodes.values()})
        nodes = {k: n for k, n in nodes.items() if int(n["session"]) in wanted}
    units = {"brain_area": brain_area, "unit_id": unit_id}
    trials = {"stimulus": stimulus, "condition_hash": condition_hash, "trial": trial}
    kept = _masks(nodes, units, "unit"), _masks(nodes, trials, "trial")
    chosen = {
        name: _take(node, kept[0][name], kept[1][name])
        for name, node in nodes.items()
        if kept[0][name].any() and kept[1][name].any()
    }
    criteria = {"scans": scans, "session": session, **units, **trials}
    said = ", ".join(f"{k}={v!r}" for k, v in criteria.items() if v is not None)
    if not chosen:
        raise UnknownLabelError(
            f"no scan has both units and trials of {said}: each word is there, but never together"
        )
    attrs = dict(recordings.attrs)
    attrs["history"] = f"{attrs.get('history', '')}\nselect_recordings({said})".strip()
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **chosen})


def _listed(value: Any) -> list[Any]:
    if isinstance(value, bytes) or np.ndim(value) == 0:
        return [value]
    return np.asarray(value).ravel().tolist() if hasattr(value, "dtype") else list(value)


def _require_known(name: str, wanted: Iterable[Any], known: Iterable[Any]) -> None:
    known = set(known)
    for word in wanted:
        if word not in known:
            some = ", ".join(str(k) for k in sorted(known)[:20])
            near = ", ".join(nearest_words(word, known))
            raise UnknownLabelError(
                f"{name}={word!r} is in none of the scans, they have {some}"
                + (" ..." if len(known) > 20 else "")
                + (f"; nearest: {near}" if near else "")
            )


def _masks(
    nodes: dict[str, xr.Dataset], criteria: dict[str, Any], dim: str
) -> dict[str, np.ndarray]:
    """Which units, or trials, of each scan are wanted."""
    masks = {name: np.ones(node.sizes[dim], dtype=bool) for name, node in nodes.items()}
    for variable, value in criteria.items():
        if value is None:
            continue
        wanted = _listed(value)
        known: set[Any] = set()
        for name, node in nodes.items():
            values = node[variable].values
            known.update(np.unique(values).tolist())
            masks[name] &= np.isin(values, wanted)
        _require_known(variable, wanted, known)
    return masks


def _take(node: xr.Dataset, units: np.ndarray, trials: np.ndarray) -> xr.Dataset:
    if not units.all():
        node = node.isel(unit=np.flatnonzero(units))
    if not trials.all():
        node = node.isel(time=frames_of(node, trials), trial=np.flatnonzero(trials))
        n_frames = node["n_frames"].values
        first = node["first_frame"].copy(data=np.cumsum(n_frames) - n_frames)
        node = node.assign_coords(first_frame=first)
    return node


def frames_of(node: xr.Dataset, trials: np.ndarray) -> np.ndarray:
    """Positions along time of the frames of some trials."""
    first, n_frames = node["first_frame"].values[trials], node["n_frames"].values[trials]
    return np.concatenate([np.arange(f, f + n) for f, n in zip(first, n_frames, strict=True)])


_STREAMS = ("responses", "treadmill", "pupil", "stim_time")


def to_zarr(
    recordings: xr.DataTree,
    path: str | Path,
    *,
    frames: int = 256,
    units: int = 4096,
    overwrite: bool = False,
) -> Path:
    """Write recordings as a zarr store, a few chunks in memory at a time.

    Parameters
    ----------
    recordings : DataTree
        What `microns_xr.recordings.open` or `microns_xr.recordings.select` returned.
    path : str or Path
        The folder; nothing is left there if writing fails.
    frames, units : int, optional
        Sizes of a chunk.
    overwrite : bool, optional
        Replace what is there.

    Returns
    -------
    pathlib.Path
        The folder, which `microns_xr.recordings.open` opens as well.

    Raises
    ------
    StoreFormatError
        If the folder is taken, or what is to be replaced is no store of recordings.
    SchemaError
        If the size of a chunk is none.
    SourceError
        If a stream cannot be read.

    Notes
    -----
    The videos stay in the HDF5 file, whose name the store keeps.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings.demo import write_demo
    >>> from microns_xr.recordings.files import open
    >>> folder = Path(tempfile.mkdtemp())
    >>> file = write_demo(folder / "demo.h5", scans=["9_3"])
    >>> store = to_zarr(open(file), folder / "demo.zarr")
    >>> list(open(store))
    ['scan_9_3']
    """
    path = Path(path).expanduser()
    nodes = scan_nodes(recordings)
    for name, size in (("frames", frames), ("units", units)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise SchemaError(f"{name} is {size!r}, expected the size of a chunk, from 1 up")
    if path.exists() and not overwrite:
        raise StoreFormatError(f"{path} is there: choose another name, or pass overwrite=True")
    if path.exists() and not _is_replaceable(path):
        raise StoreFormatError(
            f"{path} is there and is no store of recordings, so it is not replaced: choose another "
            "name, or remove it yourself"
        )
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    attrs = {"recorded_in": recordings.attrs.get("source", "unknown"), **recordings.attrs}
    try:
        xr.Dataset(attrs=attrs).to_zarr(temporary, mode="w", consolidated=False)
        for name, node in nodes.items():
            # Chunks of one size: the trials differ in length, and zarr has no uneven chunks.
            sizes = {"time": frames, "unit": units}
            chunked = {n: node[n].variable.chunk(_sizes_of(node[n], sizes)) for n in _STREAMS}
            lazy = node.assign({n: v for n, v in chunked.items() if n in node.data_vars})
            lazy = lazy.assign_coords({n: v for n, v in chunked.items() if n in node.coords})
            lazy.to_zarr(temporary, group=name, mode="a", consolidated=False)
        if path.exists():
            # Put aside, not removed, until the new one is there.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}.old"))
            path.rename(aside / path.name)
            temporary.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _is_ours(root: xr.Dataset) -> bool:
    """Whether root attributes are those of recordings."""
    return "recorded_in" in root.attrs or {"source", "frames_per_second"} <= set(root.attrs)


def _is_replaceable(path: Path) -> bool:
    """Whether `path` is an empty folder or a store of recordings."""
    if not path.is_dir():
        return False
    try:
        return not any(path.iterdir()) or _is_ours(
            xr.open_zarr(path, consolidated=False, chunks=None)
        )
    except (OSError, ValueError, KeyError):
        return False


def _sizes_of(variable: xr.DataArray, sizes: dict[str, int]) -> dict[Any, int]:
    return {dim: sizes.get(str(dim), variable.sizes[dim]) for dim in variable.dims}


def open_recordings_zarr(path: str | Path, scans: Iterable[Any] | None = None) -> xr.DataTree:
    """Open what `microns_xr.recordings.to_zarr` wrote, lazily."""
    try:
        root = xr.open_zarr(path, consolidated=False, chunks=None)
        keys = [split_key(p.name.removeprefix("scan_")) for p in Path(path).iterdir()]
        names = [node_name(key) for key in sorted(key for key in keys if key)]
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path} cannot be opened as recordings in zarr ({error})") from error
    if not _is_ours(root):
        raise SourceError(f"{path} is no store of recordings: it does not say where they come from")
    if scans is not None:
        wanted = node_names(scans)
        for name in wanted:
            if name not in names:
                near = ", ".join(nearest_words(name, names))
                raise UnknownLabelError(
                    f"{path} has no {name!r}, it has {', '.join(names)}; nearest: {near}"
                )
        names = [name for name in names if name in wanted]
    nodes = {n: _as_written(xr.open_zarr(path, n, consolidated=False, chunks=None)) for n in names}
    # The method to_zarr of the tree itself leaves the file's name in `source`.
    recorded_in = root.attrs.get("recorded_in", root.attrs["source"])
    root = xr.Dataset(attrs={**root.attrs, "recorded_in": recorded_in, "source": str(path)})
    return xr.DataTree.from_dict({"/": root, **nodes})


def _as_written(node: xr.Dataset) -> xr.Dataset:
    """Text as object, and what describes units and trials in memory."""
    small = {}
    for name, coord in node.coords.items():
        if name not in _STREAMS:
            text = coord.dtype.kind in "OUT"
            values = np.asarray(coord.values, dtype=object if text else None)
            small[name] = xr.Variable(coord.dims, values, coord.attrs)
    return node.assign_coords(small)
