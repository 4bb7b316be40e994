"""Tables of a release from the CAVE service, through caveclient.

The service truncates answers at its row limit, in no defined order and indicated only by a header,
and an answer may lack rows without any indication at all. So a table that reaches the limit is
queried again in ranges of its ids until no answer is truncated, and a table is accepted only if it
has as many rows as the service counts, each id once.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import requests

from microns_xr.errors import MicronsXrError, SchemaError, SourceError, whole_number
from microns_xr.frames import RESOLUTION
from microns_xr.network import BadAnswer, Refused, describe
from microns_xr.releases import datastack_entry
from microns_xr.sources.net import Retry, as_retry, attempt
from microns_xr.sources.synapse_plan import split_range
from microns_xr.sources.tables import (
    TABLE_NAME,
    TableSource,
    frame_sha256,
    plain_types,
    to_frame,
)

Result = TypeVar("Result")
Filters = Mapping[str, Sequence[Any]]
Ranges = Mapping[str, tuple[int | None, int | None]]

_CONNECT_ATTEMPTS = 5  # fewer than for other requests: a wrong address should fail early
_TABLE_ATTEMPTS = 5  # for a table whose number of rows is not the service's count
# Target size of the answers to ranges of ids, as a share of the row limit: the ranges are estimated
# from the ids in a truncated answer, so that their sizes are somewhat uneven.
_FILLING = 0.7
# The end of an Arrow stream. The format makes it optional, but without it a stream that breaks off
# between two messages looks complete; the service always writes it.
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# What taking an answer apart raises if it is JSON of another form.
_OTHER_FORM = (ValueError, TypeError, LookupError, AttributeError)
# The service opens a quotation mark before this and never closes it.
_LIMITED = re.compile(r"Limited query to (\d+) rows")
_LOGIN = re.compile(r"/(?:sticky_)?auth(?:orize)?(?:/|$)|/login(?:/|$)")


def _token_help(datastack: str | None = None) -> str:
    """Return how to get a token for the service of a datastack."""
    server = datastack_entry(datastack, "server") if datastack else None
    client = f"server_address={server!r}" if server else ""
    return (
        f"get a token at {server or 'https://global.daf-apis.com'}/auth/api/v1/create_token and "
        "pass it as auth_token=..., or save it once for caveclient with "
        f"caveclient.CAVEclient({client}).auth.save_token(token=...)"
    )


def _advice(datastack: str, version: int) -> dict[int, str]:
    """Return what to do about each status with which the service refuses requests."""
    token_help = _token_help(datastack)
    return {
        400: "check the names of tables and columns",
        401: token_help,
        403: f"the token may not read {datastack}: accept its terms of service, or {token_help}",
        404: "the service has no such datastack, version or table: see "
        "mx.releases.supported_versions() and available_tables()",
        410: f"{datastack} v{version} has left the service: use source='archive' if it is archived "
        "as files",
        413: "ask for fewer ids at once",
    }


class Secret:
    """A token, or None, that is not shown in a repr, a traceback or a pickle."""

    def __init__(self, value: str | None = None) -> None:
        if value is not None:
            value = value.strip() if isinstance(value, str) else ""
            if not re.fullmatch(r"[!-~]+", value):
                raise SchemaError(
                    "auth_token is no text, empty, or contains spaces or non-ASCII characters: "
                    f"{_token_help()}"
                )
        self.value = value

    def __repr__(self) -> str:
        return "<token>" if self.value else "<no token>"

    def __reduce__(self) -> tuple[type[Secret], tuple[()]]:
        return Secret, ()  # a pickle holds no token

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def clean(self, text: str) -> str:
        """Remove the token from a text, whether plain, escaped or quoted."""
        if self.value:
            for form in {self.value, repr(self.value)[1:-1], quote(self.value, safe="")}:
                text = text.replace(form, "<token>")
        return text


# ------------------------------------------------------------------------------ one HTTP request


class CheckedSession(requests.Session):
    """A session with the checks that caveclient lacks.

    It sets time limits, raises on error statuses before caveclient sees them (which opens a web
    browser on one of them), treats a redirect to a login page or to another host as a refusal, and
    keeps the last answer of each thread, because caveclient drops the header that marks a truncated
    answer.
    """

    def __init__(self, timeout: tuple[float, float]) -> None:
        super().__init__()
        self._timeout = timeout
        self._local = threading.local()

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request; see `requests.Session.send`."""
        options["timeout"] = options.get("timeout") or self._timeout
        self._local.answer = None
        response = super().send(request, **options)
        status = response.status_code
        # caveclient handles an old server that does not state its version.
        no_version = status == 404 and urlsplit(response.url).path.endswith("/version")
        if status >= 400 and not no_version:
            reason = _reason(response)
            if status == 500 and (inner := re.match(r"(4\d\d)\b", reason)):
                status = int(inner[1])
            raise Refused(status, reason, response.headers)
        self._local.answer = response
        return response

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where to follow an answer to; `requests` calls it before every further request."""
        location = super().get_redirect_target(resp)
        if location is None:
            return None
        target = urljoin(resp.url, location)
        parts = urlsplit(target)
        if _LOGIN.search(parts.path):
            resp.close()
            raise Refused(401, f"the service asks to log in at {parts.netloc}{parts.path}")
        # caveclient sends the token as a cookie without a domain, which would go to any host.
        if self.should_strip_auth(resp.url, target):
            resp.close()
            raise Refused(
                resp.status_code,
                f"the service redirects to {parts.scheme}://{parts.netloc}, which is not followed, "
                "since the token would be sent there; check server_address",
            )
        return location

    def take_answer(self) -> requests.Response:
        """Return the last answer to a request of this thread, and discard it."""
        response, self._local.answer = getattr(self._local, "answer", None), None
        if response is None:
            raise BadAnswer("there was no answer")
        return response


def _reason(response: requests.Response) -> str:
    """Return the error message of the service, from a JSON document or a web page."""
    text, document = response.text[:10_000], None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
    if not isinstance(document, dict):
        words = re.sub(r"(?s)<(head|style|script)\b.*?</\1>|<[^>]*>", " ", text)
        return re.sub(r"\s+", " ", words).strip()[:200] or str(response.reason or "")
    message = document.get("message") or document.get("error") or document.get("msg") or ""
    data = document.get("data")
    form = data.get("tos_form_url") if isinstance(data, dict) else None
    return f"{message}, accept the terms of service at {form}" if form else str(message)[:200]


def _checked(client: type, timeout: tuple[float, float]) -> Any:
    """Return a caveclient class that makes all of its requests through a `CheckedSession`."""

    def set_session(self: Any, session: object) -> None:
        self.checked_session = CheckedSession(timeout)

    session = property(lambda self: self.checked_session, set_session)
    return type(client.__name__, (client,), {"session": session})


@dataclass(frozen=True)
class Answer:
    """The rows returned by a query, in no particular order."""

    # integers as int64, other numbers as double, text as string, booleans as bool, times as
    # microseconds, positions as three columns ``X_position_x``, ``_y``, ``_z``
    table: pa.Table
    # the row limit if the answer has that many rows and may be truncated; None if it is complete
    limited_to: int | None = None
    # voxel size of the positions, if the service states it
    resolution_nm: tuple[float, ...] | None = None


def read_answer(content: bytes, headers: Mapping[str, str]) -> Answer:
    """Read the body and the headers of an answer."""
    kind = headers.get("Content-Type", "")
    if "arrow" not in kind:
        raise BadAnswer(f"the answer is {kind or 'of no type'}, expected an Arrow stream")
    if not content.endswith(_STREAM_END):
        raise BadAnswer(f"the answer of {len(content)} bytes breaks off before its end mark")
    with pa.ipc.open_stream(content) as reader:
        table = reader.read_all()
    limit = _LIMITED.search(headers.get("Warning", ""))
    if len(set(table.column_names)) < table.num_columns:
        raise BadAnswer(f"the answer has columns of the same name, {table.column_names}")
    resolution = re.findall(r"\d+(?:\.\d+)?", headers.get("dataframe_resolution", ""))
    return Answer(
        plain_types(table),
        int(limit[1]) if limit else None,
        tuple(map(float, resolution)) if len(resolution) == 3 else None,
    )


def _as_list(document: Any) -> list[Any]:
    if not isinstance(document, list):
        raise BadAnswer(f"the answer is a {type(document).__name__}, expected a list")
    return document


def _as_number(document: Any) -> int:
    if isinstance(document, bool) or not isinstance(document, int) or document < 0:
        raise BadAnswer(f"the answer is {document!r}, expected a number of rows")
    return document


def _filter_values(filters: Filters | None) -> dict[str, list[Any]]:
    """Return the values of filters as plain Python values, for JSON."""
    lists = {}
    for column, values in (filters or {}).items():
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values))
        if array.dtype.kind == "f" and array.size:
            raise SchemaError(
                f"the filter of {column} holds floats, expected integers: 18-digit ids are rounded "
                "by floats; read the ids again as int64"
            )
        lists[column] = list(array.tolist())
    return lists


# ----------------------------------------------------------------------------------- the service


class CaveSource(TableSource):
    """Tables of one materialization version from the CAVE service.

    Requests are made only when needed. Transient failures are retried with increasing waits;
    refusals of the service raise at once. Threads may share a source. `TableSource` describes
    `available_tables`, `read` and `provenance`; tables are sorted by id, have positions as three
    columns, and are not kept on disk.

    Parameters
    ----------
    version : int
        Materialization version.
    datastack : str, optional
        Name of the datastack.
    server_address : str, optional
        Address of the service; by default the one that caveclient knows for the datastack.
    auth_token : str, optional
        Token; by default the one in caveclient's token file. It is only kept in memory, never
        shown and not pickled: an unpickled source reads that file.
    timeout : tuple of float, optional
        Seconds to wait for a connection, and for the next bytes of an answer.
    retry : Retry, optional
        How often to repeat a request, and how long to wait before that.
    connections : int, optional
        Number of simultaneous requests.

    Attributes
    ----------
    scope : str
        ``"requested"``: only synapses between requested neurons are returned.
    row_limit : int or None
        Maximum number of rows of an answer, once an answer has reached it.

    Raises
    ------
    SchemaError
        If the version is not an integer, the token contains invalid characters, or a filter holds
        floats.
    SourceError
        If the service refuses a request, or has no such version, table or column.
    IncompleteDownloadError
        If requests keep failing, or the number of rows is not the service's count.

    Examples
    --------
    >>> CaveSource(1718, auth_token="0123456789abcdef")
    CaveSource(1718, datastack='minnie65_public')
    >>> source = CaveSource(1718)
    >>> source.versions(), source.status(), source.timestamp()  # doctest: +SKIP
    >>> source.available_tables(), source.synapse_table()  # doctest: +SKIP
    >>> source.count("nucleus_detection_v0")  # doctest: +SKIP
    >>> nuclei = source.read("nucleus_detection_v0")  # doctest: +SKIP
    >>> source.provenance("nucleus_detection_v0")["sha256"]  # doctest: +SKIP
    >>> some = source.query("nucleus_detection_v0", filter_in={"id": [1, 2]})  # doctest: +SKIP
    >>> source.close()
    """

    scope = "requested"

    def __init__(
        self,
        version: int,
        *,
        datastack: str = "minnie65_public",
        server_address: str | None = None,
        auth_token: str | None = None,
        timeout: tuple[float, float] = (10.0, 300.0),
        retry: Retry | None = None,
        connections: int = 16,
    ) -> None:
        self.version = whole_number("version", version, 1)
        self.datastack = datastack
        self.server_address = server_address.rstrip("/") if server_address else None
        self.timeout = timeout
        self.retry = as_retry(retry)
        self.connections = connections
        self.row_limit: int | None = None
        self._secret = Secret(auth_token)
        self._names: list[str] | None = None
        self._time: str | None = None
        self._read: dict[str, dict[str, Any]] = {}
        self.__setstate__({})

    def __repr__(self) -> str:
        return f"CaveSource({self.version}, datastack={self.datastack!r})"

    def __getstate__(self) -> dict[str, Any]:
        connection = ("_lock", "_materialize", "_record")
        return {name: value for name, value in self.__dict__.items() if name not in connection}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._materialize: Any = None
        self._record: dict[str, Any] = {}

    def __enter__(self) -> CaveSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            client, self._materialize = self._materialize, None
        if client is not None:
            client.session.close()

    def _call(self, ask: Callable[[], Result], what: str, at_most: int | None = None) -> Result:
        def ask_checked() -> Result:
            try:
                return ask()
            except (*_OTHER_FORM, RecursionError) as error:
                # caveclient and `ask` take an answer apart, whatever JSON it is.
                if isinstance(error, MicronsXrError | OSError):
                    raise
                raise BadAnswer(f"the answer is of another form ({describe(error)})") from None

        return attempt(
            self.retry,
            ask_checked,
            f"{what} of {self.datastack} v{self.version}",
            advice=_advice(self.datastack, self.version),
            # Looked up at each call: connecting may read a token from caveclient's file.
            clean=lambda text: self._secret.clean(text),
            at_most=at_most,
        )

    def _client(self) -> Any:
        """Return caveclient's client of the materialization service, connected once."""
        with self._lock:
            if self._materialize is None:
                address, auth = self._log_in()
                self._materialize = self._call(
                    lambda: self._connect(address, auth),
                    "the connection to the service",
                    _CONNECT_ATTEMPTS,
                )
            return self._materialize

    def _log_in(self) -> tuple[str, Any]:
        """Return the address of the service, and caveclient's authentication object."""
        from caveclient.auth import AuthClient
        from caveclient.datastack_lookup import handle_server_address
        from caveclient.endpoints import default_global_server_address

        address = handle_server_address(self.datastack, self.server_address, write=False)
        known = datastack_entry(self.datastack, "server")
        address = (address or known or default_global_server_address).rstrip("/")
        auth, problem = None, ""
        try:
            auth = AuthClient(token=self._secret.value, server_address=address)
            secret = Secret(auth.token)
        except Exception as error:  # the file may hold anything
            problem = type(error).__name__
        if problem:  # raised outside of except: the error of the JSON reader holds the file
            raise SourceError(
                f"caveclient's token file cannot be read ({problem}), expected a JSON object with "
                f"the token as text: write it again; {_token_help(self.datastack)}"
            )
        self._secret = secret
        return address, auth

    def _connect(self, address: str, auth: Any) -> Any:
        from caveclient.infoservice import InfoServiceClient
        from caveclient.materializationengine import MaterializationClient

        # Disable caveclient's retries: they would multiply with ours, and wait without limit.
        options = {
            "datastack_name": self.datastack,
            "auth_client": auth,
            "max_retries": 0,
            "pool_maxsize": self.connections,
        }
        info_client = _checked(InfoServiceClient, self.timeout)
        info = info_client(server_address=address, api_version=2, **options)
        self._record = dict(info.get_datastack_info())
        server = self._record["local_server"].rstrip("/")
        info.session.close()
        if address.startswith("https://") and not server.startswith("https://"):
            raise Refused(
                200,
                f"the record of the datastack names the server {server[:80]}, where the token "
                "would be sent without encryption; check server_address",
            )
        # A fixed API version: to find the latest one caveclient makes a request and, if that
        # fails, silently and permanently uses an old version.
        client = _checked(MaterializationClient, self.timeout)(
            server_address=server, version=self.version, api_version=3, **options
        )
        # caveclient never asks again, and refuses all queries.
        if client.server_version is None:
            raise BadAnswer("the service does not state its version (HTTP 404)")
        return client

    def versions(self, expired: bool = False) -> list[int]:
        """Return the versions of the datastack that the service serves.

        Parameters
        ----------
        expired : bool, optional
            Also those that have left it, of which most are archived as files.

        Returns
        -------
        list of int
            Ascending.
        """
        client = self._client()

        def ask() -> list[int]:
            return sorted(map(_as_number, _as_list(client.get_versions(expired=expired))))

        return self._call(ask, "the list of versions")

    def status(self) -> Literal["served", "expired", "unknown"]:
        """Return whether the service serves the version.

        Returns
        -------
        {"served", "expired", "unknown"}
            An expired version has left the service, and may be archived as files.
        """
        if self.version in self.versions():
            return "served"
        return "expired" if self.version in self.versions(expired=True) else "unknown"

    def timestamp(self) -> str:
        """Return when the version was materialized.

        Returns
        -------
        str
            ISO time in UTC.
        """
        if self._time is None:
            client = self._client()

            def ask() -> str:
                # caveclient cannot parse a time without a fraction of a second: parse it here.
                with contextlib.suppress(*_OTHER_FORM):
                    client.get_version_metadata(version=self.version)
                stated = client.session.take_answer().json()["time_stamp"]
                if not isinstance(stated, str) or pd.isna(time := pd.Timestamp(stated)):
                    raise BadAnswer(f"the time is {stated!r}, expected text")
                time = time.tz_convert("UTC") if time.tzinfo else time.tz_localize("UTC")
                return time.isoformat()

            self._time = self._call(ask, "the time")
        return self._time

    def synapse_table(self) -> str | None:
        """Return the name of the datastack's table of synapses.

        Returns
        -------
        str or None
            None if the datastack has none.
        """
        self._client()
        name = self._record.get("synapse_table")
        return name if isinstance(name, str) else None

    def available_tables(self) -> list[str]:
        if self._names is None:
            client = self._client()
            names = self._call(
                lambda: _as_list(client.get_tables(version=self.version)), "the list of tables"
            )
            # A name that cannot be that of a file is asked for by nobody.
            self._names = sorted(n for n in names if isinstance(n, str) and TABLE_NAME.fullmatch(n))
        return list(self._names)

    def count(
        self,
        table: str,
        filter_in: Filters | None = None,
        *,
        filter_range: Ranges | None = None,
    ) -> int:
        """Return how many rows a table has.

        Parameters
        ----------
        table : str
            Table name.
        filter_in : mapping of str to sequence, optional
            Allowed values by column. With a filter, even an empty one, the result is the number of
            rows that `query` would return without a row limit; without a filter, it is the
            service's own number, which may include rows that are no longer valid.
        filter_range : mapping of str to (int or None, int or None), optional
            As for `query`.

        Returns
        -------
        int
            Number of rows.

        Raises
        ------
        SchemaError
            If a filter holds floats.
        """
        client, values = self._client(), _filter_values(filter_in)

        def ask() -> int:
            if filter_in is None and filter_range is None:
                return _as_number(client.get_annotation_count(table, version=self.version))
            counts = self._query(client, table, values, filter_range, get_counts=True).table
            if counts.column_names != ["count"] or counts.num_rows != 1:
                raise BadAnswer(f"the answer has {counts.shape} rows and columns, expected 1, 1")
            return _as_number(counts["count"][0].as_py())

        return self._call(ask, f"the number of rows of {table}")

    def query(
        self,
        table: str,
        *,
        filter_in: Filters | None = None,
        filter_range: Ranges | None = None,
        select_columns: Sequence[str] | None = None,
    ) -> Answer:
        """Return rows of one table, not joined with any other, in no particular order.

        Parameters
        ----------
        table : str
            Table name.
        filter_in : mapping of str to sequence, optional
            Allowed values by column.
        filter_range : mapping of str to (int or None, int or None), optional
            Lower bound (inclusive) and upper bound (exclusive) by column.
        select_columns : sequence of str, optional
            Columns; positions by their base name. Root ids come with their supervoxel ids.

        Returns
        -------
        Answer
            The rows, and whether they may be truncated at the service's row limit.

        Raises
        ------
        SchemaError
            If a filter holds floats.
        """
        client, values = self._client(), _filter_values(filter_in)
        columns = list(select_columns) if select_columns is not None else None
        answer = self._call(
            lambda: self._query(client, table, values, filter_range, select_columns=columns),
            f"the table {table}",
        )
        if answer.limited_to is not None:
            self.row_limit = max(self.row_limit or 0, answer.limited_to)
        return answer

    def _query(
        self,
        client: Any,
        table: str,
        values: Mapping[str, list[Any]],
        filter_range: Ranges | None,
        **options: Any,
    ) -> Answer:
        ranges = (filter_range or {}).items()
        client.query_table(
            table,
            filter_in_dict=values or None,
            filter_greater_equal_dict={k: low for k, (low, _) in ranges if low is not None} or None,
            filter_less_dict={k: high for k, (_, high) in ranges if high is not None} or None,
            materialization_version=self.version,
            split_positions=True,
            metadata=False,
            merge_reference=False,
            log_warning=False,
            **options,
        )
        # Parsed from the bytes: caveclient's DataFrame does not show whether it is truncated.
        response = client.session.take_answer()
        return read_answer(response.content, response.headers)

    def read(self, name: str) -> pd.DataFrame:
        table, record = fetch_table(self, name)
        frame = to_frame(table)
        if record["resolution_nm"] is not None:
            frame.attrs[RESOLUTION] = list(record["resolution_nm"])
        self._read[name] = {"name": name, "rows": len(frame), "sha256": frame_sha256(frame)}
        return frame

    def provenance(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            self.read(name)
        return dict(self._read[name])


# ---------------------------------------------------------------------------------- whole tables


def fetch_table(source: CaveSource, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """Fetch all rows of a table, sorted by id; return also its resolution and number of queries."""

    def ask() -> tuple[pa.Table, dict[str, Any]]:
        expected = source.count(name)
        answers = _query_whole(source, name, expected)
        # Types may differ if a column has only nulls in one of the answers.
        try:
            table = pa.concat_tables([a.table for a in answers], promote_options="permissive")
        except pa.ArrowException as error:
            raise BadAnswer(f"answers differ in their columns ({describe(error)})") from None
        table = table.sort_by("id").combine_chunks()
        n_ids = pc.count_distinct(table["id"]).as_py()
        if n_ids != table.num_rows:
            raise BadAnswer(f"{table.num_rows} rows with {n_ids} ids arrived, expected unique ids")
        if table.num_rows != expected:
            # That number includes rows that are no longer valid, which queries do not return.
            # Digits may also be missing from it, which leaves a number that looks correct.
            valid = source.count(name, {})
            if table.num_rows != valid:
                raise BadAnswer(
                    f"{table.num_rows} rows arrived, the service counts {valid}"
                    + (f" ({expected} with those no longer valid)" if expected > valid else "")
                )
        stated = {answer.resolution_nm for answer in answers}
        if len(stated) > 1:
            raise BadAnswer(f"positions arrived at several resolutions, {stated}")
        return table, {"resolution_nm": stated.pop(), "queries": len(answers)}

    what = f"the table {name} of {source.datastack} v{source.version}"
    return attempt(source.retry, ask, what, at_most=_TABLE_ATTEMPTS)


def _query_whole(source: CaveSource, name: str, expected: int) -> list[Answer]:
    """Query a table, in ranges of ids if the row limit would truncate it."""

    def query(**options: Any) -> Answer:
        answer = source.query(name, **options)
        if "id" not in answer.table.column_names:
            raise SourceError(
                f"{name} has no column 'id', found {answer.table.column_names}: it is not a table "
                "of annotations and cannot be fetched without loss"
            )
        ids = answer.table["id"]
        if not pa.types.is_integer(ids.type) or ids.null_count:
            raise BadAnswer(
                f"the ids are {ids.type} with {ids.null_count} nulls, expected integers"
            )
        return answer

    too_long = source.row_limit is not None and expected > source.row_limit
    first = query(select_columns=["id"]) if too_long else None
    if first is None or first.limited_to is None:
        first = query()
    if first.limited_to is None:
        return [first]
    # The table may have exactly as many rows as the limit. Two counts must agree, because digits
    # may be missing in the first one.
    if not too_long and first.table.num_rows == expected == source.count(name, {}):
        return [first]
    ranges = _split(first, None, None, int(np.ceil(expected / (_FILLING * first.limited_to))))
    answers = []
    while ranges:
        low, high = ranges.pop()
        answer = query(filter_range={"id": (low, high)})
        one_id = low is not None and high is not None and high - low == 1
        if answer.limited_to is None or one_id:
            answers.append(answer)
        else:
            ranges += _split(answer, low, high, 2)
    return answers


def _split(
    answer: Answer, low: int | None, high: int | None, n_parts: int
) -> list[tuple[int | None, int | None]]:
    """Split a range of ids whose answer was truncated."""
    ids = answer.table["id"].to_numpy()
    if not len(ids):
        raise BadAnswer("an answer that was truncated at the row limit has no rows")
    first, last = ids.min(), ids.max()
    if (low is not None and first < low) or (high is not None and last >= high):
        raise SourceError(
            f"ids from {low} to {high} were requested, but {first} to {last} arrived: the service "
            "does not filter by ranges, so tables above its row limit cannot be fetched from it; "
            "use source='archive'"
        )
    return split_range(ids, low, high, n_parts)
