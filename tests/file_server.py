"""A server of files on 127.0.0.1 whose every habit can be set: ranges, validators, cut answers."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """A file as the server gives it."""

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    headers_of_parts: dict[str, str] | None = None
    etag: str | None = "auto"
    ranges: bool = True
    says_length: bool = True
    get_says_length: bool = True
    login: str | None = None  # the Authorization that it needs
    moved_to: str | None = None  # the address that requests are redirected to
    # How many HEADs are answered with a web page.
    pages: int = 0
    # To how many bytes of the body the next GETs are cut, with the length of just these.
    shortened: list[int] = field(default_factory=list)
    # How many bytes of the body the next GETs send before the connection closes; None: all.
    cuts: list[int | None] = field(default_factory=list)
    seconds_a_block: float = 0.0

    @property
    def validator(self) -> str | None:
        if self.etag != "auto":
            return self.etag
        return f'"{hashlib.sha256(self.content).hexdigest()[:12]}"'


@dataclass
class Seen:
    """A request as the log keeps it."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    if_range: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class FileServer:
    """Serves `files` by their paths, and logs what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.log: list[Seen] = []
        self.arrived = threading.Event()
        owner = self

        class Handler(_Handler):
            server_of_files = owner

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # who asked has gone
                    super().handle_error(request, client_address)

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def put(self, path: str, content: bytes, **habits: Any) -> str:
        """Serve a file, and return its address."""
        self.files[path] = Served(content, **habits)
        return self.url + path

    @property
    def gets(self) -> list[Seen]:
        return [seen for seen in self.log if seen.method == "GET"]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_files: FileServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_HEAD

    def _answer(self) -> None:
        owner = self.server_of_files
        path = self.path.partition("?")[0]
        file = owner.files.get(path)
        wanted = self.headers.get("Range")
        if file is None:
            status, body, headers = 404, b"", {}
        elif file.login and self.headers.get("Authorization") != file.login:
            status, body, headers = 401, b"", {}
        elif file.moved_to:
            status, body, headers = 302, b"", {"Location": file.moved_to}
        else:
            status, body, headers = _part_of(file, wanted, self.headers.get("If-Range"))
        if file is not None and self.command == "HEAD" and file.pages:
            file.pages -= 1
            body, headers = b"<html></html>", {"Content-Type": "text/html"}
        if file is not None and self.command == "GET" and file.shortened:
            body = body[: file.shortened.pop(0)]
        says_length = file is None or (
            file.says_length and (self.command == "HEAD" or file.get_says_length)
        )
        cut = None
        if file is not None and self.command == "GET" and file.cuts:
            cut = file.cuts.pop(0)
        sent = body if cut is None else body[:cut]
        if_range = self.headers.get("If-Range")
        seen = Seen(self.command, path, wanted, status, len(sent), if_range, dict(self.headers))
        owner.log.append(seen)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if says_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = cut is not None or not says_length
        if self.command == "HEAD":
            return
        step = 64 << 10
        try:
            for start in range(0, len(sent), step):
                self.wfile.write(sent[start : start + step])
                if file is not None and file.seconds_a_block:
                    time.sleep(file.seconds_a_block)
        except OSError:
            self.close_connection = True  # who asked has gone


def _part_of(
    file: Served, wanted: str | None, if_range: str | None
) -> tuple[int, bytes, dict[str, str]]:
    headers = dict(file.headers)
    if file.validator:
        headers["ETag"] = file.validator
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if not found or not file.ranges or (if_range and if_range != file.validator):
        return 200, file.content, headers
    start, size = int(found[1]), len(file.content)
    end = int(found[2]) + 1 if found[2] else size
    if start >= size:
        return 416, b"", {**headers, "Content-Range": f"bytes */{size}"}
    if file.headers_of_parts is not None:
        headers = {"ETag": file.validator or "", **file.headers_of_parts}
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return 206, file.content[start:end], headers
