"""
Connections, neuron by neuron
=============================

Every connection is a dot, from its presynaptic neuron (row) to its postsynaptic neuron (column); both axes are sorted
by cell type. ``by=`` takes any other words or numbers, such as the depth.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units()
fig, ax = plt.subplots(layout="constrained")
mx.plot.adjacency_matrix(release.connectivity(units=units), units, by="cell_type", ax=ax)
ax.set_title("Connections by cell type, synthetic data")
plt.show()
