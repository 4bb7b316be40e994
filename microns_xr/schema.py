"""The variables of the data model, and validation of Datasets.

``UNITS``, ``FUNCTIONAL``, ``CONNECTIVITY`` and ``LAYERS`` list the variables of the four kinds of
Dataset; `validate` compares a Dataset with its list and reports all problems at once. `is_label`
decides which variables of a row are coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from microns_xr.errors import MicronsXrError, SchemaError, UnknownLabelError, part_of, unknown_label

# xarray is imported by the functions that ask for its types: they get its objects, while
# `microns-xr info` needs the checks of arrays without it.
if TYPE_CHECKING:
    import xarray as xr

AXES = ("x", "y", "z")
PAIR_DIMS = ("pre_nucleus_id", "post_nucleus_id")
SCOPES = ("complete", "requested", "unknown")
VOXEL_UNITS = "voxels"  # where the voxel size of the datastack is not known

ROUNDED = (
    "floats round 18-digit ids (neighbours of 8.6e17 are 128 apart); a file that holds digits is "
    "read with pandas.read_csv(..., dtype={column: 'Int64'}), one that holds floats (8.6e+17) has "
    "to be fetched or exported again (mx.Release(...).download(refresh=True) for one in its folder)"
)
EXACT = 2**53  # floats hold all whole numbers up to this

Kind = Literal["units", "functional", "connectivity", "layers"]


@dataclass(frozen=True)
class VariableSpec:
    """One variable of the data model."""

    name: str  # name in the Dataset
    dims: tuple[str, ...]
    # kind of dtype: ``"int64"``, ``"float"``, ``"number"`` (either), ``"bool"``, ``"text"`` (object
    # in memory)
    dtype: Literal["int64", "float", "number", "bool", "text"]
    # physical units, ``""`` for labels, ``"angle"`` for an angle, whose attributes state them
    units: str
    # value of missing data; ``"never"`` if every row has a value
    missing: str
    doc: str
    required: bool = False  # whether every Dataset of the kind has it


def _specs(*specs: VariableSpec) -> dict[str, VariableSpec]:
    return {spec.name: spec for spec in specs}


_N = ("nucleus_id",)
_S = ("scan_unit",)
_ROWS = (_N, _S, ("synapse",))

# fmt: off
UNITS = _specs(
    VariableSpec("nucleus_id", _N, "int64", "", "never", "id of the nucleus, the same in every release", True),
    VariableSpec("pt_root_id", _N, "int64", "", "never", "id of the segment in this release"),
    VariableSpec("position", (*_N, "axis"), "float", "µm", "NaN", "nucleus position, y is depth from the pia"),
    VariableSpec("classification_system", _N, "text", "", "unknown", "broad class, such as excitatory_neuron"),
    VariableSpec("cell_type", _N, "text", "", "unknown", "cell type, words harmonised between releases"),
    VariableSpec("cell_type_raw", _N, "text", "", "unknown", "cell type as the table writes it, where it differs"),
    VariableSpec("brain_area", _N, "text", "", "unknown", "visual area"),
    VariableSpec("strategy_axon", _N, "text", "", "none", "proofreading strategy of the axon, as the table writes it"),
    VariableSpec("strategy_dendrite", _N, "text", "", "none", "proofreading strategy of the dendrite, as the table writes it"),
    VariableSpec("axon_proofread", _N, "bool", "", "False", "axon clean of merges"),
    VariableSpec("axon_completeness", _N, "text", "", "none", "none, clean, truncated, interareal, partial, full or unknown; only full is largely complete"),
    VariableSpec("root_changed", _N, "bool", "", "False", "the root was edited after it was proofread"),
    VariableSpec("layer", _N, "text", "", "unknown", "cortical layer, from the depth profile of cell types"),
    VariableSpec("tuning_type", _N, "text", "", "unknown", "matched or not_matched to a recorded unit"),
    VariableSpec("n_scans", _N, "number", "", "0", "scans the neuron was recorded in"),
    VariableSpec("n_scan_units", _N, "number", "", "0", "recorded units matched to the neuron"),
    VariableSpec("session", _N, "int64", "", "-1", "session of the chosen, or only, unit"),
    VariableSpec("scan_idx", _N, "int64", "", "-1", "scan of the chosen, or only, unit"),
    VariableSpec("unit_id", _N, "int64", "", "-1", "functional unit within the scan"),
    VariableSpec("pref_ori", _N, "float", "angle", "NaN", "preferred orientation"),
    VariableSpec("pref_dir", _N, "float", "angle", "NaN", "preferred direction"),
    VariableSpec("gOSI", _N, "float", "1", "NaN", "global orientation selectivity index"),
    VariableSpec("gDSI", _N, "float", "1", "NaN", "global direction selectivity index"),
    VariableSpec("cc_abs", _N, "float", "1", "NaN", "correlation of the model's prediction with the response"),
    VariableSpec("rate_ori", (*_N, "orientation"), "float", "rate", "NaN", "mean response by orientation"),
    VariableSpec("rate_dir", (*_N, "direction"), "float", "rate", "NaN", "mean response by direction of motion"),
    VariableSpec("n_rated", _N, "number", "", "0", "recorded units that give the rates"),
)

FUNCTIONAL = _specs(
    VariableSpec("nucleus_id", _S, "int64", "", "-1", "nucleus the unit is matched to", True),
    VariableSpec("session", _S, "int64", "", "never", "imaging session", True),
    VariableSpec("scan_idx", _S, "int64", "", "never", "scan within the session", True),
    VariableSpec("unit_id", _S, "int64", "", "never", "functional unit within the scan", True),
    VariableSpec("pt_root_id", _S, "int64", "", "0", "id of the segment in this release"),
    VariableSpec("pref_ori", _S, "float", "angle", "NaN", "preferred orientation"),
    VariableSpec("pref_dir", _S, "float", "angle", "NaN", "preferred direction"),
    VariableSpec("gOSI", _S, "float", "1", "NaN", "global orientation selectivity index"),
    VariableSpec("gDSI", _S, "float", "1", "NaN", "global direction selectivity index"),
    VariableSpec("cc_abs", _S, "float", "1", "NaN", "correlation of the model's prediction with the response"),
    VariableSpec("score", _S, "float", "1", "NaN", "separation of an automatic match from the next best"),
    VariableSpec("residual", _S, "float", "µm", "NaN", "distance of an automatic match after alignment"),
    VariableSpec("rate_ori", (*_S, "orientation"), "float", "rate", "NaN", "mean response by orientation"),
    VariableSpec("rate_dir", (*_S, "direction"), "float", "rate", "NaN", "mean response by direction of motion"),
)

# Labels of neurons, which functional rows carry as coordinates.
LABELS = (
    *("classification_system", "cell_type", "cell_type_raw", "brain_area", "layer"),
    *("strategy_axon", "strategy_dendrite", "axon_completeness"),
)
FUNCTIONAL |= {
    name: replace(UNITS[name], dims=_S, missing="unknown", required=False) for name in LABELS
}

CONNECTIVITY = _specs(
    VariableSpec("pre_nucleus_id", PAIR_DIMS[:1], "int64", "", "never", "presynaptic neurons", True),
    VariableSpec("post_nucleus_id", PAIR_DIMS[1:], "int64", "", "never", "postsynaptic neurons", True),
    VariableSpec("synapse_size", PAIR_DIMS, "number", VOXEL_UNITS, "no synapse seen", "summed size of the synapses of a pair"),
    VariableSpec("synapse_count", PAIR_DIMS, "number", "synapses", "no synapse seen", "number of synapses of a pair"),
    VariableSpec("scope", (), "text", "", "unknown", "what a pair without a synapse means: complete, requested or unknown", True),
)

LAYERS = _specs(
    VariableSpec("layer_name", ("segment",), "text", "", "never", "name of the layer", True),
    VariableSpec("region_index", ("segment",), "int64", "", "never", "counts the regions of a layer that comes in several", True),
    VariableSpec("y_start", ("segment",), "float", "µm", "never", "upper border, depth from the pia", True),
    VariableSpec("y_end", ("segment",), "float", "µm", "never", "lower border, depth from the pia", True),
    VariableSpec("height", ("segment",), "float", "µm", "never", "thickness", True),
)
# fmt: on

KINDS: dict[str, dict[str, VariableSpec]] = {
    "units": UNITS,
    "functional": FUNCTIONAL,
    "connectivity": CONNECTIVITY,
    "layers": LAYERS,
}


def is_label(name: str, dtype: np.dtype) -> bool:
    """Whether values identify or label rows: text, booleans and ids, but no other numbers."""
    if dtype.kind in "iu":
        return name in ("session", "scan_idx") or name.endswith("_id")
    return dtype.kind in "OUTb"


def with_labels(dataset: xr.Dataset) -> xr.Dataset:
    """Return units, functional rows or synapses with identifiers and labels as coordinates."""
    names = [
        name
        for name, variable in dataset.data_vars.items()
        if variable.dims in _ROWS and is_label(str(name), variable.dtype)
    ]
    return dataset.set_coords(names)


def describe(spec: VariableSpec) -> dict[str, Any]:
    """Return the attributes of a variable in memory and on disk."""
    attrs: dict[str, Any] = {"long_name": spec.doc}
    if spec.units and spec.units not in ("angle", "rate"):
        attrs["units"] = spec.units
    if spec.missing != "never":
        attrs["missing"] = spec.missing
    return attrs


_DTYPE_KINDS = {"float": "f", "number": "if", "bool": "b", "text": "OUT"}
_WORDS = {"iuf": "number", "biuf": "number", "OUTib": "word, integer or boolean"}


def column_of(
    dataset: xr.Dataset,
    name: str,
    what: str = "units",
    hint: str = "",
    *,
    dim: str = "nucleus_id",
    kinds: str = "OUTbiuf",
    error: type[MicronsXrError] = UnknownLabelError,
) -> xr.DataArray:
    """Return a variable with one value, of one of some kinds of dtype, per neuron or unit."""
    if name not in dataset.variables:
        fitting = [n for n, v in dataset.variables.items() if v.dims == (dim,) and n != dim]
        raise unknown_label(f"{what} has no variable", name, fitting, hint, error)
    column = dataset[name]
    if column.dims != (dim,) or column.dtype.kind not in kinds:
        row = "unit" if dim == "scan_unit" else "neuron"
        raise SchemaError(
            f"{what}.{name} has dims {column.dims} and dtype {column.dtype}, expected one "
            f"{_WORDS.get(kinds, 'value')} per {row} along {dim!r}"
        )
    return column


def validate(dataset: xr.Dataset, kind: Kind, require: Iterable[str] = ()) -> None:
    """Compare a Dataset with the data model, and raise `SchemaError` with all problems."""
    import xarray as xr

    if not isinstance(dataset, xr.Dataset):
        hint = part_of(dataset, kind) or "open a store with mx.open_store or use mx.Release"
        raise SchemaError(f"expected a {kind} Dataset, found {type(dataset).__name__}: {hint}")
    specs = KINDS[kind]
    required = [name for name, spec in specs.items() if spec.required]
    problems = [f"{n} is absent" for n in (*required, *require) if n not in dataset.variables]
    for name in [name for name in specs if name in dataset.variables]:
        variable, spec = dataset.variables[name], specs[name]
        if variable.dims != spec.dims:
            problems.append(f"{name} has dims {variable.dims}, expected {spec.dims}")
        is_int64 = spec.dtype == "int64" and variable.dtype == np.int64
        if not is_int64 and variable.dtype.kind not in _DTYPE_KINDS.get(spec.dtype, ""):
            rounded = (
                " (ids and counts read as float may be rounded: read them again as integers)"
                if spec.dtype == "int64" and variable.dtype.kind == "f"
                else ""
            )
            problems.append(f"{name} has dtype {variable.dtype}, expected {spec.dtype}{rounded}")
    for name in {"units": _N, "connectivity": PAIR_DIMS}.get(kind, ()):
        if (
            name in dataset.variables
            and dataset.variables[name].dims == (name,)
            and not is_ascending(dataset, name)
        ):
            problems += _index_problems(name, dataset.variables[name].values)
    if "axis" in dataset.xindexes and tuple(dataset["axis"].values) != AXES:
        problems.append(f"axis is {tuple(dataset['axis'].values)}, expected {AXES}")
    if kind == "connectivity" and not any(
        set(v.dims) == set(PAIR_DIMS) and v.dtype.kind in "biuf" for v in dataset.variables.values()
    ):
        problems.append(f"no numbers are over {PAIR_DIMS}, expected synapse_size or another weight")
    if kind == "connectivity" and "scope" in dataset.coords and not dataset.variables["scope"].ndim:
        scope = dataset.variables["scope"].values.item()
        if scope not in SCOPES:
            problems.append(f"scope is {scope!r}, expected one of {SCOPES}")
    if problems:
        raise SchemaError(f"this is not a {kind} Dataset: " + "; ".join(dict.fromkeys(problems)))
    require_unrounded_roots(dataset)


def is_ascending(dataset: xr.Dataset, name: str) -> bool:
    """Whether the index of a dim ascends strictly, which pandas remembers."""
    import xarray as xr

    index = dataset.xindexes.get(name)
    if not isinstance(index, xr.indexes.PandasIndex):
        return False
    labels = index.to_pandas_index()
    return bool(labels.is_monotonic_increasing and labels.is_unique)


def _index_problems(name: str, labels: np.ndarray) -> list[str]:
    if labels.dtype.kind not in "iu" or (labels[1:] > labels[:-1]).all():
        return []
    n_repeated = len(labels) - len(np.unique(labels))
    if n_repeated:
        return [f"{name} repeats {n_repeated} labels, expected each once"]
    return [f"{name} is not sorted: use .sortby({name!r})"]


def require_unique_sorted(name: str, labels: np.ndarray) -> None:
    """Raise unless labels are sorted and unique."""
    if problems := _index_problems(name, labels):
        raise SchemaError("; ".join(problems))


def require_unrounded(ids: np.ndarray, what: str) -> None:
    """Raise if large ids went through float64 before they became integers."""
    # Root ids lie between 2**59 and 2**60, where neighbouring floats are 128 apart. By chance, one
    # id is a multiple of 128 in 1 of 128 cases, two in 1 of 16,384, three in 1 of 2 million: three
    # different ids are evidence; fewer are accepted, since somebody may ask for one or two. If only
    # some of many ids are rounded, eight times as many multiples as by chance are evidence.
    if ids.max(initial=0) <= EXACT:  # as ids of nuclei and of synapses are
        return
    n = n_multiple = 0
    for block in np.array_split(ids.ravel(), ids.size // 50_000 + 1):  # as fits in a near cache
        large = block > EXACT
        n += int(np.count_nonzero(large))
        n_multiple += int(np.count_nonzero(large & (block & 127 == 0)))
    if n_multiple < 3 or (n_multiple < n and n_multiple < 10 + n / 16):
        return
    every = np.unique(ids[ids > EXACT])
    different, n = every[every & 127 == 0], every.size
    if different.size >= (3 if different.size == n else 10 + n / 16):
        found = "all multiples" if different.size == n else f"{different.size} of them multiples"
        raise SchemaError(
            f"{what} holds {n} different ids above 2**53, {found} of 128, such as {different[0]}: "
            "they went through floats, which changed their last digits; " + ROUNDED
        )


def require_unrounded_roots(dataset: xr.Dataset) -> None:
    """Raise if root ids of a Dataset went through floats."""
    for name, variable in dataset.variables.items():
        if not str(name).endswith("root_id") or variable.ndim != 1:
            continue
        if variable.dtype == np.int64:
            require_unrounded(np.asarray(variable.values), str(name))
        elif variable.dtype.kind == "f":
            raise SchemaError(
                f"{name} has dtype {variable.dtype}, expected int64, since floats round 18-digit "
                f"ids: after .reindex or an outer join, pass it fill_value={{{name!r}: 0}}, or "
                "join neurons with xr.concat"
            )
