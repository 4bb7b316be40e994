"""Write Datasets as one store of format 1."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from xarray.backends import BackendArray
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from microns_xr import __version__
from microns_xr.connectivity.arrays import (
    Pattern,
    as_pairs,
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
from microns_xr.connectivity.sort import transpose_pairs
from microns_xr.errors import SchemaError, StoreFormatError
from microns_xr.provenance import (
    RELEASE_COORDS,
    require_same_release,
    source_names,
    text_lines,
)
from microns_xr.releases import papers_of
from microns_xr.schema import validate
from microns_xr.store import swap
from microns_xr.store.format import (
    CHECKSUMS_ATTR,
    FORMAT,
    FORMAT_ATTR,
    ID_ATTR,
    OTHER,
    compressors,
    json_attrs,
    metadata_checksum,
    pattern_problem,
    root_checksum,
)
from microns_xr.store.locate import Address, NewFolder, writable
from microns_xr.store.nodes import StoredPairs
from microns_xr.store.open import LabelArray
from microns_xr.store.spill import Spill
from microns_xr.store.stream import (
    ChunkPool,
    Copy,
    GroupWriter,
    PairBlock,
    PlannedGroup,
    arrays_of,
    narrowest,
    plan_copy,
    plan_dataset,
    plan_parent,
    write_copy,
)
from microns_xr.store.synapses import plan_synapses, require_synapses

# Two threads per core: while one waits for the disk or hands over a block, the other computes.
_THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))
_RUN = 1 << 20  # pairs that are sorted or reordered at a time
_TABLES = ("units", "layers", "functional")

# The values of each array on disk.
_Values = dict[str, np.ndarray]


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
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a release, or part of one, as a zarr store.

    The format is described in `microns_xr.store.format`. Everything is checked before anything is
    written. A local store is written beside `path` and renamed, so that `path` is always a complete
    store, the old or the new one. A URL such as ``gs://bucket/name`` must be new; it becomes a
    store when the last object is written.

    The attributes of the root list the source tables, taken from the attributes ``source_tables``
    of the Datasets (``name``, ``rows`` and ``sha256`` of each), the papers to cite for them, and
    the time of the materialization, the attribute ``timestamp`` of `units`.

    Parameters
    ----------
    path : str, path-like or zarr.abc.store.Store
        A local folder, an fsspec URL (``s3://``, ``gs://``, ``memory://``) or a zarr store.
    units : xarray.Dataset
        Neurons, dim ``nucleus_id``.
    layers : xarray.Dataset, optional
        Layer borders, dim ``segment``, µm.
    functional : xarray.Dataset, optional
        Recorded units, dim ``scan_unit``.
    connectivity : xarray.Dataset, optional
        ``synapse_size``, ``synapse_count`` or other weights over (``pre_nucleus_id``,
        ``post_nucleus_id``), on one pattern, in memory or lazy, and any dense variables over one
        of the axes.
    synapses : xarray.Dataset, optional
        Single synapses, dims ``synapse`` and ``axis``, each ``synapse_id`` once. If they have
        ``pre_nucleus_id`` and ``post_nucleus_id``, which must be on the axes of `connectivity`,
        they are stored twice, sorted by post and by pre.
    shards : bool, optional
        Store arrays of connections and of synapses as shards of 4 million, so that there are fewer
        objects and single neurons can still be read. For object stores; a local store is faster
        to read without.
    consolidated : bool, optional
        Also write the metadata of all arrays in one place, so that opening an object store takes
        one request. Required for buckets that can be read but not listed.
    overwrite : bool, optional
        Replace a store in the folder; a folder with anything else is always an error.
    storage_options : mapping, optional
        Options for fsspec if `path` is a URL, such as credentials or an endpoint.

    Raises
    ------
    SchemaError
        If a Dataset does not follow the data model, or has attributes that JSON cannot represent
        or dtypes other than numbers, booleans and text.
    ReleaseMismatchError
        If the parts come from different releases.
    StoreFormatError
        If `path` exists and `overwrite` is False, is something other than a store, is being
        written by another process, is a URL that is taken or read-only, or is the store from which
        a part is lazily read.
    SourceError
        If a URL cannot be reached, or access is denied. Objects that were written remain, but are
        not a store.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> write_store("memory://demo.zarr", units=release.units(), layers=release.layers())
    >>> list(mx.open_store("memory://demo.zarr").children)
    ['units', 'layers']
    """
    every: dict[str, Any] = {
        "units": units,
        "layers": layers,
        "functional": functional,
        "connectivity": connectivity,
        "synapses": synapses,
    }
    parts: dict[str, xr.Dataset] = {
        k: part for k, part in every.items() if part is not None or k == "units"
    }
    if connectivity is not None:
        parts["connectivity"] = connectivity = as_pairs(connectivity)
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
            # The copies come first, so that the many small arrays fill idle threads at the end.
            if connectivity is not None:
                copies = _copies(connectivity, folder) if pairs is None else _copies_of(*pairs)
                with closing(copies):
                    for copy in copies:
                        write_copy(root, copy_plans[copy.compressed], pool, copy, shards)
            for plan in plans:
                GroupWriter(root, plan, pool, shards)
        finish_store(root, attrs, consolidated)

    if store is None:
        needed = _bytes_of(plans, pairs) if pairs or connectivity is None else None
        with swap.replacing(address, overwrite=overwrite, needed=needed) as folder:
            write(zarr.open_group(NewFolder(folder), mode="a", zarr_format=3), folder)
        return
    try:
        root = zarr.open_group(store, mode="w-", zarr_format=3)
    except FileExistsError as err:
        raise StoreFormatError(
            f"{address} is taken, expected a new address: object stores cannot rename, so a store "
            "there is never replaced; remove objects that an interrupted write has left"
        ) from err
    write(root, None)


