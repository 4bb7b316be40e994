"""A CAVE service on 127.0.0.1 for tests: real HTTP, read by the real caveclient.

It answers what `microns_xr` asks: the record of a datastack, versions, tables, counts, queries of
one table, and the files of archived versions. Any other request, and any filter that it does not
know, is refused.

>>> import pandas as pd
>>> import microns_xr as mx
>>> nuclei = pd.DataFrame({"id": [1, 2], "pt_root_id": [864691135000000001, 864691135000000002]})
>>> with CaveServer({"nucleus_detection_v0": nuclei}) as server:
...     with mx.sources.CaveSource(1718, server_address=server.url, auth_token="none") as source:
...         source.count("nucleus_detection_v0")
2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import pytest

from .faults import KINDS
from .server import CaveServer

__all__ = ["KINDS", "CaveServer", "cave_fixture"]


def cave_fixture(make: Callable[[], Mapping[str, pd.DataFrame]], **options: Any) -> Any:
    """Return a pytest fixture that serves the tables of `make`."""

    @pytest.fixture
    def cave() -> Iterator[CaveServer]:
        with CaveServer(make(), **options) as server:
            yield server

    return cave
