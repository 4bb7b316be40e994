"""From rows on disk to the arrays of a store: both copies of the connectivity, single synapses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
import zarr

from microns_xr.coordinates import to_pia_um
from microns_xr.errors import SchemaError
from microns_xr.ingest.collate import Collated, collate
from microns_xr.ingest.pipeline import bar
from microns_xr.provenance import stamp_release
from microns_xr.schema import AXES, VOXEL_UNITS
from microns_xr.store.format import SYNAPSE_CHUNK
from microns_xr.store.plan import PlannedGroup, plan_dataset
from microns_xr.store.spill import PairSpill, Spill, Stretch
from microns_xr.store.stream import ArrayWriter, ChunkPool, CopyWriter, write_array
from microns_xr.store.synapses import POSITION_ATTRS, plan_streamed_synapses

__all__ = ["Limits", "SinglesPlan", "TableWriter", "write_pairs", "write_unit_synapses"]

Resolution = tuple[float, float, float]


@dataclass(frozen=True)
class Limits:
    """How many rows are held in memory: sorted for the disk, and read back from it."""

    run_rows: int
    stretch_rows: int


@dataclass(frozen=True)
class SinglesPlan:
    """What single synapses are written with.

    Attributes
    ----------
    ids : tuple of xarray.Variable
        Labels of the pre and post axes, with their attributes.
    datastack, version : str, int
        The release.
    attrs : dict
        Attributes of the Dataset.
    resolution : tuple of float
        Voxel size of the positions in nm.
    positions : bool
        Whether there are any.
    """

    ids: tuple[Any, Any]
    datastack: str
    version: int
    attrs: dict[str, Any]
    resolution: Resolution
    positions: bool


class TableWriter:
    """A group whose arrays over ``synapse`` are appended to, and all others written at once."""

    def __init__(self, root: zarr.Group, group: PlannedGroup, pool: ChunkPool) -> None:
        node = root.require_group(group.path)
        node.update_attributes(group.attrs)
        self._arrays = {}
        for array in group.arrays:
            if array.dims[:1] == ("synapse",):
                array = replace(array, chunk=SYNAPSE_CHUNK)
                self._arrays[array.name] = ArrayWriter(node, array, pool)
            else:
                pool.submit(write_array, node, array)

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add the next rows of all arrays."""
        for name, array in self._arrays.items():
            array.append(columns[name])

    def finish(self) -> None:
        """Write what is left."""
        for array in self._arrays.values():
            array.finish()


def write_pairs(
    root: zarr.Group,
    rows: Spill,
    shape: tuple[int, int],
    work: str,
    limits: Limits,
    singles: SinglesPlan | None,
    pool: ChunkPool,
    progress: bool,
) -> tuple[CopyWriter, CopyWriter]:
    """Write both copies of the connectivity and, if planned, the synapses they are made of.

    Parameters
    ----------
    root : zarr.Group
        The store.
    rows : Spill
        By postsynaptic position: ``indices``, ``size``, perhaps ``count``, ``id``, ``point``.
    shape : tuple of int
        (number of pre, number of post).
    work : str
        Folder for what is written on the way.
    limits : Limits
        Rows in memory.
    singles : SinglesPlan or None
        Whether and how single synapses are written.
    pool : ChunkPool
        Compresses and writes.
    progress : bool
        Whether to show a bar, in rows.

    Returns
    -------
    tuple of CopyWriter
        By post and by pre; what remains is to finish them.

    Raises
    ------
    SchemaError
        If the id of a synapse is repeated.
    """
    by_post, by_pre = (CopyWriter(root, axis, shape, pool) for axis in ("post", "pre"))
    pairs = PairSpill(os.path.join(work, "pairs"), shape[0], limits.run_rows)
    with pairs, ExitStack() as stack, bar(rows.rows, "sorting", " rows", progress) as shown:
        table = None
        if singles is not None:
            table = stack.enter_context(_Singles(root, rows, singles, work, limits, pool))
        for part in rows.stretches(limits.stretch_rows):
            found = collate(part.starts, part.columns["indices"], part.columns.get("id"))
            _require_once(part, found)
            new = _pairs(part, found)
            pairs.add(by_post.n_done, *new)
            by_post.append(*new)
            if table is not None:
                table.add(part, found.order)
            shown.update(len(found.order))
        if table is not None:
            table.write_by_pre()
        pairs.write(by_pre, limits.stretch_rows)
    return by_post, by_pre


