"""Lazy connectivity: equal to what is in memory, nothing read early, and nothing that need not be."""

from __future__ import annotations

import pickle
from collections import Counter
from types import SimpleNamespace

import dask
import lazy_examples as lz
import numpy as np
import pytest
import sparse
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.connectivity import blocks
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.store.locate import CompleteStore
from microns_xr.store.nodes import StoredPairs

BOTH = lz.BOTH


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_PAIRS", 1500)
        yield


@pytest.fixture(scope="module")
def store(demo_store):
    return demo_store


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
    return lz.count_spans(monkeypatch)


@pytest.fixture(scope="module", params=["post", "pre"])
def compressed(request):
    return request.param


@pytest.fixture(scope="module")
def lazy(store, compressed):
    """Lazy connectivity of either copy, opened once."""
    return lz.connectivity_in(store, compressed)


@pytest.fixture(scope="module")
def by_post(store):
    return lz.connectivity_in(store)


@pytest.fixture(scope="module")
def memory(store):
    return lz.in_memory(store)


@pytest.fixture(scope="module")
def units(store):
    return lz.units_of(store)


OPERATIONS = {
    "whole": lambda c, u: c,
    "inputs_to one": lambda c, u: mx.inputs_to(c, int(u.nucleus_id[7])),
    "inputs_to some": lambda c, u: mx.inputs_to(c, u.nucleus_id.values[[700, 3, 40, 3, 41]]),
    "outputs_from one": lambda c, u: mx.outputs_from(c, int(u.nucleus_id[7])),
    "outputs_from some": lambda c, u: mx.outputs_from(c, u.nucleus_id.values[[700, 3, 40, 3, 41]]),
    "between": lambda c, u: mx.select_connections(
        c, pre=u.nucleus_id[:90], post=u.nucleus_id[50:400]
    ),
    "from one": lambda c, u: mx.select_connections(c, pre=u.nucleus_id[5:6]),
    "between either": lambda c, u: mx.select_connections(
        c, pre=u.nucleus_id[:9], post=u.nucleus_id[50:60], both=False
    ),
    "drop_autapses": lambda c, u: mx.drop_autapses(c),
    "select": lambda c, u: mx.select_connections(
        c, u, pre={"classification_system": "excitatory_neuron"}, post={"layer": ["L4", "L5"]}
    ),
    "select twice": lambda c, u: mx.drop_autapses(
        mx.select_connections(
            mx.select_connections(c, u, post={"layer": "L4"}), pre=u.nucleus_id[100:500]
        )
    ),
    "none left": lambda c, u: mx.select_connections(c, pre=[], post=[]),
    "annotate": lambda c, u: mx.annotate(c, u, ["layer", "strategy_axon"]),
    "degrees": lambda c, u: mx.degrees(c),
    "degrees of some": lambda c, u: mx.degrees(mx.select_connections(c, pre=u.nucleus_id[:90])),
    "groups": lambda c, u: mx.group_connectivity(c, {"pre": u.cell_type, "post": u.layer}),
    "groups of some": lambda c, u: mx.group_connectivity(
        mx.annotate(mx.select_connections(c, u, pre={"layer": "L4"}), u, "layer"), "layer"
    ),
}


@pytest.fixture(scope="module")
def expected(memory, units):
    """What the operations give in memory, each computed once."""
    return {name: operation(memory, units) for name, operation in OPERATIONS.items()}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_what_they_give_in_memory(lazy, units, expected, name):
    lz.assert_same_pairs(expected[name], OPERATIONS[name](lazy, units))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_read_no_pair_before_they_are_computed(lazy, units, compressed, name, spans):
    assert len(lazy.synapse_size.chunks[1 if compressed == "post" else 0]) > 5
    result = OPERATIONS[name](lazy, units)
    if name.startswith(("inputs_to", "outputs_from", "between either")):
        assert spans  # the axes of the result depend on the pairs
        return
    assert not spans
    assert result.chunks
    result.compute()
    assert bool(spans) == (name != "none left")


