"""The questions, by what they are about."""

from __future__ import annotations

from evals.question import Question
from evals.questions import (
    attention,
    causes,
    claims,
    directions,
    features,
    finetunes,
    investigations,
    lenses,
    planted,
    prompt_sets,
    readings,
)

QUESTIONS: tuple[Question, ...] = (
    *readings.QUESTIONS,
    *attention.QUESTIONS,
    *causes.QUESTIONS,
    *directions.QUESTIONS,
    *prompt_sets.QUESTIONS,
    *investigations.QUESTIONS,
    *planted.QUESTIONS,
    *features.QUESTIONS,
    *lenses.QUESTIONS,
    *claims.QUESTIONS,
    *finetunes.QUESTIONS,
)
"""Every question, in the order in which they are asked."""
