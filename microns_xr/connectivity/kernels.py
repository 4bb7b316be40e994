"""Contraction of a compressed matrix with dense columns, on raw buffers.

A matrix is compressed over its *major* axis: the stored pairs of one major neuron are contiguous,
and ``indices`` gives their positions on the *minor* axis. A sum over the minor axis is a gather
(each major neuron reads the rows of its partners), a sum over the major axis is a scatter.

Both work on 8 columns at a time, held in one vector register: a row of 8 float64 is one cache
line, and going through the pairs twice for 16 columns is cheaper than reading rows that no longer
fit in the cache. Each product and each sum is rounded, in the order of the stored pairs, as in
scipy, so that a float64 result is bit-identical to ``csc.T @ dense`` on processors where scipy
does not use fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from microns_xr.errors import SchemaError
from microns_xr.threads import Span, balanced_spans, run_spans, usable_threads

# One vector register of float64 as a numba type, to add scaled rows of a matrix.
#
# numba compiles a fixed inner loop over 8 columns to 8 scalar products, because it cannot rule out
# that the arrays overlap. With the register as a type each partner takes one product and one sum,
# 2.5 times faster on one thread. The width is passed as the length of a tuple of floats, so that
# numba compiles one version of a kernel per width.


_intrinsic: Any = intrinsic  # its annotations ignore that callers do not pass the first argument


class _Register(types.Type):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Register({width})")


@register_model(_Register)
class _RegisterModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: _Register) -> None:
        super().__init__(manager, fe_type, ir.VectorType(ir.DoubleType(), fe_type.width))


def _row_pointer(context: Any, builder: Any, ty: Any, array: Any, row: Any, width: int) -> Any:
    element = ir.FloatType() if ty.dtype == types.float32 else ir.DoubleType()
    struct = context.make_array(ty)(context, builder, array)
    start = builder.mul(row, builder.extract_value(struct.strides, 0))  # in bytes
    pointer = builder.gep(builder.bitcast(struct.data, ir.PointerType(ir.IntType(8))), [start])
    return builder.bitcast(pointer, ir.PointerType(ir.VectorType(element, width)))


@_intrinsic
def load_row(_typing: Any, tag: Any, array: Any, row: Any) -> Any:
    """Load row `row` of an (n, width) array of float32 or float64, contiguous in rows."""
    width = tag.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ty = signature.args[1]
        pointer = _row_pointer(context, builder, ty, args[1], args[2], width)
        if ty.dtype == types.float32:
            vector = ir.VectorType(ir.DoubleType(), width)
            return builder.fpext(builder.load(pointer, align=4), vector)
        return builder.load(pointer, align=8)

    return _Register(width)(tag, array, types.intp), codegen


@_intrinsic
def zero_row(_typing: Any, tag: Any) -> Any:
    """Make a register of zeros, as wide as the tuple of floats `tag`."""
    width = tag.count

    def codegen(_context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return ir.Constant(ir.VectorType(ir.DoubleType(), width), None)

    return _Register(width)(tag), codegen


@_intrinsic
def add_scaled(_typing: Any, acc: Any, factor: Any, row: Any) -> Any:
    """``acc + factor * row``, rounded after the product and after the sum."""
    width = acc.width

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(ir.DoubleType(), width), ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        first = builder.insert_element(undefined, args[1], ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(first, undefined, zeros)
        return builder.fadd(args[0], builder.fmul(factors, args[2]))

    return acc(acc, types.float64, row), codegen


@_intrinsic
def store_row(_typing: Any, acc: Any, array: Any, row: Any) -> Any:
    """Write the register to row `row` of an (n, width) array of float64, contiguous in rows."""
    width = acc.width

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _row_pointer(context, builder, signature.args[1], args[1], args[2], width)
        builder.store(args[0], pointer, align=8)
        return context.get_dummy_value()

    return types.void(acc, array, types.intp), codegen


COLUMNS = 8
_CACHE_LINE = 64


class Contraction(NamedTuple):
    """Weighted sums, and the share of the weight whose partners have a value."""

    sums: np.ndarray
    # (neurons, 2): weight of all stored pairs, and of those whose partner has a value
    tally: np.ndarray | None = None
    # (neurons,), uint8: 0 no stored pair, 1 pairs but no partner with a value, 3 some with one
    partners: np.ndarray | None = None

    @property
    def share(self) -> np.ndarray | None:
        """(neurons,), float64: weight with a value over all weight; NaN where that is 0."""
        if self.tally is None:
            return None
        total, rated = (self.tally[:, k].astype(np.float64) for k in (0, 1))
        return np.divide(rated, total, out=np.full(total.size, np.nan), where=total != 0)

    def result(self, scope_known: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the sums, NaN where no partner has a value, and the share.

        If the scope is unknown, a sum without stored pairs is NaN as well.
        """
        sums = self.sums
        if self.partners is not None:
            sums[self.partners == 1 if scope_known else self.partners <= 1] = np.nan
        return sums, self.share


