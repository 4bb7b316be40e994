"""From files to rows on disk: blocks are unpacked, parsed and mapped on threads, kept in order."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

from microns_xr.errors import SchemaError, SourceError
from microns_xr.ingest.layout import InputFile, Layout
from microns_xr.ingest.mapping import Mapped, Mapper, Tally
from microns_xr.ingest.reading import BadRow, Job, read_jobs
from microns_xr.store.spill import Spill
from microns_xr.threads import usable_threads

__all__ = ["Space", "bar", "read_files"]

_LARGEST_SUM = 9.2e18
_MARGIN = 1.1
_PAIR_BYTES = 16 + 2 * 10  # on its way to the other copy, and in the two copies (3 to 10 measured)


class Space:
    """Whether the disk has room for what is to come, judged by what has come.

    Parameters
    ----------
    folder : str
        Where everything is written.
    total : int
        Bytes of all files.
    row_bytes : int
        Bytes of disk that a kept row takes at the most, the store included.
    """

    def __init__(self, folder: str, total: int, row_bytes: int) -> None:
        self._folder, self._total, self._row_bytes = folder, total, row_bytes
        self._next = 0

    def check(self, read: int, rows: int, written: int) -> None:
        """Raise if what is left of the files will not fit.

        Parameters
        ----------
        read, rows, written : int
            Bytes of the files that were read, rows that were kept, bytes that were written.

        Raises
        ------
        SourceError
            With the bytes that are needed and those that are free.
        """
        if read < self._next or not read:
            return
        self._next = read + self._total // 20  # what else is on the disk may grow, too
        expected = int(rows * (max(self._total, read) / read) * self._row_bytes * _MARGIN)
        needed = max(0, expected - written)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise SourceError(
                f"{self._folder} has {free / 1e9:.2f} GB free, but about {needed / 1e9:.2f} GB are "
                f"needed for the {rows * self._total // read} rows that are expected to be kept: "
                "free some space or write elsewhere"
            )


def row_bytes(spill_bytes: int, singles_bytes: int) -> int:
    """Return the bytes of disk that a kept row takes, on its way and in the store."""
    return spill_bytes + _PAIR_BYTES + 3 * singles_bytes


def bar(total: int, text: str, unit: str, progress: bool) -> Any:
    """Return a progress bar, which nobody sees where there is no terminal."""
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        desc=text,
        unit=unit,
        unit_scale=True,
        unit_divisor=1024 if unit == "B" else 1000,
        disable=None if progress else True,
    )


def read_files(
    files: list[InputFile],
    layout: Layout,
    mapper: Mapper,
    pairs: Spill,
    singles: Spill | None,
    space: Space,
    *,
    count_bad: bool,
    progress: bool,
) -> Tally:
    """Read all files and spill the rows that are kept.

    Parameters
    ----------
    files, layout, mapper
        What is read, and how.
    pairs, singles : Spill
        Where rows go whose two partners are units, and those with a unit at one end.
    space : Space
        Is asked again and again.
    count_bad : bool
        Whether bad lines are counted; otherwise the first one raises.
    progress : bool
        Whether to show a bar, in bytes of the files.

    Returns
    -------
    Tally
        Counts over all rows.

    Raises
    ------
    SchemaError
        At a bad line, and if sizes sum to more than int64 holds.
    SourceError, IncompleteDownloadError
        If a file is damaged or cut short, or the disk is too small.
    """
    tally = Tally()
    threads = usable_threads(None, 1 << 30)
    before = 0
    total = sum(file.size for file in files)
    with ExitStack() as stack:
        shown = stack.enter_context(bar(total, "reading", "B", progress))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for file in files:
            line, byte = int(file.skip > 0), file.skip
            # Closed at once, whatever happens: a traceback would keep their threads alive.
            jobs = stack.enter_context(closing(read_jobs(file, layout, count_bad=count_bad)))
            results = stack.enter_context(closing(_in_order(pool, mapper, jobs, threads + 1)))
            for mapped, packed in results:
                if mapped.bad is not None and not count_bad:
                    raise SchemaError(_bad_line(file, mapped.bad, line, byte))
                tally.add(mapped.tally)
                _spill(mapped, pairs, singles)
                line += mapped.lines
                byte += mapped.size
                shown.update(before + packed - shown.n)
                kept = max(pairs.rows, singles.rows if singles is not None else 0)
                written = pairs.nbytes + (singles.nbytes if singles is not None else 0)
                space.check(before + packed, kept, written)
            before += file.size
    for name, summed in ((layout.size, tally.total), (layout.count, tally.total_count)):
        if summed > _LARGEST_SUM:
            raise SchemaError(
                f"{name} sums to {summed:.3g}, expected less than 9.2e18, which int64 holds: "
                "check the column; real sizes are below 1e7"
            )
    if tally.bad_lines and not tally.rows:
        raise SchemaError(
            f"all {tally.bad_lines} lines of {files[0].name} are bad: pass on_bad_lines='error' to "
            "see why"
        )
    return tally


def _spill(mapped: Mapped, pairs: Spill, singles: Spill | None) -> None:
    pairs.append(*mapped.pairs)
    if singles is not None and mapped.singles is not None:
        singles.append(*mapped.singles)


def _in_order(
    pool: ThreadPoolExecutor, mapper: Mapper, jobs: Iterable[Job], ahead: int
) -> Generator[tuple[Mapped, int], None, None]:
    """Yield the mapped blocks in their order, of which `ahead` are under way at the most."""
    waiting: deque[tuple[Future[Mapped], int]] = deque()
    try:
        for job in jobs:
            waiting.append((pool.submit(_parse, mapper, job), job.packed))
            while len(waiting) > ahead:
                future, packed = waiting.popleft()
                yield future.result(), packed
        while waiting:
            future, packed = waiting.popleft()
            yield future.result(), packed
    finally:
        for future, _ in waiting:
            future.cancel()


def _parse(mapper: Mapper, job: Job) -> Mapped:
    return mapper.map(job.parse())


def _bad_line(file: InputFile, bad: BadRow, line: int, byte: int) -> str:
    if bad.byte < 0:
        where = f"row {line + bad.line + 1}"
    else:
        of = "unpacked file" if file.kind == "csv.gz" else "file"
        where = f"line {line + bad.line + 1} (at byte {byte + bad.byte} of the {of})"
    return (
        f"{file.name} {where}: {bad.what}; mend the file or fetch it again, or pass "
        "on_bad_lines='count' to leave such lines out"
    )
