"""Every fault of the loopback service x the download of tables.

What passes: the tables are those of a download without faults, to the bit. What lasts: the right
error at once. In every case: nothing half-written, nothing in the user's home, the token nowhere.
"""

import logging
import random
import traceback

import pytest
from cave_server import KINDS, CaveServer
from cave_server.sample import NUCLEI, STATUS, SYNAPSES, TYPES, make_tables

import microns_xr as mx
from microns_xr.sources.cache import CachedSource

TOKEN = "fedcba9876543210fedcba9876543210"
NAMES = [TYPES, NUCLEI, STATUS, SYNAPSES]  # the row limit cuts the last
# Tables of a download whose fault is at the beginning, in the second table, and in the last.
AT_BEGIN, IN_SECOND, IN_LAST = NAMES[:2], NAMES[:3], NAMES[2:]
ROW_LIMIT = 120
ATTEMPTS = 4

TRANSIENT = {
    "500": ("status", {"status": 500}),
    "500_html": ("status", {"status": 500, "body": "<html><h1>Internal Server Error</h1></html>"}),
    "500_column": (
        "status",
        {"status": 500, "body": {"message": "connection to the database lost"}},
    ),
    "501": ("status", {"status": 501}),
    "502": ("status", {"status": 502}),
    "503": ("status", {"status": 503}),
    "503_wait": ("status", {"status": 503, "retry_after": 86_400}),
    "504": ("status", {"status": 504}),
    "520": ("status", {"status": 520}),
    "408": ("status", {"status": 408}),
    "429": ("status", {"status": 429}),
    "429_wait": ("status", {"status": 429, "retry_after": 86_400}),
    "delay": ("delay", {"seconds": 0.02}),
    "timeout": ("delay", {"seconds": 60}),
    "drop": ("drop", {}),
    "drop_reset": ("drop", {"reset": True}),
    "drop_body": ("drop_body", {}),
    "half_body": ("half_body", {}),
    "half_body_reset": ("half_body", {"reset": True}),
    "half_body_stall": ("half_body", {"stall": 60}),
    "cut_start": ("truncated", {"fraction": 0.1}),
    "cut_schema": ("truncated", {"fraction": 0.3}),
    "cut_rows": ("truncated", {"fraction": 0.9}),
    "html": ("html", {}),
    "empty": ("empty", {}),
}
ROWS_ONLY = {
    "schema_only": ("schema_only", {}),
    "shuffle": ("shuffle", {}),
    "lose_rows": ("lose_rows", {}),
    "lose_all_rows": ("lose_rows", {"fraction": 1.0}),
}
# What is hit, after how many requests that are let pass, and which tables are downloaded.
PLACES = {
    "info version": (r"/info/version$", 0, AT_BEGIN),
    "info record": (r"/info/api/", 0, AT_BEGIN),
    "service version": (r"/materialize/version$", 0, AT_BEGIN),
    "time": (r"/version/1718$", 0, AT_BEGIN),
    "list of tables": (r"/version/1718/tables$", 0, AT_BEGIN),
    "count": (rf"{NUCLEI}/count$", 0, IN_SECOND),
    "rows": (rf"{NUCLEI}/query$", 0, IN_SECOND),
    "rows of a cut table": (rf"{SYNAPSES}/query$", 0, IN_LAST),
    "rows of a part": (rf"{SYNAPSES}/query$", 2, IN_LAST),
}
# Of the requests that are no rows one meets every fault, the others one fault of each form.
FEW = ("500", "429_wait", "timeout", "drop_reset", "half_body", "cut_schema", "html", "empty")
LIKE_ANOTHER = ("info version", "service version", "time", "list of tables")
HARMLESS = ("delay", "shuffle")
SLOW = ("timeout", "half_body_stall")


