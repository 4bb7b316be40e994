"""
Input currents by orientation
=============================

The sum over presynaptic partners of size times rate, as a mean over the neurons of each layer; L1 has too few neurons
for a mean. The band is one standard error.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units(functional="match", rates=True)
shown = mx.select_units(units, layer=["L2/3", "L4", "L5", "L6"])
onto = mx.select_connections(release.connectivity(), post=shown)
currents = mx.input_currents(onto, units.rate_ori)

fig, ax = plt.subplots(layout="constrained")
mx.plot.currents_by_angle(currents, units.layer, ax=ax)
ax.set_title("Input currents, synthetic data")
plt.show()
