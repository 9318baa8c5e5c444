from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.question import LAYER, Choice, Count, Form, Head, Number, Parts, Token

FORMS: tuple[Form, ...] = (
    Number(absolute=0.5),
    Number(relative=0.02),
    LAYER,
    Head(),
    Token(),
    Choice(("left", "right")),
)
numbers = st.floats(-1e6, 1e6)


@given(right=numbers, tolerance=st.floats(1e-6, 10), share=st.floats(0, 0.99))
def test_a_number_is_right_within_its_tolerance_and_not_beyond(right: float, tolerance: float, share: float):
    form = Number(absolute=tolerance)
    assert form.agrees(right + share * tolerance * 0.99, right)
    assert not form.agrees(right + 1.1 * tolerance + 1e-6, right)
    assert not form.agrees(right - 1.1 * tolerance - 1e-6, right)


@given(right=st.floats(1e-3, 1e6), sign=st.sampled_from([-1, 1]))
def test_a_relative_tolerance_grows_with_the_number(right: float, sign: int):
    form = Number(relative=0.02)
    assert form.agrees(sign * right * 1.019, sign * right)
    assert form.agrees(sign * right * 0.981, sign * right)
    assert not form.agrees(sign * right * 1.021, sign * right)
    assert not form.agrees(-sign * right, sign * right)


@given(right=st.integers(0, 100), other=st.integers(0, 100))
def test_a_count_is_right_exactly(right: int, other: int):
    assert LAYER.agrees(LAYER.read(other), right) == (other == right)


@given(layer=st.integers(0, 99), head=st.integers(0, 99), off=st.integers(1, 9))
def test_a_head_is_its_layer_and_its_number(layer: int, head: int, off: int):
    form, right = Head(), f"L{layer}H{head}"
    assert all(form.read(text) == right for text in (right, right.lower(), f" L{layer} H{head} ", f"L0{layer}H0{head}"))
    assert not form.agrees(form.read(f"L{layer + off}H{head}"), right)
    assert not form.agrees(form.read(f"L{layer}H{head + off}"), right)


def test_spaces_around_a_token_do_not_count_and_letters_do():
    form = Token()
    assert form.agrees(form.read("Paris"), " Paris")
    assert form.agrees(form.read(" Paris "), " Paris")
    assert not form.agrees(form.read("paris"), " Paris")
    assert not form.agrees(form.read(" Par"), " Paris")


def test_a_choice_is_one_of_its_options():
    form = Choice(("left", "right"))
    assert form.agrees(form.read("left"), "left")
    assert not form.agrees(form.read("right"), "left")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("given", [None, True, [], {}, [18, 6], "", "  ", math.nan, math.inf], ids=repr)
def test_what_has_another_form_is_refused_with_the_form_in_the_error(form: Form, given: Any):
    with pytest.raises(ValueError, match=re.escape(f"the answer is {form.describe()}, not {given!r}")):
        form.read(given)


def test_a_count_is_no_fraction_and_a_number_no_text():
    for form, wrong in ((Count("tokens"), 12.0), (Count("tokens"), "12"), (Count("tokens"), -1), (Number(1), "12")):
        with pytest.raises(ValueError, match=r"the answer is a (whole )?number"):
            form.read(wrong)


def test_a_form_tells_its_tolerance():
    assert Number(absolute=0.05).describe() == "a number, right within 0.05"
    assert Number(relative=0.02).describe() == "a number, right within 2 %"
    assert "'left'" in Choice(("left", "right")).describe()


def test_an_answer_in_parts_is_right_if_every_part_is():
    form = Parts({"head": Head(), "raised": Number(absolute=0.1), "verdict": Choice(("yes", "no"))})
    right = {"head": "L1H3", "raised": 0.5, "verdict": "no"}
    assert form.agrees(form.read({"head": "l1h3", "raised": 0.55, "verdict": "no"}), right)
    assert form.wrong(form.read({"head": "L1H2", "raised": 0.7, "verdict": "no"}), right) == ["head", "raised"]
    for other in ({**right, "more": 1}, {"head": "L1H3"}, {**right, "verdict": "perhaps"}, {**right, "raised": "0.5"}):
        with pytest.raises(ValueError, match=r"the answer is an object: \"head\": a head"):
            form.read(other)
