"""Sources and the patched target in one pass against plain transformers and plain hooks, each prompt by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnterp_mcp.engine.packed_pass import PackedPass
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.patched_target import (
    PACKED_COLUMNS,
    LayerPair,
    SourceReadings,
    SourceTokens,
    Target,
    resolve_target,
)
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.experiments.plain_patchscope import TOLERANCE, layers_of, plain_patch, plain_states, standardized

SHORT = [3, 14, 15, 9, 26, 5, 35]


def read(
    model: StandardizedTransformer, texts: Sequence[Sequence[int]], target: Target, pairs: Sequence[LayerPair]
) -> SourceReadings:
    """The states of the last token of each text and, where it has several, of the first."""
    work = Workload([EncodedPrompt(row, "", list(ids), []) for row, ids in enumerate(texts)])
    positions = [sorted({0, len(ids) - 1}) for ids in texts]
    return SourceTokens(work, positions, range(model.num_layers)).read_for(model, target, pairs)


def assert_equals_plain(model: StandardizedTransformer, texts: list[list[int]], target: Target) -> None:
    last = model.num_layers - 1
    pairs = [(last, last), (0, 2), (1, 1), (0, 0)]

    found = read(model, texts, target, pairs)

    assert found.logits is not None
    layers, ids = layers_of(model), target.ids
    own = [plain_states(model.module, layers, text, at) for text in texts for at in sorted({0, len(text) - 1})]
    assert (found.states - torch.stack(own)).abs().max() < 1e-4
    probs = found.logits.softmax(-1)
    with torch.no_grad():
        unpatched = model.module(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert (probs[0] - unpatched).abs().max() < TOLERANCE
    rows = [
        plain_patch(model.module, layers[into], ids, target.position, state[of]) for state in own for of, into in pairs
    ]
    assert (probs[1:] - torch.stack(rows)).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("position", [-1, 2])
def test_equals_plain_hooks(family: str, attention: Any, position: int):
    model = standardized(family)
    before: Any = model.attention
    model.set_attention(attention)

    assert_equals_plain(model, [[7, 8, 9], [10], [1, 2, 3, 4, 5, 6]], resolve_target(SHORT, position))
    model.set_attention(before)


prompts = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=40)
@given(texts=st.lists(prompts, min_size=1, max_size=3), ids=prompts, back=st.integers(1, 12))
def test_equals_plain_hooks_whatever_the_prompts(texts: list[list[int]], ids: list[int], back: int):
    assert_equals_plain(standardized("llama"), texts, resolve_target(ids, -min(back, len(ids))))


@pytest.mark.parametrize("family", ["bloom", "lfm2", "mamba2"])
def test_is_left_where_the_model_reads_packed_prompts_differently(family: str):
    model = standardized(family)

    found = read(model, [[7, 8, 9]], resolve_target(SHORT, -1), [(0, 0)])

    assert found.logits is None
    plain = plain_states(model.module, layers_of(model), [7, 8, 9], -1)
    assert torch.allclose(found.states[1], plain, atol=1e-4)


def test_is_left_where_it_is_not_exact(monkeypatch: pytest.MonkeyPatch):
    model = StandardizedTransformer(tiny_model("llama", seed=2), tokenizer=tiny_tokenizer(), name="llama")
    right = PackedPass.inputs

    def seeing_all(self: PackedPass, model: StandardizedTransformer) -> dict[str, Any]:
        return right(self, model) | {"attention_mask": torch.full((1, 1, self.whole, self.whole), -1e9).triu(1)}

    monkeypatch.setattr(PackedPass, "inputs", seeing_all)

    assert read(model, [[7, 8, 9]], resolve_target(SHORT, -1), [(0, 0)]).logits is None


def test_is_left_where_it_does_not_pay_or_states_would_go_down():
    model, target = standardized("llama"), resolve_target(SHORT, -1)

    assert read(model, [[1] * PACKED_COLUMNS], target, [(0, 0)]).logits is None
    assert read(model, [[1, 2]], target, [(2, 1)]).logits is None
