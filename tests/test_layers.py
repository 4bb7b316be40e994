"""Layer borders: by hand, on the real cells of minnie65, and on subsets of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.layers import layer_at
from microns_xr.releases import space_of

SPACE, VOXEL = space_of("minnie65_public"), (4, 4, 40)

# Published borders of release 1300, µm from the pia.
V1300 = {"L1": 1.224539, "L2/3": 70.981459, "L4": 250.356396, "L5": 359.974413, "L6": 509.453527}


def cells(**depths: np.ndarray) -> xr.Dataset:
    y = np.concatenate(list(depths.values()))
    types = np.repeat(
        np.array([k.replace("_", "-") for k in depths], dtype=object),
        [len(v) for v in depths.values()],
    )
    position = np.stack([np.zeros_like(y), y, np.zeros_like(y)], axis=1)
    return xr.Dataset(
        {"position": (("nucleus_id", "axis"), position), "cell_type": ("nucleus_id", types)},
        coords={"nucleus_id": np.arange(len(y))},
        attrs={"celltype_table": "aibs_metamodel_celltypes_v661"},
    )


def test_by_hand():
    # ten bins of 10 µm; each µm-range is filled evenly
    units = cells(
        NGC=np.array([0.0, 5.0, 15.0]),
        **{"23P": np.concatenate([[12.0], np.linspace(20, 49.9, 60)])},
        **{"5P_ET": np.linspace(50, 79.9, 60)},
        oligo=np.concatenate([np.linspace(0, 79.9, 8), np.linspace(80, 100, 20)]),
    )
    layers = mx.segment_layers(units)
    assert layers.layer_name.values.tolist() == ["L1", "L2/3", "L5", "WM"]
    np.testing.assert_allclose(layers.y_start, [0, 20, 50, 80])
    np.testing.assert_allclose(layers.y_end, [20, 50, 80, 100])
    np.testing.assert_allclose(layers.height, [20, 30, 30, 20])
    pandas_rule = mx.segment_layers(units, white_matter=False)
    assert pandas_rule.layer_name.values.tolist() == ["L1", "L2/3", "L5"]
    assert pandas_rule.y_end.values[-1] == 100


def test_the_deepest_cell_belongs_to_the_deepest_layer():
    units = cells(**{"23P": np.linspace(0, 50, 50), "4P": np.linspace(50.1, 100, 50)})
    layers = mx.segment_layers(units)
    words = layer_at(units.position.values[:, 1], layers)
    assert set(words) == {"L2/3", "L4"}
    assert words[-1] == "L4"
    assert layer_at(np.array([-0.1, 100.1, np.nan]), layers).tolist() == ["unknown"] * 3


def test_spelling_of_types_does_not_matter():
    units = cells(**{"23P": np.linspace(0, 50, 50), "4P": np.linspace(50.1, 100, 50)})
    odd = units.assign(cell_type=units.cell_type.str.lower())
    assert mx.segment_layers(odd).equals(mx.segment_layers(units))


def test_a_layer_may_come_in_several_regions():
    units = cells(
        **{"23P": np.linspace(0, 30, 300), "4P": np.linspace(30.1, 60, 300)},
        **{"6P_CT": np.linspace(60.1, 80, 300)},
    )
    deeper = cells(**{"4P": np.linspace(80.1, 110, 300)})
    both = xr.concat(
        [units, deeper.assign_coords(nucleus_id=deeper.nucleus_id + 10_000)],
        "nucleus_id",
        join="outer",
    )
    layers = mx.segment_layers(both)
    assert layers.layer_name.values.tolist() == ["L2/3", "L4", "L6", "L4"]
    assert layers.region_index.values.tolist() == [0, 0, 0, 1]


def test_a_bin_that_flips_by_chance_makes_no_region():
    units = cells(
        **{
            "23P": np.linspace(0, 30, 300),
            "4P": np.r_[np.linspace(30, 39.9, 100), np.full(9, 45.0), np.linspace(50, 60, 100)],
        },
        **{"5P_IT": np.full(10, 45.0)},
    )
    assert mx.segment_layers(units).layer_name.values.tolist() == ["L2/3", "L4"]


def test_glia_that_outnumber_neurons_within_the_cortex_are_not_white_matter():
    glia = [np.linspace(10, 30, 300), np.linspace(40, 59.9, 300), np.linspace(90, 99, 300)]
    units = cells(
        **{"23P": np.linspace(0, 39.9, 60), "4P": np.linspace(40, 50, 20)},
        **{"6P_CT": np.linspace(60, 89.9, 90), "oligo": np.concatenate(glia)},
    )
    layers = mx.segment_layers(units)
    assert layers.layer_name.values.tolist() == ["L2/3", "L4", "L6", "WM"]
    assert layers.y_start.values[-1] > 85


def test_empty_bins_belong_to_the_layer_above():
    units = cells(**{"23P": np.linspace(0, 30, 300), "4P": np.linspace(70, 100, 300)})
    layers = mx.segment_layers(units)
    assert layers.y_end.values[0] == layers.y_start.values[1] == 70


@pytest.mark.parametrize("y", [np.array([5.0]), np.array([5.0, 5.0])])
def test_very_few_cells(y):
    layers = mx.segment_layers(cells(**{"23P": y}))
    assert layers.layer_name.values.tolist() == ["L2/3"]
    assert layer_at(y, layers).tolist() == ["L2/3"] * len(y)


def test_types_that_mark_no_layer():
    units = cells(**{"23Pyr": np.array([1.0, 50.0])})
    with pytest.warns(UserWarning, match=r"marks a layer .*found 23Pyr.* layer_types=") as record:
        layers = mx.segment_layers(units)
    assert record[0].filename == __file__
    assert layers.layer_name.values.tolist() == ["unknown"]
    # Of a classification without types nothing else is expected.
    silent = mx.segment_layers(units.assign_attrs(layer_types=[]))
    assert silent.layer_name.values.tolist() == ["unknown"]


def test_types_that_no_unit_has():
    units = cells(**{"23P": np.linspace(0, 50, 50), "4P": np.linspace(50.1, 100, 50)})
    match = r"no unit has any of the cell types \['23p_', '4PP'\].* found 23P, 4P; nearest: 23P"
    with pytest.raises(mx.errors.UnknownLabelError, match=match):
        mx.segment_layers(units, layer_types={"L2/3": ["23p_"], "L4": ["4PP"]})
    with pytest.warns(UserWarning, match=r"no unit has the cell types \['4PP'\].*nearest: 4P") as w:
        layers = mx.segment_layers(units, layer_types={"L2/3": ["23p"], "L4": ["4PP"]})
    assert w[0].filename == __file__
    assert layers.layer_name.values.tolist() == ["L2/3"]
    # One type may stand without a list.
    layers = mx.segment_layers(units, layer_types={"L2/3": "23P", "L4": "4P"})
    assert layers.equals(mx.segment_layers(units))
    for junk, message in (
        (["23P"], "layer_types is a list, expected a mapping"),
        ({"L4": None}, r"layer_types\['L4'\] is a NoneType, expected cell types"),
        ({"L4": [4]}, r"no unit has any of the cell types \['4'\]"),
        ({}, "no unit has any of the cell types"),
    ):
        with pytest.raises(mx.errors.MicronsXrError, match=message):
            mx.segment_layers(units, layer_types=junk)


def test_what_cannot_be_segmented_is_refused():
    units = cells(**{"23P": np.array([np.nan, np.nan])})
    with pytest.raises(mx.errors.SchemaError, match="no unit has a position"):
        mx.segment_layers(units)
    with pytest.raises(mx.errors.SchemaError, match="has no cell_type"):
        mx.segment_layers(units.drop_vars("cell_type"))
    unknown = cells(**{"23P": np.array([1.0, 2.0])}).assign_attrs(celltype_table="my_types")
    with pytest.raises(mx.errors.SchemaError, match=r"of my_types .*layer_types="):
        mx.segment_layers(unknown)
    with pytest.raises(mx.errors.SchemaError, match=r"do not state which .*layer_types="):
        mx.segment_layers(unknown.drop_attrs())


@pytest.fixture(scope="module")
def v1300(real_data) -> xr.Dataset:
    raw = real_data / "minnie65_v1300" / "raw"
    nuclei = pd.read_csv(raw / "nucleus_detection_v0.csv")
    types = pd.read_csv(raw / "aibs_metamodel_celltypes_v661.csv")
    cells_ = nuclei.merge(types, left_on="id", right_on="target_id", validate="1:1").sort_values(
        "target_id"
    )
    position = SPACE.to_um(
        cells_[["pt_position_x", "pt_position_y", "pt_position_z"]].to_numpy(), VOXEL
    )
    return xr.Dataset(
        {
            "position": (("nucleus_id", "axis"), position),
            "cell_type": ("nucleus_id", cells_.cell_type.to_numpy(object)),
        },
        coords={"nucleus_id": cells_.target_id.to_numpy()},
        attrs={"celltype_table": "aibs_metamodel_celltypes_v661"},
    )


@pytest.mark.parametrize(("white_matter", "end_of_l6"), [(False, 828.342305), (True, 728.689562)])
def test_published_borders_of_v1300(v1300, white_matter, end_of_l6):
    layers = mx.segment_layers(v1300, white_matter=white_matter)
    names = layers.layer_name.values.tolist()
    assert names == [*V1300, *(["WM"] if white_matter else [])]
    np.testing.assert_allclose(layers.y_start[:5], list(V1300.values()), atol=1e-6)
    assert layers.y_end.values[4] == pytest.approx(end_of_l6, abs=1e-6)
    np.testing.assert_array_equal(layers.y_end[:-1], layers.y_start[1:])


def test_a_few_thousand_cells_yield_the_layers(v1300):
    rng = np.random.default_rng(5)
    borders = []
    for _ in range(40):
        some = np.sort(rng.choice(v1300.sizes["nucleus_id"], 3000, replace=False))
        layers = mx.segment_layers(v1300.isel(nucleus_id=some), white_matter=False)
        assert layers.layer_name.values.tolist() == list(V1300)
        borders.append(layers.y_start.values[1:])
    error = np.abs(np.array(borders) - list(V1300.values())[1:])
    assert np.median(error, axis=0).max() < 10  # a bin
    assert error.max() < 30


def test_v1300_units_of_the_whole_release_have_layers(real_data):
    release = mx.Release(1300, source=real_data / "minnie65_v1300")
    units = release.units()
    assert units.sizes["nucleus_id"] == 91_422
    assert set(units.layer.values) == {"L1", "L2/3", "L4", "L5", "L6", "WM"}
    layers = release.layers()
    assert layers.y_end.values[4] == pytest.approx(728.689562, abs=1e-6)
