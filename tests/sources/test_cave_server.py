"""The loopback CAVE service: its rows, its row limit, its faults, its log, the archive's files."""

import gzip
import hashlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import requests
from cave_server import CaveServer, cave_fixture
from cave_server.sample import N_SYNAPSES, NUCLEI, ROOT, STATUS, SYNAPSES, TYPES, make_tables

cave = cave_fixture(make_tables)
ROWS = make_tables()[SYNAPSES]


def query(server: CaveServer, table: str, version: int = 1718, **body) -> requests.Response:
    url = f"{server.url}/materialize/api/v3/datastack/minnie65_public/version/{version}/table"
    return requests.post(f"{url}/{table}/query", json=body, timeout=10)


def rows_of(answer: requests.Response) -> pa.Table:
    with pa.ipc.open_stream(answer.content) as reader:
        return reader.read_all()


# ---------------------------------------------------------------------------------- queries


def test_types_of_an_answer(cave):
    answer = query(cave, NUCLEI)
    types = {field.name: str(field.type) for field in rows_of(answer).schema}
    assert types == {
        "id": "int64", "pt_supervoxel_id": "int64", "pt_root_id": "int64", "volume": "float",
        "pt_position_x": "int32", "pt_position_y": "int32", "pt_position_z": "int32",
    }  # fmt: skip
    assert answer.headers["dataframe_resolution"] == "4.0, 4.0, 40.0"
    assert rows_of(query(cave, STATUS))["valid_id"].to_pylist() == [ROOT, None]
    # A reference table has its own columns only.
    assert "pt_root_id" not in rows_of(query(cave, TYPES)).column_names
    chosen = rows_of(query(cave, SYNAPSES, select_columns=["pre_pt_root_id", "ctr_pt_position"]))
    places = [f"ctr_pt_position_{axis}" for axis in "xyz"]
    assert chosen.column_names == ["pre_pt_supervoxel_id", "pre_pt_root_id", *places]


