"""Downloads of synapses: each synapse exactly once, whatever happens on the way."""

import _thread
import contextlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from cave_server import CaveServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synapse_service import COLUMNS, PLACES, ROOT, MemoryService, expected, make_synapses

import microns_xr as mx
from microns_xr.sources import synapses
from microns_xr.sources.synapses import (
    SynapseRequest,
    SynapseSet,
    download_synapses,
    integer_columns,
    list_requests,
    open_request,
    resolve_ids,
    sorted_synapses,
)

# caveclient joins position columns by DataFrame.drop(inplace=True), which pandas 3.1 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The inplace keyword in DataFrame.drop is deprecated:DeprecationWarning:caveclient"
)
FRAME = make_synapses()
LITTLE = make_synapses(400)
ROOTS = ROOT + 3 * np.arange(40)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(synapses, "_TICK", 0.01)


def download(service, folder, **options):
    return download_synapses(service, folder, **{"progress": False, **options})


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def check(found, truth):
    assert found.is_complete
    frame = found.read()
    pd.testing.assert_frame_equal(frame, truth)
    assert (frame.dtypes == np.int64).all()
    assert found.rows == len(truth)


# ----------------------------------------------------------------------------- what arrives


def test_three_neurons_by_hand(tmp_path):
    a, b, c = ROOT + 1, ROOT + 2, ROOT + 3
    frame = pd.DataFrame({
        "id": [9, 3, 5, 7, 1, 2], "pre_pt_root_id": [a, a, c, b, b, 0],
        "post_pt_root_id": [b, b, b, b, c, c], "size": [10, 0, 30, 40, 50, 60],
    })  # fmt: skip
    found = download(MemoryService(frame), tmp_path, pre=[c, a, a], post=[b, a])
    assert found.read().to_numpy().tolist() == [[3, a, b, 0], [9, a, b, 10], [5, c, b, 30]]
    asked = found.request
    assert asked["pre"].tolist() == [a, c]
    assert asked["post"].tolist() == [a, b]
    names = ("datastack", "version", "positions", "timestamp")
    truth = ["minnie65_demo", 1718, False, "2026-01-01T00:00:00+00:00"]
    assert [asked[name] for name in names] == truth


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(("pre", "post"), [
    (None, ROOTS), (ROOTS, None), (ROOTS[:7], ROOTS), (ROOTS, ROOTS[30:]), (ROOTS[3:4], ROOTS[3:4]), (None, None),
])  # fmt: skip
def test_it_equals_the_plain_way(tmp_path, pre, post, positions):
    found = download(MemoryService(FRAME), tmp_path, pre=pre, post=post, positions=positions)
    check(found, expected(FRAME, pre, post, positions))
    assert found.read().columns.tolist() == COLUMNS + (PLACES if positions else [])


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_result_does_not_depend_on_how_it_was_asked(tmp_path_factory, data):
    """Row limit, batch, workers and order of rows: to the bit, the file too."""
    ids = st.none() | st.lists(st.sampled_from(ROOTS.tolist()), min_size=1, max_size=60)
    pre, post = data.draw(ids), data.draw(ids)
    positions = data.draw(st.booleans())
    seen = set()
    for _ in range(2):
        service = MemoryService(
            LITTLE,
            row_limit=data.draw(st.sampled_from([9, 40, 10**6])),
            seed=data.draw(st.integers(0, 9)),
        )
        found = download(
            service, tmp_path_factory.mktemp("data"), pre=pre, post=post, positions=positions,
            batch=data.draw(st.none() | st.integers(1, 50)), workers=data.draw(st.integers(1, 4)),
        )  # fmt: skip
        check(found, expected(LITTLE, pre, post, positions))
        seen.add((found.key, found.provenance()["sha256"], found.path.read_bytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("limit", [1, 2, 7, 300])
def test_no_answer_is_cut_in_the_end(tmp_path, limit):
    frame = FRAME[: 100 if limit < 3 else 400]
    service = MemoryService(frame, row_limit=limit)
    check(download(service, tmp_path, post=ROOTS), expected(frame, None, ROOTS))
    assert max(a.rows for a in service.queries) == min(limit, len(frame))
    assert len(service.queries) < 8 * len(frame) / limit + 50


def test_an_answer_of_exactly_the_limit_is_whole_if_the_count_says_so(tmp_path):
    one = FRAME[FRAME["post_pt_root_id"] == ROOT]
    service = MemoryService(one, row_limit=len(one))
    check(download(service, tmp_path, post=[ROOT]), expected(one))
    assert len(service.queries) == 1


def test_roots_with_more_rows_than_expected_are_split_by_the_count(tmp_path):
    ends = ROOTS[-4:][np.arange(len(LITTLE)) % 4]  # a hundred for each of the last four
    frame = LITTLE.assign(post_pt_root_id=ends)
    service = MemoryService(frame, row_limit=150)
    check(download(service, tmp_path, post=ROOTS, workers=1), expected(frame, None, ROOTS))
    kinds = "".join(a.kind[0] for a in service.asked)
    assert "cc" in kinds[2:]  # counted, and not queried


def test_a_whole_table_is_split_by_synapse_ids(tmp_path):
    service = MemoryService(FRAME, row_limit=300)
    check(download(service, tmp_path), expected(FRAME))
    assert {key for a in service.queries for key in a.filters} == {"id"}
    assert len(service.queries) < 60


def test_nothing_at_all(tmp_path):
    service = MemoryService(FRAME)
    found = download(service, tmp_path, post=[ROOT + 1])
    check(found, expected(FRAME, None, [ROOT + 1]))
    assert found.rows == 0
    assert [a.kind for a in service.asked] == ["count", "count", "query"]


def test_three_thousand_rows_over_a_limit_of_a_thousand_from_the_real_client(tmp_path):
    demo = mx.sources.DemoSource(1718, n_nuclei=500, n_synapses=12_000)
    truth, nuclei = demo.read("synapses_pni_2"), demo.read("nucleus_detection_v0")
    roots = resolve_ids(nuclei["id"], nuclei)
    with CaveServer(demo, row_limit=1000) as server, cave(server) as source:
        found = download(source, tmp_path, pre=roots, post=roots, positions=True)
        check(found, expected(truth, roots, roots, positions=True))
        assert max(r.rows for r in server.queries) <= 1000
        everything = download(source, tmp_path, pre=None, post=roots)
        check(everything, expected(truth, None, roots))


def cave(server, **options):
    patience = mx.sources.Retry(attempts=6, sleep=lambda seconds: None)
    return mx.sources.CaveSource(
        1718, server_address=server.url, auth_token="t", retry=patience, **options
    )


def test_one_root_beyond_the_limit_from_the_real_client(tmp_path):
    hub = FRAME.assign(post_pt_root_id=ROOT)
    with CaveServer({"synapses_pni_2": hub}, row_limit=300) as server, cave(server) as source:
        found = download(source, tmp_path, post=[ROOT])
        check(found, expected(hub))
        assert any("filter_less_dict" in r.body for r in server.queries)


# ------------------------------------------------------------------------- what is sent for it


def test_the_long_list_never_travels_with_every_batch(tmp_path):
    """Bytes sent for all x all, against batches that each carry the whole list."""
    demo = mx.sources.DemoSource(1718, n_nuclei=12_000, n_synapses=24_000)
    nuclei = demo.read("nucleus_detection_v0")
    roots = resolve_ids(nuclei["id"], nuclei)
    assert len(roots) > 11_000
    with CaveServer(demo) as server, cave(server) as source:
        found = download(source, tmp_path, pre=roots, post=roots, batch=500)
        check(found, expected(demo.read("synapses_pni_2"), roots, roots))
        sent = sum(r.bytes_in for r in server.queries)
        batches = -(-len(roots) // 500)
    ids = 20 * len(roots)
    assert sent < 2.2 * ids + 600 * 2 * batches  # each id once to count, once to ask
    naive = batches * (ids + 20 * 500)
    assert sent < naive / 9


def test_a_short_list_does_not_travel_with_many_small_batches(tmp_path):
    """It pays with one large batch; when the row limit turns out to be low, it stays here."""
    roots = ROOT + 3 * np.arange(1000)
    frame = make_synapses(9000, n_roots=1300, seed=3)
    frame["post_pt_root_id"] = np.random.default_rng(0).choice(roots, len(frame))
    truth = expected(frame, roots, roots)
    assert 0.3 < len(truth) / len(frame) < 0.9
    sent = []
    for limit in (200_000, 300):
        service = MemoryService(frame, row_limit=limit)
        check(download(service, tmp_path / str(limit), pre=roots, post=roots, workers=1), truth)
        sent.append([len(a.filters) for a in service.queries])
    assert sent[0] == [2]
    assert sent[1][0] == 2  # the limit is not known yet
    assert set(sent[1][1:]) == {1}
    assert len(sent[1]) < 1.4 * len(frame) / 150  # no small batches are left over


def test_a_short_list_travels_where_that_spares_rows(tmp_path):
    some = ROOTS[[3, 5]]
    service = MemoryService(FRAME)
    truth = expected(FRAME, some, ROOTS[10:12])
    check(download(service, tmp_path, pre=some, post=ROOTS[10:12]), truth)
    (query,) = service.queries
    assert set(query.filters) == {"pre_pt_root_id", "post_pt_root_id"}
    assert query.rows == len(truth)


def test_duplicates_in_a_request_count_once(tmp_path):
    service = MemoryService(FRAME)
    found = download(service, tmp_path, post=[*ROOTS[:3], *ROOTS[:3], ROOTS[0]])
    check(found, expected(FRAME, None, ROOTS[:3]))
    assert all(len(a.filters["post_pt_root_id"]) == 3 for a in service.asked)
    assert download(service, tmp_path, post=ROOTS[[2, 0, 1]]).key == found.key


def test_a_complete_request_is_not_asked_again(tmp_path):
    first = download(MemoryService(FRAME), tmp_path, post=ROOTS)
    silent = MemoryService(FRAME[:0], time="later")
    assert download(silent, tmp_path, post=ROOTS[::-1]).key == first.key
    assert silent.asked == []
    assert files_of(tmp_path / first.key) == [
        "complete.json", "lock", "post.parquet", "request.json",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.key, f"{first.key}.parquet"]


# ---------------------------------------------------------------------- interruptions and order


class Broken(Exception):
    """What a service may raise."""


def fail_after(n):
    lock, left = threading.Lock(), [n]

    def trouble(asked, rows):
        with lock:
            if rows is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Broken("no more")

    return trouble


def test_a_second_run_continues(tmp_path):
    clean = MemoryService(FRAME)
    whole = download(clean, tmp_path / "clean", post=ROOTS, batch=2)
    total = 0
    for turn in range(1, 8):
        service = MemoryService(FRAME, trouble=fail_after(3), seed=turn)
        if turn == 7:
            found = download(service, tmp_path / "cut", post=ROOTS, batch=2, workers=1)
        else:
            with pytest.raises(Broken) as caught:
                download(service, tmp_path / "cut", post=ROOTS, batch=2, workers=1)
            assert f"{6 * turn} of 40 roots are kept" in caught.value.__notes__[0]
            state = SynapseSet(tmp_path / "cut", whole.key)
            assert not state.is_complete
            with pytest.raises(mx.errors.IncompleteDownloadError, match="same download_synapses"):
                state.read()
        total += len(service.queries)
    assert total == len(clean.queries) + 6  # the one that failed each time
    assert found.path.read_bytes() == whole.path.read_bytes()
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "clean")


def test_a_second_run_may_use_other_batches(tmp_path):
    with pytest.raises(Broken):
        download(MemoryService(FRAME, trouble=fail_after(3)), tmp_path, post=ROOTS, batch=3)
    with pytest.raises(Broken):
        download(MemoryService(FRAME, row_limit=20, trouble=fail_after(9)), tmp_path, post=ROOTS)
    service = MemoryService(FRAME, row_limit=50)
    check(download(service, tmp_path, post=ROOTS, workers=2), expected(FRAME, None, ROOTS))


def test_requests_do_not_mix(tmp_path):
    service = MemoryService(FRAME)
    with pytest.raises(Broken):
        download(MemoryService(FRAME, trouble=fail_after(2)), tmp_path, post=ROOTS, batch=3)
    other = MemoryService(make_synapses(seed=1), version=1822)
    sets = [
        download(service, tmp_path, post=ROOTS[:20]),
        download(service, tmp_path, pre=ROOTS),
        download(service, tmp_path, post=ROOTS, positions=True),
        download(other, tmp_path, post=ROOTS),
        download(service, tmp_path, post=ROOTS),
    ]
    check(sets[0], expected(FRAME, None, ROOTS[:20]))
    check(sets[2], expected(FRAME, None, ROOTS, positions=True))
    check(sets[3], expected(other.frame, None, ROOTS))
    check(sets[4], expected(FRAME, None, ROOTS))
    assert len({s.key for s in sets}) == 5
    assert sorted(s.key for s in list_requests(tmp_path)) == sorted(s.key for s in sets)


def test_a_service_without_a_version_is_refused(tmp_path):
    """Two releases would be one request, and the second one found to be complete."""
    service = MemoryService(FRAME, version=None)
    with pytest.raises(mx.errors.SchemaError, match="version of the source is None, expected a"):
        download(service, tmp_path, post=ROOTS)
    assert not service.asked
    assert not list(tmp_path.iterdir())


def test_a_version_that_was_made_again_is_refused(tmp_path):
    with pytest.raises(Broken):
        download(MemoryService(FRAME, trouble=fail_after(2)), tmp_path, post=ROOTS, batch=3)
    again = MemoryService(FRAME, time="2026-02-02")
    with pytest.raises(mx.errors.ReleaseMismatchError, match=r"2026-02-02.*of 2026-01-01"):
        download(again, tmp_path, post=ROOTS)


def test_damaged_batches_are_asked_again(tmp_path):
    with pytest.raises(Broken):
        download(
            MemoryService(FRAME, trouble=fail_after(8)), tmp_path, post=ROOTS, batch=4, workers=1
        )
    (folder,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    parts = sorted(folder.glob("0*.parquet"))
    assert len(parts) == 8
    parts[0].unlink()
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    parts[2].write_bytes(parts[2].read_bytes()[:40])
    (folder / "0000099-0000100.parquet.0a1b2c3d.microns_xr.tmp").write_bytes(b"PAR1")
    (folder / "0000099-0000100.parquet").write_bytes(b"not a batch")
    service = MemoryService(FRAME)
    found = download(service, tmp_path, post=ROOTS, batch=4, workers=1)
    check(found, expected(FRAME, None, ROOTS))
    assert len(service.queries) == 2 + 3  # two never asked; one lost, two damaged
    assert not list(folder.glob("*.tmp"))


def test_a_damaged_result_is_noticed(tmp_path):
    found = download(MemoryService(FRAME), tmp_path, post=ROOTS)
    content = found.path.read_bytes()
    found.path.write_bytes(content[:100] + b"?" + content[101:])
    with pytest.raises(mx.errors.SourceError, match="has changed since it was written"):
        found.read()
    found.path.unlink()
    assert not found.is_complete
    check(download(MemoryService(FRAME), tmp_path, post=ROOTS), expected(FRAME, None, ROOTS))


def test_what_another_process_finished_meanwhile_is_taken(tmp_path, monkeypatch):
    def locked(folder, what):
        monkeypatch.undo()
        download(MemoryService(FRAME), tmp_path, post=ROOTS)
        return contextlib.nullcontext()

    monkeypatch.setattr(synapses, "locked", locked)
    late = MemoryService(FRAME[:0])
    check(download(late, tmp_path, post=ROOTS), expected(FRAME, None, ROOTS))
    assert late.asked == []


def test_a_batch_that_vanishes_meanwhile_is_missed(tmp_path):
    def remove(asked, rows):
        for path in tmp_path.glob("*/0000000-*.parquet"):
            path.unlink()

    service = MemoryService(FRAME, trouble=remove)
    with pytest.raises(mx.errors.IncompleteDownloadError, match=r"1 batches of .* are missing"):
        download(service, tmp_path, post=ROOTS, batch=20, workers=1)
    check(download(MemoryService(FRAME), tmp_path, post=ROOTS), expected(FRAME, None, ROOTS))


def test_a_second_download_of_one_request_waits(tmp_path):
    inside, go = threading.Event(), threading.Event()

    def wait(asked, rows):
        inside.set()
        go.wait(10)

    slow = MemoryService(FRAME, trouble=wait)
    late = MemoryService(FRAME[:0])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(download, slow, tmp_path, post=ROOTS)
        assert inside.wait(10)
        second = pool.submit(download, late, tmp_path, post=ROOTS)
        other = download(MemoryService(FRAME), tmp_path, post=ROOTS[:5])  # another request may
        assert not second.done()
        go.set()
        check(second.result(), expected(FRAME, None, ROOTS))
        check(first.result(), expected(FRAME, None, ROOTS))
    assert late.asked == []
    check(other, expected(FRAME, None, ROOTS[:5]))


# ------------------------------------------------------------------------------- what goes wrong


def lose_rows(asked, rows):
    return None if rows is None else rows.iloc[: len(rows) // 2]


def lose_all(asked, rows):
    return None if rows is None else rows.iloc[:0]


@pytest.mark.parametrize("trouble", [lose_rows, lose_all])
def test_rows_that_stay_away_are_noticed(tmp_path, trouble):
    service = MemoryService(FRAME, trouble=trouble)
    n = len(expected(FRAME, None, ROOTS))
    with pytest.raises(
        mx.errors.IncompleteDownloadError,
        match=rf"\d+ synapses arrived, but the service counts {n} ",
    ):
        download(service, tmp_path, post=ROOTS)
    assert len(service.queries) == 4
    assert list_requests(tmp_path)[0].is_complete is False
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("trouble", [lose_rows, lose_all])
def test_rows_that_stay_away_once_are_asked_again(tmp_path, trouble):
    turn = iter(range(100))

    def sometimes(asked, rows):
        return trouble(asked, rows) if rows is not None and next(turn) % 3 == 0 else None

    service = MemoryService(FRAME, trouble=sometimes)
    check(download(service, tmp_path, post=ROOTS, batch=5, workers=1), expected(FRAME, None, ROOTS))
    assert len(service.queries) > 8


def test_more_rows_than_are_counted_are_noticed(tmp_path):
    def add(asked, rows):
        return None if rows is None else pd.concat([rows, rows[:1].assign(id=rows.id.max() + 1)])

    n = len(expected(FRAME, None, ROOTS))
    message = f"{n + 1} synapses arrived, but the service counts {n} "
    with pytest.raises(mx.errors.IncompleteDownloadError, match=message):
        download(MemoryService(FRAME, trouble=add), tmp_path, post=ROOTS)
    assert not list(tmp_path.glob("*.parquet"))


def test_rows_that_come_twice_count_once(tmp_path):
    def twice(asked, rows):
        return None if rows is None else pd.concat([rows, rows[:9]])

    found = download(MemoryService(FRAME, trouble=twice), tmp_path, post=ROOTS, positions=True)
    check(found, expected(FRAME, None, ROOTS, positions=True))


def test_a_row_twice_does_not_hide_that_another_is_missing(tmp_path):
    def swap(asked, rows):
        return None if rows is None else pd.concat([rows[1:], rows[1:2]])

    with pytest.raises(mx.errors.IncompleteDownloadError, match="arrived, but the service"):
        download(MemoryService(FRAME, trouble=swap), tmp_path, post=ROOTS)


def test_rows_that_contradict_each_other_are_an_error(tmp_path):
    def twice(asked, rows):
        return None if rows is None else pd.concat([rows, rows[:1].assign(size=99_999)])

    with pytest.raises(mx.errors.SourceError, match=r"synapse \d+ arrived twice, with size"):
        download(MemoryService(FRAME, trouble=twice), tmp_path, post=ROOTS)


@pytest.mark.parametrize("at_once", [32_000_000, 1])
def test_one_id_between_two_pairs_of_roots_is_an_error(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(synapses, "_IDS_AT_ONCE", at_once)
    two = FRAME[FRAME["post_pt_root_id"] > ROOTS[0]].drop_duplicates("post_pt_root_id")[:2]
    with pytest.raises(
        mx.errors.SourceError, match="1 synapses arrived twice between different roots"
    ):
        download(MemoryService(two.assign(id=7)), tmp_path, post=ROOTS, batch=1)
    assert not list(tmp_path.glob("*.parquet*"))


def test_an_answer_to_another_question_is_noticed(tmp_path):
    def other(asked, rows):
        return None if rows is None else FRAME[FRAME["post_pt_root_id"] == ROOTS[9]][: len(rows)]

    with pytest.raises(mx.errors.IncompleteDownloadError, match="synapses do not match the query"):
        download(MemoryService(FRAME, trouble=other), tmp_path, post=ROOTS[:2])


def test_one_failure_stops_the_others(tmp_path):
    def trouble(asked, rows):
        if asked.filters["post_pt_root_id"] == [ROOTS[0]]:
            raise mx.errors.SourceError("the service refuses")
        time.sleep(0.01)

    service = MemoryService(FRAME, trouble=trouble)
    started, threads = time.perf_counter(), threading.active_count()
    with pytest.raises(mx.errors.SourceError, match="refuses") as caught:
        download(service, tmp_path, post=ROOTS, batch=1, workers=4)
    assert time.perf_counter() - started < 2
    assert "roots are kept" in caught.value.__notes__[0]
    assert len(service.asked) < 20
    assert threading.active_count() < threads + 20


def test_a_thread_that_hangs_writes_nothing_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(synapses, "_GRACE", 0.05)
    go, hung = threading.Event(), threading.Event()

    def trouble(asked, rows):
        if rows is None:
            return
        if ROOTS[0] in asked.filters["post_pt_root_id"]:
            hung.set()
            go.wait(10)
        elif hung.wait(10):
            raise mx.errors.SourceError("the service refuses")

    with pytest.raises(mx.errors.SourceError, match="refuses"):
        download(MemoryService(FRAME, trouble=trouble), tmp_path, post=ROOTS, batch=3, workers=2)
    before = files_of(tmp_path)
    threads = [t for t in threading.enumerate() if t.daemon and "work" in t.name]
    go.set()
    for thread in threads:
        thread.join(10)
    assert threads
    assert files_of(tmp_path) == before
    check(download(MemoryService(FRAME), tmp_path, post=ROOTS), expected(FRAME, None, ROOTS))


def test_ctrl_c_leaves_what_can_be_continued(tmp_path):
    turns = iter(range(1000))

    def interrupt(asked, rows):
        time.sleep(0.004)
        if next(turns) == 20:
            _thread.interrupt_main()

    slow = MemoryService(FRAME, trouble=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            download(slow, tmp_path, post=ROOTS, batch=1, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(slow.queries) < 40
    service = MemoryService(FRAME)
    check(download(service, tmp_path, post=ROOTS, batch=1), expected(FRAME, None, ROOTS))
    assert len(service.queries) + len(slow.queries) <= 42


@pytest.mark.parametrize("ids", [
    [], [0], [ROOT, 0], [-1], [1.5], np.array([ROOT], float), ["x"], [True], [None], [[ROOT]], [2**63],
    xr.Dataset(coords={"nucleus_id": [7]}),
])  # fmt: skip
def test_ids_that_are_not_roots_are_refused(tmp_path, ids):
    with pytest.raises(mx.errors.SchemaError, match=r"^post"):
        download(MemoryService(FRAME), tmp_path, post=ids)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("batch", 0), ("batch", 2.5), ("workers", 0), ("workers", True)]
)
def test_numbers_out_of_range(tmp_path, name, value):
    with pytest.raises(mx.errors.SchemaError, match=name):
        download(MemoryService(FRAME), tmp_path, post=ROOTS, **{name: value})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(mx.errors.SourceError, match="cannot be written"):
        download(MemoryService(FRAME), tmp_path / "file", post=ROOTS)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    calls = iter(range(1000))

    def full(descriptor):
        if next(calls) == 6:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(mx.errors.SourceError, match=r"cannot be written.*No space left"):
        download(MemoryService(FRAME), tmp_path, post=ROOTS, batch=4)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))
    check(download(MemoryService(FRAME), tmp_path, post=ROOTS), expected(FRAME, None, ROOTS))


# ---------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize(("column", "array", "says"), [
    ("pre_pt_root_id", pa.array([1.0]), "ids as floats"),
    ("id", pa.array([None], pa.int64()), "1 nulls"),
    ("size", pa.array([1.5]), "fractions"),
    ("size", pa.array([float("nan")]), "NaN"),
    ("size", pa.array([float("inf")]), "infinity"),
    ("size", pa.array(["7"]), "whole numbers"),
    ("size", pa.array([None], pa.float32()), "1 nulls"),
])  # fmt: skip
def test_types_of_an_answer(column, array, says):
    table = pa.table({**{name: pa.array([7]) for name in COLUMNS}, column: array})
    with pytest.raises(mx.errors.SchemaError, match=says):
        integer_columns(table, COLUMNS)
    with pytest.raises(mx.errors.SchemaError, match=f"no column {column}"):
        integer_columns(table.drop_columns([column]), COLUMNS)


def test_values_of_an_answer_stay_exact(caplog):
    big = ROOT + 1
    table = pa.table({
        "id": pa.array([2**53 + 1]), "pre_pt_root_id": pa.array([None], pa.int64()),
        "post_pt_root_id": pa.array([big]), "size": pa.array([2.0**25], pa.float32()),
    })  # fmt: skip
    assert integer_columns(table, COLUMNS).to_pydict() == {
        "id": [2**53 + 1], "pre_pt_root_id": [0], "post_pt_root_id": [big], "size": [2**25],
    }  # fmt: skip
    assert "above 2^24 is transferred as float32" in caplog.text


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=30, unique_by=lambda r: r[2]),
    st.randoms(),
)
def test_sorting_and_dropping_what_is_twice(rows, random):
    doubled = rows + [row for row in rows if random.random() < 0.3]
    random.shuffle(doubled)
    names = ("post_pt_root_id", "pre_pt_root_id", "id")
    columns = np.array(doubled, dtype=np.int64).reshape(-1, 3).T
    found = sorted_synapses(pa.table(dict(zip(names, columns, strict=True))))
    assert [tuple(row.values()) for row in found.to_pylist()] == sorted(rows)


