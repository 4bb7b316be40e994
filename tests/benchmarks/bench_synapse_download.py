"""All synapses of all neurons of a demo release, through the loopback service.

    python tests/benchmarks/bench_synapse_download.py --nuclei 94000 --synapses 2000000

The service runs in a process of its own and logs how long it took for every answer; what remains
of the time is the client's: caveclient, sorting, counting, files. With one worker the two add up.
``--naive 500`` asks the same in batches of 500 postsynaptic ids that each carry all presynaptic
ones, and tells how many synapses the row limit left of them. Peak memory is that of the client's process, less what it had before the download.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from cave_server import CaveServer

import microns_xr as mx
from microns_xr.sources.synapses import download_synapses, resolve_ids


def serve(pipe: Connection, nuclei: int, synapses: int, row_limit: int) -> None:
    """Serve a demo release; give the log of the requests since the last time when asked."""
    demo = mx.sources.DemoSource(1718, n_nuclei=nuclei, n_synapses=synapses)
    names = ("nucleus_detection_v0", "synapses_pni_2")
    tables = {name: demo.read(name) for name in names}
    roots = resolve_ids(tables[names[0]]["id"], tables[names[0]])
    truth = tables[names[1]]
    both = truth["pre_pt_root_id"].isin(roots) & truth["post_pt_root_id"].isin(roots)
    wanted = truth[both].sort_values(["post_pt_root_id", "pre_pt_root_id", "id"])
    columns = {n: wanted[n].to_numpy() for n in wanted.columns[:4]}
    with CaveServer(tables, row_limit=row_limit) as server:
        pipe.send((server.url, roots, columns))
        while pipe.recv():
            pipe.send([(r.path, r.bytes_in, r.bytes_out, r.seconds) for r in server.requests])
            server.requests.clear()


class Peak:
    """The most memory of this process while it runs, and how much it had before."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self.before = self.most = self._process.memory_info().rss
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()


def report(name: str, pipe: Connection, seconds: float, peak: Peak) -> None:
    """Print one line of the table."""
    pipe.send(True)
    log = pipe.recv()
    queries = [entry for entry in log if entry[0].endswith("/query")]
    served = sum(entry[3] for entry in log)
    sent, got = (sum(entry[i] for entry in log) / 2**20 for i in (1, 2))
    print(
        f"{name:<24} {seconds:7.1f} s {served:7.1f} s {len(log):6d} {len(queries):8d} "
        f"{sent:8.1f} {got:8.1f} {(peak.most - peak.before) / 1e6:8.0f}"
        + (
            f" {100 * (1 - served / seconds):7.0f} %"
            if "worker" not in name or " 1 " in name
            else ""
        )
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=int, default=94_000)
    parser.add_argument("--synapses", type=int, default=2_000_000)
    parser.add_argument("--row-limit", type=int, default=200_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--naive", type=int, default=0, help="ids of a batch; 0: not at all")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    options = (other, arguments.nuclei, arguments.synapses, arguments.row_limit)
    process = context.Process(target=serve, args=options)
    process.start()
    url, roots, wanted = pipe.recv()
    print(f"{len(roots):,} x {len(roots):,} roots, {len(wanted['id']):,} synapses to find")
    print(
        f"{'':<24} {'time':>9} {'server':>9} {'requests':>8} {'queries':>6} {'MiB up':>8} "
        f"{'MiB down':>8} {'peak MB':>8} {'ours':>9}"
    )
    folder = Path(tempfile.mkdtemp())
    try:
        with mx.sources.CaveSource(1718, server_address=url, auth_token="none") as source:
            source.timestamp()  # imports caveclient and numpy's and pyarrow's own
            for run, workers in enumerate(arguments.workers):
                with Peak() as peak:
                    started = time.perf_counter()
                    found = download_synapses(
                        source, folder / str(run), pre=roots, post=roots, workers=workers,
                        progress=False,
                    )  # fmt: skip
                    seconds = time.perf_counter() - started
                report(f"ours, {workers} worker{'s' * (workers > 1)}", pipe, seconds, peak)
                frame = found.read()
                for name, column in wanted.items():
                    assert np.array_equal(frame[name].to_numpy(), column), name
                started = time.perf_counter()
                found.read()
                print(f"{'  read again':<24} {time.perf_counter() - started:7.2f} s")
                del frame
            if arguments.naive:
                with Peak() as peak:
                    started = time.perf_counter()
                    rows = 0
                    for start in range(0, len(roots), arguments.naive):
                        post = roots[start : start + arguments.naive]
                        filters = {"pre_pt_root_id": roots, "post_pt_root_id": post}
                        answer = source.query("synapses_pni_2", filter_in=filters,
                                              select_columns=list(wanted))  # fmt: skip
                        rows += answer.table.num_rows
                    seconds = time.perf_counter() - started
                report(f"batches of {arguments.naive}", pipe, seconds, peak)
                print(f"  {rows:,} of {len(wanted['id']):,} synapses arrived")
    finally:
        pipe.send(False)
        process.join()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
