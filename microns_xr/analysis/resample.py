"""Intervals of ratios of sums over neurons: bootstrap over neurons, and Wilson's interval.

Pairs of one neuron are not independent: a more complete axon, or a cell in a denser region, has
more connections of all kinds. So whole neurons are resampled, each with all of its pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np

from microns_xr.errors import SchemaError, require_instance

# A block of replicates: 2**22 float64 are 32 MB.
_BLOCK = 1 << 22


def require_interval(interval: Any, *kinds: type) -> None:
    """Raise unless `interval` is an instance of one of the classes."""
    if not isinstance(interval, kinds):
        names = " or ".join(
            "None" if k is type(None) else f"mx.analysis.{k.__name__}()" for k in kinds
        )
        raise SchemaError(f"interval is {interval!r}, expected {names}")


def require_confidence(confidence: float) -> None:
    """Raise unless it is a share between 0 and 1."""
    require_instance("confidence", confidence, Real, "a share between 0 and 1")
    if not 0 < confidence < 1:
        raise SchemaError(f"confidence is {confidence}, expected a share between 0 and 1")


@dataclass(frozen=True)
class Bootstrap:
    """Percentile interval from neurons drawn with replacement, each with all of its pairs.

    Parameters
    ----------
    n : int, optional
        Number of draws.
    confidence : float, optional
        Share of the draws inside the interval.
    seed : int, optional
        Equal seeds give equal intervals.
    both_sides : bool, optional
        `like_to_like` only: draw pre- and postsynaptic neurons independently (the pigeonhole
        bootstrap) instead of presynaptic neurons alone. The latter is somewhat too narrow, since
        pairs share postsynaptic neurons as well; the former is much too wide where connections are
        few, since the chance of single pairs then counts up to three times.

    Raises
    ------
    SchemaError
        If `n` is below 1 or `confidence` is not between 0 and 1.

    Notes
    -----
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; for both sides Owen
    2007, Annals of Applied Statistics 1, 386-411. The interval is too narrow for very few neurons.

    Examples
    --------
    >>> Bootstrap(n=200, seed=4)
    Bootstrap(n=200, confidence=0.95, seed=4, both_sides=False)
    """

    n: int = 1000
    confidence: float = 0.95
    seed: int = 0
    both_sides: bool = False

    def __post_init__(self) -> None:
        require_confidence(self.confidence)
        if self.n < 1:
            raise SchemaError(f"n is {self.n}, expected at least 1 draw, or interval=None for none")


DEFAULT_BOOTSTRAP = Bootstrap()


@dataclass(frozen=True)
class Wilson:
    """Wilson's score interval of a proportion, which treats pairs as independent.

    Pairs that share a neuron are not independent: as an interval of a connection probability it is
    too narrow where neurons differ.

    Parameters
    ----------
    confidence : float, optional
        Nominal coverage.

    Raises
    ------
    SchemaError
        If `confidence` is not between 0 and 1.

    Notes
    -----
    Wilson 1927, Journal of the American Statistical Association 22, 209-212.

    Examples
    --------
    >>> Wilson()
    Wilson(confidence=0.95)
    """

    confidence: float = 0.95

    def __post_init__(self) -> None:
        require_confidence(self.confidence)


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide; NaN where the divisor is 0."""
    top, bottom = np.broadcast_arrays(top, bottom)
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def describe_bootstrap(interval: Bootstrap) -> dict[str, Any]:
    """Return the attributes that describe how the intervals of a result were computed."""
    return {"n_bootstrap": interval.n, "confidence": interval.confidence, "seed": interval.seed}


def neuron_weights(n_neurons: int, n: int, seed: int) -> np.ndarray:
    """Draw as many neurons as there are, n times, and count how often each was drawn."""
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


def bootstrap_ratio(
    top: np.ndarray, bottom: np.ndarray, interval: Bootstrap
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of summed `top` over summed `bottom`, both (neurons, ...)."""
    if interval.both_sides:
        raise SchemaError("interval has both_sides=True, expected False except in like_to_like")
    n_neurons, *shape = top.shape
    top, bottom = (table.reshape(n_neurons, math.prod(shape)) for table in (top, bottom))
    low, high = np.full((2, top.shape[1]), np.nan)
    weights = neuron_weights(n_neurons, interval.n, interval.seed)
    # Where all neurons have the same ratio, such as 0, all draws agree: the interval is unknown.
    of_neurons = ratio(top, bottom)
    largest = np.fmax.reduce(of_neurons, axis=0, initial=-np.inf)
    smallest = np.fmin.reduce(of_neurons, axis=0, initial=np.inf)
    varying = np.flatnonzero(largest > smallest)
    step = max(1, _BLOCK // interval.n)
    for start in range(0, varying.size, step):
        cells = varying[start : start + step]
        sums = (weights @ table[:, cells].astype(float) for table in (top, bottom))
        low[cells], high[cells] = percentile_interval(ratio(*sums), interval.confidence)
    return low.reshape(shape), high.reshape(shape)


def percentile_interval(replicates: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentiles that exclude equal shares on both sides; NaN are left out."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    is_nan = np.isnan(replicates)
    if not is_nan.any():
        low, high = np.quantile(replicates, tails, axis=0)
        return low, high
    has_value = ~is_nan.all(axis=0)
    ends = np.full((2, *replicates.shape[1:]), np.nan)
    if has_value.any():
        ends[:, has_value] = np.nanquantile(replicates[:, has_value], tails, axis=0)
    return ends[0], ends[1]


def wilson_interval(
    successes: np.ndarray, trials: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's score interval of successes out of independent trials."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = np.where(trials > 0, trials, np.nan)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At 0 and at n successes one end is exactly 0 or 1, which rounding may miss.
    low, high = np.where(p == 0, 0, centre - half), np.where(p == 1, 1, centre + half)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)
