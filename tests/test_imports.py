"""Data flows one way: a module imports only from the rows above its own, or from its own row."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import microns_xr

ROWS = [
    [
        "errors",
        "schema",
        "angles",
        "provenance",
        "releases",
        "columns",
        "frames",
        "threads",
        "files",
        "network",
    ],
    ["sources"],
    ["tables"],
    ["tuning"],
    ["layers", "units"],
    ["connectivity"],
    ["store"],
    ["ingest", "recordings"],
    ["merge", "own", "select", "currents", "synapses"],
    ["analysis"],
    ["plot", "export", "neuroglancer"],
    ["view"],
    ["release_tables"],
    ["release"],
    ["cli", "__main__"],
]
ROW_OF = {name: i for i, row in enumerate(ROWS) for name in row}
PACKAGE = Path(microns_xr.__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("microns_xr.")
        ):
            names.add(node.module.split(".")[1])
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            f"{path.name} imports relatively"
        )
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in _imported(path):
        assert ROW_OF[name] <= ROW_OF[own], f"{own} imports {name}, which is further down"


def test_every_module_has_a_row():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES} == set(ROW_OF)
