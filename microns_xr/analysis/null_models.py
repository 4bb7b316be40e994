"""Null models: what else could have made a result, and what a result is compared with.

Each null keeps some of what was observed (``attrs["keeps"]``) and draws the rest anew, so a
difference from it says that the result is not explained by what is kept:

============================  ===================================================================
`permute_angles`              Keeps every connection, and the angles there are. A difference says
                              that connections and angles are related, for whatever reason: with
                              ``within=`` not because groups differ in both. Alike neurons that lie
                              close together make a difference too, since permuted angles no longer
                              cluster.
`rewire`                      Keeps the angles where they are, and how many partners every neuron
                              has. A difference is not due to tuned neurons being connected more,
                              or to unequal degrees; it may be due to where neurons lie.
`rewire_by_distance`          Keeps the angles where they are, and how many partners every
                              presynaptic neuron has at each distance. A difference is due neither
                              to degrees (in-degrees on request) nor to alike neurons being
                              neighbours, as far as the bins of distance are fine enough.
`permute_weights`             Keeps who is connected with whom. A difference says that sizes are
                              related to the angles, whatever connections are.
============================  ===================================================================

None of them moves a connection out of the axes of the connectivity, which are the pairs that were
asked for. Make them of the connections that are looked at (`mx.analysis.tuned_connections`): a
null of more exchanges partners with neurons that are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import dask.array as da
import numba
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.resample import percentile_interval
from microns_xr.analysis.tuned import (
    PairTable,
    Prepared,
    TunedAxes,
    count_pairs,
    like_to_like,
    like_to_like_of_totals,
    prepare,
    table_of,
    to_ticks,
    totals_of,
    tuned_axes,
)
from microns_xr.angles import describe_angle
from microns_xr.connectivity.arrays import PAIR_DIMS, Pattern, gcxs, make_pattern, pair_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.sort import take_values, transpose_pattern
from microns_xr.connectivity.subset import recompress
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import AXES, validate
from microns_xr.threads import equal_spans, run_spans, usable_threads

__all__ = [
    "Replicates",
    "compare",
    "compare_values",
    "null_values",
    "permute_angles",
    "permute_weights",
    "rewire",
    "rewire_by_distance",
]


# Connectivity that has been drawn anew many times, made when it is asked for.


class Connections:
    """The connections of a Dataset, those of one presynaptic neuron in one span."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset
        pattern, self.values = pair_buffers(recompress(dataset, "pre"))
        self.indptr, self.post = pattern.indptr, pattern.indices
        self.pre = np.repeat(np.arange(pattern.n_major, dtype=np.int32), np.diff(pattern.indptr))
        self.twin = (
            Lookup(dataset["post_nucleus_id"].values, "post_nucleus_id")
            .find(dataset["pre_nucleus_id"].values)
            .astype(np.int64)
        )


# New postsynaptic ends, and the connection each one's values are taken from.
Draw = Callable[[Connections, int], tuple[np.ndarray, np.ndarray | None]]


