"""What the model knows over a set of prompts, by the tools."""

from __future__ import annotations

from typing import Any

from evals.questions.prompt_sets import CAPITALS, ask
from evals.solutions.rows import rows
from evals.tools import Tools


async def _run(tools: Tools) -> dict[str, Any]:
    asked = [{"prompt": ask(country), "targets": {"capital": f" {capital}"}} for country, capital in CAPITALS.items()]
    return await tools.call("run_prompts", prompts=asked)


async def unknown_capital(tools: Tools) -> str:
    """The prompts that go worst are shown."""
    (row,) = [row for row in rows(await _run(tools), "examples") if row["rank"] != 1]
    return list(CAPITALS)[row["prompt"]]


async def mean_probability(tools: Tools) -> float:
    """The category's mean."""
    return rows(await _run(tools), "categories")[0]["mean p"]


SOLUTIONS = {"unknown-capital": unknown_capital, "mean-probability": mean_probability}
