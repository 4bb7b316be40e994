"""Writing Datasets as one store of format 1."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import dask
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from xarray.backends import BackendArray

from microns_xr.connectivity.arrays import Compressed, Pattern, pattern_of_array
from microns_xr.connectivity.blocks import (
    AXIS,
    Blocks,
    PairSource,
    block_key,
    block_spans,
    blocks_of,
    is_lazy,
    stored_source,
)
from microns_xr.errors import SchemaError, StoreFormatError
from microns_xr.provenance import release_of, require_same_release
from microns_xr.releases import table_spec
from microns_xr.schema import validate
from microns_xr.store import swap
from microns_xr.store.format import (
    CHUNK,
    FORMAT,
    FORMAT_ATTR,
    OTHER,
    json_attrs,
    pattern_problems,
    require_shards,
)
from microns_xr.store.locate import Address, locate
from microns_xr.store.open import StoredPairs
from microns_xr.store.spill import PairSpill
from microns_xr.store.stream import (
    Pairs,
    PlannedArray,
    PlannedGroup,
    create_array,
    pairs_of,
    plan_dataset,
    plan_matrix,
    plan_parent,
    transposed,
)
from microns_xr.store.synapses import plan_synapses, require_synapses

# Whether the values of a variable are still to be read from a store, and from which.


def reads_from(variable: xr.Variable, dataset: xr.Dataset, path: str) -> bool:
    """Whether a variable is lazily read from the store at `path`."""
    if variable.chunks is not None and any(
        _within(source.store_path, path) for source in _pair_sources(variable)
    ):
        return True
    arrays = list(_backend_arrays(variable))
    if not arrays and variable.chunks is None:
        return False
    found = [getattr(getattr(array, "_array", None), "store_path", None) for array in arrays]
    found += [obj.encoding.get("source") for obj in (dataset, variable)]
    return any(_within(str(place), path) for place in found if place is not None)


def _pair_sources(variable: xr.Variable) -> Iterator[StoredPairs]:
    """Yield where the blocks of lazy connectivity are read from, whatever was done to them."""
    for layer in variable.data.__dask_graph__().layers.values():
        first = next(iter(layer.values()), None)
        if isinstance(first, tuple):
            yield from (part for part in first if isinstance(part, StoredPairs))


def _backend_arrays(variable: xr.Variable) -> Iterator[BackendArray]:
    """Yield the arrays on disk below xarray's wrappers or, for dask, below the graph."""
    data: Any = variable._data
    below: list[Any] = [data]
    if variable.chunks is not None:
        layers = data.__dask_graph__().layers
        # xarray.open_zarr puts the whole array into a layer of this name, and tasks that cut it
        # into others; those are not looked at, for there may be millions.
        below = [
            value
            for name, layer in layers.items()
            if str(name).startswith("original-")
            for value in layer.values()
        ]
    for array in below:
        # A pandas index has an attribute of that name, too, but nothing of the disk below it.
        while not isinstance(array, BackendArray | pd.Index) and hasattr(array, "array"):
            array = array.array
        if isinstance(array, BackendArray):
            yield array


def _within(place: str, path: str) -> bool:
    place = place.removeprefix("file://")
    if "://" not in place and "://" not in path:
        place = os.path.realpath(place)
    return f"{place.rstrip('/')}/".startswith(f"{path.rstrip('/')}/")


# Lazy connectivity on its way to a store: both copies, never held as a whole.
#
# Pairs that are still as another store has them are read from there while they are written. All
# others are computed once, block after block, into files beside the new store; from there one
# copy is written as it is and the other sorted a stretch at a time.


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
    """Plan both copies of a lazy connectivity Dataset."""
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


_SPOOL = ".spool"  # for what is computed while it is written
# Two cores are busy with four threads: one waits for the disk or hands a block to the next step.
_THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))


