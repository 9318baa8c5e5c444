from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.positions import TextPosition
from nnterp_mcp.verification.tiny import tiny_tokenizer
from tests.request.test_selectors import bounds, steps, written


def numbered(length: int) -> EncodedPrompt:
    return EncodedPrompt(index=0, text="", ids=list(range(length)), spans=[])


@pytest.fixture(scope="module")
def france() -> EncodedPrompt:
    text = "The capital of France is Paris; France borders Spain."
    (prompt,) = encode_prompts(tiny_tokenizer(), [text], "tiny")
    return prompt


def tokens(prompt: EncodedPrompt, positions: list[int]) -> list[str]:
    return [prompt.text[slice(*prompt.spans[at])] for at in positions]


def refusal(asked: list[Any], prompt: EncodedPrompt) -> str:
    with pytest.raises(InvalidRequest) as caught:
        resolve_positions(asked, prompt)
    return caught.value.message


@given(st.integers(1, 30), bounds, bounds, steps)
def test_a_range_means_what_it_means_in_python(
    length: int, start: int | None, stop: int | None, step: int | None
) -> None:
    part = slice(start, stop, step)
    meant = sorted(range(length)[part])
    assume(meant)

    assert resolve_positions([written(part, spaced=False)], numbered(length)) == meant


@given(st.integers(1, 30), st.data())
def test_several_are_sorted_and_counted_once(length: int, data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.integers(-length, length - 1), min_size=1))

    assert resolve_positions(asked, numbered(length)) == sorted({range(length)[at] for at in asked})


def test_words() -> None:
    assert resolve_positions(["last"], numbered(5)) == [4]
    assert resolve_positions(["all"], numbered(3)) == [0, 1, 2]
    assert resolve_positions(["last", 0, "1:3"], numbered(5)) == [0, 1, 2, 4]


def test_text_means_every_token_that_it_touches(france: EncodedPrompt) -> None:
    first = resolve_positions([TextPosition(text="France")], france)
    second = resolve_positions([TextPosition(text="France", occurrence=1)], france)
    last = resolve_positions([TextPosition(text="France", occurrence=-1)], france)

    assert "".join(tokens(france, first)).strip() == "France"
    assert second == last
    assert second[0] > first[-1]
    assert (
        "".join(tokens(france, resolve_positions([TextPosition(text="rance is Pa")], france)))
        .strip()
        .startswith("France is Pa")
    )


def test_what_does_not_exist(france: EncodedPrompt) -> None:
    assert refusal([5], numbered(5)) == "position 5 does not exist: prompt 0 has positions 0 to 4."
    assert refusal([-6], numbered(5)) == "position -6 does not exist: prompt 0 has positions 0 to 4."
    assert refusal(["5:9"], numbered(5)) == "the range '5:9' holds no position: prompt 0 has positions 0 to 4."
    assert refusal([TextPosition(text="Rome")], france) == (
        "occurrence 0 of 'Rome' does not exist: it stands 0 times in prompt 0."
    )
    assert refusal([TextPosition(text="Paris", occurrence=1)], france) == (
        "occurrence 1 of 'Paris' does not exist: it stands 1 time in prompt 0."
    )


def test_text_needs_to_know_where_tokens_stand() -> None:
    assert refusal([TextPosition(text="a")], numbered(3)) == (
        "this model's tokenizer cannot tell where its tokens stand in the text"
    )
