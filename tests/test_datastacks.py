"""Volumes other than minnie65: v1dd of the registry, and one of a user's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cave_server import CaveServer
from command import run

import microns_xr as mx
from microns_xr.releases import ReleaseSpec, TableSpec, release_spec
from microns_xr.sources.directory import write_identity

CONSORTIUM = "MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w"
ROOT = 864_691_132_000_000_001
# Voxels of 9x9x45 nm of v1dd, and their depths in the frame of standard_transform 2.0.
V1DD = np.array([[101249, 60000, 9145], [90000, 90000, 3000]])
V1DD_DEPTHS = [256.40208857, 443.02787626]


def with_points(table: pd.DataFrame, name: str, points) -> pd.DataFrame:
    return table.assign(**{f"{name}_{a}": np.asarray(points)[:, i] for i, a in enumerate("xyz")})


def v1dd_tables(points=V1DD) -> dict[str, pd.DataFrame]:
    ids = np.arange(1, len(points) + 1)
    nuclei = pd.DataFrame({"id": ids, "pt_root_id": ROOT + ids})
    types = pd.DataFrame({"id": ids, "target_id": ids, "cell_type": "L2IT"})
    proofreading = pd.DataFrame({"pt_root_id": ROOT + ids, "strategy_axon": "axon_fully_extended"})
    return {
        "nucleus_detection_v0": with_points(nuclei, "pt_position", points),
        "cell_type_multifeature_v1": types.assign(classification_system="excitatory"),
        "proofreading_status_and_strategy": proofreading.assign(strategy_dendrite="none"),
        "synapses_v1dd": with_points(
            pd.DataFrame({"id": [1], "pre_pt_root_id": ROOT + 1, "post_pt_root_id": ROOT + 2})
            .assign(size=7), "ctr_pt_position", points[:1],
        ),
    }  # fmt: skip


def folder_of(path, tables, datastack=None, version=None):
    (path / "raw").mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(path / "raw" / f"{name}.csv", index=False)
    if datastack is not None:
        write_identity(path, datastack, version)
    return path


# --------------------------------------------------------------------------------------- v1dd


def test_v1dd_is_in_its_own_frame(tmp_path, caplog):
    folder = folder_of(tmp_path / "v1dd", v1dd_tables(), "v1dd_public", 1196)
    release = mx.Release(1196, datastack="v1dd_public", source=folder)
    units = release.units()
    np.testing.assert_allclose(units.position.sel(axis="y"), V1DD_DEPTHS, rtol=1e-8)
    assert units.position.attrs["frame"] == "v1dd 2.0"
    assert set(units.classification_system.values) == {"excitatory_neuron"}
    assert set(units.axon_completeness.values) == {"full"}
    assert set(units.layer.values) == {"L2/3"}
    assert units.datastack.item() == "v1dd_public"
    connectivity = release.connectivity()
    assert connectivity.synapse_size.attrs["units"] == "voxels of 9x9x45 nm"
    assert mx.degrees(connectivity).in_size.attrs["units"] == "voxels of 9x9x45 nm"
    by_layer = mx.group_connectivity(connectivity, units.layer)
    assert by_layer.synapse_size.attrs["units"] == "voxels of 9x9x45 nm"
    synapses = release.synapses()
    np.testing.assert_allclose(synapses.position.sel(axis="y"), V1DD_DEPTHS[:1], rtol=1e-8)
    assert CONSORTIUM not in mx.releases.references(units)
    assert mx.releases.references(connectivity) == []
    release.write(tmp_path / "v1dd.zarr")
    tree = mx.open_store(tmp_path / "v1dd.zarr")
    assert tree.attrs["references"] == []
    assert tree["units"].position.attrs["frame"] == "v1dd 2.0"


def test_cite_says_where_no_paper_is_known(tmp_path, capsys):
    folder = folder_of(tmp_path / "v1dd", v1dd_tables())
    mx.releases.cite(mx.Release(1196, datastack="v1dd_public", source=folder).units())
    assert "no paper is known" in capsys.readouterr().out


def test_voxels_of_minnie65_are_not_in_v1dd_in_nm():
    tables = {
        "nucleus": v1dd_tables(V1DD * [9, 9, 45])["nucleus_detection_v0"],
        "celltype": v1dd_tables()["cell_type_multifeature_v1"],
        "proofreading": v1dd_tables()["proofreading_status_and_strategy"],
    }
    spec = release_spec(1196, datastack="v1dd_public")
    with pytest.raises(mx.errors.SchemaError, match=r"resolution of 9x9x45 nm: they look like nm"):
        mx.build_units(tables, spec)


@pytest.mark.parametrize(("version", "datastack", "message"), [
    (1300, "v1dd_public", r"v1dd_public has no release 1300, expected one of 1196: that is a version of minnie65_public: pass datastack='minnie65_public'"),
    (1196, None, r"minnie65_public has no release 1196, .* pass datastack='v1dd_public'"),
    (1300, "v1dd_publik", r"there is no datastack 'v1dd_publik', expected one of .*nearest: v1dd_public"),
])  # fmt: skip
def test_versions_belong_to_datastacks(tmp_path, version, datastack, message):
    with pytest.raises(mx.errors.UnknownLabelError, match=message):
        mx.Release(version, datastack=datastack, source=tmp_path)
    assert mx.releases.supported_versions("v1dd_public") == [1196]
    assert 1196 not in mx.releases.supported_versions()


def test_tables_of_another_datastack_are_refused(tmp_path):
    folder = folder_of(tmp_path / "v1dd", v1dd_tables(), "v1dd_public", 1300)
    with pytest.raises(
        mx.errors.ReleaseMismatchError, match="tables of v1dd_public, expected minn"
    ):
        mx.Release(1300, source=folder)
    spec = release_spec(1196, datastack="v1dd_public")
    with pytest.raises(mx.errors.ReleaseMismatchError, match="the ReleaseSpec is of 'v1dd_public'"):
        mx.Release(spec, datastack="minnie65_public")
    demo = mx.sources.DemoSource(1718, n_nuclei=500)
    with pytest.raises(mx.errors.ReleaseMismatchError, match="tables of minnie65_demo"):
        mx.Release(ReleaseSpec(1718, {}, "mine"), source=demo)


def test_the_datastack_of_a_source_of_a_service():
    source = mx.sources.CaveSource(1196, datastack="v1dd_public", auth_token="none")
    address = "https://global.em.brain.allentech.org"
    assert source._log_in()[0] == address
    with (
        CaveServer(v1dd_tables(), datastack="v1dd_public", version=1196, token="secret") as server,
        pytest.raises(mx.errors.SourceError, match=f"get a token at {address}/auth"),
    ):
        mx.sources.CaveSource(
            1196, datastack="v1dd_public", server_address=server.url, auth_token="none"
        ).available_tables()
    with pytest.raises(mx.errors.SourceError, match="no public archive of 'v1dd_public'"):
        mx.sources.ArchiveSource(1196, datastack="v1dd_public")


def test_matches_of_v1dd_have_keys_of_their_own_and_roots(tmp_path):
    tables = v1dd_tables(np.repeat(V1DD, [2, 1], axis=0))
    matched = pd.DataFrame(
        {
            "pt_root_id": [ROOT + 1, ROOT + 1, ROOT + 3, 7, 0],
            "column": [1, 1, 2, 5, 5],
            "volume": [3, 3, 5, 1, 1],
            "plane": [0, 1, 4, 2, 2],
            "roi": [11, 12, 13, 14, 15],
        }
    )
    tables["functional_coregistration_manual_2"] = matched
    folder = folder_of(tmp_path / "v1dd", tables, "v1dd_public", 1196)
    release = mx.Release(1196, datastack="v1dd_public", source=folder)
    rows = release.functional()
    keys = ["nucleus_id", "session", "scan_idx", "unit_id"]
    found = {tuple(int(rows[k][i]) for k in keys) for i in range(rows.sizes["scan_unit"])}
    assert found == {
        (1, 13, 0, 11),
        (1, 13, 1, 12),
        (3, 25, 4, 13),
        (-1, 51, 2, 14),
        (-1, 51, 2, 15),
    }
    units = release.units(functional="match")
    assert units.n_scan_units.values.tolist() == [2, 0, 1]
    assert units.tuning_type.values.tolist() == ["matched", "not_matched", "matched"]
    other = matched.assign(pt_root_id=matched.pt_root_id + 10**6)
    other.to_csv(folder / "raw" / "functional_coregistration_manual_2.csv", index=False)
    with pytest.raises(mx.errors.SchemaError, match=r"of functional_coreg.* meet no nucleus"):
        mx.Release(1196, datastack="v1dd_public", source=folder).functional()
    matched.assign(volume=12).to_csv(
        folder / "raw" / "functional_coregistration_manual_2.csv", index=False
    )
    with pytest.raises(mx.errors.SchemaError, match="volume holds 12, expected 0 to 9"):
        mx.Release(1196, datastack="v1dd_public", source=folder).functional()


def test_v1dd_through_the_service(tmp_path):
    options = {"datastack": "v1dd_public", "version": 1196, "expired": (), "resolution": (9, 9, 45)}
    with CaveServer(v1dd_tables(), **options) as server:
        source = mx.sources.CaveSource(
            1196, datastack="v1dd_public", server_address=server.url, auth_token="none"
        )
        release = mx.Release(1196, datastack="v1dd_public", source=source, datadir=tmp_path)
        units = release.units()
        np.testing.assert_allclose(units.position.sel(axis="y"), V1DD_DEPTHS, rtol=1e-8)
        release.download_synapses(pre=units, positions=True, progress=False)
        single = release.synapses()
        np.testing.assert_allclose(single.position.sel(axis="y"), V1DD_DEPTHS[:1], rtol=1e-8)
        with pytest.raises(mx.errors.SourceError, match="is not downloaded as a whole"):
            release.table("synapses")
        source.close()
    assert (tmp_path / "v1dd_public" / "v1196" / "raw").is_dir()


def test_recordings_of_minnie65_are_not_those_of_v1dd(tmp_path):
    folder = folder_of(tmp_path / "v1dd", v1dd_tables())
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "microns.h5").write_bytes(b"")
    release = mx.Release(1196, datastack="v1dd_public", source=folder, datadir=tmp_path)
    with pytest.raises(mx.errors.SourceError, match="no tuning curves"):
        release.tuning_curves()
    with pytest.raises(
        mx.errors.SourceError, match="no file of recordings of v1dd_public is known"
    ):
        release.download_recordings()


# ----------------------------------------------------------------------------- one of one's own


N = 30
VOXEL = (8.0, 8.0, 30.0)
RNG = np.random.default_rng(2)
PLACES = RNG.integers(1000, 20_000, (N, 3))
RATES = RNG.uniform(1, 5, (N, 8))


def own_tables() -> dict[str, pd.DataFrame]:
    ids = np.arange(N) + 501
    roots = np.arange(N) + 90_001
    nuclei = pd.DataFrame({"id": ids, "pt_root_id": roots})
    types = pd.DataFrame({"target_id": ids, "cell_type": ["pyr", "int"] * (N // 2)})
    types["class"] = ["exc", "inh"] * (N // 2)
    proofreading = pd.DataFrame({"pt_root_id": roots[:3], "axon": "done", "dendrite": "done"})
    scans = pd.DataFrame({"session": 1, "scan_idx": 2, "unit_id": np.arange(N)})
    curves = scans.assign(rate_dir=[str([*r, *r]) for r in RATES.tolist()])
    pairs = RNG.choice(N * N, 80, replace=False)
    synapses = pd.DataFrame({"id": np.arange(80), "pre_pt_root_id": roots[pairs // N]})
    synapses["post_pt_root_id"], synapses["size"] = roots[pairs % N], RNG.integers(1, 99, 80)
    return {
        "somata": with_points(nuclei, "pt_position", PLACES),
        "my_types": types,
        "traced": proofreading,
        "matched": scans.assign(target_id=ids),
        "curves": curves.assign(rate_ori=[str(r) for r in RATES.tolist()]),
        "contacts": with_points(synapses, "ctr_pt_position", PLACES[pairs % N]),
    }


OWN = ReleaseSpec(
    version=3,
    datastack="my_volume",
    tables={"nucleus": "somata", "celltype": "my_types", "proofreading": "traced",
            "coregistration": "matched", "tuning_curves": "curves", "synapses": "contacts"},
    table_specs={
        "my_types": TableSpec(
            "my_types", class_column="class", reference="Types et al. 2024",
            class_words={"exc": "excitatory_neuron", "inh": "inhibitory_neuron"},
            layers={"L2/3": ("pyr",)},
        ),
        "traced": TableSpec("traced", axon_column="axon", dendrite_column="dendrite",
                            strategy_words={"done": "axon_fully_extended"}),
        "curves": TableSpec("curves", angle_units="degree", angle_convention="up_clockwise"),
    },
    voxel_nm=VOXEL,
    papers=("Volume et al. 2023",),
)  # fmt: skip


def test_a_volume_of_ones_own_all_the_way(tmp_path, caplog):
    """Units, connectivity, currents, a store, the store reopened: nothing of minnie65 in it."""
    tables = own_tables()
    folder = folder_of(tmp_path / "mine", tables)
    release = mx.Release(OWN, source=folder, datadir=tmp_path)
    units = release.units(functional="match", rates=True)
    assert "my_volume has no frame" in caplog.text
    np.testing.assert_allclose(units.position, PLACES * VOXEL / 1000)
    assert units.position.attrs["units"] == "µm"
    assert "in the axes of the table" in units.position.attrs["long_name"]
    assert set(units.layer.values) == {"unknown"}
    assert set(units.classification_system.values) == {"excitatory_neuron", "inhibitory_neuron"}
    assert units.axon_completeness.values.tolist() == ["full"] * 3 + ["none"] * (N - 3)
    connectivity = release.connectivity(units=units)
    assert connectivity.synapse_size.attrs["units"] == "voxels of 8x8x30 nm"
    matrix = np.zeros((N, N))
    pre, post = (tables["contacts"][f"{s}_pt_root_id"].to_numpy() - 90_001 for s in ("pre", "post"))
    np.add.at(matrix, (pre, post), tables["contacts"]["size"])
    currents = mx.input_currents(connectivity, units.rate_ori)
    expected = (matrix.T @ RATES)[matrix.any(axis=0)]
    kept = currents.transpose("post_nucleus_id", ...).dropna("post_nucleus_id")
    np.testing.assert_allclose(kept[(kept != 0).all("orientation")], expected)
    papers = ["Types et al. 2024", "Volume et al. 2023"]
    for data in (units, connectivity, currents):
        assert mx.releases.references(data) == papers

    release.write(tmp_path / "mine.zarr")
    tree = mx.open_store(tmp_path / "mine.zarr")
    assert "layers" not in tree
    assert mx.releases.references(tree) == papers
    again = tree["connectivity"].to_dataset().compute()
    stored = tree["units"].to_dataset().compute()
    assert again.synapse_size.attrs["units"] == "voxels of 8x8x30 nm"
    xr.testing.assert_allclose(mx.input_currents(again, stored.rate_ori), currents)
    np.testing.assert_allclose(stored.position, PLACES * VOXEL / 1000)
    assert stored.position.attrs["voxel_nm"] == list(VOXEL)
    # Single synapses, of the release and of the store's own connectivity.
    at = (PLACES * VOXEL / 1000)[post]
    for made in (release.synapses(units=units), mx.build_synapses(tables["contacts"], again)):
        order = np.argsort(made.synapse_id.values)
        np.testing.assert_allclose(made.position.values[order], at)
        assert made.size.attrs["units"] == "voxels of 8x8x30 nm"
    file = folder / "raw" / "contacts.csv"
    mx.ingest_synapses(file, stored, tmp_path / "in.zarr", positions=True, progress=False)
    ingested = mx.open_store(tmp_path / "in.zarr")["synapses"].to_dataset().compute()
    np.testing.assert_allclose(ingested.position.values[np.argsort(ingested.synapse_id)], at)
    # What needs depth says so, distances in space do not need it.
    lateral = {
        "presynaptic": "all",
        "by": None,
        "distance": {"lateral": [0.0, 1e3], "depth": [0.0, 9.0]},
    }
    for ask in (
        release.layers,
        lambda: mx.plot.depth_profile(units),
        lambda: mx.analysis.connection_probability(connectivity, units, **lateral),
    ):
        with pytest.raises(
            mx.errors.SchemaError, match=r"in the axes of their table.*ReleaseSpec\(frame"
        ):
            ask()


def test_a_volume_of_ones_own_with_the_frame_of_another(tmp_path):
    """Aligned to v1dd: depths and layers, in the package's functions, too."""
    from dataclasses import replace

    tables = own_tables()
    tables["somata"] = with_points(tables["somata"], "pt_position", np.repeat(V1DD, N // 2, axis=0))
    spec = replace(OWN, frame="v1dd 2.0", voxel_nm=(9, 9, 45))
    release = mx.Release(spec, source=folder_of(tmp_path / "mine", tables))
    units = release.units()
    depth = np.repeat(V1DD_DEPTHS, N // 2)
    np.testing.assert_allclose(units.position.sel(axis="y"), depth, rtol=1e-8)
    assert "L2/3" in set(release.layers().layer_name.values)
    single = mx.build_synapses(
        with_points(tables["contacts"], "ctr_pt_position", np.repeat(V1DD[:1], 80, axis=0)),
        release.connectivity(),
    )
    np.testing.assert_allclose(single.position.sel(axis="y"), V1DD_DEPTHS[0], rtol=1e-8)
    for wrong in ("v1dd", "v1dd 9", "minnie 1.4"):
        with pytest.raises(
            mx.errors.SchemaError, match=r"frame is .*, expected one of minnie65 1\.4"
        ):
            replace(OWN, frame=wrong)


def test_points_outside_of_ones_own_volume(tmp_path):
    from dataclasses import replace

    box = ((0, 0, 0), (200_000, 200_000, 800_000))
    folder = folder_of(tmp_path / "mine", own_tables())
    assert mx.Release(replace(OWN, volume_nm=box), source=folder).units().sizes["nucleus_id"] == N
    small = replace(OWN, volume_nm=((0, 0, 0), (1000, 1000, 1000)))
    with pytest.raises(mx.errors.SchemaError, match=r"somata\.pt_position has .* outside"):
        mx.Release(small, source=folder).units()
    for wrong in ("all", ((0, 0, 0),), ((1, 1, 1), (0, 2, 2))):
        with pytest.raises(mx.errors.SchemaError, match="volume_nm is"):
            replace(OWN, volume_nm=wrong)


def test_without_a_voxel_size_positions_are_refused(tmp_path):
    from dataclasses import replace

    folder = folder_of(tmp_path / "mine", own_tables())
    release = mx.Release(replace(OWN, voxel_nm=None), source=folder)
    with pytest.raises(
        mx.errors.SchemaError, match=r"resolution of the positions of somata is not"
    ):
        release.units()


def test_links_of_ones_own_volume(tmp_path):
    pytest.importorskip("nglui")
    from urllib.parse import unquote

    units = mx.Release(OWN, source=folder_of(tmp_path / "mine", own_tables())).units()
    with pytest.raises(mx.errors.SchemaError, match="registry has no sources: pass segmentation="):
        mx.neuroglancer_link(units)
    link = unquote(mx.neuroglancer_link(units, segmentation="precomputed://https://x.org/seg"))
    assert "minnie" not in link
    contacts = own_tables()["contacts"]
    connectivity = mx.build_connectivity(contacts, units)
    synapses = mx.build_synapses(contacts, connectivity)
    with_synapses = unquote(
        mx.neuroglancer_link(units, synapses=synapses, segmentation="precomputed://https://x.org/s")
    ).replace(" ", "")
    first = contacts.iloc[0]
    at = ",".join(f"{first[f'ctr_pt_position_{a}']:.1f}" for a in "xyz")
    assert f"[{at}]" in with_synapses
    assert "8e-09" in link
    x, y, z = (f"{v:.1f}" for v in PLACES[0])
    assert f"[{x},{y},{z}]" in link.replace(" ", "")


def test_command_line_of_another_datastack(tmp_path):
    stated = folder_of(tmp_path / "stated", v1dd_tables(), "v1dd_public", 1196)
    run("build", str(stated), "--version", "1196", "--out", str(tmp_path / "a.zarr"))
    plain = folder_of(tmp_path / "plain", v1dd_tables())
    options = ("--version", "1196", "--datastack", "v1dd_public")
    run("build", str(plain), *options, "--out", str(tmp_path / "b.zarr"))
    for name in ("a", "b"):
        units = mx.open_store(tmp_path / f"{name}.zarr")["units"]
        assert units.datastack.item() == "v1dd_public"
        np.testing.assert_allclose(units.position.sel(axis="y"), V1DD_DEPTHS, rtol=1e-8)
