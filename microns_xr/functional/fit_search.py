"""The search for one von Mises curve from a start: non-negative amplitudes, and Newton's method.

In ``(u, v) = (k cos phi, k sin phi)`` nothing is singular at ``k = 0``, where a preferred angle has
no meaning. The amplitudes and the constant are linear, hence solved for, not searched (variable
projection, Golub & Pereyra 1973, doi:10.1137/0710036), under the condition that none is negative.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["DEPENDENT", "KAPPA_MAX", "jit", "project", "refine"]

KAPPA_MAX = 50.0
# Supports of one, two and three columns, as bits, the larger first.
_SUPPORTS = np.array([[0] * 8, [1] + [0] * 7, [3, 1, 2] + [0] * 5, [7, 3, 5, 6, 1, 2, 4, 0]])
# Columns whose part outside of the others' span is smaller than this count as one column.
DEPENDENT = 1e-12
# A step that promises less than this part of the sum of squares is the last.
_LAST_STEP = 1e-11
_MAX_STEPS = 300


def jit(function: Any) -> Any:
    """Compile, once for all processes, to code that releases the interpreter's lock."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


@jit
def _solve(gram, rhs, columns, n, out):  # type: ignore[no-untyped-def]
    """Solve for the first `n` of `columns` by elimination; False where they are dependent."""
    i = columns[0]
    d0 = gram[i, i]
    if d0 <= 0.0:
        return False
    if n == 1:
        out[0] = rhs[i] / d0
        return True
    j = columns[1]
    l10 = gram[j, i] / d0
    d1 = gram[j, j] - l10 * gram[j, i]
    if d1 <= DEPENDENT * gram[j, j]:
        return False
    z1 = rhs[j] - l10 * rhs[i]
    if n == 2:
        out[1] = z1 / d1
        out[0] = rhs[i] / d0 - l10 * out[1]
        return True
    k = columns[2]
    l20 = gram[k, i] / d0
    rest = gram[k, j] - l20 * gram[j, i]
    l21 = rest / d1
    d2 = gram[k, k] - l20 * gram[k, i] - l21 * rest
    if d2 <= DEPENDENT * gram[k, k]:
        return False
    out[2] = (rhs[k] - l20 * rhs[i] - l21 * z1) / d2
    out[1] = z1 / d1 - l21 * out[2]
    out[0] = rhs[i] / d0 - l10 * out[1] - l20 * out[2]
    return True


@jit
def _amplitudes(gram, rhs, n_columns, a, columns, trial):  # type: ignore[no-untyped-def]
    """Non-negative least squares by trying the supports, all columns first.

    The best non-negative solution is the plain one on its own support, so it is among them; the
    plain solution of all columns, where none is negative, is the best there is.
    """
    best = -1.0
    for mask in _SUPPORTS[n_columns]:
        if mask == 0 or (best >= 0.0 and mask == _SUPPORTS[n_columns, 1]):
            break
        n = 0
        for j in range(n_columns):
            if mask >> j & 1:
                columns[n] = j
                n += 1
        if not _solve(gram, rhs, columns, n, trial):
            continue
        explained = 0.0
        feasible = True
        for m in range(n):
            feasible = feasible and trial[m] >= 0.0
            explained += trial[m] * rhs[columns[m]]
        if feasible and explained > best:
            best = explained
            a[:] = 0.0
            for m in range(n):
                a[columns[m]] = trial[m]


@jit
def project(y, cosine, sine, u, v, double, baseline, e, gram, rhs, a, r, columns, trial):  # type: ignore[no-untyped-def]
    """Best amplitudes at (u, v); fills columns `e`, `gram`, `a` and `r`; returns its square sum."""
    kappa = np.hypot(u, v)
    opposite = np.exp(-2.0 * kappa)
    n_columns = 1 + int(double) + int(baseline)
    for i in range(y.size):
        e[0, i] = np.exp(u * cosine[i] + v * sine[i] - kappa)
        if double:
            e[1, i] = opposite / e[0, i]
        if baseline:
            e[n_columns - 1, i] = 1.0
    for j in range(n_columns):
        total = 0.0
        for i in range(y.size):
            total += e[j, i] * y[i]
        rhs[j] = total
        for m in range(j + 1):
            total = 0.0
            for i in range(y.size):
                total += e[j, i] * e[m, i]
            gram[j, m] = total
            gram[m, j] = total
    _amplitudes(gram, rhs, n_columns, a, columns, trial)
    rss = 0.0
    for i in range(y.size):
        value = y[i]
        for j in range(n_columns):
            value -= a[j] * e[j, i]
        r[i] = value
        rss += value * value
    return rss


