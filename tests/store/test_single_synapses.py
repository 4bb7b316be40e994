"""Single synapses: in the store by post and by pre, selected, and summed to connectivity."""

from __future__ import annotations

import shutil
import tarfile
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import store_examples as ex
import xarray as xr
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import microns_xr as mx
from microns_xr.store import format as store_format

SMALL = 512


def write_three(path: Path) -> str:
    mx.write_store(path, units=ex.units(), connectivity=ex.connectivity(), synapses=ex.synapses())
    return str(path)


@pytest.fixture(scope="module")
def shared_three(tmp_path_factory) -> str:
    return write_three(tmp_path_factory.mktemp("stores") / "three.zarr")


@pytest.fixture
def three(tmp_path: Path, shared_three: str) -> str:
    """A store that a test may change."""
    return str(shutil.copytree(shared_three, tmp_path / "three.zarr"))


@pytest.fixture(scope="module")
def sources(shared_three: str) -> dict[str, object]:
    path = shared_three
    return {
        "memory": ex.synapses(),
        "path": path,
        "tree": mx.open_store(path),
        "lazy tree": mx.open_store(path, lazy=True),
    }


@pytest.fixture(scope="module")
def demo_synapses(demo_release, demo_fresh) -> xr.Dataset:
    return mx.build_synapses(demo_release.table("synapses"), demo_fresh["connectivity"])


@pytest.fixture(scope="module")
def in_chunks(demo_fresh, demo_synapses, tmp_path_factory) -> str:
    """A store of the synthetic release with many small chunks of synapses."""
    path = str(tmp_path_factory.mktemp("stores") / "synapses.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_format, "SYNAPSE_CHUNK", SMALL)
        mx.write_store(
            path,
            units=demo_fresh["units"],
            connectivity=demo_fresh["connectivity"],
            synapses=demo_synapses,
        )
    return path


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr("microns_xr.store.synapses.SYNAPSE_CHUNK", SMALL)


class Counting(WrapperStore):
    """Counts what is read of a store, by array."""

    def __init__(self, store, reads: Counter | None = None) -> None:
        super().__init__(store)
        self.reads = Counter() if reads is None else reads

    def with_read_only(self, read_only: bool = False) -> Counting:
        return Counting(self._store.with_read_only(read_only), self.reads)

    async def get(self, key, prototype, byte_range=None):
        if "/c" in key:
            self.reads[key.split("/c")[0]] += 1
        return await self._store.get(key, prototype, byte_range)


def counting(path: str) -> Counting:
    return Counting(LocalStore(path, read_only=True))


def table(synapses: xr.Dataset) -> pd.DataFrame:
    """Synapses as a plain table, a row each, with the ids of their neurons."""
    pre, post = (synapses[f"{side}_nucleus_id"].values for side in ("pre", "post"))
    frame = {"id": synapses.synapse_id.values, "pre": pre, "post": post, "size": synapses["size"]}
    frame |= {axis: synapses.position.values[:, i] for i, axis in enumerate("xyz")}
    return pd.DataFrame(frame)


def assert_same_sums(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert found.indexes["pre_nucleus_id"].equals(expected.indexes["pre_nucleus_id"])
    assert found.indexes["post_nucleus_id"].equals(expected.indexes["post_nucleus_id"])
    for name in ("synapse_size", "synapse_count"):
        sums = found[name].data
        assert (sums.dtype, sums.compressed_axes) == (np.int64, (1,))
        assert sums.nnz == expected[name].data.nnz
        np.testing.assert_array_equal(sums.todense(), expected[name].data.todense())


# --- three synapses by hand: 12 -> 11, 11 -> 13, 12 -> 13

BY_HAND = [
    (dict(post=13), [8, 7]),
    (dict(post=[13, 11]), [9, 8, 7]),
    (dict(post=[11, 15]), [9]),
    (dict(pre=12), [9, 7]),
    (dict(pre=12, post=13), [7]),
    (dict(pre=11, post=11), []),
    (dict(box={"x": (0, 3)}), [9]),
    (dict(box={"x": (0, 3.1), "z": (5, 6)}), [8]),
    (dict(box={"y": (-np.inf, np.inf)}), [9, 8, 7]),
    (dict(pre=12, box={"y": (4, 100)}), [7]),
    (dict(pre=[]), []),
]


@pytest.mark.parametrize(("asked", "ids"), BY_HAND)
@pytest.mark.parametrize("kind", ["memory", "path", "tree", "lazy tree"])
def test_by_hand(sources, asked, ids, kind) -> None:
    found = mx.select_synapses(sources[kind], **asked)
    assert found.synapse_id.values.tolist() == ids
    rows = {9: (12, 11, 30), 8: (11, 13, 700), 7: (12, 13, 0)}
    assert found.pre_nucleus_id.values.tolist() == [rows[i][0] for i in ids]
    assert found.post_nucleus_id.values.tolist() == [rows[i][1] for i in ids]
    assert found["size"].values.tolist() == [rows[i][2] for i in ids]
    assert found.pre_nucleus_id.dims == ("synapse",)
    assert found.pre_nucleus_id.dtype == found.synapse_id.dtype == np.int64
    assert found.position.dims == ("synapse", "axis")
    assert found.position.shape == (len(ids), 3)
    assert "pre_index" not in found
    assert mx.releases.stamp_release(found, "a", 1).materialization_version == 1
    assert found.materialization_version == 661


def test_sums_by_hand(three: str) -> None:
    expected = ex.sparse_dataset(
        np.array([[0, 700, 0], [30, 0, 0], [0, 0, 0]]), np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0]])
    )
    # Without connectivity nothing says that 13 was asked for, or that nothing enters 15.
    alone = mx.sum_synapses(ex.synapses())
    assert alone.scope.item() == "unknown"
    assert_same_sums(alone, expected.isel(pre_nucleus_id=[0, 1], post_nucleus_id=[0, 1]))
    for found in (
        mx.sum_synapses(ex.synapses(), ex.connectivity("pre")),
        mx.sum_synapses(three),
        mx.sum_synapses(mx.open_store(three, lazy=True)),
    ):
        assert_same_sums(found, expected)
    found = mx.sum_synapses(three)
    assert found.scope.item() == "unknown"  # the connectivity of the example has more synapses
    assert found.pre_cell_type.values.tolist() == ["23P", "5P-ET", "Übergang-µ"]


