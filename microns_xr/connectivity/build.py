"""Single synapses with their positions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import as_ids, id_column, positions, require_columns, to_pia_um
from microns_xr.connectivity.arrays import PAIR_DIMS, connectivity_dataset, make_pattern
from microns_xr.connectivity.labels import Lookup, require_known, unit_roots
from microns_xr.errors import DroppedRowsWarning, SchemaError
from microns_xr.provenance import RELEASE_COORDS, add_history, release_of, require_same_release
from microns_xr.schema import AXES, SCOPES, UNITS, VOXEL_UNITS, describe, validate
from microns_xr.threads import equal_spans, run_spans, usable_threads

# Reading a table of synapses or of pairs: which columns, which ids, what a row counts.


Rows = Literal["auto", "synapse", "pair"]

_NAME = "synapses"
_SIZES = ("size", "sum_size", "synapse_size")
_COUNTS = ("n_syn", "synapse_count")
_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class SynapseTable:
    """A table of synapses as arrays of one value a row."""

    # int64 ids of ``"pre"`` and ``"post"``; 0 where there is none
    ids: dict[str, np.ndarray]
    null: dict[str, np.ndarray]  # bool, rows that name no partner
    labels: str  # what the ids are
    size: np.ndarray  # int64, voxels of 4x4x40 nm
    count: np.ndarray | None  # int64 synapses of a row; None is one
    # what a row is; "auto" when the table alone does not tell
    rows: Rows

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.size.size)


def read_synapse_table(table: pd.DataFrame, rows: Rows = "auto") -> SynapseTable:
    """Check a table of synapses or of pairs and take it apart."""
    if not isinstance(table, pd.DataFrame):
        raise SchemaError(f"synapses is a {type(table).__name__}, expected a pandas DataFrame")
    if rows not in ("auto", "synapse", "pair"):
        raise SchemaError(f"rows is {rows!r}, expected one of ('auto', 'synapse', 'pair')")
    labels = _label_kind(table)
    ids, null = {}, {}
    for side in ("pre", "post"):
        column = id_column(table[f"{side}_{labels}"], _NAME, nullable=True)
        null[side] = np.asarray(column.isna(), dtype=bool)
        ids[side] = column.to_numpy(dtype=np.int64, na_value=0)
    size_name, count_name = _one_of(table, _SIZES), _one_of(table, _COUNTS)
    if size_name is None:
        raise SchemaError(
            f"synapses has none of the columns {_SIZES}, found {list(map(str, table.columns))}: "
            "rename the one that holds the size"
        )
    size = whole_numbers(table[size_name], at_least=0)
    count = None if count_name is None else whole_numbers(table[count_name], at_least=1)
    if rows == "synapse" and count is not None:
        raise SchemaError(
            f"rows is 'synapse' but synapses has the column {count_name}, which counts the "
            "synapses of a pair: drop the column, or pass rows='pair'"
        )
    if "id" in table.columns and rows != "pair" and count is None:
        _require_unique(table["id"])
        rows = "synapse"
    return SynapseTable(ids, null, labels, size, count, "pair" if count is not None else rows)


def _label_kind(table: pd.DataFrame) -> str:
    for labels in ("nucleus_id", "pt_root_id"):
        if f"pre_{labels}" in table.columns and f"post_{labels}" in table.columns:
            return labels
    raise SchemaError(
        f"synapses has the columns {list(map(str, table.columns))}, expected pre_pt_root_id and "
        "post_pt_root_id, or pre_nucleus_id and post_nucleus_id: rename them"
    )


def _one_of(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    found = [name for name in names if name in table.columns]
    if len(found) > 1:
        raise SchemaError(f"synapses has the columns {found} for one thing: drop all but one")
    return found[0] if found else None


def whole_numbers(column: pd.Series, at_least: int) -> np.ndarray:
    """Return a column of sizes or counts as int64; `SchemaError` for anything but whole numbers."""
    where = f"{_NAME}.{column.name}"
    if column.empty:  # a header alone has no dtypes
        return np.zeros(0, dtype=np.int64)
    if pd.api.types.is_bool_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        raise SchemaError(f"{where} has dtype {column.dtype}, expected integers: convert it")
    n_null = int(column.isna().sum())
    if n_null:
        raise SchemaError(
            f"{where} is empty in {n_null} of {len(column)} rows, expected a number in each: drop "
            "those rows if they are no synapses"
        )
    if pd.api.types.is_float_dtype(column.dtype):
        numbers = column.to_numpy(dtype=np.float64)  # float32, as CAVE sends it, is exact in it
        odd = ~((numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**63))
    else:
        numbers = column.to_numpy()
        if numbers.dtype == object:
            numbers = column.to_numpy(dtype=np.int64)
        odd = numbers > _INT64_MAX if numbers.dtype == np.uint64 else np.zeros(0, dtype=bool)
    if odd.any():
        raise SchemaError(
            f"{where} holds {numbers[odd][0]}, {int(odd.sum())} such rows, expected whole numbers "
            "below 2**63: sizes count voxels, so undo any scaling"
        )
    low = numbers < at_least
    if low.any():
        raise SchemaError(
            f"{where} holds {numbers[low][0]}, {int(low.sum())} such rows, expected {at_least} or "
            "more: drop rows that are no synapses"
        )
    total = float(numbers.sum(dtype=np.float64))
    if total > 9.2e18:  # if the sum of all fits, that of any pair, neuron or group does
        raise SchemaError(
            f"{where} sums to {total:.3g}, expected less than 9.2e18, which int64 holds: "
            "check the column; real sizes are below 1e7"
        )
    return numbers.astype(np.int64)


def _require_unique(ids: pd.Series) -> None:
    numbers = id_column(ids, _NAME).to_numpy()
    if (numbers[1:] > numbers[:-1]).all():
        return
    repeated = pd.Series(numbers).duplicated()
    if repeated.any():
        raise SchemaError(
            f"{_NAME}.id repeats {int(repeated.sum())} ids, such as {numbers[repeated][0]}, "
            "expected each synapse once: the parts of the table overlap, drop the duplicates"
        )


# From unsorted rows (post, pre, size) to a compressed matrix: sort and sum, in integers.
#
# Three counting sorts: rows into blocks of neighbouring major neurons, small enough that the rest
# happens in the cache; each block by minor and then by major neuron; then equal pairs are added
# up. Blocks are independent, so they run on threads, and every step keeps the order of equal
# rows.


_ROWS_A_BLOCK = 1 << 15


@dataclass(frozen=True)
class Assembled:
    """A compressed matrix: pattern, summed size and number of synapses of each pair."""

    indices: np.ndarray
    indptr: np.ndarray
    size: np.ndarray
    count: np.ndarray


def assemble(
    major: np.ndarray,
    minor: np.ndarray,
    size: np.ndarray,
    count: np.ndarray | None,
    n_major: int,
    n_minor: int,
    threads: int | None = None,
) -> Assembled:
    """Sort rows into a matrix compressed over the major axis, adding up rows of the same pair."""
    n_threads = usable_threads(threads, major.size)
    row_spans = equal_spans(major.size, n_threads)
    per_major = np.zeros(n_major, dtype=np.int64)
    for part in run_spans(
        lambda lo, hi: _count_rows(major, minor, n_major, lo, hi), row_spans, n_threads
    ):
        per_major += part
    starts = np.concatenate([[0], np.cumsum(per_major)])
    # A block begins where the running number of rows passes a multiple of the block's length.
    edges = np.searchsorted(starts[:-1], np.arange(0, starts[-1], _ROWS_A_BLOCK))
    edges = np.unique(np.concatenate([[0], edges, [n_major]]))
    blocks = list(pairwise(edges.tolist()))

    rows = _buffers(int(starts[-1]))
    counted = np.empty(0, dtype=np.int64) if count is None else count
    block_of = np.repeat(np.arange(len(blocks), dtype=np.int32), np.diff(edges))
    in_span = run_spans(
        lambda lo, hi: _count_blocks(major, minor, block_of, len(blocks), lo, hi),
        row_spans,
        n_threads,
    )
    free = starts[edges[:-1]].copy()
    free_of: dict[int, np.ndarray] = {}  # where each span of rows writes, so that order is kept
    for (first, _), rows_a_block in zip(row_spans, in_span, strict=True):
        free_of[first] = free.copy()
        free += rows_a_block
    run_spans(
        lambda lo, hi: _deal(
            major, minor, size, counted, block_of, free_of[lo], *rows, counted.size > 0, lo, hi
        ),
        row_spans,
        n_threads,
    )

    pairs = np.zeros(n_major, dtype=np.int64)
    run_spans(
        lambda lo, hi: _merge(
            *rows, counted.size > 0, starts[lo], starts[hi], lo, hi, n_minor, pairs
        ),
        blocks,
        n_threads,
    )
    indptr = np.concatenate([[0], np.cumsum(pairs)])
    out = _buffers(int(indptr[-1]))[1:]

    def compact(lo: int, hi: int) -> None:
        old = slice(starts[lo], starts[lo] + indptr[hi] - indptr[lo])
        for new, merged in zip(out, rows[1:], strict=True):
            new[indptr[lo] : indptr[hi]] = merged[old]

    run_spans(compact, blocks, n_threads)
    return Assembled(out[0], indptr, out[1], out[2])


def _buffers(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Major, minor, size and count of `n` rows."""
    return (
        np.empty(n, dtype=np.int32),
        np.empty(n, dtype=np.int32),
        np.empty(n, dtype=np.int64),
        np.empty(n, dtype=np.int64),
    )


