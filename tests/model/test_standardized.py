"""Reading and assigning inside a trace, against plain transformers with plain hooks."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.verification import reference
from nnterp_mcp.verification.tiny import tiny_model
from tests.model.families import FAMILIES, fresh, standardized

PROMPT = "The capital of France is Paris"
SHORT = "The capital"


def ids_of(model: Any, prompt: str = PROMPT) -> Tensor:
    ids = model.tokenizer(prompt, return_tensors="pt").input_ids
    assert ids.shape[1] > 2
    return ids


def capture(module: nn.Module, model: Any, side: str) -> Tensor:
    """What plain transformers passes into or out of a module: its first floating-point tensor."""
    found: list[Tensor] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        items = [*args, *kwargs.values()] if side == "input" else output if isinstance(output, tuple) else [output]
        found.append(next(x for x in items if isinstance(x, Tensor) and x.is_floating_point()).clone())

    handle = module.register_forward_hook(hook, with_kwargs=True)
    reference.run_plain(model.module, ids_of(model))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("part", ["layers", "attentions", "mlps"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_reads_what_plain_hooks_see(model_type: str, part: str, side: str) -> None:
    model = standardized(model_type)
    with torch.no_grad(), model.trace(PROMPT):
        read = nnsight.save(getattr(model, f"{part}_{side}")[2].clone())
    layer = model.anatomy.layers[2]
    site = {"layers": layer.block, "attentions": layer.attention, "mlps": layer.mlp}[part]
    assert site is not None
    expected = capture(site.module, model, side)
    assert read.shape == expected.shape == (1, ids_of(model).shape[1], 64)
    assert read.std() > 0.01
    torch.testing.assert_close(read, expected)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("accessor", ["layers_input", "attentions_input", "mlps_output", "attentions_output"])
def test_assigning_changes_the_logits_as_it_must(model_type: str, accessor: str) -> None:
    model = standardized(model_type)
    with torch.no_grad(), model.trace(PROMPT):
        states = getattr(model, accessor)
        states[1] = states[1] * 0
        assigned = nnsight.save(model.logits)
    with torch.no_grad(), model.trace(PROMPT):
        states = getattr(model, accessor)
        states[1][:] = 0
        in_place = nnsight.save(model.logits)
    clean = reference.run_plain(model.module, ids_of(model)).logits
    assert (assigned - clean).abs().max() > 0.01
    torch.testing.assert_close(assigned, in_place)


def test_reads_token_embeddings_logits_and_inputs() -> None:
    model = standardized("gpt2")
    with torch.no_grad(), model.trace([PROMPT, SHORT]):
        ids = nnsight.save(model.input_ids)
        mask = nnsight.save(model.attention_mask)
        size = nnsight.save(model.input_size)
        embedded = nnsight.save(model.token_embeddings)
        logits = nnsight.save(model.logits)
        probs = nnsight.save(model.next_token_probs)
    assert tuple(size) == tuple(ids.shape) == tuple(mask.shape)
    assert mask[1, 0] == 0
    assert mask.sum() < mask.numel()
    torch.testing.assert_close(embedded, model.embed_tokens._module(ids))
    torch.testing.assert_close(probs, logits[:, -1].softmax(-1))


def test_assigning_embeddings_and_logits_takes_effect() -> None:
    model = standardized("llama")
    with torch.no_grad(), model.trace(PROMPT):
        model.token_embeddings = model.token_embeddings.flip(1)
        flipped = nnsight.save(model.logits)
    with torch.no_grad(), model.trace(PROMPT):
        model.logits = model.logits * 0
        zero = nnsight.save(model.output.logits)
    expected = reference.run_plain(model.module, ids_of(model).flip(1)).logits
    torch.testing.assert_close(flipped, expected)
    assert not zero.any()


@pytest.mark.parametrize("model_type", ["bart", "roberta", "gpt2"])
def test_a_batch_of_texts_gives_what_each_gives_alone(model_type: str) -> None:
    model = standardized(model_type)
    assert model.padding_side == ("left" if model_type == "gpt2" else "right")
    with torch.no_grad(), model.trace([PROMPT, SHORT]):
        together = nnsight.save(model.next_token_probs)
    alone = reference.run_plain(model.module, ids_of(model, SHORT)).logits[:, -1].softmax(-1)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-6)


def test_what_the_model_overwrites_stays_as_it_was_read_and_can_be_edited() -> None:
    model = standardized("falcon")
    layer = model.anatomy.layers[1]
    assert layer.mlp is not None
    assert layer.mlp.mutated
    with torch.no_grad(), model.trace(PROMPT):
        kept = nnsight.save(model.mlps_output[1])
        model.logits  # noqa: B018 - the model goes on
    torch.testing.assert_close(kept, capture(layer.mlp.module, model, "output"))
    with torch.no_grad(), model.trace(PROMPT):
        model.mlps_output[1][:] = 0
        zeroed = nnsight.save(model.logits)
    with reference.replacing_output(layer.mlp.module, torch.zeros_like):
        torch.testing.assert_close(zeroed, reference.run_plain(model.module, ids_of(model)).logits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_skipping_and_steering_equal_plain_hooks(model_type: str) -> None:
    model, ids = standardized(model_type), ids_of(standardized(model_type))
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.trace(PROMPT):
        before = nnsight.save(model.layers_input[1].clone())
        model.skip_layers(1, 2)
        skipped = nnsight.save(model.logits)
    with torch.no_grad(), model.trace(PROMPT):
        model.steer(layers=[2, 0], steering_vector=vector, factor=0.5, token_positions=[1, 2])
        steered = nnsight.save(model.logits)
    modules = [layer.block.module for layer in model.anatomy.layers]
    with reference.replacing_output(modules[2], lambda _: before):
        torch.testing.assert_close(skipped, reference.run_plain(model.module, ids).logits)

    def add(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, 1:3] += 0.5 * vector
        return states

    with reference.replacing_output(modules[0], add), reference.replacing_output(modules[2], add):
        torch.testing.assert_close(steered, reference.run_plain(model.module, ids).logits)


def test_skipping_with_stored_states_continues_where_they_came_from() -> None:
    model = standardized("gpt2")
    with torch.no_grad(), model.trace(PROMPT) as tracer:
        stored = nnsight.save(model.layers_output[2].clone())
        tracer.stop()
    with torch.no_grad(), model.trace(PROMPT):
        model.skip_layers(0, 2, skip_with=stored)
        logits = nnsight.save(model.logits)
    torch.testing.assert_close(logits, reference.run_plain(model.module, ids_of(model)).logits)


def test_steers_chosen_rows_only() -> None:
    model = standardized("llama")
    with torch.no_grad(), model.trace([PROMPT, PROMPT]):
        model.steer(1, torch.ones(64), factor=3, batch_index=1, token_positions=-1)
        logits = nnsight.save(model.logits)
    clean = reference.run_plain(model.module, ids_of(model)).logits[0]
    torch.testing.assert_close(logits[0], clean)
    torch.testing.assert_close(logits[1, :-1], clean[:-1])
    assert (logits[1, -1] - clean[-1]).abs().max() > 0.01


def test_steering_refuses_what_does_not_fit() -> None:
    model = standardized("llama")
    with pytest.raises(InvalidRequest, match="width 63 does not fit: llama has a hidden size of 64"):
        model.steer(1, torch.ones(63))
    with pytest.raises(InvalidRequest, match="two names of one thing"):
        model.steer(1, torch.ones(64), positions=1, token_positions=1)
    with pytest.raises(InvalidRequest, match="layers 3 to 1 cannot be skipped"):
        model.skip_layers(3, 1)


def test_steering_at_every_step_of_a_generation() -> None:
    model = standardized("llama")
    ids = ids_of(model)
    with torch.no_grad(), model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        for _ in tracer.iter[:3]:
            model.layers_output[1] = model.layers_output[1] * 0.5
        generated = nnsight.save(tracer.result)
    block = model.anatomy.layers[1].block.module
    with reference.replacing_output(block, lambda states: states * 0.5), torch.no_grad():
        expected = model.module.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.tolist() == expected.tolist()
    assert generated.shape[1] == ids.shape[1] + 3


def test_gives_the_nearest_tokens() -> None:
    model = standardized("llama")
    states = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        nearest = model.get_topk_closest_tokens(states, k=3)
        one = model.get_topk_closest_tokens(states[0], k=3)
        probs = model.module.lm_head(model.module.model.norm(states)).softmax(-1)
    assert isinstance(nearest, list)
    assert list(nearest[0]) == list(one)
    assert list(one.values()) == pytest.approx(probs[0].topk(3).values.tolist())
    with pytest.raises(InvalidRequest, match=r"shape \(1, 1, 64\) came"):
        model.get_topk_closest_tokens(states[None, :1], k=3)


def test_what_fails_a_check_is_refused_with_its_reason_and_nothing_else() -> None:
    model = fresh("mamba")
    assert [check.name for check in model.checks if not check.passed] == ["attention", "attention_edit"]
    model.require("lens")
    with pytest.raises(Unsupported, match="mamba: no layer forms attention probabilities"):
        model.require("attention")
    assert model.can("batch")


def test_needs_a_tokenizer_for_weights_that_come_from_nowhere() -> None:
    from nnterp_mcp.model.standardized import StandardizedTransformer

    with pytest.raises(InvalidRequest, match="a LlamaForCausalLM in memory came without a tokenizer"):
        StandardizedTransformer(tiny_model("llama"))
    with pytest.raises(InvalidRequest, match="attn_implementation='sdpa' forms no attention"):
        StandardizedTransformer("anything", enable_attention_probs=True, attn_implementation="sdpa")
    with pytest.raises(Unsupported, match="remote=True is not offered"):
        StandardizedTransformer("anything", remote=True)


def test_reads_a_folder(tiny: Any) -> None:
    from nnterp_mcp.model.standardized import StandardizedTransformer

    model = StandardizedTransformer(str(tiny("gpt2")), device_map=None)
    assert model.name.endswith("tiny-gpt2")
    assert all(check.passed for check in model.checks)
    with torch.no_grad(), model.trace(PROMPT):
        logits = nnsight.save(model.logits)
    torch.testing.assert_close(logits, reference.run_plain(model.module, ids_of(model)).logits)
