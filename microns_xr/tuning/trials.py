"""Statistics over trials: mean and error, and whether a neuron is tuned.

The preferred angle is chosen from the data. Testing it on the same trials rejects far too often,
because the largest of several means is large by chance: `test` accounts for the choice, and
`cross_validate` compares responses that were not used for it.

Both forms of responses that `trial_statistics` accepts become one matrix of neurons and samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import xarray as xr
from scipy.stats import false_discovery_control, mannwhitneyu, rankdata

from microns_xr.angles import (
    PERIODS,
    describe_angle,
    difference,
    full_turn,
    require_likely_units,
    rounded,
)
from microns_xr.errors import SchemaError, require_instance, require_one_of, whole_number
from microns_xr.provenance import add_history
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.tuning.fits import require_free_names

Against = Literal["orthogonal", "opposite"]


class Trials(NamedTuple):
    """Responses as a matrix of neurons and samples, the samples sorted by angle."""

    values: np.ndarray  # (neurons, samples), float64; NaN where missing
    code: np.ndarray  # (samples,), position of the angle of each sample in `degrees`; ascending
    place: np.ndarray  # (samples,), position of each sample in the responses
    n_trials: int | None  # number of trials, if a trial shows several directions
    degrees: np.ndarray  # angles that were shown, in degrees
    angle: xr.DataArray  # the same angles in their original units, with attributes
    like: xr.DataArray  # zeros over the neurons, with all their coordinates

    @property
    def turn(self) -> float:
        """Whole turn in the units of `angle`."""
        return full_turn(self.angle.attrs["units"])

    def labelled(self, values: np.ndarray, *dims: str, **attrs: Any) -> xr.Variable:
        """Replace the first axis, of neurons, by their original dims."""
        shape = (*self.like.shape, *values.shape[1:])
        return xr.Variable((*self.like.dims, *dims), values.reshape(shape), attrs)

    def blocks(self) -> Iterator[tuple[np.ndarray, Trials]]:
        """Yield the rows of neurons that lack the same samples, and their trials without these."""
        present = np.isfinite(self.values)
        if not present.size:
            return
        # Random draws for a block do not depend on the other blocks, so that the result of a neuron
        # does not depend on which other neurons are present.
        packed, owner = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
        patterns = np.unpackbits(packed, axis=1, count=present.shape[1]).astype(bool)
        for pattern, rows in zip(patterns, _members(owner.ravel()), strict=True):
            values = self.values[rows][:, pattern]
            # Neurons whose responses are all equal have no preferred angle.
            varied = np.ptp(values, axis=1) > 0 if pattern.any() else np.zeros(len(rows), bool)
            if varied.any():
                complete = self._replace(
                    values=np.ascontiguousarray(values[varied]),
                    code=self.code[pattern],
                    place=self.place[pattern],
                )
                yield rows[varied], complete


def _members(owner: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each owner 0, 1, ..., in order."""
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])


