"""Tables, matrices and arrays from elsewhere as units and connectivity of this package."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse
import sparse
import xarray as xr
from dask.base import is_dask_collection

from microns_xr.angles import AngleConvention, AngleUnits, angle_attrs, require_likely_angle
from microns_xr.columns import (
    as_ids,
    plain_values,
    positions,
    require_columns,
    text_column,
    tidy_columns,
    whole_numbers,
)
from microns_xr.connectivity.arrays import PAIR_DIMS, connectivity_dataset, make_pattern
from microns_xr.connectivity.build import overlapping_files
from microns_xr.connectivity.labels import Lookup
from microns_xr.connectivity.sort import sum_pairs
from microns_xr.errors import (
    SchemaError,
    names_of,
    require_instance,
    require_one_of,
    warn_of_dropped_rows,
    whole_number,
)
from microns_xr.frames import RESOLUTION, positions_um
from microns_xr.provenance import add_history, text_lines
from microns_xr.releases import space_of
from microns_xr.schema import AXES, CONNECTIVITY, SCOPES, UNITS, describe, is_label, validate
from microns_xr.sources.tables import read_if_path
from microns_xr.tables import INVALID, without_invalid

__all__ = ["as_connectivity", "as_units"]

logger = logging.getLogger(__name__)

_DIM = "nucleus_id"
_SIDES = ("pre", "post")
# Names of columns for the two neurons, in order of preference.
_PARTNERS = {side: (f"{side}_nucleus_id", side) for side in _SIDES}


def as_units(
    table: pd.DataFrame | xr.Dataset | str | os.PathLike[str],
    *,
    id: str | None = None,
    position: str | Sequence[str] | None = None,
    resolution_nm: Sequence[float] | None = None,
    angle_units: AngleUnits | None = None,
    angle_convention: AngleConvention | None = None,
    datastack: str | None = None,
    version: int | None = None,
) -> xr.Dataset:
    """Make units of a table of neurons.

    Parameters
    ----------
    table : pandas.DataFrame, xarray.Dataset, str or path-like
        One row per neuron, with any columns; a path is read (csv, csv.gz, parquet or feather).
        Columns named as in the data model (``cell_type``,
        ``layer``, ``classification_system`` ...) are used by the functions of this package; their
        words are kept as they are. Rows of a DataFrame whose column ``valid`` is false are left
        out, as in dumps of tables, and counted. A Dataset may also hold arrays over neurons and
        other dims, such as ``rate_ori(nucleus_id, orientation)``.
    id : str, optional
        The column, the index level or the dim of a Dataset that holds the ids: integers, or text of
        digits. By default ``nucleus_id``. Other names become ``nucleus_id``.
    position : str or sequence of str, optional
        The columns of x, y and z; or the name of one column of ``[x, y, z]``, or of three that end
        in ``_x``, ``_y`` and ``_z``. By default ``x``, ``y`` and ``z``, or ``pt_position``.
        In µm, unless `resolution_nm` states something else; y should be the depth from the pia.
    resolution_nm : sequence of float, optional
        Size of the units of the position in nm, such as ``(4, 4, 40)`` for voxels or ``(1, 1, 1)``
        for nm. They are converted to µm and, if `datastack` has a frame, to depth from the pia.
        By default that of a table of caveclient (``table.attrs["dataframe_resolution"]``).
        Positions in ``pt_position`` must state it.
    angle_units : {"degree", "radian"}, optional
        Units of the columns ``pref_ori`` and ``pref_dir``.
    angle_convention : {"up_clockwise", "right_counterclockwise"}, optional
        Convention of the columns ``pref_ori`` and ``pref_dir``.
    datastack : str, optional
        Datastack of the neurons, such as ``"minnie65_public"``.
    version : int, optional
        Materialization version. Root ids are only valid within one.

    Returns
    -------
    xarray.Dataset
        Over ``nucleus_id`` (int64, sorted, unique). Text is a coordinate, of dtype object, with
        "unknown" for missing words (or "none", where the data model says so); so are booleans and
        ids (``pt_root_id``, ``session``, other integers in columns that end in ``_id``). Numbers
        are variables; integers with missing values become float64. ``position(nucleus_id, axis)``
        is in µm.

    Raises
    ------
    SchemaError
        If ids are missing, repeated, rounded or not integers, if the unit of a position is not
        known, if columns have other types than in the data model, or positions are outside of the
        volume of the datastack.

    Examples
    --------
    >>> neurons = pd.DataFrame({"neuron": [7, 3], "kind": ["exc", None], "depth": [210.5, 340.0]})
    >>> units = as_units(neurons, id="neuron")
    >>> units.nucleus_id.values, units.kind.values
    (array([3, 7]), array(['unknown', 'exc'], dtype=object))
    """
    table = read_if_path(table)
    require_instance("id", id, (str, type(None)), "the name of the column of ids")
    expected = "a DataFrame or a Dataset with one row per neuron, or the path of a table"
    require_instance("table", table, (pd.DataFrame, xr.Dataset), expected)
    name, rest = id or _DIM, xr.Dataset()
    if isinstance(table, xr.Dataset):
        frame, rest = _split(table, name)
    else:
        used = [name, *([] if position is None else names_of("position", position))]
        table = _valid(tidy_columns(table, "table", keep=used, spelling=False), "table", used)
        if name not in table.columns and name in table.index.names:
            table = table.reset_index(level=name)
        frame = table
        _require_ids(name, frame.columns)
    ids = as_ids(frame[name], f"table.{name}")
    if n := int(pd.Series(ids).duplicated().sum()):
        raise SchemaError(
            f"table.{name} repeats {n} ids, expected each neuron once: drop the duplicates, or "
            "make one row per neuron with .groupby"
        )
    points, used, attrs = _position_of(frame, position, resolution_nm, datastack)
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {_DIM: (_DIM, ids, describe(UNITS[_DIM]))}
    for column in [c for c in frame.columns if c not in (name, *used)]:
        values = _values_of(frame[column], str(column))
        into = coords if is_label(str(column), values.dtype) else variables
        into[str(column)] = (_DIM, values, _attrs_of(table, column))
    if angle_convention is not None and angle_units is None:
        raise SchemaError("angle_convention is given without angle_units: pass both")
    if angle_units is not None:
        for column in {"pref_ori", "pref_dir"} & set(variables):
            variables[column][2].update(angle_attrs(angle_units, angle_convention, column))
    if points is not None:
        coords["axis"] = ("axis", np.array(AXES, dtype=object))
        variables["position"] = ((_DIM, "axis"), points, attrs)
    # With arrays over further dims, scalars and other axes.
    units = xr.Dataset(variables, coords=coords)
    units = units.merge(rest, overwrite_vars=list(rest.variables), join="exact").sortby(_DIM)
    kept = table.attrs if isinstance(table, xr.Dataset) else {INVALID: table.attrs.get(INVALID)}
    units.attrs = {name: value for name, value in kept.items() if value is not None}
    units = _stamped(units, datastack, version)
    for name in map(str, units.variables):
        require_likely_angle(units.variables[name], name)
    validate(units, "units")
    return add_history(units, f"as_units({ids.size} neurons)")


def _valid(table: pd.DataFrame, what: str, used: Sequence[Any]) -> pd.DataFrame:
    """Return a table without the rows that it marks as not valid, as dumps of tables do."""
    columns = [name for name in ("valid", "valid_ref") if name in table and name not in used]
    return without_invalid(table, what).drop(columns=columns) if columns else table


def _require_ids(name: str, known: Iterable[Any]) -> None:
    """Raise unless the ids, and no other ids, are among the columns or the coordinates."""
    names = list(map(str, known))
    if name not in names:
        raise SchemaError(
            f"table has {names} and no ids {name!r}: pass id=, the name of the column, of the "
            "index or of the coordinate that holds the ids of the neurons"
        )
    if name != _DIM and _DIM in names:
        raise SchemaError(f"table has {_DIM!r} beside the ids {name!r}: rename or drop one of them")


def _split(table: xr.Dataset, name: str) -> tuple[pd.DataFrame, xr.Dataset]:
    """Return the variables of one value per neuron as a table, and the others."""
    _require_ids(name, [n for n, v in table.variables.items() if v.ndim == 1])
    dim = str(table[name].dims[0])
    rows = [str(n) for n, v in table.variables.items() if v.dims == (dim,)]
    frame = pd.DataFrame({n: table[n].values for n in rows})
    rest = table.drop_vars(rows)
    if dim != _DIM and dim in rest.dims:
        rest = rest.rename_dims({dim: _DIM})
    return frame, rest


def _attrs_of(table: pd.DataFrame | xr.Dataset, column: Any) -> dict[str, Any]:
    if isinstance(table, xr.Dataset) and table[column].attrs:
        return dict(table[column].attrs)
    return describe(UNITS[column]) if column in UNITS else {}


def _values_of(column: pd.Series, name: str) -> np.ndarray:
    """Return a column in a dtype of the data model."""
    spec = UNITS.get(name)
    if spec is not None and spec.dtype == "int64":
        # Missing roots are 0, which means "no segment".
        missing = 0 if spec.missing == "never" else int(spec.missing)
        return as_ids(column, f"table.{name}", missing=missing)
    if spec is not None and spec.dtype == "text":
        return text_column(column, "table").fillna(spec.missing).to_numpy(object)
    is_float = spec is not None and spec.dtype == "float"
    values = plain_values(column, "table", as_float=is_float)
    if values.dtype.kind == "i" and column.isna().any():
        return np.where(column.isna(), np.nan, values.astype(np.float64))
    return values


def _position_of(
    table: pd.DataFrame,
    names: str | Sequence[str] | None,
    resolution_nm: Sequence[float] | None,
    datastack: str | None,
) -> tuple[np.ndarray | None, list[str], dict[str, Any]]:
    """Return positions in µm, the columns that hold them, and their attributes."""
    stated, columns = names is not None, set(map(str, table.columns))
    if names is None:
        names = next((n for n in (AXES, "pt_position") if _has(columns, n)), None)
    if names is None:
        return None, [], {}
    if isinstance(names, str):
        base, used = names, [n for n in (names, *_of_axes(names)) if n in columns]
    else:
        if len(names) != 3:
            raise SchemaError(f"position is {names!r}, expected the columns of x, y and z")
        require_columns(table, "table", names)
        base, used = "position", list(names)
        table = table[used].set_axis(_of_axes(base), axis=1)  # keeps the attributes
    space = space_of(datastack or "")
    what = "position of the neuron"
    if resolution_nm is not None or (base == "pt_position" and RESOLUTION in table.attrs):
        call = "resolution_nm={}"
        points = positions_um(table, "table", base, None, space, given=resolution_nm, call=call)
        return points, used, {**describe(UNITS["position"]), **space.attrs(what)}
    if base == "pt_position" and not stated:
        raise SchemaError(
            "table has pt_position without a unit: state resolution_nm=[4, 4, 40] if it is in "
            "voxels of that size, resolution_nm=[1, 1, 1] if it is in nm, or "
            "position='pt_position' if it is in µm, as in the tables of mx.to_table"
        )
    points = positions(table, "table", base)
    if space.has_depth:
        beyond = space.outside(space.from_um(points, (1, 1, 1)), (1, 1, 1))
        if beyond.any():
            raise SchemaError(
                f"position has {int(beyond.sum())} of {len(points)} points outside of the volume "
                f"of {datastack}, such as {points[beyond][0].tolist()}, expected µm with y as "
                "depth from the pia: state resolution_nm=, such as [4, 4, 40] for voxels or "
                "[1, 1, 1] for nm, or leave out datastack="
            )
    return points, used, describe(UNITS["position"])


def _of_axes(name: str) -> list[str]:
    return [f"{name}_{axis}" for axis in AXES]


def _has(columns: set[str], names: str | Sequence[str]) -> bool:
    return names in columns or set(_of_axes(names) if isinstance(names, str) else names) <= columns


def _stamped(dataset: xr.Dataset, datastack: str | None, version: int | None) -> xr.Dataset:
    """Write what is known of the release as scalar coordinates."""
    require_instance("datastack", datastack, (str, type(None)), "text")
    if version is not None:
        version = whole_number("version", version, 0)
    stated = {
        "datastack": None if datastack is None else np.array(datastack, dtype=object),
        "materialization_version": None if version is None else np.int64(version),
    }
    return dataset.assign_coords({n: ((), v) for n, v in stated.items() if v is not None})


def as_connectivity(
    edges: pd.DataFrame | pd.Series | xr.DataArray | np.ndarray | str | os.PathLike[str] | Any,
    *,
    pre: Any = None,
    post: Any = None,
    weight: str | Sequence[str] | None = None,
    count: str | None = None,
    rows: Literal["pair", "synapse"] = "pair",
    pre_ids: Any = None,
    post_ids: Any = None,
    scope: str | None = None,
    datastack: str | None = None,
    version: int | None = None,
) -> xr.Dataset:
    """Make connectivity of a table of connections, or of a matrix.

    Parameters
    ----------
    edges : DataFrame, path, scipy.sparse array, sparse.SparseArray, numpy.ndarray or DataArray
        A table, or the path of one (csv, csv.gz, parquet or feather), with one row per pair of
        neurons or per synapse (rows whose column ``valid`` is false are left out and counted); a
        matrix with presynaptic neurons
        as rows and postsynaptic ones as columns; or a DataArray over two dims with ids. A zero of a
        dense matrix is not a connection; a zero that a sparse one stores is.
    pre, post : str or collection of int, optional
        For a table, the columns of the two neurons, by default ``pre_nucleus_id`` and
        ``post_nucleus_id``, or ``pre`` and ``post``. For a matrix, the ids of the rows and of the
        columns. For a DataArray, its two dims, by default ``pre_nucleus_id`` and
        ``post_nucleus_id``. Ids are integers, or text of digits, as in `as_units`.
    weight : str or sequence of str, optional
        For a table, one or several columns of numbers; by default ``weight``, or else the only
        column of numbers. Without any, each pair has the weight ``connected`` of 1. For a matrix,
        the name of the weight.
    count : str, optional
        For a table, the column that counts the synapses of a row; it becomes ``synapse_count``.
    rows : {"pair", "synapse"}, optional
        What a row of a table is. Rows of the same pair are summed in either case, except that pairs
        repeated with the same weights, as in overlapping files, are an error. Rows that are
        synapses are counted as ``synapse_count``.
    pre_ids, post_ids : collection of int or units Dataset, optional
        For a table, the neurons that were asked for. With both, these are the axes and the scope is
        "requested"; with one, the other axis holds the neurons of its rows. Rows of other neurons
        are left out.
    scope : {"complete", "requested", "unknown"}, optional
        Which pairs were asked for. By default "unknown" for a table, whose axes are then the
        neurons that it names; "requested" for a matrix, whose zeros are pairs without a synapse.
    datastack : str, optional
        Datastack of the neurons, such as ``"minnie65_public"``.
    version : int, optional
        Materialization version.

    Returns
    -------
    xarray.Dataset
        The weights by name over (``pre_nucleus_id``, ``post_nucleus_id``), sparse arrays on one
        pattern; int64, or float64 for floats. Ids are sorted. Sums over neurons without a stored
        pair are NaN where the scope is "unknown", else 0.

    Raises
    ------
    SchemaError
        If columns are missing or not numbers; if ids are rounded, repeated in a matrix or not
        integers; if a weight is NaN or infinite; if pairs are repeated without a weight, or with
        the same one.

    Warns
    -----
    DroppedRowsWarning
        If the id of a neuron is missing in every row, or no row is between neurons of `pre_ids` and
        `post_ids`.

    Examples
    --------
    >>> edges = pd.DataFrame({"pre": [11, 11, 12], "post": [12, 12, 11], "gain": [0.5, 0.25, 2.0]})
    >>> connectivity = as_connectivity(edges, weight="gain")
    >>> connectivity.scope.item(), connectivity.gain.data.todense().tolist()
    ('unknown', [[0.0, 0.75], [2.0, 0.0]])
    >>> as_connectivity(np.array([[0, 3], [1, 0]]), pre=[11, 12], post=[11, 12]).scope.item()
    'requested'
    """
    require_one_of("rows", rows, ("pair", "synapse"))
    if scope is not None:
        require_one_of("scope", scope, SCOPES)
    edges = read_if_path(edges)
    if isinstance(edges, pd.DataFrame):
        edges = _valid(edges, "edges", [pre, post, count, *names_of("weight", weight or [])])
    if isinstance(edges, pd.DataFrame | pd.Series):
        ends, weights, counts = _rows_of(edges, pre, post, weight, count, rows)
        asked = {"pre": pre_ids, "post": post_ids}
        own_scope = "unknown" if pre_ids is None or post_ids is None else "requested"
        coords: dict[str, Any] = {}
    else:
        if pre_ids is not None or post_ids is not None or count is not None or rows != "pair":
            raise SchemaError(
                "pre_ids, post_ids, count and rows are for tables: pass the ids of a matrix as "
                "pre= and post=, and select neurons with mx.select_connections"
            )
        ends, weights, asked, coords = _cells_of(edges, pre, post, weight)
        counts, own_scope = None, str(coords.pop("scope", "requested"))
    n_rows = ends["pre"].size
    axes, codes, chosen = {}, {}, np.ones(n_rows, dtype=bool)
    for side in _SIDES:
        if asked[side] is not None:
            axes[side] = np.unique(as_ids(asked[side], f"{side}_ids"))
            codes[side] = Lookup(axes[side], f"{side}_ids").find(ends[side])
            chosen &= codes[side] >= 0
    for side in _SIDES:
        if asked[side] is None:
            axes[side], of_chosen = np.unique(ends[side][chosen], return_inverse=True)
            codes[side] = np.full(n_rows, -1, dtype=np.int32)
            codes[side][chosen] = of_chosen
    shape = (axes["pre"].size, axes["post"].size)
    unweighted = not weights
    if unweighted:
        weights = {"connected": np.ones(n_rows, dtype=np.int64)}
    sums = {
        name: sum_pairs(codes["post"], codes["pre"], values, counts, *shape[::-1])
        for name, values in weights.items()
    }
    summed = next(iter(sums.values()))
    n_pairs, n_chosen = summed.indices.size, int(chosen.sum())
    is_table = isinstance(edges, pd.DataFrame | pd.Series)  # entries of a matrix are summed
    if is_table and rows == "pair" and n_pairs < n_chosen:
        given = [*weights.values(), *([] if counts is None else [counts])]
        repeated = pd.DataFrame({**ends, **{f"weight {i}": v for i, v in enumerate(given)}})[chosen]
        n_repeated = int(repeated.duplicated(list(ends)).sum())
        if int(repeated.duplicated().sum()) == n_repeated:
            raise overlapping_files(n_repeated, len(repeated), "edges")
    arrays = {name: of_weight.sizes for name, of_weight in sums.items()}
    if counts is not None or rows == "synapse":
        arrays = {**({} if unweighted else arrays), "synapse_count": summed.counts}
    pattern = make_pattern(summed.indices, summed.indptr, shape, "post")
    result = connectivity_dataset(
        arrays, pattern, axes["pre"], axes["post"], scope=scope or own_scope
    )
    result = _stamped(result.assign_coords(coords), datastack, version)
    n_all = len(edges) if is_table else n_rows
    if isinstance(edges, pd.DataFrame) and INVALID in edges.attrs:
        result.attrs[INVALID] = edges.attrs[INVALID]
    dropped = {"missing_id": n_all - n_rows, "not_asked_for": n_rows - n_chosen}
    entry = f"as_connectivity(): {n_pairs} pairs of {n_all} rows"
    if any(dropped.values()):
        result.attrs["dropped_synapses"] = text_lines(dropped)
        entry += f", {dropped['missing_id']} rows without an id"
        entry += f", {dropped['not_asked_for']} rows of other neurons"
        logger.info(entry)
    if n_all and not n_rows:
        warn_of_dropped_rows(f"each of the {n_all} rows of edges lacks the id of a neuron")
    elif n_all and not n_chosen:
        warn_of_dropped_rows(
            f"none of the {n_rows} rows of edges is between neurons of pre_ids and post_ids, such "
            f"as the one of {ends['pre'][0]} and {ends['post'][0]}: pass ids of the same kind, not "
            "root ids for nucleus ids"
        )
    return add_history(result, entry)


_Ends = dict[str, np.ndarray]


def _rows_of(
    table: pd.DataFrame | pd.Series,
    pre: Any,
    post: Any,
    weight: str | Sequence[str] | None,
    count: str | None,
    rows: str,
) -> tuple[_Ends, dict[str, np.ndarray], np.ndarray | None]:
    """Return ids, weights and numbers of synapses of the rows of a table."""
    if isinstance(table, pd.Series):
        table = table.to_frame("weight" if table.name is None else str(table.name))
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    columns = list(map(str, table.columns))
    partners: dict[str, str] = {}
    for side, given in zip(_SIDES, (pre, post), strict=True):
        known = _PARTNERS[side] if given is None else (given,)
        if not all(isinstance(name, str) for name in known):
            raise SchemaError(
                f"{side} is {given!r}, expected the name of a column: pass the neurons that were "
                f"asked for as {side}_ids="
            )
        present = [name for name in known if name in columns]
        if not present:
            by_root = f"{side}_pt_root_id" in columns
            # Columns named after ids of neurons are those of a matrix.
            matrix = "; for a matrix, pass edges.to_numpy(), pre=edges.index, post=edges.columns"
            raise SchemaError(
                f"edges has the columns {columns}, expected {' or '.join(known)}: pass {side}=, "
                f"the column of the {side}synaptic neurons"
                + ("; mx.build_connectivity(edges, units) matches root ids" if by_root else "")
                + (matrix if any(name.isdigit() for name in columns) else "")
            )
        partners[side] = present[0]
    numbers = [
        str(name)
        for name, column in table.items()
        if str(name) not in (*partners.values(), count, "id", "synapse_count")
        and not str(name).endswith(("_id", "_ids"))
        and pd.api.types.is_numeric_dtype(column.dtype)
    ]
    if weight is None:
        weight = ["weight"] if "weight" in columns else numbers
        if len(weight) > 1:
            raise SchemaError(
                f"edges has the columns of numbers {numbers}: pass weight=, some of them"
            )
    names = names_of("weight", weight)
    require_instance("count", count, (str, type(None)), "the name of a column")
    require_columns(
        table, "edges", [*partners.values(), *names, *([] if count is None else [count])]
    )
    table = table.dropna(subset=list(partners.values()))
    ends = {side: as_ids(table[name], f"edges.{name}") for side, name in partners.items()}
    weights = {name: _numbers(table[name], f"edges.{name}", name) for name in names}
    if count is None:
        return ends, weights, None
    if rows == "synapse":
        raise SchemaError("rows is 'synapse', but count= says that a row holds several: pass one")
    return ends, weights, whole_numbers(table[count], f"edges.{count}", least=1)


def _numbers(column: pd.Series, where: str, name: str) -> np.ndarray:
    """Return weights as int64 or float64."""
    values = plain_values(column, "edges", as_float=bool(column.isna().any()))
    if values.dtype.kind not in "bif":
        raise SchemaError(f"{where} has dtype {column.dtype}, expected numbers: convert it")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        raise SchemaError(
            f"{where} is missing or infinite in {int((~finite).sum())} of {values.size} rows, "
            "expected a number in each: drop these rows, or fill them with .fillna(0) if the "
            "weight is 0"
        )
    if values.dtype.kind == "f" and name not in CONNECTIVITY:
        return values
    return whole_numbers(
        pd.Series(values.astype(np.int64) if values.dtype == bool else values), where
    )


def _cells_of(
    matrix: Any, pre: Any, post: Any, weight: Any
) -> tuple[_Ends, dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """Return ids and weights of the connections of a matrix, the ids of its axes, and scalars."""
    coords: dict[str, Any] = {}
    if isinstance(matrix, xr.DataArray):
        dims = (PAIR_DIMS[0] if pre is None else pre, PAIR_DIMS[1] if post is None else post)
        if set(matrix.dims) != set(dims) or not all(dim in matrix.coords for dim in dims):
            raise SchemaError(
                f"edges has dims {matrix.dims} and coordinates {list(map(str, matrix.coords))}, "
                f"expected ids over {dims}: pass pre= and post=, the names of its two dims"
            )
        matrix = matrix.transpose(*dims)
        pre, post = (matrix[dim].values for dim in dims)
        weight = weight or matrix.name
        coords = {str(n): c.item() for n, c in matrix.coords.items() if not c.ndim}
        matrix = matrix.data
    if is_dask_collection(matrix):
        raise SchemaError("edges is lazy, expected a matrix in memory: call .compute() first")
    if isinstance(matrix, sparse.SparseArray):
        if matrix.fill_value != 0:
            raise SchemaError(f"edges has fill value {matrix.fill_value}, expected 0")
        matrix = matrix.to_scipy_sparse()
    if isinstance(matrix, np.matrix):
        matrix = np.asarray(matrix)
    if isinstance(matrix, np.ma.MaskedArray) or not (
        scipy.sparse.issparse(matrix) or isinstance(matrix, np.ndarray)
    ):
        raise SchemaError(
            f"edges is a {type(matrix).__name__}, expected a DataFrame or the path of a table, a "
            "matrix of numpy, scipy or sparse, or a DataArray; connectivity of this package needs "
            "no conversion"
        )
    if matrix.ndim != 2:
        raise SchemaError(f"edges has {matrix.ndim} dims, expected 2, pre and post")
    ids: _Ends = {}
    for side, given, n in zip(_SIDES, (pre, post), matrix.shape, strict=True):
        if given is None or isinstance(given, str):
            raise SchemaError(
                f"{side} is {given!r}, expected the {n} ids of the {side}synaptic neurons, which "
                f"are the {'rows' if side == 'pre' else 'columns'} of the matrix"
            )
        ids[side] = as_ids(given, side)
        if ids[side].size != n or np.unique(ids[side]).size != n:
            raise SchemaError(
                f"{side} holds {ids[side].size} ids ({np.unique(ids[side]).size} different ones) "
                f"for a matrix of shape {matrix.shape}, expected {n} different ids"
            )
    if isinstance(matrix, np.ndarray):
        cells = np.nonzero(matrix)  # NaN is not zero
        values = matrix[cells]
    else:
        matrix = matrix.tocoo()
        cells, values = (matrix.row, matrix.col), matrix.data
    name = "weight" if weight is None else weight
    if not isinstance(name, str):
        raise SchemaError(f"weight is {weight!r}, expected the name of the weight")
    numbers = _numbers(pd.Series(values), "the matrix", name)
    ends = {side: ids[side][at] for side, at in zip(_SIDES, cells, strict=True)}
    return ends, {name: numbers}, dict(ids), coords