def _bytes_of(
    plans: Iterable[PlannedGroup], pairs: tuple[Pattern, dict[str, np.ndarray]] | None
) -> int:
    """Return the bytes of all arrays, not compressed."""
    n = sum(a.values.nbytes for p in plans for a in p.arrays if a.values is not None)
    if pairs is None:
        return n
    pattern, values = pairs
    # both copies: positions on both axes, and weights as int32 or float64
    widths = [8 if stored.dtype.kind == "f" else 4 for stored in values.values()]
    return n + 2 * pattern.nnz * (8 + sum(widths))


def _check(parts: Mapping[str, xr.Dataset], address: str) -> None:
    for kind, part in parts.items():
        if kind == "synapses":
            require_synapses(part)
        else:
            validate(part, kind)  # type: ignore[arg-type]
    require_same_release(*parts.items())
    # A lazy part that reads from the store would be unusable once the store is replaced.
    for kind, part in parts.items():
        for name, variable in part.variables.items():
            if _reads_from(variable, part, address):
                raise StoreFormatError(
                    f"{name!r} of {kind} is lazily read from {address}, which would be replaced: "
                    "load it first with .load(), or write elsewhere"
                )


def _reads_from(variable: xr.Variable, dataset: xr.Dataset, address: str) -> bool:
    """Whether a variable is lazy and reads from the store at an address."""
    places = list(_addresses_of(variable))
    if places or variable.chunks is not None:
        places += [obj.encoding.get("source") for obj in (dataset, variable)]
    return any(_is_within(str(place), address) for place in places if place is not None)


def _addresses_of(variable: xr.Variable) -> Iterator[Any]:
    """Yield addresses of the arrays on disk below xarray's wrappers or a dask graph."""
    below: list[Any] = [variable._data]
    if variable.chunks is not None:
        # Check one task per layer: there may be millions, and all tasks of a layer are alike.
        layers = variable.data.__dask_graph__().layers.values()
        tasks = [next(iter(layer.values()), None) for layer in layers]
        below = [part for task in tasks for part in (task if isinstance(task, tuple) else [task])]
    for array in below:
        # A pandas index has an attribute `array`, too, but no array on disk below it.
        while not isinstance(array, BackendArray | pd.Index) and hasattr(array, "array"):
            array = array.array
        if isinstance(array, StoredPairs):
            yield array.address
        elif isinstance(array, LabelArray):
            yield from (*_addresses_of(array.labels), *_addresses_of(array.positions))
        elif isinstance(array, BackendArray):
            yield getattr(getattr(array, "_array", None), "store_path", None)


def _is_within(place: str, address: str) -> bool:
    place = place.removeprefix("file://")
    if "://" not in place and "://" not in address:
        place = os.path.realpath(place)
    return f"{place.rstrip('/')}/".startswith(f"{address.rstrip('/')}/")


# The root holds groups and no arrays, so that xarray.open_zarr of the root alone shows only this.
HOW_TO_OPEN = (
    "xarray.open_zarr(path, group='units', consolidated=False), or all groups with "
    "xarray.open_datatree(path, engine='zarr', consolidated=False)"
)


