"""How a request is asked with the fewest rows and bytes: by which side, and who filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from microns_xr.source.synapse_plan import ROW_LIMIT

__all__ = ["SHORT_LIST", "Side", "Strategy", "choose_strategy"]

Side = Literal["pre", "post"]
Count = Callable[[Mapping[Side, np.ndarray]], int]

# A list of ids up to this length may go along with every batch; a longer one is applied here.
SHORT_LIST = 5_000
_ID_BYTES = 20  # of an id in JSON
_ROW_BYTES = 32  # of a synapse in an answer: three ids, two supervoxels, a size, compressed
_SAMPLE = 64


@dataclass(frozen=True)
class Strategy:
    """How a request is asked.

    Attributes
    ----------
    side : {"pre", "post"} or None
        The side whose ids make the batches; None where neither side is restricted.
    send_other : bool
        Whether the ids of the other side go along with a batch. If not, they are applied here.
    rows, ids : int
        Rows of an answer, as counted, to how many ids.
    pays_from : int
        The ids of the other side go along only with batches of at least so many rows: smaller ones
        are so many that the ids weigh more than the rows they spare.
    """

    side: Side | None
    send_other: bool
    rows: int
    ids: int
    pays_from: int = 0

    def sends_other(self, limit: int) -> bool:
        """Whether the ids of the other side go along, under a row limit."""
        return self.send_other and limit // 2 >= self.pays_from


def choose_strategy(pre: np.ndarray | None, post: np.ndarray | None, count: Count) -> Strategy:
    """Choose the side that gives fewer rows, and where the ids of the other one are applied.

    Counts the rows of a few evenly spaced ids of each side. The list of the other side goes along
    only if it is short (`SHORT_LIST`) and its bytes are fewer than those of the rows it spares.

    Parameters
    ----------
    pre, post : numpy.ndarray or None
        Root ids, int64, sorted, unique.
    count : callable
        Gives the number of rows for ids by side.

    Returns
    -------
    Strategy
        Post where both sides come out alike.

    Examples
    --------
    >>> ids = np.arange(1, 10)
    >>> choose_strategy(None, ids, lambda filters: 30 * len(filters["post"]))
    Strategy(side='post', send_other=False, rows=270, ids=9, pays_from=0)
    """
    asked: dict[Side, np.ndarray] = {}
    for side, ids in (("post", post), ("pre", pre)):
        if ids is not None:
            asked[side] = ids  # type: ignore[index]
    if not asked:
        return Strategy(None, False, count({}), 1)
    samples = {side: _evenly(ids) for side, ids in asked.items()}
    rows = {side: count({side: sample}) for side, sample in samples.items()}
    all_rows = {side: rows[side] * len(asked[side]) / len(samples[side]) for side in asked}
    side = min(asked, key=lambda s: all_rows[s])  # the first, post, where they are alike
    plain = Strategy(side, False, rows[side], len(samples[side]))
    others = [s for s in asked if s != side]
    if not others or len(asked[others[0]]) > SHORT_LIST or not rows[side]:
        return plain
    other = asked[others[0]]
    kept = count({side: samples[side], others[0]: other})
    spared = rows[side] - kept
    if spared <= 0:
        return plain
    list_bytes = 2 * len(other) * _ID_BYTES  # once to count, once to ask
    # The list that goes along with n rows spares this many others for each of them.
    pays_from = math.ceil(list_bytes / _ROW_BYTES * kept / spared)
    total = all_rows[side] / rows[side]
    if list_bytes >= total * spared * _ROW_BYTES or pays_from > ROW_LIMIT // 2:
        return plain
    return Strategy(side, True, kept, len(samples[side]), pays_from)


def _evenly(ids: np.ndarray) -> np.ndarray:
    n = min(_SAMPLE, len(ids))
    return ids[np.arange(n) * len(ids) // n]
