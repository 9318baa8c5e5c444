"""Jobs and growths, measured."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, isnan
from pathlib import Path
from typing import Any

from .jobs import OURS, Growth, Job, Target
from .players import Failed, Player, Setting, playing
from .spread import Spread, exponent, ratio


@dataclass(frozen=True)
class Measured:
    """A job, measured.

    Attributes:
        job: The job.
        seconds: By contestant, one for each repeat.
        peaks: Bytes of memory above the loaded model, by contestant, in a process of their own.
        differences: The largest difference of any number from raw's, by contestant.
        failures: What went wrong, by contestant.
    """

    job: Job
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """Why the job has failed, in words: a contestant of ours did, or its numbers are not raw's."""
        failed = [f"{name}: {reason}" for name, reason in self.failures.items() if name in (*OURS, "raw")]
        wrong = [
            f"{name} differs from raw by {difference:.3g}, and may by {self.job.tolerance:g}"
            for name, difference in self.differences.items()
            if name in OURS and not difference <= self.job.tolerance
        ]
        return failed + wrong

    def compare(self, who: str, than: str) -> Spread | None:
        """How many times the time of another a contestant takes; None where one of them has no times."""
        if who not in self.seconds or than not in self.seconds:
            return None
        return ratio(self.seconds[who], self.seconds[than])

    def value_of(self, target: Target) -> float | None:
        """What came of a target; None where it was not measured."""
        if target.measure == "peak":
            known = target.than is not None and {target.who, target.than} <= self.peaks.keys()
            return self.peaks[target.who] / max(1, self.peaks[target.than]) if known and target.than else None
        if target.than is None:
            return Spread.of(self.seconds[target.who]).median if target.who in self.seconds else None
        compared = self.compare(target.who, target.than)
        return None if compared is None else compared.median


def measure(
    job: Job, players: Mapping[str, Player], setting: Setting, repeats: int, log: Path, peaks: bool
) -> Measured:
    """Compares the contestants' numbers, then takes their times in turns.

    Args:
        job: The job.
        players: The contestants that take part, running.
        setting: For the processes in which memory is measured.
        repeats: How often.
        log: Where contestants may write.
        peaks: Whether to measure memory too.
    """
    found = Measured(job)
    names = [name for name in job.by if name in players]
    numbers: dict[str, list[float]] = {}
    for name in names:
        with _noting(found, name):
            numbers[name] = players[name].ask("numbers", job.play, job.work)
    if "raw" in numbers:
        said = {name: values for name, values in numbers.items() if name != "raw" and values}
        found.differences.update({name: difference(values, numbers["raw"]) for name, values in said.items()})
    times: dict[str, list[float]] = {name: [] for name in numbers}
    for turn in range(min(repeats, job.repeats or repeats)):
        for name in _from(turn, [name for name in numbers if name not in found.failures]):
            with _noting(found, name):
                times[name].append(players[name].ask("seconds", job.play, job.work))
    found.seconds.update({name: taken for name, taken in times.items() if taken and name not in found.failures})
    for name in numbers if peaks and job.peak else ():
        with _noting(found, name), playing(name, setting, log) as player:
            found.peaks[name] = player.ask("peak", job.play, job.work)
    return found


def difference(ones: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference between numbers in the same order; infinite where they do not correspond."""
    if len(ones) != len(others):
        return inf
    gaps = [abs(one - other) for one, other in zip(ones, others, strict=True)]
    return inf if any(map(isnan, gaps)) else max(gaps, default=0.0)


@contextmanager
def _noting(found: Measured, name: str) -> Generator[None]:
    try:
        yield
    except Failed as error:
        found.failures[name] = str(error)


def _from(turn: int, names: Sequence[str]) -> list[str]:
    """The names in turn: in each repeat another one begins."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


@dataclass(frozen=True)
class Grown:
    """A growth, measured.

    Attributes:
        growth: What grows.
        seconds: The median by contestant, along the axis.
        peaks: Bytes of memory above the loaded model, likewise; empty where the system cannot tell.
    """

    growth: Growth
    seconds: dict[str, list[float]]
    peaks: dict[str, list[int]]

    def exponent(self, name: str, costs: Sequence[float]) -> float:
        """The k with which a cost grows as the axis to the power of k."""
        return exponent(self.growth.values, [max(cost, 1e-9) for cost in costs])


def grow(growth: Growth, setting: Setting, repeats: int, log: Path, peaks: bool) -> Grown:
    """Measures each point in processes of its own.

    Raises:
        Failed: A contestant could not.
    """
    found = Grown(growth, {name: [] for name in growth.by}, {name: [] for name in growth.by if peaks})
    for value in growth.values:
        with _at(growth, value, setting) as here:
            for name in growth.by:
                with playing(name, here, log) as player:
                    asked: tuple[str, Any] = (growth.play, growth.work(value))
                    if peaks:
                        found.peaks[name].append(player.ask("peak", *asked))
                    player.ask("numbers", *asked)
                    times = [player.ask("seconds", *asked) for _ in range(repeats)]
                    found.seconds[name].append(Spread.of(times).median)
    return found


@contextmanager
def _at(growth: Growth, value: int, setting: Setting) -> Generator[Setting]:
    """The setting at one point of the axis: another model where layers grow."""
    if growth.axis != "layers":
        yield setting
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        from .tiny import save_tiny

        save_tiny(value, Path(folder))
        yield replace(setting, model=folder, folder=folder)
