from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from evals.answers import model_folders, right_answers
from evals.grading import grade
from evals.questions import QUESTIONS
from evals.solver import Solved, solve
from evals.tools import Call, connected


def test_calls_are_counted_as_they_were_sent_and_as_they_were_answered():
    counted: list[str] = []

    def count(text: object) -> int:
        counted.append(str(text))
        return len(counted[-1])

    async def ask() -> tuple[list[Call], dict[str, Any]]:
        async with connected(count) as tools:
            told = await tools.call("session")
            return tools.take() + tools.take(), told

    calls, told = anyio.run(ask)
    (call,) = calls
    sent, text, structured = counted
    assert sent == '{"name":"session","arguments":{}}'
    assert text.startswith(f"{told['finding']}\n")
    assert structured == json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    assert (call.sent, call.text, call.structured) == tuple(map(len, counted))


def test_an_answer_that_is_an_error_is_no_answer():
    async def ask() -> None:
        async with connected(len) as tools:
            await tools.call("read_run", run_id="logit_lens-aaaaaa")

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - task groups wrap it
        anyio.run(ask)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RuntimeError)
    assert "logit_lens-aaaaaa" in str(error)


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    from nnterp_mcp.settings import Settings

    return model_folders(Settings().cache / "evals")


@pytest.fixture(scope="module")
def solved(count_tokens: Callable[[object], int], folders: dict[str, Path]) -> dict[str, Solved]:
    return {one.name: one for one in anyio.run(solve, QUESTIONS, folders, count_tokens)}


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
def test_the_reference_solver_is_right_everywhere(solved: dict[str, Solved], folders: dict[str, Path]):
    from nnterp_mcp.settings import Settings

    right = right_answers(QUESTIONS, folders, Settings().cache / "evals")
    grades = [grade(question, solved[question.name].answer, right[question.name]) for question in QUESTIONS]
    failed = [(one.question.name, one.given, one.right) for one in grades if one.verdict != "right"]
    assert not failed, [solved[name].failure for name, *_ in failed]


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [question.name for question in QUESTIONS])
def test_a_question_costs_at_most_six_calls_and_four_thousand_tokens(solved: dict[str, Solved], name: str):
    calls = solved[name].calls
    assert 1 <= len(calls) <= 6
    assert sum(call.sent + max(call.text, call.structured) for call in calls) <= 4000
