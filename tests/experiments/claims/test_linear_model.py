"""Effects of a claim in a linear model, where they are known exactly."""

from __future__ import annotations

import pytest
import torch

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.experiments.claims.components import Along, Component, ComponentPart
from nnterp_mcp.experiments.claims.random_components import draw_subspaces
from nnterp_mcp.experiments.claims.trials import Behaviour, Trial
from nnterp_mcp.experiments.patching.alignment import align
from nnterp_mcp.experiments.patching.corruption import pair_prompts
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.experiments.circuits.test_edge_patching import standardized, straighten

PLACE = Place("layers_output", 0)


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
