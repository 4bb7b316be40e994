"""A CAVE service on 127.0.0.1 for tests: real HTTP, read by the real caveclient.

>>> import pandas as pd
>>> nuclei = pd.DataFrame({"id": [1, 2], "pt_root_id": [864691135000000001, 864691135000000002]})
>>> with CaveServer({"nucleus_detection_v0": nuclei}) as server:
...     with open_client(server) as client:
...         client.materialize.get_annotation_count("nucleus_detection_v0")
2
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import pytest

from .faults import KINDS, Fault, FaultQueue
from .server import CaveServer, Logged
from .tables import REFERENCE_TABLES

__all__ = [
    "KINDS",
    "REFERENCE_TABLES",
    "CaveServer",
    "Fault",
    "FaultQueue",
    "Logged",
    "cave_fixture",
    "open_client",
]


def cave_fixture(make: Callable[[], Mapping[str, pd.DataFrame]], **options: Any) -> Any:
    """Return a pytest fixture that serves the tables of `make`.

    ``cave = cave_fixture(my_tables, row_limit=10)`` at the top of a test module makes `cave` an
    argument of its tests.
    """

    @pytest.fixture
    def cave() -> Iterator[CaveServer]:
        with CaveServer(make(), **options) as server:
            yield server

    return cave


@contextlib.contextmanager
def open_client(
    server: CaveServer, *, auth_token: str | None = None, **options: Any
) -> Iterator[Any]:
    """Give a real CAVEclient of a server, and close the connections that it keeps."""
    from caveclient import CAVEclient

    client = CAVEclient(
        server.service.datastack,
        server_address=server.url,
        auth_token=auth_token or server.service.token or "none",
        write_server_cache=False,
        **options,
    )
    try:
        yield client
    finally:
        for part in (client._info, client._materialize, client._schema):
            if part is not None:
                part.session.close()
