"""Resolutions of positions: stated by the table, of the registry, and those that cannot be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cave_server import CaveServer
from roots import ROOTS

import microns_xr as mx
from microns_xr.columns import positions
from microns_xr.sources.tables import read_table_file, write_table_file

# Two nuclei of minnie65 in voxels of 4x4x40 nm, and their depths in µm.
VOXELS = np.array([[183013, 103535, 21480], [183013, 133535, 21480]])
DEPTHS = [79.69557585, 199.23893962]
NM = [4, 4, 40]
AXES = "xyz"
STATED = "dataframe_resolution"


def nuclei(points=VOXELS, resolution=None) -> pd.DataFrame:
    table = pd.DataFrame({"id": [11, 12], "pt_root_id": [ROOTS[11], ROOTS[12]]})
    for i, axis in enumerate(AXES):
        table[f"pt_position_{axis}"] = np.asarray(points)[:, i]
    if resolution is not None:
        table.attrs[STATED] = resolution
    return table


def others() -> dict[str, pd.DataFrame]:
    types = pd.DataFrame({"id": [1, 2], "target_id": [11, 12], "cell_type": ["23P", "BC"]})
    types["classification_system"] = ["excitatory_neuron", "inhibitory_neuron"]
    proofreading = pd.DataFrame(
        {"pt_root_id": [ROOTS[11]], "strategy_axon": ["none"], "strategy_dendrite": ["none"]}
    )
    return {"celltype": types, "proofreading": proofreading}


def depths(table: pd.DataFrame) -> np.ndarray:
    return mx.build_units({"nucleus": table, **others()}, 1300).position.sel(axis="y").values


def synapses(points=VOXELS, resolution=None) -> pd.DataFrame:
    table = pd.DataFrame({"id": [1, 2], "size": [5, 6]})
    table["pre_pt_root_id"] = table["post_pt_root_id"] = [ROOTS[11], ROOTS[12]]
    for i, axis in enumerate(AXES):
        table[f"ctr_pt_position_{axis}"] = np.asarray(points)[:, i]
    if resolution is not None:
        table.attrs[STATED] = resolution
    return table


@pytest.fixture
def units():
    return mx.build_units({"nucleus": nuclei(), **others()}, 1300)


# As caveclient states it: a list, or the text of the service's header.
@pytest.mark.parametrize("resolution", [[1, 1, 1], (1.0, 1.0, 1.0), "1.0, 1.0, 1.0", "[1 1 1]"])
def test_a_table_states_its_resolution(resolution):
    np.testing.assert_allclose(depths(nuclei(VOXELS * NM, resolution)), DEPTHS, rtol=1e-8)


def test_other_resolutions_and_none():
    np.testing.assert_allclose(depths(nuclei()), DEPTHS, rtol=1e-8)
    np.testing.assert_allclose(depths(nuclei(VOXELS, [4, 4, 40])), DEPTHS, rtol=1e-8)
    half = VOXELS / [2, 2, 1]
    np.testing.assert_allclose(depths(nuclei(half, [8, 8, 40])), DEPTHS, rtol=1e-8)
    um = VOXELS * NM / 1000
    np.testing.assert_allclose(depths(nuclei(um, [1000] * 3)), DEPTHS, rtol=1e-8)
    absent = VOXELS.astype(float)
    absent[1] = np.nan
    np.testing.assert_allclose(depths(nuclei(absent)), [DEPTHS[0], np.nan], rtol=1e-8)


@pytest.mark.parametrize(("factor", "likely", "call"), [
    (np.array(NM), "nm", r"\[1, 1, 1\]"),
    (np.array(NM) / 1e3, "µm", r"\[1000, 1000, 1000\]"),
    (np.array(NM) / 1e6, "mm", r"\[1000000, 1000000, 1000000\]"),
])  # fmt: skip
def test_points_outside_of_the_volume_name_their_resolution(units, factor, likely, call):
    found = rf"2 of 2 points outside of the volume.*look like {likely}; if they are, state "
    where = rf"table.attrs\['dataframe_resolution'\] = {call}"
    with pytest.raises(
        mx.errors.SchemaError, match=r"nucleus_detection_v0.pt_position has " + found + where
    ):
        depths(nuclei(VOXELS * factor))
    connectivity = mx.build_connectivity(synapses(), units)
    table = synapses(VOXELS * factor)
    with pytest.raises(mx.errors.SchemaError, match=found + f"resolution_nm={call}"):
        mx.build_synapses(table, connectivity)
    given = [float(v) for v in call.strip("\\[]").replace("\\", "").split(",")]
    right = mx.build_synapses(table, connectivity, given)
    np.testing.assert_allclose(right.position.sel(axis="y"), DEPTHS, rtol=1e-8)
    stated = mx.build_synapses(synapses(VOXELS * factor, given), connectivity)
    np.testing.assert_array_equal(stated.position, right.position)


def test_depths_from_the_pia_are_no_voxels(units):
    um = units.position.values
    with pytest.raises(mx.errors.SchemaError, match=r"µm from the pia, which mx\.as_units takes"):
        depths(nuclei(um))


def test_one_point_outside_is_shown():
    points = VOXELS.copy()
    points[1] = [0, 0, 0]
    with pytest.raises(mx.errors.SchemaError, match=r"1 of 2 points .*\(0, 0, 0\) in row 1.*drop"):
        depths(nuclei(points))
    # a little beyond the segmented volume: within the images
    points[1] = [52_770 - 10_000, 322_718 + 10_000, 27_858 + 1_000]
    assert np.isfinite(depths(nuclei(points))).all()


def test_most_points_a_little_outside_are_of_another_resolution():
    """In voxels of 8x8x40 nm these nuclei are only some µm above the volume."""
    with pytest.raises(mx.errors.SchemaError, match=r"2 of 2 .*look like voxels of 8x8x40 nm"):
        depths(nuclei(VOXELS / [2, 2, 1] - [0, 8000, 0]))


def test_resolutions_that_are_none_or_contradict(units):
    for wrong in ("mixed_resolutions", [4, 4], [0, 4, 40], [4, 4, np.nan], 4):
        with pytest.raises(mx.errors.SchemaError, match="expected three numbers of nm"):
            depths(nuclei(resolution=wrong))
    connectivity = mx.build_connectivity(synapses(), units)
    with pytest.raises(mx.errors.SchemaError, match="leave out one of the two"):
        mx.build_synapses(synapses(resolution=[4, 4, 40]), connectivity, (1, 1, 1))


@pytest.mark.parametrize("ending", ["parquet", "feather", "csv", "pandas.parquet"])
def test_resolution_survives_files(tmp_path, units, ending):
    """Written by this package or by pandas, read by a release, ingested."""
    raw = tmp_path / "folder" / "raw"
    (raw / "synapses").mkdir(parents=True)

    def write(table, path):
        if ending == "feather":
            table.to_feather(path)
        elif ending == "pandas.parquet":
            table.to_parquet(path)
        else:
            write_table_file(table, path)

    suffix = ending.split(".")[-1]
    tables = {
        "nucleus_detection_v0": nuclei(VOXELS * NM, [1, 1, 1]),
        "aibs_metamodel_celltypes_v661": others()["celltype"],
        "proofreading_status_and_strategy": others()["proofreading"],
        "synapses/synapses_pni_2": synapses(VOXELS * NM, [1, 1, 1]),
    }
    for name, table in tables.items():
        write(table, raw / f"{name}.{suffix}")
    assert read_table_file(raw / f"nucleus_detection_v0.{suffix}").attrs == {STATED: [1, 1, 1]}
    release = mx.Release(1300, source=tmp_path / "folder")
    assert release.table("nucleus").attrs[STATED] == [1, 1, 1]
    found = release.units()
    np.testing.assert_allclose(found.position, units.position, rtol=1e-12)
    single = release.synapses()
    np.testing.assert_allclose(single.position, units.position, rtol=1e-12)
    if suffix != "feather":  # which is not ingested
        out = tmp_path / "s.zarr"
        file = raw / "synapses" / f"synapses_pni_2.{suffix}"
        mx.ingest_synapses(file, found, out, positions=True, progress=False)
        stored = mx.open_store(out)["synapses"].to_dataset()
        np.testing.assert_allclose(stored.position, units.position, rtol=1e-12)
        assert stored.position.attrs["frame"] == "minnie65 1.4"


def test_a_csv_file_without_a_resolution_replaces_that_of_an_older_one(tmp_path):
    path = write_table_file(nuclei(VOXELS * NM, [1, 1, 1]), tmp_path / "t.csv")
    write_table_file(nuclei(), path)
    assert read_table_file(path).attrs == {}


def test_ingest_refuses_synapses_outside_of_the_volume(tmp_path, units):
    path = write_table_file(synapses(VOXELS * NM), tmp_path / "s.csv")
    options = {"positions": True, "progress": False}
    message = r"s.csv line 2 .*\(732052, 414140, 859200\) is outside .*look like nm.*resolution_nm=\[1, 1, 1\]"
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.ingest_synapses(path, units, tmp_path / "s.zarr", **options)
    mx.ingest_synapses(path, units, tmp_path / "s.zarr", resolution_nm=(1, 1, 1), **options)
    stored = mx.open_store(tmp_path / "s.zarr")["synapses"].to_dataset()
    np.testing.assert_allclose(stored.position, units.position, rtol=1e-12)


def served(resolution=(1.0, 1.0, 1.0)) -> CaveServer:
    tables = {
        "nucleus_detection_v0": nuclei(VOXELS * NM),
        "aibs_metamodel_celltypes_v661": others()["celltype"],
        "proofreading_status_and_strategy": others()["proofreading"],
        "synapses_pni_2": synapses(VOXELS * NM),
    }
    return CaveServer(tables, resolution=resolution)


def test_resolution_of_the_service(tmp_path, units):
    """Read from the service, from the folder of a download, and from a release reopened there."""
    with served() as server:
        source = mx.sources.CaveSource(1718, server_address=server.url, auth_token="none")
        assert source.read("nucleus_detection_v0").attrs[STATED] == [1.0, 1.0, 1.0]
        release = mx.Release(1718, source=source, datadir=tmp_path)
        release.download(progress=False)
        np.testing.assert_allclose(release.units().position, units.position, rtol=1e-12)
        chosen = release.download_synapses(post=[11, 12], positions=True, progress=False)
        assert chosen.read().attrs[STATED] == [1.0, 1.0, 1.0]
        np.testing.assert_allclose(release.synapses().position, units.position, rtol=1e-12)
        source.close()
    again = mx.Release(1718, source=tmp_path / "minnie65_public" / "v1718")
    np.testing.assert_allclose(again.units().position, units.position, rtol=1e-12)
    np.testing.assert_allclose(again.synapses().position, units.position, rtol=1e-12)


def test_resolution_of_a_frame_of_caveclient(tmp_path, units):
    """What users query themselves, and save."""
    from caveclient import CAVEclient

    with served() as server:
        client = CAVEclient(
            "minnie65_public", server_address=server.url, auth_token="none",
            write_server_cache=False,
        )  # fmt: skip
        client.version = 1718
        table = client.materialize.query_table(
            "nucleus_detection_v0", desired_resolution=[1, 1, 1], split_positions=True,
            merge_reference=False,
        )  # fmt: skip
    assert table.attrs[STATED]
    table.to_parquet(tmp_path / "nucleus_detection_v0.parquet")
    for found in (table, read_table_file(tmp_path / "nucleus_detection_v0.parquet")):
        np.testing.assert_allclose(depths(found), DEPTHS, rtol=1e-8)


def test_links_convert_back(units):
    pytest.importorskip("nglui")
    from urllib.parse import unquote

    link = unquote(mx.neuroglancer_link(units))
    for point in VOXELS.tolist():
        assert f"[{', '.join(f'{v:.1f}' for v in point)}]".replace(" ", "") in link.replace(" ", "")


def test_merged_position_columns_keep_their_resolution(units):
    table = nuclei(VOXELS * NM, [1, 1, 40]).rename(columns={"id": "target_id"})
    merged = mx.merge_table(units, table, ["pt_position_x", "pt_position_z"])
    assert merged.pt_position_x.attrs["voxel_nm"] == 1
    assert merged.pt_position_z.attrs["voxel_nm"] == 40


def test_real_tables_are_inside(real_data):
    cells = pd.read_feather(real_data / "minnie65_real" / "v1300_cell_info.feather")
    space = mx.releases.release_spec(1300).space
    points = cells[[f"pt_position_{a}" for a in AXES]].to_numpy()
    assert len(points) == 91_423
    assert not space.outside(points, (1, 1, 1)).any()
    assert space.outside(points, (4, 4, 40)).all()
    for version in (661, 1300):
        file = real_data / f"minnie65_v{version}" / "raw" / "nucleus_detection_v0.csv"
        points = pd.read_csv(file)[[f"pt_position_{a}" for a in AXES]].to_numpy()
        assert not space.outside(points, (4, 4, 40)).any()
        for wrong in ((1, 1, 1), (1000, 1000, 1000), (9, 9, 45)):
            assert space.outside(points, wrong).any()


def test_points_as_a_list_of_numpy_numbers_is_printed():
    table = nuclei(VOXELS, None)[["id"]]
    table["pt_position"] = [str(list(point)) for point in VOXELS.astype(np.int64)]
    assert "np.int64(" in table.pt_position[0]
    np.testing.assert_allclose(positions(table, "t"), VOXELS)
