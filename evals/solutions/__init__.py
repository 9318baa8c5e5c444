"""The reference solver: for each question a function that answers it by the tools alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from evals.question import Value
from evals.solutions import (
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
from evals.tools import Tools

SOLUTIONS: dict[str, Callable[[Tools], Awaitable[Value]]] = {
    **readings.SOLUTIONS,
    **attention.SOLUTIONS,
    **causes.SOLUTIONS,
    **directions.SOLUTIONS,
    **prompt_sets.SOLUTIONS,
    **investigations.SOLUTIONS,
    **planted.SOLUTIONS,
    **features.SOLUTIONS,
    **lenses.SOLUTIONS,
    **claims.SOLUTIONS,
    **finetunes.SOLUTIONS,
}
"""By the question's name."""
