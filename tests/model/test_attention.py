"""Attention probabilities, queries, keys, values and heads, against plain transformers."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.verification import reference
from tests.model.families import FAMILIES, fresh, standardized

PROMPT = "The capital of France is Paris"


def ids_of(model: Any) -> Tensor:
    return model.tokenizer(PROMPT, return_tensors="pt").input_ids


@pytest.mark.parametrize("model_type", [*FAMILIES, "bloom", "gpt_oss", "falcon", "deepseek_v3"])
def test_probabilities_are_those_that_transformers_returns(model_type: str) -> None:
    model = standardized(model_type)
    ids = ids_of(model)
    saved: dict[int, Tensor] = {}
    with torch.no_grad(), model.trace(PROMPT):
        for layer in range(4):
            saved[layer] = nnsight.save(model.attention_probabilities[layer])
    returned = reference.run_plain(model.module, ids, output_attentions=True).attentions
    assert len(returned) == 4
    for layer in range(4):
        assert saved[layer].shape == (1, 4, ids.shape[1], ids.shape[1])
        torch.testing.assert_close(saved[layer], returned[layer].view_as(saved[layer]))
    sums = torch.stack(list(saved.values())).sum(-1)
    if model_type == "gpt_oss":
        assert sums.max() < 1
        assert "sink" in next(check.detail for check in model.checks if check.name == "attention")
    else:
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_needs_eager_attention_and_says_how_to_get_it() -> None:
    model = fresh("llama")
    assert model.attention == "sdpa"
    with pytest.raises(Unsupported, match="llama forms no attention probabilities under sdpa attention") as caught:
        model.attention_probabilities[0]
    assert "set_attention" in caught.value.next_step
    assert not model.attention_probabilities.enabled


def test_switching_attention_keeps_weights_and_logits() -> None:
    model = fresh("llama")
    ids = ids_of(model)
    pointers = [parameter.data_ptr() for parameter in model.module.parameters()]
    before = reference.run_plain(model.module, ids).logits
    model.set_attention("eager")
    eager = reference.run_plain(model.module, ids).logits
    with torch.no_grad(), model.trace(PROMPT):
        pattern = nnsight.save(model.attention_probabilities[-1])
    model.set_attention("sdpa")
    assert model.attention == "sdpa"
    assert pattern.shape[1] == 4
    torch.testing.assert_close(eager, before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reference.run_plain(model.module, ids).logits, before)
    assert [parameter.data_ptr() for parameter in model.module.parameters()] == pointers


def test_knocking_out_and_renormalising_as_the_demo_does() -> None:
    model = standardized("gpt2")
    with torch.no_grad(), model.trace(PROMPT):
        pattern = model.attention_probabilities[2]
        pattern[:, :, :, 0] = 0
        pattern /= pattern.sum(dim=-1, keepdim=True).clamp_min(1e-9)
        logits = nnsight.save(model.logits)

    def knock_out(block: int, pattern: Tensor) -> Tensor:
        if block != 2:
            return pattern
        pattern[:, :, :, 0] = 0
        return pattern / pattern.sum(dim=-1, keepdim=True).clamp_min(1e-9)

    blocks = [layer.block.module for layer in model.anatomy.layers]
    with reference.replacing_softmax(blocks, ids_of(model).shape[1], knock_out):
        expected = reference.run_plain(model.module, ids_of(model)).logits
    assert (expected - reference.run_plain(model.module, ids_of(model)).logits).abs().max() > 0.01
    torch.testing.assert_close(logits, expected)


def test_a_softmax_of_the_traces_own_is_left_alone() -> None:
    model = standardized("llama")
    with torch.no_grad(), model.trace(PROMPT):
        query = model.queries[1]
        own = nnsight.save(torch.softmax(query @ query.transpose(-1, -2), dim=-1) @ query)
        pattern = nnsight.save(model.attention_probabilities[1])
    returned = reference.run_plain(model.module, ids_of(model), output_attentions=True).attentions[1]
    torch.testing.assert_close(pattern, returned)
    assert own.shape == (1, 4, ids_of(model).shape[1], 16)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_queries_keys_and_values_are_what_the_fused_kernel_gets(model_type: str, implementation: str) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    plain = fresh(model_type)
    kernel = functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query, key, value))
        return kernel(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = spy
    try:
        reference.run_plain(plain.module, ids_of(plain))
    finally:
        functional.scaled_dot_product_attention = kernel
    assert len(seen) == 4
    model = standardized(model_type, implementation)
    with torch.no_grad(), model.trace(PROMPT):
        query = nnsight.save(model.queries[2])
        key = nnsight.save(model.keys[2])
        value = nnsight.save(model.values[2])
    for ours, theirs in zip((query, key, value), seen[2], strict=True):
        shared = 4 // theirs.shape[1]
        torch.testing.assert_close(ours, theirs.repeat_interleave(shared, dim=1), rtol=1e-4, atol=1e-5)
        assert ours.shape == (1, 4, ids_of(model).shape[1], 16)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_editing_values_reaches_the_heads_outputs(implementation: str) -> None:
    model = standardized("llama", implementation)
    with torch.no_grad(), model.trace(PROMPT):
        model.values[1][:, 2] = 0
        heads = nnsight.save(model.heads_output[1].clone())
    assert not heads[:, :, 2].any()
    assert heads[:, :, [0, 1, 3]].abs().min() >= 0
    assert heads[:, :, 1].any()


def test_heads_outputs_are_probabilities_times_values() -> None:
    model = standardized("gpt_neox")
    with torch.no_grad(), model.trace(PROMPT):
        values = nnsight.save(model.values[3])
        pattern = nnsight.save(model.attention_probabilities[3])
        heads = nnsight.save(model.heads_output[3].clone())
    torch.testing.assert_close(heads, (pattern @ values).transpose(1, 2))


def test_reads_each_step_of_a_generation() -> None:
    model = standardized("llama")
    ids = ids_of(model)
    widths: list[tuple[int, ...]] = []
    with torch.no_grad(), model.generate(ids, max_new_tokens=3, min_new_tokens=3) as tracer:
        for _ in tracer.iter[:3]:
            widths.append(tuple(model.attention_probabilities[1].shape))  # noqa: PERF401
    length = ids.shape[1]
    assert widths == [(1, 4, length, length), (1, 4, 1, length + 1), (1, 4, 1, length + 2)]


def test_rows_of_separate_invokes_are_edited_separately() -> None:
    model = standardized("gpt2")
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(PROMPT):
            model.attention_probabilities[1][..., 1:] = 0
            edited = nnsight.save(model.logits)
        with tracer.invoke(PROMPT):
            clean = nnsight.save(model.logits)
    expected = reference.run_plain(model.module, ids_of(model)).logits
    torch.testing.assert_close(clean, expected)
    assert (edited - expected).abs().max() > 0.01


def test_gradients_flow_through_what_was_read() -> None:
    model = standardized("llama")
    with model.trace(PROMPT):
        pattern = model.attention_probabilities[1]
        loss = model.logits[0, -1].max()
        gradient = nnsight.save(torch.autograd.grad(loss, pattern)[0])
    assert gradient.shape[1] == 4
    assert gradient.abs().max() > 0


def test_shows_where_probabilities_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    standardized("gpt2").attention_probabilities.print_source()
    shown = capsys.readouterr().out
    assert "transformer.h.0.attn: eager_attention_forward" in shown
    assert "--> " in shown
    assert "value" in next(line for line in shown.splitlines() if line.startswith("-->"))


def test_an_error_in_a_trace_leaves_nothing_behind() -> None:
    model = standardized("llama")
    with pytest.raises(ZeroDivisionError), torch.no_grad(), model.trace(PROMPT):
        model.attention_probabilities[1][:] = 1 / 0
    assert not torch.overrides._get_current_function_mode_stack()
    with torch.no_grad(), model.trace(PROMPT) as tracer:
        model.attention_probabilities[1]
        tracer.stop()
    assert not torch.overrides._get_current_function_mode_stack()
    with torch.no_grad(), model.trace(PROMPT):
        logits = nnsight.save(model.logits)
    torch.testing.assert_close(logits, reference.run_plain(model.module, ids_of(model)).logits)
