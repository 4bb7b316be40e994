"""
Preferred orientations
======================

How many neurons prefer which orientation. An orientation repeats after half a turn, so it is drawn at both ends.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = release.units(functional="best_only")

fig, ax = plt.subplots(subplot_kw={"projection": "polar"}, layout="constrained")
mx.plot.preferred_orientations(units, by="layer", ax=ax)
ax.set_title("Preferred orientations, synthetic data")
plt.show()
