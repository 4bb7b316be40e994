"""Null models: comparison of a result with chance, with some features of the data held fixed.

Each null model keeps some features of the data (``attrs["keeps"]``) and randomises the rest, so a
difference from it cannot be explained by the features that it keeps:

============================  ===================================================================
`permute_angles`              Keeps every connection and the set of angles. A difference means
                              that connections and angles are related, for whatever reason. With
                              ``within=`` the reason is not that groups differ in both, but it may
                              be that similar neurons lie close together, since permuted angles do
                              not cluster.
`rewire`                      Keeps the angle of every neuron and its number of partners. A
                              difference is due neither to tuned neurons having more connections
                              nor to unequal degrees; it may be due to where neurons lie.
`rewire_by_distance`          Keeps the angle of every neuron, and the number of partners of every
                              presynaptic neuron at each distance. A difference is due neither to
                              degrees (in-degrees on request) nor to similar neurons being
                              neighbours, as far as the bins of distance are narrow enough.
`permute_weights`             Keeps which pairs are connected. A difference means that sizes are
                              related to the angles, whatever the connections are.
============================  ===================================================================

Rewired connections stay on the axes of the connectivity. Build null models from exactly the
connections that are analysed (`mx.analysis.tuned_connections`): a null model of the whole release
exchanges partners with neurons that never enter the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import signature
from numbers import Real
from typing import Any, Literal, NamedTuple

import dask.array as da
import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.pairs import (
    SIDES,
    labelled,
    require_angle,
    same_neurons,
    unit_positions,
)
from microns_xr.analysis.resample import percentile_interval, ratio, require_confidence
from microns_xr.analysis.tuned import (
    count_pairs,
    like_to_like,
    prepare,
    statistics,
    to_ticks,
    totals_of,
    tuned_connections,
)
from microns_xr.angles import describe_angle
from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    as_pairs,
    gcxs,
    is_scope_known,
    make_pattern,
    pair_buffers,
    weight_of,
)
from microns_xr.connectivity.labels import Lookup, require_known
from microns_xr.connectivity.sort import take_values
from microns_xr.connectivity.subset import n_connections, recompress
from microns_xr.errors import (
    SchemaError,
    UnknownLabelError,
    names_of,
    require_instance,
    require_one_of,
    unknown_label,
    whole_number,
)
from microns_xr.provenance import add_history, require_same_release

__all__ = [
    "NullConnectivity",
    "compare",
    "compare_values",
    "null_values",
    "permute_angles",
    "permute_weights",
    "rewire",
    "rewire_by_distance",
]

# A block of replicates of permuted angles: 4 million float64 are 32 MB.
_BLOCK = 4_000_000
# Candidate partners, sorted by distance, int32: 800 MB.
_MAX_CANDIDATES = 200_000_000
# Attempted exchanges per connection: in the pilot run, which measures the accepted share; at most.
_PILOT, _MOST_ATTEMPTS = 10, 10_000
# No replicate has this number, so the pilot run has its own random numbers.
_PILOT_NUMBER = 2**32 - 1


class _Observed:
    """The connections of a Dataset, sorted by presynaptic neuron."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset = as_pairs(dataset)
        self.compressed = pair_buffers(dataset)[0].compressed
        pattern, self.values = pair_buffers(recompress(dataset, "pre"))
        self.shape = pattern.shape
        self.indptr = pattern.indptr
        self.pre, self.post = pattern.ends()
        self.same = same_neurons(*(dataset[dim].values for dim in PAIR_DIMS))


# From the number of a replicate to the postsynaptic neuron of each observed connection, and to the
# observed connection whose values it takes (None: values do not move).
_Draw = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


