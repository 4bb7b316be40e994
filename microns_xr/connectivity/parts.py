"""Parts of a connectivity Dataset by position: what the functions by label are made of."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import PAIR_DIMS, Pattern, gcxs, make_pattern, pair_buffers
from microns_xr.connectivity.labels import Lookup, as_ids, require_known
from microns_xr.connectivity.patterns import Selection, select_pairs, take_values

__all__ = ["Side", "minor_side", "positions_of", "take_positions", "with_pairs"]

Side = Literal["pre", "post"]


def minor_side(pattern: Pattern) -> Side:
    """Return the side that is not compressed."""
    return "pre" if pattern.compressed == "post" else "post"


def positions_of(connectivity: xr.Dataset, side: Side, ids: Any) -> np.ndarray:
    """Return where ids are on an axis, or raise `UnknownLabelError`."""
    wanted = as_ids(ids, f"{side}_ids")
    labels = connectivity[f"{side}_nucleus_id"].values
    found = Lookup(labels, f"{side}_nucleus_id").find(wanted)
    require_known(
        wanted,
        found,
        f"{side}_ids",
        f"{side}_nucleus_id of the connectivity",
        "its axes are the neurons that were asked for; these are nucleus ids, which "
        "mx.nucleus_ids(units, root_ids) makes of root ids",
    )
    return found


def take_positions(
    connectivity: xr.Dataset, pre: np.ndarray | None, post: np.ndarray | None
) -> xr.Dataset:
    """Keep ascending positions of either axis; None keeps all."""
    pattern, values = pair_buffers(connectivity)
    by_side = {"pre": pre, "post": post}
    majors, minors = by_side[pattern.compressed], by_side[minor_side(pattern)]
    new_minor = np.arange(pattern.n_minor, dtype=np.int32)
    if minors is not None:
        new_minor = np.full(pattern.n_minor, -1, dtype=np.int32)
        new_minor[minors] = np.arange(minors.size)
    selection = select_pairs(
        pattern.indices,
        pattern.indptr,
        np.arange(pattern.n_major) if majors is None else majors,
        new_minor,
    )
    shape = tuple(
        old if kept is None else kept.size
        for old, kept in zip(pattern.shape, (pre, post), strict=True)
    )
    rest = connectivity.drop_vars(list(values)).isel(
        {f"{s}_nucleus_id": kept for s, kept in by_side.items() if kept is not None}
    )
    return with_pairs(connectivity, rest, pattern, values, selection, (shape[0], shape[1]))


def with_pairs(
    connectivity: xr.Dataset,
    rest: xr.Dataset,
    pattern: Pattern,
    values: dict[str, np.ndarray],
    selection: Selection,
    shape: tuple[int, int],
) -> xr.Dataset:
    """Put selected pairs on the axes of `rest`, in the order of variables of `connectivity`."""
    new = make_pattern(selection.indices, selection.indptr, shape, pattern.compressed)
    result = rest.drop_vars(list(values), errors="ignore").assign(
        {
            name: (
                PAIR_DIMS,
                gcxs(take_values(old, selection.source), new),
                dict(connectivity[name].attrs),
            )
            for name, old in values.items()
        }
    )
    return result[list(connectivity.data_vars)]