@numba.njit(nogil=True, cache=True)
def _count_rows(major, minor, n_major, lo, hi):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_major, dtype=np.int64)
    for r in range(lo, hi):
        if major[r] >= 0 and minor[r] >= 0:
            counts[major[r]] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _count_blocks(major, minor, block_of, n_blocks, lo, hi):  # type: ignore[no-untyped-def]
    counts = np.zeros(n_blocks, dtype=np.int64)
    for r in range(lo, hi):
        if major[r] >= 0 and minor[r] >= 0:
            counts[block_of[major[r]]] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _deal(  # type: ignore[no-untyped-def]
    major, minor, size, counted, block_of, free,
    to_major, to_minor, to_size, to_count, has_count, lo, hi,
):  # fmt: skip
    for r in range(lo, hi):
        if major[r] >= 0 and minor[r] >= 0:
            block = block_of[major[r]]
            to = free[block]
            free[block] = to + 1
            to_major[to] = major[r]
            to_minor[to] = minor[r]
            to_size[to] = size[r]
            if has_count:
                to_count[to] = counted[r]


@numba.njit(nogil=True, cache=True)
def _stable_order(keys, before, first_key, n_keys):  # type: ignore[no-untyped-def]
    # Positions into keys by ascending key; equal keys stay in the order of `before`.
    free = np.zeros(n_keys + 1, dtype=np.int64)
    for r in range(keys.size):
        free[keys[r] - first_key + 1] += 1
    for k in range(n_keys):
        free[k + 1] += free[k]
    order = np.empty(keys.size, dtype=np.int32)
    for r in before:
        to = free[keys[r] - first_key]
        order[to] = r
        free[keys[r] - first_key] = to + 1
    return order


