"""Refusals of the loopback CAVE service, its log, its manners, and the archive's files."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import requests
from cave_server import CaveServer, cave_fixture, open_client
from cave_server.sample import NUCLEI, ROOT, STATUS, SYNAPSES, TYPES, make_tables

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
    return folder


@pytest.fixture
def client(cave):
    with open_client(cave, version=1718) as client:
        yield client


def by_id(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("id").reset_index(drop=True)


# ------------------------------------------------------------------------------------- refusals

REFUSED = {
    "unknown_table": (404, lambda m: m.query_table("no_such_table")),
    "unknown_count": (404, lambda m: m.get_annotation_count("no_such_table")),
    "unknown_version": (404, lambda m: m.query_table(NUCLEI, materialization_version=5)),
    "expired_version": (410, lambda m: m.query_table(NUCLEI, materialization_version=661)),
    "expired_tables": (410, lambda m: m.get_tables(version=661)),
    "unknown_column": (400, lambda m: m.query_table(NUCLEI, select_columns=["no_such"])),
    "unknown_filter": (400, lambda m: m.query_table(NUCLEI, filter_in_dict={"no_such": [1]})),
    "float_ids": (400, lambda m: m.query_table(NUCLEI, filter_in_dict={"pt_root_id": [float(ROOT)]})),
    "word_for_id": (400, lambda m: m.query_table(NUCLEI, filter_equal_dict={"id": "one"})),
    "huge_id": (400, lambda m: m.query_table(NUCLEI, filter_in_dict={"id": [2**63]})),
    "word_above": (400, lambda m: m.query_table(TYPES, filter_greater_dict={"cell_type": 5})),
    "empty_box": (400, lambda m: m.query_table(NUCLEI, filter_spatial_dict={"pt_position": [[1] * 3] * 2})),
    "target_column": (400, lambda m: m.query_table(TYPES, filter_in_dict={"pt_root_id": [ROOT]})),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(client, name):
    status, ask = REFUSED[name]
    with pytest.raises(requests.HTTPError) as caught:
        ask(client.materialize)
    assert caught.value.response.status_code == status


def test_an_expired_version_has_a_record_but_no_tables(cave):
    with open_client(cave, version=661) as client:
        assert client.version == 661
        with pytest.raises(
            requests.HTTPError, match="This materialization version is not available"
        ):
            client.materialize.query_table(NUCLEI)
    with (
        pytest.raises(ValueError, match="Version 662 is not available"),
        open_client(cave, version=662),
    ):
        pass


def test_errors_may_come_wrapped_in_a_500():
    with (
        CaveServer(make_tables(), wrap_errors=True) as server,
        open_client(server, version=1718) as client,
    ):
        with pytest.raises(
            requests.HTTPError, match="500 Server Error: 404 Not Found: Analysis"
        ) as caught:
            client.materialize.query_table("no_such_table", merge_reference=False)
        assert caught.value.response.json()["message"].startswith("404 Not Found: ")
        with pytest.raises(requests.HTTPError, match="500 Server Error: column no_such not found"):
            client.materialize.query_table(NUCLEI, select_columns=["no_such"])
        with pytest.raises(requests.HTTPError, match="404 Client Error"):  # the record's own
            client.materialize.get_table_metadata("no_such_table")


def test_tokens():
    secret = "0123456789abcdef"
    with CaveServer(make_tables(), token=secret) as server:
        with open_client(server, version=1718) as client:
            assert len(client.materialize.query_table(NUCLEI)) == 4
        with (
            pytest.raises(requests.HTTPError, match="Invalid/Expired Token") as caught,
            open_client(server, auth_token="wrong"),
        ):
            pass
        assert caught.value.response.status_code == 401
        assert 'error="invalid_token"' in caught.value.response.headers["WWW-Authenticate"]
        assert requests.get(f"{server.url}/info/api/v2/datastacks", timeout=5).status_code == 401
        assert requests.get(f"{server.archive_url}/v661/{NUCLEI}_merged_header.csv", timeout=5).ok
        assert secret not in repr(list(server.requests))


def test_no_token_at_all_leads_to_a_login_page(cave):
    from caveclient import CAVEclient
    from caveclient.base import AuthException

    with CaveServer(make_tables(), token="secret", redirect_to_login=True) as server:
        before = len(server.requests)
        with pytest.raises(AuthException, match="You have not setup a token"):
            CAVEclient("minnie65_public", server_address=server.url, write_server_cache=False)
        paths = [r.path for r in list(server.requests)[before:]]
        assert paths[-1] == "/auth/api/v1/authorize"


# -------------------------------------------------------------------------------------- archive


def read_archived(server, stem, version=661):
    header = requests.get(f"{server.archive_url}/v{version}/{stem}_header.csv", timeout=5)
    data = requests.get(f"{server.archive_url}/v{version}/{stem}.csv.gz", timeout=5)
    columns = [line.split(",") for line in header.text.splitlines()]
    body = gzip.decompress(data.content)
    return dict(columns), pd.read_csv(io.BytesIO(body), header=None, names=[c for c, _ in columns])


def test_archived_files_hold_the_tables(cave):
    types, frame = read_archived(cave, f"{STATUS}_merged")
    assert types == {
        "id": "bigint",
        "pt_supervoxel_id": "bigint",
        "pt_root_id": "bigint",
        "valid_id": "bigint",
        "status_axon": "boolean",
        "created": "timestamp without time zone",
    }
    assert frame["status_axon"].tolist() == ["t", "f"]
    assert frame["pt_root_id"].tolist() == [ROOT, ROOT + 1]
    assert frame["created"][0] == "2024-01-02 03:04:05.678000"
    types, frame = read_archived(cave, "synapses_pni_2_v1_filtered_view", version=1718)
    assert types["size"] == "double precision"
    assert types["ctr_pt_position_z"] == "integer"
    assert frame["id"].tolist() == make_tables()[SYNAPSES]["id"].tolist()
    points = np.stack(make_tables()[SYNAPSES]["ctr_pt_position"])
    assert np.array_equal(frame[[f"ctr_pt_position_{a}" for a in "xyz"]].to_numpy(), points)
    types, frame = read_archived(cave, f"{NUCLEI}_merged")
    assert frame["volume"][0] == 1.1  # the double, where the service sends a float32
    types, _ = read_archived(cave, f"{TYPES}_merged")
    assert "pt_root_id" not in types  # a reference table's own columns only


def test_archive_may_hold_other_tables_than_the_service(cave):
    other = {NUCLEI: pd.DataFrame({"id": [5], "pt_root_id": [ROOT + 77], "note": ['a, "b"']})}
    with CaveServer(make_tables(), expired=(661, 343), archived={661: other}) as server:
        _, frame = read_archived(server, f"{NUCLEI}_merged", version=661)
        assert frame["pt_root_id"].tolist() == [ROOT + 77]
        assert frame["note"].tolist() == ['a, "b"']
        assert len(read_archived(server, f"{NUCLEI}_merged", version=343)[1]) == 4
        for missing in (f"v661/{SYNAPSES}_merged.csv.gz", f"v5/{NUCLEI}_merged.csv.gz", "v661/"):
            assert requests.get(f"{server.archive_url}/{missing}", timeout=5).status_code == 404


def test_ranges_and_checksums(cave):
    url = f"{cave.archive_url}/v661/{NUCLEI}_merged.csv.gz"
    whole = requests.get(url, timeout=5)
    content = whole.content
    assert whole.headers["Content-Length"] == str(len(content))
    assert whole.headers["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
    assert "Content-Encoding" not in whole.headers
    head = requests.head(url, timeout=5)
    assert head.headers["Content-Length"] == str(len(content))
    for asked, part in {
        "bytes=10-": content[10:],
        "bytes=0-9": content[:10],
        "bytes=-7": content[-7:],
        "bytes=5-999999": content[5:],
    }.items():
        answer = requests.get(url, headers={"Range": asked}, timeout=5)
        assert (answer.status_code, answer.content) == (206, part)
        first = len(content) - 7 if asked == "bytes=-7" else int(re.findall(r"\d+", asked)[0])
        expected = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        assert answer.headers["Content-Range"] == expected
    past = requests.get(url, headers={"Range": f"bytes={len(content)}-"}, timeout=5)
    assert past.status_code == 416
    changed = requests.get(url, headers={"Range": "bytes=10-", "If-Range": '"old"'}, timeout=5)
    assert (changed.status_code, changed.content) == (200, content)


def test_faults_of_the_archive(cave):
    url = f"{cave.archive_url}/v661/{NUCLEI}_merged.csv.gz"
    content = requests.get(url, timeout=5).content
    cave.faults.add("half_body", match=r"csv\.gz$")
    with requests.get(url, stream=True, timeout=5) as answer:
        assert answer.headers["Content-Length"] == str(len(content))
        blocks = []
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            blocks.extend(answer.iter_content(16))
    got = b"".join(blocks)
    assert 0 < len(got) < len(content)
    rest = requests.get(url, headers={"Range": f"bytes={len(got)}-"}, timeout=5)
    assert got + rest.content == content
    cave.faults.add("status", match=r"_header\.csv$", status=503)
    header = f"{cave.archive_url}/v661/{NUCLEI}_merged_header.csv"
    assert [requests.get(header, timeout=5).status_code for _ in range(2)] == [503, 200]


# ------------------------------------------------------------------------------------ manners

SESSION = """
import sys
from caveclient import CAVEclient
client = CAVEclient("minnie65_public", server_address=sys.argv[1], auth_token="secret",
                    write_server_cache=False, version=1718)
