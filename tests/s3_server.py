"""A server of the S3 protocol on 127.0.0.1 that logs what it is asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

serving = pytest.importorskip("werkzeug.serving")
werkzeug_app = pytest.importorskip(
    "moto.moto_server.werkzeug_app", reason="moto is not installed: pip install 'moto[server]'"
)


@dataclass(frozen=True)
class Asked:
    """A request as the log keeps it."""

    method: str
    path: str
    query: str
    range: str | None
    status: int
    sent: int

    @property
    def key(self) -> str:
        """Name of the object in the bucket."""
        return self.path.removeprefix("/data/")

    @property
    def lists(self) -> bool:
        return "list-type" in self.query or "prefix=" in self.query


# Moto has a handler of its own since 5.2.5.
class _Quiet(getattr(werkzeug_app, "MotoRequestHandler", serving.WSGIRequestHandler)):  # type: ignore[misc]
    def log_request(self, *args: Any) -> None:
        """Print nothing."""


@cache
def _app(service: str) -> Any:
    # Moto's own dispatcher looks at all of its services to find that a request is of S3, which
    # takes as long as the answer.
    return werkzeug_app.create_backend_app(service)


class Bucket:
    """The bucket ``data`` behind a log."""

    def __init__(self) -> None:

        self.log: list[Asked] = []
        self.seconds_a_request = 0.0
        # How many objects may still be written before each is refused; None: all.
        self.puts_left: int | None = None
        self.app = _app("s3")
        self._server = serving.make_server(
            "127.0.0.1",
            0,
            self._logged,
            threaded=True,
            request_handler=_Quiet,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, Any]:
        """As fsspec takes them."""
        return {"endpoint_url": self.url, "key": "id", "secret": "s3cr3t"}

    def obstore(self, prefix: str) -> Any:
        """A folder of the bucket as a store of zarr around one of obstore."""
        from obstore.store import S3Store
        from zarr.storage import ObjectStore

        store = S3Store(
            "data",
            prefix=prefix,
            endpoint=self.url,
            access_key_id="id",
            secret_access_key="s3cr3t",
            region="us-east-1",
            client_options={"allow_http": True},
        )
        return ObjectStore(store)

    @contextmanager
    def asked(self) -> Iterator[list[Asked]]:
        """What is asked within the block."""
        start = len(self.log)
        seen: list[Asked] = []
        yield seen
        seen += self.log[start:]

    def _logged(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        time.sleep(self.seconds_a_request)
        status: list[int] = []

        if environ["REQUEST_METHOD"] == "PUT" and self.puts_left is not None:
            self.puts_left -= 1
            if self.puts_left < 0:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]

        def start(line: str, headers: Any, *rest: Any) -> Any:
            status.append(int(line.split()[0]))
            return start_response(line, headers, *rest)

        body = list(self.app(environ, start))
        self.log.append(
            Asked(
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                environ["QUERY_STRING"],
                environ.get("HTTP_RANGE"),
                status[-1],
                sum(map(len, body)),
            )
        )
        return body

    def __enter__(self) -> Bucket:
        import boto3

        self._thread.start()
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="id",
            aws_secret_access_key="s3cr3t",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="data")
        # Below data/public everybody may read what they know the name of, and list nothing.
        everybody = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:HeadObject"],
        }
        policy = {"Statement": [everybody | {"Resource": "arn:aws:s3:::data/public/*"}]}
        client.put_bucket_policy(Bucket="data", Policy=json.dumps(policy))
        client.close()
        return self

    def __exit__(self, *exception: object) -> None:
        # All servers of a process have the same buckets.
        assert _app("moto_api").test_client().post("/moto-api/reset").status_code == 200
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
