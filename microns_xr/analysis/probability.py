"""Connection probability between populations, by distance, among the pairs that were tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.distances import (
    DIRECTIONS,
    Neurons,
    count_pairs,
    positions_of_units,
    read_bins,
)
from microns_xr.analysis.populations import By, label_parts, population_labels
from microns_xr.analysis.resample import bootstrap_neurons, wilson_interval
from microns_xr.analysis.tested import (
    ChosenNeurons,
    by_completeness,
    choice_text,
    lower_bound_note,
    neurons_to_test,
)
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import recompress, take
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import validate
from microns_xr.store.argument import Connectivity, connectivity_of
from microns_xr.threads import usable_threads

__all__ = ["connection_probability"]

Interval = Literal["bootstrap", "wilson"]

# Tested and connected pairs of each neuron, int32: 200 million of either are 1.6 GB.
_MAX_CELLS = 200_000_000


def connection_probability(
    connectivity: Connectivity,
    units: xr.Dataset,
    by: By | Mapping[str, By] | None = "cell_type",
    distance: Any = None,
    direction: str = "lateral",
    *,
    presynaptic: str | Iterable[str] = "extended",
    pre: Any = None,
    post: Any = None,
    interval: Interval = "bootstrap",
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    check_release: bool = True,
) -> xr.Dataset:
    """Estimate how probable a connection is between populations, and by distance.

    The denominator is the number of pairs that were tested: both neurons on the axes of the
    connectivity and among the units, the presynaptic axon complete enough, and the two not the
    same neuron. A probability of axons that are not full is a lower bound, since they were followed
    to a part of their targets.

    Parameters
    ----------
    connectivity : xarray.Dataset, xarray.DataTree, str, path-like or zarr.abc.store.Store
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), a tree that has one, or a
        store. Of lazy connectivity the pairs that are tested are loaded.
    units : xarray.Dataset
        Units of the same release; neurons that are not among them are left out.
    by : str, collection of str, xarray.DataArray, mapping or None, optional
        Populations, as `population_labels` takes them; ``{"pre": ..., "post": ...}`` for
        different ones of either side; None for everybody.
    distance : array-like or mapping of str to array-like, optional
        Edges of bins in µm, for `direction`; or ``{"lateral": edges, "depth": edges}`` for both
        at once. A bin holds its lower edge and not its upper one, the last one too.
    direction : {"lateral", "depth", "depth_change", "euclidean"}, optional
        Distance in the x-z plane; difference of depth (y); depth of the postsynaptic neuron minus
        that of the presynaptic one; distance in space.
    presynaptic : str or collection of str, optional
        Which axons are complete enough, in the words of the condition `axon` of `select_units`:
        ``"extended"`` (partial or full; before release 1078 the status "extended"), ``"full"``,
        ``"clean"`` (proofread in any way), words of ``axon_completeness``, or ``"all"``.
    pre, post : mapping, collection of int, or units Dataset, optional
        Neurons of either side: conditions of `select_units` such as ``{"layer": "L4"}``, or
        nucleus ids on the axes. Where the scope of the connectivity is "unknown" both must be
        given: they say that these pairs were asked for.
    interval : {"bootstrap", "wilson"}, optional
        Resampled presynaptic neurons, each with all its pairs; or Wilson's interval, which takes
        pairs for independent and is too narrow where neurons differ.
    n_bootstrap : int, optional
        Number of resamples.
    confidence : float, optional
        Nominal coverage of the interval.
    seed : int, optional
        Equal seeds give equal intervals.
    check_release : bool, optional
        False skips the release check.

    Returns
    -------
    xarray.Dataset
        Over (``pre_<name>``, ``post_<name>``) and ``<direction>_distance`` (middle of a bin, µm,
        with coordinates ``..._start`` and ``..._end``), as far as they were asked for: ``n_pairs``
        (tested), ``n_connected``, int64; ``probability``, their ratio, NaN without a pair;
        ``probability_low`` and ``probability_high``, NaN where nothing can be said: for the
        bootstrap with fewer than two neurons, or when all have the same ratio, such as 0;
        ``n_pre_tested``, presynaptic neurons with a tested pair. Beside them
        ``n_pre(pre_<name>, axon_completeness)``, ``n_post(post_<name>)`` and
        ``lower_bound(pre_<name>)``, True where some axons are not full. The attributes say how
        many neurons were left out and why, and how many pairs lie outside of the bins.

    Raises
    ------
    SchemaError
        If the scope is unknown and `pre` and `post` are not given, no neuron of a side is left,
        units lack what is needed, edges do not ascend, or there are too many bins and populations.
    UnknownLabelError
        If a variable, a word of `presynaptic`, a direction, or an id of `pre` or `post` is not
        known.
    ReleaseMismatchError
        If two of the objects are of different releases.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> found = connection_probability(release.connectivity(), release.units(),
    ...     by="classification_system", distance=[0, 100, 200])
    >>> found.probability.dims
    ('pre_classification_system', 'post_classification_system', 'lateral_distance')
    """
    pairs, _ = connectivity_of(connectivity, "pre")
    validate(pairs, "connectivity")
    labelled = [("connectivity", pairs), ("units", units)]
    labelled += [(n, v) for n, v in (("pre", pre), ("post", post)) if isinstance(v, xr.Dataset)]
    require_same_release(*labelled, check_release=check_release)
    if interval not in ("bootstrap", "wilson"):
        raise SchemaError(f"interval is {interval!r}, expected 'bootstrap' or 'wilson'")
    edges = read_bins(distance, direction)
    labels = _labels(units, by, check_release)
    words = presynaptic if isinstance(presynaptic, str) else list(presynaptic)
    at = positions_of_units(units, edges)
    tested = neurons_to_test(pairs, units, words, pre, post, at.known())
    groups = {side: _Groups.of(labels[side], tested.rows[side]) for side in ("pre", "post")}
    counts = _pairs_of(pairs, tested, groups, at, edges)
    result = _counts(pairs, units, tested, groups, labels, edges)
    dims = (*(f"{s}_{labels[s].name}" for s in labels), *(f"{name}_distance" for name in edges))
    _estimate(result, dims, counts, interval, n_bootstrap, confidence, seed)
    if by is None:
        result = result.isel(pre_population=0, post_population=0, drop=True)
    shown = {name: e.tolist() for name, e in edges.items()} or None
    entry = (
        f"connection_probability(by={[str(labels[s].name) for s in labels]}, distance={shown}, "
        f"presynaptic={words!r}, pre={choice_text(pre)}, post={choice_text(post)}, "
        f"interval={interval!r}, n_bootstrap={n_bootstrap}, confidence={confidence}, seed={seed})"
    )
    return add_history(result, entry)


class _Groups(NamedTuple):
    """Populations of the neurons of one side: their labels, and the number of each neuron's."""

    labels: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, labels: xr.DataArray, rows: np.ndarray) -> _Groups:
        codes, words = pd.factorize(labels.values[rows], sort=True)
        return cls(words, codes)


