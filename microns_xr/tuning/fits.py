"""Fits of von Mises functions to tuning curves.

All models are ``a0 exp(h - k) + a1 exp(-h - k) + b`` with ``h = k cos(x - phi)``: one or two peaks
and a constant. Each curve is fitted separately, in compiled code that releases the GIL:

1. compute the residual on a grid over ``(phi, k)``, and find its lowest local minima;
2. from each of them, minimize the residual at the best amplitudes by Newton's method.

The search runs in ``(u, v) = (k cos phi, k sin phi)``, which is not singular at ``k = 0``.
Amplitudes and constant are linear, and solved for at every point (variable projection, Golub &
Pereyra 1973, doi:10.1137/0710036), constrained to be non-negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import (
    PERIODS,
    angle_attrs,
    describe_angle,
    full_turn,
    require_likely_units,
    require_same_angles,
    wrap,
)
from microns_xr.columns import require_columns
from microns_xr.errors import SchemaError, require_instance, require_one_of
from microns_xr.provenance import add_history
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.tables import SCAN_KEYS
from microns_xr.threads import equal_spans, run_spans, usable_threads

TuningDim = Literal["direction", "orientation"]
Model = Literal["von_mises", "double_von_mises", "single_von_mises"]

_SAME = 1e-6  # turns: angles closer than this are equal


class AngleAxis(NamedTuple):
    """The angles along a dimension of tuning curves."""

    dim: str
    values: np.ndarray  # in the units of the coordinate, in its order
    units: str
    convention: str | None
    turn: float  # a whole turn in those units
    period: float  # in turns: 1 for directions, 1/2 for orientations

    @property
    def radians(self) -> np.ndarray:
        """Angles in radians."""
        return self.values * (2 * np.pi / self.turn)

    def attrs_of(self, name: str) -> dict[str, Any]:
        """Return the attributes of a variable `name` with angles in these units."""
        return angle_attrs(self.units, self.convention, name)

    def full_circle(self, even: bool = False) -> np.ndarray:
        """Return the sort order of the angles, which must be evenly spaced around their circle."""
        n, period = len(self.values), self.period
        # The offset keeps an angle just below a whole turn, due to rounding, from sorting last.
        phase = np.mod(self.radians / (2 * np.pi) + _SAME, period)
        order = np.argsort(phase, kind="stable")
        if n < 2 or np.abs(np.diff(phase[order]) - period / n).max() > _SAME:
            raise SchemaError(
                f"{self.dim} is {self.values} {self.units}, expected angles evenly spaced around "
                f"{period * self.turn:.6g} {self.units}: sums over angles need all of them"
            )
        if even and n % 2:
            raise SchemaError(
                f"{self.dim} has {n} angles, expected an even number, so that each angle has an "
                "opposite"
            )
        return order


def angle_axis(rates: xr.DataArray, dim: str, name: str = "rates") -> AngleAxis:
    """Return the angles along a dimension of tuning curves, after checking them."""
    require_one_of("dim", dim, ("direction", "orientation"))
    expected = f"a DataArray over {dim!r}, such as curves.rate_dir"
    require_instance(name, rates, xr.DataArray, expected)
    if dim not in rates.dims or rates.dtype.kind not in "iuf":
        raise SchemaError(
            f"{name} has dims {rates.dims} and dtype {rates.dtype}, expected numbers over {dim!r}"
        )
    if dim not in rates.coords:
        raise SchemaError(
            f"{name} has no coordinate {dim!r}: assign the angles, with the attributes 'units' and "
            "'angle_convention'"
        )
    units, convention, circle = describe_angle(rates[dim], dim)
    values = np.asarray(rates[dim].values, dtype=np.float64)
    axis = AngleAxis(dim, values, units, convention, full_turn(units), PERIODS[dim])
    if not values.size or not np.isfinite(values).all():
        raise SchemaError(f"{dim} is {values}, expected at least one angle, all finite")
    require_likely_units(values, units, dim)
    phase = np.sort(np.mod(values / axis.turn, axis.period))
    if values.size > 1 and np.diff(phase, append=phase[0] + axis.period).min() < _SAME:
        raise SchemaError(
            f"{dim} repeats an angle (modulo {circle:.6g} {units}): {values}; average the "
            "responses to equal stimuli first"
        )
    return axis


def require_free_names(obj: xr.DataArray, names: Iterable[str], what: str) -> None:
    """Raise if coordinates of an input have the names of variables of the result."""
    taken = sorted(set(names) & {str(c) for c in obj.coords})
    if taken:
        raise SchemaError(
            f"{what} has coordinates {taken}, which are names of variables of the result: drop or "
            f"rename them first, such as with {what}.drop_vars({taken})"
        )


def apply_over_angles(
    function: Any, rates: xr.DataArray, dim: str, names: Sequence[str]
) -> dict[str, xr.DataArray]:
    """Apply a function that maps the last axis to columns; return the columns by name."""
    packed = xr.apply_ufunc(
        function,
        rates if rates.chunks is None else rates.chunk({dim: -1}),
        input_core_dims=[[dim]],
        output_core_dims=[["column"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"column": len(names)}},
    )
    return {name: packed.isel(column=i) for i, name in enumerate(names)}


# The fit of one curve.


KAPPA_MAX = 50.0
# Subsets of columns as bit masks, larger subsets first.
_SUPPORTS = np.array([7, 3, 5, 6, 1, 2, 4])
# Columns are dependent if the fraction outside the span of the others is smaller than this.
_DEPENDENT = 1e-12
# Stop after a step with a predicted decrease below this fraction of the sum of squares.
_LAST_STEP = 1e-11
_MAX_STEPS = 300
# The grid is dense enough not to miss a minimum: the peak of k = 50 has a half width of 9.5 degrees
# at half height, and at small k the residual changes slowly.
_N_PHI = 60
_GRID_KAPPA = np.array([0.15, 0.4, 0.8, 1.4, 2.3, 3.6, 5.5, 8.5, 13.0, 20.0, 31.0, KAPPA_MAX])
# At most so many minima of the grid are refined, and only those whose residual exceeds the best one
# so far by at most this fraction of the variance.
_STARTS = 6
_WORSE = 0.1

_STATUS = (
    *("ok", "missing", "negative", "flat", "untuned", "kappa_at_bound", "not_converged"),
    *("too_short", "narrow"),
)
_OK, _MISSING, _NEGATIVE, _FLAT, _UNTUNED, _AT_BOUND, _NOT_CONVERGED, _SHORT, _NARROW = range(9)
# Columns of the packed result, with their attributes. The code is a position in _STATUS.
_COLUMNS: dict[str, dict[str, Any]] = {
    "amplitude": {"long_name": "height of the peak above the baseline"},
    "amplitude_opposite": {"long_name": "height of the opposite peak"},
    "baseline": {"long_name": "constant part of the curve"},
    "kappa": {"long_name": "sharpness of the peak", "units": "1", "upper_bound": KAPPA_MAX},
    "preferred": {},
    "width": {"long_name": "half width at half height of the peak"},
    "rss": {"long_name": "residual sum of squares"},
    "r2": {"long_name": "explained share of the variance over angles", "units": "1"},
    "code": {"long_name": "ok, or the problem with the fit"},
}


class Work(NamedTuple):
    """A curve, its model and work arrays; columns are peak, opposite peak, constant."""

    y: np.ndarray  # responses divided by the largest response
    cosine: np.ndarray
    sine: np.ndarray
    double: bool
    n_columns: int
    e: np.ndarray  # (3, angles), the columns at the last projected point
    r: np.ndarray  # (angles,), the residual at that point
    gram: np.ndarray  # (3, 3), inner products of the columns
    rhs: np.ndarray  # (3,), inner products with the curve
    a: np.ndarray  # (3,), amplitudes
    trial: np.ndarray  # (3,), amplitudes of one support
    support: np.ndarray  # (3,), the columns of a support
    factor: np.ndarray  # (3, 3), of `_solve`
    cross: np.ndarray  # (4, 3), of `_derivatives`


def _jit(function: Any) -> Any:
    """Compile to cached code that releases the GIL."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


