"""Convert units and connectivity to objects of pandas, scipy, networkx and anndata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse
import xarray as xr

from microns_xr.connectivity.arrays import (
    PAIR_DIMS,
    ROOT_IDS,
    as_pairs,
    pair_buffers,
    pattern_of,
    values_of,
    weight_of,
)
from microns_xr.connectivity.labels import Lookup, require_ends, require_known
from microns_xr.connectivity.subset import drop_unnamed
from microns_xr.errors import (
    SchemaError,
    import_optional,
    part_of,
    require_instance,
    unknown_label,
    whole_number,
)
from microns_xr.provenance import RELEASE_COORDS, require_same_release
from microns_xr.schema import AXES, require_unique_sorted, require_unrounded_roots, validate
from microns_xr.store.format import json_attrs

if TYPE_CHECKING:
    from anndata import AnnData
    from networkx import DiGraph

_COLUMNS = {"synapse_size": "size", "synapse_count": "n_syn"}
_ANGLE_ATTRS = ("units", "angle_convention", "period")
# Bytes per connection, measured with networkx 3.6 on Python 3.11: 390 at 100,000, 310 at 1e6.
_NETWORKX_BYTES = 350


def to_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Convert a Dataset of this package to a pandas DataFrame.

    Parameters
    ----------
    dataset : xarray.Dataset
        Units (dim ``nucleus_id``), functional rows (``scan_unit``), connectivity
        (``pre_nucleus_id``, ``post_nucleus_id``), single synapses (``synapse``) or layers
        (``segment``).

    Returns
    -------
    pandas.DataFrame
        Units: one row per neuron, ``nucleus_id`` first, ``position`` as ``pt_position_x`` ... (µm),
        rates as one column per angle (``rate_ori_22.5``). Functional: one row per recorded unit.
        Connectivity: one row per connected pair with the nucleus and root ids of both neurons,
        ``size`` (voxels), ``n_syn`` where synapses were counted, or other weights by
        name, then every annotation of either neuron; sorted by post, then pre. Synapses: one row
        per synapse with its id, the nucleus and root ids of both neurons, ``size``, and
        ``position_x`` ... in µm (y is depth from the pia; not the voxels of ``ctr_pt_position``).

    Raises
    ------
    SchemaError
        If the Dataset is none of these, or its root ids went through floats.

    Examples
    --------
    >>> layers = xr.Dataset({"layer_name": ("segment", ["L1"]), "y_end": ("segment", [70.0])})
    >>> to_table(layers)
      layer_name  y_end
    0         L1   70.0
    """
    if isinstance(dataset, xr.DataArray) and set(PAIR_DIMS) <= set(dataset.dims):
        return _table_of_pairs(as_pairs(dataset))
    require_instance("dataset", dataset, xr.Dataset, "a Dataset")
    require_unrounded_roots(dataset)
    if "synapse" in dataset.dims:
        return _table_of_synapses(dataset)
    if {"pre_nucleus_id", "post_nucleus_id"} <= set(dataset.dims):
        return _table_of_pairs(dataset)
    for dim in ("scan_unit", "nucleus_id", "segment"):
        if dim in dataset.dims:
            return _table_along(dataset, dim)
    raise SchemaError(
        f"a Dataset with dims {tuple(dataset.dims)} is neither units, functional rows, "
        "connectivity, synapses nor layers: use .to_dataframe()"
    )


def _table_along(dataset: xr.Dataset, dim: str) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {}
    for name, values, other, labels in _columns_along(dataset, dim):
        if other is None:
            columns[name] = values
        prefix = f"pt_{name}" if other == "axis" else name
        for i, label in enumerate(labels):
            shown = f"{label:g}" if isinstance(label, float) else str(label)
            columns[f"{prefix}_{shown}"] = values[:, i]
    return pd.DataFrame(columns)


def _table_of_synapses(synapses: xr.Dataset) -> pd.DataFrame:
    require_ends(synapses)
    table = _table_along(synapses, "synapse")
    table.columns = table.columns.str.removeprefix("pt_")
    first = [n for n in ("synapse_id", *PAIR_DIMS, *ROOT_IDS, "size") if n in table]
    return table[[*first, *table.columns.difference(first, sort=False)]]


