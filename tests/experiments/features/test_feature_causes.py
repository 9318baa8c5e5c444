"""Attribution to features and patching of features, against plain hooks and plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.features.attribution import PlacedDictionary, attribute_features, find_slopes
from nnterp_mcp.experiments.features.basis import basis_of
from nnterp_mcp.experiments.features.dictionary import Activation
from nnterp_mcp.experiments.features.patching import FeaturePatcher, draw_matched_features, estimate_feature_effects
from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
from nnterp_mcp.experiments.patching.corruption import ablate, pair_prompts
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.feature_sites import FeaturePlace
from nnterp_mcp.verification.tiny import tiny_model
from tests.experiments.features.test_feature_edits import CHOSEN, LATENTS, LAYER, dictionary, random
from tests.model.families import standardized

ANSWER, WRONG = 11, 25
TARGETS = [[[ANSWER], [WRONG]]]
CLEAN, CORRUPTED = "The capital of France is", "The capital of Spain is"
OUTPUT = {"llama": "mlp", "gemma2": "post_feedforward_layernorm"}
Change = Callable[[Tensor], Tensor]


def run_plainly(family: str, ids: list[int], module: str, change: Change | None = None) -> tuple[Tensor, Tensor]:
    """The last logits and the states that a module puts out, changed by a function of them."""
    plain, seen = tiny_model(family), list[Tensor]()

    def hook(inner: nn.Module, args: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        new = states if change is None else change(states)
        seen.append(new)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    handle = plain.get_submodule(f"model.layers.{LAYER}{module}").register_forward_hook(hook)
    logits = plain(torch.tensor([ids]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits, seen[0]


def placed_at(site: str, **more: Any) -> PlacedDictionary:
    return PlacedDictionary(dictionary(activation=Activation(k=9), **more), FeaturePlace(site, LAYER), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("site", ["layers_output", "mlps_output"])
def test_direct_contributions_are_decoder_rows_through_the_frozen_norm(family: str, site: str) -> None:
    model, plain = standardized(family, "sdpa"), tiny_model(family)
    (prompt,) = encode_prompts(model.tokenizer, [CLEAN], "tiny")
    placed = placed_at(site, normalization="layer_norm", centred=True)
    (found,) = attribute_features(model, Workload([prompt]), [TARGETS], placed)
    last: list[Tensor] = []
    plain.model.norm.register_forward_pre_hook(lambda module, args: last.append(args[0][0, -1]))
    with torch.no_grad():
        _, states = run_plainly(family, prompt.ids, "" if site == "layers_output" else f".{OUTPUT[family]}")
        logits = plain(torch.tensor([prompt.ids])).logits[0, -1].double()
    state, final = states[0, -1].double(), last[0].double()
    epsilon = plain.config.rms_norm_eps
    gain = plain.model.norm.weight.double() + (family == "gemma2")
    unembedding = plain.get_output_embeddings().weight.double()
    raw = (final * gain / (final.square().mean() + epsilon).sqrt()) @ unembedding.T
    ratio = logits[[ANSWER, WRONG]] / raw[[ANSWER, WRONG]]
    along = gain / (final.square().mean() + epsilon).sqrt() * (ratio[:, None] * unembedding[[ANSWER, WRONG]])
    direction = (along[0] - along[1]).detach()
    features = placed.made.encode(state[None].float())[0].double()
    expected = features * state.std() * (placed.made.decoder.double() @ direction)
    values = {(part.kind, part.index): float(value) for part, value in zip(found.parts, found.values[0], strict=True)}

    assert found.error < 1e-4
    assert float(found.metric) == pytest.approx(float(logits[ANSWER] - logits[WRONG]), abs=1e-4)
    assert {index for kind, index in values if kind == "feature"} == set(features.nonzero()[:, 0].tolist())
    for feature in features.nonzero()[:, 0].tolist():
        assert values["feature", feature] == pytest.approx(float(expected[feature]), rel=1e-3, abs=1e-5)
    back = placed.made.reconstruct(state[None].float())[0].double()
    assert values["reconstruction error", None] == pytest.approx(float((state - back) @ direction), rel=1e-3, abs=1e-4)


def test_what_is_not_added_to_the_stream_has_no_direct_effect() -> None:
    model = standardized("gemma2", "sdpa")
    work = Workload(encode_prompts(model.tokenizer, [CLEAN], "tiny"))
    with pytest.raises(Unsupported, match="not added to the residual stream as it is"):
        attribute_features(model, work, [TARGETS], placed_at("mlps_raw_output"))


def difference(logits: Tensor) -> Tensor:
    return logits[ANSWER] - logits[WRONG]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_slopes_are_those_of_plain_autograd(family: str) -> None:
    model, placed = standardized(family, "sdpa"), placed_at("layers_output", normalization="constant_norm")
    (prompt,) = encode_prompts(model.tokenizer, [CLEAN], "tiny")
    (found,) = find_slopes(model, Workload([prompt]), TARGETS, placed)
    moved = torch.zeros(len(prompt.ids), LATENTS, requires_grad=True)

    def change(states: Tensor) -> Tensor:
        scale = states[0].detach().norm(dim=-1, keepdim=True) / states.shape[-1] ** 0.5
        return states + (moved @ placed.made.decoder) * scale

    logits, states = run_plainly(family, prompt.ids, "", change)
    (slopes,) = torch.autograd.grad(difference(logits), [moved])
    features = placed.made.encode(states[0].detach())

    torch.testing.assert_close(found.slopes[1:], slopes[1:], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.products[1:], (features * slopes)[1:], atol=1e-5, rtol=1e-3)
    assert not found.products[0].any()
    assert found.metric == pytest.approx(float(difference(logits)), abs=1e-4)


def patching(family: str, placed: PlacedDictionary, *, ablated: bool = False) -> FeaturePatcher:
    model = standardized(family, "sdpa")
    clean, corrupted = encode_prompts(model.tokenizer, [CLEAN], "c"), encode_prompts(model.tokenizer, [CORRUPTED], "c")
    pairs = ablate(clean) if ablated else pair_prompts(clean, corrupted)
    grid = make_grid(model, pairs, ["layers_output"], layers=[LAYER])
    patcher = Patcher(
        model,
        pairs,
        grid,
        direction="noising" if ablated else "denoising",
        ablation="zero" if ablated else None,
        targets=TARGETS,
    )
    return FeaturePatcher(patcher, basis_of(model, "d", placed.made, placed.place, placed.out))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("ablated", [False, True])
def test_patched_features_change_the_metric_as_plain_hooks_do(family: str, ablated: bool) -> None:
    placed = placed_at("layers_output")
    made, patcher = placed.made, patching(family, placed, ablated=ablated)
    own, other = (pair := patcher.patcher.pairs[0]).corrupted or pair.clean, pair.clean
    runs = [CHOSEN, [5], list(range(LATENTS))]
    found = patcher.patch(runs)
    with torch.no_grad():
        seen = made.encode(run_plainly(family, other.prompt.ids, "")[1][0])

    def exchanged(chosen: list[int]) -> Change:
        def change(states: Tensor) -> Tensor:
            active = made.encode(states[0])
            moved = -active[:, chosen] if ablated else (seen - active)[:, chosen]
            moved[0] = 0
            return states + moved @ made.decoder[chosen]

        return change

    for run, value in zip(runs, found.values[0].tolist(), strict=True):
        with torch.no_grad():
            logits, _ = run_plainly(family, own.prompt.ids, "", exchanged(run))
        assert value == pytest.approx(float(difference(logits)), abs=2e-4)


def test_a_set_is_compared_with_matched_features_and_random_directions() -> None:
    patcher = patching("llama", placed_at("layers_output"))
    active = patcher.patcher.run_pair(0, [*patcher.basis.reads]).clean
    feature = int(patcher.basis.encode([active.states[patcher.basis.writes][1:]]).sum(0).argmax())
    found = patcher.compare([feature])
    again = patcher.compare([feature])

    assert found.draws
    assert all(feature not in drawn and len(drawn) == 1 for drawn in found.draws)
    assert found.patched.values.shape[1] == 1 + len(found.draws) + found.directions
    assert torch.equal(found.patched.values, again.patched.values)
    silent = int(patcher.basis.encode([active.states[patcher.basis.writes]]).sum(0).argmin())
    with pytest.raises(InvalidRequest, match="none of these features active"):
        FeaturePatcher(
            patcher.patcher,
            basis_of(
                patcher.patcher.model,
                "d",
                dictionary(activation=Activation(threshold=torch.full((LATENTS,), 1e6))),
                FeaturePlace("layers_output", LAYER),
                None,
            ),
        ).compare([silent])


def test_matched_features_are_about_as_active() -> None:
    counts = torch.tensor([10, 11, 9, 100, 12, 0, 10])
    sums = counts * torch.tensor([1.0, 1.1, 0.9, 1.0, 5.0, 0.0, 1.0])
    drawn = draw_matched_features(counts, sums, [0], 9)

    assert {one for (one,) in drawn} == {1, 2, 3, 4, 6}  # the nearest where fewer than five are within a factor of two
    assert all(len(set(drawn)) == 2 for drawn in draw_matched_features(counts, sums, [0, 1], 5))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_estimates_are_differences_times_the_slopes_of_plain_autograd(family: str) -> None:
    placed = placed_at("layers_output")
    patcher = patching(family, placed)
    found = estimate_feature_effects(patcher, placed)
    pair, made = patcher.patcher.pairs[0], placed.made
    assert pair.corrupted is not None
    moved = torch.zeros(len(pair.corrupted.prompt.ids), LATENTS, requires_grad=True)
    logits, states = run_plainly(family, pair.corrupted.prompt.ids, "", lambda states: states + moved @ made.decoder)
    (slopes,) = torch.autograd.grad(difference(logits), [moved])
    with torch.no_grad():
        seen = made.encode(run_plainly(family, pair.clean.prompt.ids, "")[1][0])
        expected = ((seen - made.encode(states[0])) * slopes)[1:].sum(0)

    torch.testing.assert_close(found.effects[0], expected, atol=1e-4, rtol=1e-3)
    assert float(found.corrupted) == pytest.approx(float(difference(logits)), abs=1e-4)


def test_transcoders_are_attributed_where_they_write() -> None:
    model = standardized("llama", "sdpa")
    made = dictionary(activation=Activation(k=9), transcodes=True, skip=random(64, 64, seed=4))
    placed = PlacedDictionary(made, FeaturePlace("mlps_input", LAYER), FeaturePlace("mlps_output", LAYER))
    work = Workload(encode_prompts(model.tokenizer, [CLEAN], "tiny"))
    (found,) = attribute_features(model, work, [TARGETS], placed)
    kinds = [part.kind for part in found.parts]

    assert found.error < 1e-4
    assert kinds.count("feature") == 9
    assert ("mlp", LAYER) not in {(part.kind, part.layer) for part in found.parts}
    assert kinds.count("reconstruction error") == 1
