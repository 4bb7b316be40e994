"""Joining tables: never a neuron twice, integers stay integers, inputs stay as they are."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from roots import ROOTS

import microns_xr as mx
from microns_xr.tuning.functional import build_functional


@pytest.fixture
def units(three_tables) -> xr.Dataset:
    return mx.build_units(three_tables, 1300, functional="match")


@pytest.fixture
def functional(three_tables) -> xr.Dataset:
    return build_functional(
        three_tables["coregistration"],
        mx.releases.TableSpec("c"),
        datastack="minnie65_public",
        version=1300,
    )


def test_onto_units_by_nucleus_by_hand(units):
    table = pd.DataFrame(
        {
            "id": [1, 2], "target_id": [13, 11], "pt_root_id": [5, 6], "n_spines": [7, 864691135639235593],
            "word": ["a", None], "value": [0.5, 1.5], "flag": [True, False],
        }
    )  # fmt: skip
    before = table.copy(deep=True)
    merged = mx.merge_table(units, table)
    pd.testing.assert_frame_equal(table, before)
    assert "n_spines" not in units
    assert merged.n_spines.values.tolist() == [864691135639235593, -1, 7]
    assert merged.n_spines.dtype == np.int64
    assert merged.word.values.tolist() == ["unknown", "unknown", "a"]
    np.testing.assert_array_equal(merged.value, [1.5, np.nan, 0.5])
    assert merged.flag.values.tolist() == ["false", "unknown", "true"]
    assert "id" not in merged
    np.testing.assert_array_equal(merged.pt_root_id, units.pt_root_id)
    assert {"word", "flag"} <= set(merged.coords)
    assert {"n_spines", "value"} <= set(merged.data_vars)
    inner = mx.merge_table(units, table, how="inner")
    assert inner.nucleus_id.values.tolist() == [11, 13]
    assert inner.flag.dtype == bool


def test_nullable_integers_stay_integers(units):
    table = pd.DataFrame(
        {"nucleus_id": [11, 12], "other_root": pd.array([ROOTS[13], None], dtype="Int64")}
    )
    assert mx.merge_table(units, table).other_root.values.tolist() == [ROOTS[13], -1, -1]


def test_onto_units_by_root(units):
    table = pd.DataFrame(
        {"pt_root_id": [ROOTS[12], 0, ROOTS[12] + 128], "note": ["yes", "no segment", "near"]}
    )
    assert mx.merge_table(units, table, on="pt_root_id").note.values.tolist() == [
        "unknown",
        "yes",
        "unknown",
    ]
    with pytest.raises(mx.errors.SchemaError, match="dtype float64"):
        mx.merge_table(units, table.astype({"pt_root_id": float}), on="pt_root_id")
    rounded = [ROOTS[11] // 128 * 128 + 128 * i for i in range(3)]
    with pytest.raises(mx.errors.SchemaError, match=r"all multiples of 128.*went through floats"):
        mx.merge_table(units, table.assign(pt_root_id=rounded), on="pt_root_id")


def test_a_join_that_would_repeat_a_neuron_is_refused_with_the_way_out(
    units, three_tables, functional
):
    for table in (
        three_tables["coregistration"][["target_id", "unit_id"]].assign(score=1.0),
        functional.assign(score=("scan_unit", np.ones(5))),
    ):
        with pytest.raises(
            mx.errors.SchemaError,
            match=r"several rows for 1 nucleus_id of the units.*collapse_scans.*functional",
        ):
            mx.merge_table(units, table, columns=["score"])


def test_repeated_rows_of_other_neurons_do_no_harm(units):
    table = pd.DataFrame({"target_id": [500, 500, 11], "x": [1, 2, 3]})
    assert mx.merge_table(units, table).x.values.tolist() == [3, -1, -1]


def test_onto_functional_by_nucleus_gives_every_scan_its_neurons_value(functional):
    table = pd.DataFrame({"target_id": [11, 12], "depth": [1.5, 2.5]})
    merged = mx.merge_table(functional, table)
    np.testing.assert_array_equal(merged.depth, [2.5, 1.5, np.nan, 1.5, 1.5])


def test_functional_on_functional(functional):
    keys = {"session": [4, 4], "scan_idx": [7, 7], "unit_id": [9, 2]}
    table = pd.DataFrame({**keys, "score": [0.9, 0.2]})
    merged = mx.merge_table(functional, table, on="functional")
    np.testing.assert_array_equal(merged.score, [0.2, np.nan, np.nan, 0.9, np.nan])
    neurons = mx.tuning.collapse_scans(functional, "first").drop_vars(list(keys))
    with pytest.raises(mx.errors.SchemaError, match=r"have no \['session', .*best_only"):
        mx.merge_table(neurons, table, on="functional")


def test_rows_without_a_segment_do_not_match_each_other(functional):
    table = pd.DataFrame({"pt_root_id": [ROOTS[11], 0], "x": [1.5, 9.5]})
    merged = mx.merge_table(functional, table, on="pt_root_id")
    assert functional.pt_root_id.values[2] == 0
    np.testing.assert_array_equal(merged.x, [np.nan, 1.5, np.nan, 1.5, 1.5])


def test_a_repeated_unit_must_agree_in_every_column_and_at_every_angle(functional):
    keys = {"session": [4, 4], "scan_idx": [7, 7], "unit_id": [9, 9]}
    table = pd.DataFrame({**keys, "score": [np.nan] * 2, "rate_ori": ["[1 2]"] * 2})
    how = {"on": "functional", "angle_convention": "up_clockwise"}
    merged = mx.merge_table(functional, table, **how)
    np.testing.assert_array_equal(merged.rate_ori.mean("orientation"), [np.nan] * 3 + [1.5, np.nan])
    for other in ({"score": [0.5, np.nan]}, {"rate_ori": ["[1 2]", "[1 3]"]}):
        with pytest.raises(mx.errors.SchemaError, match="several rows for 1 unit"):
            mx.merge_table(functional, table.assign(**other), **how)


def test_functional_onto_best_only_units(three_tables):
    units = mx.build_units(three_tables, 1300, functional="best_only")
    table = pd.DataFrame(
        {"session": [4, -1], "scan_idx": [7, -1], "unit_id": [3, -1], "score": [0.9, 9.9]}
    )
    np.testing.assert_array_equal(
        mx.merge_table(units, table, on="functional").score, [0.9, np.nan, np.nan]
    )


def test_datasets_of_two_releases_are_refused(units, functional):
    other = mx.releases.stamp_release(
        units[["cell_type"]].rename(cell_type="old_type"), "minnie65_public", 943
    )
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match="v1300 but table is of minnie65_public v943"
    ):
        mx.merge_table(units, other)
    assert "old_type" in mx.merge_table(
        units, other.drop_vars(["datastack", "materialization_version"])
    )


TABLE = pd.DataFrame({"target_id": [11], "cell_type": ["x"]})
OTHER = xr.Dataset(coords={"nucleus_id": [11]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"already have \['cell_type'\]"),
        ({"columns": ["cell_typ"]}, "nearest: cell_type"),
        ({"table": OTHER, "columns": "nucleus_id"}, r"already have \['nucleus_id'\]"),
        (
            {"table": TABLE.rename(columns={"target_id": "who"})},
            r"table lacks a column nucleus_id or target_id, found \['who', 'cell_type'\]: pass key=",
        ),
        ({"table": TABLE[:0].assign(x=1)[["target_id", "x"]]}, "the table has no rows"),
        ({"how": "right"}, "expected 'left' or 'inner'"),
        ({"on": "unit_id"}, "expected one of nucleus_id, pt_root_id, functional"),
        ({"dataset": {}}, "dataset is a dict, expected units or functional rows"),
        ({"dataset": xr.Dataset(coords={"x": [1]})}, r"dims \('x',\), expected units"),
        ({"table": [1]}, "table is a list, expected a DataFrame, a Dataset or a path"),
    ],
)
def test_what_cannot_be_merged(units, options, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.merge_table(**{"dataset": units, "table": TABLE, **options})


def test_units_that_share_a_root_are_not_joined_by_it(units):
    shared = units.assign(pt_root_id=("nucleus_id", [ROOTS[11], ROOTS[11], ROOTS[13]]))
    table = pd.DataFrame({"pt_root_id": [ROOTS[11]], "note": ["x"]})
    with pytest.raises(
        mx.errors.SchemaError, match="several nuclei share it, join on='nucleus_id'"
    ):
        mx.merge_table(shared, table, on="pt_root_id")


def test_angles_need_a_convention_and_only_one(units, three_tables):
    table = pd.DataFrame({"target_id": [11], "pref_ori": [0.5]})
    with pytest.raises(mx.errors.SchemaError, match="pass angle_units="):
        mx.merge_table(units, table)
    merged = mx.merge_table(units, table, angle_units="radian", angle_convention="up_clockwise")
    assert merged.pref_ori.attrs["angle_convention"] == "up_clockwise"
    table = table.rename(columns={"pref_ori": "pref_dir"})
    with pytest.raises(
        mx.errors.SchemaError, match=r"pref_ori is in radian .* but pref_dir is in degree"
    ):
        mx.merge_table(merged, table, angle_units="degree", angle_convention="up_clockwise")


@pytest.mark.parametrize(
    "stated",
    [{"angle_convention": "right_counterclockwise"}, {"angle_units": "degree"}],
)
def test_what_the_registry_says_of_a_table_cannot_be_relabelled(units, stated):
    table = pd.DataFrame({"target_id": [11], "pref_ori": [0.5]})
    table.attrs["table"] = "functional_properties_v3_bcm"
    ((argument, value),) = stated.items()
    with pytest.raises(
        mx.errors.SchemaError,
        match=rf"{argument} of .* in the registry, not '{value}'.*angles.convert",
    ):
        mx.merge_table(units, table, **stated)
    same = mx.merge_table(units, table, angle_units="radian", angle_convention="up_clockwise")
    assert same.identical(mx.merge_table(units, table))


def test_angles_of_a_dataset_must_state_their_convention(units):
    table = units[["nucleus_id"]].reset_coords(drop=False)
    table = table.set_coords([c for c in table.data_vars if c in units.coords])
    for name in ("pref_ori", "pref_dir", "orientation", "direction"):
        for values in (np.zeros(3), np.zeros(3, int)):
            with pytest.raises(mx.errors.SchemaError, match=f"{name} has units None"):
                mx.merge_table(units, table.assign({name: ("nucleus_id", values)}))
    rates = table.assign(rate_ori=(("nucleus_id", "orientation"), np.ones((3, 2))))
    angles = {"units": "degree", "angle_convention": "up_clockwise"}
    stated = rates.assign_coords(orientation=("orientation", [0.0, 90.0], angles))
    other = stated.assign_coords(orientation=("orientation", [45.0, 90.0], angles))
    with pytest.raises(mx.errors.SchemaError, match="rates of different stimuli cannot share"):
        mx.merge_table(mx.merge_table(units, stated), other.rename(rate_ori="rate_of_other"))
    with pytest.raises(mx.errors.SchemaError, match="orientation has units None"):
        mx.merge_table(units, rates.assign_coords(orientation=[0.0, 90.0]))
    frame = pd.DataFrame({"target_id": [11], "direction": [90.0]})
    with pytest.raises(mx.errors.SchemaError, match=r"direction is an angle"):
        mx.merge_table(units, frame)
    words = mx.merge_table(units, frame.assign(direction="up"))
    assert words.direction.values.tolist() == ["up", "unknown", "unknown"]


def test_whole_degrees_that_are_missing_are_no_angle_of_minus_one(units):
    frame = pd.DataFrame({"target_id": [11, 12], "pref_ori": pd.array([90, None], dtype="Int64")})
    merged = mx.merge_table(units, frame, angle_units="degree", angle_convention="up_clockwise")
    np.testing.assert_array_equal(merged.pref_ori, [90, np.nan, np.nan])
    whole = merged[["pref_ori"]].isel(nucleus_id=[0])
    whole["pref_ori"] = whole.pref_ori.astype(int)
    np.testing.assert_array_equal(mx.merge_table(units, whole).pref_ori, [90, np.nan, np.nan])


def test_columns_of_a_dataset_in_any_dtype(units):
    times = np.array(["2020-01-02", "NaT"], "M8[ns]")
    table = xr.Dataset(
        {
            "letter": ("nucleus_id", np.array(["a", "b"])),
            "raw": ("nucleus_id", np.array([b"a", b"b"])),
            "strings": ("nucleus_id", np.array(["a", "b"], np.dtypes.StringDType())),
            "count": ("nucleus_id", np.array([200, 7], np.uint8)),
            "seen": ("nucleus_id", times),
        },
        coords={"nucleus_id": [11, 12], **{c: units.coords[c] for c in ("datastack", "materialization_version")}},
    )  # fmt: skip
    merged = mx.merge_table(units, table)
    for name in ("letter", "raw", "strings"):
        assert merged[name].values.tolist() == ["a", "b", "unknown"]
        assert merged[name].dtype == object
    assert merged["count"].values.tolist() == [200, 7, -1]
    assert merged["count"].dtype == np.int64
    assert merged.seen.values.tolist() == ["2020-01-02", "unknown", "unknown"]
    large = table[["count"]].astype(np.uint64) + np.uint64(2**63)
    with pytest.raises(mx.errors.SchemaError, match=r"count holds 9223372036854776008, expected"):
        mx.merge_table(units, large)


ROOT = ROOTS[11]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pd.Series(pd.Categorical([ROOT, None])), [ROOT, -1]),
        (pd.Series(pd.Categorical([ROOT, 3])), [ROOT, 3]),
        (pd.Series([ROOT, None], dtype=object), [ROOT, -1]),
        (pd.Series([np.int64(ROOT), np.nan], dtype=object), [ROOT, -1]),
        (pd.Series([7, None], dtype="UInt64"), [7, -1]),
        (pd.Series([0.5, None], dtype=object), [0.5, np.nan]),
        (pd.Series([0.5, 2], dtype=object), [0.5, 2.0]),
        (pd.Series([True, None], dtype=object), ["true", "unknown"]),
        (pd.Series([True, False], dtype=object), [True, False]),
        (pd.Series(pd.Categorical([True, None])), ["true", "unknown"]),
        (pd.Series(pd.to_datetime(["2020-01-02", None])), ["2020-01-02", "unknown"]),
        (pd.Series(pd.to_datetime(["2020-01-02", None]), dtype=object), ["2020-01-02 00:00:00", "unknown"]),
        (pd.Series(["a", None], dtype="string"), ["a", "unknown"]),
        (pd.Series([None, None], dtype=object), ["unknown", "unknown"]),
    ],
)  # fmt: skip
def test_columns_are_typed_by_what_they_hold(units, column, values):
    table = pd.DataFrame({"target_id": [11, 12], "x": column})
    found = mx.merge_table(units, table, how="inner").x.values
    assert [type(v) for v in found.tolist()] == [type(v) for v in values]
    np.testing.assert_array_equal(found, np.array(values, dtype=found.dtype))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pd.Series([2**63, 1], dtype=np.uint64), r"table\.x holds 9223372036854775808"),
        (pd.Series([2**63, None], dtype="UInt64"), r"table\.x holds 9223372036854775808"),
        (pd.Series([2**70, None], dtype=object), r"table\.x holds 1180591620717411303424"),
        (pd.Series([[1, 2], [3]]), r"table\.x holds lists or arrays.*drop it"),
        (pd.Series([np.ones(2), None]), r"table\.x holds lists or arrays"),
    ],
)
def test_columns_that_have_no_type(units, column, message):
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.merge_table(units, pd.DataFrame({"target_id": [11, 12], "x": column}))


def test_errors_of_rates_are_merged_with_them(three_tables, functional):
    n = 16  # as many rows as directions
    table = pd.DataFrame({"session": 4, "scan_idx": 7, "unit_id": np.arange(n)})
    rng = np.random.default_rng(0)
    table["rate_dir"], table["rate_error"] = list(rng.random((n, 16))), list(rng.random((n, 16)))
    table["rate_ori"] = [(r[:8] + r[8:]) / 2 for r in table["rate_dir"]]
    table["rate_ori_error"] = [str(r.tolist()) for r in rng.random((n, 8))]
    merged = mx.merge_table(functional, table, on="functional", angle_convention="up_clockwise")
    assert merged.rate_error.dims == ("scan_unit", "direction")
    assert merged.rate_ori_error.dims == ("scan_unit", "orientation")
    assert np.isfinite(merged.rate_error[:, 0]).sum() >= 2
    for unit, of_dir, of_ori in zip(
        merged.unit_id.values, merged.rate_error.values, merged.rate_ori_error.values, strict=True
    ):
        if np.isnan(of_dir).any():  # of another scan
            continue
        row = table[table["unit_id"] == unit]
        np.testing.assert_array_equal(of_dir, row["rate_error"].item())
        assert str(of_ori.tolist()) == row["rate_ori_error"].item()
    table["note"] = "[sic]"
    merged = mx.merge_table(functional, table, on="functional", angle_convention="up_clockwise")
    assert set(merged.note.values) <= {"[sic]", "unknown"}
    table["pair"] = [[1, 2]] * n
    with pytest.raises(mx.errors.SchemaError, match="pair holds lists or arrays"):
        mx.merge_table(functional, table, on="functional", angle_convention="up_clockwise")


def test_repeated_column_names(units):
    table = pd.DataFrame([[11, 1, 2]], columns=["target_id", "x", "x"])
    for columns in (None, ["x"], "x"):
        with pytest.raises(mx.errors.SchemaError, match=r"several columns \['x'\].*rename them"):
            mx.merge_table(units, table, columns=columns)
    keys = pd.DataFrame([[11, 11, 2]], columns=["target_id", "target_id", "x"])
    with pytest.raises(mx.errors.SchemaError, match=r"several columns \['target_id'\]"):
        mx.merge_table(units, keys)
    numbered = mx.merge_table(units, pd.DataFrame([[11, 5]], columns=["target_id", 0]))
    assert numbered["0"].values.tolist() == [5, -1, -1]


@pytest.fixture(params=["demo 1718", "real 661"])
def release(request):
    if request.param == "demo 1718":
        return mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500))
    return mx.Release(661, source=request.getfixturevalue("real_data") / "minnie65_v661")


def test_the_tutorials_path(release):
    """Automatic coregistration as functional, the fits merged on, collapsed onto the units."""
    kind = "auto" if release.spec.has("coregistration_auto") else "manual"
    functional = release.functional(kind)
    fits = release.table("tuning_curves_fitted_v1")
    merged = mx.merge_table(functional, fits, columns=["rate_ori", "rate_dir"], on="functional")
    assert merged.sizes["scan_unit"] == functional.sizes["scan_unit"]
    collapsed = mx.tuning.collapse_scans(merged)
    units = mx.merge_table(release.units(), collapsed[["rate_ori", "rate_dir", "n_rated"]])
    assert units.nucleus_id.equals(release.units().nucleus_id)
    assert units.rate_ori.dims == ("nucleus_id", "orientation")
    # an independent plain join
    table = release.table("coregistration_auto" if kind == "auto" else "coregistration")
    keys = ["session", "scan_idx", "unit_id"]
    plain = table.merge(fits, on=keys)
    ids = set(plain.target_id.dropna().astype(np.int64)) & set(units.nucleus_id.values.tolist())
    assert set(units.nucleus_id.values[units.n_rated.values > 0].tolist()) == ids
    first = min(ids)
    rows = np.stack(
        [np.array(t.strip("[]").split(), float) for t in plain[plain.target_id == first].rate_dir]
    )
    np.testing.assert_allclose(units.rate_dir.sel(nucleus_id=first), rows.mean(axis=0), rtol=1e-12)


def test_by_the_index_of_a_table(units):
    table = pd.DataFrame({"target_id": [13, 11], "score": [0.5, 1.5]})
    expected = mx.merge_table(units, table).score
    for indexed in (
        table.set_index("target_id"),
        table.rename(columns={"target_id": "nucleus_id"}).set_index("nucleus_id"),
        table.set_index("target_id", drop=False),
    ):
        xr.testing.assert_identical(mx.merge_table(units, indexed).score, expected)
    other = mx.merge_table(units, table.rename_axis("row"))
    assert set(other.variables) - set(units.variables) == {"score"}  # not the index
    own = table.rename(columns={"target_id": "cell"}).set_index("cell")
    xr.testing.assert_identical(mx.merge_table(units, own, key="cell").score, expected)
    xr.testing.assert_identical(
        mx.merge_table(units, expected.to_series().to_frame()).score, expected
    )


# --- root ids of another release


def whole_units(n: int = 100) -> xr.Dataset:
    """All units of a release, as `Release.units` counts them; the roots are 10**17 + 1, ..."""
    ids = np.arange(1, n + 1)
    units = xr.Dataset(
        {"pt_root_id": ("nucleus_id", 10**17 + ids)},
        {"nucleus_id": ids},
        {"selection": ["nuclei: 100", "units: 100"]},
    )
    return mx.releases.stamp_release(units, "minnie65_public", 1300)


def table_of_roots(n_other: int) -> pd.DataFrame:
    """100 rows by root, of which the first are of other segments."""
    roots = 10**17 + np.arange(1, 101)
    roots[:n_other] += 1000
    return pd.DataFrame({"pt_root_id": roots, "status": "extended"})


def test_many_rows_without_a_match_by_root_are_warned_of():
    units, message = whole_units(), "20 of 100 rows of the table match no unit by pt_root_id"
    with pytest.warns(mx.errors.DroppedRowsWarning, match=message) as record:
        merged = mx.merge_table(units, table_of_roots(20), on="pt_root_id")
    assert record[0].filename == __file__
    assert (merged.status == "extended").sum() == 80
    assert merged.attrs["history"][-1].endswith("80 of 100 units matched")
    # As many as real tables of the same release lose; and of a selection nothing is known.
    mx.merge_table(units, table_of_roots(18), on="pt_root_id")
    merged = mx.merge_table(units.isel(nucleus_id=slice(50)), table_of_roots(40), on="pt_root_id")
    assert merged.attrs["history"][-1].endswith("10 of 50 units matched")


@pytest.mark.parametrize("key", ["target_id", "nucleus_id"])
def test_another_root_of_a_nucleus_is_warned_of(key):
    table = table_of_roots(3).assign(**{key: np.arange(1, 101)})
    match = (
        "3 of 40 rows of the table have a different pt_root_id than their nucleus has in the units"
    )
    units = whole_units().isel(nucleus_id=slice(40))
    with pytest.warns(mx.errors.DroppedRowsWarning, match=match) as record:
        mx.merge_table(units, table, on="pt_root_id")
    assert record[0].filename == __file__
    merged = mx.merge_table(units, table)  # nucleus ids are the same in every release
    assert (merged.status == "extended").all()


def test_real_tables_of_the_other_release(real_data):
    """Each table in the release of its own and in the other: who of its rows meets a unit."""
    folders = {v: real_data / f"minnie65_v{v}" for v in (661, 1300)}
    units = {v: mx.Release(v, source=folder).units() for v, folder in folders.items()}
    named = {
        661: ("proofreading_status_public_release", "coregistration_manual_v3"),
        1300: ("proofreading_status_and_strategy",),
    }
    found = {}
    for own, names in named.items():
        for name in names:
            table = pd.read_csv(folders[own] / "raw" / f"{name}.csv").drop_duplicates("pt_root_id")
            columns = [c for c in table.columns if c.startswith(("status", "strategy", "session"))]
            table = table.rename(columns={c: f"{c}_of_table" for c in columns})
            columns = [f"{c}_of_table" for c in columns]
            for version, dataset in units.items():
                with warnings.catch_warnings(record=True) as record:
                    warnings.simplefilter("always")
                    mx.merge_table(dataset, table, columns, on="pt_root_id")
                found[name, version] = [str(w.message).partition(" rows")[0] for w in record]
    assert found == {
        ("proofreading_status_public_release", 661): [],
        ("proofreading_status_public_release", 1300): ["981 of 1266"],
        ("coregistration_manual_v3", 661): [],
        ("coregistration_manual_v3", 1300): ["2393 of 11296"],
        ("proofreading_status_and_strategy", 661): ["1526 of 1701"],
        ("proofreading_status_and_strategy", 1300): [],
    }
