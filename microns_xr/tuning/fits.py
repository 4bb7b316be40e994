"""Parametric tuning curves: fits of von Mises functions to many curves at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import xarray as xr

from microns_xr.angles import describe_angle, require_same_angles
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.threads import equal_spans, run_spans, usable_threads

# The axis of a tuning curve: which angles were measured, and what they mean.


TuningDim = Literal["direction", "orientation"]
_TURNS: dict[str, float] = {"direction": 1.0, "orientation": 0.5}
_SAME = 1e-6  # turns: angles closer than this are one angle


@dataclass(frozen=True)
class AngleAxis:
    """Measured angles of a dimension."""

    dim: str
    radians: np.ndarray  # the angles, as they stand along the dimension
    units: str  # what the coordinate states
    convention: str
    turn: float  # A whole turn in its units

    @property
    def turns(self) -> np.ndarray:
        """The angles in turns."""
        return self.radians / (2 * np.pi)

    @property
    def period(self) -> float:
        """Period of the axis in turns: 1 for directions, 1/2 for orientations."""
        return _TURNS[self.dim]

    def angle_attrs(self, period: float) -> dict[str, Any]:
        """Return the attributes of an angle in the units and convention of the axis."""
        return {
            "units": self.units,
            "angle_convention": self.convention,
            "period": self.turn * period,
        }


def angle_axis(rates: xr.DataArray, dim: str, name: str = "rates") -> AngleAxis:
    """Read the angles of a dimension of tuning curves, or raise if they are not usable."""
    if dim not in _TURNS:
        raise SchemaError(f"dim is {dim!r}, expected 'direction' or 'orientation'")
    if not isinstance(rates, xr.DataArray):
        raise SchemaError(
            f"{name} is a {type(rates).__name__}, expected a DataArray over {dim!r}, "
            "such as curves.rate_dir"
        )
    if dim not in rates.dims or rates.dtype.kind not in "iuf":
        raise SchemaError(
            f"{name} has dims {rates.dims} and dtype {rates.dtype}, expected numbers over {dim!r}"
        )
    if dim not in rates.coords:
        raise SchemaError(
            f"{name} has no coordinate {dim!r}: assign its angles, with the attributes 'units' and "
            "'angle_convention'"
        )
    coord = rates.coords[dim]
    units, convention, _ = describe_angle(coord, dim)
    turn = 360.0 if units == "degree" else 2 * np.pi
    period = coord.attrs.get("period", turn * _TURNS[dim])
    if not np.isclose(float(period), turn * _TURNS[dim]):
        raise SchemaError(
            f"{dim} has period {period} {units}, expected {turn * _TURNS[dim]}: its units, its "
            "name or its period is wrong"
        )
    values = np.asarray(coord.values, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise SchemaError(f"{dim} is {values}, expected at least one angle, all finite")
    require_likely_units(values, units, dim)
    phase = np.sort(np.mod(values / turn, _TURNS[dim]))
    gaps = np.diff(phase, append=phase[0] + _TURNS[dim])
    if values.size > 1 and gaps.min() < _SAME:
        raise SchemaError(
            f"{dim} repeats an angle (modulo {turn * _TURNS[dim]:.6g} {units}): {values}; "
            "average the responses to equal stimuli first"
        )
    return AngleAxis(dim, values * (2 * np.pi / turn), units, convention, turn)


def require_likely_units(values: np.ndarray, units: str, name: str) -> None:
    """Raise if angles cannot be in the units they state."""
    distinct = np.unique(values)
    span = float(np.ptp(distinct)) if distinct.size else 0.0
    wrong_degrees = units == "degree" and distinct.size > 3 and span <= 2 * np.pi
    if wrong_degrees or (units == "radian" and span > 4 * np.pi):
        other = "radian" if units == "degree" else "degree"
        raise SchemaError(
            f"{name} says {units!r} but goes from {distinct[0]:.4g} to {distinct[-1]:.4g}: these "
            f"look like {other}s; set its attribute 'units' to {other!r}, or convert the numbers"
        )


def require_free_names(obj: xr.DataArray, names: Iterable[str], what: str) -> None:
    """Raise if coordinates of an input have names that a result needs for its variables."""
    taken = sorted(set(names) & {str(c) for c in obj.coords})
    if taken:
        raise SchemaError(
            f"{what} has coordinates {taken}, which the result would name its own variables: "
            f"drop or rename them first, such as with {what}.drop_vars({taken})"
        )


def require_full_circle(axis: AngleAxis, even: bool = False) -> np.ndarray:
    """Raise unless the angles are evenly spaced round their whole circle; return their order."""
    phase = np.mod(axis.turns + _SAME, axis.period)  # so that a whole turn is 0 after rounding
    order = np.argsort(phase, kind="stable")
    n = phase.size
    if n < 2 or np.abs(np.diff(phase[order]) - axis.period / n).max() > _SAME:
        raise SchemaError(
            f"{axis.dim} is {axis.turns * axis.turn} {axis.units}, expected angles evenly spaced "
            f"round {axis.period * axis.turn:.6g} {axis.units}: sums over angles need them all"
        )
    if even and n % 2:
        raise SchemaError(
            f"{axis.dim} has {n} angles, expected an even number, so that each has an opposite one"
        )
    return order


# The search for one von Mises curve from a start: non-negative amplitudes, and Newton's method.
#
# In ``(u, v) = (k cos phi, k sin phi)`` nothing is singular at ``k = 0``, where a preferred angle
# has no meaning. The amplitudes and the constant are linear, hence solved for, not searched
# (variable projection, Golub & Pereyra 1973, doi:10.1137/0710036), under the condition that none
# is negative.


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


# The residual of von Mises curves on a grid over phase and sharpness, and its lowest minima.


# Close enough that the lowest minima are not stepped over: the peak of k = 50 is 9.5 degrees wide
# at half height to either side, and at small k the residual changes slowly.
_N_PHI = 60
_GRID_KAPPA = np.array([0.15, 0.4, 0.8, 1.4, 2.3, 3.6, 5.5, 8.5, 13.0, 20.0, 31.0, KAPPA_MAX])
# How many minima are looked for.
STARTS = 6


class Grid(NamedTuple):
    """The peaks on a grid over (phi, k), shared by all curves."""

    u: np.ndarray  # (n_phi * n_kappa,), k fastest
    v: np.ndarray
    # (2 or 1, angle, n_phi * n_kappa): values of the peak, and of the opposite one
    peaks: np.ndarray
    # (7, n_phi * n_kappa): inner products 00, 11, 22, 01, 02, 12 of the columns, which are
    # peaks and constant, and the inverse of their determinant where there are three (0 where
    # they are dependent)
    gram: np.ndarray
    shape: tuple[int, int]  # n_phi, n_kappa; the first phase follows the last


def make_grid(x: np.ndarray, double: bool, baseline: bool) -> Grid:
    """Lay out the grid for measured angles."""
    n_phi = _N_PHI // 2 if double else _N_PHI
    phi = np.arange(n_phi) * (2 * np.pi / _N_PHI)
    kappa = np.tile(_GRID_KAPPA, n_phi)
    phi = np.repeat(phi, len(_GRID_KAPPA))
    columns = [np.exp(kappa * (np.cos(x[:, None] - phi) - 1))]
    if double:
        columns.append(np.exp(kappa * (-np.cos(x[:, None] - phi) - 1)))
    peaks = np.stack(columns)
    if baseline:
        columns.append(np.ones_like(columns[0]))
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    gram = np.zeros((7, len(phi)))
    for row, (i, j) in enumerate(pairs):
        if j < len(columns):
            gram[row] = np.einsum("ag,ag->g", columns[i], columns[j])
    if len(columns) == 3:
        full = np.stack([gram[[0, 3, 4]], gram[[3, 1, 5]], gram[[4, 5, 2]]]).T
        det = np.linalg.det(full)
        independent = det > DEPENDENT * gram[0] * gram[1] * gram[2]
        gram[6, independent] = 1 / det[independent]
    return Grid(kappa * np.cos(phi), kappa * np.sin(phi), peaks, gram, (n_phi, len(_GRID_KAPPA)))


@jit
def _explained_by_pair(gii, gjj, gij, ri, rj):  # type: ignore[no-untyped-def]
    """Sum of squares explained by two columns, amplitudes not negative; products are positive."""
    det = gii * gjj - gij * gij
    ai, aj = gjj * ri - gij * rj, gii * rj - gij * ri
    alone = max(ri * ri / gii, rj * rj / gjj)
    both = (ai * ri + aj * rj) / max(det, DEPENDENT * gii * gjj)
    return both if ai >= 0.0 and aj >= 0.0 and det > DEPENDENT * gii * gjj else alone


@jit
def explained(gram, dots, n_columns, out):  # type: ignore[no-untyped-def]
    """Sum of squares that the columns explain at each point of the grid, none negative."""
    g00, g11, g22, g01, g02, g12, inverse = gram
    if n_columns == 1:
        for g in range(out.size):
            out[g] = dots[0, g] * dots[0, g] / g00[g]
    elif n_columns == 2:
        for g in range(out.size):
            out[g] = _explained_by_pair(g00[g], g11[g], g01[g], dots[0, g], dots[1, g])
    else:
        for g in range(out.size):
            r0, r1, r2 = dots[0, g], dots[1, g], dots[2, g]
            pair = _explained_by_pair(g00[g], g11[g], g01[g], r0, r1)
            pair = max(pair, _explained_by_pair(g00[g], g22[g], g02[g], r0, r2))
            pair = max(pair, _explained_by_pair(g11[g], g22[g], g12[g], r1, r2))
            c00, c11 = g11[g] * g22[g] - g12[g] * g12[g], g00[g] * g22[g] - g02[g] * g02[g]
            c22, c01 = g00[g] * g11[g] - g01[g] * g01[g], g02[g] * g12[g] - g01[g] * g22[g]
            c02, c12 = g01[g] * g12[g] - g02[g] * g11[g], g01[g] * g02[g] - g12[g] * g00[g]
            a0, a1 = c00 * r0 + c01 * r1 + c02 * r2, c01 * r0 + c11 * r1 + c12 * r2
            a2 = c02 * r0 + c12 * r1 + c22 * r2
            all_of_them = (a0 * r0 + a1 * r1 + a2 * r2) * inverse[g]
            feasible = a0 >= 0.0 and a1 >= 0.0 and a2 >= 0.0 and inverse[g] > 0.0
            out[g] = all_of_them if feasible else pair


@jit
def lowest_minima(residual, n_phi, n_kappa, rows, values):  # type: ignore[no-untyped-def]
    """Rows of the lowest local minima of the grid, lowest first; returns how many."""
    n = 0
    for p in range(n_phi):
        before, after = (p - 1) % n_phi * n_kappa, (p + 1) % n_phi * n_kappa
        for m in range(n_kappa):
            g = p * n_kappa + m
            here = residual[g]
            if n == rows.size and here >= values[n - 1]:
                continue
            if residual[before + m] <= here or residual[after + m] < here:
                continue
            if m > 0 and residual[g - 1] <= here:
                continue
            if m + 1 < n_kappa and residual[g + 1] < here:
                continue
            at = n if n < rows.size else n - 1
            n = min(n + 1, rows.size)
            while at > 0 and values[at - 1] > here:
                values[at], rows[at] = values[at - 1], rows[at - 1]
                at -= 1
            values[at], rows[at] = here, g
    return n


# Least squares of von Mises curves, one curve at a time, on raw buffers.
#
# All models are written with one or two peaks and a constant, ``a0 exp(h - k) + a1 exp(-h - k) +
# b``, where ``h = k cos(x - phi)``. For every curve:
#
# 1. the residual on a grid over ``(phi, k)``, and its lowest local minima (`fit_grid`); 2. from
# each, Newton's method on the residual that the best amplitudes leave, with its exact second
# derivatives, damped where the curvature is not positive, along the arc where ``k`` is at its
# bound (`fit_search`).


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
    """Fit curves one after another, without holding the interpreter's lock."""
    out = np.empty((len(curves), 8))
    _fit(
        np.array(curves, dtype=np.float64, order="C"), np.cos(x), np.sin(x), double, baseline,
        grid.peaks, grid.gram, grid.u, grid.v, *grid.shape, out,
    )  # fmt: skip
    return out


