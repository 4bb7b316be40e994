"""Angles: conventions, units, differences, and what lies along them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.angles import describe_angle

UP = {"units": "degree", "angle_convention": "up_clockwise"}


def angle(values, period=180.0, **attrs):
    attrs = {**UP, "period": period, **attrs}
    return xr.DataArray(values, dims="nucleus_id", name="pref_ori", attrs=attrs)


def convert(values, *args, **kw):
    return mx.angles.convert(values, *args, **kw).values.tolist()


def test_conventions_by_hand():
    # a horizontal bar moving up is, seen counter-clockwise from a vertical bar moving right, 90
    turned = "right_counterclockwise"
    assert convert(angle([0.0, 45.0, 90.0, 135.0]), turned) == [90, 45, 0, 135]
    assert convert(angle([0.0, 90.0, 180.0, 270.0], period=360.0), turned) == [90, 0, 270, 180]


@given(st.lists(st.floats(0, 179.999), min_size=1, max_size=20))
def test_conversion_is_its_own_inverse(values):
    there = mx.angles.convert(angle(values), "right_counterclockwise")
    back = mx.angles.convert(there, "up_clockwise")
    assert np.abs(mx.angles.difference(back.values, np.array(values), 180.0)).max() < 1e-9
    assert (there.values >= 0).all()
    assert (there.values < 180).all()


def test_degrees_and_radians():
    radian = mx.angles.convert(angle([90.0]), units="radian")
    assert radian.values[0] == pytest.approx(np.pi / 2)
    assert radian.attrs["period"] == pytest.approx(np.pi)
    assert mx.angles.convert(radian, units="degree").values[0] == pytest.approx(90)


def test_a_dataset_converts_its_coordinates_with_the_data_they_label():
    directions = xr.Variable("direction", [0.0, 90.0, 180.0, 270.0], {**UP, "period": 360.0})
    dataset = xr.Dataset(
        {"rate_dir": (("nucleus_id", "direction"), [[1.0, 2, 3, 4]]), "pref_ori": angle([10.0])},
        coords={"direction": directions},
    )
    converted = mx.angles.convert(dataset, "right_counterclockwise")
    assert converted.direction.values.tolist() == [0, 90, 180, 270]
    assert converted.rate_dir.values.tolist() == [[2, 1, 4, 3]]
    assert converted.pref_ori.values.tolist() == [80]
    assert dataset.pref_ori.values.tolist() == [10]
    assert convert(dataset.rate_dir, "right_counterclockwise") == [[2, 1, 4, 3]]


@pytest.mark.parametrize(
    ("angles", "wanted", "message"),
    [
        (angle([1.0], units=None), {}, "has units None"),
        (xr.DataArray([1.0], attrs={"units": "degree"}), {}, "has angle_convention None"),
        (xr.Dataset(), {}, "nothing to convert"),
        (angle([1.0]), {"convention": "clockwise"}, "convention is 'clockwise'"),
        (angle([1.0]), {"units": "deg"}, "units is 'deg'"),
    ],
)
def test_angles_that_cannot_be_converted(angles, wanted, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.angles.convert(angles, **{"convention": "up_clockwise", **wanted})


@given(st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_circular_difference_is_in_half_a_turn(a, b):
    d = mx.angles.difference(a, b, 180.0)
    assert -90 <= d <= 90
    turns = (d - (a - b)) / 180
    assert turns == pytest.approx(round(turns), abs=1e-6)


def curves(n=5, seed=0):
    """Rates, preferred angles as the angle of the largest rate, angles in an order of no meaning."""
    rng = np.random.default_rng(seed)
    directions = rng.permutation(16) * 22.5
    rate_dir = xr.DataArray(
        rng.random((n, 16)),
        dims=("nucleus_id", "direction"),
        coords={"direction": ("direction", directions, {**UP, "period": 360.0})},
        name="rate_dir",
    )
    return xr.Dataset(
        {"rate_dir": rate_dir, "rate_ori": mx.tuning.orientation_from_direction(rate_dir)}
    )


def with_preferred(dataset):
    largest = {"pref_dir": ("rate_dir", "direction"), "pref_ori": ("rate_ori", "orientation")}
    return dataset.assign(
        {
            name: (
                "nucleus_id",
                dataset[dim].values[dataset[rates].argmax(dim)],
                dict(dataset[dim].attrs),
            )
            for name, (rates, dim) in largest.items()
        }
    )


@pytest.mark.parametrize("units", ["degree", "radian"])
def test_preferred_angles_stay_those_of_the_largest_rates(units):
    before = with_preferred(curves())
    after = mx.angles.convert(before, "right_counterclockwise", units)
    again = with_preferred(after)
    for name in ("pref_dir", "pref_ori"):
        np.testing.assert_allclose(after[name], again[name], atol=1e-12)
        assert after[name].attrs["period"] == again[name].attrs["period"]
    assert (np.diff(after.direction) > 0).all()
    assert (np.diff(after.orientation) > 0).all()
    # what was measured at 22.5 degrees clockwise from up is at 67.5 from the right
    turn = 1.0 if units == "degree" else np.pi / 180
    for there, here in ((22.5, 67.5), (180.0, 270.0)):
        np.testing.assert_array_equal(
            after.rate_dir.sel(direction=here * turn, method="nearest"),
            before.rate_dir.sel(direction=there),
        )


def test_all_angles_along_a_dimension_are_sorted_with_it():
    dataset = curves()
    angles = dataset.direction.variable
    for other in (
        dataset.assign(shown=angles),
        dataset.assign_coords(shown=angles),
        dataset[["rate_dir"]].assign(shown=angles),
    ):
        after = mx.angles.convert(other, "right_counterclockwise")
        np.testing.assert_array_equal(after.shown.values, after.direction.values)
    after = mx.angles.convert(dataset.rate_dir.assign_coords(shown=angles), "up_clockwise")
    np.testing.assert_array_equal(after.shown.values, after.direction.values)


def test_an_array_of_angles_along_angles():
    pref = xr.DataArray([10.0, 20.0], dims="orientation", name="pref_ori", attrs=UP)
    pref = pref.assign_coords(orientation=("orientation", [0.0, 90.0], {**UP, "period": 180.0}))
    turned = mx.angles.convert(pref, "right_counterclockwise")
    assert turned.orientation.values.tolist() == [0.0, 90.0]
    assert turned.values.tolist() == [70.0, 80.0]


def test_orientations_without_a_period_come_round_in_half_a_turn():
    pref_ori = xr.DataArray([120.0, 30.0], dims="nucleus_id", name="pref_ori", attrs=UP)
    assert describe_angle(pref_ori, "units.pref_ori")[2] == 180.0
    assert mx.angles.convert(pref_ori, "right_counterclockwise").values.tolist() == [150.0, 60.0]
    pref_dir = pref_ori.rename("pref_dir")
    assert mx.angles.convert(pref_dir, "right_counterclockwise").values.tolist() == [330.0, 60.0]
    orientation = xr.DataArray(
        [1.0, 2.0, 3.0], dims="orientation", coords={"orientation": ("orientation", [0, 60, 120])}
    )
    orientation.orientation.attrs = UP
    converted = mx.angles.convert(orientation, "right_counterclockwise")
    assert converted.orientation.values.tolist() == [30.0, 90.0, 150.0]
    assert converted.values.tolist() == [2.0, 1.0, 3.0]


def test_chunked_angles_are_converted_when_computed():
    calls = []

    def note(block):
        calls.append(block.shape)
        return block

    values = da.from_array(np.array([0.0, 30.0, 100.0]), chunks=2).map_blocks(note, dtype=float)
    attrs = {**UP, "period": 180.0}
    dataset = xr.Dataset({"pref_ori": ("nucleus_id", values, attrs)})
    calls.clear()
    lazy = mx.angles.convert(dataset, "right_counterclockwise", "radian")
    assert not calls
    np.testing.assert_allclose(np.rad2deg(lazy.pref_ori.values), [90.0, 60.0, 170.0])


def test_a_converted_dataset_says_so():
    dataset = curves().assign_attrs(history="made")
    dataset.direction.attrs["angle_convention_from"] = "the registry"
    converted = mx.angles.convert(dataset, "right_counterclockwise")
    assert converted.attrs["history"].splitlines()[0] == "made"
    assert "angles.convert(convention='right_counterclockwise'" in converted.attrs["history"]
    assert converted.direction.attrs["angle_convention_from"] == (
        "converted from up_clockwise: the registry"
    )
    assert dataset.attrs["history"] == "made"
    same = mx.angles.convert(dataset, "up_clockwise")
    assert same.direction.attrs["angle_convention_from"] == "the registry"


def test_converted_angles_stay_below_one_period():
    just_over = xr.DataArray(
        [90.00000000000001, 90.0],
        dims="scan_unit",
        name="pref_ori",
        attrs={"units": "degree", "angle_convention": "up_clockwise", "period": 180.0},
    )
    assert mx.angles.convert(just_over, "right_counterclockwise").values.tolist() == [0, 0]
    assert mx.angles.convert(just_over[0], "right_counterclockwise").item() == 0
