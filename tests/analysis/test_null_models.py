"""Null models: each keeps what it says, draws the rest alike, and is compared as observed."""

from __future__ import annotations

from collections import Counter

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from matrices import dataset, dense, ids, random_tables, stored_pairs, units_of

import microns_xr as mx
from microns_xr.analysis import null_models

ANGLE = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}


def make(seed=0, n_pre=25, n_post=60, compressed="post", density=0.15):
    """Connectivity with autapses and pairs of size 0, and units of more neurons."""
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, n_pre, n_post, density)
    tables[0][[0, 1], [3, 4]] = True
    tables[2][[0, 1], [3, 4]] = 1
    pool = ids(n_post + 10)
    # the presynaptic neuron 0 is the postsynaptic neuron 3, and so on
    connectivity = dataset(*tables, compressed, pool[3 : 3 + n_pre], pool[:n_post])
    angles = rng.uniform(0, 180, pool.size)
    angles[rng.random(pool.size) < 0.1] = np.nan
    units = units_of(
        pool,
        pref_ori=angles,
        cell_type=rng.choice(["23P", "4P", "BC"], pool.size),
        layer=rng.choice(["L4", "L5"], pool.size),
        axon_completeness="full",
        strategy_axon="a_full",
        position=rng.uniform(0, 300, (pool.size, 3)),
    )
    units.pref_ori.attrs = ANGLE
    return connectivity, units


def in_bins(connectivity, units, axes, edges):
    """Which bin of distance each pair is in, in plain numpy."""
    at = [
        units.position.sel(nucleus_id=connectivity[f"{side}_nucleus_id"].values, axis=list(axes))
        for side in ("pre", "post")
    ]
    distance = np.sqrt(((at[0].values[:, None] - at[1].values[None]) ** 2).sum(axis=-1))
    return np.digitize(distance, edges)


def autapses(connectivity):
    pre, post = connectivity.pre_nucleus_id.values, connectivity.post_nucleus_id.values
    return stored_pairs(connectivity) & (pre[:, None] == post)


def rewired_nulls(connectivity, units, n=4, seed=0):
    edges = [40.0, 90.0, 200.0]
    return {
        "rewire": null_models.rewire(connectivity, n=n, seed=seed),
        "lateral": null_models.rewire_by_distance(connectivity, units, bins=edges, n=n, seed=seed),
        "in-degree": null_models.rewire_by_distance(
            connectivity,
            units,
            bins=edges,
            distance="euclidean",
            keep_in_degree=True,
            n=n,
            seed=seed,
        ),
        "weights": null_models.permute_weights(connectivity, n=n, seed=seed),
    }


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("name", ["rewire", "lateral", "in-degree"])
def test_rewiring_keeps_what_it_says(name, compressed):
    connectivity, units = make(compressed=compressed)
    before = dense(connectivity).copy()
    null = rewired_nulls(connectivity, units)[name]
    observed = stored_pairs(connectivity)
    binned = in_bins(connectivity, units, "xz" if name == "lateral" else "xyz", [40, 90, 200])
    moved = 0
    for drawn in null:
        stored = stored_pairs(drawn)
        # the same axes, number of pairs, and out-degrees; nobody is connected with itself anew
        for dim in ("pre_nucleus_id", "post_nucleus_id"):
            xr.testing.assert_identical(drawn[dim].drop_vars("replicate"), connectivity[dim])
        assert mx.n_connections(drawn) == mx.n_connections(connectivity) == stored.sum()
        np.testing.assert_array_equal(stored.sum(axis=1), observed.sum(axis=1))
        np.testing.assert_array_equal(autapses(drawn), autapses(connectivity))
        if name != "lateral":
            np.testing.assert_array_equal(stored.sum(axis=0), observed.sum(axis=0))
        if name != "rewire":
            for b in range(4):
                of_bin = binned == b
                np.testing.assert_array_equal(
                    (stored & of_bin).sum(axis=1), (observed & of_bin).sum(axis=1)
                )
        # sizes stay with the presynaptic neuron, and with their counts
        for row in range(observed.shape[0]):
            pairs = [
                Counter(
                    zip(dense(c)[row][s[row]], dense(c, "synapse_count")[row][s[row]], strict=True)
                )
                for c, s in ((connectivity, observed), (drawn, stored))
            ]
            assert pairs[0] == pairs[1]
        mx.degrees(drawn)  # indices are sorted and unique: the kernels of the package take it
        assert (
            drawn.synapse_size.data.compressed_axes
            == connectivity.synapse_size.data.compressed_axes
        )
        assert "replicate" in "\n".join(drawn.attrs["history"])
        assert "scope" in drawn.coords
        moved += (stored & ~observed).sum()
    assert moved > observed.sum()  # of four replicates
    assert "out-degree" in null.attrs["keeps"] or "each bin of" in null.attrs["keeps"]
    np.testing.assert_array_equal(dense(connectivity), before)