@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize("missing", ["skip", "raise"])
def test_contraction_has_the_same_bits(store, lazy, units, over, missing, spans):
    rates = units.rate_dir if missing == "skip" else units.rate_dir.fillna(0.5)
    # In memory compressed over the axis that stays, so that the order of every sum is the same.
    side = "post" if over == "pre_nucleus_id" else "pre"
    expected = mx.contract(lz.in_memory(store, side), rates, over, missing=missing)
    result = mx.contract(lazy, rates, over, missing=missing)
    assert not spans
    assert result.chunks
    xr.testing.assert_identical(result.compute(), expected)
    assert {copy for copy, *_ in spans} == {side}
    assert {name for _, name, *_ in spans} == {"indices", "synapse_size"}


@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize("large", [False, True])
def test_sums_over_the_cut_axis_are_added_up(store, memory, units, over, large, monkeypatch):
    """Where there is no better copy, each block gives a part of every sum."""
    monkeypatch.setattr(StoredPairs, "other", lambda self: None)
    if large:
        monkeypatch.setattr(blocks, "_LARGE", 0)
    connectivity = lz.connectivity_in(store, "pre" if over == "pre_nucleus_id" else "post")
    currents = mx.contract(connectivity, units.rate_dir, over, missing="skip")
    assert not currents.chunks[0][1:]
    expected = mx.contract(memory, units.rate_dir, over, missing="skip")
    xr.testing.assert_allclose(currents.compute(), expected, rtol=1e-13)
    again = mx.contract(connectivity, units.rate_dir, over, missing="skip")
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(again.compute(), currents.compute())


@pytest.mark.parametrize(("large", "most"), [(False, 8), (True, 2)])
def test_few_large_tables_are_held_at_a_time(by_post, memory, units, large, most, monkeypatch):
    if large:
        monkeypatch.setattr(blocks, "_LARGE", 0)
    added = []
    add = blocks._add

    def counted(*parts):
        added.append(len(parts))
        return add(*parts)

    monkeypatch.setattr(blocks, "_add", counted)
    found = mx.group_connectivity(by_post, units.layer)
    xr.testing.assert_identical(
        found.compute(scheduler="synchronous"),
        mx.group_connectivity(memory, units.layer),
    )
    assert max(added) == most


def test_the_result_of_a_single_block_is_not_changed_by_another(store, units, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 10**9)
    monkeypatch.setattr(StoredPairs, "other", lambda self: None)
    connectivity = lz.connectivity_in(store, "pre")
    lazy = mx.input_currents(connectivity, units.rate_ori)
    first, second = dask.compute(lazy, lazy + 0)
    np.testing.assert_array_equal(first.values, second.values)
    assert connectivity.synapse_size.data.npartitions == 1


def test_values_may_be_lazy_as_well(by_post, memory, units, spans):
    rates = units.rate_ori.fillna(1.0)
    expected = mx.contract(memory, rates, "pre_nucleus_id")
    lazy = mx.contract(by_post, rates.chunk(nucleus_id=100), "pre_nucleus_id")
    assert not spans
    np.testing.assert_array_equal(lazy.compute().values, expected.values)
    holes = rates.where(rates.nucleus_id != rates.nucleus_id[4])
    message = r"1 of .* neurons of pre_nucleus_id have no value"
    with pytest.raises(mx.errors.SchemaError, match=message):
        mx.contract(by_post, holes, "pre_nucleus_id")
    later = mx.contract(by_post, holes.chunk(), "pre_nucleus_id")
    with pytest.raises(mx.errors.SchemaError, match=message):
        later.compute(scheduler="synchronous")  # no thread is left that reads


