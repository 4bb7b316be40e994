"""``microns-xr demo``: a synthetic release, from tables to currents and a figure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

import microns_xr as mx
from microns_xr.cli.info import describe
from microns_xr.cli.plot import save
from microns_xr.cli.shared import steps


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

    from microns_xr.files import write_error

    start = time.perf_counter()
    size: dict[str, Any] = {"n_nuclei": n_nuclei} if n_nuclei else {}
    source = mx.sources.DemoSource(version, seed=seed, **size)
    release = mx.Release(version, source=source)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    store = out / f"demo_v{version}.zarr"
    with steps("tables to a store", "currents", "figure") as advance:
        release.write(store, overwrite=True)  # of an earlier demonstration
        advance()
        tree = mx.open_store(store)
        units, layers, connectivity = (
            tree[name].to_dataset() for name in ("units", "layers", "connectivity")
        )
        currents = mx.input_currents(connectivity, units.rate_ori)
        advance()
        figure = Figure(figsize=(12, 9), layout="constrained")
        mx.plot.release_summary(units, layers, connectivity, figure=figure)
        save(figure, out / "demo.png")
        advance()
    of_release, of_groups = describe(store)
    typer.echo("\n".join([*of_release[:2], *of_groups]))
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
