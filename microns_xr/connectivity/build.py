"""Build connectivity and labelled single synapses from tables of synapses or of pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import as_ids, require_columns, require_once, tidy_columns, whole_numbers
from microns_xr.connectivity.arrays import as_pairs, connectivity_dataset, make_pattern
from microns_xr.connectivity.labels import Lookup, require_known, unit_roots
from microns_xr.connectivity.sort import sum_pairs
from microns_xr.errors import SchemaError, require_one_of, warn_of_dropped_rows
from microns_xr.frames import positions_um
from microns_xr.provenance import (
    RELEASE_COORDS,
    add_history,
    release_of,
    require_same_release,
    text_lines,
)
from microns_xr.releases import space_of, space_of_data
from microns_xr.schema import AXES, SCOPES, UNITS, describe
from microns_xr.tables import INVALID, valid_rows

logger = logging.getLogger(__name__)

Rows = Literal["auto", "synapse", "pair"]

_NAME = "synapses"
# The column names of CAVE, of exports of this package and of published tables of pairs.
_SIZES = ("size", "sum_size", "synapse_size")
_COUNTS = ("n_syn", "synapse_count")
_POSITION = "ctr_pt_position"


@dataclass(frozen=True)
class SynapseTable:
    """A table of synapses or of pairs as arrays with one value per row."""

    ids: dict[str, np.ndarray]  # int64 ids of "pre" and "post"; 0 where missing
    null: dict[str, np.ndarray]  # bool, rows without a partner
    labels: str  # what the ids are: "nucleus_id" or "pt_root_id"
    size: np.ndarray  # int64, voxels
    count: np.ndarray | None  # int64, synapses per row; None without such a column
    rows: Rows  # what a row is; "auto" if the columns do not determine it


def read_synapse_table(table: pd.DataFrame, rows: Rows = "auto") -> SynapseTable:
    """Check a table of synapses or of pairs and return its columns as arrays."""
    table = tidy_columns(table, _NAME)
    require_one_of("rows", rows, ("auto", "synapse", "pair"))
    columns = list(map(str, table.columns))
    # Prefer nucleus ids: they stay valid when the segment of a neuron is edited.
    kinds = ("nucleus_id", "pt_root_id")
    labels = next((k for k in kinds if {f"pre_{k}", f"post_{k}"} <= set(columns)), None)
    size_name, count_name = _one_of(columns, _SIZES), _one_of(columns, _COUNTS)
    if labels is None or size_name is None:
        raise SchemaError(
            f"synapses has the columns {columns}, expected pre_pt_root_id and post_pt_root_id, or "
            f"pre_nucleus_id and post_nucleus_id, and one of {_SIZES}: rename them"
        )
    used = {f"pre_{labels}", f"post_{labels}", "id", *_SIZES, *_COUNTS} & set(columns)
    require_columns(table, _NAME, used)  # exactly once each
    ids, null = {}, {}
    for side in ("pre", "post"):
        column = table[f"{side}_{labels}"]
        null[side] = column.isna().to_numpy(dtype=bool)
        ids[side] = as_ids(column, f"{table.attrs.get('table', _NAME)}.{column.name}", missing=0)
    size = whole_numbers(table[size_name], f"{_NAME}.{size_name}", least=0)
    count = None
    if count_name is not None:
        count = whole_numbers(table[count_name], f"{_NAME}.{count_name}", least=1)
    if rows == "synapse" and count is not None:
        raise SchemaError(
            f"rows is 'synapse' but synapses has the column {count_name}, which counts the "
            "synapses of a pair: drop the column, or pass rows='pair'"
        )
    # Only single synapses have ids, or one position per row.
    if rows != "pair" and count is None:
        if "id" in columns:
            _unique_ids(table["id"])
        if {"id", _POSITION, f"{_POSITION}_x"} & set(columns):
            rows = "synapse"
    if rows == "auto" and size_name != "size":  # a sum over the synapses of a pair
        rows = "pair"
    return SynapseTable(ids, null, labels, size, count, "pair" if count is not None else rows)


def _one_of(columns: list[str], names: tuple[str, ...]) -> str | None:
    present = [name for name in names if name in columns]
    if len(present) > 1:
        raise SchemaError(f"synapses has the synonymous columns {present}: drop all but one")
    return present[0] if present else None


def _unique_ids(column: pd.Series) -> np.ndarray:
    ids = as_ids(column, f"{_NAME}.{column.name}")
    require_once(ids, f"{_NAME}.{column.name}")
    return ids


def build_connectivity(
    synapses: pd.DataFrame,
    units: xr.Dataset,
    *,
    pre: Any = None,
    post: Any = None,
    scope: str | None = None,
    rows: Rows = "auto",
    shared_roots: Iterable[int] | np.ndarray | None = None,
) -> xr.Dataset:
    """Build labelled sparse connectivity from a table of synapses or of pairs.

    Parameters
    ----------
    synapses : pandas.DataFrame
        One row per synapse, or one per pair. Partners are ``pre_nucleus_id`` and
        ``post_nucleus_id`` if present, else ``pre_pt_root_id`` and ``post_pt_root_id``; integers,
        null where a partner is not known. ``size`` (or ``sum_size``) is in voxels. A
        table of pairs has ``n_syn`` (or ``synapse_count``), a table of synapses an ``id``. The
        table may be empty. A table of pairs must not repeat a pair.
    units : xarray.Dataset
        Units of the same release: ``pt_root_id(nucleus_id)``.
    pre, post : collection of int, or units Dataset, optional
        Nucleus ids of the axes, of neurons whose synapses were asked for. Rows of other units are
        dropped. By default, the axis has all units if `scope` is "complete" or "requested", and
        only the units with a connection in the table if it is "unknown".
    scope : {"complete", "requested", "unknown"}, optional
        What a pair that is not in the table means. "complete" (the table has all synapses of the
        release) and "requested" (it has all between the neurons of the axes): it has no synapse.
        "unknown": it may have some. By default "requested" if both `pre` and `post` are passed,
        else "unknown".
    rows : {"auto", "synapse", "pair"}, optional
        What a row is. "auto" takes rows with an ``id``, a ``ctr_pt_position`` or repeated pairs for
        synapses, and else for pairs; repeated pairs without either are logged, and an error if
        their sizes are repeated as well, as in overlapping files of pairs.
    shared_roots : collection of int, optional
        Root ids with several nuclei, which are counted apart from unknown ones; by default
        ``units.attrs["shared_roots"]``, as `Release.units` records them. If they are not known,
        they count as unknown, and there is no count of shared ones.

    Returns
    -------
    xarray.Dataset
        ``synapse_size`` and, unless the table has one row per pair and no count,
        ``synapse_count`` over (``pre_nucleus_id``, ``post_nucleus_id``),
        int64 `sparse.GCXS` on one pattern, compressed over post; coordinates ``pre_pt_root_id``
        and ``post_pt_root_id``; the scalar coordinate ``scope``. Axes are sorted. A pair whose
        sizes sum to 0 is stored. ``attrs["dropped_synapses"]`` counts the dropped rows:
        ``pre_null``, ``pre_zero``, ``pre_shared``, ``pre_unknown``, the same for post,
        ``any_reason`` (each row once) and ``not_asked_for``; ``attrs["n_synapse_rows"]`` counts
        all rows.

    Raises
    ------
    SchemaError
        If the table lacks columns, ids are not integers, sizes are negative, not whole numbers or
        sum to more than int64 holds, a synapse ``id`` is repeated, a table of pairs repeats a pair,
        or `scope` is not one of the three.
    UnknownLabelError
        If `pre` or `post` contain neurons that are not among the units.
    ReleaseMismatchError
        If `units` does not record its release, or `pre` or `post` are of another one.

    Warns
    -----
    DroppedRowsWarning
        If all rows are dropped because a partner is not a unit.

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
    choices = {"pre": pre, "post": post}
    if scope is None:
        scope = "unknown" if pre is None or post is None else "requested"
    require_one_of("scope", scope, SCOPES)
    synapses = valid_rows(synapses, _NAME)
    table = read_synapse_table(synapses, rows)
    # Nucleus ids mean the same in every release, root ids only in theirs.
    by_root = table.labels == "pt_root_id"
    stated = by_root or all(c in units.coords for c in RELEASE_COORDS)
    release = release_of(units, "units") if stated else None
    unit_ids = as_ids(units, "units")
    by_nucleus = Lookup(unit_ids, "nucleus_id of the units")
    axes = {"pre": np.sort(unit_ids), "post": np.sort(unit_ids)}
    for side, ids in choices.items():
        if ids is not None:
            axes[side] = _axis_ids(ids, units, by_nucleus, side)
    # The lookup of partner ids, and the nucleus id of each of its labels.
    lookup, nuclei = by_nucleus, unit_ids
    if by_root:
        roots, have_root = unit_roots(units)
        lookup, nuclei = Lookup(roots, "pt_root_id of the units"), unit_ids[have_root]
    if shared_roots is None:
        shared_roots = units.attrs.get("shared_roots")
    shared = None if shared_roots is None else as_ids(shared_roots, "shared_roots")

    dropped: dict[str, int] = {}
    n_rows = table.size.size
    # Partners as positions in the lookup; -1 in rows without a unit on either side.
    partners = {side: lookup.find(table.ids[side]) for side in choices}
    without_unit = (partners["pre"] < 0) | (partners["post"] < 0)
    for side, partner in partners.items():
        dropped |= _reasons(table, side, partner < 0, shared)
        partner[without_unit] = -1
    codes: dict[str, np.ndarray] = {}
    for side, partner in partners.items():
        # What a bare file says nothing about must not look like a neuron without synapses.
        if scope == "unknown" and choices[side] is None:
            named = np.zeros(nuclei.size + 1, dtype=bool)  # the extra entry is for -1
            named[partner] = True
            axes[side] = np.sort(nuclei[named[:-1]])
        # From positions in the lookup to positions on the axis; the extra entry maps -1 to -1.
        on_axis = np.append(Lookup(axes[side], side).find(nuclei), np.int32(-1))
        codes[side] = on_axis[partner]
    # Rows of known units that were not requested are counted apart from rows without a unit.
    left_out = (codes["pre"] < 0) | (codes["post"] < 0)
    dropped["any_reason"] = int(without_unit.sum())
    dropped["not_asked_for"] = int(left_out.sum()) - dropped["any_reason"]
    if INVALID in synapses.attrs:
        dropped["not_valid"] = synapses.attrs[INVALID]

    shape = (axes["pre"].size, axes["post"].size)
    matrix = sum_pairs(codes["post"], codes["pre"], table.size, table.count, *shape[::-1])
    weights = {"synapse_size": matrix.sizes}
    if _are_synapses(synapses, table, matrix.indices.size, int((~left_out).sum())):
        weights["synapse_count"] = matrix.counts
    dataset = connectivity_dataset(
        weights,
        make_pattern(matrix.indices, matrix.indptr, shape, "post"),
        axes["pre"],
        axes["post"],
        scope=scope,
        release=release,
        attrs={"n_synapse_rows": n_rows, "dropped_synapses": text_lines(dropped)},
    )
    space = space_of_data(units)
    if space != space_of(release[0] if release else ""):  # which single synapses could not look up
        dataset["synapse_size"].attrs["units"] = space.size_units
        dataset.attrs.update(space.record())
    # Root ids, too, by which exported tables and single synapses can be matched.
    if "pt_root_id" in units:
        for side, ids in axes.items():
            roots = units["pt_root_id"].values[by_nucleus.find(ids)]
            root = (f"{side}_nucleus_id", roots, describe(UNITS["pt_root_id"]))
            dataset.coords[f"{side}_pt_root_id"] = root
    counted = "synapse_count" in weights
    note = "" if counted else "; one row per pair, so synapses are not counted"
    report_rows(matrix.indices.size, n_rows, dropped, note)
    return add_history(dataset, f"build_connectivity(scope={scope!r}, rows={rows!r})")


