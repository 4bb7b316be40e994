"""Connectivity and units as objects of other packages: scipy, networkx, anndata."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse
import xarray as xr

from microns_xr.connectivity.arrays import Pattern, pair_buffers, pattern_of, values_of
from microns_xr.connectivity.labels import Lookup, require_known
from microns_xr.errors import MicronsXrError, SchemaError
from microns_xr.provenance import RELEASE_COORDS, require_same_release
from microns_xr.schema import AXES, validate
from microns_xr.store.format import json_attrs

if TYPE_CHECKING:
    from anndata import AnnData
    from networkx import DiGraph

# The way back to pandas: one row a neuron, a recorded unit, a pair, or a layer.


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
        return _pairs_table(dataset)
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


def _pairs_table(connectivity: xr.Dataset) -> pd.DataFrame:
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


_PAIR_VARIABLES = ("synapse_size", "synapse_count")
# networkx 3.6, Python 3.11: 390 at 100,000 connections, 310 at 1,000,000
_BYTES_A_CONNECTION = 350


def to_scipy(
    connectivity: xr.Dataset | xr.DataArray, variable: str = "synapse_size"
) -> scipy.sparse.csc_array | scipy.sparse.csr_array:
    """Return one variable of a connectivity Dataset as a scipy sparse array, without a copy.

    Parameters
    ----------
    connectivity : xarray.Dataset or xarray.DataArray
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory.
    variable : str, optional
        ``"synapse_size"`` (voxels of 4x4x40 nm) or ``"synapse_count"``.

    Returns
    -------
    scipy.sparse.csc_array or scipy.sparse.csr_array
        Shape (pre, post), in the order of the labels; csc where connectivity is compressed over
        post, csr where over pre. The buffers are those of the connectivity: take a ``.copy()``
        before changing anything in place, also with ``eliminate_zeros``, which would drop the
        pairs of size 0. Above 2^31 pairs scipy needs wider indices, and copies them.

    Raises
    ------
    SchemaError
        If `connectivity` is none, there is no such variable, it is lazy, not sparse, or its dims
        are not (pre, post).

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> connectivity = release.connectivity()
    >>> matrix = to_scipy(connectivity)
    >>> matrix.format, np.shares_memory(matrix.data, connectivity.synapse_size.data.data)
    ('csc', True)
    """
    if not isinstance(connectivity, xr.Dataset | xr.DataArray):
        raise SchemaError(
            f"connectivity is a {type(connectivity).__name__}, expected a Dataset: of a store it "
            "is mx.open_store(path)['connectivity'].to_dataset()"
        )
    if isinstance(connectivity, xr.Dataset) and variable not in connectivity.data_vars:
        raise SchemaError(
            f"connectivity has no variable {variable!r}, found "
            f"{sorted(map(str, connectivity.data_vars))}"
        )
    pattern = pattern_of(connectivity, variable)
    kind = scipy.sparse.csc_array if pattern.compressed == "post" else scipy.sparse.csr_array
    buffers = (values_of(connectivity, variable), pattern.indices, pattern.indptr)
    return kind(buffers, shape=pattern.shape, copy=False)


def to_networkx(
    connectivity: xr.Dataset,
    units: xr.Dataset | None = None,
    *,
    node_attributes: Iterable[str] | None = None,
    max_connections: int | None = 1_000_000,
) -> DiGraph:
    """Return connectivity as a directed graph of networkx.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory.
    units : xarray.Dataset, optional
        Units that hold all neurons of both axes; give the attributes of the nodes.
    node_attributes : iterable of str, optional
        Which variables of the units; by default all over ``nucleus_id`` alone, and ``position`` as
        ``x``, ``y``, ``z`` in µm.
    max_connections : int or None, optional
        More are refused, for a connection takes about 350 bytes in networkx, and 16 here. None
        sets no bound.

    Returns
    -------
    networkx.DiGraph
        From pre to post. Nodes are the nucleus ids of both axes, as Python integers, also those
        without connections; their attributes ``in_pre`` and ``in_post`` say on which axis a neuron
        is: only between a neuron in pre and one in post does no edge mean no synapse seen. Edges
        have ``synapse_size`` (voxels of 4x4x40 nm) and ``synapse_count``. The attributes of the
        graph are the release and the scope.

    Raises
    ------
    SchemaError
        If there are more than `max_connections`, a variable is absent or no scalar of a neuron.
    UnknownLabelError
        If neurons of the connectivity are not among the units.
    ReleaseMismatchError
        If the two are of different releases, or do not say which.
    MicronsXrError
        If networkx is not installed.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> graph = to_networkx(release.connectivity(), release.units(), node_attributes=["layer"])
    >>> graph.number_of_edges() == mx.n_connections(release.connectivity())
    True
    """
    networkx = _package("networkx")
    validate(connectivity, "connectivity")
    pattern, values = pair_buffers(connectivity, _PAIR_VARIABLES)
    if max_connections is not None and pattern.nnz > max_connections:
        raise SchemaError(
            f"connectivity has {pattern.nnz:,} connections, expected at most {max_connections:,} "
            f"for networkx, where they take about {pattern.nnz * _BYTES_A_CONNECTION / 1e9:.1f} "
            "GB: take some neurons with mx.select_connections, use mx.to_scipy, or pass "
            "max_connections=None"
        )
    ids = {side: connectivity[f"{side}_nucleus_id"].values for side in ("pre", "post")}
    nodes = np.union1d(ids["pre"], ids["post"])
    attributes = {f"in_{side}": np.isin(nodes, labels) for side, labels in ids.items()}
    if units is not None:
        validate(units, "units")
        named = (("connectivity", connectivity), ("units", units))
        require_same_release(*named)
        attributes |= _node_attributes(units, nodes, node_attributes)
    # Integers of their own for each connection would take a fifth of the memory.
    shared = np.array(nodes.tolist(), dtype=object)
    names, columns = list(attributes), [values.tolist() for values in attributes.values()]
    graph = networkx.DiGraph(**_release_attrs(connectivity), scope=connectivity["scope"].item())
    graph.add_nodes_from(
        (node, dict(zip(names, row, strict=True)))
        for node, *row in zip(shared.tolist(), *columns, strict=True)
    )
    ends = (
        shared[np.searchsorted(nodes, ids[side])][positions].tolist()
        for side, positions in zip(("pre", "post"), _pairs(pattern), strict=True)
    )
    rows = zip(*ends, *(values[name].tolist() for name in _PAIR_VARIABLES), strict=True)
    graph.add_edges_from(
        (a, b, {"synapse_size": size, "synapse_count": count}) for a, b, size, count in rows
    )
    return graph


def to_anndata(
    units: xr.Dataset,
    connectivity: xr.Dataset | None = None,
    *,
    outside: Literal["raise", "drop"] = "raise",
) -> AnnData:
    """Return units, and the connectivity among them, as an AnnData object.

    Parameters
    ----------
    units : xarray.Dataset
        Units, dim ``nucleus_id``: the observations.
    connectivity : xarray.Dataset, optional
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory.
    outside : {"raise", "drop"}, optional
        What becomes of connections of neurons that are not among the units.

    Returns
    -------
    anndata.AnnData
        ``obs``: the variables of each neuron, with its ``nucleus_id`` and ``pt_root_id`` as int64;
        the index is the nucleus id as text. ``obsm``: ``position`` (µm, columns x y z, y is depth
        from the pia), and tables such as ``rate_ori`` with the angles as names of their columns.
        ``obsp``: ``synapse_size`` and ``synapse_count``, square, rows pre and columns post, in csr.
        A neuron that was not asked for has an empty row or column there, as if it had no synapses:
        ``obs["in_pre"]`` and ``obs["in_post"]`` say whose rows and columns mean something.
        ``uns["microns_xr"]``: release, scope, orientation of ``obsp``, units and convention of
        each angle under ``angles``, labels of the columns of ``obsm``, number of connections
        left out, and all attributes as JSON. There is no ``X``.

    Raises
    ------
    UnknownLabelError
        If connections are of neurons that are not among the units, unless they are dropped.
    SchemaError
        If `outside` is another word, or a variable has more than two dims or a name that is taken.
    ReleaseMismatchError
        If the two are of different releases, or do not say which.
    MicronsXrError
        If anndata is not installed.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> data = to_anndata(release.units(), release.connectivity())
    >>> data.obs["nucleus_id"].dtype, sorted(data.obsp)
    (dtype('int64'), ['synapse_count', 'synapse_size'])
    """
    anndata = _package("anndata")
    validate(units, "units")
    if outside not in ("raise", "drop"):
        raise SchemaError(f"outside is {outside!r}, expected 'raise' or 'drop'")
    ids = units["nucleus_id"].values
    names = _words([str(i) for i in ids.tolist()])
    obs = pd.DataFrame({"nucleus_id": ids.copy()}, index=names)
    obsm: dict[str, Any] = {}
    columns: dict[str, list[str]] = {}
    for name, variable in units.variables.items():
        if "nucleus_id" not in variable.dims or name == "nucleus_id":
            continue
        if variable.ndim == 1:
            obs[str(name)] = pd.Series(variable.values.copy(), index=names, dtype=variable.dtype)
            continue
        columns[str(name)] = _column_names(units, str(name))
        values = variable.transpose("nucleus_id", ...).values.copy()
        # Positions are for programs that plot; the names of the others would be lost in an array.
        is_position = variable.dims[1] == "axis"
        obsm[str(name)] = (
            values if is_position else pd.DataFrame(values, names, _words(columns[str(name)]))
        )
    about: dict[str, Any] = {**_release_attrs(units), "columns": columns}
    about["angles"] = {
        str(name): {key: variable.attrs[key] for key in _ANGLE_ATTRS if key in variable.attrs}
        for name, variable in units.variables.items()
        if "angle_convention" in variable.attrs
    }
    attrs = {"units": json_attrs(units.attrs, "units")}
    for name, variable in units.variables.items():
        attrs[str(name)] = json_attrs(variable.attrs, str(name))
    obsp: dict[str, scipy.sparse.csr_array] = {}
    if connectivity is not None:
        validate(connectivity, "connectivity")
        named = (("units", units), ("connectivity", connectivity))
        require_same_release(*named)
        obsp, dropped = _square(connectivity, ids, outside)
        for side in ("pre", "post"):
            if f"in_{side}" in obs:
                raise SchemaError(
                    f"units has a variable in_{side}, which says here who is in the connectivity: "
                    "rename it with .rename"
                )
            obs[f"in_{side}"] = np.isin(ids, connectivity[f"{side}_nucleus_id"].values)
        about["scope"] = connectivity["scope"].item()
        about["obsp"] = "rows are presynaptic, columns postsynaptic"
        about["dropped_connections"] = dropped
        attrs["connectivity"] = json_attrs(connectivity.attrs, "connectivity")
        for name in obsp:
            attrs[name] = json_attrs(connectivity[name].attrs, name)
    about["attrs"] = json.dumps(attrs, ensure_ascii=False)
    data = anndata.AnnData(obs=obs, obsm=obsm, obsp=obsp, uns={"microns_xr": about})
    data.var_names = _words([])
    return data


_ANGLE_ATTRS = ("units", "angle_convention", "period")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MicronsXrError(
            f"{name} is not installed ({error}): pip install 'microns-xr[export]'"
        ) from error


def _words(words: list[str]) -> pd.Index:
    # The text dtype of pandas 3 is one that anndata does not write unless told to.
    return pd.Index(words, dtype=object)


def _release_attrs(dataset: xr.Dataset) -> dict[str, Any]:
    return {name: dataset[name].item() for name in RELEASE_COORDS if name in dataset.coords}


def _pairs(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of pre and of post of each stored pair."""
    owner = np.repeat(np.arange(pattern.n_major), np.diff(pattern.indptr))
    pairs = (pattern.indices, owner)
    return pairs if pattern.compressed == "post" else pairs[::-1]


