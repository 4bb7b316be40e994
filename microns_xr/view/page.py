"""Write a release as one HTML page, with its data and all code inside."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from microns_xr.analysis.populations import group_connectivity
from microns_xr.angles import ANGLE_CONVENTIONS
from microns_xr.columns import as_ids
from microns_xr.connectivity.arrays import PAIR_DIMS, as_pairs, pair_buffers, weight_of
from microns_xr.connectivity.labels import Lookup
from microns_xr.currents import input_currents
from microns_xr.errors import SchemaError, import_optional, require_instance, whole_number
from microns_xr.files import write_file
from microns_xr.frames import NO_FRAME
from microns_xr.plot.style import (
    in_words,
    label_of,
    of_angles,
    require,
    scaled,
    styles_of,
    words_of,
)
from microns_xr.plot.tuning import with_angle
from microns_xr.provenance import require_same_release, text_lines
from microns_xr.schema import AXES, require_unrounded_roots
from microns_xr.select import degrees
from microns_xr.store.locate import Address
from microns_xr.store.open import open_store

if TYPE_CHECKING:
    from os import PathLike

_FROM = "use mx.Release(...).units(), or mx.as_units"
# Variables of units in the order that the page offers them; others follow.
_FIRST = (
    *("cell_type", "classification_system", "layer", "brain_area", "pref_ori", "pref_dir"),
    *("axon_completeness", "tuning_type"),
)
_IDS = ("nucleus_id", "pt_root_id", "session", "scan_idx", "unit_id")
_PAIRS = ("n_listed", "pre_steps", "weight", "synapse_count")
_MAX_WORDS = 40
_SCOPES = {
    "complete": "complete: a pair that is not listed has no synapse",
    "requested": "requested: a pair of the requested neurons that is not listed has no synapse",
    "unknown": "unknown: only connections that the file names; others may exist",
}


def to_html(
    tree: xr.DataTree | Mapping[str, xr.Dataset] | Address,
    path: str | PathLike[str],
    *,
    max_connections: int = 1_500_000,
    overwrite: bool = False,
) -> None:
    """Write a release as one HTML page to look at in a browser, without Python or a network.

    The page shows counts and provenance, cells in space and by depth, connections between
    populations, the inputs and outputs of a neuron that is clicked on, input currents and rates. It
    shows what there is: a tree without layers, rates or connectivity gives a shorter page.

    Parameters
    ----------
    tree : xarray.DataTree, mapping of str to xarray.Dataset, str, path-like or zarr.abc.store.Store
        With ``units`` (dim ``nucleus_id``) and, if available, ``layers`` and ``connectivity``; or
        the address of a store. Connectivity is read into memory. Of the units, the page uses
        ``position`` (µm), ``rate_ori`` or ``rate_dir``, and every variable with one word or number
        per neuron.
    path : str or path-like
        The file to write: 2 MB of code, about 50 bytes per neuron and 6 per connection.
    max_connections : int, optional
        If there are more, only the largest are listed by neuron, and the page says so; counts of
        partners, populations and currents always include all.
    overwrite : bool, optional
        Replace an existing file.

    Raises
    ------
    SchemaError
        If `path` exists and `overwrite` is False, or `tree` has no units.
    ReleaseMismatchError
        If units and connectivity state different releases.
    MicronsXrError
        If bokeh, which the extra ``view`` installs, is missing.

    Examples
    --------
    >>> import microns_xr as mx, tempfile
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> path = Path(tempfile.mkdtemp()) / "demo.html"
    >>> to_html({"units": release.units(), "layers": release.layers()}, path)
    >>> path.read_text()[:15]
    '<!DOCTYPE html>'
    """
    require_instance("path", path, (str, os.PathLike), "the name of a file")
    max_connections = whole_number("max_connections", max_connections, 0)
    if Path(path).is_dir():
        raise SchemaError(f"{path} is a folder, expected the name of a file")
    if Path(path).exists() and not overwrite:
        raise SchemaError(f"{path} exists: choose another name, or pass overwrite=True")
    library = import_optional("bokeh.resources", "view").Resources(
        mode="inline", components=["bokeh", "bokeh-api", "bokeh-gl"]
    )
    if not isinstance(tree, Mapping):
        tree = open_store(tree, lazy=True)
    parts: dict[str, Any] = {}
    for name in ("units", "layers", "connectivity"):
        node = tree.get(name)
        if node is None:
            continue
        parts[name] = (node.to_dataset() if isinstance(node, xr.DataTree) else node).compute()
    require(parts.get("units"), ("nucleus_id",), "units", _FROM)
    header, arrays = _content(parts, getattr(tree, "attrs", {}), max_connections)
    pairs = {name: arrays.pop(name) for name in _PAIRS if name in arrays}
    files = resources.files(__package__)
    code = {name: (files / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    page = (files / "page.html").read_text(encoding="utf-8")
    for mark, text in {
        "STYLE": code["css"],
        "CODE": code["js"],
        "LIBRARY": "\n".join(library.js_raw),
        # Text of the user is only in here, and in the title.
        "DATA": _packed(header, arrays),
        "PAIRS": _packed({}, pairs),  # apart, since cells are drawn before they are unpacked
        "TITLE": html.escape(header["title"]),
    }.items():
        page = page.replace(f"%{mark}%", text, 1)
    write_file(Path(path), page)


def _packed(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Compress the header (length as uint32, then JSON) and the arrays after it.

    The first bytes of all values come first, then the second ones: they compress better.
    """
    header["arrays"] = [[name, a.dtype.str[1:], a.size] for name, a in arrays.items()]
    head = json.dumps(header, allow_nan=False).encode()
    planes = (
        np.ascontiguousarray(a, a.dtype.newbyteorder("<")).reshape(-1, 1).view(np.uint8).T.tobytes()
        for a in arrays.values()
    )
    content = b"".join([len(head).to_bytes(4, "little"), head, *planes])
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _content(
    parts: dict[str, xr.Dataset], attrs: Mapping[Any, Any], max_connections: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what the page shows: text and small tables, and arrays over neurons or pairs."""
    require_same_release(*((n, parts[n]) for n in ("units", "connectivity") if n in parts))
    units = with_angle(parts["units"], "pref_ori")
    require_unrounded_roots(units)
    ids = as_ids(units["nucleus_id"].values, "nucleus_id of the units")
    Lookup(ids, "nucleus_id of the units")  # raises if one is repeated
    arrays = {"nucleus_id": ids}
    if "pt_root_id" in units.variables:
        arrays["pt_root_id"] = as_ids(units["pt_root_id"].values, "pt_root_id", missing=0)
    about = {**attrs, **{str(k): v.item() for k, v in units.coords.items() if v.ndim == 0}}
    stated = [str(about[k]) for k in ("datastack", "materialization_version") if k in about]
    header: dict[str, Any] = {
        "title": " v".join(stated) or "Neurons",
        "counts": [["cells", len(ids)]],
        "notes": [],
        "absent": [n for n in ("layers", "connectivity") if n not in parts],
    }
    if "position" in units.variables:
        position = units["position"].transpose("nucleus_id", "axis")
        order = list(position["axis"].values) if "axis" in position.coords else list(AXES)
        for i, axis in enumerate(order):
            arrays[str(axis)] = _floats(position.values[:, i])
        n_without = int((~np.isfinite(position.values).all(axis=1)).sum())
        header["has_depth"] = position.attrs.get("frame") != NO_FRAME
        if n_without:
            header["notes"].append(f"Without a position, so not drawn: {n_without:,} cells.")
    else:
        header["absent"].append("positions")
    if "layers" in parts:
        names = ("layer_name", "y_start", "y_end")
        require(parts["layers"], names, "layers", "use mx.segment_layers(units)")
        layers = parts["layers"][list(names)].dropna("segment")
        columns = (layers[name].values.tolist() for name in names)
        header["layers"] = [list(row) for row in zip(*columns, strict=True)]
    words = _add_variables(header, arrays, units)
    rates = next((n for n in ("rate_ori", "rate_dir") if n in units.variables), None)
    if rates is None:
        header["absent"].append("rates")
    else:
        _add_rates(header, arrays, units[rates], parts.get("connectivity"))
    if "connectivity" in parts:
        _add_connections(header, arrays, as_pairs(parts["connectivity"]), words, max_connections)
    header["provenance"] = _provenance(about, parts)
    return header, arrays


def _add_variables(
    header: dict[str, Any], arrays: dict[str, np.ndarray], units: xr.Dataset
) -> dict[str, xr.DataArray]:
    """Add what colours the cells; return the variables that are words."""
    from matplotlib.colors import to_hex

    names = [str(n) for n, v in units.variables.items() if v.dims == ("nucleus_id",)]
    names = [*(n for n in _FIRST if n in names), *(n for n in names if n not in _FIRST)]
    header["variables"], result, left_out = [], {}, []
    for name in names:
        values = units[name]
        if name in _IDS or values.dtype.kind not in "OUTbiuf":
            continue
        entry: dict[str, Any] = {"name": in_words(name), "about": label_of(values, width=999)}
        words = words_of(values)
        if words is None:
            numbers, cmap, norm = scaled(of_angles(values))
            if not np.isfinite(numbers).any():
                left_out.append(f"{name} (not measured)")
                continue
            entry |= {
                "low": float(norm.vmin or 0.0),
                "high": float(norm.vmax or 1.0),
                "palette": [to_hex(cmap(x)).upper() for x in np.linspace(0, 1, 128)],
                "units": str(values.attrs.get("units", "1")).removesuffix("1"),
            }
            arrays[f"of {name}"] = _floats(numbers)
        else:
            styles = styles_of(words)
            if len(styles) > _MAX_WORDS or len(styles) < 2:
                n = f"{len(styles)} words" if len(styles) > 1 else f"always {''.join(styles)}"
                left_out.append(f"{name} ({n})")
                continue
            colours = [style.colour for style in styles.values()]
            entry |= {"words": list(styles), "palette": colours}
            place = {word: i for i, word in enumerate(styles)}
            arrays[f"of {name}"] = np.array([place[w] for w in words], dtype=np.uint8)
            result[name] = values.copy(data=words)
        entry["array"] = f"of {name}"
        header["variables"].append(entry)
    if left_out:
        header["notes"].append(f"Not offered as colours: {', '.join(left_out)}.")
    return result


def _add_rates(
    header: dict[str, Any],
    arrays: dict[str, np.ndarray],
    rates: xr.DataArray,
    connectivity: xr.Dataset | None,
) -> None:
    dim = next(d for d in ("orientation", "direction") if d[:3] in str(rates.name))
    if set(rates.dims) != {"nucleus_id", dim} or dim not in rates.coords:
        raise SchemaError(
            f"{rates.name} has dims {rates.dims} and the coordinates {list(rates.coords)}, "
            f"expected ('nucleus_id', {dim!r}) with the angles: select one set of rates, or assign "
            f"the angles with .assign_coords({dim}=...)"
        )
    rates = rates.transpose("nucleus_id", dim)
    arrays["rates"] = _floats(rates.values)
    n_rated = int(rates.notnull().values.all(axis=1).sum())
    header["counts"].append(["cells with measured rates", n_rated])
    period = 180.0 if dim == "orientation" else 360.0
    angle = rates[dim]
    radians = angle.attrs.get("units") == "radian"
    values = np.rad2deg(angle.values) if radians else angle.values
    header["tuning"] = {
        "dim": dim,
        "angles": [float(a) for a in values],
        "period": period,
        "rates": label_of(rates, width=999),
        "zero": ANGLE_CONVENTIONS.get(str(angle.attrs.get("angle_convention")), ""),
    }
    if connectivity is not None:
        currents = input_currents(connectivity, rates)
        of_units = currents.reindex(post_nucleus_id=rates["nucleus_id"].values)
        arrays["currents"] = _floats(of_units.values)
        arrays["rated_fraction"] = _floats(of_units["rated_fraction"].values)
        header["tuning"]["currents"] = label_of(currents, width=999)


def _add_connections(
    header: dict[str, Any],
    arrays: dict[str, np.ndarray],
    connectivity: xr.Dataset,
    words: dict[str, xr.DataArray],
    max_connections: int,
) -> None:
    """Add pairs by post neuron, ascending in pre, with counts and tables of all of them."""
    ids = arrays["nucleus_id"]
    weight = weight_of(connectivity)
    pattern, values = pair_buffers(connectivity)
    lookup = Lookup(ids, "nucleus_id of the units")
    ends = [
        lookup.find(connectivity[dim].values)[at]
        for dim, at in zip(PAIR_DIMS, pattern.ends(), strict=True)
    ]
    chosen = np.flatnonzero((ends[0] >= 0) & (ends[1] >= 0))
    n_all, scope = int(pattern.nnz), str(connectivity["scope"].item())
    header["counts"].append(["connections", n_all])
    if n_all > chosen.size:
        n = n_all - chosen.size
        header["notes"].append(f"{n:,} connections have an end that is not among the cells.")
    if chosen.size > max_connections:
        header["notes"].append(
            f"Lists of partners and lines to them show the {max_connections:,} connections with "
            f"the largest {weight.replace('_', ' ')} out of {chosen.size:,}; numbers of partners, "
            "tables and currents include all."
        )
        order = np.argsort(-values[weight][chosen].astype(float), kind="stable")
        chosen = np.sort(chosen[order[:max_connections]])
    pre, post = (end[chosen] for end in ends)
    order = np.lexsort((pre, post))
    pre, post = pre[order], post[order]
    # From one partner to the next of the same neuron: small numbers.
    steps = np.diff(pre, prepend=0)
    first = np.flatnonzero(np.diff(post, prepend=-1))
    steps[first] = pre[first]
    arrays["n_listed"] = np.bincount(post, minlength=ids.size).astype(np.uint32)
    arrays["pre_steps"] = steps.astype(np.uint32)
    for name, key in ((weight, "weight"), ("synapse_count", "synapse_count")):
        if name in values and key not in arrays:
            arrays[key] = _narrow(values[name][chosen][order])
    counts = degrees(connectivity)
    for side, name in (("post", "in_degree"), ("pre", "out_degree")):
        # -1 is a neuron whose partners are not known: it is not on the axis.
        of_units = counts[name].reindex({f"{side}_nucleus_id": ids}, fill_value=-1)
        arrays[name] = of_units.values.astype(np.int32)
        n_with = int((arrays[name] > 0).sum())
        header["counts"].append([f"cells with {name[:-7]}puts", n_with])
    header["connections"] = {
        "weight": label_of(connectivity[weight], width=999),
        "weight_name": weight.replace("_", " "),
        "units": str(connectivity[weight].attrs.get("units", "1")).removesuffix("1"),
        "scope": _SCOPES.get(scope, scope),
        "scope_known": scope != "unknown",
        "all": n_all,
    }
    for entry in header["variables"]:
        name = entry["array"].removeprefix("of ")
        if name in words:
            entry["groups"] = _groups(connectivity, words[name], entry["words"], weight)


def _groups(
    connectivity: xr.Dataset, words: xr.DataArray, order: list[str], weight: str
) -> dict[str, Any]:
    """Return the table of connections between the populations that have neurons on both axes."""
    table = group_connectivity(connectivity, words)
    dims = [f"pre_{words.name}", f"post_{words.name}"]
    axes = [[w for w in order if w in table[dim].values] for dim in dims]
    table = table.sel(dict(zip(dims, axes, strict=True))).transpose(*dims)
    mean = {"synapse_size": "mean_size", "synapse_count": "mean_synapses"}
    means = table[mean.get(weight, f"mean_{weight}")].values.astype(object)
    means[np.asarray(table["n_connections"].values == 0)] = None
    return {
        "pre": axes[0],
        "post": axes[1],
        "n": table["n_connections"].values.tolist(),
        "mean": [[None if m is None else float(f"{m:.5g}") for m in row] for row in means],
        "n_pre": table["n_pre"].values.tolist(),
        "n_post": table["n_post"].values.tolist(),
    }


def _floats(values: np.ndarray) -> np.ndarray:
    """Return float32 rounded to 14 binary digits (0.003 %), which take half the room."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x100) & 0xFFFFFE00).astype(np.uint32).view(np.float32).ravel()


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return whole numbers as uint32 if they fit, others as float32."""
    fits = values.dtype.kind in "iu" and values.size and 0 <= values.min() <= values.max() < 2**32
    return values.astype(np.uint32 if fits else np.float32)


def _provenance(about: Mapping[str, Any], parts: dict[str, xr.Dataset]) -> list[list[str]]:
    rows = [("written by", about.get("created_by")), ("timestamp", about.get("timestamp"))]
    for name, data in parts.items():
        for key in ("selection", "dropped_synapses", "history"):
            if key in data.attrs:
                lines = text_lines(data.attrs[key])
                lines = [line for line in lines if not line.endswith(": 0")]
                what = key.replace("_", " ")
                rows.append((f"{name}: {what}", "; ".join(lines).replace("_", " ")))
    for what, key in (("table", "source_tables"), ("please cite", "references")):
        rows += [(what, line) for line in text_lines(about.get(key))]
    return [[str(name), str(text)] for name, text in rows if text]
