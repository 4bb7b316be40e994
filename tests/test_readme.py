"""The README: its code runs, block after block, in one process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import microns_xr as mx

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_its_code_runs_in_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("anndata", reason="pip install 'microns-xr[export]'")
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    names: dict = {}
    blocks = list(BLOCK.finditer(text))
    assert sum(block[1] is not None for block in blocks) == 2  # they need the network
    for block in blocks:
        if block[1] is None:
            line = text[: block.start(2)].count("\n")  # so that errors name lines of the README
            exec(compile("\n" * line + block[2], str(README), "exec"), names)
    assert "10.1038/s41586-025-08790-w" in capsys.readouterr().out
    # What the text beside the code says.
    assert (names["units"].layer.sel(nucleus_id=names["l23"].nucleus_id) == "L2/3").all()
    assert names["currents"].dims == ("post_nucleus_id", "orientation")
    whole = mx.open_store("whole.zarr")["connectivity"].to_dataset()
    assert whole.synapse_size.sum() == names["connectivity"].synapse_size.sum()
    # Neuron 1 is driven by 3, 2 by 1 and 4, 3 by 1, 4 by 2: each responds to one orientation.
    expected = [[0, 0, -1, 0], [1.5, 0, 0, 0.5], [0.5, 0, 0, 0], [0, 2, 0, 0]]
    found = mx.input_currents(names["pairs"], names["rates"])
    assert found.sel(post_nucleus_id=[1, 2, 3, 4]).values.tolist() == expected
