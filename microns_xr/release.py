"""One release: what is built from its raw tables."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import AngleConvention, convert
from microns_xr.columns import require_columns
from microns_xr.connectivity.build import build_connectivity, build_synapses
from microns_xr.errors import (
    DroppedRowsWarning,
    ReleaseMismatchError,
    SchemaError,
    SourceError,
    nearest_words,
)
from microns_xr.files import file_sha256
from microns_xr.layers import segment_layers
from microns_xr.provenance import add_history, release_of
from microns_xr.recordings.files import open
from microns_xr.recordings.trials import tuning
from microns_xr.releases import (
    MINIMUM_ROLES,
    ROLES,
    ReleaseSpec,
    TableSpec,
    release_spec,
    table_spec,
)
from microns_xr.sources.cache import table_names
from microns_xr.sources.directory import DirectorySource
from microns_xr.sources.download import KeptSource, make_source
from microns_xr.sources.fetch import (
    RECORDING_SUFFIXES,
    RECORDINGS_URL,
    download,
    download_file,
    file_name,
)
from microns_xr.sources.synapses import SynapseSet, resolve_ids
from microns_xr.sources.tables import TableSource, read_table_file
from microns_xr.store.write import write_store
from microns_xr.tables import SCAN_KEYS
from microns_xr.tuning.fits import evaluate, require_likely_units
from microns_xr.tuning.functional import (
    KIND_ROLES,
    FunctionalKind,
    build_functional,
    build_tuning_curves,
    stated_spec,
)
from microns_xr.units import FunctionalMode, add_rates, build_units

# The raw tables of one release: reading them, and downloading what is not here.


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
            The file, for `microns_xr.recordings.open`.

        Raises
        ------
        SourceError
            If it is not there, is no HDF5 file, or its checksum is another.
        IncompleteDownloadError
            If it fails again and again; what has arrived is kept.
        """
        return download(self.datadir.expanduser() / "recordings", url, **options)

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


# Tuning curves of a release: found in a table, drawn from fits, or computed from recordings.


logger = logging.getLogger(__name__)

_N_DIRECTIONS = 16
# Columns of a table of fits: our name, and that of the fits published with con-con-models.
_FIT_COLUMNS = {
    "unit_id": "cell_id",
    "model": "tuning_type",
    "amplitude": "A",
    "kappa": "k",
    "r2": "mean_r_sqrd",
}
# Their words to our models; theirs are functions of radians, in a column phi.
_MODELS = {"single": "single_von_mises", "double": "von_mises"}
_PREFERRED = {
    "von_mises": "pref_ori",
    "single_von_mises": "pref_dir",
    "double_von_mises": "pref_dir",
}


def tuning_curves_of(
    release: ReleaseTables,
    coregistration: Callable[[], xr.Dataset],
    path: str | Path | None = None,
    angle_convention: AngleConvention | None = None,
) -> xr.Dataset:
    """Find the tuning curves of a release, draw them from fits, or compute them, in this order."""
    if path is not None:
        if Path(path).suffix in RECORDING_SUFFIXES or Path(path).is_dir():
            return _computed(path, coregistration(), angle_convention)
        table, spec = read_table_file(path), release._file_spec(path)
        sha256 = file_sha256(Path(path))
        release._note(spec.name, {"name": spec.name, "rows": len(table), "sha256": sha256})
        return _from_table(table, spec, coregistration(), angle_convention)
    available = set(release.source.available_tables())
    fits = sorted(n for n in available if re.search(r"(^|_)fits(_|$)", n))
    files = recording_files(release)
    name = release.spec.tables.get("tuning_curves")
    if name in available:
        try:
            table, spec = release.table(name), release.spec.table_of("tuning_curves")
            return _from_table(table, spec, coregistration(), angle_convention)
        except SourceError as error:
            # An archive that cannot be listed names tables that it may not have.
            if not fits and not files:
                raise
            logger.warning("%s cannot be read: %s", name, error)
    if fits:
        found = _only(fits, "tables of fits")
        table, spec = release.table(found), release._file_spec(found)
        return _from_table(table, spec, coregistration(), angle_convention)
    if files:
        file = _only(files, "files of recordings")
        return _computed(file, coregistration(), angle_convention)
    raise SourceError(
        f"{release!r} has no tuning curves: no table {name or 'in the role tuning_curves'}, no "
        "table of fits, and no recordings to compute them from; put a table into its folder "
        "functional, give path=, or fetch the recordings with download()"
    )


