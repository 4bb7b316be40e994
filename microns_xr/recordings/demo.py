"""Small recordings files with the layout of the real file and known tuning.

Units have the session, scan_idx and unit_id of a synthetic release and respond according to its
tuning curves, so that results from trials can be compared with its tables.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from microns_xr.errors import SchemaError, import_optional, unknown_label
from microns_xr.files import write_file
from microns_xr.recordings.files import encode_hash, node_name
from microns_xr.sources.demo import DIRECTIONS, N_DIRECTIONS, SCANS, DemoSource

_STIMULUS_RATE, _EVERY = 30.0, 4  # every fourth frame is stored: 7.5 per second
_SEGMENT_S = 0.9375
_SECONDS = {"Monet2": 15.0, "Trippy": 15.0, "Clip": 10.0}
_PAUSE_S = 1.25
_CLIP_SHAPE = (32, 18)  # width x height, as stored
_AREAS = {"V1": 0.72, "LM": 0.13, "RL": 0.11, "AL": 0.04}  # fractions of the units
_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+"))


def demo_curves(source: DemoSource, session: int, scan_idx: int) -> np.ndarray:
    """Return the planted tuning curves of a scan."""
    units = source.recorded_units
    rows = np.flatnonzero((units.session == session) & (units.scan_idx == scan_idx))
    if not len(rows):
        known = [f"{s}_{i}" for s, i in SCANS]
        raise unknown_label("the synthetic release has no scan", f"{session}_{scan_idx}", known)
    n_units = int(units.unit_id[rows].max())
    rng = np.random.default_rng([source.seed, session, scan_idx])
    pref = rng.uniform(0, 360, n_units)[:, None]
    curves = 0.2 + np.exp(2 * (np.cos(np.deg2rad(DIRECTIONS - pref)) - 1))
    curves[units.unit_id[rows] - 1] = units.curves[rows]
    return curves


def write_demo(
    path: str | Path,
    source: DemoSource | None = None,
    *,
    scans: Iterable[Any] | None = None,
    n_monet: int = 6,
    n_trippy: int = 2,
    n_clip: int = 3,
    noise: float = 0.3,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a small recordings file with planted direction tuning.

    Parameters
    ----------
    path : str or Path
        The file, which is created when it is complete.
    source : DemoSource, optional
        The synthetic release whose units are recorded; by default one of the default size.
    scans : iterable, optional
        Such as ``["9_3"]``; three scans by default.
    n_monet, n_trippy, n_clip : int, optional
        Trials of each type in each scan. The first video of each type is shown in all scans, and
        twice per scan if there are at least three trials of the type.
    noise : float, optional
        Standard deviation of the noise per frame, relative to a typical preferred response of 1.
    seed : int, optional
        Seed of videos, order of trials and noise.
    overwrite : bool, optional
        Whether to replace an existing file.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    SchemaError
        If the file exists, or a number is out of range.
    UnknownLabelError
        If the synthetic release has no such scan.
    MicronsXrError
        If h5py is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings import open
    >>> path = write_demo(Path(tempfile.mkdtemp()) / "demo.h5")
    >>> list(open(path))
    ['scan_4_7', 'scan_8_5', 'scan_9_3']
    """
    h5py = import_optional("h5py", "recordings")
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise SchemaError(f"{path} exists: choose another name, or pass overwrite=True")
    counts = {"Monet2": n_monet, "Trippy": n_trippy, "Clip": n_clip}
    if min(counts.values()) < 0 or sum(counts.values()) < 1 or noise < 0:
        raise SchemaError(
            f"found {counts} and noise={noise}, expected at least one trial and no negative number"
        )
    source = DemoSource(1718) if source is None else source
    chosen = [(4, 7), (8, 5), (9, 3)] if scans is None else scans
    pairs = sorted(tuple(map(int, node_name(scan).split("_")[1:])) for scan in chosen)
    planted = {pair: demo_curves(source, *pair) for pair in pairs}

    # In memory: HDF5 crashes the interpreter if it cannot write all of a file (a full disk).
    content = io.BytesIO()
    with h5py.File(content, "w") as h5:
        writer = _Writer(h5py, h5, np.random.default_rng(seed), noise)
        shared = {kind: writer.video(kind) for kind, n in counts.items() if n}
        for (session, scan_idx), curves in planted.items():
            shown = []
            for kind, n in counts.items():
                others = [writer.video(kind) for _ in range(n - 1 - (n > 2))]
                shown += ([shared[kind]] * min(n, 1 + (n > 2)) if n else []) + others
            # The first trial is of Monet2 if there are any.
            order = 1 + writer.rng.permutation(len(shown) - 1)
            writer.scan(f"{session}_{scan_idx}", curves, [shown[i] for i in (0, *order)])
    write_file(path, content.getvalue())
    return path


