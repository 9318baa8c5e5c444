from __future__ import annotations

import pytest
import torch

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.features.activity import compare_prompts, read_activity
from nnterp_mcp.experiments.features.dictionary import Activation, Dictionary
from nnterp_mcp.experiments.features.effects import find_logit_effects, find_nearest, writes_to_stream
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.feature_sites import FeaturePlace
from nnterp_mcp.verification.tiny import tiny_model
from tests.dictionaries import plain_states
from tests.experiments.features.layouts import random
from tests.model.families import standardized

LAYER, LATENTS = 2, 50
PROMPTS = ["Paris is good", "Rome is in Italy", "the king of France", "one two three", "four five six", "cold and dark"]


def made(width: int, activation: Activation = Activation()) -> Dictionary:  # noqa: B008 - frozen
    return Dictionary(random(LATENTS, width), random(LATENTS, width), random(LATENTS), random(width), activation)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_active_features_are_those_of_plain_hooks(family: str) -> None:
    model = standardized(family, "sdpa")
    dictionary = made(model.hidden_size, Activation(k=7))
    work = Workload(encode_prompts(model.tokenizer, PROMPTS, family))
    positions = [range(1, len(prompt.ids)) for prompt in work.prompts]
    found = read_activity(model, work, dictionary, FeaturePlace("layers_output", LAYER), None, positions)
    states = [plain_states(family, prompt.ids, LAYER) for prompt in work.prompts]
    pre = [own @ dictionary.encoder.T + dictionary.encoder_bias for own in states]
    features = [one.relu() * (one >= one.topk(7).values[:, -1:]) for one in pre]
    together = torch.cat(features)
    off = torch.cat(states) - together @ dictionary.decoder - dictionary.decoder_bias
    feature = int(together.amax(0).argmax())
    token, value = found.strongest(feature, 1)[0]

    torch.testing.assert_close(found.means(), torch.stack([one.mean(0) for one in features]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.shares(), (together > 0).float().mean(0))
    torch.testing.assert_close(found.errors, off.norm(dim=-1) / torch.cat(states).norm(dim=-1), atol=1e-5, rtol=1e-4)
    assert found.l0 == pytest.approx(float((together > 0).sum(-1).float().mean()))
    assert (token, value) == (
        int(together[:, feature].argmax()),
        pytest.approx(float(together[:, feature].max()), rel=1e-4),
    )
    assert (found.prompts[token], found.positions[token]) == [
        (prompt.index, at) for prompt, here in zip(work.prompts, positions, strict=True) for at in here
    ][token]


def test_groups_are_compared_with_groups_formed_at_random() -> None:
    means = random(12, LATENTS).abs()
    means[:6, 4] += 9
    planted = compare_prompts(means, range(6), range(6, 12))
    nothing = compare_prompts(random(12, LATENTS), range(6), range(6, 12))

    torch.testing.assert_close(planted.means, means[:6].mean(0) - means[6:].mean(0))
    assert int(planted.means.abs().argmax()) == 4
    assert planted.means[4] > 1.5 * planted.shuffled
    assert float(nothing.means.abs().max()) == pytest.approx(nothing.shuffled, rel=0.5)


def test_a_feature_promotes_the_tokens_whose_logits_it_raises() -> None:
    model, plain = standardized("llama", "sdpa"), tiny_model("llama")
    dictionary = made(model.hidden_size)
    found = find_logit_effects(model, dictionary, [3, 8], 5)
    effects = (dictionary.decoder[[3, 8]] * plain.model.norm.weight) @ plain.lm_head.weight.T

    for row, feature in enumerate((3, 8)):
        assert found.promoted[row] == effects[row].topk(5).indices.tolist()
        assert found.suppressed[row] == (-effects[row]).topk(5).indices.tolist()
        assert found.promoted_by[row] == pytest.approx(effects[row].topk(5).values.tolist(), rel=1e-3)
        cosines = torch.nn.functional.cosine_similarity(dictionary.decoder[feature], dictionary.decoder, dim=-1)
        cosines[feature] = -1
        nearest = find_nearest(dictionary, [feature], 3)[0]
        assert [at for at, _ in nearest] == cosines.topk(3).indices.tolist()


def test_only_what_lies_in_the_stream_has_a_direct_effect() -> None:
    places = {
        site: FeaturePlace(site, LAYER) for site in ("layers_output", "mlps_output", "mlps_raw_output", "mlps_input")
    }
    told = {
        family: [site for site, place in places.items() if writes_to_stream(model, made(model.hidden_size), place)]
        for family in ("llama", "gemma2")
        if (model := standardized(family, "sdpa"))
    }

    assert told == {
        "llama": ["layers_output", "mlps_output", "mlps_raw_output"],
        "gemma2": ["layers_output", "mlps_output"],
    }
