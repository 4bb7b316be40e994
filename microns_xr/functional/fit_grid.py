"""The residual of von Mises curves on a grid over phase and sharpness, and its lowest minima."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from microns_xr.functional.fit_search import DEPENDENT, KAPPA_MAX, jit

__all__ = ["STARTS", "Grid", "explained", "lowest_minima", "make_grid"]

# Close enough that the lowest minima are not stepped over: the peak of k = 50 is 9.5 degrees wide
# at half height to either side, and at small k the residual changes slowly.
_N_PHI = 60
_GRID_KAPPA = np.array([0.15, 0.4, 0.8, 1.4, 2.3, 3.6, 5.5, 8.5, 13.0, 20.0, 31.0, KAPPA_MAX])
# How many minima are looked for.
STARTS = 6


class Grid(NamedTuple):
    """The peaks on a grid over (phi, k), shared by all curves.

    Attributes
    ----------
    u, v : numpy.ndarray
        (n_phi * n_kappa,), k fastest.
    peaks : numpy.ndarray
        (2 or 1, angle, n_phi * n_kappa): values of the peak, and of the opposite one.
    gram : numpy.ndarray
        (7, n_phi * n_kappa): inner products 00, 11, 22, 01, 02, 12 of the columns, which are
        peaks and constant, and the inverse of their determinant where there are three
        (0 where they are dependent).
    shape : tuple of (int, int)
        n_phi, n_kappa; the first phase follows the last.
    """

    u: np.ndarray
    v: np.ndarray
    peaks: np.ndarray
    gram: np.ndarray
    shape: tuple[int, int]


def make_grid(x: np.ndarray, double: bool, baseline: bool) -> Grid:
    """Lay out the grid for measured angles.

    Parameters
    ----------
    x : numpy.ndarray
        (angle,), radians, such that the model has the period 2 pi.
    double : bool
        Whether there is an opposite peak. Then half a circle of phases is enough: after it the
        two peaks change places.
    baseline : bool
        Whether there is a constant.

    Returns
    -------
    Grid
        To be passed to `fit_curves`.
    """
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
