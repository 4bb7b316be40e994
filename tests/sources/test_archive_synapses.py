"""The streaming filter over all synapses: the rows that the service gives, in bounded memory."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cave_server import CaveServer
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.files import file_sha256
from microns_xr.sources import archive as archive_synapses
from microns_xr.sources import postgres_csv
from microns_xr.sources.archive import filter_synapses
from microns_xr.sources.postgres_csv import Header
from microns_xr.sources.synapses import (
    download_synapses,
    list_requests,
    make_request,
    open_request,
)

ROOT = 864_691_135_000_000_001
PLACES = tuple(f"ctr_pt_position_{axis}" for axis in "xyz")
HEADER = Header(
    ("id", "created", "pre_pt_root_id", "post_pt_root_id", "size", *PLACES),
    ("bigint", "timestamp without time zone", "bigint", "bigint", "real", *["integer"] * 3),
)


def make_synapses(n: int = 5000, roots: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "id": rng.permutation(n) + 2**53 + 1,
            "pre_pt_root_id": ROOT + rng.integers(0, roots, n),
            "post_pt_root_id": ROOT + rng.integers(0, roots, n),
            "size": rng.integers(1, 10_000, n),
        }
    )
    places = rng.integers(0, 400_000, (n, 3))
    return frame.assign(**{name: places[:, i] for i, name in enumerate(PLACES)})


def write_synapses(path: Path, frame: pd.DataFrame) -> Path:
    frame = frame.assign(created="2020-09-28 22:40:41.780734")[list(HEADER.names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(frame.to_csv(header=False, index=False).encode(), 1))
    return path


def plainly(frame: pd.DataFrame, pre, post, positions: bool) -> pd.DataFrame:
    """The same filter, in pandas and in memory."""
    for side, ids in (("pre", pre), ("post", post)):
        if ids is not None:
            frame = frame[frame[f"{side}_pt_root_id"].isin(np.asarray(ids))]
    columns = ["id", "pre_pt_root_id", "post_pt_root_id", "size", *(PLACES if positions else ())]
    frame = frame.sort_values(["post_pt_root_id", "pre_pt_root_id", "id"])
    return frame[columns].reset_index(drop=True)


def ask(pre=None, post=None, positions=False):
    return make_request("minnie65_public", 661, "synapses_pni_2", pre, post, positions)


def keep(path, folder, pre=None, post=None, positions=False, **options):
    request = ask(pre, post, positions)
    return filter_synapses(path, HEADER, folder, request, progress=False, **options)


@pytest.fixture(scope="module")
def frame():
    return make_synapses()


@pytest.fixture(scope="module")
def path(frame, tmp_path_factory):
    return write_synapses(tmp_path_factory.mktemp("archive") / "s.csv.gz", frame)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("pre", [None, ROOT + np.arange(7), [ROOT + 90]])
@pytest.mark.parametrize("post", [None, ROOT + np.array([3, 3, 20, 1])])
def test_it_keeps_what_a_plain_filter_keeps(path, frame, tmp_path, pre, post, positions):
    found = keep(path, tmp_path, pre=pre, post=post, positions=positions)
    expected = plainly(frame, pre, post, positions)
    pd.testing.assert_frame_equal(found.read(), expected)
    assert found.rows == len(expected)
    assert found.is_complete
    assert open_request(tmp_path).key == found.key
    request = found.request
    assert (request["version"], request["positions"]) == (661, positions)
    if pre is not None:
        assert request["pre"].tolist() == sorted(set(np.asarray(pre).tolist()))


@pytest.mark.parametrize("positions", [False, True])
def test_it_is_to_the_bit_what_the_service_gives(tmp_path, frame, positions):
    pre, post = ROOT + np.arange(11), ROOT + np.arange(5, 30)
    options = {"pre": pre, "post": post, "positions": positions, "progress": False}
    with CaveServer({"synapses_pni_2": frame}, row_limit=300) as server:
        with mx.sources.CaveSource(1718, server_address=server.url, auth_token="none") as source:
            served = download_synapses(source, tmp_path / "cave", **options)
        archive = mx.sources.ArchiveSource(
            1718, url=server.archive_url, folder=tmp_path / "files", progress=False
        )
        found = archive.download_synapses(tmp_path / "archive", **options)
        asked = len(server.requests)
        # Another request needs the file only where it is, and the same one not at all.
        archive.discard("synapses_pni_2")
        again = archive.download_synapses(tmp_path / "archive", **options)
        assert again.is_complete
        with pytest.raises(mx.errors.SchemaError, match="pre"):
            archive.download_synapses(tmp_path / "archive", pre=[0], progress=False)
        assert len(server.requests) == asked
        archive.download_synapses(tmp_path / "archive", pre=post, progress=False)
    assert found.key == served.key
    assert file_sha256(found.path) == file_sha256(served.path)
    assert found.rows > 300
    assert len(list_requests(tmp_path / "archive")) == 2


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 3000), size=st.integers(200, 60_000), block=st.integers(300, 60_000),
    n=st.integers(0, 2000),
)  # fmt: skip
def test_the_result_does_not_depend_on_batches(tmp_path_factory, rows, size, block, n):
    folder = tmp_path_factory.mktemp("batches")
    frame = make_synapses(n, seed=n)
    path = write_synapses(folder / "s.csv.gz", frame)
    post = ROOT + np.arange(9)
    whole = keep(path, folder / "whole", post=post)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_csv, "_BLOCK_BYTES", block)
        parts = keep(path, folder / "parts", post=post, batch_rows=rows, batch_bytes=size)
    assert file_sha256(whole.path) == file_sha256(parts.path)
    assert len(whole.read()) == len(plainly(frame, None, post, False))


def test_rows_that_are_not_valid_are_left_out(tmp_path, caplog):
    caplog.set_level("INFO", logger="microns_xr")
    stem = tmp_path / "v661" / "synapses_pni_2_v1_filtered_view"
    stem.parent.mkdir()
    names = ["id,bigint", "valid,boolean", "pre_pt_root_id,bigint", "post_pt_root_id,bigint"]
    stem.with_name(f"{stem.name}_header.csv").write_text("\n".join([*names, "size,integer", ""]))
    rows = "1,t,11,12,5\n2,f,11,12,50\n3,,12,11,500\n"
    stem.with_name(f"{stem.name}.csv.gz").write_bytes(gzip.compress(rows.encode()))
    source = mx.sources.ArchiveSource(661, url=tmp_path)
    found = source.download_synapses(tmp_path / "out", progress=False).read()
    assert sorted(found["size"]) == [5, 500]
    assert "valid" not in found
    assert "1 rows of the archived synapses are not valid" in caplog.text


def test_what_is_there_is_not_filtered_again(path, tmp_path):
    first = keep(path, tmp_path, post=[ROOT])
    written = first.path.stat().st_mtime_ns
    again = keep("no/such/file.csv.gz", tmp_path, post=[ROOT, ROOT])
    assert again.key == first.key
    assert again.path.stat().st_mtime_ns == written
    left = sorted(p.name for p in (tmp_path / first.key).iterdir())
    assert left == ["complete.json", "lock", "post.parquet", "request.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([first.key, f"{first.key}.parquet"])


# ------------------------------------------------------------------------------ interruptions


class Stop(Exception):
    """Ends a run in the middle."""


def small_blocks(monkeypatch, stop_after: int | None = None) -> list[int]:
    """Let files be read in small blocks, and perhaps end after some; returns where reading began."""
    begun: list[int] = []
    real = archive_synapses.read_blocks

    def read(*args, **kwargs):
        begun.append(kwargs["start"])
        for number, block in enumerate(real(*args, **kwargs)):
            if number == stop_after:
                raise Stop
            yield block

    monkeypatch.setattr(postgres_csv, "_BLOCK_BYTES", 10_000)
    monkeypatch.setattr(archive_synapses, "read_blocks", read)
    return begun


def interrupt(path, folder, **options):
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, stop_after=14)
        with pytest.raises(Stop):
            keep(path, folder, **options)


def test_an_interrupted_filter_continues_where_it_was(path, frame, tmp_path, monkeypatch):
    options = {"post": ROOT + np.arange(20), "batch_bytes": 30_000, "positions": True}
    whole = keep(path, tmp_path / "whole", **options)
    interrupt(path, tmp_path / "parts", **options)
    (folder,) = (p for p in (tmp_path / "parts").iterdir() if p.is_dir())
    batches = sorted(file.name for file in folder.glob("[0-9]*.parquet"))
    assert len(batches) >= 3
    assert not open_requests_complete(tmp_path / "parts")
    begun = small_blocks(monkeypatch)
    found = keep(path, tmp_path / "parts", **options)
    assert begun == [int(batches[-1].split("-")[1])]
    assert file_sha256(found.path) == file_sha256(whole.path)
    complete = json.loads((folder / "complete.json").read_text())
    assert complete["answered"] == len(frame)


def open_requests_complete(folder: Path) -> bool:
    return any(found.is_complete for found in list_requests(folder))


@pytest.mark.parametrize("lost", [0, 1, -1])
def test_a_batch_that_is_damaged_is_made_again(path, tmp_path, monkeypatch, lost):
    options = {"post": ROOT + np.arange(20), "batch_bytes": 30_000}
    whole = keep(path, tmp_path / "whole", **options)
    interrupt(path, tmp_path / "parts", **options)
    (folder,) = (p for p in (tmp_path / "parts").iterdir() if p.is_dir())
    files = sorted(folder.glob("[0-9]*.parquet"), key=lambda p: int(p.name.split("-")[0]))
    files[lost].write_bytes(files[lost].read_bytes()[:-10])
    small_blocks(monkeypatch)
    found = keep(path, tmp_path / "parts", **options)
    assert file_sha256(found.path) == file_sha256(whole.path)


def test_a_batch_that_vanishes_meanwhile_is_missed(path, tmp_path, monkeypatch):
    options = {"post": ROOT + np.arange(20), "batch_bytes": 30_000}
    whole = keep(path, tmp_path / "whole", **options)
    small_blocks(monkeypatch)
    commit = archive_synapses.RequestFolder.commit

    def forgetful(folder, piece, *args):
        batch = commit(folder, piece, *args)
        if piece.start == 0:
            batch.unlink()
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(archive_synapses.RequestFolder, "commit", forgetful)
        with pytest.raises(
            mx.errors.IncompleteDownloadError, match=r"1 batches of .*run the same again"
        ):
            keep(path, tmp_path / "parts", **options)
    assert not open_requests_complete(tmp_path / "parts")
    found = keep(path, tmp_path / "parts", **options)
    assert file_sha256(found.path) == file_sha256(whole.path)


def test_batches_of_another_file_are_never_mixed_in(path, tmp_path, monkeypatch):
    options = {"post": ROOT + np.arange(20), "batch_bytes": 30_000}
    interrupt(path, tmp_path / "parts", **options)
    other = write_synapses(tmp_path / "other.csv.gz", make_synapses(seed=5))
    with pytest.raises(
        mx.errors.SourceError, match=r"archived file of synapses_pni_2 has changed.*remove that fol"
    ):
        keep(other, tmp_path / "parts", **options)


def test_synapses_of_a_file_have_no_time_of_materialization(path, tmp_path):
    """Nor have those in a folder that an earlier version of this package wrote."""
    import json

    post = ROOT + np.arange(20)
    found = keep(path, tmp_path, post=post)
    assert found.request["timestamp"] is None
    record = found.provenance()
    assert "timestamp" not in record
    sha256 = record["archived_file"]
    for name in ("request", "complete"):
        file = found.directory / f"{name}.json"
        document = json.loads(file.read_text())
        assert document.pop("archived_file") == sha256
        file.write_text(json.dumps({**document, "timestamp": f"archived file {sha256}"}))
    (old,) = list_requests(tmp_path)
    assert old.request["timestamp"] is None
    assert old.provenance() == record
    assert keep(path, tmp_path, post=post).rows == found.rows


def test_what_was_begun_at_the_service_begins_anew(path, tmp_path, frame, monkeypatch):
    post = ROOT + np.arange(20)

    def fail(*args, **options):
        raise mx.errors.IncompleteDownloadError("the network is failing")

    monkeypatch.setattr(mx.sources.CaveSource, "query", fail)
    with (
        CaveServer({"synapses_pni_2": frame}, version=661, expired=(), row_limit=300) as server,
        mx.sources.CaveSource(661, server_address=server.url, auth_token="none") as source,
        pytest.raises(mx.errors.IncompleteDownloadError),
    ):
        download_synapses(source, tmp_path, post=post, progress=False)
    assert len(list_requests(tmp_path)) == 1
    found = keep(path, tmp_path, post=post)
    pd.testing.assert_frame_equal(found.read(), plainly(frame, None, post, False))


TEST_PATHS = [str(folder) for folder in Path(__file__).parents[:2]]

KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_archive_synapses import ROOT, archive_synapses, keep, np, postgres_csv
postgres_csv._BLOCK_BYTES = 5_000
real = archive_synapses.read_blocks
def slowly(*args, **kwargs):
    for block in real(*args, **kwargs):
        time.sleep(0.01)
        yield block
archive_synapses.read_blocks = slowly
keep(sys.argv[1], sys.argv[2], post=ROOT + np.arange(20), batch_bytes=15_000)
"""


