"""``microns-xr build``: from raw tables to a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import microns_xr as mx
from microns_xr.cli.info import describe
from microns_xr.cli.shared import (
    Datastack,
    NewStore,
    Overwrite,
    Scope,
    Version,
    release_of,
    require_new_store,
    steps,
)


def build(
    raw_dir: Annotated[
        Path, typer.Argument(help="Folder with the raw tables (csv, csv.gz, parquet, feather).")
    ],
    version: Version,
    out: NewStore,
    multisoma: Annotated[
        Literal["any", "typed"],
        typer.Option(help="any: drop roots with several nuclei; typed: count typed nuclei only."),
    ] = "any",
    synapses: Annotated[
        str | None, typer.Option(help="Which synapse file to use if there are several.")
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(
            help="What the synapses cover; complete: all synapses of the release. By default what "
            "the folder states."
        ),
    ] = None,
    angle_convention: Annotated[
        Literal["up_clockwise", "right_counterclockwise"] | None,
        typer.Option(help="Convention of the angles of a table of fits that does not state it."),
    ] = None,
    datastack: Datastack = None,
    overwrite: Overwrite = False,
) -> None:
    """Build a store from the raw tables of a release.

    Tables are found by name in RAW_DIR, RAW_DIR/raw and RAW_DIR/functional, synapses in a folder
    synapses/ below one of them. Missing tables (coregistration, tuning curves, synapses) are
    listed, and the parts that need them are left out of the store. Tables of rates, fits and
    functional properties that the store does not use are listed too.
    """
    from microns_xr.release import parts_of, unused_functional_tables

    require_new_store(out, overwrite)
    release = release_of(raw_dir, version, datastack)
    parts: dict[str, Any] = {}
    with steps("units", "layers", "functional", "connectivity", "store") as advance:
        for name, part in parts_of(
            release,
            synapses,
            multisoma=multisoma,
            scope=scope,
            angle_convention=angle_convention,
        ):
            parts[name] = part
            advance()
        mx.write_store(out, **parts, overwrite=overwrite)
        advance()
    has = release.has_tables()
    has["tuning_curves"] |= "n_rated" in parts["units"]  # also of fits
    absent = [role for role in ("coregistration", "tuning_curves", "synapses") if not has[role]]
    if absent:
        typer.echo(f"not in {raw_dir}, so not in the store: {', '.join(absent)}")
    if unused := unused_functional_tables(release):
        hint = ""
        if any("fits" in name for name in unused):
            hint = " (rates need one table of fits, a coregistration, and --angle-convention)"
        typer.echo(f"in {raw_dir}, but not in the store: {', '.join(unused)}{hint}")
    typer.echo("\n".join(describe(out)[1]))
    typer.echo(f"store         {out}")
