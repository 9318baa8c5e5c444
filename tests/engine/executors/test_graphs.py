"""Decode steps on static buffers say what plain transformers says; on a CPU without a capture."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from nnterp_mcp.engine import decode_steps
from nnterp_mcp.engine.executors.graphs import StaticSteps
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "mistral", "qwen2_moe", "opt", "bloom", "falcon")
PROMPTS = ["The capital of France is", "Paris and Rome", "of Spain is Madrid, and Rome is the capital of"]
NEW_TOKENS = 20
OPERATIONS = [
    {
        "op": "add",
        "site": "layers_output",
        "layers": 1,
        "vector": {"positive": " Paris", "negative": " Rome"},
        "factor": 4,
    },
    {"op": "scale", "site": "heads_output", "layers": 0, "heads": [1], "factor": -1, "steps": "2:9"},
    {"op": "skip", "layers": 2, "steps": "5:"},
]


@pytest.fixture(autouse=True)
def _as_on_an_accelerator() -> Iterator[None]:
    with patch.object(decode_steps, "captures_steps", return_value=True):
        yield


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operations", [[], OPERATIONS], ids=["plain", "edited"])
def test_static_steps_are_the_usual_steps(family: str, operations: list[dict[str, object]]) -> None:
    model = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
    prompts = encode_prompts(model.tokenizer, PROMPTS, family)
    edits = plan(model, [parse_operation(operation) for operation in operations], prompts)
    with patch.object(decode_steps, "captures_steps", return_value=False):
        expected = generate(model, Workload(prompts, edits), max_new_tokens=NEW_TOKENS)
    usual = StaticSteps.next_logits
    with patch.object(StaticSteps, "next_logits", autospec=True, side_effect=usual) as stepped:
        found = generate(model, Workload(prompts, edits), max_new_tokens=NEW_TOKENS)

    assert stepped.call_count > 0
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=2e-5)
