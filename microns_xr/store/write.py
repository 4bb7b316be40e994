"""Writing Datasets as one store of format 1."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from xarray.backends import BackendArray

from microns_xr import __version__
from microns_xr.connectivity.arrays import (
    Compressed,
    Pattern,
    pair_buffers,
    pattern_of_array,
)
from microns_xr.connectivity.blocks import (
    AXIS,
    Blocks,
    block_key,
    block_spans,
    blocks_of,
    is_lazy,
    stored_source,
)
from microns_xr.connectivity.sort import take_values, transpose_pattern
from microns_xr.errors import SchemaError, StoreFormatError
from microns_xr.provenance import release_of, require_same_release
from microns_xr.releases import table_spec
from microns_xr.schema import validate
from microns_xr.store import swap
from microns_xr.store.format import (
    FORMAT,
    FORMAT_ATTR,
    OTHER,
    json_attrs,
    pattern_problem,
)
from microns_xr.store.locate import Address, writable
from microns_xr.store.open import StoredPairs
from microns_xr.store.spill import Spill
from microns_xr.store.stream import (
    PAIR_VALUES,
    ChunkPool,
    CopyWriter,
    GroupWriter,
    narrowest,
    plan_copy,
    plan_dataset,
    plan_parent,
)
from microns_xr.store.synapses import plan_synapses, require_synapses

# Two cores are busy with four threads: one waits for the disk or hands a block to the next step.
_THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))
_RUN = 1 << 20  # pairs that are sorted or reordered at a time
_TABLES = ("units", "layers", "functional")

# Both copies as they are written. Of each its compressed axis, number of pairs, dtypes of size and
# count on disk, and its pairs as `CopyWriter.append` takes them, block by block.
_Block = tuple[np.ndarray, ...]
_Copies = Generator[tuple[Compressed, int, tuple[str, str], Iterable[_Block]], None, None]


def write_store(
    path: Address,
    *,
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    functional: xr.Dataset | None = None,
    connectivity: xr.Dataset | None = None,
    synapses: xr.Dataset | None = None,
    shards: bool = False,
    consolidated: bool = False,
    overwrite: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a release, or part of one, as a zarr store.

    The format is described in `microns_xr.store.format`. Everything is checked before anything is
    written. A local store is written beside `path` and renamed, so that `path` is always a whole
    store, the old one or the new one; an address such as ``gs://bucket/name`` must be new, and is
    a store once the last object is there.

    The attributes of the root name the tables it was all made of, as the attributes
    ``source_tables`` of the Datasets do (``name``, ``rows`` and ``sha256`` of each), the papers to
    cite for them, and the time of the materialization, the attribute ``timestamp`` of `units`.

    Parameters
    ----------
    path : str, path-like or zarr.abc.store.Store
        A local folder; an address of fsspec (``s3://``, ``gs://``, ``memory://``); or a store of
        zarr. A folder may hold a store, which is replaced; nothing else is ever replaced.
    units : xarray.Dataset
        Neurons, dim ``nucleus_id``.
    layers : xarray.Dataset, optional
        Layer borders, dim ``segment``, µm.
    functional : xarray.Dataset, optional
        Recorded units, dim ``scan_unit``.
    connectivity : xarray.Dataset, optional
        ``synapse_size`` and ``synapse_count`` over (``pre_nucleus_id``, ``post_nucleus_id``),
        sparse, on one pattern, in memory or lazy, and any dense variables over one of the axes.
    synapses : xarray.Dataset, optional
        Single synapses, dims ``synapse`` and ``axis``; rows ascend by ``post_index``, then
        ``pre_index``, where it has them, and are then also stored in the order of the two.
    shards : bool, optional
        Store arrays of connections and of synapses as shards of 4 million, so that there are fewer
        objects, of which a neuron's part can be read alone. For object stores; a local store is
        read faster without.
    consolidated : bool, optional
        Also write the metadata of all arrays in one place, so that opening an object store takes
        one request. Buckets that others may read but not list need it.
    overwrite : bool, optional
        False refuses to replace a store.
    storage_options : mapping, optional
        For an address: login, endpoint and the like, as fsspec takes them.

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
        If an address cannot be reached, or refuses; what was written is left, but is not a store.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> write_store("memory://demo.zarr", units=release.units(), layers=release.layers())
    >>> list(mx.open_store("memory://demo.zarr").children)
    ['units', 'layers']
    """
    every = {
        "units": units,
        "layers": layers,
        "functional": functional,
        "connectivity": connectivity,
        "synapses": synapses,
    }
    parts: dict[str, xr.Dataset] = {k: part for k, part in every.items() if part is not None}
    address, store = writable(path, storage_options)
    _check(parts, address)
    plans = [plan_dataset(kind, part) for kind, part in parts.items() if kind in _TABLES]
    if synapses is not None:
        plans += plan_synapses(synapses, connectivity)
    copy_plans, pairs = {}, None
    if connectivity is not None:
        plans.append(plan_parent(connectivity))
        copy_plans = {axis: plan_copy(connectivity, axis) for axis in OTHER}
        pairs = None if is_lazy(connectivity) else _pairs_of(connectivity)
    attrs = root_attrs(parts.values())

    def write(root: zarr.Group, folder: str | None) -> None:
        with ChunkPool(_THREADS) as pool:
            # The copies first, so that the many small arrays fill the gaps behind them.
            if connectivity is not None:
                copies = _copies(connectivity, folder) if pairs is None else _copies_of(*pairs)
                with closing(copies):
                    for axis, n_pairs, dtypes, blocks in copies:
                        copy = CopyWriter(root, copy_plans[axis], pool, shards, n_pairs, dtypes)
                        for block in blocks:
                            copy.append(*block)
                        copy.finish()
            for plan in plans:
                GroupWriter(root, plan, pool, shards)
        finish_store(root, attrs, consolidated)

    if store is None:
        with swap.replacing(address, overwrite=overwrite) as folder:
            write(zarr.open_group(folder, mode="a", zarr_format=3), folder)
        return
    try:
        root = zarr.open_group(store, mode="w-", zarr_format=3)
    except FileExistsError as err:
        raise StoreFormatError(
            f"{address} is taken, expected a new address: object stores cannot rename, so a store "
            "there is never replaced; remove what an interrupted write has left"
        ) from err
    write(root, None)


