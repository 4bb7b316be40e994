"""
Connection probability by distance
==================================

The share of tested pairs that are connected, by distance between the somata. Whiskers are intervals from resampling
neurons.
"""

import matplotlib.pyplot as plt
import numpy as np

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
units = mx.select_units(
    release.units(), classification_system=["excitatory_neuron", "inhibitory_neuron"]
)
probability = mx.analysis.connection_probability(
    release.connectivity(units=units),
    units,
    by="classification_system",
    distance=np.arange(0, 500, 100),
    presynaptic="extended",
)

fig, ax = plt.subplots(layout="constrained")
mx.plot.connection_probability(probability, ax=ax)
ax.set_title("Connection probability, synthetic data")
plt.show()