print(len(client.materialize.query_table("nucleus_detection_v0")))
"""


def test_the_home_of_the_user_stays_as_it_is(cave, home):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, cave.url],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["4"]
    assert list(home.rglob("*")) == []


def test_without_the_argument_caveclient_writes_there(cave, home):
    from caveclient import CAVEclient

    client = CAVEclient("minnie65_public", server_address=cave.url, auth_token="secret")
    client.info.session.close()
    written = [p for p in home.rglob("*") if p.is_file()]
    assert [p.name for p in written] == ["cave_datastack_to_server_map.json"]
    assert json.loads(written[0].read_text()) == {"minnie65_public": cave.url}


def test_it_leaves_no_thread_and_no_socket():
    before = threading.active_count()
    with CaveServer(make_tables()) as server:
        idle = requests.Session()
        assert idle.get(f"{server.url}/info/version", timeout=5).json() == "4.5.0"
        server.faults.add("delay", match="/materialize/version$", seconds=60)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(requests.get, f"{server.url}/materialize/version", timeout=30)
            while not server.faults.fired:
                time.sleep(0.005)
            started = time.perf_counter()
            server.stop()
            assert time.perf_counter() - started < 2
            waiting.exception()
        idle.close()
    assert threading.active_count() == before
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.url}/info/version", timeout=1)


def test_the_log(cave, client):
    wanted = [ROOT, ROOT + 1]
    client.materialize.query_table(SYNAPSES, filter_in_dict={"pre_pt_root_id": wanted}, limit=7)
    last = cave.queries[-1]
    assert last.body == {"filter_in_dict": {SYNAPSES: {"pre_pt_root_id": wanted}}, "limit": 7}
    assert (last.method, last.status, last.rows, last.fault) == ("POST", 200, 7, None)
    assert last.bytes_in == len(json.dumps(last.body))
    assert last.bytes_out > 0
    many = list(range(30_000))
    client.materialize.query_table(SYNAPSES, filter_in_dict={"id": many})
    assert cave.queries[-1].body is None  # too long to keep
    assert cave.queries[-1].bytes_in > 100_000
    assert cave.requests[0].path == "/info/version"


def test_a_bug_of_the_server_fails_the_test_that_uses_it():
    server = CaveServer(make_tables()).__enter__()
    with open_client(server) as client:
        server.faults.add("shuffle", match="/tables$")  # has no rows to shuffle
        client.materialize.get_tables()
    with pytest.raises(AssertionError, match="no rows"):
        server.__exit__(None)


def test_tables_with_ids_as_float_are_refused():
    with pytest.raises(ValueError, match="holds ids as float"):
        CaveServer({NUCLEI: pd.DataFrame({"id": [1], "pt_root_id": [float(ROOT)]})}).stop()


def test_it_is_fast(cave):
    with open_client(cave, version=1718) as client:
        client.materialize.query_table(NUCLEI)
        started = time.perf_counter()
        for _ in range(10):
            client.materialize.query_table(NUCLEI)
        assert time.perf_counter() - started < 2.0
    assert max(r.seconds for r in cave.queries[1:]) < 0.5


def test_it_serves_the_demo_release():
    demo = pytest.importorskip("microns_xr.sources.demo", reason="there is no DemoSource yet")
    source = demo.DemoSource(1718)
    with CaveServer(source) as server, open_client(server, version=1718) as client:
        assert client.materialize.get_tables() == source.available_tables()
        for name in source.available_tables():
            truth = source.read(name)
            assert client.materialize.get_annotation_count(name) == len(truth)
            frame = client.materialize.query_table(
                name, split_positions=True, merge_reference=False, metadata=False
            )
            common = [c for c in truth if c in frame]
            assert {"id", "session", "pt_root_id"} & set(common)
            for column in common:
                there, here = frame[column], truth[column]
                if str(there.dtype) == "boolean":
                    there = there.map({True: "t", False: "f"})
                elif str(there.dtype) == "Float32":
                    here = here.astype("float32")
                assert there.isna().tolist() == here.isna().tolist(), (name, column)
                assert there.dropna().tolist() == here.dropna().tolist(), (name, column)
    with CaveServer(source, float_type="Float64") as server:
        assert str(server.tables[NUCLEI].frame["volume"].dtype) == "Float64"
        with open_client(server, version=1718) as client:
            frame = client.materialize.query_table(NUCLEI)
        assert frame["volume"].tolist() == source.read(NUCLEI)["volume"].tolist()
