"""Tables of a release from the CAVE service, through caveclient."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
import pandas as pd
import requests

from microns_xr.errors import SchemaError, SourceError
from microns_xr.sources.cache import fetch_table
from microns_xr.sources.net import BadAnswer, Refused, Retry
from microns_xr.sources.tables import (
    Answer,
    as_list,
    as_number,
    filter_values,
    frame_sha256,
    read_answer,
    to_frame,
)

# Who may ask: the token, which is used and never shown, and what to do about a refusal.


TOKEN_HELP = (
    "get a token at https://global.daf-apis.com/auth/api/v1/create_token and pass it as "
    "auth_token=..., or keep it where caveclient looks for it, once, with "
    "caveclient.CAVEclient().auth.save_token(token=...)"
)


class Secret:
    """A token, or none, that no repr, no traceback and no pickle shows."""

    __slots__ = ("value",)

    def __init__(self, value: str | None = None) -> None:
        if value is not None:
            value = str(value).strip()
            if not re.fullmatch(r"[!-~]+", value):
                raise SchemaError(f"auth_token is empty or holds spaces or signs: {TOKEN_HELP}")
        self.value = value

    def __repr__(self) -> str:
        return "<token>" if self.value else "<no token>"

    def __reduce__(self) -> tuple[type[Secret], tuple[()]]:
        return Secret, ()

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __copy__(self) -> Secret:
        return self

    def clean(self, text: str) -> str:
        """Take the token out of a text, however it is written there."""
        if self.value:
            for form in {self.value, repr(self.value)[1:-1], quote(self.value, safe="")}:
                text = text.replace(form, "<token>")
        return text


def refusal_advice(datastack: str, version: int) -> dict[int, str]:
    """Return what to do about each status that the CAVE service refuses with."""
    return {
        400: "check the names of tables and columns",
        401: TOKEN_HELP,
        403: f"the token may not read {datastack}: accept its terms of service, or {TOKEN_HELP}",
        404: "the service has no such datastack, version or table: see mx.supported_versions() "
        "and available_tables()",
        410: f"{datastack} v{version} has left the service and is archived as files: use "
        f"source='archive', as in mx.Release({version}, source='archive')",
        413: "ask for fewer ids at once",
    }


# A session of requests that notices what caveclient does not.
#
# It sets time limits on every request, refuses error statuses before caveclient sees them (which
# opens a web browser on one of them), takes a login page for the refusal it is, and keeps the
# last answer of each thread with its headers.


_LOGIN = re.compile(r"/(?:sticky_)?auth(?:orize)?(?:/|$)|/login(?:/|$)")


class CheckedSession(requests.Session):
    """A session with time limits that raises `Refused` for every error status."""

    def __init__(self, timeout: tuple[float, float]) -> None:
        super().__init__()
        self._timeout = timeout
        self._local = threading.local()

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request; see `requests.Session.send`."""
        options["timeout"] = options.get("timeout") or self._timeout
        self._local.answer = None
        response = super().send(request, **options)
        check(response)
        self._local.answer = response
        return response

    def take_answer(self) -> requests.Response:
        """Return the last answer to a request of this thread, and forget it."""
        response, self._local.answer = getattr(self._local, "answer", None), None
        if response is None:
            raise BadAnswer("there was no answer")
        return response


def check(response: requests.Response) -> None:
    """Raise `Refused` unless an answer is the one that was asked for."""
    for step in (*response.history, response):
        target = urlsplit(step.headers.get("Location", ""))
        if step.is_redirect and _LOGIN.search(target.path):
            raise Refused(401, f"the service asks to log in at {target.netloc}{target.path}")
    status = response.status_code
    if status < 400:
        return
    if status == 404 and urlsplit(response.url).path.endswith("/version"):
        return  # a server too old to have this endpoint, which caveclient knows of
    reason = _reason(response)
    if status == 500 and (inner := re.match(r"(4\d\d)\b", reason)):
        status = int(inner[1])
    raise Refused(status, reason, response.headers.get("Retry-After"))