@_jit
def _solve(gram, rhs, columns, n, factor, out):  # type: ignore[no-untyped-def]
    """Solve for the first `n` of `columns` by LDL'; return False if they are dependent."""
    for i in range(n):
        diagonal, value = gram[columns[i], columns[i]], rhs[columns[i]]
        for j in range(i):
            product = gram[columns[i], columns[j]]
            for k in range(j):
                product -= factor[i, k] * factor[k, j]
            factor[j, i] = product  # above the diagonal: L times D
            factor[i, j] = product / factor[j, j]
            diagonal -= factor[i, j] * product
            value -= factor[i, j] * out[j]
        if diagonal <= _DEPENDENT * gram[columns[i], columns[i]]:
            return False
        factor[i, i], out[i] = diagonal, value
    for i in range(n - 1, -1, -1):
        value = out[i] / factor[i, i]
        for j in range(i + 1, n):
            value -= factor[j, i] * out[j]
        out[i] = value
    return True


@_jit
def _amplitudes(w):  # type: ignore[no-untyped-def]
    """Solve non-negative least squares of `w.gram` and `w.rhs` into `w.a`."""
    # The best non-negative solution is the unconstrained one on its support, so all supports are
    # tried. If the unconstrained solution on all columns is non-negative, it is the best.
    best = -1.0
    for mask in _SUPPORTS:
        if mask >= 1 << w.n_columns:
            continue
        n = 0
        for j in range(w.n_columns):
            if mask >> j & 1:
                w.support[n] = j
                n += 1
        if not _solve(w.gram, w.rhs, w.support, n, w.factor, w.trial):
            continue
        explained = 0.0
        feasible = True
        for m in range(n):
            feasible = feasible and w.trial[m] >= 0.0
            explained += w.trial[m] * w.rhs[w.support[m]]
        if feasible and explained > best:
            best = explained
            w.a[:] = 0.0
            for m in range(n):
                w.a[w.support[m]] = w.trial[m]
            if n == w.n_columns:
                return


