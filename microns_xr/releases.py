"""The registry of releases: tables by role and version, and papers to cite.

The data are in ``releases.toml``. A custom `ReleaseSpec` is accepted wherever a version is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import xarray as xr

from microns_xr.errors import (
    ReleaseMismatchError,
    SchemaError,
    part_of,
    require_instance,
    unknown_label,
)
from microns_xr.frames import NO_FRAME, Resolution, Space, as_resolution, require_frame, space_in
from microns_xr.provenance import read_counts, source_names, stamp_release, text_lines

__all__ = [
    "ReleaseSpec",
    "TableSpec",
    "cite",
    "read_counts",
    "references",
    "release_spec",
    "stamp_release",
    "supported_versions",
]


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
    key_column : str, optional
        Column with the nucleus ids, where it is not ``target_id``.
    area_column : str, optional
        Column of a table of brain areas.
    axon_column, dendrite_column : str, optional
        Columns of a proofreading table.
    scan_columns : mapping of str to tuple of str, optional
        Columns that are the keys ``session``, ``scan_idx`` and ``unit_id`` of recorded units, where
        their names differ; the digits of several columns are joined, as in
        ``{"session": ("column", "volume")}``: volume 3 of column 1 is session 13.
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
    key_column: str = "target_id"
    area_column: str = "tag"
    axon_column: str = "strategy_axon"
    dendrite_column: str = "strategy_dendrite"
    scan_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
    datastack : str
        Name of the datastack. For one that is in the registry, the registry has the defaults of
        what follows; for another, nothing is assumed.
    table_specs : mapping of str to TableSpec, optional
        Meaning of the columns, by table name; by default that of the registry.
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
    papers : tuple of str, optional
        Papers on the data set, which `references` returns first; by default those of the datastack.

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
    ...     datastack="my_volume", table_specs={"my_types": types}, voxel_nm=(8, 8, 30))
    >>> spec.has("celltype"), spec.name_of("celltype"), spec.table_of("celltype").layers["L2/3"]
    (True, 'my_types', ('pyr',))
    """

    version: int
    tables: Mapping[str, str]
    datastack: str
    table_specs: Mapping[str, TableSpec] = field(default_factory=dict)
    frame: str | None = None
    voxel_nm: Resolution | None = None
    volume_nm: tuple[Resolution, Resolution] | None = None
    papers: tuple[str, ...] | None = None

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
        papers = self.papers
        if papers is None:
            papers = _datastack(self.datastack).get("papers", ())
        for name, value in (
            ("frame", frame), ("voxel_nm", voxel_nm), ("volume_nm", volume_nm),
            ("papers", tuple(papers)),
        ):  # fmt: skip
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
        return self.spec_of(self.name_of(role))

    def spec_of(self, name: str) -> TableSpec:
        """Return the spec of a table by its name.

        Parameters
        ----------
        name : str
            Such as ``"nucleus_detection_v0"``.

        Returns
        -------
        TableSpec
            As for `table_of`.

        Examples
        --------
        >>> release_spec(1718).spec_of("digital_twin_properties_bcm_coreg_v4").angle_units
        'degree'
        """
        return self.table_specs.get(name) or table_spec(name, self.datastack)


