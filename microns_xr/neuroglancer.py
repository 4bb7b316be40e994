"""Links that show cells and synapses in the tissue with Neuroglancer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from microns_xr.connectivity.arrays import PAIR_DIMS, as_pairs, pair_buffers
from microns_xr.connectivity.labels import Lookup, require_ends
from microns_xr.errors import SchemaError, import_optional, require_instance
from microns_xr.frames import Resolution, Space
from microns_xr.plot.style import PALETTE, colours_of
from microns_xr.provenance import release_of, require_same_release
from microns_xr.releases import datastack_entry, space_of_data, volume_of
from microns_xr.schema import AXES, column_of, require_unrounded_roots

SITE = "https://spelunker.cave-explorer.org/"

_MAX_LENGTH = 1_750_000  # of a link that browsers accept, in characters


def neuroglancer_link(
    cells: xr.Dataset,
    *,
    colour: str | None = None,
    synapses: xr.Dataset | None = None,
    segmentation: str | None = None,
    image: str | None = None,
    site: str = SITE,
    max_cells: int = 1000,
    allow_demo: bool = False,
) -> str:
    """Return a link that shows cells, and synapses, in Neuroglancer.

    The link contains everything it shows; no data are fetched or stored to make it.

    Parameters
    ----------
    cells : xarray.Dataset
        Units (dim ``nucleus_id``), or a connectivity Dataset, whose connected neurons are shown.
    colour : str, optional
        A variable of the units, or an annotation of both axes of the connectivity
        (``"cell_type"`` for ``pre_cell_type`` and ``post_cell_type``): words, numbers or angles,
        in the colours of `microns_xr.plot`. By default units have the colours of Neuroglancer;
        presynaptic neurons are blue, neurons that are only postsynaptic are orange.
    synapses : xarray.Dataset, optional
        Single synapses with positions (µm), from `mx.select_synapses` or `mx.build_synapses`. With
        units, synapses with at least one end on one of them are shown; with connectivity, synapses
        from its presynaptic onto its postsynaptic neurons.
    segmentation : str, optional
        Source of the segmentation; by default that of the datastack in the registry. For minnie65
        this is the public flat one if the release has one (943 and 1300), otherwise the live one,
        which requires a login and in which segments may have been edited since the release.
    image : str, optional
        Source of the images; by default that of the datastack in the registry, or none.
    site : str, optional
        Address of a Neuroglancer instance.
    max_cells : int, optional
        The largest number of cells to accept: a browser loads a mesh for each.
    allow_demo : bool, optional
        Accept a synthetic release, whose segments do not exist.

    Returns
    -------
    str
        The link, with exact segment ids and positions in voxels.

    Raises
    ------
    SchemaError
        If the release is synthetic, or its datastack is not in the registry and `segmentation` is
        missing; if its voxel size is not known; if variables are absent; if there are no cells or
        too many, or no synapse belongs to the cells; or if the link is longer than browsers accept.
    ReleaseMismatchError
        If the release is unknown, or the synapses are from another one.
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
    source, image = _sources(release, segmentation, image, allow_demo)
    visible = _cells_to_show(cells, colour)
    require_unrounded_roots(visible)
    ids, roots = visible["nucleus_id"].values, visible["pt_root_id"].values
    space = space_of_data(cells)
    if space.voxel_nm is None:
        raise SchemaError(
            f"cells is of {release[0]}, whose voxel size is not known: set "
            "cells.position.attrs['voxel_nm'] to the nm of x, y and z"
        )
    if ids.size > max_cells:
        raise SchemaError(
            f"cells has {ids.size} cells, expected at most max_cells={max_cells}, since a browser "
            "loads a mesh for each: select some first, such as with mx.select_units"
        )
    colours: dict[int, str] | None = None  # leaves them to Neuroglancer
    texts = [str(i) for i in ids.tolist()]
    if colour:
        values = visible[colour].compute()
        colours = dict(zip(roots.tolist(), colours_of(values).tolist(), strict=True))
        words = [f"{v:.4g}" if values.dtype.kind == "f" else str(v) for v in values.values]
        texts = [f"{text} {word}".strip() for text, word in zip(texts, words, strict=True)]
    elif "side" in visible:
        of_side = {"pre": PALETTE[0], "post": PALETTE[1]}
        sides = visible["side"].values
        colours = {root: of_side[s] for root, s in zip(roots.tolist(), sides, strict=True)}
    segments = {"segments": roots.tolist(), "segment_colors": colours}
    layers: list[Any] = [builder.SegmentationLayer(name="cells", source=source, **segments)]
    if image is not None:
        layers.insert(0, builder.ImageLayer(name="images", source=image))
    points = np.empty((0, 3))
    if "position" in visible:
        points = _voxels(visible["position"], space, space.voxel_nm)
        layers.append(_annotations(builder, "nuclei", ids, points, roots[:, None], texts))
    if synapses is not None:
        layer, synapse_points = _synapse_layer(builder, cells, synapses, ids, roots, space.voxel_nm)
        layers.append(layer)
        points = np.concatenate([points, synapse_points])
    points = points[np.isfinite(points).all(axis=1)]
    viewer = builder.ViewerState(
        dimensions=list(space.voxel_nm),
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


def _sources(
    release: tuple[str, int], segmentation: str | None, image: str | None, allow_demo: bool
) -> tuple[str, str | None]:
    """Return the sources of the segmentation and of the images, by default of the registry."""
    datastack, version = release
    keys = ("segmentation", "image", "flat_segmentation", "flat_versions")
    known: dict[str, Any] = {key: datastack_entry(datastack, key) for key in keys}
    if version in (known["flat_versions"] or ()):
        known["segmentation"] = known["flat_segmentation"].format(version)
    if segmentation is None and "demo" in datastack and not allow_demo:
        raise SchemaError(
            f"cells is of {datastack} v{version}, a synthetic release, whose segments do not "
            f"exist: use a release of {volume_of(datastack)}, or allow_demo=True to try a link out"
        )
    segmentation, image = segmentation or known["segmentation"], image or known["image"]
    if segmentation is None:
        raise SchemaError(
            f"cells is of {datastack} v{version}, for which the registry has no sources: pass "
            "segmentation= and, for its images, image="
        )
    return segmentation, image


def _cells_to_show(cells: Any, colour: str | None) -> xr.Dataset:
    """Return the cells that have a segment, with the variables that the link shows."""
    require_instance("cells", cells, xr.Dataset, "units or a connectivity Dataset")
    names = ["pt_root_id", *((colour,) if colour else ())]
    if set(PAIR_DIMS) <= set(cells.dims):
        cells = _connected_neurons(cells, names)
        names.append("side")
    hint = "use mx.Release(...).units(), or a connectivity Dataset"
    for name in ("nucleus_id", *names):
        column_of(cells, name, "cells", hint, error=SchemaError)
    cells = cells[[*dict.fromkeys(names), *(("position",) if "position" in cells else ())]]
    known = cells["pt_root_id"].values > 0
    if not known.any():
        raise SchemaError(f"none of the {known.size} cells has a segment: there is nothing to show")
    return cells.isel(nucleus_id=known)


def _connected_neurons(connectivity: xr.Dataset, names: list[str]) -> xr.Dataset:
    """Return the neurons with a connection, each as a presynaptic one if it is on both axes."""
    parts = []
    connectivity = as_pairs(connectivity)
    pattern, _ = pair_buffers(connectivity.compute())
    for side, positions in zip(("pre", "post"), pattern.ends(), strict=True):
        of_axis = {f"{side}_{name}": name for name in names}
        for annotation, name in of_axis.items():
            if annotation not in connectivity.coords:
                raise SchemaError(
                    f"connectivity has no {annotation!r}: use mx.annotate(connectivity, units, "
                    f"[{name!r}])"
                )
        dim = f"{side}_nucleus_id"
        # Labels alone: selecting from the sparse arrays as well would take long.
        labels = connectivity.coords.to_dataset().reset_coords()[[*of_axis]]
        labels = labels.isel({dim: np.unique(positions)}).rename(of_axis | {dim: "nucleus_id"})
        parts.append(labels.assign(side=xr.full_like(labels["nucleus_id"], side, dtype=object)))
    cells = xr.concat(parts, "nucleus_id", combine_attrs="override")
    return cells.drop_duplicates("nucleus_id").sortby("nucleus_id")


def _synapse_layer(
    builder: Any,
    cells: xr.Dataset,
    synapses: xr.Dataset,
    visible: np.ndarray,
    roots: np.ndarray,
    voxel_nm: Resolution,
) -> tuple[Any, np.ndarray]:
    """Return the layer of the synapses of the cells, and their positions in voxels."""
    if not isinstance(synapses, xr.Dataset) or "position" not in synapses:
        raise SchemaError(
            "synapses has no 'position': use mx.select_synapses of synapses with positions"
        )
    synapses = synapses.compute()
    require_ends(synapses)
    pre, post = (synapses[dim].values for dim in PAIR_DIMS)
    if set(PAIR_DIMS) <= set(cells.dims):
        keep = np.isin(pre, cells["pre_nucleus_id"].values)
        keep &= np.isin(post, cells["post_nucleus_id"].values)
    else:
        keep = np.isin(pre, visible) | np.isin(post, visible)
    points = _voxels(synapses["position"], space_of_data(synapses), voxel_nm)
    keep &= np.isfinite(points).all(axis=1)
    if not keep.any():
        raise SchemaError(
            f"none of the {keep.size} synapses is one of the cells and has a position: use "
            "mx.select_synapses(synapses, pre=..., post=...) with ids of the cells"
        )
    pre, post, points = pre[keep], post[keep], points[keep]
    # A synapse is linked to those of its two segments that are shown; 0 stands for the others.
    lookup, roots = Lookup(visible, "cells"), np.append(roots, 0)
    linked = np.stack([roots[lookup.find(ids)] for ids in (pre, post)], axis=1)
    names = np.flatnonzero(keep)
    if "synapse_id" in synapses:
        names = synapses["synapse_id"].values[keep]
    texts = [f"{a} → {b}" for a, b in zip(pre, post, strict=True)]
    if "size" in synapses:
        sizes = synapses["size"].values[keep]
        texts = [f"{text}, size {size}" for text, size in zip(texts, sizes, strict=True)]
    return _annotations(builder, "synapses", names, points, linked, texts, PALETTE[4]), points


def _voxels(position: xr.DataArray, space: Space, voxel_nm: Resolution) -> np.ndarray:
    um = position.sel(axis=list(AXES)).transpose(..., "axis").values
    # The tables hold whole voxels; converting to µm and back changes the last bits.
    return np.rint(space.from_um(um, voxel_nm))


def _annotations(
    builder: Any,
    name: str,
    ids: np.ndarray,
    points: np.ndarray,
    roots: np.ndarray,
    texts: Sequence[str],
    colour: str | None = None,
) -> Any:
    options = {"set_position": False, "swap_visible_segments_on_move": False}
    layer = builder.AnnotationLayer(name=name, color=colour, linked_segmentation="cells", **options)
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
