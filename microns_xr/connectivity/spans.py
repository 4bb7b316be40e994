"""Reading the pairs of chosen neurons from a source, in as few contiguous reads as make sense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from microns_xr.connectivity.arrays import Pattern, make_pattern
from microns_xr.connectivity.blocks import BLOCK_PAIRS, PairSource
from microns_xr.connectivity.patterns import check_sorted

__all__ = ["read_neurons"]


def read_neurons(
    source: PairSource, majors: np.ndarray, names: Sequence[str]
) -> tuple[Pattern, dict[str, np.ndarray]]:
    """Read all pairs of some neurons of the compressed axis.

    Parameters
    ----------
    source : PairSource
        Where they are read from.
    majors : numpy.ndarray
        Ascending positions of neurons.
    names : sequence of str
        Variables.

    Returns
    -------
    tuple of (Pattern, dict of str to numpy.ndarray)
        The pairs of these neurons alone, and the int64 values of each variable.

    Raises
    ------
    SchemaError
        If partners of a neuron do not ascend.
    """
    indptr = source.indptr
    starts, stops = (indptr[majors + k].astype(np.int64) for k in (0, 1))
    new_indptr = np.concatenate([[0], np.cumsum(stops - starts)])
    out = {"indices": np.empty(int(new_indptr[-1]), dtype=np.int32)}
    out |= {name: np.empty(int(new_indptr[-1]), dtype=np.int64) for name in names}
    for lo, hi in _runs(starts, stops, source.chunk):
        first, last = int(starts[lo]), int(stops[hi - 1])
        lengths = stops[lo:hi] - starts[lo:hi]
        target = slice(int(new_indptr[lo]), int(new_indptr[hi]))
        gaps = int(lengths.sum()) < last - first
        if gaps:
            shift = np.repeat(starts[lo:hi] - first - (new_indptr[lo:hi] - target.start), lengths)
            picked = shift + np.arange(shift.size)
        for name, values in out.items():
            read = source.read(name, first, last)
            values[target] = read[picked] if gaps else read
    n_pre, n_post = source.shape
    shape = (n_pre, majors.size) if source.compressed == "post" else (majors.size, n_post)
    pattern = make_pattern(out.pop("indices"), new_indptr, shape, source.compressed)
    check_sorted(pattern.indices, pattern.indptr, pattern.n_minor)
    return pattern, out


def _runs(starts: np.ndarray, stops: np.ndarray, chunk: int) -> Iterator[tuple[int, int]]:
    """Group neurons whose spans are read at once.

    Two neurons in one chunk would have it decoded twice, so a gap of less than a chunk is read
    and thrown away; a run is bounded by what a block of dask holds.
    """
    lo = 0
    for hi in range(1, starts.size + 1):
        far = hi < starts.size and (
            starts[hi] - stops[hi - 1] >= chunk or stops[hi] - starts[lo] > BLOCK_PAIRS
        )
        if hi == starts.size or far:
            if stops[hi - 1] > starts[lo]:
                yield lo, hi
            lo = hi
