"""The documentation: it is built without a warning, its links lead somewhere, its code runs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import pytest
import xarray as xr

import microns_xr as mx
from microns_xr.connectivity.arrays import two_neurons
from microns_xr.schema import KINDS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
PAGES = sorted(NOTEBOOKS.glob("*.md"))
GALLERY = sorted((NOTEBOOKS / "gallery").glob("*.py"))
assert PAGES
assert GALLERY

# Public names of microns-combiner 0.4.0: of the package, of its two classes, of `filters` (fl) and
# of `remapper` (rem), as its wheel has them.
OLD = {
    "mic": ["MicronsCombiner", "MicronsFunctionalReader"],
    "combiner": [
        *["is_archived", "download_functional_data", "get_table_list", "read_table"],
        *["download_nucleus_data", "download_tables", "download_synapse_data"],
        *["filter_static_synapses", "merge_table", "process_nucleus_data"],
    ],
    "fl": [
        *["filter_neurons", "synapses_by_id", "filter_connections", "remove_autapses"],
        *["connections_to", "connections_from"],
    ],
    "rem": ["remap_all_tables"],
    "reader": [
        *["close", "get_full_data_by_hash", "get_responses_by_hash", "get_video_data"],
        *["get_video_type", "get_hashes_by_session", "get_hashes_by_type"],
        *["get_available_brain_areas", "get_trial", "print_structure"],
    ],
}


# --- the code of the pages ----------------------------------------------------------------------------


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return the Python of a page, by line, but for what the page says is not run."""
    text = page.read_text(encoding="utf-8")
    pattern = r"(<!-- not run: .+? -->\n)?^```python\n(.*?)^```"
    found = re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(2)].count("\n"), m[2]) for m in found if m[1] is None]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    if page.stem == "store_format":
        pytest.importorskip("anndata", reason="pip install 'microns-xr[export]'")
        pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    if page.stem == "cookbook":
        pytest.importorskip("networkx", reason="pip install 'microns-xr[export]'")
        pytest.importorskip("h5py", reason="pip install 'microns-xr[recordings]'")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for line, block in blocks(page):
        # Line numbers of an error are those of the page.
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * line + block, str(page), "exec"), names)


def test_each_function_of_plot_has_a_picture_in_the_gallery():
    names = {path.stem.removeprefix("plot_") for path in GALLERY}
    assert names == set(mx.plot.__all__)


@pytest.mark.parametrize("script", GALLERY, ids=lambda path: path.stem)
def test_a_picture_of_the_gallery_says_that_its_data_are_synthetic(script, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.close("all")
    name = script.stem.removeprefix("plot_")
    drawn = []
    function = getattr(mx.plot, name)
    monkeypatch.setattr(mx.plot, name, lambda *args, **kw: drawn.append(function(*args, **kw)))
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), {})
    assert drawn[0].figure.number in plt.get_fignums()
    picture = drawn[0]
    title = picture.get_suptitle() if picture is picture.figure else picture.get_title()
    assert "synthetic data" in title
    plt.close("all")


def test_fences_are_closed_and_say_what_they_are():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, page.name
        languages = {fence for fence in fences[::2] if not fence.startswith("{")}  # or a directive
        assert languages <= {"python", "javascript", "text"}, page.name
        assert set(fences[1::2]) <= {""}, page.name


def test_what_plain_xarray_decides():
    """What `out_of_core.md` says that no array can change."""
    size = two_neurons().synapse_size
    elsewhere = xr.DataArray([1.0, 1.0], {"pre_nucleus_id": [1, 2]})
    assert not xr.dot(size, elsewhere, dim="pre_nucleus_id").any()
    gain = xr.DataArray([1.0, 1.0], {"nucleus_id": [11, 12]})
    new, old = (mx.releases.stamp_release(gain, "minnie65_public", v) for v in (1718, 1507))
    assert (new + new).materialization_version.item() == 1718
    assert "materialization_version" not in (new + old).coords


# --- the table of old and new calls -------------------------------------------------------------------


def _rows() -> list[list[str]]:
    text = (NOTEBOOKS / "from_microns_datacleaner.md").read_text(encoding="utf-8")
    table = text.split("## Old call, new call")[1].split("Every argument:")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    return rows


def test_old_calls_are_those_of_the_old_package():
    called = re.findall(r"`(mic|combiner|fl|rem|reader)\.(\w+)\(", "\n".join(r[0] for r in _rows()))
    assert all(name in OLD[owner] for owner, name in called)
    missing = {(o, n) for o, names in OLD.items() for n in names} - set(called)
    assert not missing, "public calls of the old package that the table does not translate"


def test_new_calls_exist():
    new = "\n".join(row[1] for row in _rows())
    for name in re.findall(r"mx\.(\w+)", new):
        assert hasattr(mx, name), name
    for name in re.findall(r"release\.(\w+)\(", new):
        assert callable(getattr(mx.Release, name)), name
    for name in re.findall(r"(?<!mx\.)recordings\.(\w+)\(", new):
        assert callable(getattr(xr.DataTree, name)), name
    assert all(re.search(r"`|not needed", row[1]) for row in _rows())


