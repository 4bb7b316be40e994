"""Stores in buckets, behind web servers and in memory: written, read, counted, broken off."""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matrix_stores as ms
import numpy as np
import pytest
import store_examples as ex
import xarray as xr
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore

import microns_xr as mx
from microns_xr.store.locate import CompleteStore, read_span

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'microns-xr[cloud]'")
pytest.importorskip("obstore", reason="obstore is not installed: pip install 'microns-xr[cloud]'")
s3_server = pytest.importorskip("s3_server", reason="moto is not installed")

# Of the packages that speak S3, none of ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with s3_server.Bucket() as server:
        yield server


@pytest.fixture(scope="module")
def big(bucket: Any) -> str:
    """Where a sharded store with consolidated metadata is, in the bucket."""
    ms.write(bucket.obstore("public/big"), shards=True, consolidated=True)
    return "public/big"


def two() -> dict[str, xr.Dataset]:
    return {"units": ex.units(), "layers": ex.layers()}


def places(bucket: Any, name: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    login = {"storage_options": bucket.options}
    return {
        "address": (f"s3://data/{name}", login),
        "obstore": (bucket.obstore(name), {}),
        "fsspec": (FsspecStore.from_url(f"memory://objects/{name}"), {}),
        "memory address": (f"memory://{name}", {}),
        "memory": (MemoryStore(), {}),
    }


KINDS = ["address", "obstore", "fsspec", "memory address", "memory"]


@pytest.fixture(params=["address", "obstore", "memory"])
def place(request: pytest.FixtureRequest, bucket: Any) -> tuple[Any, dict[str, Any]]:
    """A new place, and the options it takes."""
    return places(bucket, f"new-{uuid.uuid4().hex}")[request.param]


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, bucket: Any) -> tuple[Any, dict[str, Any]]:
    """A place with a store of three neurons, and the options it takes."""
    where, options = places(bucket, "written-" + request.param.replace(" ", "-"))[request.param]
    ex.write(where, consolidated=request.param != "obstore", **options)
    return where, options


# --- writing and reading ---------------------------------------------------------------------------


def test_what_is_written_comes_back(written: Any) -> None:
    """By post; by pre the next test reads the same."""
    where, options = written
    tree = mx.open_store(where, **options)
    assert set(tree.children) == {*ex.DENSE, "connectivity"}
    ex.assert_same_tree(tree)
    assert tree["connectivity"].synapse_size.data.compressed_axes == (1,)
    assert tree.attrs["microns_xr_format"] == 1


def test_engine_opens_the_same_places(written: Any) -> None:
    where, options = written
    units = xr.open_dataset(where, engine="microns_xr", group="units", **options)
    xr.testing.assert_identical(units, ex.units())
    tree = xr.open_datatree(where, engine="microns_xr", compressed="pre", **options)
    ex.assert_same_tree(tree)
    assert tree["connectivity"].synapse_size.data.compressed_axes == (0,)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_is_taken_is_refused(written: Any, overwrite: bool) -> None:
    where, options = written
    with pytest.raises(mx.errors.StoreFormatError, match="is taken, expected a new address"):
        mx.write_store(where, units=ex.units(), overwrite=overwrite, **options)
    ex.assert_same_tree(mx.open_store(where, **options))


@pytest.mark.parametrize(("kind", "consolidated"), [("address", False), ("obstore", True)])
def test_the_root_is_written_last_and_nothing_is_read(
    bucket: Any, kind: str, consolidated: bool
) -> None:
    where, options = places(bucket, f"last-{kind}-{consolidated}")[kind]
    with bucket.asked() as seen:
        mx.write_store(where, **two(), consolidated=consolidated, **options)
    puts = [one.key for one in seen if one.method == "PUT"]
    root = f"last-{kind}-{consolidated}/zarr.json"
    assert puts[-1] == root
    assert puts.count(root) == 2 + consolidated
    # Is the place taken? Nothing else is looked up.
    others = [one for one in seen if one.method != "PUT"]
    assert len(others) <= 3
    assert all(one.lists or one.status == 404 for one in others)
    # objects are written once; groups twice, the second time with their attributes
    chunks = [key for key in puts if not key.endswith("zarr.json")]
    assert len(chunks) == len(set(chunks)) > 20


