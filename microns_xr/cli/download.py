"""``microns-xr download``: tables and synapses from the service or its archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import microns_xr as mx
from microns_xr.cli.shared import Version, parse_side
from microns_xr.errors import SchemaError


def download(
    version: Version,
    datadir: Annotated[
        Path, typer.Option(help="Folder of downloads, with one folder per release.")
    ] = Path("data"),
    source: Annotated[
        Literal["auto", "cave", "archive"],
        typer.Option(help="cave: versions that are still served; archive: others."),
    ] = "auto",
    policy: Annotated[
        Literal["minimum", "all"], typer.Option(help="minimum: the tables that units need.")
    ] = "minimum",
    extra: Annotated[
        list[str] | None, typer.Option(help="A further table; may be repeated.")
    ] = None,
    pre: Annotated[
        str | None,
        typer.Option(
            help="Also synapses from: a file of ids, conditions like axon=extended, or all."
        ),
    ] = None,
    post: Annotated[
        str | None,
        typer.Option(help="Also synapses onto: a file of ids, conditions like layer=L4, or all."),
    ] = None,
    positions: Annotated[
        bool, typer.Option("--positions", help="Include positions of synapses.")
    ] = False,
    datastack: Annotated[str, typer.Option(help="Name of the datastack.")] = "minnie65_public",
    server: Annotated[str | None, typer.Option(help="Address of another CAVE service.")] = None,
    archive_url: Annotated[str | None, typer.Option(help="Folder of another archive.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; caveclient's file by default.")
    ] = None,
) -> None:
    """Download the tables of a release and, on request, synapses; run it again to continue.

    Complete tables are not fetched again. With --pre or --post, the synapses from or onto those
    neurons are fetched too; conditions are joined by commas, as in
    --pre axon=extended,cell_type=23P.
    """
    if policy == "all" and extra:
        raise SchemaError(f"--extra is {', '.join(extra)}, but --policy all has every table")
    of_cave = server is not None or token_file is not None
    of_archive = archive_url is not None
    if (of_cave and (of_archive or source == "archive")) or (of_archive and source == "cave"):
        raise SchemaError(
            "--server and --token-file are for the service, --archive-url is for the archive: "
            "give those of one source"
        )
    mx.releases.release_spec(version, datastack=datastack)
    table_source: Any = source
    if of_cave:
        if token_file is not None and not token_file.is_file():
            raise SchemaError(f"--token-file: there is no file {token_file}")
        token = token_file.read_text(encoding="utf-8").strip() if token_file else None
        table_source = mx.sources.CaveSource(
            version, datastack=datastack, server_address=server, auth_token=token
        )
    elif of_archive:
        folder = datadir / datastack / f"v{version}" / "archive"
        table_source = mx.sources.ArchiveSource(
            version, url=archive_url, datastack=datastack, folder=folder
        )
    sides = {"--pre": parse_side(pre, "--pre"), "--post": parse_side(post, "--post")}
    release = mx.Release(version, datadir=datadir, datastack=datastack, source=table_source)
    typer.echo(f"source        {release.source}")
    for name, record in release.download("extra" if extra else policy, extra or ()).items():
        typer.echo(f"table         {name}: {record['rows']} rows")
    folder = datadir / release.datastack / f"v{version}"
    synapse_option = ""
    if pre is not None or post is not None:
        conditions = [side for side in sides.values() if isinstance(side, dict)]
        if conditions:
            tuned = any("tuning" in side for side in conditions)
            units = release.units(functional="match" if tuned else "none")
            for option, side in sides.items():
                if isinstance(side, dict):
                    sides[option] = mx.select_units(units, **side)
        synapses = release.download_synapses(sides["--pre"], sides["--post"], positions=positions)
        typer.echo(f"synapses      {synapses.rows} in request {synapses.key}")
        synapse_option = f" --synapses {synapses.key}"
    typer.echo(
        f"next          microns-xr build {folder} --version {version}{synapse_option} "
        f"--out v{version}.zarr"
    )
