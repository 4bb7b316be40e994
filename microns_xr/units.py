"""Build the unit table, one row per neuron, from the raw tables of a release."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import is_angle, require_same_angles
from microns_xr.columns import as_ids
from microns_xr.errors import SchemaError, require_one_of, unknown_label, warn_of_dropped_rows
from microns_xr.frames import positions_um
from microns_xr.layers import layer_at, segment_layers
from microns_xr.provenance import add_history, require_same_release, stamp_release, text_lines
from microns_xr.releases import ReleaseSpec, release_spec
from microns_xr.schema import AXES, UNITS, describe, with_labels
from microns_xr.tables import (
    INVALID,
    SCAN_KEYS,
    by_role,
    latest_by,
    require_shared_ids,
    typed_table,
    with_target_ids,
)
from microns_xr.tuning.functional import build_functional, collapse_scans, take_rows

logger = logging.getLogger(__name__)

FunctionalMode = Literal["none", "match", "best_only"]
Tables = Mapping[str, pd.DataFrame]

# The role of the table that each mode needs.
FUNCTIONAL_ROLES = {"match": "coregistration", "best_only": "functional_properties"}

REQUIRED = ("nucleus", "celltype", "proofreading")


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

    A unit is a nucleus that has an entry in the classification table and a segment
    (``pt_root_id`` > 0) that no other nucleus shares.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        Raw tables by role (``"nucleus"``, ``"celltype"``, ``"proofreading"``, and where the
        release has them ``"celltype_fine"``, ``"celltype_corrections"``, ``"brain_area"``,
        ``"coregistration"``, ``"functional_properties"``) or by table name. They are not modified.
    version : int or ReleaseSpec
        The release of the tables.
    functional : {"none", "match", "best_only"}, optional
        ``match`` marks the neurons that were recorded, by the coregistration, with ``session``,
        ``scan_idx`` and ``unit_id`` of neurons with exactly one recorded unit (-1 for the others);
        ``best_only`` adds the properties of the scan unit with the highest ``cc_abs``. The result
        has one row per neuron in either case.
    multisoma : {"any", "typed"}, optional
        ``any`` drops every root with more than one nucleus; ``typed`` only those with more than
        one nucleus in the classification table.
    untyped : {"drop", "keep"}, optional
        Whether to drop nuclei without an entry in the classification table; if kept, their class
        and type are "unknown".
    white_matter : bool, optional
        See `microns_xr.segment_layers`.

    Returns
    -------
    xarray.Dataset
        Dim ``nucleus_id`` (int64, sorted, unique) with the variables of
        ``microns_xr.schema.UNITS``: ids and labels as coordinates, measurements as data variables;
        ``position`` in µm, depth from the pia along y.
        ``attrs["selection"]`` counts dropped nuclei by reason, ``attrs["notes"]`` corrections and
        rows of other tables that are not valid; `microns_xr.releases.read_counts` reads them.

    Raises
    ------
    SchemaError
        If a table is missing, empty, or lacks columns, if ids are floats, if nucleus ids repeat, or
        for ``functional="all"``: rows of all scans are in ``Release.functional``.
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
    if isinstance(functional, str) and functional == "all":
        raise SchemaError(
            "functional='all' would repeat neurons that were recorded in several scans: the rows "
            "of all scans are in Release.functional(), and mx.tuning.collapse_scans makes one "
            "row per neuron"
        )
    require_one_of("functional", functional, ("none", *FUNCTIONAL_ROLES))
    require_one_of("multisoma", multisoma, ("any", "typed"))
    require_one_of("untyped", untyped, ("drop", "keep"))
    spec = release_spec(version)
    roles = by_role(tables, spec.tables)
    if missing := [role for role in REQUIRED if role not in roles]:
        raise SchemaError(
            f"tables lacks {[spec.tables.get(role, role) for role in missing]} "
            f"(roles {missing}), which are required: download or pass them"
        )
    nucleus_spec = spec.table_of("nucleus")
    ids = {"id": None, "pt_root_id": 0}
    nuclei = typed_table(roles["nucleus"], nucleus_spec, ids, unique=["id"])
    invalid = {r: table.attrs[INVALID] for r, table in roles.items() if INVALID in table.attrs}
    notes = {f"invalid_rows_of_{role}": n for role, n in invalid.items() if role != "nucleus"}
    types = _cell_types(roles, spec, notes)
    shared_roots = shared_roots_of(nuclei)
    nuclei, counts = _select_nuclei(nuclei, types.index, multisoma, untyped)
    if "nucleus" in invalid:
        n = invalid["nucleus"]
        counts = {**counts, "nuclei": counts["nuclei"] + n, "not_valid": n}
    if nuclei.empty:
        raise SchemaError(
            f"no nucleus of {nucleus_spec.name} is a unit ({counts}): pass tables of the same "
            "release, with a classification of the same nuclei"
        )
    columns: dict[str, Any] = {"pt_root_id": nuclei["pt_root_id"].to_numpy(np.int64)}
    types = types.reindex(nuclei["id"]).fillna("unknown")
    columns |= {str(name): words.to_numpy(dtype=object) for name, words in types.items()}
    if (columns["cell_type"] == columns["cell_type_raw"]).all():
        del columns["cell_type_raw"]  # redundant unless a word was harmonised
    if "brain_area" in roles:  # without a table, there is no such variable
        column = spec.table_of("brain_area").area_column
        area = _latest(roles, "brain_area", spec, [column], notes)[column]
        area = area.reindex(nuclei["id"]).fillna("unknown")
        columns["brain_area"] = area.to_numpy(dtype=object)
    columns |= _proofreading(nuclei["pt_root_id"], roles, spec, notes)
    nuclei.attrs = roles["nucleus"].attrs  # with the resolution, if the table states it
    position = positions_um(
        nuclei, nucleus_spec.name, "pt_position", nucleus_spec.resolution_nm, spec.space
    )
    type_role = "celltype_fine" if "celltype_fine" in roles else "celltype"
    position_attrs = {**describe(UNITS["position"]), **spec.space.attrs("nucleus position")}
    units = xr.Dataset(
        {**_variables(columns), "position": (("nucleus_id", "axis"), position, position_attrs)},
        coords={
            **_variables({"nucleus_id": nuclei["id"].to_numpy(np.int64)}),
            "axis": ("axis", np.array(AXES, dtype=object)),
        },
        attrs={
            "celltype_table": spec.name_of(type_role),
            "layer_types": text_lines(_layer_types(spec)),
            "multisoma": multisoma,
            "untyped": untyped,
            "selection": text_lines(counts),
            "shared_roots": shared_roots.tolist(),
        },
    )
    units = stamp_release(units, spec.datastack, spec.version)
    add_history(units, f"build_units(multisoma={multisoma!r}, untyped={untyped!r})")
    layer = np.full(len(position), "unknown", dtype=object)
    if spec.space.has_depth:
        layer = layer_at(position[:, 1], segment_layers(units, white_matter=white_matter))
    else:
        logger.warning(
            "%s has no frame: positions are in the axes of their table, and there are no layers",
            spec.datastack,
        )
    units = units.assign(_variables({"layer": layer}))
    units = _add_functional(units, roles, spec, functional, notes)
    units = with_labels(units)
    units.attrs["notes"] = text_lines(notes)
    dropped = {step: n for step, n in counts.items() if step not in ("nuclei", "units")}
    reasons = (
        ", ".join(f"{n} {step.replace('_', ' ')}" for step, n in of.items())
        for of in (dropped, notes)
    )
    where = (spec.datastack, spec.version, counts["units"], counts["nuclei"])
    logger.info("%s v%d: %d of %d nuclei are units (dropped: %s; %s)", *where, *reasons)
    return units


def _variables(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {n: ("nucleus_id", values, describe(UNITS[n])) for n, values in columns.items()}


def shared_roots_of(nuclei: pd.DataFrame) -> np.ndarray:
    """Return the root ids with several nuclei, ascending."""
    roots = as_ids(nuclei["pt_root_id"], "pt_root_id of the nuclei", missing=0)
    roots, n_nuclei = np.unique(roots, return_counts=True)
    return roots[(n_nuclei > 1) & (roots > 0)]


def _select_nuclei(
    nuclei: pd.DataFrame, typed: pd.Index, multisoma: str, untyped: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Select the nuclei that are units, and count the dropped nuclei by reason."""
    root = nuclei["pt_root_id"]
    segment = (root > 0).to_numpy()
    is_typed = nuclei["id"].isin(typed).to_numpy()
    shared = segment & (root.map(root.value_counts()).to_numpy() > 1)
    if multisoma == "typed":
        typed_on_root = root.map(root[is_typed].value_counts()).fillna(0).to_numpy()
        # An untyped nucleus that shares its root is not a separate neuron.
        shared = np.where(is_typed, segment & (typed_on_root > 1), shared & (untyped == "keep"))
    chosen = segment & ~shared & (is_typed | (untyped == "keep"))
    counts = {
        "nuclei": len(nuclei),
        "no_segment": int((~segment).sum()),
        "shared_root": int(shared.sum()),
        "untyped": int((segment & ~shared & ~chosen).sum()),
        "units": int(chosen.sum()),
    }
    return nuclei[chosen].sort_values("id", ignore_index=True), counts


