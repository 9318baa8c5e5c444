"""The verdict's error rates, counted on planted models; and effects in a linear model, where they are known exactly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from evals.planted import AMOUNT, COLOUR, COOL, WARM, WORDS, make_large, plant_attributes, plant_copying
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.features import FeatureBasis
from nnterp_mcp.experiments.claims.components import Along, AsFarAlong, Component, ComponentPart, OfFeatures
from nnterp_mcp.experiments.claims.effects import Evidence, TrialPlan
from nnterp_mcp.experiments.claims.random_components import draw_features, draw_subspaces
from nnterp_mcp.experiments.claims.trials import Behaviour, Trial
from nnterp_mcp.experiments.claims.verdict import Outcome, judge
from nnterp_mcp.experiments.patching.alignment import align
from nnterp_mcp.experiments.patching.corruption import pair_prompts
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.experiments.circuits.test_edge_patching import standardized, straighten

MODELS, CLAIMS, NULLS = 20, 10, 39
PLAN = TrialPlan("logit_difference", means=True)
TRIALS = PLAN.every | PLAN.doses
PLACE = Place("layers_output", 0)

Prompts = Sequence[tuple[str, str, str, str]]


def behaviour_of(model: StandardizedTransformer, prompts: Prompts, places: Sequence[Place]) -> Behaviour:
    clean, corrupted, answers, wrong = zip(*prompts, strict=True)
    pairs = pair_prompts(*(encode_prompts(model.tokenizer, texts, "it") for texts in (clean, corrupted)))
    targets = [[[WORDS.index(word)] for word in both] for both in zip(answers, wrong, strict=True)]
    spans = align(pairs, {"all": (["all"], ["all"])})
    return Behaviour(model, pairs, spans, "logit_difference", targets, places)


class Pool:
    """Components that are measured once; each is judged as a claim next to others of them."""

    def __init__(self, behaviour: Behaviour, components: Sequence[Component]) -> None:
        self._behaviour, self._components = behaviour, components
        self._values = behaviour.measure(components, list(TRIALS.values()))
        self._baselines = behaviour.baselines()

    def judge(self, claim: int, nulls: Sequence[int]) -> Outcome:
        return self._judge(self._values[:, :, [claim, *nulls]])

    def judge_by_both(self, claim: int, nulls: Sequence[int]) -> Outcome:
        """Next to directions of equal norm too, which are measured only where the others do not reject the claim."""
        first = self.judge(claim, nulls)
        if first != "supported":
            return first
        own = self._components[claim]
        rows = draw_subspaces(self._behaviour.model.hidden_size, 1, NULLS, 1)
        far = [Component(own.parts, AsFarAlong(own.exchange, row[0]), own.basis) for row in rows]
        added = self._behaviour.measure(far, list(TRIALS.values()))
        return self._judge(torch.cat([self._values[:, :, [claim, *nulls]], added], dim=-1), 1 + len(nulls))

    def _judge(self, measured: Tensor, directions: int | None = None) -> Outcome:
        values = {name: measured[:, at] for at, name in enumerate(TRIALS)}
        evidence = Evidence(values, self._baselines, directions=directions)
        return judge(evidence.gap, len(self._baselines), evidence.criteria()).outcome


def copying(seed: int, count: Counter[tuple[str, Outcome]]) -> None:
    """Pairs of heads, one of which is planted, in a model where two heads copy."""
    dice = random.Random(seed)
    first, second = sorted(dice.sample(range(4), 2))
    truth = ((first, dice.randrange(8)), (second, dice.randrange(8)))
    weights, tokenizer = make_large(lambda model: plant_copying(model, *truth, seed))
    model = StandardizedTransformer(weights, tokenizer=tokenizer, name="copying")
    prompts: list[tuple[str, str, str, str]] = []
    for _ in range(6):
        a, b, c, d, e, f = dice.sample(WORDS[1:], 6)
        prompts.append((f"{a} {b} {c} {d} {e} {f} {b}", f"{a} {d} {c} {b} {e} {f} {b}", c, e))
    heads = [[(layer, head) for head in range(8)] for layer in (first, second)]
    others = [(one, two) for one in heads[0] for two in heads[1] if one != truth[0] and two != truth[1]]
    pairs = [truth, *dice.sample(others, NULLS + 1)]
    parts = [tuple(ComponentPart(Place("heads_output", layer), head) for layer, head in pair) for pair in pairs]
    places = [Place("heads_output", layer) for layer in (first, second)]
    pool = Pool(behaviour_of(model, prompts, places), [Component(one) for one in parts])
    count["planted heads", pool.judge(0, range(1, NULLS + 1))] += 1
    for claim in range(1, CLAIMS + 1):
        count["random heads", pool.judge(claim, [at for at in range(1, NULLS + 2) if at != claim])] += 1


def attributes(seed: int, count: Counter[tuple[str, Outcome]]) -> None:
    """Directions and features in a model that reads one of two attributes of words."""
    dice = random.Random(seed)
    weights, tokenizer = make_large(plant_attributes)
    model = StandardizedTransformer(weights, tokenizer=tokenizer, name="attributes")
    begun = dice.sample(["cat", "dog", "fox", "owl", "start", "one", "two", "six"], 6)
    words = [(dice.choice(WARM), dice.choice(COOL)) for _ in begun]
    prompts = [
        (f"start {word} {warm}", f"start {word} {cool}", "hot", "cold")
        for word, (warm, cool) in zip(begun, words, strict=True)
    ]
    behaviour = behaviour_of(model, prompts, [PLACE])
    part = ComponentPart(PLACE)
    axes = torch.eye(model.hidden_size)[[COLOUR, AMOUNT]]
    randoms = draw_subspaces(model.hidden_size, 1, NULLS + CLAIMS, seed)
    directions = [axes[:1], axes[1:], *randoms]
    pool = Pool(behaviour, [Component((part,), Along(rows)) for rows in directions])
    count["planted direction", pool.judge_by_both(0, range(2, 2 + NULLS))] += 1
    count["tempting direction", pool.judge_by_both(1, range(2, 2 + NULLS))] += 1
    for claim in range(2, 2 + CLAIMS):
        others = [at for at in range(2, len(directions)) if at != claim]
        count["random direction", pool.judge_by_both(claim, dice.sample(others, NULLS))] += 1

    part = ComponentPart(PLACE, after_first=True)
    basis = basis_of(torch.cat([axes, *draw_subspaces(model.hidden_size, 1, 200, seed + 1000)]))
    features = [Component((part,), OfFeatures(basis, [one]), basis) for one in range(basis.latents)]
    pool = Pool(behaviour, features)
    active = [
        one for one in range(2, basis.latents) if draw_features(behaviour, features[one], part, [one], 1) is not None
    ]
    for claim in (0, *dice.sample(active, CLAIMS)):
        nulls = draw_features(behaviour, features[claim], part, [claim], NULLS, seed)
        assert nulls is not None
        name = "random feature" if claim else "planted feature"
        count[name, pool.judge_by_both(claim, [one for (one,) in nulls])] += 1


def basis_of(rows: Tensor) -> FeatureBasis:
    def encode(states: Sequence[Tensor]) -> Tensor:
        return (states[0] @ rows.T).relu()

    def write(change: Tensor, chosen: Tensor, reads: Sequence[Tensor]) -> Tensor:
        return change @ rows[chosen]

    return FeatureBasis("random", len(rows), [PLACE], PLACE, rows.shape[1], encode, write)


@pytest.mark.slow
def test_false_claims_are_rarely_supported_and_planted_ones_nearly_always() -> None:
    """Of 600 random components at most 5 % of each kind; of 20 planted ones of each kind at least 95 %.

    Directions and features are compared with directions of equal norm too.
    """
    count: Counter[tuple[str, Outcome]] = Counter()
    for seed in range(MODELS):
        copying(seed, count)
        attributes(seed, count)

    def supported(kind: str) -> tuple[int, int]:
        return count[kind, "supported"], sum(times for (name, _), times in count.items() if name == kind)

    print({kind: supported(kind) for kind in sorted({name for name, _ in count})})
    for kind in ("random heads", "random direction", "random feature"):
        wrong, claims = supported(kind)
        assert claims == MODELS * CLAIMS
        assert wrong <= 0.05 * claims, kind
    assert supported("tempting direction") == (0, MODELS)
    for kind in ("planted heads", "planted direction", "planted feature"):
        right, claims = supported(kind)
        assert claims == MODELS
        assert right >= 0.95 * claims, kind


def test_effects_are_exact_in_a_linear_model() -> None:
    """Half an exchange has half the effect, effects of heads add up, and both directions have one effect."""
    with torch.no_grad():
        model = standardized("llama", straighten)
    texts = ["The capital of France is", "The king of France is"], ["The capital of Spain is", "The king of Spain is"]
    pairs = pair_prompts(*(encode_prompts(model.tokenizer, list(side), "it") for side in texts))
    places = [Place("heads_output", 1), PLACE]
    spans = align(pairs, {"all": (["all"], ["all"])})
    behaviour = Behaviour(model, pairs, spans, "logit_difference", [[[40], [77]]] * 2, places)
    one, two = (ComponentPart(Place("heads_output", 1), head) for head in (0, 1))
    (rows,) = draw_subspaces(model.hidden_size, 1, 1)
    components = [
        Component((one,)),
        Component((two,)),
        Component((one, two)),
        Component((ComponentPart(PLACE),), Along(rows)),
    ]
    trials = [
        Trial("clean", "other", "logit_difference"),
        Trial("clean", "other", "logit_difference", 0.5),
        Trial("corrupted", "other", "logit_difference"),
    ]
    values = behaviour.measure(components, trials)
    clean, corrupted = behaviour.baselines().T
    necessity, half = clean[:, None] - values[:, 0], clean[:, None] - values[:, 1]
    sufficiency = values[:, 2] - corrupted[:, None]

    assert half == pytest.approx(necessity / 2, abs=1e-5)
    assert sufficiency == pytest.approx(necessity, abs=1e-5)
    assert necessity[:, 2] == pytest.approx(necessity[:, 0] + necessity[:, 1], abs=1e-5)
    assert float(necessity.abs().min()) > 1e-5
