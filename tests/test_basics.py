"""The ground floor: the registry of releases, provenance, columns, the data model, errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.columns import as_ids, parse_arrays, positions, text_column
from microns_xr.errors import unknown_label
from microns_xr.provenance import release_of, require_same_release
from microns_xr.releases import ROLES, table_spec
from microns_xr.schema import KINDS, require_unique_sorted, validate

# ---------------------------------------------------------------------------------- releases


@pytest.mark.parametrize("version", mx.releases.supported_versions())
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
        frame="minnie65 1.4", voxel_nm=(4, 4, 40),
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


ROOT = 864691135639235593


@pytest.mark.parametrize(
    ("values", "dtype", "ids"),
    [
        ([str(ROOT), f" {ROOT + 1}"], object, [ROOT, ROOT + 1]),
        ([ROOT], np.uint64, [ROOT]),
        ([2**63 - 1, -(2**63), -5], object, [2**63 - 1, -(2**63), -5]),
        ([ROOT, None], "Int64", [ROOT, None]),
        ([ROOT, None], "UInt64", [ROOT, None]),
        ([ROOT, None, ROOT + 1], "uint64[pyarrow]", [ROOT, None, ROOT + 1]),
        ([None], "UInt64", [None]),
        ([None, np.nan], object, [None, None]),
        ([np.nan], float, [None]),
        ([], np.uint64, []),
        ([11.0, np.nan], float, [11, None]),
        ([2.0**53 - 1, -5.0], float, [2**53 - 1, -5]),
        ([11.0, None], "Float64", [11, None]),
        ([2.0**24 - 1], np.float32, [2**24 - 1]),
        # One or two multiples of 128 may be chance, and ids below 2**53 are exact in floats.
        ([128 * 2**53, 128 * 2**53, 128 * 2**52, 0], np.int64, [2**60, 2**60, 2**59, 0]),
        ([128, 256, 384, 512], np.int64, [128, 256, 384, 512]),
        ([2**59, 2**59 + 128, 2**59 + 256, 2**59 + 1], np.int64,
         [2**59, 2**59 + 128, 2**59 + 256, 2**59 + 1]),
    ],
)  # fmt: skip
def test_ids_never_pass_through_float(values, dtype, ids):
    read = as_ids(pd.Series(values, dtype=dtype), "t.r", missing=-1 if None in ids else None)
    assert read.dtype == np.int64
    assert read.tolist() == [-1 if i is None else i for i in ids]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([2**63 + 5, 1], np.uint64, r"holds 9223372036854775813, expected ids below 2\*\*63"),
        ([2**63 + 5, None], "UInt64", r"expected ids below 2\*\*63"),
        ([2**63 + 5], object, r"expected ids below 2\*\*63"),
        ([str(2**63)], object, r"expected ids below 2\*\*63"),
        ([-(2**63) - 1], object, r"expected ids below 2\*\*63"),
        (["--5"], object, "holds '--5', expected an integer id"),
        (["²"], object, "holds '²', expected an integer id"),
        ([[1, 2], 3], object, r"holds \[1, 2\], expected an integer id"),
        ([1.5, "x"], object, r"holds 1\.5, expected an integer id"),
        ([True], bool, "dtype bool"),
        ([5.5], float, "dtype float64, expected int64"),
        ([np.inf], float, "dtype float64, expected int64"),
        ([5, 2.0**53], float, "dtype float64, expected int64: floats round"),
        ([2.0**24], np.float32, "dtype float32, expected int64"),
        (
            [ROOT // 128 * 128 + 128 * i for i in (0, 1, 2)],
            np.int64,
            "holds 3 different ids above .*all multiples of 128",
        ),
        ([str(2**59), str(2**59 + 128), str(2**59 + 256), "7"], object, "3 different ids above"),
    ],
)
def test_what_is_not_an_int64_id(values, dtype, message):
    for missing in (-1, None):
        with pytest.raises(mx.errors.SchemaError, match=rf"t\.r .*{message}"):
            as_ids(pd.Series(values, dtype=dtype), "t.r", missing)


def test_a_part_of_the_ids_went_through_floats():
    """Rows of two files, of which one was rounded: 16 of 96 ids; by chance, there may be some."""
    ids = 2**59 + 129 * np.arange(1, 97)
    assert (ids % 128 == 0).sum() == 0
    rounded = np.where(np.arange(96) < 16, ids // 128 * 128, ids)
    with pytest.raises(mx.errors.SchemaError, match=r"96 different ids .* 16 of them multiples of"):
        as_ids(rounded, "t.r")
    few = np.where(np.arange(96) < 15, ids // 128 * 128, ids)
    assert as_ids(few, "t.r").tolist() == few.tolist()
    # A neuron whose id is a multiple of 128 may have many rows.
    many = np.append(ids, np.full(500, 2**59))
    assert as_ids(many, "t.r").tolist() == many.tolist()


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
    with pytest.raises(mx.errors.SchemaError, match=r"p_z has dtype object, expected numbers"):
        positions(split.assign(p_z=["x"]), "t", "p")
    with pytest.raises(mx.errors.SchemaError, match=r"lacks the columns \['p_x', 'p_y', 'p_z'\]"):
        positions(pd.DataFrame({"q": [1]}), "t", "p")


def test_blank_cells_hold_no_array():
    column = pd.Series(["", "[1 2]", "  ", None, "[3 4]"], name="p")
    expected = [[np.nan] * 2, [1, 2], [np.nan] * 2, [np.nan] * 2, [3, 4]]
    np.testing.assert_array_equal(parse_arrays(column, "t"), expected)
    with pytest.raises(mx.errors.SchemaError, match=r"t\.p has no values"):
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
def test_malformed_arrays_are_named_by_their_row(values, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        parse_arrays(pd.Series(values, index=[9] * len(values), name="p"), "t")


# ------------------------------------------------------------------------------------ schema


def test_validate_reports_all_problems_at_once(three_tables):
    units = mx.build_units(three_tables, 1300)
    bad = units.assign(
        pt_root_id=units.pt_root_id.astype(float),
        position=units.position.transpose("axis", "nucleus_id"),
    )
    bad = bad.assign_coords(nucleus_id=[11, 11, 12])
    with pytest.raises(mx.errors.SchemaError) as error:
        validate(bad, "units")
    message = str(error.value)
    for part in (
        "pt_root_id has dtype float64",
        "may be rounded",
        "position has dims",
        "repeats 1 labels",
    ):
        assert part in message
    with pytest.raises(mx.errors.SchemaError, match="is not sorted"):
        validate(units.isel(nucleus_id=[2, 0, 1]), "units")
    with pytest.raises(mx.errors.SchemaError, match=r"axis is \('y', 'x', 'z'\), expected"):
        validate(units.isel(axis=[1, 0, 2]), "units")
    with pytest.raises(mx.errors.SchemaError, match="expected a units Dataset, found dict"):
        validate({}, "units")
    with pytest.raises(mx.errors.SchemaError, match="scope is 'all', expected one of"):
        validate(xr.Dataset(coords={"scope": "all"}), "connectivity")
    with pytest.raises(mx.errors.SchemaError, match="x repeats 1 labels"):
        require_unique_sorted("x", np.array([1, 1, 2]))


def test_every_declared_variable_has_units_and_a_missing_value():
    for specs in KINDS.values():
        for spec in specs.values():
            assert spec.doc
            assert spec.missing
            assert spec.dtype in ("int64", "float", "number", "bool", "text")


def test_an_unknown_name_is_answered_with_the_nearest_known_ones():
    error = unknown_label("units has no variable", "layr", {"volume", "layer"}, "assign it")
    assert isinstance(error, mx.errors.UnknownLabelError)
    assert str(error) == (
        "units has no variable 'layr', expected one of layer, volume; nearest: layer: assign it"
    )
    many = unknown_label("there is no table", "?", range(100), error=mx.errors.SourceError)
    assert isinstance(many, mx.errors.SourceError)
    assert str(many).endswith("38, 39 and 60 more")
