"""Whole tables: none of their rows lost to the row limit, and what is there not fetched again."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from cave_server import CaveServer
from cave_server.sample import N_SYNAPSES, NUCLEI, STATUS, SYNAPSES, TYPES, make_tables
from hypothesis import given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.releases import MINIMUM_ROLES
from microns_xr.sources.cache import CachedSource, table_names
from microns_xr.sources.cave import Answer, fetch_table

NAMES = [NUCLEI, TYPES, STATUS, SYNAPSES]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads the user's own, and none writes there."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    yield folder
    assert list(folder.rglob("*")) == []


def no_sleep(seconds: float) -> None:
    """Wait not at all."""


def source_of(server: CaveServer, **options) -> mx.sources.CaveSource:
    retry = mx.sources.Retry(attempts=4, sleep=no_sleep)
    options = {"auth_token": "none", "retry": retry, **options}
    return mx.sources.CaveSource(server.service.version, server_address=server.url, **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "minnie65_public" / "v1718"


def cached(source: mx.sources.CaveSource, folder) -> CachedSource:
    return CachedSource(source, folder, source.datastack, source.version)


# --------------------------------------------------------------------------------- the row limit


class Rows(mx.sources.CaveSource):
    """A service in memory: cuts at its limit, in a random order."""

    def __init__(self, ids: list[int], limit: int, seed: int = 0) -> None:
        super().__init__(1718, retry=mx.sources.Retry(attempts=3, sleep=no_sleep))
        self.ids = np.array(ids, dtype=np.int64)
        self.limit = limit
        self.rng = np.random.default_rng(seed)
        self.queries = 0

    def count(self, table, filter_in=None) -> int:
        return len(self.ids)

    def query(self, table, *, filter_in=None, filter_range=None, select_columns=None) -> Answer:
        self.queries += 1
        low, high = (filter_range or {}).get("id", (None, None))
        keep = np.ones(len(self.ids), dtype=bool)
        keep &= True if low is None else self.ids >= low
        keep &= True if high is None else self.ids < high
        found = self.rng.permutation(self.ids[keep])[: self.limit]
        columns = {"id": found, "twice": found * 2}
        table = pa.table({k: v for k, v in columns.items() if k in (select_columns or columns)})
        limited = self.limit if len(found) == self.limit else None
        self.row_limit = max(self.row_limit or 0, limited) if limited else self.row_limit
        return Answer(table, limited)


@given(
    st.lists(st.integers(-(2**61), 2**61), unique=True, max_size=60)
    | st.lists(st.integers(0, 80), unique=True, max_size=60),
    st.integers(1, 20),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_every_row_arrives_whatever_the_limit(ids, limit, seed):
    rows = Rows(ids, limit, seed)
    for _ in range(2):  # the second time the limit is known
        table, _ = fetch_table(rows, "ids")
        assert table["id"].to_pylist() == sorted(ids)
        assert table["twice"].to_pylist() == [2 * i for i in sorted(ids)]
    assert rows.queries <= 2 * (4 * len(ids) + 2)


@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 1000, 10_000])
def test_few_queries_are_wasted(n):
    rows = Rows(list(range(0, 3 * n, 3)), limit=100)
    queries = fetch_table(rows, "ids")[1]["queries"]
    assert queries <= 1 if n <= 100 else queries <= 2.2 * n / 100
    assert rows.queries <= (1 if n <= 100 else 3 * n / 100)


def test_a_count_that_was_cut_to_the_limit_does_not_hide_rows():
    rows = Rows(list(range(300)), limit=30)
    rows.count = lambda table, filter_in=None: 30 if filter_in is None else 300
    assert fetch_table(rows, "ids")[0]["id"].to_pylist() == list(range(300))


def test_a_service_that_ignores_ranges_is_noticed():
    rows = Rows(list(range(50)), limit=10)
    plain = rows.query
    rows.query = lambda table, **options: plain(table)
    with pytest.raises(mx.errors.SourceError, match="does not filter by ranges"):
        fetch_table(rows, "ids")
    assert rows.queries < 10


def test_a_table_without_ids():
    rows = Rows([1, 2], limit=10)
    rows.query = lambda table, **options: Answer(pa.table({"x": [1, 2]}))
    with pytest.raises(mx.errors.SourceError, match="has no column 'id'"):
        fetch_table(rows, "ids")


def test_rows_that_come_twice_are_asked_for_again():
    rows = Rows([1, 2, 3], limit=10)
    answers = [[1, 1, 2], [1, 2, 3]]
    rows.query = lambda table, **options: Answer(pa.table({"id": answers.pop(0)}))
    assert fetch_table(rows, "ids")[0]["id"].to_pylist() == [1, 2, 3]
    answers = [[1, 1, 2]] * 9
    with pytest.raises(mx.errors.IncompleteDownloadError, match="3 rows with 2 ids arrived"):
        fetch_table(rows, "ids")


def test_too_few_rows_again_and_again_name_both_numbers():
    rows = Rows([1, 2, 3], limit=10)
    rows.query = lambda table, **options: Answer(pa.table({"id": [1, 2]}))
    with pytest.raises(
        mx.errors.IncompleteDownloadError,
        match="the table ids of minnie65_public v1718: 2 rows arrived, the service counts 3",
    ):
        fetch_table(rows, "ids")


@pytest.mark.parametrize("limit", [40, 60, 149, N_SYNAPSES - 1, N_SYNAPSES, N_SYNAPSES + 1, 10_000])
def test_a_low_row_limit_loses_nothing(limit, folder):
    truth = make_tables()[SYNAPSES]
    with CaveServer(make_tables(), row_limit=limit) as server, source_of(server) as source:
        cache = cached(source, folder)
        cache.download([SYNAPSES], progress=False)
        n_queries = len(server.queries)
        assert sum(r.rows for r in server.queries) >= N_SYNAPSES
    frame = cache.read(SYNAPSES)
    assert frame.id.tolist() == truth.id.tolist()
    assert frame["size"].tolist() == truth["size"].tolist()
    points = frame[[f"ctr_pt_position_{axis}" for axis in "xyz"]].to_numpy()
    assert np.array_equal(points, np.stack(truth.ctr_pt_position))
    assert n_queries <= 2 if limit >= N_SYNAPSES else n_queries <= 3.5 * N_SYNAPSES / limit + 2


def test_equal_to_the_bit_whatever_the_limit_and_the_order(tmp_path):
    digests = set()
    for number, (limit, seed) in enumerate([(10_000, 0), (70, 1), (70, 2), (33, 3)]):
        with (
            CaveServer(make_tables(), row_limit=limit, seed=seed) as server,
            source_of(server) as source,
        ):
            server.faults.add("shuffle", times=99)
            records = cached(source, tmp_path / str(number)).download(NAMES, progress=False)
        digests.add(tuple(records[name]["sha256"] for name in NAMES))
    assert len(digests) == 1


def test_rows_that_are_no_longer_valid_do_not_stop_a_download(folder):
    tables = make_tables()
    tables[TYPES] = tables[TYPES].assign(valid=[True, False, True])
    with CaveServer(tables) as server, source_of(server) as source:
        cache = cached(source, folder)
        assert (source.count(TYPES), source.count(TYPES, {})) == (3, 2)
        cache.download([TYPES], progress=False)
        assert cache.read(TYPES).id.tolist() == [7, 9]
        server.faults.add("lose_rows", match=f"{TYPES}/query$", after=0, times=99)
        with pytest.raises(mx.errors.IncompleteDownloadError, match=TYPES):
            cache.download([TYPES], refresh=True, progress=False)
    assert cache.read(TYPES).id.tolist() == [7, 9]


# ------------------------------------------------------------------------------------ the cache


def test_what_is_there_and_whole_is_not_fetched_again(folder, caplog):
    caplog.set_level(logging.INFO)
    with CaveServer(make_tables()) as server, source_of(server) as source:
        cache = cached(source, folder)
        first = cache.download(NAMES, progress=False)
        assert list(first) == NAMES
        record = first[TYPES]
        assert {k: record[k] for k in ("datastack", "version", "timestamp", "rows", "source", "queries")} == {
            "datastack": "minnie65_public", "version": 1718, "rows": 3, "source": "cave", "queries": 1,
            "timestamp": "2025-10-29T08:10:00.215114+00:00",
        }  # fmt: skip
        assert first[NUCLEI]["resolution_nm"] == (4.0, 4.0, 40.0)
        n_requests = len(server.requests)
        with source_of(server) as other:
            second = cached(other, folder).download([*NAMES, TYPES], progress=False)
        assert {k: v["sha256"] for k, v in second.items()} == {
            k: v["sha256"] for k, v in first.items()
        }
        assert len(server.requests) == n_requests
        cache.path(TYPES).write_bytes(b"damaged")
        cache.download(NAMES, progress=False)
        assert [r.path.split("/table/")[1] for r in list(server.requests)[n_requests:]] == [
            f"{TYPES}/count",
            f"{TYPES}/query",
        ]
        n_requests = len(server.requests)
        third = cache.download(NAMES, refresh=True, progress=False)
        assert len(server.requests) == n_requests + 8
        assert third[TYPES]["sha256"] == first[TYPES]["sha256"]
    assert f"{SYNAPSES}: 300 rows" in caplog.text


def test_leftovers_of_an_interrupted_download_are_removed(folder):
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "other.parquet.0a1b2c3d.microns_xr.tmp").write_bytes(b"half")
    (folder / "raw" / "notes.tmp").write_text("the user's")
    with CaveServer(make_tables()) as server, source_of(server) as source:
        cached(source, folder).download([TYPES], progress=False)
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == sorted(
        [f"{TYPES}.json", f"{TYPES}.parquet", "lock", "notes.tmp", "release.json", "tables.json"]
    )


def test_tables_beyond_max_rows_are_left_out_with_a_word(folder, caplog):
    with CaveServer(make_tables()) as server, source_of(server) as source:
        cache = cached(source, folder)
        records = cache.download(NAMES, progress=False, max_rows=100)
        assert set(records) == {NUCLEI, TYPES, STATUS} == set(cache.names())
    assert f"{SYNAPSES} has 300 rows, more than 100: it is left out" in caplog.text


def test_a_progress_bar_counts_tables(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with CaveServer(make_tables()) as server, source_of(server) as source:
        cached(source, folder).download([TYPES, STATUS])
        assert "2/2" in capsys.readouterr().err
        cached(source, folder).download([TYPES, STATUS], progress=False)
        assert capsys.readouterr() == ("", "")


SCRIPT = """
    import sys
    from microns_xr.sources.cache import CachedSource
    from microns_xr.sources.cave import CaveSource
    url, folder, *names = sys.argv[1:]
    source = CaveSource(1718, server_address=url, auth_token="none")
    CachedSource(source, folder, source.datastack, 1718).download(names, progress=False)
