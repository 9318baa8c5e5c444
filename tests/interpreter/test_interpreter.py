"""Random calls of the tools beside an interpreter of the intervention language that shares no code with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interpreter.families import FAMILIES

# Drawn so that the few differ in what matters: grouped queries; windows, softcaps and norms behind sublayers; heads
# that share keys, attention and MLP side by side; sinks and experts.
SAMPLE = [
    ("llama", "auto", "right"),
    ("gemma2", "auto", "left"),
    ("falcon", "eager", "left"),
    ("gpt_oss", "auto", "left"),
]

Play = Callable[[str, str, str, int], list[str]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    from tests.interpreter.runs import play
    from tests.interpreter.subject import Subject

    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(family: str, attention: str, side: str, count: int) -> list[str]:
        subject = Subject.make(family, attention, side, tmp_path_factory.mktemp("interpreted"))
        return [str(outcome) for outcome in play(subject, 1, count) if outcome.told.faults]

    yield run
    torch.set_num_threads(before)


@pytest.mark.parametrize(("family", "attention", "side"), SAMPLE)
def test_tools_and_interpreter_agree_on_a_sample(play: Play, family: str, attention: str, side: str) -> None:
    assert play(family, attention, side, 10) == []


ONCE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "edits of a group's heads, rows of two lengths": (
        "llama",
        "generate",
        {"prompts": ["cat dog France", "cat sea red blue old France"], "max_new_tokens": 12}
        | {"interventions": [{"op": "scale", "site": "values", "layers": "1:", "factor": -1, "heads": [0, 3]}]},
    ),
    "a pattern in a sliding window": (
        "mistral",
        "generate",
        {"prompts": "cat dog sun sea France", "max_new_tokens": 12}
        | {"interventions": [{"op": "set_attention", "layers": "all", "heads": 1, "pattern": "first"}]},
    ),
    "a knockout of a scaled row": (
        "gpt_oss",
        "attention_probs",
        {"prompts": "cat dog France", "kinds": False, "query_positions": "last"}
        | {
            "interventions": [
                {"op": "knockout", "layers": "all", "key_positions": 1},
                {"op": "scale", "site": "attention_probabilities", "layers": "all", "factor": 0.5},
            ]
        },
    ),
    "a contribution behind its norm": (
        "olmo2",
        "logit_lens",
        {"prompts": "cat dog France"}
        | {"interventions": [{"op": "scale", "site": "mlps_output", "layers": 0, "factor": 0.1}]},
    ),
    "a contribution that was taken away": (
        "llama",
        "attribute",
        {"prompts": "cat dog France", "targets": {"one": "cat"}, "method": "direct", "by": "sublayer"}
        | {"interventions": [{"op": "zero", "site": "attentions_output", "positions": "last", "layers": 3}]},
    ),
    "a gradient past a row of zeros": (
        "llama",
        "attribute",
        {"prompts": "cat dog France", "targets": {"one": "cat"}, "method": "gradient"}
        | {"interventions": [{"op": "knockout", "layers": 1, "query_positions": 0, "key_positions": 0}]},
    ),
    "a pattern that reads ahead, of the second prompt": (
        "llama",
        "steer",
        {"prompts": ["cat dog France", "a b"], "vector": [1.0] * 64, "layers": 2, "factors": [2], "positions": "last"}
        | {"interventions": [{"op": "set_attention", "layers": [1, 2], "pattern": [[0.25] * 4] * 4, "prompts": 1}]},
    ),
}
"""Calls about which the two once disagreed."""


@pytest.mark.parametrize("name", ONCE)
def test_what_once_differed_does_not_any_more(name: str, tmp_path: Path) -> None:
    from tests.interpreter.runs import compare
    from tests.interpreter.subject import Subject

    family, tool, arguments = ONCE[name]
    outcome = compare(Subject.make(family, "auto", "left", tmp_path), (tool, arguments))
    assert (outcome.refusal, outcome.told.faults) == (None, [])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_tools_and_interpreter_agree(play: Play, family: str) -> None:
    attention, side = [("auto", "left"), ("eager", "right")][[*FAMILIES].index(family) % 2]
    assert play(family, attention, side, 20) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_server_with_edits_in_force_and_the_interpreter_agree(family: str, tmp_path: Path) -> None:
    from tests.interpreter.served import play_served, serve

    with serve(family, tmp_path) as subject:
        assert [str(outcome) for outcome in play_served(subject, 1, 20) if outcome.told.faults] == []


def test_every_tool_that_takes_interventions_is_compared() -> None:
    from nnterp_mcp.toolset import specs
    from tests.interpreter.checks import CHECKS

    taking = {name for name, spec in specs().items() if "interventions" in spec.params.model_fields} - {"edit_model"}
    for tool in taking - CHECKS.keys():
        pytest.fail(
            f"write in tests/interpreter/reading_tools.py what {tool} should answer, computed without this package: "
            f"`def {tool}(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None`, like "
            "logit_lens there. Its examples are then drawn with random prompts and interventions; write a method "
            f"`_{tool}` of Cases in tests/interpreter/cases.py, with a weight in _TOOLS, only if it takes no `prompts`"
            " or its other arguments should vary too."
        )
    assert CHECKS.keys() == taking


def test_every_operation_is_drawn_at_every_site(tmp_path: Path) -> None:
    from random import Random

    from nnterp_mcp.request.operations import OPERATIONS, parse_operation, site_of
    from nnterp_mcp.request.sites import SITES
    from tests.interpreter.cases import Cases
    from tests.interpreter.subject import Subject

    cases = Cases(Subject.make("llama", "auto", "left", tmp_path), Random(0))
    drawn = [cases.draw() for _ in range(900)]
    operations = [parse_operation(one) for _, call in drawn for one in call.get("interventions", [])]
    found = {(one.op, site_of(one)) for one in operations if hasattr(one, "site")}  # pyright: ignore[reportArgumentType]
    placed = ("add", "scale", "zero", "mean", "patch", "project_out", "swap")
    everywhere = {(op, site) for op in placed for site in SITES}
    nowhere = {(op, "attention_probabilities") for op in ("add", "mean", "project_out", "swap")}
    assert found == everywhere - nowhere
    assert {one.op for one in operations} == set(OPERATIONS)


def test_what_means_something_else_is_noticed(tmp_path: Path) -> None:
    """The same call with another operation in the interpreter's hands differs from what the tool says."""
    from tests.interpreter.checks import CHECKS
    from tests.interpreter.comparison import Comparison
    from tests.interpreter.subject import Subject

    subject = Subject.make("llama", "auto", "left", tmp_path)
    scale = {"op": "scale", "site": "values", "layers": 1, "heads": 0, "factor": 0.9}
    asked = {"prompts": "old France", "interventions": [scale], "layers": "all", "targets": {"a": "cat"}}
    result = subject.lab.call("logit_lens", **asked)
    for given, agrees in ((scale, True), (scale | {"heads": 1}, False), (scale | {"factor": 0.89}, False)):
        told = Comparison(subject.by.tokenizer)
        CHECKS["logit_lens"](subject, asked | {"interventions": [given]}, result, told)
        assert (told.faults == []) is agrees
