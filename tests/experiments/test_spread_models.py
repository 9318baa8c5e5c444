"""A model spread over devices, as `device_map="auto"` spreads one: the lens, patching and generation.

A CPU has no second device, so the second one is the disk: its layers hold no weights (their tensors are on `meta`) but
while they run, which is more than layers on another card ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.utils import offload_state_dict

from nnterp_mcp import Laboratory
from nnterp_mcp.contract import Result
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2")
CALLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lens": ("logit_lens", {"prompts": ["Paris is", "The capital of Spain is"], "positions": "all"}),
    "patching": (
        "patch_activations",
        {"clean": "Paris is", "corrupted": "Spain is", "targets": {"a": " France", "b": " Rome"}},
    ),
    "heads": (
        "patch_activations",
        {"clean": "Paris is", "corrupted": "Spain is", "targets": {"a": " France", "b": " Rome"}, "heads": "all"},
    ),
    "generation": (
        "generate",
        {
            "prompts": ["Paris is", "The capital of Spain is"],
            "max_new_tokens": 12,
            "interventions": [{"op": "add", "layers": 2, "vector": {"positive": " Paris", "negative": " Rome"}}],
        },
    ),
    "patchscope": ("patchscope", {"source_prompts": "The capital of Spain is", "target_prompt": "x x"}),
    "steering": (
        "steer",
        {"prompts": "Paris is", "vector": {"positive": " Paris", "negative": " Rome"}, "layers": 2, "factors": [0, 3]},
    ),
    "attention": ("attention_probs", {"prompts": "Paris is in France"}),
    "gradients": (
        "attribute",
        {"prompts": "Paris is", "targets": {"a": " France", "b": " Rome"}, "method": "gradient"},
    ),
}


def _spread(family: str, folder: Path) -> Any:
    """The model with the second half of its layers on the disk."""
    model: Any = tiny_model(family)
    path, blocks = max(
        ((name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)),
        key=lambda found: len(found[1]),
    )
    half = len(blocks) // 2
    placed = {f"{path}.{at}": "cpu" if at < half else "disk" for at in range(len(blocks))}
    near = [name for name, part in model.named_modules() if name and not list(part.children())]
    placed |= {name: "cpu" for name in near if not name.startswith(f"{path}.")}
    far = tuple(f"{name}." for name, where in placed.items() if where == "disk")
    offload_state_dict(str(folder), {name: value for name, value in model.state_dict().items() if name.startswith(far)})
    return dispatch_model(model, placed, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.fixture(scope="module")
def laboratories(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Laboratory]:
    made: dict[tuple[str, bool], Laboratory] = {}
    for family in FAMILIES:
        made[family, False] = Laboratory(tiny_model(family), tiny_tokenizer(), handle=family)
        spread = _spread(family, tmp_path_factory.mktemp(family))
        made[family, True] = Laboratory(spread, tiny_tokenizer(), handle=family)
    return made


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_spread_model_says_what_the_model_in_one_place_says(
    laboratories: dict[tuple[str, bool], Laboratory], family: str, call: str
) -> None:
    tool, arguments = CALLS[call]
    whole, spread = (laboratories[family, where].call(tool, **arguments) for where in (False, True))
    _assert_close(spread, whole)


def test_the_second_half_of_the_layers_is_elsewhere(laboratories: dict[tuple[str, bool], Laboratory]) -> None:
    layers = laboratories["llama", True].bench.model.anatomy.layers
    devices = [{weight.device.type for weight in layer.block.module.parameters()} for layer in layers]
    assert devices == [{"cpu"}, {"cpu"}, {"meta"}, {"meta"}]


def _assert_close(found: Result, expected: Result) -> None:
    """Every number of two results agrees, and everything else is equal."""
    _compare(found.model_dump(), expected.model_dump(), "")


def _compare(found: Any, expected: Any, at: str) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-4, nan_ok=True), at
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key, value in expected.items():
            _compare(found[key], value, f"{at}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), at
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            _compare(one, other, f"{at}[{number}]")
    else:
        assert found == expected, at
