"""The synthetic release: reproducible, true to its tables, with its troubles in known numbers."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from planted import planted

import microns_xr as mx
from microns_xr.releases import space_of
from microns_xr.sources.demo import DEMO_VERSIONS
from microns_xr.sources.demo import TYPES as CELL_TYPES
from microns_xr.sources.tables import frame_sha256

SPACE, VOXEL = space_of("minnie65_public"), (4, 4, 40)

KEYS = ["session", "scan_idx", "unit_id"]
COMMON = ["id", "created", "superceded_id", "valid"]
POSITION = ["pt_position_x", "pt_position_y", "pt_position_z"]
TYPES = [*COMMON, "target_id", "classification_system", "cell_type", "pt_root_id", *POSITION]
MATCHES = [*COMMON, "target_id", "pt_root_id", *KEYS, "field", "residual", "score", *POSITION]

COLUMNS = {
    "nucleus_detection_v0": [*COMMON, "volume", "pt_supervoxel_id", "pt_root_id", *POSITION],
    "baylor_log_reg_cell_type_coarse_v1": TYPES,
    "baylor_gnn_cell_type_fine_model_v2": TYPES,
    "aibs_metamodel_celltypes_v661": TYPES,
    "aibs_metamodel_celltypes_v661_corrections": TYPES[:-3],
    "cell_type_multifeature_combo": TYPES,
    "nucleus_functional_area_assignment": [*COMMON, "target_id", "tag", "pt_root_id", *POSITION],
    "proofreading_status_public_release": [
        *COMMON, "pt_root_id", *POSITION, "valid_id", "status_dendrite", "status_axon",
    ],
    "proofreading_status_and_strategy": [
        *COMMON, "pt_root_id", *POSITION, "valid_id", "status_dendrite", "status_axon",
        "strategy_dendrite", "strategy_axon",
    ],
    "coregistration_manual_v3": MATCHES,
    "coregistration_manual_v4": MATCHES,
    "coregistration_auto_phase3_fwd_apl_vess_combined_v2": MATCHES,
    "digital_twin_properties_bcm_coreg_v4": [
        *COMMON, "target_id", "pt_root_id", *KEYS, "cc_abs", "cc_max", "cc_norm", "OSI", "DSI",
        "gOSI", "gDSI", "pref_ori", "pref_dir", "readout_loc_x", "readout_loc_y",
    ],
    "tuning_curves_fitted_v1": [*KEYS, "rate_dir", "rate_ori"],
    "synapses_pni_2": [
        "id", "pre_pt_root_id", "post_pt_root_id", "size",
        "ctr_pt_position_x", "ctr_pt_position_y", "ctr_pt_position_z",
    ],
}  # fmt: skip
FLOATS = {
    "volume", "residual", "score", "cc_abs", "cc_max", "cc_norm", "OSI", "DSI", "gOSI", "gDSI",
    "pref_ori", "pref_dir", "readout_loc_x", "readout_loc_y",
}  # fmt: skip
TEXT = {
    "valid", "classification_system", "cell_type", "tag", "status_dendrite", "status_axon",
    "strategy_dendrite", "strategy_axon", "rate_dir", "rate_ori",
}  # fmt: skip


@pytest.fixture(scope="module", params=DEMO_VERSIONS)
def demo(request):
    return mx.sources.DemoSource(request.param)


@pytest.fixture(scope="module")
def d1718():
    return mx.sources.DemoSource(1718)


def table_of(source, role):
    return source.read(mx.releases.release_spec(source.version).name_of(role))


def sorted_ids(values):
    return np.sort(np.array(list(values), dtype=np.int64))


def check_ids(drawn, values):
    np.testing.assert_array_equal(sorted_ids(drawn), sorted_ids(values))
    assert len(drawn) > 0


def numbers(column):
    return np.array([text.strip("[]").split() for text in column], dtype=float)


# ------------------------------------------------------------------------ the protocol


def test_it_is_a_source_of_the_tables_of_its_version(demo):
    assert isinstance(demo, mx.sources.TableSource)
    assert demo.scope == "complete"
    assert demo.datastack != "minnie65_public"
    names = set(mx.releases.release_spec(demo.version).tables.values())
    extra = {"cell_type_multifeature_combo"} if demo.version == 1718 else set()
    assert demo.available_tables() == sorted(names | extra)


def test_columns_and_dtypes(demo):
    for name in demo.available_tables():
        table = demo.read(name)
        assert list(table.columns) == COLUMNS[name], name
        for column, dtype in table.dtypes.items():
            if column in TEXT:
                assert str(dtype) == "object", (name, column)
                assert {type(value) for value in table[column]} == {str}
            elif column in FLOATS:
                assert dtype == np.float64, (name, column)
                assert np.isfinite(table[column]).all()
            elif column == "created":
                assert str(dtype) == "datetime64[us, UTC]"
            elif column in ("superceded_id", "valid_id"):
                assert str(dtype) == "Int64"
            else:
                assert dtype == np.int64, (name, column)


def test_provenance_tells_tables_apart(demo):
    name = "nucleus_detection_v0"
    said = demo.provenance(name)
    assert said == {"name": name, "rows": 4000, "sha256": frame_sha256(demo.read(name))}
    assert said == mx.sources.DemoSource(demo.version).provenance(name)
    assert said["sha256"] != mx.sources.DemoSource(demo.version, seed=1).provenance(name)["sha256"]


def test_a_changed_copy_does_not_change_the_source(demo):
    for name in demo.available_tables():
        before = demo.provenance(name)
        table = demo.read(name)
        table.iloc[:, 0] = -1
        table["more"] = 1
        assert demo.provenance(name) == before


@pytest.mark.parametrize("version", [662, 1300, "1718", True, 0])
def test_other_versions_are_refused(version):
    with pytest.raises(mx.errors.UnknownLabelError, match="expected one of 661, 1507, 1718"):
        mx.sources.DemoSource(version)


@pytest.mark.parametrize(
    "options",
    [{"n_nuclei": 499}, {"n_nuclei": 4e3}, {"seed": -1}, {"n_synapses": 0}, {"seed": True}],
)
def test_sizes_out_of_range_are_refused(options):
    with pytest.raises(mx.errors.SchemaError, match=f"{next(iter(options))} is"):
        mx.sources.DemoSource(1718, **options)
    with pytest.raises(mx.errors.SchemaError, match=r"like_to_like is 1\.5"):
        mx.sources.DemoSource(1718, like_to_like=1.5)


def test_a_missing_table_names_the_nearest():
    with pytest.raises(mx.errors.SourceError, match="nearest: coregistration_manual_v3"):
        mx.sources.DemoSource(661).read("coregistration_manual_v4")


# ------------------------------------------------------------------------- determinism


def test_two_instances_agree_in_any_order_of_reading(demo):
    other = mx.sources.DemoSource(demo.version)
    for name in reversed(demo.available_tables()):
        assert_frame_equal(other.read(name), demo.read(name), check_exact=True)
    changed = mx.sources.DemoSource(demo.version, seed=1)
    assert not changed.read("nucleus_detection_v0").equals(demo.read("nucleus_detection_v0"))


def test_another_process_agrees(demo):
    code = (
        "from microns_xr.sources.demo import DemoSource\n"
        f"d = DemoSource({demo.version}, n_nuclei=500, seed=7)\n"
        "for name in d.available_tables(): print(d.provenance(name)['sha256'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = mx.sources.DemoSource(demo.version, n_nuclei=500, seed=7)
    assert out.stdout.split() == [here.provenance(n)["sha256"] for n in here.available_tables()]


def test_versions_share_cells_and_synapses_but_not_roots():
    sources = [mx.sources.DemoSource(version) for version in DEMO_VERSIONS]
    nuclei = [source.read("nucleus_detection_v0").set_index("id") for source in sources]
    synapses = [source.read("synapses_pni_2").set_index("id") for source in sources]
    for other in (1, 2):
        assert_frame_equal(nuclei[0][POSITION], nuclei[other][POSITION])
        np.testing.assert_array_equal(nuclei[0]["volume"], nuclei[other]["volume"])
        assert synapses[0]["size"].equals(synapses[other]["size"])
    same = [(nuclei[i].pt_root_id == nuclei[i + 1].pt_root_id).mean() for i in (0, 1)]
    assert 0.55 < same[0] < 0.75  # 0.65 of the roots of v661 are still there in v1300
    assert 0.88 < same[1] < 0.96
    # a root never comes back as another nucleus
    roots = pd.concat([n.pt_root_id[n.pt_root_id > 0].reset_index() for n in nuclei])
    shared = set().union(*(planted(source).shared_roots for source in sources))
    owners = roots[~roots.pt_root_id.isin(shared)].drop_duplicates().pt_root_id
    assert owners.is_unique
    fine = sources[0].read("baylor_gnn_cell_type_fine_model_v2").set_index("target_id").cell_type
    later = sources[1].read("aibs_metamodel_celltypes_v661").set_index("target_id").cell_type
    later = later.reindex(fine.index).replace("5P-ET", "5P-PT")
    wrong = set(fine.index[fine != later])
    assert wrong <= set(planted(sources[2]).corrected)


def test_sizes():
    demo = mx.sources.DemoSource(1507, n_nuclei=500, n_synapses=1234)
    assert len(demo.read("nucleus_detection_v0")) == 500
    assert len(demo.read("synapses_pni_2")) == 1234
    assert all(
        len(drawn) > 0
        for name, drawn in vars(planted(demo)).items()
        if name not in ("n_pairs", "no_fine_type", "pairs_size_zero", "shared_one_typed")
    )


def test_cells_of_each_type_are_as_many_as_in_the_real_release():
    real = {"23P": 19673, "NGC": 621, "oligo": 6945}  # of 91,423
    types = mx.sources.DemoSource(1507, n_nuclei=12_000)._cells.type_code
    for name, n in real.items():
        assert abs((types == CELL_TYPES.index(name)).sum() - 12_000 * n / 91_423) < 1


# -------------------------------------------------------------------------- cells


def test_root_ids_are_lost_in_floats(demo):
    roots = demo.read("nucleus_detection_v0").pt_root_id
    roots = np.unique(roots[roots > 0])
    assert roots.min() > 864_691_134_000_000_000
    assert roots.max() < 864_691_138_000_000_000
    assert (roots.astype(np.float64).astype(np.int64) != roots).all()
    close = np.diff(roots) < 128
    assert close.mean() > 0.1
    assert len(np.unique(roots.astype(np.float64))) < len(roots)


def test_troubles_of_nuclei(demo):
    drawn = planted(demo)
    nuclei = demo.read("nucleus_detection_v0")
    assert nuclei.id.is_unique
    assert nuclei.id.between(100_000, 999_999).all()
    assert not nuclei.id.is_monotonic_increasing
    check_ids(drawn.root_zero, nuclei.id[nuclei.pt_root_id == 0])
    positive = nuclei[nuclei.pt_root_id > 0]
    by_root = positive.groupby("pt_root_id").id.agg(lambda ids: sorted_ids(ids).tolist())
    shared = {root: ids for root, ids in by_root.items() if len(ids) > 1}
    assert {root: ids.tolist() for root, ids in drawn.shared_roots.items()} == shared
    assert max(len(ids) for ids in shared.values()) == 13
    typed = set(table_of(demo, "celltype").target_id)
    check_ids(drawn.untyped, set(nuclei.id) - typed)
    one = [root for root, ids in shared.items() if len(typed & set(ids)) == 1]
    check_ids(drawn.shared_one_typed, one)
    if demo.version == 661:
        assert drawn.no_area.tolist() == sorted(nuclei.id)
        fine = demo.read("baylor_gnn_cell_type_fine_model_v2")
        check_ids(drawn.no_fine_type, typed - set(fine.target_id))
    else:
        check_ids(drawn.no_area, set(nuclei.id) - set(table_of(demo, "brain_area").target_id))


def test_a_large_release_has_a_root_of_hundreds():
    roots = mx.sources.DemoSource(1718, n_nuclei=94_000).read("nucleus_detection_v0").pt_root_id
    sizes = roots[roots > 0].value_counts()
    assert sizes.iloc[0] == 313
    assert (sizes > 1).sum() == 518


def test_types_in_either_case_and_corrections(d1718):
    drawn = planted(d1718)
    types = d1718.read("aibs_metamodel_celltypes_v661")
    upper = types.cell_type.isin(["Oligo", "Astrocyte"])
    glia = types.cell_type.str.lower().isin(["oligo", "astrocyte"])
    assert 0.07 < upper.sum() / glia.sum() < 0.13
    assert {"oligo", "astrocyte"} <= set(types.cell_type)
    corrections = d1718.read("aibs_metamodel_celltypes_v661_corrections")
    assert corrections.target_id.isin(types.target_id).all()
    last = corrections.sort_values(["created", "id"]).drop_duplicates("target_id", keep="last")
    found = {row.target_id: (row.classification_system, row.cell_type) for row in last.itertuples()}
    assert found == drawn.corrected
    several = corrections.groupby("target_id").cell_type.nunique()
    check_ids(drawn.corrected_twice, several.index[several > 1])
    # neither the order of rows, nor the id alone, nor the time alone gives the last word
    for keys in ([], ["id"]):
        rows = corrections.sort_values(keys) if keys else corrections
        naive = rows.drop_duplicates("target_id", keep="last").set_index("target_id").cell_type
        assert any(naive[t] != word for t, (_, word) in drawn.corrected.items())
    assert corrections.duplicated(["target_id", "created"]).any()
    # every correction changes something, some the class
    before = types.set_index("target_id").loc[list(found)]
    assert (before.cell_type.str.lower() != [w.lower() for _, w in found.values()]).all()
    assert (before.classification_system != [c for c, _ in found.values()]).any()


def test_words_of_the_types(demo):
    if demo.version == 661:
        assert set(table_of(demo, "celltype").cell_type) == {"excitatory", "inhibitory"}
        fine = set(table_of(demo, "celltype_fine").cell_type)
        assert "5P-PT" in fine
        assert "5P-ET" not in fine
    else:
        spec = mx.releases.release_spec(demo.version).table_of("celltype")
        words = set(table_of(demo, "celltype").cell_type)
        assert {word for layer in spec.layers.values() for word in layer} <= words
        assert set(table_of(demo, "brain_area").tag) == {"V1", "RL", "AL", "LM"}
    if demo.version == 1718:
        combo = set(demo.read("cell_type_multifeature_combo").cell_type)
        assert combo == {"L2IT", "L3IT", "L4IT", "L5IT", "L5ET", "L5NP", "L6IT", "L6CT", "NGC", "MC",
                         "BC", "BPC"}  # fmt: skip


def test_layers_come_out_of_the_depth_histogram(demo):
    """The type that leads each 5 µm of depth, in one plain count."""
    nuclei = demo.read("nucleus_detection_v0")
    nuclei["depth"] = SPACE.to_um(nuclei[POSITION].to_numpy(), VOXEL)[:, 1]
    role = "celltype_fine" if demo.version == 661 else "celltype"
    types = table_of(demo, role)[["target_id", "cell_type"]]
    cells = nuclei.merge(types, left_on="id", right_on="target_id")
    layer_of = {"23P": "L2/3", "4P": "L4", "5P": "L5", "6P": "L6", "oligo": "WM", "OPC": "WM"}
    cells["layer"] = [layer_of.get(word.split("-")[0]) for word in cells.cell_type]
    if demo.version == 661:
        assert "WM" not in demo.layer_borders
    for name, (top, bottom) in demo.layer_borders.items():
        inside = cells[(cells.depth > top) & (cells.depth < bottom)]
        leading = inside.groupby(
            pd.cut(inside.depth, np.arange(top, bottom + 1, 10)), observed=True
        )
        lead = [Counter(g.layer.dropna()).most_common(1) for _, g in leading]
        words = {most[0][0] for most in lead if most}
        if name == "L1":
            assert not (inside.layer == "L2/3").any()
        else:
            assert words == {name}
    ends = cells.depth.min(), cells.depth.max()
    assert 0 <= ends[0] < 10
    assert 0 <= list(demo.layer_borders.values())[-1][1] - ends[1] < 10


def test_positions_are_whole_voxels_in_the_imaged_box(demo):
    um = SPACE.to_um(demo.read("nucleus_detection_v0")[POSITION].to_numpy(), VOXEL)
    assert um[:, 0].min() > 199
    assert um[:, 0].max() < 1551
    assert um[:, 2].min() > 603
    assert um[:, 2].max() < 1106


# ---------------------------------------------------------------------- proofreading


def test_proofreading(demo):
    table = table_of(demo, "proofreading")
    nuclei = demo.read("nucleus_detection_v0")
    column = "status_axon" if demo.version == 661 else "strategy_axon"
    per_root = table.groupby("pt_root_id")[column].agg(set)
    is_nucleus = table.pt_root_id.isin(nuclei.pt_root_id)
    n_some = table.pt_root_id[is_nucleus].nunique() // 25
    twice = table.pt_root_id[table.pt_root_id.duplicated()]
    words = (
        {"extended", "clean"}
        if demo.version == 661
        else {"axon_fully_extended", "axon_partially_extended"}
    )
    assert all(found == words for found in per_root[twice])
    changed = table.valid_id.notna() & (table.valid_id != table.pt_root_id)
    for some in (twice.unique(), table[table.valid_id.isna()], table[changed], table[~is_nucleus]):
        assert len(some) == n_some > 1
    assert not table.valid_id[changed].isin(nuclei.pt_root_id).any()
    if demo.version == 661:
        assert set(table.status_axon) == {"extended", "clean", "non"}
    else:
        assert set(table.status_axon) == set(table.status_dendrite) | {"f"} == {"t", "f"}
        assert set(table.strategy_axon) == {
            "axon_fully_extended", "axon_partially_extended", "axon_interareal",
            "axon_column_truncated", "none",
        }  # fmt: skip
        assert ((table.strategy_axon == "none") == (table.status_axon == "f")).all()


# -------------------------------------------------------------------------- function


def test_coregistration(demo):
    drawn = planted(demo)
    nuclei = demo.read("nucleus_detection_v0").set_index("id")
    table = table_of(demo, "coregistration")
    assert not table.duplicated(KEYS).any()
    inside = table[table.target_id.isin(nuclei.index)]
    outside = table[~table.target_id.isin(nuclei.index)]
    check_ids(drawn.coregistered_no_nucleus, outside.target_id)
    assert 0.08 < len(outside) / len(table) < 0.15
    assert (outside.pt_root_id == 0).any()
    assert not outside.pt_root_id[outside.pt_root_id > 0].isin(nuclei.pt_root_id).any()
    np.testing.assert_array_equal(inside.pt_root_id, nuclei.pt_root_id[inside.target_id])
    scans = inside.drop_duplicates(["target_id", "session", "scan_idx"]).groupby("target_id").size()
    assert scans.max() == 5
    check_ids(drawn.five_scans, scans.index[scans == 5])
    twice = inside.target_id[inside.duplicated(["target_id", "session", "scan_idx"])]
    check_ids(drawn.twice_in_scan, set(twice))
    share = inside.target_id.nunique() / len(nuclei)
    assert 0.1 < share < 0.18


def test_rates_and_units_without_them(demo):
    drawn = planted(demo)
    matches = table_of(demo, "coregistration")
    fits = demo.read("tuning_curves_fitted_v1")
    assert not fits.duplicated(KEYS).any()
    both = matches.merge(fits, on=KEYS, how="outer", indicator=True)
    for name, word in (
        ("units_without_rates", "left_only"), ("rates_without_coregistration", "right_only")
    ):  # fmt: skip
        keys = both.loc[both._merge == word, KEYS].sort_values(KEYS).to_numpy()
        np.testing.assert_array_equal(getattr(drawn, name), keys)
        assert len(keys)
    if demo.version == 661:
        assert 0.35 < len(fits) / len(matches) < 0.5  # 6,034 of 13,922
    five = matches[matches.target_id.isin(drawn.five_scans)].merge(fits, on=KEYS)
    assert five.groupby("target_id").size().max() == 5
    rate_dir, rate_ori = numbers(fits.rate_dir), numbers(fits.rate_ori)
    assert rate_dir.shape[1:] == (16,)
    assert rate_ori.shape[1:] == (8,)
    assert (rate_dir > 0).all()
    np.testing.assert_allclose(rate_ori, (rate_dir[:, :8] + rate_dir[:, 8:]) / 2, rtol=1e-12)


def test_rates_are_written_as_numpy_prints_them(d1718):
    fits = d1718.read("tuning_curves_fitted_v1")
    with np.printoptions(linewidth=1000):
        assert fits.rate_dir.tolist() == [str(row) for row in numbers(fits.rate_dir)]


@pytest.mark.parametrize("version", [1507, 1718])
def test_angles_agree_between_tables_after_conversion(version):
    demo = mx.sources.DemoSource(version)
    spec = mx.releases.release_spec(version)
    properties = table_of(demo, "functional_properties")
    described = spec.table_of("functional_properties")
    assert (described.angle_units, described.angle_convention) == (
        "degree", "right_counterclockwise",
    )  # fmt: skip
    matches = table_of(demo, "coregistration")
    missing = matches.merge(properties, on=KEYS, how="left", indicator=True)
    missing = missing.loc[missing._merge == "left_only", KEYS].sort_values(KEYS).to_numpy()
    np.testing.assert_array_equal(planted(demo).units_without_properties, missing)
    assert len(missing)

    both = properties.merge(demo.read("tuning_curves_fitted_v1"), on=KEYS)
    assert len(both) > 200
    rates = numbers(both.rate_dir)
    theta = np.deg2rad(np.arange(16) * 22.5)  # 0 = bar moving up, clockwise
    second = rates @ np.exp(2j * theta)
    up_clockwise = np.rad2deg(np.angle(second)) / 2
    apart = np.mod((90 - up_clockwise) - both.pref_ori + 90, 180) - 90
    assert np.abs(apart).max() < 1e-9
    np.testing.assert_allclose(both.gOSI, np.abs(second) / rates.sum(axis=1), rtol=1e-12)
    # without the conversion they do not agree
    assert np.abs(np.mod(up_clockwise - both.pref_ori + 90, 180) - 90).mean() > 20
    # of the two directions of that orientation the one with the stronger half of the curve
    apart = np.mod(both.pref_dir - both.pref_ori + 90, 180) - 90
    assert np.abs(apart).max() < 1e-9
    first = rates @ np.exp(1j * theta)
    direction = np.deg2rad(90 - both.pref_dir.to_numpy())
    assert (np.real(first * np.exp(-1j * direction)) >= -1e-9).all()
    assert both.pref_ori.between(0, 180, inclusive="left").all()
    assert both.pref_dir.between(0, 360, inclusive="left").all()
    assert 0.12 < both.gOSI.median() < 0.35
    assert properties.cc_abs.is_unique


def test_a_neuron_prefers_the_same_in_all_scans(d1718):
    properties = table_of(d1718, "functional_properties")
    tuned = properties[properties.gOSI > 0.15]
    repeated = tuned[tuned.target_id.isin(tuned.target_id[tuned.target_id.duplicated()])]
    spread = repeated.groupby("target_id").pref_ori.agg(
        lambda a: np.abs(np.mod(a - a.iloc[0] + 90, 180) - 90).max()
    )
    assert len(spread) > 20
    assert spread.median() < 12


def test_automatic_matches_are_more_and_some_wrong(d1718):
    manual = table_of(d1718, "coregistration")
    auto = table_of(d1718, "coregistration_auto")
    assert len(auto) > 2 * len(manual)
    assert not auto.duplicated(KEYS).any()
    assert auto.target_id.isin(d1718.read("nucleus_detection_v0").id).all()
    both = manual.merge(auto, on=KEYS, suffixes=("", "_auto"))
    right = both.target_id == both.target_id_auto
    assert 0.8 < right.mean() < 0.97
    assert both.score_auto[right].mean() > both.score_auto[~right].mean()
    assert both.residual_auto[right].mean() < both.residual_auto[~right].mean()


# -------------------------------------------------------------------------- synapses


def test_troubles_of_synapses(demo):
    drawn = planted(demo)
    synapses = demo.read("synapses_pni_2")
    assert len(synapses) == 80_000
    assert synapses.id.is_unique
    nuclei = demo.read("nucleus_detection_v0")
    own = nuclei[(nuclei.pt_root_id > 0) & ~nuclei.pt_root_id.isin(drawn.shared_roots)]
    nucleus_of = own.set_index("pt_root_id").id
    for end in ("pre", "post"):
        root = synapses[f"{end}_pt_root_id"]
        zero, shared = root == 0, root.isin(drawn.shared_roots)
        check_ids(getattr(drawn, f"synapses_{end}_zero"), synapses.id[zero])
        check_ids(getattr(drawn, f"synapses_{end}_shared"), synapses.id[shared])
        unknown = ~zero & ~root.isin(nuclei.pt_root_id)
        check_ids(getattr(drawn, f"synapses_{end}_unknown"), synapses.id[unknown])
    pre = synapses.pre_pt_root_id.map(nucleus_of)
    post = synapses.post_pt_root_id.map(nucleus_of)
    known = pre.notna() & post.notna()
    check_ids(drawn.synapses_autapses, synapses.id[known & (pre == post)])
    check_ids(drawn.synapses_size_zero, synapses.id[synapses["size"] == 0])
    pairs = (
        pd.DataFrame({"pre": pre[known].astype(int), "post": post[known].astype(int)})
        .assign(size=synapses["size"][known])
        .groupby(["pre", "post"])["size"]
        .agg(["sum", "size"])
    )
    assert drawn.n_pairs == len(pairs)
    for name, chosen in (
        ("pairs_several", pairs["size"] > 1),
        ("pairs_size_zero", pairs["sum"] == 0),
    ):
        expected = np.array(pairs.index[chosen].tolist())
        found = getattr(drawn, name)
        assert set(map(tuple, found.tolist())) == set(map(tuple, expected.tolist()))
        assert len(found) == len(expected) > 0
    assert 0.1 < (pairs["size"] > 1).mean() < 0.4


def test_connections_follow_distance_type_and_tuning():
    strong = mx.sources.DemoSource(1507, n_nuclei=2000, like_to_like=1.0)
    plain = mx.sources.DemoSource(1507, n_nuclei=2000, like_to_like=0.0)
    difference, near, affinity = [], [], []
    for demo in (plain, strong):
        cells, synapses = demo._cells, demo._synapses
        pre, post = synapses["pre"], synapses["post"]
        known = (pre >= 0) & (post >= 0) & (pre != post)
        pre, post = pre[known], post[known]
        assert cells.is_neuron[pre].all()
        assert cells.is_neuron[post].all()
        exc = (cells.class_code[pre] == 0) & (cells.class_code[post] == 0)
        apart = np.mod(cells.pref_dir[pre] - cells.pref_dir[post] + 90, 180) - 90
        difference.append(np.abs(apart[exc]).mean())
        lateral = (cells.position_um[pre] - cells.position_um[post])[:, [0, 2]]
        near.append(np.median(np.hypot(*lateral.T)))
        affinity.append(cells.class_code[post].mean())
    assert abs(difference[0] - 45) < 2  # nothing but chance
    assert difference[1] < 35
    assert max(near) < 250  # two places of the box chosen at random are 450 µm apart
    assert affinity[0] == pytest.approx(affinity[1], abs=0.01)


def test_synapses_lie_near_the_postsynaptic_nucleus(d1718):
    synapses = d1718.read("synapses_pni_2")
    nuclei = d1718.read("nucleus_detection_v0").drop_duplicates("pt_root_id", keep=False)
    both = synapses.merge(nuclei, left_on="post_pt_root_id", right_on="pt_root_id")
    away = both[[f"ctr_pt_position_{a}" for a in "xyz"]].to_numpy() - both[POSITION].to_numpy()
    assert np.abs(away * [0.004, 0.004, 0.04]).max() < 40.1
