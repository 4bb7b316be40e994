"""MICrONS as labelled arrays: units, sparse connectivity, input currents.

>>> import microns_xr as mx
>>> release = mx.Release(1718, source="demo")
>>> units = release.units(functional="match", rates=True)
>>> currents = mx.input_currents(release.connectivity(), units.rate_ori)
>>> currents.dims
('post_nucleus_id', 'orientation')
"""

from __future__ import annotations

import importlib
from typing import Any

# Name to module. Importing the package imports none of them and reads no file.
_PUBLIC = {
    "ArchiveSource": "source.archive",
    "CaveSource": "source.cave",
    "DemoSource": "source.demo",
    "DirectorySource": "source.directory",
    "DroppedRowsWarning": "errors",
    "IncompleteDownloadError": "errors",
    "MicronsXrError": "errors",
    "Release": "release",
    "ReleaseMismatchError": "errors",
    "ReleaseSpec": "releases",
    "SchemaError": "errors",
    "SourceError": "errors",
    "StoreFormatError": "errors",
    "TableSource": "source.base",
    "TableSpec": "releases",
    "UnknownLabelError": "errors",
    "align_to_preferred": "analysis.align_preferred",
    "annotate": "connectivity.annotate",
    "benjamini_hochberg": "functional.trial_tests",
    "build_connectivity": "connectivity.build",
    "build_synapses": "connectivity.synapses",
    "build_units": "units",
    "circular_difference": "angles",
    "cite": "citations",
    "collapse_scans": "functional.collapse",
    "compare_releases": "analysis.releases_compare",
    "connection_probability": "analysis.probability",
    "connections_between": "connectivity.subset",
    "contract": "currents",
    "convert_angles": "angles",
    "cross_validated_preference": "functional.trials",
    "degrees": "totals",
    "download_file": "source.recordings",
    "download_recordings": "source.recordings",
    "drop_autapses": "connectivity.subset",
    "evaluate_tuning": "functional.fits",
    "fit_tuning": "functional.fits",
    "frame_level_test": "functional.trial_tests",
    "group_connectivity": "analysis.populations",
    "ingest_synapses": "ingest.ingest",
    "input_currents": "currents",
    "inputs_to": "partners",
    "like_to_like": "analysis.like_to_like",
    "merge_table": "merge",
    "n_connections": "connectivity.subset",
    "neuroglancer_link": "neuroglancer",
    "nucleus_ids": "connectivity.build",
    "open_recordings": "recordings.open",
    "open_store": "store.open",
    "open_video": "recordings.open",
    "orientation_from_direction": "functional.selectivity",
    "outputs_from": "partners",
    "population_labels": "analysis.populations",
    "recordings_to_zarr": "recordings.zarr",
    "references": "citations",
    "release_spec": "releases",
    "segment_layers": "layers",
    "select_connections": "select",
    "select_recordings": "recordings.select",
    "select_synapses": "synapses",
    "select_units": "select",
    "selectivity": "functional.selectivity",
    "stamp_release": "provenance",
    "sum_synapses": "synapses",
    "supported_versions": "releases",
    "to_anndata": "export",
    "to_networkx": "export",
    "to_scipy": "export",
    "to_table": "convert",
    "trial_responses": "recordings.trials",
    "trial_statistics": "functional.trials",
    "tuned_connections": "analysis.tuned",
    "tuning_from_trials": "recordings.tuning",
    "tuning_test": "functional.trial_tests",
    "write_demo_recordings": "recordings.demo",
    "write_store": "store.write",
}

# Modules of functions that are used by their module's name, such as ``mx.plot.cells_in_space``.
_MODULES = {"null_models": "analysis.null_models", "plot": "plot"}

__version__ = "0.1.0"
__all__ = ["__version__", *_MODULES, *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f"microns_xr.{_MODULES[name]}")
    elif name in _PUBLIC:
        value = getattr(importlib.import_module(f"microns_xr.{_PUBLIC[name]}"), name)
    else:
        raise AttributeError(f"module 'microns_xr' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_PUBLIC})
