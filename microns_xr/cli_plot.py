"""The command ``microns-xr plot``: pictures of what a store holds."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from microns_xr.errors import SchemaError

_SUFFIXES = (".png", ".pdf", ".svg")


class What(StrEnum):
    """Which picture."""

    depth = "depth"
    cells = "cells"
    connectivity = "connectivity"
    probability = "probability"
    like_to_like = "like-to-like"
    tuning = "tuning"
    orientations = "orientations"
    currents = "currents"
    degrees = "degrees"


def register(app: typer.Typer) -> None:
    """Add the command ``plot`` to the application.

    Parameters
    ----------
    app : typer.Typer
        The application.
    """
    app.command()(plot)


def plot(
    store: Annotated[Path, typer.Argument(help="A store written by microns-xr.")],
    what: Annotated[What, typer.Argument(help="Which picture.")],
    out: Annotated[Path, typer.Option(help="FILE.png, FILE.pdf or FILE.svg.")],
    by: Annotated[
        str | None,
        typer.Option(help="Variable of the units that makes groups or colours, such as layer."),
    ] = None,
    variable: Annotated[
        str | None,
        typer.Option(help="What is drawn: mean_size, probability, pref_dir, rate_dir, ..."),
    ] = None,
    axes: Annotated[str, typer.Option(help="cells: which axes, right and up.")] = "xy",
    distance: Annotated[
        str, typer.Option(help="probability: START:STOP:STEP in µm, lateral distance.")
    ] = "0:400:50",
    presynaptic: Annotated[
        str, typer.Option(help="Which axons are complete enough: extended, full, clean, all.")
    ] = "extended",
    nucleus_id: Annotated[int | None, typer.Option(help="tuning: whose.")] = None,
    null: Annotated[
        int, typer.Option(help="like-to-like: so many permutations of the angles.", min=0)
    ] = 0,
    dpi: Annotated[int, typer.Option(help="Dots per inch of a png.", min=30, max=1200)] = 150,
) -> None:
    """Draw a picture of what a store holds.

    depth, cells: where cells are. connectivity, probability, degrees: who is connected.
    tuning, orientations, currents, like-to-like: function.
    """
    import microns_xr as mx
    from microns_xr.cli_draw import draw

    if out.suffix not in _SUFFIXES:
        raise SchemaError(f"--out is {out.name!r}, expected a name that ends in one of {_SUFFIXES}")
    if not out.parent.is_dir():
        raise SchemaError(f"there is no folder {out.parent} to write {out.name} to: make it first")
    if out.is_dir():
        raise SchemaError(f"--out is the folder {out}, expected the name of a file")
    tree = mx.open_store(store, lazy=True)
    ax = draw(
        tree,
        what,
        by=by,
        variable=variable,
        axes=axes,
        distance=distance,
        presynaptic=presynaptic,
        nucleus_id=nucleus_id,
        null=null,
    )
    release = f"{tree.attrs['datastack']} v{tree.attrs['materialization_version']}"
    ax.set_title(f"{ax.get_title()}, {release}" if ax.get_title() else release, fontsize="medium")
    beside = out.with_name(f".{out.stem}.tmp{out.suffix}")
    try:
        # Without a time of making, equal pictures are equal files.
        undated = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        figure: Any = ax.figure
        figure.savefig(beside, dpi=dpi, bbox_inches="tight", metadata=undated[out.suffix])
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    typer.echo(f"written       {out}")