# Cell types: classes, fine types and corrections, with uniform words across releases.


_CLASSES = ("excitatory_neuron", "inhibitory_neuron", "nonneuron")
_TYPE_COLUMNS = ["classification_system", "cell_type"]


def _layer_types(spec: ReleaseSpec) -> Mapping[str, tuple[str, ...]]:
    """Return the cell types that mark each layer; empty if they are not known."""
    for role in ("celltype_fine", "celltype"):
        if spec.has(role) and (table := spec.table_of(role)).has_types:
            return table.layers
    return {}


# Names in the notes for nuclei with several rows that differ.
_CONTRADICTING = {
    "celltype": "contradicting_classifications",
    "celltype_fine": "contradicting_fine_types",
    "celltype_corrections": "nuclei_with_several_corrections",
    "brain_area": "contradicting_areas",
}


def _latest(
    tables: Tables, role: str, spec: ReleaseSpec, values: list[str], notes: dict[str, int]
) -> pd.DataFrame:
    """Return the latest row of each nucleus."""
    table_spec = spec.table_of(role)
    table = with_target_ids(tables[role], table_spec, tables["nucleus"])
    text = [table_spec.class_column] * table_spec.has_classes + ["cell_type"] * table_spec.has_types
    if role == "brain_area":
        text = [table_spec.area_column]
    ids = {"target_id": None, "id": None}
    typed = typed_table(table, table_spec, ids, text, optional=["id"])
    require_shared_ids(typed["target_id"], tables["nucleus"]["id"], f"{table_spec.name}.target_id")
    typed = typed[typed["target_id"] >= 0]  # -1 for a root of no nucleus or of several
    latest, n_contradicting = latest_by(typed, table_spec.name, "target_id", values)
    if n_contradicting:
        notes[_CONTRADICTING[role]] = n_contradicting
    return latest.set_index("target_id")