@pytest.mark.parametrize("compressed", ["post", "pre"])
def test_permuted_weights_keep_pattern_and_groups(compressed):
    connectivity, units = make(compressed=compressed)
    connectivity = mx.annotate(connectivity, units, ["cell_type"])
    pattern, observed = stored_pairs(connectivity), dense(connectivity)
    counts = dense(connectivity, "synapse_count")
    groups = {
        (): np.zeros(pattern.shape, dtype=int),
        "pre_nucleus_id": np.arange(pattern.shape[0])[:, None] + np.zeros(pattern.shape, dtype=int),
        ("pre_cell_type", "post_cell_type"): np.char.add(
            connectivity.pre_cell_type.values.astype(str)[:, None],
            connectivity.post_cell_type.values.astype(str),
        ),
    }
    for within, label in groups.items():
        for drawn in null_models.permute_weights(connectivity, within=within, n=3):
            np.testing.assert_array_equal(stored_pairs(drawn), pattern)
            assert (dense(drawn) != observed).any()
            for group in np.unique(label):
                here = pattern & (label == group)
                expected = Counter(zip(observed[here], counts[here], strict=True))
                found = zip(dense(drawn)[here], dense(drawn, "synapse_count")[here], strict=True)
                assert Counter(found) == expected
    with pytest.raises(mx.errors.UnknownLabelError, match=r"mx\.annotate"):
        null_models.permute_weights(connectivity, within="pre_layer")
    with pytest.raises(mx.errors.SchemaError, match="expected one value per neuron"):
        null_models.permute_weights(connectivity, within="scope")


def test_permuted_angles_keep_groups_and_are_lazy():
    units = make()[1]
    observed = units.pref_ori.values
    for within in ((), "cell_type", ["cell_type", "layer"]):
        null = null_models.permute_angles(units, within=within, n=20, seed=5)
        assert isinstance(null.data, da.Array)
        assert null.dims == ("replicate", "nucleus_id")
        assert (null.name, null.attrs["period"]) == ("pref_ori", 180)
        drawn = null.values
        names = [within] if isinstance(within, str) else within
        label = np.array([" ".join(w) for w in zip(*[units[n].values for n in names], strict=True)])
        label = label if names else np.full(observed.size, "all")
        for row in drawn:
            np.testing.assert_array_equal(np.isnan(row), np.isnan(observed))
            for group in np.unique(label):
                np.testing.assert_array_equal(
                    np.sort(row[label == group]), np.sort(observed[label == group])
                )
        assert (drawn != observed)[:, np.isfinite(observed)].mean() > 0.5
        # one replicate does not depend on how many there are, nor on what is computed
        more = null_models.permute_angles(units, within=within, n=50, seed=5)
        np.testing.assert_array_equal(more[7].values, drawn[7])
    assert "within groups of cell_type, layer" in null.attrs["keeps"]
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: cell_type"):
        null_models.permute_angles(units, within="cel_type")
    with pytest.raises(mx.errors.SchemaError, match="expected one value per neuron"):
        null_models.permute_angles(units, "position")
    with pytest.raises(mx.errors.SchemaError, match="nothing to permute"):
        null_models.permute_angles(units.assign(pref_ori=units.pref_ori * np.nan))
    with pytest.raises(mx.errors.SchemaError, match="n is 0"):
        null_models.permute_angles(units, n=0)


def test_replicates_are_seeded_and_on_their_own():
    connectivity, units = make()
    nulls, again = (rewired_nulls(connectivity, units, n=n, seed=2) for n in (3, 5))
    other = rewired_nulls(connectivity, units, n=3, seed=3)
    for name, null in nulls.items():
        last = again[name][2]  # asked for first
        np.testing.assert_array_equal(dense(null[-1]), dense(last))
        np.testing.assert_array_equal(dense(null.isel(replicate=1)), dense(again[name][1]))
        assert (dense(null[0]) != dense(null[1])).any()
        assert (dense(null[0]) != dense(other[name][0])).any()
        assert len(null[1:]) == 2
        assert null.sizes == {"replicate": 3}
        assert "keeps" in repr(null)
        with pytest.raises(IndexError):
            null[3]
    with pytest.raises(mx.errors.SchemaError, match="expected a whole number from 1"):
        null_models.rewire(connectivity, n=0)
    with pytest.raises(mx.errors.SchemaError, match="swaps is 0"):
        null_models.rewire(connectivity, swaps=0)