@numba.njit(nogil=True, cache=True)
def _pack(values, rows, first, out):  # type: ignore[no-untyped-def]
    width = min(out.shape[1], values.shape[1] - first)
    for i in range(rows.size):
        row = rows[i]
        for k in range(out.shape[1]):
            out[i, k] = values[row, first + k] if row >= 0 and k < width else 0.0


@numba.njit(nogil=True, cache=True)
def _gather(weights, indices, indptr, rhs, out, lo, hi, tag):  # type: ignore[no-untyped-def]
    for j in range(lo, hi):
        acc = zero_row(tag)
        for p in range(np.uintp(indptr[j]), np.uintp(indptr[j + 1])):
            row = load_row(tag, rhs, np.intp(indices[p]))
            acc = add_scaled(acc, np.float64(weights[p]), row)
        store_row(acc, out, j)


@numba.njit(nogil=True, cache=True)
def _gather_rated(  # type: ignore[no-untyped-def]
    weights, indices, indptr, rhs, out, has, tally, partners, lo, hi, tag
):
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        acc = zero_row(tag)
        total = 0 * tally[j, 0]
        rated = 0 * tally[j, 1]
        for p in range(start, stop):
            i = np.uintp(indices[p])
            acc = add_scaled(acc, np.float64(weights[p]), load_row(tag, rhs, np.intp(i)))
            total += weights[p]
            rated += weights[p] * has[i]
        store_row(acc, out, j)
        tally[j, 0] = total
        tally[j, 1] = rated
        partners[j] = _partners(indices, has, start, stop)


@numba.njit(nogil=True, cache=True)
def _partners(indices, has, start, stop):  # type: ignore[no-untyped-def]
    # A separate loop, because the first one or two pairs nearly always decide.
    for p in range(start, stop):
        if has[np.uintp(indices[p])]:
            return np.uint8(3)
    return np.uint8(stop > start)


@numba.njit(nogil=True, cache=True)
def _all_rated(weights, indptr, sums, tally, partners):  # type: ignore[no-untyped-def]
    # If every neuron has a value the share is 1, unless all weights of a neuron are 0. Weights are
    # read only where the sum is 0, which saves one random memory access per neuron.
    for j in range(indptr.size - 1):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        partners[j] = np.uint8(3 * (stop > start))
        some = sums.shape[1] > 0 and sums[j, 0] != 0
        for p in range(start, stop):
            if some:
                break
            some = weights[p] != 0
        tally[j, 0] = tally[j, 1] = some


@numba.njit(nogil=True, cache=True)
def _scatter(  # type: ignore[no-untyped-def]
    weights, indices, indptr, rhs, out, has, tally, partners, lo, hi, tag
):
    # Every span of minor neurons goes through all major neurons in order, so that sums are
    # bit-identical for any number of threads.
    done = np.intp(0)
    want_rated = partners.size > 0
    for j in range(indptr.size - 1):
        start, stop = np.intp(indptr[j]), np.intp(indptr[j + 1])
        if hi < out.shape[0]:
            stop = start + np.searchsorted(indices[start:stop], hi)
        if lo > 0:
            start += np.searchsorted(indices[start:stop], lo)
        done += stop - start
        if has[j]:
            row = load_row(tag, rhs, j)
            for p in range(np.uintp(start), np.uintp(stop)):
                i = np.intp(indices[p])
                if i < lo or i >= hi:
                    return -1  # out of order: it belongs to another thread
                store_row(add_scaled(load_row(tag, out, i), np.float64(weights[p]), row), out, i)
        if want_rated:
            some = np.uint8(1) | (has[j] << np.uint8(1))
            for p in range(np.uintp(start), np.uintp(stop)):
                k = np.uintp(indices[p])
                tally[k, 0] += weights[p]
                tally[k, 1] += weights[p] * has[j]
                partners[k] |= some
    return done


def _aligned(shape: tuple[int, int], dtype: Any) -> np.ndarray:
    # Rows of 8 float64 that start on a cache line are read with one access instead of two.
    n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    buffer = np.empty(n_bytes + _CACHE_LINE, dtype=np.uint8)
    offset = -buffer.ctypes.data % _CACHE_LINE
    return buffer[offset : offset + n_bytes].view(dtype).reshape(shape)


