"""
A release at a glance
=====================

Cells by depth and in space, connections between types, and input currents, as far as the data are there.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units(functional="match", rates=True)

fig = plt.figure(figsize=(11, 8), layout="constrained")
mx.plot.release_summary(units, release.layers(), release.connectivity(units=units), figure=fig)
fig.suptitle("A release, synthetic data")
plt.show()
