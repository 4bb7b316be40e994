"""The command ``microns-xr ingest``: files of all synapses of a release to a store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from microns_xr.errors import SchemaError


class Keep(StrEnum):
    """Which rows are kept."""

    both = "both"
    pre = "pre"
    post = "post"


class Scope(StrEnum):
    """Which pairs the files would show."""

    unknown = "unknown"
    requested = "requested"
    complete = "complete"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(ingest)


def ingest(
    files: Annotated[list[str], typer.Argument(help="csv, csv.gz or parquet; paths or addresses.")],
    units: Annotated[
        Path, typer.Option(help="A store with the units, or a folder with the raw tables.")
    ],
    out: Annotated[Path, typer.Option(help="The store to write, such as v1718.zarr.")],
    version: Annotated[
        int | None, typer.Option(help="Materialization version, for a folder of raw tables.")
    ] = None,
    header: Annotated[
        Path | None, typer.Option(help="Header file of csv files without a header line.")
    ] = None,
    memory: Annotated[str, typer.Option(help="The most memory to take.")] = "2 GB",
    keep: Annotated[
        Keep, typer.Option(help="pre, post: also synapses with a unit at that end only.")
    ] = Keep.both,
    positions: Annotated[
        bool, typer.Option(help="With the single synapses and their positions.")
    ] = False,
    scope: Annotated[
        Scope, typer.Option(help="complete: the files are the whole table of the release.")
    ] = Scope.unknown,
    count_bad_lines: Annotated[
        bool, typer.Option(help="Leave out lines that cannot be read, and count them.")
    ] = False,
) -> None:
    """Stream files of synapses, however large, into a store.

    The files of the archive have no header line; their header files are found beside them. Layers
    and functional units of a store are taken along.
    """
    import microns_xr as mx
    from microns_xr.ingest.ingest import ingest_synapses
    from microns_xr.store.open import groups_of, open_root, read_group
    from microns_xr.store.swap import is_store

    shared = None
    if is_store(str(units)):
        root = open_root(units)
        names = [name for name in ("units", "layers", "functional") if name in groups_of(root)]
        parts = {name: read_group(root, name) for name in names}
    elif version is None:
        raise SchemaError(f"--units {units} is no store, expected one, or --version with a folder")
    else:
        release = mx.Release(version, source=units)
        parts = {"units": release.units(functional="none"), "layers": release.layers()}
        shared = release.shared_roots()
    ingest_synapses(
        list(files),
        parts["units"],
        out,
        header=header,
        memory=memory,
        keep=keep.value,
        positions=positions,
        on_bad_lines="count" if count_bad_lines else "error",
        layers=parts.get("layers"),
        functional=parts.get("functional"),
        scope=scope.value,
        shared_roots=shared,
    )
    # Metadata only: what is written may be more than fits in memory.
    group: Any = open_root(out)["connectivity/by_post"]
    attrs: dict[str, Any] = group.attrs.asdict()
    dropped, lines = attrs["dropped_synapses"]["any_reason"], attrs.get("bad_lines", 0)
    typer.echo(f"rows          {attrs['n_synapse_rows']}, of which {dropped} without two units")
    if lines:
        typer.echo(f"bad lines     {lines}")
    typer.echo(f"connections   {group['indices'].shape[0]} among {attrs['shape'][0]} units")
    typer.echo(f"store         {out}")
