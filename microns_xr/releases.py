"""The registry of releases: which table plays which role in which version, and papers to cite.

The facts are in ``releases.toml`` beside this file. Your own entry, a `ReleaseSpec`, is accepted
wherever a version is.
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

# What a unit table is made of; the others are fetched when they are asked for.
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
    """What the columns of one table mean.

    Parameters
    ----------
    name : str
        Name of the table.
    class_column : str, optional
        Column with the broad class.
    has_classes, has_types : bool, optional
        Whether the table classifies, and whether its ``cell_type`` is a type (not a class).
    class_words, type_words, strategy_words : mapping of str to str, optional
        Word of the table to the word of the data model, where they differ.
    layers : mapping of str to tuple of str, optional
        Cell types (words of the data model) that mark each layer; empty when not known.
    axon_column, dendrite_column : str, optional
        Columns of a proofreading table.
    angle_units : {"degree", "radian"}, optional
        Units of its angles; None when not known.
    angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
        Convention of its angles; None when not known.
    resolution_nm : tuple of float, optional
        Voxel size in which positions are given, in nm.
    archive_file : str, optional
        Stem of its file in the archive where that is not the table's own name.
    reference : str, optional
        Paper to cite.

    Examples
    --------
    >>> TableSpec("my_types", layers={"L2/3": ("pyr",)}).resolution_nm
    (4.0, 4.0, 40.0)
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
    resolution_nm: tuple[float, float, float] = (4.0, 4.0, 40.0)
    archive_file: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class ReleaseSpec:
    """One release: its tables by role, and what their columns mean.

    Parameters
    ----------
    version : int
        Materialization version.
    tables : mapping of str to str
        Role (one of ``microns_xr.releases.ROLES``) to table name.
    datastack : str, optional
        Name of the datastack.
    status : {"permanent", "served", "archived"}, optional
        Whether the service answers for it; an archived release is available as files only.
    table_specs : mapping of str to TableSpec, optional
        What the columns of its tables mean, by table name; for other tables the registry says it.

    Raises
    ------
    UnknownLabelError
        If a role does not exist.

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

    def __post_init__(self) -> None:
        for role in self.tables:
            if role not in ROLES:
                raise unknown_label("tables has the role", role, ROLES)

    def has(self, role: str) -> bool:
        """Whether this release has a table in a role.

        Parameters
        ----------
        role : str
            Such as ``"brain_area"``.

        Returns
        -------
        bool
            True if it has.
        """
        return role in self.tables

    def name_of(self, role: str) -> str:
        """Return the name of the table in a role.

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
                f'put one there with tables={{"{role}": "table_name"}}',
            )
        return self.tables[role]

    def table_of(self, role: str) -> TableSpec:
        """Return what the columns of the table in a role mean.

        Parameters
        ----------
        role : str
            Such as ``"brain_area"``.

        Returns
        -------
        TableSpec
            Of `table_specs`, else of the registry; defaults for a table that is in neither.

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
        voxel = tuple(float(nm) for nm in entry.get("resolution_nm", TableSpec.resolution_nm))
        specs[name] = TableSpec(name, **{**entry, "layers": layers, "resolution_nm": voxel})
    return MappingProxyType(specs)


def table_spec(name: str) -> TableSpec:
    """Return what the registry knows of a table; a plain spec for an unknown one."""
    return _table_specs().get(name) or TableSpec(name)


def table_of_file(file: str) -> str:
    """Return the table that a file holds, by its name."""
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
        A version of the registry, or your own entry.
    tables : mapping of str to str, optional
        Other tables for some roles; None removes a role. Fine types and corrections refine the
        classification that they were made for: another table in the role ``celltype`` removes
        them, unless they are named as well.

    Returns
    -------
    ReleaseSpec
        The entry, with those tables by role.

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
                "for another one pass your own mx.releases.ReleaseSpec as version",
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


# The paper of the whole data set, which the MICrONS consortium asks every user to cite.
_ALWAYS = "MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w"


def references(data: xr.Dataset | xr.DataArray | xr.DataTree) -> list[str]:
    """Return the papers of the tables that some data were made of.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataArray or xarray.DataTree
        Anything of a `microns_xr.Release` or of a store, and what was computed of it: the tables
        are in the attribute ``source_tables``.

    Returns
    -------
    list of str
        Authors, year and doi; the paper of the whole data first.

    Raises
    ------
    SchemaError
        If the data do not say which tables they are made of.

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
            "the data have no attribute 'source_tables', so their tables are not known: xarray "
            "drops attributes in arithmetic; cite what was computed from instead, or use "
            "xr.set_options(keep_attrs=True)"
        )
    papers = {table_spec(name).reference for name in names} - {None, _ALWAYS}
    return [_ALWAYS, *sorted(str(paper) for paper in papers)]


def cite(data: xr.Dataset | xr.DataArray | xr.DataTree) -> None:
    """Print the papers of the tables that some data were made of.

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