def test_every_name_the_pages_mention_exists():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for dotted in re.findall(r"(?<![\w.])mx\.([A-Za-z_]\w*(?:\.\w+)?)", text):
            name, _, member = dotted.partition(".")
            assert hasattr(mx, name), f"{page.name}: mx.{name}"
            if member and isinstance(getattr(mx, name), ModuleType):
                assert hasattr(getattr(mx, name), member), f"{page.name}: mx.{dotted}"


# --- the site -----------------------------------------------------------------------------------------


class _Page:
    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        tags = " ".join(re.findall(r"<(?:a|link|img|script)\b[^>]*>", text))
        self.links = [unescape(link) for link in re.findall(r'\b(?:href|src)="(.+?)"', tags)]
        self.anchors = {unescape(name) for name in re.findall(r'\b(?:id|name)="(.+?)"', text)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as strictly as in the checks, of a copy of its sources: they get pages added."""
    for name in ("myst_nb", "numpydoc", "pydata_sphinx_theme", "sphinx_design", "sphinx_gallery"):
        pytest.importorskip(name, reason="pip install 'microns-xr[docs]'")
    root = tmp_path_factory.mktemp("site")
    without = shutil.ignore_patterns("generated", "*checkpoints")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=without)
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, root)
    folder = root / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-D", "plot_gallery=0", "-c"]
    command += [str(root / "notebooks" / "site"), str(root / "notebooks"), str(folder)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, _Page]:
    pages = (path for path in site.rglob("*.html") if "_static" not in path.parts)
    return {path.resolve(): _Page(path) for path in pages}


def test_every_link_leads_somewhere(html):
    assert len(html) > len(PAGES)
    for path, page in html.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "mailto", "data"), f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in html:
                assert unquote(parts.fragment) in html[target].anchors, f"{path.name}: {link}"


def test_every_public_name_has_a_page(site, html):
    found = [(f"microns_xr.{name}", getattr(mx, name)) for name in mx.__all__]
    names = set()
    for name, value in found:
        if isinstance(value, ModuleType):
            found += [(f"{name}.{member}", getattr(value, member)) for member in value.__all__]
        else:
            names.add(name)
    assert len(names) > 80
    pages = {path.stem: path for path in (site / "generated" / "api").glob("*.html")}
    assert pages.keys() == names
    overview = html[(site / "api.html").resolve()].links
    for name, path in pages.items():
        assert name in html[path.resolve()].anchors
        assert any(link.endswith(f"api/{name}.html#{name}") for link in overview), name
    methods = html[pages["microns_xr.Release"].resolve()].anchors
    for method in ("units", "connectivity", "download", "download_synapses", "table", "write"):
        assert f"microns_xr.Release.{method}" in methods


def test_pages_and_docstrings_link_to_the_reference(html, site):
    links = html[(site / "data_model.html").resolve()].links
    assert "generated/api/microns_xr.merge_table.html#microns_xr.merge_table" in links
    links = html[(site / "generated" / "api" / "microns_xr.Release.html").resolve()].links
    assert "microns_xr.errors.SchemaError.html#microns_xr.errors.SchemaError" in links


def test_pages_are_filled_in_from_the_package(site):
    model = (site / "data_model.html").read_text(encoding="utf-8")
    for specs in KINDS.values():
        for spec in specs.values():
            assert f">{spec.name}<" in model
            assert spec.doc in model
    assert all(str(version) in model for version in mx.releases.supported_versions())
    rules = (site / "store_format.html").read_text(encoding="utf-8")
    assert "strictly ascending within a span" in re.sub(r"<.+?>|\s+", " ", rules)
    # The rules are numbered through, and 15 is the last.
    assert re.findall(r'<ol[^>]+?start="(\d+)"', rules) == ["4", "8", "12", "15"]
    for page in site.glob("*.html"):
        assert "<!-- table:" not in page.read_text(encoding="utf-8"), page.name


def test_the_first_page_is_the_readme_and_shows_its_picture(site, html):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = html[(site / "index.html").resolve()]
    for picture in re.findall(r"!\[.*?\]\(notebooks/(.+?)\)", readme):
        assert f"_images/{picture}" in first.links
        assert (site / "_images" / picture).stat().st_size > 10_000
    assert {"what-to-know", "ten-lines"} <= first.anchors  # below the cards
    assert not any(link.startswith("notebooks/") for link in first.links)


def test_notebooks_are_pages_and_can_be_had(site, html):
    for path in NOTEBOOKS.glob("*.ipynb"):
        page = html[(site / f"{path.stem}.html").resolve()]
        assert f"_sources/{path.name}" in page.links
        assert (site / "_sources" / path.name).read_bytes() == path.read_bytes()


def test_nothing_is_fetched_from_elsewhere(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|link|iframe)[^>]+>", text)
        assert not [t for t in tags if re.search(r"(?:src|href)=.(?:https?:)?//", t)], path.name
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", text), path.name
