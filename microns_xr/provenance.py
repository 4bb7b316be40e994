"""Release, history and attributes of an object.

The release is stored as two scalar coordinates, ``datastack`` and ``materialization_version``,
because xarray propagates scalar coordinates to DataArrays and through arithmetic, but drops
attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from microns_xr.errors import (
    ReleaseMismatchError,
    SchemaError,
    require_instance,
    unknown_label,
    whole_number,
)

# xarray is imported by the functions that ask for its types: they get its objects, while
# `microns-xr info` reads attributes without it.
if TYPE_CHECKING:
    import xarray as xr

RELEASE_COORDS = ("datastack", "materialization_version")

Labelled = TypeVar("Labelled", "xr.Dataset", "xr.DataArray")


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
    import xarray as xr

    require_instance("obj", obj, (xr.Dataset, xr.DataArray), "a Dataset or DataArray")
    require_instance("datastack", datastack, str, "the name of a datastack")
    version = whole_number("version", version, 1)
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
    import xarray as xr

    require_instance(name, obj, (xr.Dataset, xr.DataArray), "a Dataset or DataArray")
    variables = obj.coords.variables
    stated = {coord: variables[coord] for coord in RELEASE_COORDS if coord in variables}
    for coord, values in stated.items():
        if values.ndim:
            raise ReleaseMismatchError(
                f"{name} has {coord!r} along {values.dims}, expected one scalar: "
                "objects of several releases were joined; select one release"
            )
    return {coord: values.values.item() for coord, values in stated.items()}


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
    import xarray as xr

    if source is None:
        source = obj
    sources: list[Any]
    sources = [source] if isinstance(source, xr.Dataset | xr.DataArray) else list(source)
    lines: list[str]
    lines = [line for s in sources for line in text_lines(s.attrs.get("history"))]
    if len(sources) > 1:
        lines = list(dict.fromkeys(lines))  # sources with a common origin share their first lines
    joined = {
        name: list(dict.fromkeys(x for s in (obj, *sources) for x in text_lines(s.attrs.get(name))))
        for name in ("source_tables", "references")
    }
    # A new dict, since selections in xarray share attributes with the original.
    attrs = copy.deepcopy({**obj.attrs, **{name: known for name, known in joined.items() if known}})
    obj.attrs = {**attrs, "history": [*lines, entry]}
    return obj


# Attributes are numbers, text and lists of them, which every file format of xarray holds.

_LINES = frozenset(
    {"history", "units_history", "source_tables", "selection", "notes", "dropped_synapses",
     "asked_for_but_no_unit", "layer_types", "left_out", "axons_on_axis", "axons_used"}
)  # fmt: skip

_OF_TABLE = ("sha256", "timestamp", "url")


def text_lines(value: Any) -> list[str]:
    """Return an attribute as lines of text: of one text, a list, counts or other named values."""
    if value is None:
        return []
    if isinstance(value, str):  # also what netCDF makes of a list of one
        return value.splitlines()
    if isinstance(value, Mapping):
        lines = []
        for name, entry in value.items():
            if isinstance(entry, Mapping):
                lines += [f"{name}_{line}" for line in text_lines(entry)]
            else:
                words = entry if isinstance(entry, list | tuple) else [entry]
                lines.append(f"{name}: {', '.join(map(str, words))}")
        return lines
    return [table_line(entry) if isinstance(entry, Mapping) else str(entry) for entry in value]


def table_line(table: Mapping[str, Any]) -> str:
    """Return the record of a table as one line, which begins with its name."""
    if "name" not in table:
        raise SchemaError(
            f"source_tables holds {dict(table)!r}, expected text, or mappings with name, rows and "
            "sha256"
        )
    known = [f"{table['rows']} rows"] if table.get("rows") is not None else []
    known += [f"{key} {table[key]}" for key in _OF_TABLE if table.get(key) is not None]
    return f"{table['name']}: {', '.join(known)}" if known else str(table["name"])


def source_names(value: Any) -> list[str]:
    """Return the names of the tables in an attribute ``source_tables``."""
    return [line.partition(": ")[0] for line in text_lines(value)]


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the attributes of a group of a store; older stores have mappings instead of lines."""
    plain = {key: text_lines(v) if key in _LINES else v for key, v in attrs.items()}
    if plain.get("timestamp", "") is None:
        del plain["timestamp"]
    return plain


def read_counts(obj: xr.Dataset | xr.DataArray | xr.DataTree, name: str) -> dict[str, int]:
    """Read an attribute of counts, such as ``["pre_zero: 152", "pre_shared: 3"]``.

    Parameters
    ----------
    obj : xarray.Dataset, xarray.DataArray or xarray.DataTree
        Units, connectivity or a result.
    name : str
        The attribute: ``"selection"`` or ``"notes"`` of units, ``"dropped_synapses"`` of
        connectivity, ``"left_out"`` or ``"axons_used"`` of an analysis.

    Returns
    -------
    dict of str to int
        The counts by name.

    Raises
    ------
    UnknownLabelError
        If there is no such attribute.
    SchemaError
        If the attribute has other lines than counts.

    Examples
    --------
    >>> import xarray as xr
    >>> connectivity = xr.Dataset(attrs={"dropped_synapses": ["pre_zero: 152", "pre_shared: 3"]})
    >>> read_counts(connectivity, "dropped_synapses")
    {'pre_zero': 152, 'pre_shared': 3}
    """
    require_instance("name", name, str, "the name of an attribute")
    if name not in obj.attrs:
        raise unknown_label("there is no attribute", name, obj.attrs)
    lines = text_lines(obj.attrs[name])
    try:
        return {word: int(n) for word, n in (line.rsplit(": ", 1) for line in lines)}
    except ValueError as error:
        raise SchemaError(
            f"the attribute {name!r} is {lines}, expected counts, such as 'pre_zero: 152'"
        ) from error
