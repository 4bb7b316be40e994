"""From the word, path or object a user names to a source of raw tables."""

from __future__ import annotations

from pathlib import Path

from microns_xr.errors import SchemaError, SourceError
from microns_xr.releases import ReleaseSpec
from microns_xr.source.base import TableSource
from microns_xr.source.demo import DemoSource
from microns_xr.source.directory import DirectorySource

__all__ = ["make_source"]


def make_source(source: str | Path | TableSource, spec: ReleaseSpec, datastack: str) -> TableSource:
    """Return the source that a word, a path or an object means.

    Parameters
    ----------
    source : str, Path or TableSource
        ``"demo"``, a folder, or any object of the protocol, which is returned as it is.
    spec : ReleaseSpec
        The release it must hold.
    datastack : str
        Name of the datastack.

    Returns
    -------
    TableSource
        The source.

    Raises
    ------
    SourceError
        If the folder is not there.
    SchemaError
        If the object does not follow the protocol.
    """
    if source == "demo":
        return DemoSource(spec.version)
    if source in ("cave", "archive"):
        raise SourceError(
            f"source={source!r} is not available in this version of microns_xr: pass a folder "
            "with the tables of the release, or source='demo'"
        )
    if isinstance(source, str | Path):
        return DirectorySource(source, version=spec.version, datastack=datastack)
    if not isinstance(source, TableSource):
        raise SchemaError(
            f"source is a {type(source).__name__}, expected 'demo', a folder, or an object "
            "with available_tables(), read(), provenance(), datastack, version and scope"
        )
    return source
