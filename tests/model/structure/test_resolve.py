"""Which module plays which part, in models that differ in how they are built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.structure.rename import RenameConfig
from nnterp_mcp.verification.tiny import tiny_model
from tests.model.families import fresh, standardized

PATHS = {
    "gpt2": "transformer.wte transformer.h.1 transformer.h.1.attn transformer.h.1.mlp transformer.ln_f",
    "llama": "model.embed_tokens model.layers.1 model.layers.1.self_attn model.layers.1.mlp model.norm",
    "gpt_neox": "gpt_neox.embed_in gpt_neox.layers.1 gpt_neox.layers.1.attention gpt_neox.layers.1.mlp "
    "gpt_neox.final_layer_norm",
    "mpt": "transformer.wte transformer.blocks.1 transformer.blocks.1.attn transformer.blocks.1.ffn transformer.norm_f",
    "nanochat": "model.embed_tokens model.layers.1 model.layers.1.self_attn model.layers.1.mlp model.norm",
    "dbrx": "transformer.wte transformer.blocks.1 transformer.blocks.1.norm_attn_norm.attn transformer.blocks.1.ffn "
    "transformer.norm_f",
    "opt": "model.decoder.embed_tokens model.decoder.layers.1 model.decoder.layers.1.self_attn - "
    "model.decoder.final_layer_norm",
    "bert": "bert.embeddings.word_embeddings bert.encoder.layer.1 bert.encoder.layer.1.attention - -",
}
"""Embedding, layer, attention, MLP and final norm; - for what there is not."""


@pytest.mark.parametrize("model_type", PATHS)
def test_finds_each_part(model_type: str) -> None:
    anatomy = standardized(model_type).anatomy
    layer = anatomy.layers[1]
    found = (anatomy.embed_tokens, layer.block, layer.attention, layer.mlp, anatomy.ln_final)
    assert ["-" if site is None else site.path for site in found] == PATHS[model_type].split()
    assert (anatomy.num_layers, anatomy.num_heads, anatomy.hidden_size, anatomy.vocab_size) == (4, 4, 64, 320)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "falcon"])
def test_binds_the_standard_names(model_type: str) -> None:
    model = standardized(model_type)
    head = model.module.get_output_embeddings()
    assert model.lm_head._module is head
    assert model.embed_tokens._module is model.module.get_input_embeddings()
    assert len(model.layers) == model.num_layers == 4
    assert model.layers[2].self_attn is model.attentions[2]
    assert model.layers[2].mlp is model.mlps[2]
    assert isinstance(model.ln_final._module, nn.Module)
    assert "self_attn" in repr(model)


def test_tells_the_layers_of_a_hybrid_apart() -> None:
    model = standardized("nemotron_h")
    layers = model.anatomy.layers
    assert [layer.attention is not None for layer in layers] == [False, False, True, False]
    assert [layer.mlp is not None for layer in layers] == [False, True, False, True]
    assert layers[0].mixers == ("model.layers.0.mixer",)
    with pytest.raises(
        Unsupported, match=r"layer 0 of nemotron_h has no attention .*: the layers that have one are 2\."
    ):
        model.attentions_output[0]
    with pytest.raises(Unsupported, match=r"layer 2 of nemotron_h has no MLP module"):
        model.mlps_output[2]


def test_tells_sliding_from_full_attention() -> None:
    kinds = [layer.kind for layer in standardized("gemma2").anatomy.layers]
    assert kinds == ["sliding_attention", "full_attention"] * 2


def test_refuses_what_is_there_twice() -> None:
    with pytest.raises(Unsupported, match="2 MLP modules: block_sparse_moe, shared_mlp"):
        standardized("granitemoehybrid").mlps[1]
    model = fresh("longcat_flash")
    with pytest.raises(Unsupported, match="2 attention modules"):
        model.attentions[0]


def test_refuses_a_layer_that_does_not_run_on_text() -> None:
    model = standardized("mllama")
    idle = [layer.index for layer in model.anatomy.layers if not layer.runs]
    assert len(idle) == 1
    assert model.num_layers == len(model.layers)
    with pytest.raises(Unsupported, match="does not run on text alone"):
        model.layers_output[idle[0]]


@pytest.mark.parametrize("layer", [4, -5, 40])
def test_refuses_a_layer_that_does_not_exist(layer: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"layer {layer} does not exist: gpt2 has layers 0 to 3\."):
        standardized("gpt2").layers_output[layer]


def test_refuses_a_layer_that_is_no_number() -> None:
    with pytest.raises(InvalidRequest, match=r"layer 'last' is not a number: gpt2 has layers 0 to 3\."):
        standardized("gpt2").layers_output["last"]  # type: ignore[index]


def test_refuses_several_streams_by_name() -> None:
    model = fresh("gemma3n_text")
    with pytest.raises(Unsupported, match=r"gemma3n_text cannot be read .* 4 residual streams"):
        model.layers_output[0]
    with pytest.raises(Unsupported, match="4 residual streams"):
        model.project_on_vocab(torch.randn(64))


def test_takes_a_persons_word_for_which_module_is_which() -> None:
    config = RenameConfig(attn_name="self_attn.0", mlp_name="mlps.1")
    model = fresh("longcat_flash", rename_config=config)
    assert model.attentions[1].path.endswith("layers.1.self_attn.0")
    assert model.mlps[1].path.endswith("layers.1.mlps.1")
    ignoring = fresh("gpt2", rename_config=RenameConfig(ignore_mlp=True))
    assert all(layer.mlp is None for layer in ignoring.anatomy.layers)


def test_contribution_excludes_the_residual_stream() -> None:
    facts = standardized("bloom").anatomy.layers[0]
    assert facts.attention_contribution is not None
    assert facts.attention_contribution.path == "transformer.h.0.self_attention.dense"
    assert facts.mlp_contribution is not None
    assert facts.mlp_contribution.path == "transformer.h.0.mlp.dense_4h_to_h"
    assert facts.additive
    assert standardized("llama").anatomy.layers[0].additive
    assert standardized("gemma2").anatomy.layers[0].additive  # behind the norm that follows each


def test_leaves_the_model_as_it_was() -> None:
    weights = tiny_model("llama")
    before = {name: parameter.clone() for name, parameter in weights.named_parameters()}
    implementation = weights.config._attn_implementation
    fresh_model = fresh("llama")
    assert fresh_model.attention == implementation == "sdpa"
    assert all(torch.equal(before[name], parameter) for name, parameter in fresh_model.module.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fresh_model.module.modules())
