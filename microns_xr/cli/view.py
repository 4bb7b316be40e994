"""``microns-xr view``: a page of a store for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import microns_xr as mx
from microns_xr.cli.shared import Store, require_name


def view(
    store: Store,
    out: Annotated[
        Path | None, typer.Option(help="FILE.html; by default the name of the store, here.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
) -> None:
    """Write a page for a browser: cells, connections, partners of a neuron, currents.

    The page contains its data and needs no network: you can send it to a colleague.
    """
    out = out or Path(f"{Path(store).resolve().stem}.html")
    require_name(out, ".html")
    mx.to_html(store, out, overwrite=overwrite)
    typer.echo(f"page          {out}, {out.stat().st_size / 1e6:.1f} MB: open it in a browser")
