"""Mean and standard error over trials, and the preferred angle where it was not chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from microns_xr.errors import SchemaError
from microns_xr.functional.angle_axis import require_free_names
from microns_xr.functional.trial_table import (
    Against,
    choose,
    comparable,
    difference_of,
    make_contrast,
    make_folds,
    read_trials,
    seed_number,
    spread,
)
from microns_xr.provenance import add_history

__all__ = ["cross_validated_preference", "trial_statistics"]


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


def cross_validated_preference(
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
    >>> halves = cross_validated_preference(responses)
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
    entry = f"cross_validated_preference(against={against!r}, n_folds={n_folds}, seed={start})"
    return add_history(result, entry, source=responses)
