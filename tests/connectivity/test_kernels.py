"""The kernels on raw buffers, against loops in plain Python and against scipy."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import compress, contract_scipy, ids, random_tables

import microns_xr as mx
import microns_xr.threads as threads_module
from microns_xr.columns import as_ids
from microns_xr.connectivity.kernels import arrange, contract_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.reduce import group_sums, neuron_sums
from microns_xr.connectivity.sort import (
    Rule,
    check_sorted,
    have_pairs,
    renumber,
    select_pairs,
    sum_pairs,
    transpose_pattern,
)
from microns_xr.threads import balanced_spans, equal_spans, run_spans, usable_threads

THREADS = st.sampled_from([1, 2, 3])
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def threads_for_small_matrices():
    """Use as many threads as asked for, though the matrices here are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads_module, "_WORTH_A_THREAD", 1)
        yield


def plain_contraction(weights, indices, indptr, n_minor, values, rows, over):
    """One pair after the other, in the order they are stored."""
    n_major = len(indptr) - 1
    n = n_major if over == "minor" else n_minor
    sums = [[0.0] * values.shape[1] for _ in range(n)]
    total, rated, partners = [0] * n, [0] * n, [0] * n
    for major in range(n_major):
        for p in range(indptr[major], indptr[major + 1]):
            minor = int(indices[p])
            out, row = (major, rows[minor]) if over == "minor" else (minor, rows[major])
            total[out] += weights[p]
            partners[out] |= 1
            if row >= 0:
                rated[out] += weights[p]
                partners[out] |= 2
            for k in range(values.shape[1]):
                factor = float(values[row, k]) if row >= 0 else 0.0
                sums[out][k] = sums[out][k] + float(weights[p]) * factor
    share = [r / t if t else np.nan for r, t in zip(rated, total, strict=True)]
    return np.array(sums).reshape(n, values.shape[1]), np.array(share), np.array(partners)


def matrix(rng, n_major, n_minor, density=0.4):
    stored, size, count = random_tables(rng, n_major, n_minor, density)
    return compress(stored, size, count)


# A kernel is compiled for each dtype of values and of weights, and each width of a block of columns.
# All widths with one dtype of each: weights are converted one by one, whatever the width. (float32
# of most widths is compared with scipy.) 3 columns are a block that is filled up.
COLUMNS = [
    *(("f8", "int64", n) for n in (0, 1, 2, 3, 7, 8, 11, 16, 21)),
    *[("f4", "int64", 2), ("f8", "float64", 3), ("f4", "int32", 3), ("f8", "bool", 3)],
]


@pytest.mark.parametrize(("dtype", "weight_dtype", "n_columns"), COLUMNS)
@settings(max_examples=12, deadline=None)
@given(
    SEEDS, st.integers(0, 9), st.integers(0, 9), THREADS, st.sampled_from(["minor", "major"]),
    st.booleans(),
)  # fmt: skip
def test_contraction_is_the_loop_bit_by_bit(
    dtype, weight_dtype, n_columns, seed, n_major, n_minor, threads, over, all_rated
):
    rng = np.random.default_rng(seed)
    indices, indptr, weights, _ = matrix(rng, n_major, n_minor)
    weights = weights.astype(weight_dtype)
    n_rows = (n_minor if over == "minor" else n_major) + 2
    values = rng.normal(size=(n_rows, n_columns)).astype(dtype)
    rows = rng.permutation(n_rows)[: n_rows - 2]
    if not all_rated:
        rows = np.where(rng.random(rows.size) < 0.5, -1, rows)
    args = (weights, indices, indptr, n_minor, values, rows)
    expected = plain_contraction(*args, over)
    args = (*args[:4], arrange(values, rows, threads))
    found = contract_buffers(*args, over=over, want_rated=True, threads=threads)
    plain = contract_buffers(*args, over=over, threads=threads)
    for sums in (found.sums, plain.sums):
        assert sums.dtype == np.float64
        np.testing.assert_array_equal(sums, expected[0])
    np.testing.assert_array_equal(found.partners, expected[2])
    np.testing.assert_allclose(found.result(True)[1], expected[1], rtol=1e-15)
    assert plain.partners is None
    assert plain.result(True)[1] is None