class _Writer:
    """Write videos and scans to an open file."""

    def __init__(self, h5py: Any, h5: Any, rng: np.random.Generator, noise: float) -> None:
        self.h5py, self.h5, self.rng, self.noise = h5py, h5, rng, noise
        self.n_videos = 0

    def video(self, kind: str) -> str:
        """Write a video and return its hash."""
        letters = self.rng.choice(_LETTERS, 20)
        if self.n_videos % 2 == 0:
            letters[self.n_videos % 20] = "/"
        self.n_videos += 1
        condition_hash = "".join(letters)
        group = self.h5.create_group(f"videos/{encode_hash(condition_hash)}")
        n_frames = round(_SECONDS[kind] * _STIMULUS_RATE)
        times = np.arange(0, n_frames, _EVERY) / _STIMULUS_RATE
        group["clip"] = self.rng.integers(0, 256, (len(times), *_CLIP_SHAPE), dtype=np.uint8)
        group["times"] = times
        group.create_group("instances")
        attrs: dict[str, Any] = {
            "original_hash": condition_hash,
            "type": kind,
            "fps": _STIMULUS_RATE,
            "duration": _SECONDS[kind],
        }
        if kind == "Monet2":
            group["directions"] = self.rng.permutation(DIRECTIONS)
            group["onsets"] = np.arange(N_DIRECTIONS) * _SEGMENT_S
            attrs["ori_coherence"] = 2.5
        elif kind == "Trippy":
            attrs |= {"temp_freq": 2.5, "spatial_freq": 0.05}
        else:
            attrs |= {"movie_name": f"synthetic/{self.n_videos}", "short_movie_name": "synthetic"}
        group.attrs.update(attrs)
        self._link(f"types/{kind}/{encode_hash(condition_hash)}", group)
        return condition_hash

    def scan(self, key: str, curves: np.ndarray, shown: list[str]) -> None:
        """Write a scan that shows one video per trial."""
        group = self.h5.create_group(f"sessions/{key}")
        group["meta/condition_hashes"] = np.array([h.encode() for h in shown])
        group["meta/unit_ids"] = np.arange(1, len(curves) + 1)
        group["meta"].attrs["fps"] = 6.3
        bounds = np.round(np.cumsum([0.0, *_AREAS.values()]) * len(curves)).astype(int)
        for area, first, end in zip(_AREAS, bounds[:-1], bounds[1:], strict=True):
            group[f"meta/area_indices/{area}"] = np.arange(first, end)
            self._link(f"brain_areas/{area}/{key}", group)
        start = 30.0
        for i, condition_hash in enumerate(shown):
            video = self.h5[f"videos/{encode_hash(condition_hash)}"]
            times = video["times"][()]
            trial = group.create_group(f"trials/{i}")
            trial["responses"] = self._responses(curves, video, times)
            trial["treadmill"] = np.abs(self.rng.standard_normal(len(times))) * 5
            trial["pupil"] = self.rng.normal([[60.0], [40.0], [15.0], [13.0]], 1.0, (4, len(times)))
            trial["stim_times"] = start + times
            trial.attrs["condition_hash"] = condition_hash
            start += float(times[-1] + _PAUSE_S)
            self._link(f"{video.name}/instances/{key}_tr{i}", trial)

    def _responses(self, curves: np.ndarray, video: Any, times: np.ndarray) -> np.ndarray:
        if "directions" in video:
            # The small term assigns a frame exactly at an onset to the segment that begins.
            segment = np.searchsorted(video["onsets"][()], times + 1e-9, side="right") - 1
            column = np.rint(video["directions"][()] / (360 / N_DIRECTIONS)).astype(int)
            mean = curves[:, column[segment]]
        else:
            mean = np.repeat(curves.mean(axis=1, keepdims=True), len(times), axis=1)
        noisy = mean + self.noise * self.rng.standard_normal(mean.shape)
        return noisy.astype(np.float32)

    def _link(self, name: str, target: Any) -> None:
        self.h5[name] = self.h5py.SoftLink(target.name)
