"""Ingests that run in a process of their own, to be killed there."""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Any

import numpy as np
import tqdm.auto  # noqa: F401  # imported once, where the processes are forked from
import xarray as xr

import microns_xr as mx
from microns_xr.connectivity.labels import Lookup
from microns_xr.ingest import ingest, read
from microns_xr.store import spill, stream

# What is compiled is loaded once, too.
_ONE, _CODE = np.array([1]), np.array([0], np.int32)
Lookup(_ONE, "ids").find(_ONE, 1)
_FILE = read.InputFile("", 0, "csv", read.Header(("a", "b", "c"), ("",) * 3), 0, {})
_ROLES = {"pre": "a", "post": "b", "size": "c"}
read._csv_block(b"1,2,3\n", _FILE, read.Layout("pt_root_id", "synapse", _ROLES, ()))
spill.collate(np.array([0, 1]), _CODE, _ONE)


def die_at(name: str, number: int, files: str, units: xr.Dataset, out: str) -> None:
    """Ingest, and be killed at the beginning of a step, the given one of its kind, from 0."""
    owner: Any = {
        "_spill": read,
        "_write_slice": stream,
        "finish_store": ingest,
        "rename": os,
    }[name]
    real = getattr(owner, name)
    calls = count()

    def step(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, name, step)
    mx.ingest_synapses(files, units, out, overwrite=True, progress=False)
