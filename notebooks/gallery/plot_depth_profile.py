"""
Cells by depth
==============

How many cells lie at which depth below the pia. Colours are the layers; ``by=`` takes any other words.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))

fig, ax = plt.subplots(layout="constrained")
mx.plot.depth_profile(release.units(), release.layers(), ax=ax)
ax.set_title("Cells by depth, synthetic data")
plt.show()