FILTERS = {
    "in": ("filter_in_dict", {"post_pt_root_id": [ROOT, ROOT + 3]}, ROWS.post_pt_root_id.isin([ROOT, ROOT + 3])),
    "in_nothing": ("filter_in_dict", {"post_pt_root_id": []}, ROWS["size"] < 0),
    "less": ("filter_less_dict", {"size": 5000}, ROWS["size"] < 5000),
    "greater_equal": ("filter_greater_equal_dict", {"id": 2**53 + 100}, ROWS.id >= 2**53 + 100),
    "out": ("filter_out_dict", {"pre_pt_root_id": [ROOT]}, ROWS.id > 0),  # accepted, ignored
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_filters(cave, name):
    key, values, keep = FILTERS[name]
    found = rows_of(query(cave, SYNAPSES, **{key: {SYNAPSES: values}}))
    assert sorted(found["id"].to_pylist()) == ROWS.id[keep].tolist()


@pytest.mark.parametrize(("status", "table", "options"), [
    (404, "no_such_table", {}),
    (404, NUCLEI, {"version": 5}),
    (410, NUCLEI, {"version": 661}),
    (400, NUCLEI, {"select_columns": ["no_such"]}),
    (400, NUCLEI, {"filter_in_dict": {NUCLEI: {"no_such": [1]}}}),
    (400, NUCLEI, {"filter_in_dict": {NUCLEI: {"pt_root_id": [float(ROOT)]}}}),
    (400, NUCLEI, {"filter_in_dict": {NUCLEI: {"id": [2**63]}}}),
    (400, NUCLEI, {"filter_in_dict": {TYPES: {"id": [1]}}}),
    (400, NUCLEI, {"filter_less_dict": {NUCLEI: {"id": "one"}}}),
    (400, NUCLEI, {"filter_regex_dict": {NUCLEI: {"id": "1"}}}),  # one that no source sends
])  # fmt: skip
def test_refusals(cave, status, table, options):
    assert query(cave, table, **options).status_code == status


def test_row_limit_cuts_in_no_order_and_only_warns():
    with CaveServer(make_tables(), row_limit=40, notices={SYNAPSES: "use v1"}) as server:
        answers = [query(server, SYNAPSES) for _ in range(2)]
        one, other = (rows_of(answer)["id"].to_pylist() for answer in answers)
        assert len(set(one)) == len(set(other)) == 40
        assert set(one) != set(other)
        limit = '201 - "Limited query to 40 rows'  # the quotation mark is never closed
        notice = f"Table Owner Notice on {SYNAPSES}: use v1"
        assert answers[0].headers["Warning"] == f"{limit}, {notice}"
        just_enough = {"filter_in_dict": {SYNAPSES: {"id": ROWS.id[:40].tolist()}}}
        assert limit in query(server, SYNAPSES, **just_enough).headers["Warning"]
        assert "Warning" not in query(server, NUCLEI).headers
        assert [r.rows for r in server.queries] == [40, 40, 40, 4]


# ----------------------------------------------------------------------------------- faults


def test_faults_of_rows(cave):
    for kind, n_rows in (("shuffle", N_SYNAPSES), ("lose_rows", 150), ("schema_only", 0)):
        cave.faults.add(kind)
        found = rows_of(query(cave, SYNAPSES))["id"].to_pylist()
        assert len(found) == n_rows
        assert set(found) <= set(ROWS.id)
        assert found != ROWS.id.tolist()
    assert sorted(rows_of(query(cave, SYNAPSES))["id"].to_pylist()) == ROWS.id.tolist()


def test_faults_wait_for_their_path_and_their_turn(cave):
    cave.faults.add("status", match=rf"{SYNAPSES}/query$", after=1, times=1, status=500)
    tables = (NUCLEI, SYNAPSES, SYNAPSES, SYNAPSES)
    assert [query(cave, name).status_code for name in tables] == [200, 200, 500, 200]
    assert [kind for kind, _ in cave.faults.fired] == ["status"]
    with pytest.raises(ValueError, match="is not one of"):
        cave.faults.add("earthquake")
    with pytest.raises(ValueError, match="takes"):
        cave.faults.add("drop", fraction=1)


def test_a_bug_of_the_server_fails_the_test_that_uses_it():
    server = CaveServer(make_tables()).__enter__()
    server.faults.add("shuffle", match="/info/version$")  # has no rows to shuffle
    requests.get(f"{server.url}/info/version", timeout=5)
    with pytest.raises(AssertionError, match="no rows"):
        server.__exit__(None)


def test_tables_with_ids_as_float_are_refused():
    with pytest.raises(ValueError, match="holds ids as float"):
        CaveServer({NUCLEI: pd.DataFrame({"id": [1], "pt_root_id": [float(ROOT)]})}).stop()


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


def test_the_log(cave):
    body = {"filter_in_dict": {SYNAPSES: {"pre_pt_root_id": [ROOT, ROOT + 1]}}}
    query(cave, SYNAPSES, **body)
    last = cave.queries[-1]
    assert last.body == body
    assert (last.method, last.status, last.fault) == ("POST", 200, None)
    assert last.rows == ROWS.pre_pt_root_id.isin([ROOT, ROOT + 1]).sum()
    assert last.bytes_in == len(json.dumps(body))
    assert last.bytes_out > 0
    query(cave, SYNAPSES, filter_in_dict={SYNAPSES: {"id": list(range(30_000))}})
    assert cave.queries[-1].body is None  # too long to keep
    assert cave.queries[-1].bytes_in > 100_000


# ---------------------------------------------------------------------------------- archive


def read_archived(server, stem, version=661):
    header = requests.get(f"{server.archive_url}/v{version}/{stem}_header.csv", timeout=5)
    data = requests.get(f"{server.archive_url}/v{version}/{stem}.csv.gz", timeout=5)
    columns = [line.split(",") for line in header.text.splitlines()]
    body = gzip.decompress(data.content)
    return dict(columns), pd.read_csv(io.BytesIO(body), header=None, names=[c for c, _ in columns])


def test_archived_files_hold_the_tables(cave):
    types, frame = read_archived(cave, f"{STATUS}_merged")
    assert types == {
        "id": "bigint", "pt_supervoxel_id": "bigint", "pt_root_id": "bigint", "valid_id": "bigint",
        "status_axon": "boolean", "created": "timestamp without time zone",
    }  # fmt: skip
    assert frame["status_axon"].tolist() == ["t", "f"]
    assert frame["pt_root_id"].tolist() == [ROOT, ROOT + 1]
    assert frame["created"][0] == "2024-01-02 03:04:05.678000"
    types, frame = read_archived(cave, "synapses_pni_2_v1_filtered_view", version=1718)
    assert types["size"] == "double precision"
    assert types["ctr_pt_position_z"] == "integer"
    assert frame["id"].tolist() == ROWS["id"].tolist()
    points = np.stack(ROWS["ctr_pt_position"])
    assert np.array_equal(frame[[f"ctr_pt_position_{a}" for a in "xyz"]].to_numpy(), points)
    _, frame = read_archived(cave, f"{NUCLEI}_merged")
    assert frame["volume"][0] == 1.1  # the double, where the service sends a float32
    types, _ = read_archived(cave, f"{TYPES}_merged")
    assert "pt_root_id" not in types


def test_archive_may_hold_other_tables_than_the_service():
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
    assert whole.headers["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
    assert "Content-Encoding" not in whole.headers
    assert requests.head(url, timeout=5).headers["Content-Length"] == str(len(content))
    rest = requests.get(url, headers={"Range": "bytes=10-"}, timeout=5)
    assert (rest.status_code, rest.content) == (206, content[10:])
    span = f"bytes 10-{len(content) - 1}/{len(content)}"
    assert rest.headers["Content-Range"] == span
    past = requests.get(url, headers={"Range": f"bytes={len(content)}-"}, timeout=5)
    assert past.status_code == 416
    changed = requests.get(url, headers={"Range": "bytes=10-", "If-Range": '"old"'}, timeout=5)
    assert (changed.status_code, changed.content) == (200, content)
    cave.faults.add("half_body", match=r"csv\.gz$")
    with requests.get(url, stream=True, timeout=5) as answer:
        assert answer.headers["Content-Length"] == str(len(content))
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(answer.iter_content(16))