class NullConnectivity(Sequence[xr.Dataset]):
    """Null connectivity along ``replicate``; each replicate is drawn when it is accessed.

    Sparse matrices cannot be stacked along a third dim cheaply, so this is a sequence: ``null[3]``
    or ``null.isel(replicate=3)`` is a connectivity Dataset with the scalar coordinate
    ``replicate``. A replicate depends only on the seed and its number, not on the order of access
    or the number of replicates. Made by `rewire`, `rewire_by_distance` and `permute_weights`;
    ``attrs["keeps"]`` states what it keeps.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> null = rewire(two_neurons(), n=3)
    >>> len(null), null.sizes, int(null[-1].replicate), int(null.isel(replicate=1).replicate)
    (3, {'replicate': 3}, 2, 1)
    """

    def __init__(self, observed: _Observed, draw: _Draw, n: int, attrs: dict[str, Any]) -> None:
        n = whole_number("n", n, 1)  # of replicates
        self.observed = observed
        self.draw = draw
        self.attrs = attrs
        self._n = int(n)

    def __len__(self) -> int:
        return self._n

    @property
    def sizes(self) -> dict[str, int]:
        """Length of the dim ``replicate``."""
        return {"replicate": self._n}

    def __repr__(self) -> str:
        sizes = self.observed.dataset.sizes
        attrs = "\n".join(f"    {name}: {value}" for name, value in self.attrs.items())
        shape = ", ".join(f"{dim}: {sizes[dim]}" for dim in PAIR_DIMS)
        return f"<null connectivity (replicate: {self._n}, {shape}), drawn lazily>\n{attrs}"

    def isel(self, replicate: int) -> xr.Dataset:
        """Return one replicate, as ``null[replicate]`` does.

        Parameters
        ----------
        replicate : int
            Index of the replicate; negative ones count from the end.

        Returns
        -------
        xarray.Dataset
            Connectivity over the same dims as the observed one, with the scalar coordinate
            ``replicate``.
        """
        return self[replicate]

    def __getitem__(self, replicate: Any) -> Any:
        if isinstance(replicate, slice):
            return [self[i] for i in range(self._n)[replicate]]
        i = range(self._n)[replicate]
        observed, dataset = self.observed, self.observed.dataset
        post, source = self.draw(i)
        order = np.lexsort((post, observed.pre))
        source = order if source is None else source[order]
        pattern = make_pattern(post[order], observed.indptr, observed.shape, "pre")
        result = dataset.assign(
            {
                name: (PAIR_DIMS, gcxs(take_values(values, source), pattern), dataset[name].attrs)
                for name, values in observed.values.items()
            }
        ).assign_coords(replicate=xr.Variable((), np.int64(i)))
        result = recompress(result, observed.compressed)
        return add_history(result, f"{self.attrs['null']}, replicate {i}", source=dataset)


Statistic = Callable[..., Any]
Null = xr.DataArray | NullConnectivity


def compare(
    statistic: Statistic,
    connectivity: xr.Dataset,
    units: xr.Dataset,
    null: Null,
    *,
    variable: str | None = None,
    confidence: float = 0.95,
    **selection: Any,
) -> xr.Dataset:
    """Compare a statistic of the observed data with the same statistic of null replicates.

    Parameters
    ----------
    statistic : callable
        ``statistic(connectivity, units, **selection)``, which returns a number, a DataArray or a
        Dataset: `mx.analysis.like_to_like` or your own function.
    connectivity, units : xarray.Dataset
        The observed data, from which the null model was made.
    null : xarray.DataArray or NullConnectivity
        A null model: values over (``replicate``, ``nucleus_id``) that replace the unit variable of
        that name, or connectivity that replaces `connectivity`.
    variable : str, optional
        The variable to compare if the statistic returns a Dataset: ``"contrast"``, ``"slope"``,
        ``"probability"``, ``"size_contrast"`` or ``"mean_size"`` of `like_to_like`.
    confidence : float, optional
        Share of the replicates inside the interval.
    **selection
        Passed to the statistic, for the observed data and for every replicate.

    Returns
    -------
    xarray.Dataset
        As `compare_values`; ``attrs["keeps"]`` says what the null model keeps.

    Raises
    ------
    SchemaError
        If the null model was made from other neurons or connections, or `variable` is missing.
    UnknownLabelError
        If the statistic does not return such a variable.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500))
    >>> units = release.units(functional="best_only")
    >>> null = permute_angles(units, within="cell_type", n=99)
    >>> result = compare(mx.analysis.like_to_like, release.connectivity(units=units), units, null,
    ...     variable="contrast", presynaptic="all")
    >>> 0 < float(result.p) <= 1
    True
    """
    if statistic is like_to_like:
        selection = {**selection, "interval": None}
    observed = statistic(connectivity, units, **selection)
    values = null_values(statistic, connectivity, units, null, **selection)
    if isinstance(observed, xr.Dataset):
        if variable not in values:
            error = SchemaError if variable is None else UnknownLabelError
            raise unknown_label("variable is", variable, values.data_vars, error=error)
        observed, values = observed[variable], values[variable]
    result = compare_values(xr.DataArray(observed), values, confidence=confidence)
    result.attrs |= {name: null.attrs[name] for name in ("null", "keeps", "seed")}
    name = getattr(statistic, "__name__", "statistic")
    arguments = ", ".join(f"{k}={_text(v)}" for k, v in selection.items())
    entry = f"compare({name}, variable={variable!r}, null={null.attrs['null']}, {arguments})"
    return add_history(result, entry, source=(connectivity, units))


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 and "\n" not in text else f"<{type(value).__name__}>"