def recording_files(release: ReleaseTables) -> list[Path]:
    """Return the files of recordings of a release.

    Recordings are the same in every release, so they lie in ``recordings/`` of the folder of all
    downloads; one in ``functional/`` of the release is found as well.
    """
    folders = [release.datadir / "recordings"]
    own = getattr(release.source, "folder", None) or getattr(release.source, "path", None)
    if own is not None:
        folders += [Path(own) / "functional", Path(own) / "recordings"]
    found = [f for folder in folders if folder.is_dir() for f in folder.iterdir()]
    return sorted({f.resolve() for f in found if f.suffix in RECORDING_SUFFIXES})


def _only(found: list[Any], what: str) -> Any:
    if len(found) > 1:
        raise SourceError(
            f"there are several {what} ({', '.join(str(f) for f in found)}): name one with path="
        )
    return found[0]


def _from_table(
    table: pd.DataFrame,
    spec: TableSpec,
    coregistration: xr.Dataset,
    angle_convention: AngleConvention | None,
) -> xr.Dataset:
    how = "table"
    if not {"rate_dir", "rate_ori"} & set(table.columns) and "kappa" in _renamed(table).columns:
        table, how = rates_of_fits(table, spec.name), "fits"
        spec = replace(spec, angle_units="degree")
    if angle_convention is not None:
        spec = stated_spec(spec, angle_convention=angle_convention)
    curves = build_tuning_curves(table, spec, coregistration)
    return _said(curves, how, spec.name)


def _computed(
    file: str | Path, coregistration: xr.Dataset, angle_convention: AngleConvention | None
) -> xr.Dataset:
    curves = tuning(open(file), coregistration=coregistration, angle_convention=angle_convention)
    return _said(curves, "trials", Path(file).name)


def _said(curves: xr.Dataset, how: str, name: str) -> xr.Dataset:
    words = {
        "table": f"found in the table {name}",
        "fits": f"drawn from the fits {name}",
        "trials": f"computed from the trials of {name}",
    }
    logger.info("tuning curves were %s", words[how])
    return add_history(curves.assign_attrs(tuning_from=how), f"tuning curves {words[how]}")


def _renamed(table: pd.DataFrame) -> pd.DataFrame:
    theirs = {
        their: our
        for our, their in _FIT_COLUMNS.items()
        if their in table.columns and our not in table.columns
    }
    return table.rename(columns=theirs)


def rates_of_fits(table: pd.DataFrame, name: str = "fits") -> pd.DataFrame:
    """Draw tuning curves from a table of fits."""
    table = _renamed(table)
    require_columns(table, name, [*SCAN_KEYS, "model", "amplitude", "kappa", "r2"])
    if not len(table):
        raise SchemaError(f"{name} has no rows: fetch the table again, or give another with path=")
    table = table.sort_values("r2", ascending=False, kind="stable", na_position="last")
    table = table.drop_duplicates(list(SCAN_KEYS))
    model = table["model"].map(lambda word: _MODELS.get(word, word))
    unknown = sorted(set(model) - set(_PREFERRED), key=str)
    if unknown:
        raise SchemaError(f"{name} has the models {unknown}, expected some of {[*_PREFERRED]}")
    directions = np.arange(_N_DIRECTIONS) * 360.0 / _N_DIRECTIONS
    parts = [_drawn(table[model == word], word, directions, name) for word in sorted(set(model))]
    rates = pd.concat(parts).sort_index()
    half = _N_DIRECTIONS // 2
    rates["rate_ori"] = [(r[:half] + r[half:]) / 2 for r in rates["rate_dir"]]
    return rates.reset_index(drop=True)


def _require_units(fits: pd.DataFrame, column: str, units: str, name: str) -> None:
    values = fits[column].to_numpy(dtype=np.float64, na_value=np.nan)
    require_likely_units(values[np.isfinite(values)], units, f"{name}.{column}")


