"""Parametric tuning curves: fits of von Mises functions to many curves at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from microns_xr.angles import require_same_angles
from microns_xr.errors import SchemaError
from microns_xr.functional.angle_axis import AngleAxis, TuningDim, angle_axis, require_free_names
from microns_xr.functional.fit_models import KAPPA_MAX, STATUS, fit_curves, make_grid
from microns_xr.provenance import add_history
from microns_xr.schema import FUNCTIONAL, describe
from microns_xr.threads import equal_spans, run_spans, usable_threads

__all__ = ["Model", "evaluate_tuning", "fit_tuning"]

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


def fit_tuning(
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
    >>> fit = fit_tuning(rates, dim="orientation")
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
    entry = f"fit_tuning(dim={axis.dim!r}, model={model!r}, baseline={baseline})"
    return add_history(fit, entry, source=rates)


def evaluate_tuning(
    fit: xr.Dataset, angles: xr.DataArray | np.ndarray | list[float]
) -> xr.DataArray:
    """Draw fitted curves: their values at any angles.

    Parameters
    ----------
    fit : xarray.Dataset
        From `fit_tuning`.
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
        or another convention: `microns_xr.convert_angles` converts.

    Examples
    --------
    >>> fit = xr.Dataset({"amplitude": 3.0, "baseline": 1.0, "kappa": 2.0,
    ...     "pref_ori": ((), 50.0, {"units": "degree", "angle_convention": "up_clockwise"})},
    ...     attrs={"model": "von_mises", "tuning_dim": "orientation"})
    >>> evaluate_tuning(fit, [50.0, 140.0]).values.round(3)
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