def test_a_place_that_another_process_takes_meanwhile(bucket: Any) -> None:
    """File systems of fsspec remember listings: those of the past must not count."""
    where, options = "s3://data/race/store", {"storage_options": bucket.options}
    with pytest.raises(
        mx.errors.StoreFormatError, match="there is no store at s3://data/race/store"
    ):
        mx.open_store(where, **options)
    list(FsspecStore.from_url(where, bucket.options).fs._ls_from_cache("data/race") or ())
    mx.write_store(bucket.obstore("race/store"), units=ex.units())
    with pytest.raises(mx.errors.StoreFormatError, match="is taken"):
        mx.write_store(where, units=ex.units(), **options)
    assert list(mx.open_store(where, **options).children) == ["units"]


@pytest.mark.parametrize(
    ("kind", "written"),
    [("address", 5), ("address", -1), *(("obstore", n) for n in (0, 1, 10, -1))],
)
def test_an_interrupted_upload_is_not_a_store(bucket: Any, kind: str, written: int) -> None:
    """Refused from some object on, the very last one included."""
    name = f"broken-{kind}-{written}"
    where, options = places(bucket, name)[kind]
    if written < 0:
        with bucket.asked() as seen:
            mx.write_store(bucket.obstore(f"{name}-whole"), units=ex.units())
        written += sum(one.method == "PUT" for one in seen)
    bucket.puts_left = written
    try:
        with pytest.raises(mx.errors.SourceError, match=r"cannot be written \(Perm") as caught:
            mx.write_store(where, units=ex.units(), **options)
    finally:
        bucket.puts_left = None
    assert name in str(caught.value)
    message = "not a finished" if written else "no store at"
    with pytest.raises(mx.errors.StoreFormatError, match=message):
        mx.open_store(where, **options)
    with pytest.raises(mx.errors.StoreFormatError, match=message):
        xr.open_datatree(where, engine="microns_xr", **options)
    if not written:
        mx.write_store(where, units=ex.units(), **options)
        return
    message = "remove objects that an interrupted write has left"
    with pytest.raises(mx.errors.StoreFormatError, match=message):
        mx.write_store(where, units=ex.units(), **options)


# --- what is wrong is said ---------------------------------------------------------------------------


def test_a_lost_chunk_is_seen(place: Any) -> None:
    where, options = place
    mx.write_store(where, units=ex.units(), **options)
    _remove(where, options, "units/position/c/0/0")
    with pytest.raises(
        mx.errors.StoreFormatError, match="has no chunk 'units/position/c/0/0': the store is"
    ):
        mx.open_store(where, **options)
    _remove(where, options, "units/layer/zarr.json")
    with pytest.raises(mx.errors.StoreFormatError, match="the array 'layer' is missing"):
        mx.open_store(where, **options)


def _remove(where: Any, options: dict[str, Any], key: str) -> None:
    if isinstance(where, str):
        where = FsspecStore.from_url(where, **options)
    zarr.core.sync.sync(where.delete(key))


