"""Archived tables: gzipped CSV without a header line, its header file, and Range requests."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from functools import cached_property

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from .tables import WireTable

# Tables whose file has a name of its own; the others are {table}_merged.
STEMS = {"synapses_pni_2": "synapses_pni_2_v1_filtered_view"}
POSTGRES_TYPES = {
    "Int32": "integer",
    "Int64": "bigint",
    "Float64": "double precision",
    "boolean": "boolean",
    "string": "character varying",
    "datetime64[ns, UTC]": "timestamp without time zone",
}


@dataclass(frozen=True)
class ArchivedFile:
    """A file of the bucket."""

    content: bytes
    content_type: str

    @cached_property
    def headers(self) -> dict[str, str]:
        """Headers that every answer with this file carries."""
        md5 = hashlib.md5(self.content, usedforsecurity=False)
        return {
            "Content-Type": self.content_type,
            "Accept-Ranges": "bytes",
            "ETag": f'"{md5.hexdigest()}"',
            "x-goog-hash": f"md5={base64.b64encode(md5.digest()).decode()}",
        }

    def answer(self, request_headers: Message) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a GET, whole or from some byte on."""
        size = len(self.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", request_headers.get("Range", ""))
        unchanged = request_headers.get("If-Range", self.headers["ETag"]) == self.headers["ETag"]
        if not wanted or not unchanged:
            return 200, self.headers, self.content
        start = int(wanted[1])
        if start >= size:
            return 416, {**self.headers, "Content-Range": f"bytes */{size}"}, b""
        headers = {**self.headers, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return 206, headers, self.content[start:]


class Archive:
    """The files of some versions, made when they are first asked for."""

    def __init__(self, root: str, versions: Mapping[int, Mapping[str, WireTable]]) -> None:
        self.root = root.rstrip("/")
        self._versions = versions
        self._files: dict[str, ArchivedFile] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> ArchivedFile | None:
        """Return the file at a path of the server, None when there is none."""
        found = re.fullmatch(re.escape(self.root) + r"/v(\d+)/(\w+?)(_header\.csv|\.csv\.gz)", path)
        if not found:
            return None
        version, stem, ending = int(found[1]), found[2], found[3]
        names = {stem_of(name): name for name in self._versions.get(version, ())}
        if stem not in names:
            return None
        with self._lock:
            if path not in self._files:
                table = self._versions[version][names[stem]]
                make = header_file if ending == "_header.csv" else data_file
                self._files[path] = make(table.frame)
            return self._files[path]


def stem_of(table: str) -> str:
    """Return the name of a table's file without its ending."""
    return STEMS.get(table, f"{table}_merged")


def header_file(frame: pd.DataFrame) -> ArchivedFile:
    """Return the header file: a line a column, its name and its type."""
    lines = [f"{c},{POSTGRES_TYPES.get(str(frame[c].dtype), 'ARRAY')}\n" for c in frame]
    return ArchivedFile("".join(lines).encode(), "text/csv")


def data_file(frame: pd.DataFrame) -> ArchivedFile:
    """Return the data file: no header line, t and f for truth, nothing for what is missing."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    columns = []
    for column in table.columns:
        if pa.types.is_boolean(column.type):
            column = pc.if_else(column, "t", "f")
        elif pa.types.is_timestamp(column.type):
            column = pc.strftime(column.cast(pa.timestamp("us")), "%Y-%m-%d %H:%M:%S")
        elif pa.types.is_list(column.type):
            rows = column.to_pylist()
            column = pa.array([None if r is None else f"{{{','.join(map(str, r))}}}" for r in rows])
        columns.append(column)
    plain = pa.Table.from_arrays(columns, names=table.column_names)
    sink = io.BytesIO()
    try:
        options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
        pa.csv.write_csv(plain, sink, options)
    except pa.ArrowInvalid:  # text that needs quotes
        sink = io.BytesIO()
        pa.csv.write_csv(plain, sink, pa.csv.WriteOptions(include_header=False))
    packed = gzip.compress(sink.getvalue(), compresslevel=1, mtime=0)
    return ArchivedFile(packed, "application/gzip")