def patterns(null):
    """How often each set of connections was drawn; the Datasets made of them are tested above."""
    pre = null.observed.pre.tolist()
    ends = (null.draw(i)[0].tolist() for i in range(len(null)))
    return Counter(frozenset(zip(pre, post, strict=True)) for post in ends)


def test_every_network_of_the_same_degrees_is_equally_likely():
    # three neurons with one partner each and one that everybody has: 6 networks
    stored = np.eye(3, 4, dtype=bool)
    stored[:, 3] = True
    pool = ids(10)
    connectivity = dataset(stored, 1 * stored, 1 * stored, "pre", pool[:3], pool[5:9])
    n = 3000
    found = patterns(null_models.rewire(connectivity, n=n, seed=1))
    assert len(found) == 6
    chi2 = sum((k - n / 6) ** 2 / (n / 6) for k in found.values())
    assert chi2 < 20.5  # 5 degrees of freedom: p = 0.001


def test_partners_at_a_distance_are_equally_likely():
    # one neuron with 2 partners of the 4 that are near, and 1 of the 2 that are far
    units = make(n_post=6, n_pre=2)[1]
    stored = np.array([[True, True, False, False, True, False]])
    pool = ids(7)
    connectivity = dataset(stored, 5 * stored, 1 * stored, "post", pool[6:], pool[:6])
    at = np.zeros((7, 3))
    at[:6, 0] = [1, 2, 3, 4, 100, 120]
    units = units.isel(nucleus_id=slice(7)).assign(position=(("nucleus_id", "axis"), at))
    n = 3000
    found = patterns(null_models.rewire_by_distance(connectivity, units, bins=[50.0], n=n))
    assert len(found) == 12
    chi2 = sum((k - n / 12) ** 2 / (n / 12) for k in found.values())
    assert chi2 < 31.3  # 11 degrees of freedom: p = 0.001


def test_distances_need_positions(monkeypatch):
    connectivity, units = make()
    lost = units.assign(position=units.position.where(units.nucleus_id > ids(8)[-1]))
    other = mx.releases.stamp_release(units, "minnie65_public", 661)
    schema, label = mx.errors.SchemaError, mx.errors.UnknownLabelError
    for error, match, of_units, arguments in (
        (label, "are not in the units", units.isel(nucleus_id=slice(9)), {}),
        (schema, "have no position", lost, {}),
        (schema, "expected the width of a bin", units, {"bins": 0}),
        (schema, "expected the width of a bin", units, {"bins": [50, 20]}),
        (schema, "expected the width of a bin", units, {"bins": [0, 50]}),
        (schema, "distance is 'depth'", units, {"distance": "depth"}),
        (schema, "units has no position", units.drop_vars("position"), {}),
        (mx.errors.ReleaseMismatchError, "661", other, {}),
    ):
        with pytest.raises(error, match=match):
            null_models.rewire_by_distance(connectivity, of_units, **arguments)
    monkeypatch.setattr(null_models, "_MAX_CANDIDATES", 10)
    with pytest.raises(schema, match="possible pairs have to be sorted by distance"):
        null_models.rewire_by_distance(connectivity, units)


def test_nothing_to_rewire():
    connectivity, units = make()
    nobody = mx.select_connections(connectivity, pre=[])
    for null in rewired_nulls(nobody, units, n=2).values():
        assert mx.n_connections(null[1]) == 0


def one_by_one(connectivity, units, **selection):
    """The same statistic, by a name the package does not know."""
    return mx.analysis.like_to_like(connectivity, units, interval=None, **selection)


@pytest.mark.parametrize("kind", ["angles", "rewire", "lateral", "in-degree", "weights"])
def test_all_replicates_at_once_are_those_one_by_one(kind):
    connectivity, units = make(3)
    nulls = rewired_nulls(connectivity, units, n=6)
    nulls["angles"] = null_models.permute_angles(units, n=6).chunk(replicate=4)
    selection = {"pre": {"cell_type": ["23P", "4P"]}, "post": ids(70)[5:50], "normalise": True}
    fast, slow = (
        null_models.null_values(f, connectivity, units, nulls[kind], **selection)
        for f in (mx.analysis.like_to_like, one_by_one)
    )
    for name in ("probability", "mean_size", "contrast", "slope", "size_contrast"):
        np.testing.assert_allclose(fast[name], slow[name].transpose(*fast[name].dims), rtol=1e-12)
    expected = one_by_one(connectivity, units, **selection)
    result = null_models.compare(
        mx.analysis.like_to_like,
        connectivity,
        units,
        nulls[kind],
        variable="mean_size",
        **selection,
    )
    np.testing.assert_allclose(result.observed, expected.mean_size)
    np.testing.assert_allclose(result.null_mean, fast.mean_size.mean("replicate"))
    assert result.attrs["keeps"] == nulls[kind].attrs["keeps"]
    assert "compare(like_to_like" in "\n".join(result.attrs["history"])