def write_store(
    path: Address,
    *,
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    functional: xr.Dataset | None = None,
    connectivity: xr.Dataset | None = None,
    synapses: xr.Dataset | None = None,
    source_tables: Iterable[Mapping[str, Any]] | None = None,
    timestamp: str | datetime | None = None,
    storage_options: Mapping[str, Any] | None = None,
    shards: bool | int | None = None,
    consolidated: bool = False,
    overwrite: bool = True,
) -> None:
    """Write a release, or part of one, as a zarr store.

    The format is described in `microns_xr.store.format`. Everything is checked before anything is
    written. A local store is written beside `path` and renamed, so that `path` is always a whole
    store, the old one or the new one; an address such as ``gs://bucket/name`` must be new, and is
    a store once the last object is there.

    Parameters
    ----------
    path : str, path-like or zarr.abc.store.Store
        Folder, address of fsspec, or store of zarr, see `microns_xr.store.locate.locate`. A
        folder may hold a store, which is replaced; nothing else is ever replaced.
    units : xarray.Dataset
        Neurons, dim ``nucleus_id``.
    layers : xarray.Dataset, optional
        Layer borders, dim ``segment``, µm.
    functional : xarray.Dataset, optional
        Recorded units, dim ``scan_unit``.
    connectivity : xarray.Dataset, optional
        ``synapse_size`` and ``synapse_count`` over (``pre_nucleus_id``, ``post_nucleus_id``),
        sparse, on one pattern, and any dense variables over one of the axes.
    synapses : xarray.Dataset, optional
        Single synapses, dims ``synapse`` and ``axis``; rows ascend by ``post_index``, then
        ``pre_index``, where it has them, and are then also stored in the order of the two.
    source_tables : iterable of mapping, optional
        ``name``, ``rows`` and ``sha256`` of the tables all this was made of; by default what the
        attribute ``source_tables`` of the Datasets says.
    timestamp : str or datetime, optional
        Time of the materialization; by default the attribute ``timestamp`` of `units`.
    storage_options : mapping, optional
        For an address: login, endpoint and the like, as fsspec takes them.
    shards : bool or int, optional
        True, or the connections of one object, a multiple of 65,536: arrays of connections and of
        synapses are kept as shards, of which a neuron's part can be read alone. For object stores;
        a local store is read faster without.
    consolidated : bool, optional
        Also write the metadata of all arrays in one place, so that opening an object store takes
        one request. Buckets that others may read but not list need it.
    overwrite : bool, optional
        False refuses to replace a store.

    Raises
    ------
    SchemaError
        If a Dataset does not follow the data model, or holds what a store cannot: attributes
        without a JSON form, dtypes other than numbers, booleans and text.
    ReleaseMismatchError
        If the parts come from different releases.
    StoreFormatError
        If `path` is something else than a store, is being written by another process, is an
        address that is taken or can only be read, or is the store that a part is lazily read from.
    SourceError
        If an address cannot be reached, or refuses; what was written is left, as no store.

    Examples
    --------
    >>> import numpy as np
    >>> from microns_xr.provenance import stamp_release
    >>> units = stamp_release(xr.Dataset(coords={"nucleus_id": np.array([1, 2])}), "demo", 661)
    >>> write_store("units.zarr", units=units)
    Traceback (most recent call last):
    microns_xr.errors.SchemaError: this is not a units Dataset: pt_root_id is absent; ...
    """
    given: dict[str, xr.Dataset | None] = {
        "units": units,
        "layers": layers,
        "functional": functional,
        "connectivity": connectivity,
        "synapses": synapses,
    }
    parts = {kind: part for kind, part in given.items() if part is not None}
    place = locate(path, storage_options, writing=True)
    per_shard = require_shards(shards)
    validate(units, "units")
    _check(parts, place.address)
    tables = [kind for kind in parts if kind not in ("connectivity", "synapses")]
    groups = [plan_dataset(kind, parts[kind]) for kind in tables]
    if synapses is not None:
        groups += plan_synapses(synapses, connectivity)
    if connectivity is not None:
        groups.append(plan_parent(connectivity))
        if not is_lazy(connectivity):
            groups = [*_copies(connectivity), *groups]
    root_attrs = _root_attrs(parts, source_tables, timestamp)

    def write(root: zarr.Group, folder: str) -> None:
        spool = os.path.join(folder, _SPOOL)
        lazy = connectivity is not None and is_lazy(connectivity)
        # The copies first, so that the many small arrays fill the gaps behind them.
        both = plan_lazy(connectivity, spool) if connectivity is not None and lazy else []
        _write_groups(root, [*both, *groups], per_shard)
        shutil.rmtree(spool, ignore_errors=True)
        _finish(root, root_attrs, consolidated)

    if place.store is not None:
        try:
            root = zarr.open_group(place.store, mode="w-", zarr_format=3)
        except FileExistsError as err:
            raise StoreFormatError(
                f"{place.address} is taken, expected a new address: object stores cannot rename, "
                "so a store there is never replaced; remove what an interrupted write has left"
            ) from err
        with tempfile.TemporaryDirectory() as folder:
            write(root, folder)
        return
    with swap.replacing(place.address, overwrite=overwrite) as folder:
        write(zarr.open_group(folder, mode="a", zarr_format=3), folder)


