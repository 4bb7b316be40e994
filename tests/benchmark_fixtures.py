"""Fixtures of the benchmarks, which `tests/conftest.py` imports.

    python -m pytest tests/benchmarks -n 0 --benchmark-enable [--scale 1]

Ratios within a group hold on a busy machine; absolute times vary. ``--scale 1`` is the whole
connectome where it fits (94,000 neurons, 30 million connections). The ordinary tests run every way
once, on next to nothing, and compare the results.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

PEAK = """
import sys, threading, time
sys.path[:0] = {path!r}
import psutil
{setup}
process, most, running = psutil.Process(), 0, True
def watch():
    global most
    while running:
        most = max(most, process.memory_info().rss)
        time.sleep(0.002)
before, watcher = process.memory_info().rss, threading.Thread(target=watch)
watcher.start()
{run}
running = False
watcher.join()
print("PEAK", (most - before) / 1e6)
"""


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> float:
    """Share of the full size."""
    config = request.config
    return config.getoption("--scale") if config.getoption("benchmark_enable") else 2e-4


@pytest.fixture
def peak(request: pytest.FixtureRequest) -> Callable[[Any, str, str], None]:
    """Note the memory that code takes, in a process of its own, above what its setup took."""

    def measure(benchmark: Any, setup: str, run: str) -> None:
        if not request.config.getoption("benchmark_enable"):
            return
        code = PEAK.format(path=sys.path, setup=setup, run=run)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        benchmark.extra_info["peak MB"] = round(float(done.stdout.split("PEAK")[1]))

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what pytest-benchmark keeps for its files only."""
    session = getattr(config, "_benchmarksession", None)
    noted = [bench for bench in session.benchmarks if bench.extra_info] if session else []
    if noted:
        terminalreporter.section("benchmark: more than time")
    for bench in noted:
        text = ", ".join(f"{name} {value}" for name, value in bench.extra_info.items())
        terminalreporter.write_line(f"{bench.name}: {text}")
