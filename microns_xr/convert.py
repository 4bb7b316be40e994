"""The way back to pandas: one row a neuron, a recorded unit, a pair, or a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.arrays import pattern_of, values_of
from microns_xr.errors import SchemaError
from microns_xr.provenance import RELEASE_COORDS
from microns_xr.schema import AXES

__all__ = ["to_table"]


def to_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Turn a Dataset of this package into a plain table.

    Parameters
    ----------
    dataset : xarray.Dataset
        Units, functional rows, connectivity or layers.

    Returns
    -------
    pandas.DataFrame
        Units: a row a neuron, ``nucleus_id`` first, ``position`` as ``pt_position_x`` ... (µm),
        rates as one column an angle (``rate_ori_22.5``). Functional: a row a recorded unit.
        Connectivity: a row a pair that is connected, nucleus and root ids of both, ``size``,
        ``n_syn``, then every annotation of either neuron; sorted by post, then pre.

    Raises
    ------
    SchemaError
        If the Dataset is none of these.

    Examples
    --------
    >>> layers = xr.Dataset({"layer_name": ("segment", ["L1"]), "y_end": ("segment", [70.0])})
    >>> to_table(layers)
      layer_name  y_end
    0         L1   70.0
    """
    if not isinstance(dataset, xr.Dataset):
        raise SchemaError(f"expected a Dataset, found {type(dataset).__name__}")
    if "pre_nucleus_id" in dataset.dims and "post_nucleus_id" in dataset.dims:
        return _pairs(dataset)
    for dim in ("scan_unit", "nucleus_id", "segment"):
        if dim in dataset.dims:
            return _rows(dataset, dim)
    raise SchemaError(
        f"a Dataset with dims {tuple(dataset.dims)} is neither units, functional rows, "
        "connectivity nor layers: use its own .to_dataframe()"
    )


def _rows(dataset: xr.Dataset, dim: str) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {}
    for name in [*dataset.coords, *dataset.data_vars]:
        variable = dataset[name]
        if name in RELEASE_COORDS or dim not in variable.dims:
            continue
        variable = variable.transpose(dim, ...)
        values = variable.values
        if variable.ndim == 1:
            columns[str(name)] = values
        elif variable.ndim == 2:
            other = str(variable.dims[1])
            labels = variable[other].values if other in variable.coords else _numbered(variable)
            prefix = f"pt_{name}" if other == "axis" else str(name)
            columns.update({f"{prefix}_{_shown(w)}": values[:, i] for i, w in enumerate(labels)})
        else:
            raise SchemaError(f"{name} has dims {variable.dims}, which do not fit into one table")
    return pd.DataFrame(columns)


def _numbered(variable: xr.DataArray) -> Any:
    return AXES if variable.dims[1] == "axis" else range(variable.shape[1])


def _shown(label: Any) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def _pairs(connectivity: xr.Dataset) -> pd.DataFrame:
    pattern = pattern_of(connectivity)
    size, count = values_of(connectivity), values_of(connectivity, "synapse_count")
    owner = np.repeat(np.arange(pattern.n_major), np.diff(pattern.indptr))
    pre, post = (
        (pattern.indices, owner) if pattern.compressed == "post" else (owner, pattern.indices)
    )
    order = slice(None) if pattern.compressed == "post" else np.lexsort([pre, post])
    pre, post = pre[order], post[order]
    columns = {
        "pre_nucleus_id": connectivity["pre_nucleus_id"].values[pre],
        "post_nucleus_id": connectivity["post_nucleus_id"].values[post],
    }
    sums = {"size": size[order], "n_syn": count[order]}
    annotations: dict[str, np.ndarray] = {}
    for name, coord in connectivity.coords.items():
        if name in connectivity.dims or coord.ndim != 1:
            continue
        values = coord.values[pre if coord.dims[0] == "pre_nucleus_id" else post]
        (columns if str(name).endswith("_pt_root_id") else annotations)[str(name)] = values
    return pd.DataFrame({**columns, **sums, **annotations})
