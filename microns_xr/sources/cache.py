"""Whole tables from the service into the cache, none of their rows lost on the way.

The service cuts an answer at its row limit, in no defined order and with no more than a header to
say so, and an answer may hold too few rows without any sign at all. So a table that meets the limit
is asked for again in ranges of its ids until no answer is cut, and no table is taken before it has
as many rows as the service counts, each id once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from tqdm.auto import tqdm

from microns_xr.errors import (
    ReleaseMismatchError,
    SchemaError,
    SourceError,
    UnknownLabelError,
    nearest_words,
)
from microns_xr.files import file_sha256, write_file
from microns_xr.releases import MINIMUM_ROLES, ReleaseSpec
from microns_xr.sources.net import BadAnswer, Retry
from microns_xr.sources.tables import Answer, plain_types, to_frame

logger = logging.getLogger(__name__)


# The small file in a folder of tables that says which release they are of.


IDENTITY_FILE = "release.json"


def write_identity(folder: Path, datastack: str, version: int) -> None:
    """Write the release of a folder, unless it is there; refuse a folder of another release."""
    found = read_identity(folder)
    if found is not None and found != (datastack, version):
        raise ReleaseMismatchError(
            f"{folder} holds tables of {found[0]} v{found[1]}, not of {datastack} v{version}: "
            "use another folder, releases must not be mixed"
        )
    if found is None:
        said = json.dumps({"datastack": datastack, "version": version}) + "\n"
        write_file(folder / IDENTITY_FILE, said)


def read_identity(folder: Path) -> tuple[str, int] | None:
    """Return datastack and version of a folder of tables, None where it does not say.

    The file lies in the release's folder, which may be the parent of a ``raw`` folder.
    """
    for place in (folder, folder.parent) if folder.name == "raw" else (folder,):
        file = place / IDENTITY_FILE
        if not file.is_file():
            continue
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            return str(said["datastack"]), int(said["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{file} does not say a datastack and a version ({error}): correct or remove it"
            ) from error
    return None


# Which tables of a release are downloaded: a policy, and names of one's own.


Policy = Literal["minimum", "all", "extra"]

# Without these there are no units.
_NEEDED_ROLES = ("nucleus", "celltype", "proofreading")


def table_names(
    spec: ReleaseSpec,
    available: Collection[str],
    policy: Policy = "minimum",
    extra: Iterable[str] = (),
) -> list[str]:
    """Return the tables that a policy means."""
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
    return sorted({*_minimum(spec, available), *_extra(spec, available, extra)})


def _minimum(spec: ReleaseSpec, available: Collection[str]) -> list[str]:
    names = []
    for role in MINIMUM_ROLES:
        name = spec.tables.get(role)
        if name is None:
            continue
        if name in available:
            names.append(name)
            continue
        near = nearest_words(name, available)
        problem = f"v{spec.version} has no table {name}, which the release has in the role {role}"
        problem += f"; nearest: {', '.join(near)}" if near else ""
        if role in _NEEDED_ROLES:
            raise SourceError(
                f"{problem}: pass tables={{{role!r}: ...}} if it goes by another name"
            )
        logger.warning("%s: it is left out", problem)
    return names


def _extra(spec: ReleaseSpec, available: Collection[str], extra: Iterable[str]) -> list[str]:
    names = [spec.tables.get(word) or word for word in extra]
    for name in names:
        if name not in available:
            near = nearest_words(name, available)
            raise UnknownLabelError(
                f"there is no table {name!r} in v{spec.version}"
                + (f"; nearest: {', '.join(near)}" if near else "")
                + ": available_tables() lists all"
            )
        if name == spec.tables.get("synapses"):
            raise SourceError(
                f"{name} is the table of all synapses, which is no table to fetch whole: use "
                "download_synapses(pre, post), or the archive"
            )
    return names


# Downloaded tables on disk: typed parquet, each with a record of what it is and where from.
#
# A table is two files, ``NAME.parquet`` and ``NAME.json``. Both are written beside their place
# and renamed, the record last, and the record holds the sha256 of the parquet: a table whose two
# files do not fit each other, for whatever reason, does not count as there.


_NAME = re.compile(r"\w[\w.-]*")
_HAVE_A_PART = ("microns-xr", "caveclient", "pyarrow")


class TableCache:
    """The tables of one release that have been downloaded into a folder."""

    def __init__(
        self,
        folder: str | Path,
        *,
        datastack: str | None = None,
        version: int | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.release = {"datastack": datastack, "version": version}
        self._whole: dict[str, tuple[tuple[int, int], str]] = {}

    def __repr__(self) -> str:
        return f"TableCache({str(self.folder)!r})"

    def path(self, name: str) -> Path:
        """Return where a table's parquet file is, or will be; `SourceError` for no file name."""
        if not _NAME.fullmatch(name):
            raise SourceError(f"{name!r} is no table name: expected letters, digits, '_', '-', '.'")
        return self.folder / f"{name}.parquet"

    def _record_path(self, name: str) -> Path:
        return self.path(name).with_suffix(".json")

    def names(self) -> list[str]:
        """Return the names of the tables that are there and whole."""
        names = [path.stem for path in self.folder.glob("*.json") if _NAME.fullmatch(path.stem)]
        return sorted(name for name in names if self.has(name))

    def has(self, name: str) -> bool:
        """Say whether a table is there and whole, by its record and the sha256 in it."""
        return self._record(name) is not None

    def _record(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        try:
            record = json.loads(self._record_path(name).read_text(encoding="utf-8"))
            stat = path.stat()
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
            return None
        state = (stat.st_mtime_ns, stat.st_size)
        if self._whole.get(name, (None, ""))[0] != state:
            self._whole[name] = (state, file_sha256(path))
        if self._whole[name][1] != record["sha256"]:
            logger.warning("%s is not what its record says: it does not count as there", path)
            return None
        for key, expected in self.release.items():
            if None not in (expected, record.get(key)) and record[key] != expected:
                raise ReleaseMismatchError(
                    f"{path} is of {record.get('datastack')} v{record.get('version')}, expected "
                    f"{self.release['datastack']} v{self.release['version']}: it was put into the "
                    "folder of another release; move it away"
                )
        return record

    def provenance(self, name: str) -> dict[str, Any]:
        """Return the record of a table."""
        record = self._record(name)
        if record is None:
            near = nearest_words(name, self.names())
            raise SourceError(
                f"table {name} is not in {self.folder}, or not whole"
                + (f"; nearest: {', '.join(near)}" if near else "")
                + ": download it"
            )
        return record

    def read(self, name: str) -> pd.DataFrame:
        """Return one table."""
        self.provenance(name)
        with pa.parquet.ParquetFile(self.path(name)) as file:
            return to_frame(file.read())

    def write(
        self,
        name: str,
        table: pd.DataFrame | pa.Table | pa.RecordBatchReader,
        provenance: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Keep a table, whole or not at all; an old one is replaced."""
        path, record_path = self.path(name), self._record_path(name)
        parts = [p.with_name(f"{p.name}.tmp") for p in (path, record_path)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            rows = _write_parquet(table, parts[0])
            record = {
                **self.release,
                **provenance,
                "name": name,
                "rows": rows,
                "sha256": file_sha256(parts[0]),
                "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "created_by": _versions(),
            }
            with open(parts[1], "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
                file.write("\n")
                _flush(file)
            parts[0].replace(path)
            parts[1].replace(record_path)
        except (pa.ArrowException, OSError, TypeError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{path} cannot be written ({error}): check the folder") from error
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return record

    def remove_leftovers(self) -> list[str]:
        """Remove the parts of files that an interrupted download left behind."""
        leftovers = sorted(self.folder.glob("*.tmp"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return [path.name for path in leftovers]


def _write_parquet(table: pd.DataFrame | pa.Table | pa.RecordBatchReader, path: Path) -> int:
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    if isinstance(table, pa.Table):
        table = plain_types(table)
        batches, schema = [table], table.schema
    else:
        batches, schema = table, table.schema
    rows = 0
    with open(path, "wb") as file:
        with pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                part = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
                writer.write_table(part)
                rows += part.num_rows
        _flush(file)
    return rows


def _flush(file: Any) -> None:
    """Have the bytes on the disk before the file gets its name, also if the power fails."""
    file.flush()
    os.fsync(file.fileno())


def _versions() -> dict[str, str]:
    versions = {}
    for package in _HAVE_A_PART:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


# How often a table is asked for whose rows are not those that the service counts.
_ATTEMPTS = 5
# How full the answers to ranges of ids shall be: the ids of a cut answer are a sample of the
# table's, so that the ranges made of them come out somewhat uneven.
_FILLING = 0.7


class QuerySource(Protocol):
    """What is needed of `microns_xr.sources.cave.CaveSource`."""

    datastack: str
    version: int | None
    retry: Retry
    row_limit: int | None

    def count(self, table: str, filter_in: Mapping[str, Sequence[Any]] | None = None) -> int:
        """Return how many rows a table has."""
        ...

    def query(
        self,
        table: str,
        *,
        filter_in: Mapping[str, Sequence[Any]] | None = None,
        filter_range: Mapping[str, tuple[int | None, int | None]] | None = None,
        select_columns: Sequence[str] | None = None,
    ) -> Answer:
        """Return rows of a table."""
        ...

    def timestamp(self) -> str:
        """Return when the version was materialized."""
        ...


@dataclass(frozen=True)
class FetchedTable:
    """A whole table."""

    table: pa.Table  # its rows, sorted by id
    queries: int  # how many answers it is made of
    # voxel size of its positions, where the service says so
    resolution_nm: tuple[float, ...] | None


def fetch_table(source: QuerySource, name: str) -> FetchedTable:
    """Fetch every row of a table."""

    def ask() -> FetchedTable:
        expected = source.count(name)
        answers = _answers(source, name, expected)
        # Types may differ where an answer has no value at all in a column.
        table = pa.concat_tables([a.table for a in answers], promote_options="permissive")
        table = table.sort_by("id").combine_chunks()
        n_ids = pc.count_distinct(table["id"]).as_py()
        if n_ids != table.num_rows:
            raise BadAnswer(f"{table.num_rows} rows with {n_ids} ids arrived, expected each once")
        if table.num_rows != expected:
            # That number counts rows that are no longer valid and that no query brings; and a
            # number that is cut on its way is still a number.
            valid = source.count(name, {})
            if table.num_rows != valid:
                raise BadAnswer(
                    f"{table.num_rows} rows arrived, the service counts {valid}"
                    + (f" ({expected} with those no longer valid)" if expected > valid else "")
                )
        return FetchedTable(table, len(answers), answers[0].resolution_nm)

    attempts = min(source.retry.attempts, _ATTEMPTS)
    what = f"the table {name} of {source.datastack} v{source.version}"
    return source.retry.call(ask, what, attempts=attempts)


def _answers(source: QuerySource, name: str, expected: int) -> list[Answer]:
    """Ask for a table, in ranges of ids where the row limit would cut it."""
    too_long = source.row_limit is not None and expected > source.row_limit
    first = source.query(name, select_columns=["id"]) if too_long else None
    if first is None or first.limited_to is None:
        first = source.query(name)
    if "id" not in first.table.column_names:
        raise SourceError(
            f"{name} has no column 'id', found {first.table.column_names}: it is no table of "
            "annotations and cannot be fetched without loss"
        )
    if first.limited_to is None:
        return [first]
    # At the limit by chance, with exactly as many rows as an answer may have; by two numbers,
    # because the first one may have been cut to that of the limit.
    n_rows = first.table.num_rows
    if not too_long and n_rows == expected == source.count(name, {}):
        return [first]
    n_parts = int(np.ceil(expected / (_FILLING * first.limited_to)))
    waiting = _ranges(first.table["id"], None, None, max(n_parts, 2))
    whole = []
    while waiting:
        low, high = waiting.pop()
        answer = source.query(name, filter_range={"id": (low, high)})
        one_id = low is not None and high is not None and high - low == 1
        if answer.limited_to is None or one_id:
            whole.append(answer)
        else:
            waiting.extend(_ranges(answer.table["id"], low, high, 2))
    return whole


def _ranges(
    ids: pa.ChunkedArray, low: int | None, high: int | None, n_parts: int
) -> list[tuple[int | None, int | None]]:
    """Cut a range of ids into parts that hold about as many of the ids seen in it.

    Every part is narrower than the range, so that cutting comes to an end.
    """
    seen = np.unique(ids.to_numpy())
    if not len(seen):
        raise BadAnswer("an answer that was cut at the row limit holds no rows")
    if (low is not None and seen[0] < low) or (high is not None and seen[-1] >= high):
        raise SourceError(
            f"ids from {low} to {high} were asked for, {seen[0]} to {seen[-1]} came: the service "
            "does not filter by ranges, so that tables above its row limit cannot be fetched from "
            "it; use source='archive'"
        )
    cuts = sorted({int(seen[len(seen) * i // n_parts]) for i in range(1, n_parts)} - {low})
    if not cuts:  # one id alone, at the lower end
        cuts = [int(seen[0]) + 1]
    return list(itertools.pairwise([low, *cuts, high]))


def download_tables(
    source: QuerySource,
    cache: TableCache,
    names: Iterable[str],
    *,
    refresh: bool = False,
    progress: bool = True,
    max_rows: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Fetch tables into a cache; those that are there and whole are not asked for."""
    cache.remove_leftovers()
    records: dict[str, dict[str, Any]] = {}
    for name in tqdm(list(dict.fromkeys(names)), desc="tables", unit="table", disable=not progress):
        if not refresh and cache.has(name):
            records[name] = cache.provenance(name)
            continue
        if max_rows is not None and (n := source.count(name)) > max_rows:
            logger.warning("%s has %d rows, more than %d: it is left out", name, n, max_rows)
            continue
        fetched = fetch_table(source, name)
        records[name] = cache.write(
            name,
            fetched.table,
            {
                "datastack": source.datastack,
                "version": source.version,
                "timestamp": source.timestamp(),
                "source": "cave",
                "resolution_nm": fetched.resolution_nm,
                "queries": fetched.queries,
            },
        )
        logger.info("%s: %d rows in %d queries", name, fetched.table.num_rows, fetched.queries)
    return records
