"""What `import microns_xr` offers: its names, what it imports, and the docstring of each."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import microns_xr as mx

MODULES = {name: getattr(mx, name) for name in mx.__all__ if name != "__version__"}
MODULES = {n: m for n, m in MODULES.items() if isinstance(m, types.ModuleType)}
MODULES["analysis.null_models"] = mx.analysis.null_models
SECTION = re.compile(
    r"^(Parameters|Returns|Raises|Examples)\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", re.M | re.S
)
LABELLED = re.compile(r"Dataset|DataArray|DataTree|ndarray")
DIMS = re.compile(r"\b(dims?|over|see|as|same|shape|int64|axes|axis)\b|µm|degree", re.I)

EXEMPT = {
    # It reads the groups that are there.
    "mx.open_store": {"Raises UnknownLabelError"},
    # Functions make it, users do not.
    "mx.analysis.null_models.NullConnectivity": {
        f"parameter {name}" for name in ("attrs", "draw", "n", "observed")
    },
}


def public_objects() -> dict[str, object]:
    """Functions, classes and methods by the name that a user writes."""
    found = {f"mx.{n}": getattr(mx, n) for n in mx.__all__ if n not in (*MODULES, "__version__")}
    for name, module in MODULES.items():
        found |= {f"mx.{name}.{n}": getattr(module, n) for n in module.__all__}
    documented = {n: v for n, v in found.items() if inspect.isfunction(v) or inspect.isclass(v)}
    for name, value in list(documented.items()):
        if inspect.isclass(value) and not issubclass(value, Exception):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                if not method.startswith("_") and function.__module__.startswith("microns_xr"):
                    documented[f"{name}.{method}"] = function
    return documented


def raised(function: object) -> set[str]:
    """Errors of the package that a function raises, itself or in functions of its module."""
    module = inspect.getmodule(function)
    names, todo, seen = set(), [function], set()
    while todo:
        current = todo.pop()
        seen.add(current)
        try:
            source = textwrap.dedent(inspect.getsource(current))
        except OSError:  # written by dataclasses
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = getattr(node.exc.func, "id", "")
                if called == "unknown_label":
                    error = [k.value.id for k in node.exc.keywords if k.arg == "error"]
                    called = error[0] if error else "UnknownLabelError"
                names.add(called)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                other = vars(module).get(node.func.id)
                if inspect.isfunction(other) and other.__module__ == module.__name__:
                    todo += [other] * (other not in seen)
    return {n for n in names if n in mx.errors.__all__}


def lacks(name: str, value: object, whole: dict[str, object]) -> set[str]:
    """What the docstring of a public object does not say."""
    doc = inspect.getdoc(value) or ""
    sections = dict(SECTION.findall(doc + "\n"))
    if not doc:
        return {"summary"}
    if inspect.isclass(value) and issubclass(value, Exception):
        return set()
    lacking = set()
    is_class = inspect.isclass(value)
    if is_class and getattr(value, "_is_protocol", False):
        return set()
    signature = inspect.signature(value)
    arguments = [p for p in signature.parameters if p not in ("self", "args", "kwargs")]
    stated = sections.get("Parameters", "")
    lacking |= {
        f"parameter {p}" for p in arguments if not re.search(rf"^[^:\n]*\b{p}\b", stated, re.M)
    }
    returns = str(signature.return_annotation)
    if not is_class and returns != "None" and "Returns" not in sections:
        lacking.add("Returns")
    if not is_class and LABELLED.search(returns) and not DIMS.search(sections.get("Returns", "")):
        lacking.add("dims")
    owner = whole.get(name.rpartition(".")[0])
    # A method may be shown in the example of its class.
    called = rf"\b{name.rpartition('.')[2]}\("
    shown = owner is not None and re.search(called, inspect.getdoc(owner) or "")
    if ">>>" not in sections.get("Examples", "") and not shown:
        lacking.add("Examples")
    if not is_class:
        for error in raised(value):
            parents = [c.__name__ for c in getattr(mx.errors, error).__mro__]
            if not any(parent in sections.get("Raises", "") for parent in parents):
                lacking.add(f"Raises {error}")
    return lacking


OBJECTS = public_objects()


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_is_documented(name):
    assert lacks(name, OBJECTS[name], OBJECTS) == EXEMPT.get(name, set())


def test_names_of_the_package_are_those_of_its_stub():
    assert set(dir(mx)) == set(mx.__all__)
    for name in (
        "analysis",
        "angles",
        "errors",
        "plot",
        "recordings",
        "releases",
        "sources",
        "tuning",
    ):
        module = getattr(mx, name)
        assert set(dir(module)) == set(module.__all__)
    with pytest.raises(AttributeError, match="attribute nothing"):
        mx.nothing


HEAVY = (
    "caveclient", "dask", "matplotlib", "numba", "numpy", "pandas", "pyarrow", "requests", "scipy",
    "sparse", "standard_transform", "xarray", "zarr", "microns_xr.sources",
)  # fmt: skip
# What a new process does, and what it imports of these.
STARTS = {
    "import": ("import microns_xr", set()),
    "currents": (
        "import microns_xr as mx, xarray as xr\n"
        "from microns_xr.connectivity.arrays import two_neurons\n"
        "mx.input_currents(two_neurons(), xr.DataArray([1.0, 2.0], {'nucleus_id': [11, 12]}))",
        {"dask", "numba", "numpy", "pandas", "pyarrow", "scipy", "sparse", "xarray"},
    ),
    "info": (
        "from command import run\nassert not run('info', STORE).returncode",
        {"numpy", "zarr"},
    ),
    "help": ("from command import run\nassert not run('--help').returncode", set()),
}


@pytest.mark.parametrize("start", STARTS)
def test_nothing_heavy_is_imported_in_vain(start, demo_store):
    code, needed = STARTS[start]
    code = f"import sys\nSTORE = {str(demo_store)!r}\n{code}\n"
    code += f"print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert set(ast.literal_eval(out.stdout)) <= needed
