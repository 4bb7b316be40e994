"""Build the Datasets of a release from its raw tables."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from isal.isal_zlib import crc32

from microns_xr.angles import AngleConvention, AngleUnits, convert
from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.blocks import take_positions
from microns_xr.connectivity.build import build_connectivity, build_synapses
from microns_xr.connectivity.labels import Lookup, require_known
from microns_xr.errors import (
    ReleaseMismatchError,
    SchemaError,
    SourceError,
    answer_old_keywords,
    require_instance,
    require_one_of,
)
from microns_xr.files import file_sha256
from microns_xr.frames import RESOLUTION
from microns_xr.layers import segment_layers
from microns_xr.provenance import (
    add_history,
    read_counts,
    release_of,
    require_same_release,
    text_lines,
)
from microns_xr.recordings.files import open, recording_files
from microns_xr.recordings.trials import tuning
from microns_xr.release_tables import ReleaseTables, folder_of
from microns_xr.releases import MINIMUM_ROLES
from microns_xr.sources.cache import CachedSource
from microns_xr.sources.directory import DirectorySource
from microns_xr.sources.fetch import RECORDING_SUFFIXES
from microns_xr.sources.synapses import SynapseSet
from microns_xr.sources.tables import read_table_file
from microns_xr.store.swap import address_of, require_replaceable
from microns_xr.store.write import write_store
from microns_xr.tables import valid_rows
from microns_xr.tuning.fits import rates_of_fits
from microns_xr.tuning.functional import (
    KIND_ROLES,
    FunctionalKind,
    build_functional,
    build_tuning_curves,
    complete_spec,
    label_rows,
)
from microns_xr.units import FUNCTIONAL_ROLES, REQUIRED, FunctionalMode, add_rates, build_units

logger = logging.getLogger(__name__)


class Release(ReleaseTables):
    """One materialization version, which builds labelled Datasets from raw tables.

    Parameters
    ----------
    version : int or ReleaseSpec
        A version of `microns_xr.releases.supported_versions`, or a custom registry entry.
    datadir : str or Path, optional
        Folder of all downloads, with one folder per release.
    datastack : str, optional
        Name of the datastack, such as ``"v1dd_public"``; by default that of a custom registry
        entry, else ``"minnie65_public"``.
    source : str, Path or TableSource, optional
        ``"auto"`` (the CAVE service if it serves the version, which it is asked when tables have to
        be fetched, else the archive),
        ``"cave"``, ``"archive"``, ``"demo"``, a folder with the raw tables of the release, or any
        object that implements `microns_xr.sources.TableSource`.
    tables : mapping of str to str, optional
        Replaces the tables of some roles, such as
        ``{"celltype": "cell_type_multifeature_combo"}``; None removes a role.

    Raises
    ------
    UnknownLabelError
        If the version of the datastack or a role in `tables` is not known.
    SourceError
        If the source is a folder that does not exist.
    ReleaseMismatchError
        If the source has another version or datastack.
    SchemaError
        If `source` is none of the above.

    Examples
    --------
    >>> import microns_xr as mx
    >>> demo = mx.sources.DemoSource(1718, n_nuclei=500)
    >>> release = mx.Release(1718, source=demo)
    >>> release.available_tables()[:2]
    ['aibs_metamodel_celltypes_v661', 'aibs_metamodel_celltypes_v661_corrections']
    >>> release.has_tables()["tuning_curves"], len(release.table("nucleus"))
    (True, 500)
    >>> units = release.units(functional="match", rates=True)
    >>> units.rate_ori.dims
    ('nucleus_id', 'orientation')
    >>> release.layers().layer_name.values
    array(['L1', 'L2/3', 'L4', 'L5', 'L6', 'WM'], dtype=object)
    >>> release.functional("manual").scan_unit.dims, release.tuning_curves().rate_dir.dims
    (('scan_unit',), ('scan_unit', 'direction'))
    >>> release.connectivity(units=units).synapse_size.dims
    ('pre_nucleus_id', 'post_nucleus_id')
    >>> release.synapses(units=units).position.dims
    ('synapse', 'axis')
    >>> release.shared_roots().dtype, [table["name"] for table in release.source_tables()][-1]
    (dtype('int64'), 'tuning_curves_fitted_v1')
    """

    @answer_old_keywords
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
            Which functional tables to join; the result has one row per neuron in any case.
        multisoma : {"any", "typed"}, optional
            ``any`` drops every root with more than one nucleus; ``typed`` counts only typed nuclei.
        untyped : {"drop", "keep"}, optional
            Whether to drop nuclei without an entry in the classification table.
        rates : bool, path or Dataset, optional
            True adds ``rate_ori`` and ``rate_dir`` of `tuning_curves`; a path reads them from that
            file; a Dataset must come from `tuning_curves`.
        collapse, by : str, optional
            How to combine several recorded units of a neuron; see
            `microns_xr.tuning.collapse_scans`.
        white_matter : bool, optional
            See `microns_xr.segment_layers`.
        angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
            Convert all angles to this convention, in degrees; required if the functional properties
            and the rates of a release have different conventions.

        Returns
        -------
        xarray.Dataset
            Dim ``nucleus_id``; see `microns_xr.build_units`. With rates also the dims
            ``orientation`` and ``direction``.

        Raises
        ------
        SchemaError
            See `microns_xr.build_units`; also if angles have different conventions.
        SourceError
            If a table in `tables` does not exist, or there are no tuning curves.
        UnknownLabelError
            If the tuning curves have no variable `by`.
        """
        units = _independent(self._unit_table(functional, multisoma, untyped, white_matter))
        # Other modes do not add angles to the units.
        if angle_convention is not None and functional == "best_only":
            units = convert(units, angle_convention, "degree")
        if rates is True or isinstance(rates, str | Path):
            path = None if rates is True else rates
            rates = self._tuning_curves(path, angle_convention, only_unstated=True)
        if isinstance(rates, xr.Dataset):
            if angle_convention is not None:
                rates = convert(rates, angle_convention, "degree")
            units = add_rates(units, rates, collapse, by)
        return self._with_sources(units, [])

    def _unit_table(
        self,
        functional: FunctionalMode = "none",
        multisoma: Literal["any", "typed"] = "any",
        untyped: Literal["drop", "keep"] = "drop",
        white_matter: bool = True,
    ) -> xr.Dataset:
        """Return the units without rates, built once for the tables that there are."""
        options: Any = {
            "functional": functional,
            "multisoma": multisoma,
            "untyped": untyped,
            "white_matter": white_matter,
        }
        key = repr((options, self.available_tables()))
        if key in self._built:
            return self._built[key]
        # Read only the required functional table, since a release may lack the others.
        roles = [role for role in MINIMUM_ROLES if role not in FUNCTIONAL_ROLES.values()]
        require_instance("functional", functional, str, "'none', 'match' or 'best_only'")
        if functional in FUNCTIONAL_ROLES:
            roles.append(FUNCTIONAL_ROLES[functional])
        tables, absent = self._read_roles(roles)
        units = build_units(tables, self.spec, **options)
        if absent:
            logger.warning("table %s is missing, units are built without it", ", ".join(absent))
            units.attrs["absent_tables"] = absent
        if isinstance(self.source, CachedSource):
            # Time of the materialization, which only downloads from the service have.
            (nuclei,) = self._provenance_of([self.spec.name_of("nucleus")])
            if nuclei.get("timestamp") is not None:
                units.attrs["timestamp"] = str(nuclei["timestamp"])
        used = [self.spec.tables[role] for role in tables]
        units = self._built[key] = self._with_sources(units, used)
        return units

    def layers(self, white_matter: bool = True) -> xr.Dataset:
        """Find the borders of the cortical layers.

        Parameters
        ----------
        white_matter : bool, optional
            See `microns_xr.segment_layers`.

        Returns
        -------
        xarray.Dataset
            Dim ``segment``; borders in µm from the pia.

        Raises
        ------
        SchemaError
            See `microns_xr.build_units` and `microns_xr.segment_layers`.
        """
        return segment_layers(self.units(white_matter=white_matter), white_matter=white_matter)

    def functional(
        self,
        kind: FunctionalKind = "manual",
        min_score: float | None = None,
        max_residual: float | None = None,
        *,
        angle_units: AngleUnits | None = None,
        angle_convention: AngleConvention | None = None,
    ) -> xr.Dataset:
        """Return the recorded units of all scans, with their neurons and measurements.

        Parameters
        ----------
        kind : {"manual", "auto", "digital_twin", "functional_properties"}, optional
            Manual coregistration, automatic coregistration, or the table of functional properties;
            the last two names mean the same table.
        min_score, max_residual : float, optional
            Select automatic matches with at least this score, at most this residual (µm).
        angle_units : {"degree", "radian"}, optional
            Units of the angles of a table that is not in the registry.
        angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
            Convention of the angles of a table that is not in the registry.

        Returns
        -------
        xarray.Dataset
            Dim ``scan_unit``; see `microns_xr.tuning.collapse_scans` for one row per neuron. If
            the source has the tables of the units, their labels (``cell_type``, ``layer`` ...) are
            coordinates, "unknown" for rows whose nucleus is not a unit.

        Raises
        ------
        SchemaError
            If the kind is unknown, or a threshold is passed for a table without that column.
        UnknownLabelError
            If the release has no table for the kind.
        SourceError
            If the source does not have the table.
        """
        rows = self._functional(
            kind,
            min_score=min_score,
            max_residual=max_residual,
            angle_units=angle_units,
            angle_convention=angle_convention,
        )
        return self._labelled(rows)

    def _labelled(self, rows: xr.Dataset) -> xr.Dataset:
        """Return rows with the labels of their neurons, if the release has the tables."""
        has = self.has_tables()
        if lacking := [role for role in REQUIRED if not has[role]]:
            logger.info("rows have no labels of neurons, which need the tables %s", lacking)
            return rows
        try:
            units = self.units()
        except (SchemaError, SourceError) as error:
            # The rows themselves do not need the tables of units.
            logger.warning("rows have no labels of neurons, since there are no units: %s", error)
            return rows
        rows = label_rows(rows, units, "scan_unit")
        return self._with_sources(rows, [], [rows, units])

    def _functional(self, kind: FunctionalKind = "manual", **options: Any) -> xr.Dataset:
        require_one_of("kind", kind, KIND_ROLES)
        role = KIND_ROLES[kind]
        name = self.spec.name_of(role)
        table = self.table(name)
        by_root = "target_id" not in table.columns
        known = by_root or self.spec.name_of("nucleus") in self.source.available_tables()
        rows = build_functional(
            table,
            self.spec.table_of(role),
            datastack=self.datastack,
            version=self.version,
            nuclei=self.table("nucleus") if known else None,
            **options,
        )
        return self._with_sources(rows, [name, self.spec.name_of("nucleus")][: 1 + by_root])

    def tuning_curves(
        self,
        path: str | Path | None = None,
        *,
        angle_convention: AngleConvention | None = None,
    ) -> xr.Dataset:
        """Return mean responses by direction and orientation of every recorded unit.

        They are read from the table with the role ``tuning_curves``, else evaluated from a table of
        fits, else computed from recordings, as ``attrs["tuning_from"]`` records.

        Parameters
        ----------
        path : str or Path, optional
            A file of rates (session, scan_idx, unit_id, rate_dir, rate_ori), of fits, or of
            recordings to use instead.
        angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
            Convention of the angles of a file that is not in the registry.

        Returns
        -------
        xarray.Dataset
            Dim ``scan_unit`` with the coordinate ``nucleus_id``; ``rate_dir`` over ``direction``
            and ``rate_ori`` over ``orientation``, in degrees; labels of the neurons as in
            `functional`.

        Raises
        ------
        SourceError
            If there are no tuning curves, or several files but no `path`.
        SchemaError
            If a file has no tuning curves, or the convention of its angles is not known.
        """
        return self._labelled(self._tuning_curves(path, angle_convention))

    def _tuning_curves(
        self,
        path: str | Path | None = None,
        angle_convention: AngleConvention | None = None,
        *,
        only_unstated: bool = False,
    ) -> xr.Dataset:
        """See `tuning_curves`; the convention may be for tables only that do not state theirs."""
        require_instance("path", path, (str, os.PathLike, type(None)), "a path")
        found = self._find_curves() if path is None else Path(path)
        if isinstance(found, Path) and (found.suffix in RECORDING_SUFFIXES or found.is_dir()):
            # Their stimuli state the convention.
            known, coregistration = only_unstated, self._functional()
            convention = None if known else angle_convention
            curves = tuning(open(found), coregistration=coregistration, angle_convention=convention)
            return _with_origin(curves, "trials", f"computed from the trials of {found.name}")
        spec = self._file_spec(found)
        name = spec.name
        if isinstance(found, Path):
            table = valid_rows(read_table_file(found), name)
            sha256 = file_sha256(found)
            self._provenance[name] = {"name": name, "rows": len(table), "sha256": sha256}
        else:
            table = self.table(found)
        # Of a table in the registry it is fixed, and passing one is an error.
        known = only_unstated and spec.angle_convention is not None
        origin, words = "table", "found in the table"
        if not {"rate_dir", "rate_ori"} & set(table.columns) and {"k", "kappa"} & set(
            table.columns
        ):
            about = table.attrs
            table, origin, words = rates_of_fits(table, name), "fits", "drawn from the fits"
            table.attrs.update(about)
            spec = replace(spec, angle_units="degree")
        spec = complete_spec(spec, angle_convention=None if known else angle_convention)
        curves = build_tuning_curves(table, spec, self._functional())
        return self._with_sources(_with_origin(curves, origin, f"{words} {name}"), [name])

    def _find_curves(self) -> str | Path:
        """Return the name of the table of rates or fits, or else the file of recordings."""
        available = self.source.available_tables()
        fits = _tables_of_fits(available)
        files = recording_files(self.datadir, self.datastack, folder_of(self.source))
        name = self.spec.tables.get("tuning_curves")
        if name in available:
            try:
                self.table(name)
                return name
            except SourceError as error:
                # An archive that cannot be listed may report tables that it does not have.
                if not fits and not files:
                    raise
                logger.warning("%s cannot be read: %s", name, error)
        several = fits or files
        if len(several) > 1:
            raise SourceError(
                f"there are several {'tables of fits' if fits else 'files of recordings'} "
                f"({', '.join(map(str, several))}), expected one: select it with path="
            )
        if several:
            return several[0]
        raise SourceError(
            f"{self!r} has no tuning curves, expected a table "
            f"{name or 'with the role tuning_curves'}, a table of fits, or recordings: put a table "
            "into its folder functional, pass path=, or call download_recordings()"
        )

    @answer_old_keywords
    def connectivity(
        self,
        request: str | SynapseSet | None = None,
        *,
        units: xr.Dataset | None = None,
        pre: Any = None,
        post: Any = None,
        scope: str | None = None,
    ) -> xr.Dataset:
        """Build connectivity from the synapses of the release.

        Without `units`, `pre` and `post` it is kept, and the same call returns it again unless a
        file of synapses has changed.

        Parameters
        ----------
        request : str or SynapseSet, optional
            Which set of synapses to use, if the source has several.
        units : xarray.Dataset, optional
            Use only synapses between these neurons; by default between all units of the release.
        pre, post : collection of int, or units Dataset, optional
            Nucleus ids of the axes, among `units`, as in `microns_xr.build_connectivity`.
        scope : {"complete", "requested", "unknown"}, optional
            What a pair without a synapse means, see `microns_xr.build_connectivity`. By default
            what the source states: "requested" for a download; "unknown" for a folder of tables,
            unless `pre` and `post` say which neurons were asked for.

        Returns
        -------
        xarray.Dataset
            Dims ``pre_nucleus_id`` and ``post_nucleus_id``; see `microns_xr.build_connectivity`.
            For a download, the axes are the units among the requested neurons;
            ``attrs["asked_for_but_no_unit"]`` counts the other requested neurons. If the scope is
            "unknown", an axis that was not passed has the neurons with a connection in the table.

        Raises
        ------
        SourceError
            If there are no synapses, or several sets but no `request`.
        ReleaseMismatchError
            If `units`, `pre`, `post` or the synapses come from another release.
        UnknownLabelError
            If ids of `pre` or `post` are not among the units, or were not part of the download.
        SchemaError
            If the table of synapses lacks columns, or its ids are floats.
        """
        chosen = {"pre": pre, "post": post}
        if any(choice is not None for choice in (units, pre, post)):
            return self._connect(request, units, chosen, scope)[0]
        # The same again is not built again, unless a file or the values in memory have changed.
        stats = [path.stat() for path in self._synapse_files().values()]
        files = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
        key = repr((request, scope, self.available_tables(), files))
        if "connectivity" in self._built:
            of, connectivity, checksum = self._built["connectivity"]
            if of == key and _checksum(connectivity) == checksum:
                return _independent(connectivity)
        connectivity = self._connect(request, units, chosen, scope)[0]
        self._built["connectivity"] = key, connectivity, _checksum(connectivity)
        return _independent(connectivity)

    @answer_old_keywords
    def synapses(
        self,
        request: str | SynapseSet | None = None,
        *,
        units: xr.Dataset | None = None,
        pre: Any = None,
        post: Any = None,
        scope: str | None = None,
    ) -> xr.Dataset:
        """Label the single synapses of the release, with positions in µm.

        Parameters
        ----------
        request, units, pre, post, scope : optional
            As in `connectivity`.

        Returns
        -------
        xarray.Dataset
            Dim ``synapse``; see `microns_xr.build_synapses`.

        Raises
        ------
        SchemaError
            If the synapses were downloaded without positions, or as in `connectivity`.
        SourceError, ReleaseMismatchError
            As in `connectivity`.
        """
        chosen = {"pre": pre, "post": post}
        connectivity, table, name = self._connect(request, units, chosen, scope)
        registered = None
        if self.spec.has("synapses") and table.attrs.get(RESOLUTION) is None:
            registered = self.spec.table_of("synapses").resolution_nm
        single = build_synapses(table, connectivity, registered)
        return self._with_sources(single, [name], [connectivity])

    def _synapse_table(
        self, request: str | SynapseSet | None
    ) -> tuple[pd.DataFrame, str, Mapping[str, Any]]:
        """Read a set of synapses; return also its name and the requested root ids."""
        key = request.key if isinstance(request, SynapseSet) else request
        if not isinstance(key, str | None):
            raise SchemaError(
                f"request is a {type(key).__name__}, expected the name of a set of synapses: pass "
                "units as units=, and neurons as pre= and post="
            )
        source = self.source
        self._built.pop("connectivity", None)  # may be of another set
        # Only downloads record the requested neurons.
        if isinstance(source, CachedSource):
            chosen = source.synapse_set(key)
            self._provenance["synapses"] = chosen.provenance()
            return chosen.read(), "synapses", chosen.request
        if isinstance(source, DirectorySource) and (source.synapse_files() or key):
            name = source.choose_synapses(key)
            table = source.read_synapses(name)
            table.attrs["table"] = name
            self._provenance["synapses"] = source.provenance(name)
            return table, "synapses", {}
        if key is not None:
            raise SourceError(
                f"{type(source).__name__} has a single set of synapses, found request={key!r}: "
                "omit it"
            )
        name = self.spec.name_of("synapses")
        return self.table(name), name, {}

    def _connect(
        self,
        request: str | SynapseSet | None,
        units: xr.Dataset | None,
        chosen: Mapping[str, Any],
        scope: str | None,
    ) -> tuple[xr.Dataset, pd.DataFrame, str]:
        """Build connectivity; return also the table of its synapses, and its name."""
        # Build with all units, so that synapses of units outside the selection are not "unknown".
        whole = self._unit_table() if units is None else self._all_units(units)
        units = whole if units is None else units
        table, name, requested = self._synapse_table(request)
        ids, roots = units["nucleus_id"].values, units["pt_root_id"].values
        axes, no_unit = {"pre": ids, "post": ids}, {"pre": 0, "post": 0}
        for side, choice in chosen.items():
            if requested.get(side) is not None:
                axes[side] = ids[np.isin(roots, requested[side])]
                no_unit[side] = int((~np.isin(requested[side], whole["pt_root_id"].values)).sum())
            if choice is not None:
                axes[side] = _among(axes[side], choice, units, side)
        if scope is None:
            both = all(choice is not None for choice in chosen.values())
            scope = "requested" if both and self.source.scope == "unknown" else self.source.scope
        # A selection of units is no request: of an unknown scope the axes have what is named.
        named = [side for side in axes if scope == "unknown" and chosen[side] is None]
        connectivity = build_connectivity(
            table,
            whole,
            pre=None if "pre" in named else axes["pre"],
            post=None if "post" in named else axes["post"],
            scope=scope,
            shared_roots=self.shared_roots(),
        )
        for side in named:
            on_axis = np.isin(connectivity[f"{side}_nucleus_id"].values, axes[side])
            if not on_axis.all():
                connectivity = take_positions(connectivity, **{side: np.flatnonzero(on_axis)})
        if any(no_unit.values()):
            logger.info(
                "%d pre and %d post neurons of the request are not units, and are not on the axes: "
                "units(untyped='keep') has those without a type",
                no_unit["pre"], no_unit["post"],
            )  # fmt: skip
            connectivity.attrs["asked_for_but_no_unit"] = text_lines(no_unit)
        tables = [name, self.spec.name_of("nucleus")]
        return self._with_sources(connectivity, tables, [whole]), table, name

    def _all_units(self, units: xr.Dataset) -> xr.Dataset:
        """Return all units of the release, built with the options of `units`."""
        datastack, version = release_of(units, "units")
        if (datastack, version) != (self.datastack, self.version):
            raise ReleaseMismatchError(
                f"units is from {datastack} v{version}, expected {self.datastack} v{self.version}: "
                "build them with units() of this release"
            )
        if "nucleus_id" not in units.dims:
            raise SchemaError(f"units has the dims {tuple(units.dims)}, expected nucleus_id")
        # A selection keeps the attributes of all units, including their number.
        attrs = units.attrs
        n_all = read_counts(units, "selection").get("units") if "selection" in attrs else None
        if n_all == units.sizes["nucleus_id"]:
            return units
        return self._unit_table(**{k: attrs[k] for k in ("multisoma", "untyped") if k in attrs})

    def write(self, path: str | Path, *, request: str | None = None, **options: Any) -> None:
        """Write the whole release to one store.

        Parameters
        ----------
        path : str or Path
            Path or URL of the store.
        request : str, optional
            Which set of synapses to use, if the source has several.
        **options
            Passed to `microns_xr.write_store`, such as ``overwrite=True``.

        Raises
        ------
        SourceError
            If there are several sets of synapses but no `request`.
        SchemaError
            See `microns_xr.build_units` and `microns_xr.build_connectivity`.
        StoreFormatError
            See `microns_xr.write_store`.

        Examples
        --------
        >>> import tempfile
        >>> import microns_xr as mx
        >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
        >>> folder = Path(tempfile.mkdtemp())
        >>> release.write(folder / "release.zarr")
        >>> sorted(mx.open_store(folder / "release.zarr").children)
        ['connectivity', 'functional', 'layers', 'units']
        """
        if isinstance(path, str | Path) and "://" not in (address := address_of(path)):
            require_replaceable(address, options.get("overwrite", False))  # before the work begins
        parts: dict[str, Any] = dict(parts_of(self, request))
        write_store(path, **parts, **options)
        if unused := unused_functional_tables(self):
            logger.info("tables that are not in the store: %s", ", ".join(unused))


