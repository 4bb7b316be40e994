"""Sphinx: the README, the pages and notebooks of the parent folder, pictures, and the reference.

Build it with ``sphinx-build -W -c notebooks/site notebooks FOLDER``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from docutils import nodes
from numpydoc.xref import DEFAULT_LINKS
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx_gallery.sorting import ExplicitOrder

import microns_xr as mx
from microns_xr.releases import release_spec
from microns_xr.schema import KINDS

project = "microns_xr"
copyright = "The microns_xr developers, MIT licence"
release = version = mx.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "myst_nb",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["site", "gallery", "generated/gallery/*.ipynb", "**/.ipynb_checkpoints"]
# Where it is not absolute, autosummary looks for it in the folder of the sources.
templates_path = [str(Path(__file__).parent / "templates")]
default_role = "py:obj"
smartquotes = False
toc_object_entries_show_parents = "hide"

autodoc_typehints = "none"  # numpydoc sections state them in words
numpydoc_show_class_members = False  # templates/autosummary/class.rst has them
# Types that become links: common ones of other packages, and those of this package. A
# leading dot makes numpydoc link the whole name; words that it would link by itself stay text.
others = "xarray.Dataset xarray.DataArray xarray.DataTree pandas.DataFrame pandas.Series"
others += " numpy.ndarray numpy.random.Generator sparse.GCXS sparse.SparseArray"
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    **{word: word for word in DEFAULT_LINKS},
    **{name: f".{name}" for name in others.split()},
    **{name: f"microns_xr.errors.{name}" for name in mx.errors.__all__},
    **{name: f"microns_xr.releases.{name}" for name in ("ReleaseSpec", "TableSpec")},
    "TableSource": "microns_xr.sources.TableSource",
}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebooks; the site shows their committed outputs

reference = Path(__file__).parents[1].joinpath("api.rst").read_text(encoding="utf-8")
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": "",
    "within_subsection_order": ExplicitOrder(
        [f"plot_{name}.py" for name in re.findall(r"^ +plot\.(\w+)$", reference, re.MULTILINE)]
    ),
    "backreferences_dir": "generated/backreferences",  # pictures on the page of each function
    "doc_module": ("microns_xr",),
    "reference_url": {"microns_xr": None},
    "download_all_examples": False,
    "min_reported_time": 1e9,
    "show_signature": False,
    "write_computation_times": False,
}

# Inventories are fetched from the network, and an unreachable one would fail a strict build: links to
# other packages are for hosted builds, which set DOCS_INTERSPHINX. Elsewhere their names are text.
intersphinx_mapping = {
    "xarray": ("https://docs.xarray.dev/en/stable", None),
    "dask": ("https://docs.dask.org/en/stable", None),
    "sparse": ("https://sparse.pydata.org/en/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "zarr": ("https://zarr.readthedocs.io/en/stable", None),
}
if not os.environ.get("DOCS_INTERSPHINX"):
    intersphinx_mapping = {}

html_theme = "pydata_sphinx_theme"
html_title = f"microns_xr {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_sidebars = {page: [] for page in ("install", "changelog")}  # which have no pages below
html_sourcelink_suffix = ""  # the source of a notebook's page is the notebook
# No repository is stated in pyproject.toml: edit links appear where GitHub says which one it is.
owner, _, repository = os.environ.get("GITHUB_REPOSITORY", "").partition("/")
html_context = {
    "default_mode": "auto",  # light or dark, as the browser is set
    "github_user": owner,
    "github_repo": repository,
    "github_version": "main",
    "doc_path": "notebooks",
}
html_theme_options = {
    "use_edit_page_button": bool(repository),
    # What is made from docstrings and scripts has no source of its own to show or to edit.
    "secondary_sidebar_items": {
        **{page: ["page-toc", "edit-this-page", "sourcelink"] for page in ("[!g]*", "guide")},
        "generated/**": ["page-toc"],
    },
    "pygments_dark_style": "github-dark",  # where comments are fainter than code
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}


# --- tables that are made from the package ----------------------------------------------------------------


def table(*rows: Iterable[Any]) -> str:
    """Return a Markdown table, whose header is the first row."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def variables(kind: str) -> str:
    """Return the variables of one kind of Dataset, the required ones in bold."""
    rows: list[Any] = [("variable", "dims", "dtype", "units", "missing", "what it is")]
    for spec in KINDS[kind].values():
        name = f"**`{spec.name}`**" if spec.required else f"`{spec.name}`"
        dims = ", ".join(f"`{dim}`" for dim in spec.dims)
        rows.append((name, dims, spec.dtype, spec.units, spec.missing, spec.doc))
    return table(*rows)


def releases() -> str:
    """Return the releases of the registry, with their tables by role."""
    roles = ("celltype", "proofreading", "functional_properties")
    specs = [release_spec(number) for number in mx.releases.supported_versions()]
    names = ([f"`{s.name_of(role)}`" if s.has(role) else "none" for role in roles] for s in specs)
    return table(("version", *roles), *((s.version, *n) for s, n in zip(specs, names, strict=True)))


def angles() -> str:
    """Return the tables of the registry that hold angles."""
    found: dict[tuple[str, ...], list[str]] = {}
    for spec in (release_spec(number) for number in mx.releases.supported_versions()):
        for role in filter(spec.has, ("functional_properties", "tuning_curves")):
            of = spec.table_of(role)
            if of.angle_convention is not None:
                row = (f"`{of.name}`", str(of.angle_units), f"`{of.angle_convention}`")
                found.setdefault(row, []).append(str(spec.version))
    head = ("table", "units", "convention", "in releases")
    return table(head, *((*row, ", ".join(numbers)) for row, numbers in found.items()))


TABLES = {f"variables: {kind}": partial(variables, kind) for kind in KINDS}
TABLES |= {"releases": releases, "angles": angles}


def fill_tables(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the tables in where a page asks for them."""
    source[0] = re.sub(r"<!-- table: (.+?) -->", lambda match: TABLES[match[1]](), source[0])


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Link code such as ``mx.contract`` to the reference, in pages and in docstrings."""
    for xref in doctree.findall(pending_xref):
        xref["reftarget"] = re.sub(r"^mx\.", "microns_xr.", xref["reftarget"])
    for code in list(doctree.findall(nodes.literal)):
        name = re.fullmatch(r"mx\.([\w.]+)(\(.*\))?", code.astext())
        if name and not isinstance(code.parent, (pending_xref, nodes.reference, nodes.title)):
            target = {"refdomain": "py", "reftype": "obj", "reftarget": f"microns_xr.{name[1]}"}
            xref = pending_xref("", refdoc=app.env.docname, refexplicit=True, **target)
            code.replace_self(xref)
            xref += code


def setup(app: Sphinx) -> None:
    """Add both to the build."""
    app.connect("source-read", fill_tables)
    app.connect("doctree-read", link_names)
