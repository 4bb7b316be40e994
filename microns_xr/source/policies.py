"""Which tables of a release are downloaded: a policy, and names of one's own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Literal, get_args

from microns_xr.errors import SchemaError, SourceError, UnknownLabelError, nearest_words
from microns_xr.releases import MINIMUM_ROLES, ReleaseSpec

__all__ = ["Policy", "table_names"]

logger = logging.getLogger(__name__)

Policy = Literal["minimum", "all", "extra"]

# Without these there are no units.
_NEEDED_ROLES = ("nucleus", "celltype", "proofreading")


def table_names(
    spec: ReleaseSpec,
    available: Collection[str],
    policy: Policy = "minimum",
    extra: Iterable[str] = (),
) -> list[str]:
    """Return the tables that a policy means.

    Parameters
    ----------
    spec : ReleaseSpec
        The release.
    available : collection of str
        Names of the tables that the source has.
    policy : {"minimum", "all", "extra"}, optional
        ``minimum``: those that units and functional rows are made of. ``extra``: those and the
        tables or roles named in `extra`. ``all``: every table but that of the synapses, which is
        downloaded by the neurons it connects.
    extra : iterable of str, optional
        Names of tables, or roles.

    Returns
    -------
    list of str
        Sorted; each once.

    Raises
    ------
    SchemaError
        If the policy is unknown, or does not go with `extra`.
    UnknownLabelError
        If a table of `extra` is not available.
    SourceError
        If the source lacks a table without which there are no units, or `extra` names the table
        of synapses.

    Examples
    --------
    >>> from microns_xr.releases import release_spec
    >>> spec = release_spec(943)
    >>> available = [*spec.tables.values(), "proofreading_notes"]
    >>> table_names(spec, available, "extra", ["proofreading_notes"])[-2:]
    ['proofreading_notes', 'proofreading_status_public_release']
    >>> len(table_names(spec, available)), len(table_names(spec, available, "all"))
    (5, 7)
    """
    extra = [extra] if isinstance(extra, str) else list(extra)
    if policy not in get_args(Policy):
        raise SchemaError(f"policy is {policy!r}, expected one of {list(get_args(Policy))}")
    if extra and policy != "extra":
        raise SchemaError(f"extra names {extra}, but policy is {policy!r}: use policy='extra'")
    if policy == "extra" and not extra:
        raise SchemaError("policy is 'extra', but extra names no table: name some, or 'minimum'")
    synapses = spec.tables.get("synapses")
    if policy == "all":
        if synapses in available:
            logger.warning(
                "%s is left out of policy 'all': synapses are downloaded by the neurons they "
                "connect, with download_synapses(pre, post)", synapses,
            )  # fmt: skip
        return sorted(set(available) - {synapses})
    return sorted({*_minimum(spec, available), *_extra(spec, available, extra)})


def _minimum(spec: ReleaseSpec, available: Collection[str]) -> list[str]:
    names = []
    for role in MINIMUM_ROLES:
        name = spec.tables.get(role)
        if name is None:
            continue
        if name in available:
            names.append(name)
            continue
        near = nearest_words(name, available)
        problem = f"v{spec.version} has no table {name}, which the release has in the role {role}"
        problem += f"; nearest: {', '.join(near)}" if near else ""
        if role in _NEEDED_ROLES:
            raise SourceError(
                f"{problem}: pass tables={{{role!r}: ...}} if it goes by another name"
            )
        logger.warning("%s: it is left out", problem)
    return names


def _extra(spec: ReleaseSpec, available: Collection[str], extra: Iterable[str]) -> list[str]:
    names = [spec.tables.get(word) or word for word in extra]
    for name in names:
        if name not in available:
            near = nearest_words(name, available)
            raise UnknownLabelError(
                f"there is no table {name!r} in v{spec.version}"
                + (f"; nearest: {', '.join(near)}" if near else "")
                + ": available_tables() lists all"
            )
        if name == spec.tables.get("synapses"):
            raise SourceError(
                f"{name} is the table of all synapses, which is no table to fetch whole: use "
                "download_synapses(pre, post), or the archive"
            )
    return names
