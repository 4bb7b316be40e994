"""Writing and reading a store: what comes back, and what is refused before a byte is written."""

from __future__ import annotations

import errno
import filecmp
import itertools
import json
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import store_examples as ex
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

import microns_xr as mx
from microns_xr.provenance import RELEASE_COORDS
from microns_xr.schema import validate
from microns_xr.store import stream
from microns_xr.store.format import pattern_problem


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "three.zarr")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "three.zarr"
    ex.write(folder)
    return folder


@pytest.fixture
def store(path: str, written: Path) -> str:
    """A store of all parts that a test may damage; without checksums, to see the other checks."""
    shutil.copytree(written, path)
    ex.as_early_store(path)
    return path


def beside(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", ["post", "pre"])
@pytest.mark.parametrize("compressed", ["post", "pre"])
def test_round_trip(path: str, in_memory: str, compressed: Any) -> None:
    ex.write(path, in_memory)
    tree = mx.open_store(path, compressed=compressed)
    assert set(tree.children) == {*ex.DENSE, "connectivity"}
    ex.assert_same_tree(tree)
    pattern = tree["connectivity"]["synapse_size"].data
    assert pattern.compressed_axes == {"post": (1,), "pre": (0,)}[compressed]
    assert pattern.indices.dtype == pattern.indptr.dtype == np.int32
    # by hand: post 11 <- 12; post 13 <- 11, 12; post 15 <- 12
    by_hand = {"post": ([1, 0, 1, 1], [0, 1, 3, 4]), "pre": ([1, 0, 1, 2], [0, 1, 4, 4])}
    assert (pattern.indices.tolist(), pattern.indptr.tolist()) == by_hand[compressed]
    by_hand_sizes = {"post": [30, 700, 0, 5], "pre": [700, 30, 0, 5]}
    assert pattern.data.tolist() == by_hand_sizes[compressed]


def test_every_node_is_a_valid_dataset_with_its_release(store: str) -> None:
    tree = mx.open_store(store)
    assert not tree.to_dataset().variables
    for name in tree.children:
        node = tree[name]
        assert node["datastack"].item() == "minnie65_public"
        assert node["materialization_version"].item() == 661
        assert node["datastack"].dtype == object
        if name != "synapses":
            validate(node.to_dataset(), name)  # type: ignore[arg-type]
            validate(node.to_dataset(inherit=False), name)  # type: ignore[arg-type]
    assert tree["connectivity"]["scope"].dtype == object
    assert tree["connectivity"]["scope"].item() == "requested"


def test_writing_again_what_was_opened_changes_nothing(path: str, tmp_path: Path) -> None:
    ex.write(path)
    tree = mx.open_store(path)
    again = str(tmp_path / "again.zarr")
    mx.write_store(again, **{str(k): node.to_dataset() for k, node in tree.children.items()})
    ex.assert_same_tree(mx.open_store(again))
    # in memory already, so the store itself may be written too
    parts: Any = {str(k): node.to_dataset() for k, node in tree.children.items()}
    mx.write_store(path, **parts, overwrite=True)
    assert beside(path) == ["again.zarr", "three.zarr"]


def test_inputs_are_not_modified(path: str) -> None:
    units, connectivity = ex.units(), ex.connectivity()
    mx.write_store(path, units=units, connectivity=connectivity)
    xr.testing.assert_identical(units, ex.units())
    ex.assert_same_connectivity(connectivity, ex.connectivity())


def test_root_attributes_state_the_provenance(path: str) -> None:
    timestamp = "2023-06-22T08:10:00+00:00"
    mx.write_store(path, units=ex.units().assign_attrs(timestamp=timestamp))
    attrs = json.loads(Path(path, "zarr.json").read_text(encoding="utf-8"))["attributes"]
    assert attrs["microns_xr_format"] == 1
    assert (attrs["datastack"], attrs["materialization_version"]) == ("minnie65_public", 661)
    assert attrs["timestamp"] == timestamp
    assert attrs["created_by"].startswith("microns_xr ")
    assert "group='units'" in attrs["how_to_open"]
    assert attrs["source_tables"] == ["functional_properties_v3_bcm: 6 rows, sha256 ab"]
    assert attrs["references"] == [
        "MICrONS Consortium 2025, doi:10.1038/s41586-025-08790-w",
        "Wang et al. 2025, doi:10.1038/s41586-025-08829-y",
    ]
    assert attrs.pop("microns_xr_checksums")[0].endswith(" /")
    assert len(attrs.pop("microns_xr_id")) == 32
    assert mx.open_store(path).attrs == attrs
    tables = [{"name": "t", "rows": np.int64(2)}]
    layers = ex.layers().assign_attrs(source_tables=["nuclei", *tables])
    units = ex.units().assign_attrs(source_tables=tables)
    mx.write_store(path, units=units, layers=layers, overwrite=True)
    assert mx.open_store(path).attrs["source_tables"] == ["t: 2 rows", "nuclei"]
    assert "timestamp" not in mx.open_store(path).attrs


def test_parts_that_are_not_passed_are_absent(path: str) -> None:
    mx.write_store(path, units=ex.units())
    assert sorted(name for name in os.listdir(path) if name != "zarr.json") == ["units"]
    assert list(mx.open_store(path).children) == ["units"]


@pytest.mark.parametrize("consolidated", [False, True])
def test_consolidated_metadata_on_request(path: str, consolidated: bool) -> None:
    ex.write(path, consolidated=consolidated)
    root = json.loads(Path(path, "zarr.json").read_text(encoding="utf-8"))
    assert bool(root.get("consolidated_metadata")) is consolidated
    ex.assert_same_tree(mx.open_store(path))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), in_memory=st.sampled_from(["post", "pre"]))
