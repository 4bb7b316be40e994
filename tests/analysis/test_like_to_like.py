"""Like to like: by hand, against a plain double loop, on planted releases, on a real one."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import dataset, ids, random_tables, units_of
from simulations import slope_coverage

import microns_xr as mx
from microns_xr.analysis import Bootstrap
from microns_xr.analysis.resample import wilson_interval

PERIOD = {"pref_ori": 180.0, "pref_dir": 360.0}


def make_units(angles, angle="pref_ori", completeness="full", neuron_ids=None) -> xr.Dataset:
    angles = np.asarray(angles, dtype=float)
    units = units_of(
        ids(angles.size) if neuron_ids is None else neuron_ids,
        axon_completeness=completeness,
        strategy_axon=f"axon_{completeness}",
        **{angle: angles},
    )
    attrs = {"units": "degree", "angle_convention": "up_clockwise", "period": PERIOD[angle]}
    units[angle].attrs = attrs
    return units


def connect(pairs, n, **kwargs) -> xr.Dataset:
    stored, size = np.zeros((n, n), dtype=bool), np.zeros((n, n), dtype=np.int64)
    for i, j, of_pair in pairs:
        stored[i, j], size[i, j] = True, of_pair
    return dataset(stored, size, stored.astype(np.int64), **kwargs)


def plain(stored, size, pre_angles, post_angles, same, edges, period):
    """Every pair looked at on its own; with its difference and whether it is connected."""
    n_pairs, n_connected, sizes = np.zeros((3, len(edges) - 1))
    pairs = []
    for i, a in enumerate(pre_angles):
        for j, b in enumerate(post_angles):
            if np.isnan(a) or np.isnan(b) or same[i] == j:
                continue
            d = abs(a - b) % period
            d = min(d, period - d)
            found = [
                k
                for k in range(len(edges) - 1)
                if edges[k] <= d < edges[k + 1] or (k == len(edges) - 2 and d == edges[-1])
            ]
            for k in found:
                n_pairs[k] += 1
                n_connected[k] += stored[i, j]
                sizes[k] += size[i, j]
                pairs.append((k, d, stored[i, j]))
    return n_pairs, n_connected, sizes, np.array(pairs).reshape(-1, 3)


def plain_slope(pairs):
    """The slope of a straight line through the pairs, NaN if all differ by the same angle."""
    _, difference, connected = pairs.T
    if not difference.size or np.ptp(difference) < 1e-3:
        return np.nan
    return np.polyfit(difference, connected, 1)[0]


def test_three_neurons_by_hand():
    # 0 and 1 differ by 20°, 0 and 2 by 80° (across 0), 1 and 2 by 80°; 0 is connected to itself
    units = make_units([10.0, 170.0, 90.0])
    connectivity = connect([(0, 1, 5), (2, 0, 7), (0, 2, 3), (0, 0, 99)], 3)
    found = mx.analysis.like_to_like(connectivity, units, bins=[0, 45, 90], interval=None)
    assert found.difference.values.tolist() == [22.5, 67.5]
    assert found.n_pairs.values.tolist() == [2, 4]
    assert found.n_connected.values.tolist() == [1, 2]
    assert found.probability.values.tolist() == [0.5, 0.5]
    assert found.mean_size.values.tolist() == [5.0, 5.0]
    assert (found.contrast.item(), found.size_contrast.item()) == (0, 0)
    assert found.slope.item() == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(found.mean_difference, [20, 80], rtol=1e-14)
    assert found.mean_difference.attrs["units"] == "degree"
    assert (found.n_pre.item(), found.n_post.item()) == (3, 3)
    assert mx.releases.read_counts(found, "axons_used") == {"full": 3}
    assert found.difference.attrs["units"] == "degree"
    assert "like_to_like(angle='pref_ori'" in "\n".join(found.attrs["history"])
    assert "probability_low" not in found


@settings(max_examples=40, deadline=None)
@given(data=st.data(), angle=st.sampled_from(sorted(PERIOD)), on_grid=st.booleans())
def test_like_a_plain_double_loop(data, angle, on_grid):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    period = PERIOD[angle]
    n = int(rng.integers(3, 12))
    pool = ids(n)
    pre_ids = np.sort(rng.choice(pool, int(rng.integers(1, n + 1)), replace=False))
    post_ids = np.sort(rng.choice(pool, int(rng.integers(1, n + 1)), replace=False))
    # angles may lie outside of one turn, and on the edges of bins
    angles = rng.integers(-8, 17, n) * period / 8 if on_grid else rng.uniform(-400, 400, n)
    angles[rng.random(n) < 0.1] = np.nan
    of_id = dict(zip(pool.tolist(), angles.tolist(), strict=True))
    pre_angles = np.array([of_id[i] for i in pre_ids.tolist()])
    post_angles = np.array([of_id[i] for i in post_ids.tolist()])
    if np.isnan(pre_angles).all() or np.isnan(post_angles).all():
        return
    stored, size, count = random_tables(rng, pre_ids.size, post_ids.size, 0.5)
    compressed = data.draw(st.sampled_from(["pre", "post"]))
    connectivity = dataset(stored, size, count, compressed, pre_ids, post_ids)
    same = [post_ids.tolist().index(i) if i in post_ids.tolist() else -1 for i in pre_ids.tolist()]
    edges = (period * np.array([0, 0.125, 0.25, 0.5])).tolist()
    expected = plain(stored, size, pre_angles, post_angles, same, edges, period)
    units = make_units(angles, angle)
    found = mx.analysis.like_to_like(connectivity, units, angle=angle, bins=edges, interval=None)
    np.testing.assert_array_equal(found.n_pairs, expected[0])
    np.testing.assert_array_equal(found.n_connected, expected[1])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.probability, expected[1] / expected[0])
        np.testing.assert_allclose(found.mean_size, expected[2] / expected[1], rtol=1e-14)
        of_bin = [expected[3][expected[3][:, 0] == k, 1] for k in range(len(edges) - 1)]
        mean = np.array([d.sum() for d in of_bin]) / expected[0]
    np.testing.assert_allclose(found.mean_difference, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.slope, plain_slope(expected[3]), rtol=1e-6, atol=1e-9)
    # part of the circle alone, and in radians
    part = mx.analysis.like_to_like(
        connectivity, units, angle=angle, bins=edges[1:3], interval=None
    )
    inner = plain(stored, size, pre_angles, post_angles, same, edges[1:3], period)
    np.testing.assert_array_equal(part.n_pairs, inner[0])
    np.testing.assert_allclose(part.slope, plain_slope(inner[3]), rtol=1e-6, atol=1e-9)
    radians = mx.angles.convert(units, "right_counterclockwise", "radian")
    again = mx.analysis.like_to_like(
        connectivity, radians, angle=angle, bins=np.deg2rad(edges).tolist(), interval=None
    )
    np.testing.assert_array_equal(again.n_pairs, expected[0])
    np.testing.assert_array_equal(again.n_connected, expected[1])
    assert again.difference.attrs["units"] == "radian"
    np.testing.assert_allclose(np.deg2rad(again.slope), found.slope, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def planted():
    """Connections of 40 neurons with 90, more often when alike; some neurons have many more."""
    rng = np.random.default_rng(5)
    angles = rng.integers(0, 8, 90) * 22.5
    alike = np.cos(2 * np.deg2rad(angles[:40, None] - angles))
    p = rng.choice([0.02, 0.5], 40)[:, None] * (1 + 0.4 * alike)
    stored = rng.random((40, 90)) < p
    size = np.where(stored, rng.integers(1, 9000, stored.shape), 0)
    connectivity = dataset(stored, size, stored.astype(np.int64), "post", ids(90)[:40], ids(90))
    return connectivity, make_units(angles), stored


def test_default_bins_are_centred_on_measured_angles(planted):
    found = mx.analysis.like_to_like(*planted[:2], interval=None)
    assert found.difference.values.tolist() == [0, 22.5, 45, 67.5, 90]
    assert found.difference_start.values.tolist() == [0, 11.25, 33.75, 56.25, 78.75]
    assert found.difference_end.values.tolist() == [11.25, 33.75, 56.25, 78.75, 90]
    n_autapses = int(np.trace(planted[2][:, :40]))
    assert found.n_connected.sum() == planted[2].sum() - n_autapses
    assert found.n_pairs.sum() == 40 * 90 - 40
    # the slope is that of a straight line through all pairs
    x = np.repeat(found.difference.values, found.n_pairs.values)
    y = np.concatenate(
        [
            np.r_[np.ones(k), np.zeros(n - k)]
            for k, n in zip(found.n_connected.values, found.n_pairs.values, strict=True)
        ]
    )
    assert found.slope.item() == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9)
    assert found.contrast.item() == found.probability[0].item() - found.probability[-1].item()


def test_normalised_by_the_mean(planted):
    found = mx.analysis.like_to_like(*planted[:2], normalise=True, interval=Bootstrap(50))
    raw = mx.analysis.like_to_like(*planted[:2], interval=Bootstrap(50))
    mean = raw.n_connected.sum().item() / raw.n_pairs.sum().item()
    np.testing.assert_allclose(found.probability, raw.probability / mean)
    weighted = (found.probability * found.n_pairs).sum() / found.n_pairs.sum()
    assert weighted.item() == pytest.approx(1)
    assert found.slope.item() == pytest.approx(raw.slope.item() / mean)
    assert found.mean_size.attrs["units"] == "1"
    # each draw is divided by its own mean, which takes the spread of the overall level away
    width = (found.probability_high - found.probability_low).values
    assert (width < ((raw.probability_high - raw.probability_low) / mean).values).all()


def test_intervals_are_over_neurons(planted):
    connectivity, units, _ = planted
    found = mx.analysis.like_to_like(connectivity, units, interval=Bootstrap(500, seed=3))
    assert (found.probability_low < found.probability).all()
    assert (found.probability < found.probability_high).all()
    # neurons differ by far more than pairs that are independent of each other would
    low, high = wilson_interval(found.n_connected.values, found.n_pairs.values, 0.95)
    assert ((found.probability_high - found.probability_low).values > 1.3 * (high - low)).all()
    both = mx.analysis.like_to_like(
        connectivity, units, interval=Bootstrap(500, seed=3, both_sides=True)
    )
    xr.testing.assert_equal(both.probability, found.probability)
    assert (both.slope_high - both.slope_low > found.slope_high - found.slope_low).item()
    xr.testing.assert_identical(
        found, mx.analysis.like_to_like(connectivity, units, interval=Bootstrap(500, seed=3))
    )
    other = mx.analysis.like_to_like(connectivity, units, interval=Bootstrap(500, seed=4))
    assert not found.probability_low.equals(other.probability_low)


def test_presynaptic_draws_are_those_of_a_plain_bootstrap(planted):
    connectivity, units, stored = planted
    found = mx.analysis.like_to_like(
        connectivity, units, bins=[0, 90], interval=Bootstrap(300, seed=1)
    )
    rng = np.random.default_rng(1)
    same = np.eye(40, 90, dtype=bool)
    connected, pairs = (stored & ~same).sum(axis=1), (~same).sum(axis=1)
    draws = []
    for _ in range(300):
        drawn = rng.integers(0, 40, 40)
        draws.append(connected[drawn].sum() / pairs[drawn].sum())
    expected = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose(found.probability_low, expected[0])
    np.testing.assert_allclose(found.probability_high, expected[1])


def test_draws_of_the_two_sides_are_independent():
    """Two halves, connected within: with equal draws, no replicate would be below 0.5."""
    in_first = np.arange(20) < 10
    stored = in_first[:, None] == in_first
    pre_ids, post_ids = ids(40)[:20], ids(40)[20:]
    sizes = stored.astype(np.int64)
    connectivity = dataset(stored, sizes, sizes, pre_ids=pre_ids, post_ids=post_ids)
    found = mx.analysis.like_to_like(
        connectivity,
        make_units(np.linspace(0, 170, 40)),
        bins=[0, 90],
        interval=Bootstrap(1000, seed=1, both_sides=True),
    )
    assert found.probability.item() == 0.5
    # Of 20 draws, the numbers in the first half are binomial, on either side.
    pre, post = np.random.default_rng(0).binomial(20, 0.5, (2, 10_000))
    expected = np.quantile((pre * post + (20 - pre) * (20 - post)) / 400, [0.025, 0.975])
    np.testing.assert_allclose(found.probability_low, expected[0], atol=0.02)
    np.testing.assert_allclose(found.probability_high, expected[1], atol=0.02)


@pytest.mark.parametrize("bins", [3, 5, 9])
def test_slope_of_pairs_whatever_the_bins(bins):
    """The half-wide bins at the ends are not centred on their pairs: 5.6° and 84.4° of five."""
    found = np.array([slope_coverage.slope(bins, 1500, 1500, seed) for seed in range(25)])
    relative = found / slope_coverage.SLOPE - 1
    assert abs(relative.mean()) < 0.01
    # the mean over releases is known well enough for that
    assert relative.std(ddof=1) / 5 < 0.004


def test_interval_of_the_slope_holds_the_planted_one():
    held = [slope_coverage.covers("out", 200, False, seed) for seed in range(80)]
    assert 0.9 < np.mean(held) < 1
    # the example of 1,500 neurons
    connectivity, units = slope_coverage.release(0, 1500, 1500)
    for bins in (3, 5):
        found = mx.analysis.like_to_like(
            connectivity, units, bins=bins, presynaptic="all", interval=Bootstrap(200)
        )
        assert found.slope_low < slope_coverage.SLOPE < found.slope_high
    np.testing.assert_allclose(found.mean_difference[[0, -1]], [5.6, 84.4], atol=0.1)


def test_no_connection_is_not_certainty():
    units = make_units([0.0, 0.0, 90.0, 90.0])
    found = mx.analysis.like_to_like(
        connect([(0, 1, 5), (2, 3, 4)], 4), units, bins=2, interval=Bootstrap(50)
    )
    assert found.probability.values.tolist() == [0.5, 0.0]
    assert np.isnan([found.probability_low[1], found.probability_high[1]]).all()
    assert np.isfinite(found.probability_low[0])


def test_only_axons_that_are_complete_enough_and_pairs_that_were_asked_for():
    units = make_units([0.0, 0.0, 0.0, 0.0, np.nan])
    units["axon_completeness"][:] = ["full", "partial", "clean", "none", "full"]
    units["strategy_axon"][:] = ["a_full", "a_part", "clean", "none", "a_full"]
    connectivity = connect([(0, 1, 5), (3, 1, 5)], 5)

    def pairs(**kwargs):
        return mx.analysis.like_to_like(
            connectivity, units, interval=None, **kwargs
        ).n_pairs.values[0]

    # four neurons have an angle, and none makes a pair with itself
    assert [pairs(presynaptic=w) for w in ("all", "proofread", "extended", "full")] == [12, 9, 6, 3]
    assert pairs(presynaptic=["full", "partial"]) == 6
    assert pairs(pre=ids(5)[[0, 3]], post=ids(5)[1:2]) == 1
    assert pairs(pre={"axon": "full"}, post={"axon": "none"}) == 1
    partial = mx.analysis.like_to_like(connectivity, units, interval=None)
    assert mx.releases.read_counts(partial, "axons_used") == {"partial": 1, "full": 1}
    assert partial.attrs["completeness"].startswith("lower bound")
    assert mx.releases.read_counts(partial, "left_out")["post_without_pref_ori"] == 1

    unknown = connectivity.assign_coords(scope=xr.Variable((), np.array("unknown", dtype=object)))
    with pytest.raises(mx.errors.SchemaError, match="scope of the connectivity is 'unknown'"):
        mx.analysis.like_to_like(unknown, units, post=ids(5)[:2])
    tuned = mx.analysis.tuned_connections(
        unknown, units, pre=ids(5), post=ids(5)[:2], presynaptic="all"
    )
    assert dict(tuned.sizes) == {"pre_nucleus_id": 4, "post_nucleus_id": 2}
    assert tuned.scope.item() == "requested"
    assert mx.n_connections(tuned) == 2
    xr.testing.assert_equal(
        mx.analysis.like_to_like(tuned, units, presynaptic="all", interval=Bootstrap(20)),
        mx.analysis.like_to_like(
            connectivity, units, post=ids(5)[:2], presynaptic="all", interval=Bootstrap(20)
        ).assign_coords(scope=tuned.scope),
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"angle": "pref_or"}, "'pref_or', expected one of .*; nearest: pref_ori"),
        ({"angle": "axon_completeness"}, "expected one number per neuron"),
        ({"bins": [0, 90, 180]}, "go from 0 to 180 degree, expected edges between 0 and 90"),
        ({"bins": [0, 0, 90]}, "bins is"),
        ({"bins": [45]}, "bins is"),
        ({"bins": 1}, "bins is"),
        ({"interval": 200}, r"interval is 200, expected mx\.analysis\.Bootstrap\(\) or None"),
        ({"pre": [7]}, "pre_ids"),
    ],
)
def test_what_is_refused(arguments, match):
    units, connectivity = make_units([0.0, 90.0]), connect([(0, 1, 5)], 2)
    label = "pref_or'" in match or "pre_ids" in match
    error = mx.errors.UnknownLabelError if label else mx.errors.SchemaError
    with pytest.raises(error, match=match):
        mx.analysis.like_to_like(connectivity, units, **arguments)


def test_units_that_do_not_fit():
    units, connectivity = make_units([0.0, 90.0]), connect([(0, 1, 5)], 2)
    other = mx.releases.stamp_release(units, "minnie65_public", 1300)
    bare = units.assign(pref_ori=units.pref_ori.drop_attrs())
    none = units.assign(pref_ori=units.pref_ori * np.nan)
    for wrong, error, match in (
        (bare, mx.errors.SchemaError, "pref_ori has units None"),
        (none, mx.errors.SchemaError, "without_pref_ori': 2"),
        (other, mx.errors.ReleaseMismatchError, "1300"),
    ):
        with pytest.raises(error, match=match):
            mx.analysis.like_to_like(connectivity, wrong)


def excitatory(seed, planted):
    release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=3000, seed=seed, like_to_like=planted))  # fmt: skip
    units = release.units(functional="best_only")
    chosen = {"classification_system": "excitatory_neuron"}
    return release, mx.analysis.like_to_like(
        release.connectivity(units=units), units, pre=chosen, post=chosen, presynaptic="all"
    )


def test_planted_in_a_synthetic_release():
    release, found = excitatory(seed=1, planted=1.0)
    assert found.probability[0] > 2 * found.probability[-1]
    assert found.contrast_low > 0 > found.slope_high
    without = excitatory(seed=1, planted=0.0)[1]
    assert without.slope_low < 0 < without.slope_high
    assert without.n_pairs.equals(found.n_pairs)
    # the input that neurons get is tuned to their own preferred orientation
    rates = release.units(functional="match", rates=True).rate_ori
    currents = mx.input_currents(release.connectivity(), rates)
    units = mx.angles.convert(
        release.units(functional="best_only")[["pref_ori"]], "up_clockwise", "degree"
    )
    aligned = mx.analysis.align_to_preferred(currents, units, normalise=True)
    assert int(np.argmax(aligned.mean_current.values)) == 4  # relative orientation 0
    assert aligned.mean_current_low[4] > aligned.mean_current_high[0]


def make_currents(values, dim="orientation"):
    values = np.asarray(values, dtype=float)
    period = {"orientation": 180.0, "direction": 360.0}[dim]
    attrs = {"units": "degree", "angle_convention": "up_clockwise", "period": period}
    angles = np.arange(values.shape[1]) * period / values.shape[1]
    currents = xr.DataArray(
        values,
        dims=("post_nucleus_id", dim),
        coords={"post_nucleus_id": ids(len(values)), dim: (dim, angles, attrs)},
        attrs={"units": "voxels"},
    )
    return mx.releases.stamp_release(currents, "minnie65_public", 1718)


def test_align_by_hand():
    currents = make_currents([[1, 2, 9, 4], [8, 1, 2, 3], [1, 1, 1, 1], [1, 2, 3, 4]])
    units = make_units([100.0, 67.5, np.nan, 179.0])
    found = mx.analysis.align_to_preferred(currents, units, interval=None)
    assert found.relative_orientation.values.tolist() == [-90, -45, 0, 45]
    # 100 is nearest to 90, 67.5 half-way between 45 and 90, 179 is nearest to 180, which is 0
    expected = [[1, 2, 9, 4], [8, 1, 2, 3], [np.nan] * 4, [3, 4, 1, 2]]
    np.testing.assert_array_equal(found.aligned_current, expected)
    np.testing.assert_allclose(found.mean_current, [4, 7 / 3, 4, 3])
    assert found.n_neurons.item() == 3
    angles = np.deg2rad(2 * np.array([0, 45, 90, 135]))
    first = np.array([1, 2, 9, 4]) @ np.exp(1j * angles)
    assert found.input_pref_ori[0].item() == pytest.approx(np.rad2deg(np.angle(first)) / 2 % 180)
    assert found.difference[0].item() == pytest.approx(found.input_pref_ori[0].item() - 100)
    assert found.input_selectivity[0].item() == pytest.approx(abs(first) / 16)
    assert np.isnan(found.input_pref_ori[2])  # flat: no direction is preferred
    assert found.aligned_current.attrs["units"] == "voxels"
    scaled = mx.analysis.align_to_preferred(currents, units, normalise=True, interval=None)
    np.testing.assert_allclose(scaled.aligned_current[0], np.array([1, 2, 9, 4]) / 4)
    assert scaled.mean_current.attrs["units"] == "1"


@pytest.mark.parametrize("n", [8, 7])
def test_fourier_turns_by_the_very_angle(n):
    rng = np.random.default_rng(0)
    own = rng.uniform(0, 360, 5)
    grid = np.arange(n) * 360 / n
    curves = 3 + np.cos(np.deg2rad(grid - own[:, None] - 30))
    units = make_units(own, "pref_dir")
    found = mx.analysis.align_to_preferred(
        make_currents(curves, "direction"), units, angle="pref_dir", method="fourier"
    )
    relative = found.relative_direction.values
    expected = 3 + np.cos(np.deg2rad(relative - 30))
    np.testing.assert_allclose(found.aligned_current, np.tile(expected, (5, 1)), atol=1e-12)
    np.testing.assert_allclose(found.difference, 30, atol=1e-9)
    np.testing.assert_allclose(found.input_selectivity, 1 / 6)
    # at a measured angle both methods are the same, whatever the curve
    noise = make_currents(rng.random((4, n)), "direction")
    at_grid = make_units(grid[[0, 1, 3, n - 1]], "pref_dir")
    turned, rolled = (
        mx.analysis.align_to_preferred(noise, at_grid, angle="pref_dir", method=m, interval=None)
        for m in ("fourier", "nearest")
    )
    np.testing.assert_allclose(turned.aligned_current, rolled.aligned_current, atol=1e-12)


def test_nearest_flattens_the_average_by_what_is_documented():
    rng = np.random.default_rng(1)
    own = rng.uniform(0, 180, 20_000)
    grid = np.arange(8) * 22.5
    currents = make_currents(3 + np.cos(2 * np.deg2rad(grid - own[:, None])))
    units = make_units(own)
    nearest, fourier = (
        mx.analysis.align_to_preferred(currents, units, method=m, interval=None).mean_current
        for m in ("nearest", "fourier")
    )
    curve = np.cos(2 * np.deg2rad(nearest.relative_orientation))
    np.testing.assert_allclose(fourier, 3 + curve, atol=1e-9)
    # the mean over half a step to both sides
    np.testing.assert_allclose(nearest, 3 + np.sinc(1 / 8) * curve, atol=0.005)
    assert 1 - np.sinc(1 / 8) == pytest.approx(0.0255, abs=1e-4)


@pytest.mark.parametrize("angle", ["pref_ori", "pref_dir"])
def test_a_missing_angle_is_told_with_the_call_that_gives_it(angle, demo_fresh):
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    rates = units.rate_ori if angle == "pref_ori" else units.rate_dir
    currents = mx.input_currents(connectivity, rates)
    for function in (
        lambda u: mx.analysis.like_to_like(connectivity, u, angle=angle, presynaptic="all"),
        lambda u: mx.analysis.tuned_connections(connectivity, u, angle=angle, presynaptic="all"),
        lambda u: mx.analysis.align_to_preferred(currents, u, angle=angle),
        lambda u: mx.analysis.null_models.permute_angles(u, angle, n=2),
    ):
        with pytest.raises(mx.errors.UnknownLabelError, match="functional='best_only'") as error:
            function(units)
        call = re.search(r"units\.assign\(.*?\)\.\w+\)", str(error.value))[0]
        assert function(eval(call, {"mx": mx, "units": units})) is not None
        with pytest.raises(mx.errors.UnknownLabelError, match="assign the angles of a fit"):
            function(units.drop_vars(["rate_ori", "rate_dir"]))


def test_align_refuses_other_angles():
    currents, units = make_currents([[1, 2, 3, 4]]), make_units([10.0])
    directions = make_units([10.0], "pref_dir")
    other = mx.releases.stamp_release(units, "minnie65_public", 1300)
    schema, label = mx.errors.SchemaError, mx.errors.UnknownLabelError
    for error, match, call in (
        (schema, r"pass mx\.angles\.convert\(units, 'up_clockwise', units='degree'\)",
         (currents, mx.angles.convert(units, units="radian"))),
        (schema, "pref_dir has period 360 but orientation has 180", (currents, directions, "pref_dir")),
        (label, "'pref_dir'", (currents, units, "pref_dir")),
        (schema, "evenly spaced around 180", (currents.isel(orientation=[0, 1, 3]), units)),
        (schema, "expected one of each", (currents.isel(orientation=0), units)),
        (schema, "method is 'linear'", (currents, units, "pref_ori", "linear")),
        (label, "none of the 1 neurons", (currents, make_units([10.0], neuron_ids=[5]))),
        (mx.errors.ReleaseMismatchError, "1300", (currents, other)),
    ):  # fmt: skip
        arguments = dict(zip(("angle", "method"), call[2:], strict=False))
        with pytest.raises(error, match=match):
            mx.analysis.align_to_preferred(*call[:2], **arguments)


def test_real_release_has_next_to_nothing_to_say(real_data):
    """v661: pairs of proofread axons with tuned neurons whose inputs were asked for."""
    release = mx.Release(661, source=real_data / "minnie65_v661")
    units = release.units(functional="match", rates=True)
    connectivity = release.connectivity(units=units)
    harmonic = (units.rate_ori * np.exp(2j * np.deg2rad(units.orientation))).sum("orientation", skipna=False)  # fmt: skip
    pref = (np.rad2deg(xr.apply_ufunc(np.angle, harmonic)) / 2) % 180
    units["pref_ori"] = pref.assign_attrs(units.orientation.attrs)
    # the table that comes with it: inputs of 997 neurons from those in layers 2/3 and 4
    table = pd.read_csv(real_data / "minnie65_real" / "v661_unit_table.csv")
    edges = pd.read_csv(real_data / "minnie65_v661" / "raw" / "synapses" / "connections.csv")
    known = units.pt_root_id.values
    pre = units.nucleus_id.values[np.isin(known, table.pt_root_id)]
    post = units.nucleus_id.values[np.isin(known, edges.post_pt_root_id)]
    with pytest.raises(mx.errors.SchemaError, match="scope"):
        mx.analysis.like_to_like(connectivity, units)
    asked = release.connectivity(units=units, pre=pre, post=post)
    found = mx.analysis.like_to_like(asked, units, presynaptic="proofread")
    assert set(mx.releases.read_counts(found, "axons_used")) == {"clean", "unknown"}
    assert found.attrs["completeness"].startswith("lower bound")
    assert found.n_post.item() == int(np.isfinite(units.pref_ori.sel(nucleus_id=post)).sum())
    # all connected pairs are among those of the raw table
    rated = set(known[np.isfinite(units.pref_ori.values)].tolist())
    clean = set(known[units.axon_proofread.values].tolist()) & set(table.pt_root_id.tolist())
    plainly = edges[
        edges.pre_pt_root_id.isin(clean & rated)
        & edges.post_pt_root_id.isin(rated)
        & (edges.pre_pt_root_id != edges.post_pt_root_id)
    ]
    assert found.n_connected.sum().item() == len(plainly)
    assert found.n_pairs.sum().item() > 100 * len(plainly)