@pytest.mark.parametrize("side", ["pre", "post"])
def test_memory_blocks_do_not_show(tmp_path, monkeypatch, side):
    whole = download(MemoryService(FRAME), tmp_path / "whole", **{side: ROOTS}, batch=3)
    monkeypatch.setattr(synapses, "_BLOCK_ROWS", 150)
    monkeypatch.setattr(synapses, "_IDS_AT_ONCE", 130)
    edges, of = [], synapses._block_edges
    monkeypatch.setattr(synapses, "_block_edges", lambda *a: edges.append(of(*a)) or edges[-1])
    cut = download(MemoryService(FRAME), tmp_path / "cut", **{side: ROOTS}, batch=3)
    assert len(edges[0]) > 6
    assert cut.path.read_bytes() == whole.path.read_bytes()
    check(cut, expected(FRAME, **{side: ROOTS}))


def test_row_groups_have_one_size(tmp_path, monkeypatch):
    monkeypatch.setattr(synapses, "_GROUP_ROWS", 256)
    monkeypatch.setattr(synapses, "_BLOCK_ROWS", 300)
    found = download(MemoryService(FRAME), tmp_path, post=ROOTS, batch=2)
    with pq.ParquetFile(found.path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert set(sizes[:-1]) == {256}
    check(found, expected(FRAME, None, ROOTS))


def test_the_key_tells_requests_apart():
    base = dict(datastack="a", version=1, table="t", pre=None, post=ROOTS, positions=False)
    others = [{"datastack": "b"}, {"version": 2}, {"table": "u"}, {"pre": ROOTS}, {"post": ROOTS[1:]},
              {"post": ROOTS + 1}, {"post": None}, {"positions": True}, {"pre": ROOTS, "post": None}]  # fmt: skip
    keys = [SynapseRequest(**{**base, **other}).key for other in ({}, *others)]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("-", "").isalnum() for key in keys)


