"""The reference solver's run through all questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evals.question import Question, Value
from evals.solutions import SOLUTIONS
from evals.tools import Call, CountTokens, connected

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Solved:
    """An answer, and the calls that it took.

    Attributes:
        name: The question.
        answer: What the solver answered; None if it failed.
        calls: The calls.
        failure: Why there is no answer.
    """

    name: str
    answer: Value | None
    calls: list[Call]
    failure: str = ""


async def solve(
    questions: Sequence[Question], count: CountTokens, report: Callable[[str], None] = lambda message: None
) -> list[Solved]:
    """Answers questions one after the other on a server of its own; the model is loaded before the first.

    Args:
        questions: What is asked.
        count: Counts tokens.
        report: Told which question is being answered.
    """
    solved: list[Solved] = []
    async with connected(count) as tools:
        await tools.call("load_model", model=MODEL)
        tools.take()
        for question in questions:
            report(f"asking {question.name}")
            try:
                answer = await SOLUTIONS[question.name](tools)
            except (RuntimeError, LookupError, ValueError) as error:
                solved.append(Solved(question.name, None, tools.take(), f"{type(error).__name__}: {error}"))
            else:
                solved.append(Solved(question.name, answer, tools.take()))
    return solved