@pytest.mark.parametrize("over", ["minor", "major"])
@pytest.mark.parametrize("n_columns", [1, 3, 8, 16, 21])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contraction_has_the_bits_of_scipy(over, n_columns, dtype):
    rng = np.random.default_rng(n_columns)
    indices, indptr, size, _ = matrix(rng, 300, 200, density=0.3)
    values = rng.normal(size=(200 if over == "minor" else 300, n_columns)).astype(dtype)
    rows = np.arange(values.shape[0])
    rows[::7] = -1
    # CSC of (minor, major): its transpose has the major neurons as rows
    csc = scipy.sparse.csc_array((size.astype(np.float64), indices, indptr), shape=(200, 300))
    rated = np.where(rows[:, None] >= 0, values, 0)
    expected = csc.T @ rated if over == "minor" else csc @ rated
    args = (size, indices, indptr, 200, arrange(values, rows))
    for threads in (1, 2, 5):
        found = contract_buffers(*args, over=over, threads=threads).sums
        # Elsewhere the compiler of scipy may fuse products and sums.
        exact = platform.machine() in ("x86_64", "AMD64")
        tolerance = {"rtol": 0} if exact else {"rtol": 1e-12, "atol": 1e-9}
        np.testing.assert_allclose(found, expected, **tolerance)
    own = contract_buffers(*args, over=over, want_rated=True)
    sums, share, partners = contract_scipy(*args[:4], values, rows, over=over)
    np.testing.assert_allclose(own.sums, sums, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(own.partners, partners)
    np.testing.assert_array_equal(own.result(True)[1], share)


def test_calls_at_once_do_not_share_memory():
    """Memory for the rows is used again, by calls with as many or other neurons and columns."""
    rng = np.random.default_rng(7)
    calls = []
    for n, n_columns, rated in (
        (150, 3, 1),
        (150, 3, 0.5),
        (40, 11, 0.5),
        (150, 8, 0.2),
        (9, 5, 1),
    ):
        indices, indptr, size, _ = matrix(rng, n, n)
        rows = np.where(rng.random(n) < rated, np.arange(n), -1)
        calls.append((size, indices, indptr, n, rng.normal(size=(n, n_columns)), rows))

    def call(size, indices, indptr, n, values, rows):
        arranged = arrange(values, rows, reuse=True)
        sums = contract_buffers(size, indices, indptr, n, arranged, over="minor").sums
        arranged.give_back()
        return sums

    expected = [contract_scipy(*c, over="minor")[0] for c in calls]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda c: call(*c), calls * 20))
    for i, sums in enumerate(found):
        np.testing.assert_allclose(sums, expected[i % len(calls)], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("over", ["minor", "major"])
def test_contraction_from_many_threads_at_once(over):
    rng = np.random.default_rng(5)
    indices, indptr, size, _ = matrix(rng, 150, 150)
    values = rng.normal(size=(150, 8))
    args = (size, indices, indptr, 150, arrange(values))
    expected = contract_buffers(*args, over=over, threads=1).sums
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(
            lambda n: contract_buffers(*args, over=over, threads=n).sums, [1, 2, 3, 2] * 8
        )
    for sums in results:
        np.testing.assert_array_equal(sums, expected)


def test_contraction_takes_read_only_buffers_and_leaves_them():
    rng = np.random.default_rng(6)
    buffers = (*matrix(rng, 20, 20)[:3], rng.normal(size=(20, 3)))
    copies = [b.copy() for b in buffers]
    for b in buffers:
        b.flags.writeable = False
    indices, indptr, size, values = buffers
    for over in ("minor", "major"):
        contract_buffers(size, indices, indptr, 20, arrange(values), over=over)
    for buffer, copy in zip(buffers, copies, strict=True):
        np.testing.assert_array_equal(buffer, copy)


def test_sums_over_the_major_axis_refuse_pairs_out_of_order():
    indices, indptr = np.array([3, 0, 1, 2], np.int32), np.array([0, 4], np.int32)
    args = (np.ones(4, np.int64), indices, indptr, 4, arrange(np.ones((1, 2))))
    with pytest.raises(mx.errors.SchemaError, match="not in ascending order"):
        contract_buffers(*args, over="major", threads=2)


def test_weights_that_are_no_numbers():
    args = (np.array([0], np.int32), np.array([0, 1]), 1, arrange(np.ones((1, 1))))
    with pytest.raises(mx.errors.SchemaError, match="weights have dtype complex128"):
        contract_buffers(np.array([1j]), *args, over="minor")


@few
@given(SEEDS, st.integers(0, 9), st.integers(0, 9), THREADS, st.booleans(), st.booleans())
def test_selected_pairs(seed, n_major, n_minor, threads, with_whole, with_without):
    rng = np.random.default_rng(seed)
    indices, indptr, *_ = matrix(rng, n_major, n_minor)
    majors = rng.permutation(n_major)[: rng.integers(0, n_major + 1)]
    wanted = rng.random(n_minor) < 0.5
    new_minor = np.where(wanted, np.cumsum(wanted) - 1, -1).astype(np.int32)
    whole = rng.random(majors.size) < 0.5 if with_whole else np.zeros(majors.size, bool)
    if with_whole:  # whole neurons need a place for everybody
        new_minor = np.arange(n_minor, dtype=np.int32)
    without = rng.integers(-1, max(n_minor, 1), majors.size) if with_without else None
    rule = Rule(majors, new_minor, n_minor, without=without)
    if with_whole:
        rule = rule._replace(partners=wanted, whole=whole)
    found = select_pairs(indices, indptr, rule, threads)
    expected = [[] for _ in majors]
    for m, major in enumerate(majors):
        for p in range(indptr[major], indptr[major + 1]):
            i = indices[p]
            if (whole[m] or wanted[i]) and (without is None or without[m] != i):
                expected[m].append((int(new_minor[i]), p))
    flat = [pair for pairs in expected for pair in pairs]
    assert list(zip(found.indices.tolist(), found.source.tolist(), strict=True)) == flat
    np.testing.assert_array_equal(np.diff(found.indptr), [len(p) for p in expected])


def test_selection_refuses_pairs_out_of_order():
    rule = Rule(np.array([0]), np.arange(2, dtype=np.int32), 2)
    with pytest.raises(mx.errors.SchemaError, match="not in ascending order"):
        select_pairs(np.array([1, 0], np.int32), np.array([0, 2]), rule)


@few
@given(SEEDS, st.integers(0, 9), st.integers(0, 9), THREADS)
def test_transposing_twice_is_nothing_and_once_is_the_transpose(seed, n_major, n_minor, threads):
    rng = np.random.default_rng(seed)
    stored, size, _ = random_tables(rng, n_major, n_minor, 0.4)
    indices, indptr, sizes = compress(stored, size)
    found = transpose_pattern(indices, indptr, n_minor, threads)
    expected = compress(stored.T, size.T)
    for a, b in zip((*found[:2], sizes[found.source]), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    back = transpose_pattern(found.indices, found.indptr, n_major, threads)
    np.testing.assert_array_equal(back.indices, indices)
    np.testing.assert_array_equal(found.source[back.source], np.arange(indices.size))


def test_transposing_sorts_and_refuses_pairs_outside_the_axis():
    found = transpose_pattern(np.array([1, 0, 1], np.int32), np.array([0, 2, 3]), 2)
    assert [part.tolist() for part in found] == [[0, 0, 1], [0, 1, 3], [1, 0, 2]]
    for outside in (-1, 2):
        with pytest.raises(mx.errors.SchemaError, match="1 stored pairs are outside"):
            transpose_pattern(np.array([0, outside], np.int32), np.array([0, 2]), 2)


@pytest.mark.parametrize(
    ("indices", "indptr", "message"),
    [
        ([0, 1], [0, 2], None),
        ([], [0], None),
        ([1, 0], [0, 2], "neuron number 0"),
        ([0, 0, 0], [0, 1, 3], "neuron number 1"),
        ([0, 2], [0, 2], "neuron number 0"),
        ([-1, 0], [0, 2], "neuron number 0"),
        ([0, 1], [0, 1], "indptr"),
        ([0, 1], [0, 2, 1, 2], "indptr"),
        ([0, 1], [1, 2], "indptr"),
        ([], [], "indptr"),
    ],
)
def test_check_sorted(indices, indptr, message):
    args = (np.array(indices, np.int32), np.array(indptr, np.int32), 2)
    if message is None:
        assert check_sorted(*args) is None
    else:
        with pytest.raises(mx.errors.SchemaError, match=message):
            check_sorted(*args)


@few
@given(st.lists(st.lists(st.integers(-1, 40), max_size=30), max_size=5))
def test_check_sorted_finds_the_first_of_any_rows(rows):
    """Rows long enough that several pairs are compared at once."""
    indices = np.array([i for row in rows for i in row], np.int32)
    indptr = np.cumsum([0, *map(len, rows)])
    bad = [row != sorted(set(row)) or not set(row) <= set(range(40)) for row in rows]
    if any(bad):
        with pytest.raises(mx.errors.SchemaError, match=f"neuron number {bad.index(True)} "):
            check_sorted(indices, indptr, 40)
    else:
        check_sorted(indices, indptr, 40)


@few
@given(st.lists(st.integers(0, 50), max_size=80), THREADS)
def test_minor_neurons_with_pairs_are_found_and_numbered_again(minors, threads):
    indices = np.array(minors, np.int32)
    has = have_pairs(indices, 51, threads)
    assert np.flatnonzero(has).tolist() == sorted(set(minors))
    found = renumber(indices, np.cumsum(has, dtype=np.int32) - np.int32(1), threads)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.flatnonzero(has)[found], indices)


@few
@given(SEEDS, st.integers(0, 9), st.integers(0, 9), THREADS)
def test_sums_by_neuron_and_by_group(seed, n_major, n_minor, threads):
    rng = np.random.default_rng(seed)
    stored, size, count = random_tables(rng, n_major, n_minor, 0.4)
    indices, indptr, sizes, counts = compress(stored, size, count)
    parts = np.stack([stored, size, count], axis=2).astype(np.int64)
    weights = [sizes, counts]
    major, minor = neuron_sums(weights, indices, indptr, n_minor, threads)
    np.testing.assert_array_equal(major.whole, parts.sum(axis=1))
    np.testing.assert_array_equal(minor.whole, parts.sum(axis=0))
    major_codes, minor_codes = rng.integers(0, 2, n_major), rng.integers(0, 3, n_minor)
    expected = np.zeros((2, 3, 3), dtype=np.int64)
    for i in range(n_major):
        for j in range(n_minor):
            expected[major_codes[i], minor_codes[j]] += parts[i, j]
    groups = (indices, indptr, major_codes, minor_codes, (2, 3), threads)
    found = group_sums(weights, *groups)
    np.testing.assert_array_equal(found.whole, expected)
    assert found.whole.dtype == np.int64
    assert found.real.shape == (2, 3, 0)
    # Five weights of both kinds, in the order of each kind.
    mixed = [sizes, sizes / 4, counts, counts / 2, sizes]
    found = group_sums(mixed, *groups)
    np.testing.assert_array_equal(found.whole, expected[..., [0, 1, 2, 1]])
    np.testing.assert_allclose(found.real, expected[..., [1, 2]] / [4, 2], rtol=1e-12)
    major, minor = neuron_sums(mixed[1:2], indices, indptr, n_minor, threads)
    for sums, table in ((major, parts.sum(axis=1)), (minor, parts.sum(axis=0))):
        np.testing.assert_array_equal(sums.whole, table[:, :1])
        np.testing.assert_allclose(sums.real, table[:, 1:2] / 4, rtol=1e-12)


@few
@given(
    st.lists(
        st.tuples(st.integers(-1, 4), st.integers(-1, 6), st.integers(0, 2**40), st.integers(1, 9)),
        max_size=60,
    ),
    THREADS,
    st.booleans(),
)
def test_rows_are_sorted_and_summed(rows, threads, with_count):
    major, minor, size, count = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    ends = major.astype(np.int32), minor.astype(np.int32)
    found = sum_pairs(*ends, size, count if with_count else None, 5, 7, threads)
    expected: dict[tuple[int, int], list[int]] = {}
    for a, b, s, c in rows:
        if a >= 0 and b >= 0:
            pair = expected.setdefault((a, b), [0, 0])
            pair[0] += s
            pair[1] += c if with_count else 1
    owner = np.repeat(np.arange(5), np.diff(found.indptr))
    columns = (owner, found.indices, found.sizes, found.counts)
    got = zip(*(column.tolist() for column in columns), strict=True)
    assert [((a, b), [s, c]) for a, b, s, c in got] == sorted(expected.items())
    assert found.indices.dtype == np.int32
    assert found.sizes.dtype == found.counts.dtype == np.int64


@few
@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True), st.data(), THREADS)
def test_lookup(labels, data, threads):
    labels = np.array(labels, dtype=np.int64)
    wanted = np.array(
        data.draw(st.lists(st.one_of(st.integers(-5, 5), st.sampled_from([*labels.tolist(), 0])))),
        dtype=np.int64,
    )
    position = {label: i for i, label in enumerate(labels.tolist())}
    found = Lookup(labels, "ids").find(wanted, threads)
    assert found.tolist() == [position.get(w, -1) for w in wanted.tolist()]


