"""Replacing a store in one step: an interruption at any point is finished by whoever comes next."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_examples as ex
import xarray as xr
from zarr.storage import MemoryStore

import microns_xr as mx
from microns_xr.store import swap
from microns_xr.store.locate import CompleteStore
from microns_xr.store.swap import SUFFIX, is_store, recover, replacing


class PowerCut(BaseException):
    """Stands for the end of the process; nothing in the package may catch it."""


def put(folder: str, word: str) -> None:
    """Write a folder that is taken for a store, with a word to recognize it."""
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "units").mkdir()
    Path(folder, "units", "word").write_text(word, encoding="utf-8")
    Path(folder, "zarr.json").write_text('{"attributes": {"microns_xr_format": 1}}')


def word_of(folder: str) -> str:
    return Path(folder, "units", "word").read_text(encoding="utf-8")


def beside(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.zarr")


def cut_before(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Raise before one of the steps that change the disk; list those that were done."""
    done: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(done) == step:
                raise PowerCut
            done.append(name)
            return call(*args, **kwargs)

        return wrapper

    for name in ("rename", "unlink", "rmdir", "makedirs"):
        monkeypatch.setattr(swap.os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr(swap.shutil, "rmtree", counted("rmtree", swap.shutil.rmtree))
    return done


def _cut_at_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[Any] = []
    rename = os.rename

    def cut(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number:
            raise PowerCut
        rename(*args)

    monkeypatch.setattr(swap.os, "rename", cut)


def replace(path: str, word: str) -> None:
    with replacing(path) as folder:
        # zarr.json comes last, as the writer does it
        Path(folder, "units").mkdir()
        Path(folder, "units", "word").write_text(word, encoding="utf-8")
        Path(folder, "zarr.json").write_text('{"attributes": {"microns_xr_format": 1}}')


STEPS = 11


def finished(path: str) -> bool:
    """Whether a new store is complete but perhaps not in its place."""
    return any(is_store(str(new)) for new in Path(path + SUFFIX).glob("new-*"))


def test_the_steps_of_a_replacement(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests below end the process before each of these."""
    put(path, "old")
    done = cut_before(monkeypatch, 99)
    replace(path, "new")
    assert done[:6] == ["makedirs", "makedirs", "rename", "rename", "unlink", "rmtree"]
    assert done[-2:] == ["unlink", "rmdir"]  # the lock last
    assert len(done) == STEPS
    assert word_of(path) == "new"
    assert beside(path) == ["a.zarr"]
    assert sorted(os.listdir(path)) == ["units", "zarr.json"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("writing", [True, False])
@pytest.mark.parametrize("step", range(STEPS + 1))
def test_interrupted_at_any_step(path: str, step: int, writing: bool, there: bool) -> None:
    if there:
        put(path, "old")
    with pytest.MonkeyPatch.context() as patch:
        cut_before(patch, step)
        try:
            replace(path, "new")
            ended = True
        except PowerCut:
            ended = False
    complete = ended or finished(path) or (is_store(path) and word_of(path) == "new")
    assert complete or not there or word_of(path) == "old"
    recover(path, writing=writing)
    if complete:
        assert word_of(path) == "new"
    elif there:
        assert word_of(path) == "old"
    else:
        assert not os.path.exists(path)
    # a reader leaves a folder that is half-written, or may just have been begun, to the writer
    left = set(beside(path)) - {"a.zarr"}
    assert left <= ({"a.zarr" + SUFFIX} if not writing else set())
    replace(path, "newest")
    assert word_of(path) == "newest"
    assert beside(path) == ["a.zarr"]


@pytest.mark.parametrize("first", range(1, STEPS))
@pytest.mark.parametrize("second", range(8))
def test_interrupted_again_while_it_is_finished(path: str, first: int, second: int) -> None:
    put(path, "old")
    for step, call in ((first, lambda: replace(path, "new")), (second, lambda: recover(path))):
        with pytest.MonkeyPatch.context() as patch:
            cut_before(patch, step)
            with suppress(PowerCut):
                call()
    recover(path, writing=True)
    assert word_of(path) in ("old", "new")
    assert beside(path) == ["a.zarr"]


def test_an_exception_while_writing_leaves_nothing(path: str) -> None:
    put(path, "old")

    def interrupted() -> None:
        with replacing(path) as folder:
            put(folder, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert beside(path) == ["a.zarr"]
    assert word_of(path) == "old"


def test_a_refused_rename_is_an_error_and_finished_later(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, "old")

    def refused(*args: Any) -> None:
        raise PermissionError("rename refused")

    with monkeypatch.context() as patch:
        patch.setattr(swap.os, "rename", refused)
        with pytest.raises(mx.errors.SourceError, match=r"a\.zarr cannot be .*rename refused"):
            replace(path, "new")
        recover(path)  # a reader that may not rename reads what is there
        assert word_of(path) == "old"
        with pytest.raises(PermissionError):
            recover(path, writing=True)
    recover(path)
    assert word_of(path) == "new"
    assert beside(path) == ["a.zarr"]


def test_an_old_store_put_aside_comes_back_when_there_is_no_new_one(path: str) -> None:
    os.makedirs(path + SUFFIX)
    put(path + SUFFIX + "/old", "old")
    Path(path + SUFFIX, "lock").touch()
    recover(path)
    assert word_of(path) == "old"
    assert beside(path) == ["a.zarr"]


@pytest.mark.parametrize("suffix", [".old", ".tmp"])
def test_folders_that_somebody_made_are_never_changed(path: str, suffix: str) -> None:
    put(path, "mine")
    put(path + suffix, "my backup")
    os.makedirs(path + suffix + suffix)
    replace(path, "new")
    assert word_of(path) == "new"
    assert word_of(path + suffix) == "my backup"
    assert beside(path) == ["a.zarr", "a.zarr" + suffix, "a.zarr" + suffix * 2]


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_not_a_store_is_never_replaced(path: str, what: str) -> None:
    target = path
    if what == "file":
        Path(path).write_text("thesis", encoding="utf-8")
    else:
        target = path if what == "folder" else path + ".folder"
        Path(target).mkdir()
        Path(target, "thesis.txt").write_text("thesis", encoding="utf-8")
        if what == "link":
            os.symlink(target, path)
    before = beside(path)
    with pytest.raises(
        mx.errors.StoreFormatError, match="expected a store of a release or a new name"
    ):
        mx.write_store(path, units=ex.units())
    assert beside(path) == before
    kept = target if what == "file" else os.path.join(target, "thesis.txt")
    assert Path(kept).read_text(encoding="utf-8") == "thesis"


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    mx.write_store(tmp_path / "empty", units=ex.units())
    mx.write_store(tmp_path / "new" / "deep" / "a.zarr", units=ex.units())
    for path in (tmp_path / "empty", tmp_path / "new" / "deep" / "a.zarr"):
        xr.testing.assert_identical(mx.open_store(path)["units"].to_dataset(), ex.units())


def test_a_store_of_a_newer_format_may_be_replaced(path: str) -> None:
    put(path, "newer")
    Path(path, "zarr.json").write_text('{"attributes": {"microns_xr_format": 7}}')
    mx.write_store(path, units=ex.units(), overwrite=True)
    assert list(mx.open_store(path).children) == ["units"]


def test_two_writers(path: str) -> None:
    put(path, "old")
    with replacing(path) as folder:
        with pytest.raises(mx.errors.StoreFormatError, match="being written by another process"):
            replace(path, "mine")
        recover(path)  # a reader goes on with the old store
        assert word_of(path) == "old"
        put(folder, "new")
        recover(path)  # and leaves a folder alone that its writer is about to rename
        assert word_of(path) == "old"
    assert word_of(path) == "new"


def test_a_reader_waits_for_the_renames_of_a_live_writer(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def renamed(seconds: float) -> None:
        waited.append(seconds)
        if seconds == 0.02 and not os.path.exists(path):
            os.rename(folder, path)

    with replacing(path) as folder:
        put(folder, "new")
        monkeypatch.setattr(swap.time, "sleep", renamed)
        recover(path)
        assert 0.02 in waited
        assert word_of(path) == "new"


def test_a_reader_that_checks_the_lock_is_not_taken_for_a_writer(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs(path + SUFFIX)
    put(path + SUFFIX + "/new-1", "new")
    Path(path + SUFFIX, "lock").touch()
    other = os.open(Path(path + SUFFIX, "lock"), os.O_RDONLY)
    assert swap.try_lock(other)
    monkeypatch.setattr(swap.time, "sleep", lambda _: os.close(other))
    recover(path, writing=True)
    assert word_of(path) == "new"


def test_a_lock_whose_file_was_removed_is_taken_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking it, another process may have finished a replacement."""
    lock, calls = swap.try_lock, []

    def removed(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            os.unlink(path + SUFFIX + "/lock")
        return lock(descriptor)

    monkeypatch.setattr(swap, "try_lock", removed)
    with replacing(path) as folder:
        assert len(calls) == 2
        with pytest.raises(mx.errors.StoreFormatError, match="being written by another process"):
            replace(path, "mine")
        put(folder, "new")
    assert word_of(path) == "new"


def test_without_file_locks_everything_else_is_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "try_lock", lambda _: True)
    put(path, "old")
    replace(path, "new")
    assert word_of(path) == "new"
    assert beside(path) == ["a.zarr"]


def test_opening_finishes_an_interrupted_write(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mx.write_store(path, units=ex.units())
    with monkeypatch.context() as patch:
        _cut_at_rename(patch, 2)  # the old store is put aside, the new one not in its place
        with pytest.raises(PowerCut):
            mx.write_store(path, units=ex.units(), layers=ex.layers(), overwrite=True)
    assert beside(path) == ["a.zarr" + SUFFIX]
    tree = xr.open_datatree(path, engine="microns_xr")
    assert list(tree.children) == ["units", "layers"]
    assert beside(path) == ["a.zarr"]


def _two(version: int) -> dict[str, xr.Dataset]:
    """Parts of a release whose sizes say which one it is."""
    units = ex.units()[["pt_root_id", "cell_type"]].drop_vars("n_scans")
    connectivity = ex.connectivity()[["synapse_size"]].drop_vars(["pre_cell_type", "post_y"])
    connectivity["synapse_size"] = connectivity.synapse_size * version
    coords = {"materialization_version": version}
    return {
        "units": units.assign_coords(coords),
        "connectivity": connectivity.assign_coords(coords),
    }


def _of_one(tree: Any) -> bool:
    versions = {int(tree[name].materialization_version) for name in tree.children}
    versions.add(tree.attrs["materialization_version"])
    if (sizes := tree["connectivity"].synapse_size).chunks is None:
        versions.add(int(sizes.data.data.max()) // ex.SIZE.max())
    return len(versions) == 1


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("where", ["folder", "object store"])
def test_an_open_is_of_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, lazy: bool
) -> None:
    """A writer that steps between any two reads: the store is replaced, then opened again."""
    stores: list[Any] = [str(tmp_path / name) for name in "ab"]
    if where == "object store":
        stores = [MemoryStore(), MemoryStore()]
    for store, version in zip(stores, (661, 943), strict=True):
        mx.write_store(store, **_two(version))

    def exchange() -> None:
        if where == "folder":
            for source, target in (("a", "c"), ("b", "a"), ("c", "b")):
                os.rename(tmp_path / source, tmp_path / target)
        else:
            a, b = (store._store_dict for store in stores)
            kept = dict(a)
            for mapping, content in ((a, dict(b)), (b, kept)):
                mapping.clear()
                mapping.update(content)

    reads: list[str] = []
    at, read = 0, CompleteStore.get

    async def stepped(self: Any, key: str, *args: Any, **options: Any) -> Any:
        reads.append(key)
        if len(reads) == at:
            exchange()
        return await read(self, key, *args, **options)

    monkeypatch.setattr(CompleteStore, "get", stepped)
    assert _of_one(mx.open_store(stores[0], lazy=lazy))
    n, refused = len(reads), 0
    for at in range(1, n + 1):
        reads.clear()
        try:
            assert _of_one(mx.open_store(stores[0], lazy=lazy)), at
        except mx.errors.StoreFormatError as error:
            assert "has been replaced since it was opened: open it again" in str(error)  # noqa: PT017
            refused += 1
    assert refused >= n - 1  # at the first read of a URL, it is still the other store


KILLED = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import store_examples as ex
    from microns_xr.store import stream, swap, write

    for step, path in enumerate(sys.argv[2:]):
        if not os.fork():  # this process has imported everything, and started no threads
            break
    else:
        for _ in sys.argv[2:]:
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
        sys.exit()
    write.write_store(path, units=ex.units())
    module, name = [(stream, "_write_whole"), (swap.os, "rename")][step]
    call, calls = getattr(module, name), []

    def fatal(*args, **kwargs):
        calls.append(1)
        if len(calls) > [3, 1][step]:
            os._exit(9)
        return call(*args, **kwargs)

    setattr(module, name, fatal)
    write.write_store(path, units=ex.units(), layers=ex.layers(), overwrite=True)
"""
LEFT = [
    (["a.zarr", "a.zarr" + SUFFIX], ["units"]),
    (["a.zarr" + SUFFIX], ["units", "layers"]),
]


def test_a_killed_process(tmp_path: Path) -> None:
    """Processes that really end: while arrays are written, and between the renames."""
    paths = [str(tmp_path / str(step) / "a.zarr") for step in range(len(LEFT))]
    for path in paths:
        os.mkdir(os.path.dirname(path))
    script = textwrap.dedent(KILLED)
    command = [sys.executable, "-c", script, str(Path(__file__).parents[1]), *paths]
    assert subprocess.run(command, timeout=120).returncode == 0
    for path, (folders, children) in zip(paths, LEFT, strict=True):
        assert beside(path) == folders
        assert list(mx.open_store(path).children) == children
        np.testing.assert_array_equal(mx.open_store(path)["units"]["nucleus_id"], ex.PRE)
        mx.write_store(path, units=ex.units(), layers=ex.layers(), overwrite=True)
        assert beside(path) == ["a.zarr"]
        assert list(mx.open_store(path).children) == ["units", "layers"]