def test_errors_of_the_network(bucket: Any) -> None:
    def opened(where: str, **changes: Any) -> None:
        mx.open_store(where, storage_options=bucket.options | changes)

    with pytest.raises(
        mx.errors.SourceError, match=r"s3://data/x/zarr.json cannot be read \(Endpoint"
    ):
        opened(
            "s3://data/x",
            endpoint_url="http://127.0.0.1:9",
            config_kwargs={"retries": {"max_attempts": 0}},
        )
    mx.write_store(bucket.obstore("private"), units=ex.units())
    with pytest.raises(
        mx.errors.SourceError, match=r"cannot be read \(PermissionError.*'anon'"
    ) as caught:
        opened("s3://data/private", anon=True, key=None, secret=None)
    with pytest.raises(mx.errors.SourceError, match=r"cannot be written \(PermissionError"):
        mx.write_store(
            "s3://data/private/b",
            units=ex.units(),
            storage_options={"endpoint_url": bucket.url, "anon": True},
        )
    with pytest.raises(mx.errors.StoreFormatError, match="there is no store at s3://nosuch/x"):
        opened("s3://nosuch/x")
    with pytest.raises(mx.errors.SourceError, match=r"s3://nosuch/x cannot be listed .*bucket"):
        mx.write_store("s3://nosuch/x", units=ex.units(), storage_options=bucket.options)
    with pytest.raises(
        mx.errors.SourceError, match=r"http://127.0.0.1:9/x/zarr.json cannot be read"
    ):
        mx.open_store("http://127.0.0.1:9/x")
    assert bucket.options["secret"] not in str(caught.value)


def test_wrong_places_are_refused(bucket: Any, tmp_path: Path) -> None:
    obstore = bucket.obstore("x").store
    for wrong in (3, None, obstore, {}):
        with pytest.raises(mx.errors.SchemaError, match=r"path is a .*, expected a path, a URL"):
            mx.open_store(wrong)
    for where in (tmp_path / "a", MemoryStore(), LocalStore(tmp_path / "a")):
        with pytest.raises(
            mx.errors.SchemaError, match=r"storage_options were passed for .*: leave them out"
        ):
            mx.write_store(where, units=ex.units(), storage_options={"key": "id"})
    with pytest.raises(
        mx.errors.SourceError, match=r"nosuch://a cannot be opened .* protocol of fsspec"
    ):
        mx.open_store("nosuch://a")
    with pytest.raises(mx.errors.StoreFormatError, match=r"https://a.org/b is read-only"):
        mx.write_store("https://a.org/b", units=ex.units())
    with pytest.raises(mx.errors.StoreFormatError, match="is read-only"):
        mx.write_store(MemoryStore(read_only=True), units=ex.units())
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(FsspecStore, "from_url", missing)
    with pytest.raises(
        mx.errors.SourceError, match=r"Install gcsfs.*pip install 'microns-xr\[cloud\]'"
    ):
        mx.open_store("gs://a/b")


def test_a_local_store_object_is_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    mx.write_store(LocalStore(path), units=ex.units())
    ex.write(LocalStore(path))  # which can be replaced
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    ex.assert_same_tree(mx.open_store(LocalStore(path)))


# --- web servers -------------------------------------------------------------------------------------


def test_over_http(bucket: Any, big: str) -> None:
    """Nothing is listed there, and a store whose parts nobody listed is read whole."""
    url = f"{bucket.url}/data/{big}"
    with bucket.asked() as seen:
        tree = mx.open_store(url)
    assert {(one.method, one.status) for one in seen} == {("GET", 200)}
    found = tree["connectivity"].to_dataset()
    np.testing.assert_array_equal(found["synapse_size"].data.todense(), ms.SIZE)
    np.testing.assert_array_equal(found["synapse_count"].data.todense(), ms.COUNT)
    xr.testing.assert_identical(tree["units"].to_dataset(), ex.units())
    one = xr.open_dataset(url, engine="microns_xr", group="layers")
    xr.testing.assert_identical(one, ex.layers())
    assert_inputs(mx.inputs_to(url, int(ms.POST[400])), 400)


def assert_inputs(found: xr.Dataset, position: int) -> None:
    """The inputs of one neuron are those of the matrix."""
    stored = ms.STORED[:, position]
    np.testing.assert_array_equal(found["pre_nucleus_id"], ms.PRE[stored])
    np.testing.assert_array_equal(found["synapse_size"], ms.SIZE[stored, position])
    np.testing.assert_array_equal(found["synapse_count"], ms.COUNT[stored, position])


