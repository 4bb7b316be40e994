"""CaveSource against the loopback service: what it asks, what it returns, what it never shows."""

import copy
import io
import json
import logging
import pickle
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import requests
from cave_server import CaveServer, cave_fixture
from cave_server.sample import N_SYNAPSES, NUCLEI, ROOT, STATUS, SYNAPSES, TYPES, make_tables

import microns_xr as mx
from microns_xr.network import BadAnswer, Refused
from microns_xr.sources.cave import Answer, CheckedSession, Secret, read_answer
from microns_xr.sources.tables import plain_types

TOKEN = "0123456789abcdef0123456789abcdef"
TRUTH = make_tables()
SECRETS = {}  # the files that a test put into its home

cave = cave_fixture(make_tables)
limited = cave_fixture(make_tables, row_limit=40, notices={SYNAPSES: "ask the owner, please"})
guarded = cave_fixture(make_tables, token=TOKEN)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads the user's own, and none writes there."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    SECRETS.clear()
    yield folder
    assert {p: p.read_text() for p in folder.rglob("*") if p.is_file()} == SECRETS


def no_sleep(seconds: float) -> None:
    """Wait not at all."""


def source_of(server, version=1718, **options):
    options = {
        "auth_token": "none",
        "retry": mx.sources.Retry(attempts=4, sleep=no_sleep),
        **options,
    }
    return mx.sources.CaveSource(version, server_address=server.url, **options)


@pytest.fixture
def source(cave):
    with source_of(cave) as source:
        yield source


# ---------------------------------------------------------------------------------- the release


def test_nothing_is_asked_before_it_is_needed(cave):
    with source_of(cave) as source:
        assert isinstance(source, mx.sources.TableSource)
        said = (source.version, source.datastack, source.scope)
        assert said == (1718, "minnie65_public", "requested")
        assert repr(source) == "CaveSource(1718, datastack='minnie65_public')"
        assert not cave.requests


def test_tables_time_and_status(cave, source):
    assert source.available_tables() == sorted([NUCLEI, TYPES, STATUS, SYNAPSES])
    n_requests = len(cave.requests)
    assert n_requests == 4  # version and record of the datastack, version of the service, tables
    source.available_tables().clear()
    assert len(source.available_tables()) == 4
    assert len(cave.requests) == n_requests
    assert source.status() == "served"
    assert source.synapse_table() == SYNAPSES
    assert source.timestamp() == "2025-10-29T08:10:00.215114+00:00"
    source.query(NUCLEI)
    assert "/api/v3/" in cave.queries[-1].path


@pytest.mark.parametrize(
    ("version", "status"), [(661, "expired"), (662, "unknown"), (1718, "served")]
)
def test_status_of_versions(cave, version, status):
    with source_of(cave, version) as source:
        assert source.status() == status


@pytest.mark.parametrize("time", ["2025-10-29T08:10:00", "2025-10-29T08:10:00+00:00"])
def test_a_time_without_a_fraction_of_a_second(cave, source, time):
    source.available_tables()
    body = {"version": 1718, "time_stamp": time, "expires_on": time}
    cave.faults.add("status", match=r"/version/1718$", status=200, body=body)
    assert source.timestamp() == "2025-10-29T08:10:00+00:00"


def test_an_expired_version_says_where_it_is_kept(cave):
    with source_of(cave, 661) as source:
        for ask in (
            source.available_tables,
            lambda: source.query(NUCLEI),
            lambda: source.count(NUCLEI),
        ):
            with pytest.raises(
                mx.errors.SourceError, match=r"410.*has left the service: use source='archive'"
            ):
                ask()


def test_an_unknown_version_table_or_column(cave, source):
    with (
        source_of(cave, 662) as other,
        pytest.raises(mx.errors.SourceError, match=r"v662: HTTP 404.*supported_versions"),
    ):
        other.query(NUCLEI)
    with pytest.raises(
        mx.errors.SourceError,
        match=r"the table nuclei of minnie65_public v1718: HTTP 404.*available_tables",
    ):
        source.query("nuclei")
    with pytest.raises(
        mx.errors.SourceError, match=r"HTTP 400: column pt_root not found.*check the names"
    ):
        source.query(NUCLEI, select_columns=["pt_root"])
    with pytest.raises(mx.errors.SourceError, match="HTTP 404"):
        source.read("nuclei")


