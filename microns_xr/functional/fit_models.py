"""Least squares of von Mises curves, one curve at a time, on raw buffers.

All models are written with one or two peaks and a constant,
``a0 exp(h - k) + a1 exp(-h - k) + b``, where ``h = k cos(x - phi)``. For every curve:

1. the residual on a grid over ``(phi, k)``, and its lowest local minima (`fit_grid`);
2. from each, Newton's method on the residual that the best amplitudes leave, with its exact second
   derivatives, damped where the curvature is not positive, along the arc where ``k`` is at its
   bound (`fit_search`).
"""

from __future__ import annotations

import numpy as np

from microns_xr.functional.fit_grid import STARTS, Grid, explained, lowest_minima, make_grid
from microns_xr.functional.fit_search import KAPPA_MAX, jit, project, refine

__all__ = ["KAPPA_MAX", "STATUS", "Grid", "fit_curves", "make_grid"]

STATUS = (
    *("ok", "missing", "negative", "flat", "untuned", "kappa_at_bound", "not_converged"),
    *("too_short", "narrow"),  # what the angles decide, not the search
)
_OK, _MISSING, _NEGATIVE, _FLAT, _UNTUNED, _AT_BOUND, _NOT_CONVERGED = range(7)

# A minimum of the grid this much of the variance above the best one found is not refined.
_WORSE = 0.1


@jit
def _problem(y):  # type: ignore[no-untyped-def]
    """Why a curve cannot be fitted, or 0."""
    low, high = y[0], y[0]
    for value in y:
        if not np.isfinite(value):
            return _MISSING
        low, high = min(low, value), max(high, value)
    if low < 0.0:
        return _NEGATIVE
    return _FLAT if high - low <= 1e-12 * high else _OK


@jit
def _fit(curves, cosine, sine, double, baseline, peaks, gram_g, u_g, v_g, n_phi, n_kappa, out):  # type: ignore[no-untyped-def]
    n_angles = curves.shape[1]
    n_columns = 1 + int(double) + int(baseline)
    n_peaks = 1 + int(double)
    n_grid = n_phi * n_kappa
    y, r, e = np.empty(n_angles), np.empty(n_angles), np.empty((3, n_angles))
    gram, rhs, a = np.zeros((3, 3)), np.zeros(3), np.zeros(3)
    columns, trial = np.zeros(3, np.int64), np.zeros(3)
    cross, d = np.zeros((4, 3)), np.zeros(5)
    dots, residual = np.empty((3, n_grid)), np.empty(n_grid)
    rows, values = np.zeros(STARTS, np.int64), np.zeros(STARTS)
    for curve in range(curves.shape[0]):
        out[curve, :7] = np.nan
        code = _problem(curves[curve])
        out[curve, 7] = code
        if code != _OK:
            continue
        highest = curves[curve].max()
        total, square = 0.0, 0.0
        for i in range(n_angles):
            y[i] = curves[curve, i] / highest
            total += y[i]
            square += y[i] * y[i]
        tss = 0.0
        for i in range(n_angles):
            tss += (y[i] - total / n_angles) ** 2

        dots[:] = 0.0
        for j in range(n_peaks):
            for i in range(n_angles):
                for g in range(n_grid):
                    dots[j, g] += peaks[j, i, g] * y[i]
        if baseline:
            dots[n_peaks] = total
        explained(gram_g, dots, n_columns, residual)
        for g in range(n_grid):
            residual[g] = square - residual[g]

        best, u, v, rested, at_bound = np.inf, 0.0, 0.0, False, False
        for m in range(lowest_minima(residual, n_phi, n_kappa, rows, values)):
            if values[m] > best + _WORSE * tss:
                break
            g = rows[m]
            found = refine(
                y, cosine, sine, u_g[g], v_g[g], double, baseline,
                e, gram, rhs, a, r, columns, trial, cross, d,
            )  # fmt: skip
            if found[2] < best:
                u, v, best, rested, at_bound = found
        rss = project(y, cosine, sine, u, v, double, baseline, e, gram, rhs, a, r, columns, trial)
        below = v < 0.0 or (v == 0.0 and u < 0.0)
        if double and (a[1] > a[0] or (a[1] == a[0] and below)):
            a[0], a[1], u, v = a[1], a[0], -u, -v
        kappa = np.hypot(u, v)
        lowest, largest = np.inf, -np.inf
        for i in range(n_angles):
            lowest, largest = min(lowest, y[i] - r[i]), max(largest, y[i] - r[i])
        if largest - lowest <= 1e-9 * largest:
            code, kappa, rss = _UNTUNED, 0.0, tss
            a[:] = 0.0
            a[n_columns - 1 if baseline else 0] = total / n_angles
        elif not rested:
            code = _NOT_CONVERGED
        elif at_bound:
            code = _AT_BOUND
        out[curve, 0] = a[0] * highest
        out[curve, 1] = a[1] * highest if double else 0.0
        out[curve, 2] = a[n_columns - 1] * highest if baseline else 0.0
        out[curve, 3] = kappa
        if code != _UNTUNED:
            out[curve, 4] = np.arctan2(v, u)
        out[curve, 5] = rss * highest * highest
        out[curve, 6] = 1.0 - rss / tss
        out[curve, 7] = code


def fit_curves(
    curves: np.ndarray, x: np.ndarray, grid: Grid, double: bool, baseline: bool
) -> np.ndarray:
    """Fit curves one after another, without holding the interpreter's lock.

    Parameters
    ----------
    curves : numpy.ndarray
        (curve, angle), numbers.
    x : numpy.ndarray
        (angle,), radians, such that the model has the period 2 pi.
    grid : Grid
        Of the same `x`, `double` and `baseline`.
    double, baseline : bool
        Whether there is an opposite peak, and a constant.

    Returns
    -------
    numpy.ndarray
        (curve, 8): amplitude of the higher peak and of the opposite one, constant, kappa, phi in
        (-pi, pi] (NaN where untuned), residual sum of squares, R², and a row of `STATUS`. The
        first seven are NaN where nothing was fitted.
    """
    out = np.empty((len(curves), 8))
    _fit(
        np.array(curves, dtype=np.float64, order="C"), np.cos(x), np.sin(x), double, baseline,
        grid.peaks, grid.gram, grid.u, grid.v, *grid.shape, out,
    )  # fmt: skip
    return out
