"""The tiny models are the ground that most tests stand on: alive, small, the same every time."""

from __future__ import annotations

import pytest
import torch

from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.verification.tiny import causal_lm_types, tiny_config, tiny_model, tiny_tokenizer
from nnterp_mcp.verification.tiny_configs import RESERVED, UNBUILDABLE, VOCABULARY, WINDOW

TEXT = "The capital of France is Paris, 北京 or Zürich."


@pytest.mark.parametrize("model_type", ["llama", "jamba", "gemma3n_text"])
def test_weights_are_alive_and_the_same_for_a_seed(model_type: str) -> None:
    before = torch.get_rng_state()
    weights, again, other = (tiny_model(model_type, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert any(not torch.equal(weights[name], other[name]) for name in weights)
    assert [name for name, weight in weights.items() if weight.is_floating_point() and not weight.any()] == []


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in causal_lm_types() if name not in UNBUILDABLE])
def test_every_type_is_small_and_depends_on_every_token(model_type: str) -> None:
    model = tiny_model(model_type)
    ids = torch.tensor([[20, 40, 60, 80, 100], [30, 40, 60, 80, 100]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.shape == (*ids.shape, VOCABULARY)
    assert logits.isfinite().all()
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 0.01
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def test_windows_and_sizes_can_be_crossed_by_short_texts() -> None:
    for model_type in ("gemma2", "deepseek_v32", "doge", "llama4_text", "ministral3", "minimax_m3_vl_text", "phi3"):
        marks = lengths_of(tiny_model(model_type)).marks
        assert marks, model_type
        assert max(mark.length for mark in marks) == WINDOW, model_type


def test_what_cannot_be_built_says_why() -> None:
    for model_type in UNBUILDABLE:
        with pytest.raises(LookupError, match="does not read input_ids"):
            tiny_model(model_type)
    with pytest.raises(LookupError, match="no causal LM of type 'resnet'"):
        tiny_config("resnet")
    with pytest.raises(LookupError, match="no rotary encoding"):
        tiny_model("gpt2", rope="longrope")


def test_tokenizer_reads_any_text_with_offsets() -> None:
    tokenizer = tiny_tokenizer()
    encoded = tokenizer(TEXT, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == TEXT
    assert " Paris" in [TEXT[start:end] for start, end in encoded["offset_mapping"]]
    assert len(tokenizer) <= VOCABULARY - RESERVED
    assert encoded["input_ids"][0] == tokenizer.bos_token_id == 1
