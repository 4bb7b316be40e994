"""Null models that permute: angles between neurons, sizes between connections."""

from __future__ import annotations

from collections.abc import Iterable

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.analysis.replicates import Connections, Replicates
from microns_xr.analysis.rewiring import random_state
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history
from microns_xr.schema import validate

__all__ = ["permute_angles", "permute_weights"]

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
    >>> from microns_xr.connectivity.examples import two_neurons
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
