"""The command ``microns-xr``: from raw tables to a store, and from a store to currents."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from microns_xr import cli_ingest, cli_plot
from microns_xr.errors import MicronsXrError, SchemaError

app = typer.Typer(
    name="microns-xr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "MICrONS as labelled arrays: units, sparse connectivity, input currents.\n\n"
        "Try first:  microns-xr demo\n\n"
        "Your tables: microns-xr build data/1718 --version 1718 --out v1718.zarr, then "
        "microns-xr info v1718.zarr, then microns-xr currents v1718.zarr --out currents.csv"
    ),
)

EXIT_ERROR = 1  # an error that says what to do; 2 is a wrong call
EXIT_UNEXPECTED = 3

_state = {"debug": False}


class Weight(StrEnum):
    """What a connection is weighted by."""

    synapse_size = "synapse_size"
    synapse_count = "synapse_count"


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each step.")] = False,
) -> None:
    _state["debug"] = debug
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s"
    )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the store, the currents and the figure.")
    ] = Path("microns_xr_demo"),
    n_nuclei: Annotated[
        int | None, typer.Option(help="Size of the synthetic release.", min=500)
    ] = None,
    version: Annotated[int, typer.Option(help="661, 1507 or 1718.")] = 1718,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic release.", min=0)] = 0,
) -> None:
    """Make a synthetic release and go all the way: units, layers, connectivity, currents, store.

    The release has the tables, columns and pathologies of the real ones. Needs no network.
    """
    import microns_xr as mx
    from microns_xr.cli_output import describe_store, release_lines, steps
    from microns_xr.plot import connectivity_matrix, currents_by_angle, depth_profile

    started = time.perf_counter()
    size: dict[str, Any] = {"n_nuclei": n_nuclei} if n_nuclei else {}
    source = mx.sources.DemoSource(version, seed=seed, **size)
    release = mx.Release(version, source=source)
    out.mkdir(parents=True, exist_ok=True)
    store = out / f"demo_v{version}.zarr"
    with steps(
        ["raw tables", "units and layers", "connectivity", "currents", "store", "figure"]
    ) as advance:
        for name in release.available_tables():
            release.table(name)
        advance()
        units = release.units(functional="match", rates=True)
        layers = release.layers()
        advance()
        connectivity = release.connectivity()
        advance()
        currents = mx.input_currents(connectivity, units.rate_ori)
        advance()
        mx.write_store(
            store,
            units=units,
            layers=layers,
            functional=release.functional(),
            connectivity=connectivity,
        )
        advance()
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
        depth_profile(units, layers, ax=axes[0])
        typed = mx.select_units(
            units, classification_system=["excitatory_neuron", "inhibitory_neuron"]
        )
        among = mx.select_connections(
            connectivity, pre=typed.nucleus_id.values, post=typed.nucleus_id.values
        )
        by_type = mx.group_connectivity(
            mx.annotate(among, typed, ["cell_type"]), "cell_type", "cell_type"
        )
        connectivity_matrix(by_type, ax=axes[1])
        currents_by_angle(currents, units.classification_system, ax=axes[2])
        for ax, title in zip(
            axes,
            ("cells by depth and layer", "connections between types", "mean input current"),
            strict=True,
        ):
            ax.set_title(title)
        figure.savefig(out / "demo.png", dpi=110)
        plt.close(figure)
        advance()
    tree = mx.open_store(store)
    typer.echo("\n".join([*release_lines(tree)[:2], *describe_store(tree)]))
    driven = int((currents.notnull().all("orientation")).sum())
    typer.echo(
        f"currents      {driven} of {currents.sizes['post_nucleus_id']} neurons have an input "
        f"current over {currents.sizes['orientation']} orientations"
    )
    typer.echo(f"store         {store}")
    typer.echo(f"figure        {out / 'demo.png'}")
    typer.echo(f"time          {time.perf_counter() - started:.1f} s")
    typer.echo(
        f'next          python -c "import microns_xr as mx; print(mx.open_store({str(store)!r}))"'
    )


@app.command()
def build(
    raw_dir: Annotated[
        Path, typer.Argument(help="Folder with the raw tables (csv, csv.gz, parquet, feather).")
    ],
    version: Annotated[int, typer.Option(help="Materialization version of the tables.")],
    out: Annotated[Path, typer.Option(help="The store to write, such as v1718.zarr.")],
    multisoma: Annotated[
        str,
        typer.Option(help="any: drop roots with several nuclei; typed: count typed nuclei only."),
    ] = "any",
    synapses: Annotated[
        str | None, typer.Option(help="Which synapse file, where there are several.")
    ] = None,
) -> None:
    """Build a store from the raw tables of a release.

    Tables are found by name in RAW_DIR, RAW_DIR/raw and RAW_DIR/functional, synapses in a folder
    synapses/ below one of them. What is not there (coregistration, tuning curves, synapses) is
    left out of the store and named.
    """
    import microns_xr as mx
    from microns_xr.cli_output import describe_store, steps

    release = mx.Release(version, source=raw_dir)
    has = release.has_tables()
    with steps(["units", "layers", "functional", "connectivity", "store"]) as advance:
        units = release.units(
            functional="match" if has["coregistration"] else "none",
            multisoma=multisoma,  # type: ignore[arg-type]
            rates=True if has["coregistration"] and has["tuning_curves"] else None,
        )
        advance()
        layers = mx.segment_layers(units)
        advance()
        functional = release.functional() if has["coregistration"] else None
        advance()
        connectivity = release.connectivity(synapses, units=units) if has["synapses"] else None
        advance()
        mx.write_store(
            out,
            units=units,
            layers=layers,
            functional=functional,
            connectivity=connectivity,
        )
        advance()
    absent = [role for role in ("coregistration", "tuning_curves", "synapses") if not has[role]]
    if absent:
        typer.echo(f"not in {raw_dir}, so not in the store: {', '.join(absent)}")
    typer.echo("\n".join(describe_store(mx.open_store(out))))
    typer.echo(f"store         {out}")


@app.command()
def download(
    version: Annotated[int, typer.Option(help="Materialization version.")],
    datadir: Annotated[
        Path, typer.Option(help="Where downloads are kept; a release has its own folder below.")
    ] = Path("data"),
    source: Annotated[
        str, typer.Option(help="auto, cave (versions that are served) or archive.")
    ] = "auto",
    policy: Annotated[str, typer.Option(help="minimum, extra or all.")] = "minimum",
    extra: Annotated[
        list[str] | None, typer.Option(help="A further table or role; may be repeated.")
    ] = None,
    refresh: Annotated[bool, typer.Option(help="Fetch tables again that are here.")] = False,
    pre: Annotated[
        str | None,
        typer.Option(help="Synapses from: a file of ids, words like axon=extended, or all."),
    ] = None,
    post: Annotated[
        str | None,
        typer.Option(help="Synapses onto: a file of ids, words like layer=L4, or all."),
    ] = None,
    positions: Annotated[bool, typer.Option(help="With the positions of the synapses.")] = False,
    allow_unknown: Annotated[
        bool, typer.Option(help="Ask for root ids this release does not know.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Requests at a time.", min=1)] = 3,
    batch: Annotated[int | None, typer.Option(help="The most neurons a request.", min=1)] = None,
    datastack: Annotated[str, typer.Option(help="Name of the datastack.")] = "minnie65_public",
    server: Annotated[str | None, typer.Option(help="Address of another CAVE service.")] = None,
    archive_url: Annotated[str | None, typer.Option(help="Folder of another archive.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token; caveclient's own file by default.")
    ] = None,
) -> None:
    """Download the tables of a release, and on request synapses; run it again to continue.

    Nothing that is here and whole is fetched again. With --pre or --post, the synapses from or onto
    those neurons are fetched too: several words are joined by a comma, as in
    --pre axon=extended,cell_type=23P.
    """
    import microns_xr as mx
    from microns_xr.cli_output import check_ids, ids_from

    chosen: Any = source
    if source not in ("auto", "cave", "archive"):
        raise SchemaError(f"--source is {source!r}, expected auto, cave or archive")
    of_cave = server is not None or token_file is not None
    of_archive = archive_url is not None
    if (of_cave and (of_archive or source == "archive")) or (of_archive and source == "cave"):
        raise SchemaError(
            "--server and --token-file are for the service, --archive-url is for the archive: "
            "give those of one source"
        )
    mx.releases.release_spec(version)
    if of_cave:
        if token_file is not None and not token_file.is_file():
            raise SchemaError(f"--token-file: there is no file {token_file}")
        token = token_file.read_text(encoding="utf-8").strip() if token_file else None
        chosen = mx.sources.CaveSource(
            version, datastack=datastack, server_address=server, auth_token=token
        )
    elif of_archive:
        folder = datadir / datastack / f"v{version}" / "archive"
        chosen = mx.sources.ArchiveSource(
            version, url=archive_url, datastack=datastack, folder=folder
        )
    for option, said in (("--pre", pre), ("--post", post)):
        check_ids(said, option)
    release = mx.Release(version, datadir=datadir, datastack=datastack, source=chosen)
    typer.echo(f"source        {release.source}")
    policy = "extra" if extra and policy == "minimum" else policy
    records = release.download(policy, extra or (), refresh=refresh)  # type: ignore[arg-type]
    for name, record in records.items():
        typer.echo(f"table         {name}: {record['rows']} rows")
    synapses = None
    if pre is not None or post is not None:
        units = None
        if any("=" in (side or "") for side in (pre, post)):
            units = release.units(functional="match" if "tuning=" in f"{pre}{post}" else "none")
        synapses = release.download_synapses(
            ids_from(pre, units, "--pre"),
            ids_from(post, units, "--post"),
            positions=positions,
            allow_unknown=allow_unknown,
            workers=workers,
            batch=batch,
        )
        typer.echo(f"synapses      {synapses.rows} in request {synapses.key}")
    folder = datadir / release.datastack / f"v{version}"
    which = f" --synapses {synapses.key}" if synapses is not None else ""
    line = f"microns-xr build {folder} --version {version}{which} --out v{version}.zarr"
    typer.echo(f"next          {line}")


@app.command()
def info(store: Annotated[Path, typer.Argument(help="A store written by microns-xr.")]) -> None:
    """Say what a store holds: release, units, layers, connections, what was dropped."""
    import microns_xr as mx
    from microns_xr.cli_output import describe_store, release_lines

    tree = mx.open_store(store)
    typer.echo("\n".join([*release_lines(tree), *describe_store(tree)]))


@app.command()
def currents(
    store: Annotated[Path, typer.Argument(help="A store with units, rates and connectivity.")],
    out: Annotated[Path, typer.Option(help="FILE.csv, FILE.csv.gz or FILE.zarr.")],
    rates: Annotated[
        str, typer.Option(help="Rates of the units: rate_ori or rate_dir.")
    ] = "rate_ori",
    weight: Annotated[
        Weight, typer.Option(help="What connections are weighted by.")
    ] = Weight.synapse_size,
) -> None:
    """Compute the input current of every neuron: the sum over presynaptic partners of size x rate.

    Partners without a rate are left out; rated_fraction says which share of a neuron's input
    weight had one.
    """
    import microns_xr as mx
    from microns_xr.cli_output import check_target, steps, write_currents

    if out.suffix not in (".csv", ".zarr") and not out.name.endswith(".csv.gz"):
        raise SchemaError(f"--out is {out.name!r}, expected FILE.csv, FILE.csv.gz or FILE.zarr")
    check_target(out, store)
    with steps(["open", "contract", "write"]) as advance:
        tree = mx.open_store(store)
        for group in ("units", "connectivity"):
            if group not in tree.children:
                raise SchemaError(
                    f"{store} has no {group}, found {list(tree.children)}: build it from a folder "
                    "that has those tables"
                )
        units = tree["units"].to_dataset()
        if rates not in units or not rates.startswith("rate_"):
            found = [str(n) for n in units.data_vars if str(n).startswith("rate_")]
            raise SchemaError(
                f"the units of {store} have no {rates!r}, found {found}: rates come from the table "
                "tuning_curves_fitted_v1 and the coregistration"
            )
        advance()
        connectivity = tree["connectivity"].to_dataset()
        result = mx.input_currents(connectivity, units[rates], weight=weight.value)
        advance()
        write_currents(result, units, out)
        advance()
    values = result.values
    typer.echo(f"currents      {values.shape[0]} neurons x {values.shape[1]} {result.dims[1]}s")
    angles = [f"{a:g}" for a in result[result.dims[1]].values]
    sums = result.sum("post_nucleus_id", skipna=True).values
    typer.echo(
        "sum by angle  " + ", ".join(f"{a}: {s:.6g}" for a, s in zip(angles, sums, strict=True))
    )
    typer.echo(f"written       {out}")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


cli_ingest.register(app)
cli_plot.register(app)


def main() -> None:
    """Run the command; errors are one readable line and an exit code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        tqdm.write(f"microns-xr: note: {_one_line(message)}", file=sys.stderr)

    warnings.showwarning = show
    try:
        app(standalone_mode=True)
    except (MicronsXrError, OSError) as error:
        if _state["debug"]:
            raise
        typer.echo(f"microns-xr: error: {_one_line(error)}", err=True)
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if _state["debug"]:
            raise
        typer.echo(
            f"microns-xr: unexpected {type(error).__name__}: {_one_line(error)} "
            "(run again with microns-xr --debug for the trace)",
            err=True,
        )
        sys.exit(EXIT_UNEXPECTED)


if __name__ == "__main__":
    main()