def _check(parts: Mapping[str, xr.Dataset], address: str) -> None:
    for kind, part in parts.items():
        if kind == "synapses":
            require_synapses(part, parts.get("connectivity"))
        else:
            validate(part, kind)  # type: ignore[arg-type]
    require_same_release(*parts.items())
    release_of(parts["units"], "units")
    # A lazy part that reads from the store could not be used any more once the store is replaced.
    for kind, part in parts.items():
        for name, variable in part.variables.items():
            if _reads_from(variable, part, address):
                raise StoreFormatError(
                    f"{name!r} of {kind} is lazily read from {address}, which would be replaced: "
                    "load it first with .load(), or write elsewhere"
                )


def _reads_from(variable: xr.Variable, dataset: xr.Dataset, address: str) -> bool:
    """Whether a variable is still to be read, lazily, from the store at an address."""
    places = list(_places(variable))
    if places or variable.chunks is not None:
        places += [obj.encoding.get("source") for obj in (dataset, variable)]
    return any(_within(str(place), address) for place in places if place is not None)


def _places(variable: xr.Variable) -> Iterator[Any]:
    """Yield where the arrays below xarray's wrappers, or below a graph of dask, are on disk."""
    below: list[Any] = [variable._data]
    if variable.chunks is not None:
        # One task of each layer, for there may be millions: all tasks of a layer are alike.
        layers = variable.data.__dask_graph__().layers.values()
        tasks = [next(iter(layer.values()), None) for layer in layers]
        below = [part for task in tasks for part in (task if isinstance(task, tuple) else [task])]
    for array in below:
        # A pandas index has an attribute of that name, too, but nothing of the disk below it.
        while not isinstance(array, BackendArray | pd.Index) and hasattr(array, "array"):
            array = array.array
        if isinstance(array, StoredPairs):
            yield array.address
        elif isinstance(array, BackendArray):
            yield getattr(getattr(array, "_array", None), "store_path", None)


