"""Downloads that run in a process of their own, to be killed there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import caveclient  # noqa: F401  # imported once, where the processes are forked from
import numpy as np
import tqdm.auto  # noqa: F401
from synapse_service import MemoryService

import microns_xr as mx
from microns_xr.sources import synapses
from microns_xr.sources.synapses import download_synapses


def from_server(url: str, folder: str, post: list[int], batch: int) -> None:
    """Download through the real client."""
    with mx.sources.CaveSource(
        1718, server_address=url, auth_token="t", retry=mx.sources.Retry(base=0.01)
    ) as source:
        download_synapses(source, folder, post=post, batch=batch, workers=3, progress=False)


def until_operation(number: int, frame, folder: str, post: np.ndarray, batch: int) -> None:
    """Download, and die at the very moment of one operation on files, counted from 0."""
    left = [number]

    def deadly(module, name):
        real = getattr(module, name)

        def operation(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments, **options)

        setattr(module, name, operation)

    for module, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (os, "ftruncate")):
        deadly(module, name)
    synapses._TICK = 0.01
    download_synapses(
        MemoryService(frame), folder, post=post, batch=batch, workers=1, progress=False
    )