def test_sums_need_whole_sizes() -> None:
    synapses = ex.synapses()
    large = synapses["size"] > 30
    kept = mx.sum_synapses(synapses.where(large, drop=True))  # floats, but whole
    assert kept.synapse_size.dtype == np.int64
    assert kept.synapse_size.data.sum() == int(synapses["size"].values[large.values].sum())
    for wrong in (synapses.where(large), synapses.assign(size=synapses["size"] / 7)):
        with pytest.raises(mx.errors.SchemaError, match="size holds NaN or fractions"):
            mx.sum_synapses(wrong)


def test_sums_of_some_synapses_know_no_zeros(three: str) -> None:
    """11 -> 13 and 12 -> 13 have synapses outside of the box, 12 -> 11 has one in it."""
    requested = xr.Variable((), np.array("requested", dtype=object))
    whole = mx.sum_synapses(three).assign_coords(scope=requested)
    box = mx.select_synapses(three, box={"x": (0, 3)})
    found = mx.sum_synapses(box, whole)
    assert found.scope.item() == "unknown"
    assert whole.scope.item() == "requested"
    assert found.attrs["history"][-1] == "sum_synapses: 1, not all synapses of the connectivity"
    expected = np.zeros((3, 3), dtype=int)
    expected[1, 0] = 30
    assert_same_sums(found, ex.sparse_dataset(expected, (expected > 0).astype(int)))
    # A partner has the value 2: its synapse onto 11 weighs 30; of those onto 13 and 15 the box
    # holds none, but there may be others.
    values = xr.DataArray([2.0] * 3, {"pre_nucleus_id": whole.pre_nucleus_id.values})
    np.testing.assert_array_equal(
        mx.contract(found, values, over="pre_nucleus_id"), [60, np.nan, np.nan]
    )
    stated = found.assign_coords(scope=whole.scope)
    np.testing.assert_array_equal(mx.contract(stated, values, over="pre_nucleus_id"), [60, 0, 0])
    assert mx.group_connectivity(found, ex.units().cell_type).n_post.sum() == 1
    assert mx.to_networkx(found).number_of_nodes() == 2

    # The same for a choice of neurons, of other synapses, in a tree, or without counts.
    chosen = mx.select_synapses(three, pre=12)
    for some in (chosen, ex.synapses().isel(synapse=[0, 2])):
        for axes in (whole, whole.drop_vars("synapse_count"), whole.chunk()):
            assert mx.sum_synapses(some, axes).scope.item() == "unknown"
    # One of the two synapses of 11 -> 13 is missing, though no pair and no voxel is.
    two = mx.select_connections(ex.connectivity().assign_coords(scope=requested), post=[11, 13])
    assert two.synapse_count.sel(pre_nucleus_id=11, post_nucleus_id=13) == 2
    assert mx.sum_synapses(ex.synapses(), two).scope.item() == "unknown"
    tree = mx.open_store(three)
    tree["synapses"] = xr.DataTree(box)
    assert mx.sum_synapses(tree).scope.item() == "unknown"
    part = Path(three).with_name("part.zarr")
    mx.write_store(part, units=ex.units(), connectivity=whole, synapses=box)
    for store in (part, mx.open_store(part, lazy=True)):
        assert mx.sum_synapses(store).scope.item() == "unknown"
    # All synapses of the pairs of 12 are all of that connectivity.
    of_12 = mx.select_connections(whole, pre=[12])
    assert mx.sum_synapses(chosen, of_12).scope.item() == "requested"
    assert mx.sum_synapses(ex.synapses(), mx.drop_autapses(whole)).scope.item() == "requested"


