"""The unit table: who is a unit, what is known of each, and what was dropped."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from roots import ROOTS

import microns_xr as mx
from microns_xr.schema import UNITS, validate


def copies(tables):
    return {name: table.copy(deep=True) for name, table in tables.items()}


def of(units, nucleus_id, *names):
    """Values of some variables for one nucleus."""
    return [units[name].sel(nucleus_id=nucleus_id).item() for name in names]


def test_three_neurons_by_hand(three_tables):
    units = mx.build_units(three_tables, 1300)
    validate(units, "units")
    expected = {
        "nucleus_id": [11, 12, 13],
        "pt_root_id": [ROOTS[11], ROOTS[12], ROOTS[13]],
        "cell_type": ["23P", "5P-ET", "BC"],
        "brain_area": ["V1", "RL", "unknown"],
        "strategy_axon": ["axon_fully_extended", "axon_column_truncated", "none"],
        "strategy_dendrite": ["dendrite_extended", "none", "none"],
        "axon_completeness": ["full", "truncated", "none"],
        "axon_proofread": [True, True, False],
        "root_changed": [False, True, False],
        "tuning_type": ["unknown"] * 3,
    }
    assert {name: units[name].values.tolist() for name in expected} == expected
    assert mx.releases.read_counts(units, "selection") == {
        "nuclei": 6, "no_segment": 1, "shared_root": 2, "untyped": 0, "units": 3,
    }  # fmt: skip
    assert mx.releases.read_counts(units, "notes")["proofread_roots_of_no_unit"] == 1
    # depth grows with the voxel's y, 13 is the shallowest
    depth = units.position.sel(axis="y").values
    assert depth[2] < depth[0] < depth[1]
    assert units.materialization_version.item() == 1300


def test_every_variable_has_its_declared_dtype_and_a_description(three_tables):
    units = mx.build_units(three_tables, 1300, functional="best_only")
    for name, variable in units.data_vars.items():
        assert variable.attrs["long_name"] == UNITS[name].doc
        if UNITS[name].dtype == "text":
            assert variable.dtype == object
            assert all(isinstance(word, str) for word in variable.values)


def test_inputs_are_not_modified_and_order_of_rows_does_not_matter(three_tables):
    before = copies(three_tables)
    first = mx.build_units(three_tables, 1300, functional="best_only")
    for name, table in three_tables.items():
        pd.testing.assert_frame_equal(table, before[name])
    shuffled = {n: t.sample(frac=1, random_state=1) for n, t in three_tables.items()}
    second = mx.build_units(shuffled, 1300, functional="best_only")
    assert first.identical(second)


def test_tables_by_name_are_as_good_as_by_role(three_tables):
    spec = mx.releases.release_spec(1300)
    by_name = {spec.tables[role]: table for role, table in three_tables.items()}
    assert mx.build_units(by_name, 1300).identical(mx.build_units(three_tables, 1300))


def test_multisoma_any_drops_a_root_with_an_untyped_second_nucleus(three_tables):
    # 15 is typed, 16 is not; they share a root
    any_ = mx.build_units(three_tables, 1300)
    typed = mx.build_units(three_tables, 1300, multisoma="typed")
    assert 15 not in any_.nucleus_id
    assert typed.nucleus_id.values.tolist() == [11, 12, 13, 15]
    assert mx.releases.read_counts(typed, "selection")["shared_root"] == 0
    assert mx.releases.read_counts(typed, "selection")["untyped"] == 1


def test_untyped_nuclei_are_kept_on_request(three_tables):
    tables = copies(three_tables)
    tables["celltype"] = tables["celltype"].query("target_id != 13")
    assert mx.build_units(tables, 1300).nucleus_id.values.tolist() == [11, 12]
    kept = mx.build_units(tables, 1300, untyped="keep")
    assert kept.nucleus_id.values.tolist() == [11, 12, 13]
    assert kept.cell_type.sel(nucleus_id=13).item() == "unknown"
    assert kept.classification_system.sel(nucleus_id=13).item() == "unknown"
    both = mx.build_units(tables, 1300, untyped="keep", multisoma="typed")
    assert 16 not in both.nucleus_id  # untyped, on the root of the typed 15
    assert 15 in both.nucleus_id


@pytest.mark.parametrize("multisoma", ["any", "typed"])
@pytest.mark.parametrize("untyped", ["drop", "keep"])
def test_selection_adds_up(three_tables, multisoma, untyped):
    tables = {
        **three_tables,
        "celltype": three_tables["celltype"].query("target_id in (11, 12, 15)"),
    }
    units = mx.build_units(tables, 1300, multisoma=multisoma, untyped=untyped)
    n = mx.releases.read_counts(units, "selection")
    assert n["nuclei"] - n["no_segment"] - n["shared_root"] - n["untyped"] == n["units"]
    assert n["units"] == units.sizes["nucleus_id"] == len(np.unique(units.pt_root_id))


@pytest.mark.parametrize("role", ["celltype", "brain_area", "proofreading"])
def test_a_repeated_row_neither_drops_nor_doubles_a_neuron(three_tables, role):
    tables = copies(three_tables)
    tables[role] = pd.concat([tables[role], tables[role].iloc[:1]], ignore_index=True)
    units = mx.build_units(tables, 1300)
    expected = mx.build_units(three_tables, 1300)
    assert units.nucleus_id.equals(expected.nucleus_id)
    for name in expected.data_vars:
        assert units[name].equals(expected[name]), name


@pytest.mark.parametrize(
    ("role", "variable", "note"),
    [
        ("celltype", "cell_type", "contradicting_classifications"),
        ("celltype_fine", "cell_type", "contradicting_fine_types"),
        ("brain_area", "brain_area", "contradicting_areas"),
    ],
)
def test_of_contradicting_rows_the_latest_wins_and_they_are_counted(
    three_tables, role, variable, note
):
    fine = {"celltype_fine": "baylor_gnn_cell_type_fine_model_v2"}
    spec = mx.releases.release_spec(1300, fine if role in fine else None)
    tables = copies(three_tables)
    tables.setdefault(role, tables["celltype"])
    row = {"id": 50, "target_id": 11, "classification_system": "x", "cell_type": "MC", "tag": "AL"}
    columns = tables[role].columns
    tables[role] = pd.concat([pd.DataFrame([row])[columns], tables[role]], ignore_index=True)
    units = mx.build_units(tables, spec)
    assert of(units, 11, variable) == [row.get(variable, "AL")]
    assert mx.releases.read_counts(units, "notes")[note] == 1
    del tables[role]["id"]
    with pytest.raises(mx.errors.SchemaError, match=r"expected 'created' or 'id'.*keep one row"):
        mx.build_units(tables, spec)


@pytest.mark.parametrize("own", ["", "_ref"])
def test_latest_correction_of_a_table_that_was_merged_with_the_nuclei(three_tables, own):
    other = "_ref" if own == "" else ""
    corrections = pd.DataFrame(
        {
            "target_id": [11, 11],
            "classification_system": ["excitatory_neuron"] * 2,
            "cell_type": ["5P-IT", "4P"],
            f"id{own}": [2, 1],
            f"created{own}": ["2025-09-01", "2025-01-01"],
            f"id{other}": [11, 11],
            f"created{other}": ["2020-09-28", "2020-09-28"],
        }
    )
    # Also without the columns that somebody left out.
    for dropped in ([], [f"id{own}"], [f"id{other}"], ["id", "id_ref"], [f"created{other}"]):
        for words in (["5P-IT", "4P"], ["4P", "5P-IT"]):
            table = corrections.assign(cell_type=words).drop(columns=dropped)
            units = mx.build_units({**three_tables, "celltype_corrections": table}, 1718)
            assert units.cell_type.sel(nucleus_id=11).item() == words[0], dropped


def test_corrections_the_latest_wins(three_tables):
    corrections = pd.DataFrame(
        [
            (9, "2025-01-01", 11, "nonneuron", "OPC"),
            (1, "2025-06-01", 11, "nonneuron", "oligo"),
            (2, "2025-06-01", 11, None, "4P"),
            (4, None, 11, None, "5P-IT"),
            (3, "2025-01-01", 777, "nonneuron", "OPC"),
        ],
        columns=["id", "created", "target_id", "classification_system", "cell_type"],
    )
    units = mx.build_units({**three_tables, "celltype_corrections": corrections}, 1718)
    # The latest date, then the highest id. A row without a date is never the latest; an empty
    # word leaves the old one.
    assert of(units, 11, "cell_type", "classification_system") == ["4P", "excitatory_neuron"]
    notes = mx.releases.read_counts(units, "notes")
    assert notes["corrections"] == 2
    assert notes["corrections_that_change_a_nucleus"] == 1
    assert notes["nuclei_with_several_corrections"] == 1
    assert notes["corrections_of_unlisted_nuclei"] == 1
    odd = corrections.assign(created="yesterday-ish")
    with pytest.raises(mx.errors.SchemaError, match=r"created holds a value that is not a time"):
        mx.build_units({**three_tables, "celltype_corrections": odd}, 1718)


def test_type_words_have_one_spelling_and_the_raw_word_is_kept(three_tables):
    tables = copies(three_tables)
    tables["celltype"]["cell_type"] = ["23P", "5p-et", "Oligo", "MC", "BC"]
    units = mx.build_units(tables, 1300)
    assert units.cell_type.values.tolist() == ["23P", "5P-ET", "oligo"]
    assert units.cell_type_raw.values.tolist() == ["23P", "5p-et", "Oligo"]


def test_release_661_takes_classes_and_types_from_two_tables(three_tables):
    coarse = {
        "target_id": [11, 12, 13],
        "classification_system": "baylor_log_reg_cell_type_coarse",
        "cell_type": ["excitatory", "excitatory", "inhibitory"],
    }
    tables = {
        "nucleus": three_tables["nucleus"],
        "celltype": pd.DataFrame(coarse),
        "celltype_fine": pd.DataFrame({"target_id": [11, 12], "cell_type": ["23P", "5P-PT"]}),
        "proofreading": pd.DataFrame(
            [(ROOTS[11], "extended", "non"), (ROOTS[12], "clean", "extended")],
            columns=["pt_root_id", "status_axon", "status_dendrite"],
        ),
    }
    units = mx.build_units(tables, 661)
    expected = {
        "classification_system": ["excitatory_neuron"] * 2 + ["inhibitory_neuron"],
        "cell_type": ["23P", "5P-ET", "unknown"],
        "cell_type_raw": ["23P", "5P-PT", "unknown"],
        "strategy_axon": ["extended", "clean", "none"],
        "strategy_dendrite": ["none", "extended", "none"],
        # "extended" does not say how far
        "axon_completeness": ["unknown", "clean", "none"],
    }
    assert {name: units[name].values.tolist() for name in expected} == expected
    assert mx.select_units(units, axon="extended").nucleus_id.values.tolist() == [11]
    assert mx.select_units(units, axon="proofread").nucleus_id.values.tolist() == [11, 12]
    assert mx.select_units(units, axon="clean").nucleus_id.values.tolist() == [12]


def test_of_two_proofreading_entries_the_more_complete_wins(three_tables):
    a, b, c = ROOTS.values()
    none, dendrite = "none", "dendrite_extended"
    table = pd.DataFrame(
        [
            (a, "t", "axon_fully_extended", none),
            (a, "t", "axon_interareal", dendrite),
            (b, "f", none, dendrite),
            (b, "t", none, none),
            (c, "t", "odd_words", none),
        ],
        columns=["pt_root_id", "status_axon", "strategy_axon", "strategy_dendrite"],
    )
    for rows in (table, table[::-1]):
        units = mx.build_units({**three_tables, "proofreading": rows}, 1300)
        assert mx.releases.read_counts(units, "notes")["roots_proofread_twice"] == 2
        assert units.strategy_axon.values.tolist() == ["axon_fully_extended", "none", "odd_words"]
        assert units.strategy_dendrite.values.tolist() == ["none", "none", "none"]
        assert units.axon_completeness.values.tolist() == ["full", "clean", "unknown"]
        assert units.axon_proofread.values.all()


def test_functional_match_and_best_only_by_hand(three_tables):
    match = mx.build_units(three_tables, 1300, functional="match")
    assert match.tuning_type.values.tolist() == ["matched", "matched", "not_matched"]
    assert match.n_scans.values.tolist() == [2, 1, 0]  # twice within one scan counts once
    assert match.n_scan_units.values.tolist() == [3, 1, 0]
    # where there is exactly one recorded unit
    keys = [match[name].values.tolist() for name in ("session", "scan_idx", "unit_id")]
    assert keys == [[-1, 4, -1], [-1, 7, -1], [-1, 2, -1]]
    assert match.unit_id.dtype == np.int64
    assert mx.releases.read_counts(match, "notes")["scan_units_of_no_unit"] == 1
    best = mx.build_units(three_tables, 1300, functional="best_only")
    # 0.7 twice: the tie goes to the lower (session, scan_idx, unit_id)
    assert best.session.values.tolist() == [4, -1, -1]
    assert best.scan_idx.values.tolist() == [7, -1, -1]
    assert best.unit_id.values.tolist() == [3, -1, -1]
    np.testing.assert_array_equal(best.pref_ori.values, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(best.cc_abs.values, [0.7, np.nan, np.nan])
    assert best.session.dtype == best.unit_id.dtype == np.int64
    assert best.pref_ori.attrs["units"] == "radian"
    assert best.pref_ori.attrs["angle_convention"] == "up_clockwise"
    assert best.pref_ori.attrs["period"] == pytest.approx(np.pi)
    assert best.tuning_type.values.tolist() == ["matched", "matched", "not_matched"]


def test_options_and_functional_tables_that_do_not_exist(three_tables):
    with pytest.raises(mx.errors.SchemaError, match=r"Release\.functional"):
        mx.build_units(three_tables, 1300, functional="all")
    for option in ("functional", "multisoma", "untyped"):
        with pytest.raises(mx.errors.SchemaError, match=f"{option} is 'odd', expected one of"):
            mx.build_units(three_tables, 1300, **{option: "odd"})
    tables = copies(three_tables)
    del tables["functional_properties"]["gOSI"]
    with pytest.raises(mx.errors.SchemaError, match=r"lacks \['gOSI'\], which .*use functional="):
        mx.build_units(tables, 1300, functional="best_only")
    del tables["functional_properties"]
    with pytest.raises(mx.errors.SchemaError, match=r"role 'functional_properties' \(functional_"):
        mx.build_units(tables, 1300, functional="best_only")
    release = mx.Release(661, source=mx.sources.DemoSource(661, n_nuclei=500))
    with pytest.raises(mx.errors.SchemaError, match=r"v661 does not have: use functional='match'"):
        release.units(functional="best_only")


def test_one_log_line_says_what_was_dropped(three_tables, caplog):
    with caplog.at_level(logging.INFO, logger="microns_xr.units"):
        mx.build_units(three_tables, 1300)
    (record,) = [r for r in caplog.records if r.name == "microns_xr.units"]
    assert "3 of 6 nuclei are units (dropped: 1 no segment, 2 shared root" in record.getMessage()


def test_positions_may_be_text_or_columns(three_tables):
    tables = copies(three_tables)
    n = tables["nucleus"]
    text = [
        f"[{x} {y} {z}]"
        for x, y, z in zip(n.pt_position_x, n.pt_position_y, n.pt_position_z, strict=True)
    ]
    tables["nucleus"] = n[["id", "pt_root_id"]].assign(pt_position=text)
    assert mx.build_units(tables, 1300).identical(mx.build_units(three_tables, 1300))


BAD = {
    "float root ids": (
        "nucleus", lambda t: t.assign(pt_root_id=t.pt_root_id.astype(float)),
        r"nucleus_detection_v0\.pt_root_id has dtype float64, expected int64.*exported again"),
    "repeated nucleus": (
        "nucleus", lambda t: pd.concat([t, t.iloc[:1]]), r"nucleus_detection_v0 repeats 1 of 7 keys \(id\), first: 13"),
    "no position": (
        "nucleus", lambda t: t.drop(columns="pt_position_y"), r"nucleus_detection_v0 lacks the columns"),
    "empty": ("nucleus", lambda t: t.iloc[:0], r"nucleus_detection_v0 has no rows.*fetch it again"),
    "missing column": (
        "celltype", lambda t: t.rename(columns={"cell_type": "celltype"}),
        r"aibs_metamodel_celltypes_v661 lacks the columns \['cell_type'\].*nearest: celltype"),
    "numeric types": (
        "celltype", lambda t: t.assign(cell_type=1.5), r"celltypes_v661\.cell_type has dtype float64, expected text"),
    "null target": (
        "celltype", lambda t: t.assign(target_id=pd.array([11, None, 13, 14, 15], dtype="Int64")),
        r"target_id has 1 nulls in 5 rows"),
    "null as float": (
        "celltype", lambda t: t.assign(target_id=[11, None, 13, 14, 15]), r"target_id has 1 nulls in 5 rows"),
    "text id": (
        "proofreading", lambda t: t.assign(pt_root_id=["x", "y", "z"]), r"pt_root_id holds 'x', expected an integer id"),
    "not a table": ("nucleus", lambda t: [1], r"nucleus_detection_v0 is a list, expected a pandas"),
    "other release": (
        "celltype", lambda t: t.assign(target_id=t.target_id + 1000), r"5 of 5 rows of aibs_metamodel_celltypes_v661\.target_id meet no nucleus"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_name_table_column_found_and_what_to_do(three_tables, case):
    role, spoil, message = BAD[case]
    tables = {**three_tables, role: spoil(three_tables[role])}
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.build_units(tables, 1300)


def test_a_missing_table_is_named(three_tables):
    with pytest.raises(mx.errors.SchemaError, match="proofreading_status_and_strategy"):
        mx.build_units({k: v for k, v in three_tables.items() if k != "proofreading"}, 1300)
    with pytest.raises(mx.errors.SchemaError, match="synapse_table"):
        mx.build_units({**three_tables, "synapse_table": three_tables["nucleus"]}, 1300)


def test_valid_id_with_nulls_stays_exact(three_tables):
    a, b, _ = ROOTS.values()
    table = pd.DataFrame(
        {
            "pt_root_id": [a, b],
            "valid_id": pd.array([a + 1, None], dtype="Int64"),  # one apart: equal as floats
            "strategy_axon": ["axon_interareal"] * 2,
            "strategy_dendrite": ["none"] * 2,
        }
    )
    units = mx.build_units({**three_tables, "proofreading": table}, 1300)
    assert units.root_changed.values.tolist() == [True, False, False]
    table = table.assign(valid_id=[float(a), np.nan])
    with pytest.raises(mx.errors.SchemaError, match="valid_id has dtype float64"):
        mx.build_units({**three_tables, "proofreading": table}, 1300)


def test_classes_without_types_leave_layers_unknown(three_tables):
    spec = mx.releases.release_spec(661, tables={"celltype_fine": None})
    tables = {n: three_tables[n] for n in ("nucleus", "celltype", "proofreading")}
    tables["proofreading"] = tables["proofreading"].assign(status_dendrite="non")
    units = mx.build_units(tables, spec)
    assert set(units.cell_type.values) == set(units.layer.values) == {"unknown"}
    assert units.attrs["layer_types"] == []


def test_another_table_in_a_role(three_tables):
    spec = mx.releases.release_spec(
        1718, tables={"celltype": "cell_type_multifeature_combo", "celltype_corrections": None}
    )
    tables = copies(three_tables)
    tables["celltype"]["cell_type"] = ["L2IT", "L5ET", "BC", "MC", "BC"]
    units = mx.build_units(tables, spec)
    assert units.attrs["celltype_table"] == "cell_type_multifeature_combo"
    assert units.layer.sel(nucleus_id=11).item() == "L2/3"
    assert units.layer.sel(nucleus_id=12).item() == "L5"


def test_booleans_with_gaps_and_a_table_given_twice(three_tables):
    table = three_tables["proofreading"]
    table["status_axon"] = pd.array([True, None, False], dtype="boolean")
    units = mx.build_units({**three_tables, "proofreading": table}, 1300)
    assert units.axon_proofread.values.tolist() == [True, False, False]
    with pytest.raises(mx.errors.SchemaError, match="twice, by role and by name"):
        mx.build_units({**three_tables, "nucleus_detection_v0": three_tables["nucleus"]}, 1300)


@pytest.mark.parametrize("roots", [[5, 6, 7], [None, None, None]])
def test_proofreading_of_another_release(three_tables, roots):
    table = three_tables["proofreading"].iloc[:3].assign(pt_root_id=pd.array(roots, "Int64"))
    with pytest.raises(mx.errors.SchemaError, match=r"3 of 3 rows of \S+\.pt_root_id meet no nucl"):
        mx.build_units({**three_tables, "proofreading": table}, 1300)


def test_proofreading_of_which_most_rows_are_of_another_release(three_tables):
    first = three_tables["proofreading"].iloc[[0, 0, 0]]
    table = first.assign(pt_root_id=[ROOTS[11], 5, 6])
    with pytest.warns(mx.errors.DroppedRowsWarning, match="2 of 3 rows"):
        units = mx.build_units({**three_tables, "proofreading": table}, 1300)
    assert units.axon_completeness.sel(nucleus_id=12).item() == "none"


def test_areas_of_other_nuclei(three_tables):
    area = pd.DataFrame({"target_id": [901, 902], "tag": ["V1", "RL"]})
    with pytest.raises(
        mx.errors.SchemaError, match=r"2 of 2 rows of \S+\.target_id meet no nucleus"
    ):
        mx.build_units({**three_tables, "brain_area": area}, 1300)


def test_rates_in_another_convention_name_the_argument():
    release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    units = release.units(functional="best_only")
    curves = xr.Dataset(
        {"rate_ori": (("scan_unit", "orientation"), [[1.0, 2.0]])},
        coords={
            "nucleus_id": ("scan_unit", units.nucleus_id.values[:1]),
            "session": ("scan_unit", [4]),
            "scan_idx": ("scan_unit", [7]),
            "unit_id": ("scan_unit", [1]),
            "orientation": (
                "orientation",
                [0.0, 90.0],
                {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0},
            ),
        },
    )
    with pytest.raises(mx.errors.SchemaError, match=r"pass angle_convention= .* to Release\.units"):
        release.units(functional="best_only", rates=curves)
    both = release.units("best_only", rates=curves, angle_convention="right_counterclockwise")
    assert both.orientation.attrs["angle_convention"] == both.pref_ori.attrs["angle_convention"]