def test_finding_requests(tmp_path):
    with pytest.raises(mx.errors.SourceError, match="there are no synapses"):
        open_request(tmp_path)
    one = download(MemoryService(FRAME), tmp_path, post=ROOTS)
    assert open_request(tmp_path).key == one.key
    with pytest.raises(Broken):
        download(MemoryService(FRAME, trouble=fail_after(1)), tmp_path, pre=ROOTS, batch=2)
    with pytest.raises(
        mx.errors.SourceError, match=r"holds 2 sets .*\(incomplete\).*request='preall-post40"
    ):
        open_request(tmp_path)
    assert [s.is_complete for s in list_requests(tmp_path)] == [False, True]
    assert ["incomplete" in repr(s) for s in list_requests(tmp_path)] == [True, False]
    incomplete, complete = list_requests(tmp_path)
    assert incomplete.request["pre"].tolist() == ROOTS.tolist()
    assert incomplete.request["post"] is None
    check(open_request(tmp_path, complete.key), expected(FRAME, None, ROOTS))
    with pytest.raises(mx.errors.IncompleteDownloadError, match="is incomplete"):
        open_request(tmp_path, incomplete.key)
    with pytest.raises(
        mx.errors.SourceError, match=f"no request 'preall', expected one of .*{complete.key}"
    ):
        open_request(tmp_path, "preall")
    record = complete.provenance()
    assert (record["name"], record["rows"], record["version"]) == (complete.key, one.rows, 1718)
    assert record["timestamp"] == "2026-01-01T00:00:00+00:00"


