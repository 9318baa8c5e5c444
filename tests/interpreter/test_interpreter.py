"""Random calls of the tools beside an interpreter of the intervention language that shares no code with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

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
    assert play(family, attention, side, 14) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("attention", "side"), [("auto", "left"), ("eager", "right")])
def test_tools_and_interpreter_agree(play: Play, family: str, attention: str, side: str) -> None:
    assert play(family, attention, side, 60) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_server_with_edits_in_force_and_the_interpreter_agree(family: str, tmp_path: Path) -> None:
    from tests.interpreter.served import play_served, serve

    with serve(family, tmp_path) as subject:
        assert [str(outcome) for outcome in play_served(subject, 1, 60) if outcome.told.faults] == []


def test_what_means_something_else_is_noticed(tmp_path: Path) -> None:
    """The same call with another operation in the interpreter's hands differs from what the tool says."""
    from tests.interpreter.comparison import Comparison
    from tests.interpreter.runs import CHECKS
    from tests.interpreter.subject import Subject

    subject = Subject.make("llama", "auto", "left", tmp_path)
    scale = {"op": "scale", "site": "values", "layers": 1, "heads": 0, "factor": 0.9}
    asked = {"prompts": "old France", "interventions": [scale], "layers": "all", "targets": {"a": "cat"}}
    result = subject.lab.call("logit_lens", **asked)
    for given, agrees in ((scale, True), (scale | {"heads": 1}, False), (scale | {"factor": 0.89}, False)):
        told = Comparison(subject.by.tokenizer)
        CHECKS["logit_lens"](subject, asked | {"interventions": [given]}, result, told)
        assert (told.faults == []) is agrees
