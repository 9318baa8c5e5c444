"""The questions, by what they are about."""

from __future__ import annotations

from evals.question import Question
from evals.questions import attention, causes, directions, prompt_sets, readings

QUESTIONS: tuple[Question, ...] = (
    *readings.QUESTIONS,
    *attention.QUESTIONS,
    *causes.QUESTIONS,
    *directions.QUESTIONS,
    *prompt_sets.QUESTIONS,
)
"""Every question, in the order in which they are asked."""