@pytest.mark.parametrize("version", [True, 1718.0, "1718", None])
def test_a_version_is_a_number(version):
    with pytest.raises(mx.errors.SchemaError, match="version is"):
        mx.sources.CaveSource(version)


# ------------------------------------------------------------------------------------------ rows


def test_rows_are_exact(source):
    answer = source.query(NUCLEI)
    assert isinstance(answer, Answer)
    assert answer.limited_to is None
    assert answer.resolution_nm == (4.0, 4.0, 40.0)
    kinds = {field.name: str(field.type) for field in answer.table.schema}
    assert kinds == {
        "id": "int64", "pt_supervoxel_id": "int64", "pt_root_id": "int64", "volume": "double",
        "pt_position_x": "int64", "pt_position_y": "int64", "pt_position_z": "int64",
    }  # fmt: skip
    rows = answer.table.sort_by("id").to_pydict()
    assert rows["pt_root_id"] == [ROOT, ROOT + 1, ROOT + 2, 0]
    assert rows["volume"][2] is None
    assert rows["pt_position_z"] == [12, 22, 32, 42]


def test_nullable_ids_truth_and_times(source):
    table = source.query(STATUS).table.sort_by("id")
    assert table["valid_id"].to_pylist() == [ROOT, None]
    assert table["status_axon"].type == pa.bool_()
    assert table["created"].type == pa.timestamp("us", tz="UTC")
    assert table["created"][0].as_py().isoformat() == "2024-01-02T03:04:05.678000+00:00"


def test_a_reference_table_is_not_joined(cave, source):
    table = source.query(TYPES).table
    assert table.column_names == ["id", "target_id", "classification_system", "cell_type"]
    assert sorted(table["target_id"].to_pylist()) == [100, 102, 999]
    assert source.count(TYPES) == source.count(TYPES, {}) == 3
    assert [r.path.rpartition("/table/")[2] for r in cave.queries] == [f"{TYPES}/query"] * 2


def test_filters(cave, source):
    everything = TRUTH[SYNAPSES]
    for pre in (np.array([ROOT, ROOT + 3]), [ROOT, ROOT + 3], {ROOT: 1, ROOT + 3: 2}.keys()):
        answer = source.query(
            SYNAPSES, filter_in={"pre_pt_root_id": pre}, select_columns=["id", "size"]
        )
        expected = everything[everything.pre_pt_root_id.isin([ROOT, ROOT + 3])]
        assert sorted(answer.table["id"].to_pylist()) == expected.id.tolist()
        assert answer.table.column_names == ["id", "size"]
        assert cave.queries[-1].body["filter_in_dict"] == {
            SYNAPSES: {"pre_pt_root_id": [ROOT, ROOT + 3]}
        }
    low, high = everything.id[50], everything.id[70]
    inside = source.query(SYNAPSES, filter_range={"id": (int(low), int(high))})
    assert sorted(inside.table["id"].to_pylist()) == everything.id[50:70].tolist()
    below = source.query(
        SYNAPSES, filter_range={"id": (None, int(low))}, filter_in={"post_pt_root_id": [ROOT]}
    )
    assert set(below.table["id"].to_pylist()) == set(
        everything.id[:50][everything.post_pt_root_id[:50] == ROOT]
    )
    words = source.query(TYPES, filter_in={"cell_type": ["23P"]})
    assert words.table["target_id"].to_pylist() == [102]


def test_positions_are_chosen_by_their_base_name(source):
    table = source.query(SYNAPSES, select_columns=["id", "ctr_pt_position"]).table
    places = [f"ctr_pt_position_{axis}" for axis in "xyz"]
    assert table.column_names == ["id", *places]
    first = table.sort_by("id").slice(0, 1).to_pylist()[0]
    assert [first[place] for place in places] == list(TRUTH[SYNAPSES].ctr_pt_position[0])


