"""From the word, path or object a user names to a source of raw tables."""

from __future__ import annotations

import logging
from pathlib import Path

from microns_xr.errors import SchemaError
from microns_xr.releases import ReleaseSpec
from microns_xr.source.archive import ArchiveSource
from microns_xr.source.base import TableSource
from microns_xr.source.cave import CaveSource
from microns_xr.source.demo import DemoSource
from microns_xr.source.directory import DirectorySource
from microns_xr.source.kept import KeptSource
from microns_xr.source.synapse_set import list_requests

__all__ = ["make_source"]

logger = logging.getLogger(__name__)


def make_source(
    source: str | Path | TableSource, spec: ReleaseSpec, datastack: str, datadir: Path
) -> TableSource:
    """Return the source that a word, a path or an object means.

    Parameters
    ----------
    source : str, Path or TableSource
        ``"auto"``: the CAVE service for a version that is served, the archive for one that is
        archived. ``"cave"``, ``"archive"``, ``"demo"``, a folder, or any object of the protocol; a
        `CaveSource` or `ArchiveSource` of one's own is kept in `datadir` like the others.
    spec : ReleaseSpec
        The release it must hold.
    datastack : str
        Name of the datastack.
    datadir : Path
        Where downloads are kept, each release in ``datastack/vN`` below it.

    Returns
    -------
    TableSource
        The source; nothing has been asked or written.

    Raises
    ------
    SourceError
        If the folder is not there.
    SchemaError
        If the object does not follow the protocol.
    """
    if source == "demo":
        return DemoSource(spec.version)
    if source == "auto":
        source = "archive" if spec.status == "archived" else "cave"
        logger.log(
            logging.WARNING if source == "archive" else logging.INFO,
            "%s v%d is %s: tables come from %s",
            datastack,
            spec.version,
            "archived" if spec.status == "archived" else "served",
            "its archived files" if source == "archive" else "the CAVE service",
        )
    folder = datadir / datastack / f"v{spec.version}"
    if source == "cave":
        source = CaveSource(spec.version, datastack=datastack)
    elif source == "archive":
        source = ArchiveSource(spec, datastack=datastack, folder=folder / "archive")
    if isinstance(source, CaveSource | ArchiveSource):
        own = datadir / source.datastack / f"v{source.version}"
        return KeptSource(source, own, source.datastack, int(source.version or spec.version))
    if isinstance(source, str | Path):
        return _folder_source(Path(source).expanduser(), spec, datastack)
    if not isinstance(source, TableSource):
        raise SchemaError(
            f"source is a {type(source).__name__}, expected 'auto', 'cave', 'archive', 'demo', a "
            "folder, or an object with available_tables(), read(), provenance(), datastack, "
            "version and scope"
        )
    return source


def _folder_source(path: Path, spec: ReleaseSpec, datastack: str) -> TableSource:
    directory = DirectorySource(path, version=spec.version, datastack=datastack)
    release = path.parent if path.resolve().name == "raw" else path
    if list_requests(release / "raw" / "synapses"):
        # Downloaded by this package: its sets of synapses say what was asked for.
        return KeptSource(None, release, directory.datastack, spec.version)
    return directory