def _reason(response: requests.Response) -> str:
    """Return the service's own words, of a JSON document or a page."""
    text = response.text[:10_000]
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        words = re.sub(r"(?s)<(head|style|script)\b.*?</\1>|<[^>]*>", " ", text)
        return re.sub(r"\s+", " ", words).strip()[:200] or str(response.reason or "")
    said = document.get("message") or document.get("error") or document.get("msg") or ""
    data = document.get("data")
    form = data.get("tos_form_url") if isinstance(data, dict) else None
    return f"{said}, accept the terms of service at {form}" if form else str(said)[:200]


def checked(client: type, timeout: tuple[float, float]) -> Any:
    """Return a class of caveclient whose every request goes through a `CheckedSession`."""

    def put_session(self: Any, plain: object) -> None:
        self.checked_session = CheckedSession(timeout)

    session = property(lambda self: self.checked_session, put_session)
    return type(client.__name__, (client,), {"session": session})


# The CAVE service as one release sees it: connection, counts and queries, asked until answered.


Result = TypeVar("Result")
Ranges = Mapping[str, tuple[int | None, int | None]]
Filters = Mapping[str, Sequence[Any]]

_CONNECT_ATTEMPTS = 5  # a wrong address is not worth the patience of a night's download
_OF_THE_CONNECTION = ("_lock", "_materialize", "_record")


