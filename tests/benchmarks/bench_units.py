"""The unit table from files, beside the pandas package.

That package is compared if it is installed, without its own pins:
``pip install --no-deps microns-combiner && pip install cloud-files``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import microns_xr as mx


@pytest.fixture(scope="module")
def folders(scale, tmp_path_factory):
    n = max(600, int(94_000 * min(1, 3 * scale)))
    source = mx.sources.DemoSource(1507, n_nuclei=n, n_synapses=10_000)
    folder = tmp_path_factory.mktemp("raw")
    return {kind: source.write(folder / kind, format=kind) for kind in ("parquet", "csv")}


def ours(folder):
    return mx.Release(1507, source=folder).units(functional="best_only")


def pandas_package(folder):
    """The steps of the pandas package's process_nucleus_data, by its own functions."""
    processing = pytest.importorskip("microns_combiner.processing")
    spec = mx.releases.release_spec(1507)
    roles = ("nucleus", "celltype", "brain_area", "proofreading", "functional_properties")
    raw = next(folder.rglob("nucleus_detection_v0.csv")).parent
    tables = {role: pd.read_csv(raw / f"{spec.tables[role]}.csv") for role in roles}
    nuclei = tables["nucleus"].rename(columns={"id": "nucleus_id"})
    units = processing._merge_nucleus_with_cell_types(nuclei, tables["celltype"])
    units = processing._merge_brain_area(units, tables["brain_area"])
    units = processing._merge_proofreading_status(units, tables["proofreading"], 1507)
    units = processing._transform_positions(units)
    units = units[units["pt_root_id"] > 0].drop_duplicates(subset="pt_root_id", keep=False)
    units = processing._merge_functional_properties(
        units, tables["functional_properties"], mode="best_only"
    )
    segments = processing._merge_segments_by_layer(
        processing._divide_volume_into_segments(units, spec.tables["celltype"])
    )
    processing._add_layer_info(units, segments)
    return units


WAYS = {
    "Release.units, parquet": (ours, "parquet"),
    "Release.units, csv": (ours, "csv"),
    "pandas package, csv": (pandas_package, "csv"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the pandas package's
@pytest.mark.benchmark(group="unit table")
@pytest.mark.parametrize("way", WAYS)
def test_units(benchmark, folders, way):
    function, kind = WAYS[way]
    found = benchmark.pedantic(function, (folders[kind],), rounds=3, warmup_rounds=1)
    ids = ours(folders["csv"]).nucleus_id.values
    if function is ours:
        assert (found.nucleus_id.values == ids).all()
    else:
        # It drops nuclei without an area, and a root only if two of its nuclei are typed.
        assert np.isin(found["nucleus_id"], ids).mean() > 0.9
