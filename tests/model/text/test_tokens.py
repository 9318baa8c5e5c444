"""Names of tokens and tokens of texts, against the vocabularies themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.tokens import encode, inner_ids, span_text, token_text
from nnterp_mcp.verification.tiny import tiny_tokenizer
from tests.model.text.tokenizers import sentencepiece_like, wordpiece


def names(tokenizer: Any) -> list[str]:
    return [token_text(tokenizer, token) for token in range(len(tokenizer))]


def as_bytes(name: str) -> bytes:
    """What a name stands for, its bytes read back."""
    parts = re.split(r"<0x([0-9A-F]{2})>", name)
    return b"".join(bytes.fromhex(part) if place % 2 else part.encode() for place, part in enumerate(parts))


@pytest.mark.smollm2
def test_every_token_of_a_byte_level_vocabulary_has_a_name_of_its_own(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2_folder)
    found = names(tokenizer)

    assert len(set(found)) == len(found) == 49152
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    for token, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(found)))):
        if token not in tokenizer.all_special_ids:
            assert as_bytes(found[token]) == bytes(byte_of[char] for char in piece)
    text = "😀😀😀 日本"
    parts = [found[token] for token in tokenizer(text)["input_ids"]]
    assert parts[:3] == ["<0xF0><0x9F>", "<0x98>", "<0x80>"]
    assert b"".join(map(as_bytes, parts)) == text.encode()


def test_bytes_give_way_to_the_texts_own_token() -> None:
    tokenizer = sentencepiece_like()
    found = dict(zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), names(tokenizer), strict=True))

    assert len(set(found.values())) == len(found)
    assert found["<0xE8>"] == "<0xE8>", "no text by itself"
    assert found["<0x50>"] == "<0x50>", "P is a token, too"
    assert found["P"] == "P"
    assert found["<0x0A>"] == "\n", "no other token is a line break"
    assert (found["Paris"], found["▁Paris"], found["▁"]) == ("Paris", " Paris", " ")


def test_a_text_that_several_tokens_have_is_told_apart_by_the_id() -> None:
    tokenizer: Any = tiny_tokenizer()
    plain = tokenizer.convert_tokens_to_ids("a")
    tokenizer.add_tokens([AddedToken(" is", normalized=False)])
    added, merged = len(tokenizer) - 1, tokenizer.convert_tokens_to_ids("Ġis")

    assert token_text(tokenizer, added) == f" is#{added}"
    assert token_text(tokenizer, merged) == f" is#{merged}"
    assert token_text(tokenizer, plain) == "a"
    assert token_text(tokenizer, len(tokenizer) + 3) == f"#{len(tokenizer) + 3}", "a row of the model without a token"


def test_a_text_is_tokenized_as_it_stands_behind_another() -> None:
    tokenizer = sentencepiece_like()
    pieces = {text: tokenizer.convert_ids_to_tokens(inner_ids(tokenizer, text)) for text in ("Paris", " Paris", "\n")}

    assert pieces == {"Paris": ["Paris"], " Paris": ["▁Paris"], "\n": ["<0x0A>"]}
    assert inner_ids(tiny_tokenizer(), "Paris") == tiny_tokenizer()("Paris", add_special_tokens=False)["input_ids"]
    assert inner_ids(wordpiece(), " Paris") == [4]


def test_tokens_in_a_row_are_their_text() -> None:
    tokenizer = sentencepiece_like()
    ids = tokenizer("Paris日", add_special_tokens=False)["input_ids"]

    assert span_text(tokenizer, ids) == " Paris日"
    assert span_text(tokenizer, ids[-1:]) == "<0xA5>"


def test_a_text_that_the_library_cannot_read_is_an_error_of_the_call() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def falls(text: str, **options: Any) -> None:
        raise panic("byte index 1 is not a char boundary")

    for tokenizer, text in ((tiny_tokenizer(), "half \ud800"), (falls, "a")):
        with pytest.raises(InvalidRequest, match="the tokenizer cannot read"):
            encode(tokenizer, text)
    with pytest.raises(KeyboardInterrupt):
        encode(lambda text, **options: (_ for _ in ()).throw(KeyboardInterrupt), "a")