def test_opening_reads_labels_and_pointers_only(store, reads):
    mx.open_store(store, lazy=True)
    names = {key.split("/c", 1)[0] for key in reads if key.startswith("connectivity")}
    scalars = {"scope", "datastack", "materialization_version"}
    assert {name.rsplit("/", 1)[1] for name in names} == {"indptr", *BOTH} | scalars
    assert not [key for key in reads if "rate_" in key or "cell_type" in key or "position" in key]


def test_a_block_is_one_read_of_each_array(by_post, memory, spans):
    indptr = pair_buffers(memory)[0].indptr
    block = by_post.synapse_size.data.blocks[0, 2].compute()
    edges = np.cumsum([0, *by_post.synapse_size.chunks[1]])
    start, stop = int(indptr[edges[2]]), int(indptr[edges[3]])
    assert spans == [("post", "indices", start, stop), ("post", "synapse_size", start, stop)]
    assert block.nnz == stop - start <= 1500
    spans.clear()
    dask.compute(by_post.synapse_size.data.blocks[0, 2], by_post.synapse_count.data.blocks[0, 2])
    assert [name for _, name, *_ in spans].count("indices") == 1  # shared by both variables


TOGETHER = {
    "both variables": lambda c, u: (c.synapse_size, c.synapse_count),
    "all": lambda c, u: (
        mx.input_currents(c, u.rate_ori),
        mx.degrees(c),
        mx.group_connectivity(c, u.layer),
    ),
    "of a part": lambda c, u: TOGETHER["all"](mx.drop_autapses(c), u),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", TOGETHER)
def test_what_is_computed_together_reads_everything_once(by_post, units, name, fused, spans):
    with dask.config.set({"optimization.fuse.active": fused}):
        dask.compute(*TOGETHER[name](by_post, units))
    found = Counter(spans)
    assert max(found.values()) == 1
    assert len(found) == 3 * by_post.synapse_size.data.npartitions


def test_selecting_neurons_reads_their_blocks_only(by_post, units, spans):
    edges = np.cumsum([0, *by_post.synapse_size.chunks[1]])
    ids = by_post.post_nucleus_id.values[[edges[1], edges[1] + 1, edges[4]]]
    currents = mx.input_currents(mx.select_connections(by_post, post=ids), units.rate_ori)
    currents.compute()
    assert len(spans) == 4  # two blocks, pattern and sizes


def test_pairs_are_counted_without_reading_them(lazy, memory, spans):
    assert mx.n_connections(lazy) == mx.n_connections(memory)
    assert not spans
    n = mx.n_connections(mx.drop_autapses(lazy))
    assert spans
    assert n == mx.n_connections(mx.drop_autapses(memory))


def test_partners_read_the_pairs_of_the_neuron_only(store, memory, spans):
    tree = mx.open_store(store, lazy=True)
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
            names = sorted(name for _, name, *_ in spans)
            assert names == ["indices", "synapse_count", "synapse_size"]
            np.testing.assert_array_equal(found.synapse_size, function(memory, one).synapse_size)


@settings(max_examples=25, deadline=None)
@given(chosen=st.sets(st.integers(0, 600), max_size=30), chunk=st.sampled_from([1, 40, 10**6]))
def test_spans_of_any_neurons(by_post, memory, chosen, chunk):
    source = blocks.source_of(by_post.synapse_size.data, "synapse_size")
    majors = np.array(sorted(chosen), dtype=np.int64)

    attributes = {n: getattr(source, n) for n in ("indptr", "shape", "compressed", "read", "dtype")}
    chunked = SimpleNamespace(**attributes, chunk=chunk)
    pattern, values = blocks.read_neurons(chunked, majors, ["synapse_size"])
    expected = _dense(memory)[:, majors]
    rows = np.zeros_like(expected)
    owner = np.repeat(np.arange(majors.size), np.diff(pattern.indptr))
    rows[pattern.indices, owner] = values["synapse_size"]
    np.testing.assert_array_equal(rows, expected)


_dense_of = {}


def _dense(memory):
    return _dense_of.setdefault("size", memory.synapse_size.data.todense())


# What a user may have done to the variables before. As it was opened is only what is still under
# the name it was opened by.
CHANGED = {
    "exchanged": lambda c: c.assign(synapse_size=c.synapse_count, synapse_count=c.synapse_size),
    "one for the other": lambda c: c.assign(synapse_size=c.synapse_count),
    "renamed": lambda c: c.assign(weight=c.synapse_size),
    "scaled": lambda c: lz.with_scaled_sizes(c, 2),
    "sliced": lambda c: c.isel(pre_nucleus_id=slice(3, 900, 7), post_nucleus_id=slice(1, None, 2)),
    "reversed twice": lambda c: c.isel(post_nucleus_id=slice(None, None, -1)).isel(
        post_nucleus_id=slice(None, None, -1)
    ),
    "in one chunk": lambda c: c.chunk(dict.fromkeys(BOTH, -1)) if c.chunks else c,
    "cut the other way": lambda c: _cut(c) if c.chunks else c,
    "as COO": lambda c: c.map(_as_coo) if c.chunks else c,
    "persisted": lambda c: c.persist(),
    "optimized": lambda c: dask.optimize(c)[0],
}
RESHAPED = ["sliced", "in one chunk", "cut the other way", "as COO"]
USES = {
    "inputs": lambda c, u, w: mx.inputs_to(c, c.post_nucleus_id.values[[20, 5]]),
    "outputs": lambda c, u, w: mx.outputs_from(c, c.pre_nucleus_id.values[[20, 5]]),
    "one": lambda c, u, w: mx.outputs_from(c, int(c.pre_nucleus_id[20])),
    "currents": lambda c, u, w: mx.input_currents(c, u.rate_ori, weight=w),
    "outgoing": lambda c, u, w: mx.contract(
        c, u.rate_ori, "post_nucleus_id", weight=w, missing="skip"
    ),
    "degrees": lambda c, u, w: mx.degrees(c),
    "groups": lambda c, u, w: mx.group_connectivity(c, u.layer),
    "pairs": lambda c, u, w: xr.DataArray(mx.n_connections(c)),
    "a part": lambda c, u, w: mx.drop_autapses(c),
}


def _cut(connectivity):
    lengths = connectivity.synapse_size.chunks
    whole = BOTH[0] if len(lengths[0]) > 1 else BOTH[1]
    return connectivity.chunk({dim: -1 if dim == whole else 100 for dim in BOTH})


def _as_coo(variable):
    if variable.dims != BOTH:
        return variable
    data = variable.data
    return variable.copy(data=data.map_blocks(lambda b: b.tocoo(), meta=data._meta.tocoo()))


@pytest.mark.parametrize(
    ("copy", "name"), [*(("post", n) for n in CHANGED), *(("pre", n) for n in RESHAPED)]
)
def test_what_was_changed_is_not_read_as_it_was(store, memory, units, copy, name):
    lazy = lz.connectivity_in(store, copy)
    here, there = (CHANGED[name](connectivity) for connectivity in (lazy, memory))
    weight = "weight" if name == "renamed" else "synapse_size"
    with dask.config.set(scheduler="synchronous"):  # threads take longer for blocks this small
        for use in USES.values():
            found, wanted = use(here, units, weight).compute(), use(there, units, weight)
            if isinstance(wanted, xr.Dataset):
                lz.assert_same_pairs(wanted, found)
            else:
                xr.testing.assert_allclose(found, wanted, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "float32", "bool"])
def test_weights_of_ones_own(by_post, memory, units, dtype):
    for over in BOTH:
        found, wanted = (
            mx.contract(
                c.assign(own=c.synapse_count.astype(dtype)),
                units.rate_ori,
                over,
                weight="own",
                missing="skip",
            ).compute()
            for c in (by_post, memory)
        )
        xr.testing.assert_allclose(found, wanted, rtol=1e-13)


def test_blocks_that_hold_no_whole_numbers_are_not_cut_to_them(by_post, units):
    """The dtype that an array promises need not be that of its blocks."""
    halves = lz.with_scaled_sizes(by_post, 0.5)
    assert halves.synapse_size.dtype == np.int64
    for function in (mx.degrees, lambda c: mx.group_connectivity(c, units.layer)):
        with pytest.raises(
            mx.errors.SchemaError, match="synapse_size is float64, expected integers"
        ):
            function(halves).compute(scheduler="synchronous")


def test_it_travels(store, by_post, spans):
    copy = pickle.loads(pickle.dumps(by_post))
    assert not spans
    assert len(pickle.dumps(by_post)) < 200_000
    xr.testing.assert_identical(mx.degrees(copy).compute(), mx.degrees(by_post).compute())
    again = lz.connectivity_in(store)
    assert by_post.synapse_size.data.name == again.synapse_size.data.name


def test_the_engine_opens_lazily(store, memory, units, spans):
    tree = xr.open_datatree(store, engine="microns_xr", lazy=True)
    group = xr.open_dataset(store, engine="microns_xr", group="connectivity", lazy=True)
    assert not spans
    lz.assert_same_pairs(memory, group)
    lz.assert_same_pairs(memory, tree["connectivity"].to_dataset())
    xr.testing.assert_identical(tree["units"].to_dataset().compute(), units)


HANDLED = {
    "pickled": lambda d: pickle.loads(pickle.dumps(d)),
    "copied": lambda d: d.copy(deep=True),
    "assigned": lambda d: d.assign(synapse_size=d.synapse_size),
    "joined": lambda d: xr.concat(
        [d.isel(post_nucleus_id=slice(0, 200)), d.isel(post_nucleus_id=slice(200, None))],
        "post_nucleus_id",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="outer",
    ),
    "loaded": lambda d: d.copy().load(),
    "apart": lambda d: xr.merge(
        [d.synapse_size.to_dataset(), d.synapse_count.to_dataset()],
        compat="override",
        join="outer",
    ),
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", HANDLED)
def test_what_the_engine_opened_is_handled_like_any_dataset(store, memory, name, cache):
    dataset = xr.open_dataset(
        store, engine="microns_xr", group="connectivity", lazy=True, cache=cache
    )
    lz.assert_same_pairs(memory, HANDLED[name](dataset))


def test_what_is_not_lazy_says_so(by_post):
    with pytest.raises(mx.errors.SchemaError, match=r"synapse_size is lazy.*\.compute\(\)"):
        mx.to_table(by_post)
    with pytest.raises(mx.errors.SchemaError, match="cut along both axes"):
        mx.degrees(by_post.chunk(pre_nucleus_id=100))
    mixed = by_post.assign(synapse_count=by_post.synapse_count.compute())
    with pytest.raises(mx.errors.SchemaError, match="synapse_count is in memory while other"):
        mx.degrees(mixed)
    count = by_post.synapse_count
    few = count.data.map_blocks(
        lambda block: sparse.GCXS(block.todense() // 2, compressed_axes=(1,)),
        meta=count.data._meta,
    )
    filtered = by_post.assign(synapse_count=count.copy(data=few))
    with pytest.raises(mx.errors.SchemaError, match="store different pairs"):
        mx.degrees(filtered).compute(scheduler="synchronous")


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
def test_what_plain_xarray_does_well(by_post, memory, name):
    dense = memory.synapse_size.copy(data=_dense(memory))
    result, expected = PLAIN[name](by_post.synapse_size).compute(), PLAIN[name](dense)
    np.testing.assert_array_equal(result.as_numpy().values, expected.values)


def test_what_would_fill_all_pairs_is_refused(by_post):
    with pytest.raises(mx.errors.SchemaError, match="without a connection a value that is not 0"):
        (by_post.synapse_size + 1).compute()