@jit
def _derivatives(y, cosine, sine, double, baseline, e, gram, a, r, columns, cross, d):  # type: ignore[no-untyped-def]
    """Gradient and Hessian in (u, v) of half the projected residual, into d[:5].

    The amplitudes follow (u, v), so the Hessian is the Schur complement of theirs; amplitudes held
    at 0 stay. The factor exp(-k) of the columns only rescales amplitudes: it has no derivative.
    """
    n_columns = 1 + int(double) + int(baseline)
    n_peaks = 1 + int(double)
    d[:] = 0.0
    cross[:] = 0.0
    for i in range(y.size):
        slope = a[0] * e[0, i]
        value = slope
        if double:
            slope -= a[1] * e[1, i]
            value += a[1] * e[1, i]
        c, s = cosine[i], sine[i]
        d[0] -= r[i] * slope * c
        d[1] -= r[i] * slope * s
        q = slope * slope - r[i] * value
        d[2] += q * c * c
        d[3] += q * c * s
        d[4] += q * s * s
        for j in range(n_columns):
            sign = 0.0 if j >= n_peaks else 1.0 - 2.0 * j
            part = (slope - sign * r[i]) * e[j, i]
            cross[0, j] += part * c
            cross[1, j] += part * s
    n = 0
    for j in range(n_columns):
        if a[j] > 0.0:
            columns[n] = j
            n += 1
    for m in range(2):
        if n == 0 or not _solve(gram, cross[m], columns, n, cross[2 + m]):
            return
    for m in range(n):
        j = columns[m]
        d[2] -= cross[0, j] * cross[2, m]
        d[3] -= cross[0, j] * cross[3, m]
        d[4] -= cross[1, j] * cross[3, m]


@jit
def _step(d, damping):  # type: ignore[no-untyped-def]
    """Newton step over absolute curvatures, what the undamped one promises, whether all curve up.

    Over the absolute value of a curvature a step leaves a saddle instead of going to it.
    """
    middle, half = 0.5 * (d[2] + d[4]), 0.5 * (d[2] - d[4])
    spread = np.hypot(half, d[3])
    largest = abs(middle) + spread + 1e-300
    angle = 0.5 * np.arctan2(d[3], half)
    c, s = np.cos(angle), np.sin(angle)  # direction of the larger curvature
    along, across = d[0] * c + d[1] * s, d[1] * c - d[0] * s
    floor = 1e-10 * largest
    first, second = max(abs(middle + spread), floor), max(abs(middle - spread), floor)
    promised = 0.5 * (along * along / first + across * across / second)
    convex = middle - spread >= -1e-7 * largest
    if not convex and promised <= 1e-9 * largest:
        across = -1e-2 * second  # at rest on a saddle
    step, side = -along / (first + damping * largest), -across / (second + damping * largest)
    return step * c - side * s, step * s + side * c, promised, convex


@jit
def _move(u, v, d, damping):  # type: ignore[no-untyped-def]
    """Return the next point, what the undamped step promises, if convex, if on the bound."""
    kappa = np.hypot(u, v)
    outward = -(d[0] * u + d[1] * v)
    if kappa >= KAPPA_MAX * (1 - 1e-12) and outward > 0.0:
        cu, cv = u / kappa, v / kappa
        g = (d[1] * cu - d[0] * cv) * kappa
        h = d[2] * v * v - 2 * d[3] * u * v + d[4] * u * u + outward
        size = abs(h) + 1e-300
        turn = min(max(-g / (size * (1 + damping)), -0.2), 0.2)
        c, s = np.cos(turn), np.sin(turn)
        u, v = KAPPA_MAX * (cu * c - cv * s), KAPPA_MAX * (cv * c + cu * s)
        return u, v, 0.5 * g * g / size, h > 0.0, True
    du, dv, promised, convex = _step(d, damping)
    longest = 0.5 * (1 + kappa)
    shorter = min(1.0, longest / (np.hypot(du, dv) + 1e-300))
    u, v = u + du * shorter, v + dv * shorter
    shorter = min(1.0, KAPPA_MAX / (np.hypot(u, v) + 1e-300))
    return u * shorter, v * shorter, promised, convex, False


@jit
def refine(y, cosine, sine, u, v, double, baseline, e, gram, rhs, a, r, columns, trial, cross, d):  # type: ignore[no-untyped-def]
    """Newton's method from (u, v); returns (u, v, rss, whether it came to rest, on the bound).

    `a` holds the amplitudes of the last point tried, which may not be the one returned.
    """
    rss = project(y, cosine, sine, u, v, double, baseline, e, gram, rhs, a, r, columns, trial)
    scale = 0.0
    for i in range(y.size):
        scale += y[i] * y[i]
    damping = 0.0
    moved = True
    for _ in range(_MAX_STEPS):
        if moved:
            _derivatives(y, cosine, sine, double, baseline, e, gram, a, r, columns, cross, d)
        nu, nv, promised, convex, at_bound = _move(u, v, d, 0.0)
        last = convex and promised <= _LAST_STEP * scale
        if damping > 0.0 and not last:
            nu, nv, promised, convex, at_bound = _move(u, v, d, damping)
        new = project(y, cosine, sine, nu, nv, double, baseline, e, gram, rhs, a, r, columns, trial)
        moved = new < rss
        if moved:
            u, v, rss = nu, nv, new
            damping = 0.0 if damping < 1e-3 else 0.1 * damping
        if last:
            return u, v, rss, True, at_bound
        if not moved:
            if damping > 1e12:
                break
            damping = max(10.0 * damping, 1e-2)
    return u, v, rss, False, False
