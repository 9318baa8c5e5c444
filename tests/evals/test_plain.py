from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from evals.plain import Plain

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def plain(tiny: Callable[..., Path]) -> Plain:
    from evals.plain import Plain

    return Plain.load(tiny("llama"))


def test_what_is_read_after_layers_is_what_transformers_gives(plain: Plain):
    import torch

    whole = plain.model(torch.tensor([plain.ids(TEXT)]), output_hidden_states=True).hidden_states
    found = plain.read(TEXT, [plain.layer(at) for at in range(plain.depth)])
    for states, expected in zip(found[:-1], whole[1:-1], strict=True):
        torch.testing.assert_close(states, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(plain.model.model.norm(found[-1]), whole[-1][0])


def test_attention_and_mlp_write_what_a_layer_adds(plain: Plain):
    import torch

    before, attention, mlp, after = plain.read(TEXT, [plain.layer(0), plain.attention(1), plain.mlp(1), plain.layer(1)])
    torch.testing.assert_close(before + attention + mlp, after)


def test_heads_side_by_side_make_what_attention_writes(plain: Plain):
    import torch

    mixed, written = plain.read(TEXT, [plain.mixed(1), plain.attention(1)])
    torch.testing.assert_close(plain.model.model.layers[1].self_attn.o_proj(mixed), written)
    assert plain.columns(plain.heads - 1).stop == mixed.shape[-1]


def test_the_lens_after_the_last_layer_is_the_model(plain: Plain):
    import torch

    (last,) = plain.read(TEXT, [plain.layer(plain.depth - 1)])
    torch.testing.assert_close(plain.lens(last)[-1], plain.log_probs(TEXT))


def test_an_edit_acts_and_is_gone_afterwards(plain: Plain):
    import torch

    from evals.plain import divergence

    before = plain.log_probs(TEXT)
    edits = {plain.layer(0): lambda states: states * 0}
    (seen,) = plain.read(TEXT, [plain.mlp(1)], edits)
    changed = plain.log_probs(TEXT, edits)
    assert torch.equal(seen, seen[:1].expand_as(seen)), "positions differ though all of them were made zero"
    assert float(divergence(changed, before)) > 1e-4
    torch.testing.assert_close(plain.log_probs(TEXT), before, rtol=0, atol=0)


def test_writing_is_greedy_generation(plain: Plain):
    import torch

    ids = torch.tensor([plain.ids(TEXT)])
    generated = plain.model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert plain.write(TEXT, 6) == generated.tolist()


def test_patterns_are_causal_and_sum_to_one(plain: Plain):
    import torch

    pattern = plain.patterns(TEXT)
    assert pattern.shape[:2] == (plain.depth, plain.heads)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    assert float(pattern.triu(1).abs().max()) == 0


def test_a_divergence_is_torchs(plain: Plain):
    import torch

    from evals.plain import divergence

    one, other = plain.log_probs(TEXT), plain.log_probs("A cat")
    expected = torch.nn.functional.kl_div(other, one, log_target=True, reduction="sum")
    torch.testing.assert_close(divergence(one, other), expected)
    assert float(expected) > 0