@_jit
def _project(w, u, v):  # type: ignore[no-untyped-def]
    """Find the best amplitudes at (u, v), and return the residual sum of squares."""
    kappa = np.hypot(u, v)
    opposite = np.exp(-2.0 * kappa)
    for i in range(w.y.size):
        w.e[0, i] = np.exp(u * w.cosine[i] + v * w.sine[i] - kappa)
        if w.double:
            w.e[1, i] = opposite / w.e[0, i]
    for j in range(w.n_columns):
        total = 0.0
        for i in range(w.y.size):
            total += w.e[j, i] * w.y[i]
        w.rhs[j] = total
        for m in range(j + 1):
            total = 0.0
            for i in range(w.y.size):
                total += w.e[j, i] * w.e[m, i]
            w.gram[j, m] = w.gram[m, j] = total
    _amplitudes(w)
    rss = 0.0
    for i in range(w.y.size):
        value = w.y[i]
        for j in range(w.n_columns):
            value -= w.a[j] * w.e[j, i]
        w.r[i] = value
        rss += value * value
    return rss


@_jit
def _derivatives(w):  # type: ignore[no-untyped-def]
    """Return gradient (2) and Hessian (3) in (u, v) of half the rss at the projected point."""
    # The amplitudes depend on (u, v), so the Hessian is a Schur complement; amplitudes held at 0
    # are constant. The factor exp(-k) of the columns only rescales amplitudes, so its derivative
    # is not needed.
    gu = gv = huu = huv = hvv = 0.0
    w.cross[:] = 0.0
    for i in range(w.y.size):
        c, s, r = w.cosine[i], w.sine[i], w.r[i]
        slope = value = w.a[0] * w.e[0, i]
        if w.double:
            slope -= w.a[1] * w.e[1, i]
            value += w.a[1] * w.e[1, i]
        gu -= r * slope * c
        gv -= r * slope * s
        q = slope * slope - r * value
        huu += q * c * c
        huv += q * c * s
        hvv += q * s * s
        for j in range(w.n_columns):
            sign = 0.0 if j > int(w.double) else 1.0 - 2.0 * j
            part = (slope - sign * r) * w.e[j, i]
            w.cross[0, j] += part * c
            w.cross[1, j] += part * s
    n = 0
    for j in range(w.n_columns):
        if w.a[j] > 0.0:
            w.support[n] = j
            n += 1
    for m in range(2):
        if n == 0 or not _solve(w.gram, w.cross[m], w.support, n, w.factor, w.cross[2 + m]):
            return gu, gv, huu, huv, hvv
    for m in range(n):
        j = w.support[m]
        huu -= w.cross[0, j] * w.cross[2, m]
        huv -= w.cross[0, j] * w.cross[3, m]
        hvv -= w.cross[1, j] * w.cross[3, m]
    return gu, gv, huu, huv, hvv


@_jit
def _step(derivatives, damping):  # type: ignore[no-untyped-def]
    """Return a Newton step, the decrease predicted without damping, and whether it is convex."""
    gu, gv, huu, huv, hvv = derivatives
    middle, half = 0.5 * (huu + hvv), 0.5 * (huu - hvv)
    spread = np.hypot(half, huv)
    largest = abs(middle) + spread + 1e-300
    angle = 0.5 * np.arctan2(huv, half)
    c, s = np.cos(angle), np.sin(angle)  # direction of the larger curvature
    along, across = gu * c + gv * s, gv * c - gu * s
    # Dividing by the absolute curvature, a step moves away from a saddle instead of towards it.
    floor = 1e-10 * largest
    first, second = max(abs(middle + spread), floor), max(abs(middle - spread), floor)
    predicted = 0.5 * (along * along / first + across * across / second)
    convex = middle - spread >= -1e-7 * largest
    if not convex and predicted <= 1e-9 * largest:
        across = -1e-2 * second  # exactly on a saddle
    step, side = -along / (first + damping * largest), -across / (second + damping * largest)
    return step * c - side * s, step * s + side * c, predicted, convex


@_jit
def _move(u, v, derivatives, damping):  # type: ignore[no-untyped-def]
    """Return the next point, the predicted decrease, whether convex, and whether k is bounded."""
    gu, gv, huu, huv, hvv = derivatives
    kappa = np.hypot(u, v)
    outward = -(gu * u + gv * v)
    if kappa >= KAPPA_MAX * (1 - 1e-12) and outward > 0.0:
        # The residual decreases beyond the bound, so the search follows the circle k = KAPPA_MAX.
        cu, cv = u / kappa, v / kappa
        g = (gv * cu - gu * cv) * kappa
        h = huu * v * v - 2 * huv * u * v + hvv * u * u + outward
        size = abs(h) + 1e-300
        turn = min(max(-g / (size * (1 + damping)), -0.2), 0.2)
        c, s = np.cos(turn), np.sin(turn)
        u, v = KAPPA_MAX * (cu * c - cv * s), KAPPA_MAX * (cv * c + cu * s)
        return u, v, 0.5 * g * g / size, h > 0.0, True
    du, dv, predicted, convex = _step(derivatives, damping)
    shorter = min(1.0, 0.5 * (1 + kappa) / (np.hypot(du, dv) + 1e-300))
    u, v = u + du * shorter, v + dv * shorter
    shorter = min(1.0, KAPPA_MAX / (np.hypot(u, v) + 1e-300))
    return u * shorter, v * shorter, predicted, convex, False


