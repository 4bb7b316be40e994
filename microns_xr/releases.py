"""The registry of releases: tables by role and version, and papers to cite.

The data are in ``releases.toml``. A custom `ReleaseSpec` is accepted wherever a version is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import xarray as xr

from microns_xr.errors import SchemaError, unknown_label
from microns_xr.frames import NO_FRAME, Resolution, Space, as_resolution, require_frame, space_in
from microns_xr.provenance import stamp_release

__all__ = ["ReleaseSpec", "TableSpec", "references", "release_spec", "stamp_release"]


def __dir__() -> list[str]:
    return __all__


ROLES: dict[str, str] = {
    "nucleus": "one row per nucleus: id, pt_root_id, pt_position",
    "celltype": "classification by target_id: classes, and types unless there is celltype_fine",
    "celltype_fine": "cell types by target_id",
    "celltype_corrections": "corrected classification_system and cell_type by target_id",
    "brain_area": "tag by target_id",
    "proofreading": "strategies or status of axon and dendrite by pt_root_id",
    "coregistration": "manual matches: target_id, session, scan_idx, unit_id",
    "coregistration_auto": "automatic matches, with residual and score",
    "functional_properties": "pref_ori, pref_dir, gOSI, gDSI, cc_abs by session, scan_idx, unit_id",
    "tuning_curves": "rate_dir and rate_ori by session, scan_idx, unit_id",
    "synapses": "one row per synapse: id, pre_pt_root_id, post_pt_root_id, size, ctr_pt_position",
}

# Tables needed for a unit table; the others are fetched on request.
MINIMUM_ROLES = (
    "nucleus",
    "celltype",
    "celltype_fine",
    "celltype_corrections",
    "brain_area",
    "proofreading",
    "coregistration",
    "functional_properties",
)


@dataclass(frozen=True)
class TableSpec:
    """Meaning of the columns of one table.

    Parameters
    ----------
    name : str
        Name of the table.
    class_column : str, optional
        Column with the broad class.
    has_classes, has_types : bool, optional
        Whether the table has classes, and whether its ``cell_type`` is a type (not a class).
    class_words, type_words, strategy_words : mapping of str to str, optional
        Words of the table to words of the data model, where they differ.
    layers : mapping of str to tuple of str, optional
        Cell types (words of the data model) that mark each layer; empty if not known.
    axon_column, dendrite_column : str, optional
        Columns of a proofreading table.
    angle_units : {"degree", "radian"}, optional
        Units of the angles; None if not known.
    angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
        Convention of the angles; None if not known.
    resolution_nm : tuple of float, optional
        Voxel size of positions, in nm, where it is not that of the datastack.
    archive_file : str, optional
        Stem of the file in the archive, if it differs from `name`.
    reference : str, optional
        Paper to cite.

    Examples
    --------
    >>> TableSpec("my_types", layers={"L2/3": ("pyr",)}).layers
    {'L2/3': ('pyr',)}
    """

    name: str
    class_column: str = "classification_system"
    has_classes: bool = True
    has_types: bool = True
    class_words: Mapping[str, str] = field(default_factory=dict)
    type_words: Mapping[str, str] = field(default_factory=dict)
    strategy_words: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    axon_column: str = "strategy_axon"
    dendrite_column: str = "strategy_dendrite"
    angle_units: str | None = None
    angle_convention: str | None = None
    resolution_nm: Resolution | None = None
    archive_file: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class ReleaseSpec:
    """One release: its tables by role, and the meaning of their columns.

    Parameters
    ----------
    version : int
        Materialization version.
    tables : mapping of str to str
        Role (one of ``microns_xr.releases.ROLES``) to table name.
    datastack : str, optional
        Name of the datastack.
    status : {"permanent", "served", "archived"}, optional
        Whether the service has the version; an archived release is available only as files.
    table_specs : mapping of str to TableSpec, optional
        Meaning of the columns, by table name; for other tables the registry is used.
    frame : str, optional
        Name and version of the frame in standard_transform, such as ``"minnie65 1.4"``, which
        converts positions to µm with y as depth from the pia; ``"none"`` leaves positions in the
        axes of their table, and there are no layers. By default that of the datastack.
    voxel_nm : tuple of float, optional
        Voxel size of positions and synapse sizes in nm, for tables that do not state another; by
        default that of the datastack.
    volume_nm : pair of tuples of float, optional
        Lowest and highest point of the volume in nm: positions outside of it are an error. By
        default that of the datastack.

    Raises
    ------
    UnknownLabelError
        If a role does not exist.
    SchemaError
        If `frame` is not a frame of standard_transform, or `voxel_nm` or `volume_nm` are not
        numbers of nm.

    Examples
    --------
    >>> types = TableSpec("my_types", layers={"L2/3": ("pyr",)})
    >>> spec = ReleaseSpec(version=9, tables={"nucleus": "my_nuclei", "celltype": "my_types"},
    ...     table_specs={"my_types": types})
    >>> spec.has("celltype"), spec.name_of("celltype"), spec.table_of("celltype").layers["L2/3"]
    (True, 'my_types', ('pyr',))
    """

    version: int
    tables: Mapping[str, str]
    datastack: str = "minnie65_public"
    status: Literal["permanent", "served", "archived"] = "served"
    table_specs: Mapping[str, TableSpec] = field(default_factory=dict)
    frame: str | None = None
    voxel_nm: Resolution | None = None
    volume_nm: tuple[Resolution, Resolution] | None = None

    def __post_init__(self) -> None:
        for role in self.tables:
            if role not in ROLES:
                raise unknown_label("tables has the role", role, ROLES)
        of_datastack = space_of(self.datastack)
        frame = self.frame or of_datastack.frame
        if frame != NO_FRAME:
            require_frame(frame)
        voxel_nm = as_resolution(self.voxel_nm, "voxel_nm") or of_datastack.voxel_nm
        volume_nm = _volume(self.volume_nm) or of_datastack.volume_nm
        for name, value in (("frame", frame), ("voxel_nm", voxel_nm), ("volume_nm", volume_nm)):
            object.__setattr__(self, name, value)

    @property
    def space(self) -> Space:
        """Where the positions of the release are."""
        return Space(self.frame or NO_FRAME, self.voxel_nm, self.volume_nm)

    def has(self, role: str) -> bool:
        """Whether this release has a table with a role.

        Parameters
        ----------
        role : str
            Such as ``"brain_area"``.

        Returns
        -------
        bool
            True if it has one.
        """
        return role in self.tables

    def name_of(self, role: str) -> str:
        """Return the name of the table with a role.

        Parameters
        ----------
        role : str
            Such as ``"brain_area"``.

        Returns
        -------
        str
            Name of the table.

        Raises
        ------
        UnknownLabelError
            If the release has none.
        """
        if role not in self.tables:
            raise unknown_label(
                f"release {self.version} has no table in the role",
                role,
                self.tables,
                f'pass one with tables={{"{role}": "table_name"}}',
            )
        return self.tables[role]

    def table_of(self, role: str) -> TableSpec:
        """Return the spec of the table with a role.

        Parameters
        ----------
        role : str
            Such as ``"brain_area"``.

        Returns
        -------
        TableSpec
            From `table_specs`, else from the registry, else with default values.

        Raises
        ------
        UnknownLabelError
            If the release has none.
        """
        name = self.name_of(role)
        return self.table_specs.get(name) or table_spec(name)


@lru_cache(maxsize=1)
def _registry() -> dict[str, Any]:
    path = resources.files("microns_xr").joinpath("releases.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _table_specs() -> Mapping[str, TableSpec]:
    specs = {}
    for name, entry in _registry()["tables"].items():
        layers = {layer: tuple(words) for layer, words in entry.get("layers", {}).items()}
        voxel = as_resolution(entry.get("resolution_nm"), name)
        specs[name] = TableSpec(name, **{**entry, "layers": layers, "resolution_nm": voxel})
    return MappingProxyType(specs)


def _volume(value: Any) -> tuple[Resolution, Resolution] | None:
    """Return two corners of three numbers."""
    if value is None:
        return None
    try:
        low, high = (tuple(float(nm) for nm in corner) for corner in value)
        if len(low) == len(high) == 3 and all(a < b for a, b in zip(low, high, strict=True)):
            return (low[0], low[1], low[2]), (high[0], high[1], high[2])
    except (TypeError, ValueError):
        pass
    raise SchemaError(
        f"volume_nm is {value!r}, expected its lowest and its highest point, each x, y and z in nm"
    )


def _datastack(name: str) -> Mapping[str, Any]:
    """Return the registry entry of a datastack; empty for one that is not in the registry."""
    entry: Mapping[str, Any] = _registry()["datastacks"].get(name, {})
    return {**_datastack(entry["like"]), **entry} if "like" in entry else entry


@lru_cache(maxsize=16)
def space_of(datastack: str) -> Space:
    """Return where the positions of a datastack are, as far as it is known."""
    entry = _datastack(datastack)
    voxel = as_resolution(entry.get("voxel_nm"), "voxel_nm")
    return Space(entry.get("frame", NO_FRAME), voxel, _volume(entry.get("volume_nm")))


def space_of_data(data: xr.Dataset, name: str = "position") -> Space:
    """Return where the positions of some data are: as they record it, else by their datastack."""
    of_data = space_of(str(data.coords["datastack"].item())) if "datastack" in data.coords else None
    for attrs in (data[name].attrs if name in data.variables else {}, data.attrs):
        if (recorded := space_in(attrs)) is not None:
            # The volume is not recorded.
            same = of_data is not None and of_data.frame == recorded.frame
            return replace(recorded, volume_nm=of_data.volume_nm) if of_data and same else recorded
    return of_data or Space()


def table_spec(name: str) -> TableSpec:
    """Return the registry entry of a table, or a default spec for an unknown table."""
    return _table_specs().get(name) or TableSpec(name)


def table_of_file(file: str) -> str:
    """Return the name of the table in a file, by the file name."""
    stem = re.split(r"[/\\]", file)[-1].split(".")[0]
    tables = {spec.archive_file: name for name, spec in _table_specs().items() if spec.archive_file}
    return tables.get(stem, stem.removesuffix("_merged"))


def supported_versions() -> list[int]:
    """Return the materialization versions in the registry, ascending.

    Returns
    -------
    list of int
        Versions of minnie65_public.

    Examples
    --------
    >>> supported_versions()
    [661, 943, 1078, 1181, 1300, 1412, 1507, 1621, 1718, 1822]
    """
    return sorted(int(version) for version in _registry()["releases"])


def release_spec(
    version: int | ReleaseSpec, tables: Mapping[str, str | None] | None = None
) -> ReleaseSpec:
    """Return the registry entry of a version.

    Parameters
    ----------
    version : int or ReleaseSpec
        A version in the registry, or a custom entry.
    tables : mapping of str to str, optional
        Replaces the tables of some roles; None removes a role. Fine types and corrections apply
        to one classification: another table for the role ``celltype`` removes them, unless they
        are passed, too.

    Returns
    -------
    ReleaseSpec
        The entry with these tables.

    Raises
    ------
    UnknownLabelError
        If the version is not in the registry, or a role does not exist.

    Examples
    --------
    >>> release_spec(1718).name_of("functional_properties")
    'digital_twin_properties_bcm_coreg_v4'
    >>> release_spec(1719)
    Traceback (most recent call last):
    microns_xr.errors.UnknownLabelError: there is no release 1719, expected one of 661, 943, ...
    """
    if isinstance(version, ReleaseSpec):
        spec = version
    else:
        entry = None
        if not isinstance(version, bool):
            entry = _registry()["releases"].get(str(version))
        if entry is None:
            raise unknown_label(
                "there is no release",
                version,
                supported_versions(),
                "for another version pass a custom mx.releases.ReleaseSpec",
            )
        roles = entry.get("tables") or _registry()["families"][entry["inherits"]]
        spec = ReleaseSpec(int(version), dict(roles), _registry()["datastack"], entry["status"])
    if not tables:
        return spec
    merged: dict[str, str | None] = {**spec.tables, **tables}
    if "celltype" in tables and tables["celltype"] != spec.tables.get("celltype"):
        for role in ("celltype_fine", "celltype_corrections"):
            merged[role] = tables.get(role)
    return replace(spec, tables={k: name for k, name in merged.items() if name is not None})


# The paper on the whole data set, which the MICrONS consortium asks every user to cite.
_ALWAYS = "MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w"


def references(data: xr.Dataset | xr.DataArray | xr.DataTree) -> list[str]:
    """Return the papers to cite for the source tables of some data.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataArray or xarray.DataTree
        Data from a `microns_xr.Release` or from a store, or results computed from them; the tables
        are in the attribute ``source_tables``.

    Returns
    -------
    list of str
        Authors, year and doi; the paper on the whole data set comes first.

    Raises
    ------
    SchemaError
        If the data have no ``source_tables``.

    Examples
    --------
    >>> import microns_xr as mx
    >>> units = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500)).units()
    >>> references(units)[1]
    'Elabbady et al. 2025, doi:10.1038/s41586-024-07765-7'
    """
    if isinstance(data, xr.DataTree):
        nodes: list[Any] = list(data.subtree)
    elif isinstance(data, xr.Dataset | xr.DataArray):
        nodes = [data]
    else:
        raise SchemaError(
            f"expected a Dataset, DataArray or tree, found {type(data).__name__}: open a store "
            "with mx.open_store"
        )
    names = {
        str(table["name"]) if isinstance(table, Mapping) else str(table)
        for node in nodes
        for table in node.attrs.get("source_tables", ())
    }
    if not names:
        raise SchemaError(
            "the data have no attribute 'source_tables': xarray drops attributes in arithmetic; "
            "cite the original data instead, or use xr.set_options(keep_attrs=True)"
        )
    papers = {table_spec(name).reference for name in names} - {None, _ALWAYS}
    return [_ALWAYS, *sorted(str(paper) for paper in papers)]


def cite(data: xr.Dataset | xr.DataArray | xr.DataTree) -> None:
    """Print the papers to cite for the source tables of some data.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataArray or xarray.DataTree
        See `references`, which returns them.

    Raises
    ------
    SchemaError
        See `references`.

    Examples
    --------
    >>> import microns_xr as mx
    >>> cite(mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500)).units())
    MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w
    Elabbady et al. 2025, doi:10.1038/s41586-024-07765-7
    """
    print("\n".join(references(data)))
