"""Lazy connectivity: equal to what is in memory, nothing read early, and nothing read that need not be."""

from __future__ import annotations

import pickle
import shutil

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.connectivity import blocks
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.subset import recompress
from microns_xr.errors import SchemaError, StoreFormatError, UnknownLabelError
from microns_xr.store.address import CompleteStore
from microns_xr.store.lazy import StoredPairs

BOTH = ("pre_nucleus_id", "post_nucleus_id")


@pytest.fixture
def store(demo_store):
    return demo_store


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 1500)


@pytest.fixture
def reads(monkeypatch):
    """Chunks that were read, as keys of the store."""
    keys = []
    get = CompleteStore.get

    async def counted(self, key, *args, **kwargs):
        if not key.endswith("zarr.json"):
            keys.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(CompleteStore, "get", counted)
    return keys


@pytest.fixture
def spans(monkeypatch):
    """Spans of pairs that were read: (copy, array, start, stop)."""
    found = []
    read = StoredPairs.read

    def counted(self, name, start, stop):
        found.append((self.compressed, name, start, stop))
        return read(self, name, start, stop)

    monkeypatch.setattr(StoredPairs, "read", counted)
    return found


def opened(store, compressed="post", lazy=True):
    tree = mx.open_store(store, lazy=lazy, compressed=compressed)
    return tree["connectivity"].to_dataset(), tree["units"].to_dataset()


def assert_same_pairs(memory, lazy):
    """The same Dataset, whatever axis either is compressed over."""
    loaded = lazy.compute()
    names = [n for n, v in memory.data_vars.items() if v.dims == BOTH]
    plain = [d.drop_vars(names).drop_attrs() for d in (memory, loaded)]
    xr.testing.assert_identical(*plain)
    if not names:
        return
    pattern, values = pair_buffers(recompress(memory, "post"))
    other, others = pair_buffers(recompress(loaded, "post"))
    assert pattern.same_pairs(other)
    for name in names:
        np.testing.assert_array_equal(values[name], others[name])
        assert others[name].dtype == np.int64


OPERATIONS = {
    "whole": lambda c, u: c,
    "inputs_to one": lambda c, u: mx.inputs_to(c, int(u.nucleus_id[7])),
    "inputs_to some": lambda c, u: mx.inputs_to(c, u.nucleus_id.values[[3, 40, 700]]),
    "outputs_from one": lambda c, u: mx.outputs_from(c, int(u.nucleus_id[7])),
    "outputs_from some": lambda c, u: mx.outputs_from(c, u.nucleus_id.values[[3, 40, 700]]),
    "between": lambda c, u: mx.connections_between(c, u.nucleus_id[:90], u.nucleus_id[50:400]),
    "from one": lambda c, u: mx.connections_between(c, u.nucleus_id[5:6]),
    "between either": lambda c, u: mx.connections_between(
        c, u.nucleus_id[:9], u.nucleus_id[50:60], both=False
    ),
    "drop_autapses": lambda c, u: mx.drop_autapses(c),
    "select": lambda c, u: mx.select_connections(
        c, u, pre={"classification_system": "excitatory_neuron"}, post={"layer": ["L4", "L5"]}
    ),
    "select twice": lambda c, u: mx.drop_autapses(
        mx.connections_between(
            mx.select_connections(c, u, post={"layer": "L4"}), pre_ids=u.nucleus_id[100:500]
        )
    ),
    "none left": lambda c, u: mx.connections_between(c, [], []),
    "annotate": lambda c, u: mx.annotate(c, u, ["layer", "strategy_axon"]),
    "degrees": lambda c, u: mx.degrees(c),
    "degrees of some": lambda c, u: mx.degrees(mx.connections_between(c, u.nucleus_id[:90])),
    "groups": lambda c, u: mx.group_connectivity(c, u.cell_type, u.layer),
    "groups of some": lambda c, u: mx.group_connectivity(
        mx.annotate(mx.select_connections(c, u, pre={"layer": "L4"}), u, "layer"), "layer", "layer"
    ),
}


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_what_they_give_in_memory(store, name, compressed):
    lazy = OPERATIONS[name](*opened(store, compressed))
    assert_same_pairs(OPERATIONS[name](*opened(store, compressed, lazy=False)), lazy)


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_read_no_pair_before_they_are_computed(store, name, compressed, spans):
    connectivity, units = opened(store, compressed)
    units.load()
    assert len(connectivity.synapse_size.chunks[1 if compressed == "post" else 0]) > 5
    spans.clear()
    result = OPERATIONS[name](connectivity, units)
    if name.startswith(("inputs_to", "outputs_from")):
        assert spans  # the partners are the axis of the result
        return
    assert not spans
    assert result.chunks
    result.compute()
    assert bool(spans) == (name != "none left")


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize("missing", ["skip", "raise"])
@pytest.mark.parametrize("engine", ["numba", "scipy"])
def test_contraction_has_the_same_bits(store, compressed, over, missing, engine, spans):
    connectivity, units = opened(store, compressed)
    rates = units.rate_dir if missing == "skip" else units.rate_dir.fillna(0.5)
    # In memory compressed over the axis that stays, so that the order of every sum is the same.
    side = "post" if over == "pre_nucleus_id" else "pre"
    expected = mx.contract(
        opened(store, side, lazy=False)[0], rates, over, missing=missing, engine=engine
    )
    spans.clear()
    result = mx.contract(connectivity, rates, over, missing=missing, engine=engine)
    assert not spans
    assert result.chunks
    xr.testing.assert_identical(result.compute(), expected)
    assert {copy for copy, *_ in spans} == {side}
    assert {name for _, name, *_ in spans} == {"indices", "synapse_size"}


