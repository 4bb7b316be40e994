"""Angles, releases, provenance, columns, and the direction of imports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.columns import id_column, parse_arrays, positions, text_column
from microns_xr.errors import unknown_label
from microns_xr.provenance import release_of, require_same_release
from microns_xr.releases import ROLES, table_spec
from microns_xr.schema import KINDS, validate


def angle(values, units="degree", convention="up_clockwise", period=180.0, **kw):
    return xr.DataArray(
        values, dims="nucleus_id", name="pref_ori",
        attrs={"units": units, "angle_convention": convention, "period": period}, **kw,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ angles


def test_conventions_by_hand():
    # a horizontal bar moving up is, seen counter-clockwise from a vertical bar moving right, 90
    assert mx.angles.convert(
        angle([0.0, 45.0, 90.0, 135.0]), "right_counterclockwise"
    ).values.tolist() == [90, 45, 0, 135]
    direction = angle([0.0, 90.0, 180.0, 270.0], period=360.0)
    assert mx.angles.convert(direction, "right_counterclockwise").values.tolist() == [
        90,
        0,
        270,
        180,
    ]


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
    directions = xr.Variable(
        "direction",
        [0.0, 90.0, 180.0, 270.0],
        {"units": "degree", "angle_convention": "up_clockwise", "period": 360.0},
    )
    dataset = xr.Dataset(
        {"rate_dir": (("nucleus_id", "direction"), [[1.0, 2, 3, 4]])},
        coords={"direction": directions},
    )
    dataset["pref_ori"] = angle([10.0])
    converted = mx.angles.convert(dataset, "right_counterclockwise")
    assert converted.direction.values.tolist() == [0, 90, 180, 270]
    assert converted.rate_dir.values.tolist() == [[2, 1, 4, 3]]
    assert converted.pref_ori.values.tolist() == [80]
    assert dataset.pref_ori.values.tolist() == [10]
    assert mx.angles.convert(dataset.rate_dir, "right_counterclockwise").values.tolist() == [
        [2, 1, 4, 3]
    ]


def test_angles_that_state_nothing_are_refused():
    with pytest.raises(mx.errors.SchemaError, match="has units None"):
        mx.angles.convert(angle([1.0], units=None), "up_clockwise")
    with pytest.raises(mx.errors.SchemaError, match="has angle_convention None"):
        mx.angles.convert(xr.DataArray([1.0], attrs={"units": "degree"}), "up_clockwise")
    with pytest.raises(mx.errors.SchemaError, match="nothing to convert"):
        mx.angles.convert(xr.Dataset(), "up_clockwise")
    with pytest.raises(mx.errors.SchemaError, match="convention is 'clockwise'"):
        mx.angles.convert(angle([1.0]), "clockwise")
    with pytest.raises(mx.errors.SchemaError, match="units is 'deg'"):
        mx.angles.convert(angle([1.0]), units="deg")


@given(st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_circular_difference_is_in_half_a_turn(a, b):
    d = mx.angles.difference(a, b, 180.0)
    assert -90 <= d <= 90
    turns = (d - (a - b)) / 180
    assert turns == pytest.approx(round(turns), abs=1e-6)


# ---------------------------------------------------------------------------------- releases


@pytest.mark.parametrize("version", mx.supported_versions())
def test_every_release_names_known_roles_and_stated_angles(version):
    spec = mx.releases.release_spec(version)
    assert (
        {"nucleus", "celltype", "proofreading", "coregistration", "synapses"}
        <= set(spec.tables)
        <= set(ROLES)
    )
    assert spec.has("brain_area") == (version >= 1078)
    assert spec.has("celltype_corrections") == (version >= 1718)
    if spec.has("functional_properties"):
        table = spec.table_of("functional_properties")
        modern = version >= 1507
        assert table.angle_units == ("degree" if modern else "radian")
        assert table.angle_convention == ("right_counterclockwise" if modern else "up_clockwise")
    types = spec.table_of("celltype_fine" if spec.has("celltype_fine") else "celltype")
    assert list(types.layers) == ["L1", "L2/3", "L4", "L5", "L6", "WM"]


@pytest.mark.parametrize("version", [1719, 0, -1, True, "1718x", 1718.5])
def test_unknown_versions_list_the_known_ones_before_anything_is_created(
    version, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mx.errors.UnknownLabelError, match=r"expected one of 661, 943, .*, 1822"):
        mx.Release(version, source="demo", datadir=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_registry_entry_of_ones_own(three_tables):
    types = mx.releases.TableSpec("my_types", layers={"L2/3": ("23P",), "L5": ("5P-ET",)})
    spec = mx.releases.ReleaseSpec(
        version=9, datastack="mine", table_specs={"my_types": types},
        tables={"nucleus": "my_nuclei", "celltype": "my_types", "proofreading": "proofreading_status_and_strategy"},
    )  # fmt: skip
    units = mx.build_units(
        {k: three_tables[k] for k in ("nucleus", "celltype", "proofreading")}, spec
    )
    assert release_of(units) == ("mine", 9)
    assert set(units.layer.values) == {"L2/3", "L5"}


def test_roles_and_keys_that_do_not_exist():
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: celltype"):
        mx.releases.release_spec(1300, tables={"cell_type": "x"})
    with pytest.raises(mx.errors.UnknownLabelError, match="no table in the role 'brain_area'"):
        mx.releases.release_spec(661).name_of("brain_area")
    assert table_spec("never heard of").angle_convention is None


# -------------------------------------------------------------------------------- provenance


def test_release_must_be_there_scalar_and_the_same():
    a, b = (
        mx.releases.stamp_release(xr.Dataset({"x": ("i", [1])}), "minnie65_public", v)
        for v in (661, 1300)
    )
    require_same_release(("a", a), ("b", a.x))
    with pytest.raises(
        mx.errors.ReleaseMismatchError,
        match=r"a is of minnie65_public v661 but b is of minnie65_public v1300",
    ):
        require_same_release(("a", a), ("b", b))
    with pytest.raises(mx.errors.ReleaseMismatchError, match="v661 but b is of v1300"):
        require_same_release(("a", a), ("b", b.drop_vars("datastack")))
    require_same_release(("a", a), ("b", b.drop_vars(["datastack", "materialization_version"])))
    with pytest.raises(mx.errors.ReleaseMismatchError, match="has no coordinate 'datastack'"):
        release_of(a.drop_vars("datastack"))
    both = xr.concat([a, b], "i", coords="different", compat="equals", join="outer")
    with pytest.raises(mx.errors.ReleaseMismatchError, match="expected one scalar"):
        release_of(both)
    assert release_of(a.x * 2 + 1) == ("minnie65_public", 661)


# ----------------------------------------------------------------------------------- columns


def test_ids_never_pass_through_float():
    root = 864691135639235593
    assert id_column(pd.Series([str(root), f" {root + 1}"], name="r"), "t").tolist() == [
        root,
        root + 1,
    ]
    assert id_column(
        pd.Series([root, None], dtype="Int64", name="r"), "t", nullable=True
    ).isna().tolist() == [False, True]
    assert id_column(pd.Series(np.array([root], np.uint64), name="r"), "t").dtype == np.int64
    with pytest.raises(mx.errors.SchemaError, match=r"expected ids below 2\*\*63"):
        id_column(pd.Series(np.array([2**63 + 5], np.uint64), name="r"), "t")
    with pytest.raises(mx.errors.SchemaError, match="dtype bool"):
        id_column(pd.Series([True], name="r"), "t")
    with pytest.raises(mx.errors.SchemaError, match=r"holds 1.5"):
        id_column(pd.Series([1.5, "x"], dtype=object, name="r"), "t")


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([2**63 + 5, 1], "UInt64", r"holds 9223372036854775813, expected ids below 2\*\*63"),
        ([2**63 + 5, None], "UInt64", r"expected ids below 2\*\*63"),
        ([2**63 + 5], object, r"expected ids below 2\*\*63"),
        ([str(2**63)], object, r"expected ids below 2\*\*63"),
        ([-(2**63) - 1], object, r"expected ids below 2\*\*63"),
        (["--5"], object, "holds '--5', expected an integer id"),
        (["²"], object, "holds '²', expected an integer id"),
        ([[1, 2], 3], object, r"holds \[1, 2\], expected an integer id"),
    ],
)
def test_what_is_no_int64_id(values, dtype, message):
    for nullable in (True, False) if None not in values else (True,):
        with pytest.raises(mx.errors.SchemaError, match=message):
            id_column(pd.Series(values, dtype=dtype, name="r"), "t", nullable=nullable)


def test_ids_at_the_edge():
    edge = [2**63 - 1, -(2**63), -5]
    assert id_column(pd.Series(edge, dtype=object, name="r"), "t").tolist() == edge
    assert id_column(pd.Series([None], dtype="UInt64", name="r"), "t", nullable=True).isna().all()
    assert len(id_column(pd.Series([], dtype=np.uint64, name="r"), "t")) == 0


def test_text_is_text():
    column = pd.Series(pd.Categorical(["a", None, "a "]), name="w")
    assert text_column(column, "t").tolist() == ["a", None, "a"]
    assert text_column(pd.Series([np.nan, np.nan], name="w"), "t").tolist() == [None, None]
    assert text_column(pd.Series(["x"], dtype="string", name="w"), "t").dtype == object


def test_arrays_and_positions():
    mixed = pd.Series(["[1 2\n 3]", [4, 5, 6], np.array([7.0, 8, 9]), None], name="p")
    np.testing.assert_array_equal(
        parse_arrays(mixed, "t"), [[1, 2, 3], [4, 5, 6], [7, 8, 9], [np.nan] * 3]
    )
    split = pd.DataFrame({"p_x": [1], "p_y": [2], "p_z": pd.array([None], dtype="Int64")})
    np.testing.assert_array_equal(positions(split, "t", "p"), [[1, 2, np.nan]])
    with pytest.raises(mx.errors.SchemaError, match="has 2 values per row, expected x, y and z"):
        positions(pd.DataFrame({"p": ["[1 2]"]}), "t", "p")
    with pytest.raises(mx.errors.SchemaError, match=r"lacks the columns \['p_x', 'p_y', 'p_z'\]"):
        positions(pd.DataFrame({"q": [1]}), "t", "p")


def test_blank_cells_hold_no_array():
    column = pd.Series(["", "[1 2]", "  ", None, "[3 4]"], name="p")
    expected = [[np.nan] * 2, [1, 2], [np.nan] * 2, [np.nan] * 2, [3, 4]]
    np.testing.assert_array_equal(parse_arrays(column, "t"), expected)
    with pytest.raises(mx.errors.SchemaError, match=r"t\.p holds no array at all"):
        parse_arrays(pd.Series(["", " "], name="p"), "t")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, "[1 2]", None, "[1]"], "row 3 has 1 values, expected 2 as in row 1"),
        ([None, "[1 2]", "", "[x]"], r"row 3 is '\[x\]', expected numbers"),
        ([None, [1, 2], ["a", "b"]], r"row 2 is .*'a', 'b'.*expected numbers"),
        ([[1, 2], {"a": 1}], r"row 1 is .*expected numbers"),
    ],
)
def test_arrays_that_are_none_are_named_by_their_row_in_the_table(values, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        parse_arrays(pd.Series(values, index=[9] * len(values), name="p"), "t")


# ------------------------------------------------------------------------------------ schema


def test_validate_reports_all_problems_at_once(three_tables):
    units = mx.build_units(three_tables, 1300)
    bad = units.drop_vars("layer").assign(
        pt_root_id=units.pt_root_id.astype(float),
        position=units.position.transpose("axis", "nucleus_id"),
    )
    bad = bad.assign_coords(nucleus_id=[11, 11, 12])
    with pytest.raises(mx.errors.SchemaError) as error:
        validate(bad, "units")
    message = str(error.value)
    for part in (
        "layer is absent",
        "pt_root_id has dtype float64",
        "may be rounded",
        "position has dims",
        "repeats 1 labels",
    ):
        assert part in message
    with pytest.raises(mx.errors.SchemaError, match="is not sorted"):
        validate(units.isel(nucleus_id=[2, 0, 1]), "units")
    with pytest.raises(mx.errors.SchemaError, match="expected a units Dataset, found dict"):
        validate({}, "units")


def test_every_declared_variable_has_units_and_a_missing_value():
    for specs in KINDS.values():
        for spec in specs.values():
            assert spec.doc
            assert spec.missing
            assert spec.dtype in ("int64", "float", "bool", "text")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, microns_xr; print([m for m in ('xarray','pandas','numpy','zarr','caveclient','matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in mx.__all__:
        value = getattr(mx, name)
        if name != "__version__":
            assert value.__doc__, name
    assert set(dir(mx)) == set(mx.__all__)
    with pytest.raises(AttributeError, match="attribute nothing"):
        mx.nothing


def test_an_unknown_name_is_answered_with_the_nearest_known_ones():
    error = unknown_label("units has no variable", "layr", {"volume", "layer"}, "assign it")
    assert isinstance(error, mx.errors.UnknownLabelError)
    assert str(error) == (
        "units has no variable 'layr', expected one of layer, volume; nearest: layer: assign it"
    )
    many = unknown_label("there is no table", "?", range(100), error=mx.errors.SourceError)
    assert isinstance(many, mx.errors.SourceError)
    assert str(many).endswith("38, 39 and 60 more")
