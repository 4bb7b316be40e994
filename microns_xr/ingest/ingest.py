"""`ingest_synapses`: write the table of all synapses of a release to a store, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from dask.utils import parse_bytes

from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import PAIR_DIMS, ROOT_IDS, Compressed
from microns_xr.connectivity.build import (
    Rows,
    build_connectivity,
    repeated_pairs,
    report_rows,
    require_synapses,
)
from microns_xr.errors import SchemaError, require_instance, require_one_of
from microns_xr.files import write_error
from microns_xr.frames import Resolution, Space
from microns_xr.ingest.read import (
    Columns,
    HeaderLike,
    Keep,
    Layout,
    Mapper,
    bar,
    find_files,
    layout_of,
    read_files,
    resolution_of_files,
)
from microns_xr.provenance import (
    read_counts,
    release_of,
    require_same_release,
    table_line,
    text_lines,
)
from microns_xr.releases import datastack_of, space_of_data, table_of_file
from microns_xr.schema import SCOPES, validate
from microns_xr.store import swap
from microns_xr.store.format import OTHER, SYNAPSE_GROUP
from microns_xr.store.locate import NewFolder
from microns_xr.store.spill import Spill, Stretch, collate
from microns_xr.store.stream import (
    ChunkPool,
    Copy,
    GroupWriter,
    arrays_of,
    narrowest,
    plan_copy,
    plan_dataset,
    plan_parent,
    write_copy,
)
from microns_xr.store.synapses import plan_rows
from microns_xr.store.write import finish_store, root_attrs

# By side, whether each unit is on the axis.
Axes = dict[Compressed, np.ndarray]

_PARTS = ("units", "layers", "functional")
# The interpreter with all imports, the blocks being parsed, chunks to be written.
_BASE = 550_000_000
_LEAST = 600_000_000
# Fewest and most rows that are sorted at a time.
_ROWS = (1 << 14, 1 << 21)
# Bytes of a pair in each of the two copies (3 to 10, measured), and while it is sorted for it.
_PAIR_BYTES = 2 * (10 + 16)


def ingest_synapses(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    units: xr.Dataset | xr.DataTree | Mapping[Any, xr.Dataset],
    out: str | os.PathLike[str],
    *,
    header: HeaderLike | None = None,
    memory: str | int = "2 GB",
    keep: Keep = "both",
    positions: bool = False,
    resolution_nm: tuple[float, float, float] | None = None,
    on_bad_lines: Literal["error", "count"] = "error",
    scope: str = "unknown",
    rows: Rows = "auto",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> None:
    r"""Stream a table of synapses of any size into a store.

    The store is identical, array for array, to the one that `build_connectivity` and `write_store`
    make of these rows in memory.

    Parameters
    ----------
    files : str, path-like or iterable of them
        The table, in one file or several: csv, csv.gz or parquet, recognised by their first bytes;
        local paths or addresses of fsspec. The columns are those of `build_connectivity`, by root
        id (``pre_pt_root_id`` ...) or nucleus id (``pre_nucleus_id`` ..., preferred if there are
        both); a table of pairs has ``n_syn`` and ``sum_size``. Values must not hold line breaks.
    units : xarray.Dataset, xarray.DataTree or mapping of str to xarray.Dataset
        Units of the same release, dim ``nucleus_id``. If the scope is "unknown", the axes have
        those with a connection in the files, else all of them. Or a mapping
        with ``units`` and, to be written with them, ``layers`` and ``functional``; or a tree with
        these groups, as `open_store` returns it, whose other groups are not copied. If
        ``units.attrs["shared_roots"]`` lists the root ids that contain several nuclei (see
        ``Release.shared_roots``), they are counted separately from unknown ones.
    out : str or path-like
        Local folder of the store, which appears when it is complete; after an interruption the
        next run starts again from the beginning.
    header : path, Header or sequence of str, optional
        Columns of a csv file without a header line: a header file of the archive, or names. By
        default the file ``<name>_header.csv`` beside the data file, as in the archive; without
        one, the first line names the columns.
    memory : str or int, optional
        Maximum memory of the process, including about 0.5 GB for the interpreter and its
        libraries, but not `units` and other data of the caller. At least 600 MB; the rows of one
        neuron are always held at once.
    keep : {"both", "pre", "post"}, optional
        The connectivity is always made of rows with a unit at both ends, since only units have a
        nucleus id. "pre" and "post" also keep each row with a unit at that end and any neuron, or
        none, at the other end, as single synapses with root ids (see Notes).
    positions : bool, optional
        Keep the position of each synapse, and with "both" the synapses themselves.
    resolution_nm : tuple of float, optional
        Voxel size of the positions in nm, such as ``(1, 1, 1)``; by default what the files state
        (``dataframe_resolution`` in parquet, or in a file ``NAME.json`` beside ``NAME.csv``), else
        that of the datastack.
    on_bad_lines : {"error", "count"}, optional
        "count" leaves out lines that cannot be read, and counts them in ``attrs["bad_lines"]`` of
        the connectivity. A truncated file is always an error.
    scope : {"complete", "requested", "unknown"}, optional
        What a pair that is not in the files means, see `build_connectivity`: "complete" if they
        are the whole table of the release, so that a zero means that no synapse was seen.
        Independent of `keep`.
    rows : {"auto", "synapse", "pair"}, optional
        What a row is, see `build_connectivity`; "auto" looks for repeated pairs among the kept
        rows only.
    overwrite : bool, optional
        Replace an existing store when the new one is complete.
    storage_options : mapping, optional
        Passed to fsspec.
    progress : bool, optional
        Show a progress bar, in bytes of the files, if there is a terminal.

    Raises
    ------
    SchemaError
        If columns are absent, a line cannot be read or its synapse is outside of the volume of the
        datastack (with file, line and byte), a synapse ``id`` is repeated among the kept rows, a
        file is given twice, sizes sum to more than int64 holds, or an argument does not have one of
        its allowed values.
    IncompleteDownloadError
        If a compressed file is truncated.
    SourceError
        If a file is absent or damaged, or the disk has too little space, which is estimated from
        the first block on.
    ReleaseMismatchError
        If `units` does not state its release, or a part is of another release.
    StoreFormatError
        If `out` exists and `overwrite` is False, is not a store, or is being written.

    Warns
    -----
    DroppedRowsWarning
        If all rows are dropped because a partner is not a unit.

    Notes
    -----
    Files are decompressed in one thread and parsed block by block in others. The kept rows are
    sorted in ``out + ".microns_xr.swap"``: 12 bytes of disk per row, 8 more with an ``id`` and up
    to 24 more with a position.

    With ``keep="pre"`` or ``"post"``, ``synapses/`` has a row for each synapse of a unit:
    ``synapse_id``, ``nucleus_id`` of that unit, ``pre_pt_root_id`` and ``post_pt_root_id`` (0 for
    none), ``size``, and ``position`` if requested; ascending by nucleus id, then by the root of
    the other end, then by id.

    Repeated ids are looked for among the rows of each pair, since a synapse has only one pair.

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
    >>> int(mx.open_store(folder / "s.zarr").connectivity.synapse_size.sum())
    70
    """
    require_one_of("keep", keep, ("both", "pre", "post"))
    require_one_of("on_bad_lines", on_bad_lines, ("error", "count"))
    require_one_of("scope", scope, SCOPES)
    require_instance("out", out, (str, os.PathLike), "the path of a store")
    address = swap.address_of(out)
    if "://" in address:
        raise SchemaError(
            f"out is {address}, expected a local folder: an object store cannot be sorted in; "
            "copy the finished store there"
        )
    swap.require_replaceable(address, overwrite)
    parts: dict[str, Any] = _parts(units)
    neurons = parts["units"]
    singles = positions or keep != "both"
    inputs = find_files(files, header, storage_options or {})
    layout = layout_of(inputs, rows, positions, singles)
    if keep != "both" and layout.labels != "pt_root_id":
        raise SchemaError(
            f"keep is {keep!r} but the table names its partners by nucleus id, expected root ids: "
            "neurons that are not units have only those"
        )
    shared = as_ids(neurons.attrs.get("shared_roots", ()), "units.attrs['shared_roots']")
    # Made before hours of reading, so that invalid input raises at once.
    plans = [plan_dataset(name, part) for name, part in parts.items()]
    root_attrs(parts.values())
    everyone = np.ones(neurons.sizes["nucleus_id"], dtype=bool)
    axes: Axes = {"pre": everyone, "post": everyone}
    # Rows that may be synapses are counted until it is known that no pair has several.
    template = _template(layout, neurons, scope, axes, repeated=True)
    space = space_of_data(neurons)
    datastack = datastack_of(neurons) or ""
    if layout.labels == "pt_root_id" or datastack or singles:
        release_of(neurons, "units")
    resolution = resolution_of_files(inputs, space, resolution_nm, datastack) if positions else None
    mapper = Mapper(neurons, layout, keep, shared, space, resolution)
    max_rows = _max_rows(memory, mapper, singles)
    history = f"ingest_synapses(keep={keep!r}, positions={positions}, rows={rows!r})"
    n = neurons.sizes["nucleus_id"]
    with swap.replacing(address, overwrite=overwrite) as folder, ExitStack() as stack:
        work = stack.enter_context(TemporaryDirectory(prefix=".rows-", dir=folder))
        root = zarr.open_group(NewFolder(folder), mode="a", zarr_format=3)
        try:
            with ChunkPool() as pool:
                for plan in plans:
                    GroupWriter(root, plan, pool)
        except OSError as error:
            arrays = [array for plan in plans for array in plan.arrays]
            needed = sum(a.values.nbytes for a in arrays if a.values is not None)
            raise write_error(address, error, needed) from error
        spills = [
            stack.enter_context(Spill(os.path.join(work, f"rows{i}"), n, columns, max_rows))
            for i, columns in enumerate(mapper.columns)
        ]
        # Single synapses are spilled once more and stored twice.
        row_bytes = _bytes_of(mapper.columns[-1]) * (4 if singles else 1) + _PAIR_BYTES
        count_bad = on_bad_lines == "count"
        counts = read_files(inputs, layout, mapper, spills, row_bytes, count_bad, progress)
        if scope == "unknown":  # only now is it known which neurons the files name
            spills[0].flush()
            axes = {"pre": mapper.named_pre, "post": spills[0].per_major > 0}
            template = _template(layout, neurons, scope, axes, repeated=True)
        with ChunkPool() as pool:
            writer = _Writer(
                root, work, template, axes, max_rows, pool, space, resolution, history,
                progress,
            )  # fmt: skip
            pairs = {side: stack.enter_context(writer.spill_of_pairs(side)) for side in OTHER}
            writer.sum_pairs(spills[0], pairs, singles and keep == "both")
            if keep != "both":
                ids = neurons["nucleus_id"].values
                writer.write_unit_synapses(spills[1], keep, ids, mapper.units_by_position)
            # Only now is it known whether a pair has several rows, so that rows are synapses.
            n_rows, n_pairs = spills[0].rows, pairs["post"].rows
            repeated = n_pairs < n_rows
            if repeated and layout.rows == "pair":
                raise repeated_pairs(n_rows, n_pairs)
            if repeated and layout.rows == "auto":
                require_synapses(writer.n_same_size, n_rows - n_pairs, n_rows)
            template = _template(layout, neurons, scope, axes, repeated)
            tables = _tables(
                parts.values(), [file.name for file in inputs], datastack, counts["rows"]
            )
            reasons = read_counts(template, "dropped_synapses")
            dropped = {reason: counts[reason] for reason in reasons}
            if counts["not_valid"]:
                dropped["not_valid"] = counts["not_valid"]
            template.attrs = {
                "source_tables": tables,
                "n_synapse_rows": counts["rows"],
                "dropped_synapses": text_lines(dropped),
                **({"bad_lines": counts["bad_lines"]} if count_bad else {}),
                "history": [history],
            }
            GroupWriter(root, plan_parent(template), pool)
            for side, of_side in pairs.items():
                blocks = of_side.pairs(max_rows, arrays_of(template).values())
                copy = Copy(side, n_pairs, writer.dtypes, blocks)
                write_copy(root, plan_copy(template, side), pool, copy)
        stack.close()
        finish_store(root, root_attrs(parts.values(), tables), consolidated=False)
    note = f"; {counts['bad_lines']} lines could not be read" if count_bad else ""
    report_rows(n_pairs, counts["rows"], dropped, note)


def _parts(units: Any) -> dict[str, xr.Dataset]:
    """Return the Datasets that are written beside the synapses, in memory, units first."""
    parts = {"units": units} if isinstance(units, xr.Dataset) else units
    if isinstance(units, xr.DataTree):
        parts = {name: units[name].to_dataset() for name in _PARTS if name in units.children}
        if "nucleus_id" in units.coords:  # tree["units"]
            parts = {"units": units.to_dataset()}
    if not isinstance(parts, Mapping) or "units" not in parts or not set(parts) <= set(_PARTS):
        names = list(parts) if isinstance(parts, Mapping) else type(parts).__name__
        raise SchemaError(
            f"units is {names}, expected the units Dataset, or a tree or mapping of 'units' and, "
            "optionally, 'layers' and 'functional'"
        )
    parts = {name: parts[name].compute() for name in _PARTS if parts.get(name) is not None}
    for name, part in parts.items():
        validate(part, name)  # type: ignore[arg-type]
    require_same_release(*parts.items())
    return parts


def _template(
    layout: Layout, units: xr.Dataset, scope: str, axes: Axes, repeated: bool
) -> xr.Dataset:
    """Return connectivity without pairs, with all coordinates and attributes of variables."""
    ids = units["nucleus_id"].values
    pre, post = ids[axes["pre"]], ids[axes["post"]]
    rows: Rows = "synapse" if layout.rows == "auto" and repeated else layout.rows
    names = [name for role, name in layout.columns.items() if role != "id"]
    no_rows = pd.DataFrame({name: np.zeros(0, dtype=np.int64) for name in names})
    return build_connectivity(no_rows, units, pre=pre, post=post, scope=scope, rows=rows)


def _bytes_of(columns: Columns) -> int:
    """Return the bytes of a row, including its neuron."""
    return 4 + sum(np.dtype(dtype).itemsize for dtype in columns.values())


def _max_rows(memory: str | int, mapper: Mapper, singles: bool) -> int:
    """Return how many rows fit in memory, with all copies that are made of them."""
    try:
        max_bytes = int(parse_bytes(memory))
    except (ValueError, AttributeError, OverflowError) as error:  # AttributeError for None
        raise SchemaError(f"memory is {memory!r}, expected bytes, as in '2 GB'") from error
    if max_bytes < _LEAST:
        raise SchemaError(
            f"memory is {max_bytes / 1e6:.0f} MB, expected at least {_LEAST / 1e6:.0f} MB: the "
            "interpreter and its libraries take most of that"
        )
    widest = sum(map(_bytes_of, mapper.columns))
    copies = 8 if singles else 5  # read, sorted, as pairs, as positions
    return int(np.clip((max_bytes - _BASE) // (copies * (widest + 24)), *_ROWS))


class _Writer:
    """Writes the arrays of the store from the rows on disk."""

    def __init__(
        self,
        root: zarr.Group,
        work: str,
        template: xr.Dataset,
        axes: Axes,
        max_rows: int,
        pool: ChunkPool,
        space: Space,
        resolution_nm: Resolution | None,
        history: str,
        progress: bool,
    ) -> None:
        self._root, self._work, self._template = root, work, template
        self._on_post = axes["post"]
        # Number of neurons on the axis before each unit, which is the position of those on it.
        self._places = {side: np.append(0, np.cumsum(on)) for side, on in axes.items()}
        self._max_rows, self._pool, self._progress = max_rows, pool, progress
        self._space, self._resolution_nm = space, resolution_nm  # None without positions
        # on disk, of each array of weights; int64 as soon as a sum needs it
        self.dtypes = dict.fromkeys(arrays_of(template).values(), "int32")
        self.n_same_size = 0  # rows that repeat both the pair and the size of another
        self._plan: dict[str, Any] = {
            "space": space,
            "release": release_of(template) if "datastack" in template.coords else None,
            "positions": resolution_nm is not None,
            "attrs": {"history": [history]},
        }

    def spill_of_pairs(self, side: Compressed) -> Spill:
        """Return where the pairs are sorted by the neurons of one side."""
        columns: Columns = {"indices": "int32", **dict.fromkeys(self.dtypes, "int64")}
        n = self._template.sizes[f"{side}_nucleus_id"]
        return Spill(os.path.join(self._work, f"pairs by {side}"), n, columns, self._max_rows)

    def sum_pairs(self, rows: Spill, pairs: Mapping[Compressed, Spill], singles: bool) -> None:
        """Sum the rows of each pair and, if `singles`, write the synapses themselves."""
        max_rows = self._max_rows
        with ExitStack() as stack:
            progress_bar = stack.enter_context(bar(rows.rows, "sorting", " rows", self._progress))
            table = None
            if singles:
                columns: Columns = {"synapse_id": "int64", "post_index": "int32", "size": "int64"}
                if self._resolution_nm is not None:
                    columns["point"] = ("float64", 3)
                n_pre = self._template.sizes["pre_nucleus_id"]
                synapses = stack.enter_context(
                    Spill(os.path.join(self._work, "synapses"), n_pre, columns, max_rows)
                )
                rows.flush()
                table = self._synapses_by("post", rows.per_major[self._on_post])
            for part in map(self._on_axes, rows.stretches(max_rows)):
                order, first, lengths = collate(
                    part.starts, part.columns["indices"], part.columns.get("id")
                )
                # Ids are needed further only if the synapses themselves are written.
                names = [name for name in part.columns if singles or name != "id"]
                values = {name: part.columns[name][order] for name in names}
                pre = values["indices"][first]
                post = np.repeat(np.arange(part.first, part.last, dtype=np.int32), lengths)
                weights = {"data": _sums(values["size"], first)}
                if "id" not in part.columns and len(first) < len(order):
                    self.n_same_size += _repeated_sizes(values["size"], first)
                if "synapse_count" in self.dtypes:
                    # One synapse per row, unless the table counts them.
                    count = np.diff(first, append=len(order))
                    if "count" in values:
                        count = _sums(values["count"], first)
                    weights["synapse_count"] = count
                self.dtypes |= {k: "int64" for k, v in weights.items() if narrowest(v) == "int64"}
                pairs["post"].append(post, {"indices": pre, **weights})
                pairs["pre"].append(pre, {"indices": post, **weights})
                if table is not None:
                    row = {"post_index": part.majors, "synapse_id": values["id"]}
                    row |= {name: values[name] for name in ("size", "point") if name in values}
                    synapses.append(values["indices"], row)
                    self._append(table, row | {"pre_index": values["indices"]})
                progress_bar.update(len(order))
            if table is not None:
                table.finish()
                synapses.flush()  # the pointers to the rows of each neuron are written first
                table = self._synapses_by("pre", synapses.per_major)
                for part in synapses.stretches(max_rows):
                    self._append(table, part.columns | {"pre_index": part.majors})
                table.finish()

    def _on_axes(self, part: Stretch) -> Stretch:
        """Return rows by position on the axes instead of among the units."""
        pre, post = self._places["pre"], self._places["post"]
        # Units that are not on the axis have no row.
        starts = part.starts[np.append(self._on_post[part.first : part.last], True)]
        indices = pre[part.columns["indices"]].astype(np.int32)
        columns = part.columns | {"indices": indices}
        return Stretch(int(post[part.first]), int(post[part.last]), starts, columns)

    def _synapses_by(self, axis: Compressed, lengths: np.ndarray) -> GroupWriter:
        columns = {"synapse_id": "int64", "pre_index": "int32", "post_index": "int32"}
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        plan = plan_rows(
            SYNAPSE_GROUP[axis],
            int(indptr[-1]),
            columns | {"size": "int64"},
            **self._plan,
            labels={name: self._template[name].variable for name in (*PAIR_DIMS, *ROOT_IDS)},
            pointer=(axis, indptr),
        )
        return GroupWriter(self._root, plan, self._pool)

    def _append(self, table: GroupWriter, columns: Mapping[str, np.ndarray]) -> None:
        columns = dict(columns)
        if self._resolution_nm is not None:
            columns["position"] = self._space.to_um(columns.pop("point"), self._resolution_nm)
        table.append(columns)

    def write_unit_synapses(
        self, rows: Spill, keep: str, nucleus_ids: np.ndarray, roots: np.ndarray
    ) -> None:
        """Write the synapses that have a unit at one end, by the root ids of both."""
        rows.flush()
        other = "post" if keep == "pre" else "pre"
        names = ("synapse_id", "nucleus_id", "pre_pt_root_id", "post_pt_root_id", "size")
        plan = plan_rows(
            "synapses",
            int(rows.per_major.sum()),
            dict.fromkeys(names, "int64"),
            **self._plan,
        )
        for array in plan.arrays:
            if array.name == "nucleus_id":
                array.attrs["long_name"] = f"nucleus of the {keep}synaptic neuron"
        table = GroupWriter(self._root, plan, self._pool)
        for part in rows.stretches(self._max_rows):
            _, rank = np.unique(part.columns["root"], return_inverse=True)
            order, _, _ = collate(part.starts, rank.astype(np.int32), part.columns["id"])
            values = {name: column[order] for name, column in part.columns.items()}
            columns = {
                "synapse_id": values["id"],
                "nucleus_id": nucleus_ids[part.majors],
                f"{keep}_pt_root_id": roots[part.majors],
                f"{other}_pt_root_id": values["root"],
                "size": values["size"],
            }
            self._append(table, columns | {n: values[n] for n in ("point",) if n in values})
        table.finish()


def _sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Sum the rows of each pair."""
    return np.add.reduceat(values, first) if len(first) else values


def _repeated_sizes(sizes: np.ndarray, first: np.ndarray) -> int:
    """Count the rows that have the size of another row of their pair."""
    pair = np.repeat(np.arange(len(first)), np.diff(first, append=len(sizes)))
    order = np.lexsort([sizes, pair])
    return int(((np.diff(pair[order]) == 0) & (np.diff(sizes[order]) == 0)).sum())


def _tables(
    parts: Iterable[xr.Dataset], files: list[str], datastack: str, n_rows: int
) -> list[str]:
    """List the source tables of the parts and those of the files, without duplicates."""
    tables = [line for part in parts for line in text_lines(part.attrs.get("source_tables"))]
    names = dict.fromkeys(table_of_file(file, datastack) for file in files)
    rows = {"rows": n_rows} if len(names) == 1 else {}  # not counted by file
    return list(dict.fromkeys([*tables, *(table_line({"name": name} | rows) for name in names)]))
