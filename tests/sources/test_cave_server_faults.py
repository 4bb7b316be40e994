"""What caveclient makes of each fault of the loopback CAVE service.

It is recorded, so that a newer caveclient that does otherwise is noticed.
"""

import time

import pandas as pd
import pyarrow as pa
import pytest
import requests
from cave_server import cave_fixture, open_client
from cave_server.sample import N_SYNAPSES, NUCLEI, SYNAPSES, TYPES, make_tables
from requests.adapters import HTTPAdapter

ROWS = make_tables()[SYNAPSES]
# caveclient joins position columns by DataFrame.drop(inplace=True), which pandas 3.1 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The inplace keyword in DataFrame.drop is deprecated:DeprecationWarning:caveclient"
)
cave = cave_fixture(make_tables)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads or writes the user's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Retries follow each other at once: by default they wait 0, 0.2 and 0.4 s."""
    from caveclient.session_config import SESSION_DEFAULTS

    monkeypatch.setitem(SESSION_DEFAULTS, "backoff_factor", 0)


@pytest.fixture
def client(cave):
    with open_client(cave, version=1718) as client:
        yield client


def by_id(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("id").reset_index(drop=True)


# --------------------------------------------------------------------------------------- faults

OK = None
# What query_table does when one request, and when every request, meets a fault.
FAULTS = {
    "500": ("status", {"status": 500}, requests.HTTPError, 1),
    "502": ("status", {"status": 502}, requests.HTTPError, 4),
    "503": ("status", {"status": 503}, requests.HTTPError, 4),
    "504": ("status", {"status": 504}, requests.HTTPError, 4),
    "429": ("status", {"status": 429}, requests.HTTPError, 1),
    "429_wait": ("status", {"status": 429, "retry_after": 0}, requests.HTTPError, 4),
    "500_wait": ("status", {"status": 500, "retry_after": 0}, requests.HTTPError, 1),
    "520": ("status", {"status": 520}, requests.HTTPError, 1),
    "400": ("status", {"status": 400}, requests.HTTPError, 1),
    "401": ("status", {"status": 401}, requests.HTTPError, 1),
    "403": ("status", {"status": 403}, requests.HTTPError, 1),
    "404": ("status", {"status": 404}, requests.HTTPError, 1),
    "410": ("status", {"status": 410}, requests.HTTPError, 1),
    "drop": ("drop", {}, requests.ConnectionError, 4),
    "drop_reset": ("drop", {"reset": True}, requests.ConnectionError, 4),
    "drop_body": ("drop_body", {}, requests.exceptions.ChunkedEncodingError, 1),
    "half_body": ("half_body", {}, requests.exceptions.ChunkedEncodingError, 1),
    "half_body_reset": ("half_body", {"reset": True}, requests.exceptions.ChunkedEncodingError, 1),
    "cut_schema": ("truncated", {"fraction": 0.3}, pa.ArrowInvalid, 1),  # a ValueError
    "cut_rows": ("truncated", {"fraction": 0.9}, OSError, 1),
    "html": ("html", {}, ValueError, 1),
    "empty": ("empty", {}, pa.ArrowInvalid, 1),
    # Nothing tells these from a good answer:
    "schema_only": ("schema_only", {}, OK, 1),
    "lose_rows": ("lose_rows", {}, OK, 1),
    "shuffle": ("shuffle", {}, OK, 1),
    "delay": ("delay", {"seconds": 0.01}, OK, 1),
}
ROWS_LEFT = {"schema_only": 0, "lose_rows": 150}


@pytest.mark.parametrize("name", FAULTS)
def test_what_caveclient_does_with_a_fault(cave, client, name):
    kind, params, error, requests_made = FAULTS[name]
    query = client.materialize.query_table
    cave.faults.add(kind, times=99, **params)
    if error is OK:
        assert len(query(SYNAPSES)) == ROWS_LEFT.get(name, N_SYNAPSES)
    else:
        with pytest.raises(error) as caught:
            query(SYNAPSES)
        # Beside its own class: whoever catches OSError or ValueError catches more than they think.
        assert type(caught.value) is error or error is OSError
    assert len(cave.queries) == requests_made
    assert [r.fault for r in cave.queries] == [kind] * requests_made
    assert cave.faults.pending == 99 - requests_made
    # Hit only once, what is retried arrives, and the next query is as good as ever.
    cave.faults.clear()
    cave.faults.add(kind, **params)
    if requests_made == 4:
        assert len(query(SYNAPSES)) == N_SYNAPSES
    elif error is not OK:
        with pytest.raises(error):
            query(SYNAPSES)
    else:
        query(SYNAPSES)
    assert cave.faults.pending == 0
    assert by_id(query(SYNAPSES))["id"].tolist() == ROWS.id.tolist()


def test_html_and_truncated_classes():
    """An HTML page is a plain ValueError; a cut stream is ArrowInvalid (ValueError) or OSError."""
    assert issubclass(pa.ArrowInvalid, ValueError)
    assert not issubclass(pa.ArrowInvalid, OSError)
    assert issubclass(requests.HTTPError, OSError)
    assert issubclass(requests.exceptions.ChunkedEncodingError, OSError)
    assert not issubclass(requests.exceptions.ChunkedEncodingError, requests.ConnectionError)


def test_shuffled_rows_are_the_same_rows(cave, client):
    cave.faults.add("shuffle")
    shuffled = client.materialize.query_table(SYNAPSES)
    plain = client.materialize.query_table(SYNAPSES)
    assert shuffled["id"].tolist() != plain["id"].tolist()
    pd.testing.assert_series_equal(by_id(shuffled)["size"], by_id(plain)["size"])


def test_a_cut_count_may_still_be_a_number(cave, client):
    cave.faults.add("truncated", match="/count$", fraction=0.4)
    assert client.materialize.get_annotation_count(SYNAPSES) == 3  # of 300


@pytest.mark.parametrize("kind", ["html", "empty"])
def test_what_is_not_json_is_a_json_error(cave, client, kind):
    cave.faults.add(kind, match="/tables$")
    with pytest.raises(requests.exceptions.JSONDecodeError):
        client.materialize.get_tables()


def test_faults_wait_for_their_path_and_their_turn(cave, client):
    cave.faults.add("status", match=rf"{SYNAPSES}/query$", after=1, times=1, status=500)
    query = client.materialize.query_table
    query(NUCLEI)
    query(SYNAPSES)
    with pytest.raises(requests.HTTPError):
        query(SYNAPSES)
    query(SYNAPSES)
    assert [kind for kind, _ in cave.faults.fired] == ["status"]
    with pytest.raises(ValueError, match="is not one of"):
        cave.faults.add("earthquake")
    with pytest.raises(ValueError, match="takes"):
        cave.faults.add("drop", fraction=1)


def test_retry_after_is_slept_inside_caveclient(cave, client):
    cave.faults.add("status", status=429, retry_after=1)
    started = time.perf_counter()
    assert len(client.materialize.query_table(NUCLEI)) == 4
    assert time.perf_counter() - started >= 1.0


def test_missing_terms_of_service_open_a_browser(cave, client, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    document = {"error": "missing_tos", "data": {"tos_form_url": "https://example.org/tos"}}
    cave.faults.add("status", status=403, body=document)
    with pytest.raises(requests.HTTPError, match="missing_tos"):
        client.materialize.query_table(NUCLEI)
    assert opened == ["https://example.org/tos"]


def test_a_failed_list_of_api_versions_goes_unnoticed(cave):
    """A client that could not read it speaks version 2 for good, where joins name columns anew."""
    cave.faults.add("status", match="/materialize/api/versions$", status=500)
    with open_client(cave, version=1718) as client:
        assert client.materialize.api_version == 2
        frame = client.materialize.query_table(TYPES)
        assert "/api/v2/" in cave.queries[-1].path
        assert {"id", "idref"} <= set(frame.columns)
        assert "id_ref" not in frame
    with open_client(cave) as client:
        assert client.materialize.api_version == 3


def test_a_missing_server_version_stops_queries(cave):
    from caveclient.base import ServerIncompatibilityError

    cave.faults.add("status", match="/materialize/version$", status=404)
    with open_client(cave) as client, pytest.raises(ServerIncompatibilityError):
        client.materialize.query_table(NUCLEI)


class _Timeouts(HTTPAdapter):
    def send(self, request, *args, **options):
        options["timeout"] = options.get("timeout") or (1.0, 0.2)
        return super().send(request, *args, **options)


@pytest.mark.parametrize(("kind", "params", "error"), [
    ("delay", {"seconds": 30}, requests.exceptions.ReadTimeout),
    ("half_body", {"stall": 30}, requests.ConnectionError),
])  # fmt: skip
def test_timeouts_need_an_adapter(cave, kind, params, error):
    with open_client(cave, version=1718) as client:
        client.materialize.session.mount("http://", _Timeouts(max_retries=0))
        cave.faults.add(kind, **params)
        started = time.perf_counter()
        with pytest.raises(error):
            client.materialize.query_table(NUCLEI, merge_reference=False)
        assert time.perf_counter() - started < 5
        assert len(client.materialize.query_table(NUCLEI)) == 4


def test_no_retries_when_none_are_asked_for(cave):
    with open_client(cave, version=1718, max_retries=0) as client:
        cave.faults.add("status", status=503, retry_after=60)
        with pytest.raises(requests.HTTPError, match="503"):
            client.materialize.query_table(NUCLEI)
        cave.faults.add("drop")
        with pytest.raises(requests.ConnectionError):
            client.materialize.query_table(NUCLEI)
    assert len(cave.queries) == 2
