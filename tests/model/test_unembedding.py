"""From hidden states to logits: exact in every precision, anywhere, and refused where it cannot be."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.verification import reference
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.model.families import FAMILIES, fresh, standardized

SCALED = ("gemma2", "cohere", "granite", "minicpm3", "falcon_h1", "nanochat")
"""Types in which norm and head alone are not the logits."""


@pytest.mark.parametrize("model_type", [*FAMILIES, *SCALED, "bert", "opt", "mamba"])
def test_the_last_layers_lens_is_the_logits_inside_a_trace_and_outside(model_type: str) -> None:
    model = standardized(model_type)
    ids = probe_ids(model.module, 6)
    with torch.no_grad(), model.trace(input_ids=ids):
        states = nnsight.save(model.layers_output[-1].clone())
        inside = nnsight.save(model.project_on_vocab(states))
        logits = nnsight.save(model.logits)
    with torch.no_grad():
        outside = model.project_on_vocab(states)
    assert logits.std() > 0.1
    torch.testing.assert_close(inside, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outside, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, reference.run_plain(model.module, ids).logits)


@pytest.mark.parametrize("model_type", SCALED)
def test_norm_and_head_alone_would_be_wrong_there(model_type: str) -> None:
    model = standardized(model_type)
    assert not model.anatomy.head_is_direct
    states = 3 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        naive = model.lm_head._module(model.ln_final._module(states))
        exact = model.project_on_vocab(states)
    assert exact.shape == naive.shape == (4, 320)
    assert (naive - exact).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (2, 1, 3, 64), (0, 64)])
def test_takes_states_of_any_leading_shape(shape: tuple[int, ...]) -> None:
    for model_type in ("llama", "gemma2"):
        model = standardized(model_type)
        with torch.no_grad():
            assert model.project_on_vocab(torch.randn(shape)).shape == (*shape[:-1], 320)


def test_refuses_states_of_another_width() -> None:
    with pytest.raises(InvalidRequest, match="width 32 cannot be projected: llama has a hidden size of 64"):
        standardized("llama").project_on_vocab(torch.zeros(32))


def test_a_projection_in_a_trace_changes_nothing_that_the_trace_reads() -> None:
    model = standardized("gemma2")
    ids = probe_ids(model.module, 6)
    with torch.no_grad(), model.trace(input_ids=ids):
        early = model.layers_output[1]
        model.project_on_vocab(early)
        late = nnsight.save(model.layers_output[2].clone())
        logits = nnsight.save(model.logits)
    captured: dict[int, Any] = {}
    with reference.capturing_output([model.anatomy.layers[2].block.module], captured):
        expected = reference.run_plain(model.module, ids).logits
    torch.testing.assert_close(late, captured[0])
    torch.testing.assert_close(logits, expected)


def test_gradients_reach_the_states() -> None:
    for model_type in ("llama", "gemma2"):
        states = torch.randn(2, 64, requires_grad=True)
        standardized(model_type).project_on_vocab(states)[:, 7].sum().backward()
        assert states.grad is not None
        assert states.grad.abs().min() >= 0
        assert states.grad.any()


@pytest.mark.parametrize("model_type", [*FAMILIES, "granite"])
def test_is_exact_in_bfloat16(model_type: str) -> None:
    weights = tiny_model(model_type).to(torch.bfloat16)
    model = StandardizedTransformer(weights, tokenizer=tiny_tokenizer(), name=model_type)
    assert [check.name for check in model.checks if not check.passed] == []
    ids = probe_ids(weights, 6)
    with torch.no_grad(), model.trace(input_ids=ids):
        states = nnsight.save(model.layers_output[-1].clone())
        logits = nnsight.save(model.logits)
    with torch.no_grad():
        ours = model.project_on_vocab(states.float())
    assert ours.dtype == logits.dtype
    torch.testing.assert_close(ours, logits, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    from nnterp_mcp.verification.tiny import tiny_config

    config = tiny_config("llama")
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    weights = AutoModelForCausalLM.from_config(config).eval()
    assert (weights.lm_head.weight is weights.model.embed_tokens.weight) is tied
    model = StandardizedTransformer(weights, tokenizer=tiny_tokenizer(), name="llama")
    assert [check.name for check in model.checks if not check.passed] == []


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("how", ["offloaded", "dispatched"])
def test_works_where_weights_are_placed_by_accelerate(model_type: str, how: str) -> None:
    expected_from = tiny_model(model_type)
    ids = probe_ids(expected_from, 6)
    expected = reference.run_plain(expected_from, ids).logits
    weights = tiny_model(model_type)
    if how == "offloaded":
        cpu_offload(weights, execution_device=torch.device("cpu"))
        assert next(weights.parameters()).device.type == "meta"
        weights.hf_device_map = {"": "cpu"}  # as from_pretrained leaves it
    else:
        dispatch_model(weights, {"": "cpu"}, force_hooks=True)
    model = StandardizedTransformer(weights, tokenizer=tiny_tokenizer(), name=model_type)
    assert [(check.name, check.detail) for check in model.checks if not check.passed] == []
    with torch.no_grad(), model.trace(input_ids=ids):
        states = nnsight.save(model.layers_output[-1].clone())
        logits = nnsight.save(model.logits)
    with torch.no_grad():
        torch.testing.assert_close(model.project_on_vocab(states), expected)
    torch.testing.assert_close(logits, expected)


def test_every_family_of_the_suite_is_what_it_says() -> None:
    sizes = {name: (fresh(name).num_layers, fresh(name).hidden_size, fresh(name).vocab_size) for name in FAMILIES}
    assert set(sizes.values()) == {(4, 64, 320)}
