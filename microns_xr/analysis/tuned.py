"""Which neurons of a connectivity take part: tested ones with an angle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from microns_xr.analysis.tested import by_completeness, lower_bound_note, neurons_to_test
from microns_xr.angles import describe_angle
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import drop_autapses, take
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import validate

__all__ = ["Presynaptic", "TunedAxes", "tuned_axes", "tuned_connections"]

Presynaptic = str | Iterable[str]


class TunedAxes(NamedTuple):
    """Neurons of both axes that take part.

    Attributes
    ----------
    pre_rows, post_rows : numpy.ndarray
        (axis,), row of each neuron among the units, -1 for those that are left out.
    twin : numpy.ndarray
        (pre axis,), position of the same neuron on the other axis, -1 where it is not there.
    attrs : dict
        ``left_out`` by side and reason, ``axon_completeness`` of the presynaptic neurons that take
        part, and ``note`` on what that means for a probability.
    shown : str
        How the history writes the choice.
    """

    pre_rows: np.ndarray
    post_rows: np.ndarray
    twin: np.ndarray
    attrs: dict[str, Any]
    shown: str


def tuned_axes(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    angle: str,
    pre: Any,
    post: Any,
    presynaptic: Presynaptic,
    check_release: bool,
) -> TunedAxes:
    """Choose the neurons of both axes that take part; parameters as those of `like_to_like`."""
    validate(connectivity, "connectivity")
    require_same_release(
        ("connectivity", connectivity), ("units", units), check_release=check_release
    )
    has_angle = np.isfinite(_angle_of(units, angle))
    presynaptic = presynaptic if isinstance(presynaptic, str) else list(presynaptic)
    tested = neurons_to_test(connectivity, units, presynaptic, pre, post)
    rows: dict[str, np.ndarray] = {}
    left_out: dict[str, dict[str, int]] = {}
    for side in ("pre", "post"):
        labels = connectivity[f"{side}_nucleus_id"].values
        of_tested = tested.rows[side]
        rows[side] = np.full(labels.size, -1, dtype=np.int64)
        tuned = has_angle[of_tested]
        rows[side][np.searchsorted(labels, tested.ids[side][tuned])] = of_tested[tuned]
        left_out[side] = {**tested.left_out[side], f"without_{angle}": int((~tuned).sum())}
        if not tuned.any():
            raise SchemaError(
                f"no neuron of {side}_nucleus_id is left of {labels.size}, left out: "
                f"{left_out[side]}; choose others, or give more neurons an angle"
            )
    axons = by_completeness(units, rows["pre"][rows["pre"] >= 0])
    twin = Lookup(connectivity["post_nucleus_id"].values, "post_nucleus_id").find(
        connectivity["pre_nucleus_id"].values
    )
    attrs = {"left_out": left_out, "axon_completeness": axons, "note": lower_bound_note(axons)}
    shown = f"angle={angle!r}, pre={_shown(pre)}, post={_shown(post)}, presynaptic={presynaptic!r}"
    return TunedAxes(rows["pre"], rows["post"], twin.astype(np.int64), attrs, shown)


def tuned_connections(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    angle: str = "pref_ori",
    pre: Any = None,
    post: Any = None,
    presynaptic: Presynaptic = "extended",
    check_release: bool = True,
) -> xr.Dataset:
    """Keep the neurons that `like_to_like` looks at: what null models are best made of.

    A null model of a whole release exchanges partners of neurons that are never looked at; of
    these connections it keeps the degrees within the very pairs that a probability is made of.

    Parameters
    ----------
    connectivity, units, angle, pre, post, presynaptic, check_release
        As `like_to_like`.

    Returns
    -------
    xarray.Dataset
        Connectivity without autapses whose axes are the neurons chosen that have the angle, on
        the presynaptic side those with a complete enough axon. An unknown scope becomes
        "requested", since `pre` and `post` were given.

    Raises
    ------
    SchemaError, UnknownLabelError, ReleaseMismatchError
        As `like_to_like`.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> angles = ("nucleus_id", [0.0, np.nan],
    ...     {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0})
    >>> units = xr.Dataset({"pref_ori": angles, "axon_completeness": ("nucleus_id", ["full"] * 2)},
    ...     coords={"nucleus_id": [11, 12]})
    >>> tuned = tuned_connections(two_neurons(), units, pre=[11, 12], post=[11, 12],
    ...     presynaptic="all", check_release=False)
    >>> dict(tuned.sizes), tuned.scope.item()
    ({'pre_nucleus_id': 1, 'post_nucleus_id': 1}, 'requested')
    """
    axes = tuned_axes(connectivity, units, angle, pre, post, presynaptic, check_release)
    ids = [
        connectivity[f"{side}_nucleus_id"].values[rows >= 0]
        for side, rows in (("pre", axes.pre_rows), ("post", axes.post_rows))
    ]
    result = drop_autapses(take(connectivity, *ids))
    if connectivity["scope"].item() == "unknown":
        result = result.assign_coords(scope=xr.Variable((), np.array("requested", dtype=object)))
    return add_history(result, f"tuned_connections({axes.shown})")


def _angle_of(units: xr.Dataset, angle: str) -> np.ndarray:
    if angle not in units.variables:
        near = ", ".join(nearest_words(angle, units.data_vars))
        raise UnknownLabelError(
            f"units has no variable {angle!r}, found {sorted(map(str, units.data_vars))}"
            + (f"; nearest: {near}" if near else "")
            + ": build the units with functional='best_only', or assign the angles of a fit"
        )
    if units[angle].dims != ("nucleus_id",) or units[angle].dtype.kind not in "fiu":
        raise SchemaError(
            f"units.{angle} has dims {units[angle].dims} and dtype {units[angle].dtype}, expected "
            "one number a neuron over ('nucleus_id',)"
        )
    describe_angle(units[angle], f"units.{angle}")
    return np.asarray(units[angle].values, dtype=float)


def _shown(choice: Any) -> str:
    if choice is None or isinstance(choice, Mapping):
        return repr(None if choice is None else dict(choice))
    n = choice.sizes["nucleus_id"] if isinstance(choice, xr.Dataset) else np.size(choice)
    return f"<{n} ids>"
