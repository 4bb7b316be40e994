"""Finished batches to one table: sorted by post, pre and id, every synapse once.

The result depends on nothing but the synapses: not on how they were cut into batches, nor in which
order these came. Memory is bounded, whatever the number of synapses.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microns_xr.errors import SourceError
from microns_xr.source.synapse_folder import Batch

__all__ = ["merge_batches", "sorted_synapses"]

Columns = dict[str, np.ndarray]

_BLOCK_ROWS = 4_000_000  # sorted at once
_GROUP_ROWS = 1 << 20  # of a row group in the result
_IDS_AT_ONCE = 32_000_000


def sorted_synapses(columns: Columns) -> Columns:
    """Sort synapses by post, pre and id, and drop what is there twice.

    Parameters
    ----------
    columns : dict of str to numpy.ndarray
        Columns of equal length, among them ``id``, ``pre_pt_root_id``, ``post_pt_root_id``.

    Returns
    -------
    dict of str to numpy.ndarray
        The columns; a row equal in all of them to another is left out.

    Raises
    ------
    SourceError
        If two different rows between the same two roots have one id.

    Examples
    --------
    >>> ids = np.array([7, 5, 7])
    >>> sorted_synapses({"id": ids, "pre_pt_root_id": ids, "post_pt_root_id": ids})["id"]
    array([5, 7])
    """
    keys = [columns[name] for name in ("post_pt_root_id", "pre_pt_root_id", "id")]
    if not _rising(keys):
        order = np.lexsort(keys[::-1])
        columns = {name: column[order] for name, column in columns.items()}
    same = np.ones(max(len(columns["id"]) - 1, 0), dtype=bool)
    for name in ("id", "pre_pt_root_id", "post_pt_root_id"):
        same &= columns[name][1:] == columns[name][:-1]
    if not same.any():
        return columns
    twice = np.flatnonzero(same)
    for name, column in columns.items():
        other = twice[column[twice] != column[twice + 1]]
        if len(other):
            _contradict(columns["id"][other[0]], name, column[other[0]], column[other[0] + 1])
    keep = np.append(True, ~same)
    return {name: column[keep] for name, column in columns.items()}


def _rising(keys: Sequence[np.ndarray]) -> bool:
    """Whether rows are sorted by the first key, then by the next; equal rows do no harm."""
    tied: np.ndarray | bool = True
    for key in keys:
        if np.any(tied & (key[1:] < key[:-1])):
            return False
        tied = tied & (key[1:] == key[:-1])
    return True


def _contradict(number: int, name: str, one: int, other: int) -> None:
    raise SourceError(
        f"synapse {number} came twice, with {name} {one} and {other}: one of the two answers is of "
        "another release; remove the request's folder, and download again"
    )


def merge_batches(folder: Path, batches: Sequence[Batch], names: Sequence[str], out: Path) -> int:
    """Write all synapses of some batches as one parquet file.

    Parameters
    ----------
    folder : pathlib.Path
        Where the files of the batches are.
    batches : sequence of Batch
        In any order.
    names : sequence of str
        Columns.
    out : pathlib.Path
        The file.

    Returns
    -------
    int
        Rows of the file.

    Raises
    ------
    SourceError
        If two different rows have one id.
    """
    schema = pa.schema([(name, pa.int64()) for name in names])
    rows = 0
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(out, schema, compression="zstd", use_dictionary=False) as writer:
        # Groups of one size, so that equal synapses give equal files.
        for block in _blocks(folder, batches):
            waiting.append(pa.table(block, schema=schema))
            rows += waiting[-1].num_rows
            table = pa.concat_tables(waiting)
            full = table.num_rows // _GROUP_ROWS * _GROUP_ROWS
            for start in range(0, full, _GROUP_ROWS):
                writer.write_table(table.slice(start, _GROUP_ROWS), row_group_size=_GROUP_ROWS)
            waiting = [table.slice(full)]
        rest = pa.concat_tables(waiting) if waiting else schema.empty_table()
        if rest.num_rows:
            writer.write_table(rest, row_group_size=_GROUP_ROWS)
    with open(out, "rb+") as file:
        os.fsync(file.fileno())
    _require_unique(out, rows)
    return rows


def _blocks(folder: Path, batches: Sequence[Batch]) -> Iterator[Columns]:
    """Yield the synapses of one range of postsynaptic roots after the other."""
    filled = sorted((b for b in batches if b.rows), key=lambda b: (b.post_from, b.file))
    edges = _edges(folder, filled)
    for low, high in itertools.pairwise(edges):
        parts: list[Columns] = []
        for batch in filled:
            if batch.post_to < low or batch.post_from >= high:
                continue
            with pq.ParquetFile(folder / batch.file) as file:
                table = file.read()
            ends = np.searchsorted(table["post_pt_root_id"].to_numpy(), [low, high])
            inside = table.slice(int(ends[0]), int(ends[1] - ends[0]))
            parts.append({name: inside[name].to_numpy() for name in inside.column_names})
        if parts:
            yield sorted_synapses({n: np.concatenate([p[n] for p in parts]) for n in parts[0]})


def _edges(folder: Path, batches: Sequence[Batch]) -> list[int]:
    """Return postsynaptic roots that cut the synapses into blocks, none much too large."""
    if not batches:
        return []
    first, end = min(b.post_from for b in batches), max(b.post_to for b in batches) + 1
    n_blocks = -(-sum(b.rows for b in batches) // _BLOCK_ROWS)
    if n_blocks == 1:
        return [first, end]
    step = max(1, _BLOCK_ROWS // 1000)
    seen = []
    for batch in batches:
        with pq.ParquetFile(folder / batch.file) as file:
            seen.append(file.read(["post_pt_root_id"])["post_pt_root_id"].to_numpy()[::step])
    posts = np.sort(np.concatenate(seen))
    inner = posts[np.arange(1, n_blocks) * len(posts) // n_blocks].tolist()
    return sorted({first, *inner, end})


def _require_unique(path: Path, rows: int) -> None:
    passes = max(1, -(-rows // _IDS_AT_ONCE))
    with pq.ParquetFile(path) as file:
        for remainder in range(passes):
            parts = [np.empty(0, np.int64)]
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"])["id"].to_numpy()
                parts.append(ids[ids % passes == remainder] if passes > 1 else ids)
            ids = np.sort(np.concatenate(parts))
            twice = np.flatnonzero(ids[1:] == ids[:-1])
            if len(twice):
                raise SourceError(
                    f"{len(twice)} synapses came twice between different roots, such as "
                    f"{ids[twice[0]]}: some answers are of another release; remove the request's "
                    "folder, and download again"
                )
