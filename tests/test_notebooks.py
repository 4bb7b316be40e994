"""Every notebook runs from top to bottom, and shows the numbers of the outputs that it is kept with.

``python tests/test_notebooks.py`` runs all notebooks, or those that are named, and replaces their outputs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS

# Of the extras, those that a notebook imports.
NEEDS = {
    "02_function": ["h5py"],
    "03_out_of_core": ["anndata", "networkx"],
    "05_own_data": ["networkx"],
    "06_from_microns_datacleaner": ["h5py"],
}

BEFORE = f"""
%reset -f
import os, sys, tempfile
os.chdir(tempfile.mkdtemp())
sys.path.append({str(Path(__file__).parent)!r})
from sparse_cache import keep_compiled
keep_compiled()
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("default", module="ipykernel|traitlets|zmq|jupyter_client|anndata|networkx")
import matplotlib
matplotlib.use("module://matplotlib_inline.backend_inline")
matplotlib.rcParams["figure.dpi"] = 80
import xarray
xarray.set_options(display_expand_attrs="default")  # some notebooks set it
"""

# Run after the last cell: what the text around the cells says of their results.
AFTER = {
    "01_from_tables_to_currents": """
assert again.equals(currents)
assert mx.n_connections(without) < mx.n_connections(connectivity)
parts = {"all": currents, **parts}
means = [(part / part.mean("orientation")).mean("post_nucleus_id") for part in parts.values()]
whole, of_few, of_others = (float(mean.max() - mean.min()) for mean in means)
assert few.size == 8 and of_few > 2 * whole > 2 * of_others
assert float(currents.rated_fraction.median()) < 0.2
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
assert graph.number_of_edges() == mx.n_connections(among) > 500
assert len(pairs) == mx.n_connections(stored)
""",
    "04_populations": """
p = by_axon.probability.isel(post_classification_system=0, lateral_distance=0).to_series()
assert p["full"] > p["partial"] > p["none"] > 0, p
assert planted.p.max() < 0.05 < not_planted.p.min()
assert planted.observed.iloc[0] > planted.null_high.max()
""",
    "05_own_data": """
assert probability.probability.to_series().round(2).nunique() == 1
assert tuned.probability[0] > 2 * tuned.probability[-1]
near, far = by_distance.probability.isel(lateral_distance=[0, -1]).transpose("lateral_distance", ...)
assert (near > far).all()
""",
    "07_real_tables": """
assert tested.p < 0.05 and tested.null_low < 0 < tested.null_high < tested.observed
assert 0.3 < share < 0.4
""",
    "06_from_microns_datacleaner": """
np.testing.assert_allclose(old, new_of_old)
np.testing.assert_allclose(transposed, new)
assert np.abs(np.corrcoef(old.sum(axis=1), new.sum("orientation"))[0, 1]) < 0.5
""",
}


UUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


class Kernel:
    """One for all notebooks: to start it and import the package takes longer than most of them."""

    def __init__(self) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.client = NotebookClient(NotebookNode(), km=self.manager, timeout=240)

    def run(self, path: Path) -> NotebookNode:
        """Return the notebook with new outputs, as it is kept."""
        notebook = nbformat.read(path, as_version=4)
        ran = nbformat.from_dict(notebook)
        code = nbformat.v4.new_code_cell
        ran.cells = [code(BEFORE), *ran.cells, code(AFTER[path.stem])]
        self.client.nb = ran
        self.client.execute()
        notebook.cells = ran.cells[1:-1]
        return tidy(notebook)

    def close(self) -> None:
        if self.manager.has_kernel:
            self.client.kc.stop_channels()
            self.manager.shutdown_kernel(now=True)


def needs_real_data(path: Path) -> bool:
    return "MICRONS_XR_REAL_DATA" in path.read_text(encoding="utf-8")


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave out what would differ in the next run: counts, times, random ids."""
    known: dict[str, str] = {}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for i, cell in enumerate(code, 1):
        cell.metadata, cell.execution_count = NotebookNode(), i
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            assert output.output_type != "stream" or output.name == "stdout", output.text
            data = output.get("data", {})
            if "image/png" in data:
                del data["text/plain"]
                output.metadata = NotebookNode()
            if "execution_count" in output:
                output.execution_count = i
            if "text/html" in data:  # the parts of what xarray shows have ids
                data["text/html"] = UUID.sub(
                    lambda match: known.setdefault(match[0], f"{len(known)}"), data["text/html"]
                )
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return outputs with printed text in one piece, which it leaves the kernel in several at times."""
    result: list[NotebookNode] = []
    for output in outputs:
        if result and output.output_type == "stream" == result[-1].output_type:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def numbers(output: NotebookNode) -> list[float]:
    """Return the numbers of a text; of what xarray shows, whose layout differs, the sizes."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    if "<xarray" in text:
        return [float(size) for name, size in re.findall(r"(\w+): (\d+)\b", text) if name != "Size"]
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]\d+)?", text)]


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Path], NotebookNode]]:
    kernel = Kernel()
    yield kernel.run
    kernel.close()


def test_each_notebook_is_checked():
    assert set(AFTER) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_notebook_shows_the_numbers_that_it_is_kept_with(path, run, request):
    if needs_real_data(path):
        request.getfixturevalue("real_data")
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    kept = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    ran = [c for c in run(path).cells if c.cell_type == "code"]
    n_numbers, n_pictures = 0, 0
    for before, now in zip(kept, ran, strict=True):
        assert len(before.outputs) == len(now.outputs), now.source
        for a, b in zip(before.outputs, now.outputs, strict=True):
            kinds = set(a.get("data", {}))
            assert kinds == set(b.get("data", {})), now.source
            expected = numbers(a)
            np.testing.assert_allclose(
                numbers(b), expected, rtol=5e-3, atol=2e-3, err_msg=now.source
            )
            n_numbers += len(expected)
            n_pictures += "image/png" in kinds
    assert n_numbers > 50
    assert n_pictures > 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_a_notebook_is_kept_with(path):
    """The title says if data are synthetic; nothing is large, of one machine, or of one run."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    title = notebook["cells"][0]["source"][0]
    assert title.startswith("# ")
    assert ("synthetic data" in title) != needs_real_data(path)
    assert not (needs_real_data(path) and "DemoSource" in text)
    assert len(text) < 300_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert not re.search(
        rf"/tmp/|/home/|{re.escape(str(Path.cwd()))}|[A-Z]:\\\\|Warning|stderr| at 0x|widget-view",
        outputs,
    )
    assert not any(cell["metadata"] for cell in notebook["cells"])


if __name__ == "__main__":
    kernel = Kernel()
    try:
        for path in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
            print(path.name)
            nbformat.write(kernel.run(path), path)
    finally:
        kernel.close()
