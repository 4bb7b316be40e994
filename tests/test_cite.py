"""Which tables a result was made of, through every step, and the papers of them."""

from __future__ import annotations

import re

import pytest
import xarray as xr

import microns_xr as mx


def names(obj):
    return {table.partition(": ")[0] for table in obj.attrs["source_tables"]}


@pytest.fixture(scope="module")
def release():
    return mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))


@pytest.fixture(scope="module")
def units(release):
    return release.units(functional="best_only")


def test_every_dataset_names_the_tables_it_was_made_of(release, units):
    basic = {
        "nucleus_detection_v0",
        "aibs_metamodel_celltypes_v661",
        "aibs_metamodel_celltypes_v661_corrections",
        "nucleus_functional_area_assignment",
        "proofreading_status_and_strategy",
    }
    assert names(release.units()) == basic == names(release.layers())
    assert names(units) == basic | {"digital_twin_properties_bcm_coreg_v4"}
    assert names(release.functional("manual")) == basic | {"coregistration_manual_v4"}
    assert names(release.connectivity()) == basic | {"synapses_pni_2"}
    rated = release.units(rates=True)
    curves = {"tuning_curves_fitted_v1", "coregistration_manual_v4"}
    assert names(release.tuning_curves()) == basic | curves
    assert names(rated) == names(release.units(rates=release.tuning_curves())) == basic | curves
    line = re.compile(r"\w+: \d+ rows, sha256 [0-9a-f]{64}")
    assert all(line.fullmatch(table) for table in rated.attrs["source_tables"])


def test_results_keep_the_tables_and_the_steps_of_both_sides(release):
    units = release.units(rates=True)
    part = mx.select_connections(release.connectivity(), pre=units.nucleus_id[:200])
    currents = mx.input_currents(part, units.rate_ori)
    assert names(currents) == names(units) | {"synapses_pni_2"}
    steps = currents.attrs["history"]
    assert steps[0].startswith("build_connectivity")
    assert steps[1].startswith("select_connections(")
    assert steps[-1].startswith("contract(")
    for result in (
        mx.degrees(part),
        mx.select_units(units, layer="L4"),
        mx.group_connectivity(part, units.layer),
        mx.inputs_to(part, int(units.nucleus_id[3])),
        mx.annotate(part, units, "layer"),
    ):
        assert names(result) >= {"nucleus_detection_v0"}


def test_tables_survive_a_store(release, units, tmp_path):
    mx.write_store(tmp_path / "s.zarr", units=units, connectivity=release.connectivity())
    tree = mx.open_store(tmp_path / "s.zarr")
    assert names(tree["units"]) == names(units)
    assert names(tree) == names(units) | {"synapses_pni_2"}
    assert mx.releases.references(tree) == mx.releases.references(
        tree["connectivity"]
        .to_dataset()
        .merge(units, compat="override", combine_attrs="drop_conflicts")
        .assign_attrs(source_tables=tree.attrs["source_tables"])
    )


def test_papers(release, units, capsys):
    papers = mx.releases.references(units)
    assert papers[0].startswith("MICrONS Consortium 2025")
    assert any(paper.startswith("Ding et al. 2025") for paper in papers)
    assert not any(paper.startswith("Ding") for paper in mx.releases.references(release.units()))
    mx.releases.cite(units)
    assert capsys.readouterr().out.splitlines() == papers


def test_data_without_tables_say_so():
    with pytest.raises(mx.errors.SchemaError, match="no attribute 'source_tables'"):
        mx.releases.cite(xr.Dataset())
    with pytest.raises(
        mx.errors.SchemaError, match="expected a Dataset, DataArray or tree, found int"
    ):
        mx.releases.cite(3)
