"""Each picture is the one that was looked at; without text, which is drawn differently elsewhere.

After a wanted change: ``pytest tests/plot/test_images.py --mpl-generate-path=tests/plot/baseline``,
and look at every image that differs.
"""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.text import Text

import microns_xr as mx
from microns_xr import plot

pytestmark = pytest.mark.skipif(
    tuple(map(int, matplotlib.__version__.split(".")[:2])) < (3, 11),
    reason="the images are drawn by matplotlib 3.11; older ones place lines and markers elsewhere",
)

DEGREES = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
TYPES = np.array(
    ["23P", "4P", "5P-IT", "6P-CT", "BC", "MC", "NGC", "oligo", "unknown"], dtype=object
)


@pytest.fixture(scope="module")
def network():
    """Units, layers, connectivity and currents of 240 cells in four layers."""
    i = np.arange(240)
    # Fractions of multiples of irrational numbers fill space evenly, and are the same everywhere.
    x, y, z, angle = (np.mod(i * np.sqrt(p), 1) for p in (2, 3, 5, 7))
    position = np.stack([600 * x, 800 * y, 400 * z], axis=1)
    angles = np.arange(0, 180, 22.5)
    rates = 1 + 3 * np.exp(2 * (np.cos(np.deg2rad(2 * (angles - 180 * angle[:, None]))) - 1))
    rates[i % 3 == 0] = np.nan
    layer = np.array(["L1", "L2/3", "L4", "L6"], dtype=object)
    units = xr.Dataset(
        {
            "position": (("nucleus_id", "axis"), position),
            "rate_ori": (("nucleus_id", "orientation"), rates),
            "pref_ori": ("nucleus_id", np.where(i % 3 == 0, np.nan, 180 * angle), DEGREES),
        },
        coords={
            "nucleus_id": i + 100,
            "axis": np.array(["x", "y", "z"], dtype=object),
            "orientation": ("orientation", angles, DEGREES),
            "cell_type": ("nucleus_id", TYPES[(y * 4).astype(int) + (i % 5) * (i % 5 > 2)]),
            "layer": ("nucleus_id", layer[(y * 4).astype(int)]),
            "classification_system": ("nucleus_id", np.where(i % 4, "excitatory_neuron", "inhibitory_neuron").astype(object)),
        },
    )  # fmt: skip
    layers = xr.Dataset(
        {
            "layer_name": ("segment", layer),
            "y_start": ("segment", [0.0, 200.0, 400.0, 600.0]),
            "y_end": ("segment", [200.0, 400.0, 600.0, 800.0]),
        }
    )
    pre, post = (a.ravel() for a in np.meshgrid(i, i, indexing="ij"))
    near = np.linalg.norm(position[pre] - position[post], axis=1) < 260
    chosen = near & (np.mod(pre * np.sqrt(11) + post * np.sqrt(13), 1) < 0.3) & (pre != post)
    size = np.round(np.exp(4 + 5 * np.mod((pre + 7 * post) * np.sqrt(17), 1))).astype(int)
    edges = pd.DataFrame({"pre": pre + 100, "post": post + 100, "synapse_size": size})[chosen]
    connectivity = mx.as_connectivity(
        edges, pre="pre", post="post", weight="synapse_size", pre_ids=i + 100, post_ids=i + 100
    )
    return units, layers, connectivity, mx.input_currents(connectivity, units.rate_ori)


def grouped(units, connectivity, by, **options):
    return mx.analysis.connection_probability(
        connectivity, units, by, [0, 100, 200, 300], presynaptic="all", **options
    )


PICTURES = {
    "depth_by_layer": lambda u, n, c, i: plot.depth_profile(u, n),
    "depth_by_type": lambda u, n, c, i: plot.depth_profile(u, n, by="cell_type"),
    "cells_by_type": lambda u, n, c, i: plot.cells_in_space(u, layers=n),
    "cells_by_angle": lambda u, n, c, i: plot.cells_in_space(u, "pref_ori", axes=("z", "y")),
    "partners": lambda u, n, c, i: plot.partners_in_space(c, u, 120, layers=n),
    "matrix_of_types": lambda u, n, c, i: plot.connectivity_matrix(
        mx.group_connectivity(c, "cell_type", units=u)
    ),
    "matrix_of_neurons": lambda u, n, c, i: plot.adjacency_matrix(c, u),
    "matrix_by_depth": lambda u, n, c, i: plot.adjacency_matrix(c, u, "depth"),
    "degrees": lambda u, n, c, i: plot.degree_distribution(mx.degrees(c)),
    "weights": lambda u, n, c, i: plot.weight_distribution(c),
    "probability": lambda u, n, c, i: plot.connection_probability(
        grouped(u, c, "classification_system", interval=mx.analysis.Wilson())
    ),
    "like_to_like": lambda u, n, c, i: plot.like_to_like(
        mx.analysis.like_to_like(c, u, presynaptic="all", interval=mx.analysis.Bootstrap(50)),
        xr.DataArray(
            [[0.05, 0.06, 0.07, 0.06, 0.05], [0.04, 0.05, 0.04, 0.05, 0.04]],
            dims=("replicate", "difference"),
            coords={"difference": [0.0, 22.5, 45.0, 67.5, 90.0]},
        ),
    ),
    "tuning": lambda u, n, c, i: plot.tuning_curve(
        u.rate_ori[1], mx.tuning.fit(u.rate_ori[1], dim="orientation")
    ),
    "orientations": lambda u, n, c, i: plot.preferred_orientations(u),
    "orientations_by_layer": lambda u, n, c, i: plot.preferred_orientations(u, by="layer"),
    "currents": lambda u, n, c, i: plot.currents_by_angle(i, u.layer),
    "aligned": lambda u, n, c, i: plot.aligned_currents(
        mx.analysis.align_to_preferred(i, u, interval=mx.analysis.Bootstrap(50), normalise=True)
    ),
    "summary": lambda u, n, c, i: plot.release_summary(u, n, c),
}


@pytest.mark.mpl_image_compare(
    baseline_dir="baseline",
    tolerance=4,
    style="default",
    remove_text=True,
    savefig_kwargs={"dpi": 50},
)
@pytest.mark.parametrize("picture", PICTURES)
def test_picture(network, picture):
    PICTURES[picture](*network)
    figure = plt.gcf()
    figure.set_layout_engine("none")  # it depends on the sizes of letters
    for text in figure.findobj(Text):
        text.set_text("")
    return figure
