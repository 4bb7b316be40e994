"""The threads of a download of synapses, and its progress bar."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import numpy as np

from microns_xr.errors import IncompleteDownloadError
from microns_xr.source.synapse_answer import Asker
from microns_xr.source.synapse_folder import RequestFolder
from microns_xr.source.synapse_plan import SynapsePlan

__all__ = ["fetch_all"]

_TICK = 0.1  # seconds between two looks at what the threads have done
_GRACE = 2.0  # seconds that answers on their way have to arrive, when the download has to stop


def fetch_all(
    plan: SynapsePlan,
    asker: Asker,
    folder: RequestFolder,
    *,
    workers: int,
    progress: bool,
    cancel: threading.Event | None,
) -> None:
    """Fetch every open piece of a plan into the folder of its request, several at a time.

    When one thread fails, when the caller is interrupted or `cancel` is set, the others end with
    the answer they wait for, and no later than after two seconds.

    Parameters
    ----------
    plan : SynapsePlan
        What is open.
    asker : Asker
        Asks for a piece.
    folder : RequestFolder
        Where batches go; held by the caller.
    workers : int
        Threads.
    progress : bool
        Whether to show a bar.
    cancel : threading.Event or None
        Stops the download when it is set.

    Raises
    ------
    IncompleteDownloadError
        If it was cancelled.
    Exception
        The first error of a thread, with a note of how far the download came.
    """
    team = _Team(plan, asker, folder)
    # Daemons, not a pool, whose threads would keep the interpreter until their last answer.
    threads = [threading.Thread(target=team.work, daemon=True) for _ in range(workers)]
    with _Bar(plan, asker.n_ids, progress) as bar:
        try:
            _look_at(cancel, plan, folder)
            for thread in threads:
                thread.start()
            while not team.ended.wait(_TICK) and any(thread.is_alive() for thread in threads):
                bar.show(team.pairs)
                _look_at(cancel, plan, folder)
        finally:
            asker.stopped.set()
            plan.stop()
            until = time.monotonic() + _GRACE
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))
            bar.show(team.pairs)
    if team.error is not None:
        team.error.add_note(
            f"{plan.ids_done} of {asker.n_ids} roots are kept in {folder.path}; the same "
            "download_synapses continues there"
        )
        raise team.error


def _look_at(cancel: threading.Event | None, plan: SynapsePlan, folder: RequestFolder) -> None:
    if cancel is not None and cancel.is_set():
        raise IncompleteDownloadError(
            f"the download of {folder.key} was cancelled after {plan.ids_done} roots: run the same "
            "again to continue"
        )


class _Team:
    """What the threads of one download share."""

    def __init__(self, plan: SynapsePlan, asker: Asker, folder: RequestFolder) -> None:
        self._plan, self._asker, self._folder = plan, asker, folder
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.pairs = 0

    def work(self) -> None:
        """Fetch pieces until there is none, or something fails."""
        try:
            self._work()
        except BaseException as error:
            with self._lock:
                # What fails because of the stop is no reason for it.
                if not self._asker.stopped.is_set():
                    self.error = error
                    self._asker.stopped.set()
            self._plan.stop()
        self.ended.set()

    def _work(self) -> None:
        plan = self._plan
        while (piece := plan.next()) is not None:
            found = self._asker.ask(piece, plan.limit)
            if found.parts:
                plan.split(piece, found.parts, found.limit)
                continue
            batch = self._folder.commit(piece, found.rows, found.answered)
            if batch is None:
                return
            plan.finish(piece, batch.rows, batch.answered)
            with self._lock:
                self.pairs += _pairs(found.rows)


def _pairs(rows: dict[str, np.ndarray]) -> int:
    """Return how many different pairs of roots sorted synapses have."""
    pre, post = rows["pre_pt_root_id"], rows["post_pt_root_id"]
    return int(((pre[1:] != pre[:-1]) | (post[1:] != post[:-1])).sum()) + bool(len(pre))


class _Bar:
    """The progress of a plan, on the terminal or in a notebook."""

    def __init__(self, plan: SynapsePlan, n_ids: int, progress: bool) -> None:
        from tqdm.auto import tqdm

        self._plan = plan
        self._bar = tqdm(
            total=n_ids, initial=plan.ids_done, desc="synapses", unit="root", disable=not progress
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, pairs: int) -> None:
        """Bring the bar up to date."""
        self._bar.set_postfix_str(
            f"{self._plan.rows_done:,} synapses, {pairs:,} pairs", refresh=False
        )
        self._bar.update(self._plan.ids_done - self._bar.n)
