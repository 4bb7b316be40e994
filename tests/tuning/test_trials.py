"""Statistics across trials: by hand, against scipy, and how often they reject on noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

import microns_xr as mx
from microns_xr.tuning.trials import rank_sum

DIRECTIONS = np.arange(16) * 22.5
DEGREES = {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0}


def full(values, directions=DIRECTIONS, **attrs) -> xr.DataArray:
    """Responses (nucleus_id, trial, direction) of a release."""
    responses = xr.DataArray(
        np.asarray(values, dtype=float),
        dims=("nucleus_id", "trial", "direction"),
        coords={
            "nucleus_id": 864691135 + np.arange(len(values)),
            "direction": ("direction", directions, {**DEGREES, **attrs}),
        },
    )
    return mx.releases.stamp_release(responses, "minnie65_public", 1300)


def listed(responses: xr.DataArray, order=None) -> xr.DataArray:
    """Give the other form of the same responses: one trial after the other, in any order."""
    stacked = responses.transpose("nucleus_id", "direction", "trial")
    values = stacked.values.reshape(stacked.shape[0], -1)
    shown = np.repeat(responses.direction.values, responses.sizes["trial"])
    order = np.arange(shown.size) if order is None else order
    return xr.DataArray(
        values[:, order],
        dims=("nucleus_id", "trial"),
        coords={
            "nucleus_id": responses.nucleus_id,
            "direction": ("trial", shown[order], responses.direction.attrs),
            "datastack": responses.datastack,
            "materialization_version": responses.materialization_version,
        },
    )


@pytest.fixture(scope="module")
def noise() -> xr.DataArray:
    return full(np.random.default_rng(7).normal(size=(2000, 10, 16)))


@pytest.fixture(scope="module")
def tuned() -> tuple[xr.DataArray, np.ndarray]:
    """Neurons that respond twice as much to one direction as to the opposite, and little else."""
    rng = np.random.default_rng(3)
    preferred = rng.integers(0, 16, 200)
    apart = np.deg2rad(DIRECTIONS - DIRECTIONS[preferred][:, None])
    rate = 6 * np.exp(3 * (np.cos(2 * apart) - 1)) * (3 + np.cos(apart)) / 4
    return full(rate[:, None] + rng.normal(size=(200, 10, 16))), preferred


# ------------------------------------------------------------------------- mean and error


def test_statistics_by_hand():
    responses = xr.DataArray(
        [[1.0, 3.0, 5.0, 9.0, 4.0], [2.0, np.nan, 7.0, 9.0, 4.0], [np.nan] * 3 + [9.0, np.nan]],
        dims=("unit", "trial"),
        coords={"direction": ("trial", [0.0, 360.0, 90.0, np.nan, 0.0], DEGREES)},
        attrs={"units": "events / s"},
    )
    result = mx.tuning.trial_statistics(responses)
    assert result.direction.values.tolist() == [0, 90]
    assert result.direction.attrs == DEGREES
    np.testing.assert_allclose(result.rate, [[8 / 3, 5], [3, 7], [np.nan] * 2])
    # 1, 3, 4: squares of deviations sum to 14 / 3, s^2 = 7 / 3
    np.testing.assert_allclose(
        result.rate_error, [[np.sqrt(7) / 3, np.nan], [1, np.nan], [np.nan] * 2]
    )
    assert result.n_trials.values.tolist() == [[3, 1], [2, 1], [0, 0]]
    assert result.n_trials.dtype == np.int64
    assert result.rate.attrs["units"] == "events / s"


def test_both_forms_and_any_order_of_dims_say_the_same(noise):
    responses = noise.isel(nucleus_id=slice(0, 12))
    plain = mx.tuning.trial_statistics(responses)
    np.testing.assert_allclose(plain.rate, responses.mean("trial"), rtol=1e-12)
    sem = stats.sem(responses.values, axis=1, ddof=1)
    np.testing.assert_allclose(plain.rate_error, sem, rtol=1e-12)
    assert plain.materialization_version.item() == 1300
    order = np.random.default_rng(0).permutation(160)
    others = [listed(responses), listed(responses, order), responses.transpose(..., "nucleus_id")]
    for other in others:
        xr.testing.assert_allclose(mx.tuning.trial_statistics(other), plain, rtol=1e-12)
        for test in ("permutation", "wilcoxon"):
            assert mx.tuning.test(other, method=test).pref_dir.dims == ("nucleus_id",)
    xr.testing.assert_identical(mx.tuning.test(listed(responses)).p, mx.tuning.test(responses).p)


def test_several_dims_of_neurons_and_none(noise):
    responses = noise.isel(nucleus_id=slice(0, 6))
    flat = mx.tuning.test(responses)
    speed = responses.isel(direction=0, drop=True)
    with_speed = responses.assign_coords(speed=speed, day=("trial", np.arange(10)), animal="m")
    assert set(mx.tuning.test(with_speed).coords) == {*flat.coords, "animal"}
    square = xr.DataArray(
        responses.values.reshape(2, 3, 10, 16),
        dims=("scan", "unit", "trial", "direction"),
        coords={"direction": responses.direction},
    )
    square_test = mx.tuning.test(square)
    assert square_test.p.dims == ("scan", "unit")
    np.testing.assert_array_equal(square_test.p.values.ravel(), flat.p)
    one = mx.tuning.test(responses.isel(nucleus_id=2))
    assert one.p.dims == ()
    assert one.p.item() == flat.p.values[2]
    assert mx.tuning.trial_statistics(square).rate.dims == ("scan", "unit", "direction")


# ------------------------------------------------------------------------------ rank tests


@pytest.mark.parametrize("n", [5, 10, 20, 60])
def test_rank_sum_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    first, second = rng.normal(0.3, 1, (40, n)), rng.normal(size=(40, n + 1))
    method = "exact" if 2 * n + 1 <= 40 else "asymptotic"
    expected = stats.mannwhitneyu(first, second, alternative="greater", axis=1, method=method)
    statistic, p = rank_sum(first, second)
    np.testing.assert_array_equal(statistic, expected.statistic)
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-10)
    tied = rng.integers(0, 4, (40, 60)), rng.integers(0, 4, (40, 50))
    expected = stats.mannwhitneyu(*tied, alternative="greater", axis=1, method="asymptotic")
    np.testing.assert_allclose(rank_sum(*tied)[1], expected.pvalue, rtol=1e-10)


@given(arrays(np.int64, (1, 7), elements=st.integers(0, 3)), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_rank_sum_with_ties_counts_all_divisions(values, n):
    _, p = rank_sum(values[:, :n], values[:, n:])
    ranks = stats.rankdata(values[0])
    sums = [ranks[list(c)].sum() for c in itertools.combinations(range(7), n)]
    assert p[0] == pytest.approx(np.mean(np.array(sums) >= ranks[:n].sum() - 1e-9))


# -------------------------------------------------------------------------------- the tests


def plain_permutation(values, against, pool, n_permutations, rng):
    """One neuron, (trial, direction), by loops and numpy.permutation."""

    def difference(table):
        means = table.mean(axis=0)
        if pool:
            means = (means[:8] + means[8:]) / 2
        best, n = int(np.argmax(means)), len(means)
        if against == "opposite" or pool:
            return means[best] - means[(best + n // 2) % n]
        return means[best] - (means[(best + 4) % 16] + means[(best - 4) % 16]) / 2

    observed, count = difference(values), 0
    for _ in range(n_permutations):
        if against == "orthogonal":
            permuted = rng.permutation(values.ravel()).reshape(values.shape)
        else:
            permuted = values.copy()
            for k in range(8):
                both = rng.permutation(np.concatenate([values[:, k], values[:, k + 8]]))
                permuted[:, k], permuted[:, k + 8] = np.split(both, 2)
        count += difference(permuted) >= observed - 1e-12
    return observed, (1 + count) / (1 + n_permutations)


@pytest.mark.parametrize(
    ("against", "pool"), [("orthogonal", False), ("orthogonal", True), ("opposite", False)]
)
def test_permutation_is_that_of_a_loop(against, pool):
    rng = np.random.default_rng(11)
    rate = np.linspace(0, 0.8, 4)[:, None] * np.cos(np.deg2rad(DIRECTIONS)) ** 3
    responses = full(rate[:, None] + rng.normal(size=(4, 10, 16)))
    result = mx.tuning.test(responses, against, pool_directions=pool, n_permutations=2000)
    for neuron in range(4):
        difference, p = plain_permutation(responses.values[neuron], against, pool, 400, rng)
        assert result.difference.values[neuron] == pytest.approx(difference, rel=1e-12)
        assert result.statistic.values[neuron] == result.difference.values[neuron]
        # two estimates of one p, from 2000 and from 400 permutations
        error = np.sqrt(p * (1 - p) * (1 / 2000 + 1 / 400))
        assert result.p.values[neuron] == pytest.approx(p, abs=4 * error)


def test_permutation_of_all_orders_by_hand():
    # 2 orientations, 2 trials: 6 ways to divide 1, 2, 5, 6; two of them are as far apart
    responses = xr.DataArray(
        [[[5.0, 1.0], [6.0, 2.0]]], dims=("unit", "trial", "orientation"),
        coords={"orientation": [0.0, 90.0]},
    )  # fmt: skip
    result = mx.tuning.test(responses, n_permutations=20_000)
    assert result.difference.item() == 4
    assert result.effect.item() == pytest.approx(4 / np.sqrt(0.5))
    assert result.p.item() == pytest.approx(1 / 3, abs=0.02)
    assert (result.n_preferred.item(), result.n_other.item()) == (2, 2)


@pytest.mark.parametrize("against", ["orthogonal", "opposite"])
@pytest.mark.parametrize(
    ("method", "level"),
    # the largest values of p up to 0.05 of 5 against 10 and of 5 against 5 trials
    [("permutation", {"orthogonal": 0.05, "opposite": 0.05}),
     ("wilcoxon", {"orthogonal": 0.0496, "opposite": 0.0476})],
)  # fmt: skip
def test_five_percent_of_noise_is_rejected(noise, against, method, level):
    outcome = mx.tuning.test(noise, against, method=method, n_permutations=500, seed=1)
    n = int((outcome.p <= 0.05).sum())
    assert stats.binomtest(n, 2000, level[against]).pvalue > 1e-3, n
    assert int((outcome.q <= 0.05).sum()) <= 2
    assert outcome.testable.all()
    if against == "orthogonal" and method == "wilcoxon":  # 10 against 10
        pooled = mx.tuning.test(noise, method=method, pool_directions=True, seed=1)
        assert stats.binomtest(int((pooled.p <= 0.05).sum()), 2000, 0.0446).pvalue > 1e-3
        assert pooled.n_preferred.values.tolist() == [10] * 2000


def test_an_axis_without_a_direction_is_not_direction_selective():
    rng = np.random.default_rng(2)
    rate = 5 * np.cos(np.deg2rad(DIRECTIONS)) ** 4
    responses = full(rate + rng.normal(size=(1000, 10, 16)))
    assert float((mx.tuning.test(responses, n_permutations=200).p <= 0.05).mean()) == 1
    outcome = mx.tuning.test(responses, "opposite", n_permutations=400)
    assert stats.binomtest(int((outcome.p <= 0.05).sum()), 1000, 0.05).pvalue > 1e-3


@pytest.mark.parametrize("method", ["permutation", "wilcoxon"])
def test_planted_tuning_is_found(tuned, method):
    responses, preferred = tuned
    orientation = mx.tuning.test(responses, method=method, pool_directions=True)
    assert float((orientation.q <= 0.05).mean()) > 0.98
    right = orientation.pref_ori.values == DIRECTIONS[preferred % 8]
    assert right.mean() > 0.85
    plain = mx.tuning.test(responses, method=method)
    assert float((plain.q <= 0.05).mean()) > 0.98
    assert (plain.pref_dir.values == DIRECTIONS[preferred]).mean() > 0.7
    assert orientation.pref_ori.attrs["angle_convention"] == "up_clockwise"
    assert orientation.pref_ori.attrs["period"] == 180
    direction = mx.tuning.test(responses, "opposite", method=method)
    assert float((direction.p <= 0.05).mean()) > 0.8
    away = mx.angles.difference(direction.pref_dir.values, DIRECTIONS[preferred], 360)
    assert np.mean(np.abs(away) < 23) > 0.9
    assert direction.pref_dir.attrs["period"] == 360
    assert direction.history[-1].endswith("n_permutations=1000, within_trial=0") is (
        method == "permutation"
    )


def test_radians_give_the_same_in_radians(tuned):
    responses = tuned[0].isel(nucleus_id=slice(0, 5))
    other = responses.assign_coords(
        direction=(
            "direction",
            np.deg2rad(DIRECTIONS),
            {**DEGREES, "units": "radian", "period": 2 * np.pi},
        )
    )
    degrees, radians = mx.tuning.test(responses), mx.tuning.test(other)
    np.testing.assert_array_equal(radians.p, degrees.p)
    np.testing.assert_allclose(np.rad2deg(radians.pref_dir), degrees.pref_dir, atol=1e-5)
    assert radians.pref_dir.attrs["period"] == pytest.approx(2 * np.pi)
    converted = mx.angles.convert(radians.pref_dir, "right_counterclockwise", "degree")
    expected = np.mod(90 - degrees.pref_dir.values, 360)
    assert np.abs(mx.angles.difference(converted.values, expected, 360)).max() < 1e-4
    with pytest.raises(mx.errors.SchemaError, match="does not state its units"):
        mx.tuning.test(other.assign_coords(direction=np.deg2rad(DIRECTIONS)))


# ------------------------------------------------------------------------- what is missing


def test_a_level_of_each_trial_does_not_make_the_test_within_trials_wrong():
    rng = np.random.default_rng(6)
    level = 2 * rng.normal(size=(1000, 10, 1))
    responses = full(level + rng.normal(size=(1000, 10, 16)))
    for against in ("orthogonal", "opposite"):
        within = mx.tuning.test(responses, against, within_trial=True, n_permutations=400)
        n = int((within.p <= 0.05).sum())
        assert stats.binomtest(n, 1000, 0.05).pvalue > 1e-3, n
    anywhere = mx.tuning.test(responses, n_permutations=400)
    assert float((anywhere.p <= 0.05).mean()) < 0.01
    # taking the level away changes nothing within trials
    without = mx.tuning.test(responses - level, within_trial=True, n_permutations=400)
    repeated = mx.tuning.test(responses, within_trial=True, n_permutations=400)
    np.testing.assert_array_equal(without.p, repeated.p)
    with pytest.raises(mx.errors.SchemaError, match="within_trial=True with method='wilcoxon'"):
        mx.tuning.test(responses, method="wilcoxon", within_trial=True)
    with pytest.raises(
        mx.errors.SchemaError, match=r"expected method='permutation' and \(\.\.\., trial"
    ):
        mx.tuning.test(listed(responses), within_trial=True)


def test_missing_trials_set_flags_and_raise_nothing(tuned):
    responses = tuned[0].isel(nucleus_id=slice(0, 8)).copy(deep=True)
    responses[0] = np.nan  # never recorded
    responses[1] = 3.0  # flat
    responses[2, 1:], responses[2, 0, 8:] = np.nan, np.nan  # one trial a direction
    responses[3, :, 4:12] = np.nan  # the other half of the directions
    responses[4, 3:] = np.inf  # three trials
    responses[5, 9, 0] = np.nan  # one missing
    before = responses.copy(deep=True)
    for method in ("permutation", "wilcoxon"):
        for against in ("orthogonal", "opposite"):
            outcome = mx.tuning.test(responses, against, method=method, n_permutations=200)
            assert outcome.testable.values[:3].tolist() == [False] * 3
            assert outcome.testable.values[4:].all()
            bad = outcome.where(~outcome.testable, drop=True)
            for variable in ("p", "q", "statistic", "pref_dir", "difference", "effect"):
                assert np.isnan(bad[variable]).all(), variable
            assert outcome.n_preferred.values[:3].tolist() == [0, 0, 0]
            assert np.isfinite(outcome.pref_dir.values[4:]).all()
    assert responses.identical(before)
    halves = mx.tuning.cross_validate(responses)
    assert halves.testable.values.tolist() == [False] * 3 + [True] * 5
    assert np.isnan(halves.agreement.values[:3]).all()
    # directions 90 to 247.5 were not shown: 0 to 67.5 have no opposite, but an orthogonal one
    assert not outcome.testable.values[3]
    orthogonal = mx.tuning.test(responses, n_permutations=200)
    assert orthogonal.testable.values[3]
    assert mx.tuning.trial_statistics(responses).n_trials.values[5].tolist() == [9] + [10] * 15


def test_a_neuron_does_not_depend_on_the_others_nor_on_threads(noise):
    responses = noise.isel(nucleus_id=slice(0, 30)).copy(deep=True)
    responses[3, 2, 5] = np.nan
    for method in ("permutation", "wilcoxon"):
        everything = mx.tuning.test(responses, method=method, seed=4)
        repeated = mx.tuning.test(responses, method=method, seed=4)
        xr.testing.assert_identical(everything, repeated)
        few = mx.tuning.test(responses.isel(nucleus_id=[3, 20]), method=method, seed=4)
        np.testing.assert_array_equal(few.p, everything.p.values[[3, 20]])
        other = mx.tuning.test(responses, method=method, seed=np.random.default_rng(4))
        assert not np.array_equal(other.p, everything.p)
    assert repeated.attrs["seed"] == 4


def test_unequal_repeats_of_two_directions_are_not_an_orientation():
    # 20 trials of 0 degrees and 5 of 180: a neuron of direction alone has equal orientations
    rng = np.random.default_rng(0)
    shown = np.repeat([0.0, 90.0, 180.0, 270.0], [20, 12, 5, 12])
    rate = np.array([2.0, 1.0, 0.0, 1.0])[(shown / 90).astype(int)]
    responses = xr.DataArray(
        rate + 0.1 * rng.normal(size=(300, len(shown))),
        dims=("unit", "trial"), coords={"direction": ("trial", shown, DEGREES)},
    )  # fmt: skip
    pooled = mx.tuning.test(responses, pool_directions=True, n_permutations=200)
    assert np.abs(pooled.difference).max() < 0.2
    assert float((pooled.p <= 0.05).mean()) <= 0.08
    plain = mx.tuning.test(responses, n_permutations=200)
    np.testing.assert_allclose(plain.difference, 1, atol=0.2)
    assert (plain.n_preferred.values[0], plain.n_other.values[0]) == (20, 24)


def test_q_is_adjusted_by_benjamini_hochberg_over_the_neurons_that_were_tested():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(50, 6, 16)) + 0.7 * np.cos(np.deg2rad(DIRECTIONS)) ** 2
    values[7] = np.nan
    square = full(values).drop_vars("nucleus_id").coarsen(nucleus_id=10)
    result = mx.tuning.test(square.construct(nucleus_id=("scan", "unit")), n_permutations=100)
    p = np.delete(result.p.values.ravel(), 7)
    order = np.argsort(p)
    q = np.empty(49)
    q[order] = np.minimum.accumulate((p[order] * 49 / np.arange(1, 50))[::-1])[::-1]
    np.testing.assert_allclose(np.delete(result.q.values.ravel(), 7), q, rtol=1e-12)
    assert result.q.dims == ("scan", "unit")
    assert np.isnan(result.q.values[0, 7])


# ---------------------------------------------------------------------------- cross-validation


def test_cross_validated_effect_is_zero_without_tuning(noise, tuned):
    halves = mx.tuning.cross_validate(noise)
    standard_error = float(halves.effect.std() / np.sqrt(2000))
    assert abs(float(halves.effect.mean())) < 4 * standard_error
    circular = mx.tuning.test(noise.isel(nucleus_id=slice(0, 200)), n_permutations=1).effect
    assert float(circular.min()) > 0 or float(circular.mean()) > 0.3
    real, preferred = mx.tuning.cross_validate(tuned[0], pool_directions=True), tuned[1]
    assert (real.pref_ori.values == DIRECTIONS[preferred % 8]).mean() > 0.9
    assert float(real.agreement.mean()) > 0.9 > float(halves.agreement.mean())
    assert real.pref_ori_fold.dims == ("nucleus_id", "fold")
    assert float(real.effect.mean()) > 3
    five = mx.tuning.cross_validate(tuned[0], "opposite", n_folds=5)
    assert five.sizes["fold"] == 5
    assert float(five.difference.mean()) == pytest.approx(6 * 0.5, abs=0.5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.to_dataset(name="r"), "is a Dataset, expected a DataArray"),
        (lambda r: r.rename(trial="repeat"), r"expected \(\.\.\., trial, direction\)"),
        (lambda r: r.rename(direction="angle"), r"expected \(\.\.\., trial, direction\)"),
        (lambda r: r.drop_vars("direction"), "no coordinate 'direction'"),
        (lambda r: r > 0, None),
        (lambda r: r.astype(str), "expected numbers"),
        (lambda r: r.expand_dims("frame"), r"average them first with responses\.mean\('frame'\)"),
        (lambda r: r.isel(direction=[0, 1, 2]), r"has a counterpart 90 degrees away"),
        (
            lambda r: r[..., 0].assign_coords(direction=("trial", np.full(10, np.nan))),
            "responses has no trial with a direction",
        ),
        (lambda r: r.assign_coords(direction=r.direction.assign_attrs(units="gon")), "'gon'"),
    ],
)  # fmt: skip
def test_malformed_responses_are_refused(tuned, spoil, message):
    responses = spoil(tuned[0].isel(nucleus_id=slice(0, 3)))
    if message is None:
        assert mx.tuning.test(responses, n_permutations=10).p.notnull().all()
        return
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.tuning.test(responses)


def test_arguments_are_checked(tuned):
    responses = tuned[0].isel(nucleus_id=slice(0, 3))
    for arguments, message in (
        ({"against": "best"}, "expected one of orthogonal, opposite"),
        ({"method": "t"}, "expected one of permutation, wilcoxon"),
        ({"n_permutations": 0}, "expected a whole number from 1"),
        ({"against": "opposite", "pool_directions": True}, "pass pool_directions=False"),
        ({"seed": -1}, "expected a whole number from 0"),
    ):
        with pytest.raises(mx.errors.SchemaError, match=message):
            mx.tuning.test(responses, **arguments)
    with pytest.raises(mx.errors.SchemaError, match="n_folds is 1"):
        mx.tuning.cross_validate(responses, n_folds=1)
    folded = responses.isel(direction=slice(0, 8)).rename(direction="orientation")
    with pytest.raises(mx.errors.SchemaError, match="orientation has period 360"):
        mx.tuning.test(folded)
    folded.orientation.attrs["period"] = 180.0
    assert mx.tuning.test(folded, n_permutations=10).pref_ori.notnull().all()
    with pytest.raises(mx.errors.SchemaError, match="needs directions, found orientations"):
        mx.tuning.test(folded, "opposite")
    per_scan = responses.assign_coords(
        direction=(("nucleus_id", "direction"), np.tile(DIRECTIONS, (3, 1)))
    )
    with pytest.raises(mx.errors.SchemaError, match="one scan at a time"):
        mx.tuning.test(per_scan)


def test_a_direction_without_a_response_stays_on_the_axis():
    rng = np.random.default_rng(4)
    responses = xr.DataArray(
        rng.gamma(2, 1, (3, 6, 8)),
        dims=("nucleus_id", "trial", "direction"),
        coords={"direction": ("direction", np.arange(8) * 45.0, {"units": "degree"})},
    )
    responses[:, :, 3] = np.nan
    statistics = mx.tuning.trial_statistics(responses)
    assert statistics.direction.values.tolist() == responses.direction.values.tolist()
    assert np.isnan(statistics.rate[:, 3]).all()
    assert (statistics.n_trials[:, 3] == 0).all()
    rest = mx.tuning.trial_statistics(responses.isel(direction=[0, 1, 2, 4, 5, 6, 7]))
    xr.testing.assert_identical(
        statistics.isel(direction=[0, 1, 2, 4, 5, 6, 7]).drop_attrs(), rest.drop_attrs()
    )
    for method in ("permutation", "wilcoxon"):
        test = mx.tuning.test(responses, method=method, n_permutations=50)
        assert test.testable.all()
        assert not (test.pref_dir == 135.0).any()
    assert mx.tuning.cross_validate(responses).testable.all()
    # none for any neuron, and no neuron at all, are flags and shapes
    assert not mx.tuning.test(responses * np.nan).testable.any()
    assert mx.tuning.test(responses[:0]).p.shape == (0,)
    assert mx.tuning.trial_statistics(responses[:0]).rate.shape == (0, 8)


@pytest.mark.parametrize("values", [np.arange(8) * np.pi / 4, np.arange(8) * 45.0])
def test_angles_in_other_units_than_stated_are_refused(values):
    wrong = "degree" if values[-1] < 10 else "radian"
    responses = xr.DataArray(
        np.ones((1, 8)),
        dims=("nucleus_id", "trial"),
        coords={"direction": ("trial", values, {"units": wrong})},
    )
    for function in (mx.tuning.trial_statistics, mx.tuning.test, mx.tuning.cross_validate):
        with pytest.raises(
            mx.errors.SchemaError, match=f"direction has units '{wrong}'.*look like"
        ):
            function(responses)


def test_an_index_over_the_units_stays_and_taken_names_are_refused(tuned):
    keys = ["session", "scan_idx", "unit_id"]
    few = tuned[0][:3].rename({tuned[0].dims[0]: "scan_unit"}).reset_coords(drop=True)
    ids = ([4] * 3, [7] * 3, [1, 2, 3])
    coords = {k: ("scan_unit", np.array(v)) for k, v in zip(keys, ids, strict=True)}
    few = few.drop_vars("scan_unit", errors="ignore").assign_coords(coords)
    plain = mx.tuning.test(few, n_permutations=20)
    indexed = mx.tuning.test(few.set_index(scan_unit=keys), n_permutations=20)
    xr.testing.assert_identical(indexed.reset_index("scan_unit"), plain)
    for name, function in (
        ("q", mx.tuning.test),
        ("rate_error", mx.tuning.trial_statistics),
        ("agreement", mx.tuning.cross_validate),
    ):
        with pytest.raises(mx.errors.SchemaError, match=rf"responses has coordinates \['{name}'\]"):
            function(few.assign_coords({name: ("scan_unit", np.zeros(3))}))
