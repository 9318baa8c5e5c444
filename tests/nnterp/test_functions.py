"""Code that was written for nnterp 1.3: its parameters, names, warnings and errors; numbers as plain transformers'."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp import StandardizedTransformer
from nnterp_mcp.nnterp import functions as compat
from nnterp_mcp.nnterp.functions import RenameConfig, TargetPrompt, get_ignores, get_num_attention_heads, get_vocab_size
from nnterp_mcp.nnterp.steering import steer
from nnterp_mcp.verification import reference
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.model.families import fresh, standardized

PROMPTS = ["The capital of France is", "Spain", "That of Spain is Madrid, and Paris"]

PARAMETERS = {
    "StandardizedTransformer": "model trust_remote_code check_renaming remote allow_dispatch enable_attention_probs "
    "check_attn_probs_with_trace allow_multimodal rename_config",
    "get_embed_tokens": "model",
    "get_layers": "model",
    "get_num_layers": "nn_model",
    "get_layer": "nn_model layer",
    "get_layer_input": "nn_model layer",
    "get_layer_output": "nn_model layer",
    "get_attention": "nn_model layer",
    "get_attention_output": "nn_model layer",
    "get_mlp": "nn_model layer",
    "get_mlp_output": "nn_model layer",
    "get_logits": "nn_model",
    "get_unembed_norm": "nn_model",
    "get_unembed": "nn_model",
    "project_on_vocab": "nn_model h",
    "get_next_token_probs": "nn_model",
    "set_layer_output": "nn_model layer tensor",
    "get_token_activations": "nn_model prompts layers get_activations remote idx tracer",
    "collect_last_token_activations_session": "nn_model prompts batch_size layers get_activations remote idx",
    "collect_token_activations_batched": "nn_model prompts batch_size layers get_activations remote idx tqdm "
    "use_session",
    "compute_next_token_probs": "nn_model prompt remote",
    "logit_lens": "nn_model prompts remote return_inv_logits",
    "patchscope_lens": "nn_model source_prompts target_patch_prompts layers latents remote",
    "patchscope_generate": "nn_model prompts target_patch_prompt max_length layers remote max_batch_size",
    "patch_object_attn_lens": "nn_model source_prompts target_prompts attn_idx_patch num_patches",
    "repeat_prompt": "words rel sep placeholder index_to_patch",
    "it_repeat_prompt": "tokenizer words rel sep placeholder complete_prompt add_user_instr use_system_prompt",
    "get_first_tokens": "words llm_or_tokenizer use_hacky_implementation",
    "next_token_probs_unsqueeze": "nn_model prompt remote",
    "run_prompts": "nn_model prompts batch_size get_probs_func func_kwargs remote tqdm",
    "get_rename_dict": "rename_config",
    "get_ignores": "model rename_config",
    "get_num_attention_heads": "model raise_error rename_config",
    "get_hidden_size": "model raise_error rename_config",
    "get_vocab_size": "model raise_error rename_config",
    "ModuleAccessor": "model rename_config rename",
    "Prompt": "prompt target_tokens target_strings",
    "RenameConfig": "attn_name mlp_name ln_final_name lm_head_name model_name layers_name attn_prob_source ignore_mlp "
    "ignore_attn attn_head_config_key hidden_size_config_key vocab_size_config_key",
}
"""Parameters of nnterp 1.3.0's public functions and classes, in its order."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_have_nnterps_names_and_order(name: str) -> None:
    wanted = PARAMETERS[name].split()
    assert list(inspect.signature(getattr(compat, name)).parameters)[: len(wanted)] == wanted


def plain_gpt2() -> Any:
    return tiny_model("gpt2")


def plain_probs(model: Any, tokenizer: Any, prompt: str) -> Tensor:
    """The next token's distribution, of a prompt by itself."""
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt"), use_cache=False).logits[0, -1].softmax(-1)


def plain_states(model: Any, blocks: Any, ids: Tensor) -> Tensor:
    """The state after each block at the last token."""
    found: dict[int, Tensor] = {}
    with reference.capturing_output(list(blocks), found), torch.no_grad():
        reference.run_plain(model, ids)
    return torch.stack([found[layer][0, -1] for layer in range(len(found))])