def report_rows(n_pairs: int, n_rows: int, dropped: Mapping[str, int], note: str = "") -> None:
    """Log how many rows were dropped and why; that all were dropped is worth a warning."""
    if not n_rows:
        return
    n_dropped, n_other = dropped["any_reason"], dropped["not_asked_for"]
    reasons = ", ".join(
        f"{n} {reason.replace('_', ' ')}"
        for reason, n in dropped.items()
        if n and reason not in ("any_reason", "not_asked_for", "not_valid")
    )
    text = "connectivity: %d pairs of %d rows; %d rows dropped (%s), %d not requested%s"
    logger.info(text, n_pairs, n_rows, n_dropped, reasons or "none", n_other, note)
    if n_dropped == n_rows:
        warn_of_dropped_rows(
            f"none of the {n_rows} rows of synapses is between two units ({reasons}): pass all "
            "units, and of the release of the synapses"
        )


def _axis_ids(ids: Any, units: xr.Dataset, by_nucleus: Lookup, side: str) -> np.ndarray:
    """Return the sorted ids of an axis, after checking that all of them are units."""
    if isinstance(ids, xr.Dataset | xr.DataArray):
        require_same_release(("units", units), (side, ids))
    labels = np.unique(as_ids(ids, side))
    where = "nucleus_id of the units"
    hint = "take the ids from units.nucleus_id, not from pt_root_id"
    require_known(labels, by_nucleus.find(labels), side, where, hint)
    return labels


