"""Arrays, copies of the connectivity and sorted rows that are written piece by piece."""

from __future__ import annotations

import os

import numpy as np
import pytest
import store_examples as ex
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.connectivity.arrays import (
    connectivity_dataset,
    gcxs,
    make_pattern,
    pattern_of,
    values_of,
)
from microns_xr.store import stream
from microns_xr.store.spill import Spill
from microns_xr.store.stream import (
    ArrayWriter,
    ChunkPool,
    Copy,
    PlannedArray,
    narrowest,
    plan_copy,
    write_copy,
)


@pytest.fixture
def chunks_of_7(monkeypatch):
    monkeypatch.setattr("microns_xr.store.format.CHUNK", 7)


def template_of(connectivity):
    """The same without a pair."""
    shape = tuple(connectivity.sizes[f"{side}_nucleus_id"] for side in ("pre", "post"))
    pattern = make_pattern(np.zeros(0), np.zeros(shape[1] + 1), shape, "post")
    empty = gcxs(np.zeros(0, dtype=np.int64), pattern)
    return connectivity.assign(
        {n: (v.dims, empty, v.attrs) for n, v in connectivity.data_vars.items()}
    )


def stream_store(path, connectivity, units, span: int, run_rows: int) -> None:
    """Write a store as a caller of the writers does: pairs so many neurons at a time."""
    mx.write_store(path, units=units, connectivity=template_of(connectivity))
    ex.as_early_store(path)
    root = zarr.open_group(str(path), mode="a")
    for axis in ("post", "pre"):
        for name in list(root[f"connectivity/by_{axis}"]):
            del root[f"connectivity/by_{axis}/{name}"]
    pattern, template = pattern_of(connectivity), template_of(connectivity)
    size, count = (values_of(connectivity, n) for n in ("synapse_size", "synapse_count"))
    spilled = os.path.join(path, "pairs")
    columns = {"indices": "int32", "data": "int64", "synapse_count": "int64"}
    dtypes = {"data": narrowest(size), "synapse_count": narrowest(count)}
    with ChunkPool(2) as pool, Spill(spilled, pattern.shape[0], columns, run_rows) as pairs:

        def blocks():
            for first in range(0, pattern.n_major, span):
                indptr = pattern.indptr[first : first + span + 1]
                own = slice(indptr[0], indptr[-1])
                post = np.repeat(np.arange(first, first + len(indptr) - 1), np.diff(indptr))
                weights = {"data": size[own], "synapse_count": count[own]}
                pairs.append(pattern.indices[own], {"indices": post, **weights})
                yield np.diff(indptr), pattern.indices[own], weights

        for side, of_side in (("post", blocks()), ("pre", pairs.pairs(run_rows, dtypes))):
            copy = Copy(side, pattern.nnz, dtypes, of_side)
            write_copy(root, plan_copy(template, side), pool, copy)
    assert not os.path.exists(spilled)


def random_connectivity(n_pre: int, n_post: int, density: float, large: bool, seed: int):
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 5, (n_pre, n_post)) * (rng.random((n_pre, n_post)) < density)
    size = rng.integers(0, 2**40 if large else 2**31, (n_pre, n_post))
    ids = np.arange(n_pre), np.arange(n_post)
    found = ex.sparse_dataset(size, count, *ids)
    return found.assign_coords(pre_y=("pre_nucleus_id", rng.random(n_pre)))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("span", "run_rows"), [(1, 5), (4, 1000)])
def test_copies_are_those_of_write_store(tmp_path, chunks_of_7, large, span, run_rows):
    """As int64 where a sum is beyond int32."""
    connectivity = random_connectivity(13, 17, 0.4, large, 5)
    stream_store(tmp_path / "a.zarr", connectivity, ex.units(), span, run_rows)
    mx.write_store(tmp_path / "b.zarr", units=ex.units(), connectivity=connectivity)
    for axis in ("post", "pre"):
        one, two = (
            mx.open_store(tmp_path / f"{name}.zarr", compressed=axis)["connectivity"].to_dataset()
            for name in "ab"
        )
        ex.assert_same_connectivity(one, two)
        group = zarr.open_group(str(tmp_path / "a.zarr" / "connectivity" / f"by_{axis}"))
        assert group["data"].chunks == (7,)
        assert str(group["data"].dtype) == ("int64" if large else "int32")
        assert str(group["synapse_count"].dtype) == "int32"
        assert set(group) == set(zarr.open_group(str(tmp_path / "b.zarr/connectivity"))[f"by_{axis}"])  # fmt: skip


