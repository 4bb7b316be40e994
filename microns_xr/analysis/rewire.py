"""Null models that rewire: other partners, with the same degrees or at the same distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from microns_xr.analysis.replicates import Connections, Replicates
from microns_xr.analysis.rewiring import (
    Places,
    candidates_of,
    random_state,
    redraw_partners,
    swap_partners,
)
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, UnknownLabelError
from microns_xr.provenance import require_same_release
from microns_xr.schema import AXES, validate

__all__ = ["rewire", "rewire_by_distance"]

# Sorted candidates of 4 bytes each: 800 MB.
_MAX_CANDIDATES = 200_000_000
# Exchanges tried a connection, to learn which share is made, and at the most.
_PILOT, _MOST_ATTEMPTS = 10, 10_000
# No replicate has this number, so that the pilot has random numbers of its own.
_NO_REPLICATE = 2**32 - 1


def rewire(
    connectivity: xr.Dataset, *, n: int = 1000, seed: int = 0, swaps: float = 10
) -> Replicates:
    """Exchange partners so that every neuron keeps its number of partners.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``): the connections that are
        looked at, such as those of `mx.tuned_connections`.
    n : int, optional
        Number of replicates.
    seed : int, optional
        Replicate i of a seed is the same however many there are.
    swaps : float, optional
        Exchanges for each connection, on average, anew from what was observed in every replicate.
        Some that are tried are refused (see below), so more are tried, by the share that a pilot
        run accepts; ``attrs`` say how many.

    Returns
    -------
    Replicates
        Sequence of connectivity Datasets.

    Raises
    ------
    SchemaError
        If the Dataset is no connectivity, or a number is not positive.

    Notes
    -----
    Two connections are drawn and their postsynaptic ends exchanged (Maslov & Sneppen 2002,
    Science 296, 910-913), unless a pair would be connected twice or a neuron with itself.
    Exchanges that are refused count as tried, which makes every network of these degrees that can
    be reached equally likely. Sizes and counts stay with the presynaptic neuron; connections of a
    neuron with itself stay. On how many are enough see Milo et al. 2003, arXiv:cond-mat/0312028.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> null = rewire(two_neurons(), n=5)
    >>> len(null), null.attrs["keeps"][:22]
    (5, 'in- and out-degree of ')
    """
    validate(connectivity, "connectivity")
    observed = Connections(connectivity)
    n_attempts, share = _attempts(swaps, observed, seed)
    attrs = {
        "null": f"rewire(seed={seed}, swaps={swaps:g})",
        "keeps": "in- and out-degree of every neuron, connections of a neuron with itself, sizes "
        "and counts of every presynaptic neuron, the pairs that were asked for",
        "seed": seed,
        "attempted_swaps": n_attempts,
        "accepted_share": share,
    }

    def draw(c: Connections, i: int) -> tuple[np.ndarray, None]:
        state = random_state(seed, i)
        return swap_partners(c.pre, c.indptr, c.post, c.twin, state, n_attempts)[0], None

    return Replicates(observed, draw, n, attrs)


def rewire_by_distance(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    bins: float | Sequence[float] = 50.0,
    distance: Literal["lateral", "euclidean"] = "lateral",
    keep_in_degree: bool = False,
    n: int = 1000,
    seed: int = 0,
    swaps: float = 10,
    check_release: bool = True,
) -> Replicates:
    """Draw other partners at the same distances.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity, as for `rewire`.
    units : xarray.Dataset
        Units with ``position`` (µm) of every neuron of both axes.
    bins : float or sequence of float, optional
        Width of the bins of distance in µm, or their ascending inner edges, beyond the last of
        which all distances are one bin.
    distance : {"lateral", "euclidean"}, optional
        In the plane of the cortex (x and z), or in space.
    keep_in_degree : bool, optional
        False draws partners among all neurons of the bin alike. True exchanges partners of two
        connections where both stay in their bins, which keeps in-degrees as well; with narrow
        bins few exchanges fit, which is slow, and neurons move step by step.
    n, seed, swaps
        As `rewire`; `swaps` is for ``keep_in_degree=True`` alone.
    check_release : bool, optional
        False skips the release check.

    Returns
    -------
    Replicates
        Sequence of connectivity Datasets.

    Raises
    ------
    SchemaError
        If a neuron has no position, bins are not ascending and positive, or the Dataset is no
        connectivity.
    UnknownLabelError
        If a neuron is not among the units.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.examples import two_neurons
    >>> units = xr.Dataset({"position": (("nucleus_id", "axis"), np.zeros((2, 3)))},
    ...     coords={"nucleus_id": [11, 12], "axis": ["x", "y", "z"]})
    >>> null = rewire_by_distance(two_neurons(), units, n=2, check_release=False)
    >>> null[0].synapse_count.data.todense()
    array([[0, 2],
           [1, 1]])
    """
    validate(connectivity, "connectivity")
    require_same_release(
        ("connectivity", connectivity), ("units", units), check_release=check_release
    )
    if distance not in ("lateral", "euclidean"):
        raise SchemaError(f"distance is {distance!r}, expected 'lateral' or 'euclidean'")
    axes = "xz" if distance == "lateral" else "xyz"
    at = [_positions(connectivity, units, side, axes) for side in ("pre", "post")]
    edges = _edges(bins, at)
    places = Places(at[0], at[1], edges**2)
    observed = Connections(connectivity)
    also = ", in-degree of every neuron" if keep_in_degree else ""
    shown = f"{float(bins):g}" if isinstance(bins, float | int) else f"<{edges.size} edges>"
    attrs: dict[str, Any] = {
        "null": f"rewire_by_distance(bins={shown}, distance={distance!r}, "
        f"keep_in_degree={keep_in_degree}, seed={seed})",
        "keeps": f"partners of every presynaptic neuron in each bin of {distance} distance{also}, "
        "connections of a neuron with itself, sizes and counts of every presynaptic neuron in "
        "each bin, the pairs that were asked for",
        "seed": seed,
    }
    if keep_in_degree:
        n_attempts, share = _attempts(swaps, observed, seed, places)
        attrs |= {"attempted_swaps": n_attempts, "accepted_share": share}

        def exchange(c: Connections, i: int) -> tuple[np.ndarray, None]:
            args = (c.pre, c.indptr, c.post, c.twin, random_state(seed, i), n_attempts, places)
            return swap_partners(*args)[0], None

        return Replicates(observed, exchange, n, attrs)
    n_candidates = int((np.diff(observed.indptr) > 0).sum()) * at[1].shape[0]
    if n_candidates > _MAX_CANDIDATES:
        raise SchemaError(
            f"{n_candidates} possible pairs have to be sorted by distance, expected at most "
            f"{_MAX_CANDIDATES}: rewire the connections that are looked at (mx.tuned_connections)"
        )
    candidates = candidates_of(observed.indptr, observed.twin, places)

    def redraw(c: Connections, i: int) -> tuple[np.ndarray, None]:
        state = random_state(seed, i)
        return redraw_partners(c.indptr, c.post, c.twin, state, places, candidates), None

    return Replicates(observed, redraw, n, attrs)


def _attempts(
    swaps: float, observed: Connections, seed: int, places: Places | None = None
) -> tuple[int, float]:
    """Exchanges to try so that about `swaps` a connection are made, and the share that is."""
    if not swaps > 0:
        raise SchemaError(f"swaps is {swaps}, expected a positive number for each connection")
    n = observed.post.size
    pilot = _PILOT * n
    args = (observed.pre, observed.indptr, observed.post, observed.twin)
    _, n_made = swap_partners(*args, random_state(seed, _NO_REPLICATE), pilot, places)
    # Where next to nothing can be exchanged, trying for ever would not help.
    share = max(n_made, 1) / max(pilot, 1)
    return int(np.ceil(n * min(swaps / share, _MOST_ATTEMPTS))), n_made / max(pilot, 1)


def _positions(connectivity: xr.Dataset, units: xr.Dataset, side: str, axes: str) -> np.ndarray:
    if "position" not in units:
        raise SchemaError("units has no position(nucleus_id, axis), which distances are made of")
    ids = connectivity[f"{side}_nucleus_id"].values
    rows = Lookup(units["nucleus_id"].values, "nucleus_id of the units").find(ids)
    if (rows < 0).any():
        raise UnknownLabelError(
            f"{(rows < 0).sum()} of {rows.size} neurons of {side}_nucleus_id are not among the "
            "units: take those that are with mx.connections_between"
        )
    by_axis = units["position"].transpose("nucleus_id", "axis").values[rows]
    at = np.ascontiguousarray(by_axis[:, [AXES.index(a) for a in axes]], dtype=float)
    if not np.isfinite(at).all():
        raise SchemaError(
            f"{(~np.isfinite(at).all(axis=1)).sum()} neurons of {side}_nucleus_id have no "
            "position: leave them out with mx.connections_between"
        )
    return at


def _edges(bins: float | Sequence[float], at: list[np.ndarray]) -> np.ndarray:
    edges = np.asarray(bins, dtype=float)
    if edges.ndim == 0 and edges > 0:
        if not at[0].size or not at[1].size:
            return np.empty(0)
        spans = np.maximum(at[0].max(0), at[1].max(0)) - np.minimum(at[0].min(0), at[1].min(0))
        farthest = float(np.sqrt((spans**2).sum()))
        return np.arange(1, int(farthest / float(edges)) + 1) * float(edges)
    if edges.ndim != 1 or not edges.size or not (np.diff(edges, prepend=0) > 0).all():
        raise SchemaError(
            f"bins is {bins!r}, expected the width of a bin, or ascending inner edges above 0, "
            "in µm"
        )
    return edges