@pytest.mark.parametrize("loaded", [False, True])
def test_tokenizer_kwargs_reach_the_tokenizer(tiny: Callable[..., Path], loaded: bool) -> None:
    folder = tiny("gpt2")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given = {"padding_side": "right", "model_max_length": 77}
    options: dict[str, Any] = {"tokenizer": AutoTokenizer.from_pretrained(folder)} if loaded else {}
    model = StandardizedTransformer(str(folder), dispatch=True, tokenizer_kwargs=given, **options)
    assert (model.tokenizer.padding_side, model.tokenizer.model_max_length) == ("right", 77)
    with torch.no_grad(), model.trace(PROMPTS):
        mask = nnsight.save(model.attention_mask)
        probs = nnsight.save(model.next_token_probs)
    assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=True)
    assert not mask[1, -1]
    expected = torch.stack([plain_probs(plain, tokenizer, prompt) for prompt in PROMPTS])
    torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("call", ["method", "function", "function on nnsight's own"])
def test_positions_of_steer_are_deprecated(call: str) -> None:
    plain, model = plain_gpt2(), standardized("gpt2")
    other = TransformersModel(plain_gpt2(), tokenizer=tiny_tokenizer(), task="text-generation")
    traced: Any = other if call.endswith("own") else model
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))

    def steered(**where: Any) -> Tensor:
        with torch.no_grad(), traced.trace(PROMPTS[0]):
            if call == "method":
                model.steer(1, vector, 2.0, **where)
            else:
                steer(traced, 1, vector, 2.0, **where)
            logits = nnsight.save(traced.output.logits)
        return logits  # noqa: RET504 - the trace ends before

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        old = steered(positions=[1, 2])
    assert [(warning.category, Path(warning.filename).name) for warning in told] == [
        (DeprecationWarning, Path(__file__).name)
    ]
    assert "positions is deprecated: use token_positions" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = steered(token_positions=[1, 2])

    def add(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, [1, 2]] += 2 * vector
        return states

    ids = model.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with reference.replacing_output(plain.transformer.h[1], add), torch.no_grad():
        expected = reference.run_plain(plain, ids).logits
    torch.testing.assert_close(old, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new, old)
    with pytest.raises(ValueError, match="Cannot specify both positions and token_positions"):
        steered(positions=0, token_positions=0)


def test_a_batch_of_target_prompts_refuses_other_indices() -> None:
    batch = compat.TargetPromptBatch.from_prompts(["a", "b"], torch.tensor([0, -1]))
    assert [one.index_to_patch for one in batch] == [0, -1]
    with pytest.raises(ValueError, match="must be an integer, a list of them or a tensor, not 'last'"):
        compat.TargetPromptBatch.from_prompts(["a", "b"], "last")  # type: ignore[arg-type]