@pytest.mark.parametrize("over", BOTH)
def test_sums_over_the_cut_axis_are_added_up(store, over, monkeypatch):
    """Where there is no better copy, each block gives a part of every sum."""
    monkeypatch.setattr(StoredPairs, "other", lambda self: None)
    connectivity, units = opened(store, "pre" if over == "pre_nucleus_id" else "post")
    memory, _ = opened(store, lazy=False)
    currents = mx.contract(connectivity, units.rate_dir, over, missing="skip")
    assert not currents.chunks[0][1:]
    xr.testing.assert_allclose(
        currents.compute(), mx.contract(memory, units.rate_dir, over, missing="skip"), rtol=1e-13
    )
    again = mx.contract(connectivity, units.rate_dir, over, missing="skip")
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(again.compute(), currents.compute())


def test_the_result_of_a_single_block_is_not_changed_by_another(store, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 10**9)
    monkeypatch.setattr(StoredPairs, "other", lambda self: None)
    connectivity, units = opened(store, "pre")
    lazy = mx.input_currents(connectivity, units.rate_ori)
    first, second = dask.compute(lazy, lazy + 0)
    np.testing.assert_array_equal(first.values, second.values)
    assert connectivity.synapse_size.data.npartitions == 1


def test_values_may_be_lazy_as_well(store, spans):
    connectivity, units = opened(store)
    rates = units.rate_ori.fillna(1.0)
    expected = mx.contract(opened(store, lazy=False)[0], rates, "pre_nucleus_id")
    lazy = mx.contract(connectivity, rates.chunk(nucleus_id=100), "pre_nucleus_id")
    assert not spans
    np.testing.assert_array_equal(lazy.compute().values, expected.values)
    holes = rates.where(rates.nucleus_id != rates.nucleus_id[4])
    with pytest.raises(SchemaError, match=r"1 of .* neurons of pre_nucleus_id have no value"):
        mx.contract(connectivity, holes, "pre_nucleus_id")
    later = mx.contract(connectivity, holes.chunk(), "pre_nucleus_id")
    with pytest.raises(SchemaError, match=r"1 of .* neurons of pre_nucleus_id have no value"):
        later.compute()


def test_opening_reads_labels_and_pointers_only(store, reads):
    mx.open_store(store, lazy=True)
    names = {key.split("/c", 1)[0] for key in reads if key.startswith("connectivity")}
    scalars = {"scope", "datastack", "materialization_version"}
    assert {name.rsplit("/", 1)[1] for name in names} == {"indptr", *BOTH} | scalars
    assert not [key for key in reads if "rate_" in key or "cell_type" in key or "position" in key]


def test_a_block_is_one_read_of_each_array(store, spans):
    connectivity, _ = opened(store)
    spans.clear()
    indptr = pair_buffers(opened(store, lazy=False)[0])[0].indptr
    block = connectivity.synapse_size.data.blocks[0, 2].compute()
    edges = np.cumsum([0, *connectivity.synapse_size.chunks[1]])
    start, stop = int(indptr[edges[2]]), int(indptr[edges[3]])
    assert spans == [("post", "indices", start, stop), ("post", "synapse_size", start, stop)]
    assert block.nnz == stop - start <= 1500
    spans.clear()
    dask.compute(
        connectivity.synapse_size.data.blocks[0, 2], connectivity.synapse_count.data.blocks[0, 2]
    )
    assert [name for _, name, *_ in spans].count("indices") == 1  # shared by both variables


