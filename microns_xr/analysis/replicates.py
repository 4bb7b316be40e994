"""Connectivity that has been drawn anew many times, made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import PAIR_DIMS, Pattern, gcxs, make_pattern, pair_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.patterns import take_values, transpose_pattern
from microns_xr.connectivity.subset import recompress
from microns_xr.errors import SchemaError
from microns_xr.provenance import add_history

__all__ = ["Connections", "Draw", "Replicates"]


class Connections:
    """The connections of a Dataset, those of one presynaptic neuron in one span.

    Attributes
    ----------
    dataset : xarray.Dataset
        The connectivity they were taken from.
    pre, post : numpy.ndarray
        (connections,), int32, positions on the axes.
    indptr : numpy.ndarray
        Spans of the presynaptic neurons.
    values : dict of str to numpy.ndarray
        The sparse variables, in that order.
    twin : numpy.ndarray
        (pre axis,), position of the same neuron on the postsynaptic axis, -1 where it is not.
    """

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
    >>> from microns_xr.connectivity.examples import two_neurons
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
