"""What an xarray user types on connectivity, with the time of the first call and of later ones.

    python tests/benchmarks/bench_plain.py [NEURONS] [PAIRS] [SECONDS]

prints a table in markdown: processor time (of both threads) of the first call in a process and of
later calls, the memory of one call beyond what was there before, and the same for arrays of
pydata-sparse, each of which may take as many seconds. Every line runs in a forked process, in which
no kernel was loaded before. The ordinary tests compare the result of every line with dense arrays.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sparse
import xarray as xr
from synthetic import make_connectivity, make_rates, make_units

import microns_xr as mx

PRE, POST = "pre_nucleus_id", "post_nucleus_id"

IN_MEMORY = """
size.sel(post_nucleus_id=one)
size.sel(pre_nucleus_id=one)
size.sel(pre_nucleus_id=one, post_nucleus_id=other)
size.sel(post_nucleus_id=few)
size.sel(pre_nucleus_id=few)
size.sel(pre_nucleus_id=many, post_nucleus_id=many)
size.sel(post_nucleus_id=many[::-1])
size.sel(post_nucleus_id=slice(one, other))
size.isel(pre_nucleus_id=slice(0, 100))
size.sel(pre_nucleus_id=size.pre_cell_type == "type 03")
size.sel(pre_nucleus_id=pairs.pre, post_nucleus_id=pairs.post)
size.where(size.post_cell_type == "type 03", drop=True)
size.drop_sel(pre_nucleus_id=few)
size.sortby("post_cell_type")
size.transpose("post_nucleus_id", "pre_nucleus_id")
xr.concat([size[:100], size[100:]], "pre_nucleus_id")
size.sum("pre_nucleus_id")
size.sum("post_nucleus_id")
float(size.sum())
size.mean("pre_nucleus_id")
size.max("pre_nucleus_id")
size.max("post_nucleus_id")
size.std("pre_nucleus_id")
size.std("post_nucleus_id")
size.median("pre_nucleus_id")
size.quantile(0.999, "post_nucleus_id")
size.idxmax("pre_nucleus_id")
size.argmax("post_nucleus_id")
(size > 0).sum("post_nucleus_id")
(size == 0).sum()
size.count("pre_nucleus_id")
size.any("post_nucleus_id")
size.sum("pre_nucleus_id").plot()
size.sum("pre_nucleus_id").to_series()
size * 2
size / size.sum("pre_nucleus_id")
size * gain
np.log1p(size)
size > 900
size.where(size > 900, 0)
size.clip(max=900)
size.astype("float32")
size + size
size.equals(size.copy(deep=True))
xr.dot(size, rates, dim="pre_nucleus_id")
size @ gain
xr.dot(size, onwards, dim="post_nucleus_id")
size.weighted(gain).mean("post_nucleus_id")
size.groupby("pre_cell_type").sum()
size.groupby("post_cell_type").mean()
size.groupby(["pre_cell_type", "post_cell_type"]).sum()
size.groupby(["pre_cell_type", "post_cell_type"]).median()
size.groupby("pre_cell_type").sum().groupby("post_cell_type").sum()
"""
OF_UNITS = """
units.rate_ori.groupby("cell_type").mean()
units.where(units.layer == "type 04", drop=True)
units.groupby("layer").mean()
"""
LAZILY = """
lazy.sel(post_nucleus_id=few)
lazy.sel(pre_nucleus_id=few)
lazy.sum("pre_nucleus_id")
lazy.sum("post_nucleus_id")
lazy.max("post_nucleus_id")
lazy.std("pre_nucleus_id")
lazy.std("post_nucleus_id")
lazy.idxmax("pre_nucleus_id")
(lazy > 900).sum()
lazy / lazy.sum("pre_nucleus_id")
xr.dot(lazy, rates, dim="pre_nucleus_id")
lazy.groupby("post_cell_type").sum()
lazy.groupby(["pre_cell_type", "post_cell_type"]).sum()
"""
REFUSED = """
size.values
size.plot()
size + 1
size.where(size > 900)
size.groupby(["pre_cell_type", "post_cell_type"]).first()
size.to_netcdf(path)
size.to_zarr(folder, mode="w", consolidated=False)
"""
PACKAGE = """
mx.select_connections(connectivity, post=few)
mx.degrees(connectivity)
mx.group_connectivity(connectivity, "cell_type", units=units)
"""
LINES = {
    "in memory": IN_MEMORY,
    "units": OF_UNITS,
    "lazily": LAZILY,
    "refused": REFUSED,
    "functions of the package": PACKAGE,
}
LINES = {kind: text.strip().splitlines() for kind, text in LINES.items()}


def names(n, n_pairs, form="package"):
    """Return what the lines name, with the matrix in one of the forms of `as_form`."""
    units = make_units(n)
    ids = units.nucleus_id.values
    units["rate_ori"] = make_rates(n, 8).rename(direction="orientation")
    connectivity = mx.annotate(make_connectivity(n, n_pairs), units, "cell_type")
    size = as_form(connectivity.synapse_size, form)
    rng = np.random.default_rng(0)
    few, many = (np.sort(rng.choice(ids, min(k, n // 4), replace=False)) for k in (300, 5000))
    onwards = size.drop_vars(["pre_cell_type", "post_cell_type"])
    return {
        "xr": xr,
        "np": np,
        "mx": mx,
        "units": units,
        "connectivity": connectivity,
        "size": size,
        "few": few,
        "many": many,
        "one": ids[n // 3],
        "other": ids[n // 2],
        "lazy": size.copy(data=size.chunk({POST: max(n // 10, 1)}).data),
        "rates": make_rates(n, 8).rename(nucleus_id=PRE),
        "gain": xr.DataArray(1 + np.arange(n) % 3, {POST: ids}),
        "onwards": onwards.rename({PRE: POST, POST: "far_nucleus_id"}),
        "pairs": SimpleNamespace(
            pre=xr.DataArray(rng.choice(ids, 100), dims="pair"),
            post=xr.DataArray(rng.choice(ids, 100), dims="pair"),
        ),
        "path": str(Path(tempfile.gettempdir()) / "microns_xr_bench_plain.nc"),
        "folder": str(Path(tempfile.gettempdir()) / "microns_xr_bench_plain.zarr"),
    }


def as_form(size, form):
    if form == "package":
        return size
    data = size.data
    if form == "dense":
        return size.copy(data=data.todense())
    buffers = (data.data, data.indices, data.indptr)
    plain = sparse.GCXS(buffers, shape=data.shape, compressed_axes=(1,))
    return size.copy(data=plain if form == "GCXS" else plain.tocoo())


def run(line, given):
    """Evaluate a line, and compute what is lazy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = eval(line, given)
        if line.startswith(("lazy", "(lazy", "xr.dot(lazy")):
            found = found.compute()
    if isinstance(found, list):  # a plot
        found = found[0].get_ydata()
        plt.close("all")
    return found