@numba.njit(nogil=True, cache=True)
def _merge(  # type: ignore[no-untyped-def]
    major, minor, size, count, has_count, start, stop, lo, hi, n_minor, pairs
):
    # Sorts the rows of one block by pair, adds up those of a pair, and writes the sums over the
    # beginning of the block.
    majors, minors = major[start:stop], minor[start:stop]
    order = _stable_order(minors, np.arange(stop - start), 0, n_minor)
    order = _stable_order(majors, order, lo, hi - lo)
    pair_minor = np.empty(order.size, dtype=np.int32)
    pair_size = np.empty(order.size, dtype=np.int64)
    pair_count = np.empty(order.size, dtype=np.int64)
    n = 0
    before = -1
    for r in order:
        synapses = count[start + r] if has_count else 1
        if n > 0 and majors[r] == before and minors[r] == pair_minor[n - 1]:
            pair_size[n - 1] += size[start + r]
            pair_count[n - 1] += synapses
        else:
            pair_minor[n] = minors[r]
            pair_size[n] = size[start + r]
            pair_count[n] = synapses
            pairs[majors[r]] += 1
            n += 1
        before = majors[r]
    minor[start : start + n] = pair_minor[:n]
    size[start : start + n] = pair_size[:n]
    count[start : start + n] = pair_count[:n]


# From a table of synapses or of pairs to a labelled sparse connectivity Dataset.


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
    axes = {side: _axis(ids, units, unit_ids, side) for side, ids in (("pre", pre), ("post", post))}
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


