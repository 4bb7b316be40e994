"""Lazy connectivity on its way to a store: both copies, never held as a whole.

Pairs that are still as another store has them are read from there while they are written. All
others are computed once, block after block, into files beside the new store; from there one copy
is written as it is and the other sorted a stretch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dask
import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import Compressed, Pattern, pattern_of_array
from microns_xr.connectivity.blocks import AXIS, PairSource, block_key, block_spans
from microns_xr.connectivity.blockwise import Blocks, blocks_of, stored_source
from microns_xr.errors import SchemaError
from microns_xr.store.format import OTHER, pattern_problems
from microns_xr.store.plan import Pairs, PlannedGroup, plan_matrix
from microns_xr.store.spill import PairSpill

__all__ = ["plan_lazy"]

_COLUMNS = {"indices": np.int32, "synapse_size": np.int64, "synapse_count": np.int64}
_INT32 = np.iinfo(np.int32)
_RUN = 1 << 20  # pairs that are sorted at a time


@dataclass(frozen=True)
class _Column:
    """Values that are read when a slice of them is taken: what planning needs of an array."""

    size: int
    read: Callable[[int, int], np.ndarray]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.read(*rows.indices(self.size)[:2])


def plan_lazy(connectivity: xr.Dataset, folder: str | os.PathLike[str]) -> list[PlannedGroup]:
    """Plan both copies of a lazy connectivity Dataset.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Lazy connectivity.
    folder : path-like
        Place for files of 20 bytes a pair and copy, which must outlive the writing; they are made
        only if the pairs are not as a store has them. Blocks are computed by the scheduler of
        dask that is in force.

    Returns
    -------
    list of PlannedGroup
        One for each copy.

    Raises
    ------
    SchemaError
        If sizes and counts store different pairs, or partners are not sorted and unique.
    """
    blocks = blocks_of(connectivity, list(_COLUMNS)[1:])
    source = stored_source(blocks.arrays)
    turned = None if source is None else source.other()
    if source is not None and turned is not None:
        return [plan_matrix(connectivity, _stored(copy)) for copy in (source, turned)]
    os.makedirs(folder, exist_ok=True)
    own, other = (_Spool(Path(folder), blocks, side) for side in _sides(blocks.compressed))
    n_other = blocks.n_minor
    with own, other, PairSpill(os.fspath(Path(folder) / "pairs"), n_other, _RUN) as spill:
        for i in range(len(blocks.spans)):
            _add_block(blocks, i, own, spill)
        spill.write(cast(Any, other))
    return [plan_matrix(connectivity, spool.pairs()) for spool in (own, other)]


def _sides(compressed: Compressed) -> tuple[Compressed, Compressed]:
    return compressed, OTHER[compressed]


def _stored(source: PairSource) -> Pairs:
    indptr, n = source.indptr, int(source.indptr[-1])

    def column(name: str) -> Any:
        return _Column(n, lambda start, stop: source.read(name, start, stop))

    pattern = Pattern(column("indices"), indptr, source.shape, source.compressed)
    size, count = (column(name) for name in list(_COLUMNS)[1:])
    # As wide as they are stored there, which is as wide as they need to be.
    dtypes = tuple(str(source.read(name, 0, 0).dtype) for name in list(_COLUMNS)[1:])
    return Pairs(pattern, size, count, (dtypes[0], dtypes[1]))


def _add_block(blocks: Blocks, i: int, own: _Spool, spill: PairSpill) -> None:
    """Compute a block and add it to both copies; nothing of it is held any longer then."""
    names = list(blocks.arrays)
    at = block_key(AXIS[blocks.compressed], i)
    parts = dask.compute(*(blocks.arrays[name].blocks[at] for name in names))
    (pattern, size), (other, count) = (
        pattern_of_array(part, name, blocks.compressed)
        for name, part in zip(names, parts, strict=True)
    )
    problems = pattern_problems(pattern.indices, pattern.indptr, pattern.shape, pattern.compressed)
    problems += [
        f"{name} is {part.dtype}, expected integers"
        for name, part in zip(names, parts, strict=True)
        if not np.can_cast(part.dtype, np.int64)
    ]
    if not pattern.same_pairs(other):
        problems.append("synapse_count stores other pairs than synapse_size")
    if problems:
        raise SchemaError(
            f"connectivity cannot be written: {'; '.join(problems)}; "
            "build it with mx.build_connectivity"
        )
    # In pieces of a run, so that sorting one takes little beside the block.
    for lo, hi in block_spans(pattern.indptr, _RUN):
        pairs = slice(int(pattern.indptr[lo]), int(pattern.indptr[hi]))
        columns = (pattern.indices[pairs], size[pairs], count[pairs])
        lengths = np.diff(pattern.indptr[lo : hi + 1])
        own.append(lengths, *columns)
        spill.add(blocks.spans[i][0] + lo, lengths, *columns)
    spill.flush()  # what waits there are views of this block


class _Spool:
    """The pairs of one copy in plain files, a column each."""

    def __init__(self, folder: Path, blocks: Blocks, compressed: Compressed) -> None:
        self._shape, self._compressed = blocks.shape, compressed
        self._paths = {name: folder / f"by_{compressed}-{name}" for name in _COLUMNS}
        self._files: dict[str, Any] = {}
        self._lengths: list[np.ndarray] = []
        self._wide = dict.fromkeys(list(_COLUMNS)[1:], False)

    def __enter__(self) -> _Spool:
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def append(
        self, lengths: np.ndarray, indices: np.ndarray, size: np.ndarray, count: np.ndarray
    ) -> None:
        """Add the pairs of the next neurons, as `microns_xr.store.stream.CopyWriter` does."""
        for (name, dtype), values in zip(_COLUMNS.items(), (indices, size, count), strict=True):
            np.ascontiguousarray(values, dtype=dtype).tofile(self._files[name])
            if name in self._wide and values.size:
                fits = _INT32.min <= values.min() <= values.max() <= _INT32.max
                self._wide[name] |= not fits
        self._lengths.append(np.asarray(lengths, dtype=np.int64))

    def pairs(self) -> Pairs:
        """Return what was added, to be read from the files."""
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths])
        indptr = np.cumsum(lengths)
        columns = {name: self._column(name, int(indptr[-1])) for name in _COLUMNS}
        pattern = Pattern(columns["indices"], indptr, self._shape, self._compressed)
        dtypes = tuple("int64" if wide else "int32" for wide in self._wide.values())
        return Pairs(
            pattern, columns["synapse_size"], columns["synapse_count"], (dtypes[0], dtypes[1])
        )

    def _column(self, name: str, size: int) -> Any:
        path, dtype = self._paths[name], np.dtype(_COLUMNS[name])

        def read(start: int, stop: int) -> np.ndarray:
            count = max(stop - start, 0)
            return np.fromfile(path, dtype, count, offset=start * dtype.itemsize)

        return _Column(size, read)
