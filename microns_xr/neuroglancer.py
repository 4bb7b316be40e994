"""Links that show cells and synapses in the tissue with Neuroglancer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from microns_xr.columns import from_pia_um
from microns_xr.connectivity.arrays import pair_buffers
from microns_xr.connectivity.labels import Lookup
from microns_xr.errors import SchemaError, import_optional, unknown_label
from microns_xr.plot.style import PALETTE, colours_of
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
_MAX_LENGTH = 1_750_000  # characters of a link that browsers still open


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
        Units (dim ``nucleus_id``), or a connectivity Dataset, whose connected neurons are shown.
    colour : str, optional
        A variable of the units, or an annotation of both axes of the connectivity
        (``"cell_type"`` for ``pre_cell_type`` and ``post_cell_type``): words, numbers or angles,
        in the colours of `microns_xr.plot`. By default units have Neuroglancer's colours;
        presynaptic neurons are blue, neurons that are only postsynaptic orange.
    synapses : xarray.Dataset, optional
        Single synapses with positions (µm), from `mx.select_synapses` or `mx.build_synapses`. With
        units, those with either end on one of them are shown; with a connectivity, those from its
        presynaptic onto its postsynaptic neurons.
    segmentation : str, optional
        Source of the segmentation. By default the public flat one where the release has it (943
        and 1300); for other releases the live one, which asks to log in and in which segments may
        have been edited since the release.
    image : str, optional
        Source of the images.
    site : str, optional
        Address of a Neuroglancer instance.
    max_cells : int, optional
        Refuse more cells: a browser loads a mesh for each.
    allow_demo : bool, optional
        Make a link even for a synthetic release, whose segments do not exist.

    Returns
    -------
    str
        The link. Segment ids are exact in it; positions are voxels of 4x4x40 nm.

    Raises
    ------
    SchemaError
        If the release is synthetic, or not of minnie65 and no `segmentation` is given; if variables
        are absent; if there are no cells or too many, or no synapse belongs to the cells; or if the
        link would be longer than browsers accept.
    ReleaseMismatchError
        If the release is not stated, or the synapses are of another one.
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
    builder = import_optional("nglui.statebuilder", "neuroglancer")
    release = release_of(cells, "cells")
    if synapses is not None:
        require_same_release(("cells", cells), ("synapses", synapses))
    source = segmentation or _segmentation(*release, allow_demo)
    shown = _cells_to_show(cells, colour)
    if shown.roots.size > max_cells:
        raise SchemaError(
            f"cells has {shown.roots.size} cells, expected at most max_cells={max_cells}, since a "
            "browser loads a mesh for each: select some first, such as with mx.select_units"
        )
    layers: list[Any] = [
        builder.ImageLayer(name="images", source=image),
        builder.SegmentationLayer(
            name="cells",
            source=source,
            segments=shown.roots.tolist(),
            segment_colors=shown.colours,
        ),
    ]
    points = shown.points
    if points.size:
        roots = shown.roots[:, None]
        layers.append(_annotations(builder, "nuclei", shown.ids, points, roots, shown.texts))
    if synapses is not None:
        layer, synapse_points = _synapse_layer(builder, cells, synapses, shown)
        layers.append(layer)
        points = np.concatenate([points, synapse_points])
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
    if len(link) > _MAX_LENGTH:
        raise SchemaError(
            f"the link has {len(link):,} characters, expected at most {_MAX_LENGTH:,}: select "
            "fewer cells or synapses"
        )
    return link


def _segmentation(datastack: str, version: int, allow_demo: bool) -> str:
    if "demo" in datastack:
        if not allow_demo:
            raise SchemaError(
                f"cells is of {datastack} v{version}, a synthetic release, whose segments do not "
                "exist: use a release of minnie65_public, or allow_demo=True to try a link out"
            )
    elif datastack not in _DATASTACKS:
        raise SchemaError(
            f"cells is of {datastack} v{version}, expected one of {_DATASTACKS}, whose sources are "
            "known: pass segmentation= and image="
        )
    elif version in _FLAT_VERSIONS:
        return _FLAT.format(version)
    return _GRAPHENE


class _Shown(NamedTuple):
    """The cells that a link shows; all arrays have one row per cell."""

    ids: np.ndarray
    roots: np.ndarray
    colours: dict[int, str] | None  # root id to colour; None leaves it to Neuroglancer
    points: np.ndarray  # voxels, (cells, 3), or empty
    texts: list[str]


def _cells_to_show(cells: Any, colour: str | None) -> _Shown:
    if not isinstance(cells, xr.Dataset):
        raise SchemaError(
            f"cells is a {type(cells).__name__}, expected units or a connectivity Dataset"
        )
    if "synapse_size" in cells:
        return _connected_neurons(cells, colour)
    for name in ("nucleus_id", "pt_root_id", *((colour,) if colour else ())):
        if name not in cells.variables:
            raise unknown_label(
                "cells has no variable",
                name,
                cells.variables,
                "use mx.Release(...).units(), or a connectivity Dataset",
                SchemaError,
            )
    values = None if colour is None else cells[colour]
    if values is not None and values.dims != ("nucleus_id",):
        raise SchemaError(f"{colour} has dims {values.dims}, expected one value per cell")
    um = np.empty((0, 3))
    if "position" in cells:
        position = cells["position"].sel(axis=list(AXES)).transpose("nucleus_id", "axis")
        um = np.asarray(position.values)
    return _with_segment(cells["nucleus_id"].values, cells["pt_root_id"].values, um, values=values)


def _connected_neurons(connectivity: xr.Dataset, colour: str | None) -> _Shown:
    pattern, _ = pair_buffers(connectivity.compute())
    columns: dict[str, list[np.ndarray]] = {"id": [], "root": [], "word": [], "side": []}
    for side, rows in zip(("pre", "post"), pattern.ends(), strict=True):
        dim, root = f"{side}_nucleus_id", f"{side}_pt_root_id"
        annotation = f"{side}_{colour}" if colour else root
        for name in (root, annotation):
            if name not in connectivity.coords:
                raise SchemaError(
                    f"connectivity has no {name!r}: use mx.annotate(connectivity, units, "
                    f"[{name.removeprefix(f'{side}_')!r}])"
                )
        # Labels alone: selecting from the sparse arrays as well would take long.
        labels = connectivity.coords.to_dataset().isel({dim: np.unique(rows)})
        columns["id"].append(labels[dim].values)
        columns["root"].append(labels[root].values)
        columns["word"].append(labels[annotation].values)
        columns["side"].append(np.full(labels.sizes[dim], side, dtype=object))
    # A neuron on both axes is shown once, as a presynaptic one.
    ids, first = np.unique(np.concatenate(columns["id"]), return_index=True)
    roots, words, side_of = (np.concatenate(columns[k])[first] for k in ("root", "word", "side"))
    values = None
    if colour:
        attrs = connectivity[f"pre_{colour}"].attrs
        values = xr.DataArray(words, dims="nucleus_id", name=colour, attrs=attrs)
    return _with_segment(ids, roots, np.empty((0, 3)), values=values, sides=side_of)


def _with_segment(
    ids: np.ndarray,
    roots: np.ndarray,
    um: np.ndarray,
    *,
    values: xr.DataArray | None = None,
    sides: np.ndarray | None = None,
) -> _Shown:
    """Keep the cells that have a segment, coloured by values or by side."""
    known = roots > 0
    if not known.any():
        raise SchemaError(f"none of the {ids.size} cells has a segment: there is nothing to show")
    ids, roots = ids[known], roots[known]
    colours: dict[int, str] | None = None
    texts = [str(i) for i in ids.tolist()]
    if values is not None:
        values = values[known].compute()
        colours = dict(zip(roots.tolist(), colours_of(values).tolist(), strict=True))
        words = [f"{v:.4g}" if values.dtype.kind == "f" else str(v) for v in values.values]
        texts = [f"{text} {word}".strip() for text, word in zip(texts, words, strict=True)]
    elif sides is not None:
        colours = {r: _SIDES[s] for r, s in zip(roots.tolist(), sides[known], strict=True)}
    return _Shown(ids, roots, colours, _voxels(um[known]) if um.size else um, texts)


def _synapse_layer(
    builder: Any, cells: xr.Dataset, synapses: xr.Dataset, shown: _Shown
) -> tuple[Any, np.ndarray]:
    """Return the layer of the synapses of the cells, and their positions in voxels."""
    if not isinstance(synapses, xr.Dataset) or "position" not in synapses:
        raise SchemaError(
            "synapses has no 'position': use mx.select_synapses of synapses with positions"
        )
    synapses = synapses.compute()
    ids = {side: _partner_ids(synapses, side) for side in ("pre", "post")}
    if "synapse_size" in cells:
        keep = np.isin(ids["pre"], cells["pre_nucleus_id"].values)
        keep &= np.isin(ids["post"], cells["post_nucleus_id"].values)
    else:
        keep = np.isin(ids["pre"], shown.ids) | np.isin(ids["post"], shown.ids)
    um = np.asarray(synapses["position"].sel(axis=list(AXES)).transpose("synapse", "axis").values)
    keep &= np.isfinite(um).all(axis=1)
    if not keep.any():
        raise SchemaError(
            f"none of the {keep.size} synapses is one of the cells and has a position: use "
            "mx.select_synapses(synapses, pre=..., post=...) with ids of the cells"
        )
    # A synapse is linked to those of its two segments that are shown; 0 stands for the others.
    lookup = Lookup(shown.ids, "cells")
    roots = np.append(shown.roots, 0)
    linked = np.stack([roots[lookup.find(ids[s][keep])] for s in ("pre", "post")], axis=1)
    names = np.flatnonzero(keep)
    if "synapse_id" in synapses:
        names = synapses["synapse_id"].values[keep]
    texts = [f"{a} → {b}" for a, b in zip(ids["pre"][keep], ids["post"][keep], strict=True)]
    if "size" in synapses:
        sizes = synapses["size"].values[keep]
        texts = [f"{text}, size {size}" for text, size in zip(texts, sizes, strict=True)]
    points = _voxels(um[keep])
    return _annotations(builder, "synapses", names, points, linked, texts, _SYNAPSES), points


def _partner_ids(synapses: xr.Dataset, side: str) -> np.ndarray:
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
    # The tables hold whole voxels; converting to µm and back changes the last bits.
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
                id=str(i), point=point, segments=[r for r in linked if r], description=text
            )
            for i, point, linked, text in rows
            if np.isfinite(point).all()
        ]
    )