# --- the synthetic release


def test_every_source_gives_the_same(in_chunks: str, demo_synapses, small_pieces) -> None:
    busiest = {
        side: demo_synapses[f"{side}_nucleus_id"].to_series().value_counts().index.values[4::-1]
        for side in ("pre", "post")
    }
    slabs = np.quantile(demo_synapses.position.values, [0.2, 0.25, 0.9], axis=0)
    box = {"y": tuple(slabs[:2, 1])}
    wide = {axis: (slabs[0, i], slabs[2, i]) for i, axis in enumerate("xyz")}
    queries = [
        dict(post=busiest["post"][-1]),
        dict(pre=busiest["pre"][-1]),
        dict(pre=busiest["pre"]),
        dict(post=np.unique(demo_synapses.post_nucleus_id)[::-2], pre=busiest["pre"]),
        dict(post=np.unique(demo_synapses.post_nucleus_id)[::3]),
        dict(box=box),
        dict(box=wide, pre=busiest["pre"]),
    ]
    whole = table(demo_synapses)
    sources = [in_chunks, mx.open_store(in_chunks), mx.open_store(in_chunks, lazy=True)]
    for asked in queries:
        expected = whole
        for side in ("pre", "post"):
            if side in asked:
                expected = expected[expected[side].isin(np.atleast_1d(asked[side]))]
        for axis, (low, high) in asked.get("box", {}).items():
            expected = expected[(expected[axis] >= low) & (expected[axis] < high)]
        found = mx.select_synapses(demo_synapses, **asked)
        assert len(expected) > 3
        pd.testing.assert_frame_equal(table(found), expected.reset_index(drop=True))
        for source in sources:
            xr.testing.assert_identical(mx.select_synapses(source, **asked), found)
        for key in set(asked) & {"pre", "post"}:  # a selection is selected from again
            again = mx.select_synapses(found, **{key: found[f"{key}_nucleus_id"].values[:1]})
            first = found[f"{key}_nucleus_id"].values[0]
            assert again.sizes["synapse"] == (found[f"{key}_nucleus_id"] == first).sum()


def test_boxes_side_by_side_share_nothing(demo_synapses) -> None:
    edges = np.quantile(demo_synapses.position.values[:, 0], [0, 0.3, 0.31, 0.8, 1])
    edges[-1] = np.inf
    parts = [
        mx.select_synapses(demo_synapses, box={"x": (low, high)}).synapse_id.values
        for low, high in pairwise(edges)
    ]
    assert sorted(np.concatenate(parts)) == sorted(demo_synapses.synapse_id.values)


def test_sum_is_the_connectivity_they_were_labelled_by(
    in_chunks: str, demo_synapses, demo_fresh, small_pieces
) -> None:
    connectivity = demo_fresh["connectivity"]
    for found in (
        mx.sum_synapses(demo_synapses, connectivity),
        mx.sum_synapses(in_chunks),
        mx.sum_synapses(mx.open_store(in_chunks, lazy=True)),
        mx.sum_synapses(demo_synapses.isel(synapse=slice(None, None, -1)), connectivity),
    ):
        assert_same_sums(found, connectivity)
        assert set(found.coords) == set(connectivity.coords)
        assert found.scope.item() == connectivity.scope.item()
        assert found.synapse_size.attrs == connectivity.synapse_size.attrs
    mx.write_store(Path(in_chunks).with_name("summed.zarr"), units=demo_fresh["units"],
                   connectivity=mx.sum_synapses(in_chunks), synapses=demo_synapses)  # fmt: skip


