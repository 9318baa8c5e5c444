"""What happened while clients called, and what the processes held before and after."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.serving import workers_of


@dataclass
class Tally:
    """What happened, from all clients; and what every run that was seen done had answered."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    finished: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, example: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            if example:
                self.examples.setdefault(what, example)

    def finish(self, answer: Mapping[str, Any]) -> None:
        with self._lock:
            if answer.get("run_id"):
                self.finished[answer["run_id"]] = answer

    @property
    def failed(self) -> bool:
        return any(self.counts[what] for what in ("wrong answers", "hung calls", "internal errors", "lost runs"))


@dataclass(frozen=True)
class Load:
    """What the processes hold: memory in MB, file descriptors."""

    server: tuple[float, int]
    workers: list[tuple[float, int]]

    @classmethod
    def of(cls, process: psutil.Process) -> Load:
        return cls(_held(process), [_held(worker) for worker in workers_of(process)])

    def __str__(self) -> str:
        workers = ", ".join(f"{memory:.0f} MB {files} files" for memory, files in self.workers)
        return f"server {self.server[0]:.0f} MB {self.server[1]} files; workers {workers}"


def _held(process: psutil.Process) -> tuple[float, int]:
    return process.memory_info().rss / 1e6, process.num_fds()


def report(tally: Tally, took: float, clients: int, before: Load, after: Load) -> None:
    """Prints the table."""
    print(f"\n| {clients} clients, {took:.0f} s | |\n|---|---|")
    always = ("calls", "wrong answers", "hung calls", "internal errors", "lost runs", "client errors")
    for what in dict.fromkeys((*always, *sorted(tally.counts))):
        print(f"| {what} | {tally.counts[what]} |")
    print(f"| finished runs read at the end | {len(tally.finished)} |")
    print(f"| before | {before} |\n| after | {after} |")
    for what, example in tally.examples.items():
        print(f"\nfirst of {what}: {example}")
