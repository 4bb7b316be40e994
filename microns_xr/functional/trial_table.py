"""Responses of single trials as a matrix: which trial showed what, and which angles are compared.

Responses come in one of two forms, with any further dims (the neurons) in front:

``(..., trial, direction)``
    every direction shown equally often; what was not shown, or not recorded, is NaN.
``(..., trial)`` with a coordinate ``direction(trial)``
    any number of trials a direction, in the order they were shown. Trials whose direction is NaN
    (blanks) are left out.

``orientation`` may stand for ``direction`` in either form. NaN and infinite responses are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from microns_xr.angles import circular_difference
from microns_xr.errors import SchemaError
from microns_xr.functional.angle_axis import require_likely_units

__all__ = ["Against", "Contrast", "Trials", "make_contrast", "read_trials"]

Against = Literal["orthogonal", "opposite"]

_PERIOD = {"direction": 360.0, "orientation": 180.0}  # degrees


class Trials(NamedTuple):
    """Responses as a matrix of neurons and samples, the samples sorted by angle.

    Attributes
    ----------
    values : numpy.ndarray
        (neurons, samples), float64; NaN where missing.
    code : numpy.ndarray
        (samples,), position of the angle of each sample in `degrees`; ascending.
    trial : numpy.ndarray
        (samples,), which trial a sample is of; several samples a trial only for frames.
    film : numpy.ndarray or None
        (samples,), position along ``trial`` where several directions were shown in each.
    degrees : numpy.ndarray
        (angles,), ascending.
    angle : xarray.DataArray
        The same angles in the units they came in, with their attributes.
    like : xarray.DataArray
        Zeros over the neurons, with all their coordinates.
    """

    values: np.ndarray
    code: np.ndarray
    trial: np.ndarray
    film: np.ndarray | None
    degrees: np.ndarray
    angle: xr.DataArray
    like: xr.DataArray

    def labelled(self, values: np.ndarray, *dims: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Give (neurons, ...) the dims of the neurons again."""
        shape = (*self.like.shape, *values.shape[1:])
        return (*map(str, self.like.dims), *dims), values.reshape(shape)

    def blocks(self) -> Iterator[tuple[np.ndarray, Trials]]:
        """Neurons that miss the same samples, and their responses without those samples.

        Neurons whose responses are all equal are left out: nothing can be preferred.

        What is drawn at random for a block does not depend on the other blocks, so that a neuron's
        result does not depend on which other neurons are there.
        """
        present = np.isfinite(self.values)
        if not present.size:
            return
        if (present == present[:1]).all():
            patterns, owner = present[:1], np.zeros(len(present), dtype=np.int64)
        else:
            packed, owner = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
            patterns = np.unpackbits(packed, axis=1, count=present.shape[1]).astype(bool)
        order = np.argsort(owner.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(owner.ravel(), minlength=len(patterns)))
        for pattern, rows in zip(patterns, np.split(order, ends[:-1]), strict=True):
            values = self.values[rows][:, pattern]
            varied = np.ptp(values, axis=1) > 0 if pattern.any() else np.zeros(len(rows), bool)
            if varied.any():
                complete = self._replace(
                    values=np.ascontiguousarray(values[varied]),
                    code=self.code[pattern],
                    trial=self.trial[pattern],
                    film=None if self.film is None else self.film[pattern],
                )
                yield rows[varied], complete


