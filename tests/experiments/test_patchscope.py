"""Patchscopes against plain transformers and plain hooks: one forward pass for each source, layer and target."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine import kv_cache as shared_cache
from nnterp_mcp.engine import patched_rows
from nnterp_mcp.engine.forward import NOTHING
from nnterp_mcp.engine.patched_rows import Target, run_patched
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.prefix_sharing import Sharing
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.experiments.patchscope import (
    TargetPrompt,
    TargetPromptBatch,
    it_repeat_prompt,
    pair_layers,
    patch_object_attn_lens,
    patchscope_generate,
    patchscope_lens,
    read_patchscope,
    repeat_prompt,
)
from nnterp_mcp.experiments.target_prompts import encode_target
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

TOLERANCE = 1e-5

LAYERS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "gemma3": "model.language_model.layers",  # sliding windows
    "gpt_neox": "gpt_neox.layers",
    "bloom": "transformer.h",  # tuples; a position bias of the batch's shape
    "gptj": "transformer.h",  # tuples
    "mixtral": "model.layers",
    "qwen3_next": "model.layers",  # a hybrid
    "lfm2": "model.layers",  # a hybrid
    "mamba2": "backbone.layers",  # no attention
}
CHEAPEST = {
    "llama": Sharing(prefix=True, layers=True),
    "gemma3": Sharing(prefix=True, layers=True),
    "gptj": Sharing(prefix=True, layers=True),
    "bloom": Sharing(prefix=True, layers=False),
    "qwen3_next": Sharing(prefix=False, layers=True),
    "mamba2": Sharing(prefix=False, layers=True),
}

SOURCES = ["The capital of France is", "Spain", "That of Spain, as every child learns at school, is Madrid"]
TARGET = "Paris: Paris, Madrid: Madrid, x: is that"


@cache
def standardized(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Path) -> StandardizedTransformer:
    weights: Any = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    return StandardizedTransformer(weights, tokenizer=tokenizer, name="smollm2-135m")


@contextmanager
def hooked(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Generator[None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = change(first)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def plain_states(model: Any, layers: Any, ids: list[int], position: int) -> Tensor:
    """The state after every layer at one position."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(hooked(layer, lambda hidden: found.append(hidden[0, position].clone())))
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return torch.stack(found)


@torch.no_grad()
def plain_patch(model: Any, layer: Any, ids: list[int], position: int, state: Tensor) -> Tensor:
    """Probabilities after the prompt with one state replaced."""

    def put(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[0, position] = state
        return hidden

    with hooked(layer, put):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)


def layers_of(model: StandardizedTransformer) -> Any:
    return model.module.get_submodule(LAYERS.get(model.name, "model.layers"))


def ids_of(model: StandardizedTransformer, text: str) -> list[int]:
    return model.tokenizer(text)["input_ids"]


def expected_lens(model: StandardizedTransformer, sources: list[str], target: str, position: int) -> Tensor:
    layers, ids = layers_of(model), ids_of(model, target)
    rows: list[Tensor] = []
    for source in sources:
        states = plain_states(model.module, layers, ids_of(model, source), -1)
        rows.append(
            torch.stack(
                [
                    plain_patch(model.module, layer, ids, position, state)
                    for layer, state in zip(layers, states, strict=True)
                ]
            )
        )
    return torch.stack(rows)


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
def test_lens_equals_hooks_on_a_real_model(smollm2: StandardizedTransformer):
    sources = [SOURCES[0], "London is foggy"]

    found = patchscope_lens(smollm2, sources, layers=[0, 12, 25, 29])

    layers, ids = layers_of(smollm2), ids_of(smollm2, repeat_prompt().prompt)
    for source, text in enumerate(sources):
        states = plain_states(smollm2.module, layers, ids_of(smollm2, text), -1)
        for place, layer in enumerate([0, 12, 25, 29]):
            expected = plain_patch(smollm2.module, layers[layer], ids, -1, states[layer])
            assert (found[source, place] - expected).abs().max() < TOLERANCE
    assert smollm2.tokenizer.decode(found[0, 2].argmax()) == " Paris"


@pytest.mark.parametrize("family", CHEAPEST)
def test_rows_share_what_the_model_allows(family: str):
    model = standardized(family)

    patchscope_lens(model, SOURCES[0], TargetPrompt(TARGET, -1))

    assert patched_rows.find_sharing(model, Target(tuple(ids_of(model, TARGET)), 3), False) == CHEAPEST[family]


