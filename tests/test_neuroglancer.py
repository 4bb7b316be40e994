"""Links to Neuroglancer: exact ids, colours of segments, positions in voxels; no network."""

from __future__ import annotations

import json
import socket
import sys
from urllib.parse import unquote

import numpy as np
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.plot.style import NO_VALUE, PALETTE, styles_of
from microns_xr.releases import space_of
from microns_xr.schema import AXES

SPACE, VOXEL = space_of("minnie65_public"), (4, 4, 40)

pytest.importorskip("nglui", reason="nglui is an extra: pip install 'microns-xr[neuroglancer]'")

# A float64 cannot tell these three apart.
ROOTS = [864691135639235593, 864691135639235594, 864691135639235595]
VOXELS = np.array([[200000, 120000, 21000], [210001, 130003, 21007], [220000, 140000, 22000]])


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any connection is an error."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def units():
    made = xr.Dataset(
        {
            "pt_root_id": ("nucleus_id", np.array(ROOTS, dtype=np.int64)),
            "position": (("nucleus_id", "axis"), SPACE.to_um(VOXELS, VOXEL)),
            "cell_type": ("nucleus_id", np.array(["23P", "BC", "unknown"], dtype=object)),
            "gOSI": ("nucleus_id", [0.0, 1.0, np.nan]),
        },
        coords={"nucleus_id": [11, 12, 13], "axis": np.array(AXES, dtype=object)},
    )
    return mx.releases.stamp_release(made, "minnie65_public", 1718)


@pytest.fixture
def synapses():
    """12 to 11, 11 to 12, and one between neurons that are not shown."""
    voxels = [[201000, 121000, 21001], [202000, 122000, 21002], [203000, 123000, 21003]]
    made = xr.Dataset(
        {
            "synapse_id": ("synapse", [501, 502, 503]),
            "size": ("synapse", [70, 80, 90]),
            "position": (("synapse", "axis"), SPACE.to_um(np.array(voxels), VOXEL)),
        },
        coords={
            "pre_nucleus_id": ("synapse", [12, 11, 98]),
            "post_nucleus_id": ("synapse", [11, 12, 99]),
            "axis": np.array(AXES, dtype=object),
        },
    )
    return mx.releases.stamp_release(made, "minnie65_public", 1718)


@pytest.fixture
def connectivity(three_tables):
    """One connection, from 11 to 12, among units of which one is in none."""
    units = mx.build_units(three_tables, 1718)
    import pandas as pd

    table = pd.DataFrame(
        {
            "id": [1],
            "pre_pt_root_id": [ROOTS[0]],
            "post_pt_root_id": [ROOTS[1]],
            "size": [5],
        }
    )
    return units, mx.build_connectivity(table, units, pre=[11, 12, 13], post=[11, 12, 13])


def state_of(link):
    """The state that a link carries behind ``#!``."""
    return json.loads(unquote(link.partition("#!")[2]))


def layers_of(link):
    return {layer["name"]: layer for layer in state_of(link)["layers"]}


def test_cells_are_segments_with_exact_ids(units):
    link = mx.neuroglancer_link(units, colour="cell_type")
    assert link.startswith("https://spelunker.cave-explorer.org/#!")
    layers = layers_of(link)
    cells = layers["cells"]
    assert cells["segments"] == [str(root) for root in ROOTS]
    styles = styles_of(["23P", "BC"])
    assert cells["segmentColors"] == {
        str(ROOTS[0]): styles["23P"].colour,
        str(ROOTS[1]): styles["BC"].colour,
        str(ROOTS[2]): NO_VALUE,
    }
    assert "minnie65_public" in cells["source"][0]["url"]
    assert layers["images"]["source"][0]["url"].startswith("precomputed://https://")
    nuclei = layers["nuclei"]["annotations"]
    assert [n["point"] for n in nuclei] == VOXELS.tolist()
    assert [n["segments"] for n in nuclei] == [[[str(root)]] for root in ROOTS]
    assert [n["description"] for n in nuclei] == ["11 23P", "12 BC", "13 unknown"]
    state = state_of(link)
    assert state["dimensions"] == {"x": [4e-9, "m"], "y": [4e-9, "m"], "z": [4e-8, "m"]}
    assert state["position"] == VOXELS[0].tolist()
    assert mx.neuroglancer_link(units, colour="cell_type") == link


