"""The work of a patching grid: cells that are computed and saved together, and an estimate of their time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.patching.activation_patching import Grid, Patching
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.formatting import seconds

_GROUP = 2**14
"""Tokens that the cells of a group compute, about: some seconds to a minute."""

_ROW = 2.0
"""The cost of a run besides its tokens, in tokens: its logits are read, and the host sets it up."""


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


def work_of(grid: Grid, tokens: Sequence[int], pairs: int, layers: int) -> list[float]:
    """The work of each cell over all pairs, in tokens through all layers: its tokens run from its own layer on.

    Args:
        grid: The cells.
        tokens: The tokens that each computes.
        pairs: How many pairs there are.
        layers: How many layers the model has.
    """
    shares = [(layers - (cell.layer or 0)) / layers for cell in grid.cells]
    return [count * share + _ROW * pairs for count, share in zip(tokens, shares, strict=True)]


def group_cells(tokens: Sequence[int], work: Sequence[float]) -> list[list[int]]:
    """Cells, as indices, in groups that are computed and saved together: in the order in which they run.

    Those of equal first position come together, and among them those of early layers first.
    """
    groups: list[list[int]] = [[]]
    begun = 0
    for at in sorted(range(len(tokens)), key=lambda at: (-tokens[at], -work[at])):
        if begun >= _GROUP:
            groups.append([])
            begun = 0
        groups[-1].append(at)
        begun += tokens[at]
    return groups


class Pace:
    """Estimates the time that a grid needs from the batches that ran, and refuses one that exceeds its limit.

    Args:
        work: The work of each cell of each group, in the order in which they run.
        pairs: How many pairs each group runs, one after another.
        limit: Seconds that the call may take.

    Attributes:
        seconds_left: The estimate after the last batch.
    """

    def __init__(self, work: Sequence[Sequence[float]], pairs: int, limit: float) -> None:
        self._groups = [[0.0, *accumulate(group)] for group in work]
        self._total = sum(group[-1] for group in self._groups)
        self._pairs = pairs
        self._end = time.monotonic() + limit
        self._limit = limit
        self._before = time.monotonic()
        self._done = 0.0
        self._batches: list[tuple[float, float]] = []
        self.seconds_left = 0.0

    def begin(self, group: int) -> None:
        """Begins a group."""
        self._before = time.monotonic()
        self._earlier = self._done = sum(group[-1] for group in self._groups[:group])
        self._group = self._groups[group]

    def left(self, done: int, total: int) -> float:
        """Seconds that the rest of the grid takes, about, after a batch.

        Args:
            done: Runs of the group that are done.
            total: All its runs.

        Raises:
            LimitExceeded: They are more than the call has left, even at the pace of the fastest batch. The first batch
                does not count: it tries what runs share.
        """
        now, finished = time.monotonic(), self._earlier + self._finished(done / max(1, total))
        if finished > self._done:
            self._batches.append((now - self._before, finished - self._done))
        self._before, self._done = now, finished
        rest = self._total - finished
        counted = self._batches[1:] or self._batches
        taken, made = (sum(column) for column in zip(*counted, strict=True)) if counted else (0.0, 1.0)
        self.seconds_left = rest * taken / made
        fastest = min((lasted / work for lasted, work in self._batches), default=0.0)
        if len(self._batches) > 1 and now + rest * fastest > self._end:
            raise LimitExceeded(
                f"the rest of this grid would take about {seconds(self.seconds_left)}, and a call is stopped after "
                f"{seconds(self._limit)}; what is finished is kept.",
                "Choose fewer layers, positions, heads, sites or prompts.",
            )
        return self.seconds_left

    def _finished(self, share: float) -> float:
        """The work of a share of the group's runs: whole pairs, and the first cells of the next."""
        whole, begun = divmod(share * self._pairs, 1)
        cells = round(begun * (len(self._group) - 1))
        return (whole * self._group[-1] + self._group[cells]) / self._pairs
