"""A release as a user works with it: tables in roles, what is absent, what is written."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.plot import connectivity_matrix, currents_by_angle, depth_profile


@pytest.fixture(scope="module")
def source():
    return mx.sources.DemoSource(1718, n_nuclei=800, seed=5)


@pytest.fixture
def folder(source, tmp_path):
    return source.write(tmp_path / "release", format="parquet")


def test_another_classification_comes_without_the_corrections_of_the_old_one(source):
    combo = mx.Release(1718, source=source, tables={"celltype": "cell_type_multifeature_combo"})
    words = set(combo.units().cell_type.values)
    assert "L2IT" in words
    assert not words & {"23P", "4P", "5P-IT", "5P-ET", "6P-CT"}
    assert not combo.spec.has("celltype_corrections")
    old = mx.releases.release_spec(661, tables={"celltype": "aibs_soma_nuc_metamodel_preds_v117"})
    assert not old.has("celltype_fine")
    kept = {"celltype": "a", "celltype_fine": "b"}
    assert mx.releases.release_spec(661, tables=kept).tables["celltype_fine"] == "b"


def test_tables_that_are_absent_are_named(folder, caplog):
    (folder / "raw" / "aibs_metamodel_celltypes_v661_corrections.parquet").unlink()
    release = mx.Release(1718, source=folder)
    units = release.units()
    assert units.attrs["absent_tables"] == ["aibs_metamodel_celltypes_v661_corrections"]
    assert "built without" in caplog.text
    with pytest.raises(
        mx.errors.SourceError, match=r"role 'brain_area' .* 'typo', expected one of"
    ):
        mx.Release(1718, source=folder, tables={"brain_area": "typo"}).units()


def test_a_registry_entry_of_ones_own_all_the_way(source, folder, tmp_path):
    spec = mx.releases.release_spec(1718)
    (folder / "raw" / "aibs_metamodel_celltypes_v661.parquet").rename(
        folder / "raw" / "types.parquet"
    )
    table = mx.releases.TableSpec(
        "types", layers={"L2/3": ("23P",), "L5": ("5P-IT",), "L6": ("6P-IT",)}
    )
    own = mx.releases.ReleaseSpec(
        version=1718, datastack="minnie65_demo", table_specs={"types": table},
        tables={**spec.tables, "celltype": "types"},
    )  # fmt: skip
    release = mx.Release(own, source=folder)
    assert set(release.layers().layer_name.values) <= {"L2/3", "L5", "L6"}
    release.write(tmp_path / "own.zarr")
    units = mx.open_store(tmp_path / "own.zarr")["units"].to_dataset()
    assert mx.segment_layers(units).equals(release.layers())
    without = mx.releases.ReleaseSpec(version=1718, datastack="minnie65_demo", tables=own.tables)
    assert mx.Release(without, source=folder).layers().layer_name.values.tolist() == ["unknown"]


def test_a_synapse_table_of_another_name(source, folder):
    files = list(folder.rglob("synapses_pni_2.parquet"))
    table = pd.read_parquet(files[0])
    files[0].unlink()
    table.to_parquet(folder / "raw" / "my_synapses.parquet")
    release = mx.Release(1718, source=folder, tables={"synapses": "my_synapses"})
    expected = mx.Release(1718, source=source).connectivity()
    assert mx.n_connections(release.connectivity()) == mx.n_connections(expected)


def test_provenance_names_every_table_with_the_synapses(folder, tmp_path):
    release = mx.Release(1718, source=folder)
    release.write(tmp_path / "s.zarr")
    tables = mx.open_store(tmp_path / "s.zarr").attrs["source_tables"]
    names = [table.partition(": ")[0] for table in tables]
    assert {"synapses_pni_2", "nucleus_detection_v0", "tuning_curves_fitted_v1"} <= set(names)
    assert len(names) == len(set(names))
    for table in tables:
        assert re.search(r"[1-9]\d* rows.*sha256 [0-9a-f]{64}", table), table


def test_several_sets_of_synapses_are_named_in_write_too(folder, tmp_path):
    (path,) = folder.rglob("synapses_pni_2.parquet")
    pd.read_parquet(path).head(500).to_parquet(path.with_name("few.parquet"))
    release = mx.Release(1718, source=folder)
    with pytest.raises(mx.errors.SourceError, match="choose one with request="):
        release.write(tmp_path / "s.zarr")
    release.write(tmp_path / "s.zarr", request="few")
    assert mx.n_connections(mx.open_store(tmp_path / "s.zarr")["connectivity"].to_dataset()) < 500


def test_connectivity_of_a_selection_is_not_full_of_unknown_neurons(source):
    release = mx.Release(1718, source=source)
    units = release.units()
    whole = release.connectivity(units=units)
    l4 = mx.select_units(units, layer="L4")
    part = release.connectivity(units=l4)
    np.testing.assert_array_equal(part.pre_nucleus_id, l4.nucleus_id)
    for reason in ("pre_unknown", "post_unknown", "any_reason"):
        assert (
            mx.releases.read_counts(part, "dropped_synapses")[reason]
            == mx.releases.read_counts(whole, "dropped_synapses")[reason]
        )
    assert mx.releases.read_counts(part, "dropped_synapses")["not_asked_for"] > 0
    expected = mx.select_connections(whole, pre=l4.nucleus_id.values, post=l4.nucleus_id.values)
    assert mx.to_table(part).equals(mx.to_table(expected))


def test_rates_from_a_file_state_their_angles(source, folder, tmp_path):
    release = mx.Release(1718, source=source)
    fits = release.table("tuning_curves_fitted_v1")
    path = tmp_path / "my_fits.csv"
    fits.to_csv(path, index=False)
    with pytest.raises(mx.errors.SchemaError, match="convention: pass angle_convention="):
        release.units(rates=path)
    mine = release.units(rates=path, angle_convention="up_clockwise")
    expected = release.units(rates=True)
    np.testing.assert_array_equal(mine.rate_ori, expected.rate_ori)
    with pytest.raises(
        mx.errors.SchemaError, match="in the registry, not 'right_counterclockwise'"
    ):
        release.tuning_curves(angle_convention="right_counterclockwise")
    both = release.units(
        functional="best_only", rates=True, angle_convention="right_counterclockwise"
    )
    assert both.orientation.attrs["angle_convention"] == both.pref_ori.attrs["angle_convention"]
    zero = both.rate_ori.sel(orientation=90.0)  # up_clockwise 0 is 90 the other way
    np.testing.assert_array_equal(
        zero, expected.rate_ori.sel(orientation=0.0).reindex(nucleus_id=both.nucleus_id)
    )
    with pytest.raises(mx.errors.UnknownLabelError, match="no variable 'cc_abs', expected one of"):
        release.units(rates=True, collapse="best", by="cc_abs")


def test_what_a_release_does_not_have(source):
    release = mx.Release(1718, source=source)
    with pytest.raises(mx.errors.SchemaError, match="kind is 'odd', expected one of"):
        release.functional("odd")
    with pytest.raises(mx.errors.SourceError, match="DemoSource has a single set of synapses"):
        release.connectivity("few")
    units = release.units()
    with pytest.raises(
        mx.errors.SchemaError, match=r"request is a Dataset, .*pass units as units="
    ):
        release.connectivity(units)
    for words in ("L4", {"layer": "L4"}):
        with pytest.raises(mx.errors.SchemaError, match=r"pre is .*L4.*mx\.select_units\(units"):
            release.connectivity(units=units, pre=words)
    with pytest.raises(mx.errors.SchemaError, match="expected rate_ori or rate_dir"):
        release.units(rates=release.functional())
    with pytest.raises(mx.errors.ReleaseMismatchError, match=r"source has version 1718.*1507"):
        mx.Release(1507, source=source)


def test_a_table_that_cannot_be_read_is_replaced_by_fits_or_recordings(source, folder, caplog):
    fits = source.read("tuning_curves_fitted_v1")
    fits.to_parquet(folder / "functional" / "my_fits.parquet")
    (folder / "functional" / "tuning_curves_fitted_v1.parquet").write_bytes(b"cut")
    release = mx.Release(1718, source=folder)
    found = release.tuning_curves(angle_convention="up_clockwise")
    assert "tuning_curves_fitted_v1 cannot be read" in caplog.text
    np.testing.assert_array_equal(
        found.rate_dir, mx.Release(1718, source=source).tuning_curves().rate_dir
    )
    (folder / "functional" / "my_fits.parquet").unlink()
    with pytest.raises(mx.errors.SourceError, match="tuning_curves_fitted_v1"):
        mx.Release(1718, source=folder).tuning_curves()


def test_shared_roots_never_pass_through_float(source, monkeypatch):
    release = mx.Release(1718, source=source)
    nuclei = release.table("nucleus")
    count = nuclei["pt_root_id"].value_counts()
    assert release.shared_roots().tolist() == sorted(r for r in count.index[count > 1] if r > 0)
    rounded = nuclei.assign(pt_root_id=nuclei["pt_root_id"].astype(float))
    monkeypatch.setattr(release, "table", lambda role: rounded)
    with pytest.raises(mx.errors.SchemaError, match="floats round 18-digit ids"):
        release.shared_roots()


def test_reading_a_table_hands_out_copies(source):
    release = mx.Release(1718, source=source)
    table = release.table("nucleus")
    table["pt_root_id"] = 0
    assert (release.table("nucleus_detection_v0").pt_root_id > 0).any()
    with pytest.raises(mx.errors.SourceError, match="nearest"):
        release.table("nucleus_detection")


def test_order_of_axes_and_dims_does_not_matter(source):
    release = mx.Release(1718, source=source)
    units = release.units(functional="match", rates=True)
    turned = units.isel(axis=[1, 0, 2])
    assert mx.segment_layers(turned).equals(mx.segment_layers(units))
    assert mx.segment_layers(units.transpose()).equals(mx.segment_layers(units))
    plain = mx.to_table(units)
    assert mx.to_table(units.transpose())[plain.columns].equals(plain)
    assert mx.to_table(turned)[plain.columns].equals(plain)


def test_attributes_of_results_are_their_own(source):
    units = mx.Release(1718, source=source).units()
    chosen = mx.select_units(units, layer="L4")
    chosen.attrs["notes"].append("mine: 1")
    assert "mine" not in mx.releases.read_counts(units, "notes")


def test_the_same_again_is_not_built_again_unless_something_changed(folder, monkeypatch):
    release = mx.Release(1718, source=folder)
    reads = []
    read = release.source.read_synapses
    monkeypatch.setattr(
        release.source, "read_synapses", lambda name=None: reads.append(name) or read(name)
    )
    first, again = release.connectivity(), release.connectivity()
    assert len(reads) == 1
    xr.testing.assert_identical(first, again)
    again.attrs["history"].append("mine")
    again["synapse_size"] = 2 * again.synapse_size
    again.scope.values[()] = "complete"
    assert first.scope == "unknown"
    xr.testing.assert_identical(release.connectivity(), first)
    assert len(reads) == 1
    # Values that were replaced in place, another scope, another file.
    total = first.synapse_size.data.data.sum()
    first.synapse_size.data.data[:] = 0
    assert release.connectivity().synapse_size.data.data.sum() == total
    assert len(reads) == 2
    assert release.connectivity(scope="complete").scope == "complete"
    assert release.connectivity().scope == "unknown"
    assert len(reads) == 4
    (file,) = (folder / "raw" / "synapses").iterdir()
    table = pd.read_parquet(file)
    table.iloc[: len(table) // 2].to_parquet(file)
    assert release.connectivity().synapse_size.data.data.sum() < total
    assert release.source_tables()[-1]["rows"] == len(table) // 2


def test_units_that_were_changed_in_place_do_not_change_the_release(source):
    release = mx.Release(1718, source=source)
    units, before = release.units(), release.connectivity()
    units.pt_root_id[:] = 1
    units.cell_type.values[:] = "mine"
    units.position.values[:] = 0
    units.attrs["selection"].clear()
    assert mx.Release(1718, source=source).units().identical(release.units())
    assert before.identical(mx.Release(1718, source=source).connectivity())


def test_pictures_go_by_label(source):
    release = mx.Release(1718, source=source)
    units = release.units(functional="match", rates=True)
    connectivity = release.connectivity(units=units)
    currents = mx.input_currents(connectivity, units.rate_ori)
    labels = currents_by_angle(currents, units.layer).get_legend_handles_labels()[1]
    plt.figure()
    turned = currents_by_angle(currents, units.layer[::-1]).get_legend_handles_labels()[1]
    assert labels == turned
    with pytest.raises(mx.errors.SchemaError, match="by is an array without ids"):
        currents_by_angle(currents, units.layer.values)
    annotated = mx.annotate(connectivity, units, ["layer"])
    grouped = mx.group_connectivity(annotated, "layer")
    for table in (grouped, grouped.transpose()):
        assert connectivity_matrix(table).get_ylabel() == "presynaptic layer"
    with pytest.raises(mx.errors.SchemaError, match="nothing to draw"):
        depth_profile(units.isel(nucleus_id=[]))
    assert depth_profile(units, release.layers()).yaxis_inverted()


def test_an_empty_synapse_file_connects_nobody(folder):
    (path,) = folder.rglob("synapses_pni_2.parquet")
    path.unlink()
    path.with_suffix(".csv").write_text("id,pre_pt_root_id,post_pt_root_id,size\n")
    assert mx.n_connections(mx.Release(1718, source=folder).connectivity()) == 0


OLD_CALLS = {
    "functional_data": (lambda r: r.units(functional_data="match"), "use functional="),
    "download_policy": (lambda r: mx.Release(1718, download_policy="all"), "call download"),
    "presynaptic_set": (lambda r: r.download_synapses(presynaptic_set=[1]), "use pre="),
    "start_index": (lambda r: r.download_synapses(start_index=3), "run the same again"),
    "drop_synapses_duplicates": (
        lambda r: r.connectivity(drop_synapses_duplicates=False),
        r"synapses\(\) for synapses",
    ),
    "method": (lambda r: mx.merge_table(None, None, method="functional"), "use on="),
    "proofread": (lambda r: mx.select_units(r.units(), proofread="ax_clean"), "use axon="),
    "layer": (lambda r: mx.select_connections(None, layer=["L4", "L4"]), "pre={'layer'"),
    "post_id": (lambda r: mx.inputs_to(None, post_id=5), "use nucleus_id="),
}


@pytest.mark.parametrize("keyword", OLD_CALLS)
def test_keywords_of_the_pandas_package_are_answered(source, keyword):
    call, answer = OLD_CALLS[keyword]
    with pytest.raises(TypeError, match=f"{keyword}.* microns-datacleaner: .*{answer}"):
        call(mx.Release(1718, source=source))


def test_pairs_are_no_single_synapses(folder):
    (path,) = folder.rglob("synapses_pni_2.parquet")
    pairs = pd.read_parquet(path).groupby(["pre_pt_root_id", "post_pt_root_id"], as_index=False)
    pairs.agg(n_syn=("id", "size"), sum_size=("size", "sum")).to_parquet(path)
    with pytest.raises(mx.errors.SchemaError, match=r"one row per pair .* use connectivity\(\)"):
        mx.Release(1718, source=folder).synapses()


def test_rounded_roots_name_their_file(folder):
    (path,) = folder.rglob("synapses_pni_2.parquet")
    table = pd.read_parquet(path).head(9)
    path.unlink()
    table.astype({"pre_pt_root_id": float}).to_csv(path.with_name("mine.csv"), index=False)
    message = r"mine\.pre_pt_root_id has dtype float64.* has to be fetched or exported again"
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.Release(1718, source=folder).connectivity()


@pytest.mark.parametrize("version", ["1718", 1718.5, True])
def test_a_source_whose_version_is_no_whole_number(version):
    source = mx.sources.DemoSource(1718, n_nuclei=500)
    source.version = version
    with pytest.raises(mx.errors.SchemaError, match=r"source.version is .*, expected a whole"):
        mx.Release(1718, source=source)
    source.version = None  # a source that does not state it
    assert mx.Release(1718, source=source).version == 1718
