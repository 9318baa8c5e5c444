"""Calls whose answers are known: from the quiet server, and from plain transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_types import CallToolResult

from tests.serving import Caller, text

TOLERANCE = 1e-4
"""Of a number against the quiet server's."""

_PROMPTS = ["The capital of France is", "one two three four", "a b a b a", "Paris and Rome and"]

_CIRCUMSTANCE = re.compile("^Parts for read_run|^It replaces a vector|taken over from an equal call")


@dataclass(frozen=True)
class Case:
    """A call whose answer is known."""

    tool: str
    arguments: Mapping[str, Any]
    answer: Mapping[str, Any]


def calls_of(model: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls of every tool that runs a model."""
    first, second = _PROMPTS[:2]
    pair = {"clean": "The king of France", "corrupted": "The king of Spain", "targets": {"one": " a", "other": " b"}}
    zero = [{"op": "zero", "layers": [1], "site": "mlps_output"}]
    direction = {"positive": " a", "negative": " b"}
    calls: list[tuple[str, dict[str, Any]]] = [
        *(("logit_lens", {"prompts": prompt}) for prompt in _PROMPTS),
        ("logit_lens", {"prompts": _PROMPTS, "positions": "all", "targets": {"one": "a"}}),
        ("logit_lens", {"prompts": first, "interventions": zero}),
        ("patchscope", {"source_prompts": first, "max_new_tokens": 2}),
        ("attention_probs", {"prompts": second, "query_positions": "last"}),
        ("steer", {"prompts": first, "vector": direction, "layers": [1], "factors": [1, 4]}),
        ("generate", {"prompts": second, "max_new_tokens": 8, "interventions": zero}),
        ("run_prompts", {"prompts": _PROMPTS, "targets": {"one": "a", "other": "b"}}),
        ("patch_activations", pair),
        ("attribute", {"prompts": first, "targets": {"one": " a", "other": " b"}}),
        ("collect_activations", {"prompts": _PROMPTS}),
        ("make_vector", {"name": "soak", "method": "mean_difference", "positive": [first], "negative": [second]}),
        ("tokenize", {"prompts": _PROMPTS}),
        ("inspect_model", {"path": "layers[1].self_attn"}),
    ]
    return [(tool, {"model": model, **arguments}) for tool, arguments in calls]


def known_cases(client: Caller, models: Sequence[str]) -> list[Case]:
    """Answers of the quiet server; each call is made twice, and the answers must be equal."""
    cases: list[Case] = []
    for model in models:
        for tool, arguments in calls_of(model):
            answers = [client.call(tool, **arguments) for _ in range(3)][1:]
            for answer in answers:
                assert not answer.is_error, text(answer)
            first, second = (_settled(client, answer) for answer in answers)
            assert equal(first, second), f"{tool} {arguments} is not the same twice:\n{first}\n{second}"
            cases.append(Case(tool, arguments, second))
    return cases


def _settled(client: Caller, result: CallToolResult) -> dict[str, Any]:
    """An answer, read later if the call was late."""
    content = dict(result.structured_content or {})
    while content.get("state") in ("queued", "running"):
        result = client.call("read_run", run_id=content["run_id"])
        assert not result.is_error, text(result)
        content = dict(result.structured_content or {})
    return content


def check_against_transformers(cases: Sequence[Case], folders: Mapping[str, Path]) -> int:
    """The top tokens of every prompt that the lens read alone, against a plain forward pass.

    Returns:
        How many probabilities were compared; the server rounds them to three digits.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    compared = 0
    for model, folder in folders.items():
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for case in cases:
            prompt = case.arguments.get("prompts")
            if case.tool != "logit_lens" or case.arguments["model"] != model or not isinstance(prompt, str):
                continue
            if "interventions" in case.arguments:
                continue
            with torch.no_grad():
                logits = network(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
            top = logits.softmax(-1).topk(3).values.tolist()
            said = [probability for _, probability in case.answer["table"]["rows"][-1][1]]
            assert all(abs(a - b) <= 0.006 * b for a, b in zip(said, top, strict=True)), (prompt, said, top)
            compared += len(said)
    return compared


def equal(one: Any, other: Any) -> bool:
    """Whether two answers are the same but for their run and for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {*one, *other} - {"run_id"}
        return all(equal(_said(name, one), _said(name, other)) for name in names)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) <= TOLERANCE * max(1.0, abs(other))
    return one == other


def _said(name: str, answer: Mapping[str, Any]) -> Any:
    """A part of an answer, without the notes that tell of what was before it or lies beside it."""
    value = answer.get(name)
    return [note for note in value if not _CIRCUMSTANCE.search(note)] if name == "notes" else value


def reads_as(result: CallToolResult, answer: Mapping[str, Any]) -> bool:
    """Whether a run that is read says what its call answered."""
    return not result.is_error and equal(dict(result.structured_content or {}), answer)