def _cell_types(tables: Tables, spec: ReleaseSpec, notes: dict[str, int]) -> pd.DataFrame:
    """Return classes and types by nucleus, in the words of the data model and of the table."""
    coarse = type_spec = spec.table_of("celltype")
    columns = [coarse.class_column] * coarse.has_classes + ["cell_type"] * coarse.has_types
    latest = _latest(tables, "celltype", spec, list(dict.fromkeys(columns)), notes)
    words = pd.DataFrame(index=latest.index, columns=_TYPE_COLUMNS, dtype=object)
    if coarse.has_classes:
        words["classification_system"] = latest[coarse.class_column]
    if coarse.has_types:
        words["cell_type"] = latest["cell_type"]
    words = words.dropna(how="all")  # a view lists all nuclei
    if "celltype_fine" in tables:
        type_spec = spec.table_of("celltype_fine")
        fine = _latest(tables, "celltype_fine", spec, ["cell_type"], notes)
        words["cell_type"] = fine["cell_type"]
    if "celltype_corrections" in tables:
        notes["nuclei_with_several_corrections"] = 0
        corrections = _latest(tables, "celltype_corrections", spec, _TYPE_COLUMNS, notes)
        original = words.copy()
        words.update(corrections[_TYPE_COLUMNS])  # a null does not replace a word
        changed = (words.fillna("") != original.fillna("")).any(axis=1)
        notes["corrections"] = len(corrections)
        notes["corrections_that_change_a_nucleus"] = int(changed.sum())
        notes["corrections_of_unlisted_nuclei"] = int((~corrections.index.isin(words.index)).sum())
    known_types = [word for of_layer in type_spec.layers.values() for word in of_layer]
    classes, raw = words["classification_system"], words["cell_type"]
    frame = pd.DataFrame(
        {
            "classification_system": _harmonise(classes, coarse.class_words, _CLASSES),
            "cell_type": _harmonise(raw, type_spec.type_words, known_types),
            "cell_type_raw": raw.where(raw.notna(), "unknown"),
        }
    )
    if n := int((frame["cell_type"] != frame["cell_type_raw"]).sum()):
        notes["harmonised_type_words"] = n
    return frame