def test_what_is_dropped_is_the_difference(demo_synapses, demo_fresh) -> None:
    connectivity = demo_fresh["connectivity"]
    dropped = np.random.default_rng(1).random(demo_synapses.sizes["synapse"]) < 0.1
    less = mx.sum_synapses(demo_synapses.isel(synapse=~dropped), connectivity)
    rest = table(demo_synapses.isel(synapse=dropped)).groupby(["pre", "post"])["size"]
    for name, expected in (("synapse_size", rest.sum()), ("synapse_count", rest.size())):
        difference = connectivity[name].data.todense() - less[name].data.todense()
        pre, post = np.nonzero(difference)
        found = pd.Series(
            difference[pre, post],
            [connectivity.pre_nucleus_id.values[pre], connectivity.post_nucleus_id.values[post]],
        )
        expected = expected[expected != 0].astype(np.int64)
        assert found.to_dict() == expected.to_dict()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stores") / "any.zarr"


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(10, 13), st.integers(20, 22), st.integers(0, 2**31 + 5)),
        min_size=1,
        max_size=30,
    ),
    shuffled=st.randoms(use_true_random=False),
    pre=st.none() | st.sets(st.integers(10, 13), min_size=1),
    post=st.none() | st.sets(st.integers(20, 22), min_size=1),
)
def test_against_pandas(rows, shuffled, pre, post, scratch: Path) -> None:
    """In any order of rows and axes, in memory, in two parts, and through a store."""
    plain = pd.DataFrame(rows, columns=["pre", "post", "size"], dtype=np.int64)
    for side, ids in (("pre", pre), ("post", post)):
        assume(ids is None or plain[side].isin(ids).any())
    plain["id"] = np.array(shuffled.sample(range(1000), len(plain)), dtype=np.int64)
    synapses = xr.Dataset(
        {"size": ("synapse", plain["size"])},
        {
            "synapse_id": ("synapse", plain["id"]),
            "pre_nucleus_id": ("synapse", plain["pre"]),
            "post_nucleus_id": ("synapse", plain["post"]),
        },
    )
    synapses = mx.releases.stamp_release(synapses, "minnie65_public", 1718)
    order = shuffled.sample(range(len(plain)), len(plain))
    sums = plain.groupby(["pre", "post"])["size"].agg(["sum", "size"])
    summed = mx.sum_synapses(synapses.isel(synapse=order))
    assert summed.synapse_count.data.nnz == len(sums)
    wide = sums.unstack(fill_value=0)
    for name, column in (("synapse_size", "sum"), ("synapse_count", "size")):
        expected = wide[column].to_numpy() if len(sums) else np.zeros((0, 0))
        np.testing.assert_array_equal(summed[name].data.todense(), expected)
    axes = dict(pre_nucleus_id=shuffled.sample(range(9, 15), 6), post_nucleus_id=[22, 20, 21])
    empty = ex.sparse_dataset(*[np.zeros((6, 3), dtype=int)] * 2, *axes.values())
    on_axes = mx.sum_synapses(synapses, mx.releases.stamp_release(empty, "minnie65_public", 1718))
    pd.testing.assert_frame_equal(mx.to_table(on_axes), mx.to_table(summed))
    mx.write_store(scratch, overwrite=True, units=ex.units().drop_vars(["datastack", "materialization_version"]),
                   connectivity=on_axes, synapses=synapses.isel(synapse=order))  # fmt: skip
    sources = [synapses.isel(synapse=order), scratch, mx.open_store(scratch, lazy=True)]
    sources += [mx.open_store(scratch)["synapses"].to_dataset().isel(synapse=order)]
    parts = [synapses.isel(synapse=part) for part in (slice(3, None), slice(3))]
    sources.append(xr.concat(parts, "synapse"))
    for side in ("pre", "post"):
        sources.append(synapses.sortby(f"{side}_nucleus_id", ascending=False))
    right = plain.sort_values(["post", "pre", "id"])
    for side, ids in (("pre", pre), ("post", post)):
        right = right if ids is None else right[right[side].isin(ids)]
    for source in sources:
        assert mx.sum_synapses(source).synapse_size.data.data.sum() == plain["size"].sum()
        if pre is None and post is None:
            continue
        found = mx.select_synapses(source, pre=pre, post=post)
        assert found.synapse_id.values.tolist() == right["id"].tolist()
        assert found["size"].values.tolist() == right["size"].tolist()


