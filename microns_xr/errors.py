"""Exceptions of microns_xr: few classes, each also one of Python's own.

Every message names the variable, what was found, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

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


class MicronsXrError(Exception):
    """Base of every error that microns_xr raises on purpose."""


class SchemaError(MicronsXrError, ValueError):
    """A table, Dataset or argument does not have the columns, dims, dtypes or units it needs."""


class ReleaseMismatchError(MicronsXrError, ValueError):
    """Two objects come from different releases, or one does not say which it is from."""


class UnknownLabelError(MicronsXrError, KeyError):
    """A word or an id was asked for that the data do not hold."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which makes a sentence unreadable.
        return str(self.args[0]) if self.args else ""


class SourceError(MicronsXrError, OSError):
    """A source of raw tables does not hold, or does not give, what was asked for."""


class IncompleteDownloadError(SourceError):
    """A download ended before everything that was asked for had arrived."""


class StoreFormatError(MicronsXrError, ValueError):
    """A store on disk does not follow the format, or would be written against its rules."""


class DroppedRowsWarning(UserWarning):
    """Rows of a table were left out because they name no neuron of the units; they are counted."""


def nearest_words(word: object, words: Iterable[object], n: int = 3) -> list[str]:
    """Return up to `n` of `words` that are spelled most like `word`."""
    by_lower = {str(w).lower(): str(w) for w in words}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), n=n, cutoff=0.5)
    return [by_lower[w] for w in near]


def unknown_label(
    what: str,
    name: object,
    known: Iterable[object],
    hint: str = "",
    error: type[MicronsXrError] = UnknownLabelError,
) -> MicronsXrError:
    """Return the error to raise for a name that is not among the known ones.

    `what` begins the sentence ("units has no variable"), `hint` ends it with the call to make.
    """
    ordered = sorted(known, key=str) if isinstance(known, set | frozenset) else known
    words = [str(word) for word in ordered]
    more = f" and {len(words) - 40} more" if len(words) > 40 else ""
    near = ", ".join(nearest_words(name, words))
    return error(
        f"{what} {name!r}, expected one of {', '.join(words[:40])}{more}"
        + (f"; nearest: {near}" if near else "")
        + (f": {hint}" if hint else "")
    )


def import_optional(name: str, extra: str) -> ModuleType:
    """Import a package that only `extra` of the optional dependencies installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MicronsXrError(
            f"{package} is not installed ({error}): pip install 'microns-xr[{extra}]'"
        ) from error