def test_lookup_tells_18_digit_neighbours_apart():
    found = Lookup(ids(3), "ids").find(np.append(ids(3)[1:], ids(3) + 1))
    assert found.tolist() == [1, 2, -1, -1, -1]


def test_lookup_refuses_repeats_and_floats():
    with pytest.raises(mx.errors.SchemaError, match="nucleus_id repeats 2 labels"):
        Lookup(np.array([1, 1, 2, 1]), "nucleus_id")
    with pytest.raises(mx.errors.SchemaError, match="18446744073709551615, expected ids below"):
        Lookup(np.array([-1, 4]), "nucleus_id").find(np.array([2**64 - 1], np.uint64))
    with pytest.raises(mx.errors.SchemaError, match="dtype float64"):
        Lookup(np.array([1.0]), "nucleus_id")
    with pytest.raises(mx.errors.SchemaError, match="dtype float64"):
        Lookup(np.array([1]), "nucleus_id").find(np.array([1.0]))


@pytest.mark.parametrize(
    "found",
    [5, np.int64(5), [5], (5,), {5}, np.array([5], np.uint64), np.array(5), {5: "a"}.keys()],
)
def test_ids_in_any_form(found):
    assert as_ids(found, "pre").tolist() == [5]
    assert as_ids(found, "pre").dtype == np.int64


