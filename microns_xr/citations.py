"""The papers behind the tables that a result was made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import xarray as xr

from microns_xr.errors import SchemaError
from microns_xr.releases import table_spec

__all__ = ["cite", "references"]

# The data as a whole: asked for by the MICrONS consortium of everybody who uses them.
_ALWAYS = "MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w"


def references(data: xr.Dataset | xr.DataArray | xr.DataTree) -> list[str]:
    """Return the papers of the tables that some data were made of.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataArray or xarray.DataTree
        Anything of a `microns_xr.Release` or of a store, and what was computed of it: the tables
        are in the attribute ``source_tables``.

    Returns
    -------
    list of str
        Authors, year and doi; the paper of the whole data first.

    Raises
    ------
    SchemaError
        If the data do not say which tables they are made of.

    Examples
    --------
    >>> import microns_xr as mx
    >>> units = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500)).units()
    >>> references(units)[1]
    'Elabbady et al. 2025, doi:10.1038/s41586-024-07765-7'
    """
    names = list(dict.fromkeys(_tables(data)))
    if not names:
        raise SchemaError(
            "the data have no attribute 'source_tables', so their tables are not known: xarray "
            "drops attributes in arithmetic; cite what was computed from instead, or use "
            "xr.set_options(keep_attrs=True)"
        )
    papers = {table_spec(name).reference for name in names} - {None, _ALWAYS}
    return [_ALWAYS, *sorted(str(paper) for paper in papers)]


def cite(data: xr.Dataset | xr.DataArray | xr.DataTree) -> None:
    """Print the papers of the tables that some data were made of.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataArray or xarray.DataTree
        See `references`, which returns them.

    Raises
    ------
    SchemaError
        See `references`.

    Examples
    --------
    >>> import microns_xr as mx
    >>> cite(mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500)).units())
    MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w
    Elabbady et al. 2025, doi:10.1038/s41586-024-07765-7
    """
    print("\n".join(references(data)))


def _tables(data: Any) -> Iterator[str]:
    if isinstance(data, xr.DataTree):
        for node in data.subtree:
            yield from _names(node.attrs.get("source_tables", ()))
    elif isinstance(data, xr.Dataset | xr.DataArray):
        yield from _names(data.attrs.get("source_tables", ()))
    else:
        raise SchemaError(
            f"expected a Dataset, DataArray or tree, found {type(data).__name__}: open a store "
            "with mx.open_store"
        )


def _names(tables: Iterable[Any]) -> Iterator[str]:
    for table in tables:
        yield str(table["name"]) if isinstance(table, Mapping) else str(table)