def _harmonise(words: pd.Series, mapping: Mapping[str, str], known: Iterable[str]) -> pd.Series:
    """Unify words that differ between releases, or only in case."""
    spelling = {word.lower(): word for word in known}
    counts = words.dropna().value_counts().items()
    for word, _ in sorted(counts, key=lambda item: (-item[1], str(item[0]))):  # most frequent first
        spelling.setdefault(str(word).lower(), str(word))
    spelling.update({old.lower(): new for old, new in mapping.items()})
    target = {word: spelling[str(word).lower()] for word in words.dropna().unique()}
    return words.map(target).fillna("unknown").astype(object)


# Proofreading: completeness of the axon from strategies and status words.


# From the least to the most complete. `unknown`: extended to an unknown degree (the status
# "extended" of releases before 1078, or a strategy not listed here).
COMPLETENESS = ("none", "clean", "truncated", "interareal", "unknown", "partial", "full")

# Strategies of proofreading_status_and_strategy, and the status words of
# proofreading_status_public_release, as the metadata of the two tables describe them.
_COMPLETENESS_OF = {
    "none": "none",
    "clean": "clean",
    "axon_column_truncated": "truncated",
    "axon_interareal": "interareal",
    "axon_partially_extended": "partial",
    "axon_fully_extended": "full",
}


