"""Recordings as a zarr store: the same tree, in chunks that suit units and trials."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.errors import (
    SchemaError,
    SourceError,
    StoreFormatError,
    UnknownLabelError,
    nearest_words,
)
from microns_xr.recordings.layout import split_key
from microns_xr.recordings.open import node_name, node_names
from microns_xr.recordings.select import scan_nodes

__all__ = ["open_recordings_zarr", "recordings_to_zarr"]

_STREAMS = ("responses", "treadmill", "pupil", "stim_time")


def recordings_to_zarr(
    recordings: xr.DataTree,
    path: str | Path,
    *,
    frames: int = 256,
    units: int = 4096,
    overwrite: bool = False,
) -> Path:
    """Write recordings as a zarr store, a few chunks in memory at a time.

    Parameters
    ----------
    recordings : DataTree
        What `open_recordings` or `select_recordings` returned.
    path : str or Path
        The folder; nothing is left there if writing fails.
    frames, units : int, optional
        Sizes of a chunk.
    overwrite : bool, optional
        Replace what is there.

    Returns
    -------
    pathlib.Path
        The folder, which `open_recordings` opens as well.

    Raises
    ------
    StoreFormatError
        If the folder is taken, or what is to be replaced is no store of recordings.
    SchemaError
        If the size of a chunk is none.
    SourceError
        If a stream cannot be read.

    Notes
    -----
    The videos stay in the HDF5 file, whose name the store keeps.

    Examples
    --------
    >>> import tempfile
    >>> from microns_xr.recordings.demo import write_demo_recordings
    >>> from microns_xr.recordings.open import open_recordings
    >>> folder = Path(tempfile.mkdtemp())
    >>> file = write_demo_recordings(folder / "demo.h5", scans=["9_3"])
    >>> store = recordings_to_zarr(open_recordings(file), folder / "demo.zarr")
    >>> list(open_recordings(store))
    ['scan_9_3']
    """
    path = Path(path).expanduser()
    nodes = scan_nodes(recordings)
    for name, size in (("frames", frames), ("units", units)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise SchemaError(f"{name} is {size!r}, expected the size of a chunk, from 1 up")
    if path.exists() and not overwrite:
        raise StoreFormatError(f"{path} is there: choose another name, or pass overwrite=True")
    if path.exists() and not _is_replaceable(path):
        raise StoreFormatError(
            f"{path} is there and is no store of recordings, so it is not replaced: choose another "
            "name, or remove it yourself"
        )
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    attrs = {"recorded_in": recordings.attrs.get("source", "unknown"), **recordings.attrs}
    try:
        xr.Dataset(attrs=attrs).to_zarr(temporary, mode="w", consolidated=False)
        for name, node in nodes.items():
            # Chunks of one size: the trials differ in length, and zarr has no uneven chunks.
            sizes = {"time": frames, "unit": units}
            chunked = {n: node[n].variable.chunk(_sizes_of(node[n], sizes)) for n in _STREAMS}
            lazy = node.assign({n: v for n, v in chunked.items() if n in node.data_vars})
            lazy = lazy.assign_coords({n: v for n, v in chunked.items() if n in node.coords})
            lazy.to_zarr(temporary, group=name, mode="a", consolidated=False)
        if path.exists():
            # Put aside, not removed, until the new one is there.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}.old"))
            path.rename(aside / path.name)
            temporary.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _is_ours(root: xr.Dataset) -> bool:
    """Whether root attributes are those of recordings."""
    return "recorded_in" in root.attrs or {"source", "frames_per_second"} <= set(root.attrs)


def _is_replaceable(path: Path) -> bool:
    """Whether `path` is an empty folder or a store of recordings."""
    if not path.is_dir():
        return False
    try:
        return not any(path.iterdir()) or _is_ours(
            xr.open_zarr(path, consolidated=False, chunks=None)
        )
    except (OSError, ValueError, KeyError):
        return False


def _sizes_of(variable: xr.DataArray, sizes: dict[str, int]) -> dict[Any, int]:
    return {dim: sizes.get(str(dim), variable.sizes[dim]) for dim in variable.dims}


def open_recordings_zarr(path: str | Path, scans: Iterable[Any] | None = None) -> xr.DataTree:
    """Open what `recordings_to_zarr` wrote, lazily.

    Parameters
    ----------
    path : str or Path
        The folder.
    scans : iterable, optional
        Which scans.

    Returns
    -------
    xarray.DataTree
        As `open_recordings`.

    Raises
    ------
    SourceError
        If it cannot be opened, or is no store of recordings.
    UnknownLabelError
        If a scan is not there.
    """
    try:
        root = xr.open_zarr(path, consolidated=False, chunks=None)
        keys = [split_key(p.name.removeprefix("scan_")) for p in Path(path).iterdir()]
        names = [node_name(key) for key in sorted(key for key in keys if key)]
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path} cannot be opened as recordings in zarr ({error})") from error
    if not _is_ours(root):
        raise SourceError(f"{path} is no store of recordings: it does not say where they come from")
    if scans is not None:
        wanted = node_names(scans)
        for name in wanted:
            if name not in names:
                near = ", ".join(nearest_words(name, names))
                raise UnknownLabelError(
                    f"{path} has no {name!r}, it has {', '.join(names)}; nearest: {near}"
                )
        names = [name for name in names if name in wanted]
    nodes = {n: _as_written(xr.open_zarr(path, n, consolidated=False, chunks=None)) for n in names}
    # The method to_zarr of the tree itself leaves the file's name in `source`.
    recorded_in = root.attrs.get("recorded_in", root.attrs["source"])
    root = xr.Dataset(attrs={**root.attrs, "recorded_in": recorded_in, "source": str(path)})
    return xr.DataTree.from_dict({"/": root, **nodes})


def _as_written(node: xr.Dataset) -> xr.Dataset:
    """Text as object, and what describes units and trials in memory."""
    small = {}
    for name, coord in node.coords.items():
        if name not in _STREAMS:
            text = coord.dtype.kind in "OUT"
            values = np.asarray(coord.values, dtype=object if text else None)
            small[name] = xr.Variable(coord.dims, values, coord.attrs)
    return node.assign_coords(small)
