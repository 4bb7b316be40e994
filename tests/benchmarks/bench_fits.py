"""Fits of tuning curves, beside scipy's curve_fit neuron by neuron."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import curve_fit

import microns_xr as mx

X = np.arange(16) * np.pi / 8
DEGREES = {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0}
SAME_BOUNDS = ([0, 0, 0, -np.inf, 0], [np.inf, np.inf, 50, np.inf, np.inf])


def double(x, a1, a2, k, phi, b):
    return a1 * np.exp(k * (np.cos(x - phi) - 1)) + a2 * np.exp(k * (-np.cos(x - phi) - 1)) + b


def planted(n, seed=0):
    """Two opposite peaks on a baseline, with noise in proportion to the response."""
    rng = np.random.default_rng(seed)
    a1, phi, k = rng.gamma(2.0, 1.0, n), rng.uniform(0, 2 * np.pi, n), rng.uniform(0.5, 5, n)
    rows = [p[:, None] for p in (a1, a1 * rng.uniform(0, 1, n), k, phi, rng.gamma(1.0, 0.5, n))]
    return np.maximum(double(X, *rows) * rng.normal(1, 0.2, (n, 16)), 0.0)


def ours(curves):
    coords = {"direction": ("direction", np.rad2deg(X), DEGREES)}
    rates = xr.DataArray(curves, dims=("nucleus_id", "direction"), coords=coords)
    fit = mx.tuning.fit(rates, dim="direction", model="double_von_mises", baseline=True)
    return fit.rss.values


def one_by_one(curves, **options):
    """Start from the largest response; residuals, inf where it gave up."""
    rss = np.full(len(curves), np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow on the way, covariance not estimated
        for i, y in enumerate(curves):
            start = [np.ptp(y), np.ptp(y) / 2, 1.0, X[np.argmax(y)], y.min()]
            try:
                found, _ = curve_fit(double, X, y, p0=start, maxfev=5000, **options)
            except RuntimeError:
                continue
            rss[i] = ((y - double(X, *found)) ** 2).sum()
    return rss


WAYS = {
    "tuning.fit": ours,
    "curve_fit, free": one_by_one,
    "curve_fit, same bounds": lambda curves: one_by_one(curves, bounds=SAME_BOUNDS),
}


@pytest.mark.benchmark(group="fit of two peaks and a baseline")
@pytest.mark.parametrize("way", WAYS)
def test_fit(benchmark, scale, way):
    curves = planted(max(10, int(3000 * scale)))
    found = benchmark.pedantic(WAYS[way], (curves,), rounds=3, warmup_rounds=1)
    best = ours(curves)
    for name, worse in (("above", found > best * (1 + 1e-6)), ("below", found < best * (1 - 1e-6))):
        benchmark.extra_info[f"residuals {name} those of tuning.fit"] = f"{worse.mean():.1%}"
    assert np.mean(best <= found * (1 + 1e-6)) > 0.5
