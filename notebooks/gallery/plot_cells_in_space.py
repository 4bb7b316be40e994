"""
Neurons in space
================

Each dot is a neuron, seen from the front, with depth below the pia running downwards and layer borders as lines. Colour
is any variable of the units, words or numbers.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units()

fig, ax = plt.subplots(layout="constrained")
mx.plot.cells_in_space(units, "layer", layers=release.layers(), ax=ax)
ax.set_title("Neurons by layer, synthetic data")
plt.show()
