"""The troubles of a synthetic release, from what was drawn and not from its tables."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd

from microns_xr.releases import release_spec
from microns_xr.sources.demo import CLASSES, TYPES, DemoSource


def planted(source: DemoSource) -> SimpleNamespace:
    """Return what a release holds on purpose: ids are sorted, unless they are in pairs or keys."""
    return SimpleNamespace(**_nuclei(source), **_units(source), **_synapses(source))


def _nuclei(source: DemoSource) -> dict:
    cells, roots = source._cells, source._cells.roots(source.version)
    nuclei = cells.nucleus_id
    # In 661 only neurons are typed.
    untyped = cells.untyped | (~cells.is_neuron if source.version == 661 else False)
    has_areas = "brain_area" in release_spec(source.version).tables
    in_group = [np.flatnonzero(cells.group == i) for i in range(cells.group.max() + 1)]
    shared = {int(roots[rows[0]]): np.sort(nuclei[rows]) for rows in in_group}
    one_typed = [roots[rows[0]] for rows in in_group if (~untyped[rows]).sum() == 1]
    wrong = source._wrong
    return {
        "root_zero": np.sort(nuclei[cells.root_zero]),
        "untyped": np.sort(nuclei[untyped]),
        "shared_roots": shared,
        "shared_one_typed": np.sort(one_typed),
        "no_area": np.sort(nuclei[cells.no_area] if has_areas else nuclei),
        "no_fine_type": np.sort(nuclei[cells.no_fine_type & ~untyped]),
        # Nuclei whose type the metamodel gets wrong, to their true class and type.
        "corrected": {
            int(nuclei[row]): (CLASSES[cells.class_code[row]], TYPES[cells.type_code[row]])
            for row in wrong
        },
        # Which of them have two corrections: each fourth, and each fourth after the first.
        "corrected_twice": np.sort(nuclei[wrong[np.arange(len(wrong)) % 4 < 2]]),
    }


def _units(source: DemoSource) -> dict:
    units = source.recorded_units
    listed = units.in_manual(source.version)
    inside = listed & (units.cell >= 0)
    keys = pd.DataFrame({name: getattr(units, name) for name in ("session", "scan_idx", "unit_id")})
    matches = keys.assign(nucleus_id=units.target_id)[inside]
    in_scan = matches.groupby(["nucleus_id", "session", "scan_idx"]).size()
    n_scans = in_scan.groupby("nucleus_id").size()

    def sorted_keys(rows: np.ndarray) -> np.ndarray:
        return keys[rows].sort_values(list(keys)).to_numpy()

    return {
        "five_scans": n_scans.index[n_scans == 5].to_numpy(),
        "twice_in_scan": in_scan.index[in_scan > 1].get_level_values(0).unique().to_numpy(),
        "coregistered_no_nucleus": np.sort(units.target_id[listed & (units.cell < 0)]),
        # (session, scan_idx, unit_id) of manual matches that are not in the tuning table, of those
        # not in the properties table, and of rows of the tuning table without a manual match.
        "units_without_rates": sorted_keys(listed & ~units.rated),
        "units_without_properties": sorted_keys(listed & ~units.has_properties),
        "rates_without_coregistration": sorted_keys(units.rated & ~listed),
    }


def _synapses(source: DemoSource) -> dict:
    cells, synapses = source._cells, pd.DataFrame({**source._synapses, "voxel": 0})
    found: dict = {"synapses_size_zero": synapses.id[synapses["size"] == 0].to_numpy()}
    usable = np.ones(len(synapses), dtype=bool)
    for end in ("pre", "post"):
        cell = synapses[end].to_numpy()
        inside, row = cell >= 0, np.maximum(cell, 0)
        zero = (cell == -1) | (inside & cells.root_zero[row])
        shared = inside & (cells.group[row] >= 0) & ~cells.root_zero[row]
        for word, flags in (("zero", zero), ("shared", shared), ("unknown", cell < -1)):
            found[f"synapses_{end}_{word}"] = synapses.id[flags].to_numpy()
            usable &= ~flags
    # Between nuclei with a root of their own.
    synapses = synapses[usable]
    found["synapses_autapses"] = synapses.id[synapses.pre == synapses.post].to_numpy()
    pairs = synapses.groupby(["pre", "post"])["size"].agg(["size", "sum"])
    nuclei = np.stack([cells.nucleus_id[pairs.index.get_level_values(i)] for i in (0, 1)], axis=1)
    found["n_pairs"] = len(pairs)
    found["pairs_several"] = nuclei[pairs["size"] > 1]
    found["pairs_size_zero"] = nuclei[pairs["sum"] == 0]
    return found
