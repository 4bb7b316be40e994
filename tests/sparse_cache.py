"""Keep what pydata-sparse compiles, as our own kernels are kept."""

from __future__ import annotations

import sys

import sparse  # noqa: F401
from numba.core.dispatcher import Dispatcher


def keep_compiled() -> None:
    """Cache the kernels of pydata-sparse on disk: every process compiles them for 30 s otherwise."""
    modules = [module for name, module in sys.modules.items() if name.startswith("sparse.")]
    for value in {id(v): v for module in modules for v in vars(module).values()}.values():
        if isinstance(value, Dispatcher):
            value.enable_caching()
