"""Choosing scans, units and trials of recordings, without reading them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.recordings.open import node_names

__all__ = ["scan_nodes", "select_recordings"]


def scan_nodes(recordings: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the scans of recordings by the names of their nodes.

    Parameters
    ----------
    recordings : DataTree
        What `open_recordings` returned, or one of its nodes.

    Returns
    -------
    dict of str to xarray.Dataset
        In the order of the tree.

    Raises
    ------
    SchemaError
        If it holds none.
    """
    if not isinstance(recordings, xr.DataTree):
        raise SchemaError(
            f"recordings is a {type(recordings).__name__}, expected what mx.open_recordings returns"
        )
    nodes = {
        node.name or "scan": node.to_dataset(inherit=False)
        for node in recordings.subtree
        if "responses" in node.data_vars
    }
    if not nodes:
        raise SchemaError(
            "recordings holds no scan with responses: open the file with mx.open_recordings"
        )
    return nodes


def select_recordings(
    recordings: xr.DataTree,
    *,
    scans: Iterable[Any] | str | None = None,
    session: int | Iterable[int] | None = None,
    brain_area: str | Iterable[str] | None = None,
    unit_id: int | Iterable[int] | None = None,
    stimulus: str | Iterable[str] | None = None,
    condition_hash: str | Iterable[str] | None = None,
    trial: int | Iterable[int] | None = None,
) -> xr.DataTree:
    """Choose scans, units and trials; nothing is read.

    Parameters
    ----------
    recordings : DataTree
        What `open_recordings` returned.
    scans : iterable, optional
        Such as ``["9_3"]`` or ``[(9, 3)]``.
    session : int or iterable of int, optional
        All scans of these sessions.
    brain_area : str or iterable of str, optional
        Units of these areas.
    unit_id : int or iterable of int, optional
        These units.
    stimulus : str or iterable of str, optional
        Trials of these types: Monet2, Trippy, Clip.
    condition_hash : str or iterable of str, optional
        Trials that show these videos: all repeats of a clip, across scans.
    trial : int or iterable of int, optional
        Trials of these numbers.

    Returns
    -------
    xarray.DataTree
        The scans that have units and trials left, with what was asked for; ``first_frame`` counts
        along the time that is left.

    Raises
    ------
    UnknownLabelError
        If a scan, session, area, stimulus type, hash, unit or trial is in none of the scans, or
        nothing is left.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from microns_xr.recordings.demo import write_demo_recordings
    >>> from microns_xr.recordings.open import open_recordings
    >>> path = write_demo_recordings(Path(tempfile.mkdtemp()) / "demo.h5", scans=["8_5", "9_3"])
    >>> chosen = select_recordings(open_recordings(path), session=9, stimulus="Monet2")
    >>> list(chosen), set(chosen["scan_9_3"].stimulus.values)
    (['scan_9_3'], {'Monet2'})
    """
    nodes = scan_nodes(recordings)
    if scans is not None:
        names = node_names(scans)
        _require_known("scans", names, nodes)
        nodes = {name: nodes[name] for name in nodes if name in names}
    if session is not None:
        wanted = _listed(session)
        _require_known("session", wanted, {int(n["session"]) for n in nodes.values()})
        nodes = {k: n for k, n in nodes.items() if int(n["session"]) in wanted}
    units = {"brain_area": brain_area, "unit_id": unit_id}
    trials = {"stimulus": stimulus, "condition_hash": condition_hash, "trial": trial}
    kept = _masks(nodes, units, "unit"), _masks(nodes, trials, "trial")
    chosen = {
        name: _take(node, kept[0][name], kept[1][name])
        for name, node in nodes.items()
        if kept[0][name].any() and kept[1][name].any()
    }
    criteria = {"scans": scans, "session": session, **units, **trials}
    said = ", ".join(f"{k}={v!r}" for k, v in criteria.items() if v is not None)
    if not chosen:
        raise UnknownLabelError(
            f"no scan has both units and trials of {said}: each word is there, but never together"
        )
    attrs = dict(recordings.attrs)
    attrs["history"] = f"{attrs.get('history', '')}\nselect_recordings({said})".strip()
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **chosen})


def _listed(value: Any) -> list[Any]:
    if isinstance(value, bytes) or np.ndim(value) == 0:
        return [value]
    return np.asarray(value).ravel().tolist() if hasattr(value, "dtype") else list(value)


def _require_known(name: str, wanted: Iterable[Any], known: Iterable[Any]) -> None:
    known = set(known)
    for word in wanted:
        if word not in known:
            some = ", ".join(str(k) for k in sorted(known)[:20])
            near = ", ".join(nearest_words(word, known))
            raise UnknownLabelError(
                f"{name}={word!r} is in none of the scans, they have {some}"
                + (" ..." if len(known) > 20 else "")
                + (f"; nearest: {near}" if near else "")
            )


def _masks(
    nodes: dict[str, xr.Dataset], criteria: dict[str, Any], dim: str
) -> dict[str, np.ndarray]:
    """Which units, or trials, of each scan are wanted."""
    masks = {name: np.ones(node.sizes[dim], dtype=bool) for name, node in nodes.items()}
    for variable, value in criteria.items():
        if value is None:
            continue
        wanted = _listed(value)
        known: set[Any] = set()
        for name, node in nodes.items():
            values = node[variable].values
            known.update(np.unique(values).tolist())
            masks[name] &= np.isin(values, wanted)
        _require_known(variable, wanted, known)
    return masks


def _take(node: xr.Dataset, units: np.ndarray, trials: np.ndarray) -> xr.Dataset:
    if not units.all():
        node = node.isel(unit=np.flatnonzero(units))
    if not trials.all():
        node = node.isel(time=frames_of(node, trials), trial=np.flatnonzero(trials))
        n_frames = node["n_frames"].values
        first = node["first_frame"].copy(data=np.cumsum(n_frames) - n_frames)
        node = node.assign_coords(first_frame=first)
    return node


def frames_of(node: xr.Dataset, trials: np.ndarray) -> np.ndarray:
    """Positions along time of the frames of some trials.

    Parameters
    ----------
    node : xarray.Dataset
        A scan.
    trials : numpy.ndarray
        Which trials; bool.

    Returns
    -------
    numpy.ndarray
        Ascending where the trials are.
    """
    first, n_frames = node["first_frame"].values[trials], node["n_frames"].values[trials]
    return np.concatenate([np.arange(f, f + n) for f, n in zip(first, n_frames, strict=True)])
