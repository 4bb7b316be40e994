"""Permutations of the angles of trials: how often the largest mean stands out as far."""

from __future__ import annotations

import numba
import numpy as np

from microns_xr.functional.trial_table import Contrast, Trials, angle_weights, rounding

__all__ = ["count_as_large", "permuted_orders"]


def permuted_orders(
    trials: Trials, contrast: Contrast, n_permutations: int, seed: int, within_trial: bool = False
) -> np.ndarray:
    """Orders of the samples that are equally likely if the preference is chance.

    Parameters
    ----------
    trials : Trials
        Samples sorted by angle.
    contrast : Contrast
        Against orthogonal, any trial may change places with any other. Against opposite, only
        with one of the same axis, so that tuning to the axis alone is no direction selectivity.
    n_permutations, seed : int
        How many, and where the random numbers start.
    within_trial : bool, optional
        Whether only responses of one trial change places.

    Returns
    -------
    numpy.ndarray
        (1 + permutations, samples): positions of the samples that take the places of the sorted
        ones; the first row is the order that was shown.
    """
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

    Parameters
    ----------
    trials : Trials
        Complete responses.
    contrast : Contrast
        The groups.
    orders : numpy.ndarray
        As `permuted_orders` gives them.
    can : numpy.ndarray
        (groups,): which may be preferred; at least one.

    Returns
    -------
    chosen : numpy.ndarray
        (neurons,), the preferred group.
    difference : numpy.ndarray
        (neurons,).
    count : numpy.ndarray
        (neurons,), permutations with at least this difference.
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
