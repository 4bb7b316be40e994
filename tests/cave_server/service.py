"""What the services answer: info, materialization and schema, as far as caveclient asks them."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote

import numpy as np

from .archive import Archive
from .faults import QUERY_KINDS, Fault, change_rows
from .queries import encode_arrow, join_query, simple_query
from .records import (
    INFO_VERSION,
    MATERIALIZE_VERSION,
    info_record,
    schema_of,
    table_record,
    version_record,
)
from .tables import QueryError, WireTable


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


class NotFound(QueryError):
    """An endpoint's own 404, which never travels wrapped in a 500."""

    def __init__(self, message: str) -> None:
        super().__init__(404, message)


class Service:
    """Tables and versions behind the endpoints."""

    def __init__(
        self,
        tables: Mapping[str, WireTable],
        archive: Archive,
        *,
        url: str,
        datastack: str,
        version: int,
        expired: Sequence[int],
        row_limit: int,
        token: str | None,
        redirect_to_login: bool,
        wrap_errors: bool,
        float_type: str,
        synapse_table: str,
        seed: int,
    ) -> None:
        self.tables = tables
        self.archive = archive
        self.url = url
        self.datastack = datastack
        self.version = version
        self.expired = tuple(expired)
        self.row_limit = row_limit
        self.token = token
        self.redirect_to_login = redirect_to_login
        self.wrap_errors = wrap_errors
        self.float_type = float_type
        self.synapse_table = synapse_table
        self._seed = seed
        self._queries = itertools.count()
        self._lock = threading.Lock()
        stack = rf"/datastack/{re.escape(datastack)}"
        api = rf"/materialize/api/v[23]{stack}"
        number, name = r"/version/(?P<version>-?\d+)", r"(?P<table>\w+)"
        self._routes: list[tuple[str, str, Callable[..., Response]]] = [
            ("GET", rf"/info/api/v2{stack.replace('/datastack/', '/datastack/full/')}", self._info),
            ("GET", r"/info/api/v2/datastacks", lambda r: Response.of_json([datastack])),
            ("GET", r"/schema/versions", lambda r: Response.of_json([1, 2])),
            ("GET", r"/schema/api/v2/type", lambda r: Response.of_json(sorted(self.tables))),
            ("GET", rf"/schema/api/v2/type/{name}", self._schema),
            ("GET", r"/schema/api/v2/types_all", self._schemas),
            ("GET", rf"{api}/versions", self._versions),
            ("GET", rf"{api}/metadata", self._versions_metadata),
            ("GET", rf"{api}{number}", self._version_metadata),
            ("GET", rf"{api}{number}/tables", self._tables),
            ("GET", rf"{api}{number}/tables/metadata", self._tables_metadata),
            ("GET", rf"{api}{number}/views", self._views),
            ("GET", rf"{api}{number}/views/schemas", self._views),
            ("GET", rf"{api}{number}/table/{name}/metadata", self._table_metadata),
            ("GET", rf"{api}{number}/table/{name}/count", self._count),
            ("POST", rf"{api}{number}/table/{name}/query", self._query),
            ("POST", rf"{api}{number}/query", self._join),
        ]

    # ------------------------------------------------------------------------- every request

    def answer(self, request: Request, fault: Fault | None = None) -> Response:
        """Return the answer to a request; `fault` may change the rows of a query."""
        method = "GET" if request.method == "HEAD" else request.method
        if request.path.startswith(self.archive.root):
            return self._archived(request)
        open_to_all = {
            "/info/version": INFO_VERSION,
            "/materialize/version": MATERIALIZE_VERSION,
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
                    if handler in (self._query, self._join):
                        arguments["fault"] = fault
                    return handler(request, **arguments)
        except QueryError as error:
            return self._error(error)
        return self._error(NotFound(f"no endpoint at {method} {request.path}"))

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

    def _error(self, error: QueryError) -> Response:
        if not self.wrap_errors or isinstance(error, NotFound):
            return Response.of_json({"message": error.message}, error.status)
        phrase = HTTPStatus(error.status).phrase
        lead = "" if error.status == 400 else f"{error.status} {phrase}: "
        document = {"code": 500, "message": lead + error.message, "traceback": []}
        return Response.of_json(document, 500)

    def _archived(self, request: Request) -> Response:
        found = self.archive.get(request.path)
        if found is None:
            body = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
            return Response(404, body, [("Content-Type", "application/xml")])
        status, headers, body = found.answer(request.headers)
        return Response(status, body, list(headers.items()))

    # ------------------------------------------------------------------------------- records

    def _info(self, request: Request) -> Response:
        return Response.of_json(info_record(self.url, self.synapse_table))

    def _record(self, version: int) -> dict[str, Any]:
        return version_record(self.datastack, version, served=version == self.version)

    def _versions(self, request: Request) -> Response:
        more = self.expired if request.flag("expired") else ()
        return Response.of_json([self.version, *more])

    def _versions_metadata(self, request: Request) -> Response:
        more = self.expired if request.flag("expired") else ()
        return Response.of_json([self._record(v) for v in (self.version, *more)])

    def _version_metadata(self, request: Request, version: int) -> Response:
        if version not in (self.version, *self.expired):
            raise NotFound("No version found")
        return Response.of_json(self._record(version))

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

    def _views(self, request: Request, version: int) -> Response:
        self._check(version)
        return Response.of_json({})

    def _table_metadata(self, request: Request, version: int, table: str) -> Response:
        self._check(version)
        if table not in self.tables:
            raise NotFound(f"No table named '{table}' found for version '{version}'")
        return Response.of_json(table_record(self.tables[table]))

    def _tables_metadata(self, request: Request, version: int) -> Response:
        self._check(version)
        return Response.of_json([table_record(t) for t in self.tables.values()])

    def _count(self, request: Request, version: int, table: str) -> Response:
        self._check(version, table)
        return Response.of_json(len(self.tables[table].frame))

    def _schema(self, request: Request, table: str) -> Response:
        if table not in self.tables:
            raise NotFound(f"no schema {table}")
        return Response.of_json(schema_of(self.tables[table]))

    def _schemas(self, request: Request) -> Response:
        return Response.of_json({name: schema_of(table) for name, table in self.tables.items()})

    # ------------------------------------------------------------------------------- queries

    def _rng(self) -> np.random.Generator:
        with self._lock:
            return np.random.default_rng([self._seed, next(self._queries)])

    def _query(self, request: Request, version: int, table: str, fault: Fault | None) -> Response:
        self._check(version, table)
        return self._answered(request, [table], fault)

    def _join(self, request: Request, version: int, fault: Fault | None) -> Response:
        try:
            (left, _), (right, _) = json.loads(request.raw)["tables"]
        except (ValueError, KeyError, TypeError):
            raise QueryError(400, "tables is not two pairs of table and column") from None
        for table in (left, right):
            self._check(version, table)
        return self._answered(request, [left, right], fault)

    def _answered(self, request: Request, names: list[str], fault: Fault | None) -> Response:
        try:
            data = json.loads(request.raw or b"{}")
        except ValueError:
            raise QueryError(400, "the body is not JSON") from None
        if "/api/v2/" in request.path:  # knows nothing of resolutions, and lists its suffixes
            data["desired_resolution"] = None
            if "suffixes" in data:
                data["suffix_map"] = dict(zip(names, data["suffixes"], strict=False))
        rng = self._rng()
        options: dict[str, Any] = {
            "row_limit": self.row_limit,
            "rng": rng,
            "float_type": self.float_type,
        }
        tables = [self.tables[name] for name in names]
        if len(tables) == 1:
            answer = simple_query(tables[0], data, count=request.flag("count"), **options)
        else:
            answer = join_query(self.tables, data, **options)
        headers = [("column_names", str(answer.column_names))]
        headers += [("Warning", text.replace("\n", " ")) for text in answer.warnings]
        if "/api/v3/" in request.path:
            headers += [("dataframe_resolution", str(float(r))) for r in answer.resolution or ()]
        frame = answer.frame
        if not request.flag("return_pyarrow"):
            body = frame.to_json(orient="records").encode()
            headers.append(("Content-Type", "application/json"))
            return Response(200, body, headers, rows=len(frame))
        if fault and fault.kind in QUERY_KINDS:
            frame = change_rows(fault, frame, rng)
        only = fault is not None and fault.kind == "schema_only"
        accepted = request.headers.get("Accept-Encoding", "")
        body = encode_arrow(frame, accepted, schema_only=only)
        headers.append(("Content-Type", "data.arrow"))
        return Response(200, body, headers, rows=0 if only else len(frame))