def root_attrs(parts: Iterable[xr.Dataset], tables: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the attributes of the root of a store, by default with the tables of the parts."""
    units, *_ = parts = list(parts)
    stated = {n: p.coords[n].item() for p in parts for n in RELEASE_COORDS if n in p.coords}
    tables = _tables_of(parts) if tables is None else list(tables)
    recorded = [paper for part in parts for paper in text_lines(part.attrs.get("references"))]
    attrs = {
        FORMAT_ATTR: FORMAT,
        **{name: stated[name] for name in RELEASE_COORDS if name in stated},
        "timestamp": units.attrs.get("timestamp"),
        "created_by": f"microns_xr {__version__}",
        "how_to_open": HOW_TO_OPEN,
        "source_tables": tables,
        "references": papers_of(source_names(tables), str(stated.get("datastack", "")), recorded),
    }
    return json_attrs(attrs, "the store")


def _tables_of(parts: Iterable[xr.Dataset]) -> list[str]:
    """Collect the source tables in the attributes of Datasets, each table once."""
    tables: dict[str, str] = {}
    for part in parts:
        lines = text_lines(part.attrs.get("source_tables"))
        for name, line in zip(source_names(lines), lines, strict=True):
            tables.setdefault(name, line)
    return list(tables.values())


def write_tree(
    path: str | os.PathLike[str],
    tree: xr.DataTree | xr.Dataset,
    kind: str,
    *,
    overwrite: bool = True,
) -> None:
    """Write Datasets other than a release as a local store that xarray can read."""
    tree = xr.DataTree(tree) if isinstance(tree, xr.Dataset) else tree
    nodes = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    encoding = {
        name: {
            key: {"compressors": compressors(1 if v.dtype.kind == "O" else v.dtype.itemsize)}
            for key, v in node.variables.items()
        }
        for name, node in nodes.items()
    }
    # The attributes of the root come last.
    bare = xr.DataTree.from_dict({**nodes, "/": nodes["/"].drop_attrs(deep=False)})
    attrs = json_attrs({**tree.attrs, swap.KIND_ATTR: kind}, kind)
    with swap.replacing(swap.address_of(path), overwrite=overwrite, kind=kind) as folder:
        # Chunks of zeros, too, so that a missing chunk is known to be lost.
        settings = zarr.config.set({"array.write_empty_chunks": True})
        # Threads of its own, so that none of them still writes when the folder is removed.
        with settings, ThreadPoolExecutor(_THREADS) as pool, dask.config.set(pool=pool):
            bare.to_zarr(folder, zarr_format=3, consolidated=False, encoding=encoding)
        finish_store(zarr.open_group(folder, mode="r+"), attrs, consolidated=False)


def finish_store(root: zarr.Group, attrs: Mapping[str, Any], consolidated: bool) -> None:
    """Write the attributes of the root, which mark the store as finished."""
    attrs = {**attrs, ID_ATTR: uuid.uuid4().hex}
    checksums = sync(_checksums(root.store)) | {"/": root_checksum(attrs)}
    attrs[CHECKSUMS_ATTR] = [f"{checksum} {path}" for path, checksum in sorted(checksums.items())]
    if consolidated:
        with warnings.catch_warnings():
            # zarr warns that other implementations may not support consolidated metadata
            warnings.simplefilter("ignore")
            root = zarr.consolidate_metadata(root.store, path=root.path)
    root.attrs.put(attrs)


async def _checksums(store: Store) -> dict[str, str]:
    """Return the checksum of the metadata of every group and array below the root."""
    found = {}
    async for key in store.list():
        if key.endswith("/zarr.json"):
            content = await store.get(key, default_buffer_prototype())
            assert content is not None
            found[key.removesuffix("/zarr.json")] = metadata_checksum(
                json.loads(content.to_bytes())
            )
    return found


def _pairs_of(connectivity: xr.Dataset) -> tuple[Pattern, dict[str, np.ndarray]]:
    """Check the pairs of connectivity in memory, and return pattern and values."""
    pattern, values = pair_buffers(connectivity)
    _require(pattern_problem(pattern.indices, pattern.indptr, pattern.shape, pattern.compressed))
    return pattern, {key: values[name] for name, key in arrays_of(connectivity).items()}


def _require(problem: str | None) -> None:
    if problem:
        raise SchemaError(
            f"connectivity cannot be written: {problem}; build it with mx.build_connectivity"
        )


def _copies_of(pattern: Pattern, values: _Values) -> Generator[Copy, None, None]:
    """Yield both copies of pairs in memory: the given one, then the other, each as one block."""
    dtypes = {key: narrowest(stored) for key, stored in values.items()}
    block = (np.diff(pattern.indptr), pattern.indices, values)
    yield Copy(pattern.compressed, pattern.nnz, dtypes, [block])
    indices, indptr, weights = transpose_pairs(
        pattern.indices,
        pattern.indptr,
        pattern.n_minor,
        list(values.values()),
        list(dtypes.values()),
    )
    block = (np.diff(indptr), indices, dict(zip(values, weights, strict=True)))
    yield Copy(OTHER[pattern.compressed], pattern.nnz, dtypes, [block])


def _copies(connectivity: xr.Dataset, folder: str | None) -> Generator[Copy, None, None]:
    """Yield both copies of lazy pairs, copied from their store or else computed."""
    blocks, arrays = blocks_of(connectivity), arrays_of(connectivity)
    source = stored_source(blocks.arrays)
    if source is not None and (other := source.other()) is not None:
        for copy in (source, other):
            dtypes = {key: copy.read(name, 0, 0).dtype.name for name, key in arrays.items()}
            blocks_on_disk = _blocks(copy.indptr, copy.read, arrays)
            yield Copy(copy.compressed, int(copy.indptr[-1]), dtypes, blocks_on_disk)
        return
    # Temporary files are as large as the pairs: put them where the store needs that space anyway.
    with tempfile.TemporaryDirectory(prefix=".pairs-", dir=folder) as work:
        yield from _computed(blocks, arrays, work)


def _blocks(
    indptr: np.ndarray, read: Callable[[str, int, int], np.ndarray], arrays: Mapping[str, str]
) -> Iterator[PairBlock]:
    """Yield the pairs of neighbouring neurons."""
    for lo, hi in block_spans(indptr):
        span = int(indptr[lo]), int(indptr[hi])
        values = {key: read(name, *span) for name, key in arrays.items()}
        yield np.diff(indptr[lo : hi + 1]), read("indices", *span), values


def _computed(blocks: Blocks, arrays: Mapping[str, str], folder: str) -> Iterator[Copy]:
    """Compute all pairs once, block by block, and sort them on disk for each copy."""
    lengths = {blocks.compressed: blocks.n_major, OTHER[blocks.compressed]: blocks.n_minor}
    dtypes = {
        key: "float64" if blocks.arrays[name].dtype.kind == "f" else "int32"
        for name, key in arrays.items()
    }
    columns = {key: dtype.replace("int32", "int64") for key, dtype in dtypes.items()}
    columns["indices"] = "int32"
    with ExitStack() as stack:
        spills = {
            side: stack.enter_context(Spill(os.path.join(folder, side), n, columns, _RUN))
            for side, n in lengths.items()
        }
        for i, (first, _) in enumerate(blocks.spans):
            # The number of pairs and the dtypes must be known before the first array is created.
            pattern, values = _computed_pairs(blocks, arrays, i)
            dtypes |= {k: "int64" for k, v in values.items() if narrowest(v) == "int64"}
            # In pieces as long as a run, so that sorting takes little memory beside the block.
            for lo, hi in block_spans(pattern.indptr, _RUN):
                span = slice(int(pattern.indptr[lo]), int(pattern.indptr[hi]))
                neurons = np.arange(first + lo, first + hi, dtype=np.int32)
                majors = np.repeat(neurons, np.diff(pattern.indptr[lo : hi + 1]))
                ends = majors, pattern.indices[span]
                of_span = {key: stored[span] for key, stored in values.items()}
                for spill, major, minor in zip(spills.values(), ends, ends[::-1], strict=True):
                    spill.append(major, {"indices": minor, **of_span})
            for spill in spills.values():
                spill.flush()  # pending rows are views of this block
        for side, spill in spills.items():
            yield Copy(side, spill.rows, dtypes, spill.pairs(_RUN, dtypes))


def _computed_pairs(
    blocks: Blocks, arrays: Mapping[str, str], i: int
) -> tuple[Pattern, dict[str, np.ndarray]]:
    at = block_key(AXIS[blocks.compressed], i)
    parts = dask.compute(*(blocks.arrays[name].blocks[at] for name in arrays))
    values: dict[str, np.ndarray] = {}
    first: Pattern | None = None
    for (name, key), part in zip(arrays.items(), parts, strict=True):
        pattern, stored = pattern_of_array(part, name, blocks.compressed)
        kind = blocks.arrays[name].dtype.kind
        if not np.can_cast(stored.dtype, np.float64 if kind == "f" else np.int64):
            _require(
                f"{name} is {stored.dtype}, expected {'numbers' if kind == 'f' else 'integers'}"
            )
        first = first or pattern
        if not first.same_pairs(pattern):
            _require(f"{name} and {next(iter(arrays))} store different pairs")
        values[key] = stored.astype(np.float64 if kind == "f" else np.int64, copy=False)
    assert first is not None
    _require(pattern_problem(first.indices, first.indptr, first.shape, first.compressed))
    return first, values