def read_trials(responses: xr.DataArray) -> Trials:
    """Convert either form of responses to a matrix."""
    require_instance("responses", responses, xr.DataArray, "a DataArray")
    if responses.dtype.kind not in "biuf":
        raise SchemaError(f"responses has dtype {responses.dtype}, expected numbers")
    names = [n for n in ("direction", "orientation") if n in {*responses.dims, *responses.coords}]
    if len(names) != 1 or "trial" not in responses.dims:
        raise SchemaError(
            f"responses has dims {responses.dims} and coordinates {list(responses.coords)}, "
            "expected (..., trial, direction), or (..., trial) with a coordinate direction(trial); "
            "orientation may stand for direction"
        )
    if "frame" in responses.dims:
        raise SchemaError(
            "responses has a dim 'frame', but frames of one trial are not independent samples: "
            "average them first with responses.mean('frame')"
        )
    name = names[0]
    if name not in responses.coords:
        raise SchemaError(f"responses has no coordinate {name!r}, expected the angles shown")
    coord = responses[name]
    if coord.dims not in (("trial",), (name,)):
        raise SchemaError(
            f"{name} has dims {coord.dims}, expected ({name!r},) or ('trial',): if scans have "
            "different trials, pass the neurons of one scan at a time"
        )
    turn = _turn(coord, name)
    samples = ["trial"] if coord.dims == ("trial",) else [name, "trial"]
    ordered = responses.transpose(..., *samples)
    like = xr.zeros_like(ordered.isel(dict.fromkeys(samples, 0), drop=True), dtype=np.float64)
    # Drop coordinates with several values per neuron.
    like = like.drop_vars([n for n in like.coords if responses.coords[n].ndim > like[n].ndim])
    n_samples = int(np.prod([ordered.sizes[d] for d in samples]))
    values = np.array(ordered.values, dtype=np.float64).reshape(like.size, n_samples)
    values[~np.isfinite(values)] = np.nan

    shown = np.asarray(coord.values, dtype=np.float64) * (360.0 / turn)
    shown = rounded(shown, 360.0 * PERIODS[name])
    # Includes angles that were shown but have no response.
    degrees = np.unique(shown[np.isfinite(shown)])
    if not len(degrees):
        raise SchemaError(f"responses has no trial with a {name}")
    shown = np.repeat(shown, n_samples // len(shown))
    place = np.flatnonzero(np.isfinite(shown) & np.isfinite(values).any(axis=0))
    place = place[np.argsort(shown[place], kind="stable")]
    angle = xr.DataArray(
        degrees * (turn / 360.0), dims=name, name=name, attrs={"units": "degree", **coord.attrs}
    )
    return Trials(
        values=values[:, place],
        code=np.searchsorted(degrees, shown[place]),
        place=place,
        n_trials=ordered.sizes["trial"] if len(samples) == 2 else None,
        degrees=degrees,
        angle=angle,
        like=like,
    )


def _turn(coord: xr.DataArray, name: str) -> float:
    """Return a whole turn in the units of an angle, by default degrees."""
    units = coord.attrs.get("units")
    require_one_of(f"the attribute units of {name}", units, (None, "degree", "radian"))
    values = np.asarray(coord.values, dtype=np.float64)
    if units is not None:
        describe_angle(coord, name)
    elif 0 < (largest := np.nanmax(np.abs(values), initial=0.0)) <= 2 * np.pi + 1e-6:
        raise SchemaError(
            f"{name} has a maximum of {largest:g} and does not state its units: set "
            f"responses[{name!r}].attrs['units'] to 'degree' or 'radian'"
        )
    require_likely_units(values, units or "degree", name)
    return full_turn(units or "degree")


class Contrast(NamedTuple):
    """Pairs of angles to compare."""

    name: str  # of the preferred angle, pref_ori or pref_dir
    group: np.ndarray  # (angles,), the group of each angle for choosing the preferred one
    degrees: np.ndarray  # (groups,)
    reference: np.ndarray  # (angles,), the group of each angle for the comparison
    other: np.ndarray  # (groups,), the reference 90 (180) degrees away; -1 if not shown
    stratum: np.ndarray  # (groups,), a permutation exchanges samples only within a stratum

    def preferred(self, trials: Trials, chosen: np.ndarray, *dims: str) -> xr.Variable:
        """Return the angles of groups in the units of the trials; NaN for group -1."""
        angle = np.where(chosen >= 0, self.degrees[chosen] * (trials.turn / 360.0), np.nan)
        shown = trials.angle.attrs
        attrs = {n: shown[n] for n in ("units", "angle_convention") if n in shown}
        attrs |= {"period": trials.turn * PERIODS[self.name], **describe(FUNCTIONAL[self.name])}
        return trials.labelled(angle, *dims, **attrs)


def make_contrast(trials: Trials, against: Against, pool_directions: bool) -> Contrast:
    """Pair the angles to compare."""
    name = str(trials.angle.name)
    require_one_of("against", against, ("orthogonal", "opposite"))
    if against == "opposite" and (name == "orientation" or pool_directions):
        raise SchemaError(
            f"against='opposite' needs directions, found {name}s, or pooled ones: pass "
            "pool_directions=False, and responses by direction"
        )
    circle, shift = (180.0, 90.0) if against == "orthogonal" else (360.0, 180.0)
    preferred = "pref_ori" if pool_directions or name == "orientation" else "pref_dir"
    degrees, group = _fold(trials.degrees, 360.0 * PERIODS[preferred])
    references, reference = _fold(trials.degrees, circle)
    away = np.abs(difference(references[None, :], degrees[:, None] + shift, circle))
    other = np.where(away.min(axis=1) < 1e-3, away.argmin(axis=1), -1)
    if (other < 0).all():
        raise SchemaError(
            f"no {name} of {trials.degrees.tolist()} degrees has a counterpart {shift:g} degrees "
            f"away, as against={against!r} requires"
        )
    stratum = np.zeros(len(degrees), dtype=np.int64)
    if against == "opposite":
        # Exchange only within an axis, because tuning to an axis is not direction selectivity.
        groups = np.arange(len(degrees))
        stratum = np.where(other < 0, groups, np.minimum(groups, other))
    return Contrast(preferred, group, degrees, reference, other, stratum)


def _fold(degrees: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct angles modulo `period`, and the index of each angle in them."""
    distinct, index = np.unique(rounded(degrees, period), return_inverse=True)
    return distinct, index.ravel()


def _seed_number(seed: int | np.random.Generator) -> int:
    """Return the seed of all random draws of a call."""
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**62))
    return whole_number("seed", seed, 0)


# Means of groups of angles: `index` is the group of each angle, `use` a mask of samples.


def _weights(counts: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return (angles,), the weight of a sample of each angle in the mean of its group."""
    # The mean of an orientation is that of its two directions, even if one was shown more often.
    shown = np.bincount(index[counts > 0], minlength=index.max() + 1)[index]
    return np.divide(1.0, counts * shown, where=counts > 0, out=np.zeros(len(counts)))


def _means(trials: Trials, index: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Return (neurons, groups), 0 for a group without a sample."""
    counts = np.bincount(trials.code[use], minlength=len(trials.degrees))
    weights = np.zeros((len(trials.code), index.max() + 1))
    weights[use, index[trials.code[use]]] = _weights(counts, index)[trials.code[use]]
    return trials.values @ weights


def _choose(trials: Trials, contrast: Contrast, use: np.ndarray, can: np.ndarray) -> np.ndarray:
    """Return the group in the mask `can` with the largest mean; if tied, the lowest."""
    means = _means(trials, contrast.group, use)
    among = np.where(can, means, -np.inf)
    close = _rounding(trials.values)[:, None]
    return (among >= among.max(axis=1, keepdims=True) - close).argmax(axis=1)


def _difference(
    trials: Trials, contrast: Contrast, use: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Return (neurons,), the mean of the chosen group minus that of its counterpart."""
    neurons = np.arange(len(chosen))
    preferred = _means(trials, contrast.group, use)[neurons, chosen]
    others = _means(trials, contrast.reference, use)
    return preferred - others[neurons, contrast.other[chosen]]


def _rounding(values: np.ndarray) -> np.ndarray:
    """Return the threshold below which differences of means are rounding errors."""
    return 1e-12 * np.abs(values).max(axis=1, initial=0.0)


def _counts(trials: Trials, contrast: Contrast, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (groups,), the number of samples of each group, and of its counterpart."""
    code = trials.code[use]
    counts = np.bincount(contrast.group[code], minlength=len(contrast.degrees))
    others = np.bincount(contrast.reference[code], minlength=contrast.reference.max() + 1)
    return counts, np.where(contrast.other >= 0, others[contrast.other], 0)


def _have(n: int, trials: Trials, contrast: Contrast, use: np.ndarray) -> np.ndarray:
    """Return (groups,), whether a group and its counterpart have at least `n` samples."""
    return np.minimum(*_counts(trials, contrast, use)) >= n


def _folds(trials: Trials, n_folds: int, seed: int) -> np.ndarray:
    """Return (samples,), the fold of each; trials of each angle are assigned at random."""
    by_place = np.argsort(trials.place)
    draws = np.random.default_rng(seed).random(len(by_place))
    order = by_place[np.lexsort([draws, trials.code[by_place]])]
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = (np.arange(len(order)) - np.searchsorted(trials.code, trials.code)) % n_folds
    return fold


def _effect(trials: Trials, use: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return a difference in units of the pooled standard deviation within angles, or NaN."""
    values, code = trials.values[:, use], trials.code[use]
    counts = np.bincount(code, minlength=len(trials.degrees))
    freedom = int(np.maximum(counts - 1, 0).sum())
    total = np.zeros(len(values))
    for angle in np.flatnonzero(counts > 1):
        total += values[:, code == angle].var(axis=1) * counts[angle]
    sd = np.sqrt(total / max(freedom, 1))
    return np.divide(difference, sd, where=sd > 0, out=np.full(len(sd), np.nan))


# The two methods of `test`, on neurons with the same samples.

# Up to this total number of samples, the distribution of the rank sum is enumerated.
_EXACT = 40
# Mask of the samples compared; per neuron preferred group, p, statistic and difference.
Outcome = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _permutation(
    trials: Trials, contrast: Contrast, n_permutations: int, within_trial: bool, seed: int
) -> Outcome | None:
    """Count the permutations in which the difference of means is as large as measured."""
    all_samples = np.ones(len(trials.code), dtype=bool)
    can = _have(2, trials, contrast, all_samples)
    if not can.any():
        return None
    counts = np.bincount(trials.code, minlength=len(trials.degrees))
    orders = _permuted_orders(trials, contrast, n_permutations, within_trial, seed)
    group, reference = contrast.group, contrast.reference
    weights = (group, _weights(counts, group), reference, _weights(counts, reference))
    rest = (contrast.other, can, _rounding(trials.values))
    chosen, difference, as_large = _permute(
        trials.values, orders, np.cumsum(counts), *weights, *rest
    )
    return all_samples, chosen, (1 + as_large) / len(orders), difference, difference


def _permuted_orders(
    trials: Trials, contrast: Contrast, n_permutations: int, within_trial: bool, seed: int
) -> np.ndarray:
    """Return orders of the samples, equally likely without tuning; the first is as measured."""
    stratum = contrast.stratum[contrast.group[trials.code]]
    if within_trial and trials.n_trials is not None:
        stratum = stratum + trials.place % trials.n_trials * len(contrast.degrees)
    places = np.argsort(stratum, kind="stable")
    keys = np.random.default_rng(seed).random((n_permutations, len(stratum))) + stratum
    orders = np.empty((n_permutations + 1, len(stratum)), dtype=np.int64)
    orders[0] = np.arange(len(stratum))
    orders[1:, places] = np.argsort(keys, axis=1)
    return orders


@numba.njit(nogil=True, cache=True)
def _permute(  # type: ignore[no-untyped-def]
    values, orders, ends, group, group_weights, reference, reference_weights, other, can, close
):
    n_neurons = values.shape[0]
    chosen, as_large = np.zeros(n_neurons, np.int64), np.zeros(n_neurons, np.int64)
    difference = np.empty(n_neurons)
    means, others = np.empty(other.size), np.empty(reference.max() + 1)
    for i in range(n_neurons):
        for b in range(orders.shape[0]):
            means[:] = 0.0
            others[:] = 0.0
            start = 0
            for angle in range(ends.size):
                total = 0.0
                for place in range(start, ends[angle]):
                    total += values[i, orders[b, place]]
                start = ends[angle]
                means[group[angle]] += total * group_weights[angle]
                others[reference[angle]] += total * reference_weights[angle]
            # The preferred group is chosen in each permutation, so that the bias from choosing on
            # the same trials is the same in all of them.
            largest = -np.inf
            for g in range(other.size):
                if can[g] and means[g] > largest:
                    largest = means[g]
            best = 0
            while not can[best] or means[best] < largest - close[i]:
                best += 1
            contrasts = means[best] - others[other[best]]
            if b == 0:
                chosen[i], difference[i] = best, contrasts
            elif contrasts >= difference[i] - close[i]:
                as_large[i] += 1
    return chosen, difference, as_large


def _wilcoxon(trials: Trials, contrast: Contrast, seed: int) -> Outcome | None:
    """Choose on one half of the trials, and compare the ranks of the other half."""
    held_out = _folds(trials, 2, seed) == 0
    can = _have(1, trials, contrast, ~held_out) & _have(2, trials, contrast, held_out)
    if not can.any():
        return None
    chosen = _choose(trials, contrast, ~held_out, can)
    group, reference = contrast.group[trials.code], contrast.reference[trials.code]
    statistic, p = np.empty(len(chosen)), np.empty(len(chosen))
    for g in np.unique(chosen):
        values = trials.values[chosen == g]
        preferred = held_out & (group == g)
        other = held_out & (reference == contrast.other[g])
        statistic[chosen == g], p[chosen == g] = rank_sum(values[:, preferred], values[:, other])
    difference = _difference(trials, contrast, held_out, chosen)
    return held_out, chosen, p, statistic, difference


def rank_sum(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test by Wilcoxon's rank sum (Mann-Whitney) whether `first` is larger, row by row."""
    n = first.shape[1]
    if n + second.shape[1] > _EXACT:
        test = mannwhitneyu(first, second, alternative="greater", axis=1, method="asymptotic")
        return test.statistic, test.pvalue
    # Unlike that of scipy, this distribution is also exact with ties (Mann and Whitney, Annals of
    # Mathematical Statistics 18, 1947). Doubled ranks are integers.
    doubled = rankdata(np.concatenate([first, second], axis=1), axis=1)
    doubled = np.rint(2 * doubled).astype(np.int64)
    observed = doubled[:, :n].sum(axis=1)
    patterns, owner = np.unique(np.sort(doubled, axis=1), axis=0, return_inverse=True)
    p = np.empty(len(doubled))
    for pattern, rows in zip(patterns, _members(owner.ravel()), strict=True):
        # ways[k, s]: number of subsets of k of the ranks so far that sum to s
        ways = np.zeros((n + 1, int(pattern[-n:].sum()) + 1))
        ways[0, 0] = 1
        for rank in pattern:
            ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
        tail = np.cumsum(ways[n, ::-1])[::-1]
        p[rows] = tail[observed[rows]] / tail[0]
    return observed / 2 - n * (n + 1) / 2, p


def trial_statistics(responses: xr.DataArray) -> xr.Dataset:
    """Compute mean, standard error and number of trials by direction.

    Parameters
    ----------
    responses : xarray.DataArray
        One number per trial, over any dims of neurons and ``(..., trial, direction)``, or over
        ``(..., trial)`` with a coordinate ``direction(trial)``; ``orientation`` may replace
        ``direction``. NaN and infinite values count as missing, as do trials whose direction is
        NaN (blanks).

    Returns
    -------
    xarray.Dataset
        ``rate(..., direction)``, NaN without trials; ``rate_error(..., direction)``, its standard
        error, NaN with fewer than two trials; ``n_trials(..., direction)``, int64. Directions are
        sorted, within one turn.

    Raises
    ------
    SchemaError
        If the dims differ from these, or the angles lack units and look like radians.

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
        np.divide(squares, (n - 1) * n, where=n > 1, out=error[:, angle])
        n_trials[:, angle] = n
    name = str(trials.angle.name)
    units = {"units": responses.attrs["units"]} if "units" in responses.attrs else {}
    of_error = {"long_name": "standard error of the mean over trials", **units}
    result = xr.Dataset(
        {
            "rate": trials.labelled(rate, name, long_name="mean over trials", **units),
            "rate_error": trials.labelled(np.sqrt(error), name, **of_error),
            "n_trials": trials.labelled(n_trials, name, long_name="number of trials"),
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
    """Choose the preferred angle on some trials and compare responses on the others.

    The trials of each direction are assigned at random to `n_folds` equal folds. For each fold the
    preferred angle is the one with the largest mean over the *other* folds; preferred and
    orthogonal (opposite) responses are then compared within the fold, which was not used for the
    choice, so that the effect of a neuron without tuning is 0 on average.

    Parameters
    ----------
    responses : xarray.DataArray
        One number per trial, see `microns_xr.tuning.trial_statistics`.
    against, pool_directions : optional
        The responses to compare, see `microns_xr.tuning.test`.
    n_folds : int, optional
        With 2, each half is used once to choose and once to compare. With more, the choices share
        trials, which alone makes them agree more.
    seed : int or numpy.random.Generator, optional
        Seed of the random numbers.

    Returns
    -------
    xarray.Dataset
        ``pref_dir`` (``pref_ori`` for orientations), the angle with the largest mean over all
        trials; ``pref_dir_fold(..., fold)``; ``agreement``, the mean resultant length of the angles
        of the folds, 1 if all are equal; ``difference``, preferred minus other response in the fold
        that was not used for the choice, mean over folds; ``effect``, the difference in standard
        deviations within a direction; ``testable``, False where too many trials are missing or all
        responses are equal: the other variables are NaN there.

    Raises
    ------
    SchemaError
        As in `trial_statistics`; if no angle has a counterpart, or `n_folds` is less than 2.

    Notes
    -----
    Only angles whose counterpart was shown can be preferred; of angles with equal means, the lowest
    is. The mean of an orientation is the mean over its two directions. For the mean resultant
    length ``|mean exp(2 pi i x / period)|`` see Fisher, Statistical Analysis of Circular Data,
    1993, section 2.3.

    Examples
    --------
    >>> responses = xr.DataArray([[[2.0, 1.0], [4.0, 1.0], [2.0, 1.0], [4.0, 1.0]]],
    ...     dims=("unit", "trial", "orientation"), coords={"orientation": [0, 90]})
    >>> halves = cross_validate(responses)
    >>> halves.pref_ori_fold.values, halves.agreement.values, halves.difference.values
    (array([[0., 0.]]), array([1.]), array([2.]))
    """
    n_folds = whole_number("n_folds", n_folds, 2)
    trials = read_trials(responses)
    contrast = make_contrast(trials, against, pool_directions)
    start = _seed_number(seed)
    n = len(trials.values)
    chosen, chosen_fold = np.full(n, -1), np.full((n, n_folds), -1)
    difference, effect = np.full(n, np.nan), np.full(n, np.nan)
    for rows, block in trials.blocks():
        fold = _folds(block, n_folds, start)
        all_samples = np.ones(len(fold), dtype=bool)
        can = _have(n_folds, block, contrast, all_samples)
        for f in range(n_folds):
            can &= _have(1, block, contrast, fold == f) & _have(1, block, contrast, fold != f)
        if not can.any():
            continue
        contrasts = np.empty((len(rows), n_folds))
        for f in range(n_folds):
            choice = _choose(block, contrast, fold != f, can)
            contrasts[:, f] = _difference(block, contrast, fold == f, choice)
            chosen_fold[rows, f] = choice
        chosen[rows] = _choose(block, contrast, all_samples, can)
        difference[rows] = contrasts.mean(axis=1)
        effect[rows] = _effect(block, all_samples, difference[rows])
    folds = contrast.preferred(trials, chosen_fold, "fold")
    with np.errstate(invalid="ignore"):
        turns = np.exp(2j * np.pi * folds.values / folds.attrs["period"])
    variables = {
        contrast.name: contrast.preferred(trials, chosen),
        f"{contrast.name}_fold": folds,
        "agreement": trials.labelled(np.abs(turns.mean(axis=-1))),
        "difference": trials.labelled(difference),
        "effect": trials.labelled(effect),
        "testable": trials.labelled(chosen >= 0),
    }
    require_free_names(trials.like, variables, "responses")
    attrs = {"against": against, "pool_directions": int(pool_directions), "n_folds": n_folds}
    attrs["seed"] = start
    result = xr.Dataset(variables, coords=trials.like.coords, attrs=attrs)
    entry = f"tuning.cross_validate(against={against!r}, n_folds={n_folds}, seed={start})"
    return add_history(result, entry, source=responses)


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
        One number per trial, see `microns_xr.tuning.trial_statistics`. Frames are not samples:
        average them within a trial.
    against : {"orthogonal", "opposite"}, optional
        ``orthogonal``: the preferred direction (orientation) against the orientation 90° away, with
        both of its directions. ``opposite``, for direction selectivity: the preferred direction
        against the one 180° away.
    method : {"permutation", "wilcoxon"}, optional
        ``permutation``: the directions of the trials are permuted, and the preferred angle is
        chosen in each permutation; p is the share of permutations, including the data themselves,
        in which the difference of means is as large. All trials are used. With ``opposite``, trials
        are exchanged only within their axis, because tuning to an axis is not direction
        selectivity.
        ``wilcoxon``: the preferred angle is chosen on a random half of the trials of each
        direction, and the other half is tested by the one-sided rank sum (not the signed rank,
        since trials of two directions are not pairs). Robust to outliers, but tests only half of
        the trials.
    pool_directions : bool, optional
        Whether, with ``orthogonal``, the two directions of the preferred orientation are pooled,
        too. This has more power for a neuron that responds equally to both, and less for one that
        responds to one of them.
    n_permutations : int, optional
        p is at least ``1 / (n_permutations + 1)``.
    within_trial : bool, optional
        Whether to exchange only responses of the same trial, for trials that show one direction
        after the other (Monet2), whose responses share the state of the animal. Otherwise both
        methods are conservative for them. Only for ``permutation`` of responses over
        ``(..., trial, direction)``.
    seed : int or numpy.random.Generator, optional
        Seed of the random numbers; the same seed gives the same result, independent of which other
        neurons are present.

    Returns
    -------
    xarray.Dataset
        Over the neurons: ``p``; ``q``, p adjusted over all of them by Benjamini and Hochberg's
        procedure, for independent and positively dependent tests; ``statistic`` (permutation:
        difference of means; wilcoxon: pairs of trials in which the preferred response is larger);
        ``pref_dir``, or ``pref_ori`` for orientations and for pooled directions, in the units of
        the input; ``difference`` of the mean responses, and ``effect``, the difference in standard
        deviations within a direction: for ``permutation`` from the trials on which the angle was
        chosen, hence too large without tuning (see `microns_xr.tuning.cross_validate`), for
        ``wilcoxon`` from the tested half; ``n_preferred`` and ``n_other``, the numbers of trials
        compared; ``testable``, False where either is below two or all responses are equal: the
        other variables are NaN there.

    Raises
    ------
    SchemaError
        As in `trial_statistics`; if no angle has a counterpart, or an argument is unknown.

    Notes
    -----
    Under the null hypothesis that trials are exchangeable, both methods reject at most 5 % at 0.05.
    Both assume that trials are independent given the direction, in particular that directions were
    shown in random order if responses drift. The permutation test is exact (Phipson and Smyth,
    Statistical Applications in Genetics and Molecular Biology 9, 2010). The rank sum is exact up to
    40 trials; with few trials it is conservative, because few values of p are possible: 5.0 % for 5
    against 10, 4.8 % for 5 against 5, 4.5 % for 10 against 10. Both reject less often if many
    responses are tied. Neurons with the same trials share their permutations.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rates = np.array([[9.0, 1.0], [5.0, 5.0]])
    >>> responses = xr.DataArray(rates[:, None] + rng.normal(size=(2, 12, 2)),
    ...     dims=("nucleus_id", "trial", "orientation"), coords={"orientation": [0, 90]})
    >>> tested = test(responses)
    >>> (tested.p < 0.05).values, tested.pref_ori.values[0]
    (array([ True, False]), np.float64(0.0))
    """
    require_one_of("method", method, ("permutation", "wilcoxon"))
    n_permutations = whole_number("n_permutations", n_permutations, 1)
    trials = read_trials(responses)
    if within_trial and (method != "permutation" or trials.n_trials is None):
        raise SchemaError(
            f"within_trial=True with method={method!r} and dims {responses.dims}, expected "
            "method='permutation' and (..., trial, direction)"
        )
    contrast = make_contrast(trials, against, pool_directions)
    start = _seed_number(seed)
    n = len(trials.values)
    p, statistic, difference, effect, q = (np.full(n, np.nan) for _ in range(5))
    chosen, n_preferred, n_other = np.full(n, -1), np.zeros(n, np.int64), np.zeros(n, np.int64)
    for rows, block in trials.blocks():
        if method == "permutation":
            outcome = _permutation(block, contrast, n_permutations, within_trial, start)
        else:
            outcome = _wilcoxon(block, contrast, start)
        if outcome is None:
            continue
        use, chosen[rows], p[rows], statistic[rows], difference[rows] = outcome
        effect[rows] = _effect(block, use, difference[rows])
        counts, others = _counts(block, contrast, use)
        n_preferred[rows], n_other[rows] = counts[chosen[rows]], others[chosen[rows]]
    testable = np.isfinite(p)
    if testable.any():
        q[testable] = false_discovery_control(p[testable], method="bh")
    variables = {
        "p": trials.labelled(p, long_name=f"p of the {method} test"),
        "statistic": trials.labelled(statistic),
        contrast.name: contrast.preferred(trials, chosen),
        "difference": trials.labelled(difference),
        "effect": trials.labelled(effect),
        "n_preferred": trials.labelled(n_preferred),
        "n_other": trials.labelled(n_other),
        "testable": trials.labelled(testable),
        "q": trials.labelled(q, long_name="p, Benjamini-Hochberg adjusted"),
    }
    require_free_names(trials.like, variables, "responses")
    attrs: dict[str, Any] = {"test": method, "against": against, "seed": start}
    if against == "orthogonal":
        attrs["pool_directions"] = int(pool_directions)
    if method == "permutation":
        attrs |= {"n_permutations": n_permutations, "within_trial": int(within_trial)}
    result = xr.Dataset(variables, coords=trials.like.coords, attrs=attrs)
    entry = ", ".join(f"{name}={value!r}" for name, value in attrs.items())
    return add_history(result, f"tested with {entry}", source=responses)