def read_trials(responses: xr.DataArray, *, frames: bool = False) -> Trials:
    """Bring either form of responses into a matrix, or raise `SchemaError` with what is wrong."""
    if not isinstance(responses, xr.DataArray):
        raise SchemaError(f"responses is a {type(responses).__name__}, expected a DataArray")
    if responses.dtype.kind not in "biuf":
        raise SchemaError(f"responses has dtype {responses.dtype}, expected numbers")
    found = [n for n in _PERIOD if n in responses.dims or n in responses.coords]
    if len(found) != 1 or "trial" not in responses.dims:
        raise SchemaError(
            f"responses has dims {responses.dims} and coordinates {list(responses.coords)}, "
            "expected (..., trial, direction), or (..., trial) with a coordinate direction(trial); "
            "orientation may stand for direction"
        )
    if ("frame" in responses.dims) != frames:
        raise SchemaError(
            "responses has no dim 'frame', which a frame-level test needs"
            if frames
            else "responses has a dim 'frame', and frames of one trial are no samples of their "
            "own: average them first with responses.mean('frame')"
        )
    name = found[0]
    if name not in responses.coords:
        raise SchemaError(f"responses has no coordinate {name!r} that says the angle shown")
    coord = responses.coords[name]
    samples = ["trial"] if coord.dims == ("trial",) else [name, "trial"]
    if coord.dims not in (("trial",), (name,)):
        raise SchemaError(
            f"{name} has dims {coord.dims}, expected ({name!r},) or ('trial',): neurons of scans "
            "with different trials are given one scan at a time"
        )
    lead = [d for d in responses.dims if d not in (*samples, "frame")]
    ordered = responses.transpose(*lead, *samples, *(["frame"] if frames else []))
    like = xr.zeros_like(
        ordered.isel({d: 0 for d in ordered.dims if d not in lead}, drop=True), dtype=np.float64
    )
    # A coordinate that had several values a neuron has none.
    like = like.drop_vars([n for n in like.coords if responses.coords[n].ndim > like[n].ndim])
    n_trials = int(np.prod([ordered.sizes[d] for d in samples]))
    n_frames = ordered.sizes["frame"] if frames else 1
    values = np.array(ordered.values, dtype=np.float64).reshape(like.size, n_trials * n_frames)
    values[~np.isfinite(values)] = np.nan

    shown = np.asarray(coord.values, dtype=np.float64)
    degrees = np.mod(shown * (360.0 / _turn(coord, name)), _PERIOD[name])
    if len(samples) == 2:
        degrees = np.repeat(degrees, ordered.sizes["trial"])
    degrees = np.repeat(degrees, n_frames)
    rounded = np.mod(np.round(degrees, 6), _PERIOD[name])
    # An angle that was shown stays, though no response to it may be there.
    distinct = np.unique(rounded[np.isfinite(rounded)])
    if not len(distinct):
        raise SchemaError(f"responses has no trial with a {name}")
    keep = np.flatnonzero(np.isfinite(rounded) & np.isfinite(values).any(axis=0))
    keep = keep[np.argsort(rounded[keep], kind="stable")]
    code = np.searchsorted(distinct, rounded[keep])
    angle = xr.DataArray(
        distinct * (_turn(coord, name) / 360.0),
        dims=name,
        name=name,
        attrs={"units": "degree", **coord.attrs},
    )
    trial = np.repeat(np.arange(n_trials), n_frames)[keep]
    film = trial % ordered.sizes["trial"] if len(samples) == 2 else None
    return Trials(values[:, keep], code, trial, film, distinct, angle, like)


def _turn(coord: xr.DataArray, name: str) -> float:
    """Return a whole turn in the units of an angle: degrees where it does not say."""
    units = coord.attrs.get("units")
    if units not in (None, "degree", "radian"):
        raise SchemaError(f"{name} has units {units!r}, expected 'degree' or 'radian'")
    values = np.asarray(coord.values, dtype=np.float64)
    if units is not None:
        require_likely_units(values[np.isfinite(values)], units, name)
    largest = np.nanmax(np.abs(values), initial=0.0)
    if units is None and 0 < largest <= 2 * np.pi + 1e-6:
        raise SchemaError(
            f"{name} goes up to {largest:g} and does not say its units: set "
            f"responses[{name!r}].attrs['units'] to 'degree' or 'radian'"
        )
    return 2 * np.pi if units == "radian" else 360.0


class Contrast(NamedTuple):
    """Which angles are compared with which.

    Attributes
    ----------
    against : str
        ``orthogonal`` or ``opposite``.
    group : numpy.ndarray
        (angles,), what each angle counts for when the preferred one is chosen: itself, or its
        orientation.
    degrees : numpy.ndarray
        (groups,).
    period : float
        Of the groups, in degrees.
    reference : numpy.ndarray
        (angles,), what each angle counts for as the other one: its orientation where against
        orthogonal, itself where against opposite.
    n_references : int
        How many there are.
    other : numpy.ndarray
        (groups,), the reference 90° (180°) away from each group; -1 where that was not shown.
    """

    against: Against
    group: np.ndarray
    degrees: np.ndarray
    period: float
    reference: np.ndarray
    n_references: int
    other: np.ndarray

    @property
    def name(self) -> str:
        """What the preferred angle is called."""
        return "pref_ori" if self.period == 180 else "pref_dir"

    def labels(self, trials: Trials, chosen: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Angles of chosen groups (-1: NaN) in the units of the trials, and their attributes."""
        turn = _turn(trials.angle, str(trials.angle.name))
        angle = np.where(chosen >= 0, self.degrees[chosen] * (turn / 360.0), np.nan)
        kind = "orientation" if self.name == "pref_ori" else "direction"
        attrs = {
            "units": "radian" if turn < 360 else "degree",
            "period": self.period * turn / 360.0,
            "long_name": f"preferred {kind}",
        }
        if "angle_convention" in trials.angle.attrs:
            attrs["angle_convention"] = trials.angle.attrs["angle_convention"]
        return angle, attrs


def _fold(degrees: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct angles of a shorter circle, and which of them each angle is."""
    folded = np.mod(np.round(np.mod(degrees, period), 6), period)
    distinct, index = np.unique(folded, return_inverse=True)
    return distinct, index.ravel()


def make_contrast(trials: Trials, against: Against, pool_directions: bool = False) -> Contrast:
    """Pair the angles, or raise `SchemaError` if none has its counterpart."""
    name = str(trials.angle.name)
    if against not in ("orthogonal", "opposite"):
        raise SchemaError(f"against is {against!r}, expected 'orthogonal' or 'opposite'")
    if against == "opposite" and name == "orientation":
        raise SchemaError("against='opposite' needs directions, found orientations")
    if against == "opposite" and pool_directions:
        raise SchemaError("pool_directions=True would pool what against='opposite' compares")
    circle, shift = (180.0, 90.0) if against == "orthogonal" else (360.0, 180.0)
    period = 180.0 if pool_directions or name == "orientation" else 360.0
    degrees, group = _fold(trials.degrees, period)
    references, reference = _fold(trials.degrees, circle)
    away = np.abs(circular_difference(references[None, :], degrees[:, None] + shift, circle))
    other = np.where(away.min(axis=1) < 1e-3, away.argmin(axis=1), -1)
    if (other < 0).all():
        raise SchemaError(
            f"no {name} of {trials.degrees.tolist()} degrees has one {shift:g} degrees away to "
            f"be compared with (against={against!r})"
        )
    return Contrast(against, group, degrees, period, reference, len(references), other)


def seed_number(seed: int | np.random.Generator) -> int:
    """Return the number all random draws of a call start from."""
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**62))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise SchemaError(f"seed is {seed!r}, expected a whole number from 0 or a Generator")
    return int(seed)


