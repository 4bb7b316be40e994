"""The CAVE service as one release sees it: connection, counts and queries, asked until answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from microns_xr.errors import SchemaError, SourceError
from microns_xr.source.access import TOKEN_HELP, Secret, refusal_advice
from microns_xr.source.retry import BadAnswer, Retry
from microns_xr.source.wire import Answer, as_number, filter_values, read_answer

__all__ = ["CaveService"]

Result = TypeVar("Result")
Ranges = Mapping[str, tuple[int | None, int | None]]
Filters = Mapping[str, Sequence[Any]]

_CONNECT_ATTEMPTS = 5  # a wrong address is not worth the patience of a night's download
_OF_THE_CONNECTION = ("_lock", "_materialize", "_record")


class CaveService:
    """Requests to the CAVE service; see `microns_xr.source.cave.CaveSource`, which is one."""

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
        from microns_xr.source.session import checked

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