def _copies(connectivity: xr.Dataset) -> list[PlannedGroup]:
    pairs = pairs_of(connectivity)
    return [plan_matrix(connectivity, copy) for copy in (pairs, transposed(pairs))]


def _check(parts: Mapping[str, xr.Dataset], address: str) -> None:
    for kind, part in parts.items():
        if kind == "synapses":
            require_synapses(part, parts.get("connectivity"))
        else:
            validate(part, kind)  # type: ignore[arg-type]
    require_same_release(*parts.items())
    release_of(parts["units"], "units")
    for kind, part in parts.items():
        for name, variable in part.variables.items():
            if reads_from(variable, part, address):
                raise StoreFormatError(
                    f"{name!r} of {kind} is lazily read from {address}, which would be replaced: "
                    "load it first with .load(), or write elsewhere"
                )


def _root_attrs(
    parts: Mapping[str, xr.Dataset],
    source_tables: Iterable[Mapping[str, Any]] | None,
    timestamp: str | datetime | None,
) -> dict[str, Any]:
    datastack, version = release_of(parts["units"], "units")
    if source_tables is None:
        source_tables = _tables_of(parts.values())
    tables = list(source_tables)
    if not all(isinstance(table, Mapping) and "name" in table for table in tables):
        raise SchemaError(
            f"source_tables is {tables!r}, expected mappings with name, rows and sha256"
        )
    if timestamp is None:
        timestamp = parts["units"].attrs.get("timestamp")
    if isinstance(timestamp, datetime):
        timestamp = timestamp.isoformat()
    references = {table_spec(str(table["name"])).reference for table in tables} - {None}
    return json_attrs(
        {
            FORMAT_ATTR: FORMAT,
            "datastack": datastack,
            "materialization_version": version,
            "timestamp": timestamp,
            "created_by": f"microns_xr {_version()}",
            "source_tables": tables,
            "references": sorted(str(reference) for reference in references),
        },
        "the store",
    )


def _tables_of(parts: Iterable[xr.Dataset]) -> list[Mapping[str, Any]]:
    """Collect what the Datasets say of their tables, each table once."""
    tables: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        said = part.attrs.get("source_tables", ())
        for table in said if isinstance(said, list | tuple) else [said]:
            entry = table if isinstance(table, Mapping) else {"name": str(table)}
            tables.setdefault(str(entry.get("name")), entry)
    return list(tables.values())


def _version() -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("microns-xr")
    return "unknown"


def _write_groups(root: zarr.Group, groups: list[PlannedGroup], shards: int | None) -> None:
    pool = ThreadPoolExecutor(_THREADS)
    try:
        pending = [job for group in groups for job in _submit(pool, root, group, shards)]
        for job in pending:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(root: zarr.Group, root_attrs: dict[str, Any], consolidated: bool) -> None:
    if consolidated:
        with warnings.catch_warnings():
            # zarr warns that other implementations may not know consolidated metadata
            warnings.simplefilter("ignore")
            root = zarr.consolidate_metadata(root.store, path=root.path)
    root.update_attributes(root_attrs)  # what makes it a store comes last


def _submit(
    pool: ThreadPoolExecutor, root: zarr.Group, group: PlannedGroup, shards: int | None
) -> list[Future[None]]:
    node = root.require_group(group.path)
    node.update_attributes(group.attrs)
    jobs = []
    for array in group.arrays:
        if array.shape and array.shape[0] > CHUNK:
            target = create_array(node, array, shards)
            # whole chunks, so that no two threads ever write the same one
            step = CHUNK if target.shards is None else target.shards[0]
            jobs += [
                pool.submit(_write_block, target, array, start, step)
                for start in range(0, array.shape[0], step)
            ]
        else:
            jobs.append(pool.submit(_write_whole, node, array, shards))
    return jobs


def _write_block(target: zarr.Array, array: PlannedArray, start: int, step: int) -> None:
    stop = min(start + step, array.shape[0])
    target[start:stop] = array.read(start, stop)


def _write_whole(node: zarr.Group, array: PlannedArray, shards: int | None) -> None:
    target = create_array(node, array, shards)
    if 0 not in array.shape:
        target[...] = array.read(0, array.shape[0] if array.shape else 1)
