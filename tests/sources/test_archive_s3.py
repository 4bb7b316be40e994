"""An archive in a bucket of S3, on this machine: listed, resumed, checked."""

from __future__ import annotations

import gzip
import json

import pytest

import microns_xr as mx
from microns_xr.sources.fetch import _cloud_errors, fetch_file, open_remote
from microns_xr.sources.net import classify, status_of

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'microns-xr[cloud]'")
moto = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install 'moto[server]'"
)

# Of the packages that speak S3, none of ours.
pytestmark = pytest.mark.filterwarnings("default")

ROWS = "".join(f"{i},w{i}\n" for i in range(200_000)).encode()


@pytest.fixture(scope="module")
def bucket():
    import s3fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "id", "secret": "s3cr3t"}
    files = s3fs.S3FileSystem(**options)
    files.mkdir("archive")
    files.pipe_file("archive/v661/areas_merged.csv.gz", gzip.compress(ROWS, 1, mtime=0))
    files.pipe_file("archive/v661/areas_merged_header.csv", b"id,bigint\ntag,text\n")
    yield options
    server.stop()


def archive(options, folder, version=661) -> mx.sources.ArchiveSource:
    return mx.sources.ArchiveSource(
        version,
        url="s3://archive",
        folder=folder,
        storage_options=options,
        retry=mx.sources.Retry(attempts=3, sleep=lambda seconds: None),
        progress=False,
    )


def test_a_bucket_is_listed_and_read(bucket, tmp_path):
    source = archive(bucket, tmp_path)
    assert source.available_tables() == ["areas"]
    assert source.read("areas")["tag"].tolist()[-1] == "w199999"
    assert "s3cr3t" not in repr(source)
    with pytest.raises(mx.errors.SourceError, match="nothing in the archive s3://archive/v943"):
        archive(bucket, tmp_path / "943", 943).available_tables()
    with pytest.raises(mx.errors.SourceError, match=r"no table 'area'.*source='cave'"):
        source.read("area")


@pytest.mark.parametrize("changed", [False, True])
def test_a_part_is_resumed_unless_the_object_has_changed(bucket, tmp_path, changed):
    url, path = "s3://archive/v661/areas_merged.csv.gz", tmp_path / "areas_merged.csv.gz"
    content = gzip.compress(ROWS, 1, mtime=0)
    marked = content[:100] + b"x" * 100 + content[200:100_000]  # seen in what it becomes a part of
    etag = open_remote(url, storage_options=bucket).info().validator
    note = {"url": url, "size": len(content), "validator": "old" if changed else etag}
    (tmp_path / "areas_merged.csv.gz.part").write_bytes(marked)
    (tmp_path / "areas_merged.csv.gz.part.json").write_text(json.dumps(note))
    fetch_file(url, path, storage_options=bucket, progress=False)
    assert path.read_bytes() == (content if changed else marked + content[100_000:])


def test_a_wrong_login_is_an_error_at_once(bucket, tmp_path):
    source = archive({**bucket, "key": None, "secret": None, "anon": True}, tmp_path)
    with pytest.raises(
        mx.errors.SourceError, match=r"no table 'areas' .*or access to it is refused"
    ):
        source.read("areas")


def test_errors_of_the_cloud_are_understood():
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    def turned(error: Exception) -> Exception:
        with pytest.raises(Exception) as caught, _cloud_errors():
            raise error
        return caught.value

    assert classify(turned(EndpointConnectionError(endpoint_url="http://x"))) == "transient"
    assert status_of(turned(NoCredentialsError())) == 401
    assert status_of(turned(PermissionError("Forbidden"))) == 403
    assert classify(turned(KeyError("a bug"))) == "local"