def test_a_cache_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch):
    model = StandardizedTransformer(tiny_model("llama", seed=1), tokenizer=tiny_tokenizer(), name="llama")

    def forget(states: Any, rows: int) -> Tensor:
        return 0.9 * states.repeat(rows // states.shape[0], 1, 1, 1)

    monkeypatch.setattr(shared_cache, "_extend", forget)

    found = patchscope_lens(model, SOURCES, TargetPrompt(TARGET, -1))

    assert (found - expected_lens(model, SOURCES, TARGET, -1)).abs().max() < TOLERANCE
    target = Target(tuple(ids_of(model, TARGET)), len(ids_of(model, TARGET)) - 1)
    assert not patched_rows.find_sharing(model, target, False).prefix


@pytest.mark.parametrize("family", ["llama", "bloom", "qwen3_next"])
@pytest.mark.parametrize("batch_tokens", [40, 4096])
def test_grid_equals_hooks_whatever_the_batches(family: str, batch_tokens: int):
    model = standardized(family)
    prompts = encode_prompts(model.tokenizer, SOURCES, family)
    positions = [[0, len(prompt.ids) - 1] if len(prompt.ids) > 4 else [1] for prompt in prompts]
    every = list(range(model.num_layers))
    target = Target(tuple(ids_of(model, TARGET)), 6)
    states = read_states(model, Workload(prompts), positions, every)
    pairs = pair_layers("all", "all", model.num_layers, family)
    done: list[int] = []

    readings = read_patchscope(
        model, states, every, target, pairs, top_k=4, batch_tokens=batch_tokens, on_batch=done.append
    )

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


@pytest.mark.parametrize("position", [-1, -9, 3])
def test_lens_equals_hooks_beyond_a_sliding_window(position: int):
    model = standardized("gemma3")
    target = ", ".join(["Paris: Paris"] * 12)
    window = model.module.config.get_text_config().sliding_window

    patchscope_lens(model, SOURCES, TargetPrompt(TARGET, position))  # what is right on a short prompt is tried anew
    found = patchscope_lens(model, SOURCES, TargetPrompt(target, position))

    assert len(ids_of(model, target)) > window + 9
    assert (found - expected_lens(model, SOURCES, target, position)).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "lfm2"])
@pytest.mark.parametrize("position", [-1, 2])
def test_own_state_changes_nothing(family: str, position: int):
    model = standardized(family)
    target = Target(tuple(ids_of(model, TARGET)), position % len(ids_of(model, TARGET)))
    own = plain_states(model.module, layers_of(model), list(target.ids), position)

    for batch in run_patched(model, target, own, list(range(model.num_layers))):
        patched, unpatched = batch.logits.softmax(-1), batch.unpatched_logits.softmax(-1)
        assert (patched - unpatched).abs().max() < TOLERANCE


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


@pytest.mark.parametrize("prompts", ["all", 0, 1])
def test_interventions_act_on_source_and_target(prompts: Any):
    model = standardized("llama")
    encoded = encode_prompts(model.tokenizer, [SOURCES[0], TARGET], "llama")
    operation = parse_operation({"op": "zero", "site": "mlps_output", "layers": [1], "prompts": prompts})
    edits = plan(model, [operation], encoded)
    every = list(range(model.num_layers))
    target = Target(tuple(encoded[1].ids), len(encoded[1].ids) - 1, index=1)
    states = read_states(model, Workload(encoded[:1], edits), [[-1 % len(encoded[0].ids)]], every)
    pairs = [(layer, layer) for layer in every]

    readings = read_patchscope(model, states, every, target, pairs, plan=edits, max_new_tokens=3, top_k=5)

    mlp = layers_of(model)[1].mlp
    with hooked(mlp, lambda hidden: 0 * hidden if prompts != 1 else None):
        own = plain_states(model.module, layers_of(model), encoded[0].ids, -1)
    assert torch.allclose(states[0], own, atol=1e-5)
    with hooked(mlp, lambda hidden: 0 * hidden if prompts != 0 else None):
        for layer in every:
            expected = plain_patch(model.module, layers_of(model)[layer], encoded[1].ids, -1, own[layer]).topk(5)
            assert torch.allclose(readings.patched.top_probs[0, layer], expected.values, atol=TOLERANCE)
    assert edits is not NOTHING


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


def test_repeat_prompt_is_the_papers():
    assert repeat_prompt() == TargetPrompt("king king\n1135 1135\nhello hello\n?", -1)
    custom = repeat_prompt(words=["car", "cross", "azdrfa"], rel=":", sep="\n\n", placeholder="*")
    assert custom == TargetPrompt("car:car\n\ncross:cross\n\nazdrfa:azdrfa\n\n*", -1)


@pytest.mark.smollm2
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("instructed", [True, False])
@pytest.mark.parametrize("system", [True, False])
def test_repeat_prompt_as_a_chat(smollm2: StandardizedTransformer, complete: bool, instructed: bool, system: bool):
    target = it_repeat_prompt(
        smollm2.tokenizer, complete_prompt=complete, add_user_instr=instructed, use_system_prompt=system
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
