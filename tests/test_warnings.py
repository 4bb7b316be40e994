"""A warning is about what surprises, and points at the line of the user."""

from __future__ import annotations

import matrices
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from roots import ROOTS

import microns_xr as mx

OTHERS = pd.DataFrame({"pre_pt_root_id": [5, 6], "post_pt_root_id": [7, 5], "size": 1})


def make_units():
    units = xr.Dataset(
        {"pt_root_id": ("nucleus_id", [ROOTS[11], ROOTS[12]]), "pref_ori": ("nucleus_id", [0.0, 90.0])},
        {"nucleus_id": [11, 12]},
    )  # fmt: skip
    units["pref_ori"].attrs = {"units": "degree", "angle_convention": "up_clockwise"}
    return mx.releases.stamp_release(units, "minnie65_public", 1718)


def unconnected():
    """Two neurons, of which the first sends to none, in a file that nobody described."""
    size = np.array([[0, 0], [0, 0]])
    ids = np.array([11, 12])
    return matrices.dataset(size > 0, size, size, "post", ids, ids).assign_coords(scope="unknown")


def of_another_release(three_tables, _):
    table = three_tables["proofreading"].iloc[[0, 0, 0]].assign(pt_root_id=[ROOTS[11], 5, 6])
    mx.build_units({**three_tables, "proofreading": table}, 1300)


def no_synapse_of_units(*_):
    mx.build_connectivity(OTHERS, make_units())


def no_synapse_of_units_in_a_file(_, folder):
    OTHERS.to_csv(folder / "s.csv", index=False)
    mx.ingest_synapses(folder / "s.csv", make_units(), folder / "s.zarr", progress=False)


def no_ids(*_):
    mx.as_connectivity(pd.DataFrame({"pre": [None, 1.0], "post": [1.0, None], "weight": 1.0}))


def ids_of_another_kind(*_):
    edges = pd.DataFrame({"pre": [ROOTS[11], ROOTS[12]], "post": [ROOTS[12], ROOTS[11]]})
    mx.as_connectivity(edges, pre_ids=[11, 12], post_ids=[11, 12])


def single_synapses_of_others(*_):
    units = make_units()
    own = pd.DataFrame({"id": [1], "pre_pt_root_id": units.pt_root_id.values[:1], "size": [3]})
    own["post_pt_root_id"] = units.pt_root_id.values[1:2]
    further = {"id": [1, 2], **{f"ctr_pt_position_{axis}": 1 for axis in "xyz"}}
    mx.build_synapses(OTHERS.assign(**further), mx.build_connectivity(own, units))


def probability_of_unknown_scope(*_):
    ids = {"pre": [11, 12], "post": [11, 12], "presynaptic": "all"}
    mx.analysis.connection_probability(unconnected(), make_units(), None, **ids)


def like_to_like_of_unknown_scope(*_):
    ids = {"pre": [11, 12], "post": [11, 12], "presynaptic": "all", "interval": None}
    mx.analysis.like_to_like(unconnected(), make_units(), **ids)


def curves(dim="orientation", axis="scan_unit"):
    degrees = {"units": "degree", "angle_convention": "up_clockwise", "period": 180.0}
    angles = {dim: (dim, [0.0, 45.0, 90.0, 135.0], degrees), axis: [11, 12]}
    return xr.DataArray([[4.0, 1.0, -2.0, 1.0], [4.0, 1.0, 2.0, 1.0]], angles, (axis, dim))


def indices_of_what_are_no_rates(*_):
    mx.tuning.selectivity(curves(), dim="orientation")


def alignment_of_negative_currents(*_):
    currents = mx.releases.stamp_release(
        curves(axis="post_nucleus_id").to_dataset(name="current"), "minnie65_public", 1718
    )
    mx.analysis.align_to_preferred(currents.current, make_units(), interval=None)


def file_that_was_cut(_, folder):
    (folder / "t.csv").write_text("id,target_id\n1,11\n2,1")
    mx.sources.DirectorySource(folder, version=1718).read("t")


def merged_with_nothing(*_):
    mx.merge_table(make_units(), pd.DataFrame({"target_id": [1, 2], "area": ["V1", "RL"]}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (of_another_release, "2 of 3 rows of .*pt_root_id meet no nucleus"),
        (no_synapse_of_units, r"none of the 2 rows of synapses is between two units \(2 pre unk"),
        (no_synapse_of_units_in_a_file, "none of the 2 rows of synapses is between two units"),
        (merged_with_nothing, "none of the 2 rows of the table meets one of the 2 units"),
        (ids_of_another_kind, "none of the 2 rows of edges is between neurons of pre_ids and post"),
        (single_synapses_of_others, "none of 2 synapses is between two neurons of the conn"),
        (indices_of_what_are_no_rates, "1 of 2 curves of rates have negative values"),
        (alignment_of_negative_currents, "1 of 2 curves of currents have negative values"),
        (file_that_was_cut, "the last line of .*t.csv has no line break"),
        (no_ids, "each of the 2 rows of edges lacks the id of a neuron"),
        (probability_of_unknown_scope, r"2 of 2 neurons of pre \(100.0%\) count as unconnected"),
        (like_to_like_of_unknown_scope, r"2 of 2 neurons of pre \(100.0%\) count as unconnected"),
    ],
)
def test_a_warning_points_at_the_line_of_the_user(three_tables, tmp_path, call, message):
    with pytest.warns(UserWarning, match=message) as record:
        call(three_tables, tmp_path)
    assert [warning.filename for warning in record] == [__file__]
