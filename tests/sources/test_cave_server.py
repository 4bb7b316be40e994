"""The loopback CAVE service under the real caveclient: what it answers, and when it cuts."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import requests
from cave_server import CaveServer, cave_fixture, open_client
from cave_server.queries import simple_query
from cave_server.sample import N_SYNAPSES, NUCLEI, ROOT, STATUS, SYNAPSES, TYPES, make_tables
from cave_server.tables import WireTable

# caveclient joins position columns by DataFrame.drop(inplace=True), which pandas 3.1 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The inplace keyword in DataFrame.drop is deprecated:DeprecationWarning:caveclient"
)
cave = cave_fixture(make_tables)
limited = cave_fixture(make_tables, row_limit=40)


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


# ------------------------------------------------------------------------------ what it answers


def test_versions_tables_and_counts(cave):
    with open_client(cave) as client:
        assert client.materialize.get_versions() == [1718]
        assert client.materialize.get_versions(expired=True) == [1718, 661]
        assert client.materialize.version == 1718
        assert client.materialize.get_tables() == [NUCLEI, TYPES, STATUS, SYNAPSES]
        assert client.materialize.get_annotation_count(SYNAPSES) == N_SYNAPSES
        assert client.materialize.get_views() == {}
        record = client.materialize.get_version_metadata(661)
        assert (record["valid"], record["version"]) == (False, 661)
        assert client.materialize.get_timestamp(661).isoformat().endswith("08:10:00.215114+00:00")
        assert client.materialize.get_table_metadata(TYPES)["reference_table"] == NUCLEI
        assert client.materialize.get_table_metadata(NUCLEI)["voxel_resolution"] == [4, 4, 40]
        assert client.info.local_server() == cave.url
        assert client.materialize.synapse_table == SYNAPSES


def test_plain_query_keeps_ids_and_types(client):
    frame = client.materialize.query_table(NUCLEI)
    truth = make_tables()[NUCLEI]
    assert frame["pt_root_id"].tolist() == [ROOT, ROOT + 1, ROOT + 2, 0]
    assert frame["pt_supervoxel_id"].eq(0).tolist() == [False, False, False, True]
    kinds = {"id": "Int64", "pt_root_id": "Int64", "volume": "Float32"}
    assert {c: str(frame[c].dtype) for c in kinds} == kinds
    assert np.array_equal(
        np.stack(frame["pt_position"]), [[10, 11, 12], [20, 21, 22], [30, 31, 32], [40, 41, 42]]
    )
    split = client.materialize.query_table(NUCLEI, split_positions=True)
    assert str(split["pt_position_x"].dtype) == "Int32"
    assert split["volume"].isna().tolist() == truth["volume"].isna().tolist()
    assert split["volume"][0] == np.float32(1.1)  # not the double that is stored
    assert frame.attrs["dataframe_resolution"] == [4.0, 4.0, 40.0]


def test_nullable_columns_stay_what_they_are(client):
    frame = client.materialize.query_table(STATUS)
    assert str(frame["valid_id"].dtype) == "Int64"
    assert frame["valid_id"][0] == ROOT
    assert frame["valid_id"].isna().tolist() == [False, True]
    assert str(frame["status_axon"].dtype) == "boolean"
    assert frame["created"][0] == pd.Timestamp("2024-01-02 03:04:05.678", tz="UTC")
    assert frame["id"].tolist() == [1, 2]  # made up, as every table has one


def test_reference_table_is_joined_with_its_target(cave, client):
    frame = by_id(client.materialize.query_table(TYPES))
    assert frame["id"].tolist() == [7, 8]  # 9 refers to a nucleus that does not exist
    assert frame["id_ref"].tolist() == frame["target_id"].tolist() == [102, 100]
    assert frame["pt_root_id"].tolist() == [ROOT + 2, ROOT]
    assert frame["cell_type"].isna().tolist() == [False, True]
    assert cave.queries[-1].path.endswith("/version/1718/query")
    assert client.materialize.get_annotation_count(TYPES) == 3  # the count knows of no join
    alone = client.materialize.query_table(TYPES, merge_reference=False)
    assert list(alone.columns) == ["id", "target_id", "classification_system", "cell_type"]
    assert cave.queries[-1].path.endswith(f"/table/{TYPES}/query")


def test_columns_of_a_join_are_chosen_by_table(client):
    query = client.materialize.query_table
    chosen = {TYPES: ["id", "cell_type"], NUCLEI: ["id", "pt_root_id"]}
    frame = query(TYPES, select_columns=chosen)
    assert set(frame.columns) == {"id", "cell_type", "id_ref", "pt_supervoxel_id", "pt_root_id"}
    # A bare list takes each column from whichever table the service looks at first.
    ids = {tuple(sorted(query(TYPES, select_columns=["id"])["id"])) for _ in range(30)}
    assert ids == {(7, 8), (100, 102)}


def test_the_table_interface_swaps_the_suffixes(cave, client):
    frame = client.materialize.tables[TYPES]().query()
    assert sorted(frame["id"]) == [100, 102]
    assert sorted(frame["id_ref"]) == [7, 8]
    assert sorted(frame["target_id"]) == [100, 102]
    # Its caches know tables by name only, so they must not outlive this test.
    from caveclient.materializationengine import MaterializationClient
    from caveclient.tools import table_manager

    MaterializationClient.get_tables_metadata.__wrapped__.cache.clear()
    for cache in ("_table_cache", "_schema_cache", "_metadata_cache"):
        getattr(table_manager, cache).clear()


def test_columns_are_selected_by_base_name(client):
    query = client.materialize.query_table
    frame = query(
        SYNAPSES, select_columns=["pre_pt_root_id", "ctr_pt_position"], split_positions=True
    )
    positions = [f"ctr_pt_position_{a}" for a in "xyz"]
    assert list(frame.columns) == ["pre_pt_supervoxel_id", "pre_pt_root_id", *positions]
    with pytest.raises(requests.HTTPError, match="400"):
        query(SYNAPSES, select_columns=["ctr_pt_position_x"])


def test_positions_in_nm(client):
    frame = client.materialize.query_table(NUCLEI, desired_resolution=[1, 1, 1])
    assert frame["pt_position"][0].tolist() == [40.0, 44.0, 480.0]
    assert frame.attrs["dataframe_resolution"] == [1.0, 1.0, 1.0]


ROWS = by_id(make_tables()[SYNAPSES])
POINTS = np.stack(ROWS["ctr_pt_position"])
FILTERS = {
    "in": ({"filter_in_dict": {"post_pt_root_id": [ROOT, ROOT + 3]}}, ROWS.post_pt_root_id.isin([ROOT, ROOT + 3])),
    "in_nothing": ({"filter_in_dict": {"post_pt_root_id": []}}, ROWS["size"] < 0),
    "equal": ({"filter_equal_dict": {"pre_pt_root_id": ROOT + 1}}, ROWS.pre_pt_root_id == ROOT + 1),
    "greater": ({"filter_greater_dict": {"size": 5000}}, ROWS["size"] > 5000),
    "less": ({"filter_less_dict": {"size": 5000}}, ROWS["size"] < 5000),
    "greater_equal": ({"filter_greater_equal_dict": {"id": 2**53 + 100}}, ROWS.id >= 2**53 + 100),
    "less_equal": ({"filter_less_equal_dict": {"id": 2**53 + 100}}, ROWS.id <= 2**53 + 100),
    "box": ({"filter_spatial_dict": {"ctr_pt_position": [[0, 0, 0], [500, 999, 999]]}}, POINTS[:, 0] <= 500),
    "out": ({"filter_out_dict": {"pre_pt_root_id": [ROOT]}}, ROWS.id > 0),  # accepted, ignored
    "two": ({"filter_in_dict": {"pre_pt_root_id": [ROOT]}, "filter_equal_dict": {"post_pt_root_id": ROOT}},
            (ROWS.pre_pt_root_id == ROOT) & (ROWS.post_pt_root_id == ROOT)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
def test_filters(client, name):
    options, keep = FILTERS[name]
    expected = ROWS[np.asarray(keep)]
    frame = by_id(client.materialize.query_table(SYNAPSES, **options))
    assert frame["id"].tolist() == expected["id"].tolist()
    assert frame["size"].astype(int).tolist() == expected["size"].tolist()
    count = client.materialize.query_table(SYNAPSES, get_counts=True, metadata=False, **options)
    assert count["count"].tolist() == [len(expected)]


def test_filter_by_regex_and_by_validity():
    frame = pd.DataFrame({"word": ["L2/3", "L4", None, "L5"], "valid": [True, True, True, False]})
    table = WireTable("words", frame)
    rng = np.random.default_rng(0)
    found = simple_query(
        table, {"filter_regex_dict": {"words": {"word": "^L[45]$"}}}, row_limit=9, rng=rng
    )
    assert found.frame["word"].tolist() == ["L4"]
    assert len(simple_query(table, {}, row_limit=9, rng=rng).frame) == 3


def test_synapse_query_drops_autapses_by_default(client):
    frame = client.materialize.synapse_query(pre_ids=[ROOT, ROOT + 1], post_ids=ROOT)
    expected = ROWS[ROWS.pre_pt_root_id.isin([ROOT + 1]) & (ROWS.post_pt_root_id == ROOT)]
    assert sorted(frame["id"]) == expected["id"].tolist()
    other = client.materialize.synapse_query(pre_ids=ROOT + 999)  # an id of another version
    assert len(other) == 0


def test_answer_as_json(client):
    rows = client.materialize.query_table(
        SYNAPSES, return_df=False, filter_equal_dict={"id": 2**53 + 1}
    )
    assert [r["id"] for r in rows] == [2**53 + 1]


def test_a_response_hook_sees_the_raw_arrow(client):
    seen = []
    client.materialize.session.hooks["response"].append(lambda r, *a, **k: seen.append(r))
    client.materialize.query_table(
        STATUS, split_positions=True, metadata=False, merge_reference=False
    )
    with pa.ipc.open_stream(seen[-1].content) as reader:
        table = reader.read_all()
    assert table.schema.field("valid_id").type == pa.int64()
    assert table["valid_id"].to_pylist() == [ROOT, None]


def test_several_threads_share_a_client(cave):
    with open_client(cave, version=1718, pool_maxsize=8) as client:

        def ask(root):
            wanted = {"post_pt_root_id": [root]}
            return root, client.materialize.query_table(SYNAPSES, filter_in_dict=wanted)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [ROOT + i % 5 for i in range(24)]))
    for root, frame in answers:
        assert sorted(frame["id"]) == ROWS.id[ROWS.post_pt_root_id == root].tolist()


# ------------------------------------------------------------------------------- the row limit


def test_row_limit_cuts_in_no_order_and_only_warns(limited, caplog):
    with open_client(limited, version=1718) as client:
        seen = []
        client.materialize.session.hooks["response"].append(lambda r, *a, **k: seen.append(r))
        with caplog.at_level(logging.WARNING):
            frames = [client.materialize.query_table(SYNAPSES) for _ in range(2)]
        assert [len(f) for f in frames] == [40, 40]
        assert frames[0]["id"].is_unique
        assert set(frames[0]["id"]) != set(frames[1]["id"])
        headers = [r.headers.get("Warning") for r in seen if r.url.split("?")[0].endswith("/query")]
        assert headers == ['201 - "Limited query to 40 rows'] * 2
        assert "Limited query to 40 rows" in caplog.text
        assert "Warning" not in frames[0].attrs
        assert [r.rows for r in limited.queries] == [40, 40]


def test_the_same_warning_for_the_callers_limit_and_for_just_enough_rows(cave):
    with open_client(cave, version=1718) as client:
        seen = []
        client.materialize.session.hooks["response"].append(lambda r, *a, **k: seen.append(r))

        def warning_of(**options):
            client.materialize.query_table(NUCLEI, metadata=False, merge_reference=False, **options)
            return seen[-1].headers.get("Warning")

        assert warning_of(limit=3) == '201 - "Limited query to 3 rows'
        assert warning_of(limit=4) == '201 - "Limited query to 4 rows'  # nothing was cut
        assert warning_of(limit=5) is None
        assert warning_of() is None


def test_a_notice_travels_in_the_same_header():
    with (
        CaveServer(make_tables(), notices={NUCLEI: "use v1"}, row_limit=4) as server,
        open_client(server, version=1718) as client,
    ):
        seen = []
        client.materialize.session.hooks["response"].append(lambda r, *a, **k: seen.append(r))
        client.materialize.query_table(NUCLEI, metadata=False, merge_reference=False)
        limit = '201 - "Limited query to 4 rows'
        assert seen[-1].headers["Warning"] == f"{limit}, Table Owner Notice on {NUCLEI}: use v1"


def test_pages_by_offset_lose_rows(cave):
    with open_client(cave, version=1718) as client:
        pages = [
            client.materialize.query_table(SYNAPSES, limit=100, offset=o)["id"]
            for o in (0, 100, 200)
        ]
    together = pd.concat(pages)
    assert len(together) == N_SYNAPSES
    assert together.nunique() < N_SYNAPSES
