"""Tables on disk: typed, whole or not there, each with its record."""

import datetime as dt
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

import microns_xr as mx
from microns_xr.sources.cache import CachedSource

ROOT = 864_691_135_000_000_001
FRAME = pd.DataFrame(
    {
        "id": [3, 1],
        "pt_root_id": pd.array([ROOT, None], dtype="Int64"),
        "cell_type": pd.Series(["23P", None], dtype=object),
        "status": [True, False],
        "score": [0.1, np.nan],
        "created": pd.to_datetime(["2024-01-02 03:04:05.678901", None], utc=True).astype(
            "datetime64[us, UTC]"
        ),
    }
)


@pytest.fixture
def cache(tmp_path):
    return folder_of(tmp_path / "v1718")


def folder_of(path, datastack="minnie65_public", version=1718) -> CachedSource:
    return CachedSource(None, path, datastack, version)


def write(cache: CachedSource, name: str = "nuclei", frame: pd.DataFrame = FRAME, **note) -> dict:
    return cache.write(name, pa.Table.from_pandas(frame, preserve_index=False), note)


def files(cache: CachedSource) -> list[str]:
    return sorted(path.name for path in cache.table_folder.iterdir())


def test_nothing_is_there_and_nothing_is_made(cache):
    assert cache.names() == []
    assert not cache.has("nuclei")
    with pytest.raises(
        mx.errors.SourceError, match=r"holds no complete table 'nuclei'.*: download it"
    ):
        cache.read("nuclei")
    assert not cache.folder.exists()


def test_a_table_comes_back_as_it_is(cache):
    record = write(cache, timestamp="2025-01-01T00:00:00+00:00", source="cave")
    pd.testing.assert_frame_equal(cache.read("nuclei"), FRAME)
    assert files(cache) == ["nuclei.json", "nuclei.parquet"]
    assert cache.names() == ["nuclei"]
    assert record == cache.provenance("nuclei")
    parquet = (cache.table_folder / "nuclei.parquet").read_bytes()
    assert record["sha256"] == hashlib.sha256(parquet).hexdigest()
    kept = {k: record[k] for k in ("name", "rows", "datastack", "version", "timestamp", "source")}
    assert kept == {
        "name": "nuclei", "rows": 2, "datastack": "minnie65_public", "version": 1718,
        "timestamp": "2025-01-01T00:00:00+00:00", "source": "cave",
    }  # fmt: skip
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record["fetched_at"])
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
    assert {"microns-xr", "pyarrow"} <= set(record["created_by"])
    assert pa.parquet.read_schema(cache.path("nuclei")).field("pt_root_id").type == pa.int64()


def test_the_same_rows_make_the_same_bytes(cache, tmp_path):
    single = FRAME.astype({"score": np.float32, "id": np.int32})
    double = FRAME.assign(score=single.score.astype(np.float64))
    records = [write(cache, frame=single), write(folder_of(tmp_path / "other"), frame=double)]
    assert len({record["sha256"] for record in [*records, write(cache, frame=single)]}) == 1
    assert cache.read("nuclei").id.dtype == np.int64


def test_the_folder_is_a_directory_source(cache):
    demo = mx.sources.DemoSource(1718, n_nuclei=500)
    frames = {name: demo.read(name) for name in demo.available_tables() if name != "synapses_pni_2"}
    for name, frame in frames.items():
        write(cache, name, frame)
    for folder in (cache.table_folder, cache.folder):
        source = mx.sources.DirectorySource(folder)
        assert source.available_tables() == cache.available_tables() == sorted(frames)
        for name, frame in frames.items():
            pd.testing.assert_frame_equal(source.read(name), cache.read(name))
            assert source.provenance(name)["sha256"] == cache.provenance(name)["sha256"]
            pd.testing.assert_frame_equal(
                cache.read(name), frame, check_dtype=name != "tuning_curves_fitted_v1"
            )


def test_tables_put_beside_the_downloaded_ones(cache):
    write(cache)
    (cache.folder / "functional").mkdir()
    for path in (cache.folder / "functional" / "mine.csv", cache.table_folder / "yours.csv"):
        path.write_text("id\n7\n")
        name = path.stem
        assert name in cache.available_tables()
        assert cache.read(name).id.tolist() == [7]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert cache.provenance(name) == {"name": name, "rows": 1, "sha256": digest}
    # Without its record, a parquet file in this folder is a download that was cut.
    (cache.table_folder / "nuclei.json").unlink()
    assert cache.available_tables() == ["mine", "yours"]
    (cache.table_folder / "mine.csv").write_text("id\n8\n")
    with pytest.raises(mx.errors.SourceError, match="table mine exists 2 times"):
        cache.read("mine")


