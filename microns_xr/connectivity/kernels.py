"""Contraction of a compressed matrix with dense columns, on raw buffers.

A matrix is compressed over its *major* axis: the stored pairs of one major neuron are contiguous,
and ``indices`` gives their positions on the *minor* axis. A sum over the minor axis is a gather
(each major neuron reads the rows of its partners), a sum over the major axis is a scatter.

Both work on up to 16 columns at a time, held in vector registers. Most of the time goes by waiting
for rows that are in no near cache, so that rows start on cache lines, those of later pairs are
requested ahead, and only those with values are read. Each product and each sum is rounded, in
the order of the stored pairs, as in scipy, so that a float64 result is bit-identical to
``csc.T @ dense`` on processors where scipy does not use fused multiply-add.

LLVM divides the vectors where the registers of a processor are narrower. This was run on x86-64,
with AVX-512 and compiled for SSE2 alone (``NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=""``). Results
were bit-identical on ARM (aarch64, with NEON), where scipy does use fused multiply-add. That was
under emulation (QEMU), which says nothing about speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from microns_xr.errors import SchemaError
from microns_xr.threads import Span, balanced_spans, equal_spans, run_spans, usable_threads

# A vector of float64 as a numba type, to add scaled rows of a matrix.
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
        ty = signature.args[1]
        pointer = _row_pointer(context, builder, ty, args[1], args[2], width)
        if ty.dtype == types.float32:  # of values that were float32 before
            vector = builder.fptrunc(args[0], ir.VectorType(ir.FloatType(), width))
            builder.store(vector, pointer, align=4)
        else:
            builder.store(args[0], pointer, align=8)
        return context.get_dummy_value()

    return types.void(acc, array, types.intp), codegen


@_intrinsic
def prefetch_row(_typing: Any, tag: Any, array: Any, row: Any) -> Any:
    """Request a row, to have it in the cache when it is loaded."""
    width = tag.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ty = signature.args[1]
        row = _row_pointer(context, builder, ty, args[1], args[2], 1)
        start = builder.bitcast(row, ir.PointerType(ir.IntType(8)))
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [start.type, i32, i32, i32])
        request = builder.module.declare_intrinsic("llvm.prefetch", [start.type], kind)
        for offset in range(0, width * ty.dtype.bitwidth // 8, _CACHE_LINE):
            line = builder.gep(start, [ir.IntType(64)(offset)])
            builder.call(request, [line, i32(0), i32(3), i32(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(tag, array, types.intp), codegen


COLUMNS = 16
_CACHE_LINE = 64
_AHEAD = np.uintp(64)  # pairs
_UNROLL = np.uintp(4)  # pairs


class Contraction(NamedTuple):
    """Weighted sums, and the share of the weight whose partners have a value."""

    sums: np.ndarray
    # (neurons,), uint8: 0 no stored pair, 1 pairs but no partner with a value, 3 some with one
    partners: np.ndarray | None = None
    # (neurons,), float64: weight with a value over all weight; NaN where that is 0
    share: np.ndarray | None = None
    # (neurons, 2): that weight and all weight, of sums over the major axis, which blocks add up
    tally: np.ndarray | None = None

    def result(self, scope_known: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the sums, NaN where no partner has a value, and the share.

        If the scope is unknown, a sum without stored pairs is NaN as well.
        """
        if self.partners is not None:
            _blank(self.sums, self.partners, scope_known)
        share = self.share
        if self.tally is not None:
            share = np.empty(len(self.tally))
            _divide(self.tally, share)
        return self.sums, share


