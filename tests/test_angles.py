"""Converting angles: what lies along them goes with them, and what they say of themselves."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.angles import describe_angle

UP = {"units": "degree", "angle_convention": "up_clockwise"}


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
