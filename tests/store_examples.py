"""Three neurons by hand, as the Datasets a store holds."""

from __future__ import annotations

from typing import Any

import matrices
import numpy as np
import xarray as xr
import zarr

import microns_xr as mx

# pre 11, 12, 13 down, post 11, 13, 15 across; 12 -> 13 has summed size 0, which is not "no synapse"
SIZE = np.array([[0, 700, 0], [30, 0, 5], [0, 0, 0]])
COUNT = np.array([[0, 2, 0], [1, 1, 3], [0, 0, 0]])
PRE = np.array([11, 12, 13])
POST = np.array([11, 13, 15])


def text(*words: Any) -> np.ndarray:
    return np.array(words, dtype=object)


def units() -> xr.Dataset:
    dataset = xr.Dataset(
        {
            "position": (
                ("nucleus_id", "axis"),
                np.array([[1.5, 100.25, -3.0], [2.0, 300.0, 0.0], [np.nan] * 3]),
                {"units": "µm", "note": "y is depth"},
            ),
            "pref_ori": (
                "nucleus_id",
                np.array([12.5, np.nan, np.nan]),
                {"units": "degree", "angle_convention": "motion", "period": 180},
            ),
            "rate_ori": (
                ("nucleus_id", "orientation"),
                np.arange(6, dtype=np.float32).reshape(3, 2),
            ),
        },
        coords={
            "nucleus_id": PRE,
            "pt_root_id": ("nucleus_id", np.array([864691135639235593, 864691135639235594, 5])),
            "classification_system": ("nucleus_id", text("excitatory_neuron", "x", "unknown")),
            "cell_type": ("nucleus_id", text("23P", "5P-ET", "Übergang-µ")),
            "brain_area": ("nucleus_id", text("V1", "AL", "unknown")),
            "strategy_axon": ("nucleus_id", text("axon_fully_extended", "none", "none")),
            "strategy_dendrite": ("nucleus_id", text("dendrite_extended", "none", "none")),
            "axon_proofread": ("nucleus_id", np.array([True, False, False])),
            "axon_completeness": ("nucleus_id", text("full", "none", "none")),
            "layer": ("nucleus_id", text("L2/3", "L5", "unknown")),
            "tuning_type": ("nucleus_id", text("matched", "not_matched", "not_matched")),
            "axis": text("x", "y", "z"),
            "orientation": ("orientation", [0.0, 90.0], {"units": "degree"}),
            "n_scans": ("nucleus_id", np.array([1, 0, 5])),
        },
        attrs={
            "history": ["built by hand", "then checked"],
            "n_dropped": np.int64(3),
            "steps": {"rows": [6, 3], "why": None},
            "source_tables": ["functional_properties_v3_bcm: 6 rows, sha256 ab"],
        },
    )
    return mx.releases.stamp_release(dataset, "minnie65_public", 661)


def layers() -> xr.Dataset:
    dataset = xr.Dataset(
        {
            "layer_name": ("segment", text("L1", "L2/3")),
            "region_index": ("segment", np.array([0, 0])),
            "y_start": ("segment", np.array([0.0, 100.0]), {"units": "µm"}),
            "y_end": ("segment", np.array([100.0, 270.0]), {"units": "µm"}),
            "height": ("segment", np.array([100.0, 170.0]), {"units": "µm"}),
        }
    )
    return mx.releases.stamp_release(dataset, "minnie65_public", 661)


def functional() -> xr.Dataset:
    dataset = xr.Dataset(
        {"cc_abs": ("scan_unit", np.array([0.5, np.nan, 0.25, 0.75]))},
        coords={
            "nucleus_id": ("scan_unit", np.array([11, 11, 12, -1])),
            "session": ("scan_unit", np.array([4, 5, 5, 5])),
            "scan_idx": ("scan_unit", np.array([7, 3, 3, 3])),
            "unit_id": ("scan_unit", np.array([1, 2, 3, 3])),
        },
    )
    return mx.releases.stamp_release(dataset, "minnie65_public", 661)


