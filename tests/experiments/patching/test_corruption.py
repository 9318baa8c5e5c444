"""Clean and corrupted prompts, and which of their tokens correspond."""

from __future__ import annotations

import pytest
import torch

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.patching.alignment import align
from nnterp_mcp.experiments.patching.corruption import add_noise, observe_mean, pair_prompts, replace_text, resample
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.positions import TextPosition
from nnterp_mcp.request.prompts import Message
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer


def encode(*texts: str) -> list[EncodedPrompt]:
    return encode_prompts(tiny_tokenizer(), texts, "tiny")


def test_every_occurrence_is_replaced_in_texts_and_chats() -> None:
    assert replace_text("Rome, Rome", "Rome", "Oslo") == "Oslo, Oslo"
    chat = [Message(role="system", content="Be brief."), Message(role="user", content="Where is Rome?")]
    assert replace_text(chat, "Rome", "Oslo") == [chat[0], Message(role="user", content="Where is Oslo?")]
    with pytest.raises(InvalidRequest, match="the prompt 'Rome' has no 'rome' to replace"):
        replace_text("Rome", "rome", "Oslo")


def test_each_clean_prompt_has_a_corrupted_one() -> None:
    with pytest.raises(InvalidRequest, match="2 clean prompts and 1 corrupted ones came"):
        pair_prompts(encode("a", "b"), encode("c"))


def test_tokens_of_equally_long_prompts_correspond() -> None:
    pairs = pair_prompts(encode("The capital of France", "The capital of"), encode("The capital of Spain", "The of of"))
    first, second = align(pairs, [0, -1])

    assert [(span.label, span.clean, span.corrupted) for span in first] == [("0", (0,), (0,)), ("4", (4,), (4,))]
    assert [span.label for span in second] == ["0", "3"]
    with pytest.raises(InvalidRequest, match="positions are 5 tokens of clean prompt 0 and 4 of clean prompt 1"):
        align(pairs, ["all"])


def test_prompts_of_unequal_length_correspond_by_labels_from_the_ends_of_spans() -> None:
    pairs = pair_prompts(encode("The capital of France is"), encode("The capital of Polynesia is"))
    length = len(pairs[0].corrupted or "")
    with pytest.raises(InvalidRequest, match=f"pair 0 has 6 tokens in its clean prompt and {length} in its corrupted"):
        align(pairs, ["all"])

    spans = {
        "subject": ([TextPosition(text=" France")], [TextPosition(text=" Polynesia")]),
        "start": (["0:4"], ["0:4"]),
        "longer": (["2:5"], [length - 1]),
        "end": (["last"], ["last"]),
    }
    (found,) = align(pairs, spans)
    assert [span.clean for span in found] == [(4,), (0, 1, 2, 3), (4,), (5,)]
    assert [span.corrupted for span in found] == [(length - 2,), (0, 1, 2, 3), (length - 1,), (length - 1,)]


def test_resampling_takes_another_prompt_of_equal_length() -> None:
    prompts = encode("The", "of", "is", "The of", "of of")
    pairs = resample(prompts)

    assert [pair.clean.prompt for pair in pairs] == prompts
    others = [pair.corrupted.prompt for pair in pairs if pair.corrupted]
    assert sorted(other.index for other in others) == [0, 1, 2, 3, 4]
    for pair, other in zip(pairs, others, strict=True):
        assert pair.clean.prompt.index != other.index
        assert len(pair.clean) == len(other.ids)
    with pytest.raises(InvalidRequest, match="prompt 1 alone has 3 tokens"):
        resample(encode("The", "of of", "is"))


def test_noise_is_drawn_anew_for_each_pair_and_the_same_again() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")
    prompts = encode("The capital of", "The of")
    pairs = add_noise(model, prompts, ["last"], samples=3)
    drawn = [pair.corrupted.noise for pair in pairs if pair.corrupted and pair.corrupted.noise is not None]
    again = add_noise(model, prompts, ["last"], samples=3)[-1].corrupted

    assert [pair.index for pair in pairs] == [0, 0, 0, 1, 1, 1]
    assert len({float(noise.sum()) for noise in drawn}) == 6
    assert again is not None
    assert again.noise is not None
    assert torch.equal(again.noise, drawn[-1])
    alone = add_noise(model, encode("The of"), ["last"], samples=3)[0].corrupted
    assert alone is not None
    assert alone.noise is not None
    assert torch.equal(alone.noise, drawn[3]), "a prompt's noise depends on the others"


def test_the_mean_is_taken_position_by_position() -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")
    place = Place("token_embeddings")
    inputs = [Input(prompt) for prompt in encode("The capital of", "The of of", "of is is")]
    weights = model.module.get_input_embeddings()(torch.tensor([given.prompt.ids for given in inputs]))

    assert torch.allclose(observe_mean(model, inputs, [place])[place], weights.mean(0), atol=1e-6)
    with pytest.raises(InvalidRequest, match="2 came, of 2 and 4 tokens"):
        observe_mean(model, [Input(prompt) for prompt in encode("The", "The of of")], [place])
