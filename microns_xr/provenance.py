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
    """Return datastack and version of an object that must state both."""
    stated = _stated_release(obj, name)
    for coord in RELEASE_COORDS:
        if coord not in stated:
            raise ReleaseMismatchError(
                f"{name} has no coordinate {coord!r}, so its release is not known: set it with "
                "mx.releases.stamp_release(object, datastack, version)"
            )
    return str(stated["datastack"]), int(stated["materialization_version"])


def _stated_release(obj: xr.Dataset | xr.DataArray, name: str) -> dict[str, Any]:
    stated = {}
    for coord in RELEASE_COORDS:
        if coord in obj.coords:
            if obj.coords[coord].ndim:
                raise ReleaseMismatchError(
                    f"{name} has {coord!r} along {obj.coords[coord].dims}, expected one scalar: "
                    "objects of several releases were joined; select one release"
                )
            stated[coord] = obj.coords[coord].item()
    return stated


def require_same_release(*named: tuple[str, Any]) -> None:
    """Raise if two objects state different releases; an object may state none.

    Nucleus ids name a neuron in every release, so data keyed by them may come without one.
    """
    stated = {name: _stated_release(obj, name) for name, obj in named}
    for coord in RELEASE_COORDS:
        having = [name for name in stated if coord in stated[name]]
        for name in having[1:]:
            first = having[0]
            if stated[name][coord] != stated[first][coord]:
                raise ReleaseMismatchError(
                    f"{first} is of {_shown(stated[first])} but {name} is of "
                    f"{_shown(stated[name])}: root ids and cell lists differ between releases; "
                    "build both from one release, or, if you mean it, drop the coordinates of one "
                    f"with .drop_vars({list(RELEASE_COORDS)})"
                )


def _shown(stated: dict[str, Any]) -> str:
    words = [str(stated["datastack"])] if "datastack" in stated else []
    if "materialization_version" in stated:
        words.append(f"v{stated['materialization_version']}")
    return " ".join(words)


def add_history(
    obj: Labelled,
    entry: str,
    source: xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray] | None = None,
) -> Labelled:
    """Append one line to ``attrs["history"]``, in place, and return `obj`."""
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
