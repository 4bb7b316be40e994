"""How often null models call what is not there: false positives, and power where it is planted.

    python tests/simulations/false_positives.py [--releases 2000] [--replicates 199] [--worlds ...]

Every release has neurons in a plane, of very unequal out-degrees, connected more the closer they
are. Worlds differ in two things: whether alike neurons lie close together (``clustered``), and
whether neurons choose alike partners (``planted``). Release number i is drawn from seed i.

``demo`` are whole synthetic releases, built by the package from their tables.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import xarray as xr

import microns_xr as mx
from microns_xr.analysis import null_models
from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern

ANGLE = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
N_PRE, N_POST, WIDTH_UM, LENGTH_UM = 60, 200, 400.0, 80.0


def synthetic(seed: int, clustered: bool, planted: float) -> tuple[xr.Dataset, xr.Dataset]:
    """Connectivity and units of one small release; the presynaptic neurons are among the others."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, WIDTH_UM, (N_POST, 3))
    if clustered:
        # A smooth map of orientations, some 250 µm from one to its like.
        phase = rng.uniform(0, 2 * np.pi, 4)
        x, z = 2 * np.pi * at[:, 0] / 250, 2 * np.pi * at[:, 2] / 250
        wave = np.exp(1j * (x + phase[0])) + np.exp(1j * (z + phase[1]))
        wave += np.exp(1j * (x + z + phase[2])) + 0.5 * rng.standard_normal(N_POST)
        pref = np.rad2deg(np.angle(wave)) / 2 % 180
    else:
        pref = rng.uniform(0, 180, N_POST)
    lateral = np.hypot(*(at[:N_PRE, None, [0, 2]] - at[None][:, :, [0, 2]]).transpose(2, 0, 1))
    alike = np.cos(2 * np.deg2rad(pref[:N_PRE, None] - pref))
    out = rng.lognormal(-1.3, 0.7, N_PRE)[:, None]
    into = rng.lognormal(0, 0.4, N_POST)
    p = np.minimum(1, out * into * np.exp(-lateral / LENGTH_UM) * (1 + planted * alike))
    stored = rng.random(p.shape) < p
    np.fill_diagonal(stored, False)
    pre, post = np.nonzero(stored)
    ids = np.arange(1, N_POST + 1)
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    sizes = np.exp(7.6 + 1.1 * rng.standard_normal(pre.size)).astype(np.int64)
    connectivity = connectivity_dataset(
        {"synapse_size": sizes},
        make_pattern(post, indptr, stored.shape, "pre"),
        ids[:N_PRE],
        ids,
        scope="complete",
        release=("synthetic", 1),
    )
    units = xr.Dataset(
        {
            "pref_ori": ("nucleus_id", pref, ANGLE),
            "position": (("nucleus_id", "axis"), at),
            "axon_completeness": ("nucleus_id", np.array(["full"] * N_POST, dtype=object)),
        },
        coords={"nucleus_id": ids, "axis": np.array(["x", "y", "z"], dtype=object)},
    )
    return connectivity, mx.releases.stamp_release(units, "synthetic", 1)


def demo(seed: int, planted: float) -> tuple[xr.Dataset, xr.Dataset]:
    """Excitatory tuned neurons of a whole synthetic release."""
    source = mx.sources.DemoSource(1718, n_nuclei=1500, seed=seed, like_to_like=planted)
    release = mx.Release(1718, source=source)
    units = release.units(functional="best_only")
    connectivity = release.connectivity(units=units)
    excitatory = {"classification_system": "excitatory_neuron"}
    tuned = mx.analysis.tuned_connections(
        connectivity, units, pre=excitatory, post=excitatory, presynaptic="all"
    )
    ids = np.union1d(tuned.pre_nucleus_id, tuned.post_nucleus_id)
    return tuned, units.sel(nucleus_id=ids)


WORLDS = {
    "scattered": partial(synthetic, clustered=False, planted=0.0),
    "clustered": partial(synthetic, clustered=True, planted=0.0),
    "scattered, planted": partial(synthetic, clustered=False, planted=0.15),
    "clustered, planted": partial(synthetic, clustered=True, planted=0.15),
    "demo": partial(demo, planted=0.0),
    "demo, planted": partial(demo, planted=0.3),
}


def nulls(world: str, connectivity: xr.Dataset, units: xr.Dataset, n: int, seed: int) -> dict:
    found = {"permute_angles": null_models.permute_angles(units, n=n, seed=seed)}
    if not world.startswith("demo"):
        found["rewire"] = null_models.rewire(connectivity, n=n, seed=seed, swaps=5)
        found["rewire_by_distance 20 µm"] = null_models.rewire_by_distance(
            connectivity, units, bins=20, n=n, seed=seed
        )
        found["permute_weights"] = null_models.permute_weights(connectivity, n=n, seed=seed)
    return found


def p_values(world: str, n: int, seed: int) -> dict[str, float]:
    connectivity, units = WORLDS[world](seed)
    found = {}
    for name, null in nulls(world, connectivity, units, n, seed).items():
        variable = "size_contrast" if name == "permute_weights" else "slope"
        found[name] = float(
            null_models.compare(
                mx.analysis.like_to_like,
                connectivity,
                units,
                null,
                variable=variable,
                presynaptic="all",
            ).p
        )
    for both_sides in (False, True):
        drawn = mx.analysis.like_to_like(
            connectivity,
            units,
            presynaptic="all",
            interval=mx.analysis.Bootstrap(200, seed=seed, both_sides=both_sides),
        )
        which = "both" if both_sides else "pre"
        excludes = float(drawn.slope_low) > 0 or float(drawn.slope_high) < 0
        found[f"interval of the slope leaves out 0 ({which})"] = 0.0 if excludes else 1.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=199)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    args = parser.parse_args()
    with ProcessPoolExecutor(max_workers=2) as pool:
        for world in args.worlds:
            started = time.perf_counter()
            call = partial(p_values, world, args.replicates)
            found = list(pool.map(call, range(args.releases), chunksize=20))
            seconds = time.perf_counter() - started
            print(f"{world}: seeds 0 to {args.releases - 1}, {seconds:.0f} s")
            for name in found[0]:
                p = np.array([f[name] for f in found])
                share = float((p <= 0.05).mean())
                error = np.sqrt(share * (1 - share) / p.size)
                print(f"    {name:42s} {share:.2%} ± {error:.2%}")


if __name__ == "__main__":
    main()
