"""The wording of a comparison, from results that are made up, so that no number depends on a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.server.replies import answered
from nnterp_mcp.toolset.compare_models import SPEC
from nnterp_mcp.toolset.compare_models.result import CompareModelsResult
from tests.serving import text

_POSITION: dict[str, Any] = {"prompt": 0, "base_top": " the", "base_p": 0.25, "top": " Arr", "p": 0.75, "changed": True}
_ALONE: dict[str, Any] = {
    "model": "tiny+pirate",
    "base": "tiny",
    "others": ["tiny+butler"],
    "prompts": ["The capital"],
    "neutral": False,
    "parts": ["predictions", "activations", "weights", "difference", "patching", "texts"],
    "positions": [
        _POSITION | {"position": 0, "token": "The", "kl": 0.5, "random": 0.01, "changed": False, "top": " the"},
        _POSITION | {"position": 1, "token": " capital", "kl": 2.5, "random": 0.03},
    ],
    "places": [
        {"site": "mlps_output", "layer": 1, "change": 0.4, "cosine": 0.9, "random": 0.1},
        {"site": "layers_output", "layer": 0, "change": 0.0, "cosine": 1.0, "made": 0.0, "came": 0.0, "random": 0.1},
        {"site": "layers_output", "layer": 1, "change": 0.3, "cosine": 0.95, "made": 0.3, "came": 0.0, "random": 0.1},
    ],
    "modules": [
        {"module": "mlp.down_proj", "shape": [4, 8], "norm": 2.0, "relative": 0.02, "rank": 1, "spectrum": [2.0]}
    ],
    "uncontrolled": 1,
    "differences": [
        {"layer": 0, "early": False, "size": 0.0, "top": []},
        {"layer": 1, "early": False, "size": 0.2, "top": [(" arr", 0.5)], "scope": [(" ship", 0.4)]},
        {"layer": 0, "early": True, "size": 0.0, "top": []},
        {"layer": 1, "early": True, "size": 0.3, "top": [(" sea", 0.5)], "scope": [(" cat", 0.4)]},
    ],
    "scoped": [("\n", 0.3)],
    "steering": [
        {"strength": 0.0, "kl": 7.0, "random": 7.0},
        {"strength": 0.5, "kl": 6.5, "random": 7.1},
        {"strength": 1.0, "kl": 6.0, "random": 7.2},
        {"strength": 2.0, "kl": 5.0, "random": 7.3},
    ],
    "steered_layer": 1,
    "steered_strength": 2.0,
    "cells": [
        {"site": "mlps_output", "layer": 1, "into_base": 0.6, "into_model": 0.5},
        {"site": "layers_output", "layer": 1, "into_base": 1.0, "into_model": 1.0},
    ],
    "patched": [0],
    "texts": [{"prompt": 0, "base": " of France", "model": " Arr, matey!", "steered": " of the sea"}],
}


def _beside(rows: list[dict[str, Any]], value: Any) -> list[dict[str, Any]]:
    return [row | {"other": value} for row in rows]


_CONTROLLED = _ALONE | {
    "other": "tiny+butler",
    "others": [],
    "interventions": ["skip layer 0, every step"],
    "steering": [{"strength": strength, "kl": 7.0 + strength, "random": 7.0} for strength in (0.0, 1.0)],
    **{name: _beside(_ALONE[name], value) for name, value in (("positions", 1.5), ("places", 0.25), ("cells", -0.1))},
    "differences": _beside(_ALONE["differences"], 0.43),
    "texts": _beside(_ALONE["texts"], " Very good, sir."),
}
_BY_TEXT: dict[str, Any] = {
    "model": "tiny",
    "base": "small",
    "prompts": ["The capital"],
    "neutral": True,
    "parts": ["predictions", "texts"],
    "left_out": ["activations", "weights"],
    "by_text": True,
    "positions": [
        _POSITION
        | {"position": 0, "token": "The", "kl": 0.5, "base_bits": 2.5, "bits": 1.5, "characters": 8}
        | {"base_shared": 0.9, "shared": 0.8},
        _POSITION | {"position": 1, "token": " capital", "kl": 0.25, "changed": False},
    ],
    "texts": [{"prompt": 0, "base": " of France", "model": " of Spain"}],
}
_ITSELF = _ALONE | {
    "model": "tiny",
    "others": [],
    "positions": [_POSITION | {"position": 0, "token": "The", "kl": 0.0, "changed": False, "top": " the", "p": 0.25}],
    "places": [_ALONE["places"][1] | {"random": None}],
    "uncontrolled": 0,
    **{name: [] for name in ("modules", "steering", "cells", "patched")},
    "differences": _ALONE["differences"][::2],
    "texts": [{"prompt": 0, "base": " of France", "model": " of France"}],
}
KINDS = {"alone": _ALONE, "next to another fine-tune": _CONTROLLED, "by text": _BY_TEXT, "with itself": _ITSELF}


@pytest.mark.parametrize("kind", KINDS)
def test_summary(kind: str, snapshot: SnapshotAssertion) -> None:
    reply = answered(SPEC.digest(CompareModelsResult.model_validate(KINDS[kind])))
    assert text(reply) == snapshot(name="text")
    assert reply.structured_content == snapshot(name="structured")


def test_a_whole_answer_leaves_room_for_the_parts_of_its_run(count_tokens: Callable[[Any], int]) -> None:
    """Of 1,000 tokens, the list of parts takes up to 200."""
    told = "Arr, matey! It be Madrid, or I be no pirate, says the captain."
    whole = _CONTROLLED | {
        "model": "smollm2-135m+pirate",
        "base": "smollm2-135m",
        "other": "smollm2-135m+butler",
        "positions": [_CONTROLLED["positions"][1] | {"position": at, "kl": 8.113 - at} for at in range(12)],
        "places": [
            place | {"layer": layer, "change": 0.6945, "cosine": 0.7412, "random": 0.0472}
            for place in _CONTROLLED["places"][:2]
            for layer in range(30)
        ],
        "modules": [_ALONE["modules"][0] | {"module": "model.layers.0.self_attn.v_proj"}] * 210,
        "differences": [
            one | {"layer": 15, "top": [(" cryptocur", 0.1), ("<0x9E><0x8B>", 0.1), (" a", 0.1)], "scope": one["top"]}
            for one in _CONTROLLED["differences"][1::2]
        ],
        "steered_layer": 15,
        "texts": [
            _CONTROLLED["texts"][0] | {"prompt": at, "base": told, "model": told, "steered": told} for at in range(2)
        ],
    }

    reply = answered(SPEC.digest(CompareModelsResult.model_validate(whole)))

    assert count_tokens(text(reply)) <= 800
    assert count_tokens(reply.structured_content) <= 950
