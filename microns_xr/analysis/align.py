"""Input currents relative to the preferred angle of the neuron that receives them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from microns_xr.analysis.pairs import labelled, unit_angle
from microns_xr.analysis.resample import (
    DEFAULT_BOOTSTRAP,
    Bootstrap,
    bootstrap_ratio,
    describe_bootstrap,
    ratio,
    require_interval,
)
from microns_xr.angles import (
    difference,
    is_angle,
    period_of,
    require_likely_angle,
    require_same_angles,
)
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError, require_one_of
from microns_xr.provenance import add_history, require_same_release
from microns_xr.tuning.indices import warn_of_negative


def align_to_preferred(
    currents: xr.DataArray,
    units: xr.Dataset,
    *,
    angle: str = "pref_ori",
    method: Literal["nearest", "fourier"] = "nearest",
    normalise: bool = False,
    interval: Bootstrap | None = DEFAULT_BOOTSTRAP,
) -> xr.Dataset:
    """Rotate input currents so that every neuron's preferred angle is at 0, and average them.

    Parameters
    ----------
    currents : xarray.DataArray
        Over ``post_nucleus_id`` (or ``nucleus_id``) and one dim of angles evenly spaced around
        the whole circle, as `mx.input_currents` computes them from ``rate_ori`` or ``rate_dir``.
        NaN for neurons without a current.
    units : xarray.Dataset
        Units with the angle.
    angle : str, optional
        Variable of `units`, with the units, convention and period of the angles of the currents:
        ``"pref_ori"`` for orientations, ``"pref_dir"`` for directions.
    method : {"nearest", "fourier"}, optional
        Currents are known at measured angles only. "nearest" rolls them so that the measured angle
        nearest to the preferred one (the larger of two equally near) comes to 0: values are not
        changed, and angles are off by at most half a step, which flattens an average of cosines by
        2.6 % for 8 measured angles. "fourier" rotates by the exact angle, through the trigonometric
        polynomial that passes through the measured values, which does not change their mean.
    normalise : bool, optional
        Divide the currents of each neuron by their mean, so that neurons with strong input do not
        dominate the average. Neurons with a mean of 0 or less are left out.
    interval : Bootstrap or None, optional
        How postsynaptic neurons are resampled for the interval of the average; None for none.

    Returns
    -------
    xarray.Dataset
        ``aligned_current(post_nucleus_id, relative_orientation)``, in the units of the currents
        (1 if normalised), with ``relative_orientation`` from minus half a period upwards and 0 at
        the preferred angle; ``mean_current(relative_orientation)`` with ``mean_current_low`` and
        ``mean_current_high``; the preferred angle, named as in the units; ``input_<angle>``, the
        preferred angle of the input (the phase of the first harmonic of the currents) and
        ``input_selectivity``, that harmonic divided by the mean, if that is above 0;
        ``difference``, the preferred angle of the input minus that of the neuron, from minus half a
        period upwards;
        ``n_neurons`` in the average. NaN for neurons without an angle or a current. A dim
        "direction" becomes ``relative_direction``.

    Raises
    ------
    SchemaError
        If there is not exactly one dim of angles, they are not evenly spaced, or units, convention
        or period of the two differ.
    UnknownLabelError
        If the units lack the angle, or all of the neurons.
    ReleaseMismatchError
        If the two are from different releases.

    Examples
    --------
    >>> attrs = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    >>> currents = xr.DataArray([[1.0, 2.0, 9.0, 2.0]], dims=("post_nucleus_id", "orientation"),
    ...     coords={"post_nucleus_id": [7],
    ...             "orientation": ("orientation", [0.0, 45.0, 90.0, 135.0], attrs)})
    >>> units = xr.Dataset({"pref_ori": ("nucleus_id", [80.0], attrs)}, {"nucleus_id": [7]})
    >>> aligned = align_to_preferred(currents, units, interval=None)
    >>> aligned.relative_orientation.values, aligned.aligned_current.values[0]
    (array([-90., -45.,   0.,  45.]), array([1., 2., 9., 2.]))
    >>> float(aligned.input_pref_ori[0].round(9)), float(aligned.difference[0].round(9))
    (90.0, 10.0)
    """
    require_interval(interval, Bootstrap, type(None))
    require_one_of("method", method, ("nearest", "fourier"))
    require_same_release(("currents", currents), ("units", units))
    neurons, dim = _dims(currents)
    preferred, period = _preferred(currents, units, angle, neurons, dim)
    angles = currents[dim].values.astype(float)
    n = angles.size
    if not np.allclose(np.diff(angles, append=angles[:1] + period), period / n):
        raise SchemaError(
            f"{dim} is {angles.tolist()}, expected angles evenly spaced around {period:g}: pass "
            "currents of all measured angles"
        )

    table = currents.transpose(neurons, dim).values.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        if normalise:
            mean = table.mean(axis=1, keepdims=True)
            table = np.where(mean > 0, table / mean, np.nan)
        turn = 2 * np.pi / period
        harmonic = (table * np.exp(1j * angles * turn)).sum(axis=1)
        # The phase of a flat curve is only rounding error.
        flat = np.abs(harmonic) <= 1e-12 * np.abs(table).sum(axis=1)
        of_input = np.where(flat, np.nan, np.mod(np.angle(harmonic) / turn, period))
        total = table.sum(axis=1)
        selectivity = np.where(total > 0, np.abs(harmonic) / total, np.nan)
    warn_of_negative(table, 1, "currents")
    valid = np.isfinite(preferred) & np.isfinite(table).all(axis=1)
    relative = (np.arange(n) - n // 2) * period / n
    aligned = np.full(table.shape, np.nan)
    aligned[valid] = _rotate(table[valid], preferred[valid] - angles[0], relative, period, method)

    attrs, to = units[angle].attrs, f"relative_{dim}"
    unit = "1" if normalise else str(currents.attrs.get("units", "units of the currents"))
    text = f"{dim} relative to the {angle} of the neuron"
    coords = {name: c for name, c in currents.coords.items() if dim not in c.dims}
    result = xr.Dataset(coords=coords | {to: labelled(to, relative, text, attrs["units"])})
    text = "input current relative to the angle of the neuron"
    result["aligned_current"] = labelled((neurons, to), aligned, text, unit)
    result[angle] = (neurons, preferred, attrs)
    text = "preferred angle of the input"
    result[f"input_{angle}"] = (neurons, of_input, attrs | {"long_name": text})
    text = "preferred angle of the input minus that of the neuron"
    offset = difference(of_input, preferred, period)
    result["difference"] = labelled(neurons, offset, text, attrs["units"])
    text = "first harmonic of the input over its mean"
    result["input_selectivity"] = labelled(neurons, selectivity, text, "1")
    curves, n_neurons = aligned[valid], int(valid.sum())
    mean = ratio(curves.sum(axis=0), np.array(n_neurons))
    result["mean_current"] = labelled(to, mean, "mean aligned current", unit)
    if interval is not None:
        ends = bootstrap_ratio(curves, np.ones_like(curves), interval)
        for end, which, values in zip(("low", "high"), ("lower", "upper"), ends, strict=True):
            text = f"{which} end of the mean, neurons resampled"
            result[f"mean_current_{end}"] = labelled(to, values, text, unit)
        result.attrs |= describe_bootstrap(interval)
    result["n_neurons"] = ((), n_neurons, {"long_name": "neurons in the average"})
    result.attrs["method"] = method
    entry = f"align_to_preferred(angle={angle!r}, method={method!r}, normalise={normalise})"
    return add_history(result, entry, source=(currents, units))


def _dims(currents: xr.DataArray) -> tuple[str, str]:
    dims = [str(d) for d in currents.dims]
    neurons = [d for d in dims if d in ("post_nucleus_id", "nucleus_id") and d in currents.coords]
    angles = [d for d in dims if d in currents.coords and is_angle(currents[d])]
    if len(dims) != 2 or len(neurons) != 1 or len(angles) != 1:
        raise SchemaError(
            f"currents has dims {currents.dims}, of which {neurons} are neurons and {angles} are "
            "angles with a convention, expected one of each: use "
            "mx.input_currents(connectivity, units.rate_ori) and select along other dims"
        )
    return neurons[0], angles[0]


def _preferred(
    currents: xr.DataArray, units: xr.Dataset, angle: str, neurons: str, dim: str
) -> tuple[np.ndarray, float]:
    """Return the angle of every neuron of the currents, NaN if it has none, and the period."""
    preferred, period = unit_angle(units, angle)
    named = [(f"units.{angle}", units[angle]), (f"currents.{dim}", currents[dim])]
    convention, unit = (currents[dim].attrs.get(n) for n in ("angle_convention", "units"))
    require_same_angles(named, f"pass mx.angles.convert(units, {convention!r}, units={unit!r})")
    require_likely_angle(currents[dim], f"currents.{dim}")
    of_dim = period_of(currents[dim], dim)
    if not np.isclose(period, of_dim):
        raise SchemaError(
            f"{angle} has period {period:g} but {dim} has {of_dim:g}, expected the same: use "
            "pref_ori for orientations and pref_dir for directions"
        )
    lookup = Lookup(units["nucleus_id"].values, "nucleus_id of the units")
    rows = lookup.find(currents[neurons].values)
    if rows.size and (rows < 0).all():
        raise UnknownLabelError(f"none of the {rows.size} neurons of {neurons} is among the units")
    # Row -1, of a neuron that is not among the units, selects the NaN at the end.
    return np.append(preferred, np.nan)[rows], period


def _rotate(
    table: np.ndarray, shift: np.ndarray, relative: np.ndarray, period: float, method: str
) -> np.ndarray:
    """Return values at preferred + `relative`; `shift` is preferred minus first measured angle."""
    n = table.shape[1]
    if method == "nearest":
        steps = np.floor(shift / period * n + 0.5).astype(np.int64)
        columns = (np.arange(n) - n // 2 + steps[:, None]) % n
        return np.take_along_axis(table, columns, axis=1)
    # For an even number of angles irfft keeps only the cosine of the highest harmonic, as it must.
    phase = np.exp(2j * np.pi / period * np.outer(shift + relative[0], np.arange(n // 2 + 1)))
    return np.asarray(np.fft.irfft(np.fft.rfft(table, axis=1) * phase, n=n, axis=1))
