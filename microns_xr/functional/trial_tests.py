"""Is a neuron tuned? Tests of preferred against orthogonal or opposite responses.

The preferred angle is chosen from the data. Testing it on the trials it was chosen from rejects far
too often, because the largest of several means is large by chance. Both methods of `tuning_test`
account for the choice; `frame_level_test` shows what happens otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from scipy.stats import false_discovery_control

from microns_xr.errors import SchemaError
from microns_xr.functional.angle_axis import require_free_names
from microns_xr.functional.trial_permutations import count_as_large, permuted_orders
from microns_xr.functional.trial_ranks import rank_sum, signed_rank
from microns_xr.functional.trial_table import (
    Against,
    Contrast,
    Trials,
    choose,
    comparable,
    difference_of,
    group_counts,
    make_contrast,
    make_folds,
    read_trials,
    seed_number,
    spread,
)
from microns_xr.provenance import add_history

__all__ = ["benjamini_hochberg", "frame_level_test", "tuning_test"]


def benjamini_hochberg(p: xr.DataArray) -> xr.DataArray:
    """Adjust p-values so that a threshold on them bounds the share of false discoveries.

    Parameters
    ----------
    p : xarray.DataArray
        p-values of any shape, all of them one family; NaN where there was no test.

    Returns
    -------
    xarray.DataArray
        ``q``, of the same dims: the smallest false discovery rate at which each test would be
        called; NaN stays NaN and does not count.

    Raises
    ------
    SchemaError
        If a p-value is not between 0 and 1.

    Notes
    -----
    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995, as
    `scipy.stats.false_discovery_control` computes it; it holds for independent and for positively
    dependent tests.

    Examples
    --------
    >>> p = xr.DataArray([0.01, 0.04, np.nan, 0.03], dims="nucleus_id")
    >>> benjamini_hochberg(p).values
    array([0.03, 0.04,  nan, 0.04])
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


def tuning_test(
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
        ``direction(trial)``; see `microns_xr.functional.trials.trial_statistics`. Frames are no
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
        `microns_xr.functional.trials.cross_validated_preference`), for ``wilcoxon`` from the tested
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
    >>> test = tuning_test(responses)
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
    tested, which the test does not know. Use `tuning_test` for a result.

    Parameters
    ----------
    responses : xarray.DataArray
        As for `tuning_test`, with a further dim ``frame``.
    against : {"orthogonal", "opposite"}, optional
        See `tuning_test`.
    test : {"signed_rank", "rank_sum"}, optional
        ``signed_rank`` pairs frames in their order, though those of two directions are no pairs;
        the longer of the two samples is cut.
    choose_on : {"same", "held_out"}, optional
        ``held_out`` chooses the preferred angle on one half of the trials and tests the frames of
        the other, which leaves the first fault alone.
    seed : int or numpy.random.Generator, optional
        Where the random numbers of ``held_out`` start.

    Returns
    -------
    xarray.Dataset
        As `tuning_test`, with ``n_preferred`` and ``n_other`` in frames.

    Raises
    ------
    SchemaError
        As `tuning_test`, and if there is no dim ``frame``.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> trials = xr.DataArray(rng.normal(size=(500, 10, 4, 1)),
    ...     dims=("nucleus_id", "trial", "direction", "frame"),
    ...     coords={"direction": [0, 90, 180, 270]})
    >>> frames = trials.isel(frame=[0] * 7)  # frames as correlated as can be, and no tuning
    >>> float((frame_level_test(frames).p < 0.05).mean())
    0.616
    >>> float((tuning_test(frames.mean("frame")).p < 0.05).mean())
    0.058
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
