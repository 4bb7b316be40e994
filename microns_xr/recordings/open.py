"""Opening a file of recordings as a tree of lazy Datasets, one a scan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from microns_xr.errors import SchemaError, SourceError, UnknownLabelError, nearest_words
from microns_xr.recordings.arrays import ClipArray, StartArray, TrialArray
from microns_xr.recordings.handles import RecordingsFile
from microns_xr.recordings.layout import (
    PUPIL_ROWS,
    Scan,
    Stimuli,
    decode_hash,
    encode_hash,
    read_scan,
    scan_keys,
)
from microns_xr.schema import FUNCTIONAL, describe

__all__ = ["FRAMES_PER_SECOND", "node_name", "node_names", "open_recordings", "open_video"]

FRAMES_PER_SECOND = 7.5
_NOTE = (
    "streams are stored at 7.5 frames a second; the stimulus frame of a response was shown at "
    "least 66 ms before it, so no latency is to be added"
)


def node_name(scan: Any) -> str:
    """Return the name of a scan's node.

    Parameters
    ----------
    scan : str or pair of int
        ``"9_3"``, ``"scan_9_3"`` or ``(9, 3)``.

    Returns
    -------
    str
        Such as ``"scan_9_3"``.

    Examples
    --------
    >>> node_name((9, 3)), node_name("9_3")
    ('scan_9_3', 'scan_9_3')
    """
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
    """Return the names of the nodes of one scan or several.

    Parameters
    ----------
    scans : str, pair of int or iterable
        ``"9_3"``, ``(9, 3)`` or ``["9_3", (4, 7)]``.

    Returns
    -------
    list of str
        Such as ``["scan_9_3"]``.

    Examples
    --------
    >>> node_names("9_3"), node_names((9, 3)), node_names(["9_3", (4, 7)])
    (['scan_9_3'], ['scan_9_3'], ['scan_9_3', 'scan_4_7'])
    """
    if isinstance(scans, str) or not isinstance(scans, Iterable):
        return [node_name(scans)]
    listed = list(scans)
    numbers = [isinstance(s, int | np.integer) for s in listed]
    return [node_name(listed)] if listed and all(numbers) else [node_name(s) for s in listed]


def open_recordings(
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
        or an open binary file; or a folder that `recordings_to_zarr` wrote.
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
    >>> from microns_xr.recordings.demo import write_demo_recordings
    >>> path = write_demo_recordings(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> scan = open_recordings(path)["scan_9_3"]
    >>> scan.responses.dims, scan.unit_id.values[:3]
    (('unit', 'time'), array([1, 2, 3]))
    """
    if isinstance(file, str | Path) and Path(file).is_dir():
        from microns_xr.recordings.zarr import open_recordings_zarr

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
        What `open_recordings` returned, or the file itself.
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
    >>> from microns_xr.recordings.demo import write_demo_recordings
    >>> path = write_demo_recordings(Path(tempfile.mkdtemp()) / "demo.h5", scans=["9_3"])
    >>> recordings = open_recordings(path)
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