@lru_cache(maxsize=1)
def _registry() -> dict[str, Any]:
    path = resources.files("microns_xr").joinpath("releases.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=16)
def _table_specs(datastack: str) -> Mapping[str, TableSpec]:
    specs = {}
    for name, entry in _datastack(datastack).get("tables", {}).items():
        layers = {layer: tuple(words) for layer, words in entry.get("layers", {}).items()}
        keys = {key: tuple(names) for key, names in entry.get("scan_columns", {}).items()}
        voxel = as_resolution(entry.get("resolution_nm"), name)
        own = {"layers": layers, "scan_columns": keys, "resolution_nm": voxel}
        specs[name] = TableSpec(name, **{**entry, **own})
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
    registry = _registry()
    entry: Mapping[str, Any] = registry["datastacks"].get(name, {})
    if name == registry["datastack"]:
        return {**{key: registry[key] for key in ("releases", "families", "tables")}, **entry}
    if "like" not in entry:
        return entry
    # The files of an archive are those of one datastack.
    of_volume = {key: value for key, value in _datastack(entry["like"]).items() if key != "archive"}
    return {**of_volume, **entry}


def datastack_entry(name: str, key: str) -> Any:
    """Return one entry of a datastack in the registry, such as ``archive``; None without it."""
    return _datastack(name).get(key)


def volume_of(datastack: str) -> str:
    """Return the name of the datastack whose volume, frame and tables a datastack shares."""
    return str(_registry()["datastacks"].get(datastack, {}).get("like", datastack))


@lru_cache(maxsize=16)
def space_of(datastack: str) -> Space:
    """Return where the positions of a datastack are, as far as it is known."""
    entry = _datastack(datastack)
    voxel = as_resolution(entry.get("voxel_nm"), "voxel_nm")
    return Space(entry.get("frame", NO_FRAME), voxel, _volume(entry.get("volume_nm")))


def space_of_data(data: xr.Dataset, name: str = "position") -> Space:
    """Return where the positions of some data are: as they record it, else by their datastack."""
    datastack = datastack_of(data)
    of_data = None if datastack is None else space_of(datastack)
    for attrs in (data[name].attrs if name in data.variables else {}, data.attrs):
        if (recorded := space_in(attrs)) is not None:
            # The volume is not recorded.
            same = of_data is not None and of_data.frame == recorded.frame
            return replace(recorded, volume_nm=of_data.volume_nm) if of_data and same else recorded
    return of_data or Space()


def datastack_of(data: xr.Dataset | xr.DataArray) -> str | None:
    """Return the datastack that data state; None if they state none."""
    stated = data.coords.get("datastack")
    return None if stated is None or stated.ndim else str(stated.item())


def table_spec(name: str, datastack: str | None = None) -> TableSpec:
    """Return the registry entry of a table, or a default spec for an unknown table.

    A table of data that state no datastack is known by its name if only one datastack has it.
    """
    if datastack is not None:
        return _table_specs(datastack).get(name) or TableSpec(name)
    stacks = [stack for stack, entry in _registry()["datastacks"].items() if "like" not in entry]
    found = [specs[name] for stack in stacks if name in (specs := _table_specs(stack))]
    return found[0] if len(found) == 1 else TableSpec(name)


@lru_cache(maxsize=64)
def label_words(datastack: str | None, label: str) -> frozenset[str]:
    """Return the words of a label of neurons in any release of a datastack.

    Of every datastack, if it is not in the registry.
    """
    known = _registry()["datastacks"]
    stacks = [stack for stack in known if "like" not in known[stack]]
    if datastack is not None and datastack in known:
        stacks = [datastack]
    words: set[str] = set()
    for stack in stacks:
        words.update(_datastack(stack).get("words", {}).get(label, ()))
        for spec in _table_specs(stack).values():
            if label == "layer":
                words.update(spec.layers)
            elif label == "classification_system":
                words.update(spec.class_words.values())
            elif label == "cell_type":
                words.update(spec.type_words.values(), *spec.layers.values())
    return frozenset(words)


def table_of_file(file: str, datastack: str) -> str:
    """Return the name of the table in a file, by the file name."""
    stem = re.split(r"[/\\]", file)[-1].split(".")[0]
    specs = _table_specs(datastack)
    tables = {spec.archive_file: name for name, spec in specs.items() if spec.archive_file}
    return tables.get(stem, stem.removesuffix("_merged"))


@lru_cache(maxsize=1)
def synapse_tables() -> frozenset[str]:
    """Return the names of the tables of all synapses of the releases in the registry."""
    specs = [
        release_spec(version, datastack=stack)
        for stack, entry in _registry()["datastacks"].items()
        for version in supported_versions(stack)
        if "like" not in entry
    ]
    return frozenset(spec.tables["synapses"] for spec in specs if spec.has("synapses"))


def supported_versions(datastack: str = "minnie65_public") -> list[int]:
    """Return the materialization versions in the registry, ascending.

    Parameters
    ----------
    datastack : str, optional
        Such as ``"minnie65_public"`` or ``"v1dd_public"``.

    Returns
    -------
    list of int
        Versions of the datastack; empty if it is not in the registry.

    Examples
    --------
    >>> supported_versions()
    [661, 943, 1078, 1181, 1300, 1412, 1507, 1621, 1718, 1822]
    >>> supported_versions("v1dd_public")
    [1196]
    """
    return sorted(int(version) for version in _datastack(datastack).get("releases", ()))


def release_spec(
    version: int | ReleaseSpec,
    tables: Mapping[str, str | None] | None = None,
    datastack: str | None = None,
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
    datastack : str, optional
        Datastack of the version; by default ``"minnie65_public"``.

    Returns
    -------
    ReleaseSpec
        The entry with these tables.

    Raises
    ------
    UnknownLabelError
        If the version of the datastack is not in the registry, or a role does not exist.
    ReleaseMismatchError
        If `version` is a custom entry of another datastack.

    Examples
    --------
    >>> release_spec(1718).name_of("functional_properties")
    'digital_twin_properties_bcm_coreg_v4'
    >>> release_spec(1719)
    Traceback (most recent call last):
    microns_xr.errors.UnknownLabelError: minnie65_public has no release 1719, expected one of ...
    """
    if isinstance(version, ReleaseSpec):
        spec = version
        if datastack is not None and volume_of(datastack) != volume_of(spec.datastack):
            raise ReleaseMismatchError(
                f"datastack is {datastack!r}, but the ReleaseSpec is of {spec.datastack!r}: leave "
                "out datastack=, or pass a ReleaseSpec of that datastack"
            )
    else:
        require_instance("datastack", datastack, (str, type(None)), "the name of a datastack")
        spec = _spec_of_registry(version, datastack or _registry()["datastack"])
    require_instance("tables", tables, (Mapping, type(None)), "a mapping of roles to names")
    if not tables:
        return spec
    merged: dict[str, str | None] = {**spec.tables, **tables}
    if "celltype" in tables and tables["celltype"] != spec.tables.get("celltype"):
        for role in ("celltype_fine", "celltype_corrections"):
            merged[role] = tables.get(role)
    return replace(spec, tables={k: name for k, name in merged.items() if name is not None})


def _spec_of_registry(version: Any, datastack: str) -> ReleaseSpec:
    stacks = _registry()["datastacks"]
    of_stack = _datastack(datastack)
    custom = "pass a custom mx.releases.ReleaseSpec, with the tables of the release"
    if "releases" not in of_stack:
        raise unknown_label("there is no datastack", datastack, stacks, f"for another {custom}")
    entry = None if isinstance(version, bool) else of_stack["releases"].get(str(version))
    if entry is None:
        others = [
            stack
            for stack in stacks
            if "like" not in stacks[stack] and str(version) in map(str, supported_versions(stack))
        ]
        hint = f"for another version {custom}"
        if others:
            hint = f"that is a version of {others[0]}: pass datastack={others[0]!r}; {hint}"
        what = f"{datastack} has no release"
        raise unknown_label(what, version, supported_versions(datastack), hint)
    roles = entry.get("tables") or of_stack["families"][entry["inherits"]]
    return ReleaseSpec(int(version), dict(roles), datastack)


def references(data: xr.Dataset | xr.DataArray | xr.DataTree) -> list[str]:
    """Return the papers to cite for some data: on the data set, and on its source tables.

    Parameters
    ----------
    data : xarray.Dataset, xarray.DataArray or xarray.DataTree
        Data from a `microns_xr.Release` or from a store, or results computed from them; the tables
        are in the attribute ``source_tables``.

    Returns
    -------
    list of str
        Authors, year and doi; the papers on the whole data set come first. Empty if the registry
        knows no paper on the datastack and its tables.

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
        hint = part_of(data, "data") or "open a store with mx.open_store"
        raise SchemaError(
            f"expected a Dataset, DataArray or tree, found {type(data).__name__}: {hint}"
        )
    names = {name for node in nodes for name in source_names(node.attrs.get("source_tables"))}
    if not names:
        raise SchemaError(
            "the data have no attribute 'source_tables': xarray drops attributes in arithmetic; "
            "cite the original data instead, or use xr.set_options(keep_attrs=True)"
        )
    stated = [datastack_of(node) or node.attrs.get("datastack") for node in nodes]
    datastack = next((str(name) for name in stated if name is not None), None)
    recorded = [paper for node in nodes for paper in text_lines(node.attrs.get("references"))]
    return papers_of(names, datastack, recorded)


def papers_of(
    tables: Iterable[str], datastack: str | None, recorded: Iterable[str] = ()
) -> list[str]:
    """Return the papers on a datastack, on its tables, and those that data record."""
    always = list(_datastack(datastack).get("papers", ())) if datastack else []
    of_tables = {table_spec(name, datastack).reference for name in tables} - {None}
    rest = {str(paper) for paper in (*of_tables, *recorded)} - set(always)
    return [*always, *sorted(rest)]


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
    papers = references(data)
    print("\n".join(papers or ["no paper is known: ask the owners of the data what to cite"]))
