from __future__ import annotations

import time

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.interventions.prompts import find_shared_tokens, get_first_tokens
from nnterp_mcp.model.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: object) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm2_folder)


def test_both_spellings_count(smollm2: PreTrainedTokenizerFast) -> None:
    tokens = get_first_tokens("Paris", smollm2)

    assert [smollm2.decode([token]) for token in tokens] == ["Paris", " Paris"]


def test_a_long_word_is_its_first_token(smollm2: PreTrainedTokenizerFast) -> None:
    (bare, spaced) = get_first_tokens("Constantinople", smollm2)

    assert "Constantinople".startswith(smollm2.decode([bare]))
    assert " Constantinople".startswith(smollm2.decode([spaced]))


def test_several_words_give_each_token_once(smollm2: PreTrainedTokenizerFast) -> None:
    tokens = get_first_tokens(["Paris", " Paris", "London"], smollm2)

    assert len(tokens) == len(set(tokens))
    assert {smollm2.decode([token]) for token in tokens} >= {"Paris", " Paris", "London", " London"}


def test_a_line_break_is_a_target(smollm2: PreTrainedTokenizerFast) -> None:
    assert smollm2.convert_tokens_to_ids("Ċ") in get_first_tokens("\n", smollm2)


def test_a_word_without_tokens_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")

    with pytest.raises(InvalidRequest) as caught:
        get_first_tokens(["France", "\u200b"], tokenizer)
    assert caught.value.message == "the target '\\u200b' has no token in this vocabulary"


def test_shared_tokens_of_many_categories_are_found_at_once() -> None:
    many = {f"c{number}": [number, number + 100_000] for number in range(20_000)}
    begun = time.monotonic()
    shared = find_shared_tokens(many | {"other": [7]})

    assert shared == {("c7", "other"): [7]}
    assert time.monotonic() - begun < 5


def test_shared_tokens_are_found_for_each_pair() -> None:
    assert find_shared_tokens({"a": [1, 2], "b": [3], "c": [2, 1], "d": [3, 1]}) == {
        ("a", "c"): [1, 2],
        ("a", "d"): [1],
        ("b", "d"): [3],
        ("c", "d"): [1],
    }
