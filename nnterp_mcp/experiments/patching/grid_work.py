"""The work of a patching grid: cells that are computed and saved together, and an estimate of their time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.patching.activation_patching import Grid, Patching
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.formatting import seconds

_GROUP = 2**14
"""Tokens that the cells of a group compute, about: some seconds to a minute."""


@dataclass(frozen=True)
class CellRuns:
    """The runs of one cell: the metric of each pair, patched and not."""

    number: int
    values: list[float]
    clean: list[float]
    corrupted: list[float] | None
    by_construction: bool


def join_runs(items: Sequence[CellRuns]) -> Patching:
    """The runs of several cells in one value."""
    first = items[0]
    return Patching(
        torch.tensor(first.clean),
        None if first.corrupted is None else torch.tensor(first.corrupted),
        torch.tensor([one.values for one in items]).T,
        torch.tensor([one.by_construction for one in items]),
    )


def tokens_of(grid: Grid, pairs: Sequence[Pair]) -> list[int]:
    """The tokens that each cell computes, over all pairs: those from its first position on."""
    lengths = [
        [len(pair.clean) - min(span.clean, default=0) for span in spans]
        for pair, spans in zip(pairs, grid.spans, strict=True)
    ]
    if grid.by_unit:
        return [sum(map(max, lengths))] * len(grid.cells)
    by_span = [sum(found) for found in zip(*lengths, strict=True)]
    return [by_span[cell.column] for cell in grid.cells]


def group_cells(tokens: Sequence[int]) -> list[list[int]]:
    """Cells, as indices, in groups that are computed and saved together: those of equal first position first of all."""
    groups: list[list[int]] = [[]]
    begun = 0
    for at in sorted(range(len(tokens)), key=lambda at: -tokens[at]):
        if begun >= _GROUP:
            groups.append([])
            begun = 0
        groups[-1].append(at)
        begun += tokens[at]
    return groups


class Pace:
    """Estimates the time that a grid needs from its fastest batch, and refuses one that exceeds its limit.

    Args:
        work: The tokens of each group of cells.
        limit: Seconds that the call may take.

    Attributes:
        seconds_left: The estimate after the last batch.
    """

    def __init__(self, work: Sequence[int], limit: float) -> None:
        self._work = work
        self._end = time.monotonic() + limit
        self._limit = limit
        self._before = time.monotonic()
        self._done = 0.0
        self._rates: list[float] = []
        self.seconds_left = 0.0

    def begin(self, group: int) -> None:
        """Begins a group."""
        self._before = time.monotonic()
        self._done = float(sum(self._work[:group]))
        self._group = group

    def left(self, done: int, total: int) -> float:
        """Seconds that the rest of the grid takes, at most about, after a batch.

        Args:
            done: Runs of the group that are done.
            total: All its runs.

        Raises:
            LimitExceeded: They are more than the call has left. The first batch does not count: it tries what runs
                share.
        """
        now = time.monotonic()
        finished = sum(self._work[: self._group]) + self._work[self._group] * done / max(1, total)
        if finished > self._done:
            self._rates.append((now - self._before) / (finished - self._done))
        self._before, self._done = now, finished
        self.seconds_left = (sum(self._work) - finished) * min(self._rates, default=0.0)
        if len(self._rates) > 1 and now + self.seconds_left > self._end:
            raise LimitExceeded(
                f"the rest of this grid would take about {seconds(self.seconds_left)}, and a call is stopped after "
                f"{seconds(self._limit)}; what is finished is kept.",
                "Choose fewer layers, positions, heads, sites or prompts.",
            )
        return self.seconds_left
