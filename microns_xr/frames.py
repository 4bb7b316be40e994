"""Positions in µm: voxel size, volume and frame of a datastack.

A table gives positions in voxels, or in nm where its resolution is 1, 1, 1. The frame of a
datastack turns them to µm with y as depth from the pia (standard_transform, CAVEconnectome). Its
version is pinned in the registry, because another version may move the pia, and positions must not
depend on the installation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import positions
from microns_xr.errors import SchemaError, unknown_label

# Where caveclient states the resolution of a table, in ``DataFrame.attrs``.
RESOLUTION = "dataframe_resolution"
# In the attributes of positions that are in the axes of their table.
NO_FRAME = "none"

Resolution = tuple[float, float, float]

# Datasets of standard_transform, which is imported where it is used: it imports much of scipy.
_TRANSFORMS = {"minnie65": "minnie_transform", "v1dd": "v1dd_transform"}

# Segmentations end some µm from the edge of the images, and annotations are placed by hand.
_MARGIN_NM = 50_000.0

# Resolutions that tables of other sources have: nm, µm, mm, voxels of images and annotations.
_LIKELY: dict[str, Resolution] = {
    "nm": (1.0, 1.0, 1.0),
    "µm": (1e3, 1e3, 1e3),
    "mm": (1e6, 1e6, 1e6),
    "voxels of 4x4x40 nm": (4.0, 4.0, 40.0),
    "voxels of 8x8x40 nm": (8.0, 8.0, 40.0),
    "voxels of 9x9x45 nm": (9.0, 9.0, 45.0),
}


@dataclass(frozen=True)
class Space:
    """Where the positions of a datastack are."""

    frame: str = NO_FRAME  # name and version in standard_transform, such as "minnie65 1.4"
    voxel_nm: Resolution | None = None
    # lowest and highest point, in nm
    volume_nm: tuple[Resolution, Resolution] | None = None

    @property
    def has_depth(self) -> bool:
        """Whether y is depth from the pia."""
        return self.frame != NO_FRAME

    @property
    def size_units(self) -> str:
        """Units of a synapse's size."""
        return "voxels" if self.voxel_nm is None else f"voxels of {_by(self.voxel_nm)} nm"

    def attrs(self, what: str) -> dict[str, Any]:
        """Return the attributes of positions."""
        axes = "y is depth from the pia" if self.has_depth else "in the axes of the table"
        return {"units": "µm", "long_name": f"{what}, {axes}", **self.record()}

    def record(self) -> dict[str, Any]:
        """Return what `space_in` reads again."""
        voxel = {} if self.voxel_nm is None else {"voxel_nm": list(self.voxel_nm)}
        return {"frame": self.frame, **voxel}

    def to_um(self, points: np.ndarray, resolution_nm: Sequence[float]) -> np.ndarray:
        """Convert points of shape (n, 3) in voxels to µm."""
        if self.has_depth and len(points):
            return np.asarray(_transform(self.frame, tuple(resolution_nm)).apply(points))
        return points * (np.asarray(resolution_nm) / 1000)

    def from_um(self, points: np.ndarray, resolution_nm: Sequence[float]) -> np.ndarray:
        """Convert points in µm to voxels; the inverse of `to_um`."""
        if self.has_depth and len(points):
            return np.asarray(_transform(self.frame, tuple(resolution_nm)).invert(points))
        return points / (np.asarray(resolution_nm) / 1000)

    def outside(
        self, points: np.ndarray, resolution: Sequence[float], margin: float = _MARGIN_NM
    ) -> np.ndarray:
        """Return which points are far outside of the volume; none if it is not known."""
        if self.volume_nm is None:
            return np.zeros(len(points), dtype=bool)
        nm = np.asarray(points, dtype=np.float64) * np.asarray(resolution)
        low, high = np.asarray(self.volume_nm)
        # A missing point is in no place, but also not in a wrong one.
        return np.asarray(((nm < low - margin) | (nm > high + margin)).any(axis=1))

    def misplaced(self, points: np.ndarray, resolution_nm: Sequence[float]) -> np.ndarray:
        """Return which points of a whole table are at no place that they can be at."""
        # Some points of a table may be a little outside of the volume, but not most of them.
        beyond, little = (self.outside(points, resolution_nm, m) for m in (_MARGIN_NM, 0.0))
        n_points = int(np.isfinite(points).all(axis=1).sum())
        return little if n_points > 1 and 2 * int(little.sum()) > n_points else beyond

    def expected(self, points: np.ndarray, resolution_nm: Sequence[float], call: str) -> str:
        """Return the end of a message on points of which some are outside of the volume."""
        corners = np.asarray(self.volume_nm) / np.asarray(resolution_nm)
        box = " to ".join(f"({', '.join(f'{v:.0f}' for v in corner)})" for corner in corners)
        text = f"expected points in {box} at a resolution of {_by(resolution_nm)} nm: "
        likely = _LIKELY
        if self.voxel_nm is not None:
            likely = {f"voxels of {_by(self.voxel_nm)} nm": self.voxel_nm, **_LIKELY}
        fits = {n: r for n, r in likely.items() if not self.misplaced(points, r).any()}
        if fits:
            value = [int(v) if v == int(v) else v for v in next(iter(fits.values()))]
            text += f"they look like {' or '.join(fits)}; if they are, state {call.format(value)}"
        else:
            text += f"correct or drop these rows, or state {call.format('[x, y, z] in nm')}"
        um = (1, 1, 1)
        if self.has_depth and not self.outside(self.from_um(points, um), um).any():
            text += "; they also look like µm from the pia, which mx.as_units takes as they are"
        return text