@pytest.mark.parametrize("found", [5.2, [5.5], "5", None, [True], np.zeros((2, 2), int), ["a"]])
def test_what_is_no_id(found):
    with pytest.raises(mx.errors.SchemaError, match=r"^pre"):
        as_ids(found, "pre")


def test_no_ids_at_all():
    assert as_ids([], "pre").dtype == np.int64
    assert as_ids(set(), "pre").size == 0


def test_spans_hold_every_neuron_once():
    indptr = np.array([0, 0, 0, 50, 51, 52, 60, 60])
    for n in (1, 2, 3, 20):
        for spans in (balanced_spans(indptr, n), equal_spans(7, n)):
            assert [i for lo, hi in spans for i in range(lo, hi)] == list(range(7))
            assert len(spans) <= n
    assert balanced_spans(np.array([0]), 4) == []
    assert len(balanced_spans(np.arange(101), 4)) == 4


def test_errors_in_threads_reach_the_caller():
    def work(lo, hi):
        raise mx.errors.UnknownLabelError(f"{lo}")

    with pytest.raises(mx.errors.UnknownLabelError):
        run_spans(work, [(0, 1), (1, 2)], threads=2)


def test_work_in_threads_may_be_divided_again():
    def outer(lo, hi):
        return run_spans(lambda a, b: 10 * lo + a, [(0, 1), (1, 2), (2, 3)], threads=3)

    spans = [(i, i + 1) for i in range(6)]
    expected = [[10 * i + a for a in range(3)] for i in range(6)]
    assert run_spans(outer, spans, threads=4) == expected


def test_number_of_threads(monkeypatch):
    monkeypatch.setattr(threads_module, "_WORTH_A_THREAD", 100)
    assert usable_threads(8, elements=99) == 1
    assert usable_threads(8, elements=300) == 3
    assert usable_threads(2, elements=10**6) == 2
    assert usable_threads(None, elements=10**6) >= 1
