"""Every operation gives on a reopened store what it gives on fresh Datasets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted import planted

import microns_xr as mx
from microns_xr.schema import validate

LABELS = pd.DataFrame({"target_id": np.arange(1_000_000), "mark": np.arange(1_000_000) % 7})

OPERATIONS = {
    "segment_layers": lambda d: mx.segment_layers(d["units"]),
    "merge onto units": lambda d: mx.merge_table(d["units"], LABELS),
    "merge onto functional": lambda d: mx.merge_table(d["functional"], LABELS),
    "collapse_scans": lambda d: mx.tuning.collapse_scans(d["functional"], "first"),
    "select_units": lambda d: mx.select_units(d["units"], layer="L4", tuning="not_matched"),
    "convert_angles": lambda d: mx.angles.convert(d["units"], "right_counterclockwise"),
    "to_table of pairs": lambda d: mx.to_table(d["connectivity"]),
    "degrees": lambda d: mx.degrees(d["connectivity"]),
    "group": lambda d: mx.group_connectivity(d["connectivity"], {"pre": "cell_type", "post": d["units"].layer}),
    "annotate": lambda d: mx.annotate(d["connectivity"], d["units"], ["layer"]).post_layer,
    "inputs_to": lambda d: mx.inputs_to(d["connectivity"], int(d["units"].nucleus_id[5])),
    "outputs_from": lambda d: mx.outputs_from(d["connectivity"], int(d["units"].nucleus_id[5])),
    "drop_autapses": lambda d: mx.to_table(mx.drop_autapses(d["connectivity"])),
    "select_connections": lambda d: mx.to_table(
        mx.select_connections(d["connectivity"], pre=d["units"].nucleus_id[:99], post=d["units"].nucleus_id[50:])
    ),
    "either": lambda d: mx.to_table(
        mx.select_connections(d["connectivity"], pre=d["units"].nucleus_id[:9], post=[], both=False)
    ),
    "input_currents": lambda d: mx.input_currents(d["connectivity"], d["units"].rate_dir),
    "contract over post": lambda d: mx.contract(
        d["connectivity"], d["units"].rate_ori, over="post_nucleus_id", missing="skip"
    ),
    "n_connections": lambda d: mx.n_connections(d["connectivity"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_same_result(demo, demo_fresh, name):
    mine, expected = OPERATIONS[name](demo), OPERATIONS[name](demo_fresh)
    assert type(mine) is type(expected)
    if isinstance(mine, int | np.ndarray):
        assert np.array_equal(mine, expected)
    elif isinstance(mine, pd.DataFrame):
        pd.testing.assert_frame_equal(mine, expected)
        assert len(mine)
    else:
        assert mine.equals(expected)
        assert {n: v.dtype for n, v in mine.coords.items()} == {
            n: v.dtype for n, v in expected.coords.items()
        }


def test_every_part_still_follows_the_data_model(demo):
    for kind, dataset in demo.items():
        validate(dataset, kind)


def test_a_neuron_of_five_scans_counts_once(demo_release, demo):
    units = demo["units"]
    five_scans = planted(demo_release.source).five_scans
    five = [n for n in five_scans.tolist() if n in units.nucleus_id.values]
    assert five
    functional = demo["functional"]
    for nucleus in five:
        assert int((functional.nucleus_id == nucleus).sum()) >= 5
        assert int((units.nucleus_id == nucleus).sum()) == 1
        assert units.n_scans.sel(nucleus_id=nucleus).item() == 5
