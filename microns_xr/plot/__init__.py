"""Pictures of computed Datasets; functions take and return matplotlib axes.

Without ``ax=``, each draws in the current axes of pyplot, so that ``plt.savefig("FILE.png")`` saves
it. As with other functions that draw in axes, a second call draws over the first unless
``plt.figure()`` begins a new figure. `release_summary` takes and returns a figure.
"""

from __future__ import annotations

from microns_xr.plot.cells import cells_in_space, depth_profile, partners_in_space
from microns_xr.plot.connections import (
    adjacency_matrix,
    connection_probability,
    connectivity_matrix,
    degree_distribution,
    like_to_like,
    weight_distribution,
)
from microns_xr.plot.summary import release_summary
from microns_xr.plot.tuning import (
    aligned_currents,
    currents_by_angle,
    preferred_orientations,
    tuning_curve,
)

__all__ = [
    "adjacency_matrix",
    "aligned_currents",
    "cells_in_space",
    "connection_probability",
    "connectivity_matrix",
    "currents_by_angle",
    "degree_distribution",
    "depth_profile",
    "like_to_like",
    "partners_in_space",
    "preferred_orientations",
    "release_summary",
    "tuning_curve",
    "weight_distribution",
]


def __dir__() -> list[str]:
    return __all__