def compare_values(
    observed: xr.DataArray, null: xr.DataArray, *, confidence: float = 0.95
) -> xr.Dataset:
    """Compare observed values with those of null replicates.

    Parameters
    ----------
    observed : xarray.DataArray
        The observed values.
    null : xarray.DataArray
        The values of the replicates, over the same dims and ``replicate``; NaN are left out.
    confidence : float, optional
        Share of the replicates inside the interval.

    Returns
    -------
    xarray.Dataset
        Over the dims of `observed`: ``observed``; ``null_mean``, ``null_low`` and ``null_high``
        (percentiles); ``effect``, observed minus the mean of the null, ``effect_low`` and
        ``effect_high``, observed minus the percentiles; ``p``, two-sided; ``n_replicates``. ``p``
        is NaN where the observed value is.

    Raises
    ------
    SchemaError
        If `null` has no dim ``replicate``, the other dims differ, or `confidence` is not between 0
        and 1.

    Notes
    -----
    ``p = 2 min(1 + replicates as large, 1 + replicates as small) / (replicates + 1)``, at most 1:
    the observed value counts as one of the replicates, so p is never 0 and the test keeps its level
    (Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9, article
    39). With fewer than 39 replicates p cannot reach 0.05.

    Examples
    --------
    >>> null = xr.DataArray(np.arange(99.0), dims="replicate")
    >>> result = compare_values(xr.DataArray(200.0), null)
    >>> float(result.effect), float(result.p)
    (151.0, 0.02)
    """
    require_confidence(confidence)
    if "replicate" not in null.dims or set(null.dims) - {"replicate"} != set(observed.dims):
        raise SchemaError(
            f"the null has dims {null.dims}, expected 'replicate' and those of the observed "
            f"values, {observed.dims}"
        )
    draws = np.asarray(null.transpose("replicate", *observed.dims).values, dtype=float)
    if draws.shape[1:] != observed.shape:
        raise SchemaError(
            f"the null has shape {draws.shape[1:]}, expected that of the observed values, "
            f"{observed.shape}: apply the same selection to both"
        )
    values = np.asarray(observed.values, dtype=float)
    n = np.isfinite(draws).sum(axis=0)
    # Equal sums in another order may differ in their last bits; they are ties.
    close = np.isclose(draws, values, rtol=1e-9, atol=0)
    as_large = ((draws > values) | close).sum(axis=0)
    as_small = ((draws < values) | close).sum(axis=0)
    p = np.minimum(1, 2 * (1 + np.minimum(as_large, as_small)) / (n + 1))
    p = np.where(np.isfinite(values) & (n > 0), p, np.nan)
    mean = ratio(np.nansum(draws, axis=0), n)
    low, high = percentile_interval(draws, confidence)
    result = xr.Dataset(
        coords=observed.coords,
        attrs={"statistic": str(observed.name or "statistic"), "confidence": confidence},
    )
    for name, array, text in (
        ("observed", values, "observed"),
        ("null_mean", mean, "mean of the null"),
        ("null_low", low, "lower percentile of the null"),
        ("null_high", high, "upper percentile of the null"),
        ("effect", values - mean, "observed minus mean of the null"),
        ("effect_low", values - high, "observed minus upper percentile of the null"),
        ("effect_high", values - low, "observed minus lower percentile of the null"),
    ):
        result[name] = labelled(observed.dims, array, text, observed.attrs.get("units"))
    result["p"] = labelled(observed.dims, p, "two-sided p")
    result["n_replicates"] = labelled(observed.dims, n, "replicates with a value")
    return result


def null_values(
    statistic: Statistic, connectivity: xr.Dataset, units: xr.Dataset, null: Null, **selection: Any
) -> Any:
    """Compute a statistic of every null replicate.

    Parameters
    ----------
    statistic, connectivity, units, null, **selection
        As `compare`. `mx.analysis.like_to_like` is computed for all replicates at once; any other
        function is called once per replicate.

    Returns
    -------
    xarray.DataArray or xarray.Dataset
        What the statistic returns, along ``replicate``.

    Raises
    ------
    SchemaError
        If the null model was made from other neurons or connections.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> null = permute_weights(two_neurons(), n=3)
    >>> units = xr.Dataset(coords={"nucleus_id": [11, 12]})
    >>> largest = lambda c, u: float(c.synapse_size.data.max())
    >>> null_values(largest, two_neurons(), units, null).values
    array([7., 7., 7.])
    """
    connectivity = as_pairs(connectivity)
    _require_null_of(connectivity, units, null)
    if statistic is like_to_like:
        call = signature(like_to_like).bind(connectivity, units, **selection)
        call.apply_defaults()
        if isinstance(null, NullConnectivity) or null.name == call.arguments["angle"]:
            return _like_to_like_values(null, **call.arguments)
    values: list[Any] = []
    for i in range(null.sizes["replicate"]):
        if isinstance(null, NullConnectivity):
            value = statistic(null[i].drop_vars("replicate"), units, **selection)
        else:
            drawn = null.isel(replicate=i, drop=True).compute()
            value = statistic(connectivity, units.assign({str(null.name): drawn}), **selection)
        values.append(value if isinstance(value, xr.Dataset) else xr.DataArray(value))
    return xr.concat(
        values, "replicate", coords="minimal", compat="override", join="exact", combine_attrs="drop"
    )


