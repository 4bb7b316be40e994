"""Exceptions of microns_xr, each of which is also a subclass of a built-in exception.

Every message names the variable, what was found, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable
from numbers import Integral
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

__all__ = [
    "DroppedRowsWarning",
    "IncompleteDownloadError",
    "MicronsXrError",
    "ReleaseMismatchError",
    "SchemaError",
    "SourceError",
    "StoreFormatError",
    "UnknownLabelError",
]


def __dir__() -> list[str]:
    return __all__


class MicronsXrError(Exception):
    """Base class of the errors that microns_xr raises."""


class SchemaError(MicronsXrError, ValueError):
    """A table, Dataset or argument does not have the columns, dims, dtypes or units it needs."""


class ReleaseMismatchError(MicronsXrError, ValueError):
    """Two objects come from different releases, or one does not state its release."""


class UnknownLabelError(MicronsXrError, KeyError):
    """A requested name or id is not in the data."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which makes the message hard to read.
        return str(self.args[0]) if self.args else ""


class SourceError(MicronsXrError, OSError):
    """A source of raw tables does not have the requested data, or cannot return them."""


class IncompleteDownloadError(SourceError):
    """A download ended before all requested data had arrived."""


class StoreFormatError(MicronsXrError, ValueError):
    """A store on disk does not follow the format, or writing it would violate the format."""


class DroppedRowsWarning(UserWarning):
    """All or most rows of a table are of neurons that are not in the units or nuclei."""


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_REPEATED = "leave it out, since failed requests are repeated, and run the same again to continue"
_EACH_SIDE = "give conditions of each side, such as pre={'layer': 'L4'}, post={'axon': 'clean'}"
# Keywords of the pandas package microns-datacleaner (now microns-combiner), and what to do instead.
_OLD_KEYWORDS = {
    "download_policy": "call download(policy)",
    "extra_tables": "call download('extra', extra=[...])",
    "custom_tables": "use tables=",
    "functional_data": "use functional= ('match' or 'best_only')",
    "method": "use on=",
    "unit_table": "pass the units first",
    "new_table": "use table=",
    "presynaptic_set": "use pre=",
    "postsynaptic_set": "use post=",
    "pre_ids": "use pre=",
    "post_ids": "use post=",
    "pre_id": "use nucleus_id=",
    "post_id": "use nucleus_id=",
    "only_id": "leave it out, the ids are the coordinate of the result",
    "connections": "pass the connectivity first",
    "syn_table_name": "leave it out, the result has a key, which connectivity(request) takes",
    "neurs_per_steps": "use batch=",
    "start_index": _REPEATED,
    "max_retries": _REPEATED,
    "delay": _REPEATED,
    "chunksize": "leave it out",
    "drop_synapses_duplicates": "call connectivity() for sums of pairs, synapses() for synapses",
    "proofread": "use axon= and dendrite=, such as axon='clean'",
    **dict.fromkeys(("layer", "tuning", "brain_area", "cell_type"), _EACH_SIDE),
}


def answer_old_keywords(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function answer keywords of the pandas package with its own."""
    own = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        for name in keywords:
            if name in _OLD_KEYWORDS and name not in own:
                raise TypeError(old_keyword(function.__qualname__, name))
        return function(*args, **keywords)

    return call


def old_keyword(function: str, name: str) -> str:
    """Return the answer to a keyword of the pandas package; empty for any other."""
    if name not in _OLD_KEYWORDS:
        return ""
    what = f"{function}() has no argument {name!r}, which is one of microns-datacleaner"
    return f"{what}: {_OLD_KEYWORDS[name]}"


def nearest(name: object, known: Iterable[object]) -> str:
    """Return the part of a message that lists similar known names; empty if there are none."""
    by_lower = {str(word).lower(): str(word) for word in known}
    lower = str(name).lower()
    near = difflib.get_close_matches(lower, list(by_lower), cutoff=0.5)
    if not near and len(lower) > 1:  # an abbreviation
        near = [word for word in by_lower if word.startswith(lower)][:3]
    return f"; nearest: {', '.join(by_lower[word] for word in near)}" if near else ""


def warn_of_dropped_rows(message: str) -> None:
    """Warn that all or most rows of a table were dropped; a few are counted instead."""
    warn_user(message, DroppedRowsWarning)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning for the user's line, from however deep in the package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def unknown_label(
    what: str,
    name: object,
    known: Iterable[object],
    hint: str = "",
    error: type[MicronsXrError] = UnknownLabelError,
) -> MicronsXrError:
    """Return the error to raise for a name that is not among the known ones.

    `what` begins the message ("units has no variable"), `hint` ends it with the call to make.
    """
    ordered = sorted(known, key=str) if isinstance(known, set | frozenset) else known
    words = [str(word) for word in ordered]
    more = f" and {len(words) - 40} more" if len(words) > 40 else ""
    return error(
        f"{what} {name!r}, expected one of {', '.join(words[:40])}{more}{nearest(name, words)}"
        + (f": {hint}" if hint else "")
    )


def require_one_of(name: str, value: object, words: Collection[object]) -> None:
    """Raise unless an argument has one of the allowed values."""
    # Arrays and tables compare element by element.
    if not isinstance(value, Hashable) or value not in words:
        raise unknown_label(f"{name} is", value, words, error=SchemaError)


def require_instance(
    name: str, value: object, kinds: type | tuple[type, ...], expected: str
) -> None:
    """Raise unless an argument is of one of some kinds."""
    if not isinstance(value, kinds):
        hint = part_of(value, name)
        raise SchemaError(
            f"{name} is a {type(value).__name__}, expected {expected}{hint and f': {hint}'}"
        )


def part_of(value: Any, name: str) -> str:
    """Return the call that gives an argument, if a tree or release that has it was passed."""
    kind = type(value).__name__
    if kind == "Release":
        method = name if name in ("connectivity", "layers", "functional", "synapses") else "units"
        return f"pass release.{method}()"
    if kind != "DataTree":
        return ""
    parts = list(value.children)
    for part in (name, "units", *parts):
        if part in parts:
            return f"pass tree[{part!r}].to_dataset()"
    return "pass its .to_dataset()"


def names_of(name: str, value: Any) -> list[str]:
    """Return an argument that is one name or several as a list."""
    try:
        names = [value] if isinstance(value, str) else list(value)
    except TypeError:
        names = [value]
    if not all(isinstance(one, str) for one in names):
        raise SchemaError(f"{name} is {value!r}, expected a name or a list of names")
    return names


def whole_number(name: str, value: Any, least: int) -> int:
    """Return an argument as an int that is at least `least`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) < 2**63
    ):
        raise SchemaError(f"{name} is {value!r}, expected a whole number from {least} up")
    return int(value)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that the machine is short of memory or of threads."""
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)


def import_optional(name: str, extra: str) -> ModuleType:
    """Import a package that only `extra` of the optional dependencies installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MicronsXrError(
            f"{package} is not installed ({error}): pip install 'microns-xr[{extra}]', or in a "
            f"clone pip install '.[{extra}]'"
        ) from error
