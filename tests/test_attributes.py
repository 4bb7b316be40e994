"""Attributes are numbers, text and lists of them, so that every file format of xarray holds them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.provenance import plain_attrs

EDGES = pd.DataFrame({"pre": [1, 2, 2], "post": [2, 3, 1], "weight": [0.5, 1.0, 2.0]})
NEURONS = pd.DataFrame({"cell": [1, 2, 3], "layer": ["L4"] * 3, "x": 1.0, "y": 2.0, "z": 3.0})


def angles(n):
    attrs = {"units": "degree", "angle_convention": "up_clockwise"}
    return xr.Variable("direction", np.arange(n) * 360 / n, attrs)


def trials():
    values = np.random.default_rng(0).gamma(2.0, size=(2, 48)) + (np.arange(48) % 8 == 0)
    shown = xr.Variable("trial", np.tile(angles(8).values, 6), angles(8).attrs)
    return xr.DataArray(values, {"direction": shown, "unit": [1, 2]}, ("unit", "trial"))


def curves():
    rates = 1 + np.cos(np.radians(angles(8).values))[None] ** 2 * [[1.0], [3.0]]
    return xr.DataArray(rates, {"direction": angles(8), "unit": [1, 2]}, ("unit", "direction"))


def tuned(d):
    chosen = d["units"].dropna("nucleus_id", subset=["pref_ori"])
    return {"presynaptic": "all", "pre": chosen, "post": chosen}


def against_null(d):
    few = mx.select_connections(d["connectivity"], pre=d["units"].nucleus_id[:50])
    null = mx.analysis.null_models.rewire(few, n=2)
    mx.analysis.null_models.compare(
        lambda c, u: mx.degrees(c), few, d["units"], null, variable="in_degree"
    )
    return null[0]


MADE = {
    "units": lambda d: d["units"],
    "layers": lambda d: d["layers"],
    "functional": lambda d: d["functional"],
    "connectivity": lambda d: d["connectivity"],
    "synapses": lambda d: d["synapses"],
    "one row per neuron": lambda d: mx.tuning.collapse_scans(d["functional"]),
    "selected units": lambda d: mx.select_units(d["units"], layer="L4"),
    "merged": lambda d: mx.merge_table(d["units"], pd.DataFrame({"target_id": d["units"].nucleus_id, "a": 1})),
    "other convention": lambda d: mx.angles.convert(d["units"], "right_counterclockwise"),
    "connections": lambda d: mx.select_connections(d["connectivity"], pre={"layer": "L4"}, units=d["units"]),
    "inputs": lambda d: mx.inputs_to(d["connectivity"], int(d["units"].nucleus_id[5])),
    "summed synapses": lambda d: mx.sum_synapses(d["synapses"]),
    "degrees": lambda d: mx.degrees(d["connectivity"]),
    "groups": lambda d: mx.group_connectivity(d["connectivity"], "cell_type"),
    "labels": lambda d: mx.analysis.population_labels(d["units"], ["layer", "cell_type"]),
    "currents": lambda d: mx.input_currents(d["connectivity"], d["units"].rate_ori),
    "aligned": lambda d: mx.analysis.align_to_preferred(
        mx.input_currents(d["connectivity"], d["units"].rate_ori), d["units"]
    ),
    "probability": lambda d: mx.analysis.connection_probability(
        d["connectivity"], d["units"], by="layer", presynaptic="all", distance=[0, 100, 200]
    ),
    "like to like": lambda d: mx.analysis.like_to_like(d["connectivity"], d["units"], **tuned(d)),
    "tuned connections": lambda d: mx.analysis.tuned_connections(d["connectivity"], d["units"], **tuned(d)),
    "null model": against_null,
    "releases": lambda d: mx.analysis.compare_releases(d, d, variables="layer"),
    "own units": lambda d: mx.as_units(NEURONS, id="cell"),
    "own connectivity": lambda d: mx.as_connectivity(EDGES),
    "fits": lambda d: mx.tuning.fit(curves(), dim="direction"),
    "selectivity": lambda d: mx.tuning.selectivity(curves(), dim="direction"),
    "trials": lambda d: mx.tuning.trial_statistics(trials()),
    "test": lambda d: mx.tuning.test(trials(), n_permutations=9, seed=0),
    "cross-validated": lambda d: mx.tuning.cross_validate(trials(), seed=0),
    "recordings": lambda d: d["recordings"],
    "trial responses": lambda d: mx.recordings.trial_responses(d["recordings"]),
    "recorded tuning": lambda d: mx.recordings.tuning(d["recordings"]),
    "store": lambda d: d["tree"],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(demo_release, tmp_path_factory):
    units = demo_release.units(functional="best_only", rates=True, angle_convention="up_clockwise")
    connectivity = mx.annotate(demo_release.connectivity(), units, ["cell_type", "layer"])
    parts = {
        "units": units,
        "layers": demo_release.layers(),
        "functional": demo_release.functional(),
        "connectivity": connectivity,
        "synapses": demo_release.synapses(),
    }
    folder = tmp_path_factory.mktemp("store")
    mx.write_store(folder / "s.zarr", **parts)
    options = {"scans": ["9_3"], "n_monet": 2, "n_clip": 0}
    path = mx.recordings.write_demo(folder / "r.h5", demo_release.source, **options)
    with mx.recordings.open(path) as recordings:
        yield {**parts, "tree": mx.open_store(folder / "s.zarr"), "recordings": recordings}


def is_plain(value):
    values = value if isinstance(value, list) else [value]
    kinds = [str] if any(isinstance(v, str) for v in values) else [int, float, np.number]
    return all(isinstance(v, tuple(kinds)) and not isinstance(v, bool) for v in values)


@pytest.mark.parametrize("name", MADE)
def test_every_attribute_is_plain(data, name):
    made = MADE[name](data)
    nodes = list(made.subtree) if isinstance(made, xr.DataTree) else [made]
    for node in nodes:
        variables = node.variables if not isinstance(node, xr.DataArray) else node.coords
        attributes = {"": node.attrs, **{n: v.attrs for n, v in variables.items()}}
        for where, attrs in attributes.items():
            wrong = {key: value for key, value in attrs.items() if not is_plain(value)}
            assert not wrong, where


@pytest.mark.parametrize(
    "name", ["units", "layers", "synapses", "functional", "currents", "probability"]
)
def test_other_file_formats(data, tmp_path, name):
    made = MADE[name](data)
    dataset = made.to_dataset(name="currents") if isinstance(made, xr.DataArray) else made
    dataset.attrs = made.attrs
    dataset.to_netcdf(tmp_path / "a.nc")
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=False)
    for found in (
        xr.open_dataset(tmp_path / "a.nc"),
        xr.open_zarr(tmp_path / "a.zarr", consolidated=False),
    ):
        with found:
            assert found.equals(dataset)
            assert list(found.attrs) == list(dataset.attrs)
            for attribute, value in dataset.attrs.items():
                np.testing.assert_array_equal(found.attrs[attribute], value)


def test_units_of_a_netcdf_file_are_the_same_units(data, demo_release, tmp_path):
    units = data["units"]
    units.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as found:
        for count in ("selection", "notes"):
            assert mx.releases.read_counts(found, count) == mx.releases.read_counts(units, count)
        xr.testing.assert_identical(mx.segment_layers(found), mx.segment_layers(units))
        assert mx.releases.references(found) == mx.releases.references(units)
        table = demo_release.table("synapses_pni_2")
        again, expected = (mx.build_connectivity(table, u) for u in (found, units))
    for name in ("dropped_synapses", "source_tables", "history"):
        assert again.attrs.get(name) == expected.attrs.get(name)


def test_attributes_of_older_stores():
    old = {
        "history": "built\nthen checked",
        "dropped_synapses": {"pre_zero": 152, "any_reason": 152},
        "left_out": {"pre": {"not_chosen": 2}, "post": {"not_chosen": 0}},
        "layer_types": {"L2/3": ["23P"], "L5": ["5P-ET", "5P-IT"]},
        "source_tables": [{"name": "nuclei", "rows": 6, "sha256": "ab", "version": 1}, {"name": "t"}],
        "mine": {"a": 1},
        "timestamp": None,
    }  # fmt: skip
    found = xr.Dataset(attrs=plain_attrs(old))
    assert found.attrs == {
        "history": ["built", "then checked"],
        "dropped_synapses": ["pre_zero: 152", "any_reason: 152"],
        "left_out": ["pre_not_chosen: 2", "post_not_chosen: 0"],
        "layer_types": ["L2/3: 23P", "L5: 5P-ET, 5P-IT"],
        "source_tables": ["nuclei: 6 rows, sha256 ab", "t"],
        "mine": {"a": 1},
    }
    assert plain_attrs(found.attrs) == found.attrs
    assert mx.releases.read_counts(found, "left_out") == {"pre_not_chosen": 2, "post_not_chosen": 0}


def test_what_holds_no_counts():
    found = xr.Dataset(attrs={"history": ["built"], "notes": []})
    assert mx.releases.read_counts(found, "notes") == {}
    with pytest.raises(mx.errors.SchemaError, match=r"'history' is \['built'\], expected counts"):
        mx.releases.read_counts(found, "history")
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"'note', expected one of .* nearest: notes"
    ):
        mx.releases.read_counts(found, "note")