def _proofreading(
    roots: pd.Series, tables: Tables, spec: ReleaseSpec, notes: dict[str, int]
) -> dict[str, np.ndarray]:
    """Read a proofreading table of either layout, and count roots that are listed twice."""
    table, table_spec = tables["proofreading"], spec.table_of("proofreading")
    if "status_axon" not in table.columns:  # the view aibs_cell_info
        table = table.rename(columns={f"{s}_cleaned": f"status_{s}" for s in ("axon", "dendrite")})
    # Convert a boolean column to the words t and f.
    flags = {
        name: np.where(table[name].fillna(False).astype(bool), "t", "f")
        for name in ("status_axon", "status_dendrite")
        if name in table.columns and pd.api.types.is_bool_dtype(table[name].dtype)
    }
    columns = {"axon": table_spec.axon_column, "dendrite": table_spec.dendrite_column}
    status = {"status_axon", "status_dendrite"} - {*columns.values()}
    ids = {"pt_root_id": -1, "valid_id": -1}
    typed = typed_table(
        table.assign(**flags),
        table_spec,
        ids,
        [*columns.values(), *sorted(status)],
        optional={"valid_id", *status},
    )
    known = tables["nucleus"]["pt_root_id"]
    require_shared_ids(typed["pt_root_id"], known, f"{table_spec.name}.pt_root_id")
    typed = typed[typed["pt_root_id"] >= 0]
    frame = typed[["pt_root_id"]].copy()
    for side, column in columns.items():
        words = typed[column].fillna("none").replace(dict(table_spec.strategy_words))
        frame[f"strategy_{side}"] = words.astype(object)
    completeness = frame["strategy_axon"].map(_COMPLETENESS_OF).fillna("unknown").astype(object)
    if "status_axon" in typed and table_spec.axon_column != "status_axon":
        proofread = typed["status_axon"].astype(str).str.lower().isin(("t", "true", "1"))
    else:
        proofread = frame["strategy_axon"] != "none"
    # Status "t" without a strategy: merge errors were removed, the extent is not stated.
    frame["axon_completeness"] = completeness.mask(proofread & (completeness == "none"), "clean")
    frame["axon_proofread"] = proofread
    frame["root_changed"] = False
    if "valid_id" in typed:
        valid = typed["valid_id"]
        frame["root_changed"] = (valid >= 0) & (valid != typed["pt_root_id"])
    frame = frame.assign(
        rank=frame["axon_completeness"].map(COMPLETENESS.index),
        has_dendrite=frame["strategy_dendrite"] != "none",
    )
    # The words last, so that ties do not depend on the order of the file.
    ties = ["strategy_axon", "strategy_dendrite", "axon_proofread", "root_changed"]
    frame = frame.sort_values(["pt_root_id", "rank", "has_dendrite", *ties], kind="stable")
    if n := frame.loc[frame.duplicated("pt_root_id"), "pt_root_id"].nunique():
        notes["roots_proofread_twice"] = n
    by_root = frame.drop_duplicates("pt_root_id", keep="last").set_index("pt_root_id")
    notes["proofread_roots_of_no_unit"] = int((~by_root.index.isin(roots)).sum())
    rows = by_root.reindex(roots)
    return {
        name: rows[name].eq(True).to_numpy(dtype=bool)
        if name in ("axon_proofread", "root_changed")
        else rows[name].fillna("none").to_numpy(dtype=object)
        for name in rows.columns.drop(["rank", "has_dendrite"])
    }


# Functional variables of the unit table: match, best scan, rates.


_BEST = ("pref_ori", "pref_dir", "gOSI", "gDSI", "cc_abs")


def _add_functional(
    units: xr.Dataset, tables: Tables, spec: ReleaseSpec, mode: str, notes: dict[str, int]
) -> xr.Dataset:
    """Add the variables of the functional tables."""
    ids = units["nucleus_id"].values
    if mode == "none":
        unknown = np.full(len(ids), "unknown", dtype=object)
        return units.assign(_variables({"tuning_type": unknown}))
    role = FUNCTIONAL_ROLES[mode]
    if role not in tables:
        found = f", which v{spec.version} does not have"
        if spec.has(role):
            found = f" ({spec.tables[role]}), which is missing: download it"
        instead = ": use functional='match', and fit the rates with mx.tuning.fit"
        raise SchemaError(
            f"functional={mode!r} requires a table with the role {role!r}{found}"
            + instead * (mode == "best_only")
        )
    name = spec.name_of(role)
    table = build_functional(
        tables[role],
        spec.table_of(role),
        datastack=spec.datastack,
        version=spec.version,
        nuclei=tables["nucleus"],
    )
    if mode == "best_only":
        if absent := [n for n in _BEST if n not in table]:
            raise SchemaError(
                f"{name} lacks {absent}, which functional='best_only' requires: "
                "use functional='match', or pass another table with this role"
            )
        collapsed = collapse_scans(table[list(_BEST)], "best", by="cc_abs")
        names = ["n_scans", "n_scan_units", *SCAN_KEYS, *_BEST]
    else:
        collapsed = collapse_scans(table.drop_vars(list(table.data_vars)), "first")
        names = ["n_scans", "n_scan_units", *SCAN_KEYS]
        # With several recorded units, none of them is the unit of the neuron.
        for key in SCAN_KEYS:
            collapsed[key] = collapsed[key].where(collapsed["n_scan_units"] == 1, -1)
    matched = np.isin(ids, collapsed["nucleus_id"].values)
    tuning_type = np.where(matched, "matched", "not_matched").astype(object)
    units = units.assign(_variables({"tuning_type": tuning_type}))
    units = units.assign(_by_unit(collapsed, names, ids))
    units.attrs["functional_table"] = name
    notes["scan_units_of_no_unit"] = int((~np.isin(table["nucleus_id"].values, ids)).sum())
    return add_history(units, f"functional={mode!r} from {name}")