def _by(resolution: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in resolution)


@lru_cache(maxsize=16)
def _transform(frame: str, resolution_nm: tuple[float, ...]) -> Any:
    from standard_transform import datasets

    name, _, version = frame.partition(" ")
    return getattr(datasets, _TRANSFORMS[name])(np.asarray(resolution_nm), version=version)


def require_frame(frame: str) -> None:
    """Raise unless a frame is one of standard_transform, with its version."""
    from standard_transform import datasets

    name, _, version = frame.partition(" ")
    known = [
        f"{dataset} {label}"
        for dataset in _TRANSFORMS
        for label in datasets.available_versions(dataset)["transform"]["versions"]
    ]
    if name not in _TRANSFORMS or f"{name} {version}" not in known:
        raise unknown_label("frame is", frame, [*known, NO_FRAME], error=SchemaError)


def space_in(attrs: Mapping[Any, Any]) -> Space | None:
    """Return the space that attributes record; None if they record none."""
    if "frame" not in attrs:
        return None
    return Space(str(attrs["frame"]), as_resolution(attrs.get("voxel_nm"), "voxel_nm"))


def require_depth(position: xr.DataArray) -> None:
    """Raise if positions state that y is not depth from the pia."""
    if position.attrs.get("frame") == NO_FRAME:
        raise SchemaError(
            "the positions are in the axes of their table, expected depth from the pia along y, "
            "which layers, depths and lateral distances need: state the frame of the volume with "
            "mx.releases.ReleaseSpec(frame=...), or convert the positions and remove "
            "units.position.attrs['frame']"
        )


def as_resolution(value: Any, where: str) -> Resolution | None:
    """Return three numbers of nm from a sequence, or from text as in a header of the service."""
    if value is None:
        return None
    words: Any = re.findall(r"[^\s,\[\]()]+", value) if isinstance(value, str) else value
    try:
        if isinstance(words, Iterable):
            x, y, z = (float(word) for word in words)
            if min(x, y, z) > 0 and np.isfinite([x, y, z]).all():
                return x, y, z
    except (TypeError, ValueError):
        pass
    raise SchemaError(
        f"{where} is {value!r}, expected three numbers of nm above 0, such as [4, 4, 40]: query "
        "the table with desired_resolution=[1, 1, 1], or state the resolution of all its positions"
    )


def resolution_of(
    table: pd.DataFrame,
    name: str,
    registered: Resolution | None,
    space: Space,
    given: Any = None,
    call: str = "",
) -> Resolution:
    """Return the resolution of a table: stated by itself, given, registered, of the datastack."""
    stated = as_resolution(table.attrs.get(RESOLUTION), f"{name}.attrs[{RESOLUTION!r}]")
    given = as_resolution(given, "resolution_nm")
    if stated and given and stated != given:
        raise SchemaError(
            f"resolution_nm is {given}, but {name}.attrs[{RESOLUTION!r}] is {stated}: leave out "
            "one of the two"
        )
    found = stated or given or registered or space.voxel_nm
    if found is None:
        raise SchemaError(
            f"the resolution of the positions of {name} is not known, expected nm per voxel of x, "
            f"y and z: state {(call or _CALL.format(name, '{}')).format('[x, y, z]')}"
        )
    return found


_CALL = "{}.attrs['" + RESOLUTION + "'] = {}"


def positions_um(
    table: pd.DataFrame,
    name: str,
    base: str,
    registered: Resolution | None,
    space: Space,
    *,
    given: Any = None,
    call: str = "",
) -> np.ndarray:
    """Return the positions of a table in µm, shape (rows, 3).

    `call` is how a caller states another resolution, with ``{}`` for its value.
    """
    call = call or _CALL.format("table", "{}")
    points = positions(table, name, base)
    resolution = resolution_of(table, name, registered, space, given, call)
    beyond = space.misplaced(points, resolution)
    if beyond.any():
        row = int(np.argmax(beyond))
        raise SchemaError(
            f"{name}.{base} has {int(beyond.sum())} of {len(points)} points outside of the volume, "
            f"such as ({', '.join(f'{value:.10g}' for value in points[row])}) in row {row}, "
            + space.expected(points, resolution, call)
        )
    return space.to_um(points, resolution)
