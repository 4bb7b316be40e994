"""Pictures of computed Datasets; every function takes and returns matplotlib axes.

Without ``ax=`` each draws in a new figure: ``ax.figure.savefig("FILE.png")``. Except in a
notebook, pyplot does not manage that figure; to show it in a window, pass axes made with pyplot.
"""

from __future__ import annotations

from microns_xr.plot.cells import cells_in_space, depth_profile
from microns_xr.plot.connections import (
    connection_probability,
    connectivity_matrix,
    degree_distribution,
    like_to_like,
)
from microns_xr.plot.tuning import currents_by_angle, preferred_orientations, tuning_curve

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