# --- shards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", ["post", "pre"])
def test_a_sharded_store_holds_the_same(bucket: Any, big: str, compressed: Any) -> None:
    root = zarr.open_group(bucket.obstore(big), mode="r")
    for name, expected in ms.buffers(compressed).items():
        array = root[f"connectivity/by_{compressed}/{name}"]
        assert isinstance(array, zarr.Array)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array[...], expected, err_msg=name)
        sharded = array.shape[0] > 2**16
        assert (array.chunks, array.shards) == (
            ((2**16,), (2**17,)) if sharded else (array.shape, None)
        )
    found = mx.open_store(bucket.obstore(big), compressed=compressed)["connectivity"].to_dataset()
    np.testing.assert_array_equal(found["synapse_size"].data.todense(), ms.SIZE)


def test_shards_on_disk(tmp_path: Path) -> None:
    """Rule 7: codecs, every chunk stored, one object a shard; what is lost or cut is seen."""
    path = tmp_path / "a.zarr"
    zeros = ms.connectivity()
    zeros["synapse_count"].data.data[:] = 0
    mx.write_store(path, units=ex.units(), connectivity=zeros, shards=True)
    folder = path / "connectivity" / "by_pre"
    meta = zarr.open_array(folder / "synapse_count", mode="r").metadata.to_dict()
    (sharding,) = meta["codecs"]
    settings = sharding["configuration"]
    assert sharding["name"] == "sharding_indexed"
    assert [codec["name"] for codec in settings["codecs"]] == ["bytes", "blosc", "crc32c"]
    assert [codec["name"] for codec in settings["index_codecs"]] == ["bytes", "crc32c"]
    assert settings["index_location"] == "end"
    # one shard of three chunks, as long as is needed and no longer, zeros stored as well
    assert meta["chunk_grid"]["configuration"]["chunk_shape"] == (3 * 2**16,)
    (shard,) = (folder / "synapse_count" / "c").iterdir()
    index = np.frombuffer(shard.read_bytes()[-(3 * 16 + 4) : -4], dtype="<u8")
    assert len(index) == 6
    assert (index < shard.stat().st_size).all()
    found = mx.open_store(path)["connectivity"].to_dataset()
    assert not found["synapse_count"].data.data.any()
    np.testing.assert_array_equal(found["synapse_size"].data.todense(), ms.SIZE)

    content = shard.read_bytes()
    for damaged in (content[:-1], content[:100], b"", content[:-10] + b"x" + content[-9:]):
        shard.write_bytes(damaged)
        with pytest.raises(
            mx.errors.StoreFormatError, match=r"by_pre/synapse_count.* (cannot be decoded|is empty)"
        ):
            mx.open_store(path, compressed="pre")
    shard.unlink()
    with pytest.raises(mx.errors.StoreFormatError, match="has no chunk 'connectivity/by_pre/syn"):
        mx.open_store(path, compressed="pre")


def test_synapses_in_shards(tmp_path: Path) -> None:
    post, pre = (index[:100_000] for index in np.nonzero(ms.STORED.T))
    rng = np.random.default_rng(3)
    table = xr.Dataset(
        {
            "size": ("synapse", rng.integers(0, 9000, 100_000)),
            "position": (("synapse", "axis"), rng.random((100_000, 3))),
        },
        coords={
            "axis": ex.text("x", "y", "z"),
            "synapse_id": ("synapse", rng.permutation(100_000)),
            "pre_nucleus_id": ("synapse", ms.PRE[pre]),
            "post_nucleus_id": ("synapse", ms.POST[post]),
        },
    )
    table = mx.releases.stamp_release(table, "minnie65_public", 661)
    parts = {"units": ex.units(), "connectivity": ms.connectivity(), "synapses": table}
    plain, sharded = tmp_path / "plain.zarr", MemoryStore()
    mx.write_store(plain, **parts)
    mx.write_store(sharded, **parts, shards=True)
    position = zarr.open_group(sharded, mode="r")["synapses/position"]
    assert isinstance(position, zarr.Array)
    assert (position.chunks, position.shards) == ((2**16, 3), (2**17, 3))
    xr.testing.assert_identical(
        mx.open_store(sharded)["synapses"].to_dataset(),
        mx.open_store(plain)["synapses"].to_dataset(),
    )
    for wanted in ({"post": ms.POST[[3, 300]]}, {"pre": ms.PRE[7]}, {"box": {"y": (0.25, 0.5)}}):
        found = mx.select_synapses(sharded, **wanted)
        assert found.sizes["synapse"] > 100
        xr.testing.assert_identical(found, mx.select_synapses(plain, **wanted))