def test_p_by_hand():
    null = xr.DataArray(
        [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [np.nan, 5.0]], dims=("replicate", "x")
    )
    result = null_models.compare_values(xr.DataArray([2.5, 5.0], dims="x"), null)
    # 1 of 3 as large; all as large and as small
    np.testing.assert_allclose(result.p, [2 * 2 / 4, 1])
    assert result.n_replicates.values.tolist() == [3, 4]
    np.testing.assert_allclose(result.effect, [0.5, 0])
    np.testing.assert_allclose(result.effect_low, result.observed - result.null_high)
    extreme = null_models.compare_values(
        xr.DataArray(7.0), xr.DataArray(np.arange(7.0), dims="replicate")
    )
    assert extreme.p.item() == 2 / 8
    nothing = null_models.compare_values(xr.DataArray(np.nan), null.isel(x=1))
    assert np.isnan(nothing.p.item())
    with pytest.raises(mx.errors.SchemaError, match="'replicate' and those"):
        null_models.compare_values(xr.DataArray([1.0], dims="y"), null)
    with pytest.raises(mx.errors.SchemaError, match="apply the same selection"):
        null_models.compare_values(xr.DataArray([1.0], dims="x"), null)


def test_a_statistic_of_ones_own():
    connectivity, units = make()

    def largest(connectivity, units, factor):
        return factor * float(connectivity.synapse_size.data.max())

    null = null_models.permute_weights(connectivity, n=9)
    result = null_models.compare(largest, connectivity, units, null, factor=2)
    assert result.p.item() == 1
    assert result.null_mean.item() == result.observed.item()

    def mean_angle(connectivity, units):
        return units.pref_ori.sel(nucleus_id=connectivity.pre_nucleus_id.values).mean()

    angles = null_models.permute_angles(units, n=9)
    result = null_models.compare(mean_angle, connectivity, units, angles)
    assert result.null_low < result.null_high


def test_observed_and_null_must_be_of_one_selection():
    connectivity, units = make()
    null, angles = null_models.rewire(connectivity, n=2), null_models.permute_angles(units, n=2)
    part = mx.select_connections(connectivity, post=ids(9))
    fewer = units.isel(nucleus_id=slice(50))
    schema, label = mx.errors.SchemaError, mx.errors.UnknownLabelError
    for error, match, pairs, of_units, drawn, variable in (
        (schema, "made from another connectivity", part, units, null, "slope"),
        (schema, "made from other units", connectivity, fewer, angles, "slope"),
        (schema, "expected that of the variable", connectivity, units, angles.rename("other"), "slope"),
        (schema, "other neurons than those that have", connectivity, units, angles.fillna(0), "slope"),
        (schema, r"expected one of mx\.analysis\.null_models", connectivity, units, angles[0], "slope"),
        (schema, "variable is None, expected one of probability, ", connectivity, units, null, None),
        (label, "'contrst'.*nearest: contrast", connectivity, units, null, "contrst"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            null_models.compare(mx.analysis.like_to_like, pairs, of_units, drawn, variable=variable)


def test_planted_and_not():
    """Without like-to-like p is spread over the unit interval; with it, it is small."""
    found = {0.0: [], 1.0: []}
    for planted, p_values in found.items():
        for seed in range(3):
            source = mx.sources.DemoSource(1718, n_nuclei=1500, seed=seed, like_to_like=planted)
            release = mx.Release(1718, source=source)
            units = release.units(functional="best_only")
            null = null_models.permute_angles(units, within="cell_type", n=199, seed=seed)
            result = null_models.compare(
                mx.analysis.like_to_like,
                release.connectivity(units=units),
                units,
                null,
                variable="slope",
                presynaptic="all",
            )
            p_values.append(result.p.item())
    assert max(found[1.0]) <= 0.02 < min(found[0.0])


def test_no_partner_is_a_neuron_of_which_nothing_is_known():
    """0 -> 10 of 10, 11 and 12 at one distance; 11 has an input from 1, and 12 none."""
    size = np.array([[5, 0, 0], [0, 6, 0]])
    connectivity = dataset(size > 0, size, size, "pre", ids(2), 1000 + ids(3))
    units = units_of(np.concatenate([ids(2), 1000 + ids(3)]), position=np.zeros((5, 3)))
    partners = {}
    for scope in ("requested", "unknown"):
        stated = connectivity.assign_coords(scope=xr.Variable((), np.array(scope, dtype=object)))
        null = null_models.rewire_by_distance(stated, units, n=60)
        partners[scope] = sum(stored_pairs(replicate) for replicate in null)[0]
    assert (partners["requested"] > 0).all()
    assert (partners["unknown"] > 0).tolist() == [True, True, False]
