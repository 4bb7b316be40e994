"""
Like to like
============

Are neurons of similar preferred orientation connected more often? In this synthetic release they are, by design
(``like_to_like=1.0``). Whiskers are intervals from resampling neurons.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

source = mx.sources.DemoSource(1718, n_nuclei=1500, seed=3, like_to_like=1.0)
release = mx.Release(1718, source=source)
units = release.units(functional="best_only")
result = mx.analysis.like_to_like(
    release.connectivity(units=units),
    units,
    presynaptic="all",  # all axons of the synthetic release are complete
    interval=mx.analysis.Bootstrap(n=200),
)

fig, ax = plt.subplots(layout="constrained")
mx.plot.like_to_like(result, ax=ax)
ax.set_title("Like to like, synthetic data")
plt.show()
