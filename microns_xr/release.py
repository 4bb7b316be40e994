"""One release: what is built from its raw tables."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from microns_xr.angles import AngleConvention, convert_angles
from microns_xr.connectivity.build import build_connectivity
from microns_xr.connectivity.synapses import build_synapses
from microns_xr.errors import DroppedRowsWarning, ReleaseMismatchError, SchemaError
from microns_xr.functional.coregistration import (
    KIND_ROLES,
    FunctionalKind,
    build_functional,
)
from microns_xr.layers import segment_layers
from microns_xr.provenance import release_of
from microns_xr.release_function import tuning_curves_of
from microns_xr.release_tables import ReleaseTables
from microns_xr.releases import MINIMUM_ROLES
from microns_xr.source.synapse_set import SynapseSet
from microns_xr.sourced import sourced
from microns_xr.store.write import write_store
from microns_xr.unit_function import FunctionalMode, add_rates
from microns_xr.units import build_units

__all__ = ["Release"]

logger = logging.getLogger(__name__)


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
            How several recorded units of a neuron become one row; see `microns_xr.collapse_scans`.
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
            units = convert_angles(units, angle_convention, "degree")
        if isinstance(rates, xr.Dataset) or rates:
            curves = rates
            if not isinstance(curves, xr.Dataset):
                curves = self._curves(curves, angle_convention)
            if angle_convention is not None:
                curves = convert_angles(curves, angle_convention, "degree")
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
            Dim ``scan_unit``; see `microns_xr.collapse_scans` for one row a neuron.

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
        check_release: bool = True,
    ) -> xr.Dataset:
        """Build the connectivity of the release's synapses.

        Parameters
        ----------
        request : str or SynapseSet, optional
            Which set of synapses, where the source holds several.
        units : xarray.Dataset, optional
            The neurons of both axes; all units of the release by default.
        check_release : bool, optional
            False takes units of another release.

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
        whole = self._whole_of(units, check_release)
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
        check_release: bool = True,
    ) -> xr.Dataset:
        """Label the single synapses of the release, with positions in µm.

        Parameters
        ----------
        request : str or SynapseSet, optional
            Which set of synapses, where the source holds several.
        units : xarray.Dataset, optional
            The neurons of both axes; all units of the release by default.
        check_release : bool, optional
            False takes units of another release.

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
        connectivity = self.connectivity(request, units=units, check_release=check_release)
        return build_synapses(self._synapse_table(request), connectivity, resolution)

    def _whole_of(self, units: xr.Dataset | None, check_release: bool) -> xr.Dataset:
        """Return all units of the release, of which `units` may be a selection.

        Synapses of units that were not selected are not asked for; they are not unknown.
        """
        if units is None:
            return self.units()
        if check_release:
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