def _pairs(part: Stretch, found: Collated) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Add up the rows of each pair: lengths, indices, size and count."""
    order, first = found.order, found.first
    if not len(first):
        none = np.zeros(0, dtype=np.int64)
        return found.lengths, none.astype(np.int32), none, none
    size = np.add.reduceat(part.columns["size"][order], first)
    if "count" in part.columns:
        count = np.add.reduceat(part.columns["count"][order], first)
    else:
        count = np.diff(first, append=len(order)).astype(np.int64)
    return found.lengths, part.columns["indices"][order[first]], size, count


def _require_once(part: Stretch, found: Collated) -> None:
    if found.repeated >= 0:
        repeated = int(part.columns["id"][found.order[found.repeated]])
        raise SchemaError(
            f"synapse id {repeated} is repeated, expected each synapse once: the files overlap, "
            "or one of them was joined from several; give each part once"
        )


class _Singles(Spill):
    """Single synapses of units: rows by post as they come, and kept on disk for those by pre."""

    def __init__(
        self,
        root: zarr.Group,
        rows: Spill,
        plan: SinglesPlan,
        work: str,
        limits: Limits,
        pool: ChunkPool,
    ) -> None:
        columns: dict[str, str | tuple[str, int]] = {
            "synapse_id": "int64", "post_index": "int32", "size": "int64",
        }  # fmt: skip
        if plan.positions:
            columns["point"] = ("float64", 3)
        super().__init__(os.path.join(work, "synapses"), len(plan.ids[0]), columns, limits.run_rows)
        self._root, self._plan, self._pool = root, plan, pool
        self._max_rows = limits.stretch_rows
        rows.flush()
        self._table = self._writer("post", rows.per_major)

    def _writer(self, axis: Any, lengths: np.ndarray) -> TableWriter:
        plan = self._plan
        names = ["synapse_id", "pre_index", "post_index", "size"]
        names += ["position"] if plan.positions else []
        group = plan_streamed_synapses(
            axis,
            dict.fromkeys(names, _never_read),
            np.concatenate([[0], np.cumsum(lengths)]),
            *plan.ids,
            datastack=plan.datastack,
            version=plan.version,
            attrs=plan.attrs,
            position="float64",
            size="int64",
        )
        return TableWriter(self._root, group, self._pool)

    def add(self, part: Stretch, order: np.ndarray) -> None:
        """Write the rows of some postsynaptic neurons."""
        majors = np.repeat(np.arange(part.first, part.last, dtype=np.int32), part.lengths)
        columns = {
            "synapse_id": part.columns["id"][order],
            "post_index": majors,
            "size": part.columns["size"][order],
        }
        if self._plan.positions:
            columns["point"] = part.columns["point"][order]
        pre = part.columns["indices"][order]
        self.append(pre, columns)
        self._append(self._table, columns | {"pre_index": pre})

    def _append(self, table: TableWriter, columns: dict[str, np.ndarray]) -> None:
        if self._plan.positions:
            columns["position"] = to_pia_um(columns["point"], self._plan.resolution)
        table.append(columns)

    def write_by_pre(self) -> None:
        """Finish the rows by post and write those by pre."""
        self._table.finish()
        self.flush()
        table = self._writer("pre", self.per_major)
        for part in self.stretches(self._max_rows):
            majors = np.repeat(np.arange(part.first, part.last, dtype=np.int32), part.lengths)
            self._append(table, {**part.columns, "pre_index": majors})
        table.finish()


def write_unit_synapses(
    root: zarr.Group,
    rows: Spill,
    keep: str,
    unit_labels: np.ndarray,
    nucleus_ids: np.ndarray,
    plan: SinglesPlan,
    limits: Limits,
    pool: ChunkPool,
) -> None:
    """Write the synapses that have a unit at one end, by the root ids of both.

    Parameters
    ----------
    root : zarr.Group
        The store.
    rows : Spill
        By position of the unit: ``root`` of the other end, ``size``, ``id``, perhaps ``point``.
    keep : {"pre", "post"}
        The end that is a unit.
    unit_labels, nucleus_ids : numpy.ndarray
        Root and nucleus id of each unit.
    plan, limits, pool
        See `write_pairs`.

    Raises
    ------
    SchemaError
        If the id of a synapse is repeated.
    """
    rows.flush()
    n = int(rows.per_major.sum())
    other = "post" if keep == "pre" else "pre"
    whole = {name: ("synapse", np.broadcast_to(np.int64(0), n)) for name in
             ("synapse_id", "nucleus_id", "pre_pt_root_id", "post_pt_root_id", "size")}  # fmt: skip
    template = xr.Dataset(whole, attrs=plan.attrs)
    template["size"].attrs["units"] = VOXEL_UNITS
    template["nucleus_id"].attrs["long_name"] = f"nucleus of the {keep}synaptic neuron"
    if plan.positions:
        empty = np.broadcast_to(np.float64(0), (n, len(AXES)))
        template["position"] = (("synapse", "axis"), empty, POSITION_ATTRS)
        template = template.assign_coords(axis=("axis", np.array(AXES, dtype=object)))
    template = stamp_release(template, plan.datastack, plan.version)
    table = TableWriter(root, plan_dataset("synapses", template), pool)
    for part in rows.stretches(limits.stretch_rows):
        _, rank = np.unique(part.columns["root"], return_inverse=True)
        found = collate(part.starts, rank.astype(np.int32), part.columns["id"])
        _require_once(part, found)
        majors = np.repeat(np.arange(part.first, part.last), part.lengths)
        columns = {
            "synapse_id": part.columns["id"][found.order],
            "nucleus_id": nucleus_ids[majors],
            f"{keep}_pt_root_id": unit_labels[majors],
            f"{other}_pt_root_id": part.columns["root"][found.order],
            "size": part.columns["size"][found.order],
        }
        if plan.positions:
            columns["position"] = to_pia_um(part.columns["point"][found.order], plan.resolution)
        table.append(columns)
    table.finish()


def _never_read(start: int, stop: int) -> np.ndarray:
    raise AssertionError("rows that are appended are not read")