def test_pairs_that_break_the_rules(tmp_path):
    one = np.ones(2, dtype=np.int64)
    values = {"data": one, "synapse_count": one}
    dtypes = dict.fromkeys(values, "int32")
    plan = plan_copy(template_of(random_connectivity(3, 2, 0.5, False, 0)), "post")
    good = (np.array([2]), np.array([0, 2]), values)
    for i, (blocks, says) in enumerate(
        [
            ([(np.array([2]), np.array([2, 1]), values)], "does not ascend"),
            ([(np.array([2]), np.array([1, 1]), values)], "ascend"),
            ([(np.array([2]), np.array([0, 3]), values)], "0 to 2"),
            ([(*good[:2], values | {"data": one[:1]})], "differ in length"),
            ([good], "1 neurons with 2 pairs were written, expected 2 with 2"),
            ([good, good, good], "3 neurons with 6 pairs were written, expected 2 with 2"),
        ]
    ):
        root = zarr.open_group(str(tmp_path / f"{i}.zarr"), mode="w")
        with pytest.raises(mx.errors.SchemaError, match=says), ChunkPool() as pool:
            write_copy(root, plan, pool, Copy("post", 2, dtypes, blocks))


def test_a_chunk_that_cannot_be_written(tmp_path, monkeypatch, chunks_of_7):
    """Comes out where the next ones are written, or at the end."""

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(stream, "_write_slice", full)
    root = zarr.open_group(str(tmp_path / "s.zarr"), mode="w")

    def write(name: str, pieces: int) -> None:
        planned = PlannedArray(name, ("i",), (5 * pieces,), "int32", {})
        with ChunkPool(1) as pool:
            array = ArrayWriter(root, planned, pool)
            for _ in range(pieces):
                array.append(np.zeros(5, dtype=np.int32))
            array.finish()

    with pytest.raises(OSError, match="no space"):
        write("long", 100)
    with pytest.raises(OSError, match="no space"):
        write("short", 1)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(0, 50), max_size=5),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 10**6),
)
def test_rows_come_back_by_neuron(tmp_path_factory, n_major, batches, run_rows, max_rows, seed):
    """In the order they were added, in whatever pieces; every value as it was."""
    rng = np.random.default_rng(seed)
    path = str(tmp_path_factory.mktemp("spill") / "rows")
    columns = {"id": "int64", "size": "int64", "point": ("float64", 3)}
    added = []
    with Spill(path, n_major, columns, run_rows) as spill:
        for n in batches:
            point = rng.choice([1.0, -7.0, 0.5, np.nan, 2.0**40], (n, 3))
            if rng.random() < 0.5:
                point = np.round(np.nan_to_num(point, posinf=0)) % 1000
            rows = {
                "id": rng.integers(-(2**62), 2**62, n),
                "size": rng.integers(0, 100, n),
                "point": point,
            }
            major = rng.integers(0, n_major, n).astype(np.int32)
            added.append((major, rows))
            spill.append(major, rows)
        assert spill.rows == sum(batches)
        parts = list(spill.stretches(max_rows))
    assert not os.path.exists(path)
    assert [p.first for p in parts] == [0, *[p.last for p in parts[:-1]]]
    assert parts[-1].last == n_major
    major = np.concatenate([np.zeros(0, np.int32), *[m for m, _ in added]])
    order = np.argsort(major, kind="stable")
    lengths = np.concatenate([p.lengths for p in parts])
    np.testing.assert_array_equal(lengths, np.bincount(major, minlength=n_major))
    for name in columns:
        found = np.concatenate([p.columns[name] for p in parts])
        if not added:
            assert not found.size
            continue
        expected = np.concatenate([rows[name] for _, rows in added])[order]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    for part in parts:
        assert part.starts[-1] <= max_rows or part.last == part.first + 1


def test_connectivity_without_pairs(tmp_path):
    none = np.zeros(0, dtype=np.int64)
    connectivity = connectivity_dataset(
        {"synapse_size": none, "synapse_count": none},
        make_pattern(none, np.zeros(3), (2, 2), "post"), np.arange(2), np.arange(2),
        scope="unknown", release=("minnie65_public", 661),
    )  # fmt: skip
    stream_store(tmp_path / "a.zarr", connectivity, ex.units(), 1, 5)
    found = mx.open_store(tmp_path / "a.zarr")["connectivity"].to_dataset()
    ex.assert_same_connectivity(found, connectivity)
