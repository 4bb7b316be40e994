"""The command ``microns-xr``, called in this process, as its entry point calls it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from microns_xr.cli import main


def run(*args: object, cwd: Path | None = None) -> CompletedProcess[str]:
    words = ["microns-xr", *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.chdir(cwd or os.curdir),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),  # `main` shows them in its own way
    ):
        warnings.simplefilter("default")
        try:
            main()
        except SystemExit as end:
            code = end.code
    return CompletedProcess(words, int(code or 0), out.getvalue(), err.getvalue())  # type: ignore[call-overload]