def parts_of(
    release: Release,
    request: str | None = None,
    *,
    multisoma: Literal["any", "typed"] = "any",
    scope: str | None = None,
    angle_convention: AngleConvention | None = None,
) -> Iterator[tuple[str, xr.Dataset | None]]:
    """Build the groups of a store one by one, as far as the release has their tables."""
    has = release.has_tables()
    mode: FunctionalMode = "none"
    kind: FunctionalKind | None = None
    rates = False
    if has["coregistration"]:  # which assigns rates to neurons
        mode, kind = "match", "manual"
        fits = _tables_of_fits(release.available_tables())
        stated = fits and (angle_convention or release._file_spec(fits[0]).angle_convention)
        rates = has["tuning_curves"] or (len(fits) == 1 and bool(stated))
    elif has["functional_properties"]:
        mode, kind = "best_only", "digital_twin"
    convention = angle_convention if rates else None
    units = release.units(mode, multisoma, rates=rates, angle_convention=convention)
    yield "units", units
    yield "layers", segment_layers(units) if release.spec.space.has_depth else None
    yield "functional", None if kind is None else release.functional(kind)
    if has["synapses"]:
        yield "connectivity", release.connectivity(request, units=units, scope=scope)


def unused_functional_tables(release: Release) -> list[str]:
    """Return the tables of rates, fits and functional properties that have not been read."""
    available = release.available_tables()
    roles = ("tuning_curves", "functional_properties")
    names = {release.spec.tables.get(role) for role in roles} | {*_tables_of_fits(available)}
    names -= {table["name"] for table in release.source_tables()}
    return [name for name in available if name in names]