def _node_attributes(
    units: xr.Dataset, nodes: np.ndarray, names: Iterable[str] | None
) -> dict[str, np.ndarray]:
    found = Lookup(units["nucleus_id"].values, "nucleus_id of the units").find(nodes)
    hint = "take the connections of the units first, with mx.select_connections"
    require_known(nodes, found, "the connectivity", "the units", hint)
    if names is None:
        scalars = [n for n, v in units.variables.items() if v.dims == ("nucleus_id",)]
        names = [str(n) for n in scalars if n != "nucleus_id"] + ["position"]
    attributes: dict[str, np.ndarray] = {}
    for name in names:
        if name == "position":
            position = units["position"].values[found]
            attributes |= {axis: position[:, i] for i, axis in enumerate(AXES)}
        elif name in units.variables and units[name].dims == ("nucleus_id",):
            attributes[name] = units[name].values[found]
        else:
            raise SchemaError(
                f"{name!r} is no variable over nucleus_id of the units, expected some of "
                f"{sorted(str(n) for n, v in units.variables.items() if v.ndim == 1)}, or "
                "'position'"
            )
    return attributes


def _column_names(units: xr.Dataset, name: str) -> list[str]:
    variable = units[name]
    other = [str(dim) for dim in variable.dims if dim != "nucleus_id"]
    if len(other) != 1:
        raise SchemaError(
            f"{name} has dims {variable.dims}, expected one beside nucleus_id: take one of them "
            "with .isel, or drop it with .drop_vars"
        )
    if other[0] in variable.coords:
        return [str(label) for label in variable[other[0]].values.tolist()]
    return list(AXES) if other[0] == "axis" else [str(i) for i in range(variable.sizes[other[0]])]