def test_repeated_synapses(demo_synapses, demo_fresh, tmp_path) -> None:
    """Parts that overlap would count twice."""
    boxes = [{"y": (0, 300)}, {"y": (200, 400)}]
    parts = [mx.select_synapses(demo_synapses, box=box) for box in boxes]
    both = xr.concat(parts, "synapse", combine_attrs="drop_conflicts")
    neuron = mx.select_synapses(demo_synapses, box={"y": (250, 260)}).pre_nucleus_id.values[0]
    for call in (
        lambda: mx.sum_synapses(both),
        lambda: mx.select_synapses(both, pre=neuron),
        lambda: mx.write_store(tmp_path / "s.zarr", **demo_fresh, synapses=both),
    ):
        with pytest.raises(mx.errors.SchemaError, match=r"synapse_id .* repeats .* overlap"):
            call()
    assert not (tmp_path / "s.zarr").exists()
    once = both.isel(synapse=np.unique(both.synapse_id, return_index=True)[1])
    whole = mx.select_synapses(demo_synapses, box={"y": (0, 400)})
    assert_same_sums(mx.sum_synapses(once), mx.sum_synapses(whole))


# --- what is read


def test_one_neuron_is_one_read_of_each_array(in_chunks: str, demo_synapses, small_pieces) -> None:
    for side, group in (("post", "synapses"), ("pre", "synapses/by_pre")):
        ids = np.sort(demo_synapses[f"{side}_nucleus_id"].values)
        unique, starts, counts = np.unique(ids, return_index=True, return_counts=True)
        position = int(np.flatnonzero((counts > 5) & (counts <= 20))[3])
        start = int(starts[position])
        chunks = (start + counts[position] - 1) // SMALL - start // SMALL + 1
        store = counting(in_chunks)
        found = mx.select_synapses(store, **{side: int(unique[position])})
        assert found.sizes["synapse"] == counts[position]
        over = {"synapse_id", "pre_index", "post_index", "size", "position"}
        assert {name.rpartition("/")[2] for name in store.reads} - over == {
            f"{side}_indptr", "axis", "pre_nucleus_id", "post_nucleus_id", "pre_pt_root_id",
            "post_pt_root_id", "datastack", "materialization_version",
        }  # fmt: skip
        assert {n for n in store.reads if n.rpartition("/")[2] in over} == {
            f"{group}/{name}" for name in over
        }
        assert {store.reads[f"{group}/{name}"] for name in over} == {chunks}
        # Opened once, the next neuron costs its rows and the pointer alone.
        store = counting(in_chunks)
        tree = mx.open_store(store, lazy=True)
        assert not {n for n in store.reads if n.rpartition("/")[2] in over}
        store.reads.clear()
        xr.testing.assert_identical(
            mx.select_synapses(tree, **{side: found[f"{side}_nucleus_id"].values[:1]}), found
        )
        assert sum(store.reads.values()) == 5 * chunks + 1 + 2  # the root ids of both axes


