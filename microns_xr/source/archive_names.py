"""Which table is in which files of an archive."""

from __future__ import annotations

import re

from microns_xr.errors import SourceError, nearest_words
from microns_xr.releases import ReleaseSpec, release_spec, supported_versions, table_spec
from microns_xr.source.archive_files import ArchiveFiles

__all__ = ["ArchiveNames"]

_MERGED = "_merged"


class ArchiveNames:
    """Tables of one version, and the stems of their files.

    A table is archived as ``TABLE_merged``, a view under its own name, and a few tables under the
    name that the registry gives as ``archive_file``.

    Parameters
    ----------
    files : ArchiveFiles
        The files.
    spec : ReleaseSpec or None
        The release, where it is known.
    """

    def __init__(self, files: ArchiveFiles, spec: ReleaseSpec | None) -> None:
        self._files = files
        self._spec = spec
        self._stems: dict[str, str] = {}

    def _given(self, name: str) -> str | None:
        own = self._spec.table_specs.get(name) if self._spec else None
        return (own or table_spec(name)).archive_file

    def _registered(self) -> set[str]:
        specs = [release_spec(version) for version in supported_versions()]
        specs += [self._spec] if self._spec else []
        return {name for spec in specs for name in spec.tables.values()}

    def candidates(self, name: str) -> list[str]:
        """Return the stems that a table may have.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        list of str
            The likeliest first.

        Raises
        ------
        SourceError
            If it is no name.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise SourceError(f"{name!r} is no table name: expected letters, digits, '_', '-', '.'")
        given = self._given(name)
        return [given] if given else [f"{name}{_MERGED}", name]

    def stem_of(self, name: str) -> str:
        """Return the stem of the files of a table.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        str
            Name of the files without their endings.

        Raises
        ------
        SourceError
            If there is no such table, or it is no name.
        IncompleteDownloadError
            If the archive fails again and again.
        """
        if name not in self._stems:
            found = next((stem for stem in self.candidates(name) if self._files.has(stem)), None)
            if found is None:
                near = nearest_words(name, self._registered() - {name})
                raise SourceError(
                    f"there is no table {name!r} in the archive {self._files.shown}, or access to "
                    "it is refused"
                    + (f"; nearest: {', '.join(near)}" if near else "")
                    + ": available_tables() lists what is there; a version that is still served "
                    "is read with source='cave'"
                )
            self._stems[name] = found
        return self._stems[name]

    def available(self) -> list[str]:
        """Return the names of the tables that are there.

        Returns
        -------
        list of str
            Sorted; of those that the registry knows where the archive cannot be listed.

        Raises
        ------
        SourceError
            If there is nothing.
        IncompleteDownloadError
            If the archive fails again and again.
        """
        stems = self._files.stems()
        if stems is None:
            names = [name for name in self._registered() if self._finds(name)]
        else:
            given = {self._given(name): name for name in self._registered()}
            names = [given.get(stem) or stem.removesuffix(_MERGED) for stem in stems]
        if not names:
            raise SourceError(
                f"there is nothing in the archive {self._files.shown}: check the version and the "
                "address; a version that is still served is read with source='cave'"
            )
        return sorted(set(names))

    def _finds(self, name: str) -> bool:
        stem = self.candidates(name)[0]
        if name not in self._stems and self._files.has(stem):
            self._stems[name] = stem
        return name in self._stems