def _square(
    connectivity: xr.Dataset, ids: np.ndarray, outside: str
) -> tuple[dict[str, scipy.sparse.csr_array], int]:
    """Return both variables over (units, units), and how many connections are not among them."""
    pattern, values = pair_buffers(connectivity, _PAIR_VARIABLES)
    lookup = Lookup(ids, "nucleus_id of the units")
    ends = []
    for side, positions in zip(("pre", "post"), _pairs(pattern), strict=True):
        labels = connectivity[f"{side}_nucleus_id"].values
        found = lookup.find(labels)
        connected = np.bincount(positions, minlength=labels.size) > 0
        if outside == "raise":
            require_known(
                labels[connected],
                found[connected],
                f"the connected {side}synaptic neurons",
                "the units",
                "take the connections of the units first, with mx.select_connections, or pass "
                "outside='drop'",
            )
        ends.append(found[positions])
    pre, post = ends
    keep = (pre >= 0) & (post >= 0)
    order = np.lexsort([post[keep], pre[keep]])
    counts = np.bincount(pre[keep], minlength=ids.size)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = post[keep][order]
    shape = (ids.size, ids.size)
    # Each has a pattern of its own: scipy drops stored zeros in place.
    square = {
        name: scipy.sparse.csr_array((buffer[keep][order], indices, indptr), shape, copy=True)
        for name, buffer in values.items()
    }
    return square, int(keep.size - np.count_nonzero(keep))
