"""The folder of a downloaded release: which release it is of, its tables, which to download.

A table is two files, ``NAME.parquet`` and ``NAME.json``. Both are written beside their place and
renamed, the record last, and the record holds the sha256 of the parquet: a table whose two files
do not fit each other, for whatever reason, does not count as there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from microns_xr.errors import ReleaseMismatchError, SchemaError, SourceError, unknown_label
from microns_xr.files import file_sha256, new_file, write_file
from microns_xr.releases import MINIMUM_ROLES, ReleaseSpec
from microns_xr.sources.tables import plain_types, to_frame

logger = logging.getLogger(__name__)

Policy = Literal["minimum", "all", "extra"]

IDENTITY_FILE = "release.json"
_NEEDED_ROLES = ("nucleus", "celltype", "proofreading")  # without these there are no units
_NAME = re.compile(r"\w[\w.-]*")
_RECORDED_PACKAGES = ("microns-xr", "caveclient", "pyarrow")


def write_identity(folder: Path, datastack: str, version: int) -> None:
    """Write the release of a folder, unless it is there; refuse a folder of another release."""
    there = read_identity(folder)
    if there is not None and there != (datastack, version):
        raise ReleaseMismatchError(
            f"{folder} holds tables of {there[0]} v{there[1]}, not of {datastack} v{version}: "
            "use another folder, releases must not be mixed"
        )
    if there is None:
        identity = {"datastack": datastack, "version": version}
        write_file(folder / IDENTITY_FILE, json.dumps(identity) + "\n")


def read_identity(folder: Path) -> tuple[str, int] | None:
    """Return datastack and version of a folder of tables, None where it does not say.

    The file lies in the release's folder, which may be the parent of a ``raw`` folder.
    """
    for place in (folder, folder.parent) if folder.name == "raw" else (folder,):
        file = place / IDENTITY_FILE
        if not file.is_file():
            continue
        try:
            identity = json.loads(file.read_text(encoding="utf-8"))
            return str(identity["datastack"]), int(identity["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{file} does not say a datastack and a version ({error}): correct or remove it"
            ) from error
    return None


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
    names = {spec.tables.get(word) or word for word in extra}
    for name in names:
        if name not in available:
            what = f"v{spec.version} has no table"
            raise unknown_label(what, name, set(available), "available_tables() lists all")
        if name == synapses:
            raise SourceError(
                f"{name} is the table of all synapses, which is not fetched whole: use "
                "download_synapses(pre, post), or the archive"
            )
    for role in MINIMUM_ROLES:
        if not spec.has(role):
            continue
        name = spec.name_of(role)
        if name in available:
            names.add(name)
            continue
        error = unknown_label(
            f"v{spec.version} has, in the role {role}, no table",
            name,
            set(available),
            f"pass tables={{{role!r}: ...}} if it goes by another name",
            SourceError,
        )
        if role in _NEEDED_ROLES:
            raise error
        logger.warning("%s; it is left out", error)
    return sorted(names)


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
        # By name: time and size of a file, and the sha256 that it had then.
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}

    def path(self, name: str) -> Path:
        """Return where a table's parquet file is, or will be."""
        if not _NAME.fullmatch(name):
            raise SourceError(
                f"{name!r} is not a table name: expected letters, digits, '_', '-', '.'"
            )
        return self.folder / f"{name}.parquet"

    def names(self) -> list[str]:
        """Return the names of the tables that are there and whole."""
        names = [path.stem for path in self.folder.glob("*.json") if _NAME.fullmatch(path.stem)]
        return sorted(name for name in names if self.has(name))

    def has(self, name: str) -> bool:
        """Whether a table is there and whole, by its record and the sha256 in it."""
        return self._record(name) is not None

    def _record(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        try:
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            stat = path.stat()
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
            return None
        state = (stat.st_mtime_ns, stat.st_size)
        if self._digests.get(name, (None, ""))[0] != state:
            self._digests[name] = (state, file_sha256(path))
        if self._digests[name][1] != record["sha256"]:
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
            raise unknown_label(
                f"{self.folder} holds no whole table",
                name,
                self.names(),
                "download it",
                SourceError,
            )
        return record

    def read(self, name: str) -> pd.DataFrame:
        """Return one table."""
        self.provenance(name)
        with pa.parquet.ParquetFile(self.path(name)) as file:
            return to_frame(file.read())

    def write(
        self, name: str, table: pd.DataFrame | pa.Table, provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write a table and its record, whole or not at all; an old one is replaced."""
        path = self.path(name)
        try:
            if isinstance(table, pd.DataFrame):
                table = pa.Table.from_pandas(table, preserve_index=False)
            # Renamed in the order of their ends: the record, which is of both, is the last.
            with new_file(path.with_suffix(".json")) as record_part, new_file(path) as part:
                pa.parquet.write_table(plain_types(table), part, compression="zstd")
                record = {
                    **self.release,
                    **provenance,
                    "name": name,
                    "rows": table.num_rows,
                    "sha256": file_sha256(part),
                    "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                    "created_by": _versions(),
                }
                record_part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        except (pa.ArrowException, TypeError) as error:
            raise SourceError(f"{path} cannot be written ({error}): check the table") from error
        return record

    def remove_leftovers(self) -> list[str]:
        """Remove the parts of files that an interrupted download left behind."""
        leftovers = sorted(self.folder.glob("*.tmp"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return [path.name for path in leftovers]


def _versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
