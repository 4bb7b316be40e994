"""The HTTP server: sockets, the log of requests, and faults on their way out."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pandas as pd

import microns_xr as mx

from .faults import QUERY_KINDS, Fault, FaultQueue, instead_of_answer, sent_part
from .service import ARCHIVE_ROOT, Request, Response, Service
from .tables import wire_tables

Tables = Mapping[str, pd.DataFrame] | mx.sources.TableSource

MAX_LOGGED_BODY = 2**17
# What a client that went away looks like from here.
GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, TimeoutError)


@dataclass
class Logged:
    """One request as the log keeps it: no headers, so no token."""

    method: str
    path: str
    query: dict[str, str]
    status: int | None
    rows: int | None
    bytes_in: int
    bytes_out: int
    seconds: float
    fault: str | None
    raw: bytes | None = field(default=None, repr=False)

    @property
    def body(self) -> Any:
        """The JSON that was sent; None where there was none, or more than 128 KiB of it."""
        return json.loads(self.raw) if self.raw else None


class CaveServer:
    """A CAVE service on 127.0.0.1, as far as caveclient and the archive's readers go.

    Parameters
    ----------
    tables : mapping of str to DataFrame, or TableSource
        What it serves. Positions are three columns ``X_position_x/_y/_z`` or one of triples.
    notices : mapping of str to str, optional
        Table to its owner's notice, which travels in the same header as the row limit's warning.
    archived : mapping of int to tables, optional
        Tables of the archived versions; by default every known version has those served.
    options
        Fields of `Service`.

    Attributes
    ----------
    url : str
        Address, without a slash at the end.
    requests : deque of Logged
        The latest 100,000 requests, oldest first.
    faults : FaultQueue
        Faults on demand.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        notices: Mapping[str, str] | None = None,
        archived: Mapping[int, Tables] | None = None,
        **options: Any,
    ) -> None:
        self.faults = FaultQueue()
        self.requests: deque[Logged] = deque(maxlen=100_000)
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        served = wire_tables(tables, notices or {})
        old = {version: wire_tables(of, {}) for version, of in (archived or {}).items()}
        self._http = _Server(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.archive_url = f"{self.url}{ARCHIVE_ROOT}"
        self.service = Service(self.url, served, old, **options)
        self._thread: threading.Thread | None = None

    @property
    def queries(self) -> list[Logged]:
        """The logged requests that were queries."""
        return [r for r in list(self.requests) if r.path.endswith("/query")]

    def __enter__(self) -> CaveServer:
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.01,), name="cave-server"
        )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.stop()
        if kind is None and self.errors:
            raise AssertionError(f"the server failed: {self.errors[0]!r}") from self.errors[0]

    def stop(self) -> None:
        """Close every connection and wait for every thread."""
        self.stopping.set()
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.hang_up()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can hang up on them and join their threads."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, owner: CaveServer) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        self._resets: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would ask the name service here

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def reset(self, request: socket.socket) -> None:
        """Let a connection end by RST."""
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._lock:
            self._resets.add(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
            abrupt = request in self._resets
            self._resets.discard(request)
        if abrupt:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def hang_up(self) -> None:
        """Wake every handler that waits for its client."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, GONE):
            self.owner.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log is `CaveServer.requests`."""

    def _handle(self) -> None:
        owner = self.server.owner
        started = time.perf_counter()
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        request = Request.parse(self.command, self.path, self.headers, raw)
        fault = owner.faults.take(request.path)
        if fault and fault.kind == "delay":
            owner.stopping.wait(fault["seconds"])
        response: Response | None = None
        if fault is None or fault.kind != "drop":
            response = self._response(request, fault)
        part, announced, breaks = b"", 0, True
        if response is not None:
            part, announced, breaks = sent_part(fault, response.body)
        # Logged before it is sent: who has the answer finds it in the log.
        owner.requests.append(
            Logged(
                method=request.method,
                path=request.path,
                query=request.query,
                status=response.status if response else None,
                rows=response.rows if response else None,
                bytes_in=length,
                bytes_out=len(part),
                seconds=time.perf_counter() - started,
                fault=fault.kind if fault else None,
                raw=raw if length <= MAX_LOGGED_BODY else None,
            )
        )
        if response is not None:
            self._send(response, part, announced)
        if fault and breaks:
            owner.stopping.wait(fault.params.get("stall", 0.0))
            self.close_connection = True
            if fault["reset"]:
                self.server.reset(self.connection)

    def _response(self, request: Request, fault: Fault | None) -> Response:
        owner = self.server.owner
        if fault:
            instead = instead_of_answer(fault)
            if instead:
                status, headers, body = instead
                return Response(status, body, list(headers.items()))
        try:
            response = owner.service.answer(request, fault)
        except Exception as error:
            owner.errors.append(error)
            return Response.of_json({"message": repr(error)}, 500)
        if fault and fault.kind in QUERY_KINDS and response.rows is None:
            owner.errors.append(ValueError(f"fault {fault.kind} hit {request.path}: no rows"))
        return response

    def _send(self, response: Response, part: bytes, announced: int) -> None:
        self.send_response(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)
        self.wfile.flush()