def test_numbers_are_coloured_and_cells_without_segment_left_out(units):
    colours = layers_of(mx.neuroglancer_link(units.chunk(), colour="gOSI"))["cells"][
        "segmentColors"
    ]
    assert colours == {
        str(ROOTS[0]): "#440154", str(ROOTS[1]): "#fde725", str(ROOTS[2]): NO_VALUE,
    }  # fmt: skip
    fewer = units.assign(pt_root_id=units.pt_root_id.where(units.nucleus_id != 12, 0))
    layers = layers_of(mx.neuroglancer_link(fewer))
    assert layers["cells"]["segments"] == [str(ROOTS[0]), str(ROOTS[2])]
    assert not layers["cells"].get("segmentColors")
    assert [n["id"] for n in layers["nuclei"]["annotations"]] == ["11", "13"]
    with pytest.raises(mx.errors.SchemaError, match="none of the 3 cells has a segment"):
        mx.neuroglancer_link(units.assign(pt_root_id=units.pt_root_id * 0))


def test_a_nucleus_without_position_is_no_point(units):
    unplaced = units.assign(position=units.position.where(units.nucleus_id != 11))
    link = mx.neuroglancer_link(unplaced)
    assert [n["id"] for n in layers_of(link)["nuclei"]["annotations"]] == ["12", "13"]
    assert state_of(link)["position"] == VOXELS[1].tolist()
    assert "nuclei" not in layers_of(mx.neuroglancer_link(units.drop_vars("position")))


def test_synapses_of_the_cells_are_points(units, synapses):
    only = units.isel(nucleus_id=[0])
    annotations = layers_of(mx.neuroglancer_link(only, synapses=synapses))["synapses"]
    points = annotations["annotations"]
    assert [p["id"] for p in points] == ["501", "502"]
    assert [p["point"] for p in points] == [[201000, 121000, 21001], [202000, 122000, 21002]]
    # each is linked to those of its two neurons that are shown
    assert [p["segments"] for p in points] == [[[str(ROOTS[0])]], [[str(ROOTS[0])]]]
    assert points[0]["description"] == "12 → 11, size 70"
    assert annotations["linkedSegmentationLayer"] == {"segments": "cells"}
    both = layers_of(mx.neuroglancer_link(units, synapses=synapses))["synapses"]["annotations"]
    assert both[0]["segments"] == [[str(ROOTS[1]), str(ROOTS[0])]]
    with pytest.raises(mx.errors.SchemaError, match="none of the 3 synapses"):
        mx.neuroglancer_link(units.isel(nucleus_id=[2]), synapses=synapses)
    with pytest.raises(mx.errors.SchemaError, match="has no 'position'"):
        mx.neuroglancer_link(units, synapses=synapses.drop_vars("position"))
    with pytest.raises(mx.errors.SchemaError, match="no pre_nucleus_id over synapse"):
        mx.neuroglancer_link(units, synapses=synapses.drop_vars("pre_nucleus_id"))
    other = mx.releases.stamp_release(synapses, "minnie65_public", 1300)
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.neuroglancer_link(units, synapses=other)