# ------------------------------------------------------------------------- whole or not there


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink, lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_a_damaged_table_does_not_count_as_there(cache, harm, suffix):
    record = write(cache)
    assert cache.has("nuclei")
    path = cache.table_folder / f"nuclei.{suffix}"
    harm(path)
    if harm is flip and suffix == "json":
        path.write_text(json.dumps({**record, "sha256": "0" * 64}))
    assert not cache.has("nuclei")
    assert cache.names() == []
    with pytest.raises(mx.errors.SourceError, match="no complete table"):
        cache.read("nuclei")
    write(cache)
    assert cache.has("nuclei")


@pytest.mark.parametrize("record", ["[]", "{}", '{"sha256": 5}', "null", "\udcff"])
def test_a_record_of_another_form(cache, record):
    write(cache)
    (cache.table_folder / "nuclei.json").write_text(record, errors="surrogateescape")
    assert not cache.has("nuclei")


def test_a_change_is_noticed_although_it_was_whole_before(cache):
    write(cache)
    assert cache.has("nuclei")
    write(folder_of(cache.folder), frame=FRAME.head(1))
    assert cache.has("nuclei")
    assert len(cache.read("nuclei")) == 1


@pytest.mark.parametrize("at", ["parquet", "json"])
def test_an_end_at_any_moment_leaves_a_whole_table_or_none(cache, monkeypatch, at):
    """As a kill would: nothing is tidied up after the moment."""
    write(cache, note="old")
    replace, unlink = Path.replace, Path.unlink

    def end(self, target):
        if Path(target).suffix == f".{at}":
            raise SystemExit
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", end)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(SystemExit):
        write(cache, frame=FRAME.head(1), note="new")
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    again = folder_of(cache.folder)
    if at == "parquet":
        assert again.provenance("nuclei")["note"] == "old"
        assert len(again.read("nuclei")) == 2
    else:
        assert not again.has("nuclei")
    left = [name for name in files(again) if name.endswith(".tmp")]
    assert set(files(again)) - set(left) == {"nuclei.json", "nuclei.parquet"}
    assert {name.rsplit(".", 3)[0] for name in left} == {f"nuclei.{at}", "nuclei.json"}


def test_a_table_that_cannot_be_written_leaves_the_old_one(cache, monkeypatch):
    write(cache)
    before = {p.name: p.read_bytes() for p in cache.table_folder.iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(mx.errors.SourceError, match=r"cannot be written \(.*No space left"):
        write(cache)
    assert {p.name: p.read_bytes() for p in cache.table_folder.iterdir()} == before


@pytest.mark.parametrize("name", ["../nuclei", "a/b", "", ".hidden", "a b", "..", "nuclei\n"])
def test_names_stay_in_the_folder(cache, name):
    for use in (cache.has, cache.read, cache.path, lambda n: write(cache, n)):
        with pytest.raises(mx.errors.SourceError, match="is not a table name"):
            use(name)
    assert not cache.folder.exists()
    write(cache)
    (cache.table_folder / "my notes.json").write_text("{}")
    assert cache.available_tables() == ["nuclei"]


@pytest.mark.parametrize("release", [{"version": 661}, {"datastack": "minnie65_demo"}])
def test_a_table_of_another_release_is_refused(cache, release):
    other = folder_of(cache.folder, **release)
    write(other)
    for use in (cache.has, cache.read, cache.provenance, lambda n: cache.names()):
        with pytest.raises(mx.errors.ReleaseMismatchError, match="expected minnie65_public v1718"):
            use("nuclei")
    assert other.has("nuclei")


@pytest.mark.parametrize("column", ["id", "pt_root_id"])
@pytest.mark.parametrize("ids", [[float(ROOT)], [2**60, 2**60 + 128, 2**60 + 256], [0.5]])
def test_ids_that_went_through_floats_are_not_kept(cache, column, ids):
    """From the folder they would be read again and again, whatever an error says."""
    with pytest.raises(mx.errors.SourceError, match=rf"{column}.*damaged at its source"):
        write(cache, frame=pd.DataFrame({column: ids}))
    assert cache.names() == []
    write(cache, frame=pd.DataFrame({column: [7.0, None], "score": [0.5, 2.0**60]}))


@pytest.mark.parametrize("content", ["{}", "5", "[[", "[" * 99_999])
def test_a_damaged_list_of_tables(cache, content):
    cache.remote = mx.sources.CaveSource(1718, auth_token="none")
    cache.folder.mkdir(parents=True)
    (cache.folder / "tables.json").write_text(content)
    with pytest.raises(mx.errors.SourceError, match=r"tables\.json is damaged.*remove it"):
        cache.available_tables()
