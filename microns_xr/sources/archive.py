"""Tables of a release that has left the service: files in a bucket, or in a folder."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from microns_xr.errors import (
    IncompleteDownloadError,
    SchemaError,
    SourceError,
    nearest,
    whole_number,
)
from microns_xr.files import file_sha256, write_error
from microns_xr.releases import ReleaseSpec, datastack_entry, release_spec, supported_versions
from microns_xr.sources.fetch import (
    FetchedFile,
    append_suffix,
    display_url,
    exists,
    fetch_file,
    find_file,
    list_names,
    local_path,
    require_md5,
)
from microns_xr.sources.net import Retry, as_retry, progress_bar
from microns_xr.sources.postgres_csv import (
    Block,
    Header,
    columns_of,
    finish_columns,
    parse_header,
    read_archived,
    read_blocks,
)
from microns_xr.sources.synapse_plan import Piece, Strategy
from microns_xr.sources.synapses import (
    POSITION,
    SYNAPSE_TABLE,
    Batch,
    RequestFolder,
    SynapseRequest,
    SynapseSet,
    integer_columns,
    make_request,
    sorted_synapses,
)
from microns_xr.sources.tables import TableSource, require_table_name, to_frame

logger = logging.getLogger(__name__)

_GOOGLE = "https://storage.googleapis.com/"
_VALID = "valid"
_HEADER, _DATA = "_header.csv", ".csv.gz"

_BATCH_ROWS = 1 << 20  # synapses of the request per batch: 60 MB
_BATCH_BYTES = 1 << 30  # unpacked bytes per batch, where few of the synapses are requested


class ArchiveSource(TableSource):
    """Tables of one materialization version, from the files it is archived as.

    Requests are made only when needed. A file is fetched once, resumed after interruptions, and
    checked before it is read; local files are read in place. `TableSource` describes `read` and
    `provenance`; tables are sorted by id and have positions as three columns, the provenance
    includes the ``url`` of the data file and the names of the checks in ``checked``.

    Parameters
    ----------
    version : int or ReleaseSpec
        Materialization version, which need not be in the registry.
    url : str, optional
        Folder that holds ``v{version}/{table}_merged.csv.gz`` and ``..._merged_header.csv``:
        ``gs://``, ``https://``, ``s3://``, ``file://`` or a path; by default the public archive of
        the datastack. ``gs://`` is read over https, which needs no package and no login, unless
        `storage_options` are given.
    datastack : str, optional
        Name of the datastack; by default that of a custom registry entry, else
        ``"minnie65_public"``.
    folder : str or pathlib.Path, optional
        Where fetched files are kept; by default a temporary folder, which is removed when the
        process ends.
    storage_options : mapping, optional
        Login for an archive that is not public: for a bucket the options of its fsspec file
        system, for https arguments of `requests.request`, such as ``headers``.
    retry : Retry, optional
        How often to repeat a request, and how long to wait before that.
    timeout : float, optional
        Seconds without a byte after which a connection has failed.
    progress : bool, optional
        Show a progress bar for each file, in bytes.

    Attributes
    ----------
    folder : pathlib.Path
        Where fetched files are kept.
    scope : str
        ``"requested"``: only synapses between requested neurons are returned.

    Raises
    ------
    SchemaError
        If the version is not an integer, or ids of synapses are not root ids.
    SourceError
        If there is neither a public archive of the datastack nor a `url`, if the version or table
        does not exist, or if files are damaged or do not belong together (with the line).
    IncompleteDownloadError
        If requests keep failing; data that has arrived is kept.

    Examples
    --------
    >>> ArchiveSource(661)
    ArchiveSource(661, url='gs://mat_dbs/public/minnie65_phase3_v1')
    >>> source = ArchiveSource(661, folder="data")
    >>> names = source.available_tables()  # doctest: +SKIP
    >>> source.has("nucleus_detection_v0")  # doctest: +SKIP
    >>> nuclei = source.read("nucleus_detection_v0")  # doctest: +SKIP
    >>> columns = source.read_arrow("nucleus_detection_v0").column_names  # doctest: +SKIP
    >>> source.provenance("nucleus_detection_v0")["sha256"]  # doctest: +SKIP
    >>> source.discard("nucleus_detection_v0")  # doctest: +SKIP
    >>> source.download_synapses("data/synapses", post=nuclei.pt_root_id[:9])  # doctest: +SKIP
    """

    scope = "requested"

    def __init__(
        self,
        version: int | ReleaseSpec,
        *,
        url: str | Path | None = None,
        datastack: str | None = None,
        folder: str | Path | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retry: Retry | None = None,
        timeout: float = 60.0,
        progress: bool = True,
    ) -> None:
        if not isinstance(version, ReleaseSpec):
            number, stack = whole_number("version", version, 1), datastack or "minnie65_public"
            if number in supported_versions(stack):
                version = release_spec(number, datastack=stack)
            else:
                version = ReleaseSpec(number, tables={}, datastack=stack)
        self.version = version.version
        self.datastack = datastack or version.datastack
        url = datastack_entry(self.datastack, "archive") if url is None else url
        if url is None:
            raise SourceError(
                f"there is no public archive of {self.datastack!r}: pass url=..., the folder that "
                f"holds v{self.version}"
            )
        self.url = str(url).rstrip("/")
        self.progress = progress
        self._spec = version
        address = f"{self.url}/v{self.version}"
        self._display_url = display_url(address)
        # Google's public buckets are read over https, which does not look for a login.
        if not storage_options:
            address = re.sub("^gc?s://", _GOOGLE, address)
        self._address = address
        self._local = local_path(address)
        self._folder = None if folder is None else Path(folder).expanduser()
        self._access: dict[str, Any] = {
            "storage_options": dict(storage_options or {}),
            "retry": as_retry(retry),
            "timeout": timeout,
        }
        self._stems: dict[str, str] = {}
        self._absent: set[str] = set()
        self._checked: set[Path] = set()  # local files
        self._read: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"ArchiveSource({self.version}, url={display_url(self.url)!r})"

    @property
    def folder(self) -> Path:
        """Where files are kept; a temporary folder is created when it is first needed."""
        if self._folder is None:
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="microns_xr-archive-"))
            except OSError as error:
                raise write_error(tempfile.gettempdir(), error) from error
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    # A table is archived as TABLE_merged, a view under its own name, and a few tables under the
    # name that the registry gives as ``archive_file``. Each is a header file and a data file.

    def _registered(self) -> set[str]:
        stack = self._spec.datastack
        versions = supported_versions(stack)
        specs = [self._spec, *(release_spec(version, datastack=stack) for version in versions)]
        return {name for spec in specs for name in spec.tables.values()}

    def _candidates(self, name: str) -> list[str]:
        """Return the names that the files of a table may have, without their endings."""
        registered = self._spec.spec_of(require_table_name(name)).archive_file
        return [registered] if registered else [f"{name}_merged", name]

    def _find(self, name: str) -> str | None:
        if name not in self._stems:
            stem = next((stem for stem in self._candidates(name) if self._has(stem)), None)
            if stem is None:
                return None
            self._stems[name] = stem
        return self._stems[name]

    def _has(self, stem: str) -> bool:
        file = f"{stem}{_HEADER}"
        if self._local is not None:
            return (self._local / file).is_file()
        return self._fetched(file) is not None or exists(f"{self._address}/{file}", **self._access)

    def _fetched(self, file: str) -> FetchedFile | None:
        """Return the record of a file that was fetched from this archive."""
        record = find_file(self.folder / file) if self._local is None else None
        return record if record and record.url == display_url(f"{self._address}/{file}") else None

    def _fetch(self, name: str, *, refresh: bool = False, progress: bool) -> tuple[Path, Header]:
        """Fetch the two files of a table, unless they exist already."""
        stem = self._find(name)
        if stem is None:
            raise SourceError(
                f"there is no table {name!r} in the archive {self._display_url}, or access to "
                f"it is refused{nearest(name, self._registered() - {name})}"
                ": available_tables() lists its tables; a version that is still served "
                "is read with source='cave'"
            )
        paths = []
        for ending in (_HEADER, _DATA):
            path = (self._local or self.folder) / f"{stem}{ending}"
            if self._local is None:
                bar = progress and ending == _DATA
                url = f"{self._address}/{path.name}"
                fetch_file(url, path, refresh=refresh, progress=bar, **self._access)
            elif not path.is_file():
                raise SourceError(f"there is no file {path}: check the folder and the version")
            elif path not in self._checked:
                require_md5(path)
                self._checked.add(path)
            paths.append(path)
        return paths[1], parse_header(paths[0].read_bytes(), str(paths[0]))

    def discard(self, name: str) -> None:
        """Remove the fetched files of a table; files that were never fetched are not touched.

        Parameters
        ----------
        name : str
            Table name.
        """
        if self._local is None:
            for stem in self._candidates(name):
                for ending in (_HEADER, _DATA):
                    path = self.folder / f"{stem}{ending}"
                    append_suffix(path, ".json").unlink(missing_ok=True)
                    path.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether the archive has a table.

        Parameters
        ----------
        name : str
            Table name.

        Returns
        -------
        bool
            True if its files are there and may be read.
        """
        return self._find(name) is not None

    def available_tables(self) -> list[str]:
        """Names of the tables that are archived.

        A bucket or a folder is listed. This is not possible over http, where the tables in the
        registry are looked for, once; `read` finds others by their names.

        Returns
        -------
        list of str
            Sorted.

        Raises
        ------
        SourceError
            If the archive has no tables of the version.
        """
        files = list_names(self._address, **self._access)
        if files is None:
            # The archive of a version does not change: absent tables are not looked for again.
            for name in self._registered() - set(self._stems) - self._absent:
                stem = self._candidates(name)[0]
                if self._has(stem):
                    self._stems[name] = stem
                else:
                    self._absent.add(name)
            names = set(self._stems)
        else:
            by_file = {self._spec.spec_of(name).archive_file: name for name in self._registered()}
            stems = {file.removesuffix(_DATA) for file in files if file.endswith(_DATA)}
            stems = {stem for stem in stems if f"{stem}{_HEADER}" in files}
            names = {by_file.get(stem) or stem.removesuffix("_merged") for stem in stems}
        if not names:
            raise SourceError(
                f"there is nothing in the archive {self._display_url}: check the version and the "
                "address; a version that is still served is read with source='cave'"
            )
        return sorted(names)

    def read_arrow(
        self, name: str, *, refresh: bool = False, progress: bool | None = None
    ) -> pa.Table:
        """Return one whole table, sorted by id, as Arrow.

        Parameters
        ----------
        name : str
            Table name.
        refresh : bool, optional
            Fetch its files again.
        progress : bool, optional
            Show a progress bar; by default the `progress` of the source.

        Returns
        -------
        pyarrow.Table
            Ids as int64, text as string, times in UTC, positions as three columns.

        Raises
        ------
        SourceError
            If there is no such table, or it is the table of all synapses.
        """
        if name in (SYNAPSE_TABLE, self._spec.tables.get("synapses")):
            raise SourceError(
                f"{name} is the table of all synapses, which is not read as a whole: use "
                "download_synapses(pre, post)"
            )
        progress = self.progress if progress is None else progress
        path, header = self._fetch(name, refresh=refresh, progress=progress)
        table = read_archived(path, header)
        # The order of tables from the service, so that the two are comparable.
        if "id" in table.column_names and not table["id"].null_count:
            table = table.take(pc.sort_indices(table["id"]))
        record = self._fetched(path.name)
        self._read[name] = {
            "name": name,
            "rows": table.num_rows,
            "url": f"{self._display_url}/{path.name}",
            "sha256": record.sha256 if record else file_sha256(path),
            "checked": record.checked if record else [],
        }
        return table

    def read(self, name: str) -> pd.DataFrame:
        return to_frame(self.read_arrow(name))

    def provenance(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            self.read_arrow(name)
        return dict(self._read[name])

    def download_synapses(
        self,
        folder: str | Path,
        *,
        pre: Any = None,
        post: Any = None,
        positions: bool = False,
        table: str = SYNAPSE_TABLE,
        progress: bool = True,
        cancel: threading.Event | None = None,
    ) -> SynapseSet:
        """Download the synapses from some roots onto some roots.

        The file of all synapses (about 20 GB) is fetched first and kept in the source's `folder`
        for later requests.

        Parameters
        ----------
        folder : str or pathlib.Path
            Where sets of synapses are kept, each under the key of its request.
        pre, post : array-like of int, optional
            Root ids; None for all.
        positions : bool, optional
            Also return the positions of the synapses.
        table : str, optional
            Table of all synapses.
        progress : bool, optional
            Show a progress bar.
        cancel : threading.Event, optional
            Set it to stop the download; finished batches are kept.

        Returns
        -------
        SynapseSet
            The complete set, the same as from a download from the service.

        Raises
        ------
        SchemaError
            If `pre` or `post` are not root ids.
        IncompleteDownloadError
            If the file cannot be fetched, or the download is cancelled.
        """
        # Before 20 GB are fetched, check the ids and look for an earlier result.
        request = make_request(self.datastack, self.version, table, pre, post, positions)
        existing = SynapseSet(folder, request.key)
        if existing.is_complete:
            logger.info("synapses of %s are already in %s", request.key, folder)
            return existing
        path, header = self._fetch(table, progress=progress)
        record, stat = self._fetched(path.name), path.stat()
        # Distinguishes the file from another of its name, without reading all of it.
        identity = record.sha256 if record else f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
        return filter_synapses(
            path, header, folder, request, identity=identity, progress=progress, cancel=cancel
        )


# ------------------------------------------------------------------------------------- synapses


def filter_synapses(
    path: str | Path,
    header: Header,
    folder: str | Path,
    request: SynapseRequest,
    *,
    identity: str | None = None,
    batch_rows: int = _BATCH_ROWS,
    batch_bytes: int = _BATCH_BYTES,
    progress: bool = True,
    cancel: threading.Event | None = None,
) -> SynapseSet:
    """Select the synapses of a request while the archived file of all synapses is unpacked.

    The result has the folder, the format and the key of a download from the service. A batch is a
    range of lines of the unpacked file; after an interruption the file is unpacked again, but
    parsed only from the end of the last finished batch. Memory does not grow with the file.
    """
    path = Path(path)
    columns = _columns(header, request)
    target = RequestFolder(folder, request)
    with target.locked():
        if target.is_complete:
            return SynapseSet(folder, request.key)
        stamp = {"archived_file": identity or file_sha256(path)}
        target.begin(stamp, lambda: Strategy(None, False, 0, 1))
        batches = _leading_batches(target)
        stop = batches[-1].piece.stop if batches else 0
        lines = sum(batch.answered for batch in batches)
        rows = sum(batch.rows for batch in batches)
        logger.info("%s: %d synapses of %d lines are here", target.key, rows, lines)

        def blocks() -> Iterator[Block]:
            for block in read_blocks(path, header, columns, start=stop, first_line=lines + 1):
                bar.update(block.packed - bar.n)
                yield block
                if cancel is not None and cancel.is_set():
                    raise IncompleteDownloadError(
                        f"filtering {target.key} was cancelled: run the same again to continue"
                    )

        with progress_bar(progress, "synapses", total=path.stat().st_size) as bar:
            for piece, table, n_lines in _join(blocks(), request, batch_rows, batch_bytes):
                table = finish_columns(table, header, str(path))
                table = sorted_synapses(integer_columns(table, request.columns))
                target.commit(piece, table, n_lines)
                stop = piece.stop
                rows += table.num_rows
                bar.set_postfix_str(f"{rows:,} synapses", refresh=False)
        return target.finish(stop)


def _columns(header: Header, request: SynapseRequest) -> list[str]:
    """Return the columns of the file that a request needs."""
    columns = [name for name in request.columns if not name.startswith(POSITION)]
    if request.positions:
        columns += columns_of(header, POSITION) or [POSITION]
    if missing := [name for name in columns if name not in header.names]:
        raise SchemaError(
            f"{header.where} lacks the columns {missing}, found {list(header.names)}: it is not "
            "the header of a table of synapses"
        )
    return [*columns, _VALID] if _VALID in header.names else columns


def _join(
    blocks: Iterator[Block], request: SynapseRequest, batch_rows: int, batch_bytes: int
) -> Iterator[tuple[Piece, pa.Table, int]]:
    """Join the synapses of a request to batches; yield also their numbers of lines."""
    tables: list[pa.Table] = []
    start = n_rows = n_lines = n_invalid = 0
    for block in blocks:
        start = start if tables else block.start
        table = block.table
        n_lines += table.num_rows
        if _VALID in table.column_names:  # deleted or replaced rows, which the service leaves out
            valid = table.filter(pc.fill_null(table[_VALID].cast(pa.bool_()), True))
            n_invalid += table.num_rows - valid.num_rows
            table = valid.drop_columns(_VALID)
        for side, ids in (("pre", request.pre), ("post", request.post)):
            if ids is not None:
                table = table.filter(pc.is_in(table[f"{side}_pt_root_id"], value_set=pa.array(ids)))
        tables.append(table)
        n_rows += table.num_rows
        if n_rows >= batch_rows or block.stop - start >= batch_bytes:
            yield Piece(start, block.stop), pa.concat_tables(tables), n_lines
            tables, n_rows, n_lines = [], 0, 0
    if tables:
        yield Piece(start, block.stop), pa.concat_tables(tables), n_lines
    if n_invalid:
        logger.info("%d rows of the archived synapses are not valid and were dropped", n_invalid)


def _leading_batches(folder: RequestFolder) -> list[Batch]:
    """Return the batches of an earlier run up to the first gap; remove those after it."""
    leading: list[Batch] = []
    for batch in sorted(folder.batches(), key=lambda b: b.piece.start):
        if batch.piece.start == (leading[-1].piece.stop if leading else 0):
            leading.append(batch)
        else:
            batch.path.unlink()
    return leading
