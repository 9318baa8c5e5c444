"""Sources and the beginning of a target in one pass against plain transformers, each prompt by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnterp_mcp.nnterp.packing import PACKED_TOKENS, read_packed
from transformers import DynamicCache

from nnterp_mcp.experiments.patched_target import Target, resolve_target
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.nnterp import packing
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TARGET = resolve_target([3, 14, 15, 9, 26, 5, 35], 5)


def standardized(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)


@torch.no_grad()
def plain_states(model: Any, ids: list[int]) -> torch.Tensor:
    """What comes into each layer but the first, after the last token: what the one before it gave."""
    hidden = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack(hidden)[1:-1, 0, -1]  # the last one is normed


def assert_equals_plain(model: StandardizedTransformer, sources: list[list[int]], target: Target) -> None:
    found = read_packed(model, sources, range(model.num_layers), target)

    assert found is not None
    states, prefix = found
    for source, ids in enumerate(sources):
        assert (states[:-1, source] - plain_states(model.module, ids)).abs().max() < 1e-4
    expected = DynamicCache(config=model.module.config)
    with torch.no_grad():
        model.module(input_ids=torch.tensor([target.ids[: target.position]]), past_key_values=expected)
    pairs: list[Any] = list(zip(prefix.layers, expected.layers, strict=True))
    for layer, plain in pairs:
        assert layer.keys.shape == plain.keys.shape
        assert (layer.keys - plain.keys).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_each_prompt_alone(family: str, attention: Any):
    model = standardized(family)
    model.set_attention(attention)

    assert_equals_plain(model, [[7, 8, 9], [10], [1, 2, 3, 4, 5, 6]], TARGET)


LLAMA = standardized("llama")
prompts = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@given(sources=st.lists(prompts, min_size=1, max_size=4), ids=st.lists(st.integers(1, 40), min_size=2, max_size=20))
def test_equals_each_prompt_alone_whatever_the_prompts(sources: list[list[int]], ids: list[int]):
    assert_equals_plain(LLAMA, sources, resolve_target(ids, -1))


@pytest.mark.parametrize("family", ["bloom", "gemma3", "lfm2", "mamba2"])
def test_is_left_where_the_model_reads_packed_prompts_differently(family: str):
    model = standardized(family)

    assert read_packed(model, [[7, 8, 9]], range(model.num_layers), TARGET) is None


def test_is_left_where_it_is_not_exact(monkeypatch: pytest.MonkeyPatch):
    model = StandardizedTransformer(tiny_model("llama", seed=2), tokenizer=tiny_tokenizer(), name="llama")
    right = packing._pack  # pyright: ignore[reportPrivateUsage]

    def seeing_all(*args: Any) -> dict[str, torch.Tensor]:
        inputs = right(*args)
        length = inputs["input_ids"].shape[1]
        return inputs | {"attention_mask": torch.full((1, 1, length, length), -1e9).triu(1)}

    monkeypatch.setattr(packing, "_pack", seeing_all)

    assert read_packed(model, [[7, 8, 9]], range(model.num_layers), TARGET) is None


def test_is_left_where_it_does_not_pay():
    assert read_packed(LLAMA, [[1] * PACKED_TOKENS], [0], TARGET) is None
    assert read_packed(LLAMA, [[1, 2]], [0], resolve_target([1, 2], 0)) is None
