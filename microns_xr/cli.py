"""The command ``microns-xr``: from raw tables to a store, and from a store to currents."""

# The package resolves its names lazily, so that ``--help`` and a mistyped option do not wait for
# xarray, numba and matplotlib; modules that need these are imported in functions.
from __future__ import annotations

import io
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

import microns_xr as mx
from microns_xr.errors import MicronsXrError, SchemaError, unknown_label
from microns_xr.provenance import read_counts

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

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

EXIT_ERROR = 1  # an expected error; 2 is a usage error
EXIT_UNEXPECTED = 3

_state: dict[str, Any] = {"debug": False, "command": None}

Datastack = Annotated[
    str | None,
    typer.Option(help="Datastack of a folder that does not state it (default: minnie65_public)."),
]
Version = Annotated[int, typer.Option(help="Materialization version.")]
Store = Annotated[Path, typer.Argument(help="A store written by microns-xr.")]
NewStore = Annotated[Path, typer.Option(help="The store to write, such as v1718.zarr.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")]


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


@contextmanager
def _steps(*names: str) -> Iterator[Callable[[], None]]:
    """Show a progress bar of named steps; `advance` ends one and begins the next."""
    with tqdm(total=len(names), bar_format="{desc:<18}|{bar:20}| {n_fmt}/{total_fmt}") as bar:
        remaining = iter(names)
        bar.set_description_str(next(remaining))

        def advance() -> None:
            bar.set_description_str(next(remaining, "done"))
            bar.update()

        yield advance


def _require_parent(out: Path) -> None:
    if not out.parent.is_dir():
        raise SchemaError(f"{out.name} cannot be written: create the folder {out.parent} first")


def _require_new_store(out: Path, overwrite: bool) -> None:
    """Raise, before the work begins, if a store cannot be written."""
    from microns_xr.store.swap import address_of, require_replaceable

    if out.suffix not in ("", ".zarr"):
        raise SchemaError(f"--out is {out.name!r}, expected the name of a store, such as NAME.zarr")
    _require_parent(out)
    require_replaceable(address_of(out), overwrite)


def _release_text(attrs: Mapping[Any, Any]) -> str:
    if "materialization_version" not in attrs:
        return str(attrs.get("datastack", "not stated"))
    return f"{attrs['datastack']} v{attrs['materialization_version']}"


def _require_groups(tree: xr.DataTree, *names: str) -> None:
    for name in names:
        if name not in tree.children:
            raise SchemaError(
                f"the store has no {name}, found {list(tree.children)}: build it from a folder "
                "with those tables"
            )


def _require_rates(units: xr.Dataset, name: str) -> None:
    if name not in units or not name.startswith("rate_"):
        names = [str(n) for n in units.data_vars if str(n).startswith("rate_")]
        raise SchemaError(
            f"the units have no rates {name!r}, found {names}: rates come from the table "
            "tuning_curves_fitted_v1 and the coregistration"
        )


# From tables to a store


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
    """Make a synthetic release and run every step: units, layers, connectivity, currents, store.

    The release has the tables, columns and pathologies of the real ones. Needs no network.
    """
    from matplotlib.figure import Figure

    from microns_xr.files import new_file, write_error
    from microns_xr.plot import connectivity_matrix, currents_by_angle, depth_profile

    start = time.perf_counter()
    size: dict[str, Any] = {"n_nuclei": n_nuclei} if n_nuclei else {}
    source = mx.sources.DemoSource(version, seed=seed, **size)
    release = mx.Release(version, source=source)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    store = out / f"demo_v{version}.zarr"
    with _steps(
        "raw tables", "units and layers", "connectivity", "currents", "store", "figure"
    ) as advance:
        for name in release.available_tables():
            release.table(name)
        advance()
        units, layers = release.units(functional="match", rates=True), release.layers()
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
            overwrite=True,  # of an earlier demonstration
        )
        advance()
        figure = Figure(figsize=(15, 4.5), layout="constrained")
        axes = figure.subplots(1, 3)
        depth_profile(units, layers, ax=axes[0])
        neurons = mx.select_units(
            units, classification_system=["excitatory_neuron", "inhibitory_neuron"]
        )
        connections = mx.select_connections(
            connectivity, pre=neurons.nucleus_id, post=neurons.nucleus_id
        )
        by_type = mx.group_connectivity(
            mx.annotate(connections, neurons, ["cell_type"]), "cell_type", "cell_type"
        )
        connectivity_matrix(by_type, ax=axes[1])
        currents_by_angle(currents, units.classification_system, ax=axes[2])
        axes[0].set_title("cells by depth and layer")
        axes[1].set_title("connections between types")
        axes[2].set_title("mean input current")
        with new_file(out / "demo.png") as part:
            figure.savefig(part, format="png", dpi=110)
        advance()
    tree = mx.open_store(store)
    typer.echo("\n".join([*_release_lines(tree)[:2], *_store_lines(tree)]))
    n_with_current = int(currents.notnull().all("orientation").sum())
    typer.echo(
        f"currents      {n_with_current} of {currents.sizes['post_nucleus_id']} neurons have an "
        f"input current over {currents.sizes['orientation']} orientations"
    )
    typer.echo(f"store         {store}")
    typer.echo(f"figure        {out / 'demo.png'}")
    typer.echo(f"time          {time.perf_counter() - start:.1f} s")
    typer.echo(
        f'next          python -c "import microns_xr as mx; print(mx.open_store({str(store)!r}))"'
    )


