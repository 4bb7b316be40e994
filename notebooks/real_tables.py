"""Draw the figure of the README from real tables: ``python real_tables.py FOLDER OUT.png``.

FOLDER has one folder of raw tables for each of two releases: ``minnie65_v1300`` with the nuclei,
cell types, areas and proofreading, ``minnie65_v661`` with those, the functional rates and pairs of
connected neurons.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import microns_xr as mx


def draw(folder: Path) -> plt.Figure:
    plt.rcParams["font.size"] = 12  # to be read in a page that is narrower than the figure
    fig, panels = plt.subplot_mosaic(
        [["cells", "cells"], ["matrix", "aligned"]],
        figsize=(10.5, 8.4),
        layout="constrained",
        height_ratios=[0.95, 1],
    )
    fig.get_layout_engine().set(wspace=0.06, hspace=0.04)
    cells, matrix, aligned = panels.values()
    units = mx.Release(1300, source=folder / "minnie65_v1300").units()
    neurons = mx.select_units(
        units, classification_system=["excitatory_neuron", "inhibitory_neuron"]
    )
    layers = mx.segment_layers(units)
    mx.plot.cells_in_space(neurons, "layer", layers=layers, size=0.4, ax=cells)
    cells.set_title(f"{neurons.sizes['nucleus_id']:,} neurons and their layers (release 1300)")

    release = mx.Release(661, source=folder / "minnie65_v661")
    units = release.units(rates=True)
    connectivity = mx.drop_autapses(release.connectivity(units=units))
    typed = [str(word) for word in set(units.cell_type.values) - {"unknown"}]
    between = mx.select_connections(
        connectivity, units, pre={"cell_type": typed}, post={"cell_type": ["23P", "4P", "5P-IT"]}
    )
    grouped = mx.group_connectivity(between, "cell_type", units=units)
    mx.plot.connectivity_matrix(grouped, ax=matrix)
    matrix.set_title(f"{mx.n_connections(between):,} connections (release 661)")

    currents = mx.input_currents(connectivity, units.rate_ori)
    selectivity = mx.tuning.selectivity(units.rate_ori, dim="orientation")
    tuned = units.assign(pref_ori=selectivity.pref_ori)
    result = mx.analysis.align_to_preferred(currents, tuned, normalise=True)
    mx.plot.aligned_currents(result, ax=aligned)
    aligned.get_legend().remove()  # the caption of the README says it
    aligned.set_title(f"Input of {int(result.n_neurons)} neurons (release 661)")
    return fig


if __name__ == "__main__":
    draw(Path(sys.argv[1])).savefig(sys.argv[2], dpi=110)
