"""Cells and synapses as a link to Neuroglancer, which shows them in the tissue."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import xarray as xr

from microns_xr.columns import from_pia_um
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import MicronsXrError, SchemaError
from microns_xr.plot.cells import PALETTE, colours_of
from microns_xr.provenance import release_of, require_same_release
from microns_xr.schema import AXES

VOXEL_NM = (4.0, 4.0, 40.0)

# Public sources of minnie65; tutorial.microns-explorer.org, "Static Repositories" and "Meshes".
IMAGE = "precomputed://https://bossdb-open-data.s3.amazonaws.com/iarpa_microns/minnie/minnie65/em"
_FLAT = "precomputed://https://storage.googleapis.com/iarpa_microns/minnie/minnie65/seg_m{}"
_FLAT_VERSIONS = (943, 1300)
_GRAPHENE = (
    "graphene://middleauth+https://minnie.microns-daf.com/segmentation/table/minnie65_public"
)
_DATASTACKS = ("minnie65_public", "minnie65_phase3_v1")
SITE = "https://spelunker.cave-explorer.org/"

_SIDES = {"pre": PALETTE[0], "post": PALETTE[1]}
_SYNAPSES = PALETTE[4]
_LONGEST = 1_750_000  # signs of a link that browsers still open


def neuroglancer_link(
    cells: xr.Dataset,
    *,
    colour: str | None = None,
    synapses: xr.Dataset | None = None,
    segmentation: str | None = None,
    image: str = IMAGE,
    site: str = SITE,
    max_cells: int = 1000,
    allow_demo: bool = False,
) -> str:
    """Make a link that shows cells of minnie65, and synapses, in Neuroglancer.

    The link holds everything it shows; nothing is fetched or stored to make it.

    Parameters
    ----------
    cells : xarray.Dataset
        Units, or a connectivity Dataset, of which the neurons that have a connection are shown.
    colour : str, optional
        A variable of the units, or an annotation of both axes of the connectivity
        (``"cell_type"`` for ``pre_cell_type`` and ``post_cell_type``): words, numbers or angles,
        in the colours of `microns_xr.plot`. By default units have Neuroglancer's colours, and
        presynaptic neurons are blue, those that are postsynaptic alone orange.
    synapses : xarray.Dataset, optional
        Single synapses with positions, from `mx.select_synapses` or `mx.build_synapses`. Shown are
        those of the cells: of units those whose pre- or postsynaptic neuron is one of them, of a
        connectivity those from its presynaptic onto its postsynaptic neurons.
    segmentation : str, optional
        Source of the segmentation. By default the public flat one where the release has it (943
        and 1300); for other releases the live one, which asks to log in, and where segments may
        have been edited since the release.
    image : str, optional
        Source of the images.
    site : str, optional
        Address of a Neuroglancer.
    max_cells : int, optional
        More cells raise: a browser loads a mesh for each.
    allow_demo : bool, optional
        Make a link of a synthetic release all the same; its segments do not exist.

    Returns
    -------
    str
        The link. Segment ids are exact in it; positions are voxels of 4x4x40 nm.

    Raises
    ------
    SchemaError
        If the release is not of minnie65 and no `segmentation` is given, it is synthetic, variables
        are absent, there are no cells or too many, no synapse is of the cells, or the link would
        be longer than browsers take.
    ReleaseMismatchError
        If the release is not known, or that of the synapses is another.
    MicronsXrError
        If nglui is not installed.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> neuroglancer_link(release.units())
    Traceback (most recent call last):
    microns_xr.errors.SchemaError: cells is of minnie65_demo v1718, a synthetic release, ...
    """
    builder = _nglui()
    release = release_of(cells, "cells")
    if synapses is not None:
        require_same_release(("cells", cells), ("synapses", synapses))
    source = segmentation or _segmentation(*release, allow_demo)
    shown = _cells_of(cells, colour)
    if shown["roots"].size > max_cells:
        raise SchemaError(
            f"cells has {shown['roots'].size} cells, expected at most max_cells={max_cells}, since "
            "a browser loads a mesh for each: select some first, such as with mx.select_units"
        )
    layers: list[Any] = [
        builder.ImageLayer(name="images", source=image),
        builder.SegmentationLayer(
            name="cells",
            source=source,
            segments=shown["roots"].tolist(),
            segment_colors=shown["colours"],
        ),
    ]
    points = shown["points"]
    if points.size:
        layers.append(
            _annotations(
                builder, "nuclei", shown["ids"], points, shown["roots"][:, None], shown["texts"]
            )
        )
    if synapses is not None:
        chosen = _synapses_of(cells, synapses, shown)
        points = np.concatenate([points, chosen["points"]])
        layers.append(
            _annotations(
                builder,
                "synapses",
                chosen["ids"],
                chosen["points"],
                chosen["roots"],
                chosen["texts"],
                _SYNAPSES,
            )
        )
    points = points[np.isfinite(points).all(axis=1)]
    viewer = builder.ViewerState(
        dimensions=list(VOXEL_NM),
        position=points[0].tolist() if points.size else None,
        infer_coordinates=False,
        target_url=site,
        layers=layers,
        title=f"{release[0]} v{release[1]}" + (f" by {colour}" if colour else ""),
    )
    link = str(viewer.to_url(target_url=site))
    if len(link) > _LONGEST:
        raise SchemaError(
            f"the link has {len(link):,} signs, expected at most {_LONGEST:,}: select fewer cells "
            "or synapses"
        )
    return link


def neuroglancer_state(link: str) -> dict[str, Any]:
    """Read the state out of a link: layers, segments, annotations, position."""
    _, found, state = link.partition("#!")
    try:
        value = json.loads(unquote(state)) if found else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SchemaError(
            f"link is {link[:60]!r}, expected one with a state after '#!': a shortened link keeps "
            "its state on a server"
        )
    return value


def _nglui() -> Any:
    try:
        return importlib.import_module("nglui.statebuilder")
    except ImportError as error:
        raise MicronsXrError(
            "links to Neuroglancer need nglui: pip install 'microns-xr[neuroglancer]'"
        ) from error


def _segmentation(datastack: str, version: int, allow_demo: bool) -> str:
    if "demo" in datastack:
        if not allow_demo:
            raise SchemaError(
                f"cells is of {datastack} v{version}, a synthetic release, whose segments do not "
                "exist: use a release of minnie65_public, or allow_demo=True to see what a link is"
            )
    elif datastack not in _DATASTACKS:
        raise SchemaError(
            f"cells is of {datastack} v{version}, expected one of {_DATASTACKS}, whose sources are "
            "known: pass segmentation= and image="
        )
    elif version in _FLAT_VERSIONS:
        return _FLAT.format(version)
    return _GRAPHENE


def _cells_of(cells: Any, colour: str | None) -> dict[str, Any]:
    """Ids, roots, colours and nuclei of what is shown."""
    if not isinstance(cells, xr.Dataset):
        raise SchemaError(
            f"cells is a {type(cells).__name__}, expected units or a connectivity Dataset"
        )
    if "synapse_size" in cells:
        return _neurons_of(cells, colour)
    for name in ("nucleus_id", "pt_root_id", *((colour,) if colour else ())):
        if name not in cells.variables:
            raise SchemaError(
                f"cells has no {name!r}, found {sorted(map(str, cells.variables))}: use "
                "mx.Release(...).units(), or a connectivity Dataset"
            )
    values = None if colour is None else cells[colour]
    if values is not None and values.dims != ("nucleus_id",):
        raise SchemaError(f"{colour} has dims {values.dims}, expected one value a cell")
    points = np.empty((0, 3))
    if "position" in cells:
        um = cells["position"].sel(axis=list(AXES)).transpose("nucleus_id", "axis")
        points = np.asarray(um.values)
    return _shown(cells["nucleus_id"].values, cells["pt_root_id"].values, values, points, None)


def _neurons_of(connectivity: xr.Dataset, colour: str | None) -> dict[str, Any]:
    pattern, _ = pair_buffers(connectivity.compute())
    major = np.repeat(np.arange(pattern.n_major), np.diff(pattern.indptr))
    minor = pattern.indices
    rows = (
        {"post": major, "pre": minor}
        if pattern.compressed == "post"
        else ({"pre": major, "post": minor})
    )
    ids, roots, words, sides = [], [], [], []
    for side in ("pre", "post"):
        dim, name = f"{side}_nucleus_id", f"{side}_pt_root_id"
        annotated = f"{side}_{colour}" if colour else name
        for needed in (name, annotated):
            if needed not in connectivity.coords:
                raise SchemaError(
                    f"connectivity has no {needed!r}: use mx.annotate(connectivity, units, "
                    f"[{needed.removeprefix(f'{side}_')!r}])"
                )
        # Labels alone: selecting from the sparse arrays, too, would take long.
        own = connectivity.coords.to_dataset().isel({dim: np.unique(rows[side])})
        ids.append(own[dim].values)
        roots.append(own[name].values)
        words.append(own[annotated].values)
        sides.append(np.full(own.sizes[dim], side, dtype=object))
    values = None
    # A neuron of both axes is shown once, as a presynaptic one.
    together, first = np.unique(np.concatenate(ids), return_index=True)
    if colour:
        attrs = connectivity[f"pre_{colour}"].attrs
        both = np.concatenate(words)[first]
        values = xr.DataArray(both, dims="nucleus_id", name=colour, attrs=attrs)
    of_side = np.concatenate(sides)[first]
    return _shown(together, np.concatenate(roots)[first], values, np.empty((0, 3)), of_side)


def _shown(
    ids: np.ndarray,
    roots: np.ndarray,
    values: xr.DataArray | None,
    um: np.ndarray,
    sides: np.ndarray | None,
) -> dict[str, Any]:
    known = roots > 0
    if not known.any():
        raise SchemaError(f"none of the {ids.size} cells has a segment: there is nothing to show")
    ids, roots = ids[known], roots[known]
    colours: dict[int, str] | None = None
    texts = [""] * ids.size
    if values is not None:
        values = values[known].compute()
        colours = dict(zip(roots.tolist(), colours_of(values).tolist(), strict=True))
        texts = [f"{v:.4g}" if values.dtype.kind == "f" else str(v) for v in values.values]
    elif sides is not None:
        colours = {r: _SIDES[s] for r, s in zip(roots.tolist(), sides[known], strict=True)}
    points = _voxels(um[known]) if um.size else um
    texts = [f"{i} {text}".strip() for i, text in zip(ids.tolist(), texts, strict=True)]
    return {"ids": ids, "roots": roots, "colours": colours, "points": points, "texts": texts}


def _synapses_of(cells: xr.Dataset, synapses: xr.Dataset, shown: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(synapses, xr.Dataset) or "position" not in synapses:
        raise SchemaError(
            "synapses has no 'position': use mx.select_synapses of synapses with positions"
        )
    synapses = synapses.compute()
    ids = {side: _partner(synapses, side) for side in ("pre", "post")}
    if "synapse_size" in cells:
        axes = {s: cells[f"{s}_nucleus_id"].values for s in ids}
        keep = np.isin(ids["pre"], axes["pre"]) & np.isin(ids["post"], axes["post"])
    else:
        keep = np.isin(ids["pre"], shown["ids"]) | np.isin(ids["post"], shown["ids"])
    um = np.asarray(synapses["position"].sel(axis=list(AXES)).transpose("synapse", "axis").values)
    keep &= np.isfinite(um).all(axis=1)
    if not keep.any():
        raise SchemaError(
            f"none of the {keep.size} synapses is one of the cells and has a position: use "
            "mx.select_synapses(synapses, pre=..., post=...) with ids of the cells"
        )
    # A synapse is linked to those of its two segments that are shown; 0 stands for the others.
    lookup = Lookup(shown["ids"], "cells")
    roots = np.append(shown["roots"], 0)
    linked = np.stack([roots[lookup.find(ids[s][keep])] for s in ("pre", "post")], axis=1)
    own = synapses["synapse_id"].values[keep] if "synapse_id" in synapses else np.flatnonzero(keep)
    texts = [f"{a} → {b}" for a, b in zip(ids["pre"][keep], ids["post"][keep], strict=True)]
    if "size" in synapses:
        sizes = synapses["size"].values[keep]
        texts = [f"{t}, size {s}" for t, s in zip(texts, sizes, strict=True)]
    return {"ids": own, "roots": linked, "points": _voxels(um[keep]), "texts": texts}


def _partner(synapses: xr.Dataset, side: str) -> np.ndarray:
    dim, index = f"{side}_nucleus_id", f"{side}_index"
    if dim in synapses.variables and synapses[dim].dims == ("synapse",):
        return np.asarray(synapses[dim].values)
    if dim not in synapses.variables or index not in synapses.variables:
        raise SchemaError(
            f"synapses does not say which {side}synaptic neuron each has ({dim!r} or {index!r}): "
            "use mx.build_synapses or mx.select_synapses"
        )
    return np.asarray(synapses[dim].values[synapses[index].values])


def _voxels(um: np.ndarray) -> np.ndarray:
    # The tables give whole voxels, which the way to µm and back changes in the last bits.
    return np.rint(from_pia_um(um, VOXEL_NM))


def _annotations(
    builder: Any,
    name: str,
    ids: np.ndarray,
    points: np.ndarray,
    roots: np.ndarray,
    texts: Sequence[str],
    colour: str | None = None,
) -> Any:
    layer = builder.AnnotationLayer(
        name=name,
        color=colour,
        linked_segmentation="cells",
        set_position=False,
        swap_visible_segments_on_move=False,
    )
    rows = zip(ids.tolist(), points.tolist(), roots.tolist(), texts, strict=True)
    return layer.add_annotations(
        [
            builder.PointAnnotation(
                id=str(own), point=point, segments=[r for r in linked if r], description=text
            )
            for own, point, linked, text in rows
            if np.isfinite(point).all()
        ]
    )
