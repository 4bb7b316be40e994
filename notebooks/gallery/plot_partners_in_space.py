"""
Partners of a neuron
====================

Where the inputs and the outputs of one neuron lie.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units()
connectivity = release.connectivity(units=units)
neuron = int(mx.degrees(connectivity).in_degree.idxmax())  # the one with most inputs

fig, ax = plt.subplots(layout="constrained")
mx.plot.partners_in_space(connectivity, units, neuron, layers=release.layers(), ax=ax)
ax.set_title("Partners of a neuron, synthetic data")
plt.show()