def angle_weights(counts: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """Return (angles,), what a sample of each angle counts in the mean of its group.

    The mean of an orientation is the mean of its two directions, as ``rate_ori`` is of
    ``rate_dir``, also where one was shown more often.
    """
    shown = np.bincount(index[counts > 0], minlength=n)[index]
    return np.divide(1.0, counts * shown, where=counts > 0, out=np.zeros(len(counts)))


def _means(trials: Trials, index: np.ndarray, n: int, use: np.ndarray) -> np.ndarray:
    """Return (neurons, groups), 0 for a group without a sample."""
    counts = np.bincount(trials.code[use], minlength=len(trials.degrees))
    weights = np.zeros((len(trials.code), n))
    at = np.flatnonzero(use)
    weights[at, index[trials.code[at]]] = angle_weights(counts, index, n)[trials.code[at]]
    return trials.values @ weights


def choose(trials: Trials, contrast: Contrast, use: np.ndarray, can: np.ndarray) -> np.ndarray:
    """Return the group with the largest mean among those that `can`, of which there are some.

    Of several equal means the one of the lowest angle is taken.
    """
    means = _means(trials, contrast.group, len(contrast.degrees), use)
    among = np.where(can, means, -np.inf)
    close = rounding(trials.values)[:, None]
    return (among >= among.max(axis=1, keepdims=True) - close).argmax(axis=1)


def difference_of(
    trials: Trials, contrast: Contrast, use: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Return (neurons,), the mean of the chosen group minus that of its counterpart."""
    at = np.arange(len(chosen))
    preferred = _means(trials, contrast.group, len(contrast.degrees), use)[at, chosen]
    others = _means(trials, contrast.reference, contrast.n_references, use)
    return preferred - others[at, contrast.other[chosen]]


def rounding(values: np.ndarray) -> np.ndarray:
    """Differences of means below this are rounding."""
    return 1e-12 * np.abs(values).max(axis=1, initial=0.0)


def group_counts(
    trials: Trials, contrast: Contrast, use: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (groups,), how many samples each group has, and its counterpart (0 if not shown)."""
    code = trials.code[use]
    counts = np.bincount(contrast.group[code], minlength=len(contrast.degrees))
    others = np.bincount(contrast.reference[code], minlength=contrast.n_references)
    return counts, np.where(contrast.other >= 0, others[contrast.other], 0)


def comparable(trials: Trials, contrast: Contrast, use: np.ndarray, least: int = 1) -> np.ndarray:
    """Return (groups,), whether a group and its counterpart have so many of the samples."""
    counts, others = group_counts(trials, contrast, use)
    return (counts >= least) & (others >= least)


def make_folds(trials: Trials, n_folds: int, seed: int) -> np.ndarray:
    """Return (samples,), the fold of each; each angle's trials are dealt out at random."""
    rng = np.random.default_rng(seed)
    distinct, first, inverse = np.unique(trials.trial, return_index=True, return_inverse=True)
    order = np.lexsort([rng.random(len(distinct)), trials.code[first]])
    code = trials.code[first][order]
    starts = np.searchsorted(code, code)
    fold = np.empty(len(distinct), dtype=np.int64)
    fold[order] = (np.arange(len(order)) - starts) % n_folds
    return fold[inverse.ravel()]


def spread(trials: Trials, use: np.ndarray) -> np.ndarray:
    """Return (neurons,), the standard deviation within angles, pooled; NaN without any."""
    values, code = trials.values[:, use], trials.code[use]
    counts = np.bincount(code, minlength=len(trials.degrees))
    freedom = int(np.maximum(counts - 1, 0).sum())
    if not freedom:
        return np.full(len(values), np.nan)
    total = np.zeros(len(values))
    for angle in np.flatnonzero(counts > 1):
        total += values[:, code == angle].var(axis=1) * counts[angle]
    return np.sqrt(total / freedom)
