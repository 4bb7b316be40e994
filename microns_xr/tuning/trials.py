"""Is a neuron tuned? Tests of preferred against orthogonal or opposite responses.

The preferred angle is chosen from the data. Testing it on the trials it was chosen from rejects far
too often, because the largest of several means is large by chance. Both methods of `test`
account for the choice; `frame_level_test` shows what happens otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import xarray as xr
from scipy.special import ndtr
from scipy.stats import false_discovery_control, rankdata

from microns_xr.angles import difference, require_likely_units
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history
from microns_xr.tuning.fits import require_free_names

# Responses of single trials as a matrix: which trial showed what, and which angles are compared.
#
# Responses come in one of two forms, with any further dims (the neurons) in front:
#
# ``(..., trial, direction)`` every direction shown equally often; what was not shown, or not
# recorded, is NaN. ``(..., trial)`` with a coordinate ``direction(trial)`` any number of trials a
# direction, in the order they were shown. Trials whose direction is NaN (blanks) are left out.
#
# ``orientation`` may stand for ``direction`` in either form. NaN and infinite responses are
# missing.


Against = Literal["orthogonal", "opposite"]

_PERIOD = {"direction": 360.0, "orientation": 180.0}  # degrees


class Trials(NamedTuple):
    """Responses as a matrix of neurons and samples, the samples sorted by angle."""

    values: np.ndarray  # (neurons, samples), float64; NaN where missing
    # (samples,), position of the angle of each sample in `degrees`; ascending
    code: np.ndarray
    # (samples,), which trial a sample is of; several samples a trial only for frames
    trial: np.ndarray
    # (samples,), position along ``trial`` where several directions were shown in each
    film: np.ndarray | None
    degrees: np.ndarray
    # the same angles in the units they came in, with their attributes
    angle: xr.DataArray
    like: xr.DataArray  # zeros over the neurons, with all their coordinates

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
    """Which angles are compared with which."""

    against: Against
    # (angles,), what each angle counts for when the preferred one is chosen: itself, or its
    # orientation
    group: np.ndarray
    degrees: np.ndarray
    period: float  # of the groups, in degrees
    # (angles,), what each angle counts for as the other one: its orientation where against
    # orthogonal, itself where against opposite
    reference: np.ndarray
    n_references: int  # how many there are
    # (groups,), the reference 90° (180°) away from each group; -1 where that was not shown
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
    away = np.abs(difference(references[None, :], degrees[:, None] + shift, circle))
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


# Rank tests of many neurons at once: rank sums, exact where samples are few, and signed ranks.


# Up to so many samples in both together the distribution is counted out, ties included.
EXACT = 40


def rank_sum(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test by Wilcoxon's rank sum (Mann-Whitney) whether `first` is larger.

    Mann and Whitney, Annals of Mathematical Statistics 18, 1947; with ties: Lehmann,
    Nonparametrics, 1975, section 1.4.
    """
    n, size = first.shape[1], first.shape[1] + second.shape[1]
    ranks = rankdata(np.concatenate([first, second], axis=1), axis=1)
    total = ranks[:, :n].sum(axis=1)
    statistic = total - n * (n + 1) / 2
    if size <= EXACT:
        return statistic, _exact_tail(np.rint(2 * ranks).astype(np.int64), n)
    variance = n * (size - n) / 12 * (size + 1 - _ties(ranks) / (size * (size - 1)))
    return statistic, _normal_tail(statistic - n * (size - n) / 2 - 0.5, variance)


def _exact_tail(doubled: np.ndarray, n: int) -> np.ndarray:
    """Share of the choices of n among a row's doubled ranks with at least the first n's sum."""
    observed = doubled[:, :n].sum(axis=1)
    patterns, owner = np.unique(np.sort(doubled, axis=1), axis=0, return_inverse=True)
    owner = owner.ravel()
    p = np.empty(len(doubled))
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=len(patterns)))
    for pattern, rows in zip(patterns, np.split(order, ends[:-1]), strict=True):
        # ways[k, s]: subsets of k of the ranks seen so far that sum to s
        ways = np.zeros((n + 1, int(pattern[-n:].sum()) + 1))
        ways[0, 0] = 1
        for rank in pattern:
            ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
        tail = np.cumsum(ways[n, ::-1])[::-1]
        p[rows] = tail[observed[rows]] / tail[0]
    return p


