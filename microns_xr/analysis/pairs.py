"""Which pairs count: both neurons requested and among the units, the axon complete enough.

A zero of the connectivity means that no synapse was seen between two neurons that were requested.
It is evidence of absence only as far as the presynaptic axon was reconstructed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.angles import period_of, require_likely_angle
from microns_xr.connectivity.arrays import is_scope_known
from microns_xr.connectivity.blocks import Side, connected
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import (
    SchemaError,
    names_of,
    require_instance,
    warn_user,
)
from microns_xr.frames import require_depth
from microns_xr.provenance import require_same_release, text_lines
from microns_xr.schema import AXES, column_of
from microns_xr.select import matching, on_axis
from microns_xr.units import COMPLETENESS

SIDES: tuple[Side, Side] = ("pre", "post")


def labelled(
    dims: str | tuple[Any, ...], values: Any, long_name: str, units: str | None = None
) -> tuple[Any, Any, dict[str, str]]:
    """Return a variable for the constructor of xarray, with its attributes."""
    return dims, values, {"long_name": long_name} | ({"units": units} if units else {})


def angle_hint(units: xr.Dataset, name: str) -> str:
    """Return the call that gives an angle that the units lack."""
    for angle, dim in (("pref_ori", "orientation"), ("pref_dir", "direction")):
        rates = f"rate_{dim[:3]}"
        if name == angle and rates in units.variables:
            curve = f"mx.tuning.selectivity(units.{rates}, dim={dim!r})"
            return f"use units.assign({name}={curve}.{name}), or units with functional='best_only'"
    return "build the units with functional='best_only', or assign the angles of a fit"


def unit_angle(units: xr.Dataset, name: str) -> tuple[np.ndarray, float]:
    """Return an angle of every unit, NaN where it has none, and the period."""
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    require_instance("angle", name, str, "the name of a variable")
    angle = column_of(units, name, hint=angle_hint(units, name), kinds="iuf")
    period = period_of(angle, f"units.{name}")
    require_likely_angle(angle, f"units.{name}")
    return angle.values.astype(float), period


class ChosenNeurons(NamedTuple):
    """The neurons of both axes whose pairs count."""

    # by side, the row of every neuron of the axis among the units, -1 if it is left out
    rows: dict[Side, np.ndarray]
    # left_out by side and reason, axons_on_axis and axons_used by class of completeness, and
    # completeness, a sentence on what the latter mean for a probability
    attrs: dict[str, Any]
    text: str  # the choice, for the history

    def positions(self, side: Side) -> np.ndarray:
        """Return the positions of the chosen neurons on the axis."""
        return np.flatnonzero(self.rows[side] >= 0)


def choose_neurons(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    pre: Any,
    post: Any,
    presynaptic: str | Iterable[str],
    needed: Mapping[str, np.ndarray],
) -> ChosenNeurons:
    """Choose neurons of both axes; `needed` maps a reason to whether each unit fulfils it."""
    choices: dict[Side, Any] = {"pre": pre, "post": post}
    require_same_release(("connectivity", connectivity), ("units", units))
    hint = "all of whose synapses are in the table, or state scope= when building the connectivity"
    require_requested(connectivity, pre, post, hint)
    if not isinstance(presynaptic, str):
        presynaptic = names_of("presynaptic", presynaptic)
    if not units.sizes.get("nucleus_id"):
        raise SchemaError("units has no neuron, expected at least one: select others")
    if presynaptic != "all" and "axon_completeness" not in units.variables:
        raise SchemaError(
            "units has no axon_completeness, which decides which axons count: pass "
            "presynaptic='all' to count all axons, which gives lower bounds, or add the variable"
        )
    lookup = Lookup(units["nucleus_id"].values, "nucleus_id of the units")
    rows: dict[Side, np.ndarray] = {}
    left_out: dict[Side, dict[str, int]] = {}
    axons: dict[str, int] = {}
    text = ""
    named = {} if is_scope_known(connectivity) else connected(connectivity)
    without: list[str] = []
    for side, choice in choices.items():
        of_axis = lookup.find(connectivity[f"{side}_nucleus_id"].values)
        # An id that is not on the axis is an error: it would be missing from the denominator.
        positions, words = on_axis(connectivity, units, side, choice, all_of_them=True)
        chosen = np.zeros(of_axis.size, dtype=bool)
        chosen[slice(None) if positions is None else positions] = True
        text += f"{side}={words}, "
        conditions = {"not_chosen": chosen, "not_among_units": of_axis >= 0}
        of_units = dict(needed)
        asked = chosen & (of_axis >= 0)
        if choice is None and "classification_system" in units.variables:
            # Glia would only add pairs that are never connected: they count where they are chosen.
            is_neuron = units["classification_system"].values != "nonneuron"
            conditions["not_a_neuron"] = is_neuron[of_axis]
            asked &= is_neuron[of_axis]
        if side == "pre":
            axons = count_axons(units, of_axis[asked])
            axon = None if presynaptic == "all" else presynaptic
            _, is_complete = matching(units, {"axon": axon})
            of_units = {"axon_not_complete_enough": is_complete} | of_units
        conditions |= {reason: fulfilled[of_axis] for reason, fulfilled in of_units.items()}
        keep = np.ones(of_axis.size, dtype=bool)
        left_out[side] = {}
        for reason, condition in conditions.items():
            left_out[side][reason] = int((keep & ~condition).sum())
            keep &= condition
        if named:
            n_all = n_kept = int(keep.sum())
            # Conditions also hold for units that the table does not name, which are on no axis.
            if isinstance(choice, Mapping) and not isinstance(choice, xr.Dataset):
                _, is_match = matching(units, choice)
                n_all = int(np.logical_and.reduce([is_match, *of_units.values()]).sum())
                left_out[side]["not_on_axis"] = n_all - n_kept
            # Some unconnected neurons are as expected; most of them, and nobody has asked.
            for n, least, what in (
                (n_all - n_kept, 0, f"are left out, since they are not on {side}_nucleus_id"),
                (int((keep & ~named[side]).sum()), n_all / 2, "count as unconnected"),
            ):
                if n > least:
                    without.append(f"{n} of {n_all} neurons of {side} ({n / n_all:.1%}) {what}")
        if not keep.any():
            raise SchemaError(
                f"none of the {of_axis.size} neurons of {side}_nucleus_id remains; left out: "
                f"{left_out[side]}"
                + (f"; axons on the axis: {axons}" if side == "pre" else "")
                + ": choose other neurons, or allow less complete axons (presynaptic='proofread' "
                "or 'all', which give lower bounds)"
            )
        rows[side] = np.where(keep, of_axis, -1)
    if without:
        warn_user(
            "the scope of the connectivity is 'unknown', and of some chosen neurons it has no "
            f"connection: {'; '.join(without)}. If their synapses were looked for, build the "
            "connectivity with their ids as pre= and post=; if not, select others"
        )
    used = count_axons(units, rows["pre"][rows["pre"] >= 0])
    attrs = {
        "left_out": text_lines(left_out),
        "axons_on_axis": text_lines(axons),
        "axons_used": text_lines(used),
        "completeness": _completeness_note(used),
    }
    return ChosenNeurons(rows, attrs, f"{text}presynaptic={presynaptic!r}")


def require_requested(
    connectivity: xr.Dataset, pre: Any, post: Any, hint: str, of: str = ""
) -> None:
    """Raise if it is unknown which pairs were requested."""
    if not is_scope_known(connectivity) and (pre is None or post is None):
        raise SchemaError(
            f"scope of the connectivity{of} is 'unknown', so pairs without a synapse may never "
            f"have been requested: pass pre= and post=, neurons {hint}"
        )


def completeness_of(units: xr.Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the completeness of the axons of some units, "unknown" where nothing says it."""
    if "axon_completeness" in units.variables:
        return np.asarray(units["axon_completeness"].values[rows])
    return np.full(rows.size, "unknown", dtype=object)


