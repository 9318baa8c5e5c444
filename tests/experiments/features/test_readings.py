from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.features.calibration import (
    compare_places,
    find_better,
    list_others,
    measure_losses,
    read_all,
)
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.feature_sites import FEATURE_SITES, FeaturePlace, place_of
from nnterp_mcp.verification.tiny import tiny_model
from tests.model.families import fresh, standardized

LAYER = 2
TEXTS = ["The capital of France is Paris", "Rome and Madrid are", "one two three four five six"]
NORMS = {
    "gpt2": ("transformer.h", "ln_2"),
    "llama": ("model.layers", "post_attention_layernorm"),
    "gemma2": ("model.layers", "pre_feedforward_layernorm"),
}


def plainly(model: nn.Module, path: str, ids: list[int], side: str) -> Tensor:
    """What goes into a module or comes out of it, without the first token."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        taken = args[0] if side == "input" else output
        found.append((taken if isinstance(taken, Tensor) else taken[0])[0, 1:])

    handle = model.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("family", NORMS)
def test_states_are_those_that_plain_hooks_see(family: str) -> None:
    model, plain, (layers, norm) = standardized(family, "sdpa"), tiny_model(family), NORMS[family]
    work = Workload(encode_prompts(model.tokenizer, TEXTS, family))
    places = [
        FeaturePlace(site, LAYER)
        for site in ("residual_mid", "residual_mid_normalized", "mlps_input", "mlps_output", "heads_output")
    ]
    found = read_all(model, work, places)  # pyright: ignore[reportArgumentType]
    block = f"{layers}.{LAYER}"
    added = f"{block}.post_feedforward_layernorm" if family == "gemma2" else f"{block}.mlp"
    projection = f"{block}.attn.c_proj" if family == "gpt2" else f"{block}.self_attn.o_proj"
    sides = [(f"{block}.{norm}", "input"), (f"{block}.mlp", "input"), (added, "output"), (projection, "input")]
    middle, read, written, heads = (
        torch.cat([plainly(plain, path, prompt.ids, side) for prompt in work.prompts]) for path, side in sides
    )
    epsilon = plain.config.layer_norm_epsilon if family == "gpt2" else plain.config.rms_norm_eps
    centred = middle - middle.mean(-1, keepdim=True) if family == "gpt2" else middle
    normalized = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()

    for place, expected in zip(places, (middle, normalized, read, written, heads), strict=True):
        torch.testing.assert_close(found[place], expected, atol=2e-5, rtol=1e-4, msg=str(place))


def with_gains(family: str) -> StandardizedTransformer:
    """A tiny model whose norms have gains that differ, as those of trained models do."""
    model = fresh(family, enable_attention_probs=False)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.module.named_parameters():
        if "norm" in name:
            weight.data.add_(torch.randn(weight.shape, generator=generator) / 2)
    return model


def fitted(states: Tensor, directions: int) -> Dictionary:
    """An autoencoder of the main directions of states: exact along these, and their mean along all others."""
    mean = states.mean(0)
    rows = torch.linalg.svd(states - mean, full_matrices=False).Vh[:directions]
    signed = torch.cat([rows, -rows])
    return Dictionary(signed, signed, torch.zeros(len(signed)), mean, centred=True)


HOOKS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "attn.hook_z",
    "mlp.hook_in",
    "hook_mlp_out",
    "mlp.hook_out",
    "ln2.hook_normalized",
)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_each_hook_point_passes_at_its_own_place_and_the_others_are_told(family: str) -> None:
    model = with_gains(family)
    work = Workload(encode_prompts(model.tokenizer, TEXTS, family))
    places = {hook: place for hook in HOOKS if (place := place_of(f"blocks.{LAYER}.{hook}")) is not None}
    states = read_all(model, work, list(places.values()))
    for own, place in places.items():
        made = fitted(states[place], 6)
        found = compare_places(model, work, made, place, None)
        assert find_better(found, place, None) is None, (own, found[:3])
        assert found[0].place == place
        alike = [hook for hook, other in places.items() if torch.equal(states[other], states[place])]
        told = [
            hook
            for hook, other in places.items()
            if (best := find_better(found, other, None)) is not None and best.place in {places[hook] for hook in alike}
        ]
        widths = [hook for hook, other in places.items() if states[other].shape[1] == made.encoder.shape[1]]
        assert told == [hook for hook in widths if hook not in alike], own
        others = [one.place for one in list_others(model, found, place, None)]
        raw = {FeaturePlace("mlps_raw_output", LAYER), FeaturePlace("attentions_raw_output", LAYER)}
        assert place not in others
        assert raw & set(others) == (set() if family == "llama" else raw & {one.place for one in found} - {place})


def test_the_identity_spliced_in_changes_no_loss_at_all_and_zeros_do() -> None:
    model = standardized("llama", "sdpa")
    work = Workload(encode_prompts(model.tokenizer, TEXTS, "llama"))
    for site in ("layers_output", "mlps_output", "heads_output"):
        place = FeaturePlace(site, LAYER)  # type: ignore[arg-type]
        losses = measure_losses(model, work, place, read_all(model, work, [place])[place])

        assert losses.spliced == losses.clean != losses.zeroed


def test_the_loss_with_a_reconstruction_is_that_of_a_plain_hook() -> None:
    model, plain = standardized("llama", "sdpa"), tiny_model("llama")
    work = Workload(encode_prompts(model.tokenizer, TEXTS, "llama"))
    middle = FeaturePlace("residual_mid", LAYER)
    states = read_all(model, work, [middle])[middle]
    made = fitted(states, 3)
    back = made.reconstruct(states)
    found = measure_losses(model, work, middle, back)

    total, count, begin = 0.0, 0, 0
    for prompt in work.prompts:
        own = back[begin : begin + len(prompt.ids) - 1]
        begin += len(own)
        entering = plainly(plain, f"model.layers.{LAYER}.input_layernorm", prompt.ids, "input")

        def replace(
            module: nn.Module, args: object, output: tuple[Tensor, ...], own: Tensor = own, entering: Tensor = entering
        ) -> tuple[Tensor, ...]:
            states = output[0].clone()
            states[0, 1:] = own - entering
            return (states, *output[1:])

        handle = plain.get_submodule(f"model.layers.{LAYER}.self_attn").register_forward_hook(replace)
        with torch.no_grad():
            log_probs = plain(torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
        handle.remove()
        scores = log_probs[:-1].gather(-1, torch.tensor(prompt.ids[1:])[:, None])
        total, count = total - float(scores.sum()), count + len(scores)

    assert found.spliced == pytest.approx(total / count, rel=1e-5)
    assert found.spliced != pytest.approx(found.clean, rel=1e-3)


NAMES: dict[str, str] = {
    "hook_embed": "token_embeddings",
    "blocks.3.hook_resid_pre": "layers_input of layer 3",
    "blocks.3.ln2.hook_normalized": "residual_mid_normalized of layer 3",
    "model.layers.3.output": "layers_output of layer 3",
    "model.layers.3.pre_feedforward_layernorm.output": "mlps_input of layer 3",
    "model.layers.3.self_attn.o_proj.input": "heads_output of layer 3",
    "layers.3.mlp": "mlps_raw_output of layer 3",
    "blocks.3.mlp.hook_out": "mlps_raw_output of layer 3",
    "blocks.3.somewhere": "None",
}


def test_names_of_others_are_our_places() -> None:
    assert {name: str(place_of(name)) for name in NAMES} == NAMES
    assert len(set(FEATURE_SITES)) == len(FEATURE_SITES)
