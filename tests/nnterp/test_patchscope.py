"""nnterp's patchscopes against plain transformers and plain hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.target_prompts import TargetPrompt, repeat_prompt
from nnterp_mcp.nnterp.patchscope import TargetPromptBatch, patch_object_attn_lens, patchscope_generate, patchscope_lens
from tests.experiments.plain_patchscope import (
    LAYERS,
    SOURCES,
    TARGET,
    TOLERANCE,
    expected_lens,
    ids_of,
    layers_of,
    load_smollm2,
    plain_patch,
    plain_states,
    standardized,
)


@pytest.mark.parametrize("position", [-1, -5, 0])
@pytest.mark.parametrize("family", LAYERS)
def test_lens_equals_hooks(family: str, position: int):
    model = standardized(family)

    found = patchscope_lens(model, SOURCES, TargetPrompt(TARGET, position))

    expected = expected_lens(model, SOURCES, TARGET, position)
    assert found.shape == (3, model.num_layers, model.vocab_size)
    assert (found - expected).abs().max() < TOLERANCE
    unpatched = model.module(input_ids=torch.tensor([ids_of(model, TARGET)])).logits[0, -1].softmax(-1)
    assert (expected - unpatched).abs().amax(-1)[:, 0].min() > 1e-4  # the patch is seen at the end at all


@pytest.mark.smollm2
def test_lens_equals_hooks_on_a_real_model(smollm2_folder: Path):
    smollm2 = load_smollm2(smollm2_folder)
    sources = [SOURCES[0], "London is foggy"]

    found = patchscope_lens(smollm2, sources, layers=[0, 12, 25, 29])

    layers, ids = layers_of(smollm2), ids_of(smollm2, repeat_prompt().prompt)
    for source, text in enumerate(sources):
        states = plain_states(smollm2.module, layers, ids_of(smollm2, text), -1)
        for place, layer in enumerate([0, 12, 25, 29]):
            expected = plain_patch(smollm2.module, layers[layer], ids, -1, states[layer])
            assert (found[source, place] - expected).abs().max() < TOLERANCE
    assert smollm2.tokenizer.decode(found[0, 2].argmax()) == " Paris"


@pytest.mark.parametrize("position", [-1, -9, 3])
def test_lens_equals_hooks_beyond_a_sliding_window(position: int):
    model = standardized("gemma3")
    target = ", ".join(["Paris: Paris"] * 12)
    window = model.module.config.get_text_config().sliding_window

    patchscope_lens(model, SOURCES, TargetPrompt(TARGET, position))  # what is right on a short prompt is tried anew
    found = patchscope_lens(model, SOURCES, TargetPrompt(target, position))

    assert len(ids_of(model, target)) > window + 9
    assert (found - expected_lens(model, SOURCES, target, position)).abs().max() < TOLERANCE


@torch.no_grad()
def plain_continuation(model: Any, layer: Any, ids: list[int], position: int, state: Tensor, count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(plain_patch(model, layer, ids, position, state).argmax()))
    return ids


@pytest.mark.parametrize("family", ["llama", "gemma3", "gptj", "bloom", "qwen3_next", "mamba2"])
def test_generates_token_by_token_what_hooks_generate(family: str):
    model = standardized(family)
    model.module.generation_config.eos_token_id = None
    ids, layers = ids_of(model, TARGET), layers_of(model)

    found = patchscope_generate(model, SOURCES, TargetPrompt(TARGET, -2), max_length=5, max_batch_size=4)

    assert list(found) == list(range(model.num_layers))
    for source, text in enumerate(SOURCES):
        states = plain_states(model.module, layers, ids_of(model, text), -1)
        for layer in range(model.num_layers):
            expected = plain_continuation(model.module, layers[layer], ids, len(ids) - 2, states[layer], 5)
            assert found[layer][source].tolist() == expected


def test_generation_ends_with_the_text():
    model = standardized("gpt2")
    target = TargetPrompt(TARGET, -1)
    model.module.generation_config.eos_token_id = None
    whole = patchscope_generate(model, SOURCES[0], target, max_length=6, layers=[2])[2][0]
    start = len(ids_of(model, TARGET))
    end = int(whole[start + 2])
    first = whole[start:].tolist().index(end)

    model.module.generation_config.eos_token_id = [end]
    try:
        ended = patchscope_generate(model, SOURCES[0], target, max_length=6, layers=[2])[2][0]
    finally:
        model.module.generation_config.eos_token_id = None

    assert ended.tolist() == whole[: start + first + 1].tolist()


def test_each_source_has_its_own_target():
    model = standardized("llama")
    targets = [TargetPrompt(TARGET, -1), TargetPrompt("Spain: x", -2), TargetPrompt(TARGET, 4)]

    found = patchscope_lens(model, SOURCES, targets)

    for source, target in enumerate(targets):
        expected = expected_lens(model, [SOURCES[source]], target.prompt, target.index_to_patch)[0]
        assert (found[source] - expected).abs().max() < TOLERANCE


def test_latents_stand_for_sources():
    model = standardized("llama")
    latents = torch.randn(2, 3, model.hidden_size, generator=torch.Generator().manual_seed(0))
    ids = ids_of(model, TARGET)

    found = patchscope_lens(model, target_patch_prompts=TargetPrompt(TARGET, -1), layers=[3, 1], latents=latents)

    for place, layer in enumerate([3, 1]):
        for source in range(3):
            expected = plain_patch(model.module, layers_of(model)[layer], ids, -1, latents[place, source])
            assert (found[source, place] - expected).abs().max() < TOLERANCE


def test_object_lens_equals_hooks():
    model = standardized("llama")
    targets = ["Madrid is the capital of", "France is"]
    ids = [ids_of(model, text) for text in targets]

    found = patch_object_attn_lens(model, SOURCES[0], targets, 2, num_patches=2)

    entering: list[Tensor] = []
    blocks = layers_of(model)
    handles = [
        block.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: entering.append(kwargs["hidden_states"][0, -1].clone()), with_kwargs=True
        )
        for block in blocks
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([ids_of(model, SOURCES[0])]))
    for handle in handles:
        handle.remove()
    for row, tokens in enumerate(ids):
        for start in range(len(blocks)):
            handles = [
                _replace_entering(blocks[at], entering[at], 2) for at in range(start, min(start + 2, len(blocks)))
            ]
            with torch.no_grad():
                expected = model.module(input_ids=torch.tensor([tokens])).logits[0, -1].softmax(-1)
            for handle in handles:
                handle.remove()
            assert (found[row, start] - expected).abs().max() < TOLERANCE


def _replace_entering(block: Any, state: Tensor, position: int) -> Any:
    def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = kwargs["hidden_states"].clone()
        hidden[0, position] = state
        return args, {**kwargs, "hidden_states": hidden}

    return block.self_attn.register_forward_pre_hook(replace, with_kwargs=True)


def test_target_prompts_come_in_every_form():
    one = TargetPrompt("a", -1)
    batch = TargetPromptBatch.auto(one, 2)

    assert list(batch) == [one, one]
    assert list(TargetPromptBatch.auto([one], 1)) == [one]
    assert TargetPromptBatch.auto(batch, 5) is batch
    assert list(TargetPromptBatch.from_prompts(["a", "b"], [0, 1])) == [TargetPrompt("a", 0), TargetPrompt("b", 1)]
    assert list(TargetPromptBatch.from_prompts("a", 3)) == [TargetPrompt("a", 3)]
    with pytest.raises(InvalidRequest, match="must be a TargetPrompt"):
        TargetPromptBatch.auto("a", 1)  # pyright: ignore[reportArgumentType]
