"""Time contraction, selection, sums and grouping, and print them beside scipy and pydata-sparse.

python tests/benchmarks/bench_connectivity.py
python tests/benchmarks/bench_connectivity.py --connections 3e6 --columns 8 --coo

Each line gives the best of several runs and how it compares with another way of computing the same
numbers, in the same process and in turn; the numbers are checked to be equal. Ratios hold on a busy
machine better than milliseconds do.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy
import scipy.sparse
import sparse
import xarray as xr

import microns_xr as mx
from microns_xr.connectivity.arrays import connectivity_dataset, make_pattern, pair_buffers
from microns_xr.connectivity.kernels import contract_buffers
from microns_xr.connectivity.sort import sum_pairs
from microns_xr.connectivity.subset import recompress, take

PRE, POST = "pre_nucleus_id", "post_nucleus_id"


def synthetic(n_neurons: int, n_rows: int, rng: np.random.Generator) -> xr.Dataset:
    """Make random connectivity with in-degrees that differ, and sizes like the real ones."""
    share = rng.lognormal(0.0, 0.5, n_neurons)
    in_degree = rng.multinomial(n_rows, share / share.sum())
    post = np.repeat(np.arange(n_neurons, dtype=np.int32), in_degree)
    pre = rng.integers(0, n_neurons, n_rows, dtype=np.int32)
    size = (rng.lognormal(8.0, 1.0, n_rows)).astype(np.int64)
    matrix = sum_pairs(post, pre, size, None, n_neurons)
    ids = 100_000 + 5 * np.arange(n_neurons)
    pattern = make_pattern(matrix.indices, matrix.indptr, (n_neurons, n_neurons), "post")
    return connectivity_dataset(
        matrix.sizes, matrix.counts, pattern, ids, ids,
        datastack="minnie65_public", version=1718, scope="complete",
    )  # fmt: skip


def rates_of(connectivity: xr.Dataset, columns: int, rng: np.random.Generator) -> xr.DataArray:
    ids = connectivity[PRE].values
    rates = xr.DataArray(
        rng.random((ids.size, columns)), {"nucleus_id": ids}, ("nucleus_id", "direction"), "rate"
    )
    return mx.releases.stamp_release(rates, "minnie65_public", 1718)


class Case(NamedTuple):
    """What is timed, what it is timed against, and how their results compare."""

    name: str
    ours: Callable[[], Any]
    against: str
    other: Callable[[], Any]
    equal: Callable[[Any, Any], None]


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def run(cases: list[Case], repeats: int) -> None:
    """Run both sides of each case in turn, so that a busy spell hits both, and print the best."""
    for case in cases:
        case.equal(case.ours(), case.other())
        pairs = [(seconds(case.ours)[0], seconds(case.other)[0]) for _ in range(repeats)]
        ours, other = (1e3 * min(times) for times in zip(*pairs, strict=True))
        print(
            f"  {case.name:<38}{ours:>9.1f} ms {ours / other:>8.4f} of {case.against} "
            f"({other:.1f} ms)"
        )


def run_once(cases: list[Case], small: list[Case], repeats: int) -> None:
    """Like `run` where the other side takes long: compile it on a small matrix, then run once.

    What the first call of a process takes on the small matrix is printed too: pydata-sparse
    compiles in every process, the kernels of this package once for all.
    """
    for case, little in zip(cases, small, strict=True):
        our_first, found = seconds(little.ours)
        other_first, expected = seconds(little.other)
        little.equal(found, expected)
        other, expected = seconds(case.other)
        case.equal(case.ours(), expected)
        ours = min(seconds(case.ours)[0] for _ in range(repeats))
        print(
            f"  {case.name:<38}{1e3 * ours:>9.1f} ms {ours / other:>8.4f} of {case.against} "
            f"({1e3 * other:.1f} ms); first call on 2000 pairs {1e3 * our_first:.0f} and "
            f"{1e3 * other_first:.0f} ms"
        )


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def contraction_cases(
    connectivity: xr.Dataset, columns: int, rng: np.random.Generator
) -> list[Case]:
    rates = rates_of(connectivity, columns, rng)
    dense = rates.values
    half = rates.where(xr.DataArray(rng.random(dense.shape[0]) < 0.5, dims="nucleus_id"))
    filled = np.nan_to_num(half.values)
    shuffled = half.isel(nucleus_id=rng.permutation(dense.shape[0]))
    in_float32 = dense.astype(np.float32)
    pattern, values = pair_buffers(connectivity)
    size = values["synapse_size"]
    csc = scipy.sparse.csc_array(
        (size.astype(np.float64), pattern.indices, pattern.indptr), shape=pattern.shape
    )
    csr = csc.tocsr()
    rows = np.arange(dense.shape[0])

    def kernel(table: np.ndarray) -> np.ndarray:
        buffers = (size, pattern.indices, pattern.indptr, pattern.n_minor)
        return contract_buffers(*buffers, table, rows, over="minor").sums

    def close(found: Any, expected: Any) -> None:
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def nan_is_0(found: Any, expected: Any) -> None:
        same(np.nan_to_num(found), expected)

    return [
        Case(
            "kernel, float64",
            lambda: kernel(dense),
            "scipy csr.T @ R",
            lambda: csr.T @ dense,
            same,
        ),
        Case(
            "kernel, float32",
            lambda: kernel(in_float32),
            "scipy csr.T @ R",
            lambda: csr.T @ dense,
            close,
        ),
        Case(
            "input_currents, all rated",
            lambda: mx.input_currents(connectivity, rates),
            "scipy csr.T @ R",
            lambda: csr.T @ dense,
            same,
        ),
        Case(
            "input_currents, all rated",
            lambda: mx.input_currents(connectivity, rates),
            "scipy csc.T @ R",
            lambda: csc.T @ dense,
            same,
        ),
        Case(
            "input_currents, half rated",
            lambda: mx.input_currents(connectivity, half),
            "scipy csr.T @ R",
            lambda: csr.T @ filled,
            nan_is_0,
        ),
        Case(
            "input_currents, half rated, shuffled",
            lambda: mx.input_currents(connectivity, shuffled),
            "scipy csr.T @ R",
            lambda: csr.T @ filled,
            nan_is_0,
        ),
        Case(
            "contract over post",
            lambda: mx.contract(connectivity, rates, POST),
            "scipy csr @ R",
            lambda: csr @ dense,
            same,
        ),
        Case(
            "contract over post",
            lambda: mx.contract(connectivity, rates, POST),
            "scipy csc @ R",
            lambda: csc @ dense,
            same,
        ),
    ]


def xr_dot_cases(connectivity: xr.Dataset, columns: int, rng: np.random.Generator) -> list[Case]:
    rates = rates_of(connectivity, columns, rng)
    renamed = rates.rename(nucleus_id=PRE)
    gcxs = connectivity.synapse_size
    arrays = {"COO": gcxs.copy(data=gcxs.data.tocoo()), "GCXS": gcxs}
    return [
        Case(
            f"input_currents, {columns} columns",
            lambda: mx.input_currents(connectivity, rates),
            f"xr.dot on {form}",
            lambda array=array: xr.dot(array, renamed, dim=PRE),
            lambda found, expected: same(found.values, expected.transpose(POST, ...).values),
        )
        for form, array in arrays.items()
    ]


def pydata_cases(connectivity: xr.Dataset, rng: np.random.Generator) -> list[Case]:
    ids = connectivity[PRE].values
    size = connectivity.synapse_size
    few = np.sort(rng.choice(ids, min(300, ids.size // 4), replace=False))
    many = np.sort(rng.choice(ids, min(5000, ids.size // 4), replace=False))
    codes = rng.integers(0, 20, ids.size)
    labels = xr.DataArray(codes, {"nucleus_id": ids}, name="cell_type")
    one_hot = sparse.GCXS.from_numpy((codes[:, None] == np.arange(20)).astype(np.int64))

    def same_pairs(found: xr.Dataset, expected: xr.DataArray) -> None:
        pairs, other = found.synapse_size.data.tocoo(), expected.data.tocoo()
        np.testing.assert_array_equal(pairs.coords, other.coords)
        np.testing.assert_array_equal(pairs.data, other.data)

    return [
        Case(
            f"take {few.size} labels of pre",
            lambda: take(connectivity, pre_ids=few),
            "DataArray.sel",
            lambda: size.sel({PRE: few}),
            same_pairs,
        ),
        Case(
            f"take {many.size} x {many.size} labels",
            lambda: take(connectivity, many, many),
            "DataArray.sel",
            lambda: size.sel({PRE: many, POST: many}),
            same_pairs,
        ),
        Case(
            "degrees (six sums)",
            lambda: mx.degrees(connectivity),
            f"one DataArray.sum({PRE!r})",
            lambda: size.sum(PRE),
            lambda found, expected: same(found.in_size.values, expected.data.todense()),
        ),
        Case(
            "degrees (six sums)",
            lambda: mx.degrees(connectivity),
            f"one DataArray.sum({POST!r})",
            lambda: size.sum(POST),
            lambda found, expected: same(found.out_size.values, expected.data.todense()),
        ),
        Case(
            "group by 20 types (three sums)",
            lambda: mx.group_connectivity(connectivity, labels, labels),
            "one-hot products (one sum)",
            lambda: one_hot.T @ (size.data @ one_hot),
            lambda found, expected: same(found.synapse_size.values, expected.todense()),
        ),
    ]


def time_operations(connectivity: xr.Dataset, repeats: int, rng: np.random.Generator) -> None:
    ids = connectivity[PRE].values
    few = np.sort(rng.choice(ids, min(300, ids.size // 4), replace=False))
    many = np.sort(rng.choice(ids, min(5000, ids.size // 4), replace=False))
    types = np.array([f"type {i}" for i in range(20)], dtype=object)[rng.integers(0, 20, ids.size)]
    labels = xr.DataArray(types, {"nucleus_id": ids}, name="cell_type")
    for name, function in {
        f"take {few.size} labels of pre": lambda: take(connectivity, pre_ids=few),
        f"take {few.size} labels of post": lambda: take(connectivity, post_ids=few),
        f"take {many.size} x {many.size} labels": lambda: take(connectivity, many, many),
        "outputs_from one neuron": lambda: mx.outputs_from(connectivity, int(few[0])),
        "degrees (six sums)": lambda: mx.degrees(connectivity),
        "group by 20 types (three sums)": lambda: mx.group_connectivity(
            connectivity, labels, labels
        ),
        "drop_autapses": lambda: mx.drop_autapses(connectivity),
        "recompress": lambda: recompress(connectivity, "pre"),
    }.items():
        function()
        print(f"  {name:<38}{1e3 * min(seconds(function)[0] for _ in range(repeats)):>9.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=94_000)
    parser.add_argument("--connections", type=float, nargs="+", default=[10e6, 30e6])
    parser.add_argument("--columns", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--pydata-connections",
        type=float,
        default=3e6,
        help="size for the comparisons with pydata-sparse, which is slow; 0 for none",
    )
    parser.add_argument("--coo", action="store_true", help="xr.dot at the full sizes too")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, scipy "
        f"{scipy.__version__}, sparse {sparse.__version__}, xarray {xr.__version__}"
    )
    sizes = [int(n) for n in arguments.connections]
    small = int(arguments.pydata_connections)
    if small:
        print(f"{arguments.neurons} neurons, {small / 1e6:g} million connections, pydata-sparse")
        little = synthetic(200, 2000, rng)
        connectivity = synthetic(arguments.neurons, small, rng)
        for make in (pydata_cases, lambda c, r: xr_dot_cases(c, arguments.columns[0], r)):
            run_once(make(connectivity, rng), make(little, rng), arguments.repeats)
    for n in sizes:
        print(f"{arguments.neurons} neurons, {n / 1e6:g} million connections")
        connectivity = synthetic(arguments.neurons, n, rng)
        for columns in arguments.columns:
            print(f" {columns} columns")
            run(contraction_cases(connectivity, columns, rng), arguments.repeats)
            if arguments.coo:
                little = synthetic(200, 2000, rng)
                cases = xr_dot_cases(connectivity, columns, rng)
                run_once(cases, xr_dot_cases(little, columns, rng), arguments.repeats)
        print(" other operations")
        time_operations(connectivity, arguments.repeats, rng)


if __name__ == "__main__":
    main()
