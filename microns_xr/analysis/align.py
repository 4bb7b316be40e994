"""Input currents turned to the preferred angle of the neuron that gets them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from microns_xr.analysis.resample import bootstrap_neurons
from microns_xr.angles import describe_angle, difference, is_angle, require_same_angles
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.provenance import add_history, require_same_release

Method = Literal["nearest", "fourier"]


def align_to_preferred(
    currents: xr.DataArray,
    units: xr.Dataset,
    *,
    angle: str = "pref_ori",
    method: Method = "nearest",
    normalise: bool = False,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Turn input currents so that every neuron's preferred angle is at 0, and average them.

    Parameters
    ----------
    currents : xarray.DataArray
        Over ``post_nucleus_id`` (or ``nucleus_id``) and one dim of angles that go evenly around
        the whole circle, as `mx.input_currents` makes them of ``rate_ori`` or ``rate_dir``. NaN
        where a neuron has no current.
    units : xarray.Dataset
        Units with the angle.
    angle : str, optional
        Variable of the units, in the units and convention of the angles of the currents, and of
        their period: ``"pref_ori"`` for orientations, ``"pref_dir"`` for directions.
    method : {"nearest", "fourier"}, optional
        Currents are known at measured angles alone. "nearest" rolls them by the number of steps
        that brings the measured angle nearest to the preferred one to 0 (half-way to the larger
        one), so that values stay as they are and angles are off by half a step at the most.
        "fourier" turns them by the very angle, through the trigonometric polynomial that goes
        through the measured values; their mean stays.
    normalise : bool, optional
        Divide the currents of each neuron by their mean, so that those with much input do not
        make the average. Neurons whose mean is 0 or negative are left out.
    n_bootstrap : int, optional
        Draws of postsynaptic neurons for the interval of the average; 0 for none.
    confidence : float, optional
        Share of the draws inside of the interval.
    seed : int, optional
        Equal seeds give equal intervals.

    Returns
    -------
    xarray.Dataset
        ``aligned_current(post_nucleus_id, relative_orientation)``, in the units of the currents
        (1 if normalised), with ``relative_orientation`` from minus half a period up, 0 being the
        neuron's own preferred angle; ``mean_current(relative_orientation)`` with
        ``mean_current_low`` and ``mean_current_high``; the neuron's own angle, named as in units;
        ``input_<angle>``, the preferred angle of its input (the phase of the first harmonic of
        the currents over the circle) and ``input_selectivity``, that harmonic over the mean;
        ``difference``, input minus own, from minus half a period; ``n_neurons`` in the average.
        Neurons without an angle or a current are NaN. A dim "direction" makes
        ``relative_direction``.

    Raises
    ------
    SchemaError
        If there is not one dim of angles, they are uneven, or units, convention or period of the
        two differ.
    UnknownLabelError
        If units lacks the angle, or no neuron of the currents.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> attrs = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    >>> currents = xr.DataArray([[1.0, 2.0, 9.0, 2.0]], dims=("post_nucleus_id", "orientation"),
    ...     coords={"post_nucleus_id": [7],
    ...             "orientation": ("orientation", [0.0, 45.0, 90.0, 135.0], attrs)})
    >>> units = xr.Dataset({"pref_ori": ("nucleus_id", [80.0], attrs)}, {"nucleus_id": [7]})
    >>> aligned = align_to_preferred(currents, units, n_bootstrap=0)
    >>> aligned.relative_orientation.values, aligned.aligned_current.values[0]
    (array([-90., -45.,   0.,  45.]), array([1., 2., 9., 2.]))
    >>> float(aligned.input_pref_ori[0].round(9)), float(aligned.difference[0].round(9))
    (90.0, 10.0)
    """
    if method not in ("nearest", "fourier"):
        raise SchemaError(f"method is {method!r}, expected 'nearest' or 'fourier'")
    require_same_release(("currents", currents), ("units", units))
    neurons, dim = _dims(currents)
    own, period = _own_angles(currents, units, angle, neurons, dim)
    angles = np.asarray(currents[dim].values, dtype=float)
    _require_even(angles, period, dim)

    table = np.asarray(currents.transpose(neurons, dim).values, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = table.mean(axis=1)
        if normalise:
            table = np.where((mean > 0)[:, None], table / mean[:, None], np.nan)
    known = np.isfinite(own) & np.isfinite(table).all(axis=1)
    turn = 2 * np.pi / period
    harmonic = (table * np.exp(1j * angles * turn)).sum(axis=1)
    flat = np.abs(harmonic) <= 1e-12 * np.abs(table).sum(axis=1)
    of_input = np.where(flat, np.nan, np.mod(np.angle(harmonic) / turn, period))

    n = angles.size
    relative = (np.arange(n) - n // 2) * period / n
    aligned = np.full(table.shape, np.nan)
    aligned[known] = _turned(table[known], own[known] - angles[0], relative, period, method)

    result = _dataset(currents, units[angle], neurons, dim, relative, aligned, own)
    result[f"input_{angle}"] = result[angle].copy(data=of_input)
    result[f"input_{angle}"].attrs["long_name"] = "preferred angle of the input"
    result["difference"] = result[angle].copy(data=difference(of_input, own, period))
    result["difference"].attrs = {
        "long_name": "preferred angle of the input minus the neuron's own",
        "units": units[angle].attrs["units"],
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.abs(harmonic) / table.sum(axis=1)
    result["input_selectivity"] = (
        neurons,
        np.where(np.isfinite(share), share, np.nan),
        {"long_name": "first harmonic of the input over its mean", "units": "1"},
    )
    _average(result, aligned[known], f"relative_{dim}", n_bootstrap, confidence, seed)
    if normalise:
        for name in [n for n in map(str, result) if n.endswith(("_current", "_low", "_high"))]:
            result[name].attrs["units"] = "1"
    result.attrs["method"] = method
    entry = f"align_to_preferred(angle={angle!r}, method={method!r}, normalise={normalise})"
    return add_history(result, entry, source=(currents, units))


def _dims(currents: xr.DataArray) -> tuple[str, str]:
    dims = [str(d) for d in currents.dims]
    neurons = [d for d in dims if d in ("post_nucleus_id", "nucleus_id") and d in currents.coords]
    angles = [d for d in dims if d in currents.coords and is_angle(currents[d])]
    if len(dims) != 2 or len(neurons) != 1 or len(angles) != 1:
        raise SchemaError(
            f"currents has dims {currents.dims}, of which {neurons} name neurons and {angles} "
            "angles with a convention, expected one of each: select the others first, and use "
            "mx.input_currents(connectivity, units.rate_ori)"
        )
    return neurons[0], angles[0]


def _own_angles(
    currents: xr.DataArray, units: xr.Dataset, angle: str, neurons: str, dim: str
) -> tuple[np.ndarray, float]:
    if angle not in units:
        raise UnknownLabelError(
            f"units has no variable {angle!r}, found {sorted(map(str, units.data_vars))}: build "
            "them with functional='best_only', or assign the angles of a fit"
        )
    require_same_angles([(f"units.{angle}", units[angle]), (f"currents.{dim}", currents[dim])])
    period = describe_angle(units[angle], angle)[2]
    of_dim = describe_angle(currents[dim], dim)[2]
    if not np.isclose(period, of_dim):
        raise SchemaError(
            f"{angle} has period {period:g} but {dim} has {of_dim:g}, expected the same: take "
            "pref_ori for orientations and pref_dir for directions"
        )
    rows = Lookup(units["nucleus_id"].values, "nucleus_id of the units").find(
        currents[neurons].values
    )
    if rows.size and (rows < 0).all():
        raise UnknownLabelError(f"none of the {rows.size} neurons of {neurons} is among the units")
    values = np.append(np.asarray(units[angle].values, dtype=float), np.nan)
    return values[rows], period


def _require_even(angles: np.ndarray, period: float, dim: str) -> None:
    steps = np.diff(angles, append=angles[:1] + period)
    if not np.allclose(steps, period / angles.size):
        raise SchemaError(
            f"{dim} is {angles.tolist()}, expected angles that go evenly around {period:g}: "
            "currents can only be rolled on a whole circle"
        )


def _turned(
    table: np.ndarray, shift: np.ndarray, relative: np.ndarray, period: float, method: str
) -> np.ndarray:
    """Values at own angle + relative; `shift` is the own angle from the first measured one."""
    n = table.shape[1]
    if method == "nearest":
        steps = np.floor(shift / period * n + 0.5).astype(np.int64)
        columns = (np.arange(n) - n // 2 + steps[:, None]) % n
        return np.take_along_axis(table, columns, axis=1)
    # The highest harmonic of an even number of angles has a cosine alone, which irfft sees to.
    phase = np.exp(2j * np.pi / period * np.outer(shift + relative[0], np.arange(n // 2 + 1)))
    return np.asarray(np.fft.irfft(np.fft.rfft(table, axis=1) * phase, n=n, axis=1))


def _dataset(
    currents: xr.DataArray,
    own: xr.DataArray,
    neurons: str,
    dim: str,
    relative: np.ndarray,
    aligned: np.ndarray,
    values: np.ndarray,
) -> xr.Dataset:
    to = f"relative_{dim}"
    coords = {name: c for name, c in currents.coords.items() if dim not in c.dims}
    about = {
        "long_name": f"{dim} relative to the neuron's own {own.name}",
        "units": own.attrs["units"],
    }
    attrs = {"long_name": "input current turned to the neuron's own angle"}
    attrs["units"] = str(currents.attrs.get("units", "units of the currents"))
    return xr.Dataset(
        {
            "aligned_current": ((neurons, to), aligned, attrs),
            str(own.name): (neurons, values, dict(own.attrs)),
        },
        coords={**coords, to: (to, relative, about)},
    )


def _average(
    result: xr.Dataset, table: np.ndarray, dim: str, n: int, confidence: float, seed: int
) -> None:
    attrs = dict(result["aligned_current"].attrs)
    n_neurons = table.shape[0]
    mean = table.mean(axis=0) if n_neurons else np.full(table.shape[1], np.nan)
    result["mean_current"] = (dim, mean, attrs | {"long_name": "mean aligned current"})
    result["n_neurons"] = ((), n_neurons, {"long_name": "neurons in the average"})
    if not n:
        return
    ends = (
        bootstrap_neurons(table, np.ones_like(table), n, seed, confidence)
        if n_neurons > 1
        else (np.full(mean.shape, np.nan),) * 2
    )
    for end, values in zip(("low", "high"), ends, strict=True):
        text = f"{'lower' if end == 'low' else 'upper'} end of the mean, neurons resampled"
        result[f"mean_current_{end}"] = (dim, values, attrs | {"long_name": text})
    result.attrs |= {"n_bootstrap": n, "confidence": confidence, "seed": seed}