def _drawn(fits: pd.DataFrame, model: str, directions: np.ndarray, name: str) -> pd.DataFrame:
    preferred = _PREFERRED[model]
    if preferred not in fits.columns and "phi" in fits.columns:
        _require_units(fits, "phi", "radian", name)
        fits = fits.assign(**{preferred: np.rad2deg(fits["phi"])})
    further = ["amplitude_opposite"] if model == "double_von_mises" else []
    require_columns(fits, name, [preferred, *further])
    _require_units(fits, preferred, "degree", name)
    fits = fits if "baseline" in fits.columns else fits.assign(baseline=0.0)
    columns = ["amplitude", "kappa", "baseline", preferred, *further]
    values = {
        c: ("scan_unit", fits[c].to_numpy(dtype=np.float64, na_value=np.nan)) for c in columns
    }
    fitted = xr.Dataset(values, attrs={"model": model, "tuning_dim": "direction"})
    # The same convention on both sides: the table's own, which is stated later.
    fitted[preferred].attrs = {"units": "degree", "angle_convention": "up_clockwise"}
    rates = evaluate(fitted, directions).transpose("scan_unit", "direction").values
    return fits[list(SCAN_KEYS)].assign(rate_dir=list(rates))


# Which tables a Dataset of a release was made of.


Method = TypeVar("Method", bound=Callable[..., xr.Dataset])


def sourced(method: Method) -> Method:
    """Let a method of a release note in ``attrs["source_tables"]`` which tables it has used."""

    @functools.wraps(method)
    def noted(self: Any, *args: Any, **kwargs: Any) -> xr.Dataset:
        before, self._used = self._used, set()
        try:
            result = method(self, *args, **kwargs)
            tables = self._provenance_of(self._used)
        finally:
            self._used |= before
        further = [t for t in result.attrs.get("source_tables", ()) if t not in tables]
        return result.assign_attrs(source_tables=[*tables, *further])

    return cast(Method, noted)


