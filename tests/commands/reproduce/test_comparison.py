"""What a comparison of two results counts, against small cases worked out by hand and plain numpy."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.commands.reproduce.comparison import compare, compare_arrays
from tests.recorded_runs import JSON

BEFORE: dict[str, Any] = {
    "model": "tiny",
    "readings": [
        {"kl": 2.0, "top": [[" Paris", 0.5], ["x", 1e-9]], "rank": 3},
        {"kl": 0.0, "top": [[" Rome", 0.25]], "rank": 1},
    ],
    "seconds": 1.0,
}


def changed(**by: Any) -> dict[str, Any]:
    """The result with the first reading's fields replaced."""
    after = copy.deepcopy(BEFORE)
    after["readings"][0] |= by
    return after


def test_every_field_is_counted() -> None:
    found = compare(BEFORE, copy.deepcopy(BEFORE), 0.0, ["seconds"])

    assert [(field.field, field.numbers, field.texts) for field in found] == [
        ("model", 0, 1),
        ("readings.kl", 2, 0),
        ("readings.top", 3, 3),
        ("readings.rank", 2, 0),
    ]
    assert all(field.differing == field.largest == field.relative == 0 for field in found)


@pytest.mark.parametrize(
    ("after", "field", "largest", "relative", "differing"),
    [
        (changed(kl=2.5), "readings.kl", 0.5, 0.2, 1),
        (changed(kl=2.000001), "readings.kl", 1e-6, 5e-7, 0),
        (changed(rank=4), "readings.rank", 1.0, 0.25, 1),
        (changed(top=[[" Paris", 0.5], ["x", 3e-9]]), "readings.top", 2e-9, 2e-7, 0),
        (changed(top=[[" Paris", 0.5], ["y", 1e-9]]), "readings.top", 0.0, 0.0, 1),
        (changed(top=[[" Paris", 0.5]]), "readings.top", 0.0, 0.0, 1),
        (changed(kl=None), "readings.kl", 0.0, 0.0, 1),
        (changed(kl=math.nan), "readings.kl", math.inf, math.inf, 1),
        (changed(kl=math.inf), "readings.kl", math.inf, math.inf, 1),
    ],
)
def test_one_change_is_found_where_it_is(
    after: dict[str, Any], field: str, largest: float, relative: float, differing: int
) -> None:
    found = {one.field: one for one in compare(BEFORE, after, 1e-5)}
    one = found.pop(field)

    assert one.largest == pytest.approx(largest)
    assert one.relative == pytest.approx(relative)
    assert one.differing == differing
    assert (one.example is None) == (differing == 0)
    assert all(other.differing == 0 for other in found.values())


def test_an_example_says_where() -> None:
    (one,) = (field for field in compare(BEFORE, changed(kl=2.5), 1e-5) if field.differing)

    assert one.example == "readings[0].kl: 2.0 → 2.5"


def test_what_goes_by_layer_is_one_field() -> None:
    (one,) = compare({"norms": {1: 0.5, 2: 2.0}}, {"norms": {1: 0.5, 2: 3.0}}, 1e-5)

    assert (one.field, one.numbers, one.example) == ("norms", 2, "norms[2]: 2.0 → 3.0")


@given(JSON)
def test_anything_equals_itself(value: Any) -> None:
    assert sum(field.differing for field in compare({"of": value}, {"of": copy.deepcopy(value)}, 0.0)) == 0


@given(JSON, JSON)
def test_what_is_not_equal_differs(one: Any, other: Any) -> None:
    differing = sum(field.differing for field in compare({"of": one}, {"of": other}, 0.0))

    assert (differing == 0) == _same(one, other)


def _same(one: Any, other: Any) -> bool:
    """Equality as JSON has it, in which true is no number; a field that is absent is as good as null."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_same(one.get(name), other.get(name)) for name in {*one, *other})
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=6), st.integers(0, 2**32))
def test_arrays_are_compared_as_numbers_are(values: list[float], seed: int) -> None:
    first = np.array(values)
    dice = np.random.default_rng(seed)
    second = first * np.where(dice.random(first.shape) < 0.5, 1.0, 1.0 + dice.normal(scale=1e-4, size=first.shape))
    plain = compare({"a": first.tolist()}, {"a": second.tolist()}, 1e-5)

    found = compare_arrays("a", first, second, 1e-5)

    assert found.numbers == first.size
    for one in plain:
        assert (found.largest, found.differing) == (one.largest, one.differing)
        assert found.relative == pytest.approx(one.relative)


def test_arrays_of_other_shapes_differ() -> None:
    found = compare_arrays("a", np.zeros((2, 3)), np.zeros((3, 2)), 1.0)

    assert (found.differing, found.example) == (1, "shape: [2, 3] → [3, 2]")
