"""
Tuning of the input
===================

The input current of each neuron, by the orientation of the stimulus relative to the one that the neuron prefers. In
this synthetic release, similar neurons connect more often by design (``like_to_like=1.0``). The band is an interval
from resampling neurons.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(
    1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3, like_to_like=1.0)
)
units = release.units(functional="match", rates=True)
currents = mx.input_currents(release.connectivity(units=units), units.rate_ori)
own = mx.tuning.selectivity(units.rate_ori, dim="orientation")
aligned = mx.analysis.align_to_preferred(
    currents, units.assign(pref_ori=own.pref_ori), normalise=True
)

fig, ax = plt.subplots(layout="constrained")
mx.plot.aligned_currents(aligned, ax=ax)
ax.set_title("Input by own preference, synthetic data")
plt.show()
