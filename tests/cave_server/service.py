"""What the info and materialization services answer, as far as `microns_xr` asks them."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, quote

import numpy as np

from .archive import Archive
from .faults import QUERY_KINDS, Fault, change_rows
from .tables import RESOLUTION, QueryError, WireTable, encode_arrow

ARCHIVE_ROOT = "/mat_dbs/public/minnie65_phase3_v1"
FIRST_RELEASE = dt.datetime(2021, 6, 11, 8, 10, 0, 215114)  # of version 117


@dataclass
class Request:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    raw: bytes = b""

    @classmethod
    def parse(cls, method: str, target: str, headers: Message, raw: bytes) -> Request:
        """Make one of a request line's target."""
        path, _, query = target.partition("?")
        return cls(method, path, {k: v[-1] for k, v in parse_qs(query).items()}, headers, raw)

    def flag(self, name: str) -> bool:
        """Whether a query argument is true."""
        return self.query.get(name, "false").lower() in ("true", "1")


@dataclass
class Response:
    """An answer before it is sent."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)
    rows: int | None = None

    @classmethod
    def of_json(cls, document: Any, status: int = 200) -> Response:
        """Make one of a JSON document."""
        body = json.dumps(document).encode()
        return cls(status, body, [("Content-Type", "application/json")])


@dataclass
class Service:
    """Tables and versions behind the endpoints."""

    url: str  # of the server
    tables: Mapping[str, WireTable]
    # Tables of the archived versions; by default every known version has those served.
    archived: Mapping[int, Mapping[str, WireTable]]
    datastack: str = "minnie65_public"
    version: int = 1718  # the one that is served
    expired: Sequence[int] = (661,)  # those that answer 410
    row_limit: int = 200_000
    token: str | None = None  # to ask for; the archive never asks
    # A request without any token is sent to a login page, as by the real service, not refused.
    redirect_to_login: bool = False
    redirect_to: str | None = None  # another server, to which every request is sent
    float_type: str = "Float32"  # of columns in answers
    resolution: Sequence[float] = RESOLUTION  # of positions, in nm per voxel
    seed: int = 0  # of every random order

    def __post_init__(self) -> None:
        served = dict.fromkeys((self.version, *self.expired), self.tables)
        self.archive = Archive(ARCHIVE_ROOT, {**served, **self.archived})
        self._queries = itertools.count()
        self._lock = threading.Lock()
        stack = re.escape(self.datastack)
        api = rf"/materialize/api/v[23]/datastack/{stack}"
        number, name = r"/version/(?P<version>-?\d+)", r"(?P<table>\w+)"
        self._routes: list[tuple[str, str, Callable[..., Response]]] = [
            ("GET", rf"/info/api/v2/datastack/full/{stack}", self._info),
            ("GET", rf"{api}/versions", self._versions),
            ("GET", rf"{api}{number}", self._version),
            ("GET", rf"{api}{number}/tables", self._tables),
            ("GET", rf"{api}{number}/table/{name}/count", self._count),
            ("GET", rf"{api}{number}/table/{name}/metadata", self._metadata),
            ("POST", rf"{api}{number}/table/{name}/query", self._query),
        ]

    # ------------------------------------------------------------------------- every request

    def answer(self, request: Request, fault: Fault | None = None) -> Response:
        """Return the answer to a request; `fault` may change the rows of a query."""
        method = "GET" if request.method == "HEAD" else request.method
        if request.path.startswith(self.archive.root):
            return self._archived(request)
        if self.redirect_to is not None:
            return Response(307, b"", [("Location", self.redirect_to + request.path)])
        open_to_all = {
            "/info/version": "4.5.0",
            "/materialize/version": "5.13.0",  # the oldest that caveclient 8 will query
            "/materialize/api/versions": [2, 3],
        }
        if request.path in open_to_all:
            return Response.of_json(open_to_all[request.path])
        if request.path == "/auth/api/v1/authorize":
            return Response(200, b"<html>Sign in</html>", [("Content-Type", "text/html")])
        refusal = self._refuse(request)
        if refusal:
            return refusal
        try:
            for allowed, pattern, handler in self._routes:
                found = re.fullmatch(pattern, request.path)
                if found and allowed == method:
                    arguments: dict[str, Any] = found.groupdict()
                    if "version" in arguments:
                        arguments["version"] = int(arguments["version"])
                    if handler == self._query:
                        arguments["fault"] = fault
                    return handler(request, **arguments)
        except QueryError as error:
            return Response.of_json({"message": error.message}, error.status)
        return Response.of_json({"message": f"no endpoint at {method} {request.path}"}, 404)

    def _refuse(self, request: Request) -> Response | None:
        if self.token is None:
            return None
        header = request.headers.get("Authorization", "")
        if header == f"Bearer {self.token}":
            return None
        login = f"{self.url}/auth/api/v1/authorize"
        if not header and self.redirect_to_login:
            back = quote(f"{self.url}{request.path}", safe="")
            return Response(302, b"", [("Location", f"{login}?redirect={back}")])
        challenge = f'Bearer realm="{login}"'
        if not header:
            return Response(401, b"Unauthorized", [("WWW-Authenticate", challenge)])
        challenge += ', error="invalid_token", error_description="Invalid/Expired Token"'
        return Response(401, b"Invalid/Expired Token", [("WWW-Authenticate", challenge)])

    def _archived(self, request: Request) -> Response:
        found = self.archive.get(request.path)
        if found is None:
            body = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
            return Response(404, body, [("Content-Type", "application/xml")])
        status, headers, body = found.answer(request.headers)
        return Response(status, body, list(headers.items()))

    # ------------------------------------------------------------------------------- records

    def _info(self, request: Request) -> Response:
        record = {
            "aligned_volume": {"name": "minnie65_phase3", "id": 1},
            "local_server": self.url,
            "synapse_table": "synapses_pni_2",
        }
        return Response.of_json(record)

    def _versions(self, request: Request) -> Response:
        more = self.expired if request.flag("expired") else ()
        return Response.of_json([self.version, *more])

    def _version(self, request: Request, version: int) -> Response:
        if version not in (self.version, *self.expired):
            return Response.of_json({"message": "No version found"}, 404)
        served = version == self.version
        made = FIRST_RELEASE + dt.timedelta(days=version - 117)
        leaves = made + dt.timedelta(days=36_500 if served else 365)
        times = {"time_stamp": made.isoformat(), "expires_on": leaves.isoformat()}
        return Response.of_json({"version": version, "valid": served, **times})

    def _check(self, version: int, table: str | None = None) -> None:
        if version in self.expired:
            raise QueryError(410, "This materialization version is not available")
        if version != self.version:
            raise QueryError(404, f"version {version} not found in {self.datastack}")
        if table is not None and table not in self.tables:
            raise QueryError(
                404,
                f"Analysis table '{table}' not found for version {version} in datastack "
                f"{self.datastack}",
            )

    def _tables(self, request: Request, version: int) -> Response:
        self._check(version)
        return Response.of_json(list(self.tables))

    def _count(self, request: Request, version: int, table: str) -> Response:
        self._check(version, table)
        return Response.of_json(len(self.tables[table].frame))

    def _metadata(self, request: Request, version: int, table: str) -> Response:
        self._check(version, table)
        x, y, z = self.resolution
        record = {"table_name": table, "schema": "", "reference_table": None, "notice_text": None}
        record |= {f"voxel_resolution_{axis}": r for axis, r in zip("xyz", (x, y, z), strict=True)}
        return Response.of_json({**record, "voxel_resolution": [x, y, z]})

    def _query(self, request: Request, version: int, table: str, fault: Fault | None) -> Response:
        self._check(version, table)
        try:
            data = json.loads(request.raw or b"{}")
        except ValueError:
            raise QueryError(400, "the body is not JSON") from None
        with self._lock:
            rng = np.random.default_rng([self.seed, next(self._queries)])
        frame, warnings = self.tables[table].query(
            data,
            row_limit=self.row_limit,
            rng=rng,
            count=request.flag("count"),
            float_type=self.float_type,
        )
        if fault and fault.kind in QUERY_KINDS:
            frame = change_rows(fault, frame, rng)
        only = fault is not None and fault.kind == "schema_only"
        body = encode_arrow(frame, request.headers.get("Accept-Encoding", ""), schema_only=only)
        headers = [("Content-Type", "data.arrow")]
        headers += [("Warning", text) for text in warnings]
        headers += [("dataframe_resolution", str(r)) for r in self.resolution]
        return Response(200, body, headers, rows=0 if only else len(frame))