def test_selecting_neurons_reads_their_blocks_only(store, spans):
    connectivity, units = opened(store)
    edges = np.cumsum([0, *connectivity.synapse_size.chunks[1]])
    ids = connectivity.post_nucleus_id.values[[edges[1], edges[1] + 1, edges[4]]]
    spans.clear()
    currents = mx.input_currents(mx.connections_between(connectivity, post_ids=ids), units.rate_ori)
    currents.compute()
    assert len(spans) == 4  # two blocks, pattern and sizes


def test_partners_read_the_pairs_of_the_neuron_only(store, spans):
    tree = mx.open_store(store, lazy=True)
    memory = opened(store, lazy=False)[0]
    degrees = mx.degrees(memory)
    for function, side, degree in (
        (mx.inputs_to, "post", degrees.in_degree),
        (mx.outputs_from, "pre", degrees.out_degree),
    ):
        one = int(memory[f"{side}_nucleus_id"][int(degree.values.argmax())])
        for given_ in (tree, str(store)):
            spans.clear()
            found = function(given_, one)
            assert {copy for copy, *_ in spans} == {side}
            assert {stop - start for *_, start, stop in spans} == {int(degree.max())}
            assert sorted(name for _, name, *_ in spans) == [
                "indices",
                "synapse_count",
                "synapse_size",
            ]
            np.testing.assert_array_equal(found.synapse_size, function(memory, one).synapse_size)


@settings(max_examples=25, deadline=None)
@given(chosen=st.sets(st.integers(0, 600), max_size=30), chunk=st.sampled_from([1, 40, 10**6]))
def test_spans_of_any_neurons(store, chosen, chunk):
    from microns_xr.connectivity.spans import read_neurons

    array = opened(store)[0].synapse_size.data
    source = blocks.source_of(array, "synapse_size")
    majors = np.array(sorted(chosen), dtype=np.int64)

    class Chunked:
        indptr, shape, compressed, read = (
            source.indptr,
            source.shape,
            source.compressed,
            source.read,
        )

    Chunked.chunk = chunk
    pattern, values = read_neurons(Chunked, majors, ["synapse_size"])
    memory = opened(store, lazy=False)[0].synapse_size.data
    expected = memory.todense()[:, majors]
    rows = np.zeros_like(expected)
    owner = np.repeat(np.arange(majors.size), np.diff(pattern.indptr))
    rows[pattern.indices, owner] = values["synapse_size"]
    np.testing.assert_array_equal(rows, expected)


def test_stores_as_arguments(store):
    memory, units = opened(store, lazy=False)
    tree = mx.open_store(store, lazy=True)
    for place in (str(store), zarr.storage.LocalStore(store)):
        xr.testing.assert_identical(
            mx.input_currents(place, units.rate_ori), mx.input_currents(memory, units.rate_ori)
        )
        xr.testing.assert_identical(mx.degrees(place), mx.degrees(memory))
        xr.testing.assert_identical(
            mx.group_connectivity(place, units.layer, units.layer),
            mx.group_connectivity(memory, units.layer, units.layer),
        )
    assert mx.input_currents(tree, units.rate_ori).chunks
    assert not mx.input_currents(str(store), units.rate_ori).chunks
    eager = mx.open_store(store)
    assert not mx.degrees(eager).chunks


def test_places_that_are_no_connectivity(store, tmp_path):
    tree = mx.open_store(store, lazy=True)
    with pytest.raises(SchemaError, match=r"the tree has the groups \['units'\]"):
        mx.degrees(xr.DataTree.from_dict({"/units": tree["units"].to_dataset()}))
    with pytest.raises(StoreFormatError, match="there is no store at"):
        mx.inputs_to(tmp_path / "nothing.zarr", 1)
    with pytest.raises(UnknownLabelError, match="post_ids"):
        mx.inputs_to(store, -5)
    mx.write_store(tmp_path / "u.zarr", units=tree["units"].to_dataset())
    with pytest.raises(UnknownLabelError, match="'connectivity' is not in the store"):
        mx.degrees(tmp_path / "u.zarr")


def test_a_store_with_one_copy(store, tmp_path):
    shutil.copytree(store, tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "connectivity" / "by_pre")
    memory, units = opened(store, lazy=False)
    one = int(units.nucleus_id[7])
    np.testing.assert_array_equal(
        mx.outputs_from(tmp_path / "s.zarr", one).synapse_size,
        mx.outputs_from(memory, one).synapse_size,
    )
    expected = mx.contract(memory, units.rate_ori, "post_nucleus_id", missing="skip")
    found = mx.contract(tmp_path / "s.zarr", units.rate_ori, "post_nucleus_id", missing="skip")
    xr.testing.assert_allclose(found, expected, rtol=1e-13)


