"""Selectivity indices of measured tuning curves, and orientations from directions."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from microns_xr.angles import PERIODS, wrap
from microns_xr.errors import SchemaError, warn_user
from microns_xr.provenance import add_history
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.tuning.fits import (
    AngleAxis,
    TuningDim,
    angle_axis,
    apply_over_angles,
    require_free_names,
)

_OF_ORIENTATION = ("gOSI", "OSI", "pref_ori")
_OF_DIRECTION = (*_OF_ORIENTATION, "gDSI", "DSI", "pref_dir")
_CONTRASTS = {
    "OSI": "orientation selectivity index, preferred against orthogonal",
    "DSI": "direction selectivity index, preferred against opposite",
}
# A vector sum shorter than this fraction of the summed lengths has no meaningful direction.
_NO_DIRECTION = 1e-12


def orientation_from_direction(rate_dir: xr.DataArray) -> xr.DataArray:
    """Average the responses to opposite directions of motion: 16 directions to 8 orientations.

    Parameters
    ----------
    rate_dir : xarray.DataArray
        Over ``direction`` and any other dims, in memory or chunked. The directions must be even in
        number and evenly spaced around the whole circle; their order does not matter.

    Returns
    -------
    xarray.DataArray
        Over ``orientation`` instead of ``direction``, ascending in ``[0, half a turn)``;
        ``rate_dir`` is renamed to ``rate_ori``. Orientation is direction modulo half a turn:
        response ``i`` is the mean of the responses to direction ``i`` and to the opposite
        direction, NaN if either is NaN.

    Raises
    ------
    SchemaError
        If the directions do not state units and convention, or are not evenly spaced.

    Examples
    --------
    >>> degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0}
    >>> rate_dir = xr.DataArray([4.0, 1.0, 2.0, 3.0], dims="direction", name="rate_dir",
    ...     coords={"direction": ("direction", [0.0, 90.0, 180.0, 270.0], degrees)})
    >>> folded = orientation_from_direction(rate_dir)
    >>> folded.name, folded.values, folded.orientation.values
    ('rate_ori', array([3., 2.]), array([ 0., 90.]))
    """
    axis = angle_axis(rate_dir, "direction", "rate_dir")
    if "orientation" in rate_dir.dims or "orientation" in rate_dir.coords:
        raise SchemaError(
            "rate_dir already has an orientation, which the result needs as its dimension: drop it "
            "with .drop_vars, or select one"
        )
    first, second = np.split(axis.full_circle(even=True), 2)
    # Drop the coordinates along direction, by which xarray would align the halves.
    bare = rate_dir.drop_vars([n for n, c in rate_dir.coords.items() if "direction" in c.dims])
    folded = (bare.isel(direction=first) + bare.isel(direction=second)) / 2
    attrs = {**axis.attrs_of("orientation"), "long_name": "stimulus orientation"}
    angles = axis.values[first] % (axis.turn / 2)
    result = folded.rename(direction="orientation").assign_coords(
        orientation=("orientation", angles, attrs)
    )
    result.name = "rate_ori" if rate_dir.name == "rate_dir" else rate_dir.name
    result.attrs = {**rate_dir.attrs, **describe(FUNCTIONAL["rate_ori"])}
    return add_history(result, "orientation_from_direction()")


def selectivity(rates: xr.DataArray, *, dim: TuningDim) -> xr.Dataset:
    """Compute selectivity indices, and preferred angles by vector sum, of measured curves.

    With responses r at angles theta (evenly spaced around the circle), ``R`` the responses to
    orientations (averages over opposite directions), and p the angle of the largest response:

    ============  =======================================================================
    ``gOSI``      ``|sum r exp(2i theta)| / sum r``
    ``gDSI``      ``|sum r exp(i theta)| / sum r``
    ``OSI``       ``(R(p) - R(p + 90°)) / (R(p) + R(p + 90°))``, p of the largest ``R``
    ``DSI``       ``(r(p) - r(p + 180°)) / (r(p) + r(p + 180°))``, p of the largest ``r``
    ``pref_ori``  ``arg(sum r exp(2i theta)) / 2``
    ``pref_dir``  ``arg(sum r exp(i theta))``
    ============  =======================================================================

    Parameters
    ----------
    rates : xarray.DataArray
        Over `dim` and any other dims, in memory or chunked (dask).
    dim : {"direction", "orientation"}
        The dimension whose coordinate holds the angles, in any order.

    Returns
    -------
    xarray.Dataset
        Over the other dims of `rates`: ``gOSI``, ``OSI``, ``pref_ori``, and over directions also
        ``gDSI``, ``DSI``, ``pref_dir``; preferred angles in the units and convention of the
        coordinate, in ``[0, period)``. All are NaN where a response is missing (NaN or infinite)
        or the sum is not positive. An index with a denominator that is not positive is NaN, as are
        ``OSI`` where the orthogonal angle was not measured and a preferred angle where the vectors
        cancel.

    Raises
    ------
    SchemaError
        If the angles do not state units and convention, or are not evenly spaced around a whole
        circle, or if the number of directions is odd.

    Notes
    -----
    gOSI is one minus the circular variance (Ringach, Shapley & Hawken 2002,
    doi:10.1523/JNEUROSCI.22-13-05639.2002); gOSI and gDSI are the lengths L_ori and L_dir of
    Mazurek, Kager & Van Hooser 2014 (doi:10.3389/fncir.2014.00092). OSI and DSI contrast the
    preferred response with the orthogonal and the opposite one, as in Niell & Stryker 2008
    (doi:10.1523/JNEUROSCI.0623-08.2008), but use measured responses where that study uses fitted
    curves. If several angles share the largest response, p is the smallest of them, which can
    affect the OSI and the DSI. Negative responses are used unchanged, and can make an index larger
    than 1: a warning says how many curves have them.

    gOSI, OSI and pref_ori of directions are those of the folded curve of
    `orientation_from_direction`.

    Examples
    --------
    >>> degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0}
    >>> rates = xr.DataArray([4.0, 1.0, 2.0, 1.0], dims="direction",
    ...     coords={"direction": ("direction", [0.0, 90.0, 180.0, 270.0], degrees)})
    >>> indices = selectivity(rates, dim="direction")
    >>> {name: round(v.item(), 3) for name, v in indices.data_vars.items()}
    {'gOSI': 0.5, 'OSI': 0.5, 'pref_ori': 0.0, 'gDSI': 0.25, 'DSI': 0.333, 'pref_dir': 0.0}
    """
    axis = angle_axis(rates, dim)
    order = axis.full_circle(even=dim == "direction")
    names = _OF_DIRECTION if dim == "direction" else _OF_ORIENTATION
    require_free_names(rates, names, "rates")
    if rates.chunks is None:
        warn_of_negative(rates.values, rates.get_axis_num(dim), "rates")
    function = partial(_indices, axis=axis, order=order, warn=rates.chunks is not None)
    result = xr.Dataset(apply_over_angles(function, rates, dim, names))
    for name in names:
        if name in _CONTRASTS:
            result[name].attrs = {"long_name": _CONTRASTS[name], "units": "1"}
        else:
            result[name].attrs = describe(FUNCTIONAL[name])
        if name in PERIODS:
            result[name].attrs |= axis.attrs_of(name)
    result.attrs = {"tuning_dim": dim}
    return add_history(result, f"selectivity(dim={dim!r})", source=rates)


def warn_of_negative(curves: np.ndarray, axis: int, what: str) -> None:
    """Warn if curves that get an index of selectivity have negative values, which rates do not."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(curves).all(axis=axis) & (curves.sum(axis=axis) > 0)
        negative = known & (curves < 0).any(axis=axis)
    if n := int(negative.sum()):
        warn_user(
            f"{n} of {negative.size} curves of {what} have negative values, which responses of "
            "neurons do not have: their indices may exceed 1 and mean little; select curves "
            f"without them, or use {what} without a baseline subtracted"
        )


