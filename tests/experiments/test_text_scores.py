"""Log-probabilities of given texts, against transformers' own logits."""

from __future__ import annotations

import math

import pytest
import torch

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.text_scores import perplexity, score_continuations, score_texts
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.model.families import standardized

TEXTS = ["a b c d", "The capital", "Paris is the one"]


def expected(model: object, ids: list[int], begin: int) -> list[float]:
    with torch.no_grad():
        logs = model.module(torch.tensor([ids])).logits[0].float().log_softmax(-1)  # pyright: ignore[reportAttributeAccessIssue]
    return logs[range(begin - 1, len(ids) - 1), ids[begin:]].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_token_is_scored_given_those_before_it(family: str) -> None:
    model = standardized(family)
    prompts = encode_prompts(model.tokenizer, TEXTS, family)
    for prompt, found in zip(prompts, score_texts(model, Workload(prompts)), strict=True):
        assert found == pytest.approx(expected(model, list(prompt.ids), 1), abs=1e-5)


def test_continuations_are_scored_from_their_first_token_on() -> None:
    model = standardized("llama")
    prompts = encode_prompts(model.tokenizer, TEXTS[:2], "llama")
    texts = [(prompts[0], [5, 9, 7]), (prompts[1], [4]), (prompts[0], [])]
    work = Workload([prompt for prompt, _ in texts], batch_tokens=64)
    found = score_continuations(model, work, [ids for _, ids in texts])

    assert [len(scores) for scores in found] == [3, 1, 0]
    for (prompt, ids), scores in zip(texts[:2], found, strict=False):
        assert scores == pytest.approx(expected(model, [*prompt.ids, *ids], len(prompt.ids)), abs=1e-5)


def test_the_perplexity_of_a_uniform_guess_is_the_number_of_choices() -> None:
    assert perplexity([math.log(1 / 8)] * 3) == pytest.approx(8)
