"""Every fault of the server, on every file of an archive: the same result, or the right error."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from cave_server import KINDS, CaveServer
from cave_server.faults import QUERY_KINDS
from cave_server.sample import ROOT, STATUS, make_tables

import microns_xr as mx
from microns_xr.files import file_sha256
from microns_xr.sources.cache import CachedSource

HEADER_FILE = rf"/v661/{STATUS}_merged_header\.csv$"
DATA_FILE = rf"/v661/{STATUS}_merged\.csv\.gz$"
SYNAPSE_HEADER = r"/v661/synapses_pni_2_v1_filtered_view_header\.csv$"
SYNAPSE_FILE = r"/v661/synapses_pni_2_v1_filtered_view\.csv\.gz$"
TARGETS = {
    "header": HEADER_FILE,
    "data": DATA_FILE,
    "synapse_header": SYNAPSE_HEADER,
    "synapses": SYNAPSE_FILE,
}

RESULT = {"header": "table", "data": "table", "synapse_header": "synapses", "synapses": "synapses"}

TRANSIENT = {
    "500": ("status", {"status": 500}),
    "502": ("status", {"status": 502, "body": "<html>Bad Gateway</html>"}),
    "503": ("status", {"status": 503, "retry_after": 7}),
    "504": ("status", {"status": 504}),
    "429": ("status", {"status": 429, "retry_after": 3}),
    "408": ("status", {"status": 408}),
    "drop": ("drop", {}),
    "reset": ("drop", {"reset": True}),
    "drop_body": ("drop_body", {}),
    "reset_body": ("drop_body", {"reset": True}),
    "half_body": ("half_body", {}),
    "half_reset": ("half_body", {"reset": True, "fraction": 0.9}),
    "stall": ("half_body", {"stall": 0.5}),
    "truncated": ("truncated", {}),
    "nearly_whole": ("truncated", {"fraction": 0.99}),
    "html": ("html", {}),
    "empty": ("empty", {}),
    "delay": ("delay", {"seconds": 0.5}),
    "short_delay": ("delay", {"seconds": 0.02}),
}
LASTING = {
    400: "HTTP 400",
    401: "pass storage_options",
    403: "access is refused",
    404: "there is no such file",
    410: "it has been removed",
}


def test_every_kind_of_fault_is_in_the_matrix():
    assert {kind for kind, _ in TRANSIENT.values()} == set(KINDS) - set(QUERY_KINDS)


@pytest.fixture(scope="module")
def cave():
    with CaveServer(make_tables()) as running:
        yield running


def get(
    server, folder: Path, what: str, waits: list[float] | None = None, attempts: int = 6
) -> str:
    """Download a table, or some synapses, and return the sha256 of the result."""
    sleep = (lambda seconds: None) if waits is None else waits.append
    source = mx.sources.ArchiveSource(
        661,
        url=server.archive_url,
        folder=folder / "archive",
        retry=mx.sources.Retry(attempts=attempts, sleep=sleep),
        timeout=0.3,  # what a busy machine keeps
        progress=False,
    )
    if what == "synapses":
        folder /= "raw/synapses"
        post = [ROOT + 1, ROOT + 3]
        return file_sha256(source.download_synapses(folder, post=post, progress=False).path)
    cache = CachedSource(source, folder, source.datastack, 661)
    return cache.download([STATUS], progress=False)[STATUS]["sha256"]


@pytest.fixture(scope="module")
def expected(cave, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_faults")
    return {what: get(cave, folder, what) for what in ("table", "synapses")}


def unfinished(folder: Path) -> list[str]:
    """Names of files that are halves, or notes of halves."""
    endings = (".part", ".part.json", ".tmp")
    return [p.name for p in folder.rglob("*") if p.name.endswith(endings)]


@pytest.fixture(autouse=True)
def forget(cave):
    yield
    cave.faults.clear()


# Of a header file: is it there, what is it, its bytes. Of a data file: what is it, its bytes.
REQUESTS = {"header": 3, "data": 2, "synapse_header": 3, "synapses": 2}
CASES = [
    (fault, target, after)
    for fault in TRANSIENT
    for target, n in REQUESTS.items()
    for after in range(n)
    if fault != "stall" or after == n - 1  # only a body can stall
]


@pytest.mark.parametrize(("fault", "target", "after"), CASES)
def test_what_passes_by_itself_changes_nothing(cave, tmp_path, expected, fault, target, after):
    kind, params = TRANSIENT[fault]
    cave.faults.add(kind, match=TARGETS[target], times=2, after=after, **params)
    what = RESULT[target]
    assert get(cave, tmp_path, what) == expected[what]
    assert unfinished(tmp_path) == []
    assert cave.faults.fired


@pytest.mark.parametrize(("fault", "seconds"), [("503", 7), ("429", 3)])
def test_what_the_server_asks_for_is_waited(cave, tmp_path, fault, seconds):
    kind, params = TRANSIENT[fault]
    cave.faults.add(kind, match=DATA_FILE, times=2, **params)
    waits: list[float] = []
    get(cave, tmp_path, "table", waits)
    assert waits == [seconds]


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("target", ["data", "synapses"])
@pytest.mark.parametrize("status", LASTING)
def test_what_lasts_is_an_error_at_once(cave, tmp_path, expected, status, target, after):
    cave.faults.add("status", match=TARGETS[target], times=50, after=after, status=status)
    what = RESULT[target]
    waits: list[float] = []
    asked = len(cave.requests)
    with pytest.raises(mx.errors.SourceError, match=LASTING[status]) as caught:
        get(cave, tmp_path, what, waits)
    assert not isinstance(caught.value, mx.errors.IncompleteDownloadError)
    assert f"HTTP {status}" in str(caught.value)
    assert waits == []
    refused = [r for r in itertools.islice(cave.requests, asked, None) if r.status == status]
    assert len(refused) in (1, 2)  # HEAD, and GET where HEAD is refused
    assert unfinished(tmp_path) == []
    cave.faults.clear()
    assert get(cave, tmp_path, what) == expected[what]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_table_whose_header_is_refused_is_not_there(cave, tmp_path, status):
    cave.faults.add("status", match=HEADER_FILE, times=50, status=status)
    with pytest.raises(
        mx.errors.SourceError, match=f"no table '{STATUS}' in the archive.*source='cave'"
    ):
        get(cave, tmp_path, "table")
    there = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert there == {"release.json", "lock"}


@pytest.mark.parametrize("target", ["data", "synapses"])
@pytest.mark.parametrize("fault", sorted(set(TRANSIENT) - {"delay", "short_delay", "stall"}))
def test_a_fault_that_does_not_end_is_an_error_and_the_rest_comes_later(
    cave, tmp_path, expected, fault, target
):
    kind, params = TRANSIENT[fault]
    cave.faults.add(kind, match=TARGETS[target], times=1000, **params)
    what = RESULT[target]
    waits: list[float] = []
    with pytest.raises(mx.errors.SourceError, match=r"6 attempts|3 times") as caught:
        get(cave, tmp_path, what, waits)
    assert STATUS in str(caught.value) or "synapses_pni_2" in str(caught.value)
    if isinstance(caught.value, mx.errors.IncompleteDownloadError):
        assert len(waits) == 5
        assert waits[-1] > waits[0]  # growing
    # Nothing that could be taken for a result.
    assert list((tmp_path / "raw").rglob("*.parquet")) == []
    cave.faults.clear()
    assert get(cave, tmp_path, what) == expected[what]
    assert unfinished(tmp_path) == []


def test_faults_one_after_the_other(cave, tmp_path, expected):
    order = [kind for kind in TRANSIENT if kind != "stall"]
    for fault in random.Random(1).sample(order, 5):
        kind, params = TRANSIENT[fault]
        cave.faults.add(kind, match=DATA_FILE, times=2, **params)
    assert get(cave, tmp_path, "table", attempts=12) == expected["table"]
    assert cave.faults.pending == 0
    assert unfinished(tmp_path) == []
