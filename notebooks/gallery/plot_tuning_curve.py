"""
Tuning curve of a neuron
========================

Rates by direction of motion, and a fit. All curves are fitted at once, and the best one is drawn.
"""

import matplotlib.pyplot as plt

import microns_xr as mx

release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))
curves = release.tuning_curves().isel(scan_unit=slice(50))
fits = mx.tuning.fit(curves.rate_dir, dim="direction", model="double_von_mises")
best = {"scan_unit": fits.r2.argmax("scan_unit").item()}

fig, ax = plt.subplots(layout="constrained")
mx.plot.tuning_curve(curves.rate_dir.isel(best), fits.isel(best), ax=ax)
ax.set_title("Tuning curve, synthetic data")
plt.show()
