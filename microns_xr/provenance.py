"""Release and history of an object.

The release is stored as two scalar coordinates, ``datastack`` and ``materialization_version``,
because xarray propagates scalar coordinates to DataArrays and through arithmetic, but drops
attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from microns_xr.errors import ReleaseMismatchError

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
        A shallow copy over the same dims with the scalar coordinates ``datastack`` and
        ``materialization_version`` (int64).

    Examples
    --------
    >>> import xarray as xr
    >>> stamp_release(xr.Dataset(), "minnie65_public", 1718).materialization_version.item()
    1718
    """
    return obj.assign_coords(
        datastack=xr.Variable((), np.array(datastack, dtype=object)),
        materialization_version=xr.Variable((), np.int64(version)),
    )


def release_of(obj: xr.Dataset | xr.DataArray, name: str = "object") -> tuple[str, int]:
    """Return datastack and version of an object, or raise if either is missing."""
    stated = _stated_release(obj, name)
    for coord in RELEASE_COORDS:
        if coord not in stated:
            raise ReleaseMismatchError(
                f"{name} has no coordinate {coord!r}, which records its release: set it with "
                "mx.releases.stamp_release(object, datastack, version)"
            )
    return str(stated["datastack"]), int(stated["materialization_version"])


def _stated_release(obj: xr.Dataset | xr.DataArray, name: str) -> dict[str, Any]:
    stated = {coord: obj.coords[coord] for coord in RELEASE_COORDS if coord in obj.coords}
    for coord, values in stated.items():
        if values.ndim:
            raise ReleaseMismatchError(
                f"{name} has {coord!r} along {values.dims}, expected one scalar: "
                "objects of several releases were joined; select one release"
            )
    return {coord: values.item() for coord, values in stated.items()}


def require_same_release(*named: tuple[str, Any]) -> None:
    """Raise if two objects have different releases; objects may have none.

    Nucleus ids are the same in every release, so data keyed by them need not have a release.
    """
    stated = {name: _stated_release(obj, name) for name, obj in named}
    for coord in RELEASE_COORDS:
        first, *others = [name for name in stated if coord in stated[name]] or [""]
        for name in others:
            if stated[name][coord] != stated[first][coord]:
                raise ReleaseMismatchError(
                    f"{first} is of {_words(stated[first])} but {name} is of "
                    f"{_words(stated[name])}: root ids and cell lists differ between releases; "
                    "build both from one release, or, if this is intended, drop the coordinates of "
                    f"one with .drop_vars({list(RELEASE_COORDS)})"
                )


def _words(stated: dict[str, Any]) -> str:
    version = stated.get("materialization_version")
    words = [str(stated.get("datastack", "")), "" if version is None else f"v{version}"]
    return " ".join(word for word in words if word)


def add_history(
    obj: Labelled,
    entry: str,
    source: xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray] | None = None,
) -> Labelled:
    """Append one line to ``attrs["history"]``, in place, and return `obj`.

    History, ``source_tables`` and ``references`` continue those of `source`, by default of `obj`.
    """
    if source is None:
        source = obj
    sources: list[Any]
    sources = [source] if isinstance(source, xr.Dataset | xr.DataArray) else list(source)
    lines: list[str]
    lines = [line for s in sources for line in str(s.attrs.get("history", "")).splitlines()]
    if len(sources) > 1:
        lines = list(dict.fromkeys(lines))  # sources with a common origin share their first lines
    joined: dict[str, list[Any]] = {}
    for name in ("source_tables", "references"):
        for s in (obj, *sources):
            known = joined.setdefault(name, [])
            known += [entry for entry in s.attrs.get(name, ()) if entry not in known]
    # A new dict, since selections in xarray share attributes with the original.
    attrs = copy.deepcopy({**obj.attrs, **{name: known for name, known in joined.items() if known}})
    obj.attrs = {**attrs, "history": "\n".join([*lines, entry])}
    return obj
