"""Cell types: classes, fine types and corrections, with the same words in every release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from microns_xr.releases import ReleaseSpec, TableSpec
from microns_xr.tables import latest_by, typed_table

__all__ = ["CellTypes", "harmonise", "read_cell_types"]


_CLASSES = {w: w for w in ("excitatory_neuron", "inhibitory_neuron", "nonneuron")}


@dataclass(frozen=True)
class CellTypes:
    """Classification by nucleus.

    Attributes
    ----------
    by_nucleus : pandas.DataFrame
        Indexed by nucleus id: classification_system, cell_type, cell_type_raw; text.
    table : str
        Name of the table the types come from.
    counts : dict of str to int
        What was harmonised, contradicted, corrected.
    """

    by_nucleus: pd.DataFrame
    table: str
    counts: dict[str, int]


def harmonise(words: pd.Series, mapping: Mapping[str, str], known: Mapping[str, str]) -> pd.Series:
    """Give words that differ between releases, or in case only, one spelling.

    Parameters
    ----------
    words : pandas.Series
        Text with None where there is nothing.
    mapping : mapping of str to str
        Word of the table to the word of the data model.
    known : mapping of str to str
        Lower-case spelling to the spelling of the data model.

    Returns
    -------
    pandas.Series
        Words; spellings that are not known take the most frequent one of the column, None becomes
        "unknown".

    Examples
    --------
    >>> words = pd.Series(["5P-PT", "Oligo", "oligo", "odd", "Odd", "odd", None])
    >>> harmonise(words, {"5P-PT": "5P-ET"}, {"oligo": "oligo"}).tolist()
    ['5P-ET', 'oligo', 'oligo', 'odd', 'odd', 'odd', 'unknown']
    """
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
    """Read classification, fine types and corrections of a release.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        By role: ``celltype``, and where the release has them ``celltype_fine`` and
        ``celltype_corrections``.
    spec : ReleaseSpec
        The release.

    Returns
    -------
    CellTypes
        One row a nucleus of the classification table. A nucleus listed twice counts once: the
        latest ``created``, then the highest ``id``, wins; the same rule chooses among corrections.
        Corrections of nuclei that the classification does not list are counted and left out.

    Raises
    ------
    SchemaError
        If columns are missing or of the wrong type, or rows contradict each other without a date.
    """
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
