"""What the command line prints of a store, and the file of currents it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from tqdm import tqdm

from microns_xr.connectivity.subset import n_connections
from microns_xr.errors import SchemaError
from microns_xr.select import select_units


@contextmanager
def steps(names: list[str]) -> Iterator[Any]:
    """Show a progress bar of named steps; `advance` ends one and begins the next."""
    with tqdm(total=len(names), bar_format="{desc:<18}|{bar:20}| {n_fmt}/{total_fmt}") as bar:
        left = iter(names)
        bar.set_description_str(next(left))

        def advance() -> None:
            bar.set_description_str(next(left, "done"))
            bar.update()

        yield advance


def release_lines(tree: xr.DataTree) -> list[str]:
    """Say which release a store is of, who wrote it, and from which tables."""
    attrs = tree.attrs
    lines = [
        f"release       {attrs['datastack']} v{attrs['materialization_version']}",
        f"written by    {attrs.get('created_by', 'unknown')}",
        f"timestamp     {attrs.get('timestamp') or 'not known'}",
    ]
    for table in attrs.get("source_tables", []):
        lines.append(f"  table       {table['name']}: {table.get('rows', '?')} rows")
    return lines


def _words(values: Any, most: int = 8) -> str:
    counts = pd.Series(values).value_counts()
    shown = ", ".join(f"{word} {n}" for word, n in counts.head(most).items())
    return shown + (f", {len(counts) - most} more" if len(counts) > most else "")


def describe_store(tree: xr.DataTree) -> list[str]:
    """Say what a store holds and what was dropped on the way, a line a fact."""
    lines = []
    if "units" in tree.children:
        units = tree["units"].to_dataset()
        lines.append(f"units         {units.sizes['nucleus_id']}")
        selection = units.attrs.get("selection", {})
        dropped = [
            f"{n} {k.replace('_', ' ')}"
            for k, n in selection.items()
            if k not in ("nuclei", "units")
        ]
        if dropped:
            lines.append(
                f"  of          {selection['nuclei']} nuclei; dropped: {', '.join(dropped)}"
            )
        if absent := units.attrs.get("absent_tables"):
            lines.append(f"  without     {', '.join(absent)}")
        for name in (
            "classification_system",
            "layer",
            "brain_area",
            "axon_completeness",
            "tuning_type",
        ):
            if name in units:
                lines.append(f"  {name:<22}{_words(units[name].values)}")
        if "n_rated" in units:
            lines.append(f"  with rates            {int((units.n_rated > 0).sum())}")
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
        shape = (connectivity.sizes["pre_nucleus_id"], connectivity.sizes["post_nucleus_id"])
        lines.append(
            f"connectivity  {n_connections(connectivity)} connections among {shape[0]} pre and "
            f"{shape[1]} post neurons, scope {connectivity.scope.item()}"
        )
        for reason, n in connectivity.attrs.get("dropped_synapses", {}).items():
            if n:
                lines.append(f"  dropped     {n} rows: {str(reason).replace('_', ' ')}")
    return lines


def check_ids(said: str | None, option: str) -> None:
    """Raise for what `ids_from` cannot read, before anything is fetched."""
    if said is not None and said != "all" and not Path(said).is_file() and "=" not in said:
        raise SchemaError(
            f"{option} is {said!r}, expected a file of ids, words like axon=extended, or all"
        )


def ids_from(said: str | None, units: xr.Dataset | None, option: str) -> Any:
    """Turn ``all``, a file of ids, or words like ``axon=extended,layer=L4`` into ids."""
    if said is None or said == "all":
        return None
    if Path(said).is_file():
        words = Path(said).read_text(encoding="utf-8").replace(",", " ").split()
        wrong = [w for w in words if not w.isdigit()]
        if wrong or not words:
            raise SchemaError(
                f"{option}: {said} holds {wrong[0]!r}, expected one id a line"
                if wrong
                else f"{option}: {said} is empty, expected one id a line"
            )
        return [int(w) for w in words]
    if "=" not in said or units is None:
        raise SchemaError(
            f"{option} is {said!r}, expected a file of ids, words like axon=extended, or all"
        )
    conditions: dict[str, Any] = {}
    for pair in said.split(","):
        name, _, word = pair.partition("=")
        conditions.setdefault(name.strip(), []).append(word.strip())
    known = ("layer", "brain_area", "cell_type", "classification_system", "tuning", "axon")
    unknown = [name for name in conditions if name not in (*known, "dendrite")]
    if unknown:
        raise SchemaError(f"{option}: {unknown[0]!r} is none of {(*known, 'dendrite')}")
    return select_units(units, **conditions)


def check_target(out: Path, store: Path) -> None:
    """Raise unless currents may be written to `out`: new, or currents written before."""
    if out.resolve() == store.resolve():
        raise SchemaError(f"--out is the store that is read, {store}: give another name")
    if not out.parent.is_dir():
        raise SchemaError(f"there is no folder {out.parent} to write {out.name} to: make it first")
    if out.suffix != ".zarr" and out.is_dir():
        raise SchemaError(f"{out} is a folder, expected the name of a file")
    if out.suffix == ".zarr" and out.exists():
        is_currents = (out / "input_current" / "zarr.json").is_file()
        if not is_currents or (out / "units").exists():
            raise SchemaError(
                f"{out} is there and holds no currents: remove it, or give another name"
            )


def write_currents(result: xr.DataArray, units: xr.Dataset, out: Path) -> None:
    """Write currents as csv or zarr: beside, then renamed, so that no file is half-written."""
    beside = out.with_name(f".{out.name}.tmp{out.suffix}")
    try:
        if out.suffix == ".zarr":
            shutil.rmtree(beside, ignore_errors=True)
            result.to_dataset(name="input_current").to_zarr(
                beside, zarr_format=3, consolidated=False
            )
            if out.exists():
                old = out.with_name(f".{out.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                out.replace(old)
                beside.replace(out)
                shutil.rmtree(old)
                return
        else:
            angle = str(result.dims[1])
            table = pd.DataFrame(
                result.values,
                index=pd.Index(result["post_nucleus_id"].values, name="post_nucleus_id"),
                columns=[f"current_{angle}_{a:g}" for a in result[angle].values],
            )
            roots = units["pt_root_id"].reindex(
                nucleus_id=result["post_nucleus_id"].values, fill_value=0
            )
            table.insert(0, "post_pt_root_id", roots.values)
            table["rated_fraction"] = result["rated_fraction"].values
            table.to_csv(beside, compression="gzip" if out.suffix == ".gz" else None)
        beside.replace(out)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