"""


def test_a_second_run_goes_on_after_kill_9(folder):
    with CaveServer(make_tables()) as server, source_of(server) as source:
        server.faults.add("delay", match=f"{STATUS}/query$", seconds=60)
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), server.url, str(folder), *NAMES]
        run = subprocess.Popen(command, env={**os.environ})
        deadline = time.monotonic() + 60
        while not any(path.endswith(f"{STATUS}/query") for _, path in server.faults.fired):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        cache = cached(source, folder)
        assert cache.names() == sorted([NUCLEI, TYPES])
        n_requests = len(server.requests)
        records = cache.download(NAMES, progress=False)
        asked = {
            r.path.split("/table/")[1].split("/")[0]
            for r in list(server.requests)[n_requests:]
            if "/table/" in r.path
        }
        assert asked == {STATUS, SYNAPSES}
        fresh = cached(source, folder.parent / "fresh").download(NAMES, progress=False)
    assert [records[n]["sha256"] for n in NAMES] == [fresh[n]["sha256"] for n in NAMES]
    assert not list(folder.rglob("*.tmp"))


# ---------------------------------------------------------------------------- the demo release


@pytest.mark.parametrize("version", [661, 1507, 1718])
def test_units_of_a_downloaded_release_are_those_of_its_source(tmp_path, version):
    demo = mx.sources.DemoSource(version, n_nuclei=800, seed=3)
    spec = mx.releases.release_spec(version)
    with (
        CaveServer(
            demo, version=version, expired=(), row_limit=300, float_type="Float64"
        ) as server,
        source_of(server) as source,
    ):
        cache = cached(source, tmp_path / f"v{version}")
        names = table_names(spec, cache.available_tables())
        cache.download(names, progress=False)
        served = {name: source.read(name) for name in names}
    direct = {name: demo.read(name) for name in names}
    folder = mx.sources.DirectorySource(cache.folder, version=version)
    modes = ["none", "match"] + ["best_only"] * spec.has("functional_properties")
    for mode in modes:
        expected = mx.build_units(direct, version, functional=mode)
        for read in (cache.read, folder.read, served.get):
            got = mx.build_units({name: read(name) for name in names}, version, functional=mode)
            xr.testing.assert_identical(got, expected)


def test_floats_of_single_precision_are_what_was_sent(folder):
    demo = mx.sources.DemoSource(1718, n_nuclei=600)
    name = mx.releases.release_spec(1718).name_of("functional_properties")
    with CaveServer(demo) as server, source_of(server) as source:
        got, truth = (
            cached(source, folder).read(name),
            demo.read(name).sort_values("id", ignore_index=True),
        )
    assert got.cc_abs.dtype == np.float64
    assert np.array_equal(
        got.cc_abs, truth.cc_abs.astype(np.float32).astype(np.float64), equal_nan=True
    )


# ------------------------------------------------------------------------------------- policies

SPEC = mx.releases.release_spec(1718)
AVAILABLE = [*SPEC.tables.values(), "cell_type_multifeature_combo", "a_note"]


def test_policies(caplog):
    caplog.set_level(logging.INFO)
    minimum = table_names(SPEC, AVAILABLE)
    assert minimum == sorted(SPEC.tables[role] for role in MINIMUM_ROLES if SPEC.has(role))
    assert not caplog.records
    everything = table_names(SPEC, AVAILABLE, "all")
    assert everything == sorted(set(AVAILABLE) - {SYNAPSES})
    assert f"{SYNAPSES} is left out of policy 'all'" in caplog.text
    extra = table_names(SPEC, AVAILABLE, "extra", ["a_note", "coregistration_auto", NUCLEI])
    assert set(extra) == {*minimum, "a_note", SPEC.tables["coregistration_auto"]}
    assert table_names(SPEC, AVAILABLE, "extra", "a_note") == sorted([*minimum, "a_note"])


@pytest.mark.parametrize(("policy", "extra", "error", "match"), [
    ("most", (), mx.errors.SchemaError, "policy is 'most', expected one of"),
    ("minimum", ["a_note"], mx.errors.SchemaError, "use policy='extra'"),
    ("all", ["a_note"], mx.errors.SchemaError, "use policy='extra'"),
    ("extra", (), mx.errors.SchemaError, "names no table"),
    ("extra", ["a_noet"], mx.errors.UnknownLabelError, "v1718 has no table 'a_noet'.*nearest: a_note"),
    ("extra", ["synapses"], mx.errors.SourceError, r"use download_synapses\(pre, post\)"),
    ("extra", [SYNAPSES], mx.errors.SourceError, r"use download_synapses\(pre, post\)"),
])  # fmt: skip
def test_policies_that_make_no_sense(policy, extra, error, match):
    with pytest.raises(error, match=match) as caught:
        table_names(SPEC, AVAILABLE, policy, extra)
    assert isinstance(caught.value, mx.errors.MicronsXrError)


@pytest.mark.parametrize("role", ["nucleus", "celltype", "proofreading"])
def test_without_its_main_tables_there_is_nothing_to_download(role):
    there = [name for name in AVAILABLE if name != SPEC.tables[role]] + [f"{SPEC.tables[role]}_new"]
    with pytest.raises(
        mx.errors.SourceError,
        match=f"has no {role} table '{SPEC.tables[role]}'.*nearest: {SPEC.tables[role]}_new.*tables=",
    ):
        table_names(SPEC, there)


def test_another_table_that_the_service_lacks_is_told(caplog):
    there = [name for name in AVAILABLE if name != SPEC.tables["brain_area"]]
    names = table_names(SPEC, there)
    assert SPEC.tables["brain_area"] not in names
    assert len(names) == len(table_names(SPEC, AVAILABLE)) - 1
    assert f"has no brain_area table {SPEC.tables['brain_area']!r}" in caplog.text