def _reasons(
    table: SynapseTable, side: str, absent: np.ndarray, shared: np.ndarray | None
) -> dict[str, int]:
    """Count why rows have no unit on one side; shared roots only if they are known."""
    # Nulls were read as 0, but null means "not known" and 0 means "no segment".
    no_unit = table.ids[side][absent & ~table.null[side]]
    counts = {"null": int(table.null[side].sum()), "zero": int((no_unit == 0).sum())}
    if shared is not None:
        by_root = table.labels == "pt_root_id"
        counts["shared"] = int(np.isin(no_unit, shared).sum()) if by_root else 0
    counts["unknown"] = no_unit.size - counts["zero"] - counts.get("shared", 0)
    return {f"{side}_{reason}": n for reason, n in counts.items()}


def _are_synapses(synapses: pd.DataFrame, table: SynapseTable, n_pairs: int, n_summed: int) -> bool:
    """Whether synapses were counted: rows are synapses, or the table counts those of each pair."""
    if table.rows == "synapse":
        return True
    # A repeated pair shows that rows are synapses.
    if table.rows == "pair":
        if n_summed > n_pairs:
            raise repeated_pairs(n_summed, n_pairs)
        return table.count is not None
    if n_summed == n_pairs == table.size.size:
        return False
    # Repeated pairs among the dropped rows show it, too.
    rows = synapses[[f"pre_{table.labels}", f"post_{table.labels}"]]
    if n_repeated := int(rows.duplicated().sum()):
        n_same_size = int(rows.assign(size=table.size).duplicated().sum())
        require_synapses(n_same_size, n_repeated, len(rows))
    return n_repeated > 0


