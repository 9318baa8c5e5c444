"""The reference solver's run through all questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.question import SMOLLM2, Question, Value
from evals.solutions import SOLUTIONS
from evals.tools import Call, CountTokens, connected


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
    questions: Sequence[Question],
    folders: Mapping[str, Path],
    count: CountTokens,
    report: Callable[[str], None] = lambda message: None,
) -> list[Solved]:
    """Answers questions one after the other on a server of its own, which has one model loaded at a time.

    Args:
        questions: What is asked.
        folders: The models' folders, by their names.
        count: Counts tokens.
        report: Told which question is being answered.
    """
    solved: list[Solved] = []
    loaded = ""
    async with connected(count, [folder for name, folder in folders.items() if name != SMOLLM2]) as tools:
        for question in questions:
            if question.model != loaded:
                if loaded:
                    await tools.call("unload_model")
                loaded = question.model
                await tools.call("load_model", model=loaded if loaded == SMOLLM2 else str(folders[loaded]))
                tools.take()
            report(f"asking {question.name}")
            try:
                answer = await SOLUTIONS[question.name](tools)
            except (RuntimeError, LookupError, ValueError) as error:
                solved.append(Solved(question.name, None, tools.take(), f"{type(error).__name__}: {error}"))
            else:
                solved.append(Solved(question.name, answer, tools.take()))
    return solved
