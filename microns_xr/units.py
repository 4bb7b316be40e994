"""The unit table: one row a neuron, indexed by nucleus id, from the raw tables of one release."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.celltypes import CellTypes, read_cell_types
from microns_xr.columns import positions
from microns_xr.coordinates import to_pia_um
from microns_xr.errors import SchemaError
from microns_xr.layers import layer_at, segment_layers
from microns_xr.proofreading import read_proofreading
from microns_xr.provenance import add_history, stamp_release
from microns_xr.releases import ReleaseSpec, TableSpec, release_spec
from microns_xr.schema import AXES, UNITS, describe
from microns_xr.tables import by_role, latest_by, typed_table
from microns_xr.unit_function import FunctionalMode, add_functional

__all__ = ["build_units", "select_nuclei"]

logger = logging.getLogger(__name__)

_NEEDED = ("nucleus", "celltype", "proofreading")


def select_nuclei(
    nuclei: pd.DataFrame,
    typed: pd.Index,
    *,
    multisoma: Literal["any", "typed"] = "any",
    untyped: Literal["drop", "keep"] = "drop",
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Choose the nuclei that are units, and count what is dropped and why.

    Parameters
    ----------
    nuclei : pandas.DataFrame
        The typed nucleus table: ``id``, ``pt_root_id`` (Int64).
    typed : pandas.Index
        Nucleus ids of the classification table.
    multisoma : {"any", "typed"}, optional
        ``any`` drops every root that holds more than one nucleus; ``typed`` counts typed nuclei
        only, as the pandas package does.
    untyped : {"drop", "keep"}, optional
        Whether nuclei outside of the classification table are units.

    Returns
    -------
    tuple of (pandas.DataFrame, dict)
        The chosen rows, sorted by id, and the rows at the start, dropped by each step, and left.

    Examples
    --------
    >>> nuclei = pd.DataFrame({"id": [1, 2, 3, 4], "pt_root_id": pd.array([0, 8, 8, 9])})
    >>> select_nuclei(nuclei, pd.Index([1, 2, 4]))[1]
    {'nuclei': 4, 'no_segment': 1, 'shared_root': 2, 'untyped': 0, 'units': 1}
    >>> select_nuclei(nuclei, pd.Index([1, 2, 4]), multisoma="typed")[0].id.tolist()
    [2, 4]
    """
    for name, word, words in (
        ("multisoma", multisoma, ("any", "typed")),
        ("untyped", untyped, ("drop", "keep")),
    ):
        if word not in words:
            raise SchemaError(f"{name} is {word!r}, expected one of {words}")
    root = nuclei["pt_root_id"].fillna(0).astype(np.int64)
    segment = (root > 0).to_numpy()
    is_typed = nuclei["id"].isin(typed).to_numpy()
    nuclei_of = root.map(root.value_counts()).to_numpy()
    typed_of = root.map(root[is_typed].value_counts()).fillna(0).to_numpy()
    if multisoma == "any":
        shared = segment & (nuclei_of > 1)
    else:
        # An untyped nucleus on the root of another is no neuron of its own.
        shared = segment & np.where(is_typed, typed_of > 1, (untyped == "keep") & (nuclei_of > 1))
    no_type = segment & ~shared & ~is_typed
    keep = segment & ~shared & (is_typed | (untyped == "keep"))
    counts = {
        "nuclei": len(nuclei),
        "no_segment": int((~segment).sum()),
        "shared_root": int(shared.sum()),
        "untyped": int(no_type.sum()) if untyped == "drop" else 0,
        "units": int(keep.sum()),
    }
    chosen = nuclei[keep].assign(pt_root_id=root[keep])
    return chosen.sort_values("id", ignore_index=True), counts


