"""``microns-xr currents``: the input current of every neuron of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import microns_xr as mx
from microns_xr.cli.shared import Store, require_groups, require_name, require_rates, steps
from microns_xr.errors import SchemaError

if TYPE_CHECKING:
    import xarray as xr


def currents(
    store: Store,
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

    The store needs units, rates and connectivity.

    Partners without a rate are left out; rated_fraction is the share of a neuron's input weight
    that comes from partners with a rate.
    """
    from microns_xr.store.swap import address_of, require_replaceable

    require_name(out, ".csv", ".csv.gz", ".zarr")
    if address_of(out) == address_of(store):
        raise SchemaError(f"--out is the store to read, {store}: give another name")
    if out.suffix == ".zarr":
        require_replaceable(address_of(out), overwrite=True, kind="currents")
    with steps("open", "contract", "write") as advance:
        tree = mx.open_store(store)
        require_groups(tree, "units", "connectivity")
        units = tree["units"].to_dataset()
        require_rates(units, rates)
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
