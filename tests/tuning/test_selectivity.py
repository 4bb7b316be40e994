"""Selectivity of measured curves: by hand, against a plain implementation, against tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fits import apart, labelled

import microns_xr as mx


def plain(r, dim):
    """One curve, angle by angle."""
    n = len(r)
    step = (360.0 if dim == "direction" else 180.0) / n
    theta = [np.deg2rad(i * step) for i in range(n)]
    total = sum(r)
    second = sum(v * np.exp(2j * t) for v, t in zip(r, theta, strict=True))
    folded = [(r[i] + r[i + n // 2]) / 2 for i in range(n // 2)] if dim == "direction" else list(r)
    best = folded.index(max(folded))
    orthogonal = folded[(best + len(folded) // 2) % len(folded)]
    result = {
        "gOSI": abs(second) / total,
        "OSI": (folded[best] - orthogonal) / (folded[best] + orthogonal),
        "pref_ori": np.rad2deg(np.angle(second) / 2) % 180,
    }
    if dim == "direction":
        first = sum(v * np.exp(1j * t) for v, t in zip(r, theta, strict=True))
        best = list(r).index(max(r))
        opposite = r[(best + n // 2) % n]
        result["gDSI"] = abs(first) / total
        result["DSI"] = (r[best] - opposite) / (r[best] + opposite)
        result["pref_dir"] = np.rad2deg(np.angle(first)) % 360
    return result


def test_three_neurons_by_hand():
    values = [[4.0, 1.0, 2.0, 1.0], [0.0, 5.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]
    rates = labelled(values).assign_coords(nucleus_id=[11, 12, 13])
    s = mx.tuning.selectivity(rates, dim="direction")
    np.testing.assert_allclose(s.gOSI, [4 / 8, 1, 0], atol=1e-15)
    np.testing.assert_allclose(s.gDSI, [2 / 8, 1, 0], atol=1e-15)
    np.testing.assert_allclose(s.OSI, [(3 - 1) / (3 + 1), 1, 0])
    np.testing.assert_allclose(s.DSI, [(4 - 2) / (4 + 2), 1, 0])
    np.testing.assert_allclose(s.pref_ori, [0, 90, np.nan], atol=1e-9)
    np.testing.assert_allclose(s.pref_dir, [0, 90, np.nan], atol=1e-9)
    assert s.nucleus_id.values.tolist() == [11, 12, 13]


@pytest.mark.parametrize(("dim", "n"), [("direction", 16), ("direction", 8), ("orientation", 8)])
def test_against_the_plain_implementation(dim, n):
    values = np.random.default_rng(0).gamma(2, 1, (50, n))
    s = mx.tuning.selectivity(labelled(values, dim), dim=dim)
    expected = [plain(list(r), dim) for r in values]
    assert set(s.data_vars) == set(expected[0])
    for name in s.data_vars:
        np.testing.assert_allclose(s[name], [e[name] for e in expected], rtol=1e-9)


def test_ties_take_the_first_angle():
    # 1 and 2 share the largest response; that opposite 1 is 0, that opposite 2 is 3.
    rates = labelled([1.0, 5.0, 5.0, 1.0, 1.0, 0.0, 3.0, 1.0])
    assert mx.tuning.selectivity(rates, dim="direction").DSI.item() == 1.0
    assert mx.tuning.selectivity(rates[::-1], dim="direction").DSI.item() == 1.0
    backwards = rates.copy(data=rates.values[::-1])
    assert mx.tuning.selectivity(backwards, dim="direction").DSI.item() == pytest.approx(0.25)


def test_where_there_is_no_index():
    values = np.ones((6, 16))
    values[:, 3] = 2.0
    values[1, 5] = np.nan
    values[2, 5] = np.inf
    values[3] = 0.0
    values[4] = -1.0
    values[5, :2] = np.inf, -np.inf
    s = mx.tuning.selectivity(labelled(values), dim="direction")
    for name in s.data_vars:
        assert s[name].notnull().values.tolist() == [True] + [False] * 5, name
    odd = mx.tuning.selectivity(labelled(np.arange(1.0, 6.0), "orientation"), dim="orientation")
    assert np.isnan(odd.OSI)
    assert 0 < odd.gOSI < 1
    six = mx.tuning.selectivity(labelled(np.arange(1.0, 7.0)), dim="direction")  # 60 degrees apart
    assert np.isnan(six.OSI)
    assert six.DSI.item() == pytest.approx(3 / 9)


def test_negative_responses_are_not_rates():
    """Indices of curves after subtraction of a baseline may exceed 1."""
    rates = labelled(np.array([[1.0, 2, 5, 2], [4.0, -1, -1, -1], [0.0, 0, 1, 0]]))
    for curves in (rates, rates.chunk()):
        with pytest.warns(UserWarning, match="1 of 3 curves of rates have negative values"):
            found = mx.tuning.selectivity(curves, dim="direction").compute()
        assert found.gDSI[1] > 1


def test_metadata_lazily_and_not():
    rates = labelled(np.random.default_rng(2).gamma(2, 1, (60, 3, 16)), units="radian")
    rates = mx.releases.stamp_release(rates, "minnie65", 661)
    s = mx.tuning.selectivity(rates, dim="direction")
    assert s.gOSI.dims == ("nucleus_id", "scan")
    assert s.materialization_version.item() == 661
    assert s.pref_dir.attrs["units"] == "radian"
    assert s.pref_ori.attrs["period"] == pytest.approx(np.pi)
    assert (s.pref_ori < np.pi).all()
    lazy = mx.tuning.selectivity(rates.chunk(nucleus_id=20, direction=4), dim="direction")
    assert all(v.chunks is not None for v in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), s)
    in_degrees = mx.tuning.selectivity(mx.angles.convert(rates, units="degree"), dim="direction")
    np.testing.assert_allclose(np.rad2deg(s.pref_dir), in_degrees.pref_dir)


curves = st.lists(st.floats(0.01, 100), min_size=16, max_size=16).map(np.array)


@settings(max_examples=50, deadline=None)
@given(values=curves, by=st.integers(0, 15), gain=st.floats(1e-3, 1e3), offset=st.floats(0, 359))
def test_turning_and_scaling(values, by, gain, offset):
    before = mx.tuning.selectivity(labelled(values), dim="direction")
    after = mx.tuning.selectivity(
        labelled(np.roll(values, by) * gain, first=offset), dim="direction"
    )
    for name in ("gOSI", "gDSI"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-9)
        assert 0 <= before[name] <= 1 + 1e-12
    for name, length in (("pref_dir", "gDSI"), ("pref_ori", "gOSI")):
        if before[length] > 1e-3:
            expected = before[name].item() + by * 22.5 + offset
            assert apart(after[name].item(), expected, before[name].attrs["period"]) < 1e-4
    second, largest = np.sort(values)[-2:]
    if second < largest * (1 - 1e-9):  # the gain does not round the two to a tie
        np.testing.assert_allclose(after.DSI, before.DSI, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(values=curves)
def test_folding_keeps_what_is_of_orientation(values):
    rate_dir = labelled(values).rename("rate_dir")
    folded = mx.tuning.orientation_from_direction(rate_dir)
    by_direction = mx.tuning.selectivity(rate_dir, dim="direction")
    by_orientation = mx.tuning.selectivity(folded, dim="orientation")
    for name in ("gOSI", "OSI"):
        np.testing.assert_allclose(by_orientation[name], by_direction[name], atol=1e-12)


def test_folding():
    values = np.arange(32.0).reshape(2, 16)
    values[1, 9] = np.nan
    rate_dir = labelled(values).rename("rate_dir").assign_coords(nucleus_id=[11, 12])
    rate_dir.attrs = {"units": "Hz", "long_name": "mean response by direction of motion"}
    folded = mx.tuning.orientation_from_direction(rate_dir)
    assert folded.name == "rate_ori"
    assert folded.dims == ("nucleus_id", "orientation")
    np.testing.assert_array_equal(folded[0], (values[0, :8] + values[0, 8:]) / 2)
    assert folded[1].isnull().values.tolist() == [False, True] + [False] * 6
    np.testing.assert_array_equal(folded.orientation, np.arange(8) * 22.5)
    assert folded.orientation.attrs["period"] == 180.0
    assert folded.orientation.attrs["angle_convention"] == "up_clockwise"
    assert folded.attrs["units"] == "Hz"
    assert "orientation" in folded.attrs["long_name"]
    shuffled = rate_dir.isel(direction=np.random.default_rng(0).permutation(16))
    xr.testing.assert_identical(mx.tuning.orientation_from_direction(shuffled), folded)
    first = mx.tuning.orientation_from_direction(rate_dir.transpose("direction", "nucleus_id"))
    assert first.dims == ("orientation", "nucleus_id")
    lazy = mx.tuning.orientation_from_direction(rate_dir.chunk(nucleus_id=1))
    assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(), folded)
    other = mx.tuning.orientation_from_direction(
        mx.angles.convert(rate_dir, "right_counterclockwise")
    )
    xr.testing.assert_allclose(other, mx.angles.convert(folded, "right_counterclockwise"))


def test_what_is_refused():
    with pytest.raises(mx.errors.SchemaError, match="even number"):
        mx.tuning.orientation_from_direction(labelled(np.ones(15)))
    rates = labelled(np.ones(16))
    for wrong in (rates[:-2], rates[::2][:-1], rates[:1]):
        with pytest.raises(mx.errors.SchemaError, match="evenly spaced"):
            mx.tuning.orientation_from_direction(wrong)
        with pytest.raises(mx.errors.SchemaError, match="evenly spaced"):
            mx.tuning.selectivity(wrong, dim="direction")
    with pytest.raises(mx.errors.SchemaError, match="expected numbers over 'direction'"):
        mx.tuning.orientation_from_direction(labelled(np.ones(8), "orientation"))
    with pytest.raises(mx.errors.SchemaError, match="already has an orientation"):
        mx.tuning.orientation_from_direction(rates.assign_coords(orientation=0.0))


def test_against_the_tables_of_the_demo(demo_release):
    """The properties table of the synthetic release holds indices of the very curves."""
    curves = demo_release.tuning_curves()
    table = demo_release.functional(kind="digital_twin")
    keys = ["session", "scan_idx", "unit_id"]
    s = mx.tuning.selectivity(curves.rate_dir, dim="direction")
    ours = s[["gOSI", "gDSI", "pref_ori", "pref_dir"]]
    ours = mx.angles.convert(
        ours, table.pref_ori.attrs["angle_convention"], table.pref_ori.attrs["units"]
    )
    names = ["gOSI", "gDSI", "pref_ori"]
    both = ours.reset_coords(keys)[[*keys, *names]].to_dataframe()[[*keys, *names]].merge(
        table.reset_coords(keys)[[*keys, *names]].to_dataframe()[[*keys, *names]], on=keys
    )  # fmt: skip
    both = both.dropna()
    assert len(both) > 50
    for name in ("gOSI", "gDSI"):
        np.testing.assert_allclose(both[f"{name}_x"], both[f"{name}_y"], atol=2e-6)
    period = table.pref_ori.attrs["period"]
    assert (apart(both["pref_ori_x"], both["pref_ori_y"], period) < 1e-3 * period).all()


def test_real_curves(real_data):
    release = mx.Release(661, source=real_data / "minnie65_v661")
    curves = release.tuning_curves()
    folded = mx.tuning.orientation_from_direction(curves.rate_dir)
    np.testing.assert_allclose(folded, curves.rate_ori, atol=1e-6)
    np.testing.assert_array_equal(folded.orientation, curves.orientation)
    assert folded.orientation.attrs == curves.orientation.attrs
    s = mx.tuning.selectivity(curves.rate_dir, dim="direction")
    expected = [plain(list(r), "direction") for r in curves.rate_dir.values[:200]]
    for name in s.data_vars:
        np.testing.assert_allclose(s[name][:200], [e[name] for e in expected], rtol=1e-9)
    assert ((s.gOSI >= 0) & (s.gOSI <= 1)).all()


def test_real_direction_selectivity_of_another_group(real_data):
    """Their `osi` is the DSI in units they call direction selective (gOSI is in no table)."""
    folder = real_data / "minnie65_real"
    units = pd.read_csv(folder / "v661_unit_table.csv")
    fits = pd.read_parquet(folder / "orientation_fits_v661.parquet").drop_duplicates("root_id")
    rates = fits.set_index("root_id")[[f"rate_{i:02d}" for i in range(16)]]
    chosen = units[units["tuning_type"] == "direction"]
    assert len(chosen) == 1182
    s = mx.tuning.selectivity(labelled(rates.loc[chosen["pt_root_id"]].to_numpy()), dim="direction")
    np.testing.assert_allclose(s.DSI, chosen["osi"], atol=1e-6)


def test_taken_names_are_refused():
    attrs = {"units": "degree", "angle_convention": "up_clockwise"}
    rates = xr.DataArray(
        np.ones((2, 8)),
        dims=("nucleus_id", "direction"),
        coords={
            "direction": ("direction", np.arange(8) * 45.0, attrs),
            "gOSI": ("nucleus_id", [0.5, 0.5]),
        },
    )
    with pytest.raises(mx.errors.SchemaError, match=r"rates has coordinates \['gOSI'\]"):
        mx.tuning.selectivity(rates, dim="direction")
