"""The time that a patching grid takes is estimated from the work that its batches did."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.experiments.patching import grid_work
from nnterp_mcp.experiments.patching.grid_work import Pace, group_cells

works = st.lists(st.lists(st.floats(1, 100), min_size=1, max_size=6), min_size=1, max_size=4)


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def _play(work: list[list[float]], pairs: int, limit: float, rate: float) -> tuple[list[float], list[float]]:
    """The estimates after every run of every group, and the seconds that were then really left."""
    clock, told, left = _Clock(), list[float](), list[float]()
    whole = sum(map(sum, work)) * rate
    with patch.object(grid_work, "time", clock):
        pace = Pace(work, pairs, limit)
        for number, group in enumerate(work):
            pace.begin(number)
            total = pairs * len(group)
            for run in range(total):
                clock.now += group[run % len(group)] / pairs * rate
                told.append(pace.left(run + 1, total))
                left.append(whole - clock.now)
    return told, left


@given(works, st.integers(1, 3), st.floats(0.01, 10))
def test_at_a_steady_pace_the_estimate_is_exact(work: list[list[float]], pairs: int, rate: float) -> None:
    told, left = _play(work, pairs, 1e9, rate)
    assert told == pytest.approx(left, rel=1e-6, abs=1e-6 * rate * sum(map(sum, work)))


def test_a_grid_that_exceeds_its_limit_is_refused_after_its_second_batch() -> None:
    with pytest.raises(LimitExceeded, match="the rest of this grid would take about 98 s, and a call is stopped"):
        _play([[1.0] * 100], 1, 50.0, 1.0)
    _play([[1.0] * 100], 1, 101.0, 1.0)


def test_a_slow_first_batch_is_not_held_against_the_rest() -> None:
    clock = _Clock()
    with patch.object(grid_work, "time", clock):
        pace = Pace([[1.0] * 10], 1, 1e9)
        pace.begin(0)
        told: list[float] = []
        for run, taken in enumerate((60.0, 1.0, 1.0)):
            clock.now += taken
            told.append(pace.left(run + 1, 10))
    assert told == [9 * 60.0, 8.0, 7.0]


def test_runs_that_follow_by_construction_are_no_batch() -> None:
    clock = _Clock()
    with patch.object(grid_work, "time", clock):
        pace = Pace([[1.0] * 4, [1.0] * 4], 1, 1e9)
        pace.begin(0)
        assert pace.left(0, 4) == 0.0
        clock.now = 2.0
        assert pace.left(2, 4) == 6.0


def test_cells_run_from_early_positions_and_layers_on_in_groups() -> None:
    tokens, work = [3, 9, 9, 3, 6], [2.0, 4.0, 8.0, 1.0, 5.0]
    assert group_cells(tokens, work) == [[2, 1, 4, 0, 3]]
    with patch.object(grid_work, "_GROUP", 10):
        assert group_cells(tokens, work) == [[2, 1], [4, 0, 3]]
