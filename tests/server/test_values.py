"""Bounds of a request, before anything parses it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.server.values import MOST_VALUES, require_few_values, too_many_values


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ('a, b: [c] {d} \\" \\\\' * 200_000, False),
        (['",:[{'] * (MOST_VALUES // 2), False),
        (["\\"] * (MOST_VALUES // 2), False),
        ([0] * (MOST_VALUES - 100), False),
        ([0] * (MOST_VALUES + 100), True),
        ({f"k{number}": 0 for number in range(MOST_VALUES // 9 + 1)}, True),
        ([[]] * (MOST_VALUES // 9 + 1), True),
        (["a"] * (5 * MOST_VALUES), True),
    ],
)
def test_a_body_is_judged_by_its_values_and_not_by_its_texts(value: Any, refused: bool) -> None:
    body = json.dumps({"arguments": value}).encode()
    begun = time.process_time()

    assert too_many_values(body) is refused
    assert time.process_time() - begun < 0.3


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ({f"k{number}": 0 for number in range(1000)}, None),
        ({f"k{number}": 0 for number in range(1001)}, "an object of 1001 names, and a call takes 1000 in one"),
        ([[0] * 600] * 600, None),
        ([[0] * 700] * 700, "more than 400,000 values"),
        ([{"a": 0}] * 30_000, "more than 400,000 values"),
        ("[" + "0," * 500_000 + "0]", "more than 400,000 values"),
        ("0," * 500_000, None),
        ([[[[]]]], None),
    ],
)
def test_arguments_are_judged_by_their_values(value: Any, refused: str | None) -> None:
    begun = time.process_time()
    if refused is None:
        require_few_values({"layers": value})
    else:
        with pytest.raises(LimitExceeded, match=refused):
            require_few_values({"layers": value})
    assert time.process_time() - begun < 0.5


def test_arguments_are_not_nested_without_end() -> None:
    deep: Any = 0
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(LimitExceeded, match="nested more than 64 levels deep"):
        require_few_values({"layers": deep})
