"""Connection probability between populations, by distance, among the pairs that were tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.populations import By, label_parts, population_labels
from microns_xr.analysis.resample import bootstrap_neurons, wilson_interval
from microns_xr.analysis.tuned import (
    ChosenNeurons,
    by_completeness,
    choice_text,
    lower_bound_note,
    neurons_to_test,
)
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.subset import recompress, take
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import AXES, validate
from microns_xr.store.open import Connectivity, connectivity_of
from microns_xr.threads import equal_spans, run_spans, usable_threads

# Pairs of neurons by distance: bins, and counting them without a matrix of distances.
#
# ``y`` is the depth from the pia, so that the lateral distance is that in the x-z plane. A
# distance that falls on an edge belongs to the bin that begins there.


# What each direction needs of a position, and what it is.
DIRECTIONS = {
    "lateral": ("xz", "distance in the x-z plane"),
    "depth": ("y", "difference of depth, without sign"),
    "depth_change": ("y", "depth of the postsynaptic neuron minus that of the presynaptic one"),
    "euclidean": ("xyz", "distance in space"),
}
_NONE = -1
_KINDS = {name: i for i, name in enumerate(DIRECTIONS)}
_NARROWEST = 1e-9  # µm
_MOST_CELLS = 4096  # of four bytes: half of a fast cache


class Bins(NamedTuple):
    """Bins of one direction, as the kernels take them."""

    # position among ``DIRECTIONS``, -1 for one bin that holds every pair
    kind: int
    edges: np.ndarray  # ascending, µm, one more than bins
    # for each cell of a fine even grid over the edges, a bin that is not after any of its
    # distances
    start: np.ndarray
    scale: float  # cells of that grid a µm
    # how many bins a distance may be after the one of its cell
    steps: int

    @property
    def n(self) -> int:
        """Number of bins."""
        return self.edges.size - 1


class Neurons(NamedTuple):
    """Positions of neurons, µm, each (neurons,) and contiguous."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def take(self, rows: np.ndarray) -> Neurons:
        """Return the neurons of these rows."""
        return Neurons(self.x[rows], self.y[rows], self.z[rows])

    def known(self) -> np.ndarray:
        """Return which neurons have a position."""
        return np.isfinite(self.x) & np.isfinite(self.y) & np.isfinite(self.z)


def read_bins(distance: Any, direction: str = "lateral") -> dict[str, np.ndarray]:
    """Read edges of bins by direction."""
    if distance is None:
        return {}
    by_direction = dict(distance) if isinstance(distance, Mapping) else {direction: distance}
    if not 1 <= len(by_direction) <= 2:
        raise SchemaError(
            f"distance has {len(by_direction)} directions, expected edges for one or two"
        )
    result = {}
    for name, edges in by_direction.items():
        if name not in DIRECTIONS:
            near = ", ".join(nearest_words(name, DIRECTIONS))
            raise UnknownLabelError(
                f"there is no direction {name!r}, expected one of {list(DIRECTIONS)}"
                + (f"; nearest: {near}" if near else "")
            )
        try:
            values = np.asarray(edges, dtype=float)
        except (TypeError, ValueError) as error:
            raise SchemaError(f"edges of {name} are no numbers: {error}") from error
        if (
            values.ndim != 1
            or values.size < 2
            or not np.isfinite(values).all()
            or not (np.diff(values) >= _NARROWEST).all()
        ):
            raise SchemaError(
                f"edges of {name} are {edges!r}, expected at least two finite ascending numbers "
                "in µm, such as np.arange(0, 501, 25)"
            )
        result[name] = values
    return result


def as_bins(edges: Mapping[str, np.ndarray]) -> tuple[Bins, Bins]:
    """Prepare one or two directions for the kernels; what is absent becomes one bin for all."""
    whole = Bins(_NONE, np.array([0.0, 1.0]), np.zeros(1, dtype=np.int32), 0.0, 0)
    bins = [_bins(name, e) for name, e in edges.items()]
    first, second, *_ = [*bins, whole, whole]
    return first, second


def _bins(name: str, edges: np.ndarray) -> Bins:
    length = edges[-1] - edges[0]
    n_cells = int(2 * length / max(np.diff(edges).min(), 2 * length / _MOST_CELLS))
    scale = n_cells / length
    # From one cell before to one after: rounding may put a distance into a cell beside its own.
    cells = np.arange(-1, n_cells + 2) / scale
    among = np.searchsorted(edges - edges[0], cells, side="right") - 1
    among = np.clip(among, 0, edges.size - 2)
    start, last = among[:-3], among[3:]
    steps = int((last - start).max())
    return Bins(_KINDS[name], edges, start.astype(np.int32), scale, steps)


def positions_of_units(units: xr.Dataset, edges: Mapping[str, np.ndarray]) -> Neurons:
    """Return positions of units on the axes that directions need."""
    n = units.sizes["nucleus_id"]
    needed = {axis for name in edges for axis in DIRECTIONS[name][0]}
    if not needed:
        return Neurons(*np.zeros((3, n)))
    if "position" not in units or set(units["position"].dims) != {"nucleus_id", "axis"}:
        raise SchemaError(
            "units has no position(nucleus_id, axis), which distances need: build the units with "
            "mx.Release(...).units(), or leave distance out"
        )
    position = units["position"].transpose("nucleus_id", "axis")
    axes = tuple(position["axis"].values) if "axis" in position.coords else AXES
    if axes != AXES:
        raise SchemaError(f"axis of position is {axes}, expected {AXES}")
    columns = [
        np.ascontiguousarray(position.values[:, i], dtype=float) if axis in needed else np.zeros(n)
        for i, axis in enumerate(AXES)
    ]
    return Neurons(*columns)