def require_synapses(n_same_size: int, n_repeated: int, n_rows: int) -> None:
    """Raise if rows that repeat a pair all repeat its size too, else log what they are read as."""
    if n_same_size == n_repeated:
        raise overlapping_files(n_repeated, n_rows)
    logger.warning(
        "rows of synapses have neither ids nor positions, and %d of %d repeat a pair of neurons: "
        "each row is read as a synapse; rows='synapse' states it, rows='pair' if pairs must not "
        "be repeated",
        n_repeated, n_rows,
    )  # fmt: skip


def overlapping_files(n_repeated: int, n_rows: int, name: str = _NAME) -> SchemaError:
    """Return the error to raise for rows that all repeat both a pair and its weights."""
    return SchemaError(
        f"{n_repeated} of {n_rows} rows of {name} repeat a pair of neurons with the same size or "
        "weights, as in overlapping files of pairs, expected each pair, or each synapse, once: use "
        ".drop_duplicates(), sum them with .groupby([...]).sum(), or pass rows='synapse' if they "
        "are synapses"
    )


def repeated_pairs(n_rows: int, n_pairs: int) -> SchemaError:
    """Return the error to raise for a table of pairs that repeats some."""
    return SchemaError(
        f"rows is 'pair' but {n_rows} rows hold {n_pairs} pairs, expected each pair once: if files "
        "overlap, drop the duplicates; if each row has some of the synapses of its pair, sum them "
        "with .groupby([...]).sum(); if rows are synapses, drop the column that counts them, and "
        "pass rows='synapse'"
    )


