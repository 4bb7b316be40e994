"""What is no data at all, where data enter: an error of the package, or one that names the argument."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx

JUNK = [
    None, 5, 1.5, 2**63, "text", b"text", Path("nope"), [1.0], ["a", 1], {}, {"a": 1}, object(), np.zeros((2, 2)),
    pd.DataFrame({"a": [1]}), xr.Dataset(), xr.DataArray(1.0), xr.DataTree(), [None],
]  # fmt: skip

# Public functions, with arguments that are right, by the arguments that take junk.
DOORS = {
    "annotate": "connectivity units",
    "build_connectivity": "synapses units scope rows",
    "build_synapses": "synapses connectivity",
    "build_units": "tables functional multisoma untyped",
    "as_units": "table version datastack",
    "as_connectivity": "edges version datastack scope rows",
    "contract": "connectivity values",
    "degrees": "connectivity",
    "group_connectivity": "connectivity pre",
    "input_currents": "connectivity rates",
    "ingest_synapses": "units out",
    "inputs_to": "connectivity nucleus_id",
    "merge_table": "units table",
    "open_store": "path",
    "segment_layers": "units",
    "select_connections": "connectivity",
    "select_units": "units",
    "to_scipy": "connectivity",
    "Release": "version source tables",
    "analysis.compare_releases": "a b",
    "analysis.connection_probability": "connectivity",
    "analysis.like_to_like": "connectivity units",
    "analysis.tuned_connections": "connectivity units",
    "angles.convert": "obj convention units",
    "recordings.to_zarr": "recordings path",
    "recordings.select": "recordings",
    "tuning.fit": "rates",
    "tuning.selectivity": "rates",
    "sources.DirectorySource": "path version",
    "sources.CaveSource": "version auth_token",
    "releases.release_spec": "version tables",
}


@pytest.fixture(scope="module")
def right(demo_fresh, demo_release):
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    synapses = demo_release.table("synapses_pni_2")
    return {
        "units": units,
        "connectivity": connectivity,
        "synapses": synapses,
        "tables": {"nucleus": demo_release.table("nucleus")},
        "table": pd.DataFrame({"nucleus_id": units.nucleus_id.values[:3], "x": [1.0, 2.0, 3.0]}),
        "edges": pd.DataFrame({"pre": [1], "post": [2]}),
        "values": units.rate_ori,
        "rates": units.rate_ori,
        "over": "pre_nucleus_id",
        "variables": "cell_type",
        "version": 1718,
        "source": "demo",
        "dim": "orientation",
    }


@pytest.mark.parametrize("name", DOORS)
def test_junk_is_an_error_that_says_so(right, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = mx
    for part in name.split("."):
        function = getattr(function, part)
    own = {
        "as_connectivity": {"pre": "pre", "post": "post"},
        "group_connectivity": {"pre": "cell_type"},
        "ingest_synapses": {"files": "none.csv", "out": "out.zarr"},
        "inputs_to": {"nucleus_id": 1},
        "analysis.compare_releases": dict.fromkeys("ab", right["units"]),
        "angles.convert": {"obj": right["units"], "convention": None, "units": None},
        "recordings.to_zarr": {"recordings": xr.DataTree(), "path": "out.zarr"},
        "sources.DirectorySource": {"path": "."},
    }
    rng = random.Random(name)
    for argument in DOORS[name].split():
        for junk in rng.sample(JUNK, 8):
            names = inspect.signature(function).parameters
            options = {key: right[key] for key in names if key in right} | own.get(name, {})
            try:
                function(**options | {argument: junk})
            except mx.errors.MicronsXrError:
                pass
            except (TypeError, ValueError, FileNotFoundError) as error:
                assert argument in str(error), (argument, junk)  # noqa: PT017
    assert not list(tmp_path.rglob("*.tmp"))
