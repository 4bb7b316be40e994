"""Our engine of xarray, the metadata on disk, and stores that were written by older versions."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sparse
import store_examples as ex
import xarray as xr
from packaging.version import Version

import microns_xr as mx
from microns_xr.store.format import CODECS

ARCHIVES = Path(__file__).parent / "data" / "stores"


def make_archive(folder: Path) -> Path:
    """Make an archive such as those below tests/data/stores; run once for each format:

    python -c "import test_store_readers as t; t.make_archive(t.ARCHIVES / 'v1')"
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "three_neurons.zarr"
    ex.write(store)
    with tarfile.open(folder / "three_neurons.tar.xz", "w:xz") as archive:
        for file in sorted(store.rglob("*")):
            if file.is_file():
                info = tarfile.TarInfo(file.relative_to(store).as_posix())
                info.size = file.stat().st_size
                archive.addfile(info, io.BytesIO(file.read_bytes()))
    shutil.rmtree(store)
    return folder / "three_neurons.tar.xz"


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as members:
        for info in members:
            target = folder / info.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(members.extractfile(info).read())  # type: ignore[union-attr]
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("readers") / "three.zarr"
    ex.write(folder)
    return str(folder)


# --- our engine ------------------------------------------------------------------------------------


def test_engine_opens_the_tree(path: str) -> None:
    tree = xr.open_datatree(path, engine="microns_xr")
    expected = mx.open_store(path)
    assert list(tree.children) == list(expected.children)
    assert tree.attrs == expected.attrs
    ex.assert_same_tree(tree)
    assert isinstance(tree["connectivity"]["synapse_size"].data, sparse.GCXS)


def compressed_of(connectivity: Any) -> str:
    return ("pre", "post")[connectivity["synapse_size"].data.compressed_axes[0]]


@pytest.mark.parametrize("compressed", ["post", "pre"])
def test_engine_opens_either_copy(path: str, compressed: Any) -> None:
    for options in (
        {"group": "connectivity", "compressed": compressed},
        {"group": f"/connectivity/by_{compressed}"},
    ):
        found = xr.open_dataset(path, engine="microns_xr", **options)  # type: ignore[arg-type]
        assert compressed_of(found) == compressed
        assert found["synapse_size"].dtype == np.int64
        ex.assert_same_connectivity(found, ex.connectivity())
        assert isinstance(found.copy(deep=True)["synapse_count"].data, sparse.GCXS)
    tree = xr.open_datatree(path, engine="microns_xr", compressed=compressed)
    assert compressed_of(tree["connectivity"]) == compressed


def test_engine_opens_a_group(path: str) -> None:
    units = xr.open_dataset(path, engine="microns_xr", group="units")
    xr.testing.assert_identical(units, ex.units())
    fewer = xr.open_dataset(
        path, engine="microns_xr", group="units", drop_variables=["position", "axis"]
    )
    xr.testing.assert_identical(fewer, ex.units().drop_vars(["position", "axis"]))
    tree = xr.open_datatree(path, engine="microns_xr", drop_variables="position")
    assert "position" not in tree["units"]
    assert "position" not in tree["synapses"]
    groups = xr.open_groups(path, engine="microns_xr")
    assert sorted(groups) == ["/", "/connectivity", "/functional", "/layers", "/synapses", "/units"]
    xr.testing.assert_identical(groups["/layers"], ex.layers())


def test_errors_of_the_engine(path: str, tmp_path: Path) -> None:
    with pytest.raises(mx.errors.UnknownLabelError, match=r"expected one of \['units', 'layers'"):
        xr.open_dataset(path, engine="microns_xr")
    with pytest.raises(mx.errors.UnknownLabelError, match="nearest: connectivity"):
        xr.open_dataset(path, engine="microns_xr", group="conectivity")
    with pytest.raises(mx.errors.StoreFormatError, match="there is no store at"):
        xr.open_datatree(tmp_path / "none.zarr", engine="microns_xr")


@pytest.mark.skipif(Version(xr.__version__) < Version("2026.7"), reason="older xarray raises")
@pytest.mark.parametrize("via", ["open_dataset", "open_datatree"])
def test_what_chunks_does_to_sparse_arrays(path: str, via: str) -> None:
    """xarray's ``chunks=`` takes any array of a backend for a dense one: do not pass it.

    On three neurons the dense matrix is harmless; of 94,000 it has 70 GB. Should xarray learn to
    keep sparse arrays, this test fails and the documentation can be changed.
    """
    if via == "open_dataset":
        chunked = xr.open_dataset(path, engine="microns_xr", group="connectivity", chunks={})
    else:
        tree = xr.open_datatree(path, engine="microns_xr", chunks={})
        chunked = tree["connectivity"].to_dataset()
    assert chunked["synapse_size"].chunks is not None
    assert type(chunked["synapse_size"].data._meta) is np.ndarray
    dense = chunked["synapse_size"].compute().data
    assert type(dense) is np.ndarray
    np.testing.assert_array_equal(dense, ex.SIZE)


# --- the metadata on disk --------------------------------------------------------------------------------


def _arrays(path: Path) -> dict[str, dict[str, Any]]:
    files = {
        str(f.parent.relative_to(path)): json.loads(f.read_text()) for f in path.rglob("zarr.json")
    }
    return {name: meta for name, meta in files.items() if meta["node_type"] == "array"}