def test_many_neurons_read_no_chunk_twice(in_chunks: str, demo_synapses, small_pieces) -> None:
    store = counting(in_chunks)
    ids = np.unique(demo_synapses.post_nucleus_id)[::2]
    found = mx.select_synapses(store, post=ids)
    n_chunks = -(-demo_synapses.sizes["synapse"] // SMALL)
    assert found.sizes["synapse"] > demo_synapses.sizes["synapse"] / 4
    assert store.reads["synapses/post_index"] <= n_chunks + 2
    assert store.reads["synapses/size"] <= n_chunks + 2


def test_a_box_reads_the_rest_only_where_there_are_hits(
    in_chunks: str, demo_synapses, small_pieces
) -> None:
    n_chunks = -(-demo_synapses.sizes["synapse"] // SMALL)
    target = demo_synapses.position.values[1000]
    box = {axis: (value - 1e-6, value + 1e-6) for axis, value in zip("xyz", target, strict=True)}
    store = counting(in_chunks)
    found = mx.select_synapses(store, box=box)
    assert found.synapse_id.values.tolist() == [demo_synapses.synapse_id.values[1000]]
    assert store.reads["synapses/position"] == n_chunks > 20
    for name in ("synapse_id", "size", "pre_index", "post_index"):
        assert store.reads[f"synapses/{name}"] == 1


def test_the_sum_reads_three_arrays(in_chunks: str, demo_synapses, small_pieces) -> None:
    store = counting(in_chunks)
    mx.sum_synapses(store)
    n_chunks = -(-demo_synapses.sizes["synapse"] // SMALL)
    for name in ("size", "pre_index", "post_index"):
        assert store.reads[f"synapses/{name}"] == n_chunks
    assert not store.reads["synapses/position"]
    assert not store.reads["synapses/synapse_id"]
    assert not store.reads["connectivity/by_post/data"]


# --- layout


def test_the_copy_by_pre_has_the_same_rows(in_chunks: str, demo_synapses) -> None:
    root = zarr.open_group(in_chunks, mode="r")
    post, pre = root["synapses"], root["synapses/by_pre"]
    assert post["size"].chunks == pre["size"].chunks == (SMALL,)
    assert post["position"].chunks == (SMALL, 3)
    order = np.lexsort([pre["synapse_id"][:], pre["post_index"][:], pre["pre_index"][:]])
    assert (np.diff(order) == 1).all()
    names = ("synapse_id", "pre_index", "post_index", "size", "position")
    of_post, of_pre = (np.argsort(group["synapse_id"][:]) for group in (post, pre))
    for name in names:
        np.testing.assert_array_equal(post[name][:][of_post], pre[name][:][of_pre])
        side = name.removesuffix("_index")
        axis = f"{side}_nucleus_id"
        stored = post[name][:] if side == name else post[axis][:][post[name][:]]
        np.testing.assert_array_equal(stored, demo_synapses[name if side == name else axis])
    for group, name in ((post, "post"), (pre, "pre")):
        indptr = group[f"{name}_indptr"]
        assert indptr.dtype == np.int64
        assert indptr.metadata.dimension_names == (f"{name}_pointer",)
        owner = np.repeat(np.arange(indptr.size - 1), np.diff(indptr[:]))
        np.testing.assert_array_equal(owner, group[f"{name}_index"][:])
    reopened = mx.open_store(in_chunks)["synapses"].to_dataset()
    xr.testing.assert_identical(reopened, demo_synapses)


def test_default_chunks(three: str, monkeypatch) -> None:
    n = store_format.SYNAPSE_CHUNK + 5
    many = (
        ex.synapses()
        .isel(synapse=np.repeat(0, n))
        .assign_coords(synapse_id=("synapse", np.arange(n)))
    )
    ex.write(three, synapses=many)
    root = zarr.open_group(three, mode="r")
    assert root["synapses/by_pre/position"].chunks == (2**17, 3)
    assert root["synapses/size"].nchunks == 2
    assert mx.select_synapses(three, pre=12, post=11).sizes["synapse"] == n


@pytest.mark.parametrize("group", ["synapses", "synapses/by_pre"])
def test_plain_readers(three: str, group: str) -> None:
    found = xr.open_zarr(three, group=group, consolidated=False)
    assert sorted(found["size"].values.tolist()) == [0, 30, 700]
    pointer = "post_indptr" if group == "synapses" else "pre_indptr"
    assert found[pointer].values.tolist() == [0, 1, 3, 3]
    assert found.pre_nucleus_id.values.tolist() == ex.PRE.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tree = xr.open_datatree(three, engine="zarr")
    assert tree[group].to_dataset().sizes["synapse"] == 3
    ours = xr.open_dataset(three, engine="microns_xr", group=group)
    assert pointer not in ours
    assert ours.sizes == ex.synapses().sizes
    ids = [12, 11, 12] if group == "synapses" else [11, 12, 12]
    assert ours["pre_nucleus_id"].values.tolist() == ids


def test_a_store_without_pointers_and_second_copy(tmp_path: Path) -> None:
    """It has neither pointers, nor the copy by pre, nor axes among the synapses."""
    archive = Path(__file__).parent / "data" / "stores" / "v1" / "three_neurons.tar.xz"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    path = next(tmp_path.glob("**/synapses")).parent
    assert not (path / "synapses" / "by_pre").exists()
    for source in (path, mx.open_store(path), mx.open_store(path, lazy=True)):
        for asked, ids in BY_HAND:
            assert mx.select_synapses(source, **asked).synapse_id.values.tolist() == ids
        assert mx.sum_synapses(source).synapse_count.data.data.tolist() == [1, 1, 1]
    for lazy in (False, True):
        found = mx.open_store(path, lazy=lazy)["synapses"].to_dataset()
        xr.testing.assert_equal(found, ex.synapses())


# --- refusals


def test_unknown_neurons(three: str) -> None:
    for source in (ex.synapses(), three, mx.open_store(three), mx.open_store(three, lazy=True)):
        found = mx.select_synapses(source, pre=[12, 99])
        assert found.synapse_id.values.tolist() == [9, 7]
        assert found.attrs["history"][-1].endswith("2 of 3, 1 of 2 ids of pre are not known")
        with pytest.raises(mx.errors.UnknownLabelError, match="none of the 1 ids of post"):
            mx.select_synapses(source, post=12)  # 12 is on the other axis only
    # The axes of a store also have the neurons without synapses.
    for source in (three, mx.open_store(three), mx.open_store(three, lazy=True)):
        assert mx.select_synapses(source, post=15).sizes["synapse"] == 0
    with pytest.raises(mx.errors.UnknownLabelError, match="none of the 1 ids of post"):
        mx.select_synapses(ex.synapses(), post=15)
    other = mx.releases.stamp_release(ex.units(), "minnie65_public", 1300)
    with pytest.raises(mx.errors.ReleaseMismatchError):
        mx.select_synapses(three, pre=other)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "no selection was passed"),
        ({"box": {}}, "expected bounds"),
        ({"box": {"depth": (0, 1)}}, "depth"),
        ({"box": [(0, 1)]}, "expected bounds"),
        ({"box": {"x": (1, 0)}}, "ascending"),
        ({"box": {"x": (0, np.nan)}}, "ascending"),
        ({"box": {"x": 3}}, "ascending"),
        ({"box": {"x": (1, 2, 3)}}, "ascending"),
        ({"pre": 12.5}, "pre"),
        ({"pre": "12"}, "pre"),
    ],
)
def test_invalid_requests_are_refused(asked, message) -> None:
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.select_synapses(ex.synapses(), **asked)


