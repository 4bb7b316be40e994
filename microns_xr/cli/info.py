"""``microns-xr info``: the contents of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from microns_xr.cli.shared import Store
from microns_xr.errors import require_one_of

if TYPE_CHECKING:
    import numpy as np

    from microns_xr.store.nodes import Contents, StoredPairs


def info(store: Store) -> None:
    """Show the contents of a store: release, units, layers, connections, dropped rows."""
    of_release, of_groups = describe(store)
    typer.echo("\n".join([*of_release, *of_groups]))


def describe(store: str | Path) -> tuple[list[str], list[str]]:
    """Return what there is to say of the release of a store, and of its groups, in lines."""
    # With zarr alone, since xarray, dask and numba take longer to import than a store to read. The
    # checks are those of `open_store`.
    from microns_xr.store.format import MATRIX_GROUP
    from microns_xr.store.nodes import (
        groups_of_release,
        one_store,
        open_root,
        read_contents,
        read_matrix,
        require_stated_release,
        root_attrs,
    )

    root = open_root(store)
    lines = []
    with one_store(root):
        for name in groups_of_release(root, store):
            if name == "connectivity":
                has_post = MATRIX_GROUP["post"] in root
                pairs, _, contents = read_matrix(root, "post" if has_post else "pre")
                lines += _connectivity_lines(pairs, contents)
            else:
                contents = read_contents(root, name)
                lines += _LINES[name](contents) if name in _LINES else []
            coords = {n: contents.values[n] for n in contents.coords & contents.values.keys()}
            require_stated_release(root, name, coords)
    return _release_lines(root_attrs(root)), lines


def release_text(attrs: Mapping[Any, Any]) -> str:
    """Return datastack and version as the attributes of a store state them."""
    if "materialization_version" not in attrs:
        return str(attrs.get("datastack", "not stated"))
    return f"{attrs['datastack']} v{attrs['materialization_version']}"


def _release_lines(attrs: Mapping[Any, Any]) -> list[str]:
    return [
        f"release       {release_text(attrs)}",
        f"written by    {attrs.get('created_by', 'unknown')}",
        f"timestamp     {attrs.get('timestamp') or 'not known'}",
        *(f"  table       {table.partition(', ')[0]}" for table in attrs.get("source_tables", [])),
    ]


def _unit_lines(units: Contents) -> list[str]:
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
        if name in units.arrays:
            counts = Counter(word for word in _values(units, name).ravel().tolist() if word == word)
            words = ", ".join(f"{word} {n}" for word, n in counts.most_common(8))
            more = f", {len(counts) - 8} more" if len(counts) > 8 else ""
            lines.append(f"  {name:<22}{words}{more}")
    if "n_rated" in units.arrays:
        lines.append(f"  with rates            {int((_values(units, 'n_rated') > 0).sum())}")
    return lines


def _layer_lines(layers: Contents) -> list[str]:
    names, starts, ends = (_values(layers, name) for name in ("layer_name", "y_start", "y_end"))
    borders = zip(names, starts, ends, strict=True)
    return ["layers (µm)   " + ", ".join(f"{n} {a:.1f}-{b:.1f}" for n, a, b in borders)]


def _functional_lines(functional: Contents) -> list[str]:
    return [f"functional    {functional.sizes['scan_unit']} recorded units"]


_LINES = {"units": _unit_lines, "layers": _layer_lines, "functional": _functional_lines}


def _connectivity_lines(pairs: StoredPairs, contents: Contents) -> list[str]:
    from microns_xr.schema import SCOPES

    n_pre, n_post = pairs.shape
    scope = _values(contents, "scope").item()
    require_one_of("scope", scope, SCOPES)
    lines = [
        f"connectivity  {pairs.indptr[-1]} connections among {n_pre} pre and {n_post} post "
        f"neurons, scope {scope}"
    ]
    for reason, n in _counts(contents, "dropped_synapses").items():
        if n:
            lines.append(f"  dropped     {n} rows: {reason.replace('_', ' ')}")
    return lines


def _values(contents: Contents, name: str) -> np.ndarray:
    from microns_xr.store.locate import read_values

    known = contents.values
    return known[name] if name in known else read_values(contents.arrays[name])


def _counts(contents: Any, name: str) -> dict[str, int]:
    from microns_xr.provenance import read_counts

    return read_counts(contents, name) if name in contents.attrs else {}
