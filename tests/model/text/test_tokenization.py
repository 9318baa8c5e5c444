from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts, group_by_length, pad_batch
from nnterp_mcp.model.text.tokens import token_text
from nnterp_mcp.request.prompts import Message
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.verification.tiny import BOS, EOS, tiny_tokenizer

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}{{ raise_exception('no tools here') if m['role'] == 'tool' }}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def encoded(lengths: list[int]) -> list[EncodedPrompt]:
    return [EncodedPrompt(index, "", list(range(1, length + 1)), []) for index, length in enumerate(lengths)]


def refusal(tokenizer: Any, prompt: Any, limit: int | None = None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        encode_prompts(tokenizer, ["fine", prompt], "tiny", limit)
    return caught.value.message


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100), st.booleans())
def test_batches_lose_no_prompt_and_keep_to_the_budget(lengths: list[int], budget: int, pad: bool) -> None:
    prompts = encoded(lengths)
    groups = group_by_length(lengths, budget, pad=pad)
    batches = [pad_batch([prompts[number] for number in group], 0, CPU) for group in groups]

    assert sorted(prompt.index for batch in batches for prompt in batch.prompts) == list(range(len(lengths)))
    for batch in batches:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert ids.numel() <= budget or len(batch.prompts) == 1
        assert pad or len({len(prompt.ids) for prompt in batch.prompts}) == 1
        for row, prompt in enumerate(batch.prompts):
            start = batch.padding[row]
            assert ids[row].tolist() == [0] * start + prompt.ids
            assert mask[row].tolist() == [0] * start + [1] * len(prompt.ids)


def test_prompts_of_one_length_share_a_batch() -> None:
    assert group_by_length([4] * 6, 12) == [[0, 1, 2], [3, 4, 5]]


def test_text_gets_special_tokens_and_spans() -> None:
    tokenizer = tiny_tokenizer()
    (prompt,) = encode_prompts(tokenizer, ["The capital"], "tiny")

    assert prompt.ids == tokenizer("The capital")["input_ids"]
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.spans[0] == (0, 0)
    assert "".join("The capital"[slice(*span)] for span in prompt.spans) == "The capital"


def test_a_chat_goes_through_the_template_and_opens_the_assistants_turn() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    user, assistant = Message(role="user", content="Hi"), Message(role="assistant", content="Yes")
    asked, answered = encode_prompts(tokenizer, [[user], [user, assistant]], "tiny")

    assert asked.text == "[user] Hi\n[assistant]"
    assert answered.text == "[user] Hi\n[assistant] Yes"
    assert asked.ids == tokenizer(asked.text, add_special_tokens=False)["input_ids"]


def test_a_text_begins_once_however_it_is_written() -> None:
    tokenizer = tiny_tokenizer()
    with collect_remarks() as said:
        plain, marked, twice = encode_prompts(tokenizer, ["The capital", "<bos>The capital", "<bos><bos>a"], "tiny")

    assert marked.ids == plain.ids == tokenizer("The capital")["input_ids"]
    assert [marked.text[slice(*span)] for span in marked.spans[:2]] == ["<bos>", "The"]
    assert twice.ids[:3] == [1, 1, twice.ids[2]], "what the caller writes twice stays"
    assert list(said) == ["2 prompts begin with <bos> already: it was not put before the text again."]


def test_the_last_token_is_the_texts() -> None:
    tokenizer = tiny_tokenizer()
    plain = encode_prompts(tokenizer, ["The capital", "a<eos>"], "tiny")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    with collect_remarks() as said:
        ended = encode_prompts(tokenizer, ["The capital", "a<eos>"], "tiny")

    assert tokenizer("The capital")["input_ids"][-1] == EOS
    assert ended == plain
    assert ended[1].ids[-1] == EOS, "the caller's own"
    assert list(said) == ["The tokenizer's <eos> after every text was left out: the last token is the text's."]


def test_padding_on_the_right_and_no_padding_at_all_make_no_difference() -> None:
    texts = ["The capital of France is", "Spain"]
    plain = encode_prompts(tiny_tokenizer(), texts, "tiny")
    right = tiny_tokenizer()
    right.padding_side, right.truncation_side = "right", "left"
    none = tiny_tokenizer()
    none.pad_token = None

    assert encode_prompts(right, texts, "tiny") == plain
    assert encode_prompts(none, texts, "tiny") == plain


def test_what_is_refused() -> None:
    tokenizer = tiny_tokenizer()

    assert refusal(tokenizer, [Message(role="user", content="a")]) == (
        "tiny has no chat template, so a prompt must be text"
    )
    assert refusal(tokenizer, "one two three four", limit=8).startswith("prompt 1 has ")
    assert refusal(tokenizer, "one two three four", limit=8).endswith(" tokens: tiny reads at most 8 here.")
    tokenizer.chat_template = TEMPLATE
    assert refusal(tokenizer, [Message(role="tool", content="a")]) == (
        "the chat template of tiny refuses these messages: 'no tools here'"
    )
    tokenizer.backend_tokenizer.post_processor = None
    assert refusal(tokenizer, "") == "prompt 1 has no tokens for tiny: ''"


def test_token_text_keeps_the_leading_space() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("The capital of", add_special_tokens=False)["input_ids"]

    assert "".join(token_text(tokenizer, token) for token in tokens) == "The capital of"
