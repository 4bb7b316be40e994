"""Fits of tuning curves: time, against scipy neuron by neuron, and against recorded fits.

    python tests/benchmarks/bench_fits.py [--curves 100000] [--sample 500]

The recorded fits are those of orientation_fits_v661.parquet, looked for in the folder that
MICRONS_XR_REAL_DATA names; without it that part is left out.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.optimize import curve_fit

import microns_xr as mx

X = np.arange(16) * np.pi / 8
DEGREES = {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0}


def double(x, a1, a2, k, phi, b):
    return a1 * np.exp(k * (np.cos(x - phi) - 1)) + a2 * np.exp(k * (-np.cos(x - phi) - 1)) + b


def labelled(curves):
    coords = {"direction": ("direction", np.rad2deg(X), DEGREES)}
    return xr.DataArray(curves, dims=("nucleus_id", "direction"), coords=coords)


def planted(n, seed=0):
    """Two opposite peaks on a baseline, with noise in proportion to the response."""
    rng = np.random.default_rng(seed)
    a1, phi, k = rng.gamma(2.0, 1.0, n), rng.uniform(0, 2 * np.pi, n), rng.uniform(0.5, 5, n)
    rows = [p[:, None] for p in (a1, a1 * rng.uniform(0, 1, n), k, phi, rng.gamma(1.0, 0.5, n))]
    return np.maximum(double(X, *rows) * rng.normal(1, 0.2, (n, 16)), 0.0)


def best_of(n, call):
    times = []
    for _ in range(n):
        started = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - started)
    return min(times), result


def one_by_one(curves, **options):
    """scipy.optimize.curve_fit from the largest response; residuals, inf where it gave up."""
    rss = np.full(len(curves), np.inf)
    started = time.perf_counter()
    for i, y in enumerate(curves):
        start = [np.ptp(y), np.ptp(y) / 2, 1.0, X[np.argmax(y)], y.min()]
        try:
            found, _ = curve_fit(double, X, y, p0=start, **options)
        except RuntimeError:
            continue
        rss[i] = ((y - double(X, *found)) ** 2).sum()
    return (time.perf_counter() - started) / len(curves), rss


def against_scipy(n_curves, n_sample):
    curves = planted(n_curves)
    rates = labelled(curves)
    mx.tuning.fit(rates[:1000], dim="direction", model="double_von_mises")  # compiles
    for model in ("von_mises", "single_von_mises", "double_von_mises"):
        for baseline in (False, True):
            seconds, fit = best_of(
                3,
                lambda m=model, b=baseline: mx.tuning.fit(
                    rates, dim="direction", model=m, baseline=b
                ),
            )
            words, counts = np.unique(fit.status.values.astype(str), return_counts=True)
            print(
                f"{model:17} baseline={baseline!s:5} {n_curves} curves {seconds:6.2f} s,"
                f" {seconds / n_curves * 1e6:5.1f} us a curve; {dict(zip(words.tolist(), counts.tolist(), strict=True))}"
            )
    ours = fit.rss.values[:n_sample]
    free = {"maxfev": 5000}
    bounds = {"bounds": ([0, 0, 0, -np.inf, 0], [np.inf, np.inf, 50, np.inf, np.inf]), **free}
    for name, options in (("free (lm)", free), ("same bounds (trf)", bounds)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overflow on the way, covariance not estimated
            each, rss = one_by_one(curves[:n_sample], **options)
        print(
            f"curve_fit, {name:17}: {each * 1e6:8.0f} us a curve on {n_sample}, "
            f"ratio {each * n_curves / seconds:6.0f}; gave up on {np.isinf(rss).sum()}, "
            f"residual above ours by 1e-6 in {np.mean(rss > ours * (1 + 1e-6)):.1%}, "
            f"below by 1e-6 in {np.mean(rss < ours * (1 - 1e-6)):.1%}"
        )


def against_recorded(folder):
    import pandas as pd

    table = pd.read_parquet(folder / "minnie65_real" / "orientation_fits_v661.parquet")
    for kind, model, name in (
        ("double", "von_mises", "pref_ori"),
        ("single", "single_von_mises", "pref_dir"),
    ):
        rows = table[table["tuning_type"] == kind]
        curves = rows[[f"rate_{i:02d}" for i in range(16)]].to_numpy()
        harmonic = 2 if kind == "double" else 1
        a, phi, k = (rows[[c]].to_numpy() for c in ("A", "phi", "k"))
        recorded = a * np.exp(k * (np.cos(harmonic * (X - phi)) - 1))
        rss = ((curves - recorded) ** 2).sum(axis=1)
        rates = labelled(curves)
        fit = mx.tuning.fit(rates, dim="direction", model=model, baseline=False)
        period = 360.0 / harmonic
        away = np.abs(mx.angles.difference(fit[name].values, np.rad2deg(phi[:, 0]), period))
        at_peak = np.mean(np.argmax(curves, axis=1) == np.rint(phi[:, 0] / (np.pi / 8)))
        print(
            f"{kind}: residual <= (1 + 1e-6) x recorded in {np.mean(fit.rss <= rss * (1 + 1e-6)):.2%} "
            f"of {len(rows)}, median ratio {np.median(fit.rss / rss):.4f}, "
            f"largest {np.max(fit.rss / rss):.8f}; converged {float(fit.converged.mean()):.2%}"
        )
        shares = ", ".join(
            f"{np.mean(away <= d):.1%} within {d:g}" for d in (1, 5, 11.25, 22.5, 45)
        )
        print(
            f"  {name} and recorded phi: {shares} degrees; phi is the largest response: {at_peak:.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=500)
    args = parser.parse_args()
    against_scipy(args.curves, args.sample)
    folder = os.environ.get("MICRONS_XR_REAL_DATA")
    if folder and Path(folder).is_dir():
        against_recorded(Path(folder))


if __name__ == "__main__":
    main()