def _columns_along(
    dataset: xr.Dataset, dim: str
) -> Iterator[tuple[str, np.ndarray, str | None, list[Any]]]:
    """Yield name, values, other dim and its labels for each variable over `dim`."""
    # The ids of the rows first, then the labels.
    for key in [*sorted(dataset.coords, key=lambda name: name != dim), *dataset.data_vars]:
        name, variable = str(key), dataset[key]
        if dim not in variable.dims:
            continue
        others = [str(d) for d in variable.dims if d != dim]
        if len(others) > 1:
            raise SchemaError(
                f"{name} has dims {variable.dims}, expected at most one beside {dim}: select "
                "along the others with .isel, or drop it with .drop_vars"
            )
        labels: list[Any] = []
        if others and others[0] in variable.coords:
            labels = variable[others[0]].values.tolist()
        elif others:
            labels = list(AXES if others[0] == "axis" else range(variable.sizes[others[0]]))
        yield name, variable.transpose(dim, ...).values, others[0] if others else None, labels


def _table_of_pairs(connectivity: xr.Dataset) -> pd.DataFrame:
    connectivity = as_pairs(connectivity)
    pattern, values = pair_buffers(connectivity)
    order = slice(None) if pattern.compressed == "post" else np.lexsort(pattern.ends())
    ends = {dim: at[order] for dim, at in zip(PAIR_DIMS, pattern.ends(), strict=True)}
    ids = {dim: connectivity[dim].values[at] for dim, at in ends.items()}
    # Somebody's own weight may be named "size" already.
    columns = {n: _COLUMNS[n] for n in values if n in _COLUMNS and _COLUMNS[n] not in values}
    sums = {columns.get(name, name): stored[order] for name, stored in values.items()}
    annotations: dict[str, np.ndarray] = {}
    for name, coord in connectivity.coords.items():
        if name not in connectivity.dims and coord.ndim == 1:
            column = coord.values[ends[str(coord.dims[0])]]
            (ids if str(name).endswith("_pt_root_id") else annotations)[str(name)] = column
    return pd.DataFrame({**ids, **sums, **annotations})


