"""The threads of a call, next to other processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import psutil
import pytest
import torch

from nnterp_mcp.worker.threads import Threads, threads_for


@pytest.mark.parametrize(
    ("others", "cores", "most", "threads"),
    [
        (0.0, 2, 2, 2),
        (0.3, 2, 2, 2),
        (0.7, 2, 2, 1),
        (2.0, 2, 2, 1),
        (9.8, 16, 8, 6),
        (3.0, 16, 8, 8),
        (40.0, 16, 8, 1),
    ],
)
def test_a_call_gets_the_cores_that_others_leave(others: float, cores: int, most: int, threads: int) -> None:
    assert threads_for(others, cores, most) == threads


@contextmanager
def busy(count: int) -> Generator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_other_processes_are_seen_and_the_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = psutil.cpu_count() or 1
    threads = Threads()
    with busy(cores):
        end = time.monotonic() + 30
        while time.monotonic() < end and threads._others < 0.4 * cores:  # pyright: ignore[reportPrivateUsage]
            sum(range(100_000))  # own work on one core, for which others would be taken
        assert 0.4 * cores <= threads._others <= 1.1 * cores  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(("others", "fixed", "inside"), [(0.0, False, 2), (100.0, False, 1), (100.0, True, 2)])
def test_a_shared_process_has_its_threads_back(
    others: float, fixed: bool, inside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads = Threads()
    if not fixed:
        monkeypatch.delenv("OMP_NUM_THREADS")
    threads._others = others  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads.chosen():
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
