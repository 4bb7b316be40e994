"""Tables of synapses in memory and as files, and the store that both ways lead to."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import microns_xr as mx

ROOT = 864_691_135_000_000_001
SHARED = ROOT - 5
PLACES = [f"ctr_pt_position_{axis}" for axis in "xyz"]
# A header of the archive, with columns between the others that are not needed.
HEADER = {
    "id": "bigint",
    "valid": "boolean",
    "created": "timestamp without time zone",
    "pre_pt_root_id": "bigint",
    "size": "real",
    "post_pt_root_id": "bigint",
    **dict.fromkeys(PLACES, "integer"),
    "tag": "character varying",
}


def make_units(n: int) -> xr.Dataset:
    rng = np.random.default_rng(n)
    units = xr.Dataset(
        {
            "pt_root_id": ("nucleus_id", ROOT + 7 * rng.permutation(n)),
            "position": (("nucleus_id", "axis"), rng.normal(size=(n, 3))),
        },
        coords={
            "nucleus_id": 100 + 3 * np.arange(n),
            "axis": np.array(["x", "y", "z"], dtype=object),
        },
        attrs={"shared_roots": [SHARED]},
    )
    for name in ("classification_system", "cell_type", "brain_area", "strategy_axon",
                 "strategy_dendrite", "axon_completeness", "layer", "tuning_type"):  # fmt: skip
        units[name] = ("nucleus_id", np.array(["unknown"] * n, dtype=object))
    units["axon_proofread"] = ("nucleus_id", np.zeros(n, dtype=bool))
    return mx.releases.stamp_release(units, "minnie65_public", 1718)


def make_synapses(units: xr.Dataset, n: int, seed: int = 0) -> pd.DataFrame:
    """Half of the ends are units; the others are unknown, shared, zero or missing."""
    rng = np.random.default_rng(seed)
    roots = units.pt_root_id.values

    def ends() -> pd.Series:
        ends = pd.Series(rng.choice(roots, n), dtype="Int64")
        other = rng.random(n)
        ends[other < 0.3] = 2**60 + pd.array(rng.integers(0, 50, n), dtype="Int64")[other < 0.3]
        ends[other < 0.1] = SHARED
        ends[other < 0.06] = 0
        ends[other < 0.03] = pd.NA
        return ends

    frame = pd.DataFrame(
        {
            "id": rng.permutation(n) + 2**53 + 1,
            "pre_pt_root_id": ends(),
            "post_pt_root_id": ends(),
            "size": rng.integers(0, 10_000, n),
        }
    )
    # voxels of minnie65
    places = rng.integers((60_000, 70_000, 15_000), (400_000, 300_000, 27_000), (n, 3))
    return frame.assign(**{name: places[:, i] for i, name in enumerate(PLACES)})


def archived(frame: pd.DataFrame) -> bytes:
    """The lines of a data file of the archive, without a header."""
    columns = frame.assign(valid="t", created="2020-09-28 22:40:41.780734", tag='a "word", or two')
    return columns[list(HEADER)].to_csv(header=False, index=False).encode()


def write_archived(folder: Path, frame: pd.DataFrame, stem: str = "synapses") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header = "".join(f"{name},{kind}\n" for name, kind in HEADER.items())
    (folder / f"{stem}_header.csv").write_text(header)
    path = folder / f"{stem}.csv.gz"
    path.write_bytes(gzip.compress(archived(frame), 1))
    return path


# How a store was made, which differs: the files are tables of their own, with their papers.
_HISTORY = ("history", "source_tables", "references")


def in_memory(frame: pd.DataFrame, units: xr.Dataset, path: Path, **options: Any) -> xr.DataTree:
    """The store as it is made without streaming."""
    singles = options.pop("singles", False)
    connectivity = mx.build_connectivity(frame, units, **options)
    synapses = mx.build_synapses(frame, connectivity) if singles else None
    mx.write_store(path, units=units, connectivity=connectivity, synapses=synapses, overwrite=True)
    return mx.open_store(path)


@cache
def _opened(path: Path, written: int) -> dict[str, xr.DataTree]:
    return {copy: mx.open_store(path, compressed=copy) for copy in ("post", "pre")}


def assert_same_store(found: Path, expected: Path) -> None:
    """Both copies and all other groups are equal, array for array; histories may differ."""
    known = _opened(expected, (expected / "zarr.json").stat().st_mtime_ns)
    for compressed, b in known.items():
        a = mx.open_store(found, compressed=compressed)
        of_roots = [{k: v for k, v in tree.attrs.items() if k not in _HISTORY} for tree in (a, b)]
        assert of_roots[0] == of_roots[1]
        assert set(a.children) == set(b.children)
        for name in a.children:
            one, two = a[name].to_dataset(), b[name].to_dataset()
            attrs = [{k: v for k, v in ds.attrs.items() if k not in _HISTORY} for ds in (one, two)]
            assert attrs[0] == attrs[1]
            assert set(one.variables) == set(two.variables)
            assert set(one.coords) == set(two.coords)
            for key, variable in one.variables.items():
                other = two.variables[key]
                assert (variable.dims, variable.dtype) == (other.dims, other.dtype), key
                assert variable.attrs == other.attrs, key
                if hasattr(variable.data, "indptr"):
                    for buffer in ("data", "indices", "indptr"):
                        np.testing.assert_array_equal(
                            getattr(variable.data, buffer), getattr(other.data, buffer)
                        )
                else:
                    np.testing.assert_array_equal(variable.values, other.values, err_msg=str(key))


def arrays_on_disk(path: Path) -> dict[str, tuple[Any, ...]]:
    """Shape, chunks and dtype of every array below a folder."""
    import zarr

    root = zarr.open_group(str(path), mode="r")
    return {
        name: (node.shape, node.chunks, str(node.dtype))
        for name, node in root.members(max_depth=None)
        if isinstance(node, zarr.Array)
    }
