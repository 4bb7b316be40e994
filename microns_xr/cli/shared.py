"""Options, names of files and checks that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import microns_xr as mx
from microns_xr.errors import SchemaError, unknown_label

if TYPE_CHECKING:
    import xarray as xr

Datastack = Annotated[
    str | None,
    typer.Option(help="Datastack of a folder that does not state it (default: minnie65_public)."),
]
Version = Annotated[int, typer.Option(help="Materialization version.")]
# Not a Path, which would take a slash from s3://bucket/v1718.zarr.
Store = Annotated[str, typer.Argument(help="Path or address of a store.")]
NewStore = Annotated[Path, typer.Option(help="The store to write, such as v1718.zarr.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a store of that name.")]
Scope = Literal["unknown", "requested", "complete"]


@contextmanager
def steps(*names: str) -> Iterator[Callable[[], None]]:
    """Show a progress bar of named steps; `advance` ends one and begins the next."""
    from tqdm import tqdm

    with tqdm(total=len(names), bar_format="{desc:<18}|{bar:20}| {n_fmt}/{total_fmt}") as bar:
        remaining = iter(names)
        bar.set_description_str(next(remaining))

        def advance() -> None:
            bar.set_description_str(next(remaining, "done"))
            bar.update()

        yield advance


def require_name(out: Path, *suffixes: str) -> None:
    """Raise, before the work begins, unless a file or store can be written."""
    if not any(out.name.endswith(suffix) if suffix else not out.suffix for suffix in suffixes):
        names = " or ".join(f"NAME{suffix}" for suffix in suffixes if suffix)
        raise SchemaError(f"--out is {out.name!r}, expected {names}")
    if not out.parent.is_dir():
        raise SchemaError(f"{out.name} cannot be written: create the folder {out.parent} first")
    if out.is_dir() and out.suffix not in ("", ".zarr"):
        raise SchemaError(f"--out is the folder {out}, expected the name of a file")


def require_new_store(out: Path, overwrite: bool) -> None:
    from microns_xr.store.swap import address_of, require_replaceable

    require_name(out, ".zarr", "")
    require_replaceable(address_of(out), overwrite)


def require_groups(tree: xr.DataTree, *names: str) -> None:
    for name in names:
        if name not in tree.children:
            raise SchemaError(
                f"the store has no {name}, found {list(tree.children)}: build it from a folder "
                "with those tables"
            )


def require_rates(units: xr.Dataset, name: str) -> None:
    if name not in units or not name.startswith("rate_"):
        names = [str(n) for n in units.data_vars if str(n).startswith("rate_")]
        raise SchemaError(
            f"the units have no rates {name!r}, found {names}: rates come from the table "
            "tuning_curves_fitted_v1 and the coregistration"
        )


def release_of(folder: Path, version: int, datastack: str | None) -> Any:
    """Return the release of a folder of tables, which may state its datastack."""
    from microns_xr.sources.directory import read_identity

    stated = read_identity(folder.resolve())
    return mx.Release(version, source=folder, datastack=datastack or (stated and stated[0]) or None)


def parse_side(value: str | None, option: str) -> Any:
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
