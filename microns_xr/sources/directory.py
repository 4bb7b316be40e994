"""Tables as files in a folder, which may state its release."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from microns_xr.errors import (
    ReleaseMismatchError,
    SourceError,
    nearest,
    require_instance,
    unknown_label,
)
from microns_xr.files import file_sha256, write_json
from microns_xr.releases import synapse_tables
from microns_xr.sources.tables import TABLE_SUFFIXES, TableSource, read_table_file, table_stem

# microns-datacleaner writes one file for each batch of postsynaptic neurons.
_PART = re.compile(r"(connections_table)_(\d+)")

IDENTITY_FILE = "release.json"


def write_identity(folder: Path, datastack: str, version: int) -> None:
    """Record the release of a folder, or raise if the folder is of another release."""
    existing = read_identity(folder)
    if existing is None:
        write_json(folder / IDENTITY_FILE, {"datastack": datastack, "version": version})
    elif existing != (datastack, version):
        raise ReleaseMismatchError(
            f"{folder} holds tables of {existing[0]} v{existing[1]}, not of {datastack} "
            f"v{version}: use another folder, releases must not be mixed"
        )


def read_identity(folder: Path) -> tuple[str, int] | None:
    """Return datastack and version of a folder of tables, or None if it does not state them."""
    # The file is in the release's folder, which may be the parent of a raw folder.
    for place in (folder, folder.parent) if folder.name == "raw" else (folder,):
        file = place / IDENTITY_FILE
        if not file.is_file():
            continue
        try:
            identity = json.loads(file.read_text(encoding="utf-8"))
            return str(identity["datastack"]), int(identity["version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(
                f"{file} does not state a datastack and a version ({error}): correct or remove it"
            ) from error
    return None


def table_files(path: Path) -> tuple[dict[str, list[Path]], set[str]]:
    """Return the files of every table in a folder, and the names of the tables of synapses."""
    folders, whole = [path, path / "raw", path / "functional"], path.resolve()
    # Tables that were computed from the raw ones are beside them. microns-datacleaner keeps them
    # beside the folders of versions, which are named 1300 ...
    if whole.name == "raw" or whole.name.isdigit():
        folders.append(whole.parent / "functional")
    files: dict[str, list[Path]] = {}
    synapses = set()
    of_synapses = [folder / "synapses" for folder in folders]
    for folder in folders + of_synapses:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = table_stem(file)
            if name is None or not file.is_file():
                continue
            files.setdefault(name, []).append(file)
            # A complete synapse table may be beside the other tables instead.
            if folder in of_synapses or name in synapse_tables():
                synapses.add(name)
    return files, synapses


def the_only(name: str, paths: list[Path]) -> Path:
    """Return the only file of a table, or raise if there are several."""
    if len(paths) > 1:
        raise SourceError(
            f"table {name} exists {len(paths)} times: {', '.join(map(str, paths))}; "
            "keep one of them"
        )
    return paths[0]


class DirectorySource(TableSource):
    r"""Raw tables that are files in a folder.

    A table is a file ``NAME.csv``, ``NAME.csv.gz``, ``NAME.parquet`` or ``NAME.feather`` in the
    folder itself, in its ``raw/`` or in its ``functional/``; if the folder is a ``raw`` folder, the
    ``functional`` folder beside it is searched as well. Synapse files may have any name and are in
    a folder ``synapses/`` in one of those. `TableSource` describes `available_tables`, `read` and
    `provenance`; the sha256 is that of the file.

    Column names are read in any case, with or without a byte order mark, and an index without a
    name that pandas wrote is left out.

    A folder that microns-datacleaner downloaded (``data/1300``) is read as it is: its files
    ``connections_table_0.csv`` ... are one set of synapses, ``"connections_table"``, or the file
    into which they were merged; ``data/functional`` is searched as well. A dump of the whole
    synapse table, which has its columns in a file ``NAME_header.csv``, is left to
    `microns_xr.ingest_synapses`.

    Parameters
    ----------
    path : str or pathlib.Path
        The folder.
    version : int, optional
        Materialization version of the tables, unless ``release.json`` in the folder states it.
    datastack : str, optional
        Name of the datastack, unless ``release.json`` states it; without either, the `Release` that
        reads the folder decides.

    Attributes
    ----------
    scope : str
        ``"unknown"``: a synapse file alone does not state which pairs were requested.

    Raises
    ------
    SourceError
        If there is no such folder or table, a table has two files, or a file cannot be read.
    ReleaseMismatchError
        If the folder states another version.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "raw").mkdir()
    >>> _ = (folder / "raw" / "nucleus_detection_v0.csv").write_text("id,pt_root_id\n7,0\n")
    >>> source = DirectorySource(folder, version=661)
    >>> source.available_tables(), len(source.read("nucleus_detection_v0"))
    (['nucleus_detection_v0'], 1)
    >>> source.provenance("nucleus_detection_v0")["rows"]
    1
    >>> (folder / "synapses").mkdir()
    >>> _ = (folder / "synapses" / "few.csv").write_text("id,size\n1,9\n")
    >>> list(source.synapse_files()), source.choose_synapses(), len(source.read_synapses("few"))
    (['few'], 'few', 1)
    """

    scope = "unknown"

    def __init__(
        self,
        path: str | Path,
        *,
        version: int | None = None,
        datastack: str | None = None,
    ) -> None:
        require_instance("path", path, (str, os.PathLike), "the path of a folder")
        self.path = Path(path).expanduser()
        self.version = version
        self.datastack = datastack
        self._rows: dict[str, int] = {}
        if not self.path.exists():
            folders = [p.name for p in self.path.parent.glob("*/")]
            raise SourceError(
                f"there is no folder {self.path}{nearest(self.path.name, folders)}"
                ": give the folder that holds the tables"
            )
        if not self.path.is_dir():
            raise SourceError(
                f"{self.path} is a file, expected the folder that holds the tables: "
                f"give {self.path.parent}"
            )
        # The release recorded by a download; a `Release` of another one refuses it.
        identity = read_identity(self.path.resolve())
        if identity is not None:
            if version not in (None, identity[1]):
                raise ReleaseMismatchError(
                    f"{self.path} holds tables of {identity[0]} v{identity[1]}, but version "
                    f"{version} was requested: give version {identity[1]}, or the folder of "
                    f"version {version}"
                )
            self.datastack, self.version = identity

    def _path_of(self, name: str) -> Path:
        files, _ = table_files(self.path)
        if name in files:
            return the_only(name, files[name])
        if not files:
            raise SourceError(
                f"{self.path} holds no table, expected files NAME with a suffix "
                f"{', '.join(TABLE_SUFFIXES)} in it, in raw/ or in functional/"
            )
        what, hint = f"{self.path} holds no table", "fetch it, or rename its file"
        raise unknown_label(what, name, set(files), hint, SourceError)

    def available_tables(self) -> list[str]:
        return sorted(table_files(self.path)[0])

    def read(self, name: str) -> pd.DataFrame:
        frame = read_table_file(self._path_of(name))
        frame.attrs["table"] = name.removesuffix("_merged")  # by which the registry knows it
        self._rows[name] = len(frame)
        return frame

    def provenance(self, name: str) -> dict[str, Any]:
        parts = self._synapse_sets().get(name, [name])
        if name not in self._rows:
            self._read_set(name, parts)
        record = {"name": name, "rows": self._rows[name]}
        if parts == [name]:
            return {**record, "sha256": file_sha256(self._path_of(name))}
        digests = "".join(file_sha256(self._path_of(part)) for part in parts)
        sha256 = hashlib.sha256(digests.encode()).hexdigest()
        return {**record, "sha256": sha256, "files": len(parts)}

    def synapse_files(self) -> dict[str, Path]:
        """Return the synapse files: those in ``synapses/``, and a complete synapse table.

        Returns
        -------
        dict of str to pathlib.Path
            By name without suffix, sorted.

        Raises
        ------
        SourceError
            If two files have the same name.
        """
        files, synapses = table_files(self.path)
        return {
            name: the_only(name, files[name])
            for name in sorted(synapses)
            if not name.endswith("_header") and f"{name}_header" not in files
        }

    def _synapse_sets(self) -> dict[str, list[str]]:
        """Return the names of the files of every set of synapses."""
        sets: dict[str, list[tuple[int, str]]] = {}
        for name in self.synapse_files():
            part = _PART.fullmatch(name)
            key, number = (part[1], int(part[2])) if part else (name, 0)
            sets.setdefault(key, []).append((number, name))
        return {key: [name for _, name in sorted(parts)] for key, parts in sets.items()}

    def choose_synapses(self, request: str | None = None) -> str:
        """Return the name of the synapse file that `read_synapses` reads.

        Parameters
        ----------
        request : str, optional
            One of the names in `synapse_files`, or ``"connections_table"`` for all of its parts;
            required if there are several, except for such parts and the file that merges them.

        Returns
        -------
        str
            That name.

        Raises
        ------
        SourceError
            If there is no such file, or there are several and none is named.
        """
        sets = self._synapse_sets()
        names = list(sets)
        if not names:
            raise SourceError(
                f"{self.path} has no file of synapses, expected one in synapses/ or raw/synapses/: "
                "put it there, convert a dump of the whole table with mx.ingest_synapses, or work "
                "without connectivity"
            )
        if request is None and len(names) == 2 and "connections_table" in names:
            (merged,) = [name for name in names if name != "connections_table"]
            n_rows = {name: len(self.read_synapses(name)) for name in names}
            if n_rows[merged] != n_rows["connections_table"]:
                raise SourceError(
                    f"{self.path} has parts of a table of synapses with "
                    f"{n_rows['connections_table']} rows and {merged} with {n_rows[merged]}, "
                    "expected as many: choose one with request='connections_table' or "
                    f"request={merged!r}"
                )
            return merged
        if request is None and len(names) > 1:
            raise SourceError(
                f"{self.path} has {len(names)} files of synapses, {', '.join(names)}: "
                f"choose one with request={names[0]!r}"
            )
        if request is not None and request not in {*names, *self.synapse_files()}:
            raise unknown_label(
                f"{self.path} has no file of synapses", request, names, error=SourceError
            )
        return request or names[0]

    def read_synapses(self, request: str | None = None) -> pd.DataFrame:
        """Return a table of synapses, or of pairs.

        Parameters
        ----------
        request : str, optional
            As for `choose_synapses`.

        Returns
        -------
        pandas.DataFrame
            The table.
        """
        name = self.choose_synapses(request)
        return self._read_set(name, self._synapse_sets().get(name, [name]))

    def _read_set(self, name: str, parts: list[str]) -> pd.DataFrame:
        """Read a file, or the parts of a set of synapses, each of other postsynaptic neurons."""
        if parts == [name]:
            return self.read(name)
        numbers = {int(part.rpartition("_")[2]) for part in parts}
        if missing := sorted(set(range(max(numbers))) - numbers):
            raise SourceError(
                f"{self.path} has {len(parts)} files {name}_0 ..., of which {name}_{missing[0]} is "
                "missing: download it again, or choose a merged file with request="
            )
        tables = {part: self.read(part) for part in parts}
        owner: dict[int, str] = {}
        for part, table in tables.items():
            for root in table.get("post_pt_root_id", pd.Series(dtype="int64")).unique().tolist():
                if owner.setdefault(root, part) != part:
                    raise SourceError(
                        f"{owner[root]} and {part} both have synapses onto {root}, expected each "
                        "neuron in one part: they are of two downloads, so that synapses would "
                        "count twice; remove the files of one"
                    )
        self._rows[name] = sum(map(len, tables.values()))
        return pd.concat(tables.values(), ignore_index=True)
