"""Which tables a Dataset of a release was made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import xarray as xr

__all__ = ["sourced"]

Method = TypeVar("Method", bound=Callable[..., xr.Dataset])


def sourced(method: Method) -> Method:
    """Let a method of a release note in ``attrs["source_tables"]`` which tables it has used."""

    @functools.wraps(method)
    def noted(self: Any, *args: Any, **kwargs: Any) -> xr.Dataset:
        before, self._used = self._used, set()
        try:
            result = method(self, *args, **kwargs)
            tables = self._provenance_of(self._used)
        finally:
            self._used |= before
        further = [t for t in result.attrs.get("source_tables", ()) if t not in tables]
        return result.assign_attrs(source_tables=[*tables, *further])

    return cast(Method, noted)
