"""Where a text ends: the same for every experiment that generates, held against plain greedy steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.patched_target import SourceReadings, resolve_target
from nnterp_mcp.experiments.patchscope import read_patchscope
from nnterp_mcp.experiments.steering import sweep
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TEXTS = ["The capital of France is", "Spain"]
NEW = 8


def build() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("gpt2", seed=3), tokenizer=tiny_tokenizer(), name="tiny")


@torch.no_grad()
def written(model: Any, ids: list[int]) -> list[int]:
    text = list(ids)
    for _ in range(NEW):
        text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(ids) :]


def texts_of(model: StandardizedTransformer, prompts: list[EncodedPrompt]) -> dict[str, list[list[int]]]:
    """The text after each prompt, by every experiment that writes one; nothing that it is told to do has an effect."""
    zeros = torch.zeros(model.hidden_size)
    found = {"generate": [one.ids for one in generate(model, Workload(prompts), max_new_tokens=NEW)]}
    for positions in ("all", "last", -1, 0):
        swept = sweep(model, Workload(prompts), {1: zeros}, (1.0,), positions=(positions,), max_new_tokens=NEW)
        found[f"steer at {positions}: baseline"] = [swept.texts[row] for row in (0, 2)]
        found[f"steer at {positions}"] = [swept.texts[row] for row in (1, 3)]
    nothing = SourceReadings(torch.zeros(1, 1, model.hidden_size), [1])
    readings = [
        read_patchscope(model, nothing, resolve_target(prompt.ids, 0), [(1, 1)], max_new_tokens=NEW)
        for prompt in prompts
    ]
    found["patchscope"] = [one.unpatched_continuation for one in readings]
    return found


@pytest.mark.parametrize("asked", ["several", "one", "the tokenizer's", "no generation config"])
def test_every_experiment_ends_a_text_at_the_same_token(asked: str) -> None:
    model = build()
    prompts = encode_prompts(model.tokenizer, TEXTS, "tiny")
    whole = [written(model.module, prompt.ids) for prompt in prompts]
    ends = {whole[0][3], whole[1][2]} if asked == "several" else {whole[0][3]}
    module: Any = model.module
    module.generation_config.eos_token_id = (
        sorted(ends) if asked == "several" else whole[0][3] if asked == "one" else None
    )
    if asked in ("the tokenizer's", "no generation config"):
        model.tokenizer.eos_token_id = whole[0][3]
    if asked == "no generation config":
        module.generation_config = None
    else:
        ends.add(model.tokenizer.eos_token_id)
    expected = [text[: next((at + 1 for at, token in enumerate(text) if token in ends), NEW)] for text in whole]

    assert 1 < len(expected[0]) < NEW
    for name, texts in texts_of(model, prompts).items():
        assert texts == expected, name