def to_scipy(
    connectivity: xr.Dataset | xr.DataArray, variable: str | None = None
) -> scipy.sparse.csc_array | scipy.sparse.csr_array:
    """Return one variable of a connectivity Dataset as a scipy sparse array without copying.

    Parameters
    ----------
    connectivity : xarray.Dataset or xarray.DataArray
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory, ids ascending.
    variable : str, optional
        The weight; by default ``"synapse_size"`` (voxels), or else the only one.

    Returns
    -------
    scipy.sparse.csc_array or scipy.sparse.csr_array
        Shape (pre, post), in the order of the labels; csc if connectivity is compressed over post,
        csr if over pre. It shares memory with sparse connectivity: call ``.copy()`` before in-place
        changes, including ``eliminate_zeros``, which would drop pairs of size 0. Above 2^31 pairs
        scipy needs wider indices, and copies them.

    Raises
    ------
    SchemaError
        If `connectivity` is not a Dataset or DataArray, the variable is lazy, or the ids of an axis
        are not sorted.
    UnknownLabelError
        If there is no such weight.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.sources.DemoSource(1718, n_nuclei=500))
    >>> connectivity = release.connectivity()
    >>> matrix = to_scipy(connectivity)
    >>> matrix.format, np.shares_memory(matrix.data, connectivity.synapse_size.data.data)
    ('csc', True)
    """
    if isinstance(connectivity, xr.DataTree):
        connectivity = as_pairs(connectivity)
    if not isinstance(connectivity, xr.Dataset | xr.DataArray):
        hint = part_of(connectivity, "connectivity") or "for a store pass mx.open_store(path)"
        raise SchemaError(
            f"connectivity is a {type(connectivity).__name__}, expected a Dataset: {hint}"
        )
    for dim in PAIR_DIMS:
        # Sorting them here would put rows elsewhere than where the caller has their labels.
        if dim in connectivity.indexes:
            require_unique_sorted(dim, connectivity[dim].values)
    connectivity = as_pairs(connectivity)
    variable = weight_of(connectivity, variable)
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
    """Return connectivity as a networkx directed graph.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity over (``pre_nucleus_id``, ``post_nucleus_id``), in memory.
    units : xarray.Dataset, optional
        Units with all neurons of both axes, for the attributes of the nodes.
    node_attributes : iterable of str, optional
        Variables of the units; by default all over only ``nucleus_id``, and ``position`` as ``x``,
        ``y``, ``z`` in µm.
    max_connections : int or None, optional
        Raise if there are more, since a connection takes about 350 bytes in networkx (16 as a
        sparse array). None means no limit.

    Returns
    -------
    networkx.DiGraph
        From pre to post. Nodes are the nucleus ids of both axes, as Python integers, including
        those without connections unless the scope is "unknown"; their attributes ``in_pre`` and
        ``in_post`` tell the axes of a neuron: a missing edge means "no synapse seen" only from a
        neuron in pre to one in post.
        Edges have the weights by name: ``synapse_size`` (voxels), and
        ``synapse_count`` where synapses were counted. The attributes of the graph are the release
        and the scope.

    Raises
    ------
    SchemaError
        If there are more than `max_connections`, or a variable is missing or not one value per
        neuron.
    UnknownLabelError
        If neurons of the connectivity are not among the units.
    ReleaseMismatchError
        If the two state different releases.
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
    networkx = import_optional("networkx", "export")
    connectivity = drop_unnamed(as_pairs(connectivity))
    pattern, values = pair_buffers(connectivity)
    if max_connections is not None:
        whole_number("max_connections", max_connections, 0)
    if max_connections is not None and pattern.nnz > max_connections:
        raise SchemaError(
            f"connectivity has {pattern.nnz:,} connections, expected at most {max_connections:,} "
            f"for networkx, where they take about {pattern.nnz * _NETWORKX_BYTES / 1e9:.1f} "
            "GB: select some neurons with mx.select_connections, use mx.to_scipy, or pass "
            "max_connections=None"
        )
    ids = {side: connectivity[f"{side}_nucleus_id"].values for side in ("pre", "post")}
    nodes = np.union1d(ids["pre"], ids["post"])
    attributes = {f"in_{side}": np.isin(nodes, labels) for side, labels in ids.items()}
    if units is not None:
        validate(units, "units")
        require_same_release(("connectivity", connectivity), ("units", units))
        attributes |= _node_attributes(units, nodes, node_attributes)
    # Edges share one Python integer per neuron: separate ones would take a fifth of the memory.
    shared = np.array(nodes.tolist(), dtype=object)
    graph = networkx.DiGraph(**_release_attrs(connectivity), scope=connectivity["scope"].item())
    # Records have native Python types, which graph writers expect.
    records = pd.DataFrame(attributes).to_dict("records")
    graph.add_nodes_from(zip(shared.tolist(), records, strict=True))
    ends = (
        shared[np.searchsorted(nodes, ids[side])][positions].tolist()
        for side, positions in zip(("pre", "post"), pattern.ends(), strict=True)
    )
    rows = zip(*ends, *(stored.tolist() for stored in values.values()), strict=True)
    names = list(values)
    graph.add_edges_from((a, b, dict(zip(names, row, strict=True))) for a, b, *row in rows)
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
        What to do with connections of neurons that are not among the units.

    Returns
    -------
    anndata.AnnData
        ``obs``: the variables of each neuron, with its ``nucleus_id`` and ``pt_root_id`` as int64;
        the index is the nucleus id as text. ``obsm``: ``position`` (µm, columns x y z, y is depth
        from the pia), and tables such as ``rate_ori`` with the angles as column names.
        ``obsp``: the weights by name, square, rows pre and columns post, in csr.
        Neurons that are not on an axis have empty rows or columns, as if without synapses:
        ``obs["in_pre"]`` and ``obs["in_post"]`` mark valid rows and columns; if the scope is
        "unknown", those with a connection.
        ``uns["microns_xr"]``: release, scope, orientation of ``obsp``, units and convention of
        each angle under ``angles``, labels of the columns of ``obsm``, number of dropped
        connections, and all attributes as JSON. There is no ``X``.

    Raises
    ------
    UnknownLabelError
        If neurons that are not among the units have connections and `outside` is "raise".
    SchemaError
        If `outside` is not one of the two, a variable has more than two dims, or a name is taken.
    ReleaseMismatchError
        If the two state different releases.
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
    anndata = import_optional("anndata", "export")
    validate(units, "units")
    if outside not in ("raise", "drop"):
        raise SchemaError(f"outside is {outside!r}, expected 'raise' or 'drop'")
    ids = units["nucleus_id"].values
    index = _object_index([str(i) for i in ids.tolist()])
    obs = pd.DataFrame(index=index)
    obsm: dict[str, Any] = {}
    columns: dict[str, list[str]] = {}
    for name, values, other, labels in _columns_along(units, "nucleus_id"):
        if other is None:
            obs[name] = pd.Series(values.copy(), index=index, dtype=values.dtype)
            continue
        columns[name] = [str(label) for label in labels]
        # Positions are plain arrays, as plotting functions expect; others keep their column names.
        obsm[name] = (
            values.copy()
            if other == "axis"
            else pd.DataFrame(values.copy(), index, _object_index(columns[name]))
        )
    about: dict[str, Any] = {**_release_attrs(units), "columns": columns}
    about["angles"] = {
        str(name): {key: variable.attrs[key] for key in _ANGLE_ATTRS if key in variable.attrs}
        for name, variable in units.variables.items()
        if "angle_convention" in variable.attrs
    }
    attrs = {"units": json_attrs(units.attrs, "units")}
    attrs |= {str(name): json_attrs(v.attrs, str(name)) for name, v in units.variables.items()}
    obsp: dict[str, scipy.sparse.csr_array] = {}
    if connectivity is not None:
        connectivity = drop_unnamed(as_pairs(connectivity))
        require_same_release(("units", units), ("connectivity", connectivity))
        obsp, about["dropped_connections"] = _square(connectivity, ids, outside)
        for side in ("pre", "post"):
            if f"in_{side}" in obs:
                raise SchemaError(
                    f"units has a variable in_{side}, a name that marks neurons of the "
                    "connectivity: rename it with .rename"
                )
            obs[f"in_{side}"] = np.isin(ids, connectivity[f"{side}_nucleus_id"].values)
        about["scope"] = connectivity["scope"].item()
        about["obsp"] = "rows are presynaptic, columns postsynaptic"
        attrs["connectivity"] = json_attrs(connectivity.attrs, "connectivity")
        attrs |= {name: json_attrs(connectivity[name].attrs, name) for name in obsp}
    about["attrs"] = json.dumps(attrs, ensure_ascii=False)
    data = anndata.AnnData(obs=obs, obsm=obsm, obsp=obsp, uns={"microns_xr": about})
    data.var_names = _object_index([])
    return data


def _object_index(words: list[str]) -> pd.Index:
    # By default anndata does not write the text dtype of pandas 3.
    return pd.Index(words, dtype=object)


def _release_attrs(dataset: xr.Dataset) -> dict[str, Any]:
    return {name: dataset[name].item() for name in RELEASE_COORDS if name in dataset.coords}


def _node_attributes(
    units: xr.Dataset, nodes: np.ndarray, names: Iterable[str] | None
) -> dict[str, np.ndarray]:
    rows = Lookup(units["nucleus_id"].values, "nucleus_id of the units").find(nodes)
    hint = "select the connections of the units first, with mx.select_connections"
    require_known(nodes, rows, "the connectivity", "the units", hint)
    scalars = {str(n) for n, v in units.variables.items() if v.dims == ("nucleus_id",)}
    known = [*sorted(scalars - {"nucleus_id"}), *(["position"] if "position" in units else [])]
    attributes: dict[str, np.ndarray] = {}
    for name in known if names is None else names:
        if name not in known:
            raise unknown_label("units have no attribute", name, known, error=SchemaError)
        values = units[name].values[rows]
        # networkx does not write arrays as node attributes.
        attributes |= dict(zip(AXES, values.T, strict=True)) if values.ndim > 1 else {name: values}
    return attributes


def _square(
    connectivity: xr.Dataset, ids: np.ndarray, outside: str
) -> tuple[dict[str, scipy.sparse.csr_array], int]:
    """Return the weights over (units, units), and the number of connections outside."""
    pattern, values = pair_buffers(connectivity)
    lookup = Lookup(ids, "nucleus_id of the units")
    ends = []
    for side, positions in zip(("pre", "post"), pattern.ends(), strict=True):
        labels = connectivity[f"{side}_nucleus_id"].values
        rows = lookup.find(labels)
        connected = np.bincount(positions, minlength=labels.size) > 0
        if outside == "raise":
            require_known(
                labels[connected],
                rows[connected],
                f"the connected {side}synaptic neurons",
                "the units",
                "select the connections of the units first, with mx.select_connections, or pass "
                "outside='drop'",
            )
        ends.append(rows[positions])
    pre, post = ends
    inside = (pre >= 0) & (post >= 0)
    at = (pre[inside], post[inside])
    # Separate patterns, since scipy drops stored zeros in place.
    square = {
        name: scipy.sparse.coo_array((buffer[inside], at), (ids.size, ids.size)).tocsr()
        for name, buffer in values.items()
    }
    return square, int(inside.size - np.count_nonzero(inside))