def test_latents_of_all_layers_or_of_the_chosen_ones() -> None:
    model, plain = standardized("gpt2"), plain_gpt2()
    target = TargetPrompt("Paris is Paris, that is", -2)
    ids = [model.tokenizer(prompt, return_tensors="pt").input_ids for prompt in PROMPTS[:2]]
    latents = torch.stack([plain_states(plain, plain.transformer.h, one) for one in ids], dim=1)
    goal = model.tokenizer(target.prompt, return_tensors="pt").input_ids
    layers = [3, 1]
    expected = torch.empty(2, 2, 320)
    for source in range(2):
        for place, layer in enumerate(layers):

            def put(states: Tensor, state: Tensor = latents[layer, source]) -> Tensor:
                states = states.clone()
                states[:, -2] = state
                return states

            with reference.replacing_output(plain.transformer.h[layer], put), torch.no_grad():
                expected[source, place] = reference.run_plain(plain, goal).logits[0, -1].softmax(-1)
    for given in (latents, list(latents), latents[layers]):
        found = compat.patchscope_lens(model, None, target, layers, given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    negative = compat.patchscope_lens(model, None, target, -1, latents)
    torch.testing.assert_close(negative[:, 0], expected[:, 0], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(3, 2, 64\): \(2 or 4 layers, sources, 64\) is needed"):
        compat.patchscope_lens(model, None, target, layers, latents[:3])
    with pytest.raises(ValueError, match="differ in shape from layer to layer"):
        compat.patchscope_lens(model, None, target, layers, [latents[0], latents[1, :1]])


@pytest.mark.parametrize(("family", "layers"), [("gpt2", "transformer.h"), ("opt", "model.decoder.layers")])
def test_modules_lie_where_nnterp_has_them(family: str, layers: str) -> None:
    model: Any = standardized(family)
    assert model._model is model.module
    assert model.model.layers is model.layers
    assert model.model.layers[1].self_attn is model.attentions[1] is model.attentions.get_module(1)
    assert model.model.ln_final is model.ln_final
    assert model.layers_output.get_module(1)._module is model.module.get_submodule(layers)[1]
    with pytest.raises(ValueError, match=r"the attention of layer 1 cannot be assigned to"):
        model.attentions[1] = torch.zeros(1)
    modules = compat.ModuleAccessor(model.module)
    assert modules.model is model.model._module
    assert modules.nn_model.layers[1]._module is modules.layers[1]
    with pytest.raises(AttributeError, match="Attribute config is not a module"):
        modules.config  # noqa: B018


def test_renaming_takes_every_form_that_nnterp_had() -> None:
    model = fresh(
        "gpt2", attn_rename="nonexistent", mlp_rename="c_proj", rename={"ln_1": "first_norm", "attn": "self_attn"}
    )
    block = model.module.transformer.h[1]
    assert model.layers[1].first_norm._module is block.ln_1
    assert model.attentions[1]._module is block.attn
    assert model.rename_config == RenameConfig(attn_name=["nonexistent", "attn"], mlp_name="c_proj")


def test_sizes_are_those_of_models_of_transformers_too() -> None:
    opt, mamba = tiny_model("opt"), tiny_model("mamba")
    assert (get_vocab_size(opt), compat.get_hidden_size(opt), get_num_attention_heads(opt)) == (320, 64, 4)
    assert (get_ignores(opt), get_ignores(mamba)) == (["mlp"], ["mlp", "attention"])
    assert get_num_attention_heads(mamba, raise_error=False) is None
    assert get_num_attention_heads(mamba, rename_config=RenameConfig(attn_head_config_key=7)) == 7
    with pytest.raises(ValueError, match="no attention heads"):
        get_num_attention_heads(mamba)


def test_attention_is_verified_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    class Dropped(compat.AttnProbFunction):
        def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
            inner = attention_module.source.attention_interface_1.source
            return inner if return_module_source else inner.nn_functional_dropout_0

    model = fresh("llama", enable_attention_probs=True, rename_config=RenameConfig(attn_prob_source=Dropped()))
    model.attention_probabilities.check_source(1)
    model.attention_probabilities.print_source(1)
    assert "dropout" in capsys.readouterr().out
    plain = tiny_model("llama", attn_implementation="eager")
    ids = model.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with torch.no_grad(), model.trace(PROMPTS[0]):
        probs = nnsight.save(model.attention_probabilities[1].clone())
    with torch.no_grad():
        torch.testing.assert_close(probs, plain(ids, output_attentions=True, use_cache=False).attentions[1])
    model.set_attention("sdpa")
    with pytest.raises(compat.RenamingError):
        model.attention_probabilities.check_source(1)


def test_functions_take_models_that_nnsight_wrapped() -> None:
    """Their passes run on the same weights; in a trace of the model's own, its values are read."""
    weights, plain, tokenizer = tiny_model("gpt2"), plain_gpt2(), tiny_tokenizer()
    model = TransformersModel(weights, tokenizer=tokenizer, task="text-generation")
    ids = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in PROMPTS]
    states = torch.stack([plain_states(plain, plain.transformer.h, one) for one in ids], dim=1)
    expected = torch.stack([plain_probs(plain, tokenizer, prompt) for prompt in PROMPTS])
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(compat.get_token_activations(model, PROMPTS), states, **close)
    torch.testing.assert_close(
        compat.collect_last_token_activations_session(model, PROMPTS, 2, layers=[1, 3]), states[[1, 3]], **close
    )
    torch.testing.assert_close(compat.compute_next_token_probs(model, PROMPTS), expected, **close)
    torch.testing.assert_close(compat.logit_lens(model, PROMPTS)[:, -1], expected, **close)
    prompts = [compat.Prompt.from_strings(prompt, " Paris", model) for prompt in PROMPTS]
    found = compat.run_prompts(model, prompts, tqdm=None)["target"][:, 0]
    torch.testing.assert_close(found, expected[:, prompts[0].target_tokens["target"]].sum(-1), **close)
    with torch.no_grad(), model.trace(PROMPTS[0]) as tracer:
        read = nnsight.save(compat.get_token_activations(model, tracer=tracer))
    torch.testing.assert_close(read[:, 0], states[:, 0], **close)
    kept = compat.patchscope_lens(model, PROMPTS[0], TargetPrompt(PROMPTS[0], -1))
    torch.testing.assert_close(kept[0], expected[:1].expand(4, -1), **close)
    with pytest.raises(ValueError, match="is no model of nnsight's"):
        compat.logit_lens(weights, PROMPTS)  # pyright: ignore[reportArgumentType]
