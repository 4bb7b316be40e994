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
from microns_xr.ingest import ingest
from microns_xr.ingest import read as mapping
from microns_xr.ingest import read as parse
from microns_xr.ingest import read as pipeline
from microns_xr.store import spill, stream
from microns_xr.store import spill as collate

# What is compiled is loaded once, too.
_KINDS = np.array([parse.ID, parse.ID, parse.WHOLE], np.int8)
_FOUND = parse.parse_lines(
    np.frombuffer(b"1,2,3\n", np.uint8), _KINDS, np.zeros(3, bool), np.zeros(3, np.int64)
)
_ONE, _CODE = np.array([1]), np.array([0], np.int32)
Lookup(_ONE, "ids").find(_ONE, 1)
mapping._classify(
    _CODE, _CODE, *_FOUND.numbers[:2], *_FOUND.null[:2], _FOUND.numbers[2], 1, np.zeros(9, np.int64)
)
collate.collate(np.array([0, 1]), _CODE, _ONE)
spill._counting_sort(_CODE, 1)
spill._places(np.array([0, 1], np.int32), np.array([0]), 1)


def die_at(name: str, number: int, files: str, units: xr.Dataset, out: str) -> None:
    """Ingest, and be killed at the beginning of a step, the given one of its kind, from 0."""
    owner: Any = {
        "_spill": pipeline,
        "_write_slice": stream,
        "_take_over": ingest,
        "rename": os,
    }[name]
    real = getattr(owner, name)
    calls = count()

    def step(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, name, step)
    mx.ingest_synapses(files, units, out, progress=False)
