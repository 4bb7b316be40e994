"""A release as a page: the numbers inside, and what a browser does with them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys

import command
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from chromium import EXECUTABLE, Chromium

import microns_xr as mx

HOSTILE = "</script><script>window.hacked = 1</script>"
IMAGE = "<img src=x onerror='window.hacked = 2'>"
A = 2**60 + 1  # ids that a float of JavaScript would round


def inside(path):
    """Unpack a page without its own code: the header, and the arrays by name."""
    header, arrays = {}, {}
    for part in ("data", "pairs"):
        script = rf'<script id="{part}" type="text/plain">([^<]*)</script>'
        content = gzip.decompress(base64.b64decode(re.search(script, path.read_text())[1]))
        start = 4 + int.from_bytes(content[:4], "little")
        more = json.loads(content[4:start])
        for name, dtype, n in more.pop("arrays"):
            size = np.dtype(dtype).itemsize
            planes = np.frombuffer(content, np.uint8, n * size, start).reshape(size, n)
            arrays[name] = np.ascontiguousarray(planes.T).view(dtype).ravel()
            start += n * size
        assert start == len(content)
        header |= more
    return header, arrays


def pairs_of(arrays):
    """The pairs that are listed, as ids of pre and post with their weights."""
    result, at = {}, 0
    for post, n in zip(arrays["nucleus_id"], arrays["n_listed"], strict=True):
        for pre, weight in zip(
            np.cumsum(arrays["pre_steps"][at : at + n]), arrays["weight"][at : at + n], strict=True
        ):
            result[int(arrays["nucleus_id"][pre]), int(post)] = float(weight)
        at += n
    return result


@pytest.fixture(scope="module")
def own():
    """Five cells with hostile types, one without a position; A+4 was not asked for."""
    table = pd.DataFrame(
        {
            "nucleus_id": [A, A + 1, A + 2, A + 3, A + 4],
            "cell_type": [HOSTILE, HOSTILE, IMAGE, IMAGE, "23P"],
            "x": [0.0, 100, 200, 300, np.nan],
            "y": [50.0, 150, 250, 350, np.nan],
            "z": [0.0, 10, 20, 30, np.nan],
            "gOSI": [0.5, np.nan, np.nan, 0.25, np.nan],
        }
    )
    edges = pd.DataFrame(
        {"pre": [A + 3, A, A + 1, A], "post": [A, A + 1, A + 1, A + 2], "strength": [7.0, 3, 5, 2]}
    )
    asked = table["nucleus_id"][:4]
    connectivity = mx.as_connectivity(
        edges, pre="pre", post="post", weight="strength", pre_ids=asked, post_ids=asked
    )
    return {"units": mx.as_units(table), "connectivity": connectivity}


def test_a_page_holds_the_data(own, tmp_path):
    mx.to_html(own, tmp_path / "own.html")
    header, arrays = inside(tmp_path / "own.html")
    assert arrays["nucleus_id"].tolist() == [A, A + 1, A + 2, A + 3, A + 4]
    assert pairs_of(arrays) == {
        (A + 3, A): 7, (A, A + 1): 3, (A + 1, A + 1): 5, (A, A + 2): 2,
    }  # fmt: skip
    # Known to have none, and not known, are two things.
    assert arrays["in_degree"].tolist() == [1, 2, 1, 0, -1]
    assert arrays["out_degree"].tolist() == [2, 1, 0, 1, -1]
    np.testing.assert_array_equal(arrays["of gOSI"], [0.5, np.nan, np.nan, 0.25, np.nan])
    np.testing.assert_array_equal(arrays["y"], [50, 150, 250, 350, np.nan])
    kinds = next(v for v in header["variables"] if v["name"] == "cell type")
    assert sorted(kinds["words"]) == sorted([HOSTILE, IMAGE, "23P"])
    groups = kinds["groups"]
    at = groups["pre"].index(HOSTILE), groups["post"].index(HOSTILE)
    assert (groups["n"][at[0]][at[1]], groups["mean"][at[0]][at[1]]) == (2, 4)  # 3 and 5
    assert header["absent"] == ["layers", "rates"]
    assert "not drawn: 1 cells" in " ".join(header["notes"])


def test_currents_are_those_of_the_package(demo_fresh, tmp_path):
    mx.to_html(demo_fresh, tmp_path / "demo.html")
    header, arrays = inside(tmp_path / "demo.html")
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    expected = mx.input_currents(connectivity, units.rate_ori)
    expected = expected.reindex(post_nucleus_id=units.nucleus_id.values).values
    np.testing.assert_allclose(arrays["currents"].reshape(expected.shape), expected, rtol=1e-4)
    assert np.isnan(expected).any()
    table = mx.to_table(connectivity)
    ends = zip(table.pre_nucleus_id, table.post_nucleus_id, strict=True)
    assert pairs_of(arrays) == dict(zip(ends, table["size"], strict=True))
    assert header["title"] == "minnie65_demo v1718"
    assert ["connections", len(table)] in header["counts"]
    assert [row[0] for row in header["layers"]] == demo_fresh["layers"].layer_name.values.tolist()
    for variable in header["variables"]:
        colours = variable["palette"]
        assert "words" not in variable or len(set(colours)) == len(colours)


def test_connections_left_out_are_the_weakest_and_counted(own, tmp_path):
    mx.to_html(own, tmp_path / "own.html", max_connections=2)
    header, arrays = inside(tmp_path / "own.html")
    assert pairs_of(arrays) == {(A + 3, A): 7, (A + 1, A + 1): 5}
    assert arrays["in_degree"].tolist() == [1, 2, 1, 0, -1]  # of all
    assert ["connections", 4] in header["counts"]
    assert any(
        "2 connections with the largest strength out of 4" in note for note in header["notes"]
    )


def test_a_neuron_that_the_file_does_not_name_is_not_known(own, tmp_path):
    edges = pd.DataFrame({"pre": [A], "post": [A + 1], "strength": [3.0]})
    bare = mx.as_connectivity(edges, pre="pre", post="post", weight="strength")
    mx.to_html(own | {"connectivity": bare}, tmp_path / "own.html")
    arrays = inside(tmp_path / "own.html")[1]
    assert arrays["in_degree"].tolist() == [-1, 1, -1, -1, -1]
    assert arrays["out_degree"].tolist() == [1, -1, -1, -1, -1]


def test_command(demo_store, tmp_path):
    done = command.run("view", demo_store, cwd=tmp_path)
    page = tmp_path / "demo.html"
    assert done.returncode == 0
    assert f"{page.name}, {page.stat().st_size / 1e6:.1f} MB" in done.stdout
    page.write_text("mine")
    refused = command.run("view", demo_store, cwd=tmp_path)
    assert refused.returncode == 1
    assert "demo.html exists: choose another name, or pass --overwrite" in refused.stderr
    assert page.read_text() == "mine"
    assert command.run("view", demo_store, "--overwrite", cwd=tmp_path).returncode == 0
    assert inside(page)[0]["title"] == "minnie65_demo v1718"
    assert "expected NAME.html" in command.run("view", demo_store, "--out", "a.txt").stderr
    assert [file.name for file in tmp_path.iterdir()] == ["demo.html"]


def test_layers_without_a_border_are_left_out(own, tmp_path):
    layers = xr.Dataset(
        {
            "layer_name": ("segment", ["L1", "L2/3"]),
            "y_start": ("segment", [np.nan, 90.0]),
            "y_end": ("segment", [90.0, 200.0]),
        }
    )
    mx.to_html({**own, "layers": layers, "connectivity": None}, tmp_path / "a.html")
    assert inside(tmp_path / "a.html")[0]["layers"] == [["L2/3", 90.0, 200.0]]


def test_rates_need_their_angles(own, tmp_path):
    n = own["units"].sizes["nucleus_id"]
    units = own["units"].assign(pref_ori=("nucleus_id", np.zeros(n)))
    two_scans = units.assign(rate_ori=(("nucleus_id", "scan", "orientation"), np.ones((n, 2, 4))))
    no_angles = units.assign(rate_ori=(("nucleus_id", "orientation"), np.ones((n, 4))))
    for given in (two_scans, no_angles):
        with pytest.raises(mx.errors.SchemaError, match="rate_ori has dims"):
            mx.to_html({"units": given}, tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_errors(own, tmp_path, monkeypatch):
    with pytest.raises(mx.errors.SchemaError, match="path is a int"):
        mx.to_html(own, 5)
    twice = own["units"].isel(nucleus_id=[0, 0, 1])
    with pytest.raises(mx.errors.SchemaError, match="repeats 1"):
        mx.to_html({"units": twice}, tmp_path / "a.html")
    with pytest.raises(mx.errors.SchemaError, match=r"mx\.as_units"):
        mx.to_html({"connectivity": own["connectivity"]}, tmp_path / "a.html")
    with pytest.raises(mx.errors.SchemaError, match="is a folder"):
        mx.to_html(own, tmp_path)
    labels = {"datastack": "minnie65_public", "materialization_version": 1300}
    units = own["units"].assign_coords(labels)
    other = own["connectivity"].assign_coords(labels | {"materialization_version": 1718})
    with pytest.raises(mx.errors.ReleaseMismatchError, match="v1300"):
        mx.to_html({"units": units, "connectivity": other}, tmp_path / "a.html")
    monkeypatch.setitem(sys.modules, "bokeh.resources", None)
    with pytest.raises(mx.errors.MicronsXrError, match=r"microns-xr\[view\]"):
        mx.to_html(own, tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


# In a browser

READY = "document.body.dataset.ready === 'yes'"
# The rectangle between the axes of the cells, in pixels.
FRAME = """(() => {
  const find = (node) => {
    for (const child of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children]) {
      const found = child.matches(".bk-CartesianFrame") ? child : find(child);
      if (found) return found;
    }
  };
  const { x, y, width, height } = find(document.querySelector("#cells")).getBoundingClientRect();
  return [x, y, width, height];
})()"""


def position_of(browser, i):
    """The pixel at which a cell is drawn."""
    x, y, width, height = browser.run(FRAME)
    a, b, x0, x1, y0, y1 = browser.run(
        f"(({{ A, S, cells }}) => [A[S.view[0]][{i}], A[S.view[1]][{i}], cells.x_range.start,"
        " cells.x_range.end, cells.y_range.start, cells.y_range.end])(page)"
    )
    return x + width * (a - x0) / (x1 - x0), y + height * (y1 - b) / (y1 - y0)


def coloured(browser, folder):
    """The share of the frame that is neither white nor grey."""
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    browser.screenshot(folder / "shot.png", whole=False)
    x, y, width, height = (round(v) for v in browser.run(FRAME))
    pixels = plt.imread(folder / "shot.png")[y : y + height, x : x + width, :3]
    return float((np.ptp(pixels, axis=-1) > 0.2).mean())


@pytest.fixture(scope="module")
def browser():
    if EXECUTABLE is None:
        pytest.skip("there is no chromium here")
    with Chromium() as browser:
        yield browser
        assert browser.messages == []
        # Nothing but the pages themselves.
        assert all(url.startswith(("file:", "data:", "blob:")) for url in browser.requests)


def test_a_page_draws_filters_and_answers_a_click(browser, demo_fresh, tmp_path):
    mx.to_html(demo_fresh, tmp_path / "demo.html")
    browser.open(tmp_path / "demo.html", READY)
    units, connectivity = demo_fresh["units"], demo_fresh["connectivity"]
    n = units.sizes["nucleus_id"]
    assert browser.run("page.cellSource.data.x.length") == n
    assert browser.run("[...document.querySelectorAll('#main .figure')].every(f => f.clientHeight)")
    # The pia is on top.
    assert browser.run("page.cells.y_range.end < page.cells.y_range.start")
    of_all = coloured(browser, tmp_path)
    assert of_all > 0.01

    # Only one type, by a click on its word.
    types = units["cell_type"].values
    browser.run(
        "[...document.querySelectorAll('#legend .word')].find(w => w.textContent === '23P').click()"
    )
    assert browser.run("page.cellSource.data.x.length") == (types == "23P").sum()
    assert browser.run("[...new Set(page.groupSource.data.pre)].join()") == "23P"
    # Blue cells; what remains of the others are lines and names of layers in grey.
    assert 0 < coloured(browser, tmp_path) < of_all
    browser.run("document.querySelector('#legend input:checked').click()")
    assert coloured(browser, tmp_path) == 0
    # With WebGL where a browser has it: drawn one by one, 94,000 cells are slow to move.
    browser.run(
        "window.fills = 0; { const draws = CanvasRenderingContext2D.prototype, { fill } = draws;"
        " draws.fill = function (...a) { fills++; return fill.apply(this, a); } }"
    )
    browser.run("document.querySelector('#all').click()")
    assert browser.run("page.cellSource.data.x.length") == n
    assert coloured(browser, tmp_path) == pytest.approx(of_all, abs=0.01)
    if browser.run("document.createElement('canvas').getContext('webgl') !== null"):
        assert browser.run("fills") < n / 2

    degrees = mx.degrees(connectivity).in_degree
    busiest = int(degrees.idxmax())
    i = units.get_index("nucleus_id").get_loc(busiest)
    browser.click(*position_of(browser, i))
    browser.wait(f"page.S.chosen === {i}")
    partners = mx.inputs_to(connectivity, busiest).sizes["pre_nucleus_id"]
    assert browser.run("page.links[0].data_source.data.x1.length") == partners
    text = browser.run("document.querySelector('#neuron-card').innerText")
    assert f"Cell {busiest}" in text
    assert f"{partners} inputs" in text
    assert types[i] in text

    # An angle: cells without one are said to be not measured.
    browser.run(
        "document.querySelector('#colour').value = page.V.findIndex(v => v.name === 'preferred orientation');"
        "document.querySelector('#colour').onchange()"
    )
    assert "not measured" in browser.run("document.querySelector('#legend').innerText")
    browser.run(
        "document.querySelector('#view').value = 'xz'; document.querySelector('#view').onchange()"
    )
    assert browser.run("page.cells.yaxes[0].axis_label") == "z (µm)"
    browser.resize(390, 844)
    browser.wait("document.documentElement.scrollWidth === 390")
    browser.resize(1280, 900)


def test_text_of_a_table_is_never_code(browser, own, tmp_path):
    mx.to_html(own, tmp_path / "own.html")
    browser.open(tmp_path / "own.html", READY)
    assert HOSTILE in browser.run("document.querySelector('#legend').textContent")
    browser.run("page.choose(0)")
    assert IMAGE in browser.run("document.querySelector('#neuron').textContent")
    assert (
        browser.run("String(window.hacked) + document.querySelectorAll('img').length")
        == "undefined0"
    )
    browser.run("page.choose(4)")
    text = browser.run("document.querySelector('#neuron').innerText")
    assert "inputs: not known" in text
    assert "gOSI not measured" in text.replace("\n", " ")


def test_ids_alone_give_a_page(browser, own, tmp_path):
    mx.to_html({"units": own["units"][["nucleus_id"]]}, tmp_path / "ids.html")
    browser.open(tmp_path / "ids.html", READY)
    browser.run(
        f"document.querySelector('#query').value = '{A + 2}'; document.querySelector('#find').onsubmit(new Event('submit'))"
    )
    assert browser.run("document.querySelector('#neuron-title').textContent").startswith(
        f"Cell {A + 2}"
    )
