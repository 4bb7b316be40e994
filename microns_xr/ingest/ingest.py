"""`ingest_synapses`: the table of all synapses of a release to a store, in bounded memory."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from dask.utils import parse_bytes

from microns_xr.columns import as_ids, to_pia_um
from microns_xr.connectivity.build import Rows, build_connectivity
from microns_xr.errors import DroppedRowsWarning, SchemaError, SourceError
from microns_xr.ingest.read import (
    HeaderLike,
    InputFile,
    Keep,
    Layout,
    Mapper,
    Space,
    Tally,
    bar,
    find_files,
    layout_of,
    read_files,
    row_bytes,
)
from microns_xr.provenance import release_of
from microns_xr.releases import table_of_file
from microns_xr.schema import SCOPES, validate
from microns_xr.store import swap
from microns_xr.store.spill import Collated, PairSpill, Spill, Stretch, collate
from microns_xr.store.stream import ChunkPool, CopyWriter, GroupWriter, plan_copy, plan_parent
from microns_xr.store.synapses import plan_copy_rows, plan_rows
from microns_xr.store.write import finish_store, root_attrs, write_store

# From rows on disk to the arrays of a store: both copies of the connectivity, single synapses.


Resolution = tuple[float, float, float]


@dataclass(frozen=True)
class Limits:
    """How many rows are held in memory: sorted for the disk, and read back from it."""

    run_rows: int
    stretch_rows: int


@dataclass(frozen=True)
class SinglesPlan:
    """What single synapses are written with."""

    # labels of the pre and post axes, with their attributes
    ids: tuple[Any, Any]
    datastack: str
    version: int
    attrs: dict[str, Any]  # attributes of the Dataset
    resolution: Resolution  # voxel size of the positions in nm
    positions: bool  # whether there are any


def write_pairs(
    root: zarr.Group,
    rows: Spill,
    template: xr.Dataset,
    work: str,
    limits: Limits,
    singles: SinglesPlan | None,
    pool: ChunkPool,
    progress: bool,
) -> tuple[CopyWriter, CopyWriter]:
    """Write both copies of the connectivity and, if planned, the synapses they are made of."""
    by_post = CopyWriter(root, plan_copy(template, "post"), pool)
    by_pre = CopyWriter(root, plan_copy(template, "pre"), pool)
    n_pre = template.sizes["pre_nucleus_id"]
    pairs = PairSpill(os.path.join(work, "pairs"), n_pre, limits.run_rows)
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

    def _writer(self, axis: Any, lengths: np.ndarray) -> GroupWriter:
        plan = self._plan
        group = plan_copy_rows(
            axis,
            np.concatenate([[0], np.cumsum(lengths)]),
            {"pre": plan.ids[0], "post": plan.ids[1]},
            (plan.datastack, plan.version),
            positions=plan.positions,
            attrs=plan.attrs,
        )
        return GroupWriter(self._root, group, self._pool)

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

    def _append(self, table: GroupWriter, columns: dict[str, np.ndarray]) -> None:
        if self._plan.positions:
            columns["position"] = to_pia_um(columns.pop("point"), self._plan.resolution)
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
    """Write the synapses that have a unit at one end, by the root ids of both."""
    rows.flush()
    n = int(rows.per_major.sum())
    other = "post" if keep == "pre" else "pre"
    names = ("synapse_id", "nucleus_id", "pre_pt_root_id", "post_pt_root_id", "size")
    group = plan_rows(
        "synapses",
        n,
        dict.fromkeys(names, "int64"),
        (plan.datastack, plan.version),
        positions=plan.positions,
        attrs=plan.attrs,
        long_names={"nucleus_id": f"nucleus of the {keep}synaptic neuron"},
    )
    table = GroupWriter(root, group, pool)
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


logger = logging.getLogger(__name__)

_Resolution = tuple[float, float, float]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The interpreter with all that is imported, the blocks that are under way, chunks to be written.
_BASE = 550_000_000
_LEAST = 600_000_000
_ROWS = (1 << 14, 1 << 21)


def ingest_synapses(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    units: xr.Dataset,
    out: str | os.PathLike[str],
    *,
    header: HeaderLike | None = None,
    memory: str | int = "2 GB",
    keep: Keep = "both",
    positions: bool = False,
    on_bad_lines: Literal["error", "count"] = "error",
    layers: xr.Dataset | None = None,
    functional: xr.Dataset | None = None,
    scope: str = "unknown",
    rows: Rows = "auto",
    shared_roots: Iterable[int] | np.ndarray | None = None,
    resolution_nm: _Resolution = (4.0, 4.0, 40.0),
    source_tables: Iterable[Mapping[str, Any]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    consolidated: bool = False,
    overwrite: bool = True,
    progress: bool = True,
) -> None:
    r"""Stream a table of synapses, however large, into a store.

    The store is the same, array for array, as `build_connectivity` and `write_store` make of the
    same rows in memory.

    Parameters
    ----------
    files : str, path-like or iterable of them
        The table, in one file or several: csv, csv.gz or parquet, told by their first bytes; local
        or addresses of fsspec. The columns are those of `build_connectivity`, by root id
        (``pre_pt_root_id`` ...) or nucleus id (``pre_nucleus_id`` ..., taken where there are
        both); a table of pairs has ``n_syn`` and ``sum_size``. No value holds a line break.
    units : xarray.Dataset
        Units of the same release; all of them are the axes.
    out : str or path-like
        Folder of the store, local. A store that is there is replaced when the new one is whole;
        whatever interrupts the run, it is the old one until then, and the next run begins anew.
    header : path, Header or sequence of str, optional
        Columns of a csv file without a header line: a header file of the archive, or names. By
        default the file ``<name>_header.csv`` beside the data file, as in the archive; without
        one, the first line says the columns.
    memory : str or int, optional
        The most memory the process may take, with about 0.5 GB for the interpreter and its
        libraries; what `units` and other data of the caller take is not known and comes on top.
        At least 600 MB. More than the rows of one neuron need is never held.
    keep : {"both", "pre", "post"}, optional
        The connectivity is always that of rows whose two ends are units, for only units have a
        nucleus id. "pre" and "post" also keep each row with a unit at that end and any neuron, or
        none, at the other, as single synapses named by root ids (see Notes).
    positions : bool, optional
        Keep the position of each synapse, and with "both" the synapses themselves.
    on_bad_lines : {"error", "count"}, optional
        "count" leaves out lines that cannot be read, and says how many in ``attrs["bad_lines"]``
        of the connectivity. A file that is cut short raises all the same.
    layers, functional : xarray.Dataset, optional
        Written with the rest.
    scope : {"complete", "requested", "unknown"}, optional
        Which pairs the files would show. "complete" if they are the whole table of the release:
        then a zero says that no synapse was seen. Files do not tell, so it is for the caller to
        say; it does not depend on `keep`.
    rows : {"auto", "synapse", "pair"}, optional
        What a row is, see `build_connectivity`; "auto" looks for repeated pairs among the kept
        rows only.
    shared_roots : collection of int, optional
        Root ids that hold several nuclei, to tell them from unknown ones in the counts, as
        ``Release.shared_roots`` gives them; by default ``units.attrs["shared_roots"]``.
    resolution_nm : tuple of float, optional
        Voxel size of the positions.
    source_tables : iterable of mapping, optional
        See `write_store`.
    storage_options : mapping, optional
        Passed to fsspec.
    consolidated, overwrite : bool, optional
        See `write_store`.
    progress : bool, optional
        Whether to show a bar, in bytes of the files; never where there is no terminal.

    Raises
    ------
    SchemaError
        If columns are absent, a line cannot be read (with file, line and byte), a synapse ``id`` is
        repeated among the kept rows, a file is given twice, sizes sum to more than int64 holds, or
        an argument is none of its words.
    IncompleteDownloadError
        If a packed file is cut short.
    SourceError
        If a file is absent or damaged, or the disk has too little room; the estimate is made from
        the first block on.
    ReleaseMismatchError
        If `units` does not say its release, or a part is of another.
    StoreFormatError
        If `out` is something else than a store, or is being written.

    Warns
    -----
    DroppedRowsWarning
        If rows are dropped because a partner is no unit, or lines are counted as bad.

    Notes
    -----
    Files are unpacked in a thread of their own, parsed and mapped block by block, and what is kept
    is written beside the store, inside ``out + ".tmp"``: rows by post in sorted runs, then pairs
    by pre. Per kept row 12 bytes of disk, 8 more with an ``id`` and up to 24 with a position.

    With ``keep="pre"`` or ``"post"``, ``synapses/`` has a row for each synapse of a unit:
    ``synapse_id``, ``nucleus_id`` of that unit, ``pre_pt_root_id`` and ``post_pt_root_id`` (0 for
    none), ``size``, and ``position`` if asked for; ascending by nucleus id, then by the root of
    the other end, then by id.

    Repeated ids are found among the rows of a pair, where the same synapse always falls.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import microns_xr as mx
    >>> folder = Path(tempfile.mkdtemp())
    >>> units = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500)).units()
    >>> a, b = units.pt_root_id.values[:2]
    >>> _ = (folder / "s.csv").write_text(f"id,pre_pt_root_id,post_pt_root_id,size\n1,{a},{b},70\n")
    >>> ingest_synapses(folder / "s.csv", units, folder / "s.zarr", progress=False)
    >>> int(mx.open_store(folder / "s.zarr").connectivity.synapse_size.sum().data.todense())
    70
    """
    if keep not in ("both", "pre", "post"):
        raise SchemaError(f"keep is {keep!r}, expected 'both', 'pre' or 'post'")
    if on_bad_lines not in ("error", "count"):
        raise SchemaError(f"on_bad_lines is {on_bad_lines!r}, expected 'error' or 'count'")
    if scope not in SCOPES:
        raise SchemaError(f"scope is {scope!r}, expected one of {SCOPES}")
    address = swap.address_of(out)
    if "://" in address:
        raise SchemaError(
            f"out is {address}, expected a local folder: an object store cannot be sorted in; "
            "copy the finished store there"
        )
    validate(units, "units")
    singles = positions or keep != "both"
    inputs = find_files(files, header, storage_options or {})
    layout = layout_of(inputs, rows, positions, singles)
    if keep != "both" and layout.labels != "pt_root_id":
        raise SchemaError(
            f"keep is {keep!r} but the table names its partners by nucleus id, expected root ids: "
            "neurons that are no units have no other"
        )
    if shared_roots is None:
        shared_roots = units.attrs.get("shared_roots", ())
    shared = as_ids(shared_roots, "shared_roots")
    template = _template(layout, units, scope, shared, repeated=False)  # refuses what it must now
    mapper = Mapper(units, layout, keep, positions, shared)
    limits = _limits(memory, mapper, singles)
    parts: dict[str, Any] = {
        name: part.compute()
        for name, part in (("units", units), ("layers", layers), ("functional", functional))
        if part is not None
    }
    tables = _tables(parts.values(), inputs) if source_tables is None else list(source_tables)
    n = units.sizes["nucleus_id"]
    try:
        with swap.replacing(address, overwrite=overwrite) as folder, ExitStack() as stack:
            work = os.path.join(folder, ".work")
            os.makedirs(work)
            small = os.path.join(work, "parts")
            write_store(small, **parts)
            root = zarr.open_group(folder, mode="a", zarr_format=3)
            columns = mapper.pair_columns
            pairs = stack.enter_context(
                Spill(os.path.join(work, "rows"), n, columns, limits.run_rows)
            )
            single = None
            if mapper.single_columns is not None:
                columns = mapper.single_columns
                path = os.path.join(work, "units")
                single = stack.enter_context(Spill(path, n, columns, limits.run_rows))
            size = sum(file.size for file in inputs)
            space = Space(folder, size, row_bytes(_bytes_of(columns), _bytes_of(columns) * singles))
            tally = read_files(
                inputs,
                layout,
                mapper,
                pairs,
                single,
                space,
                count_bad=on_bad_lines == "count",
                progress=progress,
            )
            ids = units["nucleus_id"].values
            said = f"ingest_synapses(keep={keep!r}, positions={positions}, rows={rows!r})"
            plan = SinglesPlan(
                (template["pre_nucleus_id"].variable, template["post_nucleus_id"].variable),
                *release_of(units),
                {"history": said},
                resolution_nm,
                positions,
            )
            with ChunkPool() as pool:
                copies = write_pairs(
                    root,
                    pairs,
                    template,
                    work,
                    limits,
                    plan if keep == "both" and singles else None,
                    pool,
                    progress,
                )
                if single is not None:
                    labels = mapper.units_by_position
                    write_unit_synapses(root, single, keep, labels, ids, plan, limits, pool)
                repeated = copies[0].n_connections < pairs.rows
                if repeated and layout.rows == "pair" and layout.count is None:
                    raise SchemaError(
                        f"rows is 'pair' but {pairs.rows} rows hold {copies[0].n_connections} "
                        "pairs, expected each pair once: pass rows='synapse' if they are "
                        "synapses, or add a column n_syn"
                    )
                template = _template(layout, units, scope, shared, repeated)
                template.attrs = {"source_tables": tables, **_attrs(tally, said, on_bad_lines)}
                for copy in copies:
                    copy.finish(plan_copy(template, copy.compressed))
            parent = plan_parent(template)
            root.require_group(parent.path).update_attributes(parent.attrs)
            stack.close()
            _take_over(root, folder, small, parts, tables, consolidated)
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, SourceError):
            raise
        free = shutil.disk_usage(os.path.dirname(address)).free
        raise SourceError(
            f"{address} cannot be written: the disk is full, or your share of it ({error.strerror}"
            f"; {free / 1e9:.2f} GB are free now that what was begun is removed); free some space "
            "or write elsewhere"
        ) from error
    _report(tally, copies[0].n_connections)


def _tables(parts: Iterable[xr.Dataset], inputs: Iterable[InputFile]) -> list[dict[str, Any]]:
    """List the tables behind the parts, each once, and those in the files, by their names."""
    found = [dict(table) for part in parts for table in part.attrs.get("source_tables", ())]
    found += [{"name": table_of_file(file.name)} for file in inputs]
    return [table for i, table in enumerate(found) if table not in found[:i]]


def _template(
    layout: Layout, units: xr.Dataset, scope: str, shared: np.ndarray, repeated: bool
) -> xr.Dataset:
    """Return the connectivity without a pair, with all coordinates and attributes of variables."""
    rows: Rows = "synapse" if layout.rows == "auto" and repeated else layout.rows
    names = (layout.pre, layout.post, layout.size, layout.count)
    nobody = pd.DataFrame({name: np.zeros(0, dtype=np.int64) for name in names if name is not None})
    return build_connectivity(nobody, units, scope=scope, rows=rows, shared_roots=shared)


def _attrs(tally: Tally, history: str, on_bad_lines: str) -> dict[str, Any]:
    attrs: dict[str, Any] = {"n_synapse_rows": tally.rows, "dropped_synapses": tally.dropped}
    if on_bad_lines == "count":
        attrs["bad_lines"] = tally.bad_lines
    return attrs | {"history": history}


def _bytes_of(columns: Mapping[str, str | tuple[str, int]]) -> int:
    """Return the bytes of a row, its neuron included."""
    sizes = ((s, 1) if isinstance(s, str) else s for s in columns.values())
    return 4 + sum(np.dtype(dtype).itemsize * width for dtype, width in sizes)


def _limits(memory: str | int, mapper: Mapper, singles: bool) -> Limits:
    """Return how many rows fit, of which copies are held: read, sorted, as pairs, as positions."""
    try:
        most = int(parse_bytes(memory))
    except (ValueError, AttributeError, OverflowError) as error:  # so dask says no to None
        raise SchemaError(f"memory is {memory!r}, expected bytes, as in '2 GB'") from error
    if most < _LEAST:
        raise SchemaError(
            f"memory is {most / 1e6:.0f} MB, expected at least {_LEAST / 1e6:.0f} MB: the "
            "interpreter and its libraries take most of that"
        )
    widest = _bytes_of(mapper.pair_columns)
    if mapper.single_columns is not None:
        widest += _bytes_of(mapper.single_columns)
    copies = 8 if singles else 5
    rows = int(np.clip((most - _BASE) // (copies * (widest + 24)), *_ROWS))
    return Limits(rows, rows)


def _take_over(
    root: zarr.Group,
    folder: str,
    small: str,
    parts: Mapping[str, xr.Dataset],
    tables: Iterable[Mapping[str, Any]],
    consolidated: bool,
) -> None:
    """Put the small parts in place and, last of all, make the folder a store."""
    for name in parts:
        os.rename(os.path.join(small, name), os.path.join(folder, name))
    shutil.rmtree(os.path.join(folder, ".work"))
    finish_store(root, root_attrs(parts.values(), tables), consolidated)


def _report(tally: Tally, n_pairs: int) -> None:
    dropped = tally.dropped
    reasons = ", ".join(
        f"{n} {reason.replace('_', ' ')}"
        for reason, n in dropped.items()
        if n and reason not in ("any_reason", "not_asked_for")
    )
    logger.info("connectivity: %d pairs of %d rows", n_pairs, tally.rows)
    said = []
    if dropped["any_reason"]:
        said.append(
            f"{dropped['any_reason']} of {tally.rows} rows of synapses are dropped, because a "
            f"partner is no unit: {reasons}; see .attrs['dropped_synapses']"
        )
    if tally.bad_lines:
        said.append(f"{tally.bad_lines} lines could not be read; see .attrs['bad_lines']")
    for text in said:
        warnings.warn(text, DroppedRowsWarning, stacklevel=3)