def synapses() -> xr.Dataset:
    dataset = xr.Dataset(
        {
            "size": ("synapse", np.array([30, 700, 0])),
            "position": (("synapse", "axis"), np.arange(9.0).reshape(3, 3)),
        },
        coords={
            "axis": text("x", "y", "z"),
            "synapse_id": ("synapse", np.array([9, 8, 7])),
            "pre_nucleus_id": ("synapse", np.array([12, 11, 12])),
            "post_nucleus_id": ("synapse", np.array([11, 13, 13])),
        },
    )
    return mx.releases.stamp_release(dataset, "minnie65_public", 661)


def sparse_dataset(
    size: np.ndarray,
    count: np.ndarray,
    pre: np.ndarray = PRE,
    post: np.ndarray = POST,
    compressed: Any = "post",
) -> xr.Dataset:
    """A connectivity Dataset of dense matrices."""
    dataset = matrices.dataset(count > 0, size, count, compressed, pre, post, version=661)
    attrs = {"history": ["counted"], "dropped": {"unknown root": 4, "autapses": 0}}
    return dataset.assign_attrs(attrs)


def connectivity(compressed: Any = "post") -> xr.Dataset:
    dataset = sparse_dataset(SIZE, COUNT, compressed=compressed)
    dataset["synapse_size"].attrs["note"] = "größe"
    return dataset.assign_coords(
        pre_cell_type=("pre_nucleus_id", text("23P", "5P-ET", "Übergang-µ"), {"unmatched": 0}),
        post_y=("post_nucleus_id", np.array([100.25, np.nan, 2.0]), {"units": "µm"}),
    )


DENSE = {"units": units, "layers": layers, "functional": functional, "synapses": synapses}


def write(place: Any, compressed: Any = "post", **changes: Any) -> None:
    """Write a store of all parts; `changes` are other parts, or options."""
    parts: dict[str, Any] = {name: make() for name, make in DENSE.items()}
    parts |= {"connectivity": connectivity(compressed), "overwrite": True}
    mx.write_store(place, **{**parts, **changes})


def as_early_store(path: Any) -> None:
    """Remove the checksums of the metadata, so that they can be changed."""
    root = zarr.open_group(path, mode="r+")
    kept = {k: v for k, v in root.attrs.items() if k != "microns_xr_checksums"}
    root.attrs.put(kept)


def assert_same_tree(found: Any) -> None:
    """The groups of a tree are those that `write` has written."""
    for name in found.children:
        if name == "connectivity":
            assert_same_connectivity(found[name].to_dataset(), connectivity())
        else:
            pair = (found[name].to_dataset(), DENSE[name]())
            xr.testing.assert_identical(*map(_without_names, pair))
            assert_same_dtypes(found[name].to_dataset(), DENSE[name]())


def _without_names(dataset: xr.Dataset) -> xr.Dataset:
    """Without the texts for people, which differ between versions."""
    dataset = dataset.copy()
    for variable in dataset.variables.values():
        variable.attrs.pop("long_name", None)
    return dataset


def assert_same_connectivity(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Values, dtypes, attributes and coordinates are equal; either may be compressed over any axis."""
    for name in ("synapse_size", "synapse_count"):
        assert found[name].dtype == np.int64
        assert found[name].dims == ("pre_nucleus_id", "post_nucleus_id")
        np.testing.assert_array_equal(found[name].data.todense(), expected[name].data.todense())
        assert found[name].data.nnz == expected[name].data.nnz
        assert found[name].attrs == expected[name].attrs
    rest = ["synapse_size", "synapse_count"]
    assert_same_dtypes(found, expected)
    found, expected = (_without_names(d.drop_vars(rest)) for d in (found, expected))
    xr.testing.assert_identical(found, expected)


def assert_same_dtypes(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert {k: v.dtype for k, v in found.variables.items()} == {
        k: v.dtype for k, v in expected.variables.items()
    }
    assert set(found.coords) == set(expected.coords)
    assert list(found.data_vars) == list(expected.data_vars)