@_jit
def _refine(w, u, v, scale):  # type: ignore[no-untyped-def]
    """Run Newton's method from (u, v); return (u, v, rss, converged, k at its bound)."""
    rss = _project(w, u, v)
    derivatives = _derivatives(w)
    damping = 0.0
    for _ in range(_MAX_STEPS):
        nu, nv, predicted, convex, at_bound = _move(u, v, derivatives, 0.0)
        last = convex and predicted <= _LAST_STEP * scale
        if damping > 0.0 and not last:
            nu, nv, predicted, convex, at_bound = _move(u, v, derivatives, damping)
        new = _project(w, nu, nv)
        better = new < rss
        if better:
            u, v, rss = nu, nv, new
        if last:
            return u, v, rss, True, at_bound
        if better:
            damping = 0.0 if damping < 1e-3 else 0.1 * damping
            derivatives = _derivatives(w)
        elif damping > 1e12:
            break
        else:
            damping = max(10.0 * damping, 1e-2)
    return u, v, rss, False, False


class Grid(NamedTuple):
    """Points (phi, k), k varying fastest, shared by all curves of the same angles and model."""

    u: np.ndarray  # (points,)
    v: np.ndarray
    columns: np.ndarray  # (columns, angles, points)
    # (7, points): inner products 00, 11, 22, 01, 02, 12 of the columns, and for three columns the
    # inverse of their determinant (0 if they are dependent)
    gram: np.ndarray


