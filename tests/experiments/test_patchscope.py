"""Patchscopes against plain transformers and plain hooks: one forward pass for each source, layer and target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer

from nnterp_mcp.engine import kv_cache as shared_cache
from nnterp_mcp.engine.forward import NOTHING
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.prefix_sharing import Sharing
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.patched_target import SourceReadings, Target, patch_target, resolve_target
from nnterp_mcp.experiments.patchscope import pair_layers, read_patchscope
from nnterp_mcp.experiments.target_prompts import TargetPrompt, encode_target, it_repeat_prompt, repeat_prompt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.nnterp.patchscope import patch_object_attn_lens, patchscope_lens
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.experiments.plain_patchscope import (
    SOURCES,
    TARGET,
    TOLERANCE,
    expected_lens,
    hooked,
    ids_of,
    layers_of,
    plain_patch,
    plain_states,
    standardized,
)

CHEAPEST = {
    "llama": Sharing(prefix=True, layers=True),
    "gemma3": Sharing(prefix=True, layers=True),
    "gptj": Sharing(prefix=True, layers=True),
    "bloom": Sharing(prefix=True, layers=False),
    "qwen3_next": Sharing(prefix=False, layers=True),
    "mamba2": Sharing(prefix=False, layers=True),
}


@pytest.mark.parametrize("family", CHEAPEST)
def test_rows_share_what_the_model_allows(family: str):
    model = standardized(family)

    patchscope_lens(model, SOURCES[0], TargetPrompt(TARGET, -1))

    target = resolve_target(ids_of(model, TARGET), 3)
    assert patch_target(model, target, torch.zeros(1, model.hidden_size), [0]).sharing == CHEAPEST[family]


def test_a_cache_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch):
    model = StandardizedTransformer(tiny_model("llama", seed=1), tokenizer=tiny_tokenizer(), name="llama")

    def forget(states: Any, rows: int) -> Tensor:
        return 0.9 * states.repeat(rows // states.shape[0], 1, 1, 1)

    monkeypatch.setattr(shared_cache, "_extend", forget)

    found = patchscope_lens(model, SOURCES, TargetPrompt(TARGET, -1))

    assert (found - expected_lens(model, SOURCES, TARGET, -1)).abs().max() < TOLERANCE
    target = resolve_target(ids_of(model, TARGET), -1)
    assert not patch_target(model, target, torch.zeros(1, model.hidden_size), [0]).sharing.prefix


@pytest.mark.parametrize("family", ["llama", "bloom", "qwen3_next"])
@pytest.mark.parametrize("batch_tokens", [40, 4096])
def test_grid_equals_hooks_whatever_the_batches(family: str, batch_tokens: int):
    model = standardized(family)
    prompts = encode_prompts(model.tokenizer, SOURCES, family)
    positions = [[0, len(prompt.ids) - 1] if len(prompt.ids) > 4 else [1] for prompt in prompts]
    every = list(range(model.num_layers))
    ((encoded,), done) = encode_prompts(model.tokenizer, [TARGET], family), list[int]()
    report = lambda patches, total, unit: done.append(patches)  # noqa: E731
    target = Target(Workload([encoded], batch_tokens=batch_tokens, progress=report), 6)
    states = read_states(model, Workload(prompts), positions, every)
    pairs = pair_layers("all", "all", model.num_layers, family)

    readings = read_patchscope(model, SourceReadings(states, every), target, pairs, top_k=4)

    layers = layers_of(model)
    sources = [(prompt, at) for prompt, all_at in zip(prompts, positions, strict=True) for at in all_at]
    for index, (prompt, at) in enumerate(sources):
        own = plain_states(model.module, layers, prompt.ids, at)
        assert torch.allclose(states[index], own, atol=1e-4)
        for place, (source_layer, target_layer) in enumerate(pairs):
            probs = plain_patch(model.module, layers[target_layer], list(target.ids), 6, own[source_layer])
            assert torch.allclose(readings.patched.top_probs[index, place], probs.topk(4).values, atol=TOLERANCE)
            entropy = -(probs * probs.log()).sum()
            assert torch.allclose(readings.patched.entropy[index, place], entropy, atol=1e-4)
    assert done[-1] == len(sources) * len(pairs)
    assert done == sorted(done)
    assert (len(done) > 1) == (batch_tokens < 4096)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "lfm2"])
@pytest.mark.parametrize("position", [-1, 2])
def test_own_state_changes_nothing(family: str, position: int):
    model = standardized(family)
    target = resolve_target(ids_of(model, TARGET), position)
    own = plain_states(model.module, layers_of(model), list(target.ids), position)

    with torch.no_grad():
        unpatched = model.module(input_ids=torch.tensor([target.ids])).logits[0, -1].softmax(-1)
    for batch in patch_target(model, target, own, list(range(model.num_layers))).run():
        assert (batch.logits.softmax(-1) - unpatched).abs().max() < TOLERANCE


@pytest.mark.parametrize("prompts", ["all", 0, 1])
def test_interventions_act_on_source_and_target(prompts: Any):
    model = standardized("llama")
    encoded = encode_prompts(model.tokenizer, [SOURCES[0], TARGET], "llama")
    operation = parse_operation({"op": "zero", "site": "mlps_output", "layers": [1], "prompts": prompts})
    edits = plan(model, [operation], encoded)
    every = list(range(model.num_layers))
    target = Target(Workload(encoded[1:], edits), len(encoded[1].ids) - 1)
    states = read_states(model, Workload(encoded[:1], edits), [[-1 % len(encoded[0].ids)]], every)
    pairs = [(layer, layer) for layer in every]

    readings = read_patchscope(model, SourceReadings(states, every), target, pairs, max_new_tokens=3, top_k=5)

    mlp = layers_of(model)[1].mlp
    with hooked(mlp, lambda hidden: 0 * hidden if prompts != 1 else None):
        own = plain_states(model.module, layers_of(model), encoded[0].ids, -1)
    assert torch.allclose(states[0], own, atol=1e-5)
    with hooked(mlp, lambda hidden: 0 * hidden if prompts != 0 else None):
        for layer in every:
            expected = plain_patch(model.module, layers_of(model)[layer], encoded[1].ids, -1, own[layer]).topk(5)
            assert torch.allclose(readings.patched.top_probs[0, layer], expected.values, atol=TOLERANCE)
    assert edits is not NOTHING


def test_repeat_prompt_is_the_papers():
    assert repeat_prompt() == TargetPrompt("king king\n1135 1135\nhello hello\n?", -1)
    custom = repeat_prompt(words=["car", "cross", "azdrfa"], rel=":", sep="\n\n", placeholder="*")
    assert custom == TargetPrompt("car:car\n\ncross:cross\n\nazdrfa:azdrfa\n\n*", -1)


@pytest.mark.smollm2
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("instructed", [True, False])
@pytest.mark.parametrize("system", [True, False])
def test_repeat_prompt_as_a_chat(smollm2_folder: Path, complete: bool, instructed: bool, system: bool):
    target = it_repeat_prompt(
        AutoTokenizer.from_pretrained(smollm2_folder),
        complete_prompt=complete,
        add_user_instr=instructed,
        use_system_prompt=system,
    )

    assert target.index_to_patch == -1
    assert target.prompt.endswith("hello hello\n?" if complete else "<|im_start|>assistant\n")
    assert target.prompt.count("king king") == 1 + complete


def test_repeat_prompt_as_a_chat_needs_a_template():
    with pytest.raises(Unsupported, match="no chat template"):
        it_repeat_prompt(tiny_tokenizer())


def test_a_text_that_begins_with_its_first_token_gets_no_second_one():
    tokenizer = tiny_tokenizer()

    assert encode_target(tokenizer, "<bos>Spain", "tiny").ids == encode_target(tokenizer, "Spain", "tiny").ids


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([1, 3], "same", [(1, 1), (3, 3)]),
        ([3, 1], 2, [(3, 2), (1, 2)]),
        ([3, 1], [0, -1], [(3, 0), (1, 3)]),
        ([1], "2:4", [(1, 2), (1, 3)]),
        (1, [2], [(1, 2)]),
    ],
)
def test_layers_pair_as_asked(source: Any, target: Any, expected: list[tuple[int, int]]):
    assert pair_layers(source, target, 4, "tiny") == expected


@given(st.integers(1, 12))
def test_a_grid_has_every_pair(layers: int):
    pairs = pair_layers("all", "all", layers, "tiny")

    assert len(pairs) == len(set(pairs)) == layers**2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: patchscope_lens(model), "give either source_prompts or latents."),
        (
            lambda model: patchscope_lens(model, latents=torch.zeros(1, 1, model.hidden_size)),
            "latents have shape (1, 1, 64): (4 layers, sources, 64) is needed.",
        ),
        (
            lambda model: patchscope_lens(model, SOURCES, [TargetPrompt("a", -1)]),
            "1 target prompts do not match 3 sources.",
        ),
        (
            lambda model: patchscope_lens(model, SOURCES, TargetPrompt("Spain", 40)),
            "position 40 does not exist: the target prompt has positions 0 to 2.",
        ),
        (
            lambda model: patchscope_lens(model, SOURCES, layers=[9]),
            "layer 9 does not exist: llama has layers 0 to 3.",
        ),
        (
            lambda model: patch_object_attn_lens(model, SOURCES[:2], SOURCES, 0),
            "2 source prompts do not match 3 target prompts.",
        ),
        (
            lambda model: pair_layers([1, 2, 3], [1, 2], 4, "llama"),
            "2 target_layers cannot take the states of 3 source_layers one by one.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[StandardizedTransformer], Any], message: str):
    with pytest.raises(InvalidRequest) as error:
        call(standardized("llama"))

    assert error.value.message == message
