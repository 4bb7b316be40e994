"""Every fault of the loopback service, met by a download of synapses through the real client.

The result equals the one without faults to the bit, or the error is the right one; nothing
half-written is left, and the same call afterwards brings everything.
"""

import numpy as np
import pytest
from cave_server import KINDS, CaveServer
from synapse_service import ROOT, expected, make_synapses

import microns_xr as mx
from microns_xr.sources import synapses
from microns_xr.sources.synapses import download_synapses

# caveclient joins position columns by DataFrame.drop(inplace=True), which pandas 3.1 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The inplace keyword in DataFrame.drop is deprecated:DeprecationWarning:caveclient"
)
FRAME = make_synapses(350)
ROOTS = ROOT + 3 * np.arange(40)
TOKEN = "0123456789abcdef"
QUERIES = 30  # that a download without faults makes at the most
SAME = None  # the result is the same, however often the fault comes

# Fault, its parameters, and what comes of it when it never ends.
TRANSIENT = {
    "500": ("status", {"status": 500}, "HTTP 500|500"),
    "502": ("status", {"status": 502}, "502"),
    "503": ("status", {"status": 503}, "503"),
    "504": ("status", {"status": 504}, "504"),
    "520": ("status", {"status": 520}, "520"),
    "429": ("status", {"status": 429}, "429"),
    "429_wait": ("status", {"status": 429, "retry_after": 3600}, "429"),
    "drop": ("drop", {}, "Connection|Remote"),
    "drop_reset": ("drop", {"reset": True}, "Connection"),
    "drop_body": ("drop_body", {}, "Chunked|Incomplete|Connection"),
    "half_body": ("half_body", {}, "Chunked|Incomplete|Connection"),
    "half_body_reset": ("half_body", {"reset": True}, "Chunked|Incomplete|Connection"),
    "half_body_stall": ("half_body", {"stall": 20}, "timed out|Timeout|Connection"),
    "cut_schema": ("truncated", {"fraction": 0.3}, "."),
    "cut_rows": ("truncated", {"fraction": 0.9}, "."),
    "html": ("html", {}, "."),
    "empty": ("empty", {}, "."),
    "schema_only": ("schema_only", {}, "."),
    "lose_rows": ("lose_rows", {"fraction": 0.2}, "."),
    "shuffle": ("shuffle", {}, SAME),
    "delay": ("delay", {"seconds": 0.01}, SAME),
    "delay_long": ("delay", {"seconds": 20}, "timed out|Timeout"),
}
LASTING = {
    400: "cannot make sense|message|400",
    401: "token",
    403: "token",
    404: "no such table|404",
    410: "source='archive'",
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(synapses, "_TICK", 0.01)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The file that arrives without faults."""
    with CaveServer({"synapses_pni_2": FRAME}, row_limit=120) as server:
        found = download(server, tmp_path_factory.mktemp("clean"))
        assert len(server.queries) <= QUERIES
        assert max(r.rows for r in server.queries) == 120, "no answer was cut"
    truth = expected(FRAME, ROOTS[5:], ROOTS, positions=True)
    assert found.read().equals(truth)
    return found.path.read_bytes()


def download(server, folder):
    options = {
        "retry": mx.sources.Retry(attempts=4, sleep=lambda seconds: None),
        "timeout": (1.0, 0.3),
    }
    with mx.sources.CaveSource(
        1718, server_address=server.url, auth_token=TOKEN, **options
    ) as source:
        return download_synapses(
            source, folder, pre=ROOTS[5:], post=ROOTS, positions=True, batch=18, progress=False
        )


def check_nothing_half_written(folder):
    left = [p.name for p in folder.rglob("*") if p.is_file()]
    assert not [n for n in left if n.endswith(".tmp")]
    assert not list(folder.glob("*.parquet")), "the result is there, although it is not complete"


def test_the_matrix_has_every_fault():
    assert {kind for kind, _, _ in TRANSIENT.values()} == set(KINDS)


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_fault_now_and_then_changes_nothing(tmp_path, clean, name):
    kind, params, _ = TRANSIENT[name]
    slow = "stall" in params or params.get("seconds", 0) > 1
    with CaveServer({"synapses_pni_2": FRAME}, row_limit=120) as server:
        for after in (0, 2, 3) if not slow else (2,):
            server.faults.add(kind, after=after, **params)
            server.faults.add("shuffle", after=1)
        found = download(server, tmp_path)
        assert found.path.read_bytes() == clean
        assert server.faults.pending == 0


@pytest.mark.parametrize(
    "name", [n for n in TRANSIENT if n not in ("half_body_stall", "delay_long")]
)
def test_a_fault_that_stays(tmp_path, clean, name):
    kind, params, says = TRANSIENT[name]
    with CaveServer({"synapses_pni_2": FRAME}, row_limit=120) as server:
        server.faults.add(kind, after=5, times=10**6, **params)
        if says is SAME:
            assert download(server, tmp_path).path.read_bytes() == clean
            return
        with pytest.raises(mx.errors.IncompleteDownloadError, match=says) as caught:
            download(server, tmp_path)
        assert TOKEN not in f"{caught.value} {caught.value.__notes__}"
        check_nothing_half_written(tmp_path)
        before = len(server.queries)
        server.faults.clear()
        found = download(server, tmp_path)
        assert found.path.read_bytes() == clean
        assert len(server.queries) - before <= QUERIES


@pytest.mark.parametrize("after", [0, 6])
@pytest.mark.parametrize("status", LASTING)
def test_what_lasts_fails_at_once(tmp_path, clean, status, after):
    with CaveServer({"synapses_pni_2": FRAME}, row_limit=120) as server:
        server.faults.add("status", status=status, after=after, times=10**6)
        with pytest.raises(mx.errors.SourceError, match=LASTING[status]) as caught:
            download(server, tmp_path)
        assert not isinstance(caught.value, mx.errors.IncompleteDownloadError)
        assert TOKEN not in str(caught.value)
        assert len(server.queries) <= after + 3  # one a worker
        check_nothing_half_written(tmp_path)
        server.faults.clear()
        assert download(server, tmp_path).path.read_bytes() == clean


@pytest.mark.parametrize("match", ["/info/", "/version/1718$", "/materialize/version$"])
@pytest.mark.parametrize("kinds", [("status", "drop"), ("half_body", "html", "empty")])
def test_faults_before_the_first_query(tmp_path, clean, kinds, match):
    with CaveServer({"synapses_pni_2": FRAME}, row_limit=120) as server:
        for kind in kinds:
            server.faults.add(kind, match=match)
        assert download(server, tmp_path).path.read_bytes() == clean
        assert server.faults.pending == 0
