from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from nnterp_mcp.model import tiny, tiny_configs
from nnterp_mcp.model.tiny import causal_lm_types, tiny_config, tiny_model, tiny_tokenizer
from nnterp_mcp.model.tiny_configs import HEADS, HIDDEN, LAYERS, POSITIONS, UNBUILDABLE, VOCABULARY

PROMPTS = ["The capital of France is Paris.", "Spain and Madrid; and what is that of France?"]

# Dense, grouped, latent and absent attention; experts; hybrids; encoders; decoders of pairs; images.
SAMPLE = [
    "bart",
    "bert",
    "bloom",
    "deepseek_v3",
    "gemma3",
    "gemma3n_text",
    "gpt2",
    "gpt_oss",
    "jamba",
    "llama",
    "mamba2",
    "qwen3_next",
    "xlnet",
]
BUILDABLE = [name for name in causal_lm_types() if name not in UNBUILDABLE]
TYPES = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in BUILDABLE if name not in SAMPLE)]


def logits(model: PreTrainedModel, prompts: list[str]) -> torch.Tensor:
    inputs = tiny_tokenizer()(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


@pytest.mark.parametrize("model_type", TYPES)
def test_runs_on_a_padded_batch(model_type: str) -> None:
    model = tiny_model(model_type)
    longest = max(len(ids) for ids in tiny_tokenizer()(PROMPTS)["input_ids"])

    result = logits(model, PROMPTS)

    assert result.shape == (len(PROMPTS), longest, VOCABULARY)
    assert result.isfinite().all()
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("model_type", TYPES)
def test_is_small(model_type: str) -> None:
    config = tiny_config(model_type).get_text_config(decoder=True)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_attention_heads": HEADS}

    assert {name: getattr(config, name, size) for name, size in sizes.items()} == sizes
    # A layer that attends more than once in a pass counts as several, in some types.
    assert LAYERS <= getattr(config, "num_hidden_layers", LAYERS) <= 4 * LAYERS
    assert getattr(config, "max_position_embeddings", POSITIONS) not in range(128)  # -1 is without limit
    assert sum(parameter.numel() for parameter in tiny_model(model_type).parameters()) < 2_000_000


@pytest.mark.parametrize("model_type", TYPES)
def test_same_seed_gives_same_weights(model_type: str) -> None:
    weights, again, other = (tiny_model(model_type, seed=seed).state_dict() for seed in (0, 0, 1))

    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize("model_type", TYPES)
def test_logits_depend_on_every_token_before(model_type: str) -> None:
    model = tiny_model(model_type)
    first, second = (logits(model, [f"{start} capital of France is"])[0, -1] for start in ("The", "That"))

    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("model_type", TYPES)
def test_no_weight_is_zero_or_lost(model_type: str) -> None:
    for name, weight in tiny_model(model_type).state_dict().items():
        if weight.is_floating_point():
            assert weight.isfinite().all(), name
            assert weight.any(), name


@pytest.mark.parametrize("model_type", ["gemma3", "jamba", "lfm3", "nemotron_h", "qwen3_next"])
def test_hybrids_show_each_kind_of_layer(model_type: str) -> None:
    default = AutoConfig.for_model(model_type).get_text_config()

    assert set(tiny_config(model_type).get_text_config().layer_types) == set(default.layer_types)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3_moe", "gemma2"])
def test_attention_is_far_from_uniform(model_type: str) -> None:
    model = tiny_model(model_type, attn_implementation="eager")
    inputs = tiny_tokenizer()(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        attentions = model(input_ids=inputs["input_ids"], output_attentions=True).attentions

    for attention in attentions:
        last_query = attention[0, :, -1]
        assert last_query.max() > 2 / last_query.shape[-1]


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    tiny_model("llama", seed=5)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model_type", sorted(UNBUILDABLE))
def test_unbuildable_type_says_why(model_type: str) -> None:
    with pytest.raises(LookupError, match="does not read input_ids"):
        tiny_model(model_type)


@pytest.mark.parametrize("model_type", sorted(UNBUILDABLE))
def test_unbuildable_type_does_not_run_on_tokens(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "UNBUILDABLE", {})
    without_layer_inputs = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    monkeypatch.setitem(tiny_configs.EXCEPTIONS, "gemma4_text", without_layer_inputs)

    # The model wants another's keys and values, or its configuration does not hold together without them.
    with pytest.raises(ValueError, match=r"shared_kv_states cannot be None|layer types producing a cache"):
        logits(tiny_model(model_type), PROMPTS)


def test_unknown_type_is_refused() -> None:
    with pytest.raises(LookupError, match="no causal LM of type 'resnet'"):
        tiny_config("resnet")


def test_tokenizer_reads_any_text_with_offsets() -> None:
    tokenizer = tiny_tokenizer()
    text = "The capital of France is Paris, 北京 or Zürich."
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = [text[start:end] for start, end in encoded["offset_mapping"]]

    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text
    assert " Paris" in spans
    assert len(tokenizer) <= VOCABULARY - tiny_configs.RESERVED
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert encoded["input_ids"][0] == tokenizer.bos_token_id