@pytest.mark.parametrize("ids", [[float(ROOT)], np.array([ROOT], float), [ROOT, np.float64(ROOT)]])
def test_ids_as_floats_are_refused_before_they_are_sent(cave, source, ids):
    source.available_tables()
    n_requests = len(cave.requests)
    for ask in (source.query, source.count):
        with pytest.raises(mx.errors.SchemaError, match="pt_root_id holds floats"):
            ask(NUCLEI, filter_in={"pt_root_id": ids})
    assert len(cave.requests) == n_requests


def test_counts(source):
    assert source.count(SYNAPSES) == source.count(SYNAPSES, {}) == N_SYNAPSES
    pre = TRUTH[SYNAPSES].pre_pt_root_id
    assert source.count(SYNAPSES, {"pre_pt_root_id": [ROOT + 1]}) == (pre == ROOT + 1).sum()
    assert source.count(SYNAPSES, {"pre_pt_root_id": [1]}) == 0


def test_the_row_limit_is_noticed_and_learned(limited):
    with source_of(limited) as source:
        assert source.row_limit is None
        cut = source.query(SYNAPSES)
        assert (cut.limited_to, cut.table.num_rows, source.row_limit) == (40, 40, 40)
        assert source.count(SYNAPSES, {}) == N_SYNAPSES  # the limit does not cut a count
        whole = source.query(SYNAPSES, filter_range={"id": (None, 2**53 + 1 + 39)})
        assert (whole.limited_to, whole.table.num_rows) == (None, 39)  # a notice is not a limit


def test_read_gives_a_typed_frame(source):
    frame = source.read(NUCLEI)
    assert frame.id.tolist() == [100, 101, 102, 103]
    assert str(frame.pt_root_id.dtype) == "int64"
    assert source.provenance(NUCLEI)["rows"] == 4
    status = source.read(STATUS)
    assert str(status.valid_id.dtype) == "Int64"
    assert status.status_axon.dtype == bool
    types = source.provenance(TYPES)
    assert (types["name"], types["rows"], len(types["sha256"])) == (TYPES, 3, 64)
    assert source.provenance(TYPES) == types
    assert source.read(TYPES).cell_type.tolist() == ["23P", None, "oligo"]
    assert source.read(TYPES).cell_type.dtype == object


def test_many_threads_share_a_source(cave):
    with source_of(cave, connections=8) as source, ThreadPoolExecutor(8) as pool:
        wanted = [ROOT + i % 5 for i in range(40)]
        answers = pool.map(
            lambda r: source.query(SYNAPSES, filter_in={"pre_pt_root_id": [r]}), wanted
        )
        for root, answer in zip(wanted, answers, strict=True):
            assert set(answer.table["pre_pt_root_id"].to_pylist()) == {root}
    assert sum(r.path == "/info/version" for r in cave.requests) == 1


# ------------------------------------------------------------------------------------- the wire


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_a_stream_that_breaks_off_between_two_messages_is_noticed():
    table = pa.table({"id": [1, 2, 3, 4]})
    whole = stream(table)
    headers = {"Content-Type": "data.arrow"}
    assert read_answer(whole, headers).table.equals(table)
    lengths = set()
    for cut in range(len(whole)):
        try:
            with pa.ipc.open_stream(whole[:cut]) as reader:
                lengths.add(reader.read_all().num_rows)
        except (pa.ArrowInvalid, OSError):
            pass
        with pytest.raises(BadAnswer, match="breaks off"):
            read_answer(whole[:cut], headers)
    assert lengths == {0, 2, 4}  # Arrow itself takes these for whole