@pytest.fixture(autouse=True)
def nothing_leaks(tmp_path, monkeypatch, caplog):
    """No test writes into the home, and none shows the token."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("webbrowser.open", lambda *args: pytest.fail("a browser was opened"))
    caplog.set_level(logging.DEBUG)
    yield
    assert list(home.rglob("*")) == []
    assert TOKEN not in caplog.text
    assert all(TOKEN.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def truth(server, tmp_path_factory):
    """Digests of the tables of a download without faults."""
    server.faults.clear()
    with mx.sources.CaveSource(1718, server_address=server.url, auth_token=TOKEN) as source:
        cache = CachedSource(source, tmp_path_factory.mktemp("truth"), source.datastack, 1718)
        cache.download(NAMES, progress=False)
    assert len(cache.read(SYNAPSES)) == len(make_tables()[SYNAPSES])
    return digests(cache)


def digests(cache: CachedSource) -> dict[str, str]:
    return {name: cache.provenance(name)["sha256"] for name in cache.names()}


class Bench:
    """A guarded service, an empty cache, and the waits between attempts."""

    def __init__(self, server: CaveServer, folder) -> None:
        self.server = server
        self.cache = CachedSource(None, folder, "minnie65_public", 1718)
        self.waits: list[float] = []

    def download(
        self, names: list[str] = NAMES, refresh: bool = False, timeout: float = 10.0
    ) -> dict:
        retry = mx.sources.Retry(attempts=ATTEMPTS, cap=50.0, sleep=self.waits.append)
        with mx.sources.CaveSource(
            1718,
            server_address=self.server.url,
            auth_token=TOKEN,
            timeout=(2.0, timeout),
            retry=retry,
        ) as source:
            assert TOKEN not in repr(source)
            self.cache.remote = source
            return self.cache.download(names, refresh=refresh, progress=False)

    def files(self) -> list[str]:
        return sorted(p.name for p in self.cache.table_folder.iterdir() if p.name != "lock")


@pytest.fixture(scope="module")
def server():
    with CaveServer(make_tables(), token=TOKEN, row_limit=ROW_LIMIT) as server:
        yield server


@pytest.fixture
def bench(server, tmp_path):
    server.faults.clear()
    return Bench(server, tmp_path / "cache")


def files_of(names) -> list[str]:
    return sorted(f"{name}.{suffix}" for name in names for suffix in ("json", "parquet"))


def shown(error: BaseException) -> str:
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    for frame in trace.stack:
        if frame.filename == __file__:
            frame.locals = None  # here the token is a name of the test's own
    return "".join(trace.format())


CASES = [
    (place, name)
    for place in PLACES
    for name in (TRANSIENT | ROWS_ONLY if "rows" in place else TRANSIENT)
    if place not in LIKE_ANOTHER or name in FEW
]


def test_every_kind_of_fault_is_part_of_the_matrix():
    assert {kind for kind, _ in (TRANSIENT | ROWS_ONLY).values()} == set(KINDS)


@pytest.mark.parametrize(("place", "name"), CASES)
def test_a_fault_that_passes_changes_nothing(bench, truth, place, name):
    kind, params = (TRANSIENT | ROWS_ONLY)[name]
    match, after, names = PLACES[place]
    times = 1 if name in (*SLOW, *HARMLESS) else 2
    bench.server.faults.add(kind, match=match, times=times, after=after, **params)
    bench.download(names, timeout=0.5 if name in SLOW else 10.0)
    assert bench.server.faults.pending == 0
    assert digests(bench.cache) == {n: truth[n] for n in names}
    assert bench.files() == files_of(names)
    assert len(bench.waits) <= times
    assert all(wait <= 50 for wait in bench.waits)
    if place != "count" and name not in HARMLESS:
        assert bench.waits


PERSISTENT = [
    (place, name)
    for place, name in CASES
    if place in ("info record", "rows", "rows of a part") and name not in (*HARMLESS, *SLOW)
]


@pytest.mark.parametrize(("place", "name"), PERSISTENT)
def test_a_fault_that_does_not_pass_ends_with_what_was_done_kept(bench, truth, place, name):
    kind, params = (TRANSIENT | ROWS_ONLY)[name]
    match, after, names = PLACES[place]
    bench.server.faults.add(kind, match=match, times=999, after=after, **params)
    with pytest.raises(
        mx.errors.IncompleteDownloadError, match="run the same again later"
    ) as caught:
        bench.download(names)
    done = {"info record": [], "rows": [TYPES], "rows of a part": [STATUS]}[place]
    assert bench.cache.names() == sorted(done)
    assert bench.files() == files_of(done)
    assert digests(bench.cache) == {n: truth[n] for n in done}
    assert len(bench.waits) >= ATTEMPTS - 1
    assert bench.waits[0] < bench.waits[2] or "wait" in name
    assert TOKEN not in shown(caught.value)
    # The same again, with a service that works: only what is not there is fetched.
    bench.server.faults.clear()
    n_requests = len(bench.server.requests)
    bench.download(names)
    assert digests(bench.cache) == {n: truth[n] for n in names}
    # Without those that an earlier test was tired of waiting for, and that are answered only now.
    asked = [r.path for r in list(bench.server.requests)[n_requests:] if r.fault is None]
    assert [path for path in asked for name in done if f"/{name}/" in path] == []


LASTING = {
    "400": ({"status": 400, "body": {"message": "column x not found"}}, "400: column x not found.*check the names"),
    "401": ({"status": 401}, "401.*get a token at .*auth_token=.*save_token"),
    "403": ({"status": 403, "body": "<html>Forbidden</html>"}, "403: Forbidden.*the token may not read minnie65_public"),
    "403_terms": (
        {"status": 403, "body": {"error": "missing_tos", "data": {"tos_form_url": "https://example.org/tos"}}},
        "accept the terms of service at https://example.org/tos",
    ),
    "404": ({"status": 404}, "404.*no such datastack, version or table"),
    "405": ({"status": 405}, "405"),
    "410": ({"status": 410}, r"410.*v1718 has left the service.*source='archive'"),
    "413": ({"status": 413}, "413.*fewer ids"),
    "500_404": ({"status": 500, "body": {"message": "404 Not Found: Analysis table"}}, "404: 404 Not Found.*no such"),
    "500_410": ({"status": 500, "body": {"message": "410 Gone: expired"}}, "410.*source='archive'"),
}  # fmt: skip


REFUSALS = [(p, n) for p in PLACES for n in LASTING if p not in LIKE_ANOTHER or n in ("401", "410")]


@pytest.mark.parametrize(("place", "name"), REFUSALS)
def test_a_refusal_ends_the_download_at_once(bench, truth, place, name):
    params, match = LASTING[name]
    path, after, names = PLACES[place]
    bench.server.faults.add("status", match=path, times=99, after=after, **params)
    with pytest.raises(mx.errors.SourceError, match=match) as caught:
        bench.download(names)
    assert not isinstance(caught.value, mx.errors.IncompleteDownloadError)
    assert bench.server.faults.pending == 98  # one request met it
    assert bench.waits == []
    assert bench.files() == files_of(bench.cache.names())
    assert all(truth[n] == digest for n, digest in digests(bench.cache).items())
    assert TOKEN not in shown(caught.value)


def test_a_service_that_once_did_not_say_its_version_is_used(bench, truth):
    bench.server.faults.add("status", match="/materialize/version$", status=404)
    bench.download()
    assert digests(bench.cache) == truth
    assert len(bench.waits) <= 1  # asked again


@pytest.mark.parametrize("name", ["500", "half_body", "lose_rows", "schema_only"])
def test_a_failed_refresh_keeps_the_old_tables(bench, truth, name):
    bench.download()
    kind, params = (TRANSIENT | ROWS_ONLY)[name]
    bench.server.faults.add(kind, match=f"{TYPES}/query$", times=999, **params)
    with pytest.raises(mx.errors.IncompleteDownloadError):
        bench.download(refresh=True)
    assert digests(bench.cache) == truth
    assert bench.files() == files_of(NAMES)


@pytest.mark.parametrize("seed", range(8))
def test_many_faults_at_once(bench, truth, seed):
    rng = random.Random(seed)
    faults = bench.server.faults
    for _ in range(12):
        name = rng.choice([n for n in TRANSIENT if n not in SLOW])
        kind, params = TRANSIENT[name]
        faults.add(
            kind, match=rng.choice(list(PLACES.values()))[0], after=rng.randrange(3), **params
        )
    for _ in range(5):
        faults.add(rng.choice(["shuffle", "lose_rows", "schema_only"]), after=rng.randrange(20))
    for _ in range(50):
        try:
            bench.download()
        except mx.errors.IncompleteDownloadError:
            continue
        break
    assert digests(bench.cache) == truth
    assert bench.files() == files_of(NAMES)
