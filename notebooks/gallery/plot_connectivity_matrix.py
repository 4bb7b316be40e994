"""
Connections between cell types
==============================

Sums over populations: rows are presynaptic, columns postsynaptic. ``mx.group_connectivity`` takes any variable of the
units, here cell types.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = mx.select_units(
    release.units(), classification_system=["excitatory_neuron", "inhibitory_neuron"]
)
grouped = mx.group_connectivity(release.connectivity(units=units), "cell_type", units=units)

fig, ax = plt.subplots(layout="constrained")
mx.plot.connectivity_matrix(grouped, "n_connections", ax=ax)
ax.set_title("Connections between types, synthetic data")
plt.show()
