"""What a download of synapses asks for, and the key that names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SynapseRequest"]

FORMAT = 1
POSITION = "ctr_pt_position"


@dataclass(frozen=True, eq=False)
class SynapseRequest:
    """What is asked for.

    Attributes
    ----------
    datastack, version, table : str, int, str
        The release and its table of synapses.
    pre, post : numpy.ndarray or None
        Root ids, int64, sorted, unique; None for all.
    positions : bool
        Whether with the positions, in voxels.

    Examples
    --------
    >>> request = SynapseRequest("minnie65_public", 1718, "synapses_pni_2", None, np.array([7, 9]))
    >>> request.key
    'preall-post2-3ef4c4eb4a9a'
    >>> request.columns
    ('id', 'pre_pt_root_id', 'post_pt_root_id', 'size')
    """

    datastack: str
    version: int
    table: str
    pre: np.ndarray | None
    post: np.ndarray | None
    positions: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the result, all int64."""
        places = tuple(f"{POSITION}_{axis}" for axis in "xyz") if self.positions else ()
        return ("id", "pre_pt_root_id", "post_pt_root_id", "size", *places)

    @property
    def selected(self) -> list[str]:
        """Columns as the service is asked for them."""
        return [*self.columns[:4], *([POSITION] if self.positions else [])]

    def record(self) -> dict[str, Any]:
        """All that tells it from other requests, the ids as their sha256."""
        return {
            "format": FORMAT,
            "datastack": self.datastack,
            "version": self.version,
            "table": self.table,
            "columns": list(self.columns),
            "pre": _digest(self.pre),
            "post": _digest(self.post),
        }

    @property
    def key(self) -> str:
        """Name of the request: the numbers of its ids, and a hash of all of it."""
        record = json.dumps(self.record(), sort_keys=True)
        digest = hashlib.sha256(record.encode()).hexdigest()[:12]
        pre, post = ("all" if i is None else str(len(i)) for i in (self.pre, self.post))
        return f"pre{pre}-post{post}-{'positions-' if self.positions else ''}{digest}"


def _digest(ids: np.ndarray | None) -> str | None:
    return None if ids is None else hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
