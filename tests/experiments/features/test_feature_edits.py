"""Edits of features against plain hooks that write the arithmetic out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.engine.executors import execution
from nnterp_mcp.engine.forward import NOTHING, Plan, forward
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.features.basis import basis_of
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts, pad_batch
from nnterp_mcp.request.feature_sites import FeaturePlace
from nnterp_mcp.request.operations import describe, parse_operation
from nnterp_mcp.verification.tiny import tiny_model
from tests.model.families import standardized

LAYER = 2
WIDTH = 64
LATENTS = 40
TEXTS = ["The capital of France is Paris", "Rome and", "one two three four"]
CHOSEN = [3, 11, 20]
STREAM = FeaturePlace("layers_output", LAYER)
EDITS: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({"op": "scale", "factor": 3}, lambda active: active * 3),
    ({"op": "zero"}, torch.zeros_like),
    ({"op": "add", "value": 2.5}, lambda active: active + 2.5),
    ({"op": "set", "value": 4}, lambda active: torch.full_like(active, 4)),
]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dictionary(**more: Any) -> Dictionary:
    shape = (LATENTS, WIDTH)
    return Dictionary(
        random(*shape, seed=1), random(*shape, seed=2), torch.zeros(LATENTS), random(WIDTH, seed=3), **more
    )


def planned(
    model: StandardizedTransformer, made: Dictionary, place: FeaturePlace, out: FeaturePlace | None = None, **op: Any
) -> Plan:
    operation = parse_operation({"site": "features", "dictionary": "d", "features": CHOSEN} | op)
    prompts = encode_prompts(model.tokenizer, TEXTS, "tiny")
    return plan(model, [operation], prompts, features=lambda name, layer: basis_of(model, name, made, place, out))


def logits_of(model: StandardizedTransformer, plan: Plan) -> Tensor:
    """The logits after each prompt, of one padded batch."""
    batch = pad_batch(encode_prompts(model.tokenizer, TEXTS, "tiny"), model.pad_id, model.device)
    ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
    logits = forward(model, batch, plan, logits=ends).logits
    assert logits is not None
    return logits[sorted(range(len(ends)), key=lambda row: batch.prompts[row].index)]


def plainly(family: str, change: Callable[[Tensor], Tensor], path: str = "", reads: str = "") -> Tensor:
    """The same with a hook on one module of plain transformers, which adds a function of what another one was given."""
    model = tiny_model(family)
    seen: list[Tensor] = []

    def moved(module: nn.Module, args: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        delta = change(seen.pop() if reads else states)
        delta[:, 0] = 0
        return states + delta if isinstance(output, Tensor) else (states + delta, *output[1:])

    block = f"model.layers.{LAYER}"
    handles = [model.get_submodule(f"{block}.{path}" if path else block).register_forward_hook(moved)]
    if reads:
        module = model.get_submodule(f"{block}.{reads}")
        handles.append(module.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    texts = encode_prompts(standardized(family, "sdpa").tokenizer, TEXTS, "tiny")
    with torch.no_grad():
        found = [model(torch.tensor([text.ids]), use_cache=False).logits[0, -1] for text in texts]
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("traced", [False, True])
def test_features_change_as_plain_hooks_change_them(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = standardized("llama", "sdpa"), dictionary(centred=True)
    if traced:
        monkeypatch.setattr(execution, "find_ports", lambda model, places: None)
    for op, changed in EDITS[: 1 if traced else None]:

        def change(states: Tensor, changed: Callable[[Tensor], Tensor] = changed) -> Tensor:
            active = ((states - made.decoder_bias) @ made.encoder[CHOSEN].T).relu()
            return (changed(active) - active) @ made.decoder[CHOSEN]

        torch.testing.assert_close(
            logits_of(model, planned(model, made, STREAM, **op)), plainly("llama", change), atol=2e-5, rtol=1e-4
        )


def test_a_random_direction_moves_the_states_as_far() -> None:
    model, made = standardized("llama", "sdpa"), dictionary()
    drawn = random(WIDTH, seed=7)

    def change(states: Tensor) -> Tensor:
        moved = (states @ made.encoder[CHOSEN].T).relu() @ made.decoder[CHOSEN]
        return moved.norm(dim=-1, keepdim=True) * (drawn / drawn.norm())

    found = planned(model, made, STREAM, op="zero", random=7)
    torch.testing.assert_close(logits_of(model, found), plainly("llama", change), atol=2e-5, rtol=1e-4)
    assert found.labels[0].startswith('zero features 3, 11, 20 of "d" along random direction 7, as far')


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_transcoder_moves_what_its_mlp_adds(family: str) -> None:
    model, made = standardized(family, "sdpa"), dictionary(transcodes=True, skip=random(WIDTH, WIDTH, seed=4))
    places = FeaturePlace("mlps_input", LAYER), FeaturePlace("mlps_output", LAYER)

    def change(states: Tensor) -> Tensor:
        return -(states @ made.encoder[CHOSEN].T).relu() @ made.decoder[CHOSEN]

    path = "post_feedforward_layernorm" if family == "gemma2" else "mlp"
    expected = plainly(family, change, path, reads="mlp")
    torch.testing.assert_close(
        logits_of(model, planned(model, made, *places, op="zero")), expected, atol=2e-5, rtol=1e-4
    )


def test_normalization_is_undone_for_the_change_too() -> None:
    model = standardized("llama", "sdpa")
    for normalization in ("layer_norm", "constant_norm"):
        made = dictionary(normalization=normalization, activation=Activation(k=6))

        def change(states: Tensor, made: Dictionary = made) -> Tensor:
            flat = states.flatten(0, 1)
            active = made.encode(flat)
            zeroed = active.index_fill(-1, torch.tensor(CHOSEN), 0.0)
            return (made.decode(zeroed, flat) - made.decode(active, flat)).view_as(states)

        found = logits_of(model, planned(model, made, STREAM, op="zero"))
        torch.testing.assert_close(found, plainly("llama", change), atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("site", ["layers_output", "heads_output", "residual_mid", "mlps_output"])
def test_features_that_do_not_change_leave_every_bit(site: str) -> None:
    model, made = standardized("llama", "sdpa"), dictionary(normalization="layer_norm")
    place = FeaturePlace(site, LAYER)  # pyright: ignore[reportArgumentType]
    same = planned(model, made, place, op="scale", factor=1)
    clean, edited = logits_of(model, NOTHING), logits_of(model, planned(model, made, place, op="scale", factor=2))

    assert torch.equal(logits_of(model, same), clean)
    assert not torch.equal(edited, clean)


def test_edits_reach_generated_tokens() -> None:
    model, made = standardized("llama", "sdpa"), dictionary()
    prompts = encode_prompts(model.tokenizer, TEXTS, "tiny")
    edits = planned(model, made, STREAM, op="add", value=8)
    written = generate(model, Workload(prompts, edits), max_new_tokens=4)
    ids = [prompt.ids + text.ids for prompt, text in zip(prompts, written, strict=True)]
    plain = tiny_model("llama")

    def moved(module: nn.Module, args: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        delta = torch.full((*states.shape[:2], len(CHOSEN)), 8.0) @ made.decoder[CHOSEN]
        delta[:, 0] = 0
        return states + delta if isinstance(output, Tensor) else (states + delta, *output[1:])

    handle = plain.get_submodule(f"model.layers.{LAYER}").register_forward_hook(moved)
    for prompt, whole in zip(prompts, ids, strict=True):
        with torch.no_grad():
            top = plain(torch.tensor([whole]), use_cache=False).logits[0].argmax(-1).tolist()
        assert whole[len(prompt.ids) :] == top[len(prompt.ids) - 1 : -1]
    handle.remove()


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ({"op": "scale"}, "scale at features needs factor"),
        ({"op": "set", "factor": 2, "value": 1}, "set at features takes no factor"),
        ({"op": "add", "value": float("nan")}, "finite number"),
        ({"op": "add", "value": True}, "a number, not true or false"),
        (
            {"op": "zero", "features": [LATENTS]},
            "d has features 0 to 39",
        ),
        ({"op": "set", "value": 1, "features": []}, "features"),
        ({"op": "zero", "heads": 1}, "zero has no field"),
        ({"op": "mean"}, "site"),
    ],
)
def test_bad_edits_are_refused_by_name(op: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, InvalidRequest), match=said):
        planned(standardized("llama", "sdpa"), dictionary(), STREAM, **op)


def test_edits_are_described_in_full() -> None:
    edit = {"site": "features", "dictionary": "d", "features": [5, 7], "positions": "last"}

    assert describe(parse_operation(edit | {"op": "scale", "factor": 2})) == (
        'scale features 5, 7 of "d" by 2, position last, every step'
    )
    assert describe(parse_operation(edit | {"op": "set", "value": -1, "layers": 3, "positions": "all"})) == (
        'set features 5, 7 of "d" to -1, layer 3, all positions but the first, every step'
    )
