"""Answers beside what is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evals.question import Parts, Question, Value

Verdict = Literal["right", "wrong", "unreadable", "missing"]


@dataclass(frozen=True)
class Grade:
    """What an answer is worth.

    Attributes:
        question: What was asked.
        verdict: `unreadable` is an answer of another form than the question's.
        given: The answer as it came; None where there is none.
        right: What is right.
        reason: What an unreadable answer should have been, or the parts of an answer that are wrong.
    """

    question: Question
    verdict: Verdict
    given: object
    right: Value
    reason: str = ""


def grade(question: Question, given: object, right: Value) -> Grade:
    """Grades one answer; None is no answer."""
    if given is None:
        return Grade(question, "missing", given, right)
    try:
        value = question.form.read(given)
    except ValueError as error:
        return Grade(question, "unreadable", given, right, str(error))
    if question.form.agrees(value, right):
        return Grade(question, "right", given, right)
    wrong = question.form.wrong(value, right) if isinstance(question.form, Parts) else []
    return Grade(question, "wrong", given, right, f"wrong: {', '.join(wrong)}" if wrong else "")


def grade_all(questions: Sequence[Question], given: Mapping[str, object], right: Mapping[str, Value]) -> list[Grade]:
    """Grades answers by the names of their questions.

    Raises:
        ValueError: There is an answer to no question.
    """
    names = [question.name for question in questions]
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"there is no question {unknown[0]!r}: the questions are {', '.join(names)}")
    return [grade(question, given.get(question.name), right[question.name]) for question in questions]


def score(grades: Sequence[Grade]) -> str:
    """How many are right, in words."""
    return f"{sum(one.verdict == 'right' for one in grades)} of {len(grades)} questions answered right."
