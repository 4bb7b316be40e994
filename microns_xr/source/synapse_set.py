"""Downloaded synapses: the sets that lie in a folder, and what each of them holds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from microns_xr.errors import IncompleteDownloadError, SourceError, nearest_words
from microns_xr.source.files import file_sha256
from microns_xr.source.synapse_folder import RequestFolder

__all__ = ["SynapseSet", "list_requests", "open_request"]


class SynapseSet:
    """The synapses of one request, as `download_synapses` keeps them.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder of all requests.
    key : str
        Key of the request.

    Attributes
    ----------
    key : str
        Names it, as in ``Release.connectivity(request=key)``.
    path : pathlib.Path
        The parquet file of the result: sorted by post, pre and id, in row groups.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self._folder = RequestFolder(folder, key)
        self.key = key
        self.path = self._folder.result

    def __repr__(self) -> str:
        state = f"{self.rows} synapses" if self.is_complete else "incomplete"
        return f"<SynapseSet {self.key}: {state}>"

    @property
    def is_complete(self) -> bool:
        """Whether all synapses of the request are here."""
        return self._folder.is_complete()

    @cached_property
    def request(self) -> dict[str, Any]:
        """What was asked: ``datastack``, ``version``, ``table``, ``timestamp``, ``positions``.

        And ``pre`` and ``post``: root ids, int64, sorted, unique, or None for all.

        Raises
        ------
        SourceError
            If the folder of the request is damaged.
        """
        asked = self._folder.request()
        names = ("datastack", "version", "table", "pre", "post", "positions")
        document = self._folder.document("request") or {}
        return {**{n: getattr(asked, n) for n in names}, "timestamp": document.get("timestamp")}

    @property
    def rows(self) -> int:
        """How many synapses it holds.

        Raises
        ------
        IncompleteDownloadError
            If it is not complete.
        """
        return int(self._complete()["rows"])

    def _complete(self) -> dict[str, Any]:
        complete = self._folder.document("complete")
        if complete is None or not self.is_complete:
            raise IncompleteDownloadError(
                f"the synapses of request {self.key} are not all here: run the same "
                "download_synapses again, it continues where it was"
            )
        return complete

    def read(self) -> pd.DataFrame:
        """Return the synapses.

        Returns
        -------
        pandas.DataFrame
            ``id``, ``pre_pt_root_id``, ``post_pt_root_id``, ``size`` (voxels of 4x4x40 nm), and
            with positions ``ctr_pt_position_x``, ``_y``, ``_z`` (voxels), all int64; sorted by
            post, pre and id. Autapses are in it, and whatever else the table holds.

        Raises
        ------
        IncompleteDownloadError
            If the download has not ended.
        SourceError
            If the file is damaged.
        """
        complete = self._complete()
        if file_sha256(self.path) != complete["sha256"]:
            raise SourceError(
                f"{self.path} is not as it was written: remove it, and download again"
            )
        try:
            with pq.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                # Column by column, so that they are not in memory twice; copied, because Arrow's
                # own memory cannot be written.
                columns = {name: np.array(file.read([name])[name].to_numpy()) for name in names}
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.path} cannot be read ({error})") from error
        return pd.DataFrame(columns, copy=False)

    def provenance(self) -> dict[str, Any]:
        """Return what the set is: ``name``, ``rows``, ``sha256`` of its file, and of what release.

        Raises
        ------
        IncompleteDownloadError
            If it is not complete.
        """
        complete = self._complete()
        asked = (self._folder.document("request") or {}).get("request", {})
        release = {name: asked.get(name) for name in ("datastack", "version", "table")}
        return {"name": self.key, **complete, **release}


def list_requests(folder: str | Path) -> list[SynapseSet]:
    """Return the requests that lie in a folder, complete or not.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder of all requests; need not exist.

    Returns
    -------
    list of SynapseSet
        Sorted by key.

    Examples
    --------
    >>> list_requests("no/such/folder")
    []
    """
    found = Path(folder).expanduser().glob("*/request.json")
    return [SynapseSet(folder, path.parent.name) for path in sorted(found)]


def open_request(folder: str | Path, key: str | None = None) -> SynapseSet:
    """Return the set of synapses of one request.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder of all requests.
    key : str, optional
        Which; needed where there are several.

    Returns
    -------
    SynapseSet
        A complete one.

    Raises
    ------
    SourceError
        If there is none, there are several and none is named, or the named one is not there.
    IncompleteDownloadError
        If it is not complete.

    Examples
    --------
    >>> open_request("no/such/folder")
    Traceback (most recent call last):
    microns_xr.errors.SourceError: there are no synapses in no/such/folder: ...
    """
    sets = {found.key: found for found in list_requests(folder)}
    if not sets:
        raise SourceError(f"there are no synapses in {folder}: download_synapses fetches them")
    if key is None:
        if len(sets) > 1:
            said = (f"{k}{'' if s.is_complete else ' (incomplete)'}" for k, s in sets.items())
            raise SourceError(
                f"{folder} holds {len(sets)} sets of synapses, {', '.join(said)}: choose one with "
                f"request={next((k for k, s in sets.items() if s.is_complete), next(iter(sets)))!r}"
            )
        key = next(iter(sets))
    if key not in sets:
        near = nearest_words(key, sets)
        raise SourceError(
            f"there is no request {key!r} in {folder}, found {', '.join(sets)}"
            + (f"; nearest: {', '.join(near)}" if near else "")
        )
    chosen = sets[key]
    if not chosen.is_complete:
        raise IncompleteDownloadError(
            f"the synapses of request {key} are not all here: run the same download_synapses "
            "again, it continues where it was"
        )
    return chosen