def _make_grid(x: np.ndarray, double: bool, baseline: bool) -> Grid:
    # Two opposite peaks swap roles after half a turn.
    phi = np.arange(_N_PHI // 2 if double else _N_PHI) * (2 * np.pi / _N_PHI)
    kappa = np.tile(_GRID_KAPPA, len(phi))
    phi = np.repeat(phi, len(_GRID_KAPPA))
    height = np.cos(x[:, None] - phi)
    columns = [np.exp(kappa * (height - 1))]
    if double:
        columns.append(np.exp(kappa * (-height - 1)))
    if baseline:
        columns.append(np.ones_like(height))
    e = np.stack(columns)
    full = np.einsum("iag,jag->gij", e, e)
    gram = np.zeros((7, len(phi)))
    for row, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
        if j < len(e):
            gram[row] = full[:, i, j]
    if len(e) == 3:
        det = np.linalg.det(full)
        independent = det > _DEPENDENT * gram[0] * gram[1] * gram[2]
        gram[6, independent] = 1 / det[independent]
    return Grid(kappa * np.cos(phi), kappa * np.sin(phi), e, gram)


@_jit
def _explained_by_pair(gii, gjj, gij, ri, rj):  # type: ignore[no-untyped-def]
    """Return the sum of squares that two columns explain with non-negative amplitudes."""
    det = gii * gjj - gij * gij
    ai, aj = gjj * ri - gij * rj, gii * rj - gij * ri
    alone = max(ri * ri / gii, rj * rj / gjj)
    both = (ai * ri + aj * rj) / max(det, _DEPENDENT * gii * gjj)
    return both if ai >= 0.0 and aj >= 0.0 and det > _DEPENDENT * gii * gjj else alone


@_jit
def _explained(gram, dots, out):  # type: ignore[no-untyped-def]
    """Compute the sum of squares that the columns explain at each point of the grid."""
    # Written out for one to three columns, so that the compiler can vectorize over points.
    g00, g11, g22, g01, g02, g12, inverse = gram
    for g in range(out.size):
        r0 = dots[0, g]
        if len(dots) == 1:
            out[g] = r0 * r0 / g00[g]
            continue
        r1 = dots[1, g]
        pair = _explained_by_pair(g00[g], g11[g], g01[g], r0, r1)
        if len(dots) == 3:
            r2 = dots[2, g]
            pair = max(pair, _explained_by_pair(g00[g], g22[g], g02[g], r0, r2))
            pair = max(pair, _explained_by_pair(g11[g], g22[g], g12[g], r1, r2))
            c00, c11 = g11[g] * g22[g] - g12[g] * g12[g], g00[g] * g22[g] - g02[g] * g02[g]
            c22, c01 = g00[g] * g11[g] - g01[g] * g01[g], g02[g] * g12[g] - g01[g] * g22[g]
            c02, c12 = g01[g] * g12[g] - g02[g] * g11[g], g01[g] * g02[g] - g12[g] * g00[g]
            a0, a1 = c00 * r0 + c01 * r1 + c02 * r2, c01 * r0 + c11 * r1 + c12 * r2
            a2 = c02 * r0 + c12 * r1 + c22 * r2
            if a0 >= 0.0 and a1 >= 0.0 and a2 >= 0.0 and inverse[g] > 0.0:
                pair = (a0 * r0 + a1 * r1 + a2 * r2) * inverse[g]
        out[g] = pair


@_jit
def _starts(y, square, grid, dots, residual):  # type: ignore[no-untyped-def]
    """Return the lowest local minima of the residual on the grid, lowest first."""
    n_columns, n_angles, n_points = grid.columns.shape
    dots[:] = 0.0
    for j in range(n_columns):
        for i in range(n_angles):
            for g in range(n_points):
                dots[j, g] += grid.columns[j, i, g] * y[i]
    _explained(grid.gram, dots, residual)
    for g in range(n_points):
        residual[g] = square - residual[g]
    n_kappa = _GRID_KAPPA.size
    rows = np.empty(n_points, np.int64)
    n = 0
    for g in range(n_points):
        k, here = g % n_kappa, residual[g]
        # Phases are periodic: a negative index wraps around.
        before, after = residual[g - n_kappa], residual[(g + n_kappa) % n_points]
        below = residual[g - 1] if k > 0 else np.inf
        above = residual[g + 1] if k + 1 < n_kappa else np.inf
        if before > here <= after and below > here <= above:
            rows[n] = g
            n += 1
    # The first few of a stable sort; np.argsort takes several seconds to compile.
    n_starts = min(n, _STARTS)
    for i in range(n_starts):
        least = i
        for j in range(i + 1, n):
            if residual[rows[j]] < residual[rows[least]]:
                least = j
        lowest = rows[least]
        for j in range(least, i, -1):
            rows[j] = rows[j - 1]
        rows[i] = lowest
    return rows[:n_starts]


@_jit
def _fit(curves, cosine, sine, double, baseline, grid, out):  # type: ignore[no-untyped-def]
    """Fit the curves whose code in `out` is ok, and fill `out`, with the phase as preferred."""
    n_angles = curves.shape[1]
    n_columns, _, n_points = grid.columns.shape
    w = Work(
        np.empty(n_angles), cosine, sine, double, n_columns,
        np.ones((3, n_angles)),  # the column of the constant stays 1
        np.empty(n_angles), np.zeros((3, 3)), np.zeros(3), np.zeros(3), np.zeros(3),
        np.zeros(3, np.int64), np.zeros((3, 3)), np.zeros((4, 3)),
    )  # fmt: skip
    dots, residual = np.empty((n_columns, n_points)), np.empty(n_points)
    y, a = w.y, w.a
    for row in range(curves.shape[0]):
        if out[row, 8] != _OK:
            continue
        # Loops in place of array expressions, which take several seconds to compile.
        highest = 0.0
        for i in range(n_angles):
            highest = max(highest, curves[row, i])
        square = mean = tss = 0.0
        for i in range(n_angles):
            y[i] = curves[row, i] / highest
            square += y[i] * y[i]
            mean += y[i]
        mean /= n_angles
        for i in range(n_angles):
            tss += (y[i] - mean) ** 2
        best, u, v, converged, at_bound = np.inf, 0.0, 0.0, False, False
        for g in _starts(y, square, grid, dots, residual):
            if residual[g] > best + _WORSE * tss:
                break
            refined = _refine(w, grid.u[g], grid.v[g], square)
            if refined[2] < best:
                u, v, best, converged, at_bound = refined
        rss = _project(w, u, v)
        # The higher peak is preferred; if equal, the one in the first half turn.
        behind = v < 0.0 or (v == 0.0 and u < 0.0)
        if double and (a[1] > a[0] or (a[1] == a[0] and behind)):
            a[0], a[1], u, v = a[1], a[0], -u, -v
        kappa, phase = np.hypot(u, v), np.arctan2(v, u)
        low, high = np.inf, -np.inf
        for i in range(n_angles):
            fitted = y[i] - w.r[i]
            low, high = min(low, fitted), max(high, fitted)
        if high - low <= 1e-9 * high:
            out[row, 8] = _UNTUNED
            kappa, phase, rss = 0.0, np.nan, tss
            a[:] = 0.0
            a[n_columns - 1 if baseline else 0] = mean
        elif not converged:
            out[row, 8] = _NOT_CONVERGED
        elif at_bound:
            out[row, 8] = _AT_BOUND
        out[row, 0] = a[0] * highest
        out[row, 1] = a[1] * highest if double else 0.0
        out[row, 2] = a[n_columns - 1] * highest if baseline else 0.0
        out[row, 3], out[row, 4] = kappa, phase
        out[row, 6], out[row, 7] = rss * highest * highest, 1.0 - rss / tss


# Fits of many curves.

# Number of curves per task of a thread.
_CURVES = 512


class Shape(NamedTuple):
    """A model of tuning."""

    harmonic: int  # periods per turn
    double: bool  # whether it has two peaks
    preferred: str  # name of its preferred angle
    formula: str


MODELS = {
    "von_mises": Shape(2, False, "pref_ori", "A exp(k (cos 2(x - phi) - 1))"),
    "single_von_mises": Shape(1, False, "pref_dir", "A exp(k (cos(x - phi) - 1))"),
    "double_von_mises": Shape(
        1, True, "pref_dir", "A1 exp(k (cos(x - phi) - 1)) + A2 exp(k (-cos(x - phi) - 1))"
    ),
}


def fit(
    rates: xr.DataArray, *, dim: TuningDim, model: Model = "von_mises", baseline: bool = True
) -> xr.Dataset:
    """Fit a von Mises function to every tuning curve by least squares.

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
        Over `dim` and any other dims (``nucleus_id``, ``scan_unit``, ...), in memory or chunked
        (dask): chunked curves are fitted when the result is computed. The coordinate `dim` must
        have ``units`` (degree or radian) and ``angle_convention``; angles need not be evenly
        spaced.
    dim : {"direction", "orientation"}
        The dimension of the angles. Orientations repeat after half a turn, so only ``von_mises``
        can be fitted to them.
    model : {"von_mises", "double_von_mises", "single_von_mises"}, optional
        The model, see above.
    baseline : bool, optional
        Whether to fit a constant b, which is non-negative, as responses are; otherwise weakly
        tuned curves would be fitted with ``k = 0`` and an infinite amplitude.

    Returns
    -------
    xarray.Dataset
        Over the other dims, with their coordinates:

        ``amplitude``
            A >= 0, the height of the (higher) peak above the baseline, in the units of the rates.
        ``amplitude_opposite``
            The height of the lower peak (``double_von_mises`` only).
        ``baseline``
            b >= 0; 0 without a baseline.
        ``kappa``
            k, from 0 to 50.
        ``pref_ori`` or ``pref_dir``
            phi of the (higher) peak in the units and convention of the coordinate, in
            ``[0, period)``. For two peaks of equal height, the one in the first half turn.
        ``width``
            Half width at half height of that peak, without baseline and opposite peak,
            ``arccos(1 - ln 2 / k)``, divided by 2 for ``von_mises``. NaN where
            ``k < ln(2) / 2``: such a curve does not fall to half its height.
        ``rss``, ``r2``
            Residual sum of squares, and ``1 - rss / sum((r - mean r)^2)``.
        ``converged``
            Whether the search converged within the bounds: status is ok or narrow.
        ``status``
            ok | narrow (the peak is narrower than the spacing of the angles: height and width
            depend on one or two responses) | kappa_at_bound (the best curve is the sharpest
            allowed: its angle may be useful, height and width are not) | untuned (no tuned curve
            is better than the constant: no preferred angle) | not_converged (the best curve so
            far) | and, with NaN in all of the above: missing (a response is NaN or infinite) |
            negative (a response is below 0) | flat (all responses are equal) | too_short (fewer
            distinct angles than parameters).

    Raises
    ------
    SchemaError
        If `rates` is not numeric over `dim`, if its angles do not state units and convention or
        contradict them, or if `model` is unknown or does not apply to `dim`. A curve that cannot
        be fitted gets a status instead.

    Notes
    -----
    Amplitudes and baseline follow from (phi, k) by non-negative linear least squares (variable
    projection); (phi, k) are searched on a grid over all phases and the range of k, then by
    Newton's method from its six lowest minima. Curves are fitted independently, on as many threads
    as numba is set to use.

    Examples
    --------
    >>> degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    >>> orientation = xr.DataArray(np.arange(8) * 22.5, dims="orientation", attrs=degrees)
    >>> curve = 1 + 3 * np.exp(2 * (np.cos(2 * np.deg2rad(orientation - 50)) - 1))
    >>> rates = curve.assign_coords(orientation=orientation)
    >>> fitted = fit(rates, dim="orientation")
    >>> [round(fitted[name].item(), 6) for name in ("pref_ori", "kappa", "amplitude", "baseline")]
    [50.0, 2.0, 3.0, 1.0]
    >>> round(fitted.width.item(), 3), fitted.status.item()
    (24.6, 'ok')
    """
    require_one_of("model", model, MODELS)
    shape = MODELS[model]
    axis = angle_axis(rates, dim)
    if dim == "orientation" and shape.harmonic == 1:
        raise SchemaError(
            f"model={model!r} has a period of a whole turn, but orientations repeat after half a "
            "turn: use model='von_mises', or fit the rates over 'direction'"
        )
    require_free_names(rates, [shape.preferred, *_COLUMNS, "converged", "status"], "rates")
    block = partial(
        _fit_block, axis=axis, shape=shape, baseline=bool(baseline), threaded=rates.chunks is None
    )
    columns = apply_over_angles(block, rates, dim, list(_COLUMNS))
    for name, attrs in _COLUMNS.items():
        columns[name].attrs = dict(attrs)
    code = columns.pop("code")
    columns["converged"] = (code == _OK) | (code == _NARROW)
    columns["converged"].attrs = {"long_name": "the search converged within the bounds"}
    columns["status"] = xr.apply_ufunc(_words, code, dask="parallelized", output_dtypes=[object])
    columns["status"].attrs = _COLUMNS["code"]
    if "units" in rates.attrs:
        for name in ("amplitude", "amplitude_opposite", "baseline"):
            columns[name].attrs["units"] = rates.attrs["units"]
    columns["width"].attrs["units"] = axis.units
    columns["preferred"].attrs |= describe(FUNCTIONAL[shape.preferred])
    columns["preferred"].attrs |= axis.attrs_of(shape.preferred)
    if not shape.double:
        del columns["amplitude_opposite"]
    fitted = xr.Dataset(columns).rename(preferred=shape.preferred)
    fitted.attrs = {
        "model": model,
        "formula": shape.formula + (" + b" if baseline else ""),
        "tuning_dim": dim,
        "fitted_variable": str(rates.name) if rates.name is not None else "rates",
    }
    entry = f"tuning.fit(dim={dim!r}, model={model!r}, baseline={bool(baseline)})"
    return add_history(fitted, entry, source=rates)


def _words(codes: np.ndarray) -> np.ndarray:
    return np.array(_STATUS, dtype=object)[codes.astype(np.int64)]


def _fit_block(
    rates: np.ndarray, *, axis: AngleAxis, shape: Shape, baseline: bool, threaded: bool
) -> np.ndarray:
    """Fit curves along the last axis; return `_COLUMNS` along a new last axis."""
    curves = np.array(rates.reshape(-1, rates.shape[-1]), dtype=np.float64, order="C")
    result = np.full((len(curves), len(_COLUMNS)), np.nan)
    x = axis.radians * shape.harmonic
    # Directions half a turn apart are the same orientation.
    n_different = len(np.unique(np.round(np.mod(x + 1e-7, 2 * np.pi), 6)))
    if n_different < 3 + shape.double + baseline:
        result[:, 8] = _SHORT
        return result.reshape(*rates.shape[:-1], len(_COLUMNS))
    with np.errstate(invalid="ignore"):
        low, high = curves.min(axis=1), curves.max(axis=1)
        missing = ~(np.isfinite(low) & np.isfinite(high))
        problems = [missing, low < 0, high - low <= 1e-12 * high]
    result[:, 8] = np.select(problems, [_MISSING, _NEGATIVE, _FLAT], _OK)
    grid = _make_grid(x, shape.double, baseline)
    cosine, sine = np.cos(x), np.sin(x)
    # The number of threads is chosen by stored pairs; one fit takes as long as about 200 of them.
    run_spans(
        lambda lo, hi: _fit(
            curves[lo:hi], cosine, sine, shape.double, baseline, grid, result[lo:hi]
        ),
        equal_spans(len(curves), -(-len(curves) // _CURVES)),
        usable_threads(None if threaded else 1, 200 * len(curves)),
    )
    unit = axis.turn / (2 * np.pi) / shape.harmonic  # of the phase, in units of the axis
    result[:, 4] = wrap(result[:, 4] * unit, axis.turn / shape.harmonic)
    kappa = result[:, 3]
    falls = kappa >= np.log(2) / 2
    width = result[:, 5]
    np.arccos(1 - np.log(2) / np.where(falls, kappa, 1.0), where=falls, out=width)
    result[(result[:, 8] == _OK) & (width < np.pi / n_different), 8] = _NARROW
    width *= unit
    return result.reshape(*rates.shape[:-1], len(_COLUMNS))


def evaluate(fit: xr.Dataset, angles: xr.DataArray | np.ndarray | list[float]) -> xr.DataArray:
    """Evaluate fitted curves at any angles.

    Parameters
    ----------
    fit : xarray.Dataset
        From `microns_xr.tuning.fit`.
    angles : xarray.DataArray or array-like
        One-dimensional: plain numbers in the units and convention of the fit, or a DataArray with
        the same units and convention.

    Returns
    -------
    xarray.DataArray
        ``rate(..., direction)`` or ``rate(..., orientation)``, over the dims of the fit and of the
        angles; NaN for curves that were not fitted.

    Raises
    ------
    SchemaError
        If `fit` is not such a Dataset, or the angles are not one-dimensional or have other units or
        another convention; convert them with `microns_xr.angles.convert`.

    Examples
    --------
    >>> fitted = xr.Dataset({"amplitude": 3.0, "baseline": 1.0, "kappa": 2.0,
    ...     "pref_ori": ((), 50.0, {"units": "degree", "angle_convention": "up_clockwise"})},
    ...     attrs={"model": "von_mises", "tuning_dim": "orientation"})
    >>> evaluate(fitted, [50.0, 140.0]).values.round(3)
    array([4.   , 1.055])
    """
    model = fit.attrs.get("model") if isinstance(fit, xr.Dataset) else None
    if model not in MODELS or "tuning_dim" not in fit.attrs:
        raise SchemaError(
            f"fit is a {type(fit).__name__} with model {model!r}, expected the Dataset that "
            "mx.tuning.fit returns, with its attributes"
        )
    shape = MODELS[model]
    dim = fit.attrs["tuning_dim"]
    preferred = fit[shape.preferred]
    if isinstance(angles, xr.DataArray):
        require_same_angles([(shape.preferred, preferred), ("angles", angles)])
        of_dim = full_turn(preferred.attrs["units"]) * PERIODS[dim]
        if not np.isclose(float(angles.attrs.get("period", of_dim)), of_dim):
            raise SchemaError(
                f"angles have period {angles.attrs['period']:.6g} but the fit is over {dim} with "
                f"{of_dim:.6g}: evaluate it at angles of its own dimension"
            )
    values = np.asarray(angles, dtype=np.float64)
    if values.ndim != 1:
        raise SchemaError(f"angles have shape {values.shape}, expected one dimension")
    turn = full_turn(preferred.attrs["units"])
    x = xr.DataArray(values, dims=dim)
    height: Any = np.cos((x - preferred) * (2 * np.pi * shape.harmonic / turn))
    # An untuned curve has no preferred angle, but its constant can be evaluated anywhere.
    height = height.where(fit["kappa"] > 0, 1.0).where(fit["kappa"].notnull())
    rate = fit["amplitude"] * np.exp(fit["kappa"] * (height - 1)) + fit["baseline"]
    if shape.double:
        rate = rate + fit["amplitude_opposite"] * np.exp(fit["kappa"] * (-height - 1))
    attrs = angle_attrs(preferred.attrs["units"], preferred.attrs["angle_convention"], dim)
    rate = rate.transpose(..., dim).assign_coords({dim: (dim, values, attrs)}).rename("rate")
    rate.attrs = {"long_name": f"response of the fitted {model} curve"}
    return rate


# Published tables of fits.

_N_DIRECTIONS = 16
# Columns of the fits published with con-con-models, to names in this package.
_FIT_COLUMNS = {
    "cell_id": "unit_id",
    "tuning_type": "model",
    "A": "amplitude",
    "k": "kappa",
    "mean_r_sqrd": "r2",
}
# Their names of models, to names in this package; their preferred angle phi is in radians.
_MODELS = {"single": "single_von_mises", "double": "von_mises"}


def rates_of_fits(table: pd.DataFrame, name: str = "fits") -> pd.DataFrame:
    """Evaluate the tuning curves of a table of fits, using the best fit of each unit."""
    names = {k: v for k, v in _FIT_COLUMNS.items() if v not in table.columns}
    fits = table.rename(columns=names)
    require_columns(fits, name, [*SCAN_KEYS, "model", "amplitude", "kappa", "r2"])
    if not len(fits):
        raise SchemaError(
            f"{name} has no rows: fetch the table again, or pass another one with path="
        )
    # Ties of r2 do not depend on the order of the file.
    order = ["r2", "model", "amplitude", "kappa"]
    fits = fits.sort_values(order, ascending=[False, True, True, True], na_position="last")
    fits = fits.drop_duplicates(list(SCAN_KEYS))
    model = fits["model"].map(lambda word: _MODELS.get(word, word))
    if unknown := sorted(set(model) - set(MODELS), key=str):
        raise SchemaError(f"{name} has the models {unknown}, expected models among {[*MODELS]}")
    parts = [_rates_of_model(fits[model == word], word, name) for word in sorted(set(model))]
    rates = pd.concat(parts).sort_index()
    half = _N_DIRECTIONS // 2
    rates["rate_ori"] = [(r[:half] + r[half:]) / 2 for r in rates["rate_dir"]]
    return rates.reset_index(drop=True)


def _rates_of_model(fits: pd.DataFrame, model: str, name: str) -> pd.DataFrame:
    def numbers(column: str, units: str | None = None) -> np.ndarray:
        values = fits[column].to_numpy(dtype=np.float64, na_value=np.nan)
        if units is not None:
            require_likely_units(values[np.isfinite(values)], units, f"{name}.{column}")
        return values

    table, preferred = fits, MODELS[model].preferred
    if preferred not in fits.columns and "phi" in fits.columns:
        fits = fits.assign(**{preferred: np.rad2deg(numbers("phi", "radian"))})
    further = ["amplitude_opposite"] if model == "double_von_mises" else []
    require_columns(fits, name, [preferred, *further])
    fits = fits if "baseline" in fits.columns else fits.assign(baseline=0.0)
    columns = ("amplitude", "kappa", "baseline", *further)
    # Any convention will do, if the same on both sides; that of the table is attached later.
    attrs = {"units": "degree", "angle_convention": "up_clockwise"}
    fitted = xr.Dataset(
        {
            **{column: ("scan_unit", numbers(column)) for column in columns},
            preferred: ("scan_unit", numbers(preferred, "degree"), attrs),
        },
        attrs={"model": model, "tuning_dim": "direction"},
    )
    directions = np.arange(_N_DIRECTIONS) * 360.0 / _N_DIRECTIONS
    rates = evaluate(fitted, directions).transpose("scan_unit", "direction").values
    return table.assign(rate_dir=list(rates))
