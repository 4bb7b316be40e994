"""All synapses between neurons through the loopback service, beside uncounted batches."""

from __future__ import annotations

import itertools
import multiprocessing

import numpy as np
import pytest
from cave_server import CaveServer

import microns_xr as mx
from microns_xr.sources.synapses import download_synapses, resolve_ids

NUCLEI, SYNAPSES = "nucleus_detection_v0", "synapses_pni_2"
COLUMNS = ["id", "pre_pt_root_id", "post_pt_root_id", "size"]


def demo_tables(scale):
    n_nuclei, n_synapses = max(600, int(94_000 * scale)), max(5000, int(2e6 * scale))
    demo = mx.sources.DemoSource(1718, n_nuclei=n_nuclei, n_synapses=n_synapses)
    return {name: demo.read(name) for name in (NUCLEI, SYNAPSES)}


def serve(pipe, scale):
    with CaveServer(demo_tables(scale), row_limit=200_000) as server:
        pipe.send(server.url)
        pipe.recv()


@pytest.fixture(scope="module")
def service(scale):
    """The service in a process of its own: its source, the roots, the synapses among them."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, scale))
    process.start()
    tables = demo_tables(scale)
    roots = resolve_ids(tables[NUCLEI]["id"], tables[NUCLEI])
    truth = tables[SYNAPSES]
    both = truth["pre_pt_root_id"].isin(roots) & truth["post_pt_root_id"].isin(roots)
    with mx.sources.CaveSource(1718, server_address=pipe.recv(), auth_token="none") as source:
        source.timestamp()  # imports caveclient
        yield source, roots, np.sort(truth["id"][both].to_numpy())
    pipe.send(None)
    process.join()


def ours(source, roots, folder, workers):
    request = download_synapses(
        source, folder, pre=roots, post=roots, workers=workers, progress=False
    )
    return request.read()["id"].to_numpy()


def uncounted(source, roots, folder):
    parts = []
    for start in range(0, len(roots), 500):
        filters = {"pre_pt_root_id": roots, "post_pt_root_id": roots[start : start + 500]}
        answer = source.query(SYNAPSES, filter_in=filters, select_columns=COLUMNS)
        parts.append(answer.table["id"].to_numpy())
    return np.concatenate(parts)


WAYS = {
    "download_synapses, 1 worker": lambda *args: ours(*args, workers=1),
    "download_synapses, 3 workers": lambda *args: ours(*args, workers=3),
    "batches of 500, uncounted": uncounted,
}


@pytest.mark.benchmark(group="synapse download")
@pytest.mark.parametrize("way", WAYS)
def test_download(benchmark, service, tmp_path, way):
    source, roots, wanted = service
    names = map(str, itertools.count())

    def setup():
        return (source, roots, tmp_path / next(names)), {}

    found = benchmark.pedantic(WAYS[way], setup=setup, rounds=2)
    # The row limit cuts an answer without a word: that is what counting is for.
    benchmark.extra_info["synapses that arrived"] = f"{len(found)} of {len(wanted)}"
    if WAYS[way] is not uncounted:
        np.testing.assert_array_equal(np.sort(found), wanted)
