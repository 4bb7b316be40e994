"""Angles: units, conventions of the tables, and circular differences.

The functional tables of MICrONS use different conventions (``angle_convention``):

``up_clockwise``
    0 is a horizontal bar moving up, angles increase clockwise
    (``functional_properties_v3_bcm``, and the rates by direction of the stimulus).
``right_counterclockwise``
    0 is a vertical bar moving right, angles increase counter-clockwise
    (``digital_twin_properties_bcm_coreg_v4``).

A direction ``d`` of one is ``90 - d`` in the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr

from microns_xr.errors import SchemaError, require_instance, require_one_of, unknown_label
from microns_xr.provenance import add_history

__all__ = ["ANGLE_CONVENTIONS", "AngleConvention", "convert", "difference"]


def __dir__() -> list[str]:
    return __all__


#: Values of the attribute ``angle_convention``, see `ANGLE_CONVENTIONS`.
AngleConvention = Literal["up_clockwise", "right_counterclockwise"]
AngleUnits = Literal["degree", "radian"]

#: What 0 and a growing angle mean, by the value of the attribute ``angle_convention``.
ANGLE_CONVENTIONS: dict[str, str] = {
    "up_clockwise": "0 = horizontal bar moving up, clockwise",
    "right_counterclockwise": "0 = vertical bar moving right, counter-clockwise",
}

_UNITS = ("degree", "radian")
# Names of angles, with their periods in turns.
PERIODS = {"pref_ori": 0.5, "orientation": 0.5, "pref_dir": 1.0, "direction": 1.0}

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def full_turn(units: str) -> float:
    """Return a whole turn in degrees or radians."""
    return 360.0 if units == "degree" else 2 * np.pi


def angle_attrs(units: str, convention: str | None, name: str) -> dict[str, Any]:
    """Return the attributes of an angle of one of the names in `PERIODS`."""
    known = {} if convention is None else {"angle_convention": convention}
    return {"units": units, **known, "period": full_turn(units) * PERIODS[name]}


def wrap(values: Any, period: float) -> Any:
    """Wrap angles to ``[0, period)``."""
    values = np.mod(values, period)
    # The remainder of a tiny negative number rounds to the period.
    return np.where(values >= period, 0.0, values)


def rounded(degrees: np.ndarray, period: float) -> np.ndarray:
    """Wrap degrees to ``[0, period)``, and round so that nearly equal angles become equal."""
    return np.mod(np.round(np.mod(degrees, period), 6), period)


def is_angle(variable: xr.DataArray | xr.Variable) -> bool:
    """Whether a variable has the attributes of an angle."""
    return "angle_convention" in variable.attrs


def describe_angle(
    variable: xr.DataArray | xr.Variable, name: str, *, convert: bool = False
) -> tuple[str, str | None, float]:
    """Return units, convention (needed only to `convert` or compare) and period of an angle."""
    units = variable.attrs.get("units")
    convention = variable.attrs.get("angle_convention")
    hint = f"set {name}.attrs['units'], such as {name}.attrs['units'] = 'degree'"
    if units not in _UNITS:
        raise unknown_label(f"{name} has units", units, _UNITS, hint, error=SchemaError)
    if convention not in (*ANGLE_CONVENTIONS, None) or (convert and convention is None):
        what, hint = f"{name} has angle_convention", f"set {name}.attrs['angle_convention']"
        raise unknown_label(what, convention, ANGLE_CONVENTIONS, hint, error=SchemaError)
    turn = full_turn(units)
    known = PERIODS.get(name.rpartition(".")[2])
    period = float(variable.attrs.get("period", turn * (known or 1.0)))
    turns = (0.5, 1.0) if known is None else (known,)
    if not any(np.isclose(period, turn * one) for one in turns):
        expected = " or ".join(f"{turn * one:.6g}" for one in turns)
        raise SchemaError(
            f"{name} has period {period:.6g} and units {units!r}, expected {expected}: correct its "
            "units, its period or its name (180 degrees for an orientation, 360 for a direction)"
        )
    return units, convention, period


def period_of(variable: xr.DataArray | xr.Variable, name: str) -> float:
    """Return the period of an angle, which its name or its attributes must tell."""
    period = describe_angle(variable, name)[2]
    if "period" not in variable.attrs and name.rpartition(".")[2] not in PERIODS:
        raise SchemaError(
            f"{name} does not state its period, so that it may be an orientation or a direction: "
            f"set {name}.attrs['period'], half of {period:.6g} or {period:.6g}"
        )
    return period


def require_likely_units(values: np.ndarray, units: str, name: str) -> None:
    """Raise if angles are not plausible in their units: indices of stimuli, or the other units."""
    distinct = np.unique(values[np.isfinite(values)])
    if not distinct.size:
        return
    low, high = float(distinct[0]), float(distinct[-1])
    # Up to three angles may be close to each other.
    if distinct.size > 3 and _are_indices(distinct, PERIODS.get(name.rpartition(".")[2], 1.0)):
        raise SchemaError(
            f"{name} has units {units!r} but holds only whole numbers from {low:g} to {high:g}, "
            "which look like indices of stimuli: multiply them by the step between stimuli, such "
            f"as {name} * 22.5 for 8 orientations or 16 directions, and set units 'degree'"
        )
    wrong_degrees = units == "degree" and distinct.size > 3 and high - low <= 2 * np.pi
    if wrong_degrees or (units == "radian" and high - low > 4 * np.pi):
        other = "radian" if units == "degree" else "degree"
        raise SchemaError(
            f"{name} has units {units!r} but goes from {low:.4g} to {high:.4g}, which look like "
            f"{other}s: set the attribute 'units' to {other!r} (in mx.merge_table "
            f"angle_units={other!r}), or convert them"
        )


def _are_indices(distinct: np.ndarray, turns: float) -> bool:
    """Whether angles are whole numbers that cover a small part of their period, in steps of 1."""
    # An index of -1 stands for a missing one. Whole degrees of neurons with similar preferences
    # leave larger gaps.
    n_stimuli = 72 * turns  # more than in use: 36 orientations or 72 directions
    if distinct[0] < -1 or distinct[-1] >= n_stimuli or (distinct % 1).any():
        return False
    return bool(2 * distinct.size > distinct[-1] - distinct[0])


def require_likely_angle(variable: xr.DataArray | xr.Variable, name: str) -> None:
    """Raise if a variable is an angle, with a convention or not, but its values are implausible."""
    units = variable.attrs.get("units")
    known = is_angle(variable) or name.rpartition(".")[2] in PERIODS
    if known and units in _UNITS and variable.dtype.kind in "iuf":
        describe_angle(variable, name)
        require_likely_units(np.asarray(variable.values, dtype=float), units, name)


def _convert_variable(
    variable: xr.DataArray, name: str, convention: str | None, units: str | None
) -> xr.DataArray:
    needed = convention is not None
    old_units, old_convention, period = describe_angle(variable, name, convert=needed)
    new_units = old_units if units is None else units
    new_convention = old_convention if convention is None else convention
    # Chunked angles stay lazy, so that fits are not computed here.
    data = variable.values if variable.chunks is None else variable.data
    values: Any = data.astype(np.float64)
    turn = full_turn(old_units)
    scale = full_turn(new_units) / turn
    # Once converted, indices of stimuli could no longer be recognised.
    if (scale != 1 or new_convention != old_convention) and variable.chunks is None:
        require_likely_units(values, old_units, name)
    if new_convention != old_convention:
        values = wrap(turn / 4 - values, period)
    if scale != 1:
        values = values * scale
    attrs = dict(variable.attrs)
    attrs["units"] = new_units
    if new_convention is not None:
        attrs["angle_convention"] = new_convention
    if new_convention != old_convention and "angle_convention_from" in attrs:
        origin = attrs["angle_convention_from"]
        attrs["angle_convention_from"] = f"converted from {old_convention}: {origin}"
    if "period" in attrs:
        attrs["period"] = period * scale
    return variable.copy(deep=False, data=values).assign_attrs(attrs)


def convert(
    obj: Labelled, convention: AngleConvention | None = None, units: AngleUnits | None = None
) -> Labelled:
    """Convert angles to another convention or other units.

    Parameters
    ----------
    obj : xarray.DataArray or xarray.Dataset
        An angle, or a Dataset, of which all angles (variables and coordinates with the attribute
        ``angle_convention``) are converted.
    convention : {"up_clockwise", "right_counterclockwise"}, optional
        The new convention; unchanged if None.
    units : {"degree", "radian"}, optional
        The new units; unchanged if None.

    Returns
    -------
    xarray.DataArray or xarray.Dataset
        The converted angles over the same dims, in ``[0, period)`` if the convention changed. After
        the conversion of a dimension coordinate, the data are sorted by it.

    Raises
    ------
    SchemaError
        If an angle does not state its units and convention, if an argument is unknown, or if a
        Dataset has no angle.

    Notes
    -----
    ``right_counterclockwise = 90° - up_clockwise``, modulo the period of the angle (360° for a
    direction, 180° for an orientation), as documented for both tables in the MICrONS tutorials.

    Examples
    --------
    >>> pref = xr.DataArray([0.0, 30.0, 120.0], dims="nucleus_id", name="pref_ori",
    ...     attrs={"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> convert(pref, "right_counterclockwise").values
    array([ 90.,  60., 150.])
    """
    require_one_of("convention", convention, (*ANGLE_CONVENTIONS, None))
    require_one_of("units", units, (*_UNITS, None))
    require_instance("obj", obj, (xr.Dataset, xr.DataArray), "a Dataset or DataArray")
    result: Any = obj
    variables = obj.variables if isinstance(obj, xr.Dataset) else obj.coords
    names = [n for n in variables if is_angle(obj[n])]
    if isinstance(obj, xr.DataArray) and (is_angle(obj) or not names):
        result = _convert_variable(obj, str(obj.name or "the array"), convention, units)
    elif not names:
        raise SchemaError(
            "no variable has the attribute 'angle_convention', so there is nothing to convert: set "
            "units and angle_convention on the angles first"
        )
    for name in names:
        new = _convert_variable(obj[name].reset_coords(drop=True), str(name), convention, units)
        assign = result.assign_coords if name in obj.coords else result.assign
        result = assign({name: (new.dims, new.data, new.attrs)})
    # Sort at the end, so that all variables along a dimension are sorted together.
    for name in names:
        if name in obj.dims:
            result = result.sortby(name)
    if isinstance(result, xr.Dataset):
        add_history(result, f"angles.convert(convention={convention!r}, units={units!r})")
    return result


def require_same_angles(
    named: Iterable[tuple[str, Any]], hint: str = "convert one with mx.angles.convert"
) -> None:
    """Raise unless all angles have the same units and convention; `hint` is the call to make."""
    stated = [
        (name, "{} ({})".format(*describe_angle(angle, name, convert=True)[:2]))
        for name, angle in named
    ]
    for name, words in stated[1:]:
        first, first_words = stated[0]
        if words != first_words:
            raise SchemaError(f"{first} is in {first_words} but {name} is in {words}: {hint}")


def _numbers(name: str, angle: Any) -> Any:
    """Return an array of numbers, or raise."""
    is_array = hasattr(angle, "dtype") or isinstance(angle, xr.Dataset)
    numbers = angle if is_array else np.asarray(angle)
    if isinstance(angle, xr.Dataset) or numbers.dtype.kind not in "iuf":
        raise SchemaError(f"{name} is a {type(angle).__name__}, expected numbers")
    # Differences of unsigned or short integers would wrap.
    return numbers.astype(np.float64) if numbers.dtype.kind in "iu" else numbers


def difference(a: Any, b: Any, period: float) -> Any:
    """Compute the signed difference ``a - b`` on a circle.

    Parameters
    ----------
    a, b : array-like
        Angles in the same units, with shapes that broadcast. DataArrays that state their units
        must state the same ones, as well as convention and period.
    period : float
        Length of the circle in those units: 180 for orientations in degrees.

    Returns
    -------
    array-like
        The difference in ``[-period / 2, period / 2)``.

    Raises
    ------
    SchemaError
        If `a`, `b` and `period` contradict each other.

    Examples
    --------
    >>> float(difference(170.0, 10.0, period=180.0))
    -20.0
    """
    require_instance("period", period, Real, "a number")
    if not period > 0:
        raise SchemaError(f"period is {period!r}, expected a number above 0")
    a, b = _numbers("a", a), _numbers("b", b)
    angles = [x for x in (a, b) if isinstance(x, xr.DataArray) and "units" in x.attrs]
    for key in ("units", "angle_convention"):
        if len({angle.attrs[key] for angle in angles if key in angle.attrs}) > 1:
            raise SchemaError(
                f"a and b have {key} {angles[0].attrs[key]!r} and {angles[1].attrs[key]!r}, "
                "expected the same: convert one with mx.angles.convert"
            )
    for angle in angles:
        name = str(angle.name or "the angle")
        of_angle = describe_angle(angle, name)[2]
        if angle.chunks is None and angle.ndim < 2:
            require_likely_angle(angle, name)
        if ("period" in angle.attrs or name in PERIODS) and not np.isclose(of_angle, period):
            raise SchemaError(
                f"{name} has a period of {of_angle:.6g} {angle.attrs['units']}, but period is "
                f"{period:.6g}, expected the same"
            )
    return (a - b + period / 2) % period - period / 2