def count_axons(units: xr.Dataset, rows: np.ndarray) -> dict[str, int]:
    """Count units by class of completeness of the axon, from the least to the most complete."""
    counts = pd.Series(completeness_of(units, rows)).value_counts()
    rank = {word: i for i, word in enumerate(COMPLETENESS)}
    return {str(w): int(counts[w]) for w in sorted(counts.index, key=lambda w: rank.get(w, -1))}


def _completeness_note(axons: Mapping[str, int]) -> str:
    partial = {word: n for word, n in axons.items() if word != "full"}
    if not partial:
        return "all axons are fully extended"
    listed = ", ".join(f"{n} {word}" for word, n in partial.items())
    return (
        f"lower bound: of {sum(axons.values())} axons {sum(partial.values())} are not known to be "
        f"fully extended ({listed}), and targets beyond their reconstruction count as unconnected"
    )


def same_neurons(pre_ids: np.ndarray, post_ids: np.ndarray) -> np.ndarray:
    """Return the position of each presynaptic neuron on the other axis, -1 if it is not there."""
    return Lookup(post_ids, "post_nucleus_id").find(pre_ids).astype(np.int64)


def unit_positions(units: xr.Dataset, axes: Iterable[str] = AXES) -> np.ndarray:
    """Return positions in µm, (axes, units), 0 on the other axes."""
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    if "position" not in units or set(units["position"].dims) != {"nucleus_id", "axis"}:
        raise SchemaError(
            "units has no position(nucleus_id, axis), which distances need: build them with "
            "mx.Release(...).units()"
        )
    position = units["position"].transpose("axis", "nucleus_id")
    if "axis" in position.coords:
        position = position.sel(axis=list(AXES))
    if not set(AXES) <= set(axes):
        require_depth(position)
    used = np.array([[axis in axes] for axis in AXES])
    return np.ascontiguousarray(np.where(used, position.values, 0.0))
