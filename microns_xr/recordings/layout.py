"""The layout of the recordings file: where things are, and the checks on them.

::

    sessions/{session}_{scan}/trials/{i}/  responses (units x frames), treadmill (frames),
                                           pupil (4 x frames), stim_times (frames, s)
    sessions/{session}_{scan}/meta/        condition_hashes (trials), area_indices/{area} (rows),
                                           perhaps unit_ids (units)
    videos/{hash}/                         clip (frames x width x height), directions (degrees),
                                           onsets (s), instances/; attributes type, fps, duration
    types/{type}/{hash}                    soft links to videos
    brain_areas/{area}/{session}_{scan}    soft links to sessions

A hash may hold ``/``, which in names of groups is written ``%2F``. All streams have 7.5 frames a
second; a stimulus frame leads the response it is stored with by at least 66 ms.
Source: the description of the data set NeuroBLab/MICrONS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from microns_xr.errors import SchemaError
from microns_xr.functional.angle_axis import require_likely_units
from microns_xr.recordings.handles import RecordingsFile

__all__ = [
    "PUPIL_ROWS",
    "Scan",
    "Stimuli",
    "Stimulus",
    "encode_hash",
    "read_scan",
    "scan_keys",
    "split_key",
]

PUPIL_ROWS = ("x", "y", "major_radius", "minor_radius")
_NO_AREA = "unknown"
_BEHAVIOUR = ("treadmill", "pupil", "stim_times")


def encode_hash(condition_hash: str) -> str:
    """Return a hash as the name of its group.

    Parameters
    ----------
    condition_hash : str
        The hash.

    Returns
    -------
    str
        With ``%2F`` for ``/``.

    Examples
    --------
    >>> encode_hash("a/b+c"), decode_hash("a%2Fb+c")
    ('a%2Fb+c', 'a/b+c')
    """
    return condition_hash.replace("/", "%2F")


def decode_hash(name: str | bytes) -> str:
    """Return the hash that a name or an entry of ``condition_hashes`` means."""
    text = name.decode("utf-8") if isinstance(name, bytes) else str(name)
    return text.replace("%2F", "/")


def split_key(key: str) -> tuple[int, int] | None:
    """Return session and scan_idx of a name such as ``9_3``, None for another name.

    Parameters
    ----------
    key : str
        Name of a group of ``sessions``.

    Returns
    -------
    tuple of (int, int) or None
        Session and scan_idx.

    Examples
    --------
    >>> split_key("9_3"), split_key("meta")
    ((9, 3), None)
    """
    found = re.fullmatch(r"(\d+)_(\d+)", key)
    return (int(found[1]), int(found[2])) if found else None


def scan_keys(file: RecordingsFile) -> list[str]:
    """Return the scans of a file, sorted by session and scan_idx.

    Parameters
    ----------
    file : RecordingsFile
        The file.

    Returns
    -------
    list of str
        Such as ``["4_7", "5_3"]``.

    Raises
    ------
    SchemaError
        If there are none.
    """
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
    """What is known of a video without reading it.

    Attributes
    ----------
    type : str
        Monet2, Trippy or Clip.
    directions, onsets : numpy.ndarray
        Degrees, and seconds from the start; empty for a video without directions.
    duration : float
        Seconds; NaN where the file does not say.
    """

    type: str
    directions: np.ndarray = field(default_factory=lambda: np.empty(0))
    onsets: np.ndarray = field(default_factory=lambda: np.empty(0))
    duration: float = np.nan


class Stimuli:
    """The videos of a file by their hash; each is looked at once.

    Parameters
    ----------
    h5 : h5py.File
        The open file.
    name : str
        How messages call it.
    """

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
    """What is known of a scan without reading its streams.

    Attributes
    ----------
    key : str
        Its name in the file, such as ``"9_3"``.
    session, scan_idx : int
        The same as numbers.
    trials : tuple of str
        Names of its trials, in order.
    hashes : tuple of str
        What each trial shows.
    stimuli : tuple of Stimulus
        The same, described.
    n_frames : numpy.ndarray
        Frames of each trial, int64.
    dtype : numpy.dtype
        Of the responses.
    unit_id : numpy.ndarray
        int64, one a row of the responses.
    unit_id_from : str
        ``"meta/unit_ids"`` or ``"row + 1"``.
    brain_area : numpy.ndarray
        Text, one a row.
    """

    key: str
    session: int
    scan_idx: int
    trials: tuple[str, ...]
    hashes: tuple[str, ...]
    stimuli: tuple[Stimulus, ...]
    n_frames: np.ndarray
    dtype: np.dtype
    unit_id: np.ndarray
    unit_id_from: str
    brain_area: np.ndarray


def read_scan(h5: Any, name: str, key: str, stimuli: Stimuli) -> Scan:
    """Read and check what describes a scan.

    Parameters
    ----------
    h5 : h5py.File
        The open file.
    name : str
        How messages call it.
    key : str
        The scan.
    stimuli : Stimuli
        The videos.

    Returns
    -------
    Scan
        The description; no stream has been read.

    Raises
    ------
    SchemaError
        If something is absent or does not fit together; the message names scan and trial.
    """
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