def test_a_store_that_was_replaced_is_refused(store, tmp_path):
    shutil.copytree(store, tmp_path / "s.zarr")
    connectivity, units = opened(tmp_path / "s.zarr")
    memory = opened(store, lazy=False)
    mx.write_store(tmp_path / "s.zarr", units=memory[1], connectivity=mx.drop_autapses(memory[0]))
    with pytest.raises(StoreFormatError, match=r"has been replaced .* open it again"):
        mx.degrees(connectivity).compute()
    with pytest.raises(StoreFormatError, match="replaced"):
        mx.inputs_to(connectivity, int(units.nucleus_id[7]))
    with pytest.raises(StoreFormatError, match="replaced"):
        units.rate_ori.values
    assert mx.degrees(tmp_path / "s.zarr").sizes == mx.degrees(memory[0]).sizes


@pytest.mark.parametrize("array", ["data", "indices", "indptr"])
def test_a_lost_or_damaged_chunk_is_seen(store, tmp_path, array):
    shutil.copytree(store, tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "connectivity" / "by_post" / array / "c" / "0"
    content = chunk.read_bytes()
    units = opened(store, lazy=False)[1]
    chunk.unlink()
    with pytest.raises(StoreFormatError, match=r"no chunk|chunks, expected"):
        mx.input_currents(tmp_path / "s.zarr", units.rate_ori)
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreFormatError, match="decoded"):
        mx.input_currents(tmp_path / "s.zarr", units.rate_ori)


def test_pairs_out_of_order_are_seen(store, tmp_path):
    shutil.copytree(store, tmp_path / "s.zarr")
    indices = zarr.open_array(tmp_path / "s.zarr/connectivity/by_post/indices")
    indices[10:400] = indices[10:400][::-1].copy()
    with pytest.raises(SchemaError, match="out of order"):
        mx.degrees(tmp_path / "s.zarr")


def test_it_travels(store, spans):
    connectivity, _ = opened(store)
    spans.clear()
    copy = pickle.loads(pickle.dumps(connectivity))
    assert not spans
    assert len(pickle.dumps(connectivity)) < 200_000
    xr.testing.assert_identical(mx.degrees(copy).compute(), mx.degrees(connectivity).compute())
    assert connectivity.synapse_size.data.name == opened(store)[0].synapse_size.data.name


def test_the_engine_opens_lazily(store, spans):
    tree = xr.open_datatree(store, engine="microns_xr", lazy=True)
    group = xr.open_dataset(store, engine="microns_xr", group="connectivity", lazy=True)
    assert not spans
    memory = opened(store, lazy=False)
    assert_same_pairs(memory[0], group)
    assert_same_pairs(memory[0], tree["connectivity"].to_dataset())
    xr.testing.assert_identical(tree["units"].to_dataset().compute(), memory[1])


def test_what_is_not_lazy_says_so(store):
    connectivity, _ = opened(store)
    with pytest.raises(SchemaError, match=r"synapse_size is lazy.*\.compute\(\)"):
        mx.to_table(connectivity)
    with pytest.raises(SchemaError, match="cut along both axes"):
        mx.degrees(connectivity.chunk(pre_nucleus_id=100))
    mixed = connectivity.assign(synapse_count=connectivity.synapse_count.compute())
    with pytest.raises(SchemaError, match="synapse_count is in memory while others are lazy"):
        mx.degrees(mixed)
    filtered = connectivity.assign(
        synapse_count=connectivity.synapse_count.where(connectivity.synapse_size > 900, 0)
    )
    with pytest.raises(SchemaError, match="stores other pairs"):
        mx.degrees(filtered).compute()
    assert mx.n_connections(connectivity) == mx.n_connections(opened(store, lazy=False)[0])


PLAIN = {
    "repr": lambda s: repr(s) and s[:0],
    "slice of post": lambda s: s.isel(post_nucleus_id=slice(30, 90)),
    "slice of pre": lambda s: s.isel(pre_nucleus_id=slice(30, 90)),
    "one post": lambda s: s.isel(post_nucleus_id=3),
    "labels of post": lambda s: s.sel(post_nucleus_id=s.post_nucleus_id.values[[3, 700, 20]]),
    "times": lambda s: s * 2,
    "sum": lambda s: s.sum("pre_nucleus_id"),
    "sum over all": lambda s: s.sum(),
    "larger": lambda s: s > 900,
    "dot": lambda s: xr.dot(s, _ones(s), dim="pre_nucleus_id"),
    "transpose": lambda s: s.transpose(),
    "persist": lambda s: s.persist(),
}