Model = Literal["von_mises", "double_von_mises", "single_von_mises"]

_CODE = {word: float(code) for code, word in enumerate(STATUS)}
_COLUMNS = (
    *("amplitude", "amplitude_opposite", "baseline", "kappa", "preferred", "width"),
    *("rss", "r2", "code"),
)
# Curves a thread takes at a time.
_CURVES = 512


@dataclass(frozen=True)
class _Shape:
    """A model: how often it comes round in a turn, its peaks, what its angle is called."""

    harmonic: int
    double: bool
    preferred: str
    formula: str

    @property
    def n_parameters(self) -> int:
        """Parameters without the baseline."""
        return 4 if self.double else 3


_MODELS = {
    "von_mises": _Shape(2, False, "pref_ori", "A exp(k (cos 2(x - phi) - 1))"),
    "single_von_mises": _Shape(1, False, "pref_dir", "A exp(k (cos(x - phi) - 1))"),
    "double_von_mises": _Shape(
        1, True, "pref_dir", "A1 exp(k (cos(x - phi) - 1)) + A2 exp(k (-cos(x - phi) - 1))"
    ),
}


def fit(
    rates: xr.DataArray,
    *,
    dim: TuningDim,
    model: Model = "von_mises",
    baseline: bool = True,
) -> xr.Dataset:
    """Fit a von Mises function to every tuning curve, by least squares.

    ================  ================================================  ===========
    model             curve                                             preferred
    ================  ================================================  ===========
    von_mises         A exp(k (cos 2(x - phi) - 1)) + b                 ``pref_ori``
    single_von_mises  A exp(k (cos(x - phi) - 1)) + b                   ``pref_dir``
    double_von_mises  A1 exp(k (cos(x - phi) - 1))                      ``pref_dir``
                      + A2 exp(k (-cos(x - phi) - 1)) + b
    ================  ================================================  ===========

    Parameters
    ----------
    rates : xarray.DataArray
        Over `dim` and any leading dims (``nucleus_id``, ``scan_unit``, ...), in memory or chunked
        (dask): chunked curves are fitted when the result is computed. The coordinate `dim` states
        ``units`` (degree or radian) and ``angle_convention``; its angles need not be even.
    dim : {"direction", "orientation"}
        Over which dimension. An orientation comes round in half a turn, as only ``von_mises``
        does.
    model : {"von_mises", "double_von_mises", "single_von_mises"}, optional
        The curve.
    baseline : bool, optional
        Whether there is a constant b. It is not negative, as no response is; a free one would let
        every weakly tuned curve run off to ``k = 0`` with an infinite amplitude.

    Returns
    -------
    xarray.Dataset
        Over the leading dims, with their coordinates:

        ``amplitude``
            A, or that of the higher peak, above the baseline, in the units of the rates; >= 0.
        ``amplitude_opposite``
            That of the lower peak (``double_von_mises`` only).
        ``baseline``
            b >= 0; 0 where none was asked for.
        ``kappa``
            k, from 0 to 50.
        ``pref_ori`` or ``pref_dir``
            phi of the (higher) peak in the units and convention of the coordinate, in
            ``[0, period)``. Peaks of equal height: the one in the first half turn.
        ``width``
            Half width at half height of that peak above the baseline,
            ``arccos(1 - ln 2 / k)``, over 2 for ``von_mises``; the opposite peak is not
            considered. NaN where ``k < ln(2) / 2``: such a curve does not fall to the half.
        ``rss``, ``r2``
            Residual sum of squares, and ``1 - rss / sum((r - mean r)^2)``.
        ``converged``
            Whether the search came to rest inside of the bounds: status is ok or narrow.
        ``status``
            ok | narrow (the peak is narrower than the spacing of the angles: height and width
            rest on one or two responses) | kappa_at_bound (the best curve within the bounds is
            the sharpest allowed: the angle may be of use, height and width are not) | untuned
            (no tuned curve is better than the constant: no preferred angle) | not_converged
            (the best that was found) | and, with NaN in all of the above: missing (a response is
            NaN or infinite) | negative (a response is below 0) | flat (all are equal) | too_short
            (fewer different angles than parameters).

    Raises
    ------
    SchemaError
        If `rates` is not numeric over `dim`, its angles do not state what they are or cannot be
        that, an unknown word is given, or the model does not go with `dim`. A curve that cannot be
        fitted gets a status instead.

    Notes
    -----
    Amplitudes and baseline follow from (phi, k) by non-negative linear least squares (variable
    projection); (phi, k) come from a grid over all phases and the range of k, and from Newton's
    method at its six lowest minima. Curves are independent: threads share them, with as many
    threads as numba is set to use.

    Examples
    --------
    >>> degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    >>> orientation = xr.DataArray(np.arange(8) * 22.5, dims="orientation", attrs=degrees)
    >>> curve = 1 + 3 * np.exp(2 * (np.cos(2 * np.deg2rad(orientation - 50)) - 1))
    >>> rates = curve.assign_coords(orientation=orientation)
    >>> fit = fit(rates, dim="orientation")
    >>> [round(fit[name].item(), 6) for name in ("pref_ori", "kappa", "amplitude", "baseline")]
    [50.0, 2.0, 3.0, 1.0]
    >>> round(fit.width.item(), 3), fit.status.item()
    (24.6, 'ok')
    """
    if model not in _MODELS:
        raise SchemaError(f"model is {model!r}, expected one of {list(_MODELS)}")
    shape = _MODELS[model]
    axis = angle_axis(rates, dim)
    if dim == "orientation" and shape.harmonic == 1:
        raise SchemaError(
            f"model={model!r} comes round in a whole turn, but orientations in half of one: use "
            "model='von_mises', or fit the rates over 'direction'"
        )
    require_free_names(rates, [shape.preferred, *_COLUMNS, "converged", "status"], "rates")
    chunked = rates.chunks is not None
    if chunked:
        rates = rates.chunk({dim: -1})
    packed = xr.apply_ufunc(
        partial(_fit_block, axis=axis, shape=shape, baseline=bool(baseline), threaded=not chunked),
        rates,
        input_core_dims=[[dim]],
        output_core_dims=[["fitted"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"fitted": len(_COLUMNS)}},
    )
    return _labelled(packed, rates, axis, model, bool(baseline))


def _fit_block(
    rates: np.ndarray, *, axis: AngleAxis, shape: _Shape, baseline: bool, threaded: bool
) -> np.ndarray:
    """Fit curves along the last axis; returns `_COLUMNS` along a new last axis."""
    curves = rates.reshape(-1, rates.shape[-1])
    x = axis.radians * shape.harmonic
    n_different = len(np.unique(np.round(np.mod(x + 1e-7, 2 * np.pi), 6)))
    if n_different < shape.n_parameters + baseline:
        result = np.full((len(curves), len(_COLUMNS)), np.nan)
        result[:, -1] = _CODE["too_short"]
        return result.reshape(*rates.shape[:-1], len(_COLUMNS))
    grid = make_grid(x, shape.double, baseline)
    result = np.empty((len(curves), len(_COLUMNS)))

    def fit(span: slice) -> None:
        fitted = fit_curves(curves[span], x, grid, shape.double, baseline)
        result[span] = _described(fitted, axis, shape, np.pi / n_different)

    spans = equal_spans(len(curves), -(-len(curves) // _CURVES))
    # A fit takes as long as some hundred stored pairs, by which threads are counted.
    n_threads = usable_threads(None if threaded else 1, 200 * len(curves))
    run_spans(lambda lo, hi: fit(slice(lo, hi)), spans, n_threads)
    return result.reshape(*rates.shape[:-1], len(_COLUMNS))


def _described(
    fitted: np.ndarray, axis: AngleAxis, shape: _Shape, half_spacing: float
) -> np.ndarray:
    """Phases of the kernel to preferred angles and widths in the units of the axis."""
    unit = axis.turn / (2 * np.pi) / shape.harmonic
    period = axis.turn / shape.harmonic
    preferred = np.mod(fitted[:, 4] * unit, period)
    preferred[preferred >= period] = 0.0  # a phase of minus a rounding error
    kappa, code = fitted[:, 3], fitted[:, 7].copy()
    falls = kappa >= np.log(2) / 2
    width = np.full_like(kappa, np.nan)
    np.arccos(1 - np.log(2) / np.where(falls, kappa, 1.0), out=width, where=falls)
    code[(code == _CODE["ok"]) & (width < half_spacing)] = _CODE["narrow"]
    return np.column_stack([fitted[:, :4], preferred, width * unit, fitted[:, 5:7], code])


def _words(codes: np.ndarray) -> np.ndarray:
    return np.array(STATUS, dtype=object)[codes.astype(np.int64)]


def _labelled(
    packed: xr.DataArray, rates: xr.DataArray, axis: AngleAxis, model: str, baseline: bool
) -> xr.Dataset:
    shape = _MODELS[model]
    columns = {name: packed.isel(fitted=i) for i, name in enumerate(_COLUMNS)}
    code = columns.pop("code")
    if not shape.double:
        del columns["amplitude_opposite"]
    columns = {shape.preferred if n == "preferred" else n: v for n, v in columns.items()}
    columns["converged"] = (code == _CODE["ok"]) | (code == _CODE["narrow"])
    columns["status"] = xr.apply_ufunc(_words, code, dask="parallelized", output_dtypes=[object])
    fit = xr.Dataset(columns)
    units = rates.attrs.get("units")
    of_rates = {} if units is None else {"units": units}
    attrs: dict[str, dict[str, Any]] = {
        "amplitude": {"long_name": "height of the peak above the baseline", **of_rates},
        "amplitude_opposite": {"long_name": "height of the opposite peak", **of_rates},
        "baseline": {"long_name": "constant part of the curve", **of_rates},
        "kappa": {"long_name": "sharpness of the peak", "units": "1", "upper_bound": KAPPA_MAX},
        shape.preferred: {
            **describe(FUNCTIONAL[shape.preferred]),
            **axis.angle_attrs(1 / shape.harmonic),
        },
        "width": {"long_name": "half width at half height of the peak", "units": axis.units},
        "rss": {"long_name": "residual sum of squares"},
        "r2": {"long_name": "explained share of the variance over angles", "units": "1"},
        "converged": {"long_name": "the search came to rest inside of the bounds"},
        "status": {"long_name": "ok, or what is the matter with the fit"},
    }
    for name in fit.data_vars:
        fit[name].attrs = attrs[str(name)]
    fit.attrs = {
        "model": model,
        "formula": shape.formula + (" + b" if baseline else ""),
        "tuning_dim": axis.dim,
        "fitted_variable": str(rates.name) if rates.name is not None else "rates",
    }
    entry = f"tuning.fit(dim={axis.dim!r}, model={model!r}, baseline={baseline})"
    return add_history(fit, entry, source=rates)


def evaluate(fit: xr.Dataset, angles: xr.DataArray | np.ndarray | list[float]) -> xr.DataArray:
    """Draw fitted curves: their values at any angles.

    Parameters
    ----------
    fit : xarray.Dataset
        From `microns_xr.tuning.fit`.
    angles : xarray.DataArray or array-like
        One-dimensional: plain numbers in the units and convention of the fit, or a DataArray that
        states its own, which must be the same.

    Returns
    -------
    xarray.DataArray
        ``rate(..., direction)`` or ``rate(..., orientation)``, over the dims of the fit and that
        which was fitted; NaN for curves that were not fitted.

    Raises
    ------
    SchemaError
        If `fit` is no such Dataset, the angles are not one-dimensional, or theirs are other units
        or another convention: `microns_xr.angles.convert` converts.

    Examples
    --------
    >>> fit = xr.Dataset({"amplitude": 3.0, "baseline": 1.0, "kappa": 2.0,
    ...     "pref_ori": ((), 50.0, {"units": "degree", "angle_convention": "up_clockwise"})},
    ...     attrs={"model": "von_mises", "tuning_dim": "orientation"})
    >>> evaluate(fit, [50.0, 140.0]).values.round(3)
    array([4.   , 1.055])
    """
    model = fit.attrs.get("model") if isinstance(fit, xr.Dataset) else None
    if model not in _MODELS or "tuning_dim" not in fit.attrs:
        raise SchemaError(
            f"fit is a {type(fit).__name__} with model {model!r}, expected the Dataset that "
            "fit_tuning returns, with its attributes"
        )
    shape = _MODELS[model]
    dim = fit.attrs["tuning_dim"]
    preferred = fit[shape.preferred]
    if isinstance(angles, xr.DataArray):
        require_same_angles([(shape.preferred, preferred), ("angles", angles)])
    values = np.asarray(angles, dtype=np.float64)
    if values.ndim != 1:
        raise SchemaError(f"angles have shape {values.shape}, expected one dimension")
    units, convention = preferred.attrs["units"], preferred.attrs["angle_convention"]
    turn = 360.0 if units == "degree" else 2 * np.pi
    axis = AngleAxis(dim, values * (2 * np.pi / turn), units, convention, turn)
    x = xr.DataArray(values, dims=dim)
    phase = (x - preferred) * (2 * np.pi * shape.harmonic / turn)
    # An untuned curve has no preferred angle, but its constant has a value everywhere.
    height: Any = np.cos(phase)
    height = height.where(fit["kappa"] > 0, 1.0).where(fit["kappa"].notnull())
    rate = fit["amplitude"] * np.exp(fit["kappa"] * (height - 1)) + fit["baseline"]
    if shape.double:
        rate = rate + fit["amplitude_opposite"] * np.exp(fit["kappa"] * (-height - 1))
    coord = (dim, values, axis.angle_attrs(axis.period))
    rate = rate.transpose(..., dim).assign_coords({dim: coord}).rename("rate")
    rate.attrs = {"long_name": f"response of the fitted {model} curve"}
    return rate
