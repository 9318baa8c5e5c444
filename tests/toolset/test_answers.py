"""Answers on the real default model: both channels, their facts and their size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from nnterp_mcp.formatting import number
from nnterp_mcp.toolset import specs
from tests.serving import Caller, text

pytestmark = pytest.mark.smollm2

PROMPT = "The capital of France is"
TARGETS = {"capital": "Paris", "traps": ["London", "Madrid"]}
DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "load_model": ("load_model", {"model": "smollm2-135m"}),
    "lens": ("logit_lens", {"prompts": PROMPT}),
    "lens with targets": ("logit_lens", {"prompts": PROMPT, "targets": TARGETS}),
    "lens of several prompts": ("logit_lens", {"prompts": [PROMPT, "Two and two make", "The sun"]}),
    "lens at all positions": ("logit_lens", {"prompts": PROMPT, "positions": "all", "targets": TARGETS}),
    "lens of a chat": ("logit_lens", {"prompts": [{"role": "user", "content": "What is the capital of France?"}]}),
    "tokenize": ("tokenize", {"prompts": PROMPT}),
    "tokenize as a chat": ("tokenize", {"prompts": PROMPT, "chat": True}),
    "session": ("session", {}),
}
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "many prompts": ("logit_lens", {"prompts": [f"{PROMPT} {n}" for n in range(60)], "layers": [10, -1]}),
    "all positions": ("logit_lens", {"prompts": f"{PROMPT} " * 60, "positions": "all", "layers": [3, 29]}),
    "top 20": ("logit_lens", {"prompts": PROMPT, "top_k": 20, "targets": TARGETS}),
    "many categories": (
        "logit_lens",
        {"prompts": PROMPT, "targets": {f"a category whose name is long, number {n}": [f"{n}"] for n in range(60)}},
    ),
    "long tokens": ("logit_lens", {"prompts": " " * 400 + "=" * 200 + "\n" * 100, "positions": "all", "layers": "20:"}),
    "tokenize much": ("tokenize", {"prompts": [PROMPT * 20] * 300}),
}


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and value.get("rows") == []:
        return
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield value


def written(value: Any) -> str:
    """A fact of the structured content as the text writes it."""
    return number(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)[1:-1]


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_default_answer(kind: str, warm: Caller, count_tokens: Callable[[object], int]) -> None:
    tool, arguments = DEFAULTS[kind]
    result = warm.call(tool, **arguments)
    structured, said = result.structured_content, result.content[0].text
    print(f"{kind}: text {count_tokens(said)} tokens, structured content {count_tokens(structured)}")

    assert not result.is_error
    jsonschema.validate(structured, specs()[tool].output_schema())
    assert count_tokens(said) <= 1000
    assert count_tokens(structured) <= 1000
    facts = {name: value for name, value in structured.items() if name not in ("card", "total", "truncated")}
    for fact in leaves(facts):
        assert written(fact) in said or str(fact) in said, f"the text lacks {fact!r}"


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_answer_is_bounded_and_says_what_it_left_out(
    kind: str, warm: Caller, count_tokens: Callable[[object], int]
) -> None:
    tool, arguments = LARGE[kind]
    result = warm.call(tool, **arguments)
    structured, said = result.structured_content, result.content[0].text
    print(f"{kind}: text {count_tokens(said)} tokens, structured content {count_tokens(structured)}")

    assert not result.is_error, said
    jsonschema.validate(structured, specs()[tool].output_schema())
    assert count_tokens(said) <= 2000
    assert count_tokens(structured) <= 2000
    assert any("not shown" in note for note in structured["notes"])
    assert all(note in said for note in structured["notes"])


def test_the_lens_finds_paris(warm: Caller) -> None:
    result = warm.call("logit_lens", prompts=PROMPT, targets=TARGETS)
    rows = result.structured_content["table"]["rows"]
    last = rows[-1]

    said = 'After " is" (position 4), smollm2-135m predicts " Paris" (0.77'
    assert result.structured_content["finding"].startswith(said)
    assert result.structured_content["table"]["columns"][-2:] == ["capital p, rank", "traps p, rank"]
    assert (last[0], last[1][0][0], last[3], last[4][1]) == (29, " Paris", 0, 1)
    assert last[1][0][1] == pytest.approx(0.77, abs=0.01)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert f"{30 - len(rows)} layers not shown" in text(result)


def test_layers_positions_and_top_k_are_what_was_asked_for(warm: Caller) -> None:
    result = warm.call("logit_lens", prompts=PROMPT, layers=[3, -1], positions={"text": "France"}, top_k=2)
    rows = result.structured_content["table"]["rows"]

    assert [row[0] for row in rows] == [3, 29]
    assert [len(row[1]) for row in rows] == [2, 2]
    assert result.structured_content["finding"].startswith('After " France" (position 3), ')
    assert not result.structured_content["truncated"]


def test_a_batch_reads_each_prompt_as_if_it_were_alone(warm: Caller) -> None:
    prompts = [PROMPT, "Two", "The sun rises in the east and, as everybody knows, sets in the"]
    together = warm.call("logit_lens", prompts=prompts).structured_content["table"]["rows"]
    alone = [warm.call("logit_lens", prompts=prompt).structured_content["table"]["rows"][-1] for prompt in prompts]

    assert [row[3][0] for row in together] == [row[1][0][0] for row in alone]
    assert [row[3][1] for row in together] == pytest.approx([row[1][0][1] for row in alone], abs=1e-3)


def test_tokens_are_those_of_the_model(warm: Caller) -> None:
    result = warm.call("tokenize", prompts=PROMPT)

    assert [row[2] for row in result.structured_content["tokens"]["rows"]] == [
        "The",
        " capital",
        " of",
        " France",
        " is",
    ]
