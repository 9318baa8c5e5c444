"""Adaptive integration against integrals in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.experiments.attribution.path_integral import Integral, Point, integrate

Function = Callable[[float], float]


def along(parts: Sequence[tuple[Function, Function]], most: int, at_once: int = 64) -> tuple[Integral, list[float]]:
    """The integral of the slopes of several functions, with the points that were looked at."""
    seen: list[float] = []

    def evaluate(shares: Sequence[float]) -> list[Point]:
        assert list(shares) == sorted(set(shares))
        seen.extend(shares)
        return [
            Point(x, sum(f(x) for f, _ in parts), torch.tensor([slope(x) for _, slope in parts], dtype=torch.float64))
            for x in shares
        ]

    return integrate(evaluate, most, at_once), seen


def bend(at: float, width: float) -> tuple[Function, Function]:
    """A step that takes a `width`, and its slope."""
    return lambda x: math.tanh((x - at) / width), lambda x: math.cosh(min(300.0, abs(x - at) / width)) ** -2 / width


WAVE: tuple[Function, Function] = (math.sin, math.cos)


@given(at=st.floats(0.05, 0.95), width=st.floats(1e-3, 1e-2), at_once=st.sampled_from([1, 4, 64]))
def test_a_bend_is_found_wherever_it_is(at: float, width: float, at_once: int) -> None:
    parts = [bend(at, width), WAVE]
    found, seen = along(parts, 400, at_once)

    rises = [f(1.0) - f(0.0) for f, _ in parts]
    assert found.values.tolist() == pytest.approx(rises, abs=2e-3)
    assert found.last - found.first == pytest.approx(sum(rises))
    assert abs(float(found.values.sum()) - sum(rises)) <= found.missed + 1e-12 <= 1e-3
    assert len(seen) == len(set(seen)) == found.points < 400
    assert sum(abs(x - at) < 0.1 for x in seen) > len(seen) / 2, "points stand where the function bends"


@pytest.mark.parametrize(("most", "points"), [(3, 3), (4, 3), (9, 9), (40, 39), (400, 17)])
def test_no_more_points_than_allowed_and_none_that_are_not_needed(most: int, points: int) -> None:
    parts = [bend(0.37, 1e-4)] if most < 100 else [WAVE]
    found, seen = along(parts, most)

    assert found.points == len(seen) == points
    assert {0.0, 1.0} <= set(seen)
    assert (found.missed > 1e-2) == (most < 100), "what is missed is told"


def test_a_jump_ends_too() -> None:
    found, _ = along([(lambda x: float(x > 1 / 3), lambda x: 0.0)], 1000)
    assert found.missed == 1.0
    assert found.points < 200
