"""Single synapses with their positions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.columns import id_column, positions, require_columns
from microns_xr.connectivity.arrays import PAIR_DIMS
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.synapse_table import whole_numbers
from microns_xr.coordinates import to_pia_um
from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS, add_history
from microns_xr.schema import AXES, VOXEL_UNITS, validate

__all__ = ["build_synapses"]

_POSITION = "ctr_pt_position"


def build_synapses(
    synapses: pd.DataFrame,
    connectivity: xr.Dataset,
    resolution_nm: tuple[float, float, float] = (4.0, 4.0, 40.0),
) -> xr.Dataset:
    """Label single synapses by the neurons of a connectivity Dataset.

    Parameters
    ----------
    synapses : pandas.DataFrame
        A row a synapse: ``id``, ``pre_pt_root_id``, ``post_pt_root_id``, ``size``,
        ``ctr_pt_position`` (written ``[x y z]`` or split in three columns).
    connectivity : xarray.Dataset
        Connectivity of the same release, with the root ids of both axes.
    resolution_nm : tuple of float, optional
        Voxel size of the positions.

    Returns
    -------
    xarray.Dataset
        Dim ``synapse``, sorted by post, then pre, then id: ``synapse_id``, ``pre_index`` and
        ``post_index`` (positions on the axes of `connectivity`), ``size`` (voxels of 4x4x40 nm),
        ``position(synapse, axis)`` in µm, depth from the pia along y. The axes they count along
        come with them, as the coordinates ``pre_nucleus_id`` and ``post_nucleus_id``. Synapses of
        other neurons are left out.

    Raises
    ------
    SchemaError
        If columns are missing or ids are no integers, an id is repeated, or `connectivity` does
        not name its roots.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> synapses = build_synapses(release.table("synapses"), release.connectivity())
    >>> synapses.position.dims
    ('synapse', 'axis')
    """
    validate(connectivity, "connectivity")
    require_columns(synapses, "synapses", ["id", "pre_pt_root_id", "post_pt_root_id", "size"])
    index, keep = {}, np.ones(len(synapses), dtype=bool)
    for side in ("pre", "post"):
        name = f"{side}_pt_root_id"
        if name not in connectivity.coords:
            raise SchemaError(
                f"connectivity has no {name}, which synapses are labelled by: build it with "
                "mx.build_connectivity, or mx.annotate(connectivity, units, 'pt_root_id')"
            )
        roots = id_column(synapses[name], "synapses", nullable=True).fillna(0)
        lookup = Lookup(connectivity[name].values, name)
        index[side] = lookup.find(roots.to_numpy(np.int64)).astype(np.int32)
        keep &= index[side] >= 0
    ids = id_column(synapses["id"], "synapses").to_numpy()
    where = positions(synapses, "synapses", _POSITION)[keep]
    pre, post, ids = index["pre"][keep], index["post"][keep], ids[keep]
    order = np.lexsort([ids, pre, post])
    if len(np.unique(ids)) < len(ids):
        raise SchemaError(
            f"synapses repeats {len(ids) - len(np.unique(ids))} ids, expected each synapse once: "
            "two downloads were joined; drop repeated rows by id"
        )
    whole = whole_numbers(synapses["size"], at_least=0)[keep][order]
    dataset = xr.Dataset(
        {
            "synapse_id": ("synapse", ids[order]),
            "pre_index": ("synapse", pre[order]),
            "post_index": ("synapse", post[order]),
            "size": ("synapse", whole, {"units": VOXEL_UNITS}),
            "position": (
                ("synapse", "axis"),
                to_pia_um(where[order], resolution_nm),
                {"units": "µm", "long_name": "centre of the synapse, y is depth from the pia"},
            ),
        },
        coords={
            "axis": ("axis", np.array(AXES, dtype=object)),
            **{c: connectivity[c].variable for c in (*PAIR_DIMS, *RELEASE_COORDS)},
        },
    )
    return add_history(dataset, "build_synapses", source=connectivity)
