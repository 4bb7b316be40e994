"""Functional rows: coregistration, tuning curves, and the way from recorded units to neurons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from roots import ROOTS

import microns_xr as mx
from microns_xr.releases import TableSpec, table_spec
from microns_xr.tuning.functional import build_functional, build_tuning_curves
from microns_xr.units import add_rates

KEYS = ["session", "scan_idx", "unit_id"]
FITS = table_spec("tuning_curves_fitted_v1")
# Neuron 11 in five scans, and twice in the last.
SIX = [(4, 7, 9), (5, 2, 1), (6, 2, 8), (7, 3, 5), (8, 5, 1553), (8, 5, 4463)]
LEVEL = [1.0, 2.0, 4.0, np.nan, 8.0, 16.0]


def build(table: pd.DataFrame, spec=None, **arguments) -> xr.Dataset:
    arguments = {"datastack": "d", "version": 1, **arguments}
    return build_functional(table, spec or TableSpec("t"), **arguments)


def curves(rows: dict[tuple[int, int, int], list[float]]) -> pd.DataFrame:
    """A fits file of four directions and two orientations, arrays as text."""
    keys = pd.DataFrame(list(rows), columns=KEYS)
    folded = [[(v[0] + v[2]) / 2, (v[1] + v[3]) / 2] for v in rows.values()]
    return keys.assign(
        rate_dir=[str(np.array(v, dtype=float)) for v in rows.values()],
        rate_ori=[str(np.array(v)) for v in folded],
    )


def rows(keys, nucleus, **columns) -> pd.DataFrame:
    table = pd.DataFrame(keys, columns=KEYS)
    root = [ROOTS.get(n, 0) for n in np.broadcast_to(nucleus, len(table)).tolist()]
    return table.assign(target_id=nucleus, pt_root_id=root, **columns)


def text(level: float, n: int) -> str:
    return "[" + " ".join(["nan" if np.isnan(level) else str(level)] * n) + "]"


def keys_of(dataset: xr.Dataset, nucleus: int | None = None) -> list[tuple[int, ...]]:
    """The keys of the rows (of one neuron), which must be integers."""
    assert all(dataset[k].dtype == np.int64 for k in [*KEYS, "nucleus_id"])
    if nucleus is not None:
        of_it = np.flatnonzero(dataset.nucleus_id.values == nucleus)
        dataset = dataset.isel({dataset.nucleus_id.dims[0]: of_it})
    return list(zip(*(dataset[k].values.tolist() for k in KEYS), strict=True))


@pytest.fixture
def coregistration(three_tables) -> xr.Dataset:
    spec = TableSpec("coregistration_manual_v4")
    return build(three_tables["coregistration"], spec, datastack="minnie65_public", version=1300)


CURVES = {
    (4, 7, 9): [1, 2, 3, 4], (5, 2, 1): [3, 4, 5, 6], (4, 7, 2): [8, 8, 8, 8], (4, 7, 77): [1, 1, 1, 1],
}  # fmt: skip


@pytest.fixture
def tuning(coregistration) -> xr.Dataset:
    return build_tuning_curves(curves(CURVES), FITS, coregistration)


@pytest.fixture(params=[1300, 1718])
def release(request, three_tables, tmp_path) -> mx.Release:
    """A folder of csv files; the properties of 1300 are in radians, those of 1718 in degrees."""
    spec = mx.releases.release_spec(request.param)
    manual = pd.concat([rows(SIX, 11), rows([(4, 7, 2)], 12), rows([(4, 7, 5)], 99)])
    manual = manual.sample(frac=1, random_state=1)
    unmatched = rows([(4, 7, 6)], 0).assign(target_id=pd.array([None], dtype="Int64"))
    turn = np.pi if request.param == 1300 else 180.0
    properties = rows(
        SIX,
        11,
        cc_abs=[0.3, 0.7, 0.7, np.nan, 0.2, 0.1],
        gOSI=0.5,
        gDSI=0.25,
        pref_ori=np.arange(6) * turn / 8,
        pref_dir=np.arange(6) * turn / 4,
    )
    tables = {
        **three_tables,
        "coregistration": pd.concat([manual, unmatched], ignore_index=True),
        # the automatic match gives the unit of 12 to 13 as well
        "coregistration_auto": pd.concat(
            [
                rows(SIX, 11, score=[1.0, 2, 9, 4, 9, 6], residual=[5.0, 2, 3, 4, 2, 6]),
                rows([(4, 7, 2)] * 2, [12, 13], score=[7.0, 3.0], residual=[1.0, 2.0]),
            ]
        ),
        "functional_properties": properties,
        # (9, 9, 1) is of a scan that nobody matched
        "tuning_curves": pd.DataFrame([*SIX, (4, 7, 2), (9, 9, 1)], columns=KEYS).assign(
            rate_dir=[text(v, 4) for v in [*LEVEL, 3.0, 7.0]],
            rate_ori=[text(v, 2) for v in [*LEVEL, 3.0, 7.0]],
        ),
    }
    for role, table in tables.items():
        table.to_csv(tmp_path / f"{spec.tables[role]}.csv", index=False)
    return mx.Release(request.param, source=tmp_path)


def test_a_unit_of_five_scans_in_the_rows_of_every_kind(release):
    manual = release.functional("manual")
    assert keys_of(manual, 11) == SIX
    assert keys_of(manual, -1) == [(4, 7, 6)]
    assert manual.sizes["scan_unit"] == 9
    assert manual.pt_root_id.values[manual.nucleus_id.values == 11].tolist() == [ROOTS[11]] * 6

    automatic = release.functional("auto")
    assert keys_of(automatic, 11) == SIX
    assert keys_of(automatic, 12) == keys_of(automatic, 13) == [(4, 7, 2)]
    good = release.functional("auto", min_score=4, max_residual=4)
    assert keys_of(good, 11) == [(6, 2, 8), (7, 3, 5), (8, 5, 1553)]
    assert keys_of(good, 12) == [(4, 7, 2)]
    assert keys_of(good, 13) == []

    twin = release.functional("digital_twin")
    assert keys_of(twin, 11) == SIX
    assert twin.identical(release.functional("functional_properties"))
    units = "radian" if release.version == 1300 else "degree"
    assert twin.pref_ori.attrs["units"] == units
    # 90 - x in the other convention, whatever the units
    other = mx.angles.convert(twin, "right_counterclockwise", "degree")
    mine = mx.angles.convert(twin, units="degree").pref_dir.values
    expected = np.mod(90 - mine, 360) if units == "radian" else mine
    np.testing.assert_allclose(other.pref_dir, expected, atol=1e-12)
    np.testing.assert_allclose(
        mx.angles.convert(twin, "up_clockwise", "degree").pref_dir,
        mine if units == "radian" else np.mod(90 - mine, 360),
        atol=1e-12,
    )

    curves = release.tuning_curves()
    assert keys_of(curves, 11) == SIX
    assert keys_of(curves, -1) == [(9, 9, 1)]
    np.testing.assert_array_equal(curves.rate_dir.values[curves.nucleus_id.values == 11, 0], LEVEL)


def test_a_unit_of_five_scans_becomes_one_row_per_neuron(release):
    curves = release.tuning_curves()
    twin = release.functional("digital_twin")
    automatic = release.functional("auto")

    mean = mx.tuning.collapse_scans(curves)
    assert mean.nucleus_id.values.tolist() == [11, 12]
    assert mean.rate_dir.sel(nucleus_id=11).values.tolist() == [31 / 5] * 4
    assert mean.n_rated.values.tolist() == [5, 1]
    assert mean.n_scan_units.values.tolist() == [6, 1]
    assert mean.n_scans.values.tolist() == [5, 1]

    assert keys_of(mx.tuning.collapse_scans(curves, "first"), 11) == [(4, 7, 9)]
    # 0.7 twice: the lower session; no value in (7, 3, 5)
    best = mx.tuning.collapse_scans(twin, "best", by="cc_abs")
    assert keys_of(best, 11) == [(5, 2, 1)]
    assert best.pref_ori.item() == twin.pref_ori.values[1]
    assert best.pref_ori.attrs == twin.pref_ori.attrs
    lowest = mx.tuning.collapse_scans(twin, "best", by="cc_abs", lowest=True)
    assert keys_of(lowest, 11) == [(8, 5, 4463)]
    assert lowest.attrs["collapse"] == "best by cc_abs (lowest)"
    # score: 9 in (6, 2, 8) and (8, 5, 1553); residual: 2 in (5, 2, 1) and (8, 5, 1553)
    assert keys_of(mx.tuning.collapse_scans(automatic, "best", by="score"), 11) == [(6, 2, 8)]
    nearest = mx.tuning.collapse_scans(automatic, "best", by="residual")
    assert keys_of(nearest, 11) == [(5, 2, 1)]
    assert nearest.attrs["collapse"] == "best by residual (lowest)"
    farthest = mx.tuning.collapse_scans(automatic, "best", by="residual", lowest=False)
    assert keys_of(farthest, 11) == [(8, 5, 4463)]
    # a coordinate will do; of the two units of the last session the lower
    assert keys_of(mx.tuning.collapse_scans(automatic, "best", by="session"), 11) == [(8, 5, 1553)]

    for collapsed in (mean, best, nearest):
        counts = ["n_scans", "n_scan_units"]
        assert all(collapsed[n].dtype == np.int64 for n in counts)
        assert collapsed[counts].sel(nucleus_id=11).to_array().values.tolist() == [5, 6]


def test_a_unit_of_five_scans_in_the_units(release, tmp_path):
    match = release.units(functional="match", rates=True)
    assert match.n_scans.values.tolist() == [5, 1, 0]
    assert match.n_scan_units.values.tolist() == [6, 1, 0]
    assert match.tuning_type.values.tolist() == ["matched", "matched", "not_matched"]
    assert match.n_rated.values.tolist() == [5, 1, 0]
    assert match.rate_ori.sel(nucleus_id=11).values.tolist() == [31 / 5] * 2
    assert mx.releases.read_counts(match, "notes")["rated_scan_units_of_no_unit"] == 1

    best = release.units(functional="best_only")
    assert keys_of(best) == [(5, 2, 1), (-1, -1, -1), (-1, -1, -1)]
    assert best.cc_abs.values[0] == 0.7
    assert release.units().tuning_type.values.tolist() == ["unknown"] * 3
    with pytest.raises(mx.errors.SchemaError, match="collapse_scans"):
        release.units(functional="all")

    first = release.units(functional="match", rates=True, collapse="first")
    assert first.rate_dir.sel(nucleus_id=11).values.tolist() == [1.0] * 4
    scored = mx.merge_table(
        release.tuning_curves(), release.functional("digital_twin"), ["cc_abs"], on="functional"
    )
    chosen = add_rates(release.units(), scored, "best", by="cc_abs")
    assert chosen.rate_dir.sel(nucleus_id=11).values.tolist() == [2.0] * 4
    assert chosen.n_rated.values.tolist() == [1, 0, 0]

    mx.write_store(tmp_path / "s.zarr", units=best, functional=release.functional("auto"))
    tree = mx.open_store(tmp_path / "s.zarr")
    assert keys_of(tree["functional"].to_dataset(), 11) == SIX
    assert keys_of(tree["units"].to_dataset())[0] == (5, 2, 1)


def test_a_unit_of_five_scans_joins_by_its_keys(release):
    manual, automatic = release.functional(), release.functional("auto")
    curves = release.tuning_curves()
    with pytest.raises(mx.errors.SchemaError, match="several rows for 1 unit"):
        mx.merge_table(manual, automatic[["residual"]], on="functional")  # of 12, or of 13?
    surer = release.functional("auto", min_score=4)
    both = mx.merge_table(manual, surer[["residual"]], on="functional")
    np.testing.assert_array_equal(
        both.residual.values[both.nucleus_id.values == 11], [np.nan, np.nan, 3, 4, 2, 6]
    )
    assert both.residual.values[both.nucleus_id.values == 12].tolist() == [1.0]
    assert keys_of(both) == keys_of(manual)
    rated = mx.merge_table(automatic, curves, on="functional")
    assert rated.rate_dir.values[rated.nucleus_id.values == 13, 0].tolist() == [3.0]
    assert mx.tuning.collapse_scans(rated[["rate_dir"]]).n_rated.values.tolist() == [5, 1, 1]
    inner = mx.merge_table(
        manual, release.functional("digital_twin")[["gOSI"]], on="functional", how="inner"
    )
    assert keys_of(inner) == SIX
    units = release.units(functional="best_only")
    joined = mx.merge_table(units, release.functional("auto")[["score"]], on="functional")
    np.testing.assert_array_equal(joined.score, [2.0, np.nan, np.nan])
    by_nucleus = mx.merge_table(
        units, mx.tuning.collapse_scans(automatic, "best", by="score")[["score"]]
    )
    assert by_nucleus.score.values.tolist() == [9.0, 7.0, 3.0]
    table = mx.to_table(rated)
    assert table[[*KEYS, "nucleus_id", "pt_root_id"]].dtypes.eq(np.int64).all()


def test_rows_carry_the_labels_of_their_neurons(release, tmp_path):
    units = release.units()
    for rows in (
        release.functional(),
        release.functional("auto"),
        release.functional("digital_twin"),
    ):
        assert {"cell_type", "layer", "brain_area", "axon_completeness"} <= set(rows.coords)
        for name in ("classification_system", "cell_type", "layer", "axon_completeness"):
            word_of = dict(zip(units.nucleus_id.values.tolist(), units[name].values, strict=True))
            expected = [word_of.get(i, "unknown") for i in rows.nucleus_id.values.tolist()]
            assert rows[name].values.tolist() == expected
            assert rows[name].dtype == object
    rows = release.functional()
    # they go with every array, and into the store
    counted = rows.pt_root_id.groupby("cell_type").count()
    assert counted.sum() == rows.sizes["scan_unit"]
    assert "cell_type" in counted.dims
    mx.write_store(tmp_path / "s.zarr", units=units, functional=rows)
    stored = mx.open_store(tmp_path / "s.zarr")["functional"].to_dataset()
    assert stored.cell_type.values.tolist() == rows.cell_type.values.tolist()
    assert "cell_type" in mx.to_table(rows)
    # one row per neuron has them too, also without a chosen unit, and merging does not mind
    best = mx.tuning.collapse_scans(release.functional("auto"), "best", by="score")
    word_of = units.cell_type.sel(nucleus_id=best.nucleus_id)
    assert best.cell_type.values.tolist() == word_of.values.tolist()
    assert mx.merge_table(units, best[["score"]]).cell_type.equals(units.cell_type)
    twin = release.functional("digital_twin")[["gOSI"]]
    assert mx.merge_table(rows, twin, on="functional").cell_type.equals(rows.cell_type)


def test_rows_without_the_tables_of_units_have_no_labels(tmp_path, three_tables, caplog):
    table = three_tables["coregistration"]
    table.to_csv(tmp_path / "coregistration_manual_v4.csv", index=False)
    rows = mx.Release(1300, source=tmp_path).functional()
    assert rows.sizes["scan_unit"] == len(table)
    assert "cell_type" not in rows.coords
    # nor with tables from which no units can be built
    for role, name in mx.releases.release_spec(1300).tables.items():
        if role in three_tables:
            of_role = three_tables[role]
            of_role = of_role.assign(target_id=999) if role == "celltype" else of_role
            of_role.to_csv(tmp_path / f"{name}.csv", index=False)
    rows = mx.Release(1300, source=tmp_path).functional()
    assert "cell_type" not in rows.coords
    assert "no units" in caplog.text


def test_the_real_neuron_of_five_units(real_data):
    release = mx.Release(661, source=real_data / "minnie65_v661")
    five = [(4, 7, 2650), (7, 4, 6039), (7, 5, 4046), (8, 5, 1553), (8, 5, 4463)]
    functional = release.functional()
    assert keys_of(functional, 582425) == five
    of_it = functional.isel(scan_unit=np.flatnonzero(functional.nucleus_id == 582425))
    assert of_it.pt_root_id.values.tolist() == [864691135492201823] * 5
    first = mx.tuning.collapse_scans(functional, "first")
    assert keys_of(first, 582425) == [five[0]]
    counts = first[["n_scans", "n_scan_units"]].sel(nucleus_id=582425)
    assert counts.to_array().values.tolist() == [4, 5]
    assert int((first.n_scan_units == 5).sum()) == 1
    assert int(first.n_scan_units.sum()) == functional.sizes["scan_unit"] == 13_922
    assert keys_of(mx.tuning.collapse_scans(functional, "best", by="session"), 582425) == [five[3]]
    # its curves are in no file: give it some, one of them incomplete
    fits = pd.DataFrame(five, columns=KEYS).assign(
        rate_dir=[text(v, 16) for v in [1.0, 2.0, np.nan, 8.0, 5.0]]
    )
    curves = build_tuning_curves(fits, table_spec("tuning_curves_fitted_v1"), functional)
    assert keys_of(curves, 582425) == five
    assert mx.tuning.collapse_scans(curves).rate_dir.values.tolist() == [[4.0] * 16]
    units = release.units(functional="match", rates=curves)
    one = units.sel(nucleus_id=582425)
    assert (one.n_scans.item(), one.n_scan_units.item(), one.n_rated.item()) == (4, 5, 4)
    assert one.rate_dir.values.tolist() == [4.0] * 16
    assert int((units.n_rated > 0).sum()) == 1


# What reaches the functional rows.


def test_null_nuclei_stay_integers_and_repeated_rows_count_once(three_tables):
    table = three_tables["coregistration"]
    table = pd.concat(
        [table.assign(id=range(5)), table.iloc[:2].assign(id=[10, 11])], ignore_index=True
    )
    table["target_id"] = pd.array([11, 11, 11, None, 99, 11, 11], dtype="Int64")
    functional = build(table)
    assert functional.sizes["scan_unit"] == 5
    assert functional.attrs["n_repeated_rows"] == 2
    assert sorted(functional.nucleus_id.values) == [-1, 11, 11, 11, 99]
    assert mx.tuning.collapse_scans(functional, "first").nucleus_id.values.tolist() == [11, 99]


def test_thresholds_of_automatic_matches(three_tables):
    table = three_tables["coregistration"]
    scored = table.assign(score=[1.0, 2, 3, 4, np.nan], residual=[5.0, 5, 9, 9, 1])
    assert build(scored, min_score=2).score.values.tolist() == [4, 3, 2]
    assert build(scored, min_score=2, max_residual=5).unit_id.values.tolist() == [1]
    with pytest.raises(mx.errors.SchemaError, match="no column 'score'"):
        build(table, min_score=2)
    with pytest.raises(mx.errors.SchemaError, match=r"t\.score has dtype .*expected numbers"):
        build(table.assign(score="5"), min_score=2)
    score = pd.Series([1, 2, 3, 4, None], dtype=object)
    for values in (score, score.astype("Int64")):
        all_scored = build(table.assign(score=values), min_score=-5)
        assert all_scored.score.values.tolist() == [4, 3, 1, 2]


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
    rows = build(table)
    assert rows.field.values.tolist() == [4, 3, 5, 1, -1]
    assert rows.field.dtype == np.int64
    np.testing.assert_array_equal(rows.depth, [4, np.nan, 5, 1, 2.5])
    assert rows.order.values.tolist() == [4, -1, 5, 1, 2]
    assert rows.good.dtype == bool
    assert rows.note.values.tolist() == ["d", "c", "e", "a", "unknown"]
    np.testing.assert_array_equal(rows.cc_abs, [1, 0, 1, 1, np.nan])
    assert rows.attrs["columns_left_out"] == ["trace", "rate_dir"]
    with pytest.raises(mx.errors.SchemaError, match=r"several columns \['note'\]"):
        build(pd.concat([table, table[["note"]]], axis=1))


def test_repeated_rows_that_differ_need_something_to_choose_by():
    table = pd.concat([rows(SIX, 11, cc=np.arange(6.0)), rows(SIX[:1], 11, cc=9.0)])
    with pytest.raises(
        mx.errors.SchemaError, match="session, scan_idx, unit_id, target_id several diff"
    ):
        build(table)
    dated = table.assign(id=range(7), created=["2022-01-01"] * 6 + ["2020-01-01"])
    for one in (dated, dated.iloc[::-1]):
        functional = build(one)
        assert functional.cc.values[0] == 0
        assert functional.attrs["n_contradicting_rows"] == 1
        assert functional.attrs["n_repeated_rows"] == 1
    # a row that does not say when is never the latest
    undated = dated.assign(created=["2022-01-01"] * 6 + [None])
    assert build(undated).cc.values[0] == 0
    assert build(undated.drop(columns="created")).cc.values[0] == 9


@pytest.mark.parametrize(
    ("units", "values", "expected"),
    [("radian", 170.0, "radians within 3.14159"), ("degree", 300.0, "degrees within 180")],
)
def test_angles_beyond_their_period_are_in_other_units(units, values, expected):
    stated = {"angle_units": units, "angle_convention": "up_clockwise"}
    with pytest.raises(
        mx.errors.SchemaError, match=rf"pref_ori holds {values:g}, expected {expected}"
    ):
        build(rows(SIX, 11, pref_ori=values), **stated)
    ids = xr.Dataset(coords={"nucleus_id": [11]})
    one = rows(SIX[:1], 11, pref_ori=values)
    with pytest.raises(mx.errors.SchemaError, match="correct the stated units"):
        mx.merge_table(ids, one, "pref_ori", **stated)


def test_a_table_outside_the_registry_states_its_angles(three_tables, tmp_path):
    rows(SIX, 11, pref_ori=10.0).to_csv(tmp_path / "my_table.csv", index=False)
    release = mx.Release(1300, source=tmp_path, tables={"functional_properties": "my_table"})
    with pytest.raises(mx.errors.SchemaError, match=r"my_table\.pref_ori is an angle"):
        release.functional("functional_properties")
    functional = release.functional(
        "functional_properties", angle_units="degree", angle_convention="right_counterclockwise"
    )
    assert functional.pref_ori.attrs["angle_convention"] == "right_counterclockwise"
    assert functional.pref_ori.attrs["period"] == 180
    known = table_spec("functional_properties_v3_bcm")
    with pytest.raises(mx.errors.SchemaError, match="is 'radian' in the registry, not 'degree'"):
        build(rows(SIX, 11, pref_ori=1.0), known, angle_units="degree")


def test_a_missing_measure_is_nan_where_the_others_are_whole_numbers():
    whole = rows(SIX[:2], 11, gOSI=pd.array([1, None], dtype="Int64"))
    plain = build(rows(SIX[:2], 11))
    for dataset in (build(whole), mx.merge_table(plain, whole, "gOSI", on="functional")):
        np.testing.assert_array_equal(dataset.gOSI, [1, np.nan])


def test_a_unit_that_says_different_things_is_still_refused():
    functional = build(rows(SIX, 11))
    table = build(rows([(4, 7, 9)] * 2, [12, 13], score=[1.0, 2.0]))
    with pytest.raises(mx.errors.SchemaError, match="several rows for 1 unit"):
        mx.merge_table(functional, table, on="functional")
    same = build(rows([(4, 7, 9)] * 2, [12, 13], score=[np.nan] * 2, note=["a", "a"]))
    assert mx.merge_table(functional, same, on="functional").note.values[0] == "a"


def test_ids_never_pass_through_float():
    odd = 2**53 + 1  # no float has this value
    coregistration = build(rows(SIX[:2], [odd, -1]))
    units = {k: np.array(v) for k, v in zip(KEYS, zip(*SIX[:3], strict=True), strict=True)}
    curves = pd.DataFrame({**units, "rate_ori": ["[1. 2.]"] * 3})
    built = build_tuning_curves(curves, table_spec("tuning_curves_fitted_v1"), coregistration)
    assert built.nucleus_id.dtype == np.int64
    assert sorted(built.nucleus_id.values.tolist()) == [-1, -1, odd]


# Tuning curves.


def test_tuning_curves_join_by_session_scan_and_unit(tuning):
    assert tuning.nucleus_id.values.tolist() == [12, 11, -1, 11]
    assert tuning.attrs["n_unmatched"] == 1
    assert tuning.rate_dir.dims == ("scan_unit", "direction")
    assert tuning.direction.values.tolist() == [0, 90, 180, 270]
    assert tuning.orientation.values.tolist() == [0, 90]
    assert tuning.orientation.attrs["angle_convention"] == "up_clockwise"
    np.testing.assert_array_equal(tuning.rate_ori.values[1], [2, 3])


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
    with pytest.raises(mx.errors.SchemaError, match=message):
        build_tuning_curves(spoil(curves(CURVES)), FITS, coregistration)


def test_rates_without_a_stated_convention_are_refused(coregistration):
    with pytest.raises(mx.errors.SchemaError, match="call states the convention"):
        build_tuning_curves(curves({(4, 7, 9): [1, 2, 3, 4]}), TableSpec("my_fits"), coregistration)


def test_a_row_is_rated_whole_or_not_at_all(coregistration):
    table = curves({(4, 7, 9): [1, 2, 3, 4], (5, 2, 1): [3, 4, 5, 6]})
    table.loc[0, "rate_dir"] = "[1. nan 3. 4.]"
    table.loc[0, "rate_ori"] = "[nan nan]"
    tuning = build_tuning_curves(table, FITS, coregistration)
    assert np.isnan(tuning.rate_dir.values[0]).all()
    assert mx.tuning.collapse_scans(tuning).n_rated.values.tolist() == [1]


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


# One row per neuron.


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


def test_ties_do_not_depend_on_the_order_of_rows(three_tables):
    spec = table_spec("functional_properties_v3_bcm")
    results = []
    for seed in range(5):
        table = three_tables["functional_properties"].sample(frac=1, random_state=seed)
        results.append(mx.tuning.collapse_scans(build(table, spec), "best", by="cc_abs"))
    assert all(r.identical(results[0]) for r in results)
    assert results[0].unit_id.sel(nucleus_id=11).item() == 3


def test_mean_says_what_it_left_out(coregistration, tuning):
    functional = mx.merge_table(
        coregistration.assign(score=("scan_unit", np.ones(5))), tuning, on="functional"
    )
    assert mx.tuning.collapse_scans(functional).attrs["left_out"] == ["pt_root_id", "score"]


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


def test_missing_values_of_by_are_never_the_best():
    functional = build(rows(SIX, 11, n_trials=pd.array([None, 2, None, 2, 1, None], dtype="Int64")))
    assert functional.n_trials.values.tolist() == [-1, 2, -1, 2, 1, -1]
    best = mx.tuning.collapse_scans(functional, "best", by="n_trials")
    assert keys_of(best) == [(5, 2, 1)]
    lowest = mx.tuning.collapse_scans(functional, "best", by="n_trials", lowest=True)
    assert keys_of(lowest) == [(8, 5, 1553)]
    nothing = functional.assign(n_trials=functional.n_trials * 0 - 1)
    assert keys_of(mx.tuning.collapse_scans(nothing, "best", by="n_trials")) == [(-1, -1, -1)]
    infinite = functional.assign(cc=("scan_unit", [np.inf, 0.1, np.nan, 0.1, 0, -np.inf]))
    assert keys_of(mx.tuning.collapse_scans(infinite, "best", by="cc")) == [(5, 2, 1)]


def test_an_index_over_the_keys_is_accepted():
    functional = build(rows(SIX, 11)).set_index(scan_unit=KEYS)
    assert keys_of(mx.tuning.collapse_scans(functional, "first")) == [SIX[0]]


def test_standard_errors_are_neither_averaged_nor_a_reason_to_leave_a_unit_out():
    functional = build(rows(SIX[:2], 11))
    responses = xr.DataArray(
        [[1.0, 3.0, 5.0], [2.0, np.nan, 8.0]], dims=("scan_unit", "trial"),
        coords={"direction": ("trial", [0.0, 0.0, 90.0])},
    )  # fmt: skip
    statistics = functional.merge(mx.tuning.trial_statistics(responses))
    assert np.isnan(statistics.rate_error.values[1]).all()
    collapsed = mx.tuning.collapse_scans(statistics)
    assert collapsed.rate.values.tolist() == [[2.0, 6.5]]
    assert collapsed.n_rated.values.tolist() == [2]
    assert set(collapsed.attrs["left_out"]) == {"pt_root_id", "rate_error", "n_trials"}


def test_repeated_rows_and_rows_of_two_releases_do_not_count_twice():
    functional = build(rows(SIX, 11))
    twice = xr.concat(
        [functional, functional], "scan_unit", data_vars="minimal", coords="minimal",
        compat="override",
    )  # fmt: skip
    with pytest.raises(mx.errors.SchemaError, match="repeats 6 of 12 rows"):
        mx.tuning.collapse_scans(twice, "first")
    version = xr.Variable("scan_unit", np.array([1] * 3 + [2] * 3))
    with pytest.raises(mx.errors.ReleaseMismatchError, match="several releases"):
        mx.tuning.collapse_scans(functional.assign_coords(materialization_version=version), "first")


def test_collapse_refuses_what_has_no_meaning(three_tables, tuning):
    spec = table_spec("functional_properties_v3_bcm")
    properties = build(three_tables["functional_properties"].assign(note="a"), spec)
    with pytest.raises(
        mx.errors.SchemaError, match=r"cannot average the angles \['pref_ori', 'pref_dir'\]"
    ):
        mx.tuning.collapse_scans(properties)
    with pytest.raises(mx.errors.SchemaError, match="requires by="):
        mx.tuning.collapse_scans(properties, "best")
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: cc_abs"):
        mx.tuning.collapse_scans(properties, "best", by="cc_ab")
    with pytest.raises(mx.errors.SchemaError, match="expected one of mean, best, first"):
        mx.tuning.collapse_scans(tuning, "median")
    with pytest.raises(mx.errors.SchemaError, match="nucleus_id is absent"):
        mx.tuning.collapse_scans(tuning.drop_vars("nucleus_id"))
    with pytest.raises(mx.errors.SchemaError, match="is an angle"):
        mx.tuning.collapse_scans(properties, "best", by="pref_ori")
    for dataset, by in ((properties, "note"), (tuning, "rate_dir")):
        with pytest.raises(mx.errors.SchemaError, match="expected one number per unit"):
            mx.tuning.collapse_scans(dataset, "best", by=by)
    with pytest.raises(mx.errors.SchemaError, match="by='note' requires how='best'"):
        mx.tuning.collapse_scans(properties, "first", by="note")
    with pytest.raises(mx.errors.SchemaError, match="lowest=True requires by="):
        mx.tuning.collapse_scans(tuning, "first", lowest=True)