def _by_unit(collapsed: xr.Dataset, names: list[str], ids: np.ndarray) -> dict[str, Any]:
    """Return rows by nucleus as variables of the units, with missing values for other units."""
    rows = collapsed.indexes["nucleus_id"].get_indexer(pd.Index(ids))
    return {
        n: (v.dims, take_rows(v.values, rows, n), {**v.attrs, **describe(UNITS[n])})
        for n, v in collapsed[names].variables.items()
        if n in names
    }


def add_rates(
    units: xr.Dataset,
    tuning_curves: xr.Dataset,
    collapse: Literal["mean", "best", "first"] = "mean",
    by: str | None = None,
) -> xr.Dataset:
    """Add rates by direction and orientation to the units."""
    require_same_release(("units", units), ("tuning_curves", tuning_curves))
    rates = [n for n in ("rate_ori", "rate_dir") if n in tuning_curves]
    if not rates:
        raise SchemaError(
            f"tuning_curves has {list(tuning_curves.data_vars)}, expected rate_ori or rate_dir"
        )
    if by is not None and by not in tuning_curves:
        raise unknown_label(
            "tuning_curves has no variable",
            by,
            tuning_curves.data_vars,
            "add it with mx.merge_table(curves, functional, [by], on='functional'), or merge the "
            "curves into the functional rows and call mx.tuning.collapse_scans",
        )
    # Preferred angles and the angles of rates in one Dataset must have the same convention.
    angles = [d for d in ("orientation", "direction") if d in tuning_curves.coords]
    require_same_angles(
        [(f"units.{n}", v) for n, v in units.variables.items() if is_angle(v)]
        + [(f"tuning_curves.{d}", tuning_curves[d]) for d in angles],
        "pass angle_convention= ('up_clockwise' or 'right_counterclockwise') to Release.units, or "
        "convert one with mx.angles.convert",
    )
    collapsed = collapse_scans(tuning_curves[rates + ([by] if by else [])], collapse, by)
    ids = units["nucleus_id"].values
    variables = _by_unit(collapsed, [*rates, "n_rated"], ids)
    # Rates may be used as DataArrays, which do not have the attributes of their Dataset.
    if "source_tables" in tuning_curves.attrs:
        for _, _, attrs in variables.values():
            attrs["source_tables"] = tuning_curves.attrs["source_tables"]
    coords = {d: collapsed.coords[d] for d in angles if d in collapsed.coords}
    result = units.assign(variables).assign_coords(coords)
    outside = ~np.isin(tuning_curves["nucleus_id"].values, ids)
    if outside.size and outside.all() and (tuning_curves["nucleus_id"].values >= 0).any():
        warn_of_dropped_rows(
            f"none of the {outside.size} rows of tuning_curves is of one of the {len(ids)} units, "
            "so that no unit has rates: pass tables of the same datastack"
        )
    table, how = tuning_curves.attrs.get("tuning_table", "unknown"), collapsed.attrs["collapse"]
    notes = text_lines(units.attrs.get("notes"))
    notes.append(f"rated_scan_units_of_no_unit: {int(outside.sum())}")
    result = result.assign_attrs(notes=notes, tuning_table=str(table), collapse=how)
    return add_history(result, f"rates from {table}, {how}", source=(result, tuning_curves))
