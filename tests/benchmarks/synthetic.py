"""Units, rates and connectivity of any size, with degrees and sizes as unequal as real ones."""

from __future__ import annotations

import numpy as np
import xarray as xr

import microns_xr as mx
from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern

RELEASE = ("minnie65_demo", 1718)
WORDS = (
    "classification_system cell_type brain_area strategy_axon strategy_dendrite "
    "axon_completeness layer tuning_type"
)


def make_units(n: int, seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    words = np.array([f"type {i:02}" for i in range(20)], dtype=object)
    roots = 864_691_135_000_000_000 + rng.choice(10**9, n, replace=False)
    position = rng.uniform(0, [1200, 800, 800], (n, 3))
    units = xr.Dataset(
        {"position": (("nucleus_id", "axis"), position)},
        coords={
            "nucleus_id": 100_000 + 5 * np.arange(n),
            "axis": np.array(["x", "y", "z"], dtype=object),
            "pt_root_id": ("nucleus_id", roots),
            "axon_proofread": ("nucleus_id", rng.random(n) < 0.02),
            **{name: ("nucleus_id", rng.choice(words, n)) for name in WORDS.split()},
        },
    )
    return mx.releases.stamp_release(units, *RELEASE)


def make_connectivity(n: int, n_pairs: int, seed: int = 0, n_pre: int | None = None) -> xr.Dataset:
    """Random pairs of `n` neurons; all of them presynaptic, or the first `n_pre`."""
    rng = np.random.default_rng(seed)
    n_pre = n if n_pre is None else n_pre
    in_degree = rng.multinomial(n_pairs, rng.dirichlet(np.full(n, 2.0)))
    keys = np.repeat(np.arange(n, dtype=np.int64) * n_pre, in_degree)
    keys = np.unique(keys + rng.integers(0, n_pre, keys.size))
    post, pre = np.divmod(keys, n_pre)
    ids = 100_000 + 5 * np.arange(n)
    return connectivity_dataset(
        {
            "synapse_size": rng.lognormal(7, 1, keys.size).astype(np.int64),
            "synapse_count": rng.geometric(0.85, keys.size),
        },
        make_pattern(
            pre.astype(np.int32), np.searchsorted(post, np.arange(n + 1)), (n_pre, n), "post"
        ),
        ids[:n_pre],
        ids,
        scope="complete",
        release=RELEASE,
    )


def make_rates(n: int, columns: int, rated: float = 1.0, seed: int = 1) -> xr.DataArray:
    """Rates of the share `rated` of the neurons."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0, 1.0, (n, columns))
    values[rng.random(n) >= rated] = np.nan
    coords = {"nucleus_id": 100_000 + 5 * np.arange(n)}
    rates = xr.DataArray(values, coords, ("nucleus_id", "direction"), "rate_dir")
    return mx.releases.stamp_release(rates, *RELEASE)
