"""Matched random components."""

from __future__ import annotations

from typing import Any

import pytest

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.experiments.claims.components import ComponentPart as Part
from nnterp_mcp.experiments.claims.random_components import Draws
from nnterp_mcp.experiments.patching.alignment import Span
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

SPANS = [Span(str(at), (at,), (at,)) for at in range(6)]


@pytest.fixture(scope="module")
def model() -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")


def draw(model: Any, *parts: Part, count: int = 30) -> Any:
    return Draws(model, parts, SPANS, (6, 6)).draw(count)


def test_heads_are_drawn_from_the_nearest_layers_that_have_enough_others(model: StandardizedTransformer) -> None:
    claimed = Part(Place("heads_output", 1), 2)
    few, many = draw(model, claimed, count=3), draw(model, claimed, count=11)

    assert few.within == 0
    assert {part.place.layer for (part,) in few.sets} == {1}
    assert many.within == 1
    assert len(set(many.sets)) == 11
    assert all(claimed not in drawn for drawn in many.sets)


def test_sets_have_as_many_different_parts_of_the_same_sites(model: StandardizedTransformer) -> None:
    claimed = [
        Part(Place("heads_output", 1), 0),
        Part(Place("heads_output", 1), 1),
        Part(Place("mlps_output", 2)),
    ]
    found = draw(model, *claimed)

    assert len({frozenset(drawn) for drawn in found.sets}) == 30
    for drawn in found.sets:
        assert len(set(drawn)) == 3
        assert [part.place.site for part in drawn] == ["heads_output", "heads_output", "mlps_output"]


def test_states_at_some_tokens_are_drawn_at_other_tokens(model: StandardizedTransformer) -> None:
    claimed = Part(Place("layers_output", 1), None, (4,))
    found = draw(model, claimed, count=5)

    assert found.within == 0
    assert {part.tokens(SPANS, (6, 6))[0][0] for (part,) in found.sets} == {0, 1, 2, 3, 5}


def test_too_few_others_give_as_many_as_there_are(model: StandardizedTransformer) -> None:
    assert len(draw(model, Part(Place("mlps_output", 2))).sets) == 3
