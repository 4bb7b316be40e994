"""How close the slope of `like_to_like` comes to a slope that was planted, and its intervals.

    PYTHONPATH=tests python tests/simulations/slope_coverage.py [--releases 1000] [--draws 500]

The connection probability falls linearly with the difference of uniformly distributed preferred
orientations. In the world "equal" nothing else matters; in "out" presynaptic neurons differ in
their number of connections, in "both" postsynaptic neurons do too. Release number i is drawn from
seed i.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import xarray as xr
from matrices import connectivity_of_pairs, ids, units_of

import microns_xr as mx

ANGLE = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
SLOPE, LEVEL = -4e-4, 0.06  # per degree, and at a difference of 0
# Sigma of the lognormal factors of out-degrees and in-degrees.
WORLDS = {"equal": (0.0, 0.0), "out": (0.4, 0.0), "both": (0.4, 0.3)}


def release(
    seed: int, n_pre: int, n_post: int, world: str = "equal"
) -> tuple[xr.Dataset, xr.Dataset]:
    """Connectivity and units; the presynaptic neurons are the first of the others."""
    rng = np.random.default_rng(seed)
    pref = rng.uniform(0, 180, n_post)
    difference = np.abs(pref[:n_pre, None] - pref)
    difference = np.minimum(difference, 180 - difference)
    out, into = (
        rng.lognormal(-(s**2) / 2, s, n)
        for s, n in zip(WORLDS[world], (n_pre, n_post), strict=True)
    )
    p = (LEVEL + SLOPE * difference) * out[:, None] * into
    stored = rng.random(p.shape) < p
    np.fill_diagonal(stored, False)
    units = units_of(ids(n_post), pref_ori=pref, axon_completeness="full")
    units["pref_ori"].attrs = ANGLE
    return connectivity_of_pairs(stored), units


def slope(bins: int, n_pre: int, n_post: int, seed: int) -> float:
    found = mx.analysis.like_to_like(
        *release(seed, n_pre, n_post), bins=bins, presynaptic="all", interval=None
    )
    return float(found.slope)


def covers(world: str, n: int, both_sides: bool, seed: int) -> bool:
    interval = mx.analysis.Bootstrap(n, seed=seed, both_sides=both_sides)
    found = mx.analysis.like_to_like(
        *release(seed, 100, 300, world), bins=5, presynaptic="all", interval=interval
    )
    return bool(found.slope_low <= SLOPE <= found.slope_high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=500)
    args = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(max_workers=2) as pool:
        for bins in (3, 5, 9):
            call = partial(slope, bins, 1500, 1500)
            found = np.array(list(pool.map(call, range(max(20, args.releases // 20))))) / SLOPE - 1
            error = found.std(ddof=1) / np.sqrt(found.size)
            print(f"{bins} bins, 1,500 neurons: slope {found.mean():+.2%} ± {error:.2%}")
        for world in WORLDS:
            for both in (False, True):
                call = partial(covers, world, args.draws, both)
                share = np.mean(list(pool.map(call, range(args.releases), chunksize=20)))
                error = np.sqrt(share * (1 - share) / args.releases)
                which = "both sides" if both else "presynaptic"
                print(f"{world:6s} 95 % interval, {which}: holds {share:.1%} ± {error:.1%}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
