"""Positions: voxels or nanometres to pia-oriented micrometres.

The oriented frame is that of `standard_transform`: rotated by 5° about z so that y points from the
pia into the cortex, and shifted so that the pia is at y = 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from standard_transform.datasets import minnie_transform

from microns_xr.errors import SchemaError

__all__ = ["from_pia_um", "to_pia_um"]

# The version of the frame: a later release of standard_transform may move the pia, and positions
# of two installations must agree. 1.4 is the frame of the published minnie65 tables.
FRAME_VERSION = "1.4"


@lru_cache(maxsize=8)
def _transform(resolution_nm: tuple[float, float, float]) -> Any:
    return minnie_transform(np.asarray(resolution_nm), version=FRAME_VERSION)


def to_pia_um(
    points: np.ndarray, resolution_nm: tuple[float, float, float] = (4.0, 4.0, 40.0)
) -> np.ndarray:
    """Turn positions into pia-oriented micrometres.

    Parameters
    ----------
    points : numpy.ndarray
        Shape (n, 3), in voxels of `resolution_nm`; NaN where unknown.
    resolution_nm : tuple of float, optional
        Voxel size in nm; ``(1, 1, 1)`` for positions in nm.

    Returns
    -------
    numpy.ndarray
        Shape (n, 3), float64, µm; column 1 is depth from the pia.

    Raises
    ------
    SchemaError
        If the shape is not (n, 3).

    Notes
    -----
    Pia point and rotation: the frame "1.4" of standard_transform (CAVEconnectome), minnie65.

    Examples
    --------
    The pia point of the frame lies at depth 0:

    >>> um = to_pia_um(np.array([[183013, 83535, 21480]]))
    >>> bool(abs(um[0, 1]) < 1e-9)
    True
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise SchemaError(f"points has shape {array.shape}, expected (n, 3) with columns x, y, z")
    if not len(array):
        return array.copy()
    return np.asarray(_transform(tuple(float(r) for r in resolution_nm)).apply(array))


def from_pia_um(
    points: np.ndarray, resolution_nm: tuple[float, float, float] = (4.0, 4.0, 40.0)
) -> np.ndarray:
    """Turn pia-oriented micrometres back into voxels; the inverse of `to_pia_um`.

    Parameters
    ----------
    points : numpy.ndarray
        Shape (n, 3), µm.
    resolution_nm : tuple of float, optional
        Voxel size in nm.

    Returns
    -------
    numpy.ndarray
        Shape (n, 3), float64, voxels (not rounded).

    Examples
    --------
    >>> voxels = np.array([[200000.0, 150000.0, 20000.0]])
    >>> bool(np.allclose(from_pia_um(to_pia_um(voxels)), voxels))
    True
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise SchemaError(f"points has shape {array.shape}, expected (n, 3) with columns x, y, z")
    if not len(array):
        return array.copy()
    return np.asarray(_transform(tuple(float(r) for r in resolution_nm)).invert(array))