def _axis(ids: Any, units: xr.Dataset, unit_ids: np.ndarray, side: str) -> np.ndarray:
    """Return the sorted ids of an axis, all of them units."""
    if ids is None:
        return np.sort(unit_ids)
    if isinstance(ids, xr.Dataset | xr.DataArray):
        named = (("units", units), (side, ids))
        require_same_release(*named)
    wanted = np.unique(as_ids(ids, side))
    require_known(
        wanted,
        Lookup(unit_ids, "nucleus_id of the units").find(wanted),
        side,
        "nucleus_id of the units",
        "take the ids from units.nucleus_id, not from pt_root_id",
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


_POSITION = "ctr_pt_position"


def build_synapses(
    synapses: pd.DataFrame,
    connectivity: xr.Dataset,
    resolution_nm: tuple[float, float, float] = (4.0, 4.0, 40.0),
) -> xr.Dataset:
    """Label single synapses by the neurons of a connectivity Dataset.

    Parameters
    ----------
    synapses : pandas.DataFrame
        A row a synapse: ``id``, ``pre_pt_root_id``, ``post_pt_root_id``, ``size``,
        ``ctr_pt_position`` (written ``[x y z]`` or split in three columns).
    connectivity : xarray.Dataset
        Connectivity of the same release, with the root ids of both axes.
    resolution_nm : tuple of float, optional
        Voxel size of the positions.

    Returns
    -------
    xarray.Dataset
        Dim ``synapse``, sorted by post, then pre, then id: ``synapse_id``, ``pre_index`` and
        ``post_index`` (positions on the axes of `connectivity`), ``size`` (voxels of 4x4x40 nm),
        ``position(synapse, axis)`` in µm, depth from the pia along y. The axes they count along
        come with them, as the coordinates ``pre_nucleus_id`` and ``post_nucleus_id``. Synapses of
        other neurons are left out.

    Raises
    ------
    SchemaError
        If columns are missing or ids are no integers, an id is repeated, or `connectivity` does
        not name its roots.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> synapses = build_synapses(release.table("synapses"), release.connectivity())
    >>> synapses.position.dims
    ('synapse', 'axis')
    """
    validate(connectivity, "connectivity")
    require_columns(synapses, "synapses", ["id", "pre_pt_root_id", "post_pt_root_id", "size"])
    index, keep = {}, np.ones(len(synapses), dtype=bool)
    for side in ("pre", "post"):
        name = f"{side}_pt_root_id"
        if name not in connectivity.coords:
            raise SchemaError(
                f"connectivity has no {name}, which synapses are labelled by: build it with "
                "mx.build_connectivity, or mx.annotate(connectivity, units, 'pt_root_id')"
            )
        roots = id_column(synapses[name], "synapses", nullable=True).fillna(0)
        lookup = Lookup(connectivity[name].values, name)
        index[side] = lookup.find(roots.to_numpy(np.int64)).astype(np.int32)
        keep &= index[side] >= 0
    ids = id_column(synapses["id"], "synapses").to_numpy()
    where = positions(synapses, "synapses", _POSITION)[keep]
    pre, post, ids = index["pre"][keep], index["post"][keep], ids[keep]
    order = np.lexsort([ids, pre, post])
    if len(np.unique(ids)) < len(ids):
        raise SchemaError(
            f"synapses repeats {len(ids) - len(np.unique(ids))} ids, expected each synapse once: "
            "two downloads were joined; drop repeated rows by id"
        )
    whole = whole_numbers(synapses["size"], at_least=0)[keep][order]
    dataset = xr.Dataset(
        {
            "synapse_id": ("synapse", ids[order]),
            "pre_index": ("synapse", pre[order]),
            "post_index": ("synapse", post[order]),
            "size": ("synapse", whole, {"units": VOXEL_UNITS}),
            "position": (
                ("synapse", "axis"),
                to_pia_um(where[order], resolution_nm),
                {"units": "µm", "long_name": "centre of the synapse, y is depth from the pia"},
            ),
        },
        coords={
            "axis": ("axis", np.array(AXES, dtype=object)),
            **{c: connectivity[c].variable for c in (*PAIR_DIMS, *RELEASE_COORDS)},
        },
    )
    return add_history(dataset, "build_synapses", source=connectivity)
