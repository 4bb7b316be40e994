"""
Distribution of weights
=======================

How large the summed synapses of connected pairs are.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
fig, ax = plt.subplots(layout="constrained")
mx.plot.weight_distribution(release.connectivity(), ax=ax)
ax.set_title("Sizes of connections, synthetic data")
plt.show()