def test_a_folder_that_was_renamed_or_damaged_is_noticed(tmp_path):
    found = download(MemoryService(FRAME), tmp_path, post=ROOTS)
    (tmp_path / found.key).rename(tmp_path / "mine")
    with pytest.raises(mx.errors.SourceError, match="was renamed or changed"):
        SynapseSet(tmp_path, "mine").request
    record = tmp_path / "mine" / "request.json"
    record.write_text(json.dumps({"request": {"pre": None}}))
    with pytest.raises(mx.errors.SourceError, match="cannot be read"):
        SynapseSet(tmp_path, "mine").request
    record.write_text("{")
    with pytest.raises(mx.errors.SourceError, match="cannot be read"):
        SynapseSet(tmp_path, "mine").request


def test_the_bar_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(MemoryService(FRAME), tmp_path, post=ROOTS, progress=True)
    n = len(expected(FRAME, None, ROOTS))
    pairs = len(
        expected(FRAME, None, ROOTS)[["pre_pt_root_id", "post_pt_root_id"]].drop_duplicates()
    )
    said = capsys.readouterr().err
    assert "40/40" in said
    assert f"{n:,} synapses, {pairs:,} pairs" in said
    download(MemoryService(FRAME), tmp_path, post=ROOTS[1:], progress=False)
    assert capsys.readouterr().err == ""