@functools.cache
def small(form):
    return names(400, 8000, form)


@pytest.mark.parametrize("line", [line for kind in ("in memory", "lazily") for line in LINES[kind]])
def test_line(line):
    found, expected = run(line, small("package")), run(line, small("dense"))
    if isinstance(found, xr.DataArray):
        # Of a neuron without input the share of every neuron is 0, and not 0 / 0.
        expected = expected.fillna(0) if " / " in line else expected
        xr.testing.assert_allclose(found.as_numpy(), expected.as_numpy(), rtol=1e-12)
    elif isinstance(found, pd.Series):
        pd.testing.assert_series_equal(found, expected)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("line", LINES["refused"])
def test_refused(line):
    # Far more cells than become dense on request.
    with pytest.raises(mx.errors.SchemaError, match=r"mx\.|where\(condition, 0\)"):
        run(line, large())


@functools.cache
def large():
    return names(60_000, 8000)


@pytest.mark.parametrize("line", LINES["units"])
def test_units(line):
    found = run(line, small("package"))
    assert "nucleus_id" not in found.dims or found.pt_root_id.dtype == np.int64
    by = "cell_type" if "cell_type" in line else "layer"
    if by in found.dims:
        table = (
            small("package")["units"]
            .rate_ori.to_pandas()
            .groupby(small("package")["units"][by].values)
        )
        rates = found if isinstance(found, xr.DataArray) else found.rate_ori
        np.testing.assert_allclose(rates.to_pandas(), table.mean(), rtol=1e-12)


def test_lines_of_the_package():
    given = small("package")
    size = given["size"].values
    selected, degrees, groups = (run(line, given) for line in LINES["functions of the package"])
    at = np.searchsorted(given["units"].nucleus_id, given["few"])
    np.testing.assert_array_equal(selected.synapse_size.values, size[:, at])
    np.testing.assert_array_equal(degrees.in_size, size.sum(axis=0))
    types, codes = np.unique(given["units"].cell_type.values.astype(str), return_inverse=True)
    one_hot = codes[:, None] == np.arange(types.size)
    np.testing.assert_array_equal(groups.synapse_size, one_hot.T @ size @ one_hot)


# The table.


def status(name):
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(name):
            return int(row.split()[1]) / 1000  # MB
    raise KeyError(name)


def measure(line, given, seconds, out):
    """Time a line in a process that has not run any before; send the results, or the error."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds,) * 2)
    error = ""
    first = later = np.nan
    start = time.process_time()
    try:
        run(line, given)
        first = time.process_time() - start
        # The mean, because the clock of processor time of some systems has steps of 10 ms.
        start, n = time.process_time(), 0
        while n < 40 and time.process_time() - start < 0.15:
            run(line, given)
            n += 1
        later = (time.process_time() - start) / n
    except Exception as e:
        error = type(e).__name__
        first = time.process_time() - start
    memory = np.nan
    if not error:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before = status("VmRSS")
        found = run(line, given)
        memory = max(0.0, status("VmHWM") - before)
        del found
    out.send((first, later, memory, error))


def measured(line, given, seconds):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(line, given, seconds, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def text(seconds):
    if np.isnan(seconds):
        return ""
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def before(result, seconds):
    if result is None:
        return f"> {seconds} s"
    first, later, _, error = result
    return error or f"{text(first)} / {text(later)}"


def table(n, n_pairs, seconds):
    """Print how long each line takes."""
    mpl.use("Agg")
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    given = {form: names(n, n_pairs, form) for form in ("package", "GCXS", "COO")}
    print(f"{n:,} neurons, {n_pairs:,} pairs\n")
    for kind, lines in LINES.items():
        plain = ("GCXS", "COO") if kind == "in memory" else ("GCXS",) if kind == "lazily" else ()
        head = [kind, "first, ms", "later, ms", "memory, MB", *(f"{form}, ms" for form in plain)]
        print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
        for line in lines:
            result = measured(line, given["package"], 60)
            first, later, memory, error = result or (np.nan, np.nan, np.nan, "> 60 s")
            cells = [text(first), error or text(later), "" if error else f"{memory:.1f}"]
            cells += [before(measured(line, given[form], seconds), seconds) for form in plain]
            print("| `" + line.replace("|", "\\|") + "` | " + " | ".join(cells) + " |", flush=True)
        print()


if __name__ == "__main__":
    sizes = [int(text) for text in sys.argv[1:]]
    table(*sizes, *(94_000, 1_200_000, 20)[len(sizes) :])