def _ties(ranks: np.ndarray) -> np.ndarray:
    """Sum of t^3 - t over the groups of t equal values of each row."""
    low = rankdata(ranks, method="min", axis=1)
    high = rankdata(ranks, method="max", axis=1)
    return (np.square(high - low + 1) - 1).sum(axis=1)


def _normal_tail(excess: np.ndarray, variance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(variance)
    return ndtr(-np.divide(excess, sd, where=sd > 0, out=np.full(len(sd), -np.inf)))


def signed_rank(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test by Wilcoxon's signed rank of pairs whether `first` is larger.

    Wilcoxon, Biometrics Bulletin 1, 1945.
    """
    apart = first - second
    differ = apart != 0
    # Pairs that do not differ come first and their ranks are taken off the others'.
    zeros = (~differ).sum(axis=1)
    ranks = rankdata(np.abs(apart), axis=1)
    ranks = np.where(differ, ranks - zeros[:, None], 0)
    statistic = np.where(apart > 0, ranks, 0).sum(axis=1)
    n = differ.sum(axis=1)
    ties = _ties(np.abs(apart)) - (zeros.astype(np.float64) ** 3 - zeros)
    variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48
    return statistic, _normal_tail(statistic - n * (n + 1) / 4, variance)


# Permutations of the angles of trials: how often the largest mean stands out as far.


def permuted_orders(
    trials: Trials, contrast: Contrast, n_permutations: int, seed: int, within_trial: bool = False
) -> np.ndarray:
    """Orders of the samples that are equally likely if the preference is chance."""
    axis = np.zeros(len(trials.code), dtype=np.int64)
    if contrast.against == "opposite":
        group = contrast.group[trials.code]
        other = contrast.other[group]
        axis = np.where(other < 0, group, np.minimum(group, other))
    if within_trial and trials.film is not None:
        axis = axis + trials.film * len(contrast.degrees)
    places = np.argsort(axis, kind="stable")
    keys = np.random.default_rng(seed).random((n_permutations, len(axis))) + axis
    orders = np.empty((n_permutations + 1, len(axis)), dtype=np.int64)
    orders[0] = np.arange(len(axis))
    orders[1:, places] = np.argsort(keys, axis=1)
    return orders


def count_as_large(
    trials: Trials, contrast: Contrast, orders: np.ndarray, can: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Preferred minus other mean of each neuron, and in how many permutations it is as large.

    In each permutation the preferred group is chosen anew: what choosing it from the same trials
    adds to the difference is then in both.
    """
    counts = np.bincount(trials.code, minlength=len(trials.degrees))
    n = len(trials.values)
    chosen, difference = np.empty(n, dtype=np.int64), np.empty(n)
    count = np.empty(n, dtype=np.int64)
    _permute(
        trials.values,
        orders,
        np.cumsum(counts),
        contrast.group,
        angle_weights(counts, contrast.group, len(contrast.degrees)),
        contrast.reference,
        angle_weights(counts, contrast.reference, contrast.n_references),
        contrast.other,
        can,
        rounding(trials.values),
        chosen,
        difference,
        count,
    )
    return chosen, difference, count


@numba.njit(nogil=True, cache=True)
def _permute(  # type: ignore[no-untyped-def]
    values,
    orders,
    ends,
    group,
    group_weights,
    reference,
    reference_weights,
    other,
    can,
    close,
    chosen,
    difference,
    count,
):
    means = np.empty(other.size)
    others = np.empty(reference.max() + 1)
    for i in range(values.shape[0]):
        row = values[i]
        count[i] = 0
        for b in range(orders.shape[0]):
            order = orders[b]
            means[:] = 0.0
            others[:] = 0.0
            start = 0
            for angle in range(ends.size):
                total = 0.0
                for place in range(start, ends[angle]):
                    total += row[order[place]]
                start = ends[angle]
                means[group[angle]] += total * group_weights[angle]
                others[reference[angle]] += total * reference_weights[angle]
            largest = -np.inf
            for g in range(other.size):
                if can[g] and means[g] > largest:
                    largest = means[g]
            best = 0
            while not can[best] or means[best] < largest - close[i]:
                best += 1
            apart = means[best] - others[other[best]]
            if b == 0:
                chosen[i] = best
                difference[i] = apart
            elif apart >= difference[i] - close[i]:
                count[i] += 1


# Mean and standard error over trials, and the preferred angle where it was not chosen.


def trial_statistics(responses: xr.DataArray) -> xr.Dataset:
    """Mean, standard error and number of trials by direction.

    Parameters
    ----------
    responses : xarray.DataArray
        One number a trial: ``(..., trial, direction)``, or ``(..., trial)`` with a coordinate
        ``direction(trial)``; ``orientation`` may stand for ``direction``. NaN and infinite values
        are missing, as are trials whose direction is NaN.

    Returns
    -------
    xarray.Dataset
        ``rate(..., direction)``, NaN without a trial; ``rate_error(..., direction)``, its standard
        error, NaN with fewer than two; ``n_trials(..., direction)``, int64. Directions ascend,
        within one turn.

    Raises
    ------
    SchemaError
        If the dims are others, or the angles do not say what units they are in.

    Notes
    -----
    ``rate_error = s / sqrt(n)``, with ``s`` the standard deviation with ``n - 1`` degrees of
    freedom.

    Examples
    --------
    >>> responses = xr.DataArray([[1.0, 3.0, 5.0]], dims=("nucleus_id", "trial"),
    ...     coords={"direction": ("trial", [0, 0, 90])})
    >>> trial_statistics(responses).rate.values, trial_statistics(responses).rate_error.values
    (array([[2., 5.]]), array([[ 1., nan]]))
    """
    trials = read_trials(responses)
    require_free_names(trials.like, ["rate", "rate_error", "n_trials"], "responses")
    shape = (len(trials.values), len(trials.degrees))
    rate, error = np.full(shape, np.nan), np.full(shape, np.nan)
    n_trials = np.zeros(shape, dtype=np.int64)
    for angle in range(shape[1]):
        values = trials.values[:, trials.code == angle]
        present = np.isfinite(values)
        n = present.sum(axis=1)
        mean = np.divide(
            np.where(present, values, 0).sum(axis=1), n, where=n > 0, out=rate[:, angle]
        )
        squares = np.where(present, np.square(values - mean[:, None]), 0).sum(axis=1)
        variance = np.divide(squares, (n - 1) * n, where=n > 1, out=np.full(len(n), np.nan))
        error[:, angle] = np.sqrt(variance)
        n_trials[:, angle] = n
    name = str(trials.angle.name)
    units = {"units": responses.attrs["units"]} if "units" in responses.attrs else {}
    result = xr.Dataset(
        {
            "rate": (*trials.labelled(rate, name), {"long_name": "mean over trials", **units}),
            "rate_error": (
                *trials.labelled(error, name),
                {"long_name": "standard error of the mean over trials", **units},
            ),
            "n_trials": (*trials.labelled(n_trials, name), {"long_name": "number of trials"}),
        },
        coords={**trials.like.coords, name: trials.angle},
    )
    return add_history(result, "trial_statistics", source=responses)


def cross_validate(
    responses: xr.DataArray,
    against: Against = "orthogonal",
    *,
    pool_directions: bool = False,
    n_folds: int = 2,
    seed: int | np.random.Generator = 0,
) -> xr.Dataset:
    """Preferred angle of some trials, and what the others say of it.

    The trials of each direction are dealt out at random into `n_folds` equal folds. For each fold
    the preferred angle is that of the largest mean over the *other* folds; preferred and orthogonal
    (opposite) responses are then compared within the fold, which had no part in the choice, so
    that the effect of a neuron without tuning is 0 on average.

    Parameters
    ----------
    responses : xarray.DataArray
        See `trial_statistics`.
    against : {"orthogonal", "opposite"}, optional
        The preferred direction (orientation) against both directions 90° away from it, or against
        that 180° away.
    pool_directions : bool, optional
        Whether, against ``orthogonal``, the two directions of an orientation are pooled: the
        preferred angle then is an orientation.
    n_folds : int, optional
        2 chooses on each half and tests on the other. With more, the choices share trials and agree
        more, for that reason alone.
    seed : int or numpy.random.Generator, optional
        Where the random numbers start.

    Returns
    -------
    xarray.Dataset
        ``pref_dir`` (``pref_ori`` of orientations), the angle of the largest mean over all trials;
        ``pref_dir_fold(..., fold)``; ``agreement``, the length of the mean resultant of the angles
        of the folds, 1 if all are equal; ``difference``, mean over folds of preferred minus other
        response where they were not chosen; ``effect``, that in standard deviations within a
        direction; ``testable``, False where too many trials are missing or all responses are
        equal, and the rest is NaN.

    Raises
    ------
    SchemaError
        As `trial_statistics`; if no angle has its counterpart, or `n_folds` is less than 2.

    Notes
    -----
    Among angles of equal means the lowest is preferred. Only angles whose counterpart was shown can
    be. The mean of an orientation is the mean over its two directions.
    Mean resultant length ``|mean exp(2 pi i x / period)|``: Fisher, Statistical Analysis of
    Circular Data, 1993, section 2.3.

    Examples
    --------
    >>> responses = xr.DataArray([[[2.0, 1.0], [4.0, 1.0], [2.0, 1.0], [4.0, 1.0]]],
    ...     dims=("unit", "trial", "orientation"), coords={"orientation": [0, 90]})
    >>> halves = cross_validate(responses)
    >>> halves.pref_ori_fold.values, halves.agreement.values, halves.difference.values
    (array([[0., 0.]]), array([1.]), array([2.]))
    """
    if isinstance(n_folds, bool) or not isinstance(n_folds, int) or n_folds < 2:
        raise SchemaError(f"n_folds is {n_folds!r}, expected a whole number from 2")
    trials = read_trials(responses)
    contrast = make_contrast(trials, against, pool_directions)
    start = seed_number(seed)
    n = len(trials.values)
    chosen = np.full(n, -1)
    chosen_fold = np.full((n, n_folds), -1)
    difference, effect = np.full(n, np.nan), np.full(n, np.nan)
    for rows, block in trials.blocks():
        fold = make_folds(block, n_folds, start)
        can = comparable(block, contrast, np.ones(len(fold), dtype=bool), least=n_folds)
        for f in range(n_folds):
            can &= comparable(block, contrast, fold == f) & comparable(block, contrast, fold != f)
        if not can.any():
            continue
        apart = np.empty((len(rows), n_folds))
        for f in range(n_folds):
            choice = choose(block, contrast, fold != f, can)
            apart[:, f] = difference_of(block, contrast, fold == f, choice)
            chosen_fold[rows, f] = choice
        everything = np.ones(len(fold), dtype=bool)
        chosen[rows] = choose(block, contrast, everything, can)
        difference[rows] = apart.mean(axis=1)
        sd = spread(block, everything)
        effect[rows] = np.divide(difference[rows], sd, where=sd > 0, out=np.full(len(rows), np.nan))
    testable = chosen >= 0
    angle, attrs = contrast.labels(trials, chosen)
    folds, _ = contrast.labels(trials, chosen_fold)
    with np.errstate(invalid="ignore"):
        turns = np.exp(2j * np.pi * folds / attrs["period"])
    name = contrast.name
    variables: dict[str, Any] = {
        name: (*trials.labelled(angle), attrs),
        f"{name}_fold": (*trials.labelled(folds, "fold"), attrs),
        "agreement": trials.labelled(np.abs(turns.mean(axis=1))),
        "difference": trials.labelled(difference),
        "effect": trials.labelled(effect),
        "testable": trials.labelled(testable),
    }
    require_free_names(trials.like, variables, "responses")
    result = xr.Dataset(
        variables,
        coords=trials.like.coords,
        attrs={
            "against": against,
            "pool_directions": int(pool_directions),
            "n_folds": n_folds,
            "seed": start,
        },
    )
    entry = f"tuning.cross_validate(against={against!r}, n_folds={n_folds}, seed={start})"
    return add_history(result, entry, source=responses)


def benjamini_hochberg(p: xr.DataArray) -> xr.DataArray:
    """Adjust p-values so that a threshold on them bounds the share of false discoveries.

    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995, as
    `scipy.stats.false_discovery_control` computes it; it holds for independent and for positively
    dependent tests.
    """
    if not isinstance(p, xr.DataArray) or p.dtype.kind not in "biuf":
        raise SchemaError(f"p is {type(p).__name__}, expected a DataArray of p-values")
    values = np.asarray(p.values, dtype=np.float64)
    tested = ~np.isnan(values)
    if ((values[tested] < 0) | (values[tested] > 1)).any():
        raise SchemaError(f"{p.name or 'p'} has values outside 0 to 1, expected p-values")
    q = np.full(values.shape, np.nan)
    if tested.any():
        q[tested] = false_discovery_control(values[tested], method="bh")
    return p.copy(data=q).rename("q").assign_attrs(long_name="p, Benjamini-Hochberg adjusted")


class _Found:
    """What a test says of each neuron, filled block by block."""

    def __init__(self, n: int) -> None:
        self.p, self.statistic, self.difference, self.effect = (np.full(n, np.nan) for _ in "psde")
        self.chosen = np.full(n, -1)
        self.n_preferred, self.n_other = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def dataset(
        self, trials: Trials, contrast: Contrast, responses: xr.DataArray, **attrs: Any
    ) -> xr.Dataset:
        tested = np.isfinite(self.p)
        angle, angle_attrs = contrast.labels(trials, np.where(tested, self.chosen, -1))
        variables: dict[str, Any] = {
            "p": (*trials.labelled(self.p), {"long_name": f"p of the {attrs['test']} test"}),
            "statistic": trials.labelled(self.statistic),
            contrast.name: (*trials.labelled(angle), angle_attrs),
            "difference": trials.labelled(np.where(tested, self.difference, np.nan)),
            "effect": trials.labelled(np.where(tested, self.effect, np.nan)),
            "n_preferred": trials.labelled(np.where(tested, self.n_preferred, 0)),
            "n_other": trials.labelled(np.where(tested, self.n_other, 0)),
            "testable": trials.labelled(tested),
        }
        require_free_names(trials.like, [*variables, "q"], "responses")
        dims, p, _ = variables["p"]
        q = benjamini_hochberg(xr.DataArray(p, dims=dims))
        variables["q"] = (dims, q.values, q.attrs)
        result = xr.Dataset(variables, coords=trials.like.coords, attrs=attrs)
        said = ", ".join(f"{k}={v!r}" for k, v in attrs.items())
        return add_history(result, f"tested with {said}", source=responses)


def test(
    responses: xr.DataArray,
    against: Against = "orthogonal",
    *,
    method: Literal["permutation", "wilcoxon"] = "permutation",
    pool_directions: bool = False,
    n_permutations: int = 1000,
    within_trial: bool = False,
    seed: int | np.random.Generator = 0,
) -> xr.Dataset:
    """Test preferred against orthogonal or opposite responses, with trials as samples.

    Parameters
    ----------
    responses : xarray.DataArray
        One number a trial: ``(..., trial, direction)``, or ``(..., trial)`` with a coordinate
        ``direction(trial)``; see `microns_xr.tuning.trials.trial_statistics`. Frames are no
        samples: average them within a trial.
    against : {"orthogonal", "opposite"}, optional
        ``orthogonal``: the preferred direction (orientation) against what is 90° away from it, both
        directions of it together. ``opposite``, for direction selectivity: the preferred direction
        against that 180° away.
    method : {"permutation", "wilcoxon"}, optional
        ``permutation``: the directions of the trials are permuted, and in each permutation the
        preferred angle is chosen anew; p is the share of permutations, the data themselves
        included, whose difference of means is as large. Uses all trials. Against ``opposite``
        trials change places only within their axis, because tuning to an axis is no direction
        selectivity.
        ``wilcoxon``: half of the trials of each direction, at random, choose the preferred angle,
        and the other half is tested by the rank sum, one-sided. Trials of two directions are not
        pairs, hence not the signed rank. It is robust to outliers, but has half of the trials.
    pool_directions : bool, optional
        Whether, against ``orthogonal``, the two directions of an orientation are pooled on the
        preferred side too. This is stronger for a neuron that responds equally to both, and weak
        for one of a single direction, whose preferred orientation then is half silent.
    n_permutations : int, optional
        p is at least ``1 / (n_permutations + 1)``.
    within_trial : bool, optional
        Whether only responses of the same trial change places, for trials that show one direction
        after the other (Monet2) and share a level: the state of the animal during the film. Both
        methods are conservative there otherwise. Needs responses over ``(..., trial, direction)``
        and ``permutation``.
    seed : int or numpy.random.Generator, optional
        Where the random numbers start; the same seed gives the same result, whichever other neurons
        are there.

    Returns
    -------
    xarray.Dataset
        Over the neurons: ``p``; ``q``, adjusted over all of them by `benjamini_hochberg`;
        ``statistic`` (permutation: difference of means; wilcoxon: pairs of trials in which the
        preferred response is larger); ``pref_dir``, or ``pref_ori`` of orientations and of pooled
        directions, in the units they came in; ``difference`` of the mean responses, and ``effect``,
        that in standard deviations within a direction: for ``permutation`` from the trials that
        chose the angle, hence too large without tuning (see
        `microns_xr.tuning.trials.cross_validated_preference`), for ``wilcoxon`` from the tested
        half; ``n_preferred`` and ``n_other``, trials compared; ``testable``, False where fewer than
        two trials of each are left or all responses are equal: NaN there.

    Raises
    ------
    SchemaError
        If the dims are others, the angles do not say what units they are in, none has its
        counterpart, or an argument is unknown.

    Notes
    -----
    Under the null hypothesis that trials are exchangeable both reject at most 5 % at 0.05. Both
    assume that trials are independent of each other given the direction, in particular that
    directions were shown in random order where responses drift. The permutation test is exact
    (Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010). The
    rank sum is exact up to 40 trials; few trials make it conservative, because few values of p are
    possible: 5.0 % for 5 against 10, 4.8 % for 5 against 5, 4.5 % for 10 against 10. Both reject
    less where many responses are tied. Neurons with the same trials share their permutations.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rates = np.array([[9.0, 1.0], [5.0, 5.0]])
    >>> responses = xr.DataArray(rates[:, None] + rng.normal(size=(2, 12, 2)),
    ...     dims=("nucleus_id", "trial", "orientation"), coords={"orientation": [0, 90]})
    >>> test = test(responses)
    >>> (test.p < 0.05).values, test.pref_ori.values[0]
    (array([ True, False]), np.float64(0.0))
    """
    if method not in ("permutation", "wilcoxon"):
        raise SchemaError(f"method is {method!r}, expected 'permutation' or 'wilcoxon'")
    whole = isinstance(n_permutations, int | np.integer) and not isinstance(n_permutations, bool)
    if not whole or n_permutations < 1:
        raise SchemaError(f"n_permutations is {n_permutations!r}, expected a whole number from 1")
    trials = read_trials(responses)
    if within_trial and (method != "permutation" or trials.film is None):
        raise SchemaError(
            f"within_trial=True with method={method!r} and dims {responses.dims}, expected "
            "method='permutation' and (..., trial, direction)"
        )
    contrast = make_contrast(trials, against, pool_directions)
    start = seed_number(seed)
    found = _Found(len(trials.values))
    for rows, block in trials.blocks():
        if method == "permutation":
            orders = permuted_orders(block, contrast, n_permutations, start, within_trial)
            _permutation(found, rows, block, contrast, orders)
        else:
            tested = make_folds(block, 2, start) == 0
            _two_samples(found, rows, block, contrast, ~tested, tested, "rank_sum", 1)
    attrs: dict[str, Any] = {"test": method, "against": against, "seed": start}
    if against == "orthogonal":
        attrs["pool_directions"] = int(pool_directions)
    if method == "permutation":
        attrs |= {"n_permutations": int(n_permutations), "within_trial": int(within_trial)}
    return found.dataset(trials, contrast, responses, **attrs)


def _permutation(
    found: _Found,
    rows: np.ndarray,
    block: Trials,
    contrast: Contrast,
    orders: np.ndarray,
) -> None:
    everything = np.ones(len(block.code), dtype=bool)
    can = comparable(block, contrast, everything, least=2)
    if not can.any():
        return
    chosen, difference, count = count_as_large(block, contrast, orders, can)
    counts, others = group_counts(block, contrast, everything)
    sd = spread(block, everything)
    found.chosen[rows] = chosen
    found.p[rows] = (1 + count) / len(orders)
    found.statistic[rows] = found.difference[rows] = difference
    found.effect[rows] = np.divide(difference, sd, where=sd > 0, out=np.full(len(sd), np.nan))
    found.n_preferred[rows], found.n_other[rows] = counts[chosen], others[chosen]


def _two_samples(
    found: _Found,
    rows: np.ndarray,
    block: Trials,
    contrast: Contrast,
    choosing: np.ndarray,
    tested: np.ndarray,
    test: str,
    sides: int,
) -> None:
    """Choose on some samples, compare the two samples of each neuron on others."""
    can = comparable(block, contrast, choosing) & comparable(block, contrast, tested, least=2)
    if not can.any():
        return
    chosen = choose(block, contrast, choosing, can)
    difference, sd = difference_of(block, contrast, tested, chosen), spread(block, tested)
    group, reference = contrast.group[block.code], contrast.reference[block.code]
    for g in np.unique(chosen):
        at = np.flatnonzero(chosen == g)
        first = block.values[at][:, tested & (group == g)]
        second = block.values[at][:, tested & (reference == contrast.other[g])]
        if test == "signed_rank":
            n = min(first.shape[1], second.shape[1])
            first, second = first[:, :n], second[:, :n]
        statistic, p = (rank_sum if test == "rank_sum" else signed_rank)(first, second)
        if sides == 2:
            less = (rank_sum if test == "rank_sum" else signed_rank)(second, first)[1]
            p = np.minimum(1, 2 * np.minimum(p, less))
        out = rows[at]
        found.p[out], found.statistic[out], found.chosen[out] = p, statistic, g
        found.difference[out] = difference[at]
        found.effect[out] = np.divide(
            difference[at], sd[at], where=sd[at] > 0, out=np.full(len(at), np.nan)
        )
        found.n_preferred[out], found.n_other[out] = first.shape[1], second.shape[1]


def frame_level_test(
    responses: xr.DataArray,
    against: Against = "orthogonal",
    *,
    test: Literal["signed_rank", "rank_sum"] = "signed_rank",
    choose_on: Literal["same", "held_out"] = "same",
    seed: int | np.random.Generator = 0,
) -> xr.Dataset:
    """Test with frames as samples, for comparison only: its p-values are too small.

    This is the variant of the literature: all frames shown at the preferred angle against all at
    the orthogonal (opposite) one, by Wilcoxon's test, two-sided. It is wrong in two ways.
    Frames of one trial follow each other within the decay of the indicator and under one state of
    the animal; they are correlated, and a test that takes them for independent believes in many
    more samples than there are. And the preferred angle is chosen from the frames that are
    tested, which the test does not know. Use `microns_xr.tuning.test` for a result.
    """
    if test not in ("signed_rank", "rank_sum"):
        raise SchemaError(f"test is {test!r}, expected 'signed_rank' or 'rank_sum'")
    if choose_on not in ("same", "held_out"):
        raise SchemaError(f"choose_on is {choose_on!r}, expected 'same' or 'held_out'")
    trials = read_trials(responses, frames=True)
    contrast = make_contrast(trials, against)
    start = seed_number(seed)
    found = _Found(len(trials.values))
    for rows, block in trials.blocks():
        tested = np.ones(len(block.code), dtype=bool)
        choosing = tested
        if choose_on == "held_out":
            tested = make_folds(block, 2, start) == 0
            choosing = ~tested
        _two_samples(found, rows, block, contrast, choosing, tested, test, 2)
    attrs = {"test": f"frame-level {test}", "against": against, "choose_on": choose_on}
    return found.dataset(trials, contrast, responses, **attrs, seed=start, samples="frames")