class Rows(NamedTuple):
    """Values of the neurons of an axis, as the kernels read them."""

    # (rows, width), float32 or float64; 0 in columns that fill up the width
    blocks: list[np.ndarray]
    n_columns: int
    # (neurons,), uint8: whether a neuron has a value; None if all have. Rows of the others are not
    # set and not read: the last row, one more than there are neurons, holds zeros in their place
    rated: np.ndarray | None = None
    memory: Sequence[np.ndarray] = ()  # of the blocks, to give back

    def part(self, lo: int, hi: int) -> Rows:
        """Return some of the neurons, without copying."""
        if self.rated is None:
            return self._replace(blocks=[block[lo:hi] for block in self.blocks])
        blocks = [block[lo:] for block in self.blocks]  # with the row of zeros
        return self._replace(blocks=blocks, rated=self.rated[lo:hi])

    def give_back(self) -> None:
        """Let later calls use the memory; these rows are not used again."""
        for buffer in self.memory:
            if len(_spare) < 2 and buffer.nbytes <= _MAX_SPARE:
                _spare.append(buffer)


# Memory for the next rows. Freed, it would return to the system, and getting 12 MB again may take
# twice as long as the currents of 3 million pairs.
_spare: list[np.ndarray] = []
_MAX_SPARE = 1 << 26  # bytes


# What the values of a neuron are; several at once if they differ.
NAN, FINITE, INFINITE = 1, 2, 4


