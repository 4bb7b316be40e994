"""Tables as files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from microns_xr.errors import ReleaseMismatchError, SourceError, nearest_words
from microns_xr.files import file_sha256
from microns_xr.sources.cache import read_identity
from microns_xr.sources.tables import TABLE_SUFFIXES, read_table_file, table_stem

_SYNAPSES = "synapses"
# A whole synapse table may lie beside the other tables instead of in the synapse folder.
_SYNAPSE_TABLE = "synapses_pni_2"


class DirectorySource:
    r"""Raw tables that lie as files in a folder.

    A table is the file of its name: ``NAME.csv``, ``.csv.gz``, ``.parquet`` or ``.feather``, in the
    folder itself, in its ``raw/`` or in its ``functional/``; given the ``raw`` folder, the
    ``functional`` folder beside it is looked through as well. Synapse files have any name and lie
    in a folder ``synapses/`` under one of those.

    Parameters
    ----------
    path : str or pathlib.Path
        The folder.
    version : int, optional
        Materialization version of the tables, unless a file ``release.json`` in the folder says it.
    datastack : str, optional
        Name of the datastack, unless ``release.json`` says it.

    Attributes
    ----------
    scope : str
        ``"unknown"``: a bare file of synapses does not say which pairs were asked for.

    Raises
    ------
    SourceError
        If the folder does not exist or is none.
    ReleaseMismatchError
        If the folder says that it holds another version.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "raw").mkdir()
    >>> _ = (folder / "raw" / "nucleus_detection_v0.csv").write_text("id,pt_root_id\n7,0\n")
    >>> source = DirectorySource(folder, version=661)
    >>> source.available_tables(), len(source.read("nucleus_detection_v0"))
    (['nucleus_detection_v0'], 1)
    """

    scope = "unknown"

    def __init__(
        self,
        path: str | Path,
        *,
        version: int | None = None,
        datastack: str = "minnie65_public",
    ) -> None:
        self.path = Path(path).expanduser()
        self.version = version
        self.datastack = datastack
        self._rows: dict[str, int] = {}
        if not self.path.exists():
            parent = self.path.parent
            there = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
            near = nearest_words(self.path.name, there)
            raise SourceError(
                f"there is no folder {self.path}"
                + (f"; nearest: {', '.join(near)}" if near else "")
                + ": give the folder that holds the tables"
            )
        if not self.path.is_dir():
            raise SourceError(
                f"{self.path} is a file, expected the folder that holds the tables: "
                f"give {self.path.parent}"
            )
        self._identify()

    def _identify(self) -> None:
        """Take datastack and version from the folder, where it says them."""
        said = read_identity(self.path.resolve())
        if said is None:
            return
        if self.version is not None and self.version != said[1]:
            raise ReleaseMismatchError(
                f"{self.path} holds tables of {said[0]} v{said[1]}, but version {self.version} was "
                f"asked for: give version {said[1]}, or the folder of version {self.version}"
            )
        self.datastack, self.version = said

    def _folders(self) -> list[Path]:
        folders = [self.path, self.path / "raw", self.path / "functional"]
        if self.path.resolve().name == "raw":
            folders.append(self.path.resolve().parent / "functional")
        return [folder for folder in folders if folder.is_dir()]

    @staticmethod
    def _tables_in(folders: list[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder in folders:
            for path in sorted(folder.iterdir()):
                stem = table_stem(path)
                if stem is not None and path.is_file():
                    found.setdefault(stem, []).append(path)
        return found

    def _synapse_paths(self) -> dict[str, list[Path]]:
        folders = [folder / _SYNAPSES for folder in self._folders()]
        found = self._tables_in([folder for folder in folders if folder.is_dir()])
        if whole := self._tables_in(self._folders()).get(_SYNAPSE_TABLE):
            found[_SYNAPSE_TABLE] = whole + found.get(_SYNAPSE_TABLE, [])
        return found

    def _paths(self) -> dict[str, list[Path]]:
        tables = self._tables_in(self._folders())
        for stem, paths in self._synapse_paths().items():
            others = [path for path in tables.get(stem, []) if path not in paths]
            tables[stem] = others + paths
        return tables

    @staticmethod
    def _only(name: str, paths: list[Path]) -> Path:
        if len(paths) > 1:
            raise SourceError(
                f"table {name} is there {len(paths)} times: {', '.join(map(str, paths))}; "
                "keep one of them"
            )
        return paths[0]

    def _path_of(self, name: str) -> Path:
        paths = self._paths()
        if name in paths:
            return self._only(name, paths[name])
        if not paths:
            raise SourceError(
                f"{self.path} holds no table, expected files NAME with a suffix "
                f"{', '.join(TABLE_SUFFIXES)} in it, in raw/ or in functional/"
            )
        near = nearest_words(name, paths)
        raise SourceError(
            f"there is no table {name} in {self.path}, found {', '.join(sorted(paths))}"
            + (f"; nearest: {', '.join(near)}" if near else "")
            + ": fetch it, or rename its file"
        )

    def available_tables(self) -> list[str]:
        """Names of the tables in the folder, those of synapses included, sorted.

        Returns
        -------
        list of str
            File names without suffix.
        """
        return sorted(self._paths())

    def read(self, name: str) -> pd.DataFrame:
        """Return one table.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        pandas.DataFrame
            As `microns_xr.sources.tables.read_table_file` types it.

        Raises
        ------
        SourceError
            If there is no such table, there are two files of it, or its file cannot be read.
        """
        frame = read_table_file(self._path_of(name))
        self._rows[name] = len(frame)
        return frame

    def provenance(self, name: str) -> dict[str, Any]:
        """Return where a table comes from.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        dict
            ``name``, ``rows`` and the ``sha256`` of the file.

        Raises
        ------
        SourceError
            As `read`.
        """
        path = self._path_of(name)
        if name not in self._rows:
            self.read(name)
        return {"name": name, "rows": self._rows[name], "sha256": file_sha256(path)}

    def synapse_files(self) -> dict[str, Path]:
        """Return the files of synapses: those in ``synapses/``, and a whole synapse table.

        Returns
        -------
        dict of str to pathlib.Path
            By name without suffix, sorted.

        Raises
        ------
        SourceError
            If there are two files of one name.
        """
        found = self._synapse_paths()
        return {name: self._only(name, found[name]) for name in sorted(found)}

    def read_synapses(self, request: str | None = None) -> pd.DataFrame:
        """Return a table of synapses, or of pairs.

        Parameters
        ----------
        request : str, optional
            Which, of the names in `synapse_files`; needed where there are several.

        Returns
        -------
        pandas.DataFrame
            The table.

        Raises
        ------
        SourceError
            If there is none, there are several and none is named, or the named one is not there.
        """
        return self.read(self.choose_synapses(request))

    def choose_synapses(self, request: str | None = None) -> str:
        """Return the name of the synapse file that `read_synapses` reads.

        Parameters
        ----------
        request : str, optional
            As for `read_synapses`.

        Returns
        -------
        str
            A name of `synapse_files`.

        Raises
        ------
        SourceError
            As `read_synapses`.
        """
        names = list(self.synapse_files())
        if not names:
            raise SourceError(
                f"{self.path} has no file of synapses, expected one in synapses/ or raw/synapses/: "
                "put it there, or go without connectivity"
            )
        if request is None:
            if len(names) > 1:
                raise SourceError(
                    f"{self.path} has {len(names)} files of synapses, {', '.join(names)}: "
                    f"choose one with request={names[0]!r}"
                )
            return names[0]
        if request not in names:
            near = nearest_words(request, names)
            raise SourceError(
                f"there is no file of synapses {request!r} in {self.path}, found {', '.join(names)}"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        return request
