"""Every notebook runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "strip the outputs before keeping it"
    )
    notebook.cells.insert(
        0,
        nbformat.v4.new_code_cell(
            "import warnings\n"
            "warnings.simplefilter('error')\n"
            "warnings.filterwarnings('default', module='ipykernel|traitlets|zmq|jupyter_client')\n"
            "warnings.filterwarnings('default', message='.*rows of synapses are dropped.*')\n"
            "import matplotlib; matplotlib.use('Agg')"
        ),
    )
    NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    ran = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in ran)
    printed = "".join(str(c.outputs) for c in ran)
    assert "nearest: L2/3" in printed or path.stem != "01_from_tables_to_currents"
