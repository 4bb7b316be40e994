"""Recordings: opened lazily, selected without reading the rest, written to zarr."""

from __future__ import annotations

import gc
import io
import os
import pickle
import re
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from threading import Thread
from typing import ClassVar

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from file_server import FileServer

import microns_xr as mx
from microns_xr.recordings import files
from microns_xr.recordings.files import encode_hash, read_rows

SCANS = ["4_7", "8_5", "9_3"]


@pytest.fixture(scope="module")
def source():
    return mx.sources.DemoSource(1718, n_nuclei=4000, seed=5)


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    return mx.recordings.write_demo(tmp_path_factory.mktemp("rec") / "demo.h5", source, seed=1)


@pytest.fixture(scope="module")
def recordings(path):
    return mx.recordings.open(path)


@pytest.fixture
def copy(path, tmp_path):
    """A file of one's own to damage."""
    target = tmp_path / "copy.h5"
    target.write_bytes(path.read_bytes())
    return target


class Counting(io.BytesIO):
    """A file that counts the bytes read from it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.bytes_read = 0

    def readinto(self, buffer):
        n = super().readinto(buffer)
        self.bytes_read += n
        return n

    def read(self, size=-1):
        content = super().read(size)
        self.bytes_read += len(content)
        return content


def plain(path, scan, stream):
    """All trials of a scan one after the other, read without the package."""
    with h5py.File(path) as h5:
        trials = h5[f"sessions/{scan}/trials"]
        return np.concatenate([trials[str(i)][stream][()] for i in range(len(trials))], axis=-1)


# --------------------------------------------------------------------------------- the tree


def test_one_node_per_scan_with_the_trials_along_time(path, recordings):
    assert list(recordings) == [f"scan_{s}" for s in SCANS]
    for scan in SCANS:
        node = recordings[f"scan_{scan}"]
        responses = plain(path, scan, "responses")
        assert node.responses.dims == ("unit", "time")
        assert node.responses.dtype == np.float32
        np.testing.assert_array_equal(node.responses.values, responses)
        np.testing.assert_array_equal(node.treadmill.values, plain(path, scan, "treadmill"))
        np.testing.assert_array_equal(node.pupil.values, plain(path, scan, "pupil"))
        np.testing.assert_array_equal(node.stim_time.values, plain(path, scan, "stim_times"))
        assert (int(node.session), int(node.scan_idx)) == tuple(map(int, scan.split("_")))
        np.testing.assert_array_equal(node.unit_id, 1 + np.arange(len(responses)))
        assert node.unit_id.dtype == np.int64
        assert node.brain_area.dtype == object
        assert set(node.brain_area.values) == {"V1", "LM", "RL", "AL"}


def test_the_trial_table(path, recordings):
    node = recordings["scan_9_3"]
    with h5py.File(path) as h5:
        group = h5["sessions/9_3"]
        hashes = [h.decode() for h in group["meta/condition_hashes"]]
        assert list(node.condition_hash.values) == hashes
        assert any("/" in h for h in hashes)
        for i, condition_hash in enumerate(hashes):
            video = h5[f"videos/{encode_hash(condition_hash)}"]
            trial = group[f"trials/{i}"]
            assert node.stimulus.values[i] == video.attrs["type"]
            assert node.n_frames.values[i] == trial["stim_times"].shape[0]
            assert node.start_time.values[i] == trial["stim_times"][0]
            assert node.stim_time.values[node.first_frame.values[i]] == trial["stim_times"][0]
            if video.attrs["type"] == "Monet2":
                np.testing.assert_array_equal(node.direction[i], video["directions"][()])
                np.testing.assert_array_equal(node.onset[i], video["onsets"][()])
                assert node.offset.values[i, -1] == video.attrs["duration"]
            else:
                assert np.isnan(node.direction[i]).all()
    assert (node.trial_number.values == np.repeat(node.trial, node.n_frames)).all()


def test_text_of_condition_hashes_may_be_encoded_or_a_string(copy, recordings):
    with h5py.File(copy, "r+") as h5:
        hashes = [h.decode() for h in h5["sessions/9_3/meta/condition_hashes"]]
        del h5["sessions/9_3/meta/condition_hashes"]
        h5["sessions/9_3/meta/condition_hashes"] = [encode_hash(h) for h in hashes]
    node = mx.recordings.open(copy, scans="9_3")["scan_9_3"]
    assert list(node.condition_hash.values) == hashes


def test_one_scan_or_several_can_be_named(path, recordings):
    opened, chosen = partial(mx.recordings.open, path), partial(mx.recordings.select, recordings)
    for scans in (["9_3"], "scan_9_3", [(9, 3)], (9, 3)):
        assert list(opened(scans)) == list(chosen(scans=scans)) == ["scan_9_3"]
    assert list(chosen(scans=["4_7", (9, 3)])) == ["scan_4_7", "scan_9_3"]
    assert list(chosen(session=np.float64(9))) == ["scan_9_3"]
    for call in (opened, chosen):
        with pytest.raises(mx.errors.SchemaError, match=r"scan is 9, expected '9_3' or \(9, 3\)"):
            call(scans=9)
    with pytest.raises(mx.errors.UnknownLabelError, match=r"no scan 'scan_9_4'.*nearest: scan_9_3"):
        opened(["9_4"])


def test_datastack_is_a_scalar_coordinate(path):
    node = mx.recordings.open(path, ["9_3"], datastack="minnie65_demo")["scan_9_3"]
    assert node.datastack.item() == "minnie65_demo"


# ------------------------------------------------------------------------------------ lazy


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), slice(None)),
        (slice(None, None, -3), slice(500, 20, -7)),
        (np.array([300, 2, 2, 17]), slice(100, 130)),
        (7, slice(None, 60)),
        (slice(3, 9), 118),
        (-1, -1),
        (np.array([5, 4]), np.array([900, 3, 3, 450])),
        (slice(0, 0), slice(None)),
        (slice(None), np.array([], dtype=int)),
    ],
)
def test_any_outer_index_gives_what_numpy_gives(path, recordings, key):
    responses = recordings["scan_8_5"].responses
    values = plain(path, "8_5", "responses")
    expected = values[key[0]][..., key[1]] if np.ndim(key[0]) == 0 else values[key[0]][:, key[1]]
    result = responses.isel(unit=key[0], time=key[1])
    np.testing.assert_array_equal(result.values, expected)
    # An index of an index, and one for each point.
    np.testing.assert_array_equal(responses[key[0]][..., key[1]].values, expected)


def test_pointwise_index(path, recordings):
    points = xr.DataArray([3, 9, 4], dims="point"), xr.DataArray([700, 1, 200], dims="point")
    result = recordings["scan_8_5"].responses.isel(unit=points[0], time=points[1])
    values = plain(path, "8_5", "responses")
    np.testing.assert_array_equal(result.values, values[[3, 9, 4], [700, 1, 200]])


def test_rows_are_read_in_runs():
    class Dataset:
        shape, dtype = (10_000, 100), np.dtype(np.float32)

        def __init__(self):
            self.reads = []

        def __getitem__(self, key):
            self.reads.append((key[0].start, key[0].stop))
            rows = np.arange(key[0].start, key[0].stop, dtype=np.float32)
            return np.repeat(rows[:, None], key[1].stop - key[1].start, axis=1)

    dataset = Dataset()
    rows = np.array([9000, 0, 1, 2, 5, 300, 0])
    result = read_rows(dataset, rows, 10, 12)
    np.testing.assert_array_equal(result, np.repeat(rows[:, None], 2, axis=1))
    assert dataset.reads == [(0, 6), (300, 301), (9000, 9001)]  # 2 and 5 are within a page
    gap = files._MAX_GAP_BYTES // 400
    dataset.reads.clear()
    read_rows(dataset, np.array([0, gap, 2 * gap + 1]), 0, 1)
    assert dataset.reads == [(0, gap + 1), (2 * gap + 1, 2 * gap + 2)]


def test_only_what_is_asked_for_is_read(path):
    file = Counting(path.read_bytes())
    size = len(file.getvalue())
    recordings = mx.recordings.open(file)
    opening = file.bytes_read
    assert opening < 0.1 * size  # HDF5 reads its own metadata, in pieces

    file.bytes_read = 0
    chosen = mx.recordings.select(recordings, brain_area="LM", stimulus="Monet2", session=9)
    assert file.bytes_read == 0
    responses = chosen["scan_9_3"].responses
    wanted = responses.size * 4
    values = responses.values
    assert values.nbytes == wanted
    assert wanted <= file.bytes_read < wanted + 16_384 * chosen["scan_9_3"].sizes["trial"]
    assert file.bytes_read < 0.1 * recordings["scan_9_3"].responses.size * 4 + 100_000

    file.bytes_read = 0
    node = mx.recordings.select(recordings, scans=["9_3"], trial=3)["scan_9_3"]
    one = node.responses.values
    assert one.nbytes <= file.bytes_read < one.nbytes + 16_384

    file.bytes_read = 0
    clip = mx.recordings.open_video(file, recordings["scan_9_3"].condition_hash.values[0])
    before = file.bytes_read
    frame = clip[7].values
    assert frame.shape == (18, 32)
    assert frame.nbytes <= file.bytes_read - before < 8192


def test_chunked_by_dask_the_same_comes_out(path, recordings):
    chunked = recordings["scan_9_3"].to_dataset().chunk(time=200, unit=100)
    expected = plain(path, "9_3", "responses").mean(axis=1, dtype=np.float64)
    for scheduler in ("threads", "sync"):
        result = chunked.responses.astype(np.float64).mean("time").compute(scheduler=scheduler)
        np.testing.assert_allclose(result.values, expected, rtol=1e-12)


def _total(recordings):
    return float(recordings["scan_9_3"].responses.values.sum(dtype=np.float64))


def test_trees_travel_to_threads_and_processes(path, recordings):
    expected = plain(path, "9_3", "responses").sum(dtype=np.float64)
    reopened = pickle.loads(pickle.dumps(recordings))
    assert _total(reopened) == pytest.approx(expected)
    with ThreadPoolExecutor(4) as pool:
        assert all(t == pytest.approx(expected) for t in pool.map(_total, [recordings] * 8))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_total, recordings).result() == pytest.approx(expected)


def test_a_closed_tree_reads_again(path):
    recordings = mx.recordings.open(path, ["9_3"])
    recordings.close()
    assert recordings["scan_9_3"].treadmill.values.shape == recordings["scan_9_3"].treadmill.shape


def test_behind_an_address_only_parts_are_fetched(path, monkeypatch):
    monkeypatch.setattr(files, "_REMOTE_BLOCK_BYTES", 16 << 10)
    content = path.read_bytes()
    with FileServer() as server:
        url = server.put("/microns.h5", content, headers={"Accept-Ranges": "bytes"})
        recordings = mx.recordings.open(url, ["9_3"])
        assert gc.isenabled()
        node = mx.recordings.select(recordings, trial=2)["scan_9_3"]
        expected = plain(path, "9_3", "responses")
        frames = slice(int(recordings["scan_9_3"].first_frame[2]), None)
        n = int(node.n_frames[0])
        np.testing.assert_array_equal(node.responses.values, expected[:, frames][:, :n])
        assert 0 < sum(seen.sent for seen in server.gets) < 0.5 * len(content)
        recordings.close()


class _Littering(Counting):
    """Leaves open HDF5 files to the collector, in another thread, while it is read."""

    rubbish: ClassVar[list] = []

    def read(self, size=-1):
        def litter():
            if self.rubbish:
                self.rubbish.pop()
                for _ in range(100):
                    [[] for _ in range(1000)]  # enough new objects to start the collector

        thread = Thread(target=litter, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "closing the rubbish waits for the reader"
        return super().read(size)

    def readinto(self, buffer):
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def test_garbage_is_not_collected_while_another_thread_reads(path):
    # HDF5 has one lock, which the reader holds: who closes a file has to wait for it.
    for _ in range(2):
        knot = [mx.recordings.open(path, ["4_7"])]
        knot.append(knot)
        _Littering.rubbish.append(knot)
    del knot
    recordings = mx.recordings.open(_Littering(path.read_bytes()), ["9_3"])
    assert not _Littering.rubbish
    assert gc.isenabled()
    assert recordings["scan_9_3"].treadmill.values.shape == recordings["scan_9_3"].treadmill.shape


# ---------------------------------------------------------------------------------- select


def test_select_units_and_trials(path, recordings):
    chosen = mx.recordings.select(recordings, brain_area=["RL", "AL"], stimulus=["Clip", "Trippy"])
    for scan in SCANS:
        node, whole = chosen[f"scan_{scan}"], recordings[f"scan_{scan}"]
        units = np.isin(whole.brain_area, ["RL", "AL"])
        frames = np.isin(np.repeat(whole.stimulus.values, whole.n_frames), ["Clip", "Trippy"])
        expected = plain(path, scan, "responses")[units][:, frames]
        np.testing.assert_array_equal(node.responses.values, expected)
        np.testing.assert_array_equal(node.unit_id, whole.unit_id[units])
        start = node.stim_time.values[node.first_frame.values]
        np.testing.assert_array_equal(start, node.start_time.values)
        assert node.n_frames.values.sum() == node.sizes["time"]


def test_all_repeats_of_a_clip_across_scans(path, recordings):
    first = recordings["scan_4_7"]
    clip = first.condition_hash.values[first.stimulus.values == "Clip"]
    shared = next(c for c in clip if c in recordings["scan_9_3"].condition_hash.values)
    repeats = mx.recordings.select(recordings, condition_hash=shared)
    with h5py.File(path) as h5:
        instances = list(h5[f"videos/{encode_hash(shared)}/instances"])
    result = [
        f"{node.session.item()}_{node.scan_idx.item()}_tr{trial}"
        for node in repeats.children.values()
        for trial in node.trial.values
    ]
    assert sorted(result) == sorted(instances)
    assert len(result) == 6
    of_this_scan = next(c for c in clip if c not in recordings["scan_9_3"].condition_hash.values)
    assert list(mx.recordings.select(recordings, condition_hash=of_this_scan)) == ["scan_4_7"]


def test_select_twice_is_select_once(recordings):
    twice = mx.recordings.select(mx.recordings.select(recordings, session=[8, 9]), unit_id=[3, 300])
    once = mx.recordings.select(recordings, session=[8, 9], unit_id=[3, 300])
    xr.testing.assert_identical(twice["scan_9_3"].to_dataset(), once["scan_9_3"].to_dataset())
    assert len(twice.attrs["history"]) == 3


@pytest.mark.parametrize(
    ("criteria", "words"),
    [
        ({"brain_area": "V2"}, ["V2", "nearest: V1"]),
        ({"stimulus": "monet"}, ["monet", "Monet2"]),
        ({"session": 3}, ["session 3", "4, 8, 9"]),
        ({"scans": ["9_4"]}, ["scan_9_4", "nearest: scan_9_3"]),
        ({"condition_hash": "none"}, ["none"]),
        ({"trial": 99}, ["trial 99", "9, 10"]),
        ({"unit_id": 10**6}, ["unit_id 1000000"]),
    ],
)
def test_unknown_words_are_named(recordings, criteria, words):
    with pytest.raises(mx.errors.UnknownLabelError) as caught:
        mx.recordings.select(recordings, **criteria)
    assert all(word in str(caught.value) for word in words), caught.value


def test_criteria_that_no_scan_meets_together(recordings):
    node = recordings["scan_4_7"]
    of_this_scan = [
        h for h in node.condition_hash.values if h not in recordings["scan_9_3"].condition_hash
    ]
    with pytest.raises(mx.errors.UnknownLabelError, match="not in the same scan"):
        mx.recordings.select(recordings, condition_hash=of_this_scan[0], trial=[10], unit_id=[324])


# ---------------------------------------------------------------------------------- videos


def test_videos_on_demand(path, recordings, copy):
    condition_hash = recordings["scan_9_3"].condition_hash.values[0]
    clip = mx.recordings.open_video(recordings, condition_hash)
    with h5py.File(path) as h5:
        in_file = h5[f"videos/{encode_hash(condition_hash)}/clip"][()]
    # In the file the width comes before the height.
    assert in_file.shape == (113, 32, 18)
    stored = in_file.swapaxes(1, 2)
    assert clip.dims == ("frame", "row", "column")
    for key in ((2,), (slice(None), 3), (slice(4, 9), slice(2, 5), 7), (1, 2, 3), (-1, ..., 31)):
        np.testing.assert_array_equal(clip[key].values, stored[key])
    np.testing.assert_array_equal(clip.values, stored)
    np.testing.assert_array_equal(clip[::-2, 3].values, stored[::-2, 3])
    np.testing.assert_array_equal(clip.isel(frame=[5, 1]).values, stored[[5, 1]])
    assert clip.attrs["type"] == "Monet2"
    assert clip.time.values[1] == pytest.approx(4 / 30)
    with h5py.File(copy, "r+") as h5:
        group = h5[f"videos/{encode_hash(condition_hash)}"]
        del group["clip"]
        group["clip"] = stored  # the height first
    np.testing.assert_array_equal(mx.recordings.open_video(copy, condition_hash).values, stored)
    with h5py.File(copy, "r+") as h5:
        del h5[f"videos/{encode_hash(condition_hash)}/clip"]
    with pytest.raises(mx.errors.SchemaError, match="has no clip of three dimensions"):
        mx.recordings.open_video(copy, condition_hash)
    with pytest.raises(mx.errors.UnknownLabelError, match="no video 'nothing'"):
        mx.recordings.open_video(path, "nothing")


# ------------------------------------------------------------------------------------ zarr


def test_zarr_and_back(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=[8, 9], brain_area=["LM", "AL"])
    store = mx.recordings.to_zarr(small, tmp_path / "rec.zarr", frames=100, units=32)
    reopened = mx.recordings.open(store)
    assert list(reopened) == ["scan_8_5", "scan_9_3"]
    for name in reopened:
        old, new = small[name].to_dataset(), reopened[name].to_dataset()
        assert new.responses.encoding["chunks"] == (32, 100)
        assert not new.responses.variable._in_memory
        xr.testing.assert_identical(new.load(), old.load())
        assert new.condition_hash.dtype == object
    assert list(mx.recordings.open(store, [(9, 3)])) == ["scan_9_3"]
    clip = reopened["scan_9_3"].condition_hash.values[0]
    assert mx.recordings.open_video(reopened, clip).dims == ("frame", "row", "column")
    with pytest.raises(mx.errors.UnknownLabelError, match="9_4"):
        mx.recordings.open(store, ["9_4"])
    with pytest.raises(mx.errors.StoreFormatError, match="overwrite"):
        mx.recordings.to_zarr(small, store)
    with pytest.raises(mx.errors.SourceError, match="is not a store of recordings"):
        mx.recordings.open(store / "scan_8_5")


def test_what_the_method_of_the_tree_writes_can_be_opened(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=9, stimulus="Monet2")
    small.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    reopened = mx.recordings.open(tmp_path / "tree.zarr")
    xr.testing.assert_equal(reopened["scan_9_3"].to_dataset(), small["scan_9_3"].to_dataset())
    xr.testing.assert_equal(mx.recordings.tuning(reopened), mx.recordings.tuning(small))
    assert reopened.attrs["recorded_in"] == recordings.attrs["source"]


def test_a_store_that_fails_leaves_nothing(copy, tmp_path):
    with h5py.File(copy, "r+") as h5:
        del h5["sessions/9_3/trials/2/treadmill"]
        h5["sessions/9_3/trials/2/treadmill"] = np.zeros(3)
    with pytest.raises(
        mx.errors.SchemaError, match=r"scan 9_3, trial 2: treadmill has shape \(3,\)"
    ):
        mx.recordings.to_zarr(mx.recordings.open(copy), tmp_path / "rec.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.h5"]


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_damaged_chunk_is_an_error_not_zeros(recordings, tmp_path, damage):
    small = mx.recordings.select(recordings, session=9, stimulus="Monet2")
    store = mx.recordings.to_zarr(small, tmp_path / "a.zarr", frames=100)
    chunk = store / "scan_9_3" / "responses" / "c" / "0" / "0"
    if damage == "deleted":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-40])
    damaged = mx.recordings.open(store)
    with pytest.raises(mx.errors.StoreFormatError, match=r"responses.*the store is damaged"):
        mx.recordings.tuning(damaged)
    with pytest.raises(mx.errors.StoreFormatError, match=r"responses.*the store is damaged"):
        damaged["scan_9_3"].responses.load()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("", lambda _: "[" * 10_000 + "]" * 10_000),
        ("scan_9_3/pupil", lambda text: text.replace('"chunk_grid"', '"chunk_gird"')),
        ("scan_9_3/unit_id", lambda text: re.sub(r'"chunk_shape": \[[^]]*', '"chunk_shape": [0', text)),
        ("scan_9_3/unit_id", lambda text: text.replace('"bytes"', "[1]")),
    ],
)  # fmt: skip
def test_damaged_metadata_of_a_store(recordings, tmp_path, file, change):
    store = mx.recordings.to_zarr(
        mx.recordings.select(recordings, session=9, trial=0), tmp_path / "a.zarr"
    )
    root = zarr.open_group(store, mode="r+")  # without checksums, to see the other checks
    root.attrs.put({k: v for k, v in root.attrs.items() if k != "microns_xr_checksums"})
    metadata = store / file / "zarr.json"
    text = metadata.read_text(encoding="utf-8")
    assert change(text) != text
    metadata.write_text(change(text), encoding="utf-8")
    with pytest.raises(mx.errors.MicronsXrError, match="write"):
        mx.recordings.open(store)["scan_9_3"].load()


def test_chunks_of_zeros_are_not_lost(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=9, trial=0)
    scan = small["scan_9_3"].to_dataset().load()
    scan["responses"][:] = 0
    silent = xr.DataTree.from_dict({"/": small.to_dataset(), "scan_9_3": scan})
    store = mx.recordings.to_zarr(silent, tmp_path / "a.zarr")
    assert not mx.recordings.open(store)["scan_9_3"].responses.values.any()


def test_a_store_that_was_replaced_is_opened_again(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=9, trial=[0, 1])
    store = mx.recordings.to_zarr(small, tmp_path / "a.zarr")
    before = mx.recordings.open(store)
    mx.recordings.to_zarr(mx.recordings.select(small, trial=1), store, overwrite=True)
    with pytest.raises(mx.errors.StoreFormatError, match=r"has been replaced since.*open it again"):
        before["scan_9_3"].responses.load()


def _replace_and_be_killed(path, stores):
    """Replace each store in a process that ends before the first rename, the second, ..."""
    for at, store in enumerate(stores, 1):
        if process := os.fork():  # this one has imported everything, and started no threads
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 3
            continue
        calls = []

        def rename(source, target, at=at, calls=calls):
            calls.append(source)
            if len(calls) == at:
                os._exit(3)
            os.replace(source, target)

        os.rename = rename
        small = mx.recordings.select(mx.recordings.open(path), session=9, trial=1)
        mx.recordings.to_zarr(small, store, overwrite=True)
        os._exit(0)


def test_a_killed_replacement_is_finished(path, recordings, tmp_path):
    """The old store is put aside, then the new one is put in its place."""
    small = mx.recordings.select(recordings, session=9, trial=[0, 1])
    stores = [mx.recordings.to_zarr(small, tmp_path / at / "a.zarr") for at in "12"]
    process = get_context("spawn").Process(target=_replace_and_be_killed, args=(path, stores))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [store.exists() for store in stores] == [True, False]
    for store in stores:
        assert mx.recordings.open(store)["scan_9_3"].sizes["trial"] == 1
        mx.recordings.to_zarr(small, store, overwrite=True)
        assert [p.name for p in store.parent.iterdir()] == ["a.zarr"]


def test_a_flipped_bit_in_a_store_is_an_error(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=9, trial=[0])
    store = mx.recordings.to_zarr(small, tmp_path / "a.zarr")
    expected = mx.recordings.open(store)["scan_9_3"].to_dataset().load()
    rng = np.random.default_rng(3)
    files = sorted(file for file in store.rglob("*") if file.is_file())
    for file in rng.choice(files, 25, replace=False):
        content = file.read_bytes()
        bit = int(rng.integers(8 * len(content)))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = mx.recordings.open(store)["scan_9_3"].to_dataset().load()
        except mx.errors.MicronsXrError:
            pass
        else:
            xr.testing.assert_identical(found, expected)
        file.write_bytes(content)


def test_two_writers_of_one_store_do_not_mix(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=9, trial=0)

    class Reading(Exception):
        pass

    def write_meanwhile(self, key):
        with pytest.raises(mx.errors.StoreFormatError, match="being written by another process"):
            mx.recordings.to_zarr(small, tmp_path / "a.zarr")
        raise Reading

    lazy = mx.recordings.select(recordings, session=9, trial=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microns_xr.recordings.files.TrialArray._read", write_meanwhile)
        with pytest.raises(Reading):
            mx.recordings.to_zarr(lazy, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- malformed


def _delete(name):
    def change(h5):
        del h5[name]

    return change


def _replace(name, value):
    def change(h5):
        del h5[name]
        h5[name] = value

    return change


def _say_otherwise(h5):
    h5["sessions/9_3/trials/4"].attrs["condition_hash"] = "another"


def _without_ids_and_some_areas(h5):
    del h5["sessions/9_3/meta/unit_ids"]
    del h5["sessions/9_3/meta/area_indices/AL"]


def _another_direction(name, value):
    def change(h5):
        video = h5["videos"][encode_hash(h5["sessions/9_3/meta/condition_hashes"][0].decode())]
        del video[name]
        if value is not None:
            video[name] = value

    return change


def _no_trials(h5):
    del h5["sessions/9_3/trials"], h5["sessions/9_3/meta/condition_hashes"]
    h5.create_group("sessions/9_3/trials")
    h5["sessions/9_3/meta/condition_hashes"] = np.array([], dtype="S20")


def _no_video(h5):
    for trial in h5["sessions/9_3/trials"].values():
        trial.attrs["condition_hash"] = "gone/now"
    hashes = h5["sessions/9_3/meta/condition_hashes"][()]
    hashes[:] = b"gone/now"
    h5["sessions/9_3/meta/condition_hashes"][...] = hashes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_delete("sessions"), r"expected sessions/"),
        (_delete("sessions/9_3/meta"), r"scan 9_3 has no 'meta'"),
        (_delete("sessions/9_3/meta/condition_hashes"), r"scan 9_3 has no 'meta/condition_hashes'"),
        (_delete("sessions/9_3/trials/3"), r"scan 9_3 has 10 trials .* 11 condition_hashes"),
        (_delete("sessions/9_3/trials/3/responses"), r"9_3, trial 3 has no \['responses'\]"),
        (_delete("sessions/9_3/trials/3/pupil"), r"9_3, trial 3 has no \['pupil'\]"),
        (
            _replace("sessions/9_3/trials/3/responses", np.zeros((5, 75), np.float32)),
            r"trial 3 has 5 units",
        ),
        (
            _replace("sessions/9_3/meta/area_indices/LM", np.arange(320, 400)),
            r"scan 9_3: area_indices/LM goes from 320 to 399 .* of the 324 units",
        ),
        (
            _replace("sessions/9_3/meta/area_indices/LM", np.arange(5)),
            r"area_indices/.* another area",
        ),
        (_replace("sessions/9_3/meta/unit_ids", np.arange(7)), r"unit_ids holds 7 values"),
        (
            _without_ids_and_some_areas,
            r"scan 9_3 has 324 units in its responses and 311 in area_indices",
        ),
        (_say_otherwise, r"trial 4 has the hash 'another'"),
        (_no_video, r"trial 0 shows 'gone/now', but there is no videos/gone%2Fnow"),
        (
            _another_direction("onsets", np.arange(15.0)),
            r"trial 0\) has 16 directions and 15 onsets",
        ),
        (_another_direction("onsets", np.zeros(16)), r"trial 0\) has .* ascending onsets"),
        (
            _another_direction("directions", np.arange(16) * np.pi / 8),
            r"trial 0\): directions has units 'degree' .* look like radians",
        ),
        (_no_trials, r"scan 9_3 has no trials: open the other scans"),
        (
            _replace("sessions/9_3/trials/3/responses", np.zeros(5, np.float32)),
            r"trial 3: responses have shape \(5,\)",
        ),
        (_another_direction("onsets", None), r"trial 0\) has 16 directions and 0 onsets"),
    ],
)
def test_malformed_files_name_scan_and_trial(copy, change, message):
    with h5py.File(copy, "r+") as h5:
        change(h5)
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.recordings.open(copy, ["9_3"] if "no group" not in message else None)


LINKS = {
    "a link to itself": lambda h5, name: h5.__setitem__(name, h5py.SoftLink(f"/{name}")),
    "a link to nothing": lambda h5, name: h5.__setitem__(name, h5py.ExternalLink("no.h5", "/x")),
    "a number": lambda h5, name: h5.__setitem__(name, 3),
    "nothing": lambda h5, name: h5.__setitem__(name, h5py.Empty("f")),
    "a group": lambda h5, name: h5.create_group(name),
}


def test_other_things_where_groups_and_arrays_belong(path, tmp_path):
    names = []
    with h5py.File(path) as h5:
        h5.visit(names.append)
        video = h5["sessions/9_3/trials/0"].attrs["condition_hash"]
    names = [n for n in names if n.count("/") < 2 or re.match("sessions/9_3/(trials/0|meta)", n)]
    cases = np.random.default_rng(5).permutation([(name, what) for name in names for what in LINKS])
    n_errors = 0
    for i, (name, what) in enumerate(cases[:40]):
        file = shutil.copy(path, tmp_path / f"{i}.h5")
        with h5py.File(file, "r+") as h5:
            del h5[name]
            LINKS[what](h5, name)
        try:
            mx.recordings.open(file, "9_3")["scan_9_3"].load()
            mx.recordings.open_video(file, video).load()
        except mx.errors.MicronsXrError as error:
            assert str(file) in str(error), (name, what)  # noqa: PT017
            n_errors += 1
    assert n_errors > 20


def test_an_error_while_the_scans_are_described_names_the_file(copy):
    with h5py.File(copy, "r+") as h5:
        _another_direction("onsets", np.array([b"soon"] * 16))(h5)
    with pytest.raises(
        mx.errors.SourceError, match=r"copy\.h5: the metadata of the scans cannot be"
    ):
        mx.recordings.open(copy)


def test_without_unit_ids_the_row_is_the_unit_where_the_counts_agree(copy):
    with h5py.File(copy, "r+") as h5:
        h5["sessions/9_3/meta/area_indices/none"] = np.empty(0, dtype=np.int64)
        del h5["sessions/9_3/meta/unit_ids"]
        h5["sessions/8_5/meta/unit_ids"][0] = 1000
    recordings = mx.recordings.open(copy)
    assert recordings["scan_9_3"].unit_id.attrs["from"] == "row + 1"
    assert recordings["scan_9_3"].unit_id.values[:2].tolist() == [1, 2]
    assert recordings["scan_8_5"].unit_id.values[:2].tolist() == [1000, 2]


def test_a_stream_of_one_row_is_a_stream(copy, path):
    with h5py.File(copy, "r+") as h5:
        trial = h5["sessions/9_3/trials/1"]
        values = trial["treadmill"][()]
        del trial["treadmill"]
        trial["treadmill"] = values[None]
    result = mx.recordings.open(copy)["scan_9_3"].treadmill.values
    np.testing.assert_array_equal(result, plain(path, "9_3", "treadmill"))


def test_files_that_are_not_hdf5_or_are_cut_short(copy, tmp_path):
    with pytest.raises(mx.errors.SourceError, match="there is no file"):
        mx.recordings.open(tmp_path / "nothing.h5")
    (tmp_path / "page.h5").write_text("<html>")
    with pytest.raises(mx.errors.SourceError, match=r"page\.h5 cannot be opened as HDF5"):
        mx.recordings.open(tmp_path / "page.h5")
    copy.write_bytes(copy.read_bytes()[:-50_000])
    with pytest.raises(mx.errors.SourceError, match=r"cannot be opened as HDF5.*truncated; fetch"):
        mx.recordings.open(copy)


def test_packed_data_are_read_and_damaged_ones_named(copy, path):
    with h5py.File(copy, "r+") as h5:
        for i in (1, 2):
            trial = h5[f"sessions/9_3/trials/{i}"]
            values = trial["responses"][()]
            del trial["responses"]
            packed = trial.create_dataset(
                "responses", data=values, chunks=(100, 40), compression="gzip", fletcher32=True
            )
        chunk = packed.id.get_chunk_info(0)
    node = mx.recordings.open(copy, ["9_3"])["scan_9_3"]
    np.testing.assert_array_equal(node.responses.values, plain(path, "9_3", "responses"))
    with open(copy, "r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"damaged!")
    node = mx.recordings.open(copy, ["9_3"])["scan_9_3"]
    with pytest.raises(mx.errors.SourceError, match="scan 9_3, trial 2: responses cannot be read"):
        node.responses.values


def test_h5py_is_an_extra(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(mx.errors.MicronsXrError, match=r"microns-xr\[recordings\]"):
        mx.recordings.open(path)


def test_demo_file_is_there_whole_or_not_at_all(source, path, tmp_path):
    with pytest.raises(mx.errors.SchemaError, match="overwrite"):
        mx.recordings.write_demo(path, source)
    with pytest.raises(mx.errors.UnknownLabelError, match="no scan '1_1'"):
        mx.recordings.write_demo(tmp_path / "a.h5", source, scans=["1_1"])
    assert not list(tmp_path.iterdir())
    one = mx.recordings.write_demo(tmp_path / "b.h5", source, seed=1)
    assert one.read_bytes()[:4] == b"\x89HDF"
    with h5py.File(one) as a, h5py.File(path) as b:
        name = "sessions/9_3/trials/0/responses"
        np.testing.assert_array_equal(a[name][()], b[name][()])
        assert isinstance(
            a["types/Clip"].get(next(iter(a["types/Clip"])), getlink=True), h5py.SoftLink
        )
        assert a["brain_areas/V1/9_3"].name == "/brain_areas/V1/9_3"
        assert any("%2F" in name for name in a["videos"])


def test_only_recordings_are_replaced(recordings, tmp_path):
    small = mx.recordings.select(recordings, session=9, trial=0)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("a file")
    release = tmp_path / "release.zarr"
    zarr.open_group(release, mode="w").attrs["microns_xr_format"] = 1
    for taken, what in (
        (folder, "a folder that is not a store"), (file, "a file"), (release, "a store of a release")
    ):  # fmt: skip
        with pytest.raises(
            mx.errors.StoreFormatError, match=f"is {what}, expected a store of recordings"
        ):
            mx.recordings.to_zarr(small, taken, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    store = mx.recordings.to_zarr(small, tmp_path / "a.zarr")
    # also with what is read from it
    assert mx.recordings.to_zarr(mx.recordings.open(store), store, overwrite=True) == store
    assert list(mx.recordings.open(store)) == ["scan_9_3"]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a.zarr", "file", "mine", "release.zarr"]
    for wrong in ({"frames": 0}, {"units": 1.5}):
        with pytest.raises(mx.errors.SchemaError, match="expected a whole number from 1"):
            mx.recordings.to_zarr(small, tmp_path / "b.zarr", **wrong)


def test_videos_of_an_open_file_need_the_file(path):
    content = io.BytesIO(path.read_bytes())
    recordings = mx.recordings.open(content, ["9_3"])
    shown = recordings["scan_9_3"].condition_hash.values[0]
    with pytest.raises(mx.errors.SourceError, match="file is None, expected a path, a URL or"):
        mx.recordings.open(None)
    with pytest.raises(
        mx.errors.SourceError, match=r"<BytesIO>.*pass the file itself to open_video"
    ):
        mx.recordings.open_video(recordings, shown)
    assert mx.recordings.open_video(content, shown).ndim == 3
