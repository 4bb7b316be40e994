"""Files and folders that are whole or not there, and locks that end with their process."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from microns_xr import files
from microns_xr.errors import SourceError

HOLD = """
import sys, time
from microns_xr.files import locked
with locked(sys.argv[1], "tables"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    files.write_file(path, "old")

    def write_half() -> None:
        with files.new_file(path) as part:
            part.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert path.read_text() == "old"
    files.write_file(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_names_beside_the_target_are_the_users(tmp_path):
    (tmp_path / "a.tmp").mkdir()
    (tmp_path / "b.tmp").write_text("theirs")
    files.write_file(tmp_path / "a", b"")
    files.write_file(tmp_path / "b", b"")
    assert (tmp_path / "b.tmp").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["a", "a.tmp", "b", "b.tmp"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with files.new_file(path) as first, files.new_file(path) as second:
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_cannot_be_written_says_which(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match=r"a\.txt cannot be written .*: check the folder"):
        files.write_file(tmp_path / "file" / "a.txt", b"")
    with (
        pytest.raises(SourceError, match=r"b cannot be .*more than the [\d,.]+ MB that are free"),
        files.new_file(tmp_path / "b"),
    ):
        raise RuntimeError(f"as HDF5 says it: {os.strerror(errno.ENOSPC)}")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(SourceError, match="my own words"), files.new_file(tmp_path / "a"):
        raise SourceError("my own words")


def test_a_lock_names_its_process_and_ends_with_it(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        message = rf"another download of tables into .* is running \(process {holder.pid}\)"
        with pytest.raises(SourceError, match=message), files.locked(tmp_path, "tables"):
            pass
        holder.send_signal(signal.SIGKILL)
    with files.locked(tmp_path, "tables"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_threads_of_one_process_wait_for_each_other(tmp_path):
    inside, at_once = [], []

    def work(_):
        with files.locked(tmp_path, "tables"):
            inside.append(1)
            at_once.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert at_once == [1] * 6


def test_a_file_system_without_locks_does_not_stop_the_work(tmp_path, monkeypatch):
    def refuse(*args: object, **options: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    with files.locked(tmp_path, "tables"), files.locked(tmp_path, "tables"):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SourceError, match=r"lock cannot be written .*: check the folder"),
        files.locked(tmp_path / "file", "tables"),
    ):
        pass


def test_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(SourceError, match="cannot be read"):
        files.file_sha256(tmp_path / "missing")
