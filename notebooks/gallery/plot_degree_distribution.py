"""
Partners per neuron
===================

How many neurons have how many partners, presynaptic and postsynaptic.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
degrees = mx.degrees(release.connectivity())

fig, ax = plt.subplots(layout="constrained")
mx.plot.degree_distribution(degrees, ax=ax)
ax.set_title("Partners per neuron, synthetic data")
plt.show()
