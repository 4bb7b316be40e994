"""What the site holds besides its pages: README, reference, notebooks, tables of the schema."""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from docstrings import DocstringExtension, rewrite
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

import microns_xr as mx
from microns_xr.releases import ReleaseSpec, release_spec
from microns_xr.schema import KINDS

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"

# Page of the reference to the modules whose functions are called mx.NAME, then the public modules.
TOP_LEVEL = {
    "release": ("release", "releases"),
    "units": ("units", "layers", "merge"),
    "connectivity": ("connectivity", "select", "synapses", "currents", "analysis"),
    "stores": ("store", "ingest", "export", "neuroglancer", "view"),
}
TITLES = {
    "release": "Releases",
    "units": "Units and layers",
    "connectivity": "Connectivity and currents",
    "stores": "Stores, ingest, export",
    "sources": "Sources of tables (mx.sources)",
    "releases": "Registry of releases (mx.releases)",
    "tuning": "Tuning (mx.tuning)",
    "recordings": "Recordings (mx.recordings)",
    "angles": "Angles (mx.angles)",
    "analysis": "Analysis (mx.analysis)",
    "analysis.null_models": "Null models (mx.analysis.null_models)",
    "plot": "Pictures (mx.plot)",
    "errors": "Errors and warnings (mx.errors)",
}


def _page_of(name: str) -> str:
    """Return the page of a function called ``mx.NAME``: the one of the module that declares it."""
    home = _home(getattr(mx, name)).split(".")[1]
    if name in ("select_units", "as_units"):
        return "units"
    if name in ("group_connectivity", "as_connectivity"):
        return "connectivity"
    return next(page for page, modules in TOP_LEVEL.items() if home in modules)


def _home(value: Any) -> str:
    module = inspect.getmodule(value)
    assert module is not None
    return module.__name__


def public_objects() -> dict[str, tuple[str, str]]:
    """Return each public name, such as ``mx.plot.tuning_curve``: page and dotted path."""
    found = {}

    def add_module(dotted: str, module: ModuleType) -> None:
        for member in module.__all__:
            value = getattr(module, member)
            if isinstance(value, ModuleType):
                add_module(f"{dotted}.{member}", value)
            elif inspect.isroutine(value) or inspect.isclass(value):
                found[f"mx.{dotted}.{member}"] = (dotted, f"{_home(value)}.{member}")

    for name in mx.__all__:
        value = getattr(mx, name)
        if isinstance(value, ModuleType):
            add_module(name, value)
        else:
            found[f"mx.{name}"] = (_page_of(name), f"{_home(value)}.{name}")
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _reference_pages() -> dict[str, str]:
    pages: dict[str, list[str]] = {}
    for name, (page, path) in public_objects().items():
        lines = pages.setdefault(page, [f"# {TITLES[page]}", ""])
        lines += [f"::: {path}", "    options:", f"      heading: {name}"]
        # A release is made of several classes, of which readers need to know nothing.
        lines += ["      inherited_members: true", ""] if name == "mx.Release" else [""]
    for page in TITLES:
        if page not in TOP_LEVEL:
            text = inspect.getdoc(importlib.import_module(f"microns_xr.{page}")) or ""
            pages[page][1:1] = ["", *rewrite(text.splitlines())]
    return {page: "\n".join(pages[page]) for page in TITLES}


def _overview() -> str:
    """Return the index of the reference: each name and its first sentence."""
    lines = ["# Reference", "", "All public names of `import microns_xr as mx`.", ""]
    objects = public_objects()
    for page, title in TITLES.items():
        lines += [f"## [{title}]({page}.md)", "", "| name | |", "| --- | --- |"]
        for name in [name for name, (on, _) in objects.items() if on == page]:
            path = objects[name][1]
            module, member = path.rsplit(".", 1)
            doc = inspect.getdoc(getattr(importlib.import_module(module), member)) or ""
            first = " ".join(doc.split("\n\n")[0].split()).replace("|", "\\|")
            lines.append(f"| [{name}]({page}.md#{path}) | {first} |")
        lines.append("")
    return "\n".join(lines)


# --- notebooks ------------------------------------------------------------------------------------


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page, with the pictures that were stored in it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts += _shown(output, path.stem, pictures)
    # The link to the notebook itself goes below its title.
    parts.insert(1, f"*[The notebook]({path.name}), to run it.*")
    return "\n\n".join(parts) + "\n", pictures


def _shown(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> list[str]:
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}_{len(pictures)}.png"
        pictures[name] = base64.b64decode(data["image/png"])
        return [f"![]({name})"]
    text = "".join(output.get("text", data.get("text/plain", "")))
    return [f"```text\n{text.rstrip()}\n```"] if text.strip() else []


