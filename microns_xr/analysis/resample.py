"""Bootstrap over neurons, and Wilson's interval: how certain a ratio of sums is.

Pairs of one neuron are not independent of each other: an axon that is more complete, or a cell in
a denser place, has more of all of them. So whole neurons are drawn, each with all of its pairs.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from microns_xr.errors import SchemaError

# A block of replicates: 2**22 float64 are 32 MB.
_BLOCK = 1 << 22


def neuron_weights(n_neurons: int, n: int, seed: int) -> np.ndarray:
    """Draw neurons with replacement, as many as there are, and count how often each was drawn."""
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
    """Resample neurons and form the ratio of summed numerators to summed denominators."""
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

    Percentile bootstrap of clusters (Efron & Tibshirani 1993, An Introduction to the Bootstrap,
    chapter 13). It is too narrow for a handful of neurons.
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
    """Give the percentiles of replicates that leave out equal shares on both sides."""
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

    Wilson 1927, Journal of the American Statistical Association 22, 209-212. Pairs that share a
    neuron are not independent: as an interval of a connection probability it is too narrow.
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