def test_nothing_on_disk_needs_pickle_or_a_codec_of_one_library(path: str) -> None:
    arrays = _arrays(Path(path))
    assert len(arrays) > 60
    for name, meta in arrays.items():
        codecs = [codec["name"] for codec in meta["codecs"]]
        assert set(codecs) <= set(CODECS), name
        assert codecs[1:] == ["blosc", "crc32c"], name
        blosc = meta["codecs"][1]["configuration"]
        assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 1, "shuffle"), name
        text = meta["data_type"] == "string"
        assert codecs[0] == ("vlen-utf8" if text else "bytes"), name
        assert text or meta["data_type"] in ("bool", "int32", "int64", "float32", "float64"), name
        assert blosc["typesize"] == (1 if text else np.dtype(meta["data_type"]).itemsize), name
        assert not meta["storage_transformers"]
    everything = "".join(f.read_text() for f in Path(path).rglob("zarr.json"))
    assert "pickle" not in everything
    assert "numcodecs" not in everything
    assert "fixed_length" not in everything


def test_every_array_names_its_dimensions(path: str) -> None:
    for name, meta in _arrays(Path(path)).items():
        dims = meta.get("dimension_names", [])
        assert len(dims) == len(meta["shape"]), name
        assert all(dims), name
    own = _arrays(Path(path, "connectivity", "by_pre"))
    assert own["indptr"]["dimension_names"] == ["pre_pointer"]
    assert own["pre_index"]["dimension_names"] == ["connection"]


def test_every_group_states_its_release(path: str) -> None:
    groups = [json.loads(f.read_text()) for f in Path(path).rglob("zarr.json")]
    groups = [meta["attributes"] for meta in groups if meta["node_type"] == "group"]
    assert (
        len(groups) == 9
    )  # the root, four dense ones, connectivity and its copies, synapses' copy
    for attrs in groups:
        assert attrs["datastack"] == "minnie65_public"
        assert attrs["materialization_version"] == 661


# --- old stores -----------------------------------------------------------------------------------------


def test_archived_store_of_format_1_stays_readable(tmp_path: Path) -> None:
    archive = ARCHIVES / "v1" / "three_neurons.tar.xz"
    assert archive.stat().st_size < 10_000
    path = unpack(archive, tmp_path / "old.zarr")
    for compressed in ("post", "pre"):
        tree = mx.open_store(path, compressed=compressed)  # type: ignore[arg-type]
        assert tree.attrs["microns_xr_format"] == 1
        ex.assert_same_tree(tree)


@pytest.mark.parametrize("lazy", [False, True])
def test_old_stores_of_an_unknown_scope_have_all_units_on_their_axes(tmp_path, lazy) -> None:
    """Of which the file says nothing; and they count one synapse for each of its rows."""
    neurons = {"nucleus_id": [1, 2, 3, 4, 5], "kind": list("aabbb"), "x": 0.0, "y": 9.0, "z": 0.0}
    neurons = pd.DataFrame(neurons).assign(pref_ori=[0.0, 45.0, 90.0, 135.0, 0.0])
    angles = {"angle_units": "degree", "angle_convention": "up_clockwise"}
    units = mx.as_units(neurons, **angles)
    edges = pd.DataFrame({"pre": [1, 2], "post": [2, 3], "synapse_size": [10, 20]})
    weights = ["synapse_size", "synapse_count"]
    asked = {"pre_ids": units, "post_ids": units, "scope": "unknown"}
    old = mx.as_connectivity(edges.assign(synapse_count=1), weight=weights, **asked)
    old.synapse_count.attrs["counts"] = "rows of a table with one row per pair"
    mx.write_store(tmp_path / "old.zarr", units=units.reset_coords("kind"), connectivity=old)

    tree = mx.open_store(tmp_path / "old.zarr", lazy=lazy)
    connectivity = tree["connectivity"].to_dataset()
    assert list(connectivity.data_vars) == ["synapse_size"]
    degrees = mx.degrees(connectivity).compute()
    assert degrees.in_size.to_series().to_dict() == {2: 10, 3: 20}
    assert degrees.out_degree.to_series().to_dict() == {1: 1, 2: 1}
    groups = mx.group_connectivity(tree, "kind", units=units).compute()
    assert groups.n_pre.to_series().to_dict() == {"a": 2}
    assert groups.n_post.to_series().to_dict() == {"a": 1, "b": 1}
    assert groups.synapse_size.values.tolist() == [[10, 20]]
    assert sorted(mx.to_networkx(connectivity.compute()).nodes) == [1, 2, 3]
    orientation = ("orientation", [0.0, 90.0], {**units.pref_ori.attrs})
    rates = xr.DataArray(
        np.ones((5, 2)), {"nucleus_id": neurons.nucleus_id, "orientation": orientation}
    )
    currents = mx.input_currents(connectivity, rates).compute()
    assert currents.isnull().all("orientation").values.tolist() == [True, False, False, True, True]
    aligned = mx.analysis.align_to_preferred(currents, units, interval=None)
    assert aligned.n_neurons.item() == 2
    everybody = {"pre": units, "post": units, "presynaptic": "all"}
    with pytest.warns(UserWarning, match=r"3 of 5 neurons of pre \(60.0%\) count as unconnected"):
        found = mx.analysis.connection_probability(connectivity, units, None, **everybody)
    assert (found.n_connected.item(), found.n_pairs.item()) == (2, 20)
    with pytest.raises(mx.errors.SchemaError, match="may never have been requested"):
        mx.analysis.connection_probability(connectivity, units, None, presynaptic="all")


def test_the_archive_can_be_made_again(tmp_path: Path) -> None:
    """The same names of arrays and groups, and the additions that old readers do without."""
    with (
        tarfile.open(make_archive(tmp_path)) as made,
        tarfile.open(ARCHIVES / "v1" / "three_neurons.tar.xz") as kept,
    ):
        now, then = set(made.getnames()), set(kept.getnames())
    assert then <= now
    added = (
        "synapses/by_pre",
        "synapses/post_indptr",
        "synapses/pre_nucleus_id",
        "synapses/post_nucleus_id",
    )  # by later writers of the same format
    assert all(name.startswith(added) for name in now - then)