def test_synapses_that_lack_something(three: str) -> None:
    with pytest.raises(mx.errors.SchemaError, match="no post_nucleus_id"):
        mx.select_synapses(ex.synapses().drop_vars("post_nucleus_id"), pre=12)
    raw = xr.open_zarr(three, group="synapses", consolidated=False)
    with pytest.raises(mx.errors.SchemaError, match="no pre_nucleus_id over synapse"):
        mx.sum_synapses(raw)
    with pytest.raises(mx.errors.SchemaError, match="positions on axes"):
        mx.write_store(three, units=ex.units(), connectivity=ex.connectivity(), synapses=raw)
    with pytest.raises(mx.errors.SchemaError, match="positions=True"):
        mx.select_synapses(ex.synapses().drop_vars("position"), box={"x": (0, 1)})
    with pytest.raises(mx.errors.SchemaError, match="no size"):
        mx.sum_synapses(ex.synapses().drop_vars("size"))
    with pytest.raises(mx.errors.SchemaError, match="'synapse'"):
        mx.select_synapses(ex.units(), pre=12)
    floats = ex.synapses().pre_nucleus_id.astype(float)
    with pytest.raises(mx.errors.SchemaError, match="float64"):
        mx.select_synapses(ex.synapses().assign_coords(pre_nucleus_id=floats), pre=12)
    without = mx.open_store(three).drop_nodes("synapses")
    with pytest.raises(mx.errors.UnknownLabelError, match="no single synapses"):
        mx.select_synapses(without, pre=12)
    ex.write(three, synapses=None)
    with pytest.raises(mx.errors.UnknownLabelError, match="synapses"):
        mx.select_synapses(three, pre=12)
    with pytest.raises(mx.errors.StoreFormatError, match="no store"):
        mx.select_synapses("no/such/store.zarr", pre=12)