def test_kill_9_at_any_moment_loses_no_more_than_a_batch(path, tmp_path):
    whole = keep(path, tmp_path / "whole", post=ROOT + np.arange(20))
    folder = tmp_path / "killed"
    seen = []
    for batches in (2, 7):
        arguments = [str(path), str(folder), *TEST_PATHS]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
        until = time.monotonic() + 60
        while len(list(folder.glob("*/[0-9]*.parquet"))) < batches:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append({f: f.stat().st_mtime_ns for f in folder.glob("*/[0-9]*.parquet")})
    assert seen[0].items() <= seen[1].items()  # no batch was made twice
    found = keep(path, folder, post=ROOT + np.arange(20))
    assert file_sha256(found.path) == file_sha256(whole.path)


def test_it_can_be_cancelled(path, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(mx.errors.IncompleteDownloadError, match="cancelled: run the same again"):
        keep(path, tmp_path, post=[ROOT], cancel=stop)
    assert keep(path, tmp_path, post=[ROOT]).is_complete


def test_two_processes_never_write_one_request(path, tmp_path):
    pytest.importorskip("fcntl")
    found = keep(path, tmp_path, post=[ROOT])
    (tmp_path / found.key / "complete.json").unlink()
    code = (
        "import fcntl,sys,time; f=open(sys.argv[1],'r+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    lock = str(tmp_path / found.key / "lock")
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(mx.errors.SourceError, match=r"another download of request"):
            keep(path, tmp_path, post=[ROOT])
        process.kill()


# -------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("ids", [[], [0], [-3], [1.5], "units"])
def test_ids_that_are_none(path, tmp_path, ids):
    with pytest.raises(mx.errors.SchemaError, match="pre"):
        keep(path, tmp_path, pre=ids)
    assert list(tmp_path.iterdir()) == []


def test_a_header_without_the_columns(path, tmp_path):
    short = Header(HEADER.names[:4], HEADER.types[:4])
    with pytest.raises(
        mx.errors.SchemaError, match=r"lacks the columns \['size', 'ctr_pt_position'\]"
    ):
        filter_synapses(path, short, tmp_path, ask(positions=True))


def test_a_file_that_is_cut_short_gives_no_result(path, tmp_path, monkeypatch):
    short = tmp_path / "short.csv.gz"
    short.write_bytes(path.read_bytes()[:-5000])
    small_blocks(monkeypatch)
    with pytest.raises(mx.errors.SourceError, match=r"short.csv.gz ends too early after line \d+"):
        keep(short, tmp_path / "s", post=[ROOT])
    assert not open_requests_complete(tmp_path / "s")


def test_a_line_that_does_not_fit_is_named(frame, tmp_path, monkeypatch):
    file = write_synapses(tmp_path / "s.csv.gz", frame)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    lines[4321] = b"1,2,3\n"
    file.write_bytes(gzip.compress(b"".join(lines)))
    small_blocks(monkeypatch)
    with pytest.raises(mx.errors.SourceError, match=r"s.csv.gz line 4322 does not fit .*got 3"):
        keep(file, tmp_path / "s", post=[ROOT], batch_bytes=30_000)


def test_one_synapse_in_two_places_is_an_error(frame, tmp_path):
    twice = pd.concat([frame, frame.iloc[[7]].assign(size=77_777)])
    file = write_synapses(tmp_path / "s.csv.gz", twice)
    with pytest.raises(mx.errors.SourceError, match=r"arrived twice"):
        keep(file, tmp_path / "s")
    assert not open_requests_complete(tmp_path / "s")


def test_positions_in_one_column(frame, tmp_path):
    packed = frame.assign(
        ctr_pt_position=[f"[{x} {y} {z}]" for x, y, z in frame[list(PLACES)].to_numpy()]
    )
    names = ("id", "pre_pt_root_id", "post_pt_root_id", "size", "ctr_pt_position")
    file = tmp_path / "s.csv.gz"
    packed[list(names)].to_csv(file, header=False, index=False)
    header = Header(names, ("bigint",) * 4 + ("user-defined",))
    request = ask(pre=[ROOT], positions=True)
    found = filter_synapses(file, header, tmp_path / "s", request, progress=False)
    pd.testing.assert_frame_equal(found.read(), plainly(frame, [ROOT], None, True))


# ---------------------------------------------------------------------------------------- memory

MEASURED = """
import resource, sys
from test_archive_synapses import ROOT, keep
found = keep(sys.argv[1], sys.argv[2], post=[ROOT])
print(found.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in other units elsewhere")
def test_memory_does_not_grow_with_the_file(tmp_path):
    line = b"%d,2020-09-28 22:40:41,%d,%d,5,1,2,3\n"
    wanted = b"".join(line % (i, ROOT + 3, ROOT) for i in range(100))
    other = b"".join(line % (i, ROOT + 3, ROOT + 1) for i in range(1000, 11_000))
    peaks = []
    for repeats in (8, 250):  # 6 MB and 180 MB unpacked
        file = tmp_path / f"{repeats}.csv.gz"
        with gzip.open(file, "wb", compresslevel=1) as packed:
            packed.write(wanted)
            for _ in range(repeats):
                packed.write(other)
        answer = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURED), file, tmp_path / f"s{repeats}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(TEST_PATHS)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows, peak = map(int, answer.stdout.split())
        assert rows == 100
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 120, peaks


def test_one_bar_in_bytes_of_the_file(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    filter_synapses(path, HEADER, tmp_path, ask(post=[ROOT]))
    said = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert said[-1].startswith("synapses: 100%")
    assert " synapses]" in said[-1]
    assert {key for key, _ in itertools.groupby(line.split(":")[0] for line in said)} == {
        "synapses"
    }
