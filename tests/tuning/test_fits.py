"""Fits of tuning curves: by hand, against scipy, against recorded fits; flags; symmetries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, nnls

import microns_xr as mx
from microns_xr.tuning.fits import KAPPA_MAX

MODELS = ("von_mises", "single_von_mises", "double_von_mises")
PREFERRED = {
    "von_mises": "pref_ori",
    "single_von_mises": "pref_dir",
    "double_von_mises": "pref_dir",
}
PERIOD = {"direction": 360.0, "orientation": 180.0}


def labelled(values, dim="direction", units="degree", first=0.0, dims=None):
    values = np.asarray(values, dtype=float)
    n = values.shape[-1]
    angles = first + np.arange(n) * PERIOD[dim] / n
    period = PERIOD[dim]
    if units == "radian":
        angles, period = np.deg2rad(angles), np.deg2rad(period)
    attrs = {"units": units, "angle_convention": "up_clockwise", "period": period}
    dims = dims or (*("nucleus_id", "scan")[: values.ndim - 1], dim)
    return xr.DataArray(values, coords={dim: (dim, angles, attrs)}, dims=dims, name="rate")


def curve(model, degrees, a1=3.0, a2=0.0, k=2.0, phi=50.0, b=0.0):
    """The three models as they are written in the documentation."""
    d = np.deg2rad(np.asarray(degrees) - phi)
    if model == "von_mises":
        return a1 * np.exp(k * (np.cos(2 * d) - 1)) + b
    peak = a1 * np.exp(k * (np.cos(d) - 1)) + b
    if model == "double_von_mises":
        peak = peak + a2 * np.exp(k * (-np.cos(d) - 1))
    return peak


DIRECTIONS = np.arange(16) * 22.5


def apart(a, b, period):
    return np.abs(mx.angles.difference(a, b, period))


def test_three_neurons_by_hand():
    # exp(ln 2 (cos 2d - 1)): 1 at the peak, 1/2 at 45 degrees, 1/4 at 90; half height at
    # arccos(1 - 1) / 2 = 45 degrees.
    values = np.array(
        [
            [4.0, 2.0, 1.0, 2.0] * 2,
            [1.0, 2.0, 4.0, 2.0] * 2,
            [3.0] * 8,
        ]
    )
    rates = labelled(values).assign_coords(nucleus_id=[11, 12, 13])
    fit = mx.tuning.fit(rates, dim="direction", baseline=False)
    assert fit.nucleus_id.values.tolist() == [11, 12, 13]
    assert fit.status.values.tolist() == ["ok", "ok", "flat"]
    assert fit.converged.values.tolist() == [True, True, False]
    np.testing.assert_allclose(fit.amplitude, [4, 4, np.nan], rtol=1e-9)
    np.testing.assert_allclose(fit.kappa, [np.log(2), np.log(2), np.nan], rtol=1e-8)
    np.testing.assert_allclose(fit.pref_ori[1], 90.0, atol=1e-7)
    assert apart(fit.pref_ori[0].item(), 0.0, 180.0) < 1e-7
    np.testing.assert_allclose(fit.width, [45, 45, np.nan], rtol=1e-8)
    np.testing.assert_allclose(fit.r2, [1, 1, np.nan], rtol=1e-12)
    np.testing.assert_allclose(fit.baseline, [0, 0, np.nan])
    assert (fit.rss[:2] < 1e-15).all()


def test_metadata_and_leading_dims():
    rng = np.random.default_rng(1)
    rates = labelled(rng.gamma(2, 1, (5, 3, 16)), units="radian")
    rates = mx.releases.stamp_release(
        rates.assign_coords(nucleus_id=np.arange(5) + 2**60), "minnie65", 661
    )
    rates.attrs = {"units": "Hz", "history": "measured"}
    before = rates.copy(deep=True)
    fit = mx.tuning.fit(rates, dim="direction", model="double_von_mises")
    xr.testing.assert_identical(rates, before)
    assert fit.kappa.dims == ("nucleus_id", "scan")
    assert fit.nucleus_id.dtype == np.int64
    assert fit.materialization_version.item() == 661
    assert fit.pref_dir.attrs["units"] == "radian"
    assert fit.pref_dir.attrs["angle_convention"] == "up_clockwise"
    assert fit.pref_dir.attrs["period"] == pytest.approx(2 * np.pi)
    assert fit.width.attrs["units"] == "radian"
    assert fit.amplitude.attrs["units"] == "Hz"
    assert set(fit.kappa.attrs) == {"long_name", "units", "upper_bound"}  # none of the rates'
    assert fit.attrs["history"][0] == "measured"
    assert "double_von_mises" in "\n".join(fit.attrs["history"])
    moved = mx.tuning.fit(rates.transpose("direction", "scan", "nucleus_id"), dim="direction",
                       model="double_von_mises")  # fmt: skip
    xr.testing.assert_identical(moved.transpose(*fit.dims), fit)
    single = mx.tuning.fit(rates[2, 1], dim="direction", model="double_von_mises")
    assert single.kappa.item() == fit.kappa[2, 1].item()
    degrees = mx.tuning.fit(mx.angles.convert(rates, units="degree"), dim="direction",
                         model="double_von_mises")  # fmt: skip
    np.testing.assert_allclose(np.rad2deg(fit.pref_dir), degrees.pref_dir, rtol=1e-9)
    np.testing.assert_allclose(np.rad2deg(fit.width), degrees.width, rtol=1e-9)
    assert (fit.pref_dir <= 2 * np.pi).all()


def test_convention_is_carried_through():
    rates = labelled(curve("single_von_mises", DIRECTIONS, phi=30.0)[None])
    fit = mx.tuning.fit(rates, dim="direction", model="single_von_mises", baseline=False)
    other = mx.tuning.fit(
        mx.angles.convert(rates, "right_counterclockwise"),
        dim="direction",
        model="single_von_mises",
        baseline=False,
    )
    assert other.pref_dir.item() == pytest.approx(60.0)
    xr.testing.assert_allclose(
        mx.angles.convert(fit.pref_dir, "right_counterclockwise"), other.pref_dir
    )


def test_double_prefers_the_higher_peak():
    values = [
        curve("double_von_mises", DIRECTIONS, a1, a2, 2.5, 200.0, 0.5)
        for a1, a2 in ((3, 1), (1, 3))
    ]
    fit = mx.tuning.fit(labelled(values), dim="direction", model="double_von_mises")
    np.testing.assert_allclose(fit.pref_dir, [200.0, 20.0], atol=1e-6)
    np.testing.assert_allclose(fit.amplitude, 3.0, rtol=1e-8)
    np.testing.assert_allclose(fit.amplitude_opposite, 1.0, rtol=1e-8)
    np.testing.assert_allclose(fit.baseline, 0.5, rtol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_bad_curves_get_a_status(model):
    good = curve(model, DIRECTIONS, a2=1.0, b=1.0)
    bad = np.tile(good, (8, 1))
    bad[1, 3] = np.nan
    bad[2, 3] = np.inf
    bad[3, 3] = -0.1
    bad[4] = 7.0
    bad[5] = 0.0
    bad[6] = np.nan
    bad[7] = 0.0
    bad[7, 5] = 1.0
    fit = mx.tuning.fit(labelled(bad), dim="direction", model=model)
    words = ["ok", "missing", "missing", "negative", "flat", "flat", "missing"]
    assert fit.status.values[:7].tolist() == words
    assert fit.status.dtype == object
    numbers = fit.drop_vars(["status", "converged"])
    for name in numbers.data_vars:
        assert fit[name][1:7].isnull().all(), name
    assert fit.converged.values.tolist() == [True] + [False] * 6 + [bool(fit.status[7] == "narrow")]
    # One response alone is as sharp as a peak may be.
    assert fit.kappa[7] > 20
    assert fit.status[7] in ("narrow", "kappa_at_bound")
    assert float(fit.kappa.max()) <= KAPPA_MAX * (1 + 1e-12)


@pytest.mark.parametrize(
    ("model", "needed"), [("von_mises", 3), ("single_von_mises", 3), ("double_von_mises", 4)]
)
def test_too_short(model, needed):
    rng = np.random.default_rng(0)
    factor = 2 if model == "von_mises" else 1  # opposite directions are one orientation
    for baseline in (False, True):
        for n, short in ((needed + baseline - 1, True), (needed + baseline, False)):
            rates = labelled(rng.gamma(2, 1, (4, factor * n)))
            fit = mx.tuning.fit(rates, dim="direction", model=model, baseline=baseline)
            assert ((fit.status == "too_short") == short).all()
            assert (fit.kappa.isnull() == short).all()


def test_untuned_is_the_constant():
    ripple = np.tile([1.0, 2.0], 8)  # nothing that a single peak could follow
    rates = labelled([ripple])
    fit = mx.tuning.fit(rates, dim="direction", model="single_von_mises", baseline=False)
    assert fit.status.item() == "untuned"
    assert not fit.converged
    assert np.isnan(fit.pref_dir)
    assert np.isnan(fit.width)
    np.testing.assert_allclose(fit.amplitude, 1.5)
    np.testing.assert_allclose(fit.kappa, 0.0)
    np.testing.assert_allclose(fit.rss, 16 * 0.25)
    np.testing.assert_allclose(fit.r2, 0.0, atol=1e-12)
    np.testing.assert_allclose(mx.tuning.evaluate(fit, [0.0, 77.0]), 1.5)


def test_kappa_at_bound_is_the_best_within_the_bounds():
    values = np.full((1, 16), 0.2)
    values[0, 4] = 5.0
    fit = mx.tuning.fit(labelled(values), dim="direction", model="single_von_mises")
    assert fit.status.item() == "kappa_at_bound"
    assert not fit.converged
    assert fit.kappa.item() == pytest.approx(KAPPA_MAX)
    phi = np.linspace(70, 110, 4001)
    shapes = np.exp(KAPPA_MAX * (np.cos(np.deg2rad(DIRECTIONS - phi[:, None])) - 1))
    best = min(
        np.linalg.lstsq(np.column_stack([s, np.ones(16)]), values[0], rcond=None)[1][0]
        for s in shapes
    )
    assert fit.rss.item() <= best * (1 + 1e-9)


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_no_worse_than_scipy_from_the_best_of_a_grid(model, baseline):
    rng = np.random.default_rng(5)
    noise = rng.gamma(2.0, 1.0, (2, 16))
    tuned = curve(model, DIRECTIONS, 3.0, 1.0, 2.0, 70.0, 0.5) * rng.normal(1, 0.2, (2, 16))
    values = np.concatenate([noise, np.abs(tuned)])
    fit = mx.tuning.fit(labelled(values), dim="direction", model=model, baseline=baseline)
    double = model == "double_von_mises"

    def columns(phi, k):
        made = [curve(model, DIRECTIONS, 1.0, 0.0, k, phi)]
        if double:
            made.append(curve(model, DIRECTIONS, 0.0, 1.0, k, phi))
        return np.column_stack([*made, np.ones(16)] if baseline else made)

    def residual(p, y):
        return columns(np.rad2deg(p[0]), p[1]) @ p[2:] - y

    grid = [(phi, k) for phi in np.arange(0, 360, 9.0) for k in np.geomspace(0.1, 48, 20)]
    made = [columns(*point) for point in grid]
    for row, y in enumerate(values):
        linear = [nnls(m, y) for m in made]
        at = min(range(len(grid)), key=lambda i: linear[i][1])
        start = [np.deg2rad(grid[at][0]), grid[at][1], *linear[at][0]]
        bounds = (
            [-np.inf, 0, *[0] * len(linear[at][0])],
            [np.inf, KAPPA_MAX] + [np.inf] * len(linear[at][0]),
        )
        polished = least_squares(residual, start, args=(y,), bounds=bounds, max_nfev=200)
        best = min(linear[at][1] ** 2, 2 * polished.cost)
        assert fit.rss[row].item() <= best * (1 + 1e-6)
        drawn = curve(model, DIRECTIONS, *[fit[n][row].item() if n in fit else 0.0 for n in (
            "amplitude", "amplitude_opposite", "kappa", PREFERRED[model], "baseline")])  # fmt: skip
        assert ((drawn - y) ** 2).sum() == pytest.approx(fit.rss[row].item(), rel=1e-9)
        assert fit.r2[row].item() == pytest.approx(
            1 - fit.rss[row].item() / ((y - y.mean()) ** 2).sum()
        )


planted = st.fixed_dictionaries(
    {
        "a1": st.floats(0.5, 50),
        "share": st.floats(0, 0.9),
        "k": st.floats(0.5, 8),
        "phi": st.floats(0, 359.9),
        "b": st.floats(0.05, 2),
    }
)


@settings(max_examples=60, deadline=None)
@given(model=st.sampled_from(MODELS), p=planted)
def test_planted_parameters_are_recovered(model, p):
    double = model == "double_von_mises"
    b = p["b"] * p["a1"]
    values = curve(model, DIRECTIONS, p["a1"], p["share"] * p["a1"] * double, p["k"], p["phi"], b)
    fit = mx.tuning.fit(labelled(values), dim="direction", model=model)
    assert fit.converged
    # Two nearly equal broad peaks leave a long flat valley, along which the search comes to rest.
    rtol = 1e-3 if double else 1e-4
    period = 180.0 if model == "von_mises" else 360.0
    assert apart(fit[PREFERRED[model]].item(), p["phi"], period) < 1e-3
    assert 0 <= fit[PREFERRED[model]] < period
    np.testing.assert_allclose(fit.kappa, p["k"], rtol=rtol)
    np.testing.assert_allclose(fit.amplitude, p["a1"], rtol=rtol)
    np.testing.assert_allclose(fit.baseline, b, rtol=10 * rtol)
    if double:
        np.testing.assert_allclose(
            fit.amplitude_opposite, p["share"] * p["a1"], atol=rtol * p["a1"]
        )
    half = np.rad2deg(np.arccos(1 - np.log(2) / p["k"])) / (360 / period)
    np.testing.assert_allclose(fit.width, half, rtol=rtol)
    peak = mx.tuning.evaluate(fit, fit[PREFERRED[model]].values + np.array([0.0, half]))
    height = (peak - fit.baseline).values
    if not double:
        assert height[1] == pytest.approx(height[0] / 2, rel=1e-3)


noisy = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).gamma(2.0, 1.0, 16) + 0.1
)


@settings(max_examples=30, deadline=None)
@given(model=st.sampled_from(MODELS), baseline=st.booleans(), values=noisy, by=st.integers(1, 15),
       offset=st.floats(0, 22))  # fmt: skip
def test_turning_the_curve_turns_the_preferred_angle(model, baseline, values, by, offset):
    options = {"dim": "direction", "model": model, "baseline": baseline}
    fit = mx.tuning.fit(labelled(values), **options)
    turned = mx.tuning.fit(labelled(np.roll(values, by), first=offset), **options)
    np.testing.assert_allclose(turned.rss, fit.rss, rtol=1e-6)
    name = PREFERRED[model]
    period = fit[name].attrs["period"]
    if fit.status.item() == turned.status.item() == "ok":
        np.testing.assert_allclose(turned.kappa, fit.kappa, rtol=1e-2)
        expected = fit[name].item() + by * 22.5 + offset
        assert apart(turned[name].item(), expected, period) < 0.05


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(MODELS), baseline=st.booleans(), values=noisy, gain=st.floats(1e-6, 1e6)
)
def test_scaling_the_curve_scales_amplitudes_alone(model, baseline, values, gain):
    options = {"dim": "direction", "model": model, "baseline": baseline}
    fit = mx.tuning.fit(labelled(values), **options)
    louder = mx.tuning.fit(labelled(values * gain), **options)
    np.testing.assert_allclose(louder.rss, fit.rss * gain**2, rtol=1e-6)
    if fit.status.item() == louder.status.item() == "ok":
        np.testing.assert_allclose(louder.amplitude, fit.amplitude * gain, rtol=1e-2)
        np.testing.assert_allclose(louder.kappa, fit.kappa, rtol=1e-2)


def test_orientations_and_directions_of_the_same_curve():
    values = curve("von_mises", DIRECTIONS, phi=130.0, b=0.4)[None]
    by_direction = mx.tuning.fit(labelled(values), dim="direction")
    by_orientation = mx.tuning.fit(labelled(values[:, :8], "orientation"), dim="orientation")
    for name in ("pref_ori", "kappa", "amplitude", "baseline", "width"):
        np.testing.assert_allclose(by_direction[name], by_orientation[name], rtol=1e-7)
    assert by_orientation.pref_ori.attrs["period"] == 180.0


def test_evaluate_draws_the_fit():
    rng = np.random.default_rng(3)
    rates = labelled(rng.gamma(2, 1, (6, 16)))
    rates[2] = np.nan
    for model in MODELS:
        fit = mx.tuning.fit(rates, dim="direction", model=model)
        drawn = mx.tuning.evaluate(fit, rates.direction)
        assert drawn.dims == ("nucleus_id", "direction")
        assert drawn.direction.attrs["period"] == 360.0
        np.testing.assert_allclose(
            ((drawn - rates) ** 2).sum("direction", skipna=False), fit.rss, rtol=1e-9
        )
        assert drawn[2].isnull().all()
    with pytest.raises(mx.errors.SchemaError, match=r"angles\.convert"):
        mx.tuning.evaluate(fit, mx.angles.convert(rates, units="radian").direction)
    with pytest.raises(mx.errors.SchemaError, match="one dimension"):
        mx.tuning.evaluate(fit, [[0.0]])
    with pytest.raises(mx.errors.SchemaError, match=r"mx\.tuning\.fit returns"):
        mx.tuning.evaluate(fit.drop_attrs(), [0.0])


def test_chunked_rates_are_fitted_when_computed():
    rng = np.random.default_rng(4)
    rates = labelled(rng.gamma(2, 1, (700, 2, 16)))
    eager = mx.tuning.fit(rates, dim="direction", model="double_von_mises")
    lazy = mx.tuning.fit(
        rates.chunk(nucleus_id=200, direction=8), dim="direction", model="double_von_mises"
    )
    assert all(v.chunks is not None for v in lazy.data_vars.values())
    xr.testing.assert_identical(lazy.compute(), eager)

    def fail(block):
        if block.size:
            raise AssertionError("computed early")
        return block

    untouched = rates.chunk(nucleus_id=200).copy()
    untouched.data = untouched.data.map_blocks(fail, meta=np.empty((0, 0, 0)))
    mx.tuning.fit(untouched, dim="direction")


def test_many_curves_are_those_fitted_alone():
    values = np.random.default_rng(6).gamma(2, 1, (1500, 8))
    rates = labelled(values, "orientation")
    fit = mx.tuning.fit(rates, dim="orientation")
    for row in (0, 511, 512, 1499):
        alone = mx.tuning.fit(rates[row], dim="orientation")
        xr.testing.assert_identical(alone, fit.isel(nucleus_id=row))
    empty = mx.tuning.fit(rates[:0], dim="orientation")
    assert empty.sizes == {"nucleus_id": 0}


def test_what_is_refused():
    rates = labelled(np.ones((2, 16)))
    with pytest.raises(mx.errors.SchemaError, match="model is 'gauss'"):
        mx.tuning.fit(rates, dim="direction", model="gauss")
    folded = labelled(np.ones((2, 8)), "orientation")
    for model in MODELS[1:]:
        with pytest.raises(mx.errors.SchemaError, match="whole turn"):
            mx.tuning.fit(folded, dim="orientation", model=model)
    with pytest.raises(mx.errors.SchemaError, match="dim is 'time'"):
        mx.tuning.fit(rates, dim="time")
    with pytest.raises(mx.errors.SchemaError, match="expected numbers over 'orientation'"):
        mx.tuning.fit(rates, dim="orientation")
    with pytest.raises(mx.errors.SchemaError, match="expected a DataArray"):
        mx.tuning.fit(rates.to_dataset(), dim="direction")
    with pytest.raises(mx.errors.SchemaError, match="no coordinate"):
        mx.tuning.fit(rates.drop_vars("direction"), dim="direction")
    for name, value, message in (
        ("units", "furlong", "units"),
        ("units", "radian", "period"),
        ("angle_convention", "mine", "angle_convention"),
        ("period", 180.0, "period"),
    ):
        wrong = rates.copy(deep=True)
        wrong.direction.attrs[name] = value
        with pytest.raises(mx.errors.SchemaError, match=message):
            mx.tuning.fit(wrong, dim="direction")


def test_units_that_contradict_the_angles():
    for units, other, message in (
        ("degree", "radian", "look like radians"),
        ("radian", "degree", "look like degrees"),
    ):
        rates = labelled(np.ones((1, 16)), units=units)
        other_rates = labelled(np.ones((1, 16)), units=other)
        attrs = rates.direction.attrs
        mixed = rates.assign_coords(direction=("direction", other_rates.direction.values, attrs))
        with pytest.raises(mx.errors.SchemaError, match=message):
            mx.tuning.fit(mixed, dim="direction")
    twice = labelled(np.ones((1, 5)))
    angles = ("direction", [0.0, 90.0, 180.0, 270.0, 360.0], twice.direction.attrs)
    with pytest.raises(mx.errors.SchemaError, match="repeats"):
        mx.tuning.fit(twice.assign_coords(direction=angles), dim="direction")


def test_demo_curves(demo_release):
    curves = demo_release.tuning_curves()
    fit = mx.tuning.fit(curves.rate_dir, dim="direction", model="double_von_mises")
    assert fit.sizes["scan_unit"] == curves.sizes["scan_unit"]
    assert float(fit.converged.mean()) > 0.8
    assert fit.r2.median() > 0.5
    assert fit.nucleus_id.identical(curves.nucleus_id)


@pytest.mark.parametrize(
    ("kind", "model", "harmonic"), [("double", "von_mises", 2), ("single", "single_von_mises", 1)]
)
def test_real_curves_against_recorded_fits(real_data, kind, model, harmonic):
    table = pd.read_parquet(real_data / "minnie65_real" / "orientation_fits_v661.parquet")
    rows = table[table["tuning_type"] == kind]
    values = rows[[f"rate_{i:02d}" for i in range(16)]].to_numpy()
    a, phi, k = (rows[[name]].to_numpy() for name in ("A", "phi", "k"))
    x = np.arange(16) * np.pi / 8
    recorded = a * np.exp(k * (np.cos(harmonic * (x - phi)) - 1))
    rss = ((values - recorded) ** 2).sum(axis=1)
    fit = mx.tuning.fit(labelled(values), dim="direction", model=model, baseline=False)
    assert len(rows) == 6034
    assert np.mean(fit.rss.values <= rss * (1 + 1e-6)) >= 0.999
    assert float(fit.converged.mean()) > 0.999
    # The recorded phi is the measured direction of the largest response, not a fitted angle.
    assert (np.rint(phi[:, 0] / (np.pi / 8)) == values.argmax(axis=1)).all()
    away = apart(fit[PREFERRED[model]].values, np.rad2deg(phi[:, 0]), 360.0 / harmonic)
    assert np.mean(away <= 45) > (0.9 if harmonic == 2 else 0.7)


def test_an_index_over_the_units_stays_and_taken_names_are_refused():
    keys = ["session", "scan_idx", "unit_id"]
    rates = labelled(np.random.default_rng(8).gamma(2, 1, (3, 16))).rename(nucleus_id="scan_unit")
    rates = rates.drop_vars("scan_unit", errors="ignore")
    ids = ([4] * 3, [7] * 3, [1, 2, 3])
    coords = {k: ("scan_unit", np.array(v)) for k, v in zip(keys, ids, strict=True)}
    plain = mx.tuning.fit(rates.assign_coords(coords), dim="direction")
    indexed = mx.tuning.fit(rates.assign_coords(coords).set_index(scan_unit=keys), dim="direction")
    xr.testing.assert_identical(indexed.reset_index("scan_unit"), plain)
    angle = {"units": "degree", "angle_convention": "up_clockwise"}
    taken = rates.assign_coords(pref_ori=("scan_unit", np.zeros(3), angle))
    with pytest.raises(
        mx.errors.SchemaError, match=r"rates has coordinates \['pref_ori'\].*drop_vars"
    ):
        mx.tuning.fit(taken, dim="direction")
    fitted = mx.tuning.fit(
        taken, dim="direction", model="single_von_mises"
    )  # which calls it pref_dir
    assert fitted.pref_ori.values.tolist() == [0, 0, 0]


def test_narrow_is_half_a_step_of_the_angles():
    """Half widths of 20 and 30 degrees, where angles are 45 degrees apart."""
    angle = np.arange(8) * 45.0
    kappa = np.log(2) / (1 - np.cos(np.deg2rad([[20.0], [30.0]])))
    rates = np.exp(kappa * (np.cos(np.deg2rad(angle - 10)) - 1))
    coords = {"direction": ("direction", angle, {"units": "degree"})}
    curves = xr.DataArray(rates, coords, ("nucleus_id", "direction"))
    found = mx.tuning.fit(curves, dim="direction", model="single_von_mises")
    np.testing.assert_allclose(found.width, [20, 30], rtol=1e-4)
    assert found.status.values.tolist() == ["narrow", "ok"]
