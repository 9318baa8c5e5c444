"""The table of growth: every tool that computes is in it, sizes are what they say, and exponents are fitted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nnterp_mcp.tool_methods import laboratory_tools
from nnterp_mcp.verification.tiny import tiny_tokenizer
from tools.growth import AXES, BY_TOKENS, Growing, Grown, text

WITHOUT_GROWTH = {"inspect_model", "load_features"}
"""Tools that take no prompts."""


def _grown(sizes: Sequence[int], seconds: Sequence[float], peaks: Sequence[int]) -> Grown:
    return Grown("tokens", Growing("call", lambda lab, n: None, sizes, 2), seconds, peaks)


def test_every_tool_of_a_laboratory_is_measured() -> None:
    measured = {growing.name.partition(",")[0] for growings in AXES.values() for growing in growings}
    assert measured == set(laboratory_tools()) - WITHOUT_GROWTH


@pytest.mark.parametrize("tokens", [16, 64, 1024])
def test_a_text_has_as_many_tokens_as_is_said(tokens: int) -> None:
    assert len(tiny_tokenizer()(text(tokens))["input_ids"]) == tokens
    assert text(tokens) != text(tokens, 1)


def test_the_exponent_is_that_of_the_last_three_sizes() -> None:
    sizes = (10, 100, 1000, 10000)
    grown = _grown(sizes, [5.0, *(size**1.5 for size in sizes[1:])], [0, *(size * 10**5 for size in sizes[1:])])
    assert grown.of_time == pytest.approx(1.5)
    assert grown.row().split(" | ")[1:] == ["tokens 10 to 10,000", "5 to 1e+06 s", "1.50 of 2", "1000 MB", "1.00 |"]


def test_a_call_that_took_too_long_has_fewer_sizes_and_little_memory_no_exponent() -> None:
    grown = _grown((10, 100, 1000, 10000), [1.0, 10.0, 100.0], [0, 10**6, 10**8])
    assert grown.of_time == pytest.approx(1.0)
    assert grown.of_memory == "–"
    assert "tokens 10 to 1,000" in grown.row()


def test_names_are_said_once_on_an_axis() -> None:
    names = [growing.name for growing in BY_TOKENS]
    assert len(names) == len(set(names))