def _indices(
    rates: np.ndarray, *, axis: AngleAxis, order: np.ndarray, warn: bool = False
) -> np.ndarray:
    """Return the indices along a new last axis, in the order of their names."""
    if warn:  # chunked rates, which are not known before
        warn_of_negative(rates, -1, "rates")
    r = np.asarray(rates, dtype=np.float64)[..., order]
    theta = axis.radians[order]
    with np.errstate(invalid="ignore"):  # infinite responses count as missing
        known = np.isfinite(r).all(axis=-1) & (r.sum(axis=-1) > 0)
    r = np.where(known[..., None], r, 1.0)
    orientations = r
    if axis.dim == "direction":
        orientations = r.reshape(*r.shape[:-1], 2, -1).mean(axis=-2)
    length, preferred = _vector_sum(r, theta, 2, axis)
    columns = [length, _contrast(orientations), preferred]
    if axis.dim == "direction":
        length, preferred = _vector_sum(r, theta, 1, axis)
        columns += [length, _contrast(r), preferred]
    return np.where(known[..., None], np.stack(columns, axis=-1), np.nan)


def _vector_sum(
    r: np.ndarray, theta: np.ndarray, harmonic: int, axis: AngleAxis
) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of the mean vector, and its angle in the units of the axis."""
    vector = r @ np.exp(1j * harmonic * theta)
    length = np.abs(vector) / r.sum(axis=-1)
    period = axis.turn / harmonic
    preferred = wrap(np.angle(vector) / (2 * np.pi) * period, period)
    return length, np.where(length > _NO_DIRECTION, preferred, np.nan)


def _contrast(r: np.ndarray) -> np.ndarray:
    """Contrast the largest response with the one half a circle away; NaN if there is none."""
    n = r.shape[-1]
    if n % 2:
        return np.full(r.shape[:-1], np.nan)
    best = np.argmax(r, axis=-1)[..., None]
    high = np.take_along_axis(r, best, axis=-1)[..., 0]
    low = np.take_along_axis(r, (best + n // 2) % n, axis=-1)[..., 0]
    result = np.full(high.shape, np.nan)
    np.divide(high - low, high + low, out=result, where=high + low > 0)
    return result