def _ones(array):
    return xr.DataArray(
        np.ones(array.sizes["pre_nucleus_id"]), {"pre_nucleus_id": array.pre_nucleus_id}
    )


@pytest.mark.parametrize("name", PLAIN)
def test_what_plain_xarray_does_well(store, name):
    lazy, memory = (opened(store, lazy=flag)[0].synapse_size for flag in (True, False))
    dense = memory.copy(data=memory.data.todense())
    result, expected = PLAIN[name](lazy).compute(), PLAIN[name](dense)
    data = result.data
    np.testing.assert_array_equal(getattr(data, "todense", lambda: data)(), expected.values)


def test_where_plain_xarray_traps(store, tmp_path, spans):
    """The documented traps, so that a release which mends one is noticed."""
    size = opened(store)[0].synapse_size
    spans.clear()
    with pytest.raises(RuntimeError, match="to dense"):
        size.values
    assert (size + 1).data.compute().fill_value == 1  # every pair without a synapse changed
    with pytest.raises(ValueError, match="chunk"):
        size.to_dataset().to_zarr(tmp_path / "x.zarr")


def compare_stores(found, expected):
    for compressed in ("post", "pre"):
        trees = [mx.open_store(path, compressed=compressed) for path in (found, expected)]
        for name in ("units", "connectivity"):
            parts = [tree[name].to_dataset() for tree in trees]
            names = [n for n, v in parts[0].data_vars.items() if v.dims == BOTH]
            xr.testing.assert_identical(*(part.drop_vars(names).drop_attrs() for part in parts))
        (pattern, values), (other, others) = (
            pair_buffers(tree["connectivity"].to_dataset()) for tree in trees
        )
        assert pattern.same_pairs(other)
        for key, stored in values.items():
            np.testing.assert_array_equal(stored, others[key])


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("changed", ["as it is", "without autapses", "a part"])
def test_lazy_connectivity_is_written_block_by_block(store, tmp_path, compressed, changed, spans):
    change = {
        "as it is": lambda c: c,
        "without autapses": mx.drop_autapses,
        "a part": lambda c: mx.connections_between(
            c, c.pre_nucleus_id[:400], c.post_nucleus_id[5:]
        ),
    }[changed]
    connectivity, units = opened(store, compressed)
    memory, _ = opened(store, lazy=False)
    spans.clear()
    mx.write_store(tmp_path / "a.zarr", units=units, connectivity=change(connectivity))
    assert spans
    if changed != "as it is":
        assert max(stop - start for *_, start, stop in spans) <= 1500
    mx.write_store(tmp_path / "b.zarr", units=units, connectivity=change(memory))
    compare_stores(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["a.zarr", "b.zarr"]
    assert not (tmp_path / "a.zarr" / ".spool").exists()


def _scaled(block):
    # Not block * 10**7, for which sparse forgets the pairs of size 0.
    return type(block)(
        (block.data * 10**7, block.indices, block.indptr),
        shape=block.shape,
        compressed_axes=block.compressed_axes,
    )


def test_sizes_that_need_64_bits_get_them(store, tmp_path):
    connectivity, units = opened(store)
    size = connectivity.synapse_size
    scaled = size.copy(data=size.data.map_blocks(_scaled, meta=size.data._meta))
    wide = connectivity.assign(synapse_size=scaled)
    mx.write_store(tmp_path / "a.zarr", units=units, connectivity=wide)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")["connectivity/by_pre"]
    assert (str(group["data"].dtype), str(group["synapse_count"].dtype)) == ("int64", "int32")
    total = mx.degrees(tmp_path / "a.zarr").in_size
    np.testing.assert_array_equal(total, mx.degrees(store).in_size * 10**7)


def test_a_store_is_not_written_onto_itself(store, tmp_path):
    shutil.copytree(store, tmp_path / "s.zarr")
    connectivity, units = opened(tmp_path / "s.zarr")
    units = units.load()
    for part in (connectivity, mx.drop_autapses(connectivity)):
        with pytest.raises(StoreFormatError, match="lazily read from"):
            mx.write_store(tmp_path / "s.zarr", units=units, connectivity=part)


def test_a_failing_block_leaves_nothing(store, tmp_path, monkeypatch):
    connectivity, units = opened(store)
    units = units.load()
    connectivity = mx.drop_autapses(connectivity)

    def fail(self, name, start, stop):
        raise StoreFormatError("the disk is gone")

    monkeypatch.setattr(StoredPairs, "read", fail)
    with pytest.raises(StoreFormatError, match="the disk is gone"):
        mx.write_store(tmp_path / "a.zarr", units=units, connectivity=connectivity)
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []
