"""Stores that are read lazily: as arguments, replaced, damaged, in buckets, and written from."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys

import dask
import lazy_examples as lz
import matrices
import matrix_stores as ms
import numpy as np
import pytest
import store_examples as ex
import xarray as xr
import zarr
from zarr.storage import MemoryStore

import microns_xr as mx
from microns_xr.connectivity import blocks
from microns_xr.store import nodes
from microns_xr.store.nodes import StoredPairs


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_PAIRS", 1500)
        yield


@pytest.fixture
def spans(monkeypatch):
    """Spans of pairs that were read: (copy, array, start, stop)."""
    return lz.count_spans(monkeypatch)


@pytest.fixture(scope="module")
def units(demo_store):
    return lz.units_of(demo_store)


@pytest.fixture(scope="module")
def few_units():
    """Three units of the same release, so that stores are written fast."""
    return mx.releases.stamp_release(ex.units(), "minnie65_demo", 1718)


@pytest.fixture(scope="module")
def slim(demo_store, few_units, tmp_path_factory):
    """A store of the same pairs and of few other variables."""
    path = tmp_path_factory.mktemp("slim") / "s.zarr"
    pairs = lz.in_memory(demo_store)
    annotations = [n for n, c in pairs.coords.items() if c.dims and n not in lz.BOTH]
    mx.write_store(path, units=few_units, connectivity=pairs.drop_vars(annotations))
    return path


@pytest.fixture(scope="module")
def memory(slim):
    return lz.in_memory(slim)


@pytest.fixture
def copied(slim, tmp_path):
    """A copy of it that a test may do anything to."""
    shutil.copytree(slim, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


# --- as arguments ------------------------------------------------------------------------------------


def test_stores_as_arguments(demo_store, units):
    memory = lz.in_memory(demo_store)
    tree = mx.open_store(demo_store, lazy=True)
    for place in (str(demo_store), zarr.storage.LocalStore(demo_store)):
        xr.testing.assert_identical(
            mx.input_currents(place, units.rate_ori), mx.input_currents(memory, units.rate_ori)
        )
        xr.testing.assert_identical(mx.degrees(place), mx.degrees(memory))
        xr.testing.assert_identical(
            mx.group_connectivity(place, units.layer),
            mx.group_connectivity(memory, units.layer),
        )
    xr.testing.assert_identical(mx.degrees(tree["connectivity"]).compute(), mx.degrees(memory))
    assert mx.input_currents(tree, units.rate_ori).chunks
    assert not mx.input_currents(str(demo_store), units.rate_ori).chunks
    assert not mx.degrees(mx.open_store(demo_store)).chunks


def test_results_are_computed_as_dask_is_told(slim, units):
    used = []

    def scheduler(*args, **options):
        used.append(args)
        return dask.get(*args, **options)

    expected = mx.input_currents(slim, units.rate_ori)
    with dask.config.set(scheduler=scheduler):
        found = mx.input_currents(slim, units.rate_ori)
    assert used
    xr.testing.assert_identical(found, expected)


def test_currents_of_a_store_do_not_import_distributed(slim):
    """Its import takes longer than the currents of small stores."""
    pytest.importorskip("distributed")
    code = f"""
import sys
import numpy as np, xarray as xr, microns_xr as mx
ids = mx.open_store({str(slim)!r}, lazy=True)["connectivity"].pre_nucleus_id
mx.input_currents({str(slim)!r}, xr.DataArray(np.ones(ids.size), {{"pre_nucleus_id": ids.values}}))
mx.degrees({str(slim)!r})
assert "dask" in sys.modules and "distributed" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_places_without_connectivity_are_refused(slim, units, tmp_path):
    tree = mx.open_store(slim, lazy=True)
    with pytest.raises(mx.errors.SchemaError, match=r"the tree has the groups \['units'\]"):
        mx.degrees(xr.DataTree.from_dict({"/units": tree["units"].to_dataset()}))
    with pytest.raises(mx.errors.StoreFormatError, match="there is no store at"):
        mx.inputs_to(tmp_path / "nothing.zarr", 1)
    with pytest.raises(mx.errors.UnknownLabelError, match="post_ids"):
        mx.inputs_to(slim, -5)
    mx.write_store(tmp_path / "u.zarr", units=tree["units"].to_dataset())
    with pytest.raises(mx.errors.UnknownLabelError, match="the store has no group 'connectivity'"):
        mx.degrees(tmp_path / "u.zarr")


def test_a_store_with_one_copy(copied, memory, units):
    shutil.rmtree(copied / "connectivity" / "by_pre")
    one = int(units.nucleus_id[7])
    np.testing.assert_array_equal(
        mx.outputs_from(copied, one).synapse_size, mx.outputs_from(memory, one).synapse_size
    )
    expected = mx.contract(memory, units.rate_ori, "post_nucleus_id", missing="skip")
    found = mx.contract(copied, units.rate_ori, "post_nucleus_id", missing="skip")
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-13)
    np.testing.assert_allclose(found.rated_fraction, expected.rated_fraction, rtol=1e-13)


# --- replaced, damaged -------------------------------------------------------------------------------


def test_a_store_that_was_replaced_is_refused(copied, memory, units, few_units):
    connectivity = lz.connectivity_in(copied)
    before = mx.open_store(copied, lazy=True)["units"].to_dataset()
    shorter = mx.drop_autapses(memory)
    mx.write_store(copied, units=few_units, connectivity=shorter, overwrite=True)
    with pytest.raises(mx.errors.StoreFormatError, match=r"has been replaced .* open it again"):
        mx.degrees(connectivity).compute(scheduler="synchronous")
    with pytest.raises(mx.errors.StoreFormatError, match="replaced"):
        mx.inputs_to(connectivity, int(units.nucleus_id[7]))
    with pytest.raises(mx.errors.StoreFormatError, match="replaced"):
        before.cell_type.values
    assert mx.degrees(copied).in_degree.sum() == mx.degrees(shorter).in_degree.sum()


def test_a_store_that_is_replaced_meanwhile_is_refused(copied, memory, few_units, monkeypatch):
    """By one as large, whose pairs are read with the pointers of the old."""
    read = StoredPairs.read
    seen = []

    def replacing(self, name, *args, **options):
        seen.append(name)
        if len(seen) == 4:
            scaled = lz.with_scaled_sizes(memory, 2)
            mx.write_store(copied, units=few_units, connectivity=scaled, overwrite=True)
        return read(self, name, *args, **options)

    monkeypatch.setattr(StoredPairs, "read", replacing)
    connectivity = lz.connectivity_in(copied)
    with pytest.raises(mx.errors.StoreFormatError, match="replaced"):
        mx.degrees(connectivity).compute(scheduler="synchronous")
    assert len(seen) == 4


@pytest.mark.parametrize("group", ["units", "connectivity/by_post"])
def test_a_store_that_is_replaced_while_it_is_opened_is_refused(
    copied, memory, few_units, group, monkeypatch
):
    arrays = nodes._arrays
    written = []

    def replacing(node, names):
        found = arrays(node, names)
        if node.path == group and not written:
            written.append(group)
            scaled = lz.with_scaled_sizes(memory, 2)
            mx.write_store(copied, units=few_units, connectivity=scaled, overwrite=True)
        return found

    monkeypatch.setattr(nodes, "_arrays", replacing)
    with pytest.raises(mx.errors.StoreFormatError, match="replaced"):
        mx.open_store(copied, lazy=True)
    assert mx.degrees(copied).in_size.sum() == 2 * mx.degrees(memory).in_size.sum()


@pytest.mark.parametrize("array", ["data", "indices", "indptr"])
def test_a_lost_or_damaged_chunk_is_seen(copied, units, array):
    chunk = copied / "connectivity" / "by_post" / array / "c" / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(mx.errors.StoreFormatError, match=r"no chunk|chunks, expected"):
        mx.input_currents(copied, units.rate_ori)
    # blosc would read on behind the end, where the rest still is or something else
    for length in (len(content) - 1, len(content) // 2, 9):
        chunk.write_bytes(content[:length])
        for function in (
            lambda: mx.input_currents(copied, units.rate_ori),
            lambda: mx.open_store(copied),
        ):
            with pytest.raises(
                mx.errors.StoreFormatError,
                match=rf"by_post/{array} cannot be decoded .* (has {length} bytes|checksum)",
            ):
                function()


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)])
def test_a_damaged_chunk_of_a_dense_variable_is_seen(copied, rows):
    lazy = mx.open_store(copied, lazy=True)["units"].to_dataset()
    chunk = copied / "units" / "cell_type" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(mx.errors.StoreFormatError, match="cell_type cannot be decoded"):
        lazy.cell_type[rows].values
    chunk.unlink()
    with pytest.raises(mx.errors.StoreFormatError, match="no chunk"):
        lazy.cell_type[rows].values


def test_pairs_out_of_order_are_seen(copied):
    indices = zarr.open_array(copied / "connectivity/by_post/indices")
    indices[10:400] = indices[10:400][::-1].copy()
    with pytest.raises(mx.errors.SchemaError, match="out of order"):
        mx.degrees(copied)


def test_copies_that_differ_are_seen(copied, memory, units, tmp_path, few_units):
    part = mx.select_connections(
        memory, pre=memory.pre_nucleus_id[:700], post=memory.post_nucleus_id[:800]
    )
    mx.write_store(tmp_path / "t.zarr", units=few_units, connectivity=part)
    ex.as_early_store(copied)
    shutil.rmtree(copied / "connectivity" / "by_pre")
    shutil.copytree(tmp_path / "t.zarr/connectivity/by_pre", copied / "connectivity/by_pre")
    connectivity = lz.connectivity_in(copied)
    mx.inputs_to(connectivity, int(units.nucleus_id[7]))
    for function in (
        lambda: mx.outputs_from(connectivity, int(units.nucleus_id[7])),
        lambda: mx.contract(connectivity, units.rate_ori, "post_nucleus_id", missing="skip"),
        lambda: mx.write_store(tmp_path / "u.zarr", units=few_units, connectivity=connectivity),
    ):
        with pytest.raises(
            mx.errors.StoreFormatError, match=r"by_pre has shape and pairs \[\[700, 800\]"
        ):
            function()


@pytest.mark.parametrize("rows", [slice(3, 9), slice(9, 2, -3), [5, 1, 1], [], -1])
def test_parts_of_lazy_variables(demo_store, units, rows):
    """Text, numbers and truth values of any rows, without reading them all into memory first."""
    tree = mx.open_store(demo_store, lazy=True)
    for name, whole, dim in (
        ("units", units, "nucleus_id"),
        ("connectivity", _without_pairs(demo_store), "pre_nucleus_id"),
    ):
        part = tree[name].to_dataset()[list(whole.variables)].isel({dim: rows})
        expected = whole.isel({dim: rows})
        xr.testing.assert_identical(part.compute(), expected)
        assert {n: v.dtype for n, v in part.variables.items()} == {
            n: v.dtype for n, v in expected.variables.items()
        }


def _without_pairs(store):
    return lz.in_memory(store).drop_vars(["synapse_size", "synapse_count"])


# --- not on this disk --------------------------------------------------------------------------------


def test_two_stores_at_one_address_are_told_apart(memory, units, few_units):
    """An address, even of the same store object, may stand for other pairs by now."""
    store = MemoryStore()
    parts = {"units": few_units, "connectivity": memory}
    mx.write_store(store, **parts)
    first = lz.connectivity_in(store)
    zarr.core.sync.sync(store.clear())
    mx.write_store(store, **parts | {"connectivity": lz.with_scaled_sizes(memory, 2)})
    second = lz.connectivity_in(store)
    keys = [c.synapse_size.data.name for c in (first, second)]
    assert keys[0] != keys[1]
    assert keys == [
        pickle.loads(pickle.dumps(c)).synapse_size.data.name for c in (first, copy.deepcopy(second))
    ]
    # Both copies of one opening share what they read, though.
    outgoing = [
        mx.contract(first, units.rate_ori, "post_nucleus_id", missing="skip") for _ in range(2)
    ]
    assert outgoing[0].data.name == outgoing[1].data.name
    sizes = [mx.degrees(c).in_size for c in (first, second)]
    assert sizes[0].data.name != sizes[1].data.name


def test_a_bucket_is_read_lazily(spans, monkeypatch):
    """By address and options, and through shards; what is pickled reads there as well."""
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 30_000)
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'microns-xr[cloud]'")
    s3_server = pytest.importorskip("s3_server", reason="moto is not installed")
    rates = xr.DataArray(
        np.arange(float(ms.PRE.size)), {"nucleus_id": ms.PRE}, name="r"
    ).assign_coords(ms.connectivity().coords["datastack"].coords)
    with s3_server.Bucket() as bucket:
        options = {"storage_options": bucket.options}
        ms.write("s3://data/a", shards=True, consolidated=True, **options)
        with bucket.asked() as seen:
            tree = mx.open_store("s3://data/a", lazy=True, **options)
        # once at the end, too, to see whether it is still the same store
        assert [one.key for one in seen if one.key.endswith(".json")] == ["a/zarr.json"] * 2
        lazy = tree["connectivity"].to_dataset()
        assert lazy.synapse_size.data.npartitions > 5
        for connectivity in (lazy, pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy)):
            spans.clear()
            found = mx.input_currents(connectivity, rates).compute()
            assert {c for c, *_ in spans} == {"post"}
            xr.testing.assert_identical(found, mx.input_currents(ms.connectivity(), rates))
        mx.outputs_from(tree, int(ms.PRE[3]))
        with bucket.asked() as seen:  # the other copy is known by now
            mx.outputs_from(tree, int(ms.PRE[4]))
        assert all("/by_pre/" in one.key for one in seen)
        assert len(seen) <= 6  # of three arrays the index of a shard, and a part of it


# --- written from ------------------------------------------------------------------------------------


def compare_stores(found, expected):
    xr.testing.assert_identical(
        *(mx.open_store(p)["units"].to_dataset() for p in (found, expected))
    )
    for compressed in ("post", "pre"):
        parts = (lz.connectivity_in(path, compressed, lazy=False) for path in (expected, found))
        lz.assert_same_pairs(*parts)


CHANGES = {
    "as it is": lambda c: c,
    "without autapses": mx.drop_autapses,
    "a part": lambda c: mx.select_connections(
        c, pre=c.pre_nucleus_id[:400], post=c.post_nucleus_id[5:]
    ),
    "one variable as the other": lambda c: c.assign(synapse_size=c.synapse_count),
    "nobody": lambda c: mx.select_connections(c, pre=[], post=c.post_nucleus_id[5:]),
}


@pytest.fixture(scope="module")
def expected_store(slim, tmp_path_factory):
    """The same written from memory, each once."""
    folder, made = tmp_path_factory.mktemp("expected"), {}
    tree = mx.open_store(slim)

    def store(name):
        if name not in made:
            made[name] = folder / f"{name}.zarr"
            connectivity = CHANGES[name](tree["connectivity"].to_dataset())
            mx.write_store(made[name], units=tree["units"].to_dataset(), connectivity=connectivity)
        return made[name]

    return store


@pytest.mark.parametrize("compressed", ["post", "pre"])
@pytest.mark.parametrize("changed", CHANGES)
def test_lazy_connectivity_is_written_block_by_block(
    slim, expected_store, tmp_path, compressed, changed, spans
):
    tree = mx.open_store(slim, lazy=True, compressed=compressed)
    connectivity, units = (tree[name].to_dataset() for name in ("connectivity", "units"))
    mx.write_store(tmp_path / "a.zarr", units=units, connectivity=CHANGES[changed](connectivity))
    assert bool(spans) == ((changed, compressed) != ("nobody", "pre"))
    if changed != "as it is":
        assert max((stop - start for *_, start, stop in spans), default=0) <= 1500
    compare_stores(tmp_path / "a.zarr", expected_store(changed))
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["a.zarr"]
    assert not list((tmp_path / "a.zarr").glob(".*"))


def test_a_block_is_written_in_runs(slim, expected_store, tmp_path, monkeypatch):
    from microns_xr.store import write

    monkeypatch.setattr(write, "_RUN", 100)
    added = []
    append = write.Spill.append
    monkeypatch.setattr(
        write.Spill,
        "append",
        lambda self, major, columns: (added.append(major.size), append(self, major, columns)),
    )
    tree = mx.open_store(slim, lazy=True)
    connectivity = mx.drop_autapses(tree["connectivity"].to_dataset())
    mx.write_store(tmp_path / "a.zarr", units=tree["units"].to_dataset(), connectivity=connectivity)
    assert sum(added) == 2 * mx.n_connections(connectivity)  # for either copy
    assert len(added) > 10 * connectivity.synapse_size.data.npartitions
    compare_stores(tmp_path / "a.zarr", expected_store("without autapses"))


def test_sizes_that_need_64_bits_get_them(slim, few_units, tmp_path):
    wide = lz.with_scaled_sizes(lz.connectivity_in(slim))
    mx.write_store(tmp_path / "a.zarr", units=few_units, connectivity=wide)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")["connectivity/by_pre"]
    assert (str(group["data"].dtype), str(group["synapse_count"].dtype)) == ("int64", "int32")
    total = mx.degrees(tmp_path / "a.zarr").in_size
    np.testing.assert_array_equal(total, mx.degrees(slim).in_size * 10**7)


def test_sizes_that_are_not_integers_are_refused(slim, few_units, tmp_path):
    halves = lz.with_scaled_sizes(lz.connectivity_in(slim), 0.5)
    with pytest.raises(mx.errors.SchemaError, match="synapse_size is float64, expected integers"):
        mx.write_store(tmp_path / "a.zarr", units=few_units, connectivity=halves)
    assert not (tmp_path / "a.zarr").exists()


def test_a_store_is_not_written_onto_itself(copied, few_units):
    connectivity = lz.connectivity_in(copied)
    for part in (connectivity, mx.drop_autapses(connectivity)):
        with pytest.raises(mx.errors.StoreFormatError, match="lazily read from"):
            mx.write_store(copied, units=few_units, connectivity=part)


def test_a_failing_block_leaves_nothing(slim, few_units, tmp_path, monkeypatch):
    connectivity = mx.drop_autapses(lz.connectivity_in(slim))

    def fail(self, *args, **options):
        raise mx.errors.StoreFormatError("the disk is gone")

    monkeypatch.setattr(StoredPairs, "read", fail)
    with pytest.raises(mx.errors.StoreFormatError, match="the disk is gone"):
        mx.write_store(tmp_path / "a.zarr", units=few_units, connectivity=connectivity)
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


# --- shapes at the edge ------------------------------------------------------------------------------

# Pairs as {(pre, post): size}, with a block of at most three of them.
SHAPES = {
    "no pairs": (3, 5, {}),
    "nobody before": (0, 3, {}),
    "nobody behind": (3, 0, {}),
    "nobody": (0, 0, {}),
    "one pair of size 0": (1, 1, {(0, 0): 0}),
    "a neuron with more than a block": (
        9,
        4,
        {(i, 2): 7 * i for i in range(9)} | {(0, 0): 2**40, (4, 3): 5},
    ),
    "gaps": (2, 30, {(0, 0): 1, (1, 9): 2, (0, 10): 3, (1, 10): 4, (0, 29): 5}),
}
EDGES = {
    "degrees": lambda c, r: mx.degrees(c),
    "currents": lambda c, r: mx.input_currents(c, r),
    "outgoing": lambda c, r: mx.contract(c, r, "post_nucleus_id", missing="skip"),
    "groups": lambda c, r: mx.group_connectivity(c, r.parity),
    "inputs": lambda c, r: mx.inputs_to(c, c.post_nucleus_id.values[-2:]),
    "outputs": lambda c, r: mx.outputs_from(c, c.pre_nucleus_id.values[-2:]),
    "of nobody": lambda c, r: mx.inputs_to(c, []),
    "without autapses": lambda c, r: mx.drop_autapses(c),
    "between": lambda c, r: mx.select_connections(
        c, pre=c.pre_nucleus_id[:2], post=c.post_nucleus_id[1:]
    ),
    "no post": lambda c, r: mx.select_connections(c, pre=None, post=[]),
}


def _edge_case(n_pre, n_post, pairs):
    size = np.zeros((n_pre, n_post), dtype=np.int64)
    stored = np.zeros(size.shape, dtype=bool)
    for place, value in pairs.items():
        size[place], stored[place] = value, True
    labels = (np.arange(n) + 1 for n in size.shape)
    dataset = matrices.dataset(stored, size, stored.astype(np.int64), "post", *labels)
    return mx.releases.stamp_release(dataset, "minnie65_demo", 1718)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_at_the_edge(tmp_path, few_units, name, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_PAIRS", 3)
    memory = _edge_case(*SHAPES[name])
    ids = np.arange(40)
    values = np.where(ids % 3, 1.5 * ids, np.nan)
    rates = xr.DataArray(values, {"nucleus_id": ids}, name="rate")
    rates = rates.assign_coords(parity=("nucleus_id", ids % 2))
    few = few_units.isel(nucleus_id=slice(0, 2))
    mx.write_store(tmp_path / "a.zarr", units=few, connectivity=memory)
    for compressed in ("post", "pre"):
        lazy = lz.connectivity_in(tmp_path / "a.zarr", compressed)
        for operation in EDGES.values():
            wanted, found = operation(memory, rates), operation(lazy, rates).compute()
            if isinstance(wanted, xr.DataArray):
                xr.testing.assert_allclose(found, wanted, rtol=1e-13)
            else:
                lz.assert_same_pairs(wanted, found)
    # and both copies written from either, whatever is left of an axis
    for part in ("without autapses", "no post"):
        with dask.config.set(scheduler="synchronous"):
            mx.write_store(
                tmp_path / "b.zarr",
                units=few,
                connectivity=EDGES[part](lazy, rates),
                overwrite=True,
            )
        lz.assert_same_pairs(
            EDGES[part](memory, rates), lz.connectivity_in(tmp_path / "b.zarr", lazy=False)
        )
