"""From a table of synapses or of pairs to a labelled sparse connectivity Dataset."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern
from microns_xr.connectivity.assemble import Assembled, assemble
from microns_xr.connectivity.labels import (
    Lookup,
    as_ids,
    nucleus_ids,
    require_known,
    unit_roots,
)
from microns_xr.connectivity.synapse_table import Rows, SynapseTable, read_synapse_table
from microns_xr.errors import DroppedRowsWarning, SchemaError
from microns_xr.provenance import add_history, release_of, require_same_release
from microns_xr.schema import SCOPES, UNITS, describe

__all__ = ["build_connectivity", "nucleus_ids"]

logger = logging.getLogger(__name__)

_ROOT = UNITS["pt_root_id"]

_COUNTED_SYNAPSES = "synapses"
_COUNTED_ROWS = "rows of a table with one row a pair"


def build_connectivity(
    synapses: pd.DataFrame,
    units: xr.Dataset,
    *,
    pre: Any = None,
    post: Any = None,
    scope: str = "unknown",
    rows: Rows = "auto",
    shared_roots: Iterable[int] | np.ndarray | None = None,
    check_release: bool = True,
) -> xr.Dataset:
    """Build labelled sparse connectivity from a table of synapses or of pairs.

    Parameters
    ----------
    synapses : pandas.DataFrame
        One row a synapse, or one a pair. Partners are ``pre_pt_root_id`` and ``post_pt_root_id``,
        or ``pre_nucleus_id`` and ``post_nucleus_id``, which are taken where there are both;
        integers, with nulls where a partner is not known. ``size`` (or ``sum_size``) is in voxels
        of 4x4x40 nm. A table of pairs has ``n_syn`` (or ``synapse_count``), one of synapses an
        ``id``. A table without a row is legal: nobody is connected.
    units : xarray.Dataset
        Units of the same release: ``pt_root_id(nucleus_id)``.
    pre, post : collection of int, or units Dataset, optional
        Nucleus ids of the axes; by default all units. Rows of other units are left out.
    scope : {"complete", "requested", "unknown"}, optional
        Whether a pair that is not in the table was asked for, so that its zero says that no
        synapse was seen.
    rows : {"auto", "synapse", "pair"}, optional
        What a row is. With neither a count nor an ``id``, "auto" takes a table in which some pair
        is repeated for synapses; otherwise that cannot be known, each row counts as one synapse,
        and ``synapse_count.attrs["counts"]`` says so.
    shared_roots : collection of int, optional
        Root ids that hold several nuclei, to tell them from unknown ones in the counts; by default
        ``units.attrs["shared_roots"]`` if there is such.
    check_release : bool, optional
        False skips the check that `pre` and `post` are of the release of `units`.

    Returns
    -------
    xarray.Dataset
        ``synapse_size`` and ``synapse_count`` over (``pre_nucleus_id``, ``post_nucleus_id``),
        int64 `sparse.GCXS` on one pattern, compressed over post; coordinates ``pre_pt_root_id``
        and ``post_pt_root_id``. The axes are exactly the neurons
        asked for, sorted. A pair whose sizes sum to 0 stays. ``attrs["dropped_synapses"]`` counts
        the rows left out: ``pre_null``, ``pre_zero``, ``pre_shared``, ``pre_unknown``, the same
        for post, ``any_reason`` (rows, each once) and ``not_asked_for``;
        ``attrs["n_synapse_rows"]`` is all rows.

    Raises
    ------
    SchemaError
        If the table lacks columns, ids are no integers, sizes are negative or no whole numbers or
        sum to more than int64 holds, a synapse ``id`` is repeated, ``rows="pair"`` but a pair
        without a count is repeated, or `scope` is none of the three.
    UnknownLabelError
        If `pre` or `post` name neurons that are not among the units.
    ReleaseMismatchError
        If `units` does not say its release, or `pre` or `post` is of another.

    Warns
    -----
    DroppedRowsWarning
        If rows are dropped because a partner is no unit.

    Examples
    --------
    >>> from microns_xr.provenance import stamp_release
    >>> units = stamp_release(xr.Dataset({"pt_root_id": ("nucleus_id", [901, 902])},
    ...     coords={"nucleus_id": [11, 12]}), "minnie65_public", 1718)
    >>> synapses = pd.DataFrame({"id": [1, 2, 3], "pre_pt_root_id": [901, 901, 902],
    ...     "post_pt_root_id": [902, 902, 901], "size": [3, 4, 5]})
    >>> build_connectivity(synapses, units).synapse_size.data.todense()
    array([[0, 7],
           [5, 0]])
    """
    if scope not in SCOPES:
        raise SchemaError(f"scope is {scope!r}, expected one of {SCOPES}")
    datastack, version = release_of(units, "units")
    table = read_synapse_table(synapses, rows)
    unit_ids = as_ids(units, "units")
    axes = {
        side: _axis(ids, units, unit_ids, side, check_release)
        for side, ids in (("pre", pre), ("post", post))
    }
    lookup, positions = _partner_lookup(units, unit_ids, table.labels)
    shared = units.attrs.get("shared_roots", ()) if shared_roots is None else shared_roots
    shared = as_ids(shared, "shared_roots")

    codes, dropped = {}, {}
    lost = np.zeros(table.n_rows, dtype=bool)
    for side in ("pre", "post"):
        partner = lookup.find(table.ids[side])
        absent = partner < 0
        lost |= absent
        dropped.update(_reasons(table, side, absent, shared))
        # From a row of the lookup to the axis; one more entry, so that -1 stays -1.
        on_axis = np.full(positions.size + 1, -1, dtype=np.int32)
        on_axis[:-1] = Lookup(axes[side], side).find(unit_ids[positions])
        codes[side] = on_axis[partner]
    dropped["any_reason"] = int(lost.sum())
    left_out = (codes["pre"] < 0) | (codes["post"] < 0)
    dropped["not_asked_for"] = int(left_out.sum()) - dropped["any_reason"]

    matrix = assemble(
        codes["post"], codes["pre"], table.size, table.count, axes["post"].size, axes["pre"].size
    )
    n_kept = table.n_rows - int(left_out.sum())
    counted = _what_is_counted(synapses, table, matrix, n_kept)
    shape = (axes["pre"].size, axes["post"].size)
    dataset = connectivity_dataset(
        matrix.size,
        matrix.count,
        make_pattern(matrix.indices, matrix.indptr, shape, "post"),
        axes["pre"],
        axes["post"],
        datastack=datastack,
        version=version,
        scope=scope,
        attrs={"n_synapse_rows": table.n_rows, "dropped_synapses": dropped},
    )
    dataset["synapse_count"].attrs["counts"] = counted
    dataset = dataset.assign_coords(_roots(units, unit_ids, axes))
    _report(dropped, table, matrix, counted)
    return add_history(dataset, f"build_connectivity(scope={scope!r}, rows={rows!r})")


def _axis(
    ids: Any, units: xr.Dataset, unit_ids: np.ndarray, side: str, check_release: bool
) -> np.ndarray:
    """Return the sorted ids of an axis, all of them units."""
    if ids is None:
        return np.sort(unit_ids)
    if isinstance(ids, xr.Dataset | xr.DataArray):
        named = (("units", units), (side, ids))
        require_same_release(*named, check_release=check_release)
    wanted = np.unique(as_ids(ids, side))
    require_known(
        wanted,
        Lookup(unit_ids, "nucleus_id of the units").find(wanted),
        side,
        "nucleus_id of the units",
        "take the ids from units.nucleus_id; mx.nucleus_ids(units, root_ids) makes them of roots",
    )
    return wanted


def _roots(
    units: xr.Dataset, unit_ids: np.ndarray, axes: dict[str, np.ndarray]
) -> dict[str, tuple[str, np.ndarray, dict[str, Any]]]:
    """Return the root ids of both axes, so that a table of pairs can name them."""
    if "pt_root_id" not in units:
        return {}
    roots, lookup = units["pt_root_id"].values, Lookup(unit_ids, "nucleus_id of the units")
    return {
        f"{side}_pt_root_id": (f"{side}_nucleus_id", roots[lookup.find(ids)], describe(_ROOT))
        for side, ids in axes.items()
    }


def _partner_lookup(
    units: xr.Dataset, unit_ids: np.ndarray, labels: str
) -> tuple[Lookup, np.ndarray]:
    """Return a lookup of the ids that synapses name, and the unit behind each of its labels."""
    if labels == "nucleus_id":
        return Lookup(unit_ids, "nucleus_id of the units"), np.arange(unit_ids.size)
    roots, positions = unit_roots(units)
    return Lookup(roots, "pt_root_id of the units"), positions


def _reasons(
    table: SynapseTable, side: str, absent: np.ndarray, shared: np.ndarray
) -> dict[str, int]:
    null = int(table.null[side].sum())
    strangers = table.ids[side][absent & ~table.null[side]]
    zero = int((strangers == 0).sum())
    n_shared = int(np.isin(strangers, shared).sum()) if table.labels == "pt_root_id" else 0
    return {
        f"{side}_null": null,
        f"{side}_zero": zero,
        f"{side}_shared": n_shared,
        f"{side}_unknown": strangers.size - zero - n_shared,
    }


def _what_is_counted(
    synapses: pd.DataFrame, table: SynapseTable, matrix: Assembled, n_kept: int
) -> str:
    if table.rows == "synapse" or table.count is not None:
        return _COUNTED_SYNAPSES
    repeated = n_kept > matrix.indices.size
    if table.rows == "pair":
        if repeated:
            raise SchemaError(
                f"rows is 'pair' but {n_kept} rows hold {matrix.indices.size} pairs, expected each "
                "pair once: pass rows='synapse' if they are synapses, or add a column n_syn"
            )
        return _COUNTED_ROWS
    if not repeated and n_kept < table.n_rows:  # a pair may be repeated among the other rows
        partners = [f"{side}_{table.labels}" for side in ("pre", "post")]
        repeated = bool(synapses.duplicated(partners).any())
    return _COUNTED_SYNAPSES if repeated else _COUNTED_ROWS


def _report(dropped: dict[str, int], table: SynapseTable, matrix: Assembled, counted: str) -> None:
    reasons = ", ".join(
        f"{n} {reason.replace('_', ' ')}"
        for reason, n in dropped.items()
        if n and reason not in ("any_reason", "not_asked_for")
    )
    logger.info(
        "connectivity: %d pairs of %d rows; %d rows dropped (%s), %d not asked for; counts are %s",
        matrix.indices.size,
        table.n_rows,
        dropped["any_reason"],
        reasons or "none",
        dropped["not_asked_for"],
        counted,
    )
    if dropped["any_reason"]:
        warnings.warn(
            f"{dropped['any_reason']} of {table.n_rows} rows of synapses are dropped, because a "
            f"partner is no unit: {reasons}; see .attrs['dropped_synapses']",
            DroppedRowsWarning,
            stacklevel=3,
        )