def _require_null_of(connectivity: xr.Dataset, units: xr.Dataset, null: Null) -> None:
    if isinstance(null, NullConnectivity):
        dataset = null.observed.dataset
        if dataset is not connectivity and (
            dataset.sizes != connectivity.sizes
            or not all(dataset[dim].equals(connectivity[dim]) for dim in PAIR_DIMS)
            or n_connections(dataset) != n_connections(connectivity)
        ):
            raise SchemaError(
                "the null was made from another connectivity than the observed one: make it from "
                "the same selection"
            )
        return
    if not isinstance(null, xr.DataArray) or not {"replicate", "nucleus_id"} <= set(null.dims):
        raise SchemaError(
            f"null is a {type(null).__name__}, expected one of mx.analysis.null_models: values "
            "over (replicate, nucleus_id), or NullConnectivity"
        )
    if null.name not in units:
        raise SchemaError(
            f"the null has the name {null.name!r}, expected that of the variable of the units that "
            "it replaces: rename it with .rename(name)"
        )
    about = [{n: v.attrs.get(n) for n in ("units", "angle_convention", "period")}
             for v in (null, units[null.name])]  # fmt: skip
    if about[0] != about[1]:
        raise SchemaError(
            f"{null.name} of the null has {about[0]}, that of the units {about[1]}: make the null "
            "from the same units, after converting them"
        )
    if not np.array_equal(null["nucleus_id"].values, units["nucleus_id"].values):
        raise SchemaError(
            "the null was made from other units than the observed ones: make it from the same units"
        )


def _like_to_like_values(
    null: Null,
    connectivity: xr.Dataset,
    units: xr.Dataset,
    angle: str,
    bins: int | Sequence[float],
    weight: str | None,
    normalise: bool,
    interval: None,
    **neurons: Any,
) -> xr.Dataset:
    """Compute all replicates at once, without a Dataset for each."""
    weight = weight_of(connectivity, weight)
    if isinstance(null, NullConnectivity):
        _, pairs, bin_coords = prepare(
            connectivity, units, angle=angle, bins=bins, weight=weight, **neurons
        )
        observed = null.observed
        values = observed.values[weight]

        def count_rewired(i: int) -> np.ndarray:
            post, source = null.draw(i)
            sizes = values if source is None else values[source]
            return count_pairs(pairs._replace(pre=observed.pre, post=post, values=sizes))

        # Drawing a replicate passes over the connections about 20 times.
        work = 20 * values.size + observed.shape[1]
        return statistics(totals_of(count_rewired, len(null), work), bin_coords, normalise)

    # Once for all replicates, leave out the neurons that are never counted.
    tuned = tuned_connections(connectivity, units, angle=angle, **neurons)
    chosen, pairs, bin_coords = prepare(
        tuned, units, angle, bins, pre=None, post=None, presynaptic="all", weight=weight
    )
    has_angle = np.isfinite(units[angle].values)
    period = describe_angle(units[angle], angle)[2]
    work = pairs.pre.size + pairs.pre_ticks.size + pairs.post_ticks.size

    def count_permuted(ticks: np.ndarray, i: int) -> np.ndarray:
        pre, post = (ticks[i][chosen.rows[side]] for side in SIDES)
        return count_pairs(pairs._replace(pre_ticks=pre, post_ticks=post))

    totals = []
    replicates = da.asarray(null.transpose("replicate", "nucleus_id").data).rechunk({1: -1})
    # One dask block of replicates at a time, so that not all are in memory at once.
    for number in range(replicates.numblocks[0]):
        block = replicates.blocks[number].compute()
        if not (np.isfinite(block) == has_angle).all():
            raise SchemaError(
                f"the null gives {angle} to other neurons than those that have one, expected the "
                "same neurons: otherwise other pairs would be counted"
            )
        count = partial(count_permuted, to_ticks(block, period))
        totals.append(totals_of(count, len(block), work))
    return statistics(np.concatenate(totals), bin_coords, normalise)


def random_state(seed: int, replicate: int) -> np.ndarray:
    """Return the state of the random generator of one replicate."""
    return np.random.SeedSequence(
        whole_number("seed", seed, 0), spawn_key=(replicate,)
    ).generate_state(1, np.uint64)


