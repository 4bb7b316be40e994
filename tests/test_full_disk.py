"""A disk that is full, for every writer: an error with path and room, and nothing half-written."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from contextlib import contextmanager

import pytest
import zarr.storage
from command import run

import microns_xr as mx
from microns_xr.files import locked


@contextmanager
def full_disk(room):
    """Let no file of this process become larger than `room` bytes, as a full disk or a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def command(*arguments):
    """Run the command line; its error as the package's, which it prints."""
    result = run(*arguments)
    if result.returncode == 1:
        raise mx.errors.SourceError(result.stderr)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def inputs(demo_store, demo_fresh, tmp_path_factory):
    file = tmp_path_factory.mktemp("rec") / "demo.h5"
    mx.recordings.write_demo(file, scans=["9_3"], n_monet=1, n_trippy=1, n_clip=1)
    one = mx.recordings.select(mx.recordings.open(file), trial=0)
    return {"store": demo_store, "file": file, "recordings": one, **demo_fresh}


WRITERS = {
    "write_store": (
        "a.zarr",
        lambda i, out: mx.write_store(
            out, units=i["units"], connectivity=i["connectivity"], overwrite=True
        ),
    ),
    "to_zarr": (
        "a.zarr",
        lambda i, out: mx.recordings.to_zarr(i["recordings"], out, overwrite=True),
    ),
    "write_demo": (
        "a.h5",
        lambda _, out: mx.recordings.write_demo(
            out, scans=["9_3"], n_monet=1, n_trippy=1, n_clip=1, overwrite=True
        ),
    ),
    "currents.csv": ("a.csv", lambda i, out: command("currents", i["store"], "--out", out)),
    "currents.csv.gz": ("a.csv.gz", lambda i, out: command("currents", i["store"], "--out", out)),
    "currents.zarr": ("a.zarr", lambda i, out: command("currents", i["store"], "--out", out)),
    "plot.pdf": (
        "a.pdf",
        lambda i, out: command("plot", i["store"], "depth_profile", "--out", out),
    ),
}


def content(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_was_there_stays_and_nothing_half_written_is_left(inputs, tmp_path, writer):
    name, write = WRITERS[writer]
    write(inputs, tmp_path / name)
    before = content(tmp_path)
    for target, room in ((name, 700), (f"new_{name}", 0)):
        message = rf"{tmp_path / target}.* MB .*free some space"
        with full_disk(room), pytest.raises(mx.errors.SourceError, match=message):
            write(inputs, tmp_path / target)
        assert content(tmp_path) == before, target
        assert os.listdir(tmp_path) == [name]


def test_a_download_says_so_and_keeps_what_was_there(inputs, tmp_path):
    fetched = mx.recordings.download(tmp_path, str(inputs["file"]), progress=False)
    before = fetched.read_bytes()
    with full_disk(0), pytest.raises(mx.errors.SourceError, match=r"cannot be written .*free some"):
        mx.recordings.download(tmp_path, str(inputs["file"]), progress=False, refresh=True)
    assert fetched.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_the_lock_of_a_full_disk(tmp_path):
    with full_disk(0), locked(tmp_path, "tables"):  # all tables may be there
        pass


def test_writes_that_go_on_after_one_has_failed_are_waited_for(inputs, tmp_path, monkeypatch):
    store = zarr.storage.LocalStore
    put = store.set

    async def late(self, key, value):
        if key.count("/"):
            await asyncio.sleep(0.2)
        await put(self, key, value)

    async def fail(self, key, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "set", late)
    monkeypatch.setattr(store, "set_if_not_exists", fail)
    with pytest.raises(mx.errors.SourceError, match="No space left"):
        WRITERS["to_zarr"][1](inputs, tmp_path / "a.zarr")
    time.sleep(0.3)
    assert not list(tmp_path.iterdir())
