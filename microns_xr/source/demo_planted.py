"""The troubles of a synthetic release, listed, so that results can be checked against them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from microns_xr.source.demo_cells import Cells

__all__ = ["Planted", "planted_of"]


@dataclass(frozen=True)
class Planted:
    """What a synthetic release holds on purpose, so that a result can be checked against it.

    Arrays of ids are int64 and sorted unless said otherwise; a count is the length of one.

    Attributes
    ----------
    root_zero : numpy.ndarray
        Nuclei with root 0.
    untyped : numpy.ndarray
        Nuclei without a row in the classification table (in 661 all glia are).
    shared_roots : dict of int to numpy.ndarray
        Root to the nuclei that share it, at least two.
    shared_one_typed : numpy.ndarray
        Roots among them of which one nucleus alone is typed.
    no_area : numpy.ndarray
        Nuclei without an area; all of them where there is no area table.
    no_fine_type : numpy.ndarray
        Nuclei that are classified but have no type (661 only).
    upper_case_types : numpy.ndarray
        Nuclei whose type is written ``Oligo`` or ``Astrocyte`` and not in lower case.
    corrected : dict of int to tuple of str
        Nucleus to its class and type after all corrections (1718 only).
    corrected_twice : numpy.ndarray
        Nuclei with two corrections that disagree.
    proofread_twice : numpy.ndarray
        Roots listed twice in proofreading; the more complete entry is fully extended.
    root_changed : numpy.ndarray
        Roots whose ``valid_id`` is another root.
    valid_id_null : numpy.ndarray
        Roots without a ``valid_id``.
    proofread_no_nucleus : numpy.ndarray
        Roots in proofreading that are no nucleus.
    five_scans : numpy.ndarray
        Nuclei in five scans in the manual coregistration.
    twice_in_scan : numpy.ndarray
        Nuclei with two units in one scan.
    coregistered_no_nucleus : numpy.ndarray
        ``target_id`` of manual matches outside of the nucleus table; a third has root 0.
    units_without_rates, units_without_properties, rates_without_coregistration : numpy.ndarray
        Shape (n, 3): session, scan_idx, unit_id of manual matches without a row in the tuning
        table, without one in the properties table, and of tuning rows without a manual match.
    synapses_pre_zero, synapses_post_zero : numpy.ndarray
        Synapses with root 0 at that end.
    synapses_pre_unknown, synapses_post_unknown : numpy.ndarray
        Synapses whose root at that end is no nucleus.
    synapses_pre_shared, synapses_post_shared : numpy.ndarray
        Synapses with a shared root at that end. One synapse may be in several of these six.
    synapses_autapses : numpy.ndarray
        Synapses of a nucleus onto itself, both ends with a root of their own.
    synapses_size_zero : numpy.ndarray
        Synapses of size 0.
    pairs_several, pairs_size_zero : numpy.ndarray
        Shape (n, 2): nucleus ids (pre, post) of pairs with several synapses, and of pairs whose
        sizes sum to 0; of nuclei with a positive root of their own, typed or not.
    n_pairs : int
        Number of such pairs in all.
    """

    root_zero: np.ndarray
    untyped: np.ndarray
    shared_roots: dict[int, np.ndarray]
    shared_one_typed: np.ndarray
    no_area: np.ndarray
    no_fine_type: np.ndarray
    upper_case_types: np.ndarray
    corrected: dict[int, tuple[str, str]]
    corrected_twice: np.ndarray
    proofread_twice: np.ndarray
    root_changed: np.ndarray
    valid_id_null: np.ndarray
    proofread_no_nucleus: np.ndarray
    five_scans: np.ndarray
    twice_in_scan: np.ndarray
    coregistered_no_nucleus: np.ndarray
    units_without_rates: np.ndarray
    units_without_properties: np.ndarray
    rates_without_coregistration: np.ndarray
    synapses_pre_zero: np.ndarray
    synapses_post_zero: np.ndarray
    synapses_pre_unknown: np.ndarray
    synapses_post_unknown: np.ndarray
    synapses_pre_shared: np.ndarray
    synapses_post_shared: np.ndarray
    synapses_autapses: np.ndarray
    synapses_size_zero: np.ndarray
    pairs_several: np.ndarray
    pairs_size_zero: np.ndarray
    n_pairs: int

    def counts(self) -> dict[str, int]:
        """Return the number of each."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v if isinstance(v, int) else len(v) for name, v in values.items()}


def _shared_roots(cells: Cells, version: int) -> dict[int, np.ndarray]:
    roots = cells.roots(version)
    rows = np.flatnonzero((cells.group >= 0) & (roots > 0))
    rows = rows[np.lexsort([cells.nucleus_id[rows], roots[rows]])]
    shared, first = np.unique(roots[rows], return_index=True)
    members = np.split(cells.nucleus_id[rows], first[1:])
    return dict(zip(shared.tolist(), members, strict=True))


def planted_of(cells: Cells, version: int, has_areas: bool, drawn: dict[str, Any]) -> Planted:
    """Put together what the cells hold and what the tables of a version add.

    Parameters
    ----------
    cells : Cells
        The cells.
    version : int
        The version.
    has_areas : bool
        Whether it has an area table.
    drawn : dict
        The other attributes of `Planted`, as the makers of the tables return them; those of tables
        the version lacks may be absent.

    Returns
    -------
    Planted
        The list.
    """
    none = np.zeros(cells.n, dtype=bool)
    only_neurons = version < 943
    untyped = cells.untyped | ~cells.is_neuron if only_neurons else cells.untyped
    no_fine = cells.no_fine_type & ~untyped if only_neurons else none
    shared = _shared_roots(cells, version)
    typed = set(cells.nucleus_id[~untyped].tolist())
    one_typed = [root for root, ids in shared.items() if len(typed.intersection(ids.tolist())) == 1]
    nothing = np.array([], dtype=np.int64)
    absent: dict[str, Any] = {
        "upper_case_types": nothing,
        "corrected": {},
        "corrected_twice": nothing,
    }
    return Planted(
        root_zero=np.sort(cells.nucleus_id[cells.root_zero]),
        untyped=np.sort(cells.nucleus_id[untyped]),
        shared_roots=shared,
        shared_one_typed=np.array(one_typed, dtype=np.int64),
        no_area=np.sort(cells.nucleus_id[cells.no_area if has_areas else ~none]),
        no_fine_type=np.sort(cells.nucleus_id[no_fine]),
        **{**absent, **drawn},
    )
