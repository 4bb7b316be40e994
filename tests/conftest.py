"""Shared fixtures: hand-made tables of three neurons, the demo release, the real data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_fixtures import peak, pytest_terminal_summary, scale  # noqa: F401
from roots import ROOTS
from sparse_cache import keep_compiled

REAL_DATA = "MICRONS_XR_REAL_DATA"

keep_compiled()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scale", type=float, default=0.1, help="benchmarks: share of the whole connectome"
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with minnie65_v661, minnie65_v1300 and minnie65_real."""
    folder = os.environ.get(REAL_DATA)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"real MICrONS tables are not here: set {REAL_DATA} to their folder")
    return Path(folder)


@pytest.fixture
def three_tables() -> dict[str, pd.DataFrame]:
    """Raw tables of a release of three neurons and three nuclei that are none."""
    nuclei = pd.DataFrame(
        {
            "id": [13, 11, 12, 14, 15, 16],
            # 14 has no segment, 15 and 16 share one
            "pt_root_id": [
                ROOTS[13],
                ROOTS[11],
                ROOTS[12],
                0,
                864691135000000001,
                864691135000000001,
            ],
            "pt_position_x": [200000] * 6,
            "pt_position_y": [120000, 130000, 180000, 130000, 130000, 130000],
            "pt_position_z": [21000] * 6,
        }
    )
    types = pd.DataFrame(
        {
            "id": [1, 2, 3, 4, 5],
            "target_id": [11, 12, 13, 14, 15],
            "classification_system": ["excitatory_neuron"] * 2 + ["inhibitory_neuron"] * 3,
            "cell_type": ["23P", "5P-ET", "BC", "MC", "BC"],
        }
    )
    areas = pd.DataFrame({"id": [1, 2], "target_id": [11, 12], "tag": ["V1", "RL"]})
    proofreading = pd.DataFrame(
        {
            "pt_root_id": [ROOTS[11], ROOTS[12], 864691130000000009],
            "valid_id": pd.array([ROOTS[11], 864691130000000001, None], dtype="Int64"),
            "status_axon": ["t", "t", "t"],
            "strategy_axon": ["axon_fully_extended", "axon_column_truncated", "axon_interareal"],
            "strategy_dendrite": ["dendrite_extended", "none", "none"],
        }
    )
    coregistration = pd.DataFrame(
        {
            "target_id": [11, 11, 11, 12, 99],
            "pt_root_id": [ROOTS[11]] * 3 + [ROOTS[12], 0],
            "session": [4, 5, 4, 4, 4],
            "scan_idx": [7, 2, 7, 7, 7],
            "unit_id": [9, 1, 3, 2, 5],
        }
    )
    properties = coregistration.assign(
        pref_ori=[0.0, 0.5, 1.0, 1.5, 2.0],
        pref_dir=[0.0, 0.5, 1.0, 4.5, 5.0],
        gOSI=[0.1, 0.2, 0.3, 0.4, 0.5],
        gDSI=[0.1, 0.2, 0.3, 0.4, 0.5],
        cc_abs=[0.3, 0.7, 0.7, np.nan, 0.9],
    )
    return {
        "nucleus": nuclei,
        "celltype": types,
        "brain_area": areas,
        "proofreading": proofreading,
        "coregistration": coregistration,
        "functional_properties": properties,
    }


@pytest.fixture(scope="session")
def demo_release():
    """A synthetic release of a few hundred neurons."""
    import microns_xr as mx

    return mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=1500, seed=3))


@pytest.fixture(scope="session")
def demo_fresh(demo_release):
    """Units, functional rows and connectivity as they were built."""
    import microns_xr as mx

    units = demo_release.units(functional="match", rates=True)
    connectivity = demo_release.connectivity(units=units)
    return {
        "units": units,
        "layers": mx.segment_layers(units),
        "functional": demo_release.functional(),
        "connectivity": mx.annotate(connectivity, units, ["cell_type", "position"]),
    }


@pytest.fixture(scope="session")
def demo_store(demo_fresh, tmp_path_factory):
    """A store of the synthetic release."""
    import microns_xr as mx

    path = tmp_path_factory.mktemp("stores") / "demo.zarr"
    mx.write_store(path, **demo_fresh)
    return path


@pytest.fixture(scope="session", params=["fresh", "reopened", "reopened by pre"])
def demo(request, demo_fresh):
    """The synthetic release as it was built, and as it comes back from a store."""
    import microns_xr as mx

    if request.param == "fresh":
        return demo_fresh
    store = request.getfixturevalue("demo_store")
    compressed = "pre" if request.param.endswith("pre") else "post"
    tree = mx.open_store(store, compressed=compressed)
    return {name: tree[name].to_dataset() for name in demo_fresh}