def test_connections_are_blue_and_orange(connectivity, synapses):
    units, pairs = connectivity
    layers = layers_of(mx.neuroglancer_link(pairs, synapses=synapses))
    assert layers["cells"]["segmentColors"] == {
        str(ROOTS[0]): PALETTE[0],
        str(ROOTS[1]): PALETTE[1],
    }
    assert len(layers["synapses"]["annotations"]) == 2
    with pytest.raises(mx.errors.SchemaError, match="no 'pre_cell_type'"):
        mx.neuroglancer_link(pairs, colour="cell_type")
    typed = mx.annotate(pairs, units, ["cell_type"])
    colours = layers_of(mx.neuroglancer_link(typed, colour="cell_type"))["cells"]["segmentColors"]
    words = dict(zip(units.nucleus_id.values, units.cell_type.values, strict=True))
    styles = styles_of([words[11], words[12]])
    assert colours == {
        str(ROOTS[0]): styles[words[11]].colour,
        str(ROOTS[1]): styles[words[12]].colour,
    }


def test_a_demo_release_is_refused_unless_asked(demo_release, demo_fresh):
    units = demo_fresh["units"].isel(nucleus_id=slice(0, 4))
    with pytest.raises(mx.errors.SchemaError, match=r"synthetic release.*allow_demo=True"):
        mx.neuroglancer_link(units)
    ids = demo_fresh["connectivity"].pre_nucleus_id.values[:4]
    units = demo_fresh["units"].sel(nucleus_id=ids)
    table = demo_release.table("synapses")
    built = mx.build_synapses(table, demo_fresh["connectivity"])
    synapses = mx.select_synapses(built, pre=ids)
    drawn, all_drawn = (
        {
            p["id"]: p["point"]
            for p in layers_of(mx.neuroglancer_link(units, synapses=given, allow_demo=True))[
                "synapses"
            ]["annotations"]
        }
        for given in (synapses, built)
    )
    # All synapses add those onto the cells.
    n_onto = mx.select_synapses(built, post=ids).sizes["synapse"]
    assert drawn.items() <= all_drawn.items()
    assert len(all_drawn) <= len(drawn) + n_onto
    columns = [f"ctr_pt_position_{axis}" for axis in "xyz"]
    if columns[0] in table:
        raw = table.set_index("id")[columns]
    else:
        raw = table.set_index("id")["ctr_pt_position"].apply(list)
    assert len(drawn) == synapses.sizes["synapse"] > 0
    for own, point in drawn.items():
        assert list(raw.loc[int(own)]) == point


def test_sources_are_those_of_the_release(units):
    def source(version, datastack="minnie65_public", **options):
        own = mx.releases.stamp_release(units, datastack, version)
        return layers_of(mx.neuroglancer_link(own, **options))["cells"]["source"][0]["url"]

    assert source(1300).endswith("minnie65/seg_m1300")
    assert source(943).endswith("minnie65/seg_m943")
    assert source(661).startswith("graphene://middleauth+https://")
    with pytest.raises(mx.errors.SchemaError, match="pass segmentation="):
        source(1, "v1dd_public")
    assert source(1, "v1dd_public", segmentation="precomputed://a/b") == "precomputed://a/b"


def test_too_much_and_what_is_no_cell(units, monkeypatch):
    with pytest.raises(mx.errors.SchemaError, match="expected at most max_cells=2"):
        mx.neuroglancer_link(units, max_cells=2)
    with pytest.raises(mx.errors.SchemaError, match="no variable 'colour'"):
        mx.neuroglancer_link(units, colour="colour")
    with pytest.raises(mx.errors.SchemaError, match="expected one value per neuron"):
        mx.neuroglancer_link(units, colour="position")
    with pytest.raises(mx.errors.SchemaError, match="expected units or a connectivity Dataset"):
        mx.neuroglancer_link(units.cell_type)
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.neuroglancer_link(units.drop_vars("datastack"))
    monkeypatch.setattr("microns_xr.neuroglancer._MAX_LENGTH", 100)
    with pytest.raises(mx.errors.SchemaError, match="select fewer cells"):
        mx.neuroglancer_link(units)


def test_without_nglui_the_message_says_how_to_get_it(units, monkeypatch):
    monkeypatch.setitem(sys.modules, "nglui.statebuilder", None)
    with pytest.raises(mx.errors.MicronsXrError, match=r"microns-xr\[neuroglancer\]"):
        mx.neuroglancer_link(units)
