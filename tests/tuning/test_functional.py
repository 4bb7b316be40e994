"""Coregistration, tuning curves, and the way from recorded units to neurons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.releases import table_spec
from microns_xr.tuning.functional import build_functional, build_tuning_curves
from microns_xr.units import add_rates

FITS = table_spec("tuning_curves_fitted_v1")


@pytest.fixture
def coregistration(three_tables) -> xr.Dataset:
    return build_functional(
        three_tables["coregistration"], mx.releases.TableSpec("coregistration_manual_v4"),
        datastack="minnie65_public", version=1300,
    )  # fmt: skip


def curves(rows: dict[tuple[int, int, int], list[float]]) -> pd.DataFrame:
    """A fits file of four directions and two orientations, arrays as text."""
    keys = pd.DataFrame(list(rows), columns=["session", "scan_idx", "unit_id"])
    folded = [[(v[0] + v[2]) / 2, (v[1] + v[3]) / 2] for v in rows.values()]
    return keys.assign(
        rate_dir=[str(np.array(v, dtype=float)) for v in rows.values()],
        rate_ori=[str(np.array(v)) for v in folded],
    )


@pytest.fixture
def tuning(coregistration) -> xr.Dataset:
    rows = {
        (4, 7, 9): [1, 2, 3, 4], (5, 2, 1): [3, 4, 5, 6], (4, 7, 2): [8, 8, 8, 8], (4, 7, 77): [1, 1, 1, 1],
    }  # fmt: skip
    return build_tuning_curves(curves(rows), FITS, coregistration)


def test_rows_of_all_scans_are_kept_sorted_and_integer(coregistration):
    assert coregistration.sizes["scan_unit"] == 5
    rows = list(
        zip(
            *(
                coregistration[k].values.tolist()
                for k in ("session", "scan_idx", "unit_id", "nucleus_id")
            ),
            strict=True,
        )
    )
    assert rows == [(4, 7, 2, 12), (4, 7, 3, 11), (4, 7, 5, 99), (4, 7, 9, 11), (5, 2, 1, 11)]
    assert all(
        coregistration[k].dtype == np.int64
        for k in ("session", "scan_idx", "unit_id", "nucleus_id")
    )


def test_null_nuclei_stay_integers_and_repeated_rows_count_once(three_tables):
    table = three_tables["coregistration"]
    table = pd.concat(
        [table.assign(id=range(5)), table.iloc[:2].assign(id=[10, 11])], ignore_index=True
    )
    table["target_id"] = pd.array([11, 11, 11, None, 99, 11, 11], dtype="Int64")
    functional = build_functional(table, mx.releases.TableSpec("t"), datastack="d", version=1)
    assert functional.sizes["scan_unit"] == 5
    assert functional.attrs["n_repeated_rows"] == 2
    assert sorted(functional.nucleus_id.values) == [-1, 11, 11, 11, 99]
    assert mx.tuning.collapse_scans(functional, "first").nucleus_id.values.tolist() == [11, 99]


def test_thresholds_of_automatic_matches(three_tables):
    table = three_tables["coregistration"].assign(
        score=[1.0, 2, 3, 4, np.nan], residual=[5.0, 5, 9, 9, 1]
    )
    keep = dict(datastack="d", version=1, role="coregistration_auto")
    assert build_functional(
        table, mx.releases.TableSpec("t"), min_score=2, **keep
    ).score.values.tolist() == [
        4,
        3,
        2,
    ]
    both = build_functional(table, mx.releases.TableSpec("t"), min_score=2, max_residual=5, **keep)
    assert both.unit_id.values.tolist() == [1]
    with pytest.raises(mx.errors.SchemaError, match="no column 'score'"):
        build_functional(
            three_tables["coregistration"], mx.releases.TableSpec("t"), min_score=2, **keep
        )


def test_an_angle_of_a_table_outside_the_registry_must_state_its_convention(three_tables):
    with pytest.raises(mx.errors.SchemaError, match=r"my_table\.pref_ori is an angle"):
        build_functional(
            three_tables["functional_properties"],
            mx.releases.TableSpec("my_table"),
            datastack="d",
            version=1,
        )
    spec = mx.releases.TableSpec("my_table", angle_units="degree", angle_convention="up_clockwise")
    functional = build_functional(
        three_tables["functional_properties"], spec, datastack="d", version=1
    )
    assert functional.pref_ori.attrs["period"] == 180
    assert functional.pref_dir.attrs["period"] == 360


def test_tuning_curves_join_by_session_scan_and_unit(tuning):
    assert tuning.nucleus_id.values.tolist() == [12, 11, -1, 11]
    assert tuning.attrs["n_unmatched"] == 1
    assert tuning.rate_dir.dims == ("scan_unit", "direction")
    assert tuning.direction.values.tolist() == [0, 90, 180, 270]
    assert tuning.orientation.values.tolist() == [0, 90]
    assert tuning.orientation.attrs["angle_convention"] == "up_clockwise"
    np.testing.assert_array_equal(tuning.rate_ori.values[1], [2, 3])


def test_mean_by_hand_a_neuron_of_three_units_counts_once(tuning):
    collapsed = mx.tuning.collapse_scans(tuning)
    assert collapsed.nucleus_id.values.tolist() == [11, 12]
    np.testing.assert_array_equal(collapsed.rate_dir.values, [[2, 3, 4, 5], [8, 8, 8, 8]])
    assert collapsed.n_rated.values.tolist() == [2, 1]
    assert collapsed.n_scans.values.tolist() == [2, 1]


def test_best_takes_all_variables_from_one_unit_that_has_the_value(coregistration, tuning):
    score = xr.DataArray([0.1, 5.0, 0.2, 0.4, 0.3], dims="scan_unit")
    functional = mx.merge_table(coregistration.assign(score=score), tuning, on="functional")
    best = mx.tuning.collapse_scans(functional, "best", by="score")
    # unit (4, 7, 3) has the best score and no rates; among the rated ones (4, 7, 9) is best
    assert best.unit_id.sel(nucleus_id=11).item() == 9
    np.testing.assert_array_equal(best.rate_dir.sel(nucleus_id=11), [1, 2, 3, 4])
    assert best.score.sel(nucleus_id=11).item() == 0.4
    assert best.n_rated.values.tolist() == [1, 1, 0]
    assert np.isnan(best.rate_dir.sel(nucleus_id=99)).all()
    assert best.unit_id.sel(nucleus_id=99).item() == -1
    assert best.unit_id.dtype == np.int64


def test_first_is_the_lowest_session_scan_and_unit(tuning):
    first = mx.tuning.collapse_scans(tuning, "first")
    assert first.unit_id.sel(nucleus_id=11).item() == 9
    assert first.session.sel(nucleus_id=11).item() == 4


def test_ties_do_not_depend_on_the_order_of_rows(three_tables):
    spec = table_spec("functional_properties_v3_bcm")
    rng = np.random.default_rng(0)
    results = []
    for _ in range(5):
        table = three_tables["functional_properties"].sample(
            frac=1, random_state=rng.integers(1 << 30)
        )
        functional = build_functional(table, spec, datastack="d", version=1)
        results.append(mx.tuning.collapse_scans(functional, "best", by="cc_abs"))
    assert all(r.identical(results[0]) for r in results)
    assert results[0].unit_id.sel(nucleus_id=11).item() == 3


def test_collapse_refuses_what_has_no_meaning(three_tables, tuning):
    properties = build_functional(
        three_tables["functional_properties"],
        table_spec("functional_properties_v3_bcm"),
        datastack="d",
        version=1,
    )
    with pytest.raises(
        mx.errors.SchemaError, match=r"cannot average the angles \['pref_ori', 'pref_dir'\]"
    ):
        mx.tuning.collapse_scans(properties)
    with pytest.raises(mx.errors.SchemaError, match="needs by="):
        mx.tuning.collapse_scans(properties, "best")
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: cc_abs"):
        mx.tuning.collapse_scans(properties, "best", by="cc_ab")
    with pytest.raises(mx.errors.SchemaError, match="expected 'mean', 'best' or 'first'"):
        mx.tuning.collapse_scans(tuning, "median")
    with pytest.raises(mx.errors.SchemaError, match="nucleus_id is absent"):
        mx.tuning.collapse_scans(tuning.drop_vars("nucleus_id"))


def test_mean_says_what_it_left_out(coregistration, tuning):
    functional = mx.merge_table(
        coregistration.assign(score=("scan_unit", np.ones(5))), tuning, on="functional"
    )
    assert mx.tuning.collapse_scans(functional).attrs["left_out"] == ["pt_root_id", "score"]


def test_columns_of_any_type_reach_the_functional_rows(three_tables):
    table = three_tables["coregistration"].assign(
        field=pd.array([1, None, 3, 4, 5], dtype="Int64"),
        depth=pd.Series([1, 2.5, None, 4, 5], dtype=object),
        order=pd.Series([1, 2, None, 4, 5], dtype=object),
        good=[True, False, True, True, True],
        note=["a", None, "c", "d", "e"],
        cc_abs=pd.array([1, None, 0, 1, 1], dtype="Int64"),
        trace=[[1, 2]] * 5,
        rate_dir="[1 2 3 4]",
    )
    rows = build_functional(table, mx.releases.TableSpec("t"), datastack="d", version=1)
    assert rows.field.values.tolist() == [4, 3, 5, 1, -1]
    assert rows.field.dtype == np.int64
    np.testing.assert_array_equal(rows.depth, [4, np.nan, 5, 1, 2.5])
    assert rows.order.values.tolist() == [4, -1, 5, 1, 2]
    assert rows.good.dtype == bool
    assert rows.note.values.tolist() == ["d", "c", "e", "a", "unknown"]
    np.testing.assert_array_equal(rows.cc_abs, [1, 0, 1, 1, np.nan])
    assert rows.attrs["columns_left_out"] == ["trace", "rate_dir"]
    with pytest.raises(mx.errors.SchemaError, match=r"several columns \['note'\]"):
        build_functional(
            pd.concat([table, table[["note"]]], axis=1),
            mx.releases.TableSpec("t"),
            datastack="d",
            version=1,
        )


def test_a_score_must_be_a_number(three_tables):
    keep = dict(datastack="d", version=1, role="coregistration_auto")
    table = three_tables["coregistration"]
    with pytest.raises(mx.errors.SchemaError, match=r"t\.score has dtype .*expected numbers"):
        build_functional(table.assign(score="5"), mx.releases.TableSpec("t"), min_score=2, **keep)
    score = pd.Series([1, 2, 3, 4, None], dtype=object)
    for values in (score, score.astype("Int64")):
        kept = build_functional(
            table.assign(score=values), mx.releases.TableSpec("t"), min_score=-5, **keep
        )
        assert kept.score.values.tolist() == [4, 3, 1, 2]


def test_what_a_neuron_without_a_chosen_unit_has(coregistration):
    functional = coregistration.assign(
        cc_abs=("scan_unit", [np.nan, 0.5, np.nan, 0.7, 0.9]),
        area=("scan_unit", np.array(["V1", "RL", "V1", "AL", "LM"])),
        good=("scan_unit", [True, False, True, False, True]),
        field=("scan_unit", np.array([1, 2, 3, 4, 5], np.uint8)),
        n_scans=("scan_unit", [1, 1, 1, 1, 1]),
        seen=("scan_unit", np.array(["2020-01-02"] * 5, "M8[ns]")),
    ).assign_coords(animal=("scan_unit", np.array(["m", "m", "m", "m", "f"])))
    before = functional.copy(deep=True)
    best = mx.tuning.collapse_scans(functional, "best", by="cc_abs")
    assert functional.identical(before)
    assert best.nucleus_id.values.tolist() == [11, 12, 99]
    assert best.area.values.tolist() == ["LM", "unknown", "unknown"]
    assert best.area.dtype == object
    assert best.good.values.tolist() == ["true", "unknown", "unknown"]
    assert best.field.values.tolist() == [5, -1, -1]
    assert best.field.dtype == np.int64
    assert best.pt_root_id.values[1:].tolist() == [0, 0]
    assert best.session.values.tolist() == [5, -1, -1]
    assert best.seen.values.tolist() == ["2020-01-02", "unknown", "unknown"]
    assert best.animal.values.tolist() == ["f", "unknown", "unknown"]
    assert "animal" in best.coords
    assert best.n_scans.values.tolist() == [2, 1, 1]
    first = mx.tuning.collapse_scans(functional, "first")
    assert first.good.dtype == bool
    assert first.good.values.tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int64, bool])
def test_best_by_whole_numbers(coregistration, dtype):
    # rows of neuron 11: units 3, 9 and 1
    counts = xr.DataArray(np.array([1, 0, 1, 0, 1]).astype(dtype), dims="scan_unit")
    best = mx.tuning.collapse_scans(coregistration.assign(n_trials=counts), "best", by="n_trials")
    assert best.unit_id.sel(nucleus_id=11).item() == 1
    large = xr.DataArray(np.array([0, 2**60, 0, 2**60 + 1, 2**60]), dims="scan_unit")
    best = mx.tuning.collapse_scans(coregistration.assign(n_trials=large), "best", by="n_trials")
    assert best.unit_id.sel(nucleus_id=11).item() == 9


def test_only_rates_by_stimulus_are_rates(coregistration, tuning):
    noise = tuning.assign(
        rate_max=("scan_unit", [1.0, np.nan, 3.0, np.nan]),
        rate_word=("scan_unit", np.array(["a", "b", "c", "d"], object)),
        rate_count=(("scan_unit", "direction"), np.arange(16).reshape(4, 4)),
    )
    mean = mx.tuning.collapse_scans(noise)
    np.testing.assert_array_equal(mean.rate_dir, mx.tuning.collapse_scans(tuning).rate_dir)
    np.testing.assert_array_equal(mean.rate_count, [[8, 9, 10, 11], [0, 1, 2, 3]])
    assert mean.attrs["left_out"] == ["rate_max", "rate_word"]
    for by in ("rate_word", "rate_dir"):
        with pytest.raises(
            mx.errors.SchemaError, match="expected one number per unit to choose by"
        ):
            mx.tuning.collapse_scans(noise, "best", by=by)


def test_rates_on_units(three_tables, tuning):
    units = add_rates(mx.build_units(three_tables, 1300, functional="match"), tuning)
    np.testing.assert_array_equal(units.rate_dir.sel(nucleus_id=11), [2, 3, 4, 5])
    assert np.isnan(units.rate_dir.sel(nucleus_id=13)).all()
    assert units.n_rated.values.tolist() == [2, 1, 0]
    assert units.n_scan_units.values.tolist() == [3, 1, 0]
    with pytest.raises(mx.errors.ReleaseMismatchError, match="v1300 but tuning_curves is of"):
        add_rates(units, mx.releases.stamp_release(tuning, "minnie65_public", 661))


def test_preferred_angles_and_rates_of_two_conventions_do_not_mix(three_tables, tuning):
    units = mx.build_units(three_tables, 1300, functional="best_only")  # radians
    with pytest.raises(
        mx.errors.SchemaError, match=r"units\.pref_ori is in radian.*angles.convert"
    ):
        add_rates(units, tuning)
    both = add_rates(mx.angles.convert(units, units="degree"), tuning)
    assert both.pref_ori.attrs["units"] == both.orientation.attrs["units"] == "degree"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: pd.concat([t, t]), r"repeats 4 of 8 keys \(session, scan_idx, unit_id\)"),
        (
            lambda t: t.assign(rate_ori=["[1. 2.]"] * 3 + ["[1. 2. 3.]"]),
            "row 3 has 3 values, expected 2",
        ),
        (lambda t: t.assign(rate_ori="[1. 2.]"), "rate_ori is not the mean of rate_dir"),
        (lambda t: t.assign(rate_ori="[1. ... 2.]"), r"expected numbers in brackets"),
        (lambda t: t.assign(rate_dir="__import__('os')"), r"expected numbers in brackets"),
        (lambda t: t.drop(columns=["rate_dir", "rate_ori"]), "lacks the columns"),
        (lambda t: t.assign(unit_id=[0.5, 1, 2, 3]), "unit_id has dtype float64"),
    ],
)
def test_bad_tuning_curves(coregistration, spoil, message):
    rows = {
        (4, 7, 9): [1, 2, 3, 4],
        (5, 2, 1): [3, 4, 5, 6],
        (4, 7, 2): [8, 8, 8, 8],
        (4, 7, 77): [1, 1, 1, 1],
    }
    with pytest.raises(mx.errors.SchemaError, match=message):
        build_tuning_curves(spoil(curves(rows)), FITS, coregistration)


def test_rates_without_a_stated_convention_are_refused(coregistration):
    with pytest.raises(mx.errors.SchemaError, match="what 0 degrees means"):
        build_tuning_curves(
            curves({(4, 7, 9): [1, 2, 3, 4]}), mx.releases.TableSpec("my_fits"), coregistration
        )


def test_a_row_is_rated_whole_or_not_at_all(coregistration):
    table = curves({(4, 7, 9): [1, 2, 3, 4], (5, 2, 1): [3, 4, 5, 6]})
    table.loc[0, "rate_dir"] = "[1. nan 3. 4.]"
    table.loc[0, "rate_ori"] = "[nan nan]"
    tuning = build_tuning_curves(table, FITS, coregistration)
    assert np.isnan(tuning.rate_dir.values[0]).all()
    assert mx.tuning.collapse_scans(tuning).n_rated.values.tolist() == [1]


def test_real_curves_reach_their_neurons(real_data):
    release = mx.Release(661, source=real_data / "minnie65_v661")
    curves_ = release.tuning_curves()
    assert curves_.sizes == {"scan_unit": 6034, "direction": 16, "orientation": 8}
    assert curves_.attrs["n_unmatched"] == 0
    units = release.units(functional="match", rates=True)
    assert int((units.n_rated > 0).sum()) == 5336
    # Another group's unit table of this release holds the direction with the largest rate. (Its
    # table of rates holds the same curves under other neurons' ids, so it is compared as a set.)
    other = pd.read_csv(real_data / "minnie65_real" / "v661_unit_table.csv")
    other = other[other.tuning_type != "not_matched"].set_index("pt_root_id").pref_ori
    rated = units.isel(nucleus_id=np.flatnonzero(units.n_rated == 1))
    shared = np.isin(rated.pt_root_id.values, other.index)
    assert shared.sum() > 4000
    largest = rated.rate_dir.values[shared].argmax(axis=1)
    np.testing.assert_array_equal(largest, other.loc[rated.pt_root_id.values[shared]])
    activity = pd.read_csv(real_data / "minnie65_real" / "v661_activity_table.csv")
    theirs = activity.pivot(index="neuron_id", columns="angle_shown", values="rate").to_numpy()
    known = {tuple(row) for row in curves_.rate_dir.values.round(4)}
    assert np.mean([tuple(row) in known for row in theirs.round(4)]) > 0.99