def build_units(
    tables: Mapping[str, pd.DataFrame],
    version: int | ReleaseSpec,
    *,
    functional: FunctionalMode = "none",
    multisoma: Literal["any", "typed"] = "any",
    untyped: Literal["drop", "keep"] = "drop",
    white_matter: bool = True,
) -> xr.Dataset:
    """Build the unit table of one release.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        Raw tables by role (``"nucleus"``, ``"celltype"``, ``"proofreading"``, and where the
        release has them ``"celltype_fine"``, ``"celltype_corrections"``, ``"brain_area"``,
        ``"coregistration"``, ``"functional_properties"``) or by table name. Never modified.
    version : int or ReleaseSpec
        The release the tables are of.
    functional : {"none", "match", "best_only"}, optional
        ``match`` says from the coregistration which neurons were recorded; ``best_only`` adds the
        properties of the scan unit with the highest ``cc_abs``. One row a neuron in either case.
    multisoma : {"any", "typed"}, optional
        See `select_nuclei`.
    untyped : {"drop", "keep"}, optional
        See `select_nuclei`; kept ones have the class and type "unknown".
    white_matter : bool, optional
        See `microns_xr.segment_layers`.

    Returns
    -------
    xarray.Dataset
        Dim ``nucleus_id`` (int64, sorted, unique) with the variables of
        ``microns_xr.schema.UNITS``; ``position`` in µm, depth from the pia along y. What was
        dropped and why is in ``attrs["selection"]``, what was corrected in ``attrs["notes"]``.

    Raises
    ------
    SchemaError
        If a table is absent, empty, or lacks columns, if ids are floats, if nucleus ids repeat,
        or for ``functional="all"``: rows of all scans are in ``Release.functional``.
    UnknownLabelError
        If the version is not known.

    Examples
    --------
    >>> nuclei = pd.DataFrame({"id": [11, 12], "pt_root_id": [864691135639235593, 0],
    ...     "pt_position": ["[183013 103535 21480]", "[183013 83535 21480]"]})
    >>> types = pd.DataFrame({"target_id": [11, 12], "cell_type": ["23P", "BC"],
    ...     "classification_system": ["excitatory_neuron", "inhibitory_neuron"]})
    >>> proofreading = pd.DataFrame({"pt_root_id": [864691135639235593],
    ...     "strategy_axon": ["axon_fully_extended"], "strategy_dendrite": ["none"]})
    >>> tables = {"nucleus": nuclei, "celltype": types, "proofreading": proofreading}
    >>> units = build_units(tables, 1300)
    >>> units.pt_root_id.values, units.axon_completeness.values
    (array([864691135639235593]), array(['full'], dtype=object))
    """
    spec = release_spec(version)
    roles = by_role(tables, spec.tables)
    missing = [role for role in _NEEDED if role not in roles]
    if missing:
        raise SchemaError(
            f"tables lacks {[spec.tables.get(role, role) for role in missing]} "
            f"(roles {missing}), which every unit table is made of: download or pass them"
        )
    nucleus_spec = spec.table_of("nucleus")
    nuclei = typed_table(roles["nucleus"], "nucleus", nucleus_spec, unique=["id"])
    cell_types = read_cell_types(roles, spec)
    chosen, counts = select_nuclei(
        nuclei, cell_types.by_nucleus.index, multisoma=multisoma, untyped=untyped
    )
    if chosen.empty:
        raise SchemaError(
            f"no nucleus of {nucleus_spec.name} is left as a unit ({counts}): the tables are of "
            "different releases, or the classification is of other nuclei"
        )
    notes: dict[str, int] = dict(cell_types.counts)
    columns: dict[str, np.ndarray] = {"pt_root_id": chosen["pt_root_id"].to_numpy(np.int64)}
    columns.update(_cell_type_columns(chosen["id"], cell_types))
    columns["brain_area"] = _areas(chosen["id"], roles, spec, notes)
    columns.update(_proofreading_columns(chosen["pt_root_id"], roles, spec, notes))
    position = to_pia_um(positions(chosen, nucleus_spec.name), nucleus_spec.resolution_nm)
    units = xr.Dataset(
        {
            **{n: ("nucleus_id", v, describe(UNITS[n])) for n, v in columns.items()},
            "position": (("nucleus_id", "axis"), position, describe(UNITS["position"])),
        },
        coords={
            "nucleus_id": (
                "nucleus_id",
                chosen["id"].to_numpy(np.int64),
                describe(UNITS["nucleus_id"]),
            ),
            "axis": ("axis", np.array(AXES, dtype=object)),
        },
        attrs={
            "celltype_table": cell_types.table,
            "layer_types": {k: list(v) for k, v in _layer_types(spec).items()},
            "multisoma": multisoma,
            "untyped": untyped,
            "selection": counts,
        },
    )
    units = stamp_release(units, spec.datastack, spec.version)
    add_history(units, f"build_units(multisoma={multisoma!r}, untyped={untyped!r})")
    layers = segment_layers(units, white_matter=white_matter)
    layer = layer_at(position[:, 1], layers)
    units["layer"] = ("nucleus_id", layer, describe(UNITS["layer"]))
    units = add_functional(units, roles, spec, functional)
    units.attrs["notes"] = {**notes, **units.attrs["notes"]}
    _log(spec, counts, units.attrs["notes"])
    return units


