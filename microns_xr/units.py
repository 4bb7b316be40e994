"""The unit table: one row a neuron, indexed by nucleus id, from the raw tables of one release."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import is_angle, require_same_angles
from microns_xr.columns import positions, to_pia_um
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.layers import layer_at, segment_layers
from microns_xr.provenance import add_history, require_same_release, stamp_release
from microns_xr.releases import ReleaseSpec, TableSpec, release_spec
from microns_xr.schema import AXES, UNITS, describe
from microns_xr.tables import SCAN_KEYS, by_role, latest_by, typed_table
from microns_xr.tuning.functional import build_functional, collapse_scans

# Cell types: classes, fine types and corrections, with the same words in every release.


_CLASSES = {w: w for w in ("excitatory_neuron", "inhibitory_neuron", "nonneuron")}


@dataclass(frozen=True)
class CellTypes:
    """Classification by nucleus."""

    # indexed by nucleus id: classification_system, cell_type, cell_type_raw; text
    by_nucleus: pd.DataFrame
    table: str  # name of the table the types come from
    counts: dict[str, int]  # what was harmonised, contradicted, corrected


def harmonise(words: pd.Series, mapping: Mapping[str, str], known: Mapping[str, str]) -> pd.Series:
    """Give words that differ between releases, or in case only, one spelling."""
    by_lower = {k.lower(): v for k, v in mapping.items()}
    spelling = dict(known)
    for word in words.dropna().value_counts().index:  # most frequent first
        spelling.setdefault(str(word).lower(), str(word))
    target = {
        word: by_lower.get(str(word).lower(), spelling[str(word).lower()])
        for word in words.dropna().unique()
    }
    return words.map(target).fillna("unknown").astype(object)


def _known_types(spec: TableSpec) -> dict[str, str]:
    return {w.lower(): w for ws in spec.layers.values() for w in ws}


def _one_a_nucleus(
    table: pd.DataFrame, role: str, spec: TableSpec, values: list[str]
) -> tuple[pd.DataFrame, int]:
    typed = typed_table(table, role, spec)
    latest, contradicted = latest_by(typed, spec.name, "target_id", values)
    return latest.set_index("target_id"), contradicted


def read_cell_types(tables: Mapping[str, pd.DataFrame], spec: ReleaseSpec) -> CellTypes:
    """Read classification, fine types and corrections of a release."""
    coarse = spec.table_of("celltype")
    counts: dict[str, int] = {}
    columns = [coarse.class_column] if coarse.has_classes else []
    columns += ["cell_type"] if coarse.has_types and "cell_type" not in columns else []
    listed, contradicted = _one_a_nucleus(tables["celltype"], "celltype", coarse, columns)
    if contradicted:
        counts["contradicting_classifications"] = contradicted
    frame = pd.DataFrame(index=listed.index)
    classes = listed[coarse.class_column] if coarse.has_classes else None
    types = listed["cell_type"] if coarse.has_types else None
    type_table = coarse
    if "celltype_fine" in tables:
        type_table = spec.table_of("celltype_fine")
        fine, contradicted = _one_a_nucleus(
            tables["celltype_fine"], "celltype_fine", type_table, ["cell_type"]
        )
        if contradicted:
            counts["contradicting_fine_types"] = contradicted
        types = fine["cell_type"].reindex(frame.index)
    if types is None:
        types = pd.Series([None] * len(frame), index=frame.index, dtype=object)
    if classes is None:
        classes = pd.Series([None] * len(frame), index=frame.index, dtype=object)
    if "celltype_corrections" in tables:
        classes, types, corrected = _correct(tables["celltype_corrections"], spec, classes, types)
        counts.update(corrected)
    types, classes = types.astype(object), classes.astype(object)
    frame["classification_system"] = harmonise(classes, coarse.class_words, _CLASSES)
    frame["cell_type"] = harmonise(types, type_table.type_words, _known_types(type_table))
    frame["cell_type_raw"] = types.where(types.notna(), "unknown")
    n_harmonised = int((frame["cell_type"] != frame["cell_type_raw"]).sum())
    if n_harmonised:
        counts["harmonised_type_words"] = n_harmonised
    return CellTypes(frame, type_table.name, counts)


def _correct(
    table: pd.DataFrame, spec: ReleaseSpec, classes: pd.Series, types: pd.Series
) -> tuple[pd.Series, pd.Series, dict[str, int]]:
    corrections_spec = spec.table_of("celltype_corrections")
    columns = ["classification_system", "cell_type"]
    latest, contradicted = _one_a_nucleus(table, "celltype_corrections", corrections_spec, columns)
    absent = ~latest.index.isin(classes.index)
    latest = latest[~absent]
    corrected = []
    changed = pd.Series(False, index=classes.index)
    for old, name in ((classes, columns[0]), (types, columns[1])):
        new = old.copy()
        given = latest[name].dropna()
        new.loc[given.index] = given
        changed |= new.fillna("") != old.fillna("")
        corrected.append(new)
    return (
        corrected[0],
        corrected[1],
        {
            "corrections": len(latest) + int(absent.sum()),
            "corrections_that_change_a_nucleus": int(changed.sum()),
            "nuclei_with_several_corrections": contradicted,
            "corrections_of_unlisted_nuclei": int(absent.sum()),
        },
    )


# Proofreading: strategies and status words to what an axon can be used for.


# From the least to the most complete. `unknown`: extended, but the table does not say how far
# (the status "extended" of the releases before 1078, or a strategy not listed here).
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

_TRUE_WORDS = frozenset({"t", "true", "1"})


def completeness_of(strategies: pd.Series) -> pd.Series:
    """Map axon strategies to how complete the axon is."""
    return strategies.map(_COMPLETENESS_OF).fillna("unknown").astype(object)


@dataclass(frozen=True)
class Proofreading:
    """Proofreading by root, one row a root."""

    # indexed by pt_root_id: strategy_axon, strategy_dendrite, axon_completeness,
    # axon_proofread, root_changed
    by_root: pd.DataFrame
    # roots with several entries, of which the more complete was taken
    n_repeated_roots: int


def _is_true(words: pd.Series) -> np.ndarray:
    return np.array([str(w).lower() in _TRUE_WORDS for w in words], dtype=bool)


def read_proofreading(table: pd.DataFrame, spec: TableSpec) -> Proofreading:
    """Read a proofreading table of either layout."""
    flags = {n: table[n] for n in ("status_axon", "status_dendrite") if n in table.columns}
    booleans = {n: v for n, v in flags.items() if pd.api.types.is_bool_dtype(v.dtype)}
    if booleans:  # a boolean column is as good as the words t and f
        table = table.assign(
            **{n: np.where(v.fillna(False).astype(bool), "t", "f") for n, v in booleans.items()}
        )
    typed = typed_table(table, "proofreading", spec)
    typed = typed[typed["pt_root_id"].notna()]
    frame = pd.DataFrame({"pt_root_id": typed["pt_root_id"].astype(np.int64)})
    for name, column in (
        ("strategy_axon", spec.axon_column),
        ("strategy_dendrite", spec.dendrite_column),
    ):
        words = typed[column].fillna("none")
        frame[name] = words.replace(dict(spec.strategy_words)).astype(object)
    frame["axon_completeness"] = completeness_of(frame["strategy_axon"])
    if "status_axon" in typed and spec.axon_column != "status_axon":
        frame["axon_proofread"] = _is_true(typed["status_axon"])
    else:
        frame["axon_proofread"] = (frame["strategy_axon"] != "none").to_numpy()
    # Status "t" without a strategy: merges were removed, nothing is said about extension.
    clean = frame["axon_proofread"] & (frame["axon_completeness"] == "none")
    frame.loc[clean, "axon_completeness"] = "clean"
    if "valid_id" in typed:
        valid = typed["valid_id"]
        changed = valid.notna() & (valid != typed["pt_root_id"])
        frame["root_changed"] = changed.fillna(False).to_numpy(dtype=bool)
    else:
        frame["root_changed"] = False
    rank = frame["axon_completeness"].map({w: i for i, w in enumerate(COMPLETENESS)})
    frame = frame.assign(rank=rank, has_dendrite=frame["strategy_dendrite"] != "none")
    n_repeated = int(frame.loc[frame.duplicated("pt_root_id"), "pt_root_id"].nunique())
    frame = frame.sort_values(["pt_root_id", "rank", "has_dendrite"], kind="stable")
    by_root = frame.drop_duplicates("pt_root_id", keep="last").set_index("pt_root_id")
    return Proofreading(by_root.drop(columns=["rank", "has_dendrite"]), n_repeated)


# Functional variables of the unit table: matched or not, the best scan, rates.


FunctionalMode = Literal["none", "match", "best_only"]

_BEST = ("pref_ori", "pref_dir", "gOSI", "gDSI", "cc_abs")
_MODES: dict[str, str] = {"match": "coregistration", "best_only": "functional_properties"}


def add_functional(
    units: xr.Dataset,
    tables: Mapping[str, pd.DataFrame],
    spec: ReleaseSpec,
    mode: FunctionalMode,
) -> xr.Dataset:
    """Add what the functional tables say of each unit."""
    if mode == "all":  # type: ignore[comparison-overlap]
        raise SchemaError(
            "functional='all' would repeat neurons that were recorded in several scans: the rows "
            "of all scans are in Release.functional(), and mx.tuning.collapse_scans makes one "
            "row per neuron"
        )
    if mode == "none":
        unknown = np.full(units.sizes["nucleus_id"], "unknown", dtype=object)
        units = units.assign(tuning_type=("nucleus_id", unknown, describe(UNITS["tuning_type"])))
        return units.assign_attrs(notes={})
    if mode not in _MODES:
        raise SchemaError(f"functional is {mode!r}, expected 'none', 'match' or 'best_only'")
    role = _MODES[mode]
    if role not in tables:
        raise SchemaError(
            f"functional={mode!r} needs a table in the role {role!r}"
            + (f" ({spec.tables[role]})" if spec.has(role) else ", and this release has none")
        )
    table = build_functional(
        tables[role],
        spec.table_of(role),
        datastack=spec.datastack,
        version=spec.version,
        role=role,
    )
    if mode == "best_only":
        absent = [n for n in _BEST if n not in table]
        if absent:
            raise SchemaError(
                f"{spec.name_of(role)} lacks {absent}, which functional='best_only' needs: "
                "use functional='match', or put another table in the role"
            )
        table = table[list(_BEST)]
        collapsed = collapse_scans(table, "best", by="cc_abs")
    else:
        collapsed = collapse_scans(table.drop_vars(list(table.data_vars)), "first")
    ids = units["nucleus_id"].values
    known = np.isin(ids, collapsed["nucleus_id"].values)
    tuning = np.where(known, "matched", "not_matched").astype(object)
    variables: dict[str, Any] = {"tuning_type": tuning}
    aligned = _align(collapsed, ids)
    names = ["n_scans", "n_scan_units"]
    if mode == "best_only":
        names += [*SCAN_KEYS, *_BEST]
    attrs = {n: {**collapsed[n].attrs, **describe(UNITS[n])} for n in names}
    result = units.assign(
        {
            **{n: ("nucleus_id", v, describe(UNITS[n])) for n, v in variables.items()},
            **{n: ("nucleus_id", aligned[n].values, attrs[n]) for n in names},
        }
    )
    outside = ~np.isin(table["nucleus_id"].values, ids)
    notes = {"scan_units_of_no_unit": int(outside.sum())}
    result = result.assign_attrs(functional_table=spec.name_of(role), notes=notes)
    return add_history(result, f"functional={mode!r} from {spec.name_of(role)}")


def _align(collapsed: xr.Dataset, ids: np.ndarray) -> xr.Dataset:
    fill = {
        n: np.nan if v.dtype.kind == "f" else -1 if n in SCAN_KEYS else 0
        for n, v in collapsed.data_vars.items()
    }
    return collapsed.reindex(nucleus_id=ids, fill_value=fill)


def add_rates(
    units: xr.Dataset,
    tuning_curves: xr.Dataset,
    collapse: Literal["mean", "best", "first"] = "mean",
    by: str | None = None,
) -> xr.Dataset:
    """Put rates by direction and orientation on the units."""
    require_same_release(("units", units), ("tuning_curves", tuning_curves))
    rates = [n for n in ("rate_ori", "rate_dir") if n in tuning_curves]
    if not rates:
        raise SchemaError(
            f"tuning_curves has {list(tuning_curves.data_vars)}, expected rate_ori or rate_dir"
        )
    if by is not None and by not in tuning_curves:
        raise UnknownLabelError(
            f"tuning_curves has no {by!r} to choose by, found {list(tuning_curves.data_vars)}: "
            "add it with mx.merge_table(curves, functional, [by], on='functional'), or merge the "
            "curves onto the functional rows and lead to units with mx.tuning.collapse_scans"
        )
    collapsed = collapse_scans(tuning_curves[rates + ([by] if by else [])], collapse, by)
    _require_one_convention(units, tuning_curves)
    aligned = _align(collapsed[[*rates, "n_rated"]], units["nucleus_id"].values)
    outside = ~np.isin(tuning_curves["nucleus_id"].values, units["nucleus_id"].values)
    angles = [d for d in ("orientation", "direction") if d in aligned.coords]
    # A DataArray leaves the attributes of its Dataset behind, and rates are passed on alone.
    tables = tuning_curves.attrs.get("source_tables")
    of = {} if tables is None else {"source_tables": tables}
    result = units.assign(
        {
            n: (
                aligned[n].dims,
                aligned[n].values,
                {**aligned[n].attrs, **describe(UNITS[n]), **of},
            )
            for n in [*rates, "n_rated"]
        }
    ).assign_coords({d: aligned.coords[d] for d in angles})
    table = str(tuning_curves.attrs.get("tuning_table", "unknown"))
    notes = {**units.attrs.get("notes", {}), "rated_scan_units_of_no_unit": int(outside.sum())}
    how = collapsed.attrs["collapse"]
    result = result.assign_attrs(notes=notes, tuning_table=table, collapse=how)
    return add_history(result, f"rates from {table}, {how}", source=(result, tuning_curves))


def _require_one_convention(units: xr.Dataset, tuning_curves: xr.Dataset) -> None:
    """Preferred angles and the angles of rates in one Dataset must mean the same."""
    angles: list[tuple[str, Any]] = [
        (f"units.{n}", v) for n, v in units.variables.items() if is_angle(v)
    ]
    angles += [
        (f"tuning_curves.{d}", tuning_curves[d])
        for d in ("orientation", "direction")
        if d in tuning_curves.coords
    ]
    require_same_angles(angles)


logger = logging.getLogger(__name__)

_NEEDED = ("nucleus", "celltype", "proofreading")


def select_nuclei(
    nuclei: pd.DataFrame,
    typed: pd.Index,
    *,
    multisoma: Literal["any", "typed"] = "any",
    untyped: Literal["drop", "keep"] = "drop",
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Choose the nuclei that are units, and count what is dropped and why."""
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