class Release(ReleaseTables):
    """One materialization version: raw tables in, labelled Datasets out.

    Parameters
    ----------
    version : int or ReleaseSpec
        A version of ``mx.supported_versions()``, or a registry entry of one's own.
    datadir : str or Path, optional
        Where downloads are kept, each release in a folder of its own below it.
    datastack : str, optional
        Name of the datastack; that of the version by default.
    source : str, Path or TableSource, optional
        ``"auto"`` (the CAVE service for a version that is served, the archive for one that is
        archived), ``"cave"``, ``"archive"``, ``"demo"``, a folder with the raw tables of the
        release, or any object that follows the `TableSource` protocol.
    tables : mapping of str to str, optional
        Other tables for some roles, such as ``{"celltype": "cell_type_multifeature_combo"}``.

    Raises
    ------
    UnknownLabelError
        If the version, or a role in `tables`, is not known; nothing has been created then.
    SourceError
        If the source is a folder that is not there.
    ReleaseMismatchError
        If the source says that it holds another version.

    Examples
    --------
    >>> release = Release(1718, source="demo")
    >>> units = release.units(functional="match", rates=True)
    >>> units.rate_ori.dims
    ('nucleus_id', 'orientation')
    """

    @sourced
    def units(
        self,
        functional: FunctionalMode = "none",
        multisoma: Literal["any", "typed"] = "any",
        untyped: Literal["drop", "keep"] = "drop",
        rates: bool | str | Path | xr.Dataset | None = None,
        collapse: Literal["mean", "best", "first"] = "mean",
        *,
        by: str | None = None,
        white_matter: bool = True,
        angle_convention: AngleConvention | None = None,
    ) -> xr.Dataset:
        """Build the unit table.

        Parameters
        ----------
        functional : {"none", "match", "best_only"}, optional
            What of the functional tables is joined; one row a neuron in every case.
        multisoma : {"any", "typed"}, optional
            ``any`` drops every root with more than one nucleus, ``typed`` counts typed nuclei only.
        untyped : {"drop", "keep"}, optional
            Whether nuclei without an entry in the classification table are units.
        rates : bool, path or Dataset, optional
            True puts ``rate_ori`` and ``rate_dir`` of `tuning_curves` on the units; a path reads
            them from that file; a Dataset is one that `tuning_curves` returned.
        collapse, by : str, optional
            How several recorded units of a neuron become one row; see
            `microns_xr.tuning.collapse_scans`.
        white_matter : bool, optional
            See `microns_xr.segment_layers`.
        angle_convention : str, optional
            Express all angles in this convention, in degrees; needed when the functional
            properties and the rates of a release do not state the same one.

        Returns
        -------
        xarray.Dataset
            See `microns_xr.build_units`.

        Raises
        ------
        SchemaError
            See `microns_xr.build_units`; also if angles of two conventions would meet.
        """
        needed = [r for r in MINIMUM_ROLES if r not in ("coregistration", "functional_properties")]
        extra = {"match": ["coregistration"], "best_only": ["functional_properties"]}
        needed += extra.get(functional, [])
        absent = self._absent(needed)
        units = build_units(
            self._role_tables(tuple(needed)),
            self.spec,
            functional=functional,
            multisoma=multisoma,
            untyped=untyped,
            white_matter=white_matter,
        )
        if absent:
            logger.warning("%s is not there, the units are built without", ", ".join(absent))
            units = units.assign_attrs(absent_tables=absent)
        units = units.assign_attrs(self._timestamp())
        if angle_convention is not None and functional == "best_only":
            units = convert(units, angle_convention, "degree")
        if isinstance(rates, xr.Dataset) or rates:
            curves = rates
            if not isinstance(curves, xr.Dataset):
                curves = self._curves(curves, angle_convention)
            if angle_convention is not None:
                curves = convert(curves, angle_convention, "degree")
            units = add_rates(units, curves, collapse, by)
        return units

    def _curves(
        self, rates: bool | str | Path, angle_convention: AngleConvention | None
    ) -> xr.Dataset:
        if isinstance(rates, bool):
            return self.tuning_curves()
        stated = self._file_spec(rates).angle_convention is not None
        return self.tuning_curves(rates, angle_convention=None if stated else angle_convention)

    @sourced
    def layers(self, white_matter: bool = True) -> xr.Dataset:
        """Find the borders of the cortical layers.

        Parameters
        ----------
        white_matter : bool, optional
            See `microns_xr.segment_layers`.

        Returns
        -------
        xarray.Dataset
            Dim ``segment``; borders in µm.
        """
        return segment_layers(self.units(white_matter=white_matter), white_matter=white_matter)

    @sourced
    def functional(
        self,
        kind: FunctionalKind = "manual",
        min_score: float | None = None,
        max_residual: float | None = None,
        *,
        angle_units: Literal["degree", "radian"] | None = None,
        angle_convention: AngleConvention | None = None,
    ) -> xr.Dataset:
        """Rows of all scans: which recorded unit is which neuron, and what was measured of it.

        Parameters
        ----------
        kind : {"manual", "auto", "digital_twin", "functional_properties"}, optional
            Manual coregistration, automatic coregistration, or the release's table of functional
            properties; the last two are the same table.
        min_score, max_residual : float, optional
            Keep automatic matches with at least this score, at most this residual (µm).
        angle_units, angle_convention : str, optional
            What the angles of a table are in that is not in the registry.

        Returns
        -------
        xarray.Dataset
            Dim ``scan_unit``; see `microns_xr.tuning.collapse_scans` for one row a neuron.

        Raises
        ------
        SchemaError
            If the kind is unknown, or thresholds are given for a table without them.
        UnknownLabelError
            If the release has no table of the kind.
        """
        if kind not in KIND_ROLES:
            raise SchemaError(f"kind is {kind!r}, expected one of {list(KIND_ROLES)}")
        role = KIND_ROLES[kind]
        name = self.spec.name_of(role)
        return build_functional(
            self.table(name),
            self.spec.table_of(role),
            datastack=self.datastack,
            version=self.version,
            role=role,
            min_score=min_score,
            max_residual=max_residual,
            angle_units=angle_units,
            angle_convention=angle_convention,
        )

    @sourced
    def tuning_curves(
        self,
        path: str | Path | None = None,
        *,
        angle_convention: AngleConvention | None = None,
    ) -> xr.Dataset:
        """Mean responses by direction and orientation of every recorded unit.

        They are found in the table of the role ``tuning_curves``, else drawn from a table of fits,
        else computed from recordings; ``attrs["tuning_from"]`` and the log say which.

        Parameters
        ----------
        path : str or Path, optional
            A file of rates (session, scan_idx, unit_id, rate_dir, rate_ori), of fits, or of
            recordings, instead.
        angle_convention : str, optional
            What 0 degrees means in a file whose name is not in the registry.

        Returns
        -------
        xarray.Dataset
            Dim ``scan_unit`` with ``nucleus_id``, ``rate_ori``, ``rate_dir``.

        Raises
        ------
        SourceError
            If there is nothing of the kind.
        SchemaError
            If a file holds no tuning curves, or what its angles mean is not stated.
        """
        return tuning_curves_of(self, lambda: self.functional("manual"), path, angle_convention)

    @sourced
    def connectivity(
        self,
        request: str | SynapseSet | None = None,
        *,
        units: xr.Dataset | None = None,
    ) -> xr.Dataset:
        """Build the connectivity of the release's synapses.

        Parameters
        ----------
        request : str or SynapseSet, optional
            Which set of synapses, where the source holds several.
        units : xarray.Dataset, optional
            The neurons of both axes; all units of the release by default.

        Returns
        -------
        xarray.Dataset
            See `microns_xr.build_connectivity`. The axes of a download are the units among the
            neurons it asked for; ``attrs["asked_for_but_no_unit"]`` counts the others.

        Raises
        ------
        SourceError
            If there are no synapses, or several sets and none is named.
        ReleaseMismatchError
            If `units` or the synapses are of another release.
        """
        whole = self._whole_of(units)
        units = whole if units is None else units
        asked, no_unit = self._asked_for(request, units, whole)
        connectivity = build_connectivity(
            self._synapse_table(request),
            whole,
            pre=asked["pre"],
            post=asked["post"],
            scope=self.source.scope,
            shared_roots=self.shared_roots(),
        )
        if any(no_unit.values()):
            warnings.warn(
                f"{no_unit['pre']} pre and {no_unit['post']} post neurons were asked for that are "
                "no units, and are not on the axes: units(untyped='keep') has those without a type",
                DroppedRowsWarning,
                stacklevel=2,
            )
            connectivity = connectivity.assign_attrs(asked_for_but_no_unit=no_unit)
        return connectivity

    @sourced
    def synapses(
        self,
        request: str | SynapseSet | None = None,
        *,
        units: xr.Dataset | None = None,
    ) -> xr.Dataset:
        """Label the single synapses of the release, with positions in µm.

        Parameters
        ----------
        request : str or SynapseSet, optional
            Which set of synapses, where the source holds several.
        units : xarray.Dataset, optional
            The neurons of both axes; all units of the release by default.

        Returns
        -------
        xarray.Dataset
            Dim ``synapse``; see `microns_xr.build_synapses`. ``pre_index`` and ``post_index`` are
            positions on the axes of ``connectivity(request, units=units)``.

        Raises
        ------
        SchemaError
            If the synapses were downloaded without positions.
        SourceError
            If there are no synapses, or several sets and none is named.
        """
        resolution = self.spec.table_of("synapses").resolution_nm
        connectivity = self.connectivity(request, units=units)
        return build_synapses(self._synapse_table(request), connectivity, resolution)

    def _whole_of(self, units: xr.Dataset | None) -> xr.Dataset:
        """Return all units of the release, of which `units` may be a selection.

        Synapses of units that were not selected are not asked for; they are not unknown.
        """
        if units is None:
            return self.units()
        datastack, version = release_of(units, "units")
        if (datastack, version) != (self.datastack, self.version):
            raise ReleaseMismatchError(
                f"units is of {datastack} v{version}, but this release is {self.datastack} "
                f"v{self.version}: build them with this release's units()"
            )
        attrs = units.attrs
        if attrs.get("selection", {}).get("units") == units.sizes["nucleus_id"]:
            return units
        options = {k: attrs[k] for k in ("multisoma", "untyped") if k in attrs}
        return self.units(**options)

    def write(self, path: str | Path, *, request: str | None = None, **options: Any) -> None:
        """Write the whole release as one store.

        Parameters
        ----------
        path : str or Path
            Where; an existing store is replaced when the new one is complete.
        request : str, optional
            Which set of synapses, where the source holds several.
        **options
            Passed to `microns_xr.write_store`.

        Raises
        ------
        SourceError, SchemaError, StoreFormatError
            As the builders and the writer.
        """
        has = self.has_tables()
        units = self.units(
            functional="match" if has["coregistration"] else "none",
            rates=(has["coregistration"] and has["tuning_curves"]) or None,
        )
        connectivity = self.connectivity(request, units=units) if has["synapses"] else None
        write_store(
            path,
            units=units,
            layers=segment_layers(units),
            functional=self.functional() if has["coregistration"] else None,
            connectivity=connectivity,
            source_tables=self.source_tables(),
            **options,
        )
