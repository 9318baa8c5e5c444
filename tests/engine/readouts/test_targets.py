from __future__ import annotations

import time
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from nnterp_mcp.engine.readouts.targets import find_shared_tokens, follow_target_sets, follow_targets, get_first_tokens
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.request.targets import TokenId
from nnterp_mcp.verification.tiny import tiny_tokenizer
from tests.model.text.tokenizers import sentencepiece_like, wordpiece


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: object) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_folder)


def test_both_spellings_count(smollm2: Any) -> None:
    tokens = get_first_tokens("Paris", smollm2)

    assert [smollm2.decode([token]) for token in tokens] == ["Paris", " Paris"]


def test_a_long_word_is_its_first_token(smollm2: Any) -> None:
    (bare, spaced) = get_first_tokens("Constantinople", smollm2)

    assert "Constantinople".startswith(smollm2.decode([bare]))
    assert " Constantinople".startswith(smollm2.decode([spaced]))


def test_several_words_give_each_token_once(smollm2: Any) -> None:
    tokens = get_first_tokens(["Paris", " Paris", "London"], smollm2)

    assert len(tokens) == len(set(tokens))
    assert {smollm2.decode([token]) for token in tokens} >= {"Paris", " Paris", "London", " London"}


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("\t", ["ĉ"]),  # " \t" is two tokens, of which the first is a lone space
        ("\n", ["Ċ", "ĠĊ"]),
        ("\u00a0", ["Âł"]),
        (" ", ["Ġ"]),
        ("  ", ["ĠĠ"]),
        (" Paris", ["ĠParis"]),
        ("  Paris", ["Ġ"]),
        ("Paris", ["Paris", "ĠParis"]),
        ("\nParis", ["Ċ"]),
        ("5", ["5"]),
        (" 5", ["Ġ"]),
        ("😀", ["ðŁ", "ĠðŁĺ"]),
        ("<|im_end|>", ["<|im_end|>"]),
    ],
)
def test_the_first_tokens_of_words(smollm2: Any, word: str, pieces: list[str]) -> None:
    assert smollm2.convert_ids_to_tokens(get_first_tokens(word, smollm2)) == pieces


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("Paris", ["Paris", "▁Paris"]),
        (" Paris", ["▁Paris"]),
        ("5", ["5"]),
        (" 5", ["▁"]),
        ("\t", ["<0x09>"]),
        ("\n", ["<0x0A>"]),
        (" ", ["▁"]),
        ("日", ["<0xE6>"]),
    ],
)
def test_a_space_before_every_text_is_not_taken_for_the_callers(word: str, pieces: list[str]) -> None:
    tokenizer = sentencepiece_like()

    assert tokenizer.convert_ids_to_tokens(get_first_tokens(word, tokenizer)) == pieces


def test_a_vocabulary_without_spaces() -> None:
    tokenizer = wordpiece()

    assert tokenizer.convert_ids_to_tokens(get_first_tokens(["Paris", " Paris"], tokenizer)) == ["paris"]
    assert tokenizer.convert_ids_to_tokens(get_first_tokens("[UNK]", tokenizer)) == ["[UNK]"]
    for word in ("\t", "日"):
        with pytest.raises(InvalidRequest, match="has no token in this vocabulary"):
            get_first_tokens(word, tokenizer)


def test_one_token_by_its_id(smollm2: Any) -> None:
    assert get_first_tokens([TokenId(id=8083), "\t"], smollm2) == [8083, 197]
    with pytest.raises(InvalidRequest) as caught:
        get_first_tokens(TokenId(id=49152), smollm2)
    assert caught.value.message == ("the target token 49152, which the model does not have: its tokens are 0 to 49151.")


def test_what_a_category_counts_is_said(smollm2: Any) -> None:
    with collect_remarks() as said:
        found = follow_targets({"blank": ["\t", "\n"], "one": [TokenId(id=8083)]}, smollm2)
        follow_target_sets([{"a": ["x"]}, {"a": ["y"]}], 2, smollm2)

    assert found.ids == {"blank": [197, 198, 3717], "one": [8083]}
    assert list(said) == [
        'Tokens counted: "blank" #197 "\\t", #198 "\\n", #3717 " \\n"; "one" #8083 "<0xEF><0xBC>".',
        'Tokens counted in prompt 0: "a" #104 "x", #1792 " x".',
    ]


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
