"""The number of CPU threads of a call: as many as other processes leave cores for.

Threads of one pass wait for each other some thousand times. Where one of them gets no core, all wait for the next slice
of the scheduler: next to two busy processes, a lens took 3.5 times as long with two threads, and twice with one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import psutil

_EVERY = 0.5
"""Seconds between two looks at the load."""


class Threads:
    """Chooses the threads of each call by the load of the last half second, unless `OMP_NUM_THREADS` is set."""

    def __init__(self) -> None:
        self._others = 0.0
        self._most: int | None = None
        if "OMP_NUM_THREADS" not in os.environ:
            threading.Thread(target=self._watch, daemon=True).start()

    def choose(self) -> None:
        """Sets the threads of the passes that follow."""
        torch = sys.modules.get("torch")  # a load imports it, and says so first
        if torch is None or "OMP_NUM_THREADS" in os.environ:
            return
        most = self._most = self._most or int(torch.get_num_threads())
        wanted = threads_for(self._others, psutil.cpu_count() or 1, most)
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)

    @contextmanager
    def chosen(self) -> Generator[None]:
        """While this lasts, passes run on as many threads as others leave cores for, at most as many as before.

        For a process that is not ours alone: its number of threads is what it was afterwards.
        """
        torch = sys.modules.get("torch")
        before = 1 if torch is None else int(torch.get_num_threads())
        wanted = threads_for(self._others, psutil.cpu_count() or 1, before)
        if torch is None or wanted == before or "OMP_NUM_THREADS" in os.environ:
            yield
            return
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _watch(self) -> None:
        process, pause = psutil.Process(), threading.Event()
        before = _seconds(process)
        while True:
            pause.wait(_EVERY)
            now = _seconds(process)
            passed, others = (new - old for new, old in zip(now, before, strict=True))
            self._others, before = max(0.0, others) / max(passed, 1e-9) * (psutil.cpu_count() or 1), now


@cache
def threads_of_process() -> Threads:
    """The one that watches the load for this process."""
    return Threads()


def threads_for(others: float, cores: int, most: int) -> int:
    """As many threads as cores that others leave, at least one.

    Args:
        others: Cores that other processes use, in the mean over a while.
        cores: The cores of the machine.
        most: Threads on a quiet machine.
    """
    return max(1, min(most, round(cores - others)))


def _seconds(process: psutil.Process) -> tuple[float, float]:
    """Seconds of all cores since the machine started, and those in which they worked for other processes."""
    every, own = psutil.cpu_times(), process.cpu_times()
    idle = every.idle + getattr(every, "iowait", 0.0)
    # Time of guests is part of user time already.
    whole = sum(every) - getattr(every, "guest", 0.0) - getattr(every, "guest_nice", 0.0)
    return whole, whole - idle - own.user - own.system
