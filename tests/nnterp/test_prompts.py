"""The library's prompts with targets, and the pictures of what they give, against plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.nnterp.display import plot_topk_tokens, prompts_to_df
from nnterp_mcp.nnterp.lens import logit_lens
from nnterp_mcp.nnterp.prompts import Prompt, run_prompts
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The capital of France is", "Madrid", "Paris and London"]
TARGETS = {"right": ["Paris", "Madrid"], "verb": "is"}


@pytest.fixture(scope="module")
def model() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("gemma2"), tokenizer=tiny_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prompts(model: StandardizedTransformer) -> list[Prompt]:
    return [Prompt.from_strings(text, TARGETS, model.tokenizer) for text in TEXTS]


@torch.no_grad()
def plain_probs(tokenizer: Any, text: str) -> torch.Tensor:
    return tiny_model("gemma2")(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].softmax(-1)


def test_target_probabilities_are_those_of_plain_transformers(
    model: StandardizedTransformer, prompts: list[Prompt]
) -> None:
    found = run_prompts(model, prompts, batch_size=2, tqdm=None)

    assert {name: probs.shape for name, probs in found.items()} == {"right": (3, 1), "verb": (3, 1)}
    for row, prompt in enumerate(prompts):
        expected = plain_probs(model.tokenizer, prompt.prompt)
        for name, tokens in prompt.target_tokens.items():
            assert abs(float(found[name][row, 0] - expected[tokens].sum())) < 1e-5


def test_the_last_layer_of_the_lens_is_the_answer(model: StandardizedTransformer, prompts: list[Prompt]) -> None:
    answers, lens = run_prompts(model, prompts), run_prompts(model, prompts, get_probs_func=logit_lens)

    for name, probs in lens.items():
        assert probs.shape == (3, model.num_layers)
        torch.testing.assert_close(probs[:, -1:], answers[name], rtol=1e-4, atol=1e-6)
    alone = prompts[0].run(model, logit_lens)
    torch.testing.assert_close(alone["right"][0], lens["right"][0], rtol=1e-4, atol=1e-6)


def test_the_inverse_lens_prefers_what_the_lens_likes_least(model: StandardizedTransformer) -> None:
    probs, inverse = logit_lens(model, TEXTS, return_inv_logits=True)

    assert torch.equal(inverse.argmax(-1), probs.argmin(-1))


def test_collisions(model: StandardizedTransformer, prompts: list[Prompt]) -> None:
    same = Prompt.from_strings("a", {"one": "is", "other": ["is", "Paris"]}, model.tokenizer)

    assert prompts[0].has_no_collisions()
    assert not same.has_no_collisions()
    assert same.has_no_collisions(ignore_targets="other")
    with pytest.raises(InvalidRequest, match=r"prompt 1 has the targets \['one', 'other'\]"):
        run_prompts(model, [prompts[0], same], tqdm=None)


def test_pictures_and_tables(model: StandardizedTransformer, prompts: list[Prompt], tmp_path: Any) -> None:
    probs = logit_lens(model, TEXTS)
    figure = plot_topk_tokens(probs, model.tokenizer, k=2, title="lens", file=tmp_path / "lens")
    frame = prompts_to_df(prompts, model.tokenizer)

    assert len(figure.data) == len(TEXTS)
    assert float(figure.data[0].z[-1][0]) == pytest.approx(float(probs[0, -1].max()))
    assert (tmp_path / "lens.html").stat().st_size > 1000
    assert list(frame.columns) == ["prompt", "right_string", "verb_string", "right_tokens", "verb_tokens"]
