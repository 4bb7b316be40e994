"""Lazy arrays over the HDF5 file: trials joined along time, and single datasets.

Only what an index asks for is read: the trials it touches, and of their rows (units) the runs that
hold the ones wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from microns_xr.errors import SchemaError, SourceError
from microns_xr.recordings.handles import RecordingsFile

__all__ = ["ClipArray", "StartArray", "TrialArray", "read_rows"]

# Rows between two wanted ones are read along when they are fewer bytes than this: a read of a page
# more costs less than another call.
_MAX_GAP_BYTES = 4096


def _positions(key: Any, size: int) -> np.ndarray:
    """Turn an int, a slice or an array of an outer index into positions."""
    if isinstance(key, slice):
        return np.arange(size)[key]
    return np.atleast_1d(np.asarray(key, dtype=np.int64))


def read_rows(dataset: Any, rows: np.ndarray, first: int, end: int) -> np.ndarray:
    """Read rows of a two-dimensional dataset, from column `first` up to `end`.

    Parameters
    ----------
    dataset : h5py.Dataset
        Two dimensions.
    rows : numpy.ndarray
        Row numbers in any order, also repeated.
    first, end : int
        Columns.

    Returns
    -------
    numpy.ndarray
        Shape (len(rows), end - first). Lists of rows are slow in HDF5, so they are read as runs.
    """
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
    """One stream of a scan, its trials joined along time, the last axis.

    Parameters
    ----------
    file : RecordingsFile
        The file.
    scan : str
        Name of the scan in the file, such as ``"9_3"``.
    trials : sequence of str
        Names of the trials, in order.
    stream : str
        Name of the dataset in each trial.
    n_frames : numpy.ndarray
        Frames of each trial.
    n_rows : int or None
        Length of the first axis; None for a stream of one value a frame.
    dtype : numpy.dtype
        What it holds.
    """

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
    """The first value of a stream in each trial; NaN for a trial without frames.

    Parameters
    ----------
    stream : TrialArray
        One value a frame.
    """

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
    """A video as frames of rows and columns, though it may be stored with the width first.

    Parameters
    ----------
    file : RecordingsFile
        The file.
    path : str
        Path of the dataset.
    shape, dtype
        As in the file: three axes, the first of them frames.
    width_first : bool
        Whether the second axis of the file is the columns.
    """

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