def _minor_spans(indices: np.ndarray, n_minor: int, n_spans: int) -> list[Span]:
    """Cut the minor axis into spans of about equal numbers of pairs, estimated from a sample."""
    if n_spans == 1:
        return [(0, n_minor)]
    sample = np.sort(indices[:: max(1, indices.size // 20_000)])
    cuts = sample[np.linspace(0, sample.size - 1, n_spans + 1).astype(np.int64)][1:-1]
    edges = np.unique(np.concatenate([[0], cuts, [n_minor]]))
    return list(pairwise(edges.tolist()))


def contract_buffers(
    weights: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    values: np.ndarray,
    rows: np.ndarray,
    *,
    over: Literal["minor", "major"],
    want_rated: bool = False,
    threads: int | None = None,
) -> Contraction:
    """Sum ``weight * values`` over one axis of a compressed matrix."""
    weights = _plain_weights(weights)
    has = (rows >= 0).astype(np.uint8)
    n_out = indptr.size - 1 if over == "minor" else n_minor
    n_threads = usable_threads(threads, indices.size)
    tally, partners = _tally(n_out if want_rated else 0, weights)
    sums = _aligned((n_out, values.shape[1]), np.float64)
    if over == "minor":
        spans = balanced_spans(indptr, 8 * n_threads)
        rated_pass = want_rated and not has.all()
        all_rated = want_rated and not rated_pass
        for rhs, out, tag in _column_blocks(values, rows, sums):
            args = (weights, indices, indptr, rhs, out)
            if rated_pass:
                _run(_gather_rated, (*args, has, tally, partners), tag, spans, n_threads)
            else:
                _run(_gather, args, tag, spans, n_threads)
            rated_pass = False  # the weights are added up with the first columns only
        if all_rated:
            _all_rated(weights, indptr, sums, tally, partners)
    else:
        spans = _minor_spans(indices, n_minor, n_threads)
        extras = (has, tally, partners)
        for rhs, out, tag in _column_blocks(values, rows, sums):
            out[:] = 0.0
            args = (weights, indices, indptr, rhs, out)
            _require_all(_run(_scatter, (*args, *extras), tag, spans, n_threads), indices.size)
            extras = (has, *_tally(0, weights))
    return Contraction(sums, tally, partners) if want_rated else Contraction(sums)


def _column_blocks(
    values: np.ndarray, rows: np.ndarray, sums: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    """Yield the rows of a few columns at a time and a buffer for their sums; fills `sums`."""
    n_columns, width = values.shape[1], 0
    for first in range(0, max(n_columns, 1), COLUMNS):
        n = min(n_columns - first, COLUMNS)
        needed = next(w for w in (1, 2, 4, COLUMNS) if w >= n)
        if needed != width:  # else the buffer is filled again, which saves its page faults
            width, rhs = needed, _aligned((rows.size, needed), values.dtype)
        _pack(values, rows, first, rhs)
        part = sums[:, first : first + n]
        out = part if n == width else _aligned((sums.shape[0], width), np.float64)
        yield rhs, out, (0.0,) * width
        if out is not part:
            part[:] = out[:, :n]


def _run(kernel: Any, args: Any, tag: Any, spans: list[Span], threads: int) -> list[Any]:
    return run_spans(lambda lo, hi: kernel(*args, lo, hi, tag), spans, threads)


def _require_all(done: list[int], n_pairs: int) -> None:
    if min(done, default=0) < 0 or sum(done) != n_pairs:
        raise SchemaError(
            "the stored pairs of a neuron are not in ascending order, as sums over the compressed "
            "axis require: build the connectivity again with mx.build_connectivity"
        )


def _plain_weights(weights: np.ndarray) -> np.ndarray:
    if weights.dtype.kind == "b":
        return weights.view(np.uint8)
    if weights.dtype in (np.uint16, np.uint32):
        return weights.astype(np.int64)
    if weights.dtype.kind not in "if" and weights.dtype != np.uint8:
        raise SchemaError(
            f"weights have dtype {weights.dtype}, expected integers that fit int64, or floats: "
            "convert them with .astype"
        )
    return np.ascontiguousarray(weights)


def _tally(n: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kind = np.float64 if weights.dtype.kind == "f" else np.int64
    return np.zeros((n, 2), dtype=kind), np.zeros(n, dtype=np.uint8)
