"""Which release an object comes from, and what has been done to it.

The release travels as two scalar coordinates, ``datastack`` and ``materialization_version``,
because xarray carries scalar coordinates from a Dataset into its DataArrays and through
arithmetic, and drops attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from microns_xr.errors import ReleaseMismatchError

__all__ = ["RELEASE_COORDS", "add_history", "release_of", "require_same_release", "stamp_release"]

RELEASE_COORDS = ("datastack", "materialization_version")

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def stamp_release(obj: Labelled, datastack: str, version: int) -> Labelled:
    """Return `obj` with its release as scalar coordinates.

    Parameters
    ----------
    obj : xarray.Dataset or xarray.DataArray
        Any labelled object.
    datastack : str
        Name of the datastack, such as ``"minnie65_public"``.
    version : int
        Materialization version.

    Returns
    -------
    xarray.Dataset or xarray.DataArray
        A shallow copy with the scalar coordinates ``datastack`` and
        ``materialization_version`` (int64).

    Examples
    --------
    >>> stamp_release(xr.Dataset(), "minnie65_public", 1718).materialization_version.item()
    1718
    """
    return obj.assign_coords(
        datastack=xr.Variable((), np.array(datastack, dtype=object)),
        materialization_version=xr.Variable((), np.int64(version)),
    )


def release_of(obj: xr.Dataset | xr.DataArray, name: str = "object") -> tuple[str, int]:
    """Read the release of a labelled object.

    Parameters
    ----------
    obj : xarray.Dataset or xarray.DataArray
        The object.
    name : str, optional
        How messages call it.

    Returns
    -------
    tuple of (str, int)
        Datastack and materialization version.

    Raises
    ------
    ReleaseMismatchError
        If a release coordinate is missing or is not scalar.

    Examples
    --------
    >>> release_of(stamp_release(xr.Dataset(), "minnie65_public", 661))
    ('minnie65_public', 661)
    """
    for coord in RELEASE_COORDS:
        if coord not in obj.coords:
            raise ReleaseMismatchError(
                f"{name} has no coordinate {coord!r}, so its release is not known; "
                "stamp_release(object, datastack, version) sets it, or pass check_release=False"
            )
        if obj.coords[coord].ndim:
            raise ReleaseMismatchError(
                f"{name} has {coord!r} along {obj.coords[coord].dims}, expected one scalar: "
                "objects of several releases were joined; take one release, "
                "or pass check_release=False"
            )
    return str(obj.coords["datastack"].item()), int(obj.coords["materialization_version"].item())


def require_same_release(*named: tuple[str, Any], check_release: bool = True) -> None:
    """Raise unless all objects come from one release.

    Parameters
    ----------
    *named : tuple of (str, xarray object)
        Names, as messages call them, and objects.
    check_release : bool, optional
        False skips the check.

    Raises
    ------
    ReleaseMismatchError
        If a release is missing, not scalar, or different.

    Examples
    --------
    >>> a = stamp_release(xr.Dataset(), "minnie65_public", 661)
    >>> b = stamp_release(xr.Dataset(), "minnie65_public", 1300)
    >>> require_same_release(("units", a), ("rates", b))
    Traceback (most recent call last):
    microns_xr.errors.ReleaseMismatchError: units is of minnie65_public v661 ...
    """
    if not check_release:
        return
    releases = [(name, release_of(obj, name)) for name, obj in named]
    first_name, first = releases[0]
    for name, release in releases[1:]:
        if release != first:
            raise ReleaseMismatchError(
                f"{first_name} is of {first[0]} v{first[1]} but {name} is of "
                f"{release[0]} v{release[1]}: root ids and cell lists differ between releases; "
                "build both from one release, or pass check_release=False"
            )


def add_history(
    obj: Labelled,
    entry: str,
    source: xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray] | None = None,
) -> Labelled:
    """Append one line to ``attrs["history"]``, in place, and return `obj`.

    Parameters
    ----------
    obj : xarray.Dataset or xarray.DataArray
        The result that is described.
    entry : str
        What was done, as one line without a time, so that equal work gives equal attributes.
    source : xarray object or several, optional
        Where the earlier lines are taken from, and the ``source_tables``; `obj` itself by default.

    Returns
    -------
    xarray.Dataset or xarray.DataArray
        `obj`, with the lines of all sources, each once, and the tables of all of them.

    Examples
    --------
    >>> add_history(xr.Dataset(attrs={"history": "a"}), "b").attrs["history"].splitlines()
    ['a', 'b']
    """
    sources: list[Any]
    if source is None:
        sources = [obj]
    else:
        sources = [source] if isinstance(source, xr.Dataset | xr.DataArray) else list(source)
    # A new dict: xarray's selections share theirs with what they were taken from.
    attrs = copy.deepcopy(obj.attrs)
    tables = _tables_of([obj, *sources])
    if tables:
        attrs["source_tables"] = tables
    obj.attrs = {**attrs, "history": "\n".join([*_lines_of(sources), entry])}
    return obj


def _lines_of(sources: list[Any]) -> list[str]:
    pasts = [str(s.attrs.get("history", "")) for s in sources]
    lines = [line for past in pasts for line in past.splitlines()]
    # Two sources that come from one have their common past once.
    return lines if len(sources) == 1 else list(dict.fromkeys(lines))


def _tables_of(objects: list[Any]) -> list[Any]:
    tables: list[Any] = []
    for obj in objects:
        tables += [t for t in obj.attrs.get("source_tables", ()) if t not in tables]
    return copy.deepcopy(tables)
