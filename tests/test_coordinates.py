"""Positions: known points, the published table, the way back."""

from __future__ import annotations

import numpy as np
import pandas as pd

from microns_xr.releases import space_of

SPACE, VOXEL = space_of("minnie65_public"), (4, 4, 40)


def test_a_known_point():
    # rotation by 5 degrees about z, by hand; the pia point of the frame has depth 0
    pia = np.array([183013, 83535]) * 4
    point = np.array([[200000.0, 150000.0, 20000.0]])
    x, y, z = point[0] * [4, 4, 40]
    angle = np.deg2rad(5)
    depth = (
        x * np.sin(angle) + y * np.cos(angle) - (pia[0] * np.sin(angle) + pia[1] * np.cos(angle))
    )
    across = x * np.cos(angle) - y * np.sin(angle)
    np.testing.assert_allclose(
        SPACE.to_um(point, VOXEL), [[across / 1000, depth / 1000, z / 1000]], rtol=1e-12
    )


def test_there_and_back():
    points = np.random.default_rng(0).uniform(1e4, 4e5, (100, 3))
    np.testing.assert_allclose(SPACE.from_um(SPACE.to_um(points, VOXEL), VOXEL), points, rtol=1e-12)


def test_nanometres_are_voxels_of_one():
    points = np.array([[200000.0, 150000.0, 20000.0]])
    np.testing.assert_allclose(
        SPACE.to_um(points * [4, 4, 40], (1, 1, 1)), SPACE.to_um(points, VOXEL), rtol=1e-12
    )


def test_missing_positions_and_empty_tables():
    out = SPACE.to_um(np.array([[np.nan] * 3, [1.0, 2.0, 3.0]]), VOXEL)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
    assert SPACE.to_um(np.zeros((0, 3)), VOXEL).shape == (0, 3)


def test_published_positions_of_v1300(real_data):
    folder = real_data / "minnie65_real"
    cells = pd.read_feather(folder / "v1300_cell_info.feather")
    table = pd.read_csv(folder / "v1300_unit_table.csv")
    cells = cells[cells.pt_root_id > 0].drop_duplicates("pt_root_id", keep=False)
    um = SPACE.to_um(
        cells[["pt_position_x", "pt_position_y", "pt_position_z"]].to_numpy(), (1, 1, 1)
    )
    mine = pd.DataFrame(um, columns=["x", "y", "z"], index=cells.pt_root_id).loc[table.pt_root_id]
    published = table[["pial_dist_x", "pial_dist_y", "pial_dist_z"]].to_numpy()
    assert len(mine) == len(table) == 24_774
    assert np.abs(mine.to_numpy() - published).max() < 1e-9
