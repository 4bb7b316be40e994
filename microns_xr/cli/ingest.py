"""``microns-xr ingest``: from files of synapses of any size to a store."""

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
    release_of,
    require_new_store,
)
from microns_xr.errors import SchemaError


def ingest(
    files: Annotated[list[str], typer.Argument(help="csv, csv.gz or parquet; paths or addresses.")],
    units: Annotated[
        str, typer.Option(help="A store with the units, or a folder with the raw tables.")
    ],
    out: NewStore,
    version: Annotated[
        int | None, typer.Option(help="Materialization version, for a folder of raw tables.")
    ] = None,
    header: Annotated[
        Path | None, typer.Option(help="Header file of csv files without a header line.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Maximum memory to use.")] = "2 GB",
    keep: Annotated[
        Literal["both", "pre", "post"],
        typer.Option(help="pre, post: also synapses with a unit only at that end."),
    ] = "both",
    positions: Annotated[
        bool, typer.Option("--positions", help="Include single synapses and their positions.")
    ] = False,
    scope: Annotated[
        Scope, typer.Option(help="What the files cover; complete: the whole table of the release.")
    ] = "unknown",
    count_bad_lines: Annotated[
        bool,
        typer.Option(
            "--count-bad-lines", help="Leave out lines that cannot be read, and count them."
        ),
    ] = False,
    datastack: Datastack = None,
    overwrite: Overwrite = False,
) -> None:
    """Stream files of synapses of any size into a store.

    Files of the archive have no header line; their header files are found beside them. Layers
    and functional units of the store given as --units are copied to the new store.
    """
    from microns_xr.store.swap import address_of, is_store

    if address_of(out) == address_of(units):
        raise SchemaError(
            f"--out is the store to read the units from, {units}, and would replace it: give "
            "another name"
        )
    require_new_store(out, overwrite)
    if "://" in address_of(units) or is_store(address_of(units)):
        parts: Any = mx.open_store(units, lazy=True)
    elif version is None:
        raise SchemaError(
            f"--units {units} is not a store: give a store, or a folder and --version"
        )
    else:
        release = release_of(Path(units), version, datastack)
        parts = {"units": release.units(functional="none")}
        if release.spec.space.has_depth:
            parts["layers"] = release.layers()
    mx.ingest_synapses(
        list(files),
        parts,
        out,
        header=header,
        memory=memory,
        keep=keep,
        positions=positions,
        on_bad_lines="count" if count_bad_lines else "error",
        scope=scope,
        overwrite=overwrite,
    )
    tree = mx.open_store(out, lazy=True)  # the connections may not fit in memory
    attrs = tree["connectivity"].attrs
    typer.echo(f"rows          {attrs['n_synapse_rows']}")
    if attrs.get("bad_lines"):
        typer.echo(f"bad lines     {attrs['bad_lines']}")
    typer.echo("\n".join(describe(out)[1]))
    typer.echo(f"store         {out}")