def _tables_of_fits(names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(r"(^|_)fits(_|$)", name)]


def _among(axis: np.ndarray, chosen: Any, units: xr.Dataset, side: str) -> np.ndarray:
    """Return chosen ids, after checking that all of them are on the axis."""
    if isinstance(chosen, xr.Dataset | xr.DataArray):
        require_same_release(("units", units), (side, chosen))
    ids = as_ids(chosen, side)
    hint = (
        "take nucleus ids, not root ids, of the units that you pass and, for a download, of "
        "neurons that were part of the request"
    )
    require_known(ids, Lookup(axis, side).find(ids), side, "the units with known synapses", hint)
    return ids


def _independent(dataset: xr.Dataset) -> xr.Dataset:
    """Return a copy whose attributes and dense values may change; words are not copied."""
    values = {
        name: variable.copy(data=variable.values.copy())
        for name, variable in dataset.variables.items()
        if name not in dataset.dims and isinstance(variable.data, np.ndarray)
    }
    coords = {name: values.pop(name) for name in dataset.coords if name in values}
    copied = dataset.assign(values).assign_coords(coords)
    return copied.assign_attrs(copy.deepcopy(dataset.attrs))


def _checksum(connectivity: xr.Dataset) -> int:
    pattern, values = pair_buffers(connectivity)
    checksum = 0
    for array in (pattern.indices, pattern.indptr, *values.values()):
        checksum = crc32(array, checksum)
    return checksum


def _with_origin(curves: xr.Dataset, origin: str, words: str) -> xr.Dataset:
    logger.info("tuning curves were %s", words)
    return add_history(curves.assign_attrs(tuning_from=origin), f"tuning curves {words}")
