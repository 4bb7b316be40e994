"""Angles: conventions, units, differences, and what lies along them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import dataset

import microns_xr as mx
from microns_xr.angles import describe_angle, require_likely_units

UP = {"units": "degree", "angle_convention": "up_clockwise"}


def angle(values, period=180.0, **attrs):
    attrs = {**UP, "period": period, **attrs}
    name = "pref_ori" if period < 360 else "pref_dir"
    return xr.DataArray(values, dims="nucleus_id", name=name, attrs=attrs)


def convert(values, *args, **kw):
    return mx.angles.convert(values, *args, **kw).values.tolist()


def test_conventions_by_hand():
    # a horizontal bar moving up is, seen counter-clockwise from a vertical bar moving right, 90
    turned = "right_counterclockwise"
    assert convert(angle([0.0, 45.0, 90.0, 135.0]), turned) == [90, 45, 0, 135]
    assert convert(angle([0.0, 90.0, 180.0, 270.0], period=360.0), turned) == [90, 0, 270, 180]


@settings(deadline=None)
@given(st.lists(st.floats(0, 179.999), min_size=1, max_size=20))
def test_conversion_is_its_own_inverse(values):
    values = [*values, 0.25, 170.0]  # neither indices nor radians
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
    assert converted.attrs["history"][0] == "made"
    assert "angles.convert(convention='right_counterclockwise'" in "\n".join(
        converted.attrs["history"]
    )
    assert converted.direction.attrs["angle_convention_from"] == (
        "converted from up_clockwise: the registry"
    )
    assert dataset.attrs["history"] == "made"  # the text of the user is left as it is
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


INDICES = {
    "orientations": np.arange(8.0),
    "directions": np.arange(16.0),
    "with missing ones": np.array([-1.0, 0, 2, 3, 7, np.nan]),
    "from one": np.arange(1.0, 9.0),
    "radians": np.deg2rad(np.arange(8) * 22.5),
}


def _doors(**attrs):
    """Where angles come in: a function of values that state degrees."""
    degrees = {**UP, "period": 180.0, **attrs}
    ids = np.arange(11, 27)

    def units(values):
        values = np.resize(values, ids.size)
        return xr.Dataset(
            {
                "pref_ori": ("nucleus_id", values, degrees),
                "axon_completeness": ("nucleus_id", np.array(["full"] * ids.size, dtype=object)),
                "position": (("nucleus_id", "axis"), np.zeros((ids.size, 3))),
            },
            coords={"nucleus_id": ids, "axis": list("xyz")},
        )

    def rates(values, over="nucleus_id"):
        values = values[np.isfinite(values)]
        table = np.resize([1.0, 2.0, 4.0], (ids.size, values.size))
        coords = {over: ids, "orientation": ("orientation", values, degrees)}
        return xr.DataArray(table, coords, (over, "orientation"), name="rate_ori")

    def connectivity():
        size = np.ones((ids.size, ids.size), dtype=np.int64)
        return dataset(size > 0, size, size, "post", ids, ids)

    def functional(values):
        rows = units(values)[["pref_ori"]].rename(nucleus_id="scan_unit").reset_index("scan_unit")
        of_unit = dict.fromkeys(
            ("nucleus_id", "session", "scan_idx", "unit_id"), ("scan_unit", ids)
        )
        return rows.drop_vars("scan_unit").assign_coords(of_unit)

    even = np.arange(8) * 22.5

    def table(values):
        frame = pd.DataFrame({"nucleus_id": ids, "pref_ori": np.resize(values, ids.size)})
        how = {"angle_units": "degree", "angle_convention": "up_clockwise"}
        return mx.merge_table(units(even).drop_vars("pref_ori"), frame, **how)

    return {
        "merge_table": table,
        "merge_table of a Dataset": lambda v: mx.merge_table(
            units(even).drop_vars("pref_ori"), units(v)[["pref_ori"]]
        ),
        "tuning.fit": lambda v: mx.tuning.fit(rates(v), dim="orientation"),
        "tuning.selectivity": lambda v: mx.tuning.selectivity(rates(v), dim="orientation"),
        "trial_statistics": lambda v: mx.tuning.trial_statistics(
            rates(v).expand_dims(trial=2, axis=-1)
        ),
        "trial_statistics without units": lambda v: mx.tuning.trial_statistics(
            rates(v).drop_vars("orientation").expand_dims(trial=2, axis=-1)
            .assign_coords(orientation=v[np.isfinite(v)])
        ),
        "collapse_scans": lambda v: mx.tuning.collapse_scans(functional(v), how="first"),
        "input_currents": lambda v: mx.input_currents(connectivity(), rates(v)),
        "align_to_preferred": lambda v: mx.analysis.align_to_preferred(
            rates(even, "post_nucleus_id"), units(v), interval=None
        ),
        "align_to_preferred, currents": lambda v: mx.analysis.align_to_preferred(
            rates(v, "post_nucleus_id"), units(even), interval=None
        ),
        "like_to_like": lambda v: mx.analysis.like_to_like(
            connectivity(), units(v), presynaptic="all", interval=None
        ),
        "tuned_connections": lambda v: mx.analysis.tuned_connections(
            connectivity(), units(v), presynaptic="all"
        ),
        "plot.preferred_orientations": lambda v: mx.plot.preferred_orientations(units(v)),
        "plot.currents_by_angle": lambda v: mx.plot.currents_by_angle(rates(v, "post_nucleus_id")),
        "plot.cells_in_space": lambda v: mx.plot.cells_in_space(units(v), "pref_ori"),
        "angles.convert": lambda v: mx.angles.convert(units(v), units="radian"),
    }  # fmt: skip


@pytest.mark.parametrize("values", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("door", _doors().values(), ids=_doors())
def test_degrees_that_are_none_are_noticed(door, values):
    hint = "'radian'" if values is INDICES["radians"] else r"indices of stimuli.* \* 22\.5"
    with pytest.raises(mx.errors.SchemaError, match=hint):
        door(values)


def test_an_angle_without_a_convention_is_noticed_too():
    size = np.ones((8, 8), dtype=np.int64)
    connectivity = dataset(size > 0, size, size, "post", np.arange(8), np.arange(8))
    angles = ("orientation", INDICES["radians"], {"units": "degree"})
    rates = xr.DataArray(np.ones((8, 8)), {"nucleus_id": np.arange(8), "orientation": angles})
    with pytest.raises(mx.errors.SchemaError, match="look like radians"):
        mx.input_currents(connectivity, rates.transpose("nucleus_id", "orientation"))


@pytest.mark.parametrize(("attrs", "found"), [({}, "None"), ({"units": "deg"}, "'deg'")])
def test_an_angle_without_known_units_is_told_the_attribute_to_set(attrs, found):
    rates = xr.DataArray([1.0, 2.0], {"orientation": ("orientation", [0.0, 90.0], attrs)})
    hint = rf"units {found}, .*set orientation\.attrs\['units'\]"
    with pytest.raises(mx.errors.SchemaError, match=hint):
        mx.tuning.selectivity(rates, dim="orientation")
    rates.orientation.attrs["units"] = "degree"
    assert mx.tuning.selectivity(rates, dim="orientation").pref_ori.item() == 90.0


@pytest.mark.parametrize("door", _doors().values(), ids=_doors())
def test_degrees_pass_the_same_doors(door):
    door(np.arange(8) * 22.5)


# The units of a DataFrame are passed by keyword.
@pytest.mark.parametrize(
    "door", sorted(set(_doors()) - {"merge_table", "trial_statistics without units"})
)
@pytest.mark.parametrize("period", [np.pi, 360.0, 90.0])
def test_a_period_in_other_units_or_of_directions_is_noticed(door, period):
    with pytest.raises(mx.errors.SchemaError, match=f"period {period:.6g}|period {period}"):
        _doors(period=period)[door](np.arange(8) * 22.5)


@pytest.mark.parametrize("door", ["like_to_like", "align_to_preferred", "preferred_orientations"])
def test_an_angle_of_an_unknown_period_is_refused(door):
    """It may be an orientation or a direction."""
    ids = np.arange(11, 15)
    units = xr.Dataset({"phase": ("nucleus_id", [0.0, 20, 40, 170], UP)}, {"nucleus_id": ids})
    size = np.ones((4, 4), dtype=np.int64)
    shown = {**UP, "period": 180.0}
    currents = xr.DataArray(
        size.astype(float), {"post_nucleus_id": ids, "orientation": [0.0, 45, 90, 135]},
        ("post_nucleus_id", "orientation"),
    )  # fmt: skip
    currents.orientation.attrs = shown
    calls = {
        "like_to_like": lambda units: mx.analysis.like_to_like(
            dataset(size > 0, size, size, "post", ids, ids), units, angle="phase",
            presynaptic="all", interval=None,
        ),
        "align_to_preferred": lambda units: mx.analysis.align_to_preferred(
            currents, units, angle="phase", interval=None
        ),
        "preferred_orientations": lambda units: mx.plot.preferred_orientations(units, "phase"),
    }  # fmt: skip
    with pytest.raises(mx.errors.SchemaError, match="does not state its period"):
        calls[door](units)
    units.phase.attrs["period"] = 180.0
    calls[door](units)


def test_differences_of_integers_do_not_wrap():
    for dtype in ("u1", "u2", "i1", "i8", "f4"):
        a, b = np.array([10, 100], dtype), np.array([120, 5], dtype)
        assert mx.angles.difference(a, b, 180.0).tolist() == [70.0, -85.0]
    one = xr.DataArray(np.array([10], "u1"), dims="n", attrs={"units": "degree"})
    assert mx.angles.difference(one, 170, 180.0).values.tolist() == [20.0]
    for a, period in ((xr.Dataset(), 180.0), (1.0, 0), (1.0, float("nan")), ("1", 180.0)):
        with pytest.raises(mx.errors.SchemaError, match=r"expected (a number above 0|numbers)"):
            mx.angles.difference(a, 2.0, period)


def test_differences_of_angles_that_contradict_each_other():
    one = angle([10.0, 170.0])
    assert mx.angles.difference(one, one[::-1].values, 180.0).values.tolist() == [20.0, -20.0]
    for other, period, message in (
        (mx.angles.convert(one, units="radian"), 180.0, "units 'degree' and 'radian'"),
        (mx.angles.convert(one, "right_counterclockwise"), 180.0, "angle_convention 'up"),
        (angle([10.0, 170.0], period=360.0), 180.0, "pref_dir has a period of 360 degree"),
        (one, 360.0, "pref_ori has a period of 180 degree, but period is 360"),
        (one, np.pi, "but period is 3.14159"),
    ):
        with pytest.raises(mx.errors.SchemaError, match=message):
            mx.angles.difference(one, other, period)


def test_arguments_in_other_units_than_the_angle():
    ids = np.arange(11, 27)
    size = np.ones((16, 16), dtype=np.int64)
    pairs = dataset(size > 0, size, size, "post", ids, ids)
    values = np.resize(np.arange(8) * 22.5, 16)
    units = angle(values).assign_coords(nucleus_id=ids).to_dataset()
    options = {"presynaptic": "all", "interval": None}
    with pytest.raises(mx.errors.SchemaError, match=r"bins go to 1\.571, but the angle is in deg"):
        mx.analysis.like_to_like(pairs, units, bins=[0, np.pi / 4, np.pi / 2], **options)
    null = mx.analysis.null_models.permute_angles(units, n=3)
    radians = mx.angles.convert(units, units="radian")
    with pytest.raises(mx.errors.SchemaError, match=r"pref_ori of the null has .*degree"):
        mx.analysis.null_models.compare(
            mx.analysis.like_to_like, pairs, radians, null, presynaptic="all"
        )
    rates = xr.DataArray(
        [[4.0, 1, 2, 1]], {"direction": [0.0, 90, 180, 270]}, ("nucleus_id", "direction")
    )
    rates.direction.attrs = {**UP, "period": 360.0}
    fitted = mx.tuning.fit(rates, dim="direction")
    orientation = xr.DataArray([0.0, 90.0], attrs={**UP, "period": 180.0}, dims="orientation")
    with pytest.raises(mx.errors.SchemaError, match="angles have period 180 but the fit is over d"):
        mx.tuning.evaluate(fitted, orientation)


def test_indices_are_not_converted_into_degrees_that_pass():
    """90° - index would be taken for degrees."""
    units = angle(np.resize(np.arange(8.0), 16)).to_dataset(name="pref_ori")
    for call in (
        lambda: mx.angles.convert(units, "right_counterclockwise"),
        lambda: mx.angles.convert(units.pref_ori, units="radian"),
        lambda: mx.angles.difference(units.pref_ori, 45.0, 180.0),
    ):
        with pytest.raises(mx.errors.SchemaError, match=r"indices of stimuli.* \* 22\.5"):
            call()


def test_few_or_close_degrees_are_left_alone():
    for values in (
        [0, 1, 2],
        [0, 10, 20, 30],
        [2, 5, 17, 29],
        [40, 41, 42, 43, 50],
        [88.1, 89.5, 90.2, 111.0],
        np.arange(180),
    ):
        require_likely_units(np.asarray(values, dtype=float), "degree", "units.pref_ori")


def test_indices_of_a_real_table(real_data):
    """The preferred orientation of this table is 0 to 7, in steps of 22.5°."""
    table = pd.read_csv(real_data / "minnie65_real" / "v1300_unit_table.csv")
    table = table[table.tuning_type == "selective"]
    units = xr.Dataset(coords={"nucleus_id": np.sort(table.nucleus_id.to_numpy())})
    how = {"angle_units": "degree", "angle_convention": "up_clockwise"}
    with pytest.raises(mx.errors.SchemaError, match=r"from 0 to 7, .*pref_ori \* 22\.5"):
        mx.merge_table(units, table, ["pref_ori"], **how)
    table["pref_ori"] *= 22.5
    merged = mx.merge_table(units, table, ["pref_ori"], **how)
    assert np.unique(merged.pref_ori).tolist() == (np.arange(8) * 22.5).tolist()
    pairs = np.zeros((units.sizes["nucleus_id"], 50), dtype=np.int64)
    pairs[:50, 1] = 1
    ids = units.nucleus_id.values
    connectivity = dataset(pairs > 0, pairs, pairs, "post", ids, ids[:50], version=1300)
    merged["axon_completeness"] = ("nucleus_id", np.array(["full"] * ids.size, dtype=object))
    found = mx.analysis.like_to_like(connectivity, merged, presynaptic="all", interval=None)
    assert (found.n_pairs > 0).all()