def permute_angles(
    units: xr.Dataset,
    angle: str = "pref_ori",
    *,
    within: str | Iterable[str] = (),
    n: int = 1000,
    seed: int = 0,
) -> xr.DataArray:
    """Permute an angle between neurons.

    Parameters
    ----------
    units : xarray.Dataset
        Units with the angle; neurons without an angle (NaN) stay without.
    angle : str, optional
        Variable of the units with one value per neuron, an angle or any other.
    within : str or collection of str, optional
        Variables of the units, such as ``["cell_type", "layer"]``: angles are permuted between
        neurons that agree in all of them. Name what pre- and postsynaptic neurons differ in.
    n : int, optional
        Number of replicates.
    seed : int, optional
        Replicate i of a seed does not depend on `n`.

    Returns
    -------
    xarray.DataArray
        Over (``replicate``, ``nucleus_id``), with the name and attributes of the variable, as a
        dask array: replicates are drawn when they are computed.

    Raises
    ------
    UnknownLabelError
        If the units do not have a variable.
    SchemaError
        If a variable does not have one value per neuron, or no neuron has an angle.

    Examples
    --------
    >>> units = xr.Dataset({"pref_ori": ("nucleus_id", [0.0, 10.0, np.nan, 30.0])},
    ...     coords={"nucleus_id": [1, 2, 3, 4]})
    >>> null = permute_angles(units, n=2)
    >>> null.dims, np.sort(null[1].values)
    (('replicate', 'nucleus_id'), array([ 0., 10., 30., nan]))
    """
    require_angle(units, angle)
    values = _unit_values(units, angle)
    names = names_of("within", within)
    movable = np.flatnonzero(~pd.isna(values))
    if not movable.size:
        raise SchemaError(f"units.{angle} is NaN for all neurons: there is nothing to permute")
    n = whole_number("n", n, 1)
    groups = _groups([_unit_values(units, name)[movable] for name in names], movable)

    def draw(numbers: np.ndarray) -> np.ndarray:
        return np.stack([values[_permuted(values.size, groups, seed, i)] for i in numbers.tolist()])

    numbers = da.arange(n, chunks=max(1, _BLOCK // values.size), dtype=np.int64)
    drawn = da.map_blocks(
        draw,
        numbers,
        dtype=values.dtype,
        new_axis=1,
        chunks=(numbers.chunks[0], (values.size,)),
        meta=np.empty((0, 0), dtype=values.dtype),
    )
    result = units[angle].expand_dims(replicate=np.arange(n)).copy(deep=False, data=drawn)
    result.attrs = dict(units[angle].attrs) | {
        "null": "permute_angles",
        "keeps": f"every connection; the values of {angle}{_within(names)}; which neurons have one",
        "seed": seed,
    }
    return add_history(result, f"permute_angles({angle!r}, within={names}, n={n}, seed={seed})")


def permute_weights(
    connectivity: xr.Dataset, *, within: str | Iterable[str] = (), n: int = 1000, seed: int = 0
) -> NullConnectivity:
    """Permute sizes, together with the synapse counts, between connections.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``).
    within : str or collection of str, optional
        Coordinates along either axis, such as ``"pre_nucleus_id"`` or, after `mx.annotate`,
        ``["pre_cell_type", "post_cell_type"]``: sizes are permuted between connections that agree
        in all of them.
    n, seed
        As `rewire`.

    Returns
    -------
    NullConnectivity
        Sequence of connectivity Datasets.

    Raises
    ------
    UnknownLabelError
        If the connectivity does not have such a coordinate.
    SchemaError
        If the Dataset is not connectivity, or a coordinate does not lie along one of its axes.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> null = permute_weights(two_neurons(), within="post_nucleus_id", n=2)
    >>> null[1].synapse_size.data.todense().sum(axis=0)
    array([5, 9])
    """
    observed = _Observed(connectivity)
    names = names_of("within", within)
    size = observed.post.size
    groups = _groups([_connection_values(observed, name) for name in names], np.arange(size))

    def draw(i: int) -> tuple[np.ndarray, np.ndarray]:
        return observed.post, _permuted(size, groups, seed, i)

    attrs = {
        "null": f"permute_weights(within={names}, seed={seed})",
        "keeps": f"which pairs are connected; sizes and counts of connections{_within(names)}",
        "seed": seed,
    }
    return NullConnectivity(observed, draw, n, attrs)


def _within(names: list[str]) -> str:
    return f" within groups of {', '.join(names)}" if names else ""


def _unit_values(units: xr.Dataset, name: str) -> np.ndarray:
    require_instance("units", units, xr.Dataset, "a Dataset, such as Release.units()")
    require_instance("angle", name, str, "the name of a variable")
    if name not in units.variables:
        raise unknown_label("units has no variable", name, units.variables)
    if units[name].dims != ("nucleus_id",):
        raise SchemaError(
            f"units.{name} has dims {units[name].dims}, expected one value per neuron: "
            "('nucleus_id',)"
        )
    return np.asarray(units[name].values)


def _connection_values(observed: _Observed, name: str) -> np.ndarray:
    coords = observed.dataset.coords
    if name not in coords:
        hint = "write unit variables on it with mx.annotate"
        raise unknown_label("the connectivity has no coordinate", name, coords, hint)
    for dim, positions in zip(PAIR_DIMS, (observed.pre, observed.post), strict=True):
        if coords[name].dims == (dim,):
            return np.asarray(coords[name].values)[positions]
    raise SchemaError(
        f"{name} has dims {coords[name].dims}, expected one value per neuron of either axis"
    )


def _groups(labels: list[np.ndarray], positions: np.ndarray) -> list[np.ndarray]:
    """Return the positions of each group that agrees in all labels and has several members."""
    if not labels:
        return [positions]
    table = pd.DataFrame(dict(enumerate(labels)))
    groups = table.groupby(list(table), sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    return [members for members in np.split(positions[order], cuts) if members.size > 1]


def _permuted(size: int, groups: list[np.ndarray], seed: int, replicate: int) -> np.ndarray:
    """Return ``range(size)`` with the members of each group in random order."""
    rng = np.random.default_rng(random_state(seed, replicate))
    result = np.arange(size)
    for members in groups:
        result[members] = rng.permutation(members)
    return result


def rewire(
    connectivity: xr.Dataset, *, n: int = 1000, seed: int = 0, swaps: float = 10
) -> NullConnectivity:
    """Exchange partners so that every neuron keeps its number of partners.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``): the connections that are
        analysed, such as those of `mx.analysis.tuned_connections`.
    n : int, optional
        Number of replicates.
    seed : int, optional
        Replicate i of a seed does not depend on `n`.
    swaps : float, optional
        Accepted exchanges per connection, on average; every replicate starts from the observed
        connections. The number of attempts follows from the share that a pilot run accepts, and is
        in ``attrs``.

    Returns
    -------
    NullConnectivity
        Sequence of connectivity Datasets.

    Raises
    ------
    SchemaError
        If the Dataset is not connectivity, or a number is not positive.

    Notes
    -----
    Two connections are drawn and their postsynaptic ends are exchanged (Maslov & Sneppen 2002,
    Science 296, 910-913), unless a pair would be connected twice or a neuron with itself. Rejected
    exchanges count as attempts, which makes every network with these degrees that can be reached
    equally likely. Sizes and counts stay with the presynaptic neuron; connections of a neuron with
    itself stay. Milo et al. 2003 (arXiv:cond-mat/0312028) discuss how many exchanges are enough.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> null = rewire(two_neurons(), n=5)
    >>> len(null), null.attrs["keeps"][:22]
    (5, 'in- and out-degree of ')
    """
    observed = _Observed(connectivity)
    draw, n_tried = _exchanges(observed, swaps, seed, _ANYWHERE)
    attrs = {
        "null": f"rewire(seed={seed}, swaps={swaps:g})",
        "keeps": "in- and out-degree of every neuron, connections of a neuron with itself, sizes "
        "and counts of every presynaptic neuron, the requested pairs",
        "seed": seed,
        **n_tried,
    }
    return NullConnectivity(observed, draw, n, attrs)


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
) -> NullConnectivity:
    """Draw other partners at the same distances.

    Parameters
    ----------
    connectivity : xarray.Dataset
        As `rewire`.
    units : xarray.Dataset
        Units with ``position`` (µm) of every neuron of both axes.
    bins : float or sequence of float, optional
        Width of the bins of distance in µm, or their ascending inner edges; all distances beyond
        the last edge are one bin.
    distance : {"lateral", "euclidean"}, optional
        In the plane of the cortex (x and z), or in space.
    keep_in_degree : bool, optional
        False draws partners with equal probability from all neurons of the bin (of an unknown
        scope: from those with an input). True exchanges the partners of two connections if both
        stay in their bins, which keeps in-degrees as well; with narrow bins few exchanges are
        possible, which is slow.
    n, seed, swaps
        As `rewire`; `swaps` is only used with ``keep_in_degree=True``.

    Returns
    -------
    NullConnectivity
        Sequence of connectivity Datasets.

    Raises
    ------
    SchemaError
        If a neuron does not have a position, bins are not positive and ascending, or the Dataset
        is not connectivity.
    UnknownLabelError
        If a neuron is not among the units.
    ReleaseMismatchError
        If the two are from different releases.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> units = xr.Dataset({"position": (("nucleus_id", "axis"), np.zeros((2, 3)))},
    ...     coords={"nucleus_id": [11, 12], "axis": ["x", "y", "z"]})
    >>> null = rewire_by_distance(two_neurons(), units, n=2)
    >>> null[0].synapse_count.data.todense()
    array([[0, 2],
           [1, 1]])
    """
    require_same_release(("connectivity", connectivity), ("units", units))
    require_one_of("distance", distance, ("lateral", "euclidean"))
    observed = _Observed(connectivity)
    of_units = unit_positions(units, "xz" if distance == "lateral" else "xyz").T
    pre_at, post_at = (_positions(connectivity, units, of_units, dim) for dim in PAIR_DIMS)
    edges = _edges(bins, pre_at, post_at)
    places = _Places(pre_at, post_at, edges**2)
    width = f"{float(bins):g}" if isinstance(bins, float | int) else f"<{edges.size} edges>"
    also = ", in-degree of every neuron" if keep_in_degree else ""
    attrs: dict[str, Any] = {
        "null": f"rewire_by_distance(bins={width}, distance={distance!r}, "
        f"keep_in_degree={keep_in_degree}, seed={seed})",
        "keeps": f"partners of every presynaptic neuron in each bin of {distance} distance{also}, "
        "connections of a neuron with itself, sizes and counts of every presynaptic neuron in "
        "each bin, the requested pairs",
        "seed": seed,
    }
    if keep_in_degree:
        draw, n_tried = _exchanges(observed, swaps, seed, places)
        return NullConnectivity(observed, draw, n, attrs | n_tried)
    n_candidates = int((np.diff(observed.indptr) > 0).sum()) * post_at.shape[0]
    if n_candidates > _MAX_CANDIDATES:
        raise SchemaError(
            f"{n_candidates} possible pairs have to be sorted by distance, expected at most "
            f"{_MAX_CANDIDATES}: rewire only the connections that are analysed "
            "(mx.analysis.tuned_connections)"
        )
    order, start = _candidates(observed, places)
    bin_of = places.bins(pre_at[observed.pre], post_at[observed.post])

    def redraw(i: int) -> tuple[np.ndarray, None]:
        post = observed.post.copy()
        _redraw(observed.indptr, post, bin_of, observed.same, order, start, random_state(seed, i))
        return post, None

    return NullConnectivity(observed, redraw, n, attrs)


class _Places(NamedTuple):
    """Positions of the neurons of both axes in µm, (neurons, axes), and bins of distance."""

    pre: np.ndarray
    post: np.ndarray
    # Ascending inner edges of the bins, µm². A distance on an edge is in the bin above it; the last
    # bin holds all distances beyond the last edge.
    squared_edges: np.ndarray

    def bins(self, pre_at: np.ndarray, post_at: np.ndarray) -> np.ndarray:
        """Return the bins of the distances between positions."""
        squared = ((pre_at - post_at) ** 2).sum(axis=-1)
        return np.searchsorted(self.squared_edges, squared, side="right")


_ANYWHERE = _Places(np.empty((0, 0)), np.empty((0, 0)), np.empty(0))


def _exchanges(
    observed: _Observed, swaps: float, seed: int, places: _Places
) -> tuple[_Draw, dict[str, Any]]:
    """Return a function that draws a replicate by exchanges, and the number of attempts."""
    require_instance("swaps", swaps, Real, "a positive number per connection")
    if not swaps > 0:
        raise SchemaError(f"swaps is {swaps}, expected a positive number per connection")

    def exchange(replicate: int, n_attempts: int) -> tuple[np.ndarray, int]:
        post, state = observed.post.copy(), random_state(seed, replicate)
        n_swaps = _swap(
            observed.pre, observed.indptr, post, observed.same, state, n_attempts, *places
        )
        return post, int(n_swaps)

    n = observed.post.size
    n_pilot = _PILOT * n
    n_accepted = exchange(_PILOT_NUMBER, n_pilot)[1]
    # Where almost no exchange is possible, more attempts would not help.
    share = max(n_accepted, 1) / max(n_pilot, 1)
    n_attempts = int(np.ceil(n * min(swaps / share, _MOST_ATTEMPTS)))
    attrs = {"attempted_swaps": n_attempts, "accepted_share": n_accepted / max(n_pilot, 1)}
    return lambda i: (exchange(i, n_attempts)[0], None), attrs


def _candidates(observed: _Observed, places: _Places) -> tuple[np.ndarray, np.ndarray]:
    """Sort the possible partners of every connected presynaptic neuron by bin of distance.

    Returns them as positions (pre axis, post axis), bin after bin, and where each bin begins
    (pre axis, bins + 1).
    """
    n_bins = places.squared_edges.size + 1
    order = np.empty(observed.shape, dtype=np.int32)
    start = np.zeros((observed.shape[0], n_bins + 1), dtype=np.int32)
    # Nobody may have looked for synapses of the others, so that they are no possible partners.
    possible = np.ones(observed.shape[1], dtype=bool)
    if not is_scope_known(observed.dataset):
        possible = np.bincount(observed.post, minlength=observed.shape[1]) > 0
    for i in np.flatnonzero(np.diff(observed.indptr)):
        bins = places.bins(places.pre[i], places.post)
        # A neuron is not a partner of itself: it comes after the last bin.
        bins[~possible] = n_bins
        if observed.same[i] >= 0:
            bins[observed.same[i]] = n_bins
        order[i] = np.argsort(bins, kind="stable")
        start[i] = np.searchsorted(bins[order[i]], np.arange(n_bins + 1))
    return order, start


def _positions(
    connectivity: xr.Dataset, units: xr.Dataset, of_units: np.ndarray, dim: str
) -> np.ndarray:
    """Return the positions of all neurons of an axis; raise if one is missing."""
    ids = connectivity[dim].values
    rows = Lookup(units["nucleus_id"].values, "nucleus_id of the units").find(ids)
    require_known(ids, rows, dim, "the units", "select others with mx.select_connections")
    at = np.ascontiguousarray(of_units[rows])
    n_absent = (~np.isfinite(at).all(axis=1)).sum()
    if n_absent:
        raise SchemaError(
            f"{n_absent} neurons of {dim} have no position: leave them out with "
            "mx.select_connections"
        )
    return at


def _edges(bins: float | Sequence[float], pre_at: np.ndarray, post_at: np.ndarray) -> np.ndarray:
    require_instance("bins", bins, (Real, Sequence, np.ndarray), "a width or edges in µm")
    edges = np.asarray(bins, dtype=float)
    if edges.ndim == 0 and edges > 0:
        if not pre_at.size or not post_at.size:
            return np.empty(0)
        both = np.concatenate([pre_at, post_at])
        farthest = float(np.sqrt((np.ptp(both, axis=0) ** 2).sum()))
        return np.arange(1, int(farthest / float(edges)) + 1) * float(edges)
    if edges.ndim != 1 or not edges.size or not (np.diff(edges, prepend=0) > 0).all():
        raise SchemaError(
            f"bins is {bins!r}, expected the width of a bin, or ascending inner edges above 0, "
            "in µm"
        )
    return edges


# Kernels. The connections of presynaptic neuron i are the span indptr[i]:indptr[i + 1] of `post`.
# Each keeps its presynaptic neuron and gets another partner. Connections of a neuron with itself
# are neither moved nor made, and no pair is connected twice.


@numba.njit(nogil=True, cache=True, inline="always")
def _below(state, n):  # type: ignore[no-untyped-def]
    """Draw an integer below n: SplitMix64 (Steele, Lea & Flood 2014), high bits times n."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.int64(((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _bin(pre_at, i, post_at, j, squared_edges):  # type: ignore[no-untyped-def]
    squared = 0.0
    for k in range(pre_at.shape[1]):
        squared += (pre_at[i, k] - post_at[j, k]) ** 2
    return np.searchsorted(squared_edges, squared, side="right")


@numba.njit(nogil=True, cache=True)
def _has(post, lo, hi, j):  # type: ignore[no-untyped-def]
    for p in range(lo, hi):  # noqa: SIM110
        if post[p] == j:
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _swap(  # type: ignore[no-untyped-def]
    pre, indptr, post, same, state, n_attempts, pre_at, post_at, squared_edges
):
    n = post.size
    n_accepted = 0
    for _ in range(n_attempts if n > 1 else 0):
        e, f = _below(state, n), _below(state, n)
        a, b, c, d = pre[e], post[e], pre[f], post[f]
        if a == c or b == d:
            continue
        # A connection of a neuron with itself is neither made nor moved.
        if same[a] == d or same[c] == b or same[a] == b or same[c] == d:
            continue
        if squared_edges.size:
            of_a = _bin(pre_at, a, post_at, b, squared_edges)
            if of_a != _bin(pre_at, a, post_at, d, squared_edges):
                continue
            of_c = _bin(pre_at, c, post_at, d, squared_edges)
            if of_c != _bin(pre_at, c, post_at, b, squared_edges):
                continue
        if _has(post, indptr[a], indptr[a + 1], d) or _has(post, indptr[c], indptr[c + 1], b):
            continue
        post[e] = d
        post[f] = b
        n_accepted += 1
    return n_accepted


@numba.njit(nogil=True, cache=True)
def _redraw(indptr, post, bin_of, same, order, start, state):  # type: ignore[no-untyped-def]
    taken = np.zeros(order.shape[1], dtype=np.bool_)
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            if post[p] == same[i]:
                continue
            first, last = start[i, bin_of[p]], start[i, bin_of[p] + 1]
            # Drawing again if a neuron is taken leaves the others equally likely.
            while True:
                j = order[i, first + _below(state, last - first)]
                if not taken[j]:
                    break
            taken[j] = True
            post[p] = j
        for p in range(indptr[i], indptr[i + 1]):
            taken[post[p]] = False
