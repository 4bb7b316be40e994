"""Fetching one file: begun again where it stopped, checked before it counts, nothing glued."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import google_crc32c
import numpy as np
import pytest
from file_server import FileServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import microns_xr as mx
from microns_xr.sources import fetch as fetch_module
from microns_xr.sources.fetch import exists, fetch_file, find_file, list_names

NAME = "nuclei_merged.csv.gz"
# Random bytes do not pack: a body of 4 MB.
BODY = gzip.compress(np.random.default_rng(0).bytes(4 << 20), compresslevel=1, mtime=0)
OTHER = gzip.compress(np.random.default_rng(1).bytes(4 << 20), compresslevel=1, mtime=0)
SMALL = gzip.compress(b"1,2\n3,4\n", mtime=0)


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


def retry(attempts: int = 6) -> tuple[mx.sources.Retry, list[float]]:
    waits: list[float] = []
    return mx.sources.Retry(attempts=attempts, sleep=waits.append), waits


def fetch(url, path, **options):
    options.setdefault("retry", retry()[0])
    return fetch_file(url, path, progress=False, **options)


def leave_part(folder: Path, url: str, content: bytes, **note) -> None:
    (folder / f"{NAME}.part").write_bytes(content)
    (folder / f"{NAME}.part.json").write_text(json.dumps({"url": url, **note}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def google_hashes(content: bytes, *which: str) -> dict[str, str]:
    sums = {
        "md5": hashlib.md5(content).digest(),
        "crc32c": google_crc32c.Checksum(content).digest(),
    }
    return {"x-goog-hash": ",".join(f"{n}={base64.b64encode(sums[n]).decode()}" for n in which)}


# ------------------------------------------------------------------------------- a whole file


def test_a_file_is_there_once_it_is_whole(server, tmp_path):
    url = server.put(f"/v661/{NAME}", BODY, headers=google_hashes(BODY, "crc32c", "md5"))
    path = tmp_path / "archive" / NAME
    found = fetch(url, path)
    assert path.read_bytes() == BODY
    assert found.sha256 == hashlib.sha256(BODY).hexdigest()
    assert found.checked == ["length", "md5", "crc32c"]
    assert (found.path, found.url, found.size) == (path, url, len(BODY))
    assert names(path.parent) == [NAME, f"{NAME}.json"]
    asked = len(server.log)
    assert fetch(url, path) == found == find_file(path)
    assert len(server.log) == asked  # what is there is not asked for again


def test_the_bytes_are_on_disk_before_the_file_has_its_name(server, tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / NAME, [], os.fsync

    def record(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    fetch(server.put(f"/v661/{NAME}", BODY), path)
    assert (path.stat().st_ino, False) in synced


def test_a_file_without_its_record_of_another_size_or_address_is_not_there(server, tmp_path):
    url = server.put(f"/v661/{NAME}", SMALL)
    path = tmp_path / NAME
    for _ in range(2):  # without a record, and with one of another size
        path.write_bytes(SMALL[:-3])
        assert find_file(path) is None
        fetch(url, path)
        assert path.read_bytes() == SMALL
    fetch(server.put(f"/v943/{NAME}", BODY), path)
    assert path.read_bytes() == BODY


def test_refresh_fetches_anew_and_keeps_the_old_file_until_then(server, tmp_path):
    url = server.put(f"/{NAME}", BODY)
    path = tmp_path / NAME
    fetch(url, path)
    server.put(f"/{NAME}", OTHER, cuts=[1000])
    with pytest.raises(mx.errors.IncompleteDownloadError):
        fetch(url, path, refresh=True, retry=retry(1)[0])
    assert path.read_bytes() == BODY
    assert fetch(url, path, refresh=True).sha256 == hashlib.sha256(OTHER).hexdigest()
    assert path.read_bytes() == OTHER


def test_a_server_that_says_no_length(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, says_length=False)
    found = fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert found.checked == []


# ------------------------------------------------------------------------------------ resuming


def test_the_rest_of_a_part_is_asked_for(server, tmp_path):
    url = server.put(f"/{NAME}", BODY)
    validator = server.files[f"/{NAME}"].validator
    leave_part(tmp_path, url, BODY[:3_000_000], size=len(BODY), validator=validator)
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    (get,) = (g for g in server.gets if g.path == f"/{NAME}")
    assert (get.range, get.status, get.sent) == ("bytes=3000000-", 206, len(BODY) - 3_000_000)
    assert get.if_range == validator
    assert names(tmp_path) == [NAME, f"{NAME}.json"]


def test_a_whole_part_is_not_asked_for_again(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, headers=google_hashes(BODY, "md5"))
    validator = server.files[f"/{NAME}"].validator
    leave_part(tmp_path, url, BODY, size=len(BODY), validator=validator)
    assert fetch(url, tmp_path / NAME).checked == ["length", "md5"]
    assert (tmp_path / NAME).read_bytes() == BODY
    assert server.gets == []


@pytest.mark.parametrize(
    "habit", ["changed", "no_ranges", "no_validator", "part_too_long", "other_url", "no_note"]
)
def test_a_part_that_does_not_fit_is_never_glued(server, tmp_path, habit):
    habits = {"no_ranges": {"ranges": False}, "no_validator": {"etag": None}}.get(habit, {})
    url = server.put(f"/{NAME}", BODY, **habits)
    validator = server.files[f"/{NAME}"].validator
    part = {"part_too_long": OTHER + OTHER}.get(habit, OTHER[:2_000_000])
    if habit == "no_ranges":
        part = BODY[:2_000_000]
    leave_part(
        tmp_path,
        "http://elsewhere/" if habit == "other_url" else url,
        part,
        size=len(BODY),
        validator='"old"' if habit == "changed" else validator,
    )
    if habit == "no_note":
        (tmp_path / f"{NAME}.part.json").unlink()
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert names(tmp_path) == [NAME, f"{NAME}.json"]
    assert sum(g.path == f"/{NAME}" for g in server.gets) == 1


def test_a_page_instead_of_what_the_file_is_keeps_the_part(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, pages=2)
    leave_part(tmp_path, url, BODY[:3_000_000], validator=server.files[f"/{NAME}"].validator)
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert [g.range for g in server.gets if g.path == f"/{NAME}"] == ["bytes=3000000-"]


def test_an_answer_that_ends_early_without_a_word_is_continued(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, cuts=[1_500_000, 1_000_000], get_says_length=False)
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    asked = [g.range for g in server.gets if g.path == f"/{NAME}"]
    assert asked == [None, "bytes=1500000-", "bytes=2500000-"]


def test_a_file_that_claims_to_be_shorter_is_not_believed(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, shortened=[1_000_000, 2_000_000])
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(server.gets) == 4  # with the one for a checksum beside it


def test_a_file_that_changes_meanwhile_is_fetched_anew(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, cuts=[2_000_000])
    _, waits = retry()

    def change(seconds):
        waits.append(seconds)
        server.put(f"/{NAME}", OTHER)

    fetch(url, tmp_path / NAME, retry=mx.sources.Retry(sleep=change))
    assert (tmp_path / NAME).read_bytes() == OTHER
    assert server.gets[1].range is not None  # the rest of the old one was asked for


def test_a_file_that_keeps_changing_is_an_error(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, cuts=[2_000_000])

    def change(seconds):
        server.put(f"/{NAME}", np.random.default_rng().bytes(3_000_000), cuts=[2_000_000])

    with pytest.raises(
        mx.errors.SourceError, match="has changed since the download began, 3 times"
    ):
        fetch(url, tmp_path / NAME, retry=mx.sources.Retry(sleep=change, attempts=50))
    assert names(tmp_path) == []


def test_a_weak_validator_is_compared_here(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, etag='W/"1"')
    leave_part(tmp_path, url, BODY[:1_000_000], size=len(BODY), validator='W/"1"')
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert [g.status for g in server.gets if g.path == f"/{NAME}"] == [206]


def test_breaking_off_does_not_count_while_bytes_arrive(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, cuts=[1_500_000] * 2)
    once, waits = retry(attempts=1)
    fetch(url, tmp_path / NAME, retry=once)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(waits) == 2
    assert sum(g.sent for g in server.gets if g.path == f"/{NAME}") < len(BODY) + 2 * (1 << 20)


def test_what_arrived_before_giving_up_is_kept(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, cuts=[200_000, 100, 100], seconds_a_block=0.02)
    few, waits = retry(attempts=3)
    with pytest.raises(mx.errors.IncompleteDownloadError, match=r"3 attempts.*run the same again"):
        fetch(url, tmp_path / NAME, retry=few)
    assert waits == sorted(waits)
    assert len(waits) == 2
    assert find_file(tmp_path / NAME) is None
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert kept > 0
    server.files[f"/{NAME}"].seconds_a_block = 0
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert server.gets[3].range == f"bytes={kept}-"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(0, 300_000), max_size=5),
    ranges=st.booleans(),
    part=st.integers(0, 250_000),
    same=st.booleans(),
)
def test_wherever_it_breaks_off_the_file_is_the_same(tmp_path_factory, cuts, ranges, part, same):
    folder = tmp_path_factory.mktemp("cuts")
    content = BODY[:250_000]
    with FileServer() as server:
        url = server.put(f"/{NAME}", content, cuts=list(cuts), ranges=ranges)
        validator = server.files[f"/{NAME}"].validator if same else '"old"'
        leave_part(
            folder, url, (content if same else OTHER)[:part], size=len(content), validator=validator
        )
        fetch(url, folder / NAME, retry=retry(10)[0])
    assert (folder / NAME).read_bytes() == content
    assert names(folder) == [NAME, f"{NAME}.json"]


KILLED = """
import sys
from microns_xr.sources.fetch import fetch_file
fetch_file(sys.argv[1], sys.argv[2], progress=False)
"""


def test_kill_9_at_any_moment_loses_no_more_than_the_last_bytes(server, tmp_path):
    url = server.put(f"/{NAME}", BODY, headers=google_hashes(BODY, "md5"), seconds_a_block=0.01)
    part = tmp_path / f"{NAME}.part"
    for share in (0.2, 0.6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, url, str(tmp_path / NAME)])
        until = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size > share * len(BODY)):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert find_file(tmp_path / NAME) is None
    kept = part.stat().st_size
    server.files[f"/{NAME}"].seconds_a_block = 0
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert server.gets[-1].range == f"bytes={kept}-"
    assert names(tmp_path) == [NAME, f"{NAME}.json"]


@pytest.mark.parametrize("moment", ["before_the_record", "before_the_name"])
@pytest.mark.parametrize("refresh", [False, True])
def test_an_end_while_it_gets_its_name_loses_nothing(
    server, tmp_path, monkeypatch, moment, refresh
):
    path = tmp_path / NAME
    if refresh:
        fetch(server.put(f"/{NAME}", OTHER), path)
    url = server.put(f"/{NAME}", BODY)
    replace = Path.replace
    target = {"before_the_record": f"{NAME}.json", "before_the_name": NAME}[moment]

    def end(source, to):
        if Path(to).name == target:
            raise KeyboardInterrupt
        return replace(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", end)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, path, refresh=refresh)
    assert find_file(path) is None
    asked = sum(g.path == f"/{NAME}" for g in server.gets)
    assert fetch(url, path).sha256 == hashlib.sha256(BODY).hexdigest()
    assert path.read_bytes() == BODY
    assert sum(g.path == f"/{NAME}" for g in server.gets) == asked
    assert names(tmp_path) == [NAME, f"{NAME}.json"]


# ------------------------------------------------------------------------------------- checking


def damaged(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("which", [("md5",), ("crc32c",), ("crc32c", "md5")])
def test_a_changed_byte_is_noticed(server, tmp_path, which):
    url = server.put(f"/{NAME}", damaged(BODY), headers=google_hashes(BODY, *which), etag='"1"')

    def mend(seconds):
        server.files[f"/{NAME}"].content = BODY

    found = fetch(url, tmp_path / NAME, retry=mx.sources.Retry(sleep=mend))
    assert (tmp_path / NAME).read_bytes() == BODY
    assert set(found.checked) == {"length", *which}
    assert [g.range for g in server.gets] == [None, None]  # whole, both times


def test_a_checksum_that_only_the_first_answer_had_is_kept(server, tmp_path):
    hashes = google_hashes(BODY, "crc32c")
    url = server.put(f"/{NAME}", BODY, headers=hashes, headers_of_parts={}, cuts=[1_500_000])
    assert fetch(url, tmp_path / NAME).checked == ["length", "crc32c"]
    assert [g.status for g in server.gets] == [200, 206]
    # Also over two runs; the server's file is another by then, and does not say so.
    again, file = tmp_path / "again.csv.gz", server.files[f"/{NAME}"]
    file.cuts, file.seconds_a_block = [200_000], 0.02
    with pytest.raises(mx.errors.IncompleteDownloadError):
        fetch(url, again, retry=retry(1)[0])
    file.etag, file.content, file.seconds_a_block = file.validator, damaged(BODY), 0.0
    with pytest.raises(mx.errors.SourceError, match="its crc32c is"):
        fetch(url, again)


def test_a_checksum_that_stays_wrong_is_an_error(server, tmp_path):
    url = server.put(f"/{NAME}", damaged(SMALL), headers=google_hashes(SMALL, "md5"))
    with pytest.raises(mx.errors.SourceError, match=r"its md5 is \w{32}, expected \w{32}, 3 times"):
        fetch(url, tmp_path / NAME)
    assert names(tmp_path) == []


def test_the_checksum_of_a_file_beside_it(server, tmp_path):
    url = server.put(f"/{NAME}", SMALL)
    server.put(f"/{NAME}.md5", f"{hashlib.md5(SMALL).hexdigest().upper()}  {NAME}\n".encode())
    assert fetch(url, tmp_path / NAME).checked == ["length", "md5"]
    server.put(f"/{NAME}.md5", b"0" * 32)
    with pytest.raises(mx.errors.SourceError, match="expected 00000000"):
        fetch(url, tmp_path / "other.csv.gz")
    server.put(f"/{NAME}.md5", b"<html>not here</html>")
    assert fetch(url, tmp_path / "third.csv.gz").checked == ["length"]


def test_the_checksum_that_a_caller_knows(server, tmp_path):
    url = server.put(f"/{NAME}", SMALL)
    right = hashlib.sha256(SMALL).hexdigest()
    assert fetch(url, tmp_path / NAME, sha256=right).checked == ["length", "sha256"]
    with pytest.raises(mx.errors.SourceError, match=f"its sha256 is {right}, expected aa"):
        fetch(url, tmp_path / NAME, sha256="aa" * 32)
    assert find_file(tmp_path / NAME).sha256 == right  # what was whole is still there
    # Where the server's own checksum fits, the same bytes would come again.
    url = server.put("/other.csv.gz", SMALL, headers=google_hashes(SMALL, "crc32c"))
    asked = len(server.gets)
    with pytest.raises(mx.errors.SourceError, match="although the server's own checksum matches"):
        fetch(url, tmp_path / "other.csv.gz", sha256="aa" * 32)
    assert len(server.gets) == asked + 1
    assert names(tmp_path) == [NAME, f"{NAME}.json"]


@pytest.mark.parametrize(("name", "content", "expected"), [
    (NAME, b"<html>Sign in</html>", "gzip"),
    (NAME, b"id,pt_root_id\n1,2\n", "gzip"),
    (NAME, b'{"message": "no"}', "gzip"),
    ("header.csv", b"<html>Sign in</html>", "a table"),
    ("header.csv", b'{"message": "no"}', "a table"),
])  # fmt: skip
def test_what_is_not_a_table_does_not_count(server, tmp_path, name, content, expected):
    url = server.put(f"/{name}", content)
    with pytest.raises(mx.errors.SourceError, match=f"expected {expected}"):
        fetch(url, tmp_path / name)
    assert names(tmp_path) == []


def test_a_page_with_status_200_is_asked_for_again(server, tmp_path):
    url = server.put(
        f"/{NAME}", b"<html>Sign in</html>", headers={"Content-Type": "text/html; charset=utf-8"}
    )
    with pytest.raises(mx.errors.IncompleteDownloadError, match="a web page instead of the file"):
        fetch(url, tmp_path / NAME)
    assert names(tmp_path) == []


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("url_path", ["/v661/absent.csv.gz", "/v661/"])
def test_a_missing_file_is_an_error_at_once(server, tmp_path, url_path):
    patient, waits = retry()
    with pytest.raises(
        mx.errors.SourceError, match=r"HTTP 404.*there is no such file: check the version"
    ):
        fetch(server.url + url_path, tmp_path / "new" / NAME, retry=patient)
    assert waits == []
    assert names(tmp_path / "new") == []


def test_a_full_disk_is_said_before_anything_is_find_file(server, tmp_path, monkeypatch):
    url = server.put(f"/{NAME}", BODY)
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        mx.errors.SourceError, match=r"needs 0.0042 GB more, and .* has 1e-06 GB left: make room"
    ):
        fetch(url, tmp_path / NAME)
    assert names(tmp_path) == []


def test_a_disk_that_is_full_meanwhile_keeps_what_arrived(server, tmp_path, monkeypatch):
    url = server.put(f"/{NAME}", BODY)
    real = fetch_module.size_of
    calls = []

    def full(file):
        calls.append(1)
        if real(file) > 1_000_000:
            raise OSError(28, "No space left on device")
        return real(file)

    monkeypatch.setattr(fetch_module, "size_of", full)
    with pytest.raises(
        mx.errors.SourceError, match=r"cannot be written.*No space left.*run the same again"
    ):
        fetch(url, tmp_path / NAME)
    monkeypatch.undo()
    assert (tmp_path / f"{NAME}.part").stat().st_size > 1_000_000
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_folder_that_cannot_be_made(server, tmp_path):
    url = server.put(f"/{NAME}", SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(mx.errors.SourceError, match="cannot be written"):
        fetch(url, tmp_path / "file" / NAME)


def test_threads_that_fetch_one_file_wait_for_it(server, tmp_path):
    url = server.put(f"/{NAME}", SMALL)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(url, tmp_path / NAME), range(4)))
    assert {one.size for one in found} == {len(SMALL)}
    assert [seen.path for seen in server.gets].count(f"/{NAME}") == 1
    assert (tmp_path / NAME).read_bytes() == SMALL


def test_two_processes_never_write_one_part(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    url = server.put(f"/{NAME}", SMALL)
    with open(tmp_path / f"{NAME}.part", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            mx.errors.SourceError, match=f"another process is fetching .*{NAME}: wait"
        ):
            fetch(url, tmp_path / NAME)
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == SMALL


def test_a_connection_that_stalls_is_given_up_and_asked_again(server, tmp_path):
    url = server.put(f"/{NAME}", BODY[:200_000], seconds_a_block=1.0)

    def hurry(seconds):
        server.files[f"/{NAME}"].seconds_a_block = 0

    fetch(url, tmp_path / NAME, retry=mx.sources.Retry(sleep=hurry), timeout=0.3)
    assert (tmp_path / NAME).read_bytes() == BODY[:200_000]


def test_a_login_is_passed_on(server, tmp_path):
    url = server.put(f"/{NAME}", SMALL, login="Bearer 123")
    with pytest.raises(mx.errors.SourceError, match=r"HTTP 401.*pass storage_options"):
        fetch(url, tmp_path / NAME)
    login = {"headers": {"Authorization": "Bearer 123"}}
    assert fetch(url, tmp_path / NAME, storage_options=login).size == len(SMALL)


def test_a_login_stays_with_its_host(server, tmp_path):
    secret = "s3cr3t"
    with FileServer() as other:
        stored = other.put(f"/store/{NAME}", BODY, cuts=[3_000_000])
        url = server.put(f"/{NAME}", b"", moved_to=server.url + "/next")
        server.put("/next", b"", moved_to=stored)
        login = {
            "headers": {"X-Api-Key": secret, "Authorization": f"Bearer {secret}"},
            "cookies": {"session": secret},
        }
        fetch(url, tmp_path / NAME, storage_options=login)
        assert (tmp_path / NAME).read_bytes() == BODY
        assert all(str(seen.headers).count(secret) == 3 for seen in server.log)
        assert other.log
        assert not any(secret in str(seen.headers) for seen in other.log)
        # It is continued, not begun again, which needs the other headers.
        assert [seen.range for seen in other.gets if seen.path == f"/store/{NAME}"][-1]


def test_no_secret_of_an_address_is_shown_or_kept(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="microns_xr")
    server.put(f"/{NAME}", BODY, cuts=[10])
    secret = "s3cr3t"
    url = f"{server.url.replace('//', f'//me:{secret}@')}/{NAME}?X-Signature={secret}"
    fetch(url, tmp_path / NAME)
    with pytest.raises(mx.errors.SourceError) as error:
        fetch(url.replace(NAME, "absent"), tmp_path / "absent.csv.gz")
    nobody = f"http://me:{secret}@127.0.0.1:9/{NAME}?X-Signature={secret}"
    with pytest.raises(mx.errors.IncompleteDownloadError) as lost:
        fetch(nobody, tmp_path / "lost.csv.gz")
    text = str(error.value) + str(lost.value) + caplog.text
    assert secret not in text + "".join(p.read_text() for p in tmp_path.glob("*.json"))
    assert "retrying in" in text


@pytest.mark.parametrize(("url", "words"), [
    ("nosuch://bucket/t.csv.gz", "use http://"),
    ("http:///t.csv.gz", "names no server"),
    ("s3://bucket/t.csv.gz", r"Install s3fs.*pip install 'microns-xr\[cloud\]'"),
])  # fmt: skip
def test_addresses_that_make_no_sense(tmp_path, monkeypatch, url, words):
    real = fsspec.core.url_to_fs

    def without_s3fs(url, **options):
        if url.startswith("s3:"):
            raise ImportError("Install s3fs to access S3")
        return real(url, **options)

    monkeypatch.setattr(fsspec.core, "url_to_fs", without_s3fs)
    with pytest.raises(mx.errors.SourceError, match=words):
        fetch(url, tmp_path / NAME)


# ------------------------------------------------------------------------------ other protocols


@pytest.mark.parametrize("protocol", ["path", "file", "memory"])
def test_other_protocols(tmp_path, protocol):
    source = tmp_path / "there" / NAME
    source.parent.mkdir()
    source.write_bytes(BODY)
    url = {"path": str(source), "file": source.as_uri(), "memory": f"memory://fetch/{NAME}"}[
        protocol
    ]
    fsspec.filesystem("memory").pipe_file(f"/fetch/{NAME}", BODY)
    found = fetch(url, tmp_path / "here" / NAME)
    assert (tmp_path / "here" / NAME).read_bytes() == BODY
    assert found.checked == ["length"]
    with pytest.raises(mx.errors.SourceError, match="there is no such file"):
        fetch(f"{url}.absent", tmp_path / "here" / "absent.csv.gz")
    parent = url.rpartition("/")[0]
    assert list_names(parent, retry=retry()[0]) == [NAME]
    assert list_names(f"{parent}/absent", retry=retry()[0]) == []
    assert exists(url, retry=retry()[0])
    assert not exists(f"{url}.absent", retry=retry()[0])


def test_other_protocols_resume_and_notice_a_changed_file(tmp_path):
    source = tmp_path / "there.csv.gz"
    source.write_bytes(BODY)
    url = source.as_uri()
    validator = str(source.stat().st_mtime)
    leave_part(tmp_path, url, BODY[:1_000_000], size=len(BODY), validator=validator)
    fetch(url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    leave_part(tmp_path, url, OTHER[:1_000_000], size=len(BODY), validator="1.0")
    fetch(url, tmp_path / NAME, refresh=True)
    assert (tmp_path / NAME).read_bytes() == BODY


def test_http_lists_nothing_but_knows_what_exists(server):
    url = server.put(f"/{NAME}", SMALL)
    assert list_names(server.url, retry=retry()[0]) is None
    assert exists(url, retry=retry()[0])
    assert not exists(f"{url}.absent", retry=retry()[0])


# ----------------------------------------------------------------------------------------- bar


def test_one_bar_in_bytes(server, tmp_path, monkeypatch):
    said = io.StringIO()
    said.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", said)
    url = server.put(f"/{NAME}", BODY, cuts=[1_500_000])
    fetch_file(url, tmp_path / NAME, retry=mx.sources.Retry(sleep=lambda s: None))
    lines = [line for line in said.getvalue().replace("\r", "\n").split("\n") if NAME in line]
    assert "100%" in lines[-1]
    assert "4.00M/4.00M" in lines[-1]
    assert {line.partition(":")[0].strip() for line in lines} == {NAME}
