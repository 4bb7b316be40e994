"""Tables as people have them: written by pandas, views of the service, other names and words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from roots import ROOTS

import microns_xr as mx
from microns_xr.tables import require_shared_ids
from microns_xr.tuning.functional import build_functional, build_tuning_curves


@pytest.fixture
def units(three_tables):
    return mx.build_units(three_tables, 1300)


def _index_column(name):
    return lambda t: pd.concat(
        [pd.DataFrame({name: range(len(t))}), t.reset_index(drop=True)], axis=1
    )


WRITTEN = {
    "unnamed index": _index_column("Unnamed: 0"),
    "blank name": _index_column(""),
    "index of parquet": _index_column("__index_level_0__"),
    "byte order mark": lambda t: t.rename(columns={t.columns[0]: "\ufeff" + t.columns[0]}),
    "upper case": lambda t: t.rename(columns=str.upper),
    "spaces": lambda t: t.rename(columns=" {} ".format),
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
def test_names_of_columns_as_people_write_them(three_tables, written, tmp_path):
    tables = {role: WRITTEN[written](table) for role, table in three_tables.items()}
    expected = mx.build_units(three_tables, 1300, functional="best_only")
    assert mx.build_units(tables, 1300, functional="best_only").identical(expected)
    functional = build_functional(
        tables["functional_properties"], mx.releases.release_spec(1300).table_of("functional_properties"),
        datastack="minnie65_public", version=1300,
    )  # fmt: skip
    assert list(functional.data_vars) == ["pref_ori", "pref_dir", "gOSI", "gDSI", "cc_abs"]
    assert set(functional.coords) >= {"nucleus_id", "pt_root_id", "session", "scan_idx", "unit_id"}
    table = WRITTEN[written](pd.DataFrame({"target_id": [11], "score": [0.5]}))
    merged = mx.merge_table(expected, table)
    assert set(merged.variables) - set(expected.variables) == {"score"}
    spec = mx.releases.release_spec(1300)
    for role, table in tables.items():
        table.to_csv(tmp_path / f"{spec.tables[role]}.csv", index=False, lineterminator="\r\n")
    read = mx.Release(1300, source=tmp_path).units(functional="best_only")
    assert read.drop_attrs().identical(expected.drop_attrs())


def test_an_index_of_own_data_is_no_variable():
    table = pd.DataFrame({"Unnamed: 0": [0, 1], "nucleus_id": [5, 7], "Layer": ["L4", "L5"]})
    assert set(mx.as_units(table).variables) == {"nucleus_id", "Layer"}
    assert mx.as_units(table[["Unnamed: 0", "Layer"]], id="Unnamed: 0").nucleus_id.values.tolist() == [0, 1]  # fmt: skip


@pytest.fixture
def cell_info(three_tables):
    """The view of all nuclei, one without a type; 13 is called an error."""
    nuclei = three_tables["nucleus"]
    rows = pd.DataFrame(
        {
            "id": [11, 12, 13, 14, 15, 16],
            "broad_type": ["excitatory", "excitatory", "inhibitory", None, None, "nonneuron"],
            "broad_type_source": "x",
            "cell_type": ["WM-P", "5P-ET", "error", None, None, "oligo"],
            "mtype": ["L6wm", "L5ET", "PTC", None, None, None],
            "visual_area": ["V1", "RL", None, None, None, None],
            "axon_cleaned": ["t", "t", "f", "f", "f", "f"],
            "dendrite_strategy": ["dendrite_extended", None, None, None, None, None],
            "axon_strategy": ["axon_fully_extended", "axon_column_truncated"] + [None] * 4,
        }
    )
    return rows.merge(nuclei, on="id")


def test_the_view_of_all_cells_in_every_role(three_tables, cell_info):
    spec = mx.releases.release_spec(
        1718,
        dict.fromkeys(["nucleus", "celltype", "brain_area", "proofreading"], "aibs_cell_info")
        | dict.fromkeys(["coregistration", "celltype_corrections"]),
    )
    roles = ["nucleus", "celltype", "brain_area", "proofreading"]
    units = mx.build_units(dict.fromkeys(roles, cell_info), spec)
    expected = mx.build_units(three_tables, 1300)
    for name in ("nucleus_id", "pt_root_id", "classification_system", "brain_area"):
        np.testing.assert_array_equal(units[name], expected[name])
    for name in ("strategy_axon", "strategy_dendrite", "axon_completeness"):
        np.testing.assert_array_equal(units[name], expected[name])
    assert units.cell_type.values.tolist() == ["6P-CT", "5P-ET", "unknown"]
    assert units.cell_type_raw.values.tolist() == ["WM-P", "5P-ET", "error"]
    assert mx.releases.read_counts(units, "selection")["units"] == 3
    # Merge errors were removed, to an extent that is not stated.
    without = cell_info.assign(
        axon_strategy=[None] * 6, axon_cleaned=["f", "t", "f", "f", "f", "f"]
    )
    units = mx.build_units(dict.fromkeys(roles, without), spec)
    assert units.axon_completeness.values.tolist() == ["none", "clean", "none"]
    assert units.axon_proofread.values.tolist() == [False, True, False]
    kept = mx.build_units(dict.fromkeys(roles, cell_info), spec, multisoma="typed")
    assert kept.nucleus_id.values.tolist() == [11, 12, 13, 16]  # 15, without a type, is none


def test_the_view_of_all_cells_is_merged_by_its_id(units, cell_info):
    columns = ["mtype", "broad_type"]
    by_id = mx.merge_table(units, cell_info, columns, key="id")
    assert by_id.mtype.values.tolist() == ["L6wm", "L5ET", "PTC"]
    # Its name says that the id is that of the nucleus, whoever fetched it.
    for attr in ("table", "table_name"):
        named = cell_info.copy()
        named.attrs[attr] = "aibs_cell_info"
        assert mx.merge_table(units, named, columns).mtype.equals(by_id.mtype)
    own = mx.as_units(
        cell_info.drop(columns="pt_root_id"), id="id", resolution_nm=(4, 4, 40), datastack="minnie65_public",
    )  # fmt: skip
    np.testing.assert_allclose(own.position.sel(nucleus_id=units.nucleus_id), units.position)


WORDS = {
    "allen_v1_column_types_slanted_ref": (
        ["aibs_coarse_excitatory", "aibs_coarse_excitatory", "aibs_coarse_inhibitory"],
        ["WM-P", "5P_PT", "Unsure"],
        ["6P-CT", "5P-ET", "unknown"],
    ),
    "aibs_metamodel_mtypes_v661_v2": (
        ["excitatory", "excitatory_neuron", "inhibitory"], ["L6b", "L2a", "PTC"], ["L6b", "L2a", "PTC"],
    ),
    "allen_column_mtypes_v2": (
        ["excitatory_neuron", "excitatory", "inhibitory_neuron"], ["L6b", "L2a", "PTC"], ["L6b", "L2a", "PTC"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_words_of_other_classifications(three_tables, name):
    classes, types, expected = WORDS[name]
    table = pd.DataFrame(
        {"target_id": [11, 12, 13], "classification_system": classes, "cell_type": types}
    )
    spec = mx.releases.release_spec(1300, {"celltype": name})
    units = mx.build_units({**three_tables, "celltype": table}, spec)
    assert units.cell_type.values.tolist() == expected
    assert units.classification_system.values.tolist() == [
        "excitatory_neuron", "excitatory_neuron", "inhibitory_neuron",
    ]  # fmt: skip
    lines = units.attrs["layer_types"]  # "L5: 5P-ET, 5P-IT"
    known = {word for line in lines for word in line.split(": ")[1].split(", ")}
    assert set(expected) - {"unknown"} <= known


@pytest.mark.parametrize("drop", ["target_id", "pt_root_id"])
@pytest.mark.parametrize("role", ["celltype", "brain_area", "coregistration", "functional_properties"])  # fmt: skip
def test_tables_keyed_by_root_alone_or_by_nucleus_id(three_tables, role, drop):
    mode = "match" if role == "coregistration" else "best_only"
    expected = mx.build_units(three_tables, 1300, functional=mode)
    table = three_tables[role]
    roots = three_tables["nucleus"].set_index("id")["pt_root_id"]
    table = table.assign(pt_root_id=roots.reindex(table["target_id"], fill_value=0).to_numpy())
    table = table.rename(columns={"target_id": "nucleus_id"}).drop(
        columns={"target_id": "nucleus_id", "pt_root_id": "pt_root_id"}[drop]
    )
    units = mx.build_units({**three_tables, role: table}, 1300, functional=mode)
    for name in ("nucleus_id", "cell_type", "brain_area", "tuning_type", "unit_id", "n_scan_units"):
        np.testing.assert_array_equal(units[name], expected[name])


@pytest.mark.parametrize("name", ["digital_twin_properties_bcm_coreg_auto_phase3_fwd_v2", "digital_twin_properties_bcm_coreg_apl_vess_fwd"])  # fmt: skip
def test_digital_twins_of_the_automatic_matches_state_their_angles(three_tables, name):
    table = three_tables["functional_properties"].drop(columns="pt_root_id")
    table = table.assign(pref_ori=table["pref_ori"] * 57, pref_dir=table["pref_dir"] * 57)
    spec = mx.releases.release_spec(1718, {"functional_properties": name})
    units = mx.build_units(
        {**three_tables, "functional_properties": table}, spec, functional="best_only"
    )
    assert units.pref_ori.attrs["units"] == "degree"
    assert units.pref_ori.attrs["angle_convention"] == "right_counterclockwise"
    table.attrs["table_name"] = name
    rows = build_functional(
        three_tables["coregistration"], spec.table_of("coregistration"),
        datastack="minnie65_public", version=1718,
    )  # fmt: skip
    merged = mx.merge_table(rows, table, ["pref_ori"], on="functional")
    assert merged.pref_ori.attrs["units"] == "degree"


@pytest.mark.parametrize(
    ("columns", "on", "message"),
    [
        (["id", "x"], "nucleus_id", "pass key='id' if that column holds nucleus ids"),
        (["neuron", "x"], "nucleus_id", "pass key=, the name of the column with the nucleus_ids"),
        (["pt_root_id", "x"], "nucleus_id", "on='pt_root_id' to match root ids of the same release"),
        (["session", "scan_idx", "unit_id"], "nucleus_id", "on='functional' to match recorded units"),
        (["session", "scan_idx", "cell_id", "target_id"], "functional", r"pass key=\[...\].*on='nucleus_id'"),
        (["root_id", "x"], "pt_root_id", "nearest: .*root_id.*pass key="),
    ],
)  # fmt: skip
def test_a_key_of_another_name_is_asked_for(units, columns, on, message):
    functional = units.assign(dict.fromkeys(("session", "scan_idx", "unit_id"), units.nucleus_id))
    table = pd.DataFrame([[11] * len(columns)], columns=columns)
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.merge_table(functional, table, on=on)


def test_keys_of_other_names(units, three_tables):
    table = pd.DataFrame({"neuron": [ROOTS[11]], "pt_root_id": [5], "id_ref": [3], "x": [1.5]})
    merged = mx.merge_table(units, table, on="pt_root_id", key="neuron")
    assert set(merged.variables) - set(units.variables) == {"x"}
    assert merged.x.sel(nucleus_id=11).item() == 1.5
    rows = build_functional(
        three_tables["coregistration"], mx.releases.TableSpec("c"),
        datastack="minnie65_public", version=1300,
    )  # fmt: skip
    fits = pd.DataFrame({"session": [4], "scan": [7], "cell": [2], "k": [0.25]})
    merged = mx.merge_table(rows, fits, on="functional", key=["session", "scan", "cell"])
    assert merged.k.values[merged.unit_id.values == 2].tolist() == [0.25]
    with pytest.raises(mx.errors.SchemaError, match="expected the columns of"):
        mx.merge_table(rows, fits, on="functional", key="cell")


def test_a_join_without_a_match_is_a_warning_at_the_line_of_the_call(units):
    table = pd.DataFrame({"pt_root_id": [864691130000000009], "x": [1.5]})
    with pytest.warns(mx.errors.DroppedRowsWarning, match="none of the 1 rows") as record:
        merged = mx.merge_table(units, table, on="pt_root_id")
    assert record[0].filename == __file__
    assert merged.x.isnull().all()


# Real tables: each is used with one call, or the error names the argument.
REAL = {
    "v1300_cell_info": {"on": "pt_root_id"},
    "v661_proofreading": {"on": "pt_root_id"},
    "v661_functionally_matched": {"on": "functional"},
    "v1300_unit_table": {"columns": ["axon_proof", "pial_dist_y"]},
    "v661_unit_table": {"columns": ["osi"], "on": "pt_root_id"},
    "v661_finect": {"columns": ["id"]},
}


def test_real_tables_are_merged_with_one_call(real_data):
    source = mx.sources.DirectorySource(real_data / "minnie65_v661")
    matches = source.read("coregistration_manual_v3")
    one = matches.drop_duplicates("target_id")[["target_id", "session", "scan_idx", "unit_id"]]
    nuclei = source.read("nucleus_detection_v0")[["id", "pt_root_id"]]
    nuclei = nuclei.merge(one, left_on="id", right_on="target_id", how="left")
    nuclei = nuclei[~nuclei.pt_root_id.duplicated(keep=False)].drop(columns="target_id")
    units = mx.as_units(nuclei, id="id", datastack="minnie65_public", version=661)
    source = mx.sources.DirectorySource(real_data / "minnie65_real")
    for name, options in REAL.items():
        merged = mx.merge_table(units, source.read(name), **options)
        np.testing.assert_array_equal(merged.nucleus_id, units.nucleus_id, name)
    # Fits name the unit cell_id.
    fits = source.read("orientation_fits_v661").query("tuning_type == 'single'")
    keys = ["session", "scan_idx", "cell_id"]
    merged = mx.merge_table(units, fits, ["pvalue"], on="functional", key=keys)
    plain = one.rename(columns={"unit_id": "cell_id"}).merge(fits, on=keys)
    n = plain.target_id.isin(units.nucleus_id.values).sum()
    assert np.isfinite(merged.pvalue).sum() == n > 4000
    areas = mx.merge_table(units, source.read("area_membership"), on="functional")
    assert set(areas.brain_area.values) == {"V1", "LM", "RL", "AL", "unknown"}
    cells = source.read("v1300_cell_info")
    cells = mx.as_units(
        cells, id="pt_root_id", resolution_nm=(1, 1, 1), datastack="minnie65_public"
    )
    published = source.read("v1300_unit_table").set_index("pt_root_id")
    depth = cells.position.sel(nucleus_id=published.index.values, axis="y").values
    np.testing.assert_allclose(depth, published.pial_dist_y, atol=1e-9)


# Rows that are equal in time and id, and ids that went through floats.


@pytest.mark.parametrize("role", ["celltype", "brain_area", "coregistration", "proofreading"])
def test_ties_do_not_depend_on_the_order_of_the_file(three_tables, role):
    table = three_tables[role].assign(created="2025-01-01", id=5)
    other = table.assign(**{
        "celltype": {"cell_type": "NGC"},
        "brain_area": {"tag": "AL"},
        "coregistration": {"field": 3},
        "proofreading": {"strategy_axon": "axon_new", "strategy_dendrite": "x"},
    }[role])  # fmt: skip
    if role == "proofreading":
        table = table.assign(strategy_axon="axon_newer")
    if role == "coregistration":
        table["field"] = 2
    built = []
    for rows in ([table, other], [other, table]):
        tables = {**three_tables, role: pd.concat(rows, ignore_index=True)}
        if role == "coregistration":
            built.append(
                build_functional(
                    tables[role], mx.releases.TableSpec("c"), datastack="minnie65_public", version=1300
                )
            )  # fmt: skip
        else:
            built.append(mx.build_units(tables, 1300))
    assert built[0].identical(built[1])


def test_of_spellings_of_equal_number_the_first_of_the_alphabet(three_tables):
    for words in (["X", "x", "BC", "MC", "BC"], ["x", "X", "BC", "MC", "BC"]):
        types = three_tables["celltype"].assign(cell_type=words)
        units = mx.build_units({**three_tables, "celltype": types}, 1300)
        assert units.cell_type.values.tolist() == ["X", "X", "BC"]


def test_root_ids_that_went_through_floats_pass_no_door(units, three_tables, tmp_path):
    rounded = [int(np.float64(root)) for root in (ROOTS[11], ROOTS[12] + 10**6, ROOTS[13] + 10**7)]
    assert all(root % 128 == 0 for root in rounded)
    spoilt = units.assign_coords(pt_root_id=("nucleus_id", rounded))
    partners = {"pre_nucleus_id": [11], "post_nucleus_id": [12], "size": [5]}
    by_nucleus = mx.build_connectivity(pd.DataFrame(partners), units)
    by_root = pd.DataFrame({"pre_pt_root_id": rounded, "post_pt_root_id": rounded, "size": 1})
    other = pd.DataFrame({"nucleus_id": [11, 12, 13], "old_root_id": rounded})
    doors = {
        "to_table": lambda: mx.to_table(spoilt),
        "write_store": lambda: mx.write_store(tmp_path / "s.zarr", units=spoilt),
        "units of synapses": lambda: mx.build_connectivity(by_root[:0], spoilt),
        "synapses": lambda: mx.build_connectivity(by_root, units),
        "table of connectivity": lambda: mx.to_table(
            by_nucleus.assign_coords(post_pt_root_id=("post_nucleus_id", rounded[:1]))
        ),
        "merge": lambda: mx.merge_table(units, other),
        "merge floats": lambda: mx.merge_table(units, other.astype({"old_root_id": float})),
        "own": lambda: mx.as_units(other.rename(columns={"old_root_id": "pt_root_id"})),
        "own, of another release": lambda: mx.as_units(other),
    }
    del doors["table of connectivity"]  # one id is no evidence
    for door, call in doors.items():
        with pytest.raises(mx.errors.SchemaError, match=r"floats"):
            call()
        assert not (tmp_path / "s.zarr").exists(), door


def test_a_table_of_nucleus_ids_needs_no_release(units):
    own = mx.as_units(pd.DataFrame({"nucleus_id": [11, 12, 13]}))
    table = pd.DataFrame({"id": [1, 2], "pre_nucleus_id": [11, 11], "post_nucleus_id": [12, 13], "size": [5, 7]})  # fmt: skip
    connectivity = mx.build_connectivity(table, own)
    assert connectivity.synapse_size.sel(pre_nucleus_id=11).values.tolist() == [5, 7]
    assert "datastack" not in connectivity.coords
    roots = table.rename(columns=lambda name: name.replace("nucleus", "pt_root"))
    with pytest.raises(mx.errors.ReleaseMismatchError, match="no coordinate 'datastack'"):
        mx.build_connectivity(roots, units.drop_vars(["datastack", "materialization_version"]))


def test_matches_and_curves_that_meet_nothing(three_tables):
    spec = mx.releases.release_spec(1300)
    nuclei = three_tables["nucleus"]
    about = {"datastack": "minnie65_public", "version": 1300, "nuclei": nuclei}
    table = three_tables["coregistration"]
    with pytest.raises(mx.errors.SchemaError, match=r"5 of 5 rows of .*target_id meet no nucleus"):
        build_functional(table.assign(target_id=99), spec.table_of("coregistration"), **about)
    most = table.assign(target_id=[11, 99, 98, 97, 96])
    with pytest.warns(mx.errors.DroppedRowsWarning, match="4 of 5 rows"):
        build_functional(most, spec.table_of("coregistration"), **about)
    rows = build_functional(table, spec.table_of("coregistration"), **about)
    curves = pd.DataFrame(
        {"session": [99], "scan_idx": [7], "unit_id": [9], "rate_ori": [[1.0, 2.0]]}
    )
    with pytest.warns(mx.errors.DroppedRowsWarning, match="none of the 1 recorded units"):
        build_tuning_curves(curves, spec.table_of("tuning_curves"), rows)


def test_few_matches_by_root_are_surprising_sooner_than_by_nucleus():
    """Nucleus ids are the same in every release, so that rows of others are only of other cells."""
    ids = np.arange(1, 61)
    require_shared_ids(ids, ids[12:], "t.target_id")  # 48 of 60
    require_shared_ids(ids, ids[11:], "t.pt_root_id")
    require_shared_ids(ids[:10], ids[5:], "t.pt_root_id")  # a few rows
    with pytest.warns(mx.errors.DroppedRowsWarning, match="12 of 60 rows of t.pt_root_id meet"):
        require_shared_ids(ids, ids[12:], "t.pt_root_id")


def test_a_release_without_areas_has_no_such_variable(three_tables):
    del three_tables["brain_area"]
    units = mx.build_units(three_tables, 1300)
    assert "brain_area" not in units
    areas = pd.DataFrame({"nucleus_id": [11], "brain_area": ["V1"]})
    assert mx.merge_table(units, areas).brain_area.values.tolist() == ["V1", "unknown", "unknown"]
    with pytest.raises(mx.errors.SchemaError, match="units has no brain_area"):
        mx.select_units(units, brain_area="V1")


def test_a_registered_table_of_rates_needs_no_convention(tmp_path, three_tables):
    rates = pd.DataFrame({"session": [4], "scan_idx": [7], "unit_id": [9], "rate_ori": ["[1. 2.]"]})
    rates.to_csv(tmp_path / "tuning_curves_fitted_v1.csv")
    read = mx.sources.DirectorySource(tmp_path).read("tuning_curves_fitted_v1")
    rows = build_functional(
        three_tables["coregistration"], mx.releases.TableSpec("c"), datastack="minnie65_public", version=1300,
    )  # fmt: skip
    merged = mx.merge_table(rows, read, on="functional")
    assert merged.orientation.attrs["angle_convention"] == "up_clockwise"
    # What a custom entry says travels with the table.
    rates.to_csv(tmp_path / "mine.csv", index=False)
    own = mx.releases.TableSpec(
        "mine", angle_units="degree", angle_convention="right_counterclockwise"
    )
    spec = mx.releases.ReleaseSpec(
        1300, {"tuning_curves": "mine"}, "minnie65_public", {"mine": own}
    )
    table = mx.Release(spec, source=tmp_path).table("mine")
    merged = mx.merge_table(rows, table, on="functional")
    assert merged.orientation.attrs["angle_convention"] == "right_counterclockwise"
