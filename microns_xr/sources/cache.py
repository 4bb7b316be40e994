"""The folder of a downloaded release: which tables are complete, which have to be fetched.

A table is two files, ``NAME.parquet`` and ``NAME.json``. Both are written to a temporary name and
renamed, the record last. The record holds the sha256 of the parquet file: a table whose two files
do not match is treated as missing.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from microns_xr import __version__
from microns_xr.columns import as_ids
from microns_xr.errors import (
    IncompleteDownloadError,
    ReleaseMismatchError,
    SchemaError,
    SourceError,
    unknown_label,
)
from microns_xr.files import (
    file_sha256,
    locked,
    new_file,
    read_json,
    remove_temporary,
    write_file,
)
from microns_xr.frames import RESOLUTION
from microns_xr.releases import MINIMUM_ROLES, ReleaseSpec, datastack_entry
from microns_xr.sources.archive import ArchiveSource
from microns_xr.sources.cave import CaveSource, fetch_table
from microns_xr.sources.demo import DemoSource
from microns_xr.sources.directory import DirectorySource, table_files, the_only, write_identity
from microns_xr.sources.net import Retry, progress_bar
from microns_xr.sources.synapses import (
    SYNAPSE_TABLE,
    SynapseSet,
    list_requests,
    open_request,
)
from microns_xr.sources.tables import (
    TABLE_NAME,
    TableSource,
    plain_types,
    read_table_file,
    require_table_name,
    to_frame,
)

logger = logging.getLogger(__name__)

Policy = Literal["minimum", "all", "extra"]
Remote: TypeAlias = CaveSource | ArchiveSource

_PROBE_TIMEOUT = (5.0, 20.0)  # seconds to connect, and for an answer, when a source is chosen
_NEEDED_ROLES = ("nucleus", "celltype", "proofreading")  # without these there are no units


def table_names(
    spec: ReleaseSpec,
    available: Collection[str],
    policy: Policy = "minimum",
    extra: Iterable[str] = (),
) -> list[str]:
    """Return the names of the tables that a policy selects."""
    extra = [extra] if isinstance(extra, str) else list(extra)
    if policy not in get_args(Policy):
        raise SchemaError(f"policy is {policy!r}, expected one of {list(get_args(Policy))}")
    if extra and policy != "extra":
        raise SchemaError(f"extra names {extra}, but policy is {policy!r}: use policy='extra'")
    if policy == "extra" and not extra:
        raise SchemaError("policy is 'extra', but extra names no table: name some, or 'minimum'")
    synapses = spec.tables.get("synapses")
    if policy == "all":
        if synapses in available:
            logger.warning(
                "%s is left out of policy 'all': synapses are downloaded by the neurons they "
                "connect, with download_synapses(pre, post)", synapses,
            )  # fmt: skip
        return sorted(set(available) - {synapses})
    names = {spec.tables.get(word) or word for word in extra}
    if synapses in names & set(available):
        raise SourceError(
            f"{synapses} is the table of all synapses, which is not fetched as a whole: use "
            "download_synapses(pre, post), or the archive"
        )
    for name in names - set(available):
        what = f"v{spec.version} has no table"
        raise unknown_label(what, name, set(available), "available_tables() lists all")
    for role in filter(spec.has, MINIMUM_ROLES):
        name = spec.name_of(role)
        if name in available:
            names.add(name)
            continue
        what = f"v{spec.version} has no {role} table"
        hint = f"pass tables={{{role!r}: ...}} if it has another name"
        error = unknown_label(what, name, set(available), hint, SourceError)
        if role in _NEEDED_ROLES:
            raise error
        logger.warning("%s; it is left out", error)
    return sorted(names)


class Records(dict[str, dict[str, Any]]):
    """The records of tables by name, which a notebook shows in short form."""

    def __repr__(self) -> str:
        rows = sum(int(record.get("rows", 0)) for record in self.values())
        return f"<{len(self)} tables with {rows:,} rows: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        columns = ["rows", "timestamp", "fetched_at"]
        table = pd.DataFrame.from_dict(self, orient="index")
        return table.reindex(columns=[c for c in columns if c in table]).to_html(border=0)


class CachedSource(TableSource):
    """Tables of the service or the archive, downloaded into a folder and read from there.

    Tables that are complete in the folder are not requested again. Without a remote source, or
    while it cannot be reached, only the folder is read.
    """

    scope = "requested"

    def __init__(
        self,
        remote: Remote | Callable[[], Remote] | None,
        folder: str | Path,
        datastack: str,
        version: int,
        synapse_table: str | None = SYNAPSE_TABLE,
    ) -> None:
        self._remote = remote
        self.synapse_table = synapse_table
        self.datastack = datastack
        self.version = version
        self.folder = Path(folder).expanduser()
        self.table_folder = self.folder / "raw"
        self.synapse_folder = self.table_folder / "synapses"
        self._listing = self.folder / "tables.json"
        # By name: modification time and size of a file, and its sha256 at that time.
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}

    def __repr__(self) -> str:
        remote = "auto" if callable(self._remote) else repr(self._remote)
        return f"CachedSource({remote}, {str(self.folder)!r})"

    @property
    def remote(self) -> Remote | None:
        """The service or the archive, which is chosen when it is first needed."""
        if callable(self._remote):
            self._remote = self._remote()
        return self._remote

    @remote.setter
    def remote(self, source: Remote | None) -> None:
        self._remote = source

    # -------------------------------------------------------------- tables in the folder

    def path(self, name: str) -> Path:
        """Return the path of a table's parquet file, which may not exist yet."""
        return self.table_folder / f"{require_table_name(name)}.parquet"

    def names(self) -> list[str]:
        """Return the names of the downloaded tables that are complete."""
        stems = [path.stem for path in self.table_folder.glob("*.json")]
        return sorted(name for name in stems if TABLE_NAME.fullmatch(name) and self.has(name))

    def has(self, name: str) -> bool:
        """Whether a table is complete: its file has the sha256 in its record."""
        return self._record(name) is not None

    def _record(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        record = read_json(path.with_suffix(".json"))
        if "sha256" not in record or not path.is_file():
            return None
        stat = path.stat()
        # Hashed again only if time or size has changed.
        state = (stat.st_mtime_ns, stat.st_size)
        if self._digests.get(name, (None, ""))[0] != state:
            self._digests[name] = (state, file_sha256(path))
        if self._digests[name][1] != record["sha256"]:
            logger.warning("%s does not match its record: it is treated as missing", path)
            return None
        if (record.get("datastack"), record.get("version")) != (self.datastack, self.version):
            raise ReleaseMismatchError(
                f"{path} is of {record.get('datastack')} v{record.get('version')}, expected "
                f"{self.datastack} v{self.version}: move it to the folder of its own release"
            )
        return record

    def write(self, name: str, table: pa.Table, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Write a table and its record atomically, replacing an old one."""
        path = self.path(name)
        _require_exact_ids(table, name)
        # The outer context ends last, so the record is renamed after the table.
        with new_file(path.with_suffix(".json")) as record_part, new_file(path) as part:
            pa.parquet.write_table(plain_types(table), part, compression="zstd")
            record = {
                "datastack": self.datastack,
                "version": self.version,
                **provenance,
                "name": name,
                "rows": table.num_rows,
                "sha256": file_sha256(part),
                "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "created_by": {
                    "microns-xr": __version__,
                    **{package: metadata.version(package) for package in ("caveclient", "pyarrow")},
                },
            }
            record_part.write_text(json.dumps(record, indent=1) + "\n")
        return record

    def _added_by_hand(self) -> dict[str, Path]:
        """Return the files of tables that were added beside the downloaded ones, by name.

        A parquet file in ``raw`` without a record is excluded: it is an interrupted download.
        """
        files, synapses = table_files(self.folder)
        return {
            name: the_only(name, paths)
            for name, paths in files.items()
            if name not in synapses and self.table_folder / f"{name}.parquet" not in paths
        }

    # ----------------------------------------------------------------- the table source

    def available_tables(self) -> list[str]:
        """Names of the local and remote tables, sorted."""
        names = {*self.names(), *self._added_by_hand()}
        if self._remote is not None:
            try:
                names.update(self._remote_tables())
            except SourceError as error:
                if not names:
                    raise
                logger.warning("only the tables in %s can be read now: %s", self.folder, error)
        return sorted(names)

    def _remote_tables(self) -> list[str]:
        """Names of the remote tables, from the listing that a download has written if any."""
        if isinstance(self._remote, ArchiveSource) or not self._listing.is_file():
            return self.require_remote("list tables").available_tables()
        try:
            names = json.loads(self._listing.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self._listing} is damaged ({error}): remove it") from error
        if not isinstance(names, list):
            raise SourceError(f"{self._listing} is damaged, expected a list of names: remove it")
        return [str(name) for name in names]

    def read(self, name: str) -> pd.DataFrame:
        """Return one table, which is downloaded into the folder if it is not there."""
        record = self._record(name)
        if record is None:
            if (path := self._added_by_hand().get(name)) is not None:
                return read_table_file(path)
            if self._remote is None:
                raise self._not_here(name)
            if name == self.synapse_table:
                raise SourceError(
                    f"{name} is not downloaded as a whole: fetch the synapses of some neurons with "
                    "Release.download_synapses(pre, post)"
                )
            record = self.download([name])[name]
        with pa.parquet.ParquetFile(self.path(name)) as file:
            frame = to_frame(file.read())
        if record.get("resolution_nm") is not None:
            frame.attrs[RESOLUTION] = record["resolution_nm"]
        return frame

    def provenance(self, name: str) -> dict[str, Any]:
        """Return the record of a table: name, rows, sha256, timestamp and origin."""
        if (record := self._record(name)) is not None:
            return record
        if (path := self._added_by_hand().get(name)) is not None:
            return {"name": name, "rows": len(read_table_file(path)), "sha256": file_sha256(path)}
        raise self._not_here(name)

    def _not_here(self, name: str) -> Exception:
        what, known = f"{self.table_folder} holds no complete table", self.names()
        return unknown_label(what, name, known, "download it", SourceError)

    # --------------------------------------------------------------------------- downloads

    def require_remote(self, what: str) -> Remote:
        """Return the remote source, or raise if the folder is read without one."""
        remote = self.remote
        if remote is None:
            raise SourceError(
                f"{self.folder} is read without a service, so it cannot {what}: use "
                f"mx.Release({self.version}, source='cave'), or source='archive'"
            )
        return remote

    def download(
        self,
        names: Iterable[str],
        *,
        refresh: bool = False,
        progress: bool = True,
        max_rows: int | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Download tables into the folder, except for those that are already complete."""
        records = Records()
        missing = []
        for name in dict.fromkeys(names):
            if refresh or (record := self._record(name)) is None:
                missing.append(name)
            else:
                records[name] = record
        remote = self.require_remote("download tables") if missing else None
        if max_rows is not None and isinstance(remote, CaveSource):
            n_rows = {name: remote.count(name) for name in missing}
            missing = [name for name in missing if n_rows[name] <= max_rows]
            for name in n_rows.keys() - set(missing):
                text = "%s has %d rows, more than %d: it is left out"
                logger.warning(text, name, n_rows[name], max_rows)
        if remote is None or not missing:
            return records  # without a lock: a complete folder may be read-only
        with locked(self.table_folder, "tables"):
            write_identity(self.folder, self.datastack, self.version)
            # The tables of a version never change, so their listing is saved. An archive is not
            # always listed completely.
            if isinstance(remote, CaveSource) and (refresh or not self._listing.is_file()):
                write_file(self._listing, json.dumps(remote.available_tables()) + "\n")
            # Remains of an interrupted download; the lock keeps other processes from writing here.
            remove_temporary(self.table_folder)
            # The archive shows a separate bar for each file.
            show = progress and not isinstance(remote, ArchiveSource)
            bar = progress_bar(show, "tables", "table", iterable=missing)
            for name in bar:
                # Another thread may have fetched it while this one waited.
                if not refresh and (record := self._record(name)) is not None:
                    records[name] = record
                    continue
                if isinstance(remote, CaveSource):
                    table, answers = fetch_table(remote, name)
                    record = {"timestamp": remote.timestamp(), "source": "cave", **answers}
                else:
                    table = remote.read_arrow(name, refresh=refresh, progress=progress)
                    file = remote.provenance(name)
                    record = {
                        "timestamp": None,  # not known from the archive
                        "source": "archive",
                        "url": file["url"],
                        "archive_sha256": file["sha256"],
                        "checked": file["checked"],
                    }
                records[name] = self.write(name, table, record)
                if isinstance(remote, ArchiveSource):
                    remote.discard(name)  # the table would be on disk twice
                logger.info("%s: %d rows", name, table.num_rows)
        return records

    def synapse_files(self) -> dict[str, Path]:
        """Return the complete sets of synapses by the key of their request."""
        return {s.key: s.path for s in list_requests(self.synapse_folder) if s.is_complete}

    def synapse_set(self, request: str | None = None) -> SynapseSet:
        """Return one complete set of synapses."""
        synapses = open_request(self.synapse_folder, request)
        datastack, version = synapses.request["datastack"], synapses.request["version"]
        if (datastack, version) != (self.datastack, self.version):
            raise ReleaseMismatchError(
                f"{synapses.path} holds synapses of {datastack} v{version}, not of "
                f"{self.datastack} v{self.version}: move it to the folder of its own release"
            )
        return synapses


def _require_exact_ids(table: pa.Table, name: str) -> None:
    """Raise if ids went through floats, since a table in the folder is read every time."""
    for column in table.column_names:
        if column != "id" and not column.endswith("_id"):
            continue
        values = table[column].drop_null().to_numpy()
        if values.dtype.kind in "if":
            try:
                as_ids(values, f"{name}.{column}")
            except SchemaError as error:
                reason = str(error).partition("; read the table again")[0]
                raise SourceError(
                    f"{reason}: the table is damaged at its source and is not kept; tell those who "
                    "serve it"
                ) from None


def choose_remote(spec: ReleaseSpec, datastack: str, folder: Path) -> Remote:
    """Return the service if it serves the version, else the archive if that has it."""
    version, refusal = spec.version, ""
    served: list[int] = []
    # A single attempt: without a network this fails at once.
    once = Retry(attempts=1)
    with CaveSource(version, datastack=datastack, timeout=_PROBE_TIMEOUT, retry=once) as probe:
        try:
            served = probe.versions()
        except IncompleteDownloadError as error:
            # Neither the number of attempts nor the advice that follows here.
            reason = str(error).partition(" (1 attempts)")[0].partition(": check the address")[0]
            raise SourceError(
                f"the service cannot be asked whether it has {datastack} v{version} ({reason}): "
                "check the connection; without one, a folder of downloaded tables is read with "
                "source='path/of/the/folder', archived files with source='archive'"
            ) from None
        except SourceError as error:
            refusal = str(error)  # such as no token, which the archive does not need
    if version in served:
        logger.info("%s v%d is served: tables come from the CAVE service", datastack, version)
        return CaveSource(version, datastack=datastack)
    if datastack_entry(datastack, "archive") is not None:
        archive = ArchiveSource(spec, datastack=datastack, folder=folder / "archive")
        if spec.has("nucleus") and archive.has(spec.name_of("nucleus")):
            logger.warning(
                "%s v%d is not served%s: tables come from its archived files",
                datastack, version, f", as far as is known ({refusal})" if refusal else "",
            )  # fmt: skip
            return archive
    if refusal:
        raise SourceError(refusal)
    raise SourceError(
        f"{datastack} v{version} is not served (any more), and no tables of it are archived: use "
        f"a version that is served, {', '.join(map(str, served)) or 'of which there is none'}, or "
        "a folder of downloaded tables with source='path/of/the/folder'"
    )


def make_source(
    source: str | Path | TableSource, spec: ReleaseSpec, datastack: str, datadir: Path
) -> TableSource:
    """Return the source for a name, a path or an object."""
    word = source if isinstance(source, str) else None  # arrays compare element by element
    if word == "demo":
        return DemoSource(spec.version)
    synapses = spec.tables.get("synapses")
    folder = datadir / datastack / f"v{spec.version}"
    if word == "auto":
        choose = partial(choose_remote, spec, datastack, folder)
        return CachedSource(choose, folder, datastack, spec.version, synapses)
    if word == "cave":
        source = CaveSource(spec.version, datastack=datastack)
    elif word == "archive":
        source = ArchiveSource(spec, datastack=datastack, folder=folder / "archive")
    if isinstance(source, CaveSource | ArchiveSource):
        folder = datadir / source.datastack / f"v{source.version}"
        return CachedSource(source, folder, source.datastack, source.version, synapses)
    if isinstance(source, str | Path):
        directory = DirectorySource(source, version=spec.version, datastack=datastack)
        path = directory.path
        folder = path.parent if path.resolve().name == "raw" else path
        if list_requests(folder / "raw" / "synapses"):
            # Downloaded by this package: its sets of synapses record their requests.
            stack = directory.datastack or datastack
            return CachedSource(None, folder, stack, spec.version, synapses)
        return directory
    if not isinstance(source, TableSource):
        raise SchemaError(
            f"source is a {type(source).__name__}, expected 'auto', 'cave', 'archive', 'demo', a "
            "folder, or an object with available_tables(), read(), provenance(), datastack, "
            "version and scope"
        )
    return source
