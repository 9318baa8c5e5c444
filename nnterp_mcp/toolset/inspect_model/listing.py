"""Numbers and counts as the lines of a tree give them."""

from __future__ import annotations

from collections.abc import Sequence

_RUNS = 5
"""Runs of numbers that are listed."""


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short, `0-3, 8`; where there are many runs, the middle is left out and all are counted."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    listed = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(listed) <= _RUNS:
        return ", ".join(listed)
    return f"{', '.join(listed[: _RUNS - 1])}, … {listed[-1]} ({len(numbers)})"


def magnitude(count: int) -> str:
    """A count of parameters: 576, 36.9 k, 134.5 M, 7.24 G."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