# --- tables that are made of the package --------------------------------------------------------------


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def variables_table(kind: str) -> str:
    """Return the variables of one kind of Dataset, as `microns_xr.schema` declares them."""
    lines = [
        _row("variable", "dims", "dtype", "units", "missing", "what it is"),
        _row(*["---"] * 6),
    ]
    for spec in KINDS[kind].values():
        name = f"**`{spec.name}`**" if spec.required else f"`{spec.name}`"
        dims = ", ".join(f"`{dim}`" for dim in spec.dims)
        lines.append(_row(name, dims, spec.dtype, spec.units, spec.missing, spec.doc))
    return "\n".join(lines)


def _specs() -> list[ReleaseSpec]:
    return [release_spec(version) for version in mx.supported_versions()]


def releases_table() -> str:
    """Return the releases of the registry."""
    roles = ("celltype", "proofreading", "functional_properties")
    lines = [_row("version", *roles), _row(*["---"] * 4)]
    for spec in _specs():
        names = [f"`{spec.name_of(role)}`" if spec.has(role) else "none" for role in roles]
        lines.append(_row(str(spec.version), *names))
    return "\n".join(lines)


def angles_table() -> str:
    """Return the tables of the registry that hold angles."""
    lines = [_row("table", "units", "convention", "in releases"), _row(*["---"] * 4)]
    found: dict[str, tuple[str, str, list[str]]] = {}
    for spec in _specs():
        for role in ("functional_properties", "tuning_curves"):
            table = spec.table_of(role) if spec.has(role) else None
            if table is not None and table.angle_convention is not None:
                entry = (str(table.angle_units), table.angle_convention, [])
                found.setdefault(table.name, entry)[2].append(str(spec.version))
    for name, (units, convention, versions) in found.items():
        lines.append(_row(f"`{name}`", units, f"`{convention}`", ", ".join(versions)))
    return "\n".join(lines)


def format_rules() -> str:
    """Return the rules of the store from the docstring that states them, as headings and rules."""
    doc = inspect.getdoc(importlib.import_module("microns_xr.store.format")) or ""
    lines: list[str] = []
    text = doc.splitlines()[2:]
    width = 0
    for i, line in enumerate(text):
        below = text[i + 1] if i + 1 < len(text) else ""
        if line and not line.startswith(" ") and below.startswith("    "):
            lines += [f"### {line}", ""]
        elif match := re.match(r" {4}(\d+)\. +(.*)", line):
            width = match.start(2)
            lines += ["", f"**{match[1]}.** {match[2]}"]
        else:
            # The text of a rule has no indent; what stands below in it keeps the rest of its own.
            lines.append(line[width:] if line.startswith(" " * width) else line)
    return "\n".join(rewrite(lines))


MARKERS = {
    **{f"variables: {kind}": lambda kind=kind: variables_table(kind) for kind in KINDS},
    "releases": releases_table,
    "angles": angles_table,
    "format rules": format_rules,
}


# --- hooks of mkdocs ----------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference and the notebooks to the table of contents."""
    config.markdown_extensions.append(DocstringExtension())
    notebooks = [f"{path.stem}.md" for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert config.nav is not None
    config.nav.append({"Notebooks": notebooks})
    reference = ["reference/index.md", *(f"reference/{page}.md" for page in _reference_pages())]
    config.nav.append({"Reference": reference})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made, not kept: first page, notebooks as pages, reference, colours."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made: dict[str, str | bytes] = {
        "index.md": readme.replace("](notebooks/", "]("),
        "reference/index.md": _overview(),
        "style.css": HtmlFormatter(style="default").get_style_defs(".highlight")
        + (Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
    }
    for page, text in _reference_pages().items():
        made[f"reference/{page}.md"] = text
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        made[f"{path.stem}.md"], pictures = notebook_page(path)
        made.update(pictures)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables in where a page asks for them."""
    if page.file.src_uri == "index.md":
        return markdown
    return re.sub(r"<!-- table: (.+?) -->", lambda match: MARKERS[match[1]](), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the names of the package, as `mx.contract` or `microns_xr.contract`, to the reference."""
    up = "../" * page.file.src_uri.count("/")

    def linked(match: re.Match[str]) -> str:
        found = OBJECTS.get("mx." + match[1])
        if found is None:
            return match[0]
        on, path = found
        return f'<a href="{up}reference/{on}.html#{path}">{match[0]}</a>'

    parts = re.split(r"(<pre.*?</pre>|<a .*?</a>|<h\d.*?</h\d>)", html, flags=re.S)
    pattern = re.compile(r"<code>(?:mx|microns_xr)\.([\w.]+)(?:\([^<]*\))?</code>")
    return "".join(part if i % 2 else pattern.sub(linked, part) for i, part in enumerate(parts))


OBJECTS = public_objects()
