"""The command ``microns-xr``: from raw tables to a store, and from a store to currents.

Each command is in the module of its name. None of them imports xarray, numba or matplotlib outside
of functions, so that ``--help`` and a mistyped option do not wait for these.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated, Any

import typer

import microns_xr as mx
from microns_xr.cli.build import build
from microns_xr.cli.currents import currents
from microns_xr.cli.demo import demo
from microns_xr.cli.download import download
from microns_xr.cli.info import info
from microns_xr.cli.ingest import ingest
from microns_xr.cli.messages import one_line
from microns_xr.cli.plot import plot
from microns_xr.cli.view import view
from microns_xr.errors import MicronsXrError

app = typer.Typer(
    name="microns-xr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` prints errors as one line
    rich_markup_mode="markdown",
    help=(
        "MICrONS as labelled arrays: units, sparse connectivity, input currents.\n\n"
        "Try it first, without any data:\n\n"
        "- `microns-xr demo`\n\n"
        "With your tables:\n\n"
        "- `microns-xr build data/1718 --version 1718 --out v1718.zarr`\n"
        "- `microns-xr info v1718.zarr`\n"
        "- `microns-xr currents v1718.zarr --out currents.csv`"
    ),
)
# In the order of --help: from tables to a store, then to numbers, then to pictures.
for _command in (demo, build, download, ingest, info, currents, view, plot):
    app.command()(_command)

EXIT_ERROR = 1  # an expected error; 2 is a usage error
EXIT_UNEXPECTED = 3

_state: dict[str, Any] = {"debug": False, "command": None}


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"microns-xr {mx.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each step.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    _state.update(debug=debug, command=context.invoked_subcommand)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s"
    )


def _one_line(message: object) -> str:
    group: Any = typer.main.get_command(app)
    return one_line(message, group.commands, _state["command"])


def main() -> None:
    """Run the command; print errors as one readable line and set an exit code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        from tqdm import tqdm

        tqdm.write(f"microns-xr: note: {_one_line(message)}", file=sys.stderr)

    warnings.showwarning = show
    try:
        app(standalone_mode=True)
    except Exception as error:
        if _state["debug"]:
            raise
        kind, hint, code = "error", "", EXIT_ERROR
        if not isinstance(error, MicronsXrError | OSError):
            kind, code = f"unexpected {type(error).__name__}", EXIT_UNEXPECTED
            hint = " (run again with microns-xr --debug for the traceback)"
        typer.echo(f"microns-xr: {kind}: {_one_line(error)}{hint}", err=True)
        sys.exit(code)
