"""Parts of a connectivity Dataset by position: what the functions by label are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    Pattern,
    gcxs,
    make_pattern,
    pair_buffers,
    pair_names,
    pattern_of,
)
from microns_xr.connectivity.blocks import is_lazy
from microns_xr.connectivity.blockwise import blocks_of, stored_source
from microns_xr.connectivity.labels import Lookup, as_ids, require_known
from microns_xr.connectivity.lazy import Rule, filter_blocks
from microns_xr.connectivity.patterns import Selection, select_pairs, take_values
from microns_xr.connectivity.spans import read_neurons

__all__ = [
    "OTHER_SIDE",
    "Rule",
    "Side",
    "drop_unpaired",
    "keep_pairs",
    "layout_of",
    "load_neurons",
    "positions_of",
    "take_positions",
    "with_pairs",
]

Side = Literal["pre", "post"]
OTHER_SIDE: dict[Side, Side] = {"pre": "post", "post": "pre"}


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
    shape, compressed = layout_of(connectivity)
    by_side = {"pre": pre, "post": post}
    n_of = dict(zip(("pre", "post"), shape, strict=True))
    majors, minors = by_side[compressed], by_side[OTHER_SIDE[compressed]]
    n_minor = n_of[OTHER_SIDE[compressed]]
    new_minor = np.arange(n_minor, dtype=np.int32)
    if minors is not None:
        new_minor = np.full(n_minor, -1, dtype=np.int32)
        new_minor[minors] = np.arange(minors.size)
        n_minor = minors.size
    majors = np.arange(n_of[compressed]) if majors is None else majors
    rest = connectivity.drop_vars(pair_names(connectivity)).isel(
        {f"{s}_nucleus_id": kept for s, kept in by_side.items() if kept is not None}
    )
    return keep_pairs(connectivity, rest, Rule(majors, new_minor, n_minor))


def load_neurons(connectivity: xr.Dataset, side: Side, positions: np.ndarray) -> xr.Dataset:
    """Keep ascending positions of one axis, in memory."""
    by_side = {"pre": None, "post": None, side: positions}
    if not is_lazy(connectivity):
        return take_positions(connectivity, by_side["pre"], by_side["post"])
    blocks = blocks_of(connectivity, prefer=side)
    source = stored_source(blocks.arrays)
    if source is None or blocks.compressed != side:
        return take_positions(connectivity, by_side["pre"], by_side["post"]).compute()
    pattern, values = read_neurons(source, positions, list(blocks.arrays))
    rest = connectivity.drop_vars(list(values)).isel({f"{side}_nucleus_id": positions}).compute()
    arrays = {name: gcxs(stored, pattern) for name, stored in values.items()}
    return _with_arrays(connectivity, rest, arrays)


def drop_unpaired(connectivity: xr.Dataset) -> xr.Dataset:
    """Drop the neurons of the axis that is not compressed which have no pair, in memory.

    Every pair stays, so that the values are not copied.
    """
    pattern, values = pair_buffers(connectivity)
    side = OTHER_SIDE[pattern.compressed]
    found = np.zeros(pattern.n_minor, dtype=bool)
    found[pattern.indices] = True  # a tenth of the time of np.unique
    if found.all():
        return connectivity
    kept = np.flatnonzero(found)
    new_minor = (np.cumsum(found, dtype=np.int32) - 1).astype(np.int32)
    shape = {side: kept.size, pattern.compressed: pattern.n_major}
    new = make_pattern(
        new_minor[pattern.indices],
        pattern.indptr,
        (shape["pre"], shape["post"]),
        pattern.compressed,
    )
    rest = connectivity.drop_vars(list(values)).isel({f"{side}_nucleus_id": kept})
    arrays = {name: gcxs(stored, new) for name, stored in values.items()}
    return _with_arrays(connectivity, rest, arrays)


def layout_of(connectivity: xr.Dataset) -> tuple[tuple[int, int], Side]:
    """Return the shape and the compressed axis of a connectivity Dataset, lazy or not."""
    pairs = (
        blocks_of(connectivity, ["synapse_size"])
        if is_lazy(connectivity)
        else pattern_of(connectivity)
    )
    return pairs.shape, pairs.compressed


def keep_pairs(connectivity: xr.Dataset, rest: xr.Dataset, rule: Rule) -> xr.Dataset:
    """Keep neurons and pairs by a rule, put on the axes of `rest`; lazily where they are lazy."""
    if is_lazy(connectivity):
        return _with_arrays(connectivity, rest, filter_blocks(blocks_of(connectivity), rule))
    pattern, values = pair_buffers(connectivity)
    selection = select_pairs(
        pattern.indices,
        pattern.indptr,
        rule.majors,
        rule.new_minor,
        kept=rule.kept,
        whole=rule.whole,
        without=rule.without,
    )
    shape = rule.shape(pattern.compressed)
    return with_pairs(connectivity, rest, pattern, values, selection, shape)


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
    arrays = {name: gcxs(take_values(v, selection.source), new) for name, v in values.items()}
    return _with_arrays(connectivity, rest, arrays)


def _with_arrays(
    connectivity: xr.Dataset, rest: xr.Dataset, arrays: Mapping[str, Any]
) -> xr.Dataset:
    result = rest.drop_vars(list(arrays), errors="ignore").assign(
        {name: (PAIR_DIMS, array, dict(connectivity[name].attrs)) for name, array in arrays.items()}
    )
    return result[list(connectivity.data_vars)]
