"""Which pairs were tested: neurons that were asked for, with a unit, the axon complete enough.

A zero of the connectivity says that no synapse was seen between two neurons that were asked for.
It is evidence of absence only as far as the presynaptic axon was followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.labels import Lookup, as_ids
from microns_xr.connectivity.parts import Side, positions_of
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.proofreading import COMPLETENESS
from microns_xr.select import select_units

__all__ = ["ChosenNeurons", "by_completeness", "choice_text", "lower_bound_note", "neurons_to_test"]


class ChosenNeurons(NamedTuple):
    """Neurons of either side that take part.

    Attributes
    ----------
    ids : dict of str to numpy.ndarray
        Nucleus ids by side, ascending.
    rows : dict of str to numpy.ndarray
        Where they are among the units.
    left_out : dict of str to dict
        By side, how many neurons of the axis were left out for which reason.
    axons : dict of str to int
        Presynaptic neurons before the choice of axons, by class of completeness.
    """

    ids: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    left_out: dict[str, dict[str, int]]
    axons: dict[str, int]


def neurons_to_test(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    presynaptic: str | Iterable[str],
    pre: Any = None,
    post: Any = None,
    placed: np.ndarray | None = None,
) -> ChosenNeurons:
    """Choose the neurons whose pairs count.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    units : xarray.Dataset
        Units with ``axon_completeness``; neurons that are not among them are left out.
    presynaptic : str or collection of str
        Words of the condition `axon` of `select_units`, or "all".
    pre, post : mapping, collection of int, or units Dataset, optional
        Conditions of `select_units`, or ids on the axes.
    placed : numpy.ndarray of bool, optional
        (units,), whether a unit has the position that is needed.

    Returns
    -------
    ChosenNeurons
        At least one of either side.

    Raises
    ------
    SchemaError
        If the scope is unknown and `pre` and `post` are not both given, units lack the
        completeness of axons, or nobody is left.
    UnknownLabelError
        If a word is nowhere in the units, or an id is not on its axis.
    """
    if connectivity["scope"].item() == "unknown" and (pre is None or post is None):
        raise SchemaError(
            "scope of the connectivity is 'unknown', so a pair without a synapse may never have "
            "been asked for: pass pre= and post=, neurons all of whose pairs are in the synapse "
            "table, or state the scope when the connectivity is built"
        )
    if "axon_completeness" not in units:
        raise SchemaError(
            "units has no axon_completeness, without which nobody knows which axons to count: "
            "build them with mx.Release(...).units()"
        )
    if not units.sizes["nucleus_id"]:
        raise SchemaError("units hold no neuron: nothing is left of the selection they come from")
    lookup = Lookup(units["nucleus_id"].values, "nucleus_id of the units")
    ids: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    left_out: dict[str, dict[str, int]] = {}
    axons: dict[str, int] = {}
    sides: tuple[tuple[Side, Any], ...] = (("pre", pre), ("post", post))
    for side, given in sides:
        labels = connectivity[f"{side}_nucleus_id"].values
        found = lookup.find(labels)
        reasons = {
            "not_chosen": _given(connectivity, units, side, given),
            "not_among_units": found >= 0,
        }
        if side == "pre":
            axons = by_completeness(units, found[reasons["not_chosen"] & (found >= 0)])
            reasons["axon_not_complete_enough"] = _complete(units, presynaptic)[found]
        if placed is not None:
            reasons["without_position"] = placed[found]
        keep = np.ones(labels.size, dtype=bool)
        left: dict[str, int] = {}
        for reason, fits in reasons.items():
            left[reason] = int((keep & ~fits).sum())
            keep &= fits
        if not keep.any():
            raise SchemaError(
                f"no neuron of {side}_nucleus_id is left of {labels.size}, left out: {left}"
                + (f"; axons on the axis: {axons}" if side == "pre" else "")
                + "; choose others, or presynaptic='clean' or 'all', which give lower bounds"
            )
        ids[side], rows[side] = labels[keep], found[keep]
        left_out[side] = left
    return ChosenNeurons(ids, rows, left_out, axons)


def by_completeness(units: xr.Dataset, rows: np.ndarray) -> dict[str, int]:
    """Count units by class of completeness of the axon, from the least to the most complete."""
    words = pd.Series(units["axon_completeness"].values[rows]).value_counts()
    rank = {word: i for i, word in enumerate(COMPLETENESS)}
    return {
        str(word): int(words[word]) for word in sorted(words.index, key=lambda w: rank.get(w, -1))
    }


def lower_bound_note(axons: Mapping[str, int]) -> str:
    """Say what the completeness of the axons that count means for a probability.

    Examples
    --------
    >>> lower_bound_note({"full": 3})
    'all axons are fully extended'
    >>> lower_bound_note({"partial": 3, "full": 1}).split(":")[0]
    'lower bound'
    """
    partial = {word: n for word, n in axons.items() if word != "full"}
    if not partial:
        return "all axons are fully extended"
    listed = ", ".join(f"{n} {word}" for word, n in partial.items())
    return (
        f"lower bound: of {sum(axons.values())} axons {sum(partial.values())} are not known to be "
        f"fully extended ({listed}), and targets beyond their reconstruction count as unconnected"
    )


def choice_text(given: Any) -> str:
    """Write a choice of neurons as the history does.

    Examples
    --------
    >>> choice_text({"layer": "L4"}), choice_text([3, 5]), choice_text(None)
    ("{'layer': 'L4'}", '2 ids', 'None')
    """
    if given is None:
        return "None"
    if _is_condition(given):
        return repr(dict(given))
    return f"{as_ids(given, 'nucleus_id').size} ids"


def _is_condition(given: Any) -> bool:
    # A Dataset is a mapping too.
    return isinstance(given, Mapping) and not isinstance(given, xr.Dataset)


def _given(connectivity: xr.Dataset, units: xr.Dataset, side: Side, given: Any) -> np.ndarray:
    labels = connectivity[f"{side}_nucleus_id"].values
    if given is None:
        return np.ones(labels.size, dtype=bool)
    if _is_condition(given):
        known = list(signature(select_units).parameters)[1:]
        if unknown := [name for name in given if name not in known]:
            near = ", ".join(nearest_words(unknown[0], known))
            raise UnknownLabelError(
                f"{side} has the condition {unknown[0]!r}, expected some of {known}"
                + (f"; nearest: {near}" if near else "")
            )
        return np.isin(labels, select_units(units, **given)["nucleus_id"].values)
    chosen = np.zeros(labels.size, dtype=bool)
    chosen[positions_of(connectivity, side, given)] = True
    return chosen


def _complete(units: xr.Dataset, presynaptic: str | Iterable[str]) -> np.ndarray:
    if isinstance(presynaptic, str) and presynaptic == "all":
        return np.ones(units.sizes["nucleus_id"], dtype=bool)
    fitting = select_units(units, axon=presynaptic)["nucleus_id"].values
    return np.isin(units["nucleus_id"].values, fitting)