def arrange(
    values: np.ndarray,
    rows: np.ndarray | None = None,
    threads: int | None = None,
    *,
    kinds: np.ndarray | None = None,
    reuse: bool = False,
) -> Rows:
    """Arrange a C-contiguous table, of which neuron `i` has row ``rows[i]``, or none if negative.

    By default neuron `i` has row `i`. `kinds`, uint8 and 0, get those of the values of each neuron;
    neurons whose values are not finite then count as without. Rows that `reuse` memory are for one
    call, and given back.
    """
    n, n_columns = values.shape[0] if rows is None else rows.size, values.shape[1]
    is_plain = rows is None and kinds is None
    rated = None if rows is None else (rows >= 0).view(np.uint8)
    rows = np.empty(0, np.int32) if rows is None else rows
    kinds = np.empty(0, np.uint8) if kinds is None else kinds
    # As integers, since LLVM uses vectors for their comparison alone.
    whole = np.int64 if values.dtype == np.float64 else np.int32
    exponent = np.array(np.inf, values.dtype).view(whole)[()]
    threads = usable_threads(threads, n * n_columns // 4)  # a value takes less time than a pair
    blocks: list[np.ndarray] = []
    memory: list[Any] = []
    for first in range(0, max(n_columns, 1), COLUMNS):
        width = next(w for w in (1, 2, 4, 8, COLUMNS) if w >= min(n_columns - first, COLUMNS))
        block = values
        if not is_plain or width != n_columns or values.ctypes.data % _CACHE_LINE:
            block = _aligned((n + 1, width), values.dtype, reuse)
            if reuse:
                memory.append(block.base)
            # Rows of a graph are part of its name, so that none is left as it was.
            block[slice(None) if rows.size and not reuse else -1] = 0
            args = (values, rows, first, block, values.view(whole), exponent, kinds)
            _run(_pack, args, (0.0,) * width, equal_spans(n, 4 * threads), threads)
        blocks.append(block)
    if kinds.size:
        rated = (kinds == FINITE).view(np.uint8)
    return Rows(blocks, n_columns, None if rated is None or rated.all() else rated, memory)


@numba.njit(nogil=True, cache=True)
def _pack(  # type: ignore[no-untyped-def]
    values, rows, first, out, bits, exponent, kinds, lo, hi, tag
):
    width = min(out.shape[1], values.shape[1] - first)
    columns, bits = values[:, first : first + width], bits[:, first : first + width]
    for i in range(lo, hi):
        row = np.intp(rows[i]) if rows.size else np.intp(i)
        if row < 0:
            continue
        if width == out.shape[1]:
            store_row(load_row(tag, columns, row), out, i)
        else:
            for k in range(out.shape[1]):
                out[i, k] = columns[row, k] if k < width else 0.0
        if kinds.size:
            n_special = n_infinite = 0
            for k in range(width):
                n_special += (bits[row, k] & exponent) == exponent
                n_infinite += (bits[row, k] << 1) == (exponent << 1)  # without the sign
            kinds[i] |= NAN * (n_special > n_infinite) + INFINITE * (n_infinite > 0)
            kinds[i] |= FINITE * (n_special < width or width == 0)


@numba.njit(nogil=True, cache=True)
def _gather(weights, indices, indptr, rhs, out, lo, hi, tag):  # type: ignore[no-untyped-def]
    ahead = _pairs_ahead(indices, indptr, hi)
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        fours = start + (stop - start) // _UNROLL * _UNROLL
        acc = zero_row(tag)
        for p in range(start, fours, _UNROLL):
            for k in range(_UNROLL):
                prefetch_row(tag, rhs, np.intp(indices[p + k + ahead]))
                acc = _add(acc, weights, indices, rhs, p + k, tag)
        for p in range(fours, stop):
            prefetch_row(tag, rhs, np.intp(indices[p + ahead]))
            acc = _add(acc, weights, indices, rhs, p, tag)
        store_row(acc, out, j)


@numba.njit(forceinline=True)
def _pairs_ahead(indices, indptr, hi):  # type: ignore[no-untyped-def]
    # The last pairs of all have none after them to look ahead to.
    return _AHEAD if np.uintp(indptr[hi]) + _AHEAD <= np.uintp(indices.size) else np.uintp(0)


@numba.njit(nogil=True, cache=True)
def _gather_rated(  # type: ignore[no-untyped-def]
    weights, indices, indptr, rhs, rated, out, share, partners, lo, hi, tag
):
    # Partners without a value all read the row of zeros, so that they need no branch and no cache.
    zeros = np.uintp(rhs.shape[0] - 1)
    ahead = _pairs_ahead(indices, indptr, hi)
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        fours = start + (stop - start) // _UNROLL * _UNROLL
        acc = zero_row(tag)
        total = of_rated = 0
        some = np.uint8(0)
        for p in range(start, fours, _UNROLL):
            for k in range(_UNROLL):
                later = np.uintp(indices[p + k + ahead])
                prefetch_row(tag, rhs, np.intp(later if rated[later] else zeros))
                i = np.uintp(indices[p + k])
                weight, has = weights[p + k], rated[i]
                row = load_row(tag, rhs, np.intp(i if has else zeros))
                acc = add_scaled(acc, np.float64(weight), row)
                total += weight
                of_rated += weight * has
                some |= has
        for p in range(fours, stop):
            i = np.uintp(indices[p])
            weight, has = weights[p], rated[i]
            row = load_row(tag, rhs, np.intp(i if has else zeros))
            acc = add_scaled(acc, np.float64(weight), row)
            total += weight
            of_rated += weight * has
            some |= has
        store_row(acc, out, j)
        share[j] = np.float64(of_rated) / np.float64(total) if total != 0 else np.nan
        partners[j] = 3 if some else stop > start


@numba.njit(forceinline=True)
def _add(acc, weights, indices, rhs, p, tag):  # type: ignore[no-untyped-def]
    return add_scaled(acc, np.float64(weights[p]), load_row(tag, rhs, np.intp(indices[p])))


@numba.njit(nogil=True, cache=True)
def _divide(tally, share):  # type: ignore[no-untyped-def]
    for j in range(share.size):
        total = np.float64(tally[j, 1])
        share[j] = np.float64(tally[j, 0]) / total if total != 0 else np.nan


@numba.njit(nogil=True, cache=True)
def _blank(sums, partners, scope_known):  # type: ignore[no-untyped-def]
    for j in range(partners.size):
        if partners[j] == 1 or (partners[j] == 0 and not scope_known):
            for k in range(sums.shape[1]):
                sums[j, k] = np.nan


@numba.njit(nogil=True, cache=True)
def _all_rated(weights, indptr, sums, share, partners, lo, hi):  # type: ignore[no-untyped-def]
    # If every neuron has a value the share is 1, unless all weights of a neuron are 0. Weights are
    # read only where the sum is 0, which saves one random memory access per neuron.
    for j in range(lo, hi):
        start, stop = np.uintp(indptr[j]), np.uintp(indptr[j + 1])
        partners[j] = np.uint8(3 * (stop > start))
        some = sums.shape[1] > 0 and sums[j, 0] != 0
        if not some:
            for p in range(start, stop):
                some |= weights[p] != 0
        share[j] = 1.0 if some else np.nan


@numba.njit(nogil=True, cache=True)
def _scatter(  # type: ignore[no-untyped-def]
    weights, indices, indptr, rhs, rated, out, tally, partners, lo, hi, tag
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
        has = not rated.size or rated[j] > 0
        if has:
            row = load_row(tag, rhs, np.intp(j))
            for p in range(np.uintp(start), np.uintp(stop)):
                i = np.intp(indices[p])
                if i < lo or i >= hi:
                    return -1  # out of order: it belongs to another thread
                store_row(add_scaled(load_row(tag, out, i), np.float64(weights[p]), row), out, i)
        if want_rated:
            some = np.uint8(3 if has else 1)
            for p in range(np.uintp(start), np.uintp(stop)):
                k = np.uintp(indices[p])
                tally[k, 0] += weights[p] * has
                tally[k, 1] += weights[p]
                partners[k] |= some
    return done


def _aligned(shape: tuple[int, int], dtype: Any, reuse: bool = False) -> np.ndarray:
    # Rows of 8 float64 that start on a cache line are read with one access instead of two.
    n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    buffer = np.empty(0, dtype=np.uint8)
    if reuse:
        with suppress(IndexError):
            buffer = _spare.pop()
    if buffer.size < n_bytes + _CACHE_LINE:
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
    rows: Rows,
    *,
    over: Literal["minor", "major"],
    want_rated: bool = False,
    threads: int | None = None,
) -> Contraction:
    """Sum ``weight * values`` over one axis of a compressed matrix."""
    weights = _plain_weights(weights)
    n_out = indptr.size - 1 if over == "minor" else n_minor
    n_threads = usable_threads(threads, indices.size)
    sums = _aligned((n_out, rows.n_columns), np.float64)
    parts = list(_column_blocks(rows, sums))
    share, tally, partners = None, None, np.zeros(n_out if want_rated else 0, np.uint8)
    if over == "minor":
        n_shares = n_out if want_rated or rows.rated is not None else 0
        share, partners = np.empty(n_shares), np.empty(n_shares, np.uint8)

        def gather(lo: int, hi: int) -> None:
            for rhs, out, tag in parts:
                args = (weights, indices, indptr, rhs)
                if rows.rated is not None:
                    _gather_rated(*args, rows.rated, out, share, partners, lo, hi, tag)
                else:
                    _gather(*args, out, lo, hi, tag)
            if want_rated and rows.rated is None:
                _all_rated(weights, indptr, parts[0][1], share, partners, lo, hi)

        run_spans(gather, balanced_spans(indptr, 8 * n_threads), n_threads)
    else:
        spans = _minor_spans(indices, n_minor, n_threads)
        rated = np.empty(0, np.uint8) if rows.rated is None else rows.rated
        tally = np.zeros((partners.size, 2), np.float64 if weights.dtype.kind == "f" else np.int64)
        counts = (tally, partners)
        for rhs, out, tag in parts:
            out[:] = 0.0
            args = (weights, indices, indptr, rhs, rated, out, *counts)
            _require_all(_run(_scatter, args, tag, spans, n_threads), indices.size)
            counts = (tally[:0], partners[:0])  # weights are added up with the first columns only
    for i, (_, out, _) in enumerate(parts):
        part = sums[:, i * COLUMNS : (i + 1) * COLUMNS]
        if out.shape[1] != part.shape[1]:
            part[:] = out[:, : part.shape[1]]
    return Contraction(sums, partners, share, tally) if want_rated else Contraction(sums)


def _column_blocks(
    rows: Rows, sums: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    """Yield the rows of a few columns at a time and a buffer for their sums."""
    for i, rhs in enumerate(rows.blocks):
        part, width = sums[:, i * COLUMNS : (i + 1) * COLUMNS], rhs.shape[1]
        out = part if part.shape[1] == width else _aligned((sums.shape[0], width), np.float64)
        yield rhs, out, (0.0,) * width


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
