"""Tables of a release from the CAVE service, through caveclient."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import pandas as pd

from microns_xr.source.cave_service import CaveService
from microns_xr.source.download import fetch_table
from microns_xr.source.files import frame_sha256, to_frame
from microns_xr.source.retry import Retry
from microns_xr.source.wire import Answer, as_list

__all__ = ["Answer", "CaveSource"]


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
