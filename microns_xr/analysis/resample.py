"""Bootstrap over neurons, and Wilson's interval: how certain a ratio of sums is.

Pairs of one neuron are not independent of each other: an axon that is more complete, or a cell in
a denser place, has more of all of them. So whole neurons are drawn, each with all of its pairs.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from microns_xr.errors import SchemaError

__all__ = [
    "bootstrap_neurons",
    "bootstrap_replicates",
    "neuron_weights",
    "percentile_interval",
    "wilson_interval",
]

# A block of replicates: 2**22 float64 are 32 MB.
_BLOCK = 1 << 22


def neuron_weights(n_neurons: int, n: int, seed: int) -> np.ndarray:
    """Draw neurons with replacement, as many as there are, and count how often each was drawn.

    Parameters
    ----------
    n_neurons : int
        Number of neurons.
    n : int
        Number of replicates.
    seed : int
        Equal seeds give equal draws.

    Returns
    -------
    numpy.ndarray
        (n, n_neurons), float64; each row sums to `n_neurons`.

    Examples
    --------
    >>> neuron_weights(4, 2, seed=0).sum(axis=1)
    array([4., 4.])
    """
    rng = np.random.default_rng(seed)
    weights = np.empty((n, n_neurons))
    if not n_neurons:
        return weights
    step = max(1, _BLOCK // n_neurons)
    for start in range(0, n, step):
        block = weights[start : start + step]
        drawn = rng.integers(0, n_neurons, block.shape)
        drawn += n_neurons * np.arange(len(block))[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return weights


def bootstrap_replicates(
    numerators: np.ndarray, denominators: np.ndarray, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """Resample neurons and form the ratio of summed numerators to summed denominators.

    Parameters
    ----------
    numerators, denominators : numpy.ndarray
        (neurons, ...), sums of each neuron; of one shape, or broadcast against each other.
    n : int, optional
        Number of replicates.
    seed : int, optional
        Equal seeds draw the same neurons, so that replicates of several calls belong together.

    Returns
    -------
    numpy.ndarray
        (n, ...), float64; NaN where the drawn neurons have no denominator.

    Raises
    ------
    SchemaError
        If there are no replicates asked for, or the shapes do not fit.

    Examples
    --------
    >>> bootstrap_replicates(np.array([1, 1]), np.array([4, 4]), n=3)
    array([0.25, 0.25, 0.25])
    """
    top, bottom = _tables(numerators, denominators, n)
    weights = neuron_weights(top.shape[0], n, seed)
    return _ratios(weights, _flat(top), _flat(bottom)).reshape(n, *top.shape[1:])


def bootstrap_neurons(
    numerators: np.ndarray,
    denominators: np.ndarray,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Give the percentile interval of a ratio of sums when neurons are resampled.

    Parameters
    ----------
    numerators, denominators : numpy.ndarray
        (neurons, ...), sums of each neuron, such as connected and tested pairs in each bin.
    n : int, optional
        Number of replicates.
    seed : int, optional
        Equal seeds give equal intervals.
    confidence : float, optional
        Share of the replicates inside of the interval.

    Returns
    -------
    tuple of numpy.ndarray
        Lower and upper ends, (...), float64. NaN where fewer than two neurons have a
        denominator, or all of those have the same ratio (such as 0): then there is no spread to
        learn from, which is not certainty.

    Raises
    ------
    SchemaError
        If shapes do not fit, or `n` or `confidence` makes no sense.

    Notes
    -----
    Percentile bootstrap of clusters (Efron & Tibshirani 1993, An Introduction to the Bootstrap,
    chapter 13). It is too narrow for a handful of neurons.

    Examples
    --------
    >>> low, high = bootstrap_neurons(np.array([0, 1, 2, 1]), np.array([4, 4, 4, 4]))
    >>> float(low) < 0.25 < float(high)
    True
    """
    _require_confidence(confidence)
    top, bottom = _tables(numerators, denominators, n)
    shape = top.shape[1:]
    top, bottom = _flat(top), _flat(bottom)
    low, high = np.full((2, top.shape[1]), np.nan)
    weights = neuron_weights(top.shape[0], n, seed)
    told = np.flatnonzero(_spread(top, bottom))
    step = max(1, _BLOCK // n)
    for start in range(0, told.size, step):
        cells = told[start : start + step]
        ratios = _ratios(weights, top[:, cells], bottom[:, cells])
        low[cells], high[cells] = percentile_interval(ratios, confidence)
    return low.reshape(shape), high.reshape(shape)


def percentile_interval(
    replicates: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Give the percentiles of replicates that leave out equal shares on both sides.

    Parameters
    ----------
    replicates : numpy.ndarray
        (n, ...); NaN replicates are left out.
    confidence : float, optional
        Share of the replicates inside of the interval.

    Returns
    -------
    tuple of numpy.ndarray
        Lower and upper ends, (...); NaN where no replicate is a number.

    Raises
    ------
    SchemaError
        If `confidence` is not between 0 and 1.

    Examples
    --------
    >>> low, high = percentile_interval(np.arange(101.0), 0.5)
    >>> float(low), float(high)
    (25.0, 75.0)
    """
    _require_confidence(confidence)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    replicates = np.asarray(replicates, dtype=float)
    absent = np.isnan(replicates)
    if not absent.any():
        low, high = np.quantile(replicates, tails, axis=0)
        return low, high
    some = ~absent.all(axis=0)
    ends = np.full((2, *replicates.shape[1:]), np.nan)
    if some.any():
        ends[:, some] = np.nanquantile(replicates[:, some], tails, axis=0)
    return ends[0], ends[1]


def wilson_interval(
    successes: np.ndarray, trials: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Give Wilson's score interval of a proportion of independent trials.

    Parameters
    ----------
    successes, trials : numpy.ndarray
        Counts, of one shape.
    confidence : float, optional
        Nominal coverage.

    Returns
    -------
    tuple of numpy.ndarray
        Lower and upper ends, float64; NaN without a trial.

    Raises
    ------
    SchemaError
        If `confidence` is not between 0 and 1.

    Notes
    -----
    Wilson 1927, Journal of the American Statistical Association 22, 209-212. Pairs that share a
    neuron are not independent: as an interval of a connection probability it is too narrow.

    Examples
    --------
    >>> [round(float(end), 4) for end in wilson_interval(np.array(1), np.array(10))]
    [0.0179, 0.4042]
    """
    _require_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = np.where(np.asarray(trials) > 0, trials, np.nan).astype(float)
    p = np.asarray(successes) / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At 0 and n successes the ends are 0 and 1, which rounding may miss.
    return np.clip(np.where(p == 0, 0, centre - half), 0, 1), np.clip(
        np.where(p == 1, 1, centre + half), 0, 1
    )


def _tables(
    numerators: np.ndarray, denominators: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    if n < 1:
        raise SchemaError(f"the number of replicates is {n}, expected at least 1")
    top, bottom = np.asarray(numerators), np.asarray(denominators)
    try:
        top, bottom = np.broadcast_arrays(top, bottom)
    except ValueError as error:
        raise SchemaError(
            f"numerators have shape {top.shape} and denominators {bottom.shape}, expected both "
            "to be (neurons, ...)"
        ) from error
    if top.ndim < 1:
        raise SchemaError("sums have no axis of neurons, expected (neurons, ...)")
    return top, bottom


def _flat(table: np.ndarray) -> np.ndarray:
    # Not -1, which no one can tell the size of without neurons.
    return table.reshape(table.shape[0], int(np.prod(table.shape[1:])))


def _spread(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    ratio = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=ratio, where=bottom != 0)
    largest = np.fmax.reduce(ratio, axis=0, initial=-np.inf)
    smallest = np.fmin.reduce(ratio, axis=0, initial=np.inf)
    return np.asarray(largest > smallest)


def _ratios(weights: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    ratios = weights @ bottom.astype(float)
    ratios[ratios == 0] = np.nan
    return np.divide(weights @ top.astype(float), ratios, out=ratios)


def _require_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SchemaError(f"confidence is {confidence}, expected a share between 0 and 1")
