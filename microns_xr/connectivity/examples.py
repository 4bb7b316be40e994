"""A connectivity Dataset small enough to check by hand, for the examples of the documentation."""

from __future__ import annotations

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern

__all__ = ["two_neurons"]


def two_neurons() -> xr.Dataset:
    """Return the connectivity of neurons 11 and 12, which is connected with itself.

    Returns
    -------
    xarray.Dataset
        11 to 12 with size 7 and 2 synapses, 12 to 11 with 5 and 1, 12 to 12 with 2 and 1.

    Examples
    --------
    >>> two_neurons().synapse_size.data.todense()
    array([[0, 7],
           [5, 2]])
    """
    pattern = make_pattern(np.array([1, 0, 1]), np.array([0, 1, 3]), (2, 2), "post")
    ids = np.array([11, 12])
    return connectivity_dataset(
        np.array([5, 7, 2]), np.array([1, 2, 1]), pattern, ids, ids,
        datastack="minnie65_public", version=1718, scope="unknown",
    )  # fmt: skip