def test_sums_refuse_other_neurons_and_other_releases() -> None:
    connectivity = ex.connectivity()
    smaller = mx.select_connections(connectivity, post=[11, 15])
    with pytest.raises(
        mx.errors.UnknownLabelError, match=r"ids of post of the synapses .* such as 13"
    ):
        mx.sum_synapses(ex.synapses(), smaller)
    part = mx.select_synapses(ex.synapses(), post=[11, 15])
    assert_same_sums(mx.sum_synapses(part, smaller), ex.sparse_dataset(
        np.array([[0, 0], [30, 0], [0, 0]]), np.array([[0, 0], [1, 0], [0, 0]]),
        post=np.array([11, 15])))  # fmt: skip
    other = mx.releases.stamp_release(connectivity, "minnie65_public", 1300)
    tree = xr.DataTree.from_dict({"synapses": ex.synapses(), "connectivity": other})
    for arguments in ((ex.synapses(), other), (tree,)):
        with pytest.raises(mx.errors.ReleaseMismatchError):
            mx.sum_synapses(*arguments)
    tree["connectivity"] = connectivity.isel(post_nucleus_id=slice(None, None, -1)).drop_vars(
        "scope"
    )
    summed = mx.sum_synapses(tree)
    assert_same_sums(summed, mx.sum_synapses(ex.synapses(), connectivity))
    assert summed.scope.item() == "unknown"
    unstated = connectivity.drop_vars(["datastack", "materialization_version"])
    assert mx.sum_synapses(ex.synapses(), unstated).materialization_version == 661


@pytest.mark.parametrize(
    ("damage", "asked", "message"),
    [
        ("size/c/0", dict(post=13), "size"),
        ("by_pre/size/c/0", dict(pre=12), "size"),
        ("by_pre/size/zarr.json", dict(pre=12), "size"),
        ("position/c/0/0", dict(box={"x": (0, 1)}), "position"),
        ("post_indptr/c/0", dict(post=13), "post_indptr"),
        (("post_indptr", [0, 1, 2, 2]), dict(post=13), "post_indptr"),
        (("post_indptr", [0, 2, 3, 3]), dict(post=11), "1 of the 2 rows"),
        (("pre_index", [1, 0, 3]), dict(post=13), "pre_index runs from 0"),
    ],
)
def test_damage_is_seen(three: str, damage, asked, message) -> None:
    """An object that is lost, or an array that holds other values."""
    if isinstance(damage, str):
        Path(three, "synapses", damage).unlink()
    else:
        name, values = damage
        ex.as_early_store(three)
        zarr.open_group(three, mode="a")[f"synapses/{name}"][:] = np.array(values)
    with pytest.raises(mx.errors.StoreFormatError, match=message):
        mx.select_synapses(three, **asked)


@pytest.mark.parametrize("synapses", [ex.synapses, lambda: None])
def test_a_store_that_was_replaced_is_refused(three: str, synapses) -> None:
    tree = mx.open_store(three, lazy=True)
    ex.write(three, synapses=synapses())
    with pytest.raises(mx.errors.StoreFormatError, match=r"replaced.* open it again"):
        mx.select_synapses(tree, post=13)


def test_parts_of_a_lazy_tree_are_parts(three: str) -> None:
    tree = mx.open_store(three, lazy=True)
    part = tree["synapses"].to_dataset().isel(synapse=[0, 2])
    assert mx.select_synapses(part, post=[11, 13]).synapse_id.values.tolist() == [9, 7]
    swapped = tree["synapses"].to_dataset().isel(synapse=[2, 1, 0])
    tree["synapses"] = xr.DataTree(swapped)
    assert mx.select_synapses(tree, post=11).synapse_id.values.tolist() == [9]


def test_object_store_in_shards(demo_fresh, demo_synapses) -> None:
    """Shards are read in part, and a missing one is seen."""
    n = demo_synapses.sizes["synapse"]
    many = demo_synapses.isel(synapse=np.repeat(np.arange(n), 4))
    many = many.assign_coords(synapse_id=("synapse", np.arange(4 * n)))
    store = MemoryStore()
    parts = {name: demo_fresh[name] for name in ("units", "connectivity")}
    mx.write_store(store, **parts, synapses=many, shards=True, consolidated=True)
    sizes = zarr.open_group(store, mode="r")["synapses/by_pre/size"]
    assert sizes.chunks == (2**16,)
    assert sizes.nchunks > 1
    assert sizes.shards[0] >= sizes.size
    neuron = many.pre_nucleus_id.to_series().value_counts().index[0]
    found = mx.select_synapses(store, pre=neuron)
    xr.testing.assert_identical(found, mx.select_synapses(many, pre=neuron))
    assert found.sizes["synapse"] > 100
    zarr.core.sync.sync(store.delete("synapses/by_pre/position/c/0/0"))
    with pytest.raises(mx.errors.StoreFormatError, match="position"):
        mx.select_synapses(store, pre=neuron)