def _layer_types(spec: ReleaseSpec) -> Mapping[str, tuple[str, ...]]:
    """Cell types that mark each layer; empty where they are not known."""
    for role in ("celltype_fine", "celltype"):
        if spec.has(role) and (table := spec.table_of(role)).has_types:
            return table.layers
    return {}


def _log(spec: ReleaseSpec, counts: dict[str, int], notes: dict[str, int]) -> None:
    dropped = ", ".join(
        f"{n} {step.replace('_', ' ')}"
        for step, n in counts.items()
        if step not in ("nuclei", "units")
    )
    noted = (
        "; " + ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in notes.items()) if notes else ""
    )
    logger.info(
        "%s v%d: %d of %d nuclei are units (dropped: %s%s)",
        spec.datastack, spec.version, counts["units"], counts["nuclei"], dropped, noted,
    )  # fmt: skip


def _cell_type_columns(ids: pd.Series, cell_types: CellTypes) -> dict[str, np.ndarray]:
    rows = cell_types.by_nucleus.reindex(ids)
    columns = {
        n: rows[n].fillna("unknown").to_numpy(dtype=object)
        for n in ("classification_system", "cell_type", "cell_type_raw")
    }
    if (columns["cell_type"] == columns["cell_type_raw"]).all():
        del columns["cell_type_raw"]  # kept where a word was harmonised
    return columns


def _areas(
    ids: pd.Series, roles: Mapping[str, pd.DataFrame], spec: ReleaseSpec, notes: dict[str, int]
) -> np.ndarray:
    if "brain_area" not in roles:
        return np.full(len(ids), "unknown", dtype=object)
    table_spec: TableSpec = spec.table_of("brain_area")
    typed = typed_table(roles["brain_area"], "brain_area", table_spec)
    latest, contradicted = latest_by(typed, table_spec.name, "target_id", ["tag"])
    if contradicted:
        notes["contradicting_areas"] = contradicted
    tags = latest.set_index("target_id")["tag"].reindex(ids)
    return tags.fillna("unknown").to_numpy(dtype=object)


def _proofreading_columns(
    roots: pd.Series, roles: Mapping[str, pd.DataFrame], spec: ReleaseSpec, notes: dict[str, int]
) -> dict[str, Any]:
    proofreading = read_proofreading(roles["proofreading"], spec.table_of("proofreading"))
    if proofreading.n_repeated_roots:
        notes["roots_proofread_twice"] = proofreading.n_repeated_roots
    notes["proofread_roots_of_no_unit"] = int((~proofreading.by_root.index.isin(roots)).sum())
    rows = proofreading.by_root.reindex(roots)
    columns: dict[str, np.ndarray] = {
        n: rows[n].fillna("none").to_numpy(dtype=object)
        for n in ("strategy_axon", "strategy_dendrite", "axon_completeness")
    }
    for name in ("axon_proofread", "root_changed"):
        columns[name] = rows[name].eq(True).to_numpy(dtype=bool)
    return columns
