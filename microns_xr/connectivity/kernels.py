"""Contraction of a compressed matrix with dense columns, on raw buffers.

A matrix is compressed over its *major* axis: the stored pairs of one major neuron are contiguous,
``indices`` gives their position on the *minor* axis. A sum over the minor axis is a gather (each
major neuron reads the rows of its partners), a sum over the major axis a scatter.

Both work on ``LANES`` columns at a time, held in one vector register: the rows of 8 float64 are one
cache line, and going through the pairs twice for 16 columns is cheaper than reading rows that no
longer fit in the cache. Products and sums are rounded one by one, in the order of the stored
pairs, as scipy does, so that a float64 result has the very bits of ``csc.T @ dense`` on
processors where scipy uses no fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import scipy.sparse

from microns_xr.connectivity.lanes import add_scaled, load_row, store_row, zero_row
from microns_xr.errors import SchemaError
from microns_xr.threads import Span, balanced_spans, run_spans, usable_threads

__all__ = ["LANES", "Contraction", "contract_buffers", "contract_scipy", "minor_spans"]

LANES = 8
_CACHE_LINE = 64


class Contraction(NamedTuple):
    """Weighted sums, and which share of the weight they rest on.

    Attributes
    ----------
    sums : numpy.ndarray
        (neurons, columns), float64.
    tally : numpy.ndarray or None
        (neurons, 2): weight of all stored pairs, and of those whose partner has a value.
    partners : numpy.ndarray or None
        (neurons,), uint8: 0 no stored pair, 1 pairs but no partner with a value, 3 some with one.
    """

    sums: np.ndarray
    tally: np.ndarray | None = None
    partners: np.ndarray | None = None

    @property
    def share(self) -> np.ndarray | None:
        """(neurons,), float64: weight with a value over all weight; NaN where that is 0."""
        if self.tally is None:
            return None
        total, rated = (self.tally[:, k].astype(np.float64) for k in (0, 1))
        return np.divide(rated, total, out=np.full(total.size, np.nan), where=total != 0)

    def result(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the sums, NaN where no partner has a value, and the share."""
        sums = self.sums
        if self.partners is not None:
            sums[self.partners == 1] = np.nan
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
    # Apart from the sums, because the first pair or two nearly always settle it.
    for p in range(start, stop):
        if has[np.uintp(indices[p])]:
            return np.uint8(3)
    return np.uint8(stop > start)


@numba.njit(nogil=True, cache=True)
def _all_rated(weights, indptr, sums, tally, partners):  # type: ignore[no-untyped-def]
    # Where every neuron has a value the share is 1, unless a neuron's weights are all 0. Looking
    # only where its sum is 0 spares an access to far memory for each neuron.
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
    # Every span of minor neurons walks all major neurons in order, so that a sum has the same
    # order, and the same bits, whatever the number of threads.
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
    # Rows of 8 float64 that start on a cache line are read with one access and not two.
    n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    buffer = np.empty(n_bytes + _CACHE_LINE, dtype=np.uint8)
    offset = -buffer.ctypes.data % _CACHE_LINE
    return buffer[offset : offset + n_bytes].view(dtype).reshape(shape)


def minor_spans(indices: np.ndarray, n_minor: int, n_spans: int) -> list[Span]:
    """Cut the minor axis into spans with about as many pairs, judged by a sample of them."""
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
    """Sum ``weight * values`` over one axis of a compressed matrix.

    Parameters
    ----------
    weights : numpy.ndarray
        (pairs,), integers or floats.
    indices, indptr : numpy.ndarray
        The pattern. A sum over the major axis needs indices that ascend within a span.
    n_minor : int
        Length of the minor axis.
    values : numpy.ndarray
        (any number of rows, columns), float32 or float64, C-contiguous, finite where used.
    rows : numpy.ndarray
        For each neuron of the axis that is summed over the row of `values`, -1 where it has none.
    over : {"minor", "major"}
        The axis that is summed over.
    want_rated : bool, optional
        Whether to return also the weights the sums rest on.
    threads : int, optional
        See `usable_threads`; the result does not depend on it.

    Returns
    -------
    Contraction
        float64 sums of shape (neurons of the other axis, columns).

    Raises
    ------
    SchemaError
        If indices do not ascend in a sum over the major axis.

    Examples
    --------
    The pairs (0, 0) of weight 2 and (1, 0) of weight 3, compressed over the second axis:

    >>> contract_buffers(np.array([2, 3]), np.array([0, 1], np.int32), np.array([0, 2], np.int32),
    ...     2, np.array([[10.0], [1.0]]), np.array([0, 1]), over="minor").sums
    array([[23.]])
    """
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
        spans = minor_spans(indices, n_minor, n_threads)
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
    """Give the rows of a few columns at a time, and where their sums go; fills `sums`."""
    n_columns = values.shape[1]
    for first in range(0, max(n_columns, 1), LANES):
        width = next(w for w in (1, 2, 4, LANES) if w >= min(n_columns - first, LANES))
        rhs = _aligned((rows.size, width), values.dtype)
        _pack(values, rows, first, rhs)
        out = sums if width == n_columns else _aligned((sums.shape[0], width), np.float64)
        yield rhs, out, (0.0,) * width
        if out is not sums:
            sums[:, first : first + width] = out[:, : n_columns - first]


def _run(kernel: Any, args: Any, tag: Any, spans: list[Span], threads: int) -> list[Any]:
    return run_spans(lambda lo, hi: kernel(*args, lo, hi, tag), spans, threads)


def _require_all(done: list[int], n_pairs: int) -> None:
    if min(done, default=0) < 0 or sum(done) != n_pairs:
        raise SchemaError(
            "the stored pairs of a neuron are not in ascending order, which sums over the "
            "compressed axis need: build the connectivity again with mx.build_connectivity"
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


def contract_scipy(
    weights: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    n_minor: int,
    values: np.ndarray,
    rows: np.ndarray,
    *,
    over: Literal["minor", "major"],
    want_rated: bool = False,
) -> Contraction:
    """Do what `contract_buffers` does with scipy, on one thread: the same numbers, to compare with.

    Parameters
    ----------
    weights, indices, indptr, n_minor, values, rows, over, want_rated
        As for `contract_buffers`.

    Returns
    -------
    Contraction
        The same.

    Examples
    --------
    >>> contract_scipy(np.array([2, 3]), np.array([0, 1], np.int32), np.array([0, 2], np.int32),
    ...     2, np.array([[10.0], [1.0]]), np.array([0, 1]), over="minor").sums
    array([[23.]])
    """
    weights = _plain_weights(weights)
    has = rows >= 0
    dense = np.where(has[:, None], values[rows].astype(np.float64), 0.0)

    def product(data: np.ndarray, other: np.ndarray) -> np.ndarray:
        major_by_minor = scipy.sparse.csr_array(
            (data, indices, indptr), shape=(indptr.size - 1, n_minor)
        )
        return np.asarray((major_by_minor if over == "minor" else major_by_minor.T) @ other)

    sums = product(weights.astype(np.float64), dense)
    if not want_rated:
        return Contraction(sums)
    kind = np.float64 if weights.dtype.kind == "f" else np.int64
    columns = np.stack([np.ones(rows.size, dtype=kind), has.astype(kind)], axis=1)
    tally = product(weights.astype(kind), columns)
    some = product(np.ones(weights.size, dtype=np.int64), columns.astype(np.int64)) > 0
    return Contraction(sums, tally, (some @ [1, 2]).astype(np.uint8))
