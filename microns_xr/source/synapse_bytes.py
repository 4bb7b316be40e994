"""Columns as the bytes of a parquet file, and bytes as a file that is whole or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microns_xr.errors import SourceError

__all__ = ["parquet_bytes", "write_whole"]


def parquet_bytes(columns: dict[str, np.ndarray]) -> bytes:
    """Return columns as the bytes of a parquet file, equal for equal columns."""
    sink = pa.BufferOutputStream()
    # What is soon read again and removed need not be small.
    pq.write_table(pa.table(columns), sink, compression="lz4", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, and rename it when it is on the disk."""
    part = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise SourceError(f"{path} cannot be written ({error}): check the folder") from error