def test_any_matrix_comes_back_from_both_copies(path: str, data: Any, in_memory: str) -> None:
    n_pre, n_post = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    cells = st.lists(st.integers(0, 3), min_size=n_pre * n_post, max_size=n_pre * n_post)
    count = np.array(data.draw(cells), dtype=np.int64).reshape(n_pre, n_post)
    size = count * data.draw(st.sampled_from([0, 1, 2**40]))
    expected = ex.sparse_dataset(
        size, count, np.arange(n_pre) * 2, np.arange(n_post) + 7, compressed=in_memory
    )
    mx.write_store(path, units=ex.units(), connectivity=expected, overwrite=True)
    for compressed in ("post", "pre"):
        found = mx.open_store(path, compressed=compressed)["connectivity"].to_dataset()  # type: ignore[arg-type]
        ex.assert_same_connectivity(found, expected)
    width = "int64" if count.any() and size.max() > 2**31 else "int32"
    assert str(zarr.open_array(f"{path}/connectivity/by_pre/data", mode="r").dtype) == width


def test_many_chunks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microns_xr.store.format.CHUNK", 8)
    rng = np.random.default_rng(1)
    count = rng.integers(0, 3, (9, 13)) * (rng.random((9, 13)) < 0.4)
    count[4] = count[:, 5] = 0
    expected = ex.sparse_dataset(count * 100, count, np.arange(9), np.arange(13))
    mx.write_store(path, units=ex.units(), connectivity=expected)
    nnz = int((count > 0).sum())
    for compressed in ("post", "pre"):
        group = zarr.open_group(f"{path}/connectivity/by_{compressed}", mode="r")
        for name in ("data", "indices", "synapse_count", f"{compressed}_index"):
            assert group[name].chunks == (8,)
            assert group[name].nchunks_initialized == -(-nnz // 8) > 3
        pre, post = np.nonzero(count)
        expanded = np.sort(post) if compressed == "post" else np.sort(pre)
        np.testing.assert_array_equal(group[f"{compressed}_index"][...], expanded)
        found = mx.open_store(path, compressed=compressed)["connectivity"].to_dataset()  # type: ignore[arg-type]
        ex.assert_same_connectivity(found, expected)


def test_metadata_of_a_group_are_not_written_once_per_array(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    for name in ("set", "set_if_not_exists"):
        call = getattr(LocalStore, name)
        monkeypatch.setattr(
            LocalStore,
            name,
            lambda self, key, value, c=call: keys.append(key) or c(self, key, value),
        )
    ex.write(path)
    written = Counter(keys)
    assert len(written) > 150
    # A group when it is made, and its attributes; those of the root come last.
    assert max(written.values()) == 2


def test_chunks_of_small_arrays_are_their_own_size(store: str) -> None:
    root = zarr.open_group(store, mode="r")
    assert root["units/position"].chunks == (3, 3)
    assert root["connectivity/by_post/data"].chunks == (4,)


def test_text_of_any_kind_in_memory_is_object_after_reopening(path: str) -> None:
    units = ex.units()
    units["brain_area"] = ("nucleus_id", np.array(["V1", "AL", "ΩŽ"]))  # fixed-width UTF-32
    units["layer"] = ("nucleus_id", pd.array(["L1", "L4", "WM"], dtype="string"))
    mx.write_store(path, units=units)
    found = mx.open_store(path)["units"]
    assert found["brain_area"].values.tolist() == ["V1", "AL", "ΩŽ"]
    assert found["layer"].values.tolist() == ["L1", "L4", "WM"]
    assert found["brain_area"].dtype == found["layer"].dtype == object


def test_attributes_become_plain_json_values(path: str) -> None:
    units = ex.units().assign_attrs(pair=(1, 2), angles=np.array([0.5, 1.5]), yes=np.bool_(True))
    mx.write_store(path, units=units)
    attrs = mx.open_store(path)["units"].attrs
    assert (attrs["pair"], attrs["angles"], attrs["yes"]) == ([1, 2], [0.5, 1.5], True)
    assert attrs["steps"] == {"rows": [6, 3], "why": None}


def test_a_plainly_opened_dataset_can_be_written_again(path: str, tmp_path: Path) -> None:
    """Attributes that the format adds to a group are neither refused nor added twice."""
    mx.write_store(path, units=ex.units())
    plain = xr.open_zarr(path, group="units", consolidated=False).load()
    assert plain.attrs["datastack"] == "minnie65_public"
    again = str(tmp_path / "again.zarr")
    mx.write_store(again, units=plain)
    xr.testing.assert_identical(mx.open_store(again)["units"].to_dataset(), ex.units())


# --- what is refused, before anything is written ---------------------------------------------------


def _unit(values: Any, **attrs: Any) -> dict[str, Any]:
    return {"units": ex.units().assign(tag=("nucleus_id", np.array(values), attrs))}


def _units(**attrs: Any) -> dict[str, Any]:
    return {"units": ex.units().assign_attrs(attrs)}


def _named(name: str) -> dict[str, Any]:
    return {"units": ex.units().assign({name: ("nucleus_id", np.zeros(3))})}


def _pairs(change: Any) -> dict[str, Any]:
    return {"units": ex.units(), "connectivity": change(ex.connectivity())}


def _with_indices(connectivity: xr.Dataset, *indices: int) -> xr.Dataset:
    for name in ("synapse_size", "synapse_count"):
        connectivity[name].data.indices = np.array(indices, dtype=np.int32)
    return connectivity


def _other_pattern(connectivity: xr.Dataset) -> xr.Dataset:
    other = ex.sparse_dataset(np.eye(3, dtype=np.int64), np.eye(3, dtype=np.int64))
    return connectivity.assign(synapse_count=other["synapse_count"])


def _synapses(change: Any) -> dict[str, Any]:
    return _pairs(lambda c: c) | {"synapses": change(ex.synapses())}


def _functional_by_session() -> dict[str, Any]:
    functional = ex.functional().set_index(scan_unit=["session", "unit_id"])
    return {"units": ex.units(), "functional": functional}


TIMES = np.array(["2020-01-01"] * 3, dtype="M8[ns]")
BAD: dict[str, tuple[Any, ...]] = {
    "not a dataset": (lambda: {"units": 3}, "units Dataset", "int"),
    "no units variables": (lambda: {"units": ex.layers()}, "nucleus_id is absent"),
    "unsorted units": (lambda: {"units": ex.units().isel(nucleus_id=[1, 0, 2])}, "not sorted"),
    "text with gaps": (lambda: _unit(ex.text("a", np.nan, "b")), "tag of units", "mixed"),
    "objects": (lambda: _unit(ex.text(1, {}, [])), "tag of units", "text"),
    "complex numbers": (lambda: _unit([1j, 2, 3]), "tag of units", "complex128"),
    "times": (lambda: _unit(TIMES), "tag of units", "datetime64"),
    "attribute of a variable": (
        lambda: _unit([1, 2, 3], made=object()),
        "'made' of tag of units",
        "object",
    ),
    "attribute of a dataset": (lambda: _units(share=float("nan")), "'share' of units", "nan"),
    "key of an attribute": (lambda: _units(by={1: 2}), "key 1", "'by' of units"),
    "reserved attribute": (lambda: _units(datastack="a"), "'datastack' of units", "reserved"),
    "reserved attribute of connectivity": (
        lambda: _pairs(lambda c: c.assign_attrs(shape=[1, 1])),
        "'shape' of connectivity",
        "reserved",
    ),
    "name with a blank": (lambda: _named("cell size"), "'cell size'", "whitespace"),
    "name with a slash": (lambda: _named("a/b"), "'a/b'"),
    "name of the metadata": (lambda: _named("zarr.json"), "'zarr.json'"),
    "multi-index": (_functional_by_session, "scan_unit"),
    "repeated axis": (
        lambda: _pairs(lambda c: c.assign_coords(pre_nucleus_id=[11, 11, 15])),
        "pre_nucleus_id repeats",
    ),
    "unsorted partners": (
        lambda: _pairs(lambda c: _with_indices(c, 1, 1, 0, 1)),
        "does not ascend at connection 2 (1, 0)",
    ),
    "repeated partners": (
        lambda: _pairs(lambda c: _with_indices(c, 1, 1, 1, 1)),
        "does not ascend at connection 2 (1, 1)",
    ),
    "two patterns": (
        lambda: _pairs(_other_pattern),
        "synapse_count and synapse_size store different pairs",
    ),
    "a third matrix": (
        lambda: _pairs(lambda c: c.assign(weight=(c.synapse_size.dims, np.ones((3, 3))))),
        "'weight'",
        "both axes",
    ),
    "taken name": (
        lambda: _pairs(lambda c: c.assign(post_index=("post_nucleus_id", [0, 1, 2]))),
        "'post_index'",
        "name of an array",
    ),
    "source tables": (lambda: _units(source_tables=[{"rows": 1}]), "source_tables", "sha256"),
    "synapses of two parts that overlap": (
        lambda: _synapses(lambda s: s.isel(synapse=[0, 1, 2, 1])),
        "repeats 1 ids, such as 8",
    ),
    "synapses by position": (
        lambda: _synapses(lambda s: s.assign(post_index=("synapse", [0, 1, 2]))),
        "['post_index']",
        "mx.build_synapses",
    ),
    "synapses of other neurons": (
        lambda: _synapses(lambda s: s.assign_coords(pre_nucleus_id=("synapse", [11, 12, 14]))),
        "pre_nucleus_id of synapses holds 14",
    ),
    "synapses with a taken name": (
        lambda: _synapses(lambda s: s.assign(post_indptr=("synapse", [0, 1, 2]))),
        "'post_indptr' of synapses",
    ),
    "synapses along the second dimension": (
        lambda: _synapses(lambda s: s.assign(position=s.position.transpose())),
        "'synapse' first",
    ),
    "synapses alone": (
        lambda: {"units": ex.units(), "synapses": ex.synapses()},
        "write synapses and connectivity together",
    ),
    "synapses of another dim": (
        lambda: {"units": ex.units(), "synapses": ex.synapses().rename(synapse="row")},
        "'row'",
        "'synapse'",
    ),
    "synapses of another type": (
        lambda: {"units": ex.units(), "synapses": [1]},
        "Dataset",
        "list",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("there", [False, True])
def test_bad_input_is_refused_and_nothing_is_written(
    path: str, written: Path, case: str, there: bool
) -> None:
    make, *words = BAD[case]
    if there:
        shutil.copytree(written, path)
    with pytest.raises(mx.errors.SchemaError) as caught:
        mx.write_store(path, **make())
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert beside(path) == (["three.zarr"] if there else [])
    if there:
        compared = filecmp.dircmp(written, path)
        assert not compared.left_only + compared.right_only + compared.diff_files


def test_a_part_without_a_release_is_written(path: str) -> None:
    other = ex.layers().drop_vars(["datastack", "materialization_version"])
    mx.write_store(path, units=ex.units(), layers=other)
    xr.testing.assert_identical(mx.open_store(path)["layers"].to_dataset(), other)
    own = ex.units().drop_vars(["datastack", "materialization_version"])
    mx.write_store(path, units=own, overwrite=True)
    tree = mx.open_store(path)
    xr.testing.assert_identical(tree["units"].to_dataset(), own)
    assert not {"datastack", "materialization_version"} & set(tree.attrs)
    other = mx.releases.stamp_release(ex.layers(), "minnie65_public", 943)
    with pytest.raises(mx.errors.ReleaseMismatchError, match=r"v661 .*v943"):
        mx.write_store(path, units=ex.units(), layers=other)


def test_a_failed_write_keeps_its_error_and_the_old_store(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a thread still writes after the error; the next write is not hindered."""
    mx.write_store(path, units=ex.units())
    threads = []

    def straggle(folder: Path) -> None:
        for i in range(60):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / str(i)).touch()
            time.sleep(0.002)

    def fail(array: Any, *args: Any) -> None:
        if not threads:
            threads.append(threading.Thread(target=straggle, args=(array.store.root / "late",)))
            threads[0].start()
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "_write_slice", fail)
        with pytest.raises(MemoryError, match="no more"):
            ex.write(path)
    assert list(mx.open_store(path).children) == ["units"]
    threads[0].join()
    ex.write(path)
    assert beside(path) == ["three.zarr"]
    ex.assert_same_tree(mx.open_store(path))


def test_no_thread_is_not_called_damage(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mx.write_store(path, units=ex.units())

    def none(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    for where, call in (
        ("concurrent.futures.ThreadPoolExecutor.submit", lambda: ex.write(path)),
        ("asyncio.to_thread", lambda: mx.open_store(path)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, none)
            with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
                call()
    assert list(mx.open_store(path).children) == ["units"]
    assert beside(path) == ["three.zarr"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk(path: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    mx.write_store(path, units=ex.units())

    def refuse(array: Any, *args: Any) -> None:
        raise OSError(number, os.strerror(number), str(array.store.root / "x"))

    says = {
        errno.ENOSPC: r"No space left.*: up to \d\.\d MB are needed, [\d,.]+ MB are free",
        errno.EROFS: r"Read-only.*: choose a folder that you may write to",
    }
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_write_slice", refuse)
        with pytest.raises(mx.errors.SourceError, match=rf"three\.zarr cannot .*{says[number]}"):
            ex.write(path)
    assert beside(path) == ["three.zarr"]
    assert list(mx.open_store(path).children) == ["units"]


@pytest.mark.parametrize("chunks", [{}, None])
def test_writing_onto_the_store_that_is_lazily_read_is_refused(path: str, chunks: Any) -> None:
    mx.write_store(path, units=ex.units())
    lazy = xr.open_zarr(path, group="units", chunks=chunks, consolidated=False)
    lazy.attrs = {}
    unnamed = lazy.copy().drop_encoding()  # forgets where it was read from
    for dataset in (lazy, unnamed, lazy.assign(pt_root_id=lazy["pt_root_id"] + 0)):
        with pytest.raises(
            mx.errors.StoreFormatError, match=r"lazily read from .*three.zarr.*\.load\(\)"
        ):
            mx.write_store(path, units=dataset)
    elsewhere = path.replace("three", "copy")
    mx.write_store(elsewhere, units=lazy)
    assert mx.open_store(elsewhere)["units"]["cell_type"].values.tolist()[0] == "23P"
    mx.write_store(path, units=lazy.load(), overwrite=True)
    assert beside(path) == ["copy.zarr", "three.zarr"]


def test_engine_datasets_are_in_memory_and_may_be_written_back(store: str) -> None:
    tree = xr.open_datatree(store, engine="microns_xr")
    parts = {name: tree[name].to_dataset() for name in ("units", "layers")}
    mx.write_store(store, **parts, overwrite=True)
    assert list(mx.open_store(store).children) == ["units", "layers"]


def test_a_store_is_replaced_only_on_request(path: str) -> None:
    mx.write_store(path, units=ex.units())
    with pytest.raises(mx.errors.StoreFormatError, match="overwrite=True"):
        mx.write_store(path, units=ex.units(), layers=ex.layers())
    assert list(mx.open_store(path).children) == ["units"]
    mx.write_store(path, units=ex.units(), layers=ex.layers(), overwrite=True)
    assert list(mx.open_store(path).children) == ["units", "layers"]


# --- opening -------------------------------------------------------------------------------------


def _attrs(path: str, group: str, **changes: Any) -> None:
    file = Path(path, group, "zarr.json")
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["attributes"].update({k.replace("_type", "-type"): v for k, v in changes.items()})
    metadata["attributes"] = {k: v for k, v in metadata["attributes"].items() if v is not ...}
    file.write_text(json.dumps(metadata), encoding="utf-8")


def _put(path: str, array: str, values: Any) -> None:
    zarr.open_array(f"{path}/connectivity/by_post/{array}", mode="r+")[...] = np.asarray(values)


def _replace(path: str, array: str, values: np.ndarray, dims: Any) -> None:
    root = zarr.open_group(path, mode="r+")
    root.create_array(array, data=values, dimension_names=dims, overwrite=True)


def _remove(path: str, *groups: str) -> None:
    for group in groups:
        shutil.rmtree(Path(path, group))


def _metadata(path: str, array: str, **changes: Any) -> None:
    file = Path(path, array, "zarr.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")


def _chunks_of_nothing(path: str) -> None:
    grid = {"name": "regular", "configuration": {"chunk_shape": [0]}}
    _metadata(path, "units/layer", chunk_grid=grid)


def _unknown_codec(path: str) -> None:
    file = Path(path, "connectivity/by_post/data/zarr.json")
    file.write_text(file.read_text().replace('"blosc"', '"blosc9"'), encoding="utf-8")


POST = "connectivity/by_post"
CONNECTION = ("connection",)
DAMAGE: dict[str, tuple[Any, ...]] = {
    "root without format": (
        lambda p: _attrs(p, "", microns_xr_format=...),
        "not a finished microns_xr store",
        "None",
    ),
    "format of another type": (lambda p: _attrs(p, "", microns_xr_format="1"), "'1'"),
    "newer format": (
        lambda p: _attrs(p, "", microns_xr_format=2),
        "format 2",
        "1 to 1",
        "update the package",
    ),
    "no units": (lambda p: _remove(p, "units"), "'units'"),
    "no array": (lambda p: _remove(p, "units/layer"), "'layer' is missing"),
    "metadata cut short": (
        lambda p: Path(p, "units/layer/zarr.json").write_text("{"),
        "units/layer/zarr.json cannot be read",
    ),
    "metadata nested deeply": (
        lambda p: Path(p, "units/layer/zarr.json").write_text("[" * 10_000 + "]" * 10_000),
        "units/layer/zarr.json cannot be read",
    ),
    "chunks of nothing": (_chunks_of_nothing, "units/layer cannot be decoded"),
    "attributes of another shape": (
        lambda p: _metadata(p, "units/layer", attributes=["a"]),
        "the metadata of 'layer' cannot be read",
    ),
    "unknown codec": (_unknown_codec, "the metadata of 'data' cannot be read"),
    "no list of arrays": (
        lambda p: _attrs(p, "units", microns_xr_variables=None),
        "microns_xr_variables",
        "None",
    ),
    "no indptr": (lambda p: _remove(p, f"{POST}/indptr"), "by_post", "'indptr' is missing"),
    "indptr not listed": (
        lambda p: _attrs(p, POST, microns_xr_variables=["data", "indices"]),
        "['indptr', 'post_index'",
        "missing",
    ),
    "no copy": (lambda p: _remove(p, POST), f"'{POST}'", "compressed='pre'"),
    "no copies": (lambda p: _remove(p, POST, "connectivity/by_pre"), f"'{POST}' is missing"),
    "shape": (lambda p: _attrs(p, POST, shape=[2, 3]), "'shape' is [2, 3]", "[3, 3]"),
    "encoding": (
        lambda p: _attrs(p, POST, encoding_type="csr_matrix"),
        "'csr_matrix'",
        "'csc_matrix'",
    ),
    "dtype": (
        lambda p: _replace(p, f"{POST}/data", np.ones(4, dtype=np.float32), CONNECTION),
        "data is float32",
        "int32 or int64 or float64",
    ),
    "dimension": (
        lambda p: _replace(p, f"{POST}/data", np.ones(4, dtype=np.int32), ("pair",)),
        "data is int32 over ('pair',)",
        "('connection',)",
    ),
    "length": (
        lambda p: _replace(p, f"{POST}/data", np.ones(5, dtype=np.int32), CONNECTION),
        "data has 5 elements, expected 4",
    ),
    "length of indptr": (
        lambda p: _replace(p, f"{POST}/indptr", np.arange(5), ("post_pointer",)),
        "indptr has 5 elements, expected 4",
    ),
    "indptr falls": (lambda p: _put(p, "indptr", [0, 3, 1, 4]), "indptr does not ascend"),
    "indptr starts late": (lambda p: _put(p, "indptr", [1, 2, 3, 4]), "indptr does not ascend"),
    "indptr ends early": (
        lambda p: _put(p, "indptr", [0, 1, 3, 3]),
        "indptr ends at 3",
        "the 4 rows",
    ),
    "index too large": (
        lambda p: _put(p, "indices", [1, 0, 3, 1]),
        "indices runs from 0 to 3, expected 0 to 2 (3 presynaptic neurons)",
    ),
    "index negative": (lambda p: _put(p, "indices", [1, -1, 2, 1]), "from -1 to 2"),
    "indices unsorted": (lambda p: _put(p, "indices", [1, 1, 0, 1]), "connection 2 (1, 0)"),
    "labels unsorted": (
        lambda p: _put(p, "pre_nucleus_id", [12, 11, 13]),
        "pre_nucleus_id is not sorted",
    ),
    "chunk cut short": (
        lambda p: Path(p, POST, "data/c/0").write_bytes(b"\x02\x01\x21\x04"),
        f"{POST}/data cannot be decoded",
    ),
    "text cut short": (
        lambda p: Path(p, "units/layer/c/0").write_bytes(b"\x02\x01"),
        "units/layer cannot be decoded",
    ),
    "chunk lost": (
        lambda p: Path(p, POST, "data/c/0").unlink(),
        f"has no chunk '{POST}/data/c/0'",
    ),
    "lengths differ": (
        lambda p: _replace(p, "units/layer", np.ones(2), ("nucleus_id",)),
        "units: layer has 2 elements over nucleus_id, expected 3",
    ),
    "no dimension names": (
        lambda p: _replace(p, "units/layer", np.ones(3), None),
        "layer has the dimension names ()",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(store: str, case: str) -> None:
    damage, *words = DAMAGE[case]
    damage(store)
    with pytest.raises(mx.errors.StoreFormatError) as caught:
        mx.open_store(store)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def _flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def _read(path: Path, compressed: Any) -> dict[str, Any]:
    tree = mx.open_store(path, compressed=compressed)
    pairs = tree["connectivity"]["synapse_size"]
    rest = tree["connectivity"].to_dataset().drop_vars(pairs.name)
    return {
        "sizes": pairs.data.todense().tolist(),
        "attrs": tree.attrs,
        "units": tree["units"].to_dataset(),
        "rest": rest,
    }


@pytest.mark.parametrize("shards", [False, True])
def test_a_flipped_bit_is_an_error_or_changes_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: bool
) -> None:
    monkeypatch.setattr("microns_xr.store.format.INNER_CHUNK", 2)
    # One array of each kind, since each change is looked for in all.
    units = ex.units()[["pref_ori"]]
    kept = ["nucleus_id", "pt_root_id", "cell_type", "axon_proofread", *RELEASE_COORDS]
    units = units.drop_vars([name for name in units.coords if name not in kept])
    connectivity = ex.connectivity().drop_vars("synapse_count")
    path = tmp_path / "a.zarr"
    mx.write_store(path, units=units, connectivity=connectivity, shards=shards)
    right = {axis: _read(path, axis) for axis in ("post", "pre")}
    rng = np.random.default_rng(7)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    root, n_errors = path / "zarr.json", 0
    for i, file in enumerate([*files, *files, *[root] * 20]):
        compressed = "pre" if "by_pre" in str(file) or (file == root and i % 2) else "post"
        bit = int(rng.integers(8 * file.stat().st_size))
        _flip(file, bit)
        try:
            found = _read(path, compressed)
        except mx.errors.MicronsXrError:
            n_errors += 1
        else:
            expected = right[compressed]
            assert found["sizes"] == expected["sizes"], (file, bit)
            assert found["attrs"] | expected["attrs"] == found["attrs"], (file, bit)
            for part in ("units", "rest"):
                xr.testing.assert_identical(found[part], expected[part])
        _flip(file, bit)
    assert n_errors > len(files)
    _read(path, "post")


@pytest.mark.parametrize("key", ["attributes", "node_type", "consolidated_metadata"])
@pytest.mark.parametrize("change", ["renamed", 7, [1], "text"])
def test_a_changed_key_of_the_root(tmp_path: Path, written: Path, key: str, change: Any) -> None:
    path = tmp_path / "a.zarr"
    shutil.copytree(written, path)
    root = json.loads((path / "zarr.json").read_text())
    value = root.pop(key, {"kind": "inline", "must_understand": False, "metadata": {}})
    root["x" + key if change == "renamed" else key] = value if change == "renamed" else change
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(mx.errors.StoreFormatError):
        mx.open_store(path)


def test_metadata_that_somebody_changed(path: str, written: Path) -> None:
    shutil.copytree(written, path)
    array = zarr.open_array(path, path="units/pref_ori", mode="r+")
    array.update_attributes({"units": "radian"})
    with pytest.raises(
        mx.errors.StoreFormatError, match=r"metadata of 'units/pref_ori' .*changed by another"
    ):
        mx.open_store(path)
    assert mx.open_store(written).attrs.keys().isdisjoint({"microns_xr_id", "microns_xr_checksums"})


def test_releases_that_a_store_states_twice_are_compared(store: str) -> None:
    _attrs(store, "units", materialization_version=943)
    with pytest.raises(
        mx.errors.StoreFormatError, match=r"materialization_version of units is 661, .*says 943"
    ):
        mx.open_store(store)


@pytest.mark.parametrize("what", ["nothing", "file", "folder", "array", "zarr v2"])
def test_what_is_not_a_store(path: str, what: str) -> None:
    if what == "file":
        Path(path).write_text("text", encoding="utf-8")
    elif what == "folder":
        Path(path).mkdir()
    elif what == "array":
        zarr.create_array(path, data=np.zeros(3))
    elif what == "zarr v2":
        zarr.open_group(path, mode="w", zarr_format=2)
    with pytest.raises(mx.errors.StoreFormatError, match=r"there is no store at .*three\.zarr"):
        mx.open_store(path)


def test_one_copy_is_enough_for_itself(store: str) -> None:
    shutil.rmtree(Path(store, "connectivity/by_post"))
    ex.assert_same_tree(mx.open_store(store, compressed="pre"))


def test_arguments_of_open(store: str) -> None:
    assert mx.open_store(store, lazy=True)["connectivity"].to_dataset().chunks
    with pytest.raises(mx.errors.SchemaError, match=r"compressed is .*expected one of post, pre"):
        mx.open_store(store, compressed="both")  # type: ignore[arg-type]


def test_a_store_is_found_relative_to_home_and_through_links(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", os.path.dirname(path))
    mx.write_store("~/three.zarr", units=ex.units())
    assert mx.open_store(f"file://{path}")["units"].sizes["nucleus_id"] == 3
    os.symlink(path, f"{path}.link")
    mx.write_store(f"{path}.link", units=ex.units().isel(nucleus_id=[0, 1]), overwrite=True)
    assert os.path.islink(f"{path}.link")
    assert mx.open_store("~/three.zarr")["units"].sizes["nucleus_id"] == 2


def test_pattern_check_finds_a_fall_at_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block of the check ends, and at the first and last connection of a span."""
    monkeypatch.setattr("microns_xr.store.format.CHUNK", 4)
    indptr = np.array([0, 3, 3, 9, 11])
    good = np.array([1, 4, 6, 0, 1, 2, 5, 6, 7, 0, 7], dtype=np.int32)
    assert pattern_problem(good, indptr, (8, 4), "post") is None
    assert pattern_problem(good, indptr, (4, 8), "pre") is None
    for at in range(good.size):
        for value in range(8):
            bad = good.copy()
            bad[at] = value
            spans = [bad[lo:hi].tolist() for lo, hi in itertools.pairwise(indptr)]
            fine = all(span == sorted(set(span)) for span in spans)
            assert (pattern_problem(bad, indptr, (8, 4), "post") is None) is fine, (at, value)


def test_threads_may_write_different_stores(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.zarr") for i in range(3)]
    threads = [threading.Thread(target=ex.write, args=(p,)) for p in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for p in paths:
        ex.assert_same_tree(mx.open_store(p))


def test_row_counts_of_earlier_stores_are_not_numbers_of_synapses(tmp_path) -> None:
    path = tmp_path / "s.zarr"
    ex.write(path)
    ex.as_early_store(path)
    for axis in ("post", "pre"):
        array = zarr.open_array(str(path), path=f"connectivity/by_{axis}/synapse_count")
        array.update_attributes({"counts": "rows of a table with one row per pair"})
    for lazy in (False, True):
        found = mx.open_store(path, lazy=lazy)["connectivity"].to_dataset()
        assert list(found.data_vars) == ["synapse_size"]
        mx.write_store(
            tmp_path / "again.zarr", units=ex.units(), connectivity=found, overwrite=True
        )
        again = mx.open_store(tmp_path / "again.zarr")["connectivity"].to_dataset()
        assert list(again.data_vars) == ["synapse_size"]
        assert not list((tmp_path / "again.zarr").rglob("synapse_count"))


def test_other_weights(tmp_path) -> None:
    """Without sizes, the first weight is in ``data``; integers beyond int32 and floats stay exact."""
    strength = ex.connectivity().synapse_size.astype(float) / 3
    big = ex.connectivity().synapse_size * 2**40
    third = ex.connectivity().synapse_size * -(2**40)
    made = ex.connectivity().drop_vars(["synapse_size", "synapse_count"])
    made = made.assign(strength=strength.assign_attrs(units="mV"), big=big, third=third)
    for name in ("memory", "copied", "computed"):
        path = tmp_path / f"{name}.zarr"
        if name == "computed":  # not as it was opened
            made = made.assign(big=made.big * 1)
        mx.write_store(path, units=ex.units(), connectivity=made, overwrite=True)
        group = zarr.open_group(str(path), mode="r", path="connectivity/by_pre")
        assert (group["data"].dtype, group["big"].dtype) == (np.float64, np.int64)
        assert group.attrs["data_variable"] == "strength"
        for axis in ("post", "pre"):
            found = mx.open_store(path, compressed=axis)["connectivity"].to_dataset()
            assert list(found.data_vars) == ["strength", "big", "third"]
            assert found.strength.attrs["units"] == "mV"
            np.testing.assert_array_equal(found.strength.data.todense(), strength.data.todense())
            np.testing.assert_array_equal(found.big.data.todense(), big.data.todense())
            np.testing.assert_array_equal(found.third.data.todense(), third.data.todense())
            assert "data_variable" not in found.attrs
        made = mx.open_store(path, lazy=True)["connectivity"].to_dataset()
        degrees = mx.degrees(made).compute()
        assert degrees.in_strength.dtype == np.float64
        np.testing.assert_allclose(degrees.in_strength, strength.data.todense().sum(axis=0))
        assert degrees.in_big.values.tolist() == big.data.todense().sum(axis=0).tolist()
