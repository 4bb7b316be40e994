"""The axis of a tuning curve: which angles were measured, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from microns_xr.angles import describe_angle
from microns_xr.errors import SchemaError

__all__ = [
    "AngleAxis",
    "TuningDim",
    "angle_axis",
    "require_free_names",
    "require_full_circle",
    "require_likely_units",
]

TuningDim = Literal["direction", "orientation"]
_TURNS: dict[str, float] = {"direction": 1.0, "orientation": 0.5}
_SAME = 1e-6  # turns: angles closer than this are one angle


@dataclass(frozen=True)
class AngleAxis:
    """Measured angles of a dimension.

    Attributes
    ----------
    dim : str
        ``direction`` or ``orientation``.
    radians : numpy.ndarray
        The angles, as they stand along the dimension.
    units, convention : str
        What the coordinate states.
    turn : float
        A whole turn in its units.
    """

    dim: str
    radians: np.ndarray
    units: str
    convention: str
    turn: float

    @property
    def turns(self) -> np.ndarray:
        """The angles in turns."""
        return self.radians / (2 * np.pi)

    @property
    def period(self) -> float:
        """Period of the axis in turns: 1 for directions, 1/2 for orientations."""
        return _TURNS[self.dim]

    def angle_attrs(self, period: float) -> dict[str, Any]:
        """Return the attributes of an angle in the units and convention of the axis.

        Parameters
        ----------
        period : float
            Its period in turns.
        """
        return {
            "units": self.units,
            "angle_convention": self.convention,
            "period": self.turn * period,
        }


def angle_axis(rates: xr.DataArray, dim: str, name: str = "rates") -> AngleAxis:
    """Read the angles of a dimension of tuning curves, or raise if they are not usable.

    Parameters
    ----------
    rates : xarray.DataArray
        Numbers over `dim` and any other dims.
    dim : {"direction", "orientation"}
        Its angles are a coordinate with ``units`` and ``angle_convention``.
    name : str, optional
        How messages call the rates.

    Returns
    -------
    AngleAxis
        The angles.

    Raises
    ------
    SchemaError
        If `rates` is no numeric DataArray over `dim`, the coordinate is absent, not finite,
        repeats an angle, does not state its units and convention, or holds numbers that cannot be
        in the units it states.

    Examples
    --------
    >>> degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    >>> angles = ("orientation", [0.0, 45.0, 90.0, 135.0], degrees)
    >>> rates = xr.DataArray([1.0, 2.0, 1.0, 0.0], dims="orientation",
    ...     coords={"orientation": angles})
    >>> angle_axis(rates, "orientation").turns
    array([0.   , 0.125, 0.25 , 0.375])
    """
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
    """Raise if angles cannot be in the units they state.

    Parameters
    ----------
    values : numpy.ndarray
        Finite angles.
    units : {"degree", "radian"}
        What they state.
    name : str
        How messages call them.

    Raises
    ------
    SchemaError
        If more than three degrees differ by no more than a turn of radians, or radians by more
        than two turns.
    """
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
    """Raise if coordinates of an input have names that a result needs for its variables.

    Parameters
    ----------
    obj : xarray.DataArray
        The input, whose coordinates the result keeps.
    names : iterable of str
        Variables of the result.
    what : str
        How messages call the input.

    Raises
    ------
    SchemaError
        If there are any.
    """
    taken = sorted(set(names) & {str(c) for c in obj.coords})
    if taken:
        raise SchemaError(
            f"{what} has coordinates {taken}, which the result would name its own variables: "
            f"drop or rename them first, such as with {what}.drop_vars({taken})"
        )


def require_full_circle(axis: AngleAxis, even: bool = False) -> np.ndarray:
    """Raise unless the angles are evenly spaced round their whole circle; return their order.

    Parameters
    ----------
    axis : AngleAxis
        Angles in any order, from any first angle.
    even : bool, optional
        Whether their number must be even.

    Returns
    -------
    numpy.ndarray
        Positions along the dimension by ascending angle within the period.

    Raises
    ------
    SchemaError
        If an angle is missing, they are unevenly spaced, or their number is odd.
    """
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