PLAIN = {
    "int64": (pa.array([1, None], pa.int16()), pa.array([2**63 - 1, 0], pa.uint64())),
    "double": (pa.array([0.5, None], pa.float32()),),
    "string": (pa.array(["x", None]).dictionary_encode(), pa.array(["x"], pa.large_string())),
    "timestamp[us, tz=UTC]": (pa.array([1, None], pa.timestamp("ns", "UTC")),),
    "list<item: int64>": (pa.array([[1], None]),),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_types(kind):
    for column in PLAIN[kind]:
        assert str(plain_types(pa.table({"x": column})).schema.field("x").type) == kind
    with pytest.raises(mx.errors.SourceError, match="'x' holds integers beyond int64"):
        plain_types(pa.table({"x": pa.array([2**63], pa.uint64())}))


@pytest.mark.parametrize("body", [{"message": 3}, {}, [[1]]])
def test_lists_and_numbers_of_another_kind_are_asked_for_again(cave, source, body):
    source.synapse_table()
    body = json.dumps(body)
    cave.faults.add("status", match="/tables$", status=200, body=body if body[0] == "{" else "5")
    assert len(source.available_tables()) == 4
    cave.faults.add("status", match="/count$", status=200, body=body)
    assert source.count(NUCLEI) == 4
    assert cave.faults.pending == 0


SHAPES = [
    "null", "5", "-1.5", "true", '"text"', '""', "[]", "{}", "[null]", '["x", 5]', "[[1]]", "[[", '{"time_stamp": 5}',
    '{"time_stamp": "soon"}', '{"time_stamp": "NaT"}', '{"local_server": 5}', '{"message": [1]}', "[" * 99_999,
]  # fmt: skip
ASKED = {
    "/info/api": lambda source: source.synapse_table(),
    "/materialize/version$": lambda source: source.count(NUCLEI),
    "/versions$": lambda source: source.versions(),
    r"/version/\d+$": lambda source: source.timestamp(),
    "/tables$": lambda source: source.available_tables(),
    "/count$": lambda source: source.count(NUCLEI),
    "/query$": lambda source: len(source.read(NUCLEI)),
}


@pytest.mark.parametrize("path", ASKED)
def test_json_of_another_form_is_an_error_of_the_package(cave, path):
    with source_of(cave) as source:
        truth = ASKED[path](source)
    for shape in SHAPES:
        for status in (200, 404):
            with source_of(cave, retry=mx.sources.Retry(attempts=2, sleep=no_sleep)) as source:
                cave.faults.add("status", match=path, status=status, body=shape, times=9)
                try:
                    found = ASKED[path](source)
                except mx.errors.SourceError:
                    found = None  # and the next answer is taken as if nothing had been
                    cave.faults.clear()
                    assert ASKED[path](source) == truth
                assert found is None or type(found) is type(truth)
                cave.faults.clear()


def test_one_404_does_not_break_the_source_for_good(cave, source):
    cave.faults.add("status", match="/materialize/version$", status=404)
    assert len(source.read(NUCLEI)) == 4


@pytest.mark.parametrize(
    "ids", [["1", "2"], [1.0, 2.0], [1, None], [[1], [2]]], ids=["text", "floats", "null", "lists"]
)
def test_ids_that_are_none_are_refused(cave, source, monkeypatch, ids):
    table = plain_types(pa.table({"id": ids, "size": [1, 2]}))
    monkeypatch.setattr(source, "count", lambda *_, **__: 2)
    monkeypatch.setattr(source, "query", lambda *_, **__: Answer(table))
    with pytest.raises(mx.errors.IncompleteDownloadError, match=r"the ids are .*expected integers"):
        source.read(NUCLEI)


def test_columns_of_one_name_are_refused():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    with pytest.raises(BadAnswer, match="columns of the same name"):
        read_answer(stream(table), {"Content-Type": "data.arrow"})


def test_the_token_is_not_sent_without_encryption(cave, source, monkeypatch):
    record = {"local_server": "http://127.0.0.1:9", "aligned_volume": {"name": "m", "id": 1}}
    monkeypatch.setattr(
        "caveclient.infoservice.InfoServiceClient.get_datastack_info",
        lambda *_, **__: record,
    )
    address = source._log_in()
    monkeypatch.setattr(source, "_log_in", lambda: ("https://127.0.0.1:9", address[1]))
    monkeypatch.setattr("caveclient.base.ClientBase._get_version", lambda _: None)
    with pytest.raises(mx.errors.SourceError, match="without encryption; check server_address"):
        source.count(NUCLEI)
    for before, after in (
        ("https://a.org/x", "http://a.org/x"),
        ("https://a.org", "https://b.org"),
    ):
        answer = requests.Response()
        answer.raw = io.BytesIO()
        answer.status_code, answer.url, answer.headers["Location"] = 302, before, after
        with pytest.raises(Refused, match="not followed"):
            CheckedSession((1, 1)).get_redirect_target(answer)


# --------------------------------------------------------------------------- faults and refusals


def test_a_wrong_address_is_given_up_soon():
    waits = []

    def tables_at(address):
        options = {"auth_token": "none", "retry": mx.sources.Retry(sleep=waits.append)}
        return mx.sources.CaveSource(1718, server_address=address, **options).available_tables()

    message = r"connection to the service.* cannot be reached"
    with pytest.raises(mx.errors.IncompleteDownloadError, match=message):
        tables_at("http://127.0.0.1:9")
    assert len(waits) == 1
    with pytest.raises(mx.errors.SourceError, match="MissingSchema"):
        tables_at("127.0.0.1")


def test_a_slash_at_the_end_of_the_address(cave):
    with mx.sources.CaveSource(1718, server_address=f"{cave.url}/", auth_token="none") as source:
        assert len(source.available_tables()) == 4


@pytest.mark.parametrize("record", [{"local_server": "http://127.0.0.1"}, {"x": 1}, [], None])
def test_a_record_that_is_not_whole_is_asked_for_again(cave, source, record):
    if record and "x" in record:  # what caveclient needs, and no server
        record = {"aligned_volume": {"name": "minnie65_phase3", "id": 1}, "local_server": None}
    cave.faults.add("status", match="/info/api", status=200, body=json.dumps(record))
    assert source.count(NUCLEI) == 4
    cave.faults.add("status", match="/info/api", status=200, body=json.dumps(record), times=99)
    with (
        source_of(cave) as other,
        pytest.raises(mx.errors.IncompleteDownloadError, match="of another form"),
    ):
        other.count(NUCLEI)


def test_closed_connections_open_again(cave, source):
    assert source.count(NUCLEI) == 4
    source.close()
    source.close()
    assert source.count(NUCLEI) == 4


# ------------------------------------------------------------------------------------- the token


def test_a_token_is_asked_for_and_explained(guarded):
    with source_of(guarded, auth_token=TOKEN) as source:
        assert source.count(NUCLEI) == 4
    n_requests = len(guarded.requests)
    with (
        source_of(guarded, auth_token="wrong") as source,
        pytest.raises(
            mx.errors.SourceError, match=r"HTTP 401.*create_token.*auth_token=.*save_token"
        ),
    ):
        source.count(NUCLEI)
    assert len(guarded.requests) == n_requests + 2


@pytest.mark.parametrize("redirect", [False, True])
def test_no_token_at_all(redirect):
    with (
        CaveServer(make_tables(), token=TOKEN, redirect_to_login=redirect) as server,
        source_of(server, auth_token=None) as source,
    ):
        with pytest.raises(mx.errors.SourceError, match=r"HTTP 401.*get a token at"):
            source.count(NUCLEI)
        assert len(server.requests) == 2


def test_the_token_does_not_follow_a_redirect_to_another_host():
    with (
        CaveServer(make_tables()) as stranger,
        CaveServer(make_tables(), token=TOKEN, redirect_to=stranger.url) as server,
        source_of(server, auth_token=TOKEN) as source,
    ):
        with pytest.raises(mx.errors.SourceError, match=rf"redirects to {stranger.url}.*not fol"):
            source.count(NUCLEI)
        assert server.requests
        assert not stranger.requests


def write_secrets(home, **files) -> None:
    folder = home / ".cloudvolume" / "secrets"
    folder.mkdir(parents=True)
    for name, content in files.items():
        SECRETS[folder / f"{name}.json"] = content
        (folder / f"{name}.json").write_text(content)


def test_token_and_address_come_from_where_caveclient_keeps_them(guarded, home):
    secrets = {"cave-secret": {"token": TOKEN}}
    secrets["cave_datastack_to_server_map"] = {"minnie65_public": guarded.url}
    write_secrets(home, **{name: json.dumps(content) for name, content in secrets.items()})
    with mx.sources.CaveSource(1718) as source:
        assert source.count(NUCLEI) == 4
        assert TOKEN not in source._secret.clean(f"echo {TOKEN}")


def test_a_broken_file_of_the_token(cave, home):
    write_secrets(home, **{"cave-secret": f'{{"token": "{TOKEN}"'})
    with (
        source_of(cave, auth_token=None) as source,
        pytest.raises(
            mx.errors.SourceError, match=r"token file cannot be read \(JSONDecodeError\)"
        ) as caught,
    ):
        source.count(NUCLEI)
    assert caught.value.__context__ is None
    assert TOKEN not in shown(caught.value)


@pytest.mark.parametrize("content", [
    f'["{TOKEN}"]', f'"{TOKEN}"', "null", f'{{"token": {{"a": "{TOKEN}"}}}}', '{"token": 5}', '{"token": "a b"}',
    "[" * 99_999,
])  # fmt: skip
def test_a_file_of_the_token_of_another_form(cave, home, content):
    write_secrets(home, **{"cave-secret": content})
    with (
        source_of(cave, auth_token=None) as source,
        pytest.raises(mx.errors.SourceError, match="token file cannot be read") as caught,
    ):
        source.count(NUCLEI)
    assert TOKEN not in shown(caught.value)


@pytest.mark.parametrize("token", ["", "  ", "two words", "line\nbreak", "naïve"])
def test_what_is_no_token_is_refused_and_not_repeated(token):
    with pytest.raises(
        mx.errors.SchemaError, match="auth_token is no text, empty, or contains spaces"
    ) as caught:
        mx.sources.CaveSource(1718, auth_token=token)
    assert not token.strip() or token not in str(caught.value)
    assert Secret(f" {TOKEN}\n").value == TOKEN


def shown(error: BaseException) -> str:
    """What a debugger's traceback shows, variables of every frame but the test's own included."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    for frame in trace.stack:
        if frame.filename == __file__:
            frame.locals = None
    return "".join(trace.format()) + str(vars(error))


FAILURES = {
    "status_echo": ("status", {"status": 500, "body": f"the token {TOKEN} broke me"}),
    "status_401": ("status", {"status": 401, "body": {"message": f"bad token {TOKEN}"}}),
    "html_403": ("status", {"status": 403, "body": f"<html>Bearer {TOKEN}</html>"}),
    "drop": ("drop", {}),
    "html": ("html", {}),
    "truncated": ("truncated", {}),
    "half_body": ("half_body", {}),
}


@pytest.mark.parametrize(
    "path", ["/info/version$", "/info/api", "/materialize/version$", "/query$"]
)
@pytest.mark.parametrize("name", FAILURES)
def test_the_token_is_shown_nowhere(guarded, home, tmp_path, caplog, name, path):
    caplog.set_level(logging.DEBUG)
    kind, params = FAILURES[name]
    with source_of(guarded, auth_token=TOKEN) as source:
        guarded.faults.add(kind, match=path, times=99, **params)
        with pytest.raises(mx.errors.SourceError) as caught:
            source.query(NUCLEI)
        guarded.faults.clear()
        assert source.query(NUCLEI).table.num_rows == 4
        assert TOKEN not in shown(caught.value)
        assert caught.value.__context__ is None
        assert TOKEN not in caplog.text
        assert all(TOKEN not in str(vars(record)) for record in caplog.records)
        assert TOKEN not in repr(source) + str(source) + str(vars(source)) + repr(
            source.__getstate__()
        )
        assert TOKEN.encode() not in pickle.dumps(source)
    assert all(TOKEN.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_copies_and_pickles(guarded):
    with source_of(guarded, auth_token=TOKEN) as source:
        assert source.count(NUCLEI) == 4
        with copy.copy(source) as same, copy.deepcopy(source) as deep:
            assert same.count(NUCLEI) == deep.count(NUCLEI) == 4
        with pickle.loads(
            pickle.dumps(source_of(guarded, auth_token=TOKEN, retry=mx.sources.Retry()))
        ) as thawed:
            assert (thawed.version, thawed.server_address) == (1718, guarded.url)
            with pytest.raises(mx.errors.SourceError, match="401"):
                thawed.count(NUCLEI)