def build_synapses(
    synapses: pd.DataFrame,
    connectivity: xr.Dataset,
    resolution_nm: tuple[float, float, float] | None = None,
) -> xr.Dataset:
    """Label single synapses by the neurons of a connectivity Dataset.

    Parameters
    ----------
    synapses : pandas.DataFrame
        One row per synapse: ``id``, ``pre_pt_root_id``, ``post_pt_root_id``, ``size``,
        ``ctr_pt_position`` (text such as ``[x y z]``, or split into three columns).
    connectivity : xarray.Dataset
        Connectivity of the same release, with the root ids of both axes.
    resolution_nm : tuple of float, optional
        Voxel size of the positions in nm, such as ``(1, 1, 1)``; by default what the table states
        (``synapses.attrs["dataframe_resolution"]``, as caveclient sets it), else that of the
        datastack.

    Returns
    -------
    xarray.Dataset
        Dim ``synapse``, sorted by post, then pre, then id: ``size`` (voxels) and
        ``position(synapse, axis)`` in µm, depth from the pia along y if the datastack has a frame;
        and the coordinates ``synapse_id``, ``pre_nucleus_id``, ``post_nucleus_id``,
        ``pre_pt_root_id`` and ``post_pt_root_id``. Synapses of other neurons are dropped, as are
        rows that are not ``valid``, counted in ``attrs["n_invalid_rows"]``.

    Raises
    ------
    SchemaError
        If columns are missing, ids are not integers, an id is repeated, `connectivity` has no
        root ids, or synapses are outside of the volume of the datastack.

    Warns
    -----
    DroppedRowsWarning
        If no synapse is between two neurons of the connectivity.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> synapses = build_synapses(release.table("synapses"), release.connectivity())
    >>> synapses.position.dims
    ('synapse', 'axis')
    """
    connectivity = as_pairs(connectivity)
    synapses = valid_rows(synapses, _NAME)
    columns = list(map(str, synapses.columns))
    if "id" not in columns and _one_of(columns, _COUNTS):
        raise SchemaError(
            f"synapses has the columns {columns}, one row per pair of neurons, expected one per "
            "synapse, with id and size: use connectivity(), or a table of synapses"
        )
    require_columns(synapses, "synapses", ["id", "pre_pt_root_id", "post_pt_root_id", "size"])
    index: dict[str, np.ndarray] = {}
    for side in ("pre", "post"):
        name = f"{side}_pt_root_id"
        if name not in connectivity.coords:
            raise SchemaError(
                f"connectivity has no {name}, by which synapses are labelled: build it with "
                "mx.build_connectivity, or call mx.annotate(connectivity, units, 'pt_root_id')"
            )
        ids = as_ids(synapses[name], f"synapses.{name}", missing=0)
        index[side] = Lookup(connectivity[name].values, name).find(ids)
    synapse_ids = _unique_ids(synapses["id"])
    rows = np.flatnonzero((index["pre"] >= 0) & (index["post"] >= 0))
    if len(synapses) and not rows.size:
        warn_of_dropped_rows(
            f"none of {len(synapses)} synapses is between two neurons of the connectivity: pass "
            "the table from which it was built, or one of the same release"
        )
    # The order of a store: by post, then pre, then id.
    rows = rows[np.lexsort([synapse_ids[rows], index["pre"][rows], index["post"][rows]])]
    space = space_of_data(connectivity)
    kept = synapses.iloc[rows]
    kept.attrs = synapses.attrs
    call = "resolution_nm={}"
    centres = positions_um(kept, _NAME, _POSITION, None, space, given=resolution_nm, call=call)
    of_ends = {
        f"{side}_{name}": connectivity[f"{side}_{name}"].values[index[side][rows]]
        for name in ("nucleus_id", "pt_root_id")
        for side in index
    }
    sizes = whole_numbers(synapses["size"], f"{_NAME}.size", least=0)[rows]
    dataset = xr.Dataset(
        {
            "size": ("synapse", sizes, {"units": space.size_units}),
            "position": (("synapse", "axis"), centres, space.attrs("centre of the synapse")),
        },
        coords={
            "axis": ("axis", np.array(AXES, dtype=object)),
            "synapse_id": ("synapse", synapse_ids[rows]),
            **{c: ("synapse", values, connectivity[c].attrs) for c, values in of_ends.items()},
            **{c: connectivity[c].variable for c in RELEASE_COORDS if c in connectivity.coords},
        },
    )
    if INVALID in synapses.attrs:
        dataset.attrs[INVALID] = synapses.attrs[INVALID]
    entry = f"build_synapses: {rows.size} of {len(synapses)} rows"
    return add_history(dataset, entry, source=connectivity)
