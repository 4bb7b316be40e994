"""``kill -9`` in the middle of a download of synapses, and the same call again."""

import itertools
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import synapse_killed
from cave_server import CaveServer
from synapse_service import ROOT, MemoryService, expected, make_synapses

from microns_xr.sources import synapses
from microns_xr.sources.synapses import SynapseSet, download_synapses, list_requests

FRAME = make_synapses(5000, n_roots=100)
ROOTS = ROOT + 3 * np.arange(100)
BATCH, WORKERS = 2, 3


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything, because they are forked from one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["synapse_killed", "pytest"])
    with pytest.MonkeyPatch.context() as patch:
        # That process does not know the path of this one.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        process = context.Process(target=int)
        process.start()
        process.join()
    return context


def finished(server):
    """Queries that were answered, those for counts left out."""
    return [r for r in server.queries if r.query.get("count", "false") == "false"]


def test_kill_at_random_moments(tmp_path, processes):
    """Of 50 batches each process loses those in flight at the most, and the result is the same."""
    truth = expected(FRAME, None, ROOTS)
    with CaveServer({"synapses_pni_2": FRAME}) as server:
        synapse_killed.from_server(server.url, str(tmp_path / "clean"), ROOTS.tolist(), BATCH)
        (clean,) = list_requests(tmp_path / "clean")
        without_kills = len(finished(server))
        assert without_kills == 50
        arguments = (server.url, str(tmp_path / "killed"), ROOTS.tolist(), BATCH)
        rng = np.random.default_rng(7)
        server.requests.clear()
        kills = 0
        for _ in range(40):
            # The forkserver's children are quick to start; the kill comes after some queries.
            before, more = len(finished(server)), int(rng.integers(1, 9))
            process = processes.Process(target=synapse_killed.from_server, args=arguments)
            process.start()
            while process.is_alive() and len(finished(server)) < before + more:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break
        total = len(finished(server))
    found = SynapseSet(tmp_path / "killed", clean.key)
    assert found.is_complete
    assert kills >= 5
    assert without_kills <= total <= without_kills + WORKERS * kills
    assert found.path.read_bytes() == clean.path.read_bytes()
    assert found.read().equals(truth)
    assert sorted(p.name for p in found.path.parent.rglob("*")) == sorted(
        p.name for p in clean.path.parent.rglob("*")
    )


def test_kill_at_every_operation_on_files(tmp_path, processes, monkeypatch):
    """Before each fsync, rename, removal of a whole download: at most one batch is asked twice."""
    monkeypatch.setattr(synapses, "_TICK", 0.01)
    frame, post, batch = make_synapses(300), ROOT + 3 * np.arange(40), 14
    clean = download_synapses(
        MemoryService(frame), tmp_path / "clean", post=post, batch=batch, progress=False
    )
    for number in itertools.count():
        folder = tmp_path / str(number)
        arguments = (number, frame, str(folder), post, batch)
        process = processes.Process(target=synapse_killed.until_operation, args=arguments)
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        state = SynapseSet(folder, clean.key)
        n_kept = len(list((folder / clean.key).glob("[0-9]*.parquet")))
        was_complete = state.is_complete
        # Whatever is there under its own name is whole.
        if state.path.exists():
            assert state.path.read_bytes() == clean.path.read_bytes()
        service = MemoryService(frame, seed=number)
        found = download_synapses(service, folder, post=post, batch=batch, progress=False)
        assert len(service.queries) == (0 if was_complete else 3 - n_kept)
        assert found.path.read_bytes() == clean.path.read_bytes()
        assert not list(folder.rglob("*.tmp"))
    assert number > 15
