"""The raw tables of one release: reading them, and downloading what is not here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import ReleaseMismatchError, SourceError, nearest_words
from microns_xr.releases import ROLES, ReleaseSpec, TableSpec, release_spec, table_spec
from microns_xr.source.base import TableSource
from microns_xr.source.choose import make_source
from microns_xr.source.directory import DirectorySource
from microns_xr.source.kept import KeptSource
from microns_xr.source.policies import table_names
from microns_xr.source.recordings import (
    RECORDINGS_URL,
    download_file,
    download_recordings,
    file_name,
)
from microns_xr.source.synapse_ids import resolve_ids
from microns_xr.source.synapse_set import SynapseSet

__all__ = ["ReleaseTables"]


def key_of(request: str | SynapseSet | None) -> str | None:
    """Return the key of a request, which may be given as its set of synapses."""
    return request.key if isinstance(request, SynapseSet) else request


class ReleaseTables:
    """Raw tables of one release, by name or role; `microns_xr.Release` builds on it."""

    def __init__(
        self,
        version: int | ReleaseSpec,
        *,
        datadir: str | Path = "data",
        datastack: str | None = None,
        source: str | Path | TableSource = "auto",
        tables: Mapping[str, str | None] | None = None,
    ) -> None:
        spec = release_spec(version, tables)
        self.version = spec.version
        self.datadir = Path(datadir)
        self.source = make_source(source, spec, datastack or spec.datastack, self.datadir)
        # A synthetic release says so in its datastack, and never passes for the real one.
        self.datastack = str(self.source.datastack)
        self.spec = replace(spec, datastack=self.datastack)
        said = getattr(self.source, "version", None)
        if said is not None and int(said) != self.version:
            raise ReleaseMismatchError(
                f"the source holds version {said}, but version {self.version} was asked for: "
                f"use Release({said}, ...) or a source of version {self.version}"
            )
        self._tables: dict[str, pd.DataFrame] = {}
        self._asked = {role for role, name in (tables or {}).items() if name is not None}
        self._further: dict[str, dict[str, Any]] = {}
        self._used: set[str] = set()  # tables of what is being made

    def __repr__(self) -> str:
        return f"<Release {self.datastack} v{self.version} from {type(self.source).__name__}>"

    # ------------------------------------------------------------------------- raw tables

    def available_tables(self) -> list[str]:
        """Names of the tables the source can give.

        Returns
        -------
        list of str
            Sorted names.
        """
        return self.source.available_tables()

    def table(self, name: str) -> pd.DataFrame:
        """Return one raw table.

        Parameters
        ----------
        name : str
            Name of a table, or a role such as ``"nucleus"``.

        Returns
        -------
        pandas.DataFrame
            Ids as int64 or Int64, text as object; ``attrs["table"]`` is the name. A copy: changing
            it changes nothing else.

        Raises
        ------
        SourceError
            If the source has no such table.
        """
        name = self.spec.tables.get(name, name)
        if name not in self._tables:
            self._tables[name] = self.source.read(name)
        self._used.add(name)
        table = self._tables[name].copy()
        table.attrs["table"] = name
        return table

    def _absent(self, roles: Iterable[str]) -> list[str]:
        """Tables the source does not have; an error for one that was asked for by name."""
        available = set(self.source.available_tables())
        absent = [r for r in roles if self.spec.has(r) and self.spec.tables[r] not in available]
        for role in absent:
            name = self.spec.tables[role]
            if role in self._asked:
                near = ", ".join(nearest_words(name, available))
                raise SourceError(
                    f"tables puts {name!r} in the role {role!r}, and the source has no such table"
                    + (f"; nearest: {near}" if near else "")
                )
        return [self.spec.tables[r] for r in absent]

    def _role_tables(self, roles: tuple[str, ...]) -> dict[str, pd.DataFrame]:
        available = set(self.source.available_tables())
        return {
            role: self.table(role)
            for role in roles
            if self.spec.has(role) and self.spec.tables[role] in available
        }

    def shared_roots(self) -> np.ndarray:
        """Root ids that hold several nuclei, int64, for `microns_xr.ingest_synapses`."""
        nuclei = self.table("nucleus")["pt_root_id"].dropna().astype(np.int64)
        return nuclei[nuclei.duplicated() & (nuclei > 0)].unique()

    def source_tables(self) -> list[dict[str, Any]]:
        """Provenance of every table read so far: name, rows, sha256."""
        read = [self.source.provenance(name) for name in sorted(self._tables)]
        return [*read, *(self._further[name] for name in sorted(self._further))]

    def _note(self, name: str, provenance: dict[str, Any]) -> None:
        """Remember a table that is no table of the source, such as a file or a set of synapses."""
        self._further[name] = provenance
        self._used.add(name)

    def _provenance_of(self, names: Iterable[str]) -> list[dict[str, Any]]:
        return [self._further.get(n) or self.source.provenance(n) for n in sorted(names)]

    def has_tables(self) -> dict[str, bool]:
        """For every role of `microns_xr.releases.ROLES`, whether the source has its table.

        Returns
        -------
        dict of str to bool
            By role; for ``synapses`` also True where the source has sets of synapses of its own.
        """
        available = set(self.available_tables())
        has = {role: self.spec.tables.get(role) in available for role in ROLES}
        sets: Mapping[str, Any] = getattr(self.source, "synapse_files", dict)()
        if isinstance(self.source, KeptSource):
            return {**has, "synapses": bool(sets)}  # the service has them all, this folder some
        return {**has, "synapses": has["synapses"] or bool(sets)}

    def _timestamp(self) -> dict[str, str]:
        """Return when the release was made, where a download has noted it, as an attribute."""
        if not isinstance(self.source, KeptSource):
            return {}
        said = self.source.provenance(self.spec.name_of("nucleus")).get("timestamp")
        return {} if said is None else {"timestamp": str(said)}

    def _file_spec(self, path: str | Path) -> TableSpec:
        """Return what the columns of a file mean, by its name."""
        name = Path(path).name.split(".")[0]
        return self.spec.table_specs.get(name) or table_spec(name)

    def _synapse_table(self, request: str | SynapseSet | None) -> pd.DataFrame:
        name = self.spec.name_of("synapses")
        request = key_of(request)
        if isinstance(self.source, KeptSource):
            chosen = self.source.synapse_set(request)
            self._note("synapses", chosen.provenance())
            return chosen.read()
        if isinstance(self.source, DirectorySource) and (self.source.synapse_files() or request):
            name = self.source.choose_synapses(request)
            table = self.source.read_synapses(request)
            self._note("synapses", self.source.provenance(name))
            return table
        if request is not None:
            raise SourceError(
                f"{type(self.source).__name__} holds one set of synapses, not {request!r}"
            )
        return self.table(name)

    def _asked_for(
        self, request: str | SynapseSet | None, units: xr.Dataset, whole: xr.Dataset
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Nucleus ids of the units that were asked for; how many roots asked for are no unit."""
        ids, no_unit = units["nucleus_id"].values, {"pre": 0, "post": 0}
        axes = {"pre": ids, "post": ids}
        if not isinstance(self.source, KeptSource):
            return axes, no_unit
        asked = self.source.synapse_set(key_of(request)).request
        for side in axes:
            if asked[side] is not None:
                axes[side] = ids[np.isin(units["pt_root_id"].values, asked[side])]
                no_unit[side] = int((~np.isin(asked[side], whole["pt_root_id"].values)).sum())
        return axes, no_unit

    # -------------------------------------------------------------------------- downloads

    def _kept(self, what: str) -> KeptSource:
        if not isinstance(self.source, KeptSource):
            raise SourceError(
                f"{type(self.source).__name__} reads what is there and cannot {what}: use "
                f"mx.Release({self.version}, source='cave'), or source='archive'"
            )
        return self.source

    def download(
        self,
        policy: Literal["minimum", "all", "extra"] = "minimum",
        extra: Iterable[str] = (),
        *,
        refresh: bool = False,
        progress: bool = True,
    ) -> dict[str, dict[str, Any]]:
        """Download raw tables into ``datadir``.

        Every table is checked against the number of rows the service counts, and kept as typed
        parquet with its provenance. What is there and whole is not fetched again, so running this
        again continues where it ended.

        Parameters
        ----------
        policy : {"minimum", "all", "extra"}, optional
            ``minimum``: what units and functional rows are made of; ``extra``: those and `extra`;
            ``all``: every table but the one of synapses, which `download_synapses` fetches.
        extra : iterable of str, optional
            Table names or roles.
        refresh : bool, optional
            Fetch tables again that are there.
        progress : bool, optional
            Show a progress bar.

        Returns
        -------
        dict of str to dict
            Table to its record: rows, sha256, timestamp, when, by which versions.

        Raises
        ------
        SourceError
            If the source is no download, or refuses (no token, an expired version); the message
            says what to do.
        IncompleteDownloadError
            If it fails again and again, or never gives all rows.
        UnknownLabelError
            If a table of `extra` is not there.
        """
        kept = self._kept("download tables")
        names = table_names(self.spec, kept.available_tables(), policy, extra)
        # A table longer than this is one of synapses or points.
        most = 10_000_000 if policy == "all" else None
        records = kept.download(names, refresh=refresh, progress=progress, max_rows=most)
        for name in records:
            self._tables.pop(name, None)
        return records

    def download_synapses(
        self,
        pre: Any = None,
        post: Any = None,
        *,
        positions: bool = False,
        allow_unknown: bool = False,
        workers: int = 3,
        batch: int | None = None,
        progress: bool = True,
    ) -> SynapseSet:
        """Download the synapses from some neurons onto some neurons.

        Each finished batch is kept; an interrupted download, at whatever moment, continues when
        this is run again with the same neurons. The result is the same, to the bit, whatever
        happened on the way. `connectivity` builds on it.

        Parameters
        ----------
        pre, post : units Dataset, or array-like of int, optional
            Units, nucleus ids or root ids; None for whichever. Both None is the whole table.
        positions : bool, optional
            Whether with the positions of the synapses, for `synapses`.
        allow_unknown : bool, optional
            Whether root ids that are in no nucleus of this release are asked for all the same.
        workers : int, optional
            Requests at a time.
        batch : int, optional
            The most neurons a request; chosen by itself otherwise.
        progress : bool, optional
            Show a progress bar.

        Returns
        -------
        SynapseSet
            Its ``key`` names it for ``connectivity(request=key)``.

        Raises
        ------
        ReleaseMismatchError
            If ids are unknown to this release: they are of another one.
        SchemaError
            If they are no ids.
        SourceError
            If the source refuses or another process downloads the same.
        IncompleteDownloadError
            If it fails again and again; what has arrived is kept.
        """
        kept = self._kept("download synapses")
        roots = {
            side: None
            if ids is None
            else resolve_ids(
                ids,
                self.table("nucleus"),
                name=side,
                datastack=self.datastack,
                version=self.version,
                allow_unknown=allow_unknown,
            ).roots
            for side, ids in (("pre", pre), ("post", post))
        }
        return kept.download_synapses(
            **roots,
            positions=positions,
            table=self.spec.name_of("synapses"),
            workers=workers,
            batch=batch,
            progress=progress,
        )

    def download_recordings(self, url: str = RECORDINGS_URL, **options: Any) -> Path:
        """Download the file of recordings into ``recordings/`` of the datadir.

        All releases share it. Interrupted, it continues where it ended when this is run again.

        Parameters
        ----------
        url : str, optional
            Where it is; the published file of 20.6 GB by default.
        **options
            ``sha256``, ``refresh``, ``progress`` and the others of `microns_xr.download_file`.

        Returns
        -------
        pathlib.Path
            The file, for `microns_xr.open_recordings`.

        Raises
        ------
        SourceError
            If it is not there, is no HDF5 file, or its checksum is another.
        IncompleteDownloadError
            If it fails again and again; what has arrived is kept.
        """
        return download_recordings(self.datadir.expanduser() / "recordings", url, **options)

    def download_fits(self, url: str, **options: Any) -> Path:
        """Download a table of tuning curves or fits into ``functional/`` of the release's folder.

        Parameters
        ----------
        url : str
            Where it is; its name is that of the table.
        **options
            ``sha256``, ``refresh``, ``progress`` and the others of `microns_xr.download_file`.

        Returns
        -------
        pathlib.Path
            The file; `tuning_curves` finds it.

        Raises
        ------
        SourceError
            If the release has no folder, the file is not there, or its checksum is another.
        IncompleteDownloadError
            If it fails again and again; what has arrived is kept.
        """
        folder = getattr(self.source, "folder", None) or getattr(self.source, "path", None)
        if folder is None:
            raise SourceError(
                f"{type(self.source).__name__} has no folder to put files into: fetch the file "
                "with mx.download_file, and give its path to tuning_curves(path)"
            )
        return download_file(url, Path(folder) / "functional" / file_name(url), **options)
