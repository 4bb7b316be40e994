"""Writing Datasets as one store of format 1."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from typing import Any

import xarray as xr
import zarr

from microns_xr.errors import SchemaError, StoreFormatError
from microns_xr.provenance import release_of, require_same_release
from microns_xr.releases import table_spec
from microns_xr.schema import validate
from microns_xr.store import swap
from microns_xr.store.format import (
    CHUNK,
    FORMAT,
    FORMAT_ATTR,
    compressor,
    json_attrs,
)
from microns_xr.store.origin import reads_from
from microns_xr.store.plan import (
    PlannedArray,
    PlannedGroup,
    pairs_of,
    plan_dataset,
    plan_matrix,
    plan_parent,
    require_synapses,
    transposed,
)

__all__ = ["write_store"]

# Two cores are busy with four threads: one waits for the disk or hands a block to the next step.
_THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))


def write_store(
    path: str | os.PathLike[str],
    *,
    units: xr.Dataset,
    layers: xr.Dataset | None = None,
    functional: xr.Dataset | None = None,
    connectivity: xr.Dataset | None = None,
    synapses: xr.Dataset | None = None,
    source_tables: Iterable[Mapping[str, Any]] | None = None,
    timestamp: str | datetime | None = None,
    consolidated: bool = False,
    overwrite: bool = True,
    check_release: bool = True,
) -> None:
    """Write a release, or part of one, as a zarr store.

    The format is described in `microns_xr.store.format`. Everything is checked before anything is
    written. A local store is written beside `path` and renamed, so that `path` is always a whole
    store, the old one or the new one; an address such as ``gs://bucket/name`` must be new.

    Parameters
    ----------
    path : str or path-like
        Folder or address of the store. A folder may hold a store, which is replaced; nothing else
        is ever replaced.
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
        ``pre_index``, where it has them.
    source_tables : iterable of mapping, optional
        ``name``, ``rows`` and ``sha256`` of the tables all this was made of; by default what the
        attribute ``source_tables`` of the Datasets says.
    timestamp : str or datetime, optional
        Time of the materialization; by default the attribute ``timestamp`` of `units`.
    consolidated : bool, optional
        Also write the metadata of all arrays in one place, for object stores.
    overwrite : bool, optional
        False refuses to replace a store.
    check_release : bool, optional
        False allows parts of different releases.

    Raises
    ------
    SchemaError
        If a Dataset does not follow the data model, or holds what a store cannot: attributes
        without a JSON form, dtypes other than numbers, booleans and text.
    ReleaseMismatchError
        If the parts come from different releases.
    StoreFormatError
        If `path` is something else than a store, is being written by another process, is an
        address that is taken, or is the store that a part is lazily read from.

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
    address = swap.address_of(path)
    validate(units, "units")
    _check(parts, address, check_release)
    groups = []
    if connectivity is not None:  # first, so that the many small arrays fill the gaps behind it
        pairs = pairs_of(connectivity)
        groups = [plan_matrix(connectivity, copy) for copy in (pairs, transposed(pairs))]
        groups.append(plan_parent(connectivity))
    groups += [plan_dataset(kind, part) for kind, part in parts.items() if kind != "connectivity"]
    root_attrs = _root_attrs(parts, source_tables, timestamp)
    if "://" in address:
        try:
            root = zarr.open_group(address, mode="w-", zarr_format=3)
        except FileExistsError as err:
            raise StoreFormatError(
                f"{address} is taken, expected a new address: object stores cannot rename, so a "
                "store there is never replaced; remove what an interrupted write has left"
            ) from err
        _write(root, groups, root_attrs, consolidated)
        return
    with swap.replacing(address, overwrite=overwrite) as folder:
        root = zarr.open_group(folder, mode="a", zarr_format=3)
        _write(root, groups, root_attrs, consolidated)


def _check(parts: Mapping[str, xr.Dataset], address: str, check_release: bool) -> None:
    for kind, part in parts.items():
        if kind == "synapses":
            require_synapses(part, parts.get("connectivity"))
        else:
            validate(part, kind)  # type: ignore[arg-type]
    require_same_release(*parts.items(), check_release=check_release)
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


def _write(
    root: zarr.Group,
    groups: list[PlannedGroup],
    root_attrs: dict[str, Any],
    consolidated: bool,
) -> None:
    pool = ThreadPoolExecutor(_THREADS)
    try:
        pending = [job for group in groups for job in _submit(pool, root, group)]
        for job in pending:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)
    root.update_attributes(root_attrs)
    if consolidated:
        with warnings.catch_warnings():
            # zarr warns that other implementations may not know consolidated metadata
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(root.store, path=root.path)


def _submit(pool: ThreadPoolExecutor, root: zarr.Group, group: PlannedGroup) -> list[Future[None]]:
    node = root.require_group(group.path)
    node.update_attributes(group.attrs)
    jobs = []
    for array in group.arrays:
        if array.shape and array.shape[0] > CHUNK:
            target = _create(node, array)
            jobs += [
                pool.submit(_write_block, target, array, start)
                for start in range(0, array.shape[0], CHUNK)
            ]
        else:
            jobs.append(pool.submit(_write_whole, node, array))
    return jobs


def _create(node: zarr.Group, array: PlannedArray) -> zarr.Array:
    chunks = tuple(max(1, n) for n in array.shape)
    if chunks:
        chunks = (min(CHUNK, chunks[0]), *chunks[1:])
    return node.create_array(
        array.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        filters=None,
        compressors=[compressor(array.itemsize)],
        fill_value=array.fill_value,
        attributes=array.attrs,
        dimension_names=array.dims,
        config={"write_empty_chunks": True},
    )


def _write_block(target: zarr.Array, array: PlannedArray, start: int) -> None:
    stop = min(start + CHUNK, array.shape[0])
    target[start:stop] = array.read(start, stop)


def _write_whole(node: zarr.Group, array: PlannedArray) -> None:
    target = _create(node, array)
    if 0 not in array.shape:
        target[...] = array.read(0, array.shape[0] if array.shape else 1)
