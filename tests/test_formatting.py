from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnterp_mcp.formatting import elided, number, plural, probability, quoted, rounded, seconds, size, spread

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(finite.filter(lambda value: abs(value) > 1e-300 or value == 0))
def test_three_significant_digits_are_kept(value: float) -> None:
    short = rounded(value)

    assert math.isclose(short, value, rel_tol=5.1e-3)
    assert rounded(short) == short
    assert float(number(value)) == pytest.approx(short, rel=1e-12)


@given(st.floats(-1e300, 1e300) | st.sampled_from([math.inf, -math.inf, math.nan]))
def test_every_float_has_a_text_and_a_rounding(value: float) -> None:
    assert float(number(value)) == pytest.approx(rounded(value), nan_ok=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.76789, "0.768"),
        (10.44, "10.4"),
        (3.14159e-5, "3.14e-05"),
        (12_345.6, "12300"),
        (12_345, "12345"),
        (0.0, "0"),
        (-0.05, "-0.05"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_rounded_goes_into_lists_and_leaves_the_rest() -> None:
    assert rounded({"a": [1.23456, (2, 0.98765)], "b": "1.23456", "c": None, "d": 123456}) == {
        "a": [1.23, [2, 0.988]],
        "b": "1.23456",
        "c": None,
        "d": 123456,
    }


def test_probability_below_one_in_a_million() -> None:
    assert [probability(p) for p in (0.5, 1e-6, 9e-7, 0.0)] == [0.5, 1e-6, "<1e-6", 0.0]


def test_units() -> None:
    assert [size(n) for n in (0, 999, 1000, 537_900_000, 1_234_000_000, 5e15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "538 MB",
        "1.23 GB",
        "5000 TB",
    ]
    assert [seconds(s) for s in (0.0851, 3.21, 119, 250)] == ["85 ms", "3.21 s", "119 s", "4 min 10 s"]
    assert [plural(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted_text_stays_on_its_line_and_can_be_read_back(text: str) -> None:
    assert "\n" not in quoted(text)
    assert json.loads(quoted(text)) == text


@given(st.text(), st.integers(min_value=1, max_value=40))
def test_elided_text_fits_and_says_so(text: str, limit: int) -> None:
    short = elided(text, limit)

    assert len(short) <= limit or short == text
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))


@given(st.lists(st.integers(), unique=True), st.lists(st.integers()), st.integers(min_value=1, max_value=20))
def test_spread_keeps_order_and_what_must_be_kept(items: list[int], keep: list[int], count: int) -> None:
    chosen = spread(items, keep, count)

    assert chosen == [item for item in items if item in chosen]
    assert len(chosen) <= count
    assert len(chosen) == len(items) if len(items) <= count else chosen
    if len(items) > count:
        assert set(list(dict.fromkeys(keep))[:count]) & set(items) <= set(chosen)


def test_spread_is_even() -> None:
    assert spread(range(30), [], 4) == [0, 10, 19, 29]
    assert spread(range(30), [28], 1) == [28]
