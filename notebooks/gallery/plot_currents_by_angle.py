"""
Input currents by orientation
=============================

The sum over presynaptic partners of size times rate, as a mean over the neurons of each layer.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units(functional="match", rates=True)
currents = mx.input_currents(release.connectivity(), units.rate_ori)

fig, ax = plt.subplots(layout="constrained")
mx.plot.currents_by_angle(currents, units.layer, ax=ax)
ax.set_title("Input currents, synthetic data")
plt.show()
