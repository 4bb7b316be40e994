"""Pictures of computed Datasets; every function takes and returns matplotlib axes.

Without ``ax=`` each draws in a figure of its own: ``ax.figure.savefig("FILE.png")``. Such a figure
is not one of pyplot's, except in a notebook; to show it in a window, pass axes of pyplot's.
"""

from __future__ import annotations

from microns_xr.plot.cells import cells_in_space, depth_profile
from microns_xr.plot.connections import connectivity_matrix, degree_distribution
from microns_xr.plot.tuning import (
    connection_probability,
    currents_by_angle,
    like_to_like,
    preferred_orientations,
    tuning_curve,
)

__all__ = [
    "cells_in_space",
    "connection_probability",
    "connectivity_matrix",
    "currents_by_angle",
    "degree_distribution",
    "depth_profile",
    "like_to_like",
    "preferred_orientations",
    "tuning_curve",
]


def __dir__() -> list[str]:
    return __all__
