"""Choosing units and connections by the words of their variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.connectivity.subset import take
from microns_xr.errors import SchemaError, UnknownLabelError, nearest_words
from microns_xr.provenance import add_history, require_same_release
from microns_xr.schema import validate

__all__ = ["select_connections", "select_units"]

Words = str | Iterable[str] | None

_PLAIN = ("layer", "brain_area", "cell_type", "classification_system")
_EXTENDED_STRATEGIES = {
    # Before release 1078 the table says "extended" and not how far.
    "axon": ("extended",),
    "dendrite": ("extended", "dendrite_extended"),
}


def select_units(
    units: xr.Dataset,
    *,
    layer: Words = None,
    brain_area: Words = None,
    cell_type: Words = None,
    classification_system: Words = None,
    tuning: Words = None,
    axon: Words = None,
    dendrite: Words = None,
) -> xr.Dataset:
    """Choose the units that fit all conditions.

    Parameters
    ----------
    units : xarray.Dataset
        Units.
    layer, brain_area, cell_type, classification_system : str or collection of str, optional
        Words of these variables; any of several fits.
    tuning : str or collection of str, optional
        ``"matched"`` (any tuning type but ``not_matched``), ``"not_matched"``, or a word of
        ``tuning_type``.
    axon, dendrite : str or collection of str, optional
        ``"clean"`` (proofread in any way: any strategy but ``none``), ``"extended"`` (an axon that
        is partial or full; in releases before 1078 the status ``extended``), a word of
        ``axon_completeness``, or a strategy as the table writes it.

    Returns
    -------
    xarray.Dataset
        The units that fit, in their order; possibly none.

    Raises
    ------
    UnknownLabelError
        If a word is nowhere in the data, with the nearest words that are.
    SchemaError
        If a variable is absent, or no functional table was joined and `tuning` is asked for.

    Examples
    --------
    >>> def words(*w): return ("nucleus_id", np.array(w, dtype=object))
    >>> units = xr.Dataset(
    ...     {"layer": words("L2/3", "L4", "L4"), "cell_type": words("23P", "4P", "BC")},
    ...     coords={"nucleus_id": [1, 2, 3]})
    >>> select_units(units, layer="L4", cell_type=["4P", "23P"]).nucleus_id.values
    array([2])
    >>> select_units(units, layer="L23")
    Traceback (most recent call last):
    microns_xr.errors.UnknownLabelError: layer 'L23' is nowhere in the units; nearest: L2/3; ...
    """
    if not isinstance(units, xr.Dataset) or "nucleus_id" not in units.dims:
        raise SchemaError("units is no Dataset over nucleus_id: use mx.Release(...).units()")
    keep = np.ones(units.sizes["nucleus_id"], dtype=bool)
    asked: dict[str, list[str]] = {}
    plain = dict(zip(_PLAIN, (layer, brain_area, cell_type, classification_system), strict=True))
    for name, words in plain.items():
        if words is not None:
            asked[name] = _listed(words)
            keep &= _any_word(units, name, asked[name])
    if tuning is not None:
        asked["tuning"] = _listed(tuning)
        keep &= _tuning(units, asked["tuning"])
    for name, words in (("axon", axon), ("dendrite", dendrite)):
        if words is not None:
            asked[name] = _listed(words)
            keep &= _proofread(units, name, asked[name])
    result = units.isel(nucleus_id=np.flatnonzero(keep))
    return add_history(result, f"select_units({_shown(asked)})", source=units)


def _shown(asked: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{k}={v[0] if len(v) == 1 else v!r}" for k, v in asked.items())


def _listed(words: Any) -> list[str]:
    if isinstance(words, str):
        return [words]
    if isinstance(words, xr.DataArray):
        words = words.values
    if isinstance(words, np.ndarray) and not words.ndim:
        words = words.item()
    if isinstance(words, str):
        return [words]
    if not isinstance(words, Iterable):
        raise SchemaError(f"expected words, found {words!r} ({type(words).__name__})")
    listed = list(words)
    wrong = [w for w in listed if not isinstance(w, str)]
    if wrong:
        raise SchemaError(f"expected words, found {wrong[0]!r} ({type(wrong[0]).__name__})")
    return [str(w) for w in listed]


def _column(units: xr.Dataset, name: str) -> tuple[np.ndarray, list[str]]:
    if name not in units:
        raise SchemaError(f"units has no {name}, found {sorted(map(str, units.data_vars))}")
    codes, words = pd.factorize(units[name].values)
    return codes, [str(w) for w in words]


def _any_word(units: xr.Dataset, name: str, wanted: list[str]) -> np.ndarray:
    codes, words = _column(units, name)
    for word in wanted:
        if word not in words:
            _raise_unknown(units, name, word, words)
    return np.isin(codes, [i for i, w in enumerate(words) if w in wanted])


def _raise_unknown(units: xr.Dataset, name: str, word: str, words: list[str]) -> None:
    hint = ""
    if name == "cell_type" and "classification_system" in units:
        classes = _column(units, "classification_system")[1]
        if word in classes:
            hint = f": it is a class, use classification_system={word!r}"
    near = nearest_words(word, words)
    raise UnknownLabelError(
        f"{name} {word!r} is nowhere in the units"
        + (hint or (f"; nearest: {', '.join(near)}" if near else ""))
        + f"; found: {', '.join(sorted(words)[:40])}"
    )


def _tuning(units: xr.Dataset, wanted: list[str]) -> np.ndarray:
    codes, words = _column(units, "tuning_type")
    if set(words) == {"unknown"}:
        raise SchemaError(
            "tuning_type is 'unknown' for every unit, because no functional table was joined: "
            "build the units with functional='match' or 'best_only'"
        )
    accepted: set[str] = set()
    for word in wanted:
        if word == "matched":
            accepted |= {w for w in words if w not in ("not_matched", "unknown")}
        elif word == "not_matched" or word in words:
            accepted.add(word)
        else:
            _raise_unknown(units, "tuning_type", word, [*words, "matched", "not_matched"])
    return np.isin(codes, [i for i, w in enumerate(words) if w in accepted])


def _proofread(units: xr.Dataset, part: str, wanted: list[str]) -> np.ndarray:
    codes, words = _column(units, f"strategy_{part}")
    has_completeness = part == "axon" and "axon_completeness" in units
    degree_codes, degrees = _column(units, "axon_completeness") if has_completeness else (codes, [])
    keep = np.zeros(len(codes), dtype=bool)
    for word in wanted:
        strategies = {word} & set(words)
        completeness = {word} & set(degrees)
        if word == "clean":
            # Completeness is "clean" too where the status says so without naming a strategy.
            strategies = set(words) - {"none"}
            completeness = set(degrees) - {"none"}
        elif word == "extended":
            strategies = set(words) & set(_EXTENDED_STRATEGIES[part])
            completeness = set(degrees) & {"partial", "full"}
        elif word == "none":
            strategies, completeness = ({"none"}, set()) if not degrees else (set(), {"none"})
        elif not strategies and not completeness:
            vocabulary = [*words, *degrees, "clean", "extended"]
            _raise_unknown(units, f"strategy_{part}", word, list(dict.fromkeys(vocabulary)))
        keep |= np.isin(codes, [i for i, w in enumerate(words) if w in strategies])
        if degrees:
            keep |= np.isin(degree_codes, [i for i, w in enumerate(degrees) if w in completeness])
    return keep


def select_connections(
    connectivity: xr.Dataset,
    units: xr.Dataset,
    *,
    pre: Mapping[str, Words] | None = None,
    post: Mapping[str, Words] | None = None,
    check_release: bool = True,
) -> xr.Dataset:
    """Choose the connections between two populations.

    Parameters
    ----------
    connectivity : xarray.Dataset
        Connectivity.
    units : xarray.Dataset
        Units of the same release.
    pre, post : mapping, optional
        Conditions of `select_units` for either side, such as ``{"layer": "L4"}``; None takes all.
    check_release : bool, optional
        False skips the release check.

    Returns
    -------
    xarray.Dataset
        Connectivity whose axes are the neurons of the matrix that fit.

    Raises
    ------
    UnknownLabelError
        If a word is nowhere in the units, or a condition does not exist.
    ReleaseMismatchError
        If the two are of different releases.

    Examples
    --------
    >>> import microns_xr as mx
    >>> release = mx.Release(1718, source=mx.DemoSource(1718, n_nuclei=500))
    >>> l4 = mx.select_connections(release.connectivity(), release.units(), post={"layer": "L4"})
    >>> l4.sizes["post_nucleus_id"] < l4.sizes["pre_nucleus_id"]
    True
    """
    validate(connectivity, "connectivity")
    require_same_release(
        ("connectivity", connectivity), ("units", units), check_release=check_release
    )
    ids: dict[str, np.ndarray | None] = {"pre": None, "post": None}
    for side, conditions in (("pre", pre), ("post", post)):
        if conditions is None:
            continue
        known = (*_PLAIN, "tuning", "axon", "dendrite")
        for name in conditions:
            if name not in known:
                near = ", ".join(nearest_words(name, known))
                raise UnknownLabelError(
                    f"{side} has the condition {name!r}, expected some of {known}"
                    + (f"; nearest: {near}" if near else "")
                )
        chosen = select_units(units, **conditions)["nucleus_id"].values
        axis = connectivity[f"{side}_nucleus_id"].values
        ids[side] = axis[np.isin(axis, chosen)]
    result = take(connectivity, ids["pre"], ids["post"])
    return add_history(
        result, f"select_connections(pre={pre!r}, post={post!r})", source=connectivity
    )