class CaveService:
    """Requests to the CAVE service; see `microns_xr.sources.cave.CaveSource`, which is one."""

    def __init__(
        self,
        version: int,
        datastack: str,
        server_address: str | None,
        auth_token: str | None,
        timeout: tuple[float, float],
        retry: Retry | None,
        connections: int,
    ) -> None:
        if isinstance(version, bool) or not isinstance(version, int | np.integer):
            raise SchemaError(f"version is {version!r}, expected a number such as 1718")
        self.version: int | None = int(version)
        self._version = int(version)
        self.datastack = datastack
        self.server_address = server_address.rstrip("/") if server_address else None
        self.timeout = timeout
        self.retry = retry or Retry()
        self.connections = connections
        self.row_limit: int | None = None
        self._secret = Secret(auth_token)
        self._disconnected()

    def _disconnected(self) -> None:
        self._lock = threading.RLock()
        self._materialize: Any = None
        self._record: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OF_THE_CONNECTION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._disconnected()

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            client, self._materialize = self._materialize, None
        if client is not None:
            client.session.close()

    def _call(self, ask: Callable[[], Result], what: str, attempts: int | None = None) -> Result:
        return self.retry.call(
            ask,
            f"{what} of {self.datastack} v{self._version}",
            advice=refusal_advice(self.datastack, self._version),
            # By name: connecting may find a token in caveclient's file.
            clean=lambda text: self._secret.clean(text),
            attempts=attempts,
        )

    # ------------------------------------------------------------------------- the connection

    def _clients(self) -> dict[str, Any]:
        """Return the parts of caveclient by name."""
        raise NotImplementedError

    def _client(self) -> Any:
        """Return the client of the materialization service, connected once."""
        with self._lock:
            if self._materialize is None:
                connect = self._connection()
                attempts = min(self.retry.attempts, _CONNECT_ATTEMPTS)
                self._materialize = self._call(connect, "the connection to the service", attempts)
            return self._materialize

    def _connection(self) -> Callable[[], Any]:
        # requests comes with caveclient, which is imported when it is used.

        cave = self._clients()
        address = cave["handle_server_address"](self.datastack, self.server_address, write=False)
        address = (address or cave["default_global_server_address"]).rstrip("/")
        auth, problem = None, ""
        try:
            auth = cave["AuthClient"](token=self._secret.value, server_address=address)
        except (ValueError, OSError) as error:
            problem = type(error).__name__
        if auth is None:  # raised out here: the error of the JSON reader holds the whole file
            raise SourceError(
                f"caveclient's file of the token cannot be read ({problem}): write it again; "
                f"{TOKEN_HELP}"
            )
        self._secret = Secret(auth.token)
        # No retries of its own: they would multiply with ours, and wait without bound.
        options = {"auth_client": auth, "max_retries": 0, "pool_maxsize": self.connections}
        info_client = checked(cave["InfoServiceClient"], self.timeout)
        materialize_client = checked(cave["MaterializationClient"], self.timeout)

        def connect() -> Any:
            info = info_client(
                server_address=address, datastack_name=self.datastack, api_version=2, **options
            )
            self._record = dict(info.get_datastack_info())
            info.session.close()
            if not isinstance(self._record.get("local_server"), str):
                raise BadAnswer("the record of the datastack names no server")
            # The version of the interface by number: asked for the latest, caveclient takes an old
            # one for good, without a word, whenever that question fails.
            return materialize_client(
                server_address=self._record["local_server"].rstrip("/"),
                datastack_name=self.datastack,
                version=self._version,
                api_version=3,
                **options,
            )

        return connect

    # ------------------------------------------------------------------------------------ rows

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
            Column to the values it may have. With one, also an empty one, the rows are counted
            that `query` would bring without a row limit; without, it is the service's own number
            of rows, which may include some that are no longer valid.
        filter_range : mapping of str to (int or None, int or None), optional
            As for `query`.

        Returns
        -------
        int
            Rows.

        Raises
        ------
        SourceError
            If the service refuses, or has no such table.
        IncompleteDownloadError
            If it fails again and again.
        """
        client = self._client()

        def ask() -> int:
            if filter_in is None and filter_range is None:
                return as_number(client.get_annotation_count(table, version=self._version))
            self._post(client, table, filter_in, filter_range, get_counts=True)
            counted = self._answer(client).table
            if counted.column_names != ["count"] or counted.num_rows != 1:
                raise BadAnswer(f"the answer has {counted.shape} rows and columns, expected 1, 1")
            return as_number(counted["count"][0].as_py())

        return self._call(ask, f"the number of rows of {table}")

    def query(
        self,
        table: str,
        *,
        filter_in: Filters | None = None,
        filter_range: Ranges | None = None,
        select_columns: Sequence[str] | None = None,
    ) -> Answer:
        """Return rows of one table, not joined with any other, in no order.

        Parameters
        ----------
        table : str
            Table name.
        filter_in : mapping of str to sequence, optional
            Column to the values it may have.
        filter_range : mapping of str to (int or None, int or None), optional
            Column to its least value, and to the first value beyond its greatest.
        select_columns : sequence of str, optional
            Columns; positions by their base name. A root id brings its supervoxel id.

        Returns
        -------
        Answer
            The rows, and whether the service's row limit may have cut them.

        Raises
        ------
        SourceError
            If the service refuses.
        SchemaError
            If a filter holds floats.
        IncompleteDownloadError
            If the service fails again and again.
        """
        client = self._client()

        def ask() -> Answer:
            self._post(client, table, filter_in, filter_range, select_columns)
            return self._answer(client)

        answer = self._call(ask, f"the table {table}")
        if answer.limited_to is not None:
            self.row_limit = max(self.row_limit or 0, answer.limited_to)
        return answer

    def _post(
        self,
        client: Any,
        table: str,
        filter_in: Filters | None,
        filter_range: Ranges | None = None,
        select_columns: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        ranges = (filter_range or {}).items()
        client.query_table(
            table,
            filter_in_dict={k: filter_values(k, v) for k, v in (filter_in or {}).items()} or None,
            filter_greater_equal_dict={k: least for k, (least, _) in ranges if least is not None}
            or None,
            filter_less_dict={k: beyond for k, (_, beyond) in ranges if beyond is not None} or None,
            select_columns=list(select_columns) if select_columns is not None else None,
            materialization_version=self._version,
            split_positions=True,
            metadata=False,
            merge_reference=False,
            log_warning=False,
            **options,
        )

    @staticmethod
    def _answer(client: Any) -> Answer:
        # From the bytes: the frame that caveclient makes of them does not say whether it was cut.
        response = client.session.take_answer()
        return read_answer(response.content, response.headers)


class CaveSource(CaveService):
    """Tables of one materialization version, asked of the CAVE service.

    Nothing is asked before it is needed. A request that fails in a way that passes is made again,
    with growing waits; one that the service refuses for good raises at once. Several threads may
    use one source.

    Parameters
    ----------
    version : int
        Materialization version.
    datastack : str, optional
        Name of the datastack.
    server_address : str, optional
        Address of the service; by default the one that caveclient knows for the datastack.
    auth_token : str, optional
        Token; by default the one in caveclient's own file. It is kept in memory only, shown
        nowhere, and not pickled: an unpickled source looks into that file.
    timeout : tuple of float, optional
        Seconds to wait for a connection, and for the next bytes of an answer.
    retry : Retry, optional
        How often and how patiently to ask again.
    connections : int, optional
        How many requests may be under way at once.

    Attributes
    ----------
    scope : str
        ``"requested"``: of synapses it gives those between the neurons that are asked for.
    row_limit : int or None
        The most rows of an answer, once an answer has met that limit.

    Raises
    ------
    SchemaError
        If the version is no integer, or the token holds signs that no token has.

    Examples
    --------
    >>> CaveSource(1718, auth_token="0123456789abcdef")
    CaveSource(1718, datastack='minnie65_public')
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
        super().__init__(
            version, datastack, server_address, auth_token, timeout, retry, connections
        )
        self._names: list[str] | None = None
        self._time: str | None = None
        self._read: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"CaveSource({self._version}, datastack={self.datastack!r})"

    def __enter__(self) -> CaveSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _clients(self) -> dict[str, Any]:
        from caveclient.auth import AuthClient
        from caveclient.datastack_lookup import handle_server_address
        from caveclient.endpoints import default_global_server_address
        from caveclient.infoservice import InfoServiceClient
        from caveclient.materializationengine import MaterializationClient

        return {
            "AuthClient": AuthClient,
            "handle_server_address": handle_server_address,
            "default_global_server_address": default_global_server_address,
            "InfoServiceClient": InfoServiceClient,
            "MaterializationClient": MaterializationClient,
        }

    def status(self) -> Literal["served", "expired", "unknown"]:
        """Say whether the service answers for the version.

        Returns
        -------
        {"served", "expired", "unknown"}
            Expired versions are archived as files.

        Raises
        ------
        SourceError
            If the service refuses.
        IncompleteDownloadError
            If it fails again and again; so for every method that asks the service.
        """
        client = self._client()
        what = "the list of versions"
        if self._version in self._call(lambda: as_list(client.get_versions()), what):
            return "served"
        every = self._call(lambda: as_list(client.get_versions(expired=True)), what)
        return "expired" if self._version in every else "unknown"

    def timestamp(self) -> str:
        """Return when the version was materialized.

        Returns
        -------
        str
            ISO time in UTC.

        Raises
        ------
        SourceError, IncompleteDownloadError
            As `status`.
        """
        if self._time is None:
            client = self._client()

            def ask() -> str:
                # caveclient reads no time without a fraction of a second; the answer is kept.
                with contextlib.suppress(ValueError):
                    client.get_version_metadata(version=self._version)
                time = pd.Timestamp(client.session.take_answer().json()["time_stamp"])
                time = time.tz_convert("UTC") if time.tzinfo else time.tz_localize("UTC")
                return time.isoformat()

            self._time = self._call(ask, "the time")
        return self._time

    def synapse_table(self) -> str | None:
        """Return the name of the datastack's table of synapses.

        Returns
        -------
        str or None
            None when the datastack has none.

        Raises
        ------
        SourceError, IncompleteDownloadError
            As `status`.
        """
        self._client()
        return self._record.get("synapse_table")

    def available_tables(self) -> list[str]:
        """Names of the tables that the version has, asked once.

        Returns
        -------
        list of str
            Sorted.

        Raises
        ------
        SourceError, IncompleteDownloadError
            As `status`.
        """
        if self._names is None:
            client = self._client()

            def ask() -> list[Any]:
                return as_list(client.get_tables(version=self._version))

            self._names = sorted(map(str, self._call(ask, "the list of tables")))
        return list(self._names)

    def read(self, name: str) -> pd.DataFrame:
        """Return one whole table, sorted by id; nothing is kept on disk.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        pandas.DataFrame
            Ids as int64 or Int64, text as object, positions as three columns.

        Raises
        ------
        SourceError
            If there is no such table.
        IncompleteDownloadError
            If other rows arrive than the service counts.
        """
        frame = to_frame(fetch_table(self, name).table)
        self._read[name] = {"name": name, "rows": len(frame), "sha256": frame_sha256(frame)}
        return frame

    def provenance(self, name: str) -> dict[str, Any]:
        """Return what is known of a table, which is read if it was not.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        dict
            ``name``, ``rows``, and ``sha256`` of names, dtypes and values.

        Raises
        ------
        SourceError, IncompleteDownloadError
            As `read`.
        """
        if name not in self._read:
            self.read(name)
        return dict(self._read[name])