def _labels(
    units: xr.Dataset, by: By | Mapping[str, By] | None, check_release: bool
) -> dict[str, xr.DataArray]:
    if by is None:
        ids = units["nucleus_id"]
        everybody = np.full(ids.size, "all", dtype=object)
        labels = xr.DataArray(everybody, {"nucleus_id": ids}, ("nucleus_id",), "population")
        return {"pre": labels, "post": labels}
    if isinstance(by, Mapping):
        if set(by) != {"pre", "post"}:
            raise SchemaError(f"by has the keys {list(by)}, expected 'pre' and 'post'")
        both = {side: by[side] for side in ("pre", "post")}
        return {
            s: population_labels(units, b, check_release=check_release) for s, b in both.items()
        }
    labels = population_labels(units, by, check_release=check_release)
    return {"pre": labels, "post": labels}


def _pairs_of(
    connectivity: xr.Dataset,
    tested: ChosenNeurons,
    groups: Mapping[str, _Groups],
    at: Neurons,
    edges: Mapping[str, np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield tested and connected pairs of each neuron, a presynaptic population at a time."""
    n_bins = int(np.prod([e.size - 1 for e in edges.values()]))
    n_post = groups["post"].labels.size
    n_most = int(np.bincount(groups["pre"].codes).max())
    if n_most * n_post * n_bins > _MAX_CELLS:
        raise SchemaError(
            f"{n_most} presynaptic neurons x {n_post} populations x {n_bins} bins are too many to "
            f"hold at once, expected at most {_MAX_CELLS}: use fewer bins, or coarser populations"
        )
    # Only the pattern is needed, and of that the neurons that count.
    chosen = take(connectivity[["synapse_size", "synapse_count"]], *tested.ids.values()).compute()
    pattern, _ = pair_buffers(recompress(chosen, "pre"))
    order = np.argsort(groups["post"].codes, kind="stable")
    place = np.empty(order.size, dtype=np.int32)
    place[order] = np.arange(order.size)
    starts = np.searchsorted(groups["post"].codes[order], np.arange(n_post + 1))
    posts = at.take(tested.rows["post"][order])
    own = Lookup(tested.ids["post"], "post_nucleus_id").find(tested.ids["pre"])
    own = np.where(own >= 0, place[own], -1)
    partners = place[pattern.indices]
    for group in range(groups["pre"].labels.size):
        members = np.flatnonzero(groups["pre"].codes == group)
        spans = np.stack([pattern.indptr[members], pattern.indptr[members + 1]], axis=1)
        yield count_pairs(
            at.take(tested.rows["pre"][members]),
            posts,
            own[members],
            starts,
            partners,
            spans,
            edges,
            usable_threads(None, members.size * order.size),
        )


def _counts(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    tested: ChosenNeurons,
    groups: Mapping[str, _Groups],
    labels: Mapping[str, xr.DataArray],
    edges: Mapping[str, np.ndarray],
) -> xr.Dataset:
    """Make the axes of the result, with the neurons that stand behind it."""
    dims = {side: f"{side}_{labels[side].name}" for side in ("pre", "post")}
    coords: dict[str, Any] = {str(n): c for n, c in connectivity.coords.items() if not c.dims}
    for side, dim in dims.items():
        coords[dim] = groups[side].labels
        coords |= label_parts(labels[side], dim, side, groups[side].labels)
    for name, e in edges.items():
        dim = f"{name}_distance"
        text = {"units": "µm", "long_name": DIRECTIONS[name][1]}
        coords[dim] = (dim, (e[:-1] + e[1:]) / 2, {**text, "what": "middle of the bin"})
        coords[f"{dim}_start"] = (dim, e[:-1], {**text, "what": "lower edge, in the bin"})
        coords[f"{dim}_end"] = (dim, e[1:], {**text, "what": "upper edge, not in the bin"})
    used = by_completeness(units, tested.rows["pre"])
    coords["axon_completeness"] = np.array(list(used), dtype=object)
    result = xr.Dataset(coords=coords)
    words = units["axon_completeness"].values[tested.rows["pre"]]
    classes = pd.Index(coords["axon_completeness"]).get_indexer(words)
    members = np.zeros((groups["pre"].labels.size, len(used)), dtype=np.int64)
    np.add.at(members, (groups["pre"].codes, classes), 1)
    result["n_pre"] = (
        (dims["pre"], "axon_completeness"),
        members,
        {"long_name": "presynaptic neurons by completeness of the axon", "units": "neurons"},
    )
    result["n_post"] = (
        dims["post"],
        np.bincount(groups["post"].codes).astype(np.int64),
        {"long_name": "postsynaptic neurons", "units": "neurons"},
    )
    partial = members[:, [word != "full" for word in used]].sum(axis=1) > 0
    result["lower_bound"] = (
        dims["pre"],
        partial,
        {"long_name": "whether some axons are not known to be fully extended"},
    )
    n_own = np.intersect1d(tested.ids["pre"], tested.ids["post"], assume_unique=True).size
    result.attrs = {
        "completeness": lower_bound_note(used),
        "axons_on_axis": tested.axons,
        "axons_used": used,
        "left_out": tested.left_out,
        "autapses_left_out": int(n_own),
    }
    for name, dataset in (("history", connectivity), ("units_history", units)):
        if dataset.attrs.get("history"):
            result.attrs[name] = dataset.attrs["history"]
    return result


def _estimate(
    result: xr.Dataset,
    dims: tuple[str, ...],
    pairs: Iterator[tuple[np.ndarray, np.ndarray]],
    interval: Interval,
    n_bootstrap: int,
    confidence: float,
    seed: int,
) -> None:
    """Write counts, probabilities and intervals into `result`."""
    rows: list[tuple[np.ndarray, ...]] = []
    for tested, connected in pairs:
        counts = (
            tested.sum(axis=0, dtype=np.int64),
            connected.sum(axis=0, dtype=np.int64),
            (tested > 0).sum(axis=0, dtype=np.int64),
        )
        if interval == "bootstrap":
            ends = bootstrap_neurons(connected, tested, n_bootstrap, seed, confidence)
        else:
            ends = wilson_interval(counts[1], counts[0], confidence)
        rows.append((*counts, *ends))
    n_pairs, n_connected, n_neurons, low, high = (
        np.stack(part) for part in zip(*rows, strict=True)
    )
    p = np.full(n_pairs.shape, np.nan)
    np.divide(n_connected, n_pairs, out=p, where=n_pairs > 0)
    what = f"{interval} interval of confidence {confidence}"
    for name, values, text, unit in (
        ("n_pairs", n_pairs, "pairs tested", "pairs"),
        ("n_connected", n_connected, "pairs with a synapse", "pairs"),
        ("probability", p, "connection probability", "1"),
        ("probability_low", low, f"lower end of the {what}", "1"),
        ("probability_high", high, f"upper end of the {what}", "1"),
        ("n_pre_tested", n_neurons, "presynaptic neurons with a tested pair", "neurons"),
    ):
        result[name] = (dims, values, {"long_name": text, "units": unit})
    everything = int(result["n_pre"].sum()) * int(result["n_post"].sum())
    outside = everything - result.attrs["autapses_left_out"] - int(n_pairs.sum())
    result.attrs |= {"pairs_outside_bins": outside, "interval": what}
