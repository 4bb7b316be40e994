"""Whose synapses are asked for: units, nucleus ids or root ids, as root ids of one release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from microns_xr.errors import ReleaseMismatchError, SchemaError
from microns_xr.provenance import release_of

__all__ = ["RootIds", "as_ids", "resolve_ids"]

# The upper bits of a root id are its layer, so that root ids are far above all nucleus ids.
_ROOTS_FROM = 2**50


@dataclass(frozen=True, eq=False)
class RootIds:
    """Root ids to ask for, and what became of the ids that were given.

    Attributes
    ----------
    roots : numpy.ndarray
        int64, sorted, unique, positive.
    kind : {"nucleus", "root"}
        What the ids that were given are.
    counts : dict of str to int
        ``given``; dropped as ``duplicates``, as ``zero`` (no segment), as ``shared_root`` (several
        nuclei on one root); ``unknown`` to the release; and the ``roots`` that are left.
    """

    roots: np.ndarray
    kind: Literal["nucleus", "root"]
    counts: dict[str, int]


def as_ids(ids: Any, name: str = "ids") -> np.ndarray:
    """Return ids as int64, never through float.

    Parameters
    ----------
    ids : array-like of int
        One id or any collection of them; nullable integers without nulls too.
    name : str, optional
        How messages call them.

    Returns
    -------
    numpy.ndarray
        int64, 1-D, in the order given.

    Raises
    ------
    SchemaError
        If they are no whole numbers (floats have lost digits of an 18-digit id), do not fit
        int64, are negative or null, or have more than one dimension.

    Examples
    --------
    >>> as_ids(pd.Series([864691135000000001], dtype="Int64"))
    array([864691135000000001])
    """
    if isinstance(ids, set | frozenset | range):
        ids = sorted(ids)
    try:
        values = np.atleast_1d(np.asarray(ids))
        if values.dtype == object and all(
            isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values.flat
        ):
            values = values.astype(np.int64)
    except (OverflowError, ValueError, TypeError) as error:
        raise SchemaError(f"{name} are no list of ids ({error}): give integers") from error
    if values.size == 0 and values.ndim == 1:
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu":
        raise SchemaError(
            f"{name} are {values.dtype}, expected integers without nulls: an id that was a float "
            "has lost its last digits, so read the ids as int64"
        )
    if values.ndim != 1:
        raise SchemaError(f"{name} have {values.ndim} dims, expected one")
    if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
        raise SchemaError(f"{name} hold numbers beyond int64: these are no ids")
    values = values.astype(np.int64)
    if (values < 0).any():
        raise SchemaError(f"{name} hold negative numbers, such as {values.min()}: these are no ids")
    return values


def resolve_ids(
    ids: Any,
    nuclei: pd.DataFrame | xr.Dataset,
    *,
    name: str = "ids",
    datastack: str | None = None,
    version: int | None = None,
    allow_unknown: bool = False,
) -> RootIds:
    """Return the root ids of units, nucleus ids or root ids, checked against one release.

    Parameters
    ----------
    ids : xarray.Dataset, or array-like of int
        Units (their ``pt_root_id``), nucleus ids or root ids; which of the two numbers are, is
        seen from the table.
    nuclei : pandas.DataFrame or xarray.Dataset
        The nucleus table of the release (``id``, ``pt_root_id``), or its units.
    name : str, optional
        How messages call the ids, such as ``"pre"``.
    datastack, version : optional
        The release, for messages and for the check of units; units as `nuclei` say it themselves.
    allow_unknown : bool, optional
        Whether root ids that are not in the table are asked for all the same; nucleus ids that
        are not in it have no root and are left out.

    Returns
    -------
    RootIds
        Sorted and unique; every id counts once, root 0 is left out, and both are counted.

    Raises
    ------
    ReleaseMismatchError
        If ids are unknown to the release, or units are of another release.
    SchemaError
        If they are no ids, nucleus ids and root ids are mixed, or none is left.

    Examples
    --------
    >>> nuclei = pd.DataFrame({"id": [1, 2, 3], "pt_root_id": [864691135000000001, 0,
    ...     864691135000000002]})
    >>> found = resolve_ids([1, 2, 1], nuclei)
    >>> found.roots, found.kind, found.counts["zero"]
    (array([864691135000000001]), 'nucleus', 1)
    >>> resolve_ids([864691135000000009], nuclei, name="pre", version=1718)
    Traceback (most recent call last):
    microns_xr.errors.ReleaseMismatchError: pre: 1 of 1 root ids (100 %) ...
    """
    if isinstance(nuclei, xr.Dataset):
        known = (datastack, version)
        datastack, version = release_of(nuclei, "nuclei") if None in known else known
        nuclei_ids = nuclei["nucleus_id"].values
        roots_of = nuclei["pt_root_id"].values
    else:
        nuclei_ids = as_ids(nuclei["id"], "nucleus ids of the nucleus table")
        roots_of = as_ids(nuclei["pt_root_id"].fillna(0), "root ids of the nucleus table")
    release = f"{datastack or 'the release'}{'' if version is None else f' v{version}'}"
    if isinstance(ids, xr.Dataset | xr.DataArray):
        ids = _of_labelled(ids, name, version, datastack)
    given = as_ids(ids, name)
    unique = np.unique(given)
    counts = {"given": len(given), "duplicates": len(given) - len(unique), "zero": 0}
    counts.update(shared_root=0, unknown=0, roots=0)
    is_nucleus, is_root = np.isin(unique, nuclei_ids), np.isin(unique, roots_of) & (unique > 0)
    n_nucleus, n_root = int((is_nucleus & (unique > 0)).sum()), int(is_root.sum())
    large = unique >= _ROOTS_FROM
    by_nucleus = n_nucleus > n_root or (n_nucleus == n_root and not large.any())
    if n_nucleus and n_root and (is_nucleus != is_root)[unique > 0].any():
        raise SchemaError(
            f"{name} hold {n_nucleus} nucleus ids and {n_root} root ids of {release}, expected one "
            "kind: give the nucleus ids, they are the same in every release"
        )
    known_ids = is_nucleus if by_nucleus else is_root | (unique == 0)
    counts["unknown"] = int((~known_ids).sum())
    if counts["unknown"] and not allow_unknown:
        raise ReleaseMismatchError(_unknown(name, unique, known_ids, by_nucleus, release))
    roots = unique
    if by_nucleus:
        order = np.argsort(nuclei_ids, kind="stable")
        roots = roots_of[order][np.searchsorted(nuclei_ids[order], unique[known_ids])]
    counts["zero"] = int((roots == 0).sum())
    positive = roots[roots > 0]
    roots = np.unique(positive)
    counts["shared_root"] = len(positive) - len(roots)
    counts["roots"] = len(roots)
    if not len(roots):
        raise SchemaError(
            f"{name} hold no root id to ask for ({counts}): None asks for all, "
            "ids whose root is 0 have no segment in this release"
        )
    return RootIds(roots, "nucleus" if by_nucleus else "root", counts)


def _of_labelled(
    ids: xr.Dataset | xr.DataArray, name: str, version: int | None, datastack: str | None
) -> np.ndarray:
    """Return the ids of units, which say their release, or of an array of ids, which may not."""
    if isinstance(ids, xr.Dataset) or "materialization_version" in ids.coords:
        of_stack, of_version = release_of(ids, name)
        if (version is not None and of_version != version) or (
            datastack is not None and of_stack != datastack
        ):
            raise ReleaseMismatchError(
                f"{name} is of {of_stack} v{of_version}, but synapses of {datastack} v{version} "
                "were asked for: use units of that release, or their nucleus ids, which are the "
                "same in every release"
            )
    if isinstance(ids, xr.DataArray):
        return np.asarray(ids.values)
    if "pt_root_id" not in ids:
        raise SchemaError(
            f"{name} is a Dataset without pt_root_id, expected units: use Release.units()"
        )
    return np.asarray(ids["pt_root_id"].values)


def _unknown(
    name: str, unique: np.ndarray, known: np.ndarray, by_nucleus: bool, release: str
) -> str:
    n = int((~known).sum())
    share = 100 * n / len(unique)
    word = "nucleus" if by_nucleus else "root"
    some = ", ".join(map(str, unique[~known][:3].tolist()))
    hint = (
        "nucleus ids are the same in every release, so these are none of its"
        if by_nucleus
        else "root ids change between releases, so these are probably of another one, or no neurons"
    )
    return (
        f"{name}: {n} of {len(unique)} {word} ids ({share:.3g} %) are not in the nucleus table of "
        f"{release}, such as {some}: {hint}; use ids of this release, or pass allow_unknown=True"
    )
