"""Standard names without tracing, through nnsight's own renaming, and nnterp's functions."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from nnsight import NNsight, TransformersModel

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.structure.modules import ModuleAccessor
from nnterp_mcp.model.structure.rename import RenameConfig, get_rename_dict
from nnterp_mcp.nnterp import functions as compat
from nnterp_mcp.verification import reference
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.model.families import standardized

PROMPT = "The capital of France is Paris"


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "gpt_neox", "bloom", "mpt", "falcon", "opt", "phi"])
def test_nnsight_renames_the_usual_families(model_type: str) -> None:
    weights = tiny_model(model_type)
    renamed: Any = NNsight(weights, rename=get_rename_dict())
    anatomy = standardized(model_type).anatomy
    assert len(renamed.layers) == 4
    assert renamed.layers._module is weights.get_submodule(anatomy.layers_module.path)
    assert anatomy.ln_final is not None
    assert renamed.ln_final._module is weights.get_submodule(anatomy.ln_final.path)
    assert renamed.embed_tokens._module is weights.get_input_embeddings()
    assert renamed.lm_head._module is weights.get_output_embeddings()
    assert anatomy.layers[1].attention is not None
    assert renamed.layers[1].self_attn._module is weights.get_submodule(anatomy.layers[1].attention.path)
    assert renamed.model._module is not weights


def test_renaming_takes_further_names() -> None:
    names = get_rename_dict(RenameConfig(attn_name="mixer", layers_name=["stack", "tower"], lm_head_name="out"))
    assert (names["mixer"], names["stack"], names["tower"], names["out"]) == (
        "self_attn",
        "layers",
        "layers",
        "lm_head",
    )


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "bloom"])
def test_modules_are_reached_without_a_trace(model_type: str) -> None:
    weights = tiny_model(model_type)
    modules = ModuleAccessor(weights, rename={"lm_head": "unembedding"})
    assert modules.get_layers() is modules.layers
    assert len(modules.layers) == 4
    assert modules.get_embed_tokens() is weights.get_input_embeddings()
    assert modules.get_unembed() is modules.lm_head is modules.unembedding is weights.get_output_embeddings()
    assert modules.get_attention(1) is modules.layers[1].get_submodule(
        {"gpt2": "attn", "llama": "self_attn", "gpt_neox": "attention", "bloom": "self_attention"}[model_type]
    )
    assert modules.get_mlp(-1) is modules.layers[3].mlp
    assert modules.ln_final is modules.get_unembed_norm()
    with pytest.raises(AttributeError, match="Attribute lm_tail is not a module"):
        modules.lm_tail  # noqa: B018
    with pytest.raises(InvalidRequest, match="layer 9 does not exist"):
        modules.get_mlp(9)


def test_modules_that_are_not_there_are_refused() -> None:
    with pytest.raises(Unsupported, match="has no norm after its last layer"):
        ModuleAccessor(tiny_model("bert")).ln_final  # noqa: B018


def wrapped(kind: str) -> Any:
    if kind == "standardized":
        return standardized("gpt2")
    return TransformersModel(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), task="text-generation")


@pytest.mark.parametrize("kind", ["standardized", "plain"])
def test_nnterps_functions_read_and_assign(kind: str) -> None:
    model = wrapped(kind)
    plain = tiny_model("gpt2")
    ids = model.tokenizer(PROMPT, return_tensors="pt").input_ids
    captured: dict[int, torch.Tensor] = {}
    with reference.capturing_output(list(plain.transformer.h), captured):
        expected = reference.run_plain(plain, ids).logits
    assert compat.get_num_layers(model) == 4
    assert (compat.get_hidden_size(model), compat.get_vocab_size(model)) == (64, 320)
    assert compat.get_ignores(model) == []
    with torch.no_grad(), model.trace(PROMPT):
        entered = nnsight.save(compat.get_layer_input(model, 1).clone())
        attended = nnsight.save(compat.get_attention_output(model, 1).clone())
        fed = nnsight.save(compat.get_mlp_output(model, 1).clone())
        left = nnsight.save(compat.get_layer_output(model, 1).clone())
        lens = nnsight.save(compat.project_on_vocab(model, compat.get_layer_output(model, 3)))
        logits = nnsight.save(compat.get_logits(model))
    torch.testing.assert_close(entered, captured[0])
    torch.testing.assert_close(left, captured[1])
    torch.testing.assert_close(entered + attended + fed, left)
    torch.testing.assert_close(lens, expected)
    torch.testing.assert_close(logits, expected)
    with torch.no_grad(), model.trace(PROMPT):
        compat.set_layer_output(model, 1, compat.get_layer_output(model, 1) * 0.5)
        halved = nnsight.save(compat.get_next_token_probs(model))
    with reference.replacing_output(plain.transformer.h[1], lambda states: states * 0.5):
        torch.testing.assert_close(halved, reference.run_plain(plain, ids).logits[:, -1].softmax(-1))
    with torch.no_grad(), model.trace(PROMPT):
        compat.skip_layers(model, 1, 2)
        skipped = nnsight.save(compat.get_logits(model))
    with reference.replacing_output(plain.transformer.h[2], lambda states: captured[0]):
        torch.testing.assert_close(skipped, reference.run_plain(plain, ids).logits)


def test_nnterps_functions_collect() -> None:
    model = standardized("gpt2")
    plain = tiny_model("gpt2")
    prompts = [PROMPT, "The capital", "Paris is"]
    batched = compat.collect_token_activations_batched(model, prompts, batch_size=2, layers=[1, 3])
    second = compat.get_token_activations(model, prompts, layers=[1, 3], idx=1)
    probs = compat.compute_next_token_probs(model, prompts)
    assert batched.shape == second.shape == (2, 3, 64)
    for index, prompt in enumerate(prompts):
        captured: dict[int, torch.Tensor] = {}
        with reference.capturing_output(list(plain.transformer.h), captured):
            logits = reference.run_plain(plain, model.tokenizer(prompt, return_tensors="pt").input_ids).logits
        for row, layer in enumerate((1, 3)):
            torch.testing.assert_close(batched[row, index], captured[layer][0, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(second[row, index], captured[layer][0, 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probs[index], logits[0, -1].softmax(-1), rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidRequest, match="position 50 does not exist: prompt"):
        compat.get_token_activations(model, prompts, idx=50)
    with pytest.raises(InvalidRequest, match="prompts are missing"):
        compat.get_token_activations(model)