def _release_of(folder: Path, version: int, datastack: str | None) -> Any:
    """Return the release of a folder of tables, which may state its datastack."""
    from microns_xr.sources.directory import read_identity

    stated = read_identity(folder.resolve())
    return mx.Release(version, source=folder, datastack=datastack or (stated and stated[0]) or None)


class Scope(StrEnum):
    """Which pairs the files cover."""

    unknown = "unknown"
    requested = "requested"
    complete = "complete"


class Convention(StrEnum):
    """Where angles are 0, and in which direction they grow."""

    up_clockwise = "up_clockwise"
    right_counterclockwise = "right_counterclockwise"


class Multisoma(StrEnum):
    """Which roots with several nuclei to drop."""

    any = "any"
    typed = "typed"


@app.command()
def build(
    raw_dir: Annotated[
        Path, typer.Argument(help="Folder with the raw tables (csv, csv.gz, parquet, feather).")
    ],
    version: Version,
    out: NewStore,
    multisoma: Annotated[
        Multisoma,
        typer.Option(help="any: drop roots with several nuclei; typed: count typed nuclei only."),
    ] = Multisoma.any,
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
        Convention | None,
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
    from microns_xr.release import functional_parts, unused_functional_tables

    _require_new_store(out, overwrite)
    release = _release_of(raw_dir, version, datastack)
    has = release.has_tables()
    convention: Any = None if angle_convention is None else angle_convention.value
    mode, rates, kind = functional_parts(release, convention)
    stated = release.source.scope if scope is None else scope.value
    with _steps("units", "layers", "functional", "connectivity", "store") as advance:
        units = release.units(
            mode, multisoma.value, rates=rates, angle_convention=convention if rates else None
        )
        advance()
        layers = mx.segment_layers(units) if release.spec.space.has_depth else None
        advance()
        functional = None if kind is None else release.functional(kind)
        advance()
        connectivity = None
        if has["synapses"]:
            connectivity = release.connectivity(synapses, units=units, scope=stated)
        advance()
        mx.write_store(
            out,
            units=units,
            layers=layers,
            functional=functional,
            connectivity=connectivity,
            overwrite=overwrite,
        )
        advance()
    has["tuning_curves"] |= rates  # also of fits
    absent = [role for role in ("coregistration", "tuning_curves", "synapses") if not has[role]]
    if absent:
        typer.echo(f"not in {raw_dir}, so not in the store: {', '.join(absent)}")
    if unused := unused_functional_tables(release):
        hint = ""
        if any("fits" in name for name in unused):
            hint = " (rates need one table of fits, a coregistration, and --angle-convention)"
        typer.echo(f"in {raw_dir}, but not in the store: {', '.join(unused)}{hint}")
    typer.echo("\n".join(_store_lines(mx.open_store(out))))
    typer.echo(f"store         {out}")


class Source(StrEnum):
    """Where tables come from."""

    auto = "auto"
    cave = "cave"
    archive = "archive"


class Policy(StrEnum):
    """Which tables to download."""

    minimum = "minimum"
    extra = "extra"
    all = "all"


@app.command()
def download(
    version: Version,
    datadir: Annotated[
        Path, typer.Option(help="Folder of downloads, with one folder per release.")
    ] = Path("data"),
    source: Annotated[
        Source, typer.Option(help="cave: versions that are still served; archive: others.")
    ] = Source.auto,
    policy: Annotated[
        Policy, typer.Option(help="minimum: what units need; extra: also the tables of --extra.")
    ] = Policy.minimum,
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
    positions: Annotated[bool, typer.Option(help="Include positions of synapses.")] = False,
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
    if policy is Policy.extra and not extra:
        raise SchemaError("--policy is extra, which needs --extra NAME, the name of a table")
    if policy is Policy.all and extra:
        raise SchemaError(f"--extra is {', '.join(extra)}, but --policy all has every table")
    of_cave = server is not None or token_file is not None
    of_archive = archive_url is not None
    if (of_cave and (of_archive or source == "archive")) or (of_archive and source == "cave"):
        raise SchemaError(
            "--server and --token-file are for the service, --archive-url is for the archive: "
            "give those of one source"
        )
    mx.releases.release_spec(version, datastack=datastack)
    table_source: Any = source.value
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
    sides = {"--pre": _parse_side(pre, "--pre"), "--post": _parse_side(post, "--post")}
    release = mx.Release(version, datadir=datadir, datastack=datastack, source=table_source)
    typer.echo(f"source        {release.source}")
    chosen: Any = "extra" if extra else policy.value
    for name, record in release.download(chosen, extra or ()).items():
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


def _parse_side(value: str | None, option: str) -> Any:
    """Parse ``all`` to None, a file to ids, and ``axon=extended,layer=L4`` to conditions."""
    if value is None or value == "all":
        return None
    if Path(value).is_file():
        words = Path(value).read_text(encoding="utf-8").replace(",", " ").split()
        if not words:
            raise SchemaError(f"{option}: {value} is empty, expected one id per line")
        for word in words:
            if not word.isdigit():
                raise SchemaError(f"{option}: {value} holds {word!r}, expected one id per line")
        return [int(word) for word in words]
    if "=" not in value:
        raise SchemaError(
            f"{option} is {value!r}, expected a file of ids, conditions like axon=extended, or all"
        )
    known = (
        "layer", "brain_area", "cell_type", "classification_system", "tuning", "axon", "dendrite",
    )  # fmt: skip
    conditions: dict[str, list[str]] = {}
    for pair in value.split(","):
        name, _, word = pair.partition("=")
        if name.strip() not in known:
            raise unknown_label(f"{option} has the condition", name.strip(), known)
        conditions.setdefault(name.strip(), []).append(word.strip())
    return conditions


class Keep(StrEnum):
    """Which rows to keep."""

    both = "both"
    pre = "pre"
    post = "post"


@app.command()
def ingest(
    files: Annotated[list[str], typer.Argument(help="csv, csv.gz or parquet; paths or addresses.")],
    units: Annotated[
        Path, typer.Option(help="A store with the units, or a folder with the raw tables.")
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
        Keep, typer.Option(help="pre, post: also synapses with a unit only at that end.")
    ] = Keep.both,
    positions: Annotated[
        bool, typer.Option(help="Include single synapses and their positions.")
    ] = False,
    scope: Annotated[
        Scope, typer.Option(help="What the files cover; complete: the whole table of the release.")
    ] = Scope.unknown,
    count_bad_lines: Annotated[
        bool, typer.Option(help="Leave out lines that cannot be read, and count them.")
    ] = False,
    datastack: Datastack = None,
    overwrite: Overwrite = False,
) -> None:
    """Stream files of synapses of any size into a store.

    Files of the archive have no header line; their header files are found beside them. Layers
    and functional units of the store given as --units are copied to the new store.
    """
    from microns_xr.store.open import groups_of, open_root, read_group
    from microns_xr.store.swap import is_store

    if out.resolve() == units.resolve():
        raise SchemaError(
            f"--out is the store to read the units from, {units}, and would replace it: give "
            "another name"
        )
    _require_new_store(out, overwrite)
    if is_store(str(units)):
        root = open_root(units)
        names = [name for name in ("units", "layers", "functional") if name in groups_of(root)]
        parts = {name: read_group(root, name) for name in names}
    elif version is None:
        raise SchemaError(
            f"--units {units} is not a store: give a store, or a folder and --version"
        )
    else:
        release = _release_of(units, version, datastack)
        parts = {"units": release.units(functional="none")}
        if release.spec.space.has_depth:
            parts["layers"] = release.layers()
    mx.ingest_synapses(
        list(files),
        parts,
        out,
        header=header,
        memory=memory,
        keep=keep.value,
        positions=positions,
        on_bad_lines="count" if count_bad_lines else "error",
        scope=scope.value,
        overwrite=overwrite,
    )
    # Metadata only: the connections may not fit in memory.
    group: Any = open_root(out)["connectivity/by_post"]
    attrs: dict[str, Any] = group.attrs.asdict()
    dropped = read_counts(group, "dropped_synapses")["any_reason"]
    lines = attrs.get("bad_lines", 0)
    typer.echo(f"rows          {attrs['n_synapse_rows']}, of which {dropped} without two units")
    if lines:
        typer.echo(f"bad lines     {lines}")
    n_pre, n_post = attrs["shape"]
    typer.echo(
        f"connections   {group['indices'].shape[0]} from {n_pre} pre to {n_post} post neurons"
    )
    typer.echo(f"scope         {scope.value}")
    typer.echo(f"store         {out}")


# From a store to numbers


@app.command()
def info(store: Store) -> None:
    """Show the contents of a store: release, units, layers, connections, dropped rows."""
    tree = mx.open_store(store)
    typer.echo("\n".join([*_release_lines(tree), *_store_lines(tree)]))


def _release_lines(tree: xr.DataTree) -> list[str]:
    attrs = tree.attrs
    return [
        f"release       {_release_text(attrs)}",
        f"written by    {attrs.get('created_by', 'unknown')}",
        f"timestamp     {attrs.get('timestamp') or 'not known'}",
        *(f"  table       {table.partition(', ')[0]}" for table in attrs.get("source_tables", [])),
    ]


def _store_lines(tree: xr.DataTree) -> list[str]:
    """Describe the groups of a store and the dropped rows, one fact per line."""
    lines = []
    if "units" in tree.children:
        lines += _unit_lines(tree["units"].to_dataset())
    if "layers" in tree.children:
        layers = tree["layers"].to_dataset()
        borders = zip(
            layers.layer_name.values, layers.y_start.values, layers.y_end.values, strict=True
        )
        lines.append("layers (µm)   " + ", ".join(f"{n} {a:.1f}-{b:.1f}" for n, a, b in borders))
    if "functional" in tree.children:
        lines.append(f"functional    {tree['functional'].sizes['scan_unit']} recorded units")
    if "connectivity" in tree.children:
        connectivity = tree["connectivity"].to_dataset()
        n_pre, n_post = (connectivity.sizes[f"{side}_nucleus_id"] for side in ("pre", "post"))
        lines.append(
            f"connectivity  {mx.n_connections(connectivity)} connections among {n_pre} pre and "
            f"{n_post} post neurons, scope {connectivity.scope.item()}"
        )
        dropped = _counts(connectivity, "dropped_synapses")
        for reason, n in dropped.items():
            if n:
                lines.append(f"  dropped     {n} rows: {reason.replace('_', ' ')}")
    return lines


def _counts(obj: xr.Dataset, name: str) -> dict[str, int]:
    return read_counts(obj, name) if name in obj.attrs else {}


def _unit_lines(units: xr.Dataset) -> list[str]:
    lines = [f"units         {units.sizes['nucleus_id']}"]
    selection = _counts(units, "selection")
    dropped = [
        f"{n} {k.replace('_', ' ')}" for k, n in selection.items() if k not in ("nuclei", "units")
    ]
    if dropped:
        lines.append(f"  of          {selection['nuclei']} nuclei; dropped: {', '.join(dropped)}")
    if absent := units.attrs.get("absent_tables"):
        lines.append(f"  without     {', '.join(absent)}")
    for name in (
        "classification_system", "layer", "brain_area", "axon_completeness", "tuning_type",
    ):  # fmt: skip
        if name in units:
            counts = units[name].to_series().value_counts()
            words = ", ".join(f"{word} {n}" for word, n in counts.head(8).items())
            more = f", {len(counts) - 8} more" if len(counts) > 8 else ""
            lines.append(f"  {name:<22}{words}{more}")
    if "n_rated" in units:
        lines.append(f"  with rates            {int((units.n_rated > 0).sum())}")
    return lines


@app.command()
def currents(
    store: Annotated[Path, typer.Argument(help="A store with units, rates and connectivity.")],
    out: Annotated[Path, typer.Option(help="FILE.csv, FILE.csv.gz or FILE.zarr.")],
    rates: Annotated[
        str, typer.Option(help="Rates of the units: rate_ori or rate_dir.")
    ] = "rate_ori",
    weight: Annotated[
        str | None,
        typer.Option(
            help="Weight of a connection, such as synapse_count (default: synapse_size, or else "
            "the only one)."
        ),
    ] = None,
) -> None:
    """Compute the input current of every neuron: the sum over presynaptic partners of size x rate.

    Partners without a rate are left out; rated_fraction is the share of a neuron's input weight
    that comes from partners with a rate.
    """
    if out.suffix not in (".csv", ".zarr") and not out.name.endswith(".csv.gz"):
        raise SchemaError(f"--out is {out.name!r}, expected FILE.csv, FILE.csv.gz or FILE.zarr")
    if out.resolve() == store.resolve():
        raise SchemaError(f"--out is the store to read, {store}: give another name")
    _require_parent(out)
    if out.suffix != ".zarr" and out.is_dir():
        raise SchemaError(f"{out} is a folder, expected the name of a file")
    # Only currents may be replaced, never another store.
    if out.suffix == ".zarr" and out.exists():
        is_currents = (out / "input_current" / "zarr.json").is_file()
        if not is_currents or (out / "units").exists():
            raise SchemaError(
                f"{out} exists and does not hold currents: remove it, or give another name"
            )
    with _steps("open", "contract", "write") as advance:
        tree = mx.open_store(store)
        _require_groups(tree, "units", "connectivity")
        units = tree["units"].to_dataset()
        _require_rates(units, rates)
        advance()
        result = mx.input_currents(tree["connectivity"].to_dataset(), units[rates], weight=weight)
        advance()
        _write_currents(result, units, out)
        advance()
    dim = str(result.dims[1])
    typer.echo(f"currents      {result.shape[0]} neurons x {result.shape[1]} {dim}s")
    sums = result.sum("post_nucleus_id", skipna=True).to_series()
    typer.echo("sum by angle  " + ", ".join(f"{angle:g}: {s:.6g}" for angle, s in sums.items()))
    typer.echo(f"written       {out}")


def _write_currents(result: xr.DataArray, units: xr.Dataset, out: Path) -> None:
    import pandas as pd

    from microns_xr.files import new_file

    if out.suffix == ".zarr":
        from microns_xr.store.write import write_tree

        write_tree(out, result.to_dataset(name="input_current"), "currents")
        return
    dim, ids = str(result.dims[1]), result["post_nucleus_id"]
    columns = [f"current_{dim}_{angle:g}" for angle in result[dim].values]
    table = pd.DataFrame(result.values, index=ids.to_index(), columns=columns)
    if "pt_root_id" in units.variables:
        roots = units["pt_root_id"].reset_coords(drop=True)
        roots = roots.reindex(nucleus_id=ids.values, fill_value=0)
        table.insert(0, "post_pt_root_id", roots.values)
    table["rated_fraction"] = result["rated_fraction"].values
    with new_file(out) as part:
        table.to_csv(part, compression="gzip" if out.suffix == ".gz" else None)


# From a store to pictures


@app.command()
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
    out = out or Path(f"{store.resolve().stem}.html")
    if out.suffix != ".html":
        raise SchemaError(f"--out is {out.name!r}, expected FILE.html")
    _require_parent(out)
    mx.to_html(store, out, overwrite=overwrite)
    typer.echo(f"page          {out}, {out.stat().st_size / 1e6:.1f} MB: open it in a browser")


class Picture(StrEnum):
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
    adjacency = "adjacency"
    partners = "partners"
    weights = "weights"
    aligned = "aligned"
    summary = "summary"


# The pictures that each option applies to.
_PICTURES = {
    "by": (
        Picture.depth, Picture.cells, Picture.connectivity, Picture.probability,
        Picture.orientations, Picture.currents, Picture.like_to_like, Picture.adjacency,
    ),
    "variable": (
        Picture.cells, Picture.connectivity, Picture.degrees, Picture.tuning,
        Picture.orientations, Picture.currents, Picture.like_to_like, Picture.adjacency,
        Picture.weights, Picture.aligned,
    ),
    "axes": (Picture.cells, Picture.partners),
    "distance": (Picture.probability,),
    "pre": (Picture.connectivity, Picture.probability, Picture.like_to_like),
    "post": (Picture.connectivity, Picture.probability, Picture.like_to_like),
    "presynaptic": (Picture.connectivity, Picture.probability, Picture.like_to_like),
    "nucleus_id": (Picture.tuning, Picture.partners),
    "null": (Picture.like_to_like,),
}  # fmt: skip


def _require_effect(what: Picture, passed: Mapping[str, Any]) -> None:
    """Raise for an option that the picture does not use."""
    for name, pictures in _PICTURES.items():
        if name in passed and what not in pictures:
            raise SchemaError(
                f"--{name.replace('_', '-')} has no effect on {what}: it applies to "
                f"{', '.join(pictures)}"
            )
    if what is Picture.cells and {"by", "variable"} <= set(passed):
        raise SchemaError("--by and --variable both colour the cells: give one of them")
    if what is Picture.like_to_like and "by" in passed and not passed.get("null"):
        raise SchemaError(
            "--by has no effect on like-to-like without --null, whose permutations it groups"
        )
    of_probability = what is not Picture.connectivity or passed.get("variable") == "probability"
    if "presynaptic" in passed and not of_probability:
        raise SchemaError("--presynaptic has no effect without --variable probability")


@app.command()
def plot(
    context: typer.Context,
    store: Store,
    what: Annotated[Picture, typer.Argument(help="Which picture.")],
    out: Annotated[Path, typer.Option(help="FILE.png, FILE.pdf or FILE.svg.")],
    by: Annotated[
        str | None,
        typer.Option(help="Variable of the units that groups or colours, such as layer."),
    ] = None,
    variable: Annotated[
        str | None,
        typer.Option(help="Variable to draw: mean_size, probability, pref_dir, rate_dir, ..."),
    ] = None,
    axes: Annotated[
        str, typer.Option(help="cells, partners: horizontal and vertical axis.")
    ] = "xy",
    distance: Annotated[
        str, typer.Option(help="probability: START:STOP:STEP in µm, lateral distance.")
    ] = "0:400:50",
    pre: Annotated[
        str | None,
        typer.Option(
            help="connectivity, probability, like-to-like: presynaptic neurons, a file of nucleus "
            "ids, conditions like layer=L4, or all; if the scope is unknown, those that were "
            "asked for."
        ),
    ] = None,
    post: Annotated[str | None, typer.Option(help="The same for postsynaptic neurons.")] = None,
    presynaptic: Annotated[
        str, typer.Option(help="Which axons are complete enough: extended, full, clean, all.")
    ] = "extended",
    nucleus_id: Annotated[int | None, typer.Option(help="tuning, partners: the neuron.")] = None,
    null: Annotated[
        int, typer.Option(help="like-to-like: number of permutations of the angles.", min=0)
    ] = 0,
) -> None:
    """Draw a picture of a store.

    depth, cells, partners: positions of cells. connectivity, adjacency, probability, degrees,
    weights: connections. tuning, orientations, currents, aligned, like-to-like: function.
    summary: cells, connections and currents in one figure.
    """
    suffixes = (".png", ".pdf", ".svg")
    if out.suffix not in suffixes:
        raise SchemaError(f"--out is {out.name!r}, expected a name that ends in one of {suffixes}")
    _require_parent(out)
    if out.is_dir():
        raise SchemaError(f"--out is the folder {out}, expected the name of a file")
    is_passed = {n: v for n, v in context.params.items() if _is_passed(context, n)}
    _require_effect(what, is_passed)
    between = {"pre": _parse_neurons(pre, "--pre"), "post": _parse_neurons(post, "--post")}
    from matplotlib.figure import Figure

    from microns_xr.plot.tuning import with_angle

    tree = mx.open_store(store, lazy=True)
    if by is not None and "units" in tree.children:
        known = [str(n) for n, v in tree["units"].variables.items() if v.dims == ("nucleus_id",)]
        more = ("pref_ori", "pref_dir", *(["depth"] if what is Picture.adjacency else []))
        if by not in (*known, *more):
            raise unknown_label("--by is", by, known, error=SchemaError)
    release = _release_text(tree.attrs)
    if what is Picture.summary:
        pairs = tree if "connectivity" in tree.children else None
        figure = Figure(figsize=(12, 9), layout="constrained")
        mx.plot.release_summary(_read(tree, "units"), _layers(tree), pairs, figure=figure)
        _save(figure, out)
        typer.echo(f"written       {out}")
        return
    # Not a pyplot figure, which pyplot would keep.
    projection = "polar" if what is Picture.orientations else None
    ax = Figure(layout="constrained").add_subplot(projection=projection)
    right_up: Any = tuple(axes)
    match what:
        case Picture.depth:
            units = _read(tree, "units")
            mx.plot.depth_profile(units, _layers(tree), by=by or "layer", ax=ax)
        case Picture.cells:
            colour = by or variable or "cell_type"
            units = with_angle(_read(tree, "units"), colour)
            mx.plot.cells_in_space(units, colour, axes=right_up, layers=_layers(tree), ax=ax)
        case Picture.connectivity:
            _draw_connectivity(
                tree, by or "cell_type", variable or "n_connections", presynaptic, between, ax
            )
        case Picture.adjacency:
            _require_groups(tree, "connectivity")
            units = with_angle(_read(tree, "units"), by or "")
            mx.plot.adjacency_matrix(tree, units, by, weight=variable, ax=ax)
        case Picture.partners:
            _draw_partners(tree, nucleus_id, right_up, ax)
        case Picture.weights:
            _require_groups(tree, "connectivity")
            mx.plot.weight_distribution(tree, variable, ax=ax)
        case Picture.probability:
            probability = mx.analysis.connection_probability(
                _read(tree, "connectivity"),
                _neurons(tree),
                by or "classification_system",
                _parse_distance(distance),
                presynaptic=presynaptic,
                **between,
            )
            mx.plot.connection_probability(probability, ax=ax)
        case Picture.degrees:
            _require_groups(tree, "connectivity")
            names = (variable,) if variable else ("out_degree", "in_degree")
            degrees = _of_neurons(tree, mx.degrees(tree)).compute()
            mx.plot.degree_distribution(degrees, names, ax=ax)
        case Picture.tuning:
            _draw_tuning(_read(tree, "units"), variable or "rate_dir", nucleus_id, ax)
        case Picture.orientations:
            name = variable or "pref_ori"
            units = with_angle(_read(tree, "units"), name)
            mx.plot.preferred_orientations(units, name, by=by, ax=ax)
        case Picture.currents:
            currents, units = _currents(tree, variable or "rate_ori")
            by = by or ("layer" if "layer" in units.variables else None)
            groups = None if by is None else with_angle(units, by)[by]
            mx.plot.currents_by_angle(currents, groups, ax=ax)
        case Picture.aligned:
            _draw_aligned(tree, variable or "rate_ori", ax)
        case Picture.like_to_like:
            chosen = {"presynaptic": presynaptic, **between}
            _draw_like_to_like(tree, variable or "probability", by, null, chosen, ax)
    ax.set_title(f"{ax.get_title()}, {release}" if ax.get_title() else release, fontsize="medium")
    _save(ax.figure, out)
    typer.echo(f"written       {out}")


def _is_passed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _parse_neurons(value: str | None, option: str) -> Any:
    """Parse an option as `_parse_side`; ``all`` are all units, without conditions."""
    return {} if value == "all" else _parse_side(value, option)


def _save(figure: Any, out: Path) -> None:
    import matplotlib as mpl

    from microns_xr.files import write_file

    # Without a date and with fixed ids, equal pictures are equal files.
    undated = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[out.suffix]
    options: dict[str, Any] = {"dpi": 150, "bbox_inches": "tight", "metadata": undated}
    content = io.BytesIO()  # on a full disk matplotlib has errors of its own
    with mpl.rc_context({"svg.hashsalt": "microns_xr"}):
        figure.savefig(content, format=out.suffix[1:], **options)
    write_file(out, content.getvalue())


def _parse_distance(text: str) -> Any:
    import numpy as np

    try:
        start, stop, step = (float(part) for part in text.split(":"))
        edges = np.arange(start, stop + step / 2, step)
    except (ValueError, ZeroDivisionError):
        edges = np.empty(0)
    if edges.size < 2:
        raise SchemaError(
            f"--distance is {text!r}, expected START:STOP:STEP in µm, such as 0:400:50"
        )
    return edges


def _read(tree: xr.DataTree, name: str) -> xr.Dataset:
    _require_groups(tree, name)
    return tree[name].to_dataset().compute()  # the store is lazy: only this group is read


def _layers(tree: xr.DataTree) -> xr.Dataset | None:
    return _read(tree, "layers") if "layers" in tree.children else None


def _neurons(tree: xr.DataTree) -> xr.Dataset:
    """Return the units that are neurons, without glia and other cells."""
    units = _read(tree, "units")
    if "classification_system" not in units.variables:  # own data
        return units
    return units.isel(nucleus_id=(units["classification_system"] != "nonneuron").values)


def _of_neurons(tree: xr.DataTree, result: Any) -> Any:
    """Return a result over the axes of the connectivity without glia and other cells."""
    if "units" not in tree.children:
        return result
    import numpy as np

    ids = _neurons(tree)["nucleus_id"].values
    dims = [dim for dim in ("pre_nucleus_id", "post_nucleus_id") if dim in result.dims]
    return result.isel({dim: np.flatnonzero(np.isin(result[dim].values, ids)) for dim in dims})


def _draw_connectivity(
    tree: xr.DataTree,
    by: str,
    variable: str,
    presynaptic: str,
    between: Mapping[str, Any],
    ax: Axes,
) -> None:
    connectivity, units = _read(tree, "connectivity"), _neurons(tree)
    if variable == "probability":
        interval = mx.analysis.Wilson()
        table = mx.analysis.connection_probability(
            connectivity, units, by, presynaptic=presynaptic, interval=interval, **between
        )
    else:
        connections = mx.select_connections(connectivity, pre=units, post=units)
        if any(neurons is not None for neurons in between.values()):
            connections = mx.select_connections(connections, units, **between)
        table = mx.group_connectivity(connections, by, units=units)
    mx.plot.connectivity_matrix(table, variable, ax=ax)


def _draw_partners(tree: xr.DataTree, nucleus_id: int | None, axes: Any, ax: Axes) -> None:
    _require_groups(tree, "connectivity")
    if nucleus_id is None:
        some = tree["connectivity"].to_dataset()["post_nucleus_id"].values[:3].tolist()
        raise SchemaError(f"--nucleus-id is missing, expected a neuron, such as {some}")
    units, layers = _read(tree, "units"), _layers(tree)
    mx.plot.partners_in_space(tree, units, nucleus_id, axes=axes, layers=layers, ax=ax)


def _draw_tuning(units: xr.Dataset, name: str, nucleus_id: int | None, ax: Axes) -> None:
    from microns_xr.plot.tuning import fit_of

    _require_rates(units, name)
    if nucleus_id is None or nucleus_id not in units["nucleus_id"].values:
        with_rates = units["nucleus_id"].values[units[name].notnull().values.all(axis=1)]
        raise SchemaError(
            f"--nucleus-id is {nucleus_id or 'missing'}, expected a neuron of the store; "
            f"{with_rates.size} have rates, such as {with_rates[:3].tolist()}"
        )
    rates = units[name].sel(nucleus_id=nucleus_id)
    mx.plot.tuning_curve(rates, fit_of(rates), ax=ax)
    ax.set_title(f"neuron {nucleus_id}")


def _currents(tree: xr.DataTree, rates: str) -> tuple[xr.DataArray, xr.Dataset]:
    units = _read(tree, "units")
    _require_rates(units, rates)
    _require_groups(tree, "connectivity")
    return _of_neurons(tree, mx.input_currents(tree, units[rates]).compute()), units


def _draw_aligned(tree: xr.DataTree, rates: str, ax: Axes) -> None:
    from microns_xr.plot.tuning import with_angle

    currents, units = _currents(tree, rates)
    dim = "direction" if "direction" in currents.dims else "orientation"
    name = f"pref_{dim[:3]}"
    units = with_angle(units, name)
    # Tables of preferred angles may have another convention than the stimuli.
    angle = mx.angles.convert(units[name], currents[dim].attrs.get("angle_convention"))
    aligned = mx.analysis.align_to_preferred(
        currents, units.assign({name: angle}), angle=name, normalise=True
    )
    mx.plot.aligned_currents(aligned, ax=ax)


def _draw_like_to_like(
    tree: xr.DataTree,
    variable: str,
    by: str | None,
    null: int,
    chosen: Mapping[str, Any],
    ax: Axes,
) -> None:
    from microns_xr.analysis import null_models
    from microns_xr.plot.tuning import with_angle

    connectivity = _read(tree, "connectivity")
    units = with_angle(_read(tree, "units"), "pref_ori")
    estimate = mx.analysis.like_to_like
    result = estimate(connectivity, units, **chosen)
    comparison = None
    if null:
        permuted = null_models.permute_angles(units, within=by or "cell_type", n=null)
        comparison = null_models.compare(
            estimate, connectivity, units, permuted, variable=variable, **chosen
        )
    mx.plot.like_to_like(result, comparison, variable=variable, ax=ax)


# Errors


# Options that are not named like the argument of the package.
_OPTIONS = {
    "request": "--synapses",
    "on_bad_lines": "--count-bad-lines",
    "auth_token": "--token-file",
    "server_address": "--server",
    "url": "--archive-url",
}
# Calls of the package, and what does the same on the command line.
_CALLS = {
    r"(?:Release\.)?download_synapses\([^)]*\)": "microns-xr download --pre ... --post ...",
    r"mx\.Release\((\d+), source='cave'\), or source='archive'": "microns-xr download",
    r"(?:mx\.)?Release\((\d+), datastack='([^']*)'[^)]*\)": r"--version \1 --datastack \2",
    r"(?:mx\.)?Release\((\d+), \.\.\.\)": r"--version \1",
    r"read with source='path/of/the/folder'": "read by microns-xr build FOLDER",
    r"with source='path/of/the/folder'": "for microns-xr build FOLDER",
    r"pass on_bad_lines='error'": "leave out --count-bad-lines",
    r"build the connectivity with their ids as pre= and post=": "state them in Python, with "
    "mx.build_connectivity(..., pre=..., post=...)",
    # What is found in the store is all that there is.
    r": use mx\.[\w.]+(\([^)]*\)(\.\w+\([^)]*\))?)?$": "",
    r"mx\.Release\(\.\.\.\)\.units\(\)|mx\.write_store": "microns-xr build",
}
# `name=value`, or `name is value` at the beginning.
_ARGUMENT = re.compile(
    r"(?<![\w.'\"-])([a-z_]+)=('[^']*'|\"[^\"]*\"|\.\.\.|[\w./:]+)?|^([a-z_]+) is (?=['\"\[(\d-])"
)
_PYTHON = re.compile(r"\bmx\.[a-z]|(?<![\w.'\"-])[a-z_]+=(?:[\s,'\"\[({.]|$)|\w\(\)")


def _in_options(message: str) -> str:
    """Return a message with options of the command instead of arguments of the package."""
    group: Any = typer.main.get_command(app)
    by_command = {
        name: {param.name: param.opts[0] for param in command.params if param.opts[0][0] == "-"}
        for name, command in group.commands.items()
    }
    own = by_command.get(_state["command"], {})
    own |= {name: option for name, option in _OPTIONS.items() if option in own.values()}

    def option(match: re.Match[str]) -> str:
        name, value, subject = match.groups()
        if subject:
            return f"{own[subject]} is " if subject in own else match[0]
        if name in own:
            after = match.string[match.end() : match.end() + 1]
            value = {"True": "", "'count'": ""}.get(value or "", (value or "").strip("'\""))
            space = " " if value or after in ("[", "(", "{") else ""
            return f"{own[name]}{space}{value}"
        built = by_command["build"].get(name)
        return f"{built} of microns-xr build" if built else match[0]

    for call, words in _CALLS.items():
        message = re.sub(call, words, message)
    message = _ARGUMENT.sub(option, message)
    return f"{message} (in Python)" if _PYTHON.search(message) else message


def _one_line(message: object) -> str:
    return _in_options(" ".join(str(message).split()))


def main() -> None:
    """Run the command; print errors as one readable line and set an exit code."""

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
            "(run again with microns-xr --debug for the traceback)",
            err=True,
        )
        sys.exit(EXIT_UNEXPECTED)