@pytest.mark.parametrize("where", ["memory", "bucket"])
def test_spans_of_shards(bucket: Any, where: str) -> None:
    """Any span, of one and two dimensions, with at most two requests a shard."""
    store = MemoryStore() if where == "memory" else bucket.obstore("spans")
    counting = Counting(store)
    rng = np.random.default_rng(1)
    for dims, shape in ((("x",), (1000,)), (("x", "axis"), (1000, 3))):
        array = zarr.create_array(
            counting,
            name="-".join(dims),
            shape=shape,
            dtype="i8",
            chunks=(10, *shape[1:]),
            shards=(90, *shape[1:]),
        )
        values = rng.integers(0, 2**62, shape)
        array[:] = values
        array = zarr.open_array(CompleteStore(counting, "spans"), path=array.path)
        spans = [(0, 1000), (0, 1), (999, 1000), (89, 91), (90, 180), (5, 5), (990, 1000)]
        spans += [tuple(sorted(rng.integers(0, 1001, 2))) for _ in range(4)]
        for start, stop in spans:
            counting.keys.clear()
            np.testing.assert_array_equal(read_span(array, start, stop), values[start:stop])
            shards = {n // 90 for n in range(start, stop)}
            assert len(set(counting.keys)) == len(shards)
            assert len(counting.keys) <= 2 * len(shards)
            # a shard that is wanted whole is one request
            assert len(counting.keys) <= len(shards) + 2


def test_a_chunk_that_a_shard_lacks_reads_as_zarr_reads_it() -> None:
    """Others may leave out chunks of zeros."""
    store = MemoryStore()
    array = zarr.create_array(store, shape=40, dtype="i4", chunks=(10,), shards=(40,), fill_value=7)
    array[10:20] = 1
    array = zarr.open_array(CompleteStore(store, "lacking"))
    np.testing.assert_array_equal(read_span(array, 5, 25), [7] * 5 + [1] * 10 + [7] * 5)
    np.testing.assert_array_equal(read_span(array, 11, 13), [1, 1])


class Counting(zarr.storage.WrapperStore[Any]):
    """A store that notes which keys are read."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.keys: list[str] = []

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.keys.append(key)
        return await self._store.get(key, *args, **kwargs)


# --- how much is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["address", "obstore"])
def test_lazy_connectivity_touches_few_objects(bucket: Any, big: str, kind: str) -> None:
    where, options = places(bucket, big)[kind]
    with bucket.asked() as seen:
        tree = mx.open_store(where, lazy=True, **options)
    # the root, pointers, and what is an index or a scalar: nothing that is as long as the pairs
    assert len(seen) <= 20
    pairs = [one for one in seen if one.key.split("/")[-3] in ms.buffers("post")]
    assert {one.key.split("/")[-3] for one in pairs} == {
        "indptr",
        "pre_nucleus_id",
        "post_nucleus_id",
    }
    connectivity = tree["connectivity"].to_dataset()
    with bucket.asked() as seen:
        found = mx.inputs_to(connectivity, int(ms.POST[400])).compute()
    # index and chunks of a shard, of three arrays
    assert [one.method for one in seen] == ["GET"] * 6
    assert len({one.key for one in seen}) == 3
    stored = sum(len(part) for part in _objects(bucket, f"{big}/connectivity/by_post/data/c"))
    assert sum(one.sent for one in seen if "/data/" in one.key.split("by_post")[1]) < stored / 2
    assert_inputs(found, 400)


def test_a_store_as_argument_may_be_in_a_bucket(bucket: Any, big: str) -> None:
    with bucket.asked() as seen:
        found = mx.inputs_to(bucket.obstore(big), int(ms.POST[400]))
    assert len(seen) <= 15
    assert_inputs(found, 400)


def test_lazy_connectivity_from_one_bucket_to_another(bucket: Any, big: str) -> None:
    tree = mx.open_store(bucket.obstore(big), lazy=True)
    other = MemoryStore()
    parts = {str(name): node.to_dataset() for name, node in tree.children.items()}
    mx.write_store(other, **parts, shards=True)
    for compressed in ("post", "pre"):
        group = zarr.open_group(other, mode="r")[f"connectivity/by_{compressed}"]
        for name, expected in ms.buffers(compressed).items():
            np.testing.assert_array_equal(group[name][...], expected, err_msg=name)


@pytest.mark.parametrize("consolidated", [False, True])
def test_requests_of_opening_all(bucket: Any, consolidated: bool) -> None:
    name = f"all-{consolidated}"
    mx.write_store(bucket.obstore(name), **two(), consolidated=consolidated)
    with bucket.asked() as seen:
        tree = mx.open_store(bucket.obstore(name))
    keys = [one.key for one in seen]
    chunks = {key for key in keys if not key.endswith("zarr.json")}
    assert not any(one.lists for one in seen)
    assert len(tree.children) == 2
    # each chunk once
    assert len(chunks) == len([key for key in keys if not key.endswith("zarr.json")])
    metadata = [key for key in keys if key.endswith("zarr.json")]
    if consolidated:
        assert metadata == [f"{name}/zarr.json"] * 2  # the second time, whether it is the same
    else:
        assert len(metadata) <= len(chunks) + 25


def test_requests_do_not_wait_for_each_other(bucket: Any) -> None:
    mx.write_store(bucket.obstore("waiting"), **two(), consolidated=True)
    most = 0
    running: list[int] = []

    def watch(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            nonlocal most
            running.append(1)
            most = max(most, len(running))
            time.sleep(0.1)  # long enough for a busy machine to send the next ones
            try:
                return call(*args)
            finally:
                running.pop()

        return watched

    original, bucket.app = bucket.app, watch(bucket.app)
    try:
        mx.open_store(bucket.obstore("waiting"))
    finally:
        bucket.app = original
    assert most >= 4


def _objects(bucket: Any, prefix: str) -> list[bytes]:
    import s3fs

    files = s3fs.S3FileSystem(**bucket.options)
    return list(files.cat(files.ls(f"data/{prefix}")).values())


# --- other processes, and plain xarray ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["address", "obstore"])
def test_an_open_store_can_be_pickled(bucket: Any, big: str, kind: str) -> None:
    where, options = places(bucket, big)[kind]
    tree = pickle.loads(pickle.dumps(mx.open_store(where, lazy=True, **options)))
    assert_inputs(mx.inputs_to(tree, int(ms.POST[9])), 9)
    xr.testing.assert_identical(tree["units"].to_dataset().compute(), ex.units())


def test_writing_what_is_lazily_read_from_a_bucket(bucket: Any) -> None:
    address, options = "s3://data/lazy", {"storage_options": bucket.options}
    mx.write_store(address, units=ex.units(), consolidated=True, **options)
    lazy = xr.open_zarr(address, group="units", chunks={}, **options)
    with pytest.raises(mx.errors.StoreFormatError, match="lazily read from s3://data/lazy"):
        mx.write_store(address, units=lazy, **options)
    mx.write_store("memory://copy-of-lazy", units=lazy)
    xr.testing.assert_identical(
        mx.open_store("memory://copy-of-lazy")["units"].to_dataset(), ex.units()
    )
