"""Sources of raw tables: a folder, the CAVE service, its archive, or a synthetic release."""

from microns_xr.sources.archive import ArchiveSource
from microns_xr.sources.cave import CaveSource
from microns_xr.sources.demo import DemoSource
from microns_xr.sources.directory import DirectorySource
from microns_xr.sources.net import Retry
from microns_xr.sources.tables import TableSource

__all__ = ["ArchiveSource", "CaveSource", "DemoSource", "DirectorySource", "Retry", "TableSource"]


def __dir__() -> list[str]:
    return __all__