def count_pairs(
    pre: Neurons,
    post: Neurons,
    own: np.ndarray,
    group_starts: np.ndarray,
    indices: np.ndarray,
    spans: np.ndarray,
    edges: Mapping[str, np.ndarray],
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Count tested and connected pairs of each presynaptic neuron by group and bin."""
    first, second = as_bins(edges)
    n_groups = group_starts.size - 1
    shape = (own.size, n_groups, first.n * second.n)
    tested, connected = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    group_of = np.repeat(np.arange(n_groups), np.diff(group_starts))
    if not edges:
        tested += np.diff(group_starts).astype(np.int32)[:, None]
        rows = np.flatnonzero(own >= 0)
        tested[rows, group_of[own[rows]], 0] -= 1

    def work(lo: int, hi: int) -> None:
        _count(
            pre, post, own, group_starts, group_of, indices, spans, first, second,
            tested, connected, lo, hi,
        )  # fmt: skip

    run_spans(work, equal_spans(own.size, 8 * threads), threads)
    by_bin = (own.size, n_groups, *(e.size - 1 for e in edges.values()))
    return tested.reshape(by_bin), connected.reshape(by_bin)


@numba.njit(nogil=True, cache=True)
def _count(  # type: ignore[no-untyped-def]
    pre, post, own, group_starts, group_of, indices, spans, first, second,
    tested, connected, lo, hi,
):  # fmt: skip
    # The bin of every postsynaptic neuron, seen from one presynaptic neuron; the last is none.
    none = tested.shape[2]
    bin_of = np.zeros(post.x.size, np.int32)
    distance = np.empty(post.x.size)
    counts = np.zeros(none + 1, np.int32)
    for i in range(lo, hi):
        if first.kind != _NONE:
            bin_of[:] = 0
            for bins in (first, second):
                if bins.kind != _NONE:
                    _find_distances(
                        bins.kind, pre.x[i], pre.y[i], pre.z[i], post.x, post.y, post.z, distance
                    )
                    _find_bins(
                        bins.edges, bins.start, bins.scale, bins.steps, none, distance, bin_of
                    )
        if own[i] >= 0:
            bin_of[own[i]] = none
        if first.kind != _NONE:
            for group in range(group_starts.size - 1):
                counts[:] = 0
                for j in range(np.uintp(group_starts[group]), np.uintp(group_starts[group + 1])):
                    counts[np.uintp(bin_of[j])] += 1
                tested[i, group] = counts[:none]
        for p in range(spans[i, 0], spans[i, 1]):
            k = bin_of[indices[p]]
            if k != none:
                connected[i, group_of[indices[p]], k] += 1
        if own[i] >= 0:
            bin_of[own[i]] = 0


@numba.njit(nogil=True, cache=True)
def _find_distances(  # type: ignore[no-untyped-def]
    kind, x, y, z, post_x, post_y, post_z, out
):
    # Loops of their own, each of which becomes one over registers.
    if kind == 0:
        for j in range(out.size):
            out[j] = np.sqrt((post_x[j] - x) ** 2 + (post_z[j] - z) ** 2)
    elif kind == 1:
        for j in range(out.size):
            out[j] = abs(post_y[j] - y)
    elif kind == 2:
        for j in range(out.size):
            out[j] = post_y[j] - y
    else:
        for j in range(out.size):
            out[j] = np.sqrt((post_x[j] - x) ** 2 + (post_y[j] - y) ** 2 + (post_z[j] - z) ** 2)


@numba.njit(nogil=True, cache=True)
def _find_bins(edges, start, scale, steps, none, distance, out):  # type: ignore[no-untyped-def]
    n = np.int32(edges.size - 1)
    lowest, end, last = edges[0], edges[n], start.size - 1
    for j in range(out.size):
        d = distance[j]
        inside = d >= lowest and d < end
        cell = (d - lowest) * scale if inside else 0.0
        k = start[min(np.uint32(cell), np.uint32(last))]
        for _ in range(steps):
            k += np.int32(d >= edges[np.uintp(k + 1)])
        out[j] = out[j] * n + k if inside and out[j] != none else none


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
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> found = connection_probability(release.connectivity(), release.units(),
    ...     by="classification_system", distance=[0, 100, 200])
    >>> found.probability.dims
    ('pre_classification_system', 'post_classification_system', 'lateral_distance')
    """
    pairs, _ = connectivity_of(connectivity, "pre")
    validate(pairs, "connectivity")
    labelled = [("connectivity", pairs), ("units", units)]
    labelled += [(n, v) for n, v in (("pre", pre), ("post", post)) if isinstance(v, xr.Dataset)]
    require_same_release(*labelled)
    if interval not in ("bootstrap", "wilson"):
        raise SchemaError(f"interval is {interval!r}, expected 'bootstrap' or 'wilson'")
    edges = read_bins(distance, direction)
    labels = _labels(units, by)
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


def _labels(units: xr.Dataset, by: By | Mapping[str, By] | None) -> dict[str, xr.DataArray]:
    if by is None:
        ids = units["nucleus_id"]
        everybody = np.full(ids.size, "all", dtype=object)
        labels = xr.DataArray(everybody, {"nucleus_id": ids}, ("nucleus_id",), "population")
        return {"pre": labels, "post": labels}
    if isinstance(by, Mapping):
        if set(by) != {"pre", "post"}:
            raise SchemaError(f"by has the keys {list(by)}, expected 'pre' and 'post'")
        both = {side: by[side] for side in ("pre", "post")}
        return {s: population_labels(units, b) for s, b in both.items()}
    labels = population_labels(units, by)
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