def _within(place: str, address: str) -> bool:
    place = place.removeprefix("file://")
    if "://" not in place and "://" not in address:
        place = os.path.realpath(place)
    return f"{place.rstrip('/')}/".startswith(f"{address.rstrip('/')}/")


def root_attrs(
    parts: Iterable[xr.Dataset], tables: Iterable[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the attributes of the root of a store; by default of the tables the parts name."""
    units, *_ = parts = list(parts)
    datastack, version = release_of(units, "units")
    tables = _tables_of(parts) if tables is None else list(tables)
    if not all(isinstance(table, Mapping) and "name" in table for table in tables):
        raise SchemaError(
            f"source_tables is {tables!r}, expected mappings with name, rows and sha256"
        )
    references = {table_spec(str(table["name"])).reference for table in tables} - {None}
    attrs = {
        FORMAT_ATTR: FORMAT,
        "datastack": datastack,
        "materialization_version": version,
        "timestamp": units.attrs.get("timestamp"),
        "created_by": f"microns_xr {__version__}",
        "source_tables": tables,
        "references": sorted(str(reference) for reference in references),
    }
    return json_attrs(attrs, "the store")


def _tables_of(parts: Iterable[xr.Dataset]) -> list[Mapping[str, Any]]:
    """Collect the tables that the attributes of Datasets name, each table once."""
    tables: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        named = part.attrs.get("source_tables", ())
        for table in named if isinstance(named, list | tuple) else [named]:
            entry = table if isinstance(table, Mapping) else {"name": str(table)}
            tables.setdefault(str(entry.get("name")), entry)
    return list(tables.values())


def finish_store(root: zarr.Group, attrs: Mapping[str, Any], consolidated: bool) -> None:
    """Write what makes it a store: the attributes of the root, last of all."""
    if consolidated:
        with warnings.catch_warnings():
            # zarr warns that other implementations may not know consolidated metadata
            warnings.simplefilter("ignore")
            root = zarr.consolidate_metadata(root.store, path=root.path)
    root.update_attributes(dict(attrs))


def _pairs_of(connectivity: xr.Dataset) -> tuple[Pattern, dict[str, np.ndarray]]:
    """Return the pairs of connectivity in memory, checked: pattern and values."""
    pattern, values = pair_buffers(connectivity, PAIR_VALUES)
    _require(pattern_problem(pattern.indices, pattern.indptr, pattern.shape, pattern.compressed))
    return pattern, values


def _require(problem: str | None) -> None:
    if problem:
        raise SchemaError(
            f"connectivity cannot be written: {problem}; build it with mx.build_connectivity"
        )


def _copies_of(pattern: Pattern, values: Mapping[str, np.ndarray]) -> _Copies:
    """Yield both copies of pairs in memory: the one that is there as one block, then the other."""
    columns = [values[name] for name in PAIR_VALUES]
    dtypes = narrowest(columns[0]), narrowest(columns[1])
    block = (np.diff(pattern.indptr), pattern.indices, *columns)
    yield pattern.compressed, pattern.nnz, dtypes, [block]
    other = transpose_pattern(pattern.indices, pattern.indptr, pattern.n_minor)

    def read(name: str, start: int, stop: int) -> np.ndarray:
        # Block by block, so that the values are never in memory twice; on one thread, because the
        # others are busy with writing.
        if name == "indices":
            return other.indices[start:stop]
        return take_values(values[name], other.source[start:stop], threads=1)

    yield OTHER[pattern.compressed], pattern.nnz, dtypes, _blocks(other.indptr, read, _RUN)


def _copies(connectivity: xr.Dataset, folder: str | None) -> _Copies:
    """Yield both copies of lazy pairs: from the store they are in, or as they are computed."""
    blocks = blocks_of(connectivity, PAIR_VALUES)
    source = stored_source(blocks.arrays)
    if source is not None and (other := source.other()) is not None:
        for copy in (source, other):
            size, count = (copy.read(name, 0, 0).dtype.name for name in PAIR_VALUES)
            n_pairs = int(copy.indptr[-1])
            yield copy.compressed, n_pairs, (size, count), _blocks(copy.indptr, copy.read)
        return
    # As large as the pairs: inside the new store, where there has to be room for them anyway.
    with tempfile.TemporaryDirectory(prefix=".pairs-", dir=folder) as work:
        yield from _computed(blocks, work)


def _blocks(
    indptr: np.ndarray, read: Callable[[str, int, int], np.ndarray], pairs: int | None = None
) -> Iterator[_Block]:
    """Yield the pairs of neighbouring neurons, about `pairs` at a time."""
    for lo, hi in block_spans(indptr, pairs):
        span = int(indptr[lo]), int(indptr[hi])
        columns = (read(name, *span) for name in ("indices", *PAIR_VALUES))
        yield np.diff(indptr[lo : hi + 1]), *columns


def _computed(blocks: Blocks, folder: str) -> _Copies:
    """Compute all pairs once, block by block, and sort them on disk for either copy."""
    lengths = {blocks.compressed: blocks.n_major, OTHER[blocks.compressed]: blocks.n_minor}
    columns = {"indices": "int32", "size": "int64", "count": "int64"}
    size_dtype = count_dtype = "int32"
    with ExitStack() as stack:
        spills = [
            stack.enter_context(Spill(os.path.join(folder, side), n, columns, _RUN))
            for side, n in lengths.items()
        ]
        for i, (first, _) in enumerate(blocks.spans):
            # Number of pairs and dtypes have to be known before the first array is created.
            pattern, size, count = _computed_pairs(blocks, i)
            size_dtype = max(size_dtype, narrowest(size))
            count_dtype = max(count_dtype, narrowest(count))
            # In pieces of a run, so that sorting one takes little beside the block.
            for lo, hi in block_spans(pattern.indptr, _RUN):
                span = slice(int(pattern.indptr[lo]), int(pattern.indptr[hi]))
                neurons = np.arange(first + lo, first + hi, dtype=np.int32)
                majors = np.repeat(neurons, np.diff(pattern.indptr[lo : hi + 1]))
                ends = majors, pattern.indices[span]
                values = {"size": size[span], "count": count[span]}
                for spill, major, minor in zip(spills, ends, ends[::-1], strict=True):
                    spill.append(major, {"indices": minor, **values})
            for spill in spills:
                spill.flush()  # what waits there are views of this block
        for side, spill in zip(lengths, spills, strict=True):
            parts = ((part.lengths, *part.columns.values()) for part in spill.stretches(_RUN))
            yield side, spill.rows, (size_dtype, count_dtype), parts


def _computed_pairs(blocks: Blocks, i: int) -> tuple[Pattern, np.ndarray, np.ndarray]:
    at = block_key(AXIS[blocks.compressed], i)
    parts = dask.compute(*(blocks.arrays[name].blocks[at] for name in PAIR_VALUES))
    (pattern, size), (other, count) = (
        pattern_of_array(part, name, blocks.compressed)
        for name, part in zip(PAIR_VALUES, parts, strict=True)
    )
    for name, values in zip(PAIR_VALUES, (size, count), strict=True):
        if not np.can_cast(values.dtype, np.int64):
            _require(f"{name} is {values.dtype}, expected integers")
    if not pattern.same_pairs(other):
        _require("synapse_count and synapse_size store different pairs")
    _require(pattern_problem(pattern.indices, pattern.indptr, pattern.shape, pattern.compressed))
    return pattern, size.astype(np.int64, copy=False), count.astype(np.int64, copy=False)
