"""Every notebook runs from top to bottom, shows what its text says, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS

# Of the extras, those that a notebook imports.
NEEDS = {"02_function": ["h5py"], "03_out_of_core": ["anndata", "networkx"]}

BEFORE = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from sparse_cache import keep_compiled
keep_compiled()
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("default", module="ipykernel|traitlets|zmq|jupyter_client|anndata|networkx")
import matplotlib
matplotlib.use("module://matplotlib_inline.backend_inline")
"""

# Pictures that are seen: those of `mx.plot` too, in a kernel that has drawn nothing with pyplot yet.
PICTURES = {
    "01_from_tables_to_currents": 3,
    "02_function": 3,
    "03_out_of_core": 2,
    "04_populations": 4,
}

# Run after the last cell: what the text around the cells says of their results.
AFTER = {
    "01_from_tables_to_currents": """
assert again.equals(currents)
assert mx.n_connections(without) < mx.n_connections(connectivity)
""",
    "02_function": """
rejected = float((without.p < 0.05).mean())
assert 0.02 < rejected < 0.09, rejected
assert float((test.q < 0.05).mean()) > 0.8
assert abs(others) < 0.1 < chose, (chose, others)
assert min(repeats[name].sizes["trial"] for name in recordings) == 2
assert float(apart.where(joined.gOSI > 0.1).median()) < 5
assert set(fit.status.values) > {"ok", "negative"}
assert rows.sizes["scan_unit"] == mean.n_rated == 5 and best.r2 == rows.r2.max()
own, orthogonal = (aligned.sel(relative_orientation=a) for a in (0, -90))
assert own.mean_current_low > 1 > orthogonal.mean_current_high
""",
    "03_out_of_core": """
assert connectivity.synapse_size.chunks and currents.chunks
assert own.sizes["synapse"] == degrees.in_synapses.sel(post_nucleus_id=neuron)
assert inputs.sizes["pre_nucleus_id"] == degrees.in_degree.sel(post_nucleus_id=neuron)
assert graph.number_of_edges() == mx.n_connections(among) > 1000
assert len(pairs) == mx.n_connections(stored)
""",
    "04_populations": """
p = by_axon.probability.isel(post_classification_system=0, lateral_distance=0).to_series()
assert p["full"] > p["partial"] > p["none"] > 0, p
assert planted.p.max() < 0.05 < not_planted.p.min()
assert planted.observed.iloc[0] > planted.null_high.max()
""",
}


def test_each_notebook_is_checked():
    assert set(AFTER) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_notebook_runs(path, tmp_path):
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "strip the outputs before keeping it"
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    notebook.cells.append(nbformat.v4.new_code_cell(AFTER[path.stem]))
    NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    ran = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in ran)
    shown = [o for c in ran for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(shown) == PICTURES[path.stem]
    printed = "".join(str(c.outputs) for c in ran)
    assert "nearest: L2/3" in printed or path.stem != "01_from_tables_to_currents"