class Replicates(Sequence[xr.Dataset]):
    """Null connectivity along ``replicate``: each is drawn when it is asked for, and forgotten.

    A sparse matrix has no room for a further dim, so this is a sequence: ``null[3]`` or
    ``null.isel(replicate=3)`` is a connectivity Dataset with the scalar coordinate ``replicate``,
    which is the same however many there are and in whatever order they are asked for.

    Parameters
    ----------
    connections : Connections
        What was observed.
    draw : callable
        Connections and number of a replicate to its ends and the source of its values.
    n : int
        Number of replicates.
    attrs : dict
        ``null``, ``keeps``, ``seed`` and what else describes it.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> same = Replicates(Connections(two_neurons()), lambda c, i: (c.post, None), 3, {"null": "-"})
    >>> len(same), same.sizes, int(same[-1].replicate)
    (3, {'replicate': 3}, 2)
    """

    def __init__(self, connections: Connections, draw: Draw, n: int, attrs: dict[str, Any]) -> None:
        if n < 1:
            raise SchemaError(f"the number of replicates is {n}, expected at least 1")
        self.connections = connections
        self.attrs = attrs
        self._draw = draw
        self._n = int(n)

    def __len__(self) -> int:
        return self._n

    @property
    def sizes(self) -> dict[str, int]:
        """Length of the dim ``replicate``."""
        return {"replicate": self._n}

    def __repr__(self) -> str:
        sizes = self.connections.dataset.sizes
        shown = "\n".join(f"    {name}: {value}" for name, value in self.attrs.items())
        shape = ", ".join(f"{dim}: {sizes[dim]}" for dim in PAIR_DIMS)
        return f"<null connectivity (replicate: {self._n}, {shape}), drawn lazily>\n{shown}"

    def __iter__(self) -> Iterator[xr.Dataset]:
        return (self[i] for i in range(self._n))

    def isel(self, replicate: int) -> xr.Dataset:
        """Return one replicate, as ``null[replicate]`` does."""
        return self[replicate]

    def ends(self, replicate: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the postsynaptic ends of a replicate, and where its values come from.

        Parameters
        ----------
        replicate : int
            Its number, from 0.

        Returns
        -------
        tuple of (numpy.ndarray, numpy.ndarray or None)
            Positions in the order of ``connections.pre``, and for each the observed connection
            whose values it has; None where every connection keeps its own.
        """
        return self._draw(self.connections, replicate)

    def __getitem__(self, replicate: Any) -> Any:
        if isinstance(replicate, slice):
            return [self[i] for i in range(*replicate.indices(self._n))]
        i = int(replicate) + (self._n if replicate < 0 else 0)
        if not 0 <= i < self._n:
            raise IndexError(f"replicate {replicate} of {self._n}")
        post, source = self.ends(i)
        observed = self.connections
        # A stable sort by partner, then by neuron, leaves ascending partners within each span.
        order = np.lexsort((post, observed.pre))
        source = order if source is None else source[order]
        base = observed.dataset
        shape = (base.sizes[PAIR_DIMS[0]], base.sizes[PAIR_DIMS[1]])
        new: Pattern = make_pattern(post[order], observed.indptr, shape, "pre")
        if pair_buffers(base)[0].compressed == "post":
            turned = transpose_pattern(new.indices, new.indptr, new.n_minor)
            new = make_pattern(turned.indices, turned.indptr, shape, "post")
            source = source[turned.source]
        result = base.assign(
            {
                name: (PAIR_DIMS, gcxs(take_values(values, source), new), base[name].attrs)
                for name, values in observed.values.items()
            }
        ).assign_coords(replicate=xr.Variable((), np.int64(i)))
        return add_history(result, f"{self.attrs['null']}, replicate {i}", source=base)


# Observed values against those of null replicates, both through the same function.


Statistic = Callable[..., Any]
Null = xr.DataArray | Replicates


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
    """Compare a statistic of what was observed with the same statistic of null replicates."""
    if statistic is like_to_like:
        selection = {**selection, "n_bootstrap": 0}
    observed = statistic(connectivity, units, **selection)
    values = null_values(statistic, connectivity, units, null, **selection)
    if isinstance(observed, xr.Dataset):
        if variable is None or variable not in observed:
            names = [str(n) for n in values.data_vars]
            error = SchemaError if variable is None else UnknownLabelError
            raise error(f"variable is {variable!r}, expected one that the statistic gives: {names}")
        observed, values = observed[variable], values[variable]
    result = compare_values(xr.DataArray(observed), values, confidence=confidence)
    result.attrs |= {name: null.attrs[name] for name in ("null", "keeps", "seed")}
    name = getattr(statistic, "__name__", "statistic")
    shown = ", ".join(f"{k}={_shown(v)}" for k, v in selection.items())
    entry = f"compare({name}, variable={variable!r}, null={null.attrs['null']}, {shown})"
    return add_history(result, entry, source=(connectivity, units))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 and "\n" not in text else f"<{type(value).__name__}>"


def compare_values(
    observed: xr.DataArray, null: xr.DataArray, *, confidence: float = 0.95
) -> xr.Dataset:
    """Compare observed values with those of null replicates.

    ``p = 2 min(1 + replicates as large, 1 + replicates as small) / (replicates + 1)``, at the
    most 1: what was observed counts as one of the replicates, so that p is never 0 and the test
    keeps its level (Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular
    Biology 9, article 39). With fewer than 39 replicates p cannot reach 0.05.
    """
    if "replicate" not in null.dims or set(null.dims) - {"replicate"} != set(observed.dims):
        raise SchemaError(
            f"the null has dims {null.dims}, expected 'replicate' and those of what was observed, "
            f"{observed.dims}"
        )
    table = np.asarray(null.transpose("replicate", *observed.dims).values, dtype=float)
    if table.shape[1:] != observed.shape:
        raise SchemaError(
            f"the null has shape {table.shape[1:]}, expected that of what was observed, "
            f"{observed.shape}: take both through the same selection"
        )
    values = np.asarray(observed.values, dtype=float)
    n = np.isfinite(table).sum(axis=0)
    known = np.isfinite(values) & (n > 0)
    # Equal sums in another order may differ in their last bits; they are ties.
    close = np.isclose(table, values, rtol=1e-9, atol=0)
    with np.errstate(invalid="ignore"):
        above = ((table > values) | close).sum(axis=0)
        below = ((table < values) | close).sum(axis=0)
    p = np.where(known, np.minimum(1, 2 * (1 + np.minimum(above, below)) / (n + 1)), np.nan)
    mean = np.full(values.shape, np.nan)
    np.divide(np.nansum(table, axis=0), n, out=mean, where=n > 0)
    low, high = percentile_interval(table, confidence)
    found = {
        "observed": (values, "observed"),
        "null_mean": (mean, "mean of the null"),
        "null_low": (low, "lower percentile of the null"),
        "null_high": (high, "upper percentile of the null"),
        "effect": (values - mean, "observed minus mean of the null"),
        "effect_low": (values - high, "observed minus upper percentile of the null"),
        "effect_high": (values - low, "observed minus lower percentile of the null"),
        "p": (p, "two-sided p"),
        "n_replicates": (n, "replicates with a value"),
    }
    units = {"units": observed.attrs["units"]} if "units" in observed.attrs else {}
    dimensionless = ("p", "n_replicates")
    return xr.Dataset(
        {
            name: (
                observed.dims,
                array,
                {"long_name": text} | ({} if name in dimensionless else units),
            )
            for name, (array, text) in found.items()
        },
        coords=observed.coords,
        attrs={"statistic": str(observed.name or "statistic"), "confidence": confidence},
    )


def null_values(
    statistic: Statistic, connectivity: xr.Dataset, units: xr.Dataset, null: Null, **selection: Any
) -> Any:
    """Give a statistic of every null replicate."""
    _require_own_null(connectivity, units, null)
    if statistic is like_to_like:
        fast = _like_to_like_values(connectivity, units, null, **selection)
        if fast is not None:
            return fast
    found = []
    for i in range(null.sizes["replicate"]):
        if isinstance(null, Replicates):
            value = statistic(null[i].drop_vars("replicate"), units, **selection)
        else:
            drawn = null.isel(replicate=i, drop=True).compute()
            value = statistic(connectivity, units.assign({str(null.name): drawn}), **selection)
        found.append(value if isinstance(value, xr.Dataset) else xr.DataArray(value))
    # All are of one kind, which the type of a list does not say.
    same: Any = found
    return xr.concat(
        same, "replicate", coords="minimal", compat="override", join="exact", combine_attrs="drop"
    )


def _require_own_null(connectivity: xr.Dataset, units: xr.Dataset, null: Null) -> None:
    if isinstance(null, Replicates):
        base = null.connections.dataset
        same = base is connectivity or (
            base.sizes == connectivity.sizes
            and all(base[d].equals(connectivity[d]) for d in ("pre_nucleus_id", "post_nucleus_id"))
            and base["synapse_size"].data.nnz == connectivity["synapse_size"].data.nnz
        )
        if not same:
            raise SchemaError(
                "the null was made of another connectivity than the one observed: make it of the "
                "same selection, so that both pass through the same steps"
            )
        return
    if not isinstance(null, xr.DataArray) or not {"replicate", "nucleus_id"} <= set(null.dims):
        raise SchemaError(
            f"null is a {type(null).__name__}, expected one of mx.analysis.null_models: values "
            "over (replicate, nucleus_id), or Replicates of connectivity"
        )
    if null.name not in units:
        raise SchemaError(
            f"the null is of {null.name!r}, which units lacks: a variable it takes the place of "
            "is expected, rename it with .rename(name)"
        )
    if not np.array_equal(null["nucleus_id"].values, units["nucleus_id"].values):
        raise SchemaError(
            "the null was made of other units than those observed: make it of the same ones"
        )


def _like_to_like_values(
    connectivity: xr.Dataset, units: xr.Dataset, null: Null, **selection: Any
) -> xr.Dataset | None:
    """All replicates without a Dataset for each; None where the null is of something else."""
    angle = selection.get("angle", "pref_ori")
    if not isinstance(null, Replicates) and null.name != angle:
        return None
    axes = tuned_axes(
        connectivity,
        units,
        angle,
        selection.get("pre"),
        selection.get("post"),
        selection.get("presynaptic", "extended"),
    )
    ready = prepare(units, angle, selection.get("bins", 5), axes)
    weight = selection.get("weight", "synapse_size")
    totals = (
        _rewired_totals(null, axes, ready, weight)
        if isinstance(null, Replicates)
        else _permuted_totals(connectivity, units, null, axes, ready, weight)
    )
    return like_to_like_of_totals(totals, ready, selection.get("normalise", False))


def _rewired_totals(null: Replicates, axes: TunedAxes, ready: Prepared, weight: str) -> np.ndarray:
    observed = null.connections
    table = PairTable(observed.pre, observed.post, observed.values[weight], axes.twin)

    def count(i: int) -> np.ndarray:
        post, source = null.ends(i)
        sizes = table.values if source is None else table.values[source]
        drawn = table._replace(post=post, values=sizes)
        return count_pairs(drawn, ready.pre_ticks, ready.post_ticks, ready.edges)

    # Drawing goes through the connections many times.
    work = 20 * table.pre.size + axes.post_rows.size
    return totals_of(count, len(null), ready.centres.size, work)


def _permuted_totals(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    null: xr.DataArray,
    axes: TunedAxes,
    ready: Prepared,
    weight: str,
) -> np.ndarray:
    table, pre_rows, post_rows = _compact(table_of(connectivity, weight, axes.twin), axes)
    has_angle = np.isfinite(units[str(null.name)].values)
    period = describe_angle(units[str(null.name)], str(null.name))[2]
    by_replicate = null.transpose("replicate", "nucleus_id").data
    found = []
    for first, last in _blocks(null):
        angles = np.asarray(by_replicate[first:last])
        if not (np.isfinite(angles) == has_angle).all():
            raise SchemaError(
                f"the null gives {null.name} to other neurons than those that have one, expected "
                "the same: it would change which pairs are looked at"
            )
        ticks = to_ticks(angles, period)

        def count(i: int, ticks: np.ndarray = ticks) -> np.ndarray:
            return count_pairs(table, ticks[i][pre_rows], ticks[i][post_rows], ready.edges)

        work = table.pre.size + post_rows.size + pre_rows.size
        found.append(totals_of(count, last - first, ready.centres.size, work))
    return np.concatenate(found)


def _compact(table: PairTable, axes: TunedAxes) -> tuple[PairTable, np.ndarray, np.ndarray]:
    """Leave out of a table, once for all replicates, what is never looked at."""
    rows = {"pre": axes.pre_rows, "post": axes.post_rows}
    kept = {side: of_side >= 0 for side, of_side in rows.items()}
    new = {side: np.where(keep, np.cumsum(keep) - 1, -1) for side, keep in kept.items()}
    pairs = kept["pre"][table.pre] & kept["post"][table.post]
    twin = axes.twin[kept["pre"]]
    compact = PairTable(
        new["pre"][table.pre[pairs]],
        new["post"][table.post[pairs]],
        table.values[pairs],
        np.where(twin >= 0, new["post"][twin], -1),
    )
    return compact, axes.pre_rows[kept["pre"]], axes.post_rows[kept["post"]]


def _blocks(null: xr.DataArray) -> list[tuple[int, int]]:
    """Spans of replicates that are drawn together."""
    n = null.sizes["replicate"]
    sizes = null.chunksizes.get("replicate", (n,))
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


# Null models that permute: angles between neurons, sizes between connections.


# A block of replicates of permuted angles: 4 million float64 are 32 MB.
_BLOCK = 4_000_000


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
        Units with the angle; neurons that have none (NaN) keep having none.
    angle : str, optional
        Variable of the units, one value a neuron; any other one can be permuted as well.
    within : str or collection of str, optional
        Variables of the units, such as ``["cell_type", "layer"]``: angles are permuted between
        neurons that agree in all of them. Give what pre- and postsynaptic neurons differ in.
    n : int, optional
        Number of replicates.
    seed : int, optional
        Replicate i of a seed is the same however many there are.

    Returns
    -------
    xarray.DataArray
        Over (``replicate``, ``nucleus_id``), named and described as the variable, with dask:
        replicates are drawn when they are computed.

    Raises
    ------
    UnknownLabelError
        If units lacks a variable.
    SchemaError
        If one has not one value a neuron, or no neuron has an angle.

    Examples
    --------
    >>> units = xr.Dataset({"pref_ori": ("nucleus_id", [0.0, 10.0, np.nan, 30.0])},
    ...     coords={"nucleus_id": [1, 2, 3, 4]})
    >>> null = permute_angles(units, n=2)
    >>> null.dims, np.sort(null[1].values)
    (('replicate', 'nucleus_id'), array([ 0., 10., 30., nan]))
    """
    values = _column(units, angle)
    names = [within] if isinstance(within, str) else list(within)
    movable = np.flatnonzero(~pd.isna(values))
    if not movable.size:
        raise SchemaError(f"no neuron has units.{angle}: there is nothing to permute")
    groups = _members([_column(units, name)[movable] for name in names], movable)
    if n < 1:
        raise SchemaError(f"n is {n}, expected at least 1 replicate")

    def draw(numbers: np.ndarray) -> np.ndarray:
        out = np.repeat(values[None], numbers.size, axis=0)
        for row, i in zip(out, numbers.tolist(), strict=True):
            rng = np.random.Generator(np.random.PCG64(random_state(seed, i)))
            for members in groups:
                row[members] = values[rng.permutation(members)]
        return out

    block = max(1, _BLOCK // values.size)
    numbers = da.arange(n, chunks=block, dtype=np.int64)
    drawn = da.map_blocks(
        draw,
        numbers,
        dtype=values.dtype,
        new_axis=1,
        chunks=(numbers.chunks[0], (values.size,)),
        meta=np.empty((0, 0), dtype=values.dtype),
    )
    words = f" within groups of {', '.join(names)}" if names else ""
    result = units[angle].expand_dims(replicate=np.arange(n)).copy(data=drawn)
    result.attrs = dict(units[angle].attrs) | {
        "null": "permute_angles",
        "keeps": f"every connection; the values of {angle}{words}; which neurons have one",
        "seed": seed,
    }
    return add_history(result, f"permute_angles({angle!r}, within={names}, n={n}, seed={seed})")


def permute_weights(
    connectivity: xr.Dataset, *, within: str | Iterable[str] = (), n: int = 1000, seed: int = 0
) -> Replicates:
    """Permute sizes, with the counts that go with them, between connections.

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
    Replicates
        Sequence of connectivity Datasets.

    Raises
    ------
    UnknownLabelError
        If there is no such coordinate.
    SchemaError
        If the Dataset is no connectivity, or a coordinate lies along neither axis.

    Examples
    --------
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> null = permute_weights(two_neurons(), within="post_nucleus_id", n=2)
    >>> null[1].synapse_size.data.todense().sum(axis=0)
    array([5, 9])
    """
    validate(connectivity, "connectivity")
    observed = Connections(connectivity)
    names = [within] if isinstance(within, str) else list(within)
    everything = np.arange(observed.post.size)
    groups = _members([_of_connections(observed, name) for name in names], everything)
    words = f" within groups of {', '.join(names)}" if names else ""
    attrs = {
        "null": f"permute_weights(within={names}, seed={seed})",
        "keeps": f"which pairs are connected; sizes and counts of connections{words}",
        "seed": seed,
    }

    def draw(c: Connections, i: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.Generator(np.random.PCG64(random_state(seed, i)))
        source = everything.copy()
        for members in groups:
            source[members] = rng.permutation(members)
        return c.post, source

    return Replicates(observed, draw, n, attrs)


def _column(units: xr.Dataset, name: str) -> np.ndarray:
    if name not in units.variables:
        near = ", ".join(nearest_words(name, units.variables))
        raise UnknownLabelError(
            f"units has no variable {name!r}, found {sorted(map(str, units.data_vars))}"
            + (f"; nearest: {near}" if near else "")
        )
    if units[name].dims != ("nucleus_id",):
        raise SchemaError(
            f"units.{name} has dims {units[name].dims}, expected one value a neuron: "
            "('nucleus_id',)"
        )
    return np.asarray(units[name].values)


def _members(labels: list[np.ndarray], positions: np.ndarray) -> list[np.ndarray]:
    """Positions of each group of equal labels that has several."""
    if not labels:
        return [positions]
    codes = np.zeros(positions.size, dtype=np.int64)
    for of_each in labels:
        own, words = pd.factorize(of_each)
        codes = pd.factorize(codes * (len(words) + 1) + own + 1)[0]
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    return [members for members in np.split(positions[order], cuts) if members.size > 1]


def _of_connections(observed: Connections, name: str) -> np.ndarray:
    dataset = observed.dataset
    if name not in dataset.coords:
        near = ", ".join(nearest_words(name, dataset.coords))
        raise UnknownLabelError(
            f"the connectivity has no coordinate {name!r}, found "
            f"{sorted(map(str, dataset.coords))}"
            + (f"; nearest: {near}" if near else "")
            + ": write unit variables on it with mx.annotate"
        )
    for side, positions in (("pre", observed.pre), ("post", observed.post)):
        if dataset[name].dims == (f"{side}_nucleus_id",):
            return np.asarray(dataset[name].values)[positions]
    raise SchemaError(
        f"{name} has dims {dataset[name].dims}, expected one value a neuron of either axis"
    )


# Null models that rewire: other partners, with the same degrees or at the same distances.


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
        looked at, such as those of `mx.analysis.tuned_connections`.
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
    >>> from microns_xr.connectivity.arrays import two_neurons
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
    >>> from microns_xr.connectivity.arrays import two_neurons
    >>> units = xr.Dataset({"position": (("nucleus_id", "axis"), np.zeros((2, 3)))},
    ...     coords={"nucleus_id": [11, 12], "axis": ["x", "y", "z"]})
    >>> null = rewire_by_distance(two_neurons(), units, n=2)
    >>> null[0].synapse_count.data.todense()
    array([[0, 2],
           [1, 1]])
    """
    validate(connectivity, "connectivity")
    require_same_release(("connectivity", connectivity), ("units", units))
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
            f"{_MAX_CANDIDATES}: rewire the connections that are looked at "
            "(mx.analysis.tuned_connections)"
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
            "units: take those that are with mx.select_connections"
        )
    by_axis = units["position"].transpose("nucleus_id", "axis").values[rows]
    at = np.ascontiguousarray(by_axis[:, [AXES.index(a) for a in axes]], dtype=float)
    if not np.isfinite(at).all():
        raise SchemaError(
            f"{(~np.isfinite(at).all(axis=1)).sum()} neurons of {side}_nucleus_id have no "
            "position: leave them out with mx.select_connections"
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


# Random rewiring of connections on raw arrays.
#
# Connections are pairs of positions (pre, post), those of one presynaptic neuron in one span.
# Every connection stays with its presynaptic neuron and gets another partner. A connection of a
# neuron with itself stays where it is, none is made, and no pair is connected twice.


_NO_PLACES = np.empty((0, 0))


class Places(NamedTuple):
    """Positions of the neurons of both axes, and bins of distance."""

    pre: np.ndarray
    post: np.ndarray
    # ascending inner edges of the bins, µm²; a distance on an edge is in the bin that begins
    # there. Beyond the last edge there is one more bin.
    squared_edges: np.ndarray


class Candidates(NamedTuple):
    """Postsynaptic neurons sorted by bin of distance, for each presynaptic neuron."""

    # (pre axis, post axis), int32, positions of the postsynaptic neurons bin after bin
    order: np.ndarray
    # (pre axis, bins + 1), int32, where each bin begins
    start: np.ndarray


def random_state(seed: int, replicate: int) -> np.ndarray:
    """Return the state of the generator of one replicate, which depends on nothing else."""
    return np.random.SeedSequence(seed, spawn_key=(replicate,)).generate_state(1, np.uint64)


def swap_partners(
    pre: np.ndarray,
    indptr: np.ndarray,
    post: np.ndarray,
    twin: np.ndarray,
    state: np.ndarray,
    n_attempts: int,
    places: Places | None = None,
) -> tuple[np.ndarray, int]:
    """Exchange the partners of pairs of connections, again and again.

    Two connections are drawn; their postsynaptic ends are exchanged unless that would connect a
    pair twice, connect a neuron with itself, or, with `places`, move either connection into
    another bin of distance.
    """
    out = post.copy()
    spots = (_NO_PLACES, _NO_PLACES, np.empty(0)) if places is None else places
    n_made = _swap(pre, indptr, out, twin, state, n_attempts, places is not None, *spots)
    return out, int(n_made)


def candidates_of(indptr: np.ndarray, twin: np.ndarray, places: Places) -> Candidates:
    """Sort the possible partners of every presynaptic neuron that has one by bin of distance.

    A neuron itself is no possible partner; rows of neurons without a connection stay empty.
    """
    n_bins = places.squared_edges.size + 1
    order = np.empty((places.pre.shape[0], places.post.shape[0]), dtype=np.int32)
    start = np.zeros((places.pre.shape[0], n_bins + 1), dtype=np.int32)

    def sort(lo: int, hi: int) -> None:
        _sort_candidates(indptr, twin, *places, order, start, lo, hi)

    threads = usable_threads(None, order.size)
    run_spans(sort, equal_spans(order.shape[0], 4 * threads), threads)
    return Candidates(order, start)


def redraw_partners(
    indptr: np.ndarray,
    post: np.ndarray,
    twin: np.ndarray,
    state: np.ndarray,
    places: Places,
    candidates: Candidates,
) -> np.ndarray:
    """Draw new partners of every presynaptic neuron, as many in each bin of distance.

    Within a bin, every postsynaptic neuron is as likely as another, connected or not before.
    """
    out = post.copy()
    _redraw(indptr, out, twin, state, *places, *candidates)
    return out


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
    pre, indptr, post, twin, state, n_attempts, in_bins, pre_at, post_at, squared_edges
):
    n = post.size
    n_made = 0
    for _ in range(n_attempts if n > 1 else 0):
        e, f = _below(state, n), _below(state, n)
        a, b, c, d = pre[e], post[e], pre[f], post[f]
        if a == c or b == d:
            continue
        # No new connection of a neuron with itself, and those there are stay.
        if twin[a] == d or twin[c] == b or twin[a] == b or twin[c] == d:
            continue
        if in_bins:
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
        n_made += 1
    return n_made


@numba.njit(nogil=True, cache=True)
def _sort_candidates(  # type: ignore[no-untyped-def]
    indptr, twin, pre_at, post_at, squared_edges, order, start, lo, hi
):
    n_post = post_at.shape[0]
    n_bins = squared_edges.size + 1
    bins = np.empty(n_post, dtype=np.int32)
    for i in range(lo, hi):
        if indptr[i] == indptr[i + 1]:
            continue
        for j in range(n_post):
            bins[j] = _bin(pre_at, i, post_at, j, squared_edges)
            if j != twin[i]:
                start[i, bins[j] + 1] += 1
        for b in range(n_bins):
            start[i, b + 1] += start[i, b]
        free = start[i].copy()
        for j in range(n_post):
            if j != twin[i]:
                order[i, free[bins[j]]] = j
                free[bins[j]] += 1


@numba.njit(nogil=True, cache=True)
def _redraw(  # type: ignore[no-untyped-def]
    indptr, post, twin, state, pre_at, post_at, squared_edges, order, start
):
    taken = np.zeros(post_at.shape[0], dtype=np.bool_)
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            if post[p] == twin[i]:
                continue
            b = _bin(pre_at, i, post_at, post[p], squared_edges)
            # Those that are taken are drawn again, which leaves the others equally likely.
            while True:
                j = order[i, start[i, b] + _below(state, start[i, b + 1] - start[i, b])]
                if not taken[j]:
                    break
            taken[j] = True
            post[p] = j
        for p in range(indptr[i], indptr[i + 1]):
            taken[post[p]] = False
